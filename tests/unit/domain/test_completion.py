"""A streamed answer is read the same way wherever the network cuts it, and only an `EventError` comes out of it."""

from __future__ import annotations

import json
from itertools import chain, pairwise

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from twolane.domain.completion import (
    MAX_EVENT_BYTES,
    Completion,
    EventError,
    EventReader,
    parse_event,
    usage_fields,
    usage_of,
)
from twolane.domain.records import Usage


def chunk(content: str | None = None, *, index: int = 0, **fields: object) -> bytes:
    choice = {"index": index, "delta": {} if content is None else {"content": content}, "finish_reason": None}
    return b"data: " + orjson.dumps({"id": "c1", "created": 7, "model": "m", "choices": [choice], **fields}) + b"\n\n"


def event(choices: list[object], **fields: object) -> bytes:
    return b"data: " + orjson.dumps({"choices": choices, **fields}) + b"\n\n"


DONE = b"data: [DONE]\n\n"


def read(stream: bytes, cuts: list[int] | None = None) -> Completion:
    completion = Completion()
    for start, end in pairwise(sorted({0, len(stream), *(cuts or [])})):
        completion.feed(stream[start:end])
    return completion


@settings(max_examples=150)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=12), max_size=8), st.booleans(), st.data())
def test_the_text_does_not_depend_on_where_the_blocks_are_cut(
    texts: list[str], is_crlf: bool, data: st.DataObject
) -> None:
    stream = b": hello\n\n" + b"".join(chunk(text) for text in texts) + b"event: end\nid: 3\n" + DONE
    stream = stream.replace(b"\n", b"\r\n") if is_crlf else stream
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=12))
    completion = read(stream, cuts)
    assert completion.text == "".join(texts)
    assert completion.is_done


def test_a_stream_may_come_byte_by_byte() -> None:
    stream = (chunk("naïve ") + chunk("€5") + DONE).replace(b"\n", b"\r\n")
    assert read(stream, list(range(len(stream)))).text == "naïve €5"


def test_the_text_is_there_before_the_end_and_without_one() -> None:
    completion = read(chunk("half ") + chunk("an answer"))
    assert completion.text == "half an answer"
    assert not completion.is_done
    completion.feed(chunk("!"))
    assert completion.text == "half an answer!"


def test_comments_empty_events_and_other_fields_are_skipped() -> None:
    stream = b": ping\n\n\n\nretry: 5\n\ndata:\n\ndata: \n\nevent: x\nid: 1\ndata: [DONE]\n\n"
    assert list(EventReader().feed(stream)) == [b"[DONE]"]


def test_an_event_of_several_data_lines_is_one_payload() -> None:
    assert list(EventReader().feed(b'data: {"a":\ndata:1}\n\n')) == [b'{"a":\n1}']


def test_an_event_without_end_is_given_up_before_it_fills_the_memory() -> None:
    reader = EventReader()
    with pytest.raises(EventError, match="more than"):
        list(chain.from_iterable(reader.feed(b"data: " + b"x" * 2**20) for _ in range(MAX_EVENT_BYTES // 2**20 + 1)))


def test_a_large_event_is_read() -> None:
    text = "x" * (MAX_EVENT_BYTES // 2)
    stream = chunk(text) + DONE
    assert read(stream, list(range(0, len(stream), 65_536))).text == text


# ── usage ──

USAGE = {"prompt_tokens": 10, "completion_tokens": 4, "total_tokens": 14}


def test_usage_stands_on_an_event_without_choices() -> None:
    assert read(chunk("a") + event([], usage=USAGE) + DONE).usage == Usage(10, 4)


def test_usage_stands_on_the_last_chunk_with_choices() -> None:
    assert read(chunk("a") + chunk("b", usage=USAGE) + DONE).usage == Usage(10, 4)


def test_the_last_usage_counts_and_a_null_does_not() -> None:
    stream = chunk("a", usage={"prompt_tokens": 10, "completion_tokens": 1}) + chunk("b", usage=USAGE)
    assert read(stream + chunk("c", usage=None) + DONE).usage == Usage(10, 4)


def test_details_of_usage_are_read_and_absent_ones_stay_unknown() -> None:
    told = {
        **USAGE,
        "prompt_tokens_details": {"cached_tokens": 3, "cache_write_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 2},
    }
    assert usage_of({"usage": told}) == Usage(10, 4, cache_read_tokens=3, cache_write_tokens=0, reasoning_tokens=2)
    assert usage_of({"usage": {**USAGE, "prompt_tokens_details": None}}) == Usage(10, 4)


@pytest.mark.parametrize(
    "usage",
    [None, 5, [], {}, {"prompt_tokens": 1}, {**USAGE, "prompt_tokens": -1}, {**USAGE, "completion_tokens": "4"},
     {**USAGE, "completion_tokens": 4.0}, {**USAGE, "completion_tokens": True}, {**USAGE, "prompt_tokens": 2**31}],
)  # fmt: skip
def test_usage_that_makes_no_sense_is_unknown(usage: object) -> None:
    assert usage_of({"usage": usage}) is None


counts = st.none() | st.integers(0, 10**6)


@given(st.integers(0, 10**6), st.integers(0, 10**6), counts, counts)
def test_usage_reads_back_from_its_fields(read_: int, written: int, cached: int | None, reasoning: int | None) -> None:
    kinds = {"input_audio": 3, "cache_read_image": 2, "output_audio": 1, "output_citation": 4, "web_search": 2}
    usage = Usage(read_, written, cached, 3, reasoning, cache_write_1h_tokens=cached, kinds=kinds if cached else None)
    assert usage_of({"usage": usage_fields(usage)}) == usage


# ── errors ──


@pytest.mark.parametrize(
    "payload, words",
    [
        (b'{"error": {"message": "the model is gone", "code": 500}}', "the model is gone"),
        (b'{"error": "plain words"}', "plain words"),
        (b'{"error": {"code": 7}}', "7"),
        (b'{"choices": [', "not JSON"),
        (b"[1]", "not a JSON object"),
    ],
)
def test_what_is_not_a_chunk_says_why(payload: bytes, words: str) -> None:
    with pytest.raises(EventError, match=words):
        parse_event(payload)
    with pytest.raises(EventError, match=words):
        read(chunk("a") + b"data: " + payload + b"\n\n")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.text("ab", max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from("index delta content role tool_calls function name arguments id x".split()), inner
        )
    ),
    max_leaves=8,
)
shapes = st.fixed_dictionaries(
    {},
    optional={
        "id": json_values,
        "created": json_values,
        "usage": json_values,
        "choices": json_values | st.lists(st.fixed_dictionaries({}, optional={
            "index": json_values, "delta": json_values, "logprobs": json_values, "finish_reason": json_values,
        }), max_size=2),
    },
)  # fmt: skip


@settings(max_examples=300)
@given(st.lists(shapes, min_size=1, max_size=4))
def test_no_chunk_however_odd_breaks_the_reader(chunks: list[dict[str, object]]) -> None:
    completion = read(b"".join(b"data: " + orjson.dumps(each) + b"\n\n" for each in chunks) + DONE)
    assert completion.is_done
    json.dumps(completion.as_response())


# ── choices ──


def test_choices_are_kept_apart_and_the_first_is_the_text() -> None:
    stream = chunk("a0") + chunk("b0", index=1) + chunk("a1") + chunk("b1", index=1)
    ends = event([{"index": at, "delta": {}, "finish_reason": reason} for at, reason in enumerate(("stop", "length"))])
    completion = read(stream + ends + DONE)
    assert (completion.text, completion.finish_reason) == ("a0a1", "stop")
    response = completion.as_response()
    assert isinstance(response["choices"], list)
    told = [(each["index"], each["message"]["content"], each["finish_reason"]) for each in response["choices"]]
    assert told == [(0, "a0a1", "stop"), (1, "b0b1", "length")]
    assert (response["id"], response["created"], response["model"]) == ("c1", 7, "m")
    assert "usage" not in response


def test_fragments_of_tool_calls_are_put_together() -> None:
    def piece(**call: object) -> bytes:
        return event([{"index": 0, "delta": {"role": "assistant", "tool_calls": [call]}}])

    stream = (
        piece(index=0, id="t1", type="function", function={"name": "look", "arguments": ""})
        + piece(index=0, function={"arguments": '{"a"'})
        + piece(index=1, id="t2", function={"name": "find", "arguments": "{}"})
        + piece(index=0, function={"arguments": ": 1}"})
        + event([{"index": 0, "delta": {}, "finish_reason": "tool_calls"}])
    )
    message = read(stream + DONE).choices[0]["message"]
    assert isinstance(message, dict)
    assert message["tool_calls"] == [
        {"id": "t1", "type": "function", "function": {"name": "look", "arguments": '{"a": 1}'}},
        {"id": "t2", "type": "function", "function": {"name": "find", "arguments": "{}"}},
    ]
    assert message["content"] is None


def test_logprobs_are_strung_together() -> None:
    def piece(token: str) -> bytes:
        return event([{"index": 0, "delta": {"content": token}, "logprobs": {"content": [{"token": token}]}}])

    choice = read(piece("a") + piece("b") + chunk("c", logprobs=None) + DONE).choices[0]
    assert choice["logprobs"] == {"content": [{"token": "a"}, {"token": "b"}]}


def test_other_texts_of_a_message_grow_beside_its_content() -> None:
    stream = event([{"index": 0, "delta": {"reasoning_content": "so "}}])
    stream += event([{"index": 0, "delta": {"reasoning_content": "then", "content": "42"}}])
    completion = read(stream + DONE)
    assert completion.text == "42"
    assert completion.choices[0]["message"] == {"role": "assistant", "content": "42", "reasoning_content": "so then"}


def test_a_text_may_be_asked_for_while_it_grows() -> None:
    completion = Completion()
    for number in range(5):
        completion.feed(chunk(f"{number}, "))
        assert completion.choices[0]["message"] == {"role": "assistant", "content": completion.text}
    assert completion.text == "0, 1, 2, 3, 4, "


def test_a_field_that_changes_its_kind_loses_no_text() -> None:
    pieces: list[object] = ["a", "b", {"c": 1}, "d", "e"]
    stream = b"".join(event([{"index": 0, "delta": {"odd": piece}}]) for piece in pieces)
    assert read(stream + DONE).choices[0]["message"] == {"role": "assistant", "content": None, "odd": "de"}
    listed = b"".join(event([{"index": 0, "delta": {"odd": piece}}]) for piece in (["a"], "b", "c"))
    assert read(listed + DONE).choices[0]["message"] == {"role": "assistant", "content": None, "odd": "bc"}


def test_an_answer_that_never_ends_is_not_read_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("twolane.domain.completion.MAX_TEXT_CHARS", 100)
    completion = Completion()
    with pytest.raises(EventError, match="more than 100 characters"):
        completion.feed(chunk("word ") * 1000)
    assert len(completion.text) <= 105
