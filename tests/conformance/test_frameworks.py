"""LangChain and the command line tool `llm`, unchanged, pointed at the gateway.

They are installed by `make conformance`; without them these tests are skipped.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel
from tests.conformance.gateway import (
    CALLS_WEATHER,
    DONE,
    REPLY,
    Answer,
    chunk,
    delta,
    gateway,
    in_turn,
    needs,
    says,
    scripted,
    streams,
    until,
    usage,
)

pytestmark = [
    pytest.mark.timeout(60),
    pytest.mark.filterwarnings("default::DeprecationWarning"),  # theirs to mend
]
REASON = "a further client, which `make conformance` installs"


class City(BaseModel):
    """A city and how many live there."""

    name: str
    inhabitants: int


def weather(city: str) -> str:
    """The weather in a city."""
    return "rain"


@pytest.fixture
def langchain() -> Any:  # Any: a module that need not be there
    return pytest.importorskip("langchain_openai", reason=REASON)


@asynccontextmanager
async def chat_model(langchain: Any, url: str, **options: Any) -> AsyncIterator[Any]:  # Any: see above
    """LangChain leaves its connections open for ever; a test does not."""
    model = langchain.ChatOpenAI(model="auto", base_url=url, api_key="none", max_retries=0, **options)
    try:
        yield model
    finally:
        await model.root_async_client.close()
        model.root_client.close()


async def test_langchain_invokes_and_streams(tmp_path: Path, langchain: Any) -> None:
    async with gateway(tmp_path) as gate, chat_model(langchain, gate.url, stream_usage=True) as model:
        answer = await model.ainvoke("count")
        assert answer.content == REPLY
        assert answer.usage_metadata["output_tokens"] == 5
        assert answer.response_metadata["finish_reason"] == "stop"
        whole = None
        async for part in model.astream("count"):
            whole = part if whole is None else whole + part
        assert whole is not None
        assert whole.content == REPLY
        assert whole.usage_metadata["output_tokens"] == 5
        sync = await asyncio.to_thread(model.invoke, "count")
        assert sync.content == REPLY
        streamed = await asyncio.to_thread(lambda: "".join(part.content for part in model.stream("count")))
        assert streamed == REPLY
        await gate.at_rest()


async def test_langchain_binds_tools_and_reads_their_calls(tmp_path: Path, langchain: Any) -> None:
    messages = pytest.importorskip("langchain_core.messages", reason=REASON)
    answers = in_turn(CALLS_WEATHER, says("It rains"), CALLS_WEATHER)
    async with scripted(tmp_path, answers) as (gate, upstream), chat_model(langchain, gate.url) as plain:
        model = plain.bind_tools([weather])
        asked = [messages.HumanMessage("weather?")]
        first = await model.ainvoke(asked)
        (call,) = first.tool_calls
        assert (call["name"], call["args"], call["id"]) == ("weather", {"city": "Bern"}, "call_1")
        result = messages.ToolMessage(weather(**call["args"]), tool_call_id=call["id"])
        assert (await model.ainvoke([*asked, first, result])).content == "It rains"
        assert upstream.bodies[1]["messages"][2]["content"] == "rain"
        whole = None
        async for part in model.astream(asked):
            whole = part if whole is None else whole + part
        assert whole is not None
        assert whole.tool_calls[0]["args"] == {"city": "Bern"}


@pytest.mark.parametrize("method", ["json_schema", "json_mode", "function_calling"])
async def test_langchain_gets_structured_output(tmp_path: Path, langchain: Any, method: str) -> None:
    text = '{"name": "Bern", "inhabitants": 134506}'
    answer = says(text)
    if method == "function_calling":
        answer = _calls("City", text)
    async with scripted(tmp_path, answer) as (gate, _), chat_model(langchain, gate.url) as plain:
        model = plain.with_structured_output(City, method=method)
        assert await model.ainvoke("which city? answer in JSON") == City(name="Bern", inhabitants=134_506)


def _calls(name: str, arguments: str) -> Answer:
    call = {"index": 0, "id": "call_1", "type": "function", "function": {"name": name, "arguments": arguments}}
    return streams(chunk(delta(role="assistant", tool_calls=[call])), chunk(delta(end="tool_calls")), usage(), DONE)


@needs("/v1/responses")
async def test_langchain_speaks_the_newer_protocol(tmp_path: Path, langchain: Any) -> None:
    async with gateway(tmp_path) as gate, chat_model(langchain, gate.url, use_responses_api=True) as model:
        answer = await model.ainvoke("count")
        assert _text(answer) == REPLY
        parts = [part async for part in model.astream("count")]
        assert "".join(_text(part) for part in parts) == REPLY


@needs("/v1/messages")
async def test_langchain_speaks_anthropics_protocol(tmp_path: Path) -> None:
    langchain = pytest.importorskip("langchain_anthropic", reason=REASON)
    async with scripted(tmp_path, in_turn(says("one ", "two"), says("one ", "two"), CALLS_WEATHER)) as (gate, _):
        model = langchain.ChatAnthropic(model="auto", base_url=gate.root, api_key="none", max_retries=0, max_tokens=99)
        answer = await model.ainvoke("count")
        assert _text(answer) == "one two"
        assert answer.usage_metadata["output_tokens"] == 2
        assert "".join([_text(part) async for part in model.astream("count")]) == "one two"
        called = await model.bind_tools([weather]).ainvoke("weather?")
        assert called.tool_calls[0]["args"] == {"city": "Bern"}
        await model._async_client.close()
        model._client.close()


def _text(message: Any) -> str:  # Any: a message, whose text is a property or, in parts, a list
    content = message.content
    if isinstance(content, str):
        return content
    return "".join(part.get("text", "") for part in content if isinstance(part, dict))


# ── llm ──


async def test_the_command_line_tool_llm(tmp_path: Path) -> None:
    pytest.importorskip("llm", reason=REASON)
    home = tmp_path / "llm"
    home.mkdir()

    async def llm(*arguments: str) -> str:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "llm",
            *arguments,
            env=os.environ | {"LLM_USER_PATH": str(home), "OPENAI_API_KEY": "none"},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        told, complaint = await process.communicate()
        assert process.returncode == 0, complaint.decode()
        return told.decode().strip()

    async with gateway(tmp_path) as gate:
        listed = (
            f"- model_id: twolane\n  model_name: auto\n  api_base: {gate.url}\n"
            "  supports_schema: true\n  supports_tools: true\n"
        )
        (home / "extra-openai-models.yaml").write_text(listed)
        assert await llm("prompt", "-m", "twolane", "count") == REPLY
        assert await llm("prompt", "-m", "twolane", "--no-stream", "count") == REPLY
        assert await llm("prompt", "-m", "twolane", "-s", "be brief", "-o", "temperature", "0", "count") == REPLY
        await until(lambda: len(gate.steps()) == 3)
        await gate.at_rest()
