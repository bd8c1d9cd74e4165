"""One suite for every store: what the port promises, and what stays in and beside the file."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import os
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from twolane.errors import StoreError
from twolane.store import FRESH_S, Store, Transaction, Value, gather
from twolane.store import sqlite as sqlite_store
from twolane.store.opening import open_store
from twolane.store.sqlite import SCHEMA_VERSION, SQLiteStore
from twolane.store.vault import Vault, seal, unseal

T = TypeVar("T")
Opener = Callable[[], Store]


@pytest.fixture
def open_again(address: str) -> Iterator[Opener]:
    """Opens the store as another process would, and closes what the test left open."""
    opened: list[Store] = []

    def opener() -> Store:
        opened.append(open_store(address))
        return opened[-1]

    yield opener
    for store in opened:
        store.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.db"


@pytest.fixture
def store(open_again: Opener) -> Store:
    return open_again()


def elsewhere(script: str, *arguments: str) -> list[str]:
    """A command that runs `main(store)` of a script in another process, on the store at the first argument."""
    around = f"""
import asyncio, os, sys
from twolane.kernel import ledger
from twolane.store.opening import open_store
{script}
store = open_store(sys.argv[1])
asyncio.run(main(store))
store.close()
"""
    return [sys.executable, "-c", around, *arguments]


def keys_of(path: Path) -> Path:
    return path.with_name(path.name + ".keys")


def keep(name: str, value: str = "x") -> Callable[[Transaction], int]:
    return lambda tx: tx.run("set_meta", name=name, value=value)


def kept(store: Store, name: str) -> str | None:
    row = store.one("get_meta", name=name)
    return str(row["value"]) if row else None


# ── writing ──


async def test_what_was_written_is_read_by_this_process_and_by_the_next(store: Store, open_again: Opener) -> None:
    assert await store.write(keep("a", "1")) == 1
    assert kept(store, "a") == "1"
    assert kept(open_again(), "a") == "1"


async def test_what_returned_is_there_after_a_crash(address: str, open_again: Opener) -> None:
    script = """
async def main(store):
    await store.write(lambda tx: tx.run("set_meta", name="a", value="1"))
    os.kill(os.getpid(), 9)
"""
    assert subprocess.run(elsewhere(script, address), check=False).returncode == -9
    assert kept(open_again(), "a") == "1"


async def test_a_work_gives_its_answer_and_sees_what_came_before_it(store: Store) -> None:
    first = store.submit(keep("a", "1"))
    second = store.submit(lambda tx: tx.one("get_meta", name="a"))
    assert await first == 1
    row = await second
    assert row is not None
    assert row["value"] == "1"


def failing(tx: Transaction) -> None:
    tx.run("set_meta", name="half", value="done")
    raise LookupError("a work of mine")


async def hold_the_writer(store: Store, release: threading.Event) -> asyncio.Future[None]:
    """Keep the writer inside a work, so that whatever is submitted meanwhile forms one group."""
    inside = threading.Event()

    def work(tx: Transaction) -> None:
        inside.set()
        assert release.wait(20)

    held = store.submit(work)
    await asyncio.to_thread(inside.wait, 20)
    return held


async def test_a_failing_work_fails_alone_and_leaves_nothing_behind(store: Store) -> None:
    release = threading.Event()
    held = await hold_the_writer(store, release)
    runs: list[int] = []

    def counted(tx: Transaction) -> None:
        runs.append(1)
        keep("b")(tx)

    waiting: list[asyncio.Future[Any]] = []  # Any: each work has its own answer
    waiting += [store.submit(keep("a")), store.submit(failing), store.submit(counted)]
    release.set()
    await held
    answers = await asyncio.gather(*waiting, return_exceptions=True)
    assert answers[0] == 1
    assert isinstance(answers[1], LookupError)
    assert answers[2] is None
    assert [kept(store, name) for name in ("a", "half", "b")] == ["x", None, "x"]
    assert len(runs) <= 2  # a work may run twice, when a neighbour fails; what it wrote stands once


async def test_many_rows_are_written_in_their_order_with_one_call(store: Store) -> None:
    rows = [{"name": "a", "value": "1"}, {"name": "b", "value": "2"}, {"name": "a", "value": "3"}]
    assert await store.write(lambda tx: tx.run_many("set_meta", rows)) == 3
    assert [kept(store, name) for name in ("a", "b")] == ["3", "2"]
    assert await store.write(lambda tx: tx.run_many("set_meta", [])) == 0


async def test_what_a_group_gathers_is_written_before_its_commit_in_the_order_of_its_works(store: Store) -> None:
    release = threading.Event()
    held = await hold_the_writer(store, release)

    def gathering(value: str) -> Callable[[Transaction], bool]:
        def work(tx: Transaction) -> bool:
            gather(tx, "set_meta", name=f"n{value}", value=value)
            gather(tx, "set_meta", name="last", value=value)
            return tx.one("get_meta", name=f"n{value}") is None

        return work

    waiting = [store.submit(gathering(str(number))) for number in range(5)]
    release.set()
    await held
    assert all(await asyncio.gather(*waiting)), "not written before the works are through"
    assert [kept(store, f"n{number}") for number in range(5)] == list("01234")
    assert kept(store, "last") == "4"


async def test_what_a_failing_work_gathered_is_not_written(store: Store) -> None:
    release = threading.Event()
    held = await hold_the_writer(store, release)

    def fails(tx: Transaction) -> None:
        gather(tx, "set_meta", name="half", value="x")
        raise LookupError("a work of mine")

    waiting = [store.submit(fails), store.submit(lambda tx: gather(tx, "set_meta", name="whole", value="x"))]
    release.set()
    await held
    answers = await asyncio.gather(*waiting, return_exceptions=True)
    assert isinstance(answers[0], LookupError)
    assert [kept(store, name) for name in ("half", "whole")] == [None, "x"]


async def test_a_group_shares_one_cache_and_ends_with_one_closing_work(store: Store) -> None:
    release = threading.Event()
    held = await hold_the_writer(store, release)

    def count(tx: Transaction) -> None:
        if "count" not in tx.cache:
            tx.cache["count"] = 0
            tx.before_commit(lambda: finish(tx))
        tx.cache["count"] += 1

    def finish(tx: Transaction) -> None:
        row = tx.one("get_meta", name="groups")
        keep("groups", f"{row['value'] if row else ''}{tx.cache['count']} ")(tx)

    waiting = [store.submit(count) for _ in range(10)]
    release.set()
    await asyncio.gather(held, *waiting)
    assert kept(store, "groups") == "10 "


async def test_inside_a_group_a_change_of_the_policy_is_seen_by_the_works_after_it(store: Store) -> None:
    release = threading.Event()
    held = await hold_the_writer(store, release)
    limit: dict[str, Value] = {"scope": "s", "period": "total", "tokens": None, "source": "command", "since": 0}
    limit |= {"calls": None, "us": None, "accelerator_us": None}

    def seen(tx: Transaction) -> object:
        budget = tx.one("budget", scope="s")
        return (budget["pico"] if budget else None, [row["scope"] for row in tx.all("switches")])

    waiting: list[asyncio.Future[Any]] = []  # Any: each work has its own answer
    for pico in (1, 2):
        waiting.append(store.submit(seen))
        waiting.append(store.submit(lambda tx, p=pico: tx.run("set_budget", pico=p, **limit)))  # type: ignore[misc]
        waiting.append(store.submit(lambda tx, p=pico: tx.run("trip", scope=str(p), cause="", actor="", tripped=p)))  # type: ignore[misc]
    waiting.append(store.submit(seen))
    release.set()
    await held
    answers = await asyncio.gather(*waiting)
    assert [answers[at] for at in (0, 3, 6)] == [(None, []), (1, ["1"]), (2, ["1", "2"])]


@pytest.mark.parametrize("error", [KeyError("k"), StopIteration(), asyncio.CancelledError(), SystemExit(3)])
async def test_whatever_a_work_raises_its_waiter_is_told_and_the_store_goes_on(
    store: Store, error: BaseException
) -> None:
    def work(tx: Transaction) -> None:
        raise error

    future = store.submit(work)
    await asyncio.wait([future], timeout=10)
    assert future.done()
    told = None if future.cancelled() else future.exception()
    assert told is not None
    await store.write(keep("a"))


async def test_a_query_that_breaks_a_rule_of_the_database_is_a_store_error(store: Store) -> None:
    with pytest.raises(StoreError, match="could not be written"):
        await store.write(lambda tx: tx.run("add_body", subject="nobody", sealed=b""))


async def test_a_work_is_done_even_if_nobody_waits_any_more(store: Store) -> None:
    release = threading.Event()
    held = await hold_the_writer(store, release)
    store.submit(keep("a")).cancel()
    release.set()
    await held
    await store.write(keep("b"))
    assert kept(store, "a") == "x"


def test_a_work_is_done_even_if_its_event_loop_is_gone(store: Store) -> None:
    async def leave() -> None:
        store.submit(keep("a"))

    asyncio.run(leave())
    asyncio.run(store.write(keep("b")))
    assert kept(store, "a") == "x"


async def test_closing_writes_what_was_submitted_and_refuses_what_comes_later(open_again: Opener) -> None:
    store = open_again()
    waiting = [store.submit(keep(f"n{number}")) for number in range(1500)]
    store.close()
    await asyncio.gather(*waiting)
    with pytest.raises(StoreError, match="is closed"):
        await store.write(keep("late"))
    again = open_again()
    assert all(kept(again, f"n{number}") for number in range(1500))
    assert kept(again, "late") is None


# ── reading ──


async def test_inside_a_snapshot_all_reads_see_the_same_moment(store: Store) -> None:
    await store.write(keep("a", "1"))
    with store.snapshot():
        assert kept(store, "a") == "1"
        await store.write(keep("a", "2"))
        assert kept(store, "a") == "1"
    assert kept(store, "a") == "2"


async def test_the_version_changes_with_every_commit_of_any_process(store: Store, address: str) -> None:
    # Transactions in other databases of a server count too, and other tests may make some.
    assert any(store.version() == store.version() for _ in range(1_000))
    before = store.version()
    await store.write(keep("a"))
    own = store.version()
    assert own != before
    script = """
async def main(store):
    await store.write(lambda tx: tx.run("set_meta", name="b", value="2"))
"""
    subprocess.run(elsewhere(script, address), check=True)
    assert store.version() != own
    assert kept(store, "b") == "2"


async def test_a_reader_cannot_write(store: Store) -> None:
    with pytest.raises(StoreError, match=r"could not be read: .*read-?only"):
        store.one("set_meta", name="a", value="x")


async def test_threads_read_beside_the_writer(store: Store) -> None:
    await store.write(keep("a", "1"))
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda _: kept(store, "a"), range(50))) == ["1"] * 50


async def test_sums_and_numbers_are_whole_numbers_and_bytes_are_bytes(store: Store) -> None:
    await store.write(lambda tx: tx.run("add_subject", id="s", tenant="t", name="n", wrapped=b"\x00w\xff", created=7))
    first = await store.write(lambda tx: tx.run("add_body", subject="s", sealed=b"one"))
    assert await store.write(lambda tx: tx.run("add_body", subject="s", sealed=b"two")) > first
    row = store.one("body", id=first)
    assert row is not None
    assert dict(row) == {"sealed": b"one", "subject": "s", "wrapped": b"\x00w\xff"}
    none: dict[str, Value] = {"calls": 0, "us": 0, "accelerator_us": 0}
    lease: dict[str, Value] = {"scope": "s", "window": "total", "owner": "o", "tokens": 2**40, **none}
    await store.write(lambda tx: tx.run("add_lease", pico=2**62, **lease))
    await store.write(lambda tx: tx.run("begin_spending", scope="s", window="total", pico=1, tokens=1, **none))
    leased, spent = store.one("leased", scope="s", window="total"), store.one("spent_by_run", run="none")
    assert leased is not None
    assert spent is not None
    assert [(value, type(value)) for value in (*dict(leased).values(), *dict(spent).values())] == [
        (2**62, int), (2**40, int), *[(0, int)] * 8,
    ]  # fmt: skip
    assert await store.write(lambda tx: tx.run("want_leases", scope="s", window="total", owner="another")) == 1
    windows = store.all("windows", scopes='["s", "none"]')
    assert [(row["scope"], row["window"]) for row in windows] == [("s", "total")]


async def test_an_upsert_adds_to_what_is_there_and_touches_one_row(store: Store) -> None:
    member: dict[str, Value] = {"upstream": "u", "lane": "batch", "owner": "o", "wants": 3, "loan": 0}
    counted: dict[str, Value] = {"scope": "s", "window": "total", "day": "2026-11-21", "pico": 5, "tokens": 6}
    counted |= {"calls": 0, "us": 0, "accelerator_us": 0}

    def work(tx: Transaction) -> list[int]:
        tx.run("change_member", back=0, **member)
        tx.run("grant_slots", upstream="u", lane="batch", owner="o", more=3, turn=1)
        touched = [tx.run("change_member", back=1, **member)]
        touched += [tx.run("trip", scope="s", cause="c", actor="a", tripped=at) for at in (1, 2)]
        return [*touched, tx.run("add_doubt", **counted), tx.run("add_doubt", **counted)]

    assert await store.write(work) == [1, 1, 0, 1, 1]
    (row,) = store.all("members_of_lane", upstream="u", lane="batch")
    assert (row["holds"], row["wants"]) == (2, 3)
    doubt = store.one("doubt_since", scope="s", since="2026-01-01")
    assert doubt is not None
    assert (doubt["pico"], doubt["tokens"]) == (10, 12)


async def test_an_entry_with_a_nul_in_it_is_kept_verbatim_and_can_be_read(store: Store) -> None:
    from twolane.kernel import ledger

    fields = {"v": 1, "kind": "step", "step": "s", "tenant": "t", "run": "r", "cost_pico": "7"}
    fields["reason"] = "half\x00a \\u0000 line"
    await store.write(lambda tx: ledger.append(tx, fields))
    row = store.one("step", step="s", tenant="t")
    assert row is not None
    assert (row["leaf"], row["cost_pico"], row["run"]) == (0, 7, "r")
    assert b"half\\u0000a" in store.all("entries", first=0, count=1)[0]["leaf"]
    await store.write(lambda tx: tx.run("set_meta", name="nul", value="a\x00b"))


async def test_the_epoch_changes_with_the_policy_and_with_nothing_else(store: Store, open_again: Opener) -> None:
    other, before = open_again(), store.epoch()
    await store.write(keep("a"))
    assert store.epoch() == before
    await store.write(lambda tx: tx.run("trip", scope="s", cause="c", actor="a", tripped=1))
    after = store.epoch()
    assert after != before
    async with asyncio.timeout(10):
        while other.epoch() != after:
            await asyncio.sleep(FRESH_S / 4)


# ── two processes ──


async def test_two_processes_that_write_at_once_both_finish_and_nothing_is_lost(address: str, store: Store) -> None:
    script = """
async def main(store):
    async def one(number):
        await store.write(lambda tx: ledger.append(tx, {"kind": "note", "run": "r", "name": f"{sys.argv[2]}-{number}"}))
    for start in range(0, 200, 20):
        await asyncio.gather(*(one(start + at) for at in range(20)))
"""
    both = [subprocess.Popen(elsewhere(script, address, name)) for name in "ab"]
    assert [await asyncio.to_thread(process.wait, 50) for process in both] == [0, 0]
    from twolane.kernel import ledger

    verdict = ledger.verify(store)
    assert (verdict.problem, verdict.entries) == ("", 400)
    names = {row["leaf"] for row in store.all("entries", first=0, count=1000)}
    assert len(names) == 400


async def test_a_lock_held_too_long_fails_a_whole_group_at_once_and_keeps_nothing(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_store, "PATIENCE_S", 0.2)
    store = SQLiteStore(path)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        async with asyncio.timeout(10):  # not 0.2 s for each of them
            answers = await asyncio.gather(*(store.write(keep(f"n{at}")) for at in range(100)), return_exceptions=True)
        assert all(isinstance(answer, StoreError) for answer in answers)
        other.execute("ROLLBACK")
    await store.write(keep("after"))
    assert (kept(store, "n0"), kept(store, "after")) == (None, "x")
    store.close()


# ── the file ──


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


async def test_the_store_and_its_keys_belong_to_their_owner_alone(path: Path) -> None:
    before = os.umask(0o000)
    try:
        store = SQLiteStore(path)
        Vault.open(keys_of(path), is_new=True)
        await store.write(keep("a"))
        files = [found for found in path.parent.rglob("*") if found.is_file()]
        assert {found.name for found in files} >= {
            "store.db",
            "store.db-wal",
            "store.db-shm",
            "store.db.lock",
            "master",
            "pepper",
        }
        assert {found.name: oct(mode(found)) for found in files if mode(found) != 0o600} == {}
        assert mode(path.with_name("store.db.keys")) == 0o700
        store.close()
    finally:
        os.umask(before)


def test_the_schema_of_a_newer_release_is_refused(path: Path) -> None:
    SQLiteStore(path).close()
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    with pytest.raises(StoreError, match="newer release"):
        SQLiteStore(path)


def test_what_is_no_store_or_has_no_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.db").write_text("this is not a database " * 100)
    with pytest.raises(StoreError, match="cannot be opened"):
        SQLiteStore(tmp_path / "text.db")
    with pytest.raises(StoreError, match="is not there; make it"):
        SQLiteStore(tmp_path / "no" / "store.db")


def test_a_store_without_its_keys_says_what_is_missing(path: Path) -> None:
    with pytest.raises(StoreError, match=r"must hold master and pepper\. Bring them back"):
        Vault.open(keys_of(path), is_new=False)
    Vault.open(keys_of(path), is_new=True)
    (path.with_name("store.db.keys") / "pepper").write_bytes(b"")
    with pytest.raises(StoreError, match="are damaged"):
        Vault.open(keys_of(path), is_new=False)


def test_keys_are_made_once_and_a_half_made_one_is_not_left(path: Path) -> None:
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        vaults = list(pool.map(lambda _: Vault.open(keys_of(path), is_new=True), range(8)))
    assert len({vault.pseudonym("a") for vault in vaults}) == 1
    assert sorted(found.name for found in path.with_name("store.db.keys").iterdir()) == ["master", "pepper"]


def test_a_body_opens_with_its_own_key_only(path: Path, tmp_path: Path) -> None:
    vault = Vault.open(keys_of(path), is_new=True)
    mine, wrapped = vault.new_subject("t", "a")
    other, _ = vault.new_subject("t", "b")
    sealed = seal(mine, b"text")
    assert unseal(vault.subject({"id": mine.id, "wrapped": wrapped}), sealed) == b"text"
    for subject, body in ((other, sealed), (mine, sealed[:-1] + bytes([sealed[-1] ^ 1]))):
        with pytest.raises(StoreError, match="does not open"):
            unseal(subject, body)
    stranger = Vault.open(tmp_path / "other.keys", is_new=True)
    with pytest.raises(StoreError, match="belong to another"):
        stranger.subject({"id": mine.id, "wrapped": wrapped})


def test_every_connection_syncs_fully_deletes_securely_and_minds_references(path: Path) -> None:
    SQLiteStore(path).close()
    with contextlib.closing(sqlite_store._connect(path)) as connection:
        settings = {
            name: connection.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("synchronous", "secure_delete", "foreign_keys", "journal_mode")
        }
    assert settings == {"synchronous": 2, "secure_delete": 1, "foreign_keys": 1, "journal_mode": "wal"}


async def test_a_deleted_body_is_not_in_the_file_any_more(path: Path) -> None:
    store, marker = SQLiteStore(path), b"\xabmarker-of-a-body\xcd" * 400
    await store.write(lambda tx: tx.run("add_subject", id="s", tenant="t", name="n", wrapped=b"w", created=0))
    await store.write(lambda tx: tx.run("add_body", subject="s", sealed=marker))
    store.close()
    assert marker[:18] in path.read_bytes()
    with contextlib.closing(sqlite_store._connect(path)) as connection:
        connection.execute("DELETE FROM body")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        assert not any(marker[:18] in found.read_bytes() for found in path.parent.glob("store.db*") if found.is_file())


# ── a full disk ──


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of three megabytes."""
    folder = tmp_path / "small"
    folder.mkdir()
    if os.geteuid() != 0 or not sys.platform.startswith("linux"):
        pytest.skip("mounting a small file system needs root on Linux")
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "none", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"no small file system can be mounted here: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


async def test_a_full_disk_is_said_plainly_and_loses_nothing_acknowledged(small_disk: Path) -> None:
    store, acknowledged = SQLiteStore(small_disk / "store.db"), []
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(1_500_000))
    refused: StoreError | None = None
    for number in range(2000):
        try:
            await store.write(keep(f"n{number}", "x" * 4000))
        except StoreError as error:
            refused = error
            break
        acknowledged.append(number)
    assert refused is not None
    assert "full" in str(refused)
    assert "free the disk" in str(refused)
    assert acknowledged
    assert all(kept(store, f"n{number}") for number in acknowledged)
    ballast.unlink()
    await store.write(keep("after", "y"))
    store.close()
    again = SQLiteStore(small_disk / "store.db")
    assert all(kept(again, f"n{number}") for number in acknowledged)
    assert (kept(again, "after"), kept(again, f"n{len(acknowledged)}")) == ("y", None)
    again.close()


# ── memory of a run ──

PLACE = {"tenant": "t", "run": "r1", "owner": "", "name": "seen"}


async def begin(store: Store) -> None:
    def work(tx: Transaction) -> None:
        tx.run("add_run", id="r1", tenant="t", flow="f", workflow="f", options="{}", created=0, priority=0, due=0)
        tx.run("add_subject", id="s1", tenant="t", name="n", wrapped=b"w", created=0)

    await store.write(work)


def setting(known: int, sealed: bytes) -> Callable[[Transaction], int]:
    def work(tx: Transaction) -> int:
        body = tx.run("add_body", subject="s1", sealed=sealed)
        if known == 0:
            return tx.run("add_memory", **PLACE, version=1, body=body)
        return tx.run("set_memory", **PLACE, version=known + 1, body=body, known=known)

    return work


def newest(store: Store) -> tuple[int, bytes]:
    row = store.one("memory", **PLACE)
    assert row is not None
    return row["version"], bytes(row["sealed"])


async def test_a_memory_is_set_only_by_who_saw_its_newest_value(store: Store) -> None:
    await begin(store)
    assert await store.write(setting(0, b"first")) == 1
    assert await store.write(setting(0, b"late")) == 0
    assert await store.write(setting(1, b"second")) == 1
    assert await store.write(setting(1, b"late")) == 0
    assert newest(store) == (2, b"second")


async def test_a_value_that_was_read_stays_when_a_newer_one_comes(store: Store) -> None:
    await begin(store)
    await store.write(setting(0, b"first"))
    row = store.one("memory", **PLACE)
    assert row is not None
    body = row["body"]
    pin = {**PLACE, "reader": "s1", "after": ""}
    await store.write(lambda tx: tx.run("add_memory_read", **pin, version=1, body=body))
    assert await store.write(lambda tx: tx.run("drop_unread_body", body=body)) == 0
    found = store.one("memory_read", **pin)
    assert found is not None
    assert (found["version"], found["body"]) == (1, body)
    await store.write(setting(1, b"second"))
    row = store.one("memory", **PLACE)
    assert row is not None
    second = row["body"]
    await store.write(setting(2, b"third"))
    assert await store.write(lambda tx: tx.run("drop_unread_body", body=second)) == 1
    assert store.one("body", id=second) is None
