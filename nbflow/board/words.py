"""How wide words are drawn: an estimate that errs on the wide side, for text in a box without a browser at hand."""

from __future__ import annotations

import unicodedata

#: Pixels of a character at 13 px in the interface fonts that JupyterLab uses, by what it looks like.
_NARROW, _USUAL, _WIDE, _FULL = 4.6, 7.7, 10.8, 13.5
_SLIM = frozenset("ijlftrI.,:;'|!()[]{} `\"/\\-")
_BROAD = frozenset("mwMWQOGDHNU@%&—…")


def text_width(text: str) -> float:
    """Return the pixels that a text takes at 13 px, about.

    >>> text_width("ill") < text_width("mow") < text_width("状態図")
    True
    """
    return sum(_width(character) for character in text)


def _width(character: str) -> float:
    if character in _SLIM:
        return _NARROW
    if character in _BROAD:
        return _WIDE
    if unicodedata.combining(character) or unicodedata.category(character) == "Cf":
        return 0.0
    if unicodedata.east_asian_width(character) in "WF":
        return _FULL
    return _USUAL + (0.9 if character.isupper() or ord(character) > 0x24F else 0.0)


def fit(text: str, width: float) -> str:
    """Return a text cut so that it takes no more than so many pixels at 13 px, with an ellipsis if anything is gone.

    >>> fit("a_very_long_name_of_a_state", 80)
    'a_very_lo…'
    """
    text = visible(text)
    if text_width(text) <= width:
        return text
    room, kept = width - _WIDE, 0
    for character in text:
        room -= _width(character)
        if room < 0:
            break
        kept += 1
    return f"{text[:kept].rstrip()}…"


def visible(text: str, *, spaces: bool = False) -> str:
    r"""Return a text in one line in which nothing is hidden: controls, bidi ones too, become a mark.

    Runs of spaces become one, unless `spaces` are to stay.

    >>> visible("a\u202eb\nc")
    'a\ufffdb c'
    """
    if text.isascii() and text.isprintable():
        return text
    if spaces:
        text = text.replace("\t", "    ")
    return "".join(_mark(character) for character in (text if spaces else " ".join(text.split())))


def _mark(character: str) -> str:
    hidden = (
        unicodedata.category(character) in ("Cc", "Cf", "Cs", "Co", "Cn") and character not in "\u200d\ufe0f"
    )
    return "\ufffd" if hidden else character
