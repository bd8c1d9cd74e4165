"""How answers change what an upstream is asked."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twolane.rules.feedback import FAILURES, LONGEST_PAUSE_S, Breaker, Pace, State, is_congestion, is_fault


@given(st.integers(1, 100), st.lists(st.booleans(), max_size=200))
def test_the_pace_stays_between_one_slot_and_all(slots: int, answers: list[bool]) -> None:
    pace = Pace()
    for now, is_good in enumerate(answers):
        if is_good:
            pace.answered(0.1, slots=slots, began=now, now=now)
        else:
            pace.refused(began=now, now=now)
        assert 1 <= pace.allowed(slots) <= slots
    assert pace.allowed(0) == 0


def test_refusals_of_one_round_trip_cut_once() -> None:
    pace = Pace()
    for _ in range(8):  # all left before the first refusal came
        pace.refused(began=0, now=1)
    assert pace.allowed(10) == 7
    pace.refused(began=2, now=3)
    assert pace.allowed(10) == 4


def test_answers_give_back_a_slot_a_round() -> None:
    pace = Pace()
    for now in range(20):
        pace.refused(began=now, now=now)
    assert pace.allowed(10) == 1
    answers = 0
    while pace.allowed(10) < 10:
        answers += 1
        pace.answered(0.1, slots=10, began=100, now=100)
    assert 35 <= answers <= 70  # about 1 + 2 + … + 9


def test_lasting_slowness_takes_at_most_half_and_a_single_slow_answer_nothing() -> None:
    pace = Pace()
    for now in range(100):
        pace.answered(5.0 if now == 50 else 0.1, slots=10, began=now, now=now)
    assert pace.allowed(10) == 10
    for now in range(100, 200):
        pace.answered(3.0, slots=10, began=now, now=now)
    assert pace.share == 0.5
    for now in range(200, 3000):  # that is how long it takes now
        pace.answered(3.0, slots=10, began=now, now=now)
    assert pace.allowed(10) == 10


def failed(breaker: Breaker, now: float, *, is_probe: bool = False) -> bool:
    return breaker.failed(now, is_probe=is_probe, jitter=0.5)


def test_a_breaker_opens_after_failures_in_a_row_only() -> None:
    breaker = Breaker()
    for _ in range(3):
        for _ in range(FAILURES - 1):
            assert not failed(breaker, 0)
        breaker.succeeded()
    assert breaker.admits(0)
    opened = [failed(breaker, 0) for _ in range(FAILURES)]
    assert opened == [False] * (FAILURES - 1) + [True]
    assert not breaker.admits(0)
    assert not failed(breaker, 0.1)  # a straggler changes nothing
    assert breaker.wait(0) == pytest.approx(1)


def test_one_probe_is_let_through_and_pauses_grow_until_it_succeeds() -> None:
    breaker, now, pauses = Breaker(), 0.0, []
    for _ in range(FAILURES):
        failed(breaker, now)
    for _ in range(10):
        pause = breaker.wait(now)
        pauses.append(pause)
        now += pause
        assert breaker.admits(now)
        assert breaker.begin()
        assert not breaker.admits(now)
        assert failed(breaker, now, is_probe=True)
    assert pauses == sorted(pauses)
    assert pauses[:3] == [1, 2, 4]
    assert pauses[-1] == LONGEST_PAUSE_S
    now += breaker.wait(now)
    assert breaker.begin()
    breaker.left()
    assert breaker.admits(now)
    assert breaker.begin()
    breaker.succeeded()
    assert (breaker.state, breaker.failures) == (State.CLOSED, 0)
    assert not breaker.begin()


def test_whose_fault_it_was() -> None:
    assert [status for status in (None, 400, 401, 404, 413, 422, 429, 500, 503, 529) if is_fault(status)] == [
        None, 401, 500, 503, 529,
    ]  # fmt: skip
    assert [status for status in (None, 400, 429, 500, 503, 529) if is_congestion(status)] == [429, 503, 529]
