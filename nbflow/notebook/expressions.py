"""Names and expressions: which variables a cell looks up, and how it touches them.

The lower half of the walk over a cell; `flow` adds the statements. Two sets are
kept for the point the walk stands at: names *settled* in this cell (bound or
deleted, on every path that gets here) and names *certain* to be bound. A load
of a name that is not settled is a read of the kernel's state.

Functions and methods defined in the cell read their globals when they are
first used, not where they stand.
"""

# ruff: noqa: D102, N815 - `ast.NodeVisitor` prescribes the names of its methods, and they say it all

from __future__ import annotations

import ast
import builtins
import types
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

from nbflow.notebook.follow import NOTHING, BodyNames, body_of, callables_of, code_names, names_in_text

_BUILTINS = frozenset(dir(builtins))
#: Loading one of these makes names visible that no analysis can list.
_DYNAMIC = frozenset({"exec", "eval", "globals", "locals", "vars"})
#: What IPython puts into every namespace; a cell that uses it reads nothing of the user's.
PROVIDED = frozenset(
    {"get_ipython", "display", "exit", "quit", "open", "__name__", "__builtins__", "__builtin__"}
)


class Use(NamedTuple):
    """One way in which a cell touches a variable, for the judgement whether it may change in place.

    `how` is "store", "escape" (flows to where it cannot be followed), "operand"
    (compared, formatted, tested, an index), "arithmetic", "show", "argument"
    (`via` is the dotted callee) or "chain" (`via` is the first step: `.name`,
    `.name()`, `[]` or `()`; `+` says that a call follows, `>` that the result
    flows on, `=` that this is the attribute itself). `given` is how many
    positional arguments the callee gets; `!` behind it is for `out` and `inplace`.
    """

    how: str
    via: str = ""
    given: int = 0


STORE = Use("store")
ESCAPE = Use("escape")
OPERAND = Use("operand")
ARITHMETIC = Use("arithmetic")
SHOW = Use("show")


class State:
    """What is settled and certain at one point; None stands for a point that is never reached."""

    __slots__ = ("certain", "settled")

    def __init__(self, settled: Iterable[str] = (), certain: Iterable[str] = ()) -> None:
        self.settled = set(settled)
        self.certain = set(certain)

    def copy(self) -> State:
        """Return the same state, to go on with on another path."""
        return State(self.settled, self.certain)


def join(*states: State | None) -> State | None:
    """Return what holds wherever one of these points is left; None if none is ever reached."""
    reached = [state for state in states if state is not None]
    if not reached:
        return None
    return State(
        set.intersection(*(state.settled for state in reached)),
        set.intersection(*(state.certain for state in reached)),
    )


class ClassBody(set[str]):
    """Names bound in a class body: functions inside do not see them, the statements of the body do."""


class ExpressionWalk(ast.NodeVisitor):
    """Collect what expressions read, bind and touch.

    `namespace` is the kernel's, to follow functions that were defined by
    earlier cells; without it their names are read and nothing more is known.
    """

    def __init__(self, namespace: Mapping[str, Any] | None = None) -> None:
        self.namespace: Mapping[str, Any] = namespace if namespace is not None else {}
        self.reads: set[str] = set()
        self.writes: dict[str, None] = {}  # in the order of first binding
        self.deletes: set[str] = set()
        self.helpers: set[str] = set()
        self.dynamic: list[str] = []
        self.uses: dict[str, set[Use]] = {}
        self.state: State | None = State()
        self._local: list[set[str]] = []  # class bodies and comprehensions, innermost last
        self._deferred: dict[str, BodyNames] = {}
        self._entered: dict[str | int, set[str]] = {}
        self._sink = ESCAPE

    # -- names ---------------------------------------------------------------

    def load(self, name: str, use: Use | None = None) -> None:
        """Note that `name` is looked up here."""
        if any(name in scope for scope in self._local):
            return
        if use is not None:
            self.uses.setdefault(name, set()).add(use)
        state = self.state
        if state is None:  # unreachable code reads nothing
            return
        if name in state.settled:
            body = self._deferred.get(name)
            if body is not None and self._is_news(name, state):
                self._enter(body)
            return
        if name in PROVIDED and (name != "open" or _is_foreign(self.namespace.get(name))):
            return
        if name in self.namespace:
            self.reads.add(name)
            self._follow(name, self.namespace[name])
        elif name in _BUILTINS:
            if name in _DYNAMIC:
                self._unknown(f"{name}()")
        else:
            self.reads.add(name)

    def bind(self, name: str) -> None:
        """Note that `name` is bound here."""
        if self._local:
            self._local[-1].add(name)
            return
        self._bind_global(name)

    def _bind_global(self, name: str) -> None:
        self.writes.setdefault(name)
        if self.state is not None:
            self.state.settled.add(name)
            self.state.certain.add(name)

    def unbind(self, name: str) -> None:
        """Note that `name` is deleted here: only its existence matters, so this is no read."""
        if self._local and name in self._local[-1]:
            self._local[-1].discard(name)
            return
        self.deletes.add(name)
        if self.state is not None:
            self.state.settled.add(name)
            self.state.certain.discard(name)

    def _enter(self, body: BodyNames) -> None:
        """Take in what a function does to globals once something uses it."""
        outer, self._local = self._local, []
        for name in sorted(body.loads):
            self.load(name, ESCAPE)
        # A function may bind only on some calls: never certain, and settled only if it was.
        self.writes.update(dict.fromkeys(sorted(body.stores)))
        self.deletes |= body.deletes
        self._local = outer

    def _follow(self, name: str, value: Any) -> None:
        kind = type(value)
        if kind in _PLAIN or kind is types.ModuleType:
            return
        for target in callables_of(value, self.namespace):
            own = getattr(target, "__name__", "")
            if target is value or own == name:  # by itself, or wrapped by a decorator
                self.helpers.add(name)
            if self.state is None or not self._is_news(id(target), self.state):
                continue
            if self.namespace.get(own) is target:
                self.helpers.add(own)
                self.reads.add(own)
            self._enter(body_of(target, self.namespace))

    def _is_news(self, function: str | int, state: State) -> bool:
        """Tell whether using a function here may read what an earlier use found settled."""
        before = self._entered.get(function)
        if before is not None and before <= state.settled:
            return False
        self._entered[function] = set(state.settled)
        return True

    def _defer(self, name: str, body: BodyNames) -> None:
        # Joined, not replaced: the other branch of an `if` may define it too.
        self._deferred[name] = self._deferred.get(name, NOTHING) | body._replace(loads=body.loads - {name})
        self._entered.pop(name, None)

    def _unknown(self, reason: str) -> None:
        if reason not in self.dynamic:
            self.dynamic.append(reason)

    @contextmanager
    def _sunk(self, sink: Use) -> Iterator[None]:
        outer, self._sink = self._sink, sink
        try:
            yield
        finally:
            self._sink = outer

    def _expr(self, node: ast.AST | None, sink: Use = ESCAPE) -> None:
        if node is not None:
            with self._sunk(sink):
                self.visit(node)

    def _all(self, nodes: Iterable[ast.AST], sink: Use = ESCAPE) -> None:
        for node in nodes:
            self._expr(node, sink)

    # -- expressions ---------------------------------------------------------

    def visit_Name(self, node: ast.Name) -> None:
        if isinstance(node.ctx, ast.Load):
            self.load(node.id, self._sink)
        else:
            self._target(node)

    def visit_NamedExpr(self, node: ast.NamedExpr) -> None:
        self._expr(node.value)
        # Inside a comprehension it binds outside of it, and perhaps never.
        comprehension, self._local = self._local, []
        self.bind(node.target.id)
        if comprehension and self.state is not None:
            self.state.certain.discard(node.target.id)
        self._local = comprehension

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        self._expr(node.values[0], self._sink)
        first = self.state.copy() if self.state else None
        self._all(node.values[1:], self._sink)
        self.state = join(first, self.state)

    def _condition(self, test: ast.expr) -> State | None:
        """Visit a test; leave the state in which it holds and return the one in which it does not."""
        if isinstance(test, ast.BoolOp):
            self._expr(test.values[0], OPERAND)
            first = self.state.copy() if self.state else None
            self._all(test.values[1:], OPERAND)
            if isinstance(test.op, ast.And):
                return first
            every, self.state = self.state, first
            return every
        self._expr(test, OPERAND)
        return self.state.copy() if self.state else None

    def visit_IfExp(self, node: ast.IfExp) -> None:
        otherwise = self._condition(node.test)
        self._expr(node.body, self._sink)
        then, self.state = self.state, otherwise
        self._expr(node.orelse, self._sink)
        self.state = join(then, self.state)

    def visit_BinOp(self, node: ast.BinOp) -> None:
        self._all((node.left, node.right), ARITHMETIC)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> None:
        self._expr(node.operand, OPERAND)

    def visit_Compare(self, node: ast.Compare) -> None:
        self._all((node.left, *node.comparators), OPERAND)

    def visit_FormattedValue(self, node: ast.FormattedValue) -> None:
        self._expr(node.value, OPERAND)
        self._expr(node.format_spec, OPERAND)

    def visit_Tuple(self, node: ast.Tuple | ast.List | ast.Set) -> None:
        self._all(node.elts, self._sink)

    visit_List = visit_Tuple
    visit_Set = visit_Tuple

    def visit_Dict(self, node: ast.Dict) -> None:
        for key, value in zip(node.keys, node.values, strict=True):
            self._expr(key, OPERAND)
            self._expr(value, self._sink)

    def visit_Starred(self, node: ast.Starred) -> None:
        self._expr(node.value, self._sink)

    def _target(self, node: ast.AST) -> None:
        if isinstance(node, ast.Name):
            self.bind(node.id)
        elif isinstance(node, (ast.Tuple, ast.List)):
            for part in node.elts:
                self._target(part)
        elif isinstance(node, ast.Starred):
            self._target(node.value)
        elif isinstance(node, (ast.Attribute, ast.Subscript)):
            self._chain(node, STORE)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        self._chain(node)

    def visit_Subscript(self, node: ast.Subscript) -> None:
        self._chain(node)

    def visit_Call(self, node: ast.Call) -> None:
        self._chain(node)

    def _chain(self, node: ast.AST, store: Use | None = None) -> None:
        """Visit `root.a[b](c).d` from its root outwards, and note how the root is touched."""
        links: list[ast.AST] = []
        part = node
        while isinstance(part, (ast.Attribute, ast.Subscript, ast.Call)):
            links.append(part)
            part = part.func if isinstance(part, ast.Call) else part.value
        links.reverse()
        if isinstance(part, ast.Name):
            self.load(part.id, store or self._first(links))
        else:
            self._expr(part, ESCAPE)
        for link in links:
            if isinstance(link, ast.Subscript):
                self._expr(link.slice, OPERAND)
            elif isinstance(link, ast.Call):
                self._arguments(link)

    def _first(self, links: list[ast.AST]) -> Use:
        first = links[0]
        if isinstance(first, ast.Call):
            return Use("chain", "()")  # a function, or an instance with __call__
        if isinstance(first, ast.Subscript):
            return Use("chain", "[]" + _call_mark(links, 1) + _flow_mark(self._sink))
        name = "." + first.attr  # type: ignore[attr-defined]
        if len(links) > 1 and isinstance(links[1], ast.Call):
            marked = any(word.arg in ("inplace", "out", None) for word in links[1].keywords)
            return Use(
                "chain", name + ("(!)" if marked else "()") + _call_mark(links, 2) + _flow_mark(self._sink)
            )
        flows = _flow_mark(self._sink)
        return Use("chain", name + _call_mark(links, 1) + (flows and "=" if len(links) == 1 else flows))

    def _arguments(self, node: ast.Call) -> None:
        callee = dotted(node.func)
        marked = any(word.arg in ("inplace", "out") for word in node.keywords)
        count = 99 if any(isinstance(part, ast.Starred) for part in node.args) else len(node.args)
        sink = Use("argument", callee + "!" if marked else callee, count)
        self._all(node.args, sink)
        self._all((word.value for word in node.keywords), sink)
        method = callee.rpartition(".")[2]
        for argument in node.args[:1]:
            if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                for name in sorted(names_in_text(method, argument.value)):
                    self.load(name, OPERAND)
            elif isinstance(argument, ast.JoinedStr):
                text = "".join(str(part.value) for part in argument.values if isinstance(part, ast.Constant))
                for name in sorted(names_in_text(method, text)):
                    self.load(name, OPERAND)

    def _iterated(self, node: ast.expr) -> None:
        # Walking over an iterator uses it up: that is a change. What a tuple lists gets a new name.
        self._expr(node, Use("argument", "iter") if isinstance(node, ast.Name) else ESCAPE)

    def _comprehension(self, node: Any, *results: ast.AST) -> None:
        self._iterated(node.generators[0].iter)
        self._local.append(set())
        for number, generator in enumerate(node.generators):
            if number:
                self._iterated(generator.iter)
            self._target(generator.target)
            self._all(generator.ifs, OPERAND)
        self._all(results)
        self._local.pop()

    def visit_ListComp(self, node: ast.ListComp | ast.SetComp | ast.GeneratorExp) -> None:
        self._comprehension(node, node.elt)

    visit_SetComp = visit_ListComp
    visit_GeneratorExp = visit_ListComp

    def visit_DictComp(self, node: ast.DictComp) -> None:
        self._comprehension(node, node.key, node.value)

    def visit_Lambda(self, node: ast.Lambda) -> None:
        self._all(node.args.defaults)
        self._all(default for default in node.args.kw_defaults if default is not None)
        names = self._function(node)
        hidden = {name for scope in self._local if not isinstance(scope, ClassBody) for name in scope}
        self._enter(names._replace(loads=names.loads - hidden))

    def _function(self, node: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) -> BodyNames:
        """Ask the compiler which globals a function uses; decorators and defaults belong outside."""
        arguments = node.args
        bare = ast.arguments(
            posonlyargs=[ast.arg(one.arg) for one in arguments.posonlyargs],
            args=[ast.arg(one.arg) for one in arguments.args],
            vararg=ast.arg(arguments.vararg.arg) if arguments.vararg else None,
            kwonlyargs=[ast.arg(one.arg) for one in arguments.kwonlyargs],
            kw_defaults=[None] * len(arguments.kwonlyargs),
            kwarg=ast.arg(arguments.kwarg.arg) if arguments.kwarg else None,
            defaults=[],
        )
        alone: ast.AST
        if isinstance(node, ast.Lambda):
            alone = ast.Expression(ast.Lambda(bare, node.body))
            code = compile(ast.fix_missing_locations(alone), "<cell>", "eval", dont_inherit=True)
        else:
            plain = type(node)(name=node.name, args=bare, body=node.body, decorator_list=[], returns=None)
            plain.type_params = []  # type: ignore[union-attr]
            alone = ast.Module([plain], type_ignores=[])
            code = compile(ast.fix_missing_locations(alone), "<cell>", "exec", dont_inherit=True)
        names = NOTHING
        for constant in code.co_consts:
            if isinstance(constant, types.CodeType):
                names |= code_names(constant)
        return names


#: Values that no function hides in: looked at before anything else, for speed.
_PLAIN = frozenset({int, float, str, bytes, bool, complex, type(None), bytearray})


def _is_foreign(value: Any) -> bool:
    """Tell whether `open` is Python's or IPython's rather than the user's."""
    return value is None or getattr(value, "__module__", "") in ("io", "_io", "IPython.core.interactiveshell")


def dotted(node: ast.AST) -> str:
    """Return `a.b.c` for a plain dotted name, with "" for a root that is no name."""
    parts: list[str] = []
    while isinstance(node, (ast.Attribute, ast.Subscript, ast.Call)):
        if isinstance(node, ast.Attribute):
            parts.append(node.attr)
            node = node.value
        else:
            parts.append("[]" if isinstance(node, ast.Subscript) else "()")
            node = node.func if isinstance(node, ast.Call) else node.value
    parts.append(node.id if isinstance(node, ast.Name) else "")
    return ".".join(reversed(parts))


def _call_mark(links: list[ast.AST], start: int) -> str:
    """Say whether any call follows in the chain: the result of the first step may be changed by it."""
    return "+" if any(isinstance(link, ast.Call) for link in links[start:]) else ""


def _flow_mark(sink: Use) -> str:
    """Say whether the result of the chain flows on to where it cannot be followed."""
    return ">" if sink.how in ("escape", "argument") else ""
