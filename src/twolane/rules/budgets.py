"""May this be held? Arithmetic over a chain of budgets; and the windows their periods fall into."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from datetime import UTC, datetime


@dataclass(frozen=True, slots=True)
class Account:
    """A budget's limit and what is spent and held in its current window. None is no limit. Money in picounits."""

    scope: str
    window: str
    limit_pico: int | None
    limit_tokens: int | None
    spent_pico: int = 0
    held_pico: int = 0
    spent_tokens: int = 0
    held_tokens: int = 0
    leased_pico: int = 0
    """What of the held part lies in blocks of processes; known only where it was asked for."""
    leased_tokens: int = 0

    def left_pico(self) -> int | None:
        """What can still be held, never below 0."""
        return None if self.limit_pico is None else max(0, self.limit_pico - self.spent_pico - self.held_pico)

    def left_tokens(self) -> int | None:
        """The same in tokens."""
        return None if self.limit_tokens is None else max(0, self.limit_tokens - self.spent_tokens - self.held_tokens)

    def carries(self, pico: int, tokens: int) -> bool:
        """True where this can still be held."""
        money, count = self.left_pico(), self.left_tokens()
        return (money is None or pico <= money) and (count is None or tokens <= count)

    def may_carry(self, pico: int, tokens: int) -> bool:
        """True where this could be held if all that is held now came back."""
        return replace(self, held_pico=0, held_tokens=0).carries(pico, tokens)


def left(accounts: list[Account]) -> tuple[int | None, int | None]:
    """What the whole chain can still hold: (picounits, tokens); None where nothing limits."""
    picos = [value for account in accounts if (value := account.left_pico()) is not None]
    tokens = [value for account in accounts if (value := account.left_tokens()) is not None]
    return min(picos, default=None), min(tokens, default=None)


def first_short(accounts: list[Account], *, pico: int, tokens: int) -> tuple[Account, str] | None:
    """The first account, widest scope first, that cannot hold this, and in which dimension ("money" or "tokens")."""
    for account in accounts:
        money, count = account.left_pico(), account.left_tokens()
        if money is not None and pico > money:
            return account, "money"
        if count is not None and tokens > count:
            return account, "tokens"
    return None


def window(period: str, now_us: int) -> str:
    """The window of `period` (day, month, total) that holds this instant, in UTC."""
    return _window(period, now_us // _DAY_US)


_DAY_US = 86_400_000_000


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


SHARE = 100
"""A block's free part is at most this part of what its budget has left: 1 %. It is booked whole after a crash."""


def block_size(left: int | None, *, wanted: int, smallest: int) -> int | None:
    """How much a process may keep at hand of a budget that has `left` (what is at hand already counted in): what it
    `wanted`, at most 1 %, and nothing where that carries not even the `smallest` call. None where nothing limits."""
    if left is None:
        return None
    most = left // SHARE
    return min(wanted, most) if most >= smallest else 0


def next_day_us(now_us: int) -> int:
    """When the next day begins in UTC: no window changes before it."""
    return (now_us // _DAY_US + 1) * _DAY_US
