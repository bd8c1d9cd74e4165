"""OpenAI's newer protocol, and embeddings, with OpenAI's official client."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import openai
import pytest
from tests.conformance.gateway import CALLS_WEATHER, REPLY, gateway, in_turn, needs, says, scripted
from tests.conformance.test_openai_sdk import WEATHER, City, a_client, at_home

from twolane.models.rehearsal import Rehearsal

pytestmark = pytest.mark.timeout(30)


@needs("/v1/responses")
async def test_responses_whole_and_streamed(tmp_path: Path) -> None:
    async with at_home(tmp_path) as (gate, client):
        whole = await client.responses.create(model="auto", input="count", instructions="be brief", store=False)
        assert whole.output_text == REPLY
        assert whole.usage is not None
        assert whole.usage.output_tokens == 5
        async with client.responses.stream(model="auto", input="count") as stream:
            text = "".join([event.delta async for event in stream if event.type == "response.output_text.delta"])
            final = await stream.get_final_response()
        assert text == final.output_text == REPLY
        await gate.at_rest()


@needs("/v1/responses")
async def test_responses_with_the_synchronous_client(tmp_path: Path) -> None:
    def use(url: str) -> None:
        with openai.OpenAI(base_url=url, api_key="none", max_retries=0) as client:
            assert client.responses.create(model="auto", input="count").output_text == REPLY
            with client.responses.create(model="auto", input="count", stream=True) as stream:
                assert [event.type for event in stream][-1] == "response.completed"

    async with gateway(tmp_path) as gate:
        await asyncio.to_thread(use, gate.url)


@needs("/v1/responses")
async def test_responses_with_a_tool_and_its_result(tmp_path: Path) -> None:
    async with (
        scripted(tmp_path, in_turn(CALLS_WEATHER, says("It rains"))) as (gate, upstream),
        a_client(gate) as client,
    ):
        tool: Any = {
            "type": "function",
            "name": "weather",
            "parameters": WEATHER["function"]["parameters"],
            "strict": None,
        }
        first = await client.responses.create(model="auto", input="weather?", tools=[tool])
        (call,) = [item for item in first.output if item.type == "function_call"]
        assert (call.name, call.arguments, call.call_id) == ("weather", '{"city":"Bern"}', "call_1")
        said: Any = [
            {"role": "user", "content": "weather?"},
            call.model_dump(exclude_none=True),
            {"type": "function_call_output", "call_id": call.call_id, "output": "rain"},
        ]
        second = await client.responses.create(model="auto", input=said, tools=[tool])
        assert second.output_text == "It rains"
        assert upstream.bodies[1]["messages"][-1]["role"] == "tool"


@needs("/v1/responses")
async def test_responses_with_structured_output(tmp_path: Path) -> None:
    async with scripted(tmp_path, says('{"name": "Bern", "inhabitants": 1}')) as (gate, _), a_client(gate) as client:
        parsed = await client.responses.parse(model="auto", input="city?", text_format=City)
        assert parsed.output_parsed == City(name="Bern", inhabitants=1)


@needs("/v1/responses")
async def test_responses_fail_like_everything_else(tmp_path: Path) -> None:
    async with at_home(tmp_path, Rehearsal("main", reply=REPLY, faults="1st: cut 2")) as (gate, client):
        stream = await client.responses.create(model="auto", input="count", stream=True)
        seen: list[str] = []

        async def read() -> None:
            async for event in stream:
                seen.append(event.type)  # noqa: PERF401 - what was seen before the error counts

        with pytest.raises(openai.APIError, match="broke off"):
            await read()
        assert seen[-1] == "response.failed"
        with pytest.raises(openai.NotFoundError):
            await client.responses.create(model="auot", input="count")
        await gate.at_rest()


@needs("/v1/embeddings")
async def test_embeddings_of_one_text_and_of_several(tmp_path: Path) -> None:
    async with at_home(tmp_path) as (gate, client):
        one = await client.embeddings.create(model="auto", input="a text")
        several = await client.embeddings.create(model="auto", input=["a text", "another"], encoding_format="float")
        assert [each.index for each in several.data] == [0, 1]
        assert one.data[0].embedding == pytest.approx(several.data[0].embedding, abs=1e-6)
        assert one.usage.prompt_tokens > 0
        await gate.at_rest()
