// The runs of the store: filters above, the table below. The table asks for the pages that it shows, and
// what is in sight is kept up to date by pushes.

import {button, debounced, fresh, h, keyed, replace, set, text} from "./dom.js";
import {ago, count, cut, exactly, plain, plural, seconds, shortId} from "./format.js";
import {look, restate, RUN_STATES, stateBadge} from "./states.js";
import {longTable, textCell} from "./table.js";
import {sentence} from "./dialog.js";

const PAGE = 100;
const SPANS = [["", "Any time"], [3600, "Last hour"], [86400, "Last day"], [604800, "Last week"], [2592000, "Last 30 days"]];
const SORTS = [["created", "Started"], ["workflow", "Workflow"], ["state", "State"], ["seconds", "Duration"], ["steps", "Steps"], ["attempts", "Attempts"]];

/** The questions that are asked when nobody has filtered anything. */
export const FIRST = {sort: "created", descending: true, offset: 0, limit: PAGE};

/** `open(run)` shows a run; `kept` is what was filtered before, kept by the caller. */
export function mount(root, adapter, {open, kept = {}, keep = () => {}}) {
  const wish = {workflow: "", states: [], tag: "", text: "", span: "", sort: "created", descending: true, children: false, ...kept};
  const pages = new Map();
  const asked = new Set();
  let known = {total: 0, counts: {}};
  let round = 0;
  let sight = [0, PAGE];

  // --- filters ------------------------------------------------------------------------------------------------

  const search = h("input", {type: "search", placeholder: "Search runs", "aria-label": "Search in id, workflow, error, tags and parameters", value: wish.text});
  search.addEventListener("input", debounced(() => change({text: search.value.trim()}), 250));
  const workflow = choice("Workflow", (value) => change({workflow: value}));
  const tag = choice("Tag", (value) => change({tag: value}));
  const span = choice("Started", (value) => change({span: value}));
  options(span.select, SPANS.map(([value, word]) => [String(value), word]), String(wish.span));
  const order = choice("Sort by", (value) => {
    const [sort, way] = value.split(" ");
    change({sort, descending: way === "down"});
  });
  order.element.classList.add("nbflow-narrow-only");
  options(order.select, SORTS.flatMap(([name, word]) => [[`${name} down`, `${word} ↓`], [`${name} up`, `${word} ↑`]]), way());
  const children = h("input", {type: "checkbox", id: fresh("children"), checked: wish.children, on: {change: () => change({children: children.checked})}});
  const chips = h("div", {class: "nbflow-row nbflow-chips", role: "group", "aria-label": "States"});
  const clear = button("Show all", () => {
    Object.assign(wish, {workflow: "", states: [], tag: "", text: "", span: "", children: false});
    search.value = workflow.select.value = tag.select.value = span.select.value = "";
    children.checked = false;
    change({});
    search.focus();
  }, {class: "nbflow-button-plain"});
  const said = h("span", {class: "nbflow-quiet", role: "status"});
  const busy = h("p", {class: "nbflow-banner nbflow-tone-warn", hidden: true, role: "status"});
  const problem = h("p", {class: "nbflow-error", role: "alert"});

  // --- the table ----------------------------------------------------------------------------------------------

  const empty = h("div", {class: "nbflow-empty"});
  const table = longTable({
    label: "Runs",
    row: 36,
    card: 86,
    empty,
    key: (row) => row.run,
    open: (row) => open(row.run, row),
    need: (first, last) => {
      sight = [first, last];
      fetchMissing();
    },
    sorted: (sort) => change({sort, descending: wish.sort === sort ? !wish.descending : sort !== "workflow" && sort !== "state"}),
    mark: (line, row) => line.classList.toggle("nbflow-current", Boolean(row.current)),
    columns: [
      {name: "state", title: "State", sort: "state", cell: (row) => stateBadge(row.state), update: (badge, row) => restate(badge, row.state)},
      {
        name: "workflow",
        title: "Workflow",
        sort: "workflow",
        cell: (row) => h(
          "span",
          {class: "nbflow-cut"},
          h("button", {type: "button", class: "nbflow-link nbflow-open", title: row.workflow}, row.workflow || "(no name)"),
          row.current ? h("span", {class: "nbflow-mark"}, "this kernel") : null,
        ),
        // The button may have the focus: it is left alone where its words stay.
        update: (element, row) => {
          const mark = element.querySelector(".nbflow-mark");
          if (row.current && !mark) element.append(h("span", {class: "nbflow-mark"}, "this kernel"));
          else if (!row.current) mark?.remove();
        },
      },
      {name: "run", title: "Run", class: "nbflow-mono", ...textCell((row) => shortId(row.run), {title: (row) => row.run})},
      {name: "created", title: "Started", sort: "created", ...textCell((row) => ago(row.created), {title: (row) => exactly(row.created)})},
      {name: "seconds", title: "Duration", sort: "seconds", class: "nbflow-number", ...textCell((row) => seconds(row.seconds))},
      {name: "steps", title: "Steps", sort: "steps", class: "nbflow-number", ...textCell((row) => count(row.steps))},
      {name: "attempts", title: "Attempts", sort: "attempts", class: "nbflow-number", ...textCell((row) => count(row.attempts))},
      {name: "about", title: "About", ...textCell(aboutText, {title: (row) => aboutText(row, 2000)})},
    ],
  });

  const element = h(
    "section",
    {"aria-label": "Runs", class: "nbflow-runs"},
    h("div", {class: "nbflow-row nbflow-filters"}, search, workflow.element, tag.element, span.element, order.element,
      h("span", {class: "nbflow-row nbflow-check"}, children, h("label", {for: children.id}, "Child runs"))),
    h("div", {class: "nbflow-row"}, chips, clear, said),
    busy,
    problem,
    table.element,
  );
  root.append(element);

  function way() {
    return `${wish.sort} ${wish.descending ? "down" : "up"}`;
  }

  function query(offset, limit = PAGE) {
    const found = {sort: wish.sort, descending: wish.descending, offset, limit};
    if (wish.workflow) found.workflow = wish.workflow;
    if (wish.states.length) found.states = wish.states;
    if (wish.tag) found.tags = {[wish.tag.slice(0, wish.tag.indexOf("="))]: wish.tag.slice(wish.tag.indexOf("=") + 1)};
    if (wish.text) found.text = wish.text;
    if (wish.span) found.since = Math.floor(Date.now() / 60000) * 60 - Number(wish.span);
    if (wish.children) found.children = true;
    return found;
  }

  function change(given) {
    Object.assign(wish, given);
    keep({...wish});
    round += 1;
    pages.clear();
    asked.clear();
    table.top();
    table.sort(wish.sort, wish.descending);
    order.select.value = way();
    // The rows stay in sight until the new ones come: nothing flickers.
    fetchPage(0, true);
    follow();
  }

  async function fetchPage(page, anew = false) {
    if (asked.has(page)) return;
    asked.add(page);
    const mine = round;
    try {
      const found = await adapter.ask("runs", query(page * PAGE));
      if (mine !== round) return;
      take(page, found);
      text(problem, "");
      if (anew) text(said, summary());
    } catch (error) {
      if (mine === round && error.type !== "Gone") text(problem, sentence(error));
    } finally {
      if (mine === round) asked.delete(page);
    }
  }

  function fetchMissing() {
    if (!adapter.connected) return;
    for (let page = Math.floor(sight[0] / PAGE); page <= Math.floor(Math.max(0, sight[1] - 1) / PAGE); page += 1) {
      if (!pages.has(page) && page * PAGE < known.total) fetchPage(page);
    }
    follow();
  }

  /** Pushes are about the page in the middle of what is in sight. */
  const follow = debounced(() => following.update({runs: query(middle() * PAGE)}), 200);
  const middle = () => Math.floor((sight[0] + Math.min(sight[1], Math.max(known.total, 1))) / 2 / PAGE);

  function take(page, found) {
    // Where the whole is of another length, all other pages have moved.
    if (found.total !== known.total) for (const other of [...pages.keys()]) if (other !== page) pages.delete(other);
    known = found;
    pages.set(page, found.rows);
    show();
  }

  function show() {
    drawChips();
    options(workflow.select, [["", "All workflows"], ...(known.workflows ?? []).map((name) => [name, name])], wish.workflow);
    const tags = Object.entries(known.tags ?? {}).flatMap(([name, values]) => values.map((value) => [`${name}=${value}`, `${name} = ${cut(value, 40)}`]));
    options(tag.select, [["", "All tags"], ...tags], wish.tag);
    tag.element.hidden = !tags.length && !wish.tag;
    clear.hidden = !filtered();
    busy.hidden = !known.busy;
    text(busy, known.busy ? `History may be incomplete: ${known.busy}` : "");
    text(said, summary());
    replaceEmpty();
    table.show({total: known.total, at: (index) => pages.get(Math.floor(index / PAGE))?.[index % PAGE]});
  }

  function filtered() {
    return Boolean(wish.workflow || wish.states.length || wish.tag || wish.text || wish.span || wish.children);
  }

  function summary() {
    return filtered() ? `${plural(known.total, "run")} found` : plural(known.total, "run");
  }

  function replaceEmpty() {
    const words = filtered() ? "No run matches these filters." : "No run is recorded here yet. Put %%durable on top of a cell and run it, or run a notebook with `nbflow run`: its run is listed here as soon as it starts.";
    if (empty.textContent !== words) replace(empty, words);
  }

  function drawChips() {
    const states = RUN_STATES.filter((state) => known.counts?.[state] || wish.states.includes(state));
    keyed(chips, states, (state) => state, (state) => {
      const number = h("span", {class: "nbflow-count"});
      const chip = h("button", {type: "button", class: "nbflow-chip", on: {click: () => {
        change({states: wish.states.includes(state) ? wish.states.filter((one) => one !== state) : [...wish.states, state]});
      }}}, stateBadge(state), number);
      chip.nbflow = () => {
        text(number, count(known.counts?.[state] ?? 0));
        set(chip, {"aria-pressed": String(wish.states.includes(state)), "aria-label": `${look(state).word}: ${plural(known.counts?.[state] ?? 0, "run")}`});
      };
      chip.nbflow();
      return chip;
    });
  }

  table.sort(wish.sort, wish.descending);
  const following = adapter.follow({runs: query(0)});
  const stop = adapter.listen((push) => {
    if (push.push === "runs" && push.rows) {
      const page = Math.round((push.offset ?? middle() * PAGE) / PAGE);
      take(page, push);
    }
    if (push.push === "connection" && adapter.connected) fetchMissing();
  });
  // Times such as "3 min ago" go on by themselves.
  const clock = setInterval(() => {
    for (const rows of pages.values()) rows.forEach((row, at) => (rows[at] = {...row}));
    table.redraw();
  }, 30000);
  const first = adapter.snapshot?.runs;
  if (first && !filtered() && wish.sort === "created" && wish.descending) take(0, first);
  else fetchPage(0);

  return {
    focus: (run) => table.focus(run),
    row: (run) => [...pages.values()].flat().find((row) => row.run === run),
    dispose() {
      clearInterval(clock);
      following.stop();
      stop();
      table.dispose();
      element.remove();
    },
  };
}

/** What tells a run from others of its workflow: what waits, what failed, its tags, its parameters. */
function aboutText(row, size = 160) {
  const parts = [];
  if (row.gates) parts.push(`${plural(row.gates, "gate")} waiting`);
  if (row.error) parts.push(row.error);
  for (const [name, value] of Object.entries(row.tags ?? {})) parts.push(`${name}: ${value}`);
  for (const [name, value] of Object.entries(row.params ?? {})) parts.push(`${name} = ${plain(value)}`);
  if (row.parent) parts.push(`child of ${shortId(row.parent)}`);
  return cut(parts.join(" · "), typeof size === "number" ? size : 160);
}

function choice(label, changed) {
  const select = h("select", {"aria-label": label, on: {change: () => changed(select.value)}});
  return {select, element: h("span", {class: "nbflow-choice"}, select)};
}

/** Bring the options of a select in line; what is chosen stays, and is there even when nothing has it any more. */
function options(select, wanted, chosen) {
  if (chosen && !wanted.some(([value]) => value === chosen)) wanted = [...wanted, [chosen, chosen]];
  const said = JSON.stringify(wanted);
  if (select.nbflowSaid !== said) {
    select.nbflowSaid = said;
    replace(select, wanted.map(([value, word]) => h("option", {value}, cut(word, 60))));
  }
  if (select.value !== chosen) select.value = chosen;
}
