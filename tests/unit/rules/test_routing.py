"""The first rule whose every condition holds decides; else it is `light`; and the reason is told."""

from __future__ import annotations

from twolane.domain.records import Route
from twolane.rules.routing import decide

RULES = [
    ({"workflow": "audit", "agent": "planner"}, "small"),
    ({"workflow": "audit"}, "large"),
    ({"tenant": "legal"}, "private"),
]


def route(**facts: str) -> Route:
    return decide("assistant", light="light", rules=RULES, fallback=("backup", "large"), facts=facts)


def test_without_a_match_light_is_chosen() -> None:
    assert route() == Route("assistant", ("light", "backup", "large"), "light of route assistant")
    assert route(workflow="other").upstreams[0] == "light"


def test_the_first_match_wins_and_is_named() -> None:
    assert route(workflow="audit", agent="planner").upstreams[0] == "small"
    told = route(workflow="audit", agent="verifier", tenant="legal")
    assert told.reason == "rule 2 of route assistant"
    assert route(tenant="legal").reason == "rule 3 of route assistant"


def test_every_condition_of_a_rule_must_hold() -> None:
    assert route(agent="planner").upstreams[0] == "light"


def test_a_rule_without_conditions_always_holds() -> None:
    assert decide("r", light="l", rules=[({}, "x")], fallback=(), facts={}).upstreams == ("x",)


def test_what_was_chosen_is_not_its_own_fallback() -> None:
    assert route(workflow="audit").upstreams == ("large", "backup")
