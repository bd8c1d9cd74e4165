"""A rate holds in every window, whatever is asked, moved or corrected; and headers are read as providers write them."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twolane.rules.rates import Bucket, Told, aged, closed_s, read_limits, retry_after, seconds, tightest


def most_in_a_minute(taken: list[tuple[float, float]]) -> float:
    return max((sum(n for at, n in taken if begin <= at <= begin + 60) for begin, _ in taken), default=0)


@given(st.integers(1, 200), st.lists(st.floats(0, 30), min_size=1, max_size=150))
def test_no_sixty_seconds_hold_more_calls_than_the_rate(part: int, gaps: list[float]) -> None:
    bucket, now, taken = Bucket(0, is_counted=True), 0.0, []
    bucket.resize(part, 0, is_fresh=True)
    for gap in gaps:
        now += gap / part
        if bucket.wait(1, now) == 0:
            bucket.take(1, now)
            taken.append((now, 1.0))
    assert most_in_a_minute(taken) <= part


def test_a_rate_that_is_always_used_gives_nine_tenths_of_itself() -> None:
    for part in (1, 2, 5, 60, 600):
        bucket, now, count = Bucket(0, is_counted=True), 0.0, 0
        bucket.resize(part, 0)
        while now < 6_000:
            now += bucket.wait(1, now) + 1e-6
            bucket.take(1, now)
            count += 1
        assert 0.88 * part * 100 <= count <= part * 100


@given(st.integers(1_000, 100_000), st.lists(st.tuples(st.floats(0, 40), st.floats(0.001, 1.5)), max_size=60))
def test_no_sixty_seconds_hold_more_tokens_than_the_rate_large_calls_among_them(
    part: int, asked: list[tuple[float, float]]
) -> None:
    bucket, now, taken = Bucket(0, is_counted=False), 0.0, []
    bucket.resize(part, 0, is_fresh=True)
    for gap, size in asked:
        now += gap
        amount = size * part
        while wait := bucket.wait(amount, now):
            bucket.save(amount)
            now += wait
        bucket.take(amount, now)
        taken.append((now, min(amount, part)))
    assert most_in_a_minute(taken) <= part * (1 + 1e-6)


MOVES = st.lists(
    st.tuples(st.floats(0, 20), st.integers(0, 3), st.integers(0, 3), st.integers(0, 30), st.booleans()),
    max_size=120,
)


@given(st.integers(4, 60), MOVES)
def test_shares_that_move_between_processes_never_add_up_to_more(
    rate: int, moves: list[tuple[float, int, int, int, bool]]
) -> None:
    buckets = [Bucket(0, is_counted=True) for _ in range(4)]
    parts, now, taken = [rate, 0, 0, 0], 0.0, []
    buckets[0].resize(rate, 0, is_fresh=True)
    for gap, giver, gainer, amount, is_move in moves:
        now += gap / 10
        if is_move and giver != gainer:
            amount = min(amount, parts[giver])
            parts[giver] -= amount
            buckets[giver].resize(parts[giver], now)
            parts[gainer] += amount
            buckets[gainer].resize(parts[gainer], now)
        for bucket in buckets:
            while bucket.wait(1, now) == 0:
                bucket.take(1, now)
                taken.append((now, 1.0))
    assert most_in_a_minute(taken) <= rate


def test_a_share_that_is_gained_comes_empty_and_one_without_a_share_never_goes() -> None:
    bucket = Bucket(0, is_counted=True)
    assert bucket.wait(1, 1000) == math.inf
    bucket.resize(60, 1000)
    assert bucket.wait(1, 1000) > 1
    fresh = Bucket(0, is_counted=True)
    fresh.resize(60, 1000, is_fresh=True)
    assert fresh.level(1000) == 6


def test_what_is_told_is_exact() -> None:
    bucket = Bucket(0, is_counted=True)
    bucket.resize(60, 0, is_fresh=True)
    for _ in range(6):
        bucket.take(1, 0)
    wait = bucket.wait(1, 0, before=2)
    for _ in range(3):
        assert bucket.wait(1, wait) == 0
        bucket.take(1, wait)
    assert bucket.wait(1, wait) > 0


def test_what_was_not_used_comes_back_and_what_was_used_above_is_owed() -> None:
    bucket = Bucket(0, is_counted=False)
    bucket.resize(60_000, 0, is_fresh=True)
    bucket.take(5_000, 0)
    bucket.correct(4_000, 0)
    assert bucket.level(0) == 9_000
    bucket.correct(-10_000, 0)
    assert bucket.level(0) == -1_000
    bucket.correct(10**9, 0)
    assert bucket.level(0) == 10_000  # never more than may pass at once


def test_what_was_saved_for_one_that_left_is_gone() -> None:
    bucket = Bucket(0, is_counted=False)
    bucket.resize(6_100, 0, is_fresh=True)
    bucket.save(5_000)
    assert bucket.level(1_000) == 5_000
    bucket.save(0)
    assert bucket.level(1_000) == pytest.approx(6_100 / 6)


def test_a_slower_pace_earns_less() -> None:
    full, half = (Bucket(0, is_counted=True) for _ in range(2))
    for bucket, pace in ((full, 1.0), (half, 0.5)):
        bucket.resize(60, 0)
        bucket.set_pace(pace, 0)
    assert half.wait(1, 0) == pytest.approx(2 * full.wait(1, 0))


# ── headers ──


def test_openais_limits_are_read() -> None:
    told = read_limits(
        {
            "x-ratelimit-limit-requests": "60",
            "x-ratelimit-remaining-requests": "59",
            "x-ratelimit-reset-requests": "1s",
            "x-ratelimit-limit-tokens": "150000",
            "x-ratelimit-remaining-tokens": "0",
            "x-ratelimit-reset-tokens": "6m0s",
        },
        0,
    )
    assert told == [Told("requests", 60, 59, 1.0), Told("tokens", 150_000, 0, 360.0)]
    assert closed_s(told) == 360


def test_anthropics_limits_are_read_with_the_clock() -> None:
    told = read_limits(
        {
            "anthropic-ratelimit-requests-limit": "50",
            "anthropic-ratelimit-requests-remaining": "0",
            "anthropic-ratelimit-requests-reset": "1970-01-01T00:01:40Z",
            "anthropic-ratelimit-input-tokens-remaining": "7",
        },
        40,
    )
    assert told == [Told("requests", 50, 0, 60.0), Told("tokens", None, 7, None)]
    assert closed_s(told) == 60


@pytest.mark.parametrize(
    "text, expected",
    [
        ("1s", 1), ("6m0s", 360), ("20ms", 0.02), ("1h2m3s", 3723), ("7", 7), ("0.5", 0.5), ("1.5s", 1.5),
        ("Thu, 01 Jan 1970 00:16:50 GMT", 10), ("1970-01-01T00:16:40+00:00", 0), ("1970-01-01T00:00:00Z", 0),
        ("", None), ("soon", None), ("-1", None), ("nan", None), ("inf", None), ("1x", None), ("1970-01-01", None),
    ],
)  # fmt: skip
def test_every_way_to_write_a_delay_is_read_and_nothing_else(text: str, expected: float | None) -> None:
    found = seconds(text, 1000)
    assert found == (None if expected is None else pytest.approx(expected))


def test_milliseconds_come_first() -> None:
    assert retry_after({"retry-after-ms": "1500", "retry-after": "9"}, 0) == 1.5
    assert retry_after({"retry-after": "9"}, 0) == 9
    assert retry_after({}, 0) is None


@given(
    st.dictionaries(st.sampled_from(["x-ratelimit-limit-tokens", "x-ratelimit-reset-tokens", "retry-after"]), st.text())
)
def test_no_header_breaks_the_reader(headers: dict[str, str]) -> None:
    assert closed_s(read_limits(headers, 0)) >= 0
    delay = retry_after(headers, 0)
    assert delay is None or delay >= 0


# ── what is told on ──


def test_a_limit_that_was_told_ages_until_it_is_full_again() -> None:
    told = Told("requests", 60, 3, 10.0)
    assert aged(told, 4) == Told("requests", 60, 3, 6.0)
    assert aged(told, 10) == Told("requests", 60, 60, 0.0)
    assert aged(Told("requests", None, 0, 10.0), 11) is None
    endless = Told("tokens", 100, 5, None)
    assert aged(endless, 59) == endless
    assert aged(endless, 60) is None


def test_of_several_counts_of_tokens_the_tightest_is_told() -> None:
    calls = Told("requests", 60, None, None)
    tokens = [Told("tokens", 100, left, None) for left in (None, 7, 3, 5)]
    assert tightest([calls, *tokens]) == [calls, tokens[2]]
    assert tightest([]) == []


@given(st.integers(1, 1000), st.floats(0, 500))
def test_what_is_full_is_full_after_the_time_it_says(part: int, used: float) -> None:
    bucket = Bucket(0.0, is_counted=True)
    assert bucket.full_s(0.0) is None
    bucket.resize(part, 0.0, is_fresh=True)
    assert bucket.full_s(0.0) == 0
    full = bucket.level(0.0)
    bucket.correct(-used, 0.0)
    after_s = bucket.full_s(0.0)
    assert after_s is not None
    assert bucket.level(after_s) == pytest.approx(full)
