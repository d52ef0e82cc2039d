"""What a static record is made of: headings, sentences, tables, pictures. Each is told as HTML and as plain text.

Texts are data until they are written here, and escaped here: only `Drawing` holds
markup, and that comes from `svg.py`. No scripts, no links, no style sheets: styles are attributes,
in colours of the notebook's theme with fallbacks.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from nbflow.board.svg import look
from nbflow.board.words import visible

#: Marks of states in plain text, as the command line has them.
MARKS: Final = {
    "pending": "○",
    "running": "▶",
    "waiting": "⏸",
    "completed": "✔",
    "approved": "✔",
    "failed": "✘",
    "rejected": "✘",
    "cancelled": "⊘",
    "skipped": "↷",
    "timed_out": "⏱",
    "stopped": "■",
    "sent": "→",
    "corrupt": "☠",
}

_TONES: Final = {
    "good": "#1a7034",
    "bad": "#b3261e",
    "warn": "#8a5300",
    "brand": "#155fa8",
    "quiet": "#57606a",
}
_LINE: Final = "var(--jp-border-color2,#d0d7de)"
_BASE64: Final = re.compile(r"[A-Za-z0-9+/=\s]*")
_IMAGES: Final = frozenset({"image/png", "image/jpeg", "image/svg+xml"})

#: Characters of one cell of a table, and of one text; and of a cell that stays in one line.
CELL, TEXT, _SHORT = 240, 8_000, 26


@dataclass(frozen=True)
class State:
    """A state in a sentence or a cell of a table: mark and word."""

    word: str


Cell = str | State


@dataclass(frozen=True)
class Heading:
    """The title of what follows."""

    text: str
    level: int = 3


@dataclass(frozen=True)
class Sentence:
    """Words and states in one line."""

    parts: tuple[Cell, ...]
    quiet: bool = False


@dataclass(frozen=True)
class Words:
    """A text of its own, kept as it was written: feedback, a traceback, what was printed."""

    text: str
    quoted: bool = False


@dataclass(frozen=True)
class Table:
    """Columns and rows; `title` is the caption, `numbers` are the columns aligned to the right."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    title: str = ""
    numbers: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Image:
    """A picture as Base64."""

    mime: str
    data: str
    alt: str = ""


@dataclass(frozen=True)
class Drawing:
    """An SVG that was drawn here; what it says must stand beside it as well."""

    svg: str


Block = Heading | Sentence | Words | Table | Image | Drawing


def plain(text: object, most: int) -> str:
    r"""Return a text of a bounded length in which nothing is hidden; its lines stay.

    >>> plain("a\x1b[31mb\nc", 10), plain("x" * 20, 5)
    ('a\ufffd[31mb\nc', 'xxxx…')
    """
    said = str(text)
    said = f"{said[: most - 1]}…" if len(said) > most else said
    return "\n".join(_line(line) for line in said.splitlines())


def _line(line: str) -> str:
    indent = len(line) - len(line.lstrip(" \t"))
    return line[:indent] + visible(line[indent:], spaces=True)


# --- HTML ---------------------------------------------------------------------------------------------------------


def to_html(blocks: Iterable[Block]) -> str:
    """Return blocks as HTML."""
    return "".join(map(_html, blocks))


def _html(block: Block) -> str:
    if isinstance(block, Heading):
        level = min(max(block.level, 2), 5)
        style = f"margin:12px 0 4px;font-size:{1.35 - 0.1 * level:.2f}em"
        return f'<h{level} style="{style}">{_escape(block.text)}</h{level}>'
    if isinstance(block, Sentence):
        style = "margin:2px 0" + (";color:var(--jp-ui-font-color2,#57606a)" if block.quiet else "")
        return f'<p style="{style}">{"".join(map(_cell, block.parts))}</p>'
    if isinstance(block, Words):
        bar = f"border-left:3px solid {_LINE};padding:4px 10px" if block.quoted else "padding:6px 8px"
        style = (
            f"margin:4px 0;white-space:pre-wrap;overflow-wrap:anywhere;max-height:24em;overflow:auto;{bar}"
        )
        return f'<pre style="{style}">{html.escape(plain(block.text, TEXT))}</pre>'
    if isinstance(block, Table):
        return _table(block)
    if isinstance(block, Image):
        return _image(block)
    # Where SVG is dropped, its words are not: they would stand there in a row.
    return f'<div style="margin:6px 0;overflow-x:auto;font-size:0;line-height:0">{block.svg}</div>'


def _escape(text: str, most: int = CELL) -> str:
    return html.escape(plain(text, most).replace("\n", " "))


def _cell(cell: Cell) -> str:
    if isinstance(cell, str):
        return _escape(cell)
    tone, word, _, _ = look(cell.word)
    mark = MARKS.get(cell.word, "·")
    colour = f"color-mix(in srgb,{_TONES[tone]} 72%,var(--jp-ui-font-color1,#1f2328))"
    return f'<span style="color:{colour};font-weight:600;white-space:nowrap">{mark} {_escape(word)}</span>'


def _table(table: Table) -> str:
    def style(column: int) -> str:
        side = "right" if column in table.numbers else "left"
        return f"text-align:{side};padding:3px 8px;vertical-align:top;border-bottom:1px solid {_LINE};"

    def wrap(cell: Cell) -> str:
        long = isinstance(cell, str) and len(cell) > _SHORT
        return "overflow-wrap:anywhere;min-width:12em" if long else "white-space:nowrap"

    styles = [style(number) for number in range(len(table.columns))]
    head = "".join(
        f'<th scope="col" style="{one}{wrap("")}">{_escape(column)}</th>'
        for one, column in zip(styles, table.columns, strict=True)
    )
    rows = "".join(
        "<tr>"
        + "".join(
            f'<td style="{one}{wrap(cell)}">{_cell(cell)}</td>' for one, cell in zip(styles, row, strict=True)
        )
        + "</tr>"
        for row in table.rows
    )
    caption = (
        '<caption style="text-align:left;padding:4px 0;font-weight:600;white-space:nowrap">'
        f"{_escape(table.title)}</caption>"
        if table.title
        else ""
    )
    return (
        '<div style="overflow-x:auto"><table style="border-collapse:collapse;margin:4px 0;font-size:inherit">'
        f"{caption}<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _image(image: Image) -> str:
    if image.mime not in _IMAGES or _BASE64.fullmatch(image.data) is None:
        return _html(Sentence(("A picture that cannot be shown here.",), quiet=True))
    source = f"data:{image.mime};base64,{''.join(image.data.split())}"
    alt = html.escape(plain(image.alt or "A picture", CELL).replace("\n", " "))
    return (
        f'<div style="margin:6px 0"><img src="{source}" alt="{alt}" style="max-width:100%;height:auto"></div>'
    )


# --- plain text ---------------------------------------------------------------------------------------------------


def to_text(blocks: Iterable[Block]) -> str:
    """Return blocks as plain text."""
    return "\n".join(filter(None, map(_text, blocks)))


def _text(block: Block) -> str:
    if isinstance(block, Heading):
        return f"\n{_cut(block.text)}"
    if isinstance(block, Sentence):
        return "".join(map(_word, block.parts))
    if isinstance(block, Words):
        return "\n".join(f"    {line}" for line in plain(block.text, TEXT).splitlines())
    if isinstance(block, Table):
        return _columns(block)
    if isinstance(block, Image):
        return f"[{_cut(block.alt or 'picture')}]"
    return ""


def _cut(text: str) -> str:
    return plain(text, CELL).replace("\n", " ")


def _word(cell: Cell) -> str:
    return _cut(cell) if isinstance(cell, str) else f"{MARKS.get(cell.word, '·')} {look(cell.word)[1]}"


def _columns(table: Table) -> str:
    rows: list[Sequence[str]] = [
        [*map(_cut, table.columns)],
        *([_word(cell) for cell in row] for row in table.rows),
    ]
    widths = [min(60, max(len(row[place]) for row in rows)) for place in range(len(table.columns))]
    lines = [
        "  ".join(
            cell.rjust(width) if place in table.numbers else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    return "\n".join([f"\n{_cut(table.title)}", *lines] if table.title else lines)
