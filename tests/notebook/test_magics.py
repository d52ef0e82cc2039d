"""`%%durable` and `%nbflow` as a person meets them: help, short errors, steering a run, completion."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
from IPython.core.interactiveshell import InteractiveShell

from nbflow.core.errors import CannotStore, StoreError, UsageError
from nbflow.notebook import commands, options
from nbflow.notebook.completion import LineMatcher


class Terminal:
    """A plain IPython without a kernel, as a person uses it: type a cell, read what comes."""

    def __init__(self) -> None:
        InteractiveShell.clear_instance()
        self.shell = InteractiveShell.instance(colors="nocolor")
        self.shell.history_manager.enabled = False
        self.run("%load_ext nbflow")

    def run(self, source: str) -> str:
        """Run a cell and return all it printed."""
        text = io.StringIO()
        with redirect_stdout(text), redirect_stderr(text):
            self.result = self.shell.run_cell(source, store_history=True)
        return text.getvalue()

    def close(self) -> None:
        """Leave the shell as other tests expect it."""
        self.run("%unload_ext nbflow")
        InteractiveShell.clear_instance()


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    """A plain IPython with the extension loaded."""
    terminal = Terminal()
    yield terminal
    terminal.close()


@pytest.fixture
def again() -> Iterator[Callable[[], Terminal]]:
    """A function that starts a fresh IPython on the same store, as after a restart."""
    started: list[Terminal] = []

    def start() -> Terminal:
        for old in started:
            old.close()
        started.append(Terminal())
        return started[-1]

    yield start
    started[-1].close()


# Help and errors ---------------------------------------------------------------------------------


def test_the_manual_names_every_option_and_subcommand(terminal: Terminal) -> None:
    """`%%durable?` and `%nbflow?` show every option and subcommand there is, and nothing that is internal."""
    magics = terminal.shell.magics_manager.magics
    durable, nbflow = magics["cell"]["durable"].__doc__, magics["line"]["nbflow"].__doc__
    for option in options.durable_options():
        assert option in durable
    for word in commands.SUBCOMMANDS:
        assert f"\n    {word}" in nbflow
    assert "auto-cell" not in durable


@pytest.mark.parametrize(
    ("cell", "says"),
    [
        ("%%durable one --retry 3\nx = len('a')", "--retry 3"),
        ("%%durable one --retries many\nx = len('a')", "many"),
        ("%%durable one two\nx = len('a')", "two"),
        ("%%durable one --timeout soon\nx = len('a')", "cannot be 'soon'"),
        ("%%durable one --timeout 0\nx = len('a')", "no time to run"),
        ("%%durable one --retries -1\nx = len('a')", "from 0 up"),
        ("%%durable one --in 3x\nx = len('a')", "'3x' is none"),
        ("%%durable one --refresh --once\nx = len('a')", "contradict"),
        ("%%durable a/b\nx = len('a')", "must not hold"),
        ("%%durable one --on-cannot-store shrug\nx = len('a')", "shrug"),
        ("%%durable 'open\nx = len('a')", "quotation"),
        ("%%durable one --retires 3\nx = len('a')", "Did you mean --retries?"),
        ("%nbflow nonsense", "nonsense"),
        ("%nbflow stauts", "Did you mean status?"),
        ("%nbflow runs --al1", "--al1"),
        ("%nbflow resume", "RUN"),
        ("%nbflow forget", "--all"),
        ("%nbflow sql", "wants a query"),
        ("%nbflow auto maybe", "maybe"),
    ],
)
def test_a_wrong_line_is_one_short_error_and_runs_nothing(terminal: Terminal, cell: str, says: str) -> None:
    """The error is one line that says what is wrong and where to read on; there is no traceback and no variable."""
    text = terminal.run(cell)
    assert isinstance(terminal.result.error_in_exec, UsageError)
    assert len(text.strip().splitlines()) == 1 and says in text
    assert "x" not in terminal.shell.user_ns


def test_a_store_that_cannot_be_made_is_refused_and_the_old_one_stays(
    terminal: Terminal, tmp_path: Path
) -> None:
    """The message says what to name instead; the next command works as before."""
    (tmp_path / "file").write_text("")
    text = terminal.run(f"%nbflow store {tmp_path / 'file' / 'below'}")
    assert isinstance(terminal.result.error_in_exec, StoreError) and len(text.strip().splitlines()) == 1
    assert str(tmp_path / ".nbflow") in terminal.run("%nbflow store")


def test_a_setting_that_makes_no_sense_does_not_keep_the_extension_from_loading(terminal: Terminal) -> None:
    """IPython refuses it and remembers it all the same; loading again leaves it out and says so."""
    terminal.run("%config NbFlow.auto = 3")
    assert "NbFlow.auto = 3 is left out" in terminal.run("%reload_ext nbflow")
    assert "No unfinished run" in terminal.run("%nbflow status")


def test_looking_for_a_run_to_steer_begins_none(terminal: Terminal) -> None:
    """forget and finish without an unfinished run say so; they do not start one to do away with it."""
    for line in ("%nbflow forget x", "%nbflow finish"):
        assert "There is no unfinished run" in terminal.run(line)
    assert "There is none." in terminal.run("%nbflow runs")


def test_curly_braces_and_dollars_in_the_line_are_left_alone(terminal: Terminal) -> None:
    """IPython would expand `$name` and `{name}` in a magic's line; SQL and names need them as they stand."""
    terminal.run("name = 'gone'\n")
    text = terminal.run("%nbflow sql select '{name} $name' as kept")
    assert "{name} $name" in text


def test_errors_of_nbflow_are_short_and_name_the_line(terminal: Terminal) -> None:
    """An error of nbflow inside a cell says what happened and in which line of the cell, without frames."""
    text = terminal.run(
        "import nbflow, threading\n@nbflow.durable\ndef make():\n    return threading.Lock()\n\nmade = make()"
    )
    assert isinstance(terminal.result.error_in_exec, CannotStore)
    assert "line 6: made = make()" in text
    assert "Traceback" not in text and len(text.strip().splitlines()) <= 4


# Steering ----------------------------------------------------------------------------------------

CELL = "%%durable {name}\nprint('ran {name}')\n{body}"


def test_new_starts_fresh_and_resume_goes_back(terminal: Terminal) -> None:
    """After `new` everything runs; `resume` with the beginning of an id brings the old results back."""
    cell = CELL.format(name="one", body="x = len('abc')")
    assert "ran one" in terminal.run(cell)
    host = terminal.shell._nbflow_extension.host
    first = host.session.run
    assert "restored one" in terminal.run(cell)
    assert "is new" in terminal.run("%nbflow new")
    assert "restored" not in terminal.run(cell)
    assert first != host.session.run
    assert "carried on" in terminal.run(f"%nbflow resume {first}")
    assert "restored one" in terminal.run(cell)
    listed = terminal.run("%nbflow runs")
    assert "stopped, can be resumed" in listed and "running (this kernel)" in listed


def test_finish_completes_the_run_and_the_next_cell_starts_another(terminal: Terminal) -> None:
    """A finished run is final: the next durable cell runs, in a new run."""
    cell = CELL.format(name="one", body="x = len('abc')")
    terminal.run(cell)
    assert "is completed" in terminal.run("%nbflow finish")
    assert "restored" not in terminal.run(cell)
    assert "completed" in terminal.run("%nbflow runs")


def test_forget_runs_a_step_again_with_all_that_depends_on_it(terminal: Terminal) -> None:
    """`forget STEP` takes the steps that read its variables with it, and leaves the others alone."""
    cells = [
        CELL.format(name="load", body="data = list(range(3))"),
        CELL.format(name="total", body="total = sum(data)"),
        CELL.format(name="other", body="other = len('x')"),
        CELL.format(name="report", body="report = str(total)"),
    ]
    for cell in cells:
        terminal.run(cell)
    text = terminal.run("%nbflow forget load")
    assert "load, total, report" in text
    ran = [cell.split()[1] for cell in cells if "restored" not in terminal.run(cell)]
    assert ran == ["load", "total", "report"]
    assert "No step is called 'lod'" in terminal.run("%nbflow forget lod")


def test_forgetting_everything_asks_first(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    """`--all` asks; no answer and "n" do nothing, "y" and --yes do it."""
    cell = CELL.format(name="one", body="x = len('abc')")
    terminal.run(cell)
    for answer, forgotten in ((EOFError, False), ("n", False), ("y", True)):

        def reply(question: str, answer: Any = answer) -> str:
            if answer is EOFError:
                raise EOFError
            assert "Forget all 1" in question
            return str(answer)

        monkeypatch.setattr("builtins.input", reply)
        text = terminal.run("%nbflow forget --all")
        assert ("Forgotten" in text) is forgotten
        assert ("restored" in terminal.run(cell)) is not forgotten
    assert "Forgotten" in terminal.run("%nbflow forget --all --yes")


def test_delete_removes_a_run_after_asking(terminal: Terminal) -> None:
    """`delete RUN --yes` removes it; the run it was in is detached."""
    terminal.run(CELL.format(name="one", body="x = len('abc')"))
    run = terminal.shell._nbflow_extension.host.session.run
    terminal.run(f"%nbflow delete {run} --yes")
    assert run not in terminal.run("%nbflow runs")


def test_looking_takes_no_lease(terminal: Terminal) -> None:
    """status, steps, outputs and runs look at the run without attaching it."""
    for line in ("%nbflow status", "%nbflow outputs", "%nbflow runs"):
        terminal.run(line)
        assert terminal.result.success
    assert terminal.shell._nbflow_extension.host.session is None


def test_status_steps_and_outputs_tell_what_is_recorded(again: Callable[[], Terminal]) -> None:
    """What is recorded is listed with state, time, size and error, before and after a restart."""
    terminal = again()
    terminal.run(CELL.format(name="one", body="x = list(range(1000))"))
    terminal.run(CELL.format(name="two", body="y = 1 / 0"))
    for _ in range(2):
        text = terminal.run("%nbflow status")
        assert "one" in text and "recorded" in text and "division by zero" in text
        assert "list" in terminal.run("%nbflow outputs one")
        terminal.run(CELL.format(name="two", body="y = 1 / 0"))
        assert terminal.run("%nbflow steps --all").count("failed") >= 2
        terminal = again()


def test_a_resume_begins_with_the_plan(again: Callable[[], Terminal]) -> None:
    """The first durable cell after a restart shows what is recorded; the second one does not."""
    cells = [CELL.format(name=name, body=f"{name} = len('abc')") for name in ("one", "two")]
    terminal = again()
    assert "nbflow:" not in "".join(terminal.run(cell) for cell in cells)
    terminal = again()
    first, second = (terminal.run(cell) for cell in cells)
    assert "2 recorded" in first and first.index("2 recorded") < first.index("ran one")
    assert "recorded," not in second
    terminal = again()
    terminal.run("%config NbFlow.plan = False")
    assert "2 recorded" not in terminal.run(cells[0])


def test_the_plan_follows_the_notebook_file(
    again: Callable[[], Terminal], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the notebook's file is known, the plan tells of each cell whether it will run, and why."""
    import nbformat

    path = tmp_path / "plan.ipynb"
    cells = [CELL.format(name="one", body="x = len('abc')"), CELL.format(name="two", body="y = x + 1")]
    edited = CELL.format(name="two", body="y = x + 2")
    nbformat.write(
        nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in (cells[0], edited)]), path
    )
    monkeypatch.setenv("NBFLOW_NOTEBOOK", str(path))
    terminal = again()
    for cell in cells:
        terminal.run(cell)
    terminal = again()
    text = terminal.run(cells[0])
    assert "1 to restore, 1 to run" in text and "code changed" in text
    assert terminal.shell._nbflow_extension.host.session.workflow == "plan.ipynb"


def test_the_same_name_twice_in_the_file_is_refused(
    terminal: Terminal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without cell ids the notebook's file tells that two cells have one name; nothing is run."""
    import nbformat

    path = tmp_path / "twice.ipynb"
    cells = [nbformat.v4.new_code_cell(CELL.format(name="one", body=f"x = len('{n}')")) for n in ("a", "bb")]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    monkeypatch.setenv("NBFLOW_NOTEBOOK", str(path))
    text = terminal.run(cells[0].source)
    assert "Two cells" in text and "x" not in terminal.shell.user_ns


def test_settings_are_config(terminal: Terminal) -> None:
    """`%config NbFlow` lists the settings, and setting them works: quiet, display_limit, workflow, store."""
    for trait in (
        "workflow",
        "store",
        "auto",
        "display_limit",
        "on_cannot_store",
        "quiet",
        "plan",
        "compact_after",
    ):
        assert f"NbFlow.{trait}" in terminal.run("%config NbFlow")
    cell = CELL.format(name="one", body="x = len('abc')")
    terminal.run("%config NbFlow.workflow = 'mine'")
    terminal.run(cell)
    assert "mine" in terminal.run("%nbflow runs")
    terminal.run("%config NbFlow.quiet = True")
    assert terminal.run(cell) == "ran one\n"
    terminal.run("%config NbFlow.display_limit = 10")
    terminal.run("%%durable long\nprint('x' * 100); z = len('a')")
    assert "not recorded" in terminal.run("%%durable long\nprint('x' * 100); z = len('a')")


def test_store_names_another_place(terminal: Terminal, tmp_path: Path) -> None:
    """`%nbflow store PLACE` goes to another store, and a place that cannot be one changes nothing."""
    cell = CELL.format(name="one", body="x = len('abc')")
    terminal.run(cell)
    assert str(tmp_path / "other") in terminal.run(f"%nbflow store {tmp_path / 'other'}")
    assert "restored" not in terminal.run(cell)
    foreign = tmp_path / "file.bin"
    foreign.write_bytes(b"x")
    assert "not a store" in terminal.run(f"%nbflow store {foreign}")
    assert "restored one" in terminal.run(cell)


def test_sql_returns_a_table_to_work_with(terminal: Terminal) -> None:
    """`%nbflow sql` returns a frame, over the views and over recorded tables."""
    terminal.run("%%durable made\nimport pandas as pd\nframe = pd.DataFrame({'n': [1, 2, 3]})")
    terminal.run("found = %nbflow sql select sum(n) as total from made.frame")
    assert terminal.shell.user_ns["found"]["total"].tolist() == [6]


# Completion --------------------------------------------------------------------------------------


@pytest.mark.parametrize("jedi", [True, False], ids=["jedi", "plain"])
def test_options_subcommands_steps_and_runs_complete(terminal: Terminal, jedi: bool) -> None:
    """The completer offers what may stand at the cursor, with Jedi and without, and nothing of ours elsewhere."""
    terminal.shell.Completer.use_jedi = jedi
    terminal.run(CELL.format(name="flights", body="x = len('abc')"))
    run = terminal.shell._nbflow_extension.host.session.run

    def complete(text: str, at: int | None = None) -> list[str]:
        from IPython.core.completer import provisionalcompleter

        with provisionalcompleter():
            found = terminal.shell.Completer.completions(text, len(text) if at is None else at)
            return [completion.text for completion in found]

    assert complete("%%durable x --ret") == ["--retries"]
    assert complete("%%durable fl") == ["flights"]
    assert complete("%%durable x --on-cannot-store re") == ["rerun"]
    assert complete("%nbflow sta") == ["status"]
    assert complete("%nbflow forget fl") == ["flights"]
    assert complete("%nbflow resume " + run[:6]) == [run]
    assert complete("%nbflow auto o") == ["off", "on"]
    assert complete("%%durable x --ret\nfl", 17) == ["--retries"]
    assert "flights" not in complete("%%durable x\nfl")


def test_candidates_leave_out_what_is_there_already() -> None:
    """An option that stands in the line, and a second name, are not offered again."""
    matcher = LineMatcher(None, ["--once", "--ttl"], {"forget": ("STEP",)}, lambda: ["a", "b"], list)
    line = "%%durable x --once --"
    assert matcher.candidates(line, len(line), 0) == ["--ttl"]
    assert matcher.candidates("%%durable x ", 12, 0) == []
    assert matcher.candidates("%nbflow forget a ", 17, 0) == ["b"]
    assert matcher.candidates("print(1)", 8, 0) == []
