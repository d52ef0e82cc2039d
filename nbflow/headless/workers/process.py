"""The life of a worker process: one job comes in, progress and an outcome go out, and it is gone.

Whoever asked holds the other end of the connection. When that end closes,
because the runner is dead or wants an end, so does this process, and its kernel
first: at once, for what is recorded is recorded and the run can be carried on.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NoReturn

import msgspec

from nbflow.headless.batches.jobs import Job, Outcome, Progress
from nbflow.headless.workers.perform import execute, failed, surroundings
from nbflow.headless.workers.scratch import end_descendants, remove_scratch

#: Where a worker and its kernel write what they have to say, in the scratch folder.
LOG = "log"

#: What the first byte of a message says that it is.
PROGRESS, OUTCOME = b"p", b"o"

#: Lines and bytes of the log that are kept of a notebook that failed.
_LINES, _BYTES = 20, 8_000


def attend(descriptor: int) -> NoReturn:
    """Do the one job that comes in over a connection, and end this process."""
    connection = Connection(descriptor)
    code = 1
    try:
        job = msgspec.msgpack.decode(connection.recv_bytes(), type=Job)
        try:
            with surroundings(job):
                outcome = _do(connection, job)
        except (EOFError, BrokenPipeError):
            raise
        except Exception as error:  # noqa: BLE001 - a worker that just ended would say nothing of it
            outcome = failed(error, 0.0)
        connection.send_bytes(OUTCOME + msgspec.msgpack.encode(outcome))
        code = 0
    except (EOFError, BrokenPipeError):
        pass  # nobody wants it any more
    finally:
        # No atexit and no destructors: what this process was forked from is not ours to put away.
        os._exit(code)


def _do(connection: Connection, job: Job) -> Outcome:
    scratch = Path(job.scratch)
    _write_into(scratch / LOG)

    def end(code: int) -> NoReturn:
        end_descendants()
        remove_scratch(scratch)
        os._exit(code)

    def watch() -> None:
        with contextlib.suppress(EOFError, OSError):
            connection.recv_bytes()  # nothing ever comes: it ends when the other end is closed
        end(1)

    def told(progress: Progress) -> None:
        connection.send_bytes(PROGRESS + msgspec.msgpack.encode(progress))

    signal.signal(signal.SIGTERM, lambda *_: end(128 + signal.SIGTERM))
    threading.Thread(target=watch, name="nbflow-runner-watch", daemon=True).start()
    outcome = execute(job, told)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    return (
        outcome
        if outcome.state in {"completed", "waiting"}
        else msgspec.structs.replace(outcome, log=tail(scratch))
    )


def _write_into(path: Path) -> None:
    """Send all that this process and its kernel print into a file."""
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    os.close(nothing)
    logging.basicConfig(level=logging.INFO, format="%(message)s", force=True)


def tail(scratch: Path) -> str:
    """Return the last lines of a worker's log; "" when there is none."""
    try:
        with (scratch / LOG).open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _BYTES))
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    return "\n".join(text.splitlines()[-_LINES:])


if __name__ == "__main__":
    attend(int(sys.argv[1]))
