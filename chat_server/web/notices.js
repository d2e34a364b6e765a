/** The page title, notifications, sound, announcements for screen readers, and toasts. */
import { h, toasts } from "./dom.js";
import { plainText } from "./plain.js";
import { preferences } from "./preferences.js";
import { t } from "./texts.js";

const TOAST_TIME = 5000; // milliseconds
const MAX_TEXTS = 4; // in one notification
const ICON = new URL("icon-192.png", import.meta.url).href;
const noticed = new Map();
let audio = null;

/** Announce a text to screen readers. */
export function announce(text) {
  const announcer = document.querySelector("#announcer");
  announcer.append(h("p", {}, plainText(text)));
  while (announcer.children.length > 3) announcer.firstChild.remove();
}

export function title(unread) {
  document.title = unread ? `(${unread}) ${t.title}` : t.title;
}

/**
 * Show a system notification, if the user wants and the browser allows it. Each `url` has one notification, which
 * shows the newest texts, alerts again for each text, and opens `url` on a click.
 */
export async function notify(name, text, url, open) {
  if (!preferences.notify || globalThis.Notification?.permission !== "granted") return;
  const texts = [...(noticed.get(url)?.texts ?? []), plainText(text).slice(0, 200)].slice(-MAX_TEXTS);
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
    const worker = await navigator.serviceWorker?.getRegistration(); // phones allow notifications only from a service worker
    await worker?.showNotification(name, options);
  }
}

/** Close all notifications: the user looks at the page, or has logged out. */
export async function closeNotifications() {
  for (const { notification } of noticed.values()) notification?.close();
  noticed.clear();
  const worker = await navigator.serviceWorker?.getRegistration();
  for (const notification of (await worker?.getNotifications?.()) ?? []) notification.close();
}

/** Play two soft notes, if the user wants them. A browser plays nothing before the first click or key. */
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

/** Show a line at the bottom for some seconds, with an optional action. */
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
  const timer = setTimeout(close, TOAST_TIME);
  const home = [...document.querySelectorAll("dialog[open]")].at(-1) ?? document.body;
  if (toasts().parentNode !== home) home.append(toasts());
  toasts().append(element);
}
