"""How good was an audit? Reports against gold: breaches by rule, facts by the passage they quote."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

OVERLAP = 0.5
"""A quote answers a gold passage when they share at least this part of the shorter one's letters and digits."""


@dataclass(frozen=True, slots=True)
class Score:
    """Counts over all contracts; precision and recall are None where nothing was found or expected."""

    right: int
    found: int
    expected: int

    @property
    def precision(self) -> float | None:
        """The share of what was found that is right."""
        return self.right / self.found if self.found else None

    @property
    def recall(self) -> float | None:
        """The share of what was expected that was found."""
        return self.right / self.expected if self.expected else None

    def __str__(self) -> str:
        parts = (("precision", self.precision), ("recall", self.recall))
        shares = ", ".join(f"{name} {'unknown' if value is None else f'{value:.3f}'}" for name, value in parts)
        return f"{shares} ({self.right} right of {self.found} found, {self.expected} expected)"


def score(reports: Mapping[str, Any], gold: Mapping[str, Any]) -> tuple[Score, Score]:  # Any: JSON
    """(breaches, facts) of these reports, by contract id, against gold of the shape in `examples/gold.json`.

    A passage that went to a person is neither found nor right. Contracts without a report count as found nothing.
    """
    breaches, facts = [0, 0, 0], [0, 0, 0]
    for name, truth in gold.items():
        if truth["quarantine"]:
            continue
        report = reports.get(name, {"findings": [], "facts": []})
        said = {each["rule"] for each in report["findings"] if each["status"] == "breach"}
        planted = set(truth["breaches"])
        _add(breaches, len(said & planted), len(said), len(planted))
        quotes = {each["question"]: each["quote"]["text"] for each in report["facts"] if each["quote"]}
        for question, passage in truth["facts"].items():
            quote = quotes.get(question)
            is_right = bool(quote and passage) and overlaps(quote or "", passage or "")
            _add(facts, int(is_right), int(quote is not None), int(passage is not None))
    return Score(*breaches), Score(*facts)


def overlaps(quote: str, passage: str) -> bool:
    """True when the two share a run of letters and digits of at least `OVERLAP` of the shorter one."""
    one, other = sorted((_letters(quote), _letters(passage)), key=len)
    need = max(1, int(len(one) * OVERLAP))
    return any(one[start : start + need] in other for start in range(len(one) - need + 1))


def _letters(text: str) -> str:
    return "".join(character for character in text.lower() if character.isalnum())


def _add(counts: list[int], right: int, found: int, expected: int) -> None:
    counts[0] += right
    counts[1] += found
    counts[2] += expected
