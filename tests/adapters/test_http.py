"""The HTTP client against a server that says exactly what it is told to, byte for byte."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from twolane.models import http
from twolane.models.http import BrokenOff, Client, Unreachable

OK = b"HTTP/1.1 200 OK\r\n"
HELLO = OK + b"content-length: 5\r\n\r\nhello"

Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Server:
    """One scripted server; `talk` is called for each connection and may read requests with `read_request`."""

    def __init__(self) -> None:
        self.connections, self.requests = 0, list[bytes]()
        self.port = 0

    def client(self, **headers: str) -> Client:
        return Client(f"http://127.0.0.1:{self.port}/v1", headers)

    async def read_request(self, reader: asyncio.StreamReader) -> bytes:
        head = await reader.readuntil(b"\r\n\r\n")
        length = next((int(line[15:]) for line in head.split(b"\r\n") if line.startswith(b"content-length:")), 0)
        self.requests.append(head + await reader.readexactly(length))
        return self.requests[-1]


@asynccontextmanager
async def serving(talk: Callable[[Server], Talk]) -> AsyncIterator[Server]:
    server, tasks = Server(), set[asyncio.Task[None]]()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        server.connections += 1
        try:
            await talk(server)(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    listening = await asyncio.start_server(connected, "127.0.0.1", 0)
    server.port = listening.sockets[0].getsockname()[1]
    try:
        yield server
    finally:
        listening.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def answering(*answers: bytes, hang_up: bool = False) -> Callable[[Server], Talk]:
    """Each request gets the next answer, the last one again and again."""

    def of(server: Server) -> Talk:
        async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while True:
                await server.read_request(reader)
                writer.write(answers[min(len(server.requests), len(answers)) - 1])
                await writer.drain()
                if hang_up:
                    return

        return talk

    return of


async def body_of(response: http.Response) -> bytes:
    return b"".join([block async for block in response])


async def test_a_connection_carries_one_answer_after_another() -> None:
    async with serving(answering(HELLO)) as server:
        client = server.client(authorization="Bearer s")
        for _ in range(3):
            response = await client.post("/chat", b"{}", {"x-more": "1"})
            assert (response.status, await body_of(response)) == (200, b"hello")
        assert server.connections == 1
        head = server.requests[0].split(b"\r\n")
        assert head[0] == b"POST /v1/chat HTTP/1.1"
        told = (
            f"host: 127.0.0.1:{server.port}".encode(),
            b"authorization: Bearer s",
            b"x-more: 1",
            b"content-length: 2",
        )
        assert all(line in head for line in told)
        await client.aclose()


async def test_answers_that_come_at_the_same_time_have_connections_of_their_own() -> None:
    async with serving(answering(HELLO)) as server:
        client = server.client()
        answers = await asyncio.gather(*(client.post("/", b"") for _ in range(20)))
        assert [await body_of(each) for each in answers] == [b"hello"] * 20
        await client.aclose()


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.binary(min_size=1, max_size=50), max_size=5), st.lists(st.integers(1, 40), max_size=30))
async def test_where_the_bytes_are_cut_does_not_matter(parts: list[bytes], cuts: list[int]) -> None:
    chunked = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"
    answer = OK + b"Transfer-Encoding: chunked\r\nX-Name: value\r\n\r\n" + chunked

    def of(server: Server) -> Talk:
        async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            for _ in range(2):
                await server.read_request(reader)
                at = 0
                for size in [*cuts, len(answer)]:
                    writer.write(answer[at : at + size])
                    await writer.drain()
                    await asyncio.sleep(0)
                    at += size

        return talk

    async with serving(of) as server:
        client = server.client()
        for _ in range(2):
            response = await client.post("/", b"{}")
            assert (response.headers["x-name"], await body_of(response)) == ("value", b"".join(parts))
        assert server.connections == 1
        await client.aclose()


async def test_an_interim_answer_is_passed_over() -> None:
    async with serving(answering(b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n" + HELLO)) as server:
        client = server.client()
        response = await client.post("/", b"")
        assert (response.status, "link" in response.headers, await body_of(response)) == (200, False, b"hello")
        await client.aclose()


async def test_an_answer_without_a_length_ends_with_its_connection() -> None:
    async with serving(answering(OK + b"\r\nall of it", hang_up=True)) as server:
        client = server.client()
        for _ in range(2):
            assert await body_of(await client.post("/", b"")) == b"all of it"
        assert server.connections == 2
        await client.aclose()


@pytest.mark.parametrize(
    "answer",
    [
        OK + b"content-length: 50\r\n\r\nonly this",
        OK + b"transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n",
        OK + b"transfer-encoding: chunked\r\n\r\nnonsense",
    ],
)
async def test_an_answer_that_breaks_off_says_so(answer: bytes) -> None:
    async with serving(answering(answer, hang_up=True)) as server:
        client = server.client()
        response = await client.post("/", b"")
        with pytest.raises(BrokenOff):
            await body_of(response)
        assert not client._busy
        assert not client._idle
        await client.aclose()


@pytest.mark.parametrize("answer", [b"", b"SSH-2.0\r\n", OK[:9], OK + b"x: " + b"y" * 70_000 + b"\r\n\r\n"])
async def test_what_is_no_answer_is_broken_off(answer: bytes) -> None:
    async with serving(answering(answer, hang_up=True)) as server:
        client = server.client()
        with pytest.raises(BrokenOff):
            await client.post("/", b"")
        assert not client._busy
        await client.aclose()


async def test_nobody_there_is_unreachable() -> None:
    async with serving(answering(HELLO)) as server:
        client = server.client()
    with pytest.raises(Unreachable):
        await client.post("/", b"")
    with pytest.raises(Unreachable):
        await Client(f"http://{'a' * 64}.invalid", {}).post("/", b"")


async def test_a_server_that_closes_idle_connections_is_not_asked_over_them() -> None:
    async with serving(answering(HELLO, hang_up=True)) as server:
        client = server.client()
        for asked in range(1, 4):
            assert await body_of(await client.post("/", b"")) == b"hello"
            while client._idle:  # its end is heard of without a request
                await asyncio.sleep(0.001)
            assert server.connections == asked
        await client.aclose()


async def test_a_keep_alive_time_is_obeyed(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = HELLO.replace(b"content-length", b"Keep-Alive: timeout=1, max=9\r\ncontent-length")
    async with serving(answering(answer)) as server:
        client = server.client()
        for _ in range(2):
            assert await body_of(await client.post("/", b"")) == b"hello"
        assert server.connections == 2
        await client.aclose()


async def test_words_nobody_asked_for_close_the_connection() -> None:
    async with serving(answering(HELLO + HELLO, HELLO)) as server:
        client = server.client()
        assert await body_of(await client.post("/", b"")) == b"hello"
        assert await body_of(await client.post("/", b"")) == b"hello"
        assert server.connections == 2
        await client.aclose()


async def test_closing_an_answer_hangs_up_at_once() -> None:
    ended = asyncio.Event()

    def of(server: Server) -> Talk:
        async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await server.read_request(reader)
            writer.write(OK + b"transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n")
            assert await reader.read() == b""
            ended.set()

        return talk

    async with serving(of) as server:
        client = server.client()
        response = await client.post("/", b"")
        assert await anext(response) == b"hello"
        response.close()
        response.close()
        await ended.wait()
        with pytest.raises(StopAsyncIteration):
            await anext(response)
        assert not client._busy
        await client.aclose()


async def test_giving_up_before_the_head_hangs_up() -> None:
    ended = asyncio.Event()

    def of(server: Server) -> Talk:
        async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await server.read_request(reader)
            assert await reader.read() == b""
            ended.set()

        return talk

    async with serving(of) as server:
        client = server.client()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await client.post("/", b"")
        await ended.wait()
        assert not client._busy
        await client.aclose()


async def test_a_slow_reader_holds_the_server_back() -> None:
    written = 0

    def of(server: Server) -> Talk:
        async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal written
            await server.read_request(reader)
            writer.write(OK + b"content-length: 50000000\r\n\r\n")
            for _ in range(500):
                writer.write(b"x" * 100_000)
                await writer.drain()
                written += 100_000

        return talk

    async with serving(of) as server:
        client = server.client()
        response = await client.post("/", b"")
        before = -1
        while written != before:  # until it can write no more
            before = written
            await asyncio.sleep(0.1)
        assert written < 20_000_000
        assert response._held_bytes <= http.PAUSE_BYTES + 2**20
        assert sum([len(block) async for block in response]) == 50_000_000
        await client.aclose()


def test_a_header_cannot_begin_another_line() -> None:
    with pytest.raises(ValueError, match="line end"):
        Client("http://127.0.0.1", {"authorization": "Bearer a\r\nx-evil: 1"})
