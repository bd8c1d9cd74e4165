"""The lanes: who may call which upstream now, who waits, and who is told at once that waiting is no use.

`Lanes` knows every upstream's `Gate`; a gate has the `Slots` of both lanes, their rates, and what the upstream's own
answers taught it. A call that finds a free place takes it in one synchronous step. Online calls that cannot be let in
before their deadline are refused when they arrive; batch calls wait.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from twolane.config import UpstreamSection
from twolane.domain.records import Lane
from twolane.errors import LaneFull, UpstreamDown
from twolane.kernel.leases import Borrower, Leases
from twolane.kernel.slots import Claim, Permit, Slots, Waiter
from twolane.rules import feedback, lanes, rates
from twolane.rules.feedback import Breaker, Pace, State

__all__ = ["Claim", "Gate", "LaneState", "Lanes", "Limits", "Permit", "Slots"]

LONGEST_LINE: Mapping[Lane, int] = {Lane.ONLINE: 1_000, Lane.BATCH: 10_000}
"""Claims that may wait, for each upstream and lane of a process."""
PROBES = 3
"""Failed probes through which batch waits for an upstream that is left alone; then its run is told."""
LONGEST_CLOSED_S = 60.0
"""A provider that asks to be left alone for longer is asked again after this."""
SHORTEST_SLEEP_S = 0.001


@dataclass(frozen=True, slots=True)
class Limits:
    """What is configured for one upstream."""

    slots: Mapping[Lane, int]
    calls_a_minute: int | None = None
    tokens_a_minute: int | None = None
    lend: int = 0
    is_preempted: bool = False

    @classmethod
    def of(cls, section: UpstreamSection) -> Limits:
        """The limits of `[upstream.NAME]`."""
        return cls(
            {Lane.ONLINE: section.slots.online, Lane.BATCH: section.slots.batch},
            section.rate.requests_per_minute,
            section.rate.tokens_per_minute,
            section.lend,
            section.preempt,
        )


@dataclass(frozen=True, slots=True)
class LaneState:
    """One lane on one upstream as this process sees it, for operators."""

    upstream: str
    lane: Lane
    slots: int
    """Configured, over all processes."""
    held: int
    """Leased by this process."""
    busy: int
    """Calls of the lane in flight here."""
    borrowed: int
    """How many of them are in slots of the other lane."""
    lent: int
    """Slots of this lane that the other one uses."""
    waiting: int
    limit: int
    """How many may be busy here now: what is held, less what the upstream's answers advise against."""
    calls_left: float | None
    """Calls that may leave at once; None without a rate."""
    tokens_left: float | None
    breaker: State


class Gate(Borrower):
    """One upstream: both lanes, their rates, its breaker and its pace."""

    def __init__(
        self, name: str, limits: Limits, *, clock: Callable[[], float], ask: Callable[[Slots], None] | None = None
    ) -> None:
        self.name, self.limits = name, limits
        self.pace, self.breaker = Pace(), Breaker()
        self._clock, self._ask = clock, ask or (lambda slots: None)
        self._closed_until = 0.0
        self._refusals = 0
        self._told: list[rates.Told] = []
        self._told_at = 0.0
        self._is_rated = limits.calls_a_minute is not None or limits.tokens_a_minute is not None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = math.inf
        now = clock()
        calls, tokens = (
            lanes.split(rate, {str(lane): count for lane, count in limits.slots.items()}) if rate is not None else {}
            for rate in (limits.calls_a_minute, limits.tokens_a_minute)
        )
        self.slots = {
            lane: Slots(name, lane, count, calls.get(lane), tokens.get(lane), now)
            for lane, count in limits.slots.items()
        }
        self._online, self._batch = self.slots[Lane.ONLINE], self.slots[Lane.BATCH]

    # ── letting in ──

    def try_admit(self, claim: Claim) -> Permit | None:
        """A permit, where there is a free place and nobody before."""
        slots, now = self.slots[claim.lane], self._clock()
        is_borrowed = self._free(slots, claim, now)
        if is_borrowed is None:
            return None
        slots.found_free(now)
        return self._let_in(slots, claim, now, now, is_borrowed=is_borrowed)

    async def admit(self, claim: Claim) -> Permit:
        """A permit, after waiting for it if there is hope.

        Raises:
            LaneFull: it would not come, or did not come, before the deadline.
            UpstreamDown: the upstream is left alone; batch is told after some failed probes only.
        """
        slots, began = self.slots[claim.lane], self._clock()
        self.expect(claim)
        waiter = Waiter(claim, asyncio.get_running_loop().create_future(), began)
        slots.push(waiter)
        try:
            self._ask(slots)
            self.serve(began)
            async with asyncio.timeout(None if claim.deadline is None else max(0.0, claim.deadline - began)):
                return await waiter.turn
        except BaseException as error:
            self._leave(slots, waiter)
            if isinstance(error, TimeoutError):
                raise self._full(claim, self._clock() - began) from None
            raise

    def expect(self, claim: Claim) -> None:
        """Say no at once to a claim that cannot be let in by its deadline, as far as one can see.

        Raises:
            LaneFull, UpstreamDown: it cannot.
        """
        slots, now = self.slots[claim.lane], self._clock()
        if self._free(slots, claim, now) is not None:
            return
        if claim.deadline is not None and not self.breaker.admits(now):
            raise self._down(claim, now)
        if slots.lent:
            slots.found_free(now)
        wait_s, left_s = self._foreseen(claim, now)
        if wait_s > slots.patience(left_s, now) or len(slots.queue) >= LONGEST_LINE[claim.lane]:
            slots.refused(wait_s, left_s, now)
            raise self._full(claim, 0.0)

    def serve(self, now: float) -> None:
        """Let in whoever can be let in, the online lane first; see that somebody looks again when time alone helps."""
        self._recall()
        wake_at = min(self._serve(slots, now) for slots in (self._online, self._batch))
        if wake_at < self._timer_at:
            self._set_timer(wake_at, now)

    def _serve(self, slots: Slots, now: float) -> float:
        """Serve one line; the instant at which its head can go, `inf` where a release or nobody is waited for."""
        wake_at = math.inf
        while slots.ahead or self._head(slots) is not None:
            first = next(iter(slots.ahead), None)
            if first is not None and first.has_left_line():
                del slots.ahead[first]
                continue
            claim = slots.queue.peek().claim if first is None else first.claim
            is_borrowed = self._place(slots)
            if is_borrowed is None or self.breaker.state is State.HALF_OPEN:
                break
            wait = max(self._closed_until - now, self.breaker.wait(now), slots.rate_wait(claim.tokens, now))
            if wait > 0:
                if slots.tokens is not None:
                    slots.tokens.save(claim.tokens)
                wake_at = now + wait
                break
            if first is not None:
                self._seat(first, now, is_borrowed=is_borrowed)
            else:
                waiter = slots.pop()
                waiter.turn.set_result(self._let_in(slots, claim, now, waiter.began, is_borrowed=is_borrowed))
        while slots.may_go_ahead() and self._head(slots) is not None:
            waiter = slots.pop()
            permit = Permit(self, slots, waiter.claim, waiter.began, 0.0, turn=waiter.turn.get_loop().create_future())
            slots.ahead[permit] = None
            waiter.turn.set_result(permit)
        return wake_at

    def _head(self, slots: Slots) -> Waiter | None:
        """Whose turn it is in the line."""
        while slots.queue:
            head = slots.queue.peek()
            if not head.turn.done():
                return head
            slots.leave(head)  # it was cancelled, and its task has not run since
        return None

    def _seat(self, permit: Permit, now: float, *, is_borrowed: bool) -> None:
        """One that was let in ahead gets its slot."""
        assert permit.turn is not None
        del permit.slots.ahead[permit]
        self._begin(permit, now, permit.began, is_borrowed=is_borrowed)
        permit.turn.set_result(None)

    def _free(self, slots: Slots, claim: Claim, now: float) -> bool | None:
        """Where a call could go at once; see `_place`."""
        if slots.queue or slots.ahead or now < self._closed_until or not self.breaker.admits(now):
            return None
        is_borrowed = self._place(slots)
        return None if is_borrowed is None or slots.rate_wait(claim.tokens, now) > 0 else is_borrowed

    def _place(self, slots: Slots) -> bool | None:
        """False: in a slot of its own lane; True: in a borrowed one; None: nowhere."""
        if slots.occupied() < self.pace.allowed(slots.count):
            return False
        online = self._online
        may_borrow = (
            slots is self._batch
            and online.lent < self.limits.lend
            and not online.queue
            and online.occupied() < self.pace.allowed(online.count)
        )
        return True if may_borrow else None

    def _let_in(self, slots: Slots, claim: Claim, now: float, since: float, *, is_borrowed: bool) -> Permit:
        permit = Permit(self, slots, claim, now, 0.0)
        self._begin(permit, now, since, is_borrowed=is_borrowed)
        return permit

    def _begin(self, permit: Permit, now: float, since: float, *, is_borrowed: bool) -> None:
        slots = permit.slots
        permit.began, permit.waited_s = now, now - since
        permit.is_borrowed, permit.is_probe = is_borrowed, self.breaker.begin()
        slots.busy += 1
        slots.out[permit] = None
        slots.take_rate(permit.claim.tokens, now)
        if is_borrowed:
            slots.borrowed += 1
            self._online.lent += 1
        elif self.limits.lend and slots is self._online:
            slots.note_demand(now)

    def _leave(self, slots: Slots, waiter: Waiter) -> None:
        turn = waiter.turn
        if turn.done() and not turn.cancelled() and turn.exception() is None:
            turn.result().release(has_left=False)  # it came at the moment of leaving
        else:
            slots.leave(waiter)

    def _recall(self) -> None:
        """Take lent slots back for those who wait online, the youngest calls first: they lose least."""
        online = self._online
        if not (self.limits.is_preempted and online.queue and online.lent) or self._place(online) is not None:
            return
        self.recall(len(online.queue))

    def recall(self, count: int) -> None:
        """See that `count` lent slots are on their way back, where their calls can be interrupted."""
        if not self.limits.is_preempted:
            return
        lent = [permit for permit in self._batch.out if permit.is_borrowed]
        count -= sum(permit.is_recalled for permit in lent)
        for permit in reversed(lent):
            if count > 0 and not permit.is_recalled and permit.claim.preempt is not None:
                permit.is_recalled = True
                count -= 1
                permit.claim.preempt()

    def loan(self, slots: Slots) -> int:
        """How many slots of the online lane batch uses or would borrow."""
        if slots is not self._online or not self.limits.lend:
            return 0
        is_full = self._batch.occupied() >= self._batch.count > 0
        return min(self.limits.lend, slots.lent + (self._batch.waiting() if is_full else 0))

    def changed(self) -> None:
        """Slots came from, or went to, other processes."""
        self.serve(self._clock())

    # ── foresight ──

    def _foreseen(self, claim: Claim, now: float) -> tuple[float, float]:
        """How long it would wait, and how long it can; (0, inf) for whoever waits as long as it takes."""
        slots = self.slots[claim.lane]
        is_guess = slots.held_s is None and slots.other_held_s is None
        if claim.deadline is None:
            return 0.0, math.inf
        left_s = claim.deadline - now
        # With every slot lent from the start nobody has been answered: refusing on a guess would keep it a guess.
        return (0.0 if is_guess and slots.lent else self._predict(claim, now)), left_s

    def _predict(self, claim: Claim, now: float) -> float:
        """Seconds until it would be let in."""
        slots = self.slots[claim.lane]
        place = slots.place(claim)
        closed_s = max(0.0, self._closed_until - now)
        limit = self.pace.allowed(slots.count)
        if slots.count == 0:  # nothing is leased yet, and a lease takes milliseconds
            return max(closed_s, place // slots.total * slots.expected_s())
        lent = [permit for permit in self._batch.out if permit.is_borrowed] if slots is self._online else []
        recallable = sum(permit.claim.preempt is not None for permit in lent) if self.limits.is_preempted else 0
        ages = [now - permit.began for permit in lent]
        slot_s = slots.slot_wait(place, limit, now, recallable=recallable, lent=ages)
        return max(closed_s, slot_s, slots.rate_wait(claim.tokens, now, before=place))

    def _full(self, claim: Claim, waited_s: float) -> LaneFull:
        """Those refused in the same moment are told different times, spread over as long again as the first has to
        wait: sent back together they would only be refused together."""
        now, slots = self._clock(), self.slots[claim.lane]
        if not self.breaker.admits(now):
            return self._down(claim, now, waited_s)
        wait_s = self._predict(claim, now)
        wait_s = wait_s if wait_s < math.inf else slots.expected_s()
        self._refusals += 1
        spread = self._refusals * 0.618034 % 1.0  # the golden section: whatever their number, evenly
        retry_after_s = max(wait_s, slots.expected_s() / lanes.OVERDUE) * (1.0 + spread)
        return LaneFull(claim.lane, self.name, waited_s=waited_s, retry_after_s=retry_after_s)

    def _down(self, claim: Claim, now: float, waited_s: float = 0.0) -> UpstreamDown:
        retry_after_s = max(SHORTEST_SLEEP_S, self.breaker.wait(now))
        return UpstreamDown(claim.lane, self.name, waited_s=waited_s, retry_after_s=retry_after_s)

    # ── what permits tell ──

    def answered(self, permit: Permit, headers: Mapping[str, str], ttft_s: float) -> None:
        """See `Permit.answered`."""
        now = self._clock()
        if permit.is_probe:
            self.breaker.succeeded()
        before = self.pace.share
        slots = sum(slots.count for slots in self.slots.values())
        self.pace.answered(ttft_s, slots=slots, began=permit.began, now=now)
        self._heard(headers, now, is_changed=self.pace.share != before or permit.is_probe)

    def failed(
        self, permit: Permit, http_status: int | None, retry_after_s: float | None, headers: Mapping[str, str]
    ) -> None:
        """See `Permit.failed`."""
        now = self._clock()
        if feedback.is_congestion(http_status):
            self.pace.refused(began=permit.began, now=now)
            delay_s = retry_after_s if retry_after_s is not None else rates.retry_after(headers, time.time())
            self._close_for(delay_s or 0.0, now)
        if feedback.is_fault(http_status):
            if self.breaker.failed(now, is_probe=permit.is_probe, jitter=random.random()):
                self._turn_away(now)
        elif permit.is_probe:
            self.breaker.succeeded()  # it said no, but it is there
        self._heard(headers, now, is_changed=True)

    def released(self, permit: Permit, tokens: int | None, *, has_left: bool) -> None:
        """See `Permit.release`."""
        slots, now = permit.slots, self._clock()
        if permit not in slots.out:  # it left before it had its slot
            slots.ahead.pop(permit, None)
            self._ask(slots)
            self.serve(now)
            return
        slots.busy -= 1
        del slots.out[permit]
        if permit.is_borrowed:
            self._give_back()
            self._ask(self._online)
        elif slots is self._batch and slots.borrowed:
            self._move_over()
        slots.correct_rate(permit.claim.tokens, tokens, now, has_left=has_left)
        if permit.is_answered and not permit.has_failed:
            held_s = now - permit.began
            slots.held_s = held_s if slots.held_s is None else slots.held_s + (held_s - slots.held_s) / 8
            other = self._batch if slots is self._online else self._online
            other.other_held_s = slots.held_s
            if self.breaker.state is State.CLOSED:
                self.breaker.succeeded()
        elif permit.is_probe and not permit.has_failed:
            self.breaker.left()
        self._ask(slots)  # before anybody is served: another process may be owed this slot
        if self._online.queue or self._batch.waiting():
            self.serve(now)

    def _give_back(self) -> None:
        self._batch.borrowed -= 1
        self._online.lent -= 1

    def _move_over(self) -> None:
        """An own slot of batch came free: a call in a borrowed one counts as being in it, and that one is online's."""
        for permit in self._batch.out:
            if permit.is_borrowed and not permit.is_recalled:
                permit.is_borrowed = False
                self._give_back()
                return

    def _heard(self, headers: Mapping[str, str], now: float, *, is_changed: bool) -> None:
        if headers:
            told = rates.read_limits(headers, time.time())
            if told:
                self._told, self._told_at, self._is_rated = told, now, True
                self._close_for(rates.closed_s(told), now)
        if is_changed:
            for slots in self.slots.values():
                slots.set_pace(self.pace.share, now)
            self.serve(now)

    def _close_for(self, delay_s: float, now: float) -> None:
        self._closed_until = max(self._closed_until, now + min(delay_s, LONGEST_CLOSED_S))

    def _turn_away(self, now: float) -> None:
        """The upstream is left alone from now on: nobody online waits for it, and batch not for ever."""
        for slots in self.slots.values():
            if slots is self._batch and self.breaker.pauses <= PROBES:
                continue
            waiting: list[Permit | Waiter] = list(slots.ahead)
            slots.ahead.clear()
            while slots.queue:
                waiting.append(slots.pop())
            for each in waiting:
                if each.turn is not None and not each.turn.done():
                    each.turn.set_exception(self._down(each.claim, now, now - each.began))

    def allowances(self, lane: Lane) -> Sequence[rates.Told]:
        """See `Lanes.allowances`."""
        if not self._is_rated:
            return ()
        slots, now = self.slots[lane], self._clock()
        configured = [
            rates.Told(what, rate, max(0, math.floor(bucket.level(now))), bucket.full_s(now))
            for what, rate, bucket in (
                ("requests", slots.calls_a_minute, slots.calls),
                ("tokens", slots.tokens_a_minute, slots.tokens),
            )
            if bucket is not None
        ]
        known = {each.what for each in configured}
        told = (rates.aged(each, now - self._told_at) for each in self._told if each.what not in known)
        return configured + rates.tightest(each for each in told if each is not None)

    # ── time ──

    def _set_timer(self, at: float, now: float) -> None:
        self.close()
        self._timer_at = at
        delay_s = max(SHORTEST_SLEEP_S, at - now)
        self._timer = asyncio.get_running_loop().call_later(delay_s, self._woken)

    def _woken(self) -> None:
        self._timer, self._timer_at = None, math.inf
        self.serve(self._clock())

    def close(self) -> None:
        """Look no more by itself."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._timer_at = None, math.inf

    def state(self) -> list[LaneState]:
        """Both lanes."""
        now = self._clock()
        return [
            LaneState(
                upstream=self.name,
                lane=lane,
                slots=slots.total,
                held=slots.count,
                busy=slots.busy,
                borrowed=slots.borrowed,
                lent=slots.lent,
                waiting=slots.waiting(),
                limit=self.pace.allowed(slots.count),
                calls_left=slots.calls.level(now) if slots.calls else None,
                tokens_left=slots.tokens.level(now) if slots.tokens else None,
                breaker=self.breaker.state,
            )
            for lane, slots in self.slots.items()
        ]


class Lanes:
    """Every upstream's gate. Without leases this process holds all slots there are."""

    def __init__(
        self,
        limits: Mapping[str, Limits],
        *,
        leases: Leases | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._leases = leases
        ask = leases.ask if leases is not None else None
        self._gates = {name: Gate(name, each, clock=clock, ask=ask) for name, each in limits.items()}
        for gate in self._gates.values():
            for lane, slots in gate.slots.items():
                if leases is None:
                    slots.resize(slots.total, clock(), is_fresh=True)
                else:
                    leases.add(slots, gate, lend=gate.limits.lend if lane is Lane.ONLINE else 0)

    async def hold(self, lane: Lane) -> None:
        """Lease this lane's slots on every upstream now, so that no call has to wait for the store."""
        if self._leases is not None:
            await self._leases.hold(lane)

    def try_admit(self, upstream: str, claim: Claim) -> Permit | None:
        """A permit at once, None where none is free. A few microseconds: no await, no task, no timer."""
        return self._gates[upstream].try_admit(claim)

    async def admit(self, upstream: str, claim: Claim) -> Permit:
        """A permit, after waiting for it if there is hope; end it with `release`.

        Raises:
            LaneFull: it would not come, or did not come, before the claim's deadline.
            UpstreamDown: the upstream is left alone for a while.
        """
        gate = self._gates[upstream]
        return gate.try_admit(claim) or await gate.admit(claim)

    def expect(self, upstream: str, claim: Claim) -> None:
        """Say no at once to what cannot be let in by its deadline; nothing is taken.

        Raises:
            LaneFull, UpstreamDown: see `admit`.
        """
        self._gates[upstream].expect(claim)

    def counts_tokens(self, upstream: str) -> bool:
        """True where a claim needs to say how many tokens it will use."""
        return self._gates[upstream].limits.tokens_a_minute is not None

    def allowances(self, upstream: str, lane: Lane) -> Sequence[rates.Told]:
        """What is known of the rates a lane has on an upstream, at most one of requests and one of tokens: those
        configured for it, with what may leave from this process at once; else what the upstream last told of its own.
        Empty where nothing is known, for the price of a look-up."""
        return self._gates[upstream].allowances(lane)

    def slots(self, upstream: str, lane: Lane) -> Slots:
        """The slots of `lane` on `upstream`."""
        return self._gates[upstream].slots[lane]

    def state(self) -> list[LaneState]:
        """Every lane of every upstream, as this process sees it."""
        return [state for gate in self._gates.values() for state in gate.state()]

    def close(self) -> None:
        """Stop every timer and give back what was leased."""
        for gate in self._gates.values():
            gate.close()
        if self._leases is not None:
            self._leases.close()
