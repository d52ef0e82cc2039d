"""Conditions on figures as a text: "auc > 0.9 and rows >= 1000". Evaluated over the syntax tree, never as code."""

from __future__ import annotations

import ast
import operator
import warnings
from collections.abc import Callable, Mapping
from typing import Any

from nbflow.core.errors import UsageError

#: Characters of a condition; a tree of more cannot be read by people either.
LONGEST = 2000

_COMPARE: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Is: operator.is_,
    ast.IsNot: operator.is_not,
    ast.In: lambda part, whole: part in whole,
    ast.NotIn: lambda part, whole: part not in whole,
}
_ARITHMETIC: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
_FUNCTIONS: dict[str, Callable[..., Any]] = {"abs": abs, "max": max, "min": min, "round": round, "len": len}


class Predicate:
    """A condition that was read, and can be asked about figures.

    `names` are the figures that it speaks of.

    Raises:
        UsageError: it is no condition, or holds what none may hold.

    >>> condition = Predicate("auc > 0.9 and rows >= 1000")
    >>> condition.holds({"auc": 0.93, "rows": 1200}), condition.names
    (True, ('auc', 'rows'))
    """

    def __init__(self, text: str) -> None:
        self.text = " ".join(text.split())
        if not self.text or len(text) > LONGEST:
            raise UsageError(f"A condition is a text of 1 to {LONGEST} characters, not of {len(text)}.")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", SyntaxWarning)  # what is odd is refused below
                self._tree = ast.parse(self.text, mode="eval").body
            self._check(self._tree)
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            if isinstance(error, UsageError):
                raise
            raise UsageError(
                f"{_short(self.text)} is no condition: {error}.", hint='Write "auc > 0.9 and rows >= 1000".'
            ) from None
        found = (node.id for node in ast.walk(self._tree) if isinstance(node, ast.Name))
        self.names = tuple(dict.fromkeys(name for name in found if name not in _FUNCTIONS))

    def _check(self, node: ast.AST) -> None:
        """Refuse everything that is not on the list."""
        allowed: tuple[type[ast.AST], ...] = (
            ast.BoolOp,
            ast.Compare,
            ast.BinOp,
            ast.UnaryOp,
            ast.Name,
            ast.Constant,
            ast.Tuple,
            ast.List,
            ast.Call,
            ast.Subscript,
        )
        if not isinstance(node, allowed):
            raise self._refused(node)
        children: list[ast.AST] = []
        if isinstance(node, ast.BoolOp):
            children = [*node.values]
        elif isinstance(node, ast.Compare):
            children = [node.left, *node.comparators]
        elif isinstance(node, ast.BinOp):
            if type(node.op) not in _ARITHMETIC:
                raise self._refused(node)
            children = [node.left, node.right]
        elif isinstance(node, ast.UnaryOp):
            if isinstance(node.op, ast.Invert):
                raise self._refused(node)
            children = [node.operand]
        elif isinstance(node, (ast.Tuple, ast.List)):
            children = [*node.elts]
        elif isinstance(node, ast.Call):
            known = isinstance(node.func, ast.Name) and node.func.id in _FUNCTIONS
            if not known or node.keywords:
                raise self._refused(node)
            children = [*node.args]
        elif isinstance(node, ast.Subscript):
            if not isinstance(node.slice, ast.Constant):
                raise self._refused(node)
            children = [node.value]
        elif isinstance(node, ast.Constant) and not isinstance(
            node.value, (bool, int, float, str, type(None))
        ):
            raise self._refused(node)
        for child in children:
            self._check(child)

    def _refused(self, node: ast.AST) -> UsageError:
        part = ast.unparse(node) if isinstance(node, ast.expr) else type(node).__name__
        return UsageError(
            f"{_short(part)} cannot stand in the condition {_short(self.text)}.",
            hint=f"A condition compares figures and numbers; functions are {', '.join(sorted(_FUNCTIONS))}. "
            "Anything else goes into a Python function.",
        )

    def holds(self, figures: Mapping[str, Any]) -> bool:
        """Tell whether the condition holds; not where it speaks of a figure that is NaN, whatever it says of it.

        Raises:
            UsageError: a figure is missing, or cannot be compared so.
        """
        missing = [name for name in self.names if name not in figures]
        if missing:
            known = ", ".join(map(repr, figures)) or "none"
            raise UsageError(
                f"The condition {_short(self.text)} speaks of {', '.join(map(repr, missing))}, "
                f"and the figures are {known}.",
                hint="Give every figure of the condition; nothing was decided.",
            )
        if any(figures[name] != figures[name] for name in self.names):  # NaN
            return False
        try:
            return bool(self._value(self._tree, figures))
        except UsageError:
            raise
        except Exception as error:
            raise UsageError(
                f"The condition {_short(self.text)} cannot be asked about these figures: {error}.",
                hint="Nothing was decided.",
            ) from error

    def _value(self, node: ast.expr, figures: Mapping[str, Any]) -> Any:
        match node:
            case ast.Constant():
                return node.value
            case ast.Name():
                return figures[node.id]
            case ast.Tuple() | ast.List():
                return tuple(self._value(part, figures) for part in node.elts)
            case ast.BoolOp():
                parts = (self._value(part, figures) for part in node.values)
                return all(parts) if isinstance(node.op, ast.And) else any(parts)
            case ast.UnaryOp():
                value = self._value(node.operand, figures)
                if isinstance(node.op, ast.Not):
                    return not value
                return -value if isinstance(node.op, ast.USub) else +value
            case ast.Compare():
                left = self._value(node.left, figures)
                for how, part in zip(node.ops, node.comparators, strict=True):
                    right = self._value(part, figures)
                    if not _COMPARE[type(how)](left, right):
                        return False
                    left = right
                return True
            case ast.BinOp():
                left, right = self._value(node.left, figures), self._value(node.right, figures)
                if isinstance(left, (str, list, tuple)) or isinstance(right, (str, list, tuple)):
                    raise TypeError("arithmetic is for numbers")
                return _ARITHMETIC[type(node.op)](left, right)
            case ast.Call():
                assert isinstance(node.func, ast.Name)
                return _FUNCTIONS[node.func.id](*(self._value(part, figures) for part in node.args))
            case ast.Subscript():
                assert isinstance(node.slice, ast.Constant)
                value = self._value(node.value, figures)
                if not isinstance(value, (Mapping, list, tuple)):
                    raise TypeError(f"{ast.unparse(node.value)} has no parts")
                return value[node.slice.value]  # type: ignore[index]
        raise AssertionError("what is not on the list was refused")


def _short(text: str) -> str:
    return repr(text if len(text) <= 120 else f"{text[:119]}…")
