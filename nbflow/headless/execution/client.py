"""papermill's client, talking to a kernel in which nbflow is at work.

It sends with each cell what JupyterLab sends (the cell's id and tags), and
keeps what nbflow says about a cell out of the cell's outputs.
"""

from __future__ import annotations

import ast
import asyncio
import json
import signal
import time
from collections.abc import Callable
from queue import Empty
from typing import Any

from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbclient.util import ensure_async, run_sync
from papermill.clientwrap import PapermillNotebookClient

from nbflow.core import errors
from nbflow.core.errors import GatePending, KernelDied, NbflowError
from nbflow.headless.execution.bookkeeping import Bookkeeper
from nbflow.headless.waiting import Waiting
from nbflow.notebook.messages import REPORT, WAITS, is_notice

#: Seconds that nbflow in the kernel may take to answer: it opens a run, or ends it.
PATIENCE = 300

#: Seconds after which a cell that was not restored by then stands as running in the output notebook.
SHOWN_RUNNING = 0.1


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
        self._info: dict[str, Any] | None = None
        #: The gate at which the cell stopped, and what the kernel showed of it.
        self._gate: Waiting | None = None
        self._asked, self._said = False, list[dict[str, Any]]()

    # --- the notebook ------------------------------------------------------------------------------------

    def papermill_execute_cells(self) -> None:
        """Run the cells between the opening and the closing.

        Raises:
            DeadKernel: naming the cell in which the kernel died.
        """
        try:
            self._info = super().wait_for_reply(self.kc.kernel_info())
            self._opening(self)
            super().papermill_execute_cells()
            self._cell = None
            self.books.ended = True
            self.books.catch_up(self.books.done)  # what is over cannot be executed again to write it
            self._closing(self)
        except DeadKernel:
            raise
        except DeadKernelError:
            raise self._death() from None

    def execute_cell(self, cell: Any, cell_index: int, **options: Any) -> Any:
        """Run one cell, and have the books say what became of it."""
        self._cell, self._index = cell, cell_index
        self._gate, self._asked, self._said = None, False, []
        executed, begin = self.code_cells_executed, time.perf_counter()
        try:
            done = super().execute_cell(cell, cell_index, **options)
            if self._gate is not None:  # a tag lets the cell raise, but nothing goes on behind a gate
                raise CellExecutionError("", GatePending.__name__, "")
            return done
        except DeadKernelError:
            death = self._death()
            self.books.cell_exception(cell, cell_index=cell_index, exception=death)
            raise death from None
        except BaseException as error:
            if isinstance(error, CellExecutionError) and self._gate is not None:
                self.books.stopped_at(self._gate, cell, cell_index, self._said)
                raise
            # papermill itself marks no cell that ran out of time or was interrupted with it.
            self.books.cell_exception(cell, cell_index=cell_index, exception=error)
            if isinstance(error, CellTimeoutError):  # which does not say where it was
                error.cell = cell_index  # type: ignore[attr-defined]
            raise
        finally:
            if cell.cell_type == "code":
                seconds = time.perf_counter() - begin
                self.books.executed(cell, seconds if self.code_cells_executed > executed else None)

    def wait_for_reply(self, msg_id: str, cell: Any = None) -> Any:
        """Wait for a reply; what the kernel is was asked before, in case the last cell has ended it (`exit()`)."""
        try:
            return super().wait_for_reply(msg_id, cell)
        except DeadKernelError:
            if self.books.ended and self.exit_code() == 0 and self._info is not None:
                return self._info
            raise

    @property
    def language(self) -> str:
        """What the kernel speaks, by its own account; in lower case."""
        told = (self._info or {}).get("content", {}).get("language_info", {})
        return str(told.get("name") or "an unknown language").lower()

    def exit_code(self) -> int | None:
        """Return how the kernel's process ended, negative for a signal; None while it lives or nobody knows."""
        process = getattr(getattr(self.km, "provisioner", None), "process", None)
        return process.poll() if process is not None else None

    def _death(self) -> DeadKernel:
        code = self.exit_code()
        how, memory = f"with exit code {code}", ""
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
        again = ", and this cell runs" if self._cell is not None else ""
        return DeadKernel(
            f"The kernel died {how} {where}.{memory}",
            cell=None if self._cell is None else self._index,
            hint=f"Run the same command again: what is recorded is restored{again}.",
        )

    def process_message(self, msg: Any, cell: Any, cell_index: int) -> Any:
        """Take a message in; nbflow's own words are no output."""
        content = msg["content"]
        if msg["msg_type"] in {"display_data", "update_display_data"} and is_notice(content.get("metadata")):
            self._notice(content["data"], cell, cell_index)
            return None
        if msg["msg_type"] == "error" and content["ename"] == GatePending.__name__:
            self._asked = True
        if msg["msg_type"] == "execute_input":
            asyncio.get_running_loop().call_later(SHOWN_RUNNING, self.books.catch_up, self.books.done)
        return super().process_message(msg, cell, cell_index)

    def _notice(self, data: dict[str, Any], cell: Any, index: int) -> None:
        if REPORT in data:
            self.books.report(cell, index, data[REPORT])
        elif WAITS in data:
            self._gate = Waiting(**data[WAITS])
        elif self._asked:
            self._said.append(data)
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
