"""What agents answered in a run, as it stands now: read from its entries, without the answers themselves. For those who
plan, and those who compare two runs."""

from __future__ import annotations

from bisect import bisect
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import orjson

from twolane.kernel import Kernel

Answers = Mapping[tuple[str, str], Sequence[str]]
"""By item (its pseudonym) and agent: the steps that paid for its accepted answers."""


def answers_of(kernel: Kernel, run: str) -> Answers:
    """The accepted answers of a run. A step that is asked again in a later attempt, and what is replayed there, takes
    the place of what that agent answered for that item before."""
    begun = [
        row["position"]
        for row in kernel.store.all("entries_of_run", run=run, kind="run")
        if orjson.loads(row["leaf"])["event"] in ("started", "resumed")
    ]
    latest: dict[tuple[str, str], int] = {}
    found: dict[tuple[str, str], dict[str, None]] = defaultdict(dict)
    for row in kernel.store.all("accepted_steps", run=run):
        place, attempt = (row["item"], row["agent"]), bisect(begun, row["position"])
        if latest.get(place) != attempt:
            latest[place] = attempt
            found[place].clear()
        found[place][row["paid_by"]] = None
    return {place: list(steps) for place, steps in found.items()}


@dataclass(frozen=True, slots=True)
class Shape:
    """How often each agent answers for one item."""

    steps: Mapping[str, float]


def shapes_of(kernel: Kernel, run: str) -> dict[str, Shape]:
    """By item (its pseudonym) that is done: how often each agent answered for it. Under "" the mean of them."""
    done = {row["subject"] for row in kernel.store.all("subjects_of_items", run=run, status="done")}
    counts: dict[str, dict[str, float]] = defaultdict(dict)
    for (item, agent), paid in answers_of(kernel, run).items():
        if item in done:
            counts[item][agent] = len(paid)
    if not counts:
        return {}
    mean: dict[str, float] = defaultdict(float)
    for steps_by_agent in counts.values():
        for agent, steps in steps_by_agent.items():
            mean[agent] += steps / len(counts)
    return {item: Shape(by_agent) for item, by_agent in counts.items()} | {"": Shape(dict(mean))}
