"""The tables of `store.duckdb`, as numbered migrations. Only `database.py` runs them.

Schema `nbflow` holds what is stored, one row per journal entry and append-only:
DuckDB 2.0 loses updates when forms of UPDATE are mixed on one row, so there is
no UPDATE at all. What a run or step is *now* is computed by the views in
`main`, which are the documented face: `runs`, `steps`, `outputs`, `events`.
Recorded frames are views in schema `frames`; their data lies in `columns`.

Column names avoid `at` and `column`, which DuckDB reserves.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import duckdb

#: Written into a new store and looked for in an old one.
APPLICATION = "nbflow"

_FIRST = """
CREATE SCHEMA nbflow;
CREATE SCHEMA columns;
CREATE SCHEMA frames;
CREATE SEQUENCE nbflow.segment_number;

CREATE TABLE nbflow.migration (application VARCHAR, number INTEGER, program VARCHAR, applied DOUBLE);

-- One row per journal entry. `record` and `mac` are the journal's own bytes, so a
-- row is verified like a frame; `signer` says with whose key. The columns between
-- are what the views need, taken from the record. Digests and records are stored as
-- they are: trying to compress them took 0.4 of the 0.55 s of a checkpoint of 20,000 rows.
CREATE TABLE nbflow.event (
    run VARCHAR NOT NULL, seq BIGINT NOT NULL, stamp DOUBLE NOT NULL, kind VARCHAR NOT NULL,
    step VARCHAR, execution BIGINT, name VARCHAR, step_kind VARCHAR, state VARCHAR,
    attempt INTEGER, generation INTEGER, seconds DOUBLE, signature BLOB USING COMPRESSION uncompressed,
    parent VARCHAR, version VARCHAR, error_type VARCHAR, error VARCHAR, traceback VARCHAR,
    body JSON, record BLOB NOT NULL USING COMPRESSION uncompressed,
    mac BLOB NOT NULL USING COMPRESSION uncompressed, signer BLOB NOT NULL,
    PRIMARY KEY (run, seq)
);
-- How far each run's journal has been copied; replaced in the transaction that copies.
CREATE TABLE nbflow.position (
    run VARCHAR NOT NULL, generation INTEGER NOT NULL, byte BIGINT NOT NULL, seq BIGINT NOT NULL, mac BLOB
);
-- Runs whose journal cannot be read (on); `seq` is the record at fault.
CREATE TABLE nbflow.trouble (run VARCHAR NOT NULL, seq BIGINT, type VARCHAR, message VARCHAR, stamp DOUBLE);
CREATE TABLE nbflow.tag (run VARCHAR NOT NULL, seq BIGINT NOT NULL, name VARCHAR NOT NULL, value VARCHAR);

CREATE TABLE nbflow.output (
    run VARCHAR NOT NULL, seq BIGINT NOT NULL, execution BIGINT NOT NULL, step VARCHAR NOT NULL,
    variable VARCHAR NOT NULL, type VARCHAR, fingerprint BLOB, size BIGINT, stable BOOLEAN,
    preview VARCHAR, rows BIGINT, columns STRUCT("name" VARCHAR, "type" VARCHAR, leaf BLOB)[]
);
-- Which large buffers a record refers to, in the record's order, and where they lie in the run's folder.
CREATE TABLE nbflow.leaf_use (
    run VARCHAR NOT NULL, seq BIGINT NOT NULL, digest BLOB NOT NULL, size BIGINT, form VARCHAR,
    file VARCHAR, byte BIGINT
);
-- Where a buffer lies in this database, once for all runs. `kept` says how: as column
-- `c<place>` of `columns.s<segment>` in its native type ("column") or as 8-byte words
-- with the rest in `tail` ("words"), or as rows of `leaf_blob` ("blob").
CREATE TABLE nbflow.leaf (
    digest BLOB NOT NULL, size BIGINT NOT NULL, form VARCHAR NOT NULL, kept VARCHAR NOT NULL,
    segment BIGINT, place INTEGER, rows BIGINT, tail BLOB
);
CREATE TABLE nbflow.leaf_blob (digest BLOB NOT NULL, data BLOB NOT NULL);
-- Which recorded frames have a view `name` in schema `frames` (NULL: it cannot have one).
-- `segment` is the table of those columns that are not native leaves.
CREATE TABLE nbflow.frame (
    run VARCHAR NOT NULL, seq BIGINT NOT NULL, step VARCHAR NOT NULL, variable VARCHAR NOT NULL,
    name VARCHAR, segment BIGINT
);
"""

#: A row of `run_now` for each run that is over: it changes no more, and a listing of 10,000 need not fold
#: all their events again. What is missing here is looked for among the events (see `listing.py`).
_FINISHED = """
CREATE TABLE nbflow.finished (
    run VARCHAR NOT NULL, workflow VARCHAR, workflow_kind VARCHAR, version VARCHAR, state VARCHAR,
    tags MAP(VARCHAR, VARCHAR), parent VARCHAR, created DOUBLE, updated DOUBLE, finished DOUBLE,
    attempts INTEGER, generation INTEGER, steps BIGINT, error VARCHAR,
    opened_record BLOB, attached_record BLOB
);
"""

#: Number → statements. A released migration is never edited; a change is a new number.
#: 2 brings no more than new views (`published`, `charges`): they are made after every migration.
MIGRATIONS: dict[int, str] = {1: _FIRST, 2: "SELECT 2", 3: _FINISHED}

#: What fills a table that a migration brings, once the views are there.
_FILL: dict[int, str] = {
    3: "INSERT INTO nbflow.finished BY NAME SELECT * EXCLUDE (params, owner) FROM nbflow.run_now "
    "WHERE state IN ('completed', 'cancelled')"
}

SCHEMA_VERSION = max(MIGRATIONS)

#: Each run as it is now, folded from its events.
_RUN_NOW = """WITH final AS (
    SELECT run, min(seq) AS seq, arg_min(stamp, seq) AS stamp FROM nbflow.event
    WHERE kind = 'run.changed' AND state IN ('completed', 'cancelled') GROUP BY run
),
opened AS (SELECT * FROM nbflow.event WHERE kind = 'run.opened'),
-- Nothing that comes after a final state counts.
moved AS (
    SELECT e.run, arg_max(e.state, e.seq) AS state,
           max(e.seq) FILTER (e.kind = 'run.attached') AS attached,
           max(e.seq) FILTER (e.kind = 'run.changed') AS changed,
           first(e.error_type || ': ' || e.error ORDER BY e.seq DESC)
               FILTER (e.kind = 'run.changed') AS error,
           first(e.name ORDER BY e.seq DESC) FILTER (e.kind = 'run.changed') AS reason
    FROM nbflow.event e LEFT JOIN final f ON f.run = e.run
    WHERE e.kind IN ('run.attached', 'run.changed') AND (f.seq IS NULL OR e.seq <= f.seq) GROUP BY e.run
),
attached AS (
    SELECT run, max(seq) AS seq, arg_max(attempt, seq) AS attempt, arg_max(generation, seq) AS generation,
           arg_max(record, seq) AS record, arg_max(body -> 'owner', seq) AS owner
    FROM nbflow.event WHERE kind = 'run.attached' GROUP BY run
),
every AS (
    SELECT run, max(seq) AS seq, arg_max(stamp, seq) AS stamp,
           count(DISTINCT CASE WHEN kind = 'step.completed' THEN step END) AS steps
    FROM nbflow.event GROUP BY run
),
tagged AS (
    SELECT run, map_from_entries(list(struct_pack(k := name, v := value) ORDER BY name)) AS tags
    FROM (SELECT run, name, arg_max(value, seq) AS value FROM nbflow.tag GROUP BY run, name) GROUP BY run
),
trouble AS (SELECT run, arg_max(type || ': ' || message, stamp) AS message FROM nbflow.trouble GROUP BY run),
listed AS (SELECT run FROM opened UNION SELECT run FROM trouble)
SELECT l.run, coalesce(o.name, '') AS workflow, coalesce(o.step_kind, '') AS workflow_kind,
       coalesce(o.version, '') AS version,
       CASE WHEN t.run IS NOT NULL THEN 'corrupt' ELSE coalesce(m.state, 'pending') END AS state,
       o.body -> 'params' AS params, coalesce(g.tags, MAP {}) AS tags, o.parent,
       coalesce(o.stamp, 0) AS created, coalesce(e.stamp, o.stamp, 0) AS updated, f.stamp AS finished,
       coalesce(a.attempt, 0) AS attempts, coalesce(a.generation, 0) AS generation,
       coalesce(e.steps, 0) AS steps,
       coalesce(
           t.message,
           CASE WHEN coalesce(m.changed, 0) > coalesce(m.attached, 0) THEN coalesce(m.error, m.reason) END,
           ''
       ) AS error,
       a.owner, o.record AS opened_record, a.record AS attached_record
FROM listed l
LEFT JOIN opened o ON o.run = l.run
LEFT JOIN final f ON f.run = l.run
LEFT JOIN moved m ON m.run = l.run
LEFT JOIN attached a ON a.run = l.run
LEFT JOIN every e ON e.run = l.run
LEFT JOIN tagged g ON g.run = l.run
LEFT JOIN trouble t ON t.run = l.run"""

#: The same for some runs alone: the view would fold all others too.
_SOME_NOW = """
WITH some_event AS MATERIALIZED (
    SELECT run, seq, stamp, kind, step, name, step_kind, state, attempt, generation, parent, version,
           error_type, error, CASE WHEN kind IN ('run.opened', 'run.attached') THEN body END AS body,
           CASE WHEN kind IN ('run.opened', 'run.attached') THEN record END AS record
    -- By ids that lie close together, so that most of the table is not even read.
    FROM nbflow.event WHERE run BETWEEN list_min($runs) AND list_max($runs) AND list_contains($runs, run)
),
some_tag AS (SELECT * FROM nbflow.tag WHERE list_contains($runs, run)),
some_trouble AS (SELECT * FROM nbflow.trouble WHERE list_contains($runs, run)),
""" + _RUN_NOW.removeprefix("WITH ").replace("nbflow.", "some_")

#: The documented views, made anew after every migration.
VIEWS = (
    """
CREATE OR REPLACE VIEW main.events AS
SELECT run, seq, to_timestamp(stamp) AS recorded_at, kind, step, execution, state, attempt, body
FROM nbflow.event;

CREATE OR REPLACE VIEW main.steps AS
WITH started AS (SELECT * FROM nbflow.event WHERE kind = 'step.started'),
finished AS (
    -- A terminal step never changes: the first end counts.
    SELECT run, execution, min(seq) AS seq, arg_min(state, seq) AS state, arg_min(stamp, seq) AS stamp,
           arg_min(seconds, seq) AS seconds, arg_min(attempt, seq) AS attempt,
           first(error_type ORDER BY seq) AS error_type, first(error ORDER BY seq) AS error,
           first(traceback ORDER BY seq) AS traceback
    FROM nbflow.event WHERE kind IN ('step.completed', 'step.ended') GROUP BY run, execution
),
retried AS (
    SELECT run, execution, max(attempt) AS attempt FROM nbflow.event WHERE kind = 'step.retried'
    GROUP BY run, execution
),
forgotten AS (
    SELECT run, step, max(seq) AS seq FROM nbflow.event WHERE kind = 'step.forgotten' GROUP BY run, step
),
-- Whoever attaches after a step began finds its process gone: nobody can end it any more.
attached AS (SELECT run, seq FROM nbflow.event WHERE kind = 'run.attached'),
lived AS (
    SELECT s.*, a.seq AS cut FROM started s ASOF LEFT JOIN attached a ON a.run = s.run AND s.seq < a.seq
)
SELECT s.run, s.seq AS execution, s.step, s.name, s.step_kind AS kind, lower(hex(s.signature)) AS signature,
       coalesce(
           e.state,
           CASE WHEN s.cut IS NOT NULL THEN 'cancelled'
                WHEN s.step_kind IN ('sleep', 'signal', 'gate', 'child') THEN 'waiting' ELSE 'running' END
       ) AS state,
       coalesce(e.attempt, r.attempt, s.attempt) AS attempt,
       s.parent, s.version, to_timestamp(s.stamp) AS started_at, to_timestamp(e.stamp) AS finished_at,
       e.seconds,
       e.error_type, e.error, e.traceback, coalesce(f.seq > s.seq, false) AS forgotten,
       row_number() OVER (
           PARTITION BY s.run, s.step
           ORDER BY (coalesce(e.state, '') = 'completed' AND NOT coalesce(f.seq > s.seq, false)) DESC,
                    s.seq DESC
       ) = 1 AS current
FROM lived s
LEFT JOIN finished e ON e.run = s.run AND e.execution = s.seq AND (s.cut IS NULL OR e.seq < s.cut)
LEFT JOIN retried r ON r.run = s.run AND r.execution = s.seq
LEFT JOIN forgotten f ON f.run = s.run AND f.step = s.step;

CREATE OR REPLACE VIEW main.outputs AS
SELECT o.run, o.execution, o.step, s.name, o.variable, o.type, o.rows, o.size, o.preview,
       list_transform(o.columns, lambda c: c.name) AS columns, lower(hex(o.fingerprint)) AS fingerprint,
       s.current
FROM nbflow.output o JOIN main.steps s ON s.run = o.run AND s.execution = o.execution;

"""
    f"CREATE OR REPLACE VIEW nbflow.run_now AS\n{_RUN_NOW};\n"
    """

CREATE OR REPLACE VIEW main.runs AS
SELECT run, workflow, workflow_kind, version, state, params, tags, parent,
       to_timestamp(created) AS created_at, to_timestamp(updated) AS updated_at,
       to_timestamp(finished) AS finished_at,
       attempts, generation, steps, error, owner ->> 'host' AS host, (owner ->> 'pid')::INTEGER AS pid,
       owner ->> 'user' AS user, owner ->> 'program' AS program
FROM nbflow.run_now;

CREATE OR REPLACE VIEW main.published AS
SELECT run, name, arg_max(body -> 'value', seq) AS value, to_timestamp(arg_max(stamp, seq)) AS published_at
FROM nbflow.event WHERE kind = 'run.published' GROUP BY run, name;

CREATE OR REPLACE VIEW main.charges AS
WITH charged AS (
    SELECT run, seq, step, name AS source, execution, attempt, unnest(json_keys(body -> 'amounts')) AS unit, body
    FROM nbflow.event WHERE kind = 'run.charged'
),
-- Charges of one attempt add up; of several attempts the largest counts: a retry is not paid for twice.
tried AS (
    SELECT run, step, source, unit, execution, attempt,
           sum((body -> 'amounts' ->> unit)::DOUBLE) AS amount
    FROM charged GROUP BY run, step, source, unit, execution, attempt
)
SELECT run, step, source, unit, max(amount) AS amount FROM tried GROUP BY run, step, source, unit;
"""
)

#: View → column → meaning; `docs/` and `nbflow doctor` print it, a test compares it with the views.
DOCUMENTED: dict[str, dict[str, str]] = {
    "runs": {
        "run": "run id (UUIDv7, sorts by time)",
        "workflow": "what is run: a notebook's name, or the name given to nbflow.run",
        "workflow_kind": "notebook, script, machine",
        "version": "the workflow's version as declared",
        "state": "pending, running, waiting, completed, failed, cancelled; corrupt where it cannot be read",
        "params": "parameters, JSON",
        "tags": "tags, a map",
        "parent": "run id of the parent, if any",
        "created_at": "first record, UTC",
        "updated_at": "last record, UTC",
        "finished_at": "when it was completed or cancelled, UTC",
        "attempts": "how often a process took it up",
        "generation": "of the lease",
        "steps": "how many steps are completed",
        "error": "what failed, or why it was cancelled",
        "host": "of the last owner",
        "pid": "of the last owner",
        "user": "of the last owner",
        "program": "of the last owner",
    },
    "steps": {
        "run": "run id",
        "execution": "number of this execution in its run (the seq of its first record)",
        "step": "key",
        "name": "what people call it",
        "kind": "cell, call, state, gate …",
        "signature": "hex of what makes it the same work",
        "state": "running, waiting, completed, failed, cancelled, skipped, timed_out",
        "attempt": "number of the last try, from 1",
        "parent": "key of the enclosing step",
        "version": "as declared",
        "started_at": "UTC",
        "finished_at": "UTC",
        "seconds": "how long the body took",
        "error_type": "class of the exception",
        "error": "its message",
        "traceback": "as it was printed",
        "forgotten": "the user asked to run it again",
        "current": "the version that counts now",
    },
    "outputs": {
        "run": "run id",
        "execution": "which execution of the step",
        "step": "key",
        "name": "of the step, as people call it",
        "variable": "name of the output",
        "type": "class of the value",
        "rows": "of a table",
        "size": "bytes",
        "preview": "one line",
        "columns": "names, of a table",
        "fingerprint": "hex BLAKE3 of the value",
        "current": "the version that counts now",
    },
    "events": {
        "run": "run id",
        "seq": "place in the run's journal, dense from 1",
        "recorded_at": "UTC",
        "kind": "run.opened, step.completed …",
        "step": "key",
        "execution": "which execution of the step",
        "state": "the state that the record leads to",
        "attempt": "number of the try",
        "body": "the record as JSON, without raw bytes",
    },
    "published": {
        "run": "run id",
        "name": "of what was published",
        "value": "the latest, JSON",
        "published_at": "UTC",
    },
    "charges": {
        "run": "run id",
        "step": "key of the step that spent it",
        "source": "what it was spent on",
        "unit": "tokens, dollars …",
        "amount": "how much, retries counted once",
    },
}


def migrate(connection: duckdb.DuckDBPyConnection, found: int, program: str, now: float) -> None:
    """Bring the attached store from version `found` (0: empty) to `SCHEMA_VERSION`, in one transaction.

    The store's catalog must be the connection's default one. A kill or an error
    leaves the old version whole.
    """
    connection.execute("BEGIN")
    try:
        for number in sorted(n for n in MIGRATIONS if n > found):
            connection.execute(MIGRATIONS[number])
            connection.execute(
                "INSERT INTO nbflow.migration VALUES (?, ?, ?, ?)", [APPLICATION, number, program, now]
            )
        connection.execute(VIEWS)
        for number in sorted(n for n in _FILL if found < n <= max(MIGRATIONS, default=0)):
            connection.execute(_FILL[number])
        connection.execute("COMMIT")
    except BaseException:
        roll_back(connection)
        raise


def list_finished(
    connection: duckdb.DuckDBPyConnection, runs: Sequence[str], gone: Sequence[str] = ()
) -> None:
    """Put the rows of `runs` that are over into `finished`, take `gone` out; the caller holds the transaction."""
    if runs or gone:
        connection.execute("DELETE FROM nbflow.finished WHERE list_contains(?, run)", [[*runs, *gone]])
    if runs:
        connection.execute(
            f"INSERT INTO nbflow.finished BY NAME SELECT * EXCLUDE (params, owner) FROM ({_SOME_NOW}) "
            "WHERE state IN ('completed', 'cancelled')",
            {"runs": list(runs)},
        )


def roll_back(connection: duckdb.DuckDBPyConnection) -> None:
    """Undo the open transaction; one whose commit failed (a full disk, say) DuckDB has undone itself."""
    import duckdb

    with contextlib.suppress(duckdb.TransactionException):  # it would hide what went wrong
        connection.execute("ROLLBACK")
