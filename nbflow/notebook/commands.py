"""The subcommands of `%nbflow`. Each is one method; its first line is its help.

What only looks never takes the lease: `status`, `steps`, `outputs` and `runs`
read the store when no run is attached.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nbflow.core.errors import NbflowError, UnknownRun, UnknownStep, UsageError
from nbflow.core.gates import gates_of
from nbflow.core.history import Execution, History
from nbflow.notebook import detail as keys
from nbflow.notebook import messages
from nbflow.notebook.host import Host
from nbflow.notebook.options import did_you_mean, new_parser, parse_with

if TYPE_CHECKING:
    from nbflow.runtime.session import Session


_ELSEWHERE = "in another process"


@dataclass(frozen=True)
class Subcommand:
    """One word behind `%nbflow`: its use, its meaning, and what may follow (STEP, RUN, words, options)."""

    usage: str
    meaning: str
    wants: tuple[str, ...] = ()


_DECIDING = ("GATE", "RUN", "--feedback", "--select")

SUBCOMMANDS: dict[str, Subcommand] = {
    "approve": Subcommand(
        "approve [RUN] GATE",
        "approve what a gate asks; --feedback TEXT, --select OPTION (repeatable)",
        _DECIDING,
    ),
    "auto": Subcommand("auto on|off", "make every later cell durable, or stop it", ("on", "off")),
    "cancel": Subcommand(
        "cancel [RUN] [--yes]",
        "cancel a run for good, by default the present one; --reason TEXT says why",
        ("RUN", "--reason", "--yes"),
    ),
    "dashboard": Subcommand("dashboard [RUN]", "runs, steps and gates, live in this notebook", ("RUN",)),
    "delete": Subcommand("delete RUN [--yes]", "delete a run and all it recorded", ("RUN", "--yes")),
    "finish": Subcommand("finish", "complete the run; the next durable cell starts a new one"),
    "forget": Subcommand(
        "forget STEP|--all [--yes]",
        "have a step, or all calls of a function, run again, with what depends on them",
        ("STEP", "--all", "--yes"),
    ),
    "gates": Subcommand("gates [--all]", "the gates that wait for a decision, of every run", ("--all",)),
    "help": Subcommand("help", "this page"),
    "new": Subcommand("new", "start a fresh run; the present one stays as it is"),
    "outputs": Subcommand("outputs [STEP]", "the recorded variables of the run, or of one step", ("STEP",)),
    "reject": Subcommand("reject [RUN] GATE", "reject what a gate asks; --feedback TEXT says why", _DECIDING),
    "resume": Subcommand(
        "resume RUN [--steal]",
        "carry on another unfinished run; RUN is an id or its beginning",
        ("RUN", "--steal"),
    ),
    "runs": Subcommand("runs [--all]", "the runs of this notebook, or of every workflow", ("--all",)),
    "signal": Subcommand(
        "signal RUN NAME [--text T]",
        "send a signal to a run; --value JSON instead of a text, --id ID to repeat it safely",
        ("RUN", "--value", "--text", "--id"),
    ),
    "sql": Subcommand("sql QUERY", "SQL over the store's views and over recorded tables (step.variable)"),
    "status": Subcommand("status", "what is recorded in the current run, what would run, and why"),
    "steal": Subcommand(
        "steal", "take the run over from the kernel that has it; that one can record no more"
    ),
    "steps": Subcommand(
        "steps [--all]", "the steps of the run; --all shows every execution and call by its key", ("--all",)
    ),
    "store": Subcommand("store [PLACE]", "use the store in this folder; without PLACE, say where it is"),
}


class Commands:
    """`%nbflow` for one shell."""

    def __init__(self, host: Host) -> None:
        self.host = host

    def run(self, line: str) -> Any:
        """Do what the line says and return what is to be shown, or None.

        Raises:
            UsageError: no such subcommand, or an argument that makes no sense.
        """
        word, _, rest = line.strip().partition(" ")
        word = word or "status"
        if word not in SUBCOMMANDS:
            meant = did_you_mean(word, SUBCOMMANDS) or f"It knows {', '.join(sorted(SUBCOMMANDS))}."
            raise UsageError(f"%nbflow knows no {word!r}.", hint=f"{meant} See %nbflow?")
        if self.host.engaged and self._is_the_engines(word, rest.strip()):
            return None
        method: Callable[[str], Any] = getattr(self, f"do_{word}")
        return method(rest.strip())

    def _is_the_engines(self, word: str, rest: str) -> bool:
        """Tell whether this is for the engine to decide, which executes the notebook as one run: then say so.

        Raises:
            UsageError: going on would take the run away from the engine.
        """
        if word in ("new", "finish"):
            messages.say(
                self.host.shell,
                f"%nbflow {word} does nothing here: nbflow's engine executes this notebook as one run "
                "and completes it at its end.",
            )
            return True
        if word in ("resume", "steal") or (word == "store" and rest):
            raise UsageError(
                f"%nbflow {word} has no place in a notebook that nbflow's engine executes.",
                hint="Say which run or store to papermill: --nbflow-run RUN, NBFLOW_STORE=PLACE.",
            )
        return False

    @staticmethod
    def manual() -> str:
        """Return the text that `%nbflow?` shows."""
        lines = ["Look at the run of this notebook and steer it.", "", "Usage: %nbflow [SUBCOMMAND]", ""]
        lines += [f"    {word.usage:27} {word.meaning}" for word in SUBCOMMANDS.values()]
        lines += ["", "Without a subcommand: status. Settings: %config NbFlow. Cells: %%durable?", ""]
        return "\n".join(lines)

    # --- looking ------------------------------------------------------------------------------------

    def do_status(self, rest: str) -> Any:
        """What is recorded in the current run, what would run, and why."""
        self._arguments("status", rest)
        history = self._history()
        if history is None:
            return self._no_run()
        if self.host.session is not None:
            self.host.session.recorder.take_messages()  # a gate that was decided does not wait any more
        alive = self._standing(history) == _ELSEWHERE
        return self.host.plan(history, self._title(history), alive=alive)

    def do_steps(self, rest: str) -> Any:
        """The steps of the current run; --all shows every execution and call with its key."""
        from nbflow.notebook.tables import steps_table

        found = self._arguments("steps", rest, ("--all", {"action": "store_true", "dest": "every"}))
        history = self._history()
        if history is None:
            return self._no_run()
        return steps_table(history, self._title(history), self.host.cells() or (), every=found.every)

    def do_outputs(self, rest: str) -> Any:
        """The recorded variables of the current run, or of one step."""
        from nbflow.notebook.tables import outputs_table

        found = self._arguments("outputs", rest, ("step", {"nargs": "?", "metavar": "STEP"}))
        return outputs_table(self._history(), found.step)

    def do_runs(self, rest: str) -> Any:
        """The runs of this notebook, newest first; --all shows those of every workflow."""
        from nbflow.notebook.tables import runs_table
        from nbflow.store.protocol import RunQuery

        found = self._arguments("runs", rest, ("--all", {"action": "store_true", "dest": "every"}))
        workflow = None if found.every else self.host.workflow()
        current = self.host.session.run if self.host.session is not None else None
        return runs_table(self.host.store().runs(RunQuery(workflow=workflow)), workflow, current)

    def do_dashboard(self, rest: str) -> Any:
        """Runs, steps and gates, live in this notebook."""
        from nbflow.notebook.shown import show

        found = self._arguments("dashboard", rest, ("run", {"nargs": "?", "metavar": "RUN"}))
        return show("dashboard", run=found.run)

    def do_sql(self, rest: str) -> Any:
        """SQL over the store's views and over recorded tables (step.variable)."""
        if not rest:
            raise UsageError("%nbflow sql wants a query.", hint="For example: %nbflow sql select * from runs")
        rest = unquoted(rest)
        if self.host.session is not None:
            self.host.session.log.flush()
        return self.host.store().sql(
            rest, run=self.host.session.run if self.host.session is not None else None
        )

    def do_help(self, rest: str) -> None:
        """This page."""
        self._arguments("help", rest)
        print(self.manual())  # noqa: T201 - a page for people

    # --- steering -----------------------------------------------------------------------------------

    def do_new(self, rest: str) -> None:
        """Start a fresh run; the present one stays as it is."""
        self._arguments("new", rest)
        session = self.host.attach(new=True)
        messages.say(
            self.host.shell, f"Run {session.run} of {session.workflow} is new: every durable cell runs."
        )

    def do_finish(self, rest: str) -> None:
        """Complete the run; the next durable cell starts a new one."""
        self._arguments("finish", rest)
        session = self._session()
        run, workflow = session.run, session.workflow
        session.finish()
        self.host.detach()
        messages.say(self.host.shell, f"Run {run} of {workflow} is completed.")

    def do_resume(self, rest: str) -> None:
        """Carry on another unfinished run; RUN is an id or its beginning."""
        found = self._arguments(
            "resume", rest, ("run", {"metavar": "RUN"}), ("--steal", {"action": "store_true"})
        )
        session = self.host.attach(run=found.run, steal=found.steal)
        messages.say(
            self.host.shell,
            f"Run {session.run} of {session.workflow} is carried on, attempt {session.attempt}.",
        )
        self.host.show_plan()

    def do_steal(self, rest: str) -> None:
        """Take the run over from the kernel that has it; that one cannot record any more."""
        self._arguments("steal", rest)
        held = self.host.session
        if held is not None and self.host.store().run(held.run).generation == held.log.generation:
            messages.say(self.host.shell, "The run is this kernel's already.")
            return
        session = self.host.attach(steal=True)
        messages.say(
            self.host.shell,
            f"Run {session.run} of {session.workflow} is this kernel's now, attempt {session.attempt}.",
        )

    def do_forget(self, rest: str) -> None:
        """Have a step run again, with all that depends on it; --all forgets every step."""
        from nbflow.notebook.calls import calls_of, scope_of

        found = self._arguments(
            "forget",
            rest,
            ("step", {"nargs": "?", "metavar": "STEP"}),
            ("--all", {"action": "store_true", "dest": "every"}),
            ("--yes", {"action": "store_true"}),
        )
        if bool(found.step) == bool(found.every):
            raise UsageError("%nbflow forget wants the name of a step, or --all.")
        session = self._session()
        if found.every:
            chosen = recorded_steps(session.history)
            self._ask(
                f"Forget all {len(chosen)} recorded steps of run {session.run}, so that all runs again?",
                found.yes,
            )
        else:
            named = self._named(session.history, found.step)
            # A call is entered only if the cell around it runs.
            named += [cell for cell in dict.fromkeys(map(scope_of, named)) if cell in session.history.by_step]
            chosen = list(dict.fromkeys(s for one in named for s in with_dependents(session.history, one)))
        calls = [call for call in calls_of(session.history) if call.steps[0].step in chosen]
        for step in chosen:
            session.forget(step, "asked for in the notebook")
            self.host.done_here.pop(step, None)
        shown = [step for step in chosen if "/" not in step]
        shown += dict.fromkeys(call.label for call in calls if call.scope not in chosen)
        # Gates, children and waits of plain cells.
        told = {step.step for call in calls for step in call.steps}
        shown += dict.fromkeys(
            session.history.by_step[step][-1].started.name
            for step in chosen
            if "/" in step and step not in told and scope_of(step) not in chosen
        )
        messages.say(
            self.host.shell,
            f"Forgotten, to run again: {', '.join(shown) or 'nothing'}. What was recorded stays in history.",
        )

    def do_delete(self, rest: str) -> None:
        """Delete a run and everything it recorded."""
        found = self._arguments(
            "delete", rest, ("run", {"metavar": "RUN"}), ("--yes", {"action": "store_true"})
        )
        store = self.host.store()
        info = store.run(found.run)
        self._ask(
            f"Delete run {info.run} of {info.workflow} with its {info.steps} recorded steps?", found.yes
        )
        if self.host.session is not None and self.host.session.run == info.run:
            self.host.detach()
        store.delete(info.run)
        messages.say(self.host.shell, f"Run {info.run} is deleted.")

    def do_cancel(self, rest: str) -> None:
        """Cancel a run for good: the present one, or another by its id or the beginning of it."""
        from nbflow.core.errors import RunCancelled
        from nbflow.runtime.waits.cancelling import cancel

        found = self._arguments(
            "cancel",
            rest,
            ("run", {"nargs": "?", "metavar": "RUN"}),
            ("--reason", {"default": "", "metavar": "TEXT"}),
            ("--yes", {"action": "store_true"}),
        )
        store = self.host.store()
        info = store.run(found.run or self._session().run)
        self._ask(f"Cancel run {info.run} of {info.workflow} for good?", found.yes)
        answer = cancel(info.run, unquoted(found.reason), store=store)
        own = self.host.session
        if own is not None and own.run == info.run:
            try:
                own.check()
            except RunCancelled as error:
                failure = self.host.stop(error)
                if failure is not error:
                    raise failure from None
                answer = "cancelled"
        said = "is cancelled." if answer == "cancelled" else "is asked to stop: its owner ends it."
        messages.say(self.host.shell, f"Run {info.run} of {info.workflow} {said}")

    def do_signal(self, rest: str) -> None:
        """Send a signal to a run; it is kept until the run waits for it."""
        from nbflow.runtime.waits.signals import payload_of, signal

        found = self._arguments(
            "signal",
            rest,
            ("run", {"metavar": "RUN"}),
            ("name", {"metavar": "NAME"}),
            ("--value", {"metavar": "JSON"}),
            ("--text", {"metavar": "TEXT"}),
            ("--id", {"metavar": "ID"}),
        )
        # IPython leaves quotation marks where they are.
        value, text = (None if one is None else unquoted(one) for one in (found.value, found.text))
        payload = payload_of(value, text)
        info = self.host.store().run(found.run)
        signal(info.run, found.name, payload, store=self.host.store(), id=found.id)
        messages.say(self.host.shell, f"Signal {found.name} is sent to run {info.run} of {info.workflow}.")

    def do_gates(self, rest: str) -> Any:
        """The gates that wait for a decision, of every run; --all shows decided ones and those of finished runs."""
        from nbflow.notebook.gate_commands import listed

        found = self._arguments("gates", rest, ("--all", {"action": "store_true", "dest": "every"}))
        return listed(self.host, every=found.every)

    def do_approve(self, rest: str) -> None:
        """Approve what a gate asks, of this run or of another."""
        self._decide("approve", rest)

    def do_reject(self, rest: str) -> None:
        """Reject what a gate asks, of this run or of another."""
        self._decide("reject", rest)

    def _decide(self, word: str, rest: str) -> None:
        from nbflow.notebook.gate_commands import ARGUMENTS, decided

        found = self._arguments(word, rest, *ARGUMENTS)
        decided(self.host, found, self._history, approved=word == "approve")

    def do_auto(self, rest: str) -> None:
        """Make every later cell durable, or stop it."""
        found = self._arguments(
            "auto",
            rest,
            ("switch", {"nargs": "?", "choices": ["on", "off"], "default": "on", "metavar": "on|off"}),
        )
        self.host.config.auto = found.switch == "on"
        said = (
            "Every later cell is durable." if self.host.config.auto else "Only %%durable cells are durable."
        )
        messages.say(self.host.shell, said)

    def do_store(self, rest: str) -> None:
        """Use the store in this folder; without PLACE, say where it is."""
        found = self._arguments("store", rest, ("place", {"nargs": "?", "metavar": "PLACE"}))
        if found.place is not None:
            self.host.detach()
            before, self.host.config.store = self.host.config.store, found.place
            try:
                self.host.store()
            except NbflowError:
                self.host.config.store = before
                raise
        messages.say(self.host.shell, f"The store is {getattr(self.host.store(), 'root', found.place)}.")

    # --- what they share ----------------------------------------------------------------------------

    def step_names(self) -> list[str]:
        """List the recorded steps, for completion; nothing is attached or opened for it."""
        history = self.host.session.history if self.host.session is not None else None
        return list(history.by_step) if history is not None else []

    def gate_names(self) -> list[str]:
        """List the gates of this run that wait, for completion; nothing is attached or opened for it."""
        history = self.host.session.history if self.host.session is not None else None
        waiting = [] if history is None else [gate for gate in gates_of(history) if gate.state == "waiting"]
        return list(dict.fromkeys(gate.form.name for gate in waiting))

    def run_ids(self) -> list[str]:
        """List this notebook's runs, for completion; [] when the store is busy or cannot be read."""
        from nbflow.store.protocol import RunQuery

        try:
            return [
                info.run for info in self.host.store().runs(RunQuery(workflow=self.host.workflow(), limit=50))
            ]
        except NbflowError:  # a completion has nowhere to say it
            return []

    def _arguments(self, word: str, rest: str, *arguments: tuple[str, dict[str, Any]]) -> Any:
        parser = new_parser(f"%nbflow {word}")
        for name, settings in arguments:
            parser.add_argument(name, **settings)
        return parse_with(parser, rest, "%nbflow?")

    def _history(self) -> History | None:
        """Return the history of the attached run, else of the one that would be; None when there is none."""
        if self.host.session is not None:
            return self.host.session.history
        store = self.host.store()
        found = store.newest_open(self.host.workflow())
        return History.of(store.entries(found.run)) if found is not None else None

    def _standing(self, history: History) -> str:
        """Say who has the run."""
        assert history.opened is not None
        if self.host.session is not None:
            return "this kernel"
        return _ELSEWHERE if self.host.store().run(history.opened.run).alive else "not attached"

    def _title(self, history: History) -> str:
        from nbflow.notebook.tables import run_title

        return run_title(history, self._standing(history))

    def _no_run(self) -> messages.Table:
        return messages.Table(
            f"No unfinished run of {self.host.workflow()}.",
            [],
            [],
            "The first durable cell or call starts one.",
        )

    def _session(self) -> Session:
        """Return the attached run, or attach the one there is; a run is not begun to do away with something.

        Raises:
            UnknownRun: there is none.
        """
        if self._history() is None:
            raise UnknownRun(
                f"There is no unfinished run of {self.host.workflow()}.",
                hint="The first durable cell or call starts one.",
            )
        return self.host.attach(plan=False)

    def _named(self, history: History, name: str) -> list[str]:
        """Return the key of the step, or those of all calls of the function of this name."""
        from nbflow.notebook.calls import calls_of

        if name in history.by_step:
            return [name]
        name = name.removesuffix("()")
        named = [step for step, executions in history.by_step.items() if executions[-1].started.name == name]
        if named:
            return named
        known = [step for step in history.by_step if "/" not in step]
        known += dict.fromkeys(f"{call.name}()" for call in calls_of(history))
        raise UnknownStep(
            f"No step is called {name!r}.", step=name, hint=f"Recorded are: {', '.join(known) or 'none'}."
        )

    def _ask(self, question: str, yes: bool) -> None:
        if yes:
            return
        try:
            answer = input(f"{question} [y/N] ")
        except (EOFError, RuntimeError):  # ipykernel's StdinNotImplementedError is a RuntimeError
            raise UsageError("Nobody is there to answer, and nothing was done.", hint="Add --yes.") from None
        if answer.strip().lower() not in ("y", "yes"):
            raise UsageError("Nothing was done.")


def unquoted(text: str) -> str:
    """Return the text without the quotation marks around it.

    >>> unquoted("'select 1'"), unquoted("it's")
    ('select 1', "it's")
    """
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'" else text


def recorded_steps(history: History) -> list[str]:
    """List the steps that have something to replay."""
    return [
        s
        for s, executions in history.by_step.items()
        if any(e.completed and not e.forgotten for e in executions)
    ]


def with_dependents(history: History, step: str) -> list[str]:
    """Return the step, the calls made inside of it, and all steps that read what it or they wrote.

    A step reads what the newest execution before it wrote under that name.
    """
    writer: dict[str, str] = {}
    depends: dict[str, set[str]] = {}
    for execution in history.executions.values():
        started = execution.started
        reads: dict[str, Any] = started.detail.get(keys.READS, {})
        if execution.completed is not None and not execution.forgotten:
            for name in reads:
                if name in writer and writer[name] != started.step:
                    depends.setdefault(writer[name], set()).add(started.step)
        for name in written(execution):
            writer[name] = started.step
    chosen: list[str] = []
    waiting = [step]
    while waiting:
        one = waiting.pop(0)
        if one in chosen:
            continue
        chosen.append(one)
        waiting += [inner for inner in history.by_step if inner.startswith(f"{one}/")]
        waiting += sorted(depends.get(one, ()))
    return chosen


def written(execution: Execution) -> list[str]:
    """List the variables that an execution recorded or deleted."""
    if execution.completed is None:
        return []
    found = execution.completed.detail
    return [*found.get(keys.WRITES, ()), *found.get(keys.DELETES, ())]
