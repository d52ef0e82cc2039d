"""Whose data `Machine.results` gives, and what a machine's parameters may be called inside another run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import nbflow
from nbflow.store.local import LocalStore, open_store


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return open_store(tmp_path / ".nbflow")


def echo() -> nbflow.Machine:
    """A machine that keeps a parameter."""
    machine = nbflow.Machine("echo", ["keep", "end"], initial="keep", final={"end"})

    @machine.state("keep")
    def keep(ctx: Any) -> str:
        ctx.kept = ctx.name
        return "end"

    return machine


def test_results_are_of_the_run_that_the_machine_made_last(store: LocalStore) -> None:
    """Children of one parent have ids that do not tell their order; another object finds the newest all the same."""
    machine = echo()
    with nbflow.run("parent", store=store):
        for number in range(8):
            machine.run(name=number)
            assert machine.results() == {"kept": number}
    assert echo().results(store=store) == {"kept": 7}


def test_results_are_of_the_run_that_was_replayed_last(store: LocalStore) -> None:
    """On Run All an early cell sees the data that it saw first, not those of the cell at the end."""
    machine, seen = echo(), []
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt), nbflow.run("parent", store=store):
            for name in ("first", "second"):
                machine.run(name=name)
                seen.append(machine.results()["kept"])
            raise KeyboardInterrupt
    assert seen == ["first", "second"] * 2
    assert len(nbflow.runs("echo", store=store)) == 2


@pytest.mark.parametrize("verb", ["run", "arun"])
async def test_a_parameter_may_be_called_name_inside_another_run(store: LocalStore, verb: str) -> None:
    """It is the machine's, and not the name of the child run."""
    machine = echo()
    with nbflow.run("parent", store=store):
        if verb == "run":
            machine.run(name="x")
        else:
            await machine.arun(name="x")
    found = nbflow.runs("echo", store=store)
    assert found.params.tolist() == [{"name": "x"}]
    assert found.parent.tolist() == nbflow.runs("parent", store=store).run.tolist()
    assert machine.results(store=store) == {"kept": "x"}
