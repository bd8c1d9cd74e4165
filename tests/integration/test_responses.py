"""/v1/responses over real HTTP: a rehearsal upstream behind it, or a server that speaks chat completions."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import pytest
from pydantic import BaseModel
from tests.adapters.test_openai import Answer, serving, streamed
from tests.conformance.descriptions import problems
from tests.integration.test_online import REPLY, Gateway, config_in, error_of, gateway, until

from twolane.domain.money import PICO
from twolane.domain.records import Lane
from twolane.kernel import Kernel
from twolane.models.openai import OpenAI
from twolane.models.rehearsal import Rehearsal
from twolane.online.app import Server, _listen, create_app
from twolane.online.auth import create_key

pytestmark = pytest.mark.timeout(30)

ASK = {"model": "auto", "input": "count"}
STREAM = {**ASK, "stream": True}
USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":2}}\n\n'
DONE = b"data: [DONE]\n\n"
TOOL = {
    "type": "function",
    "name": "weather",
    "description": "The weather at a place",
    "parameters": {
        "type": "object",
        "properties": {"at": {"type": "string"}},
        "required": ["at"],
        "additionalProperties": False,
    },
    "strict": True,
}


def post(gate: Gateway, body: object, headers: dict[str, str] | None = None) -> Any:  # Any: aiohttp's request context
    data = body if isinstance(body, bytes) else orjson.dumps(body)
    return gate.http.post(f"{gate.url}/responses", data=data, headers=headers)


def events(body: bytes) -> list[dict[str, Any]]:  # Any: JSON
    """The events of a stream, each in OpenAI's shape and in its place."""
    told = [
        orjson.loads(event.partition(b"\ndata: ")[2]) for event in body.split(b"\n\n") if event.startswith(b"event")
    ]
    assert [event["sequence_number"] for event in told] == list(range(len(told)))
    for event in told:
        assert problems("response event", event) == []
    return told


def delta(fields: dict[str, object], finish_reason: str | None = None) -> bytes:
    choice = {"index": 0, "delta": fields, "finish_reason": finish_reason}
    return b"data: " + orjson.dumps({"model": "m-1", "choices": [choice]}) + b"\n\n"


def tool_call(arguments: str, name: str = "", call_id: str = "") -> bytes:
    call = {"index": 0, "id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}
    return delta({"tool_calls": [call]})


TOOL_CALL = (
    tool_call("", "weather", "call_1"),
    tool_call('{"at":'),
    tool_call('"sea"}'),
    delta({}, "tool_calls"),
    USAGE,
    DONE,
)


@asynccontextmanager
async def over_server(folder: Path, answer: Answer) -> AsyncIterator[Any]:  # Any: a gateway's URL and its server
    """A gateway whose upstream is a server that answers as it is told."""
    ready = asyncio.Event()
    async with serving(answer) as upstream:
        model = OpenAI("main", url=upstream.url, key=None)
        kernel = await Kernel.open(config_in(folder), models={"main": model})
        await kernel.lanes.hold(Lane.ONLINE)  # as `serve` does
        server = Server(create_app(kernel), on_ready=ready.set)
        with _listen("127.0.0.1", 0) as listener:
            url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
            running = asyncio.create_task(server.serve(sockets=[listener]))
            try:
                async with aiohttp.ClientSession() as http:
                    await ready.wait()
                    yield Gateway(kernel, upstream, http, url)  # type: ignore[arg-type]  # a server instead of a rehearsal
            finally:
                server.should_exit = True
                await running
                await kernel.aclose()


# ── answers ──


async def test_a_whole_response_has_openais_shape_and_the_records_usage(tmp_path: Path) -> None:
    asked = {**ASK, "instructions": "be brief", "metadata": {"a": "b"}, "max_output_tokens": 100, "store": True}
    async with gateway(tmp_path, input_tokens=1000) as gate, post(gate, asked) as response:
        answer = await response.json()
        assert response.status == 200
        assert problems("response", answer) == []
        assert answer["output"][0]["content"][0]["text"] == REPLY
        assert (answer["status"], answer["store"], answer["metadata"]) == ("completed", False, {"a": "b"})
        assert answer["usage"]["input_tokens"] == 1000
        assert answer["usage"]["output_tokens"] == 5
        assert answer["id"] == f"resp_{response.headers['x-twolane-step']}"
        assert response.headers["x-twolane-cost"] == "0.00101"
        (step,) = gate.steps()
        assert (step["status"], step["cost_pico"]) == ("ok", 1_010_000_000)
        (call,) = gate.upstream.calls
        assert [message.content for message in call.messages] == ["be brief", "count"]
        assert call.max_tokens == 100


async def test_a_streamed_response_ends_with_completed_once_it_is_recorded(tmp_path: Path) -> None:
    async with gateway(tmp_path) as gate:
        may_write = threading.Event()
        gate.kernel.store.submit(lambda tx: may_write.wait(10))
        async with post(gate, STREAM) as response:
            assert response.content_type == "text/event-stream"
            received = b""
            while b"response.output_item.done" not in received:
                received += await response.content.readany()
            assert b"response.completed" not in received
            assert gate.steps() == []
            may_write.set()
            received += await response.read()
        told = events(received)
        assert "".join(event["delta"] for event in told if event["type"].endswith("text.delta")) == REPLY
        assert told[-1]["type"] == "response.completed"
        assert told[-1]["response"]["usage"]["output_tokens"] == 5
        assert len(gate.steps()) == 1


async def test_an_answer_at_its_limit_is_incomplete(tmp_path: Path) -> None:
    async with gateway(tmp_path) as gate:
        async with post(gate, {**ASK, "max_output_tokens": 2}) as response:
            answer = await response.json()
        async with post(gate, {**STREAM, "max_output_tokens": 2}) as response:
            last = events(await response.read())[-1]
    assert (answer["status"], answer["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert last["type"] == "response.incomplete"
    assert problems("response", answer) == []


async def test_a_call_of_a_function_goes_out_and_its_result_comes_back(tmp_path: Path) -> None:
    async with over_server(tmp_path, streamed(*TOOL_CALL)) as gate:
        async with post(gate, {**ASK, "tools": [TOOL]}) as response:
            answer = await response.json()
        assert problems("response", answer) == []
        (call,) = answer["output"]
        assert (call["name"], call["arguments"], call["call_id"]) == ("weather", '{"at":"sea"}', "call_1")
        result = {"type": "function_call_output", "call_id": call["call_id"], "output": "sunny"}
        question = {"role": "user", "content": "weather?"}
        async with post(gate, {**STREAM, "tools": [TOOL], "input": [question, *answer["output"], result]}) as response:
            assert events(await response.read())[-1]["type"] == "response.completed"
        sent = gate.upstream.bodies
    assert sent[0]["tools"][0]["function"]["name"] == "weather"
    assert [message["role"] for message in sent[1]["messages"]] == ["user", "assistant", "tool"]
    assert sent[1]["messages"][1]["tool_calls"][0]["function"] == {"name": "weather", "arguments": '{"at":"sea"}'}


# ── the official client ──


class Reply(BaseModel):
    """What a structured answer holds."""

    name: str
    age: int


async def test_the_openai_client_reads_responses_whole_and_streamed(tmp_path: Path) -> None:
    openai = pytest.importorskip("openai")
    async with (
        gateway(tmp_path) as gate,
        openai.AsyncOpenAI(base_url=gate.url, api_key="none", max_retries=0) as client,
    ):
        whole = await client.responses.create(**ASK)
        assert whole.output_text == REPLY
        assert whole.usage.output_tokens == 5
        assert whole.id.startswith("resp_")
        raw = await client.responses.create(**STREAM)
        kinds = [event.type async for event in raw]
        assert (kinds[0], kinds[-1]) == ("response.created", "response.completed")
        async with client.responses.stream(**ASK) as stream:
            pieces = [event.delta async for event in stream if event.type == "response.output_text.delta"]
            final = await stream.get_final_response()
        assert "".join(pieces) == final.output_text == REPLY
        with pytest.raises(openai.BadRequestError) as refused:
            await client.responses.create(**ASK, previous_response_id="resp_1")
        assert refused.value.param == "previous_response_id"
        with pytest.raises(openai.NotFoundError, match="not kept"):
            await client.responses.retrieve("resp_1")
        with pytest.raises(openai.NotFoundError, match="not kept"):
            await client.responses.delete("resp_1")
        gate.upstream.script = Rehearsal("main", faults="always: error 2").script
        with pytest.raises(openai.APIError, match="the upstream failed"):
            async for _ in await client.responses.create(**STREAM):
                pass


async def test_the_openai_client_parses_structured_responses(tmp_path: Path) -> None:
    openai = pytest.importorskip("openai")
    async with (
        gateway(tmp_path, reply='{"name": "Ann", "age": 7}') as gate,
        openai.AsyncOpenAI(base_url=gate.url, api_key="none", max_retries=0) as client,
    ):
        parsed = await client.responses.parse(**ASK, text_format=Reply)
        assert parsed.output_parsed == Reply(name="Ann", age=7)
        async with client.responses.stream(**ASK, text_format=Reply) as stream:
            assert (await stream.get_final_response()).output_parsed == Reply(name="Ann", age=7)
        assert [call.schema.name for call in gate.upstream.calls if call.schema] == ["Reply", "Reply"]


async def test_the_openai_client_calls_functions(tmp_path: Path) -> None:
    openai = pytest.importorskip("openai")
    async with (
        over_server(tmp_path, streamed(delta({"reasoning_content": "Hm."}), *TOOL_CALL)) as gate,
        openai.AsyncOpenAI(base_url=gate.url, api_key="none", max_retries=0) as client,
    ):
        async with client.responses.stream(**ASK, tools=[TOOL]) as stream:
            deltas = [event async for event in stream if event.type == "response.function_call_arguments.delta"]
            final = await stream.get_final_response()
        assert deltas[-1].snapshot == '{"at":"sea"}'
        assert final.output[0].summary[0].text == "Hm."
        assert final.output[1].parsed_arguments == {"at": "sea"}


# ── refusals and failures ──


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b"{", None),
        (b"[]", None),
        ({"input": "x"}, "model"),
        ({"model": "auto"}, "input"),
        ({**ASK, "input": [{"role": "user", "content": 5}]}, "input[0].content"),
        ({**ASK, "previous_response_id": "resp_1"}, "previous_response_id"),
        ({**ASK, "background": True}, "background"),
        ({**ASK, "tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({**ASK, "stream": "yes"}, "stream"),
        ({**ASK, "base_url": "http://elsewhere"}, "base_url"),
        (b'{"model":"auto","input":"x","metadata":' + b'{"a":' * 500 + b"1" + b"}" * 500 + b"}", "metadata"),
        (b'{"model":"auto","input":"x","deep":' + b"[" * 500 + b"]" * 500 + b"}", None),
    ],
)
async def test_a_wrong_request_is_told_what_is_wrong(tmp_path: Path, body: object, param: str | None) -> None:
    async with gateway(tmp_path) as gate, post(gate, body) as response:
        assert response.status == 400
        assert problems("error", await response.json()) == []
        error = await error_of(response)
        assert (error["type"], error["param"]) == ("invalid_request_error", param)
        assert gate.upstream.requests == 0


async def test_what_was_answered_before_cannot_be_had_again(tmp_path: Path) -> None:
    async with gateway(tmp_path) as gate:
        for method, path in (
            ("GET", "resp_1"),
            ("DELETE", "resp_1"),
            ("GET", "resp_1/input_items"),
            ("POST", "r/cancel"),
        ):
            async with gate.http.request(method, f"{gate.url}/responses/{path}") as response:
                assert response.status == 404
                assert "not kept" in (await error_of(response))["message"]
        async with gate.http.get(f"{gate.url}/responses") as response:
            assert response.status == 405


async def test_only_models_that_there_are_and_that_the_key_may_use_are_served(tmp_path: Path) -> None:
    async with gateway(tmp_path) as gate:
        async with post(gate, {**ASK, "model": "autoo"}) as response:
            assert response.status == 404
            assert (await error_of(response))["code"] == "model_not_found"
        secret = await create_key(gate.kernel, "acme", "one", ["other"])
        async with post(gate, ASK, {"authorization": f"Bearer {secret}"}) as response:
            assert response.status == 403
        async with post(gate, ASK) as response:
            assert response.status == 401
        assert gate.upstream.requests == 0


@pytest.mark.parametrize("body", [ASK, STREAM])
async def test_a_spent_budget_is_a_429_that_no_client_repeats(tmp_path: Path, body: object) -> None:
    async with gateway(tmp_path) as gate:
        await gate.kernel.treasury.set_budget("tenant:default", period="total", pico=1000, tokens=None, actor="t")
        async with post(gate, body) as response:
            assert response.status == 429
            assert response.headers["x-should-retry"] == "false"
            assert (await error_of(response))["code"] == "insufficient_quota"
        assert gate.upstream.requests == 0
        await gate.at_rest()


@pytest.mark.parametrize("fault", ["cut 2", "error 2", "no-done", "garbled"])
async def test_an_upstream_that_breaks_off_is_a_failed_response(tmp_path: Path, fault: str) -> None:
    async with gateway(tmp_path, faults=f"always: {fault}") as gate:
        async with post(gate, STREAM) as response:
            assert response.status == 200
            told = events(await response.read())
        assert [event["type"] for event in told[-2:]] == ["response.failed", "error"]
        assert told[-2]["response"]["status"] == "failed"
        await until(gate.steps)
        assert gate.steps()[0]["status"] == "failed"
        async with post(gate, ASK) as response:
            assert response.status == 502
            assert problems("error", await response.json()) == []
        await gate.at_rest()


async def test_a_refusal_of_the_upstream_keeps_its_status(tmp_path: Path) -> None:
    async with gateway(tmp_path, faults="always: 429 retry-after 2") as gate, post(gate, STREAM) as response:
        assert response.status == 429
        assert response.headers["retry-after-ms"] == "2000"


async def test_a_switch_ends_a_response_in_mid_stream(tmp_path: Path) -> None:
    async with gateway(tmp_path, reply="word " * 1000, token_ms=10) as gate:
        async with post(gate, STREAM) as response:
            received = await response.content.readany()
            await gate.kernel.switches.trip("tenant:default", cause="too much", actor="test")
            received += await response.read()
        told = events(received)
        assert told[-2]["type"] == "response.failed"
        assert told[-1]["code"] == "switch_tripped"
        await gate.at_rest()
        await until(gate.steps)
        assert gate.steps()[0]["status"] == "killed"


@pytest.mark.parametrize("is_streamed", [True, False])
@pytest.mark.parametrize("script", [{"first_token_ms": 60_000}, {"reply": "word " * 1000, "token_ms": 20}])
async def test_a_client_that_leaves_ends_its_upstream(
    tmp_path: Path, is_streamed: bool, script: dict[str, Any]
) -> None:
    async with gateway(tmp_path, **script) as gate:
        await gate.kernel.treasury.set_budget("tenant:default", period="total", pico=PICO, tokens=None, actor="t")
        asking = asyncio.create_task(_read_all(gate, {**ASK, "stream": is_streamed}))
        await until(lambda: gate.upstream.active and (gate.upstream.tokens >= 3 or "token_ms" not in script))
        asking.cancel()
        await gate.at_rest()
        assert gate.upstream.aborted == 1
        await until(gate.steps)
        assert gate.steps()[0]["status"] == "cancelled"
        assert gate.upstream.tokens_after_close == 0


async def _read_all(gate: Gateway, body: object) -> bytes:
    # A connection of its own: cancelling closes it.
    async with (
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True)) as http,
        http.post(f"{gate.url}/responses", data=orjson.dumps(body)) as response,
    ):
        return await response.read()


# ── models ──


async def test_models_have_openais_shape(tmp_path: Path) -> None:
    async with gateway(tmp_path) as gate:
        async with gate.http.get(f"{gate.url}/models") as response:
            listed = await response.json()
        async with gate.http.get(f"{gate.url}/models/auto") as response:
            shown = await response.json()
        async with gate.http.get(f"{gate.url}/models/nothing") as response:
            assert response.status == 404
            assert problems("error", await response.json()) == []
    assert problems("models", listed) == []
    assert problems("model", shown) == []
    assert shown in listed["data"]


def test_shapes_that_are_wrong_are_seen() -> None:
    assert problems("model", {"id": "a"})
    assert problems("response", {"id": "a", "object": "response"})
    assert problems("response event", {"type": "response.odd", "sequence_number": 0})
