"""What nbflow says in a notebook: one quiet line, or a short error. Never a wall of frames."""

from __future__ import annotations

import html
import traceback
from typing import Any

from nbflow.core.errors import (
    ChildFailed,
    CompensationFailed,
    GateRejected,
    ItemsFailed,
    JoinFailed,
    NbflowError,
)
from nbflow.notebook.amounts import duration, moment

#: Metadata that marks an output as nbflow's own words, for tools that compare or strip outputs.
MARK = {"nbflow": {"notice": True}}

#: Metadata of what a view brings up to date by itself: it stays in the notebook, whatever cell runs at that moment.
ASIDE = {"nbflow": {"aside": True}}

#: The version of what papermill's engine and the kernel say to each other: they may be of different environments.
PROTOCOL = 1

#: The format of the message in which a cell tells papermill's engine what became of it; no front end shows it.
REPORT = "application/vnd.nbflow.cell+json"

#: The format of the message in which a kernel tells papermill's engine at which gate a cell stopped.
WAITS = "application/vnd.nbflow.waits+json"

#: The theme's font for what a program says, as against what code printed.
FONT = "font-family:var(--jp-ui-font-family, sans-serif);font-size:var(--jp-ui-font-size1, 13px)"

#: A wide table scrolls in its own place; the notebook stays where it is.
SCROLL = "overflow-x:auto;max-width:100%"


def say(shell: Any, text: str, *, display_id: str = "", update: bool = False, passing: bool = False) -> None:
    """Show one line: small and quiet where there is HTML, plain text elsewhere.

    With `display_id` the line can be changed later (`update`). One that is `passing`
    changes all the time, so screen readers do not read each change out.
    """
    # Less than the text's full strength, by the theme's own colour: at least 4.5 : 1 in light and dark.
    style = f"color:inherit;opacity:0.75;{FONT}"
    data = {
        "text/plain": text,
        "text/html": f'<div role="{"timer" if passing else "status"}" style="{style}">{html.escape(text)}</div>',
    }
    if not display_id:
        shell.display_pub.publish(data=data, metadata=MARK)
    else:
        shell.display_pub.publish(
            data=data, metadata=MARK, transient={"display_id": display_id}, update=update
        )


def is_notice(metadata: Any) -> bool:
    """Tell whether an output is nbflow's own words, which are never recorded."""
    return isinstance(metadata, dict) and metadata.get("nbflow") == MARK["nbflow"]


def is_of_cell(metadata: Any) -> bool:
    """Tell whether an output is recorded with the cell that runs: neither a notice nor what a view says by itself."""
    own = metadata.get("nbflow") if isinstance(metadata, dict) else None
    return own not in (MARK["nbflow"], ASIDE["nbflow"])


def restored_line(
    name: str, at: float, seconds_then: float, seconds_now: float, *, now: float | None = None
) -> str:
    """Return the line shown under a replayed cell.

    `at` is the UTC second of the recording; durations are in seconds.
    """
    return (
        f"restored {name} from {moment(at, now)} ({duration(seconds_then)} then, {duration(seconds_now)} now)"
    )


def render_error(error: NbflowError) -> list[str]:
    """Return an nbflow error as the lines IPython shows instead of a traceback."""
    # Bold alone: red on the red of an error in JupyterLab's dark theme cannot be read.
    lines = [f"\x1b[1m{type(error).__name__}\x1b[0m: {error}"]
    lines.extend(str(note) for note in getattr(error, "__notes__", ()))
    if isinstance(error, GateRejected) and error.decision is not None:
        lines.append(f"rejected by {error.decision.by} {moment(error.decision.at)} ({error.decision.via})")
    where = _user_line(error)
    if where:
        lines.append(f"\x1b[2m{where}\x1b[0m")
    return [*lines, *_cause(error)]


#: What these say is that the user's own code failed somewhere else than in the line that is shown.
_ABOUT_USERS = (ChildFailed, CompensationFailed, ItemsFailed, JoinFailed)


def _cause(error: BaseException) -> list[str]:
    """Return the traceback of the user's own error behind one of nbflow's, from the user's code on; [] without one."""
    from IPython.core.getipython import get_ipython

    if not isinstance(error, _ABOUT_USERS):
        return []  # the cause is our own business, and the sentence says it
    cause = error.__cause__
    while isinstance(cause, NbflowError):
        cause = cause.__cause__
    shell = get_ipython()
    if cause is None or shell is None:
        return []
    frames = cause.__traceback__
    while frames is not None and str(frames.tb_frame.f_globals.get("__name__")).startswith("nbflow."):
        frames = frames.tb_next
    if frames is None:
        return []
    shown: list[str] = shell.InteractiveTB.structured_traceback(type(cause), cause, frames, tb_offset=0)
    return ["", *shown]


def _user_line(error: BaseException) -> str:
    """Name the innermost line of a cell that led to the error; "" when none did."""
    from IPython.core.getipython import get_ipython

    shell = get_ipython()
    names = getattr(getattr(shell, "compile", None), "_filename_map", {})
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if (
            frame.filename in names
            and frame.line
            and not frame.line.startswith(("get_ipython()", "await get_ipython()", "# %%"))
        ):
            return f"in cell [{names[frame.filename]}], line {frame.lineno}: {frame.line}"
    return ""


def install_error_rendering() -> None:
    """Have IPython show nbflow's errors as a short message."""
    NbflowError._render_traceback_ = render_error  # type: ignore[attr-defined]


def remove_error_rendering() -> None:
    """Undo `install_error_rendering`."""
    if "_render_traceback_" in NbflowError.__dict__:
        del NbflowError._render_traceback_  # type: ignore[attr-defined]


def shown_syntax_error(shell: Any, error: SyntaxError) -> Exception:
    """Return what stands for a syntax error of a cell, shown as IPython shows those of plain cells.

    IPython takes a SyntaxError that leaves a magic for one of an import, and
    shows all frames of the machinery; a class of the same name it asks how.
    """
    lines: list[str] = shell.SyntaxTB.structured_traceback(type(error), error, [])
    shown = {"_render_traceback_": lambda _self: lines, "__str__": lambda _self: str(error)}
    stand_in: Exception = type(type(error).__name__, (Exception,), shown)(*error.args)
    stand_in.__cause__ = error
    stand_in.__suppress_context__ = True
    return stand_in


def only_user_frames(shell: Any, error: BaseException) -> None:
    """Have IPython show this exception from the cell's own code on, without the frames of the magic.

    The way IPython offers is a `_render_traceback_` on the exception. It is
    taken off again when it was used, so the exception stays what it was.
    """
    if isinstance(error, (NbflowError, SyntaxError)) or hasattr(error, "_render_traceback_"):
        return

    def render() -> list[str]:
        vars(error).pop("_render_traceback_", None)
        frames = error.__traceback__
        while frames is not None and frames.tb_frame.f_globals.get("__name__") != "nbflow.notebook.execute":
            frames = frames.tb_next
        own = frames.tb_next if frames is not None else None
        lines: list[str] = shell.InteractiveTB.structured_traceback(
            type(error), error, own or error.__traceback__, tb_offset=0
        )
        return lines

    try:
        error._render_traceback_ = render  # type: ignore[attr-defined]
    except (AttributeError, TypeError):  # an exception without a dict: it is shown with our frames in it
        return


class Table:
    """A small table with a title: plain text in a terminal, `<table>` with scoped headers in a notebook."""

    def __init__(self, title: str, columns: list[str], rows: list[list[str]], footer: str = "") -> None:
        self.title, self.columns, self.rows, self.footer = title, columns, rows, footer

    def _repr_mimebundle_(self, **_kinds: Any) -> dict[str, str]:
        return {"text/plain": self.text(), "text/html": self.markup()}

    def text(self) -> str:
        """Return the table as plain text."""
        from io import StringIO

        from rich import box
        from rich.console import Console
        from rich.table import Table as RichTable
        from rich.text import Text

        out = StringIO()
        # In a kernel Rich would print to the front end, whatever `file` says.
        console = Console(file=out, width=110, color_system=None, highlight=False, force_jupyter=False)
        if self.rows:
            table = RichTable(*self.columns, box=box.SIMPLE_HEAD, pad_edge=False)
            for row in self.rows:
                table.add_row(*(Text(cell) for cell in row))
            console.print(Text(self.title))
            console.print(table, end="")
        else:
            console.print(Text(self.title))
        if self.footer:
            console.print(Text(self.footer), end="")
        return "\n".join(line.rstrip() for line in out.getvalue().splitlines()).rstrip()

    def markup(self) -> str:
        """Return the table as HTML."""
        style = "text-align:left;white-space:nowrap;padding:0.1em 0.9em 0.1em 0"
        head = "".join(f'<th scope="col" style="{style}">{html.escape(name)}</th>' for name in self.columns)
        body = "".join(
            f'<tr><th scope="row" style="{style};font-weight:600">{html.escape(first)}</th>'
            + "".join(f'<td style="{style}">{html.escape(cell)}</td>' for cell in rest)
            + "</tr>"
            for first, *rest in self.rows
        )
        title = html.escape(self.title)
        # The caption is the table's name for screen readers; the eye has the line above.
        hidden = "position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%)"
        table = (
            f'<div style="{SCROLL}" tabindex="0"><table style="border-collapse:collapse;margin:0.3em 0">'
            f'<caption style="{hidden}">{title}</caption>'
            f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
            if self.rows
            else ""
        )
        footer = f"<div>{html.escape(self.footer)}</div>" if self.footer else ""
        return f'<div style="{FONT}"><div><strong>{title}</strong></div>{table}{footer}</div>'
