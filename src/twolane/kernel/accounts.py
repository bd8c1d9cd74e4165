"""Budgets as a transaction sees them: what limits a chain of scopes, and what lies in its windows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import orjson

from twolane.kernel import ledger, rollups
from twolane.kernel.books import Books
from twolane.rules import budgets
from twolane.rules.budgets import Account
from twolane.store import Row, Store, Transaction, Value

MOST_KNOWN = 4096
"""Scopes whose limits are remembered at a time."""


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
        self._known = _Known((-1, ""))

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
        books, found = Books.of(tx), []
        for scope, window, limit in self._limiting(tx, tuple(scopes)):
            spent = books.spending(scope, window)
            if spent is None:
                _open_window(tx, scope, limit.period, ledger.now_us())
                spent = books.spending(scope, window)
                assert spent is not None
            found.append(Account(scope, window, limit.pico, limit.tokens, *spent))
        return found

    def _limiting(self, tx: Transaction, scopes: tuple[str, ...]) -> list[tuple[str, str, Limit]]:
        """What limits a chain, read in this transaction or in an earlier one of the same epoch and day. Only the
        writer's thread comes here."""
        known: _Known | None = tx.cache.get("limits")
        if known is None:
            row = tx.one("epoch")
            assert row is not None
            as_of = (row["n"], budgets.window("day", ledger.now_us()))
            if as_of != self._known.as_of or len(self._known.scopes) >= MOST_KNOWN:
                self._known = _Known(as_of)
            known = tx.cache["limits"] = self._known
        found = known.chains.get(scopes)
        if found is None:
            now_us = ledger.now_us()
            for scope in scopes:
                if scope not in known.scopes:
                    known.scopes[scope] = self.of(tx, scope, now_us)
            found = [(scope, window, limit) for scope in scopes for window, limit in known.scopes[scope].items()]
            known.chains[scopes] = found
        return found


@dataclass
class _Known:
    """What limits scopes and chains of them, as of one epoch and day."""

    as_of: tuple[int, str]
    scopes: dict[str, dict[str, Limit]] = field(default_factory=dict)
    chains: dict[tuple[str, ...], list[tuple[str, str, Limit]]] = field(default_factory=dict)


def forget_limits(tx: Transaction) -> None:
    """A limit was changed in this transaction: what is known of it holds no longer here, and may never be committed."""
    tx.cache["limits"] = _Known((-1, ""))


def doubt(tx: Transaction, owner: str, scope: str, leases: Mapping[str, tuple[int, int]]) -> None:
    """Settle a dead process's blocks of a scope whole, by window. What its calls may have cost counts in the scope's
    other current windows too, where it holds nothing: with the larger of its blocks."""
    books, day = Books.of(tx), budgets.window("day", ledger.now_us())
    largest = (max(pico for pico, _ in leases.values()), max(tokens for _, tokens in leases.values()))
    lengths = {len(window) for window in leases}
    others = {window: largest for window in books.current((scope,))[scope] if len(window) not in lengths}
    for window, (pico, tokens) in {**others, **leases}.items():
        if window in leases:
            books.unlease(owner, scope, window, pico=pico, tokens=tokens)
        books.spend(scope, window, pico=pico, tokens=tokens)
        tx.run("add_doubt", scope=scope, window=window, day=day, pico=pico, tokens=tokens)


def _open_window(tx: Transaction, scope: str, period: str, now_us: int) -> None:
    """A window starts with what the record says was spent in it before the budget was set."""
    Books.of(tx).come_to_terms()  # what was spent before it opened is in the record
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
