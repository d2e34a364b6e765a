/** The views for blocking: menus, and the list in the settings. */
import { arrange, dialog, h, nameOf } from "./dom.js";
import { toast } from "./notices.js";
import { question } from "./question.js";
import { reason, t } from "./texts.js";

/** Show a menu at a place on the screen, and do what is chosen. A choice is `{text, hint, act()}`. */
export async function offer(choices, place) {
  const build = (close) =>
    choices.map(({ text, hint, act }) => h("button", { type: "button", onclick: () => close(act) }, text, hint && h("small", {}, hint)));
  const act = await dialog({ class: "actions", "aria-label": t.menu }, build, place);
  await act?.();
}

/** The choice of a menu that blocks or unblocks a user. */
export function blockingChoice(chat, name) {
  if (chat.blocked.has(name)) return { text: t.unblock(name), hint: t.unblockEffect, act: () => change(chat, name, false) };
  const block = async () => {
    if (await question(t.blockTitle(name), t.blockEffect, t.blockNow)) await change(chat, name, true);
  };
  return { text: t.block(name), hint: t.blockEffect, act: block };
}

/** The list of blocked users, each with a button that unblocks. */
export function blockedList(chat) {
  const list = h("ul", {});
  const empty = h("p", {}, t.noBlocked);
  const row = (name) => {
    const unblock = async () => {
      await change(chat, name, false);
      update();
      (list.querySelector("button") ?? section).focus(); // the focused row was removed
    };
    const button = h("button", { type: "button", class: "quiet", "aria-label": t.unblock(name), onclick: unblock }, t.unblockNow);
    return h("li", {}, nameOf(name), button);
  };
  const update = () => {
    arrange(list, chat.blocked.names.map(row));
    empty.hidden = chat.blocked.names.length > 0;
  };
  const heading = h("h3", { id: "blocked" }, t.blockedUsers);
  const section = h("section", { class: "blocked", tabindex: "-1", "aria-labelledby": "blocked" }, heading, h("p", {}, t.blockEffect), list, empty);
  void chat.blocked.load().then(update);
  update();
  return section;
}

async function change(chat, name, block) {
  const answer = await chat.blocked.change(name, block);
  toast(answer.ok ? (block ? t.blocked(name) : t.unblocked(name)) : reason(answer.reason === "too_many" ? "too_many_blocked" : answer.reason));
}
