"""Kill switches: a durable row is the truth, and whatever runs under its scope is closed at once.

A trip is written to the store first, then closes what runs here; other processes see the row within `POLL_S`, because
each polls the store's version while it has running steps. Nothing restarts by itself: only a person resets a switch.

Each process that closed something says so in the ledger (`closed`), and whoever tripped the switch sums it up (`kill`).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from twolane.domain.money import decimal_string
from twolane.errors import StoreError, SwitchTripped, UsageError
from twolane.kernel import ledger
from twolane.kernel.rollups import leaf_amount
from twolane.store import AWAY_S, Store, Transaction, unwaited

POLL_S = 0.01
"""How often what other processes did is looked at while steps run here. Half of `store.FRESH_S`: while a gateway is at
work, no request has to look by itself."""

REPORT_S, QUIET_S = 1.0, 0.15
"""How long a report waits for other processes at most; and how long nobody may have spoken for it to come sooner."""
KINDS, MOST_SCOPE = ("tenant", "key", "workflow", "run", "item", "upstream"), 1_000
"""What a scope begins with, beside `all`; and its longest name."""
MOST_TOLD = 100
"""Acknowledgements that a report names one by one."""

Close = Callable[[str, str], Callable[[], None] | None]
"""What ends a step."""
_LOG = logging.getLogger("twolane.kernel")


@dataclass(frozen=True, slots=True)
class Trip:
    """A switch that was tripped. `at_us` is the instant of its entry, a moment before it was on disk."""

    scope: str
    at_us: int
    position: int | None
    """Of its entry in the ledger; None where the switch was tripped before, and nothing changed."""
    closed: int
    """Steps closed in this process."""


@dataclass(frozen=True, slots=True)
class KillReport:
    """What a trip came to, as far as it was known when this was written. Unknown is None."""

    scope: str
    at_us: int
    steps: int
    """Steps that were closed, in all processes."""
    records: int
    """Those of which there is a record: the others still waited for their slot, or their process is slow."""
    acknowledgements: tuple[tuple[str, int, int], ...]
    """Process, steps, and microseconds from the trip until the last of them was closed."""
    tokens_after: int | None
    """Tokens that upstreams generated after they were closed: known only of those that are part of this house."""
    saved_pico: int | None
    """Bounds of the closed steps less what they are booked at, over their records; None where one has no price."""
    booked_pico: int | None

    def fields(self) -> dict[str, object]:
        """As `--json` and the API show it."""
        return {
            "steps": self.steps,
            "records": self.records,
            "acknowledgements": [
                {"process": process, "steps": steps, "delay_ms": round(delay_us / 1000, 3)}
                for process, steps, delay_us in self.acknowledgements
            ],
            "tokens_after": self.tokens_after,
            "saved": None if self.saved_pico is None else decimal_string(self.saved_pico),
            "booked": None if self.booked_pico is None else decimal_string(self.booked_pico),
        }


class Switches:
    """The switches of one store, as one process sees them."""

    def __init__(
        self,
        store: Store,
        *,
        process: str = "",
        check_presence: Callable[[], None] = lambda: None,
        is_alive: Callable[[str], bool] = lambda name: False,
    ) -> None:
        """`process` is this one's name, `check_presence` raises where it may count as dead: it must begin nothing
        then. `is_alive` tells of others, for whose acknowledgement a report waits."""
        self._store, self._process = store, process
        self._check_presence, self._is_alive = check_presence, is_alive
        self._epoch = -1
        self._tripped: dict[str, str] = {}
        self._running: dict[str, tuple[Sequence[str], Close]] = {}
        self._poller: asyncio.Task[None] | None = None
        self.on_change: Callable[[], None] = lambda: None
        """Called when a switch, a key or a budget may be another one."""

    def check(self, scopes: Sequence[str]) -> None:
        """Say no before anything is spent.

        Raises:
            SwitchTripped: one of the scopes is stopped.
            StoreError: this process may count as dead; see `Presence.check`.
        """
        self._check_presence()
        self._refresh()
        for scope in scopes if self._tripped else ():
            if scope in self._tripped:
                raise SwitchTripped(scope, self._tripped[scope])

    def started(self, step: str, scopes: Sequence[str], close: Close) -> None:
        """A step runs: `close(scope, cause)` is called, once and without an await, when a switch of its scopes trips;
        what it returns, once every other step is closed as well."""
        self._running[step] = (scopes, close)
        if self._poller is None or self._poller.done():
            self._poller = asyncio.get_running_loop().create_task(self._poll())

    def ended(self, step: str) -> None:
        """The step is over."""
        self._running.pop(step, None)

    async def trip(self, scope: str, *, cause: str, actor: str) -> Trip:
        """Stop a scope: the row and its entry are on disk before this returns, and what runs here is closed.
        Tripping it again changes nothing."""
        cause = cause.encode(errors="replace").decode()  # whatever a terminal sends stops what it shall

        def write(tx: Transaction) -> tuple[int, int | None]:
            entry, at_us = _entry("trip", scope, cause, actor), ledger.now_us()
            if not tx.run("trip", scope=scope, cause=cause, actor=actor, tripped=at_us):
                return at_us, None
            return at_us, ledger.append(tx, entry | {"at_us": at_us})

        at_us, position = await self._store.write(write)
        self._refresh()
        return Trip(scope, at_us, position, self.close_tripped())

    async def report(self, trip: Trip) -> KillReport | None:
        """What a trip came to, written to the ledger; None where it changed nothing. It comes once every step that was
        closed has its record and nobody has spoken for `QUIET_S`, at the latest after `REPORT_S`; at once where no
        other process lives. Who speaks later has its own entry all the same."""
        if trip.position is None:
            return None
        began = quiet_since = time.monotonic()
        known, has_others = (-1, -1), self._has_others()
        while (now := time.monotonic()) - began < REPORT_S:
            heard = self._heard(trip.position, trip.scope)
            if heard != known:
                known, quiet_since = heard, now
            told, recorded = heard
            is_whole = recorded >= told >= trip.closed  # a step that was still waiting for its slot has no record
            if now - quiet_since >= QUIET_S or (is_whole and not has_others):
                break
            await asyncio.sleep(POLL_S)
        told, recorded = known
        is_lost = recorded < told and self._has_dead(trip)
        return await self._store.write(lambda tx: _sum_up(tx, trip, is_lost=is_lost))

    def _has_dead(self, trip: Trip) -> bool:
        """Whether a process that closed steps has died since: records of theirs may be missing for ever."""
        acks = self._store.all("acknowledgements", first=trip.position, scope=trip.scope)
        return any(not self._is_alive(each["process"]) for each in acks)

    def _has_others(self) -> bool:
        names = (row["name"] for row in self._store.all("processes"))
        return any(name != self._process and self._is_alive(name) for name in names)

    def _heard(self, first: int, scope: str) -> tuple[int, int]:
        """Steps that processes say they closed, and those of which there is a record."""
        told = sum(row["steps"] for row in self._store.all("acknowledgements", first=first, scope=scope))
        row = self._store.one("closed_by", first=first, scope=scope)
        return told, row["steps"] if row else 0

    async def reset(self, scope: str, *, cause: str, actor: str) -> bool:
        """Let a scope work again; False where it was not stopped."""

        def write(tx: Transaction) -> bool:
            if not tx.run("reset", scope=scope):
                return False
            ledger.append(tx, _entry("reset", scope, cause, actor))
            return True

        was_tripped = await self._store.write(write)
        self._refresh()
        return was_tripped

    def close(self) -> None:
        """Stop polling."""
        if self._poller is not None:
            self._poller.cancel()

    def _refresh(self) -> None:
        epoch = self._store.epoch()
        if epoch != self._epoch:
            self._tripped = {row["scope"]: row["cause"] for row in self._store.all("switches")}
            self.on_change()
            self._epoch = epoch  # after it: where it fails, it is called again

    def close_running(self, scope: str, cause: str) -> None:
        """Close what runs under a scope in this process, without stopping the scope itself: a pause."""
        self._close({scope: cause})

    def close_tripped(self) -> int:
        """Close what runs here under a tripped switch; how many steps. Soon done by itself."""
        closed = self._close(self._tripped) if self._tripped else Counter[str]()
        for scope, steps in closed.items():
            self._acknowledge(scope, steps)
        return closed.total()

    def _close(self, causes: Mapping[str, str]) -> Counter[str]:
        closed, afterwards = Counter[str](), list[Callable[[], None] | None]()
        for step, (scopes, close) in list(self._running.items()):
            scope = next((scope for scope in causes if scope in scopes), None)
            if scope is not None:
                self._running.pop(step, None)
                afterwards.append(close(scope, causes[scope]))
                closed[scope] += 1
        for each in afterwards:  # sockets end before tasks: to end three hundred tasks takes fifty milliseconds
            if each is not None:
                each()
        return closed

    def _acknowledge(self, scope: str, steps: int) -> None:
        """Say that they are closed; their own records follow."""
        said = _entry("closed", scope) | {"process": self._process, "steps": steps}
        self._store.submit(lambda tx: ledger.append(tx, said)).add_done_callback(unwaited)

    async def _poll(self) -> None:
        while self._running:
            try:
                try:
                    self._refresh()
                finally:
                    self.close_tripped()
            except StoreError as error:
                _LOG.warning("the switches could not be read, trying again: %s", error)
                await asyncio.sleep(AWAY_S)
            except Exception:  # noqa: BLE001 - what runs must stay within reach: look again at the next turn
                _LOG.exception("the switches could not be read; trying again")
            await asyncio.sleep(POLL_S)


def check_scope(scope: str) -> str:
    """A scope that a switch may be on, as it was given.

    Raises:
        UsageError: it is none.
    """
    kind, _, rest = scope.partition(":")
    is_whole = "/" in rest.strip("/") if kind in ("key", "workflow", "item") else bool(rest)
    if scope != "all" and not (kind in KINDS and is_whole and len(scope) <= MOST_SCOPE and is_text(scope)):
        raise UsageError(
            f"{scope[:80]!r} is not a scope",
            hint="Write all, tenant:T, key:T/N, workflow:T/W, run:R, item:R/ID or upstream:U",
        )
    return scope


def is_text(name: str) -> bool:
    """False where it holds bytes that a terminal sent and that are no UTF-8: neither store nor ledger can keep it."""
    return name.encode(errors="replace").decode() == name


def tripped_in(tx: Transaction, scopes: Sequence[str]) -> SwitchTripped | None:
    """The same check inside a reservation's transaction, where the row cannot be missed."""
    tripped: dict[str, str] | None = tx.policy.get("tripped")
    if tripped is None:
        tripped = tx.policy["tripped"] = {row["scope"]: row["cause"] for row in tx.all("switches")}
    if tripped:
        for scope, cause in tripped.items():
            if scope in scopes:
                return SwitchTripped(scope, cause)
    return None


def _entry(kind: str, scope: str, cause: str | None = None, actor: str | None = None) -> dict[str, object]:
    run = scope.removeprefix("run:") if scope.startswith("run:") else None
    return {
        "v": 1,
        "kind": kind,
        "scope": scope,
        "cause": cause and cause[:500],
        "actor": actor,
        "run": run,
        "at_us": ledger.now_us(),
    }


def _sum_up(tx: Transaction, trip: Trip, *, is_lost: bool) -> KillReport:
    """The report, in the transaction that appends it; sums are unknown where records are lost."""
    assert trip.position is not None
    ledger.flush(tx)
    acks = tx.all("acknowledgements", first=trip.position, scope=trip.scope)
    row = tx.one("closed_by", first=trip.position, scope=trip.scope)
    assert row is not None
    records, is_priced = int(row["steps"]), row["priced"] == row["steps"] and not is_lost
    report = KillReport(
        trip.scope,
        trip.at_us,
        max(records, sum(each["steps"] for each in acks)),
        records,
        tuple((each["process"], each["steps"], each["at_us"] - trip.at_us) for each in acks),
        tokens_after=int(row["after"]) if row["known_after"] == records and not is_lost else None,
        saved_pico=int(row["bound"]) - int(row["cost"]) if is_priced else None,
        booked_pico=int(row["cost"]) if is_priced else None,
    )
    amounts = {"saved_pico": report.saved_pico, "booked_pico": report.booked_pico}
    fields = _entry("kill", trip.scope) | {
        "trip": trip.position,
        "t0_us": trip.at_us,
        "steps": report.steps,
        "records": report.records,
        "acknowledgements": [list(each) for each in report.acknowledgements[:MOST_TOLD]],
        "tokens_after": report.tokens_after,
        **{name: None if pico is None else leaf_amount(pico) for name, pico in amounts.items()},
    }
    ledger.append(tx, fields)
    return report
