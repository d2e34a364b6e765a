/** The actions of a message: the dialog next to it, and the gestures that open the dialog. */
import { isGroup } from "./chat.js";
import { dialog, h } from "./dom.js";
import { announce, toast } from "./notices.js";
import { stateOf, stateText } from "./state.js";
import { t } from "./texts.js";
import { instant } from "./times.js";

const LONG_PRESS = 500; // milliseconds

/** Call `act(row, place)` after a right click or long press on a bubble. Links and selected text keep the browser's menu. */
export function onPress(list, act) {
  let pressing = 0;
  const bubbleOf = ({ target }) => (target.closest("a") ? null : target.closest(".bubble"));
  list.addEventListener("contextmenu", (event) => {
    const bubble = bubbleOf(event);
    if (!bubble || !getSelection().isCollapsed) return;
    event.preventDefault();
    act(bubble.closest("li"), event);
  });
  // Some browsers have no contextmenu event for a long press.
  list.addEventListener("pointerdown", (event) => {
    clearTimeout(pressing);
    const bubble = bubbleOf(event);
    if (bubble && event.pointerType === "touch") pressing = setTimeout(() => act(bubble.closest("li"), event), LONG_PRESS);
  });
  for (const name of ["pointerup", "pointercancel", "pointermove"]) {
    list.addEventListener(name, () => clearTimeout(pressing));
  }
}

/** Show the actions of `message` at a place on the screen, and do the chosen one. */
export async function offerActions(chat, peer, message, { x, y }) {
  if (message.gone || message.change || document.querySelector("dialog")) return;
  const build = (close) => {
    const button = (value, ...content) => h("button", { type: "button", onclick: () => close(value) }, ...content);
    return [
      button("copy", t.copy),
      isRemovable(chat, peer, message) && button("remove", t.remove, h("small", {}, isGroup(peer) ? t.removeHintGroup : t.removeHint(peer))),
      message.waiting && stateOf(message) === "failed" && button("retry", t.again),
      message.why && button("discard", t.discard),
      h("p", { class: "info" }, instant(message.time), message.mine && h("br"), message.mine && stateText(message)),
    ].filter(Boolean);
  };
  const chosen = await dialog({ class: "actions", "aria-label": t.actions }, build, { x, y });
  if (chosen === "copy") await copy(message.text);
  if (chosen === "remove") removeMessage(chat, peer, message);
  if (chosen === "retry") void chat.retry(message.id);
  if (chosen === "discard") void chat.discard(message.id);
}

/** Whether this user can delete the message: in a group, its sender and the owner of the group can. */
function isRemovable(chat, peer, { waiting, gone, change, mine }) {
  if (waiting || gone || change || !chat.conversation(peer).stored) return false;
  return mine || !isGroup(peer) || chat.groups.owns(chat.me, peer);
}

/** Delete a stored message for all users. The deletion can be undone for some seconds. */
export function removeMessage(chat, peer, message) {
  if (!isRemovable(chat, peer, message)) return;
  const undo = chat.remove(peer, message.key);
  announce(t.removed);
  toast(isGroup(peer) ? t.removedForGroup : t.removedFor(peer), t.undo, undo);
}

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const area = h("textarea", { class: "unseen" }); // without TLS, navigator.clipboard does not exist
    area.value = text;
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  toast(t.copied);
}
