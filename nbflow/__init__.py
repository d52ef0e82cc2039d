"""nbflow makes notebooks survive: durable cells and functions, recorded as steps, replayed after a crash."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

#: Where each public name lives. They are loaded when first used: `import nbflow` stays light.
_HOMES = {
    "DurableFunction": "nbflow.runtime.steps",
    "RetryPolicy": "nbflow.core.retry",
    "Run": "nbflow.runtime.runs",
    "current_run": "nbflow.runtime.runs",
    "durable": "nbflow.runtime.steps",
    "errors": "nbflow.core.errors",
    "load_ipython_extension": "nbflow.notebook.extension",
    "output": "nbflow.queries",
    "run": "nbflow.runtime.runs",
    "runs": "nbflow.queries",
    "sql": "nbflow.queries",
    "steps": "nbflow.queries",
    "unload_ipython_extension": "nbflow.notebook.extension",
}

__all__ = [
    "DurableFunction",
    "RetryPolicy",
    "Run",
    "__version__",
    "current_run",
    "durable",
    "errors",
    "load_ipython_extension",
    "output",
    "run",
    "runs",
    "sql",
    "steps",
    "unload_ipython_extension",
]

if TYPE_CHECKING:
    from nbflow.core import errors as errors
    from nbflow.core.retry import RetryPolicy as RetryPolicy
    from nbflow.notebook.extension import load_ipython_extension as load_ipython_extension
    from nbflow.notebook.extension import unload_ipython_extension as unload_ipython_extension
    from nbflow.queries import output as output
    from nbflow.queries import runs as runs
    from nbflow.queries import sql as sql
    from nbflow.queries import steps as steps
    from nbflow.runtime.runs import Run as Run
    from nbflow.runtime.runs import current_run as current_run
    from nbflow.runtime.runs import run as run
    from nbflow.runtime.steps import DurableFunction as DurableFunction
    from nbflow.runtime.steps import durable as durable


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'nbflow' has no attribute {name!r}")
    module = import_module(home)
    value = module if home.endswith(f".{name}") else getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
