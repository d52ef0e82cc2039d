"""Names that sort by time: run ids are UUIDv7 (RFC 9562)."""

from __future__ import annotations

import uuid

import uuid_utils

from nbflow.core.signature import digest


def new_run_id() -> str:
    """Return a new run id; later ids sort behind earlier ones.

    >>> new_run_id() < new_run_id()
    True
    """
    return str(uuid_utils.uuid7())


def child_run_id(parent: str, step: str) -> str:
    """Return the id of the run that a step of the parent starts: the same at every replay, sorted beside the parent.

    It has the time of the parent's id and, where that has random bits, a hash of
    parent and step.

    >>> child = child_run_id("0197a3b2-0000-7000-8000-000000000000", "train#0")
    >>> child[:13], child == child_run_id("0197a3b2-0000-7000-8000-000000000000", "train#0")
    ('0197a3b2-0000', True)
    """
    bits = bytearray(uuid.UUID(parent).bytes[:6] + digest("child", parent, step)[:10])
    bits[6] = bits[6] & 0x0F | 0x70
    bits[8] = bits[8] & 0x3F | 0x80
    return str(uuid.UUID(bytes=bytes(bits)))
