"""Anthropic's words and OpenAI's: each told in the other's."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from twolane.domain.anthropic.body import Untellable, native_body, to_body
from twolane.domain.anthropic.chunker import Chunker, ReportedError
from twolane.domain.anthropic.request import to_chat
from twolane.domain.anthropic.schema import strict_schema
from twolane.domain.anthropic.teller import Teller
from twolane.domain.anthropic.whole import message_of, read_events, whole_message
from twolane.domain.anthropic.words import anthropic_usage, event_bytes, input_of, usage_from
from twolane.domain.completion import Completion, EventError, parse_event, usage_fields, usage_of
from twolane.domain.records import Message, ModelCall, Native, ReplySchema, Usage

CALL = ModelCall((Message("system", "be brief"), Message("user", "hello")), "m-1", 50)
PICTURE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}}
PICTURE_URL = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
Json = dict[str, Any]  # Any: JSON


def with_messages(*messages: Mapping[str, object], **extras: object) -> ModelCall:
    return dataclasses.replace(CALL, raw_messages=messages, extras=extras)


# ── Anthropic's requests → OpenAI's ──


def test_plain_messages_stay_plain() -> None:
    chat = to_chat({"system": "be brief", "messages": [{"role": "user", "content": "hello"}]})
    assert chat.messages == CALL.messages
    assert (chat.raw_messages, chat.extras, chat.schema) == (None, {}, None)


def test_blocks_of_text_are_plain_too() -> None:
    kept = {"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}
    chat = to_chat({"system": [kept, kept], "messages": [{"role": "user", "content": [kept]}]})
    assert chat.messages == (Message("system", "a\na"), Message("user", "a"))
    assert chat.raw_messages is None


def test_a_conversation_with_tools_is_told_in_openais_words() -> None:
    use = {"type": "tool_use", "id": "t1", "name": "weather", "input": {"city": "Köln"}}
    result = {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "rain"}, PICTURE]}
    said = [{"type": "thinking", "thinking": "hm", "signature": "s"}, {"type": "text", "text": "one moment"}, use]
    chat = to_chat(
        {
            "messages": [
                {"role": "user", "content": "weather?"},
                {"role": "assistant", "content": said},
                {"role": "user", "content": [result, {"type": "text", "text": "and now?"}]},
            ]
        }
    )
    call = {"id": "t1", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Köln"}'}}
    assert chat.raw_messages == (
        {"role": "user", "content": "weather?"},
        {"role": "assistant", "content": "one moment", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "t1", "content": "rain"},
        {"role": "user", "content": [PICTURE_URL, {"type": "text", "text": "and now?"}]},
    )
    assert [message.content for message in chat.messages] == ["weather?", "one moment", "rain", "and now?"]


@pytest.mark.parametrize(
    ("block", "part"),
    [
        (PICTURE, PICTURE_URL),
        (
            {"type": "image", "source": {"type": "url", "url": "https://x/y"}},
            {"type": "image_url", "image_url": {"url": "https://x/y"}},
        ),
        (
            {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": "QQ=="}},
            {"type": "file", "file": {"filename": "document.pdf", "file_data": "data:application/pdf;base64,QQ=="}},
        ),
        (
            {"type": "document", "title": "T", "source": {"type": "text", "media_type": "text/plain", "data": "words"}},
            {"type": "text", "text": "T\nwords"},
        ),
        (
            {"type": "search_result", "title": "T", "source": "S", "content": [{"type": "text", "text": "words"}]},
            {"type": "text", "text": "T (S)\nwords"},
        ),
    ],
)
def test_blocks_become_parts(block: Json, part: Json) -> None:
    chat = to_chat({"messages": [{"role": "user", "content": [block, PICTURE]}]})
    assert chat.raw_messages == ({"role": "user", "content": [part, PICTURE_URL]},)


def test_what_has_no_counterpart_goes_on_as_it_came() -> None:
    search = {"type": "web_search_20250305", "name": "web_search"}
    held = {"type": "image", "source": {"type": "file", "file_id": "f"}}
    chat = to_chat({"messages": [{"role": "user", "content": [held]}], "tools": [search]})
    assert chat.raw_messages == ({"role": "user", "content": [held]},)
    assert chat.extras["tools"] == [search]


def test_tools_and_sampling_are_told_in_openais_words() -> None:
    schema = {"type": "object", "properties": {}}
    chat = to_chat(
        {
            "messages": [],
            "tools": [{"name": "f", "description": "d", "input_schema": schema, "cache_control": {}}],
            "tool_choice": {"type": "tool", "name": "f", "disable_parallel_tool_use": True},
            "stop_sequences": ["x"],
            "top_p": 0.5,
            "top_k": 3,
            "metadata": {"user_id": "u"},
            "thinking": {"type": "adaptive"},
            "output_config": {"format": {"type": "json_schema", "schema": schema}},
        }
    )
    assert chat.extras == {
        "stop": ["x"],
        "top_p": 0.5,
        "user": "u",
        "tools": [{"type": "function", "function": {"name": "f", "description": "d", "parameters": schema}}],
        "tool_choice": {"type": "function", "function": {"name": "f"}},
        "parallel_tool_calls": False,
    }
    assert chat.schema == ReplySchema("reply", schema)


# ── OpenAI's requests → Anthropic's ──


def test_a_plain_call_is_a_streamed_message() -> None:
    assert to_body(dataclasses.replace(CALL, temperature=1.7)).fields == {
        "model": "m-1",
        "max_tokens": 50,
        "system": "be brief",
        "messages": [{"role": "user", "content": [{"type": "text", "text": "hello"}]}],
        "temperature": 1.0,
        "stream": True,
    }


def test_results_of_tools_stand_together_in_the_next_turn() -> None:
    calls = [
        {"id": f"t{n}", "type": "function", "function": {"name": "f", "arguments": text}}
        for n, text in enumerate(['{"a":1}', "", "no json"])
    ]
    body = to_body(
        with_messages(
            {"role": "developer", "content": "be brief"},
            {"role": "assistant", "content": None, "tool_calls": calls},
            {"role": "tool", "tool_call_id": "t0", "content": "x"},
            {"role": "tool", "tool_call_id": "t1", "content": ""},
            {"role": "user", "content": [{"type": "text", "text": "go on"}, PICTURE_URL]},
        )
    ).fields
    uses = [{"type": "tool_use", "id": f"t{n}", "name": "f"} for n in range(3)]
    assert body["system"] == "be brief"
    assert body["messages"] == [
        {
            "role": "assistant",
            "content": [{**uses[0], "input": {"a": 1}}, {**uses[1], "input": {}},
                        {**uses[2], "input": {"arguments": "no json"}}],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "t0", "content": [{"type": "text", "text": "x"}]},
                {"type": "tool_result", "tool_use_id": "t1", "content": []},
                {"type": "text", "text": "go on"},
                PICTURE,
            ],
        },
    ]  # fmt: skip


def test_extras_are_mapped_or_dropped_on_purpose() -> None:
    schema = {"type": "object"}
    told = to_body(
        with_messages(
            {"role": "user", "content": "hello"},
            stop="x",
            user="u",
            top_p=0.5,
            reasoning_effort="minimal",
            tools=[{"type": "function", "function": {"name": "f", "parameters": schema, "strict": True}}],
            tool_choice="required",
            parallel_tool_calls=False,
            seed=1,
            logprobs=True,
            n=1,
            stream_options={"include_usage": True},
        )
    ).fields
    assert {name: told[name] for name in told if name not in ("messages", "model", "max_tokens", "stream")} == {
        "stop_sequences": ["x"],
        "metadata": {"user_id": "u"},
        "top_p": 0.5,
        "output_config": {"effort": "low"},
        "tools": [{"name": "f", "input_schema": schema, "strict": True}],
        "tool_choice": {"type": "any", "disable_parallel_tool_use": True},
    }


@pytest.mark.parametrize(
    ("extras", "named"),
    [({"n": 2}, "'n'"), ({"functions": [{}]}, "'functions'"), ({"function_call": "auto"}, "'function_call'"),
     ({"tools": [{"name": "f"}], "tool_choice": {"type": "allowed_tools"}}, "'tool_choice'")],
)  # fmt: skip
def test_what_cannot_be_told_is_refused_by_name(extras: Json, named: str) -> None:
    with pytest.raises(Untellable, match=named):
        to_body(dataclasses.replace(CALL, extras=extras))


@pytest.mark.parametrize(
    "message", [{"role": "function", "content": "x"}, {"role": "user", "content": [{"type": "input_audio"}]}]
)
def test_messages_that_cannot_be_told_are_refused(message: Json) -> None:
    with pytest.raises(Untellable):
        to_body(with_messages(message))


def test_a_schema_is_asked_for_by_the_apis_own_means() -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer", "minimum": 1, "description": "a count"}}}
    body = to_body(dataclasses.replace(CALL, schema=ReplySchema("r", schema)))
    assert body.reply_tool is None
    assert body.fields["output_config"] == {
        "format": {
            "type": "json_schema",
            "schema": {
                "type": "object",
                "properties": {"n": {"type": "integer", "description": 'a count {"minimum":1}'}},
                "additionalProperties": False,
            },
        }
    }


@pytest.mark.parametrize("structured", ["json_schema", "json_object"])
def test_a_schema_that_the_api_does_not_know_is_a_tools_input(structured: str) -> None:
    anything = {"type": "object", "additionalProperties": {"type": "string"}}
    body = to_body(dataclasses.replace(CALL, schema=ReplySchema("r", anything)), structured=structured)
    assert body.reply_tool == "reply"
    assert body.fields["tool_choice"] == {"type": "tool", "name": "reply"}
    assert body.fields["tools"] == [{"name": "reply", "description": "Give the reply.", "input_schema": anything}]
    own = with_messages(tools=[{"name": "reply", "input_schema": {}}])
    body = to_body(dataclasses.replace(own, schema=ReplySchema("r", anything)), structured=structured)
    assert body.reply_tool == "reply_1"
    assert body.fields["tool_choice"] == {"type": "any"}


def test_a_schema_may_be_asked_for_in_words() -> None:
    body = to_body(dataclasses.replace(CALL, schema=ReplySchema("r", {"const": 7})), structured="none")
    assert str(body.fields["system"]).endswith('{"const":7}')
    assert "tools" not in body.fields


@pytest.mark.parametrize(
    "schema",
    [True, {}, {"type": "object"}, {"properties": {"a": True}}, {"type": "array", "items": {"not": {"type": "null"}}},
     {"anyOf": [{"type": "object"}]}, {"$defs": {"a": {"type": "object"}}, "$ref": "#/$defs/a"}],
)  # fmt: skip
def test_a_schema_that_would_lose_its_meaning_is_not_told(schema: object) -> None:
    assert strict_schema(schema) is None


@pytest.mark.parametrize(
    ("schema", "told"),
    [
        ({"type": ["string", "null"], "maxLength": 3, "title": "T"},
         {"title": "T", "anyOf": [{"type": "string", "description": '{"maxLength":3}'}, {"type": "null"}]}),
        ({"type": ["string", "null"], "enum": ["a", None]}, {"enum": ["a", None]}),
        ({"type": "string", "format": "date"}, {"type": "string", "format": "date"}),
        ({"type": "string", "format": "odd"}, {"type": "string", "description": '{"format":"odd"}'}),
        ({"oneOf": [{"type": "null"}, {"$ref": "#/$defs/a"}], "$defs": {"a": {"const": 1}}},
         {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/a"}], "$defs": {"a": {"const": 1}}}),
        ({"type": "array", "items": {"type": "integer"}, "$schema": "x"},
         {"type": "array", "items": {"type": "integer"}}),
    ],
)  # fmt: skip
def test_a_schema_is_told_in_the_part_that_is_known(schema: Json, told: Json) -> None:
    assert strict_schema(schema) == told


def test_a_native_request_changes_in_model_limit_and_stream_alone() -> None:
    asked = {"model": "auto", "max_tokens": 9000, "stream": False, "speed": "fast", "messages": [{"role": "user"}]}
    call = dataclasses.replace(CALL, native=Native("anthropic", asked))
    assert call.native is not None
    assert native_body(call.native, call).fields == {**asked, "model": "m-1", "max_tokens": 50, "stream": True}


@pytest.mark.parametrize(("limit", "budget"), [(9000, 8000), (8000, 7999), (4000, 3999), (1025, 1024), (1000, 8000)])
def test_thinking_shrinks_with_the_limit(limit: int, budget: int) -> None:
    asked = {"max_tokens": 9000, "thinking": {"type": "enabled", "budget_tokens": 8000}}
    call = dataclasses.replace(CALL, max_tokens=limit)
    told = native_body(Native("anthropic", asked), call).fields
    assert told["thinking"] == {"type": "enabled", "budget_tokens": budget}


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


def fields_of(*names: str, **known: st.SearchStrategy[object]) -> st.SearchStrategy[Json]:
    odd = dict.fromkeys(names, json_values)
    return st.fixed_dictionaries({}, optional={**odd, **{name: known[name] | json_values for name in known}})


blocks = fields_of(
    "text", "source", "content", "id", "name", "input", "tool_use_id", "title",
    type=st.sampled_from(["text", "image", "document", "tool_use", "tool_result", "thinking", "search_result", "new"]),
)  # fmt: skip
turns = st.lists(fields_of(content=st.lists(blocks, max_size=3), role=st.sampled_from(["user", "assistant"])))


@given(fields_of("system", "tools", "tool_choice", "metadata", "output_config", "stop_sequences", messages=turns))
def test_no_request_is_too_odd_to_be_translated(fields: Json) -> None:
    chat = to_chat(fields)
    assert orjson.dumps([chat.raw_messages, chat.extras])


# ── OpenAI's answers → Anthropic's ──


def told_by(chunks: Iterable[Mapping[str, object]]) -> list[Mapping[str, object]]:
    teller = Teller("msg_1", "m")
    stream = b"".join(teller.take(chunk, usage_of(chunk)) for chunk in chunks) + teller.finish()
    return read_events(stream)


def read_chunks(chunks: Iterable[Mapping[str, object]]) -> Completion:
    completion = Completion()
    for chunk in chunks:
        completion.feed(b"data: " + orjson.dumps(chunk) + b"\n\n")
    return completion


def delta(finish: str | None = None, **fields: object) -> Json:
    return {"model": "m-2", "choices": [{"index": 0, "delta": fields, "finish_reason": finish}]}


def piece(index: int, arguments: str, **more: str) -> Json:
    function = {"arguments": arguments} | ({"name": more["name"]} if "name" in more else {})
    return {"index": index, "function": function} | ({"id": more["id"]} if "id" in more else {})


def test_an_answer_is_told_in_typed_events() -> None:
    usage = {"prompt_tokens": 9, "completion_tokens": 4, "prompt_tokens_details": {"cached_tokens": 3}}
    events = told_by(
        [
            delta(role="assistant", content=""),
            delta(reasoning_content="hm"),
            delta(content="one "),
            delta(content="moment"),
            delta(tool_calls=[piece(0, "", id="t1", name="f")]),
            delta(tool_calls=[piece(0, '{"a"')]),
            delta(tool_calls=[piece(0, ":1}")]),
            delta("tool_calls"),
            {"choices": [], "usage": usage},
        ]
    )
    assert [event["type"] for event in events] == [
        "message_start",
        *("content_block_start", "content_block_delta", "content_block_stop"),
        *("content_block_start", "content_block_delta", "content_block_delta", "content_block_stop"),
        *("content_block_start", "content_block_delta", "content_block_delta", "content_block_stop"),
        "message_delta",
    ]
    assert whole_message(events) == {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "m-2",
        "content": [
            {"type": "thinking", "thinking": "hm", "signature": ""},
            {"type": "text", "text": "one moment"},
            {"type": "tool_use", "id": "t1", "name": "f", "input": {"a": 1}},
        ],
        "stop_reason": "tool_use",
        "stop_sequence": None,
        "usage": {"input_tokens": 6, "cache_read_input_tokens": 3, "output_tokens": 4},
    }


@pytest.mark.parametrize(
    ("finish", "stop"),
    [("stop", "end_turn"), ("length", "max_tokens"), ("content_filter", "refusal"), ("new", "end_turn"),
     (None, "end_turn"), ("tool_calls", "tool_use")],
)  # fmt: skip
def test_reasons_to_stop_are_translated(finish: str | None, stop: str) -> None:
    assert whole_message(told_by([delta(finish, content="a")]))["stop_reason"] == stop


def test_the_stop_sequence_is_named_where_the_server_names_it() -> None:
    teller = Teller("msg_1", "m", ["END"])
    chunk = {"choices": [{"index": 0, "delta": {"content": "a"}, "finish_reason": "stop", "stop_reason": "END"}]}
    message = whole_message(read_events(teller.take(chunk, None) + teller.finish()))
    assert (message["stop_reason"], message["stop_sequence"]) == ("stop_sequence", "END")


def test_an_empty_answer_is_a_message_without_content() -> None:
    events = told_by([])
    assert [event["type"] for event in events] == ["message_start", "message_delta"]
    assert whole_message(events)["content"] == []


names = st.text("abc", min_size=1, max_size=3)
pieces = st.builds(
    lambda index, text, id, name: piece(index, text, **({"id": id} if id else {}), **({"name": name} if name else {})),
    st.integers(0, 2),
    st.text('{}":1a,', max_size=4),
    st.none() | names,
    st.none() | names,
)
counts = st.integers(0, 1000)
usages = st.builds(
    lambda read, cached, kept, written, thought: usage_fields(
        Usage(read + (cached or 0) + (kept or 0), written + (thought or 0), cached, kept, thought)
    ),
    counts, st.none() | counts, st.none() | counts, counts, st.none() | counts,
)  # fmt: skip
deltas: st.SearchStrategy[Any] = st.fixed_dictionaries(  # Any: JSON
    {},
    optional={"content": st.text(max_size=5), "reasoning_content": st.text(max_size=5), "tool_calls": st.lists(pieces)},
)
finishes = st.sampled_from([None, "stop", "length", "tool_calls", "content_filter"])


def named_once(chunks: list[Json]) -> list[Json]:
    """As servers do it: a call's name comes once, with or after its first piece."""
    seen: set[int] = set()
    for chunk in chunks:
        for call in chunk["choices"][0]["delta"].get("tool_calls") or []:
            if "name" in call["function"] and call["index"] in seen:
                del call["function"]["name"]
            elif "name" in call["function"]:
                seen.add(call["index"])
    return chunks


@given(
    st.lists(deltas, max_size=6).map(lambda found: [delta(**fields) for fields in found]).map(named_once),
    finishes,
    usages,
)
def test_the_events_tell_what_the_chunks_told(chunks: list[Json], finish: str | None, usage: Json) -> None:
    # Calls with a gap in their numbers are moved together by whoever reads them: here they come without gaps.
    order: dict[int, int] = {}
    for chunk in chunks:
        for call in chunk["choices"][0]["delta"].get("tool_calls") or []:
            call["index"] = order.setdefault(call["index"], len(order))
    chunks = [*chunks, delta(finish), {"choices": [], "usage": usage}]
    completion = read_chunks(chunks)
    said: Any = completion.choices[0]["message"]
    message: Json = whole_message(told_by(chunks))
    content = message["content"]
    assert "".join(block["text"] for block in content if block["type"] == "text") == completion.text
    thoughts = "".join(block["thinking"] for block in content if block["type"] == "thinking")
    assert thoughts == (said.get("reasoning_content") or "")
    uses = sorted((block["name"], orjson.dumps(block["input"])) for block in content if block["type"] == "tool_use")
    calls = [call["function"] for call in said.get("tool_calls") or []]
    assert uses == sorted((call["name"], orjson.dumps(input_of(call["arguments"]))) for call in calls)
    assert usage_from(message["usage"]) == completion.usage
    assert all(block["id"] for block in content if block["type"] == "tool_use")
    expected = {"length": "max_tokens", "content_filter": "refusal", "tool_calls": "tool_use"}.get(
        finish or "", "end_turn"
    )
    assert message["stop_reason"] == ("tool_use" if calls and expected == "end_turn" else expected)
    told = message_of(completion.choices[0], id="msg_1", model=completion.model, usage=completion.usage)
    assert told["usage"] == message["usage"]
    assert told["stop_reason"] == message["stop_reason"]


odd_choices = st.lists(fields_of("index", "finish_reason", "stop_reason", delta=fields_of(
    "content", "reasoning", "refusal", "role", tool_calls=st.lists(fields_of("index", "id", "function"), max_size=2)
)), max_size=2)  # fmt: skip


@given(st.lists(fields_of("model", "usage", choices=odd_choices), max_size=4))
def test_no_chunk_is_too_odd_to_be_told(chunks: list[Json]) -> None:
    events = told_by(chunks)
    assert events[0]["type"] == "message_start"
    assert events[-1]["type"] == "message_delta"
    opened = [event["index"] for event in events if event["type"] == "content_block_start"]
    closed = [event["index"] for event in events if event["type"] == "content_block_stop"]
    assert opened == closed == list(range(len(opened)))


@given(usages)
def test_usage_goes_there_and_back(fields: Json) -> None:
    usage = usage_of({"usage": fields})
    assert usage is not None
    assert usage_from(anthropic_usage(usage)) == usage


@pytest.mark.parametrize("fields", [None, [], {}, {"input_tokens": 1}, {"input_tokens": -1, "output_tokens": 1}])
def test_usage_that_makes_no_sense_is_unknown(fields: object) -> None:
    assert usage_from(fields) is None


# ── Anthropic's answers → OpenAI's ──

START = {
    "type": "message_start",
    "message": {
        "id": "msg_9",
        "type": "message",
        "role": "assistant",
        "model": "claude",
        "content": [],
        "stop_reason": None,
        "usage": {
            "input_tokens": 5,
            "cache_read_input_tokens": 3,
            "cache_creation_input_tokens": 2,
            "output_tokens": 1,
        },
    },
}
STOP = {"type": "message_stop"}


def block(index: int, start: Json, *deltas: Json) -> list[Json]:
    return [
        {"type": "content_block_start", "index": index, "content_block": start},
        *({"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas),
        {"type": "content_block_stop", "index": index},
    ]


def ended(stop_reason: str, **more: object) -> list[Json]:
    return [
        {"type": "message_delta", "delta": {"stop_reason": stop_reason}, "usage": {"output_tokens": 7}, **more},
        STOP,
    ]


TEXT = block(
    0, {"type": "text", "text": ""}, {"type": "text_delta", "text": "one "}, {"type": "text_delta", "text": "two"}
)
USE = {"type": "tool_use", "id": "t1", "name": "f", "input": {}}
INPUT = [{"type": "input_json_delta", "partial_json": text} for text in ("", '{"a"', ":1}")]


def chunked(events: Iterable[Mapping[str, object]], **options: Any) -> bytes:
    chunker = Chunker(created=1, **options)
    return b"".join(chunker.take(orjson.dumps(event)) for event in events)


def completed(events: Iterable[Mapping[str, object]], **options: Any) -> Completion:
    completion = Completion()
    completion.feed(chunked(events, **options))
    return completion


def test_events_become_chunks() -> None:
    completion = completed([START, {"type": "ping"}, *TEXT, *block(1, USE, *INPUT), *ended("tool_use")])
    assert completion.is_done
    assert completion.text == "one two"
    assert (completion.id, completion.model, completion.finish_reason) == ("msg_9", "claude", "tool_calls")
    assert completion.usage == Usage(10, 7, cache_read_tokens=3, cache_write_tokens=2)
    said: Any = completion.choices[0]["message"]
    assert said["tool_calls"] == [{"id": "t1", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}]
    assert completion.events == []


def test_a_tool_without_input_has_empty_arguments_in_json() -> None:
    said: Any = completed([START, *block(0, USE, INPUT[0]), *ended("tool_use")]).choices[0]["message"]
    assert said["tool_calls"][0]["function"]["arguments"] == "{}"


def test_thoughts_travel_as_reasoning() -> None:
    thought = block(
        0,
        {"type": "thinking", "thinking": "", "signature": ""},
        {"type": "thinking_delta", "thinking": "hm"},
        {"type": "signature_delta", "signature": "sig"},
    )
    completion = completed([START, *thought, *TEXT, *ended("end_turn")])
    said: Any = completion.choices[0]["message"]
    assert (said["reasoning_content"], said["content"]) == ("hm", "one two")


@pytest.mark.parametrize(
    ("stop", "finish"),
    [("end_turn", "stop"), ("max_tokens", "length"), ("stop_sequence", "stop"), ("refusal", "content_filter"),
     ("model_context_window_exceeded", "length"), ("pause_turn", "stop"), ("new", "stop"), ("tool_use", "stop")],
)  # fmt: skip
def test_stop_reasons_are_translated(stop: str, finish: str) -> None:
    assert completed([START, *TEXT, *ended(stop)]).finish_reason == finish


def test_the_input_of_the_reply_tool_is_the_reply() -> None:
    completion = completed(
        [START, *TEXT, *block(1, {**USE, "name": "reply"}, *INPUT), *ended("tool_use")], reply_tool="reply"
    )
    said: Any = completion.choices[0]["message"]
    assert (completion.text, completion.finish_reason) == ('{"a":1}', "stop")
    assert said["reasoning_content"] == "one two"
    assert "tool_calls" not in said


def test_an_error_event_says_of_what_kind() -> None:
    with pytest.raises(ReportedError, match="too busy") as reported:
        chunked([START, {"type": "error", "error": {"type": "overloaded_error", "message": "too busy"}}])
    assert reported.value.kind == "overloaded_error"


@pytest.mark.parametrize("payload", [b"no json", b"[]", b"7"])
def test_what_is_no_event_is_an_error(payload: bytes) -> None:
    with pytest.raises(EventError):
        Chunker(created=1).take(payload)


event_kinds = st.sampled_from(
    [
        *(f"content_block_{kind}" for kind in ("start", "delta", "stop")),
        "message_start",
        "message_delta",
        "message_stop",
    ]
)
odd_blocks = fields_of(*("id", "name", "input", "text", "thinking"), type=st.sampled_from(["text", "tool_use", "new"]))
odd_deltas = fields_of(
    *("text", "partial_json", "thinking", "stop_reason"), type=st.sampled_from(["text_delta", "input_json_delta"])
)
odd_events = fields_of("index", "usage", "message", type=event_kinds, content_block=odd_blocks, delta=odd_deltas)


@given(st.lists(odd_events.filter(lambda event: event.get("type") != "error"), max_size=6), st.booleans())
def test_no_event_is_too_odd_to_be_read(events: list[Json], keeps: bool) -> None:
    stream = chunked(events, keeps_events=keeps)
    for line in stream.split(b"\n\n"):
        if line.startswith(b"data: "):
            parse_event(line[6:])
    assert isinstance(whole_message(events), dict)


# ── the same dialect on both sides ──

EVERYTHING: list[Json] = [
    START,
    *block(
        0,
        {"type": "thinking", "thinking": "", "signature": ""},
        {"type": "thinking_delta", "thinking": "h"},
        {"type": "thinking_delta", "thinking": "m"},
        {"type": "signature_delta", "signature": "sig"},
    ),
    *block(
        1,
        {"type": "server_tool_use", "id": "s1", "name": "web_search", "input": {}},
        {"type": "input_json_delta", "partial_json": '{"q":"x"}'},
    ),
    *block(2, {"type": "web_search_tool_result", "tool_use_id": "s1", "content": [{"url": "u"}]}),
    *block(
        3,
        {"type": "text", "text": "", "citations": []},
        {"type": "text_delta", "text": "found"},
        {"type": "citations_delta", "citation": {"url": "u"}},
        {"type": "citations_delta", "citation": {"url": "v"}},
    ),
    *block(4, {"type": "compaction", "content": None, "encrypted_content": None}, {
        "type": "compaction_delta", "content": "long ago", "encrypted_content": "xyz"
    }),
    *block(5, {"type": "redacted_thinking", "data": "…"}),
    {
        "type": "message_delta",
        "delta": {"stop_reason": "stop_sequence", "stop_sequence": "END", "container": {"id": "c"}},
        "usage": {"output_tokens": 7, "cache_read_input_tokens": None, "server_tool_use": {"web_search_requests": 1}},
        "context_management": {"applied_edits": []},
    },
    STOP,
]  # fmt: skip


def test_every_event_stands_in_a_chunk_as_it_came() -> None:
    assert completed(EVERYTHING, keeps_events=True).events == EVERYTHING


def test_a_whole_message_holds_all_that_its_events_told() -> None:
    message = whole_message(completed(EVERYTHING, keeps_events=True).events)
    assert message["content"] == [
        {"type": "thinking", "thinking": "hm", "signature": "sig"},
        {"type": "server_tool_use", "id": "s1", "name": "web_search", "input": {"q": "x"}},
        {"type": "web_search_tool_result", "tool_use_id": "s1", "content": [{"url": "u"}]},
        {"type": "text", "text": "found", "citations": [{"url": "u"}, {"url": "v"}]},
        {"type": "compaction", "content": "long ago", "encrypted_content": "xyz"},
        {"type": "redacted_thinking", "data": "…"},
    ]
    assert (message["id"], message["stop_reason"], message["stop_sequence"]) == ("msg_9", "stop_sequence", "END")
    assert (message["container"], message["context_management"]) == ({"id": "c"}, {"applied_edits": []})
    assert message["usage"] == {
        "input_tokens": 5,
        "cache_read_input_tokens": 3,
        "cache_creation_input_tokens": 2,
        "output_tokens": 7,
        "server_tool_use": {"web_search_requests": 1},
    }


def test_those_who_read_chunks_are_told_nothing_of_other_dialects() -> None:
    assert b"anthropic" not in chunked(EVERYTHING)
    assert completed(EVERYTHING).text == "found"


def test_events_are_written_as_they_are_read() -> None:
    assert read_events(b"".join(event_bytes(event) for event in EVERYTHING)) == EVERYTHING


def test_a_signature_comes_in_one_piece_and_the_last_one_counts() -> None:
    signed = [{"type": "signature_delta", "signature": name} for name in ("one", "two")]
    message = whole_message([START, *block(0, {"type": "thinking", "thinking": "", "signature": ""}, *signed)])
    assert message["content"] == [{"type": "thinking", "thinking": "", "signature": "two"}]


def test_caches_are_told_apart_by_how_long_they_are_kept() -> None:
    told = {
        "input_tokens": 10, "output_tokens": 5, "cache_read_input_tokens": 7, "cache_creation_input_tokens": 30,
        "cache_creation": {"ephemeral_5m_input_tokens": 20, "ephemeral_1h_input_tokens": 10},
        "server_tool_use": {"web_search_requests": 2}, "output_tokens_details": {"thinking_tokens": 3},
    }  # fmt: skip
    meant = Usage(47, 5, 7, 30, 3, cache_write_1h_tokens=10, kinds={"web_search": 2})
    assert usage_from(told) == usage_of({"usage": usage_fields(meant)}) == meant
    assert anthropic_usage(meant) == told
    ages_alone = {name: value for name, value in told.items() if name != "cache_creation_input_tokens"}
    assert usage_from(ages_alone) == meant
    assert usage_from({**told, "cache_creation": {"ephemeral_1h_input_tokens": -1}}) == Usage(
        47, 5, 7, 30, 3, kinds={"web_search": 2}
    )
