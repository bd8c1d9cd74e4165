"""Rows that many tasks ask for in the same turn of the loop, one each: one question to the database for all of them.

After a group commit a hundred steps go on at once, and each looks for its memo. A question of its own for each took
more time than all else in its step, most of it in handing the interpreter's lock to the writer and back.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import orjson

from twolane.store import Row, Store


class Lookups:
    """Looks up rows by one key each, for the tasks of one event loop."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._asked: dict[str, list[tuple[str, asyncio.Future[Row | None]]]] = {}
        """By query, since its last answer: keys, each with the one who waits."""

    async def one(self, query: str, key: str) -> Row | None:
        """The row whose `key` is this one, None where there is none. `query` takes many keys (`:keys`, a JSON list) and
        gives each row its `key`. It sees every write that returned before it was asked.

        Raises:
            Whatever the database does, to all who asked in this turn.
        """
        loop = asyncio.get_running_loop()
        asked = self._asked.get(query)
        if asked is None:
            asked = self._asked[query] = []
            loop.call_soon(self._answer, query)
        waiter: asyncio.Future[Row | None] = loop.create_future()
        asked.append((key, waiter))
        return await waiter

    def _answer(self, query: str) -> None:
        asked = self._asked.pop(query)
        keys = orjson.dumps([key for key, _ in asked]).decode()
        try:
            rows: Mapping[str, Row] = {row["key"]: row for row in self._store.all(query, keys=keys)}
        except Exception as error:  # noqa: BLE001 - whoever asked is told, whatever it was
            for _, waiter in asked:
                if not waiter.done():
                    waiter.set_exception(error)
            return
        for key, waiter in asked:
            if not waiter.done():
                waiter.set_result(rows.get(key))
