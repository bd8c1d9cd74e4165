"""Reading a request for embeddings, and writing vectors in the other form."""

from __future__ import annotations

import struct

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from twolane.domain.records import Kind, Usage
from twolane.errors import BadRequest
from twolane.kernel import Document
from twolane.online.embeddings import Form, converted, read, whole

json = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["a", "type"]), inner, max_size=2),
    max_leaves=8,
)  # fmt: skip
names = ("model", "input", "dimensions", "encoding_format", "stream", "messages", "max_tokens", "user")


@given(st.dictionaries(st.sampled_from(names), json))
def test_no_request_is_too_odd_to_be_read_or_refused_by_name(fields: dict[str, object]) -> None:
    asked, refused = None, None
    try:
        asked = read(orjson.dumps({"model": "auto", "input": "x", **fields}))
    except BadRequest as error:
        refused = error
    if asked is None:
        assert refused is not None
        assert str(refused.param).split("[")[0] in fields
        return
    assert (asked.call.kind, asked.call.max_tokens, asked.call.messages) == (Kind.EMBEDDINGS, 0, ())
    assert not {"model", "stream", "max_tokens"} & asked.call.extras.keys()


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), max_size=20))
def test_a_vector_is_the_same_in_either_form(vector: list[float]) -> None:
    packed = converted(vector, Form.BASE64)
    assert isinstance(packed, str)
    assert converted(packed, Form.FLOAT) == vector
    assert converted(packed, Form.BASE64) == packed
    assert converted(vector, Form.FLOAT) == vector


@given(json.filter(lambda value: isinstance(value, list | str)), st.sampled_from(Form))
def test_what_is_no_vector_is_a_value_error(vector: object, form: Form) -> None:
    try:
        converted(vector, form)
    except ValueError:
        return
    assert isinstance(vector, str) or all(struct.pack("<f", number) for number in vector)  # type: ignore[attr-defined]


@pytest.mark.parametrize("left_out", [(), ("object",), ("model",), ("usage",), ("object", "model", "usage")])
def test_an_answer_is_whole_whatever_its_server_left_out(left_out: tuple[str, ...]) -> None:
    data = [{"object": "embedding", "index": 0, "embedding": [1.0], "more": "kept"}]
    fields: dict[str, object] = {
        "object": "list", "data": data, "model": "m", "usage": {"prompt_tokens": 3, "total_tokens": 3}, "x": [1],
    }  # fmt: skip
    for name in left_out:
        del fields[name]
    body = orjson.dumps(fields)
    answer = whole(Document(body, fields, data), None, Usage(3, 0), "m")
    assert orjson.loads(answer) == {
        "object": "list", "data": data, "model": "m", "usage": {"prompt_tokens": 3, "total_tokens": 3}, "x": [1],
    }  # fmt: skip
    assert (answer == body) == (not left_out)
