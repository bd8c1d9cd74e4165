"""Fill any JSON Schema with verbatim passages of a text, or answer a question by quoting: an extractive model as rules.

A field's name and description are the question; expressions in single quotes are cues (`twolane.rules.ranking`). Every
string in the result is a substring of the text. Where nothing fits it abstains: null or an empty list where the schema
allows it; otherwise the property is left out, so that validation refuses the reply instead of accepting an invention.

A line `field_name: …` labels its value: when the text has one for a field, that value alone is the field's evidence. It
reaches to the next such line or to a blank line. A value shorter than a sentence is taken as it stands; a longer one is
judged like any passage, so that a checker can be asked about given quotes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import jsonschema_rs

from twolane.rules.numbers import numbers_in
from twolane.rules.passages import MIN_CHARS
from twolane.rules.ranking import Index, Question, Scores, ask, join, read, score, stems, tighten

# Chosen on 60 contracts with expert labels (`python tests/load/extraction_quality.py PATH --half tune`), where presence
# was wrongly claimed about as often as wrongly denied; the same script without `--half` measures the other 60.
CUED_SCORE = 0.9
"""From here a passage answers a question that has cues: a rare cue of three words, or a lesser one and the words."""
PLAIN_SCORE = 0.3
"""From here a passage answers a question of plain words: about three eighths of the question's weight."""
EXPLAINED_SCORE = 0.1
"""A value of an enum that the description explains needs but one of the explaining words."""
LABELLED_FACTOR = 0.5
"""Evidence that was labelled with the field's name needs to convince only half as much."""
NEAR_BEST = 0.6
"""A second answer must reach this share of the best one's score."""
MAX_ANSWERS = 3
MAX_ITEMS = 5
MAX_DEPTH = 10
"""Recursive schemas end here."""

_LABEL = re.compile(r"^[ \t]*([A-Za-z][A-Za-z0-9_]{0,63}):[ \t]*(?=\S)", re.MULTILINE)
_ENDS_LABELLED = re.compile(r"\n[ \t]*(?:\n|[A-Za-z][A-Za-z0-9_]{0,63}:[ \t])")
_SPOKEN_LABEL = re.compile(r"[^\n:]{2,60}:\s+")
_NOTHING_SAID = frozenset({"null", "none", "n/a", "-", "–", "—", '""', "''", "unknown", "not found"})
_GENERIC = frozenset(
    "answer answers content evidence excerpt output passage passages quote quotes quotation reply response result text "
    "value".split()
)
"""Names that say nothing about what is asked; the instruction or the enclosing field does."""
_YES, _NO = frozenset({"yes", "true", "present", "y"}), frozenset({"no", "false", "absent", "n"})


@dataclass(frozen=True, slots=True)
class Passage:
    """A quotation: `source text[start:end] == text`."""

    text: str
    start: int
    end: int
    source_id: str = ""
    score: float = 0.0


class _Filled(NamedTuple):
    """What a schema was filled with."""

    value: object
    found: int
    """Leaves that came from the text."""
    is_complete: bool = True
    """False where a required property had to be left out."""


_ABSENT: Final = None


def fill(schema: Mapping[str, object], text: str | Sequence[str], *, topic: str = "") -> object:
    """An instance of `schema` whose strings are verbatim passages of `text`; several texts are kept apart.

    `topic` is the instruction that came with the schema; it is the question of fields whose names say nothing
    (`answer`, `quote`). The instance may miss required properties for which nothing was found. None when even the
    root has nothing.
    """
    texts = (text,) if isinstance(text, str) else tuple(text)
    filler = _Filler(schema, read(*texts), _labelled(texts), ask(topic))
    filled = filler.fill(schema, "", None, filler.index, 0)
    return filled.value if filled is not None else None


def answer(question: str, text: str, source_id: str = "") -> list[Passage]:
    """The one to three passages of a text that answer a question, best first; none where nothing fits."""
    return answer_from(question, {source_id: text})


def answer_from(question: str, sources: Mapping[str, str]) -> list[Passage]:
    """`answer` over several texts, by their ids: a passage is judged against all of them."""
    ids = tuple(sources)
    index = read(*sources.values())
    asked = ask(question)
    scores = score(asked, index)
    best = _answers(asked, scores, MAX_ANSWERS)
    return [
        Passage(
            index.passage(number),
            index.units[number].body,
            index.units[number].end,
            ids[index.owner[number]],
            round(scores.total[number], 4),
        )
        for number in best
        if not index.units[number].is_heading
    ]


def _threshold(question: Question) -> float:
    return CUED_SCORE if any(not cue.is_negative for cue in question.cues) else PLAIN_SCORE


def _answers(question: Question, scores: Scores, count: int, factor: float = 1.0) -> list[int]:
    """The passages that answer, best first."""
    best = scores.best(count)
    if not best:
        return []
    least = max(factor * _threshold(question), NEAR_BEST * scores.total[best[0]])
    return [number for number in best if scores.total[number] >= least]


def _labelled(texts: Sequence[str]) -> dict[str, str]:
    """Values of the lines `name: …`, by name; the first of each name counts."""
    values: dict[str, str] = {}
    for text in texts:
        for match in _LABEL.finditer(text):
            if match[1] not in values:
                ends = _ENDS_LABELLED.search(text, match.end())
                values[match[1]] = text[match.end() : ends.start() if ends else len(text)].strip()
    return values


@dataclass(slots=True)
class _Filler:
    root: Mapping[str, object]
    index: Index
    labelled: Mapping[str, str]
    topic: Question
    _asked: dict[tuple[int, Question], Scores] = field(default_factory=dict)

    def fill(
        self, schema: object, name: str, outer: Question | None, index: Index, depth: int, *, has_label: bool = False
    ) -> _Filled | None:
        """Fill one schema from the evidence `index`; None where nothing fits and the schema has no way to say so."""
        if not isinstance(schema, Mapping) or depth > MAX_DEPTH:
            return _ABSENT
        schema = self._resolved(schema)
        if "const" in schema:
            return _Filled(schema["const"], 0)
        if name in self.labelled and not has_label and index is self.index:
            index, has_label = read(self.labelled[name], background=self.index), True
        question = self._question(schema, name, outer)
        if isinstance(enum := schema.get("enum"), list):
            return self._choice(enum, schema, question, index, has_label)
        for word in ("anyOf", "oneOf"):
            if isinstance(options := schema.get(word), list):
                return self._one_of(schema, word, options, name, outer, index, depth, has_label)
        types = _types(schema)
        for kind in types:
            filled = self._typed(kind, schema, name, question, index, depth, has_label)
            if filled is not None and not ("null" in types and (not filled.is_complete or _is_empty(kind, filled))):
                return filled
        return _Filled(None, 0) if "null" in types else _ABSENT

    def _typed(
        self,
        kind: str,
        schema: Mapping[str, object],
        name: str,
        question: Question,
        index: Index,
        depth: int,
        has_label: bool,
    ) -> _Filled | None:
        match kind:
            case "object":
                return self._object(schema, question if depth else None, index, depth)
            case "array":
                return self._array(schema, name, question, index, depth, has_label)
            case "string":
                found = self._string(schema, question, index, has_label)
                return _Filled(found, 1) if found is not None else _ABSENT
            case "boolean":
                return self._boolean(schema, question, index, has_label)
            case "integer" | "number":
                return self._number(schema, name, question, index, has_label)
        return _ABSENT

    # -- questions

    def _question(self, schema: Mapping[str, object], name: str, outer: Question | None) -> Question:
        said = schema.get("description") or ""
        said = said if isinstance(said, str) else ""
        own = ask(said, name)
        if outer is not None:
            is_generic = not said and _is_generic(name)
            return outer if is_generic else join(outer, own)
        if _is_generic(name) and self.topic.words:
            return join(own, self.topic) if said else self.topic
        return own

    def _scores(self, question: Question, index: Index) -> Scores:
        if index is not self.index:
            return score(question, index)
        key = (id(index), question)
        known = self._asked.get(key)
        if known is None:
            known = self._asked[key] = score(question, index)
        return known

    def _best(self, question: Question, index: Index, count: int, has_label: bool) -> list[int]:
        return _answers(question, self._scores(question, index), count, LABELLED_FACTOR if has_label else 1.0)

    # -- structure

    def _resolved(self, schema: Mapping[str, object]) -> Mapping[str, object]:
        """`$ref` followed within the document and `allOf` merged; what stands beside them wins."""
        for _ in range(MAX_DEPTH):
            target = schema.get("$ref")
            if not isinstance(target, str):
                break
            found = self._at(target)
            rest = {key: value for key, value in schema.items() if key != "$ref"}
            schema = {**found, **rest} if isinstance(found, Mapping) else rest
        parts = schema.get("allOf")
        if not isinstance(parts, list):
            return schema
        merged: dict[str, object] = {}
        for part in [*parts, {key: value for key, value in schema.items() if key != "allOf"}]:
            if isinstance(part, Mapping):
                part = self._resolved(part) if "$ref" in part else part
                merged = {**merged, **part, **_merged_members(merged, part)}
        return merged

    def _at(self, reference: str) -> object:
        if not reference.startswith("#"):
            return None
        node: object = self.root
        for part in reference[1:].split("/")[1:]:
            node = node.get(part.replace("~1", "/").replace("~0", "~")) if isinstance(node, Mapping) else None
        return node

    def _one_of(
        self,
        schema: Mapping[str, object],
        word: str,
        options: list[object],
        name: str,
        outer: Question | None,
        index: Index,
        depth: int,
        has_label: bool,
    ) -> _Filled | None:
        shared = {key: value for key, value in schema.items() if key != word}
        best: _Filled | None = None
        is_nullable = False
        for option in options:
            if not isinstance(option, Mapping):
                continue
            option = self._resolved(option)
            if option.get("type") == "null" or ("const" in option and option["const"] is None):
                is_nullable = True
                continue
            filled = self.fill({**option, **shared}, name, outer, index, depth + 1, has_label=has_label)
            if filled is None or (filled.value is None):
                is_nullable = is_nullable or filled is not None
                continue
            if best is None or (filled.is_complete, filled.found) > (best.is_complete, best.found):
                best = filled
        if is_nullable and (best is None or not best.is_complete or _is_empty(_kind_of(best.value), best)):
            return _Filled(None, 0)
        return best

    def _object(self, schema: Mapping[str, object], outer: Question | None, index: Index, depth: int) -> _Filled:
        properties = schema.get("properties")
        required = schema.get("required")
        needed = set(required) if isinstance(required, list) else set()
        values: dict[str, object] = {}
        found, is_complete = 0, True
        for name, member in properties.items() if isinstance(properties, Mapping) else ():
            filled = self.fill(member, str(name), outer, index, depth + 1)
            if filled is None or (name not in needed and not _is_worth(filled)):
                is_complete = is_complete and name not in needed
                continue
            values[str(name)] = filled.value
            found += filled.found
            is_complete = is_complete and filled.is_complete
        return _Filled(values, found, is_complete and needed <= set(values))

    def _array(
        self, schema: Mapping[str, object], name: str, question: Question, index: Index, depth: int, has_label: bool
    ) -> _Filled | None:
        least, most = _whole(schema.get("minItems"), 0), _whole(schema.get("maxItems"), MAX_ITEMS)
        member = schema.get("items")
        items: list[_Filled] = []
        if isinstance(prefix := schema.get("prefixItems"), list):
            for part in prefix:
                filled = self.fill(part, name, question, index, depth + 1, has_label=has_label)
                if filled is not None:
                    items.append(filled)
        elif isinstance(member, Mapping):
            items = list(self._items(self._resolved(member), name, question, index, depth, has_label))
        if schema.get("uniqueItems"):
            items = list({repr(item.value): item for item in items}.values())
        items = items[: max(0, min(most, max(MAX_ITEMS, least)))]
        if len(items) < least:
            return _ABSENT
        return _Filled([item.value for item in items], sum(item.found for item in items))

    def _items(
        self, member: Mapping[str, object], name: str, question: Question, index: Index, depth: int, has_label: bool
    ) -> Iterator[_Filled]:
        own = ask(str(member.get("description") or ""), "")
        asked = join(question, own) if own.words or own.cues else question
        if isinstance(enum := member.get("enum"), list):
            yield from (_Filled(value, 1) for value in self._supported(enum, member, asked, index, has_label))
            return
        for number in sorted(self._best(asked, index, MAX_ITEMS, has_label)):
            alone = read(index.passage(number), background=self.index)
            filled = self.fill(member, name, question, alone, depth + 1, has_label=True)
            if filled is not None and filled.value is not None and filled.is_complete and filled.found:
                yield filled

    # -- leaves

    def _string(self, schema: Mapping[str, object], question: Question, index: Index, has_label: bool) -> str | None:
        if has_label and len(index.texts[0]) < MIN_CHARS:
            whole = index.texts[0]
            candidates = [] if not whole or whole.lower() in _NOTHING_SAID else [whole]
        else:
            numbers = self._best(question, index, MAX_ITEMS, has_label)
            candidates = [
                _without_label(tighten(question, index.passage(number), index), question) for number in numbers
            ]
        if not candidates:
            return None
        least, most = _whole(schema.get("minLength"), 0), _whole(schema.get("maxLength"), -1)
        if "pattern" in schema or "format" in schema:
            return _matching(schema, candidates)
        for candidate in candidates:
            candidate = _shortened(candidate, most) if most >= 0 else candidate
            if candidate and len(candidate) >= least:
                return candidate
        return "" if least == 0 == most else None

    def _boolean(self, schema: Mapping[str, object], question: Question, index: Index, has_label: bool) -> _Filled:
        said = _yes_or_no(index) if has_label else None
        is_so = said if said is not None else bool(self._best(question, index, 1, has_label))
        return _Filled(is_so, int(is_so or said is not None))

    def _number(
        self, schema: Mapping[str, object], name: str, question: Question, index: Index, has_label: bool
    ) -> _Filled | None:
        is_short = has_label and len(index.texts[0]) < MIN_CHARS
        numbers = range(len(index.units)) if is_short else self._best(question, index, MAX_ANSWERS, has_label)
        wanted = f"{name} {schema.get('description') or ''}"
        for number in numbers:
            for value in numbers_in(index.passage(number), wanted, question.words):
                fitting = _fits(value, schema)
                if fitting is not None:
                    return _Filled(fitting, 1)
        return _ABSENT

    def _choice(
        self, values: list[object], schema: Mapping[str, object], question: Question, index: Index, has_label: bool
    ) -> _Filled | None:
        options = [value for value in values if value is not None]
        if len(values) == 1:
            return _Filled(values[0], 0)
        spoken = {str(value).lower(): value for value in options}
        if (yes := _YES & spoken.keys()) and (no := _NO & spoken.keys()) and len(options) <= 3:
            said = _yes_or_no(index) if has_label else None
            is_so = said if said is not None else bool(self._best(question, index, 1, has_label))
            return _Filled(spoken[min(yes if is_so else no)], int(is_so or said is not None))
        supported = self._supported(values, schema, question, index, has_label)
        if supported:
            return _Filled(supported[0], 1)
        return _Filled(None, 0) if None in values else _ABSENT

    def _supported(
        self, values: list[object], schema: Mapping[str, object], question: Question, index: Index, has_label: bool
    ) -> list[object]:
        """The values that the text speaks for, best first: their words near passages that fit the question."""
        description = str(schema.get("description") or "")
        fitting = self._scores(question, index).total
        highest = max(fitting, default=0.0) or 1.0
        support: list[tuple[float, int]] = []
        for place, value in enumerate(values):
            if value is None:
                continue
            explained = _explained(str(value), values, description)
            asked = ask(explained, str(value))
            found = self._scores(asked, index)
            least = (EXPLAINED_SCORE if explained else PLAIN_SCORE) * (LABELLED_FACTOR if has_label else 1.0)
            points = sum(
                part * (0.15 + max(0.0, fitting[number]) / highest)
                for number, part in enumerate(found.total)
                if part >= least
            )
            if points > 0:
                support.append((-points, place))
        return [values[place] for _, place in sorted(support)]


def _is_generic(name: str) -> bool:
    return not name or name.lower() in _GENERIC


def _types(schema: Mapping[str, object]) -> list[str]:
    kind = schema.get("type")
    if isinstance(kind, list):
        return [str(part) for part in kind]
    if isinstance(kind, str):
        return ["null"] if kind == "null" else [kind]
    if "properties" in schema:
        return ["object"]
    return ["array"] if "items" in schema or "prefixItems" in schema else ["string"]


def _kind_of(value: object) -> str:
    return "object" if isinstance(value, dict) else "array" if isinstance(value, list) else "leaf"


def _is_empty(kind: str, filled: _Filled) -> bool:
    """An object without evidence, or a leaf that only says no: null says it better where null is allowed."""
    return filled.found == 0 and kind in {"object", "boolean", "array"}


def _is_worth(filled: _Filled) -> bool:
    """Whether an optional property is worth giving."""
    return filled.value is None or (filled.is_complete and (filled.found > 0 or not isinstance(filled.value, dict)))


def _merged_members(left: Mapping[str, object], right: Mapping[str, object]) -> dict[str, object]:
    members: dict[str, object] = {}
    if isinstance(a := left.get("properties"), Mapping) and isinstance(b := right.get("properties"), Mapping):
        members["properties"] = {**a, **b}
    if isinstance(c := left.get("required"), list) and isinstance(d := right.get("required"), list):
        members["required"] = [*c, *d]
    return members


def _whole(value: object, otherwise: int) -> int:
    return int(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else otherwise


def _without_label(passage: str, question: Question) -> str:
    """`Invoice number: 17` → `17` where the label is what was asked for."""
    match = _SPOKEN_LABEL.match(passage)
    if match is None or match.end() >= len(passage) or not question.title:
        return passage
    label = set(stems(match[0]))
    is_asked = set(question.title) <= label and len(label) <= len(question.title) + 1
    return passage[match.end() :] if is_asked else passage


def _shortened(text: str, most: int) -> str:
    """At most `most` characters from the beginning, whole words where there are any."""
    if len(text) <= most:
        return text
    cut = text[: most + 1]
    at = max((match.start() for match in re.finditer(r"\s", cut)), default=most)
    return text[: at or most].strip()


def _matching(schema: Mapping[str, object], candidates: Sequence[str]) -> str | None:
    """A candidate, or up to three neighbouring words of one, that fits pattern and format.

    The patterns come from users: jsonschema_rs gives up on one that backtracks without end, `re` would hang.
    """
    wanted = {key: schema[key] for key in ("pattern", "format", "minLength", "maxLength") if key in schema}
    try:
        validator = jsonschema_rs.validator_for(wanted, validate_formats=True)
        for text in (part for candidate in candidates for part in (candidate, *_word_runs(candidate))):
            if validator.is_valid(text):
                return text
    except ValueError:
        return None
    return None


def _word_runs(text: str) -> Iterator[str]:
    words = [match.span() for match in re.finditer(r"[^\s,;:()\"“”]+", text)]
    for length in (1, 2, 3):
        for first, last in zip(words, words[length - 1 :], strict=False):
            run = text[first[0] : last[1]]
            yield run
            if run[-1] in ".!?":
                yield run[:-1]


def _yes_or_no(index: Index) -> bool | None:
    said = index.texts[0].strip(" .").lower()
    return True if said in _YES else False if said in _NO else None


def _explained(value: str, values: list[object], description: str) -> str:
    """What a description says of one value: the text after `value:` up to the next value or semicolon."""
    match = re.search(rf"(?<!\w){re.escape(value)}['\"`]?\s*(?:[:=–—(]|-\s)\s*", description, re.IGNORECASE)
    if match is None:
        return ""
    rest = description[match.end() :]
    others = "|".join(re.escape(str(other)) for other in values if other is not None and str(other) != value)
    ending = r"[;\n]|\.\s|\)(?=\s*[,;.]|$)"
    ends = re.search(rf"{ending}|,\s*['\"`]?(?:{others})['\"`]?\s*[:=–—(]" if others else ending, rest)
    return rest[: ends.start()] if ends else rest


def _fits(value: float, schema: Mapping[str, object]) -> int | float | None:
    """The number as the schema wants it, None where it may not be."""
    fitting: int | float = int(value) if value.is_integer() else value
    limits = {
        key: schema[key]
        for key in ("type", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")
        if key in schema
    }
    try:
        return fitting if jsonschema_rs.is_valid(limits, fitting) else None
    except ValueError:
        return None
