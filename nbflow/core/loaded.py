"""Libraries that are here already: nbflow looks at pandas objects without ever importing pandas for it."""

from __future__ import annotations

import sys
from typing import Any


def loaded(name: str) -> Any:
    """Return a module that has been imported, or None.

    A module whose import is still running in another thread (the background
    ingest imports pandas, say) is half empty and counts as not loaded: no
    object of its classes can have reached the user yet.

    >>> loaded("sys") is sys, loaded("no_such_module") is None
    (True, True)
    """
    module = sys.modules.get(name)
    if module is None or getattr(getattr(module, "__spec__", None), "_initializing", False):
        return None
    return module
