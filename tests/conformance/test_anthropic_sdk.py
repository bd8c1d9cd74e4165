"""Anthropic's official client, used as its users use it, with an upstream that speaks OpenAI's dialect."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import anthropic
import pytest
from anthropic.types import MessageParam, ToolParam
from tests.conformance.gateway import (
    CALLS_WEATHER,
    REPLY,
    Gateway,
    chunk,
    delta,
    gateway,
    hangs,
    in_turn,
    needs,
    refuses,
    says,
    scripted,
    until,
)

from twolane.models.rehearsal import Rehearsal
from twolane.online.auth import create_key

pytestmark = [pytest.mark.timeout(30), needs("/v1/messages")]

SAY: list[MessageParam] = [{"role": "user", "content": "count"}]
WEATHER: ToolParam = {
    "name": "weather",
    "description": "the weather in a city",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}},
}


def a_client(gate: Gateway, **options: Any) -> anthropic.AsyncAnthropic:  # Any: options of the client
    return anthropic.AsyncAnthropic(**{"base_url": gate.root, "api_key": "none", "max_retries": 0, **options})


async def test_whole_answers_and_streams(tmp_path: Path) -> None:
    async with gateway(tmp_path) as gate, a_client(gate) as client:
        whole = await client.messages.create(model="auto", max_tokens=100, messages=SAY, system="be brief")
        assert [block.text for block in whole.content if block.type == "text"] == [REPLY]
        assert (whole.stop_reason, whole.usage.output_tokens) == ("end_turn", 5)
        async with client.messages.stream(model="auto", max_tokens=100, messages=SAY) as stream:
            text = "".join([each async for each in stream.text_stream])
            final = await stream.get_final_message()
        assert text == REPLY
        assert final.usage.output_tokens == 5
        assert (await client.models.retrieve("auto")).display_name == "auto"
        assert {model.id async for model in client.models.list()} == {"auto", "main"}
        await gate.at_rest()


async def test_the_synchronous_client_is_at_home_too(tmp_path: Path) -> None:
    def use(root: str) -> None:
        with anthropic.Anthropic(base_url=root, api_key="none", max_retries=0) as client:
            whole = client.messages.create(model="auto", max_tokens=100, messages=SAY)
            assert [block.text for block in whole.content if block.type == "text"] == [REPLY]
            with client.messages.stream(model="auto", max_tokens=100, messages=SAY) as stream:
                assert "".join(stream.text_stream) == REPLY
            assert {model.id for model in client.models.list()} == {"auto", "main"}

    async with gateway(tmp_path) as gate:
        await asyncio.to_thread(use, gate.root)
        await gate.at_rest()


async def test_a_round_with_a_tool(tmp_path: Path) -> None:
    answers = in_turn(CALLS_WEATHER, says("It ", "rains"))
    async with scripted(tmp_path, answers) as (gate, upstream), a_client(gate) as client:
        first = await client.messages.create(
            model="auto", max_tokens=100, messages=SAY, tools=[WEATHER], tool_choice={"type": "auto"}
        )
        assert first.stop_reason == "tool_use"
        (call,) = [block for block in first.content if block.type == "tool_use"]
        assert (call.id, call.name, call.input) == ("call_1", "weather", {"city": "Bern"})
        said: Any = [  # Any: as their own examples send it back
            *SAY,
            {"role": "assistant", "content": [block.model_dump(exclude_none=True) for block in first.content]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": call.id, "content": "rain"}]},
        ]
        second = await client.messages.create(model="auto", max_tokens=100, messages=said, tools=[WEATHER])
        assert [block.text for block in second.content if block.type == "text"] == ["It rains"]
    tool = upstream.bodies[0]["tools"][0]
    assert (tool["type"], tool["function"]["name"]) == ("function", "weather")
    assert tool["function"]["parameters"] == WEATHER["input_schema"]
    assert upstream.bodies[1]["messages"][-1] == {"role": "tool", "tool_call_id": "call_1", "content": "rain"}


async def test_a_tool_call_arrives_in_pieces_in_a_stream(tmp_path: Path) -> None:
    async with scripted(tmp_path, CALLS_WEATHER) as (gate, _), a_client(gate) as client:
        async with client.messages.stream(model="auto", max_tokens=100, messages=SAY, tools=[WEATHER]) as stream:
            pieces = [event.partial_json async for event in stream if event.type == "input_json"]
            final = await stream.get_final_message()
        assert "".join(pieces) == '{"city":"Bern"}'
        assert [block.input for block in final.content if block.type == "tool_use"] == [{"city": "Bern"}]


async def test_a_stream_that_is_left_ends_the_upstream(tmp_path: Path) -> None:
    first = chunk(delta(role="assistant", content="one"))
    async with scripted(tmp_path, hangs(first)) as (gate, upstream), a_client(gate) as client:
        async with client.messages.stream(model="auto", max_tokens=100, messages=SAY) as stream:
            assert await anext(aiter(stream.text_stream)) == "one"
            assert upstream.active == 1
        await until(lambda: not upstream.active)
        await gate.at_rest()
        assert [step["status"] for step in await gate.recorded()] == ["cancelled"]


async def test_a_spent_budget_is_asked_about_once(tmp_path: Path) -> None:
    async with gateway(tmp_path) as gate, a_client(gate, max_retries=3) as client:
        await gate.kernel.treasury.set_budget("tenant:default", period="total", pico=1, tokens=None, actor="t")
        sent: list[object] = []

        async def count(request: object) -> None:
            sent.append(request)

        client._client.event_hooks["request"].append(count)
        with pytest.raises(anthropic.RateLimitError):
            await client.messages.create(model="auto", max_tokens=100, messages=SAY)
        assert len(sent) == 1
        await gate.at_rest()


async def test_a_busy_upstream_is_asked_again(tmp_path: Path) -> None:
    busy = in_turn(refuses(529, retry_after_ms="50"), says("at last"))
    async with scripted(tmp_path, busy) as (gate, upstream), a_client(gate, max_retries=2) as client:
        answer = await client.messages.create(model="auto", max_tokens=100, messages=SAY)
        assert [block.text for block in answer.content if block.type == "text"] == ["at last"]
        assert len(upstream.bodies) == 2


async def test_errors_are_the_classes_that_users_catch(tmp_path: Path) -> None:
    async with gateway(tmp_path) as gate, a_client(gate) as client:
        with pytest.raises(anthropic.NotFoundError):
            await client.messages.create(model="auot", max_tokens=100, messages=SAY)
        with pytest.raises(anthropic.BadRequestError):
            await client.messages.create(model="auto", max_tokens=100, messages=[])
        key = await create_key(gate.kernel, "legal", "ci")
        with pytest.raises(anthropic.AuthenticationError):
            await client.messages.create(model="auto", max_tokens=100, messages=SAY)
        async with a_client(gate, api_key=key) as known:
            assert (await known.messages.create(model="auto", max_tokens=100, messages=SAY)).content


async def test_an_error_in_mid_stream_is_raised(tmp_path: Path) -> None:
    failing = Rehearsal("main", reply=REPLY, faults="always: error 2")
    async with gateway(tmp_path, failing) as gate, a_client(gate) as client:
        with pytest.raises(anthropic.APIError):
            async for _ in await client.messages.create(model="auto", max_tokens=100, messages=SAY, stream=True):
                pass
        await gate.at_rest()
