"""Budgets as a transaction sees them: a scope's limits, what its windows hold, and what a group changes in them.

The rows of `spending` and `lease` are written here and nowhere else. A commit group reads each row once and writes it
once, however many of its steps touch it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import orjson

from twolane.kernel import ledger, rollups
from twolane.rules import budgets
from twolane.rules.budgets import Account
from twolane.store import Row, Store, Transaction, Value

PERIODS = ("day", "month", "total")


@dataclass(frozen=True, slots=True)
class Limit:
    """A budget as it is set. None is no limit in that dimension."""

    period: str
    pico: int | None
    tokens: int | None


class _Asked(Protocol):
    """A store or a transaction: where one row can be asked for."""

    def one(self, query: str, **values: Value) -> Row | None: ...


class Limits:
    """What limits a scope: its own budget, and the one the configuration sets for each of its kind."""

    def __init__(self, templates: Mapping[str, Limit]) -> None:
        self._templates = templates

    def of(self, asked: _Asked, scope: str, now_us: int) -> dict[str, Limit]:
        """By window. Where both limit the same window the tighter one holds: a run's own budget never lifts the
        operator's."""
        row = asked.one("budget", scope=scope)
        own = Limit(row["period"], row["pico"], row["tokens"]) if row else None
        name = _template_of(scope, self._templates)
        found: dict[str, Limit] = {}
        for limit in (own, self._templates[name] if name else None):
            if limit is not None:
                window = budgets.window(limit.period, now_us)
                found[window] = _tighter(found.get(window, limit), limit)
        return found

    def accounts(self, tx: Transaction, scopes: Sequence[str]) -> list[Account]:
        """The chain's budgets in their current windows, widest first; windows are opened as needed."""
        now_us, books = ledger.now_us(), Books.of(tx)
        found = []
        for scope in scopes:
            for window, limit in self.of(tx, scope, now_us).items():
                spent = books.spending(scope, window)
                if spent is None:
                    _open_window(tx, scope, limit.period, now_us)
                    spent = books.spending(scope, window)
                    assert spent is not None
                found.append(Account(scope, window, limit.pico, limit.tokens, *spent))
        return found


class Books:
    """`spending` and `lease` inside one transaction: every row is read at most once, and what the works of the group
    change in it is written once, before the commit."""

    def __init__(self, tx: Transaction) -> None:
        self._tx = tx
        self._read: dict[tuple[str, str], tuple[int, ...]] = {}
        self._change: dict[tuple[str, str], tuple[int, int, int, int]] = {}
        self._leases: dict[tuple[str, str, str], _Lease] = {}

    @classmethod
    def of(cls, tx: Transaction) -> Books:
        """The one of this transaction."""
        books: Books | None = tx.cache.get("books")
        if books is None:
            books = tx.cache["books"] = cls(tx)
            tx.before_commit(books._write)
        return books

    def spending(self, scope: str, window: str) -> tuple[int, ...] | None:
        """Picounits spent and held, tokens spent and held; None where the window was not opened yet."""
        key = (scope, window)
        if key not in self._read:
            row = self._tx.one("spending", scope=scope, window=window)
            if row is None:
                return None
            self._read[key] = (row["spent_pico"], row["held_pico"], row["spent_tokens"], row["held_tokens"])
        changed = self._change.get(key)
        read = self._read[key]
        return read if changed is None else tuple(a + b for a, b in zip(read, changed, strict=True))

    def hold(self, scope: str, window: str, *, pico: int, tokens: int) -> None:
        """Hold more; less where negative."""
        self._add(scope, window, (0, pico, 0, tokens))

    def spend(self, scope: str, window: str, *, pico: int, tokens: int) -> None:
        """Count as spent."""
        self._add(scope, window, (pico, 0, tokens, 0))

    def lease(self, owner: str, scope: str, window: str, *, pico: int, tokens: int) -> None:
        """Hold more, in the hands of a process."""
        lease = self._lease(owner, scope, window)
        lease.pico, lease.tokens = lease.pico + pico, lease.tokens + tokens
        self.hold(scope, window, pico=pico, tokens=tokens)

    def unlease(self, owner: str, scope: str, window: str, *, pico: int, tokens: int) -> None:
        """Hold that much less. Never more than is there: a process that was taken for dead finds its blocks settled,
        and what it still has to record must not fail for it."""
        lease = self._lease(owner, scope, window)
        self.lease(owner, scope, window, pico=-min(pico, lease.pico), tokens=-min(tokens, lease.tokens))

    def _lease(self, owner: str, scope: str, window: str) -> _Lease:
        key = (owner, scope, window)
        found = self._leases.get(key)
        if found is None:
            row = self._tx.one("lease", owner=owner, scope=scope, window=window)
            found = _Lease(row["pico"], row["tokens"], is_kept=True) if row else _Lease(0, 0, is_kept=False)
            self._leases[key] = found
        return found

    def _add(self, scope: str, window: str, change: tuple[int, int, int, int]) -> None:
        before = self._change.get((scope, window))
        if before is not None:
            a, b, c, d = before
            change = (a + change[0], b + change[1], c + change[2], d + change[3])
        self._change[scope, window] = change

    def _write(self) -> None:
        for (scope, window), (spent_pico, held_pico, spent_tokens, held_tokens) in self._change.items():
            self._tx.run(
                "change_spending",
                scope=scope,
                window=window,
                spent_pico=spent_pico,
                held_pico=held_pico,
                spent_tokens=spent_tokens,
                held_tokens=held_tokens,
            )
        for (owner, scope, window), lease in self._leases.items():
            name: dict[str, Value] = {"owner": owner, "scope": scope, "window": window}
            if lease.pico or lease.tokens:
                self._tx.run(
                    "set_lease" if lease.is_kept else "add_lease", pico=lease.pico, tokens=lease.tokens, **name
                )
            elif lease.is_kept:
                self._tx.run("end_lease", **name)


@dataclass
class _Lease:
    pico: int
    tokens: int
    is_kept: bool
    """There is a row of it."""


def spend_late(tx: Transaction, scopes: Sequence[str], held: set[tuple[str, int]], *, pico: int, tokens: int) -> None:
    """Charge the current windows of the chain in which a step holds nothing. A window's length tells its period."""
    known = _current(tx, scopes)
    for scope in scopes:
        for window in known[scope]:
            if (scope, len(window)) not in held:
                Books.of(tx).spend(scope, window, pico=pico, tokens=tokens)


def _current(tx: Transaction, scopes: Sequence[str]) -> dict[str, list[str]]:
    """The opened windows of these scopes that hold today; each scope is looked up once in a group."""
    known: dict[str, list[str]] | None = tx.cache.get("windows")
    if known is None:
        known = tx.cache["windows"] = {}
        now_us = ledger.now_us()
        tx.cache["today"] = {budgets.window(period, now_us) for period in PERIODS}
        tx.cache["any_spending"] = tx.one("any_spending") is not None
    unknown = [scope for scope in scopes if scope not in known]
    known.update((scope, []) for scope in unknown)
    if unknown and tx.cache["any_spending"]:
        for row in tx.all("windows", scopes=orjson.dumps(unknown).decode()):
            if row["window"] in tx.cache["today"]:
                known[row["scope"]].append(row["window"])
    return known


def doubt(tx: Transaction, owner: str, scope: str, leases: Mapping[str, tuple[int, int]]) -> None:
    """Settle a dead process's blocks of a scope whole, by window. What its calls may have cost counts in the scope's
    other current windows too, where it holds nothing: with the larger of its blocks."""
    books, day = Books.of(tx), budgets.window("day", ledger.now_us())
    largest = (max(pico for pico, _ in leases.values()), max(tokens for _, tokens in leases.values()))
    lengths = {len(window) for window in leases}
    others = {window: largest for window in _current(tx, (scope,))[scope] if len(window) not in lengths}
    for window, (pico, tokens) in {**others, **leases}.items():
        if window in leases:
            books.unlease(owner, scope, window, pico=pico, tokens=tokens)
        books.spend(scope, window, pico=pico, tokens=tokens)
        tx.run("add_doubt", scope=scope, window=window, day=day, pico=pico, tokens=tokens)


def _open_window(tx: Transaction, scope: str, period: str, now_us: int) -> None:
    """A window starts with what the record says was spent in it before the budget was set."""
    ledger.flush(tx)
    rollups.write(tx)  # what steps of this very group have spent is among it
    window, since = budgets.window(period, now_us), budgets.first_day(period, now_us)
    spent, unknown = spent_since(tx, scope, since), tx.one("doubt_since", scope=scope, since=since)
    assert unknown is not None
    tx.cache.pop("windows", None)
    pico, tokens = spent["pico"] + unknown["pico"], spent["tokens"] + unknown["tokens"]
    tx.run("begin_spending", scope=scope, window=window, pico=pico, tokens=tokens)
    if unknown["pico"] or unknown["tokens"]:
        day = budgets.window("day", now_us)
        tx.run("add_doubt", scope=scope, window=window, day=day, pico=unknown["pico"], tokens=unknown["tokens"])


def spent_since(asked: _Asked, scope: str, since_day: str) -> Row:
    """What the roll-ups and the ledger say a scope spent since a day (all of it for runs and items)."""
    kind, _, rest = scope.partition(":")
    tenant, _, name = rest.partition("/")
    match kind:
        case "run":
            row = asked.one("spent_by_run", run=rest)
        case "item":
            row = asked.one("spent_by_item", run=tenant, item=name)
        case "tenant":
            row = asked.one("spent_since", since=since_day, tenant=rest, api_key=None, workflow=None)
        case "key":
            row = asked.one("spent_since", since=since_day, tenant=tenant, api_key=name, workflow=None)
        case "workflow":
            row = asked.one("spent_since", since=since_day, tenant=tenant, api_key=None, workflow=name)
        case _:
            row = asked.one("spent_since", since=since_day, tenant=None, api_key=None, workflow=None)
    assert row is not None  # sums always have one
    return row


def drift(store: Store) -> list[str]:
    """Where the books disagree with what they are made of; nothing while all is well, at every commit.

    Held is the sum of reservations and blocks. Spent, in windows without an end, is what the steps cost and what is in
    doubt; in days and months a step that crosses midnight is counted where it was held, so these are not compared.
    """
    with store.snapshot():
        rows = {(row["scope"], row["window"]): row for row in store.all("all_spending")}
        held = {key: [0, 0] for key in rows}
        for row in store.all("reservations"):
            for scope, window in orjson.loads(row["windows"]):
                _plus(held.setdefault((scope, window), [0, 0]), row)
        for row in store.all("leases"):
            _plus(held.setdefault((row["scope"], row["window"]), [0, 0]), row)
        found = []
        for (scope, window), sums in held.items():
            kept = rows.get((scope, window))
            told = None if kept is None else [kept["held_pico"], kept["held_tokens"]]
            if told != sums:
                found.append(f"{scope} {window}: held {told}, but reservations and blocks are {sums}")
        for (scope, window), kept in rows.items():
            if window == "total" and _is_in_record(store, scope):
                spent, unknown = spent_since(store, scope, ""), store.one("doubt", scope=scope, window=window)
                assert unknown is not None
                sums = [spent["pico"] + unknown["pico"], spent["tokens"] + unknown["tokens"]]
                told = [kept["spent_pico"], kept["spent_tokens"]]
                if told != sums:
                    found.append(f"{scope} {window}: spent {told}, but steps and what is in doubt are {sums}")
        return found


def _is_in_record(store: Store, scope: str) -> bool:
    """False for an item that belongs to no run of ours: entries know it by a pseudonym that leads nowhere."""
    kind, _, rest = scope.partition(":")
    run, _, name = rest.partition("/")
    return kind != "item" or store.one("item", run=run, name=name) is not None


def _plus(sums: list[int], row: Row) -> None:
    sums[0] += row["pico"]
    sums[1] += row["tokens"]


def _tighter(one: Limit, other: Limit) -> Limit:
    picos = [limit.pico for limit in (one, other) if limit.pico is not None]
    tokens = [limit.tokens for limit in (one, other) if limit.tokens is not None]
    return Limit(one.period, min(picos, default=None), min(tokens, default=None))


def _template_of(scope: str, templates: Mapping[str, Limit]) -> str | None:
    """Which configured budget covers this scope: its own name, `run` and `item` for each of them, `workflow:NAME` for
    every tenant's."""
    kind, _, rest = scope.partition(":")
    wide = {"run": "run", "item": "item", "workflow": f"workflow:{rest.partition('/')[2]}"}.get(kind, scope)
    return next((name for name in (scope, wide) if name in templates), None)
