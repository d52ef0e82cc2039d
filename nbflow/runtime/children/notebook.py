"""A notebook as a child run: it runs in a kernel of its own, while the parent waits.

`NBFLOW_RUN` tells the kernel which run it is. As soon as the notebook does
anything durable the kernel attaches that run and has its lease; the parent
takes the run up again when the kernel is gone. A notebook that never heard of
nbflow runs as well: then there is nothing to replay. The executed notebook is
kept in the store's folder, as `children/<run>.ipynb`.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import os
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nbflow.core.errors import GatePending, LeaseHeld, UsageError
from nbflow.core.gates import gates_of, pending_at
from nbflow.core.history import History
from nbflow.core.signature import digest, short
from nbflow.core.states import RunState
from nbflow.runtime.waits.waiting import wait_until, wait_until_async
from nbflow.store.place import CHILDREN
from nbflow.store.protocol import Store

if TYPE_CHECKING:
    from jupyter_client.manager import AsyncKernelManager

    from nbflow.runtime.session import Session

log = logging.getLogger("nbflow")

#: The environment variable that names a kernel's run.
RUN_VARIABLE = "NBFLOW_RUN"

#: Seconds that a kernel has to end after an interrupt, before it is shut down.
GRACE = 5.0

#: Seconds to wait for the kernel of an earlier, killed parent: it notices within a second or two.
ORPHAN = 15.0


def code_of(path: Path) -> str:
    """Return a digest of a notebook's code cells, as text."""
    import nbformat

    cells = nbformat.read(path, as_version=4).cells
    return short(digest(*(cell.source for cell in cells if cell.cell_type == "code")))


def locate(target: str | Path, store: Store) -> tuple[Path, str]:
    """Return a notebook's path, and the name that its runs have: the path from the store's folder.

    Raises:
        UsageError: it is no notebook, is not there, or the store is one that a kernel cannot open.
    """
    path = Path(target)
    if path.suffix != ".ipynb":
        raise UsageError(f"{target} is no notebook.", hint="A notebook's path ends with .ipynb.")
    if not path.is_file():
        raise UsageError(
            f"There is no notebook {path.absolute()}.",
            hint="A relative path starts in the working directory.",
        )
    path = path.resolve()
    root = getattr(store, "root", None)
    if root is None:
        raise UsageError(
            "A notebook runs in a kernel, a process of its own, which cannot open this store.",
            hint="Use a store in a folder.",
        )
    try:
        return path, Path(os.path.relpath(path, Path(root).resolve().parent)).as_posix()
    except ValueError:  # another drive, on Windows
        return path, path.as_posix()


def waits_at(store: Store, run: str) -> GatePending | None:
    """Return the gate at which a notebook's run has stopped; None where it stopped for another reason."""
    history = History.of(store.entries(run))
    waiting = [gate for gate in gates_of(history) if gate.state == "waiting"]
    if history.state != RunState.WAITING or not waiting:
        return None
    return pending_at(run, history.info().workflow, waiting[0])


class KernelRun:
    """One execution of a notebook for a run that exists, in a kernel, watched over by a thread of its own.

    The kernel's messages are handled in an event loop in that thread: the
    caller may be inside a loop already, as in every notebook, and may want to
    look at its inbox meanwhile.
    """

    def __init__(self, session: Session, path: Path, run: str, params: dict[str, Any]) -> None:
        self._session = session
        self._path = path
        self._run = run
        self._params = params
        self._root = Path(session.store.root)  # type: ignore[attr-defined]  # `locate` saw to it
        #: Where the executed notebook is kept.
        self.copy = self._root / CHILDREN / f"{run}.ipynb"
        self._done = threading.Event()
        self._error: BaseException | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        self._manager: AsyncKernelManager | None = None

    def execute(self) -> None:
        """Run the notebook to its end.

        Raises:
            CellExecutionError, DeadKernelError: as nbclient.
            LeaseHeld: another process has the run.
            RunCancelled: the parent is to stop; the kernel is gone.
        """
        give_up = time.monotonic() + ORPHAN
        wait_until(self._session, lambda: None, lambda: self._free(give_up))
        self._start()
        try:
            wait_until(self._session, lambda: None, self._done.is_set)
        except BaseException:
            self._stop()
            raise
        self._raise()

    async def execute_async(self) -> None:
        """Do as `execute` without blocking the event loop."""
        give_up = time.monotonic() + ORPHAN
        await wait_until_async(self._session, lambda: None, lambda: self._free(give_up))
        self._start()
        try:
            await wait_until_async(self._session, lambda: None, self._done.is_set)
        except BaseException:
            # Short enough to block for, and a task that is being cancelled should not await.
            self._stop()
            raise
        self._raise()

    def _free(self, give_up: float) -> bool:
        """Tell whether nobody has the run; a kernel outlives a killed parent for a moment.

        Raises:
            LeaseHeld: somebody still has it after a while.
        """
        info = self._session.store.run(self._run)
        if info.alive and time.monotonic() > give_up:
            owner = info.owner
            who = f" by process {owner.pid} on {owner.host}" if owner is not None else ""
            raise LeaseHeld(f"Run {self._run} is held{who}.", run=self._run, pid=owner.pid if owner else None)
        return not info.alive

    def _start(self) -> None:
        context = contextvars.copy_context()
        threading.Thread(
            target=context.run, args=(self._work,), name=f"nbflow kernel of {self._run}", daemon=True
        ).start()

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _stop(self) -> None:
        """Interrupt the kernel, and shut it down if that does not help; return when it is gone."""
        loop, task = self._loop, self._task
        if loop is None or task is None:
            self._done.wait(GRACE)
            loop, task = self._loop, self._task
        if loop is None or task is None:
            return
        with contextlib.suppress(RuntimeError):  # the loop has just ended by itself
            asyncio.run_coroutine_threadsafe(self._interrupt(), loop)
        if not self._done.wait(GRACE):
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(task.cancel)
            self._done.wait()

    async def _interrupt(self) -> None:
        if self._manager is not None and await self._manager.is_alive():
            await self._manager.interrupt_kernel()
        elif self._task is not None:
            self._task.cancel()

    # --- in the thread ----------------------------------------------------------------------------------------

    def _work(self) -> None:
        try:
            asyncio.run(self._execute())
        except BaseException as error:  # noqa: BLE001 - handed to the waiting parent, whatever it is
            self._error = error
        finally:
            self._done.set()

    async def _execute(self) -> None:
        from nbclient import NotebookClient

        self._loop, self._task = asyncio.get_running_loop(), asyncio.current_task()
        document = _read(self._path, self._params)
        self._manager = _manager(document)
        client = NotebookClient(
            document, km=self._manager, timeout=None, resources={"metadata": {"path": str(self._path.parent)}}
        )
        environment = {
            **os.environ,
            RUN_VARIABLE: self._run,
            "NBFLOW_STORE": str(self._root),
            "NBFLOW_NOTEBOOK": str(self._path),
        }
        try:
            await client.async_execute(env=environment, cwd=str(self._path.parent), cleanup_kc=True)
        finally:
            self._keep(document)

    def _keep(self, document: Any) -> None:
        """Keep the executed notebook; the run does not fail for want of its copy."""
        import nbformat

        try:
            self.copy.parent.mkdir(exist_ok=True)
            growing = self.copy.with_suffix(".new")
            nbformat.write(document, growing)
            growing.replace(self.copy)
        except OSError:
            log.warning("The executed notebook of run %s could not be kept.", self._run, exc_info=True)


def _read(path: Path, params: dict[str, Any]) -> Any:
    """Read a notebook, with the parameters injected as papermill does it."""
    from papermill.iorw import load_notebook_node
    from papermill.parameterize import parameterize_notebook

    document = load_notebook_node(str(path))
    if not params:
        return document
    spec = document.metadata.get("kernelspec", {})
    return parameterize_notebook(
        document,
        params,
        kernel_name=spec.get("name") or "python3",
        language=spec.get("language") or document.metadata.get("language_info", {}).get("name") or "python",
    )


def _manager(document: Any) -> AsyncKernelManager:
    """Return the manager of a kernel as the notebook asks for; a plain Python one is this very interpreter."""
    from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
    from jupyter_client.manager import AsyncKernelManager

    name = document.metadata.get("kernelspec", {}).get("name", "") or "python3"
    if name != "python3":
        return AsyncKernelManager(kernel_name=name)

    class OwnInterpreter(KernelSpecManager):
        """A user may have installed a `python3` kernel of some other environment."""

        def get_kernel_spec(self, kernel_name: str) -> KernelSpec:  # noqa: ARG002 - one answer to every name
            argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}", "--log-level=40"]
            return KernelSpec(argv=argv, display_name="nbflow child", language="python")

    return AsyncKernelManager(kernel_spec_manager=OwnInterpreter())
