"""The settings of `%config NbFlow`."""

from __future__ import annotations

from traitlets import Bool, Enum, Float, Integer, Unicode
from traitlets.config import Configurable

from nbflow.notebook.capture import DISPLAY_LIMIT


class NbFlow(Configurable):
    """Settings of nbflow in this kernel; `%config NbFlow.quiet = True` sets one."""

    workflow = Unicode(
        "",
        help="What the runs of this notebook are called. Empty: the notebook's path, as far as it is known.",
    ).tag(config=True)
    store = Unicode(
        "", help="The store's folder. Empty: $NBFLOW_STORE, else the nearest .nbflow above the notebook."
    ).tag(config=True)
    auto = Bool(False, help="Make every later cell durable, as `%nbflow auto on` does.").tag(config=True)
    display_limit = Integer(
        DISPLAY_LIMIT,
        min=0,
        help="Bytes of a cell's output that are recorded; what is beyond is shown live only.",
    ).tag(config=True)
    on_cannot_store = Enum(
        ["error", "rerun"],
        "error",
        help="What happens when a variable cannot be stored. error: the cell fails and says which part of "
        "which variable. rerun: the cell is recorded without it, and runs again when a new kernel resumes. "
        "Cells that only %nbflow auto made durable use rerun.",
    ).tag(config=True)
    quiet = Bool(False, help="Do not show the line under a restored cell.").tag(config=True)
    plan = Bool(
        True, help="Show what will be restored and what will run, and why, when a resume starts."
    ).tag(config=True)
    ambient_environ = Bool(
        True, help="Record the environment variables that a durable cell changes, with their values."
    ).tag(config=True)
    compact_after = Float(
        5.0, min=0.0, help="Seconds of idleness after which outputs are compacted into native DuckDB columns."
    ).tag(config=True)
