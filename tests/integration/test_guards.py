"""Guards in the whole house: what a verdict does, and what it leaves alone."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest
from pydantic import BaseModel
from tests.integration.test_api import ANY, gateway
from tests.integration.test_step import config, opened, rehearsal, request, run_to_end
from tests.integration.test_switches import entries

from twolane import Document, Item, Platform, Prompt, agent, workflow
from twolane.batch import run as runs
from twolane.batch.worker import Worker
from twolane.config import Config, Slots
from twolane.domain.money import PICO
from twolane.domain.records import Lane, ModelCall, Origin, Price
from twolane.errors import Runaway, Unavailable, UpstreamError
from twolane.kernel import Kernel, ledger, rollups
from twolane.kernel.guards import COOL_S, Guards, RunWatch
from twolane.models.rehearsal import Rehearsal
from twolane.rules.guards import DEFAULTS, Limits, Verdict

pytestmark = pytest.mark.timeout(60)

FAR = Verdict("cost-velocity", "it costs too much", {"times": "12"}, is_far=True)
HARD = Verdict("cost-velocity", "it costs too much", {"times": "2"}, is_hard=True)
BURN = Verdict("token-burn", "it goes on", {"tokens": 9})


class Note(BaseModel):
    text: str


@agent(returns=Note, route="m", repairs=0)
def reader(contract: Document) -> Prompt:
    return Prompt(system="Read.", user="What is it?", context=(contract,), max_tokens=60_000)


@workflow(version="1")
async def review(contract: Document, do: Item) -> Note:
    return await do(reader, contract)


def settings(folder: Path, **guard: dict[str, Any]) -> Config:  # Any: fields of a section
    section = {"kind": "rehearsal", "model": "m", "price": {"input": "1000", "output": "1000"}, "retries": 0}
    return Config.model_validate(
        {
            "store": f"sqlite:{folder / 'store.db'}",
            "upstream": {"m": section | {"slots": Slots(online=2, batch=2), "limit": {"output": 60_000}}},
            "route": {},
            "guard": {name.replace("_", "-"): fields for name, fields in guard.items()},
        }
    )


def documents(count: int) -> list[Document]:
    return [Document(f"c{n}", f"<c{n}> a contract of some words") for n in range(count)]


async def played(
    folder: Path, reply: Callable[[ModelCall], str], **guard: dict[str, Any]
) -> tuple[Platform, str]:  # Any: see above
    platform = await Platform.open(settings(folder, **guard), models={"m": Rehearsal("m", reply=reply)})
    return platform, await platform.start(review, documents(120))


def raise_price(kernel: Kernel, times: int) -> None:
    upstream = kernel.upstreams["m"]
    kernel.upstreams["m"] = replace(upstream, price=Price(10**9 * times, 10**9 * times))


# ── pauses ──


@pytest.mark.parametrize("mode", ["on", "shadow", "off"])
async def test_a_run_whose_steps_grow_dear_is_paused_or_only_told_of(tmp_path: Path, mode: str) -> None:
    asked = 0

    def reply(call: ModelCall) -> str:
        nonlocal asked
        asked += 1
        if asked == 60:
            raise_price(platform.kernel, 10)
        return '{"text": "one two three"}'

    platform, run = await played(tmp_path, reply, cost_velocity={"mode": mode})
    async with platform:
        summary = await platform.work(run, flow=review)
        told = entries(platform.kernel, "guard")
        if mode != "on":
            assert (summary.status, summary.items["done"]) == ("done", 120)
            assert [each["mode"] for each in told] == (["shadow"] if mode == "shadow" else [])
            return
        assert (summary.status, summary.exit_code) == ("stopped", 3)
        assert summary.reason.startswith("guard: cost-velocity: its steps cost ")
        assert f"twolane run resume {run}" in summary.reason
        assert summary.items["done"] < 60 + 16
        (entry,) = told
        assert (entry["stage"], entry["run"], entry["agent"]) == ("pause", run, "reader")
        assert isinstance(entry["evidence"], dict)
        assert float(entry["evidence"]["times"]) > 3
        assert platform.kernel.store.all("switches") == [], "one guard alone kills nothing"
        raise_price(platform.kernel, 1)
        await platform.prepare_resume(run)
        again = await platform.work(run, flow=review)
        assert (again.status, again.items["done"]) == ("done", 120)
        assert ledger.verify(platform.kernel.store).problem == ""


@workflow(version="1")
async def ponder(contract: Document, do: Item) -> Note:
    note = await do(reader, contract)
    for _ in range(200 if contract.id == "c7" else 0):
        note = await do(thinker, contract, note)
    return note


@agent(returns=Note, route="m", repairs=0)
def thinker(contract: Document, note: Note) -> Prompt:
    return Prompt(system="Think on.", user=note.text, context=(contract,), max_tokens=60_000)


async def test_an_item_that_goes_on_by_itself_is_stopped_by_the_pause_of_its_run(tmp_path: Path) -> None:
    asked = 0

    def reply(call: ModelCall) -> str:
        nonlocal asked
        asked += any("Think on." in message.content for message in call.messages)
        if asked == 60:
            raise_price(platform.kernel, 100)
        return f'{{"text": "thought {asked}"}}'

    platform = await Platform.open(
        settings(tmp_path, no_progress={"mode": "off"}), models={"m": Rehearsal("m", reply=reply)}
    )
    async with platform:
        summary = await platform.work(await platform.start(ponder, documents(20)), flow=ponder)
        assert (summary.status, summary.items["quarantined"]) == ("stopped", 0)
        assert summary.reason.startswith("guard: cost-velocity"), summary.reason
        assert asked < 60 + 8


@agent(returns=Note, route="m", repairs=0)
def voter(contract: Document, sample: int) -> Prompt:
    return Prompt(system="Vote.", user="What is it?", context=(contract,), temperature=0.9, sample=sample)


@workflow(version="1")
async def vote(contract: Document, do: Item) -> Note:
    return (await asyncio.gather(*(do(voter, contract, sample) for sample in range(7))))[0]


async def test_samples_that_agree_are_no_loop(tmp_path: Path) -> None:
    text = " ".join(f"word{at}" for at in range(40))
    model = Rehearsal("m", reply=f'{{"text": "{text}"}}')
    async with await Platform.open(settings(tmp_path), models={"m": model}) as platform:
        summary = await platform.work(await platform.start(vote, documents(2)), flow=vote)
        assert (summary.items["done"], summary.items["quarantined"], model.requests) == (2, 0, 14)


async def test_what_waits_for_memory_does_not_begin_once_its_run_stops(tmp_path: Path) -> None:
    asked, size = 0, 200_000

    def reply(call: ModelCall) -> str:
        nonlocal asked
        asked += 1
        raise UpstreamError("m", "it knows no such key", http_status=401)

    loaded = settings(tmp_path)
    loaded = loaded.model_copy(update={"work": loaded.work.model_copy(update={"memory": f"{size * 12 // 1000}KB"})})
    async with await Platform.open(loaded, models={"m": Rehearsal("m", reply=reply)}) as platform:
        bulky = [Document(f"c{n}", "word " * (size // 5)) for n in range(4)]
        summary = await platform.work(await platform.start(review, bulky), flow=review)
        assert (summary.status, summary.items["quarantined"], asked) == ("stopped", 0, 1)


@pytest.mark.parametrize("mode", ["on", "off"])
async def test_the_guards_hear_of_every_item_that_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    def reply(call: ModelCall) -> str:
        if any("<c3>" in message.content for message in call.messages):
            row = platform.kernel.store.one("item", run=run, name="c3")
            assert row is not None
            finished = {"run": run, "position": row["position"], "output": None}  # by another process, which was faster
            platform.kernel.store.submit(lambda tx: tx.run("finish_item", **finished))
        return '{"text": "one two three"}'

    watches, watch = list[RunWatch](), Guards.run

    def watched(guards: Guards, *who: Any) -> RunWatch:  # Any: passed on
        watches.append(watch(guards, *who))
        return watches[-1]

    monkeypatch.setattr(Guards, "run", watched)
    platform, run = await played(tmp_path, reply, schema_failures={"mode": mode})
    async with platform:
        assert (await platform.work(run, flow=review)).status == "done"
        assert (len(watches[0]._begun), len(watches[0]._ended), len(watches[0]._loops)) == (0, 0, 0)


async def test_what_other_workers_spend_counts_against_the_runs_forecast(tmp_path: Path) -> None:
    platform, run = await played(tmp_path, lambda call: "")
    async with platform:
        kernel, foreseen = platform.kernel, b'{"cost": {"high": "1"}, "seconds": {"high": 60}}'
        worker = Worker(kernel, review, run, _began=time.monotonic())
        row = {**runs.find(kernel, run), "forecast": foreseen}
        worker._guard(row)
        for dollars in (1, 3):
            fields = {"status": "ok", "tenant": "t", "run": run, "at_us": ledger.now_us(), "cost_pico": 0}
            await kernel.store.write(lambda tx: rollups.count(tx, fields, pico=dollars * PICO))  # noqa: B023
            worker._foresees_at = 0.0
            worker._guard(row)
            worker._items.watch.step(replace(request(), origin=Origin("t", run=run, item="c1")), 1)
            assert (worker._items.stop is not None) == (dollars == 3)


async def test_a_stream_that_repeats_itself_costs_its_item_and_not_the_run(tmp_path: Path) -> None:
    def reply(call: ModelCall) -> str:
        is_bad = any("<c7>" in message.content for message in call.messages)
        return '{"text": "' + "again and again. " * 15_000 if is_bad else '{"text": "one two three"}'

    platform, run = await played(tmp_path, reply)
    async with platform:
        summary = await platform.work(run, flow=review)
        assert (summary.status, summary.items["done"], summary.items["quarantined"]) == ("done", 119, 1)
        (row,) = platform.kernel.store.all("quarantined", run=run)
        assert (row["name"], row["kind"]) == ("c7", "guard")
        (entry,) = entries(platform.kernel, "guard")
        assert (entry["guard"], entry["stage"]) == ("repetition", "pause")
        assert entry["item"] not in (None, "c7"), "an item stands in a leaf by its pseudonym"
        (killed,) = [r for r in platform.kernel.store.all("steps_since", count=500) if r["status"] == "killed"]
        assert killed["reason"].startswith("guard repetition: the last 4096 bytes")
        assert killed["output_tokens"] < 5_000


async def test_a_clients_stream_that_repeats_itself_ends_with_an_error_it_need_not_repeat(tmp_path: Path) -> None:
    async with gateway(tmp_path) as gate:
        main = gate.kernel.upstreams["main"].model
        assert isinstance(main, Rehearsal)
        main.script = replace(main.script, reply="again and again. " * 15_000)
        async with gate.http.post(f"{gate.url}/v1/chat/completions", json={**ANY, "stream": True}) as response:
            events = (await response.text()).strip().split("\n\n")
        error = orjson.loads(events[-1].removeprefix("data: "))["error"]
        assert error["code"] == "guard_tripped"
        assert len(events) < 3_000
        async with gate.http.post(f"{gate.url}/v1/chat/completions", json=ANY) as response:
            assert (response.status, response.headers["x-should-retry"]) == (502, "false")
        main.script = replace(main.script, reply="one two")
        async with gate.http.post(f"{gate.url}/v1/chat/completions", json=ANY) as response:
            assert response.status == 200, "its key is none the worse"


async def test_a_paused_key_is_closed_refused_and_comes_back(tmp_path: Path) -> None:
    model, now = rehearsal("always: hang 2"), [1_000.0]
    async with opened(tmp_path, model) as kernel:
        kernel.guards._clock = lambda: now[0]
        asked = replace(request("", lane=Lane.ONLINE), origin=Origin("t", key="k"))
        running = asyncio.create_task(run_to_end(kernel, asked))
        while model.tokens < 2:
            await asyncio.sleep(0)
        kernel.guards.stop_whole(FAR, asked.origin)
        with pytest.raises(BaseException, match="paused: guard cost-velocity"):
            await running
        with pytest.raises(Unavailable, match="paused by a guard") as refused:
            await run_to_end(kernel, asked)
        assert (refused.value.code, refused.value.retry_after_s, refused.value.should_retry) == (
            "guard_paused", COOL_S, True,
        )  # fmt: skip
        model.script = rehearsal().script
        await run_to_end(kernel, replace(asked, origin=Origin("t", key="other")))
        now[0] += COOL_S + 1
        await run_to_end(kernel, asked)


# ── kills ──


@pytest.mark.parametrize(
    ("verdicts", "kills"),
    [([FAR], False), ([BURN], False), ([BURN, FAR], True), ([FAR, FAR], False), ([HARD], True)],
)
async def test_a_kill_wants_two_guards_or_a_ceiling(tmp_path: Path, verdicts: list[Verdict], kills: bool) -> None:
    async with opened(tmp_path) as kernel:
        origin, paused = Origin("t", run="r", agent="a"), list[Verdict]()
        kernel.guards.run("r", "t", paused.append)
        for verdict in verdicts:
            if verdict is BURN:
                with pytest.raises(Runaway):
                    raise kernel.guards.stop(verdict, request()) or AssertionError
            else:
                kernel.guards.stop_whole(verdict, origin)
        await asyncio.gather(*kernel.guards._kills)
        await kernel.store.write(lambda tx: None)
        assert [row["scope"] for row in kernel.store.all("switches")] == (["run:r"] if kills else [])
        assert bool(paused) == (FAR in verdicts and not kills)
        assert len(entries(kernel, "kill")) == kills
        if kills:
            (row,) = kernel.store.all("switches")
            assert (row["actor"], row["cause"]) == (
                "guard cost-velocity", "guard cost-velocity: it costs too much",
            )  # fmt: skip


async def test_a_guard_in_shadow_has_no_say_in_a_kill(tmp_path: Path) -> None:
    async with opened(tmp_path) as kernel:
        limits, paused = {**DEFAULTS, "token-burn": Limits(mode="shadow")}, list[Verdict]()
        guards = Guards(kernel.store, kernel.switches, limits)
        guards.run("r", "t", paused.append)
        assert guards.stop(BURN, request()) is None
        guards.stop_whole(FAR, Origin("t", run="r"))
        assert (paused, guards._kills) == ([FAR], set())


async def test_more_money_in_a_minute_than_the_ceiling_stops_the_key_until_a_person_resets_it(tmp_path: Path) -> None:
    cheap = config(tmp_path).model_copy(update={"guard": {}})
    async with opened(tmp_path, None, cheap) as kernel:
        limits = {**DEFAULTS, "cost-velocity": Limits(ceiling_pico=3 * 40 * PICO // 10**6)}
        kernel.guards.__init__(kernel.store, kernel.switches, limits, clock=lambda: 5.0)  # type: ignore[misc]
        asked = replace(request("", lane=Lane.ONLINE), origin=Origin("t", key="k"))
        for _ in range(4):
            await run_to_end(kernel, asked)
        await asyncio.gather(*kernel.guards._kills)
        assert [row["scope"] for row in kernel.store.all("switches")] == ["key:t/k"]


async def test_a_guard_with_a_scope_of_its_own_acts_there_alone(tmp_path: Path) -> None:
    async with opened(tmp_path) as kernel:
        limits = {**DEFAULTS, "cost-velocity": Limits(scope="key"), "token-burn": Limits(scope="run")}
        guards, paused = Guards(kernel.store, kernel.switches, limits), list[Verdict]()
        guards.run("r", "t", paused.append)
        guards.stop_whole(FAR, Origin("t", run="r"))
        assert paused == []
        assert guards.stop(BURN, request()) is not None
        assert paused == [BURN]
        assert guards.stop(BURN, replace(request(""), origin=Origin("t", key="k"))) is None


# ── quiet ──


async def test_the_example_contracts_give_no_guard_a_reason_to_speak(tmp_path: Path, repository: Path) -> None:
    priced = {"kind": "extractive", "model": "extractive", "price": {"input": "30", "output": "150"}}
    loaded = Config.model_validate(
        {
            "store": f"sqlite:{tmp_path / 's.db'}",
            "upstream": {"extractive": priced | {"limit": {"context": 2**20}}},
            "route": {name: {"light": "extractive"} for name in ("light", "heavy", "auto")},
        }
    )
    async with await Platform.open(loaded) as platform:
        summary = await platform.run("contract-audit", [repository / "examples" / "contracts"])
        assert summary.status == "done"
        assert float(summary.cost) > 0.25, "dear enough for every floor"
        assert entries(platform.kernel, "guard") == []
