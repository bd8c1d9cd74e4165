"""Rows that many tasks ask for in one turn of the loop are asked for together, and nobody notices."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from twolane.errors import StoreError
from twolane.kernel import ledger
from twolane.store import Row, Transaction
from twolane.store.lookups import Lookups
from twolane.store.sqlite import SQLiteStore


class Counting(SQLiteStore):
    """Remembers what it was asked."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.questions: list[str] = []
        self.broken = False

    def all(self, query: str, **values: Any) -> Sequence[Row]:  # Any: as the port says
        self.questions.append(query)
        if self.broken:
            raise StoreError("rehearsed")
        return super().all(query, **values)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Counting]:
    store = Counting(tmp_path / "store.db")

    def work(tx: Transaction) -> None:
        tx.run("add_subject", id="s", tenant="t", name="n", wrapped=b"w", created=ledger.now_us())
        for number in range(100):
            body = tx.run("add_body", subject="s", sealed=f"body {number}".encode())
            tx.run(
                "add_memo", fingerprint=f"f{number}", subject="s", body=body, step=f"step {number}",
                input_tokens=1, output_tokens=1, cost_pico=1, total_us=1, agent="a", parts="{}", loose="",
                answer="", made=1,
            )  # fmt: skip

    await store.write(work)
    yield store
    store.close()


async def test_what_is_asked_in_one_turn_is_one_question_and_everybody_gets_their_own_row(store: Counting) -> None:
    lookups = Lookups(store)
    keys = [*(f"f{number}" for number in range(100)), "nothing", "f7", "f7"]
    rows = await asyncio.gather(*(lookups.one("memos", key) for key in keys))
    assert [row and bytes(row["sealed"]) for row in rows[:100]] == [f"body {number}".encode() for number in range(100)]
    assert rows[100] is None
    assert [row and row["step"] for row in rows[101:]] == ["step 7", "step 7"]
    assert store.questions == ["memos"]


async def test_what_is_asked_later_sees_what_was_written_meanwhile(store: Counting) -> None:
    lookups = Lookups(store)
    assert await lookups.one("memos", "later") is None

    def work(tx: Transaction) -> None:
        body = tx.run("add_body", subject="s", sealed=b"late")
        tx.run(
            "add_memo", fingerprint="later", subject="s", body=body, step="x",
            input_tokens=1, output_tokens=1, cost_pico=1, total_us=1, agent="a", parts="{}", loose="",
            answer="", made=1,
        )  # fmt: skip

    await store.write(work)
    row = await lookups.one("memos", "later")
    assert row is not None
    assert row["step"] == "x"


async def test_who_leaves_takes_the_answer_from_nobody(store: Counting) -> None:
    lookups = Lookups(store)
    asking = [asyncio.create_task(lookups.one("memos", "f1")) for _ in range(3)]
    other = asyncio.create_task(lookups.one("memos", "f2"))
    await asyncio.sleep(0)
    asking[0].cancel()
    asking[2].cancel()
    answers = await asyncio.gather(*asking, other, return_exceptions=True)
    assert isinstance(answers[0], asyncio.CancelledError)
    assert isinstance(answers[2], asyncio.CancelledError)
    assert [row["step"] for row in (answers[1], answers[3]) if not isinstance(row, BaseException) and row] == [
        "step 1",
        "step 2",
    ]


async def test_a_failure_is_told_to_all_who_asked_and_to_nobody_after(store: Counting) -> None:
    lookups = Lookups(store)
    store.broken = True
    answers = await asyncio.gather(*(lookups.one("memos", f"f{n}") for n in range(3)), return_exceptions=True)
    assert [type(answer) for answer in answers] == [StoreError] * 3
    store.broken = False
    assert await lookups.one("memos", "f1") is not None
