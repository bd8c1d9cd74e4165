"""Everything that could change an answer changes the fingerprint, and nothing else does."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import pytest

from twolane.domain.records import Message, ReplySchema
from twolane.rules.fingerprint import fingerprint

SCHEMA = ReplySchema("S", {"type": "object", "properties": {"x": {"type": "string"}}})


@dataclass(frozen=True)
class Asked:
    tenant: str = "t"
    agent: str = "a"
    messages: tuple[Message, ...] = (Message("system", "s"), Message("user", "u"))
    schema: ReplySchema = SCHEMA
    candidates: tuple[dict[str, object], ...] = ({"kind": "openai", "model": "m"},)
    max_tokens: int = 100
    temperature: float = 0.0
    sample: str = ""

    def fingerprint(self) -> bytes:
        return fingerprint(
            tenant=self.tenant, agent=self.agent, messages=self.messages, schema=self.schema,
            candidates=self.candidates, max_tokens=self.max_tokens, temperature=self.temperature, sample=self.sample,
        )  # fmt: skip


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
        {"schema": ReplySchema("T", Asked().schema.schema)},
        {"candidates": ({"kind": "openai", "model": "m2"},)},
        {"candidates": (*Asked().candidates, {"kind": "extractive", "model": "e"})},
        {"max_tokens": 101},
        {"temperature": 0.1},
        {"sample": "2"},
    ],
)
def test_what_could_change_the_answer_changes_it(change: dict[str, Any]) -> None:  # Any: each field has its own type
    assert dataclasses.replace(Asked(), **change).fingerprint() != Asked().fingerprint()


def test_the_order_of_a_schemas_keys_and_a_whole_float_do_not() -> None:
    turned = ReplySchema("S", {"properties": {"x": {"type": "string"}}, "type": "object"})
    assert dataclasses.replace(Asked(), schema=turned, temperature=0).fingerprint() == Asked().fingerprint()


def test_it_is_the_same_bytes_in_every_process() -> None:
    assert Asked().fingerprint() == (
        b'{"agent":"a","candidates":[{"kind":"openai","model":"m"}],"format":1,"max_tokens":100,'
        b'"messages":[["system","s"],["user","u"]],"sample":"",'
        b'"schema":["S",{"properties":{"x":{"type":"string"}},"type":"object"}],"temperature":0,"tenant":"t"}'
    )
