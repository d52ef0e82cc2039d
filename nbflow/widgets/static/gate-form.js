// The form that decides a gate: options, feedback, Approve and Reject. What is wrong is said where it was
// pressed, before anything is sent; and nothing decides by accident: no key alone does.

import {fresh, h, replace, set, text} from "./dom.js";
import {command} from "./gate-record.js";
import {stateIcon} from "./states.js";

const SLOW = 1000; // ms without an answer until the form says why
const LOST = "The kernel went away before it answered: whether this decision counted is not known. `nbflow gates` tells.";
const drafts = new Map();
const placeOf = (row) => `nbflow-gate:${row.run}:${row.step}`;

/** What somebody was writing about a gate: it outlives the view, and a reload of the page. */
function draftOf(row) {
  let draft = drafts.get(placeOf(row));
  try {
    draft ??= JSON.parse(sessionStorage.getItem(placeOf(row)));
  } catch {
    draft = null; // no storage in this frame
  }
  if (!draft || typeof draft.feedback !== "string" || !Array.isArray(draft.chosen)) return {feedback: "", chosen: []};
  // Asked anew, options may mean something else; words are nobody's but the writer's.
  return {feedback: draft.feedback, chosen: draft.opening === row.opening ? draft.chosen : []};
}

function keepDraft(row, draft) {
  const empty = !draft || (!draft.feedback && !draft.chosen.length);
  if (empty) drafts.delete(placeOf(row));
  else drafts.set(placeOf(row), draft);
  try {
    if (empty) sessionStorage.removeItem(placeOf(row));
    else sessionStorage.setItem(placeOf(row), JSON.stringify(draft));
  } catch {
    // No storage, or it is full: the page itself remembers.
  }
}

/** The form of one asking of a gate: {element, unsent(), complaint(), connection(), dispose()}. */
export function makeForm(adapter, row, {update, refresh, say, via, complaint = "", deaf = false, store = ""}) {
  const terminal = (approved) => command(row, approved, store);
  const draft = draftOf(row);
  const problem = fresh("problem");
  const alert = h("p", {class: "nbflow-gate-problem nbflow-error", role: "alert", id: problem}, complaint);
  const doubt = h("div", {class: "nbflow-gate-doubt", role: "group", hidden: true});
  const options = makeOptions(row, draft.chosen, problem);
  const name = fresh("feedback");
  const feedback = h("textarea", {
    id: name,
    rows: 3,
    value: draft.feedback,
    "aria-describedby": problem,
  });
  const approve = act("approved", "Approve", "nbflow-button-main", () => decide(true));
  const reject = act("rejected", "Reject", "", () => decide(false));
  const gone = h("div", {class: "nbflow-gate-gone", hidden: true});
  const fields = h(
    "fieldset",
    {class: "nbflow-gate-fields"},
    h("legend", {class: "nbflow-hidden"}, "Your decision"),
    options.element,
    h("div", {class: "nbflow-field"}, h("label", {for: name}, "Feedback (the run gets it)"), feedback),
    h("div", {class: "nbflow-row nbflow-acts"}, approve, reject),
    doubt,
  );
  const beside = deaf
    ? h("p", {class: "nbflow-gate-gone"}, "The cell waits, and this kernel hears no click until it ends. A terminal decides at once: ", terminal(true), terminal(false))
    : null;
  const element = h("form", {class: "nbflow-gate-form", novalidate: true}, beside, fields, alert, gone);
  element.addEventListener("submit", (event) => event.preventDefault());
  let sending = false;
  let disposed = false;

  element.addEventListener("input", () => {
    keepDraft(row, {feedback: feedback.value, chosen: options.chosen(), opening: row.opening});
    clear();
  });
  feedback.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey)) return;
    event.preventDefault();
    event.stopPropagation();
    approve.focus();
    say("Press Enter to approve, or Tab for Reject. Nothing was sent yet.");
  });

  function clear() {
    text(alert, "");
    options.invalid(false);
    close();
  }
  function close() {
    doubt.hidden = true;
    doubt.replaceChildren();
  }
  function complain(sentence) {
    replace(alert, sentence); // a new node: said again, it is announced again
  }

  function decide(approved) {
    if (sending || !adapter.connected) return;
    clear();
    const chosen = options.chosen();
    if (approved && row.single && row.options.length && chosen.length !== 1) {
      complain("Nothing was sent: select exactly one of the options.");
      options.invalid(true);
      options.focus();
      return;
    }
    if (!approved && !feedback.value.trim() && doubtful()) return;
    send(approved, chosen);
  }

  function doubtful() {
    const question = h("span", {id: fresh("doubt")}, "Reject without saying why?");
    const yes = act("rejected", "Reject without a reason", "", () => {
      close();
      send(false, options.chosen());
    });
    const no = act(null, "Write a reason", "", () => {
      close();
      feedback.focus();
    });
    set(doubt, {"aria-labelledby": question.id});
    replace(doubt, question, no, yes);
    doubt.hidden = false;
    no.focus();
    say("Reject without saying why? Nothing was sent yet.", {heard: true});
    return true;
  }

  function send(approved, selections) {
    sending = true;
    able();
    say("Sending…");
    const slow = setTimeout(() => {
      if (sending) say(["The kernel is busy and answers when the cell ends. A terminal decides at once: ", terminal(approved)]);
    }, SLOW);
    const asked = {
      run: row.run,
      step: row.step,
      opening: row.opening,
      approved,
      feedback: feedback.value.trim(),
      selections,
      via,
    };
    adapter.ask("decide", asked).then(
      (answer) => {
        clearTimeout(slow);
        sending = false;
        keepDraft(row, null);
        if (!disposed) feedback.value = "";
        update(answer);
      },
      (error) => {
        clearTimeout(slow);
        sending = false;
        if (disposed) return;
        able();
        say("");
        (approved ? approve : reject).focus();
        complain(error.type === "Gone" ? LOST : [error.message, error.hint].filter(Boolean).join(" "));
        refresh(); // somebody else decided, it was asked anew, or it went away
      },
    );
  }

  /** Not `disabled`: the button that was pressed keeps the focus. */
  function able() {
    const dead = !adapter.connected;
    const still = dead || sending;
    for (const each of [approve, reject]) set(each, {"aria-disabled": still ? "true" : null});
    options.disabled(still);
    feedback.readOnly = still;
    fields.setAttribute("aria-busy", String(sending));
    gone.hidden = !dead;
    if (dead) close();
    if (dead && !gone.firstChild)
      replace(gone, "The kernel is gone, so nothing can be decided here until this cell is run again. A terminal can: ", terminal(true), terminal(false));
  }
  able();

  return {
    element,
    unsent: () => (sending ? "" : feedback.value.trim()),
    connection: able,
    complaint: () => alert.textContent,
    dispose: () => {
      disposed = true;
    },
  };
}

function act(state, label, kind, click) {
  const face = [state ? stateIcon(state) : null, label];
  return h(
    "button",
    {type: "button", class: `nbflow-button ${kind}`, on: {click}},
    face,
  );
}

/** The options as boxes, or as a radio group where exactly one is wanted. */
function makeOptions(row, chosen, problem) {
  const none = {element: null, chosen: () => [], disabled() {}, invalid() {}, focus() {}};
  if (!row.options?.length) return none;
  const group = fresh("options");
  const inputs = row.options.map((option, number) =>
    h("input", {
      type: row.single ? "radio" : "checkbox",
      name: group,
      id: `${group}-${number}`,
      checked: chosen.includes(option),
    }),
  );
  const element = h(
    "fieldset",
    {class: "nbflow-gate-options", "aria-describedby": problem, role: row.single ? "radiogroup" : null},
    h("legend", {}, row.single ? "Select one" : "Select any"),
    inputs.map((input, number) => h("label", {for: input.id}, input, h("span", {}, row.options[number]))),
  );
  return {
    element,
    chosen: () => row.options.filter((_, number) => inputs[number].checked),
    disabled: (still) => inputs.forEach((input) => set(input, {disabled: still})),
    invalid: (wrong) => {
      element.classList.toggle("nbflow-gate-invalid", wrong);
      if (row.single) set(element, {"aria-invalid": wrong ? "true" : null});
    },
    focus: () => inputs[0].focus(),
  };
}
