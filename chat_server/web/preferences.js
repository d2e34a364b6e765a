/** The user's preferences in this browser, and the name of the user who is logged in. Scripts cannot read the session. */
import { choose, preferred } from "./texts.js";

/** The stored text of a preference, which another window may have changed; null if there is none. */
export function stored(name) {
  try {
    return localStorage.getItem(name);
  } catch {
    return null; // the browser blocks storage: nothing is stored
  }
}

const write = (name, value) => {
  try {
    if (value === null) localStorage.removeItem(name);
    else localStorage.setItem(name, value);
  } catch {
    // as above
  }
};

/** The value of `user` after a logout in this or another window. */
export const LOGGED_OUT = "";

export const preferences = {
  user: stored("user"),
  language: stored("language") ?? preferred(),
  scheme: stored("scheme") ?? "auto",
  sound: stored("sound") === "on",
  notify: stored("notify") === "on",
};

/** Change and store a preference. */
export function prefer(name, value) {
  preferences[name] = value;
  write(name, typeof value === "boolean" ? (value ? "on" : "off") : value);
  apply();
}

/** Apply language and colour scheme to the document. */
export function apply() {
  choose(preferences.language);
  document.documentElement.dataset.scheme = preferences.scheme;
}
