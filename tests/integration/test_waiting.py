"""Waiting: what becomes of a silent answer, of a client that does not read or send, and of one that stands in line."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import pytest

from twolane.config import Config
from twolane.domain.records import Lane, ModelCall
from twolane.kernel import Kernel
from twolane.kernel.lanes import LaneState
from twolane.kernel.treasury import drift
from twolane.models.rehearsal import Rehearsal
from twolane.models.sse import MadeStream
from twolane.online.app import Server, create_app
from twolane.online.auth import create_key
from twolane.online.patience import Patience
from twolane.online.stream import Exchange
from twolane.online.wire import OpenAIErrors

pytestmark = pytest.mark.timeout(40)

REPLY = "one two three four five"
ANY = {"model": "main", "messages": [{"role": "user", "content": "count"}], "max_tokens": 2000}
STREAM = {**ANY, "stream": True}
SIGN = b": keep-alive\n\n"


class Telling(Rehearsal):
    """A rehearsal that sends headers."""

    headers: Mapping[str, str] = {}

    async def open(self, call: ModelCall) -> MadeStream:
        stream = await super().open(call)
        stream.headers = dict(self.headers)
        return stream


@dataclass
class Gateway:
    """A running gateway and what stands behind it."""

    kernel: Kernel
    upstream: Telling
    patience: Patience
    http: aiohttp.ClientSession
    port: int

    def post(self, body: object, path: str = "/v1/chat/completions") -> Any:  # Any: aiohttp's request context
        return self.http.post(f"http://127.0.0.1:{self.port}{path}", json=body)

    def steps(self) -> list[Any]:  # Any: SQL columns
        return list(reversed(self.kernel.store.all("steps_since", count=100)))

    def lane(self) -> LaneState:
        return next(s for s in self.kernel.lanes.state() if s.lane is Lane.ONLINE and s.upstream == "main")

    async def at_rest(self) -> None:
        """Wait until nothing is in flight, then see that nothing is held and nobody is watched."""
        await until(lambda: not self.upstream.active and not self.lane().busy and not self.kernel.switches._running)
        await self.kernel.treasury.give_back()
        await self.kernel.store.write(lambda tx: None)
        assert drift(self.kernel.store) == []
        assert not any(any(account.held) for account in await self.kernel.treasury.all_accounts())
        await until(lambda: not self.patience.is_ticking)
        assert self.patience.held_bytes == 0


async def until(holds: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not holds():
            await asyncio.sleep(0.002)


@asynccontextmanager
async def gateway(folder: Path, *, patience: Patience | None = None, **script: Any) -> AsyncIterator[Gateway]:
    """Any: the options of a rehearsal; `section` changes the upstream's section."""
    section = {"kind": "rehearsal", "price": {"input": "1", "output": "2"}, "retries": 0, **script.pop("section", {})}
    config = Config.model_validate(
        {
            "store": f"sqlite:{folder / 's.db'}",
            "upstream": {"main": section, "other": {**section, "options": {"reply": "from the other"}}},
            "route": {
                "both": {"light": "main", "fallback": ["other"]},
                "hasty": {"light": "main", "deadline_ms": 50},
                "patient": {"light": "main", "deadline_ms": 30_000},
            },
            "budget": {"tenant:default": {"money": "100"}},
        }
    )
    upstream = Telling("main", **{"reply": REPLY, **script})
    kernel = await Kernel.open(config, models={"main": upstream})
    await kernel.lanes.hold(Lane.ONLINE)
    app, ready = create_app(kernel, patience), asyncio.Event()
    server = Server(app, on_ready=ready.set)
    # A small buffer on this side, inherited by what it accepts: a client that does not read is soon felt.
    with socket.create_server(("127.0.0.1", 0), backlog=128) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        running = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            async with aiohttp.ClientSession() as http:
                await ready.wait()
                yield Gateway(kernel, upstream, app.patience, http, listener.getsockname()[1])
        finally:
            server.should_exit = True
            await running
            await kernel.aclose()


def text_of(body: bytes) -> str:
    """The text of a stream of chat completion chunks."""
    lines = [line[6:] for line in body.splitlines() if line.startswith(b"data: ") and line != b"data: [DONE]"]
    choices = [choice for line in lines for choice in orjson.loads(line)["choices"]]
    return "".join(choice["delta"].get("content") or "" for choice in choices)


def impatient(**patience: Any) -> Patience:  # Any: seconds and bytes
    return Patience(**{"keep_alive_s": 0.02, **patience})


# ── a silent answer ──


async def test_a_stream_says_that_it_lives_before_its_first_token_and_between_tokens(tmp_path: Path) -> None:
    async with gateway(tmp_path, patience=impatient(), first_token_ms=200, token_ms=100) as gate:
        async with gate.post(STREAM) as response:
            assert response.status == 200
            assert response.content_type == "text/event-stream"
            assert "x-twolane-step" not in response.headers  # which attempt will answer is not known yet
            assert response.headers["x-twolane-route"] == "main"
            body = await response.read()
        assert body.startswith(SIGN)
        before, _, after = body.partition(b"data: ")
        assert before.count(SIGN) * SIGN == before
        assert after.count(SIGN) >= 2
        assert text_of(body) == REPLY
        assert body.endswith(b"data: [DONE]\n\n")
        assert all(not event or event.startswith((b"data: ", b": keep-alive")) for event in body.split(b"\n\n"))
        assert [step["status"] for step in gate.steps()] == ["ok"]
        await gate.at_rest()


async def test_a_stream_that_speaks_in_time_holds_nothing_else(tmp_path: Path) -> None:
    patience = Patience(keep_alive_s=5)
    async with gateway(tmp_path, patience=patience, token_ms=20) as gate, gate.post(STREAM) as response:
        assert response.headers["x-twolane-step"]
        assert SIGN not in await response.read()


@pytest.mark.parametrize(
    ("path", "asked", "sign"),
    [
        ("/v1/messages", STREAM, b"event: ping\n"),
        ("/v1/responses", {"model": "main", "input": "count", "stream": True}, SIGN),
    ],
)
async def test_every_protocol_has_its_own_sign_of_life(
    tmp_path: Path, path: str, asked: dict[str, object], sign: bytes
) -> None:
    async with gateway(tmp_path, patience=impatient(), first_token_ms=150) as gate:
        async with gate.post(asked, path) as response:
            body = await response.read()
        assert body.startswith(sign)
        assert b"five" in body
        assert [step["status"] for step in gate.steps()] == ["ok"]


async def test_a_whole_answer_has_no_sign_of_life(tmp_path: Path) -> None:
    async with gateway(tmp_path, patience=impatient(), first_token_ms=150) as gate, gate.post(ANY) as response:
        assert response.content_type == "application/json"
        assert (await response.json())["choices"][0]["message"]["content"] == REPLY


async def test_an_error_after_a_sign_of_life_is_an_event(tmp_path: Path) -> None:
    section = {"timeout": {"first_token_s": 0.15}}
    async with gateway(tmp_path, patience=impatient(), section=section, faults="always: hang 0") as gate:
        async with gate.post(STREAM) as response:
            assert response.status == 200
            body = await response.read()
        last = body.removesuffix(b"\n\n").rpartition(b"\n\n")[2]
        assert "no first token within" in orjson.loads(last.removeprefix(b"data: "))["error"]["message"]
        assert b"[DONE]" not in body
        await gate.at_rest()


async def test_another_upstream_may_still_answer_behind_a_sign_of_life(tmp_path: Path) -> None:
    section = {"timeout": {"first_token_s": 0.15}}
    async with gateway(tmp_path, patience=impatient(), section=section, faults="always: hang 0") as gate:
        async with gate.post({**STREAM, "model": "both"}) as response:
            body = await response.read()
        assert body.startswith(SIGN)
        assert text_of(body) == "from the other"
        await gate.at_rest()


async def test_a_record_that_is_late_is_waited_for_with_signs_of_life_before_the_end(tmp_path: Path) -> None:
    async with gateway(tmp_path, patience=impatient()) as gate:
        may_write = threading.Event()
        async with gate.post(STREAM) as response:  # what it may cost is leased by now
            await response.read()
        gate.kernel.store.submit(lambda tx: may_write.wait(10))
        async with gate.post(STREAM) as response:
            body = b""
            while not body.endswith(SIGN):
                body += await response.content.readany()
            assert text_of(body) == REPLY
            assert b"[DONE]" not in body
            may_write.set()
            body += await response.read()
        assert body.endswith(SIGN + b"data: [DONE]\n\n")


class Wire:
    """A server's `send` that can be made to wait, as one does whose client is slow."""

    def __init__(self) -> None:
        self.sent: list[Any] = []
        self.is_free = asyncio.Event()
        self.is_free.set()

    async def __call__(self, message: Any) -> None:
        await self.is_free.wait()
        self.sent.append(message)

    def bodies(self) -> list[bytes]:
        return [message["body"] for message in self.sent if "body" in message]


def exchange_over(send: Wire) -> Exchange:
    async def receive() -> Any:
        raise AssertionError

    exchange = Exchange({"type": "http", "headers": []}, receive, send, OpenAIErrors())  # type: ignore[arg-type]  # its errors only
    exchange.is_kept_alive = True
    return exchange


def look(exchange: Exchange, *, now: float) -> None:
    exchange.look(now, keep_alive_s=15, body_s=30)


async def test_no_sign_of_life_comes_inside_an_event() -> None:
    send = Wire()
    exchange = exchange_over(send)
    await exchange.begin_stream()
    await exchange.write(b'data: {"half of a very large ')
    look(exchange, now=0)
    look(exchange, now=100)
    assert SIGN not in send.bodies()
    await exchange.write(b'event"}\r\n\r\n')
    look(exchange, now=101)
    look(exchange, now=115)
    assert SIGN not in send.bodies()
    look(exchange, now=117)
    assert send.bodies()[-1] == SIGN


async def test_no_sign_of_life_comes_into_a_write_in_progress_nor_after_the_end() -> None:
    send = Wire()
    exchange = exchange_over(send)
    look(exchange, now=0)
    look(exchange, now=20)
    assert [message["type"] for message in send.sent] == ["http.response.start", "http.response.body"]
    send.is_free.clear()
    writing = asyncio.create_task(exchange.write(b"data: 1\n\n"))
    await asyncio.sleep(0)
    look(exchange, now=30)
    look(exchange, now=60)
    assert len(send.sent) == 2
    send.is_free.set()
    await writing
    await exchange.end_stream(b"data: [DONE]\n\n")
    look(exchange, now=100)
    look(exchange, now=200)
    assert send.bodies() == [SIGN, b"data: 1\n\n", b"data: [DONE]\n\n"]


# ── a client that does not read ──


async def ask_without_reading(port: int, body: object) -> socket.socket:
    """A client with a small buffer that sends its request and then does nothing more."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.setblocking(False)
    loop, payload = asyncio.get_running_loop(), orjson.dumps(body)
    await loop.sock_connect(client, ("127.0.0.1", port))
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: %d\r\n\r\n" % len(payload)
    await loop.sock_sendall(client, head + payload)
    return client


async def read_all(client: socket.socket) -> bytes:
    parts = []
    with contextlib.suppress(ConnectionResetError):
        while part := await asyncio.get_running_loop().sock_recv(client, 65536):
            parts.append(part)
    return b"".join(parts)


LONG = ("x" * 20_000 + " ") * 400


async def test_a_client_that_takes_nothing_is_given_up_and_its_upstream_is_closed(tmp_path: Path) -> None:
    patience = Patience(stall_s=0.2)
    async with gateway(tmp_path, patience=patience, reply=LONG, section={"slots": {"online": 1}}) as gate:
        client = await ask_without_reading(gate.port, STREAM)
        await until(gate.steps)
        (step,) = gate.steps()
        assert step["status"] == "cancelled"
        assert gate.upstream.aborted == 1
        assert gate.upstream.tokens < 400
        await gate.at_rest()
        with client:
            assert not (await read_all(client)).endswith(b"0\r\n\r\n")  # it ended there, and not with an end


async def test_a_client_that_reads_slowly_is_waited_for(tmp_path: Path) -> None:
    patience = Patience(stall_s=0.8)
    async with gateway(tmp_path, patience=patience, reply=LONG) as gate:
        loop = asyncio.get_running_loop()
        began = loop.time()
        with await ask_without_reading(gate.port, {**STREAM, "max_tokens": 150}) as client:
            received = b""
            while not received.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n"):
                received += await loop.sock_recv(client, 65536)
                if loop.time() - began < 2:  # more than twice what would be too long without a byte
                    await asyncio.sleep(0.01)
        assert [step["status"] for step in gate.steps()] == ["ok"]
        await gate.at_rest()


class Taking:
    """A connection whose client is said to have taken so much."""

    def __init__(self, left: int) -> None:
        self.transport, self.loop = self, self
        self.left, self.is_given_up = left, False

    def get_write_buffer_size(self) -> int:
        return self.left

    def time(self) -> float:
        return 0.0

    def give_up(self) -> None:
        self.is_given_up = True


async def test_a_large_answer_is_taken_piece_by_piece_but_not_drop_by_drop() -> None:
    patience, steady, dripping = Patience(), Taking(10**7), Taking(10**7)
    for connection in (steady, dripping):
        patience.stalled(connection)  # type: ignore[arg-type]  # as much of one as is asked of it
    for second in range(1, 60):
        steady.left -= 1_000
        dripping.left -= 200
        patience.look(float(second))
    assert (steady.is_given_up, dripping.is_given_up) == (False, False)
    for second in range(60, 200):
        steady.left -= 1_000
        dripping.left -= 200
        patience.look(float(second))
    assert (steady.is_given_up, dripping.is_given_up) == (False, True)
    for connection in (steady, dripping):
        patience.moved(connection)  # type: ignore[arg-type]
    await until(lambda: not patience.is_ticking)


# ── a client that does not send ──

HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\n"


async def test_a_body_that_does_not_arrive_is_a_408_and_the_end_of_the_connection(tmp_path: Path) -> None:
    for begun in (b"", b'{"model": "main", '):
        async with gateway(tmp_path, patience=Patience(body_s=0.1)) as gate:
            reader, writer = await asyncio.open_connection("127.0.0.1", gate.port)
            writer.write(HEAD + b"content-length: 1000\r\n\r\n" + begun)
            answer = await reader.read()
            writer.close()
            assert answer.startswith(b"HTTP/1.1 408 ")
            head, _, body = answer.partition(b"\r\n\r\n")
            assert b"connection: close" in head
            assert b"x-should-retry: true" in head
            assert orjson.loads(body)["error"]["code"] == "request_timeout"
            assert gate.upstream.requests == 0
            await gate.at_rest()


async def test_bodies_that_are_too_much_together_are_told_to_come_back(tmp_path: Path) -> None:
    async with gateway(tmp_path, patience=Patience(bodies_bytes=300_000)) as gate:
        reader, writer = await asyncio.open_connection("127.0.0.1", gate.port)
        writer.write(HEAD + b"content-length: 250001\r\n\r\n" + b" " * 250_000)
        await until(lambda: gate.patience.held_bytes == 250_000)
        async with gate.http.post(f"http://127.0.0.1:{gate.port}/v1/chat/completions", data=b" " * 200_000) as response:
            assert response.status == 503
            assert response.headers["x-should-retry"] == "true"
            assert int(response.headers["retry-after-ms"]) > 0
            assert (await response.json())["error"]["code"] == "too_much_at_once"
        assert gate.patience.held_bytes == 250_000
        async with gate.post(ANY) as response:  # what comes in one piece is never too much
            assert response.status == 200
        writer.write(b"x")
        assert (await reader.readline()).startswith(b"HTTP/1.1 400 ")
        writer.close()
        await gate.at_rest()


async def test_a_client_that_leaves_amid_its_body_leaves_nothing(tmp_path: Path) -> None:
    async with gateway(tmp_path) as gate:
        _, writer = await asyncio.open_connection("127.0.0.1", gate.port)
        writer.write(HEAD + b"content-length: 250001\r\n\r\n" + b" " * 250_000)
        await until(lambda: gate.patience.held_bytes == 250_000)
        writer.close()
        await until(lambda: gate.patience.held_bytes == 0)


# ── a line ──

HANGING: dict[str, Any] = {"section": {"slots": {"online": 1}}, "faults": "first 1: hang 1"}


async def test_who_hangs_up_in_the_line_leaves_it_at_once(tmp_path: Path) -> None:
    async with gateway(tmp_path, **HANGING) as gate:
        async with gate.post({**STREAM, "model": "patient"}):  # has the only slot
            for body in ({**STREAM, "model": "patient"}, {**ANY, "model": "patient"}):
                waiting = asyncio.create_task(gate.post(body).__aenter__())
                await until(lambda: gate.lane().waiting == 1)
                waiting.cancel()
                await until(lambda: gate.lane().waiting == 0)
            assert gate.upstream.requests == 1
            assert len(gate.kernel.switches._running) == 1
        await gate.at_rest()
        assert [step["status"] for step in gate.steps()] == ["cancelled"]  # who only stood in line left no step


async def test_a_switch_ends_the_wait_in_the_line_at_once(tmp_path: Path) -> None:
    async with gateway(tmp_path, **HANGING) as gate:
        key = await create_key(gate.kernel, "legal", "ci")
        other = await create_key(gate.kernel, "sales", "ci")

        def asked_with(key: str, body: object) -> Any:  # Any: aiohttp's request context
            url = f"http://127.0.0.1:{gate.port}/v1/chat/completions"
            return gate.http.post(url, json=body, headers={"authorization": f"Bearer {key}"})

        async with asked_with(other, {**STREAM, "model": "patient"}):
            bodies = ({**STREAM, "model": "patient"}, {**ANY, "model": "patient"})
            waiting = [asyncio.create_task(asked_with(key, body).__aenter__()) for body in bodies]
            await until(lambda: gate.lane().waiting == 2)
            await gate.kernel.switches.trip("tenant:legal", cause="test", actor="test")
            for response in await asyncio.gather(*waiting):
                assert response.status == 503
                assert response.headers["x-should-retry"] == "false"
                assert (await response.json())["error"]["code"] == "switch_tripped"
            assert gate.lane().waiting == 0
            assert gate.upstream.requests == 1
        await gate.at_rest()


# ── rates, as clients read them ──


def limits_in(headers: Mapping[str, str]) -> dict[str, str]:
    lower = {name.lower(): value for name, value in headers.items()}
    return {name[12:]: value for name, value in lower.items() if name.startswith("x-ratelimit-")}


async def test_a_configured_rate_is_told_with_answers_and_refusals(tmp_path: Path) -> None:
    rate = {"requests_per_minute": 40, "tokens_per_minute": 60_000}
    section = {"slots": {"online": 5, "batch": 5}, "rate": rate}
    async with gateway(tmp_path, section=section) as gate:
        for body in (STREAM, {**ANY, "max_tokens": 10}):
            async with gate.post({**body, "max_tokens": 10}) as response:
                await response.read()
                told = limits_in(response.headers)
            assert response.status == 200
            assert (told["limit-requests"], told["limit-tokens"]) == ("20", "30000")
            assert int(told["remaining-requests"]) <= 1
            assert 4_000 < int(told["remaining-tokens"]) < 5_000
            assert told["reset-requests"].endswith("s")
        async with gate.post({**ANY, "model": "hasty"}) as response:
            assert response.status == 429
            told = limits_in(response.headers)
        assert (told["limit-requests"], told["remaining-requests"]) == ("20", "0")


async def test_what_an_upstream_tells_of_its_rate_is_told_on_and_remembered(tmp_path: Path) -> None:
    async with gateway(tmp_path, section=HANGING["section"], faults="2nd: hang 1") as gate:
        gate.upstream.headers = {
            "anthropic-ratelimit-requests-limit": "50",
            "anthropic-ratelimit-requests-remaining": "49",
            "x-ratelimit-remaining-tokens": "1000",
        }
        async with gate.post(STREAM) as response:
            told = limits_in(response.headers)
        assert told == {"limit-requests": "50", "remaining-requests": "49", "remaining-tokens": "1000"}
        gate.upstream.headers = {}
        async with gate.post(STREAM), gate.post({**ANY, "model": "hasty"}) as refused:
            assert refused.status == 429
            assert limits_in(refused.headers) == told


async def test_of_an_unknown_rate_nothing_is_told(tmp_path: Path) -> None:
    hasty = {**ANY, "model": "hasty"}
    async with gateway(tmp_path, **HANGING) as gate, gate.post(STREAM) as response, gate.post(hasty) as refused:
        assert (response.status, refused.status) == (200, 429)
        assert limits_in(response.headers) == limits_in(refused.headers) == {}
