"""A reply is accepted only when it is strict JSON, fits its schema and quotes what is there."""

from __future__ import annotations

import json
import random
import time
from dataclasses import dataclass
from typing import Literal, NoReturn

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import AwareDatetime, BaseModel, NaiveDatetime, field_validator
from tests.unit.domain import corrupted
from tests.unit.domain.corrupted import Finding

from twolane.domain.document import Document, Quote
from twolane.domain.schema import MAX_PROBLEM_CHARS, MAX_PROBLEMS, MAX_REPLY_CHARS, judge, reply_schema, revive


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
        (f"```json\n{TEXT}\n```", "stands in a Markdown fence: reply with the bare JSON"),
        (f"Here it is: {TEXT}", "it is not JSON"),
        (f"{TEXT} I hope this helps", "it is not JSON"),
        (f"{TEXT}{TEXT}", "it is not JSON"),
        (TEXT[:-2], "it is not JSON"),
        ("", "it is empty"),
        ("\ufeff" + TEXT, "it is not JSON"),
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
        (changed(notes={"a": 1}), "/notes/*"),
        ("[]", "/"),
        ("null", "/"),
    ],
)
def test_what_does_not_fit_is_named_with_its_place(text: str, pointer: str) -> None:
    assert any(problem.startswith(f"{pointer}: ") for problem in problems(text))


def test_a_quote_that_is_not_in_the_source_is_refused() -> None:
    text = changed(findings=[{"quote": quote, "grade": "low", "weight": 1} for quote in ("price", "prices are", " ")])
    assert [problem.partition(":")[0] for problem in problems(text)] == ["/findings/1/quote", "/findings/2/quote"]


def test_where_there_is_no_document_there_is_nothing_to_quote() -> None:
    (problem,) = judge(TEXT, Report, []).problems
    assert "there is no document to quote from" in problem.text
    assert judge(changed(findings=[]), Report, []).value is not None


def test_quotes_are_found_in_whatever_holds_them() -> None:
    @dataclass
    class Pair:
        one: Quote
        two: tuple[Quote, int]

    class Holder(BaseModel):
        pair: Pair
        by_name: dict[str, list[Quote]]

    text = '{"pair": {"one": "price", "two": ["%s", 1]}, "by_name": {"a": ["five"], "b": ["%s"]}}'
    assert judge(text % ("price", "free"), Holder, [SOURCE]).value is not None
    missing = judge(text % ("no such", "none"), Holder, [SOURCE]).problems
    assert [problem.pointer for problem in missing] == ["/pair/two/0", "/by_name/*/0"]


def test_a_key_that_the_reply_made_up_is_told_in_words_and_never_in_the_pointer() -> None:
    (problem,) = judge(changed(notes={"Miss Marple": 7}), Report, [SOURCE]).problems
    assert problem.pointer == "/notes/*"  # a pointer enters the ledger
    assert problem.text.startswith("under 'Miss Marple': ")


def test_a_quote_may_stand_in_any_of_the_sources() -> None:
    judged = judge(TEXT, Report, [Document("d0", "nothing"), SOURCE])
    assert judged.value is not None
    assert judged.value.findings[0].quote.document == "d1"


def test_problems_are_few_and_short() -> None:
    found = judge(changed(findings=["x\n" * 250] * 50), Report, [SOURCE]).problems
    assert len(found) == MAX_PROBLEMS
    assert max(len(problem.text) for problem in found) <= MAX_PROBLEM_CHARS + 3
    assert not any("\n" in problem.text for problem in found)
    assert len(judge(changed(findings=["x" * 5000] * 50), Report, [SOURCE]).problems) == 1  # of a very long reply


def test_a_reply_beyond_any_measure_is_not_read() -> None:
    assert "is longer than" in problems(" " * (MAX_REPLY_CHARS + 1))[0]


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


class Wordless(Exception):
    def __str__(self) -> NoReturn:
        raise RuntimeError


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (KeyError("supplier"), "its validators raised KeyError: 'supplier'"),
        (RecursionError(), "its validators raised RecursionError"),
        (SystemExit(3), "its validators raised SystemExit: 3"),
        (Wordless(), "its validators raised Wordless"),
        (ValueError("six\nis not even"), "six is not even"),
        (ValueError(), "Value error,"),
        (ValueError("half \udcff"), "its validators raised UnicodeEncodeError: "),
    ],
)
def test_whatever_a_validator_raises_refuses_the_reply(error: BaseException, words: str) -> None:
    class Fussy(BaseModel):
        number: int

        @field_validator("number")
        @classmethod
        def _never(cls, value: int) -> int:
            raise error

    (problem,) = judge('{"number": 4}', Fussy, []).problems
    assert problem.text.startswith(words)


@pytest.mark.parametrize(
    ("kind", "accepted", "refused"),
    [
        (
            AwareDatetime,
            ["2024-05-17T09:30:00Z", "2024-05-17t09:30:00.25+02:00"],
            ["2024-05-17T09:30:00", "1715938200"],
        ),
        (NaiveDatetime, ["2024-05-17T09:30:00"], ["2024-05-17T09:30:00Z", "2024-05-17", "1715938200"]),
    ],
)
def test_an_instant_has_the_format_and_the_zone_its_type_says(
    kind: type, accepted: list[str], refused: list[str]
) -> None:
    class Instant(BaseModel):
        at: kind  # type: ignore[valid-type]  # chosen by the test

    for text in accepted:
        assert judge(json.dumps({"at": text}), Instant, []).problems == (), text
    for text in refused:
        assert judge(json.dumps({"at": text}), Instant, []).value is None, text


def test_a_check_is_asked_last_and_refuses_with_its_words() -> None:
    def no_totals(report: Report) -> None:
        if report.title == "Total":
            raise ValueError("a total is no finding")
        if report.title == "Odd":
            raise LookupError("nobody knows it")

    assert judge(TEXT, Report, [SOURCE], no_totals).value is not None
    for title, words in (("Total", "a total is no finding"), ("Odd", "LookupError: nobody knows it")):
        (problem,) = judge(changed(title=title), Report, [SOURCE], no_totals).problems
        assert (problem.pointer, problem.text) == ("", words)
    assert judge(changed(title=5), Report, [SOURCE], no_totals).problems[0].pointer == "/title"


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


# ── corrupted replies ──


def test_of_twenty_thousand_corrupted_replies_none_is_accepted() -> None:
    corruption = corrupted.Corruption(seed=2026, count=20_000)
    for text in corruption:
        judged = judge(text, corrupted.Report, [corrupted.SOURCE])
        assert judged.value is None, text[:5000]
        assert 1 <= len(judged.problems) <= MAX_PROBLEMS
    assert corruption.kinds.keys() == {*corrupted.KINDS, "huge"}
    assert min(corruption.kinds.values()) >= 10


def test_the_same_replies_are_all_accepted_before_they_are_corrupted() -> None:
    draw = random.Random(2026)
    for _ in range(1_000):
        text = corrupted.good(draw).json()
        judged = judge(text, corrupted.Report, [corrupted.SOURCE])
        assert judged.problems == (), text
        assert json.loads(judged.body) == json.loads(text)


@given(st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.sampled_from(sorted(GOOD)), inner),
))  # fmt: skip
def test_whatever_json_holds_a_judgement_comes_of_it(value: object) -> None:
    judged = judge(json.dumps(value), Report, [SOURCE])
    assert (judged.value is None) == bool(judged.problems)


@given(st.text() | st.binary().map(lambda noise: noise.decode("utf-8", "surrogateescape")))
def test_whatever_text_comes_a_judgement_comes_of_it(text: str) -> None:
    assert judge(text, Report, [SOURCE]).value is None
    assert judge(TEXT + text, Report, [SOURCE]).value is None or not text.strip(" \t\r\n")


COSTLY: dict[str, str] = {
    "wrong members": '{"v": [' + '"", ' * 250_000 + "1]}",
    "wrong lists": '{"v": [' + "[], " * 250_000 + "1]}",
    "members": '{"v": [' + "1, " * 340_000 + "1]}",
    "keys": '{"notes": {' + ", ".join(f'"{number}": 1' for number in range(80_000)) + "}}",
    "a key twice": '{"notes": {' + ", ".join(f'"{number}": 1' for number in range(80_000)) + ', "79999": 1}}',
    "digits": '{"v": ' + "9" * 1_000_000 + "}",
    "decimals": '{"v": 0.' + "9" * 1_000_000 + "}",
    "depth": '{"v": ' + "[" * 1_000_000,
    "objects in objects": '{"v": ' * 170_000,
    "escapes": '{"v": "' + "\\u0041" * 170_000 + '"}',
    "quotes": json.dumps({"quotes": [f"price {number}" for number in range(40_000)]}),
    "ten megabytes": "[" * 10_000_000,
}


@pytest.mark.parametrize("what", COSTLY)
def test_no_reply_costs_more_than_a_moment(what: str) -> None:
    """Measured: 0.24 s at most. The slips this guards against took 15 s and 1.4 GB."""

    class Costly(BaseModel):
        v: list[int] = []
        notes: dict[str, int] = {}
        quotes: list[Quote] = []

    began = time.process_time()
    judge(COSTLY[what], Costly, [Document("long", "price of words " * 60_000)])
    assert time.process_time() - began < 3
