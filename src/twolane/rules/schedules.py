"""Which ticks of a schedule are due: cron expressions of five fields, in UTC, as Debian's cron reads them.

Instants are microseconds of Unix time, given by whoever asks.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import lru_cache
from itertools import islice, takewhile
from typing import NamedTuple

from cronsim import CronSim, CronSimError

COUNTED = 1_000
"""Most missed ticks that are counted: a schedule of every minute misses half a million in a year."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_SECOND = timedelta(seconds=1)


class Tick(NamedTuple):
    """One time at which a schedule starts a run."""

    schedule: str
    at_us: int

    @property
    def instant(self) -> str:
        """As people write it, in UTC."""
        return instant(self.at_us)


class Due(NamedTuple):
    """The tick to start a run for, and how many before it are skipped."""

    at_us: int
    missed: int
    """At most `COUNTED`, which then stands for that many or more."""


def check_cron(cron: str) -> str:
    """The expression with single spaces, if it is one that comes to pass.

    Raises:
        ValueError: it is not; what is wrong is said.
    """
    fields = cron.split()
    if len(fields) != 5:
        raise ValueError(f"{cron!r} has {len(fields)} fields; write five: minute hour day-of-month month day-of-week")
    plain = " ".join(fields)
    try:
        is_ever = next_tick(plain, 0) is not None
    except CronSimError as error:
        raise ValueError(f"{cron!r} is no cron expression: {str(error).lower()}") from None
    if not is_ever:
        raise ValueError(f"{cron!r} never comes: no day is like that")
    return plain


@lru_cache(maxsize=1024)
def next_tick(cron: str, after_us: int) -> int | None:
    """The first tick after an instant; None where none comes within fifty years."""
    found = next(CronSim(cron, _at(after_us)), None)
    return None if found is None else _us(found)


def due_tick(cron: str, *, since_us: int, now_us: int) -> Due | None:
    """The newest tick after `since_us` and not after `now_us`, with the number of those that it leaves behind."""
    first = next_tick(cron, since_us)
    if first is None or first > now_us:
        return None
    backwards = (_us(tick) for tick in CronSim(cron, _at(now_us).replace(microsecond=0) + _SECOND, reverse=True))
    ticks = list(islice(takewhile(lambda tick: tick > since_us, backwards), COUNTED + 1))
    return Due(ticks[0], len(ticks) - 1)


def instant(us: int) -> str:
    """An instant as people write it, in UTC."""
    return _at(us).strftime("%Y-%m-%dT%H:%M:%SZ")


def _at(us: int) -> datetime:
    return _EPOCH + timedelta(microseconds=us)


def _us(at: datetime) -> int:
    return (at - _EPOCH) // timedelta(microseconds=1)
