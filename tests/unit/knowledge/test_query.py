"""Rows of a database become sources; whoever asks can only read, and is told plainly what is wrong."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from twolane.errors import ConfigError, UsageError
from twolane.knowledge.ingest import Source, read_sources
from twolane.knowledge.query import Query


@pytest.fixture
def database(tmp_path: Path) -> Path:
    path = tmp_path / "register of contracts?.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript("""
            CREATE TABLE contract (number INTEGER, text TEXT, price REAL, scan BLOB, note TEXT);
            INSERT INTO contract VALUES (1, 'The price is 5 EUR.', 5.5, NULL, 'ó'), (2, NULL, NULL, x'00ff', '');
        """)
    return path


def sources(sql: str, database: Path | str) -> list[Source]:
    return read_sources([Query(sql, database if isinstance(database, str) else f"sqlite:{database}")])


def refusal(sql: str, database: Path | str) -> str:
    with pytest.raises(UsageError) as caught:
        sources(sql, database)
    return str(caught.value)


def test_rows_are_read_by_their_columns_names_and_in_order(database: Path) -> None:
    found = sources("SELECT number AS id, price, note FROM contract ORDER BY number DESC", database)
    assert [source.id for source in found] == ["2", "1"]
    assert [source.row for source in found] == [
        {"id": 2, "price": None, "note": ""},
        {"id": 1, "price": 5.5, "note": "ó"},
    ]


def test_a_column_called_text_makes_a_row_a_document(database: Path) -> None:
    one, two = sources("SELECT number AS id, text FROM contract ORDER BY id", database)
    assert one.document is not None
    assert (one.document.text, one.document.source) == ("The price is 5 EUR.", f"sqlite:{database}:1")
    assert two.document is None


def test_the_address_may_be_a_reference(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REGISTER", f"sqlite:{database}")
    (one,) = sources("SELECT 'a' AS id, 'text' AS text", "env:REGISTER")
    assert one.document is not None
    assert one.document.source == "env:REGISTER:1"
    with pytest.raises(ConfigError, match="the environment variable NO_REGISTER is not set"):
        sources("SELECT 1 AS id", "env:NO_REGISTER")


@pytest.mark.parametrize(
    ("sql", "words"),
    [
        ("SELECT number FROM contract", "no column is called id; it gives number. Every row needs an id"),
        ("SELECT 1 AS id, 2 AS a, 3 AS a", "two columns are called 'a'"),
        ("SELECT 1 AS id FROM contract", "the id '1' stands twice"),
        ("SELECT NULL AS id", "row 1: it has no id"),
        ("SELECT number AS id, scan FROM contract WHERE number = 2", "row 1, scan: bytes values cannot be read"),
        ("SELECT 1 AS id, 9e999 AS much", "row 1, much: float values cannot be read"),
        ("SELECT number AS id FROM contract WHERE number > 7", "there is nothing to read in the query in sqlite:"),
        ("SELECT FROM contract", "near \"FROM\": syntax error"),
        ("SELECT id FROM nowhere", "no such table: nowhere"),
        ("", "no column is called id; it gives none"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_query_is_said_before_anything_starts(database: Path, sql: str, words: str) -> None:
    assert words in refusal(sql, database)


@pytest.mark.parametrize(
    "sql",
    [
        "DELETE FROM contract",
        "UPDATE contract SET number = 7 RETURNING number AS id",
        "INSERT INTO contract (number) VALUES (3)",
        "DROP TABLE contract",
        "ATTACH '{folder}/other.db' AS other",
        "PRAGMA journal_mode = DELETE",
        "PRAGMA writable_schema = 1",
        "VACUUM INTO '{folder}/copy.db'",
        "SELECT 1 AS id; DELETE FROM contract",
        "SELECT load_extension('x') AS id",
        "BEGIN IMMEDIATE",
    ],
)
def test_a_query_can_only_read(database: Path, sql: str) -> None:
    before, files = database.read_bytes(), sorted(database.parent.iterdir())
    assert refusal(sql.format(folder=database.parent), database)
    assert (database.read_bytes(), sorted(database.parent.iterdir())) == (before, files)


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("sqlite:gone.db", "there is no file gone.db"),
        ("mysql://host/name", "neither sqlite:PATH nor postgresql://HOST/NAME"),
        ("postgresql://me:secret@host/name", "holds a password"),
        ("postgresql://host/name?password=secret", "holds a password"),
        ("postgresql://127.0.0.1:1/name", "connection"),
    ],
)
def test_an_address_that_is_wrong_is_said_and_no_secret_with_it(address: str, words: str) -> None:
    pytest.importorskip("psycopg")
    told = refusal("SELECT 1 AS id", address)
    assert words in told
    assert "secret" not in told


POSTGRESQL = os.environ.get("TWOLANE_TEST_POSTGRESQL", "")


@pytest.mark.skipif(not POSTGRESQL, reason="needs TWOLANE_TEST_POSTGRESQL, the address of a database it may read")
@pytest.mark.parametrize(
    ("sql", "found"),
    [
        ("SELECT 1 AS id, 2.50::numeric AS n, DATE '2026-01-02' AS d, true AS t, '{\"a\": [1]}'::jsonb AS j",
         {"id": 1, "n": "2.50", "d": "2026-01-02", "t": True, "j": {"a": [1]}}),
        ("SELECT '5a1e5c0e-0000-4000-8000-000000000000'::uuid AS id, ARRAY['%', '%s'] AS a",
         {"id": "5a1e5c0e-0000-4000-8000-000000000000", "a": ["%", "%s"]}),
        ("CREATE TABLE planted (id int)", "read-only transaction. Only one SELECT is allowed"),
        ("SELECT 1 AS id; COMMIT; CREATE TABLE planted (id int)", "multiple commands"),
        ("SET default_transaction_read_only = off", "no column is called id; it gives none"),
        ("SELECT 'x'::bytea AS id", "bytes values cannot be read"),
    ],
)  # fmt: skip
def test_postgresql_is_read_the_same_way(monkeypatch: pytest.MonkeyPatch, sql: str, found: Any) -> None:
    monkeypatch.setenv("REGISTER", POSTGRESQL)
    if isinstance(found, str):
        assert found in refusal(sql, "env:REGISTER")
    else:
        (one,) = sources(sql, "env:REGISTER")
        assert one.row == found
