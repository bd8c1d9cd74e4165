"""Which ticks are due."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twolane.rules.schedules import COUNTED, Due, Tick, check_cron, due_tick, next_tick

DAY = 86_400_000_000
CRONS = st.sampled_from(
    ["* * * * *", "*/7 * * * *", "0 4 * * *", "30 6 * * MON-FRI", "0 0 1 * *", "0 0 29 2 *", "0 9 L * *"]
)
INSTANTS = st.integers(946_684_800_000_000, 1_900_000_000_000_000)


def us(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()) * 1_000_000


@pytest.mark.parametrize(
    "cron, problem",
    [
        ("", "has 0 fields; write five"),
        ("@daily", "has 1 fields; write five"),
        ("0 0 4 * * *", "has 6 fields; write five"),
        ("60 * * * *", "bad minute"),
        ("0 24 * * *", "bad hour"),
        ("0 0 0 * *", "bad day-of-month"),
        ("0 0 * 13 *", "bad month"),
        ("0 0 * * 8", "bad day-of-week"),
        ("*/0 * * * *", "bad minute"),
        ("5-1 * * * *", "bad minute"),
        ("0 0 30 2 *", "bad day-of-month"),
        ("0 0 */31 2 MON#5", "never comes"),
    ],
)
def test_a_wrong_expression_is_refused_in_words(cron: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        check_cron(cron)


@given(st.text(alphabet="0123456789*/,-#LW MONFEB²é", max_size=25))
def test_whatever_is_written_is_either_a_schedule_or_refused_in_words(cron: str) -> None:
    try:
        plain = check_cron(cron)
    except ValueError:
        return
    assert next_tick(plain, 0) is not None


def test_an_expression_is_kept_with_single_spaces() -> None:
    assert check_cron(" 0   4 * *\tmon ") == "0 4 * * mon"


def test_ticks_are_in_utc_and_come_after_the_instant_never_at_it() -> None:
    assert next_tick("0 4 * * *", us("2026-03-29T03:59:59")) == us("2026-03-29T04:00:00")
    assert next_tick("0 4 * * *", us("2026-03-29T04:00:00")) == us("2026-03-30T04:00:00")
    assert Tick("nightly", us("2026-03-29T04:00:00")).instant == "2026-03-29T04:00:00Z"


def test_a_tick_is_due_at_its_very_second_and_not_before() -> None:
    since, at = us("2026-11-20T04:00:00"), us("2026-11-21T04:00:00")
    assert due_tick("0 4 * * *", since_us=since, now_us=at - 1) is None
    assert due_tick("0 4 * * *", since_us=since, now_us=at) == Due(at, 0)


def test_only_the_newest_of_many_missed_ticks_is_due_and_the_others_are_counted() -> None:
    since, now = us("2026-11-01T04:00:00"), us("2026-11-21T12:34:56")
    assert due_tick("0 4 * * *", since_us=since, now_us=now) == Due(us("2026-11-21T04:00:00"), 19)


def test_a_year_of_missed_minutes_is_one_run_and_not_counted_to_its_end() -> None:
    now = us("2026-11-21T12:34:56")
    assert due_tick("* * * * *", since_us=now - 365 * DAY, now_us=now) == Due(us("2026-11-21T12:34:00"), COUNTED)


def test_nothing_is_due_while_the_clock_stands_before_what_was_seen() -> None:
    now = us("2026-11-21T12:34:56")
    assert due_tick("* * * * *", since_us=now, now_us=now - 3 * DAY) is None


@given(CRONS, INSTANTS, st.integers(0, 400 * DAY))
def test_what_is_due_is_the_last_tick_of_the_time_between_and_none_comes_after_it(
    cron: str, since: int, later: int
) -> None:
    now, due = since + later, due_tick(cron, since_us=since, now_us=since + later)
    coming = next_tick(cron, since)
    if due is None:
        assert coming is None or coming > now
        return
    assert coming is not None
    assert since < coming <= due.at_us <= now
    assert (coming == due.at_us) == (due.missed == 0)
    following = next_tick(cron, due.at_us)
    assert following is None or following > now


@given(CRONS, INSTANTS, st.lists(st.integers(0, 3 * DAY), min_size=1, max_size=30))
def test_looked_at_again_and_again_each_tick_is_due_once_or_counted_as_missed(
    cron: str, since: int, waits: list[int]
) -> None:
    now, mark, seen = since, since, 0
    for wait in waits:
        now += wait
        due = due_tick(cron, since_us=mark, now_us=now)
        if due is not None:
            if due.missed == COUNTED:
                return
            seen, mark = seen + 1 + due.missed, due.at_us
        assert due_tick(cron, since_us=mark, now_us=now) is None
    count, tick = 0, next_tick(cron, since)
    while tick is not None and tick <= now:
        count, tick = count + 1, next_tick(cron, tick)
    assert seen == count
