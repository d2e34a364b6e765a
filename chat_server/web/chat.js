/**
 * The client: what is sent, what is received, what was missed (docs/clients.md). Knows no DOM.
 *
 *     const chat = new Chat("1", { url, storage, alive });
 *     chat.addEventListener("message", (event) => console.log(event.peer, event.message.text));
 *     await chat.start();
 *     await chat.send("2", "hello");
 */
import { now } from "./clock.js";
import { ALLOWED_AGAIN, Connection, delay, Lost, PRESENCE } from "./connection.js";
import { Conversation } from "./conversation.js";
import { Keeper } from "./keeper.js";
import { Outbox } from "./outbox.js";

export const EVERYBODY = "ALL";
/** The one reason for a refusal that goes by itself: the other has to answer first. */
export const LIMIT = "refused_by_limit";

const RECEIVED = 40011;
const READ = 40007;
const DELETED = 40013;
const ONLINE = 40018;
const STORED = new Set([ONLINE, 40019]);
const SENT = 40009;
// The reasons for which trying the same again helps.
const AGAIN = new Set(["store_away", "too_many", "internal"]);
const PAGE = 50;
const OLDER = 100;
const LARGEST_PAGE = 200;
// So many messages are read at once to begin with the first unread one, and to close a gap; the server counts no more.
const MOST_UNREAD = 1000;
const MOST_MISSED = 1000;
// So many messages of a conversation that is not looked at are kept.
const KEPT = 100;
const MOST_SEARCHED = 1000; // conversations
const GRACE = 5000;
// Which attempt's delay to wait before the same is asked again: some seconds, or half a minute.
const SOME = 3;
const LONG = 7;
const REMEMBERED = 500;
const BATCH = 32; // messages that are sent together: the server works on as many at once

/** Tells that something about the conversation with `peer` (null: about several, or the connection) is different. */
class Changed extends Event {
  constructor(peer) {
    super("change");
    this.peer = peer;
  }
}

/** Tells that a message came in. */
class Arrived extends Event {
  constructor(peer, message) {
    super("message");
    this.peer = peer;
    this.message = message;
  }
}

export class Chat extends EventTarget {
  #keeper;
  #limits;
  #wait;
  #outbox;
  #sending = new Set();
  #removing = new Map();
  #seen = [];
  #pending = new Map();
  #current = null;
  #wanted = PAGE;
  #refreshing = null;
  #presence = new Map(); // what was pushed since the list was requested: it is newer than the list
  #count = 0;

  /** by peer, EVERYBODY among them */
  conversations = new Map([[EVERYBODY, new Conversation(EVERYBODY)]]);
  /** whether the list has come, and whether there is more of it */
  listed = false;
  more = false;

  /**
   * `me`: the user. `url`: of the socket, with uid and sync=1. `storage`: see storage.js. `alive`: see Connection.
   * `limits`: the longest text and the longest frame that the server takes, in bytes.
   */
  constructor(me, { url, storage, alive, limits = { text: 16384, frame: 65536 }, wait = delay, ...options }) {
    super();
    this.me = me;
    this.#keeper = new Keeper(me, storage);
    this.#outbox = new Outbox(me, storage);
    this.#limits = limits;
    this.#wait = wait;
    const changed = () => this.#changed(null);
    const handlers = { alive, changed, ready: () => this.#ready(), heard: (frame) => this.#heard(frame) };
    this.connection = new Connection(url, handlers, { wait, ...options });
    const everybody = this.conversations.get(EVERYBODY);
    everybody.loaded = everybody.complete = everybody.whole = everybody.confirmed = true;
  }

  /** Take up what was left unsent, and connect. */
  async start() {
    for (const record of await this.#keeper.recall()) this.conversation(record.peer).recall(record);
    await this.#load();
    this.connection.wake();
  }

  /** End: from now on nothing is sent, and nothing is put into the storage. */
  close() {
    this.#keeper.close();
    this.#outbox.close();
    this.connection.close();
  }

  // --- conversations

  /** The conversation with `peer`, made if there is none. */
  conversation(peer) {
    if (!this.conversations.has(peer)) this.conversations.set(peer, new Conversation(peer));
    return this.conversations.get(peer);
  }

  /** Those with users, the newest first: all with messages, and those that were begun. */
  list() {
    const time = ({ peer, last, begun, confirmed }) => this.waiting(peer).at(-1)?.at ?? last?.time ?? (confirmed && begun);
    const timed = [...this.conversations.values()].map((one) => ({ one, time: time(one) }));
    const used = timed.filter(({ one, time }) => time && one.peer !== EVERYBODY);
    return used.sort((one, other) => other.time - one.time).map(({ one }) => one);
  }

  /** What is not acknowledged yet of what goes to `peer`, in its order. */
  waiting(peer) {
    return this.#outbox.to(peer);
  }

  /** Whether `peer` is online; null if that is not known, as it is while there is no connection. */
  online(peer) {
    return this.connection.state === "open" ? this.conversation(peer).online : null;
  }

  /** Why no conversation with `peer` can begin, null if one can. Waits for the connection. */
  async refusal(peer) {
    const ask = async () => {
      await this.connection.opened();
      await this.#page(peer, "-1");
      return this.conversation(peer).why;
    };
    // Once more: that an open connection is lost may show only when something is asked.
    return ask().catch(ask).catch(() => "unreachable");
  }

  /** Keep the conversation with `peer` (null: none) whole from now on: it is the one that is looked at. */
  async open(peer) {
    if (this.#current) this.conversation(this.#current).clear();
    this.#current = peer;
    if (peer) this.conversation(peer).begun ||= now();
    if (peer && !this.conversation(peer).whole) await this.#attempt(() => this.#resume(this.conversation(peer)));
  }

  /** Read the page before the oldest message. */
  async older(peer) {
    const conversation = this.conversation(peer);
    const [first] = conversation.messages;
    if (!first || !conversation.loaded || conversation.complete || conversation.reading) return;
    if (this.connection.state !== "open") return; // who still looks at the top then asks again
    conversation.reading = true;
    await this.#attempt(async () => {
      const page = await this.#page(peer, `-${OLDER}@${first.key}`);
      if (!page) await this.#pause(SOME);
      else if (conversation.messages[0] === first) {
        conversation.add(page, true);
        conversation.complete = page.length < OLDER;
      }
    });
    conversation.reading = false;
    this.#changed(peer);
  }

  /** Ask for the list anew: who is online, what is unread. One at a time: who asks meanwhile gets the same. */
  refresh() {
    this.#refreshing ??= this.#attempt(() => this.#readList()).finally(() => {
      this.#refreshing = null;
    });
    return this.#refreshing;
  }

  /** Let the list reach further back. */
  async moreConversations() {
    if (!this.more || this.#refreshing) return;
    this.#wanted += PAGE;
    await this.refresh();
  }

  /** Let the list reach as far back as is worth searching. */
  async listFurther() {
    while (this.#refreshing) await this.#refreshing;
    if (!this.more) return;
    const wanted = this.#wanted;
    this.#wanted = MOST_SEARCHED;
    await this.refresh();
    this.#wanted = wanted;
  }

  // --- sending

  /** Why this text cannot be sent: "empty", "too_long", or null if it can. */
  problem(text) {
    if (!text.trim()) return "empty";
    const size = (string) => new TextEncoder().encode(string).length;
    const frame = JSON.stringify({ to: "x".repeat(256), op_type: 1, content: `${"x".repeat(64)}\n${text}` });
    return size(text) > this.#limits.text || size(frame) > this.#limits.frame ? "too_long" : null;
  }

  /** Send a text to `peer`; it is kept until it is acknowledged. */
  async send(peer, text) {
    const message = this.#outbox.add(peer, text);
    this.#changed(peer);
    await this.#outbox.keep(message);
    await this.#pump(peer);
  }

  /** Send anew what was refused, or lost on its way to everybody. */
  async retry(id) {
    const message = this.#outbox.get(id);
    if (!message?.why) return;
    message.why = null;
    this.#changed(message.to);
    await this.#outbox.keep(message);
    await this.#pump(message.to);
  }

  /** Give up a message that was refused. */
  async discard(id) {
    const message = this.#outbox.get(id);
    if (!message?.why) return;
    await this.#outbox.drop(message);
    this.#changed(message.to);
  }

  // --- marks and deletion

  /** The messages with these keys, all from `peer`, were seen. */
  async read(peer, keys) {
    const conversation = this.conversation(peer);
    conversation.markRead(keys);
    this.#changed(peer);
    if (peer === EVERYBODY) return;
    for (let start = 0; start < keys.length; start += LARGEST_PAGE) {
      const some = keys.slice(start, start + LARGEST_PAGE);
      const done = await this.#attempt(() => this.connection.ask(4, peer, some.join("\n")));
      if (!done || AGAIN.has(done.answer.reason)) this.#seen.push([peer, some]); // with the next connection
    }
  }

  /** Everything that `peer` has written was seen. */
  async readAll(peer) {
    const conversation = this.conversation(peer);
    const keys = conversation.messages.filter((message) => !message.mine && !message.read).map((message) => message.key);
    if (keys.length) await this.read(peer, keys);
    if (!conversation.unread || !conversation.whole || this.connection.state !== "open") return;
    conversation.unread = 0;
    this.#changed(peer);
    if (peer !== EVERYBODY) await this.#attempt(() => this.connection.ask(4, peer, "*"));
  }

  /** Delete a message, for both, after a moment. Returns what takes that back; `flush` does not wait for it. */
  remove(peer, key) {
    const conversation = this.conversation(peer);
    const over = () => {
      clearTimeout(timer);
      this.#pending.delete(key);
      this.#changed(peer);
    };
    const go = () => {
      over();
      conversation.hidden.delete(key);
      conversation.remove([key]);
      this.#removing.set(key, peer);
    };
    const timer = setTimeout(() => {
      go();
      void this.#sendRemovals();
    }, GRACE);
    conversation.hidden.add(key);
    this.#pending.set(key, go);
    this.#changed(peer);
    return () => {
      conversation.hidden.delete(key);
      over();
    };
  }

  /** Delete now what waits to be deleted: the page is about to go. Resolves when the server has answered. */
  async flush() {
    for (const go of [...this.#pending.values()]) go();
    this.#keeper.save();
    await this.#sendRemovals();
  }

  // --- what the connection says

  async #ready() {
    for (const conversation of this.conversations.values()) {
      if (conversation.peer === EVERYBODY) continue;
      conversation.interrupt();
      if (conversation.peer !== this.#current) conversation.trim(KEPT);
    }
    await this.#load();
    void this.#lift(null); // first: what was sent again is then in what is read
    void this.#sendRemovals();
    for (const [peer, keys] of this.#seen.splice(0)) void this.read(peer, keys);
    void this.refresh();
    if (this.#current) void this.#attempt(() => this.#resume(this.conversation(this.#current)));
  }

  #heard(frame) {
    const mine = frame.from === this.me;
    const peer = mine ? frame.to : frame.from;
    if (frame.op_type === ALLOWED_AGAIN) void this.#lift(frame.content);
    else if (frame.op_type === PRESENCE) this.#setPresence(frame.content.split("\n"));
    else if (frame.to === EVERYBODY) this.#toEverybody(frame, mine);
    else if (frame.op_type === RECEIVED) this.#received(peer, this.#message(frame));
    else if (frame.op_type === READ) this.#readElsewhere(peer, frame.content.split("\n"), mine);
    else if (frame.op_type === DELETED) this.#deletedElsewhere(peer, frame.content.split("\n"), mine);
  }

  /** Take in lines `+NAME` and `-NAME`. */
  #setPresence(lines) {
    for (const line of lines) {
      const [peer, online] = [line.slice(1), line.startsWith("+")];
      this.#presence.set(peer, online);
      if (this.conversations.has(peer)) this.conversation(peer).online = online;
    }
    this.#changed(null);
  }

  #received(peer, message) {
    const conversation = this.conversation(peer);
    if (conversation.has(message.key) || conversation.heard === message.key) return;
    conversation.heard = message.key;
    if (conversation.loaded || conversation.begun) conversation.receive(message);
    conversation.summary(message);
    if (!message.mine) {
      // The list may be newer than the message: it is read from the store, which has a message before it is delivered.
      if (message.time > conversation.listed) conversation.unread += 1;
      conversation.online = true;
    }
    conversation.confirmed = true;
    this.#changed(peer);
    this.dispatchEvent(new Arrived(peer, message));
  }

  #toEverybody({ from, content, time }, mine) {
    const conversation = this.conversation(EVERYBODY);
    const message = { key: `*${this.#count++}`, mine, from, id: null, text: content, time, read: mine };
    this.#addToEverybody(message);
    if (!mine) conversation.unread += 1;
    this.#changed(EVERYBODY);
    this.dispatchEvent(new Arrived(EVERYBODY, message));
  }

  /** Nobody stores these: a page that lives long must not keep them all. */
  #addToEverybody(message) {
    const conversation = this.conversation(EVERYBODY);
    conversation.add([message]);
    const old = conversation.messages.slice(0, -REMEMBERED).map((one) => one.key);
    if (old.length) conversation.remove(old);
  }

  #readElsewhere(peer, ids, mine) {
    this.conversation(peer).markRead(ids.map((id) => (mine ? "<" : ">") + id));
    this.#changed(peer);
  }

  #deletedElsewhere(peer, names, mine) {
    const turned = { ">": "<", "<": ">" };
    const keys = mine ? names : names.map((name) => turned[name[0]] + name.slice(1));
    if (peer === this.#current && !mine) this.conversation(peer).empty(keys);
    else this.conversation(peer).remove(keys);
    this.#changed(peer);
    void this.refresh();
  }

  // --- pages

  #message({ from, content, id, time, read = false }) {
    const mine = from === this.me;
    return { key: (mine ? ">" : "<") + id, mine, from, id, text: content.slice(content.indexOf("\n") + 1), time, read };
  }

  /** A page of the conversation, null where it is refused: `why` then says so. Rejects with Lost. */
  async #page(peer, content) {
    const { answer, frames } = await this.connection.ask(2, peer, content);
    const conversation = this.conversation(peer);
    conversation.why = answer.reason ?? null;
    conversation.confirmed ||= !answer.reason;
    return answer.reason ? null : frames.map((frame) => this.#message(frame));
  }

  /** Read the newest page; further ones if the first unread message is not in it. */
  async #readNewest(conversation) {
    const known = conversation.keys();
    let read = [];
    let page;
    let size = PAGE;
    let complete;
    do {
      page = await this.#page(conversation.peer, `-${size}${read.length ? `@${read[0].key}` : ""}`);
      if (!page) return this.#changed(conversation.peer);
      read = page.concat(read);
      complete = page.length < size;
      size = LARGEST_PAGE;
    } while (!complete && read.length < MOST_UNREAD && unreadOf(read) < conversation.unread);
    conversation.renew(read, known, complete);
    this.#changed(conversation.peer);
  }

  /** What was missed, in its order; then what is shown anew, as it may have been read or deleted meanwhile. */
  async #resume(conversation) {
    if (conversation.peer === EVERYBODY) return;
    if (!conversation.loaded || !conversation.place) return this.#readNewest(conversation);
    let page;
    let missed = 0;
    do {
      page = await this.#page(conversation.peer, `+${LARGEST_PAGE}@${conversation.place}`);
      missed += page?.length ?? 0;
      if (!page || missed >= MOST_MISSED) {
        conversation.forget();
        return this.#readNewest(conversation);
      }
      conversation.add(page);
      conversation.place = page.at(-1)?.key ?? conversation.place;
    } while (page.length === LARGEST_PAGE);
    return this.#readShown(conversation);
  }

  async #readShown(conversation) {
    const known = conversation.keys();
    const top = conversation.get(conversation.shown)?.time ?? Infinity;
    let read = [];
    let page;
    do {
      page = await this.#page(conversation.peer, `-${LARGEST_PAGE}${read.length ? `@${read[0].key}` : ""}`);
      if (!page) return;
      read = page.concat(read);
    } while (page.length === LARGEST_PAGE && read[0].time >= top);
    conversation.renew(read, known, page.length < LARGEST_PAGE);
    this.#changed(conversation.peer);
  }

  async #readList() {
    const seen = new Set();
    this.#presence.clear();
    const size = Math.min(this.#wanted, LARGEST_PAGE);
    let page;
    let from = "";
    do {
      page = await this.connection.ask(7, "", `-${size}${from}`);
      if (page.answer.reason) return;
      for (const frame of page.frames) seen.add((from = this.#listedOne(frame)));
      from = `@${from}`;
    } while (page.frames.length === size && seen.size < this.#wanted);
    this.more = page.frames.length === size;
    this.listed = true;
    for (const conversation of this.conversations.values()) {
      if (this.more || seen.has(conversation.peer) || conversation.peer === EVERYBODY) continue;
      conversation.last = null; // everything in it was deleted
      conversation.unread = 0;
      this.#keeper.soon(conversation);
    }
    this.#changed(null);
  }

  #listedOne(frame) {
    const last = this.#message(frame);
    const peer = last.mine ? frame.to : frame.from;
    const conversation = this.conversation(peer);
    if (conversation.last?.key !== last.key) this.#keeper.soon(conversation);
    conversation.last = conversation.get(last.key) ?? last;
    conversation.listed = last.time;
    conversation.confirmed = true;
    conversation.unread = frame.unread;
    conversation.online = this.#presence.get(peer) ?? frame.online;
    return peer;
  }

  // --- the outbox

  async #load() {
    const unknown = ({ id, to }) => !this.conversations.get(to)?.has(`>${id}`);
    for (const message of await this.#outbox.load(unknown)) {
      if (message.to === EVERYBODY) message.why ??= "lost"; // it has no id: to send it again might double it
      this.conversation(message.to).confirmed = true; // only then there was a place to write
    }
    this.#changed(null);
  }

  /** Send what waits for `peer`, unless that is under way. */
  async #pump(peer) {
    if (this.#sending.has(peer)) return;
    this.#sending.add(peer);
    try {
      await this.#sendAll(peer);
    } finally {
      this.#sending.delete(peer);
    }
  }

  /**
   * Send in batches: a batch takes one round trip, and the next one waits for its answers. If the store refuses a
   * message for now, only messages of the same batch can overtake it.
   */
  async #sendAll(peer) {
    const most = peer === EVERYBODY ? 1 : BATCH; // what is lost on its way to everybody is not sent again
    let attempts = 0;
    for (let batch; (batch = this.waiting(peer).filter((one) => !one.why).slice(0, most)).length; ) {
      if (this.connection.state !== "open") return; // with the next connection
      const reasons = await Promise.all(batch.map((message) => this.#sendOne(message)));
      if (reasons.includes("lost")) return;
      if (reasons.some((reason) => AGAIN.has(reason))) await this.#pause(reasons.includes("too_many") ? LONG : attempts++);
    }
  }

  /** Resolves with the reason for which the message was not stored, "lost" if there was no answer. */
  async #sendOne(message) {
    const answer = await this.#attempt(() => this.#transmit(message));
    const later = answer ? AGAIN.has(answer.reason) : true;
    if (message.to === EVERYBODY || !later) await this.#answered(message, answer);
    return answer ? answer.reason : "lost";
  }

  async #transmit({ id, to, text }) {
    const request = to === EVERYBODY ? [6, "", text] : [1, to, `${id}\n${text}`];
    return (await this.connection.ask(...request)).answer;
  }

  async #answered(message, answer) {
    const conversation = this.conversation(message.to);
    if (STORED.has(answer?.op_type)) {
      const sent = { key: `>${message.id}`, mine: true, from: this.me, id: message.id, text: message.text };
      Object.assign(sent, { time: answer.time, read: false });
      if (conversation.loaded || conversation.begun) conversation.add([sent]);
      else conversation.summary(sent);
      if (answer.op_type === ONLINE) conversation.online = true;
      else if (conversation.online === null) void this.refresh(); // a peer that is back within seconds is not pushed
      conversation.refused = false;
      await this.#outbox.drop(message);
    } else if (answer?.op_type === SENT) {
      const sent = { key: `*${this.#count++}`, mine: true, from: this.me, id: null, text: message.text };
      this.#addToEverybody({ ...sent, time: now(), read: true, reached: Number(answer.content) });
      await this.#outbox.drop(message);
    } else {
      message.why = answer?.reason ?? "lost";
      if (message.why === LIMIT) conversation.refused = true;
      await this.#outbox.keep(message);
    }
    this.#changed(message.to);
  }

  /** Send what was refused because `peer` (null: whoever) had not answered, and all else that waits. */
  async #lift(peer) {
    const peers = new Set();
    for (const message of this.#outbox.all()) {
      if (message.why === LIMIT && (!peer || message.to === peer)) message.why = null;
      peers.add(message.to);
    }
    if (peer) this.conversation(peer).refused = false;
    this.#changed(peer);
    await Promise.all([...peers].map((one) => this.#pump(one)));
  }

  async #sendRemovals() {
    for (const [key, peer] of [...this.#removing]) {
      const done = await this.#attempt(() => this.connection.ask(5, peer, key));
      if (!done || AGAIN.has(done.answer.reason)) return; // with the next connection
      this.#removing.delete(key);
    }
    void this.refresh();
  }

  // --- small things

  /** As long as the connection waits before attempt `n`. */
  #pause(n) {
    return new Promise((resolve) => setTimeout(resolve, this.#wait(n)));
  }

  /** Do what needs the connection; null if it is lost. */
  async #attempt(work) {
    try {
      return await work();
    } catch (error) {
      if (error instanceof Lost) return null;
      throw error;
    }
  }

  #changed(peer) {
    if (peer && peer !== EVERYBODY) this.#keeper.soon(this.conversation(peer));
    this.dispatchEvent(new Changed(peer));
  }
}

function unreadOf(messages) {
  return messages.filter((message) => !message.mine && !message.read).length;
}
