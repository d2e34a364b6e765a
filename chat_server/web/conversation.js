/**
 * What is known of one conversation: its messages in their order, and what the list shows of it. Knows no DOM.
 *
 * A message is `{key, mine, from, id, text, time, read}`. Its key is `>ID` if it is mine and `<ID` if it is the
 * other's, as the protocol names it; a message to everybody has a key of its own.
 */
const KEPT = 100; // messages, and characters of them, that are kept on the device
const KEPT_CHARACTERS = 50_000;

export class Conversation {
  #known = new Map();
  #gone = new Set();

  /** in the order of sending, without gaps from the first to the last */
  messages = [];
  /** whether the newest page has come, and whether the oldest one has */
  loaded = false;
  complete = false;
  /** the key of the newest message before which nothing is missing: where to go on after a loss */
  place = null;
  /** whether that was done since the last loss: from then on live messages follow it without a gap */
  whole = false;
  /** keys of the messages that arrived before that: others may be missing above the first of them */
  apart = new Set();
  /** the key of the oldest message that is on the screen: what is older need not be read anew */
  shown = null;
  /** keys of messages whose deletion can still be undone */
  hidden = new Set();

  /** whether the server knows the other user: a name that is not confirmed may be anything, and is not shown */
  confirmed = false;
  /** the reason for which its pages are refused */
  why = null;
  /** whether an older page is under way */
  reading = false;

  /** when it was opened here for the first time */
  begun = 0;
  last = null;
  unread = 0;
  /** the time of the newest message that `unread` counts as of the list; later ones are counted as they arrive */
  listed = 0;
  /** the key of the last message that arrived live: a retry of its sender may deliver it twice */
  heard = null;
  online = null;
  /** whether the other has to answer before more can be sent */
  refused = false;

  constructor(peer) {
    this.peer = peer;
  }

  has(key) {
    return this.#known.has(key);
  }

  get(key) {
    return this.#known.get(key);
  }

  /**
   * Put messages where their times say, in the order in which they come; those known already are renewed. Of the same
   * time, new messages stand below the known ones; if they are `older`, above them.
   */
  add(messages, older = false) {
    const fresh = messages
      .filter((message) => !this.#gone.has(message.key))
      .map((message) => {
        const known = this.#known.get(message.key);
        return known ? Object.assign(known, message, { read: known.read || message.read }) : message;
      });
    for (const message of fresh) {
      this.#known.set(message.key, message);
      this.apart.delete(message.key);
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
    if (fresh.length) this.summary(fresh.at(-1));
  }

  /** Add a message that arrived live. */
  receive(message) {
    this.add([message]);
    if (this.whole) this.place = message.key;
    else this.apart.add(message.key);
  }

  /** Begin anew after a loss: drop the messages below a gap, as the next pages bring them and what is missing. */
  interrupt() {
    this.#keep(({ key }) => !this.apart.has(key));
    this.apart.clear();
    this.whole = false;
    this.online = null;
  }

  /** Let a message be what the list shows, if it is the newest. */
  summary(message) {
    if (!this.last || message.time >= this.last.time) this.last = message;
  }

  /** What was read anew is what there is: of the `known` keys what is not in it was deleted, what is older is dropped. */
  renew(messages, known, complete) {
    const keys = new Set(messages.map((message) => message.key));
    this.add(messages);
    const start = messages[0]?.time ?? 0;
    this.#keep(({ key, time, gone }) => keys.has(key) || (time >= start && (gone || !known.has(key))));
    this.complete = complete;
    this.loaded = this.whole = true;
    this.apart.clear();
    this.place = messages.at(-1)?.key ?? null;
  }

  /** The messages with these keys were deleted, and do not come back with a page that was under way. */
  remove(keys) {
    for (const key of keys) this.#gone.add(key);
    this.#keep((message) => message.gone || !this.#gone.has(message.key));
    if (this.last && this.#gone.has(this.last.key)) this.last = this.messages.findLast((message) => !message.gone) ?? null;
  }

  /** As `remove`, but an empty message that is `gone` stays in each place until `clear`: somebody looks at them. */
  empty(keys) {
    const deleted = new Set(keys);
    const place = (message) => ({ ...message, text: "", gone: true, read: true });
    this.messages = this.messages.map((message) => (deleted.has(message.key) ? place(message) : message));
    this.remove(keys);
  }

  /** Let go of the places of deleted messages. */
  clear() {
    this.#keep((message) => !message.gone);
  }

  /** Messages were read. Returns how many of those to me were news. */
  markRead(keys) {
    let news = 0;
    for (const key of keys) {
      const message = this.#known.get(key) ?? (this.last?.key === key ? this.last : null);
      if (!key.startsWith(">") && !message?.read) news += 1;
      if (message) message.read = true;
    }
    this.unread = Math.max(0, this.unread - news);
    return news;
  }

  /** Know nothing of the messages any more: they are read anew when somebody looks. */
  forget() {
    this.messages = [];
    this.#known.clear();
    this.#gone.clear();
    this.apart.clear();
    this.loaded = this.complete = false;
    this.place = this.shown = null;
  }

  /** Let go of all but the newest `count` messages. */
  trim(count) {
    if (this.messages.length <= count) return;
    const oldest = this.messages.at(-count).time;
    this.#keep((message) => message.time >= oldest);
    this.complete = false;
  }

  /** What is kept of it on the device: the newest messages without a gap. Null if there is nothing to keep. */
  record() {
    if (!this.last) return null;
    const end = this.whole ? this.messages.length : this.messages.findIndex(({ key }) => key === this.place) + 1;
    const whole = this.messages.slice(0, end).filter((message) => !message.gone);
    let size = 0;
    const large = whole.findLastIndex((message) => (size += message.text.length) > KEPT_CHARACTERS);
    const messages = whole.slice(Math.max(large + 1, whole.length - KEPT));
    const complete = this.complete && messages.length === whole.length;
    return { messages, complete, last: this.last, unread: this.unread };
  }

  /** Take up a record. */
  recall({ messages, complete, last, unread }) {
    this.add(messages);
    this.loaded = messages.length > 0;
    this.place = messages.at(-1)?.key ?? null;
    Object.assign(this, { complete, last: this.get(last.key) ?? last, unread, listed: last.time, confirmed: true });
  }

  /** The first message of the other that is unread. */
  firstUnread() {
    return this.messages.find((message) => !message.mine && !message.read) ?? null;
  }

  /** The keys of all messages. */
  keys() {
    return new Set(this.#known.keys());
  }

  #keep(wanted) {
    this.messages = this.messages.filter(wanted);
    this.#known = new Map(this.messages.map((message) => [message.key, message]));
  }
}
