"""nbflow makes notebooks survive: durable cells and functions, recorded as steps, replayed after a crash."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

#: Where each public name lives. They are loaded when first used: `import nbflow` stays light.
_HOMES = {
    "Again": "nbflow.core.outcomes",
    "Branch": "nbflow.core.outcomes",
    "Bulkhead": "nbflow.runtime.policies.bulkhead",
    "CircuitBreaker": "nbflow.runtime.policies.limits",
    "Continue": "nbflow.core.outcomes",
    "Decision": "nbflow.core.gates",
    "DurableFunction": "nbflow.runtime.steps",
    "Failed": "nbflow.runtime.fanout.map",
    "Join": "nbflow.core.joins",
    "Machine": "nbflow.runtime.machine.machine",
    "Observer": "nbflow.runtime.watch.observers",
    "RateLimit": "nbflow.runtime.policies.limits",
    "RetryPolicy": "nbflow.core.retry",
    "Run": "nbflow.runtime.runs",
    "Skipped": "nbflow.runtime.fanout.map",
    "Split": "nbflow.core.outcomes",
    "agate": "nbflow.runtime.gates.asking",
    "approve": "nbflow.runtime.gates.deciding",
    "batch": "nbflow.headless.batches.api",
    "batch_results": "nbflow.headless.batches.results",
    "batches": "nbflow.headless.batches.results",
    "budget": "nbflow.runtime.budgets",
    "cancel": "nbflow.runtime.waits.cancelling",
    "charge": "nbflow.runtime.budgets",
    "child": "nbflow.runtime.children.child",
    "current_run": "nbflow.runtime.runs",
    "dashboard": "nbflow.widgets.dashboard",
    "durable": "nbflow.runtime.steps",
    "errors": "nbflow.core.errors",
    "execute": "nbflow.headless.execute",
    "fork": "nbflow.runtime.forks",
    "fsm": "nbflow.widgets.fsm",
    "gate": "nbflow.runtime.gates.asking",
    "gates": "nbflow.runtime.gates.deciding",
    "load_ipython_extension": "nbflow.notebook.extension",
    "map": "nbflow.runtime.fanout.map",
    "observe": "nbflow.runtime.watch.observers",
    "output": "nbflow.queries",
    "publish": "nbflow.runtime.attributes",
    "published": "nbflow.queries",
    "quality_gate": "nbflow.runtime.gates.quality",
    "reject": "nbflow.runtime.gates.deciding",
    "retry_step": "nbflow.runtime.forks",
    "rollback": "nbflow.runtime.runs",
    "run": "nbflow.runtime.runs",
    "runs": "nbflow.queries",
    "signal": "nbflow.runtime.waits.signals",
    "sleep": "nbflow.runtime.waits.timers",
    "sleep_until": "nbflow.runtime.waits.timers",
    "spent": "nbflow.runtime.budgets",
    "sql": "nbflow.queries",
    "steps": "nbflow.queries",
    "tag": "nbflow.runtime.attributes",
    "unload_ipython_extension": "nbflow.notebook.extension",
    "wait_for": "nbflow.runtime.waits.signals",
}

#: Names that stand for a module and not for something in it.
_MODULES = frozenset({"errors"})

__all__ = [
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
]

if TYPE_CHECKING:
    from nbflow.core import errors as errors
    from nbflow.core.gates import Decision as Decision
    from nbflow.core.joins import Join as Join
    from nbflow.core.outcomes import Again as Again
    from nbflow.core.outcomes import Branch as Branch
    from nbflow.core.outcomes import Continue as Continue
    from nbflow.core.outcomes import Split as Split
    from nbflow.core.retry import RetryPolicy as RetryPolicy
    from nbflow.headless.batches.api import batch as batch
    from nbflow.headless.batches.results import batch_results as batch_results
    from nbflow.headless.batches.results import batches as batches
    from nbflow.headless.execute import execute as execute
    from nbflow.notebook.extension import load_ipython_extension as load_ipython_extension
    from nbflow.notebook.extension import unload_ipython_extension as unload_ipython_extension
    from nbflow.queries import output as output
    from nbflow.queries import published as published
    from nbflow.queries import runs as runs
    from nbflow.queries import sql as sql
    from nbflow.queries import steps as steps
    from nbflow.runtime.attributes import publish as publish
    from nbflow.runtime.attributes import tag as tag
    from nbflow.runtime.budgets import budget as budget
    from nbflow.runtime.budgets import charge as charge
    from nbflow.runtime.budgets import spent as spent
    from nbflow.runtime.children.child import child as child
    from nbflow.runtime.fanout.map import Failed as Failed
    from nbflow.runtime.fanout.map import Skipped as Skipped
    from nbflow.runtime.fanout.map import map as map
    from nbflow.runtime.forks import fork as fork
    from nbflow.runtime.forks import retry_step as retry_step
    from nbflow.runtime.gates.asking import agate as agate
    from nbflow.runtime.gates.asking import gate as gate
    from nbflow.runtime.gates.deciding import approve as approve
    from nbflow.runtime.gates.deciding import gates as gates
    from nbflow.runtime.gates.deciding import reject as reject
    from nbflow.runtime.gates.quality import quality_gate as quality_gate
    from nbflow.runtime.machine.machine import Machine as Machine
    from nbflow.runtime.policies.bulkhead import Bulkhead as Bulkhead
    from nbflow.runtime.policies.limits import CircuitBreaker as CircuitBreaker
    from nbflow.runtime.policies.limits import RateLimit as RateLimit
    from nbflow.runtime.runs import Run as Run
    from nbflow.runtime.runs import current_run as current_run
    from nbflow.runtime.runs import rollback as rollback
    from nbflow.runtime.runs import run as run
    from nbflow.runtime.steps import DurableFunction as DurableFunction
    from nbflow.runtime.steps import durable as durable
    from nbflow.runtime.waits.cancelling import cancel as cancel
    from nbflow.runtime.waits.signals import signal as signal
    from nbflow.runtime.waits.signals import wait_for as wait_for
    from nbflow.runtime.waits.timers import sleep as sleep
    from nbflow.runtime.waits.timers import sleep_until as sleep_until
    from nbflow.runtime.watch.observers import Observer as Observer
    from nbflow.runtime.watch.observers import observe as observe
    from nbflow.widgets.dashboard import dashboard as dashboard
    from nbflow.widgets.fsm import fsm as fsm


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'nbflow' has no attribute {name!r}")
    module = import_module(home)
    value = module if name in _MODULES else getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
