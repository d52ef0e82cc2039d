// One execution of a step: what went wrong, its code, what it read, recorded and showed, its attempts and log.

import {button, fresh, h, replace, text} from "./dom.js";
import {exhibit, exhibits} from "./exhibit.js";
import {bytes, clock, count, exactly, plain, plural, seconds} from "./format.js";
import {sentence} from "./dialog.js";
import {stateBadge} from "./states.js";

const ROWS = 50; // rows of a table that are asked for at once

/** `row`: the line of the step; `stateOf(row)`: the state to show; `acts`: buttons for it; `close()`: the person is done with it. */
export function mount(root, adapter, {run, row, stateOf = (one) => one.state, acts = [], close}) {
  const title = h("h3", {tabindex: -1, id: fresh("step")}, row.name);
  const badge = h("span", {}, stateBadge(stateOf(row)));
  const body = h("div", {class: "nbflow-sections"}, h("p", {class: "nbflow-quiet"}, "Reading what is recorded…"));
  const panel = h(
    "section",
    {class: "nbflow-step", "aria-labelledby": title.id, on: {keydown: (event) => {
      if (event.key === "Escape" && !event.defaultPrevented) {
        event.preventDefault();
        event.stopPropagation();
        close();
      }
    }}},
    h("div", {class: "nbflow-row nbflow-spread"}, h("div", {class: "nbflow-row"}, title, badge), button("Close", close, {"aria-label": `Close step ${row.name}`})),
    h("div", {class: "nbflow-row nbflow-acts"}, acts),
    body,
  );
  root.append(panel);
  let shown = row;
  let ended = false;
  let drawn = "";

  async function look() {
    try {
      const found = await adapter.ask("step", {run, execution: row.execution});
      // What is open or selected is not disturbed where nothing is new.
      const said = JSON.stringify(found);
      if (ended || said === drawn) return;
      drawn = said;
      shown = found.row;
      replace(badge, stateBadge(stateOf(shown)));
      replace(body, sections(adapter, run, found));
    } catch (error) {
      if (!ended && !drawn) replace(body, h("p", {class: "nbflow-error", role: "alert"}, sentence(error)));
    }
  }
  look();
  title.focus({preventScroll: true});
  panel.scrollIntoView({block: "nearest"});
  return {
    /** The line of the step as it is now. */
    update(now) {
      if (now.state !== shown.state || now.retries.length !== shown.retries.length) look();
      shown = now;
    },
    dispose() {
      ended = true;
      panel.remove();
    },
  };
}

function sections(adapter, run, found) {
  const {row} = found;
  const spare = Object.entries(found.facts ?? {});
  return [
    h("dl", {class: "nbflow-facts"},
      fact("Kind", row.kind),
      fact("Started", h("time", {title: exactly(row.started)}, clock(row.started))),
      fact("Took", seconds(row.seconds)),
      fact("Key", h("span", {class: "nbflow-mono"}, row.step)),
      row.forgotten ? fact("Forgotten", "it runs again next time") : null,
      spare.map(([name, value]) => fact(name, plain(value)))),
    found.error ? part("Error", h("p", {class: "nbflow-error"}, h("b", {}, found.error.type), ": ", found.error.message),
      found.error.traceback ? code(found.error.traceback, "Traceback") : null) : null,
    found.decision ? part("Decision", decision(found.decision)) : null,
    found.exhibits?.length ? part("Shown at the gate", exhibits(found.exhibits)) : null,
    found.display?.length ? part("Output", exhibits(found.display)) : null,
    found.outputs?.length ? part(`Recorded (${count(found.outputs.length)})`, outputs(adapter, run, row.execution, found.outputs)) : null,
    found.inputs?.length ? part("Read", h("table", {class: "nbflow-data nbflow-wide"},
      heads("Name", "Value"),
      h("tbody", {}, found.inputs.map(({name, preview}) => h("tr", {}, h("th", {scope: "row", class: "nbflow-mono"}, name), h("td", {class: "nbflow-mono"}, preview || "–")))))) : null,
    found.source ? part("Code", code(found.source, "Code")) : null,
    found.attempts?.length > 1 || found.attempts?.[0]?.error ? part("Attempts", attempts(found.attempts)) : null,
    found.log?.length ? part("Log", code(found.log.join("\n"), "Log")) : null,
  ];
}

function part(name, ...children) {
  return h("section", {class: "nbflow-part", "aria-label": name}, h("h4", {}, name), children);
}

function fact(name, value) {
  return h("div", {}, h("dt", {}, name), h("dd", {}, value));
}

function heads(...names) {
  return h("thead", {}, h("tr", {}, names.map((name) => h("th", {scope: "col"}, name))));
}

function code(words, label) {
  return h("pre", {tabindex: 0, role: "group", "aria-label": label}, words);
}

function decision({approved, by, at, feedback, selections, via}) {
  return [
    h("p", {}, stateBadge(approved ? "approved" : "rejected"), ` by ${by}, ${exactly(at)}, via ${via}`),
    selections?.length ? h("p", {}, `Selected: ${selections.join(", ")}`) : null,
    feedback ? h("blockquote", {class: "nbflow-quote"}, feedback) : null,
  ];
}

function attempts(tries) {
  return h("div", {class: "nbflow-scroll", tabindex: 0, role: "group", "aria-label": "Attempts"}, h("table", {class: "nbflow-data nbflow-wide"},
    heads("Attempt", "State", "Started", "Took", "Error"),
    h("tbody", {}, tries.map((one) => h("tr", {},
      h("th", {scope: "row"}, one.attempt),
      h("td", {}, stateBadge(one.state)),
      h("td", {title: exactly(one.started)}, clock(one.started)),
      h("td", {}, one.finished === null || one.state === "stopped" ? "–" : seconds(one.finished - one.started)),
      h("td", {}, one.error ? `${one.error.type}: ${one.error.message}` : "–"))))));
}

/** Recorded variables, each of which opens to what it holds. */
export function outputs(adapter, run, execution, list) {
  return h("ul", {class: "nbflow-outputs"}, list.map((output) => {
    const place = h("div", {});
    let asked = false;
    const details = h(
      "details",
      {on: {toggle: () => {
        if (!details.open || asked) return;
        asked = true;
        text(place, "Reading…");
        const page = (offset, limit) => adapter.ask("output", {run, execution, name: output.name, offset, limit});
        (output.exhibit ? Promise.resolve(output.exhibit) : page(0, ROWS)).then(
          (found) => replace(place, exhibit(found, page)),
          (error) => {
            asked = false;
            replace(place, h("p", {class: "nbflow-error", role: "alert"}, sentence(error)));
          },
        );
      }}},
      h("summary", {},
        h("b", {class: "nbflow-mono"}, output.name), " ",
        h("span", {class: "nbflow-quiet"}, [output.type, output.rows !== null && output.rows !== undefined ? plural(output.rows, "row") : null, output.size ? bytes(output.size) : null].filter(Boolean).join(" · ")),
        output.preview ? h("span", {class: "nbflow-preview nbflow-mono"}, output.preview) : null),
      place,
    );
    return h("li", {}, details);
  }));
}
