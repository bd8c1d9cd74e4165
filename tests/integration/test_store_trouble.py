"""A store that is full, locked or gone in mid-run: the run waits or stops, says why, loses nothing and goes on."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import subprocess
import sys
import threading
from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest
from tests.integration.test_batch import AUDIT, SCRIPT, documents, steps

from twolane import Platform, RunSummary
from twolane.errors import StoreError
from twolane.store import sqlite
from twolane.store.sqlite import SQLiteStore
from twolane.testing import Rehearsal

ITEMS = 40


async def reach(rehearsal: Rehearsal, requests: int) -> None:
    """Wait until that many calls were made."""
    async with asyncio.timeout(30):
        while rehearsal.requests() < requests:
            await asyncio.sleep(0.001)


def check_whole(platform: Platform, summary: RunSummary, *, asked: int) -> None:
    """Every item done, every step paid once; what was asked and could not be recorded is booked in doubt."""
    rows = steps(platform, summary.run)
    paid = Counter((row["item"], row["agent"]) for row in rows if row["status"] == "ok")
    doubtful = [row for row in rows if row["status"] == "in_doubt"]
    assert (summary.status, summary.reason, summary.items["quarantined"]) == ("done", "", 0)
    assert summary.items["done"] == ITEMS
    assert len(paid) == 4 * ITEMS
    assert set(paid.values()) == {1}
    assert asked <= 4 * ITEMS + len(doubtful)
    assert {row["status"] for row in rows} <= {"ok", "reused", "in_doubt"}
    assert platform.kernel.store.all("reservations") == []
    assert len(list(Path(summary.reports).glob("*.json"))) == ITEMS
    assert platform.verify().ok


def test_who_opens_waits_while_another_that_comes_or_goes_holds_the_file_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "store.db"
    SQLiteStore(path).close()
    monkeypatch.setattr(sqlite, "_migrate", lambda _: None)
    with closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as other:
        other.execute("PRAGMA locking_mode = EXCLUSIVE")
        other.execute("BEGIN IMMEDIATE")
        leaving = threading.Timer(0.2, other.close)
        leaving.start()
        with closing(SQLiteStore(path)) as store:
            assert store.all("processes") == []
        leaving.join()


@pytest.mark.parametrize("which", ["twolane.db", "twolane.db.queue"])
async def test_a_file_that_another_process_locks_for_a_while_is_waited_for(tmp_path: Path, which: str) -> None:
    rehearsal = Rehearsal(SCRIPT, token_ms=1, folder=tmp_path)
    async with rehearsal as platform:
        run = await platform.start(AUDIT, documents(ITEMS))
        working = asyncio.create_task(platform.work(run, flow=AUDIT))
        await reach(rehearsal, 20)
        with closing(sqlite3.connect(tmp_path / which, isolation_level=None, timeout=10)) as other:
            other.execute("BEGIN EXCLUSIVE")
            asked = rehearsal.requests()
            await asyncio.sleep(1)  # as long as the lock is held, which is what this is about
            if which == "twolane.db":
                assert rehearsal.requests() - asked <= 64, "without its intent no call leaves"
            other.execute("ROLLBACK")
        check_whole(platform, await working, asked=rehearsal.requests())


async def test_a_lock_that_is_never_given_back_stops_the_run_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("twolane.store.sqlite.PATIENCE_S", 0.3)
    rehearsal = Rehearsal(SCRIPT, token_ms=1, folder=tmp_path)
    async with rehearsal as platform:
        run = await platform.start(AUDIT, documents(ITEMS))
        working = asyncio.create_task(platform.work(run, flow=AUDIT))
        await reach(rehearsal, 20)
        with closing(sqlite3.connect(tmp_path / "twolane.db", isolation_level=None, timeout=10)) as other:
            other.execute("BEGIN EXCLUSIVE")
            with pytest.raises(StoreError, match="could not be written: database is locked"):
                await working
            other.execute("ROLLBACK")
    again = Rehearsal(SCRIPT, folder=tmp_path)
    async with again as platform:
        still = platform.summary(run)
        assert (still.status, still.exit_code, still.items["quarantined"]) == ("stopped", 1, 0)
        assert still.reason == "interrupted: its worker is gone"
        await platform.prepare_resume(run)
        summary = await platform.work(run, flow=AUDIT)
        check_whole(platform, summary, asked=rehearsal.requests() + again.requests())


async def test_a_full_store_stops_the_run_and_blames_no_item(tmp_path: Path) -> None:
    rehearsal = Rehearsal(SCRIPT, token_ms=1, folder=tmp_path)
    async with rehearsal as platform:
        run = await platform.start(AUDIT, documents(ITEMS))
        writer = platform.kernel.store._session._connection  # type: ignore[attr-defined]  # the one that will find no room
        (pages,) = writer.execute("PRAGMA page_count").fetchone()
        writer.execute(f"PRAGMA max_page_count = {pages + 40}")
        try:
            said = (await platform.work(run, flow=AUDIT)).reason
        except StoreError as error:  # there was no room for the run's end either
            said = f"store: {error}"
        assert said.startswith("store: the store ")
        assert "database or disk is full" in said
    again = Rehearsal(SCRIPT, folder=tmp_path)
    async with again as platform:
        still = platform.summary(run)
        assert (still.status, still.exit_code, still.items["quarantined"]) == ("stopped", 1, 0)
        assert still.reason.startswith(("store: ", "interrupted: "))
        assert 0 < still.items["done"] < ITEMS
        await platform.prepare_resume(run)
        summary = await platform.work(run, flow=AUDIT)
        check_whole(platform, summary, asked=rehearsal.requests() + again.requests())


CHILD = """
import asyncio, json, resource, sys
from pathlib import Path
from tests.integration.test_batch import AUDIT, SCRIPT, documents
from twolane.errors import TwolaneError
from twolane.testing import Rehearsal

async def main():
    rehearsal = Rehearsal(SCRIPT, folder=Path(sys.argv[1]))
    async with rehearsal as platform:
        run = await platform.start(AUDIT, documents(int(sys.argv[2])))
        largest = max(path.stat().st_size for path in Path(sys.argv[1]).rglob("*.db*") if path.is_file())
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest + 100_000, resource.RLIM_INFINITY))
        try:
            await platform.work(run, flow=AUDIT)
        except TwolaneError as error:
            print(json.dumps([run, rehearsal.requests(), str(error)]), flush=True)
        else:
            print(json.dumps([run, rehearsal.requests(), ""]), flush=True)

asyncio.run(main())
"""


async def test_when_nothing_can_be_written_any_more_all_that_was_written_stands(
    tmp_path: Path, repository: Path
) -> None:
    """The system itself refuses: no file of the process may grow, its log and its queue included."""
    child = subprocess.run(
        [sys.executable, "-c", CHILD, str(tmp_path), str(ITEMS)],
        cwd=repository, capture_output=True, text=True, timeout=50, check=False,
    )  # fmt: skip
    assert child.stdout, child.stderr
    run, asked, said = json.loads(child.stdout.splitlines()[0])
    assert "Traceback" not in said
    again = Rehearsal(SCRIPT, folder=tmp_path)
    async with again as platform:
        still = platform.summary(run)
        assert (still.status, still.items["quarantined"]) == ("stopped", 0)
        assert still.reason.startswith(("interrupted: ", "store: "))
        assert still.items["done"] < ITEMS
        assert platform.verify().ok
        await platform.prepare_resume(run)
        summary = await platform.work(run, flow=AUDIT)
        check_whole(platform, summary, asked=asked + again.requests())


async def test_a_store_that_is_gone_for_a_while_and_comes_back_is_written_on(tmp_path: Path) -> None:
    rehearsal = Rehearsal(SCRIPT, token_ms=1, folder=tmp_path)
    names = ("twolane.db", "twolane.db-wal", "twolane.db-shm")
    async with rehearsal as platform:
        run = await platform.start(AUDIT, documents(ITEMS))
        working = asyncio.create_task(platform.work(run, flow=AUDIT))
        await reach(rehearsal, 20)
        for name in names:
            (tmp_path / name).rename(tmp_path / f"{name}.away")
        with pytest.raises(StoreError, match="could not be read: unable to open database file"):
            await asyncio.to_thread(platform.kernel.store.one, "epoch")  # a reader that was not there before
        await reach(rehearsal, min(4 * ITEMS, rehearsal.requests() + 20))
        assert not (tmp_path / "twolane.db").exists(), "nobody may put an empty one in its place"
        for name in names:
            (tmp_path / f"{name}.away").rename(tmp_path / name)
        check_whole(platform, await working, asked=rehearsal.requests())
    with closing(SQLiteStore(tmp_path / "twolane.db")) as store:
        assert store.one("run", id=run) is not None
