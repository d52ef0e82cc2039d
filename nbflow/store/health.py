"""The store's health for `nbflow doctor`: what is wrong, and what repair would do about it."""

from __future__ import annotations

import platform
import secrets
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nbflow.core.errors import CorruptLeaf, NbflowError, StoreBusy, UnknownRun, Untrusted
from nbflow.store import compact, disk, schema
from nbflow.store.folder import RunFolder, sweep_folders
from nbflow.store.framing import pack_frames, pack_header, sealer
from nbflow.store.lease import AttachLock, held, is_alive, pack_generation, read_generation
from nbflow.store.leaves import references
from nbflow.store.protocol import Finding
from nbflow.store.salvage import journals_of, sound_prefix
from nbflow.values.trust import data_dir, key_id, mac, user_key

if TYPE_CHECKING:
    import duckdb

    from nbflow.store.local import LocalStore


def examine(store: LocalStore, *, repair: bool) -> list[Finding]:
    """Look at everything: the key, every run's journal and leaves, the database and its leaves.

    Reads all of it (some GB/s), so it is for `doctor`, not for every day.
    """
    found = [*_folders(store, repair), *_database(store, repair)]
    if store.background.problem is not None:
        found.append(
            Finding("warning", "background", f"The last attempt to copy failed: {store.background.problem}")
        )
    if all(finding.level == "ok" for finding in found):
        found.insert(0, Finding("ok", "store", f"{store.root} is in order."))
    return found


def facts(store: LocalStore) -> dict[str, Any]:
    """Return place, sizes (bytes) and versions."""
    import importlib.metadata

    from nbflow import __version__

    folders = dict(store.live.sizes())
    database = store.database.path.stat().st_size if store.database.exists() else 0
    versions = {}
    for name in ("duckdb", "pyarrow", "pandas", "numpy"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return {
        "place": str(store.root),
        "size": database + sum(folders.values()),
        "database": database,
        "unfinished": len(folders),
        "schema": schema.SCHEMA_VERSION,
        "nbflow": __version__,
        "python": platform.python_version(),
        **versions,
        "key": f"{key_id(user_key()).hex()} in {data_dir()}",
        "platform": f"{sys.platform} {platform.release()}",
    }


def _folders(store: LocalStore, repair: bool) -> Iterator[Finding]:
    runs = store.live.root
    for path in sorted(runs.iterdir()) if runs.is_dir() else ():
        if path.is_dir() and not path.name.startswith("."):
            yield from _run(store, path, repair)
    leftovers = [path for path in runs.glob(".*") if path.name.startswith((".trash-", ".new-"))]
    if leftovers:
        if repair:
            yield Finding(
                "ok", "leftovers", f"Deleted {sweep_folders(runs)} folders that killed processes left."
            )
        else:
            yield Finding(
                "warning",
                "leftovers",
                f"Killed processes left {len(leftovers)} folders.",
                "delete those of an hour ago",
            )


def _run(store: LocalStore, path: Path, repair: bool) -> Iterator[Finding]:
    run = path.name
    subject = f"run {run}"
    folder = RunFolder(path, user_key())
    yield from _generation(folder, repair)
    try:
        entries = folder.entries()
    except Untrusted as error:
        yield Finding(
            "warning",
            subject,
            error.message,
            f"none: run `nbflow trust {store.root}` if you trust its author",
        )
        return
    except (UnknownRun, StoreBusy) as error:
        yield Finding("warning", subject, str(error))
        return
    except NbflowError as error:
        sound = len(_sound(store, folder))
        if repair:
            yield _try(subject, lambda: _keep_sound(store, folder))
            store.live.forget(run)
        else:
            saved = f"keep records 1 to {sound} and put the damaged journal aside" if sound else ""
            yield Finding("error", subject, error.message, saved)
        return
    lost = 0
    for entry in entries:
        for ref in references(entry):
            try:
                folder.verify(ref)
            except CorruptLeaf as error:
                if not _in_database(store, ref.digest):
                    lost += 1
                    step = getattr(entry.record, "step", "?")
                    yield Finding("error", f"{subject}, step {step}", error.message)
    if not lost:
        owner, alive = folder.owner()
        who = f", held by process {owner.pid} on {owner.host}" if alive and owner is not None else ""
        yield Finding("ok", subject, f"{len(entries)} records{who}")


def _generation(folder: RunFolder, repair: bool) -> Iterator[Finding]:
    """Look whether the number that fences stale owners is there and not below its journals."""
    journals = journals_of(folder.path)
    newest = journals[-1][0] if journals else 0
    try:
        if read_generation(folder.path, folder.run) >= newest:
            return
        message = f"Its generation file is older than journal {newest}."
    except NbflowError as error:
        message = error.message
    if not journals:
        yield Finding("error", f"run {folder.run}", "Its folder holds no journal.")
    elif repair:
        yield _try(f"run {folder.run}", lambda: _mend_generation(folder, newest))
    else:
        yield Finding("error", f"run {folder.run}", message, f"write generation {newest} from its journals")


def _try(subject: str, mend: Callable[[], str]) -> Finding:
    try:
        return Finding("ok", subject, mend())
    except NbflowError as error:
        return Finding("error", subject, f"Not repaired: {error}")


def _mend_generation(folder: RunFolder, newest: int) -> str:
    temporary = f"generation.{secrets.token_hex(4)}"
    disk.place(folder.path, "generation", pack_generation(newest), "repair", temporary=temporary)
    return f"Wrote generation {newest}."


def _sound(store: LocalStore, folder: RunFolder) -> list[bytes]:
    """Return the bodies of the sound records, of the journal or of the database, whichever has more."""
    bodies = [frame.body for frame in sound_prefix(folder.path, folder.key)]
    if not store.database.exists():
        return bodies
    with store.database.read() as connection:
        rows = connection.execute(
            "SELECT seq, record, mac, signer FROM nbflow.event WHERE run = ? ORDER BY seq", [folder.run]
        ).fetchall()
    copied: list[bytes] = []
    for seq, record, signature, signer in rows:
        if (
            seq != len(copied) + 1
            or signer != key_id(folder.key)
            or mac(folder.key, folder.run.encode(), record) != signature
        ):
            break
        copied.append(record)
    return copied if len(copied) > len(bodies) and copied[: len(bodies)] == bodies else bodies


def _keep_sound(store: LocalStore, folder: RunFolder) -> str:
    """Make one journal of the sound records; the damaged files stay in `damaged-<n>/` of the run's folder."""
    with AttachLock(folder.path, folder.run):
        owner, alive = is_alive(folder.path, folder.run)
        if alive:
            raise held(folder.run, owner)
        bodies = _sound(store, folder)
        journals = journals_of(folder.path)
        if not bodies:
            return (
                "Nothing of it can be saved; delete it with `nbflow gc`, or put its files back from a backup."
            )
        generation = max(read_generation(folder.path, folder.run), journals[-1][0]) + 1
        seal = sealer(folder.key, folder.run)
        data = pack_header(folder.run, generation, folder.key)
        data += b"".join(pack_frames([body], 0, seal) for body in bodies)
        try:
            aside = folder.path / f"damaged-{generation}"
            aside.mkdir(exist_ok=True)
            disk.place(folder.path, f"journal.{generation}.saved", data, "repair", temporary="journal.saving")
            for _, path in journals:
                disk.rename(path, aside / path.name, "repair")
            disk.place(
                folder.path, "generation", pack_generation(generation), "repair", temporary="generation.new"
            )
            disk.rename(
                folder.path / f"journal.{generation}.saved", folder.path / f"journal.{generation}", "repair"
            )
            disk.sync_folder(folder.path, "repair.folder")
        except OSError as error:
            disk.refused(error, run=folder.run, doing="repairing the journal")
        return f"Kept records 1 to {len(bodies)}; the damaged journal is in {aside}."


def _in_database(store: LocalStore, digest: bytes) -> bool:
    if not store.database.exists():
        return False
    with store.database.read() as connection:
        return bool(compact.find(connection, [digest]))


def _database(store: LocalStore, repair: bool) -> Iterator[Finding]:
    if not store.database.exists():
        yield Finding("ok", "database", "There is none yet; it is made when the first run is copied.")
        return
    try:
        if repair:
            copied = store.ingest()
            with store.database.open() as connection:
                dropped = compact.drop_orphans(connection)
            yield Finding("ok", "database", f"Copied {copied} records, dropped {dropped} unfinished tables.")
        with store.database.read() as connection:
            waiting = store.pending()
            yield Finding(
                "ok",
                "database",
                f"Schema {schema.SCHEMA_VERSION}, {store.database.path.stat().st_size:,} bytes",
            )
            if waiting:
                yield Finding(
                    "warning",
                    "database",
                    f"{_count(len(waiting), 'journal')} not copied yet.",
                    "copy them (any query does)",
                )
            orphans = compact.orphans(connection)
            if orphans:
                yield Finding(
                    "warning", "database", f"{len(orphans)} tables of killed compactions.", "drop them"
                )
            yield from _rows(connection)
            yield from _leaves(connection)
    except StoreBusy as error:
        yield Finding("warning", "database", str(error))
    except NbflowError as error:
        yield Finding("error", "database", str(error))


def _rows(connection: duckdb.DuckDBPyConnection) -> Iterator[Finding]:
    """Check every row's MAC and that no seq is missing."""
    key = user_key()
    signer = key_id(key)
    foreign: set[str] = set()
    expected: dict[str, int] = {}
    bad: set[str] = set()
    result = connection.execute("SELECT run, seq, record, mac, signer FROM nbflow.event ORDER BY run, seq")
    while rows := result.fetchmany(10_000):
        for run, seq, record, signature, by in rows:
            wanted = expected.get(run, 1)
            expected[run] = seq + 1
            if run in bad:
                continue
            if by != signer:
                foreign.add(run)
            elif seq != wanted or mac(key, run.encode(), record) != signature:
                bad.add(run)
                what = "is missing" if seq != wanted else "fails its check"
                yield Finding("error", f"run {run}", f"Record {wanted} {what} in the database.")
    if foreign:
        yield Finding(
            "warning",
            "database",
            f"{_count(len(foreign), 'run')} signed by another key, and not loaded.",
            "none: run `nbflow trust STORE` if you trust their author",
        )


def _leaves(connection: duckdb.DuckDBPyConnection) -> Iterator[Finding]:
    """Rebuild every compacted leaf and check its digest."""
    rows = connection.execute(
        """
        SELECT l.digest, l.size, l.form, l.kept, l.segment, l.place, l.rows, l.tail, min(u.run)
        FROM nbflow.leaf l LEFT JOIN nbflow.leaf_use u ON u.digest = l.digest GROUP BY ALL
        """
    ).fetchall()
    for row in rows:
        run = row[-1] or "?"
        try:
            compact.restore(connection, compact.Kept(*row[:-1]), run=run)
        except CorruptLeaf as error:
            yield Finding("error", f"run {run}", error.message)


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun} is" if number == 1 else f"{number:,} {noun}s are"
