/** Keeps conversations in the storage: each a moment after it changed. Knows no DOM. */

const SOON = 1000;

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

  /** What was kept, see `Conversation.record`. */
  recall() {
    return this.#storage.history(this.#user).catch(() => []);
  }

  /** Keep `conversation`, in a moment. */
  soon(conversation) {
    this.#changed.add(conversation);
    if (!this.#closed) this.#timer ||= setTimeout(() => this.save(), SOON);
  }

  /** Keep now what has changed. */
  save() {
    clearTimeout(this.#timer);
    this.#timer = 0;
    for (const conversation of this.#closed ? [] : this.#changed) {
      this.#storage.keep(this.#user, conversation.peer, conversation.record()).catch(() => {}); // the server has it
    }
    this.#changed.clear();
  }

  close() {
    this.#closed = true;
    clearTimeout(this.#timer);
  }
}
