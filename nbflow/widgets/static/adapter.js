// The one way from a page to the store. A view asks, follows and listens; whether a kernel's comm or a
// server answers is the transport's business:
//   transport = {post(message), start(receive, moved) → stop, standing?() → "busy" | "idle" | "gone" | null}
// Messages to the other side are {id, method, params}; from it {id, result}, {id, error} or a push
// {view, turn, push, ...}. Comm messages reach every page of a notebook, so ids and pushes carry the view.
// Answers and pushes come from different threads, in any order: the turn, which the answer to `watch` has
// too, tells on what a push is to be put.

const SLOW = 1000; // ms without an answer until the page says that the kernel is busy
const SILENT = 12000; // ms without an answer from a kernel that claims to be idle until it counts as gone
const BEAT = 20000; // ms between two words that the page is visible

export const GONE = "gone";
export const BUSY = "busy";
export const LIVE = "live";

/** An error of the other side: type, message, hint, run and step as NbflowError has them. */
export class AskError extends Error {
  constructor({type, message, hint, run, step}) {
    super(message);
    this.name = type || "Error";
    Object.assign(this, {type: type || "Error", hint: hint || "", run: run ?? null, step: step ?? null});
  }
}

function newId() {
  return globalThis.crypto?.randomUUID?.() ?? `v${Date.now().toString(36)}${Math.random().toString(36).slice(2)}`;
}

export class Adapter {
  /** `snapshot`: the answers for the first paint; it has `at`, when they were true. */
  constructor(transport, snapshot = {}) {
    this.transport = transport;
    this.snapshot = snapshot;
    this.view = newId();
    /** "live", "busy" (asked, not answered yet) or "gone". */
    this.state = LIVE;
    /** When something was last heard from the other side, UTC seconds. */
    this.heard = snapshot.at ?? Date.now() / 1000;
    this.problem = null;
    this.asked = 0;
    this.open = new Map();
    this.listeners = new Set();
    this.follows = new Set();
    this.following = "";
    this.rewatches = 0;
    this.watching = null;
    /** The watch that the page shows, and pushes of the next one that came before its answer. */
    this.turn = 0;
    this.early = [];
    /** The query of runs that is watched, and the one that is to be. */
    this.shown = this.wished = "null";
    this.visible = true;
    this.stop = transport.start((message) => this.receive(message), (state) => this.moved(state));
    this.clock = setInterval(() => this.look(), 500);
    this.beats = setInterval(() => this.beat(), BEAT);
  }

  get connected() {
    return this.state !== GONE;
  }

  /** Ask; the promise gives the result or fails with an AskError. It waits as long as the kernel is busy. */
  ask(method, params = {}) {
    if (this.state === GONE) return Promise.reject(this.gone());
    this.asked += 1;
    const id = `${this.view}:${this.asked}`;
    return new Promise((resolve, reject) => {
      this.open.set(id, {resolve, reject, since: performance.now(), method});
      try {
        this.transport.post({id, method, params});
      } catch {
        this.moved(GONE);
      }
    });
  }

  /** Call `listener` with every push, and with {push: "connection", state}; returns how to stop. */
  listen(listener) {
    this.listeners.add(listener);
    return () => this.listeners.delete(listener);
  }

  /**
   * Have pushes about something: {runs: query | null, run: id | null, gates: bool}. Views on one page
   * share one watch; of several queries or runs the newest counts. What stands now comes as pushes of
   * their own ("runs", "whole" for a run, "gates"), and "lost" where the run cannot be read. Returns
   * {update(what), stop()}.
   */
  follow(what) {
    const mine = {what};
    this.follows.add(mine);
    this.rewatch();
    return {
      update: (changed) => {
        mine.what = {...mine.what, ...changed};
        this.rewatch();
      },
      stop: () => {
        this.follows.delete(mine);
        this.rewatch();
      },
    };
  }

  rewatch(force = false) {
    const wanted = {runs: null, run: null, gates: false};
    for (const {what} of this.follows) {
      if (what.runs) wanted.runs = what.runs;
      if (what.run) wanted.run = what.run;
      wanted.gates ||= Boolean(what.gates);
    }
    const said = this.follows.size ? JSON.stringify(wanted) : "";
    if ((said === this.following && !force) || this.state === GONE) return;
    this.following = said;
    this.wished = JSON.stringify(wanted.runs);
    this.rewatches += 1;
    if (!this.watching) this.watching = this.watchAll();
  }

  /** Tell the other side what is watched, one after the other: of two answers under way the older could come last. */
  async watchAll() {
    await null; // views that are mounted together ask together
    for (let done = -1; done !== this.rewatches && this.state !== GONE; ) {
      done = this.rewatches;
      await this.watchOnce(this.following).catch(() => {});
    }
    this.watching = null;
  }

  async watchOnce(said) {
    if (!said) {
      await this.ask("unwatch", {view: this.view});
      return;
    }
    const wanted = JSON.parse(said);
    let first;
    try {
      first = await this.ask("watch", {view: this.view, ...wanted});
    } catch (error) {
      if (said !== this.following || this.state === GONE) return;
      if (wanted.run && error.run === wanted.run) this.tell({push: "lost", run: wanted.run, error});
      else this.trouble([error.message, error.hint].filter(Boolean).join(" "));
      return;
    }
    this.turn = first.turn ?? 0;
    this.shown = JSON.stringify(wanted.runs);
    const early = this.early.splice(0);
    if (said !== this.following) return;
    if (first.runs) this.tell({push: "runs", ...first.runs});
    if (first.run) this.tell({push: "whole", ...first.run, run: wanted.run});
    if (first.gates) this.tell({push: "gates", ...first.gates});
    this.trouble(first.problem);
    for (const push of early) this.pushed(push);
  }

  /** Take a push: one of the watch before is old news, one of the next is kept until that is answered. */
  pushed(message) {
    const turn = message.turn ?? this.turn;
    if (turn !== this.turn) {
      if (this.watching) this.early.push(message);
    } else if (message.push === "store") {
      this.trouble(message.problem);
    } else if (message.push !== "runs" || this.shown === this.wished) {
      this.tell(message); // rows of another query would stand under the filters of this one
    }
  }

  /** Say whether anybody can see the page; what nobody sees is not pushed. */
  see(visible) {
    const before = this.visible;
    this.visible = visible;
    if (visible && !before) this.beat();
  }

  beat() {
    if (this.visible && this.following && this.state !== GONE) {
      const pending = [...this.open.values()].some(({method}) => method === "beat");
      // A board that does not know this page (it was made anew) is told what it watches.
      if (!pending) this.ask("beat", {view: this.view}).then(({known}) => known === false && this.rewatch(true), () => {});
    }
  }

  receive(message) {
    if (message.id !== undefined) {
      const waiting = this.open.get(message.id);
      if (!waiting) return;
      this.open.delete(message.id);
      this.heardNow();
      if (message.error) waiting.reject(new AskError(message.error));
      else waiting.resolve(message.result);
    } else if (message.push && (message.view === undefined || message.view === this.view)) {
      this.heardNow();
      this.pushed(message);
    }
  }

  heardNow() {
    this.heard = Date.now() / 1000;
    if (this.state === GONE) {
      this.become(LIVE);
      this.rewatch(true);
    } else if (this.state === BUSY && !this.slow()) {
      this.become(LIVE);
    }
  }

  slow() {
    const now = performance.now();
    return [...this.open.values()].some(({since}) => now - since > SLOW);
  }

  /** Judge the connection by the oldest question that is open. */
  look() {
    if (this.state === GONE || !this.open.size) return;
    const oldest = performance.now() - Math.min(...[...this.open.values()].map(({since}) => since));
    const standing = this.transport.standing?.() ?? null;
    const quiet = Date.now() / 1000 - this.heard > SILENT / 1000;
    if (standing === GONE || (standing === "idle" && oldest > SILENT && quiet)) this.moved(GONE);
    else if (oldest > SLOW) this.become(BUSY);
    else this.become(LIVE);
  }

  /** The transport knows that the other side is gone, or that it is back. */
  moved(state) {
    if (state === GONE && this.state !== GONE) {
      this.become(GONE);
      const open = [...this.open.values()];
      this.open.clear();
      for (const {reject} of open) reject(this.gone());
    } else if (state === LIVE && this.state === GONE) {
      this.become(LIVE);
      this.rewatch(true);
    }
  }

  gone() {
    return new AskError({
      type: "Gone",
      message: "The kernel is gone, and nothing was done.",
      hint: "Run the cell again to have a live view.",
    });
  }

  become(state) {
    if (this.state === state) return;
    this.state = state;
    this.tell({push: "connection", state});
  }

  trouble(problem) {
    if (this.problem === (problem ?? null)) return;
    this.problem = problem ?? null;
    this.tell({push: "store", problem: this.problem});
  }

  tell(push) {
    for (const listener of [...this.listeners]) {
      try {
        listener(push);
      } catch (error) {
        console.error("nbflow: a view failed on a push", error); // one view must not silence the others
      }
    }
  }

  dispose() {
    clearInterval(this.clock);
    clearInterval(this.beats);
    if (this.following && this.state !== GONE) {
      try {
        this.transport.post({id: `${this.view}:bye`, method: "bye", params: {view: this.view}});
      } catch {
        // Nobody is there to be told.
      }
    }
    this.listeners.clear();
    this.stop();
  }
}

const DEAD = new Set(["dead", "restarting", "autorestarting", "terminating"]);

/** The transport of a widget in a notebook: the model's comm, and what the notebook knows of the kernel. */
export function widgetTransport(model, el) {
  const kernel = () => model.widget_manager?.kernel;
  const cut = () => Boolean(el.closest(".jupyter-widgets-disconnected"));
  const standing = () => {
    if (cut()) return GONE;
    const it = kernel();
    if (it === undefined) return null; // this notebook does not say
    if (it === null || it.isDisposed || DEAD.has(it.status)) return GONE;
    if (it.connectionStatus && it.connectionStatus !== "connected") return BUSY;
    return it.status === "idle" ? "idle" : BUSY;
  };
  return {
    post: (message) => model.send(message),
    standing,
    start: (receive, moved) => {
      const message = (content) => receive(content);
      const closed = () => moved(GONE);
      // The notebook marks the element after it has told its models.
      const live = () => setTimeout(() => moved(standing() === GONE ? GONE : LIVE), 50);
      const status = (_, now) => DEAD.has(now) && moved(GONE);
      model.on("msg:custom", message);
      model.on("comm:close", closed);
      model.on("comm_live_update", live);
      const watched = kernel();
      watched?.statusChanged?.connect(status);
      watched?.disposed?.connect(closed);
      return () => {
        model.off("msg:custom", message);
        model.off("comm:close", closed);
        model.off("comm_live_update", live);
        watched?.statusChanged?.disconnect(status);
        watched?.disposed?.disconnect(closed);
      };
    },
  };
}
