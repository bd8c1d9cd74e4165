"""OpenAI's official client, used as its users use it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam, ChatCompletionToolParam
from pydantic import BaseModel
from tests.conformance.gateway import (
    CALLS_WEATHER,
    DONE,
    REPLY,
    Gateway,
    chunk,
    delta,
    gateway,
    hangs,
    in_turn,
    refuses,
    says,
    scripted,
    streams,
    until,
    usage,
)

from twolane.models.rehearsal import Rehearsal
from twolane.online.auth import create_key

pytestmark = pytest.mark.timeout(30)

SAY: list[ChatCompletionMessageParam] = [{"role": "user", "content": "count"}]
WEATHER: ChatCompletionToolParam = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
}


class City(BaseModel):
    """What is asked for in the tests of structured output."""

    name: str
    inhabitants: int


def a_client(gate: Gateway, **options: Any) -> openai.AsyncOpenAI:  # Any: options of the client
    return openai.AsyncOpenAI(**{"base_url": gate.url, "api_key": "none", "max_retries": 0, **options})


@asynccontextmanager
async def at_home(folder: Path, model: Rehearsal | None = None) -> AsyncIterator[tuple[Gateway, openai.AsyncOpenAI]]:
    async with gateway(folder, model) as gate, a_client(gate) as client:
        yield gate, client


async def test_the_openai_client_is_at_home_here(tmp_path: Path) -> None:
    async with at_home(tmp_path) as (_, client):
        whole = await client.chat.completions.create(model="auto", messages=SAY)
        assert whole.choices[0].message.content == REPLY
        assert whole.usage is not None
        assert whole.usage.completion_tokens == 5
        stream = await client.chat.completions.create(model="auto", messages=SAY, stream=True)
        assert "".join([each.choices[0].delta.content or "" async for each in stream]) == REPLY
        assert {model.id async for model in client.models.list()} == {"auto", "main"}
        assert (await client.models.retrieve("auto")).id == "auto"


async def test_the_synchronous_client_is_at_home_too(tmp_path: Path) -> None:
    def use(url: str) -> None:
        with openai.OpenAI(base_url=url, api_key="none", max_retries=0) as client:
            whole = client.chat.completions.create(model="auto", messages=SAY)
            assert whole.choices[0].message.content == REPLY
            with client.chat.completions.create(model="auto", messages=SAY, stream=True) as stream:
                assert "".join(each.choices[0].delta.content or "" for each in stream) == REPLY
            with client.chat.completions.stream(model="auto", messages=SAY) as events:
                assert events.get_final_completion().choices[0].message.content == REPLY
            assert {model.id for model in client.models.list()} == {"auto", "main"}
            with pytest.raises(openai.NotFoundError):
                client.chat.completions.create(model="nothing", messages=SAY)

    async with gateway(tmp_path) as gate:
        await asyncio.to_thread(use, gate.url)
        await gate.at_rest()


async def test_raw_and_streaming_responses_show_the_headers(tmp_path: Path) -> None:
    async with at_home(tmp_path) as (_, client):
        raw = await client.chat.completions.with_raw_response.create(model="auto", messages=SAY)
        assert raw.headers["x-twolane-route"] == "auto"
        assert raw.headers["x-request-id"] == raw.request_id
        assert raw.parse().choices[0].message.content == REPLY
        async with client.chat.completions.with_streaming_response.create(
            model="auto", messages=SAY, stream=True
        ) as response:
            lines = [line async for line in response.iter_lines() if line]
        assert lines[-1] == "data: [DONE]"
        assert all(line.startswith("data: ") for line in lines)


@pytest.mark.parametrize("asks", [True, False])
async def test_usage_is_in_the_stream_for_those_who_asked(tmp_path: Path, asks: bool) -> None:
    async with at_home(tmp_path) as (_, client):
        stream = await client.chat.completions.create(
            model="auto", messages=SAY, stream=True, stream_options={"include_usage": asks}
        )
        told = [each.usage for each in [each async for each in stream] if each.usage]
    assert [each.completion_tokens for each in told] == ([5] if asks else [])


async def test_a_round_with_a_tool(tmp_path: Path) -> None:
    answers = in_turn(CALLS_WEATHER, says("It ", "rains"))
    async with scripted(tmp_path, answers) as (gate, upstream), a_client(gate) as client:
        first = await client.chat.completions.create(
            model="auto", messages=SAY, tools=[WEATHER], tool_choice="auto", parallel_tool_calls=False
        )
        (choice,) = first.choices
        assert choice.finish_reason == "tool_calls"
        assert choice.message.tool_calls is not None
        (call,) = choice.message.tool_calls
        assert call.type == "function"
        assert (call.id, call.function.name, call.function.arguments) == ("call_1", "weather", '{"city":"Bern"}')
        said: Any = choice.message.model_dump(exclude_none=True)  # Any: as their own examples send it back
        second = await client.chat.completions.create(
            model="auto",
            messages=[*SAY, said, {"role": "tool", "tool_call_id": call.id, "content": "rain"}],
            tools=[WEATHER],
        )
        assert second.choices[0].message.content == "It rains"
    assert upstream.bodies[0]["tools"] == [WEATHER]
    assert upstream.bodies[0]["tool_choice"] == "auto"
    assert upstream.bodies[0]["parallel_tool_calls"] is False
    assert upstream.bodies[1]["messages"][2] == {"role": "tool", "tool_call_id": "call_1", "content": "rain"}
    assert upstream.bodies[1]["messages"][1]["tool_calls"][0]["id"] == "call_1"


async def test_a_tool_call_arrives_in_pieces_in_a_stream(tmp_path: Path) -> None:
    async with scripted(tmp_path, CALLS_WEATHER) as (gate, _), a_client(gate) as client:
        async with client.chat.completions.stream(model="auto", messages=SAY, tools=[WEATHER]) as stream:
            kinds = {event.type async for event in stream}
            final = await stream.get_final_completion()
        assert {"tool_calls.function.arguments.delta", "tool_calls.function.arguments.done"} <= kinds
        assert final.choices[0].message.tool_calls is not None
        assert final.choices[0].message.tool_calls[0].function.arguments == '{"city":"Bern"}'


async def test_structured_output_comes_back_as_the_class_it_was_asked_for(tmp_path: Path) -> None:
    answer = says('{"name": "Bern", ', '"inhabitants": 134506}')
    async with scripted(tmp_path, answer) as (gate, upstream), a_client(gate) as client:
        parsed = await client.chat.completions.parse(model="auto", messages=SAY, response_format=City)
        assert parsed.choices[0].message.parsed == City(name="Bern", inhabitants=134_506)
        async with client.chat.completions.stream(model="auto", messages=SAY, response_format=City) as stream:
            final = await stream.get_final_completion()
        assert final.choices[0].message.parsed == City(name="Bern", inhabitants=134_506)
    for body in upstream.bodies:
        wanted = body["response_format"]
        assert wanted["type"] == "json_schema"
        assert (wanted["json_schema"]["name"], wanted["json_schema"]["strict"]) == ("City", True)
        assert set(wanted["json_schema"]["schema"]["properties"]) == {"name", "inhabitants"}


async def test_a_rehearsal_fills_in_a_schema_too(tmp_path: Path) -> None:
    async with at_home(tmp_path, Rehearsal("main")) as (_, client):
        parsed = await client.chat.completions.parse(model="auto", messages=SAY, response_format=City)
        assert isinstance(parsed.choices[0].message.parsed, City)


async def test_several_choices_are_kept_apart(tmp_path: Path) -> None:
    answer = streams(
        chunk(delta(0, role="assistant", content="a")),
        chunk(delta(1, role="assistant", content="b")),
        chunk(delta(1, content="B"), delta(0, content="A")),
        chunk(delta(1, end="length"), delta(0, end="stop")),
        usage(),
        DONE,
    )
    async with scripted(tmp_path, answer) as (gate, upstream), a_client(gate) as client:
        whole = await client.chat.completions.create(model="auto", messages=SAY, n=2)
        assert [each.message.content for each in whole.choices] == ["aA", "bB"]
        assert [each.finish_reason for each in whole.choices] == ["stop", "length"]
        assert upstream.bodies[0]["n"] == 2


async def test_log_probabilities_pass_through(tmp_path: Path) -> None:
    token = {"token": "hi", "logprob": -0.5, "bytes": [104, 105], "top_logprobs": []}
    answer = streams(
        chunk(delta(role="assistant", content="hi", logprobs={"content": [token], "refusal": None})),
        chunk(delta(end="stop")),
        usage(),
        DONE,
    )
    async with scripted(tmp_path, answer) as (gate, upstream), a_client(gate) as client:
        whole = await client.chat.completions.create(
            model="auto", messages=SAY, logprobs=True, top_logprobs=2, seed=7, logit_bias={"5": -1}
        )
        assert whole.choices[0].logprobs is not None
        assert whole.choices[0].logprobs.content is not None
        assert whole.choices[0].logprobs.content[0].logprob == -0.5
        body = upstream.bodies[0]
        assert (body["logprobs"], body["top_logprobs"], body["seed"]) == (True, 2, 7)
        assert body["logit_bias"] == {"5": -1}


async def test_a_stream_that_is_closed_or_cancelled_ends_the_upstream(tmp_path: Path) -> None:
    first = chunk(delta(role="assistant", content="one"))
    async with scripted(tmp_path, hangs(first)) as (gate, upstream), a_client(gate) as client:
        stream = await client.chat.completions.create(model="auto", messages=SAY, stream=True)
        assert (await anext(aiter(stream))).choices[0].delta.content == "one"
        assert upstream.active == 1
        await stream.close()
        await until(lambda: not upstream.active)
        await gate.at_rest()

        async def read() -> None:
            async for _ in await client.chat.completions.create(model="auto", messages=SAY, stream=True):
                pass

        reading = asyncio.create_task(read())
        await until(lambda: upstream.active)
        reading.cancel()
        await until(lambda: not upstream.active)
        await gate.at_rest()
        assert [step["status"] for step in await gate.recorded(2)] == ["cancelled", "cancelled"]


async def test_a_spent_budget_is_asked_about_once(tmp_path: Path) -> None:
    async with gateway(tmp_path) as gate, a_client(gate, max_retries=3) as client:
        await gate.kernel.treasury.set_budget("tenant:default", period="total", pico=1, tokens=None, actor="t")
        asked = _counted(client)
        with pytest.raises(openai.RateLimitError) as refused:
            await client.chat.completions.create(model="auto", messages=SAY)
        assert len(asked) == 1
        assert (refused.value.code, refused.value.type) == ("insufficient_quota", "insufficient_quota")
        assert refused.value.request_id == refused.value.response.headers["x-request-id"]
        await gate.at_rest()


async def test_an_upstream_that_says_when_is_asked_again_then(tmp_path: Path) -> None:
    busy = in_turn(refuses(429, retry_after_ms="120"), refuses(503, retry_after_ms="80"), says("at last"))
    async with scripted(tmp_path, busy) as (gate, upstream), a_client(gate, max_retries=3) as client:
        began = time.monotonic()
        answer = await client.chat.completions.create(model="auto", messages=SAY)
        took = time.monotonic() - began
        assert answer.choices[0].message.content == "at last"
        assert len(upstream.bodies) == 3
        assert took >= 0.2
        statuses = [step["status"] for step in await gate.recorded(3)]
        assert statuses == ["failed", "failed", "ok"]


def _counted(client: openai.AsyncOpenAI) -> list[object]:
    """Every request that the client sends from now on."""
    sent: list[object] = []

    async def count(request: object) -> None:
        sent.append(request)

    client._client.event_hooks["request"].append(count)
    return sent


async def test_errors_carry_what_an_operator_needs(tmp_path: Path) -> None:
    async with gateway(tmp_path) as gate, a_client(gate) as client:
        with pytest.raises(openai.NotFoundError) as missing:
            await client.chat.completions.create(model="auot", messages=SAY)
        assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
        assert missing.value.request_id
        with pytest.raises(openai.BadRequestError) as wrong:
            await client.chat.completions.create(model="auto", messages=[])
        assert wrong.value.param == "messages"
        await create_key(gate.kernel, "legal", "ci")
        with pytest.raises(openai.AuthenticationError) as refused:
            await client.chat.completions.create(model="auto", messages=SAY)
        assert refused.value.code == "invalid_api_key"
        with pytest.raises(openai.AuthenticationError):
            await client.models.list()


async def test_a_key_opens_for_the_client_that_shows_it(tmp_path: Path) -> None:
    async with gateway(tmp_path) as gate:
        key = await create_key(gate.kernel, "legal", "ci", ["main"])
        async with a_client(gate, api_key=key) as client:
            assert [model.id async for model in client.models.list()] == ["main"]
            assert (await client.chat.completions.create(model="main", messages=SAY)).choices
            with pytest.raises(openai.PermissionDeniedError):
                await client.chat.completions.create(model="auto", messages=SAY)


async def test_an_error_in_mid_stream_is_raised(tmp_path: Path) -> None:
    async with at_home(tmp_path, Rehearsal("main", faults="always: error 2")) as (_, client):
        with pytest.raises(openai.APIError, match="the upstream failed"):
            async for _ in await client.chat.completions.create(model="auto", messages=SAY, stream=True):
                pass
