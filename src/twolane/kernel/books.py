"""What one commit group changes in the money that is spent and held: each row read once and written once, however many
steps of the group touch it.

The rows of `spending`, `lease` and `reservation` are written here and nowhere else. A statement for each step would be
most of a group's time: a hold that begins and ends in one group is never written, the others are written and deleted
together, and what steps spent where they hold nothing is added up and looked up once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import orjson

from twolane.kernel import ledger
from twolane.rules import budgets
from twolane.rules.budgets import NOTHING, Amount
from twolane.store import Row, Transaction, Value

PERIODS = ("day", "month", "total")

Window = tuple[str, str]
"""A scope and the window of its budget."""
_SPENT = tuple(f"spent_{name}" for name in Amount._fields)
_HELD = tuple(f"held_{name}" for name in Amount._fields)


class State(NamedTuple):
    """What a window came to."""

    spent: Amount
    held: Amount


def amount_of(row: Row, names: Sequence[str] = Amount._fields) -> Amount:
    """The figures of a row."""
    return Amount(*[row[name] for name in names])


def state_of(row: Row) -> State:
    """The same of a row of `spending`."""
    return State(amount_of(row, _SPENT), amount_of(row, _HELD))


class Books:
    """`spending`, `lease` and `reservation` inside one transaction; see the head of this file."""

    def __init__(self, tx: Transaction) -> None:
        self._tx = tx
        self._read: dict[Window, State] = {}
        self._spent: dict[Window, list[int]] = {}
        self._held: dict[Window, list[int]] = {}
        self._leases: dict[tuple[str, str, str], _Lease] = {}
        self._begun: dict[str, dict[str, Value]] = {}
        """Holds of this group, by step, that have no row yet."""
        self._ended: dict[str, tuple[Sequence[Window], Amount]] = {}
        """Holds of earlier groups that this one ended, whose rows are still there."""
        self._late: dict[str, dict[tuple[int, ...], Amount]] = {}
        """By scope, and by the lengths of the windows in which a step held something: what it spent in all others."""

    @classmethod
    def of(cls, tx: Transaction) -> Books:
        """The one of this transaction."""
        books: Books | None = tx.cache.get("books")
        if books is None:
            books = tx.cache["books"] = cls(tx)
            tx.before_commit(books._write)
        return books

    # ── windows ──

    def spending(self, scope: str, window: str) -> State | None:
        """What is spent and held; None where the window was not opened yet."""
        if any(len(window) not in lengths for lengths in self._late.get(scope, ())):
            self.come_to_terms()
        key = (scope, window)
        state = self._read.get(key)
        if state is None:
            row = self._tx.one("spending", scope=scope, window=window)
            if row is None:
                return None
            state = self._read[key] = state_of(row)
        spent, held = self._spent.get(key), self._held.get(key)
        if spent is None and held is None:
            return state
        return State(
            state.spent if spent is None else state.spent.plus(Amount(*spent)),
            state.held if held is None else state.held.plus(Amount(*held)),
        )

    def hold(self, scope: str, window: str, amount: Amount) -> None:
        """Hold more."""
        _add(self._held, (scope, window), amount)

    def let_go(self, scope: str, window: str, amount: Amount) -> None:
        """Hold less."""
        a, b, c, d, e = amount
        _add(self._held, (scope, window), (-a, -b, -c, -d, -e))

    def spend(self, scope: str, window: str, amount: Amount) -> None:
        """Count as spent."""
        _add(self._spent, (scope, window), amount)

    def spend_late(self, scopes: Sequence[str], held: Iterable[Window], amount: Amount) -> None:
        """Charge the current windows of the chain in which a step holds nothing. A window's length tells its period."""
        if not any(amount):
            return
        lengths: dict[str, tuple[int, ...]] = {}
        for scope, window in held:
            lengths[scope] = (*lengths.get(scope, ()), len(window))
        for scope in scopes:
            sums = self._late.setdefault(scope, {})
            known = lengths.get(scope, ())
            before = sums.get(known)
            sums[known] = amount if before is None else before.plus(amount)

    def come_to_terms(self) -> None:
        """Charge what was spent late so far; whoever opens a window calls it first."""
        late, self._late = self._late, {}
        if not late:
            return
        known = self.current(list(late))
        for scope, sums in late.items():
            for window in known[scope]:
                for lengths, amount in sums.items():
                    if len(window) not in lengths:
                        self.spend(scope, window, amount)

    def current(self, scopes: Sequence[str]) -> dict[str, list[str]]:
        """The opened windows of these scopes that hold today; each scope is looked up once in a group."""
        tx = self._tx
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

    # ── holds ──

    def begin_hold(
        self, step: str, windows: Sequence[Window], amount: Amount, *, owner: str, scopes: Sequence[str], entry: str
    ) -> None:
        """Hold this much in each of these windows, with a row under the step's id. `scopes` is its whole chain, `entry`
        the JSON of what the ledger will say if `owner` dies before the hold ends."""
        for scope, window in windows:
            self.hold(scope, window, amount)
        self._begun[step] = {
            "step": step,
            "owner": owner,
            **amount._asdict(),
            "windows": orjson.dumps(windows).decode(),
            "scopes": orjson.dumps(scopes).decode(),
            "entry": entry,
        }

    def windows_of(self, step: str) -> list[Window]:
        """Where a hold lies; nowhere once its row is gone."""
        row: Row | None = self._begun.get(step) or self._tx.one("reservation", step=step)
        return [] if row is None else _windows(row)

    def hold_more(self, step: str, amount: Amount, windows: Sequence[Window] = ()) -> None:
        """A hold that has a row gets more of what it holds, in all its windows; or as much as it holds in further
        `windows` of budgets that were set meanwhile."""
        begun = self._begun.get(step)
        row = self._tx.one("reservation", step=step) if begun is None else begun
        if row is None:
            return
        known, held = _windows(row), amount_of(row)
        for scope, window in known:
            self.hold(scope, window, amount)
        for scope, window in windows:
            self.hold(scope, window, held.plus(amount))
        changed: dict[str, Value] = held.plus(amount)._asdict()
        changed["windows"] = orjson.dumps([*known, *windows]).decode()
        if begun is not None:
            begun.update(changed)
        else:
            self._tx.run("change_reservation", step=step, **changed)

    def take_up(self, scope: str, window: str) -> None:
        """A budget was set: calls in flight under its scope hold in its window too what they hold elsewhere."""
        self._settle_holds()
        for row in self._tx.all("reservations"):
            windows = _windows(row)
            if scope in orjson.loads(row["scopes"]) and (scope, window) not in windows:
                self.hold_more(row["step"], NOTHING, [(scope, window)])

    def end_hold(self, step: str, windows: Sequence[Window], amount: Amount) -> None:
        """End a hold by what its holder knows of it. Where its row turns out to be another (it got more, or a budget
        was set meanwhile), or gone since another process took the holder for dead and settled it, no more is let go
        than it held."""
        begun = self._begun.pop(step, None)
        if begun is not None:
            self._let_go_all(begun)
            return
        self._ended[step] = (windows, amount)
        for scope, window in windows:
            self.let_go(scope, window, amount)

    def end_unknown_hold(self, step: str) -> list[Window]:
        """End a hold that only the store knows of, if there is one. Gives the windows it lay in."""
        row: Row | None = self._begun.pop(step, None)
        if row is None:
            row = next(iter(self._tx.all("end_reservations", steps=orjson.dumps([step]).decode())), None)
        if row is None:
            return []
        return self._let_go_all(row)

    def settle(
        self, step: str, scopes: Sequence[str], spent: Amount, *, held: tuple[Sequence[Window], Amount] | None = None
    ) -> None:
        """End the hold of `step`, where one was taken, with what was spent. Whoever took it says what was `held`.

        A budget that was set, or got another period, while the step ran may hold nothing for it; what the step spent
        counts there all the same.
        """
        if held is None:
            windows: Sequence[Window] = self.end_unknown_hold(step)
        else:
            windows = held[0]
            self.end_hold(step, *held)
        for scope, window in windows:
            self.spend(scope, window, spent)
        self.spend_late(scopes, windows, spent)

    def _let_go_all(self, row: Row) -> list[Window]:
        windows, amount = _windows(row), amount_of(row)
        for scope, window in windows:
            self.let_go(scope, window, amount)
        return windows

    def _settle_holds(self) -> None:
        if self._ended:
            steps = orjson.dumps(list(self._ended)).decode()
            there = {row["step"]: row for row in self._tx.all("end_reservations", steps=steps)}
            for step, (windows, amount) in self._ended.items():
                row = there.get(step)
                if row is not None and amount_of(row) == amount and _windows(row) == list(windows):
                    continue  # as its holder knew it
                for scope, window in windows:
                    self.hold(scope, window, amount)
                if row is not None:
                    self._let_go_all(row)
            self._ended.clear()
        if self._begun:
            self._tx.run_many("add_reservation", list(self._begun.values()))
            self._begun.clear()

    # ── leases ──

    def lease(self, owner: str, scope: str, window: str, amount: Amount) -> None:
        """Hold more, in the hands of a process."""
        lease = self._lease(owner, scope, window)
        lease.amount = lease.amount.plus(amount)
        self.hold(scope, window, amount)

    def unlease(self, owner: str, scope: str, window: str, amount: Amount) -> None:
        """Hold that much less. Never more than is there: a process that was taken for dead finds its blocks settled,
        and what it still has to record must not fail for it."""
        lease = self._lease(owner, scope, window)
        if not amount.fits(lease.amount):
            amount = amount.least(lease.amount)
        lease.amount = lease.amount.minus(amount)
        self.let_go(scope, window, amount)

    def leased(self, scope: str, window: str) -> Amount:
        """What lies in blocks of a window, in every process."""
        self.write_leases()
        row = self._tx.one("leased", scope=scope, window=window)
        assert row is not None  # a sum always has one
        return amount_of(row)

    def _lease(self, owner: str, scope: str, window: str) -> _Lease:
        key = (owner, scope, window)
        found = self._leases.get(key)
        if found is None:
            row = self._tx.one("lease", owner=owner, scope=scope, window=window)
            found = _Lease(amount_of(row), is_kept=True) if row else _Lease(NOTHING, is_kept=False)
            self._leases[key] = found
        return found

    def write_leases(self) -> None:
        """Write what was leased and given back so far; whoever reads the rows of blocks inside a group calls it
        first."""
        for (owner, scope, window), lease in self._leases.items():
            name: dict[str, Value] = {"owner": owner, "scope": scope, "window": window}
            if any(lease.amount):
                figures = lease.amount._asdict()
                self._tx.run("set_lease" if lease.is_kept else "add_lease", **figures, **name)
            elif lease.is_kept:
                self._tx.run("end_lease", **name)
        self._leases.clear()

    # ── the end of the group ──

    def _write(self) -> None:
        self._settle_holds()
        self.come_to_terms()
        for key in self._spent.keys() | self._held.keys():
            spent, held = self._spent.get(key, NOTHING), self._held.get(key, NOTHING)
            if any(spent) or any(held):
                figures = dict(zip(_SPENT + _HELD, (*spent, *held), strict=True))
                self._tx.run("change_spending", scope=key[0], window=key[1], **figures)
        self.write_leases()


@dataclass
class _Lease:
    amount: Amount
    is_kept: bool
    """There is a row of it."""


def _windows(row: Mapping[str, Value] | Row) -> list[Window]:
    return [(scope, window) for scope, window in orjson.loads(str(row["windows"]))]


def _add(sums: dict[Window, list[int]], key: Window, amount: tuple[int, int, int, int, int]) -> None:
    """In place: several times a step, a new tuple for each was most of the time."""
    kept = sums.get(key)
    if kept is None:
        sums[key] = [*amount]
        return
    a, b, c, d, e = amount
    kept[0] += a
    kept[1] += b
    kept[2] += c
    kept[3] += d
    kept[4] += e
