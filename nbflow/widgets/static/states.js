// How a state is shown: a colour, an icon and a word, always all three. One table for runs, steps and gates.

import {h, svg} from "./dom.js";

// Drawn in a box of 16 × 16.
const ICONS = {
  pending: "M8 2.5a5.5 5.5 0 1 1 0 11a5.5 5.5 0 0 1 0-11Z",
  running: "M5 3.2v9.6l8-4.8Z",
  waiting: "M4 2.5h8M4 13.5h8M5 2.5c0 4 6 4 6 11M11 2.5c0 4-6 4-6 11",
  completed: "M3 8.5l3.2 3.2L13 4.8",
  failed: "M4 4l8 8M12 4l-8 8",
  cancelled: "M8 2.5a5.5 5.5 0 1 1 0 11a5.5 5.5 0 0 1 0-11ZM4.2 11.8l7.6-7.6",
  stopped: "M4.2 4.2h7.6v7.6h-7.6Z",
  corrupt: "M8 2l6.2 11.5H1.8ZM8 6v4M8 11.6v.6",
  skipped: "M3.5 3.5l5 4.5l-5 4.5M11.5 3.5v9",
  timed_out: "M8 2.5a5.5 5.5 0 1 1 0 11a5.5 5.5 0 0 1 0-11ZM8 5v3.2l2.3 1.6",
  sent: "M2 8h10M8.5 4.5L12 8l-3.5 3.5",
};

// tone: which colour of style.css; word: what is read; filled: the icon is a surface and no line.
const STATES = {
  pending: {tone: "quiet", word: "Pending", icon: "pending"},
  running: {tone: "brand", word: "Running", icon: "running", filled: true},
  waiting: {tone: "warn", word: "Waiting", icon: "waiting"},
  completed: {tone: "good", word: "Completed", icon: "completed"},
  failed: {tone: "bad", word: "Failed", icon: "failed"},
  cancelled: {tone: "quiet", word: "Cancelled", icon: "cancelled"},
  stopped: {tone: "warn", word: "Stopped", icon: "stopped", filled: true},
  corrupt: {tone: "bad", word: "Corrupt", icon: "corrupt"},
  skipped: {tone: "quiet", word: "Skipped", icon: "skipped"},
  timed_out: {tone: "bad", word: "Timed out", icon: "timed_out"},
  approved: {tone: "good", word: "Approved", icon: "completed"},
  rejected: {tone: "bad", word: "Rejected", icon: "failed"},
  sent: {tone: "brand", word: "Sent", icon: "sent"},
};

/** What the states of a run mean, for titles. */
export const MEANINGS = {
  pending: "Nothing has run yet.",
  running: "A kernel or process is at work on it.",
  waiting: "It waits for a decision, a signal or a time.",
  completed: "All is done and recorded.",
  failed: "A step failed; it can be resumed.",
  cancelled: "Ended for good by somebody.",
  stopped: "Its process is gone; it can be resumed.",
  corrupt: "A record of it fails its check.",
};

/** The order in which states are listed. */
export const RUN_STATES = ["running", "waiting", "failed", "stopped", "pending", "completed", "cancelled", "corrupt"];

const other = (state) => ({tone: "quiet", word: String(state ?? "unknown").replaceAll("_", " "), icon: "pending"});

/** How a state is shown: {tone, word, icon, filled}. A state that is not known is shown by its name. */
export function look(state) {
  return Object.hasOwn(STATES, state) ? STATES[state] : other(state);
}

/** The path of a state's icon, for drawings of one's own: {d, filled}. */
export function iconPath(state) {
  const {icon, filled} = look(state);
  return {d: ICONS[icon], filled: Boolean(filled)};
}

/** The icon alone; whoever uses it says the state in words beside it. */
export function stateIcon(state, size = 14) {
  const {d, filled} = iconPath(state);
  return svg(
    "svg",
    {viewBox: "0 0 16 16", width: size, height: size, class: "nbflow-icon", "aria-hidden": "true", focusable: "false"},
    svg("path", {d, class: filled ? "nbflow-icon-filled" : "nbflow-icon-line"}),
  );
}

/** Icon and word in the colour of the state. `word` replaces the usual one. */
export function stateBadge(state, word = null) {
  const {tone, word: usual} = look(state);
  return h(
    "span",
    {class: `nbflow-state nbflow-tone-${tone}`, dataset: {state: String(state)}, title: MEANINGS[state] ?? null},
    stateIcon(state),
    h("span", {class: "nbflow-state-word"}, word ?? usual),
  );
}

/** Change a badge in place; true if it changed. */
export function restate(badge, state) {
  if (badge.dataset.state === String(state)) return false;
  const made = stateBadge(state);
  badge.className = made.className;
  badge.dataset.state = made.dataset.state;
  if (made.title) badge.title = made.title;
  else badge.removeAttribute("title");
  badge.replaceChildren(...made.childNodes);
  return true;
}
