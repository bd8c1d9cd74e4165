"""The one door: every model call of either lane passes through `Door.step`.

    switch check → upper bound → reserve on the whole chain → lane slot → the upstream's stream, chunk by chunk
    … and at the end, whatever the end was: settle + append, one message to the writer and no await.

An attempt that left the house is one row of `trace_steps`, with its tokens, time and cost, even when it failed. Further
attempts (retries, then fallbacks) are made only before the first byte has reached the caller.
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
import random
import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import TypeVar

import orjson

from twolane.domain.canonical import commitment
from twolane.domain.completion import Completion, EventError
from twolane.domain.money import Money
from twolane.domain.records import Kind, Lane, ModelCall, Origin, Price, Route, Status, Subject, Usage
from twolane.errors import BadRequest, BudgetExceeded, Killed, LaneFull, SwitchTripped, Unpriced, UpstreamError
from twolane.kernel import ledger, treasury
from twolane.kernel.document import Document, DocumentMeter, meter_for
from twolane.kernel.lanes import Claim, Lanes, Permit
from twolane.kernel.meter import Meter, Silence
from twolane.kernel.switches import Switches
from twolane.kernel.treasury import Hold, Treasury
from twolane.models import Model, ModelStream
from twolane.rules import pricing
from twolane.store import Store, Transaction

E = TypeVar("E", bound=BaseException)
T = TypeVar("T")

FIRST_BACKOFF_S = 0.25
DONE_S = 0.25
"""How long a connection may stay open after `[DONE]` before it is closed instead of reused."""


@dataclass(frozen=True, slots=True)
class Upstream:
    """An opened upstream as the door needs it."""

    name: str
    model: Model
    model_name: str
    price: Price | None
    is_unpriced_allowed: bool
    retries: int
    first_token_s: float
    idle_s: float
    context_tokens: int
    output_tokens: int


@dataclass(frozen=True, slots=True)
class Request:
    """One step as its lane asks for it. The call's `model` and `max_tokens` are filled in per upstream."""

    origin: Origin
    lane: Lane
    route: Route
    call: ModelCall
    deadline_s: float | None = None
    """Longest wait for a slot, over all attempts of the step: online sheds, batch (None) waits."""
    is_bounded_by_caller: bool = True
    """False: the caller named no `max_tokens`, so it may be lowered to what the budgets can pay."""
    subject: Subject | None = None
    """Whose salt the digests take; None for online calls, whose bodies are not kept."""
    attempt: int = 1
    allowance_pico: int | None = None
    """The most this step may reserve, whatever the budgets hold."""


class Answer:
    """A step while it runs: iterate over its blocks, or take the `whole` of it.

    The caller may say how it ended (`status`, `reason`) and what must be committed together with it (`also`).
    """

    def __init__(self, step: str, upstream: Upstream, stream: ModelStream, meter: Meter, hold: Hold | None) -> None:
        self.step, self.upstream, self.hold = step, upstream, hold
        self.status, self.reason = Status.OK, ""
        self.also: Callable[[Transaction, Settled], None] | None = None
        self.recorded: asyncio.Future[Settled] | None = None
        """Ends when the step's record is on disk; set when the step is over."""
        self._stream, self._meter = stream, meter
        self._blocks = meter.blocks(stream)
        """One iterator from the first peek to the last block."""
        self._owner: _Attempt | None = None

    @property
    def ttft_us(self) -> int | None:
        """From leaving the house to the first token."""
        return self._meter.ttft_us

    @property
    def attempt(self) -> int:
        """The number of the attempt that answers."""
        return self._meter.attempt()

    @property
    def upstream_headers(self) -> Mapping[str, str]:
        """What the upstream said beside its answer: response headers by lower-case name."""
        return self._stream.headers

    async def __aiter__(self) -> AsyncIterator[bytes]:
        meter = self._meter
        for block in meter.peeked:
            yield block
        try:
            async with asyncio.timeout(None) as timer:
                with Silence(timer, self.upstream.idle_s) as silence:
                    while True:
                        if meter.is_complete():  # only the end of the connection can come: worth a moment, for reuse
                            silence.patience_s = min(DONE_S, silence.patience_s)
                        silence.begins()
                        try:
                            block = await anext(self._blocks)
                        except StopAsyncIteration:
                            break
                        silence.ends()
                        meter.saw(block)
                        yield block
        except TimeoutError:
            if not meter.is_complete():
                problem = f"silent for {self.upstream.idle_s:g} s"
                raise UpstreamError(self.upstream.name, problem, retryable=True) from None
        if not meter.is_complete():
            problem = "it ended its answer without [DONE]: the answer was cut off"
            raise UpstreamError(self.upstream.name, problem, retryable=True)

    async def whole(self) -> Completion:
        """Read to the end. A batch call whose borrowed slot is taken back begins again by itself, with another `step`.

        Raises:
            UpstreamError: it broke off, or sent something that is not a completion.
        """
        while True:
            try:
                with _Restartable(self._owner):
                    return await self._read_whole()
            except asyncio.CancelledError:
                if self._owner is None or not await self._owner.renew(self):
                    raise

    def become(self, other: Answer) -> None:
        """Go on as another attempt's answer."""
        self.step, self.upstream, self.hold = other.step, other.upstream, other.hold
        self.status, self.reason, self.recorded = Status.OK, "", None
        self._stream, self._meter, self._blocks = other._stream, other._meter, other._blocks

    async def _read_whole(self) -> Completion:
        completion = Completion()
        try:
            async for block in self:
                completion.feed(block)
            if not completion.is_done:
                completion.feed(b"\n\n")  # some servers leave out the last empty line
        except EventError as error:
            problem = "its stream does not hold a completion"
            raise UpstreamError(self.upstream.name, problem, detail=str(error), retryable=True) from None
        self._meter.text_bytes = len(completion.text.encode())
        return completion

    async def document(self) -> Document:
        """Read to the end what is one JSON document, such as embeddings."""
        async for _ in self:
            pass
        meter = self._meter
        assert isinstance(meter, DocumentMeter), "a call of another kind"
        assert meter.document is not None
        return meter.document

    async def durable(self) -> Settled:
        """Wait until the step's record is on disk; call it after the step is over."""
        assert self.recorded is not None, "the step still runs"
        return await self.recorded


@dataclass(frozen=True, slots=True)
class Settled:
    """What a step came to. `pico` is None where the upstream is unpriced."""

    step: str
    usage: Usage | None
    pico: int | None
    total_us: int


class Door:
    """The door of one kernel."""

    def __init__(
        self,
        store: Store,
        *,
        upstreams: Mapping[str, Upstream],
        treasury: Treasury,
        lanes: Lanes,
        switches: Switches,
        currency: str,
        step_salt: Callable[[str], bytes],
    ) -> None:
        self._store, self._upstreams, self._treasury = store, upstreams, treasury
        self._lanes, self._switches = lanes, switches
        self._currency, self._step_salt = currency, step_salt

    @asynccontextmanager
    async def step(self, request: Request) -> AsyncIterator[Answer]:
        """Make one call; the body reads the answer. When the body ends, so does the step.

        Raises:
            Refused: a switch, a budget or a full lane said no; nothing was called.
            UpstreamError: every attempt failed before its first byte, or the last one broke off.
            Killed: a switch closed it while it ran.
        """
        async with _Attempt(self, request) as attempt:
            yield await attempt.begin()

    def reuse(self, tx: Transaction, request: Request, *, of_step: str, output_digest: str) -> str:
        """Record that a memo answered: an entry that points at the step that paid, at cost 0. Gives its step id."""
        step = new_id()
        upstream = self._upstreams[request.route.upstreams[0]]
        fields = self._fields(request, upstream, step, self._input_digest(request, step))
        fields |= {
            "status": Status.REUSED,
            "of": of_step,
            "cost_pico": 0,
            "currency": self._currency,
            "output_digest": output_digest,
            "total_us": 0,
            "at_us": ledger.now_us(),
        }
        ledger.append(tx, fields)
        treasury.count(tx, fields, pico=0)
        return step

    def _fields(self, request: Request, upstream: Upstream, step: str, input_digest: str) -> dict[str, object]:
        """The identity of an attempt, as its leaf holds it."""
        origin = request.origin
        return {
            "v": 1,
            "kind": "step",
            "op": request.call.kind,
            "step": step,
            "attempt": request.attempt,
            "tenant": origin.tenant,
            "lane": request.lane,
            "api_key": origin.key or None,
            "run": origin.run or None,
            "item": request.subject.id if request.subject else None,
            "workflow": origin.workflow or None,
            "agent": origin.agent or None,
            "route": request.route.name,
            "route_reason": request.route.reason,
            "upstream": upstream.name,
            "model": upstream.model_name,
            "input_digest": input_digest,
        }

    def _input_digest(self, request: Request, step: str) -> str:
        """A commitment to what is asked. All of it came out of a JSON reader or is text: no walk makes it plain."""
        call = request.call
        messages = call.raw_messages or [[message.role, message.content] for message in call.messages]
        asked: list[object] = [list(messages), call.schema.schema if call.schema else None, call.extras]
        if call.native is not None:
            asked.append(call.native.body)
        try:
            body = orjson.dumps(asked, default=dict, option=orjson.OPT_SORT_KEYS)
        except orjson.JSONEncodeError as error:
            raise BadRequest(f"no canonical form: {error}") from None
        return commitment(self._salt(request, step), body)

    def _salt(self, request: Request, step: str) -> bytes:
        return request.subject.salt if request.subject else self._step_salt(step)


class _Preempted(asyncio.CancelledError):
    """A batch call's borrowed slot was wanted back. Never leaves this file."""

    def __init__(self) -> None:
        super().__init__("preempted: the slot it borrowed was wanted online, so it begins again")


class _Restartable:
    """While open, the step can begin again by itself: nobody has seen anything of it."""

    def __init__(self, attempt: _Attempt | None) -> None:
        self._attempt = attempt

    def __enter__(self) -> None:
        if self._attempt is not None:
            self._attempt.can_restart = True

    def __exit__(self, *_: object) -> None:
        if self._attempt is not None:
            self._attempt.can_restart = False


class _Attempt:
    """The attempts of one step; every hold it takes is ended on every path, in `__aexit__`, without an await."""

    def __init__(self, door: Door, request: Request) -> None:
        self._door, self._request = door, request
        self._scopes = request.origin.scopes()
        self._release: Callable[[], None] | None = None
        self._permit: Permit | None = None
        self._deadline: float | None = None
        self.can_restart = False
        self._is_preempted = False
        self._cancelled_before = 0
        self._answer: Answer | None = None
        self._killed: Killed | None = None
        self._task: asyncio.Task[object] | None = None
        self._is_cancelled = False

    async def __aenter__(self) -> _Attempt:
        self._task = asyncio.current_task()
        self._cancelled_before = self._task.cancelling() if self._task is not None else 0
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end(error)
        if self._is_preempted and self._task is not None:
            self._task.uncancel()  # something else ended the step first, and swallowed it
        if self._killed is not None:
            if self._is_cancelled and self._task is not None:
                self._task.uncancel()
            raise self._killed from error

    async def begin(self) -> Answer:
        """The first attempt whose first block arrived. A lane that is full hands the call to the route's next upstream
        at once; one deadline covers them all, so a backoff that would pass it is not slept."""
        attempt, last, full = self._request.attempt, None, None
        if self._request.deadline_s is not None:
            self._deadline = time.monotonic() + self._request.deadline_s
        for name in self._request.route.upstreams:
            upstream, retry = self._door._upstreams[name], 0
            while retry <= upstream.retries:
                if last is not None and retry and not await self._back_off(retry, last):
                    break
                request = self._request
                if request.attempt != attempt:
                    request = dataclasses.replace(request, attempt=attempt)
                try:
                    with _Restartable(self):
                        return await self._attempt(request, upstream)
                except _Preempted:
                    self._end_preemption()
                    attempt += 1
                except LaneFull as error:
                    full = error if full is None or error.retry_after_s < full.retry_after_s else full
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
        self._request = dataclasses.replace(self._request, attempt=answer._meter.attempt() + 1)
        answer.become(await self.begin())
        self._answer = answer
        return True

    def _preempt(self) -> None:
        """The lane wants a borrowed slot back. Where the step cannot begin again, or is about to end, it keeps it."""
        is_ending = self._answer is not None and self._answer._meter.is_complete()
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
        door, step = self._door, new_id()
        door._switches.check(self._scopes)
        if upstream.price is None and not upstream.is_unpriced_allowed:
            raise Unpriced(upstream.name)
        fields = door._fields(request, upstream, step, door._input_digest(request, step))
        call = _sized(request.call, upstream)
        meter = meter_for(fields, call)
        _check_allowance(request, call, upstream, door._currency)
        claim = self._claim(request, upstream, call)
        if request.lane is not Lane.BATCH:
            door._lanes.expect(upstream.name, claim)  # before any money is held for what will be refused
        try:
            door._switches.started(step, self._scopes, self._kill)  # from here on, also while it waits for a slot
            # Batch waits as long as it takes, so it waits before it holds money; online is refused before it waits.
            if request.lane is Lane.BATCH:
                await self._take_slot(claim, upstream, meter)
            # Inside: a caller who leaves while a hold is on its way to the store must not leave it behind.
            hold = await self._reserve(request, upstream, call, meter)
            if hold is not None and hold.max_tokens != call.max_tokens:
                call = meter.call = call.sized(call.model, hold.max_tokens)
            if request.lane is not Lane.BATCH:
                await self._take_slot(claim, upstream, meter)
            meter.begin()
            door._switches.check(self._scopes)
            meter.has_left = True
            answer = await self._open(upstream, call, step, meter, hold)
            answer._owner = self
            assert self._permit is not None
            self._permit.answered(answer._stream.headers, (meter.ttft_us or 0) / 1_000_000)
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
        tokens = pricing.expected_tokens(call) if self._door._lanes.counts_tokens(upstream.name) else 0
        return Claim(
            request.lane,
            origin.tenant,
            key=origin.key,
            run=origin.run,
            tokens=tokens,
            deadline=self._deadline,
            preempt=self._preempt if request.lane is Lane.BATCH else None,
        )

    async def _take_slot(self, claim: Claim, upstream: Upstream, meter: Meter) -> None:
        permit = self._permit = await self._door._lanes.admit(upstream.name, claim)
        meter.queued_us = int(permit.waited_s * 1_000_000)

        def release() -> None:
            usage = meter.usage() if claim.tokens and meter.has_left else None
            used = None if usage is None else usage.input_tokens + usage.output_tokens
            permit.release(tokens=used, has_left=meter.has_left)

        self._release = release

    def _tell_failed(self, upstream: Upstream, error: BaseException | None) -> None:
        """The lanes learn from failures, whether they come before or in the middle of an answer."""
        if isinstance(error, UpstreamError) and error.upstream == upstream.name and self._permit is not None:
            self._permit.failed(error.http_status, retry_after_s=error.retry_after_s, headers=error.headers)

    async def _reserve(self, request: Request, upstream: Upstream, call: ModelCall, meter: Meter) -> Hold | None:
        """Batch intents are always durable before the call leaves; online calls hold only where a budget binds them, in
        memory where this process has leased enough of it."""
        fields, is_batch = meter.fields, request.lane is Lane.BATCH
        if not is_batch:
            held = self._door._treasury.try_reserve(str(fields["step"]), self._scopes, call, upstream.price)
            if held is not None or not self._door._treasury.is_limited(self._scopes):
                return held
        intent = None
        if is_batch:
            names = ("v", "step", "attempt", "tenant", "run", "item", "agent", "upstream")
            intent = {**{name: fields[name] for name in names}, "kind": "intent", "at_us": ledger.now_us()}
        # Before it is known: who leaves meanwhile leaves an intent, which then has its row all the same.
        meter.is_intended = is_batch
        try:
            return await self._door._treasury.reserve(
                str(fields["step"]),
                self._scopes,
                call,
                upstream.price,
                may_shrink=not request.is_bounded_by_caller,
                entry={**{k: v for k, v in fields.items() if v is not None}, "currency": self._door._currency},
                intent=intent,
            )
        except Exception:
            meter.is_intended = False
            raise

    async def _open(self, upstream: Upstream, call: ModelCall, step: str, meter: Meter, hold: Hold | None) -> Answer:
        """Send, and peek at the first event before anybody is told that this attempt succeeded."""
        stream: ModelStream | None = None
        try:
            async with asyncio.timeout(upstream.first_token_s):
                stream = await upstream.model.open(call)
                self._answer = answer = Answer(step, upstream, stream, meter, hold)
                while not meter.has_first_token():
                    block = await anext(answer._blocks)
                    meter.peeked.append(block)
                    meter.saw(block)
        except TimeoutError:
            problem = f"no first token within {upstream.first_token_s:g} s"
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

    def _kill(self, scope: str, cause: str) -> None:
        self._killed = Killed(scope, cause)
        if self._answer is not None:
            self._answer._stream.close()
        if self._task is not None and self._task is not asyncio.current_task():
            # A step that trips its own switch finds its stream closed: cancelled too, it would end whatever comes next.
            self._is_cancelled = self._task.cancel()

    def _abandon(self, request: Request, step: str, meter: Meter, upstream: Upstream, error: BaseException) -> None:
        """This attempt brought no answer: give everything back. It has its row if it left the house, or if an intent
        says that it would."""
        self._let_go(step)
        if not meter.has_left and not meter.is_intended:
            self._door._treasury.release(step, self._scopes)
            return
        is_gone = isinstance(error, UpstreamError) and error.is_gone
        status = _status_of(error, is_killed=self._killed is not None)
        if is_gone or not meter.has_left:
            status = Status.UNREACHED
        usage = Usage(0, 0) if status is Status.UNREACHED or meter.is_unbilled(error) else None
        reason = _public(self._killed or error)
        self._record(request, upstream, step, meter, status=status, reason=reason, usage=usage, also=None)

    def _end(self, error: BaseException | None) -> None:
        answer = self._answer
        if answer is None:
            return
        answer._stream.close()
        self._tell_failed(answer.upstream, error)
        self._let_go(answer.step)
        meter = answer._meter
        if error is not None:
            answer.status = _status_of(error, is_killed=self._killed is not None)
            answer.reason = _public(self._killed or error)
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

    def _let_go(self, step: str) -> None:
        self._door._switches.ended(step)
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
        pico = None if upstream.price is None else pricing.charge(usage, upstream.price)
        settled, scopes = Settled(step, usage, pico, meter.total_us()), self._scopes
        fields = meter.fields | {
            "status": status,
            "reason": reason[:500].encode(errors="replace").decode() or None,
            "at_us": ledger.now_us(),
            "input_tokens": usage.input_tokens,
            "output_tokens": usage.output_tokens,
            "cache_read_tokens": usage.cache_read_tokens,
            "cache_write_tokens": usage.cache_write_tokens,
            "reasoning_tokens": usage.reasoning_tokens,
            "estimated": 1 if usage.estimated else None,
            "beyond_bound": 1 if pricing.is_beyond(usage, meter.call) else None,
            "cost_pico": None if pico is None else treasury.leaf_amount(pico),
            "currency": self._door._currency,
            "queued_us": meter.queued_us,
            "ttft_us": meter.ttft_us,
            "total_us": settled.total_us,
            "output_digest": meter.output_digest(self._door._salt(request, step)),
        }

        tokens = usage.input_tokens + usage.output_tokens
        end_hold = self._door._treasury.ending(step, scopes, pico=pico or 0, tokens=tokens)

        def work(tx: Transaction) -> Settled:
            end_hold(tx)
            ledger.append(tx, fields)
            treasury.count(tx, fields, pico=pico or 0)
            if also is not None:
                also(tx, settled)
            return settled

        recorded = self._door._store.submit(work)
        recorded.add_done_callback(_notice)
        return recorded


class _Ids:
    """Ids that begin with the time (44 bits, milliseconds), so that an index takes them at its end, and end with 52
    random bits from a pool: the system is asked for 4,096 bytes at a time, since asking is what takes long."""

    def __init__(self) -> None:
        self._pool: Iterator[str] = iter(())
        os.register_at_fork(after_in_child=self._forget)

    def __call__(self) -> str:
        """24 hexadecimal digits."""
        for random_part in self._pool:
            return f"{ledger.now_us() // 1000:011x}{random_part}"
        text = secrets.token_hex(4096)
        self._pool = iter([text[at : at + 13] for at in range(0, 8190, 13)])
        return self()

    def _forget(self) -> None:
        self._pool = iter(())


new_id = _Ids()
"""A fresh id for a step or a request: unguessable, and different in every process."""


def _sized(call: ModelCall, upstream: Upstream) -> ModelCall:
    """The call as this upstream gets it: its model name, and the smallest of the output limits that apply.

    Raises:
        BadRequest: even at six bytes a token the input alone is larger than the model's context.
    """
    if call.kind is Kind.EMBEDDINGS:  # nothing is written, and the context holds for each input, not for all of them
        return dataclasses.replace(call, model=upstream.model_name, max_tokens=0)
    size = pricing.input_bound(call)
    if size // 6 > upstream.context_tokens:
        raise BadRequest(
            f"the input of {size:,} bytes does not fit into the {upstream.context_tokens:,} tokens of upstream "
            f"{upstream.name}. Shorten it, or name an upstream with a larger limit.context"
        )
    room = upstream.context_tokens - size // 4
    tokens = max(1, min(call.max_tokens or upstream.output_tokens, upstream.output_tokens, max(room, 1)))
    return call.sized(upstream.model_name, tokens)


def _check_allowance(request: Request, call: ModelCall, upstream: Upstream, currency: str) -> None:
    """An allowance is the agent author's own limit: what would break it is refused before any budget is asked."""
    allowed = request.allowance_pico
    bound = None if allowed is None else pricing.upper_bound(call, upstream.price).pico
    if allowed is not None and bound is not None and bound > allowed:
        raise BudgetExceeded(
            f"allowance:{request.origin.agent}",
            limit=str(Money(allowed, currency)),
            spent="0",
            held="0",
            asked=str(Money(bound, currency)),
        )


def _status_of(error: BaseException, *, is_killed: bool) -> Status:
    if is_killed or isinstance(error, Killed):
        return Status.KILLED
    if isinstance(error, asyncio.CancelledError | GeneratorExit):
        return Status.CANCELLED
    return Status.FAILED


def _public(error: BaseException) -> str:
    """An error in our own words, as the ledger may hold it: an upstream's own words may echo what it was asked."""
    if isinstance(error, UpstreamError):
        return f"upstream {error.upstream}: {error.problem}"
    return str(error) or type(error).__name__


def _backoff_s(retry: int, error: UpstreamError) -> float:
    """Exponential with full jitter; an upstream that names its own delay (up to 30 s) is obeyed."""
    if error.retry_after_s is not None:
        return min(error.retry_after_s, 30.0)
    return random.uniform(0.5, 1.0) * FIRST_BACKOFF_S * 2.0 ** (retry - 1)


def _notice(recorded: asyncio.Future[T]) -> None:
    """Mark the future's error as seen: whoever needs the record awaits it, others must not get a warning."""
    if not recorded.cancelled():
        recorded.exception()
