"""SQLite: one file, WAL, full sync, one group-committing writer thread, readers beside it.

Between two groups the writer rests `REST_S`, and it retries `BEGIN IMMEDIATE` by itself: with SQLite's own busy handler
a second process waits up to 831 ms, with this 6 ms (p99, measured with two writers).
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from twolane.errors import StoreError
from twolane.store import FRESH_S, Row, Transaction, Value
from twolane.store.groups import POLICY, Writer
from twolane.store.sql import SCHEMA_VERSION, named_queries, script
from twolane.telemetry import Histogram

__all__ = ["SCHEMA_VERSION", "SQLiteStore"]

T = TypeVar("T")

REST_S = 0.002
RETRY_S = 0.0005
CHECKPOINT_PAGES = 4000
"""Length of the log (16 MB) at which its pages go into the file. Steps touch the same pages again and again, and those
are copied once: at SQLite's own 1,000 it was a tenth of a step's time. Whatever erases must empty the log too, which
holds until then what was there before."""
PATIENCE_S = 30.0
"""How long another process may hold the write lock before a write fails."""


class SQLiteStore:
    """See `twolane.store.Store` for the guarantees.

    BUG: if the disk lies about fsync, a power cut can lose what was acknowledged; nothing above the disk can see it.
    """

    def __init__(self, path: Path) -> None:
        """Open or create the file at `path`, and bring its schema up to date.

        Raises:
            StoreError: the folder is not there, the file is not a store, or it was written by a newer release.
        """
        self.path = path
        self._queries = named_queries()
        self._readers = threading.local()
        self._all_readers: list[sqlite3.Connection] = []
        try:
            _migrate(path)
            self._watcher = _connect(self.path)
            self._session = _Session(path, self._queries)
        except (sqlite3.Error, OSError) as error:
            raise StoreError(f"the store {path} cannot be opened: {error}") from None
        self._epoch, self._version, self._looked = -1, -1, float("-inf")
        self._seen_writes = 0
        self._writer = Writer(self._session, where=str(path), rest_s=REST_S)
        self._beating: sqlite3.Connection | None = None

    # ── reading ──

    def one(self, query: str, **values: Value) -> Row | None:
        try:
            row: Row | None = self._reader().execute(self._queries[query], values).fetchone()
        except sqlite3.Error as error:
            raise self._unread(error) from error
        return row

    def all(self, query: str, **values: Value) -> Sequence[Row]:
        try:
            return self._reader().execute(self._queries[query], values).fetchall()
        except sqlite3.Error as error:
            raise self._unread(error) from error

    def _unread(self, error: sqlite3.Error) -> StoreError:
        return StoreError(f"the store {self.path} could not be read: {error}")

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        reader = self._reader()
        reader.execute("BEGIN")
        try:
            yield
        finally:
            reader.execute("ROLLBACK")

    def version(self) -> int:
        try:
            return int(self._watcher.execute("PRAGMA data_version").fetchone()[0])
        except sqlite3.Error as error:
            raise self._unread(error) from error

    def epoch(self) -> int:
        now, writes = time.monotonic(), self._session.policy_writes
        if now - self._looked > FRESH_S or writes != self._seen_writes:
            version = self.version()
            self._looked, self._seen_writes = now, writes
            if version != self._version:
                row = self.one("epoch")
                assert row is not None
                self._version, self._epoch = version, row["n"]
        return self._epoch

    def _reader(self) -> sqlite3.Connection:
        connection: sqlite3.Connection | None = getattr(self._readers, "connection", None)
        if connection is None:
            connection = self._readers.connection = _connect(self.path)
            connection.execute("PRAGMA query_only = on")
            self._all_readers.append(connection)
        return connection

    # ── writing ──

    @property
    def commits(self) -> Histogram:
        return self._writer.commits

    def submit(self, work: Callable[[Transaction], T]) -> asyncio.Future[T]:
        return self._writer.submit(work)

    async def write(self, work: Callable[[Transaction], T]) -> T:
        return await self._writer.submit(work)

    def fence(self, name: str) -> None:
        self._session.fence = name

    def beat(self, name: str, *, patience_s: float) -> Mapping[str, int]:
        try:
            if self._beating is None:
                self._beating = _connect_to_write(self.path)
                # What a power cut takes of it means nothing: every process is dead then.
                self._beating.execute("PRAGMA synchronous = NORMAL")
            _begin(self._beating, patience_s)
            self._beating.execute(self._queries["beat"], {"name": name})
            rows = self._beating.execute(self._queries["processes"]).fetchall()
            self._beating.execute("COMMIT")
        except sqlite3.Error as error:
            if self._beating is not None and self._beating.in_transaction:
                self._beating.execute("ROLLBACK")
            raise self._session.unwritten(error) from error
        return {row["name"]: row["beat"] for row in rows}

    def close(self) -> None:
        self._writer.close()
        for connection in (*self._all_readers, self._watcher, self._beating):
            if connection is not None:
                connection.close()
        self._all_readers.clear()


class _Session:
    """The writer's connection; see `groups.Session`."""

    def __init__(self, path: Path, queries: Mapping[str, str]) -> None:
        self._path, self._queries, self._connection = path, queries, _connect_to_write(path)
        self.fence = ""
        self.policy_writes = 0
        """Transactions so far that changed the epoch."""
        self._changes_policy = False

    def begin(self) -> bool:
        self._changes_policy = False
        try:
            _begin(self._connection, PATIENCE_S)
        except sqlite3.Error as error:
            raise self.unwritten(error) from error
        return not self.fence or bool(self.ask("process", {"name": self.fence}))

    def ask(self, query: str, values: Mapping[str, Value]) -> Sequence[Row]:
        try:
            return self._connection.execute(self._queries[query], values).fetchall()
        except sqlite3.Error as error:
            raise self.unwritten(error) from error

    def change(self, query: str, values: Mapping[str, Value]) -> int:
        self._changes_policy = self._changes_policy or query in POLICY
        try:
            cursor = self._connection.execute(self._queries[query], values)
            if cursor.description is not None:
                return int(cursor.fetchall()[0][0])
        except sqlite3.Error as error:
            raise self.unwritten(error) from error
        return cursor.rowcount

    def change_many(self, query: str, rows: Sequence[Mapping[str, Value]]) -> int:
        self._changes_policy = self._changes_policy or query in POLICY
        try:
            return self._connection.executemany(self._queries[query], rows).rowcount
        except sqlite3.Error as error:
            raise self.unwritten(error) from error

    def commit(self) -> None:
        try:
            self._connection.execute("COMMIT")
        except sqlite3.Error as error:
            raise self.unwritten(error) from error
        self.policy_writes += self._changes_policy

    def rollback(self) -> bool:
        if self._connection.in_transaction:
            self._connection.execute("ROLLBACK")
        return True

    def close(self) -> None:
        self._connection.close()

    def unwritten(self, error: sqlite3.Error) -> StoreError:
        """What is told to whoever waits."""
        return StoreError(
            f"the store {self._path} could not be written: {error}. Nothing of this was kept; free the disk "
            "or the lock and resume"
        )


def _begin(connection: sqlite3.Connection, patience_s: float) -> None:
    deadline = time.monotonic() + patience_s
    while True:
        try:
            connection.execute("BEGIN IMMEDIATE")
            return
        except sqlite3.OperationalError as error:
            if ("locked" not in str(error) and "busy" not in str(error)) or time.monotonic() > deadline:
                raise
            time.sleep(RETRY_S)


def _connect(path: Path) -> sqlite3.Connection:
    # Made by now: one that is gone must not be put in its place again, empty.
    uri = f"{path.absolute().as_uri()}?mode=rw"
    # A process that comes or goes, or finds what a killed one left, holds the file alone for a moment: readers wait.
    connection = sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False, timeout=PATIENCE_S)
    connection.row_factory = sqlite3.Row
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA secure_delete = ON")
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute("PRAGMA cache_size = -4000")
    connection.execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}")
    return connection


def _connect_to_write(path: Path) -> sqlite3.Connection:
    """One whose transactions `_begin` begins, which waits by itself."""
    connection = _connect(path)
    connection.execute("PRAGMA busy_timeout = 0")
    return connection


def _migrate(path: Path) -> None:
    """Create the schema, or bring an older one up to date. Held under a file lock, so that two starts do not meet."""
    if not path.parent.is_dir():
        raise StoreError(f"the store's folder {path.parent} is not there; make it, or change store = … in the config")
    with open(f"{path}.lock", "a+b") as lock:
        os.chmod(lock.name, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX)
        connection = sqlite3.connect(path, isolation_level=None, timeout=PATIENCE_S)
        try:
            os.chmod(path, 0o600)
            version = int(connection.execute("PRAGMA user_version").fetchone()[0])
            if version > SCHEMA_VERSION:
                raise StoreError(
                    f"the store {path} was written by a newer release (schema {version}, this one knows "
                    f"{SCHEMA_VERSION}): upgrade twolane"
                )
            if connection.execute("PRAGMA journal_mode = WAL").fetchone()[0] != "wal":
                raise StoreError(f"the store {path} lies on a file system without shared memory, which WAL needs")
            for later in range(version + 1, SCHEMA_VERSION + 1):
                connection.executescript(f"BEGIN IMMEDIATE;\n{script(later)}\nPRAGMA user_version = {later};\nCOMMIT;")
        finally:
            connection.close()
