"""The invariant job: while a process takes part, the books of budgets are compared with what they are made of. The
ledger is the truth; books that drift from it are a fault of ours, and nobody should learn it from an invoice."""

from __future__ import annotations

import asyncio
import logging

from twolane.errors import StoreError
from twolane.kernel import ledger
from twolane.kernel.accounts import drift
from twolane.store import Store, unwaited

EVERY_S = 60.0
MOST = 200
"""Budgets without an end that are compared with the record each time; the next time it goes on where it stopped."""

_LOG = logging.getLogger("twolane.kernel")


class Auditor:
    """One process's."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._task: asyncio.Task[None] | None = None
        self._first = 0
        self._found: dict[int, list[str]] = {}
        """The problems of the last look at each part of the budgets, by the first of them."""

    @property
    def drifted(self) -> int | None:
        """How many problems the last look at each budget found; None before the first."""
        return len(set().union(*self._found.values())) if self._found else None

    def begin(self) -> None:
        """Look every minute, from a minute on."""
        self._task = asyncio.get_running_loop().create_task(self._keep_on())

    async def aclose(self) -> None:
        """Look no more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _keep_on(self) -> None:
        while True:
            await asyncio.sleep(EVERY_S)
            try:
                await self.look()
            except StoreError as error:
                _LOG.warning("the books could not be compared, trying again: %s", error)

    async def look(self) -> list[str]:
        """Compare, in a thread of its own and beside the writer. What is new is logged as an error, and appended as an
        entry of kind `alarm`."""
        first, problems = await asyncio.to_thread(self._compare)
        known = set().union(*self._found.values())
        self._found[first] = problems
        if new := [problem for problem in problems if problem not in known]:
            text = "; ".join(new)
            _LOG.error("the books of budgets disagree with the record: %s", text)
            entry = {"v": 1, "kind": "alarm", "what": "drift", "problem": text[:2000], "at_us": ledger.now_us()}
            self._store.submit(lambda tx: ledger.append(tx, entry)).add_done_callback(unwaited)
        return problems

    def _compare(self) -> tuple[int, list[str]]:
        count = sum(row["window"] == "total" for row in self._store.all("all_spending"))
        first = self._first if self._first < count else 0
        self._first = first + MOST
        return first, drift(self._store, first=first, most=MOST)
