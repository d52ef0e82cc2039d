"""Where outputs pass by: the two places at which a recorder can listen.

* Under ipykernel, `Session.send`, the one point that every output passes
  (streams, rich output, results, updates, of whatever thread). What is recorded
  is therefore what the front end got, in the order it got it. The hooks that
  ipykernel offers are thread-local, miss background threads, and for results
  exist only from 7.3. The parent header tells which cell a message is shown in,
  so a recording holds the output of background threads exactly where ipykernel
  routes it to this cell.
* Without a kernel, `sys.stdout`, `sys.stderr`, the display publisher and the
  display hook.

Only `capture.record` opens taps.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from nbflow.notebook.messages import is_of_cell

_KINDS = {"display_data": "display", "execute_result": "result", "update_display_data": "update"}
_PLACE = "_nbflow_tap"


class Listener(Protocol):
    """What a tap feeds: `capture.Recorder`."""

    parent: str | None

    def stream(self, name: str, text: str) -> None:
        """Take a piece of stdout or stderr."""
        ...

    def bundle(
        self, kind: str, data: dict[str, Any], metadata: dict[str, Any], display_id: str | None
    ) -> None:
        """Take rich output."""
        ...

    def clear(self, wait: bool) -> None:
        """Take `clear_output`."""
        ...


class Tap(Protocol):
    """Where outputs pass by. One stands for as long as somebody records."""

    def open(self, recorder: Listener) -> None:
        """Begin to feed a recorder."""
        ...

    def close(self, recorder: Listener) -> None:
        """Feed it all that was written up to now, and stop."""
        ...


def tap_of(shell: Any) -> Tap:
    """Return the shell's tap, made at first use."""
    taps: dict[str, Tap] = getattr(shell, _PLACE, None) or {}
    setattr(shell, _PLACE, taps)
    session = getattr(shell.display_pub, "session", None)
    # Inside %%capture the publisher is another one, which sends nothing.
    kind = "kernel" if hasattr(session, "send") else "shell"
    if kind not in taps:
        taps[kind] = KernelTap(shell, session) if kind == "kernel" else ShellTap(shell)
    return taps[kind]


def forget(shell: Any) -> None:
    """Leave nothing of this module in the shell."""
    if hasattr(shell, _PLACE):
        delattr(shell, _PLACE)


class KernelTap:
    """Listen at the kernel's `Session.send`. Works alike in ipykernel 6 and 7."""

    def __init__(self, shell: Any, session: Any) -> None:
        self._shell = shell
        self._session = session
        self._recorders: tuple[Listener, ...] = ()
        self._send: Any = session.send
        self._standing = False

    def open(self, recorder: Listener) -> None:
        """Begin to feed a recorder with the outputs whose parent is the message being executed."""
        recorder.parent = (self._shell.display_pub.parent_header or {}).get("msg_id")
        self._recorders += (recorder,)
        if not self._standing:
            self._send = self._session.send
            self._session.send = self._tee
            self._standing = True

    def close(self, recorder: Listener) -> None:
        """Wait for what subprocesses wrote to the file descriptors, then stop feeding the recorder."""
        if _drain(sys.stdout, sys.stderr):
            flush_streams()
        self._recorders = tuple(other for other in self._recorders if other is not recorder)
        # Another library may have wrapped `send` after us: then stay in the chain, idle.
        if not self._recorders and vars(self._session).get("send") == self._tee:
            del self._session.send
            if self._session.send != self._send:  # it was an instance attribute before
                self._session.send = self._send
            self._standing = False

    def _tee(self, stream: Any, msg_or_type: Any, *args: Any, **kwargs: Any) -> Any:
        if self._recorders and isinstance(msg_or_type, dict):
            self._take(msg_or_type)
        return self._send(stream, msg_or_type, *args, **kwargs)

    def _take(self, message: dict[str, Any]) -> None:
        kind = message.get("msg_type") or message.get("header", {}).get("msg_type")
        if kind not in _KINDS and kind not in ("stream", "clear_output"):
            return
        parent = (message.get("parent_header") or {}).get("msg_id")
        content = message["content"]
        if not is_of_cell(content.get("metadata")):
            return
        for recorder in self._recorders:
            if parent is not None and parent != recorder.parent:
                continue
            if kind == "stream":
                recorder.stream(content["name"], content["text"])
            elif kind == "clear_output":
                recorder.clear(bool(content.get("wait")))
            else:
                display_id = (content.get("transient") or {}).get("display_id")
                recorder.bundle(
                    _KINDS[kind], dict(content["data"]), dict(content.get("metadata") or {}), display_id
                )


class ShellTap:
    """Listen at an IPython without a kernel: streams, display publisher and display hook.

    What a subprocess writes to the terminal's own file descriptor goes past it.
    """

    def __init__(self, shell: Any) -> None:
        self._shell = shell
        self._recorders: list[Listener] = []
        self._inside = threading.local()  # text that the hook prints for a result is not stdout of the cell
        self._undo: list[Any] = []

    def open(self, recorder: Listener) -> None:
        """Begin to feed a recorder."""
        self._recorders.append(recorder)
        if len(self._recorders) == 1:
            self._install()

    def close(self, recorder: Listener) -> None:
        """Stop feeding the recorder."""
        self._recorders.remove(recorder)
        self._inside.depth = 0
        if not self._recorders:
            while self._undo:
                self._undo.pop()()

    def _install(self) -> None:
        for name in ("stdout", "stderr"):
            original = getattr(sys, name)
            tee = _TeeStream(original, name, self)
            setattr(sys, name, tee)
            self._undo.append(lambda name=name, tee=tee, original=original: _put_back(name, tee, original))
        publisher, hook = self._shell.display_pub, self._shell.displayhook
        publish, clear = publisher.publish, publisher.clear_output
        start, write, finish = hook.start_displayhook, hook.write_format_data, hook.finish_displayhook

        def tee_publish(data: Any, metadata: Any = None, *args: Any, **kwargs: Any) -> Any:
            kind = "update" if kwargs.get("update") else "display"
            display_id = (kwargs.get("transient") or {}).get("display_id")
            for recorder in self._recorders if is_of_cell(metadata) else ():
                recorder.bundle(kind, dict(data), dict(metadata or {}), display_id)
            with self._hidden():
                return publish(data, metadata, *args, **kwargs)

        def tee_clear(wait: bool = False) -> Any:  # noqa: FBT002 - IPython's own signature
            for recorder in self._recorders:
                recorder.clear(wait)
            with self._hidden():
                return clear(wait)

        def tee_start() -> Any:
            self._inside.depth = 1
            return start()

        def tee_write(format_dict: Any, md_dict: Any = None) -> Any:
            for recorder in self._recorders:
                recorder.bundle("result", dict(format_dict), dict(md_dict or {}), None)
            return write(format_dict, md_dict)

        def tee_finish() -> Any:
            try:
                return finish()
            finally:
                self._inside.depth = 0

        self._wrap(publisher, "publish", tee_publish)
        self._wrap(publisher, "clear_output", tee_clear)
        self._wrap(hook, "start_displayhook", tee_start)
        self._wrap(hook, "write_format_data", tee_write)
        self._wrap(hook, "finish_displayhook", tee_finish)

    def _wrap(self, target: Any, name: str, tee: Any) -> None:
        before = target.__dict__.get(name)
        setattr(target, name, tee)

        def undo() -> None:
            if target.__dict__.get(name) is tee:
                if before is None:
                    delattr(target, name)
                else:
                    setattr(target, name, before)

        self._undo.append(undo)

    @contextmanager
    def _hidden(self) -> Iterator[None]:
        self._inside.depth = getattr(self._inside, "depth", 0) + 1
        try:
            yield
        finally:
            self._inside.depth -= 1

    def wrote(self, name: str, text: str) -> None:
        """Take a piece of a stream, unless it is the printed form of rich output."""
        if getattr(self._inside, "depth", 0) == 0:
            for recorder in self._recorders:
                recorder.stream(name, text)


class _TeeStream:
    """A text stream that tells the tap what passes; everything else is the stream's own."""

    def __init__(self, stream: Any, name: str, tap: ShellTap) -> None:
        self._stream, self._name, self._tap = stream, name, tap

    def write(self, text: str) -> int:
        written: int = self._stream.write(text)
        self._tap.wrote(self._name, text)
        return written

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._stream)


def _put_back(name: str, tee: _TeeStream, original: Any) -> None:
    if getattr(sys, name) is tee:  # the cell may have put its own stream there: leave it
        setattr(sys, name, original)


def flush_streams() -> None:
    """Have what was written to stdout and stderr pass the tap now."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None and not getattr(stream, "closed", False):
            stream.flush()


def _drain(*streams: Any) -> bool:
    """Wait (at most 50 ms) until ipykernel's watchers have read what was written to the file descriptors.

    Tell whether there are watchers: then what they read has to be flushed as well.
    """
    pipes = [stream._fid for stream in streams if getattr(stream, "_fid", None) is not None]  # noqa: SLF001
    if not pipes or os.name != "posix":
        return False
    import fcntl
    import struct
    import termios

    pause = 0.0005  # a watcher that has just read must get to hand it on, even when nothing waits
    for _ in range(50):
        try:
            waiting = sum(
                struct.unpack("i", fcntl.ioctl(pipe, termios.FIONREAD, b"\0\0\0\0"))[0] for pipe in pipes
            )
        except OSError:  # the kernel closed a pipe: nothing is to come
            break
        if not waiting:
            break
        pause = 0.003
        time.sleep(0.001)
    time.sleep(pause)
    return True
