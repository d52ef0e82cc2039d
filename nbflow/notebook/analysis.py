"""What a cell reads, binds, deletes and may change in place, worked out from its source.

Called by the magics before a durable cell runs, and by the plan for cells of a
file. `flow` walks the statements, `follow` looks into functions; this module is
the face of both and knows about IPython's magics.
"""

# ruff: noqa: N802 - `ast.NodeVisitor` prescribes the names of its methods, and they say it all

from __future__ import annotations

import ast
import inspect
import re
import types
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from nbflow.core.syntax import syntax_tree
from nbflow.notebook.expressions import Use
from nbflow.notebook.flow import Walk
from nbflow.notebook.purity import may_change
from nbflow.values.source_digest import source_digest

_NO_NAMES: frozenset[str] = frozenset()


@dataclass(frozen=True)
class CellAnalysis:
    """What one cell does to the names of the kernel.

    `reads` are names looked up before the cell itself binds them, also through
    functions; `helpers` are those of them that are functions or classes of the
    notebook. `writes` may be bound, `always_writes` are bound whenever the cell
    ends well. `mutates` are reads whose object might be changed in place (an
    over-approximation; `uses` is what a closer look goes by). `dynamic` gives
    the reasons why names may be missing here (`exec()`, a star import).
    `error` is set where the source is no Python: everything else is then empty.
    """

    source: str
    reads: frozenset[str] = _NO_NAMES
    writes: frozenset[str] = _NO_NAMES
    always_writes: frozenset[str] = _NO_NAMES
    deletes: frozenset[str] = _NO_NAMES
    mutates: frozenset[str] = _NO_NAMES
    helpers: frozenset[str] = _NO_NAMES
    definition_only: bool = False
    awaits: bool = False
    magics: tuple[str, ...] = ()
    shell: bool = False
    dynamic: tuple[str, ...] = ()
    error: SyntaxError | None = None
    uses: Mapping[str, frozenset[Use]] = field(default_factory=dict, repr=False)
    #: `writes` in the order in which the source binds them first, without imports and definitions.
    bound_order: tuple[str, ...] = ()

    def may_change(self, name: str, namespace: Mapping[str, Any]) -> bool:
        """Tell whether the cell could change the object now bound to `name` in place."""
        if name not in self.mutates or name not in namespace:
            return False
        return may_change(namespace[name], self.uses.get(name, ()), namespace)


def analyse(source: str, namespace: Mapping[str, Any] | None = None) -> CellAnalysis:
    """Analyse a cell's source, raw or already transformed by IPython.

    `namespace` is the kernel's: functions defined by earlier cells are followed
    through it, so a cell that calls `clean()` reads what `clean` reads.
    Nothing is run and nothing is raised for bad source: see `CellAnalysis.error`.

    >>> cell = analyse("total += sum(row.speed for row in flights)")
    >>> sorted(cell.reads), sorted(cell.writes)
    (['flights', 'total'], ['total'])
    """
    try:
        tree, _ = parse(source)
        flags = _check(tree)
    except SyntaxError as error:
        return CellAnalysis(source, error=error)
    walk = _CellWalk(namespace)
    walk.run(tree)
    final = walk.state
    return CellAnalysis(
        source=source,
        reads=frozenset(walk.reads),
        writes=frozenset(walk.writes),
        always_writes=frozenset(final.certain) if final else _NO_NAMES,
        deletes=frozenset(walk.deletes),
        mutates=frozenset(name for name in walk.reads if _may_be_changed(walk.uses.get(name, ()))),
        helpers=frozenset(walk.helpers),
        definition_only=all(_is_definition(statement) for statement in tree.body),
        awaits=bool(flags & inspect.CO_COROUTINE),
        magics=tuple(walk.magics),
        shell=walk.shell,
        dynamic=tuple(walk.dynamic),
        uses={name: frozenset(uses) for name, uses in walk.uses.items() if name in walk.reads},
        bound_order=tuple(name for name in walk.writes if name not in walk.definitions),
    )


def parse(source: str) -> tuple[ast.Module, str]:
    """Parse a cell, transforming IPython's syntax if it is no plain Python; return the tree and its text.

    Raises:
        SyntaxError: it is neither.
    """
    try:
        return _parse(source), source
    except SyntaxError:
        if not _MAGIC_HINT.search(source):
            raise
        from IPython.core.inputtransformer2 import TransformerManager

        text: str = TransformerManager().transform_cell(source)  # type: ignore[no-untyped-call]
        if text == source:
            raise
        return _parse(text), text


def code_digest(source: str | ast.AST) -> bytes:
    """Return 32 bytes that tell one piece of code from another, whatever its comments and layout.

    The source may be raw: IPython's syntax is transformed first.

    >>> code_digest("x=1  # one") == code_digest("x = 1"), code_digest("x = 2") == code_digest("x = 1")
    (True, False)
    """
    if isinstance(source, ast.AST):
        return source_digest(ast.unparse(source))
    try:
        return source_digest(parse(source)[1])
    except SyntaxError:
        return source_digest(source)


def definitions(source: str) -> dict[str, bytes]:
    """Return the code digests of the functions and classes that a cell defines at its top level.

    >>> list(definitions("def clean(frame): return frame.dropna()"))
    ['clean']
    """
    try:
        tree, _ = parse(source)
    except SyntaxError:
        return {}
    return {node.name: code_digest(node) for node in tree.body if isinstance(node, _DEFINITIONS)}


def helper_digests(analysis: CellAnalysis, namespace: Mapping[str, Any]) -> dict[str, bytes]:
    """Return the code digests of the notebook functions and classes that a cell uses, by name.

    Comparable with `definitions`; those whose source is not known are left out.
    """
    found: dict[str, bytes] = {}
    for name in sorted(analysis.helpers):
        value = inspect.unwrap(namespace[name]) if callable(namespace.get(name)) else None
        try:
            text = inspect.getsource(value) if isinstance(value, (types.FunctionType, type)) else ""
        except (OSError, TypeError):  # typed at a prompt, made by exec, or its file is gone
            continue
        for own, code in definitions(inspect.cleandoc("\n" + text) if text[:1].isspace() else text).items():
            if own == name:
                found[name] = code
    return found


# -- IPython -----------------------------------------------------------------

_MAGIC_HINT = re.compile(r"^\s*[%!?]|[?]\s*$|=\s*[%!]", re.MULTILINE)
#: Magics whose text is Python that runs in the user's namespace.
_PYTHON_LINE_MAGICS = frozenset(
    {"time", "prun", "memit", "mprun", "lprun", "snakeviz", "pyinstrument", "timeit"}
)
_PYTHON_CELL_MAGICS = frozenset(
    {"time", "prun", "capture", "memit", "snakeviz", "pyinstrument", "durable", "timeit"}
)
#: They run a statement many times in a scope of their own: nothing is bound.
_OWN_SCOPE = frozenset({"timeit"})
_SQL_MAGICS = frozenset({"sql", "read_sql", "duckdb", "dql"})
#: Magics that bind names which only they know.
_DYNAMIC_MAGICS = frozenset(
    {"run", "pylab", "store", "load", "reset", "rerun", "recall", "macro", "xdel", "edit"}
)
_EXPANSION = re.compile(r"\$\$?([A-Za-z_]\w*)|\{([^{}]*)\}")
_SHELL_CALLS = frozenset({"system", "getoutput"})
_MAGIC_CALLS = frozenset({"run_line_magic", "run_cell_magic", "magic"})
#: What else of the shell may be called without making the cell unknowable.
_HARMLESS_CALLS = frozenset(
    {"set_next_input", "display_formatter", "showtraceback", "kernel", "config", "events", "enable_gui"}
)
_NAMESPACES = frozenset({"user_ns", "user_global_ns", "user_module"})
_SCALARS = (ast.Constant, ast.UnaryOp, ast.BinOp)
_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


class _CellWalk(Walk):
    """A walk that also understands calls of `get_ipython()`."""

    def __init__(self, namespace: Mapping[str, Any] | None) -> None:
        super().__init__(namespace)
        self.magics: list[str] = []
        self.shell = False

    def visit_Call(self, node: ast.Call) -> None:
        called = _shell_call(node)
        if called is None:
            super().visit_Call(node)
            return
        texts = [
            part.value for part in node.args if isinstance(part, ast.Constant) and isinstance(part.value, str)
        ]
        if called in _SHELL_CALLS:
            self.shell = True
            self._expanded(texts)
        elif called in _MAGIC_CALLS and texts:
            self._magic(called, texts)
        else:
            if called not in _HARMLESS_CALLS:
                self._unknown(f"get_ipython().{called}()")
            super().visit_Call(node)

    def _chain(self, node: ast.AST, store: Use | None = None) -> None:
        part = node
        while isinstance(part, (ast.Attribute, ast.Subscript, ast.Call)):
            if isinstance(part, ast.Attribute) and part.attr in _NAMESPACES and _is_get_ipython(part.value):
                self._unknown(f"get_ipython().{part.attr}")
            part = part.func if isinstance(part, ast.Call) else part.value
        super()._chain(node, store)

    def _magic(self, called: str, texts: list[str]) -> None:
        name, line = texts[0], texts[1] if len(texts) > 1 else ""
        if called == "magic":
            name, _, line = texts[0].partition(" ")
        whole = called == "run_cell_magic"
        body = texts[2] if whole and len(texts) > 2 else ""
        self.magics.append(f"%%{name}" if whole else f"%{name}")
        if name in _DYNAMIC_MAGICS:
            self._unknown(f"%{name}")
        if whole and name in _PYTHON_CELL_MAGICS:
            self._expanded([line])
            self._python(body, own_scope=name in _OWN_SCOPE)
            if name == "capture":
                for word in line.split():
                    if word.isidentifier():
                        self.bind(word)
        elif not whole and name in _PYTHON_LINE_MAGICS:
            self._python(re.sub(r"^(\s*-\w+(\s+\d+)?)+\s+", "", line), own_scope=name in _OWN_SCOPE)
        else:
            self._expanded([line])
            if name in _SQL_MAGICS:
                from nbflow.notebook.follow import names_in_text

                for found in sorted(names_in_text("sql", body or line)):
                    self.load(found)
                target = re.match(r"\s*(\w+)\s*<<", line)
                if target:
                    self.bind(target[1])
            out = re.search(r"--(?:out|err)\s+([A-Za-z_]\w*)", line)
            if whole and out:  # %%bash --out listing
                self.bind(out[1])

    def _python(self, text: str, *, own_scope: bool = False) -> None:
        try:
            tree, _ = parse(text)
        except SyntaxError:
            return  # the magic will say so itself
        if own_scope and self.state is not None:
            kept, writes = self.state.copy(), dict(self.writes)
            self._body(tree.body)
            self.state, self.writes = kept, writes
        else:
            self._body(tree.body)

    def _expanded(self, texts: Iterable[str]) -> None:
        """IPython puts the values of `$name` and `{expression}` into the text of a command."""
        for text in texts:
            for match in _EXPANSION.finditer(text):
                name, expression = match.groups()
                if name:
                    self.load(name, Use("operand"))
                elif expression and expression.strip():
                    try:
                        tree = syntax_tree(expression.strip(), "eval")
                    except SyntaxError:  # an awk programme, say
                        continue
                    self._expr(tree.body, Use("operand"))


def _shell_call(node: ast.Call) -> str | None:
    """Return the method called on `get_ipython()`, if this is one."""
    function = node.func
    if not isinstance(function, ast.Attribute):
        return None
    owner: ast.AST = function.value
    while isinstance(owner, ast.Attribute):
        function, owner = owner, owner.value
    return function.attr if _is_get_ipython(owner) else None


def _is_get_ipython(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "get_ipython"


# -- small judgements --------------------------------------------------------


def _may_be_changed(uses: Iterable[Use]) -> bool:
    return any(use.how not in ("operand", "show") for use in uses)


def _is_definition(node: ast.stmt) -> bool:
    """Tell whether a statement is cheap and safe to run every time."""
    match node:
        case ast.Import() | ast.ImportFrom() | ast.Pass() | ast.Global():
            return True
        case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
            return True
        case ast.Assign(targets=targets, value=value):
            return all(_is_plain_target(target) for target in targets) and _is_literal(value)
        case ast.AnnAssign(target=ast.Name(), value=value):
            return value is None or _is_literal(value)
        case ast.Try(body=body, handlers=handlers, orelse=orelse, finalbody=final):
            # An import that may fail, and what stands for the module then.
            inner = (*body, *(part for handler in handlers for part in handler.body), *orelse, *final)
            return all(_is_definition(part) for part in inner)
        case ast.If(test=ast.Name(id="TYPE_CHECKING"), body=body, orelse=orelse):
            return all(_is_definition(part) for part in (*body, *orelse))
        case ast.Expr(value=ast.Constant()):
            return True
        case ast.Expr(value=ast.Call() as call):
            return _is_setup_magic(call)
    return type(node).__name__ == "TypeAlias"


def _is_setup_magic(call: ast.Call) -> bool:
    if _shell_call(call) not in ("run_line_magic", "magic") or not call.args:
        return False
    first = call.args[0]
    if not isinstance(first, ast.Constant) or not isinstance(first.value, str):
        return False
    name = first.value.split(" ")[0]
    return name not in _PYTHON_LINE_MAGICS and name not in _SQL_MAGICS and name not in _DYNAMIC_MAGICS


def _is_plain_target(node: ast.AST) -> bool:
    if isinstance(node, (ast.Tuple, ast.List)):
        return all(_is_plain_target(part) for part in node.elts)
    return isinstance(node, ast.Name)


def _is_literal(node: ast.AST | None) -> bool:
    match node:
        case ast.Constant() | ast.Lambda():
            return True
        case ast.Tuple(elts=parts) | ast.List(elts=parts) | ast.Set(elts=parts):
            return all(_is_literal(part) for part in parts)
        case ast.Dict(keys=keys, values=values):
            return all(_is_literal(part) for part in (*keys, *values))
        case ast.UnaryOp(operand=operand):
            return _is_literal(operand)
        case ast.BinOp(left=left, right=right, op=op):
            # 10**9**9 and [0] * 10_000_000_000 are literals too, and not cheap.
            if isinstance(op, ast.Pow) or not all(isinstance(part, _SCALARS) for part in (left, right)):
                return False
            return _is_literal(left) and _is_literal(right)
        case ast.JoinedStr(values=values):
            return all(isinstance(part, ast.Constant) for part in values)
    return False


def _parse(source: str) -> ast.Module:
    try:
        return syntax_tree(source)
    except ValueError as error:  # a null byte, on the older Pythons
        raise SyntaxError(str(error)) from error
    except RecursionError as error:
        raise SyntaxError("the source is nested too deeply") from error


def _check(tree: ast.Module) -> int:
    """Compile to find what parsing does not see (`return` outside a function); return the code's flags."""
    code: types.CodeType = compile(tree, "<cell>", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
    return code.co_flags
