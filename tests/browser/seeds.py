"""Runs for the dashboard to show: of several workflows, states, tags, lengths and days. A script: seeds.py STORE [DAYS].

With DAYS it records what happened so many days ago, without it what happened now.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

if __name__ == "__main__" and len(sys.argv) > 2:
    # Journals take the clock when nbflow is imported.
    _now, _past = time.time, float(sys.argv[2]) * 86400
    time.time = lambda: _now() - _past  # type: ignore[assignment]

import pandas as pd

import nbflow


@nbflow.durable
def fetch(rows: int) -> pd.DataFrame:
    """A table of some length."""
    print(f"fetched {rows} rows")
    return pd.DataFrame({"city": ["Lyon", "Oslo"] * (rows // 2), "visitors": range(rows)})


@nbflow.durable
def total(table: pd.DataFrame) -> int:
    """A number."""
    return int(table["visitors"].sum())


@nbflow.durable
def send(table: pd.DataFrame, to: str) -> str:
    """Fail for one address."""
    if to == "nowhere":
        raise ConnectionError("mail server 10.0.0.7 refused the connection")
    return f"sent {len(table)} rows to {to}"


def reports(place: Path) -> None:
    """Three, of which one failed."""
    for to, rows in (("ana", 10), ("ben", 40), ("nowhere", 20)):
        try:
            with nbflow.run("report", store=place, tags={"team": "blue"}, to=to):
                table = fetch(rows)
                nbflow.publish("visitors", total(table))
                send(table, to)
        except ConnectionError:
            pass


def imports(place: Path) -> None:
    """Two, of which one was cancelled."""
    for day in ("monday", "tuesday"):
        try:
            with nbflow.run("import", store=place, tags={"team": "red"}, day=day) as current:
                fetch(2)
                if day == "tuesday":
                    nbflow.cancel(current.id, reason="a holiday", store=place)
                    fetch(4)
        except nbflow.errors.RunCancelled:
            pass


if __name__ == "__main__":
    (imports if len(sys.argv) > 2 else reports)(Path(sys.argv[1]))
