"""Whoever calls papermill gets resumption by the engine's name: a retry with the same arguments carries on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import papermill
import pytest
from nbclient.exceptions import DeadKernelError
from papermill.engines import papermill_engines

from nbflow.core.errors import KernelDied
from tests.headless.kit import EFFECT, code, effects, notebook, read, statuses

#: Ends its kernel as the out-of-memory killer does, the first time.
DIES = """\
import os, pathlib, signal
if not pathlib.Path({path!r}).exists():
    pathlib.Path({path!r}).touch()
    os.kill(os.getpid(), signal.SIGKILL)"""

#: How others call papermill; read in apache-airflow-providers-papermill 3.13.3 and dagstermill 0.29.27.
CALLS: dict[str, dict[str, Any]] = {
    # PapermillOperator.execute: it names no engine of ours, so ours is registered as the default one.
    "airflow": {
        "progress_bar": False,
        "report_mode": True,
        "log_output": False,
        "kernel_name": None,
        "language": None,
        "engine_name": None,
    },
    # dagstermill.factory.execute_notebook, with the engine named.
    "dagster": {"engine_name": "nbflow", "log_output": True, "start_timeout": 120},
}


@pytest.mark.parametrize("caller", ["airflow", pytest.param("dagster", marks=pytest.mark.soak)])
def test_a_retry_carries_on_where_the_first_try_died(
    caller: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Called twice with the same arguments, as retries do, it restores what was done and runs the rest."""
    if caller == "airflow":
        monkeypatch.setitem(papermill_engines._engines, None, papermill_engines.get_engine("nbflow"))
    done = tmp_path / "done"
    source = notebook(
        tmp_path / "in.ipynb",
        code("day = ''", "parameters"),
        EFFECT.format(path=str(done)),
        "effect('a'); x = day + '!'",
        DIES.format(path=str(tmp_path / "died")),
        "effect('b'); print(x)",
    )

    def task() -> Any:
        return papermill.execute_notebook(
            str(source), str(tmp_path / "out.ipynb"), parameters={"day": "2026-11-21"}, **CALLS[caller]
        )

    with pytest.raises(KernelDied, match=r"SIGKILL in cell 5 of 6") as died:
        task()
    assert isinstance(died.value, DeadKernelError)  # what those who know only nbclient expect
    executed = task()
    assert effects(done) == ["a", "b"]
    assert executed.cells[-1].outputs[0].text == "2026-11-21!\n"
    assert statuses(read(tmp_path / "out.ipynb"))[3:] == ["restored", "ran", "ran"]
    hidden = [cell.metadata.get("jupyter", {}).get("source_hidden", False) for cell in executed.cells]
    assert hidden == [CALLS[caller].get("report_mode", False)] * 6
