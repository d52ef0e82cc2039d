"""Run or replay one durable cell.

    options + body
      → transform, analyse, compile          a syntax error ends here, nothing is recorded
      → fingerprint what it reads             → signature
      → recorded?  restore variables, ambient state and display, say so in one line
      → otherwise  run it under the recorder and record variables, ambient state, display

Exceptions of the user's code leave unchanged, so that one traceback is shown
and *Run All* stops; the session has recorded the failure by then.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from nbflow.core.errors import CannotRestore, CannotStore, CorruptLeaf, LeaseLost, RunCancelled, UsageError
from nbflow.notebook import ambient, capture, messages
from nbflow.notebook import detail as keys
from nbflow.notebook.amounts import duration
from nbflow.notebook.auto import AUTO_OPTION
from nbflow.notebook.execute import CellCode, also_called, compile_body, run_code, run_code_async, transform
from nbflow.notebook.host import CellReport
from nbflow.notebook.options import CellOptions
from nbflow.notebook.outcome import (
    RAISES_TAG,
    RESULT,
    is_closed_file,
    is_expected,
    raised,
    raised_again,
    rebind_results,
    result_of,
    storable,
)
from nbflow.notebook.tracking import is_private
from nbflow.notebook.warned import WARNED

if TYPE_CHECKING:
    from nbflow.core.history import Execution
    from nbflow.notebook.auto import CellRewriter
    from nbflow.notebook.host import Host
    from nbflow.notebook.tracking import Inputs
    from nbflow.runtime.session import Session, StepResult, StepSpec

_UNSTORED = "recorded without what cannot be stored"

# Keys of the completed record's detail that only this module reads.
_DREW = "drew"
_SEEDS = "seeds"
_RESULT = "result"
_AMBIENT = "ambient"
_RAISED = "raised"
#: Also what IPython calls the exit code of the last `!command`.
_EXIT_CODE = "_exit_code"

#: Tags of cells: always run and record anew; never run again in this run; leave it alone, so it runs every time.
RERUN_TAG, ONCE_TAG, SKIP_TAG = "nbflow-rerun", "nbflow-once", "nbflow-skip"


@dataclass
class Work:
    """One durable cell about to be replayed or run."""

    session: Session
    spec: StepSpec
    code: CellCode
    options: CellOptions
    inputs: Inputs
    #: Whether it has done its work also when it raises, and what it raised.
    may_raise: bool = False
    raised: BaseException | None = None
    recorder: capture.Recorder | None = None
    generators: list[str] = field(default_factory=list)


class CellRunner:
    """Runs the durable cells of one shell."""

    def __init__(self, host: Host, rewriter: CellRewriter) -> None:
        self.host = host
        self.shell = host.shell
        self._rewriter = rewriter

    def run(self, options: CellOptions, body: str) -> None:
        """Replay the cell or run it.

        Raises:
            UsageError: top-level await where it cannot be awaited, a name used twice.
            Whatever the cell raises.
        """
        code, work = self._prepare(options, body)
        if code.awaits:
            raise UsageError(
                "This cell has a top-level await, and %%durable is inside another magic.",
                hint="Make %%durable the first line of the cell.",
            )
        try:
            if work is None:
                with self._rewriter.inside():
                    run_code(self.shell, code)
            elif not self._replay(work):
                execution = work.session.run_step(
                    work.spec, lambda _attempt: self._body(work), self._shown(work)
                )
                self._recorded(work, execution)
            if work is not None and work.raised is not None:
                raise work.raised
        except BaseException as error:
            self._leave(error)
            raise

    async def run_async(self, options: CellOptions, body: str) -> None:
        """Do as `run` for a cell with top-level await."""
        code, work = self._prepare(options, body)
        try:
            if work is None:
                with self._rewriter.inside():
                    await run_code_async(self.shell, code)
            elif not self._replay(work):
                execution = await work.session.run_step_async(
                    work.spec, lambda _attempt: self._body_async(work), self._shown(work)
                )
                self._recorded(work, execution)
            if work is not None and work.raised is not None:
                raise work.raised
        except BaseException as error:
            self._leave(error)
            raise

    def _leave(self, error: BaseException) -> None:
        if isinstance(error, LeaseLost):
            raise self.host.lose(error) from None
        if isinstance(error, RunCancelled):
            raise self.host.stop(error) from None
        if isinstance(error, CannotStore) and error.variable in self.shell.user_ns:
            error.add_note(
                f"The cell ran and {error.variable} is in memory, but nothing is recorded. With "
                "`--on-cannot-store rerun` the rest is, and the cell runs again when a new kernel resumes."
            )
        messages.only_user_frames(self.shell, error)

    # --- before ---------------------------------------------------------------------------------------

    @WARNED.undisturbed()
    def _prepare(self, options: CellOptions, body: str) -> tuple[CellCode, Work | None]:
        from nbflow.notebook.analysis import analyse

        place = self.host.place
        try:
            with self._rewriter.suspended():
                source = transform(self.shell, body)
            code = compile_body(self.shell, body, source, place)
        except SyntaxError as error:
            raise messages.shown_syntax_error(self.shell, error) from error
        if options.auto and (place is None or not place.recorded):
            return code, None  # what a front end runs for itself is no part of the notebook
        if options.auto:
            self._show_in_history(source)
        tags = place.tags if place is not None else ()
        if options.auto and SKIP_TAG in tags:
            return code, None
        if RERUN_TAG in tags:
            options = replace(options, refresh=True, once=False)
        elif ONCE_TAG in tags:
            options = replace(options, once=True)
        analysis = analyse(source, self.shell.user_ns)
        if analysis.definition_only and not options.always:
            return code, None
        name = self.host.name_of(analysis, options.name, place)
        session = self.host.attach()
        from nbflow.notebook.analysis import code_digest, helper_digests
        from nbflow.runtime.session import StepSpec

        if place is not None:
            place.durable = True
        inputs = self.host.tracker.before(analysis, reads=options.inputs, writes=options.out or ())
        code_hash = code_digest(source)
        spec = StepSpec(
            step=name,
            name=name,
            kind="cell",
            signature=inputs.signature(code_hash, version=options.version, options=options.declared),
            retry=options.retry,
            timeout=options.timeout,
            version=options.version,
            check=options.check,
            detail={
                keys.CODE: code_hash.hex(),
                keys.SOURCE: body,
                keys.READS: inputs.detail(),
                keys.HELPERS: {n: d.hex() for n, d in helper_digests(analysis, self.shell.user_ns).items()},
                keys.CELL_ID: (place.cell_id if place else None) or "",
            },
        )
        return code, Work(session, spec, code, options, inputs, may_raise=options.auto and RAISES_TAG in tags)

    def _show_in_history(self, source: str) -> None:
        """Have `In[n]` be the user's cell as IPython keeps it, and not the call that made it durable."""
        inputs = self.shell.history_manager.input_hist_parsed
        if inputs and AUTO_OPTION in inputs[-1]:  # a cell that is only `exit` is not kept
            inputs[-1] = source.rstrip("\n")

    # --- replay ---------------------------------------------------------------------------------------

    @WARNED.undisturbed()
    def _replay(self, work: Work) -> bool:
        """Give the recorded cell back, if there is one that stands for this work; tell whether there was."""
        begin = time.perf_counter()
        execution = self._recorded_execution(work)
        if execution is None:
            if not self.host.config.quiet:
                self._say_if_renamed(work)
            return False
        completed = execution.completed
        assert completed is not None
        session, namespace = work.session, self.shell.user_ns
        try:
            values = session.restore(execution)
            state = session.restore_state(execution)
            display = capture.decode(session.display(execution))
        except (CannotRestore, CorruptLeaf) as error:
            error.add_note(f"Run it again with `%nbflow forget {work.spec.name}`, then this cell.")
            raise
        result = {}
        if RESULT in values:
            result["result"] = values.pop(RESULT)
        namespace.update(values)
        rebind_results(self.shell, values)
        if _EXIT_CODE in state:
            namespace[_EXIT_CODE] = state[_EXIT_CODE]
        also_called(self.shell, work.code, completed.detail.get(keys.FILE, ""), self.host.place)
        for name in completed.detail.get(keys.DELETES, ()):
            namespace.pop(name, None)
        problems = ambient.restore(state.get(_AMBIENT, {}))
        self.host.seeds.update(state.get(_SEEDS, {}))
        self.host.generators.update(name for name in state.get(_AMBIENT, {}) if name in ambient.GENERATORS)
        self.host.done_here[work.spec.step] = execution.number
        if _RESULT in state:
            result["result"] = state[_RESULT]
        elif completed.detail.get(_RESULT) in namespace:
            result["result"] = namespace[completed.detail[_RESULT]]
        capture.replay(self.shell, display, explain=not self.host.engaged, **result)
        self._remember(execution)
        if _RAISED in state:
            work.raised = raised_again(state[_RAISED])
        for problem in problems:
            messages.say(self.shell, f"{work.spec.name}: {problem}")
        if self.host.told is not None:
            self.host.told(CellReport(work.spec.step, True, completed.seconds, execution.number))
        elif not self.host.config.quiet:
            now = time.perf_counter() - begin
            at = execution.ended_at or execution.started_at
            messages.say(self.shell, messages.restored_line(work.spec.name, at, completed.seconds, now))
        return True

    def _recorded_execution(self, work: Work) -> Execution | None:
        """Return the execution to replay; None when the cell has to run, which is said with the reason."""
        options, step = work.options, work.spec.step
        if options.refresh:
            return None
        history = work.session.history
        done = [e for e in history.by_step.get(step, ()) if e.completed is not None and not e.forgotten]
        if not done:
            return None
        standing = done
        if not options.once:
            newest = work.session.find(step, work.spec.signature)
            same = [e for e in done if e.started.signature == work.spec.signature and e is not newest]
            standing = [*same, newest] if newest is not None else []
        reason = ""
        for execution in reversed(standing):
            problem = self._problem(work, execution)
            if not problem:
                return execution
            reason = reason or problem
        reason = reason or why_other(work.spec, done[-1])
        # What cannot be stored is said when the cell is done.
        if not self.host.config.quiet and reason != _UNSTORED:
            messages.say(self.shell, f"{work.spec.name} runs again: {reason}")
        return None

    def _problem(self, work: Work, execution: Execution) -> str:
        """Say why a recorded execution of this signature does not stand for the work; "" when it does."""
        completed = execution.completed
        assert completed is not None
        found = completed.detail
        if work.options.ttl is not None:
            age = work.session.clock.now() - (execution.ended_at or execution.started_at)
            if age > work.options.ttl:
                return f"the recording is {duration(age)} old, more than its --ttl"
        if work.options.once:
            return ""
        seeds = found.get(_SEEDS, {})
        for generator in found.get(_DREW, ()):
            then, now = seeds.get(generator), self.host.seeds.get(generator)
            if then is not None and now is not None and then != now:
                return "the random numbers that it draws are seeded otherwise now"
        unstored = found.get(keys.UNSTORED, ())
        here = self.host.done_here.get(work.spec.step) == execution.number
        if unstored and not (here and all(name in self.shell.user_ns for name in unstored)):
            return _UNSTORED
        aliases = {name: bytes.fromhex(was) for name, was in found.get(keys.ALIASES, {}).items()}
        if aliases:
            outputs = completed.checkpoint.outputs if completed.checkpoint else ()
            recorded = {output.name: output.fingerprint for output in outputs}
            conflicts = self.host.tracker.conflicts(aliases, recorded)
            if conflicts:
                return f"it would give {', '.join(sorted(conflicts))} back, of which there is another version now"
        return ""

    def _say_if_renamed(self, work: Work) -> None:
        history = work.session.history
        if work.spec.step in history.by_step:
            return
        from nbflow.notebook.identity import similar

        old = similar(work.spec.step, bytes.fromhex(work.spec.detail[keys.CODE]), history)
        if old is not None and old not in self.host.done_here:
            messages.say(
                self.shell,
                f"{work.spec.name} has the code of {old}, which is recorded: the cell was renamed, and "
                "results are found by name, so it runs. What is recorded of the old name stays in history.",
            )

    # --- run ------------------------------------------------------------------------------------------

    def _body(self, work: Work) -> StepResult:
        before = self._before()
        with self._recording(work):
            self._execute(work)
        return self._result(work, before)

    def _execute(self, work: Work) -> None:
        """Run the cell's own code."""
        run_code(self.shell, work.code)

    async def _body_async(self, work: Work) -> StepResult:
        before = self._before()
        with self._recording(work):
            await run_code_async(self.shell, work.code)
        return self._result(work, before)

    @contextmanager
    def _recording(self, work: Work) -> Iterator[None]:
        """Record what is shown inside the block, and keep an error that the cell may raise."""
        from nbflow.runtime.scope import Scope

        with capture.record(self.shell, self.host.config.display_limit) as recorder:
            work.recorder = recorder
            try:
                with work.session.within(Scope(work.spec.step)), self._rewriter.inside():
                    yield
            except Exception as error:
                if not work.may_raise or not is_expected(error):
                    raise
                work.raised = error
            flush_figures(self.shell)

    def _before(self) -> ambient.Snapshot:
        return ambient.snapshot(environ=self.host.config.ambient_environ)

    def _shown(self, work: Work) -> Any:
        def on_error(_error: BaseException) -> bytes:
            return work.recorder.encoded() if work.recorder is not None and work.options.display else b""

        return on_error

    @WARNED.undisturbed()
    def _result(self, work: Work, before: ambient.Snapshot) -> StepResult:
        """Collect what the cell left behind."""
        from nbflow.runtime.session import StepResult
        from nbflow.values.leaf import Digests

        assert work.recorder is not None
        after = ambient.snapshot(environ=self.host.config.ambient_environ)
        changes = ambient.changes(before, after, known=self.host.generators)
        seeded = ambient.seeds(work.code.source, before, after)
        # What it drew from a generator that it seeded itself depends on no seed of others.
        drew = [name for name in ambient.drawn(before, after) if name not in seeded]
        digests = Digests()
        result = result_of(
            self.shell, work.recorder.display(), work.inputs.fingerprints, record=self.host.results
        )
        outputs = self.host.tracker.after(
            work.inputs, writes=work.options.out, digests=digests, also=result.objects
        )
        values = {name: self.shell.user_ns[name] for name in outputs.names}
        # `with open(path) as f` leaves a closed file behind: nothing anybody could want back.
        values = {name: value for name, value in values.items() if not is_closed_file(value)}
        values |= result.values(values)
        unstored: list[str] = []
        if self._policy(work.options) == "rerun":
            values, unstored = storable(values, digests)
        found: dict[str, Any] = {
            keys.WRITES: [name for name in values if not is_private(name)],
            keys.DELETES: list(outputs.deleted),
            keys.FILE: work.code.filename,
            keys.ALIASES: {name: was.hex() for name, was in outputs.aliases.items()},
        }
        if drew:
            found[_DREW], found[_SEEDS] = drew, {g: self.host.seeds[g] for g in drew if g in self.host.seeds}
        self.host.seeds.update(seeded)
        work.generators = [name for name in changes if name in ambient.GENERATORS]
        if unstored:
            found[keys.UNSTORED] = unstored
        state: dict[str, Any] = {}
        if changes:
            state[_AMBIENT] = changes
        if seeded:
            state[_SEEDS] = seeded
        display = b""
        if work.options.display:
            display = work.recorder.encoded()
            if result.name or result.name_among(values):
                found[_RESULT] = result.name or result.name_among(values)
            elif result.plain:
                state[_RESULT] = result.value
        if work.inputs.analysis.shell and _EXIT_CODE in self.shell.user_ns:
            state[_EXIT_CODE] = self.shell.user_ns[_EXIT_CODE]
        if isinstance(work.raised, Exception):
            state[_RAISED] = raised(self.shell, work.raised)
        return StepResult(values, display=display, state=state or None, detail=found, digests=digests)

    def _policy(self, options: CellOptions) -> str:
        """Return what happens to values that cannot be stored.

        A cell that only `auto` made durable must not fail for what its author never asked for.
        """
        return options.on_cannot_store or ("rerun" if options.auto else self.host.config.on_cannot_store)

    @WARNED.undisturbed()
    def _recorded(self, work: Work, execution: Execution) -> None:
        """The step is on disk: remember what it is here, and say what was not recorded."""
        assert execution.completed is not None
        self._remember(execution)
        self.host.done_here[work.spec.step] = execution.number
        self.host.generators.update(work.generators)
        if self.host.told is not None:
            seconds = execution.completed.seconds
            self.host.told(CellReport(work.spec.step, False, seconds, execution.number))
        if self.host.config.quiet:
            return
        unstored = execution.completed.detail.get(keys.UNSTORED, ())
        if unstored:
            messages.say(
                self.shell, f"{', '.join(unstored)} cannot be stored, so this cell runs again in a new kernel"
            )
        if work.recorder is not None and work.recorder.lost and work.options.display:
            messages.say(self.shell, capture.lost_notice(work.recorder.lost, work.recorder.limit).strip())

    def _remember(self, execution: Execution) -> None:
        checkpoint = execution.completed.checkpoint if execution.completed else None
        for output in checkpoint.outputs if checkpoint else ():
            if output.name in self.shell.user_ns:
                value = self.shell.user_ns[output.name]
                self.host.tracker.versions.remember(
                    output.name, value, output.fingerprint, stable=output.stable
                )


def why_other(spec: StepSpec, execution: Execution) -> str:
    """Say what tells this work from a recorded execution of the same cell.

    A helper is a function of the notebook that the cell uses; its code is part of what the cell reads.
    """
    before, now = execution.started.detail, spec.detail
    if spec.version or execution.started.version:
        if spec.version != execution.started.version:
            return "version changed"
    elif before.get(keys.CODE) != now.get(keys.CODE):
        return "code changed"
    helpers = before.get(keys.HELPERS, {}), now.get(keys.HELPERS, {})
    edited = [n for n in sorted(helpers[1]) if n in helpers[0] and helpers[0][n] != helpers[1][n]]
    if edited:
        return f"helper {edited[0]}() changed"
    reads = before.get(keys.READS, {}), now.get(keys.READS, {})
    changed = [name for name in sorted(reads[1]) if reads[0].get(name) != reads[1][name]]
    if changed:
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        return f"reads {', '.join(changed[:3])}{more}, which changed"
    return "options changed"


def flush_figures(shell: Any) -> None:
    """Show the plots that matplotlib's inline backend keeps until the cell ends: they are the step's."""
    for callback in list(shell.events.callbacks.get("post_execute", ())):
        if getattr(callback, "__name__", "") == "flush_figures":
            callback()
