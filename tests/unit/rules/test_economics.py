"""Charges fall into their parts to the picounit, and days are what people mean by them."""

from __future__ import annotations

from datetime import date

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from twolane.domain.records import Price, Usage
from twolane.errors import UsageError
from twolane.rules.economics import LAST_DAY, Part, first_day, last_day, parts
from twolane.rules.pricing import charge

COUNT = st.integers(0, 10**7)
RATE = st.integers(0, 10**9)
MAYBE = st.none() | COUNT
USAGE = st.builds(Usage, COUNT, COUNT, MAYBE, MAYBE, MAYBE)
PRICE = st.builds(
    Price, RATE, RATE, st.none() | RATE, st.none() | RATE, cache_write_1h=st.none() | RATE, reasoning=st.none() | RATE
)


@given(USAGE, PRICE, st.integers(-1, 1))
@example(Usage(0, 0), Price(1, 1), 0)
@example(Usage(5, 5), Price(0, 0), 1)
def test_the_parts_of_a_charge_come_to_it_to_the_picounit(usage: Usage, price: Price, off: int) -> None:
    pico = max(0, charge(usage, price) + off)
    found = parts(usage, price, pico)
    assert sum(part.pico for part in found) == pico
    assert sum(part.quantity for part in found) == usage.input_tokens + usage.output_tokens
    for part in found:
        assert part.pico == part.unit_pico * part.quantity or part == Part("tokens", part.quantity, 0, pico)


def test_each_kind_of_token_is_a_part_at_its_own_price() -> None:
    usage, price = Usage(100, 30, cache_read_tokens=60, cache_write_tokens=10, reasoning_tokens=25), Price(8, 40, 1, 10)
    assert parts(usage, price, charge(usage, price)) == (
        Part("input", 30, 8, 240), Part("output", 5, 40, 200), Part("cache_read", 60, 1, 60),
        Part("cache_write", 10, 10, 100), Part("reasoning", 25, 40, 1000),
    )  # fmt: skip


def test_a_tier_a_request_and_an_accelerators_time_are_in_it() -> None:
    price = Price(8, 40, request=7, accelerator_second=3_000_000, tiers=((50, Price(16, 80)),))
    usage, used_us = Usage(100, 30), 2_000_001
    assert parts(usage, price, charge(usage, price, used_us), used_us) == (
        Part("input", 100, 16, 1600), Part("output", 30, 80, 2400), Part("request", 1, 7, 7),
        Part("accelerator_us", 2_000_001, 0, 6_000_003),
    )  # fmt: skip


def test_kinds_with_a_price_of_their_own_are_told_together() -> None:
    usage, price = Usage(100, 30, kinds={"input_audio": 10}), Price(8, 40, kinds=(("input_audio", 99),))
    assert parts(usage, price, charge(usage, price)) == (Part("tokens", 130, 0, 90 * 8 + 990 + 1200),)


def test_a_charge_that_its_prices_do_not_make_up_is_one_part() -> None:
    assert parts(Usage(100, 30), Price(8, 40), 5) == (Part("tokens", 130, 0, 5),)


TODAY = date(2026, 3, 1)


@pytest.mark.parametrize(
    "since, day",
    [
        (None, ""), ("1d", "2026-03-01"), ("2d", "2026-02-28"), ("7d", "2026-02-23"), ("99999d", "1752-05-18"),
        ("2026-02-28", "2026-02-28"),
    ],
)  # fmt: skip
def test_a_report_begins_where_it_is_said(since: str | None, day: str) -> None:
    assert first_day(since, TODAY) == day


@pytest.mark.parametrize(
    "day", ["", "d", "0d", "-7d", "7 d", "7h", "٧d", "2026-02-30", "20260228", "2026-W09-7", "now", "1e3d"]
)
def test_what_is_no_day_is_refused_by_its_name(day: str) -> None:
    with pytest.raises(UsageError, match=r"since .* is no day"):
        first_day(day, TODAY)
    with pytest.raises(UsageError, match=r"until .* is no day"):
        last_day(day)


def test_a_report_ends_with_the_day_that_is_named() -> None:
    assert (last_day("2026-03-01"), last_day(None)) == ("2026-03-01", LAST_DAY)
