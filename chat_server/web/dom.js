/** Helpers to build the document. Texts become text nodes, never HTML. */
import { plainName } from "./plain.js";

/** Create an element. Attributes: `onX` adds a listener, a boolean toggles, others are set. Children: nodes or texts. */
export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (typeof value === "boolean") element.toggleAttribute(name, value);
    else if (value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/** Whether the device has a mouse. On touch devices, focusing a field opens the keyboard, which covers the page. */
export const HOVERS = matchMedia("(hover: hover)");

const HUES = 12; // more are hard to tell apart
const MARGIN = 8; // pixels between a dialog and the edge of the screen

const ICONS = {
  back: "M15 5l-7 7 7 7",
  send: "M12 19V6M6 11.5L12 5.5l6 6",
  settings: "M4 8h9M19 8h1M4 16h1M11 16h9M16 5.5v5M8 13.5v5",
  more: "M6 12h.01M12 12h.01M18 12h.01",
  find: "M11 17.5a6.5 6.5 0 1 0 0-13 6.5 6.5 0 0 0 0 13zM16 16l4 4",
  close: "M6 6l12 12M18 6L6 18",
  down: "M6 10l6 6 6-6",
  waiting: "M12 20a8 8 0 1 0 0-16 8 8 0 0 0 0 16zM12 8v4.5l3 1.5",
  sent: "M5 12.5l4.5 4.5L19 7.5",
  read: "M2 12.5L6.5 17 16 7.5M12 16l1 1 9-9.5",
  failed: "M12 20a8 8 0 1 0 0-16 8 8 0 0 0 0 16zM12 8v4.5M12 15.8v.1",
  eye: "M2.5 12s3.5-6.5 9.5-6.5 9.5 6.5 9.5 6.5-3.5 6.5-9.5 6.5S2.5 12 2.5 12zM12 15a3 3 0 1 0 0-6 3 3 0 0 0 0 6z",
  group: "M9 11a3 3 0 1 0 0-6 3 3 0 0 0 0 6zM3.5 19c0-3 2.5-5 5.5-5s5.5 2 5.5 5M18.5 7.5v6M15.5 10.5h6",
  everybody: "M9 11a3 3 0 1 0 0-6 3 3 0 0 0 0 6zM3.5 19c0-3 2.5-5 5.5-5s5.5 2 5.5 5M16 5.3a3 3 0 0 1 0 5.4M17.5 14.4c1.9.7 3 2.4 3 4.6",
  talk: "M7 5h10a3 3 0 0 1 3 3v5a3 3 0 0 1-3 3h-5l-4.5 3.5V16H7a3 3 0 0 1-3-3V8a3 3 0 0 1 3-3z",
};

/** An icon. Screen readers read its label, and ignore it without one. */
export function icon(name, label = "") {
  const create = (tag) => document.createElementNS("http://www.w3.org/2000/svg", tag);
  const svg = create("svg");
  const path = create("path");
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("class", `icon icon-${name}`);
  path.setAttribute("d", ICONS[name]);
  svg.append(path);
  if (label) {
    svg.setAttribute("role", "img");
    svg.setAttribute("aria-label", label);
  } else {
    svg.setAttribute("aria-hidden", "true");
  }
  return svg;
}

/** A button with an icon and an accessible label. */
export function iconButton(name, label, onclick, attributes = {}) {
  return h("button", { type: "button", class: "icon-button", "aria-label": label, title: label, onclick, ...attributes }, icon(name));
}

/** The hue of a name in degrees, always the same for the same name. */
export function hueOf(name) {
  return ([...name].reduce((sum, char) => (sum * 31 + char.codePointAt(0)) % 997, 7) % HUES) * (360 / HUES);
}

/** The first letter of a name on a colour derived from the name, or the icon `sign`. */
export function avatar(name, sign = null) {
  const [first] = new Intl.Segmenter().segment(plainName(name));
  const element = h("span", { class: "avatar", "aria-hidden": "true" }, sign ? icon(sign) : first.segment.toUpperCase());
  element.style.setProperty("--hue", sign ? 165 : hueOf(name));
  return element;
}

/** A name within other text, isolated from the direction of that text. */
export function nameOf(name) {
  return h("bdi", { class: "name" }, plainName(name));
}

/** Set the children of `parent`. Unchanged children stay in the document, so they keep focus and selection. */
export function arrange(parent, children) {
  const wanted = new Set(children);
  for (const child of [...parent.children]) if (!wanted.has(child)) child.remove();
  children.forEach((child, index) => {
    if (parent.children[index] !== child) parent.insertBefore(child, parent.children[index] ?? null);
  });
}

/**
 * Show a modal dialog. Resolves with the argument of `close(value)`, null if it was dismissed. `place`, `{x, y}` on the
 * screen, is its top left corner, moved so that the dialog fits.
 */
export function dialog(attributes, build, place = null) {
  return new Promise((resolve) => {
    let result = null;
    const element = h("dialog", attributes);
    const close = (value = null) => {
      result = value;
      element.close();
    };
    element.append(h("div", {}, ...build(close)));
    element.addEventListener("close", () => {
      leaveHistory();
      if (element.contains(toasts())) document.body.append(toasts());
      element.remove();
      resolve(result);
    });
    let pressed = false;
    element.addEventListener("pointerdown", (event) => {
      pressed = true;
      if (event.target === element) close();
    });
    // The end of the long press that opened the dialog is not a click.
    const lifted = (event) => event.pointerType === "touch" && !pressed && event.stopPropagation();
    element.addEventListener("click", lifted, true);
    document.body.append(element);
    enterHistory();
    element.showModal();
    if (place) moveTo(element, place);
  });
}

/** A dialog with a heading and a button `close` that closes it. */
export function sheet(heading, close, build) {
  return dialog({ class: "sheet", "aria-label": heading }, (end) => [
    h("header", {}, h("h2", {}, nameOf(heading)), iconButton("close", close, () => end())),
    ...build(end),
  ]);
}

// An open dialog has an entry in the history, so the browser's Back closes it.
function enterHistory() {
  if (!history.state?.dialog) history.pushState({ ...history.state, dialog: true }, "");
}

let leaving = 0;
let returning = false;

/** Delayed, because another dialog or view may reuse the entry; once, although several dialogs close together. */
function leaveHistory() {
  clearTimeout(leaving);
  leaving = setTimeout(() => {
    if (returning || !history.state?.dialog || document.querySelector("dialog")) return;
    returning = true;
    history.back();
  });
}

/** Whether the entry of the last dialog is about to leave the history; `popstate` follows. */
export function isReturning() {
  return returning;
}

globalThis.addEventListener("popstate", () => {
  if (returning && document.querySelector("dialog")) enterHistory(); // it was opened meanwhile
  returning = false;
  if (!history.state?.dialog) for (const open of document.querySelectorAll("dialog")) open.close();
});

/** The container of toasts. It is moved into the topmost dialog, which hides everything outside. */
export function toasts() {
  return document.querySelector("#toasts");
}

function moveTo(element, { x, y }) {
  const { offsetWidth: width, offsetHeight: height } = element;
  element.style.left = `${Math.max(MARGIN, Math.min(x, innerWidth - width - MARGIN))}px`;
  element.style.top = `${Math.max(MARGIN, Math.min(y, innerHeight - height - MARGIN))}px`;
}

/** A field with a label and a place for an error; `fail(text)` shows the error. */
export function field(label, attributes, ...extras) {
  const error = h("p", { class: "error", id: `${attributes.id}-error` });
  const input = h("input", { ...attributes, "aria-describedby": error.id });
  const element = h("div", { class: "field" }, h("label", { for: attributes.id }, label), h("div", { class: "input" }, input, ...extras), error);
  const fail = (text) => {
    error.textContent = text;
    input.setAttribute("aria-invalid", String(Boolean(text)));
    if (text) input.focus();
  };
  input.addEventListener("input", () => error.textContent && fail(""));
  return { element, input, fail };
}

/** A password field with a button `label` that shows the password. */
export function passwordField(name, label, attributes) {
  const toggle = () => {
    const shown = password.input.type === "password";
    password.input.type = shown ? "text" : "password";
    button.setAttribute("aria-pressed", String(shown));
  };
  const button = iconButton("eye", label, toggle, { "aria-pressed": "false", class: "icon-button reveal" });
  const password = field(name, { ...attributes, type: "password" }, button);
  return password;
}
