from __future__ import annotations

import re
from collections.abc import Iterator

import jsonschema_rs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from twolane.flows.questions import QUESTIONS
from twolane.rules.extraction import answer, answer_from, fill

INVOICE = """\
INVOICE
Invoice number: 17-A
Supplier: Example Ltd
Total amount: 1,250.50 EUR
Issued: 2024-05-17

Payment is due within thirty (30) days of receipt of this invoice.

The supplier delivered machines, and did not provide services.
"""
CONTRACT = """\
1. Term. This Agreement takes effect on 1 March 2024 and continues for three years.

2. Law. This Agreement is governed by the laws of Ireland. The courts of Dublin decide.

3. Liability. The total liability of each party shall not exceed EUR 100,000 in any year of this Agreement.
"""


def field(name: str, **schema: object) -> object:
    filled = fill({"type": "object", "properties": {name: schema}}, INVOICE)
    assert isinstance(filled, dict)
    return filled.get(name)


def test_strings_are_quoted_and_a_label_is_not_part_of_the_value() -> None:
    assert field("invoice_number", type="string") == "17-A"
    assert field("supplier", type="string") == "Example Ltd"


def test_numbers_are_read_from_digits_and_words() -> None:
    assert field("total_amount", type="number") == 1250.5
    assert field("payment_days", type="integer", description="Within how many days is payment due?") == 30
    text = "The fee is two hundred and fifty thousand dollars, payable in twelve months."
    schema = {"type": "object", "properties": {"fee": {"type": "integer"}}}
    assert fill(schema, text) == {"fee": 250_000}


def test_an_enum_takes_the_value_with_support() -> None:
    assert field("kind", enum=["order", "invoice", "receipt"]) == "invoice"
    explained = "goods: things such as machines or tools; works: building and repair"
    assert field("subject", enum=["goods", "works"], description=explained) == "goods"
    assert field("animal", enum=["cat", "dog", None]) is None


def test_booleans_say_whether_there_is_support() -> None:
    assert field("payment_due", type="boolean") is True
    assert field("arbitration", type="boolean", description="Is there an 'arbitration' clause?") is False


def test_nothing_found_is_null_or_empty_or_left_out() -> None:
    members = {
        "iban": {"type": "string"},
        "nullable": {"type": ["string", "null"], "description": "the zoo's penguins"},
        "penguins": {"type": "array", "items": {"type": "string"}},
        "zoo": {"anyOf": [{"$ref": "#/$defs/Zoo"}, {"type": "null"}]},
    }
    schema = {
        "type": "object",
        "properties": members,
        "required": list(members),
        "$defs": {"Zoo": {"type": "object", "properties": {"keeper": {"type": "string"}}, "required": ["keeper"]}},
    }
    filled = fill(schema, INVOICE)
    assert filled == {"nullable": None, "penguins": [], "zoo": None}
    assert not jsonschema_rs.is_valid(schema, filled)


def test_formats_and_patterns_are_met_by_a_quotation() -> None:
    assert field("issued", type="string", format="date") == "2024-05-17"
    assert field("invoice_number", type="string", pattern="^[0-9]+-[A-Z]$") == "17-A"
    assert field("supplier", type="string", pattern="^(a+)+$") is None


def test_a_labelled_value_alone_is_the_evidence_of_its_field() -> None:
    text = "governing_law: The fee is paid monthly, and the machines are cleaned every week by the supplier's people.\n"
    schema = {
        "type": "object",
        "properties": {
            "governing_law": {"type": "boolean", "description": "Is there a governing law? 'is governed by', 'laws of'"}
        },
    }
    assert fill(schema, text + CONTRACT) == {"governing_law": False}
    assert fill(schema, "governing_law: It is governed by the laws of France.\n") == {"governing_law": True}
    assert fill(schema, "governing_law: yes\n") == {"governing_law": True}


def test_objects_in_lists_are_filled_from_one_passage_each() -> None:
    schema = {
        "type": "object",
        "properties": {
            "clauses": {
                "type": "array",
                "description": "clauses on liability: 'total liability', 'shall not exceed'",
                "items": {
                    "type": "object",
                    "required": ["quote", "amount"],
                    "properties": {"quote": {"type": "string"}, "amount": {"type": "integer"}},
                },
            }
        },
    }
    assert fill(schema, CONTRACT) == {
        "clauses": [
            {
                "quote": "The total liability of each party shall not exceed EUR 100,000 in any year of this "
                "Agreement.",
                "amount": 100_000,
            }
        ]
    }


def test_a_quote_holds_no_more_than_the_sentence_that_answers() -> None:
    schema = {"type": "object", "properties": {"law": {"type": "string", "description": "'governed by', 'laws of'"}}}
    assert fill(schema, CONTRACT) == {"law": "This Agreement is governed by the laws of Ireland."}


def test_the_instruction_is_the_question_of_a_field_without_a_name_of_its_own() -> None:
    schema = {"type": "object", "properties": {"answer": {"type": "string"}}}
    filled = fill(schema, CONTRACT, topic="Which laws govern the agreement?")
    assert isinstance(filled, dict)
    assert "Ireland" in filled["answer"]


def test_free_questions_get_passages_with_offsets_or_none() -> None:
    passages = answer("Which laws govern the agreement?", CONTRACT, "c1")
    assert passages[0].source_id == "c1"
    assert "Ireland" in passages[0].text
    assert all(CONTRACT[passage.start : passage.end] == passage.text for passage in passages)
    assert answer("How are penguins fed in Antarctica?", CONTRACT) == []
    assert answer_from("liability?", {"a": INVOICE, "b": CONTRACT})[0].source_id == "b"


def test_the_audit_questions_are_unique_and_hold_cues() -> None:
    assert len({question.id for question in QUESTIONS}) == len(QUESTIONS) == 22
    assert all(question.description.count("'") >= 8 for question in QUESTIONS)


def leaves(value: object) -> Iterator[str]:
    match value:
        case str():
            yield value
        case dict():
            for part in value.values():
                yield from leaves(part)
        case list():
            for part in value:
                yield from leaves(part)


_leaf = st.one_of(
    st.just({"type": "string"}),
    st.just({"type": ["string", "null"]}),
    st.just({"anyOf": [{"type": "string", "maxLength": 40}, {"type": "null"}]}),
    st.just({"type": "string", "pattern": "[0-9]{2}"}),
    st.just({"type": "integer", "minimum": 1}),
    st.just({"type": "number"}),
    st.just({"type": "boolean"}),
    st.just({"type": "null"}),
    st.just({"$ref": "#/$defs/Node"}),
)
_names = st.sampled_from(["law", "price", "supplier", "termDays", "quote", "governing_law", "x"])
_schemas = st.recursive(
    _leaf,
    lambda inner: st.one_of(
        st.builds(
            lambda members, needed: {
                "type": "object",
                "properties": members,
                "additionalProperties": False,
                "required": [name for name in members if needed],
            },
            st.dictionaries(_names, inner, max_size=4),
            st.booleans(),
        ),
        st.builds(lambda items, least: {"type": "array", "items": items, "minItems": least}, inner, st.integers(0, 2)),
    ),
    max_leaves=8,
)
_texts = st.sampled_from([INVOICE, CONTRACT, ""]) | st.text(max_size=200)


@given(_schemas, _texts, st.text(max_size=30))
def test_strings_are_verbatim_and_what_is_there_validates(inner: dict[str, object], text: str, topic: str) -> None:
    node = {"type": "object", "properties": {"law": {"type": "string"}, "next": {"$ref": "#/$defs/Node"}}}
    members = {"it": inner, "law": {"type": ["string", "null"]}}
    schema = {"type": "object", "properties": members, "$defs": {"Node": node}}
    filled = fill(schema, text, topic=topic)
    assert all(leaf in text for leaf in leaves(filled))
    missing_only = [
        error
        for error in jsonschema_rs.validator_for(schema).iter_errors(filled)
        if "required property" not in error.message
    ]
    assert missing_only == []


_junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from("type properties items $ref anyOf allOf enum required minItems description const".split()),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


_keywords = st.sampled_from(["type", "properties", "items", "$ref", "anyOf", "allOf", "enum"])


@given(st.dictionaries(_keywords, _junk), _texts)
def test_nonsense_schemas_do_not_break_it(schema: dict[str, object], text: str) -> None:
    fill(schema, text)


@pytest.mark.timeout(20)
@pytest.mark.parametrize("part", [" ", "\n", "a ", ". ", "(", "1,", "'", "a: b\n", "\n ", "governed ", "a.b ", "\f"])
def test_no_text_takes_more_than_linear_time(part: str) -> None:
    members = {question.id: {"type": ["string", "null"], "description": question.description} for question in QUESTIONS}
    endless = {"type": ["string", "null"], "description": "'a … a … a … a … a … a … b', 'governed … governed … x … y'"}
    fill({"type": "object", "properties": {**members, "endless": endless}}, part * (150_000 // len(part)))


@pytest.mark.timeout(20)
def test_a_long_text_is_no_trouble() -> None:
    text = CONTRACT * 1200
    assert len(text) > 300_000
    schema = {
        "type": "object",
        "properties": {
            question.id: {"type": ["string", "null"], "description": question.description} for question in QUESTIONS
        },
    }
    filled = fill(schema, text)
    assert isinstance(filled, dict)
    assert re.search("governed by the laws of Ireland", filled["governing_law"])
