// What a gate asked and what was decided, in words; and the command that decides from a terminal.

import {h} from "./dom.js";
import {ago, clock, cut, exactly, when} from "./format.js";

const HEADING = 200; // characters of a question that stand as its heading

const VIA = {
  notebook: "in the notebook",
  dashboard: "on the dashboard",
  cli: "in a terminal",
  python: "from Python",
  timeout: "by the time limit",
  quality: "by a quality check",
};

const OVER = {
  timed_out: "Nobody decided in time; it can no longer be decided.",
  gone: "The store has this gate no more.",
  cancelled: "Nobody can decide it any more: it was withdrawn, or its run is over.",
};

const SINCE = {
  fail: "The run fails here when it goes on.",
  continue: "It counts as approved when the run goes on.",
  reject: "It counts as rejected when the run goes on.",
};

/** Why a gate cannot be decided any more, and what that means for its run. */
function over({state, on_timeout}) {
  return [OVER[state], state === "timed_out" && SINCE[on_timeout]].filter(Boolean).join(" ");
}

/** What happens when nobody decides in time. */
export const THEN = {fail: "then it fails", continue: "then it is approved", reject: "then it is rejected"};

/** The question as a heading, and the whole of it where that is more. */
export function asked(row) {
  const whole = (row.text || "").trim();
  const [first] = whole.split("\n", 1);
  return whole ? [cut(first, HEADING), whole.length > first.length || first.length > HEADING ? whole : ""] : [cut(row.name, HEADING), ""];
}

/** The seconds that are left, in as many characters from second to second. */
export function timeLeft(seconds) {
  const whole = Math.max(0, Math.ceil(seconds));
  const [days, hours, minutes] = [Math.floor(whole / 86400), Math.floor(whole / 3600) % 24, Math.floor(whole / 60) % 60];
  const two = (number) => String(number).padStart(2, "0");
  return days ? `${days} d ${two(hours)} h left` : `${two(hours)}:${two(minutes)}:${two(whole % 60)} left`;
}

/** A decision in one sentence, for those who hear the page. */
export function spoken(row) {
  const {decision} = row;
  if (!decision) return over(row);
  return `${decision.approved ? "Approved" : "Rejected"} by ${decision.by || "nobody known"}.`;
}

/** What became of a gate that waits no more. */
export function makeRecord(row, {here, waits, unsent, complaint}) {
  const {decision} = row;
  const parts = [];
  if (complaint) parts.push(h("p", {class: "nbflow-error"}, complaint));
  if (decision) {
    const recent = Math.abs(Date.now() / 1000 - decision.at) < 43200;
    parts.push(
      h(
        "p",
        {class: "nbflow-gate-decided"},
        h("b", {}, decision.approved ? "Approved" : "Rejected"),
        " by ",
        h("b", {}, cut(decision.by || "nobody known", 120)),
        " at ",
        h("time", {title: exactly(decision.at)}, recent ? clock(decision.at) : when(decision.at)),
        VIA[decision.via] ? ` ${VIA[decision.via]}` : decision.via ? ` (${cut(decision.via, 40)})` : "",
        decision.feedback ? ":" : ".",
      ),
      decision.feedback ? h("blockquote", {class: "nbflow-gate-feedback"}, decision.feedback) : null,
      decision.selections?.length
        ? h("p", {}, "Selected: ", h("ul", {class: "nbflow-gate-selected"}, decision.selections.map((each) => h("li", {}, each))))
        : null,
    );
  } else {
    parts.push(h("p", {class: "nbflow-gate-decided"}, over(row) || "It was decided."));
  }
  if (decision) parts.push(onward(row, {here, waits}));
  if (unsent)
    parts.push(h("div", {class: "nbflow-gate-unsent"}, h("p", {}, "What you were writing was not sent:"), h("blockquote", {}, unsent)));
  return h("div", {class: "nbflow-gate-record"}, parts);
}

/** How the run goes on. No page can press Run All for somebody, so it says the keys. */
function onward(row, {here, waits}) {
  const quiet = {class: "nbflow-quiet"};
  if (row.state !== "sent") return h("p", quiet, "The run has taken it in.");
  if (waits) return h("p", quiet, "Sent. The cell that waits takes it in and goes on.");
  if (here)
    return h(
      "p",
      quiet,
      "Sent. Now choose ",
      h("b", {}, "Run ▸ Run All Cells"),
      row.decision.approved ? ": the run goes on from here" : ": the run learns of it",
      ", and what is done comes back at once. Or select this cell and press ",
      h("kbd", {}, "Shift"),
      "+",
      h("kbd", {}, "Enter"),
      ".",
    );
  return h("p", quiet, "Sent. The run takes it in when it goes on: with ", h("b", {}, "Run All"), " in its notebook, or when it is resumed.");
}

/** A word as a shell takes it. */
export function quoted(word) {
  return /^[\w@%+=:,./-]+$/.test(word) && !word.startsWith("-") ? word : `'${word.replaceAll("'", `'"'"'`)}'`;
}

/** The command that decides a gate from a terminal, with a button that copies it. */
export function command(row, approved, store = "") {
  const words = ["nbflow", approved ? "approve" : "reject", quoted(row.run), quoted(row.step)];
  if (approved && row.single && row.options?.length) words.push("--select OPTION");
  if (store) words.push("--store", quoted(store));
  const line = words.join(" ");
  const copied = h("span", {class: "nbflow-quiet", role: "status"});
  const copy = async () => {
    try {
      await navigator.clipboard.writeText(line);
      copied.textContent = "Copied.";
    } catch {
      copied.textContent = "Select it and copy it yourself.";
    }
  };
  return h(
    "span",
    {class: "nbflow-gate-command"},
    h("code", {}, line),
    h(
      "button",
      {type: "button", class: "nbflow-button", "aria-label": `Copy: ${cut(line, 80)}`, on: {click: copy}},
      "Copy",
    ),
    copied,
  );
}
