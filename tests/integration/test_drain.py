"""Leaving: what runs when a server is told to stop ends, and is recorded, whether or not it finishes in time."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import orjson
import pytest

from twolane.config import Config
from twolane.domain.records import Lane
from twolane.kernel import Kernel, ledger
from twolane.models.rehearsal import Rehearsal
from twolane.online.app import Server, _listen, create_app

pytestmark = pytest.mark.timeout(30)

STREAM = {"model": "main", "messages": [{"role": "user", "content": "count"}], "stream": True}


async def test_answers_longer_than_the_drain_are_cancelled_and_recorded(tmp_path: Path) -> None:
    section = {"kind": "rehearsal", "price": {"input": "1", "output": "2"}}
    config = Config.model_validate({"store": f"sqlite:{tmp_path / 's.db'}", "upstream": {"main": section}, "route": {}})
    upstream = Rehearsal("main", reply="word " * 1000, token_ms=1000)
    kernel = await Kernel.open(config, models={"main": upstream})
    ready = asyncio.Event()
    server = Server(create_app(kernel), drain_s=0.2, on_ready=ready.set)
    with _listen("127.0.0.1", 0) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1/chat/completions"
        running_at_the_end = []

        async def serve_then_look() -> None:
            await server.serve(sockets=[listener])
            running_at_the_end.append(upstream.active)  # at once: the store is closed right after this

        running = asyncio.create_task(serve_then_look())
        await ready.wait()
        async with aiohttp.ClientSession() as http:
            responses = [await http.post(url, json=STREAM) for _ in range(3)]
            server.should_exit = True
            await running
            told = [await response.read() for response in responses]
    assert all(b"draining" in body and b"[DONE]" not in body for body in told)
    assert running_at_the_end == [0]
    await kernel.store.write(lambda tx: None)
    assert [step["status"] for step in kernel.store.all("steps_since", count=9)] == ["cancelled"] * 3
    assert ledger.verify(kernel.store).ok
    await kernel.aclose()


async def test_an_upstream_that_fails_to_close_keeps_nothing_else_open(tmp_path: Path) -> None:
    class Stubborn(Rehearsal):
        async def aclose(self) -> None:
            raise OSError("it will not close")

    sections = {name: {"kind": "rehearsal", "unpriced": "allow"} for name in ("a", "b", "c")}
    config = Config.model_validate({"store": f"sqlite:{tmp_path / 's.db'}", "upstream": sections, "route": {}})
    kernel = await Kernel.open(config, models={name: Stubborn(name) for name in ("a", "c")})
    await kernel.lanes.hold(Lane.ONLINE)
    with pytest.raises(OSError, match="will not close"):
        await kernel.aclose()
    with closing(sqlite3.connect(tmp_path / "s.db")) as store:
        assert store.execute("SELECT count(*) FROM lane_member").fetchone() == (0,)
    assert list((tmp_path / "s.db.alive").iterdir()) == []


# ── a real process ──

TOML = """
store = "sqlite:store.db"

[serve]
drain_s = {drain_s}

[upstream.main]
kind = "rehearsal"
price = {{ input = "1", output = "2" }}
slots = {{ online = 30 }}
options = {{ token_ms = {token_ms}, reply = "{reply}" }}

[budget."tenant:default"]
money = "100"
"""
WORDS = "one two three four five six seven eight nine ten "


async def command(folder: Path, *arguments: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "twolane", *arguments, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


@dataclass
class Process:
    """`twolane serve` in a process of its own."""

    folder: Path
    process: asyncio.subprocess.Process
    http: aiohttp.ClientSession
    url: str

    async def streams(self, count: int) -> list[aiohttp.ClientResponse]:
        """So many answers that have begun."""
        posts = (self.http.post(f"{self.url}/v1/chat/completions", json=STREAM) for _ in range(count))
        responses = await asyncio.gather(*posts)
        for response in responses:
            await response.content.readany()
        return responses

    async def end(self, codes: Collection[int] = (0,)) -> None:
        """It ended well: nothing is said, held or left, and the record verifies."""
        out, err = await self.process.communicate()
        assert self.process.returncode in codes
        assert (out, err) == (b"", b"")
        with closing(sqlite3.connect(self.folder / "store.db")) as store:
            assert store.execute("SELECT sum(held_pico) + sum(held_tokens) FROM spending").fetchone()[0] in (0, None)
            for table in ("lane_member", "reservation", "lease"):
                assert store.execute(f"SELECT count(*) FROM {table}").fetchone() == (0,), table
        assert list((self.folder / "store.db.alive").iterdir()) == []
        verified = await command(self.folder, "audit", "verify")
        out, err = await verified.communicate()
        assert verified.returncode == 0, err.decode()

    def statuses(self) -> list[str]:
        with closing(sqlite3.connect(self.folder / "store.db")) as store:
            return [status for (status,) in store.execute("SELECT status FROM trace_steps")]


@asynccontextmanager
async def serving(
    folder: Path, *, drain_s: float = 20, token_ms: float = 20, reply: str = WORDS
) -> AsyncIterator[Process]:
    (folder / "twolane.toml").write_text(TOML.format(drain_s=drain_s, token_ms=token_ms, reply=reply))
    process = await command(folder, "serve", "--port", "0")
    assert process.stdout is not None
    try:
        url = (await process.stdout.readline()).decode().split()[-1].removesuffix("/v1")
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http:
            yield Process(folder, process, http, url)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_a_server_told_to_stop_lets_twenty_streams_finish(tmp_path: Path) -> None:
    async with serving(tmp_path, reply=WORDS * 5) as server:
        streams = await server.streams(20)
        server.process.terminate()
        bodies = await asyncio.gather(*(stream.read() for stream in streams))
        assert all(body.endswith(b"data: [DONE]\n\n") for body in bodies)
        await server.end()
        assert server.statuses() == ["ok"] * 20


async def test_streams_longer_than_the_drain_are_told_and_recorded(tmp_path: Path) -> None:
    async with serving(tmp_path, drain_s=0.3, token_ms=60_000) as server:
        streams = await server.streams(5)
        server.process.terminate()
        bodies = await asyncio.gather(*(stream.read() for stream in streams))
        assert all(b'"code":"draining"' in body and b"[DONE]" not in body for body in bodies)
        await server.end()
        assert server.statuses() == ["cancelled"] * 5


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
async def test_a_second_signal_ends_at_once_and_still_records(tmp_path: Path, second: signal.Signals) -> None:
    async with serving(tmp_path, drain_s=3600, token_ms=60_000) as server:
        streams = await server.streams(5)
        server.process.terminate()
        await is_closed(server)  # the first signal has arrived
        server.process.send_signal(second)
        bodies = await asyncio.gather(*(stream.read() for stream in streams))
        assert all(b'"code":"draining"' in body for body in bodies)
        await server.end()
        assert server.statuses() == ["cancelled"] * 5


async def test_signals_without_end_do_not_lose_the_record(tmp_path: Path) -> None:
    async with serving(tmp_path, drain_s=3600, token_ms=60_000) as server:
        await server.streams(5)
        with contextlib.suppress(ProcessLookupError):
            while server.process.returncode is None:
                os.kill(server.process.pid, signal.SIGTERM)  # not `terminate`, which would take the exit code away
                await asyncio.sleep(0)
        await server.end(codes=(0, -signal.SIGTERM))  # one may come when all is written and closed
        assert server.statuses() == ["cancelled"] * 5


async def test_who_comes_during_the_drain_is_sent_elsewhere(tmp_path: Path) -> None:
    async with serving(tmp_path, reply=WORDS * 5) as server:
        kept = [await asyncio.open_connection(*server.url.removeprefix("http://").split(":")) for _ in range(3)]
        for reader, writer in kept:
            writer.write(b"GET /healthz HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n")
            assert (await reader.readuntil(b"}")).endswith(b'{"status":"ok"}')
        (stream,) = await server.streams(1)
        server.process.terminate()
        await is_closed(server)
        assert orjson.loads(await refused_on(*kept[0], "GET", "/healthz")) == {"status": "draining"}
        for (reader, writer), path in zip(kept[1:], ("/v1/chat/completions", "/v1/messages"), strict=True):
            error = orjson.loads(await refused_on(reader, writer, "POST", path))
            assert "about to stop" in error["error"]["message"]
        assert (await stream.read()).endswith(b"data: [DONE]\n\n")
        await server.end()
        assert server.statuses() == ["ok"]


async def is_closed(server: Process) -> None:
    """Wait until no connection is accepted; once one is told to go away, no other is answered."""
    is_told = False
    with contextlib.suppress(aiohttp.ClientConnectorError):
        while True:
            async with aiohttp.ClientSession() as http, http.get(f"{server.url}/healthz") as response:
                assert response.status == 503 or not is_told
                is_told = response.status == 503


async def refused_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, method: str, path: str) -> bytes:
    """The body of the refusal that a kept-alive connection brings."""
    writer.write(f"{method} {path} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: 2\r\n\r\n{{}}".encode())
    answer = await reader.read()  # to the end: it is closed
    writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 503 ")
    for told in (b"retry-after-ms: ", b"x-should-retry: true", b"connection: close"):
        assert told in head
    return body


async def test_an_idle_server_leaves_at_once(tmp_path: Path) -> None:
    async with serving(tmp_path, drain_s=3600) as server:
        async with server.http.get(f"{server.url}/healthz") as response:
            assert response.status == 200
        server.process.terminate()
        await server.end()
