"""A reply is accepted only when it is strict JSON, fits its schema and quotes what is there."""

from __future__ import annotations

import json
import random
from enum import StrEnum
from typing import Annotated, Literal

import pytest
from pydantic import BaseModel, Field, field_validator

from twolane.domain.document import Document, Quote
from twolane.domain.schema import MAX_PROBLEM_CHARS, MAX_PROBLEMS, MAX_REPLY_BYTES, judge, reply_schema, revive


class Grade(StrEnum):
    LOW = "low"
    HIGH = "high"


class Finding(BaseModel):
    quote: Quote
    grade: Grade
    weight: Annotated[int, Field(ge=0, le=10)]


class Report(BaseModel):
    title: str
    share: float | None
    kind: Literal["a", "b"]
    findings: list[Finding]
    notes: dict[str, str] = {}


SOURCE = Document("d1", "The price is five euros.\nDelivery is free of charge.")
GOOD: dict[str, object] = {
    "title": "T",
    "share": 0.5,
    "kind": "a",
    "findings": [{"quote": "price is five", "grade": "low", "weight": 3}],
    "notes": {"x": "y"},
}
TEXT = json.dumps(GOOD)


def problems(text: str) -> list[str]:
    judged = judge(text, Report, [SOURCE])
    assert (judged.value is None) == bool(judged.problems)
    return [str(problem) for problem in judged.problems]


def changed(**fields: object) -> str:
    return json.dumps({**GOOD, **fields})


def test_a_good_reply_is_accepted_and_its_quotes_are_placed() -> None:
    judged = judge(
        changed(findings=[{"quote": "five euros. Delivery", "grade": "high", "weight": 0}]), Report, [SOURCE]
    )
    assert judged.problems == ()
    assert judged.value is not None
    quote = judged.value.findings[0].quote
    assert (quote.document, SOURCE.text[quote.start : quote.end]) == ("d1", "five euros.\nDelivery")
    assert quote.text == "five euros.\nDelivery"


def test_white_space_around_a_reply_is_no_fault() -> None:
    assert problems(f"\n  {TEXT} \n") == []


@pytest.mark.parametrize(
    "text, words",
    [
        (TEXT[:-1] + ', "title": "again"}', "the key 'title' stands twice"),
        (TEXT.replace('"weight": 3', '"weight": 3, "weight": 4'), "the key 'weight' stands twice"),
        (TEXT.replace("0.5", "NaN"), "NaN is not a JSON number"),
        (TEXT.replace("0.5", "-Infinity"), "-Infinity is not a JSON number"),
        (TEXT.replace("0.5", "1e999"), "larger than 64 bits"),
        (TEXT.replace(": 3}", ": 99999999999999999999}"), "larger than 64 bits"),
        (TEXT.replace(": 3}", ": " + "9" * 5000 + "}"), "larger than 64 bits"),
        (f"```json\n{TEXT}\n```", "it is not JSON"),
        (f"Here it is: {TEXT}", "it is not JSON"),
        (f"{TEXT} I hope this helps", "it is not JSON"),
        (f"{TEXT}{TEXT}", "it is not JSON"),
        (TEXT[:-2], "it is not JSON"),
        ("", "it is not JSON"),
        (TEXT.replace("'", '"').replace('"T"', "'T'"), "it is not JSON"),
        (changed(title="\ud800"), "it is not JSON"),
        ("[" * 100_000, "it is nested too deeply"),
        (changed(share=json.loads("[" * 400 + "]" * 400)), "nested too deeply"),
    ],
)
def test_what_is_not_strict_json_is_refused_as_a_whole(text: str, words: str) -> None:
    (problem,) = problems(text)
    assert words in problem


@pytest.mark.parametrize(
    "text, pointer",
    [
        (json.dumps({key: value for key, value in GOOD.items() if key != "share"}), "/"),
        (json.dumps({key: value for key, value in GOOD.items() if key != "notes"}), "/"),
        (changed(extra=1), "/"),
        (changed(title=None), "/title"),
        (changed(title=5), "/title"),
        (changed(share="0.5"), "/share"),
        (changed(kind="c"), "/kind"),
        (changed(findings=None), "/findings"),
        (changed(findings=[{"quote": "price", "grade": "medium", "weight": 3}]), "/findings/0/grade"),
        (changed(findings=[{"quote": "price", "grade": "low", "weight": 11}]), "/findings/0/weight"),
        (changed(findings=[{"quote": "price", "grade": "low", "weight": "3"}]), "/findings/0/weight"),
        (changed(findings=[{"quote": "price", "grade": "low", "weight": True}]), "/findings/0/weight"),
        (changed(findings=[{"quote": "", "grade": "low", "weight": 3}]), "/findings/0/quote"),
        (
            changed(findings=[{"quote": {"text": "price", "start": 0}, "grade": "low", "weight": 3}]),
            "/findings/0/quote",
        ),
        (changed(notes={"a/b~c": 1}), "/notes/a~1b~0c"),
        ("[]", "/"),
        ("null", "/"),
    ],
)
def test_what_does_not_fit_is_named_with_its_place(text: str, pointer: str) -> None:
    assert any(problem.startswith(f"{pointer}: ") for problem in problems(text))


def test_a_quote_that_is_not_in_the_source_is_refused() -> None:
    text = changed(findings=[{"quote": quote, "grade": "low", "weight": 1} for quote in ("price", "prices are", " ")])
    assert [problem.partition(":")[0] for problem in problems(text)] == ["/findings/1/quote", "/findings/2/quote"]
    assert judge(text, Report, []).value is not None  # without a source there is nothing to look into


def test_a_quote_may_stand_in_any_of_the_sources() -> None:
    judged = judge(TEXT, Report, [Document("d0", "nothing"), SOURCE])
    assert judged.value is not None
    assert judged.value.findings[0].quote.document == "d1"


def test_problems_are_few_and_short() -> None:
    found = judge(changed(findings=["x" * 5000] * 50), Report, [SOURCE]).problems
    assert len(found) == MAX_PROBLEMS
    assert max(len(problem.text) for problem in found) <= MAX_PROBLEM_CHARS + 3


def test_a_reply_beyond_any_measure_is_not_read() -> None:
    assert "is longer than" in problems(" " * (MAX_REPLY_BYTES + 1))[0]


def test_a_models_own_validators_have_their_say() -> None:
    class Even(BaseModel):
        number: int

        @field_validator("number")
        @classmethod
        def _is_even(cls, value: int) -> int:
            if value % 2:
                raise ValueError("it is odd")
            return value

    assert judge('{"number": 4}', Even, []).value == Even(number=4)
    (problem,) = judge('{"number": 3}', Even, []).problems
    assert (problem.pointer, "it is odd" in problem.text) == ("/number", True)


def test_a_stored_output_is_judged_again_by_todays_model() -> None:
    judged = judge(TEXT, Report, [SOURCE])
    assert judged.value is not None
    assert revive(judged.value.model_dump(mode="json"), Report, [SOURCE]).value == judged.value
    assert revive({**GOOD, "kind": "c"}, Report, [SOURCE]).problems[0].pointer == "/kind"


def test_the_schema_asked_for_requires_everything_and_allows_nothing_else() -> None:
    class Odd(BaseModel):
        title: str = "t"
        default: int | None = None
        properties: list[Finding] = []

    schema = reply_schema(Odd)
    assert schema.name == "Odd"
    assert schema.schema["required"] == ["title", "default", "properties"]
    assert schema.schema["additionalProperties"] is False
    definitions = schema.schema["$defs"]
    assert isinstance(definitions, dict)
    assert definitions["Finding"]["required"] == ["quote", "grade", "weight"]
    assert judge('{"title": "x", "default": null, "properties": []}', Odd, []).value == Odd(title="x")


# ── ten thousand corrupted replies ──


def fits(value: object) -> bool:
    """The same schema, written out by hand: what judges the judge."""
    if not isinstance(value, dict) or set(value) != {"title", "share", "kind", "findings", "notes"}:
        return False
    share, findings, notes = value["share"], value["findings"], value["notes"]
    return (
        isinstance(value["title"], str)
        and (share is None or (isinstance(share, int | float) and not isinstance(share, bool)))
        and value["kind"] in ("a", "b")
        and isinstance(findings, list)
        and all(map(finding_fits, findings))
        and isinstance(notes, dict)
        and all(isinstance(note, str) for note in notes.values())
    )


def finding_fits(value: object) -> bool:
    if not isinstance(value, dict) or set(value) != {"quote", "grade", "weight"}:
        return False
    quote, weight = value["quote"], value["weight"]
    return (
        isinstance(quote, str)
        and bool(quote.strip())
        and "".join(quote.replace("\u200d", "").split()) in "".join(SOURCE.text.split())
        and value["grade"] in ("low", "high")
        and isinstance(weight, int | float)
        and not isinstance(weight, bool)
        and float(weight).is_integer()
        and 0 <= weight <= 10
    )


ODD: list[object] = [
    None,
    True,
    0,
    -1,
    11,
    2.5,
    3.0,
    1e300,
    "",
    " ",
    "low",
    "price",
    "medium",
    [],
    {},
    [[]],
    {"text": "price"},
    "a",
    "9" * 30,
]


def mutated(value: object, draw: random.Random) -> object:
    """One random change somewhere in a JSON value."""
    if isinstance(value, dict) and value and draw.random() < 0.8:
        key = draw.choice(list(value))
        match draw.randrange(4):
            case 0:
                return {name: part for name, part in value.items() if name != key}
            case 1:
                return {**value, draw.choice(["extra", key.upper(), key + " "]): draw.choice(ODD)}
            case _:
                return {**value, key: mutated(value[key], draw)}
    if isinstance(value, list) and value and draw.random() < 0.8:
        at = draw.randrange(len(value))
        return [*value[:at], mutated(value[at], draw), *value[at + draw.randrange(2) :]]
    if isinstance(value, str) and value and draw.random() < 0.5:
        at = draw.randrange(len(value))
        return value[:at] + draw.choice("xZ \u00e9\u200d") + value[at + 1 :]
    return draw.choice(ODD)


def corrupted(draw: random.Random) -> str:
    if draw.random() < 0.6:
        value: object = GOOD
        for _ in range(draw.randint(1, 3)):
            value = mutated(value, draw)
        return json.dumps(value, ensure_ascii=draw.random() < 0.5)
    at = draw.randrange(len(TEXT))
    match draw.randrange(5):
        case 0:
            return TEXT[:at]
        case 1:
            return TEXT[:at] + draw.choice('{}[]",:0n\\ \x00') + TEXT[at:]
        case 2:
            return TEXT[:at] + TEXT[at + draw.randint(1, 4) :]
        case 3:
            return draw.choice(["```json\n", "Sure: ", "\ufeff", "[", "'"]) + TEXT
        case _:
            return TEXT + draw.choice(["\n```", " Done.", ",", "}", TEXT])


def test_of_ten_thousand_corrupted_replies_none_is_accepted_that_the_schema_refuses() -> None:
    twice: list[str] = []

    def once(pairs: list[tuple[str, object]]) -> dict[str, object]:
        found = dict(pairs)
        if len(found) < len(pairs):
            twice.append("a key")
        return found

    draw = random.Random(2026)
    accepted = refused = 0
    for _ in range(10_000):
        text = corrupted(draw)
        judged = judge(text, Report, [SOURCE])
        try:
            twice.clear()
            value = json.loads(text, object_pairs_hook=once)
            is_good = fits(value) and not twice
        except ValueError:
            is_good = False
        assert (judged.value is not None) <= is_good, text
        accepted, refused = accepted + (judged.value is not None), refused + (judged.value is None)
    assert refused > 8_000
    assert accepted > 100  # some changes do no harm: a judge that refuses everything would pass otherwise
