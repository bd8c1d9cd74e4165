"""The story of one item (`Item`): what a workflow calls `do`.

A step is known by its fingerprint and not by its place: it is answered from its memo where the same was asked before,
else asked of a model, judged against its schema, and kept.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from twolane.batch.handoff import Handoff
from twolane.batch.memo import Given, Memos, Sought, Steer
from twolane.batch.workflow import Agent, P, Prompt, R
from twolane.domain.document import Document
from twolane.domain.records import Lane, ModelCall, Origin, Subject
from twolane.kernel import Kernel, Request


class NeedsCall(BaseException):  # noqa: N818 - an event of planning, not an error; user code must not catch it
    """While planning: this step has no memo, so a run would have to call."""

    def __init__(self, agent_name: str) -> None:
        self.agent = agent_name
        super().__init__(agent_name)


@dataclass(frozen=True, slots=True)
class Miss:
    """While planning: a step that a run would have to call, and why."""

    agent: str
    why: str
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
        self._is_given_up = False
        self.hits: list[str] = []
        """Agents whose steps were answered from a memo, in order."""
        self.misses: list[Miss] = []
        """While planning: the steps that have none."""
        self._kernel, self._origin, self._subject, self._source = kernel, origin, subject, source
        self._memos = Memos(kernel, subject, source)
        self._steer, self._draws = steer or Steer(), draws or origin.run
        self._is_plan = is_plan
        self._flights: dict[str, _Flight] = {}

    async def __call__(self, agent: Agent[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Perform an agent; identical calls in flight are made once."""
        if self._is_given_up:  # whoever is deaf to the cancellation asks on: an error here he might be deaf to as well
            await asyncio.get_running_loop().create_future()
        prompt = agent(*args, **kwargs)
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

    def give_up(self) -> None:
        """From now on nothing is asked for: whatever of the workflow still runs waits for ever."""
        self._is_given_up = True

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
            self.misses.append(Miss(agent.name, self._memos.why(sought), request))
            raise NeedsCall(agent.name)
        return await Handoff(
            self._kernel,
            agent,
            prompt,
            request=lambda prompt: self._request(agent, prompt),
            sources=sought.sources,
            check=sought.check,
            keep=lambda body: self._memos.keep(sought, body),
            refused_replies=self.refused_replies,
        ).reply()

    def _request(self, agent: Agent[..., Any], prompt: Prompt) -> Request:
        origin = replace(self._origin, agent=agent.name)
        return Request(
            origin=origin,
            lane=Lane.BATCH,
            route=self._kernel.route(agent.route, origin, lane=Lane.BATCH, agent=agent.name),
            call=ModelCall(prompt.messages(), "", prompt.max_tokens or 0, prompt.temperature, agent.schema()),
            subject=self._subject,
        )
