"""Rows of a database as inputs: one SELECT, asked once when a run starts, through a connection that can only read.

SQLite files and PostgreSQL. The run keeps what it needs of the rows, so the database may change or go away afterwards.
"""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import date, datetime, time
from decimal import Decimal
from pathlib import Path
from urllib.parse import parse_qs, quote, urlsplit
from uuid import UUID

from twolane.config import resolve_secret
from twolane.errors import UsageError

CONNECT_S = 10
_READING = (sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE)


@dataclass(frozen=True, slots=True)
class Query:
    """What to ask, and where: `sqlite:PATH`, `postgresql://…`, or a reference (`env:NAME`, `file:PATH`) to one of them,
    which an address with a password must be. Every row needs an `id`; a column `text` makes it a document."""

    sql: str
    database: str

    def __str__(self) -> str:
        return f"the query in {self.database}"


def read_rows(query: Query) -> Iterator[Mapping[str, object]]:
    """The rows in the query's order, by column name, as JSON values: decimals, dates and UUIDs as text.

    Raises:
        UsageError: the database is not there or not one of these, the query is not one SELECT or fails, no column or
            two of them are called the same, or a value is no JSON.
    """
    address = query.database
    if address.startswith(("env:", "file:")):
        address = resolve_secret(address)
    elif address.startswith(("postgresql:", "postgres:")) and _has_password(address):
        raise UsageError(
            "the database's address holds a password, which others can see in the list of processes",
            hint="Put it into the environment and say --database env:NAME",
        )
    if address.startswith("sqlite:"):
        names, rows = _from_sqlite(query, Path(address.removeprefix("sqlite:")).expanduser())
    elif address.startswith(("postgresql://", "postgres://")):
        names, rows = _from_postgresql(query, address)
    else:
        raise UsageError(
            f"{query}: it is neither sqlite:PATH nor postgresql://HOST/NAME", hint="A reference may hold either"
        )
    if twice := [name for name in names if names.count(name) > 1]:
        raise UsageError(f"{query}: two columns are called {twice[0]!r}", hint="Rename one with AS")
    if "id" not in names:
        raise UsageError(
            f"{query}: no column is called id; it gives {', '.join(names) or 'none'}",
            hint="Every row needs an id of its own: SELECT number AS id, …",
        )
    for number, row in enumerate(rows, 1):
        yield {name: _plain(value, f"{query}, row {number}, {name}") for name, value in zip(names, row, strict=True)}


def _has_password(address: str) -> bool:
    parts = urlsplit(address)
    return bool(parts.password) or "password" in parse_qs(parts.query)


def _from_sqlite(query: Query, path: Path) -> tuple[list[str], Sequence[Sequence[object]]]:
    if not path.is_file():
        raise UsageError(f"{query}: there is no file {path}")
    try:
        with closing(sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True, timeout=CONNECT_S)) as connection:
            connection.set_authorizer(lambda action, *_: sqlite3.SQLITE_OK if action in _READING else _DENIED)
            cursor = connection.execute(query.sql)
            return [column[0] for column in cursor.description or ()], cursor.fetchall()
    except (sqlite3.Error, sqlite3.Warning) as error:
        hint = "Only one SELECT is allowed" if "authorized" in str(error) or "one statement" in str(error) else ""
        raise UsageError(f"{query}: {error}", hint=hint) from None


_DENIED = sqlite3.SQLITE_DENY


def _from_postgresql(query: Query, address: str) -> tuple[list[str], Sequence[Sequence[object]]]:
    try:
        import psycopg
    except ImportError:
        raise UsageError(f"{query}: PostgreSQL needs psycopg", hint="pip install 'psycopg[binary]'") from None
    try:
        with psycopg.connect(address, connect_timeout=CONNECT_S, application_name="twolane") as connection:
            connection.read_only = True
            # Prepared: the protocol then takes one statement only, so that none can end the read-only transaction.
            cursor = connection.execute(query.sql.encode(), prepare=True)
            return [column.name for column in cursor.description or ()], cursor.fetchall() if cursor.description else []
    except (psycopg.Error, UnicodeError) as error:
        first = str(error).strip().partition("\n")[0]
        hint = "Only one SELECT is allowed" if "read-only" in first or "multiple commands" in first else ""
        raise UsageError(f"{query}: {first}", hint=hint) from None


def _plain(value: object, where: str) -> object:
    """The value as JSON has it."""
    match value:
        case None | str() | bool() | int():
            return value
        case float() if math.isfinite(value):
            return value
        case Decimal() | UUID():
            return str(value)
        case datetime() | date() | time():
            return value.isoformat()
        case list() | tuple():
            return [_plain(each, where) for each in value]
        case dict():
            return {str(key): _plain(each, where) for key, each in value.items()}
    raise UsageError(
        f"{where}: {type(value).__name__} values cannot be read", hint="Convert it in the query, with CAST"
    )
