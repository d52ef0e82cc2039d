"""Names that sort by time: run ids are UUIDv7 (RFC 9562)."""

from __future__ import annotations

import uuid_utils


def new_run_id() -> str:
    """Return a new run id; later ids sort behind earlier ones.

    >>> new_run_id() < new_run_id()
    True
    """
    return str(uuid_utils.uuid7())
