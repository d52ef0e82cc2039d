"""A page without a browser: asks a view of a real kernel as JupyterLab does, over a subshell where there are any."""

from __future__ import annotations

import json
import time
from queue import Empty
from typing import Any

from tests.notebook.kernel import Cell, Kernel

PATIENCE = 30.0


class KernelPage:
    """The page of a view that a cell has shown; the kernel's messages are read here only."""

    def __init__(self, kernel: Kernel, shown: Cell, *, view: str = "page", subshell: bool = True) -> None:
        self.client = kernel.client
        self.view = view
        self.comm, self.state = opened(shown)
        self.subshell = self._subshell() if subshell else None
        self.heard: list[dict[str, Any]] = []
        self.idle: set[str] = set()
        self._asked = 0

    def _subshell(self) -> str | None:
        """Have a subshell made, where the kernel has such."""
        session = self.client.session
        message = session.msg("kernel_info_request")
        self.client.control_channel.send(message)
        info = self._control(message)
        if "kernel subshells" not in info.get("supported_features", []):
            return None
        message = session.msg("create_subshell_request")
        self.client.control_channel.send(message)
        return str(self._control(message)["subshell_id"])

    def _control(self, message: dict[str, Any]) -> dict[str, Any]:
        while True:
            reply = self.client.get_control_msg(timeout=PATIENCE)
            if reply["parent_header"]["msg_id"] == message["header"]["msg_id"]:
                return dict(reply["content"])

    def post(self, method: str, **params: Any) -> str:
        """Ask; return the id of the question."""
        self._asked += 1
        identity = f"{self.view}:{self._asked}"
        content = {"method": "custom", "content": {"id": identity, "method": method, "params": params}}
        message = self.client.session.msg("comm_msg", {"comm_id": self.comm, "data": content})
        if self.subshell is not None:
            message["header"]["subshell_id"] = self.subshell
        self.client.shell_channel.send(message)
        return identity

    def ask(self, method: str, **params: Any) -> dict[str, Any]:
        """Ask, and wait for the answer: {"id", "result"} or {"id", "error"}."""
        identity = self.post(method, **params)
        return self.until(lambda message: message.get("id") == identity)

    def until(self, wanted: Any) -> dict[str, Any]:
        """Read on until something of the view fits, also among what was heard before; return it."""
        ends = time.monotonic() + PATIENCE
        seen = 0
        while True:
            for message in self.heard[seen:]:
                if wanted(message):
                    return message
            seen = len(self.heard)
            assert time.monotonic() < ends, f"not heard; but: {json.dumps(self.heard)[:2000]}"
            self.read()

    def until_idle(self, cell: str) -> None:
        """Read on until the cell of this message has ended."""
        ends = time.monotonic() + PATIENCE
        while cell not in self.idle:
            assert time.monotonic() < ends, "the cell did not end"
            self.read()

    def read(self) -> None:
        """Read one message of the kernel, if one comes soon."""
        try:
            message = self.client.get_iopub_msg(timeout=0.2)
        except Empty:
            return
        content = message["content"]
        if message["msg_type"] == "comm_msg" and content["comm_id"] == self.comm:
            if content["data"]["method"] == "custom":
                self.heard.append(content["data"]["content"])
        elif message["msg_type"] == "update_display_data":
            self.heard.append({"record": content["data"], "id": content["transient"]["display_id"]})
        elif message["msg_type"] == "status" and content["execution_state"] == "idle":
            self.idle.add(message["parent_header"].get("msg_id", ""))


def opened(shown: Cell) -> tuple[str, dict[str, Any]]:
    """Return comm and state of the view that a cell made."""
    for message in shown.messages:
        if message["msg_type"] == "comm_open":
            state = message["content"]["data"]["state"]
            if state.get("_model_name") == "AnyModel":
                return message["content"]["comm_id"], state
    raise AssertionError(f"no view was made: {shown.outputs}")
