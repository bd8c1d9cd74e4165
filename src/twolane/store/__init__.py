"""The port every database adapter implements, and what it must guarantee.

All that must be true together is one `work` function over one `Transaction`. A store runs it inside one transaction,
possibly grouped with others, and answers when that transaction is on disk. Work is a pure function of the database: it
may be run twice (when a neighbour in its group fails), so it touches nothing else.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol, TypeVar

from twolane.telemetry import Histogram

Value = int | str | bytes | float | None
Row = Mapping[str, Any]
"""A row by column name. Any: SQL columns have the types the schema gives them."""

T = TypeVar("T")

FRESH_S = 0.02
"""How old the knowledge of what other processes changed may be when something is decided on it."""

AWAY_S = 0.5
"""How long whoever polls a store that cannot be read waits before the next look."""


class Transaction(Protocol):
    """Named questions (`queries.sql`) inside one transaction. No other process writes while it is open: what a work
    reads stands until it is committed. What the database refuses is a StoreError."""

    cache: dict[str, Any]
    """Lives as long as this transaction; for state that many works of one group share. Any: each key has its own."""
    policy: dict[Any, Any]
    """The same for what follows from switches, keys and budgets: emptied when one of them changes."""
    changes_policy: bool
    """One of them has changed: the epoch that is read here may never be committed, and be another one's later."""

    def run(self, query: str, **values: Value) -> int:
        """Write. Gives the number of rows touched, or what the query RETURNs: the new row's id."""
        ...

    def run_many(self, query: str, rows: Sequence[Mapping[str, Value]]) -> int:
        """Write the same for each of these rows, in their order, with one call. Gives the number of rows touched."""
        ...

    def one(self, query: str, **values: Value) -> Row | None:
        """The first row, None where there is none."""
        ...

    def all(self, query: str, **values: Value) -> Sequence[Row]:
        """Every row."""
        ...

    def before_commit(self, work: Callable[[], object]) -> None:
        """Run `work` once, after every work of the group and before the commit."""
        ...


def unwaited(work: asyncio.Future[Any]) -> None:  # Any: each work has its own answer
    """Done-callback of a work that nobody waits for, or not everybody: its error counts as seen, and Python does not
    warn of it. Whoever needs the answer awaits the future all the same."""
    if not work.cancelled():
        work.exception()


def gather(tx: Transaction, query: str, **values: Value) -> None:
    """Write a row before the commit, together with those that other works of the group gather for the same query. For
    rows that nobody reads inside the transaction: a call to the database for each of them was a third of a group's
    time."""
    gathered: dict[str, list[Mapping[str, Value]]] = tx.cache.setdefault("gathered", {})
    rows = gathered.get(query)
    if rows is None:
        kept: list[Mapping[str, Value]] = []
        rows = gathered[query] = kept
        tx.before_commit(lambda: tx.run_many(query, kept))
    rows.append(values)


class Store(Protocol):
    """One database. Writes are durable once they return; reads see every write that returned before. Every method
    raises StoreError where the database cannot be reached, read or written."""

    @property
    def commits(self) -> Histogram:
        """How long this process's group commits took."""
        ...

    def submit(self, work: Callable[[Transaction], T]) -> asyncio.Future[T]:
        """Hand `work` to the writer without waiting: one message, no await. The future ends after the commit, or with
        the error that `work` or the database raised; nothing of that work is then in the store. The work is done even
        if nobody waits for the future any more."""
        ...

    async def write(self, work: Callable[[Transaction], T]) -> T:
        """`submit`, and wait."""
        ...

    def one(self, query: str, **values: Value) -> Row | None:
        """Read one row, beside the writer."""
        ...

    def all(self, query: str, **values: Value) -> Sequence[Row]:
        """Read rows, beside the writer."""
        ...

    def snapshot(self) -> AbstractContextManager[None]:
        """While open, this thread's reads all see the same moment."""
        ...

    def version(self) -> int:
        """A number that changes whenever any process has committed. Made for polling: microseconds, or one round trip
        to a server."""
        ...

    def epoch(self) -> int:
        """A number that changes whenever a switch, a key or a budget has changed: by this process at once, by others
        within `FRESH_S`. Costs next to nothing: made for every request."""
        ...

    def fence(self, name: str) -> None:
        """From now on a group of works begins by looking whether the row of this process is still there; if not, every
        work fails with Fenced and nothing of it is kept."""
        ...

    def beat(self, name: str, *, patience_s: float) -> Mapping[str, int]:
        """Advance the beat of this process, beside the writer and without waiting for the disk; every process's beat by
        its name. Called by one thread, which waits for other writers up to `patience_s`."""
        ...

    def close(self) -> None:
        """Write what was submitted, then close."""
        ...
