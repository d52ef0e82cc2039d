"""Collect what code displays instead of showing it: what a `%%gate` cell's body shows is judged with the question.

In order: printed text, `display`, results of expressions, plots of the inline
backend. Where the object itself is known (a frame, say) it is kept, since more
can be made of it than of its HTML.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from nbflow.core.loaded import loaded
from nbflow.notebook.capture import Display, Output, Recorder, replay

_TITLE = re.compile(r"^#{1,6}\s+(.+?)\s*#*\s*$", re.MULTILINE)


class Bundle:
    """Something that was displayed, as its formats show it."""

    def __init__(self, data: dict[str, Any], metadata: dict[str, Any]) -> None:
        self.data, self.metadata = data, metadata

    def __repr__(self) -> str:
        return str(self.data.get("text/plain", "<output>"))

    def _repr_mimebundle_(self, **_kinds: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        return self.data, self.metadata


class Collected:
    """What was displayed, in order."""

    def __init__(self) -> None:
        self.recorder = Recorder(limit=sys.maxsize)
        self._known: dict[int, tuple[dict[str, Any], Any]] = {}

    def display(self) -> Display:
        """Return it as a cell would have shown it."""
        return self.recorder.display()

    def objects(self) -> list[Any]:
        """Return it as objects to record with a gate: texts, frames where they are known, formats of all else."""
        return [self._object(output) for output in self.display().outputs]

    def title(self) -> str:
        """Return the heading of the first Markdown that was displayed; "" where there is none."""
        for output in self.display().outputs:
            found = _TITLE.search(str(output.data.get("text/markdown", "")))
            if found is not None:
                return found[1]
        return ""

    def known(self, data: dict[str, Any], value: Any) -> None:
        """Remember of which object these are the formats."""
        self._known[id(data)] = (data, value)

    def _object(self, output: Output) -> Any:
        if output.kind == "stream":
            return output.text
        data, value = self._known.get(id(output.data), (None, None))
        if data is not output.data:
            return Bundle(output.data, output.metadata)
        if _says_more(value):
            return value
        # The name stands in what is said of it: "A Chart is drawn by a script".
        return type(type(value).__name__, (Bundle,), {})(output.data, output.metadata)


#: Objects of which more can be made than of their formats: tables that can be read as text, figures with their titles.
_BETTER = (
    ("pandas", "DataFrame"),
    ("pandas", "Series"),
    ("polars", "DataFrame"),
    ("pyarrow", "Table"),
    ("matplotlib.figure", "Figure"),
)


def _says_more(value: Any) -> bool:
    kinds = (getattr(loaded(module), name, None) for module, name in _BETTER)
    return isinstance(value, tuple(kind for kind in kinds if kind is not None))


@contextmanager
def collecting(shell: Any, flush: Callable[[Any], None]) -> Iterator[Collected]:
    """Collect what the block displays; `flush(shell)` has the inline backend show its plots.

    Where the block fails, what it had displayed is shown after all: it may tell why.
    """
    found = Collected()
    try:
        with _instead(shell, found):
            yield found
            flush(shell)
    except BaseException:
        replay(shell, found.display(), explain=False)
        raise


@contextmanager
def _instead(shell: Any, found: Collected) -> Iterator[None]:
    with ExitStack() as undo:
        for name in ("stdout", "stderr"):
            _swap(undo, sys, name, _Stream(name, found.recorder, getattr(sys, name)))
        _swap(undo, shell, "display_pub", _Publisher(found.recorder, shell.display_pub))
        _swap(undo, sys, "displayhook", _Hook(shell, found))
        formatter = shell.display_formatter
        original = formatter.format

        def formats(value: Any, *args: Any, **kwargs: Any) -> Any:
            made = original(value, *args, **kwargs)
            found.known(made[0], value)
            return made

        formatter.format = formats
        undo.callback(lambda: formatter.__dict__.pop("format", None))
        yield


def _swap(undo: ExitStack, place: Any, name: str, stand_in: Any) -> None:
    before = getattr(place, name)
    setattr(place, name, stand_in)
    undo.callback(setattr, place, name, before)


class _Stream:
    """Takes the place of stdout or stderr; all but the text is the stream's own."""

    def __init__(self, name: str, recorder: Recorder, stream: Any) -> None:
        self._name, self._recorder, self._stream = name, recorder, stream

    def write(self, text: str) -> int:
        self._recorder.stream(self._name, text)
        return len(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Nothing waits here."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class _Publisher:
    """Takes the place of the display publisher."""

    def __init__(self, recorder: Recorder, publisher: Any) -> None:
        self._recorder, self._publisher = recorder, publisher

    def publish(self, data: Any, metadata: Any = None, **kwargs: Any) -> None:
        transient = kwargs.get("transient") or {}
        kind = "update" if kwargs.get("update") else "display"
        self._recorder.bundle(kind, data, dict(metadata or {}), transient.get("display_id"))

    def clear_output(self, wait: bool = False) -> None:  # noqa: FBT002 - IPython's own signature
        self._recorder.clear(wait)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._publisher, name)


class _Hook:
    """Takes the place of the display hook, which shows the value of a cell's last expression."""

    def __init__(self, shell: Any, found: Collected) -> None:
        self._shell, self._found = shell, found

    def __call__(self, value: Any = None) -> None:
        if value is None:
            return
        data, metadata = self._shell.display_formatter.format(value)
        if data:
            self._found.recorder.bundle("result", data, dict(metadata or {}), None)
