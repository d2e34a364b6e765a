/** The views of groups: create a group; see, add and remove its members; leave or delete it. */
import { addMembers, createGroup, deleteGroup, removeMember } from "./api.js";
import { blockingChoice, offer } from "./blocking.js";
import { isGroup } from "./chat.js";
import { arrange, avatar, field, h, iconButton, nameOf, sheet } from "./dom.js";
import { toast } from "./notices.js";
import { question } from "./question.js";
import { enumerate, reason, t } from "./texts.js";

// Reasons that have another text here.
const REASONS = { bad_name: "bad_group_name", too_many: "too_many_groups", refused_by_limit: "not_addable" };
const OF_THE_NAME = new Set(["bad_name", "group_exists"]);
const NAME_INPUT = { maxlength: 128, autocomplete: "off", autocapitalize: "none", spellcheck: "false" };

const reasonText = (answer) => reason(REASONS[answer.reason] ?? answer.reason, answer.wait);

/** How many members there are, and how many of them are online; "" if unknown. */
export function memberCount(members) {
  return members.length ? t.memberCount(members.length, members.filter((one) => one.online).length) : "";
}

/** Ask for a name and members, and create the group. Resolves with its name, null if none was created. */
export function openNewGroup(chat) {
  return sheet(t.newGroup, t.close, (close) => {
    const name = field(t.groupName, { id: "group-name", autofocus: true, ...NAME_INPUT });
    const people = picker(chat, []);
    const submit = async () => {
      const group = `#${name.input.value.trim().replace(/^#/, "")}`.normalize("NFC");
      if (group === "#") return name.fail(reason("empty"));
      const answer = await createGroup(group, people.names());
      if (answer.ok) close(group);
      else if (OF_THE_NAME.has(answer.reason)) name.fail(reasonText(answer));
      else people.fail(reasonText(answer));
    };
    return [form(submit, t.create, name.element, people.element)];
  });
}

/** Show the members of a group, and what the user can do. `open(name)` opens the conversation with a member. */
export async function openMembers(chat, group, open) {
  const ending = new AbortController();
  const chosen = await sheet(group, t.close, (close) => membersView(chat, group, close, ending.signal));
  ending.abort();
  if (chosen) open(chosen);
}

function membersView(chat, group, close, signal) {
  const count = h("p", { class: "presence" });
  const list = h("ul", { class: "members", "aria-label": t.members });
  const adding = h("details", {});
  const remove = h("button", { type: "button", class: "danger wide", onclick: () => void askToDelete() }, t.deleteGroup);
  const leave = h("button", { type: "button", class: "danger wide", onclick: () => void askToLeave() }, t.leaveGroup);
  const rows = new Map();

  const update = () => {
    if (chat.conversation(group).left) return close();
    const members = chat.groups.members(group);
    count.textContent = memberCount(members);
    remove.hidden = !chat.groups.owns(chat.me, group);
    arrange(list, members.map(rowOf));
  };
  /** The row of a member: the same element until the member changes, so that it keeps the focus. */
  const rowOf = (member) => {
    const look = JSON.stringify([member.online, member.owner]);
    if (rows.get(member.user_name)?.look !== look) rows.set(member.user_name, { look, element: newRow(member) });
    return rows.get(member.user_name).element;
  };
  const newRow = ({ user_name: name, online, owner }) => {
    const state = [name === chat.me && t.you, owner && t.owner, online ? t.online : t.offline].filter(Boolean).join(" · ");
    const who = h("div", { class: "heading" }, h("div", { class: online ? "who online" : "who" }, nameOf(name)), h("p", { class: "presence" }, state));
    const more = iconButton("more", t.member(name), (event) => void act(name, event.currentTarget), { "aria-haspopup": "dialog" });
    return h("li", {}, avatar(name), who, name !== chat.me && more);
  };
  const act = async (name, button) => {
    const { left, bottom } = button.getBoundingClientRect();
    const write = { text: t.start(name), act: () => close(name) };
    const expel = { text: t.expel(name), hint: t.expelEffect, act: () => askToExpel(name) };
    await offer([write, blockingChoice(chat, name), ...(chat.groups.owns(chat.me, group) ? [expel] : [])], { x: left, y: bottom });
    if (document.activeElement === document.body) leave.focus(); // the row was removed
  };
  const askToExpel = async (name) => {
    if (await question(t.expelTitle(name), t.expelEffect, t.expelNow)) await tell(removeMember(group, name));
  };
  const askToLeave = async () => {
    if (await question(t.leaveTitle(group), t.leaveEffect, t.leaveNow)) await tell(removeMember(group, chat.me));
  };
  const askToDelete = async () => {
    if (await question(t.deleteTitle(group), t.deleteEffect, t.remove)) await tell(deleteGroup(group));
  };
  const showAdding = () => {
    const people = picker(chat, chat.groups.members(group).map((one) => one.user_name));
    const submit = async () => {
      const names = people.names();
      if (!names.length) return people.fail(reason("empty"));
      const answer = await addMembers(group, names);
      if (!answer.ok) return people.fail(reasonText(answer));
      adding.open = false;
      toast(t.added(enumerate(answer.data)));
    };
    adding.replaceChildren(h("summary", {}, t.addMembers), form(submit, t.add, people.element));
  };

  adding.addEventListener("toggle", () => adding.open && showAdding());
  adding.append(h("summary", {}, t.addMembers));
  chat.addEventListener("change", update, { signal });
  void chat.groups.load(group);
  update();
  return [count, list, adding, leave, remove];
}

/** Show why a request was refused. Changes arrive as notices on the socket. */
async function tell(request) {
  const answer = await request;
  if (!answer.ok) toast(reasonText(answer));
}

/** Choose users: those of the conversations, and any other by name. Without the users `present`. */
function picker(chat, present) {
  const users = chat.list().map(({ peer }) => peer).filter((peer) => !isGroup(peer) && !present.includes(peer));
  const boxes = users.map((name) => h("input", { type: "checkbox", value: name }));
  const labels = boxes.map((box) => h("label", {}, box, avatar(box.value), nameOf(box.value)));
  const others = field(t.otherPeople, { id: "other-people", ...NAME_INPUT, maxlength: null });
  const element = h(
    "div",
    { class: "picker" },
    users.length > 0 && h("fieldset", {}, h("legend", {}, t.choosePeople), h("div", { class: "people" }, labels)),
    others.element,
  );
  const names = () => [
    ...boxes.filter((box) => box.checked).map((box) => box.value),
    ...others.input.value.split(/[\s,，、]+/u).filter(Boolean),
  ];
  return { element, names, fail: others.fail };
}

/** A form that ignores a second submit until the first one is answered. */
function form(submit, label, ...children) {
  let busy = false;
  const onsubmit = async (event) => {
    event.preventDefault();
    if (busy) return;
    busy = true;
    await submit();
    busy = false;
  };
  return h("form", { novalidate: true, onsubmit }, ...children, h("button", { type: "submit", class: "primary" }, label));
}
