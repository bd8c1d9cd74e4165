"""Which upstream for this call? Until the calibrated router lands: the first rule that matches, else `light`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from twolane.domain.records import Route


def decide(
    name: str,
    *,
    light: str,
    rules: Sequence[tuple[Mapping[str, str], str]],
    fallback: Sequence[str],
    facts: Mapping[str, str],
) -> Route:
    """The route's decision for a call with these facts (workflow, agent, tenant, lane, task).

    `rules` are (conditions, upstream) in order; every condition of the first match holds.
    """
    for number, (conditions, upstream) in enumerate(rules, 1):
        if all(facts.get(key) == value for key, value in conditions.items()):
            return Route(name, _in_order(upstream, fallback), f"rule {number} of route {name}")
    return Route(name, _in_order(light, fallback), f"light of route {name}")


def _in_order(first: str, fallback: Sequence[str]) -> tuple[str, ...]:
    return (first, *(upstream for upstream in fallback if upstream != first))
