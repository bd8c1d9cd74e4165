"""What is wrong with a request or an upstream, over every protocol there is: the right status and shape, a cost that is
booked and marked, and nothing held afterwards."""

from __future__ import annotations

import asyncio
import json
import time
import tracemalloc
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import pytest
from aiohttp import web
from tests.conformance.descriptions import problems
from tests.conformance.gateway import (
    DONE,
    MESSAGES,
    REPLY,
    Answer,
    Gateway,
    Upstream,
    chunk,
    cuts,
    delta,
    gateway,
    hangs,
    needs,
    refuses,
    scripted,
    streams,
    until,
    usage,
)

from twolane.domain.money import PICO
from twolane.models.rehearsal import Rehearsal
from twolane.online.auth import create_key, revoke_key
from twolane.online.wire import REFUSED

pytestmark = pytest.mark.timeout(60)

CHAT, RESPONSES, MESSAGE, EMBEDDINGS = "/v1/chat/completions", "/v1/responses", "/v1/messages", "/v1/embeddings"
ASKED: dict[str, dict[str, object]] = {
    CHAT: {"model": "auto", "messages": MESSAGES},
    RESPONSES: {"model": "auto", "input": "count"},
    MESSAGE: {"model": "auto", "max_tokens": 100, "messages": MESSAGES},
    EMBEDDINGS: {"model": "auto", "input": "count"},
}
"""The least that each protocol needs."""
EVERY = [pytest.param(path, marks=needs(path), id=path) for path in ASKED]
WORDS = [pytest.param(path, marks=needs(path), id=path) for path in (CHAT, RESPONSES, MESSAGE)]


def shape(path: str, body: object, *, in_stream: bool = False) -> list[str]:
    """What is wrong with an error's body."""
    if path == RESPONSES and in_stream:
        return problems("response event", body)
    return problems("anthropic error" if path == MESSAGE else "error", body)


def said(path: str, body: Mapping[str, Any], name: str) -> object:  # Any: JSON
    """A field of OpenAI's errors; None where the protocol has no such field."""
    return None if path == MESSAGE else body["error"][name]


# ── requests ──

NOT_JSON = (
    b"",
    b"{",
    b"[]",
    b"null",
    b'"text"',
    b"\xff\xfe",
    b"model=auto&messages=hello",
    b'{"model":"auto",}',
    b'{"model":"auto","messages":[{"role":"user","content":NaN}]}',
    b'{"model":"auto","messages":[{"role":"user","content":"\\ud800"}]}',
    b'{"model":"auto","messages":' + b"[" * 2000 + b"]" * 2000 + b"}",
    b"\x1f\x8b\x08\x00not really gzip",
)


@pytest.mark.parametrize("path", EVERY)
async def test_what_is_not_json_is_refused(tmp_path: Path, path: str) -> None:
    upstream = Rehearsal("main", reply=REPLY)
    async with gateway(tmp_path, upstream) as gate:
        for body in NOT_JSON:
            async with gate.post(path, body) as response:
                assert response.status == 400, body
                assert shape(path, await response.json()) == []
        assert upstream.requests == 0


ODD: tuple[object, ...] = (
    None,
    True,
    -1,
    0,
    5,
    1.5,
    10**30,
    1e308,
    "",
    "x",
    "\x00",
    [],
    ["x"],
    [[]],
    [None],
    {},
    {"x": None},
)
"""A value of every type, and of some types those that break things."""
FIELDS: dict[str, tuple[str, ...]] = {
    CHAT: tuple(
        "model messages stream stream_options max_tokens max_completion_tokens n temperature top_p stop tools "
        "tool_choice response_format logprobs top_logprobs logit_bias seed user metadata functions "
        "function_call modalities store parallel_tool_calls reasoning_effort service_tier".split()
    ),
    RESPONSES: tuple(
        "model input instructions stream max_output_tokens temperature top_p tools tool_choice text metadata store "
        "user parallel_tool_calls previous_response_id reasoning include truncation background".split()
    ),
    MESSAGE: tuple(
        "model messages system stream max_tokens temperature top_p top_k stop_sequences tools tool_choice metadata "
        "thinking output_config service_tier".split()
    ),
    EMBEDDINGS: ("model", "input", "dimensions", "encoding_format", "user"),
}
BAD_MESSAGES: tuple[object, ...] = (
    5,
    [],
    {},
    {"role": 5, "content": "x"},
    {"role": "user"},
    {"role": "user", "content": {}},
    {"role": "user", "content": [5]},
    {"role": "user", "content": [{"text": "no type"}]},
    {"role": "user", "content": [{"type": "text", "text": 5}]},
    {"role": "user", "content": [{"type": "image_url", "image_url": 5}]},
    {"role": "assistant", "content": None, "tool_calls": 5},
    {"role": "assistant", "content": None, "tool_calls": [{}]},
    {"role": "tool", "content": "x", "tool_call_id": 5},
)
BAD_SCHEMAS: tuple[object, ...] = (
    None,
    5,
    {},
    {"schema": 5},
    {"name": 5, "schema": {}},
    {"name": "x", "schema": {"type": 5}},
)
NESTED: dict[str, list[Mapping[str, object]]] = {
    CHAT: [
        *({"messages": [message]} for message in BAD_MESSAGES),
        *({"response_format": {"type": "json_schema", "json_schema": described}} for described in BAD_SCHEMAS),
    ],
    RESPONSES: [
        *({"input": [item]} for item in (5, {}, {"role": "user"}, {"role": "user", "content": 5}, {"type": "nothing"})),
    ],
    MESSAGE: [
        *({"messages": [message]} for message in BAD_MESSAGES),
        {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
        {"messages": [{"role": "user", "content": [{"type": "tool_result"}]}]},
        {"messages": [{"role": "assistant", "content": [{"type": "tool_use", "input": 5}]}]},
    ],
    EMBEDDINGS: [{"input": [[]]}, {"input": [5, "x"]}, {"input": [{}]}],
}


@pytest.mark.parametrize("path", EVERY)
async def test_no_field_of_the_wrong_type_breaks_the_house(tmp_path: Path, path: str) -> None:
    """Fields we act on are refused by name; others are the upstream's to judge. Neither is ever an error of ours."""
    wrong = [{name: value} for name in FIELDS[path] for value in ODD] + NESTED[path]
    async with gateway(tmp_path, Rehearsal("main", reply=REPLY), slots={"online": 64}) as gate:
        await gate.kernel.treasury.set_budget("tenant:default", period="total", pico=PICO, tokens=10**9, actor="t")
        refused = [name for name in await asyncio.gather(*(_refused(gate, path, fields) for fields in wrong)) if name]
        assert {"model", "stream"} & set(FIELDS[path]) <= set(refused)
        await gate.at_rest()
        assert {step["status"] for step in gate.steps()} <= {"ok"}


async def _refused(gate: Gateway, path: str, fields: Mapping[str, object]) -> str:
    """Which field was refused, "" if none was; an answer of any other kind fails the test."""
    (name,) = fields
    async with gate.post(path, json.dumps({**ASKED[path], **fields}).encode()) as response:
        told = await response.read()
    assert response.status in ({200, 400, 404} if name == "model" else {200, 400}), (fields, told)
    if response.status == 200:
        return ""
    answer = orjson.loads(told)
    assert shape(path, answer) == [], fields
    param = said(path, answer, "param")
    assert param is None or str(param).startswith(name), (fields, answer)
    return name


@pytest.mark.parametrize("path", EVERY)
async def test_nobody_but_the_operator_says_where_a_call_goes(tmp_path: Path, path: str) -> None:
    upstream = Rehearsal("main", reply=REPLY)
    async with gateway(tmp_path, upstream) as gate:
        for name in sorted(REFUSED):
            async with gate.post(path, {**ASKED[path], name: "http://127.0.0.1:9/v1"}) as response:
                assert response.status == 400, name
                body = await response.json()
                assert shape(path, body) == []
                assert said(path, body, "param") in (name, None)
        for model in ("http://127.0.0.1:9/v1", "openai/http://127.0.0.1:9", "auto?url=http://127.0.0.1:9"):
            async with gate.post(path, {**ASKED[path], "model": model}) as response:
                assert response.status == 404
        assert upstream.requests == 0


@pytest.mark.parametrize("path", EVERY)
async def test_a_wrong_key_is_told_the_same_whatever_is_wrong_with_it(tmp_path: Path, path: str) -> None:
    async with gateway(tmp_path) as gate:
        key = await create_key(gate.kernel, "legal", "ci")
        gone = await create_key(gate.kernel, "legal", "gone")
        await revoke_key(gate.kernel, "legal", "gone")
        bodies = set()
        for shown in ("", "Bearer", "Bearer ", "Bearer x", f"Bearer {key}x", f"Bearer {gone}", f"Basic {key}", key):
            for body in (ASKED[path], b"{", {**ASKED[path], "model": "auot"}):  # no word about models to strangers
                async with gate.post(path, body, {"authorization": shown} if shown else {}) as response:
                    assert response.status == 401
                    assert response.headers["www-authenticate"] == "Bearer"
                    assert response.headers["x-should-retry"] == "false"
                    bodies.add(await response.read())
        (body,) = bodies
        assert shape(path, orjson.loads(body)) == []
        assert gate.steps() == []


def _long_text(path: str) -> dict[str, object]:
    text = "word " * (4 * 2**20)
    if "messages" in ASKED[path]:
        return {**ASKED[path], "messages": [{"role": "user", "content": text}]}
    return {**ASKED[path], "input": text}


def _many_messages(path: str) -> dict[str, object]:
    message = {"role": "user", "content": "x" * 15}
    many: list[object] = [message] * (21 * 2**20 // 47)
    if "messages" in ASKED[path]:
        return {**ASKED[path], "messages": many}
    return {**ASKED[path], "input": many if path == RESPONSES else ["x" * 44] * len(many)}


def _many_parts(path: str) -> dict[str, object]:
    parts = [{"type": "text" if path in (CHAT, MESSAGE) else "input_text", "text": "x"}] * (21 * 2**20 // 27)
    message: dict[str, object] = {"role": "user", "content": parts}
    if "messages" in ASKED[path]:
        return {**ASKED[path], "messages": [message]}
    return {**ASKED[path], "input": [message] if path == RESPONSES else [[1, 2, 3]] * (3 * 2**20)}


@pytest.mark.parametrize("path", EVERY)
@pytest.mark.parametrize("make", [_long_text, _many_messages, _many_parts])
async def test_20_megabytes_are_read_or_refused_in_bounded_time(tmp_path: Path, path: str, make: Any) -> None:
    """The measure is what it takes to parse them: a machine may be slow, but every other client waits meanwhile."""
    body = orjson.dumps(make(path))
    assert 19 * 2**20 < len(body) < 32 * 2**20
    began = time.monotonic()
    orjson.loads(body)
    parsing_s = time.monotonic() - began
    async with gateway(tmp_path, Rehearsal("main", reply=REPLY), limit={"context": 2**26}) as gate:
        began = time.monotonic()
        async with gate.post(path, body) as response:
            told = await response.read()
        assert time.monotonic() - began < 2 + 15 * parsing_s
        assert response.status in (200, 400, 413), told
        assert response.status == 200 or shape(path, orjson.loads(told)) == []
        async with gate.post(path, ASKED[path]) as response:
            assert response.status == 200
        await gate.at_rest()


@pytest.mark.parametrize("path", WORDS)
async def test_20_megabytes_of_text_take_bounded_memory(tmp_path: Path, path: str) -> None:
    body = orjson.dumps(_long_text(path))
    async with gateway(tmp_path, Rehearsal("main", reply=REPLY), limit={"context": 2**26}) as gate:
        tracemalloc.start(1)
        try:
            async with gate.post(path, body) as response:
                assert response.status == 200
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < 20 * len(body)
        await gate.at_rest()


# ── upstreams ──


@dataclass(frozen=True)
class Lie:
    """What an upstream does, and what must come of it."""

    answer: Answer
    status: int
    """Of a streamed answer: 200 where the failure comes after the first word."""
    whole: int
    """Of a whole answer."""
    recorded: str
    """The status of its step."""
    is_estimated: bool | None = None
    """Whether its cost is marked as an estimate; None: it was not billed at all."""
    is_retried: bool | None = None
    """What `x-should-retry` says where nothing was sent yet; None: not looked at."""
    recorded_read: str = ""
    """The status of its step where the gateway must read it (for a whole answer, or to tell it in another protocol), if
    that differs: who passes bytes on sees less."""

    def recorded_as(self, path: str, *, is_streamed: bool) -> str:
        """The status of its step."""
        is_passed_on = is_streamed and path == CHAT
        return self.recorded if is_passed_on else self.recorded_read or self.recorded


def json_answer(status: int, body: bytes, kind: str = "application/json") -> Answer:
    async def answer(request: web.Request) -> web.StreamResponse:
        return web.Response(status=status, body=body, content_type=kind)

    return answer


REPORTS = chunk(delta(content="one"), usage={"prompt_tokens": 5, "completion_tokens": 1})
FIRST, END = chunk(delta(role="assistant", content="one ")), chunk(delta(end="stop"))
ERROR = b'data: {"error": {"message": "out of memory", "type": "server_error"}}\n\n'
LIES: dict[str, Lie] = {
    "hangs before its first word": Lie(hangs(), 502, 502, "failed", True, True),
    "hangs in mid answer": Lie(hangs(FIRST), 200, 502, "failed", True),
    "hangs up before its first word": Lie(cuts(), 502, 502, "failed", True, True),
    "cuts the stream": Lie(cuts(FIRST), 200, 502, "failed", True),
    "ends without an end": Lie(streams(FIRST, END, usage()), 200, 502, "failed", False),
    "sends nothing at all": Lie(streams(), 502, 502, "failed", True, True),
    "sends only its end": Lie(streams(DONE), 200, 200, "ok", True),
    "sends an error inside 200": Lie(streams(ERROR), 502, 502, "failed", True, False),
    "sends an error after its first word": Lie(streams(FIRST, ERROR), 200, 502, "failed", True),
    "sends an error and an end": Lie(streams(FIRST, ERROR, DONE), 200, 502, "failed", True),
    "sends an error as JSON with 200": Lie(json_answer(200, b'{"error": {"message": "no"}}'), 502, 502, "failed", True),
    "sends a page with 200": Lie(json_answer(200, b"<html>Hello</html>", "text/html"), 502, 502, "failed", True),
    "sends what is no JSON": Lie(
        streams(FIRST, b'data: {"choices": [\n\n', END, DONE), 200, 502, "ok", True, recorded_read="failed"
    ),
    "reports no usage": Lie(streams(FIRST, END, DONE), 200, 200, "ok", True),
    "reports negative usage": Lie(streams(FIRST, END, usage(-5, -2), DONE), 200, 200, "ok", True),
    "reports absurd usage": Lie(streams(FIRST, END, usage(5, 2**40), DONE), 200, 200, "ok", True),
    "reports usage in words": Lie(streams(FIRST, END, usage("five", None), DONE), 200, 200, "ok", True),
    "reports usage twice": Lie(streams(FIRST, END, usage(1, 1), usage(5, 2), DONE), 200, 200, "ok", False),
    "reports usage as it goes": Lie(streams(REPORTS, END, usage(), DONE), 200, 200, "ok", False),
    "says 400": Lie(refuses(400), 400, 400, "failed", None, False),
    "says 401": Lie(refuses(401), 502, 502, "failed", None, False),
    "says 404": Lie(refuses(404), 502, 502, "failed", None, False),
    "says 429": Lie(refuses(429), 429, 429, "failed", None, True),
    "says 429 and when": Lie(refuses(429, retry_after="2"), 429, 429, "failed", None, True),
    "says 500": Lie(refuses(500), 502, 502, "failed", None, True),
    "says 503": Lie(refuses(503, b""), 502, 502, "failed", None, True),
    "says 503 and when": Lie(refuses(503, b"", retry_after_ms="1500"), 502, 502, "failed", None, True),
    "says 307": Lie(refuses(307, b"", location="http://127.0.0.1:9/"), 502, 502, "failed", None, False),
}  # fmt: skip


@pytest.mark.parametrize("path", WORDS)
@pytest.mark.parametrize("name", LIES)
async def test_whatever_an_upstream_does_is_told_booked_and_let_go(tmp_path: Path, path: str, name: str) -> None:
    lie = LIES[name]
    quick = {"first_token_s": 0.3, "idle_s": 0.3}
    async with scripted(tmp_path, lie.answer, timeout=quick) as (gate, upstream):
        await gate.kernel.treasury.set_budget("tenant:default", period="total", pico=PICO, tokens=None, actor="t")
        for is_streamed, status in ((True, lie.status), (False, lie.whole)):
            async with gate.post(path, {**ASKED[path], "stream": is_streamed}) as response:
                await _is_told(response, path, lie, status)
            await _is_let_go(gate, upstream)
        steps = await gate.recorded(2)
        expected = [lie.recorded_as(path, is_streamed=is_streamed) for is_streamed in (True, False)]
        assert [step["status"] for step in steps] == expected
        for step in steps:
            if lie.is_estimated is None:
                assert (step["input_tokens"], step["output_tokens"], step["cost_pico"]) == (0, 0, 0)
            else:
                assert step["cost_pico"] > 0
                assert bool(step["estimated"]) == lie.is_estimated
                assert 0 <= step["output_tokens"] < 1000
            if lie.is_estimated is False:
                assert (step["input_tokens"], step["output_tokens"]) == (5, 2)
        spent = gate.rows("SELECT sum(spent_pico) AS pico FROM spending WHERE scope = 'tenant:default'")
        assert spent[0]["pico"] == sum(step["cost_pico"] for step in gate.steps())


async def _is_told(response: aiohttp.ClientResponse, path: str, lie: Lie, status: int) -> None:
    received = await response.read()
    assert response.status == status, received
    if status != 200:
        assert shape(path, orjson.loads(received)) == []
        assert lie.is_retried is None or response.headers["x-should-retry"] == str(lie.is_retried).lower()
        assert b"127.0.0.1" not in received  # no address of an upstream
        assert b"sk-upstream" not in received
    elif lie.recorded_as(path, is_streamed=True) == "failed":  # only a stream can fail after status 200
        (*_, last) = [line[6:] for line in received.splitlines() if line.startswith(b"data: ")]
        assert shape(path, orjson.loads(last), in_stream=True) == []
        assert b"data: [DONE]" not in received


async def _is_let_go(gate: Gateway, upstream: Upstream) -> None:
    await gate.at_rest()
    await until(lambda: not upstream.active)


async def test_a_delay_that_an_upstream_names_is_passed_on(tmp_path: Path) -> None:
    for name, told in (("says 429 and when", "2000"), ("says 503 and when", "1500"), ("says 429", None)):
        folder = tmp_path / name.replace(" ", "-")
        folder.mkdir()
        async with scripted(folder, LIES[name].answer) as (gate, _), gate.post(CHAT, ASKED[CHAT]) as response:
            assert response.headers.get("retry-after-ms") == told
