"""The static record: the facts of a view as HTML without scripts and as text, safe whatever a run was called."""

from __future__ import annotations

import base64
import re
from html.parser import HTMLParser
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import nbflow
from nbflow.board.graph import graph_of
from nbflow.board.record import record

#: What JupyterLab's sanitizer lets through in notebooks that are not trusted (and SVG, which it drops).
KEPT = {
    "div",
    "p",
    "span",
    "h2",
    "h3",
    "h4",
    "h5",
    "pre",
    "table",
    "caption",
    "thead",
    "tbody",
    "tr",
    "th",
    "td",
    "img",
}
DRAWN = {"svg", "title", "desc", "style", "rect", "g", "path", "polygon", "text", "tspan", "circle"}
ATTRIBUTES = {"class", "style", "scope", "src", "alt"}
HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "]]></style><style>*{display:none}",
    "a\u202egnp.exe\u2066",
    "\x00\x1b[31m\ud800",
    "y" * 20_000,
    "javascript:alert(1)",
    "multi\nline\ttext",
]
PIXEL = base64.b64encode(b"\x89PNG").decode()


class Reader(HTMLParser):
    """Collects elements with their attributes, and the text of each."""

    def __init__(self) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def read(html: str) -> Reader:
    reader = Reader()
    reader.feed(html)
    reader.close()
    return reader


def run_row(text: str = "etl", **facts: Any) -> dict[str, Any]:
    return {
        "run": "01a1fff8-8b55-70c7-86d4-a1bec25cecf1",
        "workflow": text,
        "kind": "machine",
        "state": "failed",
        "created": 60.0,
        "updated": 90.0,
        "finished": 90.0,
        "seconds": 30.0,
        "attempts": 2,
        "steps": 3,
        "tags": {text: text},
        "params": {text: text},
        "error": text,
        "gates": 1,
        **facts,
    }


def gate_row(text: str = "Publish?", **facts: Any) -> dict[str, Any]:
    return {
        "run": "01a1fff8-8b55-70c7-86d4-a1bec25cecf1",
        "workflow": text,
        "step": text,
        "name": text,
        "text": text,
        "options": [text, "other"],
        "opened": 60.0,
        "due": 90.0,
        "state": "approved",
        "decision": {
            "approved": True,
            "by": text,
            "at": 70.0,
            "feedback": text,
            "selections": [text],
            "via": "cli",
        },
        "exhibits": [
            {
                "kind": "table",
                "columns": [{"name": text, "type": "str"}],
                "rows": [[text], [None]],
                "title": text,
            },
            {"kind": "image", "mime": "image/png", "data": PIXEL, "alt": text},
            {"kind": "image", "mime": text, "data": text},
            {"kind": "text", "text": text},
            {"kind": "json", "text": text},
            {"kind": "html", "html": text},
            {"kind": "markdown", "text": text},
            {"kind": "notice", "text": text},
        ],
        **facts,
    }


def step_row(text: str) -> dict[str, Any]:
    return {
        "execution": 3,
        "step": text,
        "name": text,
        "kind": "state",
        "state": text,
        "attempt": 1,
        "started": 61.0,
        "seconds": 2.0,
        "outputs": 2,
        "error": {"type": text, "message": text},
    }


def snapshot(text: str = "etl") -> dict[str, Any]:
    machine = nbflow.Machine("m", ["a", "b"], initial="a", final={"b"})
    graph = graph_of(None, machine)
    for node in graph["nodes"]:
        node.update(label=text, text=text, error=text, state="failed")
    return {
        "at": 0.0,
        "problem": text,
        "runs": {"rows": [run_row(text)] * 25, "total": 25, "counts": {"failed": 20, text: 5}},
        "run": {"row": run_row(text), "steps": [step_row(text)], "graph": graph, "gates": [gate_row(text)]},
        "gates": {"rows": [gate_row(text, step="another")]},
        "gate": gate_row(text),
        "disk": {"total": 5_000_000},
    }


@settings(deadline=None, max_examples=60)
@given(
    st.one_of(st.sampled_from(HOSTILE), st.text(max_size=80)), st.sampled_from(["dashboard", "fsm", "gate"])
)
def test_no_text_becomes_markup(text: str, kind: str) -> None:
    """Whatever runs, steps, errors, people and options are called, the record has our elements and attributes only."""
    made = record(kind, snapshot(text), at=0.0)
    reader = read(made["text/html"])
    outside = re.sub(r"<svg .*?</svg>", "", made["text/html"], flags=re.DOTALL)
    assert {tag for tag, _ in read(outside).elements} <= KEPT
    assert {tag for tag, _ in reader.elements} <= KEPT | DRAWN
    for tag, attributes in read(outside).elements:
        assert set(attributes) <= ATTRIBUTES
        assert tag != "img" or str(attributes["src"]).startswith("data:image/")
    assert not any(name.startswith("on") for _, attributes in reader.elements for name in attributes)
    assert not re.search("[\u202a-\u202e\u2066-\u2069\x00\x1b]", made["text/html"] + made["text/plain"])
    made["text/html"].encode()
    made["text/plain"].encode()


@pytest.mark.parametrize("kind", ["dashboard", "fsm", "gate"])
def test_what_the_picture_says_stands_in_words_too(kind: str) -> None:
    """Without SVG (as in notebooks that are not trusted) and without HTML the same facts are there."""
    made = record(kind, snapshot("etl-night"), at=0.0)
    without = re.sub(r"<svg .*?</svg>", "", made["text/html"], flags=re.DOTALL)
    said = " ".join(read(without).texts)
    for found in (said, made["text/plain"]):
        for words in ("etl-night", "Approved by etl-night at 1970-01-01 00:01:10 UTC (cli)", "Approved"):
            assert words in found
        if kind != "gate":
            assert "Failed" in found
            assert "2.0 s" in found
        if kind == "dashboard":
            assert "25 runs" in found
            assert "The first 20" in found


def test_a_gate_shows_what_it_showed() -> None:
    """Pictures are in the record itself, tables are tables; HTML of others is not taken over."""
    made = record("gate", {"gate": gate_row("fine"), "at": 0.0}, at=0.0)
    html = made["text/html"]
    assert f'src="data:image/png;base64,{PIXEL}"' in html
    assert "A page of HTML is shown in the live view only." in html
    assert "A picture that cannot be shown here." in html
    assert html.count("<table") == 2
    assert "selected" in html


def test_a_gate_that_waits_says_so() -> None:
    """Before a decision the record says what is asked, of which run, and until when."""
    made = record("gate", {"gate": gate_row("fine", state="waiting", decision=None, exhibits=[])}, at=0.0)
    assert "Waiting" in made["text/plain"]
    assert "due 1970-01-01 00:01:30 UTC" in made["text/plain"]
    assert "Approved" not in made["text/plain"]


def test_too_many_pictures_are_left_to_the_live_view() -> None:
    """A record stays a few megabytes: what is too much is said."""
    large = {"kind": "image", "mime": "image/png", "data": "A" * 2_000_000}
    made = record("gate", {"gate": gate_row("x", exhibits=[large, large])}, at=0.0)
    assert made["text/html"].count("<img") == 1
    assert "A picture of 1.5 MB is shown in the live view only." in made["text/html"]


def test_a_machine_that_did_not_run_is_recorded_as_its_definition() -> None:
    """Without a run the record says where each state leads."""
    machine = nbflow.Machine("light", ["red", "green", "off"], initial="red", final={"off"})
    machine.state("red", to="green")(lambda ctx: "green")
    machine.state("green", to="off")(lambda ctx: "off")
    made = record("fsm", {"run": {}, "graph": graph_of(None, machine)}, at=0.0)
    assert made["text/plain"].splitlines()[2:] == [
        "Machine light: 3 states",
        "state  what     leads to",
        "red    initial  green",
        "green           off",
        "off    final",
    ]


def test_nothing_is_a_record_too() -> None:
    """An empty store and one that cannot be read have something to say."""
    assert (
        "There are no runs." in record("dashboard", {"runs": {"rows": [], "total": 0}}, at=0.0)["text/plain"]
    )
    broken = record("dashboard", {"problem": "The store is locked."}, at=0.0)
    assert "The store could not be read: The store is locked." in broken["text/plain"]


def test_the_record_is_the_same_as_long_as_the_facts_are() -> None:
    """Only what changed makes an update: two records of the same answers are equal."""
    assert record("dashboard", snapshot(), at=5.0) == record("dashboard", snapshot(), at=5.0)
