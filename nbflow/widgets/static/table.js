// A table of any length: only the rows in sight are in the page. Rows have one height, so that where a row
// stands is known without it; in a narrow place each row is a card.

import {h, keyed, painted, set, text} from "./dom.js";

const SPARE = 6; // rows kept above and below what is in sight

/**
 * spec: {label, columns: [{name, title, sort?, class?, cell(row) → element, update?(element, row)}],
 *        key(row, index), row: px, card: px, open?(row, element), empty: element, most?: px,
 *        need?(first, last), sorted?(by), mark?(element, row), keys?(event, row)}
 * Returns {element, show({total, at(index) → row | undefined}), sort(by, descending), top(), focus(key), dispose}.
 */
export function longTable(spec) {
  const heads = spec.columns.map((column) => head(column, spec));
  const body = h("tbody", {role: "rowgroup"});
  const [above, below] = [spacer(), spacer()];
  const table = h(
    "table",
    {class: "nbflow-table", role: "table", "aria-label": spec.label},
    h("thead", {role: "rowgroup"}, h("tr", {role: "row", "aria-rowindex": 1}, heads)),
    above,
    body,
    below,
  );
  const box = h("div", {class: "nbflow-scroll", role: "group", "aria-label": spec.label, tabindex: 0}, table);
  const element = h("div", {class: "nbflow-long"}, box, spec.empty);
  let data = {total: 0, at: () => undefined};
  let narrow = false;
  let kept = 0;

  const height = () => (narrow ? spec.card : spec.row);
  const draw = painted(() => {
    if (!box.isConnected) return;
    const sight = box.clientHeight || 400;
    const first = Math.max(0, Math.floor(box.scrollTop / height()) - SPARE);
    const last = Math.min(data.total, Math.ceil((box.scrollTop + sight) / height()) + SPARE);
    const shown = [];
    for (let index = first; index < last; index += 1) shown.push({index, row: data.at(index)});
    // A row that holds the focus stays, however far it is scrolled away.
    above.firstChild.style.height = `${first * height()}px`;
    below.firstChild.style.height = `${Math.max(0, data.total - last) * height()}px`;
    keyed(body, shown, (one) => (one.row ? `r${spec.key(one.row, one.index)}` : `i${one.index}`), make);
    spec.need?.(first, last);
  });

  function make({index, row}) {
    const line = h("tr", {role: "row", "aria-rowindex": index + 2, style: {height: `${height()}px`}});
    if (!row) {
      line.append(h("td", {role: "cell", colspan: spec.columns.length, class: "nbflow-quiet"}, "…"));
      return line;
    }
    const cells = spec.columns.map((column) => {
      const inner = column.cell(row);
      const word = column.title.toLowerCase(); // shown beside numbers where there is no head
      line.append(h("td", {role: "cell", class: `nbflow-cell-${column.name} ${column.class ?? ""}`, dataset: {word}}, inner));
      return {column, inner, cell: line.lastChild};
    });
    spec.mark?.(line, row);
    line.nbflowRow = row;
    line.nbflow = ({index: moved, row: changed}) => {
      set(line, {"aria-rowindex": moved + 2});
      line.style.height = `${height()}px`;
      if (changed === line.nbflowRow) return;
      line.nbflowRow = changed;
      for (const one of cells) {
        if (one.column.update) {
          one.column.update(one.inner, changed);
        } else {
          const made = one.column.cell(changed);
          if (!made.isEqualNode?.(one.inner)) {
            one.inner.replaceWith(made);
            one.inner = made;
          }
        }
      }
      spec.mark?.(line, changed);
    };
    return line;
  }

  box.addEventListener("scroll", () => {
    if (box.isConnected && box.clientHeight) kept = box.scrollTop;
    draw();
  }, {passive: true});
  body.addEventListener("click", (event) => {
    const line = event.target.closest("tr");
    if (!line?.nbflowRow || event.target.closest("a, input, select, label") || String(getSelection())) return;
    const other = event.target.closest("button");
    if (!other || other.classList.contains("nbflow-open")) spec.open?.(line.nbflowRow, line);
  });
  box.addEventListener("keydown", (event) => {
    const step = {ArrowDown: 1, ArrowUp: -1}[event.key];
    const line = event.target.closest("tbody tr");
    if (line?.nbflowRow && spec.keys?.(event, line.nbflowRow)) {
      event.preventDefault();
      return;
    }
    if (!step || !line || event.target.closest("input, select, textarea")) return;
    const next = step > 0 ? line.nextElementSibling : line.previousElementSibling;
    const target = next?.querySelector(".nbflow-open");
    if (!target) return;
    event.preventDefault();
    target.focus({preventScroll: true});
    reveal(next);
  });

  function reveal(line) {
    const header = table.tHead.offsetHeight;
    const place = (Number(line.getAttribute("aria-rowindex")) - 2) * height();
    const sight = box.clientHeight - header;
    if (place < box.scrollTop) box.scrollTop = place;
    else if (place + height() > box.scrollTop + sight) box.scrollTop = place + height() - sight;
  }

  const sized = new ResizeObserver(() => {
    const width = box.clientWidth;
    if (!width) return;
    const small = width < 620;
    if (small !== narrow) {
      const at = kept / height();
      narrow = small;
      table.classList.toggle("nbflow-cards", narrow);
      box.scrollTop = at * height();
    }
    // A notebook takes cells out of the page that are far away; they come back scrolled to the top.
    if (Math.abs(box.scrollTop - kept) > 1 && box.scrollTop === 0) box.scrollTop = kept;
    draw();
  });
  sized.observe(box);

  return {
    element,
    show(given) {
      data = given;
      set(table, {"aria-rowcount": data.total + 1});
      spec.empty.hidden = data.total > 0;
      box.hidden = data.total === 0;
      const most = spec.most ?? 460;
      box.style.maxHeight = `${most}px`;
      draw();
    },
    sort(by, descending) {
      for (const one of heads) {
        if (one.nbflowSort) set(one, {"aria-sort": one.nbflowSort !== by ? "none" : descending ? "descending" : "ascending"});
      }
    },
    top() {
      kept = 0;
      box.scrollTop = 0;
    },
    focus(key) {
      const line = [...body.children].find((one) => one.nbflowKey === `r${key}`);
      (line?.querySelector(".nbflow-open") ?? box).focus();
    },
    redraw: draw,
    dispose() {
      draw.stop();
      sized.disconnect();
    },
  };
}

function head(column, spec) {
  const title = column.sort
    ? h("button", {type: "button", class: "nbflow-sort", on: {click: () => spec.sorted(column.sort)}}, column.title)
    : column.hiddenTitle
      ? h("span", {class: "nbflow-hidden"}, column.title)
      : column.title;
  const made = h("th", {scope: "col", role: "columnheader", class: `nbflow-cell-${column.name} ${column.class ?? ""}`}, title);
  made.nbflowSort = column.sort;
  if (column.sort) set(made, {"aria-sort": "none"});
  return made;
}

function spacer() {
  return h("tbody", {role: "presentation", "aria-hidden": "true", class: "nbflow-spacer"}, h("tr", {role: "presentation"}));
}

/** A cell of text that is cut where there is no room, and says all of it in its title. */
export function textCell(get, props = {}) {
  const put = (element, row) => {
    const value = get(row);
    text(element, value);
    set(element, {title: props.title ? props.title(row) : value || null});
  };
  return {
    cell: (row) => {
      const element = h("span", {class: "nbflow-cut"});
      put(element, row);
      return element;
    },
    update: put,
  };
}
