"""Drive a real kernel as JupyterLab does, kill it, and start another: a small tool for tests.

`Kernel.run` sends one cell and returns what a front end would show for it
(streams merged, `clear_output` and display updates applied).
"""

from __future__ import annotations

import os
import signal
import sys
import time
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty
from typing import Any

from jupyter_client.blocking import BlockingKernelClient
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import KernelManager


class KernelDied(Exception):
    """The kernel went away while a cell ran."""


@dataclass
class Cell:
    """One executed cell: nbformat-like outputs, the reply, and every message of it."""

    source: str
    outputs: list[dict[str, Any]] = field(default_factory=list)
    reply: dict[str, Any] = field(default_factory=dict)
    messages: list[dict[str, Any]] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether the reply's status is ok."""
        return self.reply.get("status") == "ok"

    def text(self, name: str = "stdout") -> str:
        """Return all text of a stream."""
        return "".join(o["text"] for o in self.outputs if o["output_type"] == "stream" and o["name"] == name)

    @property
    def stdout(self) -> str:
        """All text of stdout."""
        return self.text("stdout")

    @property
    def stderr(self) -> str:
        """All text of stderr."""
        return self.text("stderr")

    @property
    def result(self) -> str | None:
        """The plain text of the execute_result, None without one."""
        for output in self.outputs:
            if output["output_type"] == "execute_result":
                return str(output["data"].get("text/plain"))
        return None

    @property
    def errors(self) -> list[dict[str, Any]]:
        """The error outputs."""
        return [output for output in self.outputs if output["output_type"] == "error"]

    @property
    def notices(self) -> list[str]:
        """What nbflow said in its own name, as plain text."""
        return [
            str(output["data"]["text/plain"])
            for output in self.outputs
            if output["output_type"] == "display_data" and "nbflow" in output["metadata"]
        ]

    @property
    def shown(self) -> list[tuple[Any, ...]]:
        """The outputs in a form to compare between kernels: without execution counts and display ids."""
        found: list[tuple[Any, ...]] = []
        for output in self.outputs:
            if output["output_type"] == "stream":
                found.append((output["name"], output["text"]))
            elif output["output_type"] == "error":
                found.append(("error", output["ename"], output["evalue"]))
            else:
                found.append((output["output_type"], output["data"], output["metadata"]))
        return found


class Kernel:
    """A kernel in a folder. Use it in a with statement; `cell_ids=False` behaves like papermill."""

    def __init__(
        self,
        folder: Path,
        env: dict[str, str] | None = None,
        *,
        python: str = sys.executable,
        cell_ids: bool = True,
    ) -> None:
        self.folder, self.env, self.python, self.cell_ids = (
            Path(folder),
            dict(env or os.environ),
            python,
            cell_ids,
        )
        # With it in sight ipykernel does not watch the file descriptors, as it does for people.
        self.env.pop("PYTEST_CURRENT_TEST", None)
        self._displays: dict[str, list[dict[str, Any]]] = {}
        self.start()

    def start(self) -> None:
        """Start a fresh kernel process; again where another one took a port of its between choosing and binding."""
        for _ in range(2):
            try:
                self._start()
                return
            except RuntimeError as error:
                if "died before replying" not in str(error):
                    raise
                self._close()
        self._start()

    def _start(self) -> None:
        self.manager = KernelManager()
        self.manager._kernel_spec = KernelSpec(
            argv=[self.python, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
            display_name="test",
            language="python",
            interrupt_mode="signal",
        )
        self.manager.start_kernel(cwd=str(self.folder), env=self.env)
        self.client: BlockingKernelClient = self.manager.blocking_client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=60)
        self._displays = {}

    @property
    def pid(self) -> int:
        """The kernel's process id."""
        return int(self.manager.provisioner.pid)  # type: ignore[union-attr]

    def kill(self) -> None:
        """SIGKILL the kernel and wait until it is gone."""
        os.kill(self.pid, signal.SIGKILL)
        self._close()

    def restart(self) -> None:
        """Start anew after `kill` or `close`."""
        self.start()

    def interrupt(self) -> None:
        """Press the stop button."""
        self.manager.interrupt_kernel()

    def close(self) -> None:
        """Shut the kernel down as a front end does."""
        if self.manager.has_kernel:
            self.manager.shutdown_kernel(now=False)
        self.client.stop_channels()

    def _close(self) -> None:
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)

    def __enter__(self) -> Kernel:
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self.manager.has_kernel:
            self._close()

    def send(self, source: str, *, cell_id: str | None = None, tags: list[str] | None = None) -> str:
        """Send a cell without waiting; return the id of its message."""
        message = self.client.session.msg(
            "execute_request",
            {
                "code": source,
                "silent": False,
                "store_history": True,
                "user_expressions": {},
                "allow_stdin": False,
                "stop_on_error": True,
            },
        )
        if self.cell_ids:
            message["metadata"] = {
                "cellId": cell_id or _cell_id(source),
                "deletedCells": [],
                "recordTiming": False,
                "tags": tags or [],
            }
        self.client.shell_channel.send(message)
        return str(message["header"]["msg_id"])

    def run(
        self, source: str, *, cell_id: str | None = None, tags: list[str] | None = None, timeout: float = 60
    ) -> Cell:
        """Run a cell to its end and return what it showed.

        Raises:
            KernelDied: the process ended meanwhile.
        """
        return self.collect(self.send(source, cell_id=cell_id, tags=tags), source, timeout)

    def collect(self, message_id: str, source: str = "", timeout: float = 60) -> Cell:
        """Wait for a sent cell."""
        cell = Cell(source)
        deadline = time.monotonic() + timeout
        clear = False
        while True:
            try:
                message = self.client.get_iopub_msg(timeout=0.5)
            except Empty:
                if not self.manager.is_alive():
                    raise KernelDied(source) from None
                if time.monotonic() > deadline:
                    raise TimeoutError(f"the cell took longer than {timeout} s:\n{source}") from None
                continue
            if message["parent_header"].get("msg_id") != message_id:
                continue
            kind, content = message["msg_type"], message["content"]
            cell.messages.append(message)
            if kind == "status" and content["execution_state"] == "idle":
                break
            if kind == "clear_output":
                if content["wait"]:
                    clear = True
                else:
                    cell.outputs.clear()
                continue
            if kind not in ("stream", "display_data", "execute_result", "update_display_data", "error"):
                continue
            if clear and kind != "update_display_data":
                cell.outputs.clear()
                clear = False
            self._show(cell, kind, content)
        while True:
            reply = self.client.get_shell_msg(timeout=30)
            if reply["parent_header"].get("msg_id") == message_id:
                cell.reply = reply["content"]
                return cell

    def _show(self, cell: Cell, kind: str, content: dict[str, Any]) -> None:
        if kind == "stream":
            last = cell.outputs[-1] if cell.outputs else {}
            if last.get("output_type") == "stream" and last.get("name") == content["name"]:
                last["text"] += content["text"]
            else:
                cell.outputs.append(
                    {"output_type": "stream", "name": content["name"], "text": content["text"]}
                )
            return
        display_id = (content.get("transient") or {}).get("display_id")
        if kind != "update_display_data":
            output = {"output_type": kind, **{k: v for k, v in content.items() if k != "transient"}}
            cell.outputs.append(output)
            if display_id:
                self._displays.setdefault(display_id, []).append(output)
        for output in self._displays.get(display_id, ()):
            output["data"], output["metadata"] = content["data"], content["metadata"]


def _cell_id(source: str) -> str:
    """Give a durable cell the same id after an edit, as a front end does; others have one by their text."""
    words = source.split()
    durable = len(words) > 1 and words[0] == "%%durable"
    return f"durable-{words[1]}" if durable else f"cell-{zlib.crc32(source.encode())}"
