"""One value, one sequence of bytes; and everything that has no such sequence is refused."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from datetime import UTC, datetime
from enum import StrEnum
from hashlib import sha256
from pathlib import Path
from types import MappingProxyType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twolane.domain.canonical import (
    LEAF_MAX_BYTES,
    SALT_BYTES,
    canonical_json,
    commitment,
    digest,
    leaf_bytes,
)
from twolane.errors import InvalidEntry

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
keys = st.from_regex(r"[a-z][a-z0-9_]{0,11}", fullmatch=True)
integers = st.integers(-(2**53) + 1, 2**53 - 1)
leaf_values = st.recursive(
    text | integers,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4),
    max_leaves=12,
)
json_values = st.recursive(
    st.none() | st.booleans() | text | integers | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=4),
    max_leaves=12,
)


def shuffled(value: object) -> object:
    """The same value with the keys of every object in the opposite order."""
    if isinstance(value, dict):
        return {key: shuffled(value[key]) for key in reversed(value)}
    return [shuffled(element) for element in value] if isinstance(value, list) else value


@given(st.dictionaries(keys, leaf_values, max_size=6))
def test_a_leaf_reads_back_and_is_written_the_same_way_again(fields: dict[str, object]) -> None:
    data = leaf_bytes(fields)
    read = json.loads(data)
    assert read == fields
    assert leaf_bytes(read) == data


@given(st.dictionaries(keys, leaf_values, max_size=6))
def test_a_leaf_does_not_depend_on_the_order_of_its_keys(fields: dict[str, object]) -> None:
    again = shuffled(fields)
    assert isinstance(again, dict)
    assert leaf_bytes(again) == leaf_bytes(fields)


@given(st.dictionaries(keys, leaf_values, max_size=6))
def test_a_leaf_is_what_the_standard_library_would_write(fields: dict[str, object]) -> None:
    """RFC 8785 and Python's json agree wherever floats are absent and keys are ASCII; only the escapes need care."""
    written = json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert leaf_bytes(fields) == written.encode()


def test_a_leaf_may_come_as_any_mapping() -> None:
    assert leaf_bytes(MappingProxyType({"v": 1, "kind": "chat"})) == b'{"kind":"chat","v":1}'


class Kind(StrEnum):
    CHAT = "chat"


endless: list[object] = []
endless.append(endless)


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"cost": 0.5}, "/cost: floats"),
        ({"cost": math.nan}, "/cost: floats"),
        ({"cost": {"amount": 1.0}}, "/cost/amount: floats"),
        ({"ttft_us": None}, "/ttft_us: nulls"),
        ({"is_estimated": True}, "/is_estimated: truth values"),
        ({"cost": 2**53}, "not below 2\\*\\*53"),
        ({"cost": -(2**53)}, "not below 2\\*\\*53"),
        ({"parts": ["a", ["b", 2**60]]}, "/parts/1/1: "),
        ({"kind": Kind.CHAT}, "/kind: Kind values"),
        ({"at": datetime(2026, 1, 1, tzinfo=UTC)}, "/at: datetime values"),
        ({"body": b"bytes"}, "/body: bytes values"),
        ({"parts": (1, 2)}, "/parts: tuple values"),
        ({"parts": endless}, "nested deeper than 16 levels"),
        ({"text": "\ud800"}, "UTF-8"),
        ({"": 1}, "snake_case"),
        ({"Kind": 1}, "snake_case"),
        ({"inputTokens": 1}, "snake_case"),
        ({"input-tokens": 1}, "snake_case"),
        ({"2nd": 1}, "snake_case"),
        ({"_seq": 1}, "snake_case"),
        ({"größe": 1}, "snake_case"),
        ({"usage": {"Input": 1}}, "/usage: the key 'Input'"),
        ({1: 1}, "the key 1 "),
        ({Kind.CHAT: 1}, "snake_case"),
    ],
)
def test_what_others_could_read_differently_cannot_be_a_leaf(fields: Mapping[str, object], problem: str) -> None:
    with pytest.raises(InvalidEntry, match=problem):
        leaf_bytes(fields)


def test_the_largest_integers_of_a_leaf() -> None:
    assert leaf_bytes({"a": 2**53 - 1, "b": -(2**53) + 1}) == b'{"a":9007199254740991,"b":-9007199254740991}'


def test_a_leaf_has_at_most_16_kb() -> None:
    empty = len(leaf_bytes({"text": ""}))
    assert len(leaf_bytes({"text": "x" * (LEAF_MAX_BYTES - empty)})) == LEAF_MAX_BYTES == 16_384
    with pytest.raises(InvalidEntry, match="at most 16384 bytes, this one 16385"):
        leaf_bytes({"text": "x" * (LEAF_MAX_BYTES - empty + 1)})


@given(json_values)
def test_canonical_json_reads_back_and_does_not_depend_on_order(value: object) -> None:
    data = canonical_json(value)
    assert json.loads(data) == value
    assert canonical_json(shuffled(value)) == data
    assert canonical_json(json.loads(data)) == data


def test_equal_numbers_have_equal_bytes() -> None:
    assert canonical_json({"temperature": 0.0}) == canonical_json({"temperature": 0}) == b'{"temperature":0}'
    assert canonical_json(-0.0) == b"0"
    assert canonical_json([0.7, 1e22, 1.5e-7]) == b"[0.7,1e+22,1.5e-7]"
    assert canonical_json((1, Kind.CHAT)) == b'[1,"chat"]'


@pytest.mark.parametrize(
    "value",
    [math.nan, math.inf, [-math.inf], {1: "a"}, {"a": b"bytes"}, {"a": {1, 2}}, datetime(2026, 1, 1, tzinfo=UTC)],
)
def test_what_has_no_canonical_form_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="no canonical form"):
        canonical_json(value)


@pytest.mark.parametrize("value", ["\ud800", {"\ud800": 1}, 2**64, endless])
def test_what_json_cannot_hold_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="no canonical form"):
        canonical_json(value)


@pytest.mark.parametrize("name", ["arrays", "french", "structures", "unicode", "values"])
def test_published_canonical_documents_are_reproduced(shared: Path, name: str) -> None:
    folder = shared / "data/audit/jcs"
    value = json.loads((folder / f"input/{name}.json").read_bytes())
    assert canonical_json(value) == (folder / f"output/{name}.json").read_bytes()


def test_where_rfc_8785_sorts_otherwise_no_leaf_can_be_written(shared: Path) -> None:
    """It orders keys by UTF-16 unit: another order beyond the Basic Multilingual Plane, but leaves have ASCII keys."""
    folder = shared / "data/audit/jcs"
    value = json.loads((folder / "input/weird.json").read_bytes())
    assert json.loads(canonical_json(value)) == json.loads((folder / "output/weird.json").read_bytes())
    with pytest.raises(InvalidEntry):
        leaf_bytes(value)


def test_a_digest_is_sha_256_in_hex() -> None:
    assert digest(b"abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_a_commitment_is_the_salted_digest_under_its_own_name() -> None:
    salt = bytes(range(SALT_BYTES))
    assert commitment(salt, b"body") == sha256(b"commit/v1" + salt + b"body").hexdigest()
    assert commitment(salt, b"body") != commitment(bytes(SALT_BYTES), b"body")


@pytest.mark.parametrize("length", [0, 15, 17, 32])
def test_a_salt_of_another_length_is_refused(length: int) -> None:
    """Otherwise the first bytes of a body could be passed off as the end of its salt."""
    with pytest.raises(ValueError, match="16 bytes"):
        commitment(bytes(length), b"body")
