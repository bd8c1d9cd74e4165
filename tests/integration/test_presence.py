"""Who is alive, and that whoever was taken for dead commits nothing: on files and on a server alike."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, cast

import orjson
import psycopg
import pytest
from tests.stores import kept_in

from twolane.config import Config, PriceTable, Slots, UpstreamSection
from twolane.domain.records import Lane, Message, ModelCall, Origin, Route
from twolane.errors import Fenced, StoreError
from twolane.kernel import Kernel, Request, ledger
from twolane.kernel.treasury import drift
from twolane.models.rehearsal import Rehearsal
from twolane.store import Store
from twolane.store.opening import open_store
from twolane.store.presence import DEAD_BEATS, Presence

pytestmark = [pytest.mark.timeout(120), pytest.mark.usefixtures("each_store")]

BEAT_S = 0.1
CALL = ModelCall((Message("user", "hello"),), "", 20)


@pytest.fixture
def where(tmp_path: Path) -> str:
    return str(kept_in(tmp_path)["store"])


@asynccontextmanager
async def present(where: str, *, beat_s: float = BEAT_S) -> AsyncIterator[tuple[Store, Presence]]:
    """A store and a presence of its own, as a process has them; file locks only where there is a file."""
    path = Path(where.removeprefix("sqlite:"))
    locks = path.with_name("store.db.alive") if where.startswith("sqlite:") else None
    store = open_store(where)
    presence = await Presence.open(store, locks=locks, beat_s=beat_s)
    try:
        yield store, presence
        presence.leave()
    finally:
        store.close()
        presence.close()


async def until(is_so: Callable[[], object], *, within_s: float = 30) -> None:
    async with asyncio.timeout(within_s):
        while not is_so():
            await asyncio.sleep(0.005)


def note(store: Store, name: str) -> asyncio.Future[int]:
    return store.submit(lambda tx: ledger.append(tx, {"kind": "note", "name": name}))


def notes(store: Store) -> list[str]:
    return [orjson.loads(row["leaf"])["name"] for row in store.all("entries", first=0, count=1000)]


# ── fencing ──


async def test_who_was_buried_commits_nothing_any_more_and_is_told_what_to_do(where: str) -> None:
    async with present(where) as (mine, presence), present(where) as (theirs, other):
        await note(theirs, "before")
        assert presence.is_alive(other.name)
        await presence.bury(other.name)
        assert not presence.is_alive(other.name)
        late = await asyncio.gather(*(note(theirs, f"late {at}") for at in range(5)), return_exceptions=True)
        assert [type(each) for each in late] == [Fenced] * 5
        assert "Start again" in str(late[0])
        assert "belongs to another" in str(late[0])
        await until(lambda: other.is_lost)
        await note(mine, "after")
        assert notes(mine) == ["before", "after"]


async def test_who_says_goodbye_is_gone_at_once_and_what_it_submitted_is_kept(where: str) -> None:
    async with present(where) as (mine, presence):
        async with present(where) as (theirs, other):
            name = other.name
            last = note(theirs, "the last word")
        await last
        assert not presence.is_alive(name)
        assert [row["name"] for row in mine.all("processes")] == [presence.name]
        assert notes(mine) == ["the last word"]


FROZEN = """
import asyncio, os, signal, sys
from tests.integration.test_presence import note, present
from twolane.store import postgres
postgres.FROZEN_S = 1

async def main():
    async with present(sys.argv[1]) as (store, presence):
        await note(store, "before")
        def freeze(tx):
            from twolane.kernel import ledger
            ledger.append(tx, {"kind": "note", "name": "frozen"})
            os.write(1, (presence.name + "\\n").encode())
            os.kill(os.getpid(), signal.SIGSTOP)
        try:
            await store.write(freeze)
        except Exception as error:
            print(type(error).__name__, flush=True)
        try:
            await note(store, "woken")
        except Exception as error:
            print(type(error).__name__, flush=True)
asyncio.run(main())
"""


async def test_who_freezes_inside_a_transaction_holds_nobody_up_and_commits_nothing(where: str) -> None:
    if where.startswith("sqlite:"):
        pytest.skip("a file's lock is held by the frozen until they wake or die: nobody can bury them meanwhile")
    async with present(where) as (store, presence):
        with child(FROZEN, where) as process:
            name = (await line_of(process)).strip()
            await until(lambda: not presence.is_alive(name))
            await presence.bury(name)
            await note(store, "after")
            process.send_signal(signal.SIGCONT)
            assert [await line_of(process) for _ in range(2)] == ["StoreError\n", "Fenced\n"]
        assert notes(store) == ["before", "after"]


async def test_who_was_buried_calls_nobody_any_more_even_with_money_in_its_hands(tmp_path: Path) -> None:
    model = Rehearsal("up", reply="one two")
    kernel = await Kernel.open(settings(tmp_path), models={"up": model}, beat_s=BEAT_S)
    await kernel.treasury.set_budget("tenant:t", period="total", pico=10**15, tokens=None, actor="test")
    asked = Request(Origin("t"), Lane.ONLINE, Route("up", ("up",), "test"), CALL)
    async with kernel.door.step(asked) as answer:
        await answer.whole()
    await until(lambda: any(row["pico"] for row in kernel.store.all("leases")))
    await kernel.presence.bury(kernel.presence.name)
    await until(lambda: kernel.presence.is_buried)
    with pytest.raises(Fenced):
        async with kernel.door.step(asked):
            pass
    assert model.requests == 1
    await kernel.aclose()


# ── knowing it oneself ──


@contextmanager
def occupied(where: str) -> Iterator[None]:
    """Nobody's beat gets through while this is open."""
    if where.startswith("sqlite:"):
        with contextlib.closing(sqlite3.connect(where.removeprefix("sqlite:"), isolation_level=None)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            yield
            connection.execute("ROLLBACK")
    else:
        with psycopg.connect(where) as server:
            server.execute("LOCK TABLE twolane.process IN EXCLUSIVE MODE")
            yield
            server.rollback()


async def test_who_cannot_beat_knows_that_it_is_lost_and_that_it_is_found_again(where: str) -> None:
    async with present(where) as (store, presence), present(where) as (_, other):
        lost: list[bool] = []
        presence.on_lost = lambda: lost.append(presence.is_lost)
        await asyncio.sleep(3 * BEAT_S)
        assert (presence.is_lost, lost) == (False, [])
        with occupied(where):
            await until(lambda: lost)
            await asyncio.sleep(2 * DEAD_BEATS * BEAT_S)
            assert lost == [True]
            assert other.is_alive(presence.name), "who cannot beat itself does not judge others"
        await until(lambda: not presence.is_lost)
        await note(store, "found again")


class Scripted:
    """A store of which only the beats are asked."""

    def __init__(self) -> None:
        self.beats: Mapping[str, int] | StoreError = {}
        self.asked = threading.Semaphore(0)
        self.looked = threading.Semaphore(0)
        self.here: set[str] = set()

    def beat(self, name: str, *, patience_s: float) -> Mapping[str, int]:
        self.asked.acquire()
        beats = self.beats
        self.looked.release()
        if isinstance(beats, StoreError):
            raise beats
        return {name: 1, **beats}

    def one(self, query: str, *, name: str) -> object:
        return name

    async def write(self, work: object) -> int:
        return 1

    def submit(self, work: object) -> asyncio.Future[int]:
        return asyncio.get_running_loop().create_future()

    def fence(self, name: str) -> None:
        pass


async def test_a_death_is_a_beat_that_stood_still_through_five_of_ones_own(tmp_path: Path) -> None:
    store = Scripted()
    presence = await Presence.open(cast("Store", store), locks=None, beat_s=0.01)
    died: list[str] = []
    presence.on_death = died.extend

    async def look(beats: Mapping[str, int] | StoreError) -> bool:
        store.beats = beats
        store.asked.release()
        await asyncio.to_thread(store.looked.acquire)
        await asyncio.sleep(0.03)  # the thread has taken it in
        return presence.is_alive("other")

    assert [await look({"other": 7}) for _ in range(5)] == [True] * 5
    assert await look({"other": 8}), "it lives, and counting begins anew"
    assert [await look(StoreError("gone")) for _ in range(8)] == [True] * 8, "a beat that fails counts for nothing"
    await asyncio.sleep(0.3)  # as if we had been frozen: time alone is no death
    assert [await look({"other": 8}) for _ in range(5)] == [True] * 4 + [False]
    await until(lambda: died == ["other"])
    store.asked.release()
    presence._leaving.set()
    store.asked.release()
    presence.leave()


# ── a process that sleeps in mid-work ──


def settings(folder: Path) -> Config:
    price = PriceTable(input="1", output="2")
    section = UpstreamSection(kind="rehearsal", price=price, retries=0, slots=Slots(online=20, batch=20))
    return Config(**kept_in(folder), upstream={"up": section}, route={})


async def busy(folder: Path) -> None:
    """Calls without end, batch and online, each under a budget."""
    kernel = await Kernel.open(
        settings(folder), models={"up": Rehearsal("up", reply="one two", token_ms=60)}, beat_s=2 * BEAT_S
    )
    print(kernel.presence.name, flush=True)

    async def person(lane: Lane) -> None:
        while True:
            asked = Request(Origin("t", run="r"), lane, Route("up", ("up",), "test"), CALL)
            async with kernel.door.step(asked) as answer:
                await answer.whole()
            await answer.durable()

    tasks = [asyncio.create_task(person(lane)) for lane in (Lane.BATCH, Lane.ONLINE) for _ in range(4)]
    done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
    print(type(done.pop().exception()).__name__, flush=True)
    os._exit(0)


BUSY = """
import asyncio, sys
from pathlib import Path
from tests.integration.test_presence import busy
asyncio.run(busy(Path(sys.argv[1])))
"""


@contextmanager
def child(script: str, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    repository = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "PYTHONPATH": f"{repository / 'src'}:{repository}"}
    with subprocess.Popen(
        [sys.executable, "-c", script, *arguments], env=environment, stdout=subprocess.PIPE
    ) as process:
        try:
            yield process
        finally:
            process.kill()


async def line_of(process: Any) -> str:  # Any: Popen does not say that it has an output
    return str((await asyncio.to_thread(process.stdout.readline)).decode())


async def stopped(process: Any, kernel: Kernel, name: str) -> None:
    """Freeze it, and wait until it is buried. Where it froze with a file's lock in its hand, nobody can: then again."""
    while True:
        process.send_signal(signal.SIGSTOP)
        with contextlib.suppress(TimeoutError):
            await until(lambda: kernel.store.one("process", name=name) is None, within_s=3)
            return
        process.send_signal(signal.SIGCONT)
        await asyncio.sleep(0.05)


async def sleep_and_wake(folder: Path) -> set[str]:
    """A process sleeps until its work was taken over, and wakes; how its steps ended."""
    kernel = await Kernel.open(settings(folder), models={"up": Rehearsal("up")}, beat_s=2 * BEAT_S)
    await kernel.treasury.set_budget("tenant:t", period="total", pico=10**15, tokens=None, actor="test")
    with child(BUSY, str(folder)) as process:
        name = (await line_of(process)).strip()
        enough = len(kernel.store.all("steps_since", count=10_000)) + 20
        await until(lambda: len(kernel.store.all("steps_since", count=10_000)) > enough)
        await stopped(process, kernel, name)
        await until(lambda: kernel.store.all("owners") == [])
        settled = kernel.store.one("count_entries")
        process.send_signal(signal.SIGCONT)
        assert await line_of(process) in ("Fenced\n", "StoreError\n")
    assert kernel.store.one("count_entries") == settled
    entries = [orjson.loads(row["leaf"]) for row in kernel.store.all("entries", first=0, count=100_000)]
    steps = [entry for entry in entries if entry["kind"] == "step"]
    assert set(Counter(entry["step"] for entry in steps).values()) == {1}
    assert ledger.verify(kernel.store).ok
    assert drift(kernel.store) == []
    await kernel.aclose()
    return {entry["status"] for entry in steps}


async def test_a_process_that_wakes_from_a_sleep_commits_nothing_twice(tmp_path: Path) -> None:
    for _ in range(2):
        assert await sleep_and_wake(tmp_path) <= {"ok", "in_doubt"}
    assert await sleep_and_wake(tmp_path) == {"ok", "in_doubt"}


async def test_where_the_event_loop_stands_still_is_told(where: str, caplog: pytest.LogCaptureFixture) -> None:
    def compute_for_long() -> None:
        ended = time.monotonic() + 30
        while not caplog.records and time.monotonic() < ended:
            time.sleep(0.01)

    async with present(where, beat_s=0.02):
        compute_for_long()
    assert "this process has stood still for 0.3 s in " in caplog.text
    assert "compute_for_long (" in caplog.text
