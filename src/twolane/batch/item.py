"""The story of one item (`Item`): what a workflow calls `do`.

A step is known by its fingerprint and not by its place: it is answered from its memo where the same was asked before,
else asked of a model, judged against its schema, and kept. Tools are in `tools`, what items share in `memory`.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeVar

from pydantic import BaseModel

from twolane.batch.calls import ToolCall
from twolane.batch.conversation import Conversation
from twolane.batch.deadline import within
from twolane.batch.handoff import Handoff
from twolane.batch.memo import Given, Memos, Sought, Steer
from twolane.batch.memory import Memories, Memory, Reader, Scope
from twolane.batch.processes import Processes
from twolane.batch.tools import Tool
from twolane.batch.workflow import Agent, Doable, NeedsCall, NotBegun, P, Prompt, R, Workflow
from twolane.domain.document import Document
from twolane.domain.records import Lane, Message, ModelCall, Origin, Subject
from twolane.domain.schema import objection
from twolane.errors import HandoffRefused
from twolane.kernel import Kernel, Request
from twolane.telemetry import AGENT, WORKFLOW

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Miss:
    """While planning: a step that a run would have to call, and why. Of an agent there is the request, of a tool the
    price in picounits."""

    agent: str
    why: Callable[[], str]
    request: Request | None = None
    pico: int = 0


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


@dataclass(frozen=True)
class Common:
    """What the items of a run share in one process."""

    kernel: Kernel
    is_ending: Callable[[], bool] = lambda: False
    """Whether items of which nothing has begun shall not begin any more."""
    memories: Memories = field(init=False)
    processes: Processes = field(init=False, default_factory=Processes)

    def __post_init__(self) -> None:
        object.__setattr__(self, "memories", Memories(self.kernel))

    async def aclose(self) -> None:
        """End the processes that tools ran in."""
        await self.processes.aclose()


class Item:
    """One item of a run on its way: what a workflow calls `do`.

    `await do(agent, …)` gives the agent's accepted output, from its memo where the same was asked before;
    `await do(tool, …)` what a tool gives; `await do(workflow, value)` the result of another workflow, worked out within
    this item: under its budget, with its memos. `do.memory(…)` is what items tell one another.

    Raises (from `do`):
        HandoffRefused: the reply and its repairs did not fit, or a tool failed; the item goes to quarantine, unless the
            workflow catches it.
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
        common: Common | None = None,
    ) -> None:
        self.name = origin.item
        self.options = options
        """What the run was started with (`--with key=value`)."""
        self.refused_replies: dict[str, str] = {}
        """The latest refused reply of each agent, for the quarantine."""
        self._is_given_up = False
        self._has_begun = False
        self.is_left = False
        """Its run stopped before its first step had its turn: whatever its workflow makes of that, it stays queued."""
        self._may_begin: Callable[[], None] = self._begin
        self._inner: list[Item] = []
        """Of the workflows under way within this one."""
        self.hits: list[str] = []
        """Agents and tools whose steps were answered, while planning from their memos, in order."""
        self.misses: list[Miss] = []
        """While planning: the steps that have none."""
        self._kernel, self._origin, self._subject, self._source = kernel, origin, subject, source
        self._memos = Memos(kernel, subject, source)
        self._steer, self._draws = steer or Steer(), draws or origin.run
        self._is_plan = is_plan
        self._common = common or Common(kernel)
        self._reader = Reader(self._common.memories, origin, subject, is_plan=is_plan)
        self._flights: dict[str, _Flight] = {}
        self._origins: dict[str, Origin] = {}
        """By agent."""
        self._path: tuple[str, ...] = ()
        """The workflows between the run's own and this one."""

    async def __call__(self, act: Doable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Perform an agent or a tool, or another workflow; identical calls in flight are made once."""
        value: Any  # Any: `Doable` says for each what it gives
        if self._is_given_up:  # who is deaf to the cancellation might be deaf to an error as well, and ask on
            await asyncio.get_running_loop().create_future()
        match act:
            case Agent():
                prompt = act(*args, **kwargs)
                messages = prompt.messages()
                sought = self._seek(act, prompt, messages, args, kwargs)
                value = await self._once(
                    sought.key, lambda: self.traced(AGENT, act.name, self._perform(act, prompt, messages, sought))
                )
                # One who shared the call has inputs of its own, which only its own check knows.
                if problem := objection(value, sought.check):
                    raise HandoffRefused(act.name, [problem])
                self._memos.made(value, act.name)
            case Tool():
                bound = inspect.signature(act.function).bind(*args, **kwargs)
                origin = self._as(act.name)
                call = ToolCall(
                    self._kernel, origin, self._subject, act, bound,
                    drawn=f"{self._draws}/{self._origin.item}", again=self._steer.again.get(origin.agent, ""),
                )  # fmt: skip
                value = await self._once(call.fingerprint, lambda: self._use(call, origin.agent))
            case Workflow():
                value = await self._nested(act, *args, **kwargs)
            case _:
                raise TypeError(f"do() takes an agent, a tool or a workflow, not {act!r:.80}")
        return value  # type: ignore[no-any-return]

    def memory(self, name: str, kind: type[T], *, scope: Scope = "run") -> Memory[T]:
        """A value of the run's memory (or, with `scope="item"`, of this item's own) under a name; see `Memory`."""
        return Memory(self._reader, name, kind, scope)

    async def _nested(self, flow: Workflow[..., Any], value: object) -> BaseModel:
        """Another workflow inside this item, within its own time. Its steps name their agents `workflow/agent`, so that
        budgets and switches of this run's own workflow hold for them too."""
        if not isinstance(value, flow.takes):
            raise TypeError(f"workflow {flow.name} takes {flow.takes.__name__}, not {type(value).__name__}")
        source = value if isinstance(value, Document) else self._source
        inner = Item(
            self._kernel, self._origin, self._subject, source,
            options=self.options, steer=self._steer, draws=self._draws, is_plan=self._is_plan, common=self._common,
        )  # fmt: skip
        inner.refused_replies, inner._reader, inner._flights = self.refused_replies, self._reader, self._flights
        inner._may_begin = self._may_begin
        inner.hits, inner.misses, inner._path = self.hits, self.misses, (*self._path, flow.name)
        self._inner.append(inner)
        try:
            result = await within(
                flow.timeout_s, self.traced(WORKFLOW, flow.name, flow.function(value, inner)), inner, name=flow.name
            )
        finally:
            self._inner.remove(inner)
        if not isinstance(result, flow.returns):
            raise TypeError(f"workflow {flow.name} returned {type(result).__name__}, not {flow.returns.__name__}")
        return result

    def _as(self, name: str) -> Origin:
        origin = self._origins.get(name)
        if origin is None:
            origin = self._origins[name] = replace(self._origin, agent="/".join((*self._path, name)))
        return origin

    async def _once(self, key: str, perform: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """One of several identical calls makes it, whoever gives up."""
        flight = self._flights.get(key)
        if flight is None:
            flight = self._flights[key] = _Flight(perform())
        waiter: asyncio.Future[T] = asyncio.get_running_loop().create_future()
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

    def _seek(
        self,
        agent: Agent[..., Any],
        prompt: Prompt,
        messages: tuple[Message, ...],
        args: Sequence[object] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> Sought:
        drawn, again = f"{self._draws}/{self._origin.item}/", self._steer.again.get(self._as(agent.name).agent, "")
        given = Given(tuple(args), dict(kwargs or {}))
        return self._memos.seek(agent, prompt, messages, given, tenant=self._origin.tenant, drawn=drawn, again=again)

    async def come_to_rest(self) -> None:
        """Wait for calls that the workflow began and then left alone, as `asyncio.gather` does when one of its own
        fails: they are paid for, so they are kept, and none outlives its item."""
        while flights := [flight.task for flight in self._flights.values() if not flight.task.done()]:
            await asyncio.wait(flights)
            await asyncio.sleep(0)

    def give_up(self) -> None:
        """From now on nothing is asked for: whatever of the workflow still runs waits for ever."""
        self._is_given_up = True
        for inner in self._inner:
            inner.give_up()

    def _missed(self, sought: Sought, request: Request) -> NeedsCall:
        """While planning: remember a step that would have to call."""
        self.misses.append(Miss(request.origin.agent, partial(self._memos.why, sought), request))
        return NeedsCall(request.origin.agent)

    def _begin(self) -> None:
        """A step's turn has come.

        Raises:
            NotBegun: it is the item's first, and its run stops.
        """
        if not self._has_begun and self._common.is_ending():
            self.is_left = True
            raise NotBegun
        self._has_begun = True

    async def _use(self, call: ToolCall[Any], name: str) -> Any:  # Any: what the tool says it gives
        if not self._is_plan:
            self._may_begin()
        try:
            value = await call.perform(self._common.processes, is_plan=self._is_plan)
        except NeedsCall:
            self.misses.append(Miss(name, call.why, pico=call.pico))
            raise
        self.hits.append(name)
        return value

    def traced(self, operation: str, name: str, work: Any) -> Any:  # Any: what can be awaited, given back as it came
        """An agent's or a workflow's work, inside a span where somebody traces."""
        tracing, origin = self._kernel.telemetry.tracing, self._origin
        if tracing is None or self._is_plan:
            return work
        return tracing.around(operation, name, work, run=origin.run, tenant=origin.tenant, item=self._subject.id)

    async def _perform(self, agent: Agent[..., R], prompt: Prompt, messages: tuple[Message, ...], sought: Sought) -> R:
        if agent.tools:
            return await Conversation(self, agent, prompt, sought).value()
        memo, other = await self._memos.find(sought), self._steer.route(agent.name)
        if memo is None and other is not None:  # what its own route answered stays good; what is missing is asked there
            sought = sought.on(other, self._kernel)
            memo, agent = await self._memos.find(sought), sought.agent
        request = self._request(agent, prompt, messages)
        if memo is not None:
            self.hits.append(request.origin.agent)
            if not self._is_plan:
                self._kernel.switches.check(request.origin.scopes())
                self._memos.reuse(memo, sought, request)
            return memo.value  # type: ignore[return-value]  # revived with the agent's own schema
        if self._is_plan:
            raise self._missed(sought, request)
        return await Handoff(
            self._kernel,
            agent,
            prompt,
            request=lambda asked: request if asked is prompt else self._request(agent, asked, asked.messages()),
            sources=sought.sources,
            check=sought.check,
            keep=lambda body: self._memos.keep(sought, body),
            refused_replies=self.refused_replies,
        ).reply()

    def _request(self, agent: Agent[..., Any], prompt: Prompt, messages: tuple[Message, ...]) -> Request:
        origin = self._as(agent.name)
        return Request(
            origin=origin,
            lane=Lane.BATCH,
            route=self._kernel.route(agent.route, origin, lane=Lane.BATCH, agent=agent.name),
            call=ModelCall(messages, "", prompt.max_tokens or 0, prompt.temperature, agent.schema()),
            subject=self._subject,
            may_begin=self._may_begin,
        )
