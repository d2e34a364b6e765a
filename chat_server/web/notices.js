/** What reaches a person who looks elsewhere: the title, notifications, a sound, announcements, toasts. */
import { h, toasts } from "./dom.js";
import { plainText } from "./plain.js";
import { preferences } from "./preferences.js";
import { t } from "./texts.js";

const TOAST = 5000;
const TEXTS = 4; // in one notification
const ICON = new URL("icon-192.png", import.meta.url).href;
const noticed = new Map();
let audio = null;

/** Say it to who listens instead of looking. */
export function announce(text) {
  const announcer = document.querySelector("#announcer");
  announcer.append(h("p", {}, plainText(text)));
  while (announcer.children.length > 3) announcer.firstChild.remove();
}

export function title(unread) {
  document.title = unread ? `(${unread}) ${t.title}` : t.title;
}

/**
 * A notification of the system, if wanted and allowed. There is one for each `url`, which a click opens: it shows the
 * newest texts, and makes itself heard for each of them.
 */
export async function notify(name, text, url, open) {
  if (!preferences.notify || globalThis.Notification?.permission !== "granted") return;
  const texts = [...(noticed.get(url)?.texts ?? []), plainText(text).slice(0, 200)].slice(-TEXTS);
  const options = { body: texts.join("\n"), tag: url, renotify: true, data: url, icon: ICON };
  noticed.set(url, { texts });
  try {
    const notification = new Notification(name, options);
    notification.onclick = () => {
      window.focus();
      open();
    };
    noticed.set(url, { texts, notification });
  } catch {
    const worker = await navigator.serviceWorker?.getRegistration(); // telephones want it from there
    await worker?.showNotification(name, options);
  }
}

/** Take all notifications away: the user is here, or has logged out. */
export async function closeNotifications() {
  for (const { notification } of noticed.values()) notification?.close();
  noticed.clear();
  const worker = await navigator.serviceWorker?.getRegistration();
  for (const notification of (await worker?.getNotifications?.()) ?? []) notification.close();
}

/** Two soft notes, if wanted; a browser plays nothing before the page was touched. */
export function sound() {
  if (!preferences.sound || !navigator.userActivation?.hasBeenActive) return;
  audio ??= new AudioContext();
  [660, 880].forEach((frequency, index) => {
    const [note, volume] = [audio.createOscillator(), audio.createGain()];
    const start = audio.currentTime + index * 0.09;
    note.frequency.value = frequency;
    volume.gain.setValueAtTime(0, start);
    volume.gain.linearRampToValueAtTime(0.05, start + 0.015);
    volume.gain.exponentialRampToValueAtTime(0.0001, start + 0.2);
    note.connect(volume).connect(audio.destination);
    note.start(start);
    note.stop(start + 0.22);
  });
}

/** A line at the bottom that goes by itself; with what can be done about it. */
export function toast(text, label = "", action = null) {
  const close = () => {
    clearTimeout(timer);
    element.remove();
  };
  const act = () => {
    close();
    action();
  };
  const element = h("div", { class: "toast" }, h("span", {}, text), action && h("button", { type: "button", onclick: act }, label));
  const timer = setTimeout(close, TOAST);
  const home = [...document.querySelectorAll("dialog[open]")].at(-1) ?? document.body;
  if (toasts().parentNode !== home) home.append(toasts());
  toasts().append(element);
}
