"""May this be held? And which window is it now?"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twolane.rules.budgets import Account, block_size, first_day, first_short, left, next_day_us, window

limits = st.none() | st.integers(0, 100)
accounts = st.lists(
    st.builds(
        Account,
        scope=st.sampled_from(["tenant:a", "run:r"]),
        window=st.just("total"),
        limit_pico=limits,
        limit_tokens=limits,
        spent_pico=st.integers(0, 120),
        held_pico=st.integers(0, 50),
        spent_tokens=st.integers(0, 120),
        held_tokens=st.integers(0, 50),
    ),
    max_size=4,
)


@given(accounts, st.integers(0, 100), st.integers(0, 100))
def test_a_chain_holds_what_is_left_on_all_of_it_and_not_one_more(chain: list[Account], pico: int, tokens: int) -> None:
    pico_left, tokens_left = left(chain)
    fits = (pico_left is None or pico <= pico_left) and (tokens_left is None or tokens <= tokens_left)
    assert (first_short(chain, pico=pico, tokens=tokens) is None) is fits


@given(accounts, st.integers(1, 100), st.integers(1, 100))
def test_what_is_held_never_takes_an_account_over_its_limit(chain: list[Account], pico: int, tokens: int) -> None:
    if first_short(chain, pico=pico, tokens=tokens) is None:
        for account in chain:
            assert account.limit_pico is None or account.spent_pico + account.held_pico + pico <= account.limit_pico
            assert (
                account.limit_tokens is None
                or account.spent_tokens + account.held_tokens + tokens <= account.limit_tokens
            )


def test_what_is_left_is_never_below_zero() -> None:
    account = Account("run:r", "total", 10, 10, spent_pico=8, held_pico=5, spent_tokens=20)
    assert (account.left_pico(), account.left_tokens()) == (0, 0)
    assert left([]) == (None, None)


def test_the_widest_scope_that_is_short_is_named_with_its_dimension() -> None:
    wide, narrow = Account("tenant:a", "total", 100, 5), Account("run:r", "total", 10, None)
    assert first_short([wide, narrow], pico=50, tokens=5) == (narrow, "money")
    assert first_short([wide, narrow], pico=50, tokens=6) == (wide, "tokens")
    assert first_short([wide, narrow], pico=101, tokens=6) == (wide, "money")
    assert first_short([wide, narrow], pico=10, tokens=5) is None


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


amounts = st.integers(0, 10**9)


@given(amounts, amounts, amounts)
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


@given(st.integers(0, 4 * 10**15))
def test_no_window_changes_before_the_next_day(now_us: int) -> None:
    end = next_day_us(now_us)
    assert now_us < end <= now_us + 86_400_000_000
    assert window("day", now_us) == window("day", end - 1) != window("day", end)
    assert window("month", now_us) == window("month", end - 1)
