"""Budgets as a transaction sees them: what limits a chain of scopes, and what lies in its windows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import orjson

from twolane.domain.money import decimal_string
from twolane.kernel import ledger, rollups
from twolane.kernel.books import Books, Window, amount_of, state_of
from twolane.rules import budgets
from twolane.rules.budgets import NOTHING, Account, Amount, Ceiling
from twolane.store import Row, Store, Transaction, Value

NEWS_US = 150_000
"""Within this every living process knows of a limit that was set, and holds for its calls in flight: it looks every
10 ms while it has some, at what is at most `store.FRESH_S` old, and then commits."""
MOST_KNOWN = 4096
"""Scopes whose limits are remembered at a time."""


@dataclass(frozen=True, slots=True)
class Limit:
    """A budget as it is set."""

    period: str
    most: Ceiling
    since_us: int = field(default=0, compare=False)
    """When it was set."""

    @classmethod
    def of(cls, row: Row) -> Limit:
        """What a row of `budget` says."""
        return cls(row["period"], Ceiling(*[row[name] for name in Ceiling._fields]), row["since"])

    def fields(self) -> dict[str, object]:
        """As a leaf and an answer hold it: amounts as decimal strings, None for no limit."""
        return {"period": self.period} | amount_fields(self.most)


def amount_fields(amount: Sequence[int | None]) -> dict[str, object]:
    """An amount by the names that people know: money and seconds as decimal strings, counts as integers."""
    pico, tokens, calls, us, accelerator_us = amount
    return {
        "money": None if pico is None else decimal_string(pico),
        "tokens": tokens,
        "calls": calls,
        "seconds": None if us is None else budgets.seconds_string(us),
        "accelerator_seconds": None if accelerator_us is None else budgets.seconds_string(accelerator_us),
    }


def account_fields(account: Account) -> dict[str, Any]:  # Any: JSON
    """A budget as every answer tells it: its scope, its window as `period`, what is limit, spent, held, leased and
    remaining of its money (None where that is not limited), and the same of each other dimension that it limits, under
    its name."""
    amounts = {
        "limit": account.limit, "spent": account.spent, "held": account.held, "leased": account.leased,
        "remaining": account.left(),
    }  # fmt: skip
    told = {part: amount_fields(amount) for part, amount in amounts.items()}
    figures = {name: {part: amount[name] for part, amount in told.items()} for name in told["limit"]}
    money = figures.pop("money")
    limited = {name: each for name, each in figures.items() if each["limit"] is not None}
    return {"scope": account.scope, "period": account.window, **money, **limited}


def run_of(scope: str) -> dict[str, str]:
    """The run that an entry about a scope belongs to, as a field of it."""
    return {"run": scope.removeprefix("run:")} if scope.startswith("run:") else {}


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
        own = Limit.of(row) if row else None
        found: dict[str, Limit] = {}
        for limit in (own, self.of_template(scope)):
            if limit is not None:
                window = budgets.window(limit.period, now_us)
                there = found.get(window)
                found[window] = (
                    limit
                    if there is None
                    else Limit(limit.period, limit.most.lower(there.most), max(limit.since_us, there.since_us))
                )
        return found

    def of_template(self, scope: str) -> Limit | None:
        """What the configuration sets for each of its kind: no command changes that."""
        name = _template_of(scope, self._templates)
        return self._templates[name] if name else None

    def accounts(self, tx: Transaction, scopes: Sequence[str]) -> list[Account]:
        """The chain's budgets in their current windows, widest first; windows are opened as needed."""
        books, found = Books.of(tx), []
        for scope, window, limit in self._limiting(tx, tuple(scopes)):
            state = books.spending(scope, window)
            if state is None:
                _open_window(tx, scope, limit.period, ledger.now_us())
                state = books.spending(scope, window)
                assert state is not None
            found.append(Account(scope, window, limit.most, *state))
        return found

    def is_known(self, tx: Transaction, scopes: Sequence[str]) -> bool:
        """False right after a limit was set, where processes, this one too, may still have to tell which of their calls
        in flight it concerns."""
        now_us = ledger.now_us()
        newest = max((limit.since_us for _, _, limit in self._limiting(tx, tuple(scopes))), default=0)
        return not 0 <= now_us - newest < NEWS_US

    def accounts_of(self, tx: Transaction, windows: Sequence[Window]) -> list[Account]:
        """The budgets of these very windows, under the limits that are now in force for their periods: what a hold
        lies in may be a day that is over."""
        books, now_us, found = Books.of(tx), ledger.now_us(), []
        for scope, window in windows:
            state = books.spending(scope, window)
            limits = [limit for name, limit in self.of(tx, scope, now_us).items() if len(name) == len(window)]
            if state is not None and limits:
                found.append(Account(scope, window, limits[0].most, *state))
        return found

    def _limiting(self, tx: Transaction, scopes: tuple[str, ...]) -> list[tuple[str, str, Limit]]:
        """What limits a chain, read in this transaction or in an earlier one of the same epoch and day. Only the
        writer's thread comes here."""
        known: _Known | None = tx.policy.get("limits")
        if known is None:
            row = tx.one("epoch")
            assert row is not None
            as_of = (row["n"], budgets.window("day", ledger.now_us()))
            known = self._known
            if tx.changes_policy:  # the epoch of this number may become another one
                known = _Known(as_of)
            elif as_of != known.as_of or len(known.scopes) >= MOST_KNOWN:
                known = self._known = _Known(as_of)
            tx.policy["limits"] = known
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


def add_doubt(tx: Transaction, scope: str, window: str, amount: Amount) -> None:
    """Keep what is spent on a window and known to no step; less where negative."""
    tx.run("add_doubt", scope=scope, window=window, day=budgets.window("day", ledger.now_us()), **amount._asdict())


def _open_window(tx: Transaction, scope: str, period: str, now_us: int) -> None:
    """A window starts with what the record says was spent in it before the budget was set."""
    Books.of(tx).come_to_terms()  # what was spent before it opened is in the record
    ledger.flush(tx)
    rollups.write(tx)  # what steps of this very group have spent is among it
    window, since = budgets.window(period, now_us), budgets.first_day(period, now_us)
    row = tx.one("doubt_since", scope=scope, since=since)
    assert row is not None
    unknown = amount_of(row)
    spent = spent_since(tx, scope, since, budgets.last_day(period, now_us)).plus(unknown)
    tx.cache.pop("windows", None)
    tx.run("begin_spending", scope=scope, window=window, **spent._asdict())
    if any(unknown):
        add_doubt(tx, scope, window, unknown)


def spent_since(asked: _Asked, scope: str, since_day: str, until_day: str = budgets.END) -> Amount:
    """What the roll-ups and the ledger say a scope spent from a day to another (all of it for runs and items)."""
    kind, _, rest = scope.partition(":")
    tenant, _, name = rest.partition("/")
    match kind:
        case "run":
            row = asked.one("spent_by_run", run=rest)
        case "item":
            row = asked.one("spent_by_item", run=tenant, item=name)
        case _:
            of = {
                "tenant": {"tenant": rest},
                "key": {"tenant": tenant, "api_key": name},
                "workflow": {"tenant": tenant, "workflow": name},
                "upstream": {"upstream": rest},
            }.get(kind, {})
            named = {**dict.fromkeys(("tenant", "api_key", "workflow", "upstream")), **of}
            row = asked.one("spent_since", since=since_day, until=until_day, **named)
    assert row is not None  # sums always have one
    return amount_of(row)


def drift(store: Store, *, first: int = 0, most: int | None = None) -> list[str]:
    """Where the books disagree with what they are made of; nothing while all is well, at every commit. Of windows
    without an end `most` are compared with the record, from the `first` on.

    Held is the sum of reservations and blocks. Spent, in windows without an end, is what the steps cost and what is in
    doubt; in days and months a step that crosses midnight is counted where it was held, so these are not compared.
    """
    with store.snapshot():
        rows = {(row["scope"], row["window"]): state_of(row) for row in store.all("all_spending")}
        held = dict.fromkeys(rows, NOTHING)
        for row in store.all("reservations"):
            for scope, window in orjson.loads(row["windows"]):
                held[scope, window] = held.get((scope, window), NOTHING).plus(amount_of(row))
        for row in store.all("leases"):
            key = (row["scope"], row["window"])
            held[key] = held.get(key, NOTHING).plus(amount_of(row))
        found = []
        for (scope, window), sums in held.items():
            kept = rows.get((scope, window))
            if kept is None or kept.held != sums:
                told = None if kept is None else kept.held
                found.append(f"{scope} {window}: held {told}, but reservations and blocks are {sums}")
        endless = sorted(scope for scope, window in rows if window == "total")
        for scope in endless[first : None if most is None else first + most]:
            kept, window = rows[scope, "total"], "total"
            if _is_in_record(store, scope):
                unknown = store.one("doubt", scope=scope, window=window)
                assert unknown is not None
                sums = spent_since(store, scope, "").plus(amount_of(unknown))
                if kept.spent != sums:
                    found.append(f"{scope} {window}: spent {kept.spent}, but steps and what is in doubt are {sums}")
        return found


def _is_in_record(store: Store, scope: str) -> bool:
    """False for an item that belongs to no run of ours: entries know it by a pseudonym that leads nowhere."""
    kind, _, rest = scope.partition(":")
    run, _, name = rest.partition("/")
    return kind != "item" or store.one("item", run=run, name=name) is not None


def _template_of(scope: str, templates: Mapping[str, Limit]) -> str | None:
    """Which configured budget covers this scope: its own name, `run` and `item` for each of them, `workflow:NAME` for
    every tenant's."""
    kind, _, rest = scope.partition(":")
    wide = {"run": "run", "item": "item", "workflow": f"workflow:{rest.partition('/')[2]}"}.get(kind, scope)
    return next((name for name in (scope, wide) if name in templates), None)
