"""A walk over the statements of one cell in the order in which they run.

Where paths split, only what all of them settled stays settled, so a doubtful
read counts as a read. One assumption is optimistic: the body of a loop runs at
least once. Without it every `for row in rows: last = row` followed by a use of
`last` would read its own result of the previous execution, and running a cell
again would never be a replay. Names that hang on it are not *certain*.
"""

# ruff: noqa: D102, N802, N815 - `ast.NodeVisitor` prescribes the names of its methods, and they say it all

from __future__ import annotations

import ast
from collections.abc import Mapping
from typing import Any

from nbflow.notebook.expressions import (
    OPERAND,
    SHOW,
    STORE,
    ClassBody,
    ExpressionWalk,
    State,
    dotted,
    join,
)
from nbflow.notebook.follow import NOTHING, BodyNames

_SUPPRESSING = frozenset({"suppress", "raises"})


class _Loop:
    def __init__(self) -> None:
        self.breaks: list[State | None] = []
        self.continues: list[State | None] = []


class Walk(ExpressionWalk):
    """Collect what a module body reads, binds, deletes and touches."""

    def __init__(self, namespace: Mapping[str, Any] | None = None) -> None:
        super().__init__(namespace)
        self._loops: list[_Loop] = []
        self._methods: BodyNames = NOTHING
        self._later_annotations = False
        #: Names bound by imports, `def` and `class`.
        self.definitions: set[str] = set()

    def _define(self, name: str) -> None:
        self.bind(name)
        if not self._local:
            self.definitions.add(name)

    def run(self, tree: ast.Module) -> Walk:
        """Walk the whole module."""
        self._later_annotations = any(
            isinstance(node, ast.ImportFrom)
            and node.module == "__future__"
            and any(alias.name == "annotations" for alias in node.names)
            for node in tree.body
        )
        self._body(tree.body)
        return self

    # -- statements ----------------------------------------------------------

    def _body(self, statements: list[ast.stmt]) -> None:
        for statement in statements:
            self.visit(statement)

    def visit_Expr(self, node: ast.Expr) -> None:
        self._expr(node.value, SHOW)

    def visit_Assign(self, node: ast.Assign) -> None:
        if (
            isinstance(node.value, ast.Lambda)
            and not self._local
            and len(node.targets) == 1
            and isinstance(node.targets[0], ast.Name)
        ):
            self._all(node.value.args.defaults)
            self._all(default for default in node.value.args.kw_defaults if default is not None)
            self.bind(node.targets[0].id)
            self._defer(node.targets[0].id, self._function(node.value))
            return
        self._expr(node.value)
        for target in node.targets:
            self._target(target)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if not self._later_annotations:
            self._expr(node.annotation, OPERAND)
        if node.value is not None:
            self._expr(node.value)
            self._target(node.target)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        # The target is looked up before the value is computed.
        if isinstance(node.target, ast.Name):
            self.load(node.target.id, STORE)
            self._expr(node.value, OPERAND)
            self.bind(node.target.id)
        else:
            self._target(node.target)
            self._expr(node.value, OPERAND)

    def visit_Delete(self, node: ast.Delete) -> None:
        for target in node.targets:
            if isinstance(target, ast.Name):
                self.unbind(target.id)
            elif isinstance(target, (ast.Tuple, ast.List)):
                self.visit_Delete(ast.Delete(targets=target.elts))
            else:
                self._target(target)

    def visit_If(self, node: ast.If) -> None:
        before_else = self._condition(node.test)
        self._body(node.body)
        after_body, self.state = self.state, before_else
        self._body(node.orelse)
        self.state = join(after_body, self.state)

    def visit_For(self, node: ast.For | ast.AsyncFor) -> None:
        self._iterated(node.iter)
        certain = set(self.state.certain) if self.state else set()
        loop = _Loop()
        self._loops.append(loop)
        self._target(node.target)
        self._body(node.body)
        self._loops.pop()
        self.state = join(self.state, *loop.continues)
        self._body(node.orelse)
        self.state = join(self.state, *loop.breaks)
        if self.state is not None:
            self.state.certain &= certain  # the body may not have run at all

    visit_AsyncFor = visit_For

    def visit_While(self, node: ast.While) -> None:
        forever = isinstance(node.test, ast.Constant) and bool(node.test.value)
        failed = self._condition(node.test)
        certain = set(failed.certain) if failed else set()
        loop = _Loop()
        self._loops.append(loop)
        self._body(node.body)
        self._loops.pop()
        self.state = None if forever else join(self.state, *loop.continues)
        self._body(node.orelse)
        self.state = join(self.state, *loop.breaks)
        if self.state is not None and not forever:
            self.state.certain &= certain

    def visit_Break(self, _node: ast.Break) -> None:
        self._leave(self._loops[-1].breaks if self._loops else None)

    def visit_Continue(self, _node: ast.Continue) -> None:
        self._leave(self._loops[-1].continues if self._loops else None)

    def _leave(self, to: list[State | None] | None) -> None:
        if to is not None:
            to.append(self.state)
        self.state = None

    def visit_Raise(self, node: ast.Raise) -> None:
        self._expr(node.exc)
        self._expr(node.cause)
        self.state = None  # a cell that ends here fails and records nothing

    def visit_Try(self, node: Any) -> None:
        before = self.state.copy() if self.state else None
        self._body(node.body)
        self._body(node.orelse)
        ends = [self.state]
        for handler in node.handlers:
            self.state = before.copy() if before else None
            self._expr(handler.type, OPERAND)
            if handler.name:
                self.bind(handler.name)
            self._body(handler.body)
            if handler.name:
                self.unbind(handler.name)
            ends.append(self.state)
        self.state = join(*ends)
        if self.state is None and node.finalbody:
            # It still runs on the way out, and what it reads happens.
            self.state = before
            self._body(node.finalbody)
            self.state = None
        else:
            self._body(node.finalbody)

    visit_TryStar = visit_Try

    def visit_With(self, node: ast.With | ast.AsyncWith) -> None:
        suppresses = False
        before = self.state.copy() if self.state else None
        for item in node.items:
            self._expr(item.context_expr)
            callee = item.context_expr.func if isinstance(item.context_expr, ast.Call) else item.context_expr
            suppresses |= dotted(callee).rpartition(".")[2] in _SUPPRESSING
            if item.optional_vars is not None:
                self._target(item.optional_vars)
        self._body(node.body)
        if suppresses:
            self.state = join(self.state, before) if self.state else before

    visit_AsyncWith = visit_With

    def visit_Match(self, node: ast.Match) -> None:
        self._expr(node.subject)
        ends: list[State | None] = []
        exhaustive = False
        for case in node.cases:
            start = self.state.copy() if self.state else None
            self.visit(case.pattern)
            self._expr(case.guard, OPERAND)
            self._body(case.body)
            ends.append(self.state)
            self.state = start
            exhaustive = (
                case.guard is None and isinstance(case.pattern, ast.MatchAs) and case.pattern.pattern is None
            )
        self.state = join(*ends) if exhaustive else join(*ends, self.state)

    def visit_MatchAs(self, node: ast.MatchAs) -> None:
        if node.pattern is not None:
            self.visit(node.pattern)
        if node.name:
            self.bind(node.name)

    def visit_MatchStar(self, node: ast.MatchStar) -> None:
        if node.name:
            self.bind(node.name)

    def visit_MatchMapping(self, node: ast.MatchMapping) -> None:
        self._all((*node.keys, *node.patterns))
        if node.rest:
            self.bind(node.rest)

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            self._define(alias.asname or alias.name.partition(".")[0])

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        for alias in node.names:
            if alias.name == "*":
                self._unknown(f"from {node.module} import *")
            else:
                self._define(alias.asname or alias.name)

    def visit_TypeAlias(self, node: Any) -> None:
        self._target(node.name)  # its value is evaluated when somebody asks for it

    def visit_Global(self, _node: ast.Global) -> None:
        """Names that a class body declares global are the module's."""

    def visit_Nonlocal(self, _node: ast.Nonlocal) -> None:
        """Only functions may say it; the compiler has dealt with those."""

    # -- functions and classes -----------------------------------------------

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        self._all(node.decorator_list)
        self._all(node.args.defaults)
        self._all(default for default in node.args.kw_defaults if default is not None)
        parameters = {one.name for one in getattr(node, "type_params", ())}
        if not self._later_annotations:
            arguments = node.args
            self._local.append(parameters)
            every = (
                *arguments.posonlyargs,
                *arguments.args,
                *arguments.kwonlyargs,
                arguments.vararg,
                arguments.kwarg,
            )
            self._all(
                (one.annotation for one in every if one is not None and one.annotation is not None), OPERAND
            )
            self._expr(node.returns, OPERAND)
            self._local.pop()
        body = self._function(node)
        body = body._replace(loads=body.loads - parameters)
        self._define(node.name)
        if self._local:
            self._pending(body)
        # A decorator may call what it is given at once.
        elif node.decorator_list:
            self._enter(body)
        else:
            self._defer(node.name, body)

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self._all(node.decorator_list)
        self._local.append({one.name for one in getattr(node, "type_params", ())})
        self._all(node.bases)
        self._all(keyword.value for keyword in node.keywords)
        parameters = self._local.pop()
        outer_methods, self._methods = self._methods, NOTHING
        self._local.append(ClassBody())
        declared = {name for part in node.body if isinstance(part, ast.Global) for name in part.names}
        self._body(node.body)
        bound = self._local.pop()
        for name in bound & declared:
            self._bind_global(name)
        methods, self._methods = self._methods, outer_methods
        methods = methods._replace(loads=methods.loads - parameters - {"__class__"})
        self._define(node.name)
        if self._local:
            self._pending(methods)
        elif node.decorator_list or node.bases or node.keywords:
            self._enter(methods._replace(loads=methods.loads - {node.name}))
        else:
            self._defer(node.name, methods)

    def _pending(self, body: BodyNames) -> None:
        """A method waits for its class to be used."""
        self._methods |= body
