/**
 * The state of one conversation: its messages in order, and what the list shows. Does not use the DOM.
 *
 * `peer` names a conversation: it is the other user, a group (`#NAME`), or EVERYBODY.
 *
 * A message is `{key, mine, from, id, text, time, read}`. `key` names it as in the protocol: `>ID` for a message of
 * this user, `<ID` for a message of the other user, `ID/NAME` in a group. Broadcasts and changes of a group's members
 * have keys `*N`, which are valid on this page only.
 */
export const EVERYBODY = "ALL";

const KEPT = 100; // messages stored on the device for one conversation, at most
const KEPT_CHARACTERS = 50_000; // characters of these messages, at most
const MAX_LOCAL = 500; // messages that the server does not store: a page that stays open must not keep all

let locals = 0;

/** Whether a conversation is a group. */
export function isGroup(peer) {
  return peer.startsWith("#");
}

/** The conversation to which a frame that `me` received belongs. */
export function peerOf({ from, to = "" }, me) {
  return from === me || to === EVERYBODY || isGroup(to) ? to : from;
}

/** The key of a message. */
export function keyOf(peer, from, id, me) {
  if (isGroup(peer)) return `${id}/${from}`;
  return (from === me ? ">" : "<") + id;
}

/** The message in a frame that `me` received. */
export function messageOf(frame, me) {
  const { from, content, id, time, read = false } = frame;
  const text = content.slice(content.indexOf("\n") + 1);
  return { key: keyOf(peerOf(frame, me), from, id, me), mine: from === me, from, id, text, time, read };
}

/** The keys of the messages that `from` has read (40007): messages of the other user; in a group, the newest one. */
export function keysRead({ from, to, content }, me) {
  const lines = content.split("\n");
  return isGroup(to) ? lines : lines.map((id) => (from === me ? "<" : ">") + id);
}

/** The keys of the messages that `from` has deleted (40013): the frame has the keys of `from`. */
export function keysDeleted({ from, to, content }, me) {
  const turned = { ">": "<", "<": ">" };
  const lines = content.split("\n");
  return from === me || isGroup(to) ? lines : lines.map((key) => turned[key[0]] + key.slice(1));
}

/** Whether a conversation has several senders besides this user, so that messages need their names. */
export function isShared(peer) {
  return peer === EVERYBODY || isGroup(peer);
}

export class Conversation {
  #known = new Map();
  #removed = new Set();

  /** in order; without gaps above the first of `detached` */
  messages = [];
  /** whether the newest page was read, and whether the oldest page was */
  loaded = false;
  complete = false;
  /** the key of the newest message before which nothing is missing: reading continues there after a lost connection */
  cursor = null;
  /** whether everything missed during the last lost connection was read: live messages then follow without a gap */
  synced = false;
  /** keys of live messages that arrived before `synced`: messages may be missing above the first of them */
  detached = new Set();
  /** the key of the first message in the document: older ones need not be read again */
  firstShown = null;
  /** keys of messages whose deletion can still be undone */
  hidden = new Set();

  /** whether the server knows the peer. An unconfirmed name comes from an address, so the page does not show it. */
  confirmed = false;
  /** the reason why the server refuses pages of this conversation */
  why = null;
  /** whether an older page is being read */
  reading = false;

  /** when the conversation was first opened on this page */
  begun = 0;
  /** when this user joined the group, if the list shows no message of it */
  joined = 0;
  last = null;
  unread = 0;
  /** whether more messages may be unread: the server counts up to 1000 */
  countLimited = false;
  /** the time of the newest message that `unread` of the list includes. Later messages are counted on arrival. */
  listed = 0;
  /** the key of the newest live message: a retry of its sender may deliver it again */
  lastLive = null;
  /** whether the peer is online; null if unknown */
  online = null;
  /** whether the contact limit was reached: the peer has to answer first */
  refused = false;

  constructor(peer) {
    this.peer = peer;
    /** whether the server stores the messages */
    this.stored = peer !== EVERYBODY;
    if (!this.stored) this.loaded = this.complete = this.synced = this.confirmed = true;
  }

  /** Whether this user cannot write here, permanently. */
  get closed() {
    return this.why === "no_such_user" || this.left;
  }

  /** Whether this user is no member of the group. */
  get left() {
    return this.why === "no_such_group";
  }

  has(key) {
    return this.#known.has(key);
  }

  get(key) {
    return this.#known.get(key);
  }

  /** The keys of all messages. */
  keys() {
    return new Set(this.#known.keys());
  }

  /**
   * Insert messages by time, in the given order; update known ones. Among messages of the same time, new ones are
   * placed below known ones, or above them if they are `older`.
   */
  add(messages, older = false) {
    const fresh = messages
      .filter((message) => !this.#removed.has(message.key))
      .map((message) => {
        const known = this.#known.get(message.key);
        return known ? Object.assign(known, message, { read: known.read || message.read }) : message;
      });
    for (const message of fresh) {
      this.#known.set(message.key, message);
      this.detached.delete(message.key);
    }
    const keys = new Set(fresh.map((message) => message.key));
    const rest = this.messages.filter((message) => !keys.has(message.key));
    const merged = [];
    const precedes = older ? (one, other) => one.time < other.time : (one, other) => one.time <= other.time;
    let next = 0;
    for (const message of fresh) {
      while (next < rest.length && precedes(rest[next], message)) merged.push(rest[next++]);
      merged.push(message);
    }
    this.messages = merged.concat(rest.slice(next));
    if (fresh.length) this.updateLast(fresh.at(-1));
  }

  /** Add a live message. */
  receive(message) {
    this.add([message]);
    if (this.synced) this.cursor = message.key;
    else this.detached.add(message.key);
  }

  /**
   * Add a message that the server does not store: a broadcast, or a `change` of the group's members. Drop the oldest
   * ones beyond the bound.
   */
  addLocal(fields) {
    const message = { key: `*${locals++}`, id: null, ...fields };
    this.add([message]);
    const old = this.messages.filter((one) => !one.id).slice(0, -MAX_LOCAL);
    if (old.length) this.remove(old.map((one) => one.key));
    return message;
  }

  /** A new connection is open: drop the messages below a gap, because the next pages contain them again. */
  reconnected() {
    this.#retain(({ key }) => !this.detached.has(key));
    this.detached.clear();
    this.synced = false;
    this.online = null;
  }

  /** Show `message` in the list if it is the newest one. */
  updateLast(message) {
    if (!message.change && (!this.last || message.time >= this.last.time)) this.last = message;
  }

  /**
   * `messages` is the newest part of the conversation, read again. Drop older messages, and those of the `known` keys
   * that are no longer in it: they were deleted.
   */
  replace(messages, known, complete) {
    const keys = new Set(messages.map((message) => message.key));
    this.add(messages);
    const start = messages[0]?.time ?? 0;
    this.#retain(({ key, time, gone, change }) => keys.has(key) || (time >= start && (gone || change || !known.has(key))));
    this.complete = complete;
    this.loaded = this.synced = true;
    this.detached.clear();
    this.cursor = messages.at(-1)?.key ?? null;
  }

  /** Remove deleted messages. A page that was requested earlier does not bring them back. */
  remove(keys) {
    for (const key of keys) this.#removed.add(key);
    this.#retain((message) => message.gone || !this.#removed.has(message.key));
    if (this.last && this.#removed.has(this.last.key)) this.last = this.messages.findLast(isStored) ?? null;
  }

  /** Like `remove`, but leave a placeholder (`gone`) for each message until `dropPlaceholders`. */
  removeVisibly(keys) {
    const deleted = new Set(keys);
    const placeholder = (message) => ({ ...message, text: "", gone: true, read: true });
    this.messages = this.messages.map((message) => (deleted.has(message.key) ? placeholder(message) : message));
    this.remove(keys);
  }

  dropPlaceholders() {
    this.#retain((message) => !message.gone);
  }

  /**
   * Mark messages as read. `mine`: whether they are messages of this user. A member of a group has one read position:
   * the messages of others before it count as read.
   */
  markRead(keys, mine) {
    for (const key of isGroup(this.peer) ? this.#before(keys) : keys) {
      const message = this.#known.get(key) ?? (this.last?.key === key ? this.last : null);
      if (!mine && !message?.read) this.unread = Math.max(0, this.unread - 1);
      if (message) message.read = true;
    }
  }

  /** The newest of these messages. */
  newest(keys) {
    return this.messages.findLast(({ key }) => keys.includes(key))?.key;
  }

  #before(keys) {
    const end = this.messages.findLastIndex(({ key }) => keys.includes(key));
    return this.messages.slice(0, end + 1).filter((message) => !message.mine).map(({ key }) => key);
  }

  /** This user is no longer a member of the group. */
  leave() {
    Object.assign(this, { why: "no_such_group", last: null, unread: 0, begun: 0, joined: 0 });
  }

  /** Drop all messages. They are read again when the conversation is opened. */
  reset() {
    this.messages = [];
    this.#known.clear();
    this.#removed.clear();
    this.detached.clear();
    this.loaded = this.complete = this.synced = false;
    this.cursor = this.firstShown = null;
  }

  /** Keep only the newest `count` messages. */
  trim(count) {
    if (this.messages.length <= count) return;
    const oldest = this.messages.at(-count).time;
    this.#retain((message) => message.time >= oldest);
    this.complete = false;
  }

  /** The part that is stored on the device: the newest messages without a gap. Null if there is nothing to store. */
  record() {
    if (!this.last) return null;
    const end = this.synced ? this.messages.length : this.messages.findIndex(({ key }) => key === this.cursor) + 1;
    const gapless = this.messages.slice(0, end).filter(isStored);
    let size = 0;
    const large = gapless.findLastIndex((message) => (size += message.text.length) > KEPT_CHARACTERS);
    const messages = gapless.slice(Math.max(large + 1, gapless.length - KEPT));
    const complete = this.complete && messages.length === gapless.length;
    return { messages, complete, last: this.last, unread: this.unread };
  }

  /** Restore a record. */
  restore({ messages, complete, last, unread }) {
    this.add(messages);
    this.loaded = messages.length > 0;
    this.cursor = messages.at(-1)?.key ?? null;
    Object.assign(this, { complete, last: this.get(last.key) ?? last, unread, listed: last.time, confirmed: true });
  }

  /** The first unread message of the peer. */
  firstUnread() {
    return this.messages.find((message) => !message.mine && !message.read) ?? null;
  }

  #retain(wanted) {
    this.messages = this.messages.filter(wanted);
    this.#known = new Map(this.messages.map((message) => [message.key, message]));
  }
}

/** Whether the server has the message. */
function isStored({ gone, change }) {
  return !gone && !change;
}
