/** Stores conversations on the device, with a delay after each change. Does not use the DOM. */

const DELAY = 1000; // milliseconds

export class Keeper {
  #user;
  #storage;
  #changed = new Set();
  #timer = 0;
  #closed = false;

  constructor(user, storage) {
    this.#user = user;
    this.#storage = storage;
  }

  /** Resolves with the stored records, see `Conversation.record`. */
  load() {
    return this.#storage.history(this.#user).catch(() => []);
  }

  /** Store `conversation` after the delay. */
  keepSoon(conversation) {
    this.#changed.add(conversation);
    if (!this.#closed) this.#timer ||= setTimeout(() => this.save(), DELAY);
  }

  /** Store all changed conversations now. */
  save() {
    clearTimeout(this.#timer);
    this.#timer = 0;
    for (const conversation of this.#closed ? [] : this.#changed) {
      this.#storage.keep(this.#user, conversation.peer, conversation.record()).catch(() => {}); // the server has the messages
    }
    this.#changed.clear();
  }

  close() {
    this.#closed = true;
    clearTimeout(this.#timer);
  }
}
