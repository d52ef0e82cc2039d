"""What `analysis.analyse` says of a cell's source, and that running the cell agrees."""

from __future__ import annotations

import builtins
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nbflow.notebook.analysis import analyse, code_digest, definitions, helper_digests


def names(text: str) -> set[str]:
    return set(text.split())


READS_AND_WRITES = [
    # source, reads, writes
    ("x = 1", "", "x"),
    ("y = x", "x", "y"),
    ("x += 1", "x", "x"),
    ("x = 1\ny = x", "", "x y"),
    ("del x", "", ""),
    ("x: int = y", "y", "x"),
    ("x: int", "", ""),
    ("(a, *b), c = d", "d", "a b c"),
    ("a = b = c", "c", "a b"),
    ("x.y = z", "x z", ""),
    ("x[i] = z", "x i z", ""),
    ("x.append(y)", "x y", ""),
    ("print(len(x))", "x", ""),
    ("import os.path\nimport numpy as np\nfrom a import b as c", "", "os np c"),
    ("(n := f(10)) + n", "f", "n"),
    ("[a for a in b if c]", "b c", ""),
    ("[a for a in b for d in a.x if d > e]", "b e", ""),
    ("{k: v for k, v in m.items()}", "m", ""),
    ("total = sum(r.x for r in rows)\nr", "rows r", "total"),
    ("[last := a for a in b]\nlast", "b", "last"),
    ("f'{x!r:>{width}} {y.z}'", "x width y", ""),
    ("lambda a, b=c: a + b + d", "c d", ""),
    ("[lambda: v for v in vs]", "vs", ""),
    # functions read when they are used
    ("def f(): return x", "", "f"),
    ("def f(): return x\nf()", "x", "f"),
    ("def f(): return x\nx = 1\nf()", "", "f x"),
    ("f = lambda: x\nx = 1\nf()", "", "f x"),
    ("def f(): return g()\ndef g(): return x\nf()", "x", "f g"),
    ("def f(n): return f(n - 1) if n else x\nf(3)", "x", "f"),
    ("def f(a=x, *, b=y): return a + b", "x y", "f"),
    ("def f(a: T) -> U: pass", "T U", "f"),
    ("from __future__ import annotations\ndef f(a: T) -> U: pass", "", "annotations f"),
    ("@deco(arg)\ndef f(): return x", "deco arg x", "f"),
    ("def f():\n  global x\n  x = y\nf()", "y", "f x"),
    ("def f():\n  y = 1\n  def g(): return y + z\n  return g\nf()()", "z", "f"),
    ("if c:\n  def f(): return x\nelse:\n  def f(): return y\nf()", "c x y", "f"),
    ("async def f(): return await g(x)\nawait f()", "g x", "f"),
    ("def f(): return x\nif c:\n  x = 1\n  f()\nelse: f()", "c x", "f x"),
    ("def f(): return x\nx = 1\nf()\ndel x\nif c: f()", "c", "f x"),
    # classes
    ("class A(B):\n  x = y\n  z = x", "B y", "A"),
    ("class A:\n  def m(self): return x", "", "A"),
    ("class A:\n  def m(self): return x\nA().m()", "x", "A"),
    ("class A:\n  x = 1\n  def m(self): return x\nA()", "x", "A"),
    ("class A:\n  x = 1\n  y = [x for _ in range(3)]", "", "A"),
    ("class A:\n  @property\n  def p(self): return self.q + r\nA().p", "r", "A"),
    # paths
    ("if c: x = 1\nprint(x)", "c x", "x"),
    ("if c: x = 1\nelse: x = 2\nprint(x)", "c", "x"),
    ("if c: x = 1\nelse: raise ValueError\nprint(x)", "c", "x"),
    ("if (m := f()) and (n := g(m)): n", "f g", "m n"),
    ("if (m := f()) and (n := g(m)): pass\nn", "f g n", "m n"),
    ("y = (x := 1) if c else 2\nx", "c x", "x y"),
    ("for r in rows: last = r\nprint(last, r)", "rows", "r last"),
    ("for r in rows:\n  if r: break\n  y = r\nprint(y)", "rows y", "r y"),
    ("for r in rows:\n  if skip: continue\n  y = r\nprint(y)", "rows skip y", "r y"),
    ("while True:\n  x = f()\n  if x: break\nprint(x)", "f", "x"),
    ("for i in a: pass\nelse: z = 1\nz", "a", "i z"),
    ("for i in range(3):\n  if i: print(prev)\n  prev = i", "prev", "i prev"),
    ("try:\n  import a\nexcept ImportError:\n  a = None\nprint(a)", "", "a"),
    ("try: x = f()\nexcept E as e: print(e)\nprint(x)", "f E x", "x e"),
    ("try: x = f()\nexcept E as e: raise\nprint(x)", "f E", "x e"),
    ("try: f = open(p)\nfinally: f.close()", "p", "f"),
    ("with open(p) as f: t = f.read()\nt", "p", "f t"),
    ("from contextlib import suppress\nwith suppress(KeyError): t = d['k']\nt", "d t", "suppress t"),
    ("async with a() as b:\n  async for c in b: print(c)", "a", "b c"),
    (
        "match p:\n  case [a, *rest]: b = a\n  case {'k': v, **more}: b = v\n"  # noqa: ISC004
        "  case C(x=q) as w if q > t: b = w\n  case _: b = 0\nb", "p C t", "a rest b v more q w",
    ),
    ("match p:\n  case 1: b = 0\nb", "p b", "b"),
    ("x = 1\ndel x\nx", "", "x"),
    # looked up by name in a text
    ("df.query('speed > @limit')", "df limit", ""),
    ("import duckdb\nduckdb.sql('select * from flights join planes using (id)')", "flights planes", "duckdb"),
    ("import duckdb\nduckdb.sql(\"select * from read_csv('x') where a in (select b from other.t)\")", "", "duckdb"),
    # builtins are not read unless they are the user's
    ("sorted(x, key=str)", "x", ""),
    ("print = 3\nprint", "", "print"),
    ("display(x); get_ipython()", "x", ""),
]  # fmt: skip


@pytest.mark.parametrize(("source", "reads", "writes"), READS_AND_WRITES)
def test_reads_and_writes(source: str, reads: str, writes: str) -> None:
    """A cell reads the names it looks up before binding them, and writes the names it may bind."""
    cell = analyse(source)
    assert cell.error is None
    assert (set(cell.reads), set(cell.writes)) == (names(reads), names(writes))


def test_deletes_are_listed_and_are_no_reads() -> None:
    """`del x` needs x to exist, whatever its value: it is listed, and not fingerprinted."""
    cell = analyse("del x, (y, z)\ndel a[0]")
    assert (set(cell.deletes), set(cell.reads)) == ({"x", "y", "z"}, {"a"})


@pytest.mark.parametrize(
    ("source", "sure"),
    [
        ("x = 1", "x"),
        ("if c: x = 1", ""),
        ("for i in a: x = 1", ""),
        ("while c: x = 1", ""),
        ("while True:\n  x = 1\n  break", "x"),
        ("with a: x = 1", "x"),
        ("try: x = 1\nexcept E: x = 2", "x"),
        ("[y := 1 for _ in a]", ""),
        ("x = 1\ndel x", ""),
        ("def f():\n  global g\n  g = 1\nf()", "f"),
    ],
)
def test_certain_writes_are_bound_on_every_path(source: str, sure: str) -> None:
    """What is bound only in a loop or branch is not certain, so its old object is kept for comparison."""
    assert set(analyse(source).always_writes) == names(sure)


@pytest.mark.parametrize(
    ("source", "mutated"),
    [
        ("x.append(1)", "x"),
        ("x['a'] = 1", "x"),
        ("x.a.b = 1", "x"),
        ("x.a[0].b += 1", "x"),
        ("del x[0]", "x"),
        ("x += [1]", "x"),
        ("f(x)", "f x"),
        ("f(a=[x])", "f x"),
        ("y = x", "x"),
        ("y = x + x", "x"),
        ("next(x)", "x"),
        ("for i in x: pass", "x"),
        ("x > 1", ""),
        ("f'{x}'", ""),
        ("x", ""),
        ("if x: pass", ""),
    ],
)
def test_mutates_over_approximates(source: str, mutated: str) -> None:
    """Whatever may reach an object to change it counts; comparing, formatting and showing it do not."""
    assert set(analyse(source).mutates) == names(mutated)


@pytest.mark.parametrize(
    "source",
    [
        "", "# nothing", "'''docs'''", "import os\nfrom a import b", "X = 1", "X = -1.5", "X: int = 3",
        "A, B = 1, 2", "X = [1, {'a': (2,)}]", "X = 60 * 60 * 24", "LINE = '-' * 80", "f = lambda x: x", "def f(): return g()",
        "@decorated\nclass A(B):\n  x = compute()", "pass", "%matplotlib inline", "%load_ext nbflow\nimport pandas",
        "try:\n  import a\nexcept ImportError:\n  a = None", "if TYPE_CHECKING:\n  import a", "from a import *",
        "year = 2013\nairports = ['JFK', 'LGA']", "get_ipython().run_line_magic('matplotlib', 'inline')",
    ],
)  # fmt: skip
def test_definitions_always_run(source: str) -> None:
    """Imports, definitions, literals and magics that set things up are cheaper to run than to restore."""
    assert analyse(source).definition_only


@pytest.mark.parametrize(
    "source",
    [
        "x = f()", "df", "x = y", "import a\na.run()", "for i in range(3): pass", "%time f()", "!make data",
        "%run other.py", "%%bash\nls", "X = f'{now}'", "x.y = 1", "[f() for _ in a]", "if c: import a",
        "X = 10 ** 9 ** 9", "X = [0] * 10_000_000_000", "X = [f()]", "%sql select 1", "with a: import b", "del x",
    ],
)  # fmt: skip
def test_work_is_no_definition(source: str) -> None:
    """Anything that computes, reads a variable or has an effect is recorded."""
    assert not analyse(source).definition_only


@pytest.mark.parametrize(
    ("source", "reads", "writes", "magics", "shell"),
    [
        ("%time x = f(y)", "f y", "x", ("%time",), False),
        ("%%time\nx = f(y)", "f y", "x", ("%%time",), False),
        ("%timeit -n 10 x = f(y)", "f y", "", ("%timeit",), False),
        ("%%capture out\nx = y", "y", "x out", ("%%capture",), False),
        ("%%bash --out listing\nls {a}", "", "listing", ("%%bash",), False),
        ("!ls $folder {a.b}/x", "folder a", "", (), True),
        ("!awk '{print $1}' file", "", "", (), True),
        ("files = !ls", "", "files", (), True),
        ("x = %sql select * from flights", "flights", "x", ("%sql",), False),
        ("%%sql result <<\nselect * from flights", "flights", "result", ("%%sql",), False),
        ("get_ipython().system('ls $x')", "x", "", (), True),
        ("%matplotlib inline\ny = x", "x", "y", ("%matplotlib",), False),
        ("x = 1\n%time y = x", "", "x y", ("%time",), False),
        ("def f():\n    %time g()\n    return 1", "", "f", (), False),
    ],
)
def test_magics_and_shell_lines_are_understood(
    source: str, reads: str, writes: str, magics: tuple[str, ...], shell: bool
) -> None:
    """Raw cells and transformed ones read alike; Python inside a magic counts, and so do `$x` and `{x}`."""
    cell = analyse(source)
    assert (set(cell.reads), set(cell.writes), cell.magics, cell.shell) == (
        names(reads),
        names(writes),
        magics,
        shell,
    )


@pytest.mark.parametrize(
    "source",
    ["exec('x = 1')", "eval(t)", "globals()['x'] = 1", "y = '{x}'.format(**locals())", "from a import *",
     "%run other.py", "%pylab", "get_ipython().run_cell('x = 1')", "get_ipython().user_ns['x']", "vars()['x']"],
)  # fmt: skip
def test_what_no_analysis_can_know_is_said(source: str) -> None:
    """Names made at run time are not guessed: the reason is given instead."""
    assert analyse(source).dynamic


def test_names_of_dynamic_builtins_may_be_taken() -> None:
    """A user's own `vars` is a variable, not the builtin."""
    assert analyse("vars = f()\nvars").dynamic == ()


@pytest.mark.parametrize(
    "source", ["x =", "return 1", "x = ?", "for", "await", "\x00", "yield 1", "break", "f(**a, *b)"]
)
def test_bad_source_is_a_result_not_an_exception(source: str) -> None:
    """IPython shows its own error; the analysis only says that there is one."""
    cell = analyse(source)
    assert isinstance(cell.error, SyntaxError)
    assert not cell.reads and not cell.writes and not cell.definition_only


@pytest.mark.parametrize(
    ("source", "awaits"),
    [("await f()", True), ("async with a: pass", True), ("async for i in a: pass", True),
     ("[i async for i in a]", True), ("async def f(): await g()", False), ("x = 1", False)],
)  # fmt: skip
def test_top_level_await_is_found(source: str, awaits: bool) -> None:
    """Only an await of the cell itself makes it one to await."""
    assert analyse(source).awaits is awaits


def notebook(*cells: str) -> dict[str, Any]:
    """Run cells in a namespace like a kernel's."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for cell in cells:
        exec(cell, namespace)  # noqa: S102 - this is what a kernel does
    return namespace


@pytest.mark.parametrize(
    ("earlier", "source", "reads", "helpers"),
    [
        (["def f(): return x"], "f()", "f x", "f"),
        (["def g(): return x", "def f(): return g()"], "f()", "f g x", "f g"),
        (["def f(): return x"], "x = 1; f()", "f", "f"),
        (["def f(): return x"], "y = list(map(f, a))", "f x a", "f"),
        (["class A:\n  def m(self): return x", "a = A()"], "a.m()", "a A x", "A"),
        (["class A:\n  def m(self): return x", "class B(A): pass", "b = B()"], "b.m()", "b B A x", "B"),
        (["class A:\n  @staticmethod\n  def m(): return x"], "A.m()", "A x", "A"),
        (["import functools", "def f(k): return x", "p = functools.partial(f, 1)"], "p()", "p f x", "f"),
        (["import functools", "@functools.lru_cache\ndef f(): return x"], "f()", "f x", ""),
        (
            ["def outer():\n  y = 1\n  def inner(): return x + y\n  return inner", "f = outer()"],
            "f()",
            "f x",
            "f",
        ),
        (["def f(): return x", "steps = [f]"], "for s in steps: s()", "steps f x", "f"),
        (["class A:\n  def m(self): return x", "bound = A().m"], "bound()", "bound A x", "A"),
        (["def f():\n  return x.query('a > @limit')"], "f()", "f x limit", "f"),
        (["f = lambda: x"], "f()", "f x", "f"),
        (["def f(): return x"], "if c:\n  x = 1\n  f()\nelse: f()", "c f x", "f"),
        (["import json"], "json.dumps(x)", "json x", ""),
    ],
)
def test_functions_of_the_notebook_are_followed(
    earlier: list[str], source: str, reads: str, helpers: str
) -> None:
    """A cell that calls `clean()` reads what `clean` reads, through any number of helpers."""
    namespace = notebook(*earlier)
    cell = analyse(source, namespace)
    assert set(cell.reads) == names(reads)
    assert set(cell.helpers) >= names(helpers)


def test_a_followed_function_that_binds_a_global_makes_the_cell_write_it() -> None:
    """`global` in an earlier function is a write of the cell that calls it."""
    namespace = notebook("def f():\n  global count\n  count = 1")
    assert "count" in analyse("f()", namespace).writes


def test_hostile_objects_are_not_asked() -> None:
    """An object whose attribute hooks raise or act does not disturb the analysis."""
    namespace = notebook(
        "class Hostile:\n  def __getattr__(self, name): raise RuntimeError(name)\n  def __eq__(self, other): 1/0\n"
        "  def __bool__(self): 1/0\n  def __len__(self): 1/0\nh = Hostile()"
    )
    assert set(analyse("h.x", namespace).reads) == {"h", "Hostile"}


def test_code_digest_ignores_layout_and_sees_code() -> None:
    """Comments and spaces make no new version; constants and names do."""
    assert code_digest("x = (1)  # one\n") == code_digest("x=1")
    assert code_digest("x = 1") != code_digest("x = 2") != code_digest("y = 2")
    assert code_digest("%time x = 1") == code_digest("get_ipython().run_line_magic('time', 'x = 1')\n")
    assert code_digest("%%bash\nls a") != code_digest("%%bash\nls b")
    assert code_digest("x = ") != code_digest("x = =")


def test_helper_digests_compare_with_definitions_in_a_file(tmp_path: Any) -> None:
    """The kernel's helpers and the definitions read from the notebook file have equal digests."""
    import linecache

    source = "import functools\n\n@functools.cache\ndef clean(x):\n    # drop\n    return x + 1\n\nclass A:\n    pass\n"
    linecache.cache["<cell one>"] = (len(source), None, source.splitlines(keepends=True), "<cell one>")
    namespace: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(source, "<cell one>", "exec"), namespace)  # noqa: S102
    found = helper_digests(analyse("clean(1)", namespace), namespace)
    assert found == {"clean": definitions(source)["clean"]}
    assert definitions(source)["clean"] != definitions(source.replace("+ 1", "+ 2"))["clean"]


# -- what executing says -----------------------------------------------------


class Observed(dict[str, Any]):
    """A namespace that notes which names were looked up before the cell bound them."""

    def __init__(self, start: dict[str, Any]) -> None:
        super().__init__(start)
        self.read: set[str] = set()
        self.bound: set[str] = set()

    def __getitem__(self, name: str) -> Any:
        if name not in self.bound and not hasattr(builtins, name) and not name.startswith("__"):
            self.read.add(name)
        return super().__getitem__(name)

    def __setitem__(self, name: str, value: Any) -> None:
        self.bound.add(name)
        super().__setitem__(name, value)

    def __delitem__(self, name: str) -> None:
        self.bound.add(name)
        super().__delitem__(name)


NAMES = st.sampled_from("abcde")


def expressions() -> st.SearchStrategy[str]:
    leaves = st.one_of(NAMES, st.integers(0, 9).map(str))
    return st.recursive(
        leaves,
        lambda inner: st.one_of(
            st.tuples(inner, inner).map(lambda p: f"({p[0]} + {p[1]})"),
            st.tuples(NAMES, inner).map(lambda p: f"({p[0]} := {p[1]})"),
            st.tuples(inner, inner, inner).map(lambda p: f"({p[0]} if {p[1]} else {p[2]})"),
            st.tuples(inner, NAMES, inner).map(
                lambda p: f"sum([{p[0]} for q in [1, {p[1]}, {p[2].replace(':=', '+')}]])"
            ),
            NAMES.map(lambda name: f"len(f'{{{name}:>{{{name}}}}}')"),
            inner.map(lambda one: f"len(str({one}))"),
            inner.map(lambda one: f"(lambda z: z + {one.replace(':=', '+')})(1)"),
        ),
        max_leaves=6,
    )


def indented(block: list[str]) -> str:
    return "\n".join("    " + line for part in block for line in part.splitlines())


def statements() -> st.SearchStrategy[str]:
    simple = st.one_of(
        st.tuples(NAMES, expressions()).map(lambda p: f"{p[0]} = {p[1]}"),
        st.tuples(NAMES, expressions()).map(lambda p: f"{p[0]} += {p[1]}"),
        st.tuples(NAMES, NAMES, expressions()).map(lambda p: f"{p[0]}, {p[1]} = {p[2]}, 1"),
        expressions(),
    )
    return st.recursive(
        simple,
        lambda inner: st.one_of(
            st.tuples(
                expressions(),
                st.lists(inner, min_size=1, max_size=2),
                st.lists(inner, min_size=1, max_size=2),
            ).map(lambda p: f"if {p[0]}:\n{indented(p[1])}\nelse:\n{indented(p[2])}"),
            st.tuples(NAMES, st.lists(inner, min_size=1, max_size=2)).map(
                lambda p: f"for {p[0]} in range(2):\n{indented(p[1])}"
            ),
            st.lists(inner, min_size=1, max_size=2).map(
                lambda p: f"try:\n{indented(p)}\nexcept ZeroDivisionError:\n    pass"
            ),
        ),
        max_leaves=4,
    )


@settings(max_examples=300, deadline=None)
@given(st.lists(statements(), min_size=1, max_size=4))
def test_execution_reads_and_binds_nothing_that_the_analysis_missed(cells: list[str]) -> None:
    """Whatever a generated cell looks up or binds when it is run is in its reads or writes."""
    source = "\n".join(cells)
    start = dict.fromkeys("abcde", 1)
    cell = analyse(source)
    seen = Observed(start)
    # Nested scopes look into the plain copy; what they read is checked by the last line.
    exec(compile(source, "<cell>", "exec"), dict(start), seen)
    assert seen.read <= cell.reads
    assert seen.bound <= cell.writes
    needed: dict[str, Any] = dict.fromkeys(cell.reads, 1)
    exec(compile(source, "<cell>", "exec"), needed)  # what is not read is not missed


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(NAMES, expressions()), min_size=1, max_size=5))
def test_straight_cells_are_exact(assignments: list[tuple[str, str]]) -> None:
    """Without branches, reads and writes are exactly what an execution shows."""
    source = "\n".join(f"{name} = {value}" for name, value in assignments if " if " not in value)
    if "lambda" in source or "for q" in source:
        return
    cell = analyse(source)
    seen = Observed(dict.fromkeys("abcde", 1))
    exec(compile(source, "<cell>", "exec"), {}, seen)
    assert (seen.read, seen.bound) == (set(cell.reads), set(cell.writes))
