/** The view of one conversation: header, messages, composer. */
import { blockingChoice, offer } from "./blocking.js";
import { EVERYBODY, isGroup } from "./chat.js";
import { avatar, h, HOVERS, icon, iconButton, nameOf } from "./dom.js";
import { memberCount } from "./members.js";
import { Messages } from "./messages.js";
import { question } from "./question.js";
import { reason, t, titleOf } from "./texts.js";

export class Talk {
  #chat;
  #options;
  #peer = null;
  #named = null;
  #warned = false;

  element = h("div", { class: "talk" });

  /** `back()`, `members(group)`, `draft(peer, text)`, `drafts`, `limits`: see Shell. */
  constructor(chat, options) {
    this.#chat = chat;
    this.#options = options;
    this.messages = new Messages(chat, { leave: () => this.focus() });
    this.render();
  }

  /** Build the view in the current language. */
  render() {
    this.title = h("h2", {});
    this.presence = h("p", { class: "presence" });
    this.face = h("span", {});
    this.hint = h("p", { class: "hint" });
    this.error = h("p", { class: "error", id: "text-error", role: "alert" });
    this.text = h("textarea", {
      rows: "1",
      dir: "auto",
      enterkeyhint: HOVERS.matches ? "send" : "enter",
      "aria-describedby": "text-error",
      oninput: () => this.#wrote(),
      onkeydown: (event) => this.#key(event),
    });
    const send = h("button", { type: "submit", class: "send", "aria-label": t.send, title: t.send }, icon("send"));
    this.composer = h("form", { class: "composer", onsubmit: (event) => this.#submit(event) }, this.text, send, this.error);
    this.noPeer = h("div", { class: "no-peer" }, h("p", {}, t.choose));
    const back = iconButton("back", t.back, () => this.#options.back(), { class: "icon-button back" });
    this.menu = iconButton("more", t.menu, () => void this.#offerMenu(), { "aria-haspopup": "dialog" });
    this.members = iconButton("everybody", t.members, () => void this.#showMembers(), { "aria-haspopup": "dialog" });
    this.header = h(
      "header",
      { class: "bar" },
      back,
      this.face,
      h("div", { class: "heading" }, this.title, this.presence),
      this.menu,
      this.members,
    );
    this.messages.render();
    this.element.replaceChildren(this.noPeer, this.header, this.messages.element, this.hint, this.composer);
    this.show(this.#peer);
  }

  /** Show the conversation with `peer`; null shows none. */
  show(peer) {
    if (peer !== this.#peer) {
      this.#warned = false;
      this.#chat.typing.stop();
    }
    this.#peer = peer;
    const everybody = peer === EVERYBODY;
    for (const part of [this.header, this.messages.element, this.hint]) part.hidden = !peer;
    this.composer.hidden ||= !peer;
    this.noPeer.hidden = Boolean(peer);
    this.element.classList.toggle("everybody", everybody);
    this.messages.show(peer);
    if (!peer) return;
    this.text.value = this.#options.drafts.get(peer) ?? "";
    this.text.placeholder = everybody ? t.writeAll : t.write(peer);
    this.text.setAttribute("aria-label", this.text.placeholder);
    this.error.textContent = "";
    this.#named = null;
    this.update();
    this.#grow();
  }

  focus() {
    if (HOVERS.matches && !this.composer.hidden) this.text.focus({ preventScroll: true });
    else this.messages.scroller.focus({ preventScroll: true });
  }

  /** A character was typed elsewhere: focus the composer, which receives it. */
  type() {
    if (this.#peer && !this.composer.hidden) this.text.focus({ preventScroll: true });
  }

  update() {
    if (!this.#peer) return;
    const { confirmed, refused, why, closed, left } = this.#chat.conversation(this.#peer);
    const blocked = this.#chat.blocked.has(this.#peer);
    const online = this.#chat.online(this.#peer);
    const everybody = this.#peer === EVERYBODY;
    this.#name(confirmed ? titleOf(this.#peer) : "");
    const group = isGroup(this.#peer);
    const typing = this.#chat.typing.names(this.#peer);
    const state = everybody ? t.everybodyHint : group ? memberCount(this.#chat.groups.members(this.#peer)) : online === null ? "" : online ? t.online : t.offline;
    this.presence.textContent = typing.length ? t.typing(typing) : state;
    this.presence.classList.toggle("online", Boolean(online));
    this.hint.textContent = blocked ? t.isBlocked(this.#peer) : left && confirmed ? t.leftGroup : why ? reason(why) : refused ? t.limited(this.#peer) : "";
    this.menu.hidden = everybody || group || !confirmed || closed;
    this.members.hidden = !group || !confirmed || closed;
    this.#offer(confirmed && !closed && !blocked);
    this.messages.update();
  }

  /** Show the name; "" until the server confirms that this user exists. */
  #name(name) {
    if (this.#named === name) return;
    this.#named = name;
    this.title.replaceChildren(name ? nameOf(name) : t.conversation);
    this.face.replaceChildren(avatar(name, this.#peer === EVERYBODY ? "everybody" : name ? null : "talk"));
  }

  /** Show or hide the composer. */
  #offer(open) {
    if (this.composer.hidden === !open) return;
    this.composer.hidden = !open;
    this.#grow();
    if (document.activeElement === this.messages.scroller) this.focus();
  }

  #wrote() {
    this.error.textContent = "";
    this.#grow();
    this.#options.draft(this.#peer, this.text.value);
    if (this.#peer !== EVERYBODY) this.#chat.typing.wrote(this.#peer, this.text.value.trim());
  }

  async #offerMenu() {
    const { left, bottom } = this.menu.getBoundingClientRect();
    await offer([blockingChoice(this.#chat, this.#peer)], { x: left, y: bottom });
    if (document.activeElement === document.body) this.menu.focus();
  }

  async #showMembers() {
    await this.#options.members(this.#peer);
    if (document.activeElement === document.body) this.focus(); // the button is hidden after leaving
  }

  #grow() {
    this.text.style.height = "auto";
    const border = this.text.offsetHeight - this.text.clientHeight;
    this.text.style.height = `${this.text.scrollHeight + border}px`;
  }

  #key(event) {
    // Enter during composition belongs to the input method; some browsers report that only as key code 229. On touch
    // devices, Enter inserts a line break, because their keyboards have no Shift+Enter.
    const sends = event.key === "Enter" && HOVERS.matches && !event.shiftKey;
    if (sends && !event.isComposing && event.keyCode !== 229) void this.#submit(event);
  }

  async #submit(event) {
    event.preventDefault();
    const text = this.text.value.trimEnd();
    const problem = this.#chat.problem(text);
    if (problem === "too_long") {
      const size = new TextEncoder().encode(text).length;
      this.error.textContent = t.tooLong(size, this.#options.limits.text);
    }
    if (problem || !(await this.#confirmBroadcast())) return;
    this.#chat.typing.sent();
    this.text.value = "";
    this.#wrote();
    this.messages.follow();
    void this.#chat.send(this.#peer, text);
  }

  /** Ask before the first broadcast. Resolves with whether to send it. */
  async #confirmBroadcast() {
    if (this.#peer !== EVERYBODY || this.#warned) return true;
    this.#warned = Boolean(await question(t.toEveryone, t.everybodyHint, t.send));
    return this.#warned;
  }
}
