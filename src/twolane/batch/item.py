"""The story of one item (`Item`): what a workflow calls `do`.

A step is known by its fingerprint and not by its place: it is answered from its memo where the same was asked before,
else asked of a model, judged against its schema, and kept.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from twolane.batch.memo import Given, Memos, Sought, Steer
from twolane.batch.workflow import Agent, P, Prompt, R
from twolane.domain.completion import Completion
from twolane.domain.document import Document
from twolane.domain.money import Money
from twolane.domain.records import Lane, ModelCall, Origin, Status, Subject
from twolane.domain.schema import judge
from twolane.errors import HandoffRefused, Problem, UpstreamError
from twolane.kernel import Kernel, Request, Settled


class NeedsCall(BaseException):  # noqa: N818 - an event of planning, not an error; user code must not catch it
    """While planning: this step has no memo, so a run would have to call."""

    def __init__(self, agent_name: str) -> None:
        self.agent = agent_name
        super().__init__(agent_name)


@dataclass(frozen=True, slots=True)
class Miss:
    """While planning: a step that a run would have to call, and why."""

    agent: str
    why: Callable[[], str]
    request: Request


@dataclass
class _Flight:
    """A step that is being performed, and how many wait for it."""

    task: asyncio.Future[Any]  # Any: each agent's own schema
    waiting: int = 0


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
        steer: Steer | None = None,
        draws: str = "",
        is_plan: bool = False,
    ) -> None:
        self.name = origin.item
        self.options = options
        """What the run was started with (`--with key=value`)."""
        self.refused_replies: dict[str, str] = {}
        """The latest refused reply of each agent, for the quarantine."""
        self.hits: list[str] = []
        """Agents whose steps were answered from a memo, in order."""
        self.misses: list[Miss] = []
        """While planning: the steps that have none."""
        self._kernel, self._origin, self._subject, self._source = kernel, origin, subject, source
        self._memos = Memos(kernel, subject, self._sources())
        self._steer, self._draws = steer or Steer(), draws or origin.run
        self._is_plan = is_plan
        self._flights: dict[str, _Flight] = {}

    async def __call__(self, agent: Agent[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Perform an agent; identical calls in flight are made once."""
        prompt = agent.prompt(*args, **kwargs)
        sought = self._seek(agent, prompt, args, kwargs)
        key = sought.key
        flight = self._flights.get(key)
        if flight is None:
            flight = self._flights[key] = _Flight(asyncio.ensure_future(self._perform(agent, prompt, sought)))
        flight.waiting += 1
        try:
            value: R = await asyncio.shield(flight.task)
            self._memos.made(value, agent.name)
            return value
        finally:
            flight.waiting -= 1
            if not flight.waiting:
                if self._flights.get(key) is flight:
                    del self._flights[key]
                if not flight.task.done():  # everybody who asked has gone away
                    flight.task.cancel()
                    await asyncio.wait([flight.task])

    def _seek(
        self,
        agent: Agent[..., Any],
        prompt: Prompt,
        args: Sequence[object] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> Sought:
        drawn, again = f"{self._draws}/{self._origin.item}/", self._steer.again.get(agent.name, "")
        given = Given(tuple(args), dict(kwargs or {}))
        return self._memos.seek(agent, prompt, given, tenant=self._origin.tenant, drawn=drawn, again=again)

    async def come_to_rest(self) -> None:
        """Wait for calls that the workflow began and then left alone, as `asyncio.gather` does when one of its own
        fails: they are paid for, so they are kept, and none outlives its item."""
        while flights := [flight.task for flight in self._flights.values() if not flight.task.done()]:
            await asyncio.wait(flights)
            await asyncio.sleep(0)

    async def _perform(self, agent: Agent[..., R], prompt: Prompt, sought: Sought) -> R:
        memo, other = self._memos.find(sought), self._steer.route(agent.name)
        if memo is None and other is not None:  # what its own route answered stays good; what is missing is asked there
            sought = sought.on(other, self._kernel)
            memo, agent = self._memos.find(sought), sought.agent
        request = self._request(agent, prompt)
        if memo is not None:
            self.hits.append(agent.name)
            if not self._is_plan:
                self._kernel.switches.check(request.origin.scopes())
                self._memos.reuse(memo, sought, request)
            return memo.value  # type: ignore[return-value]  # revived with the agent's own schema
        if self._is_plan:
            self.misses.append(Miss(agent.name, partial(self._memos.why, sought), request))
            raise NeedsCall(agent.name)
        problems: Sequence[Problem] = ()
        spent = 0
        for round_number in range(agent.repairs + 1):
            if round_number:
                request = replace(self._request(agent, _repaired(prompt, problems)), attempt=round_number + 1)
            within = _within(request, agent, spent_pico=spent, currency=self._kernel.config.currency)
            value, problems, settled = await self._ask(agent, within, sought)
            spent += settled.pico or 0
            if value is not None:
                return value
        raise HandoffRefused(agent.name, problems)

    def _request(self, agent: Agent[..., Any], prompt: Prompt) -> Request:
        origin = replace(self._origin, agent=agent.name)
        return Request(
            origin=origin,
            lane=Lane.BATCH,
            route=self._kernel.route(agent.route, origin, lane=Lane.BATCH, agent=agent.name),
            call=ModelCall(prompt.messages(), "", prompt.max_tokens or 0, prompt.temperature, agent.schema()),
            subject=self._subject,
        )

    async def _ask(
        self, agent: Agent[..., R], request: Request, sought: Sought
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
                        answer.also = self._memos.keep(sought, judged.body)
                return judged.value, problems, await answer.durable()
            except UpstreamError as error:
                if retries == 0 or not has_begun or not error.retryable:
                    raise
                retries -= 1
                request = replace(request, attempt=request.attempt + 1)

    def _sources(self) -> Sequence[Document]:
        return (self._source,) if self._source is not None else ()


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
