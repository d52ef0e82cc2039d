"""A board in a real kernel: it knows the kernel's run, changes it when asked, and follows it while a cell runs."""

from __future__ import annotations

import os
from pathlib import Path

from tests.board.board_kit import until
from tests.notebook.kernel import Kernel

SETTING_UP = """
%load_ext nbflow
import threading, time, nbflow
from nbflow.board import Board
from nbflow.board.here import Kernel
from nbflow.notebook.extension import loaded_in
host = loaded_in(get_ipython()).host
board = Board(host.store(), here=Kernel(host))
"""


def test_a_board_in_a_kernel_changes_its_run_and_follows_it(tmp_path: Path) -> None:
    """New and resume attach in this kernel, never under a running cell; its own steps are news while the cell runs."""
    with Kernel(tmp_path, {**os.environ, "NBFLOW_STORE": str(tmp_path / ".nbflow")}) as kernel:
        assert kernel.run(SETTING_UP).ok
        assert kernel.run("%%durable one\nx = sum(range(10))").ok
        assert kernel.run(
            "first = host.session.run\nprint([r['current'] for r in board.ask('runs')['rows']])"
        ).stdout == ("[True]\n")
        assert (
            "press Run All"
            in kernel.run("print(board.ask('act', {'action': 'new', 'run': first})['said'])").stdout
        )
        answer = kernel.run(
            "print(board.ask('act', {'action': 'resume', 'run': first})['said'], host.session.run == first)"
        )
        assert answer.stdout.endswith("press Run All. True\n")
        clicked = kernel.run(
            "said = []\n"
            "def click():\n"
            "    try:\n"
            "        board.ask('act', {'action': 'new', 'run': first})\n"
            "    except Exception as error:\n"
            "        said.append(str(error))\n"
            "thread = threading.Thread(target=click)\nthread.start()\nthread.join()\nprint(said, host.session.run == first)"
        )
        assert "A cell is running" in clicked.stdout
        assert clicked.stdout.endswith(" True\n")
        followed = kernel.run(
            "news = []\n"
            "board.ask('watch', {'view': 'v', 'run': first})\n"
            "board.listen('v', news.append)\n"
            "@nbflow.durable\n"
            "def step(i):\n    return i\n"
            "until = time.monotonic() + 20\n"
            "i = 0\n"
            "while len(news) < 3 and time.monotonic() < until:\n"
            "    step(i)\n    i += 1\n    time.sleep(0.02)\n"
            "print(len(news) >= 3, {push['run'] for push in news} == {first})\n"
            "board.close()"
        )
        assert followed.stdout == "True True\n"


SLOW_CLICK = """
real = host.attach
def slow(**how):
    open('begun', 'w').close()
    time.sleep(0.5)
    return real(**how)
host.attach = slow
def click():
    while host.place is not None:
        time.sleep(0.005)
    board.ask('act', {'action': 'new', 'run': first})
thread = threading.Thread(target=click)
thread.start()
"""


def test_no_cell_begins_while_a_click_changes_the_run(tmp_path: Path) -> None:
    """A cell that is started while a click attaches another run has that run from its first line to its last."""
    with Kernel(tmp_path, {**os.environ, "NBFLOW_STORE": str(tmp_path / ".nbflow")}) as kernel:
        assert kernel.run(SETTING_UP).ok
        assert kernel.run("%%durable one\nx = sum(range(10))").ok
        assert kernel.run("first = host.session.run").ok
        assert kernel.run(SLOW_CLICK).ok
        until((tmp_path / "begun").exists, what="the click")
        cell = kernel.run(
            "seen = {host.session.run}\nthread.join()\ntime.sleep(0.1)\nseen.add(host.session.run)"
        )
        assert cell.ok
        assert kernel.run("print(len(seen), first in seen)").stdout == "1 False\n"
