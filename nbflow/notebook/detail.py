"""The keys of `detail` in a cell's journal records: written by the runner, read by the plan.

In `StepStarted.detail`:

* `CODE`: hex of `analysis.code_digest` of the cell's source
* `SOURCE`: the cell's source as the user wrote it
* `READS`: `{name: fingerprint hex}` of what it read; "" for a name that was missing
* `HELPERS`: `{name: hex of analysis.code_digest of the definition}` of the notebook's functions it used
* `CELL_ID`: the nbformat id, "" where the front end sends none

In `StepCompleted.detail`:

* `WRITES`: names of the outputs, in order
* `DELETES`: names that the cell deleted
* `UNSTORED`: names that the cell bound and that it was recorded without, since they cannot be stored
* `FILE`: the name of the file from which Python thinks the cell's functions come
* `ALIASES`: `{name: fingerprint hex before the cell}` of outputs that the cell neither bound nor read
  and that share objects with one; "" where it was not looked at (see `tracking.Outputs.aliases`)
"""

from __future__ import annotations

from typing import Final

CODE: Final = "code"
SOURCE: Final = "source"
READS: Final = "reads"
HELPERS: Final = "helpers"
CELL_ID: Final = "cell_id"
WRITES: Final = "writes"
DELETES: Final = "deletes"
UNSTORED: Final = "unstored"
FILE: Final = "file"
ALIASES: Final = "aliases"
