// Asking before something is done: a modal dialog that keeps the focus, closes on Escape, does the thing
// itself, shows that it goes on, and says beside the button what went wrong.

import {button, fresh, h, replace, text} from "./dom.js";

/**
 * Ask, and do. spec: {title, says: [node | text], fields?: [node], word, danger?, act() → Promise<said>}.
 * The promise gives what `act` gave, or null where the person left. `near` is what was clicked: the
 * dialog belongs to its view, and the focus goes back to it.
 */
export function ask(near, spec) {
  const root = near.closest(".nbflow") ?? document.body;
  const name = fresh("title");
  const problem = h("div", {class: "nbflow-error", role: "alert"});
  const status = h("div", {class: "nbflow-quiet", role: "status"});
  const leave = button("Cancel", () => dialog.close(), {});
  if (/cancel/i.test(spec.word)) text(leave, "Back");
  const main = h(
    "button",
    {type: "submit", class: `nbflow-button ${spec.danger ? "nbflow-button-danger" : "nbflow-button-main"}`},
    spec.word,
  );
  const form = h(
    "form",
    {method: "dialog", class: "nbflow-dialog-form"},
    h("h2", {id: name}, spec.title),
    spec.says.map((one) => (one instanceof Node ? one : h("p", {}, one))),
    spec.fields,
    problem,
    status,
    h("div", {class: "nbflow-row nbflow-dialog-end"}, leave, main),
  );
  const dialog = h("dialog", {class: "nbflow-dialog", "aria-labelledby": name}, form);
  return new Promise((resolve) => {
    let done = null;
    let busy = false;
    form.addEventListener("submit", async (event) => {
      event.preventDefault();
      if (busy) return;
      busy = main.disabled = true;
      text(problem, "");
      const slow = setTimeout(() => text(status, "Working…"), 300);
      try {
        done = await spec.act();
        dialog.close();
      } catch (error) {
        replace(problem, sentence(error));
        main.disabled = false;
        main.focus();
      } finally {
        clearTimeout(slow);
        text(status, "");
        busy = false;
      }
    });
    dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
    dialog.addEventListener("keydown", (event) => trap(event, dialog));
    dialog.addEventListener("close", () => {
      dialog.remove();
      if (near.isConnected) near.focus();
      resolve(done);
    });
    root.append(dialog);
    dialog.showModal();
    // What can be lost by a quick Enter is not under it: the way out has the focus where there is danger.
    const first = form.querySelector("input, textarea, select");
    (first ?? (spec.danger ? leave : main)).focus();
  });
}

/** Keep Tab inside; the browser's own chrome would be next. */
function trap(event, dialog) {
  event.stopPropagation();
  if (event.key !== "Tab") return;
  const stops = [...dialog.querySelectorAll("button, input, textarea, select, a[href]")].filter((one) => !one.disabled);
  const end = event.shiftKey ? stops[0] : stops.at(-1);
  if (document.activeElement === end) {
    event.preventDefault();
    (event.shiftKey ? stops.at(-1) : stops[0]).focus();
  }
}

/** What an error says, with what to do next. */
export function sentence(error) {
  return [error.message, error.hint].filter(Boolean).join(" ");
}
