"""The command `outputs`: what a run recorded, and its way out of the store into a file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from nbflow.cli import show
from nbflow.cli.desk import AsJson, Debug, Place, Yes, desk
from nbflow.cli.runs import RunId, find_step
from nbflow.core.errors import UnknownStep, UsageError
from nbflow.notebook.amounts import size

if TYPE_CHECKING:
    import pyarrow as pa

    from nbflow.core.model import StepInfo


def outputs(
    run: RunId,
    step: Annotated[
        str | None, typer.Argument(metavar="[STEP]", help="Only of this step, by its key or name.")
    ] = None,
    name: Annotated[
        str | None, typer.Option("--name", metavar="VARIABLE", help="Only this variable.")
    ] = None,
    export: Annotated[
        Path | None,
        typer.Option(
            "--export",
            metavar="FILE",
            help="Write the one output that is left to a file; its ending says how: "
            ".parquet .csv .arrow .json .npy .txt .bin .png .svg .pkl",
        ),
    ] = None,
    yes: Yes = False,
    store: Place = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """List the recorded outputs of a run, or write one to a file."""
    with desk(store, as_json, debug) as at:
        info = at.store.run(run)
        steps = [found for found in at.store.steps(info.run) if found.current]
        if step is not None:
            key = find_step(steps, step, info.run)
            steps = [found for found in steps if found.step == key]
        found = [(of, output) for of in steps for output in of.outputs if name in (None, output.name)]
        if name is not None and not found:
            raise UnknownStep(
                f"Run {info.run} recorded no output {name!r}{f' in step {step}' if step else ''}.",
                run=info.run,
                step=step,
            )
        if export is not None:
            of, variable = _the_one(info.run, [(of, output.name) for of, output in found], export)
            if export.exists():
                at.ask(f"{export} exists. Overwrite it?", yes=yes)
            from nbflow.queries import output as load

            write(load(info.run, of.step, variable, store=at.store), export)
            facts = {"run": info.run, "step": of.step, "name": variable, "file": str(export)}
            at.say(f"Wrote {variable} of step {of.step} to {export} ({size(export.stat().st_size)}).")
            if at.as_json:
                at.answer({**facts, "bytes": export.stat().st_size})
        elif at.as_json:
            at.answer(
                {
                    "run": info.run,
                    "outputs": [
                        {"step": of.step, "execution": of.execution, **show.output_facts(output)}
                        for of, output in found
                    ],
                }
            )
        elif not found:
            at.say("No outputs.")
        else:
            at.say(
                show.table(
                    ["step", "variable", "type", ("size", "right"), "value"],
                    [
                        (
                            of.step,
                            output.name,
                            output.type.rpartition(".")[2],
                            size(output.size),
                            Text(_first_line(output.preview), style="dim"),
                        )
                        for of, output in found
                    ],
                )
            )


def _first_line(preview: str) -> str:
    line, _, more = preview.strip().partition("\n")
    return line[:60] + (" …" if more or len(line) > 60 else "")


def _the_one(run: str, found: list[tuple[StepInfo, str]], file: Path) -> tuple[StepInfo, str]:
    if file.suffix.lower() not in WRITERS:
        raise UsageError(
            f"Nothing is known about files that end with {file.suffix!r}.",
            hint=f"Known are {' '.join(WRITERS)}.",
        )
    if len(found) == 1:
        return found[0]
    if not found:
        raise UnknownStep(f"Run {run} recorded no such output.", run=run)
    names = ", ".join(f"{of.step} --name {name}" for of, name in found[:8]) + (" …" if len(found) > 8 else "")
    raise UsageError(
        f"{len(found)} outputs match, and a file takes one.", run=run, hint=f"Choose of: {names}."
    )


def write(value: Any, file: Path) -> None:
    """Write a value to a file in the way its ending says, completely or not at all.

    Raises:
        UsageError: this value cannot be written so; the message says which ending can.
    """
    writer = WRITERS[file.suffix.lower()]
    # Beside the target, so that the rename stays within one file system; savefig reads the ending.
    part = file.with_name(f".{file.stem}.part{file.suffix}")
    try:
        writer(value, part)
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)


def as_table(value: Any) -> pa.Table:
    """Return a pandas, polars or Arrow table, a pandas Series or a 2-d array as an Arrow table.

    Raises:
        UsageError: it is none of these.
    """
    import numpy as np
    import pandas as pd
    import pyarrow as pa

    if isinstance(value, pa.Table):
        return value
    if isinstance(value, pa.RecordBatch):
        return pa.Table.from_batches([value])
    if isinstance(value, pd.Series):
        value = value.to_frame(value.name if value.name is not None else "value")
    if isinstance(value, np.ndarray) and value.ndim in (1, 2) and value.dtype.names is None:
        grid = value.reshape(len(value), -1)
        value = pd.DataFrame(grid, columns=[f"column{number}" for number in range(grid.shape[1])])
    if isinstance(value, pd.DataFrame):
        # Parquet and Arrow know columns by text only; a plain counting index says nothing.
        value = value.rename(columns=str)
        plain = isinstance(value.index, pd.RangeIndex) and value.index.name is None
        return pa.Table.from_pandas(value, preserve_index=not plain)
    if hasattr(value, "to_arrow"):
        return value.to_arrow()
    raise _cannot(value, "as a table", ".pkl or .json")


def _parquet(value: Any, file: Path) -> None:
    import pyarrow.parquet as pq

    pq.write_table(as_table(value), file)


def _arrow(value: Any, file: Path) -> None:
    from pyarrow import feather

    feather.write_feather(as_table(value), file, compression="uncompressed")


def _csv(value: Any, file: Path) -> None:
    # Through pandas and not Arrow: nested values and intervals have a text there.
    table = as_table(value)
    frame = table.to_pandas()
    frame.to_csv(
        file, index=frame.index.name is not None or frame.index.nlevels > 1 or not _counts(frame.index)
    )


def _counts(index: Any) -> bool:
    import pandas as pd

    return isinstance(index, pd.RangeIndex)


def _json(value: Any, file: Path) -> None:
    import json

    try:
        text = json.dumps(value, ensure_ascii=False, indent=2)
    except (TypeError, ValueError):
        try:
            text = as_table(value).to_pandas().to_json(orient="records", date_format="iso", indent=2)
        except UsageError:
            raise _cannot(value, "as JSON", ".pkl") from None
    file.write_text(text + "\n", encoding="utf-8")


def _npy(value: Any, file: Path) -> None:
    import numpy as np

    array = np.asarray(value)
    if array.dtype.hasobject:
        raise _cannot(value, "as .npy without pickle", ".pkl")
    np.save(file, array, allow_pickle=False)


def _text(value: Any, file: Path) -> None:
    file.write_text(value if isinstance(value, str) else str(value), encoding="utf-8")


def _bytes(value: Any, file: Path) -> None:
    if not isinstance(value, (bytes, bytearray, memoryview)):
        raise _cannot(value, "as plain bytes", ".pkl")
    file.write_bytes(value)


def _picture(value: Any, file: Path) -> None:
    if hasattr(value, "savefig"):
        value.savefig(file)
    elif hasattr(value, "save") and hasattr(value, "mode"):  # a Pillow image
        value.save(file)
    else:
        raise _cannot(value, "as a picture", ".pkl")


def _pickle(value: Any, file: Path) -> None:
    import cloudpickle

    file.write_bytes(cloudpickle.dumps(value, protocol=5))


def _cannot(value: Any, how: str, instead: str) -> UsageError:
    cls = type(value)
    return UsageError(
        f"A {cls.__module__}.{cls.__qualname__} cannot be written {how}.", hint=f"Try {instead}."
    )


WRITERS: dict[str, Callable[[Any, Path], None]] = {
    ".parquet": _parquet,
    ".csv": _csv,
    ".arrow": _arrow,
    ".feather": _arrow,
    ".json": _json,
    ".npy": _npy,
    ".txt": _text,
    ".bin": _bytes,
    ".png": _picture,
    ".svg": _picture,
    ".pkl": _pickle,
}
