/** The messages of a user that are not acknowledged yet, here and in the storage. Knows no DOM. */
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

  /** Those to `peer`, in their order. */
  to(peer) {
    return this.all().filter((message) => message.to === peer);
  }

  /** Take up those in the storage for which `wanted(message)` holds. Returns them. */
  async load(wanted) {
    const stored = await this.#storage.outbox(this.#user).catch(() => []);
    const fresh = stored.filter((message) => !this.#messages.has(message.id) && wanted(message));
    for (const message of fresh) {
      this.#newest = Math.max(this.#newest, message.at);
      this.#messages.set(message.id, message);
    }
    return fresh;
  }

  /** A new message; `keep` puts it into the storage too. */
  add(to, text) {
    this.#newest = Math.max(now(), this.#newest + 1);
    const message = { id: newId(), user: this.#user, to, text, at: this.#newest, why: null };
    this.#messages.set(message.id, message);
    return message;
  }

  async keep(message) {
    if (!this.#closed) await this.#storage.put(message).catch(() => {}); // a full disk must not keep it from being sent
  }

  async drop({ id }) {
    this.#messages.delete(id);
    await this.#storage.drop(id).catch(() => {});
  }

  /** Put nothing into the storage from now on. */
  close() {
    this.#closed = true;
  }
}

/** 128 random bits. crypto.randomUUID would want TLS. */
function newId() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}
