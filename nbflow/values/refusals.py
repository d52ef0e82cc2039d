"""What is never stored, although pickle might agree: things that are a hold on the outside world.

cloudpickle turns an open file into the text it holds and a module's stream into
a name; a restored one would not be what it was. They are refused by class.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from typing import Any

from nbflow.core.errors import StoreError


class Refused(TypeError):
    """Raised inside a pickler for what nbflow does not store."""


#: Classes of live things by module and name, with what to say. Looked up along the MRO, nothing is imported.
LIVE: dict[tuple[str, str], str] = {
    ("_io", "_IOBase"): "an open file",
    ("_socket", "socket"): "a network connection",
    ("ssl", "SSLContext"): "a TLS context",
    ("_thread", "lock"): "a lock",
    ("_thread", "RLock"): "a lock",
    ("threading", "Thread"): "a thread",
    ("threading", "Condition"): "a lock",
    ("threading", "Event"): "a lock",
    ("threading", "Semaphore"): "a lock",
    ("threading", "Barrier"): "a lock",
    ("_thread", "_local"): "thread-local data",
    ("_thread", "_localdummy"): "thread-local data",
    ("subprocess", "Popen"): "a running process",
    ("multiprocessing.process", "BaseProcess"): "a running process",
    ("multiprocessing.pool", "Pool"): "a pool of workers",
    ("concurrent.futures._base", "Executor"): "a pool of workers",
    ("concurrent.futures._base", "Future"): "a result that is still to come",
    ("_asyncio", "Future"): "a result that is still to come",
    ("_asyncio", "Task"): "a running task",
    ("asyncio.events", "AbstractEventLoop"): "an event loop",
    ("builtins", "generator"): "a generator",
    ("builtins", "coroutine"): "a coroutine",
    ("builtins", "async_generator"): "an async generator",
    ("builtins", "frame"): "a stack frame",
    ("builtins", "traceback"): "a traceback",
    ("builtins", "memoryview"): "a view of other memory",
    ("mmap", "mmap"): "a mapped file",
    ("_contextvars", "Context"): "a context",
    ("sqlite3", "Connection"): "a database connection",
    ("sqlite3", "Cursor"): "a database cursor",
    ("_duckdb", "DuckDBPyConnection"): "a database connection",
    ("_duckdb", "DuckDBPyRelation"): "a query on a database connection",
    ("duckdb.duckdb", "DuckDBPyConnection"): "a database connection",
    ("duckdb.duckdb", "DuckDBPyRelation"): "a query on a database connection",
    ("duckdb", "DuckDBPyConnection"): "a database connection",
    ("duckdb", "DuckDBPyRelation"): "a query on a database connection",
    ("psycopg", "BaseConnection"): "a database connection",
    ("psycopg2.extensions", "connection"): "a database connection",
    ("sqlalchemy.engine.base", "Engine"): "a database connection",
    ("sqlalchemy.engine.base", "Connection"): "a database connection",
    ("sqlalchemy.orm.session", "Session"): "a database session",
    ("h5py._hl.files", "File"): "an open file",
    ("tables.file", "File"): "an open file",
    ("zipfile", "ZipFile"): "an open file",
    ("tarfile", "TarFile"): "an open file",
    ("pyarrow.lib", "NativeFile"): "an open file",
}

_STREAMS = ("stdin", "stdout", "stderr", "__stdin__", "__stdout__", "__stderr__")


def refusal(cls: type) -> Callable[[Any], Any] | None:
    """Return a reducer that refuses instances of the class; None where they may be pickled."""
    if cls in (io.BytesIO, io.StringIO):
        return None
    for base in cls.__mro__:
        what = LIVE.get((base.__module__, base.__name__))
        if what is not None:
            return lambda obj: _refuse(obj, what)
    return None


def _refuse(obj: Any, what: str) -> Any:
    for name in _STREAMS:
        if obj is getattr(sys, name, None):
            return getattr, (sys, name)
    raise Refused(
        f"it is {what} ({type(obj).__module__}.{type(obj).__qualname__}), which does not outlive its process"
    )


def why(error: BaseException) -> str:
    """Return the reason of a failed pickle in one clause."""
    if isinstance(error, Refused):
        return str(error)
    text = str(error).strip().rstrip(".") or type(error).__name__
    if isinstance(error, RecursionError) or "recursion" in text.lower():
        return "it is nested too deeply to be pickled"
    return (
        f"pickle says: {text}"
        if isinstance(error, TypeError)
        else f"pickling it raised {type(error).__name__}: {text}"
    )


def is_store_error(error: BaseException) -> bool:
    """Tell whether the failure is the store's (a damaged leaf), which says more than "cannot be rebuilt"."""
    return isinstance(error, StoreError)


def restore_hint(error: BaseException) -> str:
    """Return what to do about a value that cannot be rebuilt."""
    if isinstance(error, ModuleNotFoundError):
        return f"Install the module {error.name!r} or run the step again."
    if isinstance(error, (AttributeError, ImportError)):
        return "A class or function it needs is gone or was renamed; define it before, or run the step again."
    return "Run the step again."
