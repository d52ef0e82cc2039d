"""Exceptions as records: text for people, and a pickle for raising again where that works."""

from __future__ import annotations

import copyreg
import traceback
from pathlib import Path
from typing import Any

from nbflow.core.errors import RecordedFailure
from nbflow.core.model import ErrorInfo

#: Longer messages and tracebacks are cut in the middle; a pickle beyond this is not kept.
MESSAGE_LIMIT = 10_000
TRACEBACK_LIMIT = 100_000
PICKLE_LIMIT = 256 * 1024

_HERE = Path(__file__).resolve().parent.parent


def encode_error(error: BaseException) -> ErrorInfo:
    """Record an exception: its class, message, traceback (without nbflow's own frames) and pickle.

    Never raises for what the exception does: one that does not pickle, or whose text fails, is kept as text.
    """
    return ErrorInfo(
        type=_type_name(type(error)),
        message=_cut(_message(error), MESSAGE_LIMIT),
        traceback=_cut(_traceback(error), TRACEBACK_LIMIT),
        pickled=_pickle(error),
    )


def has_frames_pickled(cls: type) -> bool:
    """Tell whether somebody has the exceptions of this class pickled with their tracebacks.

    tblib does, and Dask loads it. A traceback holds frames, which cannot be rebuilt
    in another process, and makes two equal exceptions differ; its text is recorded instead.
    """
    registered = copyreg.dispatch_table.get(cls)
    return registered is not None and str(getattr(registered, "__module__", "")).startswith("tblib")


def decode_error(info: ErrorInfo) -> BaseException:
    """Return the recorded exception, or a `RecordedFailure` with its class name, message and traceback.

    >>> decode_error(encode_error(KeyError("day")))
    KeyError('day')
    """
    if info.pickled is not None:
        from nbflow.values.pickling import Decoder

        try:
            found = Decoder(memoryview(info.pickled), (), _no_leaves).load()["error"]
        except Exception as problem:  # noqa: BLE001 - the stand-in names it
            return _stand_in(info, f"{type(problem).__name__}: {problem}")
        if isinstance(found, BaseException) and _type_name(type(found)) == info.type:
            if info.traceback:
                found.add_note(f"Recorded traceback:\n{info.traceback}")
            return found
        return _stand_in(info, f"its pickle gave {type(found).__name__}")
    return _stand_in(info, None)


def _stand_in(info: ErrorInfo, reason: str | None) -> RecordedFailure:
    failure = RecordedFailure(f"{info.type}: {info.message}" if info.message else info.type, error=info)
    if reason:
        failure.add_note(f"The exception itself could not be rebuilt ({reason}).")
    if info.traceback:
        failure.add_note(f"Recorded traceback:\n{info.traceback}")
    return failure


def _no_leaves(digest: bytes) -> memoryview:
    raise LookupError(f"an error record has no leaves (asked for {digest.hex()[:12]})")


def _type_name(cls: type) -> str:
    module = cls.__module__
    return cls.__qualname__ if module in ("builtins", "__main__") else f"{module}.{cls.__qualname__}"


def _message(error: BaseException) -> str:
    try:
        return str(error)
    except Exception as problem:  # noqa: BLE001 - the record names it
        return f"<its text failed: {type(problem).__name__}>"


def _traceback(error: BaseException) -> str:
    try:
        report = traceback.TracebackException.from_exception(error, compact=True)
        _shorten(report, set())
        return "".join(report.format())
    except Exception as problem:  # noqa: BLE001 - the record names it
        return f"{_type_name(type(error))} (its traceback failed: {type(problem).__name__})\n"


def _shorten(report: Any, seen: set[int]) -> None:
    if report is None or id(report) in seen:
        return
    seen.add(id(report))
    kept = [frame for frame in report.stack if _HERE not in Path(frame.filename).resolve().parents]
    report.stack = traceback.StackSummary.from_list(kept)
    _shorten(report.__cause__, seen)
    _shorten(report.__context__, seen)
    for inner in getattr(report, "exceptions", None) or ():
        _shorten(inner, seen)


def _pickle(error: BaseException) -> bytes | None:
    """Return an envelope that was seen to give the exception back, else None."""
    from nbflow.values.pickling import Decoder, EnvelopePickler

    try:
        pickler = EnvelopePickler()
        pickler.dump(error)
        raw = b"".join(pickler.finish(("error",)))
        if pickler.leaves or len(raw) > PICKLE_LIMIT:
            return None
        # An exception with an __init__ of its own often pickles and then does not load.
        found = Decoder(memoryview(raw), (), _no_leaves).load()["error"]
    except Exception:  # noqa: BLE001 - its text is kept instead
        return None
    return raw if type(found).__qualname__ == type(error).__qualname__ else None


def _cut(text: str, limit: int) -> str:
    text = text.encode("utf-8", "backslashreplace").decode()
    if len(text) <= limit:
        return text
    half = limit // 2
    return f"{text[:half]}\n… {len(text) - 2 * half:,} characters left out …\n{text[-half:]}"
