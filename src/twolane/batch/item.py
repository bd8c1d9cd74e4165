"""The story of one item (`Item`): what a workflow calls `do`.

A step is known by its fingerprint and not by its place: it is answered from its memo where the same was asked before,
else asked of a model, judged against its schema, and kept.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import orjson
from pydantic import BaseModel

from twolane.batch.handoff import Handoff
from twolane.batch.workflow import Agent, P, Prompt, R
from twolane.domain.canonical import commitment
from twolane.domain.document import Document
from twolane.domain.records import Lane, ModelCall, Origin, Subject
from twolane.domain.schema import revive
from twolane.errors import HandoffRefused, Problem
from twolane.kernel import Kernel, Request, Settled
from twolane.rules.fingerprint import fingerprint
from twolane.store import Row, Transaction
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
        is_plan: bool = False,
    ) -> None:
        self.name = origin.item
        self.options = options
        """What the run was started with (`--with key=value`)."""
        self.refused_replies: dict[str, str] = {}
        """The latest refused reply of each agent, for the quarantine."""
        self._is_given_up = False
        self._kernel, self._origin, self._subject, self._source = kernel, origin, subject, source
        self._is_plan = is_plan
        self._flights: dict[str, _Flight] = {}

    async def __call__(self, agent: Agent[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Perform an agent; identical calls in flight are made once."""
        if self._is_given_up:  # whoever is deaf to the cancellation asks on: an error here he might be deaf to as well
            await asyncio.get_running_loop().create_future()
        prompt, check = agent(*args, **kwargs), agent.check_with(*args, **kwargs)
        key = self._fingerprint(agent, prompt)
        flight = self._flights.get(key)
        if flight is None:
            flight = self._flights[key] = _Flight(asyncio.ensure_future(self._perform(agent, prompt, check, key)))
        flight.waiting += 1
        try:
            value: R = await asyncio.shield(flight.task)
            return value
        finally:
            flight.waiting -= 1
            if not flight.waiting:
                if self._flights.get(key) is flight:
                    del self._flights[key]
                if not flight.task.done():  # everybody who asked has gone away
                    flight.task.cancel()
                    await asyncio.wait([flight.task])

    def _fingerprint(self, agent: Agent[..., Any], prompt: Prompt) -> str:
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

    def give_up(self) -> None:
        """From now on nothing is asked for: whatever of the workflow still runs waits for ever."""
        self._is_given_up = True

    async def _perform(self, agent: Agent[..., R], prompt: Prompt, check: Callable[[R], object] | None, key: str) -> R:
        sources = prompt.sources(self._source)
        memo = self._memo(agent, sources, check, key)
        request = self._request(agent, prompt)
        if memo is not None:
            if not self._is_plan:
                self._kernel.switches.check(request.origin.scopes())
                self._reuse(memo, request)
            return memo.value  # type: ignore[return-value]  # revived with the agent's own schema
        if self._is_plan:
            raise NeedsCall(agent.name)
        return await Handoff(
            self._kernel,
            agent,
            prompt,
            request=lambda prompt: self._request(agent, prompt),
            sources=sources,
            check=check,
            keep=lambda body: self._keep(body, key),
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

    def _memo(
        self, agent: Agent[..., R], sources: Sequence[Document], check: Callable[[R], object] | None, key: str
    ) -> _Memo | None:
        """The stored output, judged again: a validator may have been tightened since."""
        row = self._kernel.store.one("memo", fingerprint=key)
        if row is None:
            return None
        body = unseal(self._kernel.vault.subject(row, column="subject"), bytes(row["sealed"]))
        judged = revive(orjson.loads(body), agent.returns, sources, check)
        return None if judged.value is None else _Memo(judged.value, body, row["step"], _figures(row))

    def _reuse(self, memo: _Memo, request: Request) -> None:
        """An entry that points at the step that paid. Nobody waits for it: the item's own end is written after it."""
        digest = commitment(self._subject.salt, memo.body)
        recorded = self._kernel.store.submit(
            lambda tx: self._kernel.door.reuse(tx, request, of_step=memo.step, output_digest=digest)
        )
        recorded.add_done_callback(lambda future: future.cancelled() or future.exception())


def _figures(row: Row) -> dict[str, int | None]:
    return {name: row[name] for name in ("input_tokens", "output_tokens", "cost_pico", "total_us")}
