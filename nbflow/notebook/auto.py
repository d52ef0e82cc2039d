"""Two rewritings of a cell's text before IPython reads it.

* A `%%durable` cell with a top-level `await` becomes an `await` itself: a cell
  magic is an ordinary call, and the event loop is already running.
* With `%nbflow auto on` every cell becomes a durable one, except those that
  speak to nbflow or configure IPython.

Both are pure functions of the text: IPython transforms a cell several times
(to run it, to see whether it is complete, to see whether it awaits).
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

#: The attribute of the shell that a rewritten cell awaits.
ENTRY = "nbflow_await_cell"
#: The option that marks a cell as made durable by `%nbflow auto`.
AUTO_OPTION = "--auto-cell"

_DURABLE = re.compile(r"^%%durable(?=\s|$)")
_OWN_BUSINESS = re.compile(
    r"^\s*%(?:nbflow|load_ext|unload_ext|reload_ext|autoreload|config|autoawait|reset|debug|tb)\b|^%%(?:durable|gate)\b",
    re.MULTILINE,
)


def takes(body: str) -> bool:
    """Tell whether `%nbflow auto` makes this cell durable.

    Not one that speaks to nbflow, configures IPython, asks for help or only comments.

    >>> takes("x = load()"), takes("%nbflow status"), takes("load?"), takes("# later")
    (True, False, False, False)
    """
    if _OWN_BUSINESS.search(body) or body.rstrip().endswith("?"):
        return False
    return any(line.strip() and not line.lstrip().startswith("#") for line in body.splitlines())


class CellRewriter:
    """The cleanup transform. `auto` switches the second rewriting on, except `inside()`; `suspended()` is neither."""

    def __init__(self, shell: Any, auto: Callable[[], bool]) -> None:
        self._shell = shell
        self._auto = auto
        self._suspended = 0
        self._inside = 0

    def install(self) -> None:
        """Stand just before IPython's cell magic transform, behind those that strip prompts and indents."""
        transforms = self._shell.input_transformer_manager.cleanup_transforms
        if self.rewrite in transforms:
            return
        names = [getattr(transform, "__name__", "") for transform in transforms]
        transforms.insert(
            names.index("cell_magic") if "cell_magic" in names else len(transforms), self.rewrite
        )

    def remove(self) -> None:
        """Take the transform out again."""
        transforms = self._shell.input_transformer_manager.cleanup_transforms
        while self.rewrite in transforms:
            transforms.remove(self.rewrite)

    @contextmanager
    def suspended(self) -> Iterator[None]:
        """Leave cells alone inside the block: the body of a durable cell is transformed as it stands."""
        self._suspended += 1
        try:
            yield
        finally:
            self._suspended -= 1

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Make nothing durable that a durable cell transforms while it runs, as `%%time` does with its body."""
        self._inside += 1
        try:
            yield
        finally:
            self._inside -= 1

    def rewrite(self, lines: list[str]) -> list[str]:
        """Return the cell's lines, rewritten where this is its business."""
        if self._suspended or not lines:
            return lines
        if _DURABLE.match(lines[0]):
            line, body = lines[0][len("%%durable") :].strip(), "".join(lines[1:])
            return [_await_call(line, body)] if body.strip() and self._awaits(body) else lines
        body = "".join(lines)
        if self._inside or not self._auto() or not takes(body):
            return lines
        if self._awaits(body):
            return [_await_call(AUTO_OPTION, body)]
        return [f"get_ipython().run_cell_magic('durable', {AUTO_OPTION!r}, {body!r})\n"]

    def _awaits(self, body: str) -> bool:
        if "await" not in body and "async" not in body:
            return False
        try:
            with self.suspended():
                source = self._shell.input_transformer_manager.transform_cell(body)
            code = compile(source, "<cell>", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
        except (SyntaxError, ValueError):  # reported, with its line, when the cell runs
            return False
        return bool(code.co_flags & inspect.CO_COROUTINE)


def _await_call(line: str, body: str) -> str:
    return f"await get_ipython().{ENTRY}({line!r}, {body!r})\n"
