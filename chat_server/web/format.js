/** Turn the text of a message into nodes, with links and code. Texts become text nodes, never HTML. */
import { h } from "./dom.js";
import { hidesSomething, plainText } from "./plain.js";

const CODE = /```(?:[\w+-]*\n)?(.+?)\n?```\n?|`([^`\n]+)`/gsu;
const LINK = /(?:https?:\/\/|\bwww\.)[^\s<>"'“”‘’，。；：！？、（）《》「」`]+[^\s<>"'“”‘’，。；：！？、（）《》「」`.,;:!?)\]}]/giu;
const EMOJI = /^(?:\p{RI}\p{RI}|[#*\d]\ufe0f?\u20e3|\p{Extended_Pictographic}[\ufe0f\u200d\p{Emoji_Modifier}\u{e0020}-\u{e007f}]*|\s)+$/u;
const MAX_LARGE = 5; // emoji

export function formatted(text) {
  const nodes = [];
  let end = 0;
  for (const match of text.matchAll(CODE)) {
    const [whole, block, inline] = match;
    nodes.push(...linked(text.slice(end, match.index)));
    nodes.push(block ? h("pre", {}, h("code", {}, plainText(block))) : h("code", {}, plainText(inline)));
    end = match.index + whole.length;
  }
  return [...nodes, ...linked(text.slice(end))];
}

/** Whether a text consists of a few emoji only; these are shown large. */
export function onlyEmoji(text) {
  return text.length < 80 && EMOJI.test(text) && [...new Intl.Segmenter().segment(text.trim())].length <= MAX_LARGE;
}

function linked(text) {
  const nodes = [];
  let end = 0;
  for (const match of text.matchAll(LINK)) {
    const anchor = link(match[0]);
    if (!anchor) continue;
    nodes.push(plainText(text.slice(end, match.index)), anchor);
    end = match.index + match[0].length;
  }
  return [...nodes, plainText(text.slice(end))];
}

/** A link. It shows the text as written if that shows the host and hides nothing, otherwise the full address. */
function link(written) {
  const address = /^www/i.test(written) ? `https://${written}` : written;
  if (!URL.canParse(address)) return null;
  const url = new URL(address);
  if (url.username || url.password) return null; // https://bank.example@thief.example
  const start = `${url.protocol}//${url.host}`;
  const honest = address.toLowerCase().startsWith(start) && /^([/?#]|$)/.test(address.slice(start.length));
  const shown = honest && !hidesSomething(written) ? written : url.href;
  return h("a", { href: url.href, target: "_blank", rel: "noopener noreferrer nofollow", dir: "ltr" }, shown);
}
