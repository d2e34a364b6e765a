/** The view with a session: the list next to the conversation, or one of them on a narrow screen. */
import { logout, serverState } from "./api.js";
import { isShared } from "./chat.js";
import { synchronise } from "./clock.js";
import { SESSION_ENDED } from "./connection.js";
import { h, isReturning } from "./dom.js";
import { openMembers, openNewGroup } from "./members.js";
import { announce, closeNotifications, notify, sound, title, toast } from "./notices.js";
import { plainName } from "./plain.js";
import { question } from "./question.js";
import { openSettings } from "./settings.js";
import { Side } from "./side.js";
import { Talk } from "./talk.js";
import { reason, t, titleOf } from "./texts.js";

const CONNECTING_DELAY = 1000; // milliseconds until "Connecting…" is shown

export class Shell {
  #chat;
  #options;
  #peer = null;
  #drafts = new Map();
  #dirty = false;
  #ending = new AbortController();
  #connectingTimer = 0;
  #loggingOut = false;
  #state = "";
  #outdated = false;

  /** `storage`, `limits`: see Chat. `leave(ended)`: called when the session is over. `asked()`: see app.js. */
  constructor(chat, options) {
    this.#chat = chat;
    this.#options = options;
    const shared = {
      drafts: this.#drafts,
      current: () => this.#peer,
      address: (peer) => this.#address(peer),
      open: (peer) => this.#go(peer),
      back: () => this.#back(),
      newGroup: () => void this.#newGroup(),
      members: (group) => openMembers(chat, group, (name) => this.#go(name)),
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

  /** Load the drafts, before the user can write one. */
  async load() {
    for (const [to, text] of await this.#options.storage.drafts(this.#chat.me).catch(() => [])) {
      this.#drafts.set(to, text);
      this.#chat.conversation(to).confirmed = true; // the page accepts no text for an unconfirmed peer
    }
  }

  /** Start, and open the conversation in the address. */
  async start() {
    this.#listen();
    this.#show(this.#options.asked().peer);
    await this.#chat.start();
  }

  #listen() {
    const { signal } = this.#ending;
    this.#chat.addEventListener("change", (event) => this.#changed(event), { signal });
    this.#chat.addEventListener("message", (event) => this.#arrived(event), { signal });
    addEventListener("online", () => this.#resume(), { signal });
    addEventListener("offline", () => this.#chat.connection.interrupt(), { signal });
    addEventListener("focus", () => this.#resume(), { signal });
    document.addEventListener("visibilitychange", () => this.#visibilityChanged(), { signal });
    addEventListener("pagehide", () => void this.#chat.flush(), { signal });
    addEventListener("popstate", () => this.#popped(), { signal });
    addEventListener("keydown", (event) => this.#key(event), { signal });
    navigator.serviceWorker?.addEventListener("message", ({ data }) => this.#follow(data), { signal });
  }

  #changed({ peer }) {
    if (peer && this.#drafts.has(peer) && this.#chat.conversation(peer).left) this.#draft(peer, "");
    this.#updateSoon();
  }

  /** The user or the network is back: connect and refresh now. */
  #resume() {
    if (document.hasFocus()) void closeNotifications();
    this.#chat.connection.wake();
    void this.#chat.refresh();
    this.#updateSoon();
  }

  /** Update the view once before the next frame of the screen, however many changes there are. */
  #updateSoon() {
    if (this.#dirty) return;
    this.#dirty = true;
    this.#schedule();
  }

  #schedule() {
    const update = () => {
      if (!this.#dirty || this.#ending.signal.aborted) return;
      this.#dirty = false;
      this.#update();
    };
    if (document.visibilityState === "visible") requestAnimationFrame(update);
    else setTimeout(update, 100); // a hidden page gets no animation frames, but its title is visible
  }

  /** The page was hidden or is visible again. */
  #visibilityChanged() {
    if (document.visibilityState === "visible") this.#resume();
    else if (this.#dirty) this.#schedule(); // the animation frame will not come
  }

  #update() {
    const { state, code } = this.#chat.connection;
    if (state === "open" && this.#state !== state) void this.#askServer();
    this.#state = state;
    if (state === "ended" && code === SESSION_ENDED && !this.#loggingOut) return this.#leave(true);
    this.side.update();
    this.talk.update();
    title([...this.#chat.conversations.values()].reduce((sum, one) => sum + one.unread, 0));
    this.#showConnection(state);
  }

  /** The server may have been replaced: ask for its time and the version of its page. */
  async #askServer() {
    const { time, outdated } = await serverState();
    if (time) synchronise(time);
    this.#outdated = outdated;
    this.#updateSoon();
  }

  /** Show the state of the connection; "Connecting…" only after a delay. */
  #showConnection(state) {
    const { connection } = this.#chat;
    const connecting = state !== "open" && state !== "ended" && navigator.onLine && !connection.failures;
    if (!connecting) clearTimeout(this.#connectingTimer);
    if (connecting) this.#connectingTimer ||= setTimeout(() => this.#status(t.connecting), CONNECTING_DELAY);
    else this.#connectingTimer = 0;
    if (state === "open" && this.#outdated) this.#status(t.newVersion, t.reload, () => location.reload());
    else if (state === "open") this.#status("");
    else if (state === "ended") this.#status(t.broken, t.reload, () => location.reload());
    else if (!navigator.onLine) this.#status(t.noNetwork);
    else if (connection.failures) this.#status(t.away, t.retryNow, () => connection.wake());
  }

  #status(text, label = "", action = null) {
    if (this.status.dataset.text === text) return; // so that its button keeps the focus
    this.status.dataset.text = text;
    this.status.replaceChildren(text, ...(action ? [h("button", { type: "button", onclick: action }, label)] : []));
  }

  #arrived({ peer, message }) {
    if (message.mine) return;
    const text = isShared(peer) ? t.said(message.from, message.text) : message.text;
    const looked = document.hasFocus() && peer === this.#peer;
    if (looked) announce(t.said(message.from, message.text));
    else sound();
    if (!document.hasFocus()) void notify(plainName(titleOf(peer)), text, this.#address(peer), () => this.#go(peer));
  }

  #address(peer) {
    return peer ? `/chat/test?${new URLSearchParams({ uid: this.#chat.me, to_uid: peer })}` : "/";
  }

  /** Open a conversation. Back leads to the list, however many conversations were opened. */
  #go(peer) {
    // The entry of a dialog that has just closed is about to leave the history.
    if (isReturning() || (this.#peer && history.state?.dialog && !document.querySelector("dialog"))) {
      return addEventListener("popstate", () => this.#go(peer), { once: true, signal: this.#ending.signal });
    }
    const address = this.#address(peer);
    const { fromList, dialog } = history.state ?? {};
    if (!this.#peer && peer && !dialog) history.pushState({ fromList: true }, "", address);
    else if (peer !== this.#peer) history.replaceState({ fromList: fromList || !this.#peer }, "", address);
    this.#show(peer);
  }

  #popped() {
    const { user, peer } = this.#options.asked();
    const wanted = user && user !== this.#chat.me ? null : peer; // a history entry of another user
    if (wanted !== this.#peer) this.#show(wanted);
  }

  /** Go back to the list, as the browser's Back does. */
  #back() {
    if (!this.#peer) return;
    if (history.state?.fromList) history.back();
    else this.#go(null);
  }

  /** Global keys. */
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

  /** Open the conversation of a notification, unless it was for another user. */
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
    this.#updateSoon();
  }

  async #newGroup() {
    const group = await openNewGroup(this.#chat);
    if (group) this.#go(group);
  }

  async #settings() {
    const changed = () => {
      this.side.render();
      this.talk.render();
      this.#update();
    };
    await openSettings(this.#chat, { changed, logOut: () => this.#logOut() });
    if (document.activeElement === document.body) this.side.settings.focus(); // the focused element was replaced
  }

  /** Log out. Asks first if unsent messages would be lost. */
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
    clearTimeout(this.#connectingTimer);
    for (const open of document.querySelectorAll("dialog")) open.close();
    void closeNotifications();
    this.#options.leave(ended);
  }
}
