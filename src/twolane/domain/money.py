"""Money: an integer of picounits (10⁻¹² of the currency's unit), never a float.

A cached token at $0.0375 per million costs 37,500 picodollars, exactly. 64-bit columns end at 9.2 million units, so
larger amounts are refused.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from twolane.errors import UsageError

PICO = 10**12
MAX_PICO = 2**63 - 1

_SIGNS = {"$": "USD", "€": "EUR", "£": "GBP", "¥": "JPY"}
_AMOUNT = re.compile(
    r"\s*(?P<sign>[$€£¥])?\s*(?:(?P<whole>[0-9]+|[1-9][0-9]{0,2}(?:,[0-9]{3})+)(?:\.(?P<part>[0-9]+))?|\.(?P<only>[0-9]+))"
    r"\s*(?P<code>[A-Za-z]{3})?\s*"
)


@dataclass(frozen=True, slots=True, order=True)
class Money:
    """An amount: `pico` picounits of `currency` (ISO 4217)."""

    pico: int
    currency: str = "USD"

    def __post_init__(self) -> None:
        if abs(self.pico) > MAX_PICO:
            said = f"an amount of {self.pico // PICO:,} {self.currency}"
            raise UsageError(f"{said} is more than the 9.2 million kept. Name a smaller one")

    @classmethod
    def parse(cls, text: str, currency: str = "USD") -> Money:
        """Read "$5", "0.02", "5 EUR" or "1,200.50". Commas part thousands and nothing else: "0,05" is refused, not 5.

        Raises:
            UsageError: not a number, negative, finer than 10⁻¹², too large, or of another currency than `currency`.
        """
        match = _AMOUNT.fullmatch(text)
        if match is None:
            raise UsageError(f"{text!r} is not an amount of money", hint=f"Write it like '$5' or '0.02 {currency}'")
        for named in ((match["code"] or currency).upper(), _SIGNS.get(match["sign"] or "", currency)):
            if named != currency:
                raise UsageError(f"{text!r} is in {named}, but this store keeps {currency}")
        whole = (match["whole"] or "").replace(",", "").lstrip("0")
        part = (match["part"] or match["only"] or "").rstrip("0")
        if len(part) > 12:
            raise UsageError(f"{text!r} is finer than a millionth of a millionth. Name twelve places at most")
        if len(whole) > 18:
            raise UsageError(f"{text[:40]!r} is more than the 9.2 million {currency} kept. Name a smaller one")
        return cls(int(whole + part.ljust(12, "0")), currency)

    def __str__(self) -> str:
        """The exact decimal with its currency, for people: "$0.0105" or "3.20 EUR"."""
        text = decimal_string(self.pico)
        return f"${text}" if self.currency == "USD" else f"{text} {self.currency}"


def named_currency(text: str) -> str | None:
    """The currency an amount names by its code or sign, None where it names none."""
    match = _AMOUNT.fullmatch(text)
    return None if match is None else (match["code"] or _SIGNS.get(match["sign"] or "") or "").upper() or None


def decimal_string(pico: int) -> str:
    """Picounits as an exact decimal string with at least two places: 10_500_000_000 → "0.0105"."""
    sign, pico = ("-", -pico) if pico < 0 else ("", pico)
    whole, part = divmod(pico, PICO)
    digits = f"{part:012d}".rstrip("0")
    return f"{sign}{whole}.{digits:0<2}"


MOST_PER_MILLION = 1_000_000
"""The highest price of a million tokens: one unit each, over a thousand times the dearest there is. Beyond it a slip of
the pen, or picounits written for units, would fill 64 bits within a few calls."""


def pico_per_token(per_million: str) -> int:
    """A price per million tokens, as written in the configuration, in picounits per token.

    Raises:
        UsageError: finer than 10⁻⁶ of the unit per million tokens, or more than `MOST_PER_MILLION`.
    """
    pico = Money.parse(per_million, "USD").pico if "$" in per_million else Money.parse(per_million).pico
    if pico % 1_000_000:
        raise UsageError(f"the price {per_million!r} is finer than 0.000001 per million tokens")
    if pico > MOST_PER_MILLION * PICO:
        raise UsageError(
            f"the price {per_million!r} is more than {MOST_PER_MILLION:,} per million tokens",
            hint="Write what a million of them cost, in units of the currency",
        )
    return pico // 1_000_000
