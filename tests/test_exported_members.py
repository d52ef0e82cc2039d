"""The public names of nbflow are a promise: they change on purpose only."""

from __future__ import annotations

import nbflow

PUBLIC = {
    "Again",
    "Branch",
    "Bulkhead",
    "CircuitBreaker",
    "Continue",
    "Decision",
    "DurableFunction",
    "Failed",
    "Join",
    "Machine",
    "Observer",
    "RateLimit",
    "RetryPolicy",
    "Run",
    "Skipped",
    "Split",
    "__version__",
    "agate",
    "approve",
    "batch",
    "batch_results",
    "batches",
    "budget",
    "cancel",
    "charge",
    "child",
    "current_run",
    "dashboard",
    "durable",
    "errors",
    "execute",
    "fork",
    "fsm",
    "gate",
    "gates",
    "load_ipython_extension",
    "map",
    "observe",
    "output",
    "publish",
    "published",
    "quality_gate",
    "reject",
    "retry_step",
    "rollback",
    "run",
    "runs",
    "signal",
    "sleep",
    "sleep_until",
    "spent",
    "sql",
    "steps",
    "tag",
    "unload_ipython_extension",
    "wait_for",
}


def test_public_names_are_exactly_these() -> None:
    """Adding or removing a name means editing this test."""
    assert set(nbflow.__all__) == PUBLIC
    assert set(dir(nbflow)) >= PUBLIC


def test_every_public_name_is_there_and_documented() -> None:
    """Each loads, and says in its docstring what it is."""
    for name in PUBLIC - {"__version__"}:
        value = getattr(nbflow, name)
        assert (value.__doc__ or "").strip(), name


def test_an_unknown_name_is_an_attribute_error() -> None:
    """Lazy loading must not turn a typing mistake into something else."""
    assert not hasattr(nbflow, "durabel")


def test_version_is_that_of_the_package() -> None:
    """pyproject.toml and the program agree."""
    import tomllib
    from pathlib import Path

    project = tomllib.loads(
        (Path(__file__).resolve().parent.parent / "pyproject.toml").read_text(encoding="utf-8")
    )
    assert nbflow.__version__ == project["project"]["version"]
