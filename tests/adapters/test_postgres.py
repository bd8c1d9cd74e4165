"""What only a server can do to a store: go away and come back, at any moment."""

from __future__ import annotations

import asyncio
import concurrent.futures
import re
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, LiteralString

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict
from tests.stores import SERVER, fresh_database

from twolane.cli.checkup import check_up
from twolane.config import Config
from twolane.errors import ConfigError, StoreError
from twolane.kernel import Kernel, ledger
from twolane.platform import verify_store
from twolane.store import Transaction, postgres
from twolane.store.postgres import PostgresStore
from twolane.store.sql import SCHEMA_VERSION, named_queries, postgres_queries, script
from twolane.store.vault import Vault


@pytest.fixture
def url() -> Iterator[str]:
    with fresh_database() as address:
        yield address


@pytest.fixture
def store(url: str) -> Iterator[PostgresStore]:
    opened = PostgresStore(url)
    yield opened
    opened.close()


class Server:
    """The database as its operator sees it."""

    def __init__(self, url: str) -> None:
        self._name = str(conninfo_to_dict(url)["dbname"])

    def _run(self, text: str, *values: object) -> None:
        with psycopg.connect(SERVER, autocommit=True) as connection:
            connection.execute(sql.SQL(text).format(sql.Identifier(self._name)), values or None)

    def drop_connections(self) -> None:
        self._run("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", self._name)

    def go_away(self) -> None:
        self._run("ALTER DATABASE {} ALLOW_CONNECTIONS false")
        self.drop_connections()

    def come_back(self) -> None:
        self._run("ALTER DATABASE {} ALLOW_CONNECTIONS true")


@pytest.fixture
def server(url: str) -> Server:
    return Server(url)


def keep(tx: Transaction, name: str = "a") -> int:
    return tx.run("set_meta", name=name, value="x")


def kept(store: PostgresStore, name: str = "a") -> bool:
    return store.one("get_meta", name=name) is not None


# ── a server that goes away ──


async def test_while_the_server_is_away_works_fail_at_once_and_later_ones_succeed(
    store: PostgresStore, server: Server
) -> None:
    await store.write(keep)
    server.go_away()
    async with asyncio.timeout(10):
        answers = await asyncio.gather(
            *(store.write(lambda tx, n=at: keep(tx, f"away {n}")) for at in range(200)),  # type: ignore[misc]
            return_exceptions=True,
        )
    assert {type(answer) for answer in answers} == {StoreError}
    for words in ("could not be written", "Nothing of this was kept", "See that the server runs"):
        assert words in str(answers[0])
    with pytest.raises(StoreError, match="could not be read"):
        store.one("get_meta", name="a")
    with pytest.raises(StoreError):
        store.epoch()
    server.come_back()
    await asyncio.sleep(postgres.GONE_S)
    await store.write(lambda tx: keep(tx, "after"))
    assert (kept(store), kept(store, "away 0"), kept(store, "after")) == (True, False, True)
    assert store.epoch() >= 0


async def test_a_connection_that_broke_while_nothing_was_under_way_is_nobodys_business(
    store: PostgresStore, server: Server
) -> None:
    await store.write(keep)
    assert kept(store)
    server.drop_connections()
    assert kept(store)
    await store.write(lambda tx: keep(tx, "after"))
    assert kept(store, "after")


async def test_a_connection_that_breaks_in_mid_work_fails_its_group_and_keeps_nothing(
    store: PostgresStore, server: Server
) -> None:
    inside, go_on = threading.Event(), threading.Event()

    def hold(tx: Transaction) -> None:
        inside.set()
        assert go_on.wait(20)

    def broken(tx: Transaction) -> int:
        keep(tx, "half")
        server.drop_connections()
        return keep(tx, "other half")

    held = store.submit(hold)
    await asyncio.to_thread(inside.wait, 20)
    group: list[asyncio.Future[int]] = [
        store.submit(keep),
        store.submit(broken),
        store.submit(lambda tx: keep(tx, "b")),
    ]
    go_on.set()
    await held
    answers: list[object] = list(await asyncio.gather(*group, return_exceptions=True))
    assert [type(answer) for answer in answers] == [StoreError] * 3
    await store.write(lambda tx: keep(tx, "after"))
    assert [kept(store, name) for name in ("a", "half", "other half", "b", "after")] == [False] * 4 + [True]


class Fragile:
    """A connection that breaks at its commit: before the server has done it, or before we hear of it."""

    def __init__(self, connection: Any, *, is_done: bool) -> None:  # Any: psycopg's connection
        self._connection, self._is_done = connection, is_done

    def __getattr__(self, name: str) -> Any:  # Any: see above
        return getattr(self._connection, name)

    def execute(self, query: Any, *values: Any, **options: Any) -> Any:  # Any: see above
        if query != "COMMIT":
            return self._connection.execute(query, *values, **options)
        if self._is_done:
            self._connection.execute(query, **options)
        self._connection.close()
        raise psycopg.OperationalError("the connection is lost")


@pytest.mark.parametrize("is_done", [True, False])
async def test_a_commit_that_broke_off_is_what_the_server_says_it_was(store: PostgresStore, is_done: bool) -> None:
    await store.write(lambda tx: keep(tx, "before"))
    session = store._session
    session._connection = Fragile(session._connection, is_done=is_done)  # type: ignore[assignment]
    (answer,) = await asyncio.gather(store.submit(keep), return_exceptions=True)
    assert isinstance(answer, StoreError) is not is_done
    assert kept(store) is is_done
    await store.write(lambda tx: keep(tx, "after"))


async def test_a_lock_held_too_long_fails_a_whole_group_at_once(
    url: str, store: PostgresStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres, "PATIENCE_S", 0.3)
    with closing(PostgresStore(url)) as late, psycopg.connect(url) as other:
        other.execute("SELECT pg_advisory_xact_lock(%s::int, %s::int)", (postgres._CLASS, store._schema))
        async with asyncio.timeout(10):
            answers = await asyncio.gather(*(late.write(keep) for _ in range(50)), return_exceptions=True)
        assert {type(answer) for answer in answers} == {StoreError}
        other.rollback()
        await late.write(keep)


async def test_who_was_frozen_in_mid_pipeline_keeps_no_lock(
    url: str, store: PostgresStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres, "FROZEN_S", 0.5)
    await store.write(lambda tx: keep(tx, "before"))
    with psycopg.connect(url) as other:
        other.execute("SET idle_in_transaction_session_timeout = 100")  # which ends nobody in mid-pipeline
        other.execute("SELECT pg_advisory_xact_lock(%s::int, %s::int)", (postgres._CLASS, store._schema))
        other.pgconn.enter_pipeline_mode()
        other.pgconn.send_query_params(b"SELECT 1", None)
        other.pgconn.send_flush_request()
        other.pgconn.flush()
        began = time.monotonic()
        await store.write(keep)
        assert 0.4 < time.monotonic() - began < 10
        assert kept(store)
        other.close()


def test_what_cannot_be_opened_says_so_without_the_password() -> None:
    for address in ("postgresql://me:hush@127.0.0.1:1/db", "postgresql://me:hush@[::bad/db", "postgresql:hush"):
        with pytest.raises(StoreError) as refused:
            PostgresStore(address)
        assert "hush" not in str(refused.value)
        assert refused.value.__suppress_context__


# ── the schema ──


def test_eight_that_open_at_once_make_one_schema(url: str) -> None:
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        opened = list(pool.map(lambda _: PostgresStore(url), range(8)))
    for store in opened:
        store.close()


def test_the_schema_of_a_newer_release_is_refused(url: str) -> None:
    PostgresStore(url).close()
    with psycopg.connect(url) as connection:
        connection.execute("UPDATE twolane.meta SET value = %s WHERE name = 'schema'", (str(SCHEMA_VERSION + 1),))
    with pytest.raises(StoreError, match="newer release"):
        PostgresStore(url)


def test_a_database_that_does_not_hold_utf8_is_refused() -> None:
    options: LiteralString = "ENCODING 'SQL_ASCII' LOCALE 'C' TEMPLATE template0"
    with fresh_database(options) as url, pytest.raises(StoreError, match="ENCODING 'UTF8'"):
        PostgresStore(url)


def test_every_question_is_understood_by_both_databases(url: str) -> None:
    PostgresStore(url).close()
    with psycopg.connect(url, autocommit=True, options="-c search_path=twolane") as connection:
        for name, text in postgres_queries().items():
            connection.execute(f"PREPARE {name} AS {_numbered(text)}", prepare=False)
    with closing(sqlite3.connect(":memory:")) as database:
        for version in range(1, SCHEMA_VERSION + 1):
            database.executescript(script(version))
        for text in named_queries().values():
            values = dict.fromkeys(re.findall(r":(\w+)", re.sub(r"--.*", "", text)))
            database.execute(f"EXPLAIN {text}", values)


def _numbered(text: str) -> str:
    for number, name in enumerate(dict.fromkeys(re.findall(r"%\((\w+)\)s", text)), 1):
        text = text.replace(f"%({name})s", f"${number}")
    return text.replace("%%", "%")


def test_both_databases_have_the_same_tables_and_columns(url: str) -> None:
    PostgresStore(url).close()
    asked = "SELECT table_name, column_name FROM information_schema.columns WHERE table_schema = 'twolane'"
    with psycopg.connect(url) as connection:
        theirs = set(connection.execute(asked).fetchall())
    with closing(sqlite3.connect(":memory:")) as database:
        for version in range(1, SCHEMA_VERSION + 1):
            database.executescript(script(version))
        tables = database.execute("SELECT name FROM sqlite_master WHERE type IN ('table', 'view')").fetchall()
        ours = {
            (table, row[1])
            for (table,) in tables
            for row in database.execute(f"PRAGMA table_xinfo({table})")
            if not table.startswith("sqlite_")
        }
    assert theirs == ours


# ── the record ──


async def test_a_changed_byte_of_a_leaf_is_named_by_its_position(url: str, store: PostgresStore) -> None:
    for at in range(5):
        await store.write(lambda tx, n=at: ledger.append(tx, {"kind": "note", "run": "r", "n": n}))  # type: ignore[misc]
    assert ledger.verify(store).ok
    with psycopg.connect(url) as connection:
        connection.execute("UPDATE twolane.entry SET leaf = replace(leaf, '\"n\":3', '\"n\":4') WHERE position = 3")
    verdict = ledger.verify(store)
    assert (verdict.ok, verdict.first_bad) == (False, 3)
    assert "its leaf was changed" in verdict.problem


# ── a kernel on it ──


def config(url: str, folder: Path, **fields: Any) -> Config:  # Any: fields of a Config
    return Config.model_validate({"store": url, "keys": {"folder": str(folder / "keys")}, **fields})


async def test_keys_are_needed_by_a_place_of_their_own_and_must_be_this_stores(url: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"keys\.folder: the store is on PostgreSQL, so its keys need"):
        await Kernel.open(Config(store=url))
    await (await Kernel.open(config(url, tmp_path))).aclose()
    with pytest.raises(StoreError, match="Bring them back from the backup, or from another machine"):
        await Kernel.open(config(url, tmp_path / "other machine"))
    other = tmp_path / "another store"
    other.mkdir()
    Vault.open(other / "keys", is_new=True)
    with pytest.raises(StoreError, match="belong to another store"):
        await Kernel.open(config(url, other))
    await (await Kernel.open(config(url, tmp_path))).aclose()


async def test_a_store_may_be_named_by_reference_and_its_password_is_nowhere(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = url.replace("://postgres@", "://postgres:hush@")
    monkeypatch.setenv("OUR_STORE", secret)
    named = config("env:OUR_STORE", tmp_path)
    lines = [str(line) for line in await check_up(named)]
    assert any(line.startswith("ok       store") for line in lines)
    assert "hush" not in " ".join([*lines, named.store_name(), repr(named), str(named.model_dump())])
    assert verify_store(named).ok
    monkeypatch.setenv("OUR_STORE", secret.replace(":5432/", ":1/"))
    (problem,) = [str(line) for line in await check_up(named) if line.what == "store"]
    assert problem.startswith("problem")
    assert "could not be opened" in problem
    assert "hush" not in problem
    monkeypatch.setenv("OUR_STORE", "mysql://me:hush@host/db")
    with pytest.raises(ConfigError, match="what env:OUR_STORE holds is no address") as refused:
        named.store_address()
    assert "hush" not in str(refused.value)
