/** Entry point: shows the login or the conversations, depending on the session and the address. */
import { alive, block, blocked, members, unblock } from "./api.js";
import { Chat } from "./chat.js";
import { Login } from "./login.js";
import { apply, LOGGED_OUT, prefer, preferences, stored } from "./preferences.js";
import { Shell } from "./shell.js";
import { openStorage } from "./storage.js";

const root = document.querySelector("#app");
const LONGEST_NAME = 128; // of a user, in UTF-16 code units
const { maxText, maxFrame, registration } = document.documentElement.dataset;
let storage;
let chat = null;
let user = null; // the user who was last logged in on this page

/** The user and peer in the address: /chat/test?uid=1&to_uid=2 */
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
  const blocking = { block, unblock, blocked };
  chat = new Chat(user, { url, storage, alive: () => alive(name), limits, blocking, members });
  const shell = new Shell(chat, { storage, limits, leave, asked });
  await shell.load();
  root.replaceChildren(shell.element);
  void shell.start();
}

/** Show the login. After a logout, the user's data is erased; if the session `ended` otherwise, it stays stored. */
function leave(ended) {
  chat?.close();
  chat = null;
  prefer("user", ended ? null : LOGGED_OUT);
  if (ended) return showLogin({ user, ended });
  history.replaceState(null, "", "/");
  showLogin({});
  if (user) void storage.erase(user).catch(() => {}); // without a database, nothing is stored
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

// Another window has logged in or out. If the session ended otherwise, the connection of this window notices it.
addEventListener("storage", ({ key, newValue }) => {
  if (key !== "user" || newValue === null || newValue !== stored("user")) return; // it may come late
  if (newValue === LOGGED_OUT) leave(false);
  else if (newValue !== chat?.me) location.reload();
});

// After a logout, the browser's Back leads to addresses that contain names: remove them.
addEventListener("popstate", () => chat ?? history.replaceState(null, "", "/"));

if ("serviceWorker" in navigator) {
  const policy = globalThis.trustedTypes?.createPolicy("worker", { createScriptURL: () => "/sw.js" });
  void navigator.serviceWorker.register(policy?.createScriptURL("") ?? "/sw.js").catch(() => {}); // works without a service worker
}

await start();
