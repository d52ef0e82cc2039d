"""Rolling back by hand in a notebook, where a failing cell undoes nothing by itself."""

from __future__ import annotations

from collections.abc import Callable

from tests.notebook.kernel import Kernel

DEFINE = """\
import nbflow

async def undo(result, name):
    print("undo", name, result)

@nbflow.durable(compensate=undo)
def make(name):
    print("make", name)
    return name.upper()"""
CELL = "%%durable\na, b = make('a'), make('b')"


def test_a_rollback_in_a_new_kernel_undoes_what_the_old_one_did(new_kernel: Callable[..., Kernel]) -> None:
    """With async compensators in the kernel's own loop; the durable cell around the calls then runs again."""
    kernel = new_kernel()
    for source in ("%load_ext nbflow", DEFINE):
        assert kernel.run(source).ok
    assert "make a\nmake b\n" == kernel.run(CELL).stdout
    assert "make c\n" == kernel.run("make('c')").stdout
    assert not kernel.run("1 / 0").ok
    kernel.kill()
    kernel.restart()
    for source in ("%load_ext nbflow", DEFINE):
        assert kernel.run(source).ok
    cell = kernel.run("len(nbflow.rollback('not today'))")

    assert ["undo b B", "undo a A"] == cell.stdout.splitlines()[-2:]
    assert {"undo c C"} == set(cell.stdout.splitlines()[:-2])
    assert "make a\nmake b\n" == kernel.run(CELL).stdout
    assert "0" != cell.result
