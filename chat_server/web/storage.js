/**
 * What must survive a reload, a crash and days offline: messages not yet acknowledged, and drafts. Knows no DOM.
 *
 * A message is `{id, user, to, text, at, why}`: `at` orders a user's messages, `why` is null or the reason for which
 * it was refused.
 */

/** A store in IndexedDB; where the browser has none for us (a private window), one in memory. */
export async function openStorage(name = "chat") {
  try {
    return new Stored(await opened(name));
  } catch {
    return new Remembered();
  }
}

class Stored {
  #database;

  constructor(database) {
    this.#database = database;
  }

  /** The messages of `user` that wait, in their order. */
  async outbox(user) {
    const all = await this.#do("outbox", "readonly", (store) => store.getAll());
    return all.filter((message) => message.user === user).sort((one, other) => one.at - other.at);
  }

  put(message) {
    return this.#do("outbox", "readwrite", (store) => store.put(message));
  }

  drop(id) {
    return this.#do("outbox", "readwrite", (store) => store.delete(id));
  }

  /** What `user` has begun to write, by whom it is for. */
  async drafts(user) {
    const all = await this.#do("drafts", "readonly", (store) => store.getAll());
    return new Map(all.filter((draft) => draft.user === user).map((draft) => [draft.to, draft.text]));
  }

  draft(user, to, text) {
    return this.#do("drafts", "readwrite", (store) => (text ? store.put({ user, to, text }) : store.delete([user, to])));
  }

  #do(name, mode, work) {
    return new Promise((resolve, reject) => {
      const transaction = this.#database.transaction(name, mode);
      const request = work(transaction.objectStore(name));
      transaction.oncomplete = () => resolve(request.result);
      transaction.onabort = () => reject(transaction.error);
    });
  }
}

/** The same, for as long as the page lives. */
export class Remembered {
  #outbox = new Map();
  #drafts = new Map();

  async outbox(user) {
    const all = [...this.#outbox.values()].map((message) => ({ ...message }));
    return all.filter((message) => message.user === user).sort((one, other) => one.at - other.at);
  }

  async put(message) {
    this.#outbox.set(message.id, { ...message });
  }

  async drop(id) {
    this.#outbox.delete(id);
  }

  async drafts(user) {
    return new Map(this.#drafts.get(user));
  }

  async draft(user, to, text) {
    const drafts = this.#drafts.get(user) ?? new Map();
    if (text) drafts.set(to, text);
    else drafts.delete(to);
    this.#drafts.set(user, drafts);
  }
}

function opened(name) {
  return new Promise((resolve, reject) => {
    const request = indexedDB.open(name, 1);
    request.onupgradeneeded = () => {
      request.result.createObjectStore("outbox", { keyPath: "id" });
      request.result.createObjectStore("drafts", { keyPath: ["user", "to"] });
    };
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}
