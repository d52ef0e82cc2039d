// A Gantt of a run: a line for each attempt and step, bars where something was at work, hatched where it
// waited, a mark where a try failed. Zoom and move with the keys, the wheel or the buttons.

import {button, h, painted, set, text} from "./dom.js";
import {clock, plural, seconds} from "./format.js";
import {look, restate, stateBadge} from "./states.js";
import {longTable} from "./table.js";

const WAITS = new Set(["gate", "signal", "sleep"]);

/** `open(row)` shows a step. Returns {update({row, steps, attempts}), dispose}. */
export function mount(root, adapter, {open}) {
  let lines = [];
  let span = [0, 1]; // of the whole run, UTC seconds
  let sight = null; // what is zoomed to; null: all
  let running = false;
  const said = h("span", {class: "nbflow-quiet", role: "status"});
  const scale = h("div", {class: "nbflow-scale", "aria-hidden": "true"});
  const empty = h("p", {class: "nbflow-empty"}, "Nothing has run yet: steps are drawn here as they start.");
  const table = longTable({
    label: "Timeline: each line a step, with when it ran",
    row: 30,
    card: 50,
    most: 460,
    empty,
    key: (line) => line.key,
    open: (line) => line.row && open(line.row),
    keys: (event) => keys(event),
    columns: [
      {
        name: "step",
        title: "Step",
        cell: (line) => h("span", {class: "nbflow-cut"},
          line.row
            ? h("button", {type: "button", class: "nbflow-link nbflow-open", title: line.row.step}, line.row.name)
            : h("b", {}, line.name)),
        update: () => {},
      },
      {name: "state", title: "State", cell: (line) => stateBadge(line.state), update: (badge, line) => restate(badge, line.state)},
      {
        name: "track",
        title: "When",
        cell: (line) => draw(h("div", {class: "nbflow-track", role: "img"}), line),
        update: draw,
      },
    ],
  });
  const tools = h("div", {class: "nbflow-row"},
    button("+", () => zoom(0.5), {"aria-label": "Zoom in", title: "Zoom in (+)"}),
    button("−", () => zoom(2), {"aria-label": "Zoom out", title: "Zoom out (−)"}),
    button("‹", () => move(-0.25), {"aria-label": "Earlier", title: "Earlier (Shift+←)"}),
    button("›", () => move(0.25), {"aria-label": "Later", title: "Later (Shift+→)"}),
    button("All", () => fit(), {title: "Show the whole run (0)"}),
    said,
    h("span", {class: "nbflow-legend nbflow-quiet", "aria-hidden": "true"},
      h("i", {class: "nbflow-key"}), "at work ", h("i", {class: "nbflow-key nbflow-hatched"}), "waiting ", h("i", {class: "nbflow-key nbflow-tick"}), "a try failed"));
  const element = h("div", {class: "nbflow-timeline", on: {keydown: (event) => keys(event) && event.preventDefault()}}, tools, scale, table.element);
  element.addEventListener("wheel", (event) => {
    const track = event.target.closest(".nbflow-track");
    if (!track || !(event.ctrlKey || event.metaKey)) return;
    event.preventDefault();
    const box = track.getBoundingClientRect();
    zoom(event.deltaY > 0 ? 1.25 : 0.8, (event.clientX - box.left) / box.width);
  }, {passive: false});
  root.append(element);

  const [from, to] = [() => (sight ?? span)[0], () => (sight ?? span)[1]];

  function draw(track, line) {
    const width = to() - from();
    const place = (at) => (100 * (at - from())) / width;
    const parts = [];
    for (const {start, end, tone, waits, title} of line.bars) {
      const [left, right] = [place(start), place(end ?? now())];
      if (right < 0 || left > 100) continue;
      const low = Math.max(0, left);
      const wide = `max(3px, ${Math.min(100, right) - low}%)`;
      parts.push(h("i", {
        class: `nbflow-span nbflow-tone-${tone} ${waits ? "nbflow-hatched" : ""}`,
        title,
        style: {"inset-inline-start": `min(${low}%, 100% - 3px)`, width: wide}, // what begins at the end is seen
      }));
    }
    for (const {at, title} of line.ticks) {
      if (at >= from() && at <= to()) parts.push(h("i", {class: "nbflow-tick", title, style: {"inset-inline-start": `${place(at)}%`}}));
    }
    track.replaceChildren(...parts);
    set(track, {"aria-label": line.said});
    return track;
  }

  const now = () => (running ? Date.now() / 1000 : span[1]);
  const redraw = painted(() => {
    lines = lines.map((line) => ({...line}));
    table.show({total: lines.length, at: (index) => lines[index]});
    const width = to() - from();
    text(said, sight ? `${clock(from())} to ${clock(to())}: ${seconds(width)} of ${seconds(span[1] - span[0])}` : `All: ${seconds(width)}`);
    drawScale(width);
  });

  function drawScale(width) {
    const step = nice(width / 4);
    const marks = [];
    for (let at = Math.ceil((from() - span[0]) / step) * step; at <= to() - span[0]; at += step) {
      const left = (100 * (at + span[0] - from())) / width;
      // Near the end there is room for a word in a wide page alone.
      const style = {"inset-inline-start": `${left}%`};
      if (left <= 88) marks.push(h("span", {class: left > 70 ? "nbflow-late" : null, style}, at ? `+${seconds(at)}` : clock(span[0])));
    }
    scale.replaceChildren(h("div", {class: "nbflow-scale-marks"}, marks));
  }

  function zoom(factor, at = 0.5) {
    const [low, high] = [from(), to()];
    const wide = Math.max(0.01, (high - low) * factor);
    if (wide >= span[1] - span[0]) {
      fit();
      return;
    }
    const middle = low + (high - low) * at;
    place(middle - wide * at, wide);
  }

  function move(share) {
    const wide = to() - from();
    place(from() + wide * share, wide);
  }

  function place(start, wide) {
    const low = Math.min(Math.max(span[0], start), span[1] - wide);
    sight = low <= span[0] && wide >= span[1] - span[0] ? null : [low, low + wide];
    redraw();
  }

  function fit() {
    sight = null;
    redraw();
  }

  function keys(event) {
    if (event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey) return false;
    if (event.key === "+" || event.key === "=") zoom(0.5);
    else if (event.key === "-") zoom(2);
    else if (event.key === "0") fit();
    else if (event.shiftKey && event.key === "ArrowLeft") move(-0.25);
    else if (event.shiftKey && event.key === "ArrowRight") move(0.25);
    else return false;
    return true;
  }

  // What runs grows as time goes on.
  const tick = setInterval(() => {
    if (!running || !adapter.connected || !element.isConnected || document.visibilityState === "hidden") return;
    span = [span[0], Date.now() / 1000];
    redraw();
  }, 1000);

  return {
    update({row, steps, attempts}) {
      running = row.state === "running" || row.state === "waiting";
      const last = Math.max(row.updated ?? 0, row.finished ?? 0, ...steps.map((step) => step.finished ?? step.started));
      const begin = Math.min(row.created, ...steps.map((step) => step.started));
      span = [begin, Math.max(begin + 0.01, running ? Date.now() / 1000 : last)];
      lines = [...attemptLines(row, attempts ?? [], span[1], running), ...steps.map((step) => stepLine(step, running ? null : span[1]))];
      redraw();
    },
    dispose() {
      clearInterval(tick);
      redraw.stop();
      table.dispose();
      element.remove();
    },
  };
}

/** A line for each attempt of the run, where it had more than one: from its start until the next one, at most. */
function attemptLines(row, attempts, end, running) {
  if (attempts.length < 2) return [];
  return attempts.map(({attempt, started, finished}, at) => {
    const last = at === attempts.length - 1;
    const state = last ? row.state : "stopped";
    const stop = last ? (running ? null : end) : finished ?? attempts[at + 1].started;
    const title = `Attempt ${attempt}: ${clock(started)}, ${seconds((stop ?? end) - started)}`;
    return {key: `a${attempt}`, name: `Attempt ${attempt}`, state, said: title, ticks: [], bars: [{start: started, end: stop, tone: "quiet", title}]};
  });
}

function stepLine(step, end) {
  const bars = [];
  const ticks = [];
  let start = step.started;
  for (const retry of step.retries ?? []) {
    const why = retry.error ? `${retry.error.type}: ${retry.error.message}` : "failed";
    bars.push({start, end: retry.at, tone: "bad", title: `Try ${retry.attempt}: ${why}`});
    ticks.push({at: retry.at, title: `Try ${retry.attempt} failed: ${why}`});
    const next = retry.due_at ?? retry.at;
    const until = step.finished === null ? next : Math.min(next, step.finished);
    if (until > retry.at) bars.push({start: retry.at, end: until, tone: "warn", waits: true, title: `Waits ${seconds(until - retry.at)} for the next try`});
    start = until;
  }
  const waits = WAITS.has(step.kind) || step.state === "waiting" || step.state === "pending";
  const {tone, word} = look(step.state);
  const took = step.finished === null || step.state === "stopped" ? "not finished" : seconds(step.finished - step.started);
  const title = `${step.name}: ${word}, started ${clock(step.started)}, ${took}`;
  if (step.finished === null || step.finished >= start) bars.push({start, end: step.finished ?? end, tone, waits, title});
  const retried = step.retries?.length ? `, ${plural(step.retries.length, "failed try", "failed tries")}` : "";
  return {key: `s${step.execution}`, row: step, state: step.state, bars, ticks, said: title + retried};
}

/** The round number of seconds next above. */
function nice(value) {
  for (const step of [0.001, 0.01, 0.1, 0.25, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 28800, 43200, 86400, 172800, 604800]) {
    if (step >= value) return step;
  }
  return Math.ceil(value / 604800) * 604800;
}
