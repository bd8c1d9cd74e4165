"""The story of one item (`Item`): what a workflow calls `do`.

A step is known by its fingerprint and not by its place: it is answered from its memo where the same was asked before,
else asked of a model, judged against its schema, and kept. Tools are in `tools`, what items share in `memory`.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import orjson
from pydantic import BaseModel

from twolane.batch.calls import ToolCall
from twolane.batch.conversation import Conversation
from twolane.batch.memory import Memories, Memory, Reader, Scope
from twolane.batch.processes import Processes
from twolane.batch.tools import Tool
from twolane.batch.workflow import Agent, Doable, NeedsCall, P, Prompt, R, Workflow
from twolane.domain.canonical import commitment
from twolane.domain.completion import Completion
from twolane.domain.document import Document
from twolane.domain.money import Money
from twolane.domain.records import Lane, ModelCall, Origin, Status, Subject
from twolane.domain.schema import judge, revive
from twolane.errors import HandoffRefused, Problem, UpstreamError
from twolane.kernel import Answer, Kernel, Request, Settled
from twolane.rules.fingerprint import fingerprint
from twolane.store import Row, Transaction
from twolane.store.vault import seal, unseal

T = TypeVar("T")


@dataclass(frozen=True)
class _Memo:
    """A stored output with what it once cost."""

    value: BaseModel | None
    """As its agent's own type; None for a turn of a conversation."""
    body: bytes
    step: str
    figures: dict[str, int | None]


@dataclass
class _Flight:
    """A step that is being performed, and how many wait for it."""

    task: asyncio.Future[Any]  # Any: each agent's own schema
    waiting: int = 0


@dataclass(frozen=True)
class Common:
    """What the items of a run share in one process."""

    kernel: Kernel
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
        is_plan: bool = False,
        common: Common | None = None,
    ) -> None:
        self.name = origin.item
        self.options = options
        """What the run was started with (`--with key=value`)."""
        self.refused_replies: dict[str, str] = {}
        """The latest refused reply of each agent, for the quarantine."""
        self._kernel, self._origin, self._subject, self._source = kernel, origin, subject, source
        self._is_plan = is_plan
        self._common = common or Common(kernel)
        self._reader = Reader(self._common.memories, origin, subject, is_plan=is_plan)
        self._flights: dict[str, _Flight] = {}
        self._path: tuple[str, ...] = ()
        """The workflows between the run's own and this one."""

    async def __call__(self, act: Doable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Perform an agent or a tool, or another workflow; identical calls in flight are made once."""
        value: Any  # Any: `Doable` says for each what it gives
        match act:
            case Agent():
                prompt = act.prompt(*args, **kwargs)
                key = self._fingerprint(act, prompt)
                value = await self._once(key, lambda: self._perform(act, prompt, key))
            case Tool():
                bound = inspect.signature(act.function).bind(*args, **kwargs)
                call = ToolCall(self._kernel, self._as(act.name), self._subject, act, bound)
                processes = self._common.processes
                value = await self._once(call.fingerprint, lambda: call.perform(processes, is_plan=self._is_plan))
            case Workflow():
                value = await self._nested(act, *args, **kwargs)
            case _:
                raise TypeError(f"do() takes an agent, a tool or a workflow, not {act!r:.80}")
        return value  # type: ignore[no-any-return]

    def memory(self, name: str, kind: type[T], *, scope: Scope = "run") -> Memory[T]:
        """A value of the run's memory (or, with `scope="item"`, of this item's own) under a name; see `Memory`."""
        return Memory(self._reader, name, kind, scope)

    async def _nested(self, flow: Workflow[..., Any], value: object) -> BaseModel:
        """Another workflow inside this item. Its steps name their agents `workflow/agent`, so that budgets and switches
        of this run's own workflow hold for them too."""
        if not isinstance(value, flow.takes):
            raise TypeError(f"workflow {flow.name} takes {flow.takes.__name__}, not {type(value).__name__}")
        source = value if isinstance(value, Document) else self._source
        inner = Item(
            self._kernel, self._origin, self._subject, source,
            options=self.options, is_plan=self._is_plan, common=self._common,
        )  # fmt: skip
        inner.refused_replies, inner._reader, inner._flights = self.refused_replies, self._reader, self._flights
        inner._path = (*self._path, flow.name)
        result = await flow.function(value, inner)
        if not isinstance(result, flow.returns):
            raise TypeError(f"workflow {flow.name} returned {type(result).__name__}, not {flow.returns.__name__}")
        return result

    def _as(self, name: str) -> Origin:
        return replace(self._origin, agent="/".join((*self._path, name)))

    async def _once(self, key: str, perform: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """One of several identical calls makes it, whoever gives up."""
        flight = self._flights.get(key)
        if flight is None:
            flight = self._flights[key] = _Flight(asyncio.ensure_future(perform()))
        flight.waiting += 1
        try:
            value: T = await asyncio.shield(flight.task)
            return value
        finally:
            flight.waiting -= 1
            if not flight.waiting:
                if self._flights.get(key) is flight:
                    del self._flights[key]
                if not flight.task.done():  # everybody who asked has gone away
                    flight.task.cancel()
                    await asyncio.wait([flight.task])

    def _fingerprint(self, agent: Agent[..., Any], prompt: Prompt, turns: Sequence[Mapping[str, object]] = ()) -> str:
        drawn = f"{self._origin.run}/{self._origin.item}/" if prompt.temperature > 0 else ""
        try:
            asked = fingerprint(
                tenant=self._origin.tenant,
                agent=agent.name,
                messages=prompt.messages(),
                schema=agent.schema(),
                candidates=self._kernel.candidates(agent.route),
                max_tokens=prompt.max_tokens or 0,
                temperature=prompt.temperature,
                sample=f"{drawn}{prompt.sample}",
                tools=[tool.definition() for tool in agent.tools],
                turns=turns,
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

    async def _perform(self, agent: Agent[..., R], prompt: Prompt, key: str) -> R:
        if agent.tools:
            return await Conversation(self, agent, prompt).value()
        memo = self._memo(agent, key)
        request = self._request(agent, prompt)
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
                request = replace(self._request(agent, _repaired(prompt, problems)), attempt=round_number + 1)
            within = _within(request, agent, spent_pico=spent, currency=self._kernel.config.currency)
            value, problems, settled = await self._ask(agent, within, key)
            spent += settled.pico or 0
            if value is not None:
                return value
        raise HandoffRefused(agent.name, problems)

    def _request(self, agent: Agent[..., Any], prompt: Prompt) -> Request:
        origin = self._as(agent.name)
        return Request(
            origin=origin,
            lane=Lane.BATCH,
            route=self._kernel.route(agent.route, origin, lane=Lane.BATCH, agent=agent.name),
            call=ModelCall(prompt.messages(), "", prompt.max_tokens or 0, prompt.temperature, agent.schema()),
            subject=self._subject,
        )

    async def _ask(
        self, agent: Agent[..., R], request: Request, key: str
    ) -> tuple[R | None, Sequence[Problem], Settled]:
        """One attempt at the upstream, judged before it is settled, so that all of it commits together."""

        def take(answer: Answer, completion: Completion) -> tuple[R | None, Sequence[Problem]]:
            judged = judge(completion.text, agent.returns, self._sources())
            problems = _why_cut(completion) if judged.problems and completion.finish_reason == "length" else ()
            problems = problems or judged.problems
            if judged.value is None:
                answer.status, answer.reason = Status.REFUSED, _where(problems)
                self.refused_replies[agent.name] = completion.text
            else:
                answer.also = self._keep(judged.body, key)
            return judged.value, problems

        (value, problems), settled = await self._answered(request, take)
        return value, problems, settled

    async def _answered(self, request: Request, take: Callable[[Answer, Completion], T]) -> tuple[T, Settled]:
        """What `take` makes of the whole answer, once it is on disk. An answer that breaks off halfway has reached
        nobody here: it is asked for again, as often as the upstream's `retries` say."""
        retries = self._kernel.upstreams[request.route.upstreams[0]].retries
        while True:
            has_begun = False  # until then the door makes the further attempts
            try:
                async with self._kernel.door.step(request) as answer:
                    has_begun = True
                    taken = take(answer, await answer.whole())
                return taken, await answer.durable()
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
            tx.run(
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

    def _memo(self, agent: Agent[..., R], key: str) -> _Memo | None:
        """The stored output, judged again: a validator may have been tightened since."""
        kept = self._kept(key)
        if kept is None:
            return None
        judged = revive(orjson.loads(kept.body), agent.returns, self._sources())
        return None if judged.value is None else replace(kept, value=judged.value)

    def _kept(self, key: str) -> _Memo | None:
        """The stored output as it lies there."""
        row = self._kernel.store.one("memo", fingerprint=key)
        if row is None:
            return None
        body = unseal(self._kernel.vault.subject(row, column="subject"), bytes(row["sealed"]))
        return _Memo(None, body, row["step"], _figures(row))

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
