"""The names by which an envelope's pickle asks for what lies outside of it; `Decoder` binds them.

Outside of a decoder they only raise: a pickle that was cut out of its envelope
cannot find its leaves.
"""

from __future__ import annotations

from typing import Any, NoReturn

from nbflow.core.errors import CannotRestore


def _outside(name: str) -> NoReturn:
    raise CannotRestore(
        f"An envelope's {name} was asked for outside of its envelope.", hint="Use nbflow.values.codec.decode."
    )


def view(number: int, dtype: Any, writeable: bool) -> Any:  # noqa: ARG001
    """Return the array of view `number` of this envelope."""
    _outside("view")


def leaf(number: int) -> Any:  # noqa: ARG001
    """Return the bytes of leaf `number` of this envelope."""
    _outside("leaf")


def detached(value: Any) -> Any:  # noqa: ARG001
    """Return the value itself the first time it is met in this envelope, a copy afterwards."""
    _outside("detached value")
