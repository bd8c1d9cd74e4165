"""Text → passages: sentences or clauses of about 80 to 600 characters, each with its offsets and its heading.

Made for text as it comes out of documents: hard line wraps, columns of spaces, form feeds, page numbers and running
headers in the middle of a sentence, numbered clauses, headings on their own line or run in ("6.1 Fees. The …"), whole
paragraphs in capitals. Nothing is rewritten: a passage is always `text[start:end]`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

MIN_CHARS = 80
"""A shorter sentence joins its neighbour of the same paragraph: alone it says too little to be judged."""
MAX_CHARS = 600
"""A longer sentence is cut at a clause: what is quoted should be read at a glance."""
MAX_HEADING_CHARS = 100
RUNNING_LINE_TIMES = 3
"""A short line that occurs this often, and ends no sentence, is a running header or footer."""

MAX_FURNITURE_CHARS = 400
"""Between the halves of a torn sentence lies no more than this."""

_ENUMERATOR = (
    r"(?:\((?:[a-z]{1,4}|[A-Z]{1,4}|\d{1,3})\)|\d{1,3}(?:\.\d{1,3})+\.?|\d{1,3}[.)]|[A-Za-z][.)](?=\s)|[IVXLC]{1,6}[.)]"
    r"|(?:section|article|clause|schedule|annex|appendix|§+)\s*[\dIVXLCA-Z]{1,5}(?:[.\-]\d{1,3})*[.):]?|[•▪◦*–-])"
)
# Either after a stop, or from the first character of a run of whitespace: a run is never scanned twice.
_GAP = re.compile(r"(?P<stop>[.;:?!][\"”’'»)\]]{0,3})(?=\s)\s+|(?<!\s)(?:\s{3,}|[ \t\xa0]{0,2}[\n\r\f]\s*)")
_STARTS_CLAUSE = re.compile(_ENUMERATOR + r"(?=\s|[A-Z(\"“])", re.IGNORECASE)
_ONLY_ENUMERATOR = re.compile(r"\W{0,2}" + _ENUMERATOR + r"\W{0,2}", re.IGNORECASE)
_LABEL = re.compile(r"[A-Za-z]\w{0,63}(?: \w{1,30}){0,3}:[ \t]")
_NOISE = re.compile(
    r"\W{0,4}(?:page\s+)?(?:[A-Z]{1,3}-)?(?:\d{1,4}|[ivxlc]{1,6})(?:\s+of\s+\d{1,4})?\W{0,4}", re.IGNORECASE
)
_ABBREVIATION = re.compile(
    r"(?:^|[\s(\"“])(?:[A-Z]|[A-Za-z](?:\.[A-Za-z])+|inc|ltd|co|corp|llc|no|nos|mr|mrs|ms|dr|st|vs?|art|arts|sec|sect|cl|"
    r"para|paras|fig|vol|pp?|etc|approx|dept|ave|blvd|jan|feb|mar|apr|jun|jul|aug|sept?|oct|nov|dec|cf|al|ext|tel|nr|poz|"
    r"ust|bhd|sdn|plc|jr|sr|prof|hon|rev|gen)$",
    re.IGNORECASE,
)
_RUN_IN = re.compile(
    r"(?P<number>\W{0,2}" + _ENUMERATOR + r"\W{0,2}\s+)?"
    r"(?P<title>[A-Z\"“][\w'’&,/()\-\"” ]{2,90}?)"
    r"(?:(?P<stop>[.:]|\s[-–—])[\"”]?\s+)(?=[A-Z(\"“\d]|[a-z]{2,})"
)
_NUMBER = re.compile(r"\W{0,2}" + _ENUMERATOR + r"\W{0,2}\s+", re.IGNORECASE)
_CUTS = (
    re.compile(r"(?<=[;:])\s+"),
    re.compile(
        r"(?<=,)\s+(?=(?:provided|except|unless|but|however|and|or|which|whether|including)\b|\()", re.IGNORECASE
    ),
    re.compile(r"\s+(?=\((?:[a-z]{1,3}|\d{1,2})\)\s)"),
    re.compile(r"(?<=,)\s+"),
    re.compile(r"\s+"),
)
_SMALL_WORDS = frozenset(
    "a an and as at by for from in into no not of on or per the to under upon with without".split()
)


class Unit(NamedTuple):
    """One passage: `text[start:end]`."""

    start: int
    """Where it begins, its number and run-in heading included."""
    end: int
    body: int
    """Where its words begin after number and run-in heading, `start <= body < end`; quote `text[body:end]`."""
    heading: str
    """The headings it stands under, outermost first, as one line; empty where there is none."""
    is_heading: bool
    """True where it is nothing but a heading: context, hardly an answer."""


class _Piece(NamedTuple):
    start: int
    end: int
    opens: bool
    """A paragraph begins here."""


def split(text: str) -> list[Unit]:
    """The passages of `text` in order, without overlaps; whitespace, page numbers and running lines lie between."""
    units: list[Unit] = []
    section = ""
    was_heading = False
    for piece in _sized(text, _sentences(text)):
        passage = text[piece.start : piece.end]
        if piece.opens and _is_heading(passage):
            title = _flat(passage)
            section = f"{section} {title}"[-2 * MAX_HEADING_CHARS :] if was_heading else title
            was_heading = True
            units.append(Unit(piece.start, piece.end, piece.start, section, True))
            continue
        was_heading = False
        body, own = _run_in(passage)
        heading = f"{section} {own}".strip() if own else section
        units.append(Unit(piece.start, piece.end, piece.start + body, heading, False))
    return units


class Span(NamedTuple):
    """`text[start:end]`."""

    start: int
    end: int


def sentences(passage: str) -> list[Span]:
    """The sentences of one passage, however short; clauses parted by semicolons count as sentences."""
    return [Span(piece.start, piece.end) for piece in _raw(passage)]


def _sentences(text: str) -> list[_Piece]:
    """Sentences, with what a page break tore apart joined again and page furniture left out."""
    noise = _running_lines(text)
    joined: list[_Piece] = []
    skipped = False
    for piece in _raw(text):
        passage = text[piece.start : piece.end]
        if _NOISE.fullmatch(passage) or (noise and _flat(passage) in noise):
            skipped = True
            continue
        if joined and (skipped or piece.opens) and _goes_on(text, joined[-1], piece):
            joined[-1] = joined[-1]._replace(end=piece.end)
        else:
            joined.append(piece._replace(opens=True) if skipped else piece)
        skipped = False
    return joined


def _goes_on(text: str, left: _Piece, right: _Piece) -> bool:
    if text[left.end - 1] in ".;:?!" or not text[right.start].islower() or right.start - left.end > MAX_FURNITURE_CHARS:
        return False
    return _LABEL.match(text, right.start) is None


def _raw(text: str) -> Iterator[_Piece]:
    start = len(text) - len(text.lstrip())
    opens = True
    for match in _GAP.finditer(text, start):
        after = match.end()
        if after >= len(text):
            break
        stop = match["stop"] or ""
        end = match.start() + len(stop)
        gap = text[end:after]
        if end <= start:
            continue
        is_paragraph = gap.count("\n") >= 2 or "\f" in gap
        if _breaks(text, start, end, stop, gap, after, is_paragraph):
            yield _Piece(start, end, opens)
            start, opens = after, is_paragraph or "\n" in gap or len(gap) >= 3
    end = len(text.rstrip())
    if end > start:
        yield _Piece(start, end, opens)


def _breaks(text: str, start: int, end: int, stop: str, gap: str, after: int, is_paragraph: bool) -> bool:
    """Whether the gap between `end` and `after` parts two sentences."""
    following = text[after]
    if is_paragraph:
        return True
    begins_line = "\n" in gap
    if begins_line and (_LABEL.match(text, after) or (end - start < MIN_CHARS and _LABEL.match(text, start))):
        return True
    if stop:
        if end - start < 16 and _ONLY_ENUMERATOR.fullmatch(text, start, end):
            return False
        if stop[0] == ".":
            word_ends = end - len(stop)
            return not following.islower() and not _ABBREVIATION.search(text, max(start, word_ends - 8), word_ends)
        if stop[0] in ";?!":
            return stop[0] == ";" or not following.islower()
        return (begins_line or len(gap) >= 3) and _STARTS_CLAUSE.match(text, after) is not None
    if begins_line or len(gap) >= 3:
        if _STARTS_CLAUSE.match(text, after):
            return begins_line or not following.isdigit()
        return len(gap) >= 4 and not begins_line and following.isupper() and text[end - 1] != ","
    return False


def _running_lines(text: str) -> frozenset[str]:
    lines = Counter(_flat(line) for line in text.split("\n") if 2 < len(line) < MAX_HEADING_CHARS)
    often = (line for line, times in lines.items() if line and times >= RUNNING_LINE_TIMES)
    return frozenset(line for line in often if line[-1] not in ".;:")


def _sized(text: str, pieces: list[_Piece]) -> Iterator[_Piece]:
    """Short sentences joined within their paragraph, long ones cut at clauses."""
    held: _Piece | None = None
    for piece in pieces:
        if held is not None:
            if not piece.opens and held.end - held.start < MIN_CHARS and piece.end - held.start <= MAX_CHARS:
                held = held._replace(end=piece.end)
                continue
            is_rest = piece.end - piece.start < MIN_CHARS // 2 and not _STARTS_CLAUSE.match(text, piece.start)
            if not piece.opens and is_rest and piece.end - held.start <= MAX_CHARS:
                held = held._replace(end=piece.end)
                continue
            yield from _cut(text, held)
        held = piece
    if held is not None:
        yield from _cut(text, held)


def _cut(text: str, piece: _Piece) -> Iterator[_Piece]:
    start, end, opens = piece
    while end - start > MAX_CHARS:
        cut = _cut_at(text, start, end)
        yield _Piece(start, cut[0], opens)
        start, opens = cut[1], False
    if end > start:
        yield _Piece(start, end, opens)


class _Cut(NamedTuple):
    end: int
    start: int


def _cut_at(text: str, start: int, end: int) -> _Cut:
    """The last good place to cut in the second half of what fits; anywhere where there is none."""
    low, high = start + MAX_CHARS // 3, start + MAX_CHARS
    for pattern in _CUTS:
        places = [m for m in pattern.finditer(text, low, high) if m.end() < end and m.start() <= high]
        if places:
            return _Cut(places[-1].start(), places[-1].end())
    return _Cut(high, high)


def _is_heading(passage: str) -> bool:
    if len(passage) > MAX_HEADING_CHARS or passage[-1] in ",;":
        return False
    number = _NUMBER.match(passage)
    title = passage[number.end() :] if number else passage
    words = re.findall(r"[^\W\d_][\w'’]*", title)
    if not words or len(words) > 12:
        return bool(number) and not words
    if title.isupper():
        return True
    if any(word[0].islower() and word not in _SMALL_WORDS for word in words):
        return False
    return _LABEL.match(passage) is None and not any(ch.isdigit() for ch in title)


def _run_in(passage: str) -> tuple[int, str]:
    """How long number and run-in heading are, and the heading's words."""
    match = _RUN_IN.match(passage)
    if match is not None and match.end() < len(passage):
        title = match["title"]
        words = re.findall(r"[^\W\d_][\w'’]*", title)
        if 0 < len(words) <= 10 and not any(word[0].islower() and word not in _SMALL_WORDS for word in words):
            return match.end(), _flat(title)
        if match["number"] and 0 < len(words) <= 6 and match["stop"] != ":" and len(passage) - match.end() > MIN_CHARS:
            return match.end(), _flat(title)
    number = _NUMBER.match(passage)
    return (number.end(), "") if number is not None and number.end() < len(passage) else (0, "")


def _flat(text: str) -> str:
    return " ".join(text.split())
