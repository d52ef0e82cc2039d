// What the store takes on disk, and which unfinished runs take most of it.

import {button, h, replace} from "./dom.js";
import {bytes, plural, shortId} from "./format.js";
import {sentence} from "./dialog.js";

export function mount(root, adapter, {open}) {
  const place = h("div", {});
  const again = button("Look again", () => look());
  root.append(h("section", {"aria-label": "Disk use", class: "nbflow-disk"}, place, h("div", {class: "nbflow-row"}, again)));
  let ended = false;
  const draw = (found) => {
    const most = Math.max(1, ...found.runs.map((run) => run.bytes));
    replace(
      place,
      h("dl", {class: "nbflow-facts"},
        fact("Store", h("span", {class: "nbflow-mono"}, found.place)),
        fact("In all", bytes(found.total)),
        fact("Database, with all finished runs", bytes(found.database)),
        fact("Unfinished runs", bytes(found.live))),
      h("h3", {}, "Largest unfinished runs"),
      found.runs.length
        ? h("div", {class: "nbflow-scroll", tabindex: 0, role: "group", "aria-label": "Largest unfinished runs"},
          h("table", {class: "nbflow-data nbflow-wide"},
            h("thead", {}, h("tr", {}, ["Run", "Workflow", "Size"].map((name) => h("th", {scope: "col"}, name)))),
            h("tbody", {}, found.runs.map((run) => h("tr", {},
              h("td", {class: "nbflow-mono", style: {"white-space": "nowrap"}}, h("button", {type: "button", class: "nbflow-link", title: run.run, on: {click: () => open(run.run)}}, shortId(run.run))),
              h("td", {}, run.workflow),
              h("td", {}, h("span", {class: "nbflow-bar", style: {"--nf-share": `${(100 * run.bytes) / most}%`, "white-space": "nowrap"}}, bytes(run.bytes))))))))
        : h("p", {class: "nbflow-empty"}, "No unfinished run keeps files of its own. What is finished is in the database."),
      h("p", {class: "nbflow-quiet"}, found.runs.length ? `${plural(found.runs.length, "run")} listed. Finishing or cancelling a run moves it into the database; \`nbflow gc\` removes what is old.` : ""),
    );
  };
  const look = () => {
    if (!place.children.length) replace(place, h("p", {class: "nbflow-quiet"}, "Looking at the disk…"));
    adapter.ask("disk").then((found) => !ended && draw(found), (error) => !ended && replace(place, h("p", {class: "nbflow-error", role: "alert"}, sentence(error))));
  };
  look();
  return () => {
    ended = true;
    root.replaceChildren();
  };
}

function fact(name, value) {
  return h("div", {}, h("dt", {}, name), h("dd", {}, value));
}
