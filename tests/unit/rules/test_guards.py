"""What leads nowhere is found, and what is only odd is left alone."""

from __future__ import annotations

import json
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twolane.domain.money import PICO
from twolane.rules.guards import (
    DEFAULTS,
    LEAST_BURN,
    TOO_MANY,
    Ceiling,
    History,
    Loop,
    Progress,
    Refusals,
    Repetition,
    Streak,
    burnt,
    overdue,
    short_of,
)


def test_a_broken_agent_is_noticed_after_as_many_items_as_are_too_many() -> None:
    guard = Refusals()
    *before, last = [guard.refused("verifier", "/breaches") for _ in range(TOO_MANY)]
    assert before == [None] * (TOO_MANY - 1)
    assert last is not None
    assert last.why == "20 of the last 20 items were refused, 20 of them at agent verifier (the last time at /breaches)"


def test_an_agent_that_breaks_in_mid_run_is_noticed_the_sooner_the_better_it_was_before() -> None:
    for good, row in ((0, 20), (5, 8), (30, 4), (1_000, 3)):
        streak = Streak()
        for _ in range(good):
            streak.passed()
        *before, last = [streak.refused("verifier", "") for _ in range(row)]
        assert before == [None] * (row - 1)
        assert last is not None
        assert (last.evidence["in_a_row"], last.evidence["of"]) == (row, good)
        assert "(at /)" in last.why


@pytest.mark.parametrize("share", [0.02, 0.1, 0.2, 0.5])
def test_a_share_of_bad_items_that_stays_what_it_is_has_no_streak(share: float) -> None:
    streak, draw = Streak(), random.Random(f"{share}")
    for _ in range(50_000):
        if draw.random() < share:
            assert streak.refused("a", "") is None
        else:
            streak.passed()


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
    assert "13 of them at agent b" in said.why


def test_one_refusal_in_ten_pauses_no_run_of_a_hundred_thousand_items() -> None:
    guard, draw = Refusals(), random.Random(10)
    for _ in range(100_000):
        if draw.random() < 0.1:
            assert guard.refused("verifier", "/x") is None
        else:
            guard.passed()


# ── costs, lengths, loops ──

VELOCITY, BURN, LOOP = DEFAULTS["cost-velocity"], DEFAULTS["token-burn"], DEFAULTS["agent-loop"]


def steps_until_moved(history: History, pico: int, most: int = 400) -> int | None:
    return next((at for at in range(1, most) if history.cost(pico, VELOCITY)), None)


@given(st.lists(st.integers(10**9, 29 * 10**8), min_size=60, max_size=300))
def test_costs_within_the_factor_never_pause_whatever_their_order(costs: list[int]) -> None:
    history = History()
    assert [verdict for pico in costs if (verdict := history.cost(pico * 100, VELOCITY))] == []


@given(st.integers(10**9, 10**12), st.integers(10, 1_000))
def test_a_step_in_level_is_found_within_eight_steps_or_half_a_unit(pico: int, times: int) -> None:
    history = History()
    for _ in range(VELOCITY.warm_up):
        assert history.cost(pico, VELOCITY) is None
    steps = steps_until_moved(history, pico * times, 60_000)
    assert steps is not None
    assert steps <= 8 or (steps - 1) * pico * times <= PICO // 2


def test_nothing_is_judged_before_the_warm_up_and_what_is_cheap_is_left_alone() -> None:
    history = History()
    assert [history.cost(10**12 * at, VELOCITY) for at in range(1, VELOCITY.warm_up)] == [None] * (VELOCITY.warm_up - 1)
    cheap = History()
    for _ in range(100):
        cheap.cost(1_000, VELOCITY)
    assert steps_until_moved(cheap, 100_000) is None


@given(st.lists(st.integers(1, 3_000), min_size=30, max_size=100))
def test_an_answer_is_too_long_only_beyond_twice_what_was_seen_and_a_floor(lengths: list[int]) -> None:
    history = History()
    for length in lengths[: BURN.warm_up - 1]:
        history.length(length)
    assert history.burn_at(BURN) == math.inf
    for length in lengths[BURN.warm_up - 1 :]:
        history.length(length)
    most = history.burn_at(BURN)
    assert most >= max(LEAST_BURN, 2 * max(lengths))
    assert burnt(int(most), history, BURN) is None
    assert burnt(int(most) + 2, history, BURN) is not None


def test_a_ceiling_holds_for_any_minute_and_not_for_a_slow_stream() -> None:
    slow, fast = Ceiling(), Ceiling()
    assert all(slow.cost(PICO, at * 60.0, 2 * PICO) is None for at in range(1, 100))
    said = [fast.cost(PICO, 1.0, 2 * PICO) for _ in range(3)]
    assert said[:2] == [None, None]
    assert said[2] is not None
    assert said[2].is_hard


LONG = " ".join(f"word{at}" for at in range(40))


def test_small_answers_may_be_equal_as_often_as_they_like_and_long_ones_three_times() -> None:
    loop = Loop()
    assert all(loop.said("judge", '{"quote": null}', LOOP) is None for _ in range(100))
    assert [bool(loop.said("writer", LONG, LOOP)) for _ in range(4)] == [False, False, False, True]
    fields: dict[str, dict[str, object]] = {f"field{at}": {"value": None, "quote": "", "pages": []} for at in range(9)}
    assert all(loop.said("extractor", json.dumps(fields), LOOP) is None for _ in range(100)), "clauses that say nothing"
    nearly = Loop()
    said = [nearly.said("writer", LONG.replace("word9 ", f"word{at}x "), LOOP) for at in range(4)]
    assert [bool(each) for each in said] == [False, False, False, True]


@given(st.lists(st.sampled_from("abcd"), min_size=1, max_size=60))
def test_a_loop_is_four_in_a_row_or_a_cycle_that_comes_three_times(order: list[str]) -> None:
    loop, texts = Loop(), {name: " ".join(f"{name}{at}" for at in range(40)) for name in "abcd"}
    for at in range(1, len(order) + 1):
        seen = order[:at]
        cycles = (p for p in (2, 3, 4) if len(seen) >= 3 * p and seen[-2 * p :] == seen[-3 * p : -p])
        is_loop = seen[-4:] == seen[-1:] * 4 or any(cycles)
        assert bool(loop.said("writer", texts[order[at - 1]], LOOP)) == is_loop
        if is_loop:
            return


def test_one_call_of_a_tool_may_be_made_twice() -> None:
    loop = Loop()
    for arguments in ("1", "2", "1", "3"):
        assert loop.called("a", [("rate", arguments)]) is None
    assert loop.called("a", [("rate", "1")]) is not None


def test_text_with_a_period_is_found_whatever_the_blocks_and_prose_is_not() -> None:
    draw = random.Random(3)
    for period, length in ((1, 5_000), (2, 5_000), (60, 5_000), (300, 17_500), (2_000, 18_500)):
        unit = "".join(draw.choice("abcdefgh ") for _ in range(period))
        assert found_in(unit * (length // period + 1)), period
        assert period <= 64 or not found_in(unit * (15_000 // period)), "short of its window"
    assert not found_in(str([{"clause": f"c{n}", "supplier": None, "amount": None} for n in range(1_000)]))
    assert not found_in(" ".join(str(draw.randrange(10**6)) for _ in range(2_000)))
    assert not found_in("a" * 4_000), "short of its window"


def found_in(text: str) -> bool:
    events = [b'data: {"choices":[{"delta":{"content":"%s"}}]}\n\n' % text[at : at + 5].encode()
              for at in range(0, len(text), 5)]  # fmt: skip
    repetition = Repetition()
    looks = (repetition.look(b"".join(events[max(0, at - 40) : at]), 32) for at in range(32, len(events) + 1, 32))
    return any(looks)


def test_an_item_may_take_three_times_the_steps_of_any_before() -> None:
    progress, limits = Progress(), DEFAULTS["no-progress"]
    assert all(progress.step("first", limits) is None for _ in range(1_000)), "nothing is known yet"
    for item in range(30):
        for _ in range(10):
            assert progress.step(str(item), limits) is None
        progress.ended(str(item), is_done=True)
    said = [progress.step("x", limits) for _ in range(40)]
    assert [at for at, verdict in enumerate(said, 1) if verdict] == [31], "told once"


def test_deadlines_and_budgets_are_foreseen() -> None:
    clock, runway = DEFAULTS["wall-clock"], DEFAULTS["runway"]
    assert overdue(899, 1, clock) is None
    assert overdue(901, 1, clock) is not None
    assert overdue(4_999, 1_000, clock) is None
    assert short_of(10, 100, ended=29, items=10**6, limits=runway) is None
    assert short_of(50, 100, ended=50, items=100, limits=runway) is None
    verdict = short_of(51, 100, ended=50, items=100, limits=runway)
    assert verdict is not None
    assert (verdict.is_note, verdict.evidence["paid_for"]) == (True, 98)
