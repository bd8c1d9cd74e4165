"""Slots leased from the store, so that many processes together stay within what an upstream allows.

A process holds slots in `lane_member` and uses them without asking again: no request writes to the store. It keeps
idle ones while nobody wants them; one that lacks some says so in its row, the others see it when they poll, and give
back at once what they have beyond their fair share. A share of the rates goes with the slots.

Nothing is counted twice: what is given back is taken out of use before the store hears of it, and what is granted comes
into use after it is on disk.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from twolane.errors import StoreError
from twolane.kernel import ledger
from twolane.kernel.slots import Slots
from twolane.rules import lanes
from twolane.rules.lanes import Member
from twolane.rules.rates import WINDOW_S
from twolane.store import AWAY_S, Row, Store, Transaction, unwaited

POLL_S = 0.02
"""How often a process that holds or wants slots looks whether others changed theirs."""
ALONE_S = 0.1
"""The same while nobody else has a part in its lanes: fifty looks a second were a hundredth of a processor."""
DEAD_S = 0.25
"""How often one that lacks slots looks for holders that died."""

_LOG = logging.getLogger("twolane.kernel")


class Borrower:
    """What a lease needs to know of the gate whose slots it is about."""

    def changed(self) -> None:
        """Its slots are more or fewer now."""

    def loan(self, slots: Slots) -> int:
        """How many slots of this lane its batch calls use or would borrow."""
        raise NotImplementedError

    def recall(self, count: int) -> None:
        """So many borrowed slots are wanted back."""


@dataclass(eq=False)
class Lease:
    """This process's part of one lane."""

    slots: Slots
    gate: Borrower
    lend: int
    """How many idle slots of this lane may be borrowed, over all processes."""
    wants: int = 0
    loan: int = 0
    """What our row says we want."""
    least: int = 0
    """Want at least so many, whatever the demand: a gateway before it opens."""
    owed: int = 0
    """What others lack and we hold beyond our share, at the last look."""
    unreported: int = 0
    """Given back here, and not yet in the store."""
    is_writing: bool = False
    turn: int = 0
    others: list[Member] = field(default_factory=list)
    """The other members at the last look."""

    def demand(self) -> int:
        """How many slots its own calls could use; of a lane that lends, also what they may soon."""
        kept = self.slots.kept(time.monotonic()) if self.lend else 0
        return max(self.least, self.slots.demand(), kept)

    def idle(self) -> int:
        """Held and not in use."""
        return max(0, self.slots.count - self.slots.occupied())

    def lacks(self) -> bool:
        """True where fewer are held here than our row says we want."""
        return self.wants + self.loan > self.slots.count

    def is_due(self) -> bool:
        """True where the store should hear of a change."""
        slots = self.slots
        if self.unreported or (self.owed and self.idle()):
            return True
        wants, loan = self.demand(), self.gate.loan(slots)
        if wants + loan > slots.count and slots.count < slots.total:
            return wants > self.wants or loan > self.loan
        return self.lacks()  # though no more: our row says too much


class Leases:
    """The leases of one process."""

    def __init__(self, store: Store, *, owner: str, is_alive: Callable[[str], bool]) -> None:
        self._store, self._owner, self._is_alive = store, owner, is_alive
        self._leases: dict[tuple[str, str], Lease] = {}
        self._version = -1
        self._swept = float("-inf")
        self._poller: asyncio.Task[None] | None = None
        self._granted = asyncio.Event()
        self._is_closed = False

    def add(self, slots: Slots, gate: Borrower, *, lend: int) -> None:
        """Lease this lane from now on."""
        self._leases[slots.upstream, str(slots.lane)] = Lease(slots, gate, lend)

    def ask(self, slots: Slots) -> None:
        """The demand of this lane changed: tell the store, if that changes what we should hold."""
        lease = self._leases[slots.upstream, str(slots.lane)]
        if not lease.is_writing and lease.is_due() and not self._is_closed:
            self._write(lease)

    async def hold(self, lane: str) -> None:
        """Hold slots of this lane on every upstream before the first call asks: all there are, where nobody has any.
        Where others have them all, it goes on within a second without."""
        waited = [lease for (_, each), lease in self._leases.items() if each == lane and not lease.slots.count]
        for lease in waited:
            lease.least = 1
            self.ask(lease.slots)
        try:
            async with asyncio.timeout(1.0):
                while not all(lease.slots.count for lease in waited):
                    self._granted.clear()
                    await self._granted.wait()
        except TimeoutError:
            _LOG.warning("other processes hold every %s slot of an upstream; calls wait for them", lane)
        for lease in waited:
            lease.least = 0

    def close(self) -> None:
        """Leave every lane: one message to the writer."""
        self._is_closed = True
        if self._poller is None:
            return
        self._poller.cancel()
        owner, at_us = self._owner, ledger.now_us()
        lanes_ = list(self._leases)

        def work(tx: Transaction) -> None:
            for upstream, lane in lanes_:
                if tx.run("drop_member", upstream=upstream, lane=lane, owner=owner):
                    tx.run("set_lane_left", upstream=upstream, lane=lane, at_us=at_us)

        self._store.submit(work).add_done_callback(unwaited)

    # ── writing ──

    def _write(self, lease: Lease) -> None:
        """Give back what is owed and idle, say what is wanted, and take what is free, in one transaction."""
        slots = lease.slots
        back = min(lease.owed, lease.idle())
        if back:
            slots.resize(slots.count - back, time.monotonic())
            lease.owed -= back
        lease.unreported += back
        back, lease.wants, lease.loan = lease.unreported, lease.demand(), lease.gate.loan(slots)
        lease.is_writing = True
        dead = self._dead() if lease.lacks() else []
        change = _Change(
            slots.upstream, str(slots.lane), self._owner, slots.total, lease.lend, lease.wants, lease.loan, back, dead,
            ledger.now_us(),
        )  # fmt: skip
        self._store.submit(change.work).add_done_callback(lambda done: self._written(lease, back, done))
        if self._poller is None:
            self._poller = asyncio.get_running_loop().create_task(self._poll())

    def _written(self, lease: Lease, back: int, done: asyncio.Future[_Held]) -> None:
        lease.is_writing = False
        if done.cancelled() or done.exception() is not None:
            lease.wants = lease.loan = 0  # nothing of it is in the store: the next look tries again
            _LOG.warning("slots of %s could not be leased: %s", lease.slots.upstream, done)
            return
        lease.unreported -= back
        self._hold(lease, done.result())
        self.ask(lease.slots)

    def _hold(self, lease: Lease, held: _Held) -> None:
        count = held.count - lease.unreported
        if count > lease.slots.count:
            lease.slots.resize(count, time.monotonic(), is_fresh=held.is_fresh)
            self._granted.set()
            lease.gate.changed()

    # ── looking ──

    async def _poll(self) -> None:
        while True:
            await asyncio.sleep(ALONE_S if self._is_alone() else POLL_S)
            try:
                self._look()
            except StoreError as error:
                _LOG.warning("the leases could not be read, trying again: %s", error)
                await asyncio.sleep(AWAY_S)
            except Exception:  # noqa: BLE001 - what is held stays in use, and what others want is seen at the next turn
                _LOG.exception("the leases could not be read; trying again")

    def _is_alone(self) -> bool:
        """True where nobody else was there at the last look, and nothing is lacking."""
        return not any(lease.others or lease.lacks() for lease in self._leases.values())

    def _look(self) -> None:
        version, now = self._store.version(), time.monotonic()
        is_lacking = any(lease.lacks() for lease in self._leases.values())
        if is_lacking and now - self._swept > DEAD_S and self._dead():
            for lease in self._leases.values():
                if not lease.is_writing and lease.lacks():
                    self._write(lease)
        if version != self._version:
            self._version = version
            rows: dict[tuple[str, str], list[Row]] = {}
            for row in self._store.all("lane_members"):
                rows.setdefault((row["upstream"], row["lane"]), []).append(row)
            for key, lease in self._leases.items():
                self._take_in(lease, [_member(row) for row in rows.get(key, [])])
        for lease in self._leases.values():
            if lease.is_writing:
                continue
            self._compare(lease)
            if lease.is_due():
                self._write(lease)

    def _take_in(self, lease: Lease, members: list[Member]) -> None:
        """Read the rows of a lane: others may have given us slots."""
        lease.others = [member for member in members if member.owner != self._owner]
        mine = next((member for member in members if member.owner == self._owner), None)
        if mine is not None and not lease.is_writing:
            lease.turn = mine.turn
            self._hold(lease, _Held(mine.holds, is_fresh=False))

    def _compare(self, lease: Lease) -> None:
        """What we should give back, as our own demand is now, while others lack some."""
        lease.owed = 0
        if not lease.slots.count or not any(member.lacks() for member in lease.others):
            return
        me = Member(self._owner, lease.slots.count, lease.demand(), lease.gate.loan(lease.slots), lease.turn)
        lease.owed = lanes.owed(self._owner, lease.slots.total, [*lease.others, me], lend=lease.lend)
        if lease.owed > lease.idle():
            lease.gate.recall(lease.owed - lease.idle())

    def _dead(self) -> list[str]:
        """Members whose process is gone."""
        self._swept = time.monotonic()
        owners = {row["owner"] for row in self._store.all("lane_members")}
        return [owner for owner in owners if owner != self._owner and not self._is_alive(owner)]


@dataclass(frozen=True, slots=True)
class _Held:
    count: int
    is_fresh: bool
    """Nobody had a share of this lane within the last minute."""


@dataclass(frozen=True, slots=True)
class _Change:
    """One change of a lane's members, as a work for the store."""

    upstream: str
    lane: str
    owner: str
    total: int
    lend: int
    wants: int
    loan: int
    back: int
    dead: Sequence[str]
    now_us: int

    def work(self, tx: Transaction) -> _Held:
        where = {"upstream": self.upstream, "lane": self.lane}
        tx.run("change_member", **where, owner=self.owner, wants=self.wants, loan=self.loan, back=self.back)
        for owner in self.dead:
            tx.run("bury", name=owner)
        gone = sum(tx.run("drop_member", **where, owner=owner) for owner in self.dead)
        if self.back or gone:
            tx.run("set_lane_left", **where, at_us=self.now_us)
        members = [_member(row) for row in tx.all("members_of_lane", **where)]
        left = tx.one("lane_left", **where)
        is_fresh = len(members) == 1 and (left is None or self.now_us - left["at_us"] > WINDOW_S * 1_000_000)
        turn = max(member.turn for member in members)
        for owner, more in lanes.grants(self.total, members, asking=self.owner, lend=self.lend).items():
            turn += 1
            tx.run("grant_slots", **where, owner=owner, more=more, turn=turn)
        holds = next(row["holds"] for row in tx.all("members_of_lane", **where) if row["owner"] == self.owner)
        return _Held(holds, is_fresh)


def _member(row: Row) -> Member:
    return Member(row["owner"], row["holds"], row["wants"], row["loan"], row["turn"])
