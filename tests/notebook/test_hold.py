"""Behind a gate nothing runs that was sent before anybody could see that the gate stopped the notebook."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbflow.core.errors import GatePending, GateRejected
from nbflow.notebook.hold import Hold
from tests.notebook.kernel import Kernel

LOAD = "%load_ext nbflow\nimport nbflow\nran = []"


def request(sent: float, *, number: int = 0, silent: bool = False) -> dict[str, Any]:
    """Return an execute request that was sent at this second of the front end's clock."""
    header = {
        "msg_type": "execute_request",
        "msg_id": f"m{number}",
        "date": datetime.fromtimestamp(sent, UTC),
    }
    return {"header": header, "content": {"silent": silent}, "metadata": {}}


@given(
    skew=st.floats(-1e5, 1e5),
    transits=st.lists(st.floats(0.001, 3.0), min_size=1, max_size=5),
    after=st.floats(0.001, 5.0),
)
def test_whoever_knows_of_the_gate_is_never_held(skew: float, transits: list[float], after: float) -> None:
    """Whatever the clocks show and however long requests travel: one sent after the error was there runs."""
    now = [1_000_000.0]
    hold = Hold(SimpleNamespace(), lambda _pending: True, lambda: now[0])
    for number, transit in enumerate(transits):
        sent = now[0] - skew
        now[0] += transit
        assert not hold.holds(request(sent, number=number))
    hold.post_run_cell(SimpleNamespace(error_in_exec=GateRejected("no", name="g")))
    known = now[0] + after
    now[0] = known + 0.01
    assert not hold.holds(request(known - skew, number=99))


def test_what_was_on_its_way_is_held_until_the_gate_is_decided() -> None:
    """A request sent with the gate's own cell is held, silent ones are not, and none once somebody has decided."""
    now, waits = [100.0], [True]
    hold = Hold(SimpleNamespace(), lambda _pending: waits[0], lambda: now[0])
    assert not hold.holds(request(99.999))
    now[0] = 100.05
    hold.post_run_cell(SimpleNamespace(error_in_exec=GatePending("waits", run="r", step="s", name="g")))
    now[0] = 100.2
    assert hold.holds(request(100.01, number=1))
    assert not hold.holds(request(100.01, number=2, silent=True))
    assert not hold.holds(request(100.2, number=3))
    waits[0] = False
    assert not hold.holds(request(100.01, number=5))


@pytest.mark.parametrize("end", ["nbflow.gate('publish')", "nbflow.gate('publish', timeout=0)"])
def test_a_cell_that_arrives_behind_a_gate_does_not_run(new_kernel: Callable[..., Kernel], end: str) -> None:
    """In a real kernel: a request that was sent with the gate's cell and comes after its error has no effect."""
    kernel = new_kernel()
    assert kernel.run(LOAD).ok
    assert kernel.run("ran.append('before')").ok
    sent = datetime.now(UTC)
    stopped = kernel.run(end)
    assert not stopped.ok
    plain = kernel.client.session.msg

    def early(msg_type: str, *arguments: Any, **options: Any) -> Any:
        message = plain(msg_type, *arguments, **options)
        if msg_type == "execute_request":
            message["header"]["date"] = sent + timedelta(milliseconds=1)
        return message

    kernel.client.session.msg = early  # type: ignore[method-assign]
    behind = kernel.run("ran.append('behind')")
    assert [error["ename"] for error in behind.errors] == ["HeldBack"]
    assert "Not run: gate 'publish' stopped the notebook" in behind.errors[0]["evalue"]
    kernel.client.session.msg = plain  # type: ignore[method-assign]
    assert kernel.run("ran").result == "['before']"
