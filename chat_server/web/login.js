/** The view without a session: log in or register. */
import { login, register } from "./api.js";
import { field, h, icon, passwordField } from "./dom.js";
import { prefer, preferences } from "./preferences.js";
import { LANGUAGES, passwordProblem, reason, t } from "./texts.js";

const RESERVED = /^(system|all)$/i;

export class Login {
  #options;
  #registering = false;
  #busy = false;

  element = h("main", { class: "login" });

  /**
   * `user`: prefilled name. `ended`: whether a session has just ended. `open`: whether registration is open.
   * `enter(name)`: called after the login. `me` and `goOn()`: another user is logged in, and can continue.
   */
  constructor(options) {
    this.#options = options;
    this.#render(options.user ?? "", "");
  }

  focus() {
    (this.name.input.value ? this.password : this.name).input.focus();
  }

  #render(name, password) {
    this.name = field(t.name, {
      id: "name",
      required: true,
      maxlength: 128,
      autocomplete: "username",
      autocapitalize: "none",
      spellcheck: "false",
    });
    this.password = passwordField(t.password, t.showPassword, {
      id: "password",
      required: true,
      autocomplete: this.#registering ? "new-password" : "current-password",
    });
    this.name.input.value = name;
    this.password.input.value = password;
    this.problem = h("p", { class: "error", role: "alert" });
    const form = h(
      "form",
      { novalidate: true, onsubmit: (event) => this.#submit(event) },
      this.#options.ended && h("p", { class: "notice" }, t.sessionEnded),
      this.#options.goOn && this.#offer(),
      this.name.element,
      this.password.element,
      this.problem,
      h("button", { class: "primary", type: "submit" }, this.#registering ? t.toRegister : t.toLogIn),
    );
    const mark = h("div", { class: "mark" }, icon("talk"));
    this.element.replaceChildren(
      h("div", { class: "card" }, mark, h("h1", {}, t.title), h("p", { class: "tagline" }, t.tagline), this.#tabs(), form),
      this.#languages(),
    );
    document.title = t.title;
  }

  #tabs() {
    if (!this.#options.open) return [];
    const tab = (label, registering) =>
      h(
        "button",
        {
          type: "button",
          "aria-pressed": String(this.#registering === registering),
          onclick: () => this.#change(() => (this.#registering = registering)),
        },
        label,
      );
    return h("div", { class: "segments" }, tab(t.logIn, false), tab(t.register, true));
  }

  /** The link was for another user: offer to continue as the user who is logged in. */
  #offer() {
    const { me, goOn } = this.#options;
    const button = h("button", { type: "button", class: "quiet", onclick: () => void goOn() }, t.goOn(me));
    return h("div", { class: "notice" }, h("p", {}, t.otherUser(me)), button);
  }

  #languages() {
    const buttons = Object.entries(LANGUAGES).map(([code, label]) =>
      h(
        "button",
        {
          type: "button",
          lang: code,
          "aria-pressed": String(preferences.language === code),
          onclick: () => this.#change(() => prefer("language", code)),
        },
        label,
      ),
    );
    return h("div", { class: "languages" }, buttons);
  }

  #change(how) {
    how();
    this.#render(this.name.input.value, this.password.input.value);
    this.focus();
  }

  async #submit(event) {
    event.preventDefault();
    const name = this.name.input.value.trim();
    const password = this.password.input.value;
    if (!name) return this.name.fail(reason("empty"));
    if (!password) return this.password.fail(reason("empty"));
    if (this.#busy) return;
    this.#busy = true;
    this.element.setAttribute("aria-busy", "true");
    const answer = await this.#ask(name, password);
    if (answer.ok) await this.#options.enter(answer.data.user_name);
    else this.#fail(answer);
    this.#busy = false;
    this.element.removeAttribute("aria-busy");
  }

  async #ask(name, password) {
    if (this.#registering) {
      const answer = await register(name, password);
      if (!answer.ok) return answer;
    }
    return login(name, password);
  }

  #fail({ reason: why, wait }) {
    const fields = { bad_name: this.name, user_exists: this.name, bad_password: this.password, wrong_password: this.password };
    const texts = {
      bad_name: RESERVED.test(this.name.input.value.trim().normalize("NFKC")) && t.reserved,
      bad_password: passwordProblem(this.password.input.value),
    };
    const text = texts[why] || reason(why, wait);
    this.problem.textContent = why in fields ? "" : text;
    fields[why]?.fail(text);
  }
}
