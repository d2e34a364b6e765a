/** The messages of a user that are not acknowledged yet, in memory and on the device. Does not use the DOM. */
import { now } from "./clock.js";

export class Outbox {
  #user;
  #storage;
  #messages = new Map();
  #newest = 0;
  #closed = false;

  constructor(user, storage) {
    this.#user = user;
    this.#storage = storage;
  }

  get(id) {
    return this.#messages.get(id);
  }

  all() {
    return [...this.#messages.values()];
  }

  /** The messages to `peer`, in order. */
  to(peer) {
    return this.all().filter((message) => message.to === peer);
  }

  /** Load the stored messages that `wanted` accepts. Resolves with those that are new here. */
  async load(wanted) {
    const stored = await this.#storage.outbox(this.#user).catch(() => []);
    const fresh = stored.filter((message) => !this.#messages.has(message.id) && wanted(message));
    for (const message of fresh) {
      this.#newest = Math.max(this.#newest, message.at);
      this.#messages.set(message.id, message);
    }
    return fresh;
  }

  /** Add a new message in memory; `keep` stores it. */
  add(to, text) {
    this.#newest = Math.max(now(), this.#newest + 1);
    const message = { id: newId(), user: this.#user, to, text, at: this.#newest, why: null };
    this.#messages.set(message.id, message);
    return message;
  }

  /** Store a message, unless it was dropped. */
  async keep(message) {
    if (!this.#closed && this.#messages.has(message.id)) await this.#storage.put(message).catch(() => {}); // a full disk does not prevent sending
  }

  async drop({ id }) {
    this.#messages.delete(id);
    await this.#storage.drop(id).catch(() => {});
  }

  /** Store nothing from now on. */
  close() {
    this.#closed = true;
  }
}

/** 128 random bits. crypto.randomUUID needs TLS. */
function newId() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}
