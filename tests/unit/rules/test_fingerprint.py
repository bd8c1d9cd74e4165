"""Everything that could change an answer changes the fingerprint, and nothing else does."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from twolane.domain.records import Message, ReplySchema
from twolane.rules.fingerprint import NEVER, Asked, explain, is_tightened, wording

SCHEMA = ReplySchema("S", {"type": "object", "properties": {"x": {"type": "string"}}})
ASKED = Asked(
    tenant="t",
    agent="a",
    messages=(Message("system", "s"), Message("user", "u")),
    schema=SCHEMA,
    candidates=({"kind": "openai", "model": "m"},),
    max_tokens=100,
    temperature=0.0,
    sample="",
)


@pytest.mark.parametrize(
    "change",
    [
        {"tenant": "t2"},
        {"agent": "b"},
        {"messages": (Message("system", "s"), Message("user", "v"))},
        {"messages": (Message("user", "s"), Message("user", "u"))},
        {"messages": (Message("system", "su"), Message("user", ""))},
        {"messages": (Message("user", "u"), Message("system", "s"))},
        {"schema": ReplySchema("S", {"type": "object"})},
        {"schema": ReplySchema("T", ASKED.schema.schema)},
        {"candidates": ({"kind": "openai", "model": "m2"},)},
        {"candidates": (*ASKED.candidates, {"kind": "extractive", "model": "e"})},
        {"max_tokens": 101},
        {"temperature": 0.1},
        {"sample": "2"},
        {"again": "r1/2"},
    ],
)
def test_what_could_change_the_answer_changes_it(change: dict[str, Any]) -> None:  # Any: each field has its own type
    assert dataclasses.replace(ASKED, **change).canonical() != ASKED.canonical()


def test_the_order_of_a_schemas_keys_and_a_whole_float_do_not() -> None:
    turned = ReplySchema("S", {"properties": {"x": {"type": "string"}}, "type": "object"})
    assert dataclasses.replace(ASKED, schema=turned, temperature=0).canonical() == ASKED.canonical()


def test_it_is_the_same_bytes_in_every_process() -> None:
    assert ASKED.canonical() == (
        b'{"agent":"a","candidates":[{"kind":"openai","model":"m"}],"format":1,"max_tokens":100,'
        b'"messages":[["system","s"],["user","u"]],"sample":"",'
        b'"schema":["S",{"properties":{"x":{"type":"string"}},"type":"object"}],"temperature":0,"tenant":"t"}'
    )


# ── why not ──

PARTS = {"prompt": "p", "passages": "d", "schema": "s", "route": "r", "sampling": "t", "sample": "0", "again": "",
         "input facts": "f", "input rules": "g"}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"prompt": "q"}, "its prompt changed"),
        ({"passages": "e"}, "its passages changed"),
        ({"schema": "z"}, "its schema changed"),
        ({"route": "q"}, "its route's models changed"),
        ({"sampling": "u"}, "its sampling changed"),
        ({"sample": "1"}, "never asked for this sample"),
        ({"again": "r1"}, "asked again on purpose"),
        ({"tools": "w"}, "its tools changed"),
        ({"turns": "w"}, "its conversation went another way"),
        ({"prompt": "q", "input facts": "h"}, "its input changed (facts of extractor)"),
        ({"prompt": "q", "input rules": "h"}, "its input changed (rules)"),
        ({"passages": "e", "input facts": "h", "schema": "z"},
         "its input changed (facts of extractor), its schema changed"),
        ({"input facts": "h", "schema": "z"}, "its schema changed"),
        ({"prompt": "q", "input more": "h"}, "its prompt changed"),
        ({"prompt": "q", "schema": "z"}, "its prompt changed, its schema changed"),
    ],
)  # fmt: skip
def test_a_change_is_named_after_the_part_that_changed(change: dict[str, str], words: str) -> None:
    assert explain(PARTS | change, [PARTS], makers={"facts": "extractor"}) == words


def test_of_several_answers_the_most_similar_tells_what_changed() -> None:
    other = PARTS | {"prompt": "x", "input facts": "y", "input rules": "z"}
    assert explain(PARTS | {"schema": "z"}, [other, PARTS, other], makers={}) == "its schema changed"
    assert explain(PARTS, [], makers={}) == NEVER


def test_each_part_changes_alone() -> None:
    before = ASKED.parts()
    changes: dict[str, dict[str, Any]] = {
        "prompt": {"messages": (Message("system", "s"), Message("user", "v"))},
        "passages": {"messages": (Message("system", "s"), Message("user", "a document"), Message("user", "u"))},
        "route": {"candidates": ()},
        "sampling": {"temperature": 0.5},
        "sample": {"sample": "1"},
        "again": {"again": "r"},
    }
    for name, change in changes.items():
        after = dataclasses.replace(ASKED, **change).parts()
        assert {part for part in before if before[part] != after[part]} == {name}
    assert set(changes) == set(before)


# ── schemas that only became stricter ──


def schema(**parts: object) -> dict[str, object]:
    return {"type": "object", "properties": {"x": {"type": "string", "description": "what?", **parts}}}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ({}, {"maxLength": 9}),
        ({"maxLength": 9}, {"maxLength": 8}),
        ({"minLength": 1}, {"minLength": 2, "pattern": "a+"}),
        ({}, {"enum": ["a", "b"]}),
        ({"enum": ["a", "b", "c"]}, {"enum": ["a"]}),
        ({"enum": ["a", "b"]}, {"const": "a"}),
        ({"exclusiveMinimum": 0}, {"exclusiveMinimum": 0, "maximum": 7}),
        ({"anyOf": [{"type": "string"}]}, {"anyOf": [{"type": "string", "minLength": 1}]}),
        ({"items": {"type": "integer"}}, {"items": {"type": "integer", "minimum": 0}, "maxItems": 3}),
        ({"maxLength": 9}, {"maxLength": 9}),
    ],
)
def test_a_schema_with_narrower_limits_is_tightened(old: dict[str, object], new: dict[str, object]) -> None:
    assert is_tightened(schema(**old), schema(**new))
    assert wording(schema(**old)) == wording(schema(**new))
    if old != new:
        assert not is_tightened(schema(**new), schema(**old))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ({}, {"description": "what else?"}),
        ({}, {"type": "integer"}),
        ({"enum": ["a"]}, {"enum": ["a", "b"]}),
        ({"pattern": "a+"}, {"pattern": "a*"}),
        ({"minimum": 3}, {"minimum": 2, "maximum": 7}),
        ({"maxLength": 9}, {"minLength": 1}),
        ({"anyOf": [{"type": "string"}]}, {"anyOf": [{"type": "string"}, {"type": "null"}]}),
    ],
)
def test_a_schema_that_asks_otherwise_or_for_more_is_not(old: dict[str, object], new: dict[str, object]) -> None:
    assert not is_tightened(schema(**old), schema(**new))


def test_a_property_may_be_called_like_a_limit() -> None:
    assert not is_tightened({"properties": {"pattern": {"type": "string"}}}, {"properties": {}})
    assert not is_tightened({"properties": {}}, {"properties": {"pattern": {"type": "string"}}})
    narrower = {"properties": {"pattern": {"type": "string", "minLength": 1}}}
    assert is_tightened({"properties": {"pattern": {"type": "string"}}}, narrower)
