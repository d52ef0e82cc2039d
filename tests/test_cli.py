"""The command line as its users meet it: what it prints, as JSON too, and the exit code it leaves with."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner, Result

from nbflow.cli import desk
from nbflow.cli.app import app
from nbflow.core import errors
from nbflow.core.model import (
    ErrorInfo,
    Owner,
    RunChanged,
    RunOpened,
    RunTagged,
    StepCompleted,
    StepEnded,
    StepForgotten,
    StepStarted,
)
from nbflow.store.protocol import Finding
from nbflow.testing import MemoryStore, VirtualClock

ROOT = Path(__file__).resolve().parent.parent
ME = Owner(host="here", pid=1, since=0.0)


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[MemoryStore]:
    """A store in memory that every command finds."""
    memory = MemoryStore()
    # The commands close what they opened; the test looks into it afterwards.
    monkeypatch.setattr(desk, "open_existing", lambda place: memory)
    yield memory


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """As wide as a pipe, whatever the terminal or the test runner says."""
    monkeypatch.setenv("COLUMNS", "160")


def nbflow(*arguments: str, input: str | None = None) -> Result:
    return CliRunner().invoke(app, list(arguments), input=input)


def as_json(*arguments: str, code: int = 0) -> Any:
    result = nbflow(*arguments, "--json")
    assert result.exit_code == code, result.output
    return json.loads(result.stdout)


def record(
    store: MemoryStore, run: str, *records: Any, workflow: str = "flights.ipynb", **opened: Any
) -> None:
    store.create(RunOpened(run=run, workflow=workflow, **opened))
    if records:
        log = store.attach(run, ME)
        log.append(*records)
        log.release()


def a_run(store: MemoryStore, run: str = "0198c200-aaaa") -> None:
    """A run that completed `load` and then failed in `model`: seq 1 opened, 2 attached, 3 started …"""
    record(
        store,
        run,
        StepStarted(step="load", name="load", step_kind="cell", signature=b"\x01" * 32),
        StepCompleted(execution=3, step="load", seconds=1.5),
        StepStarted(step="model", name="model", step_kind="cell", signature=b"\x02" * 32),
        StepEnded(
            execution=5,
            step="model",
            state="failed",
            error=ErrorInfo(
                "ValueError", "bad leaf", "Traceback (most recent call last):\nValueError: bad leaf\n"
            ),
        ),
    )


# --- runs ---------------------------------------------------------------------------------------------------------


def test_runs_lists_newest_first_with_ids_that_show_accepts(store: MemoryStore) -> None:
    """The short ids in the listing are prefixes that name exactly one run."""
    for run in ("0198c200-aaaa-1", "0198c200-aaaa-2", "0198c200-bbbb"):
        a_run(store, run)
    lines = nbflow("runs").stdout.splitlines()[1:]
    ids = [line.split()[0] for line in lines]
    assert ids == ["0198c200-bbbb", "0198c200-aaaa-2", "0198c200-aaaa-1"]
    for short in ids:
        assert nbflow("show", short).exit_code == 0


def test_runs_filters_by_workflow_state_tag_and_time(store: MemoryStore) -> None:
    """Each filter narrows the listing, and filters add up."""
    clock = store.clock = VirtualClock(1_000.0)
    record(store, "run-old", tags={"team": "blue"})
    clock.advance(5_000)
    record(store, "run-blue", RunTagged(tags={"team": "blue"}))
    record(store, "run-other", workflow="other.ipynb")
    found = lambda *options: {run["run"] for run in as_json("runs", *options)["runs"]}  # noqa: E731
    assert found() == {"run-old", "run-blue", "run-other"}
    assert found("--workflow", "fli*") == {"run-old", "run-blue"}
    assert found("--state", "pending") == {"run-old", "run-other"}
    assert found("--state", "pending", "--state", "running") == {"run-old", "run-blue", "run-other"}
    assert found("--tag", "team=blue") == {"run-old", "run-blue"}
    assert found("--since", "1970-01-01T01:00:00+00:00") == {"run-blue", "run-other"}
    assert found("--tag", "team=blue", "--since", "1970-01-01T01:00:00+00:00") == {"run-blue"}
    assert len(as_json("runs", "--limit", "2")["runs"]) == 2


def test_runs_json_has_the_documented_keys(store: MemoryStore) -> None:
    """A program may rely on every key that docs/cli.md gives for RUN, STEP and OUTPUT."""
    a_run(store)
    (run,) = as_json("runs")["runs"]
    shown = as_json("show", run["run"])
    assert set(run) == documented("RUN")
    assert set(run["owner"]) == {"host", "pid", "since", "user", "program"}
    assert set(shown["steps"][0]) == documented("STEP")
    assert set(shown) == {"run", "steps", "plan"}


def documented(word: str) -> set[str]:
    text = (ROOT / "docs/cli.md").read_text()
    found = re.search(rf"^- {word}: (.*?)\.\n", text, re.MULTILINE | re.DOTALL)
    assert found is not None
    return set(re.findall(r"`(\w+)`", re.sub(r"\([^)]*\)", "", found[1])))


def test_runs_of_an_empty_store_says_so(store: MemoryStore) -> None:
    """An empty table would look like a failure."""
    assert nbflow("runs").stdout == "No runs.\n"
    assert nbflow("runs", "--state", "failed").stdout == "No such runs.\n"


@pytest.mark.parametrize(
    "options",
    [["--state", "lost"], ["--tag", "blue"], ["--since", "yesterdayish"], ["--limit", "0"]],
    ids=" ".join,
)
def test_a_filter_that_makes_no_sense_is_a_usage_error(store: MemoryStore, options: list[str]) -> None:
    """A typing mistake must not look like "no such runs"."""
    assert nbflow("runs", *options).exit_code == 2


def test_a_stopped_run_is_told_from_a_running_one(store: MemoryStore) -> None:
    """A run whose process died still says running; the listing says that it stopped."""
    a_run(store, "run-dead")
    store.create(RunOpened(run="run-live", workflow="w"))
    store.attach("run-live", ME)
    lines = {line.split()[0]: line for line in nbflow("runs").stdout.splitlines()[1:]}
    assert "stopped" in lines["run-dead"]
    assert "running" in lines["run-live"]
    assert "pid 1 on here" in lines["run-live"]


# --- show ---------------------------------------------------------------------------------------------------------


def test_show_tells_steps_error_with_traceback_and_plan(store: MemoryStore) -> None:
    """One look says what was done, what went wrong and what a resume would do."""
    a_run(store)
    text = nbflow("show", "0198c200").stdout
    assert "Traceback (most recent call last):" in text
    assert "restores 1 step whose code and inputs have not changed" in text
    assert "failed with ValueError in attempt 1" in text


def test_plan_restores_what_is_recorded_and_says_why_the_rest_runs(store: MemoryStore) -> None:
    """Failed, interrupted and forgotten steps run again, each for its own reason; a call inside a restored cell is not reached."""
    record(
        store,
        "run-plan",
        StepStarted(step="kept", name="kept", step_kind="cell", signature=b"1"),
        StepStarted(step="kept/call", name="call", step_kind="call", signature=b"1", parent="kept"),
        StepCompleted(execution=3, step="kept"),
        StepStarted(step="forgotten", name="forgotten", step_kind="cell", signature=b"2"),
        StepCompleted(execution=6, step="forgotten"),
        StepForgotten(step="forgotten"),
        StepStarted(step="cut", name="cut", step_kind="cell", signature=b"3"),
    )
    plan = as_json("show", "run-plan")["plan"]
    assert plan["restored"] == ["kept"]
    assert plan["to_run"] == [
        {"step": "forgotten", "why": "forgotten on request"},
        {"step": "cut", "why": "was interrupted in attempt 1"},
    ]


def test_a_finished_run_has_no_plan(store: MemoryStore) -> None:
    """Nothing is promised of a run that is final."""
    record(
        store,
        "run-done",
        StepStarted(step="a", name="a", step_kind="cell", signature=b"1"),
        StepCompleted(execution=3, step="a"),
        RunChanged(state="completed"),
    )
    assert as_json("show", "run-done")["plan"] == {"restored": [], "to_run": []}
    assert "resume" not in nbflow("show", "run-done").stdout


def test_square_brackets_in_recorded_text_are_shown_as_they_are(store: MemoryStore) -> None:
    """Names and messages are data, never markup."""
    record(
        store,
        "run-markup",
        StepStarted(step="[red]step[/nope]", name="s", step_kind="cell", signature=b"1"),
        StepEnded(
            execution=3, step="[red]step[/nope]", state="failed", error=ErrorInfo("E", "[/bold] list[int]")
        ),
        workflow="[link]w",
    )
    text = nbflow("show", "run-markup").stdout
    assert "[red]step[/nope]" in text
    assert "[/bold] list[int]" in text
    assert "[link]w" in nbflow("runs").stdout


# --- forget, gc, doctor ---------------------------------------------------------------------------------------------


def test_forget_deletes_a_run_only_after_a_yes(store: MemoryStore) -> None:
    """No, and nobody there to answer, both leave everything as it was."""
    a_run(store, "run-one")
    assert nbflow("forget", "run-one", input="n\n").exit_code == 1
    assert nbflow("forget", "run-one", input="").exit_code == 2
    assert [run.run for run in store.runs()] == ["run-one"]
    assert nbflow("forget", "run-one", input="y\n").exit_code == 0
    assert store.runs() == []


def test_forget_step_has_it_run_again_and_keeps_its_history(store: MemoryStore) -> None:
    """After forgetting, nothing stands for the step's work, and what it recorded is still listed."""
    a_run(store, "run-one")
    assert as_json("forget", "run-one", "load") == {"run": "run-one", "step": "load", "forgotten": True}
    shown = as_json("show", "run-one")
    assert shown["plan"]["to_run"][0] == {"step": "load", "why": "forgotten on request"}
    assert shown["steps"][0]["state"] == "completed"


def test_forget_step_of_a_live_run_is_refused(store: MemoryStore) -> None:
    """A kernel that holds the run would replay the step regardless, so the truth is said: exit code 5."""
    a_run(store, "run-one")
    store.attach("run-one", ME)
    assert nbflow("forget", "run-one", "load").exit_code == 5


def test_forget_unknown_step_lists_what_there_is(store: MemoryStore) -> None:
    """The message helps to find the right name."""
    a_run(store, "run-one")
    result = nbflow("forget", "run-one", "lod")
    assert result.exit_code == 3
    assert "It has: load, model." in result.stderr


def test_gc_deletes_what_the_retention_lets_go_and_dry_run_nothing(store: MemoryStore) -> None:
    """A dry run names the same runs that the real one deletes."""
    for number in range(3):
        record(store, f"run-{number}", RunChanged(state="completed"))
    would = [run["run"] for run in as_json("gc", "--keep", "1", "--dry-run")["deleted"]]
    assert len(store.runs()) == 3
    did = [run["run"] for run in as_json("gc", "--keep", "1", "--yes")["deleted"]]
    assert would == did == ["run-1", "run-0"]
    assert [run.run for run in store.runs()] == ["run-2"]


def test_gc_without_a_criterion_deletes_nothing(store: MemoryStore) -> None:
    """`nbflow gc` alone asks what may go."""
    record(store, "run-0", RunChanged(state="completed"))
    assert nbflow("gc", "--yes").exit_code == 2
    assert len(store.runs()) == 1


@pytest.mark.parametrize(
    ("text", "count"), [("2GB", 2 * 10**9), ("1.5 MB", 1_500_000), ("77", 77), ("1e9", 10**9)]
)
def test_sizes_are_read_in_decimal_units(text: str, count: int) -> None:
    """As the listing prints them."""
    from nbflow.cli.upkeep import byte_count

    assert byte_count(text) == count


@pytest.mark.parametrize("text", ["", "big", "5 XB", "-1", "1..2"])
def test_a_size_that_is_none_is_a_usage_error(store: MemoryStore, text: str) -> None:
    """Deleting by a misread size would be worse than asking again."""
    assert nbflow("gc", f"--max-size={text}", "--yes").exit_code == 2


def test_doctor_exits_with_6_when_something_is_broken(
    store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A monitor can rely on the exit code; a warning alone is not broken."""
    assert as_json("doctor")["healthy"] is True
    monkeypatch.setattr(store, "check", lambda repair: [Finding("warning", "lock", "old")], raising=False)
    assert nbflow("doctor").exit_code == 0
    broken = [Finding("error", "run r1", "record 7 fails its check", "cut the journal behind record 6")]
    monkeypatch.setattr(store, "check", lambda repair: broken, raising=False)
    assert as_json("doctor", code=6)["findings"][0]["subject"] == "run r1"
    assert "--repair: cut the journal behind record 6" in nbflow("doctor").stdout


# --- errors -------------------------------------------------------------------------------------------------------


def every_error() -> list[type[errors.NbflowError]]:
    return [
        cls for cls in vars(errors).values() if isinstance(cls, type) and issubclass(cls, errors.NbflowError)
    ]


@pytest.mark.parametrize("cls", every_error(), ids=lambda cls: cls.__name__)
def test_every_error_is_one_paragraph_with_its_hint_and_a_documented_code(
    store: MemoryStore, monkeypatch: pytest.MonkeyPatch, cls: type[errors.NbflowError]
) -> None:
    """No traceback, nothing on standard output, and a code that docs/cli.md lists."""

    def fail(query: Any) -> Any:
        raise cls("The thing [in brackets] went wrong.", run="r1", seq=7, hint="Do that.")

    monkeypatch.setattr(store, "runs", fail)
    result = nbflow("runs")
    assert result.stdout == ""
    assert result.stderr == "Error: The thing [in brackets] went wrong.\nDo that.\n"
    assert f"| {result.exit_code} |" in (ROOT / "docs/cli.md").read_text()
    told = json.loads(nbflow("runs", "--json").stderr)["error"]
    assert told == {
        "type": cls.__name__,
        "message": "The thing [in brackets] went wrong.",
        "hint": "Do that.",
        "exit_code": result.exit_code,
        "run": "r1",
        "seq": 7,
    }


def test_exit_codes_are_those_of_the_docs() -> None:
    """The page's table and the program agree on every class that has a code of its own."""
    named = {
        errors.UsageError: 2,
        errors.UnknownRun: 3,
        errors.UnknownStep: 3,
        errors.StoreBusy: 4,
        errors.LeaseHeld: 5,
        errors.CorruptRecord: 6,
        errors.CorruptLeaf: 6,
        errors.Untrusted: 7,
        errors.NotAStore: 8,
        errors.StoreReadOnly: 8,
        errors.StoreFull: 8,
        errors.StoreTooNew: 8,
        errors.CannotRestore: 1,
    }
    assert {cls: desk.exit_code(cls("x")) for cls in named} == named


def test_a_bug_is_a_sentence_too_and_debug_shows_where(
    store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even what nobody foresaw leaves no traceback unless it is asked for."""

    def fail(query: Any) -> Any:
        raise RuntimeError("surprise")

    monkeypatch.setattr(store, "runs", fail)
    result = nbflow("runs")
    assert (result.exit_code, result.stderr.splitlines()[0]) == (
        1,
        "Unexpected error: RuntimeError: surprise",
    )
    assert isinstance(nbflow("runs", "--debug").exception, RuntimeError)


def test_interrupting_a_command_exits_with_130(store: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """As shells expect."""

    def fail(query: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(store, "runs", fail)
    assert nbflow("runs").exit_code == 130


def test_a_run_that_is_not_there_exits_with_3(store: MemoryStore) -> None:
    """Not found is told from other errors."""
    assert nbflow("show", "nothing").exit_code == 3


# --- the program itself -------------------------------------------------------------------------------------------


def program(*arguments: str, cwd: Path | None = None, code: str = "") -> subprocess.CompletedProcess[str]:
    start = f"from nbflow.cli import main; import sys; sys.argv[0] = 'nbflow'; {code or 'main()'}"
    return subprocess.run(
        [sys.executable, "-c", start, *arguments], capture_output=True, text=True, cwd=cwd, check=False
    )


def test_a_look_at_nothing_makes_no_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`nbflow runs` in the wrong folder says so with code 3 and leaves the folder as it was."""
    monkeypatch.delenv("NBFLOW_STORE")
    before = sorted(tmp_path.rglob("*"))
    done = program("runs", cwd=tmp_path)
    assert done.returncode == 3
    assert "There is no store at" in done.stderr
    assert sorted(tmp_path.rglob("*")) == before


def test_help_imports_nothing_heavy() -> None:
    """`nbflow --help` and shell completion stay quick: no DuckDB, pandas, NumPy, Arrow or IPython."""
    heavy = {"duckdb", "pandas", "numpy", "pyarrow", "IPython", "cloudpickle"}
    code = f"import nbflow.cli.app; print(sorted(set(sys.modules) & {heavy!r}))"
    assert program(code=code).stdout == "[]\n"


def test_every_command_has_help_and_the_common_options() -> None:
    """`--json` is everywhere, and each command says in one sentence what it does."""
    for name, command in typer.main.get_command(app).commands.items():  # type: ignore[attr-defined]
        options = {option for param in command.params for option in param.opts}
        assert {"--json", "--debug"} <= options, name
        assert (command.help or "").strip().endswith((".", "?")), name


@pytest.mark.parametrize("name", typer.main.get_command(app).commands)  # type: ignore[attr-defined]
def test_help_of_each_command_is_shown(name: str) -> None:
    """`nbflow COMMAND --help` works with this version of the command-line library, arguments explained."""
    result = nbflow(name, "--help")
    assert (result.exit_code, "--json" in result.stdout) == (0, True)


def test_a_narrow_terminal_cuts_anything_but_the_ids(
    store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An id that is cut names nothing."""
    a_run(store)
    monkeypatch.setenv("COLUMNS", "50")
    assert any(line.startswith("0198c200-aaaa ") for line in nbflow("runs").stdout.splitlines())


def test_version_names_what_it_stands_on() -> None:
    """A bug report begins with this."""
    facts = as_json("version")
    assert {"nbflow", "python", "duckdb", "pandas"} <= set(facts)


def test_an_unknown_command_is_a_usage_error() -> None:
    """Exit code 2, as the docs say."""
    assert nbflow("runz").exit_code == 2
