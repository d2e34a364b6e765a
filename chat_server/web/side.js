/** The sidebar: the list of conversations, and the field that searches or starts one. */
import { EVERYBODY, isGroup, isShared } from "./chat.js";
import { arrange, avatar, h, HOVERS, icon, iconButton, nameOf } from "./dom.js";
import { plainText } from "./plain.js";
import { stateOf } from "./state.js";
import { many, reason, t, titleOf } from "./texts.js";
import { moment } from "./times.js";

export class Side {
  #chat;
  #options;
  #rows = new Map();
  #asking = null;
  #searching = false;

  /** `open(peer)`, `newGroup()`, `settings()`, `address(peer)`, `current()`; `drafts`: a map from peer to text. */
  constructor(chat, options) {
    this.#chat = chat;
    this.#options = options;
    this.list = h("ol", {
      class: "conversations",
      onscroll: () => this.#scrolled(),
      onkeydown: (event) => this.#listKey(event),
    });
    this.element = h("div", { class: "side" });
    this.render();
  }

  /** Build the view in the current language. */
  render() {
    this.#rows.clear();
    this.find = h("input", {
      type: "text",
      "aria-label": t.find,
      placeholder: t.find,
      maxlength: 128,
      autocomplete: "off",
      autocapitalize: "none",
      spellcheck: "false",
      enterkeyhint: "go",
      "aria-describedby": "find-error",
      oninput: () => this.#search(),
      onkeydown: (event) => this.#findKey(event),
    });
    this.error = h("p", { class: "error", id: "find-error", role: "alert" });
    this.start = h("button", { type: "submit", class: "start" });
    this.settings = iconButton("settings", t.settings, () => this.#options.settings());
    this.newGroup = iconButton("group", t.newGroup, () => this.#options.newGroup(), { "aria-haspopup": "dialog" });
    this.loading = h("p", { class: "loading" }, t.loading);
    this.empty = h("div", { class: "empty" }, h("p", {}, t.none), h("p", {}, t.noneHint));
    this.element.replaceChildren(
      h(
        "header",
        { class: "bar" },
        avatar(this.#chat.me),
        h("p", { class: "me", title: t.loggedInAs(this.#chat.me) }, nameOf(this.#chat.me)),
        this.settings,
      ),
      h(
        "form",
        { class: "find", role: "search", onsubmit: (event) => this.#submit(event) },
        icon("find"),
        this.find,
        this.newGroup,
        this.start,
        this.error,
      ),
      h("nav", { "aria-label": t.conversations }, this.loading, this.list, this.empty),
    );
    this.update();
  }

  /** Focus the row of `peer`, or the search field. */
  focus(peer) {
    const row = this.#rows.get(peer);
    if (row) row.link.focus();
    else if (HOVERS.matches) this.find.focus();
  }

  update() {
    const wanted = folded(this.find.value);
    const matches = ({ peer }) => folded(titleOf(peer)).includes(wanted);
    const all = [this.#chat.conversation(EVERYBODY), ...this.#chat.list()];
    const shown = all.filter(matches);
    arrange(this.list, shown.map((conversation) => this.#row(conversation)));
    this.#tabStop();
    const named = this.#named();
    this.start.hidden = !wanted || named === this.#chat.me || shown.some(({ peer }) => peer === named);
    this.start.replaceChildren(icon("talk"), named === this.#asking ? t.looking(named) : t.start(named));
    this.loading.hidden = this.#chat.listed || all.length > 1;
    this.empty.hidden = all.length > 1 || Boolean(wanted) || !this.#chat.listed;
  }

  #named() {
    return this.find.value.trim().normalize("NFC");
  }

  #row(conversation) {
    const { peer, unread } = conversation;
    if (!this.#rows.has(peer)) this.#rows.set(peer, this.#newRow(peer));
    const row = this.#rows.get(peer);
    const draft = peer !== this.#options.current() && this.#options.drafts.get(peer);
    const waiting = this.#chat.waiting(peer).at(-1);
    const last = waiting ?? conversation.last;
    const mine = Boolean(waiting) || last?.mine;
    const named = !draft && !mine && last && isShared(peer);
    const text = draft || last?.text || (peer === EVERYBODY ? t.everybodyHint : isGroup(peer) ? t.noMessages : "");
    const online = this.#chat.online(peer);
    const typing = this.#chat.typing.names(peer);
    row.name.classList.toggle("online", Boolean(online));
    row.presence.textContent = [online && t.online, unread && t.unread(unread)].filter(Boolean).join(", ");
    const time = waiting?.at ?? last?.time ?? conversation.joined;
    row.time.textContent = time ? moment(time) : "";
    if (typing.length) row.text.replaceChildren(h("em", { class: "typing" }, t.typing(typing)));
    else row.text.replaceChildren(
      ...(draft ? [h("em", {}, t.draft), " "] : []),
      ...(!draft && mine ? [icon(stateOf(waiting ? { ...waiting, waiting: true } : last))] : []),
      h("bdi", {}, plainText(named ? t.said(last.from, text) : text).slice(0, 200)),
    );
    row.unread.textContent = many(unread) || "";
    row.unread.hidden = !unread;
    row.link.classList.toggle("has-unread", unread > 0);
    if (peer === this.#options.current()) row.link.setAttribute("aria-current", "page");
    else row.link.removeAttribute("aria-current");
    return row.element;
  }

  #newRow(peer) {
    const everybody = peer === EVERYBODY;
    const open = (event) => {
      if (event.ctrlKey || event.metaKey || event.shiftKey) return; // the browser opens a new window
      event.preventDefault();
      this.#clear();
      this.#options.open(peer);
    };
    const row = {
      name: h("span", { class: "who" }, nameOf(titleOf(peer))),
      presence: h("span", { class: "unseen" }),
      time: h("time", {}),
      text: h("span", { class: "last" }),
      unread: h("span", { class: "unread", "aria-hidden": "true" }),
    };
    row.link = h(
      "a",
      { href: this.#options.address(peer), onclick: open },
      avatar(peer, everybody ? "everybody" : null),
      row.name,
      row.presence,
      row.time,
      row.text,
      row.unread,
    );
    row.element = h("li", everybody ? { class: "everybody" } : {}, row.link);
    return row;
  }

  /** Focus the search field. */
  search() {
    this.find.focus();
    this.find.select();
  }

  #search() {
    this.error.textContent = "";
    this.update();
    if (this.find.value && !this.#searching) void this.#chat.listFurther();
    this.#searching = Boolean(this.find.value);
  }

  #clear() {
    this.find.value = "";
    this.#search();
  }

  #findKey(event) {
    if (event.key === "ArrowDown") this.#rowLinks()[0]?.focus();
    else if (event.key === "Escape" && this.find.value) this.#clear();
    else return;
    event.preventDefault();
    event.stopPropagation();
  }

  /** Make the list one stop for the Tab key; arrow keys move within it. */
  #tabStop() {
    const links = this.#rowLinks();
    const stop = links.find((link) => link === document.activeElement) ?? links.find((link) => link.ariaCurrent) ?? links[0];
    for (const link of links) link.tabIndex = link === stop ? 0 : -1;
  }

  #listKey(event) {
    const links = this.#rowLinks();
    const index = links.indexOf(document.activeElement);
    const next = { ArrowUp: index - 1, ArrowDown: index + 1, Home: 0, End: links.length - 1 }[event.key];
    if (next === undefined) return;
    event.preventDefault();
    links[next]?.focus();
    this.#tabStop();
  }

  #rowLinks() {
    return [...this.list.querySelectorAll("a")];
  }

  async #submit(event) {
    event.preventDefault();
    const peer = this.#named();
    if (!peer || peer === this.#asking) return;
    this.error.textContent = "";
    const why = peer === this.#chat.me ? "to_yourself" : await this.#refusal(peer);
    if (peer !== this.#named()) return; // the user has changed the name meanwhile
    const similar = this.#chat.list().find((one) => folded(one.peer) === folded(peer));
    if (why && !(this.#chat.conversation(peer).closed && similar)) {
      this.error.textContent = reason(why);
    } else {
      this.#clear();
      this.#options.open(why ? similar.peer : peer);
    }
  }

  /** The reason why no conversation with `peer` can begin, null if one can. */
  async #refusal(peer) {
    if (this.#chat.conversations.has(peer) && this.#chat.conversation(peer).last) return null;
    this.#ask(peer);
    const why = await this.#chat.refusal(peer);
    if (peer === this.#asking) this.#ask(null);
    return why;
  }

  #ask(peer) {
    this.#asking = peer;
    this.update();
  }

  #scrolled() {
    const left = this.list.scrollHeight - this.list.scrollTop - this.list.clientHeight;
    if (left < 400) void this.#chat.moreConversations();
  }
}

/** The form in which a search compares names: "bob" finds BOB. */
function folded(name) {
  return name.trim().normalize("NFKC").toLowerCase();
}
