"""Rates: never more than N in any 60 seconds, and what a provider's headers say about its own.

A bucket of capacity B that fills with r a second lets at most B + 60 r pass in 60 seconds. With B a part of N and
61 r = N − B the limit holds with a second to spare, for calls that travel at different speeds. For whole calls one more
is in it, since the bound is rounded down: 61 r = N − B + 1.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from email.utils import parsedate_to_datetime

WINDOW_S = 61.0
"""A minute, and a second of margin for calls that overtake each other on their way."""
CALL_BURST, TOKEN_BURST = 10, 6
"""The part of a minute's calls, and of its tokens, that may pass at once."""


class Bucket:
    """A share of a rate: `part` calls or tokens a minute. It begins empty; what is earned is taken, or waited for.

    Whoever needs more than the capacity saves up for it (`save`), and pays the excess twice: once for itself, once for
    what the next minute may not have beside it. So the limit holds for large calls as well. A need above the whole
    part is taken for the whole part: such a call goes alone.
    """

    def __init__(self, now: float, *, is_counted: bool) -> None:
        self._is_counted = is_counted
        self.part, self._level, self._at = 0, 0.0, now
        self._pace, self._saving = 1.0, 0.0
        self._measure()

    def _measure(self) -> None:
        if self._is_counted:
            self._capacity = max(1.0, self.part / CALL_BURST) if self.part else 0.0
            self._rate = (self.part + 1 - self._capacity) / WINDOW_S if self.part else 0.0
        else:
            self._capacity = self.part / TOKEN_BURST
            self._rate = (self.part - self._capacity) / WINDOW_S

    def _fill(self, now: float) -> None:
        if now > self._at:
            ceiling = max(self._capacity, self._saving, self._level)
            self._level = min(ceiling, self._level + (now - self._at) * self._rate * self._pace)
            self._at = now

    def resize(self, part: int, now: float, *, is_fresh: bool = False) -> None:
        """Have this many a minute from now on. A share that is gained comes empty, unless nobody had it in the last
        minute (`is_fresh`); one that is given up takes its content along.

        Of whole calls a gain costs one: the limit's rounding counts on shares that stay, and this keeps it true while
        they move.
        """
        self._fill(now)
        before, self.part = self.part, part
        self._measure()
        if part < before:
            self._level *= part / before if self._level > 0 else 1.0
        elif is_fresh:
            self._level = self._capacity
        elif part > before and self._is_counted:
            self._level -= 1.0
        self._level = min(self._level, self._capacity)

    def set_pace(self, pace: float, now: float) -> None:
        """Earn only this part (0 to 1) of the rate."""
        self._fill(now)
        self._pace = pace

    def level(self, now: float) -> float:
        """What can be taken at once; below 0 after more was used than was expected."""
        self._fill(now)
        return self._level

    def full_s(self, now: float) -> float | None:
        """Seconds until as much can be taken at once as ever can; None without a share."""
        self._fill(now)
        if self._rate <= 0:
            return None
        return max(0.0, self._capacity - self._level) / (self._rate * self._pace)

    def wait(self, amount: float, now: float, *, before: float = 0.0) -> float:
        """Seconds until `amount` can be taken after `before` others took theirs; `inf` without a share."""
        self._fill(now)
        short = min(amount, self.part) + before - self._level
        if short <= 1e-9 and self.part:
            return 0.0
        return short / (self._rate * self._pace) if self._rate > 0 else math.inf

    def save(self, amount: float) -> None:
        """Let the content grow up to `amount`, for a call larger than the capacity that is next in line; 0 when it left
        the line, and what was saved for it is gone."""
        self._saving = min(amount, float(self.part))
        self._level = min(self._level, max(self._capacity, self._saving))

    def take(self, amount: float, now: float) -> None:
        """Take it, whether it is there or not: who asks `wait` first never takes more than there is."""
        self._fill(now)
        self._level -= min(amount, self.part) + max(0.0, min(amount, self.part) - self._capacity)
        self._saving = 0.0

    def correct(self, amount: float, now: float) -> None:
        """Give back (above 0), or take (below), what a call used less or more than was expected."""
        self._fill(now)
        self._level = min(max(self._capacity, self._level), self._level + amount)


# ── what providers tell ──


@dataclass(frozen=True, slots=True)
class Told:
    """One limit a minute as its keeper tells it: a provider, or a lane here. None is unsaid."""

    what: str
    """`requests` or `tokens`."""
    limit: int | None
    remaining: int | None
    reset_s: float | None
    """Seconds until it is full again."""


_NAMES = tuple(
    (kind.rpartition("-")[2], tuple(name.format(part) for part in ("limit", "remaining", "reset")))
    for kind in ("requests", "tokens", "input-tokens", "output-tokens")
    for name in ("x-ratelimit-{}-" + kind, f"anthropic-ratelimit-{kind}-{{}}")
)
"""What a limit counts, and the headers that tell it: limit, remaining, reset."""


def read_limits(headers: Mapping[str, str], wall_s: float) -> list[Told]:
    """The limits in a response's headers (names in lower case): OpenAI's `x-ratelimit-…` with durations, Anthropic's
    `anthropic-ratelimit-…` with times, for which `wall_s` is the Unix time now. What cannot be read is left out.

    Source: https://platform.openai.com/docs/guides/rate-limits, https://docs.anthropic.com/en/api/rate-limits
    """
    found: list[Told] = []
    for what, (limit_name, remaining_name, reset_name) in _NAMES:
        if limit_name not in headers and remaining_name not in headers:
            continue
        limit, remaining = _whole(headers.get(limit_name)), _whole(headers.get(remaining_name))
        if limit is not None or remaining is not None:
            found.append(Told(what, limit, remaining, seconds(headers.get(reset_name, ""), wall_s)))
    return found


FORGOTTEN_S = 60.0
"""A limit of which nobody said when it is full again is taken for gone after this."""


def aged(told: Told, elapsed_s: float) -> Told | None:
    """What a limit that was told `elapsed_s` ago says now; None where it is too old to say anything. Past its reset it
    is full again."""
    if told.reset_s is None:
        return told if elapsed_s < FORGOTTEN_S else None
    if elapsed_s < told.reset_s:
        return replace(told, reset_s=told.reset_s - elapsed_s)
    return None if told.limit is None else replace(told, remaining=told.limit, reset_s=0.0)


def tightest(told: Iterable[Told]) -> list[Told]:
    """For each of requests and tokens the limit of which least is left: a provider may count tokens in several ways."""
    found: dict[str, Told] = {}
    for each in told:
        known = found.get(each.what)
        if known is None or _left(each) < _left(known):
            found[each.what] = each
    return list(found.values())


def _left(told: Told) -> float:
    return math.inf if told.remaining is None else told.remaining


def closed_s(told: list[Told]) -> float:
    """How long the provider takes nothing more; 0 where it does not say so."""
    return max((limit.reset_s or 0.0 for limit in told if limit.remaining == 0), default=0.0)


def retry_after(headers: Mapping[str, str], wall_s: float) -> float | None:
    """The delay a provider names in `retry-after-ms` or `retry-after` (seconds, or a time as HTTP writes it)."""
    milliseconds = _real(headers.get("retry-after-ms", ""))
    if milliseconds is not None:
        return milliseconds / 1000
    return seconds(headers.get("retry-after", ""), wall_s)


_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")


def seconds(text: str, wall_s: float) -> float | None:
    """Seconds from now that a header means: a number, a duration (`20ms`, `6m0s`, `1h`), or a time (RFC 3339, or as
    HTTP writes it). Never below 0; None where it is none of these."""
    text = text.strip()
    number = _real(text)
    if number is not None:
        return number
    parts = _DURATION.findall(text)
    if parts and "".join(number + unit for number, unit in parts) == text:
        return sum(float(number) * _UNITS[unit] for number, unit in parts)
    for read in (datetime.fromisoformat, parsedate_to_datetime):
        try:
            at = read(text)
        except ValueError:
            continue
        return max(0.0, at.timestamp() - wall_s) if at.tzinfo is not None else None
    return None


def _real(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if 0 <= value < math.inf else None


def _whole(text: str | None) -> int | None:
    value = _real(text or "")
    return None if value is None else int(value)
