"""Which modules are the user's own, and what their source was when it was loaded.

A module beside the notebook changes as the notebook does, so its source counts;
installed packages count by name alone: an upgrade of pandas must not run days of
work again (the versions of an attempt are recorded with it, and shown).
"""

from __future__ import annotations

import sys
import sysconfig
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from nbflow.core.signature import digest
from nbflow.values.source_digest import source_digest

#: Code of these modules is the notebook's own: no file is imported for it.
MAIN = frozenset({"__main__", "__mp_main__"})


class _Source:
    """The source digest of one module as it was loaded: a reload gives the module a new spec."""

    __slots__ = ("digest", "neighbours", "spec")

    def __init__(self, module: ModuleType) -> None:
        self.spec = module.__spec__
        path = Path(str(module.__file__))
        try:
            self.digest = source_digest(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError):
            self.digest = digest("no source")
        names = {part.__name__ if isinstance(part, ModuleType) else getattr(part, "__module__", None)
                 for part in list(vars(module).values())}  # fmt: skip
        self.neighbours = tuple(
            sorted(
                name
                for name in names
                if isinstance(name, str) and name != module.__name__ and is_first_party(name)
            )
        )


_sources: dict[str, _Source] = {}


def is_first_party(name: str) -> bool:
    """Tell whether a loaded module is Python source outside the standard library and installed packages.

    >>> is_first_party("json"), is_first_party("__main__")
    (False, False)
    """
    module = sys.modules.get(name)
    if module is None or name in MAIN or name.partition(".")[0] == "nbflow":
        return False
    file = getattr(module, "__file__", None)
    return isinstance(file, str) and _is_own_source(file)


def source_token(name: str) -> bytes:
    """Return 32 bytes for the source of a first-party module and of those it uses, b"" for any other module.

    The source is read when the module is first met and again after a reload:
    an edit that is not loaded yet is not what runs.
    """
    if not is_first_party(name):
        return b""
    met: dict[str, bytes] = {}
    todo = [name]
    while todo:
        at = todo.pop()
        module = sys.modules.get(at)
        if at in met or module is None:
            continue
        known = _sources.get(at)
        if known is None or known.spec is not module.__spec__:
            known = _sources[at] = _Source(module)
        met[at] = known.digest
        todo.extend(known.neighbours)
    return digest(*(part for at in sorted(met) for part in (at, met[at])))


def lookup(module: Any, qualname: Any) -> Any:
    """Return what `module:qualname` names among the loaded modules, None where there is nothing."""
    found: Any = sys.modules.get(module) if isinstance(module, str) else None
    if found is None or not isinstance(qualname, str):
        return None
    for name in qualname.split("."):
        found = getattr(found, name, None)
        if found is None:
            return None
    return found


@cache
def _is_own_source(file: str) -> bool:
    path = Path(file).resolve()
    if path.suffix != ".py" or {"site-packages", "dist-packages"} & set(path.parts):
        return False
    return not any(path.is_relative_to(place) for place in _installed())


@cache
def _installed() -> tuple[Path, ...]:
    names = ("stdlib", "platstdlib", "purelib", "platlib")
    return tuple({Path(place).resolve() for name in names if (place := sysconfig.get_path(name))})
