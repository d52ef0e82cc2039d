"""The records of a journal, and the frozen facts that the other layers exchange.

A journal is a sequence of entries: a record with its dense `seq` (1, 2, 3 …
over all generations of the run) and `at`, seconds since the epoch in UTC. An
entry is never changed; what a run or step is *now* is a fold over the entries
(`nbflow.core.history`).

One execution of a step is known by the `seq` of its `StepStarted` record: its
`execution`. The same key may have many executions (attempt after attempt, or a
new version after an edit); each ends at most once. A record that is appended
together with its `StepStarted` cannot know that seq yet: a negative `execution`
counts back from the record's own seq (`execution_of`).
"""

from __future__ import annotations

from typing import Any

import msgspec


class Struct(msgspec.Struct, frozen=True, omit_defaults=True):
    """Base of all plain facts: immutable, compared by value."""


class Owner(Struct):
    """Who holds a lease: one process on one host, since when (UTC seconds)."""

    host: str
    pid: int
    since: float
    user: str = ""
    program: str = ""


class ErrorInfo(Struct):
    """An exception as it is recorded: text for people, `pickled` for re-raising where that works.

    `type` is the qualified class name, `traceback` the formatted one.
    """

    type: str
    message: str
    traceback: str = ""
    pickled: bytes | None = None


class Column(Struct):
    """One column of a recorded table: its name as shown, its type as text, the leaf that holds it.

    `leaf` is None where the column is inside the envelope (object columns, say).
    """

    name: str
    type: str
    leaf: bytes | None = None


class OutputInfo(Struct):
    """What is known of one recorded variable without loading it.

    `fingerprint` is 32 bytes of BLAKE3; `stable` is False where the class is
    known to hash differently after a round trip, so that an untouched restored
    object counts as its recorded version. `size` is in bytes. `columns` is set
    for tables (pandas, polars, Arrow) and `rows` with it.
    """

    name: str
    type: str
    fingerprint: bytes
    size: int
    stable: bool = True
    preview: str = ""
    rows: int | None = None
    columns: tuple[Column, ...] | None = None


class LeafRef(Struct):
    """Where a large buffer lies: `digest` is BLAKE3-256 of its bytes, `size` counts them.

    `segment` names a leaf file of the run's folder ("" when it is in the
    database only) and `offset` the byte in it. `form` describes the content for
    compaction (`nbflow.values.native`); "" is opaque bytes.
    """

    digest: bytes
    size: int
    segment: str = ""
    offset: int = 0
    form: str = ""


class Checkpoint(Struct):
    """The recorded outputs of a completed step: one envelope and the leaves it refers to.

    `codec` is "json" (safe, no pickle) or "pickle". `body` is the envelope;
    where it is long it is itself the *last* leaf and `body` is empty.
    """

    codec: str
    body: bytes = b""
    leaves: tuple[LeafRef, ...] = ()
    outputs: tuple[OutputInfo, ...] = ()


class Record(Struct, tag_field="kind"):
    """Base of everything a journal holds; `kind` in its encoded form tells which."""


class RunOpened(Record, tag="run.opened"):
    """The first record of a run: what is run, with which parameters.

    `parent` and `parent_step` name the run and step that started a child,
    `forked` the run whose first steps this one shares. `deadline` is the UTC
    second at which the whole run is cancelled. `variant` tells runs of one workflow
    and equal parameters apart that must not carry each other on ("papermill:python3"
    beside the runs of the same notebook in JupyterLab); `launch` is what whoever
    started it needs to start it again.
    """

    run: str
    workflow: str
    version: str = ""
    params: dict[str, Any] = {}
    tags: dict[str, str] = {}
    parent: str | None = None
    workflow_kind: str = "script"
    parent_step: str | None = None
    forked: str | None = None
    deadline: float | None = None
    variant: str = ""
    launch: dict[str, Any] = {}


class RunAttached(Record, tag="run.attached"):
    """A process took the lease: a new attempt of the run, in a new generation.

    `counted` is the size in bytes up to which the previous generation's journal
    counts; what a stale owner wrote behind it never happened.
    """

    generation: int
    attempt: int
    owner: Owner
    counted: int = 0
    stolen: bool = False
    versions: dict[str, str] = {}


class RunChanged(Record, tag="run.changed"):
    """The run went to another state. `reason` is a word for cancelled, a sentence for failed."""

    state: str
    reason: str = ""
    error: ErrorInfo | None = None


class RunTagged(Record, tag="run.tagged"):
    """Tags were set; they are merged over earlier ones."""

    tags: dict[str, str]


class StepStarted(Record, tag="step.started"):
    """A step's body is about to run; `seq` of this record is the execution's number.

    `step` is the key, `name` what people call it, `step_kind` one of the kinds
    in the glossary, `parent` the key of the enclosing step, `detail` what the
    layer above wants to find again (a cell's source, when a wait is over).
    """

    step: str
    name: str
    step_kind: str
    signature: bytes
    attempt: int = 1
    parent: str | None = None
    version: str = ""
    detail: dict[str, Any] = {}


class StepRetried(Record, tag="step.retried"):
    """An attempt failed and another is due at `due_at` (UTC seconds)."""

    execution: int
    step: str
    attempt: int
    due_at: float
    error: ErrorInfo


class StepCursor(Record, tag="step.cursor"):
    """A stepped body passed a point it can continue from; `number` is dense from 0."""

    execution: int
    step: str
    number: int
    checkpoint: Checkpoint


class StepCompleted(Record, tag="step.completed"):
    """A step is done: its outputs, what it showed and how long it took (seconds).

    `display` is the captured output as bytes the notebook layer understands
    (a checkpoint's leaf may hold it when it is large: then it is empty and
    `display_leaf` is set). `state` holds ambient state and other facts to put back.
    """

    execution: int
    step: str
    attempt: int = 1
    seconds: float = 0.0
    checkpoint: Checkpoint | None = None
    display: bytes = b""
    display_leaf: LeafRef | None = None
    state: Checkpoint | None = None
    detail: dict[str, Any] = {}


class StepEnded(Record, tag="step.ended"):
    """A step ended without a result: failed, cancelled, skipped or timed_out."""

    execution: int
    step: str
    state: str
    attempt: int = 1
    seconds: float = 0.0
    error: ErrorInfo | None = None
    display: bytes = b""
    display_leaf: LeafRef | None = None


class StepForgotten(Record, tag="step.forgotten"):
    """The user asked that this step run again; its checkpoints stay in history."""

    step: str
    reason: str = ""


class MessageTaken(Record, tag="message.taken"):
    """A message from the inbox became part of the run (a cancel, a signal, a decision)."""

    message: str
    topic: str
    sent_at: float
    sender: str = ""
    payload: dict[str, Any] = {}


class RunPublished(Record, tag="run.published"):
    """A named value to be seen from outside; the latest of a name counts."""

    name: str
    value: Any


class RunCharged(Record, tag="run.charged"):
    """Something was spent: `amounts` by unit (tokens, dollars), by one source within one attempt at a step."""

    step: str
    source: str
    amounts: dict[str, float]
    execution: int = 0
    attempt: int = 1


AnyRecord = (
    RunOpened
    | RunAttached
    | RunChanged
    | RunTagged
    | RunPublished
    | RunCharged
    | StepStarted
    | StepRetried
    | StepCursor
    | StepCompleted
    | StepEnded
    | StepForgotten
    | MessageTaken
)


class Message(Struct):
    """A word from outside to a run's owner: `topic` is cancel, signal, decision and so on."""

    id: str
    topic: str
    sent_at: float
    sender: str = ""
    payload: dict[str, Any] = {}


class RunInfo(Struct):
    """One row of the runs listing. Times are UTC seconds; `alive` is None where nobody looked."""

    run: str
    workflow: str
    state: str
    workflow_kind: str = "script"
    version: str = ""
    params: dict[str, Any] = {}
    tags: dict[str, str] = {}
    parent: str | None = None
    created_at: float = 0.0
    updated_at: float = 0.0
    finished_at: float | None = None
    attempts: int = 0
    generation: int = 0
    steps: int = 0
    error: str = ""
    owner: Owner | None = None
    alive: bool | None = None
    forked: str | None = None


class StepInfo(Struct):
    """One row of a run's steps: the execution, its state and its outputs."""

    run: str
    execution: int
    step: str
    name: str
    step_kind: str
    signature: bytes
    state: str
    attempt: int = 1
    parent: str | None = None
    version: str = ""
    started_at: float = 0.0
    finished_at: float | None = None
    seconds: float | None = None
    error: ErrorInfo | None = None
    outputs: tuple[OutputInfo, ...] = ()
    current: bool = True


class Entry(msgspec.Struct, frozen=True, array_like=True):
    """A record in its place: `seq` is dense from 1 within the run, `at` is UTC seconds."""

    seq: int
    at: float
    record: AnyRecord


def execution_of(entry: Entry) -> int:
    """Return the number of the execution that an entry of a step speaks of.

    >>> execution_of(Entry(8, 0.0, StepCompleted(execution=-1, step="load")))
    7
    """
    record = entry.record
    assert isinstance(record, StepRetried | StepCursor | StepCompleted | StepEnded | RunCharged)
    number = record.execution
    return number if number > 0 else entry.seq + number


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Entry)


def encode_entry(entry: Entry) -> bytes:
    """Encode an entry as MessagePack."""
    return _encoder.encode(entry)


def decode_entry(body: bytes | memoryview) -> Entry:
    """Decode one entry.

    Raises:
        msgspec.DecodeError: the bytes are no entry.

    >>> entry = Entry(1, 0.0, RunTagged(tags={"team": "blue"}))
    >>> decode_entry(encode_entry(entry)) == entry
    True
    """
    return _decoder.decode(body)


def record_kind(record: Record) -> str:
    """Return the record's kind as it stands in the `events` view, such as "step.completed"."""
    return str(type(record).__struct_config__.tag)
