"""The task of a state as a person defines it, and what the machine's definition is told of it."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nbflow.core.errors import UsageError
from nbflow.core.machine import Definition
from nbflow.core.outcomes import plain_label
from nbflow.core.signature import digest, short
from nbflow.core.state_spec import StateSpec
from nbflow.core.targets import infer
from nbflow.values.code_digest import function_identity

Handler = Callable[..., Any]


class Task:
    """The task of a state as `Machine.state` leaves it: call it like the function it decorates.

    A batch has `process` (one item) and `finish` (all results) beside it, a
    stream `window` and `finish`; each is a decorator of the same kind.
    """

    def __init__(self, label: str, options: dict[str, Any], facts: dict[str, Any], to: Any) -> None:
        self.label = label
        self.handler: Handler | None = None
        self._options = options
        self._facts = facts
        self._to = to
        self._parts: dict[str, Handler] = {}
        self._spec: StateSpec | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function itself, unrecorded; the first call, by `@machine.state(...)`, gives it."""
        if self.handler is None:
            (function,) = args
            if not callable(function):
                raise UsageError(f"@state({self.label}) wants a function, not {function!r}.")
            if isinstance(function, Task) and function.handler is not None:
                function = function.handler  # one function for two states, with a decorator for each
            self.handler = function
            self._spec = None  # a gate is one without a function, too
            # Not its attributes: one that is called `label` would make this the task of another state.
            functools.update_wrapper(self, function, updated=())
            return self
        return self.handler(*args, **kwargs)

    def process(self, function: Handler) -> Handler:
        """Give a batch the function that processes one item: `process(ctx, item)`."""
        return self._part("process", function)

    def finish(self, function: Handler) -> Handler:
        """Give a batch or stream its end: `finish(ctx, results)` of a batch, `finish(ctx)` of a stream."""
        return self._part("finish", function)

    def window(self, function: Handler) -> Handler:
        """Give a stream the function that takes a window: `window(ctx, items)`; a state it returns ends the stream."""
        return self._part("window", function)

    def _part(self, name: str, function: Handler) -> Handler:
        self._parts[name] = function
        self._spec = None
        return function

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_spec": None}  # what is derived is no part of what it is

    def code(self) -> str:
        """Return a digest of the code of its functions, as text; the data that they read does not count."""
        undo = self._facts.get("compensate")
        functions = [self.handler, undo, *(self._parts[name] for name in sorted(self._parts))]
        codes = [code_of(function) for function in functions if function is not None]
        ask = self._options.get("ask")
        return short(digest(self.label, str(self._facts["kind"]), *codes, *([repr(ask)] if ask else ())))

    @property
    def changed(self) -> bool:
        """Whether something was defined since the last `spec`."""
        return self._spec is None

    def spec(self, definition: Definition) -> StateSpec:
        """Return what the machine's definition is told of this state."""
        if self._spec is None:
            chooses = [self._parts.get(part) for part in ("finish", "window")] if self._parts else []
            functions = [f for f in (*chooses, *([] if chooses else [self.handler])) if f is not None]
            targets: frozenset[str] | None
            splits: tuple[Any, ...] = ()
            if self._to is not None:
                many = self._to if isinstance(self._to, (list, tuple, set, frozenset)) else [self._to]
                targets = frozenset(definition.find(target) or plain_label(target) for target in many)
            else:
                found = [infer(function, definition.find) for function in functions]
                known = [one.targets for one in found]
                targets = None if None in known else frozenset().union(*(one or () for one in known))
                splits = tuple(split for one in found for split in one.splits)
            self._spec = StateSpec(
                self.label,
                handler=self.handler,
                targets=targets,
                splits=splits,
                options={**self._options, **self._parts},
                line=_place(self.handler),
                **self._facts,
            )
        return self._spec


def code_of(function: Any) -> str:
    """Return a digest of a function's code and of the notebook helpers it calls, as text; "" where it has none."""
    plain = inspect.unwrap(function) if callable(function) else function
    while isinstance(plain, functools.partial):
        plain = plain.func
    plain = getattr(plain, "__func__", plain)
    return short(function_identity(plain)[0]) if inspect.isfunction(plain) else ""


def _place(function: Handler | None) -> str:
    code = getattr(inspect.unwrap(function), "__code__", None) if function is not None else None
    return f"{Path(code.co_filename).name}:{code.co_firstlineno}" if code is not None else ""
