/** Reads the messages of conversations (op 2). Does not use the DOM. */
import { messageOf } from "./conversation.js";

const PAGE = 50;
const OLDER = 100;
const LARGEST_PAGE = 200;
const MAX_UNREAD = 1000; // messages read at once to reach the first unread one; the server counts no further
const MAX_MISSED = 1000; // messages read to close a gap; a larger gap is not closed, reading restarts at the end

export class HistoryReader {
  #me;
  #connection;
  #changed;

  /** `changed(peer)`: called after a change. */
  constructor(me, connection, changed) {
    this.#me = me;
    this.#connection = connection;
    this.#changed = changed;
  }

  /**
   * Request a page of the conversation. Resolves with its messages, or null if the server refuses it: the reason is
   * then in `why` of the conversation. Rejects with ConnectionLost.
   */
  async page(conversation, content) {
    const { answer, frames } = await this.#connection.ask(2, conversation.peer, content);
    conversation.why = answer.reason ?? null;
    conversation.confirmed ||= !answer.reason;
    return answer.reason ? null : frames.map((frame) => messageOf(frame, this.#me));
  }

  /** As `page`, again while the server refuses it for the moment. */
  async #retriedPage(conversation, content) {
    let page;
    await this.#connection.repeat(async () => {
      page = await this.page(conversation, content);
      if (!page) this.#changed(conversation.peer);
      return conversation.why;
    });
    return page;
  }

  /** Read what was missed, in order. Then read the shown messages again, because they may have changed. */
  async sync(conversation) {
    if (!conversation.stored) return;
    if (!conversation.loaded || !conversation.cursor) return this.#readNewest(conversation);
    let page;
    let missed = 0;
    do {
      page = await this.#retriedPage(conversation, `+${LARGEST_PAGE}@${conversation.cursor}`);
      missed += page?.length ?? 0;
      if (!page || missed >= MAX_MISSED) {
        conversation.reset();
        return this.#readNewest(conversation);
      }
      conversation.add(page);
      conversation.cursor = page.at(-1)?.key ?? conversation.cursor;
    } while (page.length === LARGEST_PAGE);
    return this.#readShown(conversation);
  }

  /** Read the page before the oldest message. */
  async older(conversation) {
    const first = oldest(conversation);
    if (!first || !conversation.loaded || conversation.complete || conversation.reading) return;
    if (this.#connection.state !== "open") return; // the view asks again once it is
    conversation.reading = true;
    await this.#connection.attempt(async () => {
      const page = await this.page(conversation, `-${OLDER}@${first.key}`);
      if (!page) await this.#connection.pauseBeforeRetry();
      else if (oldest(conversation) === first) {
        conversation.add(page, true);
        conversation.complete = page.length < OLDER;
      }
    });
    conversation.reading = false;
    this.#changed(conversation.peer);
  }

  /** Read the newest page, and further pages until they contain the first unread message. */
  async #readNewest(conversation) {
    const known = conversation.keys();
    let read = [];
    let page;
    let size = PAGE;
    let complete;
    do {
      page = await this.#retriedPage(conversation, `-${size}${read.length ? `@${read[0].key}` : ""}`);
      if (!page) return;
      read = page.concat(read);
      complete = page.length < size;
      size = LARGEST_PAGE;
    } while (!complete && read.length < MAX_UNREAD && countUnread(read) < conversation.unread);
    conversation.replace(read, known, complete);
    this.#changed(conversation.peer);
  }

  async #readShown(conversation) {
    const known = conversation.keys();
    const top = conversation.get(conversation.firstShown)?.time ?? Infinity;
    let read = [];
    let page;
    do {
      page = await this.#retriedPage(conversation, `-${LARGEST_PAGE}${read.length ? `@${read[0].key}` : ""}`);
      if (!page) return;
      read = page.concat(read);
    } while (page.length === LARGEST_PAGE && read[0].time >= top);
    conversation.replace(read, known, page.length < LARGEST_PAGE);
    this.#changed(conversation.peer);
  }
}

function oldest({ messages }) {
  return messages.find(({ id }) => id);
}

function countUnread(messages) {
  return messages.filter((message) => !message.mine && !message.read).length;
}
