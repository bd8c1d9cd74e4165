"""What one commit group changes in the money that is spent and held: each row read once and written once, however many
steps of the group touch it.

The rows of `spending`, `lease` and `reservation` are written here and nowhere else. A statement for each step would be
most of a group's time: a hold that begins and ends in one group is never written, the others are written and deleted
together, and what steps spent where they hold nothing is added up and looked up once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import orjson

from twolane.kernel import ledger
from twolane.rules import budgets
from twolane.store import Row, Transaction, Value

PERIODS = ("day", "month", "total")

Window = tuple[str, str]
"""A scope and the window of its budget."""
Money = tuple[int, int]
"""Picounits and tokens."""


class Books:
    """`spending`, `lease` and `reservation` inside one transaction; see the head of this file."""

    def __init__(self, tx: Transaction) -> None:
        self._tx = tx
        self._read: dict[Window, tuple[int, ...]] = {}
        self._change: dict[Window, tuple[int, int, int, int]] = {}
        self._leases: dict[tuple[str, str, str], _Lease] = {}
        self._begun: dict[str, Mapping[str, Value]] = {}
        """Holds of this group, by step, that have no row yet."""
        self._ended: dict[str, tuple[Sequence[Window], Money]] = {}
        """Holds of earlier groups that this one ended, whose rows are still there."""
        self._late: dict[str, dict[tuple[int, ...], Money]] = {}
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

    def spending(self, scope: str, window: str) -> tuple[int, ...] | None:
        """Picounits spent and held, tokens spent and held; None where the window was not opened yet."""
        if any(len(window) not in lengths for lengths in self._late.get(scope, ())):
            self.come_to_terms()
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
        self._add((scope, window), 0, pico, 0, tokens)

    def spend(self, scope: str, window: str, *, pico: int, tokens: int) -> None:
        """Count as spent."""
        self._add((scope, window), pico, 0, tokens, 0)

    def _add(self, key: Window, spent_pico: int, held_pico: int, spent_tokens: int, held_tokens: int) -> None:
        before = self._change.get(key)
        if before is not None:
            a, b, c, d = before
            spent_pico, held_pico, spent_tokens, held_tokens = (
                a + spent_pico, b + held_pico, c + spent_tokens, d + held_tokens,
            )  # fmt: skip
        self._change[key] = (spent_pico, held_pico, spent_tokens, held_tokens)

    def spend_late(self, scopes: Sequence[str], held: Iterable[Window], *, pico: int, tokens: int) -> None:
        """Charge the current windows of the chain in which a step holds nothing. A window's length tells its period."""
        if not pico and not tokens:
            return
        lengths: dict[str, tuple[int, ...]] = {}
        for scope, window in held:
            lengths[scope] = (*lengths.get(scope, ()), len(window))
        for scope in scopes:
            sums = self._late.setdefault(scope, {})
            known = lengths.get(scope, ())
            before = sums.get(known)
            sums[known] = (pico, tokens) if before is None else (before[0] + pico, before[1] + tokens)

    def come_to_terms(self) -> None:
        """Charge what was spent late so far; whoever opens a window calls it first."""
        late, self._late = self._late, {}
        if not late:
            return
        known = self.current(list(late))
        for scope, sums in late.items():
            for window in known[scope]:
                for lengths, (pico, tokens) in sums.items():
                    if len(window) not in lengths:
                        self.spend(scope, window, pico=pico, tokens=tokens)

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

    def begin_hold(self, step: str, windows: Sequence[Window], held: Money, *, owner: str, entry: str) -> None:
        """Hold this much in each of these windows, with a row under the step's id. `entry` is the JSON of what the
        ledger will say if `owner` dies before the hold ends."""
        for scope, window in windows:
            self.hold(scope, window, pico=held[0], tokens=held[1])
        self._begun[step] = {
            "step": step,
            "owner": owner,
            "pico": held[0],
            "tokens": held[1],
            "windows": orjson.dumps(windows).decode(),
            "entry": entry,
        }

    def end_hold(self, step: str, windows: Sequence[Window], held: Money) -> None:
        """End a hold by what its holder knows of it. Where its row turns out to be gone, since another process took the
        holder for dead and settled it, what it held is not let go a second time."""
        for scope, window in windows:
            self.hold(scope, window, pico=-held[0], tokens=-held[1])
        if self._begun.pop(step, None) is None:
            self._ended[step] = (windows, held)

    def end_unknown_hold(self, step: str) -> list[Window]:
        """End a hold that only the store knows of, if there is one. Gives the windows it lay in."""
        row: Row | None = self._begun.pop(step, None)
        if row is None:
            row = next(iter(self._tx.all("end_reservations", steps=orjson.dumps([step]).decode())), None)
        if row is None:
            return []
        windows = [(scope, window) for scope, window in orjson.loads(row["windows"])]
        for scope, window in windows:
            self.hold(scope, window, pico=-row["pico"], tokens=-row["tokens"])
        return windows

    def _end_holds(self) -> None:
        steps = orjson.dumps(list(self._ended)).decode()
        there = {row["step"] for row in self._tx.all("end_reservations", steps=steps)}
        for step, (windows, held) in self._ended.items() if len(there) < len(self._ended) else ():
            if step not in there:
                for scope, window in windows:
                    self.hold(scope, window, pico=held[0], tokens=held[1])

    # ── leases ──

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

    # ── the end of the group ──

    def _write(self) -> None:
        if self._ended:
            self._end_holds()
        if self._begun:
            self._tx.run_many("add_reservation", list(self._begun.values()))
        self.come_to_terms()
        names = ("spent_pico", "held_pico", "spent_tokens", "held_tokens")
        for (scope, window), change in self._change.items():
            if any(change):
                self._tx.run("change_spending", scope=scope, window=window, **dict(zip(names, change, strict=True)))
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
