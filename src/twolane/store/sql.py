"""The SQL that adapters share, and its translation into PostgreSQL's.

Schema and queries are written once, in the SQL that both databases read but for a few words; `to_postgres` exchanges
these. What it cannot translate has a block of the same name in `postgres.sql`. Rules for whoever adds SQL:

- `INTEGER` is a whole number of 64 bits, `BLOB` bytes, `REAL` a double. A table that numbers its own rows has
  `id INTEGER PRIMARY KEY`, and an INSERT that needs the number says `RETURNING id`.
- `json_extract(leaf, '$.name')` gives text on PostgreSQL: say `CAST(… AS INTEGER)` where a number is meant.
- In `ON CONFLICT … DO UPDATE` the row that is there is named by its table: `SET n = day_total.n + excluded.n`.
- Triggers are `AFTER … BEGIN one statement; END;`. Subqueries in FROM have a name. A comparison is not a number.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib import resources

_WORDS = (
    (r"\bBLOB\b", "BYTEA"),
    (r"\bREAL\b", "DOUBLE PRECISION"),
    (r"\bid(\s+)INTEGER PRIMARY KEY(?! CHECK)", r"id\1BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY"),
    (r"\bINTEGER\b", "BIGINT"),
    (r"\)\s*WITHOUT ROWID\b", ")"),
    (r"\bVIRTUAL\b", "STORED"),
    (r"SELECT value FROM json_each\((:\w+)\)", r"SELECT json_array_elements_text(CAST(\1 AS json))"),
    (r"(?<!:)\bwindow\b", '"window"'),  # a reserved word there
)
_TRIGGER = re.compile(r"CREATE TRIGGER (\w+) (AFTER \w+ ON \w+) BEGIN (.*?) END", re.DOTALL)
_BLOCK = re.compile(r"^-- (name|part): (\w+)\n(.*?)(?=^-- (?:name|part): |\Z)", re.DOTALL | re.MULTILINE)
_COMMENT = re.compile(r"--[^\n]*")
_OBJECT = re.compile(r"\s*CREATE (?:VIEW|TABLE|INDEX|UNIQUE INDEX) (\w+)")


def _read(name: str) -> str:
    return resources.files("twolane.store").joinpath(name).read_text(encoding="utf-8")


def _blocks(name: str) -> dict[str, str]:
    """The named blocks of a file; `{sums}` stands for the part of that name, which is further up."""
    found: dict[str, dict[str, str]] = {"name": {}, "part": {}}
    for kind, block, text in _BLOCK.findall(_read(name)):
        found[kind][block] = re.sub(r"{(\w+)}", lambda use: found["part"][use[1]], text.strip())
    return found["name"]


def named_queries() -> dict[str, str]:
    """Every question of `queries.sql` by its name."""
    return _blocks("queries.sql")


def postgres_queries() -> dict[str, str]:
    """The same for PostgreSQL, with placeholders as psycopg has them: `%(name)s`."""
    own = _blocks("postgres.sql")
    return {name: _placeholders(own.get(name) or to_postgres(sql)) for name, sql in named_queries().items()}


def _placeholders(sql: str) -> str:
    bare = _COMMENT.sub("", sql).replace("%", "%%").strip().removesuffix(";")
    return re.sub(r"(?<![:\w]):(\w+)", r"%(\1)s", bare)


def _versions() -> list[str]:
    names = [path.name for path in resources.files("twolane.store").iterdir()]
    return ["schema.sql", *(f"migration_{at}.sql" for at in range(2, 2 + sum(map(_is_migration, names))))]


def _is_migration(name: str) -> bool:
    return re.fullmatch(r"migration_\d+\.sql", name) is not None


SCHEMA_VERSION = len(_versions())
"""What this release makes of a store: `schema.sql` is version 1, `migration_N.sql` makes N of the one before."""


def script(version: int) -> str:
    """What makes this version of the one before it."""
    return _read(_versions()[version - 1])


def postgres_script(version: int) -> str:
    """The same for PostgreSQL."""
    own = _blocks("postgres.sql")
    first = [own["json_extract"]] if version == 1 else []
    return "\n".join([*first, *_statements(script(version), own)])


def _statements(text: str, own: dict[str, str]) -> Iterator[str]:
    """Statement by statement; an object that has a block in `postgres.sql` is made by that."""
    for statement in re.split(r";[ \t]*(?=\n|\Z)", _COMMENT.sub("", text)):
        made = _OBJECT.match(statement)
        if made is not None and made[1] in own:
            yield own[made[1]]
        elif statement.strip():
            yield to_postgres(statement.strip()) + ";"


def to_postgres(sql: str) -> str:
    """One statement in PostgreSQL's words."""
    sql = _COMMENT.sub("", sql)
    trigger = _TRIGGER.fullmatch(sql.strip())
    if trigger is not None:
        name, when, work = trigger.groups()
        body = f"BEGIN {to_postgres(work)} RETURN NULL; END"
        return (
            f"CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS $$ {body} $$;\n"
            f"CREATE TRIGGER {name} {when} FOR EACH ROW EXECUTE FUNCTION {name}()"
        )
    for word, theirs in _WORDS:
        sql = re.sub(word, theirs, sql)
    return sql
