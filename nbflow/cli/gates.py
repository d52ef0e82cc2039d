"""Commands about gates: `gates`, `approve` and `reject`. They work while a process has the run, and while none does."""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from nbflow.cli import show
from nbflow.cli.desk import AsJson, Debug, Desk, Place, desk, open_existing
from nbflow.core.errors import NbflowError, UsageError

if TYPE_CHECKING:
    from nbflow.core.gates import Decision, Gate
    from nbflow.core.model import RunInfo
    from nbflow.store.protocol import Store


def _runs(context: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """Complete the id of a run that waits at a gate."""
    return [
        (info.run, f"{info.workflow}: {gate.form.name}")
        for info, gate in _waiting(context)
        if info.run.startswith(incomplete)
    ]


def _names(context: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """Complete the name of a gate of the run that was typed before."""
    run = str(context.params.get("run") or "")
    return [
        (gate.form.name, gate.form.text)
        for info, gate in _waiting(context)
        if info.run.startswith(run) and gate.form.name.startswith(incomplete)
    ]


def _options(context: typer.Context, incomplete: str) -> list[str]:
    """Complete an option of the gate that was typed before."""
    run, name = str(context.params.get("run") or ""), context.params.get("gate")
    return [
        option
        for info, gate in _waiting(context)
        if info.run.startswith(run) and name in (gate.form.name, gate.step)
        for option in gate.form.options
        if option.startswith(incomplete)
    ]


def _waiting(context: typer.Context) -> list[tuple[RunInfo, Gate]]:
    from nbflow.runtime.gates.deciding import pending

    try:
        store = open_existing(context.params.get("store"))
        try:
            return pending(store)
        finally:
            store.close()
    except NbflowError:  # a completion has nowhere to say it
        return []


RunId = Annotated[
    str,
    typer.Argument(metavar="RUN", help="The run's id or an unambiguous prefix of it.", autocompletion=_runs),
]
GateName = Annotated[
    str,
    typer.Argument(
        metavar="GATE",
        help="The gate's name, or its step's key where several of that name wait.",
        autocompletion=_names,
    ),
]
Feedback = Annotated[
    str, typer.Option("--feedback", "-f", metavar="TEXT", help="What to say about it; the run gets it.")
]
Select = Annotated[
    list[str] | None,
    typer.Option(
        "--select",
        "-s",
        metavar="OPTION",
        help="Which of its options; repeatable.",
        autocompletion=_options,
    ),
]
By = Annotated[str | None, typer.Option("--by", metavar="WHO", help="Who decides. Default: user@host.")]


def gates(
    run: Annotated[
        str | None,
        typer.Argument(metavar="[RUN]", help="Only gates of this run.", autocompletion=_runs),
    ] = None,
    gate: Annotated[
        str | None,
        typer.Argument(metavar="[GATE]", help="All there is to see of this one.", autocompletion=_names),
    ] = None,
    every: Annotated[
        bool, typer.Option("--all", "-a", help="Decided ones too, also of finished runs.")
    ] = False,
    workflow: Annotated[
        str | None,
        typer.Option("--workflow", "-w", metavar="NAME", help="Only this workflow; * stands for anything."),
    ] = None,
    store: Place = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """List the gates that wait for a decision, the longest waiting first; or show what one asks and shows."""
    with desk(store, as_json, debug) as at:
        if run is not None and gate is not None:
            _show(at, run, gate)
            return
        state = None if every or run is not None else "waiting"
        wanted = None if run is None else at.store.run(run).run
        rows = [row for row in _rows(at.store, state, workflow) if wanted in (None, row["run"])]
        if at.as_json:
            at.answer({"gates": [_facts(row) for row in rows]})
        elif rows:
            _print(at, rows, every=state is None)
        else:
            at.say("No gates." if every or run is not None else "No gate waits for a decision.")


def approve(
    run: RunId,
    gate: GateName,
    feedback: Feedback = "",
    select: Select = None,
    by: By = None,
    store: Place = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Approve what a gate asks. That is final; the run takes it at once, or when it is resumed."""
    _decide(run, gate, True, feedback, select, by, (store, as_json, debug))


def reject(
    run: RunId,
    gate: GateName,
    feedback: Feedback = "",
    select: Select = None,
    by: By = None,
    store: Place = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Reject what a gate asks. That is final; the feedback says why."""
    _decide(run, gate, False, feedback, select, by, (store, as_json, debug))


def _decide(
    run: str,
    gate: str,
    approved: bool,
    feedback: str,
    select: list[str] | None,
    by: str | None,
    at_desk: tuple[str | None, bool, bool],
) -> None:
    from nbflow.runtime.gates.deciding import decide

    with desk(*at_desk) as at:
        if by is not None and not by.strip():
            raise UsageError("--by names who decides; nothing was decided.")
        info = at.store.run(run)
        decision = decide(
            at.store, info.run, gate, approved, feedback=feedback, selections=select or (), by=by, via="cli"
        )
        then = "goes on" if info.alive else "takes it when it is resumed"
        at.say(
            Text(
                f"Gate {gate} of run {info.run} of {info.workflow} is {decision.word} by {decision.by}"
                f"{_selected(decision)}; the run {then}."
            )
        )
        if at.as_json:
            at.answer({"run": info.run, "gate": gate, **_decision(decision)})


def _selected(decision: Decision) -> str:
    return f" ({', '.join(decision.selections)})" if decision.selections else ""


def _decision(decision: Decision) -> dict[str, Any]:
    return {
        "decision": decision.word,
        "by": decision.by,
        "at": show.iso(decision.at),
        "feedback": decision.feedback,
        "selections": list(decision.selections),
        "via": decision.via,
    }


# --- the list ------------------------------------------------------------------------------------


def _print(at: Desk, rows: list[dict[str, Any]], *, every: bool) -> None:
    short = show.shortened({row["run"] for row in rows})
    columns = ["run", "workflow", "gate", "asked", "due", "options", "what" if every else "question"]
    found = [
        (
            short[row["run"]],
            _line(row["workflow"]),
            _line(row["gate"]),
            show.ago(_seconds(row["opened"])),
            _due(row),
            _line(", ".join(row["options"])),
            _line(_outcome(row) if every else row["text"]),
        )
        for row in rows
    ]
    at.say(show.table(columns, found))
    at.say(
        Text(
            "nbflow gates RUN GATE shows what one asks; nbflow approve or nbflow reject decides.", style="dim"
        )
    )


def _outcome(row: dict[str, Any]) -> str:
    words = str(row["state"]).replace("_", " ")
    if not row["decision"]:
        return words
    said = f"{row['decision']} by {row['by']} {show.ago(_seconds(row['at']))}"
    said += f" ({', '.join(row['selections'])})" if row["selections"] else ""
    said += f": {row['feedback']}" if row["feedback"] else ""
    return f"{said}; not taken into the run yet" if words == "sent" else said


def _due(row: dict[str, Any]) -> str:
    due = _seconds(row["due"])
    if due is None or row["state"] != "waiting":
        return ""
    left = due - time.time()
    return f"in {show.ago(0.001, now=left + 0.001).removesuffix(' ago')}" if left > 0 else "over"


def _seconds(at: Any) -> float | None:
    """Return a time of the table as UTC seconds; None for one that is missing."""
    return at.timestamp() if isinstance(at, datetime) and at == at else None  # noqa: PLR0124 - NaT is not itself


def _facts(row: dict[str, Any]) -> dict[str, Any]:
    times = {name: show.iso(_seconds(row[name])) for name in ("opened", "due", "at")}
    return {**row, **times}


# --- one of them ---------------------------------------------------------------------------------


def _show(at: Desk, run: str, name: str) -> None:
    from nbflow.core.gates import find_gate
    from nbflow.core.history import History
    from nbflow.notebook.gate_cell import Elsewhere, exhibits_of
    from nbflow.notebook.gate_form import form_text
    from nbflow.runtime.gates.deciding import SENT, shown_state

    info = at.store.run(run)
    entries, waiting, _ = at.store.tail(info.run)
    history = History.of(entries)
    gate = find_gate(history, name)
    exhibits = exhibits_of(Elsewhere(at.store, info.run, info.workflow, history), gate)
    if at.as_json:
        (row,) = [row for row in _rows(at.store) if (row["run"], row["step"]) == (info.run, gate.step)]
        at.answer({**_facts(row), "exhibits": [dict(each) for each in exhibits]})
        return
    state, decision = shown_state(gate, waiting, time.time())
    if decision is not None:
        gate = replace(gate, state=decision.word, decision=decision)
    elif state == "timed_out":
        gate = replace(gate, state="timed_out")
    text = form_text(gate, info.run, exhibits, cell=False)
    if state == SENT:
        text += "\n\nThe run has not taken the decision yet."
    sys.stdout.write(_printable(text) + "\n")


def _rows(store: Store, state: str | None = None, workflow: str | None = None) -> list[dict[str, Any]]:
    from nbflow.runtime.gates.deciding import gates as ask

    found = ask(state=state, workflow=workflow, store=store).to_dict("records")
    return [{str(name): value for name, value in row.items()} for row in found]


def _line(text: str) -> str:
    return " ".join(_printable(text).split())


def _printable(text: str) -> str:
    """Return a text that cannot steer the terminal: what a gate shows was written by somebody else."""
    return "".join(sign if sign.isprintable() or sign in "\n\t" else "�" for sign in text)
