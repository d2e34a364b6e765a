/** Names and texts of other people as strings that can be shown: nothing in them is hidden or deceives the eye. */

// Characters without a shape of their own. In a name or an address they only serve to deceive.
const INVISIBLE = /[\p{Cc}\p{Cf}\p{Zl}\p{Zp}\p{Default_Ignorable_Code_Point}\u2800]/gu;
// They turn around the order of letters: "gpj.exe" then reads "exe.jpg". No script needs them.
const OVERRIDES = /[\u202D\u202E]/gu;
const REPLACEMENT = "\uFFFD";

/** Whether a reader does not see all of it. */
export function hidesSomething(text) {
  return text.search(INVISIBLE) >= 0;
}

/** A name. */
export function plainName(name) {
  return name.replace(INVISIBLE, REPLACEMENT);
}

/** A name amid other text: whatever direction it runs in, the text around it stays as it is. */
export function isolated(name) {
  return `\u2068${plainName(name)}\u2069`;
}

/** A text. */
export function plainText(text) {
  return text.replace(OVERRIDES, REPLACEMENT);
}
