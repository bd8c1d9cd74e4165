"""Every answer of the gateway has the shape that its protocol's public description demands."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import pytest
from tests.conformance.descriptions import OPENAPI, problems
from tests.conformance.gateway import (
    DONE,
    MESSAGES,
    REPLY,
    Answer,
    Gateway,
    chunk,
    cuts,
    delta,
    gateway,
    needs,
    refuses,
    scripted,
    streams,
    until,
    usage,
)

from twolane.domain.money import PICO
from twolane.models.rehearsal import Rehearsal
from twolane.online.auth import create_key

pytestmark = pytest.mark.timeout(30)

CHAT, MODELS = "/v1/chat/completions", "/v1/models"
ANY: dict[str, object] = {"model": "auto", "messages": MESSAGES}
TOKEN = {"token": "hi", "logprob": -0.5, "bytes": [104, 105], "top_logprobs": []}
FINGERPRINT = {"system_fingerprint": "fp_1", "service_tier": "default"}
FUNCTION = {"index": 0, "id": "call_1", "type": "function", "function": {"name": "weather", "arguments": ""}}


def test_openais_own_description_is_at_hand() -> None:
    if not OPENAPI.is_file():
        pytest.skip("without OpenAI's description of its API, answers are held against the SDKs' types alone")
    assert problems("model", {"id": "a", "object": "model", "created": 0}) != []


ANSWERS: dict[str, Answer] = {
    "plain": streams(
        chunk(delta(role="assistant", content="", refusal=None), **FINGERPRINT),
        chunk(delta(content="hi"), **FINGERPRINT),
        chunk(delta(end="stop"), **FINGERPRINT),
        usage(),
        DONE,
    ),
    "refused": streams(
        chunk(delta(role="assistant", content=None, refusal="I ")),
        chunk(delta(refusal="will not")),
        chunk(delta(end="stop")),
        usage(),
        DONE,
    ),
    "a tool": streams(
        chunk(delta(role="assistant", content=None, tool_calls=[FUNCTION])),
        chunk(delta(tool_calls=[{"index": 0, "function": {"arguments": '{"city":'}}])),
        chunk(delta(tool_calls=[{"index": 0, "function": {"arguments": '"Bern"}'}}])),
        chunk(delta(end="tool_calls")),
        usage(),
        DONE,
    ),
    "a function, as it was done before tools": streams(
        chunk(delta(role="assistant", content=None, function_call={"name": "weather", "arguments": ""})),
        chunk(delta(function_call={"arguments": '{"city":'})),
        chunk(delta(function_call={"arguments": '"Bern"}'})),
        chunk(delta(end="function_call")),
        usage(),
        DONE,
    ),
    "three choices": streams(
        *(chunk(delta(index, role="assistant", content="hi")) for index in (0, 1, 2)),
        *(chunk(delta(index, end="stop")) for index in (2, 0, 1)),
        usage(),
        DONE,
    ),
    "log probabilities": streams(
        chunk(delta(role="assistant", content="hi", logprobs={"content": [TOKEN], "refusal": None})),
        chunk(delta(content="hi", logprobs={"content": [TOKEN], "refusal": None})),
        chunk(delta(end="stop")),
        usage(),
        DONE,
    ),
    "usage in detail": streams(
        chunk(delta(role="assistant", content="hi", end="stop")),
        usage(
            prompt_tokens_details={"cached_tokens": 3, "audio_tokens": 0},
            completion_tokens_details={"reasoning_tokens": 1},
        ),
        DONE,
    ),
    "usage beside the last words": streams(
        chunk(delta(role="assistant", content="hi")),
        chunk(delta(end="stop"), usage={"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}),
        DONE,
    ),
    "no usage": streams(chunk(delta(role="assistant", content="hi", end="stop")), DONE),
}


@pytest.mark.parametrize("name", ANSWERS)
async def test_an_answer_fits_whole_and_in_every_chunk(tmp_path: Path, name: str) -> None:
    async with scripted(tmp_path, ANSWERS[name]) as (gate, _):
        async with gate.post(CHAT, ANY) as response:
            assert response.status == 200
            assert problems("chat", await response.json()) == []
        for options in ({}, {"stream_options": {"include_usage": True}}):
            async with gate.post(CHAT, {**ANY, "stream": True, **options}) as response:
                chunks = chunks_of(await response.read())
                assert chunks
                assert [problem for each in chunks for problem in problems("chat chunk", each)] == []


async def test_nothing_that_the_upstream_said_is_lost_in_a_whole_answer(tmp_path: Path) -> None:
    odd = {"content_filter_results": {"hate": {"filtered": False}}, "stop_reason": "###"}
    answer = streams(
        chunk(delta(role="assistant", content="h"), obfuscation="xyz", **FINGERPRINT),
        chunk({**delta(role=None, content="i", end="stop", annotations=[{"a": 1}]), **odd}, x_groq={"id": "r"}),
        chunk({**delta(annotations=[{"b": 2}])}, system_fingerprint=None),
        usage(),
        DONE,
    )
    async with scripted(tmp_path, answer) as (gate, _), gate.post(CHAT, ANY) as response:
        whole = await response.json()
        (choice,) = whole["choices"]
        assert {name: whole[name] for name in FINGERPRINT} == FINGERPRINT
        assert (whole["object"], whole["id"], whole["x_groq"]) == ("chat.completion", "chatcmpl-1", {"id": "r"})
        assert "obfuscation" not in whole
        assert choice["message"]["content"] == "hi"
        assert choice["message"]["role"] == "assistant"
        assert choice["message"]["annotations"] == [{"a": 1}, {"b": 2}]
        assert choice["message"]["refusal"] is None
        assert {name: choice[name] for name in odd} == odd


async def test_parts_of_a_message_are_put_together_again(tmp_path: Path) -> None:
    for name, field, expected in (
        ("a tool", "tool_calls", [{"id": "call_1", "type": "function", "function": _weather()}]),
        ("a function, as it was done before tools", "function_call", _weather()),
        ("refused", "refusal", "I will not"),
    ):
        folder = tmp_path / field
        folder.mkdir()
        async with scripted(folder, ANSWERS[name]) as (gate, _), gate.post(CHAT, ANY) as response:
            assert (await response.json())["choices"][0]["message"][field] == expected


def _weather() -> dict[str, str]:
    return {"name": "weather", "arguments": '{"city":"Bern"}'}


async def test_log_probabilities_are_strung_together(tmp_path: Path) -> None:
    async with scripted(tmp_path, ANSWERS["log probabilities"]) as (gate, _), gate.post(CHAT, ANY) as response:
        (choice,) = (await response.json())["choices"]
        assert choice["logprobs"] == {"content": [TOKEN, TOKEN], "refusal": None}


async def test_models_fit_both_worlds(tmp_path: Path) -> None:
    async with gateway(tmp_path) as gate:
        async with gate.http.get(gate.root + MODELS) as response:
            listed = await response.json()
        assert problems("models", listed) == []
        assert {model["id"] for model in listed["data"]} == {"auto", "main"}
        assert (listed["first_id"], listed["last_id"], listed["has_more"]) == ("auto", "main", False)
        async with gate.http.get(f"{gate.root}{MODELS}/auto") as response:
            one = await response.json()
        for model in (*listed["data"], one):
            assert problems("model", model) == []
            assert problems("anthropic model", model) == []


@needs("/v1/embeddings")
async def test_embeddings_fit(tmp_path: Path) -> None:
    async with gateway(tmp_path) as gate, gate.post("/v1/embeddings", {"model": "auto", "input": "one"}) as response:
        assert response.status == 200, await response.text()
        assert problems("embeddings", await response.json()) == []


@needs("/v1/responses")
@pytest.mark.parametrize("name", ANSWERS)
async def test_a_response_fits_whole_and_in_every_event(tmp_path: Path, name: str) -> None:
    asked = {"model": "auto", "input": "count"}
    async with scripted(tmp_path, ANSWERS[name]) as (gate, _):
        async with gate.post("/v1/responses", asked) as response:
            assert response.status == 200, await response.text()
            assert problems("response", await response.json()) == []
        async with gate.post("/v1/responses", {**asked, "stream": True}) as response:
            events = chunks_of(await response.read())
            assert [problem for each in events for problem in problems("response event", each)] == []
            assert [each["sequence_number"] for each in events] == list(range(len(events)))


@needs("/v1/messages")
@pytest.mark.parametrize("name", [name for name in ANSWERS if name != "a function, as it was done before tools"])
async def test_a_message_fits_whole_and_in_every_event(tmp_path: Path, name: str) -> None:
    asked = {"model": "auto", "max_tokens": 100, "messages": MESSAGES}
    async with scripted(tmp_path, ANSWERS[name]) as (gate, _):
        async with gate.post("/v1/messages", asked) as response:
            assert response.status == 200, await response.text()
            assert problems("message", await response.json()) == []
        async with gate.post("/v1/messages", {**asked, "stream": True}) as response:
            events = chunks_of(await response.read())
            assert events
            assert [problem for each in events for problem in problems("message event", each)] == []


# ── errors ──

ASKED: dict[str, dict[str, object]] = {
    CHAT: ANY,
    "/v1/responses": {"model": "auto", "input": "count"},
    "/v1/embeddings": {"model": "auto", "input": "count"},
    "/v1/messages": {"model": "auto", "max_tokens": 100, "messages": MESSAGES},
}
"""The least that each protocol needs."""
PATHS = [pytest.param(path, marks=needs(path), id=path) for path in ASKED]
WORDS = [pytest.param(path, marks=needs(path), id=path) for path in ASKED if path != "/v1/embeddings"]


async def fits(response: aiohttp.ClientResponse, status: int, path: str, code: str | None = None) -> dict[str, Any]:
    """See that an error has this status and the shape of its protocol. Gives its body. Any: JSON."""
    body = orjson.loads(await response.read())
    assert response.status == status, body
    kind = "anthropic error" if path == "/v1/messages" else "error"
    assert problems(kind, body) == []
    assert response.headers["x-request-id"]
    assert response.headers["x-should-retry"] in ("true", "false")
    assert code is None or kind != "error" or body["error"]["code"] == code
    return dict(body)


@pytest.mark.parametrize("path", PATHS)
async def test_refusals_have_their_shape(tmp_path: Path, path: str) -> None:
    asked = ASKED[path]
    async with gateway(tmp_path) as gate:
        async with gate.post(path, b"{") as response:
            await fits(response, 400, path, "invalid_request")
        async with gate.post(path, {**asked, "model": "auot"}) as response:
            await fits(response, 404, path, "model_not_found")
        async with gate.http.delete(gate.root + path) as response:
            await fits(response, 405, CHAT, "method_not_allowed")
        async with gate.post(path, b" " * (33 * 2**20)) as response:
            await fits(response, 413, path, "request_too_large")
        async with gate.post(f"{path}/nothing/there", asked) as response:
            assert response.status == 404
        await gate.kernel.treasury.set_budget("tenant:default", period="total", pico=1, tokens=None, actor="t")
        async with gate.post(path, asked) as response:
            await fits(response, 429, path, "insufficient_quota")
            assert response.headers["x-should-retry"] == "false"
        await gate.kernel.switches.trip("all", cause="fire", actor="t")
        async with gate.post(path, asked) as response:
            await fits(response, 503, path, "switch_tripped")
        limited = await create_key(gate.kernel, "legal", "ci", ["main"])
        async with gate.post(path, asked) as response:
            await fits(response, 401, path, "invalid_api_key")
        async with gate.post(path, asked, {"x-api-key": limited}) as response:
            await fits(response, 403, path, "not_allowed")
        await gate.at_rest()


@pytest.mark.parametrize("path", WORDS)
@pytest.mark.parametrize(
    ("fault", "status"),
    [("400", 400), ("401", 502), ("403", 502), ("404", 502), ("422", 422), ("429 retry-after 2", 429), ("500", 502),
     ("503", 502), ("529", 502), ("unreachable", 502), ("error 0", 502)],
)  # fmt: skip
async def test_failures_of_an_upstream_have_their_shape(tmp_path: Path, path: str, fault: str, status: int) -> None:
    async with gateway(tmp_path, Rehearsal("main", faults=f"always: {fault}")) as gate:
        for is_streamed in (False, True):
            async with gate.post(path, {**ASKED[path], "stream": is_streamed}) as response:
                await fits(response, status, path, "upstream_error")
                assert ("retry-after-ms" in response.headers) == (status == 429)


@pytest.mark.parametrize("path", WORDS)
async def test_a_full_lane_has_its_shape(tmp_path: Path, path: str) -> None:
    asleep = Rehearsal("main", first_token_ms=60_000)
    async with gateway(tmp_path, asleep, slots={"online": 1}) as gate:
        route = gate.kernel.config.route
        route["auto"] = route["auto"].model_copy(update={"deadline_ms": 20})
        first = asyncio.create_task(_read(gate, path, ASKED[path]))
        await until(lambda: asleep.active)
        async with gate.post(path, ASKED[path]) as response:
            await fits(response, 429, path, "lane_full")
            assert int(response.headers["retry-after-ms"]) >= 1
            assert response.headers["x-should-retry"] == "true"
        first.cancel()
        await gate.at_rest()


async def _read(gate: Gateway, path: str, body: object) -> bytes:
    async with gate.post(path, body) as response:
        return bytes(await response.read())


@pytest.mark.parametrize("path", WORDS)
async def test_an_error_inside_a_stream_has_its_shape(tmp_path: Path, path: str) -> None:
    first = chunk(delta(role="assistant", content=REPLY))
    async with scripted(tmp_path, cuts(first)) as (gate, _):
        async with gate.post(path, {**ASKED[path], "stream": True}) as response:
            assert response.status == 200
            received = await response.read()
        last = chunks_of(received)[-1]
        kind = {CHAT: "error", "/v1/responses": "response event", "/v1/messages": "anthropic error"}[path]
        assert problems(kind, last) == []
        assert b"[DONE]" not in received
        await gate.at_rest()


@pytest.mark.parametrize("path", WORDS)
async def test_a_switch_inside_a_stream_has_its_shape(tmp_path: Path, path: str) -> None:
    talker = Rehearsal("main", reply="word " * 1000, token_ms=10)
    async with gateway(tmp_path, talker) as gate:
        async with gate.post(path, {**ASKED[path], "stream": True}) as response:
            received = await response.content.readany()
            await gate.kernel.switches.trip("all", cause="fire", actor="t")
            received += await response.read()
        kind = {CHAT: "error", "/v1/responses": "response event", "/v1/messages": "anthropic error"}[path]
        assert problems(kind, chunks_of(received)[-1]) == []
        await gate.at_rest()


async def test_paths_that_are_not_there_have_their_shape(tmp_path: Path) -> None:
    async with gateway(tmp_path) as gate:
        for path in ("/v1/nothing", "/", f"{MODELS}/nothing"):
            async with gate.http.get(gate.root + path) as response:
                await fits(response, 404, CHAT)


async def test_a_refusal_by_the_upstream_keeps_its_words(tmp_path: Path) -> None:
    told = b'{"error": {"message": "this model takes no images", "type": "invalid_request_error", "param": "messages"}}'
    async with scripted(tmp_path, refuses(400, told)) as (gate, _), gate.post(CHAT, ANY) as response:
        body = await fits(response, 400, CHAT)
        assert body["error"]["message"].endswith("this model takes no images")
        await gate.at_rest()


async def test_a_budget_that_binds_is_settled_with_what_was_reported(tmp_path: Path) -> None:
    async with scripted(tmp_path, ANSWERS["usage in detail"]) as (gate, _):
        await gate.kernel.treasury.set_budget("tenant:default", period="total", pico=PICO, tokens=None, actor="t")
        async with gate.post(CHAT, ANY) as response:
            told = (await response.json())["usage"]
        (step,) = await gate.recorded()
        assert (step["input_tokens"], step["output_tokens"]) == (told["prompt_tokens"], told["completion_tokens"])
        await gate.at_rest()


def chunks_of(received: bytes) -> list[Any]:  # Any: JSON
    """The payloads of a stream, without the closing `[DONE]` and without names of events."""
    lines = [line[6:] for line in received.splitlines() if line.startswith(b"data: ")]
    return [orjson.loads(line) for line in lines if line != b"[DONE]"]
