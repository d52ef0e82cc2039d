"""Whatever is killed of a batch, in the end every notebook is completed exactly once and nothing is left."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from nbflow.core.ids import child_run_id
from nbflow.store.local import LocalStore
from tests.headless.driving import Driver, Place
from tests.headless.kit import EFFECT, effects, kill, notebook, read


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    yield made
    made.remove()


def source(place: Place, pause: float) -> Path:
    """A notebook that leaves an effect in each of three cells."""
    return notebook(
        place.folder / "in.ipynb",
        EFFECT.format(path=str(place.folder / "done")),
        f"import time; effect(f'{{day}}/a'); time.sleep({pause}); a = day + 1",
        f"effect(f'{{day}}/b'); time.sleep({pause}); b = a * 2",
        "effect(f'{day}/c'); print(b)",
    )


def proven(place: Place, run: str, count: int) -> None:
    """Every notebook is completed exactly once, no recorded cell ran again, and nothing is left of it all."""
    done = Counter(effects(place.folder / "done"))
    assert set(done) == {f"{day}/{cell}" for day in range(count) for cell in "abc"}
    with closing(LocalStore(place.folder / ".nbflow", background=False)) as store:
        assert store.run(run).state == "completed"
        items = Counter(step.step for step in store.steps(run) if step.state == "completed")
        assert items == {f"item#{number}": 1 for number in range(count)}
        for number in range(count):
            child = child_run_id(run, f"item#{number}")
            assert store.run(child).state == "completed"
            steps = store.steps(child)
            cells = Counter(step.step for step in steps if step.state == "completed")
            assert set(cells.values()) == {1}
            # A cell that was killed before it was recorded ran again, and no other one.
            interrupted = sum(step.state != "completed" for step in steps)
            again = sum(done[f"{number}/{cell}"] - 1 for cell in "abc")
            assert again <= interrupted
            output = read(place.folder / "runs" / f"{child}.ipynb")
            assert output.cells[-1].outputs[0].text == f"{(number + 1) * 2}\n"
    place.clean()


def kill_a_kernel(driver: Driver, place: Place, rng: random.Random) -> None:
    kill(rng.choice(driver.until(place.kernels)).pid)


def kill_a_worker(driver: Driver, place: Place, rng: random.Random) -> None:
    def found() -> list[int]:
        parents = [kernel.parent() for kernel in place.kernels()]
        return [parent.pid for parent in parents if parent is not None and parent.pid > 1]

    kill(rng.choice(driver.until(found)))


def kill_the_runner(driver: Driver, place: Place, rng: random.Random) -> None:
    driver.kill()


Deed = Callable[[Driver, Place, random.Random], None]


def endure(
    place: Place, count: int, workers: int, deeds: list[tuple[int, Deed]], seed: int, pause: float
) -> str:
    """Run a batch in which each deed is done at so many told cells; resume until it is completed."""
    rng = random.Random(seed)
    path = source(place, pause)
    run, cells, lost = "", 0, 0
    options: dict[str, object] = {"notebook": path, "parameters": {"day": list(range(count))}}
    for _ in range(5):
        with place.driver(**options, workers=workers) as driver:
            run = driver.wait("begin")[1]
            while deeds:
                due, deed = deeds[0]
                driver.until(lambda due=due: len(driver.of("progress")) >= due - cells)
                deeds.pop(0)
                deed(driver, place, rng)
                if deed is kill_the_runner:
                    break
            said = [] if driver.process.poll() is not None else driver.over()
            assert len(driver.of("main")) == 1, "somebody imported the script again"
            cells += len(driver.of("progress"))
            lost += len(driver.of("lost"))
        if said and said[0] == "completed":
            assert said[1:] == [str(count), "0", "0"]
            return run
        options = {"notebook": None, "resume": run, "store": place.folder / ".nbflow"}
    raise AssertionError("it was not completed after five attempts")


def test_a_small_batch_survives_the_death_of_a_worker_a_kernel_and_its_runner(place: Place) -> None:
    """Six notebooks, two workers: after a resume each is completed once, no process, socket or folder is left."""
    deeds = [(4, kill_a_worker), (8, kill_a_kernel), (13, kill_the_runner)]
    run = endure(place, 6, 2, deeds, seed=1, pause=0.02)
    proven(place, run, 6)


@pytest.mark.soak
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("seed", [4, 2026])
def test_two_hundred_notebooks_survive_two_killed_workers_a_kernel_and_the_runner(
    place: Place, seed: int
) -> None:
    """Killed at random moments and resumed, two hundred notebooks are completed exactly once each, and nothing is left."""
    rng = random.Random(seed)
    moments = sorted(rng.sample(range(20, 900), 4))
    order = [kill_a_worker, kill_a_kernel, kill_the_runner, kill_a_worker]
    rng.shuffle(order)
    run = endure(place, 200, 4, list(zip(moments, order, strict=True)), seed=seed, pause=0.01)
    proven(place, run, 200)
