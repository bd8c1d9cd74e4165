"""Responses: what a request comes to, and the events of an answer. No server here."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.conformance.descriptions import problems

from twolane.domain.completion import Completion, EventError
from twolane.domain.records import Message, ModelCall, Usage
from twolane.errors import BadRequest, BudgetExceeded, Killed, TwolaneError, UpstreamError
from twolane.online.response_output import Frame, ResponseFlow
from twolane.online.responses import ResponseRequest, Responses

TOOL = {"type": "function", "name": "weather", "parameters": {"type": "object"}, "strict": True}


def read(**fields: object) -> ResponseRequest:
    return Responses().read(orjson.dumps({"model": "auto", "input": "hello", **fields}))


def call(**fields: object) -> ModelCall:
    return read(**fields).call


def read_or_refused(fields: dict[str, Any]) -> ResponseRequest | BadRequest:
    try:
        return read(**fields)
    except BadRequest as error:
        return error


def refused(**fields: object) -> BadRequest:
    with pytest.raises(BadRequest) as caught:
        read(**fields)
    return caught.value


# ── requests ──


def test_a_text_is_a_users_message_and_instructions_come_first() -> None:
    asked = read(instructions="be brief", max_output_tokens=7, temperature=0.5, stream=True)
    assert asked.call.messages == (Message("system", "be brief"), Message("user", "hello"))
    assert (asked.call.raw_messages, asked.call.max_tokens, asked.call.temperature) == (None, 7, 0.5)
    assert (asked.model, asked.is_streamed, dict(asked.call.extras)) == ("auto", True, {})


def test_a_conversation_of_items_becomes_messages() -> None:
    asked = call(
        input=[
            {"role": "developer", "content": "be brief"},
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "weather?"}]},
            {"type": "reasoning", "id": "rs_1", "summary": []},
            {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": "{}"},
            {"type": "function_call", "call_id": "c2", "name": "wind", "arguments": '{"at":1}'},
            {"role": "assistant", "content": [{"type": "output_text", "text": "let me see", "annotations": []}]},
            {"type": "function_call_output", "call_id": "c1", "output": "sunny"},
            {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "calm"}]},
        ]
    )
    assert asked.raw_messages == (
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "weather?"},
        {
            "role": "assistant",
            "content": "let me see",
            "tool_calls": [
                {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": "{}"}},
                {"id": "c2", "type": "function", "function": {"name": "wind", "arguments": '{"at":1}'}},
            ],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "sunny"},
        {"role": "tool", "tool_call_id": "c2", "content": "calm"},
    )
    assert [message.content for message in asked.messages] == ["be brief", "weather?", "let me see", "sunny", "calm"]


def test_a_call_joins_the_words_it_came_with() -> None:
    asked = call(
        input=[
            {"role": "assistant", "content": "let me see"},
            {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c1", "output": "sunny"},
        ]
    )
    assert asked.raw_messages is not None
    assert [message["role"] for message in asked.raw_messages] == ["assistant", "tool"]
    assert asked.raw_messages[0]["content"] == "let me see"


def test_images_and_files_are_told_as_chat_completions_tell_them() -> None:
    content = [
        {"type": "input_text", "text": "look"},
        {"type": "input_image", "image_url": "data:image/png;base64,AA", "detail": "low"},
        {"type": "input_file", "filename": "a.pdf", "file_data": "data:application/pdf;base64,AA"},
        {"type": "input_file", "file_id": "file-1"},
    ]
    (message,) = call(input=[{"role": "user", "content": content}]).raw_messages or ()
    assert message["content"] == [
        {"type": "text", "text": "look"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA", "detail": "low"}},
        {"type": "file", "file": {"filename": "a.pdf", "file_data": "data:application/pdf;base64,AA"}},
        {"type": "file", "file": {"file_id": "file-1"}},
    ]


def test_tools_and_how_to_choose_them_are_told_as_chat_completions_tell_them() -> None:
    asked = read(tools=[TOOL], tool_choice={"type": "function", "name": "weather"}, parallel_tool_calls=False)
    function = {"name": "weather", "parameters": {"type": "object"}, "strict": True}
    assert dict(asked.call.extras) == {
        "tools": [{"type": "function", "function": function}],
        "parallel_tool_calls": False,
        "tool_choice": {"type": "function", "function": {"name": "weather"}},
    }
    assert asked.echo["tools"] == [TOOL]
    allowed = {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "weather"}]}
    asked = read(tools=[TOOL], tool_choice=allowed)
    assert asked.call.extras["tool_choice"] == {
        "type": "allowed_tools",
        "allowed_tools": {"mode": "auto", "tools": [{"type": "function", "function": {"name": "weather"}}]},
    }
    assert asked.echo["tool_choice"] == allowed
    assert dict(call(tool_choice="auto", parallel_tool_calls=True, tools=[]).extras) == {}


def test_forms_of_the_answer_are_told_as_chat_completions_tell_them() -> None:
    shape = {"type": "json_schema", "name": "r", "schema": {"type": "object"}, "strict": True}
    schema = call(text={"format": shape, "verbosity": "low"}).schema
    assert schema is not None
    assert (schema.name, schema.schema, schema.is_strict) == ("r", {"type": "object"}, True)
    assert dict(call(text={"format": {"type": "json_object"}}).extras) == {"response_format": {"type": "json_object"}}
    assert dict(call(text={"format": {"type": "text"}, "verbosity": "low"}).extras) == {"verbosity": "low"}
    assert dict(call(reasoning={"effort": "low", "summary": "auto"}).extras) == {"reasoning_effort": "low"}
    assert dict(call(include=["message.output_text.logprobs"], top_logprobs=2).extras) == {
        "logprobs": True,
        "top_logprobs": 2,
    }


def test_what_is_not_known_here_passes_through() -> None:
    assert dict(call(seed=7, user="u", top_p=0.5, metadata={"a": "b"}, truncation="auto", store=True).extras) == {
        "seed": 7,
        "user": "u",
        "top_p": 0.5,
    }


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("previous_response_id", "resp_1"),
        ("conversation", "conv_1"),
        ("background", True),
        ("prompt", {"id": "p"}),
        ("context_management", [{"type": "compaction"}]),
        ("messages", [{"role": "user", "content": "x"}]),
        ("max_tokens", 5),
        ("n", 2),
        ("base_url", "http://elsewhere"),
        ("stream", "yes"),
        ("store", 1),
        ("model", ""),
        ("input", None),
        ("input", []),
        ("input", 5),
        ("instructions", ["a"]),
        ("max_output_tokens", 0),
        ("max_output_tokens", True),
        ("max_output_tokens", 1.5),
        ("temperature", 3),
        ("temperature", "hot"),
        ("top_p", -1),
        ("top_logprobs", -1),
        ("include", "x"),
        ("metadata", {"a": 1}),
        ("tools", {}),
        ("tool_choice", "some"),
        ("tool_choice", {"type": "web_search"}),
        ("tool_choice", {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "mcp"}]}),
        ("parallel_tool_calls", "no"),
        ("text", "json"),
        ("reasoning", "high"),
        ("truncation", "some"),
        ("user", 7),
        ("stream_options", []),
    ],
)
def test_a_field_that_cannot_be_served_is_refused_by_name(field: str, value: object) -> None:
    error = refused(**{field: value})
    assert error.param == field
    assert f"'{field}'" in str(error)
    assert error.status == 400


@pytest.mark.parametrize(
    ("fields", "where"),
    [
        ({"input": ["x"]}, "input[0]"),
        ({"input": [{"role": "king", "content": "x"}]}, "input[0].role"),
        ({"input": [{"role": "user", "content": []}]}, "input[0].content"),
        ({"input": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "input[0].content[0].type"),
        ({"input": [{"role": "user", "content": [{"type": "input_text"}]}]}, "input[0].content[0].text"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "file_id": "f"}]}]},
            "input[0].content[0].file_id",
        ),
        (
            {"input": [{"role": "user", "content": [{"type": "input_file", "file_url": "http://x"}]}]},
            "input[0].content[0].file_url",
        ),
        ({"input": [{"type": "function_call", "call_id": "c", "name": "f"}]}, "input[0].arguments"),
        ({"input": [{"type": "function_call_output", "output": "x"}]}, "input[0].call_id"),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input[0]"),
        ({"input": [{"type": "web_search_call", "id": "w"}]}, "input[0].type"),
        ({"input": [{"type": "reasoning", "summary": []}]}, "input"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools[0].name"),
        ({"tools": [{**TOOL, "parameters": []}]}, "tools[0].parameters"),
        ({"text": {"format": {"type": "grammar"}}}, "text.format.type"),
        ({"text": {"format": {"type": "json_schema", "name": "r"}}}, "text.format.schema"),
        ({"reasoning": {"effort": 3}}, "reasoning.effort"),
    ],
)
def test_what_is_wrong_inside_a_field_is_named_to_its_place(fields: dict[str, Any], where: str) -> None:
    assert refused(**fields).param == where


json = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats(-2, 2) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
NAMES = sorted(
    "input instructions tools tool_choice parallel_tool_calls text reasoning max_output_tokens temperature top_p "
    "stream store metadata user include truncation top_logprobs background prompt conversation stream_options".split()
)
parts = st.fixed_dictionaries(
    {"type": st.sampled_from(["input_text", "output_text", "input_image", "input_file", "refusal", "odd"])},
    optional=dict.fromkeys(("text", "image_url", "file_data", "refusal", "detail", "file_url"), json),
)
items = st.fixed_dictionaries(
    {},
    optional={
        "type": st.sampled_from(["message", "function_call", "function_call_output", "reasoning", "odd"]) | json,
        "role": st.sampled_from(["user", "assistant", "developer"]) | json,
        "content": st.text(max_size=5) | st.lists(parts, max_size=3) | json,
        "call_id": st.just("c") | json,
        "name": st.just("f") | json,
        "arguments": st.just("{}") | json,
        "output": st.text(max_size=5) | st.lists(parts, max_size=3) | json,
    },
)


@given(st.dictionaries(st.sampled_from(NAMES), json, max_size=6))
def test_odd_fields_are_read_or_refused_and_nothing_else(fields: dict[str, Any]) -> None:
    asked = read_or_refused(fields)
    assert isinstance(asked, BadRequest) or asked.call.messages
    assert not isinstance(asked, BadRequest) or asked.param


@given(st.lists(items, min_size=1, max_size=4))
def test_odd_items_are_read_or_refused_and_nothing_else(given_items: list[Any]) -> None:
    asked = read_or_refused({"input": given_items})
    if isinstance(asked, BadRequest):
        assert asked.param
    else:
        assert asked.call.messages
        assert asked.call.raw_messages is None or len(asked.call.raw_messages) == len(asked.call.messages)


# ── answers ──


def events(sent: bytes) -> list[dict[str, Any]]:
    """The events, each with a name that is its type."""
    told = []
    for event in sent.split(b"\n\n")[:-1]:
        name, _, data = event.partition(b"\n")
        told.append(orjson.loads(data.removeprefix(b"data: ")))
        assert name == b"event: " + told[-1]["type"].encode()
    return told


def flow(**fields: object) -> ResponseFlow:
    return read(**fields).flow("s1")


def chunk(delta: object = None, finish_reason: str | None = None, **more: object) -> bytes:
    choice = {"index": 0, "delta": delta or {}, "finish_reason": finish_reason, **more}
    return b"data: " + orjson.dumps({"created": 7, "model": "m", "choices": [choice]}) + b"\n\n"


def tool(index: int, arguments: str, name: str = "", id: str = "") -> dict[str, object]:
    return {"tool_calls": [{"index": index, "id": id, "function": {"name": name, "arguments": arguments}}]}


USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":4,"total_tokens":13}}\n\n'
DONE = b"data: [DONE]\n\n"


def answered(*blocks: bytes, **fields: object) -> list[dict[str, Any]]:
    """The events of a stream, each in the shape that OpenAI describes, numbered without a gap."""
    running = flow(**fields)
    told = events(b"".join([running.take(block) for block in blocks]) + running.end())
    assert [event["sequence_number"] for event in told] == list(range(len(told)))
    for event in told:
        assert problems("response event", event) == []
    return told


def kinds(told: list[dict[str, Any]]) -> list[str]:
    return [event["type"].removeprefix("response.") for event in told]


def test_a_text_is_told_from_its_creation_to_its_completion() -> None:
    told = answered(
        chunk({"role": "assistant", "content": ""}), chunk({"content": "Hel"}), chunk({"content": "lo"}, "stop"),
        USAGE, DONE, instructions="be brief", tools=[TOOL], metadata={"a": "b"}, temperature=0.5,
    )  # fmt: skip
    assert kinds(told) == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ]
    response = told[-1]["response"]
    assert (response["id"], response["model"], response["created_at"]) == ("resp_s1", "m", 7)
    assert (response["status"], response["store"], response["metadata"]) == ("completed", False, {"a": "b"})
    assert (response["instructions"], response["temperature"], response["tools"]) == ("be brief", 0.5, [TOOL])
    assert response["usage"]["total_tokens"] == 13
    (message,) = response["output"]
    assert message["content"] == [{"type": "output_text", "text": "Hello", "annotations": [], "logprobs": []}]
    assert told[0]["response"]["output"] == []
    assert "usage" not in told[0]["response"]


def test_nothing_but_the_last_event_waits_for_the_end() -> None:
    running = flow()
    assert kinds(events(running.take(chunk({"content": "Hello"}, "stop"))))[-1] == "output_text.delta"
    assert kinds(events(running.take(USAGE + DONE)))[-1] == "output_item.done"
    assert running.take(chunk({"content": "late"})) == b""
    assert kinds(events(running.end())) == ["completed"]


def test_reasoning_words_and_calls_are_items_in_this_order() -> None:
    told = answered(
        chunk({"reasoning_content": "I think"}),
        chunk({"reasoning": " so"}),
        chunk({"content": "Let me see."}),
        chunk(tool(0, "", "weather", "c1")),
        chunk(tool(0, '{"at":')),
        chunk(tool(1, "{}", "wind", "c2")),
        chunk(tool(0, '"sea"}'), "tool_calls"),
        DONE,
    )
    output = told[-1]["response"]["output"]
    assert [item["type"] for item in output] == ["reasoning", "message", "function_call", "function_call"]
    assert [item["status"] for item in output] == ["completed"] * 4
    assert output[0]["summary"] == [{"type": "summary_text", "text": "I think so"}]
    assert [(item["call_id"], item["name"], item["arguments"]) for item in output[2:]] == [
        ("c1", "weather", '{"at":"sea"}'),
        ("c2", "wind", "{}"),
    ]
    assert [event["item"] for event in told if event["type"] == "response.output_item.done"] == output
    opened = [event["item"] for event in told if event["type"] == "response.output_item.added"]
    assert [item["id"] for item in opened] == [item["id"] for item in output]
    assert opened[2]["arguments"] == ""
    assert kinds(told).index("reasoning_summary_part.done") < kinds(told).index("content_part.added")


def test_a_call_without_arguments_or_id_is_told_all_the_same() -> None:
    told = answered(chunk(tool(0, "", "now")), chunk({}, "tool_calls"), DONE)
    (item,) = told[-1]["response"]["output"]
    assert (item["name"], item["arguments"]) == ("now", "")
    assert item["call_id"].startswith("call_s1")
    assert kinds(told)[2:5] == ["output_item.added", "function_call_arguments.done", "output_item.done"]


def test_a_refusal_is_a_part_of_its_own() -> None:
    told = answered(chunk({"content": "Well, "}), chunk({"refusal": "I"}), chunk({"refusal": " won't"}, "stop"), DONE)
    (message,) = told[-1]["response"]["output"]
    assert [part["type"] for part in message["content"]] == ["output_text", "refusal"]
    assert message["content"][1]["refusal"] == "I won't"
    assert [event["content_index"] for event in told if event["type"].startswith("response.refusal")] == [1, 1, 1]


@pytest.mark.parametrize(
    ("reason", "told_reason"), [("length", "max_output_tokens"), ("content_filter", "content_filter")]
)
def test_an_answer_that_was_cut_is_incomplete(reason: str, told_reason: str) -> None:
    last = answered(chunk({"content": "Hel"}, reason), USAGE, DONE)[-1]
    assert last["type"] == "response.incomplete"
    assert last["response"]["incomplete_details"] == {"reason": told_reason}
    assert last["response"]["output"][0]["status"] == "incomplete"
    assert last["response"]["usage"]["output_tokens"] == 4
    last = answered(chunk(tool(0, "{}", "a")), chunk(tool(1, '{"x', "b"), reason), DONE)[-1]
    assert [item["status"] for item in last["response"]["output"]] == ["completed", "incomplete"]


def test_log_probabilities_are_told_with_their_text() -> None:
    token = {"token": "Hi", "logprob": -0.5, "bytes": None, "top_logprobs": [{"token": "Ho", "logprob": -1}]}
    told = answered(chunk({"content": "Hi"}, logprobs={"content": [token]}), DONE, top_logprobs=1)
    (delta,) = [event for event in told if event["type"] == "response.output_text.delta"]
    assert delta["logprobs"][0]["top_logprobs"] == [{"token": "Ho", "logprob": -1, "bytes": []}]
    assert told[-1]["response"]["output"][0]["content"][0]["logprobs"] == delta["logprobs"]


def test_a_stream_without_its_last_empty_line_ends_all_the_same() -> None:
    assert kinds(answered(chunk({"content": "Hi"}), b"data: [DONE]"))[-3:] == [
        "content_part.done",
        "output_item.done",
        "completed",
    ]


def test_a_failure_in_mid_stream_is_told_as_a_failed_response_and_an_error() -> None:
    failures: list[tuple[TwolaneError | Killed, str]] = [
        (UpstreamError("up", "its answer broke off", detail="secret place", is_gone=True), "server_error"),
        (BudgetExceeded("all", limit="1", spent="1", held="0", asked="1"), "rate_limit_exceeded"),
        (Killed("all", "test"), "server_error"),
    ]
    for error, code in failures:
        running = flow()
        sent = running.take(chunk({"reasoning": "hm"}) + chunk({"content": "Hel"}))
        told = events(sent + running.error_event(error))
        assert [event["sequence_number"] for event in told] == list(range(len(told)))
        assert all(problems("response event", event) == [] for event in told)
        assert kinds(told)[-2:] == ["failed", "error"]
        assert told[-2]["response"]["status"] == "failed"
        assert told[-2]["response"]["error"]["code"] == code
        assert [item["type"] for item in told[-2]["response"]["output"]] == ["reasoning"]
        assert told[-1]["error"]["message"] == told[-1]["message"] == told[-2]["response"]["error"]["message"]
        assert "secret" not in told[-1]["message"]


def test_what_was_read_before_an_error_event_is_still_told() -> None:
    running = flow()
    with pytest.raises(EventError, match="broken"):
        running.take(chunk({"content": "Hel"}) + b'data: {"error":{"message":"broken"}}\n\n')
    told = events(running.error_event(UpstreamError("up", "broken")))
    assert kinds(told)[:2] == ["created", "in_progress"]
    assert [event["delta"] for event in told if event["type"] == "response.output_text.delta"] == ["Hel"]


def test_a_flow_that_fails_at_once_still_begins() -> None:
    assert kinds(events(flow().error_event(UpstreamError("up", "broken")))) == [
        "created",
        "in_progress",
        "failed",
        "error",
    ]


def whole(*blocks: bytes, usage: Usage | None = None, **fields: object) -> dict[str, Any]:
    completion = Completion()
    for block in blocks:
        completion.feed(block)
    response = read(**fields).whole(completion, "s1", usage)
    assert problems("response", response) == []
    return response


def test_a_whole_answer_is_what_the_stream_ends_with() -> None:
    blocks = (
        chunk({"role": "assistant", "reasoning_content": "I think"}),
        chunk({"content": "Let me"}),
        chunk({"content": " see."}),
        chunk(tool(0, '{"at"', "weather", "c1")),
        chunk(tool(0, ":1}"), "tool_calls"),
        USAGE,
        DONE,
    )
    at_once, streamed = (
        whole(*blocks, user="u", tools=[TOOL]),
        answered(*blocks, user="u", tools=[TOOL])[-1]["response"],
    )
    assert at_once | {"completed_at": 0} == streamed | {
        "completed_at": 0
    }  # made a moment later: the second may be another


def test_a_whole_answer_tells_the_usage_of_its_record() -> None:
    response = whole(chunk({"content": "x"}, "stop"), USAGE, DONE, usage=Usage(100, 50, cache_read_tokens=10))
    assert response["usage"]["input_tokens_details"]["cached_tokens"] == 10
    assert response["usage"]["total_tokens"] == 150


words = st.text(max_size=6)
deltas = st.one_of(
    st.fixed_dictionaries({"content": words | st.none()}),
    st.fixed_dictionaries({"reasoning_content": words}),
    st.fixed_dictionaries({"refusal": words}),
    st.builds(tool, st.integers(0, 3), words, words, words),
    st.dictionaries(st.sampled_from(["content", "reasoning", "refusal", "tool_calls", "role"]), json, max_size=3),
)
chunks = st.lists(
    st.builds(chunk, deltas, st.sampled_from([None, "stop", "length", "odd"]), logprobs=json)
    | st.builds(lambda value: b"data: " + orjson.dumps({"choices": value}) + b"\n\n", json)
    | st.builds(lambda value: b"data: " + orjson.dumps(value) + b"\n\n", json)
    | st.just(USAGE),
    max_size=8,
)


@given(chunks, st.integers(1, 60))
def test_odd_chunks_are_told_or_are_an_event_error(sent: list[bytes], size: int) -> None:
    """Whatever comes and however it is cut: numbered events in OpenAI's shapes, whose pieces add up to the whole."""
    stream = b"".join(sent) + DONE
    running, out = flow(), b""
    try:
        for at in range(0, len(stream), size):
            out += running.take(stream[at : at + size])
        out += running.end()
    except EventError:
        out += running.error_event(UpstreamError("up", "odd"))
    told = events(out)
    assert [event["sequence_number"] for event in told] == list(range(len(told)))
    for event in told:
        assert problems("response event", event) == []
    last = told[-1]
    if last["type"] == "error":
        return
    pieces: dict[str, str] = {}
    for event in told:
        if event["type"].endswith(".delta"):
            pieces[event["item_id"]] = pieces.get(event["item_id"], "") + event["delta"]
    for item in last["response"]["output"]:
        held = item.get("content", item.get("summary"))
        said = (
            "".join(part.get("text", part.get("refusal")) for part in held) if held is not None else item["arguments"]
        )
        assert said == pieces.get(item["id"], "")
    completion = Completion()
    completion.feed(stream)
    texts = [part["text"] for item in last["response"]["output"] if item["type"] == "message"
             for part in item["content"] if part["type"] == "output_text"]  # fmt: skip
    if not completion.choices or set(completion.choices) == {0}:
        assert "".join(texts) == completion.text


def test_an_empty_stream_is_an_empty_response() -> None:
    frame = Frame("s", "auto", read().echo)
    assert kinds(events(ResponseFlow(frame).end())) == ["created", "in_progress", "completed"]
