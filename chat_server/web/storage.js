/**
 * Data that survives a reload, a crash and days offline: unacknowledged messages, drafts, and the newest messages of
 * each conversation. Does not use the DOM.
 *
 * An unacknowledged message is `{id, user, to, text, at, why}`: `at` orders the messages of a user, `why` is null or
 * the reason why the server refused it.
 */

const KEYS = { outbox: ["id"], drafts: ["user", "to"], history: ["user", "peer"] };
const VERSION = 2;
const MAX_CONVERSATIONS = 200; // of one user
const TIMEOUT = 2000; // milliseconds: the database of a browser may never answer

/** Open a storage in IndexedDB, or in memory if IndexedDB is missing (a private window) or does not answer. */
export async function openStorage(name = "chat") {
  return new Storage(await openDatabase(name).catch(() => new Memory()));
}

/** `tables`: a `Database` or a `Memory`. */
export class Storage {
  #tables;

  constructor(tables = new Memory()) {
    this.#tables = tables;
  }

  /** The unacknowledged messages of `user`, in order. */
  async outbox(user) {
    return (await this.#of("outbox", user)).sort((one, other) => one.at - other.at);
  }

  put(message) {
    return this.#tables.put("outbox", message);
  }

  drop(id) {
    return this.#tables.delete("outbox", [id]);
  }

  /** The drafts of `user`: a map from receiver to text. */
  async drafts(user) {
    return new Map((await this.#of("drafts", user)).map((draft) => [draft.to, draft.text]));
  }

  draft(user, to, text) {
    return text ? this.#tables.put("drafts", { user, to, text }) : this.#tables.delete("drafts", [user, to]);
  }

  /** The records of the conversations of `user`, newest first. Deletes the oldest ones beyond the bound. */
  async history(user) {
    const records = (await this.#of("history", user)).sort((one, other) => other.last.time - one.last.time);
    for (const { peer } of records.splice(MAX_CONVERSATIONS)) await this.keep(user, peer, null);
    return records;
  }

  /** Store the record of the conversation with `peer` (see `Conversation.record`); null deletes it. */
  keep(user, peer, record) {
    if (!record) return this.#tables.delete("history", [user, peer]);
    return this.#tables.put("history", { ...record, user, peer });
  }

  /** Delete all data of `user`. */
  async erase(user) {
    const deletions = Object.entries(KEYS).map(async ([table, keys]) => {
      const records = await this.#of(table, user);
      await Promise.all(records.map((record) => this.#tables.delete(table, keys.map((key) => record[key]))));
    });
    await Promise.all(deletions);
  }

  async #of(table, user) {
    return (await this.#tables.all(table)).filter((record) => record.user === user);
  }
}

/** Tables in memory, until the page is closed. */
class Memory {
  #tables = Object.fromEntries(Object.keys(KEYS).map((table) => [table, new Map()]));

  async all(table) {
    return [...this.#tables[table].values()].map((record) => ({ ...record }));
  }

  async put(table, record) {
    this.#tables[table].set(JSON.stringify(KEYS[table].map((key) => record[key])), { ...record });
  }

  async delete(table, key) {
    this.#tables[table].delete(JSON.stringify(key));
  }
}

/** Tables in IndexedDB. */
class Database {
  #database;

  constructor(database) {
    this.#database = database;
    database.onversionchange = () => database.close(); // a newer version of the page runs in another window
  }

  all(table) {
    return this.#do(table, "readonly", (store) => store.getAll());
  }

  put(table, record) {
    return this.#do(table, "readwrite", (store) => store.put(record));
  }

  delete(table, key) {
    return this.#do(table, "readwrite", (store) => store.delete(key.length > 1 ? key : key[0]));
  }

  #do(table, mode, work) {
    return within(TIMEOUT, (resolve, reject) => {
      const transaction = this.#database.transaction(table, mode);
      const request = work(transaction.objectStore(table));
      if (mode === "readwrite") transaction.commit?.(); // now: a page that closes aborts what it would commit later
      transaction.oncomplete = () => resolve(request.result);
      transaction.onabort = () => reject(transaction.error);
    });
  }
}

function openDatabase(name) {
  return within(TIMEOUT, (resolve, reject) => {
    const request = indexedDB.open(name, VERSION);
    request.onupgradeneeded = () => {
      for (const [table, keys] of Object.entries(KEYS)) {
        if (request.result.objectStoreNames.contains(table)) continue;
        request.result.createObjectStore(table, { keyPath: keys.length > 1 ? keys : keys[0] });
      }
    };
    request.onsuccess = () => resolve(new Database(request.result));
    request.onerror = () => reject(request.error);
  });
}

/** A promise that rejects after `timeout` milliseconds. */
function within(timeout, executor) {
  return new Promise((resolve, reject) => {
    setTimeout(() => reject(new Error("no answer")), timeout);
    executor(resolve, reject);
  });
}
