"""The digest of source text that formatting does not change: what a cell's code is."""

from __future__ import annotations

import ast
import io
import tokenize
from functools import lru_cache
from typing import Any

from nbflow.core.signature import digest
from nbflow.core.syntax import syntax_tree

#: Fields that say nothing of what runs: u"" is "", and a context follows from the place.
_SILENT = frozenset({"type_comment", "kind", "ctx"})


@lru_cache(maxsize=1024)
def source_digest(source: str) -> bytes:
    """Return the digest (32 bytes) of Python source without comments, blank lines, formatting and docstrings.

    Names, constants and top-level `await` count. A closing semicolon counts as
    well, because it hides a cell's last value. What does not parse (magics that
    nobody transformed, say) is taken as text, line by line without trailing blanks.

    >>> source_digest("x = (1)  # one") == source_digest("x=1")
    True
    >>> source_digest("x = 1") == source_digest("x = 1.0")
    False
    """
    try:
        tree = syntax_tree(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        lines = [line.rstrip() for line in source.strip().splitlines()]
        return digest("text", "\n".join(lines))
    quiet = "quiet" if source.rstrip().endswith(";") or _ends_quietly(source) else ""
    try:
        return digest("code", quiet, _written(tree))
    except RecursionError:
        return digest("text", source.strip())


def _ends_quietly(source: str) -> bool:
    """Tell whether the last token that is no comment is a semicolon."""
    if ";" not in source:
        return False
    last = ""
    try:
        for token in tokenize.generate_tokens(io.StringIO(source).readline):
            if token.type in (tokenize.OP, tokenize.NAME, tokenize.NUMBER, tokenize.STRING):
                last = token.string
    except (tokenize.TokenError, IndentationError):
        return False
    return last == ";"


def _written(node: Any) -> str:
    """Write a tree down with its fields' names; fields that are empty are left out, as Pythons differ in them."""
    if isinstance(node, ast.AST):
        fields = []
        for name, part in ast.iter_fields(node):
            empty = part is None or part == []
            if name in _SILENT or (empty and not isinstance(node, ast.Constant)):
                continue
            if name == "body" and isinstance(
                node, ast.Module | ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
            ):
                fields.append(f"body={_written(_without_docstring(node))}")
            else:
                fields.append(f"{name}={_written(part)}")
        return f"{type(node).__name__}({','.join(fields)})"
    if isinstance(node, list):
        return f"[{','.join(map(_written, node))}]"
    if type(node) is int:
        return f"int:{node:x}"  # decimal text of a long one is refused
    return f"{type(node).__name__}:{node!r}"


def _without_docstring(
    node: ast.Module | ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef,
) -> list[ast.stmt]:
    first = node.body[0] if node.body else None
    if not (
        isinstance(first, ast.Expr)
        and isinstance(first.value, ast.Constant)
        and isinstance(first.value.value, str)
    ):
        return node.body
    if len(node.body) > 1:
        return node.body[1:]
    # A cell that is nothing but a string shows it; a function or class that is, does nothing.
    return node.body if isinstance(node, ast.Module) else [ast.Pass()]
