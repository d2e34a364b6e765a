/** Deletes messages (op 5) after a delay in which the deletion can be undone. Does not use the DOM. */
import { RETRYABLE } from "./connection.js";

const UNDO = 5000; // milliseconds

export class Deletions {
  #connection;
  #list;
  #changed;
  #pending = new Map(); // key -> deletes the message now
  #unsent = new Map(); // key -> peer

  /** `changed(peer)`: called after a change. */
  constructor(connection, list, changed) {
    this.#connection = connection;
    this.#list = list;
    this.#changed = changed;
  }

  /** Hide a message and delete it after the delay. Returns a function that undoes this. */
  add(peer, key) {
    const conversation = this.#list.get(peer);
    const finish = () => {
      clearTimeout(timer);
      this.#pending.delete(key);
      this.#changed(peer);
    };
    const commit = () => {
      finish();
      conversation.hidden.delete(key);
      conversation.remove([key]);
      this.#unsent.set(key, peer);
    };
    const timer = setTimeout(() => {
      commit();
      void this.send();
    }, UNDO);
    conversation.hidden.add(key);
    this.#pending.set(key, commit);
    this.#changed(peer);
    return () => {
      conversation.hidden.delete(key);
      finish();
    };
  }

  /** End all delays now. Resolves when the server has answered. */
  async flush() {
    for (const commit of [...this.#pending.values()]) commit();
    await this.send();
  }

  /** Send the deletions whose delay is over. What fails is sent again with the next connection. */
  async send() {
    for (const [key, peer] of [...this.#unsent]) {
      const done = await this.#connection.attempt(() => this.#connection.ask(5, peer, key));
      if (!done || RETRYABLE.has(done.answer.reason)) return;
      this.#unsent.delete(key);
    }
    void this.#list.refresh();
  }
}
