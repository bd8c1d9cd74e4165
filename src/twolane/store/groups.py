"""The writer thread that every adapter shares: what is submitted while one commit is on its way to the disk goes into
the next, so the cost of a sync is shared by whatever the load brings."""

from __future__ import annotations

import asyncio
import copy
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

from twolane.errors import Fenced, StoreError
from twolane.store import Row, Transaction, Value
from twolane.telemetry import Histogram

T = TypeVar("T")

GROUP = 512
"""Most works in one transaction."""
POLICY = frozenset({"trip", "reset", "add_key", "revoke_key", "set_budget", "remove_budget"})
"""Writes after which the epoch is another one, for this process at once; triggers in the schema say so to others."""
_POLICY_QUESTIONS = frozenset({"switches", "budget"})
"""What only these writes can change: asked for every hold, and answered once in a group while none of them is in it."""


class Session(Protocol):
    """The writer's own connection. Every method raises StoreError, and is called by the writer's thread alone."""

    def begin(self) -> bool:
        """Begin a transaction in which no other process writes; False where this process was taken for dead. What is
        raised is nobody's fault: no work was begun."""
        ...

    def ask(self, query: str, values: Mapping[str, Value]) -> Sequence[Row]:
        """The rows of a named question."""
        ...

    def change(self, query: str, values: Mapping[str, Value]) -> int:
        """See `Transaction.run`."""
        ...

    def change_many(self, query: str, rows: Sequence[Mapping[str, Value]]) -> int:
        """See `Transaction.run_many`."""
        ...

    def commit(self) -> None:
        """What this returns from is on disk; after an error nothing is, now or later."""
        ...

    def rollback(self) -> bool:
        """End what `begin` began; False where the connection is gone, and with it the transaction."""
        ...

    def close(self) -> None:
        """Let go of the connection."""
        ...


class _Work:
    """A submitted work with the future that waits for it."""

    __slots__ = ("answer", "error", "future", "work")

    def __init__(self, work: Callable[[Transaction], Any], future: asyncio.Future[Any]) -> None:  # Any: each its own
        self.work, self.future = work, future
        self.answer: Any = None
        self.error: BaseException | None = None

    def deliver(self) -> None:
        """Wake the waiter."""
        if self.future.done():
            return
        if self.error is None:
            self.future.set_result(self.answer)
        else:
            self.future.set_exception(self.error)


class _Group:
    """One transaction, as its works see it."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.cache: dict[str, Any] = {}  # Any: each key has its own
        self.policy: dict[Any, Any] = {}
        self.changes_policy = False
        self._closing: list[Callable[[], object]] = []

    def run(self, query: str, **values: Value) -> int:
        if query in POLICY:
            self._change_policy()
        return self._session.change(query, values)

    def run_many(self, query: str, rows: Sequence[Mapping[str, Value]]) -> int:
        if query in POLICY:
            self._change_policy()
        return self._session.change_many(query, rows)

    def _change_policy(self) -> None:
        self.policy.clear()
        self.changes_policy = True

    def one(self, query: str, **values: Value) -> Row | None:
        rows = self.all(query, **values)
        return rows[0] if rows else None

    def all(self, query: str, **values: Value) -> Sequence[Row]:
        if query not in _POLICY_QUESTIONS:
            return self._session.ask(query, values)
        key = (query, values.get("scope"))
        rows: Sequence[Row] | None = self.policy.get(key)
        if rows is None:
            rows = self.policy[key] = self._session.ask(query, values)
        return rows

    def before_commit(self, work: Callable[[], object]) -> None:
        self._closing.append(work)

    def close(self) -> None:
        for work in self._closing:
            work()


class Writer:
    """The thread and its queue."""

    def __init__(self, session: Session, *, where: str, rest_s: float) -> None:
        """`where` names the store in messages. Between two groups the thread rests `rest_s`."""
        self._session, self._where, self._rest_s = session, where, rest_s
        self._queue: deque[_Work] = deque()
        self._wake = threading.Event()
        self.commits = Histogram()
        self._is_closing = False
        self._thread = threading.Thread(target=self._write_groups, name="twolane-writer", daemon=True)
        self._thread.start()

    def submit(self, work: Callable[[Transaction], T]) -> asyncio.Future[T]:
        """See `Store.submit`."""
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        if self._is_closing:
            future.set_exception(StoreError(f"the store {self._where} is closed"))
            return future
        self._queue.append(_Work(work, future))
        if not self._wake.is_set():  # it takes a lock, and one waking is enough for all that is in the queue by then
            self._wake.set()
        return future

    def close(self) -> None:
        """Write what was submitted, and end."""
        self._is_closing = True
        self._wake.set()
        self._thread.join()

    def _write_groups(self) -> None:
        rested = 0.0
        while True:
            self._wake.wait()
            self._wake.clear()
            while self._queue:
                time.sleep(max(0.0, rested - time.monotonic()))
                group = [self._queue.popleft() for _ in range(min(GROUP, len(self._queue)))]
                began = time.monotonic()
                self._commit(group)
                ended = time.monotonic()
                self.commits.add(int((ended - began) * 1_000_000))
                rested = ended + self._rest_s
                _deliver(group)
            if self._is_closing and not self._queue:
                self._session.close()
                return

    def _commit(self, group: list[_Work]) -> None:
        """One transaction for the group; if any work fails, each gets a transaction of its own."""
        try:
            if not self._session.begin():
                self._session.rollback()
                raise Fenced
        except StoreError as error:  # nobody's fault, and not to be waited for once for each of them
            _fail(group, error)
            return
        try:
            transaction = _Group(self._session)
            for work in group:
                work.answer = work.work(transaction)
            transaction.close()
            self._session.commit()
        except BaseException as error:  # noqa: BLE001 - every waiter must be told, whatever it was
            if not self._session.rollback() or len(group) == 1:
                _fail(group, self._fit(error))
                return
            for work in group:
                self._commit([work])

    def _fit(self, error: BaseException) -> BaseException:
        """A future does not take a StopIteration, and whoever waits would wait for ever."""
        is_unfit = isinstance(error, StopIteration)
        return RuntimeError(f"a work on the store {self._where} ended with StopIteration") if is_unfit else error


def _fail(group: Sequence[_Work], error: BaseException) -> None:
    """Each waiter gets an error of its own: raised in several tasks, one would collect the tracebacks of all."""
    for work in group:
        work.error = error if len(group) == 1 else copy.copy(error)


def _deliver(group: list[_Work]) -> None:
    """Wake the waiters, once per event loop."""
    by_loop: dict[asyncio.AbstractEventLoop, list[_Work]] = {}
    for work in group:
        by_loop.setdefault(work.future.get_loop(), []).append(work)
    for loop, works in by_loop.items():
        try:
            loop.call_soon_threadsafe(_wake_all, works)
        except RuntimeError:
            pass  # that loop is closed: nobody waits any more, and the work is on disk


def _wake_all(works: list[_Work]) -> None:
    for work in works:
        work.deliver()
