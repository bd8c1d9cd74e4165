"""Turns, waits and shares, for every line and every set of processes."""

from __future__ import annotations

import heapq
import math
from collections import Counter, defaultdict
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twolane.rules.lanes import FairQueue, Member, grants, owed, shares, slot_wait, split

NAMES = st.sampled_from("abc")
JOINED = st.lists(st.tuples(NAMES, NAMES), max_size=40)


def line_of(joined: list[tuple[str, str]]) -> FairQueue[tuple[str, str, int]]:
    queue: FairQueue[tuple[str, str, int]] = FairQueue()
    for at, (tenant, key) in enumerate(joined):
        queue.push(tenant, key, (tenant, key, at))
    return queue


# ── turns ──


@given(JOINED)
def test_everyone_comes_out_once_and_in_the_order_of_its_own_key(joined: list[tuple[str, str]]) -> None:
    queue = line_of(joined)
    out = [queue.pop() for _ in range(len(queue))]
    assert sorted(at for _, _, at in out) == list(range(len(joined)))
    by_key = defaultdict(list)
    for tenant, key, at in out:
        by_key[tenant, key].append(at)
    assert all(numbers == sorted(numbers) for numbers in by_key.values())
    assert not queue
    with pytest.raises(IndexError):
        queue.pop()


@given(JOINED)
def test_tenants_take_turns_and_so_do_the_keys_of_each(joined: list[tuple[str, str]]) -> None:
    """While two of them both wait, none is served twice before the other is served once."""
    queue = line_of(joined)
    out = [queue.pop() for _ in range(len(queue))]
    for level in (0, 1):
        groups = {one[:level] for one in out}
        for group in groups:
            served = [str(one[level]) for one in out if one[:level] == group]
            left = Counter(served)
            last: dict[str, int] = {}
            for at, name in enumerate(served):
                between = served[last.get(name, -1) + 1 : at] if name in last else None
                if between is not None:
                    assert all(other in between for other in left if left[other] and other != name)
                last[name] = at
                left[name] -= 1


@given(JOINED, NAMES, NAMES)
def test_the_place_is_where_one_would_stand_or_a_little_behind(
    joined: list[tuple[str, str]], tenant: str, key: str
) -> None:
    queue = line_of(joined)
    place = queue.place(tenant, key)
    queue.push(tenant, key, (tenant, key, -1))
    before = 0
    while queue.pop()[2] != -1:
        before += 1
    assert before <= place <= before + 9  # at most one for each tenant and key


@given(JOINED, st.randoms(use_true_random=False))
def test_who_leaves_is_not_served_and_the_others_are(joined: list[tuple[str, str]], draw: object) -> None:
    queue = line_of(joined)
    leaving = {at for at in range(len(joined)) if at % 3 == 0}
    for at in leaving:
        assert queue.remove(*joined[at], (*joined[at], at))
        assert not queue.remove(*joined[at], (*joined[at], at))
    assert sorted(queue.pop()[2] for _ in range(len(queue))) == sorted(set(range(len(joined))) - leaving)


# ── waits ──


@given(st.integers(0, 60), st.integers(1, 9), st.lists(st.floats(0, 2), max_size=9))
def test_the_wait_is_when_calls_that_last_as_usual_would_end(place: int, limit: int, ages: list[float]) -> None:
    ages = sorted(ages, reverse=True)[:limit]
    ends = [max(2.0 - age, 0.25) for age in ages] + [0.0] * (limit - len(ages))
    heapq.heapify(ends)
    for _ in range(place):
        heapq.heapreplace(ends, ends[0] + 2.0)
    assert slot_wait(place, limit=limit, ages=ages, hold_s=2.0) == pytest.approx(ends[0], abs=2.01)
    if place < limit:
        assert slot_wait(place, limit=limit, ages=ages, hold_s=2.0) == pytest.approx(ends[0], abs=1e-9)


def test_without_slots_the_wait_has_no_end() -> None:
    assert slot_wait(0, limit=0, ages=[], hold_s=1) == math.inf


@given(st.integers(1, 1000), st.integers(1, 50), st.integers(1, 50))
def test_a_rate_is_divided_without_a_rest_and_as_the_slots_are(rate: int, online: int, batch: int) -> None:
    found = split(rate, {"online": online, "batch": batch})
    assert sum(found.values()) == rate
    assert rate == 1 or min(found.values()) >= 1
    if rate > online + batch:
        assert abs(found["online"] - rate * online / (online + batch)) <= 1


# ── shares ──

MEMBERS = st.lists(
    st.builds(
        Member, st.just(""), st.integers(0, 6), st.integers(0, 12), st.integers(0, 4), st.integers(0, 5)
    ),
    min_size=1, max_size=5,
).map(lambda members: [replace(member, owner=f"p{at}") for at, member in enumerate(members)])  # fmt: skip


@given(st.integers(1, 12), MEMBERS, st.integers(0, 4))
def test_shares_are_max_min_fair_and_what_is_lent_is_left_over(total: int, members: list[Member], lend: int) -> None:
    found = shares(total, members, lend=lend)
    assert sum(found.values()) <= total
    own = {m.owner: min(found[m.owner], m.wants) for m in members}
    lent = {m.owner: found[m.owner] - own[m.owner] for m in members}
    assert sum(lent.values()) <= lend
    assert all(lent[m.owner] <= m.loan for m in members)
    hungry = [own[m.owner] for m in members if own[m.owner] < m.wants]
    if hungry:
        assert not any(lent.values())
        assert sum(own.values()) == total
        assert max(own.values()) <= min(hungry) + 1


@given(st.integers(1, 12), MEMBERS, st.integers(0, 4))
def test_no_grant_and_no_return_takes_the_sum_above_the_total(total: int, members: list[Member], lend: int) -> None:
    held = sum(m.holds for m in members)
    given_ = grants(total, members, asking="p0", lend=lend)
    assert sum(given_.values()) <= max(0, total - held)
    assert all(count > 0 for count in given_.values())
    for member in members:
        assert 0 <= owed(member.owner, total, members, lend=lend) <= member.holds


@given(st.integers(1, 6), st.integers(1, 5))
def test_nobody_starves_whoever_asks_and_gives(total: int, count: int) -> None:
    """All want more than there is, for ever: after a few rounds everyone has had a slot, however few there are."""
    members = [Member(f"p{at}", 0, total) for at in range(count)]
    had, turn = Counter[str](), 0
    for _ in range(4 * count):
        for at, member in enumerate(members):
            back = owed(member.owner, total, members)
            members[at] = replace(member, holds=member.holds - back)
            for owner, more in grants(total, members, asking=member.owner).items():
                turn += 1
                where = int(owner[1:])
                members[where] = replace(members[where], holds=members[where].holds + more, turn=turn)
            assert sum(m.holds for m in members) <= total
            had.update(m.owner for m in members if m.holds)
    assert len(had) == count
    if total >= count:
        holds = [m.holds for m in members]
        assert max(holds) - min(holds) <= 1


def test_who_is_alone_gets_all_and_keeps_it() -> None:
    assert grants(8, [Member("me", 0, 1)], asking="me") == {"me": 8}
    assert owed("me", 8, [Member("me", 8, 0)]) == 0
    assert owed("me", 8, [Member("me", 8, 0), Member("you", 0, 3)]) == 3
    assert owed("me", 8, [Member("me", 8, 8), Member("you", 0, 8)]) == 4


def test_a_loan_comes_last_and_goes_back_first() -> None:
    gateway, worker = Member("gateway", 8, 2), Member("worker", 0, 0, loan=4)
    assert owed("gateway", 8, [gateway, worker], lend=3) == 3
    lent = [replace(gateway, holds=5), replace(worker, holds=3)]
    assert owed("worker", 8, lent, lend=3) == 0
    assert owed("worker", 8, [replace(lent[0], wants=7), lent[1]], lend=3) == 2
    assert grants(8, [replace(worker, loan=8)], asking="worker", lend=3) == {"worker": 3}
