"""Gates in notebooks: a cell stops with a notice, shows what is asked, and goes on when somebody has decided."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import pytest
from hypothesis import given
from hypothesis import strategies as st
from IPython.core.completer import provisionalcompleter
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

import nbflow
from nbflow.core.gates import Decision, Form, Gate
from nbflow.core.history import History
from nbflow.notebook import options
from nbflow.notebook.cells import planned_cells
from nbflow.notebook.collect import collecting
from nbflow.notebook.gate_form import exhibit_html, exhibit_text, form_html, form_text, headline
from nbflow.notebook.options import gate_parser, parse_gate
from nbflow.notebook.plan import make_plan
from nbflow.store.local import LocalStore, open_store
from tests.notebook.kernel import Cell, Kernel
from tests.notebook.test_magics import Terminal, terminal  # noqa: F401 - a fixture
from tests.runtime.timed import until

SETUP = "%load_ext nbflow\nimport nbflow"
PLAIN = (
    "decision = nbflow.gate('publish', 'Publish to the site?', options=['web', 'mail'])\ndecision.selections"
)
WITHIN = "%%durable report\nprint('made')\nreport = nbflow.gate('publish', 'Publish to the site?').feedback"
ASKING = (
    "%%gate publish Publish to the site? --option web --option mail --timeout 2d\n"
    "made.append(1)\nprint('the figures')\nimport pandas as pd\ndisplay(pd.DataFrame({'month': [1, 2]}))"
)


def gates_now(place: LocalStore) -> list[Any]:
    """Return the rows of the gates that wait in the newest run."""
    newest = place.runs()[0].run if place.runs() else ""
    return [row for row in nbflow.gates(store=place).itertuples() if row.run == newest]


def waiting(place: LocalStore) -> tuple[str, Any]:
    """Return the run and the row of the one gate that waits."""
    (found,) = gates_now(place)
    return str(found.run), found


def only_error(cell: Cell) -> dict[str, Any]:
    """Return the one error of a cell."""
    (error,) = cell.errors
    return error


@pytest.fixture
def notebook(kernel: Kernel) -> Kernel:
    """A kernel with nbflow loaded, in a run of its own."""
    assert kernel.run(SETUP).ok
    return kernel


@pytest.fixture
def place(shared: Kernel) -> LocalStore:
    """The kernel's store, seen from here."""
    return open_store(shared.folder / ".nbflow")


@pytest.fixture
def mortal(new_kernel: Callable[..., Kernel]) -> Kernel:
    """A kernel that may be killed."""
    kernel = new_kernel()
    assert kernel.run(SETUP).ok
    return kernel


@pytest.fixture
def grave(tmp_path: Path) -> LocalStore:
    """The store of the kernel that may be killed, seen from here."""
    return open_store(tmp_path / "one" / ".nbflow")


# A cell that stops -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "source",
    [
        PLAIN,
        WITHIN,
        "got = await nbflow.agate('publish', 'Publish to the site?', options=['web', 'mail'])",
        "%%durable waited\ngot = await nbflow.agate('publish', 'Publish to the site?')",
        ASKING,
    ],
)
def test_a_pending_gate_stops_the_notebook_with_a_notice(
    notebook: Kernel, place: LocalStore, source: str
) -> None:
    """The reply is an error, so later cells do not run; the notice says which gate, what, since when and how to decide."""
    notebook.run("made = []")
    cell = notebook.run(source)
    error = only_error(cell)
    run, gate = waiting(place)
    assert ("error", "GatePending") == (cell.reply["status"], cell.reply["ename"])
    assert "GatePending" == error["ename"]
    assert "Gate 'publish'" in error["evalue"]
    said = "\n".join(error["traceback"])
    for words in (
        "publish",
        "Publish to the site?",
        "Asked",
        f"nbflow approve {run} publish",
        "%nbflow approve",
    ):
        assert words in said
    assert "Traceback" not in said
    assert 3 == len(error["traceback"])
    (form, *_) = [text for text in cell.notices if text]
    assert "Publish to the site?" in form
    assert ("waiting", "waiting") == (gate.state, place.run(run).state)


def test_an_approved_gate_lets_the_cell_go_on(notebook: Kernel, place: LocalStore) -> None:
    """Plain and durable cells run to their end with the decision; a durable one is a replay from then on."""
    assert not notebook.run(PLAIN).ok
    run, _ = waiting(place)
    nbflow.approve(run, "publish", select="mail", store=place)
    assert "('mail',)" == notebook.run(PLAIN).result

    assert not notebook.run(WITHIN).ok
    nbflow.approve(run, "report/gate:publish#0", "good", store=place)
    first, again = notebook.run(WITHIN), notebook.run(WITHIN)
    assert ["made\n", "made\n"] == [first.stdout, again.stdout]
    assert again.notices[-1].startswith("restored report")
    assert "'good'" == notebook.run("report").result


def test_the_form_is_not_recorded_as_the_cells_output(notebook: Kernel, place: LocalStore) -> None:
    """A replay shows what the cell printed, and nothing of the gate."""
    source = "%%durable shown\nprint('before')\nok = bool(nbflow.gate('go', wait=True))\nprint('after')"
    asked = notebook.send(source)
    until(lambda: gates_now(place))
    nbflow.approve(waiting(place)[0], "go", store=place)
    cell = notebook.collect(asked)
    assert any("go" in text for text in cell.notices)
    assert ("before\nafter\n", True) == (cell.stdout, cell.ok)
    again = notebook.run(source)
    assert [("stdout", "before\nafter\n")] == [one for one in again.shown if one[0] == "stdout"]
    assert 1 == len(again.notices)


def test_a_decision_survives_the_kernel(
    mortal: Kernel, new_kernel: Callable[..., Kernel], grave: LocalStore
) -> None:
    """Killed between question and answer; the next kernel goes on with the answer that came meanwhile."""
    mortal.run("made = []")
    assert not mortal.run(ASKING).ok
    run, _ = waiting(grave)
    mortal.kill()
    nbflow.approve(run, "publish", "fine", select=["web"], store=grave)

    again = new_kernel()
    again.run(f"{SETUP}\nmade = []")
    assert again.run(ASKING).ok
    assert "('web', 'fine', [])" == again.run("decision.selections[0], decision.feedback, made").result


def test_a_decision_in_a_durable_cell_is_restored(
    mortal: Kernel, new_kernel: Callable[..., Kernel], grave: LocalStore
) -> None:
    """In a new kernel it is there again, and what reads it is a replay as well."""
    cells = ["%%durable asks\nanswer = nbflow.gate('go')", "%%durable reads\nwho = answer.by"]
    mortal.run(cells[0])
    nbflow.approve(waiting(grave)[0], "go", by="ana", store=grave)
    assert [True, True] == [mortal.run(cell).ok for cell in cells]
    mortal.kill()

    again = new_kernel()
    again.run(SETUP)
    assert ["restored asks", "restored reads"] == [
        " ".join(again.run(cell).notices[-1].split()[:2]) for cell in cells
    ]
    assert "('ana', 'ana')" == again.run("answer.by, who").result


def test_a_rejected_gate_is_a_short_error(notebook: Kernel, place: LocalStore) -> None:
    """It says by whom, when and why, and stays rejected."""
    for _ in range(2):
        cell = notebook.run(PLAIN)
        if gates_now(place):
            nbflow.reject(waiting(place)[0], "publish", "the axis has no unit", by="ana", store=place)
            cell = notebook.run(PLAIN)
        error = only_error(cell)
        assert "GateRejected" == error["ename"]
        said = "\n".join(error["traceback"])
        assert "the axis has no unit" in said
        assert "rejected by ana" in said
        assert "Traceback" not in said


def test_tb_and_debug_behave(notebook: Kernel) -> None:
    """`%tb` shows the notice again, and the debugger still finds the frames."""
    notebook.run(PLAIN)
    assert "Waiting at gate publish" in "\n".join(only_error(notebook.run("%tb"))["traceback"])
    found = notebook.run(
        "import sys\nsys.last_value.__traceback__ is not None, type(sys.last_value).__name__"
    )
    assert "(True, 'GatePending')" == found.result


def test_a_machine_that_waits_shows_its_gate(notebook: Kernel, place: LocalStore) -> None:
    """Its run is another one than the notebook's; the cell shows the gate all the same."""
    cell = notebook.run("with nbflow.run('deploy'):\n    nbflow.gate('go', 'Deploy?')")
    assert "GatePending" == only_error(cell)["ename"]
    assert any("Deploy?" in text for text in cell.notices)


def test_nbclient_stops_at_the_gate(tmp_path: Path, kernel_env: dict[str, str]) -> None:
    """Run All without a person: the cell's error is the gate's, later cells do not run; approved, all run."""
    store = tmp_path / ".nbflow"
    sources = [SETUP, PLAIN, "after = 1\nafter"]

    def execute() -> Any:
        found = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])
        client = NotebookClient(found, timeout=60, resources={"metadata": {"path": str(tmp_path)}})
        client.execute(env={**kernel_env, "NBFLOW_STORE": str(store)})
        return found

    with pytest.raises(CellExecutionError) as stopped:
        execute()
    assert "GatePending" == stopped.value.ename
    place = open_store(store)
    nbflow.approve(waiting(place)[0], "publish", select=["web"], store=place)
    done = execute()
    assert "1" == done.cells[2].outputs[0]["data"]["text/plain"]


# A cell that is a gate ---------------------------------------------------------------------------


def test_a_gate_cell_shows_what_is_to_be_judged(notebook: Kernel, place: LocalStore) -> None:
    """What the body prints and displays is recorded with the gate; the body runs once, also while it waits."""
    notebook.run("made = []")
    for _ in range(3):
        assert not notebook.run(ASKING).ok
    run, gate = waiting(place)
    assert "[1]" == notebook.run("made").result
    assert ("publish/gate:publish#0", ["web", "mail"]) == (gate.step, list(gate.options))
    shown = exhibits(place, run, gate.step)
    assert ["text", "table"] == [each["kind"] for each in shown]
    assert "the figures\n" == shown[0]["text"]


def exhibits(place: LocalStore, run: str, step: str) -> list[Any]:
    """Return what is recorded with a gate."""
    from nbflow.core.gates import find_gate
    from nbflow.notebook.gate_cell import Elsewhere, exhibits_of

    history = History.of(place.entries(run))
    return list(exhibits_of(Elsewhere(place, run, "w", history), find_gate(history, step)))


def test_a_decision_is_a_variable_that_later_cells_depend_on(notebook: Kernel, place: LocalStore) -> None:
    """Approved, it is bound and recorded; what reads it is a replay, until another answer comes to a new question."""
    after = "%%durable sent\nsent = [channel.upper() for channel in decision.selections]"
    notebook.run("made = []")
    notebook.run(ASKING, cell_id="asks")
    run, _ = waiting(place)
    nbflow.approve(run, "publish", select=["web", "mail"], store=place)
    assert notebook.run(ASKING, cell_id="asks").ok
    assert notebook.run(after).ok
    assert "['WEB', 'MAIL']" == notebook.run("sent").result
    assert notebook.run(ASKING, cell_id="asks").notices[0].startswith("restored publish")
    assert notebook.run(after).notices[0].startswith("restored sent")

    other = ASKING.replace("'month': [1, 2]", "'month': [1, 3]")
    assert "GatePending" == only_error(notebook.run(other, cell_id="asks"))["ename"]
    nbflow.approve(run, "publish", select=["web"], store=place)
    assert notebook.run(other, cell_id="asks").ok
    assert "runs again: reads decision, which changed" in notebook.run(after).notices[0]
    assert "['WEB']" == notebook.run("sent").result


def test_a_changed_input_asks_anew(notebook: Kernel, place: LocalStore) -> None:
    """An approval of yesterday's figures says nothing of today's."""
    cell = "%%gate figures Are they right?\nprint(figures)"
    notebook.run("figures = [1, 2]")
    notebook.run(cell)
    run, before = waiting(place)
    nbflow.approve(run, "figures", store=place)
    assert notebook.run(cell).ok
    notebook.run("figures = [1, 3]")
    assert "GatePending" == only_error(notebook.run(cell))["ename"]
    _, asked = waiting(place)
    assert "[1, 3]\n" == exhibits(place, run, asked.step)[0]["text"]


def test_a_gate_cell_may_return_a_rejection_and_name_its_variable(
    notebook: Kernel, place: LocalStore
) -> None:
    """With `--on-reject return` the decision is false and flows on, under the name that was asked for."""
    cell = "%%gate go --as verdict --on-reject return\nNone"
    notebook.run(cell)
    nbflow.reject(waiting(place)[0], "go", "not yet", store=place)
    assert notebook.run(cell).ok
    assert "(False, 'not yet')" == notebook.run("bool(verdict), verdict.feedback").result


def test_a_gate_cell_waits_in_place(notebook: Kernel, place: LocalStore) -> None:
    """With `--wait` the cell goes on by itself when the decision comes from elsewhere."""
    asked = notebook.send("%%gate go Ready? --wait\nprint('look')")
    until(lambda: gates_now(place))
    nbflow.approve(waiting(place)[0], "go", store=place)
    cell = notebook.collect(asked)
    assert cell.ok, cell.errors
    assert "True" == notebook.run("decision.approved").result


def test_a_body_that_fails_asks_nobody(notebook: Kernel, place: LocalStore) -> None:
    """Its error and what it had displayed are shown."""
    cell = notebook.run("%%gate go\nprint('so far')\n1 / 0")
    assert "ZeroDivisionError" == only_error(cell)["ename"]
    assert "so far\n" == cell.stdout
    assert [] == gates_now(place)


def test_a_body_with_an_await_is_one_sentence(notebook: Kernel, place: LocalStore) -> None:
    """It says what to do instead, and nobody is asked."""
    error = only_error(notebook.run("%%gate go\nimport asyncio\nawait asyncio.sleep(0)"))
    assert ("UsageError", True) == (error["ename"], "agate" in error["evalue"])
    assert [] == gates_now(place)


def test_a_heading_is_the_question_where_none_is_given(notebook: Kernel, place: LocalStore) -> None:
    """The first Markdown that the body displays has it."""
    notebook.run(
        "%%gate go\nfrom IPython.display import Markdown, display\ndisplay(Markdown('# Ship it?\\nThe figures.'))"
    )
    _, gate = waiting(place)
    assert "Ship it?" == gate.text


def test_auto_leaves_gate_cells_alone(notebook: Kernel, place: LocalStore) -> None:
    """Under `%nbflow auto` a gate cell is a gate, and a plain cell with a gate in it a durable cell."""
    notebook.run("%nbflow auto on")
    notebook.run("made = []")
    assert not notebook.run(ASKING).ok
    run, gate = waiting(place)
    assert "publish/gate:publish#0" == gate.step
    assert not notebook.run("verdict = nbflow.gate('second')").ok
    assert "verdict/gate:second#0" in {row.step for row in gates_now(place)}


# The line ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("%%gate\n1", "A gate has a name"),
        ("%%gate a/b\n1", "must not hold"),
        ("%%gate go Don't?\n1", "No closing quotation"),
        ("%%gate go --optoin a\n1", "--option"),
        ("%%gate go --as 1x\n1", "name of a variable"),
        ("%%gate go --timeout soon\n1", "soon"),
        ("%%gate go --single\n1", "offers none"),
        ("%%gate go --on-timeout later\n1", "later"),
        ("%nbflow approve", "GATE"),
        ("%nbflow approve a b c", "quotation marks"),
        ("%nbflow approve nothing", "no unfinished run"),
        ("%nbflow reject 0197a3b2 go", "0197a3b2"),
    ],
)
def test_lines_that_make_no_sense_are_one_sentence(terminal: Terminal, line: str, says: str) -> None:  # noqa: F811
    """As everywhere in nbflow; nobody is asked anything."""
    text = terminal.run(line)
    assert says in text
    assert 1 == len([part for part in text.strip().splitlines() if not part.startswith("in cell")])


@given(
    st.lists(
        st.text(st.characters(min_codepoint=33, max_codepoint=126, exclude_characters="\"'\\-"), min_size=1)
    )
)
def test_a_question_may_stand_anywhere_in_the_line(words: list[str]) -> None:
    """Options before, between and behind its words make no difference."""
    plain = parse_gate(gate_parser(), " ".join(["go", *words, "--option", "a", "--single"]))
    mixed = parse_gate(gate_parser(), " ".join(["go", *words[:1], "--option", "a", *words[1:], "--single"]))
    assert plain == mixed
    assert " ".join(words) == plain.text


def test_help_and_completion_know_the_gate(terminal: Terminal) -> None:  # noqa: F811
    """`%%gate?` names every option; the completer offers them, their values, and the gates that wait."""
    manual = terminal.shell.magics_manager.magics["cell"]["gate"].__doc__
    for option in options.gate_options():
        assert option in manual
    terminal.run("import nbflow\nnbflow.gate('publish')")

    def offered(text: str) -> set[str]:
        with provisionalcompleter():
            return {found.text for found in terminal.shell.Completer.completions(text, len(text))}

    assert {"--option", "--on-timeout"} <= offered("%%gate go --o")
    assert {"fail", "continue", "reject"} <= offered("%%gate go --on-timeout ")
    assert "publish" in offered("%nbflow approve p")
    assert "gates" in offered("%nbflow ga")


def test_the_line_commands_list_and_decide(terminal: Terminal) -> None:  # noqa: F811
    """`%nbflow gates`, `approve` and `reject`; a second decision shows the first."""
    terminal.run("import nbflow\nnbflow.gate('publish', 'Publish?', options=['web', 'mail'])")
    assert "Publish?" in terminal.run("%nbflow gates")
    assert "has no option 'fax'" in terminal.run("%nbflow approve publish --select fax")
    said = terminal.run('%nbflow approve publish --select mail --feedback "good work"')
    assert "is approved" in said
    again = terminal.run("%nbflow reject publish")
    assert "GateDecided" in again
    assert "good work" in again
    assert "There is none" in terminal.run("%nbflow gates")
    assert "good" in terminal.run("%nbflow gates --all")


def test_status_says_what_waits(terminal: Terminal) -> None:  # noqa: F811
    """The cell that stopped, the gate in it, and that it goes on once decided."""
    terminal.run("import nbflow\n@nbflow.durable\ndef f():\n    return 1")
    terminal.run("%%durable report\nx = nbflow.gate('publish', 'Publish?')")
    assert "waits at gate publish" in terminal.run("%nbflow status")
    terminal.run("%nbflow approve publish")
    assert "its gate is decided" in terminal.run("%nbflow status")


def test_the_plan_knows_gate_cells() -> None:
    """From the file: a gate cell is a durable cell of its name, and a line that makes no sense is told."""
    cells = planned_cells(
        {
            "cells": [
                {"cell_type": "code", "source": "%%gate publish Publish? --as verdict\nprint(1)", "id": "a"},
                {"cell_type": "code", "source": "%%gate\n1", "id": "b"},
            ]
        }
    )
    assert [("publish", ("verdict",), True), (None, None, False)] == [
        (cell.name, cell.out, cell.gate) for cell in cells
    ]
    plan = make_plan(cells, History())
    assert [("publish", "run", "not recorded yet")] == [
        (step.name, step.action, step.reason) for step in plan.steps[:1]
    ]
    assert "A gate has a name" in plan.steps[1].reason


# The form ----------------------------------------------------------------------------------------

_EVIL = '<script>alert(1)</script><img src=x onerror="alert(2)">\'"'


def gate_of(**facts: Any) -> Gate:
    """Return a gate whose texts are hostile."""
    form = Form(_EVIL, _EVIL, "o", options=(_EVIL,))
    found = {
        "opened_at": 1000.0,
        "due_at": None,
        "state": "waiting",
        "decision": None,
        "execution": 1,
        **facts,
    }
    return Gate(step="gate:g#0", form=form, **found)


@pytest.mark.parametrize(
    "exhibit",
    [
        {
            "kind": "table",
            "columns": [{"name": _EVIL, "type": "s"}],
            "rows": [[_EVIL]],
            "total": 1,
            "offset": 0,
        },
        {"kind": "image", "mime": "image/png", "data": _EVIL, "alt": _EVIL},
        {"kind": "image", "mime": _EVIL, "data": "", "text": _EVIL},
        {"kind": "text", "text": _EVIL, "stream": "stderr"},
        {"kind": "json", "text": _EVIL},
        {"kind": "html", "html": _EVIL},
        {"kind": "markdown", "text": _EVIL},
        {"kind": "notice", "text": _EVIL},
        {"kind": "later", "text": _EVIL},
    ],
    ids=lambda exhibit: str(exhibit["kind"]),
)
def test_nothing_that_is_shown_becomes_html(exhibit: dict[str, Any]) -> None:
    """Names, questions, feedback and exhibits are text, whatever is in them; HTML stands in a frame that does nothing."""
    from html.parser import HTMLParser

    decision = Decision(approved=False, by=_EVIL, at=1.0, feedback=_EVIL, selections=(_EVIL,))
    for gate in (gate_of(), gate_of(state="rejected", decision=decision)):
        page = form_html(gate, _EVIL, [exhibit], now=2000.0)
        tags: list[tuple[str, list[tuple[str, str | None]]]] = []
        parser = HTMLParser()
        parser.handle_starttag = lambda tag, attributes: tags.append((tag, attributes))  # type: ignore[method-assign]
        parser.feed(page)
        assert "script" not in {tag for tag, _ in tags}
        assert not [name for _, attributes in tags for name, _ in attributes if name.startswith("on")]
        frames = [dict(attributes) for tag, attributes in tags if tag == "iframe"]
        assert all("" == frame["sandbox"] for frame in frames)
        assert all("default-src 'none'" in str(frame["srcdoc"]) for frame in frames), "nothing is fetched"
        assert isinstance(exhibit_html(exhibit), str)
        assert isinstance(exhibit_text(exhibit), str)


def test_the_form_says_what_was_decided_and_until_when() -> None:
    """In words beside every mark, in text and in HTML alike."""
    decision = Decision(approved=True, by="ana", at=1.0, feedback="good", selections=("web",))
    said = headline(gate_of(state="approved", decision=decision), now=2.0)
    assert said.startswith("approved by ana")
    assert said.endswith("selected: web: good")
    waits = headline(gate_of(due_at=1000.0 + 2 * 86400), now=1000.0)
    assert "waits for a decision" in waits
    assert "(in 2 d), then it fails" in waits
    for state in ("timed_out", "cancelled"):
        assert state.split("_")[0][:5] in form_text(gate_of(state=state), "r").lower() or state == "cancelled"


def test_what_is_collected_keeps_its_order(terminal: Terminal) -> None:  # noqa: F811
    """Prints, displays, updates and results come in the order in which the code made them, and are not shown."""
    import sys

    from IPython.display import display

    with collecting(terminal.shell, lambda _shell: None) as found:
        print("one")
        handle = display("two", display_id="d")
        sys.stderr.write("three\n")
        handle.update("four")
        sys.displayhook(5)
    said = [output.text or output.data["text/plain"] for output in found.display().outputs]
    assert ["one\n", "'two'", "three\n", "'four'", "5"] == said


def test_a_widget_layer_that_fails_costs_the_buttons_only(terminal: Terminal) -> None:  # noqa: F811
    """The form without buttons is shown, and the gate waits as before."""
    from nbflow.notebook import gate_cell

    def broken(*_about: object) -> bool:
        raise RuntimeError("no page")

    gate_cell.show_with(broken)
    said = terminal.run("import nbflow\nnbflow.gate('publish', 'Publish?')")
    assert "Options" not in said
    assert "Gate publish: waits for a decision" in said


def test_unloading_takes_the_gate_out(terminal: Terminal) -> None:  # noqa: F811
    """Magic, rendering and the ways to show gates are gone."""
    terminal.run("%unload_ext nbflow")
    assert "gate" not in terminal.shell.magics_manager.magics["cell"]
    assert not hasattr(nbflow.errors.GatePending, "_render_traceback_")
    terminal.run("%load_ext nbflow")
