"""Speed and time left: intervals where something is known, nothing where nothing is."""

from __future__ import annotations

import random

import pytest

from twolane.rules.forecast import Span
from twolane.rules.progress import ENOUGH, FEW, WINDOW_S, Sighting, Speed, left, speed

FORECAST = Span(80, 100, 120)


def test_a_speed_is_what_ended_between_the_oldest_sighting_of_the_window_and_the_newest() -> None:
    seen = [Sighting(0, 0, 0), Sighting(50, 1000, 4000), Sighting(100, 1100, 4400), Sighting(100.5, 1101, 4402)]
    now = speed(seen)
    assert now == Speed(101, 402, 50.5)
    assert now.items_per_s == pytest.approx(2)
    assert WINDOW_S >= 100.5 - 50


@pytest.mark.parametrize("seen", [[], [Sighting(5, 9, 9)], [Sighting(5, 0, 0), Sighting(5.9, 9, 9)]])
def test_before_a_second_has_passed_there_is_no_speed(seen: list[Sighting]) -> None:
    assert speed(seen) is None


@pytest.mark.parametrize(
    ("status", "words"),
    [
        ("queued", "it waits for a worker"),
        ("writing", "it is writing"),
        ("done", "it has ended"),
        ("stopped", "it has ended"),
        ("failed", "it has ended"),
    ],
)
def test_a_run_that_does_not_run_has_no_time_left(status: str, words: str) -> None:
    seen_now = Speed(100, 400, 10)
    assert left(status=status, items=9, now=seen_now, forecast_s=FORECAST, elapsed_s=1) == (None, words)


def test_the_forecast_counts_until_enough_items_have_ended() -> None:
    few, enough = Speed(ENOUGH - 1, 9, 10), Speed(ENOUGH, 9, 10)
    assert left(status="running", items=9, now=few, forecast_s=FORECAST, elapsed_s=90) == (
        Span(0, 10, 30), "its forecast",
    )  # fmt: skip
    assert left(status="running", items=9, now=enough, forecast_s=FORECAST, elapsed_s=90)[1] == "the rate of its items"


def test_of_a_run_that_is_late_the_rate_says_what_it_can_and_else_it_is_unknown() -> None:
    late, none = Speed(FEW, 9, 10), Speed(0, 3, 10)
    span, by = left(status="running", items=50, now=late, forecast_s=FORECAST, elapsed_s=121)
    assert by == "the rate of its items"
    assert span is not None
    assert span.low < span.mid == 100 < span.high
    assert left(status="running", items=50, now=none, forecast_s=FORECAST, elapsed_s=121) == (
        None, "it takes longer than its forecast",
    )  # fmt: skip
    assert left(status="running", items=50, now=none, forecast_s=None, elapsed_s=9) == (
        None, "too few of its items have ended",
    )  # fmt: skip


def test_nine_of_ten_intervals_hold_where_items_end_at_random() -> None:
    draw, held, trials = random.Random(7), 0, 1000
    for _ in range(trials):
        items, rate = draw.choice([40, 400, 4000]), draw.uniform(0.5, 50)
        ended = draw.choice([20, 60, 200])
        took = draw.gammavariate(ended, 1 / rate)
        span, _by = left(status="running", items=items, now=Speed(ended, 0, took), forecast_s=None, elapsed_s=1)
        assert span is not None
        held += span.low <= draw.gammavariate(items, 1 / rate) <= span.high
    assert 0.87 <= held / trials <= 0.95
