"""How one state of a machine was defined: its kind, handler, policies and where it may lead. A record, no behaviour."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal, get_args

from nbflow.core.errors import UsageError
from nbflow.core.lengths import length
from nbflow.core.retry import RetryPolicy

Kind = Literal["plain", "router", "poll", "timer", "gate", "batch", "stepped", "stream"]
KINDS: tuple[Kind, ...] = get_args(Kind)

#: Which kinds an option means something for; what is not named here is the runner's business.
OPTION_KINDS: Mapping[str, frozenset[Kind]] = MappingProxyType(
    {
        "every": frozenset({"poll"}),
        "max_errors": frozenset({"poll"}),
        "after": frozenset({"timer"}),
        "at": frozenset({"timer"}),
        "item_retries": frozenset({"batch"}),
        "process": frozenset({"batch"}),
        "finish": frozenset({"batch", "stream"}),
        "count": frozenset({"stream"}),
        "within": frozenset({"stream"}),
        "window": frozenset({"stream"}),
        "ask": frozenset({"gate"}),
    }
)
#: Kinds that do nothing which could be undone, and why.
_WITHOUT_EFFECT: Mapping[str, str] = MappingProxyType(
    {"router": "records nothing", "timer": "only waits", "gate": "only asks"}
)
_DURATIONS = ("every", "after", "within")
_COUNTS = {"max_errors": 1, "max_parallel": 1, "count": 1, "item_retries": 0}
_PARTS: Mapping[str, tuple[tuple[str, str], ...]] = MappingProxyType(
    {
        "batch": (("process", "processes one item"), ("finish", "returns the next state")),
        "stream": (
            ("window", "takes the items of a window"),
            ("finish", "returns the state after the last one"),
        ),
    }
)


@dataclass(frozen=True)
class SplitTargets:
    """Where one split of a handler leads: the labels of its branches (None: unknown) and of the state after the join.

    `to` None means that the source does not tell; `joined` False that the split
    names no state after the join, which is a problem.
    """

    branches: frozenset[str] | None
    to: str | None
    joined: bool = True


@dataclass(frozen=True)
class Ask:
    """What a state of kind "gate" asks, and the labels of the states to which the answers lead (None: an error).

    `timeout` is in seconds, `show` names data of the machine, and `into` is the name
    under which the decision becomes data.
    """

    text: str
    approved: str
    rejected: str | None = None
    timed_out: str | None = None
    options: tuple[str, ...] = ()
    single: bool = False
    show: tuple[str, ...] = ()
    timeout: float | None = None
    on_timeout: str = "fail"
    wait: bool = False
    into: str = "decision"

    def ways(self) -> dict[str, str]:
        """Return where each answer leads: the answer's word → a label."""
        found = {"approved": self.approved, "rejected": self.rejected, "timed out": self.timed_out}
        return {word: label for word, label in found.items() if label is not None}


@dataclass(frozen=True)
class StateSpec:
    """One state of a machine as it was defined.

    `targets` are the labels of the states that the handler may return, None
    where that is unknown. Durations among the options are kept in seconds;
    options that are None count as not given.

    Raises:
        UsageError: an unknown kind, or a duration, count or callable that makes no sense.

    >>> StateSpec("WAIT", "poll", print, options={"every": "5s"}).options["every"]
    5.0
    """

    label: str
    kind: Kind = "plain"
    handler: Callable[..., Any] | None = None
    targets: frozenset[str] | None = None
    splits: tuple[SplitTargets, ...] = ()
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    timeout: float | None = None
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    compensate: Callable[..., Any] | None = None
    line: str = ""

    def __post_init__(self) -> None:
        where = f"State {self.label!r}: "
        if self.kind not in KINDS:
            hint = f"Known are {', '.join(KINDS)}."
            raise UsageError(f"{where}{self.kind!r} is not a kind of task.", hint=hint)
        options = {name: value for name, value in self.options.items() if value is not None}
        for name in ("handler", "compensate"):
            _callable(getattr(self, name), f"{where}{name}")
        for name in ("process", "finish", "window"):
            _callable(options.get(name), f"{where}{name}=")
        for name in _DURATIONS:
            if name in options and not callable(options[name]):
                options[name] = length(options[name], f"{where}{name}")
        for name, least in _COUNTS.items():
            value = options.get(name, least)
            policy = name == "item_retries" and isinstance(value, RetryPolicy)
            if not policy and (not isinstance(value, int) or isinstance(value, bool) or value < least):
                raise UsageError(f"{where}{name}= must be a whole number from {least} up, not {value!r}.")
        object.__setattr__(self, "timeout", length(self.timeout, f"{where}timeout"))
        object.__setattr__(self, "options", options)

    def problems(self) -> list[str]:
        """Return what is wrong with this state by itself, for the list of `Definition.problems`."""
        where = f"State {self.label!r}{at(self)}"
        found = []
        timer = self.kind == "timer" and self.targets and len(self.targets) == 1
        if self.handler is None and not timer and self.kind != "gate":
            found.append(f"{where} has no handler. Define one with @machine.state(...).")
        if self.kind in _WITHOUT_EFFECT and self.compensate is not None:
            why = _WITHOUT_EFFECT[self.kind]
            found.append(
                f"{where} is a {self.kind}, which {why}, but has compensate=. "
                "Give it to the state whose work is to be undone."
            )
        found += [
            f"{where} is a {self.kind} without {name}. Give it a function that {does}."
            for name, does in _PARTS.get(self.kind, ())
            if name not in self.options
        ]
        if self.kind == "stream" and not {"count", "within"} & self.options.keys():
            found.append(
                f"{where} is a stream without count= or within=, so its windows never end. Give one of them."
            )
        if self.kind == "gate" and not isinstance(self.options.get("ask"), Ask):
            found.append(f"{where} is a gate that asks nothing. Define it with machine.gate(...).")
        if self.kind == "timer" and ("after" in self.options) == ("at" in self.options):
            what = "has both after= and at=" if "at" in self.options else "is a timer without after= or at="
            found.append(f"{where} {what}. Give one of the two.")
        for name in self.options:
            kinds = OPTION_KINDS.get(name)
            if kinds is not None and self.kind not in kinds:
                found.append(
                    f"{where} is {self.kind} and has no use for {name}=. Remove it, or make the state "
                    f"{' or '.join(sorted(kinds))}."
                )
        return found


def at(spec: StateSpec) -> str:
    """Return where a state was defined, for a message."""
    return f" ({spec.line})" if spec.line else ""


def _callable(value: object, what: str) -> None:
    if value is not None and not callable(value):
        raise UsageError(f"{what} must be a function, not {value!r}.")
