"""Commands that look after a store: `gc`, `trust` and `doctor`."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from nbflow.cli import show
from nbflow.cli.desk import AsJson, Debug, Desk, Place, Yes, desk, open_existing
from nbflow.core.errors import UsageError
from nbflow.notebook.amounts import size

if TYPE_CHECKING:
    from nbflow.store.protocol import Finding

_LEVELS = {"ok": ("✔", "green"), "warning": ("!", "yellow"), "error": ("✘", "red")}
_RUN_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")

_BYTES = {
    "": 1,
    "b": 1,
    "k": 10**3,
    "kb": 10**3,
    "m": 10**6,
    "mb": 10**6,
    "g": 10**9,
    "gb": 10**9,
    "t": 10**12,
    "tb": 10**12,
}


def gc(
    older_than: Annotated[
        str | None,
        typer.Option(
            "--older-than", metavar="AGE", help='Runs that ended longer ago than this: "30d", "12h".'
        ),
    ] = None,
    keep: Annotated[
        int | None,
        typer.Option("--keep", min=0, metavar="N", help="All but the newest N runs of each workflow."),
    ] = None,
    max_size: Annotated[
        str | None,
        typer.Option(
            "--max-size",
            metavar="SIZE",
            help='The oldest runs, until the store is no larger than this: "2GB".',
        ),
    ] = None,
    workflow: Annotated[
        str | None, typer.Option("--workflow", "-w", metavar="NAME", help="Only runs of this workflow.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be deleted, and delete nothing.")
    ] = False,
    yes: Yes = False,
    store: Place = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Delete finished runs by age, number or size; never one that is alive or may be resumed."""
    from nbflow.core.retry import seconds
    from nbflow.store.protocol import Retention

    with desk(store, as_json, debug) as at:
        if older_than is None and keep is None and max_size is None:
            raise UsageError("What may go?", hint="Say it with --older-than, --keep or --max-size.")
        retention = Retention(
            age=seconds(older_than),
            keep=keep,
            size=None if max_size is None else byte_count(max_size),
            workflow=workflow,
        )
        doomed = at.store.collect(retention, dry_run=True)
        if doomed:
            at.say(show.runs_table(doomed))
        if doomed and not dry_run:
            at.ask(
                f"Delete {len(doomed)} run{'' if len(doomed) == 1 else 's'} with all outputs for good?",
                yes=yes,
            )
            doomed = at.store.collect(retention)
        if at.as_json:
            at.answer({"dry_run": dry_run, "deleted": [show.run_facts(run) for run in doomed]})
        elif not doomed:
            at.say("Nothing to delete.")
        elif dry_run:
            at.say(f"{len(doomed)} would be deleted.")
        else:
            at.say(f"Deleted {len(doomed)}.")


def byte_count(text: str) -> int:
    """Return "2GB", "500 MB" or "1e9" as a number of bytes; units are decimal.

    Raises:
        UsageError: it is no size.

    >>> byte_count("1.5 MB")
    1500000
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?(?:e\d+)?)\s*([a-z]*)\s*", text.lower())
    if found is None or found[2] not in _BYTES:
        raise UsageError(f"{text!r} is not a size.", hint='Write "500MB" or "2GB".')
    return int(float(found[1]) * _BYTES[found[2]])


def trust(
    place: Annotated[str, typer.Argument(metavar="STORE", help="The store's folder.")],
    yes: Yes = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Accept a store that another user or machine wrote, by signing it with your key.

    Loading what a store recorded can run code that its writer chose, as any
    pickle can. nbflow therefore loads only what carries your own signature.
    Trust a store only if you would also run a script from whoever wrote it.
    """
    with desk(place, as_json, debug) as at:
        from nbflow.store.resign import sign_store

        store = open_existing(place)
        store.close()
        at.say(
            Text.assemble(
                ("Loading this store's outputs can run code that its writer chose. ", "bold"),
                "Signing makes nbflow load them without another question. ",
                "Do it only if you would also run a script from whoever wrote the store.",
            )
        )
        at.ask(f"Sign everything in {place} with your key?", yes=yes)
        signed = sign_store(place)
        at.say(f"Signed {signed} record{'' if signed == 1 else 's'}.")
        if at.as_json:
            at.answer({"store": place, "signed": signed})


def doctor(
    repair: Annotated[bool, typer.Option("--repair", help="Mend what can be mended.")] = False,
    store: Place = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Look at the store's health: locks, versions, damage. Exits with 6 when something is broken."""
    with desk(store, as_json, debug) as at:
        findings = at.store.check(repair=repair)
        healthy = all(finding.level != "error" for finding in findings)
        if at.as_json:
            at.answer(
                {
                    "healthy": healthy,
                    "store": at.store.describe(),
                    "findings": [
                        {
                            "level": finding.level,
                            "subject": finding.subject,
                            "message": finding.message,
                            "repair": finding.repair,
                        }
                        for finding in findings
                    ],
                }
            )
        else:
            _print_health(at, findings, repair)
        if not healthy:
            raise typer.Exit(6)


def _print_health(at: Desk, findings: list[Finding], repair: bool) -> None:
    rows: list[tuple[str | Text, ...]] = []
    for finding in findings:
        mark, style = _LEVELS[finding.level]
        # The whole id is in the message or in --json; here it would take half of the line.
        subject = _RUN_ID.sub(lambda found: found[0][:13], finding.subject)
        rows.append((Text(mark, style=style), subject, finding.message))
        if finding.repair and not repair:
            advice = finding.repair.removeprefix("none: ")
            mends = advice == finding.repair
            rows.append((Text(""), "", Text(f"{'nbflow doctor --repair: ' * mends}{advice}", style="dim")))
    at.say(show.table(["", "what", "finding"], rows))
    facts = at.store.describe()
    for name in ("size", "database"):
        if isinstance(facts.get(name), int):
            facts[name] = size(facts[name])
    at.say(Text("\n".join(f"{name}: {value}" for name, value in facts.items()), style="dim"))
