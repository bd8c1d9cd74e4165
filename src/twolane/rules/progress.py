"""How fast a run goes and how long it still takes, from what was seen of it and from its forecast; else unknown."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from twolane.rules.forecast import Span

WINDOW_S = 60.0
"""How far back a rate looks."""
ENOUGH = 20
"""Items that must have ended in the window before their rate is believed more than the forecast."""
FEW = 5
"""Fewer tell nothing."""
_Z90 = 1.645


@dataclass(frozen=True, slots=True)
class Sighting:
    """What had ended at an instant of a monotonic clock."""

    at_s: float
    items: int
    steps: int


@dataclass(frozen=True, slots=True)
class Speed:
    """What ended within `seconds`."""

    items: int
    steps: int
    seconds: float

    @property
    def items_per_s(self) -> float:
        """Items done or in quarantine."""
        return self.items / self.seconds

    @property
    def steps_per_s(self) -> float:
        """Steps answered, from an upstream or from a memo."""
        return self.steps / self.seconds


def speed(seen: Sequence[Sighting]) -> Speed | None:
    """Between the oldest sighting of the window and the newest; None before a second has passed."""
    if not seen:
        return None
    last = seen[-1]
    first = next((each for each in seen if last.at_s - each.at_s <= WINDOW_S), last)
    seconds = last.at_s - first.at_s
    return None if seconds < 1 else Speed(last.items - first.items, last.steps - first.steps, seconds)


def left(
    *, status: str, items: int, now: Speed | None, forecast_s: Span | None, elapsed_s: float
) -> tuple[Span | None, str]:
    """Seconds until a run with `items` to go has ended, as a 90 % interval; or None. And what it rests on, in words.

    The rate of items that end is taken for a Poisson process: of n that ended, the share of chance in what the rest
    takes is 1.645 · √(1/n + 1/items). Where too few have ended the forecast of the whole counts, less the time at work.
    """
    if status in ("done", "stopped", "failed"):
        return None, "it has ended"
    if status != "running":
        return None, "it waits for a worker" if status == "queued" else f"it is {status}"
    if items == 0:
        return None, "its last items have ended"
    ended = 0 if now is None else now.items
    if now is not None and ended >= ENOUGH:
        return _by_speed(now, items), "the rate of its items"
    if forecast_s is not None and forecast_s.high > elapsed_s:
        spans = (forecast_s.low, forecast_s.mid, forecast_s.high)
        return Span(*(max(0.0, value - elapsed_s) for value in spans)), "its forecast"
    if now is not None and ended >= FEW:
        return _by_speed(now, items), "the rate of its items"
    return None, "too few of its items have ended" if forecast_s is None else "it takes longer than its forecast"


def _by_speed(now: Speed, items: int) -> Span:
    middle = items / now.items_per_s
    chance = min(0.9, _Z90 * math.sqrt(1 / now.items + 1 / items))
    return Span(middle / (1 + chance), middle, middle / (1 - chance))
