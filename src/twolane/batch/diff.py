"""What differs between two runs over the same items: whose results, which agents' answers, and at what cost."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

from twolane.batch import run as runs
from twolane.batch.answers import Answers, answers_of
from twolane.domain.money import decimal_string
from twolane.kernel import Kernel
from twolane.store import Row


@dataclass
class AgentDiff:
    """One agent's answers in both runs, counted by items; and what they cost in the second."""

    same: int = 0
    changed: int = 0
    only_first: int = 0
    only_second: int = 0
    unknown: int = 0
    """Answers of which one is kept no more: an equal call of another item took its place."""
    calls: int = 0
    reused: int = 0
    pico: int = 0

    def fields(self) -> dict[str, object]:
        """As one JSON object."""
        counts = {name: getattr(self, name) for name in ("same", "changed", "only_first", "only_second", "unknown")}
        return {**counts, "calls": self.calls, "reused": self.reused, "cost": decimal_string(self.pico)}


@dataclass
class Diff:
    """The fields of `run diff --json`. Items by their source ids; money as decimal strings."""

    first: str
    second: str
    currency: str
    same: int = 0
    changed: list[str] = field(default_factory=list)
    """Items with a result in both runs, and not the same one."""
    only_first: list[str] = field(default_factory=list)
    """Items with a result in the first run alone."""
    only_second: list[str] = field(default_factory=list)
    agents: dict[str, AgentDiff] = field(default_factory=lambda: defaultdict(AgentDiff))
    cost: Mapping[str, str] = field(default_factory=dict)
    """By run."""

    def fields(self) -> dict[str, object]:
        """As one JSON object."""
        lists = {name: getattr(self, name) for name in ("changed", "only_first", "only_second")}
        return {
            "runs": [self.first, self.second],
            "items": {"same": self.same, **lists},
            "by_agent": {name: each.fields() for name, each in sorted(self.agents.items())},
            "cost": dict(self.cost),
            "currency": self.currency,
        }


def compare(kernel: Kernel, first: str, second: str) -> Diff:
    """The second run against the first. Reads what both left in the store; nothing is asked again.

    Raises:
        NotFound: there is no such run.
    """
    before, after = runs.find(kernel, first), runs.find(kernel, second)
    cost = {row["id"]: decimal_string(_cost(kernel, row)) for row in (before, after)}
    diff = Diff(first, second, kernel.config.currency, cost=cost)
    _compare_results(kernel, diff)
    _compare_answers(kernel, diff)
    for row in kernel.store.all("totals_of_run", run=second):
        told = diff.agents[row["agent"]]
        told.calls, told.reused, told.pico = row["calls"], row["reused"], row["cost_pico"]
    return diff


def _cost(kernel: Kernel, row: Row) -> int:
    return sum(each["cost_pico"] for each in kernel.store.all("totals_of_run", run=row["id"]))


def _compare_results(kernel: Kernel, diff: Diff) -> None:
    results = [
        {row["name"]: row["output"] for row in kernel.store.all("outputs_of_run", run=run)}
        for run in (diff.first, diff.second)
    ]
    for name, output in results[0].items():
        if name not in results[1]:
            diff.only_first.append(name)
        elif output == results[1][name] or kernel.read_body(output) == kernel.read_body(results[1][name]):
            diff.same += 1
        else:
            diff.changed.append(name)
    diff.only_second = [name for name in results[1] if name not in results[0]]


def _compare_answers(kernel: Kernel, diff: Diff) -> None:
    answers: list[Answers] = [answers_of(kernel, run) for run in (diff.first, diff.second)]
    kept: dict[str, dict[str, str]] = {}

    def answer(item: str, step: str) -> str:
        """The digest of a step's kept answer, also where it was asked for another item; "" where it is not kept."""
        if item not in kept:
            kept[item] = {row["step"]: row["answer"] for row in kernel.store.all("memos_of_subject", subject=item)}
        if step not in kept[item]:
            row = kernel.store.one("answer_of_step", step=step)
            kept[item][step] = "" if row is None else row["answer"]
        return kept[item][step]

    def said(item: str, steps: tuple[str, ...]) -> list[str]:
        """What the steps answered, in no order."""
        return sorted(answer(item, step) for step in steps)

    for place in {**answers[0], **answers[1]}:
        item, agent = place
        told, sides = diff.agents[agent], [tuple(sorted(side.get(place, ()))) for side in answers]
        if not sides[1]:
            told.only_first += 1
        elif not sides[0]:
            told.only_second += 1
        elif sides[0] == sides[1] or (
            (before := said(item, sides[0])) == (after := said(item, sides[1])) and all(before)
        ):
            told.same += 1
        elif all(before + after):
            told.changed += 1
        else:
            told.unknown += 1
