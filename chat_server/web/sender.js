/** Sends the messages of the outbox (ops 1 and 6). Does not use the DOM. */
import { now } from "./clock.js";
import { RETRYABLE } from "./connection.js";
import { EVERYBODY, keyOf } from "./conversation.js";

/** The only reason for a refusal that ends by itself: the peer has to answer first. */
export const LIMIT = "refused_by_limit";

const ONLINE = 40018;
const STORED = new Set([ONLINE, 40019]);
const BROADCAST_SENT = 40009;
const BATCH = 32; // messages sent together: the server processes as many at once
const RATE_LIMIT_ATTEMPT = 7; // the delay after `too_many`: that of this connection attempt, about half a minute

export class Sender {
  #me;
  #connection;
  #outbox;
  #list;
  #changed;
  #active = new Set();

  /** `changed(peer)`: called after a change. */
  constructor(me, connection, outbox, list, changed) {
    this.#me = me;
    this.#connection = connection;
    this.#outbox = outbox;
    this.#list = list;
    this.#changed = changed;
  }

  /** Send what waits for `peer`, unless that is in progress. */
  async send(peer) {
    if (this.#active.has(peer)) return;
    this.#active.add(peer);
    try {
      await this.#sendAll(peer);
    } finally {
      this.#active.delete(peer);
    }
  }

  /** Send everything that waits, and what the contact limit refused for `peer` (null: for any peer). */
  async resend(peer) {
    const peers = new Set();
    for (const message of this.#outbox.all()) {
      if (message.why === LIMIT && (!peer || message.to === peer)) message.why = null;
      peers.add(message.to);
    }
    if (peer) this.#list.get(peer).refused = false;
    this.#changed(peer);
    await Promise.all([...peers].map((one) => this.send(one)));
  }

  /**
   * Send in batches: a batch takes one round trip, and the next one waits for its answers. If the store refuses a
   * message for now, only messages of the same batch can overtake it.
   */
  async #sendAll(peer) {
    const size = peer === EVERYBODY ? 1 : BATCH; // a lost broadcast is not sent again
    let attempts = 0;
    for (let batch; (batch = this.#outbox.to(peer).filter((one) => !one.why).slice(0, size)).length; ) {
      if (this.#connection.state !== "open") return; // the next connection sends it
      const reasons = await Promise.all(batch.map((message) => this.#sendOne(message)));
      if (reasons.includes("lost")) return;
      const limited = reasons.includes("too_many");
      if (reasons.some((reason) => RETRYABLE.has(reason))) await this.#connection.pause(limited ? RATE_LIMIT_ATTEMPT : attempts++);
    }
  }

  /** Resolves with the reason why the message was not stored, "lost" if there was no answer. */
  async #sendOne(message) {
    const answer = await this.#connection.attempt(() => this.#transmit(message));
    const final = answer && !RETRYABLE.has(answer.reason);
    if (final || message.to === EVERYBODY) await this.#answered(message, answer);
    return answer ? answer.reason : "lost";
  }

  async #transmit({ id, to, text }) {
    const request = to === EVERYBODY ? [6, "", text] : [1, to, `${id}\n${text}`];
    return (await this.#connection.ask(...request)).answer;
  }

  async #answered(message, answer) {
    const conversation = this.#list.get(message.to);
    if (STORED.has(answer?.op_type)) {
      const sent = { key: keyOf(message.to, this.#me, message.id, this.#me), mine: true, from: this.#me, id: message.id, text: message.text };
      Object.assign(sent, { time: answer.time, read: false });
      if (conversation.loaded || conversation.begun) conversation.add([sent]);
      else conversation.updateLast(sent);
      // 40019 does not mean offline: no presence frame follows if the peer reconnects within five seconds.
      if (answer.op_type === ONLINE) conversation.online = true;
      else if (conversation.online === null) void this.#list.refresh();
      conversation.refused = false;
      await this.#outbox.drop(message);
    } else if (answer?.op_type === BROADCAST_SENT) {
      const reached = Number(answer.content);
      conversation.addLocal({ mine: true, from: this.#me, text: message.text, time: now(), read: true, reached });
      await this.#outbox.drop(message);
    } else {
      message.why = answer?.reason ?? "lost";
      if (message.why === LIMIT) conversation.refused = true;
      await this.#outbox.keep(message);
    }
    this.#changed(message.to);
  }
}
