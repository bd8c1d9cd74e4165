"""Which adapter an address names."""

from __future__ import annotations

from pathlib import Path

from twolane.store import Store
from twolane.store.sqlite import SQLiteStore


def open_store(address: str) -> Store:
    """The store at `sqlite:PATH` or `postgresql://…`, made on first use.

    Raises:
        StoreError: see `SQLiteStore` and `PostgresStore`.
    """
    if address.startswith("sqlite:"):
        return SQLiteStore(Path(address.removeprefix("sqlite:")))
    from twolane.store.postgres import PostgresStore  # the driver costs what a store in a file need not pay

    return PostgresStore(address)
