"""Durable cells in a real kernel: killed in the middle, run again, and nobody can tell."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.notebook.kernel import Cell, Kernel

SETUP = "%load_ext nbflow\n%matplotlib inline"

#: A notebook that shows everything that can be shown and draws numbers before and after.
NOTEBOOK = [
    SETUP,
    """\
import random, sys, os, asyncio
import numpy as np, pandas as pd
import matplotlib.pyplot as plt
from IPython.display import display, HTML, update_display""",
    """\
%%durable seeded
np.random.seed(5); random.seed(5)
print(np.random.rand(2))""",
    """\
plain = np.random.rand(2), random.random()
plain""",
    """\
%%durable table
frame = pd.DataFrame({'a': np.random.rand(3), 'b': list('xyz')})
print('made', file=sys.stderr)
frame""",
    """\
%%durable plot
plt.plot(frame['a'])
plt.title('a plot')""",
    """\
%%durable shown
handle = display('working', display_id='progress')
for i in range(3):
    update_display(f'step {i}', display_id='progress')
print('done')""",
    """\
update_display('finished', display_id='progress')""",
    """\
%%durable awaited
async def later(value):
    await asyncio.sleep(0.01)
    return value * 2
doubled = await later(21)
doubled""",
    """\
%%durable magic
import tempfile
files = !echo one two
total = sum(range(100))
print(files, total)""",
    """\
%%durable changed
frame['c'] = frame['a'] * 2
alias = frame
del doubled
os.environ['NB_KERNEL_TEST'] = 'set'""",
    """\
alias is frame, list(frame.columns), 'doubled' in globals(), os.environ['NB_KERNEL_TEST']""",
    """\
%%durable drawn
values = np.random.normal(size=4), random.gauss(0, 1)
values""",
    """\
%%durable last
print(frame.round(3).to_string())
np.random.rand()""",
    """\
random.random(), np.random.rand()""",
]


def run_all(kernel: Kernel, cells: list[str]) -> list[Cell]:
    """Run cells as *Run All* does: stop at the first that fails."""
    done = []
    for source in cells:
        done.append(kernel.run(source))
        if not done[-1].ok:
            break
    return done


def theirs(cell: Cell) -> list[Any]:
    """What the cell showed, without nbflow's own notices."""
    return [
        shown
        for shown in cell.shown
        if "nbflow" not in (shown[2] if len(shown) > 2 and isinstance(shown[2], dict) else {})
    ]


def replayed(cell: Cell) -> bool:
    """Whether the cell was restored instead of run."""
    return any(text.startswith("restored ") for text in cell.notices)


@pytest.mark.parametrize("cell_ids", [True, False], ids=["lab", "papermill"])
def test_a_killed_notebook_shows_what_an_undisturbed_one_shows(
    new_kernel: Callable[..., Kernel], cell_ids: bool
) -> None:
    """SIGKILL in the middle, a new kernel, Run All: same outputs in the same order, random numbers included."""
    undisturbed = new_kernel("undisturbed", cell_ids=cell_ids)
    expected = [theirs(cell) for cell in run_all(undisturbed, NOTEBOOK)]
    kernel = new_kernel("killed", cell_ids=cell_ids)
    first = run_all(kernel, NOTEBOOK[:10])
    assert all(cell.ok for cell in first), [cell.errors for cell in first]
    kernel.kill()
    kernel.restart()
    again = run_all(kernel, NOTEBOOK)
    assert [theirs(cell) for cell in again] == expected
    restored = [cell.source.split()[1] for cell in again if any("restored" in text for text in cell.notices)]
    assert restored == ["seeded", "table", "plot", "shown", "awaited", "magic"]


def test_unseeded_plain_cells_draw_the_same_numbers_after_a_resume(new_kernel: Callable[..., Kernel]) -> None:
    """Nobody set a seed: behind the first restored cell, plain cells draw what they drew before the crash."""
    cells = [
        SETUP,
        "import random\nimport numpy as np",
        "%%durable first\nx = sum([1, 2])",
        "plain = random.random(), np.random.rand()\nplain",
        "%%durable uses\nprint('ran')\ny = plain[0] + np.random.rand()\ny",
        "random.random(), np.random.rand()",
    ]
    kernel = new_kernel()
    first = run_all(kernel, cells)
    kernel.kill()
    kernel.restart()
    again = run_all(kernel, cells)
    assert [theirs(cell) for cell in again] == [theirs(cell) for cell in first]
    assert "restored uses" in again[4].notices[-1]


def test_a_cell_killed_in_the_middle_runs_again_and_no_other(
    new_kernel: Callable[..., Kernel], tmp_path: Path
) -> None:
    """SIGKILL while a cell runs: what was recorded is restored, that cell runs from its beginning."""
    log = tmp_path / "log"
    write = f"open({str(log)!r}, 'a').write"
    cells = [SETUP, f"%%durable a\n{write}('a'); x = 1", f"%%durable b\nimport os, signal\n{write}('b')\n"]
    kernel = new_kernel()
    run_all(kernel, cells[:2])
    kernel.send(cells[2] + "os.kill(os.getpid(), signal.SIGKILL)")
    kernel.manager.provisioner.process.wait()
    kernel._close()
    kernel.restart()
    again = run_all(kernel, [*cells[:2], cells[2] + "print('survived')"])
    assert log.read_text() == "abb"
    assert again[2].stdout == "survived\n"


def test_inside_capture_a_durable_cell_still_works(kernel: Kernel) -> None:
    """`%%capture` around `%%durable`: the cell is recorded, nothing breaks, and later cells show their output."""
    assert kernel.run("%%capture kept\n%%durable inner\nprint('hidden'); x = sum([1, 2])").ok
    assert kernel.run("kept.stdout, x").result == "('hidden\\n', 3)"
    assert kernel.run("%%durable outer\nprint('shown'); y = sum([1, 2])").stdout == "shown\n"


def test_the_second_kernel_refuses_what_another_one_has(new_kernel: Callable[..., Kernel]) -> None:
    """Two kernels on one notebook: the second is told who has it and how to take it; after that the first is fenced."""
    first, second = new_kernel(), new_kernel()
    run_all(first, [SETUP, "%%durable one\nx = sum([1, 1])"])
    held = run_all(second, [SETUP, "%%durable two\ny = sum([1, 1])"])[-1]
    assert held.errors[0]["ename"] == "LeaseHeld"
    assert str(first.pid) in held.errors[0]["evalue"] and "%nbflow steal" in held.errors[0]["evalue"]
    assert second.run("'y' in globals()").result == "False"
    assert second.run("%nbflow steal").ok
    assert second.run("%%durable two\ny = sum([1, 1])").ok
    for source in ("%%durable three\nz = sum([1, 1])", "%%durable four\nz = sum([1, 2])"):
        lost = first.run(source)
        assert lost.errors[0]["ename"] == "LeaseLost" and "took this run over" in lost.errors[0]["evalue"]
        assert len(lost.errors[0]["traceback"]) <= 2
    steps = second.run(
        "[s.step for s in get_ipython()._nbflow_extension.host.session.history.steps()]"
    ).result
    assert steps == "['one', 'two']"


def test_an_interrupt_leaves_the_run_resumable(kernel: Kernel) -> None:
    """The stop button ends the cell with KeyboardInterrupt; the run stays, and the cell runs again."""
    message = kernel.send(
        "%%durable slow\nimport time\nprint('started', flush=True)\nfor _ in range(300):\n    time.sleep(0.1)"
    )
    time.sleep(1.0)
    kernel.interrupt()
    cell = kernel.collect(message)
    assert cell.errors[0]["ename"] == "KeyboardInterrupt"
    assert (
        kernel.run("get_ipython()._nbflow_extension.host.session.history.state.value").result == "'running'"
    )
    assert kernel.run("%%durable slow\nprint('quick now')").stdout == "quick now\n"


def test_an_interrupted_await_cell_leaves_the_run_resumable(kernel: Kernel) -> None:
    """The stop button works for a cell that awaits."""
    message = kernel.send(
        "%%durable slow\nimport asyncio\nfor _ in range(300):\n    await asyncio.sleep(0.1)"
    )
    time.sleep(1.0)
    kernel.interrupt()
    assert kernel.collect(message).errors[0]["ename"] in ("KeyboardInterrupt", "CancelledError")
    assert kernel.run("%%durable slow\nprint('quick now')").stdout == "quick now\n"


def test_magics_and_shell_escapes_work_inside(kernel: Kernel) -> None:
    """Line magics, cell magics and `!` in the body do what they do elsewhere, and replay like the rest."""
    body = "%%durable tools\nnames = !echo a b\nwhere = %pwd\n!echo shell\nprint(names[0], bool(where))"
    first = kernel.run(body)
    assert sorted(first.stdout.split()) == ["True", "a", "b", "shell"]
    again = kernel.run(body)
    assert theirs(again) == theirs(first) and "restored tools" in again.notices[0]
    timed = kernel.run("%%durable timed\n%%time\ntotal = sum(range(10))\nprint(total)")
    assert timed.ok and "45" in timed.stdout and "Wall time" in timed.stdout
    assert kernel.run("total").result == "45"


def test_a_trailing_semicolon_hides_the_result(kernel: Kernel) -> None:
    """`expression;` shows nothing, as in any other cell."""
    assert kernel.run("%%durable quiet\n40 + 2;").result is None
    assert kernel.run("%%durable loud\n40 + 2").result == "42"


def test_editing_a_cell_an_input_or_a_helper_runs_what_depends_on_it(kernel: Kernel) -> None:
    """What is unchanged replays, what depends on the change runs, and the old version replays after the change is undone."""
    helper = "def scale(n):\n    return n * {factor}"
    cells = [
        "source = {value}",
        helper,
        "%%durable a\na = source + 1\nprint('ran a')",
        "%%durable b\nb = scale(a)\nprint('ran b')",
    ]

    def ran(value: int, factor: int) -> list[str]:
        done = run_all(kernel, [c.format(value=value, factor=factor) for c in cells])
        assert all(cell.ok for cell in done), [c.errors for c in done]
        return [cell.source.split()[1] for cell in done[2:] if not replayed(cell)]

    assert ran(1, 2) == ["a", "b"]
    assert ran(1, 2) == []
    assert ran(1, 3) == ["b"]
    assert ran(2, 3) == ["a", "b"]
    assert ran(1, 2) == []


def test_another_seed_in_a_plain_cell_runs_what_drew_from_it(kernel: Kernel) -> None:
    """A seed set on purpose is an input of the cells that draw, and of no other."""
    draw, other = (
        "%%durable draw\nimport random\nx = random.random()",
        "%%durable other\nimport math\ny = math.sqrt(4)",
    )

    def ran(seed: int) -> list[str]:
        cells = run_all(kernel, [f"import random\nrandom.seed({seed})", draw, other])
        return [cell.source.split()[1] for cell in cells[1:] if not replayed(cell)]

    assert ran(1) == ["draw", "other"]
    assert ran(1) == []
    assert ran(2) == ["draw"]
    assert ran(1) == []


def test_a_cell_that_seeds_for_itself_replays_whatever_others_seed(kernel: Kernel) -> None:
    """What a cell draws from its own seed does not depend on a seed set before it."""
    own = "%%durable own\nimport random\nrandom.seed(2)\nx = random.random()"
    for _ in range(2):
        kernel.run("import random\nrandom.seed(1)")
        cell = kernel.run(own)
    assert "restored own" in cell.notices[0]


def test_the_shell_as_a_variable_is_nobodys_output(kernel: Kernel) -> None:
    """`ip = get_ipython()` holds every variable there is; it is neither recorded nor looked into."""
    kernel.run("ip = get_ipython()")
    cell = kernel.run("%%durable uses\nvalues = [1, 2]\nip.run_line_magic('pwd', '')\nmine = ip\nvalues")
    assert cell.ok, cell.errors
    names = "[o.name for o in ip._nbflow_extension.host.session.history.latest('uses').completed.checkpoint.outputs]"
    assert kernel.run(names).result == "['values']"


def test_a_closed_file_left_behind_is_no_trouble(kernel: Kernel) -> None:
    """`with open(path) as f` in a durable cell records everything but the closed file."""
    cell = "%%durable reads\nimport os\nwith open(os.devnull) as f:\n    text = f.read()"
    assert kernel.run(cell).ok
    assert "restored reads" in kernel.run(cell).notices[0]


def test_rerun_records_the_rest_and_runs_again_in_a_new_kernel(new_kernel: Callable[..., Kernel]) -> None:
    """With --on-cannot-store rerun the cell is recorded without the variable, and only a new kernel runs it again."""
    cell = "%%durable connect --on-cannot-store rerun\nimport threading\nlock, number = threading.Lock(), 7\nprint('ran')"
    kernel = new_kernel()
    first, second = run_all(kernel, [SETUP, cell, cell])[1:]
    assert first.notices == ["lock cannot be stored, so this cell runs again in a new kernel"]
    assert "restored connect" in second.notices[0]
    kernel.kill()
    kernel.restart()
    third = run_all(kernel, [SETUP, cell])[1]
    assert third.stdout == "ran\n" and third.notices[-1].startswith("lock cannot be stored")
    assert kernel.run("type(lock).__name__, number").result == "('lock', 7)"


def test_options_do_what_they_say(kernel: Kernel) -> None:
    """--refresh, --once, --version, --ttl, --in, --out, --retries, --timeout and --no-display, one after the other."""
    run = kernel.run
    assert run("n = 0").ok
    assert run("%%durable a --in m\nprint('ran'); r = n").ok and not run("m = 1").errors
    run("%%durable a --in m\nprint('ran'); r = n")
    run("n = 5")
    assert replayed(run("%%durable a --in m\nprint('ran'); r = n"))
    assert not replayed(run("%%durable a --in m --refresh\nprint('ran'); r = n"))
    run("%%durable v --version 1\nv = sum([1, 1])")
    assert replayed(run("%%durable v --version 1\nv = sum([1, 2])"))
    assert not replayed(run("%%durable v --version 2\nv = sum([1, 2])"))
    run("%%durable o --once\no = sum([1, 1])")
    assert replayed(run("%%durable o --once\no = sum([1, 9])")) and run("o").result == "2"
    run("%%durable t --ttl 0.01\nt = sum([1, 1])")
    time.sleep(0.05)
    assert not replayed(run("%%durable t --ttl 0.01\nt = sum([1, 1])"))
    assert replayed(run("%%durable t --ttl 1h\nt = sum([1, 1])"))
    run("%%durable out --out kept\nkept, dropped = sum([1, 1]), sum([2, 2])")
    run("del kept, dropped")
    run("%%durable out --out kept\nkept, dropped = sum([1, 1]), sum([2, 2])")
    assert run("kept, 'dropped' in globals()").result == "(2, False)"
    tries = "%%durable flaky --retries 3 --delay 0.01\nimport itertools\nif next(counter) < 2:\n    raise OSError('no')\nprint('ok')"
    run("import itertools\ncounter = itertools.count()")
    assert run(tries).stdout == "ok\n"
    slow = run("%%durable late --timeout 0.3\nimport time\ntime.sleep(20)")
    assert slow.errors[0]["ename"] == "StepTimeout"
    run("%%durable mute --no-display\nprint('once'); q = sum([1, 1])")
    assert run("%%durable mute --no-display\nprint('once'); q = sum([1, 1])").stdout == ""


def test_two_cells_of_one_name_are_refused(kernel: Kernel) -> None:
    """A second cell with a taken name does not run; once the first is deleted or renamed it does."""
    assert kernel.run("%%durable same\nx = sum([1, 1])", cell_id="one").ok
    second = kernel.run("%%durable same\ny = sum([2, 2])", cell_id="two")
    assert second.errors[0]["ename"] == "UsageError" and "same" in second.errors[0]["evalue"]
    assert kernel.run("'y' in globals()").result == "False"
    assert kernel.run("%%durable same\nx = sum([1, 3])", cell_id="one").ok


def test_a_renamed_cell_says_so(kernel: Kernel) -> None:
    """A cell with a new name and known code runs, and tells under which name its result lies."""
    kernel.run("%%durable before\nx = sum([1, 1])", cell_id="one")
    kernel.run(
        "%nbflow resume "
        + kernel.run("print(get_ipython()._nbflow_extension.host.session.run)").stdout.strip()
    )
    assert "renamed" in kernel.run("%%durable after\nx = sum([1, 1])", cell_id="one").notices[0]


def test_a_definition_only_cell_always_runs(kernel: Kernel) -> None:
    """Imports and definitions are cheaper to run than to restore: nothing is recorded of them."""
    for _ in range(2):
        cell = kernel.run("%%durable helpers\nimport math\ndef area(r):\n    return math.pi * r * r")
        assert not cell.notices
    assert kernel.run("round(area(1), 2)").result == "3.14"


def test_calls_in_plain_cells_are_replayed_after_a_kill(
    new_kernel: Callable[..., Kernel], tmp_path: Path
) -> None:
    """A @durable function called in ordinary cells runs once per cell and call, whatever happens to the kernel."""
    effects = tmp_path / "effects"
    cells = [
        SETUP,
        (
            "import nbflow\n@nbflow.durable\ndef effect(n):\n"
            f"    with open({str(effects)!r}, 'a') as f:\n        f.write(f'{{n}}\\n')\n    return n * 10"
        ),
        "first = effect(1), effect(1), effect(2)",
        "second = effect(1)",
        "first, second",
    ]
    kernel = new_kernel()
    assert run_all(kernel, cells)[-1].result == "((10, 10, 20), 10)"
    kernel.kill()
    kernel.restart()
    assert run_all(kernel, cells)[-1].result == "((10, 10, 20), 10)"
    assert effects.read_text() == "1\n1\n2\n1\n"
    kernel.run(cells[2])
    assert effects.read_text() == "1\n1\n2\n1\n"


def test_auto_makes_unmarked_cells_durable(new_kernel: Callable[..., Kernel], tmp_path: Path) -> None:
    """After `%nbflow auto on` ordinary cells, await cells too, are recorded and restored; nbflow's own are left alone."""
    log = tmp_path / "log"
    cells = [
        SETUP,
        "%nbflow auto on",
        "import asyncio, os",
        f"x = sum([20, 1])\nwith open({str(log)!r}, 'a') as f:\n    f.write('x')",
        f"y = x * await asyncio.sleep(0.01, 2)\nwith open({str(log)!r}, 'a') as f:\n    f.write('y')\ny",
        "z = [y]\nz.append(x)\nz",
    ]
    kernel = new_kernel()
    first = run_all(kernel, cells)
    assert all(cell.ok for cell in first), [c.errors for c in first]
    kernel.kill()
    kernel.restart()
    again = run_all(kernel, cells)
    assert [theirs(cell) for cell in again[2:]] == [theirs(cell) for cell in first[2:]]
    assert log.read_text() == "xy"
    kernel.client.execute("hidden = sum([1, 2])", silent=True)  # as variable inspectors do
    assert kernel.run("%nbflow steps\nhidden").result == "3"
    steps = "list(get_ipython()._nbflow_extension.host.session.history.by_step)"
    assert "hidden" not in str(kernel.run(f"%nbflow status\n{steps}").result)
    assert kernel.run("%nbflow auto off").ok
    assert not kernel.run("w = sum([1, 1])").notices


@pytest.mark.parametrize(("line", "says"), [("%nbflow", "recorded"), ("%nbflow steps", "completed")])
def test_status_and_steps_are_one_table_in_text_and_html(kernel: Kernel, line: str, says: str) -> None:
    """Each is one output, which names the steps both as text and as HTML with scoped headers."""
    kernel.run("%%durable one\nx = sum([1, 2])")
    (table,) = kernel.run(line).shown
    assert table[0] == "execute_result"
    assert "one" in table[1]["text/plain"] and says in table[1]["text/plain"]
    assert '<th scope="col"' in table[1]["text/html"] and '<th scope="row"' in table[1]["text/html"]


def test_unload_takes_everything_out(kernel: Kernel) -> None:
    """After %unload_ext the shell is as it was: no magics, hooks, transforms, settings, matchers; and it loads again."""
    look = (
        "def _state(ip=get_ipython()):\n"
        "    return (sorted(ip.magics_manager.magics['cell']), sorted(ip.magics_manager.magics['line']),\n"
        "        len(ip.events.callbacks['pre_run_cell']), len(ip.events.callbacks['post_run_cell']),\n"
        "        len(ip.input_transformer_manager.cleanup_transforms), len(ip.configurables),\n"
        "        len(ip.Completer.custom_matchers), [n for n in ip.__dict__ if 'nbflow' in n])\n"
    )
    kernel.run("%unload_ext nbflow")
    kernel.run(look + "before = _state()")
    kernel.run("%load_ext nbflow")
    kernel.run("%load_ext nbflow")
    kernel.run("%%durable one\nx = sum([1, 1])")
    assert kernel.run("before == _state()").result == "False"
    assert kernel.run("%unload_ext nbflow").ok
    assert kernel.run("[pair for pair in zip(before, _state()) if pair[0] != pair[1]]").result == "[]"
    assert not kernel.run("%%durable one\nx = 1").ok
    kernel.run("%load_ext nbflow")
    assert "restored one" in kernel.run("%%durable one\nx = sum([1, 1])").notices[-1]


def test_shutting_the_kernel_down_gives_the_lease_up(new_kernel: Callable[..., Kernel]) -> None:
    """After an orderly shutdown another kernel goes on at once."""
    first = new_kernel()
    run_all(first, [SETUP, "%%durable one\nx = sum([1, 1])"])
    first.close()
    second = new_kernel()
    assert "restored one" in run_all(second, [SETUP, "%%durable one\nx = sum([1, 1])"])[1].notices[-1]
