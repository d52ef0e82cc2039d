"""Rate limits as data and transitions: token buckets, several at once. Pure: time is an argument.

Each tier ("10/s") is a bucket of so many tokens that fills evenly; a call takes
one token of every tier or none at all. What is kept is what is missing in each
bucket, by the tier's own text, so tiers may come and go while the state stays.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeGuard

from nbflow.core.errors import UsageError
from nbflow.core.model import Struct
from nbflow.core.numbers import count, finite

_UNITS = {
    **dict.fromkeys(("s", "sec", "second"), 1.0),
    **dict.fromkeys(("m", "min", "minute"), 60.0),
    **dict.fromkeys(("h", "hour"), 3600.0),
    **dict.fromkeys(("d", "day"), 86400.0),
    **dict.fromkeys(("w", "week"), 604800.0),
}
_TEXT = re.compile(r"(\d+)\s*/\s*(\d+(?:\.\d+)?)?\s*([a-z]+)")

#: Clocks of several threads and small corrections of the time differ by less than this (seconds).
JITTER = 1.0
#: Part of a token that rounding may lack.
_EPSILON = 1e-9
#: What a time since 1970 cannot tell apart in 64 bits (seconds), rounded up.
_TICK = 1e-6


@dataclass(frozen=True)
class Tier:
    """`number` calls per `seconds`; at most `burst` at once. `text` names it in refusals.

    >>> tier = Tier.of("500/min")
    >>> tier.number, tier.seconds, tier.burst
    (500, 60.0, 500)
    """

    text: str
    number: int
    seconds: float
    burst: int

    @classmethod
    def of(cls, tier: object) -> Tier:
        """Read "10/s", "500/min", "3/10s" or (n, seconds).

        Raises:
            UsageError: it is none of these, or not above zero.
        """
        if isinstance(tier, Tier):
            return tier
        if isinstance(tier, str):
            match = _TEXT.fullmatch(tier.strip())
            if match is None or match[3] not in _UNITS:
                raise UsageError(
                    f"{tier!r} is not a rate.",
                    hint='Write "10/s", "500/min", "10000/day", "3/10s" or (3, 10).',
                )
            number: object = int(match[1]) if len(match[1]) < 20 else match[1]
            per: object = float(match[2] or 1) * _UNITS[match[3]]
            text = tier.strip()
        elif _is_pair(tier):
            number, per = tier
            text = f"{number}/{per:g}s" if isinstance(per, (int, float)) else ""
        else:
            raise UsageError(f'A rate is text such as "10/s" or a pair (n, seconds), not {tier!r}.')
        calls = count(f"The number of calls of {tier!r}", number, least=1)
        return cls(text, calls, finite(f"The time of {tier!r}", per, above_zero=True), calls)


def tiers(given: Sequence[object], burst: object = None) -> tuple[Tier, ...]:
    """Read tiers; `burst` is what the tier of the shortest time allows at once, in place of its number.

    Raises:
        UsageError: none at all, one twice, or one that makes no sense.

    >>> [tier.burst for tier in tiers(["10/s", "500/min"], burst=2)]
    [2, 500]
    """
    found = [Tier.of(tier) for tier in given]
    if not found:
        raise UsageError("A rate limit needs a rate.", hint='As in RateLimit("10/s", "500/min").')
    if len({tier.text for tier in found}) < len(found):
        raise UsageError(f"A rate is given twice: {', '.join(tier.text for tier in found)}.")
    if burst is not None:
        most = count("burst", burst, least=1)
        place = min(range(len(found)), key=lambda index: found[index].seconds)
        first = found[place]
        found[place] = Tier(first.text, first.number, first.seconds, most)
    return tuple(found)


class Bucket(Struct, frozen=True):
    """What was missing in one bucket (tokens) at the instant `at` (UTC seconds)."""

    at: float
    missing: float


class Buckets(Struct, frozen=True):
    """The buckets by the text of their tier; one that is not here is full."""

    by_tier: dict[str, Bucket] = {}  # noqa: RUF012 - msgspec gives each its own


class Refusal(Struct, frozen=True):
    """No token now: `tier` is the one that takes longest, `retry_after` the seconds until all have one."""

    tier: str
    retry_after: float


def take(limits: Sequence[Tier], state: Buckets, now: float) -> tuple[Buckets, Refusal | None]:
    """Take a token of every tier, or of none; a refusal leaves the state alone.

    >>> limits = tiers(["2/s", "3/min"])
    >>> state = Buckets()
    >>> for now in (0.0, 0.1, 0.2):
    ...     state, refusal = take(limits, state, now)
    >>> refusal.tier, round(refusal.retry_after, 3)
    ('2/s', 0.3)
    """
    found = _filled(limits, state, now)
    refusal = _lacking(limits, found)
    if refusal is None:
        return _with(state, limits, found, -1), None
    # Only a clock that was set back is worth a note: the buckets fill from here on.
    was_set = any(now < bucket.at - JITTER for bucket in state.by_tier.values())
    return (_with(state, limits, found, 0) if was_set else state), refusal


def reserve(limits: Sequence[Tier], state: Buckets, now: float) -> tuple[Buckets, float]:
    """Take a token of every tier that may still have to drip; return the seconds until it is there.

    Whoever reserves first is served first, so no waiting call starves.

    >>> limits = tiers(["1/s"])
    >>> state, first = reserve(limits, Buckets(), 0.0)
    >>> first, round(reserve(limits, state, 0.0)[1], 3)
    (0.0, 1.0)
    """
    found = _filled(limits, state, now)
    refusal = _lacking(limits, found)
    return _with(state, limits, found, -1), refusal.retry_after if refusal is not None else 0.0


def give_back(limits: Sequence[Tier], state: Buckets) -> Buckets:
    """Put one token of every tier back, of a call that was not made.

    >>> limits = tiers(["1/min"])
    >>> state, _ = take(limits, Buckets(), 0.0)
    >>> take(limits, give_back(limits, state), 0.0)[1] is None
    True
    """
    held = [state.by_tier[tier.text] for tier in limits if tier.text in state.by_tier]
    return _with(state, [tier for tier in limits if tier.text in state.by_tier], held, 1)


def _filled(limits: Sequence[Tier], state: Buckets, now: float) -> list[Bucket]:
    """Return the tiers' buckets as they are now.

    A clock that is a little behind (another thread was faster) fills nothing and
    counts nothing twice. One that was set back for good starts from there, with
    the buckets as they were: nothing is minted, and nobody waits for the old time.
    """
    found = []
    for tier in limits:
        bucket = state.by_tier.get(tier.text)
        if bucket is None:
            found.append(Bucket(now, 0.0))
            continue
        passed = max(0.0, now - bucket.at)
        at = bucket.at if 0 < bucket.at - now <= JITTER else now
        found.append(Bucket(at, max(0.0, bucket.missing - passed * tier.number / tier.seconds)))
    return found


def _lacking(limits: Sequence[Tier], found: Sequence[Bucket]) -> Refusal | None:
    worst: Refusal | None = None
    for tier, bucket in zip(limits, found, strict=True):
        lack = bucket.missing + 1 - tier.burst
        if lack > _EPSILON:
            wait = lack * tier.seconds / tier.number + _TICK
            if worst is None or wait > worst.retry_after:
                worst = Refusal(tier.text, wait)
    return worst


def _with(state: Buckets, limits: Sequence[Tier], found: Sequence[Bucket], tokens: float) -> Buckets:
    """Put so many tokens into the tiers' buckets; others (an older setting of the limit) stay as they are."""
    changed = {
        tier.text: Bucket(bucket.at, max(0.0, bucket.missing - tokens))
        for tier, bucket in zip(limits, found, strict=True)
    }
    return Buckets({**state.by_tier, **changed})


def _is_pair(value: object) -> TypeGuard[tuple[object, object]]:
    return isinstance(value, (tuple, list)) and len(value) == 2
