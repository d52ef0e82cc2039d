"""What can be saved of a damaged run: every record before the first bad byte.

Ingest copies it, so that history stays readable; `nbflow doctor --repair` makes
a sound journal of it.
"""

from __future__ import annotations

from pathlib import Path

from nbflow.core.errors import NbflowError, StoreError
from nbflow.core.model import RunAttached
from nbflow.store.framing import FRAME, HEADER, LAST, MORE, Frame, check_header, first_entry, read_frames
from nbflow.values.trust import mac


def sound_prefix(folder: Path, key: bytes) -> list[Frame]:
    """Return the records of a run from the first up to the first that cannot be trusted; [] when none can.

    Never raises for what it finds; a file that cannot be read ends the prefix.
    """
    run = folder.name
    frames: list[Frame] = []
    journals = journals_of(folder)
    for place, (generation, path) in enumerate(journals):
        try:
            data = path.read_bytes()
            if place + 1 < len(journals):
                data = data[: _counted(journals[place + 1], run, key)]
            check_header(data, run, generation, key, place=path.name)
            whole = _whole_appends(data, run, key)
            found = read_frames(data[:whole], run, key, len(frames) + 1, start=HEADER.size).frames
        except (OSError, NbflowError):
            break
        frames += found
        if whole < len(data) and place + 1 < len(journals):
            break  # what follows in the next journal has a gap before it
    return frames


def journals_of(folder: Path) -> list[tuple[int, Path]]:
    """List the journal files of a run's folder with their generations, oldest first."""
    found = []
    for path in folder.glob("journal.*"):
        number = path.name.partition(".")[2]
        if number.isdigit():
            found.append((int(number), path))
    return sorted(found)


def _counted(journal: tuple[int, Path], run: str, key: bytes) -> int:
    generation, path = journal
    data = path.read_bytes()
    check_header(data, run, generation, key, place=path.name)
    record = first_entry(data, run, key, place=path.name).record
    if not isinstance(record, RunAttached):
        raise StoreError(f"{path.name} of run {run} does not begin with its attach.", run=run)
    return record.counted


def _whole_appends(data: bytes, run: str, key: bytes) -> int:
    """Return how many bytes hold whole appends whose frames are all signed."""
    context = run.encode()
    position = end = HEADER.size
    while position + FRAME.size <= len(data):
        magic, length, _, signature = FRAME.unpack_from(data, position)
        stop = position + FRAME.size + length
        if magic not in (LAST, MORE) or stop > len(data):
            break
        if mac(key, context, data[position + FRAME.size : stop]) != signature:
            break
        position = stop
        if magic == LAST:
            end = stop
    return end
