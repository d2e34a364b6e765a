/**
 * The messages of one conversation. However many there are, the document holds a window of at most MOST of them,
 * which moves with the scroll position.
 */
import { offerActions, onPress, removeMessage } from "./actions.js";
import { isGroup, isShared, LIMIT } from "./chat.js";
import { arrange, h, hueOf, icon, nameOf } from "./dom.js";
import { formatted, onlyEmoji } from "./format.js";
import { stateOf, stateText } from "./state.js";
import { changeText, reason, t } from "./texts.js";
import { clock, day, midnight } from "./times.js";

const MOST = 160;
const STEP = 40;
const NEAR = 600; // the window moves if the scroll position is within this many pixels of its end
const TOGETHER = 5 * 60_000; // milliseconds: messages of one sender within it are grouped
const ABOVE = 96; // pixels shown above the first unread message when a conversation opens
const MARKING = 100; // milliseconds until a visible message counts as read
const DATE_SHOWN = 1500;

export class Messages {
  #chat;
  #options;
  #peer = null;
  #rows = new Map();
  #all = [];
  #first = null; // the first message of the window; null: the window ends with the newest message
  #atEnd = true;
  #width = 0;
  #height = 0;
  #anchor = null; // the row that stays in place during updates: `{row, top}`
  #placed = false; // whether the first unread message was searched
  #divider = null; // the key of the first unread message
  #gap = null; // the key of the message above which others are missing
  #news = 0; // the number of unread messages at that time
  #marking = 0;
  #dating = 0;

  element = h("div", { class: "messages", role: "region" });

  /** `leave()`: called when the focus must move elsewhere. */
  constructor(chat, options) {
    this.#chat = chat;
    this.#options = options;
    addEventListener("focus", () => this.#mark());
    document.addEventListener("visibilitychange", () => this.#mark());
    new ResizeObserver(() => this.#peer && this.#fit()).observe(this.element);
  }

  /** Build the view in the current language. */
  render() {
    this.list = h("ol", {
      onkeydown: (event) => this.#key(event),
      onclick: (event) => this.#click(event),
    });
    onPress(this.list, (row, place) => this.#act(row, place));
    this.beginning = h("p", { class: "beginning" });
    this.loading = h("p", { class: "loading" }, t.loading);
    this.scroller = h(
      "div",
      { class: "scroller", tabindex: "-1", onscroll: () => this.#scrolled() },
      this.loading,
      this.beginning,
      this.list,
    );
    this.date = h("p", { class: "floating", "aria-hidden": "true" });
    this.jump = h("button", { type: "button", class: "jump", hidden: true, onclick: () => this.#jump() });
    this.element.setAttribute("aria-label", t.messages);
    this.element.replaceChildren(this.scroller, this.date, this.jump);
    this.show(this.#peer);
  }

  /** Show the conversation with `peer`, at its first unread message or its end. */
  show(peer) {
    this.#peer = peer;
    this.#rows.clear();
    this.#all = [];
    this.#placed = false;
    this.list.replaceChildren();
    this.follow();
    if (peer) this.update();
  }

  /** Scroll to the end, and stay there when messages arrive. */
  follow() {
    this.#first = null;
    this.#atEnd = true;
    this.#divider = null;
  }

  update() {
    if (!this.#peer) return;
    const conversation = this.#chat.conversation(this.#peer);
    const sent = conversation.messages.filter((message) => !conversation.hidden.has(message.key));
    this.#all = [...sent, ...this.#chat.waiting(this.#peer).map(waitingMessage)];
    this.#gap = sent.find(({ key }) => conversation.detached.has(key))?.key ?? null;
    this.#fit();
    const found = this.#findUnread(conversation);
    const near = this.scroller.scrollTop < NEAR;
    const [start, end] = this.#window(near && !this.#atEnd && !found ? -STEP : 0);
    this.#anchor = this.#atEnd ? null : this.#findAnchor();
    this.#arrange(start, end);
    const whole = conversation.complete && start === 0 && conversation.stored;
    this.beginning.textContent = whole ? (isGroup(this.#peer) ? t.helloGroup(this.#peer) : t.hello(this.#peer)) : "";
    this.loading.hidden = !(conversation.reading || (!conversation.loaded && !conversation.why));
    if (found) this.#toUnread();
    else this.#keepPlace();
    conversation.firstShown = this.#all[start]?.waiting ? null : (this.#all[start]?.key ?? null);
    this.#showJump();
    this.#tabStop();
    this.#mark();
    if (near && start === 0 && !found) void this.#chat.older(this.#peer);
  }

  // --- the window

  /**
   * Move the window to the first unread message, once the conversation is synchronised, and again for the first message
   * that arrives while the page has no focus. Returns whether there is one.
   */
  #findUnread(conversation) {
    if (!conversation.synced || (this.#placed && document.hasFocus())) return false;
    this.#placed = true;
    const first = this.#atEnd && conversation.firstUnread();
    if (!first) return false;
    this.#atEnd = false;
    this.#divider = first.key;
    this.#news = Math.max(conversation.unread, sum(this.#all, (message) => !message.mine && !message.read));
    const index = this.#all.findIndex((message) => message.key === first.key);
    this.#first = this.#all[Math.max(0, index - STEP)] ?? null;
    return true;
  }

  #toUnread() {
    const row = this.#rows.get(this.#divider)?.element;
    if (row) this.scroller.scrollTop += this.#topOf(row) - ABOVE;
    this.#settle();
  }

  /** Move the window `by` a number of messages. Returns the indices of its start and end. */
  #window(by = 0) {
    const most = Math.max(0, this.#all.length - MOST);
    if (!this.#first) return [most, this.#all.length];
    let start = this.#all.findIndex((message) => message.key === this.#first.key);
    if (start < 0) start = this.#all.findIndex((message) => message.time >= this.#first.time); // the first message was deleted
    start = start < 0 ? most : Math.min(Math.max(0, start + by), most);
    this.#first = this.#all[start] ?? null;
    return [start, Math.min(start + MOST, this.#all.length)];
  }

  #arrange(start, end) {
    const focused = this.list.contains(document.activeElement) ? document.activeElement.closest("li") : null;
    const index = focused ? [...this.list.children].indexOf(focused) : 0;
    arrange(this.list, this.#render(start, end));
    if (focused && !focused.isConnected) (this.list.children[Math.min(index, this.list.children.length - 1)] ?? this.scroller).focus();
    for (const [key, { element }] of this.#rows) if (!element.isConnected) this.#rows.delete(key);
  }

  /** The first visible row. */
  #findAnchor() {
    const top = this.scroller.getBoundingClientRect().top;
    const row = [...this.list.children].find((one) => one.getBoundingClientRect().bottom > top);
    return row ? { row, top: this.#topOf(row) } : null;
  }

  /** Keep the scroll position after a change of size. Called before the position is read, because events may be late. */
  #fit() {
    const { clientWidth, clientHeight } = this.scroller;
    if (this.#width === clientWidth && this.#height === clientHeight) return;
    [this.#width, this.#height] = [clientWidth, clientHeight];
    this.#keepPlace();
  }

  /** After a change of rows or size, scroll so that the anchor row is where it was. */
  #keepPlace() {
    if (this.#atEnd) this.scroller.scrollTop = this.scroller.scrollHeight;
    else if (this.#anchor?.row.isConnected) this.scroller.scrollTop += this.#topOf(this.#anchor.row) - this.#anchor.top;
  }

  /** The position of a message, without the headings in its row. */
  #topOf(row) {
    return row.querySelector(".bubble").getBoundingClientRect().top - this.scroller.getBoundingClientRect().top;
  }

  #scrolled() {
    this.#fit();
    const { scrollTop, clientHeight, scrollHeight } = this.scroller;
    const [, end] = this.#settle();
    this.#anchor = this.#findAnchor();
    this.#showDate();
    this.#mark();
    if (scrollHeight - scrollTop - clientHeight < NEAR && end < this.#all.length) this.#window(STEP);
    else if (scrollTop >= NEAR || this.#atEnd) return this.#showJump();
    this.update(); // moves the window up if its top is near
  }

  /** Determine whether the end is visible. Returns the indices of the start and end of the window. */
  #settle() {
    const { scrollTop, scrollHeight, clientHeight } = this.scroller;
    const [start, end] = this.#window();
    this.#atEnd = scrollHeight - scrollTop - clientHeight < 40 && end === this.#all.length;
    // From now on the window keeps its first message, so that the messages above stay above.
    this.#first = this.#atEnd ? null : (this.#first ?? this.#all[start] ?? null);
    return [start, end];
  }

  #jump() {
    this.#first = null;
    this.#atEnd = true;
    this.update();
    this.#options.leave();
  }

  #showJump() {
    this.jump.hidden = this.#atEnd;
    const { unread } = this.#chat.conversation(this.#peer);
    this.jump.classList.toggle("news", unread > 0);
    const label = unread ? t.newMessages(unread) : t.toEnd;
    if (this.jump.title === label) return;
    this.jump.title = label;
    this.jump.setAttribute("aria-label", label);
    this.jump.replaceChildren(icon("down"), ...(unread ? [h("span", {}, label)] : []));
  }

  /** Show the day of the visible messages for a moment. */
  #showDate() {
    const message = this.#rows.get(this.#anchor?.row.dataset.key)?.message;
    this.date.textContent = message ? day(message.time) : "";
    this.date.classList.toggle("shown", Boolean(message) && !this.#atEnd);
    clearTimeout(this.#dating);
    this.#dating = setTimeout(() => this.date.classList.remove("shown"), DATE_SHOWN);
  }

  // --- rows

  #render(start, end) {
    return this.#all.slice(start, end).map((message, index) => {
      const before = index || start ? this.#all[start + index - 1] : null;
      const after = this.#all[start + index + 1];
      const look = JSON.stringify([
        message.text,
        message.why ?? message.waiting ?? message.read,
        message.gone,
        message.time,
        this.#headings(message, before),
        together(before, message),
        together(message, after),
      ]);
      const row = this.#rows.get(message.key);
      if (row?.look === look) return row.element;
      const element = row?.element ?? h("li", { tabindex: "-1", "data-key": message.key });
      this.#fill(element, message, before, after);
      this.#rows.set(message.key, { element, look, message });
      return element;
    });
  }

  /** The headings above a message: missing messages, its day, the number of new messages. */
  #headings(message, before) {
    return [
      before && message.key === this.#gap ? t.loading : "",
      newDay(before, message) ? day(message.time) : "",
      message.key === this.#divider ? t.newMessages(this.#news) : "",
    ];
  }

  #fill(element, message, before, after) {
    const [gap, date, news] = this.#headings(message, before);
    const classes = ["row", message.change ? "change" : message.mine ? "mine" : "theirs"];
    if (together(before, message) && !news && !gap) classes.push("joined");
    if (together(message, after)) classes.push("joins");
    element.className = classes.join(" ");
    element.replaceChildren(
      ...(gap ? [h("p", { class: "gap" }, gap)] : []),
      ...(date ? [h("h3", { class: "day" }, date)] : []),
      ...(news ? [h("h3", { class: "news" }, news)] : []),
      message.gone || message.change ? line(message) : this.#bubble(message, before),
      ...(message.why && message.why !== LIMIT ? [this.#refusal(message)] : []),
    );
  }

  #bubble(message, before) {
    const { mine, text, time } = message;
    const named = isShared(this.#peer) && !mine && !together(before, message);
    const written = h("div", { class: onlyEmoji(text) ? "text emoji" : "text", dir: "auto" }, formatted(text));
    const hour = clock(time);
    const meta = h("span", { class: "meta" }, h("time", { datetime: new Date(time).toISOString() }, hour), mine && state(message));
    // The space for it at the end of the last line, in characters.
    written.style.setProperty("--meta", hour.length + (mine ? 4 : 2) + (message.reached === undefined ? 0 : t.reached(message.reached).length));
    return h(
      "div",
      { class: "bubble" },
      named ? sender(message.from) : h("span", { class: "unseen" }, t.said(mine ? t.you : message.from, "")),
      written,
      meta,
      h("button", { type: "button", class: "more", tabindex: "-1", "aria-label": t.actions }, icon("more")),
    );
  }

  #refusal({ id, why }) {
    return h(
      "p",
      { class: "refusal" },
      t.notSent(reason(why)),
      h(
        "span",
        {},
        h("button", { type: "button", onclick: () => this.#chat.retry(id) }, t.again),
        h("button", { type: "button", onclick: () => this.#chat.discard(id) }, t.discard),
      ),
    );
  }

  // --- visible messages count as read

  #mark() {
    clearTimeout(this.#marking);
    this.#marking = setTimeout(() => this.#markSeen(), MARKING);
  }

  #markSeen() {
    if (!this.#peer || !this.#placed || !document.hasFocus() || document.visibilityState !== "visible") return;
    if (this.#atEnd) return void this.#chat.readAll(this.#peer);
    const view = this.scroller.getBoundingClientRect();
    const seen = ({ element, message }) => !message.mine && !message.read && wasSeen(element, view);
    const keys = [...this.#rows.values()].filter(seen).map((row) => row.message.key);
    if (keys.length) void this.#chat.read(this.#peer, keys);
  }

  // --- input

  /** Make the list one stop for the Tab key; arrow keys move within it. */
  #tabStop() {
    const rows = [...this.list.children];
    if (rows.some((row) => row === document.activeElement)) return;
    rows.forEach((row, index) => (row.tabIndex = index === rows.length - 1 ? 0 : -1));
  }

  #key(event) {
    const row = event.target;
    if (row.tagName !== "LI") return;
    const next = { ArrowUp: row.previousElementSibling, ArrowDown: row.nextElementSibling }[event.key];
    const { message } = this.#rows.get(row.dataset.key);
    if (next) {
      row.tabIndex = -1;
      next.tabIndex = 0;
      next.focus();
    } else if (event.key === "Enter") this.#act(row, row.querySelector(".bubble").getBoundingClientRect());
    else if (event.key === "Delete") removeMessage(this.#chat, this.#peer, message);
    else return;
    event.preventDefault();
  }

  #click(event) {
    const button = event.target.closest(".more");
    if (button) this.#act(button.closest("li"), button.getBoundingClientRect());
  }

  #act(row, place) {
    void offerActions(this.#chat, this.#peer, this.#rows.get(row.dataset.key).message, place);
  }
}

/** Whether the end of a message is visible, or the message fills the screen. */
function wasSeen(row, view) {
  const { top, bottom } = row.querySelector(".bubble").getBoundingClientRect();
  return (bottom > view.top && bottom <= view.bottom + 1) || (top <= view.top && bottom >= view.bottom);
}

function waitingMessage({ id, text, at, why }) {
  return { key: `>${id}`, mine: true, id, text, time: at, why, waiting: true };
}

/** The place of a deleted message, or a change of the members. */
function line({ gone, change }) {
  return h("div", { class: gone ? "bubble gone" : "bubble" }, h("p", { class: "text" }, gone ? t.removed : changeText(change)));
}

/** The name above a message, in a colour of its own. */
function sender(name) {
  const element = h("p", { class: "from" }, nameOf(name));
  element.style.setProperty("--hue", hueOf(name));
  return element;
}

function state(message) {
  if (message.reached !== undefined) return h("span", {}, t.reached(message.reached));
  return icon(stateOf(message), stateText(message));
}

function newDay(before, message) {
  return !before || midnight(before.time) !== midnight(message.time);
}

function together(before, message) {
  if (!before || !message || newDay(before, message)) return false;
  if (stateOf(before) === "failed" || before.gone !== message.gone || before.change || message.change) return false;
  return before.mine === message.mine && (before.mine || before.from === message.from) && message.time - before.time < TOGETHER;
}

function sum(messages, counts) {
  return messages.filter(counts).length;
}
