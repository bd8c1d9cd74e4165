"""What a run would call, reuse and pay, before it does: its items are walked without a call.

An item's walk ends at the first step that needs one: what its answer will be, nobody knows. What comes after is counted
as the same item's earlier run had it (else as an item of the workflow's last run has on average), and said to be
unknown: where the answer turns out the same, later steps keep their memos.
"""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any

from pydantic import ValidationError

from twolane.batch import run as runs
from twolane.batch.again import check_agent
from twolane.batch.answers import Shape, shapes_of
from twolane.batch.deadline import WALK_S, within
from twolane.batch.item import Item, Miss
from twolane.batch.workflow import NeedsCall, Workflow
from twolane.domain.document import Document
from twolane.domain.money import decimal_string
from twolane.domain.records import Origin
from twolane.kernel import Kernel
from twolane.knowledge.ingest import Source
from twolane.rules import pricing
from twolane.rules.fingerprint import NEVER
from twolane.store import Row

LOOK_BACK = 5
"""How many earlier runs of a workflow are looked through for the shape and the cost of its items."""
AFTER = "unknown until a step before it has answered"
REFUSED = "its last reply was refused"


@dataclass
class AgentPlan:
    """What one agent would do. `unknown` of the `calls` may be spared."""

    calls: float = 0
    unknown: float = 0
    reused: int = 0
    pico: float | None = 0
    """None where a call has no price."""
    why: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    def fields(self) -> dict[str, object]:
        """As one JSON object; the cost of calls not made yet is always an estimate."""
        calls = round(self.calls)
        return {
            "calls": calls,
            "unknown": round(self.unknown),
            "reused": self.reused,
            "cost": None if self.pico is None else decimal_string(round(self.pico)),
            "estimated": calls > 0,
            "why": {text: round(count) for text, count in sorted(self.why.items(), key=lambda each: -each[1])},
        }


@dataclass
class Plan:
    """The fields of `run plan --json`. Money as decimal strings; None is unknown."""

    flow: str
    currency: str
    run: str | None = None
    items: int = 0
    unreadable: int = 0
    quarantined: int = 0
    """Items that would go to quarantine without a further call: their workflow refuses them, or its own code fails."""
    unshaped: int = 0
    """Items of which nothing is known after their first call: no run of this workflow came so far."""
    agents: dict[str, AgentPlan] = field(default_factory=lambda: defaultdict(AgentPlan))

    @property
    def calls(self) -> int:
        """Calls in all, those that may be spared included."""
        return sum(round(each.calls) for each in self.agents.values())

    @property
    def reused(self) -> int:
        """Steps that a memo answers."""
        return sum(each.reused for each in self.agents.values())

    @property
    def cost(self) -> str | None:
        """What the calls would cost; None where a price, or what comes after the first call, is unknown."""
        amounts = [each.pico for each in self.agents.values()]
        if self.unshaped or None in amounts:
            return None
        return decimal_string(round(sum(amount or 0 for amount in amounts)))

    def fields(self) -> dict[str, object]:
        """As one JSON object."""
        return {
            "run": self.run,
            "flow": self.flow,
            "items": self.items,
            "unreadable": self.unreadable,
            "quarantined": self.quarantined,
            "unshaped": self.unshaped,
            "calls": self.calls,
            "unknown": sum(round(each.unknown) for each in self.agents.values()),
            "reused": self.reused,
            "cost": self.cost,
            "currency": self.currency,
            "estimated": self.calls > 0,
            "by_agent": {name: each.fields() for name, each in self.agents.items()},
        }


@dataclass(frozen=True, slots=True)
class Over:
    """Which items of a run are planned for."""

    quarantined: bool = False
    """Only those in quarantine."""
    from_agent: str | None = None
    """As if this agent were asked again."""


async def plan_run(kernel: Kernel, flow: Workflow, run: str, over: Over) -> Plan:
    """What today's code would call for the items of a run.

    Raises:
        NotFound: there is no such run, or the agent never answered in it.
    """
    row = runs.find(kernel, run)
    if over.from_agent is not None:
        check_agent(kernel, run, over.from_agent)
    planner = _Planner(kernel, flow, Plan(row["flow"], kernel.config.currency, run), row["tenant"], first=run)
    for item in _items(kernel, run):
        if over.quarantined and item["status"] != "quarantined":
            continue
        planner.plan.items += 1
        if item["source"] is None:
            planner.plan.unreadable += 1
            continue
        steer = runs.steer_of(kernel, run, item["name"])
        if over.from_agent is not None:
            steer = replace(steer, again={**steer.again, over.from_agent: "plan"})
        refused = item["agent"] if item["status"] == "quarantined" else ""
        try:
            opened = runs.open_item(kernel, flow, row, item, is_plan=True, steer=steer)
        except ValidationError:  # the workflow's own model was changed: the run would quarantine it
            planner.plan.quarantined += 1
            continue
        await planner.walk(item["subject"], *opened, refused)
    return planner.plan


async def plan_sources(
    kernel: Kernel,
    flow_name: str,
    flow: Workflow,
    sources: Sequence[Source],
    *,
    options: Mapping[str, str],
    tenant: str,
) -> Plan:
    """What a new run over these would call. Nothing is written."""
    planner = _Planner(kernel, flow, Plan(flow_name, kernel.config.currency), tenant)
    for source in sources:
        planner.plan.items += 1
        body, _ = runs.input_of(flow, source)
        if body is None:
            planner.plan.unreadable += 1
            continue
        subject, _ = kernel.vault.new_subject(tenant, source.id)  # its key opens nothing, and nothing is sealed with it
        value = runs.revive_input(flow, source.id, body)
        document = value if isinstance(value, Document) else None
        item = Item(
            kernel, Origin(tenant, flow.name, "", source.id), subject, document, options=options, is_plan=True
        )  # fmt: skip
        await planner.walk(subject.id, item, flow.function(value, item), "")
    return planner.plan


def _items(kernel: Kernel, run: str) -> Iterator[Row]:
    count = sum(row["items"] for row in kernel.store.all("count_items", run=run))
    for first in range(0, count, runs.SLICE):
        yield from kernel.store.all("items", run=run, first=first, last=first + runs.SLICE - 1)


class _Planner:
    """Walks items and adds up."""

    def __init__(self, kernel: Kernel, flow: Workflow, plan: Plan, tenant: str, *, first: str | None = None) -> None:
        self._kernel, self.plan = kernel, plan
        earlier = kernel.store.all("runs_of_workflow", tenant=tenant, workflow=flow.name, count=LOOK_BACK)
        named = [] if first is None else [first]
        self._runs = list(dict.fromkeys([*named, *(row["id"] for row in earlier)]))
        self._shapes: list[dict[str, Shape]] = []
        self._means = self._mean_costs()

    async def walk(self, subject: str, item: Item, story: Any, refused: str) -> None:  # Any: the flow's own awaitable
        """One item as far as memos reach."""
        end = await _walked(item, story)
        for agent in item.hits:
            self.plan.agents[agent].reused += 1
        for miss in item.misses:
            why = miss.why()
            self._count(miss, REFUSED if miss.agent.rpartition("/")[2] == refused and why == NEVER else why)
        if item.misses or end is _End.NEEDS:
            self._count_rest(subject, item)
        elif end is _End.FAILED:
            self.plan.quarantined += 1

    def _count(self, miss: Miss, why: str) -> None:
        told = self.plan.agents[miss.agent]
        told.calls += 1
        told.why[why] += 1
        mean = self._means.get(miss.agent)
        pico = self._bound(miss) if mean is None else mean
        told.pico = None if told.pico is None or pico is None else told.pico + pico

    def _count_rest(self, subject: str, item: Item) -> None:
        """The steps that would come after the first that needs a call."""
        shape = self._shape(subject)
        if shape is None:
            self.plan.unshaped += 1
            return
        seen = Counter([*item.hits, *(miss.agent for miss in item.misses)])
        for agent, steps in shape.steps.items():
            left = steps - seen[agent]
            if left <= 0:
                continue
            told, mean = self.plan.agents[agent], self._means.get(agent)
            told.calls += left
            told.unknown += left
            told.why[AFTER] += left
            told.pico = None if told.pico is None or mean is None else told.pico + left * mean

    def _shape(self, subject: str) -> Shape | None:
        """The item's own from the latest run that has one; else the mean of the latest run that has any."""
        mean: Shape | None = None
        for number, run in enumerate(self._runs):
            if number == len(self._shapes):
                self._shapes.append(shapes_of(self._kernel, run))
            shapes = self._shapes[number]
            if subject in shapes:
                return shapes[subject]
            mean = mean or shapes.get("")
        return mean

    def _mean_costs(self) -> dict[str, float]:
        """By agent: what a call cost on average in the latest run that paid for one."""
        means: dict[str, float] = {}
        for run in self._runs:
            for row in self._kernel.store.all("totals_of_run", run=run):
                if row["calls"]:
                    means.setdefault(row["agent"], row["cost_pico"] / row["calls"])
        return means

    def _bound(self, miss: Miss) -> int | None:
        """The most that a call of an agent that was never paid can cost; None where its upstream has no price."""
        if miss.request is None:
            return miss.pico
        upstream = self._kernel.upstreams[miss.request.route.upstreams[0]]
        asked = min(miss.request.call.max_tokens or upstream.output_tokens, upstream.output_tokens)
        return pricing.upper_bound(miss.request.call.sized(upstream.model_name, asked), upstream.price).pico


class _End(Enum):
    """How a walk ended."""

    WHOLE = "memos reached to the end"
    NEEDS = "a step needs a call, or something that only a run can say"
    FAILED = "the workflow refused the item, or its own code failed"


async def _walked(item: Item, story: Any) -> _End:  # Any: the flow's own awaitable
    try:
        await within(WALK_S, story, item)
        return _End.WHOLE
    except (KeyboardInterrupt, SystemExit):
        raise
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        return _End.FAILED
    except BaseException as error:  # noqa: BLE001 - whatever it is will be met again, and told, in the run
        is_needed = isinstance(error, NeedsCall) or (
            isinstance(error, BaseExceptionGroup) and error.subgroup(NeedsCall) is not None
        )
        return _End.NEEDS if is_needed else _End.FAILED
    finally:
        await item.come_to_rest()
        await asyncio.sleep(0)
