"""May this be held? Arithmetic over a chain of budgets; and the windows their periods fall into."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import NamedTuple

from twolane.domain.money import MAX_PICO
from twolane.errors import UsageError

_new = tuple.__new__
"""A named tuple's own constructor takes twice as long."""


class Amount(NamedTuple):
    """What calls use, or may use, of a budget: a figure for each dimension that a budget can limit. Written out where
    it is added and compared: a hold does so several times for every budget of its chain."""

    pico: int = 0
    """Money, in picounits."""
    tokens: int = 0
    """Input and output together."""
    calls: int = 0
    """Attempts that left the house."""
    us: int = 0
    """Microseconds in flight."""
    accelerator_us: int = 0
    """The same times the accelerators of the upstream, divided by its slots."""

    def plus(self, other: Amount) -> Amount:
        """Both together."""
        a, b, c, d, e = other
        return _new(Amount, (self[0] + a, self[1] + b, self[2] + c, self[3] + d, self[4] + e))

    def minus(self, other: Amount) -> Amount:
        """The difference, which may be negative."""
        a, b, c, d, e = other
        return _new(Amount, (self[0] - a, self[1] - b, self[2] - c, self[3] - d, self[4] - e))

    def above(self, other: Amount) -> Amount:
        """What this has more than the other, never negative."""
        less = self.minus(other)
        a, b, c, d, e = less
        if a >= 0 and b >= 0 and c >= 0 and d >= 0 and e >= 0:
            return less
        return _new(Amount, (max(0, a), max(0, b), max(0, c), max(0, d), max(0, e)))

    def fits(self, other: Amount) -> bool:
        """True where the other has at least as much of everything."""
        a, b, c, d, e = other
        return self[0] <= a and self[1] <= b and self[2] <= c and self[3] <= d and self[4] <= e

    def least(self, other: Amount) -> Amount:
        """The smaller figure of each dimension."""
        return self if self.fits(other) else other if other.fits(self) else Amount(*map(min, self, other))

    def most(self, other: Amount) -> Amount:
        """The larger figure of each dimension."""
        return other if self.fits(other) else self if other.fits(self) else Amount(*map(max, self, other))


NOTHING = Amount()


class Ceiling(NamedTuple):
    """The most of each dimension; None is no limit. See `Amount`."""

    pico: int | None = None
    tokens: int | None = None
    calls: int | None = None
    us: int | None = None
    accelerator_us: int | None = None

    def lower(self, other: Ceiling) -> Ceiling:
        """The tighter of both in each dimension."""
        pairs = zip(self, other, strict=True)
        return Ceiling(*[a if b is None else b if a is None else min(a, b) for a, b in pairs])

    def cut(self, amount: Amount) -> Amount:
        """What of an amount counts here: nothing in a dimension that has no limit."""
        a, b, c, d, e = self
        of_a, of_b, of_c, of_d, of_e = amount
        limited = (
            0 if a is None else of_a,
            0 if b is None else of_b,
            0 if c is None else of_c,
            0 if d is None else of_d,
            0 if e is None else of_e,
        )
        return _new(Amount, limited)

    @property
    def is_limit(self) -> bool:
        """Anything is limited."""
        return any(most is not None for most in self)

    @property
    def is_timed(self) -> bool:
        """Time is limited: what nobody can bound before the call."""
        return self.us is not None or self.accelerator_us is not None

    @property
    def is_closed(self) -> bool:
        """A limit of 0 admits nothing, not even what costs nothing."""
        return 0 in self


@dataclass(frozen=True, slots=True)
class Account:
    """A budget's limit and what is spent and held in its current window."""

    scope: str
    window: str
    limit: Ceiling
    spent: Amount = NOTHING
    held: Amount = NOTHING
    leased: Amount = NOTHING
    """What of the held part lies in blocks of processes; known only where it was asked for."""

    def left(self) -> Ceiling:
        """What can still be held, never below 0; None where nothing limits."""
        sums = zip(self.limit, self.spent, self.held, strict=True)
        return Ceiling(*[None if most is None else max(0, most - spent - held) for most, spent, held in sums])

    def short_of(self, asked: Amount) -> str | None:
        """The first dimension in which this can no longer be held; None where it can."""
        for name, most, spent, held, more in zip(Amount._fields, self.limit, self.spent, self.held, asked, strict=True):
            if most is not None and ((more and spent + held + more > most) or most == 0):
                return name
        return None

    def may_carry(self, asked: Amount) -> bool:
        """True where this could be held if all that is held now came back."""
        return replace(self, held=NOTHING).short_of(asked) is None


def left(accounts: Iterable[Account]) -> Ceiling:
    """What the whole chain can still hold; None where nothing limits."""
    return functools.reduce(Ceiling.lower, (account.left() for account in accounts), Ceiling())


SLICE_US, SHORTEST_US = 30_000_000, 1_000_000
"""A call holds time in slices: an eighth of what is left, between these, so that many fit beside each other."""
LEAST_US = 500_000
"""With less no call begins."""
CUT_US = 200_000
"""A call is cut off so long before its held time is used up: what a timer may be late, and a socket takes to close."""


def slice_us(chain: Iterable[Account], *, accelerators: int, slots: int) -> int:
    """How long a call may be in flight on what it holds first, or next; 0 where nothing limits time. It fits into what
    is left, unless that is less than `LEAST_US`."""
    timed = [account for account in chain if account.limit.is_timed]
    if not timed:
        return 0
    us, accelerator_us = left(timed)[3:]
    found = [] if us is None else [_slice(us)]
    if accelerator_us is not None and accelerators:
        found.append(_slice(accelerator_us * slots // accelerators))
    return max(LEAST_US, min(found)) if found else 0


def _slice(left_us: int) -> int:
    return min(left_us, max(SHORTEST_US, min(SLICE_US, left_us // 8)))


MOST_COUNT = 2**53
"""A limit is written into the ledger, whose integers end there."""
_SECONDS = re.compile(r"([0-9]{1,13})(?:\.([0-9]{1,6}))?")
_WHOLE = re.compile(r"[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+")


def read_seconds(text: str) -> int:
    """Microseconds of "90" or "1.5".

    Raises:
        UsageError: not a plain number, negative, finer than a microsecond, or more than 64 bits of them.
    """
    match = _SECONDS.fullmatch(text.strip())
    if match is None or (us := int(match[1]) * 1_000_000 + int((match[2] or "").ljust(6, "0"))) > MAX_PICO:
        raise UsageError(
            f"{text[:40]!r} is not a number of seconds", hint="Write 90 or 1.5: digits, up to 9.2 million million"
        )
    return us


def read_count(text: str, what: str) -> int:
    """A count of `what`, such as "50000" or "50,000".

    Raises:
        UsageError: not a whole number in digits, negative, or not below 2⁵³.
    """
    plain = text.strip()
    if not _WHOLE.fullmatch(plain) or len(plain) > 25 or (count := int(plain.replace(",", ""))) >= MOST_COUNT:
        raise UsageError(
            f"{text[:40]!r} is not a number of {what}", hint="Write digits, like 50000: whole, not negative, below 2^53"
        )
    return count


def seconds_string(us: int) -> str:
    """Microseconds as a decimal string of seconds: 1_500_000 → "1.5"."""
    return f"{us // 1_000_000}.{us % 1_000_000:06d}".rstrip("0").removesuffix(".")


def window(period: str, now_us: int) -> str:
    """The window of `period` (day, month, total) that holds this instant, in UTC."""
    return _window(period, now_us // DAY_US)


DAY_US = 86_400_000_000


@functools.lru_cache(maxsize=64)
def _window(period: str, day: int) -> str:
    instant = datetime.fromtimestamp(day * 86_400, UTC)
    match period:
        case "day":
            return f"{instant:%Y-%m-%d}"
        case "month":
            return f"{instant:%Y-%m}"
        case _:
            return "total"


def first_day(period: str, now_us: int) -> str:
    """The first day of that window; the empty string, which sorts before every day, for total."""
    day = window("day", now_us)
    match period:
        case "day":
            return day
        case "month":
            return day[:8] + "01"
        case _:
            return ""


END = "9999-12-31"
"""No day is later."""


def last_day(period: str, now_us: int) -> str:
    """The last day of that window, or one that is in none."""
    day = window("day", now_us)
    return {"day": day, "month": day[:8] + "31"}.get(period, END)


SHARE = 100
"""A block's free part is at most this part of what its budget has left: 1 %. It is booked whole after a crash."""


def block_size(left: int | None, *, wanted: int, smallest: int) -> int | None:
    """How much a process may keep at hand of a budget that has `left` (what is at hand already counted in): what it
    `wanted`, at most 1 %, and nothing where that carries not even the `smallest` call. None where nothing limits."""
    if left is None:
        return None
    most = left // SHARE
    return min(wanted, most) if most >= smallest else 0
