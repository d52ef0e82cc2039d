"""Plain IPython in a terminal, without any kernel: nothing breaks, and a second terminal is told who has the run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from tests.e2e.kit import completed, infos

CELLS = """
%load_ext nbflow
ip = get_ipython()
def cell(text):
    return ip.run_cell(text, store_history=True)
cell("%%durable one\\nprint('ran one')\\nx = sum([1, 2])\\nx")
cell("%%durable broken\\nz = 1 / (x - 3)")
cell("%%durable odd --nonsense\\nprint('never')")
cell("%%durable bad\\nimport threading\\nlock = [threading.Lock()]")
cell("import nbflow\\n@nbflow.durable\\ndef call(n):\\n    print('called')\\n    return n * 2\\ncall(21)")
cell("%nbflow status")
cell("%nbflow sql select count(*) n from runs")
cell("await __import__('asyncio').sleep(0)")
WAIT
cell("%%durable two\\nimport asyncio\\nawait asyncio.sleep(0.01)\\ny = x + 1\\nprint('y is', y)")
cell("%unload_ext nbflow")
cell("print('still', x, y)")
"""


def ipython(folder: Path, text: str) -> subprocess.Popen[str]:
    """Start a real `ipython` that is fed these lines."""
    script = folder / "typed.ipy"
    script.write_text(text)
    command = [
        sys.executable,
        "-m",
        "IPython",
        "--no-banner",
        "--colors=nocolor",
        "--no-confirm-exit",
        str(script),
    ]
    return subprocess.Popen(
        command,
        cwd=folder,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_a_terminal_shows_errors_tables_and_results_and_a_second_one_is_refused(
    tmp_path: Path, _own_store: Path
) -> None:
    """Failure, usage error, value that cannot be stored, calls, status, SQL, await, a refusal, SIGKILL, and a restore."""
    first = ipython(
        tmp_path, CELLS.replace("WAIT", "print('wai' + 'ting', flush=True)\nimport time; time.sleep(60)")
    )
    assert first.stdout is not None
    said = ""
    while "waiting" not in said:
        line = first.stdout.readline()
        assert line, said
        said += line
    for expected in (
        "ran one",
        "ZeroDivisionError",
        "UsageError",
        "CannotStore",
        "lock[0]",
        "called",
        "division by zero",
        "42",
    ):
        assert expected in said, said
    assert "never" not in said
    assert said.count("Traceback") <= 2, said
    second = ipython(tmp_path, CELLS.replace("WAIT", "")).communicate(timeout=60)[0]
    assert "LeaseHeld" in second and f"process {first.pid}" in second and "%nbflow steal" in second
    assert "ran one" not in second and "called" not in second
    first.send_signal(signal.SIGKILL)
    first.communicate()
    third = ipython(tmp_path, CELLS.replace("WAIT", "")).communicate(timeout=60)[0]
    assert "restored one" in third and "y is 4" in third and "still 3 4" in third
    assert "called" not in third and "42" in third
    assert len(infos(_own_store)) == 1
    done = completed(_own_store)
    assert done["one"] == done["two"] == 1 and len(done) == 3
