"""Runs that start by themselves: which ticks a worker takes, and that each has one run, whoever is killed."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import sqlite3
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import pytest
from tests.integration.processes import begin, ended, until
from tests.stores import kept_in

from twolane.batch import run as runs
from twolane.batch import schedules
from twolane.batch.schedules import TRIALS, Schedules
from twolane.config import Config
from twolane.errors import ConfigError, UsageError
from twolane.kernel import ledger
from twolane.platform import Platform
from twolane.rules.schedules import Tick, instant
from twolane.store import Transaction

pytestmark = pytest.mark.timeout(120)

MINUTE, HOUR, DAY = 60_000_000, 3_600_000_000, 86_400_000_000
NOON = 1_795_262_400_000_000
"""2026-11-21T12:00:00Z."""
FLOW = """
from pydantic import BaseModel
from twolane import Document, Item, workflow

class Note(BaseModel):
    text: str

@workflow(version="1")
async def notes(contract: Document, do: Item) -> Note:
    return Note(text=contract.text)
"""


class Clock:
    """The wall clock of a test."""

    def __init__(self) -> None:
        self.us = NOON

    def __call__(self) -> int:
        return self.us


@dataclass
class House:
    """A store with a flow and inputs beside it, and workers' views of its schedules."""

    folder: Path
    stack: AsyncExitStack
    clock: Clock

    async def open(self, **sections: dict[str, Any]) -> Worker:  # Any: a schedule's keys
        schedule = {
            name: {"flow": "ticking:notes", "inputs": ["in"], "cron": "0 * * * *", **section}
            for name, section in sections.items()
        }
        config = Config.model_validate({**kept_in(self.folder), "schedule": schedule}).model_copy(
            update={"source": self.folder / "twolane.toml"}
        )
        platform = await self.stack.enter_async_context(await Platform.open(config, can_call=False, takes_part=True))
        worker = Worker(platform, Schedules(platform.kernel, clock=self.clock))
        await worker.view.see()
        return worker


@dataclass
class Worker:
    platform: Platform
    view: Schedules

    async def look(self) -> list[Tick]:
        return await self.view.look(busy=())

    async def start_due(self) -> list[str]:
        return [await self.platform.start_scheduled(tick) for tick in await self.look()]

    def entries(self, event: str) -> list[dict[str, Any]]:  # Any: JSON
        rows = self.platform.kernel.store.all("entries", first=0, count=1000)
        leaves = [orjson.loads(bytes(row["leaf"])) for row in rows]
        return [leaf for leaf in leaves if leaf["kind"] == "schedule" and leaf["event"] == event]

    def listed(self) -> dict[str, Any]:
        (row,) = schedules.listing(self.platform.kernel)
        return row


@pytest.fixture
async def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, each_store: None) -> AsyncIterator[House]:
    (tmp_path / "ticking.py").write_text(FLOW)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").write_text("a contract")
    monkeypatch.chdir("/")  # paths count from the configuration, not from here
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("ticking", None)
    async with AsyncExitStack() as stack:
        yield House(tmp_path, stack, Clock())


# ── which ticks ──


async def test_a_tick_starts_one_run_that_says_which_tick_it_is_for(house: House) -> None:
    (house.folder / "rules.txt").write_text("as read at its start")
    worker = await house.open(hourly={"budget": "2", "priority": 3, "with": {"a": "b", "rules": "@rules.txt"}})
    assert await worker.look() == []
    house.clock.us += HOUR + 1
    (run,) = await worker.start_due()
    row = runs.find(worker.platform.kernel, run)
    assert (row["status"], row["priority"]) == ("queued", 3)
    options = runs.options_of(row)
    assert (options["schedule"], options["tick"]) == ("hourly", "2026-11-21T13:00:00Z")
    assert options["with"] == {"a": "b", "rules": "as read at its start"}
    assert worker.platform.summary(run).budget == "2.00"
    (entry,) = worker.platform.kernel.store.all("entries_of_run", run=run, kind="run")
    assert json.loads(entry["leaf"])["tick"] == "2026-11-21T13:00:00Z"
    assert await worker.look() == []
    assert worker.listed()["last_run"] == run
    assert worker.listed()["last_tick"] == "2026-11-21T13:00:00Z"
    assert worker.platform.verify().ok


async def test_of_two_workers_one_starts_a_tick(house: House) -> None:
    workers = [await house.open(hourly={}) for _ in range(2)]
    house.clock.us += HOUR
    taken = await asyncio.gather(*(worker.look() for worker in workers))
    assert sorted(map(len, taken)) == [0, 1]


async def test_of_the_ticks_missed_while_no_worker_lived_the_newest_is_made_up_for_and_the_rest_is_told(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    await house.open(hourly={})
    house.clock.us += 5 * HOUR + MINUTE
    later = await house.open(hourly={})
    with caplog.at_level(logging.WARNING):
        assert [tick.instant for tick in await later.look()] == ["2026-11-21T17:00:00Z"]
    assert "4 ticks before 2026-11-21T17:00:00Z were missed" in caplog.text
    (entry,) = later.entries("missed")
    assert (entry["count"], entry["after"], entry["before"]) == (4, instant(NOON), "2026-11-21T17:00:00Z")


async def test_no_tick_of_before_a_schedule_was_first_seen_counts(house: House) -> None:
    house.clock.us += 30 * MINUTE
    worker = await house.open(daily={"cron": "0 12 * * *"})
    assert await worker.look() == []
    house.clock.us += DAY - 31 * MINUTE
    assert await worker.look() == []
    house.clock.us += MINUTE
    assert len(await worker.look()) == 1


async def test_a_changed_cron_counts_from_the_change_on_and_workers_with_the_old_one_stand_back(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    old = await house.open(some={"cron": "0 * * * *"})
    house.clock.us += HOUR + 40 * MINUTE
    new = await house.open(some={"cron": "30 * * * *"})
    assert await new.look() == []
    house.clock.us += 20 * MINUTE
    with caplog.at_level(logging.WARNING):
        assert await old.look() == await old.look() == []
    assert caplog.text.count("start this one again") == 1
    assert await new.look() == []
    house.clock.us += 30 * MINUTE
    assert [tick.instant for tick in await new.look()] == ["2026-11-21T14:30:00Z"]


async def test_a_clock_that_jumps_by_days_starts_no_flood_and_no_tick_twice(house: House) -> None:
    worker = await house.open(hourly={"overlap": True})
    seen: list[Tick] = []
    for jump in (HOUR, 3 * DAY, -3 * DAY, HOUR, -2 * DAY, 2 * DAY, HOUR, 3 * DAY - 3 * HOUR, HOUR):
        house.clock.us += jump
        for _ in range(3):
            taken = await worker.look()
            assert len(taken) <= 1
            seen += taken
            for tick in taken:
                await worker.platform.start_scheduled(tick)
    assert len(set(seen)) == len(seen)
    # Put right again, the clock's own ticks count; the one that was started too early is not started again.
    assert [tick.instant[8:13] for tick in seen] == ["21T13", "24T13", "21T14", "21T15", "24T12"]


async def test_a_tick_is_skipped_and_said_so_while_the_run_before_it_is_not_at_its_end(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    worker = await house.open(hourly={})
    house.clock.us += HOUR
    (run,) = await worker.start_due()
    house.clock.us += HOUR
    with caplog.at_level(logging.WARNING):
        assert await worker.look() == []
    assert f"run {run} of the tick of 2026-11-21T13:00:00Z is not at its end" in caplog.text
    assert worker.listed()["last_status"] == "skipped"
    assert worker.listed()["last_run"] == run
    (entry,) = worker.entries("skipped")
    assert (entry["tick"], entry["previous"]) == ("2026-11-21T14:00:00Z", run)
    await worker.platform.kill(run)
    house.clock.us += HOUR
    assert len(await worker.look()) == 1


async def test_old_ticks_are_forgotten_but_for_those_that_something_still_asks_for(house: House) -> None:
    worker, old = await house.open(hourly={}), NOON - 100 * DAY
    store = worker.platform.kernel.store

    def add(*states: str) -> Callable[[Transaction], None]:
        def work(tx: Transaction) -> None:
            for at, status in enumerate(states):
                tx.run("add_tick", schedule="hourly", at=old + at, status=status, owner="a", reason="")

        return work

    await store.write(add(*["skipped"] * 10, "failed", "starting", *["started"] * 22, *["skipped"] * 1000))
    assert await store.write(lambda tx: tx.run("forget_ticks", schedule="hourly", before=old)) == 0
    assert await store.write(lambda tx: tx.run("forget_ticks", schedule="hourly", before=NOON)) == 11 + 2
    await store.write(add("skipped"))
    house.clock.us += HOUR
    assert len(await worker.view.look(busy=[Tick("hourly", old + 11)])) == 1
    await store.write(add("skipped"))  # so it was forgotten


async def test_a_schedule_may_allow_its_runs_to_overlap(house: House) -> None:
    worker = await house.open(hourly={"overlap": True})
    for _ in range(2):
        house.clock.us += HOUR
        assert len(await worker.start_due()) == 1


# ── whose start went wrong ──


async def test_a_start_whose_worker_died_is_begun_anew_and_only_one_of_both_runs_is_released(house: House) -> None:
    first = await house.open(hourly={})
    second = await house.open(hourly={})
    house.clock.us += HOUR
    (tick,) = await first.look()
    assert await second.look() == []
    await first.platform.kernel.presence.bury(first.platform.kernel.presence.name)
    assert await second.look() == [tick]
    third = await house.open(hourly={})
    run = await third.platform.start_scheduled(tick)
    with pytest.raises(ConfigError, match="settled by another process"):
        await second.platform.start_scheduled(tick)
    states = {row["id"]: row["status"] for row in second.platform.kernel.store.all("runs", count=10)}
    assert states.pop(run) == "queued"
    (leftover,) = states
    assert states[leftover] == "writing"
    with pytest.raises(ConfigError, match="never written to its end"):
        await second.platform.prepare_resume(leftover)
    assert leftover not in {row["id"] for row in second.platform.kernel.store.all("runs_to_work_on", now=NOON * 2)}


async def test_a_tick_whose_starters_all_die_is_given_up(house: House, caplog: pytest.LogCaptureFixture) -> None:
    worker = await house.open(hourly={})
    house.clock.us += HOUR
    for _ in range(TRIALS):
        assert len(await worker.look()) == 1
    assert await worker.look() == await worker.look() == []
    assert worker.listed()["last_status"] == "failed"
    assert caplog.text.count("processes that were to start its run died") == 1


async def test_a_starter_that_is_at_work_is_left_alone(house: House) -> None:
    worker = await house.open(hourly={})
    house.clock.us += HOUR
    (tick,) = await worker.look()
    assert await worker.view.look(busy=[tick]) == []


async def test_of_a_start_that_fails_the_reason_is_kept_once_and_no_word_of_it_in_the_ledger(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    worker = await house.open(hourly={"inputs": ["nowhere"]})
    house.clock.us += HOUR
    (tick,) = await worker.look()
    with pytest.raises(UsageError, match="nowhere") as refused:
        await worker.platform.start_scheduled(tick)
    for _ in range(2):
        await schedules.fail(worker.platform.kernel, tick, reason=str(refused.value), error="UsageError")
    assert caplog.text.count("nowhere") == 1
    assert "nowhere" in worker.listed()["reason"]
    (entry,) = worker.entries("failed")
    assert entry["error"] == "UsageError"
    assert "nowhere" not in json.dumps(entry)
    house.clock.us += HOUR
    assert len(await worker.look()) == 1


async def test_rows_of_a_database_beside_the_configuration_are_inputs_too(house: House) -> None:
    with sqlite3.connect(house.folder / "rows.db") as database:
        database.execute("CREATE TABLE contract (id TEXT, text TEXT)")
        database.execute("INSERT INTO contract VALUES ('c1', 'one'), ('c2', 'two')")
    database.close()
    query = {"sql": "SELECT id, text FROM contract", "database": "sqlite:rows.db"}
    worker = await house.open(hourly={"inputs": [], **query})
    house.clock.us += HOUR
    (run,) = await worker.start_due()
    assert worker.platform.summary(run).items["total"] == 2


async def test_looks_at_schedules_that_are_not_due_write_nothing(house: House) -> None:
    worker = await house.open(hourly={}, nightly={"cron": "0 4 * * *"}, rare={"cron": "0 0 29 2 *"})
    before = worker.platform.kernel.store.one("count_entries")
    began = time.perf_counter()
    for _ in range(100):
        assert await worker.look() == []
    assert (time.perf_counter() - began) / 100 < 0.05
    assert worker.platform.kernel.store.one("count_entries") == before


# ── in processes of their own, killed ──

CONFIG = """
[schedule.yearly]
flow   = "ticking:notes"
inputs = ["in"]
cron   = "0 0 1 1 *"
[schedule.broken]
flow   = "nobody:knows"
inputs = ["in"]
cron   = "0 0 1 1 *"
"""


@dataclass
class Place:
    """A folder where real workers live."""

    folder: Path
    stack: AsyncExitStack
    platform: Platform

    async def begin(self, *arguments: str) -> asyncio.subprocess.Process:
        return await begin(self.stack, self.folder, *arguments)

    async def miss(self, *names: str) -> None:
        """As if these schedules had been seen two years ago: one tick is due, one was missed."""
        since = ledger.now_us() - 2 * 366 * DAY
        for name in names:
            await self.platform.kernel.store.write(
                lambda tx, name=name: tx.run("see_schedule", name=name, cron="0 0 1 1 *", since=since)  # type: ignore[misc]
            )

    def states(self) -> list[str]:
        return sorted(row["status"] for row in self.platform.kernel.store.all("runs", count=10))

    def starters(self) -> list[int]:
        """The processes that start runs: those that are no worker's."""
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                words = path.read_bytes().split(b"\0")
                is_here = os.readlink(path.with_name("cwd")) == str(self.folder)
            except OSError:
                continue
            if is_here and b"schedule" in words and b"start" in words:
                found.append(int(path.parent.name))
        return found

    def kill_starters(self) -> int:
        pids = self.starters()
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        return len(pids)


@pytest.fixture
async def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, each_store: None) -> AsyncIterator[Place]:
    monkeypatch.chdir(tmp_path)
    where = kept_in(tmp_path)
    keys = f"keys.folder = {where['keys']['folder']!r}\n" if "keys" in where else ""
    (tmp_path / "twolane.toml").write_text(f"store = {where['store']!r}\n{keys}{CONFIG}")
    (tmp_path / "ticking.py").write_text(FLOW)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "all.jsonl").write_bytes(
        b"".join(orjson.dumps({"id": f"c{n}", "text": f"contract {n}"}) + b"\n" for n in range(3000))
    )
    async with AsyncExitStack() as stack:
        platform = await stack.enter_async_context(await Platform.open(can_call=False))
        yield Place(tmp_path, stack, platform)


async def test_workers_start_and_finish_what_is_due_and_a_broken_schedule_stops_none_of_them(place: Place) -> None:
    (place.folder / "in" / "all.jsonl").write_text('{"id": "c1", "text": "one"}\n')
    await place.miss("yearly", "broken")
    workers = [await place.begin("work", "--once") for _ in range(2)]
    said = [await ended(worker) for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], said
    await until(lambda: place.states() == ["done"])
    assert "".join(said).count("schedule broken: no run was started") == 1
    assert "".join(said).count("schedule yearly: 1 ticks before") == 1
    listing = json.loads(await ended(await place.begin("schedule", "list", "--json")))["schedules"]
    assert [row["name"] for row in listing] == ["broken", "yearly"]
    assert listing[0]["last_status"] == "failed"
    assert listing[0]["last_run"] is None
    assert listing[1].keys() >= {"name", "flow", "cron", "next", "last_tick", "last_run"}
    assert listing[1]["last_run"] in {row["id"] for row in place.platform.kernel.store.all("runs", count=10)}
    assert place.platform.verify().ok


async def test_a_starter_that_is_killed_in_the_middle_leaves_no_second_run(place: Place) -> None:
    await place.miss("yearly")
    worker = await place.begin("work")
    await until(lambda: place.states() == ["writing"])
    assert place.kill_starters() == 1
    assert place.states() == ["writing"]
    await until(lambda: set(place.states()) & {"queued", "running", "done"})
    assert len(place.states()) == 2
    assert "writing" in place.states()
    worker.send_signal(signal.SIGTERM)
    await ended(worker)


@pytest.mark.parametrize("lives_on", [False, True])
async def test_where_a_worker_is_killed_with_or_without_its_starter_the_others_start_the_one_run(
    place: Place, lives_on: bool
) -> None:
    await place.miss("yearly")
    first = await place.begin("work")
    await until(lambda: place.states() == ["writing"])
    first.kill()
    if not lives_on:
        place.kill_starters()
    await first.wait()
    others = [await place.begin("work") for _ in range(2)]
    await until(lambda: set(place.states()) & {"queued", "running", "done"})
    for other in others:
        other.send_signal(signal.SIGTERM)
    for other in others:
        await ended(other)
    await until(lambda: not place.starters())
    assert len([state for state in place.states() if state != "writing"]) == 1
    ticks = place.platform.kernel.store.all("last_ticks")
    assert [(row["schedule"], row["status"]) for row in ticks] == [("yearly", "started")]
