"""What a cell leaves besides its variables and its output: its result in `_` and `Out[n]`, or an error it may raise.

**Results.** The object that a cell shows last stays in `_`, `__`, `___`, `_5` and
`Out[5]`. To record each would cost as much as a variable, so it is done only
where the notebook speaks of them (`speaks_of_results`); then the result counts
as a variable called `_`: it shares the cell's envelope, so what it has in common
with variables stays common.

**Errors.** A cell tagged `raises-exception` has done its work when it raised:
later cells run. Its error is recorded with what it left behind, and a restored
cell shows the same traceback again instead of running (`raised`).
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nbflow.core.errors import CannotStore, NbflowError
from nbflow.core.model import ErrorInfo
from nbflow.notebook.ambient_sections import is_plain
from nbflow.notebook.purity import is_atom
from nbflow.notebook.tracking import is_result
from nbflow.values.failures import decode_error, encode_error

if TYPE_CHECKING:
    from nbflow.notebook.capture import Display

#: The name under which a cell's result is recorded.
RESULT = "_"

#: papermill, nbclient and JupyterLab go on behind a cell with this tag when it raises.
RAISES_TAG = "raises-exception"

#: Results that are plain data are recorded as objects up to this many bytes, whoever looks at them.
_RESULT_LIMIT = 64 * 1024

_MENTIONS = re.compile(r"(?<![\w.])(?:_{1,3}|_\d+|_oh|Out)(?!\w)")
_ALONE = re.compile(r"_{1,3}|_\d+|_oh|Out")


def mentions_results(source: str) -> bool:
    """Tell whether a cell may look at results: a quick look at its text, which finds too much."""
    return _MENTIONS.search(source) is not None


def speaks_of_results(sources: Iterable[str]) -> bool:
    """Tell whether any cell of a notebook looks at the results of earlier ones.

    >>> speaks_of_results(["df.head()", "_.sum()"]), speaks_of_results(["for _ in range(3): draw()"])
    (True, False)
    """
    from nbflow.notebook.analysis import analyse

    for source in sources:
        if not mentions_results(source):
            continue
        found = analyse(source)
        # A magic or a shell command may have it in its text: `!echo {_}`.
        if any(_ALONE.fullmatch(name) for name in found.reads) or found.magics or found.shell or found.error:
            return True
    return False


@dataclass(frozen=True)
class Result:
    """What a cell showed last: `present` if it did, the object itself, and how it is recorded.

    `name` is a variable that the cell read and that it is; `plain` says that it is
    small plain data; `whole` that it counts as a variable of the cell.
    """

    present: bool = False
    value: Any = None
    name: str = ""
    plain: bool = False
    whole: bool = False

    @property
    def objects(self) -> tuple[Any, ...]:
        """What other variables may have something in common with, for `Tracker.after`."""
        return (self.value,) if self.whole else ()

    def values(self, variables: Mapping[str, Any]) -> dict[str, Any]:
        """Return what is to be recorded beside the cell's variables."""
        return {RESULT: self.value} if self.whole and not self.name_among(variables) else {}

    def name_among(self, variables: Mapping[str, Any]) -> str:
        """Return the variable of the cell that it is; "" where it is none."""
        if not self.present:
            return ""
        return next((name for name, value in variables.items() if value is self.value and name != RESULT), "")


def result_of(shell: Any, display: Display, read: Iterable[str], *, record: bool) -> Result:
    """Return the result of the cell that has just run; with `record` it is kept whatever it is.

    `read` names the variables that the cell read.
    """
    if not any(output.kind == "result" for output in display.outputs):
        return Result()
    namespace = shell.user_ns
    value = namespace.get(RESULT)
    for name in read:
        if name != RESULT and name in namespace and namespace[name] is value:
            return Result(present=True, value=value, name=name)
    if is_atom(value) and not callable(value):
        return Result(present=True, value=value, plain=True)
    if record:
        return Result(present=True, value=value, whole=True)
    return Result(present=True, value=value, plain=is_plain(value) and len(repr(value)) <= _RESULT_LIMIT)


def rebind_results(shell: Any, values: Mapping[str, Any]) -> None:
    """Have `Out[5]`, and `_` and its like where they are that result, be the restored `_5`."""
    results = [(name, value) for name, value in values.items() if is_result(name)]
    if not results:
        return
    namespace, hook = shell.user_ns, shell.displayhook
    shown = namespace["_oh"]
    for name, value in results:
        number, missing = int(name[1:]), object()
        before = shown.get(number, missing)
        shown[number] = value
        for last in ("_", "__", "___"):
            if namespace.get(last) is before:
                # As IPython does: bound otherwise, it would count as the user's, and never change again.
                shell.push({last: value}, interactive=False)
            if getattr(hook, last, missing) is before:
                setattr(hook, last, value)


def is_expected(error: Exception) -> bool:
    """Tell whether a cell that may raise is finished with this error: the user's own, raised by what ran."""
    from IPython.core.error import UsageError

    # nbflow's own errors say that something was not done; IPython shows the other two in its own way.
    return not isinstance(error, (NbflowError, SyntaxError, UsageError)) and hasattr(error, "__dict__")


def raised(shell: Any, error: Exception) -> dict[str, Any]:
    """Return the record of an error, as plain data, and have it shown just so."""
    from nbflow.notebook import messages

    messages.only_user_frames(shell, error)
    lines = list(error._render_traceback_())  # type: ignore[attr-defined]
    error._render_traceback_ = lambda: lines  # type: ignore[attr-defined]
    info = encode_error(error)
    return {
        "name": type(error).__name__,
        "text": _text(error),
        "lines": lines,
        "info": [info.type, info.message, info.traceback, info.pickled],
    }


def raised_again(record: dict[str, Any]) -> BaseException:
    """Return the error that `raised` recorded, to be raised and shown as it was, without the cell running."""
    name, text, lines = record["name"], record["text"], list(record["lines"])
    error = decode_error(ErrorInfo(*record["info"]))
    if type(error).__name__ != name or _text(error) != text:  # it does not pickle, or its class is gone
        error = type(name, (Exception,), {"__str__": lambda _self: text})()
    error._render_traceback_ = lambda: lines  # type: ignore[attr-defined]
    return error


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # noqa: BLE001 - its own code; IPython's message has no text then either
        return ""


def is_closed_file(value: Any) -> bool:
    """Tell whether the value is a file that was closed."""
    return isinstance(value, io.IOBase) and not isinstance(value, (io.BytesIO, io.StringIO)) and value.closed


def storable(values: dict[str, Any], digests: Any) -> tuple[dict[str, Any], list[str]]:
    """Leave out the variables that cannot be stored; return the others and the names left out."""
    from nbflow.values.codec import encode

    kept, unstored = dict(values), []
    while kept:
        try:
            encode(kept, digests=digests)
        except CannotStore as error:
            if error.variable not in kept:
                raise
            del kept[error.variable]
            unstored.append(error.variable)
        else:
            break
    return kept, unstored
