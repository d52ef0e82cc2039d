// One recorded thing as it can be looked at: a table, a picture, a text. HTML of others is shown in a
// frame that may do nothing at all.

import {button, h, replace, set, text} from "./dom.js";
import {count, plural} from "./format.js";
import {sentence} from "./dialog.js";

// No scripts (the sandbox), and nothing fetched from anywhere: a picture from outside would tell who looks.
const FRAME = `<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; font-src data:">
<meta name="color-scheme" content="light"><style>body{margin:8px;background:#fff;color:#111;font:13px system-ui,sans-serif}table{border-collapse:collapse}td,th{padding:2px 8px;border-bottom:1px solid #ddd;text-align:right}</style>`;

/**
 * Draw an exhibit. `page(offset, limit)` gives more of a table, where there is more.
 * What is not known is shown as a notice, never left out.
 */
export function exhibit(data, page = null) {
  const draw = KINDS[data?.kind] ?? unknown;
  return h("figure", {class: `nbflow-exhibit nbflow-exhibit-${data?.kind ?? "none"}`}, draw(data ?? {}, page));
}

/** Draw several below each other. */
export function exhibits(list) {
  return h("div", {class: "nbflow-exhibits"}, (list ?? []).map((one) => exhibit(one)));
}

const KINDS = {
  table,
  image: ({mime, data, alt, title}) => [
    title ? h("figcaption", {}, title) : null,
    /^image\/(png|jpeg|svg\+xml)$/.test(mime)
      ? h("img", {src: `data:${mime};base64,${data}`, alt: alt || title || "A recorded picture"})
      : unknown({kind: mime}),
  ],
  text: ({text: words, stream, title}) => [
    title ? h("figcaption", {}, title) : null,
    h("pre", {class: stream === "stderr" ? "nbflow-stderr" : null, tabindex: 0, role: "group", "aria-label": stream === "stderr" ? "Error output" : title || "Text"}, words),
  ],
  json: ({text: words, title}) => [
    title ? h("figcaption", {}, title) : null,
    h("pre", {tabindex: 0, role: "group", "aria-label": title || "JSON"}, words),
  ],
  markdown: ({text: words, title}) => [
    title ? h("figcaption", {}, title) : null,
    h("pre", {class: "nbflow-prose", tabindex: 0, role: "group", "aria-label": title || "Text"}, words),
  ],
  html: ({html, title}) => {
    const frame = h("iframe", {sandbox: "", class: "nbflow-frame", title: title || "Recorded output", loading: "lazy", referrerpolicy: "no-referrer"});
    frame.srcdoc = FRAME + html;
    return [title ? h("figcaption", {}, title) : null, frame];
  },
  notice: ({text: words}) => h("p", {class: "nbflow-quiet"}, words),
};

function unknown({kind}) {
  return h("p", {class: "nbflow-quiet"}, `This page cannot show ${kind ? `a ${kind}` : "this"}.`);
}

function table(first, page) {
  const shown = h("div", {class: "nbflow-scroll nbflow-frame-table", tabindex: 0, role: "group", "aria-label": first.title || "Table"});
  const said = h("span", {class: "nbflow-quiet"});
  const problem = h("span", {class: "nbflow-error", role: "alert"});
  const size = Math.max(1, first.rows.length);
  let now = first;
  const before = button("Previous", () => go(now.offset - size), {"aria-label": "Previous rows"});
  const after = button("Next", () => go(now.offset + size), {"aria-label": "Next rows"});
  const draw = () => {
    const numeric = now.columns.map(({type}) => /int|float|double|decimal/i.test(type ?? ""));
    replace(
      shown,
      h(
        "table",
        {class: "nbflow-data"},
        h("thead", {}, h("tr", {}, now.columns.map(({name, type}, at) =>
          h("th", {scope: "col", class: numeric[at] ? "nbflow-number" : null}, name, h("small", {class: "nbflow-type"}, type ?? ""))))),
        h("tbody", {}, now.rows.map((row) => h("tr", {}, row.map((value, at) => {
          if (value === null) return h("td", {class: "nbflow-quiet"}, h("i", {}, "null"));
          return h("td", {class: numeric[at] ? "nbflow-number" : null}, value);
        })))),
      ),
    );
    const last = now.offset + now.rows.length;
    text(said, now.total ? `Rows ${count(now.offset + 1)}–${count(last)} of ${count(now.total)}, ${plural(now.columns.length, "column")}` : `No rows, ${plural(now.columns.length, "column")}`);
    set(before, {disabled: now.offset <= 0});
    set(after, {disabled: last >= now.total});
  };
  const go = async (offset) => {
    text(problem, "");
    try {
      now = await page(Math.max(0, offset), size);
      draw();
      shown.scrollTop = 0;
    } catch (error) {
      text(problem, sentence(error));
    }
  };
  draw();
  const pager = page && first.total > first.rows.length;
  return [
    first.title ? h("figcaption", {}, first.title) : null,
    shown,
    h("div", {class: "nbflow-row"}, pager ? [before, after] : null, said, problem),
  ];
}
