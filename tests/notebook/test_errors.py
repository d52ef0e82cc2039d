"""Cells that do not end well: one traceback, the user's own lines, and nothing of the machinery."""

from __future__ import annotations

import re

from tests.notebook.kernel import Kernel


def test_an_error_shows_one_traceback_with_the_line_of_the_cell(kernel: Kernel) -> None:
    """The user's own frames and line numbers, once, nothing of nbflow; the failure is recorded with what was shown."""
    cell = kernel.run("\n%%durable wrong\n\nprint('before')\ndef divide(a):\n    return a / 0\n\ndivide(1)")
    assert not cell.ok and len(cell.errors) == 1
    text = "\n".join(cell.errors[0]["traceback"])
    assert "nbflow" not in text.replace("%%durable", "") and "run_cell_magic" not in text
    assert "line 8" in text and "line 6" in text
    assert cell.stdout == "before\n"
    failed = "get_ipython()._nbflow_extension.host.session.history.latest('wrong')"
    assert kernel.run(f"{failed}.ended.error.type, b'before' in {failed}.ended.display").result == (
        "('ZeroDivisionError', True)"
    )


def test_an_await_cell_shows_one_traceback_too(kernel: Kernel) -> None:
    """The same for a cell with top-level await."""
    cell = kernel.run("%%durable wrong\nimport asyncio\nawait asyncio.sleep(0)\nawait asyncio.sleep(1 / 0)")
    assert len(cell.errors) == 1
    text = "\n".join(cell.errors[0]["traceback"])
    assert "line 4" in text and "nbflow" not in text.replace("%%durable", "")


def test_a_syntax_error_names_the_line_of_the_cell_and_records_nothing(kernel: Kernel) -> None:
    """A body that does not compile never becomes a step."""
    cell = kernel.run("%%durable typo\nx = 1\ny = = 2")
    assert cell.errors[0]["ename"] == "SyntaxError"
    text = "\n".join(cell.errors[0]["traceback"])
    assert "line 3" in text and "Traceback" not in text and "nbflow" not in text
    assert kernel.run("%%durable fine\nx = sum([1, 1])").ok
    assert (
        kernel.run("'typo' in get_ipython()._nbflow_extension.host.session.history.by_step").result == "False"
    )


def test_a_value_that_cannot_be_stored_is_named_with_its_path(kernel: Kernel) -> None:
    """The step fails and says which part of which variable; the variable stays in memory."""
    cell = kernel.run("%%durable model\nimport threading\nmodel = {'inner': [1, threading.Lock()]}")
    assert cell.errors[0]["ename"] == "CannotStore"
    assert "model" in cell.errors[0]["evalue"] and "[1]" in cell.errors[0]["evalue"]
    assert kernel.run("type(model['inner'][1]).__name__").result == "'lock'"


def test_system_exit_ends_the_cell_and_not_the_kernel(kernel: Kernel) -> None:
    """`raise SystemExit` in a durable cell does what it does elsewhere; the next cell runs."""
    kernel.run("%%durable leave\nraise SystemExit('bye')")
    assert kernel.run("1 + 1").result == "2"
    assert kernel.run("%%durable stay\nx = sum([1, 1])").ok


MACHINE = """\
%load_ext nbflow
import nbflow
machine = nbflow.Machine("m", ["a", "b"], initial="a", final={"b"})
@machine.state("a")
def a(ctx):
    return {"b": 1}[ctx.key]

def divide(n):
    return 1 / n
"""


def test_an_error_inside_a_machine_or_map_shows_the_users_own_lines(kernel: Kernel) -> None:
    """What nbflow says of it comes first, then the error itself, from the task or item on."""
    assert kernel.run(MACHINE).ok
    for source, error, line in (
        ("machine.run(key='x')", "KeyError", "line 6, in a(ctx)"),
        ("nbflow.map(divide, [1, 0])", "ZeroDivisionError", "line 9, in divide(n)"),
    ):
        text = "\n".join(kernel.run(source).errors[0]["traceback"])
        text = re.sub(r"\x1b\[[0-9;]*m", "", text)
        assert error in text and line in text, text
        assert "nbflow/runtime" not in text and source in text
