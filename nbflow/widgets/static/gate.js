// A gate as a card: what is asked and shown, the form to decide it, and afterwards the decision.
// What somebody is writing is never touched by a push, and a card never moves under the mouse: one that
// is decided elsewhere turns into its record where it stands.

import {button, fresh, h, replace, set, text} from "./dom.js";
import {sentence} from "./dialog.js";
import {exhibit} from "./exhibit.js";
import {count, cut, exactly, plural, shortId, when} from "./format.js";
import {makeForm} from "./gate-form.js";
import {asked, makeRecord, spoken, THEN, timeLeft} from "./gate-record.js";
import {restate, stateBadge} from "./states.js";

const PAGE = 20; // cards that are drawn at once
const MORE = 20; // and how many more on request

/** One gate: `about` has its `run` and `step`; `here`: in the very notebook that asks; `waits`: its cell waits. */
export function mount(root, adapter, about) {
  const first = adapter.snapshot?.gate;
  const place = h("div", {class: "nbflow-gates"});
  root.append(place);
  let card = null;
  let ended = false;
  let following = null;
  let followed = "";
  const draw = (row) => {
    if (ended) return;
    if (card) {
      card.update(row);
    } else {
      card = makeCard(adapter, row, {...about, open: true, changed: follow});
      replace(place, card.element);
    }
    follow();
  };
  /** Of a gate that waits, the list of those that wait is news; of a sent decision, its run. The end is no news. */
  const follow = () => {
    const {state, run} = card?.row ?? {state: "waiting"};
    const wanted = ["waiting", "gone"].includes(state) ? {gates: true} : state === "sent" ? {run} : null;
    if (ended || JSON.stringify(wanted) === followed) return;
    followed = JSON.stringify(wanted);
    const before = following;
    following = wanted && adapter.follow(wanted);
    before?.stop();
  };
  const look = () =>
    adapter.ask("gate", {run: about.run, step: about.step}).then(draw, (error) => {
      if (!card && !ended) replace(place, h("p", {class: "nbflow-error", role: "alert"}, sentence(error)));
    });
  if (first) draw(first);
  else place.append(h("p", {class: "nbflow-quiet"}, "Looking for the gate…"));
  const stop = adapter.listen((push) => {
    if (push.push === "connection") {
      card?.connection();
      if (!card && adapter.connected) look();
    }
    const rows = push.push === "gates" ? push.rows : ["run", "whole"].includes(push.push) && push.run === about.run ? push.gates : null;
    if (push.push === "lost") card?.refresh();
    if (!rows) return;
    const row = rows.find((each) => each.run === about.run && each.step === about.step);
    // Lists hold what waits: a gate that is missing was decided or went away, which it says itself.
    if (!row || !card || row.opening !== card.row.opening) look();
    else draw(row);
  });
  follow();
  return () => {
    ended = true;
    following?.stop();
    stop();
    card?.dispose();
    place.remove();
  };
}

/** All gates of the store that wait, as cards; what they show is asked for when it is wanted. */
export function mountList(root, adapter, about = {}) {
  const title = h("h3", {class: "nbflow-gates-title"}, "Waiting for a decision");
  const said = h("div", {class: "nbflow-quiet", role: "status"}, "Looking for gates…");
  const place = h("ul", {class: "nbflow-gates"});
  const more = button("", () => {
    const before = shown;
    shown += MORE;
    draw();
    place.children[before]?.querySelector("button, input, textarea")?.focus();
  }, {hidden: true});
  const tidy = button("Put the decided ones away", () => {
    for (const [key, card] of cards) if (!card.waits) drop(key);
    draw();
    title.focus();
  }, {hidden: true, class: "nbflow-button-plain"});
  set(title, {tabindex: "-1"});
  root.append(h("div", {class: "nbflow-gates-head"}, title, tidy), said, place, more);
  const cards = new Map(); // in the order in which they are shown: new ones come last
  let rows = [];
  let shown = PAGE;
  let ended = false;
  const keyOf = (row) => JSON.stringify([row.run, row.step]);
  const drop = (key) => {
    cards.get(key)?.dispose();
    cards.get(key)?.item.remove();
    cards.delete(key);
  };
  const tidied = () => {
    tidy.hidden = ![...cards.values()].some((card) => !card.waits);
    attend();
  };
  const draw = () => {
    for (const row of rows) {
      if (cards.size >= shown) break;
      const key = keyOf(row);
      if (cards.has(key)) continue;
      const card = makeCard(adapter, row, {open: false, level: "h4", store: about.store, changed: tidied});
      card.item = h("li", {}, card.element);
      cards.set(key, card);
      place.append(card.item);
    }
    const waiting = rows.length;
    text(said, waiting ? `${plural(waiting, "gate")} ${waiting === 1 ? "waits" : "wait"}.` : "No gate waits for a decision.");
    const left = rows.filter((row) => !cards.has(keyOf(row))).length;
    more.hidden = !left;
    text(more, `Show ${count(Math.min(left, MORE))} more of ${count(left)}`);
    tidied();
    about.told?.(waiting);
  };
  const taken = (answer) => {
    if (ended) return;
    const now = new Map(answer.rows.map((row) => [keyOf(row), row]));
    rows = answer.rows.filter((row) => row.state === "waiting");
    for (const [key, card] of cards) {
      const row = now.get(key);
      if (row) card.update(row);
      else if (card.waits || card.row.state === "sent") card.refresh();
    }
    draw();
  };
  /** A decision that was sent is taken in by its run, which the list of those that wait says nothing of. */
  let attended = null;
  const attend = () => {
    const run = ended ? undefined : [...cards.values()].find((card) => card.row.state === "sent")?.row.run;
    if (attended?.run === run) return;
    attended?.following.stop();
    attended = run ? {run, following: adapter.follow({run})} : null;
  };
  const stop = adapter.listen((push) => {
    if (push.push === "gates") taken(push);
    if (["run", "whole"].includes(push.push) && push.gates)
      for (const card of cards.values()) {
        const row = card.row.state === "sent" && push.gates.find((each) => each.run === card.row.run && each.step === card.row.step);
        if (row) card.update(row);
      }
    if (push.push === "connection") for (const card of cards.values()) card.connection();
  });
  // What was true when the page was made may be long ago, and a push comes only with the next change.
  // A kernel that is busy answers late: what it gave the page is shown meanwhile.
  const late = setTimeout(() => !ended && !cards.size && adapter.snapshot?.gates && taken(adapter.snapshot.gates), 500);
  adapter.ask("gates", {state: "waiting"}).then((answer) => {
    clearTimeout(late);
    taken(answer);
  }, (error) => {
    clearTimeout(late);
    if (adapter.snapshot?.gates) taken(adapter.snapshot.gates);
    else if (!ended) text(said, sentence(error));
  });
  const following = adapter.follow({gates: true});
  return () => {
    ended = true;
    clearTimeout(late);
    following.stop();
    attend();
    stop();
    for (const card of cards.values()) card.dispose();
    root.replaceChildren();
  };
}

/** The card of one gate: {element, row, waits, update(row), refresh(), connection(), dispose()}. */
function makeCard(adapter, given, {open, here = false, waits = false, deaf = false, store = "", level = "h3", changed = () => {}}) {
  const heading = fresh("gate");
  const badge = stateBadge(given.state);
  const question = h(level, {id: heading, class: "nbflow-gate-question", tabindex: "-1"});
  const rest = h("div", {class: "nbflow-gate-text", tabindex: "0", role: "region", "aria-label": "The whole question"});
  const facts = h("p", {class: "nbflow-gate-facts nbflow-quiet"});
  const left = h("span", {class: "nbflow-gate-left", role: "timer", "aria-live": "off"});
  const until = h("p", {class: "nbflow-gate-until"});
  const exhibits = h("div", {class: "nbflow-gate-exhibits", id: fresh("shown"), hidden: true});
  const unfold = button("Show what it is about", () => fold(exhibits.hidden), {
    "aria-expanded": "false",
    "aria-controls": exhibits.id,
    hidden: open,
  });
  const body = h("div", {class: "nbflow-gate-body"});
  const status = h("div", {class: "nbflow-gate-status", role: "status"});
  const element = h(
    "section",
    {class: "nbflow-gate", "aria-labelledby": heading},
    h("header", {class: "nbflow-gate-head"}, question, badge),
    rest,
    facts,
    until,
    unfold,
    exhibits,
    body,
    status,
  );
  let row = given;
  let form = null;
  let record = null;
  let asking = null;
  let loaded = null; // the opening of which the exhibits are shown

  /** Say something to everybody, or (`heard`) only to those who hear the page, where it is shown elsewhere. */
  const say = (words, {heard = false} = {}) => {
    status.classList.toggle("nbflow-hidden", heard);
    replace(status, words);
  };

  const refresh = () => {
    asking ??= adapter.ask("gate", {run: row.run, step: row.step}).then(
      (now) => {
        asking = null;
        update(now);
        return now;
      },
      (error) => {
        asking = null;
        if (error.type !== "Gone") {
          if (["UnknownRun", "UnknownStep"].includes(error.type)) update({...row, state: "gone"});
          say(sentence(error));
        }
        return null;
      },
    );
    return asking;
  };

  const fold = (unfolded) => {
    exhibits.hidden = !unfolded;
    set(unfold, {"aria-expanded": String(unfolded)});
    text(unfold, unfolded ? "Hide what it is about" : "Show what it is about");
    if (unfolded) show();
  };

  const show = () => {
    if (loaded === row.opening) return;
    if (!row.exhibits) {
      replace(exhibits, h("p", {class: "nbflow-quiet"}, "Loading…"));
      refresh().then((now) => {
        if (now) return;
        const again = button("Try again", show);
        replace(exhibits, h("p", {class: "nbflow-error"}, "What it shows could not be loaded."), again);
      });
      return;
    }
    loaded = row.opening;
    const shown = row.exhibits.map((each, number) => h("div", {class: "nbflow-gate-exhibit"}, exhibit(described(each, number, row))));
    replace(exhibits, shown.length ? shown : open ? null : h("p", {class: "nbflow-quiet"}, "It shows nothing."));
  };

  const head = () => {
    const [title, whole] = asked(row);
    text(question, title);
    text(rest, whole);
    rest.hidden = !whole;
    const state = row.decision ? (row.decision.approved ? "approved" : "rejected") : row.state;
    restate(badge, state);
    set(element, {dataset: {state}});
    replace(
      facts,
      h("span", {}, "Gate ", h("b", {}, cut(row.name, 120))),
      row.workflow ? h("span", {}, "of ", h("b", {}, cut(row.workflow, 120))) : null,
      h("span", {}, "run ", h("span", {class: "nbflow-mono", title: row.run}, shortId(row.run))),
      row.opened ? h("span", {title: exactly(row.opened)}, `asked ${when(row.opened)}`) : null,
    );
    until.hidden = !row.due || row.state !== "waiting";
    if (!until.hidden) {
      const due = h("span", {title: exactly(row.due)}, `Until ${when(row.due)}, ${THEN[row.on_timeout] ?? "then it is over"}`);
      replace(until, due, left);
      tick();
    }
  };

  let late = 0;
  const tick = () => {
    if (row.state !== "waiting" || !row.due) return;
    const seconds = row.due - Date.now() / 1000;
    text(left, seconds > 0 ? timeLeft(seconds) : "time is up");
    // Who owns the run writes that it is over; this page's clock may also be wrong.
    if (seconds <= 0 && late < 10 && adapter.connected) {
      late += 1;
      refresh();
    }
  };
  const forget = ticking(tick);

  const decided = () => {
    const focused = body.contains(document.activeElement);
    const said = {here, waits, unsent: form?.unsent(), complaint: form?.complaint()};
    form?.dispose();
    form = null;
    record = makeRecord(row, said);
    replace(body, record);
    say(spoken(row), {heard: true});
    // What had the focus is gone: the reader goes on at the card and not at the top of the page.
    if (focused) question.focus();
  };

  const ask = (anew) => {
    const focused = body.contains(document.activeElement);
    const complaint = form?.complaint();
    form?.dispose();
    form = makeForm(adapter, row, {update, refresh, say, complaint, deaf, store, via: here ? "notebook" : "dashboard"});
    record = null;
    replace(body, form.element);
    if (anew) say("This was asked anew. Look at what it shows now, and decide.");
    if (focused) question.focus();
  };

  const update = (now) => {
    const anew = now.opening !== row.opening;
    const moved = anew || now.state !== row.state || JSON.stringify(now.decision) !== JSON.stringify(row.decision);
    const before = row.text;
    // The rows of lists come without what is shown, and with long questions cut: keep both for the same asking.
    row = now.exhibits || anew || !row.exhibits ? now : {...now, exhibits: row.exhibits, text: row.text};
    card.row = row;
    card.waits = row.state === "waiting";
    if (moved || row.text !== before) head();
    if (moved) changed();
    if (!exhibits.hidden) show();
    if (!card.waits) {
      if (moved || !record) decided();
    } else if (anew || !form) {
      ask(anew);
    }
  };
  const connection = () => form?.connection();

  const card = {
    element,
    row,
    waits: given.state === "waiting",
    update,
    refresh,
    connection,
    dispose: () => {
      forget();
      form?.dispose();
    },
  };
  head();
  if (open) {
    exhibits.hidden = false;
    show();
  }
  update(row);
  return card;
}

/** A picture without words of its own is said to be one of this gate, so that those who hear the page know of it. */
function described(shown, number, row) {
  return shown.kind !== "image" || shown.alt ? shown : {...shown, alt: `Picture ${number + 1} that gate ${cut(row.name, 80)} shows`};
}

const ticks = new Set();
let clockwork = 0;

/** Call `tick` every second as long as somebody can see the page; returns how to end it. */
function ticking(tick) {
  ticks.add(tick);
  clockwork ||= setInterval(() => document.visibilityState !== "hidden" && ticks.forEach((each) => each()), 1000);
  return () => {
    ticks.delete(tick);
    if (ticks.size) return;
    clearInterval(clockwork);
    clockwork = 0;
  };
}
