"""Which warnings were shown already and are not shown again: ambient state of its own kind.

Python notes a warning that it showed in the `__warningregistry__` of the module
that it blames, together with the version of the filters; when the filters have
changed since (`warnings.catch_warnings` is enough) the notes are void. A
restored cell shows its warnings from the record, so the notes have to be put
back as well: else a later cell would show what the undisturbed run had shown
already. And what nbflow does between two cells must not void them.

The notes of `__main__` are not among them: IPython drops those before each cell.

Looking costs 3 µs, for it is enough to know whether the filters' version moved;
only after a warning that was shown are all modules gone through (0.2 ms).
"""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from nbflow.core.loaded import loaded

_VERSION = "version"
_REGISTRY = "__warningregistry__"

#: Notes by module: text, category as `module:qualified name`, line (0: any).
Notes = dict[str, list[list[Any]]]


class _Probe(Warning):
    """Never shown: it is issued to read the filters' version, which Python tells in no other way."""


class Warned:
    """What is known of the notes in this process. There is one, `WARNED`."""

    def __init__(self) -> None:
        self._notes: Notes = {}
        self._version: int | None = None
        self._shown = True  # before we listened
        self._waiting = False  # for a module that is not imported yet
        self._original: Any = None

    def install(self) -> None:
        """Listen for warnings that are shown."""
        if self._original is None:
            self._original = warnings._showwarnmsg  # type: ignore[attr-defined]  # noqa: SLF001 - what C code calls
            warnings._showwarnmsg = self._show  # type: ignore[attr-defined]  # noqa: SLF001

    def remove(self) -> None:
        """Listen no more."""
        if self._original is not None:
            warnings._showwarnmsg = self._original  # type: ignore[attr-defined]  # noqa: SLF001
            self._original, self._shown = None, True

    def _show(self, message: Any) -> None:
        if message.category is not _Probe:
            self._shown = True
            self._original(message)

    def look(self) -> Notes:
        """Return the notes that hold now. Not to be changed."""
        if self._original is None:
            return {}
        version = _filters_version()
        if self._shown:
            self._shown = False
            self._notes = _holding(version)
        elif version != self._version:
            self._notes = {}
        self._version = version
        return self._notes

    def restore(self, notes: Notes) -> None:
        """Have exactly these notes hold."""
        self.look()
        for name in self._notes.keys() - notes.keys():
            registry = _registry(name)
            if registry is not None:
                registry.clear()
        self._notes = notes
        self._write()

    @contextmanager
    def undisturbed(self) -> Iterator[None]:
        """Keep the notes as they are, whatever nbflow and the libraries it asks do inside the block."""
        self.look()
        try:
            yield
        finally:
            if self._original is not None and (self._waiting or _filters_version() != self._version):
                self._write()

    def _write(self) -> None:
        self._version, self._waiting = _filters_version(), False
        for name, notes in self._notes.items():
            registry = _registry(name)
            if registry is None:
                self._waiting = True
                continue
            registry.clear()
            registry[_VERSION] = self._version
            for text, category, line in notes:
                found = _category(category)
                if found is not None:
                    registry[text, found, line] = True


#: What was warned about in this process.
WARNED = Warned()


def _filters_version() -> int | None:
    registry: dict[Any, Any] = {}
    show = warnings._showwarnmsg  # type: ignore[attr-defined]  # noqa: SLF001
    owned = getattr(show, "__self__", None) is WARNED
    if not owned:  # somebody stands in front of us: they must not see the probe
        warnings._showwarnmsg = WARNED._show  # type: ignore[attr-defined]  # noqa: SLF001
    try:
        warnings.warn_explicit("", _Probe, "nbflow", 0, module="nbflow", registry=registry)
    except _Probe:  # where all warnings are errors
        pass
    finally:
        if not owned:
            warnings._showwarnmsg = show  # type: ignore[attr-defined]  # noqa: SLF001
    found: int | None = registry.get(_VERSION)
    return found


def _holding(version: int | None) -> Notes:
    found: Notes = {}
    for name, module in list(sys.modules.items()):
        registry = getattr(module, "__dict__", {}).get(_REGISTRY)
        if not isinstance(registry, dict) or registry.get(_VERSION) != version or name == "__main__":
            continue
        notes = [
            [str(key[0]), f"{key[1].__module__}:{key[1].__qualname__}", key[2]]
            for key in registry
            if isinstance(key, tuple) and len(key) == 3 and isinstance(key[1], type)
        ]
        if notes:
            found[name] = notes
    return found


def _registry(module: str) -> dict[Any, Any] | None:
    found = loaded(module)
    return None if found is None else vars(found).setdefault(_REGISTRY, {})


def _category(name: str) -> Any:
    """Return the class of a warning; None where it is not there any more: then nobody can issue it."""
    module, _, qualname = name.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for part in qualname.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError):
        return None
    return found
