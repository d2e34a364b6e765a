/** The list of conversations (op 7), and the presence of peers. Does not use the DOM. */
import { Conversation, EVERYBODY, messageOf, peerOf } from "./conversation.js";

const PAGE = 50;
const LARGEST_PAGE = 200;
const MAX_SEARCHED = 1000; // conversations
const MAX_COUNTED = 1000; // unread messages of a conversation (docs/protocol.md, op 7)

export class ConversationList {
  #me;
  #connection;
  #keeper;
  #changed;
  #wanted = PAGE;
  #refreshing = null;
  // What was pushed since the list was requested: it is newer than the list.
  #presence = new Map();
  #arrived = []; // live messages

  /** by peer, EVERYBODY included */
  conversations = new Map();
  /** whether the list was read, and whether the server has more conversations */
  loaded = false;
  more = false;

  /** `changed(peer)`: called after a change; null means several conversations. */
  constructor(me, connection, keeper, changed) {
    this.#me = me;
    this.#connection = connection;
    this.#keeper = keeper;
    this.#changed = changed;
    this.get(EVERYBODY);
  }

  /** The conversation with `peer`, created if necessary. */
  get(peer) {
    if (!this.conversations.has(peer)) this.conversations.set(peer, new Conversation(peer));
    return this.conversations.get(peer);
  }

  /** Whether the list is being read. What the server counts then may be from before a change that just happened. */
  get refreshing() {
    return this.#refreshing !== null;
  }

  /** Read the list again. Calls during a read share its result. */
  refresh() {
    this.#refreshing ??= this.#connection.attempt(() => this.#read()).finally(() => {
      this.#refreshing = null;
    });
    return this.#refreshing;
  }

  /** Read the list again, after any read in progress. */
  async refreshAfter() {
    while (this.#refreshing) await this.#refreshing;
    await this.refresh();
  }

  /** Read one page more. */
  async extend() {
    if (!this.more || this.#refreshing) return;
    this.#wanted += PAGE;
    await this.refresh();
  }

  /** Read once as far as a search reaches. */
  async extendForSearch() {
    while (this.#refreshing) await this.#refreshing;
    if (!this.more) return;
    const wanted = this.#wanted;
    this.#wanted = MAX_SEARCHED;
    await this.refresh();
    this.#wanted = wanted;
  }

  /** Apply the lines of a presence frame: `+NAME` is online, `-NAME` is offline. */
  setPresence(lines) {
    for (const line of lines) {
      const [peer, online] = [line.slice(1), line.startsWith("+")];
      this.#presence.set(peer, online);
      if (this.conversations.has(peer)) this.get(peer).online = online;
    }
    this.#changed(null);
  }

  /** A message has arrived. */
  receive(conversation, message) {
    if (this.#refreshing) this.#arrived.push({ conversation, message });
    conversation.updateLast(message);
    // The list may already include the message: the server stores it before it delivers it.
    if (!message.mine && message.time > conversation.listed) conversation.unread += 1;
  }

  async #read() {
    const peers = new Set(); // those that the server knows
    this.#presence.clear();
    this.#arrived = [];
    const size = Math.min(this.#wanted, LARGEST_PAGE);
    let page;
    let after = "";
    const ask = async () => (page = await this.#connection.ask(7, "", `-${size}${after}`)).answer.reason;
    do {
      await this.#connection.repeat(ask);
      if (page.answer.reason) return;
      for (const frame of page.frames) peers.add((after = this.#add(frame)));
      after = `@${after}`;
    } while (page.frames.length === size && peers.size < this.#wanted);
    this.more = page.frames.length === size;
    this.loaded = true;
    for (const { conversation } of this.#arrived) peers.add(conversation.peer);
    for (const conversation of this.conversations.values()) {
      if (this.more || peers.has(conversation.peer) || !conversation.stored) continue;
      conversation.last = null; // all of its messages were deleted, or this user left the group
      conversation.joined = 0;
      conversation.unread = 0;
      this.#keeper.keepSoon(conversation);
    }
    this.#changed(null);
  }

  /** Take in one conversation of the list; returns its peer. */
  #add(frame) {
    const last = frame.id ? messageOf(frame, this.#me) : null; // null: a group without messages
    const peer = peerOf(frame, this.#me);
    const conversation = this.get(peer);
    const later = this.#arrived.filter((one) => one.conversation === conversation && one.message.time > frame.time);
    if (conversation.last?.key !== last?.key) this.#keeper.keepSoon(conversation);
    conversation.last = last && (conversation.get(last.key) ?? last);
    conversation.joined = last ? 0 : frame.time;
    conversation.listed = frame.time;
    conversation.confirmed = true;
    conversation.unread = frame.unread + later.filter(({ message }) => !message.mine && !message.read).length;
    for (const { message } of later) conversation.updateLast(message);
    conversation.countLimited = frame.unread >= MAX_COUNTED;
    conversation.online = this.#presence.get(peer) ?? frame.online;
    return peer;
  }
}
