/** The client module against a scripted server. Run: node --test tests/browser/chat.test.mjs */
import assert from "node:assert/strict";
import { test } from "node:test";
import { Chat, EVERYBODY } from "../../chat_server/web/chat.js";
import { delay } from "../../chat_server/web/connection.js";
import { Conversation } from "../../chat_server/web/conversation.js";
import { Storage } from "../../chat_server/web/storage.js";

/** A socket whose server is the test: it records what the client sends, and delivers frames. */
class Socket {
  static all = [];
  sent = [];

  constructor(url) {
    this.url = url;
    Socket.all.push(this);
  }
  send(text) {
    this.sent.push(JSON.parse(text));
  }
  close() {}
  async says(...frames) {
    for (const frame of frames) this.onmessage?.({ data: JSON.stringify({ from: "System", content: "", ...frame }) });
    await settled();
  }
  async breaks(code = 1006) {
    this.onclose?.({ code });
    await settled();
  }
  /** The contents of the requests with this op. */
  of(op) {
    return this.sent.filter((frame) => frame.op_type === op).map((frame) => frame.content);
  }
}

// Several turns of the event loop, however slow the machine is.
const settled = async () => {
  for (let turn = 0; turn < 5; turn++) await new Promise((resolve) => setTimeout(resolve, 1));
};
const greeting = { op_type: 40003 };
const page = (...ids) => [
  ...ids.map((id, index) => ({ from: "2", to: "1", op_type: 40005, id, time: index + 1, content: `${id}\n${id}`, read: true })),
  { op_type: 40005, content: String(ids.length) },
];
const live = (id, time) => ({ from: "2", to: "1", op_type: 40011, id, time, content: `${id}\n${id}` });
const ids = (chat) => chat.conversation("2").messages.map((message) => message.id);
const noConversations = { op_type: 40023, content: "0" };

async function begun(t, options = {}) {
  Socket.all = [];
  const storage = options.storage ?? new Storage();
  const chat = new Chat("1", { url: "ws://x", storage, alive: async () => null, WebSocket: Socket, wait: () => 1, ...options });
  t.after(() => chat.close());
  await chat.start();
  return { chat, storage, socket: () => Socket.all.at(-1) };
}

/** A client that is connected to a server without conversations. */
async function connected(t, options) {
  const client = await begun(t, options);
  await client.socket().says(greeting);
  await client.socket().says(noConversations);
  return client;
}

test("delays grow with jitter up to half a minute", () => {
  for (const [n, longest] of [[0, 500], [1, 1000], [5, 16_000], [6, 30_000], [100, 30_000]]) {
    assert.equal(delay(n, () => 0), longest / 2);
    assert.equal(delay(n, () => 1), longest);
  }
});

test("a lost connection is reopened; a greeting resets the delay", async (t) => {
  const waits = [];
  const { socket } = await connected(t, { wait: (n) => (waits.push(n), 1) });
  for (let attempt = 0; attempt < 3; attempt++) await socket().breaks();
  await socket().says(greeting);
  await socket().breaks();
  assert.deepEqual(waits, [0, 1, 2, 0]);
});

test("the return of the network shortens the delay after an attempt in progress", async (t) => {
  const waits = [];
  const { chat, socket } = await connected(t, { wait: (n) => (waits.push(n), 1) });
  for (let attempt = 0; attempt < 3; attempt++) await socket().breaks();
  assert.equal(chat.connection.state, "connecting");
  chat.connection.wake();
  assert.equal(Socket.all.length, 4);
  await socket().breaks();
  assert.deepEqual(waits, [0, 1, 2, 0]);
});

test("it connects only once the stored messages are restored", async (t) => {
  Socket.all = [];
  const chat = new Chat("1", { url: "ws://x", storage: new Storage(), alive: async () => null, WebSocket: Socket, wait: () => 1 });
  t.after(() => chat.close());
  chat.connection.wake();
  void chat.refusal("2");
  await settled();
  assert.equal(Socket.all.length, 0);
  await chat.start();
  assert.equal(Socket.all.length, 1);
});

for (const code of [1003, 1007, 1008, 1009, 4001]) {
  test(`after ${code} it does not come back`, async (t) => {
    const { chat, socket } = await connected(t);
    await socket().breaks(code);
    assert.deepEqual([chat.connection.state, chat.connection.code, Socket.all.length], ["ended", code, 1]);
  });
}

test("a refused upgrade of an ended session ends the client", async (t) => {
  const { chat, socket } = await begun(t, { alive: async () => false });
  await socket().breaks();
  assert.deepEqual([chat.connection.state, chat.connection.code], ["ended", 4001]);
});

test("a silent server counts as disconnected", async (t) => {
  const { chat } = await connected(t, { silence: 10 });
  await chat.send("2", "hello");
  await new Promise((resolve) => setTimeout(resolve, 40));
  assert.ok(Socket.all.length > 1);
});

test("an unacknowledged message is sent again with its id", async (t) => {
  const { chat, storage, socket } = await connected(t);
  const sending = chat.send("2", "hello");
  await settled();
  const [first] = socket().of(1);
  await socket().breaks();
  await sending;
  await socket().says(greeting);
  assert.deepEqual(socket().of(1), [first]);
  await socket().says({ op_type: 40018, id: first.split("\n")[0], time: 7 });
  assert.deepEqual([chat.waiting("2"), await storage.outbox("1")], [[], []]);
});

test("stored unsent messages are sent together in order", async (t) => {
  const storage = new Storage();
  for (const at of [2, 1]) await storage.put({ id: `m${at}`, user: "1", to: "2", text: `t${at}`, at, why: null });
  await storage.put({ id: "other", user: "another", to: "2", text: "not ours", at: 0, why: null });
  const { socket } = await begun(t, { storage });
  await socket().says(greeting);
  assert.deepEqual(socket().of(1), ["m1\nt1", "m2\nt2"]);
});

test("a temporarily refused message is not overtaken", async (t) => {
  const { chat, socket } = await connected(t);
  void chat.send("2", "one");
  await settled();
  void chat.send("2", "two");
  await settled();
  await socket().says({ op_type: 40008, reason: "store_away" });
  const texts = () => socket().of(1).map((content) => content.split("\n")[1]);
  assert.deepEqual(texts(), ["one", "one", "two"]);
});

test("messages that wait for an answer are sent together", async (t) => {
  const { chat, socket } = await connected(t);
  void chat.send("2", "t0");
  await settled();
  for (let number = 1; number < 40; number++) void chat.send("2", `t${number}`);
  await settled();
  const texts = () => socket().of(1).map((content) => content.split("\n")[1]);
  assert.deepEqual(texts(), ["t0"]);
  await socket().says({ op_type: 40018, time: 7 });
  assert.deepEqual(texts(), Array.from({ length: 33 }, (_, number) => `t${number}`));
  await socket().says(...Array.from({ length: 32 }, (_, number) => ({ op_type: 40018, time: 8 + number })));
  assert.equal(texts().length, 40);
});

test("only the refused messages of a batch are sent again", async (t) => {
  const { chat, socket } = await begun(t);
  for (const text of ["one", "two", "three"]) void chat.send("2", text);
  await settled();
  await socket().says(greeting);
  const texts = () => socket().of(1).map((content) => content.split("\n")[1]);
  assert.deepEqual(texts(), ["one", "two", "three"]);
  await socket().says({ op_type: 40018, time: 7 }, { op_type: 40008, reason: "store_away" }, { op_type: 40018, time: 8 });
  assert.deepEqual(texts(), ["one", "two", "three", "two"]);
});

test("nothing is sent on a socket that is closing", async (t) => {
  const { chat, socket } = await connected(t);
  socket().readyState = 2;
  await chat.send("2", "hello");
  assert.deepEqual(socket().of(1), []);
  await socket().breaks();
  await socket().says(greeting);
  assert.equal(socket().of(1).length, 1);
});

test("stored messages are shown at once and completed later", async (t) => {
  const storage = new Storage();
  const first = await connected(t, { storage });
  void first.chat.open("2");
  await first.socket().says(...page("a", "b", "c"));
  await first.chat.flush();
  first.chat.close();
  const { chat, socket } = await begun(t, { storage });
  const shown = () => chat.conversation("2").messages.map((message) => message.id);
  assert.deepEqual([shown(), chat.list().map((one) => one.peer)], [["a", "b", "c"], ["2"]]);
  void chat.open("2");
  await socket().says(greeting);
  await socket().says(noConversations, ...page("d"));
  assert.deepEqual(socket().of(2), ["+200@<c", "-200"]);
  await socket().says(...page("a", "c", "d"));
  assert.deepEqual(shown(), ["a", "c", "d"]);
});

test("the stored part has no gap and the newest message", async (t) => {
  const storage = new Storage();
  const first = await connected(t, { storage });
  void first.chat.open("2");
  await first.socket().says(...page("a", "b"));
  await first.chat.flush();
  first.chat.close();
  const { chat, socket } = await connected(t, { storage });
  await socket().says(live("y", 8), live("z", 9));
  await chat.flush();
  const [{ messages, last }] = await storage.history("1");
  assert.deepEqual([messages.map((message) => message.id), last.id], [["a", "b"], "z"]);
});

test("stored conversations are bounded and belong to one user", async (t) => {
  const storage = new Storage();
  const conversation = new Conversation("2");
  conversation.synced = true;
  conversation.add(Array.from({ length: 300 }, (_, time) => ({ key: `<${time}`, time, text: "x".repeat(1000) })));
  assert.equal(conversation.record().messages.length, 50);
  await storage.keep("another", "2", conversation.record());
  for (let peer = 0; peer < 210; peer++) await storage.keep("1", `p${peer}`, { ...conversation.record(), last: { key: "<x", time: peer } });
  const { chat } = await begun(t, { storage });
  assert.deepEqual([chat.list().length, (await storage.history("1")).length], [200, 200]);
  assert.equal(chat.conversation("2").messages.length, 0);
});

test("a search extends the list within a bound", async (t) => {
  const { chat, socket } = await connected(t);
  const list = (from, count) => [
    ...Array.from({ length: count }, (_, n) => ({ from: `p${from + n}`, to: "1", op_type: 40023, id: "a", time: 9999 - from - n, content: "a\na" })),
    { op_type: 40023, content: String(count) },
  ];
  void chat.refresh();
  await settled();
  await socket().says(...list(0, 50));
  void chat.listFurther();
  await settled();
  for (let from = 0; from < 1000; from += 200) await socket().says(...list(from, 200));
  assert.deepEqual(socket().of(7).slice(2), ["-200", "-200@p199", "-200@p399", "-200@p599", "-200@p799"]);
  assert.deepEqual([chat.list().length, chat.more], [1000, true]);
});

test("a refused message stays with its reason until discarded", async (t) => {
  const { chat, storage, socket } = await connected(t);
  void chat.send("2", "hello");
  await settled();
  await socket().says({ op_type: 40008, reason: "no_such_user" });
  const [{ id }] = await storage.outbox("1");
  assert.equal(chat.waiting("2")[0].why, "no_such_user");
  await chat.discard(id);
  assert.deepEqual([chat.waiting("2"), await storage.outbox("1")], [[], []]);
});

test("messages over the contact limit are sent after the answer", async (t) => {
  const { chat, socket } = await connected(t);
  void chat.send("2", "hello");
  await settled();
  await socket().says({ op_type: 40020, reason: "refused_by_limit", content: "2" });
  assert.equal(chat.conversation("2").refused, true);
  await socket().says({ op_type: 40021, content: "2" });
  assert.equal(socket().of(1).length, 2);
  assert.equal(chat.conversation("2").refused, false);
});

test("an unsent broadcast is sent after connecting", async (t) => {
  const { chat, socket } = await begun(t);
  await chat.send(EVERYBODY, "hello");
  assert.equal(chat.waiting(EVERYBODY)[0].why, null);
  await socket().says(greeting);
  assert.deepEqual(socket().of(6), ["hello"]);
});

test("a search for a user waits for the connection", async (t) => {
  const { chat, socket } = await begun(t);
  const asked = chat.refusal("2");
  await socket().says(greeting);
  await socket().says(...page("a"), noConversations);
  assert.equal(await asked, null);
});

test("the server is unreachable only after a failed attempt", async (t) => {
  const { chat, socket } = await begun(t, { wait: () => 60_000 });
  const asked = chat.refusal("2");
  await socket().breaks();
  await socket().breaks();
  assert.deepEqual([await asked, Socket.all.length], ["unreachable", 2]);
});

test("a request on a dead connection is repeated on a new one", async (t) => {
  const { chat, socket } = await connected(t, { wait: () => 60_000 });
  const asked = chat.refusal("2");
  await settled();
  await socket().breaks();
  await socket().says(greeting);
  await socket().says(...page("a"), noConversations);
  assert.deepEqual([await asked, Socket.all.length], [null, 2]);
});

test("an unavailable store is not an unknown user", async (t) => {
  const { chat, socket } = await connected(t);
  const asked = chat.refusal("2");
  await settled();
  await socket().says({ op_type: 40006, reason: "store_away" });
  assert.equal(await asked, "store_away");
});

test("a store that is away hides no shown message, and the pages are read again", async (t) => {
  const { chat, socket } = await connected(t);
  void chat.open("2");
  await socket().says(...page("a", "b"));
  await socket().breaks();
  await socket().says(greeting);
  const away = { op_type: 40006, reason: "store_away" };
  await socket().says(away, away); // to the list, and to the page after the newest message
  assert.deepEqual(ids(chat), ["a", "b"]);
  await socket().says(noConversations, ...page("a", "b", "c").slice(2), ...page("a", "b", "c"));
  assert.deepEqual([ids(chat), chat.listed, chat.conversation("2").why], [["a", "b", "c"], true, null]);
});

test("a page is not repeated on another connection", async (t) => {
  const { chat, socket } = await connected(t, { wait: () => 20 });
  void chat.open("2");
  await settled();
  await socket().says({ op_type: 40006, reason: "store_away" });
  await socket().breaks();
  chat.connection.wake();
  await socket().says(greeting);
  await new Promise((resolve) => setTimeout(resolve, 60));
  assert.equal(socket().of(2).length, 1);
});

test("read marks without a connection are sent later", async (t) => {
  const { chat, socket } = await connected(t);
  await socket().breaks();
  await chat.read("2", ["<a", "<b"]);
  await socket().says(greeting);
  assert.deepEqual(socket().of(4), ["<a\n<b"]);
});

test("older messages are requested once, after connecting", async (t) => {
  const { chat, socket } = await connected(t, { wait: () => 3000 });
  const ids = Array.from({ length: 50 }, (_, index) => `m${index}`);
  void chat.open("2");
  await socket().says(...page(...ids));
  chat.addEventListener("change", () => void chat.older("2")); // as the page does while its top is looked at
  const olds = () => socket().of(2).filter((content) => content.startsWith("-100@"));
  void chat.older("2");
  await settled();
  await socket().says({ op_type: 40006, reason: "store_away" });
  assert.equal(olds().length, 1);
  await socket().breaks();
  let changes = 0;
  chat.addEventListener("change", () => changes++);
  await settled();
  assert.ok(changes < 10);
});

test("a broadcast is never retried automatically", async (t) => {
  const { chat, socket } = await connected(t);
  void chat.send(EVERYBODY, "hello");
  await settled();
  await socket().breaks();
  await socket().says(greeting);
  assert.deepEqual(socket().of(6), []);
  const [{ id, why }] = chat.waiting(EVERYBODY);
  assert.equal(why, "lost");
  await socket().says(noConversations);
  void chat.retry(id);
  await settled();
  assert.deepEqual(socket().of(6), ["hello"]);
});

test("after a loss, missed messages are read before shown ones", async (t) => {
  const { chat, socket } = await connected(t);
  void chat.open("2");
  await socket().says(...page("a", "b", "c"));
  await socket().breaks();
  await socket().says(greeting);
  await socket().says(noConversations);
  assert.deepEqual(socket().of(2), ["+200@<c"]);
  await socket().says(...page("c", "d"));
  assert.deepEqual(socket().of(2), ["+200@<c", "-200"]);
  await socket().says(...page("a", "c", "d"));
  assert.deepEqual(chat.conversation("2").messages.map((message) => message.id), ["a", "c", "d"]);
});

test("an older page is inserted above an equal time", async (t) => {
  const { chat, socket } = await connected(t);
  void chat.open("2");
  const batch = Array.from({ length: 52 }, (_, number) => `m${number}`);
  const at = (time, some) => page(...some).map((frame) => ({ ...frame, time }));
  await socket().says(...at(7, batch.slice(2)));
  void chat.older("2");
  await socket().says(...at(7, batch.slice(0, 2)));
  assert.deepEqual(ids(chat), batch);
});

test("a placeholder stays in place among equal times", async (t) => {
  const { chat, socket } = await connected(t);
  void chat.open("2");
  await socket().says(...page("a", "b", "c").map((frame) => ({ ...frame, time: 7 })));
  await socket().says({ from: "2", to: "1", op_type: 40013, content: ">b" });
  assert.deepEqual(chat.conversation("2").messages.map(({ id, gone }) => [id, Boolean(gone)]), [["a", false], ["b", true], ["c", false]]);
});

test("own messages in a new conversation hide no gap", async (t) => {
  const { chat, socket } = await connected(t);
  void chat.open("2");
  await socket().says(...page());
  void chat.send("2", "mine");
  await settled();
  await socket().says({ op_type: 40018, id: socket().of(1)[0].split("\n")[0], time: 0 });
  await socket().breaks();
  await socket().says(greeting);
  await socket().says(noConversations);
  const newest = Array.from({ length: 50 }, (_, number) => `m${number}`);
  await socket().says(...page(...newest));
  assert.deepEqual([ids(chat), chat.conversation("2").complete], [newest, false]);
  void chat.older("2");
  assert.deepEqual(socket().of(2), ["-50", "-100@<m0"]);
});

test("a live message between the first pages is kept", async (t) => {
  const { chat, socket } = await begun(t);
  await socket().says(greeting);
  const last = { from: "2", to: "1", id: "m99", time: 100, content: "m99\nm99" };
  await socket().says({ ...last, op_type: 40023, unread: 100, online: true }, { op_type: 40023, content: "1" });
  void chat.open("2");
  await settled();
  const all = Array.from({ length: 100 }, (_, number) => `m${number}`);
  const frames = page(...all).map((frame) => ({ ...frame, read: false }));
  await socket().says(...frames.slice(50, 100), { op_type: 40005, content: "50" }, live("z", 200));
  assert.deepEqual(socket().of(2), ["-50", "-200@<m50"]);
  await socket().says(...frames.slice(0, 50), { op_type: 40005, content: "50" });
  assert.deepEqual(ids(chat), [...all, "z"]);
});

test("a live message is detached until the gap is closed", async (t) => {
  const { chat, socket } = await connected(t);
  void chat.open("2");
  await socket().says(...page("a"));
  const apart = () => [...chat.conversation("2").detached];
  const reconnect = async () => {
    await socket().breaks();
    await socket().says(greeting);
  };
  await reconnect();
  await socket().says(noConversations, live("y", 8));
  assert.deepEqual([ids(chat), apart()], [["a", "y"], ["<y"]]);
  await reconnect(); // what came between y and z is missing, too
  await socket().says(noConversations, live("z", 9));
  assert.deepEqual([ids(chat), apart()], [["a", "z"], ["<z"]]);
  const missed = page("a", "x", "y", "between", "z").map((frame, index) => ({ ...frame, time: 5 + index }));
  await socket().says(...missed.slice(1, 5), { op_type: 40005, content: "4" });
  await socket().says(...missed.slice(0, 5), { op_type: 40005, content: "5" });
  assert.deepEqual([ids(chat), apart()], [["a", "x", "y", "between", "z"], []]);
});

test("marks behind a page that is under way do not take its answer", async (t) => {
  const { chat, socket } = await connected(t);
  void chat.open("2");
  await socket().says(...page("a"));
  await socket().breaks();
  await socket().says(greeting);
  await socket().says(noConversations, live("z", 9));
  void chat.read("2", ["<z"]);
  void chat.read("2", ["<a"]);
  const last = { ...page("z")[0], time: 9 };
  await socket().says(...page("x", "y").slice(0, 2), last, { op_type: 40005, content: "3" });
  await socket().says({ op_type: 40007 }, { op_type: 40007 });
  assert.deepEqual(socket().sent.slice(1).map(({ op_type, content }) => [op_type, content]), [[2, "+200@<a"], [4, "<z"], [4, "<a"], [2, "-200"]]);
  await socket().says(...page("a", "x", "y").slice(0, 3), last, { op_type: 40005, content: "4" });
  assert.deepEqual(ids(chat), ["a", "x", "y", "z"]);
});

test("a live message moves the cursor only after the page", async (t) => {
  const { chat, socket } = await connected(t);
  void chat.open("2");
  await socket().says(...page("a"));
  await socket().breaks();
  await socket().says(greeting);
  await socket().says(noConversations, { from: "2", to: "1", op_type: 40011, id: "z", time: 9, content: "z\nz" });
  await socket().breaks();
  await socket().says(greeting);
  await socket().says(noConversations);
  assert.deepEqual(socket().of(2), ["+200@<a"]);
});

test("a message that arrives twice is shown once", async (t) => {
  const { chat, socket } = await connected(t);
  void chat.open("2");
  const live = { from: "2", to: "1", op_type: 40011, id: "b", time: 5, content: "b\nb" };
  await socket().says(live, ...page("a", "b"), live);
  assert.deepEqual(chat.conversation("2").messages.map((message) => message.id), ["a", "b"]);
});

test("a message that the list has first is counted once", async (t) => {
  const { chat, socket } = await connected(t);
  void chat.open("2");
  await socket().says(...page("a"));
  const arrived = [];
  chat.addEventListener("message", (event) => arrived.push(event.message.id));
  void chat.refresh();
  await settled();
  const message = { from: "2", to: "1", id: "z", time: 9, content: "z\nz" };
  const live = { ...message, op_type: 40011 };
  await socket().says({ ...message, op_type: 40023, unread: 1, online: true }, { op_type: 40023, content: "1" });
  await socket().says(live, live);
  const conversation = chat.conversation("2");
  assert.deepEqual(conversation.messages.map((one) => one.id), ["a", "z"]);
  assert.deepEqual([conversation.unread, arrived], [1, ["z"]]);
});

test("a message that arrives during the list is newer than the list", async (t) => {
  const { chat, socket } = await begun(t);
  await socket().says(greeting);
  const [row, end] = listed(true);
  const other = { ...live("x", 99), from: "3" };
  await socket().says(live("z", 10), other, { ...row, unread: 2 }, end);
  const shown = () => chat.list().map(({ peer, last, unread }) => [peer, last.id, unread]);
  assert.deepEqual(shown(), [["3", "x", 1], ["2", "z", 3]]);
  void chat.refresh();
  await socket().says({ ...row, id: "z", time: 10, unread: 3 }, { ...row, ...other, op_type: 40023, unread: 1 }, end);
  assert.deepEqual(shown(), [["3", "x", 1], ["2", "z", 3]]);
});

for (const [by, mark] of [
  ["this device", (chat) => void chat.read("2", ["<a"])],
  ["another device", (chat, socket) => socket().says({ from: "1", to: "2", op_type: 40007, content: "a" })],
]) {
  test(`after a mark by ${by}, the list is read again`, async (t) => {
    const { chat, socket } = await connected(t);
    const row = { from: "2", to: "1", id: "a", time: 9, content: "a\na", op_type: 40023, online: true };
    const end = { op_type: 40023, content: "1" };
    const refreshed = chat.refresh();
    await settled();
    await mark(chat, socket);
    await socket().says({ ...row, unread: 1 }, end);
    await refreshed;
    if (socket().of(4).length) await socket().says({ op_type: 40007 });
    await socket().says({ ...row, unread: 0 }, end);
    assert.deepEqual([chat.conversation("2").unread, socket().of(7).length], [0, 3]);
  });
}

test("a message that arrives while all are being marked as read stays unread", async (t) => {
  const { chat, socket } = await connected(t);
  void chat.open("2");
  await socket().says(...page());
  await socket().says(live("a", 1));
  void chat.readAll("2");
  await socket().says(live("b", 2), { op_type: 40007 });
  assert.deepEqual([chat.conversation("2").unread, socket().of(4)], [1, ["<a"]]);
});

test("a page in progress does not bring deleted messages back", async (t) => {
  const { chat, socket } = await connected(t);
  void chat.open("2");
  await socket().says({ from: "2", to: "1", op_type: 40013, content: ">b\n<x" }, ...page("a", "b"));
  assert.deepEqual(chat.conversation("2").messages.map((message) => message.id), ["a"]);
});

test("messages are ordered by time, then as in the page", () => {
  const conversation = new Conversation("2");
  const message = (key, time) => ({ key, time, read: false });
  conversation.add([message("<b", 2), message("<d", 4)]);
  conversation.add([message("<a", 1), message("<c", 2)]);
  assert.deepEqual(conversation.messages.map(({ key }) => key), ["<a", "<b", "<c", "<d"]);
  conversation.add([message("<c", 2), message("<b", 2)]);
  assert.deepEqual(conversation.messages.map(({ key }) => key), ["<a", "<c", "<b", "<d"]);
});

test("a text that the server refuses is not sent", () => {
  const chat = new Chat("1", { url: "", storage: null, alive: null, limits: { text: 10, frame: 400 } });
  assert.equal(chat.problem(" \n"), "empty");
  assert.equal(chat.problem("0123456789"), null);
  assert.equal(chat.problem("文字文字"), "too_long");
  assert.equal(chat.problem("\u0001".repeat(10)), "too_long"); // six bytes each in the frame
});

const listed = (online) => [{ ...live("a", 9), op_type: 40023, unread: 0, online }, { op_type: 40023, content: "1" }];

test("presence is pushed and answers no request", async (t) => {
  const { chat, socket } = await begun(t);
  await socket().says(greeting);
  await socket().says(...listed(false));
  void chat.send("2", "hello");
  await settled();
  await socket().says({ op_type: 40027, content: "+2\n+stranger" });
  assert.deepEqual([chat.online("2"), chat.conversations.has("stranger"), chat.waiting("2").length], [true, false, 1]);
  await socket().says({ op_type: 40027, content: "-2" });
  assert.equal(chat.online("2"), false);
});

test("presence that arrives during the list is newer than the list", async (t) => {
  const { chat, socket } = await begun(t);
  await socket().says(greeting);
  const [row, end] = listed(true);
  await socket().says(row, { op_type: 40027, content: "-2" }, end);
  assert.equal(chat.online("2"), false);
  void chat.refresh();
  await socket().says(row, end);
  assert.equal(chat.online("2"), true);
});

test("presence is unknown from a loss until the next list", async (t) => {
  const { chat, socket } = await begun(t);
  await socket().says(greeting);
  await socket().says(...listed(true));
  assert.equal(chat.online("2"), true);
  await socket().breaks();
  assert.equal(chat.online("2"), null);
  await socket().says(greeting);
  assert.equal(chat.online("2"), null);
  await socket().says(...listed(true));
  assert.equal(chat.online("2"), true);
});

test("an acknowledgement shows online, never offline", async (t) => {
  const { chat, socket } = await begun(t);
  await socket().says(greeting);
  await socket().says(...listed(false));
  for (const [op_type, online] of [[40018, true], [40019, true]]) {
    void chat.send("2", "hello");
    await settled();
    await socket().says({ op_type, id: socket().of(1).at(-1).split("\n")[0], time: 10 });
    assert.equal(chat.online("2"), online);
  }
});

test("unread messages beyond the bound are counted again", async (t) => {
  const { chat, socket } = await begun(t);
  await socket().says(greeting);
  const [row, end] = listed(true);
  await socket().says({ ...row, unread: 1000 }, end);
  const keys = Array.from({ length: 600 }, (_, n) => `<m${n}`);
  const readAll = async () => {
    void chat.read("2", keys);
    for (let request = 0; request < 3; request++) await socket().says({ op_type: 40007 });
  };
  await readAll();
  assert.deepEqual([chat.conversation("2").unread, socket().of(7).length], [400, 2]);
  await socket().says({ ...row, unread: 900 }, end);
  await readAll();
  assert.equal(socket().of(7).length, 2);
});

const typing = (content) => ({ from: "2", to: "1", op_type: 40025, content });

test("a peer who is typing is shown until a 0, a message or a silence", async (t) => {
  const { chat, socket } = await connected(t, { times: { shown: 500 } });
  void socket().says(typing("1"));
  assert.deepEqual(chat.typing.names("2"), ["2"]);
  await socket().says(typing("0"));
  assert.deepEqual(chat.typing.names("2"), []);
  await socket().says(typing("1"), live("a", 1));
  assert.deepEqual(chat.typing.names("2"), []);
  await socket().says(typing("1"));
  await new Promise((resolve) => setTimeout(resolve, 600));
  assert.deepEqual(chat.typing.names("2"), []);
});

test("typing is sent once in a while, and its end once", async (t) => {
  const { chat, socket } = await connected(t, { times: { repeat: 30, pause: 60 } });
  for (const text of ["h", "he", "hel"]) chat.typing.wrote("2", text);
  assert.deepEqual(socket().of(8), ["1"]);
  chat.typing.wrote("2", "");
  chat.typing.wrote("2", "");
  assert.deepEqual(socket().of(8), ["1", "0"]);
  chat.typing.wrote("2", "a");
  await new Promise((resolve) => setTimeout(resolve, 90));
  assert.deepEqual(socket().of(8), ["1", "0", "1", "0"]);
  chat.typing.wrote("2", "b");
  chat.typing.wrote("3", "c");
  assert.deepEqual(socket().of(8), ["1", "0", "1", "0", "1", "0", "1"]);
});

test("a refused op 8 answers no other request", async (t) => {
  const { chat, socket } = await connected(t);
  chat.typing.wrote("unknown", "a");
  void chat.send("2", "hello");
  await settled();
  await socket().says({ op_type: 40024, reason: "no_such_user", content: "no" });
  assert.deepEqual(chat.waiting("2").map((message) => message.why), [null]);
  await socket().says({ op_type: 40018, time: 7 });
  assert.deepEqual(chat.waiting("2"), []);
});

test("blocked users are read at each connection, and a late list does not undo a change", async (t) => {
  const answers = [];
  const blocking = {
    blocked: () => new Promise((resolve) => answers.push(resolve)),
    block: async () => ({ ok: true }),
    unblock: async () => ({ ok: false, reason: "store_away" }),
  };
  const { chat } = await connected(t, { blocking });
  answers.shift()({ ok: true, data: ["2"] });
  await settled();
  assert.deepEqual(chat.blocked.names, ["2"]);
  void chat.blocked.load();
  await chat.blocked.change("3", true);
  answers.shift()({ ok: true, data: ["2"] });
  await settled();
  assert.deepEqual(chat.blocked.names, ["2", "3"]);
  assert.equal((await chat.blocked.change("2", false)).reason, "store_away");
  assert.equal(chat.blocked.has("2"), true);
});

const posted = (id, time, from = "2") => ({ from, to: "#g", op_type: 40011, id, time, content: `${id}\n${id}` });
const groupPage = (...frames) => [
  ...frames.map((frame) => ({ ...frame, op_type: 40005, read: false })),
  { op_type: 40005, content: String(frames.length) },
];
const changed = (...lines) => ({ op_type: 42011, to: "#g", content: lines.join("\n") });
const keys = (chat) => chat.conversation("#g").messages.map((message) => message.key);

/** A client with an open group and these messages. */
async function inGroup(t, frames, options) {
  const client = await connected(t, options);
  void client.chat.open("#g");
  await settled();
  await client.socket().says(...groupPage(...frames));
  return client;
}

test("messages of a group differ by sender and id", async (t) => {
  const { chat, socket } = await inGroup(t, [posted("a", 1), posted("a", 2, "3")]);
  await socket().says(posted("a", 3, "1"), posted("a", 2, "3"), posted("b", 4, "3"));
  assert.deepEqual(keys(chat), ["a/2", "a/3", "a/1", "b/3"]);
  assert.deepEqual(chat.list().map((one) => one.peer), ["#g"]);
  await socket().breaks();
  await socket().says(greeting);
  await socket().says(noConversations);
  assert.deepEqual(socket().of(2), ["+200@b/3"]);
});

test("a group's unread messages are marked by the newest seen", async (t) => {
  const { chat, socket } = await inGroup(t, [posted("a", 1), posted("b", 2, "3"), posted("c", 3)]);
  chat.conversation("#g").unread = 3;
  void chat.read("#g", ["a/2", "b/3"]);
  await settled();
  assert.deepEqual([socket().of(4), chat.conversation("#g").unread], [["b/3"], 1]);
  await socket().says({ op_type: 40007 }, { from: "1", to: "#g", op_type: 40007, content: "c/2" });
  assert.equal(chat.conversation("#g").unread, 0);
});

test("a read position that is not on the page is counted by the server", async (t) => {
  const { chat, socket } = await connected(t);
  await socket().says({ from: "1", to: "#g", op_type: 40007, content: "c/2" });
  assert.equal(socket().of(7).length, 2);
  await socket().says({ ...posted("c", 3), op_type: 40023, unread: 0, online: true }, { op_type: 40023, content: "1" });
  assert.equal(chat.conversation("#g").unread, 0);
});

test("deleted messages of a group leave a placeholder", async (t) => {
  const { chat, socket } = await inGroup(t, [posted("a", 1), posted("b", 2, "3")]);
  await socket().says({ from: "3", to: "#g", op_type: 40013, content: "b/3" });
  assert.deepEqual(chat.conversation("#g").messages.map(({ key, gone }) => [key, Boolean(gone)]), [["a/2", false], ["b/3", true]]);
});

test("an unsent message to a group is sent again and acknowledged", async (t) => {
  const { chat, socket } = await inGroup(t, []);
  void chat.send("#g", "hello");
  await settled();
  await socket().breaks();
  await socket().says(greeting);
  const [content] = socket().of(1);
  await socket().says({ op_type: 40018, id: content.split("\n")[0], time: 7 });
  assert.deepEqual([keys(chat), chat.waiting("#g")], [[`${content.split("\n")[0]}/1`], []]);
});

test("a group without messages is listed at its joining time", async (t) => {
  const { chat, socket } = await begun(t);
  await socket().says(greeting);
  const row = { from: "1", to: "#g", op_type: 40023, content: "", unread: 0, online: true, time: 5 };
  await socket().says(row, { ...live("a", 9), op_type: 40023, unread: 0, online: true }, { op_type: 40023, content: "2" });
  assert.deepEqual(chat.list().map(({ peer, last }) => [peer, last?.id]), [["2", "a"], ["#g", undefined]]);
  await chat.flush();
});

test("changes of members are shown, and answer no request", async (t) => {
  const read = [];
  const members = async (group) => (read.push(group), { ok: true, data: [{ user_name: "1", owner: true }, { user_name: "2", online: true }] });
  const { chat, socket } = await inGroup(t, [posted("a", 1)], { members });
  assert.deepEqual(["1", "2"].map((name) => chat.groups.owns(name, "#g")), [true, false]);
  void chat.send("#g", "hello");
  await settled();
  await socket().says(changed("+3", "!2"));
  assert.deepEqual([chat.waiting("#g").length, read.length], [1, 2]);
  const [, { change, read: seen }] = chat.conversation("#g").messages;
  assert.deepEqual([change, seen, chat.conversation("#g").last.id], [["+3", "!2"], true, "a"]);
  await socket().says({ op_type: 40027, content: "-2" });
  assert.equal(chat.groups.members("#g")[1].online, false);
  await chat.flush();
});

test("a removed member's group leaves the list and closes", async (t) => {
  const storage = new Storage();
  const { chat, socket } = await inGroup(t, [posted("a", 1)], { storage });
  await chat.flush();
  assert.equal((await storage.history("1")).length, 1);
  await socket().says(changed("-1"));
  void chat.send("#g", "too late");
  await settled();
  await chat.flush();
  assert.deepEqual([chat.list(), chat.conversation("#g").closed, await storage.history("1")], [[], true, []]);
  await chat.open(null);
  assert.deepEqual([keys(chat), chat.waiting("#g")], [[], []]);
});

test("a member who returns sees only new messages", async (t) => {
  const { chat, socket } = await inGroup(t, [posted("a", 1)]);
  await socket().says(changed("-1"));
  await socket().says(changed("+1"));
  assert.deepEqual([socket().of(2), socket().of(7).length, chat.conversation("#g").closed], [["-50", "-50"], 2, false]);
  await socket().says(noConversations, ...groupPage(posted("b", 9)));
  assert.deepEqual(keys(chat).filter((key) => !key.startsWith("*")), ["b/2"]);
});

test("several members can type at once", async (t) => {
  const { chat, socket } = await inGroup(t, []);
  const typing = (from, content) => ({ from, to: "#g", op_type: 40025, content });
  await socket().says(typing("2", "1"), typing("3", "1"));
  assert.deepEqual(chat.typing.names("#g"), ["2", "3"]);
  await socket().says(posted("a", 1), typing("3", "0"));
  assert.deepEqual(chat.typing.names("#g"), []);
});
