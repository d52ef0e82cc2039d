"""Which states a handler may return, read from its source: so that a machine is checked before it runs.

What is returned is worked out where it can be (`return S.A`, `return S.A if x else
S.B`, `return Split([S.A, S.B], to=S.C)`, a literal dict …). Whatever else a handler
returns makes its targets unknown, never wrong.
"""

from __future__ import annotations

import ast
import builtins
import dis
import functools
import inspect
import types
import typing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from typing import Any, Literal

from nbflow.core.handler_source import FunctionNode, function_node
from nbflow.core.labels import foreign
from nbflow.core.outcomes import Again, Branch, Continue, Split
from nbflow.core.state_spec import SplitTargets
from nbflow.core.syntax import syntax_tree

_NESTED = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)
_GENERATORS = inspect.CO_GENERATOR | inspect.CO_ASYNC_GENERATOR
_COLLECTIONS = (list, tuple, set, frozenset, sorted, reversed)
#: The instructions that set a name which is not the function's own: looking for them is cheaper than for statements.
_SETTERS = frozenset(dis.opmap[name] for name in ("STORE_GLOBAL", "STORE_DEREF"))
_OUTCOMES = (Split, Continue, Again)


@dataclass(frozen=True)
class Inferred:
    """What a handler's source tells: the labels of the states that it may return (None: unknown) and its splits."""

    targets: frozenset[str] | None = None
    splits: tuple[SplitTargets, ...] = ()


class _UnknownValue(Exception):
    """What an expression gives cannot be told from the source."""


@dataclass(frozen=True)
class _Missing:
    """A member that its Enum does not have."""

    text: str


def infer(function: Callable[..., Any], label_of: Callable[[object], str | None]) -> Inferred:
    """Infer where a handler leads from its return annotation (`Literal[S.A, S.B]`) or else from its source.

    `label_of` gives the label of a state and None for everything else. Strings
    and Enum members that are no states are kept by the text that names them, so
    that the check of the machine reports them. Functions behind foreign
    decorators are unknown: those may return something else.

    >>> def handler(ctx):
    ...     return "done" if ctx else "again"
    >>> sorted(infer(handler, str).targets)
    ['again', 'done']
    """
    plain = _plain(function)
    if plain is None or plain.__code__.co_flags & _GENERATORS:
        return Inferred()
    node = function_node(plain)
    reader = _Reader(plain, node)
    declared = _declared(reader, plain)
    read = Inferred() if node is None else _states(reader.returned(node), label_of)
    if declared is None:
        return read
    if Split in declared and read.targets is None and not read.splits:
        read = Inferred(None, (SplitTargets(None, None),))
    states = _states([value for value in declared if value is not Split], label_of)
    return Inferred(states.targets, read.splits)


def _plain(function: object) -> types.FunctionType | None:
    """Return the function whose source says what a call gives, or None."""
    for _ in range(20):
        if isinstance(function, functools.partial):
            function = function.func
        elif isinstance(function, types.MethodType):
            function = function.__func__
        elif isinstance(function, types.FunctionType):
            return None if hasattr(function, "__wrapped__") else function
        elif type(function).__module__.partition(".")[0] == "nbflow":
            # A durable function gives what its own function gives.
            function = getattr(function, "__wrapped__", None)
        else:
            return None
    return None


def _states(values: list[Any], label_of: Callable[[object], str | None]) -> Inferred:
    """Sort what is returned into states and splits."""
    targets: set[str] | None = set()
    splits: list[SplitTargets] = []
    for value in values:
        if isinstance(value, _Splitting):
            splits.append(value.labelled(label_of))
        elif value is not None and targets is not None:
            label = _label(value, label_of)
            targets = None if label is None else targets | {label}
    return Inferred(None if targets is None else frozenset(targets), tuple(dict.fromkeys(splits)))


def _label(value: object, label_of: Callable[[object], str | None]) -> str | None:
    if isinstance(value, _Missing):
        return value.text
    label = label_of(value)
    if label is None and isinstance(value, (str, Enum)):
        return foreign(value)
    return label


@dataclass(frozen=True, eq=False)
class _Splitting:
    """A `Split(...)` in the source: the states of its branches, or None, and those that may follow the join."""

    branches: tuple[Any, ...] | None
    to: tuple[Any, ...] | None

    def labelled(self, label_of: Callable[[object], str | None]) -> SplitTargets:
        branches = None if self.branches is None else [_label(value, label_of) for value in self.branches]
        known = None if branches is None or None in branches else frozenset(filter(None, branches))
        if self.to is None or len(self.to) != 1:
            return SplitTargets(known, None)
        if self.to[0] is None:
            return SplitTargets(known, None, joined=False)
        return SplitTargets(known, _label(self.to[0], label_of))


def _declared(reader: _Reader, function: types.FunctionType) -> list[Any] | None:
    """Return the states that a return annotation declares by `Literal`, and `Split` where it allows one; else None."""
    try:
        annotation = function.__annotations__.get("return")
    except Exception:  # noqa: BLE001 - from 3.14 on this runs the annotation, which may be anything
        return None
    if isinstance(annotation, str):
        if "Literal" not in annotation:
            return None
        try:
            annotation = reader.annotation(syntax_tree(annotation.strip(), "eval").body)
        except (_UnknownValue, SyntaxError, ValueError, RecursionError, MemoryError):
            return None
    values: list[Any] = []
    literal = False
    for part in typing.get_args(annotation) if _is_union(annotation) else (annotation,):
        if typing.get_origin(part) is Literal:
            literal = True
            values += typing.get_args(part)
        elif part is Split:
            values.append(Split)
        elif part is not None and part not in (*_OUTCOMES, type(None)):
            return None
    return values if literal else None


def _is_union(annotation: object) -> bool:
    return typing.get_origin(annotation) in (typing.Union, types.UnionType)


class _Reader:
    """Works out what expressions of one function may give, as lists of Enum members, constants and splits."""

    def __init__(self, function: types.FunctionType, node: FunctionNode | None) -> None:
        self.function = function
        self.node = node
        code = function.__code__
        self.own = frozenset((*code.co_varnames, *code.co_cellvars))
        self.free = {name: place for place, name in enumerate(code.co_freevars)}
        self.sets_others = not _SETTERS.isdisjoint(code.co_code[::2])
        self.local: dict[str, list[Any] | None] = {}
        self.bound_in: dict[str, list[Any]] = {}
        self._names: dict[str, list[ast.Name]] | None = None

    def returned(self, node: FunctionNode) -> list[Any]:
        """Return what the `return` statements of the function give."""
        values: list[Any] = []
        for expression in _returns(node.body):
            try:
                values += self.possible(expression)
            except (_UnknownValue, RecursionError):
                values.append(_UNKNOWN)
        return values

    def possible(self, node: ast.expr) -> list[Any]:
        """Return every value that an expression may give.

        Raises:
            _UnknownValue: it cannot be told.
        """
        match node:
            case ast.Constant():
                return [node.value]
            case ast.Name():
                return self._of_name(node.id)
            case ast.IfExp():
                return _merged([self.possible(node.body), self.possible(node.orelse)])
            case ast.BoolOp():
                return _merged([self.possible(value) for value in node.values])
            case ast.NamedExpr():
                return self.possible(node.value)
            case ast.Attribute():
                return [self._of_attribute(node)]
            case ast.Subscript():
                return self._of_subscript(node)
            case ast.Call():
                return self._of_call(node)
        raise _UnknownValue

    def annotation(self, node: ast.expr) -> Any:
        """Return what the text of an annotation means, as far as `_declared` understands it."""
        match node:
            case ast.BinOp(op=ast.BitOr()):
                return typing.Union[self.annotation(node.left), self.annotation(node.right)]  # noqa: UP007
            case ast.Subscript() if self._static(node.value) is Literal:
                parts = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
                values = _merged([self.possible(part) for part in parts])
                if any(isinstance(value, (_Missing, _Splitting)) for value in values):
                    raise _UnknownValue
                return Literal[tuple(values)]
            case ast.Constant(value=None):
                return None
        return self._static(node)

    # -- names ------------------------------------------------------------------------------------

    def _of_name(self, name: str) -> list[Any]:
        if name in self.bound_in:
            return self.bound_in[name]
        if self._is_local(name):
            return self._of_local(name)
        value = self._global(name)
        # A constant by its name, or given to the factory that made the function; other names may be set again.
        if isinstance(value, (str, Enum)) and (name in self.free or name.isupper()):
            return [value]
        raise _UnknownValue

    def _is_local(self, name: str) -> bool:
        # A free or global name that the function sets itself (nonlocal, global) is as changeable as a local one.
        return name in self.own or (
            self.sets_others and any(isinstance(use.ctx, ast.Store) for use in self._uses(name))
        )

    def _of_local(self, name: str) -> list[Any]:
        """Return what a local name may hold: known where all that binds it are plain assignments."""
        if name not in self.local:
            self.local[name] = None  # while it is being worked out: x = x tells nothing
            self.local[name] = _merged([self.possible(value) for value in self._bindings(name)])
        found = self.local[name]
        if found is None:
            raise _UnknownValue
        return found

    def _bindings(self, name: str) -> list[ast.expr]:
        """Return the expressions that are assigned to a local name.

        Raises:
            _UnknownValue: something else binds it: a parameter, a loop, an import …
        """
        if self.node is None:
            raise _UnknownValue
        values: list[ast.expr] = []
        stores = sum(not isinstance(use.ctx, ast.Load) for use in self._uses(name))
        for node in ast.walk(self.node):
            match node:
                case ast.Assign():
                    if any(isinstance(target, ast.Name) and target.id == name for target in node.targets):
                        values.append(node.value)
                case ast.AnnAssign(target=ast.Name(id=found), value=ast.expr() as value):
                    if found == name:
                        values.append(value)
                case ast.NamedExpr(target=ast.Name(id=found), value=value):
                    if found == name:
                        values.append(value)
                case ast.arg(arg=found) | ast.alias(asname=str(found)) | ast.alias(name=found):
                    if found == name:
                        raise _UnknownValue
                case (
                    ast.ExceptHandler(name=str(found))
                    | ast.MatchAs(name=str(found))
                    | ast.MatchStar(name=str(found))
                    | ast.MatchMapping(rest=str(found))
                    | ast.FunctionDef(name=found)
                    | ast.AsyncFunctionDef(name=found)
                    | ast.ClassDef(name=found)
                ):
                    if found == name:
                        raise _UnknownValue
                case ast.Global(names=names) | ast.Nonlocal(names=names):
                    if name in names:
                        raise _UnknownValue
        if not values or len(values) != stores:
            raise _UnknownValue
        return values

    def _uses(self, name: str) -> list[ast.Name]:
        """Return every place where the function, or one nested in it, uses a name."""
        if self._names is None:
            self._names = {}
            if self.node is not None:
                for node in ast.walk(self.node):
                    if isinstance(node, ast.Name):
                        self._names.setdefault(node.id, []).append(node)
        return self._names.get(name, [])

    def _global(self, name: str) -> Any:
        if name in self.free and self.function.__closure__ is not None:
            try:
                return self.function.__closure__[self.free[name]].cell_contents
            except ValueError:
                raise _UnknownValue from None
        spaces = (self.function.__globals__, vars(builtins))
        for space in spaces:
            if name in space:
                return space[name]
        raise _UnknownValue

    # -- other expressions -------------------------------------------------------------------------

    def _static(self, node: ast.expr) -> Any:
        """Return the object that a dotted name stands for: a module, a class, an Enum member."""
        if isinstance(node, ast.Name):
            if node.id in self.bound_in or self._is_local(node.id):
                raise _UnknownValue
            return self._global(node.id)
        if isinstance(node, ast.Attribute):
            return self._of_attribute(node)
        raise _UnknownValue

    def _of_attribute(self, node: ast.Attribute) -> Any:
        base = self._static(node.value)
        if isinstance(base, type) and issubclass(base, Enum):
            if node.attr in base.__members__:
                return base.__members__[node.attr]
            if hasattr(base, node.attr):
                raise _UnknownValue
            return _Missing(f"{base.__name__}.{node.attr}")
        if isinstance(base, Enum) and node.attr in ("name", "value"):
            return base.name if node.attr == "name" else base.value
        if isinstance(base, types.ModuleType):
            if node.attr in vars(base):
                return vars(base)[node.attr]
            if base.__name__ == "nbflow":
                # Its names are loaded when they are first used.
                return getattr(base, node.attr, None)
        raise _UnknownValue

    def _of_subscript(self, node: ast.Subscript) -> list[Any]:
        match node.value:
            case ast.Dict():
                return self._of_dict(node.value)
            case ast.Tuple() | ast.List():
                return self.elements(node.value)
        base = self._static(node.value)
        if isinstance(base, type) and issubclass(base, Enum) and isinstance(node.slice, ast.Constant):
            name = str(node.slice.value)
            return [
                base.__members__[name] if name in base.__members__ else _Missing(f"{base.__name__}[{name!r}]")
            ]
        raise _UnknownValue

    def _of_dict(self, node: ast.Dict) -> list[Any]:
        if None in node.keys:
            raise _UnknownValue
        return _merged([self.possible(value) for value in node.values])

    def _of_call(self, node: ast.Call) -> list[Any]:
        match node:
            case ast.Call(func=ast.Attribute(value=ast.Dict() as table, attr="get"), keywords=[]):
                return _merged([self._of_dict(table), *(self.possible(value) for value in node.args[1:])])
        called = self._static(node.func)
        if called is Continue or called is Again:
            return []
        if called is Split:
            return [self._split(node)]
        if isinstance(called, type) and issubclass(called, Enum) and not node.keywords:
            match node.args:
                case [ast.Constant(value=value)]:
                    try:
                        return [called(value)]
                    except (ValueError, TypeError):
                        return [_Missing(f"{called.__name__}({value!r})")]
        raise _UnknownValue

    def _split(self, node: ast.Call) -> _Splitting:
        given = {keyword.arg: keyword.value for keyword in node.keywords}
        first = node.args[0] if node.args else given.get("branches")
        branches = to = None
        try:
            branches = None if first is None else tuple(self.elements(first))
        except _UnknownValue:
            branches = None
        try:
            if "to" in given:
                to = tuple(self.possible(given["to"]))
            elif None not in given:  # no **options that might hold it
                to = (None,)
        except _UnknownValue:
            to = None
        return _Splitting(branches, to)

    def elements(self, node: ast.expr) -> list[Any]:
        """Return every state that the branches or elements of an iterable may be."""
        match node:
            case ast.List() | ast.Tuple() | ast.Set():
                return _merged([self._element(part) for part in node.elts])
            case ast.ListComp() | ast.SetComp() | ast.GeneratorExp():
                with self._bound(node.generators):
                    return self._element(node.elt)
            case ast.IfExp():
                return _merged([self.elements(node.body), self.elements(node.orelse)])
            case ast.BinOp(op=ast.Add()):
                return _merged([self.elements(node.left), self.elements(node.right)])
            case ast.BinOp(op=ast.Mult()):
                side = node.left if isinstance(node.left, (ast.List, ast.Tuple)) else node.right
                return self.elements(side)
            case ast.Call(args=[inner], keywords=[]) if self._static(node.func) in _COLLECTIONS:
                return self.elements(inner)
            case ast.Name() if node.id not in self.bound_in and self._is_local(node.id):
                # A list that is used anywhere else may have been changed there.
                if sum(isinstance(use.ctx, ast.Load) for use in self._uses(node.id)) > 1:
                    raise _UnknownValue
                return _merged([self.elements(value) for value in self._bindings(node.id)])
            case ast.Name() | ast.Attribute():
                states = self._static(node)
                if isinstance(states, type) and issubclass(states, Enum):
                    return list(states)
        raise _UnknownValue

    def _element(self, node: ast.expr) -> list[Any]:
        if isinstance(node, ast.Starred):
            return self.elements(node.value)
        if isinstance(node, ast.Call) and node.args and self._static(node.func) is Branch:
            node = node.args[0]
        values = self.possible(node)
        if any(value is None or isinstance(value, _Splitting) for value in values):
            raise _UnknownValue
        return values

    @contextmanager
    def _bound(self, generators: list[ast.comprehension]) -> Iterator[None]:
        """Bind the names of a comprehension while its element is read; those that loop over states to these."""
        before = self.bound_in
        bound = dict(before)
        hidden = {
            part.id
            for generator in generators
            for part in ast.walk(generator.target)
            if isinstance(part, ast.Name)
        }
        try:
            for generator in generators:
                if isinstance(generator.target, ast.Name):
                    try:
                        bound[generator.target.id] = self.elements(generator.iter)
                        hidden.discard(generator.target.id)
                    except _UnknownValue:
                        continue
            self.bound_in = {**bound, **{name: [_UNKNOWN] for name in hidden}}
            yield
        finally:
            self.bound_in = before


#: Stands for who knows what: an object that is no state, so that targets are unknown.
_UNKNOWN = object()


def _returns(body: list[ast.stmt]) -> Iterator[ast.expr]:
    """Yield what the function returns; functions nested in it return elsewhere."""
    pending: list[ast.AST] = list(reversed(body))
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Return):
            if node.value is not None:
                yield node.value
        elif not isinstance(node, (*_NESTED, ast.expr)):
            pending.extend(
                part
                for part in ast.iter_child_nodes(node)
                if isinstance(part, (ast.stmt, ast.ExceptHandler, ast.match_case))
            )


def _merged(groups: list[list[Any]]) -> list[Any]:
    """Return all values once. By identity: members of an Enum may not be hashable, and True equals 1."""
    return list({id(value): value for group in groups for value in group}.values())
