"""A batch in a process of its own, as a script without a guard would run it, and what a test sees of it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

#: Says line by line what happens. It has no `if __name__ == "__main__"`: nobody may import it again.
DRIVER = """
import json, sys, nbflow
from nbflow.headless.batches.jobs import Unwatched
def say(*words): print(*words, flush=True)
say("main")
class Lines(Unwatched):
    def begin(self, run, plan, done): say("begin", run, len(done))
    def started(self, item, attempt): say("started", item.index, attempt)
    def progress(self, item, progress): say("progress", item.index, progress.cells)
    def ended(self, item, outcome): say("ended", item.index, outcome.state)
    def lost(self, item, error, again): say("lost", item.index, again)
    def stopping(self, why): say("stopping", why)
try:
    done = nbflow.batch(**json.loads(sys.argv[1]), watcher=Lines())
except nbflow.errors.NbflowError as error:
    say("error", type(error).__name__, error)
else:
    say("over", done.state, done.completed, done.failed, done.left)
"""


class Driver:
    """The running process; `lines` grows."""

    def __init__(self, place: Place, **options: Any) -> None:
        self.lines: list[list[str]] = []
        self.process = subprocess.Popen(
            [sys.executable, "-c", DRIVER, json.dumps(options, default=str)],
            cwd=place.folder,
            env={**os.environ, "TMPDIR": str(place.temp), "JUPYTER_RUNTIME_DIR": str(place.runtime)},
            stdout=subprocess.PIPE,
            stderr=(place.folder / "errors.txt").open("a"),
            text=True,
        )
        self._news = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._news:
                self.lines.append(line.split())
                self._news.notify_all()
        with self._news:
            self.lines.append(["end"])
            self._news.notify_all()

    def of(self, *words: str) -> list[list[str]]:
        """The lines that begin so."""
        return [line for line in list(self.lines) if line[: len(words)] == list(words)]

    def wait(self, *words: str, count: int = 1, seconds: float = 120) -> list[str]:
        """Return the count-th line that begins so, when it is there."""
        return self.until(lambda: self.of(*words)[count - 1 :], seconds)[0]

    def until(self, found: Callable[[], Any], seconds: float = 120) -> Any:
        """Return what `found` finds, asked whenever there is a line."""
        end = time.monotonic() + seconds
        with self._news:
            while not (answer := found()):
                over = self.lines[-1:] == [["end"]]
                assert not over, f"the batch ended without it: {self.lines[-20:]}"
                assert time.monotonic() < end, f"it did not come: {self.lines[-20:]}"
                self._news.wait(0.2)
        return answer

    def interrupt(self) -> None:
        """Press Ctrl-C."""
        self.process.send_signal(signal.SIGINT)

    def kill(self) -> None:
        """Kill the runner."""
        self.process.kill()
        self.process.wait(30)

    def over(self, seconds: float = 240) -> list[str]:
        """Return the last word of a batch that comes to its end."""
        self.process.wait(seconds)
        self._reader.join(30)
        said = self.of("over") + self.of("error")
        assert said, self.lines[-20:]
        return said[0][1:]


class Place:
    """A folder with a store, and folders in which nothing may be left."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # Short, for sockets lie in it.
        self.temp = Path(tempfile.mkdtemp(prefix="nb"))
        self.runtime = folder / "runtime"
        self.runtime.mkdir()

    @contextmanager
    def driver(self, **options: Any) -> Iterator[Driver]:
        """Run a batch in a process; nothing of it outlives the block."""
        driver = Driver(self, **options)
        try:
            yield driver
        finally:
            driver.process.kill()
            driver.process.wait(30)
            for process in self.processes():
                process.kill()

    def processes(self, name: str = "") -> list[psutil.Process]:
        """The processes that have our temporary folder in their command line or environment."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.status() == psutil.STATUS_ZOMBIE or process.pid == os.getpid():
                    continue
                line = " ".join(process.cmdline())
                if process.environ().get("TMPDIR") == str(self.temp) and name in line:
                    found.append(process)
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        return found

    def kernels(self) -> list[psutil.Process]:
        """The kernels at work."""
        return self.processes("ipykernel_launcher")

    def clean(self) -> None:
        """Nothing is left: no process, no file of a kernel or worker."""
        end = time.monotonic() + 15
        while left := self.processes():
            assert time.monotonic() < end, [process.cmdline() for process in left if process.is_running()]
            time.sleep(0.02)
        assert sorted(self.temp.rglob("*")) == []
        assert sorted(self.runtime.rglob("*")) == []

    def remove(self) -> None:
        """Take the temporary folder away."""
        shutil.rmtree(self.temp, ignore_errors=True)
