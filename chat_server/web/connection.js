/**
 * One socket at a time, opened again whenever it is lost. Knows no DOM.
 */

export const CONNECTED = 40003;
export const ALLOWED_AGAIN = 40021;
export const PRESENCE = 40027;
export const SESSION_ENDED = 4001;

// To come back after one of these would not help: the session ended, or this client is at fault.
const FOR_GOOD = new Set([1003, 1007, 1008, 1009, SESSION_ENDED]);
// Frames from System that answer no request.
const EVENTS = new Set([ALLOWED_AGAIN, PRESENCE]);
// What stored messages come as: history, conversations.
const PAGES = new Set([40005, 40023]);
const OPEN = 1;
const FIRST = 500;
const LONGEST = 30_000;
const SILENCE = 15_000;

/**
 * How long to wait before attempt `n` (from 0), in milliseconds: twice as long each time, up to half a minute.
 * Half of it is random, so that the clients of a server that was restarted do not all come at once.
 */
export function delay(n, random = Math.random) {
  const longest = Math.min(LONGEST, FIRST * 2 ** n);
  return longest / 2 + (random() * longest) / 2;
}

/** The socket was lost before the answer came: whether the request was carried out is not known. */
export class Lost extends Error {}

/**
 * Calls back: `changed()` when `state` changes, `ready()` when the server has greeted, `heard(frame)` for what is
 * no answer. `alive()` asks over HTTP whether the session still is: false says that it is not, anything else that
 * this is not known; a browser does not say why an upgrade was refused.
 */
export class Connection {
  #url;
  #handlers;
  #options;
  #socket = null;
  #awaited = [];
  #asked = [];
  #attempts = 0;
  #timer = 0;
  #silence = 0;

  /** how many attempts to connect have failed since it was last open */
  failures = 0;
  /** "closed", "connecting", "open", "waiting" (for the next attempt), "ended" (for good; `code` says why, 0 after `close`) */
  state = "closed";
  code = 0;

  constructor(url, handlers, { WebSocket = globalThis.WebSocket, wait = delay, silence = SILENCE } = {}) {
    this.#url = url;
    this.#handlers = handlers;
    this.#options = { WebSocket, wait, silence };
  }

  /** Connect now, unless it is connected or ended: when the network is back, or somebody looks. */
  wake() {
    if (this.state === "closed" || this.state === "waiting") this.#open();
  }

  /** Resolves once it is open, with an attempt made now if none is under way; rejects with Lost if that one fails. */
  opened() {
    this.wake();
    if (this.state === "open") return Promise.resolve();
    if (this.state === "ended") return Promise.reject(new Lost());
    return new Promise((resolve, reject) => this.#awaited.push({ resolve, reject }));
  }

  /** The network is gone, whatever the socket says. */
  interrupt() {
    if (this.state === "open" || this.state === "connecting") void this.#lost(1006);
  }

  /** End it for good. */
  close() {
    this.#drop();
    this.#end(0);
  }

  /**
   * Send a request. Resolves with `{answer, frames}`: the server's answer, and the stored messages that came before
   * it. Rejects with Lost. Answers come in the order of the requests, so the first one waiting is the one answered.
   */
  ask(op_type, to, content) {
    // A socket that is closing tells it a moment later; the browser complains of what is sent meanwhile.
    if (this.state !== "open" || this.#socket.readyState > OPEN) return Promise.reject(new Lost());
    return new Promise((resolve, reject) => {
      this.#asked.push({ resolve, reject, frames: [] });
      this.#socket.send(JSON.stringify({ to, op_type, content }));
      this.#listen();
    });
  }

  #open() {
    clearTimeout(this.#timer);
    this.#become("connecting");
    const socket = new this.#options.WebSocket(this.#url);
    this.#socket = socket;
    socket.onmessage = (event) => this.#receive(JSON.parse(event.data));
    socket.onclose = (event) => this.#lost(event.code);
    this.#listen();
  }

  #receive(frame) {
    this.#listen();
    if (frame.from !== "System") {
      if (PAGES.has(frame.op_type)) this.#asked[0]?.frames.push(frame);
      else this.#handlers.heard(frame);
    } else if (frame.op_type === CONNECTED) {
      this.#attempts = this.failures = 0;
      this.#become("open");
      this.#handlers.ready();
    } else if (EVENTS.has(frame.op_type)) {
      this.#handlers.heard(frame);
    } else {
      const request = this.#asked.shift();
      this.#listen();
      request?.resolve({ answer: frame, frames: request.frames });
    }
  }

  /** Who has asked and hears nothing at all has lost the network, whatever the socket says. */
  #listen() {
    clearTimeout(this.#silence);
    if (this.state === "connecting" || this.#asked.length) {
      this.#silence = setTimeout(() => this.#lost(1006), this.#options.silence);
    }
  }

  async #lost(code) {
    const refused = this.state === "connecting";
    this.#drop();
    if (refused) this.failures += 1;
    if (FOR_GOOD.has(code)) return this.#end(code);
    this.#become("waiting");
    this.#timer = setTimeout(() => this.#open(), this.#options.wait(this.#attempts++));
    if (refused && (await this.#handlers.alive()) === false && this.state === "waiting") this.#end(SESSION_ENDED);
  }

  #end(code) {
    clearTimeout(this.#timer);
    this.code = code;
    this.#become("ended");
  }

  #drop() {
    clearTimeout(this.#silence);
    const [socket, asked] = [this.#socket, this.#asked];
    [this.#socket, this.#asked] = [null, []];
    if (socket) {
      socket.onmessage = socket.onclose = null;
      socket.close();
    }
    for (const request of asked) request.reject(new Lost());
  }

  #become(state) {
    this.state = state;
    if (state !== "connecting") {
      for (const { resolve, reject } of this.#awaited.splice(0)) state === "open" ? resolve() : reject(new Lost());
    }
    this.#handlers.changed();
  }
}
