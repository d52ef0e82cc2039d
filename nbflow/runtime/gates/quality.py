"""`nbflow.quality_gate`: a condition decides instead of a person, and its figures are on record.

A step of kind "gate" like any other, decided by "quality" as it opens. Its
signature holds figures and condition, so other figures are decided anew, and a
resume finds the decision about the same ones.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from datetime import timedelta
from typing import Any

from nbflow.core.errors import UsageError
from nbflow.core.gates import DECIDED, QUALITY, Decision, OnTimeout, plain_of
from nbflow.core.model import StepCompleted
from nbflow.core.signature import digest
from nbflow.runtime.gates.asking import (
    RESULT,
    Asking,
    OnReject,
    Question,
    answered,
    answered_async,
    check_on_reject,
)
from nbflow.runtime.gates.exhibits import Ready
from nbflow.runtime.gates.predicates import Predicate
from nbflow.runtime.gates.tables import cell, clean, kinds_of
from nbflow.runtime.trying import checkpoint
from nbflow.runtime.verbs import verb
from nbflow.values.code_digest import function_identity
from nbflow.values.fingerprint import fingerprint

#: The name of the figure where a single number is given.
VALUE = "value"


class _Check:
    """Figures and what is asked of them."""

    def __init__(self, name: str, figures: Any, predicate: str | Callable[[Any], object]) -> None:
        self.given = figures
        self.figures = figures_of(name, figures)
        self.condition = Predicate(predicate) if isinstance(predicate, str) else None
        if self.condition is None and not callable(predicate):
            raise UsageError(
                f"The condition of gate {name!r} is a text or a function of the figures, not {predicate!r}."
            )
        self._predicate = predicate
        self.text = self.condition.text if self.condition is not None else _named(predicate)
        self.work = digest("quality", fingerprint(self.figures).digest, self._code())

    def _code(self) -> bytes:
        function = self._predicate
        if self.condition is not None:
            return self.condition.text.encode()
        plain = inspect.unwrap(function)  # type: ignore[arg-type]  # it is callable
        return function_identity(plain)[0] if inspect.isfunction(plain) else fingerprint(plain).digest

    def holds(self) -> bool:
        """Tell whether the figures pass."""
        if self.condition is not None:
            return self.condition.holds(self.figures)
        assert callable(self._predicate)
        return bool(self._predicate(self.given))

    def said(self) -> str:
        """Return condition and figures in a sentence's part."""
        names = self.condition.names if self.condition is not None else tuple(self.figures)
        # A figure that is not there is an error once the condition is asked; until then it is not our business.
        found = ", ".join(f"{name} = {cell(self.figures.get(name)) or 'NaN'}" for name in names)
        return f"{self.text} ({found})" if found else self.text

    def facts(self, holds: bool) -> dict[str, Any]:
        """Return what is recorded beside the form."""
        return {QUALITY: {"predicate": self.text, "figures": _plain(self.figures), "holds": holds}}

    def exhibit(self) -> Ready:
        """Return the figures as a table."""
        rows = [[clean(name), cell(value)] for name, value in self.figures.items()]
        columns = [{"name": "figure", "type": "name"}, {"name": "value", "type": "value"}]
        table = {"kind": "table", "columns": columns, "rows": rows, "total": len(rows), "offset": 0}
        return Ready({**table, "title": clean(self.text)})


def figures_of(name: str, given: Any) -> dict[str, Any]:
    """Return figures by name: of a mapping, a number, a series, or a frame of one row.

    Raises:
        UsageError: they are none of these.

    >>> figures_of("g", 0.5), figures_of("g", {"auc": 0.93})
    ({'value': 0.5}, {'auc': 0.93})
    """
    kinds = kinds_of(given)
    row: Any = given
    if ("pandas", "Series") in kinds:
        row = given.to_dict()
    elif ("pandas", "DataFrame") in kinds and len(given) == 1:
        row = given.iloc[0].to_dict()
    elif ("polars", "DataFrame") in kinds and given.height == 1:
        row = given.row(0, named=True)
    elif ("pyarrow", "Table") in kinds and given.num_rows == 1:
        row = given.to_pylist()[0]
    elif _is_number(given):
        row = {VALUE: given}
    if not isinstance(row, Mapping):
        raise UsageError(
            f"The figures of gate {name!r} are a mapping, a number or a frame of one row, not {_kind(given)}."
        )
    return {str(key): _scalar(value) for key, value in row.items()}


def _kind(given: Any) -> str:
    shape = getattr(given, "shape", None)
    return f"a {type(given).__qualname__}{f' of shape {shape}' if shape else ''}"


def _is_number(value: Any) -> bool:
    return isinstance(value, (bool, int, float)) or (
        getattr(value, "ndim", None) == 0 and hasattr(value, "item")
    )


def _scalar(value: Any) -> Any:
    return value.item() if not isinstance(value, (bool, int, float)) and _is_number(value) else value


def _plain(figures: Mapping[str, Any]) -> dict[str, Any]:
    """Return figures as a record can hold them: what is no number, text or truth value as its text."""
    found: dict[str, Any] = {}
    for name, value in figures.items():
        small = isinstance(value, int) and -(2**63) <= value < 2**63
        keeps = value is None or isinstance(value, (bool, float)) or small
        found[clean(name)] = value if keeps else cell(value)
    return found


def _named(function: Any) -> str:
    """Return what a function is called; of a lambda the line that defines it."""
    name = str(getattr(function, "__qualname__", type(function).__qualname__)).replace("<locals>.", "")
    if not name.endswith("<lambda>"):
        return name
    try:
        lines = inspect.getsource(function).strip().splitlines()
    except (OSError, TypeError):
        return name
    return clean(lines[0][:200]) if len(lines) == 1 else name


class _QualityAsking(Asking):
    """A visit to a gate that a condition decides, or a person (who is asked `instead`) where it does not hold."""

    def __init__(
        self, check: _Check, question: Question, instead: Question | None, show: object, *, wait: bool
    ) -> None:
        listed = [] if show is None else list(show) if isinstance(show, (list, tuple)) else [show]
        super().__init__(question, [check.exhibit(), *listed], wait=wait)
        self.check = check
        self._instead = instead

    def ask(self) -> Decision:
        """Decide, or ask."""
        self._decide()
        return super().ask()

    async def ask_async(self) -> Decision:
        """Decide, or ask without blocking the event loop."""
        self._decide()
        return await super().ask_async()

    def _decide(self) -> None:
        """Decide if the condition may, in one append with the opening."""
        with self.wait as wait:
            if wait.over() is not None or not self.first:
                return  # decided already, or a person was asked
            holds = self.check.holds()
            facts = self.check.facts(holds)
            if not holds and self._instead is not None:
                self.question = replace(self._instead, facts=facts)
                return
            self.question = replace(self.question, facts=facts)
            said = self.check.said()
            decision = Decision(
                approved=holds,
                by=QUALITY,
                at=self.session.clock.now(),
                feedback=said if holds else f"not {said}",
                via=QUALITY,
            )
            plain = plain_of(decision)
            _, detail, along = self.opening()
            done = StepCompleted(
                execution=-1 - len(along),
                step=wait.spec.step,
                checkpoint=checkpoint(self.session, {RESULT: plain}),
                detail={DECIDED: plain},
            )
            wait.open(None, detail=detail, along=(*along, done))


def _asking(  # noqa: PLR0913, PLR0917 - the arguments of the verb, in its order
    name: str,
    figures: Any,
    predicate: str | Callable[[Any], object],
    text: str,
    options: Iterable[str],
    show: object,
    timeout: float | str | timedelta | None,
    on_timeout: OnTimeout,
    wait: bool,
    single: bool,
    on_reject: OnReject,
    or_ask: bool,
) -> _QualityAsking:
    check = _Check(name, figures, predicate)
    question = Question(name, text or check.text, work=check.work)
    # Checked also where nobody will be asked: a typing mistake shows on the first day, and not on the first bad one.
    asks = f"{text or 'Go on all the same?'} It is not so that {check.said()}."
    instead = Question(name, asks, options, single, timeout, on_timeout, work=check.work)
    check_on_reject(name, on_reject)
    return _QualityAsking(check, question, instead if or_ask else None, show, wait=wait)


async def _quality_gate_aio(  # noqa: PLR0913
    name: str,
    figures: Any,
    predicate: str | Callable[[Any], object],
    text: str = "",
    *,
    or_ask: bool = False,
    options: Iterable[str] = (),
    show: object = (),
    timeout: float | str | timedelta | None = None,
    on_timeout: OnTimeout = "fail",
    wait: bool = False,
    single: bool = False,
    on_reject: OnReject = "raise",
) -> Any:
    asking = _asking(
        name,
        figures,
        predicate,
        text,
        options,
        show,
        timeout,
        on_timeout,
        wait,
        single,
        on_reject,
        or_ask,
    )
    return await answered_async(asking, await asking.ask_async(), on_reject)


@verb(_quality_gate_aio)
def quality_gate(  # noqa: PLR0913 - a gate's options, and what decides; all but four by name
    name: str,
    figures: Any,
    predicate: str | Callable[[Any], object],
    text: str = "",
    *,
    or_ask: bool = False,
    options: Iterable[str] = (),
    show: object = (),
    timeout: float | str | timedelta | None = None,
    on_timeout: OnTimeout = "fail",
    wait: bool = False,
    single: bool = False,
    on_reject: OnReject = "raise",
) -> Any:
    """Go on if figures are good enough, and record figures, condition and outcome; in async code `.aio(...)`.

    Other figures, or another condition, are decided anew; a resume finds the
    decision about the same ones. With `or_ask` figures that are not good enough
    open a gate, and a person decides.

    Args:
        name: what the gate is called.
        figures: a mapping of names to numbers, a number (called `value`), or a frame of one row.
        predicate: a text such as `"auc > 0.9 and rows >= 1000"` (comparisons, arithmetic, `and`,
            `or`, `not`, `in`, and abs, len, max, min, round; a figure that is NaN never
            passes), or a function that is called with the figures as you gave them.
        text: what it is about, in a sentence.
        or_ask: ask a person where the condition does not hold. The arguments below are then
            those of `nbflow.gate`.
        options: what may be selected with the decision.
        show: what to look at beside the figures.
        timeout: how long a person has.
        on_timeout: what becomes of it when nobody decides in time.
        wait: wait in place for the person.
        single: an approval selects exactly one of the options.
        on_reject: what becomes of a rejection, by the figures or by a person: "raise", "return" or a function.

    Raises:
        GateRejected: the figures are not good enough, or the person said no. Where the enclosing
            function has retries, figures that are not good enough are worth another try.
        GatePending, GateTimedOut: as `nbflow.gate`, with `or_ask`.
        UsageError: the condition cannot be read, or speaks of a figure that is not there.
        NoActiveRun: outside any run.

    Example:
        >>> import nbflow
        >>> with nbflow.run("training"):
        ...     nbflow.quality_gate("model", {"auc": 0.93, "rows": 1200}, "auc > 0.9 and rows >= 1000").feedback
        'auc > 0.9 and rows >= 1000 (auc = 0.93, rows = 1200)'
    """
    asking = _asking(
        name,
        figures,
        predicate,
        text,
        options,
        show,
        timeout,
        on_timeout,
        wait,
        single,
        on_reject,
        or_ask,
    )
    return answered(asking, asking.ask(), on_reject)
