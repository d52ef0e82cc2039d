"""What comes of odd input and odd combinations: parts of a run that each work by themselves, put together."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest

import nbflow
from nbflow.core.errors import UnknownState, UsageError
from nbflow.runtime.workers import limit_of
from tests.notebook.kernel import Kernel


@nbflow.durable(version="1")
def double(number: int) -> int:
    """Return twice the number."""
    return 2 * number


def machine(name: str, **options: Any) -> nbflow.Machine:
    """Return a machine of one state that keeps its parameter `n`."""
    made = nbflow.Machine(name, ["work", "end"], initial="work", final={"end"}, **options)

    @made.state("work")
    def work(ctx: Any) -> str:
        ctx.kept = ctx.get("n")
        return "end"

    return made


# --- nothing that is given may make a journal unreadable ------------------------------------------------------------


@pytest.mark.parametrize("version", [3, "3", None])
def test_versions_given_as_numbers_leave_a_run_that_can_be_read(version: Any) -> None:
    """A version that is a number, a text or None is recorded as text, so the run can be read again."""

    @nbflow.durable(version=version)
    def work() -> int:
        return 7

    with nbflow.run("versions", version=version) as current:
        work()
    assert 1 == len(nbflow.steps(current))
    assert ["completed"] == list(nbflow.runs("versions").state)


@pytest.mark.parametrize("version", [1.5, True, ["1"]])
def test_a_version_that_is_none_is_refused_before_anything_is_recorded(version: Any) -> None:
    """What is no version is refused by a run, a durable function and a machine alike, and no run is left behind."""
    with pytest.raises(UsageError, match="version"), nbflow.run("versions", version=version):
        pass
    with pytest.raises(UsageError, match="version"):
        nbflow.durable(version=version)(len)
    with pytest.raises(UsageError, match="version"):
        machine("versions", version=version)
    assert nbflow.runs().empty


@pytest.mark.parametrize("name", [5, ""])
def test_a_durable_function_is_named_by_a_text(name: Any) -> None:
    """A name that a record cannot hold is refused where the function is defined."""
    with pytest.raises(UsageError, match="name"):
        nbflow.durable(name=name)(len)


def test_tags_that_are_numbers_are_kept_as_text() -> None:
    """Tags given to a run or a machine that are numbers become text, as those of `nbflow.tag` do."""
    with nbflow.run("tagged", tags={"fold": 3}) as current:  # type: ignore[dict-item]
        assert {"fold": "3"} == current.tags
    machine("tagged too").run(tags={"fold": 3})  # type: ignore[dict-item]
    assert 2 == len(nbflow.runs(tags={"fold": 3}))


@pytest.mark.parametrize("tags", [["a"], 5, {"a": None}, {5: "a"}])
def test_what_is_no_tag_is_refused_before_a_run_is_opened(tags: Any) -> None:
    """Tags that are no tags are refused by a run and by a machine, and no run is left behind."""
    with pytest.raises(UsageError, match="[Tt]ag"), nbflow.run("tagged", tags=tags):
        pass
    with pytest.raises(UsageError, match="[Tt]ag"):
        machine("tagged").run(tags=tags)
    assert nbflow.runs().empty


@pytest.mark.parametrize("value", [10**30, "\ud800", object()])
def test_parameters_that_no_record_can_hold_are_refused_by_name(value: Any) -> None:
    """A parameter that the journal cannot hold is a `UsageError`, and no run is left behind."""
    with pytest.raises(UsageError, match="parameters must be JSON-able"):
        machine("given").run(n=value)
    assert nbflow.runs().empty


# --- machines -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options", [{"max_parallel": 0}, {"max_parallel": float("nan")}, {"observers": [5]}, {"observers": 5}]
)
def test_options_of_a_machine_are_checked_where_it_is_defined(options: dict[str, Any]) -> None:
    """A machine that could not run is refused when it is made, not when its run is open already."""
    with pytest.raises(UsageError):
        machine("optioned", **options)
    assert nbflow.runs().empty


@pytest.mark.parametrize("at", ["tomorrow", float("nan"), True, "5s"])
def test_the_instant_of_a_timer_is_no_duration(at: Any) -> None:
    """`at=` takes an instant; a duration such as "5s" would be one in 1970, and is refused."""
    made = nbflow.Machine("timed", ["wait", "end"], initial="wait", final={"end"})
    with pytest.raises(UsageError, match="no instant"):
        made.state("wait", kind="timer", at=at, to="end")


def test_a_decorator_without_its_state_says_how_to_write_it() -> None:
    """`@machine.state` without parentheses says what is missing."""
    made = nbflow.Machine("bare", ["work", "end"], initial="work", final={"end"})
    with pytest.raises(UsageError, match="without a state.*@machine.state\\(STATE\\)"):

        @made.state
        def work(ctx: Any) -> str:
            return "end"


def test_one_function_can_be_the_task_of_two_states() -> None:
    """Decorators of two states over one function make it the task of both, whatever attributes it has."""
    made = nbflow.Machine("shared", ["first", "second", "end"], initial="first", final={"end"})
    seen = []

    def task(ctx: Any) -> str:
        seen.append(ctx.state)
        return "second" if ctx.state == "first" else "end"

    task.label = "end"  # type: ignore[attr-defined]
    made.state("first")(made.state("second", to=["second", "end"])(task))
    assert "end" == made.run()
    assert ["first", "second"] == seen


def test_a_timeout_of_centuries_is_none() -> None:
    """A timeout longer than any timer can be set to does not keep a state from running."""
    made = nbflow.Machine("patient", ["work", "end"], initial="work", final={"end"}, timeout=1e300)
    made.state("work", timeout=1e300, to="end")(lambda _ctx: "end")
    assert "end" == made.run()
    assert "end" == asyncio.run(made.arun(new=True))


def test_a_run_in_a_state_that_was_renamed_is_not_left_running() -> None:
    """`UnknownState` on a resume names run, state and machine; the run is failed, and the old machine carries it on."""

    def made(states: list[str], *, broken: bool) -> nbflow.Machine:
        result = nbflow.Machine("renamed", states, initial=states[0], final={states[-1]})

        def task(ctx: Any) -> str:
            if broken:
                raise OSError("not today")
            return states[-1]

        result.state(states[0], to=states[-1])(task)
        return result

    with pytest.raises(OSError, match="not today"):
        made(["load", "end"], broken=True).run()
    run = nbflow.runs("renamed").run[0]
    with pytest.raises(UnknownState, match=f"{run}.*'load'.*'renamed'") as caught:
        made(["read", "end"], broken=False).resume(run)
    assert (run, "renamed", "load") == (caught.value.run, caught.value.machine, caught.value.state)
    assert ["failed"] == list(nbflow.runs("renamed").state)
    assert "end" == made(["load", "end"], broken=False).resume(run)


def test_each_item_of_a_map_gets_the_results_of_its_own_machine() -> None:
    """`results()` speaks of the run that this item made, however many items run the same machine side by side."""
    made = machine("side by side")
    together = threading.Barrier(limit_of(4))  # 1 where one worker is forced

    def item(number: int) -> int:
        made.run(n=number)
        together.wait(10)  # by now every item has run it
        return int(made.results()["kept"])

    with nbflow.run("fan"):
        assert [0, 1, 2, 3] == nbflow.map(item, range(4), max_parallel=4)


def test_async_items_get_the_results_of_their_own_machine_too() -> None:
    """The same holds for tasks of an event loop."""
    made = machine("in tasks")

    async def main() -> list[int]:
        together = asyncio.Barrier(limit_of(4))

        async def item(number: int) -> int:
            await made.arun(n=number)
            await together.wait()
            return int(made.results()["kept"])

        with nbflow.run("fan"):
            return await nbflow.map(item, range(4), max_parallel=4)

    assert [0, 1, 2, 3] == asyncio.run(main())


def test_a_notebook_runs_machines_side_by_side(tmp_path: Path, kernel_env: dict[str, str]) -> None:
    """In threads of a map and in tasks, in plain and durable cells: each finds the notebook's run and its own results.

    A cell enters no run, so while several children were open nothing said which run a thread or task belongs to.
    """
    with Kernel(tmp_path, kernel_env) as kernel:
        defined = kernel.run(
            "%load_ext nbflow\nimport asyncio, nbflow\n"
            "m = nbflow.Machine('inner', ['work', 'end'], initial='work', final={'end'})\n"
            "@m.state('work')\n"
            "def work(ctx):\n    nbflow.sleep(0.3)\n    ctx.kept = ctx.n\n    return 'end'\n"
            "def one(n):\n    nbflow.sleep(0.05 * (n % 10))\n    m.run(n=n)\n    return m.results()['kept']\n"
            "async def two(n):\n    await nbflow.sleep.aio(0.05 * (n % 10))\n"
            "    await m.arun(n=n)\n    return m.results()['kept']\n"
        )
        assert defined.ok, defined.outputs
        for source, shown in {
            "print(await asyncio.gather(m.arun(n=1), m.arun(n=2)))": "['end', 'end']",
            "print(nbflow.map(one, range(10, 13), progress=False))": "[10, 11, 12]",
            "%%durable fan\nprint(nbflow.map(one, range(20, 23), progress=False))": "[20, 21, 22]",
            "print(await nbflow.map(two, range(30, 33), progress=False))": "[30, 31, 32]",
        }.items():
            cell = kernel.run(source)
            assert cell.ok, cell.outputs
            assert shown in cell.stdout


# --- observers, forks ---------------------------------------------------------------------------------------------


def test_an_observer_that_records_is_refused_and_harms_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """A durable call or `publish` in a callback would be told to it without end: it is refused and logged."""

    class Recording:
        def on_step(self, event: Any) -> None:
            double(21)

        def on_publish(self, event: Any) -> None:
            nbflow.publish("seen", 1)

    with nbflow.observe(Recording()), nbflow.run("observed") as current:
        assert 2 == double(1)
        nbflow.publish("loss", 0.5)
    assert 1 == len(nbflow.steps(current))
    assert {"loss": 0.5} == nbflow.published(current)
    assert "An observer tried to record" in caplog.text


def test_an_observer_may_cancel_its_run() -> None:
    """`nbflow.cancel(event.run)` in a callback stops the run at its next step."""

    class Stopping:
        def on_step(self, event: Any) -> None:
            nbflow.cancel(event.run, "seen enough")

    with pytest.raises(nbflow.errors.RunCancelled), nbflow.observe(Stopping()), nbflow.run("stopped"):
        double(1)
        nbflow.sleep(10)
    assert ["cancelled"] == list(nbflow.runs("stopped").state)


@pytest.mark.parametrize("step", [5, None, ""])
def test_a_step_is_named_by_a_text(step: Any) -> None:
    """`fork` and `retry_step` refuse what names no step, and fork nothing."""
    with pytest.raises(ZeroDivisionError), nbflow.run("forked") as current:
        double(1)
        _ = 1 / 0
    for verb in (nbflow.fork, nbflow.retry_step):
        with pytest.raises(UsageError, match="named by its key"):
            verb(current, step)
    assert 1 == len(nbflow.runs("forked"))


def test_a_fork_of_a_machine_has_as_much_time_as_its_run_had() -> None:
    """A fork keeps the limit of the whole run, counted from when the fork was made."""
    made = nbflow.Machine("hasty", ["work", "end"], initial="work", final={"end"}, timeout=0.3)

    @made.state("work")
    def work(ctx: Any) -> str:
        nbflow.sleep(10)
        return "end"

    with pytest.raises(nbflow.errors.RunCancelled, match="timeout"):
        made.run()
    fork = nbflow.fork(nbflow.runs("hasty").run[0], "work")
    with pytest.raises(nbflow.errors.RunCancelled, match="timeout"):
        made.resume(fork)
