"""May this be held? And which window is it now?"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twolane.errors import UsageError
from twolane.rules.budgets import (
    DAY_US,
    LEAST_US,
    Account,
    Amount,
    Ceiling,
    block_size,
    first_day,
    left,
    read_count,
    read_seconds,
    seconds_string,
    slice_us,
    window,
)

limits = st.none() | st.integers(0, 100)
figures = st.integers(0, 120)
amounts = st.builds(Amount, figures, figures, figures, figures, figures)
accounts = st.lists(
    st.builds(
        Account,
        scope=st.sampled_from(["tenant:a", "run:r"]),
        window=st.just("total"),
        limit=st.builds(Ceiling, limits, limits, limits, limits, limits),
        spent=amounts,
        held=amounts,
    ),
    max_size=4,
)


@given(accounts, amounts)
def test_a_chain_holds_what_is_left_on_all_of_it_and_not_one_more(chain: list[Account], asked: Amount) -> None:
    is_held = all(account.short_of(asked) is None for account in chain)
    is_closed = any(0 in account.limit for account in chain)
    fits = all(most is None or not more or more <= most for most, more in zip(left(chain), asked, strict=True))
    assert is_held is (fits and not is_closed)


@given(accounts, st.integers(1, 100), st.integers(1, 100), st.integers(1, 100))
def test_what_is_held_never_takes_an_account_over_its_limit(chain: list[Account], a: int, b: int, c: int) -> None:
    asked = Amount(a, b, c, a, b)
    for account in chain:
        if account.short_of(asked) is None:
            sums = account.spent.plus(account.held).plus(asked)
            assert all(most is None or used <= most for most, used in zip(account.limit, sums, strict=True))
            assert account.may_carry(asked)


@given(amounts, amounts)
def test_amounts_are_added_taken_away_and_compared_figure_by_figure(one: Amount, other: Amount) -> None:
    assert one.plus(other).minus(other) == one
    assert one.fits(other) is all(a <= b for a, b in zip(one, other, strict=True))
    assert one.least(other).fits(one)
    assert one.fits(one.most(other))
    assert one.above(other) == one.most(other).minus(other)
    assert Ceiling(None, *other[1:]).cut(one) == one._replace(pico=0)


def test_what_is_left_is_never_below_zero() -> None:
    account = Account("run:r", "total", Ceiling(10, 10), spent=Amount(8, 20), held=Amount(5))
    assert account.left() == Ceiling(0, 0)
    assert left([]) == Ceiling()


def test_the_first_dimension_that_is_short_is_named() -> None:
    account = Account("tenant:a", "total", Ceiling(100, 5, 1, None, 7))
    assert account.short_of(Amount(100, 5, 1, 10**9, 7)) is None
    assert account.short_of(Amount(101, 6, 1)) == "pico"
    assert account.short_of(Amount(1, 6, 2)) == "tokens"
    assert account.short_of(Amount(calls=2)) == "calls"
    assert account.short_of(Amount(us=10**9, accelerator_us=8)) == "accelerator_us"


def test_a_limit_of_nothing_admits_nothing_and_an_overspent_one_what_is_free() -> None:
    assert Account("tenant:a", "total", Ceiling(0)).short_of(Amount()) == "pico"
    assert Account("tenant:a", "total", Ceiling(5), spent=Amount(9)).short_of(Amount(0, 1, 1)) is None


@given(accounts, st.integers(0, 8), st.integers(1, 40), st.integers(1, 10**10))
def test_a_slice_of_time_fits_into_what_is_left_or_is_the_least_there_is(
    chain: list[Account], accelerators: int, slots: int, unit: int
) -> None:
    scaled = [Account(a.scope, a.window, Ceiling(*[f and f * unit for f in a.limit])) for a in chain]
    us = slice_us(scaled, accelerators=accelerators, slots=slots)
    most = left(scaled)
    is_limited = most.us is not None or (most.accelerator_us is not None and accelerators > 0)
    assert (us > 0) is is_limited
    if us > LEAST_US:
        assert most.us is None or us <= most.us
        assert most.accelerator_us is None or -(-us * accelerators // slots) <= most.accelerator_us


def test_seconds_and_counts_are_read_exactly_or_refused_with_what_to_write() -> None:
    assert [read_seconds(text) for text in ("0", "90", "1.5", "0.000001")] == [0, 90_000_000, 1_500_000, 1]
    assert [seconds_string(us) for us in (0, 10_000_000, 1_500_000, 1)] == ["0", "10", "1.5", "0.000001"]
    assert [read_count(text, "calls") for text in ("0", "50,000", "7")] == [0, 50_000, 7]
    for text in ("-1", "", "nan", "1e3", "1.0000001", "9" * 13, "0x10", "١"):
        with pytest.raises(UsageError, match="Write 90"):
            read_seconds(text)
    for text in ("-1", "", "nan", "1e3", "1.5", "50,00", str(2**53), "9" * 400):
        with pytest.raises(UsageError, match="Write digits"):
            read_count(text, "calls")


EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
instants = st.datetimes(datetime(2020, 1, 1), datetime(2099, 12, 31), timezones=st.just(UTC)).map(  # noqa: DTZ001 - zone given
    lambda instant: (instant - EPOCH) // timedelta(microseconds=1)
)


@given(instants)
def test_a_window_holds_its_instant(now_us: int) -> None:
    instant = EPOCH + timedelta(microseconds=now_us)
    assert window("day", now_us) == instant.date().isoformat()
    assert window("month", now_us) == instant.date().isoformat()[:7]
    assert window("total", now_us) == "total"
    assert first_day("day", now_us) == window("day", now_us)
    assert first_day("month", now_us) == window("month", now_us) + "-01"
    assert first_day("total", now_us) == ""


@pytest.mark.parametrize(
    "period, before, after", [("day", "2026-11-30", "2026-12-01"), ("month", "2026-11", "2026-12")]
)
def test_a_window_ends_with_the_last_microsecond_in_utc(period: str, before: str, after: str) -> None:
    midnight = (datetime(2026, 12, 1, tzinfo=UTC) - EPOCH) // timedelta(microseconds=1)
    assert (window(period, midnight - 1), window(period, midnight)) == (before, after)


parts = st.integers(0, 10**9)


@given(parts, parts, parts)
def test_a_block_is_what_is_wanted_but_at_most_a_hundredth_and_never_too_small_for_a_call(
    remaining: int, wanted: int, smallest: int
) -> None:
    size = block_size(remaining, wanted=wanted, smallest=smallest)
    assert size is not None
    assert 0 <= size * 100 <= remaining
    assert size == 0 or size <= wanted
    if wanted >= smallest:
        assert size == 0 or size >= smallest
        assert size > 0 or remaining < 100 * smallest or not (wanted and remaining >= 100)


def test_where_nothing_limits_no_block_is_needed() -> None:
    assert block_size(None, wanted=5, smallest=1) is None


@given(st.integers(0, 4 * 10**15), st.integers(0, DAY_US - 1))
def test_no_window_changes_within_a_day(now_us: int, later_us: int) -> None:
    began = now_us - now_us % DAY_US
    assert window("day", now_us) == window("day", began + later_us) != window("day", began + DAY_US)
    assert window("month", now_us) == window("month", began + later_us)
