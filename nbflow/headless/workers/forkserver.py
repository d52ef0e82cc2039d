"""Starts worker processes quickly: a process that has loaded papermill, and of which each worker is a fork.

Loading papermill costs a second or two of computing, several times what a small
notebook needs. `multiprocessing` has such a server too, but its processes import
the caller's `__main__` again, there is one for the whole program, with what was
preloaded by whoever came first, and a daemonic process may not use it. This one
belongs to one batch, knows nothing of the program that started it, and never
loads anything of a user's.

The server runs one thread and no event loop when it forks. (papermill loads
Arrow, whose allocator has a thread of its own; it sees to forks by itself.) It
ends when the socket over which it is asked is closed: its owner is done, or dead.
"""

from __future__ import annotations

import contextlib
import gc
import os
import selectors
import signal
import socket
import sys
import warnings
from collections.abc import Callable
from typing import NoReturn

#: How a number travels: as so many bytes.
NUMBER = 8


def main(control: int) -> None:
    """Serve until the control socket is closed."""
    environment = dict(os.environ)
    _load()
    os.environ.clear()
    os.environ.update(environment)
    gc.collect()
    gc.freeze()  # the pages of what is loaded stay shared with the forks
    _serve(socket.socket(fileno=control))


def _load() -> None:
    """Load what every worker needs, and no thread with it."""
    from nbflow.headless.workers.perform import THREADS

    # BLAS starts its threads when NumPy is loaded, which papermill does.
    os.environ.update(dict.fromkeys(THREADS, "1"))
    import ipykernel.kernelspec  # noqa: F401
    import jupyter_client.asynchronous
    import jupyter_client.manager
    import jupyter_client.provisioning  # noqa: F401
    import nbformat.v4
    import papermill.execute  # noqa: F401
    import psutil  # noqa: F401
    import zmq.asyncio  # noqa: F401

    import nbflow.headless.execution.conduct
    import nbflow.headless.workers.process  # noqa: F401

    # The first check of a notebook compiles the schema.
    nbformat.validate(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("")]))


def _serve(control: socket.socket) -> None:
    woken, wake = os.pipe()
    for descriptor in (woken, wake):
        os.set_blocking(descriptor, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.set_wakeup_fd(wake)
    #: The workers by process id, each with the pipe that gets its exit status.
    workers: dict[int, int] = {}
    with selectors.DefaultSelector() as selector:
        selector.register(control, selectors.EVENT_READ)
        selector.register(woken, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fileobj is control:
                    asked, descriptors, _, _ = socket.recv_fds(control, 1, 2)
                    if not asked:
                        return
                    connection, status = descriptors
                    others = [control.fileno(), woken, wake, status, *workers.values()]
                    _write(status, pid := _fork(connection, others, selector.close))
                    workers[pid] = status
                    os.close(connection)
                else:
                    with contextlib.suppress(BlockingIOError):
                        os.read(woken, 4096)
                    _reap(workers)


def _fork(connection: int, others: list[int], close: Callable[[], None]) -> int:
    """Start a worker for a connection; return its process id, and in the worker never."""
    with warnings.catch_warnings():
        # Python 3.12 and later warn of the thread of Arrow's allocator, which sees to forks by itself.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid:
        return pid
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        close()
        for descriptor in others:
            os.close(descriptor)
        os.setsid()
        _attend(connection)
    finally:
        os._exit(1)


def _attend(connection: int) -> NoReturn:
    from nbflow.headless.workers.process import attend

    attend(connection)


def _reap(workers: dict[int, int]) -> None:
    while workers:
        try:
            pid, ended = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if not pid:
            return
        status = workers.pop(pid, None)
        if status is not None:
            _write(status, os.waitstatus_to_exitcode(ended))
            os.close(status)


def _write(pipe: int, number: int) -> None:
    with contextlib.suppress(BrokenPipeError):
        os.write(pipe, number.to_bytes(NUMBER, sys.byteorder, signed=True))


if __name__ == "__main__":
    main(int(sys.argv[1]))
