"""Looking at a store without opening it: is its schema the one this release made, and is the file sound?"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from pathlib import Path

from twolane.store.sql import SCHEMA_VERSION, script


@dataclass(frozen=True, slots=True)
class Examined:
    """What a look at the file found. `problem` is empty for a sound one."""

    version: int
    """0 for a file that holds no store."""
    problem: str

    @property
    def is_older(self) -> bool:
        """True where the next command will bring the schema up to date."""
        return not self.problem and self.version < SCHEMA_VERSION


def examine(path: Path) -> Examined:
    """Look at the store at `path`, which is there. Nothing is written, nothing is locked; a large one takes seconds."""
    try:
        connection = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, timeout=5)
        try:
            version = int(connection.execute("PRAGMA user_version").fetchone()[0])
            if version > SCHEMA_VERSION:
                return Examined(version, f"schema {version} is of a newer release; this one knows {SCHEMA_VERSION}")
            damage = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
            if damage != "ok":
                return Examined(version, f"the file is damaged: {damage}")
            return Examined(version, _difference(_objects(connection), _wanted(version)))
        finally:
            connection.close()
    except sqlite3.Error as error:
        return Examined(0, f"it cannot be read: {error}")


def _wanted(version: int) -> dict[str, str]:
    """The schema as this release would have made it at that version."""
    connection = sqlite3.connect(":memory:")
    try:
        for step in range(version):
            connection.executescript(script(step + 1))
        return _objects(connection)
    finally:
        connection.close()


def _objects(connection: sqlite3.Connection) -> dict[str, str]:
    rows = connection.execute("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL")
    return dict(rows.fetchall())


def _difference(there: dict[str, str], wanted: dict[str, str]) -> str:
    """What is missing or other than it should be. What somebody added beside it is theirs."""
    missing = sorted(wanted.keys() - there.keys())
    if missing:
        return f"its schema lacks {', '.join(missing)}"
    changed = sorted(name for name, sql in wanted.items() if there[name] != sql)
    return f"its schema was changed: {', '.join(changed)}" if changed else ""
