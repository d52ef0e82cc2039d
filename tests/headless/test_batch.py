"""`nbflow.batch`: rows in, notebooks out, and what becomes of it when somebody or something interferes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

import nbflow
from nbflow.core.errors import LeaseHeld, UsageError
from nbflow.headless.batches.jobs import Unwatched
from nbflow.headless.workers.perform import perform
from nbflow.store.local import LocalStore
from tests.headless.driving import Place
from tests.headless.kit import EFFECT, effects, notebook, read, wait_for


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    yield made
    made.remove()


def test_a_grid_becomes_notebooks_and_a_table_and_a_second_time_nothing(tmp_path: Path) -> None:
    """Every combination is run; the results have parameters and variables; resumed, nothing is left to do."""
    source = notebook(
        tmp_path / "in.ipynb", EFFECT.format(path=str(tmp_path / "done")), "effect(name); score = size * 10"
    )
    grid = {"size": [1, 2], "name": ["x", "y"]}
    output = str(tmp_path / "out" / "{name}-{size}.ipynb")
    done = nbflow.batch(source, grid, output=output, workers=2, collect="score", tags={"team": "blue"})
    assert (done.state, done.completed, done.failed, done.left) == ("completed", 4, 0, 0)
    assert str(done) == f"Batch {done.id} of in.ipynb is completed: 4 completed."
    table = done.results()
    assert sorted(zip(table["size"], table["name"], table["score"], strict=True)) == [
        (1, "x", 10),
        (1, "y", 10),
        (2, "x", 20),
        (2, "y", 20),
    ]
    assert set(table["state"]) == {"completed"}
    assert read(tmp_path / "out" / "y-2.ipynb").metadata.nbflow.state == "completed"
    assert not list(tmp_path.glob("runs"))
    again = nbflow.batch(source, grid, output=output, resume=True)
    assert again == done
    assert nbflow.batch(source, resume=True) == done
    assert sorted(effects(tmp_path / "done")) == ["x", "x", "y", "y"]
    with closing(LocalStore(tmp_path / ".nbflow", background=False)) as store:
        assert store.run(done.id).tags == {"team": "blue"}
    with pytest.raises(UsageError, match=r"y-2\.ipynb"):  # outputs of others stay
        nbflow.batch(source, grid, output=output)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"executor": "threads"}, "executor is"),
        ({"scheduler": "tcp://there:8786"}, "Dask"),
        ({"workers": 0}, "workers is a number from 1 on"),
        ({"max_failures": 0}, "max_failures is a number from 1 on"),
        ({"retry_failed": -1}, "retry_failed is a number from 0 on"),
        ({"resume": True}, "no batch of in.ipynb to resume"),
        ({"notebook": None}, "Name the notebook"),
        ({"kernel": "nonesuch"}, "nonesuch"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_runs(
    tmp_path: Path, options: dict[str, object], said: str
) -> None:
    """The error says which option, and no run is begun."""
    source = notebook(tmp_path / "in.ipynb", "x = 1")
    with pytest.raises(UsageError, match=said):
        nbflow.batch(**{"notebook": source, "store": tmp_path / ".nbflow", **options})
    with closing(LocalStore(tmp_path / ".nbflow", background=False)) as store:
        assert [info.state for info in store.runs() if info.state == "completed"] == []
        assert store.live.names() == []


class Vanishing(Unwatched):
    """Takes the output folder away when the first cells are done."""

    def __init__(self, folder: Path, hold: Path) -> None:
        self.folder, self.hold = folder, hold

    def progress(self, item, progress) -> None:
        if self.hold.exists():
            self.folder.rename(self.folder.with_name("elsewhere"))  # at once, whoever is writing into it
            self.hold.unlink()


def test_outputs_that_cannot_be_written_fail_their_notebooks_and_a_resume_mends_it(tmp_path: Path) -> None:
    """A full disk and a folder that vanishes midway: the error names it, no recorded cell runs again afterwards."""
    hold = tmp_path / "hold"
    source = notebook(
        tmp_path / "in.ipynb",
        EFFECT.format(path=str(tmp_path / "done")),
        "effect(f'{day}a')",
        f"import pathlib, time; path = pathlib.Path({str(hold)!r})\nif day == 1: path.touch()",
        "while path.exists(): time.sleep(0.01)",
        "effect(f'{day}b')",
    )
    full, vanishing = tmp_path / "0", tmp_path / "1"
    for folder in (full, vanishing):
        folder.mkdir()
    (full / "out.ipynb").symlink_to("/dev/full")
    done = nbflow.batch(
        source,
        {"day": [0, 1]},
        output=str(tmp_path / "{day}" / "out.ipynb"),
        workers=2,
        overwrite=True,
        watcher=Vanishing(vanishing, hold),
    )
    assert (done.state, done.failed) == ("failed", 2)
    errors = list(done.results()["error"])
    assert "No space left on device" in errors[0]
    assert "FileNotFoundError" in errors[1]
    (full / "out.ipynb").unlink()
    hold.unlink(missing_ok=True)
    again = nbflow.batch(None, resume=done.id, store=tmp_path / ".nbflow")
    assert (again.id, again.state, again.completed) == (done.id, "completed", 2)
    assert sorted(effects(tmp_path / "done")) == ["0a", "0b", "1a", "1b"]
    for folder in (full, vanishing):
        assert read(folder / "out.ipynb").metadata.nbflow.state == "completed"


class InThisProcess:
    """Does the jobs here; while it is `full`, the disk is from the moment on in which the last cell is done."""

    width = 1

    def __init__(self) -> None:
        self.jobs = 0
        self.full = True

    def run(self, job, told):
        self.jobs += 1
        output = Path(job.item.output)

        def tell(progress) -> None:
            if self.full and progress.cells == progress.total:
                output.unlink()
                output.symlink_to("/dev/full")

        return perform(job, tell)

    def stop(self) -> None: ...

    def close(self) -> None: ...


def test_an_output_that_fails_behind_the_last_cell_is_delivered_by_a_resume(tmp_path: Path) -> None:
    """The run is not over before its notebook is written: a resume restores all cells and writes it when there is room."""
    source = notebook(
        tmp_path / "in.ipynb", EFFECT.format(path=str(tmp_path / "done")), "effect('a'); print(6 * 7)"
    )
    output = tmp_path / "out.ipynb"
    workers = InThisProcess()
    options = {"executor": workers, "resume": True}
    done = nbflow.batch(source, {"a": [1]}, output=str(output), executor=workers)
    assert (done.state, done.failed) == ("failed", 1)
    again = nbflow.batch(source, {"a": [1]}, **options)
    assert (again.id, again.state, again.failed) == (done.id, "failed", 1)
    output.unlink()
    workers.full = False
    again = nbflow.batch(source, {"a": [1]}, **options)
    assert (again.id, again.state, workers.jobs) == (done.id, "completed", 3)
    document = read(output)
    assert document.metadata.nbflow.state == "completed"
    assert document.cells[-1].outputs[0].text == "42\n"
    assert effects(tmp_path / "done") == ["a"]


def held(place: Place) -> Path:
    """A notebook whose second cell waits as long as the file of its day is there."""
    return notebook(
        place.folder / "in.ipynb",
        EFFECT.format(path=str(place.folder / "done")),
        f"import pathlib, time; path = pathlib.Path({str(place.folder)!r}) / f'hold{{day}}'\n"
        "effect(f'{day}a')",
        "path.with_suffix('.seen').touch()\nwhile path.exists(): time.sleep(0.02)",
        "effect(f'{day}b')",
    )


def seen(place: Place, *days: int) -> None:
    for day in days:
        wait_for(place.folder / f"hold{day}.seen")


@pytest.mark.soak
def test_ctrl_c_drains_and_twice_stops_and_nobody_else_may_run_the_batch_meanwhile(place: Place) -> None:
    """Drained, what runs is finished; stopped, it is ended; resumed, everything is done once; two runners exclude each other."""
    holds = [place.folder / f"hold{day}" for day in range(4)]
    for hold in holds:
        hold.touch()
    store = place.folder / ".nbflow"
    with place.driver(notebook=held(place), parameters={"day": [0, 1, 2, 3]}, workers=2) as driver:
        run = driver.wait("begin")[1]
        seen(place, 0, 1)
        with pytest.raises(LeaseHeld, match=run):
            nbflow.batch(None, resume=run, store=store)
        driver.interrupt()
        driver.wait("stopping")
        for hold in holds[:2]:
            hold.unlink()
        assert driver.over() == ["interrupted", "2", "0", "2"]
        assert len(driver.of("started")) == 2
    place.clean()
    with place.driver(notebook=None, resume=run, store=store, workers=2) as driver:
        seen(place, 2, 3)
        driver.interrupt()
        driver.wait("stopping")
        driver.interrupt()
        assert driver.over() == ["interrupted", "2", "0", "2"]
    place.clean()
    for hold in holds[2:]:
        hold.unlink()
    done = nbflow.batch(None, resume=run, store=store, workers=2)
    assert (done.state, done.completed) == ("completed", 4)
    assert sorted(effects(place.folder / "done")) == sorted(
        f"{day}{part}" for day in range(4) for part in "ab"
    )


@pytest.mark.soak
def test_a_batch_is_cancelled_from_another_process(place: Place) -> None:
    """The cancel ends its notebooks within moments, they are cancelled too, and nothing is left at work."""
    for day in range(3):
        (place.folder / f"hold{day}").touch()
    with place.driver(notebook=held(place), parameters={"day": [0, 1, 2]}, workers=2) as driver:
        run = driver.wait("begin")[1]
        seen(place, 0, 1)
        with closing(LocalStore(place.folder / ".nbflow", background=False)) as store:
            assert nbflow.cancel(run, "wrong data", store=store) == "requested"
            assert driver.over() == ["cancelled", "0", "0", "3"]
            infos = {info.run: info for info in store.runs()}
    assert infos[run].state == "cancelled"
    assert [info.state for info in infos.values() if info.parent == run] == ["cancelled", "cancelled"]
    place.clean()


@pytest.mark.soak
def test_a_limit_of_failures_and_one_more_try_hold_for_real_notebooks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bad ones fail, the rest is left; later all are through, one of them on its second try from its last cell."""
    monkeypatch.chdir(tmp_path)  # where outputs go unless told otherwise
    mended = tmp_path / "mended"
    source = notebook(
        tmp_path / "in.ipynb",
        EFFECT.format(path=str(tmp_path / "done")),
        "effect(f'{day}a')",
        f"import pathlib\nif day < 2 and not pathlib.Path({str(mended)!r}).exists():\n"
        f"    pathlib.Path({str(mended)!r} + str(day)).touch(); raise ValueError(day)",
    )
    done = nbflow.batch(source, {"day": [0, 1, 2, 3]}, workers=1, max_failures=2)
    assert (done.state, done.completed, done.failed, done.left) == ("failed", 0, 2, 2)
    table = done.results()
    assert "ValueError" in table["error"][0]
    mended.touch()
    again = nbflow.batch(source, {"day": [0, 1, 2, 3]}, workers=2, resume=True, retry_failed=1)
    assert (again.id, again.state, again.completed) == (done.id, "completed", 4)
    assert sorted(effects(tmp_path / "done")) == ["0a", "1a", "2a", "3a"]
