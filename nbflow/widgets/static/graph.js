// The states of a machine, or the cells of a notebook, as a picture that is alive: laid out in Python, drawn
// here, changed in place. `about`: {run} or {workflow} (its newest run), {graph} to begin with, {open(execution)}.

import {button, fresh, h, keyed, painted, replace, set, svg, text} from "./dom.js";
import {ago, count, plural, seconds, shortId} from "./format.js";
import {sentence} from "./dialog.js";
import {iconPath, look, restate, stateBadge} from "./states.js";
import {mount as mountStep} from "./step.js";

const READABLE = 0.7; // below this scale words are not read any more
const [SMALLEST, LARGEST] = [0.15, 2.5];
const OPEN = new Set(["running", "waiting"]);
const BATCHED = new Set(["call", "item", "batch"]); // their labels say how many
const WAYS = {ArrowDown: [0, 1], ArrowUp: [0, -1], ArrowRight: [1, 0], ArrowLeft: [-1, 0]};

export function mount(root, adapter, about) {
  let {run = null} = about;
  let graph = null;
  let row = null; // the run's line
  let steps = new Map();
  let panel = null;
  let scale = 1;
  let byHand = false; // somebody zoomed: the size of the page no longer decides
  let active = null; // the id of the node that the keyboard is at
  let chosen = null;
  const nodes = new Map(); // id → {node, g, ...}
  const edges = new Map();

  const title = h("h2", {id: fresh("graph")});
  const badge = stateBadge("pending");
  const here = h("span", {class: "nbflow-quiet", role: "status"});
  const lines = svg("g", {});
  const boxes = svg("g", {});
  const drawing = svg("svg", {role: "presentation", class: "nbflow-drawing", focusable: "false"}, lines, boxes);
  const view = h("div", {
    class: "nbflow-view", role: "listbox", tabindex: 0, "aria-label": "States", "aria-roledescription": "graph",
    on: {keydown, focus: () => show(active ?? firstNode()), blur: () => hide(0), pointerdown, pointermove, pointerup, pointercancel: pointerup, pointerover, pointerleave: () => hide(250), click},
  }, drawing);
  view.addEventListener("wheel", wheel, {passive: false});
  const card = h("div", {class: "nbflow-card", "aria-hidden": "true", hidden: true, on: {pointerenter: () => clearTimeout(hiding), pointerleave: () => hide(250)}});
  const told = h("ol", {class: "nbflow-hidden", "aria-label": "States in order"});
  const legend = h("div", {class: "nbflow-row nbflow-occurs"});
  const trouble = h("p", {class: "nbflow-error", role: "alert", hidden: true});
  const empty = h("p", {class: "nbflow-empty", hidden: true}, "Nothing is recorded yet, so there is nothing to draw.");
  const zooms = h("div", {class: "nbflow-row nbflow-zooms", role: "group", "aria-label": "Size of the picture"},
    button("−", () => zoom(1 / 1.25), {"aria-label": "Smaller", title: "Smaller (−)"}),
    button("+", () => zoom(1.25), {"aria-label": "Larger", title: "Larger (+)"}),
    button("Fit", () => fit(SMALLEST), {"aria-label": "Fit all into view", title: "Fit (0)"}));
  const stage = h("div", {class: "nbflow-stage"}, view, card);
  const beside = h("div", {class: "nbflow-beside"});
  const head = about.embedded ? null : h("div", {class: "nbflow-row nbflow-graph-head"}, title, badge, here);
  const element = h("section", {class: "nbflow-graph", "aria-label": "Graph"},
    head, trouble, empty, h("div", {class: about.embedded ? null : "nbflow-split"}, h("div", {class: "nbflow-panel"}, stage, h("div", {class: "nbflow-row nbflow-spread"}, legend, zooms), told), beside));
  root.append(element);

  // --- what is drawn ------------------------------------------------------------------------------

  function draw(next) {
    const first = !graph;
    graph = next;
    empty.hidden = Boolean(graph?.nodes.length);
    stage.hidden = zooms.hidden = !empty.hidden;
    if (!graph) return;
    set(view, {"aria-label": `${graph.kind === "machine" ? "States of machine" : "Steps of"} ${graph.name}`});
    reconcile(edges, graph.edges, edgeKey, makeEdge, paintEdge);
    reconcile(nodes, graph.nodes, (node) => node.id, makeNode, paintNode);
    size();
    summary();
    if (first) {
      fit(READABLE);
      const at = graph.nodes.find(({current}) => current);
      if (at) reveal(at, true);
    }
  }

  function reconcile(there, items, key, make, paint) {
    const wanted = new Set(items.map(key));
    for (const [name, one] of there) {
      if (wanted.has(name)) continue;
      one.g.remove();
      one.li?.remove();
      there.delete(name);
    }
    for (const item of items) {
      if (!there.has(key(item))) there.set(key(item), make(item));
      paint(there.get(key(item)), item);
    }
  }

  function makeEdge() {
    const path = svg("path", {class: "nbflow-way"});
    const tip = svg("polygon", {class: "nbflow-tip"});
    const times = svg("text", {class: "nbflow-times", "text-anchor": "middle"});
    const g = svg("g", {}, path, tip, times);
    lines.append(g);
    return {g, path, tip, times};
  }

  function paintEdge(one, edge) {
    one.edge = edge;
    set(one.g, {class: edge.kind === "data" ? "nbflow-data-way" : edge.taken || (!graph.run && edge.target !== null) ? "nbflow-taken" : null});
    set(one.path, {d: edge.d});
    set(one.tip, {points: edge.head});
    text(one.times, edge.kind !== "data" && edge.taken > 1 ? `×${count(edge.taken)}` : "");
    if (edge.at) set(one.times, {x: edge.at[0], y: edge.at[1]});
  }

  function makeNode(node) {
    const made = {
      node,
      box: svg("rect", {class: "nbflow-box", rx: 8}),
      inner: svg("rect", {class: "nbflow-inner", x: 3, y: 3, rx: 6}),
      label: svg("text", {x: 12, y: 21}),
      icon: svg("path", {transform: "translate(11 29.5) scale(.8)"}),
      word: svg("text", {class: "nbflow-word", x: 29, y: 40}),
      badge: svg("text", {class: "nbflow-times", y: 21, "text-anchor": "end"}),
      li: h("li", {}),
    };
    made.g = svg("g", {role: "option", id: fresh("node")},
      made.box, node.final && made.inner, node.initial && svg("circle", {class: "nbflow-start", r: 4.5}),
      made.label, made.icon, made.word, made.badge);
    made.g.nbflowId = node.id;
    boxes.append(made.g);
    told.append(made.li);
    return made;
  }

  /** Bring one node in line with what is known; only what differs is touched. */
  function paintNode(one, node) {
    one.node = node;
    const planned = !graph.run; // a definition: nothing is pending where nothing was begun
    const {d, filled} = planned ? {d: "", filled: false} : iconPath(node.state);
    const classes = ["nbflow-node", `nbflow-tone-${look(node.state).tone}`, node.state === "pending" && !planned && "nbflow-is-pending"];
    if (node.current) classes.push("nbflow-here", OPEN.has(node.state) && "nbflow-pulse");
    if (node.id === active) classes.push("nbflow-active");
    change(one.g, "class", classes.filter(Boolean).join(" "));
    change(one.g, "transform", `translate(${node.x - node.w / 2} ${node.y - node.h / 2})`);
    change(one.g, "aria-selected", String(node.id === chosen));
    change(one.g, "aria-label", spoken(node));
    for (const [box, by] of [[one.box, 0], [one.inner, 6]]) {
      change(box, "width", node.w - by);
      change(box, "height", node.h - by);
    }
    change(one.icon, "d", d);
    change(one.icon, "class", filled ? "nbflow-icon-filled" : "nbflow-icon-line");
    text(one.label, node.text);
    change(one.word, "x", planned ? 12 : 29);
    text(one.word, planned ? role(node) : [look(node.state).word, took(node)].filter(Boolean).join(" · "));
    change(one.badge, "x", node.w - 10);
    text(one.badge, badgeOf(node));
    text(one.li, spoken(node));
    if (node.id === active && !card.hidden) fillCard(node);
  }

  function change(element, name, value) {
    if (element.getAttribute(name) !== String(value)) element.setAttribute(name, value);
  }

  const firstNode = () => graph?.nodes.find(({current}) => current)?.id ?? graph?.nodes[0]?.id ?? null;
  const shownNode = () => nodes.get(active)?.node;

  function took(node) {
    if (node.state === "running" && node.started) return seconds(Date.now() / 1000 - node.started);
    return node.seconds ? seconds(node.seconds) : "";
  }

  function badgeOf(node) {
    const visits = node.visits > 1 && !BATCHED.has(node.kind) ? `×${count(node.visits)}` : "";
    return [visits, node.retries > 0 ? `↻${count(node.retries)}` : ""].filter(Boolean).join(" ");
  }

  function spoken(node) {
    return [
      `${node.label}: ${graph.run ? look(node.state).word : role(node)}`, node.current && "current", took(node),
      node.visits > 1 && plural(node.visits, "visit"), node.retries > 0 && plural(node.retries, "retry", "retries"),
      graph.run && node.initial && "initial", graph.run && node.final && "final", node.error,
    ].filter(Boolean).join(", ");
  }

  /** What occurs, as words; it is the legend too. */
  function summary() {
    const counts = new Map();
    for (const {state} of graph.run ? graph.nodes : []) counts.set(state, (counts.get(state) ?? 0) + 1);
    keyed(legend, [...counts].sort(), ([state]) => state, ([state, number]) => {
      const word = h("span", {class: "nbflow-number"}, count(number));
      const made = h("span", {class: "nbflow-row nbflow-occurs-one"}, stateBadge(state), word);
      made.nbflow = ([, now]) => text(word, count(now));
      return made;
    });
    const at = graph.nodes.filter(({current}) => current).map(({label}) => label);
    text(title, graph.name);
    text(here, row ? [row.state === "completed" || !at.length ? "" : `at ${at.slice(0, 3).join(", ")}`, `run ${shortId(run)}`].filter(Boolean).join(" · ") : "has not run yet");
    badge.hidden = !row;
    if (row) restate(badge, row.state);
  }

  // --- size and place -----------------------------------------------------------------------------

  function size() {
    set(drawing, {viewBox: `0 0 ${graph.width} ${graph.height}`, width: graph.width * scale, height: graph.height * scale});
  }

  function fit(least) {
    if (!graph) return;
    byHand = least !== READABLE;
    const tall = byHand ? view.clientHeight / graph.height : Infinity;
    scale = Math.min(1, Math.max(least, Math.min(view.clientWidth / graph.width, tall)));
    size();
  }

  /** Change the scale; the place under `x`, `y` (px in the view; its middle by default) stays. */
  function zoom(by, x = view.clientWidth / 2, y = view.clientHeight / 2) {
    if (!graph) return;
    byHand = true;
    const before = scale;
    scale = Math.min(LARGEST, Math.max(SMALLEST, scale * by));
    const [left, top] = [(view.scrollLeft + x) / before, (view.scrollTop + y) / before];
    size();
    view.scrollLeft = left * scale - x;
    view.scrollTop = top * scale - y;
    place();
  }

  function reveal(node, middle = false) {
    const [x, y, w, h2] = [node.x, node.y, node.w + 24, node.h + 24].map((one) => one * scale);
    const over = (start, long, at, wide) => (middle ? at - long / 2 : Math.min(Math.max(start, at + wide / 2 - long), at - wide / 2));
    view.scrollLeft = over(view.scrollLeft, view.clientWidth, x, w);
    view.scrollTop = over(view.scrollTop, view.clientHeight, y, h2);
  }

  function wheel(event) {
    if (!event.ctrlKey && !event.metaKey) return;
    event.preventDefault();
    const {left, top} = view.getBoundingClientRect();
    zoom(Math.exp(-Math.max(-60, Math.min(60, event.deltaY)) / 150), event.clientX - left, event.clientY - top);
  }

  let drag = null;
  let dragged = false;
  let still = {};
  function pointerdown(event) {
    dragged = false;
    still = {x: event.clientX, y: event.clientY};
    if (event.pointerType === "mouse" && event.button === 0) drag = {x: event.clientX, y: event.clientY, left: view.scrollLeft, top: view.scrollTop};
  }

  function pointermove(event) {
    if (!drag) return;
    const [x, y] = [event.clientX - drag.x, event.clientY - drag.y];
    if (!dragged && Math.hypot(x, y) < 5) return;
    if (!dragged) view.setPointerCapture(event.pointerId);
    dragged = true;
    view.scrollLeft = drag.left - x;
    view.scrollTop = drag.top - y;
  }

  function pointerup() {
    drag = null;
  }

  // --- one node -----------------------------------------------------------------------------------

  const nodeAt = (event) => nodes.get(event.target.closest?.("[role=option]")?.nbflowId)?.node;

  function pointerover(event) {
    if (event.clientX === still.x && event.clientY === still.y) return; // the picture moved, and not the pointer
    still = {x: event.clientX, y: event.clientY};
    const node = nodeAt(event);
    if (node && !dragged) show(node.id);
    else hide(250);
  }

  function click(event) {
    const node = nodeAt(event);
    if (node && !dragged) choose(node);
    dragged = false;
  }

  function keydown(event) {
    if (!graph || event.altKey || event.ctrlKey || event.metaKey) return;
    const {key} = event;
    const node = shownNode();
    if (key === "+" || key === "=") zoom(1.25);
    else if (key === "-" || key === "_") zoom(1 / 1.25);
    else if (key === "0") fit(SMALLEST);
    else if (key === "Home" || key === "End") go(graph.nodes.at(key === "Home" ? 0 : -1));
    else if (WAYS[key]) go(node ? towards(node, WAYS[key]) : graph.nodes[0]);
    else if ((key === "Enter" || key === " ") && node) choose(node);
    else if (key === "Escape" && !card.hidden) hide(0);
    else return;
    event.preventDefault();
    event.stopPropagation(); // the notebook has commands on these keys
  }

  /** The nearest node that way; one that an edge leads to is nearer than it looks. */
  function towards(node, [dx, dy]) {
    const linked = new Set();
    for (const {edge} of edges.values()) {
      if (edge.source === node.id) linked.add(edge.target);
      if (edge.target === node.id) linked.add(edge.source);
    }
    let [best, least] = [null, Infinity];
    for (const one of graph.nodes) {
      const [x, y] = [one.x - node.x, one.y - node.y];
      const along = x * dx + y * dy;
      const aside = Math.abs(x * dy) + Math.abs(y * dx);
      if (one === node || along < 8 || (!linked.has(one.id) && aside > 2 * along)) continue;
      const far = (along + 1.5 * aside) * (linked.has(one.id) ? 0.4 : 1);
      if (far < least) [best, least] = [one, far];
    }
    return best;
  }

  function go(node) {
    if (!node) return;
    reveal(node);
    show(node.id);
  }

  let hiding = 0;
  function show(id) {
    clearTimeout(hiding);
    if (!nodes.has(id)) return;
    if (id !== active) {
      const before = nodes.get(active);
      active = id;
      if (before) paintNode(before, before.node);
      for (const {g, edge} of edges.values()) g.classList.toggle("nbflow-near", edge.source === id || edge.target === id);
    }
    const {node, g} = nodes.get(id);
    set(view, {"aria-activedescendant": g.id});
    card.hidden = false;
    paintNode(nodes.get(id), node);
    place();
  }

  function hide(after) {
    clearTimeout(hiding);
    hiding = setTimeout(() => {
      card.hidden = true;
    }, after);
  }

  function fillCard(node) {
    const facts = [
      ["Took", took(node)],
      ["Visits", node.visits > 1 && count(node.visits)],
      ["Attempts", node.attempts > 0 && count(node.attempts)],
      ["Retries", node.retries > 0 && count(node.retries)],
      ["Last began", node.started && ago(node.started)],
      ["Items", node.items && Object.entries(node.items).map(([state, number]) => `${count(number)} ${look(state).word.toLowerCase()}`).join(", ")],
      ["Kind", node.kind !== "plain" && node.kind],
      ["Run", node.run && shortId(node.run)],
    ].filter(([, value]) => value);
    replace(card, h("b", {}, node.label), graph.run ? stateBadge(node.state) : h("span", {}, role(node)),
      h("dl", {}, facts.map(([name, value]) => [h("dt", {}, name), h("dd", {}, value)])),
      node.error && h("p", {class: "nbflow-error nbflow-cut4"}, node.error),
      node.execution === null && graph.run && h("p", {class: "nbflow-quiet"}, node.kind === "router" ? "A router records nothing." : "Nothing is recorded of it yet."));
  }

  /** Put the card below the node, or above it where there is more room. */
  function place() {
    const node = shownNode();
    if (!node || card.hidden) return;
    const [left, top] = [(node.x - node.w / 2) * scale - view.scrollLeft, (node.y - node.h / 2) * scale - view.scrollTop];
    const wide = Math.min(280, stage.clientWidth - 8);
    const below = top + node.h * scale + 8;
    const up = below + card.offsetHeight > view.clientHeight && top - 8 - card.offsetHeight > 0;
    set(card, {style: {
      width: `${wide}px`,
      left: `${Math.max(4, Math.min(left, stage.clientWidth - wide - 4))}px`,
      top: `${up ? top - 8 - card.offsetHeight : Math.min(below, view.clientHeight)}px`,
    }});
  }

  function choose(node) {
    const before = nodes.get(chosen);
    chosen = node.id;
    if (before) paintNode(before, before.node);
    go(node);
    if (node.execution === null || !run) return;
    hide(0);
    element.dispatchEvent(new CustomEvent("nbflow:step", {bubbles: true, detail: {run, execution: node.execution}}));
    about.onselect?.(node.execution);
    if (about.open) about.open(node.execution);
    else openStep(node);
  }

  function openStep(node) {
    panel?.dispose();
    const line = steps.get(node.execution) ?? {execution: node.execution, name: node.label, state: node.state, retries: []};
    panel = mountStep(beside, adapter, {run, row: line, close: closeStep});
    panel.execution = node.execution;
    element.classList.add("nbflow-with-step");
  }

  function closeStep() {
    panel?.dispose();
    panel = null;
    element.classList.remove("nbflow-with-step");
    view.focus({preventScroll: true});
  }

  // --- what comes in ------------------------------------------------------------------------------

  function whole(found) {
    ({row} = found);
    steps = new Map(found.steps?.map((one) => [one.execution, one]));
    draw(found.graph ?? (found.row && about.workflow ? graph : null));
  }

  function take(push) {
    if (push.push === "runs" && about.workflow) {
      const newest = push.rows[0]?.run;
      if (newest && newest !== run) {
        run = newest;
        if (panel) closeStep();
        follow.update({run});
      }
      return;
    }
    if (push.run !== run || !run) return;
    if (push.push === "lost") {
      trouble.hidden = false;
      text(trouble, sentence(push.error));
    } else if (push.push === "whole") {
      trouble.hidden = true;
      whole(push);
    } else if (push.push === "run") {
      row = push.row ?? row;
      for (const one of push.steps ?? []) {
        steps.set(one.execution, one);
        if (panel?.execution === one.execution) panel.update(one);
      }
      if (push.graph) draw(push.graph);
      else if (graph) patch(push);
    }
  }

  /** Take over the nodes and edges that changed. */
  function patch(push) {
    for (const [part, there, key, paint] of [["nodes", nodes, (node) => node.id, paintNode], ["edges", edges, edgeKey, paintEdge]]) {
      for (const item of push[part] ?? []) {
        const at = graph[part].findIndex((one) => key(one) === key(item));
        if (at < 0) continue;
        graph[part][at] = item;
        paint(there.get(key(item)), item);
      }
    }
    summary();
  }

  const ticking = setInterval(() => {
    for (const one of nodes.values()) if (one.node.state === "running") paintNode(one, one.node);
  }, 1000);
  const resized = painted(() => {
    if (graph && !byHand) fit(READABLE);
    place();
  });
  const observer = new ResizeObserver(resized);
  observer.observe(view);
  view.addEventListener("scroll", place);
  const stop = adapter.listen(take);
  const newest = {workflow: about.workflow, sort: "created", descending: true, offset: 0, limit: 1, children: true};
  const follow = about.embedded ? null : adapter.follow({runs: about.workflow ? newest : null, run, gates: false});
  if (!about.embedded && adapter.snapshot?.run?.row) whole(adapter.snapshot.run);
  else draw(about.graph ?? adapter.snapshot?.graph ?? null);

  return () => {
    clearInterval(ticking);
    clearTimeout(hiding);
    observer.disconnect();
    resized.stop();
    stop();
    follow?.stop();
    panel?.dispose();
    element.remove();
  };
}

/** What a state of a definition is. */
function role({initial, final, kind}) {
  const words = [initial && "initial", final && "final", kind !== "plain" && kind].filter(Boolean).join(", ") || "state";
  return words[0].toUpperCase() + words.slice(1);
}

const edgeKey = ({source, target, kind}) => JSON.stringify([source, target, kind]);
