"""PostgreSQL: the same port, over a network, for several machines.

One connection writes, each thread that reads has one of its own. A group of works begins by taking one advisory lock,
so writers follow each other as they do on SQLite: whatever a work reads stands until it is committed. Everything lies
in the schema `twolane` of the database. A connection that breaks is made anew by whoever needs it next.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import psycopg
from psycopg import sql
from psycopg.adapt import Loader
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import dict_row
from psycopg.types.numeric import Int8Dumper

from twolane.errors import StoreError
from twolane.store import FRESH_S, Row, Transaction, Value
from twolane.store.groups import POLICY, Writer
from twolane.store.sql import SCHEMA_VERSION, postgres_queries, postgres_script
from twolane.telemetry import Histogram

T = TypeVar("T")
_Connection = psycopg.Connection[dict[str, Any]]  # Any: columns have the types the schema gives them

PATIENCE_S = 30.0
"""How long another process may hold the lock before a write fails; and how long the outcome of a commit is asked for
that broke off."""
FROZEN_S = 5
"""After so long without a word inside a transaction, the server ends a session: a frozen process keeps no lock. In
mid-pipeline, as `executemany` is, the server does not look at its clock, and whoever waits for the lock ends it."""
WAIT_S = 1.0
"""How long the lock is waited for before a look at who holds it."""
CONNECT_S = 2
GONE_S = 0.25
"""After a failed attempt to connect the next is made so much later, by whoever asks then; later still where the attempt
itself took longer, so that a server that swallows packets takes half of a process's time at most."""
_CLASS = 0x7477
"""The advisory lock's first half; the second is the schema's own id."""
_END_THE_FROZEN = """
SELECT pg_terminate_backend(pid) FROM pg_locks JOIN pg_stat_activity USING (pid)
WHERE locktype = 'advisory' AND granted AND classid = %s AND objid = %s
    AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
    AND wait_event = 'ClientRead' AND state_change < clock_timestamp() - make_interval(secs => %s)
"""
"""It holds the lock and has said nothing for so long."""
_DEFAULTS: dict[str, object] = {
    "connect_timeout": CONNECT_S, "application_name": "twolane",
    "keepalives_idle": 5, "keepalives_interval": 2, "keepalives_count": 3, "tcp_user_timeout": 5_000,
}  # fmt: skip


class PostgresStore:
    """See `twolane.store.Store` for the guarantees."""

    def __init__(self, url: str) -> None:
        """Open the store in the database behind `url`, make it on first use, and bring its schema up to date.

        Raises:
            StoreError: the server does not answer or refuses; the store was written by a newer release; the database
                does not hold UTF-8.
        """
        self._server = _Server(url)
        self._queries = postgres_queries()
        self._readers = threading.local()
        self._all_readers: list[_Connection] = []
        with self._server.explained("opened"), self._server.connect() as connection:
            self._schema = _migrate(connection, self._server.name)
        self._session = _Session(self._server, self._queries, self._schema)
        self._snapshot, self._version = "", 0
        self._epoch, self._looked = -1, float("-inf")
        self._beating: _Connection | None = None
        self._writer = Writer(self._session, where=self._server.name, rest_s=0.0)

    # ── reading ──

    def one(self, query: str, **values: Value) -> Row | None:
        rows = self._read(self._queries[query], values)
        return rows[0] if rows else None

    def all(self, query: str, **values: Value) -> Sequence[Row]:
        return self._read(self._queries[query], values)

    def _read(self, text: str, values: Mapping[str, Value]) -> Sequence[Row]:
        """Once more on a new connection, where the old one broke; not inside a snapshot, whose moment is gone."""
        with self._server.explained("read"):
            reader = self._reader()
            try:
                return _fetch(reader, text, values)
            except psycopg.OperationalError:
                if not reader.closed or getattr(self._readers, "is_snapshot", False):
                    raise
            return _fetch(self._reader(), text, values)

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        with self._server.explained("read"):
            reader = self._reader()
            reader.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
        self._readers.is_snapshot = True
        try:
            yield
        finally:
            self._readers.is_snapshot = False
            with suppress(psycopg.Error):
                reader.execute("ROLLBACK")

    def version(self) -> int:
        self._look()
        return self._version

    def epoch(self) -> int:
        if time.monotonic() - self._looked > FRESH_S:
            self._look()
        return max(self._epoch, self._session.epoch)

    def _look(self) -> None:
        """One question for both: which transactions are visible, and how often the policy has changed."""
        now = time.monotonic()
        row = self._read("SELECT pg_current_snapshot()::text AS seen, n FROM epoch WHERE id = 1", {})[0]
        if row["seen"] != self._snapshot:
            self._snapshot, self._version = row["seen"], self._version + 1
        self._epoch, self._looked = row["n"], now

    def _reader(self) -> _Connection:
        connection: _Connection | None = getattr(self._readers, "connection", None)
        if connection is None or connection.closed:
            if connection is not None:
                self._all_readers.remove(connection)
                self._readers.connection = None
            connection = self._server.connect()
            connection.execute("SET default_transaction_read_only = on")
            self._readers.connection = connection
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
        with self._server.explained("written"):
            if self._beating is None or self._beating.closed:
                self._beating = self._server.connect()
                # Lost in a power cut it means nothing. It waits for nobody but a burial.
                self._beating.execute("SET synchronous_commit = off")
                self._beating.execute(sql.SQL("SET lock_timeout = {}").format(int(patience_s * 1000)))
            self._beating.execute(self._queries["beat"], {"name": name})
            rows = _fetch(self._beating, self._queries["processes"], {})
        return {row["name"]: row["beat"] for row in rows}

    def close(self) -> None:
        self._writer.close()
        for connection in (*self._all_readers, self._beating):
            if connection is not None:
                connection.close()
        self._all_readers.clear()


class _Server:
    """Where the database is, and what is said when it is not there."""

    def __init__(self, url: str) -> None:
        try:
            given = conninfo_to_dict(url)
        except psycopg.ProgrammingError:
            raise StoreError('the store\'s address is none: write "postgresql://USER@HOST/DATABASE"') from None
        self._parameters: dict[str, Any] = {**_DEFAULTS, **given}
        self._secret = str(given.get("password") or "")
        self.name = f"postgresql://{given.get('host') or 'local'}/{given.get('dbname') or ''}"
        """For messages: no user, no password."""
        self._not_before = float("-inf")

    def connect(self) -> _Connection:
        """A new connection, in autocommit."""
        began = time.monotonic()
        if began < self._not_before:
            raise psycopg.OperationalError("the server did not answer a moment ago")
        try:
            connection = psycopg.connect(**self._parameters, autocommit=True, row_factory=dict_row)
        except psycopg.OperationalError:
            now = time.monotonic()
            self._not_before = now + max(GONE_S, now - began)
            raise
        connection.prepare_threshold = 2
        connection.adapters.register_dumper(int, Int8Dumper)  # one type, so that a statement is prepared once
        connection.adapters.register_loader("numeric", _Whole)
        connection.execute(
            "SET search_path = twolane; SET jit = off; SELECT set_config('synchronous_commit', 'on', false)"
            " WHERE current_setting('synchronous_commit') IN ('off', 'local')",
            prepare=False,
        )
        return connection

    @contextmanager
    def explained(self, verb: str) -> Iterator[None]:
        """The driver's errors become ours."""
        try:
            yield
        except psycopg.Error as error:
            raise self.explain(verb, error) from None

    def explain(self, verb: str, error: psycopg.Error) -> StoreError:
        """What happened, why, what next. Of the server's words the first line only: its details quote what was to be
        kept."""
        why = " ".join((error.diag.message_primary or str(error)).split()) or type(error).__name__
        if self._secret:
            why = why.replace(self._secret, "…")
        kept = " Nothing of this was kept." if verb == "written" else ""
        is_gone = isinstance(error, psycopg.OperationalError)
        todo = " See that the server runs and can be reached, and try again" if is_gone else ""
        return StoreError(f"the store {self.name} could not be {verb}: {why}.{kept}{todo}")


class _Session:
    """The writer's connection; see `groups.Session`."""

    def __init__(self, server: _Server, queries: Mapping[str, str], schema: int) -> None:
        self._server, self._queries, self._schema = server, queries, schema
        self._connection: _Connection | None = None
        self._begin = self._xid = ""
        self._changes_policy = False
        self.fence = ""
        self.epoch = -1
        """As this process's own last change of the policy made it."""

    def begin(self) -> bool:
        self._changes_policy = False
        with self._server.explained("written"):
            try:
                return self._wait(self._open())
            except psycopg.OperationalError:
                if self._connection is not None and not self._connection.closed:
                    self.rollback()
                    raise
            return self._wait(self._open())  # it broke while nothing was under way

    def _wait(self, connection: _Connection) -> bool:
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                return self._start(connection)
            except psycopg.errors.LockNotAvailable:
                if time.monotonic() > deadline:
                    raise
                connection.execute("ROLLBACK", prepare=False)
                connection.execute(_END_THE_FROZEN, (_CLASS, self._schema, FROZEN_S))

    def _start(self, connection: _Connection) -> bool:
        """All in one message: the lock, and only then the look at what is there."""
        asked = sql.SQL(
            "BEGIN; SELECT pg_advisory_xact_lock({}::int, {}::int); "
            "SELECT set_config('lock_timeout', '{}', true), "
            "pg_current_xact_id()::text AS xid, {} = '' OR EXISTS (SELECT FROM process WHERE name = {}) AS alive"
        ).format(_CLASS, self._schema, sql.SQL(str(int(PATIENCE_S * 1000))), self.fence, self.fence)
        cursor = connection.execute(asked, prepare=False)
        while cursor.nextset():
            pass
        row = cursor.fetchone()
        assert row is not None
        self._xid = row["xid"]
        return bool(row["alive"])

    def _open(self) -> _Connection:
        if self._connection is None or self._connection.closed:
            self._connection = self._server.connect()
            self._connection.execute(
                sql.SQL("SET lock_timeout = {}; SET idle_in_transaction_session_timeout = {}").format(
                    int(WAIT_S * 1000), FROZEN_S * 1000
                ),
                prepare=False,
            )
        return self._connection

    def ask(self, query: str, values: Mapping[str, Value]) -> Sequence[Row]:
        assert self._connection is not None
        with self._server.explained("written"):
            return _fetch(self._connection, self._queries[query], values)

    def change(self, query: str, values: Mapping[str, Value]) -> int:
        assert self._connection is not None
        self._changes_policy = self._changes_policy or query in POLICY
        with self._server.explained("written"):
            cursor = self._connection.execute(self._queries[query], _clean(values))
            if cursor.description is not None:
                row = cursor.fetchone()
                assert row is not None
                return int(next(iter(row.values())))
            return cursor.rowcount

    def change_many(self, query: str, rows: Sequence[Mapping[str, Value]]) -> int:
        assert self._connection is not None
        self._changes_policy = self._changes_policy or query in POLICY
        with self._server.explained("written"), self._connection.cursor() as cursor:
            cursor.executemany(self._queries[query], [_clean(row) for row in rows])
            return cursor.rowcount

    def commit(self) -> None:
        assert self._connection is not None
        epoch = self.ask("epoch", {})[0]["n"] if self._changes_policy else self.epoch
        with self._server.explained("written"):
            try:
                status = self._connection.execute("COMMIT", prepare=False).statusmessage
            except psycopg.OperationalError:
                if not self._was_committed():
                    raise
                status = "COMMIT"
        if status != "COMMIT":  # a statement failed, and the work went on as if it had not
            raise StoreError(
                f"the store {self._server.name} could not be written: a statement failed before the commit"
            )
        self.epoch = epoch

    def _was_committed(self) -> bool:
        """The connection broke while the commit was under way: the server knows how it ended."""
        if self._connection is not None:
            self._connection.close()
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                with self._server.connect() as connection:
                    row = connection.execute("SELECT pg_xact_status(%s::xid8) AS status", (self._xid,)).fetchone()
                if row is not None and row["status"] != "in progress":
                    return bool(row["status"] == "committed")
            except psycopg.OperationalError:
                pass
            if time.monotonic() > deadline:
                raise StoreError(
                    f"the store {self._server.name} went away during a commit and has not come back for "
                    f"{PATIENCE_S:.0f} s: whether this was kept is not known. It was kept whole or not at all"
                )
            time.sleep(GONE_S)

    def rollback(self) -> bool:
        connection = self._connection
        if connection is None or connection.closed:
            return False
        try:
            connection.execute("ROLLBACK", prepare=False)
        except psycopg.Error:
            connection.close()
            return False
        return True

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()


class _Whole(Loader):
    """`sum` of whole numbers is `numeric` in PostgreSQL; nothing here has a fraction."""

    def load(self, data: bytes | bytearray | memoryview) -> int:
        return int(bytes(data))


def _fetch(connection: _Connection, text: str, values: Mapping[str, Value]) -> list[dict[str, Any]]:  # Any: see above
    return connection.execute(text, _clean(values)).fetchall()


def _clean(values: Mapping[str, Value]) -> Mapping[str, Value]:
    """PostgreSQL's text holds no NUL, which an upstream's words may."""
    if any(type(value) is str and "\x00" in value for value in values.values()):
        return {
            name: value.replace("\x00", "\ufffd") if type(value) is str else value for name, value in values.items()
        }
    return values


def _migrate(connection: _Connection, name: str) -> int:
    """Create the schema, or bring an older one up to date, in one transaction; the schema's id. Under a lock, so that
    two starts do not meet."""
    with connection.transaction():
        encoding = connection.info.parameter_status("server_encoding")
        if encoding != "UTF8":
            raise StoreError(f"the database {name} holds {encoding}; a store needs one with ENCODING 'UTF8'")
        connection.execute("SELECT pg_advisory_xact_lock(%s::int, 0)", (_CLASS,), prepare=False)
        if _schema(connection) is None:  # asked first: to make one takes a right that not everybody has
            connection.execute("CREATE SCHEMA twolane")
        version = _version(connection)
        if version > SCHEMA_VERSION:
            raise StoreError(
                f"the store {name} was written by a newer release (schema {version}, this one knows "
                f"{SCHEMA_VERSION}): upgrade twolane"
            )
        for later in range(version + 1, SCHEMA_VERSION + 1):
            connection.execute(postgres_script(later), prepare=False)
        if version < SCHEMA_VERSION:
            keep = "INSERT INTO meta VALUES ('schema', %s) ON CONFLICT (name) DO UPDATE SET value = excluded.value"
            connection.execute(keep, (str(SCHEMA_VERSION),))
        schema = _schema(connection)
        assert schema is not None
        return schema


def _schema(connection: _Connection) -> int | None:
    row = connection.execute("SELECT to_regnamespace('twolane')::oid::int AS id").fetchone()
    return None if row is None or row["id"] is None else int(row["id"])


def _version(connection: _Connection) -> int:
    there = connection.execute("SELECT to_regclass('twolane.meta') IS NOT NULL AS there").fetchone()
    if there is None or not there["there"]:
        return 0
    row = connection.execute("SELECT value FROM meta WHERE name = 'schema'").fetchone()
    return 0 if row is None else int(row["value"])
