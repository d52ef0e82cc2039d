"""Recorded output of a cell, and recorded values, as exhibits: plain JSON that every page can show."""

from __future__ import annotations

import base64
import json
from typing import Any

from nbflow.board.plain import cut, plain, uncoloured
from nbflow.core.model import OutputInfo
from nbflow.notebook.capture import Display, Output, lost_notice

Exhibit = dict[str, Any]

#: Characters of one text, and of one picture in Base64, that a page is sent.
TEXT, PICTURE = 100_000, 8_000_000

_PICTURES = ("image/png", "image/jpeg", "image/svg+xml")
_WIDGET = "application/vnd.jupyter.widget-view+json"


def display_exhibits(display: Display) -> list[Exhibit]:
    """Return what a cell showed, in order."""
    shown = [exhibit for output in display.outputs if (exhibit := _output(output)) is not None]
    if display.lost:
        shown.append(notice(lost_notice(display.lost, display.limit).strip().strip("[]")))
    return shown


def _output(output: Output) -> Exhibit | None:
    if output.kind == "stream":
        stream = "stderr" if output.name == "stderr" else "stdout"
        return {"kind": "text", "text": cut(uncoloured(output.text), TEXT), "stream": stream}
    return bundle_exhibit(output.data)


def bundle_exhibit(data: dict[str, Any]) -> Exhibit | None:
    """Return a MIME bundle as one exhibit: its picture, page, Markdown, JSON or text; None for an empty one.

    >>> bundle_exhibit({"text/plain": "3"})
    {'kind': 'text', 'text': '3'}
    """
    text = _text(data.get("text/plain", ""))
    for mime in _PICTURES:
        if mime in data:
            return picture(mime, data[mime], alt=text)
    if _WIDGET in data:
        return notice(f"A widget, which lives in its kernel only. {cut(text, 200)}".strip())
    if "text/html" in data:
        html = _text(data["text/html"])
        if len(html) <= PICTURE:
            return {"kind": "html", "html": cut(html, PICTURE)}
    if "text/markdown" in data:
        return {"kind": "markdown", "text": cut(_text(data["text/markdown"]), TEXT)}
    if "application/json" in data:
        return json_exhibit(data["application/json"])
    if text:
        return {"kind": "text", "text": cut(uncoloured(text), TEXT)}
    return notice(f"Shown as {', '.join(sorted(data))}, which is not shown here.") if data else None


def picture(mime: str, data: Any, *, alt: str = "") -> Exhibit:
    """Return a picture: raw bytes, Base64 text as notebooks hold it, or the text of an SVG."""
    if isinstance(data, (bytes, bytearray, memoryview)):
        encoded = base64.b64encode(data).decode()
    elif mime == "image/svg+xml":
        encoded = base64.b64encode(_text(data).encode("utf-8", "replace")).decode()
    else:
        encoded = "".join(_text(data).split())
    if len(encoded) > PICTURE:
        return notice(f"A picture of {len(encoded) * 3 // 4:,} bytes is too large to be shown here.")
    return {"kind": "image", "mime": mime, "data": encoded, "alt": cut(alt, 200)}


def json_exhibit(value: Any) -> Exhibit:
    """Return plain data as indented JSON.

    >>> json_exhibit({"a": 1})["text"].split()
    ['{', '"a":', '1', '}']
    """
    return {
        "kind": "json",
        "text": cut(json.dumps(plain(value, items=1_000), ensure_ascii=False, indent=2), TEXT),
    }


def notice(text: str) -> Exhibit:
    """Return a sentence that stands where something cannot be shown."""
    return {"kind": "notice", "text": text}


def output_row(output: OutputInfo) -> dict[str, Any]:
    """Return a recorded variable in one line, from what was recorded beside it: nothing is loaded."""
    row: dict[str, Any] = {
        "name": output.name,
        "type": output.type,
        "size": output.size,
        "rows": output.rows,
        "preview": cut(output.preview),
    }
    if output.columns is not None:
        row["columns"] = [{"name": cut(c.name, 200), "type": cut(c.type, 200)} for c in output.columns[:200]]
    return row


def _text(value: Any) -> str:
    return "".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
