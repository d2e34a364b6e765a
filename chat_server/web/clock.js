/** The server's time: the clock of the device may be wrong by days. Does not use the DOM. */

const TOLERANCE = 5000; // milliseconds: a smaller difference is ignored
let offset = 0;

export function now() {
  return Date.now() + offset;
}

/** Set the clock; `time` is the current time of the server. */
export function synchronise(time) {
  offset = Math.abs(time - Date.now()) < TOLERANCE ? 0 : time - Date.now();
}
