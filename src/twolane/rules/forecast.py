"""A rough forecast from a pilot: mean and spread of a few items, carried over to the rest.

Rough means: no strata, no bootstrap; the interval is the normal approximation with Student's t for small pilots, over
the items that remain. With few or skewed items it is too narrow or too wide, and the answer says how many it rests on.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

INTERVAL = 0.9
_T95 = {
    1: 6.31,
    2: 2.92,
    3: 2.35,
    4: 2.13,
    5: 2.02,
    6: 1.94,
    7: 1.89,
    8: 1.86,
    9: 1.83,
    10: 1.81,
    15: 1.75,
    20: 1.72,
    30: 1.70,
    60: 1.67,
    120: 1.66,
}
"""Student's t, 95th percentile, by degrees of freedom (standard table); between two, the smaller count's."""


@dataclass(frozen=True, slots=True)
class Span:
    """A forecast amount: the middle and the ends of a 90 % interval, in the unit of what was measured."""

    low: float
    mid: float
    high: float


def pilot_size(items: int) -> int:
    """How many of `items` to run first: a tenth, at least 4, at most 200, and never more than there are."""
    return min(items, max(4, min(200, math.ceil(items / 10))))


def spread(pilot: Sequence[float], rest: int) -> Span:
    """The pilot's own total plus `rest` further items like it. With fewer than two items in the pilot the ends are 0
    more and three times the middle: no spread was measured."""
    done = math.fsum(pilot)
    if not pilot or rest == 0:
        return Span(done, done, done)
    mean = done / len(pilot)
    middle = done + rest * mean
    if len(pilot) < 2:
        return Span(done, middle, done + rest * mean * 3)
    degrees = len(pilot) - 1
    t = _T95[max(known for known in _T95 if known <= degrees)]
    half = t * statistics.stdev(pilot) * math.sqrt(rest + rest * rest / len(pilot))
    return Span(max(done, middle - half), middle, middle + half)


def makespan(seconds: Span, *, slots: int, longest: float) -> Span:
    """Work of `seconds` shared by `slots` calls at a time: at least as long as the longest single item."""
    return Span(*(max(value / slots, longest) for value in (seconds.low, seconds.mid, seconds.high)))
