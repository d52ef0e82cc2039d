"""What a store takes on disk, and which runs take most of it."""

from __future__ import annotations

from typing import Any

from nbflow.core.model import RunInfo
from nbflow.store.protocol import Store

#: Runs that are listed.
_MOST = 100


def usage(store: Store, infos: dict[str, RunInfo]) -> dict[str, Any]:
    """Return `total`, `database`, `live` (bytes), `place`, and the largest unfinished runs with their bytes."""
    facts = store.describe()
    total, database = int(facts.get("size", 0)), int(facts.get("database", 0))
    sizes = getattr(getattr(store, "live", None), "sizes", dict)
    largest = sorted(dict(sizes()).items(), key=lambda each: -each[1])[:_MOST]
    return {
        "place": str(facts.get("place", "")),
        "total": total,
        "database": database,
        "live": total - database,
        "runs": [
            {"run": run, "workflow": infos[run].workflow if run in infos else "", "bytes": size}
            for run, size in largest
        ],
    }
