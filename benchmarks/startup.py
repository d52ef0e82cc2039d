"""Start-up: what `%load_ext nbflow` adds to a notebook that imports duckdb and pandas anyway."""

from __future__ import annotations

import time
from collections.abc import Iterator

from benchmarks import harness
from benchmarks.harness import Bench, Group, Row, Sample, Target

# --- in the child ---------------------------------------------------------------------------------


def imports() -> dict[str, float]:
    """Import what a data notebook imports anyway, and nothing of nbflow."""
    import duckdb  # noqa: F401
    import pandas  # noqa: F401, ICN001

    return {"ready": time.monotonic()}


def in_ipython(extension: bool) -> float:
    """Return the seconds that the first cell of a notebook takes, with or without `%load_ext nbflow`."""
    from IPython.core.interactiveshell import InteractiveShell

    shell = InteractiveShell.instance()
    began = time.perf_counter()
    if extension:
        shell.run_line_magic("load_ext", "nbflow")
    import duckdb  # noqa: F401
    import pandas  # noqa: F401, ICN001

    return time.perf_counter() - began


# --- in the parent --------------------------------------------------------------------------------


def measure(bench: Bench) -> Iterator[tuple[str, Sample]]:
    """Two fresh processes each time; the first pair only warms the page cache."""
    for number in range(bench.repetitions + 1):
        floor = harness.child(__file__, "in_ipython", extension=False)
        loaded = harness.child(__file__, "in_ipython", extension=True)
        if number:
            yield "startup.extension", Sample(loaded, floor)


GROUPS = (
    Group(
        "startup.extension",
        (
            Row(
                "startup.extension",
                "`%load_ext nbflow`, then `import duckdb, pandas`",
                "`import duckdb, pandas`",
                Target("extra", 0.25),
            ),
        ),
        measure,
    ),
)

if __name__ == "__main__":
    harness.serve(imports, in_ipython)
