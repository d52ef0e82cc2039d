"""The catalogue of classes that a checkpoint promises to keep, and the table in the docs that is made from it.

    python -m tests.values.classes           # observe everything and write docs/classes.md

Each example makes a value, the same in every process, and changes it. A value
makes its round trip through a real file into ONE other process with another
hash seed, which makes the value again and compares.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from nbflow.core.errors import CannotRestore, CannotStore
from nbflow.core.model import Checkpoint, LeafRef
from nbflow.values.codec import decode, encode
from nbflow.values.fingerprint import Fingerprint, fingerprint
from tests.values.codec_box import Box

ROOT = Path(__file__).resolve().parents[2]
TABLE = ROOT / "docs" / "classes.md"

#: Stored by name: the other process, which runs no cell before it decodes, gets a typed error.
DEFINED = "needs its definition"


@dataclass(frozen=True)
class Example:
    """One row: `change` acts in place or returns the changed value; `view` returns what is compared."""

    library: str
    name: str
    make: Callable[[], Any]
    change: Callable[[Any], Any]
    view: Callable[[Any], Any]


class Row(msgspec.Struct, frozen=True):
    """What was observed of one example: yes, no, refused (with a typed error), or – where there is nothing to ask."""

    library: str
    name: str
    kept: str = "–"
    same: str = "–"
    seen: str = "–"
    stable: str = "–"


def load() -> list[Example]:
    """Return all examples, those of missing libraries included (their functions import when they are called)."""
    from tests.values import classes_frames, classes_libraries, classes_python

    examples = [*classes_python.EXAMPLES, *classes_frames.EXAMPLES, *classes_libraries.EXAMPLES]
    # "Without content" comes last.
    return sorted(examples, key=lambda example: example.library == "refused")


def installed(library: str) -> bool:
    """Tell whether a library can be imported here."""
    module = {"scikit-learn": "sklearn", "Pillow": "PIL", "notebook": "sys", "refused": "sys"}.get(
        library, library
    )
    return library == "Python" or importlib.util.find_spec(module) is not None


def observe(examples: list[Example]) -> dict[tuple[str, str], Row]:
    """Return the rows of those examples whose library is here."""
    here = {example.library: installed(example.library) for example in examples}
    chosen = [example for example in examples if here[example.library]]
    with tempfile.TemporaryDirectory() as folder:
        box = Box(Path(folder))
        values, prints, sent = [], [], []
        for number, example in enumerate(chosen):
            value = example.make()
            values.append(value)
            prints.append((fingerprint(value), fingerprint(value)))
            try:
                encoded = encode({"value": value})
            except CannotStore:
                continue
            sent.append((number, encoded.checkpoint(box.put(encoded.leaves))))
        stored = dict(sent)
        (Path(folder) / "sent").write_bytes(msgspec.msgpack.encode((sent, list(box.refs.values()))))
        there = _in_another_process(Path(folder), [example.name for example in chosen])
        return {
            (example.library, example.name): _row(
                example, values[at], prints[at], stored.get(at), there.get(at)
            )
            for at, example in enumerate(chosen)
        }


def _row(
    example: Example,
    value: Any,
    prints: tuple[Fingerprint, Fingerprint],
    stored: Checkpoint | None,
    there: tuple[str, str] | None,
) -> Row:
    before, again = prints
    unchanged = before == again == fingerprint(value)
    changed = example.change(value)
    after = fingerprint(value if changed is None else changed)
    seen = "yes" if unchanged and after.digest != before.digest else "no"
    stable = "yes" if before.stable else "no"
    if stored is None or there is None:
        return Row(example.library, example.name, "refused", "–", seen, stable)
    kept, digest = there
    if kept == DEFINED:
        return Row(example.library, example.name, kept, "–", seen, stable)
    same = "yes" if digest == before.digest.hex() == stored.outputs[0].fingerprint.hex() else "no"
    return Row(example.library, example.name, kept, same, seen, stable)


def _in_another_process(folder: Path, names: list[str]) -> dict[int, tuple[str, str]]:
    seed = "12345" if os.environ.get("PYTHONHASHSEED") != "12345" else "54321"
    done = subprocess.run(
        [sys.executable, "-c", "from tests.values import classes; classes.receive()", str(folder)],
        input=json.dumps(names),
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": seed, "MPLBACKEND": "agg"},
        check=False,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    if os.environ.get("NBFLOW_TABLE_WHY"):
        print(done.stderr)
    found = json.loads(done.stdout.splitlines()[-1])
    return {int(number): (kept, digest) for number, (kept, digest) in found.items()}


def receive() -> None:
    """Decode what the other process stored, compare, and print the answers; the other half of `observe`."""
    folder = Path(sys.argv[1])
    names = json.loads(sys.stdin.read())
    sent, refs = msgspec.msgpack.decode(
        (folder / "sent").read_bytes(), type=tuple[list[tuple[int, Checkpoint]], list[LeafRef]]
    )
    box = Box(folder)
    box.refs = {ref.digest: ref for ref in refs}
    chosen = [example for example in load() if installed(example.library)]
    assert [example.name for example in chosen] == names
    # All are decoded before any is made again: classes of the notebook must come out of the checkpoint.
    values: dict[int, Any] = {}
    answers: dict[int, tuple[str, str]] = {}
    for number, checkpoint in sent:
        try:
            values[number] = decode(checkpoint, box.fetch)["value"]
        except CannotRestore:
            answers[number] = (DEFINED, "")
    prints = {number: fingerprint(value).digest.hex() for number, value in values.items()}
    for number, value in values.items():
        example = chosen[number]
        try:
            kept = same(example.view(value), example.view(example.make()))
        except Exception as error:
            print(
                f"{example.library} {example.name}: {type(error).__name__}: {error}",
                file=sys.stderr,
                flush=True,
            )
            kept = False
        answers[number] = ("yes" if kept else "no", prints[number])
    print(json.dumps(answers))


def same(one: Any, other: Any) -> bool:
    """Compare two views by the libraries' own means, never by fingerprint."""
    kind = type(one)
    if f"{kind.__module__}.{kind.__qualname__}" != f"{type(other).__module__}.{type(other).__qualname__}":
        return False
    library = kind.__module__.partition(".")[0]
    if library == "numpy" and hasattr(one, "dtype") and hasattr(one, "shape"):
        import numpy as np

        np.testing.assert_array_equal(one, other, strict=True)
        return True
    if library == "pandas":
        import pandas as pd

        for check, known in (("frame", pd.DataFrame), ("series", pd.Series), ("index", pd.Index)):
            if isinstance(one, known):
                getattr(pd.testing, f"assert_{check}_equal")(one, other, check_exact=True)
                return check == "index" or one.attrs == other.attrs
        if isinstance(one, pd.api.extensions.ExtensionArray):
            pd.testing.assert_extension_array_equal(one, other, check_exact=True)
            return True
        return one is other or bool(one == other)
    if library in ("pyarrow", "polars") and hasattr(one, "equals"):
        return bool(one.equals(other))
    if kind in (list, tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if kind is dict:
        return list(one) == list(other) and all(same(one[name], other[name]) for name in one)
    if kind is float:
        return repr(one) == repr(other)
    return bool(one == other)


# --- the table ---

_HEAD = """# Which classes survive, and whose changes are seen

Made by `python -m tests.values.classes` from the catalogue in `tests/values/`; a test makes it again and compares.

- **round trip**: stored in a checkpoint, read in another process with another hash seed, equal there to the value made anew.
  *refused*: it cannot be stored, and the error says so before anything is recorded.
  *needs its definition*: stored by name; restored once the cell that defines it has run, until then a typed error.
- **same fingerprint**: the restored value has the fingerprint that was recorded, so a resume runs nothing behind it again.
- **change seen**: the fingerprint moves when the value is changed in place or replaced, and only then.
- **stable**: the fingerprint depends on content alone. Where it says no, an untouched restored value counts as recorded.

"""


def written(rows: dict[tuple[str, str], Row], committed: dict[tuple[str, str], Row]) -> str:
    """Return the page; a library that is missing here keeps its committed rows."""
    lines, library, count = [], "", 0
    for example in load():
        if example.library != library:
            library = example.library
            title = {"notebook": "Defined in the notebook", "refused": "Without content of their own"}.get(
                library, library
            )
            lines += [
                "",
                f"## {title}",
                "",
                "| class | round trip | same fingerprint | change seen | stable |",
            ]
            lines.append("|---|---|---|---|---|")
        key = (example.library, example.name)
        row = rows.get(key) or committed.get(key) or Row(*key, kept="not installed here")
        count += 1
        lines.append(f"| {row.name} | {row.kept} | {row.same} | {row.seen} | {row.stable} |")
    return f"{_HEAD}{count} classes.\n" + "\n".join(lines) + "\n"


def read_table(text: str) -> dict[tuple[str, str], Row]:
    """Return the rows of a page that `written` made."""
    names = {"Defined in the notebook": "notebook", "Without content of their own": "refused"}
    found, library = {}, ""
    for line in text.splitlines():
        if line.startswith("## "):
            library = names.get(line[3:], line[3:])
        elif line.startswith("| ") and not line.startswith("| class |"):
            name, *answers = (cell.strip() for cell in line.strip("|").split("|"))
            found[library, name] = Row(library, name, *answers)
    return found


def committed() -> dict[tuple[str, str], Row]:
    """Return the rows of the page as it stands, none when there is no page."""
    with contextlib.suppress(FileNotFoundError):
        return read_table(TABLE.read_text(encoding="utf-8"))
    return {}


def main() -> None:
    """Observe all classes and write the page."""
    rows = observe(load())
    TABLE.write_text(written(rows, committed()), encoding="utf-8")
    for row in rows.values():
        if (row.kept, row.same, row.seen, row.stable) != ("yes",) * 4:
            print(row.library, row.name, row.kept, row.same, row.seen, row.stable)
    print(f"{len(rows)} observed, written to {TABLE.relative_to(ROOT)}")


if __name__ == "__main__":
    from tests.values.classes import main as _main  # the examples' module must be one and the same

    _main()
