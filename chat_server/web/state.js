/** The state of the user's own messages. Does not use the DOM. */
import { LIMIT } from "./chat.js";
import { reason, t } from "./texts.js";

/** "failed", "waiting", "sent" or "read". Broadcasts (without an id) are never "read". */
export function stateOf({ id, why, waiting, read }) {
  if (why && why !== LIMIT) return "failed";
  if (waiting) return "waiting";
  return read && id ? "read" : "sent";
}

export function stateText(message) {
  const state = stateOf(message);
  return state === "failed" ? t.notSent(reason(message.why)) : t.states[state];
}
