"""A run whose agent is broken is paused; a few bad items are not worth a pause."""

from __future__ import annotations

import random

from twolane.rules.guards import TOO_MANY, WINDOW, Refusals


def test_a_broken_agent_is_noticed_after_as_many_items_as_are_too_many() -> None:
    guard = Refusals()
    said = [guard.refused("verifier", "/breaches") for _ in range(TOO_MANY)]
    assert said[:-1] == [None] * (TOO_MANY - 1)
    assert said[-1] == (
        "20 of the last 20 items were refused, 20 of them at agent verifier (the last time at /breaches)"
    )


def test_an_agent_that_breaks_in_mid_run_is_noticed_as_well() -> None:
    guard = Refusals()
    for _ in range(1_000):
        guard.passed()
    said = [guard.refused("verifier", "") for _ in range(TOO_MANY)]
    assert said[:-1] == [None] * (TOO_MANY - 1)
    assert said[-1] is not None
    assert f"20 of the last {WINDOW} items" in said[-1]
    assert "at /)" in said[-1]


def test_bad_items_among_good_ones_are_left_to_their_quarantine() -> None:
    guard = Refusals()
    for number in range(10_000):
        if number % 3:
            guard.passed()
        else:
            assert guard.refused("verifier", "/x") is None


def test_refusals_at_several_agents_count_together_and_the_worst_is_named() -> None:
    guard, agents = Refusals(), ["a", "b", "b"]
    said = [guard.refused(agents[number % 3], f"/{number % 3}") for number in range(TOO_MANY)][-1]
    assert said is not None
    assert "13 of them at agent b" in said


def test_one_refusal_in_ten_pauses_no_run_of_a_hundred_thousand_items() -> None:
    guard, draw = Refusals(), random.Random(10)
    for _ in range(100_000):
        if draw.random() < 0.1:
            assert guard.refused("verifier", "/x") is None
        else:
            guard.passed()
