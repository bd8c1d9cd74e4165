"""Anthropic's messages at the gateway, over real HTTP, before upstreams of both dialects."""

from __future__ import annotations

import asyncio
import io
import logging
import sqlite3
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import pytest
from aiohttp import web

from twolane.config import Config
from twolane.domain.anthropic.whole import read_events, whole_message
from twolane.domain.money import PICO
from twolane.domain.records import Lane
from twolane.kernel import Kernel
from twolane.models.rehearsal import Rehearsal
from twolane.online.app import Server, _listen, create_app
from twolane.online.auth import create_key

pytestmark = pytest.mark.timeout(30)

REPLY = "one two three four five"
ANY = {"model": "auto", "max_tokens": 100, "messages": [{"role": "user", "content": "count"}]}
STREAM = {**ANY, "stream": True}
WEATHER = {"name": "weather", "description": "d", "input_schema": {"type": "object", "properties": {}}}
Json = dict[str, Any]  # Any: JSON
Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass
class Scripted:
    """A server that answers what a test says, and keeps what it was asked."""

    answer: Answer
    url: str = ""
    bodies: list[Json] = field(default_factory=list)
    headers: list[Mapping[str, str]] = field(default_factory=list)
    gone: asyncio.Event = field(default_factory=asyncio.Event)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.bodies.append(orjson.loads(await request.read()))
        self.headers.append({name.lower(): value for name, value in request.headers.items()})
        try:
            return await self.answer(request)
        except (asyncio.CancelledError, ConnectionError):
            self.gone.set()
            raise


@asynccontextmanager
async def scripted(answer: Answer) -> AsyncIterator[Scripted]:
    server = Scripted(answer)
    app = web.Application(logger=logging.getLogger("test"))
    app.router.add_post("/v1/{path:.*}", server.handle)
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    server.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    try:
        yield server
    finally:
        await runner.cleanup()


def streamed(*blocks: bytes, hangs: bool = False) -> Answer:
    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        for block in blocks:
            await response.write(block)
        if hangs:
            await asyncio.Event().wait()
        return response

    return answer


def refused(status: int, kind: str) -> Answer:
    async def answer(_: web.Request) -> web.StreamResponse:
        error = {"type": "error", "error": {"type": kind, "message": "the reason"}}
        return web.json_response(error, status=status, headers={"retry-after": "3"})

    return answer


def event(kind: str, **fields: object) -> bytes:
    return f"event: {kind}\n".encode() + b"data: " + orjson.dumps({"type": kind, **fields}) + b"\n\n"


def chunk(finish: str | None = None, **delta: object) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return b"data: " + orjson.dumps({"id": "c", "model": "gpt", "choices": [choice]}) + b"\n\n"


THOUGHT = {"type": "thinking", "thinking": "hm", "signature": "sig"}
USED = {"type": "tool_use", "id": "t1", "name": "weather", "input": {"city": "Köln"}}
BEGUN = {"input_tokens": 5, "cache_read_input_tokens": 4, "cache_creation_input_tokens": 1, "output_tokens": 1}
CLAUDE = (
    event("message_start", message={"id": "msg_up", "type": "message", "role": "assistant", "model": "claude-1",
                                    "content": [], "stop_reason": None, "stop_sequence": None, "usage": BEGUN}),
    event("ping"),
    event("content_block_start", index=0, content_block={"type": "thinking", "thinking": "", "signature": ""}),
    event("content_block_delta", index=0, delta={"type": "thinking_delta", "thinking": "hm"}),
    event("content_block_delta", index=0, delta={"type": "signature_delta", "signature": "sig"}),
    event("content_block_stop", index=0),
    event("content_block_start", index=1, content_block={"type": "text", "text": ""}),
    event("content_block_delta", index=1, delta={"type": "text_delta", "text": "one moment"}),
    event("content_block_delta", index=1, delta={"type": "citations_delta", "citation": {"type": "x", "title": "T"}}),
    event("content_block_stop", index=1),
    event("content_block_start", index=2, content_block={**USED, "input": {}}),
    event("content_block_delta", index=2, delta={"type": "input_json_delta", "partial_json": ""}),
    event("content_block_delta", index=2, delta={"type": "input_json_delta", "partial_json": '{"city":'}),
    event("content_block_delta", index=2, delta={"type": "input_json_delta", "partial_json": '"Köln"}'}),
    event("content_block_stop", index=2),
    event("message_delta", delta={"stop_reason": "tool_use", "stop_sequence": None}, usage={"output_tokens": 30}),
    event("message_stop"),
)  # fmt: skip
GPT = (
    chunk(role="assistant", content=""),
    chunk(reasoning_content="hm"),
    chunk(content="one "),
    chunk(content="moment"),
    chunk(tool_calls=[{"index": 0, "id": "t1", "type": "function", "function": {"name": "weather", "arguments": ""}}]),
    chunk(tool_calls=[{"index": 0, "function": {"arguments": '{"city":'}}]),
    chunk(tool_calls=[{"index": 0, "function": {"arguments": '"Köln"}'}}]),
    chunk("tool_calls"),
    b'data: {"choices":[],"usage":{"prompt_tokens":10,"completion_tokens":30,'
    b'"prompt_tokens_details":{"cached_tokens":4}}}\n\n',
    b"data: [DONE]\n\n",
)


@dataclass
class Gateway:
    """A running gateway and what stands behind it."""

    kernel: Kernel
    upstream: Rehearsal
    http: aiohttp.ClientSession
    url: str

    def post(self, body: object, headers: Mapping[str, str] | None = None) -> Any:  # Any: aiohttp's request context
        data = body if isinstance(body, bytes) else orjson.dumps(body)
        return self.http.post(f"{self.url}/v1/messages", data=data, headers=headers)

    def steps(self) -> list[Mapping[str, Any]]:  # Any: SQL columns
        return self.rows("SELECT * FROM trace_steps ORDER BY leaf")

    def rows(self, query: str) -> list[Mapping[str, Any]]:  # Any: SQL columns
        with closing(sqlite3.connect(self.kernel.store_path)) as connection:
            connection.row_factory = sqlite3.Row
            return [dict(row) for row in connection.execute(query)]

    async def at_rest(self, upstream: str = "main") -> None:
        """Wait until nothing is in flight and nothing is held."""
        slots = self.kernel.lanes.slots(upstream, Lane.ONLINE)
        await until(lambda: not self.upstream.active and not slots.busy and not self.kernel.store.all("reservations"))
        assert not self.kernel.switches._running


async def until(holds: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not holds():
            await asyncio.sleep(0.005)


@asynccontextmanager
async def gateway(folder: Path, *, gpt: str = "", claude: str = "", **script: Any) -> AsyncIterator[Gateway]:
    """A gateway before a rehearsal (`main`), a scripted OpenAI server (`gpt`) and a scripted Anthropic one (`claude`).

    Any: the options of a rehearsal.
    """
    key = folder / "key"
    key.write_text("sk-upstream")
    price = {"price": {"input": "1", "output": "2"}, "retries": 0}
    upstreams: Json = {"main": {"kind": "rehearsal", "slots": {"online": 2}, **price}}
    if gpt:
        upstreams["gpt"] = {"kind": "openai", "url": gpt, "model": "gpt-1", **price}
    if claude:
        upstreams["claude"] = {"kind": "anthropic", "url": claude, "model": "claude-1", "key": f"file:{key}", **price}
    config = Config.model_validate(
        {"store": f"sqlite:{folder / 'store.db'}", "upstream": upstreams, "route": {"auto": {"light": "main"}}}
    )
    upstream = Rehearsal("main", **{"reply": REPLY, **script})
    kernel = await Kernel.open(config, models={"main": upstream})
    await kernel.lanes.hold(Lane.ONLINE)  # as `serve` does
    ready = asyncio.Event()
    server = Server(create_app(kernel), on_ready=ready.set)
    with _listen("127.0.0.1", 0) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        running = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            async with aiohttp.ClientSession() as http:
                await ready.wait()
                yield Gateway(kernel, upstream, http, url)
        finally:
            server.should_exit = True
            await running
            await kernel.aclose()


async def limit(gate: Gateway, pico: int = PICO) -> None:
    await gate.kernel.treasury.set_budget("tenant:default", period="total", pico=pico, tokens=None, actor="t")


async def error_of(response: aiohttp.ClientResponse) -> Json:
    body = await response.json()
    assert body["type"] == "error"
    assert set(body["error"]) == {"type", "message"}
    return dict(body["error"])


# ── answers ──


async def test_a_streamed_answer_is_told_in_typed_events(tmp_path: Path) -> None:
    async with gateway(tmp_path, input_tokens=1000) as gate, gate.post(STREAM) as response:
        assert (response.status, response.content_type) == (200, "text/event-stream")
        body = await response.read()
        (step,) = gate.steps()
    names = [line[7:].decode() for line in body.split(b"\n") if line.startswith(b"event: ")]
    assert names[0] == "message_start"
    assert names[-2:] == ["message_delta", "message_stop"]
    assert names == [found["type"] for found in read_events(body)]
    message = whole_message(read_events(body))
    assert message["content"] == [{"type": "text", "text": REPLY}]
    assert (message["stop_reason"], message["id"]) == ("end_turn", f"msg_{step['step']}")
    assert message["usage"] == {"input_tokens": 1000, "output_tokens": 5}
    assert (step["status"], step["input_tokens"], step["output_tokens"]) == ("ok", 1000, 5)
    assert response.headers["x-twolane-step"] == step["step"]
    assert response.headers["request-id"] == response.headers["x-request-id"]


async def test_a_whole_answer_is_a_message_with_usage_and_cost(tmp_path: Path) -> None:
    async with gateway(tmp_path, input_tokens=1000) as gate, gate.post(ANY) as response:
        answer = await response.json()
        assert response.status == 200
        assert response.headers["x-twolane-cost"] == "0.00101"
        assert answer == {
            "id": f"msg_{gate.steps()[0]['step']}",
            "type": "message",
            "role": "assistant",
            "model": "main",
            "content": [{"type": "text", "text": REPLY}],
            "stop_reason": "end_turn",
            "stop_sequence": None,
            "usage": {"input_tokens": 1000, "output_tokens": 5},
        }


async def test_the_end_waits_for_the_disk(tmp_path: Path) -> None:
    async with gateway(tmp_path) as gate:
        may_write = threading.Event()
        gate.kernel.store.submit(lambda tx: may_write.wait(10))
        async with gate.post(STREAM) as response:
            rest = b""
            while b"message_delta" not in rest:
                rest += await response.content.readany()
            assert b"message_stop" not in rest
            assert gate.steps() == []
            may_write.set()
            assert b"message_stop" in rest + await response.read()
            assert len(gate.steps()) == 1


async def test_a_limit_that_was_met_is_told(tmp_path: Path) -> None:
    async with gateway(tmp_path) as gate, gate.post({**ANY, "max_tokens": 3}) as response:
        answer = await response.json()
        assert (answer["stop_reason"], answer["content"][0]["text"]) == ("max_tokens", "one two three ")


@pytest.mark.parametrize("is_streamed", [True, False])
async def test_an_openai_upstream_is_asked_and_answers_with_tools(tmp_path: Path, is_streamed: bool) -> None:
    result = {"type": "tool_result", "tool_use_id": "t0", "content": "rain"}
    body = {
        **ANY,
        "model": "gpt",
        "stream": is_streamed,
        "system": "be brief",
        "tools": [WEATHER],
        "tool_choice": {"type": "any"},
        "messages": [{"role": "assistant", "content": [{**USED, "id": "t0"}]}, {"role": "user", "content": [result]}],
    }
    async with scripted(streamed(*GPT)) as server, gateway(tmp_path, gpt=server.url) as gate:
        async with gate.post(body) as response:
            data = await response.read()
        (step,) = gate.steps()
    message = whole_message(read_events(data)) if is_streamed else orjson.loads(data)
    said = [{**THOUGHT, "signature": ""}, {"type": "text", "text": "one moment"}, USED]
    assert (message["content"], message["stop_reason"]) == (said, "tool_use")
    assert message["usage"] == {"input_tokens": 6, "cache_read_input_tokens": 4, "output_tokens": 30}
    assert (step["input_tokens"], step["output_tokens"]) == (10, 30)
    asked = server.bodies[0]
    assert [turn["role"] for turn in asked["messages"]] == ["system", "assistant", "tool"]
    assert asked["tools"][0]["function"]["parameters"] == WEATHER["input_schema"]
    assert (asked["model"], asked["max_tokens"], asked["tool_choice"]) == ("gpt-1", 100, "required")
    assert "system" not in asked


NATIVE = {
    **ANY,
    "model": "claude",
    "system": [{"type": "text", "text": "be brief", "cache_control": {"type": "ephemeral"}}],
    "messages": [{"role": "user", "content": "weather?"}, {"role": "assistant", "content": [THOUGHT, USED]}],
    "tools": [WEATHER, {"type": "web_search_20250305", "name": "web_search"}],
    "thinking": {"type": "adaptive"},
    "top_k": 3,
}


async def test_between_the_same_dialect_nothing_is_lost_in_a_stream(tmp_path: Path) -> None:
    async with scripted(streamed(*CLAUDE)) as server, gateway(tmp_path, claude=server.url) as gate:
        asked = {**NATIVE, "stream": True}
        async with gate.post(asked, {"anthropic-beta": "one-2026,two", "x-api-key": "tl-mine"}) as response:
            body = await response.read()
        (step,) = gate.steps()
    assert read_events(body) == read_events(b"".join(CLAUDE))
    assert server.bodies == [{**asked, "model": "claude-1"}]
    assert server.headers[0]["anthropic-beta"] == "one-2026,two"
    assert server.headers[0]["x-api-key"] == "sk-upstream"
    assert (step["input_tokens"], step["output_tokens"], step["status"]) == (10, 30, "ok")
    assert (step["cache_read_tokens"], step["cache_write_tokens"]) == (4, 1)


async def test_between_the_same_dialect_nothing_is_lost_in_a_whole_answer(tmp_path: Path) -> None:
    async with scripted(streamed(*CLAUDE)) as server, gateway(tmp_path, claude=server.url) as gate:
        async with gate.post(NATIVE) as response:
            message = await response.json()
        assert server.bodies == [{**NATIVE, "model": "claude-1", "stream": True}]
    assert message["id"] == "msg_up"
    cited = {"type": "text", "text": "one moment", "citations": [{"type": "x", "title": "T"}]}
    assert message["content"] == [THOUGHT, cited, USED]
    assert message["usage"] == {**BEGUN, "output_tokens": 30}


async def test_an_openai_client_is_served_by_an_anthropic_upstream(tmp_path: Path) -> None:
    body = {"model": "claude", "messages": [{"role": "user", "content": "hi"}], "tools": [], "max_tokens": 9}
    async with scripted(streamed(*CLAUDE)) as server, gateway(tmp_path, claude=server.url) as gate:
        async with gate.http.post(f"{gate.url}/v1/chat/completions", json=body) as response:
            answer = await response.json()
        async with gate.http.post(f"{gate.url}/v1/chat/completions", json={**body, "stream": True}) as response:
            stream = await response.read()
        async with gate.http.post(f"{gate.url}/v1/chat/completions", json={**body, "n": 2}) as response:
            assert (response.status, len(server.bodies)) == (400, 2)
            assert "'n' must be 1" in (await response.json())["error"]["message"]
    (choice,) = answer["choices"]
    assert (choice["finish_reason"], choice["message"]["content"]) == ("tool_calls", "one moment")
    assert choice["message"]["tool_calls"][0]["function"] == {"name": "weather", "arguments": '{"city":"Köln"}'}
    assert answer["usage"]["prompt_tokens_details"] == {"cached_tokens": 4, "cache_write_tokens": 1}
    assert stream.endswith(b"data: [DONE]\n\n")
    assert b'"anthropic"' not in stream


async def test_a_fallback_of_another_dialect_is_told_in_its_own_words(tmp_path: Path) -> None:
    down = refused(529, "overloaded_error")
    async with scripted(down) as broken, scripted(streamed(*GPT)) as server:
        async with gateway(tmp_path, claude=broken.url, gpt=server.url) as gate:
            route = gate.kernel.config.route["auto"].model_copy(update={"light": "claude", "fallback": ("gpt",)})
            gate.kernel.config.route["auto"] = route
            async with gate.post({**NATIVE, "model": "auto", "tools": [WEATHER]}) as response:
                message = await response.json()
        assert message["content"][2] == USED
        assert server.bodies[0]["messages"][0] == {"role": "system", "content": "be brief"}
        assert broken.bodies[0]["thinking"] == {"type": "adaptive"}


# ── what may go wrong ──


@pytest.mark.parametrize(
    ("body", "named"),
    [
        (b"{", "the body is not JSON"),
        (b"[]", "the body must be a JSON object"),
        ({**ANY, "model": 3}, "'model'"),
        ({**ANY, "stream": "yes"}, "'stream'"),
        ({**ANY, "max_tokens": None}, "max_tokens"),
        ({**ANY, "max_tokens": 0}, "max_tokens"),
        ({**ANY, "max_tokens": True}, "max_tokens"),
        ({**ANY, "messages": []}, "messages"),
        ({**ANY, "messages": "hi"}, "messages"),
        ({**ANY, "messages": [{"role": "tool", "content": "x"}]}, "messages.0"),
        ({**ANY, "messages": [{"role": ["user"], "content": "x"}]}, "messages.0"),
        ({**ANY, "messages": [{"role": "user"}]}, "messages.0.content"),
        ({**ANY, "messages": [{"role": "user", "content": [{"text": "x"}]}]}, "messages.0.content"),
        ({**ANY, "system": 7}, "system"),
        ({**ANY, "temperature": 2}, "temperature"),
        ({**ANY, "temperature": "hot"}, "temperature"),
        ({**ANY, "tools": {}}, "tools"),
        ({**ANY, "stop_sequences": [1]}, "stop_sequences"),
        ({**ANY, "tool_choice": "auto"}, "tool_choice"),
        ({**ANY, "thinking": True}, "thinking"),
        ({**ANY, "base_url": "http://x"}, "'base_url'"),
    ],
)
async def test_a_wrong_request_is_told_what_is_wrong(tmp_path: Path, body: object, named: str) -> None:
    async with gateway(tmp_path) as gate, gate.post(body, {"x-request-id": "r1"}) as response:
        assert response.status == 400
        assert (await response.json())["request_id"] == "r1"
        error = await error_of(response)
        assert (error["type"], response.headers["x-should-retry"]) == ("invalid_request_error", "false")
        assert error["message"].startswith(named)
        assert gate.upstream.requests == 0


async def test_a_beta_that_is_no_name_is_refused(tmp_path: Path) -> None:
    async with gateway(tmp_path) as gate, gate.post(ANY, {"anthropic-beta": "a;b\u00fc"}) as response:
        assert response.status == 400
        assert "anthropic-beta" in (await error_of(response))["message"]


async def test_an_unknown_model_and_a_huge_body_are_refused(tmp_path: Path) -> None:
    async with gateway(tmp_path) as gate:
        async with gate.post({**ANY, "model": "autp"}) as response:
            assert (response.status, (await error_of(response))["type"]) == (404, "not_found_error")
        async with gate.http.post(f"{gate.url}/v1/messages", data=io.BytesIO(b"x" * (33 * 2**20))) as response:
            assert (response.status, (await error_of(response))["type"]) == (413, "request_too_large")


async def test_a_wrong_key_reads_the_same_bytes_whatever_is_wrong(tmp_path: Path) -> None:
    async with gateway(tmp_path) as gate:
        key = await create_key(gate.kernel, "t", "n")
        bodies = set()
        for headers in ({}, {"x-api-key": "tl-wrong"}, {"x-api-key": "sk-ant"}, {"authorization": "Bearer tl-no"}):
            async with gate.post(ANY, headers) as response:
                assert response.status == 401
                bodies.add(await response.read())
        (body,) = bodies
        assert orjson.loads(body)["error"]["type"] == "authentication_error"
        for headers in ({"x-api-key": key}, {"authorization": f"Bearer {key}"}):
            async with gate.post(ANY, {**headers, "anthropic-version": "2023-06-01"}) as response:
                assert response.status == 200
        assert {step["tenant"] for step in gate.steps()} == {"t"}


async def test_a_spent_budget_says_so_and_nothing_is_called(tmp_path: Path) -> None:
    async with gateway(tmp_path) as gate:
        await limit(gate, 1)
        async with gate.post(ANY) as response:
            assert (response.status, response.headers["x-should-retry"]) == (429, "false")
            assert (await error_of(response))["type"] == "rate_limit_error"
        assert gate.upstream.requests == 0


async def test_a_budget_settles_with_what_the_upstream_counted(tmp_path: Path) -> None:
    async with scripted(streamed(*CLAUDE)) as server, gateway(tmp_path, claude=server.url) as gate:
        await limit(gate)
        async with gate.post({**NATIVE, "tools": [WEATHER], "stream": True}) as response:
            assert b"message_stop" in await response.read()
        await gate.at_rest("claude")
        (step,) = gate.steps()
        assert step["cost_pico"] == (10 * 1 + 30 * 2) * PICO // 10**6
        await gate.kernel.treasury.give_back()
        spent = gate.rows("SELECT spent_pico, held_pico FROM spending")
        assert spent == [{"spent_pico": step["cost_pico"], "held_pico": 0}]
        async with gate.post(NATIVE) as response:  # with a tool that reads what nobody here can bound
            assert response.status == 400
            assert "tool web_search_20250305" in (await error_of(response))["message"]
        assert len(server.bodies) == 1


@pytest.mark.parametrize(
    ("status", "kind", "told", "named"),
    [(400, "invalid_request_error", 400, "invalid_request_error"), (401, "authentication_error", 502, "api_error"),
     (429, "rate_limit_error", 429, "rate_limit_error"), (500, "api_error", 502, "api_error"),
     (529, "overloaded_error", 502, "overloaded_error")],
)  # fmt: skip
@pytest.mark.parametrize("is_streamed", [True, False])
async def test_an_upstream_that_refuses_is_an_http_error(
    tmp_path: Path, status: int, kind: str, told: int, named: str, is_streamed: bool
) -> None:
    async with scripted(refused(status, kind)) as server, gateway(tmp_path, claude=server.url) as gate:
        async with gate.post({**NATIVE, "stream": is_streamed}) as response:
            assert (response.status, response.headers["retry-after"]) == (told, "3")
            error = await error_of(response)
            assert (error["type"], "the reason" in error["message"]) == (named, True)
        await gate.at_rest("claude")
        await until(gate.steps)
        assert [(step["status"], step["cost_pico"]) for step in gate.steps()] == [("failed", 0)]


async def test_an_error_in_the_upstreams_stream_is_the_last_event(tmp_path: Path) -> None:
    fault = event("error", error={"type": "overloaded_error", "message": "too busy"})
    for at, blocks in enumerate((CLAUDE[:8], CLAUDE[:1])):
        (folder := tmp_path / str(at)).mkdir()
        async with scripted(streamed(*blocks, fault)) as server, gateway(folder, claude=server.url) as gate:
            async with gate.post({**NATIVE, "stream": True}) as response:
                events = read_events(await response.read())
            assert events[-1]["type"] == "error"
            assert [found["type"] for found in events].count("error") == 1
            assert "too busy" in events[-1]["error"]["message"]  # type: ignore[index]  # JSON
            await gate.at_rest("claude")
            await until(gate.steps)
            assert gate.steps()[0]["status"] == "failed"


@pytest.mark.parametrize("fault", ["error 2", "cut 2"])
async def test_a_translated_answer_that_breaks_off_ends_with_an_error(tmp_path: Path, fault: str) -> None:
    async with gateway(tmp_path, faults=f"always: {fault}") as gate:
        async with gate.post(STREAM) as response:
            events = read_events(await response.read())
        assert [found["type"] for found in events][-2:] == ["content_block_delta", "error"]
        await gate.at_rest()
        await until(gate.steps)
        assert gate.steps()[0]["status"] == "failed"
        async with gate.post(ANY) as response:
            assert (response.status, (await error_of(response))["type"]) == (502, "api_error")


async def test_a_cut_answer_of_the_same_dialect_ends_with_an_error(tmp_path: Path) -> None:
    async with scripted(streamed(*CLAUDE[:8])) as server, gateway(tmp_path, claude=server.url) as gate:
        async with gate.post({**NATIVE, "stream": True}) as response:
            events = read_events(await response.read())
        assert events[-1]["type"] == "error"
        assert "message_stop" not in [found["type"] for found in events]


@pytest.mark.parametrize("is_streamed", [True, False])
async def test_hanging_up_ends_the_upstream(tmp_path: Path, is_streamed: bool) -> None:
    async with (
        scripted(streamed(*CLAUDE[:8], hangs=True)) as server,
        gateway(tmp_path, claude=server.url) as gate,
    ):
        await limit(gate)
        asking = asyncio.create_task(_read_all(gate, {**NATIVE, "tools": [WEATHER], "stream": is_streamed}))
        await until(lambda: server.bodies)
        asking.cancel()
        await asyncio.wait_for(server.gone.wait(), 5)
        await gate.at_rest("claude")
        await until(gate.steps)
        assert [(step["status"], step["reason"]) for step in gate.steps()] == [("cancelled", "the client hung up")]


async def test_hanging_up_before_the_first_token_ends_the_upstream(tmp_path: Path) -> None:
    async with gateway(tmp_path, first_token_ms=60_000) as gate:
        asking = asyncio.create_task(_read_all(gate, STREAM))
        await until(lambda: gate.upstream.active)
        asking.cancel()
        await gate.at_rest()
        assert gate.upstream.aborted == 1


async def _read_all(gate: Gateway, body: object) -> bytes:
    # A connection of its own: cancelling closes it.
    async with aiohttp.ClientSession() as http, http.post(f"{gate.url}/v1/messages", data=orjson.dumps(body)) as answer:
        return await answer.read()


# ── Anthropic's own client ──


async def test_anthropics_client_is_at_home_here(tmp_path: Path) -> None:
    anthropic = pytest.importorskip("anthropic")
    async with (
        scripted(streamed(*CLAUDE)) as claude,
        scripted(streamed(*GPT)) as gpt,
        gateway(tmp_path, claude=claude.url, gpt=gpt.url) as gate,
        anthropic.AsyncAnthropic(base_url=gate.url, api_key="none", max_retries=0) as client,
    ):
        for model, signature in (("claude", "sig"), ("gpt", "")):
            whole = await client.messages.create(**{**ANY, "model": model, "tools": [WEATHER]})
            async with client.messages.stream(**{**ANY, "model": model, "tools": [WEATHER]}) as stream:
                assert "".join([text async for text in stream.text_stream]) == "one moment"
                told = await stream.get_final_message()
            for message in (whole, told):
                assert [part.type for part in message.content] == ["thinking", "text", "tool_use"]
                assert (message.content[0].thinking, message.content[0].signature) == ("hm", signature)
                assert (message.content[2].name, message.content[2].input) == ("weather", {"city": "Köln"})
                assert (message.stop_reason, message.usage.output_tokens) == ("tool_use", 30)
                assert message.usage.cache_read_input_tokens == 4
            assert whole._request_id
        await client.beta.messages.create(**{**ANY, "model": "claude"}, betas=["one-2026"])
        assert claude.headers[-1]["anthropic-beta"] == "one-2026"
        events = [event async for event in await client.messages.create(**STREAM)]
        assert (events[0].type, events[-1].type) == ("message_start", "message_stop")
        with pytest.raises(anthropic.NotFoundError, match="did you mean 'auto'") as caught:
            await client.messages.create(**{**ANY, "model": "auton"})
        assert caught.value.request_id
        assert caught.value.body["error"]["type"] == "not_found_error"
        gate.upstream.script = Rehearsal("main", faults="always: error 2").script
        with pytest.raises(anthropic.APIStatusError, match="the upstream failed"):
            async for _ in await client.messages.create(**STREAM):
                pass


async def test_anthropics_blocking_client_is_at_home_here(tmp_path: Path) -> None:
    anthropic = pytest.importorskip("anthropic")
    async with gateway(tmp_path) as gate:

        def ask() -> tuple[Any, Any]:  # Any: the client's messages
            with anthropic.Anthropic(base_url=gate.url, api_key="none", max_retries=0) as client:
                whole = client.messages.create(**ANY)
                with client.messages.stream(**ANY) as stream:
                    return whole, stream.get_final_message()

        for message in await asyncio.to_thread(ask):
            assert message.content[0].text == REPLY
            assert message.usage.output_tokens == 5


async def test_anthropics_client_parses_a_structured_reply(tmp_path: Path) -> None:
    anthropic = pytest.importorskip("anthropic")
    from pydantic import BaseModel

    class Count(BaseModel):
        words: int

    async with (
        gateway(tmp_path, reply='{"words": 5}') as gate,
        anthropic.AsyncAnthropic(base_url=gate.url, api_key="none", max_retries=0) as client,
    ):
        told = await client.messages.parse(**ANY, output_format=Count)
        assert told.parsed_output == Count(words=5)
        (call,) = gate.upstream.calls
        assert call.schema is not None
        assert "words" in call.schema.schema["properties"]  # type: ignore[operator]  # JSON


@pytest.mark.parametrize("is_streamed", [True, False], ids=["streamed", "whole"])
async def test_an_answer_whose_time_is_used_up_keeps_what_came_and_ends_as_the_protocol_ends_one(
    tmp_path: Path, is_streamed: bool
) -> None:
    half = b'event: content_block_delta\ndata: {"type":"content_block_delta","index":1,"delta":{"ty'
    async with (
        scripted(streamed(*CLAUDE[:8], half, hangs=True)) as claude,
        scripted(streamed(*GPT[:4], b'data: {"id":"c","choices":[{"index":0,"del', hangs=True)) as gpt,
        gateway(tmp_path, claude=claude.url, gpt=gpt.url) as gate,
    ):
        for server, model in ((claude, "claude"), (gpt, "gpt")):
            await gate.kernel.treasury.set_budget(f"upstream:{model}", period="total", us=700_000, actor="t")
            async with gate.post({**ANY, "model": model, "stream": is_streamed}) as response:
                assert response.status == 200
                told = await response.read()
            message: Json = dict(whole_message(read_events(told))) if is_streamed else orjson.loads(told)
            assert message["stop_reason"] == "max_tokens"
            assert [part["type"] for part in message["content"]] == ["thinking", "text"]
            assert message["content"][1]["text"].startswith("one mo")
            if is_streamed:
                kinds = [event["type"] for event in read_events(told)]
                assert kinds.count("content_block_start") == kinds.count("content_block_stop") == 2
                assert kinds[-2:] == ["message_delta", "message_stop"]
            await asyncio.wait_for(server.gone.wait(), 5)
        assert {step["status"] for step in gate.steps()} == {"killed"}
