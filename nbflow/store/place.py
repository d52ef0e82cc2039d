"""Where the store is: the nearest `.nbflow/` upwards, `NBFLOW_STORE`, or a new one.

Only `open_store` in `local.py` calls this.
"""

from __future__ import annotations

import os
from pathlib import Path

from nbflow.core.errors import NotAStore, StoreReadOnly, UsageError

FOLDER = ".nbflow"
DATABASE = "store.duckdb"
RUNS = "runs"
#: The executed copies of notebooks that ran as children, by run.
CHILDREN = "children"
_IGNORE = "# The store of nbflow: state of this machine, not part of the project.\n*\n"


def locate(place: str | Path | None = None) -> Path:
    """Return the store's folder, which may not exist yet.

    None: `NBFLOW_STORE` if set, else the nearest `.nbflow` upwards from the
    working directory, else `.nbflow` in it. A store's folder or database names
    that store; any other existing file or folder is where the search begins; a
    path where nothing is names a new store.

    Raises:
        UsageError: a URL of a kind this version does not speak.
        NotAStore: a file stands where the store should.
    """
    named = place if place is not None else os.environ.get("NBFLOW_STORE")
    if named is None or named == "":
        return _nearest(Path.cwd())
    if isinstance(named, str) and "://" in named:
        raise UsageError(
            f"A store at {named.split('://')[0]}:// is not supported by this version.", hint="Give a path."
        )
    path = Path(named).expanduser().absolute()
    if path.name == FOLDER or is_store(path):
        return path
    if path.name == DATABASE and is_store(path.parent):
        return path.parent
    if path.is_dir():
        return _nearest(path)
    if path.exists():
        if path.suffix not in {".ipynb", ".py", ".md", ".qmd"}:
            raise NotAStore(
                f"{path} is a file, not a store.", hint="Name a folder, or the notebook whose store you mean."
            )
        return _nearest(path.parent)
    return path.parent / FOLDER if path.suffix in {".ipynb", ".py"} else path


def is_store(path: Path) -> bool:
    """Tell whether a store's folder stands here; a project's own folder `runs` makes it none."""
    if (path / DATABASE).is_file():
        return True
    return (path / RUNS).is_dir() and (path.name == FOLDER or _is_marked(path))


def _is_marked(path: Path) -> bool:
    try:
        return (path / ".gitignore").read_text(encoding="utf-8") == _IGNORE
    except (OSError, UnicodeDecodeError):
        return False


def _nearest(start: Path) -> Path:
    for folder in (start, *start.parents):
        if (folder / FOLDER).exists():
            return folder / FOLDER
    return start / FOLDER


def prepare(root: Path) -> None:
    """Create the store's folder with a `.gitignore` of its own; one that is there stays.

    Raises:
        NotAStore: something else stands there. StoreReadOnly: it cannot be created.
    """
    try:
        if root.exists() and not root.is_dir():
            raise NotAStore(f"{root} is a file, not a store.", hint="Move it away, or name another place.")
        if (root / RUNS).is_dir():
            return
        root.mkdir(parents=True, exist_ok=True)
        ignore = root / ".gitignore"
        if not ignore.exists():
            ignore.write_text(_IGNORE)
        (root / RUNS).mkdir(mode=0o700, exist_ok=True)  # last: where it is, all is there
    except PermissionError as error:
        raise StoreReadOnly(
            f"{root} cannot be created by this user: {error.strerror}.",
            hint="Set NBFLOW_STORE to a folder of yours, or %nbflow store PATH.",
        ) from error
    except FileExistsError as error:
        raise NotAStore(
            f"{root} cannot be a store: a file is in the way.", hint="Name another place."
        ) from error
    except OSError as error:
        if error.errno == 30:  # EROFS
            raise StoreReadOnly(
                f"{root} is on a read-only file system.", hint="Set NBFLOW_STORE elsewhere."
            ) from error
        raise
