/** What this browser remembers of the person's choices, and who is logged in (the session itself is out of reach). */
import { choose, preferred } from "./texts.js";

const read = (name) => {
  try {
    return localStorage.getItem(name);
  } catch {
    return null; // storage is blocked: nothing is remembered
  }
};

const write = (name, value) => {
  try {
    if (value === null) localStorage.removeItem(name);
    else localStorage.setItem(name, value);
  } catch {
    // as above
  }
};

/** In place of a user: logged out on purpose, in this window or another. */
export const LOGGED_OUT = "";

export const preferences = {
  user: read("user"),
  language: read("language") ?? preferred(),
  scheme: read("scheme") ?? "auto",
  sound: read("sound") === "on",
  notify: read("notify") === "on",
};

/** Change one and keep it. */
export function prefer(name, value) {
  preferences[name] = value;
  write(name, typeof value === "boolean" ? (value ? "on" : "off") : value);
  apply();
}

/** Let the document look as preferred. */
export function apply() {
  choose(preferences.language);
  document.documentElement.dataset.scheme = preferences.scheme;
}
