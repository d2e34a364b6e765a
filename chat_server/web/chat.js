/**
 * The client (docs/clients.md). Does not use the DOM.
 *
 *     const chat = new Chat("1", { url, storage, alive });
 *     chat.addEventListener("message", (event) => console.log(event.peer, event.message.text));
 *     await chat.start();
 *     await chat.send("2", "hello");
 *
 * Its parts: `Connection` has the socket, `ConversationList` and `HistoryReader` read, `Sender` and `Deletions` write,
 * `Outbox` and `Keeper` store on the device.
 */
import { Blocked } from "./blocked.js";
import { now } from "./clock.js";
import { ALLOWED_AGAIN, Connection, delay, GROUP_CHANGED, PRESENCE, RETRYABLE, TYPING } from "./connection.js";
import { EVERYBODY, isGroup, keyOf, keysDeleted, keysRead, messageOf, peerOf } from "./conversation.js";
import { Deletions } from "./deletions.js";
import { Groups } from "./groups.js";
import { HistoryReader } from "./history.js";
import { Keeper } from "./keeper.js";
import { ConversationList } from "./list.js";
import { Outbox } from "./outbox.js";
import { Sender } from "./sender.js";
import { Typing } from "./typing.js";

export { EVERYBODY, isGroup, isShared } from "./conversation.js";
export { LIMIT } from "./sender.js";

const RECEIVED = 40011;
const READ = 40007;
const DELETED = 40013;
const MAX_KEYS = 200; // of one request
const RECOUNT = 500; // if the server has not counted all unread messages, it counts again below this number
const KEPT = 100; // messages kept in memory of a conversation that is not open

/** A conversation has changed; `peer` is null if several have, or the connection. */
class Changed extends Event {
  constructor(peer) {
    super("change");
    this.peer = peer;
  }
}

/** A message has arrived. */
class MessageArrived extends Event {
  constructor(peer, message) {
    super("message");
    this.peer = peer;
    this.message = message;
  }
}

export class Chat extends EventTarget {
  #keeper;
  #outbox;
  #list;
  #history;
  #sender;
  #deletions;
  #limits;
  #unsentMarks = []; // [peer, keys]
  #current = null; // the peer of the open conversation

  /**
   * `me`: the user. `url`: of the socket, with uid and sync=1. `storage`: see storage.js. `alive`: see Connection.
   * `limits`: the longest text and the longest frame that the server accepts, in bytes. `blocking`: see Blocked. `members`: see Groups.
   */
  constructor(me, { url, storage, alive, limits = { text: 16384, frame: 65536 }, blocking = null, members = null, wait = delay, ...options }) {
    super();
    this.me = me;
    this.#limits = limits;
    this.#keeper = new Keeper(me, storage);
    this.#outbox = new Outbox(me, storage);
    const changed = (peer) => this.#changed(peer);
    const handlers = { alive, changed: () => changed(null), opened: () => this.#opened(), event: (frame) => this.#handle(frame) };
    this.connection = new Connection(url, handlers, { wait, ...options });
    this.blocked = new Blocked(blocking, () => changed(null));
    this.groups = new Groups(members, changed);
    this.typing = new Typing(this.connection, changed, options.times);
    this.#list = new ConversationList(me, this.connection, this.#keeper, changed);
    this.#history = new HistoryReader(me, this.connection, changed);
    this.#sender = new Sender(me, this.connection, this.#outbox, this.#list, changed);
    this.#deletions = new Deletions(this.connection, this.#list, changed);
  }

  /** Restore what is stored on the device, and connect. */
  async start() {
    for (const record of await this.#keeper.load()) this.conversation(record.peer).restore(record);
    await this.#loadOutbox();
    this.connection.start();
  }

  /** Stop permanently: afterwards nothing is sent or stored. */
  close() {
    this.typing.stop();
    this.#keeper.close();
    this.#outbox.close();
    this.connection.close();
  }

  // --- conversations

  /** All known conversations by peer, EVERYBODY included. */
  get conversations() {
    return this.#list.conversations;
  }

  /** Whether the list was read from the server. */
  get listed() {
    return this.#list.loaded;
  }

  /** Whether the server has more conversations. */
  get more() {
    return this.#list.more;
  }

  /** The conversation with `peer`, created if necessary. */
  conversation(peer) {
    return this.#list.get(peer);
  }

  /** The stored conversations, newest first: those with messages, and those opened on this page. */
  list() {
    const newest = ({ peer, last, joined, begun, confirmed }) =>
      this.waiting(peer).at(-1)?.at ?? last?.time ?? (joined || (confirmed && begun));
    const time = (one) => !one.left && newest(one);
    const timed = [...this.conversations.values()].map((one) => ({ one, time: time(one) }));
    const used = timed.filter(({ one, time }) => time && one.stored);
    return used.sort((one, other) => other.time - one.time).map(({ one }) => one);
  }

  /** The messages to `peer` that are not acknowledged yet, in order. */
  waiting(peer) {
    return this.#outbox.to(peer);
  }

  /** Whether the user `peer` is online; null if that is unknown, as it is without a connection. */
  online(peer) {
    return this.connection.state === "open" && !isGroup(peer) ? this.conversation(peer).online : null;
  }

  /** The reason why no conversation with `peer` can begin, null if one can. Waits for the connection. */
  async refusal(peer) {
    const conversation = this.conversation(peer);
    const ask = async () => {
      await this.connection.opened();
      await this.#history.page(conversation, "-1");
      return conversation.why;
    };
    // Twice, because a lost connection may be noticed only when a request is not answered.
    return ask().catch(ask).catch(() => "unreachable");
  }

  /** Open the conversation with `peer` (null: none), and keep it complete from now on. */
  async open(peer) {
    const before = this.#current && this.conversation(this.#current);
    before?.dropPlaceholders();
    if (before?.left) this.#forget(before);
    this.#current = peer;
    if (!peer) return;
    if (isGroup(peer)) void this.groups.load(peer);
    const conversation = this.conversation(peer);
    conversation.begun ||= now();
    if (!conversation.synced) await this.connection.attempt(() => this.#history.sync(conversation));
  }

  /** Read the page before the oldest message. */
  older(peer) {
    return this.#history.older(this.conversation(peer));
  }

  /** Read the list again, and the members of the open group: their presence is pushed only for contacts. */
  refresh() {
    if (this.#current && isGroup(this.#current)) void this.groups.load(this.#current);
    return this.#list.refresh();
  }

  /** Extend the list by one page. */
  moreConversations() {
    return this.#list.extend();
  }

  /** Extend the list as far as a search reaches. */
  listFurther() {
    return this.#list.extendForSearch();
  }

  // --- sending

  /** Why this text cannot be sent: "empty", "too_long", or null if it can. */
  problem(text) {
    if (!text.trim()) return "empty";
    const size = (string) => new TextEncoder().encode(string).length;
    const frame = JSON.stringify({ to: "x".repeat(256), op_type: 1, content: `${"x".repeat(64)}\n${text}` });
    return size(text) > this.#limits.text || size(frame) > this.#limits.frame ? "too_long" : null;
  }

  /** Send a text to `peer`. It is stored on the device until it is acknowledged. */
  async send(peer, text) {
    await this.#submit(this.#outbox.add(peer, text));
  }

  /** Send a refused message or a lost broadcast again. */
  async retry(id) {
    const message = this.#outbox.get(id);
    if (!message?.why) return;
    message.why = null;
    await this.#submit(message);
  }

  /** Discard a refused message. */
  async discard(id) {
    const message = this.#outbox.get(id);
    if (!message?.why) return;
    await this.#outbox.drop(message);
    this.#changed(message.to);
  }

  async #submit(message) {
    this.typing.sent();
    this.#changed(message.to);
    await this.#outbox.keep(message);
    await this.#sender.send(message.to);
  }

  // --- marks and deletions

  /** Mark messages of other users as read. */
  async read(peer, keys) {
    const conversation = this.conversation(peer);
    const outdated = this.#list.refreshing;
    conversation.markRead(keys, false);
    this.#changed(peer);
    if (!conversation.stored) return;
    const marks = isGroup(peer) ? [conversation.newest(keys) ?? keys.at(-1)] : keys; // it marks those before it
    for (let start = 0; start < marks.length; start += MAX_KEYS) {
      const some = marks.slice(start, start + MAX_KEYS);
      const done = await this.connection.attempt(() => this.connection.ask(4, peer, some.join("\n")));
      if (!done || RETRYABLE.has(done.answer.reason)) this.#unsentMarks.push([peer, some]); // with the next connection
    }
    if (outdated || (conversation.countLimited && conversation.unread < RECOUNT)) await this.#list.refreshAfter();
  }

  /** Mark all messages of other users as read. */
  async readAll(peer) {
    const conversation = this.conversation(peer);
    const keys = conversation.messages.filter((message) => !message.mine && !message.read).map((message) => message.key);
    const outdated = this.#list.refreshing;
    // The answer is awaited last: messages that arrive before it stay unread.
    const known = keys.length ? this.read(peer, keys) : null;
    if (conversation.unread && conversation.synced && this.connection.state === "open") {
      conversation.unread = 0;
      this.#changed(peer);
      if (conversation.stored) await this.connection.attempt(() => this.connection.ask(4, peer, "*"));
      if (outdated) await this.#list.refreshAfter();
    }
    await known;
  }

  /** Delete a message for all users in some seconds. Returns a function that undoes this. */
  remove(peer, key) {
    return this.#deletions.add(peer, key);
  }

  /** The page is about to close: delete and store now. Resolves when the server has answered. */
  async flush() {
    const deleted = this.#deletions.flush();
    this.#keeper.save();
    await deleted;
  }

  // --- events of the connection

  async #opened() {
    void this.blocked.load();
    this.typing.forget();
    for (const conversation of this.conversations.values()) {
      if (!conversation.stored) continue;
      conversation.reconnected();
      if (conversation.peer !== this.#current) conversation.trim(KEPT);
    }
    await this.#loadOutbox();
    void this.#sender.resend(null); // first, so that the pages below contain these messages
    void this.#deletions.send();
    for (const [peer, keys] of this.#unsentMarks.splice(0)) void this.read(peer, keys);
    void this.refresh();
    const current = this.#current && this.conversation(this.#current);
    if (current) void this.connection.attempt(() => this.#history.sync(current));
  }

  #handle(frame) {
    const peer = peerOf(frame, this.me);
    if (frame.op_type === ALLOWED_AGAIN) void this.#sender.resend(frame.content);
    else if (frame.op_type === PRESENCE) this.#setPresence(frame.content.split("\n"));
    else if (frame.op_type === GROUP_CHANGED) this.#changeGroup(peer, frame);
    else if (frame.op_type === TYPING) this.typing.receive(peer, frame.from, frame.content);
    else if (peer === EVERYBODY) this.#receiveBroadcast(frame);
    else if (frame.op_type === RECEIVED) this.#receive(peer, messageOf(frame, this.me));
    else if (frame.op_type === READ) this.#markRead(peer, frame);
    else if (frame.op_type === DELETED) this.#remove(peer, frame);
  }

  #setPresence(lines) {
    this.groups.setPresence(lines);
    this.#list.setPresence(lines);
  }

  /** The members of a group have changed. Each line is `+NAME`, `-NAME`, or `!NAME` for a new owner. */
  #changeGroup(group, { content, time = now() }) {
    const conversation = this.conversation(group);
    const lines = content.split("\n");
    if (lines.includes(`+${this.me}`)) this.#join(conversation);
    const newest = conversation.messages.at(-1)?.time ?? 0;
    if (conversation.begun) conversation.addLocal({ change: lines, time: Math.max(time, newest), read: true });
    if (lines.includes(`-${this.me}`)) {
      conversation.leave();
      if (group !== this.#current) this.#forget(conversation); // otherwise once the user has seen that it ended
    } else if (group === this.#current) void this.groups.load(group);
    this.#changed(group);
  }

  /** This user is no longer a member of the group: forget its members, its messages and those not sent. */
  #forget(conversation) {
    const { peer } = conversation;
    this.groups.forget(peer);
    conversation.reset();
    for (const message of this.waiting(peer)) void this.#outbox.drop(message);
  }

  /** This user is a member of a group from now on: messages of an earlier membership are no longer visible. */
  #join(conversation) {
    conversation.reset();
    conversation.why = null;
    conversation.confirmed = true;
    void this.#list.refreshAfter();
    if (conversation.peer === this.#current) void this.connection.attempt(() => this.#history.sync(conversation));
  }

  #receive(peer, message) {
    const conversation = this.conversation(peer);
    if (conversation.has(message.key) || conversation.lastLive === message.key) return;
    conversation.lastLive = message.key;
    if (conversation.loaded || conversation.begun) conversation.receive(message);
    this.#list.receive(conversation, message);
    if (!message.mine) {
      this.typing.receive(peer, message.from, "0");
      conversation.online = true;
    }
    conversation.confirmed = true;
    this.#changed(peer);
    this.dispatchEvent(new MessageArrived(peer, message));
  }

  #receiveBroadcast({ from, content, time }) {
    const mine = from === this.me;
    const conversation = this.conversation(EVERYBODY);
    const message = conversation.addLocal({ mine, from, text: content, time, read: mine });
    if (!mine) conversation.unread += 1;
    this.#changed(EVERYBODY);
    this.dispatchEvent(new MessageArrived(EVERYBODY, message));
  }

  /** Another device, or another user, has read messages. */
  #markRead(peer, frame) {
    const conversation = this.conversation(peer);
    const keys = keysRead(frame, this.me);
    conversation.markRead(keys, frame.from !== this.me);
    this.#changed(peer);
    // Only the server can count what is before a message that is not known.
    if (this.#list.refreshing || (isGroup(peer) && !conversation.has(keys[0]))) void this.#list.refreshAfter();
  }

  /** Another device, or another user, has deleted messages. */
  #remove(peer, frame) {
    const keys = keysDeleted(frame, this.me);
    if (peer === this.#current && frame.from !== this.me) this.conversation(peer).removeVisibly(keys);
    else this.conversation(peer).remove(keys);
    this.#changed(peer);
    void this.#list.refreshAfter();
  }

  async #loadOutbox() {
    const isUnknown = ({ id, to }) => !this.conversations.get(to)?.has(keyOf(to, this.me, id, this.me));
    for (const message of await this.#outbox.load(isUnknown)) {
      if (message.to === EVERYBODY) message.why ??= "lost"; // a broadcast has no id: a retry might send it twice
      this.conversation(message.to).confirmed = true; // the page accepts no text for an unconfirmed peer
    }
    this.#changed(null);
  }

  #changed(peer) {
    if (peer && this.conversation(peer).stored) this.#keeper.keepSoon(this.conversation(peer));
    this.dispatchEvent(new Changed(peer));
  }
}
