"""Anthropic's dialect against a server that speaks it, well and badly."""

from __future__ import annotations

import asyncio
import dataclasses
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import orjson
import pytest
from aiohttp import web
from tests.servers import served

from twolane.config import Config, UpstreamSection
from twolane.domain.completion import Completion
from twolane.domain.records import Message, ModelCall, Native, ReplySchema, Usage
from twolane.errors import ConfigError, UpstreamError
from twolane.kernel import Kernel
from twolane.models.anthropic import Anthropic

KEY = "sk-ant-secret-0123456789"
CALL = ModelCall((Message("system", "be brief"), Message("user", "hello")), "m-1", 50)
Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass
class Server:
    """What a test's server answers, and what it was asked."""

    answer: Answer
    url: str = ""
    bodies: list[dict[str, Any]] = field(default_factory=list)  # Any: JSON
    headers: list[dict[str, str]] = field(default_factory=list)
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when a client has left before its answer's end."""

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.bodies.append(orjson.loads(await request.read()))
        self.headers.append({name.lower(): value for name, value in request.headers.items()})
        try:
            return await self.answer(request)
        except (asyncio.CancelledError, ConnectionError):
            self.gone.set()
            raise


@asynccontextmanager
async def serving(answer: Answer) -> AsyncIterator[Server]:
    server = Server(answer)
    async with served("/v1/messages", server.handle) as url:
        server.url = url
        yield server


@asynccontextmanager
async def opened(url: str, *, structured: str = "json_schema") -> AsyncIterator[Anthropic]:
    model = Anthropic("up", url=url, key=KEY, structured=structured)
    try:
        yield model
    finally:
        await model.aclose()


def event(kind: str, **fields: object) -> bytes:
    return f"event: {kind}\n".encode() + b"data: " + orjson.dumps({"type": kind, **fields}) + b"\n\n"


def said(index: int, **delta: object) -> bytes:
    return event("content_block_delta", index=index, delta=delta)


def text(words: str) -> bytes:
    return said(0, type="text_delta", text=words)


BEGUN = {"input_tokens": 5, "cache_read_input_tokens": 4, "cache_creation_input_tokens": 1, "output_tokens": 1}
START = event("message_start", message={"id": "msg_1", "model": "claude", "content": [], "usage": BEGUN})
PING = event("ping")
OPEN = event("content_block_start", index=0, content_block={"type": "text", "text": ""})
CLOSE = event("content_block_stop", index=0)
END = event("message_delta", delta={"stop_reason": "end_turn", "stop_sequence": None}, usage={"output_tokens": 3})
STOP = event("message_stop")
WHOLE = (START, PING, OPEN, text("hel"), text("lo"), CLOSE, END, STOP)


def streamed(*blocks: bytes) -> Answer:
    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream", "request-id": "req_1"})
        await response.prepare(request)
        for block in blocks:
            await response.write(block)
        return response

    return answer


def status(number: int, body: object = b"", **headers: str) -> Answer:
    async def answer(_: web.Request) -> web.StreamResponse:
        data = body if isinstance(body, bytes) else orjson.dumps(body)
        return web.Response(
            status=number, body=data, headers={name.replace("_", "-"): value for name, value in headers.items()}
        )

    return answer


def fault(kind: str, message: str) -> dict[str, object]:
    return {"type": "error", "error": {"type": kind, "message": message}, "request_id": "req_1"}


async def refusal(answer: Answer, call: ModelCall = CALL) -> UpstreamError:
    async with serving(answer) as server, opened(server.url) as model:
        with pytest.raises(UpstreamError) as refused:
            await model.open(call)
        return refused.value


async def read(answer: Answer, call: ModelCall = CALL, *, structured: str = "json_schema") -> Completion:
    async with serving(answer) as server, opened(server.url, structured=structured) as model:
        completion = Completion()
        async for block in await model.open(call):
            completion.feed(block)
        return completion


async def broken(*blocks: bytes) -> tuple[str, UpstreamError]:
    """The text before an answer broke off, and why it did."""
    async with serving(streamed(*blocks)) as server, opened(server.url) as model:
        completion, stream = Completion(), await model.open(CALL)
        try:
            async for block in stream:
                completion.feed(block)
        except UpstreamError as error:
            return completion.text, error
        pytest.fail("it did not break off")


# ── answers ──


async def test_an_answer_comes_as_chunks_with_its_usage() -> None:
    async with serving(streamed(*WHOLE)) as server, opened(server.url) as model:
        completion = Completion()
        stream = await model.open(CALL)
        async for block in stream:
            completion.feed(block)
        assert (completion.text, completion.finish_reason, completion.is_done) == ("hello", "stop", True)
        assert completion.usage == Usage(10, 3, cache_read_tokens=4, cache_write_tokens=1)
        assert stream.headers["request-id"] == "req_1"
        told = server.headers[0]
        assert (told["x-api-key"], told["anthropic-version"]) == (KEY, "2023-06-01")
        assert "authorization" not in told
        assert server.bodies[0] == {
            "model": "m-1",
            "max_tokens": 50,
            "system": "be brief",
            "messages": [{"role": "user", "content": [{"type": "text", "text": "hello"}]}],
            "stream": True,
        }


async def test_an_answer_may_be_cut_into_blocks_anywhere() -> None:
    stream = b"".join(WHOLE)
    completion = await read(streamed(*(stream[at : at + 7] for at in range(0, len(stream), 7))))
    assert (completion.text, completion.is_done) == ("hello", True)


async def test_tool_calls_come_as_chunks() -> None:
    use = event("content_block_start", index=0, content_block={"type": "tool_use", "id": "t", "name": "f", "input": {}})
    parts = [said(0, type="input_json_delta", partial_json=part) for part in ("", '{"a":', "1}")]
    end = event("message_delta", delta={"stop_reason": "tool_use"}, usage={"output_tokens": 3})
    completion = await read(streamed(START, use, *parts, CLOSE, end, STOP))
    message: Any = completion.choices[0]["message"]
    assert message["tool_calls"] == [{"id": "t", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}]
    assert completion.finish_reason == "tool_calls"


async def test_a_reply_by_tool_is_text() -> None:
    use = event(
        "content_block_start", index=0, content_block={"type": "tool_use", "id": "t", "name": "reply", "input": {}}
    )
    end = event("message_delta", delta={"stop_reason": "tool_use"}, usage={"output_tokens": 3})
    answer = streamed(START, use, said(0, type="input_json_delta", partial_json='{"a":1}'), CLOSE, end, STOP)
    call = dataclasses.replace(CALL, schema=ReplySchema("r", {"type": "object"}))
    completion = await read(answer, call, structured="json_object")
    assert (completion.text, completion.finish_reason) == ('{"a":1}', "stop")


@pytest.mark.parametrize("is_judged", [True, False])
async def test_a_model_that_refuses_the_apis_own_means_is_asked_by_a_tool_where_the_reply_is_judged(
    is_judged: bool,
) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        if "output_config" in orjson.loads(await request.read()):
            error = {"type": "invalid_request_error", "message": "output_config: Extra inputs are not permitted"}
            return web.json_response({"type": "error", "error": error}, status=400)
        use = {"type": "tool_use", "id": "t", "name": "reply", "input": {}}
        end = event("message_delta", delta={"stop_reason": "tool_use"}, usage={"output_tokens": 3})
        part = said(0, type="input_json_delta", partial_json='{"a":1}')
        start = event("content_block_start", index=0, content_block=use)
        return await streamed(START, start, part, CLOSE, end, STOP)(request)

    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    call = dataclasses.replace(CALL, schema=ReplySchema("r", schema, is_judged=is_judged))
    async with serving(answer) as server, opened(server.url) as model:
        if not is_judged:
            with pytest.raises(UpstreamError, match="Extra inputs are not permitted"):
                await model.open(call)
            assert len(server.bodies) == 1
            return
        for requests in (2, 3):  # the second time it is known
            completion = Completion()
            async for block in await model.open(call):
                completion.feed(block)
            assert (completion.text, completion.finish_reason, len(server.bodies)) == ('{"a":1}', "stop", requests)
        assert server.bodies[1]["tool_choice"] == {"type": "tool", "name": "reply"}


async def test_the_same_dialect_loses_nothing() -> None:
    body = {"model": "auto", "max_tokens": 99, "messages": [], "system": [{"type": "text", "cache_control": {}}]}
    native = Native("anthropic", body, {"anthropic-beta": "a,b", "x-api-key": "tl-ours", "anthropic-version": "1"})
    async with serving(streamed(*WHOLE)) as server, opened(server.url) as model:
        completion = Completion()
        async for block in await model.open(dataclasses.replace(CALL, native=native)):
            completion.feed(block)
        assert server.bodies == [{**body, "model": "m-1", "max_tokens": 50, "stream": True}]
        told = server.headers[0]
        assert (told["anthropic-beta"], told["x-api-key"], told["anthropic-version"]) == ("a,b", KEY, "2023-06-01")
    assert [found["type"] for found in completion.events] == [
        "message_start", "content_block_start", "content_block_delta", "content_block_delta", "content_block_stop",
        "message_delta", "message_stop",
    ]  # fmt: skip
    assert (completion.text, completion.usage) == ("hello", Usage(10, 3, 4, 1))


async def test_a_request_in_another_dialect_is_translated() -> None:
    native = Native("responses", {"input": "hello"})
    async with serving(streamed(*WHOLE)) as server, opened(server.url) as model:
        async for block in await model.open(dataclasses.replace(CALL, native=native)):
            assert b'"anthropic"' not in block
        assert "input" not in server.bodies[0]


async def test_connections_are_used_again_after_a_whole_answer() -> None:
    ports: set[int] = set()

    async def answer(request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        ports.add(request.transport.get_extra_info("peername")[1])
        return await streamed(*WHOLE)(request)

    async with serving(answer) as server, opened(server.url) as model:
        for _ in range(3):
            stream = await model.open(CALL)
            assert [block async for block in stream]
            stream.close()
        assert len(ports) == 1


async def test_closing_an_answer_closes_its_socket_at_once() -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(START + OPEN + text("a"))
        await asyncio.Event().wait()
        return response

    async with serving(answer) as server, opened(server.url) as model:
        stream = await model.open(CALL)
        blocks = aiter(stream)
        assert b'"role":"assistant"' in await anext(blocks)
        stream.close()
        stream.close()
        await asyncio.wait_for(server.gone.wait(), 5)


async def test_a_server_that_hangs_waits_for_nobody_but_us() -> None:
    """Patience is the door's: the adapter waits, and can be cancelled while it does."""

    async def answer(request: web.Request) -> web.StreamResponse:
        await asyncio.Event().wait()
        return web.Response()

    async with serving(answer) as server, opened(server.url) as model:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(model.open(CALL), 0.05)
        await asyncio.wait_for(server.gone.wait(), 5)


async def test_an_answer_that_breaks_off_is_an_upstream_error() -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        response = await streamed(START, OPEN, text("a"))(request)
        assert request.transport is not None
        request.transport.abort()
        return response

    async with serving(answer) as server, opened(server.url) as model:
        stream = await model.open(CALL)
        with pytest.raises(UpstreamError, match="broke off") as refused:
            async for _ in stream:
                pass
        stream.close()
        assert (refused.value.retryable, refused.value.is_gone) == (True, False)


async def test_an_answer_without_its_end_is_not_done() -> None:
    assert not (await read(streamed(START, OPEN, text("a"), CLOSE))).is_done


# ── errors in the stream ──


@pytest.mark.parametrize(
    ("kind", "retryable"),
    [("overloaded_error", True), ("api_error", True), ("rate_limit_error", True), ("invalid_request_error", False)],
)
async def test_an_error_in_the_stream_says_whether_to_try_again(kind: str, retryable: bool) -> None:
    words, error = await broken(START, OPEN, text("a"), event("error", error=fault(kind, "too busy")["error"]))
    assert words == "a"
    assert (error.retryable, error.http_status, error.is_gone) == (retryable, None, False)
    assert error.problem == f"it answered with an error in its stream ({kind})"
    assert error.detail == "too busy"


async def test_an_error_in_the_stream_holds_no_key_and_no_words_for_the_ledger() -> None:
    _, error = await broken(event("error", error={"type": f"the prompt {KEY}", "message": f"bad key {KEY}"}))
    assert KEY not in str(error)
    assert error.problem == "it answered with an error in its stream (error)"


async def test_what_is_no_event_is_an_upstream_error() -> None:
    _, error = await broken(START, b"data: no json\n\n")
    assert error.problem == "its stream does not hold a message"


# ── refusals ──


@pytest.mark.parametrize(
    ("number", "kind", "retryable"),
    [(400, "invalid_request_error", False), (401, "authentication_error", False), (404, "not_found_error", False),
     (413, "request_too_large", False), (429, "rate_limit_error", True), (500, "api_error", True),
     (529, "overloaded_error", True)],
)  # fmt: skip
async def test_a_status_says_whether_to_try_again(number: int, kind: str, retryable: bool) -> None:
    error = await refusal(status(number, fault(kind, "the reason"), retry_after="7"))
    assert (error.http_status, error.retryable, error.retry_after_s) == (number, retryable, 7.0)
    assert str(error) == f"upstream up: it answered {number}: the reason"
    assert error.headers["retry-after"] == "7"


@pytest.mark.parametrize(("told", "retryable"), [("true", True), ("false", False)])
async def test_the_servers_own_word_on_trying_again_counts(told: str, retryable: bool) -> None:
    assert (await refusal(status(429, x_should_retry=told))).retryable is retryable


@pytest.mark.parametrize("after", ["Wed, 21 Oct 2026 07:28:00 GMT", "nan", "inf", "-5"])
async def test_a_delay_that_makes_no_sense_is_none(after: str) -> None:
    assert (await refusal(status(429, retry_after=after))).retry_after_s is None


@pytest.mark.parametrize("body", [b"<html>Bad Gateway</html>", b"[1]", b'{"error": 1}'])
async def test_odd_errors_are_quoted(body: bytes) -> None:
    assert (await refusal(status(502, body))).detail == body.decode()


@pytest.mark.parametrize("before", [0, 290, 299])
async def test_the_key_is_in_no_message_even_where_the_message_is_cut(before: int) -> None:
    words = "x" * before + KEY
    for body in (words.encode(), fault("authentication_error", words)):
        assert KEY[:8] not in str(await refusal(status(401, body)))


async def test_a_redirect_is_not_followed_and_carries_the_key_nowhere() -> None:
    async with serving(streamed(*WHOLE)) as other:
        error = await refusal(status(307, location=f"{other.url}/v1/messages"))
        assert (error.http_status, error.retryable, other.bodies) == (307, False, [])


async def test_nobody_listening_is_gone_and_worth_another_try() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        async with opened(f"http://127.0.0.1:{taken.getsockname()[1]}") as model:
            with pytest.raises(UpstreamError, match="cannot be reached") as refused:
                await model.open(CALL)
    assert (refused.value.is_gone, refused.value.retryable, refused.value.http_status) == (True, True, None)


async def test_what_cannot_be_told_is_refused_before_it_is_sent() -> None:
    async with serving(streamed(*WHOLE)) as server, opened(server.url) as model:
        with pytest.raises(UpstreamError, match="'n' must be 1") as refused:
            await model.open(dataclasses.replace(CALL, extras={"n": 2}))
        assert (refused.value.status, refused.value.retryable, server.bodies) == (400, False, [])


# ── the configuration ──


def section(**fields: object) -> UpstreamSection:
    return UpstreamSection.model_validate({"kind": "anthropic", "model": "m", "key": "env:K", **fields})


@pytest.mark.parametrize(
    "fields", [{"model": ""}, {"key": None}, {"url": "ftp://x"}, {"url": "https://user:secret@x/"}]
)
def test_a_section_that_cannot_work_is_refused(fields: Mapping[str, object]) -> None:
    with pytest.raises(ValueError, match='kind = "anthropic"'):
        section(**fields)


@pytest.mark.parametrize("url", ["http://h", "http://h/", "http://h/v1", "http://h/v1/"])
def test_an_address_may_end_with_v1(url: str) -> None:
    assert section(url=url).url == url
    assert Anthropic("up", url=url, key=KEY)._url == "http://h/v1"


async def test_the_kernel_opens_it(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    fields = {"kind": "anthropic", "model": "m", "key": "env:A_KEY", "unpriced": "allow"}
    config = Config.model_validate(
        {"store": f"sqlite:{tmp_path / 'store.db'}", "upstream": {"claude": fields}, "route": {}}
    )
    with pytest.raises(ConfigError, match="A_KEY"):
        await Kernel.open(config)
    monkeypatch.setenv("A_KEY", KEY)
    kernel = await Kernel.open(config)
    try:
        model = kernel.upstreams["claude"].model
        assert isinstance(model, Anthropic)
        assert model._url == "https://api.anthropic.com/v1"
    finally:
        await kernel.aclose()
