"""Write the generated parts of the docs: the commands in cli.md, diagrams and journals in how-it-works.md.

`make docs` runs it. `python docs/generate.py --check` writes nothing and exits
with 1 if a page is out of date, naming it. A generated part stands between
`<!-- generated: NAME -->` and `<!-- end: NAME -->`; the rest is written by hand.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Any

import typer

DOCS = Path(__file__).resolve().parent
sys.path.insert(0, str(DOCS.parent))

import journals  # noqa: E402 - it lies beside this file and needs the path


def commands() -> str:
    """Return every command with its arguments and options, as the program itself tells them."""
    from nbflow.cli.app import app

    root = typer.main.get_command(app)
    parts = []
    for name, command in root.commands.items():  # type: ignore[attr-defined]
        arguments = [p for p in command.params if p.param_type_name == "argument"]
        options = [p for p in command.params if p.param_type_name == "option"]
        usage = " ".join(["nbflow", name, *(_metavar(a) for a in arguments), "[OPTIONS]"])
        parts.append(f"### `nbflow {name}`\n\n```\n{usage}\n```\n\n{_paragraphs(command.help)}\n")
        rows = [(f"`{_metavar(a)}`", _one_line(a.help)) for a in arguments]
        rows += [(_option(o), _one_line(o.help) + _default(o)) for o in options]
        parts.append("| | |\n|---|---|\n" + "\n".join(f"| {left} | {right} |" for left, right in rows) + "\n")
    return "\n".join(parts)


def _metavar(argument: Any) -> str:
    name = argument.metavar or argument.name.upper()
    return name if argument.required or name.startswith("[") else f"[{name}]"


def _option(option: Any) -> str:
    value = "" if option.is_flag else f" {option.metavar or 'N'}"
    names = [*sorted(option.opts, key=len, reverse=True), *option.secondary_opts]
    return ", ".join(f"`{name}{value}`" for name in names)


def _default(option: Any) -> str:
    default = option.default
    return "" if option.is_flag or default in (None, "", [], ()) else f" Default: {default}."


def _one_line(text: str | None) -> str:
    return " ".join((text or "").split()).replace("|", "\\|")


def _paragraphs(text: str | None) -> str:
    return "\n\n".join(" ".join(part.split()) for part in re.split(r"\n\s*\n", (text or "").strip()))


def exit_codes() -> str:
    """Return the table of exit codes from the page that defines them."""
    import nbflow.cli

    found = re.findall(r"^ {4}(\d+) +(.+)$", nbflow.cli.__doc__ or "", re.MULTILINE)
    return (
        "| code | meaning |\n|---|---|\n" + "\n".join(f"| {code} | {text} |" for code, text in found) + "\n"
    )


def run_states() -> str:
    """Return the life of a run as a diagram."""
    from nbflow.core.states import FINAL_RUN_STATES, RUN_TRANSITIONS, RunState

    return _diagram(RunState.PENDING, RUN_TRANSITIONS, FINAL_RUN_STATES)


def step_states() -> str:
    """Return the life of one execution of a step as a diagram."""
    from nbflow.core.states import FINAL_STEP_STATES, STEP_TRANSITIONS, StepState

    return _diagram(StepState.PENDING, STEP_TRANSITIONS, FINAL_STEP_STATES)


def _diagram(start: StrEnum, transitions: Any, final: Any) -> str:
    lines = ["stateDiagram-v2", f"    [*] --> {start}"]
    for state, targets in transitions.items():
        # In the order of the enumeration: sets have none, and the page must not change by chance.
        lines += [f"    {state} --> {target}" for target in type(state) if target in targets]
    lines += [f"    {state} --> [*]" for state in type(start) if state in final]
    return "```mermaid\n" + "\n".join(lines) + "\n```\n"


def waiting_kinds() -> str:
    """Return the kinds of steps that wait instead of computing."""
    from nbflow.core.states import WAITING_KINDS

    return ", ".join(f"`{kind}`" for kind in sorted(WAITING_KINDS)) + "\n"


PARTS: dict[str, dict[str, Callable[[], str]]] = {
    "cli.md": {"commands": commands, "exit codes": exit_codes},
    "how-it-works.md": {
        "run states": run_states,
        "step states": step_states,
        "waiting kinds": waiting_kinds,
        "journal of a machine": journals.of_a_machine,
        "journal of a signal": journals.of_a_signal,
        "journal of a rollback": journals.of_a_rollback,
    },
}


def page(name: str) -> str:
    """Return the page with its generated parts made anew."""
    text = (DOCS / name).read_text(encoding="utf-8")
    for part, make in PARTS[name].items():
        begin, end = f"<!-- generated: {part} -->\n", f"<!-- end: {part} -->"
        before, found, rest = text.partition(begin)
        _, closed, after = rest.partition(end)
        if not (found and closed):
            raise SystemExit(f"docs/{name} has no part {part!r} between its two markers.")
        text = f"{before}{begin}{make()}{end}{after}"
    return text


def main() -> None:
    """Write the pages, or with --check only compare them."""
    stale = []
    for name in PARTS:
        made = page(name)
        if made != (DOCS / name).read_text(encoding="utf-8"):
            stale.append(name)
            if "--check" not in sys.argv:
                (DOCS / name).write_text(made, encoding="utf-8")
    if "--check" in sys.argv and stale:
        raise SystemExit(f"Out of date, run `make docs`: {', '.join(stale)}")
    print(f"Written: {', '.join(stale) or 'nothing, all is up to date'}")


if __name__ == "__main__":
    main()
