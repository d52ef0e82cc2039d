// What can be done to a run or a step: each asks first, says what will happen, and tells what came of it.

import {button, fresh, h, set, text} from "./dom.js";
import {ask} from "./dialog.js";
import {plain, shortId} from "./format.js";

/** Buttons for a whole run. `near`: {adapter, run, row(), say(words, run?), gone()}. */
export function runActs(near, {actions = {}}) {
  const {row} = near;
  return [
    act(near, "resume", "Resume", actions, () => ({
      title: `Resume this run of ${row().workflow}?`,
      says: ["It goes on where it stopped, as a new attempt. What is recorded is not run again."],
      word: "Resume",
    })),
    act(near, "cancel", "Cancel run", actions, () => {
      const reason = field("Reason (kept with the run)", "");
      return {
        title: `Cancel this run of ${row().workflow}?`,
        says: ["It ends for good: what is recorded stays, but it cannot be resumed. A process that is at work stops before its next step."],
        fields: reason.element,
        word: "Cancel run",
        danger: true,
        params: () => ({reason: reason.value()}),
      };
    }),
    act(near, "new", "New run", actions, () => {
      const fields = Object.entries(row().params ?? {}).map(([name, value]) => [name, value, field(name, plain(value))]);
      return {
        title: `Start a new run of ${row().workflow}?`,
        says: [
          "A fresh run begins; this one stays as it is.",
          fields.length ? "Its parameters are those of this run; change what should be another. Texts are as written, everything else is JSON." : "This run has no parameters.",
        ],
        fields: fields.map(([, , made]) => made.element),
        word: "Start",
        params: () => ({params: Object.fromEntries(fields.map(([name, before, made]) => [name, typed(name, before, made.value())]))}),
      };
    }),
  ].filter(Boolean);
}

/** The button that deletes a run. */
export function deleteAct(near, {actions = {}}) {
  const {row} = near;
  const busy = row().state === "running" || row().state === "waiting";
  const known = actions.delete ?? {allowed: !busy, why: busy ? "It is not finished: cancel it first." : ""};
  return act(near, "delete", "Delete", {delete: known}, () => ({
    title: `Delete run ${shortId(near.run)} of ${row().workflow}?`,
    says: ["All that it recorded is deleted: steps, outputs, decisions. This cannot be undone."],
    word: `Delete run ${shortId(near.run)}`,
    danger: true,
  }), {after: near.gone});
}

/** Buttons for one step. */
export function stepActs(near, step, actions) {
  const about = {step: step.step};
  return [
    act(near, "retry", "Retry step", actions, () => ({
      title: `Retry ${step.name}?`,
      says: [step.state === "failed" ? "Its failure is put aside: it is tried again when the run goes on." : "It runs again when the run goes on, whatever became of it."],
      word: "Retry step",
      params: () => about,
    })),
    act(near, "fork", "Fork from here", actions, () => ({
      title: `Fork the run at ${step.name}?`,
      says: ["A new run begins with all that is recorded before this step, and goes on from it. This run stays as it is."],
      word: "Fork",
      params: () => about,
    })),
    act(near, "forget", "Forget", actions, () => ({
      title: `Forget what ${step.name} recorded?`,
      says: ["It runs again when the run goes on, with every step that depends on it. What is forgotten stays in the history and is not replayed."],
      word: "Forget",
      danger: true,
      params: () => about,
    })),
  ].filter(Boolean).map(({element}) => element);
}

/** One button: {key, element, state}. It says why where it cannot be done now. */
function act(near, name, word, actions, make, {after} = {}) {
  const known = actions[name];
  if (!known) return null;
  const why = h("span", {class: "nbflow-quiet nbflow-why", id: fresh("why"), role: "status"});
  const press = button(word, async () => {
    if (press.getAttribute("aria-disabled") === "true") {
      text(why, press.nbflowWhy || "This cannot be done now.");
      return;
    }
    text(why, "");
    const spec = make();
    const said = press.nbflowWhy ? [...spec.says, press.nbflowWhy] : spec.says;
    const done = await ask(press, {
      ...spec,
      says: said,
      act: () => near.adapter.ask("act", {action: name, run: near.run, ...spec.params?.()}),
    });
    if (!done) return;
    near.say(done.said, done.run);
    after?.();
  });
  const element = h("span", {class: "nbflow-act"}, press, why);
  const apply = ({state}) => {
    press.nbflowWhy = state.why ?? "";
    set(press, {"aria-disabled": state.allowed ? null : "true", title: state.allowed ? null : state.why || null});
    if (state.allowed) text(why, "");
  };
  apply({state: known});
  element.nbflow = apply; // a button that stays is told what now may be done
  return {key: name, element, state: known};
}

/** What came of it, with a way to the run that it made. */
export function acted(words, run, open) {
  return [words, run ? [" ", h("button", {type: "button", class: "nbflow-link", on: {click: () => open(run)}}, `Open run ${shortId(run)}`)] : null];
}

function field(label, value) {
  const name = fresh("field");
  const long = value.length > 60 || value.includes("\n");
  const input = h(long ? "textarea" : "input", {id: name, value, autocomplete: "off", spellcheck: "false", ...(long ? {rows: 4} : {type: "text"})});
  return {element: h("div", {class: "nbflow-field"}, h("label", {for: name}, label), input), value: () => input.value};
}

/** A parameter as it was typed: a text where it was one before, else JSON. */
function typed(name, before, words) {
  if (typeof before === "string") return words;
  try {
    return JSON.parse(words);
  } catch {
    throw new Error(`${name}: ${JSON.stringify(words)} is no JSON. Numbers, true, false, null, "texts", [lists] and {"objects": 1} are.`);
  }
}
