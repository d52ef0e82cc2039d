"""Objects as a page can show them: small, plain, JSON. What a gate shows is recorded in this form.

An exhibit is a dict whose `kind` is table, image, text, json, html, markdown or
notice. Whatever cannot be drawn becomes a notice: no gate stays closed because
of a figure. Libraries are not imported for it; who has a figure has matplotlib.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nbflow.runtime.gates.tables import clean, is_table, kinds_of, table_exhibit

__all__ = ["Ready", "encode", "exhibit", "table_exhibit"]

#: Bytes of one picture, characters of one text and of one HTML, and of all exhibits together as they are recorded.
PICTURE, TEXT, HTML, TOTAL = 300_000, 20_000, 100_000, 2_000_000

#: How many things a gate shows at the most.
MOST = 40

#: Dots per inch that a figure is drawn with, unless that is too much.
DPI = 144.0

#: The longest side of a picture in pixels.
SIDE = 1600


@dataclass(frozen=True)
class Ready:
    """Something that is an exhibit already."""

    exhibit: dict[str, Any]


def encode(objects: object) -> list[dict[str, Any]]:
    r"""Return what is to be shown as exhibits: of each object in a list or tuple, or of the one object; None is none.

    Together they stay below two megabytes; a notice says what was left out.

    >>> encode(["fine", {"auc": 0.93}])
    [{'kind': 'text', 'text': 'fine'}, {'kind': 'json', 'text': '{\n  "auc": 0.93\n}'}]
    """
    if objects is None:
        return []
    listed = list(objects) if isinstance(objects, (list, tuple)) else [objects]
    found: list[dict[str, Any]] = []
    size = 0
    for place, each in enumerate(listed):
        shown = exhibit(each) if place < MOST else _notice("")
        size += len(json.dumps(shown))
        if size > TOTAL or place >= MOST:
            left = len(listed) - place
            found.append(
                _notice(
                    f"{left} more of {len(listed)} are not shown: a gate shows at most {MOST} things "
                    f"of {TOTAL // 1_000_000} MB together."
                )
            )
            break
        found.append(shown)
    return found


def exhibit(value: Any) -> dict[str, Any]:
    """Return an object as an exhibit; a notice where it cannot be shown, never an error.

    >>> exhibit("hello")
    {'kind': 'text', 'text': 'hello'}
    """
    try:
        return _exhibit(value)
    except Exception as error:  # noqa: BLE001 - a person's object may raise anything when it is drawn
        return _notice(f"A {_type(value)} could not be shown: {_said(error)}")


def _exhibit(value: Any) -> dict[str, Any]:
    if isinstance(value, Ready):
        return value.exhibit
    if isinstance(value, str):
        return _text(value)
    if value is None or isinstance(value, (bool, int, float, complex)):
        return _text(str(value))
    figure = _figure_of(value)
    if figure is not None:
        return _figure(figure)
    if is_table(value):
        return table_exhibit(value)
    kinds = kinds_of(value)
    if ("PIL", "Image") in kinds:
        return _pillow(value)
    if isinstance(value, (Mapping, list, tuple)):
        return _json(value)
    return _represented(value) or _text(repr(value))


def _type(value: Any) -> str:
    return clean(type(value).__name__)


def _said(error: BaseException) -> str:
    try:
        line = str(error).strip().partition("\n")[0]
    except Exception:  # noqa: BLE001 - an error of an error
        line = ""
    return clean(f"{type(error).__name__}: {line[:200]}" if line else type(error).__name__)


def _notice(text: str) -> dict[str, Any]:
    return {"kind": "notice", "text": text}


def _cut(text: str, most: int) -> str:
    text = clean(text)
    return text if len(text) <= most else f"{text[:most]}\n… ({len(text) - most} more characters)"


def _text(text: str) -> dict[str, Any]:
    return {"kind": "text", "text": _cut(text, TEXT)}


def _json(value: Any) -> dict[str, Any]:
    plain = value if isinstance(value, (list, tuple)) else {str(key): part for key, part in value.items()}
    text = json.dumps(plain, indent=2, ensure_ascii=False, default=_short, skipkeys=True)
    return {"kind": "json", "text": _cut(text, TEXT)}


def _short(value: Any) -> Any:
    """Return what stands for an object within JSON."""
    item = getattr(value, "item", None)
    if callable(item) and getattr(value, "ndim", None) == 0:
        return item()  # a NumPy number
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:199]}…"


def _html(html: str, what: str) -> dict[str, Any]:
    html = clean(html)
    if "<script" in html.lower():
        return _notice(f"A {what} is drawn by a script, which is not run here. Show a picture of it instead.")
    if len(html) > HTML:
        return _notice(f"A {what} takes {len(html)} characters of HTML, more than the {HTML} that are kept.")
    return {"kind": "html", "html": html}


def _image(mime: str, data: bytes, alt: str) -> dict[str, Any]:
    if len(data) > PICTURE:
        return _notice(f"A picture ({alt}) takes {len(data)} bytes, more than the {PICTURE} that are kept.")
    found = {"kind": "image", "mime": mime, "data": base64.b64encode(data).decode()}
    return {**found, "alt": clean(alt)[:500]} if alt else found


# --- pictures -------------------------------------------------------------------------------------------------


def _figure_of(value: Any) -> Any:
    """Return the matplotlib figure that a value is or belongs to (axes, a grid of seaborn's); None where it is none."""
    for each in (value, getattr(value, "figure", None) if not isinstance(value, Mapping) else None):
        if ("matplotlib", "FigureBase") in kinds_of(each) and hasattr(each, "savefig"):
            return each
    return None


def _figure(figure: Any) -> dict[str, Any]:
    data, dpi = b"", DPI
    while not data or (len(data) > PICTURE and dpi > DPI / 20):
        dpi *= 1.0 if not data else min(0.8, 0.95 * (PICTURE / len(data)) ** 0.5)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=dpi, bbox_inches="tight")
        data = buffer.getvalue()
    return _image("image/png", data, _title(figure))


def _title(figure: Any) -> str:
    """Return what a figure is called: its title, else those of its axes, else what their labels say."""
    above = getattr(figure, "_suptitle", None)
    titles = [above.get_text()] if above is not None else []
    titles += [axes.get_title() for axes in figure.axes]
    found = [title.strip() for title in titles if title.strip()]
    if not found:
        labels = ((axes.get_ylabel(), axes.get_xlabel()) for axes in figure.axes)
        found = [f"{y} over {x}" for y, x in labels if x and y]
    return "; ".join(dict.fromkeys(found)) or "A figure without a title"


def _pillow(image: Any) -> dict[str, Any]:
    alt = f"A picture of {image.width} × {image.height} pixels"
    side = SIDE
    while True:
        smaller = image.copy()
        smaller.thumbnail((side, side))
        if smaller.mode not in ("1", "L", "LA", "P", "RGB", "RGBA"):
            smaller = smaller.convert("RGB")
        for form in ("png", "jpeg"):
            buffer = io.BytesIO()
            (smaller if form == "png" else smaller.convert("RGB")).save(buffer, format=form)
            if buffer.tell() <= PICTURE:
                return _image(f"image/{form}", buffer.getvalue(), alt)
        side = side * 2 // 3


# --- objects that show themselves -----------------------------------------------------------------------------


def _represented(value: Any) -> dict[str, Any] | None:
    """Return what an object says of itself to a notebook, the picture first; None where it says nothing."""
    for mime, data in _representations(value):
        if mime in ("image/png", "image/jpeg"):
            raw = data if isinstance(data, bytes) else base64.b64decode(data)
            return _image(mime, raw, f"A {_type(value)}")
        if mime == "image/svg+xml":
            text = data.decode() if isinstance(data, bytes) else str(data)
            return _image(mime, text.encode("utf-8", "replace"), f"A {_type(value)}")
        if mime == "text/html":
            return _html(str(data), _type(value))
        return {"kind": "markdown", "text": _cut(str(data), TEXT)}
    return None


_METHODS = {
    "_repr_png_": "image/png",
    "_repr_jpeg_": "image/jpeg",
    "_repr_svg_": "image/svg+xml",
    "_repr_html_": "text/html",
    "_repr_markdown_": "text/markdown",
}


def _representations(value: Any) -> list[tuple[str, Any]]:
    found = {}
    # Of a class the methods are there, and nobody to ask; of a mock every method is there.
    if isinstance(value, type) or _asks_for_anything(value):
        return []
    for method, mime in _METHODS.items():
        ask = getattr(value, method, None)
        data = ask() if callable(ask) else None
        if data is not None:
            found[mime] = data
    bundle = getattr(value, "_repr_mimebundle_", None)
    if not found and callable(bundle):
        data = bundle(include=None, exclude=None)
        found = dict(data[0] if isinstance(data, tuple) else data or {})
    # With its metadata, if it has any.
    pairs = ((mime, found[mime]) for mime in _METHODS.values() if found.get(mime) is not None)
    return [(mime, data[0] if isinstance(data, tuple) else data) for mime, data in pairs]


def _asks_for_anything(value: Any) -> bool:
    return callable(getattr(value, "_nbflow_no_such_method_", None))
