"""The record can be checked: whatever is changed in it is found, and named where it can be."""

from __future__ import annotations

import asyncio
import contextlib
import random
import sqlite3
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import orjson
import pytest

from twolane.errors import InvalidEntry, LedgerBroken
from twolane.kernel import ledger, treasury
from twolane.kernel.ledger import Verdict
from twolane.rules.merkle import CompactRange, leaf_hash
from twolane.store import Transaction
from twolane.store.sqlite import SQLiteStore

ENTRIES = 60


def step(number: int) -> dict[str, object]:
    return {
        "v": 1, "kind": "step", "run": f"r{number % 3}", "agent": "a", "tenant": "t", "lane": "batch",
        "name": f"n{number} é", "status": "ok" if number % 5 else "reused", "cost_pico": 7 if number % 5 else 0,
        "at_us": 1_700_000_000_000_000,
    }  # fmt: skip


def append(tx: Transaction, number: int) -> int:
    fields = step(number)
    treasury.count(tx, fields, pico=int(str(fields["cost_pico"])))
    return ledger.append(tx, fields)


@pytest.fixture
async def path(tmp_path: Path) -> Path:
    """A store with entries of three runs, and one of none."""
    store = SQLiteStore(tmp_path / "store.db")
    for number in range(ENTRIES - 1):
        assert await store.write(lambda tx, n=number: append(tx, n)) == number  # type: ignore[misc]
    await store.write(lambda tx: ledger.append(tx, {"kind": "note", "text": "of no run"}))
    store.close()
    return tmp_path / "store.db"


@contextlib.contextmanager
def tampered(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection for someone who can write whatever they like; the table's own checks are no hindrance to them."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.executescript("""
            PRAGMA legacy_alter_table = ON;
            CREATE TABLE plain (position INTEGER PRIMARY KEY, leaf TEXT, hash BLOB, kind TEXT, run TEXT, item TEXT);
            INSERT INTO plain SELECT position, leaf, hash, kind, run, item FROM entry;
            DROP TABLE entry;
            ALTER TABLE plain RENAME TO entry;
        """)
        yield connection


def verify(path: Path) -> Verdict:
    store = SQLiteStore(path)
    try:
        return ledger.verify(store)
    finally:
        store.close()


def test_an_untouched_record_verifies_and_its_root_is_that_of_its_leaves(path: Path) -> None:
    verdict = verify(path)
    assert (verdict.ok, verdict.problem, verdict.first_bad, verdict.entries) == (True, "", None, ENTRIES)
    tree = CompactRange()
    with tampered(path) as connection:
        for (leaf,) in connection.execute("SELECT leaf FROM entry ORDER BY position"):
            tree.push(leaf_hash(leaf.encode()))
    assert tree.root().hex() == verdict.root


def test_an_empty_record_verifies(tmp_path: Path) -> None:
    assert verify(tmp_path / "new.db").ok


def test_any_flipped_byte_of_a_leaf_is_named_by_its_position(path: Path) -> None:
    draw = random.Random(1)
    with tampered(path) as connection:
        leaves = dict(connection.execute("SELECT position, CAST(leaf AS BLOB) FROM entry").fetchall())
        store = SQLiteStore(path)
        for at in range(60):
            position = draw.randrange(ENTRIES)
            leaf = bytearray(leaves[position])
            # Every eighth flip makes the leaf invalid as UTF-8.
            leaf[draw.randrange(len(leaf))] ^= 0x80 if at % 8 == 0 else 1 << draw.randrange(7)
            change = "UPDATE entry SET leaf = CAST(? AS TEXT) WHERE position = ?"
            connection.execute(change, (bytes(leaf), position))
            verdict = ledger.verify(store)
            assert (verdict.ok, verdict.first_bad) == (False, position), verdict.problem
            connection.execute(change, (leaves[position], position))
        assert ledger.verify(store).ok
        store.close()


@pytest.mark.parametrize("position", [0, 31, ENTRIES - 1])
def test_a_changed_hash_is_named_by_its_position(path: Path, position: int) -> None:
    with tampered(path) as connection:
        connection.execute("UPDATE entry SET hash = zeroblob(32) WHERE position = ?", (position,))
    verdict = verify(path)
    assert (verdict.ok, verdict.first_bad) == (False, position)


@pytest.mark.parametrize("position", [0, 31])
def test_a_deleted_entry_is_missed_where_it_stood(path: Path, position: int) -> None:
    with tampered(path) as connection:
        connection.execute("DELETE FROM entry WHERE position = ?", (position,))
    verdict = verify(path)
    assert (verdict.ok, verdict.first_bad) == (False, position)
    assert "missing" in verdict.problem


@pytest.mark.parametrize("cut", [1, 10, ENTRIES])
def test_a_tail_that_was_cut_off_is_missed(path: Path, cut: int) -> None:
    with tampered(path) as connection:
        connection.execute("DELETE FROM entry WHERE position >= ?", (ENTRIES - cut,))
    verdict = verify(path)
    assert (verdict.ok, verdict.first_bad, verdict.entries) == (False, None, ENTRIES - cut)
    assert f"{ENTRIES} entries long, but {ENTRIES - cut} are there" in verdict.problem


def test_an_entry_slipped_in_at_the_end_is_found(path: Path) -> None:
    with tampered(path) as connection:
        leaf = '{"kind":"note"}'
        connection.execute(
            "INSERT INTO entry (position, leaf, hash) VALUES (?, ?, ?)", (ENTRIES, leaf, leaf_hash(leaf.encode()))
        )
    assert "added to" in verify(path).problem


def test_two_entries_that_changed_places_are_found(path: Path) -> None:
    with tampered(path) as connection:
        for old, new in ((10, 1000), (14, 10), (1000, 14)):
            connection.execute("UPDATE entry SET position = ? WHERE position = ?", (new, old))
    verdict = verify(path)
    assert (verdict.ok, verdict.first_bad) == (False, 10)


@pytest.mark.parametrize(
    "leaf", ['{"kind":"step","run":"r1"}', "[]", "null", "{", '{"cost_pico":"x"}', '{"cost_pico":[]}', '{"run":5}']
)
def test_a_leaf_forged_with_its_hash_is_found(path: Path, leaf: str) -> None:
    """Somewhere before the end: in the run's chain, in the leaf itself, or at the latest in the root."""
    with tampered(path) as connection:
        connection.execute("UPDATE entry SET leaf = ?, hash = ? WHERE position = 31", (leaf, leaf_hash(leaf.encode())))
    verdict = verify(path)
    assert not verdict.ok
    assert verdict.problem


def test_a_forged_entry_without_a_run_is_found_in_the_root(path: Path) -> None:
    with tampered(path) as connection:
        leaf = '{"kind":"note","text":"forged"}'
        connection.execute(
            "UPDATE entry SET leaf = ?, hash = ? WHERE position = ?", (leaf, leaf_hash(leaf.encode()), ENTRIES - 1)
        )
    verdict = verify(path)
    assert (verdict.ok, verdict.first_bad) == (False, None)
    assert "root of the tree" in verdict.problem


@pytest.mark.parametrize(
    "change, words",
    [
        ("UPDATE run_total SET cost_pico = cost_pico - 1 WHERE run = 'r1'", "run r1: its totals"),
        ("UPDATE run_total SET calls = calls + 1 WHERE run = 'r2'", "run r2: its totals"),
        ("DELETE FROM run_total WHERE run = 'r0'", "run r0: its totals"),
        (
            "INSERT INTO run_total (day, run, agent, upstream, model, calls, reused, refused, failed, input_tokens,"
            " output_tokens, cost_pico, total_us) VALUES ('', 'r9', 'a', '', '', 1, 0, 0, 0, 0, 0, 1, 0)",
            "run r9: its totals",
        ),
        ("UPDATE day_total SET cost_pico = cost_pico + 1", "day 2023-11-14 t a batch: its totals"),
        ("UPDATE day_total SET calls = calls - 1", "day 2023-11-14 t a batch: its totals"),
        ("UPDATE day_total SET tenant = 'other'", "its totals"),
        ("DELETE FROM day_total", "day 2023-11-14 t a batch: its totals"),
        ("UPDATE charge_total SET cost_pico = cost_pico + 1", "day 2023-11-14: its charges"),
        ("DELETE FROM charge_total", "day 2023-11-14: its charges"),
        ("UPDATE chain SET seq = seq + 1 WHERE run = 'r1'", "chain heads"),
        ("UPDATE chain SET prev = '' WHERE run = 'r1'", "chain heads"),
        ("DELETE FROM chain WHERE run = 'r1'", "chain heads"),
        ("UPDATE tree SET root = zeroblob(32)", "root of the tree"),
        ("UPDATE tree SET size = size + 1", "was cut off or added to"),
        ("DELETE FROM tree", "was cut off or added to"),
    ],
)
def test_what_is_kept_beside_the_entries_must_agree_with_them(path: Path, change: str, words: str) -> None:
    with tampered(path) as connection:
        assert connection.execute(change).rowcount
    verdict = verify(path)
    assert not verdict.ok
    assert words in verdict.problem


def test_a_damaged_page_of_the_file_is_reported_and_not_raised(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    data = bytearray(path.read_bytes())
    at = data.rfind(b'"name":"n55')
    page = at // 4096 * 4096
    data[page : page + 64] = bytes(64)
    path.write_bytes(data)
    verdict = verify(path)
    assert not verdict.ok
    assert "cannot be read from position" in verdict.problem
    assert verdict.first_bad is not None


async def test_a_record_verifies_while_it_is_written(path: Path) -> None:
    store = SQLiteStore(path)

    async def write() -> AsyncIterator[int]:
        for number in range(ENTRIES, ENTRIES + 150):
            yield await store.write(lambda tx, n=number: append(tx, n))  # type: ignore[misc]

    async def write_all() -> None:
        async for _ in write():
            pass

    writing = asyncio.create_task(write_all())
    sizes = []
    while not writing.done():
        verdict = await asyncio.to_thread(ledger.verify, store)
        assert verdict.problem == ""
        sizes.append(verdict.entries)
    await writing
    assert sizes == sorted(sizes)
    assert ledger.verify(store).entries == ENTRIES + 150
    store.close()


async def test_one_run_can_be_checked_alone(path: Path) -> None:
    store = SQLiteStore(path)
    leaves = [row["leaf"].encode() for row in store.all("entries_of_run", run="r1", kind="step")]
    prev = ""
    for seq, leaf in enumerate(leaves):
        fields = orjson.loads(leaf)
        assert (fields["seq"], fields["prev"]) == (seq, prev)
        prev = leaf_hash(leaf).hex()
    head = store.one("chain", run="r1")
    assert head is not None
    assert (head["seq"], head["prev"]) == (len(leaves), prev)
    store.close()


async def test_an_entry_that_cannot_be_a_leaf_is_refused_and_leaves_no_gap(path: Path) -> None:
    store = SQLiteStore(path)
    waiting = [store.submit(lambda tx, n=n: append(tx, n)) for n in range(3)]  # type: ignore[misc]
    bad = store.submit(lambda tx: ledger.append(tx, {"kind": "step", "run": "r1", "share": 0.5}))
    last = store.submit(lambda tx: append(tx, 4))
    with pytest.raises(InvalidEntry, match="floats"):
        await bad
    assert [await each for each in waiting] == [ENTRIES, ENTRIES + 1, ENTRIES + 2]
    assert await last == ENTRIES + 3
    assert ledger.verify(store).ok
    store.close()


async def test_nothing_is_appended_to_a_ledger_whose_end_was_cut_off(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("DELETE FROM entry WHERE position = ?", (ENTRIES - 1,))
    store = SQLiteStore(path)
    with pytest.raises(LedgerBroken, match="nothing more is written") as broken:
        await store.write(lambda tx: append(tx, ENTRIES))
    assert broken.value.first_bad == ENTRIES - 1
    store.close()
