/** The view of who is logged in: the list and the conversation side by side, or one of them where it is narrow. */
import { logout, serverState } from "./api.js";
import { EVERYBODY } from "./chat.js";
import { synchronise } from "./clock.js";
import { SESSION_ENDED } from "./connection.js";
import { h } from "./dom.js";
import { announce, closeNotifications, notify, sound, title, toast } from "./notices.js";
import { plainName } from "./plain.js";
import { openSettings, question } from "./settings.js";
import { Side } from "./side.js";
import { Talk } from "./talk.js";
import { reason, t } from "./texts.js";

const PATIENCE = 1000;

export class Shell {
  #chat;
  #options;
  #peer = null;
  #drafts = new Map();
  #dirty = false;
  #ending = new AbortController();
  #patience = 0;
  #loggingOut = false;
  #state = "";
  #outdated = false;

  /** `storage`, `limits`: as of the chat. `leave(ended)`: the session is over. `asked()`: see app.js. */
  constructor(chat, options) {
    this.#chat = chat;
    this.#options = options;
    const shared = {
      drafts: this.#drafts,
      current: () => this.#peer,
      address: (peer) => this.#address(peer),
      open: (peer) => this.#go(peer),
      back: () => this.#back(),
      settings: () => void this.#settings(),
      draft: (peer, text) => this.#draft(peer, text),
      limits: options.limits,
    };
    this.status = h("p", { class: "status", role: "status" });
    this.side = new Side(chat, shared);
    this.talk = new Talk(chat, shared);
    const heading = h("h1", { class: "unseen" }, t.title);
    this.element = h("main", { class: "shell" }, heading, this.status, this.side.element, this.talk.element);
  }

  /** Take up the drafts: before anybody can write one. */
  async load() {
    for (const [to, text] of await this.#options.storage.drafts(this.#chat.me).catch(() => [])) {
      this.#drafts.set(to, text);
      this.#chat.conversation(to).confirmed = true; // only then there was a place to write
    }
  }

  /** Begin, with the conversation open that the address asks for. */
  async start() {
    this.#listen();
    this.#show(this.#options.asked().peer);
    await this.#chat.start();
  }

  #listen() {
    const { signal } = this.#ending;
    this.#chat.addEventListener("change", () => this.#soon(), { signal });
    this.#chat.addEventListener("message", (event) => this.#arrived(event), { signal });
    addEventListener("online", () => this.#look(), { signal });
    addEventListener("offline", () => this.#chat.connection.interrupt(), { signal });
    addEventListener("focus", () => this.#look(), { signal });
    document.addEventListener("visibilitychange", () => document.visibilityState === "visible" && this.#look(), { signal });
    addEventListener("pagehide", () => void this.#chat.flush(), { signal });
    addEventListener("popstate", () => this.#popped(), { signal });
    addEventListener("keydown", (event) => this.#key(event), { signal });
    navigator.serviceWorker?.addEventListener("message", ({ data }) => this.#follow(data), { signal });
  }

  /** Somebody is here, or the network is: be up to date at once. */
  #look() {
    if (document.hasFocus()) void closeNotifications();
    this.#chat.connection.wake();
    void this.#chat.refresh();
    this.#soon();
  }

  /** Show what is different with the next picture: once, however much it is. */
  #soon() {
    if (this.#dirty) return;
    this.#dirty = true;
    const update = () => {
      this.#dirty = false;
      if (!this.#ending.signal.aborted) this.#update();
    };
    if (document.visibilityState === "visible") requestAnimationFrame(update);
    else setTimeout(update, 100); // there are no pictures now, but the title is seen
  }

  #update() {
    const { state, code } = this.#chat.connection;
    if (state === "open" && this.#state !== state) void this.#askServer();
    this.#state = state;
    if (state === "ended" && code === SESSION_ENDED && !this.#loggingOut) return this.#leave(true);
    this.side.update();
    this.talk.update();
    title([...this.#chat.conversations.values()].reduce((sum, one) => sum + one.unread, 0));
    this.#say(state);
  }

  /** The server may be another one than before: ask for its time and for the version of its page. */
  async #askServer() {
    const { time, outdated } = await serverState();
    if (time) synchronise(time);
    this.#outdated = outdated;
    this.#soon();
  }

  /** Say how it stands with the connection; that it is being made, only if it takes long. */
  #say(state) {
    const { connection } = this.#chat;
    const connecting = state !== "open" && state !== "ended" && navigator.onLine && !connection.failures;
    if (!connecting) clearTimeout(this.#patience);
    if (connecting) this.#patience ||= setTimeout(() => this.#status(t.connecting), PATIENCE);
    else this.#patience = 0;
    if (state === "open" && this.#outdated) this.#status(t.newVersion, t.reload, () => location.reload());
    else if (state === "open") this.#status("");
    else if (state === "ended") this.#status(t.broken, t.reload, () => location.reload());
    else if (!navigator.onLine) this.#status(t.noNetwork);
    else if (connection.failures) this.#status(t.away, t.retryNow, () => connection.wake());
  }

  #status(text, label = "", action = null) {
    if (this.status.dataset.text === text) return; // its button keeps the focus
    this.status.dataset.text = text;
    this.status.replaceChildren(text, ...(action ? [h("button", { type: "button", onclick: action }, label)] : []));
  }

  #arrived({ peer, message }) {
    if (message.mine) return;
    const name = peer === EVERYBODY ? t.said(t.everybody, message.from) : plainName(peer);
    const looked = document.hasFocus() && peer === this.#peer;
    if (looked) announce(t.said(message.from, message.text));
    else sound();
    if (!document.hasFocus()) void notify(name, message.text, this.#address(peer), () => this.#go(peer));
  }

  #address(peer) {
    return peer ? `/chat/test?${new URLSearchParams({ uid: this.#chat.me, to_uid: peer })}` : "/";
  }

  /** Open a conversation. The way back leads to the list, however many were opened. */
  #go(peer) {
    const address = this.#address(peer);
    const { fromList, dialog } = history.state ?? {};
    if (!this.#peer && peer && !dialog) history.pushState({ fromList: true }, "", address);
    else if (peer !== this.#peer) history.replaceState({ fromList: fromList || !this.#peer }, "", address);
    this.#show(peer);
  }

  #popped() {
    const { user, peer } = this.#options.asked();
    const wanted = user && user !== this.#chat.me ? null : peer; // an entry of somebody who was logged in before
    if (wanted !== this.#peer) this.#show(wanted);
  }

  /** The same step as the browser's own. */
  #back() {
    if (!this.#peer) return;
    if (history.state?.fromList) history.back();
    else this.#go(null);
  }

  /** Keys that work wherever the focus is. */
  #key(event) {
    if (event.defaultPrevented || event.isComposing || document.querySelector("dialog")) return;
    const { key, target } = event;
    const command = event.ctrlKey || event.metaKey;
    if (command && key.toLowerCase() === "k") {
      event.preventDefault();
      if (this.side.element.offsetParent) this.side.search();
      else this.#back();
    } else if (key === "Escape") this.#back();
    else if ([...key].length === 1 && key !== " " && !command && !event.altKey && !target.matches("input, textarea")) this.talk.type();
  }

  /** Open what a notification was about, unless it was for another user. */
  #follow(address) {
    const query = new URL(address, location.href).searchParams;
    if (query.get("uid") === this.#chat.me) this.#go(query.get("to_uid"));
  }

  #show(peer) {
    const before = this.#peer;
    this.#peer = peer === this.#chat.me ? null : peer;
    this.element.classList.toggle("talking", Boolean(this.#peer));
    this.talk.show(this.#peer);
    void this.#chat.open(this.#peer);
    this.#update();
    if (this.#peer) this.talk.focus();
    else this.side.focus(before);
  }

  #draft(peer, text) {
    if (text) this.#drafts.set(peer, text);
    else this.#drafts.delete(peer);
    this.#options.storage.draft(this.#chat.me, peer, text).catch(() => {});
    this.#soon();
  }

  async #settings() {
    const changed = () => {
      this.side.render();
      this.talk.render();
      this.#update();
    };
    await openSettings(this.#chat.me, { changed, logOut: () => this.#logOut() });
    if (document.activeElement === document.body) this.side.settings.focus(); // what had it is made anew
  }

  /** Log out, after a question if messages would be lost. */
  async #logOut() {
    const chat = this.#chat;
    const unsent = [...chat.conversations.keys()].flatMap((peer) => chat.waiting(peer)).length;
    if (unsent && !(await question(t.unsentTitle, t.unsentHint(unsent), t.logOut))) return;
    this.#loggingOut = true; // the server closes the socket with 4001 before it answers
    await chat.flush();
    const answer = await logout(chat.me);
    this.#loggingOut = false;
    if (answer.ok || answer.code === 401 || chat.connection.code === SESSION_ENDED) return this.#leave(false);
    toast(reason(answer.reason, answer.wait));
  }

  #leave(ended) {
    this.#ending.abort();
    clearTimeout(this.#patience);
    for (const open of document.querySelectorAll("dialog")) open.close();
    void closeNotifications();
    this.#options.leave(ended);
  }
}
