"""Leaving: what runs when a server is told to stop ends, and is recorded, whether or not it finishes in time."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path

import aiohttp
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
    server = Server(create_app(kernel), on_ready=ready.set)
    server.config.timeout_graceful_shutdown = 1
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
            for response in responses:
                response.close()
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
