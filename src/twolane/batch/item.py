"""The story of one item (`Item`): what a workflow calls `do`.

A step is known by its fingerprint and not by its place: it is answered from its memo where the same was asked before,
else asked of a model, judged against its schema, and kept.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import orjson
from pydantic import BaseModel

from twolane.batch.workflow import Agent, P, Prompt, R
from twolane.domain.canonical import commitment
from twolane.domain.completion import Completion
from twolane.domain.document import Document
from twolane.domain.money import Money
from twolane.domain.records import Lane, Message, ModelCall, Origin, Status, Subject
from twolane.domain.schema import judge, revive
from twolane.errors import HandoffRefused, Problem, UpstreamError
from twolane.kernel import Kernel, Request, Settled
from twolane.rules.fingerprint import fingerprint
from twolane.store import Row, Transaction, gather
from twolane.store.vault import seal, unseal


class NeedsCall(BaseException):  # noqa: N818 - an event of planning, not an error; user code must not catch it
    """While planning: this step has no memo, so a run would have to call."""

    def __init__(self, agent_name: str) -> None:
        self.agent = agent_name
        super().__init__(agent_name)


@dataclass(frozen=True)
class _Memo:
    """A stored output with what it once cost."""

    value: BaseModel
    body: bytes
    step: str
    figures: dict[str, int | None]


class _Flight:
    """A step that is being performed, and those who wait for it. A future for each of them: a shield around the task
    does the same for twice the time."""

    __slots__ = ("task", "waiters")

    def __init__(self, work: Coroutine[Any, Any, Any]) -> None:  # Any: each agent's own schema
        self.waiters: dict[asyncio.Future[Any], None] = {}
        self.task = asyncio.get_running_loop().create_task(self._fly(work))

    async def _fly(self, work: Coroutine[Any, Any, Any]) -> None:
        try:
            value = await work
        except BaseException as error:
            is_cancelled = isinstance(error, asyncio.CancelledError)
            for waiter in self.waiters:
                if not waiter.done():
                    waiter.cancel() if is_cancelled else waiter.set_exception(error)
            if is_cancelled or isinstance(error, KeyboardInterrupt | SystemExit):
                raise
        else:
            for waiter in self.waiters:
                if not waiter.done():
                    waiter.set_result(value)


class Item:
    """One item of a run on its way: what a workflow calls `do`.

    `await do(agent, …)` gives the agent's accepted output, from its memo where the same was asked before.

    Raises (from `do`):
        HandoffRefused: the reply and its repairs did not fit; the item goes to quarantine, unless the workflow
            catches it.
        Refused, UpstreamError, Killed: see `kernel.step`; the run stops and can be resumed.
    """

    def __init__(
        self,
        kernel: Kernel,
        origin: Origin,
        subject: Subject,
        source: Document | None,
        *,
        options: Mapping[str, str],
        is_plan: bool = False,
    ) -> None:
        self.name = origin.item
        self.options = options
        """What the run was started with (`--with key=value`)."""
        self.refused_replies: dict[str, str] = {}
        """The latest refused reply of each agent, for the quarantine."""
        self._kernel, self._origin, self._subject, self._source = kernel, origin, subject, source
        self._is_plan = is_plan
        self._flights: dict[str, _Flight] = {}
        self._origins: dict[str, Origin] = {}
        """By agent."""

    async def __call__(self, agent: Agent[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Perform an agent; identical calls in flight are made once."""
        prompt = agent.prompt(*args, **kwargs)
        messages = prompt.messages()
        key = self._fingerprint(agent, prompt, messages)
        flight = self._flights.get(key)
        if flight is None:
            flight = self._flights[key] = _Flight(self._perform(agent, prompt, messages, key))
        waiter: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        flight.waiters[waiter] = None
        try:
            return await waiter
        finally:
            del flight.waiters[waiter]
            if not flight.waiters:
                if self._flights.get(key) is flight:
                    del self._flights[key]
                if not flight.task.done():  # everybody who asked has gone away
                    flight.task.cancel()
                    await asyncio.wait([flight.task])

    def _fingerprint(self, agent: Agent[..., Any], prompt: Prompt, messages: tuple[Message, ...]) -> str:
        drawn = f"{self._origin.run}/{self._origin.item}/" if prompt.temperature > 0 else ""
        try:
            asked = fingerprint(
                tenant=self._origin.tenant,
                agent=agent.name,
                messages=messages,
                schema=agent.schema(),
                candidates=self._kernel.candidates(agent.route),
                max_tokens=prompt.max_tokens or 0,
                temperature=prompt.temperature,
                sample=f"{drawn}{prompt.sample}",
            )
        except ValueError as error:
            raise HandoffRefused(agent.name, [Problem("", f"its prompt cannot be written as JSON: {error}")]) from None
        return self._kernel.vault.keyed(asked)

    async def come_to_rest(self) -> None:
        """Wait for calls that the workflow began and then left alone, as `asyncio.gather` does when one of its own
        fails: they are paid for, so they are kept, and none outlives its item."""
        while flights := [flight.task for flight in self._flights.values() if not flight.task.done()]:
            await asyncio.wait(flights)
            await asyncio.sleep(0)

    async def _perform(self, agent: Agent[..., R], prompt: Prompt, messages: tuple[Message, ...], key: str) -> R:
        memo = await self._memo(agent, key)
        request = self._request(agent, prompt, messages)
        if memo is not None:
            if not self._is_plan:
                self._kernel.switches.check(request.origin.scopes())
                self._reuse(memo, request)
            return memo.value  # type: ignore[return-value]  # revived with the agent's own schema
        if self._is_plan:
            raise NeedsCall(agent.name)
        problems: Sequence[Problem] = ()
        spent = 0
        for round_number in range(agent.repairs + 1):
            if round_number:
                repaired = _repaired(prompt, problems)
                request = replace(self._request(agent, repaired, repaired.messages()), attempt=round_number + 1)
            within = _within(request, agent, spent_pico=spent, currency=self._kernel.config.currency)
            value, problems, settled = await self._ask(agent, within, key)
            spent += settled.pico or 0
            if value is not None:
                return value
        raise HandoffRefused(agent.name, problems)

    def _request(self, agent: Agent[..., Any], prompt: Prompt, messages: tuple[Message, ...]) -> Request:
        origin = self._origins.get(agent.name)
        if origin is None:
            origin = self._origins[agent.name] = replace(self._origin, agent=agent.name)
        return Request(
            origin=origin,
            lane=Lane.BATCH,
            route=self._kernel.route(agent.route, origin, lane=Lane.BATCH, agent=agent.name),
            call=ModelCall(messages, "", prompt.max_tokens or 0, prompt.temperature, agent.schema()),
            subject=self._subject,
        )

    async def _ask(
        self, agent: Agent[..., R], request: Request, key: str
    ) -> tuple[R | None, Sequence[Problem], Settled]:
        """One attempt at the upstream, judged before it is settled, so that all of it commits together. An answer that
        breaks off halfway has reached nobody here: it is asked for again, as often as the upstream's `retries` say."""
        retries = self._kernel.upstreams[request.route.upstreams[0]].retries
        while True:
            has_begun = False  # until then the door makes the further attempts
            try:
                async with self._kernel.door.step(request) as answer:
                    has_begun = True
                    completion = await answer.whole()
                    judged = judge(completion.text, agent.returns, self._sources())
                    problems = _why_cut(completion) if judged.problems and completion.finish_reason == "length" else ()
                    problems = problems or judged.problems
                    if judged.value is None:
                        answer.status, answer.reason = Status.REFUSED, _where(problems)
                        self.refused_replies[agent.name] = completion.text
                    else:
                        answer.also = self._keep(judged.body, key)
                return judged.value, problems, await answer.durable()
            except UpstreamError as error:
                if retries == 0 or not has_begun or not error.retryable:
                    raise
                retries -= 1
                request = replace(request, attempt=request.attempt + 1)

    def _sources(self) -> Sequence[Document]:
        return (self._source,) if self._source is not None else ()

    def _keep(self, body: bytes, key: str) -> Callable[[Transaction, Settled], None]:
        """What the step commits beside its record: the accepted reply and the memo. The reply and not the value made
        from it, so that reading it again goes the same way: aliases, converters and all."""
        sealed = seal(self._subject, body)

        def also(tx: Transaction, settled: Settled) -> None:
            usage = settled.usage
            gather(
                tx,
                "add_memo",
                fingerprint=key,
                subject=self._subject.id,
                body=tx.run("add_body", subject=self._subject.id, sealed=sealed),
                step=settled.step,
                input_tokens=usage.input_tokens if usage else 0,
                output_tokens=usage.output_tokens if usage else 0,
                cost_pico=settled.pico,
                total_us=settled.total_us,
            )

        return also

    async def _memo(self, agent: Agent[..., R], key: str) -> _Memo | None:
        """The stored output, judged again: a validator may have been tightened since."""
        row = await self._kernel.lookups.one("memos", key)
        if row is None:
            return None
        body = unseal(self._kernel.vault.subject(row, column="subject"), bytes(row["sealed"]))
        judged = revive(orjson.loads(body), agent.returns, self._sources())
        return None if judged.value is None else _Memo(judged.value, body, row["step"], _figures(row))

    def _reuse(self, memo: _Memo, request: Request) -> None:
        """An entry that points at the step that paid. Nobody waits for it: the item's own end is written after it."""
        digest = commitment(self._subject.salt, memo.body)
        recorded = self._kernel.store.submit(
            lambda tx: self._kernel.door.reuse(tx, request, of_step=memo.step, output_digest=digest)
        )
        recorded.add_done_callback(lambda future: future.cancelled() or future.exception())


def _within(request: Request, agent: Agent[..., Any], *, spent_pico: int, currency: str) -> Request:
    if agent.allowance is None:
        return request
    return replace(request, allowance_pico=max(0, Money.parse(agent.allowance, currency).pico - spent_pico))


def _where(problems: Sequence[Problem]) -> str:
    """What a leaf may know of problems: where they are. Their words may quote the document."""
    more = f" and {len(problems) - 1} more" if len(problems) > 1 else ""
    return f"handoff refused at {problems[0].pointer or '/'}{more}"


def _repaired(prompt: Prompt, problems: Sequence[Problem]) -> Prompt:
    """The same prompt with the problems quoted, and only those: not the history."""
    lines = "\n".join(f"- {problem}" for problem in problems)
    words = f"{prompt.user}\n\nAn earlier reply was refused for these problems; reply again without them:\n{lines}"
    return replace(prompt, user=words)


def _why_cut(completion: Completion) -> tuple[Problem, ...]:
    return (Problem("", f"the reply was cut off at max_tokens, after {len(completion.text):,} characters"),)


def _figures(row: Row) -> dict[str, int | None]:
    return {name: row[name] for name in ("input_tokens", "output_tokens", "cost_pico", "total_us")}
