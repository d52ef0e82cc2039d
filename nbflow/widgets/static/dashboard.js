// The dashboard: runs, gates that wait, disk use, and one run at a time.

import {h, set, text} from "./dom.js";
import {mountList} from "./gate.js";
import {mount as mountDisk} from "./disk.js";
import {mount as mountRun} from "./run.js";
import {mount as mountRuns} from "./runs.js";

/** `about`: {run?: the run to begin with, store?: where it is, record: name of the static record}. */
export function mount(root, adapter, about) {
  const kept = recall(about.record);
  let place = kept.place ?? (about.run ? {run: about.run} : {});
  let filters = kept.filters;
  let view = null;
  const frame = root.closest(".nbflow") ?? root;
  const live = h("div", {class: "nbflow-hidden", role: "status", "aria-live": "polite"});
  const number = h("span", {class: "nbflow-count", hidden: true});
  const parts = [["runs", "Runs"], ["gates", "Gates"], ["disk", "Disk"]].map(([name, word]) =>
    h("button", {type: "button", class: "nbflow-part-button", dataset: {part: name}, on: {click: () => go({part: name})}}, word, name === "gates" ? number : null));
  const where = h("span", {class: "nbflow-quiet nbflow-mono nbflow-where", title: about.store ?? null}, about.store ?? "");
  const body = h("div", {});
  root.append(
    h("nav", {class: "nbflow-nav", "aria-label": "nbflow"}, h("strong", {class: "nbflow-brand"}, "nbflow"), parts, where),
    body,
    live,
  );
  set(frame, {role: "region", "aria-label": "nbflow dashboard"});

  const keep = (given) => {
    place = given;
    remember(about.record, {place, filters});
  };

  /** Show a run ({run, tab?, execution?}; its line where it is known), or a part ({part}); {} is the list of runs. */
  function go(given, row = null) {
    const before = place;
    const first = !view; // nobody pressed anything: the focus is the notebook's
    view?.();
    view = null;
    body.replaceChildren();
    keep(given);
    const part = given.run ? "runs" : given.part ?? "runs";
    for (const one of parts) set(one, {"aria-current": one.dataset.part === part ? "page" : null});
    if (given.run) {
      view = mountRun(body, adapter, {place: {...given}, row, go, keep, tell, focus: !first});
    } else if (part === "gates") {
      view = mountList(body, adapter, {told: tellGates, store: about.store});
    } else if (part === "disk") {
      view = mountDisk(body, adapter, {open: (run) => go({run})});
    } else {
      const runs = mountRuns(body, adapter, {open: (run, row) => go({run}, row), kept: filters, keep: (wish) => {
        filters = wish;
        keep(place);
      }});
      view = runs.dispose;
      // Whoever comes back from a run goes on where it was.
      if (before.run) requestAnimationFrame(() => requestAnimationFrame(() => runs.focus(before.run)));
    }
  }

  let last = 0;
  /** Announce sparingly: the newest of what happens within two seconds. */
  function tell(words) {
    clearTimeout(last);
    last = setTimeout(() => text(live, words), 500);
  }

  let waiting = null;
  function tellGates(count) {
    if (waiting !== null && count > waiting) tell(`${count} ${count === 1 ? "gate waits" : "gates wait"} for a decision`);
    waiting = count;
    number.hidden = !count;
    text(number, count);
  }

  const stop = adapter.listen((push) => {
    if (push.push === "gates") tellGates(push.rows.filter((row) => row.state === "waiting").length);
  });
  const following = adapter.follow({gates: true});
  if (adapter.snapshot?.gates) tellGates(adapter.snapshot.gates.rows.filter((row) => row.state === "waiting").length);
  go(place);

  // The notebook acts on keys of its own wherever the focus is: here they are the page's.
  const own = (event) => event.stopPropagation();
  set(frame, {"data-lm-suppress-shortcuts": "true"});
  frame.addEventListener("keydown", own);
  return () => {
    frame.removeEventListener("keydown", own);
    clearTimeout(last);
    following.stop();
    stop();
    view?.();
    root.replaceChildren();
  };
}

/** Where a page was is kept for as long as its tab is open, so that a reload comes back to it. */
function recall(record) {
  try {
    return JSON.parse(sessionStorage.getItem(`nbflow-${record}`) ?? "{}");
  } catch {
    return {};
  }
}

function remember(record, what) {
  try {
    sessionStorage.setItem(`nbflow-${record}`, JSON.stringify(what));
  } catch {
    // Storage is full or forbidden here: a reload begins at the list.
  }
}
