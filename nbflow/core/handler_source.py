"""The syntax tree of one function, found through `linecache`: files, notebook cells and `exec` with an entry there."""

from __future__ import annotations

import ast
import linecache
import re
from collections.abc import Iterator
from types import CodeType, FunctionType
from weakref import WeakKeyDictionary

from nbflow.core.syntax import syntax_tree

FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef

#: How many ends of the function are tried, see `_blocks`.
_TRIES = 40
_DEF = re.compile(r"\s*(async\s+)?def\b")
#: By code object: the functions of one factory have one tree. Equal code of another file means the same.
_trees: WeakKeyDictionary[CodeType, FunctionNode | None] = WeakKeyDictionary()


def function_node(function: FunctionType) -> FunctionNode | None:
    """Return the syntax tree of a function that `def` made, or None where its source is not at hand (or a lambda's).

    Only the function's own lines are parsed: `inspect.getsource` tokenizes them
    first and a whole file of 5,000 lines takes a tenth of a second.
    """
    code = function.__code__
    try:
        return _trees[code]
    except KeyError:
        node = _trees[code] = _read(function)
        return node


def _read(function: FunctionType) -> FunctionNode | None:
    code = function.__code__
    if code.co_name == "<lambda>":
        return None
    linecache.checkcache(code.co_filename)
    lines = linecache.getlines(code.co_filename, function.__globals__)
    for block in _blocks(lines, code.co_firstlineno - 1):
        try:
            body = _parsed(block)
        except SyntaxError:
            continue
        except (ValueError, RecursionError, MemoryError):
            return None
        node = body[0] if len(body) == 1 else None
        return node if isinstance(node, FunctionNode) and _is_of(node, code) else None
    return None


def _blocks(lines: list[str], first: int) -> Iterator[str]:
    """Yield the lines of the function up to each place where it may end.

    It ends before a line that is indented no further than its `def`. Within
    brackets and long strings such a line may be part of it: cut there, the text
    does not parse, and the next place is tried.
    """
    start = next((place for place in range(first, len(lines)) if _DEF.match(lines[place])), None)
    if start is None:
        return
    depth = _indent(lines[start])
    tries = 0
    for place in range(start + 1, len(lines)):
        line = lines[place].strip()
        if not line or line.startswith("#") or _indent(lines[place]) > depth:
            continue
        yield "".join(lines[first:place])
        tries += 1
        if tries == _TRIES:
            return
    yield "".join(lines[first:])


def _parsed(block: str) -> list[ast.stmt]:
    if not block[:1].isspace():
        return syntax_tree(block).body
    # Not dedented: that would fail, or change the text, where a long string begins further left.
    (inside,) = syntax_tree(f"if True:\n{block}").body
    return inside.body if isinstance(inside, ast.If) else []


def _indent(line: str) -> int:
    return len(line.expandtabs()) - len(line.expandtabs().lstrip())


def _is_of(node: FunctionNode, code: CodeType) -> bool:
    """Tell whether the source is that of the code, and the file was not edited since."""
    given = node.args
    names = [argument.arg for argument in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
    return node.name == code.co_name and names == list(
        code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    )
