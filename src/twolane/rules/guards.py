"""Guards: what must not go on, judged from what was seen. Facts in, a `Verdict` or None out; no clock and no I/O.

Each is quiet until it has seen `warm_up` normal samples (repetition, loops and ceilings need none), and wants more than
one sign: a change must be beyond chance *and* large, a loop must repeat something substantial. Figures of evidence are
numbers about steps, never content.
"""

from __future__ import annotations

import math
import re
import zlib
from collections import Counter, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

WINDOW, TOO_MANY = 40, 20
"""Pause when so many of the newest items were refused. Where one item in ten is rightly refused, one window in 5·10⁹
looks like this; where one in five is, one in 46,000. A run whose agent is broken is stopped after twenty items."""
CHANCE = 1e-6
"""A streak that what was seen before makes less likely than this is no chance. From the first item on, nothing known,
these are twenty in a row; after a hundred good ones, three."""
ALLOWANCE, DECISION, CLIP = 1.0, 8.0, 3.0
"""CUSUM, in standard deviations of log cost: what is taken off at every step, the sum that decides, and the most that
one step adds or takes. Under normal costs it decides once in 5·10⁷ steps; of costs that are tenfold, within 8."""
RECENT = 0.875
"""Weight of a step against the next one, where the newest are compared with what was expected: about eight count."""
MEMORY = 200
"""Steps after which what was seen counts for a third."""
DOUBTFUL = 0.1
"""What a step counts for as history while it may be part of a change: a creeping one must not become the usual."""
LEAST_SPREAD = 0.25
"""Of log cost: equal costs would make any other one a surprise."""
SURPRISE, LEAST_BURN = 6.0, 2_048
"""An answer is too long beyond so many standard deviations of log length; and never under so many tokens."""
SHORT, SHORT_PERIOD = 4_096, 64
TEXT, PERIOD, SQUEEZED = 16_384, 2_048, 0.02
"""A stream repeats itself when so many newest bytes of text have a period of at most that many, or when of the longer
stretch zlib leaves only that part. A JSON list of empty objects leaves twice as much."""
SUBSTANTIAL, ALIKE = 120, 0.8
"""Characters that an output must say for its repetition to be a loop, since many answers are rightly `{"quote": null}`;
and the share of common three-word sequences from which on two outputs are nearly the same."""
_EMPTY = re.compile(r'"[^"]*"\s*:\s*(?:null|""|\[[\s,]*\]|\{[\s,]*\})')
"""A field that says nothing."""
CYCLES, TOOL_CALLS = 3, 3
"""Repetitions of a cycle of several handoffs, and of one call of a tool, that are a loop."""
LEAST_STEPS = 16
"""Steps that any item may take."""

Evidence = Mapping[str, int | str]


@dataclass(frozen=True, slots=True)
class Limits:
    """Thresholds of one guard, as `[guard.NAME]` sets them."""

    mode: Literal["on", "shadow", "off"] = "on"
    scope: str = ""
    """run or key: acts there only, and stops all of it. Empty: the smallest that fits."""
    pause: float = 3.0
    kill: float = math.inf
    warm_up: int = 30
    repeats: int = 4
    floor_pico: int = 250_000_000_000
    ceiling_pico: int | None = None


DEFAULTS: Mapping[str, Limits] = {
    "cost-velocity": Limits(pause=3, kill=10),
    "token-burn": Limits(pause=2),
    "repetition": Limits(),
    "agent-loop": Limits(),
    "schema-failures": Limits(),
    "broken-path": Limits(),
    "no-progress": Limits(pause=3),
    "wall-clock": Limits(pause=5),
    "runway": Limits(),
}
"""Every guard there is."""


class Verdict(NamedTuple):
    """What a guard says. `is_far`: beyond its `kill`, which a second guard's word makes a kill; `is_hard`: a ceiling
    that somebody set, which needs no second; `is_note`: for people only."""

    guard: str
    why: str
    evidence: Evidence
    is_far: bool = False
    is_hard: bool = False
    is_note: bool = False


class _Level:
    """Mean and variance of logarithms, forgetting slowly."""

    __slots__ = ("mean", "seen", "variance")

    def __init__(self) -> None:
        self.seen, self.mean, self.variance = 0, 0.0, 0.0

    def add(self, value: float, weight: float = 1.0) -> None:
        self.seen += 1
        share = weight / min(self.seen, MEMORY)
        off = value - self.mean
        self.mean += share * off
        self.variance += share * (off * off * (1 - share) - self.variance)

    def spread(self) -> float:
        return max(math.sqrt(self.variance), LEAST_SPREAD)


class History:
    """What the steps of one agent of a run, or of one key, cost and said so far."""

    __slots__ = ("_cost", "_excess", "_expected", "_largest", "_length", "_level", "_moved", "_score", "_usual")

    def __init__(self) -> None:
        self._cost, self._length = _Level(), _Level()
        self._expected = self._score = self._level = self._usual = 0.0
        self._largest = self._moved = self._excess = 0

    def length(self, tokens: int) -> None:
        """An answer came to its end with so many tokens."""
        if tokens > 0:
            self._length.add(math.log(tokens))
            if tokens > self._largest:
                self._largest = tokens

    def burn_at(self, limits: Limits) -> float:
        """Tokens beyond which an answer is too long."""
        if self._length.seen < limits.warm_up:
            return math.inf
        usual = math.exp(min(self._length.mean + SURPRISE * self._length.spread(), 40.0))
        return max(LEAST_BURN, limits.pause * self._largest, usual)

    def cost(self, pico: int, limits: Limits) -> Verdict | None:
        """A step cost so many picounits: has the level moved, by a factor and an amount that matter?"""
        known, log = self._cost, math.log(pico)
        if known.seen < limits.warm_up:
            known.add(log)
            self._expected += (pico - self._expected) / known.seen
            return None
        spread = known.spread()
        off = (log - known.mean) / spread
        usual = float(pico)
        if off > CLIP:
            off, log = CLIP, known.mean + CLIP * spread
            usual = math.exp(log)
        self._score = min(max(0.0, self._score + max(off, -CLIP) - ALLOWANCE), 2 * DECISION)
        if self._score == 0.0:
            if self._moved:
                self._moved = self._excess = 0
                self._level = self._usual = 0.0
        else:
            self._moved += 1
            self._excess += pico - int(self._expected)
            self._level = self._level * RECENT + pico
            self._usual = self._usual * RECENT + self._expected
        verdict = self._judge(limits) if self._score > DECISION else None
        weight = DOUBTFUL if self._score > DECISION / 2 else 1.0
        known.add(log, weight)
        self._expected += (usual - self._expected) * weight / MEMORY
        return verdict

    def _judge(self, limits: Limits) -> Verdict | None:
        times = self._level / max(1.0, self._usual)
        if times < limits.pause or self._excess < limits.floor_pico:
            return None
        why = f"its steps cost {times:.1f} times what its own history expects ({self._moved} in a row)"
        evidence: Evidence = {"steps": self._moved, "excess_pico": str(self._excess), "times": f"{times:.2f}"}
        self._score = 0.0
        return Verdict("cost-velocity", why, evidence, is_far=times >= limits.kill)


class Ceiling:
    """Money per minute: a bucket that holds one minute's and drains evenly."""

    __slots__ = ("_at", "_level")

    def __init__(self) -> None:
        self._at = self._level = 0.0

    def cost(self, pico: int, now: float, ceiling_pico: int) -> Verdict | None:
        """So much was spent at `now` (seconds on any steady clock)."""
        self._level = max(0.0, self._level - ceiling_pico * (now - self._at) / 60) + pico
        self._at = now
        if self._level <= ceiling_pico:
            return None
        evidence = {"cost_pico": str(int(self._level)), "ceiling_pico": str(ceiling_pico)}
        self._level = 0.0
        return Verdict("cost-velocity", "it spends more in a minute than its ceiling", evidence, is_hard=True)


def burnt(tokens: int, history: History, limits: Limits) -> Verdict | None:
    """An answer that is still coming has so many tokens by now."""
    if tokens <= LEAST_BURN or tokens <= (burn_at := history.burn_at(limits)):
        return None
    limit = int(burn_at)
    why = f"its answer is {tokens} tokens long and goes on; what it said before makes {limit} the most"
    return Verdict("token-burn", why, {"tokens": tokens, "limit": limit})


def _pieces(events: bytes, newest: int) -> bytes:
    """The text of the newest events, or the arguments of tools, up to what is escaped in each: cut out and not parsed,
    which would take ten times as long."""
    at = len(events)
    for _ in range(newest):
        at = max(0, events.rfind(b"data:", 0, at))
    newer = events[at:]
    found = []
    for part in newer.split(b'content":')[1:] or newer.split(b'arguments":')[1:]:
        begin = part.find(b'"', 0, 2) + 1
        if begin:
            found.append(part[begin : part.find(b'"', begin)])
    return b"".join(found)


class Repetition:
    """The newest text of one stream."""

    __slots__ = ("_looks", "_text")

    def __init__(self) -> None:
        self._text, self._looks = b"", 0

    def look(self, events: bytes, newest: int) -> Verdict | None:
        """Server-sent events of which the `newest` were not seen before."""
        text = self._text = (self._text + _pieces(events, newest))[-TEXT:]
        if len(text) < SHORT:
            return None
        self._looks += 1
        period = len(text) - 64 - text.rfind(text[-64:], 0, -1)
        size = SHORT if period <= SHORT_PERIOD else TEXT
        if period <= PERIOD and len(text) >= size:
            stretch = text[-size:]
            if stretch[period:] == stretch[:-period]:
                why = f"the last {size} bytes of its answer repeat {period} bytes again and again"
                return Verdict("repetition", why, {"bytes": size, "period": period})
        if len(text) == TEXT and self._looks % 8 == 1 and (size := len(zlib.compress(text, 1))) < SQUEEZED * TEXT:
            why = f"the last {TEXT} bytes of its answer say what {size} could"
            return Verdict("repetition", why, {"bytes": TEXT, "compressed": size})
        return None


class Loop:
    """What the agents of one item said."""

    __slots__ = ("_alike", "_asked", "_newest", "_said", "_tools")

    def __init__(self) -> None:
        self._newest: deque[tuple[str, int, int]] = deque(maxlen=4 * CYCLES)
        self._said: dict[str, tuple[str, frozenset[int]]] = {}
        self._alike: Counter[str] = Counter()
        self._tools: Counter[tuple[str, int]] = Counter()
        self._asked: set[tuple[str, int]] = set()

    def is_sample(self, agent: str, asked: int) -> bool:
        """Whether the agent was asked the very same before: on purpose, since else its memo answers. Samples agree."""
        is_again = (agent, asked) in self._asked
        self._asked.add((agent, asked))
        return is_again

    def said(self, agent: str, text: str, limits: Limits) -> Verdict | None:
        """An agent's whole output, one that was paid for."""
        size = _substance(text)
        self._newest.append((agent, hash(text), size))
        before = self._said.get(agent)
        words = _shingles(text) if before is not None and size >= SUBSTANTIAL else frozenset[int]()
        self._said[agent] = (text, words)
        if before is not None:
            is_alike = size >= SUBSTANTIAL and _are_alike(text, words, *before)
            self._alike[agent] = self._alike[agent] + 1 if is_alike else 0
            if self._alike[agent] >= limits.repeats - 1:
                count = self._alike[agent] + 1
                why = f"agent {agent} gave nearly the same output {count} times in a row"
                return Verdict("agent-loop", why, {"outputs": count, "characters": len(text)})
        return self._cycle()

    def _cycle(self) -> Verdict | None:
        newest = list(self._newest)
        for period in (2, 3, 4):
            tail = newest[-CYCLES * period :]
            if len(tail) == CYCLES * period and tail[period:] == tail[:-period]:
                size = sum(length for _, _, length in tail[:period])
                if size >= SUBSTANTIAL:
                    agents = " and ".join(dict.fromkeys(agent for agent, _, _ in tail[:period]))
                    why = f"{agents} went through the same {period} outputs {CYCLES} times"
                    return Verdict("agent-loop", why, {"period": period, "cycles": CYCLES, "characters": size})
        return None

    def called(self, agent: str, calls: Iterable[tuple[str, str]]) -> Verdict | None:
        """The tools that a turn of an agent calls, with their arguments."""
        for name, arguments in calls:
            call = (agent, hash((name, arguments)))
            self._tools[call] += 1
            if self._tools[call] >= TOOL_CALLS:
                why = f"agent {agent} called tool {name} with the same arguments {TOOL_CALLS} times"
                return Verdict("agent-loop", why, {"calls": self._tools[call]})
        return None


def _substance(text: str) -> int:
    """Characters of an output without its empty fields, and without those that hold nothing else."""
    for _ in range(4):  # what holds nothing else is empty then, as deep as answers go
        text = _EMPTY.sub("", text)
    return len(text)


def _shingles(text: str) -> frozenset[int]:
    words = text.split()
    return frozenset(map(hash, zip(words, words[1:], words[2:], strict=False)))


def _are_alike(text: str, words: frozenset[int], before: str, before_words: frozenset[int]) -> bool:
    if text == before:
        return True
    if abs(len(text) - len(before)) > (1 - ALIKE) * len(before):
        return False
    other = before_words or _shingles(before)
    return len(words & other) > ALIKE * len(words | other) > 0


@dataclass
class Refusals:
    """The newest items of a run as they ended: by which agent's handoff each was refused, or that it was not."""

    _newest: deque[str | None] = field(default_factory=lambda: deque(maxlen=WINDOW))
    _where: dict[str, str] = field(default_factory=dict)

    def passed(self) -> None:
        """An item ended, and no handoff was to blame."""
        self._newest.append(None)

    def refused(self, agent: str, pointer: str) -> Verdict | None:
        """An item was refused; `pointer` is where its reply did not fit."""
        self._newest.append(agent)
        self._where[agent] = pointer
        refused = [each for each in self._newest if each is not None]
        if len(refused) < TOO_MANY:
            return None
        ((worst, count),) = Counter(refused).most_common(1)
        why = (
            f"{len(refused)} of the last {len(self._newest)} items were refused, {count} of them at agent {worst} "
            f"(the last time at {self._where[worst] or '/'})"
        )
        return Verdict("schema-failures", why, {"refused": len(refused), "of": len(self._newest), "agent": worst})


@dataclass
class Streak:
    """Refusals in a row, in an order that has nothing to do with them: items as they began, or the first reply to each.
    As they end the refused come last, since they were asked again."""

    guard: str = "schema-failures"
    what: str = "items"
    _seen: int = 0
    _bad: int = 0
    _row: int = 0

    def passed(self) -> None:
        """One was good."""
        self._seen, self._bad, self._row = self._seen + 1, self._bad + self._row, 0

    def refused(self, agent: str, pointer: str) -> Verdict | None:
        """One was refused, at this agent; `pointer` is where its reply did not fit."""
        self._seen, self._row = self._seen + 1, self._row + 1
        before = self._seen - self._row
        if self._row < 3 or ((self._bad + 1) / (before + 2)) ** self._row >= CHANCE:
            return None
        why = (
            f"{self._row} {self.what} in a row were refused, the last at agent {agent} (at {pointer or '/'}); "
            f"{self._bad} of {before} were before"
        )
        return Verdict(self.guard, why, {"in_a_row": self._row, "refused": self._bad, "of": before, "agent": agent})


@dataclass
class Progress:
    """The paid steps of a run's items. Those that are over say what an item may take."""

    _under_way: Counter[str] = field(default_factory=Counter)
    _largest: int = 0
    _ended: int = 0

    def step(self, item: str, limits: Limits) -> Verdict | None:
        """An item took one more."""
        self._under_way[item] += 1
        steps, most = self._under_way[item], max(LEAST_STEPS, int(limits.pause * self._largest))
        if self._ended < limits.warm_up or steps != most + 1:
            return None
        why = f"it took {steps} steps and is not done; no item before took more than {self._largest}"
        return Verdict("no-progress", why, {"steps": steps, "largest": self._largest})

    def ended(self, item: str, *, is_done: bool) -> None:
        """It came to its end."""
        steps = self._under_way.pop(item, 0)
        if is_done and steps:
            self._ended, self._largest = self._ended + 1, max(self._largest, steps)


def beyond_forecast(spent_pico: int, high_pico: int, limits: Limits) -> Verdict | None:
    """A run has spent so much, and was forecast to cost at most `high_pico` in all."""
    if spent_pico < limits.pause * high_pico or spent_pico - high_pico < limits.floor_pico or not high_pico:
        return None
    times = spent_pico / high_pico
    why = f"the run has spent {times:.1f} times the upper end of its forecast"
    evidence = {"cost_pico": str(spent_pico), "expected_pico": str(high_pico)}
    return Verdict("cost-velocity", why, evidence, is_far=times >= limits.kill)


LEAST_DEADLINE_S = 900.0


def overdue(elapsed_s: float, high_s: float, limits: Limits) -> Verdict | None:
    """A run is at work for so long, and was forecast to take at most `high_s`."""
    if elapsed_s < max(LEAST_DEADLINE_S, limits.pause * high_s):
        return None
    why = f"the run takes {elapsed_s:.0f} s; its forecast said {high_s:.0f} s at most"
    return Verdict("wall-clock", why, {"seconds": int(elapsed_s), "forecast_seconds": int(high_s)})


def short_of(spent_pico: int, limit_pico: int, *, ended: int, items: int, limits: Limits) -> Verdict | None:
    """A run's budget, if the rest of its items cost what those that ended did."""
    if ended < limits.warm_up or spent_pico * items <= limit_pico * ended:
        return None
    enough = int(limit_pico * ended / spent_pico)
    why = f"at what its items cost so far, the run's budget pays for {enough} of {items} items"
    return Verdict("runway", why, {"ended": ended, "items": items, "paid_for": enough}, is_note=True)
