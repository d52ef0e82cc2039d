"""The large values that are measured: a frame of a million rows, an array of 100 MB. nbflow is not imported.

The frame has ten columns: six of float64, two of int64, one string of four
values, one datetime; its buffers take 85 MB.
"""

from __future__ import annotations

import pickle
from typing import Any

ROWS = 1_000_000


def build(kind: str, rows: int = ROWS) -> Any:
    """Make the frame or the array."""
    import numpy as np
    import pandas as pd

    random = np.random.default_rng(2013)
    if kind == "array":
        return random.standard_normal(rows * 25 // 2)  # 100 MB
    columns: dict[str, Any] = {f"x{number}": random.standard_normal(rows) for number in range(6)}
    columns |= {f"n{number}": random.integers(0, 1_000, rows) for number in range(2)}
    columns["word"] = random.choice(["alpha", "beta", "gamma", "delta"], rows)
    columns["time"] = pd.date_range("2020-01-01", periods=rows, freq="s")
    return pd.DataFrame(columns)


def total(value: Any) -> float:
    """Sum every column, so that each value is read: strings by their length, times as numbers."""
    import numpy as np

    if isinstance(value, np.ndarray):
        return float(value.sum())
    result = 0.0
    for name in value.columns:
        column = value[name]
        if column.dtype.kind == "M":
            column = column.astype("int64")  # the sum wraps around, the same way each time
        elif column.dtype.kind not in "if":
            column = column.str.len()
        result += float(column.sum())
    return result


def buffers(value: Any) -> list[Any]:
    """Return the value's bytes as the cheapest pickle has them: the head, then each buffer where it lies."""
    parts: list[pickle.PickleBuffer] = []
    head = pickle.dumps(value, protocol=5, buffer_callback=parts.append)
    return [head, *(part.raw() for part in parts)]
