/** A question that must be answered before something happens. */
import { dialog, h } from "./dom.js";
import { t } from "./texts.js";

/** Ask a question. Resolves with true for `yes`, null otherwise. */
export function question(title, text, yes) {
  return dialog({ class: "question", role: "alertdialog", "aria-label": title }, (close) => [
    h("h2", {}, title),
    h("p", {}, text),
    h(
      "div",
      { class: "answers" },
      h("button", { type: "button", class: "quiet", onclick: () => close() }, t.cancel),
      h("button", { type: "button", class: "danger", onclick: () => close(true) }, yes),
    ),
  ]);
}
