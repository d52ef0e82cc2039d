// One run: what it is, what can be done to it, and its graph, timeline, steps, outputs and log.

import {button, fresh, h, keyed, replace, set, text} from "./dom.js";
import {acted, deleteAct, runActs, stepActs} from "./acts.js";
import {ago, clock, count, cut, exactly, plain, plural, seconds, shortId} from "./format.js";
import {mount as mountGate} from "./gate.js";
import {restate, stateBadge} from "./states.js";
import {mount as mountStep, outputs} from "./step.js";
import {longTable, textCell} from "./table.js";
import {mount as mountTimeline} from "./timeline.js";
import {sentence} from "./dialog.js";

const TABS = [["overview", "Overview"], ["timeline", "Timeline"], ["steps", "Steps"], ["outputs", "Outputs"], ["log", "Log"]];
const MORE = 500;
// What a push has whole; of steps, nodes and edges it has those that changed.
const FACTS = ["row", "actions", "gates", "attempts", "published", "problem", "seq", "at"];

/** `place`: {run, tab, execution}; `row`: its line, where it is known; `go(place)` shows another run or list; `tell(words)` announces; `focus`: somebody came here by a click. */
export function mount(root, adapter, {place, row: known, go, keep, tell, focus}) {
  const {run} = place;
  let {tab = "overview"} = place;
  let whole = adapter.snapshot?.run?.row?.run === run ? adapter.snapshot.run : null;
  const steps = new Map();
  let panel = null; // what the chosen tab shows
  let step = null; // the open step
  let opener = null;

  const title = h("h2", {tabindex: -1, id: fresh("run")}, shortId(run));
  const badge = stateBadge(whole?.row?.state ?? "pending");
  const facts = h("dl", {class: "nbflow-facts"});
  const acts = h("div", {class: "nbflow-row nbflow-acts"});
  const said = h("div", {class: "nbflow-said", role: "status"});
  const problem = h("div", {class: "nbflow-banner nbflow-tone-bad", role: "alert", hidden: true});
  const trouble = h("p", {class: "nbflow-error nbflow-cut4"});
  const tabs = h("div", {class: "nbflow-tabs", role: "tablist", "aria-label": "Parts of the run"});
  const body = h("div", {class: "nbflow-panel", role: "tabpanel", id: fresh("panel"), tabindex: 0});
  const beside = h("div", {class: "nbflow-beside"});
  const element = h(
    "section",
    {class: "nbflow-run", "aria-labelledby": title.id},
    h("div", {class: "nbflow-row nbflow-head"}, button("← All runs", () => go({})), title, badge),
    problem, trouble, facts, acts, said, tabs, h("div", {class: "nbflow-split"}, body, beside),
  );
  root.append(element);

  const buttons = TABS.map(([name, word]) => h("button", {
    type: "button", role: "tab", id: fresh("tab"), class: "nbflow-tab", "aria-controls": body.id, dataset: {tab: name},
    on: {click: () => choose(name), keydown: (event) => turn(event, name)},
  }, word));
  tabs.append(...buttons);

  function turn(event, name) {
    const at = TABS.findIndex(([one]) => one === name);
    const to = {ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: TABS.length - 1}[event.key];
    if (to === undefined) return;
    event.preventDefault();
    const next = (to + TABS.length) % TABS.length;
    choose(TABS[next][0]);
    buttons[next].focus();
  }

  function choose(name) {
    tab = name;
    keep({run, tab, execution: step?.row.execution});
    for (const one of buttons) {
      const chosen = one.dataset.tab === name;
      set(one, {"aria-selected": String(chosen), tabindex: chosen ? 0 : -1});
      if (chosen) set(body, {"aria-labelledby": one.id});
    }
    panel?.dispose();
    body.replaceChildren();
    panel = null;
    if (!whole) {
      replace(body, h("p", {class: "nbflow-quiet"}, "Reading the run…"));
      return;
    }
    panel = PANELS[name](body, page);
    panel.update(now());
  }

  // What says that it runs in a process that is gone has stopped, as its run has.
  const stateOf = (row) => (whole.row.state === "stopped" && row.state === "running" ? "stopped" : row.state);
  const asShown = (row) => (stateOf(row) === row.state ? row : {...row, state: stateOf(row)});
  const now = () => ({...whole, steps: [...steps.values()].map(asShown).sort((one, other) => one.execution - other.execution)});
  const page = {run, adapter, open: openStep, go, whole: () => whole, loadMore};

  /** Show a step, from its line or from its execution's number. */
  function openStep(given) {
    const row = typeof given === "object" ? given : steps.get(given);
    if (!row) return;
    opener = document.activeElement;
    step?.view.dispose();
    const acts = stepActs(near, row, whole.actions ?? {});
    const view = mountStep(beside, adapter, {run, row, stateOf, acts, close: closeStep});
    step = {row, view};
    element.classList.add("nbflow-with-step");
    keep({run, tab, execution: row.execution});
  }

  function closeStep() {
    step?.view.dispose();
    step = null;
    element.classList.remove("nbflow-with-step");
    keep({run, tab});
    (opener?.isConnected ? opener : body).focus();
  }

  /** What actions need: the run, how to say what came of it, and where to go. */
  const near = {
    adapter,
    run,
    row: () => whole.row,
    say: (words, other) => {
      replace(said, acted(words, other, (next) => go({run: next})));
    },
    gone: () => go({}),
  };

  function drawHead(row, first) {
    text(title, row.workflow || shortId(run));
    if (restate(badge, row.state) && !first) tell(`${row.workflow}: ${row.state}`);
    const twice = whole?.problem && row.error?.includes(whole.problem); // it stands above already
    text(trouble, row.error && row.state !== "completed" && !twice ? row.error : "");
    trouble.hidden = !trouble.textContent;
    replaceIfNew(facts, runFacts(row, go));
  }

  function draw(first = false) {
    drawHead(whole.row, first);
    drawActs();
    panel?.update?.(now());
    if (step) {
      const changed = steps.get(step.row.execution);
      if (changed && changed !== step.row) {
        step.row = changed;
        step.view.update(changed);
      }
    }
  }

  function complain(words) {
    problem.hidden = !words;
    text(problem, words);
  }

  let actsSaid = "";
  function drawActs() {
    const wanted = JSON.stringify([whole.actions, whole.row.state, adapter.connected]);
    if (wanted === actsSaid) return;
    actsSaid = wanted;
    const list = adapter.connected ? [...runActs(near, whole), deleteAct(near, whole)] : [];
    keyed(acts, list, (one) => one.key, (one) => one.element);
  }

  function take(answer) {
    const first = !panel;
    whole = {...whole, ...answer};
    if (answer.steps) {
      steps.clear();
      for (const row of answer.steps) steps.set(row.execution, row);
    }
    complain(whole.problem);
    if (first) choose(tab);
    draw(first);
    if (place.execution !== undefined && place.execution !== null) {
      openStep(place.execution);
      place.execution = null;
    }
  }

  async function loadMore(offset) {
    const found = await adapter.ask("run", {run, offset, limit: MORE});
    for (const row of found.steps) steps.set(row.execution, row);
    if (whole.more && steps.size >= found.total) whole = {...whole, more: null};
    draw();
  }

  const stop = adapter.listen((push) => {
    if (push.push === "whole" && push.run === run) {
      take(push);
    } else if (push.push === "run" && push.run === run && whole) {
      for (const row of push.steps ?? []) steps.set(row.execution, row);
      whole = {...whole, graph: push.graph ?? patched(whole.graph, push)};
      for (const name of FACTS) if (push[name] !== undefined) whole[name] = push[name];
      complain(whole.problem);
      draw();
      // Times of the newest event and of its drawing, for whoever measures how live this is.
      if (push.at) element.dataset.at = push.at;
    } else if (push.push === "lost" && push.run === run) {
      complain(sentence(push.error));
      if (!whole) body.replaceChildren();
    } else if (push.push === "connection" && whole) {
      drawActs();
    }
  });
  const clockwork = setInterval(() => {
    if (whole?.row.state === "running" && adapter.connected && document.visibilityState !== "hidden") replaceIfNew(facts, runFacts(whole.row, go));
  }, 1000);
  if (whole) take(whole);
  else choose(tab);
  if (!whole && known) drawHead(known, true);
  const following = adapter.follow({run});
  if (focus) title.focus({preventScroll: true});

  return () => {
    clearInterval(clockwork);
    following.stop();
    stop();
    step?.view.dispose();
    panel?.dispose();
    element.remove();
  };
}

/** The picture with the parts that changed: whichever tab is open, the next one is drawn from it. */
function patched(graph, {nodes = [], edges = []}) {
  if (!graph || !(nodes.length || edges.length)) return graph;
  const named = ({source, target, kind}) => JSON.stringify([source, target, kind]);
  const changed = new Map([...nodes.map((node) => [node.id, node]), ...edges.map((edge) => [named(edge), edge])]);
  return {...graph, nodes: graph.nodes.map((node) => changed.get(node.id) ?? node), edges: graph.edges.map((edge) => changed.get(named(edge)) ?? edge)};
}

function runFacts(row, go) {
  const took = row.state === "running" ? Math.max(row.seconds, Date.now() / 1000 - row.created) : row.seconds;
  const pairs = Object.entries(row.params ?? {});
  const link = (run) => h("button", {type: "button", class: "nbflow-link nbflow-mono", on: {click: () => go({run})}}, shortId(run));
  return [
    fact("Run", h("span", {class: "nbflow-mono"}, row.run)),
    fact("Started", h("time", {title: exactly(row.created)}, `${clock(row.created)}, ${ago(row.created)}`)),
    fact("Duration", seconds(took)),
    fact("Steps", count(row.steps)),
    fact("Attempts", count(row.attempts)),
    row.owner ? fact("Owner", row.owner) : null,
    row.current ? fact("Attached", "to this kernel") : null,
    row.version ? fact("Version", row.version) : null,
    row.parent ? fact("Child of", link(row.parent)) : null,
    row.forked ? fact("Forked from", link(typeof row.forked === "string" ? row.forked : row.forked.run ?? plain(row.forked))) : null,
    ...Object.entries(row.tags ?? {}).map(([name, value]) => fact(`Tag ${name}`, value)),
    pairs.length ? fact("Parameters", h("span", {class: "nbflow-mono"}, cut(pairs.map(([name, value]) => `${name} = ${plain(value)}`).join(", "), 600))) : null,
  ].filter(Boolean);
}

function fact(name, value) {
  return h("div", {}, h("dt", {}, name), h("dd", {}, value));
}

/** Put new children in place only where they differ: a focused link inside stays. */
function replaceIfNew(element, children) {
  const made = h(element.tagName, {}, children);
  if ([...made.children].length === element.children.length && [...made.children].every((one, at) => one.isEqualNode(element.children[at]))) return;
  if (element.contains(document.activeElement)) return;
  replace(element, children);
}

const PANELS = {
  overview(root, {run, adapter, open, whole, go}) {
    const gates = h("div", {class: "nbflow-gates"});
    const graph = h("div", {class: "nbflow-overview"});
    const published = h("dl", {class: "nbflow-facts"});
    root.append(gates, graph, published);
    const cards = new Map();
    const about = {run, embedded: true, graph: whole().graph, open: (execution) => open(execution), go};
    let ended = false;
    let down = null;
    import("./graph.js").then(({mount}) => {
      if (!ended) down = mount(graph, adapter, about);
    }).catch((error) => {
      replace(graph, h("p", {class: "nbflow-error", role: "alert"}, `The graph could not be drawn: ${error.message}`));
    });
    return {
      update(now) {
        for (const gate of (now.gates ?? []).filter(({state}) => state === "waiting" || state === "sent")) {
          if (cards.has(gate.step)) continue;
          const place = h("div", {});
          gates.append(place);
          cards.set(gate.step, mountGate(place, adapter, {run, step: gate.step}));
        }
        replaceIfNew(published, Object.entries(now.published ?? {}).map(([name, value]) => fact(`Published: ${name}`, plain(value))));
      },
      dispose() {
        for (const one of cards.values()) one();
        ended = true;
        down?.();
      },
    };
  },

  timeline(root, {adapter, open}) {
    return mountTimeline(root, adapter, {open});
  },

  steps(root, page) {
    const empty = h("p", {class: "nbflow-empty"}, "No step has started yet.");
    const filter = h("input", {type: "search", placeholder: "Search steps", "aria-label": "Search steps by name, kind, state or error", on: {input: () => draw()}});
    const more = button("", async () => {
      more.disabled = true;
      try {
        await page.loadMore(page.whole().more.offset + loaded);
        loaded += MORE;
      } catch (error) {
        text(problem, sentence(error));
      }
      more.disabled = false;
    }, {hidden: true});
    const problem = h("span", {class: "nbflow-error", role: "alert"});
    let loaded = 0;
    let all = [];
    const table = longTable({
      label: "Steps",
      row: 34,
      card: 82,
      empty,
      key: (row) => row.execution,
      open: page.open,
      mark: (line, row) => line.classList.toggle("nbflow-old", !row.current),
      columns: [
        {name: "state", title: "State", cell: (row) => stateBadge(row.state), update: (element, row) => restate(element, row.state)},
        {
          name: "name",
          title: "Step",
          cell: (row) => h("span", {class: "nbflow-cut", style: {"padding-inline-start": `${Math.min(4, row.step.split("/").length - 1) * 12}px`}},
            h("button", {type: "button", class: "nbflow-link nbflow-open", title: row.step}, row.name)),
          update: () => {},
        },
        {name: "kind", title: "Kind", ...textCell((row) => row.kind)},
        {name: "started", title: "Started", ...textCell((row) => clock(row.started), {title: (row) => exactly(row.started)})},
        {name: "took", title: "Took", class: "nbflow-number", ...textCell((row) => seconds(row.seconds ?? (row.finished === null || row.state === "stopped" ? null : row.finished - row.started)))},
        {name: "tries", title: "Tries", class: "nbflow-number", ...textCell((row) => count((row.retries?.length ?? 0) + 1))},
        {name: "outputs", title: "Outputs", class: "nbflow-number", ...textCell((row) => count(row.outputs))},
        {name: "about", title: "About", ...textCell((row) => [row.forgotten ? "forgotten" : row.current ? null : "run again since", row.error ? `${row.error.type}: ${row.error.message}` : null].filter(Boolean).join(" · "))},
      ],
    });
    root.append(h("div", {class: "nbflow-row"}, filter, more, problem), table.element);
    const draw = () => {
      const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
      const found = all.filter((row) => {
        const all = `${row.name} ${row.step} ${row.kind} ${row.state} ${row.error?.type ?? ""} ${row.error?.message ?? ""}`.toLowerCase();
        return words.every((word) => all.includes(word));
      });
      text(empty, all.length ? "No step matches." : "No step has started yet.");
      table.show({total: found.length, at: (index) => found[index]});
    };
    return {
      update(now) {
        all = now.steps;
        more.hidden = !now.more;
        if (now.more) text(more, `Load more: ${count(now.steps.length)} of ${count(now.more.total)} steps are listed`);
        draw();
      },
      dispose: table.dispose,
    };
  },

  outputs(root, {run, adapter}) {
    const list = h("div", {class: "nbflow-sections"});
    const empty = h("p", {class: "nbflow-empty"}, "Nothing is recorded yet: what a step returns or assigns is kept here.");
    root.append(empty, list);
    return {
      update(now) {
        const found = now.steps.filter((row) => row.outputs && row.current);
        empty.hidden = found.length > 0;
        keyed(list, found, (row) => row.execution, (row) => {
          const place = h("div", {});
          const fold = h("details", {class: "nbflow-fold"}, h("summary", {}, h("b", {}, row.name), " ", h("span", {class: "nbflow-quiet"}, plural(row.outputs, "output"))), place);
          const look = () => {
            if (!fold.open || place.childElementCount) return;
            text(place, "Reading…");
            adapter.ask("step", {run, execution: row.execution}).then(
              (step) => replace(place, outputs(adapter, run, row.execution, step.outputs)),
              (error) => replace(place, h("span", {class: "nbflow-error", role: "alert"}, sentence(error))),
            );
          };
          fold.addEventListener("toggle", look);
          if (found.length === 1) fold.open = true;
          return fold;
        });
      },
      dispose() {},
    };
  },

  log(root) {
    const log = h("pre", {class: "nbflow-log", tabindex: 0, role: "group", "aria-label": "Log of the run"});
    root.append(log);
    return {
      update(now) {
        const lines = [];
        for (const row of now.steps) {
          lines.push([row.started, `${row.name} started`]);
          for (const retry of row.retries ?? []) {
            const why = retry.error ? `: ${retry.error.type}: ${retry.error.message}` : "";
            lines.push([retry.at, `${row.name}: try ${retry.attempt} failed${why}${retry.due_at ? `; again at ${clock(retry.due_at)}` : ""}`]);
          }
          const why = row.error ? `: ${row.error.type}: ${row.error.message}` : "";
          if (row.finished !== null) lines.push([row.finished, `${row.name} ${row.state}${row.state === "stopped" ? "" : ` after ${seconds(row.finished - row.started)}`}${why}`]);
        }
        for (const gate of now.gates ?? []) {
          const decided = gate.decision;
          if (decided) lines.push([decided.at, `${gate.name} ${decided.approved ? "approved" : "rejected"} by ${decided.by}${decided.feedback ? `: ${decided.feedback}` : ""}`]);
        }
        lines.sort((one, other) => one[0] - other[0]);
        const left = now.more ? `(${plural(now.more.count, "step")} in the middle left out: the Steps tab loads them)\n` : "";
        const end = log.scrollTop + log.clientHeight >= log.scrollHeight - 8;
        text(log, left + (lines.map(([at, words]) => `${clock(at)}  ${words}`).join("\n") || "Nothing has happened yet."));
        if (end) log.scrollTop = log.scrollHeight;
      },
      dispose() {},
    };
  },
};
