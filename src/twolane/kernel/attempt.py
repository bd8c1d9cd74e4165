"""The attempts of one step: retries, then fallbacks, until one answers; and the record of each that left the house."""

from __future__ import annotations

import asyncio
import dataclasses
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from types import TracebackType
from typing import TypeVar

from twolane.domain.completion import EventError
from twolane.domain.records import Lane, ModelCall, Status, Usage
from twolane.errors import BudgetExceeded, Killed, LaneFull, Runaway, SwitchTripped, Unpriced, UpstreamError
from twolane.kernel import ledger, treasury
from twolane.kernel.answer import EXHAUSTED, Answer, Restartable, Settled
from twolane.kernel.clock import Clock
from twolane.kernel.document import meter_for
from twolane.kernel.guards import Guards
from twolane.kernel.lanes import Claim, Lanes, Permit
from twolane.kernel.meter import Meter
from twolane.kernel.request import Request, Upstream, check_allowance, identity, new_id, sized
from twolane.kernel.switches import Switches
from twolane.kernel.treasury import Hold, Treasury
from twolane.kernel.watch import Watch
from twolane.models import ModelStream
from twolane.rules import economics, pricing
from twolane.store import Store, Transaction, unwaited
from twolane.telemetry import Telemetry

E = TypeVar("E", bound=BaseException)
T = TypeVar("T")

FIRST_BACKOFF_S = 0.25


@dataclass(frozen=True, slots=True)
class House:
    """What stands behind the door, of one kernel."""

    store: Store
    upstreams: Mapping[str, Upstream]
    treasury: Treasury
    lanes: Lanes
    switches: Switches
    guards: Guards
    currency: str
    step_salt: Callable[[str], bytes]
    telemetry: Telemetry
    heavy: Mapping[str, str] = field(default_factory=dict)
    """By route: its heavy upstream, against which is told what a choice has saved."""
    watch: Watch = field(default_factory=Watch)

    def salt(self, request: Request, step: str) -> bytes:
        """What a step's commitments are salted with: its subject's salt, or one of its own where no body is kept."""
        return request.subject.salt if request.subject else self.step_salt(step)


class _Preempted(asyncio.CancelledError):
    """A batch call's borrowed slot was wanted back. Never leaves this file."""

    def __init__(self) -> None:
        super().__init__("preempted: the slot it borrowed was wanted online, so it begins again")


class Attempt:
    """The attempts of one step; every hold it takes is ended on every path, in `__aexit__`, without an await."""

    def __init__(self, house: House, request: Request) -> None:
        self._house, self._request = house, request
        self._origin_scopes = self._scopes = request.origin.scopes()
        self._clock: Clock | None = None
        self._release: Callable[[], None] | None = None
        self._permit: Permit | None = None
        self._deadline: float | None = None
        self.can_restart = False
        self._is_preempted = False
        self._cancelled_before = 0
        self._answer: Answer | None = None
        self._killed: Killed | None = None
        self._closed_by: str | None = None
        """The scope whose switch closed it."""
        self._task: asyncio.Task[object] | None = None
        self._is_cancelled = False

    async def __aenter__(self) -> Answer:
        self._task = asyncio.current_task()
        self._cancelled_before = self._task.cancelling() if self._task is not None else 0
        try:
            return await self._begin()
        except BaseException as error:
            self._close(error)
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close(error)

    def _close(self, error: BaseException | None) -> None:
        self._end(error)
        if self._is_preempted and self._task is not None:
            self._task.uncancel()  # something else ended the step first, and swallowed it
        if self._killed is not None:
            if self._is_cancelled and self._task is not None:
                self._task.uncancel()
            raise self._killed from error

    async def _begin(self) -> Answer:
        """The first attempt whose first block arrived. A lane that is full hands the call to the route's next upstream
        at once; one deadline covers them all, so a backoff that would pass it is not slept."""
        attempt, last = self._request.attempt, None
        full: LaneFull | BudgetExceeded | None = None
        if self._request.deadline_s is not None:
            self._deadline = time.monotonic() + self._request.deadline_s
        for name in self._request.route.upstreams:
            upstream, retry = self._house.upstreams[name], 0
            while retry <= upstream.retries:
                if last is not None and retry and not await self._back_off(retry, last):
                    break
                request = self._request
                if request.attempt != attempt:
                    request = dataclasses.replace(request, attempt=attempt)
                try:
                    with Restartable(self):
                        return await self._attempt(request, upstream)
                except _Preempted:
                    self._end_preemption()
                    attempt += 1
                except LaneFull as error:
                    is_sooner = isinstance(full, LaneFull) and full.retry_after_s <= error.retry_after_s
                    full = full if is_sooner else error
                    break
                except BudgetExceeded as error:
                    if error.scope != upstream.scope or self._clock is not None:
                        raise
                    full = full or error  # that upstream's own budget: another one may have some left
                    break
                except UpstreamError as error:
                    last = error
                    attempt += 1
                    retry += 1
                    if not error.retryable:
                        break
        refusal = last or full
        assert refusal is not None
        raise refusal

    async def renew(self, answer: Answer) -> bool:
        """Begin again where the cancellation that came was a preemption; `answer` then goes on as the new attempt's."""
        if not self._is_preempted or self._killed is not None:
            return False
        self._end(_Preempted())
        self._answer = None
        self._end_preemption()
        self._request = dataclasses.replace(self._request, attempt=answer.meter.attempt() + 1)
        answer.become(await self._begin())
        self._answer = answer
        return True

    def _preempt(self) -> None:
        """The lane wants a borrowed slot back. Where the step cannot begin again, or is about to end, it keeps it."""
        is_ending = self._answer is not None and self._answer.meter.is_complete()
        if self._task is not None and self.can_restart and not is_ending and self._killed is None:
            self._is_preempted = True
            self._task.cancel()

    def _end_preemption(self) -> None:
        """Take back the cancellation that was ours; one that somebody else sent as well goes on."""
        self._is_preempted = False
        if self._task is not None and self._task.uncancel() > self._cancelled_before:
            raise asyncio.CancelledError

    async def _back_off(self, retry: int, last: UpstreamError) -> bool:
        """Sleep before a further attempt; False, at once, where that would pass the deadline."""
        delay_s = _backoff_s(retry, last)
        if self._deadline is not None and time.monotonic() + delay_s > self._deadline:
            return False
        await asyncio.sleep(delay_s)
        return True

    async def _attempt(self, request: Request, upstream: Upstream) -> Answer:
        house, step = self._house, new_id()
        self._scopes, self._clock = (*self._origin_scopes, upstream.scope), None
        house.switches.check(self._scopes)
        house.guards.check(self._scopes)
        if upstream.price is None and not upstream.is_unpriced_allowed:
            raise Unpriced(upstream.name, upstream.unpriced_because)
        fields = identity(request, upstream, step, salt=house.salt(request, step))
        call = sized(request.call, upstream)
        meter = meter_for(fields, call)
        meter.watched_by(house.guards.stream(request))
        check_allowance(request, call, upstream, house.currency)
        claim = self._claim(request, upstream, call)
        if request.lane is not Lane.BATCH:
            house.lanes.expect(upstream.name, claim)  # before any money is held for what will be refused
        try:
            house.switches.started(step, self._scopes, self._kill)  # from here on, also while it waits for a slot
            # Batch waits as long as it takes, so it holds money when it has a slot, or the next that is free; online is
            # refused before it waits.
            if request.lane is Lane.BATCH:
                await self._join_lane(claim, upstream, meter)
                if request.may_begin is not None:
                    request.may_begin()
            # Inside: a caller who leaves while a hold is on its way to the store must not leave it behind.
            hold = await self._reserve(request, upstream, call, meter, claim)
            if hold is not None and hold.max_tokens != call.max_tokens:
                call = meter.call = call.sized(call.model, hold.max_tokens)
            if request.lane is not Lane.BATCH:
                await self._join_lane(claim, upstream, meter)
            await self._take_slot(meter)
            meter.begin()
            house.switches.check(self._scopes)
            meter.has_left = True
            if hold is not None and hold.amount.us:
                self._begin_clock(hold, upstream, meter)
            tracing = house.telemetry.tracing
            if tracing is not None:
                meter.span, headers = tracing.begin(fields, upstream.kind)
                told = dataclasses.replace(call, traced=headers)
                call = meter.call = told.sized(call.model, call.max_tokens, call.measured)
            answer = await self._open(upstream, call, step, meter, hold)
            answer.owner = self
            assert self._permit is not None
            self._permit.answered(answer.stream.headers, (meter.ttft_us or 0) / 1_000_000)
            return answer
        except BaseException as error:
            self._tell_failed(upstream, error)
            if isinstance(error, asyncio.CancelledError) and self._is_preempted and self._killed is None:
                preempted = _Preempted()
                self._abandon(request, step, meter, upstream, preempted)
                raise preempted from None
            tripped = self._tripped_while_waiting(meter)
            self._abandon(request, step, meter, upstream, tripped or error)
            if tripped is not None:
                raise tripped from None
            raise

    def _begin_clock(self, hold: Hold, upstream: Upstream, meter: Meter) -> None:
        """Its time is limited: see that more is held in time, and that it ends before what is held is used up."""

        def cut() -> None:
            meter.stop()
            if self._answer is not None and not (clock.patience is not None and clock.patience.is_waiting):
                self._answer.stream.close()  # its reader is slow: the upstream need not go on meanwhile

        self._clock = clock = Clock(
            self._house.treasury, hold, cut, accelerators=upstream.accelerators, slots=upstream.slots
        )
        clock.begin()

    def _tripped_while_waiting(self, meter: Meter) -> SwitchTripped | None:
        """A switch ended the wait for a hold or a slot: nothing was called, so it is a refusal and no kill."""
        if self._killed is None or meter.has_left:
            return None
        killed, self._killed = self._killed, None
        if self._is_cancelled and self._task is not None:
            self._task.uncancel()
        return SwitchTripped(killed.scope, killed.cause)

    def _claim(self, request: Request, upstream: Upstream, call: ModelCall) -> Claim:
        origin = request.origin
        tokens = pricing.expected_tokens(call) if self._house.lanes.counts_tokens(upstream.name) else 0
        return Claim(
            request.lane,
            origin.tenant,
            key=origin.key,
            run=origin.run,
            tokens=tokens,
            deadline=self._deadline,
            preempt=self._preempt if request.lane is Lane.BATCH else None,
        )

    async def _join_lane(self, claim: Claim, upstream: Upstream, meter: Meter) -> None:
        lanes = self._house.lanes
        permit = lanes.try_admit(upstream.name, claim) or await lanes.admit(upstream.name, claim)
        self._permit = permit

        def release() -> None:
            usage = meter.usage() if claim.tokens and meter.has_left else None
            used = None if usage is None else usage.input_tokens + usage.output_tokens
            permit.release(tokens=used, has_left=meter.has_left)

        self._release = release

    async def _give_way(self, claim: Claim, upstream: Upstream, meter: Meter) -> None:
        """It waits for money: its slot goes to the next in line, who may have some already."""
        if self._release is not None:
            self._release()
            self._release = None
        await self._join_lane(claim, upstream, meter)

    async def _take_slot(self, meter: Meter) -> None:
        assert self._permit is not None
        if self._permit.turn is not None:
            await self._permit.slot()
        meter.queued_us = int(self._permit.waited_s * 1_000_000)

    def _tell_failed(self, upstream: Upstream, error: BaseException | None) -> None:
        """The lanes learn from failures, whether they come before or in the middle of an answer."""
        if isinstance(error, UpstreamError) and error.upstream == upstream.name and self._permit is not None:
            self._permit.failed(error.http_status, retry_after_s=error.retry_after_s, headers=error.headers)

    async def _reserve(
        self, request: Request, upstream: Upstream, call: ModelCall, meter: Meter, claim: Claim
    ) -> Hold | None:
        """Batch intents are always durable before the call leaves; online calls hold only where a budget binds them, in
        memory where this process has leased enough of it."""
        fields, is_batch = meter.fields, request.lane is Lane.BATCH
        if not is_batch:
            held = self._house.treasury.try_reserve(str(fields["step"]), self._scopes, call, upstream.price, fields)
            if not isinstance(held, treasury.Durably):
                return held
        intent = None
        if is_batch:
            names = ("v", "step", "attempt", "tenant", "run", "item", "agent", "upstream")
            intent = {**{name: fields[name] for name in names}, "kind": "intent", "at_us": ledger.now_us()}
        # Before it is known: who leaves meanwhile leaves an intent, which then has its row all the same.
        meter.is_intended = is_batch
        try:
            return await self._house.treasury.reserve(
                str(fields["step"]),
                self._scopes,
                call,
                upstream.price,
                may_shrink=not request.is_bounded_by_caller,
                entry={**fields, "currency": self._house.currency},
                intent=intent,
                accelerators=upstream.accelerators,
                slots=upstream.slots,
                give_way=partial(self._give_way, claim, upstream, meter) if is_batch else None,
            )
        except Exception:
            meter.is_intended = False
            raise

    async def _open(self, upstream: Upstream, call: ModelCall, step: str, meter: Meter, hold: Hold | None) -> Answer:
        """Send, and peek at the first event before anybody is told that this attempt succeeded."""
        stream: ModelStream | None = None
        try:
            with self._house.watch.patience() as patience:
                if self._clock is not None:
                    self._clock.patience = patience
                cut_at = patience.begins(min(upstream.first_token_s, upstream.total_s)) + upstream.total_s
                stream = await upstream.model.open(call)
                self._answer = answer = Answer(step, upstream, stream, meter, hold, self._house.watch, cut_at)
                answer.clock, answer.keeps_part = self._clock, self._request.lane is not Lane.BATCH
                while not meter.has_first_token():
                    block = await anext(answer.blocks)
                    meter.peeked.append(block)
                    meter.saw(block)
        except TimeoutError:
            if self._clock is not None and self._clock.refusal is not None:
                raise self._failed(stream, self._clock.refusal) from None
            problem = f"no first token within {min(upstream.first_token_s, upstream.total_s):g} s"
            raise self._failed(stream, UpstreamError(upstream.name, problem, retryable=True)) from None
        except StopAsyncIteration:
            problem = "it closed the connection without an answer"
            raise self._failed(stream, UpstreamError(upstream.name, problem, retryable=True)) from None
        except EventError as error:
            problem = "it answered with an error in its stream"
            raise self._failed(stream, UpstreamError(upstream.name, problem, detail=str(error))) from None
        except BaseException as error:
            self._failed(stream, error)
            raise
        return answer

    def _failed(self, stream: ModelStream | None, error: E) -> E:
        self._answer = None
        if stream is not None:
            stream.close()
        return error

    def _kill(self, scope: str, cause: str) -> Callable[[], None]:
        """Close the upstream's socket; what is returned ends the task that reads from it."""
        self._killed, self._closed_by = Killed(scope, cause), scope
        if self._answer is not None:
            self._answer.stream.close()
        return self._end_task

    def _end_task(self) -> None:
        if self._task is not None and self._task is not asyncio.current_task():
            # A step that trips its own switch finds its stream closed: cancelled too, it would end whatever comes next.
            self._is_cancelled = self._task.cancel()

    def _abandon(self, request: Request, step: str, meter: Meter, upstream: Upstream, error: BaseException) -> None:
        """This attempt brought no answer: give everything back. It has its row if it left the house, or if an intent
        says that it would."""
        self._let_go(step)
        if not meter.has_left and not meter.is_intended:
            self._house.treasury.release(step, self._scopes)
            return
        is_gone = isinstance(error, UpstreamError) and error.is_gone
        status, reason = self._fate(error)
        if is_gone or not meter.has_left:
            status = Status.UNREACHED
        usage = Usage(0, 0) if status is Status.UNREACHED or meter.is_unbilled(error) else None
        self._record(request, upstream, step, meter, status=status, reason=reason, usage=usage, also=None)

    def _end(self, error: BaseException | None) -> None:
        answer = self._answer
        if answer is None:
            return
        answer.stream.close()
        self._tell_failed(answer.upstream, error)
        self._let_go(answer.step)
        meter = answer.meter
        if error is not None:
            answer.status, answer.reason = self._fate(error)
        elif not meter.is_complete() and answer.status is Status.OK:
            answer.status = Status.KILLED if self._killed else Status.CANCELLED
            answer.reason = str(self._killed or "not read to its end")
        answer.recorded = self._record(
            self._request,
            answer.upstream,
            answer.step,
            meter,
            status=answer.status,
            reason=answer.reason,
            usage=meter.usage(),
            also=answer.also if error is None else None,
        )

    def _fate(self, error: BaseException) -> tuple[Status, str]:
        """How a step ended, and why, for its record."""
        if self._clock is not None and self._clock.refusal is error:
            return Status.KILLED, f"{EXHAUSTED}: {error}"
        return _status_of(error, is_killed=self._killed is not None), _public(self._killed or error)

    def _let_go(self, step: str) -> None:
        self._house.switches.ended(step)
        if self._clock is not None:
            self._clock.end()
        if self._release is not None:
            self._release()
            self._release = None

    def _record(
        self,
        request: Request,
        upstream: Upstream,
        step: str,
        meter: Meter,
        *,
        status: Status,
        reason: str,
        usage: Usage | None,
        also: Callable[[Transaction, Settled], None] | None,
    ) -> asyncio.Future[Settled]:
        """Settle and append, in one message to the writer. No await: a cancelled task may be cancelled again."""
        usage = usage or pricing.estimate(meter.call, meter.output_bytes())
        total_us, used_us = meter.total_us(), 0
        if upstream.accelerators and status is not Status.UNREACHED:
            used_us = pricing.accelerator_us(total_us, upstream.accelerators, upstream.slots)
        price = upstream.price
        pico = None if price is None else pricing.charge(usage, price, used_us)
        is_beyond = pricing.is_beyond(usage, meter.call)
        if pico is not None and price is not None and pricing.is_absurd(pico, meter.call, price):
            usage, is_beyond = pricing.estimate(meter.call, meter.output_bytes()), True
            pico = pricing.charge(usage, price, used_us)
        parts = () if pico is None or price is None else economics.parts(usage, price, pico, used_us)
        heavy = self._house.upstreams.get(self._house.heavy.get(request.route.name, ""))
        baseline = None if pico is None or heavy is None else heavy.price
        if baseline is not None and baseline.accelerator_second:
            baseline = None  # nobody knows how long it would have taken
        likely = None if baseline is None else min(pricing.charge(usage, baseline), pricing.MOST_CHARGE)
        settled = Settled(step, usage, pico, total_us)
        fields = meter.fields | {
            "status": status,
            "reason": reason[:500].encode(errors="replace").decode() if reason else None,
            "at_us": ledger.now_us(),
            "input_tokens": usage.input_tokens,
            "output_tokens": usage.output_tokens,
            "cache_read_tokens": usage.cache_read_tokens,
            "cache_write_tokens": usage.cache_write_tokens,
            "reasoning_tokens": usage.reasoning_tokens,
            "cache_write_1h_tokens": usage.cache_write_1h_tokens,
            "token_kinds": usage.kinds,
            "accelerator_us": used_us or None,
            "energy_mj": None if upstream.energy is None else pricing.energy_mj(usage, upstream.energy),
            "estimated": 1 if usage.estimated else None,
            "beyond_bound": 1 if is_beyond else None,
            "cost_pico": None if pico is None else treasury.leaf_amount(pico),
            "baseline_pico": None if likely is None else treasury.leaf_amount(likely),
            "currency": self._house.currency,
            "queued_us": meter.queued_us,
            "ttft_us": meter.ttft_us,
            "total_us": settled.total_us,
            "output_digest": meter.output_digest(self._house.salt(request, step)),
        }
        if meter.has_left:
            meter.settled(pico, is_whole=status in (Status.OK, Status.REFUSED))
        if self._closed_by is not None:
            fields |= _closed_fields(self._closed_by, upstream, meter)
        end_hold = self._house.treasury.ending(step, self._scopes, treasury.used(fields, pico=pico or 0))

        def work(tx: Transaction) -> Settled:
            end_hold(tx)
            ledger.append(tx, fields)
            treasury.count(tx, fields, pico=pico or 0, parts=parts)
            if also is not None:
                also(tx, settled)
            return settled

        recorded = self._house.store.submit(work)
        recorded.add_done_callback(unwaited)
        telemetry = self._house.telemetry
        telemetry.steps[request.lane, upstream.name].add(status, meter.queued_us, meter.ttft_us)
        if telemetry.tracing is not None:
            telemetry.tracing.end(meter.span, fields, upstream.kind)
        return recorded


def _closed_fields(scope: str, upstream: Upstream, meter: Meter) -> dict[str, object]:
    """What the record of a closed step says beside: which switch it was, and for the report the most that the step
    could have cost, and what its upstream generated afterwards where that is known."""
    bound = None if upstream.price is None else pricing.upper_bound(meter.call, upstream.price).pico
    return {
        "closed_by": scope,
        "bound_pico": None if bound is None else treasury.leaf_amount(bound),
        "tokens_after": 0 if upstream.model.ends_when_closed or not meter.has_left else None,
    }


def _status_of(error: BaseException, *, is_killed: bool) -> Status:
    if is_killed or isinstance(error, Killed | Runaway):
        return Status.KILLED
    if isinstance(error, asyncio.CancelledError | GeneratorExit):
        return Status.CANCELLED
    return Status.FAILED


def _public(error: BaseException) -> str:
    """An error in our own words, as the ledger may hold it: an upstream's own words may echo what it was asked."""
    if isinstance(error, UpstreamError):
        return f"upstream {error.upstream}: {error.problem}"
    if isinstance(error, Runaway):
        return f"guard {error.guard}: {error.why}"
    return str(error) or type(error).__name__


def _backoff_s(retry: int, error: UpstreamError) -> float:
    """Exponential with full jitter; an upstream that names its own delay (up to 30 s) is obeyed."""
    if error.retry_after_s is not None:
        return min(error.retry_after_s, 30.0)
    return random.uniform(0.5, 1.0) * FIRST_BACKOFF_S * 2.0 ** (retry - 1)
