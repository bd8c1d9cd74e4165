"""The doctor: probes against a server that plays all kinds, and the checks of an installation."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
import pytest
from aiohttp import web

from twolane.cli.checkup import Line, State, check_up
from twolane.cli.doctor import _bill
from twolane.config import Config
from twolane.domain.records import Message, ModelCall
from twolane.domain.schema import reply_schema
from twolane.errors import BudgetExceeded, NotFound, SwitchTripped
from twolane.kernel import Kernel, _ignores_schemas, ledger
from twolane.models.rehearsal import Rehearsal
from twolane.online.counters import read_llama_cpp, read_stats, read_vllm
from twolane.online.probe import QUESTIONS, Ball, Probe, _request, last_probe, probe
from twolane.rules.probing import Load
from twolane.store.sqlite import SQLiteStore

pytestmark = pytest.mark.timeout(40)

PRICE = {"input": "1", "output": "2"}


@dataclass
class Server:
    """An OpenAI-compatible server with counters of a chosen kind."""

    counters: str = "vllm"
    token_s: float = 0.02
    is_deaf: bool = False
    in_one_lump: bool = False
    has_usage: bool = True
    honours_limit: bool = True
    keeps_schema: bool = True
    headers: dict[str, str] = field(default_factory=dict)
    running: int = 0
    url: str = ""
    bodies: list[dict[str, Any]] = field(default_factory=list)  # Any: JSON
    _generations: set[asyncio.Task[None]] = field(default_factory=set)

    async def chat(self, request: web.Request) -> web.StreamResponse:
        body = orjson.loads(await request.read())
        self.bodies.append(body)
        if "response_format" in body:
            words = ['{"colour": "red", "bounces": 2}' if self.keeps_schema else "red!"]
        else:
            words = [f"word{at}, " for at in range(body["max_tokens"] if self.honours_limit else 80)]
        queue: asyncio.Queue[str | None] = asyncio.Queue()
        generation = asyncio.create_task(self._generate(words, queue))
        self._generations.add(generation)
        response = web.StreamResponse(headers={"content-type": "text/event-stream", **self.headers})
        try:
            await self._pass_on(request, response, queue, len(words), "response_format" not in body)
        except (asyncio.CancelledError, ConnectionError):
            if not self.is_deaf:
                generation.cancel()
            raise
        return response

    async def _generate(self, words: list[str], queue: asyncio.Queue[str | None]) -> None:
        self.running += 1
        try:
            for word in words:
                await asyncio.sleep(self.token_s)
                queue.put_nowait(word)
        finally:
            self.running -= 1
            queue.put_nowait(None)

    async def _pass_on(
        self,
        request: web.Request,
        response: web.StreamResponse,
        queue: asyncio.Queue[str | None],
        count: int,
        is_cut: bool,
    ) -> None:
        lump = b""
        if not self.in_one_lump:
            await response.prepare(request)
        while (word := await queue.get()) is not None:
            event = _event({"choices": [{"index": 0, "delta": {"content": word}}]})
            if self.in_one_lump:
                lump += event
            else:
                await response.write(event)
        if self.in_one_lump:
            await response.prepare(request)
        finish = {"index": 0, "delta": {}, "finish_reason": "length" if is_cut else "stop"}
        lump += _event({"choices": [finish]})
        if self.has_usage:
            lump += _event({"choices": [], "usage": {"prompt_tokens": 40, "completion_tokens": count}})
        await response.write(lump + b"data: [DONE]\n\n")

    async def metrics(self, request: web.Request) -> web.Response:
        if self.counters != "vllm":
            raise web.HTTPNotFound
        return web.Response(text=f'# TYPE x gauge\nvllm:num_requests_running{{model="m"}} {self.running}.0\n')

    async def slots(self, request: web.Request) -> web.Response:
        if self.counters != "llama.cpp":
            raise web.HTTPNotFound
        return web.json_response([{"id": at, "is_processing": at < self.running} for at in range(4)])

    async def loaded(self, request: web.Request) -> web.Response:
        if self.counters != "ollama":
            raise web.HTTPNotFound
        return web.json_response({"models": []})


def _event(fields: object) -> bytes:
    return b"data: " + orjson.dumps(fields) + b"\n\n"


@asynccontextmanager
async def probing(folder: Path, server: Server) -> AsyncIterator[Kernel]:
    app = web.Application(logger=logging.getLogger("test"))
    app.router.add_post("/v1/chat/completions", server.chat)
    app.router.add_get("/metrics", server.metrics)
    app.router.add_get("/slots", server.slots)
    app.router.add_get("/api/ps", server.loaded)
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    server.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    section = {"kind": "openai", "url": server.url, "model": "m-1", "price": PRICE, "retries": 0}
    config = Config.model_validate({"store": f"sqlite:{folder / 'store.db'}", "upstream": {"up": section}, "route": {}})
    kernel = await Kernel.open(config)
    try:
        yield kernel
    finally:
        await kernel.aclose()
        for generation in server._generations:
            generation.cancel()
        await asyncio.gather(*server._generations, return_exceptions=True)
        await runner.cleanup()


def verdicts(found: Probe) -> dict[str, str]:
    return {finding.what: str(finding.verdict) for finding in found.findings}


async def test_a_good_server_is_known_for_one_and_each_call_is_recorded(tmp_path: Path) -> None:
    server = Server(headers={"x-ratelimit-remaining-tokens": "100"})
    async with probing(tmp_path, server) as kernel:
        found = await probe(kernel, "up")
        assert verdicts(found) == dict.fromkeys(QUESTIONS, "yes")
        assert [finding.what for finding in found.findings] == list(QUESTIONS)
        assert last_probe(kernel.store, "up") == found
        assert last_probe(kernel.store, "other") is None
        steps = kernel.store.all("steps_since", count=10)
        told = [(step["workflow"], step["agent"], step["status"]) for step in reversed(steps)]
        assert told == [("doctor", "count", "ok"), ("doctor", "structured", "ok"), ("doctor", "leave", "cancelled")]
        assert found.pico == sum(step["cost_pico"] for step in steps)
        assert found.calls == 3
        assert 0 < found.tokens < 500
        entries = [orjson.loads(row["leaf"]) for row in kernel.store.all("entries", first=0, count=100)]
        (kept,) = [entry for entry in entries if entry["kind"] == "probe"]
        assert kept["findings"] == verdicts(found)
        assert ledger.verify(kernel.store).ok
        assert [body["max_tokens"] for body in server.bodies] == [48, 96, 256]


async def test_a_bad_server_is_found_out(tmp_path: Path) -> None:
    server = Server(is_deaf=True, in_one_lump=True, has_usage=False, keeps_schema=False, token_s=0.005)
    async with probing(tmp_path, server) as kernel:
        found = verdicts(await probe(kernel, "up"))
    assert found == {
        "reachable": "yes", "streams": "no", "usage": "no", "counts": "unknown", "max_tokens": "unknown",
        "rate_headers": "no", "structured": "no", "stops": "unknown",
    }  # fmt: skip


async def test_a_server_that_ignores_schemas_is_told_them_in_words_once_that_was_found_out(
    tmp_path: Path,
) -> None:
    async def asked(kernel: Kernel) -> dict[str, Any]:  # Any: JSON
        request = _request("up", "structured", ModelCall((Message("user", "x"),), "", 9, schema=reply_schema(Ball)))
        async with kernel.door.step(request) as answer:
            await answer.whole()
        return server.bodies[-1]

    server = Server(keeps_schema=False, token_s=0.001)
    async with probing(tmp_path, server) as kernel:
        assert (await asked(kernel))["response_format"]["type"] == "json_schema"
        assert verdicts(await probe(kernel, "up"))["structured"] == "no"
        config = kernel.config
    async with probing(tmp_path, server) as kernel:
        body = await asked(kernel)
        assert body["response_format"] == {"type": "json_object"}
        assert "fits this JSON Schema" in str(body["messages"])
    as_said = config.upstream["up"].model_copy(update={"structured": "json_schema"})  # a person has the last word
    with closing(SQLiteStore(tmp_path / "store.db")) as store:
        assert not _ignores_schemas(store, "up", as_said)
        assert _ignores_schemas(store, "up", config.upstream["up"])


async def test_a_limit_that_is_not_kept_is_seen(tmp_path: Path) -> None:
    async with probing(tmp_path, Server(honours_limit=False, token_s=0.001)) as kernel:
        found = verdicts(await probe(kernel, "up"))
    assert found["max_tokens"] == "no"


@pytest.mark.parametrize("counters", ["vllm", "llama.cpp"])
@pytest.mark.parametrize("is_deaf", [True, False])
async def test_a_server_that_goes_on_for_nobody_is_told_from_one_that_stops(
    tmp_path: Path, counters: str, is_deaf: bool
) -> None:
    async with probing(tmp_path, Server(counters=counters, is_deaf=is_deaf)) as kernel:
        found = await probe(kernel, "up", watch_s=2.0)
    assert verdicts(found)["stops"] == ("no" if is_deaf else "yes")


@pytest.mark.parametrize("counters", ["ollama", "none"])
async def test_without_counters_the_answer_is_unknown_and_says_why(tmp_path: Path, counters: str) -> None:
    async with probing(tmp_path, Server(counters=counters, token_s=0.001)) as kernel:
        found = (await probe(kernel, "up")).findings[-1]
    assert str(found.verdict) == "unknown"
    assert ("Ollama" in found.detail) == (counters == "ollama")


async def test_an_upstream_that_is_gone_is_told_without_its_address(tmp_path: Path) -> None:
    section = {"kind": "openai", "url": "http://127.0.0.1:9/v1", "model": "m", "price": PRICE, "retries": 0}
    config = Config.model_validate({"store": f"sqlite:{tmp_path / 's.db'}", "upstream": {"up": section}, "route": {}})
    kernel = await Kernel.open(config)
    found = await probe(kernel, "up")
    assert verdicts(found) == {"reachable": "no", **dict.fromkeys(QUESTIONS[1:], "unknown")}
    assert "127.0.0.1" not in str(found.as_fields())
    assert "unpriced" not in _bill(found), "it has a price; what failed attempts cost is for the records to say"
    assert last_probe(kernel.store, "up") == found
    await kernel.aclose()


async def test_a_built_in_model_can_be_probed_and_faults_show(tmp_path: Path) -> None:
    config = Config.model_validate(
        {
            "store": f"sqlite:{tmp_path / 's.db'}",
            "upstream": {"up": {"kind": "rehearsal", "price": PRICE, "retries": 0}},
            "route": {},
        }
    )
    upstream = Rehearsal("up", token_ms=5, faults="2nd: no-usage; 3rd: malformed")
    kernel = await Kernel.open(config, models={"up": upstream})
    first = verdicts(await probe(kernel, "up"))
    assert first["structured"] == first["streams"] == first["usage"] == "yes"
    assert first["stops"] == "unknown"
    with pytest.raises(NotFound, match="did you mean 'up'"):
        await probe(kernel, "upp")
    upstream.script = Rehearsal("up", faults="always: garbled").script
    broken = verdicts(await probe(kernel, "up"))
    assert broken["reachable"] == "no"
    assert not upstream.active
    await kernel.aclose()


async def test_a_budget_and_a_switch_stop_the_doctor_too(tmp_path: Path) -> None:
    async with probing(tmp_path, Server()) as kernel:
        await kernel.treasury.set_budget("workflow:default/doctor", period="day", pico=0, tokens=None, actor="t")
        with pytest.raises(BudgetExceeded):
            await probe(kernel, "up")
        await kernel.switches.trip("workflow:default/doctor", cause="enough", actor="t")
        with pytest.raises(SwitchTripped):
            await probe(kernel, "up")
        assert last_probe(kernel.store, "up") is None


def test_counters_are_read_as_servers_print_them() -> None:
    page = b'vllm:num_requests_running{engine="0",model_name="m"} 2.0\nvllm:num_requests_running{engine="1"} 1.0\n'
    assert read_vllm(page) == Load(3)
    assert read_vllm(b"go_goroutines 5\n") is None
    assert read_llama_cpp(b'[{"id":0,"is_processing":true},{"id":1,"state":1},{"id":2,"state":0}]') == Load(2)
    assert read_stats(b'{"active":1,"tokens_after_hangup":4}') == Load(1, 4)
    for nonsense in (b"", b"{", b"[]", b"[1]", b'{"active":"1"}', b"null"):
        assert read_vllm(nonsense) is read_llama_cpp(nonsense) is read_stats(nonsense) is None


# ── the installation ──


def by_name(lines: list[Line]) -> dict[str, Line]:
    return {line.what: line for line in lines}


def config_with(folder: Path, **more: Any) -> Config:  # Any: sections
    upstream = {"up": {"kind": "rehearsal", "price": PRICE}}
    return Config.model_validate({"store": f"sqlite:{folder / 's.db'}", "upstream": upstream, "route": {}, **more})


async def test_a_sound_installation_has_no_problem(tmp_path: Path) -> None:
    config = config_with(tmp_path, serve={"port": 0})
    before = by_name(await check_up(config))
    assert "not there yet" in before["store"].text
    kernel = await Kernel.open(config)
    await kernel.treasury.set_budget("tenant:default", period="total", pico=10**12, tokens=None, actor="t")
    await probe(kernel, "up")
    await kernel.aclose()
    lines = await check_up(config)
    assert {line.state for line in lines if line.what != "files"} == {State.OK}, lines
    assert "streams" in by_name(lines)["probe"].text


async def test_each_thing_that_is_wrong_has_its_line_and_its_next_move(tmp_path: Path) -> None:
    taken = socket.create_server(("127.0.0.1", 0))
    sections = {
        "keyless": {"kind": "openai", "url": "http://x/v1", "model": "m", "key": "env:NO_SUCH_KEY", "price": PRICE},
        "priceless": {"kind": "openai", "url": "http://x/v1", "model": "m"},
    }
    config = config_with(tmp_path, upstream=sections, serve={"port": taken.getsockname()[1]})
    kernel = await Kernel.open(config, can_call=False)
    await kernel.treasury.set_budget("tenant:poor", period="total", pico=0, tokens=None, actor="t")
    await kernel.switches.trip("tenant:legal", cause="too much", actor="t")
    await kernel.aclose()
    lines = await check_up(config)
    taken.close()
    told = [(line.state, line.what) for line in lines if line.state is not State.OK and line.what != "files"]
    assert told == [
        (State.PROBLEM, "upstream"), (State.PROBLEM, "upstream"), (State.WARNING, "address"),
        (State.WARNING, "budget"), (State.WARNING, "switch"),
    ]  # fmt: skip
    text = "\n".join(map(str, lines))
    for move in ("NO_SUCH_KEY", "export", "has no price", "--port 0", "budget set tenant:poor", "switch reset tenant:"):
        assert move in text


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ("DROP TABLE probe", "lacks probe"),
        ("DROP INDEX entry_by_step", "lacks entry_by_step"),
        ("ALTER TABLE probe ADD COLUMN more TEXT", "was changed: probe"),
        ("PRAGMA user_version = 99", "newer release"),
    ],
)
async def test_a_store_that_is_not_as_it_was_made_is_a_problem(tmp_path: Path, change: str, problem: str) -> None:
    config = config_with(tmp_path, serve={"port": 0})
    await (await Kernel.open(config)).aclose()
    with closing(sqlite3.connect(config.store_path())) as connection:
        connection.execute(change)
        connection.commit()
    line = by_name(await check_up(config))["store"]
    assert line.state is State.PROBLEM
    assert problem in line.text


async def test_a_file_that_is_no_store_and_lost_keys_are_problems(tmp_path: Path) -> None:
    config = config_with(tmp_path, serve={"port": 0})
    config.store_path().write_bytes(b"no database at all, but quite some bytes of it" * 100)
    assert by_name(await check_up(config))["store"].state is State.PROBLEM
    config.store_path().unlink()
    await (await Kernel.open(config)).aclose()
    (tmp_path / "s.db.keys" / "pepper").unlink()
    lines = await check_up(config)
    assert lines[-1].state is State.PROBLEM
    assert "backup" in lines[-1].text


def test_the_commands_say_it_in_words_and_as_json(tmp_path: Path) -> None:
    def twolane(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "twolane", *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=30,
            check=False, env={k: v for k, v in os.environ.items() if not k.startswith("TWOLANE_")},
        )  # fmt: skip

    (tmp_path / "twolane.toml").write_text('[serve]\nport = 0\n[upstream.far]\nkind = "openai"\nurl = "http://x/v1"\n'
                                           'model = "m"\nkey = "env:NO_SUCH_KEY"\n')  # fmt: skip
    probed = twolane("doctor", "upstream", "extractive", "--json")
    assert probed.returncode == 0, probed.stderr
    answer = json.loads(probed.stdout)
    assert [each["what"] for each in answer["findings"]] == list(QUESTIONS)
    assert answer["cost"] == "0.00"
    checked = twolane("doctor", "--json")
    assert checked.returncode == 1
    assert json.loads(checked.stdout)["ok"] is False
    words = twolane("doctor")
    assert words.returncode == 1
    assert "problem  upstream  far: the environment variable NO_SUCH_KEY is not set" in words.stdout
    assert twolane("doctor", "upstream", "nope").returncode == 2
