/** The time by the server's clock: the device's own may be wrong by days. Knows no DOM. */

const NEAR = 5000; // milliseconds: a clock that differs by less is right
let offset = 0;

export function now() {
  return Date.now() + offset;
}

/** `time` is the server's time of this moment. */
export function synchronise(time) {
  offset = Math.abs(time - Date.now()) < NEAR ? 0 : time - Date.now();
}
