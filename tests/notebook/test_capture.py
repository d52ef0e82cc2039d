"""What a cell shows is recorded while it is shown, and shown again the same."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from IPython.core.interactiveshell import InteractiveShell

from nbflow.core.errors import CannotRestore
from nbflow.notebook import capture
from tests.notebook.kernel import Kernel

RECORDING = """
with capture.record(ip, limit={limit}) as recorder:
    exec(compile({body!r}, "<cell>", "exec"))
recorded = recorder.encoded()
"""


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kernel]:
    """One kernel for all tests of this file."""
    with Kernel(tmp_path_factory.mktemp("capture"), {**os.environ}) as kernel:
        kernel.run("from nbflow.notebook import capture\nip = get_ipython()\nimport sys, time, threading, os")
        kernel.run("from IPython.display import display, HTML, clear_output, update_display")
        yield kernel


def recorded(kernel: Kernel, body: str, limit: int = 10_000_000) -> tuple[list[Any], list[Any]]:
    """Run a body under recording, then replay it in another cell; return what each showed."""
    live = kernel.run(RECORDING.format(body=body, limit=limit))
    assert live.ok, live.errors
    again = kernel.run("capture.replay(ip, recorded)")
    assert again.ok, again.errors
    return live.shown, again.shown


BODIES = {
    "streams in turn": """
for i in range(3):
    print("out", i); sys.stdout.flush(); print("err", i, file=sys.stderr); sys.stderr.flush()
""",
    "rich output between text": """
print("before"); display(HTML("<b>bold</b>")); print("after")
""",
    "results": "sys.displayhook({'a': 1})",
    "display id updates": """
handle = display("first", display_id="one"); print("x"); handle.update("second"); handle.update(HTML("<i>third</i>"))
""",
    "clear with wait": """
for i in range(5):
    clear_output(wait=True); print("step", i); display(i)
""",
    "clear at once": "print('gone'); clear_output(); print('kept')",
    "background thread": """
def work():
    for i in range(3):
        print("thread", i)
thread = threading.Thread(target=work); thread.start(); thread.join()
""",
    "subprocess": "os.system('echo from a child; echo and its error >&2')",
    "shell escape": "ip.system('echo hello')",
    "plot": """
import matplotlib; matplotlib.use("module://matplotlib_inline.backend_inline")
import matplotlib.pyplot as plt
plt.plot([1, 2, 3]); plt.show()
""",
    "table": "import pandas as pd; display(pd.DataFrame({'a': [1, 2], 'b': ['x', 'y']}))",
    "carriage returns and unicode": "print('\\r10%\\r100% \\u2713 \\U0001f600'); print('\\udcff')",
    "json": "display({'application/json': {'a': [1, {'b': None}]}, 'text/plain': 'json'}, raw=True)",
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES.keys())
def test_replay_shows_what_the_recording_showed(kernel: Kernel, body: str) -> None:
    """Every kind of output comes back equal and in the same order, and was streamed live."""
    live, again = recorded(kernel, body)
    assert live
    assert again == live


def test_an_update_reaches_the_display_of_an_earlier_cell(kernel: Kernel) -> None:
    """An update of a display id is replayed as an update, wherever that display stands."""
    shown = kernel.run("display('old', display_id='across');")
    kernel.run(RECORDING.format(body="update_display('new', display_id='across')", limit=1000))
    assert shown.outputs[0]["data"] == {"text/plain": "'new'"}
    kernel.run("update_display('other', display_id='across')")
    kernel.run("capture.replay(ip, recorded)")
    assert shown.outputs[0]["data"] == {"text/plain": "'new'"}


def test_output_is_streamed_while_it_is_recorded(kernel: Kernel) -> None:
    """The front end sees text long before the cell ends: recording is a tee, not a bucket."""
    cell = kernel.run(
        RECORDING.format(body="print('early', flush=True); time.sleep(0.6); print('late')", limit=1000)
    )
    texts = [m for m in cell.messages if m["msg_type"] == "stream"]
    assert [m["content"]["text"] for m in texts] == ["early\n", "late\n"]
    assert (texts[1]["header"]["date"] - texts[0]["header"]["date"]).total_seconds() > 0.4


def test_a_thread_of_an_earlier_cell_is_recorded_where_it_is_shown(kernel: Kernel) -> None:
    """ipykernel decides in which cell an old thread's output is shown; the recording holds just that."""
    kernel.run(
        "def chat():\n    for i in range(8):\n        print('noise', i, flush=True); time.sleep(0.05)\n"
        "noisy = threading.Thread(target=chat); noisy.start()"
    )
    live, again = recorded(kernel, "print('mine'); time.sleep(0.2); noisy.join()")
    assert "mine\n" in live[0][1]
    assert again == live


def test_replay_sets_the_result_of_the_cell(kernel: Kernel) -> None:
    """`_` and `Out[n]` are set as the live cell sets them: to the object where it is known, else to its looks."""
    kernel.run(RECORDING.format(body="sys.displayhook(41)", limit=1000))
    known = kernel.run("capture.replay(ip, recorded, result=41)")
    assert (known.result, known.outputs[0]["execution_count"]) == ("41", known.reply["execution_count"])
    number = known.reply["execution_count"]
    assert kernel.run(f"(_ + 1, Out[{number}])").result == "(42, 41)"
    kernel.run("capture.replay(ip, recorded)")
    assert kernel.run("(type(_).__name__, _)").result == "('Shown', 41)"


def test_truncates_past_the_limit_with_a_notice(kernel: Kernel) -> None:
    """Of too much output the beginning is kept, the rest is shown live only, and replay says so."""
    live, again = recorded(kernel, "print('x' * 5000)\ndisplay('still fits')", limit=1000)
    assert len(live[0][1]) == 5001
    assert again[0][:2] == ("stdout", "x" * 1000)
    assert "not recorded" in again[-1][1] and again[-1][0] == "stderr"


def test_a_widget_is_replayed_without_its_dead_model(kernel: Kernel) -> None:
    """The widget view is dropped, its HTML stays, and a hint says how to get the widget back."""
    live, again = recorded(
        kernel,
        "display({'application/vnd.jupyter.widget-view+json': {'model_id': 'x'}, 'text/html': '<p>1</p>',"
        " 'text/plain': 'W()'}, raw=True)",
    )
    assert "application/vnd.jupyter.widget-view+json" in live[0][1]
    data = again[0][1]
    assert "application/vnd.jupyter.widget-view+json" not in data
    assert data["text/html"].startswith("<p>1</p>") and "--refresh" in data["text/plain"]


def test_nothing_is_left_behind_in_the_kernel(kernel: Kernel) -> None:
    """After a recording the session sends as before, also when the body raised."""
    before = kernel.run("ip.display_pub.session.__dict__.get('send')").result
    failed = kernel.run("with capture.record(ip) as recorder:\n    print('partial')\n    1/0")
    assert failed.errors[0]["ename"] == "ZeroDivisionError"
    assert kernel.run("capture.decode(recorder.encoded()).outputs[0].text").result == "'partial\\n'"
    assert kernel.run("ip.display_pub.session.__dict__.get('send')").result == before


def test_recordings_nest(kernel: Kernel) -> None:
    """An inner recording takes its part; the outer one takes everything."""
    kernel.run(
        "with capture.record(ip) as outer:\n    print('a')\n    with capture.record(ip) as inner:\n        print('b')\n"
        "    print('c')"
    )
    texts = kernel.run("[[o.text for o in r.display().outputs] for r in (outer, inner)]").result
    assert texts == "[['a\\nb\\nc\\n'], ['b\\n']]"


# Without a kernel --------------------------------------------------------------------------------


@pytest.fixture
def shell() -> Iterator[InteractiveShell]:
    """A plain IPython shell in this process."""
    InteractiveShell.clear_instance()
    shell = InteractiveShell.instance()
    yield shell
    InteractiveShell.clear_instance()


def test_plain_ipython_records_and_replays_the_same_text(
    shell: InteractiveShell, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a kernel text, rich output and results are recorded in order, and replay prints the same."""
    code = "print('a')\nfrom IPython.display import display, HTML\ndisplay(HTML('<b>x</b>'))\n"
    shell.run_cell(code)
    capsys.readouterr()
    with capture.record(shell) as recorder:
        shell.run_cell(code + "import sys; print('oops', file=sys.stderr)\n40 + 2", store_history=True)
    live = capsys.readouterr()
    kinds = [(o.kind, o.name or sorted(o.data)) for o in recorder.display().outputs]
    assert kinds == [
        ("stream", "stdout"),
        ("display", ["text/html", "text/plain"]),
        ("stream", "stderr"),
        ("result", ["text/plain"]),
    ]
    capture.replay(shell, recorder.encoded(), result=42)
    again = capsys.readouterr()
    # IPython 8 counts on between the two.
    assert [re.sub(r"Out\[\d+\]", "Out", text) for text in again] == [
        re.sub(r"Out\[\d+\]", "Out", text) for text in live
    ]
    assert shell.user_ns["_"] == 42


def test_plain_ipython_is_left_as_it_was(shell: InteractiveShell) -> None:
    """Streams, publisher and hook are the old ones after the block."""
    before = (sys.stdout, sys.stderr, dict(shell.display_pub.__dict__), dict(shell.displayhook.__dict__))
    with pytest.raises(ZeroDivisionError), capture.record(shell):
        raise ZeroDivisionError
    assert before[:2] == (sys.stdout, sys.stderr)
    assert set(shell.display_pub.__dict__) == set(before[2])
    assert set(shell.displayhook.__dict__) == set(before[3])


# The recorder by itself --------------------------------------------------------------------------


def test_nothing_shown_is_no_bytes() -> None:
    """A silent cell costs no bytes, and no bytes replay as nothing."""
    assert capture.Recorder().encoded() == b""
    assert capture.decode(b"").outputs == []


def test_a_film_of_updates_keeps_its_last_picture() -> None:
    """A progress bar that updates a display ten thousand times is recorded as one update."""
    recorder = capture.Recorder()
    recorder.bundle("display", {"text/plain": "0"}, {}, "bar")
    for i in range(10_000):
        recorder.bundle("update", {"text/plain": str(i)}, {}, "bar")
    assert [o.data["text/plain"] for o in recorder.display().outputs] == ["0", "9999"]


def test_unreadable_bytes_are_a_typed_error(tmp_path: Path) -> None:
    """Bytes that are no display, or one of a later version, are refused with a sentence."""
    with pytest.raises(CannotRestore, match="cannot be read"):
        capture.decode(b"\xc1nonsense")
    with pytest.raises(CannotRestore, match="later nbflow"):
        capture.decode(capture.encode(capture.Display(99, [capture.Output("stream", "stdout", "x")])))


@given(
    st.lists(
        st.one_of(
            st.tuples(st.sampled_from(["stdout", "stderr"]), st.text(max_size=20)),
            st.tuples(
                st.just("display"), st.dictionaries(st.text(max_size=5), st.text(max_size=20), max_size=3)
            ),
        ),
        max_size=20,
    )
)
def test_any_sequence_survives_the_bytes(pieces: list[tuple[str, Any]]) -> None:
    """Whatever was shown, decoding the bytes gives the text of each stream and each bundle back in order."""
    recorder = capture.Recorder()
    for kind, value in pieces:
        if kind == "display":
            recorder.bundle("display", value, {}, None)
        else:
            recorder.stream(kind, value)
    outputs = capture.decode(recorder.encoded()).outputs
    for name in ("stdout", "stderr"):
        assert "".join(o.text for o in outputs if o.name == name) == "".join(
            v for k, v in pieces if k == name
        )
    assert [o.data for o in outputs if o.kind == "display"] == [v for k, v in pieces if k == "display"]
    assert not any(
        a.kind == b.kind == "stream" and a.name == b.name for a, b in zip(outputs, outputs[1:], strict=False)
    )
