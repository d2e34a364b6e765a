/** One socket, reopened whenever it is lost. Does not use the DOM. */

export const CONNECTED = 40003;
export const ALLOWED_AGAIN = 40021;
export const PRESENCE = 40027;
export const TYPING = 40025;
export const GROUP_CHANGED = 42011;
export const SESSION_ENDED = 4001;

/** The reasons of refusals for which a retry of the same request may succeed. */
export const RETRYABLE = new Set(["store_away", "too_many", "internal"]);
// Close codes after which a new connection would fail again: the session ended, or this client is at fault.
const PERMANENT = new Set([1003, 1007, 1008, 1009, SESSION_ENDED]);
const TYPING_REFUSED = 40024; // to `tell`, which waits for no answer
// Frames from System that answer no request.
const EVENTS = new Set([ALLOWED_AGAIN, PRESENCE, GROUP_CHANGED, TYPING_REFUSED]);
// Frames that belong to the answer of a request: history, conversations.
const PAGES = new Set([40005, 40023]);
const OPEN = 1;
const FIRST_DELAY = 500; // milliseconds, as below
const LONGEST_DELAY = 30_000;
const RETRY_ATTEMPT = 3; // the delay before the first retry of a request: that of this connection attempt, some seconds
const SILENCE = 15_000; // without any frame while a request is open: the connection is lost

/**
 * The delay before attempt `n` (from 0), in milliseconds. It doubles with each attempt, up to half a minute. Half of it
 * is random, so that not all clients reconnect to a restarted server at once.
 */
export function delay(n, random = Math.random) {
  const longest = Math.min(LONGEST_DELAY, FIRST_DELAY * 2 ** n);
  return longest / 2 + (random() * longest) / 2;
}

/** The socket was lost before the answer arrived. The server may have processed the request. */
export class ConnectionLost extends Error {}

/**
 * Handlers: `changed()` when `state` changes, `opened()` after the greeting of the server, `event(frame)` for a frame
 * that answers no request. `alive()` asks over HTTP whether the session exists, because a browser does not tell why an
 * upgrade was refused: false means that it does not, anything else that this is unknown.
 */
export class Connection {
  #url;
  #handlers;
  #options;
  #socket = null;
  #waiters = [];
  #requests = [];
  #attempts = 0;
  #timer = 0;
  #silenceTimer = 0;

  /** failed attempts to connect since it was last open */
  failures = 0;
  /** "closed", "connecting", "open", "waiting" (for the next attempt), "ended" (permanently: `code` is the close code, 0 after `close`) */
  state = "closed";
  code = 0;

  constructor(url, handlers, { WebSocket = globalThis.WebSocket, wait = delay, silence = SILENCE } = {}) {
    this.#url = url;
    this.#handlers = handlers;
    this.#options = { WebSocket, wait, silence };
  }

  /** Connect for the first time. */
  start() {
    if (this.state === "closed") this.#open();
  }

  /** Connect now, or soon if an attempt in progress fails. Call it when the network is back, or the user returns. */
  wake() {
    this.#attempts = 0;
    if (this.state === "waiting") this.#open();
  }

  /** Connect now, once started, and resolve once it is open. Rejects with ConnectionLost if this attempt fails. */
  opened() {
    this.wake();
    if (this.state === "open") return Promise.resolve();
    if (this.state === "ended") return Promise.reject(new ConnectionLost());
    return new Promise((resolve, reject) => this.#waiters.push({ resolve, reject }));
  }

  /** The browser reports that the network is down: do not wait for the socket to notice. */
  interrupt() {
    if (this.state === "open" || this.state === "connecting") void this.#lost(1006);
  }

  /** Close it permanently. */
  close() {
    this.#drop();
    this.#end(0);
  }

  /**
   * Send a request. Resolves with `{answer, frames}`: the server's answer, and the stored messages that precede it.
   * Rejects with ConnectionLost. Answers arrive in the order of the requests, so an answer belongs to the first one.
   */
  ask(op_type, to, content) {
    // A closing socket reports it later, and the browser logs an error if something is sent until then.
    if (this.state !== "open" || this.#socket.readyState > OPEN) return Promise.reject(new ConnectionLost());
    return new Promise((resolve, reject) => {
      this.#requests.push({ resolve, reject, frames: [] });
      this.#socket.send(JSON.stringify({ to, op_type, content }));
      this.#watchSilence();
    });
  }

  /** Send a request that has no answer, if the connection is open. */
  tell(op_type, to, content) {
    if (this.state !== "open" || this.#socket.readyState > OPEN) return;
    this.#socket.send(JSON.stringify({ to, op_type, content }));
  }

  /** Do work that needs the connection. Resolves with null if the connection is lost meanwhile. */
  async attempt(work) {
    try {
      return await work();
    } catch (error) {
      if (error instanceof ConnectionLost) return null;
      throw error;
    }
  }

  /** Wait as long as before connection attempt `n`. */
  pause(n) {
    return new Promise((resolve) => setTimeout(resolve, this.#options.wait(n)));
  }

  /** Call `ask` again, at growing intervals, while it resolves with a reason of RETRYABLE. Rejects with ConnectionLost. */
  async repeat(ask) {
    for (let retry = 0; RETRYABLE.has(await ask()); retry++) await this.pauseBeforeRetry(retry);
  }

  /** Wait before a request is repeated for the `retry`th time, from 0. Rejects with ConnectionLost after a loss. */
  async pauseBeforeRetry(retry = 0) {
    const socket = this.#socket;
    await this.pause(RETRY_ATTEMPT + retry);
    if (this.#socket !== socket) throw new ConnectionLost();
  }

  #open() {
    clearTimeout(this.#timer);
    this.#setState("connecting");
    const socket = new this.#options.WebSocket(this.#url);
    this.#socket = socket;
    socket.onmessage = (event) => this.#receive(JSON.parse(event.data));
    socket.onclose = (event) => this.#lost(event.code);
    this.#watchSilence();
  }

  #receive(frame) {
    this.#watchSilence();
    if (frame.from !== "System") {
      if (PAGES.has(frame.op_type)) this.#requests[0]?.frames.push(frame);
      else this.#handlers.event(frame);
    } else if (frame.op_type === CONNECTED) {
      this.#attempts = this.failures = 0;
      this.#setState("open");
      this.#handlers.opened();
    } else if (EVENTS.has(frame.op_type)) {
      this.#handlers.event(frame);
    } else {
      const request = this.#requests.shift();
      this.#watchSilence();
      request?.resolve({ answer: frame, frames: request.frames });
    }
  }

  /** Restart the timer that treats a silent server as disconnected while a request is open. */
  #watchSilence() {
    clearTimeout(this.#silenceTimer);
    if (this.state === "connecting" || this.#requests.length) {
      this.#silenceTimer = setTimeout(() => this.#lost(1006), this.#options.silence);
    }
  }

  async #lost(code) {
    const refused = this.state === "connecting";
    this.#drop();
    if (refused) this.failures += 1;
    if (PERMANENT.has(code)) return this.#end(code);
    this.#setState("waiting");
    this.#timer = setTimeout(() => this.#open(), this.#options.wait(this.#attempts++));
    if (refused && (await this.#handlers.alive()) === false && this.state === "waiting") this.#end(SESSION_ENDED);
  }

  #end(code) {
    clearTimeout(this.#timer);
    this.code = code;
    this.#setState("ended");
  }

  #drop() {
    clearTimeout(this.#silenceTimer);
    const [socket, requests] = [this.#socket, this.#requests];
    [this.#socket, this.#requests] = [null, []];
    if (socket) {
      socket.onmessage = socket.onclose = null;
      socket.close();
    }
    for (const request of requests) request.reject(new ConnectionLost());
  }

  #setState(state) {
    this.state = state;
    if (state !== "connecting") {
      for (const { resolve, reject } of this.#waiters.splice(0)) state === "open" ? resolve() : reject(new ConnectionLost());
    }
    this.#handlers.changed();
  }
}
