/**
 * What must survive a reload, a crash and days offline: messages that are not acknowledged yet, drafts, and the newest
 * messages of each conversation. Knows no DOM.
 *
 * A message that is not acknowledged is `{id, user, to, text, at, why}`: `at` orders a user's messages, `why` is null
 * or the reason for which it was refused.
 */

const KEYS = { outbox: ["id"], drafts: ["user", "to"], history: ["user", "peer"] };
const VERSION = 2;
const CONVERSATIONS = 200; // of one user, the newest, are kept
const LIMIT = 2000; // milliseconds: a browser's database may never answer

/** A storage in IndexedDB; in memory if the browser has no database (a private window), or one that does not answer. */
export async function openStorage(name = "chat") {
  return new Storage(await openDatabase(name).catch(() => new Memory()));
}

/** `tables`: where the records are kept, a `Database` or a `Memory`. */
export class Storage {
  #tables;

  constructor(tables = new Memory()) {
    this.#tables = tables;
  }

  /** The messages of `user` that wait, in their order. */
  async outbox(user) {
    return (await this.#of("outbox", user)).sort((one, other) => one.at - other.at);
  }

  put(message) {
    return this.#tables.put("outbox", message);
  }

  drop(id) {
    return this.#tables.delete("outbox", [id]);
  }

  /** The drafts of `user`: texts by receiver. */
  async drafts(user) {
    return new Map((await this.#of("drafts", user)).map((draft) => [draft.to, draft.text]));
  }

  draft(user, to, text) {
    return text ? this.#tables.put("drafts", { user, to, text }) : this.#tables.delete("drafts", [user, to]);
  }

  /** What `keep` was given of the conversations of `user`. The oldest ones are dropped if there are many. */
  async history(user) {
    const records = (await this.#of("history", user)).sort((one, other) => other.last.time - one.last.time);
    for (const { peer } of records.splice(CONVERSATIONS)) await this.keep(user, peer, null);
    return records;
  }

  /** Keep `record` of the conversation with `peer`, null for nothing; see `Conversation.record`. */
  keep(user, peer, record) {
    if (!record) return this.#tables.delete("history", [user, peer]);
    return this.#tables.put("history", { ...record, user, peer });
  }

  /** Delete everything of `user`. */
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

/** Tables for as long as the page lives. */
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

/** The same tables in IndexedDB. */
class Database {
  #database;

  constructor(database) {
    this.#database = database;
    database.onversionchange = () => database.close(); // another window has a newer page
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
    return within(LIMIT, (resolve, reject) => {
      const transaction = this.#database.transaction(table, mode);
      const request = work(transaction.objectStore(table));
      transaction.oncomplete = () => resolve(request.result);
      transaction.onabort = () => reject(transaction.error);
    });
  }
}

function openDatabase(name) {
  return within(LIMIT, (resolve, reject) => {
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

/** A promise that is rejected after `limit` milliseconds. */
function within(limit, executor) {
  return new Promise((resolve, reject) => {
    setTimeout(() => reject(new Error("no answer")), limit);
    executor(resolve, reject);
  });
}
