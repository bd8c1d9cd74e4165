"""The schemas that accepted outputs were judged by, as one process knows them: which of them a stricter one came from.

Only where there is such a schema can an earlier output still fit a question that has no memo of its own. Looking
through an item's earlier outputs for it at every step took a quarter of a step's time, and nearly always in vain.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import orjson

from twolane.rules.fingerprint import is_tightened
from twolane.store import Store


class Schemas:
    """The reply schemas of one store, for the tasks of one event loop."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._kept: dict[str, Mapping[str, object]] = {}
        self._wider: dict[str, frozenset[str]] = {}
        """By the digest of a schema: see `wider_than`."""
        self._is_fresh = False

    def wider_than(self, digest: str, schema: Mapping[str, object]) -> frozenset[str]:
        """The digests of those stored schemas that this one (whose own is `digest`) only narrows. It sees every schema
        whose write returned before this turn of the loop."""
        if not self._is_fresh:
            self._refresh()
        found = self._wider.get(digest)
        if found is None:
            others = ((other, kept) for other, kept in self._kept.items() if other != digest)
            found = self._wider[digest] = frozenset(other for other, kept in others if is_tightened(kept, schema))
        return found

    def _refresh(self) -> None:
        """Once in a turn: schemas are added and never changed, so their number tells whether any is new."""
        row = self._store.one("reply_schema_count")
        if row is None or row["count"] != len(self._kept):
            self._kept = {each["digest"]: orjson.loads(each["schema"]) for each in self._store.all("reply_schemas")}
            self._wider.clear()
        self._is_fresh = True
        asyncio.get_running_loop().call_soon(self._forget)

    def _forget(self) -> None:
        self._is_fresh = False
