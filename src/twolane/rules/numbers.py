"""The numbers of a passage, in digits and in words, and which of them a question asks for."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

from twolane.rules.ranking import content_stems

_DIGITS = re.compile(
    r"(?<![\w.,])[-–]?\d+(?:[,'\u00a0 ]\d{3})*(?:\.\d+)?(?![\w]|[.,]\d)|(?<![\w.,])[-–]?\d+(?:,\d+)?(?!\w)"
)
_ONES = {
    word: number
    for number, word in enumerate(
        "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
        "seventeen eighteen nineteen".split()
    )
}
_TENS = {word: 10 * n for n, word in enumerate("twenty thirty forty fifty sixty seventy eighty ninety".split(), 2)}
_SCALES = {"hundred": 100, "thousand": 1_000, "million": 1_000_000, "billion": 1_000_000_000}
_NUMBER_WORDS = frozenset(_ONES) | frozenset(_TENS) | frozenset(_SCALES)
_NUMBER_WORD = "|".join(sorted(_NUMBER_WORDS, key=len, reverse=True))
_IN_WORDS = re.compile(rf"\b(?:{_NUMBER_WORD})\b(?:(?:\s+and\s+|[\s-]+)(?:{_NUMBER_WORD})\b)*", re.IGNORECASE)
_TIMES = ("second", "minute", "hour", "day", "week", "month", "quarter", "year")
_CURRENCIES = ("$", "€", "£", "USD", "EUR", "GBP", "PLN")
_MEASURES = {
    "percent": re.compile(r"\s*\)?\s*(?:%|per\s?cent)", re.IGNORECASE),
    "money": re.compile(r"\s*\)?\s*(?:dollars|euros?|usd|eur|gbp|pln|zł|[$€£])", re.IGNORECASE),
    **{
        unit: re.compile(rf"\s*\)?\s*(?:(?:calendar|business|working|consecutive)\s+)?{unit}", re.IGNORECASE)
        for unit in _TIMES
    },
}
_ASKS_MEASURE = {
    "percent": re.compile(r"percent|per cent|%|\brates?\b", re.IGNORECASE),
    "money": re.compile(r"amount|price|money|fees?\b|cost|\bsum\b|usd|eur\b|dollar|euro|payment", re.IGNORECASE),
    **{unit: re.compile(rf"{unit}s?(?:\b|_)", re.IGNORECASE) for unit in _TIMES},
}


class _Number(NamedTuple):
    value: float
    start: int
    end: int


def numbers_in(passage: str, wanted: str, near_to: Collection[str]) -> list[float]:
    """The numbers of a passage, the likeliest first: those of the unit that `wanted` names, then by nearness to words
    with these stems."""
    found = [*_digits(passage), *_in_words(passage)]
    measures = [name for name, asks in _ASKS_MEASURE.items() if asks.search(wanted)]
    stems = set(near_to)
    near = [m.start() for m in re.finditer(r"[^\W_]+", passage) if set(content_stems(m[0])) & stems]
    ranked = []
    for number in found:
        has_unit = any(
            _MEASURES[name].match(passage, number.end) is not None
            or (name == "money" and passage[max(0, number.start - 4) : number.start].rstrip().endswith(_CURRENCIES))
            for name in measures
        )
        distance = min((abs(number.start - place) for place in near), default=0)
        ranked.append((not has_unit, distance, number.start, number.value))
    return [value for *_, value in sorted(ranked)]


def _digits(passage: str) -> Iterator[_Number]:
    for match in _DIGITS.finditer(passage):
        plain = re.sub(r"[,'\u00a0 ](?=\d{3})", "", match[0]).replace("–", "-").replace(",", ".")
        scale = re.match(r"\s*(hundred|thousand|million|billion)\b", passage[match.end() :], re.IGNORECASE)
        factor = _SCALES[scale[1].lower()] if scale else 1
        yield _Number(float(plain) * factor, match.start(), match.end() + (scale.end() if scale else 0))


def _in_words(passage: str) -> Iterator[_Number]:
    for match in _IN_WORDS.finditer(passage):
        words = [word for word in re.split(r"[\s-]+", match[0].lower()) if word != "and"]
        # "thirty (30) days": the unit stands after the digits in brackets
        digits = re.match(r"\s*\(\s*\d[\d,.]*\s*\)?", passage[match.end() :])
        yield _Number(_spoken(words), match.start(), match.end() + (digits.end() if digits else 0))


def _spoken(words: Sequence[str]) -> float:
    total, group = 0, 0
    for word in words:
        if word in _SCALES and word != "hundred":
            total, group = total + max(group, 1) * _SCALES[word], 0
        elif word == "hundred":
            group = max(group, 1) * 100
        else:
            group += _ONES.get(word, 0) + _TENS.get(word, 0)
    return float(total + group)
