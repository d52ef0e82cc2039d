"""Watch a kernel from inside without touching what it runs: which cells' bodies ran, and a halt in one of them.

`startup(folder)` puts a startup file for IPython there. In each kernel with that
`IPYTHONDIR` an audit hook notes in `ran` the number of every code cell whose
body begins to run (a restored cell's body does not), and halts in cell number
`HALT_IN` until it is killed or the file `halted` is taken away. Cells are
numbered from 1 in the order of execution, as papermill sends them.

Audit hooks see every code object that is executed, so it makes no difference
whether IPython runs the cell or nbflow does.
"""

from __future__ import annotations

from pathlib import Path

_STARTUP = """\
def _watch():
    import os, sys, time

    number, halt = [0], int(os.environ.get("HALT_IN", "0"))
    ran, halted = {ran!r}, {halted!r}

    def begin(info):
        if info.store_history:  # `%%capture` runs a cell inside the cell
            number[0] += 1
            seen.clear()

    seen = []

    def audit(event, args):
        if event != "exec" or not number[0] or seen:
            return
        code = args[0]
        # The text that makes a cell durable is a call of its own, with the cell's body in it.
        if "ipykernel_" not in code.co_filename or code.co_name != "<module>":
            return
        if {{"run_cell_magic", "nbflow_await_cell"}} & set(code.co_names) and "--auto-cell" in code.co_consts:
            return
        seen.append(True)
        line = os.open(ran, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        os.write(line, b"%d\\n" % number[0])
        os.close(line)
        if number[0] == halt:
            os.close(os.open(halted, os.O_WRONLY | os.O_CREAT, 0o600))
            while os.path.exists(halted):
                time.sleep(0.02)

    get_ipython().events.register("pre_run_cell", begin)
    sys.addaudithook(audit)


_watch()
del _watch
"""


def startup(folder: Path) -> dict[str, str]:
    """Put the startup file below `folder` and return the environment that makes kernels use it."""
    place = folder / "ipython" / "profile_default" / "startup"
    place.mkdir(parents=True, exist_ok=True)
    text = _STARTUP.format(ran=str(folder / "ran"), halted=str(folder / "halted"))
    (place / "00-watch.py").write_text(text)
    return {"IPYTHONDIR": str(folder / "ipython")}


def ran(folder: Path) -> list[int]:
    """Return the numbers of the cells whose body began to run, in order, and begin a new list."""
    path = folder / "ran"
    found = [int(line) for line in path.read_text().split()] if path.exists() else []
    path.unlink(missing_ok=True)
    return found
