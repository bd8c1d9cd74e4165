"""What a tripped switch leaves behind: who closed what and when, and what that saved."""

from __future__ import annotations

import asyncio
from pathlib import Path

import orjson
import pytest
from tests.integration.test_api import ANY, gateway
from tests.integration.test_step import BOUND, config, opened, rehearsal, request, run_to_end

from twolane.domain.money import decimal_string
from twolane.domain.records import Lane
from twolane.errors import Killed, SwitchTripped, UsageError
from twolane.kernel import Kernel, ledger
from twolane.kernel.switches import Switches, check_scope
from twolane.online.auth import create_key
from twolane.store.opening import open_store

pytestmark = pytest.mark.timeout(60)


def entries(kernel: Kernel, kind: str) -> list[dict[str, object]]:
    rows = kernel.store.all("entries", first=0, count=10_000)
    return [leaf for row in rows if (leaf := orjson.loads(row["leaf"]))["kind"] == kind]


@pytest.mark.usefixtures("each_store")
@pytest.mark.parametrize("is_far", [False, True])
async def test_a_trip_is_summed_up_with_what_it_saved_and_who_closed_what(tmp_path: Path, is_far: bool) -> None:
    model = rehearsal("always: hang 3")
    async with opened(tmp_path, model) as kernel:
        far_store = open_store(kernel.config.store_address())
        tripping = Switches(far_store, process="far", is_alive=lambda name: True) if is_far else kernel.switches
        lanes = [Lane.ONLINE, Lane.BATCH] * 3
        tasks = [asyncio.create_task(run_to_end(kernel, request(lane=lane))) for lane in lanes]
        other = asyncio.create_task(run_to_end(kernel, request("other")))
        while model.active < 7 or model.tokens < 21:
            await asyncio.sleep(0)
        trip = await tripping.trip("run:r", cause="fire", actor="me")
        report = await tripping.report(trip)
        assert report is not None
        ended = await asyncio.gather(*tasks, return_exceptions=True)
        assert {type(each) for each in ended} == {Killed}
        cost = sum(row["cost_pico"] for row in kernel.store.all("steps_since", count=100) if row["status"] == "killed")
        assert (report.steps, report.records, report.tokens_after) == (6, 6, 0)
        assert (report.booked_pico, report.saved_pico) == (cost, 6 * BOUND - cost)
        ((process, steps, delay_us),) = report.acknowledgements
        assert (process, steps) == (kernel.presence.name, 6)
        assert 0 <= delay_us < 1_000_000
        (kill,) = entries(kernel, "kill")
        assert (kill["t0_us"], kill["saved_pico"], kill["run"]) == (trip.at_us, report.saved_pico, "r")
        again = await tripping.trip("run:r", cause="fire", actor="me")
        assert (again.position, await tripping.report(again)) == (None, None)
        assert ledger.verify(kernel.store).problem == ""
        other.cancel()
        await asyncio.gather(other, return_exceptions=True)
        far_store.close()
    async with opened(tmp_path) as kernel:
        with pytest.raises(SwitchTripped):
            await run_to_end(kernel, request())


async def test_a_reason_in_any_encoding_trips_and_a_scope_must_be_text(tmp_path: Path) -> None:
    async with opened(tmp_path) as kernel:
        await kernel.switches.trip("all", cause="\udcdcberlast", actor="me")
        assert [row["cause"] for row in kernel.store.all("switches")] == ["?berlast"]
        with pytest.raises(UsageError, match="is not a scope"):
            check_scope("tenant:\udcdc")


async def test_what_nobody_can_know_is_none_and_what_did_not_run_is_nothing(tmp_path: Path) -> None:
    model = rehearsal("always: hang 3")
    model.ends_when_closed = False  # like any server elsewhere
    settings = config(tmp_path, up={"price": None, "unpriced": "allow"})
    async with opened(tmp_path, model, settings) as kernel:
        task = asyncio.create_task(run_to_end(kernel, request()))
        while model.tokens < 3:
            await asyncio.sleep(0)
        report = await kernel.switches.report(await kernel.switches.trip("all", cause="fire", actor="me"))
        assert report is not None
        assert (report.steps, report.tokens_after, report.saved_pico, report.booked_pico) == (1, None, None, None)
        await asyncio.gather(task, return_exceptions=True)
        nothing = await kernel.switches.report(await kernel.switches.trip("tenant:t", cause="fire", actor="me"))
        assert nothing is not None
        assert (nothing.steps, nothing.tokens_after, nothing.saved_pico) == (0, 0, 0)


async def test_what_a_process_closed_before_it_died_is_unknown(tmp_path: Path) -> None:
    async with opened(tmp_path) as kernel:
        trip = await kernel.switches.trip("all", cause="fire", actor="me")
        said = {"v": 1, "kind": "closed", "scope": "all", "process": "dead", "steps": 2}
        await kernel.store.write(lambda tx: ledger.append(tx, said | {"at_us": ledger.now_us()}))
        report = await kernel.switches.report(trip)
        assert report is not None
        assert (report.steps, report.records) == (2, 0)
        assert (report.tokens_after, report.saved_pico, report.booked_pico) == (None, None, None)


async def test_over_http_an_operator_stops_and_resets_its_own_tenant_and_no_other_key_does(tmp_path: Path) -> None:
    async with gateway(tmp_path) as gate:

        async def ask(method: str, path: str, key: str, body: object = None) -> tuple[int, dict[str, object]]:
            headers = {"authorization": f"Bearer {key}"} if key else {}
            async with gate.http.request(method, gate.url + path, json=body, headers=headers) as response:
                if response.status == 503:
                    assert response.headers["x-should-retry"] == "false"
                return response.status, await response.json()

        status, told = await ask("POST", "/api/v1/switches", "", {"scope": "all", "reason": "fire"})
        assert (status, told["tripped"]) == (200, True)
        assert isinstance(told["report"], dict)
        assert (told["report"]["steps"], told["report"]["saved"]) == (0, decimal_string(0))
        assert (await ask("POST", "/v1/chat/completions", "", ANY))[0] == 503
        assert (await ask("DELETE", "/api/v1/switches/all", ""))[0] == 200

        plain = await create_key(gate.kernel, "legal", "agent")
        boss = await create_key(gate.kernel, "legal", "boss", is_operator=True)
        own = {"scope": "key:legal/agent", "reason": "leaked"}
        assert (await ask("POST", "/api/v1/switches", plain, own))[0] == 403
        for foreign in ("all", "tenant:sales", "key:sales/x", "run:nope"):
            assert (await ask("POST", "/api/v1/switches", boss, {"scope": foreign}))[0] == 404, foreign
        for wrong in ({}, {"scope": 1}, {"scope": "legal"}, {"scope": "key:legal"}, {**own, "reason": "\u0000"}):
            assert (await ask("POST", "/api/v1/switches", boss, wrong))[0] == 400, wrong
        assert (await ask("POST", "/api/v1/switches", boss, own))[0] == 200
        status, told = await ask("POST", "/v1/chat/completions", plain, ANY)
        assert status == 503
        assert isinstance(told["error"], dict)
        assert told["error"]["code"] == "switch_tripped"
        assert (await ask("DELETE", "/api/v1/switches/key:legal/agent", plain))[0] == 403
        assert (await ask("DELETE", "/api/v1/switches/key:legal/agent", boss))[0] == 200
        assert (await ask("DELETE", "/api/v1/switches/key:legal/agent", boss))[0] == 404
        assert (await ask("POST", "/v1/chat/completions", plain, ANY))[0] == 200
        assert [entry["actor"] for entry in entries(gate.kernel, "trip")] == ["this machine", "key legal/boss"]
