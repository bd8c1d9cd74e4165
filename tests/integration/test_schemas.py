"""Which stored schemas a schema only narrows is known without asking for it at every step."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson
import pytest

from twolane.kernel.schemas import Schemas
from twolane.store import Row
from twolane.store.sqlite import SQLiteStore


class Counting(SQLiteStore):
    """Remembers what it was asked."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.questions: list[str] = []

    def all(self, query: str, **values: Any) -> Sequence[Row]:  # Any: as the port says
        self.questions.append(query)
        return super().all(query, **values)

    def one(self, query: str, **values: Any) -> Row | None:  # Any: as the port says
        self.questions.append(query)
        return super().one(query, **values)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Counting]:
    store = Counting(tmp_path / "store.db")
    yield store
    store.close()


def text(longest: int) -> Mapping[str, object]:
    return {"type": "object", "properties": {"said": {"type": "string", "maxLength": longest}}}


async def keep(store: SQLiteStore, digest: str, schema: Mapping[str, object]) -> None:
    kept = orjson.dumps(schema).decode()
    await store.write(lambda tx: tx.run("add_reply_schema", digest=digest, schema=kept))


async def test_a_schema_is_known_as_soon_as_its_write_returned_whoever_kept_it(store: Counting) -> None:
    schemas = Schemas(store)
    assert schemas.wider_than("narrow", text(9)) == frozenset()
    await keep(store, "wide", text(99))
    assert schemas.wider_than("narrow", text(9)) == {"wide"}
    other = SQLiteStore(store.path)
    await keep(other, "wider", text(999))
    other.close()
    assert schemas.wider_than("narrow", text(9)) == {"wide", "wider"}


async def test_neither_a_schema_itself_nor_a_stricter_one_nor_another_is_wider(store: Counting) -> None:
    await keep(store, "same", text(9))
    await keep(store, "stricter", text(5))
    await keep(store, "another", {"type": "object", "properties": {"told": {"type": "string"}}})
    assert Schemas(store).wider_than("same", text(9)) == frozenset()


async def test_a_hundred_steps_of_one_turn_ask_once_and_nobody_reads_the_schemas_again(store: Counting) -> None:
    schemas = Schemas(store)
    await keep(store, "wide", text(99))
    for _ in range(3):
        assert [schemas.wider_than("narrow", text(9)) for _ in range(100)] == [{"wide"}] * 100
        await asyncio.sleep(0)
    assert store.questions == ["reply_schema_count", "reply_schemas", "reply_schema_count", "reply_schema_count"]
