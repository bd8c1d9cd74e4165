"""A gateway for clients to be tried on, and an upstream that answers with given bytes and remembers what was asked."""

from __future__ import annotations

import asyncio
import io
import logging
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import pytest
from aiohttp import web

from twolane.config import Config
from twolane.domain.records import Lane
from twolane.kernel import Kernel
from twolane.models import Model
from twolane.models.openai import OpenAI
from twolane.models.rehearsal import Rehearsal
from twolane.online.app import ROUTES, Server, _listen, create_app

REPLY = "one two three four five"
MESSAGES = [{"role": "user", "content": "count"}]
Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


def is_served(path: str) -> bool:
    """True once the gateway has this address."""
    return any(route.path == path for route in ROUTES)


def needs(path: str) -> pytest.MarkDecorator:
    """Skip a test until the gateway has this address."""
    return pytest.mark.skipif(not is_served(path), reason=f"the gateway has no {path} yet")


@dataclass
class Gateway:
    """A running gateway."""

    kernel: Kernel
    http: aiohttp.ClientSession
    root: str
    """Its address without `/v1`: what Anthropic's clients want."""

    @property
    def url(self) -> str:
        """Its address with `/v1`: what OpenAI's clients want."""
        return f"{self.root}/v1"

    def post(self, path: str, body: object, headers: Mapping[str, str] | None = None) -> Any:  # Any: request context
        written = body if isinstance(body, bytes) else orjson.dumps(body)
        data = io.BytesIO(written) if len(written) > 2**20 else written
        return self.http.post(self.root + path, data=data, headers=headers)

    def steps(self) -> list[dict[str, Any]]:  # Any: SQL columns
        """The record. `estimated` stands in the leaf alone."""
        mark = "json_extract(entry.leaf, '$.estimated') AS estimated"
        return self.rows(
            f"SELECT trace_steps.*, {mark} FROM trace_steps JOIN entry ON position = trace_steps.leaf ORDER BY position"
        )

    async def recorded(self, count: int = 1) -> list[dict[str, Any]]:  # Any: SQL columns
        """The steps, once there are that many."""
        await until(lambda: len(self.steps()) >= count)
        return self.steps()

    async def at_rest(self) -> None:
        """Wait until nothing is in flight, then see that nothing is still held."""
        slots = self.kernel.lanes.slots("main", Lane.ONLINE)
        await until(lambda: not slots.busy and not self.kernel.store.all("reservations"))
        assert not self.kernel.switches._running
        await self.kernel.treasury.give_back()
        held = self.rows("SELECT sum(held_pico) + sum(held_tokens) AS held FROM spending")
        assert held[0]["held"] in (0, None)

    def rows(self, query: str) -> list[dict[str, Any]]:  # Any: SQL columns
        """What the store says."""
        with closing(sqlite3.connect(self.kernel.store_path)) as connection:
            connection.row_factory = sqlite3.Row
            return [dict(row) for row in connection.execute(query)]


async def until(holds: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not holds():
            await asyncio.sleep(0.005)


def config_in(folder: Path, *, names: Sequence[str] = (), **upstream: object) -> Config:
    """One upstream `main` behind the route `auto` and behind a route for every further name."""
    section = {"kind": "rehearsal", "price": {"input": "1", "output": "2"}, "slots": {"online": 4}, "retries": 0}
    routes = {name: {"light": "main"} for name in ("auto", *names)}
    return Config.model_validate(
        {"store": f"sqlite:{folder / 'store.db'}", "upstream": {"main": section | upstream}, "route": routes}
    )


@asynccontextmanager
async def gateway(
    folder: Path, model: Model | None = None, *, names: Sequence[str] = (), **upstream: object
) -> AsyncIterator[Gateway]:
    """A gateway before `model` (none: a rehearsal); further arguments are keys of its `[upstream.main]`."""
    model = model or Rehearsal("main", reply=REPLY)
    kernel = await Kernel.open(config_in(folder, names=names, **upstream), models={"main": model})
    await kernel.lanes.hold(Lane.ONLINE)  # as `serve` does
    ready = asyncio.Event()
    server = Server(create_app(kernel), on_ready=ready.set)
    with _listen("127.0.0.1", 0) as listener:
        running = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            async with aiohttp.ClientSession() as http:
                await ready.wait()
                yield Gateway(kernel, http, f"http://127.0.0.1:{listener.getsockname()[1]}")
        finally:
            server.should_exit = True
            await running
            await kernel.aclose()


# ── an upstream that answers with given bytes ──


@dataclass
class Upstream:
    """What a scripted server answers, and what it was asked."""

    answer: Answer
    url: str = ""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    """The requests, as they came. Any: JSON."""
    active: int = 0
    """Answers that have begun and not ended: 0 means that no connection is held."""

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.active += 1
        try:
            self.bodies.append(orjson.loads(await request.read()))
            return await self.answer(request)
        finally:
            self.active -= 1


@asynccontextmanager
async def scripted(
    folder: Path, answer: Answer, *, names: Sequence[str] = (), **upstream: object
) -> AsyncIterator[tuple[Gateway, Upstream]]:
    """A gateway whose upstream is a server of its own, reached through the adapter for OpenAI's dialect."""
    server = Upstream(answer)
    app = web.Application(logger=logging.getLogger("test"), client_max_size=64 * 2**20)
    app.router.add_post("/v1/chat/completions", server.handle)
    app.router.add_post("/v1/embeddings", server.handle)
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        server.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
        async with gateway(folder, OpenAI("main", url=server.url, key="sk-upstream"), names=names, **upstream) as gate:
            yield gate, server
    finally:
        await runner.cleanup()


def streams(*blocks: bytes) -> Answer:
    """An answer of these blocks."""

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        for block in blocks:
            await response.write(block)
        return response

    return answer


def in_turn(*answers: Answer) -> Answer:
    """The first answer for the first request, and so on; the last one for all that follow."""
    left = list(answers)

    async def answer(request: web.Request) -> web.StreamResponse:
        return await (left.pop(0) if len(left) > 1 else left[0])(request)

    return answer


def refuses(status: int, body: bytes = b'{"error": {"message": "no"}}', **headers: str) -> Answer:
    """A status, a body and headers (`retry_after="2"`)."""

    async def answer(request: web.Request) -> web.StreamResponse:
        told = {name.replace("_", "-"): value for name, value in headers.items()}
        return web.Response(status=status, body=body, headers=told)

    return answer


def hangs(*blocks: bytes) -> Answer:
    """These blocks, and then silence until the gateway hangs up."""

    async def answer(request: web.Request) -> web.StreamResponse:
        response = await streams(*blocks)(request)
        await asyncio.Event().wait()
        return response

    return answer


def cuts(*blocks: bytes) -> Answer:
    """These blocks, and then the connection breaks."""

    async def answer(request: web.Request) -> web.StreamResponse:
        response = await streams(*blocks)(request)
        assert request.transport is not None
        request.transport.abort()
        return response

    return answer


def chunk(*choices: Mapping[str, object], **fields: object) -> bytes:
    """One event of a streamed completion."""
    payload = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1_700_000_000, "model": "m-1"}
    return b"data: " + orjson.dumps({**payload, "choices": choices, **fields}) + b"\n\n"


def delta(index: int = 0, *, end: str | None = None, logprobs: object = None, **fields: object) -> dict[str, object]:
    """A choice of a chunk."""
    return {"index": index, "delta": fields, "logprobs": logprobs, "finish_reason": end}


def usage(read: object = 5, written: object = 2, **fields: object) -> bytes:
    """The event that reports usage."""
    total = read + written if isinstance(read, int) and isinstance(written, int) else 0
    counts = {"prompt_tokens": read, "completion_tokens": written, "total_tokens": total, **fields}
    return chunk(usage=counts)


DONE = b"data: [DONE]\n\n"


def says(*words: str) -> Answer:
    """An answer of these words."""
    told = [chunk(delta(role="assistant", content=word)) for word in words]
    return streams(*told, chunk(delta(end="stop")), usage(), DONE)


CALLS_WEATHER = streams(
    chunk(
        delta(
            role="assistant",
            content=None,
            tool_calls=[
                {"index": 0, "id": "call_1", "type": "function", "function": {"name": "weather", "arguments": ""}}
            ],
        )
    ),
    chunk(delta(tool_calls=[{"index": 0, "function": {"arguments": '{"city":'}}])),
    chunk(delta(tool_calls=[{"index": 0, "function": {"arguments": '"Bern"}'}}])),
    chunk(delta(end="tool_calls")),
    usage(),
    DONE,
)
"""A call of the tool `weather`, in pieces."""
