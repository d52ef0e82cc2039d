// What a notebook calls to show a view: makes the adapter and the frame, and mounts the kind of view.

import {Adapter, GONE, BUSY, widgetTransport} from "./adapter.js";
import {h, text} from "./dom.js";
import {clock, when} from "./format.js";

const KINDS = {
  dashboard: () => import("./dashboard.js"),
  fsm: () => import("./graph.js"),
  gate: () => import("./gate.js"),
};

/** anywidget's face: a view in a notebook; returns how it is taken down. */
export async function render({model, el}) {
  const about = model.get("about") ?? {};
  const transport = widgetTransport(model, el);
  // A page made from a notebook's saved widgets: what it shows is the static record beside this.
  if (transport.standing() === GONE) return () => {};
  const adapter = new Adapter(transport, model.get("snapshot") ?? {});
  const down = await show(el, adapter, model.get("kind"), about);
  return () => {
    down();
    adapter.dispose();
  };
}

/** Show a kind of view in an element, over any adapter; returns how it is taken down. */
export async function show(el, adapter, kind, about) {
  const connection = h("div", {class: "nbflow-banner", role: "status", hidden: true});
  const trouble = h("div", {class: "nbflow-banner nbflow-tone-bad", role: "alert", hidden: true});
  const body = h("div", {class: "nbflow-body"});
  const root = h("div", {class: "nbflow", dataset: {kind, view: adapter.view}}, connection, trouble, body);
  el.append(root);
  const standing = () => {
    say(connection, connectionSentence(adapter), adapter.state === GONE ? "bad" : "warn");
    root.classList.toggle("nbflow-gone", adapter.state === GONE);
    say(trouble, adapter.problem, "bad");
  };
  const stop = adapter.listen((push) => (push.push === "connection" || push.push === "store") && standing());
  standing();
  hideRecord(root, about);
  const seen = watchSight(root, (visible) => adapter.see(visible));
  let dispose = () => {};
  try {
    const {mount} = await KINDS[kind]();
    dispose = (await mount(body, adapter, about)) ?? dispose;
  } catch (error) {
    console.error(error);
    say(trouble, `This view could not be drawn: ${error.message}`, "bad");
  }
  return () => {
    seen();
    stop();
    dispose();
    root.remove();
  };
}

function connectionSentence({state, heard}) {
  if (state === GONE) {
    const today = Date.now() / 1000 - heard < 43200;
    return `The kernel is gone: this is how things stood at ${today ? clock(heard) : when(heard)}. Run the cell again to go on.`;
  }
  return state === BUSY ? "The kernel is busy: if a cell runs, this is done when it ends." : null;
}

function say(banner, sentence, tone) {
  banner.hidden = !sentence;
  banner.classList.toggle("nbflow-tone-bad", tone === "bad");
  banner.classList.toggle("nbflow-tone-warn", tone === "warn");
  text(banner, sentence ?? "");
}

/** The static record beside a live view says the same: hide it as long as this one is there. */
function hideRecord(root, about) {
  const name = String(about.record ?? "");
  if (/^[\w-]+$/.test(name)) root.prepend(h("style", {}, `.nbflow-record-${name}{display:none!important}`));
}

/** Tell whether a person can see the element: its page is in front and it is scrolled into view. */
function watchSight(element, told) {
  let near = true;
  const tell = () => told(near && document.visibilityState !== "hidden");
  const observer = new IntersectionObserver((entries) => {
    near = entries.at(-1).isIntersecting;
    tell();
  }, {rootMargin: "200px"});
  observer.observe(element);
  document.addEventListener("visibilitychange", tell);
  return () => {
    observer.disconnect();
    document.removeEventListener("visibilitychange", tell);
  };
}
