"""Places for stores: a file in a test's own folder, or a fresh database of the PostgreSQL server that runs here."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, LiteralString

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

ADAPTERS = ("sqlite", "postgres")
SERVER = os.environ.get("TWOLANE_TEST_POSTGRES", "postgresql://postgres@127.0.0.1:5432/postgres")


@cache
def missing() -> str:
    """Why there is no PostgreSQL to test with; empty where there is one."""
    try:
        psycopg.connect(SERVER, connect_timeout=2).close()
    except psycopg.OperationalError as error:
        return f"no PostgreSQL answers ({' '.join(str(error).split())}); TWOLANE_TEST_POSTGRES names another address"
    return ""


@contextmanager
def fresh_database(options: LiteralString = "") -> Iterator[str]:
    """The address of an empty database, which is gone afterwards. `options` are of CREATE DATABASE."""
    if missing():
        pytest.skip(missing())
    name = f"twolane_test_{secrets.token_hex(6)}"
    with psycopg.connect(SERVER, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {} " + options).format(sql.Identifier(name)))
        given = conninfo_to_dict(SERVER)
        user, port = given.get("user") or "postgres", given.get("port") or 5432
        password = f":{given['password']}" if given.get("password") else ""
        try:
            yield f"postgresql://{user}{password}@{given.get('host') or '127.0.0.1'}:{port}/{name}"
        finally:
            connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


def empty(address: str) -> None:
    """As if nothing had been there. What DBOS took two seconds to make stays, without its rows."""
    with psycopg.connect(address, autocommit=True) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        connection.execute("DROP SCHEMA IF EXISTS twolane CASCADE")
        tables = connection.execute(
            "SELECT tablename FROM pg_tables WHERE schemaname = 'twolane_queue' AND tablename <> 'dbos_migrations'"
        ).fetchall()
        if tables:
            names = sql.SQL(", ").join(sql.Identifier("twolane_queue", name) for (name,) in tables)
            connection.execute(sql.SQL("TRUNCATE {}").format(names))


KEPT_AT, KEYS_AT = "TWOLANE_TEST_STORE", "TWOLANE_TEST_KEYS"
"""Set while a test runs on another store than a file in its folder; its child processes see it too."""


def kept_in(folder: Path) -> dict[str, Any]:  # Any: fields of a Config
    """Where a test's configuration keeps its store, and the keys to it."""
    address = os.environ.get(KEPT_AT)
    if address is None:
        return {"store": f"sqlite:{folder / 'store.db'}"}
    return {"store": address, "keys": {"folder": os.environ[KEYS_AT]}}
