"""The OpenAI dialect against a server that speaks it, well and badly."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

import orjson
import pytest
from aiohttp import web
from tests.servers import served

from twolane.domain.completion import Completion
from twolane.domain.records import Message, ModelCall, ReplySchema, Usage
from twolane.errors import UpstreamError
from twolane.models.openai import OpenAI

KEY = "sk-secret-0123456789"
CALL = ModelCall((Message("system", "be brief"), Message("user", "hello")), "m-1", 50)
SCHEMA = ReplySchema("A reply: ü", {"type": "object", "properties": {}})
Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass
class Server:
    """What a test's server answers, and what it was asked."""

    answer: Answer
    url: str = ""
    bodies: list[dict[str, object]] = field(default_factory=list)
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
    async with served("/v1/chat/completions", server.handle) as url:
        server.url = url + "/v1"
        yield server


@asynccontextmanager
async def opened(url: str, *, key: str | None = KEY, structured: str = "json_schema") -> AsyncIterator[OpenAI]:
    model = OpenAI("up", url=url, key=key, structured=structured)
    try:
        yield model
    finally:
        await model.aclose()


def chunk(text: str) -> bytes:
    return b"data: " + orjson.dumps({"choices": [{"index": 0, "delta": {"content": text}}]}) + b"\n\n"


USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":2}}\n\n'
DONE = b"data: [DONE]\n\n"


def streamed(*blocks: bytes) -> Answer:
    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        for block in blocks:
            await response.write(block)
        return response

    return answer


def status(number: int, body: bytes = b"", **headers: str) -> Answer:
    async def answer(_: web.Request) -> web.StreamResponse:
        return web.Response(
            status=number, body=body, headers={name.replace("_", "-"): value for name, value in headers.items()}
        )

    return answer


async def refusal(answer: Answer, *, key: str | None = KEY) -> UpstreamError:
    async with serving(answer) as server, opened(server.url, key=key) as model:
        with pytest.raises(UpstreamError) as refused:
            await model.open(CALL)
        return refused.value


async def asked(call: ModelCall, *, structured: str = "json_schema") -> dict[str, object]:
    """The body that a call becomes."""
    async with serving(streamed(DONE)) as server, opened(server.url, structured=structured) as model:
        async for _ in await model.open(call):
            pass
        return server.bodies[0]


# ── answers ──


async def test_an_answer_is_passed_on_as_it_came() -> None:
    async with serving(streamed(chunk("a"), chunk("b"), USAGE, DONE)) as server, opened(server.url) as model:
        completion = Completion()
        async for block in await model.open(CALL):
            completion.feed(block)
        assert (completion.text, completion.usage, completion.is_done) == ("ab", Usage(5, 2), True)
        assert server.headers[0]["authorization"] == f"Bearer {KEY}"


async def test_connections_are_used_again_after_a_whole_answer() -> None:
    ports: set[int] = set()

    async def answer(request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        ports.add(request.transport.get_extra_info("peername")[1])
        return await streamed(chunk("a"), DONE)(request)

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
        await response.write(chunk("a"))
        await asyncio.Event().wait()
        return response

    async with serving(answer) as server, opened(server.url) as model:
        stream = await model.open(CALL)
        blocks = aiter(stream)
        assert b'"a"' in await anext(blocks)
        stream.close()
        stream.close()
        await asyncio.wait_for(server.gone.wait(), 5)
        with pytest.raises((UpstreamError, StopAsyncIteration)):
            await anext(blocks)


async def test_an_answer_that_breaks_off_is_an_upstream_error() -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        response = await streamed(chunk("a"))(request)
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


# ── refusals ──


@pytest.mark.parametrize(
    "number, retryable, told",
    [(400, False, 400), (401, False, 401), (404, False, 404), (408, True, 408), (422, False, 422), (429, True, 429),
     (500, True, 502), (501, False, 502), (503, True, 502), (529, True, 502)],
)  # fmt: skip
async def test_a_status_says_whether_to_try_again(number: int, retryable: bool, told: int) -> None:
    error = await refusal(status(number, b'{"error": {"message": "the reason"}}'))
    assert (error.http_status, error.retryable, error.is_gone, error.status) == (number, retryable, False, told)
    assert f"it answered {number}: the reason" in str(error)


@pytest.mark.parametrize(
    "headers, seconds",
    [
        ({"retry_after": "2"}, 2.0),
        ({"retry_after": "0.5"}, 0.5),
        ({"retry_after_ms": "1500"}, 1.5),
        ({"retry_after_ms": "250", "retry_after": "9"}, 0.25),
        ({"retry_after": "0"}, 0.0),
        ({"retry_after": "Wed, 21 Oct 2026 07:28:00 GMT"}, None),
        ({"retry_after": "nan"}, None),
        ({"retry_after": "inf"}, None),
        ({"retry_after": "-5"}, None),
        ({}, None),
    ],
)
async def test_a_server_that_names_its_delay_is_quoted(headers: dict[str, str], seconds: float | None) -> None:
    assert (await refusal(status(429, b"", **headers))).retry_after_s == seconds


@pytest.mark.parametrize(
    "body, words",
    [
        (b'{"error": {"message": "m"}}', ": m"),
        (b'{"error": "plain"}', ": plain"),
        (b'{"detail": "Not Found"}', ": Not Found"),
        (b'{"message": "no such model", "object": "error"}', ": no such model"),
        (b'{"odd": 1}', ': {"odd": 1}'),
        (b"[1, 2]", ": [1, 2]"),
        (b"<html>Bad Gateway</html>", ": <html>Bad Gateway</html>"),
        (b"\xff\xfe", ": \ufffd\ufffd"),
        (b"", ": no reason given"),
    ],
)
async def test_the_servers_own_words_are_passed_on(body: bytes, words: str) -> None:
    assert str(await refusal(status(400, body))).endswith(words)


async def test_an_error_that_comes_in_pieces_is_read_whole() -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(status=400)
        await response.prepare(request)
        for part in (b'{"error": ', b'{"message": "in ', b'pieces"}}'):
            await response.write(part)  # a chunk and mostly a packet of its own
        return response

    assert str(await refusal(answer)).endswith(": in pieces")


async def test_an_endless_error_is_cut() -> None:
    assert len(str(await refusal(status(500, b"x" * 500_000)))) < 400


@pytest.mark.parametrize("before", [0, 290, 299])
async def test_the_key_is_in_no_message_even_where_the_message_is_cut(before: int) -> None:
    words = f"{'x' * before}Incorrect API key: {KEY}"[-(before + len(KEY) + 20) :]
    for body in (words.encode(), orjson.dumps({"error": {"message": words}}), b"x" * before + KEY.encode()):
        message = str(await refusal(status(401, body)))
        assert KEY[:8] not in message


async def test_a_redirect_is_not_followed_and_carries_the_key_nowhere() -> None:
    async with serving(streamed(DONE)) as other:
        error = await refusal(status(307, location=f"{other.url}/chat/completions"))
        assert (error.http_status, error.retryable, other.bodies) == (307, False, [])


async def test_nobody_listening_is_gone_and_worth_another_try() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
        async with opened(url) as model:
            with pytest.raises(UpstreamError, match="cannot be reached") as refused:
                await model.open(CALL)
    assert (refused.value.is_gone, refused.value.retryable, refused.value.http_status) == (True, True, None)
    assert KEY not in str(refused.value)


async def test_a_server_that_hangs_up_without_a_word_is_worth_another_try() -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    error = await refusal(answer)
    assert (error.retryable, error.is_gone, error.http_status) == (True, False, None)


# ── what is asked ──


async def test_a_call_is_always_streamed_bounded_and_asks_for_its_usage() -> None:
    assert await asked(CALL) == {
        "model": "m-1",
        "messages": [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hello"}],
        "max_tokens": 50,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


async def test_a_clients_further_fields_pass_but_decide_nothing_of_ours() -> None:
    extras = {"stop": ["."], "stream": False, "model": "other", "stream_options": {"x": 1, "include_usage": False}}
    body = await asked(ModelCall(CALL.messages, "m-1", 50, temperature=0.0, extras=extras))
    assert body["stop"] == ["."]
    assert (body["stream"], body["model"], body["temperature"]) == (True, "m-1", 0.0)
    assert body["stream_options"] == {"x": 1, "include_usage": True}


async def test_the_limit_goes_under_the_name_the_client_used() -> None:
    body = await asked(ModelCall(CALL.messages, "m-1", 50, extras={"max_completion_tokens": 4000}))
    assert body["max_completion_tokens"] == 50
    assert "max_tokens" not in body


async def test_messages_with_more_than_text_go_as_they_came() -> None:
    raw = ({"role": "user", "content": [{"type": "text", "text": "x"}], "name": "n"},)
    assert (await asked(ModelCall(CALL.messages, "m-1", 50, raw_messages=raw)))["messages"] == list(raw)


async def test_a_schema_is_asked_for_in_the_way_the_server_knows() -> None:
    call = ModelCall(CALL.messages, "m-1", 50, schema=SCHEMA)
    body = await asked(call)
    wire = {"name": "A_reply___", "schema": SCHEMA.schema, "strict": True}
    assert body["response_format"] == {"type": "json_schema", "json_schema": wire}
    for structured, form in (("json_object", {"type": "json_object"}), ("none", None)):
        body = await asked(call, structured=structured)
        assert body.get("response_format") == form
        messages = body["messages"]
        assert isinstance(messages, list)
        assert [message["role"] for message in messages] == ["system", "user", "user"]
        assert orjson.dumps(SCHEMA.schema).decode() in messages[1]["content"]
        assert messages[2]["content"] == "hello"


async def test_without_a_key_none_is_sent() -> None:
    async with serving(streamed(DONE)) as server, opened(server.url, key=None) as model:
        async for _ in await model.open(CALL):
            pass
        assert "authorization" not in server.headers[0]


# ── quirks ──


async def test_a_server_that_wants_another_field_gets_it_and_is_remembered() -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        asked = orjson.loads(await request.read())
        for wrong, right in (("max_tokens", "max_completion_tokens"), ("stream_options", "stream_options")):
            if wrong in asked:
                text = f"Unsupported parameter: '{wrong}' is not known here. Use '{right}' instead."
                return web.json_response({"error": {"message": text}}, status=400)
        return web.Response(body=chunk("hi") + DONE, content_type="text/event-stream")

    async with serving(answer) as server, opened(server.url) as model:
        for requests in (3, 4):
            assert b"".join([block async for block in await model.open(CALL)]).endswith(DONE)
            assert len(server.bodies) == requests
        assert server.bodies[-1]["max_completion_tokens"] == 50
        assert not {"max_tokens", "stream_options"} & server.bodies[-1].keys()


async def test_a_refusal_that_only_mentions_a_field_teaches_nothing() -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        return web.json_response({"error": {"message": "you said: stream_options"}}, status=400)

    async with serving(answer) as server, opened(server.url) as model:
        for requests in (2, 4):
            with pytest.raises(UpstreamError):
                await model.open(CALL)
            assert len(server.bodies) == requests
        assert "stream_options" in server.bodies[2]


JUDGED = replace(SCHEMA, is_judged=True)


@pytest.mark.parametrize(
    ("status", "words", "refused", "requests"),
    [
        (400, "Invalid schema for response_format 'A_reply___': 'x' is not permitted", {"strict"}, 2),
        (422, "response_format.type must be 'json_object' or 'text'", {"json_schema"}, 3),
        (500, "[{'loc': ('body', 'response_format', 'type'), 'msg': 'unexpected value'}]", {"json_schema"}, 3),
        (400, "This model does not support structured output", {"json_schema", "json_object"}, 4),
    ],
)
async def test_a_server_that_does_not_take_a_schema_is_asked_in_a_weaker_way_and_remembered(
    status: int, words: str, refused: set[str], requests: int
) -> None:
    """Each of these is what a real server says: OpenAI, a proxy, llama-cpp-python, a model of before."""

    async def answer(request: web.Request) -> web.StreamResponse:
        form = orjson.loads(await request.read()).get("response_format") or {}
        asked = {form.get("type"), "strict" if form.get("json_schema", {}).get("strict") else ""}
        if asked & refused:
            return web.json_response({"error": {"message": words}}, status=status)
        return web.Response(body=chunk("{}") + DONE, content_type="text/event-stream")

    call = ModelCall(CALL.messages, "m-1", 50, schema=JUDGED)
    async with serving(answer) as server, opened(server.url) as model:
        for number in (requests, requests + 1):  # the second time it is known
            assert [block async for block in await model.open(call)]
            assert len(server.bodies) == number
        is_told_in_words = "json_schema" in refused
        assert (orjson.dumps(SCHEMA.schema).decode() in str(server.bodies[-1]["messages"])) == is_told_in_words
        other = replace(call, schema=replace(JUDGED, name="another"))
        assert [block async for block in await model.open(other)]
        form = server.bodies[requests + 1].get("response_format")
        assert isinstance(form, dict)
        assert form["json_schema"]["strict"] is True  # what one schema met says nothing of the next


async def test_a_schema_that_nobody_judges_afterwards_is_never_asked_for_in_a_weaker_way() -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        return web.json_response({"error": {"message": "response_format is not known"}}, status=400)

    async with serving(answer) as server, opened(server.url) as model:
        with pytest.raises(UpstreamError, match="response_format is not known"):
            await model.open(ModelCall(CALL.messages, "m-1", 50, schema=SCHEMA))
        assert len(server.bodies) == 1


@pytest.mark.parametrize("words", ["the context is too long", "no such model"])
async def test_a_refusal_of_something_else_is_not_blamed_on_the_schema(words: str) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        return web.json_response({"error": {"message": words}}, status=400)

    async with serving(answer) as server, opened(server.url) as model:
        with pytest.raises(UpstreamError, match=words):
            await model.open(ModelCall(CALL.messages, "m-1", 50, schema=JUDGED))
        assert len(server.bodies) == 1


async def test_what_refuses_every_way_is_refused_in_the_end() -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        return web.json_response({"error": {"message": "bad grammar"}}, status=400)

    async with serving(answer) as server, opened(server.url) as model:
        with pytest.raises(UpstreamError, match="bad grammar"):
            await model.open(ModelCall(CALL.messages, "m-1", 50, schema=JUDGED))
        assert len(server.bodies) == 4
        with pytest.raises(UpstreamError, match="bad grammar"):
            await model.open(ModelCall(CALL.messages, "m-1", 50, schema=JUDGED))
        assert server.bodies[4] == server.bodies[0]  # nothing was learned from it


async def test_a_query_in_the_address_goes_with_every_request() -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        assert request.query_string == "api-version=2026-10-01"
        return web.Response(body=DONE, content_type="text/event-stream")

    async with serving(answer) as server, opened(server.url + "?api-version=2026-10-01") as model:
        assert [block async for block in await model.open(CALL)] == [DONE]


def test_azure_gets_its_key_under_its_own_name() -> None:
    azure = OpenAI("a", url="https://res.openai.azure.com/openai/v1", key=KEY)
    assert f"api-key: {KEY}".encode() in azure._http._lines
    assert b"authorization" not in azure._http._lines
