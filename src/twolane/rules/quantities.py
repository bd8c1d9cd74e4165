"""Reading what a quote promises: durations, percentages, money and laws, in figures and in words.

By code and never by a model: a model does not decide whether 75 days is more than 60. Reading is conservative: what is
not understood for certain gives nothing, and a person reads it.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from decimal import ROUND_CEILING, Decimal
from typing import NamedTuple


class Quantity(NamedTuple):
    """An exact amount with its unit: a limit of a rule, or a value read from a quote."""

    amount: Decimal
    """The number, exact; never a float."""
    unit: str
    """`days`, `months`, `percent`, or an ISO 4217 currency code."""

    def __str__(self) -> str:
        """The quantity as a person writes it: `60 days`, `EUR 1,000,000`."""
        number = f"{self.amount:,f}"
        number = number.rstrip("0").rstrip(".") if "." in number else number
        return f"{self.unit} {number}" if self.unit.isupper() else f"{number} {self.unit}"


_SMALL = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
).split()
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
_UNITS = {word: number for number, word in enumerate(_SMALL)} | {word: 10 * n for n, word in enumerate(_TENS, 2)}
_SCALES = {"thousand": 1_000, "million": 1_000_000, "billion": 1_000_000_000}
_SHORT = {"k": 1_000, "m": 1_000_000, "mn": 1_000_000, "bn": 1_000_000_000} | _SCALES

# `point` and `half` belong to the grammar so that "two point five" is refused instead of being read as five.
_WORD = rf"(?:{'|'.join(sorted([*_UNITS, *_SCALES, 'hundred', 'point', 'half'], key=len, reverse=True))})"
# Atomic, so that "forty-five" is never taken for the range from forty to five; bounded, so that a hostile
# text costs no more than its length.
_WORDS = rf"(?>\b{_WORD}\b(?:(?:\s+and\s+(?:an?\s+)?|\s+an?\s+|[\s-]+){_WORD}\b){{0,15}})"
_DIGITS = r"(?<![\d.,])(?:\d{1,3}(?:[,' ]\d{3})+(?:\.\d+)?|\d+(?:[.,]\d+)*)(?![\d])"
_NUMBER = rf"(?:{_WORDS}|{_DIGITS})"
_RANGE = rf"(?:(?P<low>{_NUMBER})(?:\s*\([^)]{{1,40}}\))?\s*(?:to|or|and|-|\u2013|\u2014)\s*)?"

_DURATION = re.compile(
    rf"{_RANGE}(?P<number>{_NUMBER})(?:\s*\((?P<again>[^)]{{1,60}})\))?"
    r"[\s-]*(?P<adjective>calendar|consecutive|full|business|working|banking)?"
    r"[\s-]*(?P<unit>day|week|month|year)s?\b",
    re.IGNORECASE,
)
_NET = re.compile(r"\bnet\s+(?P<number>\d+)\b", re.IGNORECASE)
_MONTH_END = re.compile(r"\bend of (?:the |that |each |a )?(?:\w+ )?month\b", re.IGNORECASE)
_PERCENT = re.compile(
    rf"{_RANGE}(?P<number>{_NUMBER})(?:\s*\((?P<again>[^)]{{1,60}})\))?\s*(?:%|per\s?cent(?:um)?\b)", re.IGNORECASE
)

CODES = ("USD", "EUR", "GBP", "CHF", "SEK", "NOK", "DKK", "PLN", "CZK", "CAD", "AUD", "NZD", "JPY", "SGD", "INR")
# A bare dollar sign is read as US dollars; other dollars have a letter, a code or a country before them.
_SIGNS = {"US$": "USD", "C$": "CAD", "CA$": "CAD", "A$": "AUD", "S$": "SGD", "NZ$": "NZD", "$": "USD"}
_SIGNS |= {"€": "EUR", "£": "GBP", "¥": "JPY"}
_NAMES = {
    "canadian dollars": "CAD",
    "australian dollars": "AUD",
    "singapore dollars": "SGD",
    "us dollars": "USD",
    "u.s. dollars": "USD",
    "united states dollars": "USD",
    "dollars": "USD",
    "euros": "EUR",
    "euro": "EUR",
    "pounds sterling": "GBP",
    "pounds": "GBP",
    "swiss francs": "CHF",
    "swedish kronor": "SEK",
}
_BEFORE = "|".join([*CODES, *(re.escape(sign) for sign in sorted(_SIGNS, key=len, reverse=True))])
_AFTER = "|".join([*(re.escape(name) for name in sorted(_NAMES, key=len, reverse=True)), *CODES, "€", "£"])
_SCALED = rf"{_NUMBER}(?:\s*(?:thousand|million|billion|bn|mn|m|k)\b)?"
_MONEY = re.compile(
    rf"(?<![A-Za-z])(?P<before>{_BEFORE})\s*(?P<number>{_SCALED})"
    rf"|(?P<words>{_SCALED})\s*(?P<after>{_AFTER})(?![A-Za-z])",
    re.IGNORECASE,
)

_ALSO_CALLED = {
    "England": "England and Wales",
    "English": "England and Wales",
    "Scots": "Scotland",
    "Scottish": "Scotland",
    "Irish": "Ireland",
    "German": "Germany",
    "French": "France",
    "Dutch": "Netherlands",
    "Belgian": "Belgium",
    "Austrian": "Austria",
    "Swiss": "Switzerland",
    "Spanish": "Spain",
    "Portuguese": "Portugal",
    "Italian": "Italy",
    "Danish": "Denmark",
    "Swedish": "Sweden",
    "Norwegian": "Norway",
    "Finnish": "Finland",
    "Polish": "Poland",
    "Panamanian": "Panama",
    "Californian": "California",
    "Texan": "Texas",
    "Cayman": "Cayman Islands",
    "Indian": "India",
    "Japanese": "Japan",
}
_PLACE = r"(?<![\w'-])[A-Z][\w'-]{1,30}(?:(?:\s(?:and|of|the)){0,2}\s[A-Z][\w'-]{1,30}){0,6}"
_LAWS_OF = re.compile(rf"\b[Ll]aws?(?:\s+(?:in\s+force\s+in|applicable\s+in|of))\s+(?:[Tt]he\s+)?(?P<place>{_PLACE})")
_LAW_AFTER = re.compile(rf"(?P<place>{_PLACE})\s+[Ll]aw\b")
_STYLE_OF_STATE = re.compile(
    r"^(?:(?:Federal|French|Italian|Portuguese|Swiss)\s+)?"
    r"(?:State|Republic|Kingdom|Commonwealth|Province|Confederation)\s+of\s+(?:the\s+)?"
)


def plain(text: str) -> str:
    """`text` with every run of white space as one blank, and curly quotes straightened."""
    return " ".join(text.replace("\u2019", "'").replace("\u2018", "'").split())


def _number(text: str) -> Decimal | None:
    """The number written in digits or English words, or None when it isn't clearly one.

    `1,000,000.50`, `1 000 000` and `1'000'000` are read; `750.000` and `1,5` are not, because half of Europe means
    something else by them than the other half.
    """
    text = text.strip().lower()
    digits = re.fullmatch(r"(\d{1,3}(?:[,' ]\d{3})+|\d+)(\.\d+)?", text)
    if digits:
        if re.fullmatch(r"\d{1,3}\.\d{3}", text):
            return None
        return Decimal(re.sub(r"[,' ]", "", digits[1]) + (digits[2] or ""))
    return _number_in_words(re.split(r"[\s-]+", text))


def _number_in_words(words: Sequence[str]) -> Decimal | None:
    """The value of number words in order, `one hundred and twenty` → 120; None for what isn't one number."""
    total, group, previous = 0, 0, ""
    for word in words:
        if word in _UNITS:
            is_unit_after_ten = previous in _TENS and 1 <= _UNITS[word] <= 9
            if previous in _UNITS and not is_unit_after_ten:
                return None
            group += _UNITS[word]
        elif word == "hundred" and 0 < group < 10:
            group *= 100
        elif word in _SCALES and group:
            total, group = total + group * _SCALES[word], 0
        elif word == "and" and (previous == "hundred" or previous in _SCALES):
            pass
        else:
            return None
        previous = word
    return Decimal(total + group) if previous and previous != "and" else None


def _scaled(text: str) -> Decimal | None:
    """Like `number`, also for digits with a scale: `2.5 million`, `5m`."""
    match = re.fullmatch(rf"(?P<digits>[\d.,' ]*\d)\s*(?P<scale>{'|'.join(_SHORT)})", text.strip(), re.IGNORECASE)
    if match is None:
        return _number(text)
    number = _number(match["digits"])
    return None if number is None else number * _SHORT[match["scale"].lower()]


def _twice(match: re.Match[str]) -> list[Decimal] | None:
    """The _number(s) of a match, None when one can't be read or "thirty (60)" contradicts itself."""
    number = _number(match["number"])
    again = re.match(rf"\s*({_NUMBER})", match["again"] or "", re.IGNORECASE)
    if number is None or (again and _number(again[1]) != number):
        return None
    if match["low"] is None:
        return [number]
    low = _number(match["low"])
    return None if low is None else [low, number]


def read_days(quote: str) -> tuple[Quantity, ...]:
    """Every duration in `quote` in calendar days, in order; empty when one of them can't be read with certainty.

    A week is 7 days, a month 30, a year 365; five business days are seven days, rounded up. `net 30` counts. "End of
    the month" is up to 30 days more than it says, so such a quote isn't read.
    """
    if _MONTH_END.search(quote):
        return ()
    days = {"day": Decimal(1), "week": Decimal(7), "month": Decimal(30), "year": Decimal(365)}
    values = _durations(quote, days, "days")
    if values is None:
        return ()
    return tuple(values) or tuple(Quantity(Decimal(match["number"]), "days") for match in _NET.finditer(plain(quote)))


def read_months(quote: str) -> tuple[Quantity, ...]:
    """Every duration in `quote` in months, in order; empty when one of them can't be read with certainty.

    A year is 12 months, 30 days are one, a week is 7 of those days; rounded to a tenth.
    """
    months = {"day": Decimal(1) / 30, "week": Decimal(7) / 30, "month": Decimal(1), "year": Decimal(12)}
    values = _durations(quote, months, "months")
    return () if values is None else tuple(Quantity(round(amount, 1), unit) for amount, unit in values)


def _durations(quote: str, per_unit: Mapping[str, Decimal], name: str) -> list[Quantity] | None:
    values = []
    for match in _DURATION.finditer(plain(quote)):
        numbers = _twice(match)
        if numbers is None:
            return None
        for number in numbers:
            if (match["adjective"] or "").lower() in ("business", "working", "banking"):
                number = (number * 7 / 5).to_integral_value(ROUND_CEILING)
            values.append(Quantity(number * per_unit[match["unit"].lower()], name))
    return values


def read_percent(quote: str) -> tuple[Quantity, ...]:
    """Every percentage in `quote`, in order; empty when one of them can't be read with certainty."""
    values = []
    for match in _PERCENT.finditer(plain(quote)):
        numbers = _twice(match)
        if numbers is None:
            return ()
        values += [Quantity(number, "percent") for number in numbers]
    return tuple(values)


def read_money(quote: str) -> tuple[Quantity, ...]:
    """Every amount of money in `quote` with its currency, in order; empty when one can't be read with certainty."""
    values = []
    for match in _MONEY.finditer(plain(quote)):
        amount = _scaled(match["number"] or match["words"])
        if amount is None:
            return ()
        mark = match["before"] or match["after"]
        values.append(Quantity(amount, _NAMES.get(mark.lower()) or _SIGNS.get(mark.upper()) or mark.upper()))
    return tuple(values)


def read_law(quote: str, known: Iterable[str] = ()) -> tuple[str, ...]:
    """Every jurisdiction whose law `quote` names, each once; empty when none can be read.

    "the laws of the State of New York", "law applicable in Germany" and "English law" are understood. After "laws of"
    any name counts, as it stands; before "law" only names and adjectives this file knows and those in `known`,
    because "Governing law" and "Common law" are no places.
    """
    text = plain(quote)
    names = {name.lower(): name for name in (*_ALSO_CALLED.values(), *known)}
    names |= {other.lower(): name for other, name in _ALSO_CALLED.items() if other.lower() not in names}
    found: dict[str, None] = {}
    for match in _LAWS_OF.finditer(text):
        place = _STYLE_OF_STATE.sub("", match["place"]).removesuffix(" State")
        parts = [place] if place.lower() in names else re.split(r"\s+and\s+", place)
        found |= dict.fromkeys(names.get(part.lower(), part) for part in parts)
    for match in _LAW_AFTER.finditer(text):
        words = match["place"].removesuffix(" State").lower().split()
        endings = (" ".join(words[start:]) for start in range(len(words)))
        found |= dict.fromkeys([names[ending] for ending in endings if ending in names][:1])
    return tuple(found)
