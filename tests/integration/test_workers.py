"""Several processes work on one run, and any of them may go away, in good order or not."""

from __future__ import annotations

import asyncio
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from tests.integration.processes import begin, ended, until
from tests.stores import empty

from twolane import config as configuration
from twolane.batch import run as runs
from twolane.errors import ConfigError
from twolane.platform import Platform

pytestmark = pytest.mark.timeout(120)

SLOTS = 4
CONFIG = f"""
STORE

[upstream.main]
kind = "rehearsal"
price = {{ input = "1", output = "1" }}
slots = {{ online = 1, batch = {SLOTS} }}
options = {{ token_ms = TOKEN_MS }}

[route.auto]
light = "main"
"""
FLOW = """
import os, signal
from pathlib import Path
from pydantic import BaseModel
from twolane import Document, Item, Prompt, agent, workflow

class Note(BaseModel):
    text: str

@agent(returns=Note)
def first(contract: Document) -> Prompt:
    return Prompt(system="One.", user=contract.text, max_tokens=50)

@agent(returns=Note)
def second(contract: Document, note: Note) -> Prompt:
    return Prompt(system="Two.", user=contract.text + note.text, max_tokens=50)

@workflow(version="1")
async def notes(contract: Document, do: Item) -> Note:
    with open("worked.log", "a") as file:
        file.write(f"{os.getpid()} {contract.id}\\n")
    if contract.text == "poison":
        os.kill(os.getpid(), signal.SIGKILL)
    return await do(second, contract, await do(first, contract))
"""


@dataclass
class Place:
    """A folder with a configuration, a flow and the processes that work there."""

    folder: Path
    stack: AsyncExitStack
    store: str = 'store = "sqlite:work.db"'

    def write(self, *, token_ms: float) -> None:
        config = CONFIG.replace("TOKEN_MS", str(token_ms)).replace("STORE", self.store)
        (self.folder / "twolane.toml").write_text(config)
        (self.folder / "flow.py").write_text(FLOW)

    async def open(self) -> Platform:
        config = configuration.load(self.folder / "twolane.toml")
        return await self.stack.enter_async_context(await Platform.open(config, can_call=False))

    async def start(self, platform: Platform, count: int, *, poison: int | None = None, **more: object) -> str:
        folder = self.folder / "in"
        folder.mkdir(exist_ok=True)
        for number in range(count):
            text = "poison" if number == poison else f"contract {number}"
            (folder / f"c{number:03}.txt").write_text(text)
        return await platform.start("flow:notes", [folder], **more)  # type: ignore[arg-type]  # what `start` takes

    async def begin(self, *arguments: str) -> asyncio.subprocess.Process:
        return await begin(self.stack, self.folder, *arguments)

    def worked(self) -> list[tuple[int, str]]:
        """Which process began which item, in order."""
        log = self.folder / "worked.log"
        lines = [line.split() for line in log.read_text().splitlines()] if log.exists() else []
        return [(int(pid), item) for pid, item in lines]

    def at_work(self) -> list[int]:
        return list(dict.fromkeys(pid for pid, _ in self.worked()))


@pytest.fixture
async def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Place]:
    monkeypatch.chdir(tmp_path)
    async with AsyncExitStack() as stack:
        place = Place(tmp_path, stack)
        place.write(token_ms=10)
        yield place


@pytest.fixture
async def shared_place(place: Place, database: str) -> AsyncIterator[Place]:
    """The same on PostgreSQL, where nothing but a beat proves life."""
    place.store = f'store = "{database}"\n\n[keys]\nfolder = "keys"'
    place.write(token_ms=10)
    yield place
    await place.stack.aclose()
    empty(database)


def paid(platform: Platform, run: str) -> Counter[tuple[str, str]]:
    """How often each step gave an answer that was paid for."""
    steps = platform.kernel.store.all("steps_of_run", run=run)
    return Counter((row["item"], row["agent"]) for row in steps if row["status"] == "ok")


def is_whole(platform: Platform, run: str, count: int, *, quarantined: int = 0) -> None:
    """The run is done, with every step paid once, and the ledger agrees."""
    summary = platform.summary(run)
    assert (summary.status, summary.reason) == ("done", "")
    assert summary.items == {"total": count, "done": count - quarantined, "quarantined": quarantined}
    each = paid(platform, run)
    assert set(each.values()) == {1}
    assert len(each) == 2 * (count - quarantined)
    assert platform.kernel.store.all("reservations") == []
    verdict = platform.verify()
    assert verdict.ok, verdict.problem


async def test_two_workers_share_a_run_and_the_upstreams_slots(place: Place) -> None:
    platform = await place.open()
    run = await place.start(platform, 120)
    workers = [await place.begin("work", "--once") for _ in range(2)]
    for worker in workers:
        await ended(worker)
    is_whole(platform, run, 120)
    begun = [item for _, item in place.worked()]
    assert len(place.at_work()) == 2
    # The walk before the pilot begins each item once more.
    assert max(Counter(begun).values()) <= 2


@pytest.mark.parametrize("which", ["owner", "other"])
async def test_what_a_killed_worker_was_at_is_taken_over_at_once(place: Place, which: str) -> None:
    platform = await place.open()
    run = await place.start(platform, 120)
    place.write(token_ms=30)
    workers = [await place.begin("run", "work", run) for _ in range(2)]
    await until(lambda: len(place.at_work()) == 2)
    owner = runs.find(platform.kernel, run)["owner"]
    is_owner = [owner.startswith(f"{worker.pid}-") for worker in workers]
    victim, survivor = workers if is_owner[0] is (which == "owner") else reversed(workers)
    victim.kill()
    await victim.wait()
    out = await ended(survivor)
    assert survivor.returncode == 0, out
    is_whole(platform, run, 120)
    status = Counter(row["status"] for row in platform.kernel.store.all("steps_of_run", run=run))
    assert status["in_doubt"] <= SLOTS * 2, "what was in flight is booked, and nothing else"


@pytest.mark.parametrize("which", ["owner", "other"])
async def test_a_worker_that_is_told_to_leave_cuts_nothing_off(place: Place, which: str) -> None:
    platform = await place.open()
    run = await place.start(platform, 120)
    workers = [await place.begin("run", "work", run) for _ in range(2)]
    await until(lambda: len(place.at_work()) == 2)
    owner = runs.find(platform.kernel, run)["owner"]
    is_owner = [owner.startswith(f"{worker.pid}-") for worker in workers]
    leaver, stayer = workers if is_owner[0] is (which == "owner") else reversed(workers)
    leaver.terminate()
    out = await ended(leaver)
    assert leaver.returncode is not None, out
    assert leaver.returncode >= 0, out
    await ended(stayer)
    is_whole(platform, run, 120)
    assert {row["status"] for row in platform.kernel.store.all("steps_of_run", run=run)} <= {"ok", "reused"}


async def test_a_run_that_every_worker_left_waits_for_the_next(place: Place) -> None:
    platform = await place.open()
    run = await place.start(platform, 40)
    worker = await place.begin("work")
    await until(lambda: sum(paid(platform, run).values()) > 3)
    worker.terminate()
    await ended(worker)
    assert platform.summary(run).status == "queued"
    await ended(await place.begin("work", "--once"))
    is_whole(platform, run, 40)


async def test_an_item_that_kills_its_workers_is_found_and_quarantined(place: Place) -> None:
    place.write(token_ms=0)
    platform = await place.open()
    run = await place.start(platform, 60, poison=7)
    out = await ended(await place.begin("work", "--once"))
    assert platform.summary(run).status == "done", out
    is_whole(platform, run, 60, quarantined=1)
    (row,) = platform.kernel.store.all("quarantined", run=run)
    assert row["name"].endswith("c007.txt")
    (problem,) = runs.problems_of(platform.kernel, row)
    assert "its worker died" in problem.text


async def test_a_paused_run_lets_what_is_under_way_end_and_goes_on_when_resumed(place: Place) -> None:
    platform = await place.open()
    run = await place.start(platform, 80)
    workers = [await place.begin("run", "work", run) for _ in range(2)]
    await until(lambda: len(place.at_work()) == 2)
    answer = await platform.pause(run)
    assert answer["status"] == "stopped"
    for worker in workers:
        await ended(worker)
    summary = platform.summary(run)
    assert (summary.exit_code, summary.reason.partition(":")[0]) == (1, "paused")
    assert 0 < summary.items["done"] < 80
    assert {row["status"] for row in platform.kernel.store.all("steps_of_run", run=run)} == {"ok"}
    await ended(await place.begin("run", "resume", run))
    is_whole(platform, run, 80)


async def test_a_queued_run_can_be_paused_and_an_ended_one_cannot(place: Place) -> None:
    platform = await place.open()
    run = await place.start(platform, 4)
    assert (await platform.pause(run))["status"] == "stopped"
    with pytest.raises(ConfigError, match="nothing to pause"):
        await platform.pause(run)


async def test_a_killed_run_stops_in_every_process(place: Place) -> None:
    platform = await place.open()
    run = await place.start(platform, 200)
    workers = [await place.begin("run", "work", run) for _ in range(2)]
    await until(lambda: len(place.at_work()) == 2)
    answer = await platform.kill(run)
    assert answer["status"] == "stopped"
    for worker in workers:
        await ended(worker)
        assert worker.returncode == 3
    assert platform.kernel.store.all("reservations") == []


async def test_runs_of_a_higher_priority_go_first_and_none_before_it_is_due(place: Place) -> None:
    place.write(token_ms=0)
    platform = await place.open()
    low = await place.start(platform, 3)
    high = await place.start(platform, 3, priority=5)
    later = await place.start(platform, 3, priority=9, due=datetime.now(UTC) + timedelta(days=1))
    await ended(await place.begin("work", "--once", "--runs", "1"))
    began = {run: runs.find(platform.kernel, run)["started"] for run in (low, high, later)}
    assert began[later] is None
    assert began[high] < began[low]


async def test_workers_of_one_run_have_the_same_version_of_its_flow(place: Place) -> None:
    platform = await place.open()
    run = await place.start(platform, 120)
    place.write(token_ms=100)
    owner = await place.begin("run", "work", run)
    await until(lambda: len(place.at_work()) == 1)
    (place.folder / "flow.py").write_text(FLOW.replace("One.", "Uno."))
    out = await ended(await place.begin("run", "work", run))
    assert "another version of its flow" in out
    assert owner.returncode is None
    await platform.kill(run)


async def test_a_flow_that_cannot_be_loaded_fails_its_run_and_is_not_tried_for_ever(place: Place) -> None:
    platform = await place.open()
    run = await place.start(platform, 2)
    (place.folder / "flow.py").write_text("raise RuntimeError('no')")
    await ended(await place.begin("work", "--once"))
    summary = platform.summary(run)
    assert (summary.status, summary.reason) == ("failed", "its worker ended with 2 before it began")


# ── several machines: a store in PostgreSQL ──


async def two_at_work(place: Place, platform: Platform, run: str) -> tuple[asyncio.subprocess.Process, ...]:
    """The run's owner and the one beside it, both at work."""
    workers = [await place.begin("run", "work", run) for _ in range(2)]
    await until(lambda: len(place.at_work()) == 2)
    owner = runs.find(platform.kernel, run)["owner"]
    return tuple(sorted(workers, key=lambda worker: not owner.startswith(f"{worker.pid}-")))


async def taken_over_s(platform: Platform, run: str) -> float:
    """How long until the run has another owner."""
    began, owner = time.monotonic(), runs.find(platform.kernel, run)["owner"]
    await until(lambda: runs.find(platform.kernel, run)["owner"] not in ("", owner), within_s=30)
    return time.monotonic() - began


async def test_on_postgresql_a_killed_worker_is_taken_over_within_seven_seconds(shared_place: Place) -> None:
    place = shared_place
    place.write(token_ms=40)
    platform = await place.open()
    run = await place.start(platform, 150)
    owner, other = await two_at_work(place, platform, run)
    owner.kill()
    seconds = await taken_over_s(platform, run)
    print(f"taken over after {seconds:.1f} s")
    out = await ended(other)
    assert other.returncode == 0, out
    assert seconds <= 7
    is_whole(platform, run, 150)


@pytest.mark.parametrize("asleep_s", [0, pytest.param(60, marks=pytest.mark.long)])
async def test_on_postgresql_a_worker_that_was_frozen_commits_nothing_when_it_wakes(
    shared_place: Place, asleep_s: float
) -> None:
    place = shared_place
    place.write(token_ms=40)
    platform = await place.open()
    run = await place.start(platform, 150)
    owner, other = await two_at_work(place, platform, run)
    owner.send_signal(signal.SIGSTOP)
    began = time.monotonic()
    seconds = await taken_over_s(platform, run)
    await ended(other)
    is_whole(platform, run, 150)
    entries = platform.verify().entries
    await asyncio.sleep(max(0, began + asleep_s - time.monotonic()))  # it sleeps: that is what this is about
    owner.send_signal(signal.SIGCONT)
    out = await ended(owner)
    print(f"taken over after {seconds:.1f} s, woken after {time.monotonic() - began:.0f} s")
    assert owner.returncode == 1, out
    assert "taken for dead" in out
    is_whole(platform, run, 150)
    assert platform.verify().entries == entries, "it committed nothing"
