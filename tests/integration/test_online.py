"""The gateway over real HTTP, with a rehearsal upstream behind it."""

from __future__ import annotations

import asyncio
import io
import logging
import sqlite3
import sys
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import pytest

from twolane.config import Config
from twolane.domain.document import Document
from twolane.domain.money import PICO
from twolane.domain.records import Lane
from twolane.errors import ConfigError, NotFound, UsageError
from twolane.kernel import Kernel
from twolane.kernel.treasury import drift
from twolane.models.rehearsal import Rehearsal
from twolane.online.app import Server, create_app, serve
from twolane.online.ask import ask
from twolane.online.auth import create_key, list_keys, revoke_key
from twolane.store import Transaction

pytestmark = pytest.mark.timeout(30)

REPLY = "one two three four five"
ANY = {"model": "auto", "messages": [{"role": "user", "content": "count"}]}
STREAM = {**ANY, "stream": True}


@dataclass
class Gateway:
    """A running gateway and what stands behind it."""

    kernel: Kernel
    upstream: Rehearsal
    http: aiohttp.ClientSession
    url: str

    def post(self, body: object, headers: Mapping[str, str] | None = None) -> Any:  # Any: aiohttp's request context
        data = body if isinstance(body, bytes) else orjson.dumps(body)
        return self.http.post(f"{self.url}/chat/completions", data=data, headers=headers)

    def steps(self) -> list[dict[str, Any]]:  # Any: SQL columns
        return rows(self.kernel, "SELECT * FROM trace_steps ORDER BY leaf")

    async def at_rest(self) -> None:
        """Wait until nothing is in flight, then see that nothing is still held."""
        slots = self.kernel.lanes.slots("main", Lane.ONLINE)
        await until(lambda: not self.upstream.active and not slots.busy and not _holds(self))
        assert not self.kernel.switches._running
        await self.kernel.treasury.give_back()
        await self.kernel.store.write(lambda tx: None)
        assert drift(self.kernel.store) == []
        held = rows(self.kernel, "SELECT sum(held_pico) + sum(held_tokens) AS held FROM spending")
        assert held[0]["held"] in (0, None)


def rows(kernel: Kernel, query: str) -> list[dict[str, Any]]:  # Any: SQL columns
    with closing(sqlite3.connect(kernel.store_path)) as connection:
        connection.row_factory = sqlite3.Row
        return [dict(row) for row in connection.execute(query)]


async def until(holds: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not holds():
            await asyncio.sleep(0.005)


def config_in(folder: Path, **route: object) -> Config:
    return Config.model_validate(
        {
            "store": f"sqlite:{folder / 'store.db'}",
            "upstream": {
                "main": {
                    "kind": "rehearsal",
                    "price": {"input": "1", "output": "2"},
                    "slots": {"online": 2},
                    "retries": 0,
                },
                "other": {"kind": "rehearsal", "price": {"input": "1", "output": "2"}},
            },
            "route": {"auto": {"light": "main", **route}},
        }
    )


@asynccontextmanager
async def gateway(folder: Path, *, route: Mapping[str, object] | None = None, **script: Any) -> AsyncIterator[Gateway]:
    """Any: the options of a rehearsal."""
    from twolane.online.app import _listen

    upstream = Rehearsal("main", **{"reply": REPLY, **script})
    kernel = await Kernel.open(config_in(folder, **(route or {})), models={"main": upstream})
    await kernel.lanes.hold(Lane.ONLINE)  # as `serve` does
    ready = asyncio.Event()
    server = Server(create_app(kernel), on_ready=ready.set)
    with _listen("127.0.0.1", 0) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        running = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            async with aiohttp.ClientSession() as http:
                await ready.wait()
                yield Gateway(kernel, upstream, http, url)
        finally:
            server.should_exit = True
            await running
            await kernel.aclose()


async def test_a_gateway_that_was_taken_for_dead_says_that_it_must_start_again(tmp_path: Path) -> None:
    async with gateway(tmp_path) as gate:
        await gate.kernel.presence.bury(gate.kernel.presence.name)
        await until(lambda: gate.kernel.presence.is_buried)
        async with gate.http.get(f"{gate.url.removesuffix('/v1')}/healthz") as answer:
            assert (answer.status, (await answer.json())["error"]["code"]) == (503, "fenced")


def events(body: bytes) -> list[Any]:  # Any: JSON
    """The payloads of a stream."""
    assert body.endswith(b"\n\n")
    payloads = [event.removeprefix(b"data: ") for event in body.split(b"\n\n")[:-1]]
    return [payload.decode() if payload == b"[DONE]" else orjson.loads(payload) for payload in payloads]


def text_of(chunks: list[Any]) -> str:
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks if chunk != "[DONE]" and chunk["choices"]]
    return "".join(delta.get("content") or "" for delta in deltas)


async def error_of(response: aiohttp.ClientResponse) -> dict[str, Any]:  # Any: JSON
    body = await response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    return dict(body["error"])


# ── answers ──


async def test_a_streamed_answer_ends_with_done_once_it_is_recorded(tmp_path: Path) -> None:
    async with gateway(tmp_path) as gate, gate.post(STREAM) as response:
        assert response.status == 200
        assert response.content_type == "text/event-stream"
        chunks = events(await response.read())
        (step,) = gate.steps()
        assert text_of(chunks) == REPLY
        assert chunks[-1] == "[DONE]"
        assert (step["status"], step["lane"], step["tenant"]) == ("ok", "online", "default")
        assert step["output_tokens"] == 5
        assert step["step"] == response.headers["x-twolane-step"]
        assert response.headers["x-twolane-route"] == "auto"
        assert response.headers["x-twolane-reason"] == "light of route auto"


async def test_usage_is_streamed_only_to_those_who_ask_for_it(tmp_path: Path) -> None:
    async with gateway(tmp_path) as gate:
        async with gate.post(STREAM) as response:
            silent = events(await response.read())
        async with gate.post({**STREAM, "stream_options": {"include_usage": True}}) as response:
            told = events(await response.read())
    assert not [chunk for chunk in silent if chunk != "[DONE]" and chunk.get("usage")]
    assert told[-2]["choices"] == []
    assert told[-2]["usage"]["completion_tokens"] == 5
    assert text_of(silent) == text_of(told) == REPLY


async def test_a_whole_answer_carries_usage_and_cost(tmp_path: Path) -> None:
    async with gateway(tmp_path, input_tokens=1000) as gate, gate.post(ANY) as response:
        answer = await response.json()
        assert response.status == 200
        assert answer["object"] == "chat.completion"
        assert answer["choices"][0]["message"] == {"role": "assistant", "content": REPLY, "refusal": None}
        assert answer["choices"][0]["finish_reason"] == "stop"
        assert answer["usage"] == {"prompt_tokens": 1000, "completion_tokens": 5, "total_tokens": 1005}
        assert response.headers["x-twolane-cost"] == "0.00101"
        assert gate.steps()[0]["cost_pico"] == 1_010_000_000


async def test_done_waits_for_the_disk_and_the_text_does_not(tmp_path: Path) -> None:
    async with gateway(tmp_path) as gate:
        may_write = threading.Event()
        gate.kernel.store.submit(lambda tx: may_write.wait(10))
        async with gate.post(STREAM) as response:
            received = b""
            while b'finish_reason":"stop' not in received:
                received += await response.content.readany()
            assert b"[DONE]" not in received
            assert gate.steps() == []
            may_write.set()
            received += await response.read()
            assert received.endswith(b"data: [DONE]\n\n")
            assert len(gate.steps()) == 1


async def test_a_route_may_trade_durability_away(tmp_path: Path) -> None:
    async with gateway(tmp_path, route={"durable_ack": False}) as gate:
        may_write = threading.Event()
        gate.kernel.store.submit(lambda tx: may_write.wait(10))
        async with gate.post(STREAM) as response:
            assert (await response.read()).endswith(b"data: [DONE]\n\n")
            assert gate.steps() == []
            may_write.set()
        async with gate.post(ANY) as response:
            assert (await response.json())["choices"][0]["message"]["content"] == REPLY
        await until(lambda: len(gate.steps()) == 2)


async def test_usage_beyond_the_bound_is_booked_as_told_and_marked(tmp_path: Path) -> None:
    async with gateway(tmp_path, input_tokens=10**6) as gate:
        async with gate.post(ANY) as response:
            assert (await response.json())["usage"]["prompt_tokens"] == 10**6
        (step,) = gate.steps()
        assert step["cost_pico"] > PICO
        assert rows(gate.kernel, "SELECT json_extract(leaf, '$.beyond_bound') AS mark FROM entry") == [{"mark": 1}]


async def test_what_is_not_ours_passes_through(tmp_path: Path) -> None:
    parts = [{"role": "user", "content": [{"type": "text", "text": "count"}], "name": "ann"}]
    asked = {**ANY, "messages": parts, "top_p": 0.5, "seed": 7, "max_completion_tokens": 3, "user": "u1"}
    asked["response_format"] = {"type": "json_schema", "json_schema": {"name": "r", "schema": {"type": "object"}}}
    async with gateway(tmp_path) as gate, gate.post(asked) as response:
        assert response.status == 200
        (call,) = gate.upstream.calls
        assert call.max_tokens == 3
        assert call.raw_messages == tuple(parts)
        assert [message.content for message in call.messages] == ["count"]
        assert call.schema is not None
        assert call.schema.name == "r"
        assert call.extras == {"top_p": 0.5, "seed": 7, "max_completion_tokens": 3, "user": "u1"}


async def test_every_answer_has_a_request_id(tmp_path: Path) -> None:
    async with gateway(tmp_path) as gate:
        for body in (ANY, STREAM, {**ANY, "model": "nope"}, b"["):
            async with gate.post(body, {"x-request-id": "mine-1"}) as response:
                assert response.headers["x-request-id"] == "mine-1"
            async with gate.post(body, {"x-request-id": "not sane"}) as response:
                assert response.headers["x-request-id"] not in ("", "not sane")
        for path in ("/v1/nothing", "/healthz"):
            async with gate.http.get(gate.url.removesuffix("/v1") + path) as response:
                assert response.headers["x-request-id"]


# ── clients who leave ──


@pytest.mark.parametrize("is_streamed", [True, False])
@pytest.mark.parametrize("is_limited", [True, False])
async def test_leaving_before_the_first_token_ends_the_upstream(
    tmp_path: Path, is_streamed: bool, is_limited: bool
) -> None:
    async with gateway(tmp_path, first_token_ms=60_000) as gate:
        if is_limited:
            await gate.kernel.treasury.set_budget("tenant:default", period="total", pico=PICO, tokens=None, actor="t")
        asking = asyncio.create_task(_read_all(gate, {**ANY, "stream": is_streamed}))
        await until(lambda: gate.upstream.active)
        asking.cancel()
        await gate.at_rest()
        assert gate.upstream.aborted == 1
        await until(gate.steps)
        assert [(step["status"], step["reason"]) for step in gate.steps()] == [("cancelled", "the client hung up")]


@pytest.mark.parametrize("is_streamed", [True, False])
async def test_leaving_in_mid_stream_ends_the_upstream(tmp_path: Path, is_streamed: bool) -> None:
    async with gateway(tmp_path, reply="word " * 1000, token_ms=20) as gate:
        await gate.kernel.treasury.set_budget("tenant:default", period="total", pico=PICO, tokens=None, actor="t")
        asking = asyncio.create_task(_read_all(gate, {**ANY, "stream": is_streamed}))
        await until(lambda: gate.upstream.tokens >= 3)
        asking.cancel()
        await gate.at_rest()
        assert gate.upstream.aborted == 1
        await until(gate.steps)
        (step,) = gate.steps()
        assert step["status"] == "cancelled"
        assert 0 < step["output_tokens"] < 100
        tokens = gate.upstream.tokens
        await asyncio.sleep(0.1)
        assert gate.upstream.tokens == tokens
        assert gate.upstream.tokens_after_close == 0


async def test_leaving_the_queue_for_a_slot_leaves_nothing_behind(tmp_path: Path) -> None:
    async with gateway(tmp_path, first_token_ms=60_000) as gate:
        await gate.kernel.treasury.set_budget("tenant:default", period="total", pico=PICO, tokens=None, actor="t")
        asking = [asyncio.create_task(_read_all(gate, STREAM)) for _ in range(5)]
        await until(lambda: gate.upstream.active == 2 and len(_holds(gate)) == 5)
        for task in asking:
            task.cancel()
        await gate.at_rest()
        assert gate.upstream.requests == 2


async def test_leaving_while_a_hold_is_on_its_way_leaves_no_hold(tmp_path: Path) -> None:
    async with gateway(tmp_path) as gate:
        await gate.kernel.treasury.set_budget("tenant:default", period="total", pico=PICO, tokens=None, actor="t")
        queue = gate.kernel.store._writer._queue  # type: ignore[attr-defined]  # to see the reservation wait there
        is_writing, may_write = threading.Event(), threading.Event()

        def keep_the_writer_busy(_: Transaction) -> None:
            is_writing.set()
            may_write.wait(10)

        gate.kernel.store.submit(keep_the_writer_busy)
        await asyncio.to_thread(is_writing.wait)
        asking = asyncio.create_task(_read_all(gate, STREAM))
        await until(lambda: len(queue) == 1)
        asking.cancel()
        await until(lambda: len(queue) == 2)  # and after it, in the same queue, the end of it
        may_write.set()
        await gate.kernel.store.write(lambda tx: None)
        assert rows(gate.kernel, "SELECT count(*) AS windows FROM spending") == [{"windows": 1}]
        await gate.at_rest()
        assert gate.upstream.requests == 0


def _holds(gate: Gateway) -> list[str]:
    """The steps that hold money, in the store and in memory."""
    return [row["step"] for row in gate.kernel.store.all("reservations")] + [*gate.kernel.treasury._in_memory]


async def _read_all(gate: Gateway, body: object) -> bytes:
    # A connection of its own: cancelling closes it.
    async with (
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True)) as http,
        http.post(f"{gate.url}/chat/completions", data=orjson.dumps(body)) as response,
    ):
        return await response.read()


# ── refusals ──


async def test_an_unknown_model_is_answered_with_the_nearest_one(tmp_path: Path) -> None:
    async with gateway(tmp_path) as gate, gate.post({**ANY, "model": "otter"}) as response:
        assert response.status == 404
        assert response.headers["x-should-retry"] == "false"
        error = await error_of(response)
    assert error["code"] == "model_not_found"
    assert "did you mean 'other'?" in error["message"]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b"{", None),
        (b"[]", None),
        ({**ANY, "messages": []}, "messages"),
        ({"model": "auto"}, "messages"),
        ({**ANY, "messages": ["hello"]}, "messages[0]"),
        ({**ANY, "messages": [{"content": "hello"}]}, "messages[0]"),
        ({**ANY, "messages": [{"role": "user"}]}, "messages[0].content"),
        ({**ANY, "messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({**ANY, "messages": [{"role": "user", "content": ["x"]}]}, "messages[0].content"),
        ({"messages": ANY["messages"]}, "model"),
        ({**ANY, "model": 5}, "model"),
        ({**ANY, "stream": "yes"}, "stream"),
        ({**ANY, "max_tokens": 0}, "max_tokens"),
        ({**ANY, "max_tokens": True}, "max_tokens"),
        ({**ANY, "max_completion_tokens": "5"}, "max_completion_tokens"),
        ({**ANY, "temperature": "hot"}, "temperature"),
        ({**ANY, "n": 0}, "n"),
        ({**ANY, "n": 10**9}, "n"),
        ({**ANY, "stream_options": 1}, "stream_options"),
        ({**ANY, "response_format": "json"}, "response_format"),
        ({**ANY, "response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({**ANY, "api_base": "http://elsewhere"}, "api_base"),
        ({**ANY, "base_url": "http://elsewhere"}, "base_url"),
        (b'{"model":"auto","messages":[{"role":"user","content":"x"}],"deep":' + b"[" * 500 + b"]" * 500 + b"}", None),
    ],
)
async def test_a_wrong_request_is_told_what_is_wrong(tmp_path: Path, body: object, param: str | None) -> None:
    async with gateway(tmp_path) as gate, gate.post(body) as response:
        assert response.status == 400
        error = await error_of(response)
        assert (error["type"], error["param"]) == ("invalid_request_error", param)
        assert gate.upstream.requests == 0


async def test_a_huge_body_is_refused(tmp_path: Path) -> None:
    async def in_chunks() -> AsyncIterator[bytes]:
        for _ in range(33):
            yield b" " * 2**20

    async with gateway(tmp_path) as gate:
        told = io.BytesIO(b" " * (33 * 2**20))
        async with gate.http.post(f"{gate.url}/chat/completions", data=told) as response:
            assert response.status == 413
            assert (await error_of(response))["code"] == "request_too_large"
        async with gate.http.post(f"{gate.url}/chat/completions", data=in_chunks()) as response:
            assert response.status == 413
        async with gate.post(ANY) as response:
            assert response.status == 200


async def test_a_spent_budget_is_a_429_that_no_client_repeats(tmp_path: Path) -> None:
    async with gateway(tmp_path) as gate:
        await gate.kernel.treasury.set_budget("tenant:default", period="total", pico=1000, tokens=None, actor="t")
        async with gate.post(STREAM) as response:
            assert response.status == 429
            assert response.headers["x-should-retry"] == "false"
            assert "retry-after-ms" not in response.headers
            error = await error_of(response)
        assert (error["type"], error["code"]) == ("insufficient_quota", "insufficient_quota")
        assert "tenant:default: budget" in error["message"]
        assert gate.upstream.requests == 0
        await gate.at_rest()


async def test_a_full_lane_says_when_to_come_back(tmp_path: Path) -> None:
    async with gateway(tmp_path, route={"deadline_ms": 20}, first_token_ms=60_000) as gate:
        asking = [asyncio.create_task(_read_all(gate, STREAM)) for _ in range(2)]
        await until(lambda: gate.upstream.active == 2)
        async with gate.post(STREAM) as response:
            assert response.status == 429
            assert (await error_of(response))["code"] == "lane_full"
            assert response.headers["x-should-retry"] == "true"
            assert int(response.headers["retry-after"]) >= 1
            assert int(response.headers["retry-after-ms"]) >= 1
        for task in asking:
            task.cancel()
        await gate.at_rest()


async def test_a_switch_closes_a_stream_at_once(tmp_path: Path) -> None:
    async with gateway(tmp_path, reply="word " * 1000, token_ms=10) as gate:
        async with gate.post(STREAM) as response:
            received = await response.content.readany()
            await gate.kernel.switches.trip("tenant:default", cause="too much", actor="test")
            received += await response.read()
        last = events(received)[-1]
        assert last["error"]["code"] == "switch_tripped"
        assert b"[DONE]" not in received
        await gate.at_rest()
        assert gate.upstream.aborted == 1
        await until(gate.steps)
        assert gate.steps()[0]["status"] == "killed"
        for body in (STREAM, ANY):
            async with gate.post(body) as response:
                assert response.status == 503
                assert response.headers["x-should-retry"] == "false"
                assert (await error_of(response))["code"] == "switch_tripped"
        assert gate.upstream.requests == 1


async def test_a_switch_closes_a_whole_answer_and_a_wait_for_the_first_token(tmp_path: Path) -> None:
    for script in ({"first_token_ms": 60_000}, {"reply": "word " * 1000, "token_ms": 10}):
        folder = tmp_path / str(len(script))
        folder.mkdir()
        async with gateway(folder, **script) as gate:
            asking = asyncio.create_task(gate.post(ANY).__aenter__())
            await until(lambda gate=gate: gate.upstream.active)  # type: ignore[misc]  # bound now
            await gate.kernel.switches.trip("all", cause="fire", actor="test")
            response = await asking
            assert response.status == 503
            assert (await error_of(response))["code"] == "switch_tripped"
            await gate.at_rest()


async def test_an_upstream_that_breaks_off_is_told_in_the_stream(tmp_path: Path) -> None:
    for fault in ("cut 2", "error 2", "no-done"):
        folder = tmp_path / fault
        folder.mkdir()
        async with gateway(folder, faults=f"always: {fault}") as gate:
            async with gate.post(STREAM) as response:
                assert response.status == 200
                received = await response.read()
            assert "error" in events(received)[-1]
            assert b"data: [DONE]" not in received
            await until(gate.steps)
            assert gate.steps()[0]["status"] == "failed"
            async with gate.post(ANY) as response:
                assert response.status == 502
            await gate.at_rest()


@pytest.mark.parametrize(
    ("fault", "status"),
    [("503", 502), ("401", 502), ("400", 400), ("429 retry-after 2", 429), ("unreachable", 502), ("error 0", 502)],
)
async def test_an_upstream_that_fails_at_once_is_an_http_error(tmp_path: Path, fault: str, status: int) -> None:
    async with gateway(tmp_path, faults=f"always: {fault}") as gate, gate.post(STREAM) as response:
        assert response.status == status
        assert (await error_of(response))["code"] == "upstream_error"
        assert ("retry-after-ms" in response.headers) == (status == 429)


async def test_unknown_paths_and_methods_look_like_openai_errors(tmp_path: Path) -> None:
    async with gateway(tmp_path) as gate:
        async with gate.http.get(f"{gate.url}/nothing") as response:
            assert response.status == 404
            assert (await error_of(response))["code"] == "not_found"
        async with gate.http.get(gate.url.removesuffix("/v1") + "/%20") as response:
            named = str((await error_of(response))["message"]).partition("there are: ")[2].split(", ")
            assert len(named) == len(set(named)) > 5
        async with gate.http.delete(f"{gate.url}/models") as response:
            assert response.status == 405
            assert (await error_of(response))["code"] == "method_not_allowed"


# ── who may come in ──


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"host": "localhost:8080"}, 200),
        ({"host": "[::1]:8080"}, 200),
        ({"host": "localhost:8080", "origin": "http://localhost:8080"}, 200),
        ({"authorization": "Bearer whatever"}, 200),
        ({"host": "evil.example"}, 401),
        ({"host": "127.0.0.1.evil.example"}, 401),
        ({"host": "192.168.1.4:8080"}, 401),
        ({"origin": "https://evil.example"}, 401),
        ({"origin": "null"}, 401),
        ({"host": "localhost:8080", "origin": "http://localhost:3000"}, 401),
        ({"forwarded": "for=127.0.0.1"}, 401),
        ({"x-forwarded-for": "127.0.0.1"}, 401),
        ({"x-forwarded-proto": "https"}, 401),
    ],
)
async def test_before_the_first_key_only_this_machine_comes_in(
    tmp_path: Path, headers: dict[str, str], status: int
) -> None:
    async with gateway(tmp_path) as gate, gate.post(ANY, headers) as response:
        assert response.status == status


async def test_keys_open_and_revoked_ones_do_not(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with gateway(tmp_path) as gate:
        kernel = gate.kernel
        key = await create_key(kernel, "legal", "ci")
        other = await create_key(kernel, "legal", "other")
        assert key.startswith("tl-")
        assert len(key) > 40
        bodies = set()
        for headers in ({}, {"authorization": "Bearer tl-wrong"}, {"authorization": f"Basic {key}"}, {"x-api-key": ""}):
            async with gate.post(ANY, headers) as response:
                assert response.status == 401
                bodies.add(await response.read())
        for headers in ({"authorization": f"Bearer {key}"}, {"x-api-key": key}):
            async with gate.post(ANY, headers) as response:
                assert response.status == 200
        async with gate.http.get(gate.url.removesuffix("/v1") + "/healthz") as response:
            assert response.status == 200
        assert {(step["tenant"]) for step in gate.steps()} == {"legal"}
        await revoke_key(kernel, "legal", "ci")
        async with gate.post(ANY, {"x-api-key": key}) as response:
            assert response.status == 401
            bodies.add(await response.read())
        await revoke_key(kernel, "legal", "other")
        for headers in ({}, {"x-api-key": other}):  # revoking the last one does not reopen the house
            async with gate.post(ANY, headers) as response:
                assert response.status == 401
                bodies.add(await response.read())
        assert len(bodies) == 1
        assert key.encode() not in bodies.pop()
        assert key not in caplog.text
        entries = [orjson.loads(row["leaf"]) for row in kernel.store.all("entries", first=0, count=100)]
        actions = [entry["action"] for entry in entries if entry["kind"] == "key"]
        assert actions == ["create", "create", "revoke", "revoke"]
    stored = b"".join(path.read_bytes() for path in tmp_path.rglob("store.db*") if path.is_file())
    assert key.encode() not in stored


async def test_what_another_process_does_with_keys_counts_within_moments(tmp_path: Path) -> None:
    async with gateway(tmp_path) as gate:
        store = gate.kernel.store
        async with gate.post(ANY) as response:
            assert response.status == 200
        another, epoch = await Kernel.open(gate.kernel.config), store.epoch()
        key = await create_key(another, "legal", "ci")
        async with gate.post(ANY, {"x-api-key": key}) as response:
            assert response.status == 200  # at once
        await until(lambda: store.epoch() != epoch)
        async with gate.post(ANY) as response:
            assert response.status == 401
        epoch = store.epoch()
        await revoke_key(another, "legal", "ci")
        await until(lambda: store.epoch() != epoch)
        async with gate.post(ANY, {"x-api-key": key}) as response:
            assert response.status == 401
        await another.aclose()


async def test_a_key_may_be_limited_to_models(tmp_path: Path) -> None:
    async with gateway(tmp_path) as gate:
        key = {"x-api-key": await create_key(gate.kernel, "legal", "ci", ["other"])}
        async with gate.post(ANY, key) as response:
            assert response.status == 403
            error = await error_of(response)
            assert (error["type"], error["code"]) == ("permission_error", "not_allowed")
        async with gate.post({**ANY, "model": "other"}, key) as response:
            assert response.status == 200
        async with gate.http.get(f"{gate.url}/models", headers=key) as response:
            assert [model["id"] for model in (await response.json())["data"]] == ["other"]
        async with gate.http.get(f"{gate.url}/models/auto", headers=key) as response:
            assert response.status == 404


async def test_a_key_has_its_own_budget_and_switch(tmp_path: Path) -> None:
    async with gateway(tmp_path) as gate:
        poor = {"x-api-key": await create_key(gate.kernel, "legal", "poor")}
        rich = {"x-api-key": await create_key(gate.kernel, "legal", "rich")}
        await gate.kernel.treasury.set_budget("key:legal/poor", period="day", pico=0, tokens=None, actor="t")
        async with gate.post(ANY, poor) as response:
            assert response.status == 429
        async with gate.post(ANY, rich) as response:
            assert response.status == 200
        await gate.kernel.switches.trip("key:legal/rich", cause="leaked", actor="t")
        async with gate.post(ANY, rich) as response:
            assert response.status == 503


async def test_key_names_are_sound_and_used_once(tmp_path: Path) -> None:
    kernel = await Kernel.open(config_in(tmp_path))
    await create_key(kernel, "legal", "ci")
    await revoke_key(kernel, "legal", "ci")
    with pytest.raises(UsageError, match="was made before"):
        await create_key(kernel, "legal", "ci")
    with pytest.raises(UsageError, match="cannot be a name"):
        await create_key(kernel, "legal", "a/b")
    with pytest.raises(NotFound, match="did you mean 'auto'"):
        await create_key(kernel, "legal", "x", ["auot"])
    with pytest.raises(NotFound, match="no live key"):
        await revoke_key(kernel, "legal", "ci")
    assert [(key.name, key.revoked_us is None) for key in list_keys(kernel)] == [("ci", False)]
    await kernel.aclose()


async def test_a_public_address_needs_a_key(tmp_path: Path) -> None:
    config = config_in(tmp_path)
    public = config.model_copy(update={"serve": config.serve.model_copy(update={"host": "0.0.0.0", "port": 0})})
    with pytest.raises(ConfigError, match="no API key yet"):
        await serve(public, announce=print)


async def test_a_taken_port_is_told(tmp_path: Path) -> None:
    async with gateway(tmp_path) as gate:
        config = gate.kernel.config
        port = int(gate.url.rpartition(":")[2].partition("/")[0])
        taken = config.model_copy(update={"serve": config.serve.model_copy(update={"port": port})})
        with pytest.raises(ConfigError, match="cannot be taken"):
            await serve(taken, announce=print)


# ── without a server ──


async def test_a_question_is_one_recorded_step(tmp_path: Path) -> None:
    upstream = Rehearsal("main", reply=REPLY, input_tokens=10)
    kernel = await Kernel.open(config_in(tmp_path), models={"main": upstream})
    pieces: list[str] = []
    asked = await ask(kernel, "How many?", documents=[Document('a"b', "Five.")], on_text=pieces.append)
    assert asked.answer == "".join(pieces) == REPLY
    assert len(pieces) > 1
    assert (asked.model, asked.upstream) == ("auto", "main")
    assert asked.cost is not None
    assert str(asked.cost) == "$0.00002"
    assert asked.ttft_ms is not None
    (step,) = rows(kernel, "SELECT * FROM trace_steps")
    assert step["step"] == asked.step
    assert upstream.calls[0].messages[1].content == '<document id="a\'b">\nFive.\n</document>'
    assert upstream.calls[0].messages[-1].content == "How many?"
    await kernel.aclose()


# ── the commands ──

TOML = """
store = "sqlite:store.db"
[upstream.main]
kind = "rehearsal"
price = { input = "1", output = "2" }
options = { token_ms = 50, reply = "one two three four five six seven eight nine ten" }
[route.auto]
light = "main"
"""


async def twolane(folder: Path, *arguments: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "twolane", *arguments, cwd=folder, stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip


async def object_from(folder: Path, *arguments: str) -> Any:  # Any: JSON
    process = await twolane(folder, *arguments, "--json")
    out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    return orjson.loads(out)


async def test_a_server_told_to_stop_finishes_its_answers(tmp_path: Path) -> None:
    (tmp_path / "twolane.toml").write_text(TOML)
    key = await object_from(tmp_path, "key", "create", "--tenant", "legal", "--name", "ci", "--models", "auto")
    assert set(key) == {"key", "tenant", "name", "budget"}
    server = await twolane(tmp_path, "serve", "--port", "0")
    assert server.stdout is not None
    url = (await server.stdout.readline()).decode().split()[-1]
    headers = {"authorization": f"Bearer {key['key']}"}
    async with (
        aiohttp.ClientSession(headers=headers) as http,
        http.post(f"{url}/chat/completions", data=orjson.dumps(STREAM)) as response,
    ):
        received = await response.content.readany()
        server.terminate()
        received += await response.read()
    assert text_of(events(received)).endswith("nine ten")
    out, err = await server.communicate()
    assert (server.returncode, out, err) == (0, b"", b"")
    with closing(sqlite3.connect(tmp_path / "store.db")) as store:
        assert store.execute("SELECT tenant, status FROM trace_steps").fetchall() == [("legal", "ok")]
    listed = await object_from(tmp_path, "key", "list")
    assert [(row["name"], row["models"], row["revoked"]) for row in listed["keys"]] == [("ci", ["auto"], None)]
    assert (await object_from(tmp_path, "key", "revoke", "--tenant", "legal", "--name", "ci"))["revoked"] is True


async def test_ask_answers_on_one_stream_and_says_what_it_took_on_the_other(tmp_path: Path) -> None:
    (tmp_path / "twolane.toml").write_text(TOML)
    (tmp_path / "lease.txt").write_text("The rent is 400 a month.")
    process = await twolane(tmp_path, "ask", "What is the rent?", "--file", "lease.txt")
    out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    assert out == b"one two three four five six seven eight nine ten\n"
    assert b"first token" in err
    assert b"step" in err
    asked = await object_from(tmp_path, "ask", "What is the rent?")
    assert asked["answer"].endswith("nine ten")
    assert (asked["model"], asked["upstream"], asked["currency"]) == ("auto", "main", "USD")
    assert asked["reason"] == "light of route auto"
    assert asked["tokens"]["output"] == 10
    assert asked["cost"].startswith("0.0000")
    assert asked["ttft_ms"] >= 0
    process = await twolane(tmp_path, "ask", "x", "--model", "auot")
    _, err = await process.communicate()
    assert process.returncode == 2
    assert b"did you mean 'auto'" in err
