"""The pickler and unpickler of envelopes. Imported only once something needs a pickle; `codec` is the way in.

One pickle holds all variables, so what two of them share stays shared. It is
written as one `dump` per variable with a common memo: the position in the stream
tells how large each variable is, and a failure which one it was.

The bytes of an envelope: magic, length of the header, header (MessagePack), small
memories, the pickle. Large byte strings inside the pickle are leaves of their
own, so the stream is a list of segments.
"""

from __future__ import annotations

import functools
import io
import pickle
import struct
import sys
from bisect import bisect
from collections.abc import Callable, Sequence
from types import FunctionType
from typing import Any

import cloudpickle
import msgspec
from cloudpickle.cloudpickle import _class_reduce

from nbflow.core.errors import CannotRestore
from nbflow.core.loaded import loaded
from nbflow.core.model import LeafRef
from nbflow.values import arrays, identity, links, refusals
from nbflow.values.failures import has_frames_pickled
from nbflow.values.leaf import LEAF_MINIMUM, Digests, Fetch, Leaf
from nbflow.values.memory import Memory, View, hash_parts

MAGIC = b"nbE1"
_LENGTH = struct.Struct("<I")
#: The pickler hands byte strings of this many bytes or more to the file unframed, as they are.
_UNFRAMED = 64 * 1024
_NOT_REDUCED = NotImplemented


class Header(msgspec.Struct, frozen=True, array_like=True):
    """What is needed to read an envelope.

    `memories` are numbers of leaves, or `[start, size]` among the small memories;
    `segments` are the pickle's: a size in the envelope, or minus one minus the number of a leaf.
    """

    names: tuple[str, ...]
    views: tuple[View, ...]
    memories: tuple[int | tuple[int, int], ...]
    buffers: tuple[int, ...]
    segments: tuple[int, ...]


class _Sink:
    """A file for the pickler that keeps every large byte string as a chunk of its own."""

    def __init__(self) -> None:
        self.chunks: list[Any] = []
        self.large: set[int] = set()
        self.size = 0

    def write(self, chunk: Any) -> int:
        size = len(chunk)
        if size >= _UNFRAMED and self.chunks and _announces(self.chunks[-1], size):
            self.large.add(len(self.chunks))
        self.chunks.append(chunk)
        self.size += size
        return size


def _announces(chunk: Any, size: int) -> bool:
    """Tell whether a chunk ends with the opcode of a byte string of this size."""
    tail = bytes(chunk[-9:])
    if size < 1 << 32 and tail[-5:] in (b"B" + size.to_bytes(4, "little"), b"X" + size.to_bytes(4, "little")):
        return True
    return tail[1:] == size.to_bytes(8, "little") and tail[:1] in (b"\x8e", b"\x8d", b"\x96")


class EnvelopePickler(cloudpickle.Pickler):  # type: ignore[misc]
    """Pickles variables into an envelope; arrays, frames and byte strings go out of line.

    With `probe` nothing is hashed or kept: it only finds out whether an object can be pickled.
    """

    def __init__(
        self, *, digests: Digests | None = None, defines: Sequence[Any] = (), probe: bool = False
    ) -> None:
        self.sink = _Sink()
        super().__init__(self.sink, protocol=5, buffer_callback=self._buffer)
        self.digests = digests or Digests()
        self.probe = probe
        self.memory = Memory()
        self.leaves: list[Leaf] = []
        self.columns: dict[int, dict[int, Any]] = {}
        self.owned: dict[Any, Any] = {}
        #: Arrays of objects that are in the envelope anyway, so that a view may be stored as a part of them.
        self.object_roots = {id(value) for value in defines if arrays.holds_objects(value)}
        self.arrow_leaves: dict[int, int] = {}
        self.arrow_columns: dict[tuple[int, int], int | None] = {}
        self.polars_leaves: dict[int, int | None] = {}
        self.polars_columns: dict[int, list[Any]] = {}
        self._by_digest: dict[bytes, int] = {}
        self._buffers: list[int] = []
        self._owners = 0
        self._kept: list[Any] = []
        self._defines = {id(value) for value in defines if isinstance(value, type)}
        self._handlers: dict[type, Callable[[Any], Any]] = {}
        self.out_of_line = 0

    # -- what reducers use -------------------------------------------------------------

    def new_owner(self) -> int:
        """Return a number for another pandas object."""
        self._owners += 1
        return self._owners

    def add_leaf(self, parts: Sequence[memoryview], form: str = "") -> int:
        """Note a leaf and return its number; the same bytes are one leaf."""
        if self.probe:
            return 0
        digest, size = hash_parts(parts)
        self.out_of_line += size
        return self.put(Leaf(digest, size, parts, form))

    def size(self) -> int:
        """Return the bytes pickled so far, those out of line included."""
        return self.sink.size + self.out_of_line + self.memory.size

    def put(self, leaf: Leaf) -> int:
        """Return the number of a leaf, new or known."""
        number = self._by_digest.setdefault(leaf.digest, len(self.leaves))
        if number == len(self.leaves):
            self.leaves.append(leaf)
        elif leaf.form and not self.leaves[number].form:
            self.leaves[number] = leaf
        return number

    # -- pickle's hooks ----------------------------------------------------------------

    def reducer_override(self, obj: Any) -> Any:
        """Return how to build `obj`; pickle asks for everything but plain containers and scalars."""
        cls = type(obj)
        handler = self._handlers.get(cls)
        if handler is None:
            handler = self._handlers[cls] = self._choose(cls)
        return handler(obj)

    def _buffer(self, buffer: pickle.PickleBuffer) -> bool:
        """Take an out-of-band buffer; True leaves it in the pickle."""
        raw = buffer.raw()
        if raw.nbytes < LEAF_MINIMUM or loaded("numpy") is None:
            return True
        import numpy as np

        self._buffers.append(self.memory.add(np.frombuffer(raw, np.uint8)))
        return False

    def _choose(self, cls: type) -> Callable[[Any], Any]:
        from nbflow.values import arrow, frames

        if issubclass(cls, type):
            return self._class
        if cls is FunctionType:
            return self._function
        if cls is functools.cached_property:
            return identity.reduce_cached_property
        refusal = refusals.refusal(cls)
        if refusal is not None:
            return refusal
        if issubclass(cls, BaseException):
            return _reduce_exception
        if cls is frames.Owned:
            return lambda owned: frames.reduce_owned(self, owned)
        numpy = loaded("numpy")
        if numpy is not None and issubclass(cls, numpy.ndarray):
            reduce = arrays.reduce_array if cls is numpy.ndarray else arrays.reduce_subclass
            return lambda array: reduce(self, array)
        if numpy is not None and issubclass(cls, numpy.random.BitGenerator):
            return arrays.reduce_bit_generator
        if numpy is not None and cls is numpy.random.Generator:
            return arrays.reduce_generator
        module = cls.__module__.partition(".")[0]
        bases = {base.__module__.partition(".")[0] for base in cls.__mro__}
        if "pandas" in bases:
            return self._choose_pandas(cls)
        if module == "pyarrow":
            return self._choose_arrow(cls)
        if module == "polars" and cls is getattr(loaded("polars"), "DataFrame", None):
            return lambda frame: arrow.reduce_polars_frame(self, frame)
        if module == "polars" and cls is getattr(loaded("polars"), "Series", None):
            return lambda series: arrow.reduce_polars_series(self, series)
        if "torch" in bases and issubclass(cls, sys.modules["torch"].Tensor):
            return lambda tensor: arrays.reduce_tensor(self, tensor)
        return _default

    def _choose_pandas(self, cls: type) -> Callable[[Any], Any]:
        import pandas as pd
        from pandas.core.internals import managers  # type: ignore[import-not-found]

        from nbflow.values import frames

        if cls is managers.BlockManager:
            return lambda manager: frames.reduce_manager(self, manager)
        if cls is managers.SingleBlockManager:
            return lambda manager: frames.reduce_single_manager(self, manager)
        if issubclass(cls, pd.Index) and cls.__module__.partition(".")[0] == "pandas":
            return lambda index: frames.reduce_index(self, index)
        return _default

    def _choose_arrow(self, cls: type) -> Callable[[Any], Any]:
        import pyarrow as pa

        from nbflow.values import arrow

        if issubclass(cls, pa.Array) and not issubclass(cls, pa.ExtensionArray):
            return lambda array: arrow.reduce_arrow_array(self, array)
        if issubclass(cls, pa.ChunkedArray):
            return lambda chunked: arrow.reduce_chunked(self, chunked)
        if cls in (pa.Table, pa.RecordBatch):
            return lambda table: arrow.reduce_table(self, table)
        return _default

    def _class(self, cls: type) -> Any:
        reduced = _class_reduce(cls)
        if not isinstance(reduced, tuple) or len(reduced) != 6 or not identity.is_main(cls):
            return reduced
        exact = identity.definition(cls) if id(cls) in self._defines else None
        maker, arguments, state, *_ = reduced
        made = (cls.__qualname__, exact, maker, arguments)
        return identity.main_class, made, state, None, None, identity.main_class_state

    def _function(self, function: FunctionType) -> Any:
        reduced = self._function_reduce(function)
        if not isinstance(reduced, tuple) or not identity.is_main(function):
            return reduced
        _, arguments, state, *_ = reduced
        made = (function.__qualname__, *arguments)
        return identity.main_function, made, state, None, None, identity.main_function_state

    # -- the envelope ------------------------------------------------------------------

    def finish(self, names: Sequence[str]) -> list[memoryview]:
        """Return the envelope's bytes in parts; `leaves` holds what it refers to."""
        views, memories = self.memory.finish(self.digests)
        places: list[int | tuple[int, int]] = []
        small: list[memoryview] = []
        start = 0
        for memory in memories:
            if isinstance(memory, Leaf):
                places.append(self.put(memory))
            else:
                places.append((start, memory.nbytes))
                small.append(memory)
                start += memory.nbytes
        self.places = places
        self.views = views
        segments: list[int] = []
        stream: list[memoryview] = []
        for number, chunk in enumerate(self.sink.chunks):
            if number in self.sink.large:
                segments.append(-1 - self.add_leaf((memoryview(chunk),)))
                continue
            if segments and segments[-1] >= 0:
                segments[-1] += len(chunk)
            else:
                segments.append(len(chunk))
            stream.append(memoryview(chunk))
        header = Header(tuple(names), tuple(views), tuple(places), tuple(self._buffers), tuple(segments))
        head = msgspec.msgpack.encode(header)
        return [memoryview(MAGIC + _LENGTH.pack(len(head)) + head), *small, *stream]

    def leaf_of_view(self, view: int) -> bytes | None:
        """Return the digest of the leaf that holds exactly this view's items, after `finish`."""
        memory, offset, _, _ = self.views[view]
        place = self.places[memory]
        if not isinstance(place, int) or offset:
            return None
        leaf = self.leaves[place]
        return leaf.digest if leaf.size == self.memory.bytes_of(view) else None


def _reduce_exception(error: BaseException) -> Any:
    """Reduce an exception as its class says, whatever is registered for its traceback."""
    if not has_frames_pickled(type(error)):
        return _NOT_REDUCED
    return error.__reduce_ex__(pickle.HIGHEST_PROTOCOL)


def _default(_: Any) -> Any:
    return _NOT_REDUCED


class _Stream:
    """The segments of a pickle as one file, read without joining them."""

    def __init__(self, segments: list[memoryview]) -> None:
        self._segments = segments
        self._number = 0
        self._place = 0

    def _next(self) -> memoryview | None:
        while self._number < len(self._segments):
            rest = self._segments[self._number][self._place :]
            if rest.nbytes:
                return rest
            self._number, self._place = self._number + 1, 0
        return None

    def read(self, size: int) -> bytes:
        rest = self._next()
        if rest is not None and rest.nbytes >= size:
            self._place += size
            return bytes(rest[:size])
        parts = bytearray()
        while len(parts) < size and (rest := self._next()) is not None:
            piece = rest[: size - len(parts)]
            parts += piece
            self._place += piece.nbytes
        return bytes(parts)

    def readinto(self, target: Any) -> int:
        into = memoryview(target).cast("B")
        done = 0
        while done < into.nbytes and (rest := self._next()) is not None:
            piece = rest[: into.nbytes - done]
            into[done : done + piece.nbytes] = piece
            self._place += piece.nbytes
            done += piece.nbytes
        return done

    def readline(self) -> bytes:
        line = bytearray()
        while (rest := self._next()) is not None:
            raw = bytes(rest[:1024])
            stop = raw.find(b"\n") + 1
            line += raw[: stop or len(raw)]
            self._place += stop or len(raw)
            if stop:
                break
        return bytes(line)


class Decoder:
    """Reads one envelope; every memory is fetched once and used in place."""

    def __init__(self, body: memoryview, leaves: Sequence[LeafRef], fetch: Fetch) -> None:
        if body.nbytes < 8 or bytes(body[:4]) != MAGIC:
            raise CannotRestore("The bytes are not an nbflow envelope.")
        size = _LENGTH.unpack(body[4:8])[0]
        try:
            self.header = msgspec.msgpack.decode(body[8 : 8 + size], type=Header)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise CannotRestore(f"The envelope's header is damaged: {error}.") from error
        self._leaves, self._fetch = leaves, fetch
        self._memories: dict[int, memoryview] = {}
        self._places: list[tuple[int, int]] = []
        self._detached: set[int] = set()
        self._kept: list[Any] = []
        small = sum(place[1] for place in self.header.memories if not isinstance(place, int))
        stream = 8 + size + small
        self._small = body[8 + size : stream]
        pickled = sum(segment for segment in self.header.segments if segment >= 0)
        if body.nbytes != stream + pickled:
            raise CannotRestore(
                f"The envelope has {body.nbytes:,} bytes where its header tells {stream + pickled:,}."
            )
        self._stream = body[stream:]

    def load(self) -> dict[str, Any]:
        """Return the variables.

        Raises:
            CannotRestore: a variable cannot be rebuilt; `variable` names it.
        """
        segments, start = [], 0
        for segment in self.header.segments:
            if segment < 0:
                segments.append(self.leaf(-1 - segment))
            else:
                segments.append(self._stream[start : start + segment])
                start += segment
        file = io.BytesIO(segments[0]) if len(segments) == 1 and start < 1 << 20 else _Stream(segments)
        unpickler = _Unpickler(file, self, buffers=(self._buffer(view) for view in self.header.buffers))
        found = {}
        for name in self.header.names:
            try:
                found[name] = unpickler.load()
            except CannotRestore as error:
                raise CannotRestore(
                    error.message, hint=error.hint, **{**error.facts, "variable": name}
                ) from error
            except Exception as error:
                if refusals.is_store_error(error):
                    raise
                raise CannotRestore(
                    f"The recorded value of {name!r} cannot be rebuilt: {type(error).__name__}: {error}.",
                    variable=name,
                    hint=refusals.restore_hint(error),
                ) from error
        return found

    def _memory(self, number: int) -> memoryview:
        known = self._memories.get(number)
        if known is not None:
            return known
        place = self.header.memories[number]
        if isinstance(place, int):
            raw = self._private(self._leaf(place))
        else:
            raw = memoryview(bytearray(self._small[place[0] : place[0] + place[1]]))
        self._memories[number] = raw
        return raw

    def _private(self, raw: memoryview) -> memoryview:
        """Return memory that can be written to and that no other memory of this envelope overlaps."""
        import numpy as np

        low = int(np.frombuffer(raw, np.uint8).__array_interface__["data"][0]) if raw.nbytes else 0
        place = bisect(self._places, (low,))
        before, after = self._places[max(place - 1, 0) : place], self._places[place : place + 1]
        taken = any(low < stop and start < low + raw.nbytes for start, stop in (*before, *after))
        if raw.readonly or taken or low % 16:
            return memoryview(bytearray(raw))
        self._places.insert(place, (low, low + raw.nbytes))
        return raw

    def _leaf(self, number: int) -> memoryview:
        if not 0 <= number < len(self._leaves):
            raise CannotRestore(
                f"The envelope asks for leaf {number}, but the checkpoint lists {len(self._leaves)}."
            )
        ref = self._leaves[number]
        raw = memoryview(self._fetch(ref.digest)).cast("B")
        if raw.nbytes != ref.size:
            raise CannotRestore(
                f"Leaf {ref.digest.hex()[:12]} has {raw.nbytes:,} bytes, not the {ref.size:,} recorded.",
                digest=ref.digest,
            )
        return raw

    def _buffer(self, view: int) -> memoryview:
        memory, offset, shape, _ = self.header.views[view]
        return self._memory(memory)[offset : offset + shape[0]]

    # -- what `links` stands for -------------------------------------------------------

    def view(self, number: int, dtype: Any, writeable: bool) -> Any:
        """Build the array of a view."""
        import numpy as np

        memory, offset, shape, strides = self.header.views[number]
        array = np.ndarray(shape, dtype, buffer=self._memory(memory), offset=offset, strides=strides)
        if not writeable:
            array.flags.writeable = False
        return array

    def leaf(self, number: int) -> memoryview:
        """Return the bytes of a leaf."""
        return self._leaf(number)

    def detached(self, value: Any) -> Any:
        """Return a copy of a value that another pandas object of this envelope already holds."""
        if id(value) in self._detached:
            return value.copy()
        self._detached.add(id(value))
        self._kept.append(value)
        return value


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: Any, decoder: Decoder, *, buffers: Any) -> None:
        super().__init__(file, buffers=buffers)
        self._links = {"view": decoder.view, "leaf": decoder.leaf, "detached": decoder.detached}

    def find_class(self, module: str, name: str) -> Any:
        """Bind the names of `links` to this envelope, import all others."""
        if module == links.__name__:
            return self._links[name]
        return super().find_class(module, name)


def can_pickle(value: Any) -> BaseException | None:
    """Return why a value cannot be pickled; None when it can."""
    try:
        EnvelopePickler(probe=True).dump(value)
    except Exception as error:  # noqa: BLE001 - it is the answer
        return error
    return None
