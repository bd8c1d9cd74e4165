from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twolane.domain.records import Usage
from twolane.rules.probing import (
    Departure,
    Heard,
    Load,
    Verdict,
    judge_counts,
    judge_limit,
    judge_rates,
    judge_stopping,
    judge_streaming,
    judge_usage,
)

YES, NO, UNKNOWN = Verdict.YES, Verdict.NO, Verdict.UNKNOWN
GOOD = Heard((0.1, 0.2, 0.3), 3, "one two three", "length", Usage(40, 3), 0.3)


@pytest.mark.parametrize(
    ("arrivals_s", "events", "total_s", "verdict"),
    [
        ((0.1, 0.2, 0.3), 3, 0.3, YES),
        ((0.9,), 40, 0.9, NO),
        ((0.9, 0.901, 0.902), 40, 0.902, NO),
        ((0.002, 0.003, 0.004), 40, 0.004, UNKNOWN),
        ((0.5,), 1, 0.5, UNKNOWN),
    ],
)
def test_events_arrive_apart_or_in_one_lump(
    arrivals_s: tuple[float, ...], events: int, total_s: float, verdict: Verdict
) -> None:
    heard = replace(GOOD, arrivals_s=arrivals_s, events=events, total_s=total_s)
    assert judge_streaming(heard).verdict is verdict


def test_usage_is_reported_or_not() -> None:
    assert judge_usage(GOOD).verdict is YES
    assert judge_usage(replace(GOOD, usage=None)).verdict is NO


@pytest.mark.parametrize(
    ("usage", "verdict"),
    [
        (Usage(40, 3), YES),
        (Usage(201, 3), NO),  # more than any tokenizer could make of it: hard budgets would not be hard
        (Usage(4, 3), NO),
        (Usage(40, 0), NO),
        (Usage(40, 300), NO),
        (Usage(40, 300, reasoning_tokens=297), YES),
        (None, UNKNOWN),
    ],
)
def test_counts_are_possible_or_not(usage: Usage | None, verdict: Verdict) -> None:
    assert judge_counts(replace(GOOD, usage=usage), prompt_bytes=160, bound_tokens=200).verdict is verdict


@pytest.mark.parametrize(
    ("heard", "verdict"),
    [
        (GOOD, YES),
        (replace(GOOD, usage=Usage(40, 4)), NO),
        (replace(GOOD, finish_reason="stop"), UNKNOWN),
        (replace(GOOD, usage=None), UNKNOWN),
        (replace(GOOD, usage=None, text="word " * 100), NO),
    ],
)
def test_a_limit_is_kept_or_broken(heard: Heard, verdict: Verdict) -> None:
    assert judge_limit(heard, asked=3).verdict is verdict


def test_rate_headers_are_named() -> None:
    found = judge_rates({"x-ratelimit-limit-requests": "60", "date": "now"})
    assert (found.verdict, found.detail) == (YES, "x-ratelimit-limit-requests")
    assert judge_rates({"date": "now"}).verdict is NO


def gone(*after: tuple[float, Load], before: int = 0, during: int = 1, rest_s: float = 2.0) -> Departure:
    return Departure(Load(before), Load(during), after, rest_s)


@pytest.mark.parametrize(
    ("seen", "verdict"),
    [
        (gone((0.1, Load(1)), (0.2, Load(0))), YES),
        (gone((0.1, Load(1)), (1.9, Load(0))), NO),  # as long as the answer would have taken
        (gone((0.1, Load(1)), (1.4, Load(0))), UNKNOWN),
        (gone((0.1, Load(1)), (5.0, Load(1))), NO),  # never idle
        (gone((0.1, Load(1)), (1.0, Load(1))), UNKNOWN),  # we stopped looking too early
        (gone((0.1, Load(0)), rest_s=0.1), UNKNOWN),  # it would have ended by itself
        (gone((0.1, Load(0)), during=0), UNKNOWN),  # its counters do not show us
        (gone((0.1, Load(2)), before=2, during=3), UNKNOWN),  # it worked for others too
        (gone(), UNKNOWN),
        (Departure(Load(0, 7), Load(1, 7), ((0.1, Load(1, 9)), (1.9, Load(0, 60))), 2.0), NO),
        (Departure(Load(0, 7), Load(1, 7), ((0.1, Load(0, 7)),), 0.2), YES),
        (Departure(Load(0, 7), Load(1, 7), ((0.3, Load(0, 17)),), 2.0), YES),  # late, but it stops
    ],
)
def test_a_server_stops_goes_on_or_cannot_be_judged(seen: Departure, verdict: Verdict) -> None:
    assert judge_stopping(seen).verdict is verdict


@given(st.floats(0, 20), st.floats(0, 20), st.integers(0, 3), st.integers(0, 3))
def test_a_server_that_is_said_to_stop_was_seen_idle_long_before_the_end(
    idle_s: float, rest_s: float, before: int, during: int
) -> None:
    seen = gone((idle_s, Load(before)), before=before, during=during, rest_s=rest_s)
    if judge_stopping(seen).verdict is YES:
        assert idle_s <= rest_s / 2
        assert (before, during) == (0, 1)
