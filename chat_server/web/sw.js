/** The service worker: caches the page and its files, so that the page opens without a network. */

const CACHE = "page";
const TIMEOUT = 3000; // milliseconds until the cached page is shown
const MATCH = { ignoreVary: true }; // the cached files do not depend on the headers of a request

self.addEventListener("install", (event) => event.waitUntil(update().then(() => self.skipWaiting())));
self.addEventListener("activate", (event) => event.waitUntil(self.clients.claim()));

self.addEventListener("fetch", (event) => {
  const { pathname, origin } = new URL(event.request.url);
  if (origin !== location.origin || event.request.method !== "GET") return;
  if (event.request.mode === "navigate" && ["/", "/chat/test"].includes(pathname)) event.respondWith(page());
  else if (pathname.startsWith("/web/")) event.respondWith(cached(event.request));
});

self.addEventListener("notificationclick", (event) => {
  event.notification.close();
  event.waitUntil(show(event.notification.data));
});

/** The current page, or the cached page if the network fails or takes too long. */
async function page() {
  const old = await caches.match("/", MATCH);
  const now = update();
  if (!old) return now;
  const late = new Promise((resolve) => setTimeout(resolve, TIMEOUT, old));
  return Promise.race([now.catch(() => old), late]);
}

/** Fetch the page and all its files. Replace the cached page only after all of them have arrived. */
async function update() {
  const response = await fetch("/");
  if (!response.ok) throw new Error(`the page: ${response.status}`);
  const cache = await caches.open(CACHE);
  const names = new Set((await response.clone().text()).match(/\/web\/[\w./-]+/g));
  await Promise.all([...names].map(async (name) => (await cache.match(name, MATCH)) ?? cache.add(name)));
  await cache.put("/", response.clone());
  for (const request of await cache.keys()) {
    const { pathname } = new URL(request.url);
    if (pathname !== "/" && !names.has(pathname)) await cache.delete(request);
  }
  return response;
}

async function cached(request) {
  return (await caches.match(request, MATCH)) ?? fetch(request);
}

async function show(url) {
  const [window] = await self.clients.matchAll({ type: "window" });
  if (!window) return self.clients.openWindow(url);
  window.postMessage(url);
  return window.focus();
}
