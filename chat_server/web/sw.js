/** Keeps the page and its files, so that it opens without a network and shows what waits to be sent. */

const CACHE = "page";
const PATIENCE = 3000;
const KEPT = { ignoreVary: true }; // what a request accepts does not matter for what is kept

self.addEventListener("install", (event) => event.waitUntil(renew().then(() => self.skipWaiting())));
self.addEventListener("activate", (event) => event.waitUntil(self.clients.claim()));

self.addEventListener("fetch", (event) => {
  const { pathname, origin } = new URL(event.request.url);
  if (origin !== location.origin || event.request.method !== "GET") return;
  if (event.request.mode === "navigate" && ["/", "/chat/test"].includes(pathname)) event.respondWith(page());
  else if (pathname.startsWith("/web/")) event.respondWith(kept(event.request));
});

self.addEventListener("notificationclick", (event) => {
  event.notification.close();
  event.waitUntil(show(event.notification.data));
});

/** The page as it is now; where that takes too long, as it was. */
async function page() {
  const old = await caches.match("/", KEPT);
  const now = renew();
  if (!old) return now;
  const late = new Promise((resolve) => setTimeout(resolve, PATIENCE, old));
  return Promise.race([now.catch(() => old), late]);
}

/** Fetch the page with all files that it names; only whole does it replace the old one. */
async function renew() {
  const response = await fetch("/");
  if (!response.ok) throw new Error(`the page: ${response.status}`);
  const cache = await caches.open(CACHE);
  const names = new Set((await response.clone().text()).match(/\/web\/[\w./-]+/g));
  await Promise.all([...names].map(async (name) => (await cache.match(name, KEPT)) ?? cache.add(name)));
  await cache.put("/", response.clone());
  for (const request of await cache.keys()) {
    const { pathname } = new URL(request.url);
    if (pathname !== "/" && !names.has(pathname)) await cache.delete(request);
  }
  return response;
}

async function kept(request) {
  return (await caches.match(request, KEPT)) ?? fetch(request);
}

async function show(url) {
  const [window] = await self.clients.matchAll({ type: "window" });
  if (!window) return self.clients.openWindow(url);
  window.postMessage(url);
  return window.focus();
}
