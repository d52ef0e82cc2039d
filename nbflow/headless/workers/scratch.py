"""The folder for what must not stay of a batch: connection files, sockets and logs; and the processes that use it.

Its name follows from the batch, so that whoever resumes it on the same machine
finds what a killed runner left. Each job has a folder of its own in it, and by
the connection file there a kernel is known for certain to be the batch's.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import tempfile
import time
from pathlib import Path
from typing import Any

from nbflow.core.signature import digest, short

#: The kernel's connection file in the job's scratch folder: by this name an orphan is known for certain.
#: Short, for the sockets beside it have it in their names, and those may have about 100 characters.
CONNECTION = "k.json"

#: The longest temporary folder (characters) in which the sockets of a kernel still fit everywhere.
_SHORT = 54

#: Seconds to wait for a killed process to be gone: it may be writing a core, or hang in the kernel.
_GONE = 5.0


def scratch_of(batch: str) -> Path:
    """Return the folder for what must not stay of a batch: the same whenever it is resumed on this machine."""
    return short_temporary_folder() / f"nbflow-{short(digest('scratch', batch))}"


def short_temporary_folder() -> Path:
    """Return the system's temporary folder, or one whose name is short enough for sockets."""
    found = Path(tempfile.gettempdir()).absolute()
    return found if len(str(found)) <= _SHORT else Path("/tmp")  # noqa: S108 - what is made in it is private


def kernel_in(scratch: Path) -> dict[str, Any]:
    """Return the options of papermill's client for a kernel that leaves nothing outside of its scratch folder."""
    from jupyter_client.manager import AsyncKernelManager
    from traitlets import default
    from traitlets.config import Config

    class ScratchKernel(AsyncKernelManager):
        """Talks over sockets in the file system: no ports, so none that two kernels both found free."""

        @default("transport")
        def _transport(self) -> str:
            spec = self.kernel_spec
            known = spec is not None and spec.language.lower() == "python" and os.name == "posix"
            elsewhere = bool(spec.metadata.get("kernel_provisioner")) if spec is not None else False
            return "ipc" if known and not elsewhere else "tcp"

    place = str(scratch / CONNECTION)
    return {
        "kernel_manager_class": ScratchKernel,
        "config": Config({"KernelManager": {"connection_file": place}}),
    }


def remove_left_over(scratch: Path) -> None:
    """Remove what a killed runner of the same batch left: kernels that outlived it, and their files."""
    if scratch.exists():
        end_orphans(scratch)
        shutil.rmtree(scratch, ignore_errors=True)


def make_scratch(scratch: Path) -> None:
    """Make a job's scratch folder, for this user alone: a connection file holds the kernel's key.

    Raises:
        OSError: it cannot be made, or it or the batch's folder around it is somebody else's.
    """
    for last in (False,) * 100 + (True,):
        scratch.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            scratch.mkdir(mode=0o700, exist_ok=True)
            break
        except FileNotFoundError:  # another worker has just removed the folder around both as empty
            if last:
                raise
    for folder in (scratch.parent, scratch):  # who has the outer one could put another inner one in its place
        _require_private(folder)


def _require_private(folder: Path) -> None:
    """Refuse a folder that others may change: the temporary folder is everybody's, and names can be foreseen.

    Raises:
        PermissionError.
    """
    found = folder.lstat()
    if not hasattr(os, "getuid"):
        return
    if stat.S_ISLNK(found.st_mode) or found.st_uid != os.getuid():
        raise PermissionError(f"{folder} belongs to another user, or is a link.")
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise PermissionError(f"{folder} can be changed by other users.")


def remove_scratch(scratch: Path) -> None:
    """Remove a job's scratch folder, and the batch's around it behind its last job."""
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        scratch.parent.rmdir()
    except OSError:
        return  # others are at work in it


def end_descendants() -> None:
    """Kill all processes that this one started, its kernel with whatever that started, and see them gone."""
    import psutil

    _end(psutil.Process().children(recursive=True))


def _end(processes: list[Any]) -> None:
    import psutil

    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            process.kill()
    end = time.monotonic() + _GONE
    while any(map(alive, processes)) and time.monotonic() < end:
        time.sleep(0.005)


def alive(process: Any) -> bool:
    """Tell whether a process still does anything: in a container, often nobody takes note of an orphan's end."""
    import psutil

    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def end_orphans(place: Path) -> int:
    """Kill the kernels that a killed worker or runner left, with what they started; return how many there were.

    A kernel is one of ours where its command line names a connection file below
    `place`, a folder that belongs to one batch of one user.
    """
    import psutil

    prefix = f"{place}{os.sep}"
    found: list[Any] = []
    for process in psutil.process_iter(["cmdline"]):
        named = process.info["cmdline"] or ()
        if any(word.startswith(prefix) and word.endswith(CONNECTION) for word in named):
            with contextlib.suppress(psutil.NoSuchProcess):
                family = [process, *process.children(recursive=True)]
                found += family
    _end(found)
    return len(found)
