/** Replace characters in names and texts of other users that hide something or deceive the reader. */

// Characters without a visible shape. In a name or an address their only use is deception.
const INVISIBLE = /[\p{Cc}\p{Cf}\p{Zl}\p{Zp}\p{Default_Ignorable_Code_Point}\u2800]/gu;
// They reverse the order of letters: "gpj.exe" then reads "exe.jpg". No script needs them.
const OVERRIDES = /[\u202D\u202E]/gu;
const REPLACEMENT = "\uFFFD";

/** Whether a text contains invisible characters. */
export function hidesSomething(text) {
  return text.search(INVISIBLE) >= 0;
}

/** A name without invisible characters. */
export function plainName(name) {
  return name.replace(INVISIBLE, REPLACEMENT);
}

/** A name within a string, isolated from the direction of that string. */
export function isolated(name) {
  return `\u2068${plainName(name)}\u2069`;
}

/** A text without direction overrides. */
export function plainText(text) {
  return text.replace(OVERRIDES, REPLACEMENT);
}
