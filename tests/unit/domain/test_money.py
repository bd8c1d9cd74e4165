"""Money is an integer that reads and writes without loss; what cannot be exact is refused."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twolane.domain.money import MAX_PICO, PICO, Money, decimal_string, pico_per_token
from twolane.errors import UsageError

amounts = st.integers(0, MAX_PICO)


@given(amounts)
def test_an_amount_reads_back_as_it_was_written(pico: int) -> None:
    assert Money.parse(decimal_string(pico)).pico == pico
    assert Money.parse(str(Money(pico))) == Money(pico)
    assert Money.parse(str(Money(pico, "EUR")), "EUR") == Money(pico, "EUR")


@given(st.integers(-MAX_PICO, MAX_PICO))
def test_a_decimal_string_is_exact_and_has_two_places_at_least(pico: int) -> None:
    text = decimal_string(pico)
    assert Decimal(text) * PICO == pico
    assert len(text.partition(".")[2]) >= 2


@given(st.integers(0, 9_000_000), st.integers(0, 10**12 - 1))
def test_commas_part_thousands(whole: int, part: int) -> None:
    assert Money.parse(f"{whole:,}.{part:012d}").pico == whole * PICO + part


@pytest.mark.parametrize(
    "text, pico",
    [
        ("$5", 5 * PICO),
        ("0.02", PICO // 50),
        (".5", PICO // 2),
        (" 5 USD ", 5 * PICO),
        ("5usd", 5 * PICO),
        ("$5 USD", 5 * PICO),
        ("1,200.50", 12_005 * PICO // 10),
        ("0.0375", 37_500_000_000),
        ("0.000000000001", 1),
        ("1.0000000000000000000000000000000", PICO),
        ("0", 0),
        ("007", 7 * PICO),
    ],
)
def test_people_write_money_in_these_ways(text: str, pico: int) -> None:
    assert Money.parse(text) == Money(pico)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "five",
        "-5",
        "$-5",
        "1e3",
        "0,05",
        "5,00",
        "1,,2",
        "1,",
        "1,2345",
        "5 $",
        "$",
        "NaN",
        "inf",
        "1.2.3",
        "٣",
        "0x10",
        "1_000",
    ],
)
def test_what_is_not_plainly_an_amount_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="not an amount"):
        Money.parse(text)


@pytest.mark.parametrize("text", ["0.0000000000001", "1.00000000000000000000000000000001"])
def test_what_is_finer_than_a_picounit_is_refused_and_never_rounded(text: str) -> None:
    with pytest.raises(UsageError, match="finer"):
        Money.parse(text)


@pytest.mark.parametrize("text", ["9223373", "9" * 30, "9" * 6000, "0" * 5000 + "9" * 30])
def test_more_than_64_bits_hold_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"9\.2 million"):
        Money.parse(text)


def test_leading_zeros_are_no_amount_too_large() -> None:
    assert Money.parse("0" * 40 + "5").pico == 5 * PICO


@pytest.mark.parametrize(
    "text, currency", [("$5", "EUR"), ("5 EUR", "USD"), ("€5", "USD"), ("$5 EUR", "EUR"), ("¥5", "EUR")]
)
def test_another_currency_is_refused(text: str, currency: str) -> None:
    with pytest.raises(UsageError, match=f"this store keeps {currency}"):
        Money.parse(text, currency)


def test_a_price_per_million_is_a_whole_number_of_picounits_per_token() -> None:
    assert pico_per_token("0.0375") == 37_500
    assert pico_per_token("$15") == 15_000_000
    assert pico_per_token("0.000001") == 1
    with pytest.raises(UsageError, match="finer"):
        pico_per_token("0.0000001")


def test_a_price_of_more_than_one_unit_a_token_is_refused() -> None:
    assert pico_per_token("1000000") == PICO
    with pytest.raises(UsageError, match="more than 1,000,000 per million tokens"):
        pico_per_token("1000000.000001")


def test_money_of_one_currency_is_ordered() -> None:
    assert Money(1) < Money(2) <= Money(2)
    assert str(Money(10_500_000_000)) == "$0.0105"
    assert str(Money(3_200_000_000_000, "EUR")) == "3.20 EUR"
