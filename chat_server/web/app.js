/** The start: finds out who is logged in and what the address asks for, and shows the login or the conversations. */
import { alive } from "./api.js";
import { Chat } from "./chat.js";
import { Login } from "./login.js";
import { apply, LOGGED_OUT, prefer, preferences } from "./preferences.js";
import { Shell } from "./shell.js";
import { openStorage } from "./storage.js";

const root = document.querySelector("#app");
const LONGEST_NAME = 128; // of a user, in UTF-16 code units
const { maxText, maxFrame, registration } = document.documentElement.dataset;
let storage;
let chat = null;
let user = null; // the last user that was logged in here

/** What the address asks for: /chat/test?uid=1&to_uid=2 */
function asked() {
  const query = new URLSearchParams(location.search);
  const name = (key) => {
    const given = (query.get(key) ?? "").slice(0, LONGEST_NAME + 1).normalize("NFC");
    return given.length > LONGEST_NAME ? null : given || null;
  };
  return { user: name("uid"), peer: name("to_uid") };
}

async function enter(name) {
  user = name;
  prefer("user", user);
  const url = new URL("/chat/test", location.href);
  url.protocol = url.protocol.replace("http", "ws");
  url.search = new URLSearchParams({ uid: user, sync: "1" });
  const limits = { text: Number(maxText), frame: Number(maxFrame) };
  chat = new Chat(user, { url, storage, alive: () => alive(name), limits });
  const shell = new Shell(chat, { storage, limits, leave, asked });
  await shell.load();
  root.replaceChildren(shell.element);
  void shell.start();
}

/** Go to the login. If the session `ended` by itself, what is unsent waits for the user; a logout erases it. */
function leave(ended) {
  chat?.close();
  chat = null;
  prefer("user", ended ? null : LOGGED_OUT);
  if (ended) return showLogin({ user, ended });
  history.replaceState(null, "", "/");
  showLogin({});
  if (user) void storage.erase(user).catch(() => {}); // without a database there is nothing to erase
}

function showLogin(options) {
  const login = new Login({ ...options, open: registration === "open", enter });
  root.replaceChildren(login.element);
  login.focus();
}

async function start() {
  apply();
  storage = await openStorage();
  const { user: wanted } = asked();
  const me = preferences.user;
  const goOn = () => {
    history.replaceState(null, "", "/");
    return enter(me);
  };
  if (me && wanted && wanted !== me) showLogin({ user: wanted, me, goOn });
  else if (me) await enter(me);
  else showLogin({ user: wanted });
}

// Another window has logged in or out. If a session ended by itself, this window's own connection tells it.
addEventListener("storage", ({ key, newValue }) => {
  if (key !== "user" || newValue === null) return;
  if (newValue === LOGGED_OUT) leave(false);
  else if (newValue !== chat?.me) location.reload();
});

// After a logout the browser's Back leads to addresses with names in them.
addEventListener("popstate", () => chat ?? history.replaceState(null, "", "/"));

if ("serviceWorker" in navigator) {
  const policy = globalThis.trustedTypes?.createPolicy("worker", { createScriptURL: () => "/sw.js" });
  void navigator.serviceWorker.register(policy?.createScriptURL("") ?? "/sw.js").catch(() => {}); // then without one
}

await start();
