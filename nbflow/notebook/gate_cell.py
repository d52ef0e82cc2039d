"""Gates in a notebook: a cell that is one (`%%gate`), and what is shown where a cell stops at one.

Whoever can show a gate better than as a form without buttons (the widget layer)
says so with `show_with`.
"""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, Protocol

from nbflow.core.errors import GatePending, GateRejected, NbflowError, UsageError
from nbflow.core.gates import GATE, SHOWN, Gate, find_gate, pending_of
from nbflow.core.history import History
from nbflow.notebook import messages
from nbflow.notebook.collect import collecting
from nbflow.notebook.detail import CODE
from nbflow.notebook.execute import CellCode, run_code
from nbflow.notebook.gate_form import Exhibit, form_html, form_text, quoted, until
from nbflow.notebook.options import CellOptions, GateOptions
from nbflow.notebook.runner import CellRunner, Work, flush_figures
from nbflow.runtime.gates import waiting
from nbflow.runtime.gates.deciding import shown_state

if TYPE_CHECKING:
    from nbflow.notebook.auto import CellRewriter
    from nbflow.notebook.host import Host
    from nbflow.runtime.session import Session, StepSpec
    from nbflow.store.protocol import Store

log = logging.getLogger("nbflow")


class Asked(Protocol):
    """The run that a gate is of: a session, or what is known of a run that this kernel does not have open."""

    @property
    def store(self) -> Store:
        """Where the run is recorded."""
        ...

    @property
    def run(self) -> str:
        """The run's id."""
        ...

    @property
    def workflow(self) -> str:
        """What is run."""
        ...

    @property
    def history(self) -> History:
        """What the run's journal says so far."""
        ...


@dataclass(frozen=True)
class Elsewhere:
    """A run as the store has it: of a machine or a child that stopped, say."""

    store: Store
    run: str
    workflow: str
    history: History


#: Why a gate is shown: the cell stopped at it or was restored, it waits there now, or it goes on with the decision,
#: and what is shown is recorded as the output of a durable cell ("kept").
Occasion = Literal["asked", "waits", "kept"]

#: Shows a gate of a run in the cell that is executing: (shell, session, gate, occasion); false where it has no way to.
Show = Callable[[Any, Asked, Gate, Occasion], bool]

_shows: list[Show] = []


def show_with(show: Show | None) -> None:
    """Have `show(shell, session, gate, occasion)` show gates from now on (the widget layer does); None unregisters.

    `session` has `store`, `run`, `workflow` and `history`. What is published is to
    carry the metadata that `published_with(occasion)` gives: nbflow's own words are not
    recorded as the cell's. Where it returns False or raises, the form without buttons is shown.
    """
    _shows[:] = [] if show is None else [show]


def published_with(occasion: Occasion) -> dict[str, Any]:
    """Return the metadata of what is published about a gate."""
    return {} if occasion == "kept" else messages.MARK


def present(shell: Any, session: Asked, gate: Gate, occasion: Occasion = "asked") -> None:
    """Show in the executing cell what a gate asks, or how it was decided."""
    for show in _shows:
        try:
            if show(shell, session, gate, occasion):
                return
        except Exception:
            log.exception("Gate %s of run %s is shown without buttons.", gate.step, session.run)
    exhibits = exhibits_of(session, gate)
    data = {
        "text/plain": form_text(gate, session.run, exhibits),
        "text/html": form_html(gate, session.run, exhibits),
    }
    shell.display_pub.publish(data=data, metadata=published_with(occasion))


def exhibits_of(session: Asked, gate: Gate) -> list[Exhibit]:
    """Return what a gate shows; a notice where that cannot be read."""
    from nbflow.values.codec import decode

    cursor = session.history.cursors.get(gate.step)
    if cursor is None:
        return []
    refs = {ref.digest: ref for ref in cursor.checkpoint.leaves}
    try:
        found = decode(cursor.checkpoint, lambda digest: session.store.leaf(session.run, refs[digest]))
    except NbflowError as error:
        return [{"kind": "notice", "text": f"What the gate shows cannot be read: {error}"}]
    return list(found.get(SHOWN, ()))


# --- a cell that stopped -------------------------------------------------------------------------------------


def stopped(host: Host, error: BaseException) -> None:
    """Show the gate at which a cell stopped; nothing where it ended in another way."""
    pending = pending_of(error)
    if pending is None:
        return
    found = _gate_of(host, pending)
    if found is not None:
        present(host.shell, *found)


def _gate_of(host: Host, pending: GatePending) -> tuple[Asked, Gate] | None:
    """Return the gate that stopped a cell with its run; None where the store does not know it."""
    session = host.session
    try:
        if session is not None and session.run == pending.run:
            return session, find_gate(session.history, pending.step)
        store = host.store()
        info, history = store.run(pending.run), History.of(store.entries(pending.run))
        return Elsewhere(store, info.run, info.workflow, history), find_gate(history, pending.step)
    except NbflowError:
        return None  # a run of another store: the error says which gate waits, and how to decide


def still_waits(host: Host, pending: GatePending) -> bool:
    """Tell whether the gate that stopped a cell waits for a decision now; where nobody can tell, it does."""
    session = host.session
    store = session.store if session is not None and session.run == pending.run else host.store()
    try:
        entries, words, _ = store.tail(pending.run)
        gate = find_gate(History.of(entries), pending.step)
    except NbflowError:
        return True
    return shown_state(gate, words, time.time())[0] == "waiting"


def install_rendering(host: Host) -> None:
    """Have a pending gate shown as a short notice instead of a traceback, and one that is waited at as a form."""
    GatePending._render_traceback_ = lambda error: render_pending(host, error)  # type: ignore[attr-defined]
    waiting.show_with(partial(_met, host))


def _met(host: Host, session: Session, step: str, waits: bool) -> None:
    """Code of the executing cell waits at a gate, or goes on with its decision; of many in threads nothing is shown."""
    place = host.place
    if place is None or (not waits and threading.current_thread() is not threading.main_thread()):
        return
    occasion: Occasion = "waits" if waits else "kept" if place.durable else "asked"
    present(host.shell, session, find_gate(session.history, step), occasion)


def remove_rendering() -> None:
    """Undo `install_rendering`."""
    waiting.show_with(None)
    if "_render_traceback_" in GatePending.__dict__:
        del GatePending._render_traceback_  # type: ignore[attr-defined]


def render_pending(host: Host, error: GatePending) -> list[str]:
    """Return what is said where a cell stops at a gate: which, what it asks, since when, until when, how to decide."""
    found = _gate_of(host, error)
    if found is None:
        return [f"\x1b[1mWaiting at a gate\x1b[0m: {error}"]
    from nbflow.notebook.amounts import moment

    session, gate = found
    lines = [f"\x1b[1m⏸ Waiting at gate {gate.form.name}\x1b[0m: {gate.form.text or 'approve or reject?'}"]
    due = until(gate)
    lines.append(f"Asked {moment(gate.opened_at)}{f', {due}' if due else ''}. Nothing failed.")
    name = quoted(gate.form.name)
    # A command stands on a line of its own: JupyterLab breaks long ones in the middle of a word.
    how = (
        f"Decide with %nbflow approve {name} or %nbflow reject {name}, in the dashboard, or in a terminal:\n"
    )
    how += f"    nbflow approve {session.run} {name}\nThen run this cell again: it goes on from here."
    return [*lines, how]


# --- a cell that is a gate -----------------------------------------------------------------------------------


class GateRunner(CellRunner):
    """Runs the cells that are gates: durable cells whose result is a decision about what they show.

    What it shows is made when it is asked; from then on the body does not run
    again unless its code, the question or something that it reads changes: then it
    is asked anew.
    """

    def __init__(self, host: Host, rewriter: CellRewriter) -> None:
        super().__init__(host, rewriter)
        #: By step and the signature that the cell has since its body ran: what it was asked as.
        self._asked_as: dict[tuple[str, bytes], StepSpec] = {}

    def ask(self, options: GateOptions, body: str) -> None:
        """Ask, or give the recorded decision back.

        Raises:
            GatePending: nobody has decided yet.
            GateRejected: somebody said no.
            UsageError: an option makes no sense, or the body has a top-level await.
        """
        self.run(options, body)

    def _prepare(self, options: CellOptions, body: str) -> tuple[CellCode, Work | None]:
        code, work = super()._prepare(options, body)
        if code.awaits:
            raise UsageError(
                "A %%gate cell cannot have a top-level await; nobody was asked.",
                hint="Await in the cell above it, or ask with `await nbflow.agate(...)`.",
            )
        if work is not None:
            work.spec = self._asked_as.get((work.spec.step, work.spec.signature), work.spec)
        return code, work

    def _note_changes(self, work: Work) -> None:
        """Remember what the cell reads now, behind its body: a plot that it has changed is no other question."""
        inputs = self.host.tracker.before(
            work.inputs.analysis, reads=work.options.inputs, writes=work.options.out or ()
        )
        code = bytes.fromhex(work.spec.detail[CODE])
        after = inputs.signature(code, version=work.options.version, options=work.options.declared)
        self._asked_as[work.spec.step, after] = work.spec

    def _execute(self, work: Work) -> None:
        from nbflow.runtime.gates.asking import Asking, Question, answered

        options = _gate_options(work.options)
        assert options.name is not None, "the parser wants one"
        asking = Asking(
            Question(
                options.name,
                options.text,
                options.choices,
                options.single,
                options.due,
                options.on_timeout,
                work=work.spec.signature,
            ),
            wait=options.wait,
        )
        if asking.first:
            with collecting(self.shell, flush_figures) as shown:
                run_code(self.shell, work.code)
            self._note_changes(work)
            asking.show = shown.objects()
            if not options.text:
                asking.question = dataclasses.replace(asking.question, text=shown.title())
        decision = asking.ask()
        try:
            self.shell.user_ns[options.variable] = answered(asking, decision, options.on_reject)
        except GateRejected:
            self._present(work)
            raise

    def _replay(self, work: Work) -> bool:
        replayed = super()._replay(work)
        if replayed:
            self._present(work)
        return replayed

    def _recorded(self, work: Work, execution: Any) -> None:
        super()._recorded(work, execution)
        self._present(work)

    def _present(self, work: Work) -> None:
        key = f"{work.spec.step}/{GATE}:{work.options.name}#0"
        if key in work.session.history.by_step:
            present(self.shell, work.session, find_gate(work.session.history, key))


def _gate_options(options: CellOptions) -> GateOptions:
    if not isinstance(options, GateOptions):
        raise UsageError(f"{options!r} are no options of a gate.")
    return options
