"""What the tests of machines share: machines made of a table, and the end of a process without a process."""

from __future__ import annotations

from nbflow import Machine


class Power(BaseException):
    """Stands for the end of the process: no task may catch it, and nothing is recorded of it as a failure."""


def machine_of(tasks, name="line", **options):
    """Return a machine whose states are the keys of `tasks` and "end"; a value is a task or (task, its options)."""
    labels = [*tasks, "end"]
    machine = Machine(name, labels, initial=labels[0], final={"end"}, **options)
    for label, task in tasks.items():
        function, chosen = task if isinstance(task, tuple) else (task, {})
        machine.state(label, **chosen)(function)
    return machine


def states(store, run=None):
    """Return the states that were entered, in order, each with how it ended."""
    found = store.steps(run or store.runs()[0].run)
    return [f"{step.name} {step.state}" for step in found if step.step_kind == "state"]
