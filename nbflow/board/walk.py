"""Which way a run took through a machine: read from its states' records. Pure.

A line of states is followed as `core/line.py` does; here every visit counts,
not only the newest. Routers record nothing: which of them lay on the way is
found in the outline. A join is no state: its branches lead to what follows it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise

from nbflow.board.tally import Shown, Tally
from nbflow.core import line as lines
from nbflow.core.history import Execution, History
from nbflow.core.outline import Outline

Pair = tuple[str, str]

_JOIN = "join"


@dataclass
class Walk:
    """What a run did to each state, how often each arrow was taken, and where it is now."""

    tallies: dict[str, Tally] = field(default_factory=dict)
    taken: Counter[Pair] = field(default_factory=Counter)
    #: Items by state, of the newest visit of a state that has any.
    items: dict[str, dict[str, int]] = field(default_factory=dict)
    current: set[str] = field(default_factory=set)


def walk_of(history: History, outline: Outline, seen: Shown) -> Walk:
    """Follow a run through the states of its machine."""
    walk = Walk()
    found, gone = _lines(history)
    _count(history, found, gone, seen, walk)
    routers = _Routers(outline, walk)
    coming = None
    for name, steps in found.items():
        states = [step for step in steps.values() if step.number not in gone]
        end = _follow(name, states, history, routers)
        coming = end if name == "" else coming
    walk.current = {label for label, tally in walk.tallies.items() if tally.open}
    if not walk.current:
        main = [step for step in found.get("", {}).values() if step.number not in gone]
        if coming is not None:
            walk.current = {coming}
        elif main and not _is_join(main[-1]):
            walk.current = {main[-1].started.name}  # it ended there: the final state, or the one that failed
    return walk


def _lines(history: History) -> tuple[dict[str, dict[str, Execution]], set[int]]:
    """Return the newest execution of each step by line, and the executions that no longer count (see `read_lines`)."""
    found: dict[str, dict[str, Execution]] = {}
    gone: set[int] = set()
    cuts: dict[str, int] = {}
    for execution in history.executions.values():
        started = execution.started
        if started.step_kind != lines.STATE or started.detail.get(lines.KIND) == lines.MIGRATION:
            continue
        name = str(started.detail.get(lines.LINE, ""))
        if execution.forgotten:
            cuts[name] = max(cuts.get(name, 0), execution.forgotten_at)
            gone.add(execution.number)
        elif execution.number < cuts.get(name, 0):
            gone.add(execution.number)
        found.setdefault(name, {})[started.step] = execution
    return found, gone


def _count(
    history: History, found: dict[str, dict[str, Execution]], gone: set[int], seen: Shown, walk: Walk
) -> None:
    """Add up the visits of each state; what it is now say its newest visit, or all branches of the newest split."""
    groups: dict[str, dict[str | None, Tally]] = {}
    label_of: dict[str, str] = {}
    items: dict[str, Tally] = {}
    for execution in history.executions.values():
        started = execution.started
        if started.step_kind == "item" and started.parent in label_of:
            items.setdefault(str(started.parent), Tally()).add(execution, seen.state(execution))
        if started.step_kind != lines.STATE or _is_join(execution):
            continue
        if started.step not in found.get(str(started.detail.get(lines.LINE, "")), ()):
            continue
        state = "pending" if execution.number in gone else seen.state(execution)
        of_label = groups.setdefault(started.name, {})
        group = of_label.pop(started.parent, None) or Tally()
        of_label[started.parent] = group  # the newest is the last
        group.add(execution, state)
        label_of[started.step] = started.name
    for label, of_label in groups.items():
        settled = {parent: group.settle(newest=parent is None) for parent, group in of_label.items()}
        parent, group = settled.popitem()
        walk.tallies[label] = group.with_earlier(settled.values())
        counted = [step for step in group.steps if step in items]
        if counted:
            walk.items[label] = items[counted[-1]].counts()
        elif parent is not None and len(group.steps) > 1:
            walk.items[label] = group.counts()


def _follow(
    name: str,
    states: list[Execution],
    history: History,
    routers: _Routers,
) -> str | None:
    """Count the arrows that one line took; return the state that comes next on it and was not entered yet."""
    if not states:
        return None
    split = _split_of(name, states[0], history)
    if split is not None:
        before, begin, _ = split
        routers.went(before, begin, states[0].started.name)
    coming = None
    for one, after in zip(states, [*states[1:], None], strict=True):
        if _is_join(one) or one.completed is None or lines.SPLIT in one.completed.detail:
            if _is_join(one) and one.completed is not None and after is None:
                coming = _label(one.completed.detail.get(lines.NEXT))
            continue
        following = _label(one.completed.detail.get(lines.NEXT))
        if after is not None and not _is_join(after):
            routers.went(one.started.name, following or after.started.name, after.started.name)
        elif split is not None:
            routers.went(one.started.name, following or split[2], split[2])
        elif following is not None:
            routers.went(one.started.name, following, following)
            coming = following
    return coming


def _split_of(name: str, first: Execution, history: History) -> tuple[str, str, str] | None:
    """Return which state split into this line, with which state it began, and where it joins; None for the main one."""
    join = history.latest(first.started.parent) if name and first.started.parent else None
    if join is None or lines.SPLIT not in join.started.detail:
        return None
    split = join.started.detail[lines.SPLIT]
    branch = name.removeprefix(f"{join.started.step}/")
    begin = next((str(label) for one, label in split["branches"] if str(one) == branch), first.started.name)
    outer = str(join.started.detail.get(lines.LINE, ""))
    source = _splitting(outer, join, history)
    return None if source is None else (source, begin, str(split["to"]))


def _splitting(outer: str, join: Execution, history: History) -> str | None:
    """Return the label of the state whose task returned the split that ends in this join."""
    before = None
    for execution in history.executions.values():
        if execution.number >= join.number:
            break
        started = execution.started
        if (
            started.step_kind == lines.STATE
            and not _is_join(execution)
            and str(started.detail.get(lines.LINE, "")) == outer
        ):
            before = started.name
    return before


def _is_join(execution: Execution) -> bool:
    return bool(execution.started.detail.get(lines.KIND) == _JOIN)


def _label(value: object) -> str | None:
    return None if value is None else str(value)


class _Routers:
    """Finds the routers that lay between two recorded states, and counts the arrows."""

    def __init__(self, outline: Outline, walk: Walk) -> None:
        self._walk = walk
        self._routers = {label for label, kind in outline.kinds.items() if kind == "router"}
        self._after: dict[str, list[str | None]] = defaultdict(list)
        for source, target, _ in outline.arrows:
            self._after[source].append(target)

    def went(self, source: str, chosen: str, target: str) -> None:
        """Count a way from `source`, which chose `chosen`, to where the run was next."""
        way = [source, *self._between(chosen, target)]
        for label in way[1:-1]:
            tally = self._walk.tallies.setdefault(label, Tally())
            tally.visits += 1
            tally.attempts += 1
            tally.state = "completed"
        self._walk.taken.update(pairwise(way))

    def _between(self, begin: str, goal: str) -> list[str]:
        if begin == goal or begin not in self._routers:
            return [goal]  # a migration may have led elsewhere than the task had
        came: dict[str, str | None] = {begin: None}
        waiting = [begin]
        while waiting:
            label = waiting.pop(0)
            for target in self._after[label]:
                if target in (goal, None):
                    return [*reversed(list(_back(label, came))), goal]
                if target in self._routers and target not in came:
                    came[str(target)] = label
                    waiting.append(str(target))
        return [begin, goal]


def _back(label: str | None, came: dict[str, str | None]) -> Iterator[str]:
    while label is not None:
        yield label
        label = came[label]
