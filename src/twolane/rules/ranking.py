"""Which passage answers a question: BM25 over light stems, cue phrases, headings and the kind of answer asked for.

Untrained and of no particular domain. A question brings what it needs: its words, and, in single quotes, the
expressions its answer is likely to use (`'is governed by', 'laws of'`). A text is read once into an `Index`; any number
of questions are then scored against it.

Source of BM25: S. Robertson, H. Zaragoza, The Probabilistic Relevance Framework: BM25 and Beyond (2009).
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import chain
from math import exp, log

from twolane.rules.passages import Unit, sentences, split

# Tried on labelled contracts (`tests/load/extraction_quality.py --half tune`). They lie on a plateau: moving one at a
# time (CUE_WEIGHT aside, which sets the scale) changed the share of right first passages by less than 0.01.
K1, B = 1.2, 0.5
"""BM25: saturation of repeated words, and how much long passages pay. Passages are of like size, so B is low."""
CUE_WEIGHT = 1.0
"""A whole, rare cue phrase outweighs all plain words together: whoever wrote it knew how answers sound."""
NEGATIVE_WEIGHT = 0.8
WORDS_WEIGHT = 0.8
HEADING_WEIGHT = 0.35
KIND_WEIGHT = 0.12
GAP_CHARS = 90
"""How far apart the parts of a cue with a gap may stand."""
OPENING_WEIGHT, OPENING_UNITS = 0.6, 6
"""A question for something in the opening words prefers about the first so many passages."""
EARLY_WEIGHT = 0.02
"""Between equals the earlier passage wins."""
ALONE = 0.7
"""A sentence stands for its passage when it has this share of its weight."""
HEADING_ONLY_FACTOR = 0.3
"""A heading is seldom an answer."""

_WORD = re.compile(r"[^\W_]+")
_QUOTED = re.compile(r"(?<![^\W_])'((?:[^'\n]|(?<=[^\W_])'(?=[^\W_])){2,80})'(?![^\W_])|‘([^’\n]{2,80})’")
_NOT = re.compile(r"(?:^|[\s,;(])(?:but not|not|nor|never|rather than|except)\s*:?\s*$", re.IGNORECASE)
_LIST_GOES_ON = re.compile(r"\s*(?:,|or|and|,\s*or|,\s*and|nor)\s*", re.IGNORECASE)
_STOP = frozenset(
    "a about all also an and any are as at be been being but by can did do does each either else for from give "
    "given had happen happens has have how i if in into is it its itself list look may me more most must my name "
    "no nor not of on one only or other our out quote say says shall she should show so some such tell than that "
    "the their them then there these they this those to under until up upon was we were what when where whether "
    "which while who whom whose why will with would you your".split()
)
_SUFFIXES = (
    "izations isations ization isation ations ation atings ating ated ative ators ator itions ition ments ment "
    "ances ance ences ence ings ing edly ed ities ity ably ibly able ible ally ives ive ions ion ates ate ers er "
    "ors or als al ly ies es s e y".split()
)
_MONTHS = (
    r"(?:jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?|sept?(?:ember)?|oct(?:ober)?|"
    r"nov(?:ember)?|dec(?:ember)?)"
)
_KINDS = {
    "date": re.compile(
        rf"\b{_MONTHS}\.?\s+\d{{1,2}}|\b\d{{1,2}}(?:st|nd|rd|th)?\s+(?:day\s+of\s+)?{_MONTHS}\b|\b\d{{4}}-\d\d-\d\d\b|"
        r"\b\d{1,2}[./]\d{1,2}[./]\d{2,4}\b"
    ),
    "duration": re.compile(r"\b(?:hour|day|week|month|quarter|year|anniversar)(?:s|ies|y|ly)?\b"),
    "amount": re.compile(r"[$€£¥]\s?\d|\d\s?(?:%|percent|per cent|dollars|euros?|usd|eur|gbp|pln|zł)"),
}
_ASKS = {
    "date": re.compile(r"\bdate[sd]?\b|\bwhen\b|\bwhat day\b", re.IGNORECASE),
    "duration": re.compile(r"\bhow long\b|\bperiods?\b|\bhow many (?:days|months|years)\b|\bduration\b", re.IGNORECASE),
    "opening": re.compile(r"\bopening\b|\bpreamble\b|\bat the (?:beginning|top|head)\b", re.IGNORECASE),
    "amount": re.compile(r"\bhow much\b|\bamounts?\b|\bprices?\b|\bpercentage\b", re.IGNORECASE),
}


@lru_cache(maxsize=65_536)
def stem(word: str) -> str:
    """The part of a lower-case word that its forms share: one suffix taken off, four letters or more left.

    Coarse on purpose (`terminate`, `terminating`, `termination` → `termin`): both sides are cut alike.
    """
    if len(word) < 5 or word[0].isdigit():
        return word[:-1] if len(word) == 4 and word[-1] == "s" and word[-2] not in "sui" else word
    for suffix in _SUFFIXES:
        if word.endswith(suffix) and len(word) - len(suffix) >= 4:
            if suffix == "s" and word[-2] in "su":
                return word
            word = word[: -len(suffix)]
            break
    if word[-1] == word[-2] and word[-1] not in "aeiouls":
        return word[:-1]
    return word


def stems(text: str) -> list[str]:
    """Every word of a text as its stem, in order."""
    return [stem(word) for word in _WORD.findall(text.lower())]


@dataclass(frozen=True, slots=True)
class Cue:
    """An expression that an answer is likely, or (negative) unlikely, to use. `…` or `...` stands for some words."""

    text: str
    """Lower case, single spaces."""
    words: int
    is_negative: bool = False


@dataclass(frozen=True, slots=True)
class Question:
    """What is looked for."""

    words: tuple[str, ...]
    """Distinct stems without function words."""
    cues: tuple[Cue, ...] = ()
    title: tuple[str, ...] = ()
    """The stems that a fitting heading would hold: those of the field's name."""
    kinds: tuple[str, ...] = ()
    """Kinds of answer asked for: date, duration, amount; `opening` where it stands in the opening words."""


def ask(description: str, name: str = "") -> Question:
    """A question from plain words: expressions in single quotes become cues, negative ones after `not`."""
    return _ask(description, name)


@lru_cache(maxsize=4096)
def _ask(description: str, name: str) -> Question:
    spoken = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", name).replace("_", " ")
    cues: list[Cue] = []
    plain: list[str] = []
    end, is_negative = 0, False
    for match in _QUOTED.finditer(description):
        between = description[end : match.start()]
        if not (cues and _LIST_GOES_ON.fullmatch(between)):
            is_negative = _NOT.search(between) is not None
        plain.append(between)
        end = match.end()
        text = " ".join((match[1] or match[2]).lower().replace("...", "…").split())
        if _WORD.search(text):
            cues.append(Cue(text, len(_WORD.findall(text)), is_negative))
    plain.append(description[end:])
    words = " ".join(plain)
    title = tuple(dict.fromkeys(part for part in content_stems(spoken)))
    return Question(
        words=tuple(dict.fromkeys([*title, *content_stems(words)])),
        cues=tuple(dict.fromkeys(cues)),
        title=title,
        kinds=tuple(kind for kind, asks in _ASKS.items() if asks.search(f"{spoken} {words}")),
    )


def content_stems(text: str) -> list[str]:
    """Stems of the words that carry meaning, in order; all of them where nothing else is left."""
    words = _WORD.findall(text.lower())
    return [stem(word) for word in words if word not in _STOP] or [stem(word) for word in words]


def join(outer: Question, inner: Question) -> Question:
    """`inner` asked within the context of `outer`: a field of an object."""
    return Question(
        words=tuple(dict.fromkeys([*inner.words, *outer.words])),
        cues=inner.cues or outer.cues,
        title=inner.title or outer.title,
        kinds=inner.kinds or outer.kinds,
    )


def _occurrences(cue: str, folded: str) -> Iterator[int]:
    """Where a cue begins in a folded text, at the beginning of a word. A gap `…` is at most `GAP_CHARS` of one line.

    Plain searches instead of a pattern: cues come from users, and a pattern with several gaps can backtrack for ever.
    """
    first, *rest = (part.strip() for part in cue.split("…") if part.strip())
    at = folded.find(first)
    while at >= 0:
        if (at == 0 or not folded[at - 1].isalnum()) and (not rest or _goes_on(folded, at + len(first), rest)):
            yield at
        at = folded.find(first, at + 1)


def _goes_on(folded: str, at: int, parts: Sequence[str]) -> bool:
    for part in parts:
        line_ends = folded.find("\n", at, at + GAP_CHARS + len(part))
        found = folded.find(part, at, line_ends if line_ends >= 0 else at + GAP_CHARS + len(part))
        if found < 0:
            return False
        at = found + len(part)
    return True


@dataclass(slots=True)
class Index:
    """The passages of one or more texts, read once. Build it with `read`."""

    texts: tuple[str, ...]
    units: tuple[Unit, ...]
    """All passages in order; offsets are those of their own text."""
    owner: tuple[int, ...]
    """For each passage, the position of its text in `texts`."""
    postings: dict[str, list[tuple[int, int]]]
    lengths: list[int]
    folded: str
    """Every passage in lower case with single spaces, one a line, so that a cue is found with one search."""
    starts: list[int]
    mean_length: float
    background: Index | None = None
    """The larger text this was taken from: it says how rare a word is."""
    _headings: dict[str, frozenset[str]] = field(default_factory=dict)
    _cues: dict[str, tuple[int, ...]] = field(default_factory=dict)
    _kinds: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def passage(self, number: int) -> str:
        """What to quote of a passage: without its number and run-in heading."""
        unit = self.units[number]
        return self.texts[self.owner[number]][unit.body : unit.end]

    def idf(self, word: str) -> float:
        """How much a stem tells apart the passages of this index."""
        if self.background is not None:
            return self.background.idf(word)
        return log(1 + (len(self.units) + 0.5) / (len(self.postings.get(word, ())) + 0.5))

    def find(self, cue: Cue) -> tuple[int, ...]:
        """The passages a cue occurs in, at the beginning of a word."""
        found = self._cues.get(cue.text)
        if found is None:
            found = self._cues[cue.text] = tuple(
                dict.fromkeys(bisect_right(self.starts, at) - 1 for at in _occurrences(cue.text, self.folded))
            )
        return found

    def of_kind(self, kind: str) -> tuple[int, ...]:
        """The passages that hold a date, a duration or an amount."""
        found = self._kinds.get(kind)
        if found is None:
            places = (bisect_right(self.starts, match.start()) - 1 for match in _KINDS[kind].finditer(self.folded))
            found = self._kinds[kind] = tuple(dict.fromkeys(places))
        return found

    def heading_stems(self, number: int) -> frozenset[str]:
        """Stems of the headings a passage stands under."""
        heading = self.units[number].heading
        known = self._headings.get(heading)
        if known is None:
            known = self._headings[heading] = frozenset(stems(heading))
        return known


def read(*texts: str, background: Index | None = None) -> Index:
    """Read texts into an index. A passage never reaches from one text into the next."""
    parted = [split(text) for text in texts]
    units = tuple(chain.from_iterable(parted))
    owner = tuple(number for number, part in enumerate(parted) for _ in part)
    postings: defaultdict[str, list[tuple[int, int]]] = defaultdict(list)
    lengths, starts, lines, at = [], [], [], 0
    for number, unit in enumerate(units):
        line = " ".join(texts[owner[number]][unit.start : unit.end].lower().replace("’", "'").split())
        counts = Counter([stem(word) for word in _WORD.findall(line)])
        for word, times in counts.items():
            postings[word].append((number, times))
        lengths.append(counts.total())
        lines.append(line)
        starts.append(at)
        at += len(line) + 1
    mean = sum(lengths) / len(lengths) if lengths else 1.0
    return Index(texts, units, owner, dict(postings), lengths, "\n".join(lines), starts, mean or 1.0, background)


@dataclass(frozen=True, slots=True)
class Scores:
    """How well each passage of an index answers one question."""

    total: list[float]
    """By passage. Comparable between questions and texts: 0 is nothing; a whole rare cue brings about 1."""
    words: list[float]
    """The part of plain words: 0 … about 1, the share of the question's weight that the passage covers."""

    def best(self, count: int = 1) -> list[int]:
        """The best passages with anything in their favour, best first; the earlier one between equals."""
        ranked = sorted(range(len(self.total)), key=lambda number: (-self.total[number], number))
        return [number for number in ranked[:count] if self.total[number] > 0]


def score(question: Question, index: Index) -> Scores:
    """Score every passage of `index` for `question`."""
    size = len(index.units)
    words = _words(question, index)
    total = [WORDS_WEIGHT * part for part in words]
    _add_cues(question.cues, index, total)
    touched = [number for number in range(size) if total[number] > 0]
    if question.title:
        weights = {word: index.idf(word) for word in question.title}
        whole = sum(weights.values()) or 1.0
        for number in touched:
            known = index.heading_stems(number)
            total[number] += HEADING_WEIGHT * sum(weights[word] for word in question.title if word in known) / whole
    for kind in question.kinds:
        if kind == "opening":
            for number in touched:
                total[number] += OPENING_WEIGHT * exp(-number / OPENING_UNITS)
            continue
        for number in index.of_kind(kind):
            if total[number] > 0:
                total[number] += KIND_WEIGHT
    for number in touched:
        total[number] += EARLY_WEIGHT * (1 - number / size)
        if index.units[number].is_heading:
            total[number] *= HEADING_ONLY_FACTOR
    return Scores(total, words)


def tighten(question: Question, passage: str, index: Index) -> str:
    """The one sentence of a passage that carries its answer; the whole passage where no sentence does alone.

    A sentence carries it when it holds every cue that the passage holds, and `ALONE` of the weight of its words.
    """
    spans = sentences(passage)
    if len(spans) < 2:
        return passage
    parts = [passage[span.start : span.end] for span in spans]
    cues = [cue for cue in question.cues if not cue.is_negative]
    wanted = set(question.words)

    def held(text: str) -> tuple[int, float]:
        folded = " ".join(text.lower().replace("’", "'").split())
        count = sum(any(True for _ in _occurrences(cue.text, folded)) for cue in cues)
        return count, sum(index.idf(word) for word in wanted & set(stems(text)))

    whole_cues, whole_words = held(passage)
    best, (cue_count, weight) = max(((part, held(part)) for part in parts), key=lambda scored: scored[1])
    if not whole_cues and not whole_words:
        return passage
    return best if cue_count == whole_cues and weight >= ALONE * whole_words else passage


def _words(question: Question, index: Index) -> list[float]:
    """BM25 as a share of what a passage that holds every word once would get."""
    points = [0.0] * len(index.units)
    whole = sum(index.idf(word) for word in question.words)
    if not whole:
        return points
    norms = [K1 * (1 - B + B * length / index.mean_length) for length in index.lengths]
    for word in question.words:
        weight = index.idf(word) / whole
        for number, times in index.postings.get(word, ()):
            points[number] += weight * times * (K1 + 1) / (times + norms[number])
    return points


def _add_cues(cues: Sequence[Cue], index: Index, total: list[float]) -> None:
    """Distinct cues add up with diminishing returns, the more the longer and the rarer they are."""
    size = len(index.units)
    missing: defaultdict[int, float] = defaultdict(lambda: 1.0)
    for cue in cues:
        found = index.find(cue)
        if not found:
            continue
        rarity = max(0.1, 1 - log(len(found)) / log(size + 10))
        length = (0.45, 0.7, 0.9)[cue.words - 1] if cue.words < 4 else 1.0
        if cue.is_negative:
            for number in found:
                total[number] -= NEGATIVE_WEIGHT * length
        else:
            for number in found:
                missing[number] *= 1 - 0.75 * rarity * length
    for number, left in missing.items():
        total[number] += CUE_WEIGHT * 1.5 * (1 - left)
