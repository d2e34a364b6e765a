/**
 * The messages of one conversation. However many there are, the document holds a window of at most MOST of them,
 * which moves as one scrolls.
 */
import { EVERYBODY, LIMIT } from "./chat.js";
import { arrange, dialog, h, HOVERS, icon, linked, nameOf } from "./dom.js";
import { announce, toast } from "./notices.js";
import { question } from "./settings.js";
import { reason, t } from "./texts.js";
import { clock, day, midnight } from "./times.js";

const MOST = 160;
const STEP = 40;
const NEAR = 600; // pixels from an end of the window within which it moves
const TOGETHER = 5 * 60_000; // messages of one sender within it stand together

export class Messages {
  #chat;
  #options;
  #peer = null;
  #rows = new Map();
  #all = [];
  #first = null; // the item at the top of the window; null: the window ends at the end
  #atEnd = true;
  #visible = new Set();
  #observer = null;
  #marking = 0;

  element = h("div", { class: "messages", role: "region" });

  /** `leave()`: the focus has to go elsewhere. */
  constructor(chat, options) {
    this.#chat = chat;
    this.#options = options;
    addEventListener("focus", () => this.#mark());
    document.addEventListener("visibilitychange", () => this.#mark());
    new ResizeObserver(() => this.#atEnd && this.#peer && this.#toEnd()).observe(this.element);
  }

  /** Everything, in the language of now. */
  render() {
    this.list = h("ol", { onkeydown: (event) => this.#key(event), onclick: (event) => this.#click(event) });
    this.beginning = h("p", { class: "beginning" });
    this.scroller = h("div", { class: "scroller", tabindex: "-1", onscroll: () => this.#scrolled() }, this.beginning, this.list);
    this.jump = h("button", { type: "button", class: "jump", hidden: true, onclick: () => this.#jump() });
    this.element.setAttribute("aria-label", t.messages);
    this.element.replaceChildren(this.scroller, this.jump);
    this.show(this.#peer);
  }

  /** Show the conversation with `peer` from its end. */
  show(peer) {
    this.#peer = peer;
    this.#rows.clear();
    this.#visible.clear();
    this.#all = [];
    this.list.replaceChildren();
    this.#observer?.disconnect();
    this.#observer = new IntersectionObserver((entries) => this.#intersect(entries), { root: this.scroller, threshold: 0.5 });
    this.follow();
    if (peer) this.update();
  }

  /** Go to the end, and stay there. */
  follow() {
    this.#first = null;
    this.#atEnd = true;
  }

  update() {
    if (!this.#peer) return;
    const conversation = this.#chat.conversation(this.#peer);
    const sent = conversation.messages.filter((message) => !conversation.hidden.has(message.key));
    this.#all = [...sent, ...this.#chat.waiting(this.#peer).map(waitingMessage)];
    const near = this.scroller.scrollTop < NEAR;
    const [start, end] = this.#window(near && !this.#atEnd ? -STEP : 0);
    const anchor = this.#atEnd ? null : this.#anchor();
    const focused = this.list.contains(document.activeElement) ? document.activeElement.closest("li") : null;
    const index = focused ? [...this.list.children].indexOf(focused) : 0;
    arrange(this.list, this.#render(start, end));
    if (focused && !focused.isConnected) (this.list.children[Math.min(index, this.list.children.length - 1)] ?? this.scroller).focus();
    this.#forgetRows();
    const whole = conversation.complete && start === 0 && this.#peer !== EVERYBODY;
    this.beginning.textContent = whole ? t.hello(this.#peer) : "";
    if (anchor) this.scroller.scrollTop += topOf(anchor.row) - anchor.top;
    else this.#toEnd();
    conversation.shown = this.#all[start]?.waiting ? null : (this.#all[start]?.key ?? null);
    this.#showJump();
    this.#tabStop();
    if (near && start === 0) void this.#chat.older(this.#peer);
  }

  // --- the window

  /** Where the window begins and ends, after it was moved `by` so many messages. */
  #window(by = 0) {
    const most = Math.max(0, this.#all.length - MOST);
    if (!this.#first) return [most, this.#all.length];
    let start = this.#all.findIndex((message) => message.key === this.#first.key);
    if (start < 0) start = this.#all.findIndex((message) => message.time >= this.#first.time); // it was deleted
    start = start < 0 ? most : Math.min(Math.max(0, start + by), most);
    this.#first = this.#all[start] ?? null;
    return [start, Math.min(start + MOST, this.#all.length)];
  }

  /** The row that is to stay where it is: the first that is seen. */
  #anchor() {
    const top = this.scroller.getBoundingClientRect().top;
    const row = [...this.list.children].find((one) => one.getBoundingClientRect().bottom > top);
    return row ? { row, top: topOf(row) } : null;
  }

  #scrolled() {
    const { scrollTop, scrollHeight, clientHeight } = this.scroller;
    const below = scrollHeight - scrollTop - clientHeight;
    const [start, end] = this.#window();
    this.#atEnd = below < 40 && end === this.#all.length;
    // What is above must stay above: from here on the window keeps its beginning.
    if (!this.#atEnd) this.#first ??= this.#all[start] ?? null;
    if (this.#atEnd) this.#first = null;
    if (below < NEAR && end < this.#all.length) this.#window(STEP);
    else if (scrollTop >= NEAR || this.#atEnd) return this.#showJump();
    this.update(); // which moves the window up where one is near its top
  }

  #toEnd() {
    this.scroller.scrollTop = this.scroller.scrollHeight;
  }

  #jump() {
    this.follow();
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

  // --- rows

  #render(start, end) {
    return this.#all.slice(start, end).map((message, index) => {
      const before = index || start ? this.#all[start + index - 1] : null;
      const after = this.#all[start + index + 1];
      const look = [
        message.text,
        message.why ?? message.waiting ?? (message.read ? "read" : "sent"),
        newDay(before, message),
        together(before, message),
        together(message, after),
        message.time,
        this.#day(message, before),
      ].join("\n");
      const row = this.#rows.get(message.key);
      if (row?.look === look) return row.element;
      const element = row?.element ?? h("li", { tabindex: "-1", "data-key": message.key });
      this.#fill(element, message, before, after);
      this.#rows.set(message.key, { element, look, message });
      return element;
    });
  }

  #day(message, before) {
    return newDay(before, message) ? day(message.time) : "";
  }

  #fill(element, message, before, after) {
    const { mine, text, time, why } = message;
    const date = this.#day(message, before);
    const named = this.#peer === EVERYBODY && !mine && !together(before, message);
    element.className = ["row", mine ? "mine" : "theirs", together(before, message) ? "joined" : "", together(message, after) ? "joins" : ""].join(" ");
    element.replaceChildren(
      ...(date ? [h("h3", { class: "day" }, date)] : []),
      h(
        "div",
        { class: "bubble" },
        named ? h("p", { class: "from" }, nameOf(message.from)) : h("span", { class: "unseen" }, t.said(mine ? t.you : message.from, "")),
        h("p", { class: "text", dir: "auto" }, linked(text)),
        h("span", { class: "meta" }, h("time", { datetime: new Date(time).toISOString() }, clock(time)), mine && state(message)),
        h("button", { type: "button", class: "more", tabindex: "-1", "aria-label": t.actions }, icon("more")),
      ),
      ...(why ? [this.#refusal(message)] : []),
    );
    if (!mine && !message.read) this.#observer.observe(element);
  }

  #refusal({ id, why }) {
    return h(
      "p",
      { class: why === LIMIT ? "refusal waits" : "refusal" },
      t.notSent(reason(why)),
      h(
        "span",
        {},
        h("button", { type: "button", onclick: () => this.#chat.retry(id) }, t.again),
        h("button", { type: "button", onclick: () => this.#chat.discard(id) }, t.discard),
      ),
    );
  }

  #forgetRows() {
    for (const [key, { element }] of this.#rows) {
      if (element.isConnected) continue;
      this.#rows.delete(key);
      this.#visible.delete(key);
      this.#observer.unobserve(element);
    }
  }

  // --- what was really seen counts as read

  #intersect(entries) {
    for (const { target, isIntersecting } of entries) {
      if (isIntersecting) this.#visible.add(target.dataset.key);
      else this.#visible.delete(target.dataset.key);
    }
    this.#mark();
  }

  #mark() {
    if (!document.hasFocus() || document.visibilityState !== "visible") return;
    clearTimeout(this.#marking);
    this.#marking = setTimeout(() => {
      const rows = [...this.#visible].map((key) => this.#rows.get(key)).filter((row) => row && !row.message.read);
      this.#visible.clear();
      for (const { element } of rows) this.#observer.unobserve(element);
      if (rows.length) void this.#chat.read(this.#peer, rows.map((row) => row.message.key));
    }, 100);
  }

  // --- by keyboard and by finger

  /** One stop for the Tab key: from there the arrows go on. */
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
    } else if (event.key === "Enter") void this.#act(message);
    else if (event.key === "Delete") void this.#remove(message);
    else return;
    event.preventDefault();
  }

  #click(event) {
    const row = event.target.closest("li");
    const tapped = !HOVERS.matches && event.target.closest(".bubble") && !event.target.closest("a") && getSelection().isCollapsed;
    if (row && (tapped || event.target.closest(".more"))) void this.#act(this.#rows.get(row.dataset.key).message);
  }

  async #act(message) {
    const stored = !message.waiting && this.#peer !== EVERYBODY;
    const chosen = await dialog({ class: "actions", "aria-label": t.actions }, (close) => [
      h("button", { type: "button", onclick: () => close("copy") }, t.copy),
      ...(stored ? [h("button", { type: "button", class: "danger", onclick: () => close("remove") }, t.remove)] : []),
      ...(message.why ? [h("button", { type: "button", onclick: () => close("retry") }, t.again)] : []),
      ...(message.why ? [h("button", { type: "button", class: "danger", onclick: () => close("discard") }, t.discard)] : []),
      h("button", { type: "button", class: "quiet", onclick: () => close() }, t.cancel),
    ]);
    if (chosen === "copy") await copy(message.text);
    else if (chosen === "remove") await this.#remove(message);
    else if (chosen) await this.#chat[chosen](message.id);
  }

  async #remove(message) {
    if (message.waiting || this.#peer === EVERYBODY) return;
    if (!(await question(t.removeTitle, t.removeHint(this.#peer), t.remove))) return;
    const undo = this.#chat.remove(this.#peer, message.key);
    announce(t.removed);
    toast(t.removed, t.undo, undo);
  }
}

/** Where a message stands, whatever is above it in its row. */
function topOf(row) {
  return row.querySelector(".bubble").getBoundingClientRect().top;
}

function waitingMessage({ id, text, at, why }) {
  return { key: `>${id}`, mine: true, id, text, time: at, why, waiting: true };
}

function state(message) {
  if (message.why) return icon(message.why === LIMIT ? "waiting" : "failed", t.notSent(reason(message.why)));
  if (message.waiting) return icon("waiting", t.waiting);
  if (message.reached !== undefined) return h("span", {}, t.reached(message.reached));
  return message.read && message.id ? icon("read", t.read) : icon("sent", t.sent); // a message to everyone has no id
}

function newDay(before, message) {
  return !before || midnight(before.time) !== midnight(message.time);
}

function together(before, message) {
  if (!before || !message || newDay(before, message) || before.why || before.mine !== message.mine) return false;
  return (before.mine || before.from === message.from) && message.time - before.time < TOGETHER;
}

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const area = h("textarea", { class: "unseen" }); // without TLS there is no other way
    area.value = text;
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  toast(t.copied);
}
