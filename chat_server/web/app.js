/** Where it begins: who is logged in, what the address asks for, which view is shown. */
import { alive } from "./api.js";
import { Chat } from "./chat.js";
import { Login } from "./login.js";
import { apply, prefer, preferences } from "./preferences.js";
import { Shell } from "./shell.js";
import { openStorage } from "./storage.js";

const root = document.querySelector("#app");
const { maxText, maxFrame, registration } = document.documentElement.dataset;
let storage;
let chat = null;

/** What the address asks for: /chat/test?uid=1&to_uid=2 */
function asked() {
  const query = new URLSearchParams(location.search);
  const name = (key) => query.get(key)?.normalize("NFC") || null;
  return { user: name("uid"), peer: name("to_uid") };
}

async function enter(user) {
  prefer("user", user);
  const url = new URL("/chat/test", location.href);
  url.protocol = url.protocol.replace("http", "ws");
  url.search = new URLSearchParams({ uid: user, sync: "1" });
  const limits = { text: Number(maxText), frame: Number(maxFrame) };
  chat = new Chat(user, { url, storage, alive: () => alive(user), limits });
  const shell = new Shell(chat, { storage, limits, leave });
  await shell.load();
  root.replaceChildren(shell.element);
  void shell.start(asked().peer);
}

/** Show the login: `ended` says that the session ended by itself, so the same person may come back. */
function leave(ended = false) {
  const user = ended ? chat.me : (chat ? null : asked().user);
  chat?.connection.close();
  chat = null;
  if (preferences.user && (ended || !user)) prefer("user", null);
  if (!ended && !user) history.replaceState(null, "", "/");
  const login = new Login({ user, ended, open: registration === "open", enter });
  root.replaceChildren(login.element);
  login.focus();
}

async function start() {
  apply();
  storage = await openStorage();
  const { user } = asked();
  if (preferences.user && (!user || user === preferences.user)) await enter(preferences.user);
  else leave();
}

// Another window has logged in as somebody, or out.
addEventListener("storage", (event) => {
  if (event.key === "user" && event.newValue !== (chat?.me ?? null)) location.reload();
});

if ("serviceWorker" in navigator) {
  const policy = globalThis.trustedTypes?.createPolicy("worker", { createScriptURL: () => "/sw.js" });
  void navigator.serviceWorker.register(policy?.createScriptURL("") ?? "/sw.js").catch(() => {}); // then without one
}

await start();
