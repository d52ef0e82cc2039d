"""papermill's client, talking to a kernel in which nbflow is at work.

It sends with each cell what JupyterLab sends (the cell's id and tags), and
keeps what nbflow says about a cell out of the cell's outputs.
"""

from __future__ import annotations

import ast
import json
import signal
import time
from collections.abc import Callable
from queue import Empty
from typing import Any

from nbclient.exceptions import CellExecutionError, DeadKernelError
from nbclient.util import ensure_async, run_sync
from papermill.clientwrap import PapermillNotebookClient

from nbflow.core import errors
from nbflow.core.errors import KernelDied, NbflowError
from nbflow.headless.bookkeeping import Bookkeeper
from nbflow.notebook.messages import is_notice
from nbflow.notebook.unattended import REPORT

#: Seconds that nbflow in the kernel may take to answer: it opens a run, or ends it.
PATIENCE = 300


class DeadKernel(KernelDied, DeadKernelError):
    """The kernel died: papermill's command line ends with 138 for nbclient's error, and so it does for this."""


class DurableClient(PapermillNotebookClient):  # type: ignore[misc]  # papermill ships no types
    """Executes a notebook; `opening` is called before the first cell and `closing` behind the last."""

    def __init__(
        self,
        books: Bookkeeper,
        *,
        opening: Callable[[DurableClient], None],
        closing: Callable[[DurableClient], None],
        **options: Any,
    ) -> None:
        super().__init__(books, **options)
        self.books = books
        self._opening, self._closing = opening, closing
        self._cell: Any = None
        self._index = 0

    # --- the notebook ------------------------------------------------------------------------------------

    def papermill_execute_cells(self) -> None:
        """Run the cells between the opening and the closing."""
        try:
            self._opening(self)
            super().papermill_execute_cells()
            self._cell = None
            self.books.ended = True
            self._closing(self)
        except BaseException as error:
            stopped = self._stopped(error)
            if stopped is error:
                raise
            raise stopped from error

    def _stopped(self, error: BaseException) -> BaseException:
        """Have the books say in which cell it was, and return what to raise."""
        if isinstance(error, DeadKernelError):
            error = self._death()
        if self._cell is not None:
            self.books.cell_exception(self._cell, cell_index=self._index, exception=error)
        return error

    def _death(self) -> DeadKernel:
        code = self._exit_code()
        how = f"with exit code {code}"
        if code is None:
            how = "for a reason that nobody knows"
        elif code < 0:
            try:
                how = f"by {signal.Signals(-code).name}"
            except ValueError:
                how = f"by signal {-code}"
        memory = " It may have run out of memory." if code == -signal.SIGKILL else ""
        where = f"in cell {self._index + 1} of {len(self.nb.cells)}"
        if self._cell is None:
            where = "behind the last cell" if self.books.ended else "before the first cell"
        return DeadKernel(
            f"The kernel died {how} {where}.{memory}",
            cell=None if self._cell is None else self._index,
            hint="Run the same command again: what is recorded is restored, and this cell runs.",
        )

    def _exit_code(self) -> int | None:
        process = getattr(getattr(self.km, "provisioner", None), "process", None)
        return process.poll() if process is not None else None

    def execute_cell(self, cell: Any, cell_index: int, **options: Any) -> Any:
        """Run one cell."""
        self._cell, self._index = cell, cell_index
        return super().execute_cell(cell, cell_index, **options)

    def process_message(self, msg: Any, cell: Any, cell_index: int) -> Any:
        """Take a message in; nbflow's own words are no output."""
        content = msg["content"]
        if msg["msg_type"] in {"display_data", "update_display_data"} and is_notice(content.get("metadata")):
            self._notice(content["data"], cell, cell_index)
            return None
        return super().process_message(msg, cell, cell_index)

    def _notice(self, data: dict[str, Any], cell: Any, index: int) -> None:
        if REPORT in data:
            self.books.report(cell, index, data[REPORT])
        else:
            self.log.info(f"Cell {index + 1}: {data.get('text/plain', '')}")

    # --- the kernel --------------------------------------------------------------------------------------

    def start_new_kernel_client(self, **options: Any) -> Any:
        """Connect, and have every execution say which cell it is of."""
        client = super().start_new_kernel_client(**options)
        plain = client.session.msg

        def message(msg_type: str, content: Any = None, *arguments: Any, **options: Any) -> Any:
            if msg_type == "execute_request" and self._cell is not None:
                tags = list(self._cell.metadata.get("tags", ()))
                options["metadata"] = {"cellId": self._cell.get("id"), "tags": tags}
            return plain(msg_type, content, *arguments, **options)

        client.session.msg = message
        return client

    def ask(self, function: str, terms: dict[str, Any]) -> dict[str, Any]:
        """Call a function of `nbflow.notebook.unattended` in the kernel and return its answer.

        Raises:
            CellExecutionError: the kernel cannot run it (no nbflow there, another language).
            NbflowError: what it raised.
        """
        home = "__import__('nbflow.notebook.unattended', fromlist=['begin'])"
        asked = f"{home}.{function}(get_ipython(), {json.dumps(terms)!r})"
        request = self.kc.execute(
            "", silent=True, store_history=False, user_expressions={"answer": asked}, allow_stdin=False
        )
        reply = self._reply_to(request)
        answer = reply["content"].get("user_expressions", {}).get("answer", {})
        if answer.get("status") != "ok":
            said = answer if answer.get("ename") else reply["content"]
            raise CellExecutionError(
                "\n".join(said.get("traceback", [])), said.get("ename", "Error"), said.get("evalue", "")
            )
        told: dict[str, Any] = json.loads(ast.literal_eval(answer["data"]["text/plain"]))
        if "error" in told:
            raise _rebuilt(told["error"])
        return told

    async def _async_reply_to(self, request: str) -> dict[str, Any]:
        """Wait for a reply without the time limit that cells have."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            try:
                message: dict[str, Any] = await ensure_async(self.kc.shell_channel.get_msg(timeout=1))
            except Empty:
                await self._async_check_alive()
            else:
                if message["parent_header"].get("msg_id") == request:
                    return message
        raise KernelDied(f"The kernel has not answered for {PATIENCE} s.", hint="It is stuck; end it.")

    _reply_to = run_sync(_async_reply_to)


def _rebuilt(told: dict[str, Any]) -> NbflowError:
    kind = getattr(errors, told["type"], NbflowError)
    error: NbflowError = kind(told["message"], hint=told["hint"], **told["facts"])
    return error
