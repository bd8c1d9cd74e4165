"""The own API, and the description that everything the gateway answers is held against."""

from __future__ import annotations

import asyncio
import copy
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import jsonschema_rs
import orjson
import pytest
from pydantic import BaseModel

from twolane import Document, Item, Platform, Prompt, agent, workflow
from twolane.config import Config
from twolane.domain.records import Lane
from twolane.kernel import Kernel
from twolane.models.rehearsal import Rehearsal
from twolane.online.app import ROUTES, Server, _listen, create_app
from twolane.online.auth import create_key
from twolane.online.openapi import describe
from twolane.online.probe import probe

pytestmark = pytest.mark.timeout(40)

PRICE = {"input": "1", "output": "2"}
ANY = {"model": "auto", "messages": [{"role": "user", "content": "count"}]}


@dataclass
class Gateway:
    """A running gateway."""

    kernel: Kernel
    http: aiohttp.ClientSession
    url: str
    server: Server

    async def get(self, path: str, key: str = "", *, status: int = 200) -> Any:  # Any: JSON
        headers = {"authorization": f"Bearer {key}"} if key else {}
        async with self.http.get(self.url + path, headers=headers) as response:
            assert response.status == status, await response.text()
            assert response.content_type == "application/json"
            return await response.json()


@asynccontextmanager
async def gateway(folder: Path) -> AsyncIterator[Gateway]:
    section = {"kind": "rehearsal", "price": PRICE, "retries": 0, "slots": {"online": 3, "batch": 2}}
    config = Config.model_validate(
        {
            "store": f"sqlite:{folder / 's.db'}",
            "upstream": {"main": section, "other": {"kind": "rehearsal", "unpriced": "allow"}},
            "route": {"auto": {"light": "main"}},
        }
    )
    kernel = await Kernel.open(config, models={"main": Rehearsal("main", reply="one two", input_tokens=10)})
    await kernel.lanes.hold(Lane.ONLINE)  # as `serve` does
    ready = asyncio.Event()
    server = Server(create_app(kernel), on_ready=ready.set)
    with _listen("127.0.0.1", 0) as listener:
        running = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            async with aiohttp.ClientSession() as http:
                await ready.wait()
                yield Gateway(kernel, http, f"http://127.0.0.1:{listener.getsockname()[1]}", server)
        finally:
            server.should_exit = True
            await running
            await kernel.aclose()


# ── what is told ──


async def test_a_step_is_shown_to_its_tenant_alone(tmp_path: Path) -> None:
    async with gateway(tmp_path) as gate:
        mine, theirs = await create_key(gate.kernel, "legal", "ci"), await create_key(gate.kernel, "sales", "ci")
        headers = {"authorization": f"Bearer {mine}"}
        async with gate.http.post(f"{gate.url}/v1/chat/completions", json=ANY, headers=headers) as response:
            step = response.headers["x-twolane-step"]
        told = await gate.get(f"/api/v1/steps/{step}", mine)
        assert (told["step"], told["tenant"], told["status"], told["cost"]) == (step, "legal", "ok", "0.000014")
        await gate.get(f"/api/v1/steps/{step}", theirs, status=404)
        await gate.get(f"/api/v1/steps/{step}", status=401)
        for wrong in ("0" * 24, "nope", "%00", "1' OR '1'='1"):
            await gate.get(f"/api/v1/steps/{wrong}", mine, status=404)


async def test_a_key_is_told_its_own_tenants_costs_by_whatever_it_asks(tmp_path: Path) -> None:
    async with gateway(tmp_path) as gate:
        mine, theirs = await create_key(gate.kernel, "legal", "ci"), await create_key(gate.kernel, "sales", "ci")
        for key, count in ((mine, 2), (theirs, 1)):
            for _ in range(count):
                headers = {"authorization": f"Bearer {key}"}
                async with gate.http.post(f"{gate.url}/v1/chat/completions", json=ANY, headers=headers) as response:
                    assert response.status == 200
        told = await gate.get("/api/v1/costs?by=tenant,upstream&since=1d", mine)
        assert (told["currency"], told["total"], told["has_more"]) == ("USD", "0.000028", False)
        assert [(row["key"], row["cost"], row["calls"]) for row in told["rows"]] == [("legal/main", "0.000028", 2)]
        assert (await gate.get("/api/v1/costs", theirs))["total"] == "0.000014"
        for query in ("by=colour", "since=later", "tenant=legal", "by=day&by=key", "by", "until=7d", "by=%ff"):
            await gate.get(f"/api/v1/costs?{query}", mine, status=400)
        await gate.get("/api/v1/costs", status=401)


async def test_upstreams_are_those_within_a_keys_reach(tmp_path: Path) -> None:
    async with gateway(tmp_path) as gate:
        everything = await create_key(gate.kernel, "legal", "ci")
        auto_only = await create_key(gate.kernel, "legal", "auto", ["auto"])
        await gate.kernel.lanes.hold(Lane.ONLINE)
        await probe(gate.kernel, "main")
        told = await gate.get("/api/v1/upstreams", everything)
        assert [upstream["name"] for upstream in told["upstreams"]] == ["main", "other"]
        main, other = told["upstreams"]
        price = {"id": gate.kernel.upstreams["main"].price_id, "from": "own", "input": "1.00", "output": "2.00"}
        assert main["price"] == price
        idle = {"busy": 0, "borrowed": 0, "lent": 0, "waiting": 0, "calls_left": None, "tokens_left": None}
        lanes = main["lanes"]
        assert lanes.pop("source") == "live"
        assert lanes["online"] == {**idle, "slots": 3, "held": 3, "limit": 3, "breaker": "closed"}
        assert lanes["batch"] == {**idle, "slots": 2, "held": 0, "limit": 0, "breaker": "closed"}
        assert main["probe"]["findings"][0] == {
            "what": "reachable", "verdict": "yes", "detail": main["probe"]["findings"][0]["detail"],
        }  # fmt: skip
        assert (other["price"], other["probe"]) == (None, None)
        told = await gate.get("/api/v1/upstreams", auto_only)
        assert [upstream["name"] for upstream in told["upstreams"]] == ["main"]


async def test_budgets_and_switches_are_those_of_the_keys_tenant(tmp_path: Path) -> None:
    async with gateway(tmp_path) as gate:
        mine, theirs = await create_key(gate.kernel, "legal", "ci"), await create_key(gate.kernel, "legal2", "ci")
        for scope in ("tenant:legal", "key:legal/ci", "workflow:legal/audit", "tenant:legal2", "run:r1", "item:r1/a"):
            await gate.kernel.treasury.set_budget(scope, period="total", pico=10**12, tokens=5, actor="t")
            await gate.kernel.switches.trip(scope, cause="why", actor="t")
        told = await gate.get("/api/v1/budgets", mine)
        scopes = ["key:legal/ci", "tenant:legal", "workflow:legal/audit"]
        assert [budget["scope"] for budget in told["budgets"]] == scopes
        assert told["budgets"][0] == {
            "scope": "key:legal/ci", "period": "total",
            "limit": "1.00", "spent": "0.00", "held": "0.00", "leased": "0.00", "remaining": "1.00",
            "tokens": {"limit": 5, "spent": 0, "held": 0, "leased": 0, "remaining": 5},
        }  # fmt: skip
        told = await gate.get("/api/v1/switches", mine)
        assert sorted(switch["scope"] for switch in told["switches"]) == scopes
        await gate.kernel.switches.trip("all", cause="fire", actor="t")
        told = await gate.get("/api/v1/switches", theirs)
        assert [switch["scope"] for switch in told["switches"]] == ["tenant:legal2", "all"]


# ── the description ──


def test_every_route_is_described_and_no_other() -> None:
    described = {
        (method.upper(), path)
        for path, operations in describe(ROUTES)["paths"].items()
        for method in operations
    }  # fmt: skip
    assert described == {(route.method, route.path.replace(":path}", "}")) for route in ROUTES}


def test_the_description_says_where_a_key_is_needed() -> None:
    paths = describe(ROUTES)["paths"]
    for route in ROUTES:
        operation = paths[route.path.replace(":path}", "}")][route.method.lower()]
        assert (operation.get("security") == []) == route.is_open
        assert ("401" in operation["responses"]) != route.is_open


ODD: tuple[Any, ...] = (  # Any: JSON
    None, True, 0, -1, 1.5, 2**70, "", "x", "\u0000",
    [], [None], [[]], {}, {"": {}}, {"type": 1}, {"type": "json_schema"},
    [{"role": 1}], [{"role": "user", "content": [{"type": "text"}]}], [{"role": "user", "content": {}}],
)  # fmt: skip


def odd_requests() -> list[bytes]:
    fields = (
        "model", "messages", "stream", "stream_options", "n", "max_tokens", "max_completion_tokens", "temperature",
        "response_format", "tools", "stop", "api_base", "logprobs",
    )  # fmt: skip
    bodies = [orjson.dumps({**ANY, name: value}) for name in fields for value in ODD if value != 2**70]
    bodies += [b'{"model": "auto", "messages": [{"role": "u", "content": "x"}], "%s": %d}' % (name.encode(), 2**70)
               for name in fields]  # fmt: skip
    bodies += [orjson.dumps(value) for value in ODD if value != 2**70]
    return [*bodies, b"", b"[", b"nul", b'{"model": "\xff"}', b"[" * 2000, b'{"a": "\\ud800"}']


async def test_every_answer_to_odd_requests_is_as_described(tmp_path: Path) -> None:
    async with gateway(tmp_path) as gate:
        description = await gate.get("/api/v1/openapi.json")
        for body in odd_requests():
            async with gate.http.post(f"{gate.url}/v1/chat/completions", data=body) as response:
                answer = await response.read()
                assert response.status in range(200, 500), (body[:200], answer)
                check(description, "/v1/chat/completions", "post", response, answer)


async def test_every_reading_is_as_described(tmp_path: Path) -> None:
    async with gateway(tmp_path) as gate:
        await gate.kernel.treasury.set_budget("tenant:default", period="day", pico=10**12, tokens=10**6, actor="t")
        await gate.kernel.switches.trip("tenant:default", cause="why", actor="t")
        await gate.kernel.switches.reset("tenant:default", cause="why", actor="t")
        await gate.kernel.switches.trip("key:default/k", cause="why", actor="t")
        async with gate.http.post(f"{gate.url}/v1/chat/completions", json=ANY) as response:
            ids = ("main", "nope", response.headers.get("x-twolane-step", ""), "", "a/b", "%20")
        await probe(gate.kernel, "other")
        description = await gate.get("/api/v1/openapi.json")
        for path, operations in description["paths"].items():
            for each in ids if "{" in path and "get" in operations else ("",):
                if "get" not in operations:
                    continue
                async with gate.http.get(gate.url + path.replace("{id}", each).replace("{run}", each)) as response:
                    check(description, path, "get", response, await response.read())


async def test_a_wrong_method_is_told_which_are_right(tmp_path: Path) -> None:
    async with gateway(tmp_path) as gate:
        async with gate.http.put(f"{gate.url}/v1/models") as response:
            assert (response.status, response.headers["allow"]) == (405, "GET, HEAD")
        async with gate.http.get(f"{gate.url}/v1/chat/completions") as response:
            assert (response.status, response.headers["allow"]) == (405, "POST")


def check(description: Any, path: str, method: str, response: aiohttp.ClientResponse, body: bytes) -> None:
    """Any: JSON. Status, content type and shape of an answer are those that are described."""
    told = description["paths"][path][method]["responses"]
    status = str(response.status)
    expected = told.get(status) or told.get(f"{status[0]}XX") or (told.get("404") if status == "404" else None)
    if expected is None and status == "404":  # an empty id names another address, or none
        expected = {"content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}}
    assert expected is not None, f"{path}: {status} is not described"
    media = expected["content"][response.content_type]
    if response.content_type == "application/json":
        schema = copy.deepcopy(media["schema"]) | {"components": description["components"]}
        jsonschema_rs.validator_for(schema).validate(orjson.loads(body))


# ── runs, as events ──


class Word(BaseModel):
    text: str


@agent(returns=Word, route="auto")
def reader(contract: Document) -> Prompt:
    return Prompt(system="You read.", user="What is it?", context=(contract,), max_tokens=50)


@workflow(version="1")
async def review(contract: Document, do: Item) -> Word:
    return await do(reader, contract)


async def events(response: aiohttp.ClientResponse) -> AsyncIterator[tuple[str, Any]]:  # Any: JSON
    kind = ""
    async for line in response.content:
        name, _, value = line.decode().rstrip("\n").partition(": ")
        if name == "event":
            kind = value
        elif name == "data":
            yield kind, orjson.loads(value)


async def test_a_run_is_told_as_events_until_it_is_over_and_to_its_tenant_alone(tmp_path: Path) -> None:
    async with gateway(tmp_path) as gate:
        mine, theirs = await create_key(gate.kernel, "legal", "ci"), await create_key(gate.kernel, "sales", "ci")
        platform = Platform(gate.kernel)
        documents = [Document(f"c{number}", "A contract.") for number in range(3)]
        run = await platform.start(review, documents, tenant="legal")
        path, description = f"/api/v1/runs/{run}/events", describe(ROUTES)
        for key, status in (("", 401), (theirs, 404)):
            await gate.get(path, key, status=status)
        await gate.get("/api/v1/runs/nope/events", mine, status=404)
        async with gate.http.head(gate.url + path, headers={"authorization": f"Bearer {mine}"}) as response:
            assert (response.status, response.content_type) == (200, "text/event-stream")
        async with gate.http.get(gate.url + path, headers={"authorization": f"Bearer {mine}"}) as response:
            assert response.content_type == "text/event-stream"
            told = events(response)
            kind, first = await anext(told)
            assert (kind, first["status"], first["left_s"]) == ("progress", "queued", None)
            await platform.work(run, flow=review)
            rest = [each async for each in told]
        assert [kind for kind, _ in rest].count("end") == 1
        kind, last = rest[-1]
        assert (kind, last["status"], last["items"]["quarantined"]) == ("end", "done", 3)
        schema = copy.deepcopy(description["components"]["schemas"]["RunProgress"])
        validator = jsonschema_rs.validator_for(schema | {"components": description["components"]})
        for state in (first, *(state for _, state in rest)):
            validator.validate(state)
        assert gate.kernel.watching.watched == 0


async def test_whoever_stops_watching_frees_it_and_a_draining_server_lets_go(tmp_path: Path) -> None:
    async with gateway(tmp_path) as gate:
        run = await Platform(gate.kernel).start(review, [Document("c", "A contract.")])
        watching = gate.kernel.watching
        async with gate.http.get(f"{gate.url}/api/v1/runs/{run}/events") as response:
            await anext(events(response))
            assert watching.watched == 1
        async with asyncio.timeout(10):
            while watching.watched:  # the server hears of the hang-up in its own time
                await asyncio.sleep(0.01)
        async with gate.http.get(f"{gate.url}/api/v1/runs/{run}/events") as response:
            told = events(response)
            await anext(told)
            gate.server.handle_exit(signal.SIGTERM, None)
            async with asyncio.timeout(10):
                assert {kind async for kind, _ in told} <= {"progress"}


# ── a stranger's test of the same ──


def test_schemathesis_finds_nothing(tmp_path: Path) -> None:
    pytest.importorskip("schemathesis", reason="sends what it makes of the description; part of the extra dev")
    (tmp_path / "twolane.toml").write_text(
        '[upstream.main]\nkind = "rehearsal"\nprice = { input = "1", output = "2" }\noptions = { reply = "one two" }\n'
        '[route.auto]\nlight = "main"\n'
    )

    def twolane(*arguments: str) -> list[str]:
        return [sys.executable, "-m", "twolane", *arguments]

    made = subprocess.run(
        # Not the built-in upstream: it makes no embeddings, which no schema can say of a model's name.
        twolane("key", "create", "--tenant", "legal", "--name", "ci", "--models", "auto,main"),
        cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    with subprocess.Popen(twolane("serve", "--port", "0"), cwd=tmp_path, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        url = server.stdout.readline().split()[-1].removesuffix("/v1")
        run = "from schemathesis.cli import schemathesis; schemathesis()"
        done = subprocess.run(
            [
                sys.executable, "-c", run, "run", f"{url}/api/v1/openapi.json",
                "--url", url, "--checks", "all", "--no-color",
                "--header", f"Authorization: Bearer {made.stdout.strip()}", "--max-examples", "8", "--seed", "1",
                "--phases", "coverage,fuzzing",
            ],
            cwd=tmp_path, capture_output=True, text=True, timeout=35, check=False,
        )  # fmt: skip
        server.terminate()
    assert done.returncode == 0, done.stdout
