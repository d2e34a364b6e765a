/** The settings dialog: preferences, password, logout. */
import { setPassword } from "./api.js";
import { blockedList } from "./blocking.js";
import { h, passwordField, sheet } from "./dom.js";
import { toast } from "./notices.js";
import { prefer, preferences } from "./preferences.js";
import { LANGUAGES, passwordProblem, reason, t } from "./texts.js";

/** Open the settings. `changed()`: called after a new language. `logOut()`: called by the button. */
export async function openSettings(chat, { changed, logOut }) {
  for (let again = true; again; ) {
    const result = await sheet(t.settings, t.close, (close) => [
      choice(t.language, "language", LANGUAGES, () => close("again")),
      choice(t.scheme, "scheme", t.schemes),
      toggle(t.sound, "sound"),
      "Notification" in globalThis && toggle(t.notify, "notify", permitted),
      passwordForm(chat.me),
      blockedList(chat),
      h("button", { type: "button", class: "danger wide", onclick: () => close("logOut") }, t.logOut),
    ].filter(Boolean));
    again = result === "again";
    if (again) changed();
    else if (result === "logOut") await logOut();
  }
}

function choice(label, name, choices, then = () => {}) {
  const radios = Object.entries(choices).map(([value, text]) =>
    h(
      "label",
      {},
      h("input", {
        type: "radio",
        name,
        value,
        checked: preferences[name] === value,
        onchange: () => {
          prefer(name, value);
          then();
        },
      }),
      h("span", {}, text),
    ),
  );
  return h("fieldset", { class: "choice" }, h("legend", {}, label), h("div", { class: "segments" }, radios));
}

function toggle(label, name, allowed = async () => true) {
  const change = async (event) => {
    const input = event.target;
    const wanted = input.checked && (await allowed());
    input.checked = wanted;
    prefer(name, wanted);
  };
  const input = h("input", { type: "checkbox", role: "switch", checked: preferences[name], onchange: change });
  return h("label", { class: "toggle" }, h("span", {}, label), input);
}

async function permitted() {
  if ((await Notification.requestPermission()) === "granted") return true;
  toast(t.notifyDenied);
  return false;
}

function passwordForm(me) {
  const old = passwordField(t.oldPassword, t.showPassword, { id: "old-password", autocomplete: "current-password" });
  const fresh = passwordField(t.newPassword, t.showPassword, { id: "new-password", autocomplete: "new-password" });
  const problem = h("p", { class: "error", role: "alert" });
  const submit = async (event) => {
    event.preventDefault();
    const answer = await setPassword(me, old.input.value, fresh.input.value);
    problem.textContent = "";
    if (answer.ok) {
      form.reset();
      details.open = false;
      toast(t.changed);
    } else if (answer.reason === "bad_password") fresh.fail(passwordProblem(fresh.input.value));
    else if (answer.reason === "wrong_password") old.fail(reason("wrong_old_password"));
    else problem.textContent = reason(answer.reason, answer.wait);
  };
  const name = h("input", { type: "text", autocomplete: "username", value: me, hidden: true, "aria-label": t.name });
  const button = h("button", { type: "submit", class: "primary" }, t.change);
  const form = h("form", { novalidate: true, onsubmit: submit }, name, old.element, fresh.element, problem, button);
  const details = h("details", {}, h("summary", {}, t.changePassword), form);
  return details;
}
