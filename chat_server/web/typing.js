/** Who is typing (op 8): sent for this user, and received from peers (docs/clients.md, Receiving). Does not use the DOM. */

const TYPING = 8;
const REPEAT = 3000; // milliseconds between two `1` while the user writes
const PAUSE = 5000; // without a change of the text: the user has stopped
const SHOWN = 6000; // without another `1`: a peer has stopped

export class Typing {
  #connection;
  #changed;
  #times;
  #peers = new Map(); // peers who are typing, with the timer that ends it
  #written = null; // the peer to whom this user is typing
  #sent = 0; // when the last `1` was sent
  #timer = 0;

  /** `changed(peer)`: called when a peer starts or stops. `times`: replaces the times above in tests. */
  constructor(connection, changed, times = {}) {
    this.#connection = connection;
    this.#changed = changed;
    this.#times = { repeat: REPEAT, pause: PAUSE, shown: SHOWN, ...times };
  }

  /** Whether `peer` is typing. */
  has(peer) {
    return this.#peers.has(peer);
  }

  /** A frame of `peer` has arrived: `1` or `0`, or a message, which ends it too. */
  receive(peer, content) {
    const typing = content === "1";
    if (!typing && !this.has(peer)) return;
    clearTimeout(this.#peers.get(peer));
    if (typing) this.#peers.set(peer, setTimeout(() => this.receive(peer, "0"), this.#times.shown));
    else this.#peers.delete(peer);
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
    for (const peer of [...this.#peers.keys()]) this.receive(peer, "0");
  }
}
