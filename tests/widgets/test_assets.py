"""The front end as files: small, in order, and with no way for a text to become HTML."""

from __future__ import annotations

import re
import shutil
import subprocess
from graphlib import CycleError
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbflow.widgets import assets

FILES = sorted(assets.STATIC.glob("*.js"))

#: What turns a text into HTML or code, or fetches from elsewhere.
FORBIDDEN = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|setAttribute\(\s*['\"]on|https?://(?!www\.w3\.org)"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_no_module_parses_html_or_fetches_code(path: Path) -> None:
    """What comes from a run can only ever be a text: no module has a way to parse HTML, run code or load from a network."""
    assert re.findall(FORBIDDEN, path.read_text("utf-8")) == []


def test_one_frame_alone_is_given_html() -> None:
    """Recorded HTML goes into a sandboxed frame, in one place, and nowhere else."""
    places = [path.name for path in FILES if re.search(r"\.srcdoc\s*=", path.read_text("utf-8"))]
    assert places == ["exhibit.js"]
    assert 'sandbox: ""' in (assets.STATIC / "exhibit.js").read_text("utf-8")


def test_a_page_is_given_at_most_150_kilobytes() -> None:
    """All code and style that a page is given is at most 150 kB."""
    given_to_page = len(assets.module().encode()) + len(assets.style().encode())
    assert given_to_page <= 150_000


def test_every_module_comes_behind_what_it_imports() -> None:
    """The loader can link the modules one by one: each stands behind all that it imports, and all of them are there."""
    sources = assets.modules()
    ordered = assets.in_order(sources)
    assert sorted(ordered) == sorted(sources)
    late = [
        (name, other)
        for name in ordered
        for other in assets.imported(sources[name])
        if ordered.index(other) > ordered.index(name)
    ]
    assert late == []


def test_modules_in_a_circle_are_refused() -> None:
    """Modules that import each other are a mistake that is found in Python, not on somebody's page."""
    with pytest.raises(CycleError):
        assets.in_order({"a.js": 'import "./b.js";', "b.js": 'import "./a.js";'})


@given(st.text())
def test_any_source_survives_the_way_to_the_page(source: str) -> None:
    """What is quoted into the loader is read back by the browser as it was: the escapes are those of JavaScript."""
    quoted = assets._quoted(source)
    assert "\n" not in quoted
    assert "\r" not in quoted
    inner = quoted[1:-1]
    back = re.sub(r"\\(.)", lambda found: {"n": "\n", "r": "\r"}.get(found[1], found[1]), inner)
    assert back == source
    assert re.fullmatch(r"(?:[^'\\]|\\.)*", inner, re.DOTALL) is not None


def test_the_module_is_javascript(tmp_path: Path) -> None:
    """What a widget is given parses as a module."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not here; the browser tests load the module too")
    file = tmp_path / "view.mjs"
    file.write_text(assets.module(), "utf-8")
    found = subprocess.run([node, "--check", str(file)], capture_output=True, text=True, check=False)
    assert found.stderr == ""


def test_styles_reach_nothing_outside() -> None:
    """Every rule is about nbflow's own elements: a notebook's look is not touched."""
    text = re.sub(r"@keyframes[^{]*\{(?:[^{}]*\{[^{}]*\})*[^{}]*\}", "", assets.style())
    selectors = [
        one.strip()
        for group in re.findall(r"([^{}]+)\{[^{}]*\}", text)
        for one in re.sub(r"\([^()]*\)", "", group).split(",")
        if not group.lstrip().startswith("@")
    ]
    outside = [one for one in selectors if one and ".nbflow" not in one and not one.startswith("[aria-sort")]
    assert outside == []
    assert len(selectors) > 100
