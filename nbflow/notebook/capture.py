"""Record what a cell shows while it is shown, and show it again later, byte for byte and in order.

Recording is a tee: everything reaches the front end at once, as if nobody
listened; where it listens is told in `taps`.

Used by `nbflow.notebook.runner`; the bytes lie in `StepCompleted.display`.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgspec

from nbflow.core.errors import CannotRestore
from nbflow.notebook.amounts import size
from nbflow.notebook.taps import flush_streams, tap_of

#: Bytes of one cell's output that are recorded unless configured otherwise.
DISPLAY_LIMIT = 10 * 1024 * 1024

_FORMAT = 1
_WIDGET = "application/vnd.jupyter.widget-view+json"


class Output(msgspec.Struct, array_like=True, omit_defaults=True):
    """One output: `kind` is stream, display, result or update.

    A stream has `name` (stdout or stderr) and `text`; the others have a MIME
    bundle in `data` with its `metadata`, and `display_id` where one was given.
    """

    kind: str
    name: str = ""
    text: str = ""
    data: dict[str, Any] = {}
    metadata: dict[str, Any] = {}
    display_id: str | None = None


class Display(msgspec.Struct, array_like=True):
    """All outputs of a cell in order. `lost` counts the bytes that did not fit below `limit`."""

    format: int
    outputs: list[Output]
    lost: int = 0
    limit: int = 0


_encoder = msgspec.msgpack.Encoder(enc_hook=str)
_decoder = msgspec.msgpack.Decoder(Display)


class Recorder:
    """Collect outputs; safe to use from several threads.

    Adjacent pieces of one stream are one output. What `clear_output` wiped
    before the end is not kept, and of several updates of one display only the
    last: replay shows the final picture, not the film.
    """

    def __init__(self, limit: int = DISPLAY_LIMIT, parent: str | None = None) -> None:
        self.limit = limit
        self.parent = parent
        self._lock = threading.Lock()
        self._begin()

    def _begin(self) -> None:
        self._outputs: list[Output] = []
        self._pieces: list[str] = []  # of the stream that is last in _outputs
        self._updates: dict[str, Output] = {}
        self._size = 0
        self._lost = 0
        self._cut = False
        self._clear_next = False

    def stream(self, name: str, text: str) -> None:
        """Add a piece of stdout or stderr."""
        if not text:
            return
        with self._lock:
            self._clear_if_asked()
            size = _text_size(text)
            if self._cut or self._size + size > self.limit:
                kept = "" if self._cut else text[: max(0, self.limit - self._size)]
                self._cut = True
                self._lost += size - _text_size(kept)
                text, size = kept, _text_size(kept)
                if not text:
                    return
            self._size += size
            if not (self._outputs and self._outputs[-1].kind == "stream" and self._outputs[-1].name == name):
                self._join()
                self._outputs.append(Output("stream", name))
            self._pieces.append(text)

    def bundle(
        self, kind: str, data: dict[str, Any], metadata: dict[str, Any], display_id: str | None
    ) -> None:
        """Add rich output: `kind` is display, result or update."""
        size = sum(_value_size(value) for value in data.values())
        with self._lock:
            self._clear_if_asked()
            self._join()
            if self._size + size > self.limit:
                self._lost += size
                return
            self._size += size
            known = self._updates.get(display_id) if display_id is not None and kind == "update" else None
            if known is not None:
                self._size -= sum(_value_size(value) for value in known.data.values())
                known.data, known.metadata = data, metadata
                return
            output = Output(kind, data=data, metadata=metadata, display_id=display_id)
            self._outputs.append(output)
            if display_id is not None:
                if kind == "update":
                    self._updates[display_id] = output
                else:  # a fresh display of this id: an update after it must stay after it
                    self._updates.pop(display_id, None)

    def clear(self, wait: bool) -> None:
        """Forget what was recorded, as the front end does; with `wait` when the next output comes."""
        with self._lock:
            if wait:
                self._clear_next = True
            else:
                self._begin()

    def _clear_if_asked(self) -> None:
        if self._clear_next:
            self._begin()

    def _join(self) -> None:
        if self._pieces:
            last = self._outputs[-1]
            self._outputs[-1] = Output("stream", last.name, "".join(self._pieces))
            self._pieces = []

    def display(self) -> Display:
        """Return what was recorded so far."""
        with self._lock:
            if self._pieces:  # stays open: more of the same stream may follow
                self._pieces = ["".join(self._pieces)]
                self._outputs[-1] = Output("stream", self._outputs[-1].name, self._pieces[0])
            return Display(_FORMAT, list(self._outputs), self._lost, self.limit)

    def encoded(self) -> bytes:
        """Return what was recorded so far as bytes; b"" when nothing was shown."""
        return encode(self.display())

    @property
    def lost(self) -> int:
        """Count the bytes that were shown and did not fit into the recording."""
        return self._lost


def encode(display: Display) -> bytes:
    """Encode a display; b"" when it is empty."""
    if not display.outputs and not display.lost:
        return b""
    try:
        return _encoder.encode(display)
    except UnicodeEncodeError:  # lone surrogates, from a file name that is no UTF-8, say
        return _encoder.encode(_without_surrogates(display))


def decode(raw: bytes | memoryview) -> Display:
    """Decode what `Recorder.encoded` gave.

    Raises:
        CannotRestore: the bytes are not a display that this version knows.
    """
    if not raw:
        return Display(_FORMAT, [])
    try:
        display = _decoder.decode(raw)
    except msgspec.DecodeError as error:
        raise CannotRestore(f"The recorded output cannot be read: {error}.") from error
    if display.format > _FORMAT:
        raise CannotRestore("The recorded output was written by a later nbflow.", hint="Upgrade nbflow.")
    return display


def _text_size(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


def _value_size(value: Any) -> int:
    if isinstance(value, str):
        return _text_size(value)
    if isinstance(value, (bytes, bytearray, memoryview)):
        return len(value)
    return len(_encoder.encode(_without_surrogates(value)))


def _without_surrogates(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, dict):
        return {_without_surrogates(key): _without_surrogates(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_surrogates(item) for item in value]
    if isinstance(value, Display):
        return Display(value.format, [_without_surrogates(o) for o in value.outputs], value.lost, value.limit)
    if isinstance(value, Output):
        return Output(*(_without_surrogates(getattr(value, name)) for name in Output.__struct_fields__))
    return value


@contextmanager
def record(shell: Any, limit: int = DISPLAY_LIMIT) -> Iterator[Recorder]:
    """Record all that `shell` shows inside the block, while it is shown. Blocks may nest.

    `limit` is in bytes; what is beyond it is shown and not recorded.
    """
    tap = tap_of(shell)
    recorder = Recorder(limit)
    flush_streams()  # what was written before the block is not part of it
    tap.open(recorder)
    try:
        yield recorder
    finally:
        flush_streams()
        tap.close(recorder)


# Showing again -----------------------------------------------------------------------------------


class Shown:
    """Stands in `_` and `Out[n]` for a result whose object was not recorded; looks the same."""

    def __init__(self, data: dict[str, Any], metadata: dict[str, Any]) -> None:
        self.data, self.metadata = data, metadata

    def __repr__(self) -> str:
        return str(self.data.get("text/plain", "<output>"))

    def _repr_mimebundle_(self, **_kinds: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        return self.data, self.metadata


_MISSING = object()


def replay(shell: Any, display: Display | bytes, result: Any = _MISSING, *, explain: bool = True) -> None:
    """Show recorded outputs again, in order, and set `_` and `Out[n]` as the cell did.

    `result` is the object of the last execute_result where it was recorded;
    otherwise a `Shown` that looks like it takes its place. With `explain`, what
    stands for a widget says why, and what to do.

    Raises:
        CannotRestore: the bytes are not a display that this version knows.
    """
    if not isinstance(display, Display):
        display = decode(display)
    last = max((i for i, output in enumerate(display.outputs) if output.kind == "result"), default=-1)
    for index, output in enumerate(display.outputs):
        if output.kind == "stream":
            stream = sys.stderr if output.name == "stderr" else sys.stdout
            stream.write(output.text)
            stream.flush()  # else stdout and stderr would change places in the kernel's buffers
            continue
        data, metadata = _without_widget(output.data, output.metadata, explain=explain)
        if output.kind == "result":
            known = index == last and result is not _MISSING
            _show_result(shell, data, metadata, result if known else Shown(data, metadata))
        else:
            transient = {"display_id": output.display_id} if output.display_id is not None else {}
            shell.display_pub.publish(
                data=data, metadata=metadata, transient=transient, update=output.kind == "update"
            )
    if display.lost:
        sys.stderr.write(lost_notice(display.lost, display.limit))
        sys.stderr.flush()


def lost_notice(lost: int, limit: int) -> str:
    """Return the line that says how much output was not recorded."""
    return (
        f"[nbflow: {size(lost)} more output was shown when this cell ran and not recorded; "
        f"the limit is {size(limit)} (%config NbFlow.display_limit)]\n"
    )


def _show_result(shell: Any, data: dict[str, Any], metadata: dict[str, Any], value: Any) -> None:
    """Do what the display hook does with a result, but with the recorded formats."""
    hook = shell.displayhook
    hook.check_for_underscore()
    hook.start_displayhook()
    hook.write_output_prompt()
    hook.update_user_ns(value)
    hook.fill_exec_result(value)
    if data:
        hook.write_format_data(data, metadata)
        hook.log_output(data)
    hook.finish_displayhook()


def _without_widget(
    data: dict[str, Any], metadata: dict[str, Any], *, explain: bool
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the bundle without its widget view: the widget's model died with its kernel."""
    if _WIDGET not in data:
        return data, metadata
    data = {mime: value for mime, value in data.items() if mime != _WIDGET}
    metadata = {mime: value for mime, value in metadata.items() if mime != _WIDGET}
    if not explain:
        return data, metadata
    text = "" if "text/plain" not in data else f"{data['text/plain']}\n"
    data["text/plain"] = (
        f"{text}[a widget, restored without its kernel: run the cell with --refresh to use it]"
    )
    if "text/html" in data:
        data["text/html"] = (
            f"{data['text/html']}<div><small>restored without its kernel: "
            "run the cell with <code>--refresh</code> to use the widget</small></div>"
        )
    return data, metadata
