/** Who is typing (op 8): sent for this user, and received from others (docs/clients.md, Receiving). Does not use the DOM. */

const TYPING = 8;
const REPEAT = 3000; // milliseconds between two `1` while the user writes
const PAUSE = 5000; // without a change of the text: the user has stopped
const SHOWN = 6000; // without another `1`: another user has stopped

export class Typing {
  #connection;
  #changed;
  #times;
  #typing = new Map(); // peer -> name of a user who is typing there -> the timer that ends it
  #written = null; // the conversation in which this user is typing
  #sent = 0; // when the last `1` was sent
  #timer = 0;

  /** `changed(peer)`: called when another user starts or stops. `times`: replaces the times above in tests. */
  constructor(connection, changed, times = {}) {
    this.#connection = connection;
    this.#changed = changed;
    this.#times = { repeat: REPEAT, pause: PAUSE, shown: SHOWN, ...times };
  }

  /** The users who are typing in a conversation. */
  names(peer) {
    return [...(this.#typing.get(peer)?.keys() ?? [])];
  }

  /** A frame of the user `name` has arrived: `1` or `0`, or a message, which ends it too. */
  receive(peer, name, content) {
    const timers = this.#typing.get(peer) ?? new Map();
    const typing = content === "1";
    if (!typing && !timers.has(name)) return;
    clearTimeout(timers.get(name));
    if (typing) timers.set(name, setTimeout(() => this.receive(peer, name, "0"), this.#times.shown));
    else timers.delete(name);
    this.#typing.set(peer, timers);
    this.#changed(peer);
  }

  /** The user has changed the text to `peer`. */
  wrote(peer, text) {
    if (this.#written && (this.#written !== peer || !text)) this.stop();
    if (!text) return;
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.stop(), this.#times.pause);
    if (this.#written && performance.now() < this.#sent + this.#times.repeat) return;
    this.#written = peer;
    this.#sent = performance.now();
    this.#connection.tell(TYPING, peer, "1");
  }

  /** The user has stopped writing. */
  stop() {
    if (this.#written) this.#connection.tell(TYPING, this.#written, "0");
    this.sent();
  }

  /** The user has sent the text: the message tells that the user has stopped. */
  sent() {
    clearTimeout(this.#timer);
    this.#written = null;
  }

  /** The connection is lost: nothing is known any more. */
  forget() {
    this.sent();
    for (const peer of this.#typing.keys()) for (const name of this.names(peer)) this.receive(peer, name, "0");
  }
}
