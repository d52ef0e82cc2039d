"""What a run says of itself to those outside: tags to find it by, and published values to watch."""

from __future__ import annotations

from typing import Any

import msgspec

from nbflow.core.errors import CannotStore, UsageError
from nbflow.core.model import RunPublished
from nbflow.runtime import active

#: Deeper values than this are a mistake (or a value that contains itself).
_DEPTH = 64


def tag(**attrs: str | float | bool) -> None:
    """Set tags of the current run, over those that it has; `nbflow.runs(tags=...)` finds runs by them.

    Values are kept as text. Children inherit the tags that their parent has
    when they start.

    Raises:
        UsageError: no tag at all, an empty name, or a value that is no text, number or bool.
        NoActiveRun: outside any run.

    Example:
        >>> import nbflow
        >>> with nbflow.run("tagged") as current:
        ...     nbflow.tag(team="blue", fold=3)
        ...     current.tags
        {'team': 'blue', 'fold': '3'}
    """
    tags = tag_texts(attrs)
    if not tags:
        raise UsageError("Say which tags to set.", hint='As in nbflow.tag(team="blue").')
    session = active.required()
    held = session.history.tags
    if any(held.get(name) != value for name, value in tags.items()):  # a replay sets them once more
        session.tag(**tags)


def tag_texts(tags: dict[str, Any]) -> dict[str, str]:
    """Return tags as they are kept: every value as text.

    Raises:
        UsageError: an empty name, or a value that is no text, number or bool.

    >>> tag_texts({"fold": 3, "final": True})
    {'fold': '3', 'final': 'True'}
    """
    given: object = tags  # callers are not all type-checked
    if not isinstance(given, dict):
        raise UsageError(f"Tags are a dict of names and texts, not {tags!r}.")
    for name, value in tags.items():
        _named("A tag's name", name)
        if not isinstance(value, (str, int, float, bool)):
            raise UsageError(
                f"Tag {name} is a text, number or bool, not {value!r}.",
                hint="Use nbflow.publish for values with parts; a tag cannot be removed.",
            )
    return {name: str(value) for name, value in tags.items()}


def _named(what: str, name: object) -> None:
    if not isinstance(name, str) or not name:
        raise UsageError(f"{what} is a text that is not empty, not {name!r}.")


def publish(name: str, value: Any) -> None:
    """Make a named value of the current run visible from outside at once; the latest of a name counts.

    For progress and metrics: `nbflow.published(run)`, `nbflow published RUN` and
    the view `published` show it while the run goes on. The value is anything
    that JSON can hold; dataclasses, dates, enums and NumPy numbers are turned
    into such. A kill of the process does not lose it.

    Raises:
        CannotStore: JSON cannot hold the value; `path` says which part of it.
        UsageError: the name is empty or no text.
        NoActiveRun: outside any run.

    Example:
        >>> import nbflow
        >>> with nbflow.run("training") as current:
        ...     nbflow.publish("loss", 0.5)
        ...     nbflow.publish("loss", 0.25)
        ...     nbflow.published(current)
        {'loss': 0.25}
    """
    _named("The name of what is published", name)
    session = active.required()
    plain = _plain(value, name, name)
    session.recorder.append(RunPublished(name=name, value=plain), durability="written")


def _plain(value: Any, path: str, name: str, depth: int = 0) -> Any:
    """Return the value in the types that JSON has.

    Raises:
        CannotStore: with the path of the first part that has none.
    """
    if value is None or type(value) in (bool, int, float, str):
        return _fitting(value, path, name)
    if depth > _DEPTH:
        raise CannotStore(
            f"{path} is nested more than {_DEPTH} deep, or contains itself.", variable=name, path=path
        )
    if isinstance(value, dict):
        return {
            _key(key, path, name): _plain(item, f"{path}[{key!r}]", name, depth + 1)
            for key, item in value.items()
        }
    if isinstance(value, (list, tuple)) and not hasattr(value, "_fields"):
        return [_plain(item, f"{path}[{place}]", name, depth + 1) for place, item in enumerate(value)]
    item = getattr(value, "item", None)
    if callable(item) and getattr(value, "ndim", None) == 0:  # a NumPy number
        return _plain(item(), path, name, depth + 1)
    fields = getattr(value, "__dataclass_fields__", None) or getattr(value, "__struct_fields__", None)
    if fields is not None and not isinstance(value, type):
        return {field: _plain(getattr(value, field), f"{path}.{field}", name, depth + 1) for field in fields}
    try:
        return _fitting(msgspec.to_builtins(value, str_keys=True), path, name)
    except (TypeError, ValueError, RecursionError) as error:
        kind = f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")
        raise CannotStore(
            f"{path} is a {kind}, which JSON cannot hold, so it cannot be published.",
            variable=name,
            path=path,
            hint="Publish a number, a text, or a list or dict of such; durable steps keep any object.",
        ) from error


def _key(key: Any, path: str, name: str) -> str:
    if isinstance(key, str):
        return key
    if isinstance(key, int) and not isinstance(key, bool):
        return str(key)
    raise CannotStore(
        f"{path} has the key {key!r}, and JSON knows texts as keys only.", variable=name, path=path
    )


def _fitting(value: Any, path: str, name: str) -> Any:
    """Refuse what a record cannot hold: integers beyond 64 bits and broken text."""
    try:
        msgspec.msgpack.encode(value)
    except (OverflowError, ValueError) as error:
        raise CannotStore(
            f"{path} cannot be published: {error}.",
            variable=name,
            path=path,
            hint="Publish it as text.",
        ) from error
    return value
