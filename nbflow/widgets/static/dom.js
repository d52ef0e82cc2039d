// Elements from data. Whatever comes from a run is set as a text node or an attribute, never parsed
// as HTML: a run called "<script>" is shown as it is called.

const SVG = "http://www.w3.org/2000/svg";
// Properties that are no attributes, or whose attribute is only their first value.
const AS_PROPERTY = new Set(["value", "checked", "disabled", "selected", "indeterminate", "readOnly", "open"]);
const ADDRESSES = new Set(["href", "src", "xlink:href", "action", "formaction"]);
const HARMLESS = /^(https?:|mailto:|blob:|#|data:image\/(png|jpeg|gif|webp|svg\+xml)[;,])/i;

/**
 * Make an HTML element: h("button", {class: "nbflow-button", on: {click: go}}, "Go").
 * A property that is null, undefined or false is left out; true is an empty attribute. `on` holds
 * listeners, `style` CSS properties (custom ones too), `dataset` data attributes. Children may be
 * nodes, texts, numbers, nested arrays, null or false.
 */
export function h(tag, props, ...children) {
  return fill(document.createElement(tag), props, children);
}

/** Make an SVG element, in the same way as `h`. */
export function svg(tag, props, ...children) {
  return fill(document.createElementNS(SVG, tag), props, children);
}

// What takes keys. A notebook would take them for commands of its own: Enter on a button would edit the cell.
const KEYED = new Set(["button", "input", "select", "textarea", "summary", "a"]);

function fill(element, props, children) {
  if (KEYED.has(element.localName) || props?.tabindex !== undefined) element.setAttribute("data-lm-suppress-shortcuts", "true");
  set(element, props);
  append(element, children);
  return element;
}

/** Set properties on an element that exists, as `h` does; null and false take an attribute away. */
export function set(element, props) {
  for (const [name, value] of Object.entries(props ?? {})) {
    if (name === "on") {
      for (const [event, listener] of Object.entries(value)) if (listener) element.addEventListener(event, listener);
    } else if (name === "style") {
      for (const [key, one] of Object.entries(value)) element.style.setProperty(key, one);
    } else if (name === "dataset") {
      for (const [key, one] of Object.entries(value)) element.dataset[key] = one;
    } else if (AS_PROPERTY.has(name)) {
      element[name] = value ?? "";
    } else if (value === null || value === undefined || value === false) {
      element.removeAttribute(name);
    } else if (name.startsWith("on") || name === "srcdoc") {
      throw new Error(`Not set from data: ${name}`);
    } else if (!ADDRESSES.has(name) || HARMLESS.test(String(value).trim())) {
      element.setAttribute(name, value === true ? "" : String(value));
    }
  }
  return element;
}

/** Append children: nodes as they are, everything else as text. */
export function append(element, ...children) {
  for (const child of children.flat(Infinity)) {
    if (child === null || child === undefined || child === false || child === true) continue;
    element.append(child instanceof Node ? child : document.createTextNode(String(child)));
  }
  return element;
}

/** Put other children in the place of those there are. */
export function replace(element, ...children) {
  element.replaceChildren();
  return append(element, children);
}

/** Set the text of an element only where it differs, so that nothing is repainted or announced for nothing. */
export function text(element, value) {
  const wanted = value === null || value === undefined ? "" : String(value);
  if (element.textContent !== wanted) element.textContent = wanted;
  return element;
}

/**
 * Bring the children of an element in line with items, by key: elements that stay are kept, with
 * their focus, their selection and their scroll position. `make(item)` gives an element; a function
 * kept as its `nbflow` is called with the item when it stays.
 */
export function keyed(parent, items, key, make) {
  const there = new Map();
  for (const child of [...parent.children]) if (child.nbflowKey !== undefined) there.set(child.nbflowKey, child);
  let before = null;
  for (const item of items) {
    const name = key(item);
    let child = there.get(name);
    there.delete(name);
    if (child) {
      child.nbflow?.(item);
    } else {
      child = make(item);
      child.nbflowKey = name;
    }
    const place = before ? before.nextElementSibling : parent.firstElementChild;
    // An element that is moved loses its focus: move only what stands elsewhere.
    if (place !== child) parent.insertBefore(child, place);
    before = child;
  }
  for (const child of there.values()) child.remove();
}

/** Return a function that runs `what` once it has not been called again for `wait` ms. */
export function debounced(what, wait) {
  let timer = 0;
  return (...given) => {
    clearTimeout(timer);
    timer = setTimeout(() => what(...given), wait);
  };
}

/** Return a function that runs `what` once before the next paint, however often it is called; `stop` ends it. */
export function painted(what) {
  let asked = 0;
  const ask = () => {
    asked ||= requestAnimationFrame(() => {
      asked = 0;
      what();
    });
  };
  ask.stop = () => cancelAnimationFrame(asked);
  return ask;
}

let numbers = 0;
/** Return an id that no other element of the page has. */
export function fresh(word) {
  numbers += 1;
  return `nbflow-${word}-${numbers}-${Math.random().toString(36).slice(2, 7)}`;
}

/** A button with a word, for one thing to do. */
export function button(label, click, props = {}) {
  return h("button", {type: "button", ...props, class: `nbflow-button ${props.class ?? ""}`, on: {click}}, label);
}
