"""A rough forecast: honest ends, monotone in what is left, and right about as often as it says."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twolane.rules.forecast import Span, makespan, pilot_size, spread

amounts = st.floats(0, 1e6, allow_nan=False)


@pytest.mark.parametrize(
    "items, size", [(0, 0), (1, 1), (3, 3), (4, 4), (5, 4), (40, 4), (41, 5), (2000, 200), (10**6, 200)]
)
def test_a_pilot_is_a_tenth_but_some_and_never_more_than_there_are(items: int, size: int) -> None:
    assert pilot_size(items) == size


@given(st.lists(amounts, max_size=30), st.integers(0, 10_000))
def test_the_middle_lies_between_the_ends_and_nothing_lies_below_what_was_spent(pilot: list[float], rest: int) -> None:
    span = spread(pilot, rest)
    slack = 1e-6 * (1 + span.high)
    assert span.low <= span.mid + slack
    assert span.mid <= span.high + slack
    assert span.low >= sum(pilot) - slack


@given(st.lists(amounts, min_size=1, max_size=30), st.integers(0, 1000))
def test_more_items_take_more(pilot: list[float], rest: int) -> None:
    less, more = spread(pilot, rest), spread(pilot, rest + 1)
    assert more.mid >= less.mid
    assert more.high >= less.high - 1e-9 * less.high


def test_with_nothing_left_the_forecast_is_what_it_took() -> None:
    assert spread([1.5, 2.5], 0) == Span(4, 4, 4)
    assert spread([], 10) == Span(0, 0, 0)


def test_one_item_shows_no_spread_and_the_ends_say_so() -> None:
    assert spread([2.0], 10) == Span(2.0, 22.0, 62.0)


def test_items_all_alike_leave_no_doubt() -> None:
    assert spread([2.0] * 5, 10) == Span(30, 30, 30)


def test_nine_of_ten_forecasts_hold() -> None:
    draw = random.Random(7)
    hits = 0
    for _ in range(1000):
        items = [draw.gauss(10, 2) for _ in range(60)]
        span = spread(items[:10], 50)
        hits += span.low <= sum(items) <= span.high
    assert 0.87 <= hits / 1000 <= 0.93


def test_work_is_shared_by_the_slots_but_no_shorter_than_its_longest_item() -> None:
    assert makespan(Span(10, 20, 40), slots=4, longest=6) == Span(6, 6, 10)
