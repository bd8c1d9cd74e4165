"""The slots of one lane on one upstream, with its line and its rates; and the permit to use one of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from twolane.domain.records import Lane
from twolane.rules.lanes import FairQueue, slot_wait
from twolane.rules.rates import Bucket

SURE = 0.95
"""The part of a deadline within which a place must be foreseen: what is expected at its very end comes too late."""
STANDING, LEAST_STANDING_S, CALM_S = 8, 0.05, 5.0
"""Once a line stands, newcomers may wait this part of a call's usual time; it does until nobody was refused so long."""

FIRST_HELD_S = 1.0
"""How long a call is expected to hold its slot before any has ended."""
SPARE_S, SPARE = 10.0, 1
"""Of slots that may be lent, a process keeps as many as its calls needed at once within this time or twice it, and so
many more: one that another process has borrowed comes back only after a look and a commit."""
AHEAD = 16
"""Of every so many slots in batch, one more call is let in ahead of its slot, to hold its money while it waits."""


@dataclass(frozen=True, slots=True)
class Claim:
    """What a call asks of its lane.

    `tokens` is what it is expected to use, 0 where the upstream's tokens are not counted. `deadline` is an instant of
    the monotonic clock, None for whoever waits as long as it takes. `preempt` is called, once and without an await,
    when a borrowed slot is wanted back; None: this call cannot be interrupted.
    """

    lane: Lane
    tenant: str
    key: str = ""
    run: str = ""
    tokens: int = 0
    deadline: float | None = None
    preempt: Callable[[], None] | None = None

    def within(self) -> str:
        """Among whom its tenant's turns are shared: runs in batch, keys online."""
        return self.run if self.lane is Lane.BATCH else self.key


@dataclass(eq=False, slots=True)
class Waiter:
    """A claim in line; its `turn` brings the permit."""

    claim: Claim
    turn: asyncio.Future[Permit]
    began: float


class Owner(Protocol):
    """Who hears what became of a permit."""

    def answered(self, permit: Permit, headers: Mapping[str, str], ttft_s: float) -> None:
        """It got its first token."""

    def failed(
        self, permit: Permit, http_status: int | None, retry_after_s: float | None, headers: Mapping[str, str]
    ) -> None:
        """Its upstream failed."""

    def released(self, permit: Permit, tokens: int | None, *, has_left: bool) -> None:
        """It is over."""


@dataclass(eq=False, slots=True)
class Permit:
    """A slot in use, or the next to be free. Whoever has it says what happened, and ends it exactly once with
    `release`."""

    owner: Owner
    slots: Slots
    claim: Claim
    began: float
    waited_s: float
    is_borrowed: bool = False
    """A batch call in an online slot."""
    turn: asyncio.Future[None] | None = None
    """Done once it has its slot; None: it had it from the start."""
    is_probe: bool = False
    is_recalled: bool = False
    is_answered: bool = False
    has_failed: bool = False
    is_over: bool = False

    async def slot(self) -> None:
        """Wait until it has its slot: nothing may leave before.

        Raises:
            LaneFull, UpstreamDown: see `Gate.admit`.
        """
        if self.turn is not None:
            await self.turn

    def has_left_line(self) -> bool:
        """True where it waited for its slot, and nobody waits any more."""
        return self.turn is not None and self.turn.done()

    def answered(self, headers: Mapping[str, str], ttft_s: float) -> None:
        """The first token came `ttft_s` seconds after the call left; `headers` in lower case."""
        if not self.is_over:
            self.is_answered = True
            self.owner.answered(self, headers, ttft_s)

    def failed(
        self,
        http_status: int | None,
        *,
        retry_after_s: float | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """The upstream failed, before or during its answer; `http_status` None where it gave none."""
        if not self.is_over:
            self.has_failed = True
            self.owner.failed(self, http_status, retry_after_s, headers or {})

    def release(self, *, tokens: int | None = None, has_left: bool = True) -> None:
        """The call is over and used `tokens` (None: what was expected). One that never left the house used nothing.
        Only the first time counts."""
        if not self.is_over:
            self.is_over = True
            self.owner.released(self, tokens, has_left=has_left)


@dataclass(eq=False)
class Slots:
    """One lane on one upstream, as far as this process holds it."""

    upstream: str
    lane: Lane
    total: int
    """All that are configured, over every process."""
    calls_a_minute: int | None
    tokens_a_minute: int | None
    now: float
    count: int = 0
    """How many this process holds."""
    busy: int = 0
    """Calls of this lane in flight here, those in borrowed slots included."""
    borrowed: int = 0
    """How many of them are in slots of the other lane."""
    lent: int = 0
    """How many slots of this lane the other one uses."""
    held_s: float | None = None
    """How long a slot is held, smoothed over the calls that were answered; None before the first."""
    other_held_s: float | None = None
    """The same of the upstream's other lane."""
    queue: FairQueue[Waiter] = field(default_factory=FairQueue)
    ahead: dict[Permit, None] = field(default_factory=dict)
    """Those let in ahead of their slot, in the order in which they get one."""
    out: dict[Permit, None] = field(default_factory=dict)
    """The permits in use, oldest first."""
    queued_tokens: int = 0
    contended_since: float = 0.0
    """When a newcomer last found a free place in calm times."""
    refused_at: float = float("-inf")
    """When somebody was last refused because too much was asked."""
    calls: Bucket | None = None
    tokens: Bucket | None = None
    _peaks: tuple[float, int, int] = (float("-inf"), 0, 0)
    """Since when, and what the highest demand was since then and in the time before."""

    def __post_init__(self) -> None:
        self.contended_since = self.now
        if self.calls_a_minute is not None:
            self.total = min(self.total, self.calls_a_minute)  # a slot with less than one call a minute is none
            self.calls = Bucket(self.now, is_counted=True)
        if self.tokens_a_minute is not None:
            self.tokens = Bucket(self.now, is_counted=False)

    def resize(self, count: int, now: float, *, is_fresh: bool = False) -> None:
        """Hold `count` slots from now on, and the part of the rates that goes with them."""
        self.count = count
        for bucket, rate in self._rates():
            bucket.resize(rate * count // self.total, now, is_fresh=is_fresh)

    def occupied(self) -> int:
        """How many of the slots held here are in use, by whichever lane."""
        return self.busy - self.borrowed + self.lent

    def demand(self) -> int:
        """How many slots this lane's own calls could use here now."""
        return min(self.total, self.busy - self.borrowed + self.waiting())

    def note_demand(self, now: float) -> None:
        """It may have become higher."""
        demand, (since, peak, before) = self.demand(), self._peaks
        if now - since > SPARE_S:
            self._peaks = (now, demand, peak if now - since <= 2 * SPARE_S else 0)
        elif demand > peak:
            self._peaks = (since, demand, before)

    def kept(self, now: float) -> int:
        """How many slots its calls may soon need at once, as far as the last seconds tell."""
        since, peak, before = self._peaks
        peak = max(peak, before) if now - since <= SPARE_S else peak if now - since <= 2 * SPARE_S else 0
        return min(self.total, peak + SPARE) if peak else 0

    def waiting(self) -> int:
        """How many calls have no slot yet."""
        return len(self.queue) + len(self.ahead)

    def may_go_ahead(self) -> bool:
        """True where one more call may prepare itself. Only batch ones: online money is held in memory."""
        return self.lane is Lane.BATCH and len(self.ahead) * AHEAD < self.count

    def expected_s(self) -> float:
        """How long a slot is held; before a call of this lane has ended, as long as one of the other lane."""
        known = self.held_s if self.held_s is not None else self.other_held_s
        return FIRST_HELD_S if known is None else known

    # ── the line ──

    def push(self, waiter: Waiter) -> None:
        """Join the line."""
        claim = waiter.claim
        self.queue.push(claim.tenant, claim.within(), waiter)
        self.queued_tokens += claim.tokens

    def pop(self) -> Waiter:
        """Take the one whose turn it is."""
        waiter = self.queue.pop()
        self.queued_tokens -= waiter.claim.tokens
        return waiter

    def leave(self, waiter: Waiter) -> None:
        """Leave the line, where it still stands in it."""
        if self.queue.remove(waiter.claim.tenant, waiter.claim.within(), waiter):
            self.queued_tokens -= waiter.claim.tokens
            if self.tokens is not None:
                self.tokens.save(0)  # it may have been the one for whom they were saved

    def found_free(self, now: float) -> None:
        """A newcomer found a place, or would have, had none been lent."""
        if now - self.refused_at > CALM_S:
            self.contended_since = now

    def patience(self, left_s: float, now: float) -> float:
        """How long a newcomer with `left_s` to its deadline may wait for its turn.

        A line stands where nobody found a free place for as long as that: it is no burst, more is asked than can be
        given, and whoever joined would wait to the end of its deadline for nothing, since no more are served for it.
        Until it is calm again only those are let in who are served soon.
        """
        if now - self.contended_since <= left_s:
            return SURE * left_s
        return min(SURE * left_s, max(LEAST_STANDING_S, self.expected_s() / STANDING))

    def refused(self, wait_s: float, left_s: float, now: float) -> None:
        """A newcomer was refused. It tells of too much being asked where its wait was longer than a call, or where a
        standing line was the reason; a deadline that is shorter than any wait tells nothing."""
        if wait_s > self.expected_s() or wait_s <= SURE * left_s:
            self.refused_at = now

    def place(self, claim: Claim) -> int:
        """How many would be before it."""
        return self.queue.place(claim.tenant, claim.within()) if self.queue else 0

    # ── rates ──

    def _rates(self) -> list[tuple[Bucket, int]]:
        pairs = ((self.calls, self.calls_a_minute), (self.tokens, self.tokens_a_minute))
        return [(bucket, rate) for bucket, rate in pairs if bucket is not None and rate is not None]

    def set_pace(self, share: float, now: float) -> None:
        """Earn this part of the rates."""
        for bucket, _ in self._rates():
            bucket.set_pace(share, now)

    def rate_wait(self, tokens: int, now: float, *, before: int = 0) -> float:
        """Seconds until the rates let a call of `tokens` pass that `before` others precede."""
        wait = 0.0
        if self.calls is not None:
            wait = self.calls.wait(1, now, before=before)
        if self.tokens is not None:
            mean = self.queued_tokens / len(self.queue) if self.queue else 0.0
            wait = max(wait, self.tokens.wait(tokens, now, before=before * mean))
        return wait

    def take_rate(self, tokens: int, now: float) -> None:
        """A call leaves."""
        if self.calls is not None:
            self.calls.take(1, now)
        if self.tokens is not None:
            self.tokens.take(tokens, now)

    def correct_rate(self, expected: int, tokens: int | None, now: float, *, has_left: bool) -> None:
        """A call ended that was `expected` to use so many tokens."""
        if self.calls is not None and not has_left:
            self.calls.correct(1, now)
        used = tokens if has_left else 0
        if self.tokens is not None and used is not None:
            self.tokens.correct(min(expected, self.tokens.part) - used, now)

    def slot_wait(self, place: int, limit: int, now: float, *, recallable: int = 0, lent: list[float]) -> float:
        """Seconds until a slot is free for the one that `place` others precede. `lent` are the ages of the calls in
        lent slots; `recallable` of these slots come back as soon as they are asked for."""
        expected_s = self.expected_s()
        own = [now - permit.began for permit in self.out if not permit.is_borrowed]
        ages = [expected_s] * recallable + sorted(lent)[recallable:] + own
        return slot_wait(place, limit=limit, ages=ages, hold_s=expected_s)
