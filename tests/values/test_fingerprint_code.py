"""Functions and classes of the notebook: their code counts, with the helpers and data it reaches; layout does not."""

from __future__ import annotations

import functools
import importlib
import sys
import textwrap

import pytest

from nbflow.values.bytecode import code_of
from nbflow.values.code_digest import function_digest, function_inputs, referenced_globals
from nbflow.values.fingerprint import fingerprint
from nbflow.values.first_party import source_token
from nbflow.values.source_digest import source_digest
from tests.values.codec_box import run


class Notebook:
    """A namespace in which cells are run, as `__main__` is."""

    def __init__(self, *cells: str) -> None:
        self.names: dict = {"__name__": "__main__"}
        self.count = 0
        for cell in cells:
            self.run(cell)

    def run(self, cell: str) -> None:
        self.count += 1
        source = textwrap.dedent(cell)
        exec(compile("\n" * self.count + source, f"<ipython-input-{self.count}>", "exec"), self.names)

    def __getitem__(self, name: str):
        return self.names[name]


CELL = """
    def scale(x, factor=2):
        return [value * factor for value in x if value not in {1, 7}]
"""

SAME = {
    "comments": "def scale(x, factor=2):\n    # why\n    return [value * factor for value in x if value not in {1, 7}]  # how",
    "blank lines": "\n\n\ndef scale(x, factor=2):\n\n\n    return [value * factor for value in x if value not in {1, 7}]",
    "a docstring": "def scale(x, factor=2):\n    'Scale.'\n    return [value * factor for value in x if value not in {1, 7}]",
    "brackets": "def scale(x, factor=(2)):\n    return ([value * (factor) for value in x if value not in {1, 7,}])",
    "annotations": "def scale(x: list, factor: int = 2) -> list:\n    return [value * factor for value in x if value not in {1, 7}]",
    "a constant's spelling": "def scale(x, factor=0x2):\n    return [value * factor for value in x if value not in {0b1, 7}]",
}
OTHER = {
    "an operator": "def scale(x, factor=2):\n    return [value + factor for value in x if value not in {1, 7}]",
    "a constant": "def scale(x, factor=2):\n    return [value * factor for value in x if value not in {1, 8}]",
    "a constant's type": "def scale(x, factor=2):\n    return [value * factor for value in x if value not in {1.0, 7}]",
    "a parameter's name": "def scale(x, by=2):\n    return [value * by for value in x if value not in {1, 7}]",
    "a keyword-only parameter": "def scale(x, *, factor=2):\n    return [value * factor for value in x if value not in {1, 7}]",
    "a generator": "def scale(x, factor=2):\n    return (value * factor for value in x if value not in {1, 7})",
    "a statement": "def scale(x, factor=2):\n    print(x)\n    return [value * factor for value in x if value not in {1, 7}]",
    "async": "async def scale(x, factor=2):\n    return [value * factor for value in x if value not in {1, 7}]",
}


@pytest.mark.parametrize("what", SAME)
def test_layout_of_a_function_does_not_count(what):
    """The digest of a function and its fingerprint survive edits that change nothing it does."""
    one, other = Notebook(CELL)["scale"], Notebook("x = 1", "y = 2", SAME[what])["scale"]
    assert function_digest(one) == function_digest(other)
    assert fingerprint(one) == fingerprint(other)


@pytest.mark.parametrize("what", OTHER)
def test_what_a_function_does_counts(what):
    """Any edit that changes what a function does or how it is called changes digest and fingerprint."""
    one, other = Notebook(CELL)["scale"], Notebook(OTHER[what])["scale"]
    assert function_digest(one) != function_digest(other)
    assert fingerprint(one) != fingerprint(other)


def test_a_default_value_is_an_input():
    """Another default leaves the code and changes the function as a value."""
    one, other = Notebook(CELL)["scale"], Notebook(CELL.replace("factor=2", "factor=3"))["scale"]
    assert function_digest(one) == function_digest(other)
    assert function_inputs(one) == {"scale(factor)": 2}
    assert function_inputs(other) == {"scale(factor)": 3}
    assert fingerprint(one) != fingerprint(other)


CHAIN = (
    "RATE = 3\nTABLE = {'a': 1}\nimport math\n",
    "def first(x): return second(x) + 1",
    "def second(x): return [third(n) for n in range(x)]",
    "def third(n):\n    def inner(): return n * RATE + math.pi\n    class Local:\n        size = TABLE['a']\n    return inner()",
)


def test_helpers_count_however_far_away():
    """A helper redefined three calls down changes the digest of the first function, at once and back again."""
    notebook = Notebook(*CHAIN)
    first = notebook["first"]
    before = function_digest(first)
    assert function_digest(first) == before
    notebook.run(CHAIN[3].replace("* RATE", "/ RATE"))
    changed = function_digest(first)
    assert changed != before
    notebook.run(CHAIN[3])
    assert function_digest(first) == before


def test_the_names_a_function_reads_are_known():
    """Globals are found through helpers, nested functions, comprehensions and class bodies; builtins are left out."""
    notebook = Notebook(*CHAIN)
    assert referenced_globals(notebook["first"]) >= {"second", "third", "RATE", "TABLE", "math"}
    assert "range" not in referenced_globals(notebook["first"])
    assert function_inputs(notebook["first"]) == {"RATE": 3, "TABLE": {"a": 1}}
    notebook.run("range = lambda x: []")
    assert "range" in referenced_globals(notebook["first"])


def test_data_that_a_function_reads_is_an_input():
    """A changed global changes the inputs and the fingerprint, rebound or in place, and not the digest."""
    notebook = Notebook(*CHAIN)
    first = notebook["first"]
    digest, before = function_digest(first), fingerprint(first)
    notebook.run("RATE = 4")
    assert function_inputs(first)["RATE"] == 4
    assert function_digest(first) == digest
    rebound = fingerprint(first)
    assert rebound != before
    notebook.run("TABLE['a'] = 2")
    assert fingerprint(first) not in (before, rebound)
    notebook.run("RATE = 3; TABLE = {'a': 1}")
    assert fingerprint(first) == before


def test_a_name_that_is_defined_later_is_noticed():
    """A helper that does not exist yet is no error, and changes the digest when it comes."""
    notebook = Notebook("def f(): return later()")
    before = function_digest(notebook["f"])
    assert "later" in referenced_globals(notebook["f"])
    assert function_inputs(notebook["f"]) == {}
    notebook.run("def later(): return 1")
    assert function_digest(notebook["f"]) != before
    notebook.run("later = 3")
    assert function_inputs(notebook["f"]) == {"later": 3}


def test_recursion_ends():
    """Functions that call themselves or each other, and registries that hold their readers, have digests."""
    notebook = Notebook(
        "def even(n): return n == 0 or odd(n - 1)\ndef odd(n): return n != 0 and even(n - 1)",
        "REGISTRY = []\ndef run(): return [f() for f in REGISTRY]\nREGISTRY.append(run)",
        "class Node:\n    root = None\n    def up(self): return Node.root or run()\nNode.root = Node()",
    )
    for name in ("even", "odd", "run", "Node"):
        assert fingerprint(notebook[name]) == fingerprint(notebook[name])
        assert fingerprint(notebook[name]).stable
    before = fingerprint(notebook["even"])
    notebook.run("def odd(n): return n > 0 and even(n - 1)")
    assert fingerprint(notebook["even"]) != before
    assert fingerprint(notebook["Node"].root).stable


def test_a_closure_counts_with_what_it_captured():
    """Two functions made by one factory differ by what they captured, data or code."""
    notebook = Notebook(
        "def make(n):\n    def add(x): return x + n\n    return add",
        "def apply(f):\n    return lambda x: f(x)",
    )
    one, other = notebook["make"](1), notebook["make"](2)
    assert function_digest(one) == function_digest(other)
    assert fingerprint(one) != fingerprint(other)
    assert fingerprint(one) == fingerprint(notebook["make"](1))
    notebook.run("def f(x): return x\ndef g(x): return -x")
    assert function_digest(notebook["apply"](notebook["f"])) != function_digest(
        notebook["apply"](notebook["g"])
    )


def test_a_counter_that_counted_is_another_value_and_the_same_code():
    """What a closure writes to is part of the function as a value, and no input of a call of it."""
    notebook = Notebook(
        "def make():\n    n = [0]\n    def count():\n        n[0] += 1\n        return n[0]\n    return count"
    )
    count = notebook["make"]()
    digest, before = function_digest(count), fingerprint(count)
    assert count() == 1
    assert function_digest(count) == digest
    assert function_inputs(count) == {}
    assert fingerprint(count) != before


def test_a_decorated_function_counts_as_what_it_wraps():
    """An object with `__wrapped__`, a cache and a wrapper from a library have the digest of the notebook's function."""
    notebook = Notebook("def f(x): return x + helper(x)\ndef helper(x): return x")
    plain = function_digest(notebook["f"])

    class Durable:
        def __init__(self, function):
            self.__wrapped__ = function

    assert function_digest(Durable(notebook["f"])) == plain
    assert function_digest(functools.lru_cache(notebook["f"])) == plain
    notebook.names["helper"] = Durable(notebook["helper"])
    wrapped = function_digest(notebook["f"])
    assert wrapped == plain
    notebook.run("def helper(x): return -x")
    assert function_digest(Durable(notebook["f"])) != plain


def test_a_notebooks_own_decorator_counts():
    """A wrapper that the notebook itself defines is code of its own, around the code it wraps."""
    decorator = "import functools\ndef twice(f):\n    @functools.wraps(f)\n    def g(x): return 2 * f(x)\n    return g"
    one = Notebook(decorator, "@twice\ndef f(x): return x")
    other = Notebook(decorator.replace("2 *", "3 *"), "@twice\ndef f(x): return x")
    third = Notebook(decorator, "@twice\ndef f(x): return -x")
    assert len({function_digest(each["f"]) for each in (one, other, third)}) == 3
    assert function_digest(Notebook(decorator, "@twice\ndef f(x): return x")["f"]) == function_digest(
        one["f"]
    )


CLASS = """
    import dataclasses, functools
    UNIT = 2
    class Base:
        def size(self): return UNIT
    class Model(Base):
        '''A model.'''
        rate = 0.5
        limits = [1, 2]
        def fit(self, x): return super().size() * x
        @property
        def half(self): return self.rate / 2
        @staticmethod
        def make(): return Model()
        @functools.cached_property
        def slow(self): return 1
"""
CLASS_EDITS = {
    "a method": ("* x", "+ x"),
    "an attribute": ("rate = 0.5", "rate = 0.6"),
    "a property": ("/ 2", "/ 3"),
    "a static method": ("return Model()", "return Model"),
    "a cached property": ("return 1", "return 2"),
    "a base class": ("return UNIT", "return -UNIT"),
    "a global of a base class": ("UNIT = 2", "UNIT = 3"),
    "a method more": ("@property", "def more(self): pass\n        @property"),
}


@pytest.mark.parametrize("what", CLASS_EDITS)
def test_an_edit_of_a_class_changes_it_and_its_instances(what):
    """A class counts by all it defines and inherits from the notebook, and so do its instances."""
    one = Notebook(CLASS)
    other = Notebook(CLASS.replace(*CLASS_EDITS[what]))
    assert fingerprint(one["Model"]) == fingerprint(
        Notebook(CLASS.replace("A model.", "The model."))["Model"]
    )
    assert fingerprint(one["Model"]) != fingerprint(other["Model"])
    assert fingerprint(one["Model"]()) != fingerprint(other["Model"]())


def test_a_patched_method_is_noticed():
    """A method put into a class later changes the digest of a function that uses the class."""
    notebook = Notebook(CLASS, "def use(): return Model().fit(1)")
    before = function_digest(notebook["use"])
    notebook.run("Model.fit = lambda self, x: x")
    assert function_digest(notebook["use"]) != before


def test_code_in_place_of_code_is_noticed():
    """Tools that reload put new code into an old function; its digest moves with it."""
    notebook = Notebook("def f(): return g()\ndef g(): return 1")
    before = function_digest(notebook["f"])
    notebook["g"].__code__ = (lambda: 2).__code__
    assert function_digest(notebook["f"]) != before


def test_functions_are_let_go():
    """Remembered digests keep neither functions nor what they captured alive."""
    import gc
    import weakref

    class Big:
        pass

    notebook = Notebook("def make(big):\n    def f(n): return f(n - 1) if n else big\n    return f")
    big = Big()
    seen = weakref.ref(big)
    function = notebook["make"](big)
    assert function_inputs(function)
    function_digest(function)
    del function, big
    gc.collect()
    assert seen() is None


def test_a_function_that_went_through_a_checkpoint_is_the_same_function(tmp_path):
    """A function of `__main__`, its class and its data have their fingerprints in a process that never saw the source."""
    define = (
        textwrap.dedent(CLASS).partition("    @functools.cached_property")[0]
        + "\n".join(CHAIN)
        + textwrap.dedent(CELL)
    )
    out = (
        "import sys\nfrom nbflow.values.fingerprint import fingerprint\n"
        "values = {name: fingerprint(value).digest.hex() for name, value in found.items()}\nprint(values)"
    )
    define = define.replace(
        "    class Local:\n        size = TABLE['a']\n", ""
    )  # cloudpickle loses a class body's names
    names = (
        "found = {'first': first, 'scale': scale, 'Model': Model, 'model': Model(), 'bound': Model().fit}\n"
    )
    there = f"{define}\n{names}{out}\nsave(encode(found), Path(sys.argv[1]))"
    here = "import sys\nfound = load(sys.argv[1])\n" + out
    assert run(there, tmp_path) == run(here, tmp_path)


def test_a_module_beside_the_notebook_counts_by_its_source(tmp_path, monkeypatch):
    """A function of the user's own module changes with the module once it is loaded again, comments aside."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(
        sys, "dont_write_bytecode", True
    )  # two edits within a second look alike to a bytecode cache
    path = tmp_path / "nbflow_example_module.py"
    path.write_text("import nbflow_example_inner as inner\nLIMIT = 3\ndef clean(x): return x[:LIMIT]\n")
    inner = tmp_path / "nbflow_example_inner.py"
    inner.write_text("A = 1\n")
    module = importlib.import_module("nbflow_example_module")
    notebook = Notebook("import nbflow_example_module as m\ndef f(x): return m.clean(x)")
    before = function_digest(notebook["f"]), fingerprint(module.clean), fingerprint(module)
    assert len(source_token("nbflow_example_module")) == 32

    path.write_text(
        "import nbflow_example_inner as inner\nLIMIT = 3  # a few\n\ndef clean(x): return x[:LIMIT]\n"
    )
    importlib.reload(module)
    assert (function_digest(notebook["f"]), fingerprint(module.clean), fingerprint(module)) == before

    path.write_text("import nbflow_example_inner as inner\nLIMIT = 4\ndef clean(x): return x[:LIMIT]\n")
    assert function_digest(notebook["f"]) == before[0], "an edit that is not loaded does not run"
    importlib.reload(module)
    after = function_digest(notebook["f"]), fingerprint(module.clean), fingerprint(module)
    assert not set(after) & set(before)

    inner.write_text("A = 2\n")
    importlib.reload(sys.modules["nbflow_example_inner"])
    assert function_digest(notebook["f"]) != after[0]


def test_installed_packages_count_by_name():
    """The standard library, installed packages and nbflow itself have no source token."""
    import json

    import numpy as np

    assert source_token("json") == source_token("numpy") == source_token("nbflow.values.fingerprint") == b""
    assert fingerprint(json.dumps) != fingerprint(json.dump)
    assert fingerprint(np.mean).stable


FORMATTED = {
    "x = 1": ["x=1", "x = 1  # one", "\n\nx = (1)\n", "x = \\\n  1", "x = 0x1"],
    "def f(a, b):\n    return a": ["def f(a,\n      b):\n  'doc'\n  return (a)", "def f(a, b): return a"],
    "class A:\n    pass": ["class A:\n    'doc'\n    pass", "class A: pass  # empty"],
    "x = await fetch('a')": ['x = (await fetch("a"))'],
    "async with a as b:\n    pass": ["async with a as b: pass"],
    "'shown'": ['"shown"'],
    "f();": ["f() ;  # quiet"],
}


@pytest.mark.parametrize("source", FORMATTED)
def test_formatting_of_a_cell_does_not_count(source):
    """A cell's digest survives comments, blank lines, quotes, brackets and docstrings."""
    for other in FORMATTED[source]:
        assert source_digest(other) == source_digest(source), other


def test_what_a_cell_does_counts():
    """Cells that do or show something else have digests of their own."""
    cells = [
        "x = 1", "x = 1.0", "x = True", "y = 1", "x == 1", "x", "x;", "'x'", "'y'", "b'x'", "", "pass", "x: int = 1", "del x", "x = 1 + 2", "x = 2 + 1",
        "def f(): return 1", "def g(): return 1", "async def f(): return 1", "lambda: 1", "await x", "%time x", "%time y", "!ls", "x = (", "f'{x}'", "f'{x!r}'", "f'{x:3}'",
        "for i in x: pass", "async for i in x: pass", "import a", "import a as b", "from a import b", "from . import b", "None", "...", "1", "-1", "1j", "9" * 5000, "8" * 5000,
    ]  # fmt: skip
    assert len({source_digest(cell) for cell in cells}) == len(cells)


def test_a_cell_that_does_not_parse_counts_as_text():
    """Magics that nobody transformed are compared line by line; trailing blanks do not count."""
    assert source_digest("%matplotlib inline  \n\nx = 1\n") == source_digest("\n%matplotlib inline\n\nx = 1")
    assert source_digest("%matplotlib inline") != source_digest("%matplotlib qt")


def test_bytecode_is_read_once():
    """The same code object is taken apart once, and let go when it dies."""
    function = Notebook(CELL)["scale"]
    assert code_of(function.__code__) is code_of(function.__code__)


def test_one_function_has_one_digest_in_every_process():
    """Digests of code do not depend on the hash seed, sets in constants included."""
    script = (
        textwrap.dedent(CELL)
        + "\nfrom nbflow.values.code_digest import function_digest\nprint(function_digest(scale).hex())"
    )
    found = {run(script) for _ in range(3)}
    assert found == {function_digest(Notebook(CELL)["scale"]).hex()}
