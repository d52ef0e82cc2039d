"""Compile the body of a durable cell as IPython compiles a cell, and run it so that exceptions escape.

`shell.run_cell` would be shorter, but it prints the traceback and returns ok,
so later cells would run. Here the exception leaves the magic: one traceback,
with the line numbers of the user's own cell, and *Run All* stops.
"""

from __future__ import annotations

import ast
import inspect
import linecache
import re
from dataclasses import dataclass
from types import CodeType
from typing import Any

_BLANK_LINES = re.compile(r"(?:[ \t]*\r?\n)*")


@dataclass
class CellPlace:
    """Which cell is being executed: what the user typed, its number, and what the front end says of it.

    `recorded` is False for what a front end or a library runs beside the user's
    cells (it is not in the history); `durable` is set once a step runs in it.
    """

    raw: str
    number: int
    cell_id: str | None = None
    metadata: dict[str, Any] | None = None
    recorded: bool = True
    durable: bool = False

    @property
    def tags(self) -> tuple[str, ...]:
        """The cell's tags, as far as the front end sends them: JupyterLab and the papermill engine do."""
        found = (self.metadata or {}).get("tags")
        return tuple(tag for tag in found if isinstance(tag, str)) if isinstance(found, (list, tuple)) else ()


@dataclass(frozen=True)
class CellCode:
    """A compiled body: `source` is its Python; `parts` run in order, each with whether it must be awaited."""

    source: str
    filename: str
    parts: tuple[tuple[CodeType, bool], ...]

    @property
    def awaits(self) -> bool:
        """Whether the body has a top-level await."""
        return any(is_async for _, is_async in self.parts)


def transform(shell: Any, body: str) -> str:
    """Turn a body with magics and shell escapes into Python.

    Raises:
        SyntaxError: IPython's own, for input it cannot read.
    """
    source: str = shell.transform_cell(body)
    return source


def compile_body(shell: Any, body: str, source: str, place: CellPlace | None) -> CellCode:
    """Compile the transformed `source` of `body` under the name and line numbers of the cell it stands in.

    Raises:
        SyntaxError: with the line number of the user's cell.
    """
    compiler = shell.compile
    if place is None:
        filename, before = compiler.cache(source, shell.execution_count, raw_code=body), 0
    else:
        before = _lines_before(place.raw, body)
        # The first lines become comments: linecache must hold Python, or tracebacks lose their highlighting.
        head = [f"# {line}" for line in place.raw.splitlines()[:before]]
        text = "\n".join(head) + "\n" + source if head else source
        filename = compiler.cache(text, place.number, raw_code=place.raw)
    tree = compiler.ast_parse("\n" * before + source, filename=filename)
    tree = shell.transform_ast(tree)
    quiet = shell.displayhook.semicolon_at_end_of_expression(source)
    parts = []
    for node, mode in _modes(list(tree.body), "none" if quiet else shell.ast_node_interactivity):
        module: ast.mod = ast.Interactive([node]) if mode == "single" else ast.Module([node], [])
        with compiler.extra_flags(ast.PyCF_ALLOW_TOP_LEVEL_AWAIT if shell.autoawait else 0):
            code = compiler(module, filename, mode)
        parts.append((code, bool(code.co_flags & inspect.CO_COROUTINE)))
    return CellCode(source, filename, tuple(parts))


def run_code(shell: Any, code: CellCode) -> None:
    """Run a compiled body in the user's namespace."""
    for part, _ in code.parts:
        exec(part, shell.user_global_ns, shell.user_ns)  # noqa: S102 - running the user's cell is the purpose


async def run_code_async(shell: Any, code: CellCode) -> None:
    """Run a compiled body whose parts may await."""
    for part, is_async in code.parts:
        if is_async:
            await eval(part, shell.user_global_ns, shell.user_ns)  # noqa: S307 - the user's cell
        else:
            exec(part, shell.user_global_ns, shell.user_ns)  # noqa: S102


def also_called(shell: Any, code: CellCode, other: str, place: CellPlace | None) -> None:
    """Have functions that were compiled in another process show their lines in tracebacks and warnings.

    IPython names the file of a cell after the process.
    """
    if other == code.filename or other in linecache.cache or code.filename not in linecache.cache:
        return
    linecache.cache[other] = linecache.cache[code.filename]
    names = getattr(shell.compile, "_filename_map", None)
    if isinstance(names, dict) and place is not None:
        names[other] = names.get(code.filename, place.number)


def _lines_before(raw: str, body: str) -> int:
    """Count the lines of the raw cell that stand before the first line of the body that is not blank."""
    blank = _BLANK_LINES.match(body)
    skipped = blank.end() if blank else 0
    at = raw.rfind(body.rstrip("\n")) if body.strip() else -1
    if at < 0:  # a magic around this one changed the text: at least its own line is above
        return 1 + body.count("\n", 0, skipped)
    return raw.count("\n", 0, at + skipped)


def _modes(nodes: list[ast.stmt], interactivity: str) -> list[tuple[ast.stmt, str]]:
    """Say for each statement whether its value is shown, by IPython's `ast_node_interactivity`."""
    if not nodes:
        return []
    if interactivity == "last_expr_or_assign":
        shown = _assigned_name(nodes[-1])
        if shown is not None:
            nodes.append(shown)
        interactivity = "last_expr"
    if interactivity == "last_expr":
        interactivity = "last" if isinstance(nodes[-1], ast.Expr) else "none"
    first_shown = {"all": 0, "last": len(nodes) - 1}.get(interactivity, len(nodes))
    return [(node, "single" if index >= first_shown else "exec") for index, node in enumerate(nodes)]


def _assigned_name(node: ast.stmt) -> ast.Expr | None:
    target: ast.expr | None = None
    if isinstance(node, ast.Assign) and len(node.targets) == 1:
        target = node.targets[0]
    elif isinstance(node, (ast.AugAssign, ast.AnnAssign)):
        target = node.target
    if not isinstance(target, ast.Name):
        return None
    return ast.fix_missing_locations(ast.copy_location(ast.Expr(ast.Name(target.id, ast.Load())), node))
