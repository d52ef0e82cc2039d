"""The executed notebook of an item: it is always whole, and what its run completed is never missing from it.

A run that is completed never runs again, so nothing could make its notebook
anew. Hence it is put in its place only when all of it is written; where it could
not be written, a copy is kept in the store; and whoever finds the run completed
later delivers what its worker did not come to.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nbflow.headless.batches.jobs import Item, Job
from nbflow.store.place import CHILDREN

#: The end of a file's name that is still being written.
_PART = ".part"


def make_folder(output: str) -> None:
    """Make the folder that an output is written to; papermill does not.

    Raises:
        OSError: it cannot be made.
    """
    if "://" not in output:
        Path(output).parent.mkdir(parents=True, exist_ok=True)


@contextmanager
def whole_files() -> Iterator[None]:
    """Have papermill replace local files at once inside the block: killed while it writes, it leaves the earlier one.

    For a process, or a thread, that alone uses papermill meanwhile.
    """
    from papermill.iorw import papermill_io

    handler: Any = papermill_io.get_handler("local")
    plain = handler.write

    def write(text: str, path: str) -> None:
        if not os.path.isabs(path):  # noqa: PTH117 - papermill has folders of its own for these
            plain(text, path)
            return
        with _replaced(path) as part:
            plain(text, part)

    handler.write = write
    try:
        yield
    finally:
        handler.write = plain


@contextmanager
def _replaced(path: str) -> Iterator[str]:
    """Give the name to write to; behind the block that file takes the place of `path`."""
    target = os.path.realpath(path)
    if os.path.exists(target) and not os.path.isfile(target):  # noqa: PTH110, PTH113 - as text
        yield target  # a pipe or a device stays what it is
        return
    part = target + _PART
    try:
        yield part
        with contextlib.suppress(FileNotFoundError):
            shutil.copymode(target, part)
        os.replace(part, target)  # noqa: PTH105 - as text
    except BaseException:
        Path(part).unlink(missing_ok=True)
        raise


def keep(job: Job, executed: Any) -> None:
    """Keep an executed notebook whose run is over and that could not be written: nothing could make it again."""
    import nbformat

    kept = _kept(job.store, job.item)
    with contextlib.suppress(OSError):  # the same disk may be full
        kept.parent.mkdir(exist_ok=True)
        nbformat.write(executed, kept)


def _kept(store: str, item: Item) -> Path:
    return Path(store) / CHILDREN / f"{item.run}.ipynb"


def deliver(store: str, item: Item) -> None:
    """Have the output of a notebook whose run is completed say so, though its worker did not come to write it.

    Raises:
        OSError: it cannot be written now either.
    """
    import nbformat

    kept = _kept(store, item)
    if "://" not in item.output:
        Path(os.path.realpath(item.output) + _PART).unlink(missing_ok=True)
    if kept.exists():
        _put(nbformat.read(kept, as_version=nbformat.NO_CONVERT), item.output)
        kept.unlink()
        return
    if "://" in item.output or not Path(item.output).exists():
        return
    try:
        document = nbformat.read(item.output, as_version=4)
    except (ValueError, nbformat.reader.NotJSONError):
        return
    facts = document.metadata.get("nbflow", {})
    if facts.get("run") == item.run and facts.get("state") != "completed":
        facts["state"] = "completed"
        _put(document, item.output)


def _put(document: Any, output: str) -> None:
    if "://" in output:
        from papermill.iorw import write_ipynb

        write_ipynb(document, output)
        return
    import nbformat

    make_folder(output)
    with _replaced(output) as part:
        nbformat.write(document, part)
