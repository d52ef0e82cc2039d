"""The picture of a graph as SVG: well-formed whatever the texts are, with each state in colour, icon and word."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import nbflow
from nbflow.board.graph import graph_of
from nbflow.board.svg import STATES, picture

HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "]]> & &amp; </svg></text>",
    "a\u202egnp.exe\u2066",
    "\x00\x07\x1b[31m\ud800",
    "x" * 5000,
    "',);--",
    "",
]
STATIC = Path(nbflow.__file__).parent / "widgets" / "static"


def graph(*labels: str, **facts: Any) -> dict[str, Any]:
    """A drawn chain of nodes with these labels."""
    machine = nbflow.Machine("m", [str(number) for number in range(len(labels))], initial="0", final=set())
    drawn = {**graph_of(None, machine), "run": "a-run"}
    for node, label in zip(drawn["nodes"], labels, strict=True):
        node.update({"label": label, "text": label[:20], **facts})
    return drawn


def words(text: str) -> str:
    """All that the picture says."""
    return " ".join(ET.fromstring(text).itertext())


@settings(deadline=None, max_examples=100)
@given(
    st.lists(st.one_of(st.text(max_size=60), st.sampled_from(HOSTILE)), min_size=1, max_size=4), st.booleans()
)
def test_any_text_gives_a_picture_without_markup_of_its_own(labels: list[str], standalone: bool) -> None:
    """Whatever states are called, the SVG is well-formed and has no elements but ours, and no handlers."""
    drawn = graph(*labels, error=labels[0], state=labels[-1])
    drawn["name"] = labels[0]
    text = picture(drawn, standalone=standalone)
    elements = list(ET.fromstring(text.replace("<svg ", '<svg xmlns:q="q" ', 1)).iter())
    names = {element.tag.rpartition("}")[2] for element in elements}
    assert names <= {
        "svg",
        "title",
        "desc",
        "style",
        "rect",
        "g",
        "path",
        "polygon",
        "text",
        "tspan",
        "circle",
    }
    assert not any(name.startswith("on") or "href" in name for element in elements for name in element.attrib)
    assert not re.search("[\u202a-\u202e\u2066-\u2069]", text)
    assert len(text) < 20_000  # whatever was given is cut to what is seen


@pytest.mark.parametrize("state", STATES)
def test_a_state_is_said_by_colour_icon_and_word(state: str) -> None:
    """Nobody needs to see the colour to know the state."""
    tone, word, icon, _ = STATES[state]
    text = picture(graph("a", state=state))
    assert word in words(text)
    assert f'd="{icon}"' in text
    assert f'class="{tone}' in text


def test_the_icons_are_those_of_the_live_view() -> None:
    """The static picture and the page cannot drift apart: both have the same states, words, tones and icons."""
    source = (STATIC / "states.js").read_text("utf-8")
    icons = dict(re.findall(r'^  (\w+): "(M[^"]+)",$', source, re.MULTILINE))
    table = re.findall(
        r'^  (\w+): \{tone: "(\w+)", word: "([^"]+)", icon: "(\w+)"(, filled: true)?\},$',
        source,
        re.MULTILINE,
    )
    live = {state: (tone, word, icons[icon], bool(filled)) for state, tone, word, icon, filled in table}
    assert live == dict(STATES)


def test_it_is_readable_without_seeing_it() -> None:
    """The description lists the states in order with what became of them."""
    drawn = graph("load", "fit", state="completed", seconds=2.0)
    found = ET.fromstring(picture(drawn))
    title, description = found.find("title"), found.find("desc")
    assert title is not None
    assert description is not None
    assert (title.text, description.text) == ("m", "load: Completed, 2.0 s; fit: Completed, 2.0 s")


def test_a_picture_of_its_own_is_right_in_the_light_and_in_the_dark() -> None:
    """Standing alone it follows the viewer's system and needs no variables; in a page it takes the theme's colours."""
    alone, inside = picture(graph("a"), standalone=True), picture(graph("a"))
    assert "@media (prefers-color-scheme:dark)" in alone
    assert "var(" not in alone
    assert "color-mix" not in alone
    assert "xmlns=" in alone
    assert "var(--jp-layout-color1" in inside


def test_the_legend_explains_what_occurs_and_nothing_else() -> None:
    """A picture without retries says nothing of retries."""
    assert "retries" not in words(picture(graph("a")))
    assert "retries" in words(picture(graph("a", retries=2)))
    drawn = graph("a", "b")
    drawn["edges"] = [
        {"source": "0", "target": "1", "kind": "next", "taken": taken, "points": [[0, 0], [0, 9]]}
        for taken in (0, 1)
    ]
    assert "not taken" in words(picture(drawn))
    drawn["edges"] = drawn["edges"][1:]
    assert "not taken" not in words(picture(drawn))


def test_a_definition_says_what_its_states_are() -> None:
    """Where nothing ran nothing is pending: states are named initial, final, or by their kind."""
    machine = nbflow.Machine("m", ["a", "b", "c"], initial="a", final={"c"})
    machine.state("a", to="b")(lambda ctx: "b")
    machine.state("b", kind="poll", to="c")(lambda ctx: "c")
    said = words(picture(graph_of(None, machine)))
    for word in ("Initial", "Poll", "Final"):
        assert word in said
    assert "Pending" not in said
    assert "not taken" not in said
