"""Timers: what is left of a wait, whatever the clocks say."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbflow.core.errors import UsageError
from nbflow.core.timers import Timer, instant
from nbflow.store.system_clock import SystemClock

HOUR = 3600.0
BERLIN = ZoneInfo("Europe/Berlin")

seconds = st.floats(0, 1e6)
shifts = st.floats(-2 * HOUR, 2 * HOUR)


@pytest.fixture
def _local_berlin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Make Berlin the local time zone of this process."""
    if not hasattr(time, "tzset"):
        pytest.skip("the local zone cannot be set here")
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


# Relative -----------------------------------------------------------------------------------------


@given(length=seconds, passed=seconds, shift=shifts)
def test_in_one_boot_a_wait_takes_its_length_whatever_the_wall_clock_does(
    length: float, passed: float, shift: float
) -> None:
    """The boot clock decides, so setting the wall clock changes nothing."""
    timer = Timer.after(length, now=1e9, boot=("b", 50.0))

    assert timer.left(1e9 + passed + shift, ("b", 50.0 + passed)) == pytest.approx(length - passed, abs=1e-3)


@given(length=seconds, passed=seconds, shift=shifts)
def test_after_a_reboot_the_wall_clock_decides_but_never_lengthens(
    length: float, passed: float, shift: float
) -> None:
    """A clock that was set back makes nobody wait longer than the whole length."""
    timer = Timer.after(length, now=1e9, boot=("b", 50.0))

    for boot in (("c", 3.0), None):
        left = timer.left(1e9 + passed + shift, boot)
        assert left <= length
        assert left == pytest.approx(min(length - passed - shift, length), abs=1e-3)


@given(length=seconds)
def test_a_boot_clock_that_went_back_never_lengthens(length: float) -> None:
    """A virtual machine that is put back to an earlier state may show a younger boot."""
    assert Timer.after(length, now=1e9, boot=("b", 50.0)).left(1e9, ("b", 0.0)) <= length


@given(
    length=seconds,
    lives=st.lists(st.tuples(st.floats(0, 1e5), shifts, st.booleans()), max_size=6),
)
def test_a_clock_that_was_set_misleads_a_wait_once_at_most(
    length: float, lives: list[tuple[float, float, bool]]
) -> None:
    """Resumed again and again in one boot, a wait takes its length; a reboot adds at most what was left."""
    wall, boots, age, passed = 1e9, 0, 50.0, 0.0
    timer = Timer.after(length, wall, (str(boots), age))
    rebooted = 0
    for span, shift, reboot in lives:
        wall, age, passed = wall + span + shift, age + span, passed + span
        before = timer.left(wall - span - shift, (str(boots), age - span))
        if reboot:
            boots, age, rebooted = boots + 1, 0.0, rebooted + 1
        timer = timer.resumed(wall, (str(boots), age))
        left = timer.left(wall, (str(boots), age))
        assert left <= before + 1e-3
        if not rebooted:
            assert left == pytest.approx(length - passed, abs=1e-3)


# Absolute -----------------------------------------------------------------------------------------


@given(due=st.floats(1e9, 2e9), now=st.floats(1e9, 2e9))
def test_an_absolute_wait_goes_by_the_wall_clock(due: float, now: float) -> None:
    """No other clock has a say."""
    assert Timer(due).left(now, ("b", 1.0)) == due - now


@given(
    due=st.floats(0, 2e9),
    length=st.none() | seconds,
    boot=st.none() | st.tuples(st.text(min_size=1), seconds),
    rest=st.none() | seconds,
)
def test_a_timer_comes_back_from_its_record(
    due: float, length: float | None, boot: tuple[str, float] | None, rest: float | None
) -> None:
    """What `StepStarted.detail` holds is all there is to know."""
    timer = Timer(due, length, boot, rest)

    assert timer == Timer.of(timer.detail())
    assert Timer.of({}) is None


# Instants -----------------------------------------------------------------------------------------


def test_an_hour_that_comes_twice_is_told_apart_by_fold() -> None:
    """02:30 on the last Sunday of October is there twice in Berlin, an hour apart."""
    first = datetime(2026, 10, 25, 2, 30, tzinfo=BERLIN)

    assert datetime(2026, 10, 25, 0, 30, tzinfo=UTC).timestamp() == instant(first)
    assert instant(first) + HOUR == instant(first.replace(fold=1))


def test_an_hour_that_is_skipped_counts_by_the_offset_before() -> None:
    """02:30 on the last Sunday of March does not exist in Berlin; it is 03:30 there (PEP 495)."""
    skipped = datetime(2026, 3, 29, 2, 30, tzinfo=BERLIN)

    assert instant(datetime(2026, 3, 29, 3, 30, tzinfo=BERLIN)) == instant(skipped)
    assert datetime(2026, 3, 29, 1, 30, tzinfo=UTC).timestamp() == instant(skipped)


@pytest.mark.usefixtures("_local_berlin")
def test_a_datetime_without_a_zone_is_local_time() -> None:
    """With the same rules for the hours that are skipped or come twice."""
    for when in (
        datetime(2026, 3, 29, 2, 30),  # noqa: DTZ001 - local time is what this is about
        datetime(2026, 10, 25, 2, 30),  # noqa: DTZ001
        datetime(2026, 10, 25, 2, 30, fold=1),  # noqa: DTZ001
        datetime(2026, 7, 1, 12),  # noqa: DTZ001
    ):
        assert instant(when.replace(tzinfo=BERLIN)) == instant(when)


@given(st.datetimes(datetime(1971, 1, 1), datetime(2100, 1, 1), timezones=st.just(BERLIN)))  # noqa: DTZ001
def test_every_datetime_with_a_zone_is_one_instant(when: datetime) -> None:
    """The same one in any other zone."""
    assert instant(when.astimezone(UTC)) == instant(when)


@pytest.mark.parametrize(
    "when", [math.nan, math.inf, -math.inf, True, "tomorrow", None, timedelta(1), 10**400]
)
def test_what_is_no_instant_is_refused(when: object) -> None:
    """NaN and infinity as well."""
    with pytest.raises(UsageError, match="no instant"):
        instant(when)  # type: ignore[arg-type]


def test_a_datetime_out_of_range_is_refused() -> None:
    """An error of ours, not of the C library."""
    with pytest.raises(UsageError, match="out of range"):
        instant(datetime.min)


# The machine's own clock --------------------------------------------------------------------------


def test_the_system_clock_never_goes_back_and_knows_its_boot() -> None:
    """Two looks at the monotonic and at the boot clock agree on what has passed."""
    clock = SystemClock()
    before, boot = clock.monotonic(), clock.boot()
    clock.sleep(0.01)
    after, later = clock.monotonic(), clock.boot()

    assert after - before >= 0.009
    if boot is None:
        pytest.skip("this system does not tell its boots apart")
    assert later is not None
    assert boot[0] == later[0]
    assert later[1] - boot[1] >= 0.009
