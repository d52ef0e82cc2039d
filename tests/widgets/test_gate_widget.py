"""The card of a gate in a real kernel: shown where the cell stops or waits, clicked on as JupyterLab does."""

from __future__ import annotations

import json
import os
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import Empty
from typing import Any

import pytest

from nbflow.runtime.gates.deciding import decide
from nbflow.store.local import open_store
from tests.notebook.kernel import Kernel

WIDGET = "application/vnd.jupyter.widget-view+json"
PATIENCE = 60.0

LOAD = "%load_ext nbflow\nimport nbflow"
ASKS = "d = nbflow.gate('publish', 'Publish?', options=['web', 'mail'], show='the figures'{more})\nprint('said', d.feedback)"


class Lab:
    """The page's side of a kernel: runs cells, keeps all that is published, and sends clicks over a subshell."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.client = kernel.client
        self.heard: list[dict[str, Any]] = []
        self.subshell: str | None = None

    def until(self, ready: Callable[[], Any], *, seconds: float = PATIENCE, what: str = "") -> Any:
        """Listen until there is an answer."""
        ends = time.monotonic() + seconds
        while not (found := ready()):
            assert time.monotonic() < ends, f"not within {seconds} s: {what}\n{self.heard[-5:]}"
            try:
                self.heard.append(self.client.get_iopub_msg(timeout=0.05))
            except Empty:
                assert self.kernel.manager.is_alive(), "the kernel is gone"
        return found

    def run(self, source: str) -> str:
        """Run a cell to its end; return the id of its message."""
        sent = self.kernel.send(source)
        self.wait(sent)
        return sent

    def wait(self, sent: str) -> None:
        """Wait for the end of a cell."""
        self.until(lambda: self.idle(sent), what="the end of the cell")

    def idle(self, sent: str) -> bool:
        return any(
            each["msg_type"] == "status" and each["content"]["execution_state"] == "idle"
            for each in self.of(sent)
        )

    def of(self, sent: str) -> list[dict[str, Any]]:
        """The messages of a cell."""
        return [each for each in self.heard if each["parent_header"].get("msg_id") == sent]

    def printed(self, sent: str) -> str:
        return "".join(each["content"]["text"] for each in self.of(sent) if each["msg_type"] == "stream")

    def shown(self, sent: str) -> list[dict[str, Any]]:
        """What a cell displayed, with the updates that came later in place."""
        found = []
        for each in self.of(sent):
            if each["msg_type"] != "display_data":
                continue
            display_id = (each["content"].get("transient") or {}).get("display_id")
            data = each["content"]["data"]
            for other in self.heard:
                if other["msg_type"] == "update_display_data" and display_id:
                    if other["content"]["transient"]["display_id"] == display_id:
                        data = other["content"]["data"]
            found.append(data)
        return found

    def cards(self, sent: str) -> list[dict[str, Any]]:
        """The states of the widgets that a cell opened a card with."""
        models = [data[WIDGET]["model_id"] for data in self.shown(sent) if WIDGET in data]
        opened = {
            each["content"]["comm_id"]: each["content"]["data"]["state"]
            for each in self.heard
            if each["msg_type"] == "comm_open"
        }
        return [{"comm": model, **opened[model]} for model in models]

    def card(self, sent: str) -> dict[str, Any]:
        """The only card of a cell, as soon as it is there."""
        (card,) = self.until(lambda: self.cards(sent), what="a card")
        return card

    def ask(self, card: dict[str, Any], method: str, params: dict[str, Any], *, main: bool = False) -> str:
        """Send a message of the page, over a subshell as JupyterLab does or (`main`) as others do."""
        question = uuid.uuid4().hex
        content = {"id": question, "method": method, "params": params}
        message = self.client.session.msg(
            "comm_msg", {"comm_id": card["comm"], "data": {"method": "custom", "content": content}}
        )
        if not main:
            message["header"]["subshell_id"] = self.open_subshell()
        self.client.shell_channel.send(message)
        return question

    def answer(self, question: str) -> dict[str, Any] | None:
        """The answer to a question, where there is one yet."""
        for each in self.heard:
            content = (
                each["content"].get("data", {}).get("content", {}) if each["msg_type"] == "comm_msg" else {}
            )
            if content.get("id") == question:
                return dict(content)
        return None

    def asked(self, card: dict[str, Any], method: str, params: dict[str, Any], **how: Any) -> dict[str, Any]:
        """Ask and wait for the answer."""
        question = self.ask(card, method, params, **how)
        found: dict[str, Any] = self.until(lambda: self.answer(question), what=f"an answer to {method}")
        return found

    def open_subshell(self) -> str:
        if self.subshell is None:
            message = self.client.session.msg("create_subshell_request", {})
            self.client.control_channel.send(message)
            while True:
                reply = self.client.get_control_msg(timeout=PATIENCE)
                if reply["parent_header"].get("msg_id") == message["header"]["msg_id"]:
                    break
            self.subshell = str(reply["content"]["subshell_id"])
        return self.subshell


def decision(
    card: dict[str, Any], *, approved: bool = True, feedback: str = "fine", **more: Any
) -> dict[str, Any]:
    """The click of a person who saw this card."""
    row = card["snapshot"]["gate"]
    return {
        "run": row["run"],
        "step": row["step"],
        "opening": row["opening"],
        "approved": approved,
        "feedback": feedback,
        "selections": [],
        "via": "notebook",
        **more,
    }


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kernel]:
    folder = tmp_path_factory.mktemp("gates")
    with Kernel(folder, {**os.environ, "NBFLOW_STORE": str(folder / ".nbflow")}) as kernel:
        yield kernel


@pytest.fixture
def lab(started: Kernel) -> Lab:
    lab = Lab(started)
    for source in ("%reset -f", LOAD, "%nbflow new"):
        lab.run(source)
    return lab


def test_a_cell_that_stops_shows_the_card(lab: Lab) -> None:
    """Where a cell stops at a gate it shows the question with buttons, and a record for where there are none."""
    sent = lab.run(ASKS.format(more=""))
    card = lab.card(sent)
    assert card["kind"] == "gate"
    row = card["snapshot"]["gate"]
    assert (row["text"], row["options"], row["state"]) == ("Publish?", ["web", "mail"], "waiting")
    assert [each["text"] for each in row["exhibits"]] == ["the figures"]
    assert card["about"]["waits"] is False
    record = lab.shown(sent)[0]
    assert "Publish?" in record["text/plain"]
    assert "<script" not in record["text/html"]


def test_a_click_decides_and_running_again_goes_on(lab: Lab) -> None:
    """A click on the card is the decision; the cell that is run again gives it back and shows the record of it."""
    card = lab.card(lab.run(ASKS.format(more="")))
    row = lab.asked(card, "decide", decision(card, selections=["mail"]))["result"]
    assert (row["state"], row["decision"]["approved"], row["decision"]["via"]) == ("sent", True, "notebook")
    assert row["decision"]["selections"] == ["mail"]
    again = lab.run(ASKS.format(more=""))
    assert lab.printed(again) == "said fine\n"
    assert lab.cards(again) == []
    (record,) = lab.shown(again)
    assert "approved" in record["text/plain"].lower()
    assert "fine" in record["text/plain"]


def test_a_durable_cell_keeps_the_record_of_its_gate(lab: Lab) -> None:
    """A durable cell that went on behind a gate shows the decision again when it is restored."""
    source = "%%durable both\n" + ASKS.format(more="")
    card = lab.card(lab.run(source))
    lab.asked(card, "decide", decision(card, feedback="kept words"))
    first, restored = lab.run(source), lab.run(source)
    records = [
        [each["text/html"] for each in lab.shown(sent) if "kept words" in each["text/html"]]
        for sent in (first, restored)
    ]
    assert records[0] == records[1]
    assert len(records[0]) == 1


def test_a_second_decision_is_an_error_that_shows_the_first(lab: Lab) -> None:
    """Of two clicks the first one counts; the second gets an error and can look at the first."""
    card = lab.card(lab.run(ASKS.format(more="")))
    lab.asked(card, "decide", decision(card))
    second = lab.asked(card, "decide", decision(card, approved=False, feedback="no"))
    assert second["error"]["type"] == "GateDecided"
    assert "approved by" in second["error"]["message"]
    now = lab.asked(card, "gate", {key: card["about"][key] for key in ("run", "step")})["result"]
    assert (now["state"], now["decision"]["feedback"]) == ("sent", "fine")


SYNC = ASKS.format(more=", wait=True")
AWAITS = SYNC.replace("nbflow.gate(", "await nbflow.agate(")
CELL = "%%gate publish --wait\nprint('figures')"


@pytest.mark.parametrize("main", [False, True], ids=["subshell", "main"])
@pytest.mark.parametrize("source", [SYNC, AWAITS], ids=["sync", "await"])
def test_a_click_in_the_very_cell_that_waits(lab: Lab, source: str, main: bool) -> None:
    """A cell that waits in place shows the card at once; the click is heard while it waits, and the cell goes on.

    Over a subshell always; over the main shell only where the cell awaits.
    """
    sent = lab.kernel.send(source)
    card = lab.card(sent)
    assert (card["about"]["waits"], card["about"]["deaf"]) == (True, False)
    if main and source == SYNC:
        # Nobody hears it before the cell ends; a terminal is heard at once.
        question = lab.ask(card, "decide", decision(card), main=True)
        store = open_store(Path(lab.kernel.env["NBFLOW_STORE"]))
        decide(store, card["about"]["run"], card["about"]["step"], True, feedback="from a terminal")
        store.close()
        lab.wait(sent)
        assert lab.printed(sent) == "said from a terminal\n"
        late = lab.until(lambda: lab.answer(question))
        assert late["error"]["type"] == "GateDecided"
        return
    row = lab.asked(card, "decide", decision(card), main=main)["result"]
    assert row["decision"]["feedback"] == "fine"
    lab.wait(sent)
    assert lab.printed(sent) == "said fine\n"


def test_a_gate_cell_that_waits(lab: Lab) -> None:
    """`%%gate --wait` shows one card, hears the click, and ends with the record of the decision and no card more."""
    sent = lab.kernel.send(CELL)
    card = lab.card(sent)
    assert "figures" in json.dumps(card["snapshot"]["gate"]["exhibits"])
    lab.asked(card, "decide", decision(card, feedback="go on"))
    lab.wait(sent)
    assert len(lab.cards(sent)) == 1
    lab.until(lambda: "go on" in lab.shown(sent)[0]["text/plain"], what="the decision in the record")


def test_the_record_is_updated_with_the_decision(lab: Lab) -> None:
    """The record beside a card says what was decided as soon as the run has taken it in."""
    sent = lab.kernel.send(SYNC)
    card = lab.card(sent)
    assert "fine" not in lab.shown(sent)[0]["text/plain"]
    lab.asked(card, "decide", decision(card))
    lab.wait(sent)
    lab.until(lambda: "fine" in lab.shown(sent)[0]["text/plain"], what="the decision in the record")


def test_pushes_come_while_the_cell_waits(lab: Lab) -> None:
    """A page that watches is told of a decision from elsewhere while its cell waits, and the cell goes on."""
    sent = lab.kernel.send(SYNC)
    card = lab.card(sent)
    first = lab.asked(card, "watch", {"view": "v1", "runs": None, "run": None, "gates": True})["result"]
    assert card["about"]["run"] in [row["run"] for row in first["gates"]["rows"]]
    store = open_store(Path(lab.kernel.env["NBFLOW_STORE"]))
    decide(store, card["about"]["run"], card["about"]["step"], True, feedback="from afar")
    store.close()

    def pushed() -> bool:
        rows = [
            content["rows"]
            for each in lab.heard
            if each["msg_type"] == "comm_msg"
            and (content := each["content"]["data"].get("content", {})).get("push") == "gates"
        ]
        return bool(rows) and card["about"]["run"] not in [row["run"] for row in rows[-1]]

    lab.until(pushed, what="the push")
    lab.wait(sent)
    assert lab.printed(sent) == "said from afar\n"


def test_a_cell_that_is_run_again_has_one_card(lab: Lab) -> None:
    """Running a cell that stopped again shows one card again, about the same asking."""
    first = lab.card(lab.run(ASKS.format(more="")))
    second = lab.card(lab.run(ASKS.format(more="")))
    assert second["snapshot"]["gate"]["opening"] == first["snapshot"]["gate"]["opening"]
    assert second["comm"] != first["comm"]


# --- a kernel without subshells -------------------------------------------------------------------------


def old_kernel() -> Path | None:
    place = Path(os.environ.get("NBFLOW_OLD_KERNEL") or Path(sys.prefix) / "old-kernel")
    return place if (place / "ipykernel").is_dir() else None


@pytest.fixture
def old_lab(tmp_path: Path, kernel_env: dict[str, str]) -> Iterator[Lab]:
    place = old_kernel()
    if place is None:
        pytest.skip("ipykernel 6.30 is not here: NBFLOW_OLD_KERNEL")
    path = os.pathsep.join([str(place), kernel_env["PYTHONPATH"]])
    with Kernel(tmp_path, {**kernel_env, "PYTHONPATH": path}) as kernel:
        lab = Lab(kernel)
        lab.run(LOAD)
        yield lab


def test_an_old_kernel_says_that_it_hears_no_click_while_it_waits(old_lab: Lab) -> None:
    """With ipykernel 6.30 a click into a cell that waits is not heard, however it waits: the card says so."""
    for source in (SYNC, AWAITS):
        old_lab.run("%nbflow new")
        sent = old_lab.kernel.send(source)
        card = old_lab.card(sent)
        assert card["about"]["deaf"] is True
        question = old_lab.ask(card, "decide", decision(card), main=True)
        store = open_store(Path(old_lab.kernel.env["NBFLOW_STORE"]))
        time.sleep(0.5)
        assert old_lab.answer(question) is None
        decide(store, card["about"]["run"], card["about"]["step"], True, feedback="from a terminal")
        store.close()
        old_lab.wait(sent)
        assert old_lab.printed(sent) == "said from a terminal\n"


def test_an_old_kernel_hears_the_click_when_the_cell_has_stopped(old_lab: Lab) -> None:
    """With ipykernel 6.30 a gate that stops the notebook is decided by a click like anywhere else."""
    card = old_lab.card(old_lab.run(ASKS.format(more="")))
    assert card["about"]["deaf"] is False
    row = old_lab.asked(card, "decide", decision(card), main=True)["result"]
    assert row["decision"]["feedback"] == "fine"
    again = old_lab.run(ASKS.format(more=""))
    assert old_lab.printed(again) == "said fine\n"
