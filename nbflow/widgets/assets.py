"""The front end as texts: one module and one style sheet, put together from the files in `static/`.

The modules import each other as `./x.js`, so that a server can also hand them
out as they are. A widget is given one text instead: `loader.js` with all
modules in it, each behind those that it imports. Nothing is built or fetched;
what is only there for people who read the files is left out.
"""

from __future__ import annotations

import hashlib
import re
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

#: Where the modules and style sheets are.
STATIC = Path(__file__).with_name("static")

_LOADER = "loader.js"
_IMPORT = re.compile(r"""(?:from|import)\s*\(?\s*["']\./([\w-]+\.js)["']""")
_COMMENT = re.compile(r"^[ \t]*(?://[^\n]*|/\*.*?\*/[ \t]*)\n", re.MULTILINE | re.DOTALL)
_INDENT = re.compile(r"^[ \t]+|^\n", re.MULTILINE)
#: A line whose end goes on: what follows it may as well stand on it, unless it ends in a remark.
_GOES_ON = re.compile(r"^((?:(?!//)[^\n])*[{;,(\[])\n", re.MULTILINE)
_AROUND = re.compile(r"\s*([{};,>])\s*")


def imported(source: str) -> tuple[str, ...]:
    """Return the modules that a module imports, each once.

    >>> imported('import {h} from "./dom.js"; const more = () => import("./graph.js");')
    ('dom.js', 'graph.js')
    """
    return tuple(dict.fromkeys(_IMPORT.findall(source)))


def in_order(sources: dict[str, str]) -> list[str]:
    """Return the names of modules, each behind those that it imports.

    Raises:
        graphlib.CycleError: modules import each other in a circle.

    >>> in_order({"a.js": 'import "./b.js";', "b.js": ""})
    ['b.js', 'a.js']
    """
    graph = {
        name: [one for one in imported(text) if one in sources] for name, text in sorted(sources.items())
    }
    return list(TopologicalSorter(graph).static_order())


def modules() -> dict[str, str]:
    """Return the modules of the front end by name, as they are given to pages; the loader is not among them."""
    return {path.name: bare(path.read_text("utf-8")) for path in STATIC.glob("*.js") if path.name != _LOADER}


@cache
def module() -> str:
    """Return the module that a widget is given."""
    sources = modules()
    listed = ",\n".join(f"[{_quoted(name)}, {_quoted(sources[name])}]" for name in in_order(sources))
    digest = hashlib.blake2b(listed.encode(), digest_size=8).hexdigest()
    loader = bare((STATIC / _LOADER).read_text("utf-8"))
    return loader.replace("@DIGEST@", digest).replace("/* @MODULES@ */", listed)


def _quoted(text: str) -> str:
    """Return a text as a string of JavaScript; in single quotes, since the modules use double ones."""
    escaped = text.replace("\\", r"\\").replace("'", r"\'").replace("\r", r"\r").replace("\n", r"\n")
    return f"'{escaped}'"


@cache
def style() -> str:
    """Return the style sheet of all views: `style.css` first, the others by name."""
    paths = sorted(STATIC.glob("*.css"), key=lambda path: (path.name != "style.css", path.name))
    text = "\n".join(_COMMENT.sub("", path.read_text("utf-8")) for path in paths)
    return re.sub(r"(?<=[\w-]): ", ":", _AROUND.sub(r"\1", text))


def bare(source: str) -> str:
    r"""Return a module without lines that are comments, without indentation, and with fewer lines.

    A template literal over several lines must not have an end of line that goes on.

    >>> bare("// why\nif (x) {\n  y(); // now\n}\n")
    'if (x) {y(); // now\n}\n'
    """
    return _GOES_ON.sub(r"\1", _INDENT.sub("", _COMMENT.sub("", source)))
