"""Who is next, how long it will take, and who may hold how many: the arithmetic of the lanes.

Nothing here knows a clock: instants and durations come in as seconds.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")

OVERDUE = 8
"""A call that has lasted longer than usual is expected to end after this part of the time it has taken."""


class FairQueue(Generic[T]):
    """A line in which tenants take turns, and within a tenant its keys (or runs); within a key, who came first.

    Taking the next one and joining cost a few dictionary moves, whatever the length.
    """

    def __init__(self) -> None:
        self._tenants: dict[str, dict[str, deque[T]]] = {}
        """Both levels in the order of their turns: whose turn was is put at the end."""
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def __bool__(self) -> bool:
        return self._length > 0

    def push(self, tenant: str, key: str, one: T) -> None:
        """Join the line."""
        self._tenants.setdefault(tenant, {}).setdefault(key, deque()).append(one)
        self._length += 1

    def peek(self) -> T:
        """Whose turn it is.

        Raises:
            IndexError: nobody waits.
        """
        for keys in self._tenants.values():
            for line in keys.values():
                return line[0]
        raise IndexError("nobody waits")

    def pop(self) -> T:
        """Take the one whose turn it is; its tenant and its key go to the end of theirs.

        Raises:
            IndexError: nobody waits.
        """
        if not self._length:
            raise IndexError("nobody waits")
        tenant = next(iter(self._tenants))
        keys = self._tenants.pop(tenant)
        key = next(iter(keys))
        line = keys.pop(key)
        one = line.popleft()
        if line:
            keys[key] = line
        if keys:
            self._tenants[tenant] = keys
        self._length -= 1
        return one

    def remove(self, tenant: str, key: str, one: T) -> bool:
        """Leave the line; False where it was not in it."""
        keys = self._tenants.get(tenant, {})
        line = keys.get(key)
        if line is None or one not in line:
            return False
        line.remove(one)
        self._length -= 1
        if not line:
            del keys[key]
        if not keys:
            del self._tenants[tenant]
        return True

    def place(self, tenant: str, key: str) -> int:
        """How many are taken, as the line is now, before one that joins under this tenant and key. At most one a tenant
        and key too many: whose turn comes first among equals is not looked up."""
        keys = self._tenants.get(tenant, {})
        own = len(keys.get(key, ()))
        within = own + sum(min(len(line), own + 1) for name, line in keys.items() if name != key)
        others = (sum(map(len, lines.values())) for name, lines in self._tenants.items() if name != tenant)
        return within + sum(min(length, within + 1) for length in others)


def slot_wait(place: int, *, limit: int, ages: Sequence[float], hold_s: float) -> float:
    """Seconds until a slot comes free for the one that `place` others precede; `inf` where there are no slots.

    `ages` are the seconds the calls in flight have lasted; each is expected to last `hold_s`, and so is whatever takes
    its slot after it. One that has lasted longer is expected to last a little longer still.
    """
    if limit < 1:
        return math.inf
    ending = place - (limit - len(ages))
    """How many calls end before one of them leaves its slot to us."""
    if ending < 0:
        return 0.0
    rounds, at = divmod(ending, max(limit, len(ages)))
    rests = sorted(max(hold_s - age, max(hold_s, age) / OVERDUE) for age in ages)
    return (rests[at] if at < len(rests) else hold_s) + rounds * hold_s


def split(per_minute: int, slots: Mapping[str, int]) -> dict[str, int]:
    """A rate divided between lanes in proportion to their slots, in whole numbers, at least one each while it lasts."""
    total, left, given = sum(slots.values()), per_minute, {}
    for at, (lane, count) in enumerate(sorted(slots.items(), key=lambda item: item[1])):
        rest = len(slots) - at - 1
        given[lane] = left if not rest else max(min(1, left), min(per_minute * count // total, left - rest))
        left -= given[lane]
    return given


# ── shares of several processes ──


@dataclass(frozen=True, slots=True)
class Member:
    """A process that takes part in a lane: what it holds, what its own calls could use now, what it would borrow."""

    owner: str
    holds: int
    wants: int
    loan: int = 0
    turn: int = 0
    """Grows with every grant: who has the smallest was served longest ago."""

    def lacks(self) -> bool:
        """True where it could use more than it holds."""
        return self.wants + self.loan > self.holds


def shares(total: int, members: Sequence[Member], *, lend: int = 0) -> dict[str, int]:
    """How many of `total` slots each member should have: no one gets more while another who wants has less (max-min
    fairness), and nobody more than it wants. What is left over is lent, `lend` at most.

    Where there are fewer slots than members who want one, those served longest ago come first, so that everyone's turn
    comes; otherwise odd slots stay where they are.
    """
    wanting = [member for member in members if member.wants > 0]
    is_scarce = total < len(wanting)
    line = sorted(wanting, key=lambda m: (m.turn, m.owner) if is_scarce else (-m.holds, m.owner))
    found, left = {member.owner: 0 for member in members}, total
    while left and (hungry := [m for m in line if found[m.owner] < m.wants]):
        each = left // len(hungry)
        for member in hungry:
            more = min(max(1, each), member.wants - found[member.owner], left)
            found[member.owner] += more
            left -= more
    left = min(left, lend)
    for member in sorted(members, key=lambda m: (-m.holds, m.owner)):
        more = min(left, member.loan)
        found[member.owner] += more
        left -= more
    return found


def owed(me: str, total: int, members: Sequence[Member], *, lend: int = 0) -> int:
    """How many slots `me` should give back now: what it has beyond its share, as far as others lack it."""
    fair = shares(total, members, lend=lend)
    free = total - sum(member.holds for member in members)
    lacking = sum(max(0, fair[m.owner] - m.holds) for m in members if m.owner != me)
    mine = next((member.holds for member in members if member.owner == me), 0)
    return max(0, min(mine - fair.get(me, 0), lacking - max(0, free)))


def grants(total: int, members: Sequence[Member], *, asking: str, lend: int = 0) -> dict[str, int]:
    """How many free slots each member is given. What no one lacks goes to the one that asks, if its own calls need
    any: a process that is alone holds the whole lane after its first call."""
    free = total - sum(member.holds for member in members)
    fair, given = shares(total, members, lend=lend), {}
    for member in sorted(members, key=lambda m: (m.turn, m.owner)):
        more = max(0, min(fair[member.owner] - member.holds, free))
        free -= more
        given[member.owner] = more
    me = next((member for member in members if member.owner == asking), None)
    if me is not None and me.wants > 0 and free > 0:
        given[asking] += free
    return {owner: count for owner, count in given.items() if count}
