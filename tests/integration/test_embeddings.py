"""Embeddings over real HTTP: with a rehearsal behind the gateway, and with a server that says what a test tells it."""

from __future__ import annotations

import asyncio
import base64
import math
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import jsonschema_rs
import orjson
import pytest
from aiohttp import web
from tests.conformance.gateway import Answer, Gateway, cuts, gateway, hangs, in_turn, refuses, scripted, streams, until

from twolane.config import Config
from twolane.domain.money import PICO
from twolane.domain.records import Kind, Lane, ModelCall, Origin, Usage
from twolane.kernel import Kernel, Request, document
from twolane.models import Model
from twolane.models.anthropic import Anthropic
from twolane.models.extractive import Extractive
from twolane.models.rehearsal import Rehearsal
from twolane.online.app import ROUTES, Server, _listen, create_app
from twolane.online.auth import create_key
from twolane.online.openapi import SCHEMAS, describe

pytestmark = pytest.mark.timeout(30)

PATH = "/v1/embeddings"
ONE = {"model": "auto", "input": "a text"}
VECTOR = [0.5, -0.25, 2.0]
"""Numbers that a 32-bit float holds exactly."""
PACKED = base64.b64encode(struct.pack("<3f", *VECTOR)).decode()


async def asked(gate: Gateway, status: int = 200, **fields: object) -> Any:  # Any: JSON
    """What comes back for the least request and these fields."""
    async with gate.post(PATH, {**ONE, **fields}) as response:
        told = await response.read()
        assert response.status == status, told
        assert response.content_type == "application/json"
        assert response.headers["x-request-id"]
    return orjson.loads(told)


def unpacked(text: str) -> list[float]:
    raw = base64.b64decode(text)
    return list(struct.unpack(f"<{len(raw) // 4}f", raw))


def told(*vectors: object, **fields: object) -> dict[str, object]:
    """A server's answer with these vectors."""
    data = [{"object": "embedding", "index": at, "embedding": vector} for at, vector in enumerate(vectors)]
    usage = {"prompt_tokens": 7, "total_tokens": 7}
    return {"object": "list", "data": data, "model": "m-1", "usage": usage, **fields}


def says(answer: object) -> Answer:
    body = orjson.dumps(answer)

    async def respond(_: web.Request) -> web.StreamResponse:
        return web.Response(body=body, content_type="application/json")

    return respond


WHOLE = orjson.dumps(told(VECTOR))


# ── what comes back ──


@pytest.mark.parametrize(
    ("given", "count", "tokens"),
    [("a text", 1, 2), (["a text", "another"], 2, 4), ([5, 6, 7], 1, 3), ([[5, 6], [7]], 2, 3), (["ü" * 4], 1, 2)],
)
async def test_a_text_a_list_and_tokens_have_their_vectors_and_their_record(
    tmp_path: Path, given: object, count: int, tokens: int
) -> None:
    async with gateway(tmp_path) as gate, gate.post(PATH, {**ONE, "input": given}) as response:
        answer = await response.json()
        assert (response.status, answer["object"], answer["model"]) == (200, "list", "main")
        assert [(each["object"], each["index"]) for each in answer["data"]] == [
            ("embedding", at) for at in range(count)
        ]
        for each in answer["data"]:
            assert math.hypot(*each["embedding"]) == pytest.approx(1, abs=1e-6)
        assert answer["usage"] == {"prompt_tokens": tokens, "total_tokens": tokens}
        (step,) = gate.steps()
        assert (step["kind"], step["status"], step["lane"]) == ("embeddings", "ok", "online")
        assert (step["input_tokens"], step["output_tokens"], step["estimated"]) == (tokens, 0, None)
        assert step["cost_pico"] == tokens * PICO // 10**6
        assert step["ttft_us"] is not None
        assert None not in (step["input_digest"], step["output_digest"])
        told = response.headers
        assert (told["x-twolane-step"], told["x-twolane-route"]) == (step["step"], "auto")
        assert told["x-twolane-reason"]
        assert float(told["x-twolane-cost"]) > 0
        await gate.at_rest()


async def test_the_same_text_has_the_same_vector_in_either_form(tmp_path: Path) -> None:
    async with gateway(tmp_path) as gate:
        numbers = (await asked(gate, dimensions=9))["data"][0]["embedding"]
        packed = (await asked(gate, dimensions=9, encoding_format="base64"))["data"][0]["embedding"]
        other = (await asked(gate, dimensions=9, input="another"))["data"][0]["embedding"]
        assert (len(numbers), unpacked(packed)) == (9, numbers)
        assert other != numbers


async def test_an_answer_in_the_form_asked_for_passes_untouched(tmp_path: Path) -> None:
    odd = (
        b'{ "usage" : {"total_tokens": 7, "prompt_tokens": 7, "x": 1}, "object": "list", "further": 0.10, "model": "m",'
    )
    odd += b'  "data": [{"embedding": [1e-3], "index": 0, "object": "embedding"}]}\n'
    async with scripted(tmp_path, streams(odd[:40], odd[40:])) as (gate, upstream):
        async with gate.post(PATH, {**ONE, "user": "u", "input_type": "query"}) as response:
            assert await response.read() == odd
        assert upstream.bodies == [{"input": "a text", "user": "u", "input_type": "query", "model": "main"}]


@pytest.mark.parametrize(("wanted", "given", "expected"), [("float", PACKED, VECTOR), ("base64", VECTOR, PACKED)])
async def test_an_answer_in_the_other_form_is_written_anew(
    tmp_path: Path, wanted: str, given: object, expected: object
) -> None:
    async with scripted(tmp_path, says(told(*[given] * 70, further=1))) as (gate, upstream):
        answer = await asked(gate, input=["x"] * 70, encoding_format=wanted)
        assert answer == told(*[expected] * 70, further=1)
        assert upstream.bodies[0]["encoding_format"] == wanted
        (step,) = gate.steps()
        assert (step["status"], step["input_tokens"]) == ("ok", 7)


async def test_what_a_server_leaves_out_is_filled_in_and_what_it_mixes_is_put_in_order(tmp_path: Path) -> None:
    bare = {"data": [{"embedding": [1]}, {"embedding": [2]}]}
    mixed = told([1], [2])
    mixed["data"] = [{"index": 1, "embedding": [2]}, {"index": 0, "embedding": [1]}]
    async with scripted(tmp_path, in_turn(says(bare), says(mixed))) as (gate, _):
        for _ in range(2):
            answer = await asked(gate, input=["a", "b"])
            assert [(each["index"], each["embedding"]) for each in answer["data"]] == [(0, [1]), (1, [2])]
            assert answer["object"] == "list"
            assert answer["model"] in ("main", "m-1")
            assert answer["usage"]["prompt_tokens"] == answer["usage"]["total_tokens"] > 0


async def test_a_server_that_knows_no_form_is_asked_without(tmp_path: Path) -> None:
    knows_none = refuses(400, b'{"error": {"message": "unknown field: encoding_format"}}')
    async with scripted(tmp_path, in_turn(knows_none, says(told(VECTOR)))) as (gate, upstream):
        for _ in range(2):
            assert (await asked(gate, encoding_format="base64"))["data"][0]["embedding"] == PACKED
        assert ["encoding_format" in body for body in upstream.bodies] == [True, False, False]
        assert [step["status"] for step in gate.steps()] == ["ok", "ok"]


# ── what is refused ──


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"model": None}, "model"),
        ({"input": None}, "input"),
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": {}}, "input"),
        ({"input": ["a", ""]}, "input[1]"),
        ({"input": ["a", 5]}, "input[1]"),
        ({"input": [5, "a"]}, "input"),
        ({"input": [5, -1]}, "input"),
        ({"input": [True]}, "input[0]"),
        ({"input": [2**31]}, "input"),
        ({"input": [[1], []]}, "input[1]"),
        ({"input": [[1], [1.5]]}, "input[1]"),
        ({"input": ["a"] * 2049}, "input"),
        ({"input": [1] * (2**20 + 1)}, "input"),
        ({"input": [[1] * 2**19, [1] * 2**19, [1]]}, "input"),
        ({"dimensions": 0}, "dimensions"),
        ({"dimensions": 1.5}, "dimensions"),
        ({"dimensions": 2**14 + 1}, "dimensions"),
        ({"encoding_format": "int8"}, "encoding_format"),
        ({"encoding_format": 5}, "encoding_format"),
        ({"stream": True}, "stream"),
        ({"messages": []}, "messages"),
        ({"api_base": "http://127.0.0.1:9"}, "api_base"),
    ],
)
async def test_what_is_wrong_is_refused_by_name(tmp_path: Path, fields: dict[str, object], param: str) -> None:
    upstream = Rehearsal("main")
    async with gateway(tmp_path, upstream) as gate:
        error = (await asked(gate, 400, **fields))["error"]
        assert (error["param"], error["code"], error["type"]) == (param, "invalid_request", "invalid_request_error")
        assert (upstream.requests, gate.steps()) == (0, [])


async def test_the_most_that_may_be_asked_for_is_answered(tmp_path: Path) -> None:
    async with gateway(tmp_path, limit={"context": 256, "output": 8}) as gate:
        assert len((await asked(gate, input=["a"] * 2048, dimensions=1))["data"]) == 2048
        assert (await asked(gate, input=[1] * 20_000))["usage"]["prompt_tokens"] == 20_000


async def test_a_key_and_a_name_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    async with gateway(tmp_path, names=["more"]) as gate:
        assert (await asked(gate, 404, model="auot"))["error"]["code"] == "model_not_found"
        limited = await create_key(gate.kernel, "legal", "ci", ["more"])
        for model, status in (("auto", 403), ("main", 403), ("more", 200)):
            async with gate.post(PATH, {**ONE, "model": model}, {"authorization": f"Bearer {limited}"}) as response:
                assert response.status == status, await response.text()
        await asked(gate, 401)


@pytest.mark.parametrize("model", [Extractive("main"), Anthropic("main", url="http://127.0.0.1:9", key="k")])
async def test_an_upstream_that_makes_none_says_so_before_anything_is_sent(tmp_path: Path, model: Model) -> None:
    async with gateway(tmp_path, model) as gate:
        error = (await asked(gate, 400))["error"]
        assert "makes no embeddings" in error["message"]
        assert "/embeddings" in error["message"]
        (step,) = await gate.recorded()
        assert (step["status"], step["cost_pico"]) == ("failed", 0)


# ── budgets ──


async def test_a_budget_holds_the_input_alone_and_is_charged_what_was_reported(tmp_path: Path) -> None:
    async with gateway(tmp_path) as gate:
        await gate.kernel.treasury.set_budget("tenant:default", period="total", pico=None, tokens=100, actor="t")
        await asked(gate)  # any room for output would not fit
        assert gate.rows("SELECT spent_tokens FROM spending")[0]["spent_tokens"] == 2
        error = (await asked(gate, 429, input="x" * 200))["error"]
        assert error["code"] == "insufficient_quota"
        await gate.at_rest()
        assert [step["status"] for step in gate.steps()] == ["ok"]


async def test_each_input_is_held_with_what_a_model_puts_around_it(tmp_path: Path) -> None:
    async with gateway(tmp_path) as gate:
        await gate.kernel.treasury.set_budget("tenant:default", period="total", pico=None, tokens=1000, actor="t")
        await asked(gate, input=["x"] * 50)
        await asked(gate, 429, input=["x"] * 100)
        await gate.at_rest()


async def test_usage_that_is_missing_is_estimated_and_said_to_be(tmp_path: Path) -> None:
    async with gateway(tmp_path, Rehearsal("main", faults="always: no-usage")) as gate:
        await gate.kernel.treasury.set_budget("tenant:default", period="total", pico=PICO, tokens=None, actor="t")
        answer = await asked(gate)
        (step,) = gate.steps()
        assert (step["estimated"], step["output_tokens"]) == (1, 0)
        assert answer["usage"]["prompt_tokens"] == step["input_tokens"] > 0
        assert step["cost_pico"] == gate.rows("SELECT spent_pico FROM spending")[0]["spent_pico"] > 0
        await gate.at_rest()


# ── what goes wrong on the way ──


FAILURES = {
    "429": (refuses(429, retry_after="2"), 429, "answered 429"),
    "400": (refuses(400), 400, "answered 400"),
    "500": (refuses(500), 502, "answered 500"),
    "hang": (hangs(), 502, "no first token within"),
    "hang in the middle": (hangs(WHOLE[:20]), 502, "no first token within"),
    "cut": (cuts(WHOLE[:20]), 502, "broke off"),
    "half as if whole": (streams(WHOLE[:20]), 502, "not JSON"),
    "nothing": (streams(), 502, "not JSON"),
    "an error": (says({"error": {"message": "out of memory"}}), 502, "out of memory"),
    "an error in words": (says({"error": "out of memory", "data": []}), 502, "out of memory"),
    "a list": (says([]), 502, "not a JSON object"),
    "no data": (says({"object": "list"}), 502, "no list 'data'"),
    "too few": (says(told()), 502, "0 embeddings for 1 inputs"),
    "no vector": (says(told(None)), 502, "no embedding"),
    "a strange number": (says(told(VECTOR) | {"data": [{"index": 3, "embedding": [1]}]}), 502, "numbered"),
}


@pytest.mark.parametrize("name", FAILURES)
async def test_a_failure_is_told_booked_and_let_go(tmp_path: Path, name: str) -> None:
    answer, status, words = FAILURES[name]
    async with scripted(tmp_path, answer, timeout={"first_token_s": 0.3, "idle_s": 5}) as (gate, upstream):
        await gate.kernel.treasury.set_budget("tenant:default", period="total", pico=PICO, tokens=None, actor="t")
        error = (await asked(gate, status))["error"]
        assert error["code"] == "upstream_error"
        assert words in error["message"]
        (step,) = await gate.recorded()
        assert (step["status"], step["output_tokens"]) == ("failed", 0)
        assert step["cost_pico"] == 0 if words.startswith("answered") else step["cost_pico"] > 0
        await until(lambda: upstream.active == 0)
        await gate.at_rest()


@pytest.mark.parametrize("vector", ["not base64!", "AAA=", base64.b64encode(struct.pack("<f", math.inf)).decode()])
async def test_a_vector_that_cannot_be_read_is_the_upstreams_failure(tmp_path: Path, vector: str) -> None:
    async with scripted(tmp_path, says(told(vector))) as (gate, _):
        assert "vector that cannot be read" in (await asked(gate, 502))["error"]["message"]
        (step,) = await gate.recorded()
        assert (step["status"], step["input_tokens"]) == ("failed", 7)
        await gate.at_rest()


@pytest.mark.parametrize("vector", [["x"], [1e308], [None], [[1.0]]])
async def test_numbers_that_no_float_holds_are_the_upstreams_failure(tmp_path: Path, vector: list[object]) -> None:
    async with scripted(tmp_path, says(told(vector))) as (gate, _):
        await asked(gate, 502, encoding_format="base64")
        assert (await asked(gate))["data"][0]["embedding"] == vector  # whoever wants them as they are has them


@pytest.mark.parametrize("first", [refuses(500), cuts(WHOLE[:20]), streams(WHOLE[:-9])])
async def test_what_failed_is_tried_again_since_nobody_has_seen_a_part_of_it(tmp_path: Path, first: Answer) -> None:
    async with scripted(tmp_path, in_turn(first, says(told(VECTOR))), retries=1) as (gate, upstream):
        assert (await asked(gate))["data"][0]["embedding"] == VECTOR
        assert [(step["attempt"], step["status"]) for step in gate.steps()] == [(1, "failed"), (2, "ok")]
        assert len(upstream.bodies) == 2
        await gate.at_rest()


async def test_an_answer_too_large_to_keep_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(document, "MAX_DOCUMENT_BYTES", 2**20)

    async def endless(request: web.Request) -> web.StreamResponse:
        response = await streams()(request)
        while True:
            await response.write(b" " * 65_536)

    async with scripted(tmp_path, endless) as (gate, upstream):
        message = (await asked(gate, 502))["error"]["message"]
        assert "larger than 1 MB" in message
        assert "base64" in message
        await until(lambda: upstream.active == 0)
        await gate.at_rest()


async def test_a_client_that_leaves_ends_the_upstream(tmp_path: Path) -> None:
    async with scripted(tmp_path, hangs(WHOLE[:20])) as (gate, upstream):
        await gate.kernel.treasury.set_budget("tenant:default", period="total", pico=PICO, tokens=None, actor="t")
        client = asyncio.create_task(asked(gate))
        await until(lambda: upstream.active)
        client.cancel()
        await until(lambda: upstream.active == 0)
        (step,) = await gate.recorded()
        assert (step["status"], step["output_tokens"]) == ("cancelled", 0)
        await gate.at_rest()


async def test_a_switch_ends_the_upstream(tmp_path: Path) -> None:
    async with scripted(tmp_path, hangs(WHOLE[:20])) as (gate, upstream):
        client = asyncio.create_task(asked(gate, 503))
        await until(lambda: upstream.active)
        await gate.kernel.switches.trip("tenant:default", cause="fire", actor="t")
        assert (await client)["error"]["code"] == "switch_tripped"
        await until(lambda: upstream.active == 0)
        assert [step["status"] for step in await gate.recorded()] == ["killed"]
        await asked(gate, 503)
        await gate.at_rest()


async def test_a_full_lane_refuses(tmp_path: Path) -> None:
    asleep = Rehearsal("main", first_token_ms=60_000)
    async with gateway(tmp_path, asleep, slots={"online": 1}) as gate:
        route = gate.kernel.config.route
        route["auto"] = route["auto"].model_copy(update={"deadline_ms": 20})
        first = asyncio.create_task(asked(gate))
        await until(lambda: asleep.active)
        assert (await asked(gate, 429))["error"]["code"] == "lane_full"
        first.cancel()
        await gate.at_rest()


@asynccontextmanager
async def two_upstreams(folder: Path, main: Model, spare: Model) -> AsyncIterator[Gateway]:
    section = {"kind": "rehearsal", "price": {"input": "1", "output": "2"}, "slots": {"online": 4}, "retries": 0}
    config = Config.model_validate(
        {
            "store": f"sqlite:{folder / 'store.db'}",
            "upstream": {"main": section, "spare": section},
            "route": {"auto": {"light": "main", "fallback": ["spare"]}},
        }
    )
    kernel = await Kernel.open(config, models={"main": main, "spare": spare})
    await kernel.lanes.hold(Lane.ONLINE)
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


@pytest.mark.parametrize("main", [
    *(Rehearsal("main", faults=f"always: {fault}") for fault in ("503", "unreachable", "cut 1", "error 0", "no-done")),
    Extractive("main"),
])  # fmt: skip
async def test_another_upstream_answers_where_one_cannot(tmp_path: Path, main: Model) -> None:
    async with two_upstreams(tmp_path, main, Rehearsal("spare")) as gate:
        assert (await asked(gate))["model"] == "spare"
        steps = [(step["upstream"], step["status"] == "ok") for step in gate.steps()]
        assert steps == [("main", False), ("spare", True)]
        await gate.at_rest()


async def test_every_answer_is_as_described(tmp_path: Path) -> None:
    operation = describe(ROUTES)["paths"][PATH]["post"]
    schemas = {"components": {"schemas": SCHEMAS}}
    async with gateway(tmp_path) as gate:
        odd: tuple[object, ...] = ("x", ["x"], [1], [[1]], [], [[]], "", None, [{}], {})
        for given in odd:
            for form in ("float", "base64", None, "int8"):
                body = {**ONE, "input": given, "encoding_format": form}
                async with gate.post(PATH, body) as response:
                    told = operation["responses"]["200" if response.status == 200 else "4XX"]
                    schema = told["content"]["application/json"]["schema"] | schemas
                    jsonschema_rs.validator_for(schema).validate(await response.json())
                asked_for = jsonschema_rs.validator_for({"$ref": "#/components/schemas/EmbeddingsRequest"} | schemas)
                assert asked_for.is_valid(body) == (response.status == 200), body


# ── in the batch lane ──


async def test_a_run_may_ask_for_embeddings_too(tmp_path: Path) -> None:
    async with gateway(tmp_path, Rehearsal("main", faults="1st: cut 1"), retries=1, slots={"batch": 1}) as gate:
        kernel, origin = gate.kernel, Origin("legal", workflow="index", run="r1")
        await kernel.treasury.set_budget("run:r1", period="total", pico=PICO, tokens=100, actor="t")
        call = ModelCall((), "", 0, extras={"input": ["a text", "another"]}, kind=Kind.EMBEDDINGS)
        route = kernel.route("auto", origin, lane=Lane.BATCH)
        request = Request(origin, Lane.BATCH, route, call, is_bounded_by_caller=False)
        async with kernel.door.step(request) as answer:
            assert len((await answer.document()).data) == 2
        assert (await answer.durable()).usage == Usage(4, 0)
        steps = [(step["kind"], step["status"], step["output_tokens"]) for step in gate.steps()]
        assert steps == [("embeddings", "failed", 0), ("embeddings", "ok", 0)]
        await gate.at_rest()
