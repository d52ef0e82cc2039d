"""Reading Python source as a syntax tree, from any thread."""

from __future__ import annotations

import ast
import threading
from typing import Literal, overload

#: Until 3.13 CPython counts the depth of all trees that are being built in one place, see `syntax_tree`.
_parsing = threading.Lock()
_TRIES = 20


@overload
def syntax_tree(source: str) -> ast.Module: ...


@overload
def syntax_tree(source: str, mode: Literal["eval"]) -> ast.Expression: ...


def syntax_tree(source: str, mode: Literal["exec", "eval"] = "exec") -> ast.AST:
    """Parse source as `ast.parse` does, from any thread.

    Two threads that build syntax trees at once make CPython 3.11 and 3.12 miscount
    the depth ("AST constructor recursion depth mismatch", a `SystemError`): ours
    take turns, and one that met somebody else's tries again.

    Raises:
        SyntaxError, ValueError, RecursionError, MemoryError: as `ast.parse`.
    """
    with _parsing:
        for _ in range(_TRIES):
            try:
                return ast.parse(source, mode=mode)
            except SystemError:
                continue
        return ast.parse(source, mode=mode)
