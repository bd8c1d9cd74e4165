"""What an upstream's answers teach: how much of it to use (`Pace`), and when to leave it alone (`Breaker`)."""

from __future__ import annotations

from enum import StrEnum

CUT, SLOW_CUT, LEAST_FOR_SLOWNESS = 0.7, 0.85, 0.5
SLOW, SLOW_MARGIN_S, ANSWERS = 3.0, 0.1, 32
"""Slow is a smoothed first token later than 3 × the usual one and 100 ms, seen over at least so many answers."""

FAILURES = 5
"""Consecutive failures that open a breaker."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 60.0

_CONGESTED = frozenset({429, 503, 529})
_OURS = frozenset({401, 402, 403, 407, 408})


def is_congestion(http_status: int | None) -> bool:
    """True for the statuses by which a server says that it is asked too much."""
    return http_status in _CONGESTED


def is_fault(http_status: int | None) -> bool:
    """True for failures that are not the client's: no answer, a server's error, our own key refused. A 429 is none: the
    server works, and is asked less (`Pace`)."""
    return http_status is None or http_status >= 500 or http_status in _OURS


class Pace:
    """The part of its slots that an upstream is used with: additive increase, multiplicative decrease.

    A refusal for load cuts it once for each round trip: only one whose call left after the last cut says anything about
    it. Lasting slowness cuts it too, never below a half: a first token comes later for long prompts as well.

    Source: Chiu and Jain, Analysis of the increase and decrease algorithms for congestion avoidance, 1989.
    """

    def __init__(self) -> None:
        self.share = 1.0
        self._cut_at = float("-inf")
        self._usual_s = self._recent_s = 0.0
        self._answers = 0

    def allowed(self, slots: int) -> int:
        """How many of `slots` may be busy: at least one, if there are any."""
        return slots if self.share >= 1.0 else min(slots, max(1, int(slots * self.share + 1e-9)))

    def refused(self, *, began: float, now: float) -> None:
        """A call that left at `began` was refused for load."""
        if began >= self._cut_at:
            self.share, self._cut_at = self.share * CUT, now

    def answered(self, ttft_s: float, *, slots: int, began: float, now: float) -> None:
        """A call that left at `began` got its first token; `slots` are all there are."""
        if self._answers == 0:
            self._usual_s = self._recent_s = ttft_s
        self._answers += 1
        self._recent_s += (ttft_s - self._recent_s) / 16
        drift = 256 if self._recent_s > self._usual_s else 8
        self._usual_s += (self._recent_s - self._usual_s) / drift
        if began < self._cut_at:
            return
        is_slow = self._recent_s > SLOW * self._usual_s + SLOW_MARGIN_S
        if is_slow and self._answers >= ANSWERS and self.share > LEAST_FOR_SLOWNESS:
            self.share, self._cut_at = max(LEAST_FOR_SLOWNESS, self.share * SLOW_CUT), now
        elif self.share < 1.0 and not is_slow:
            slots = max(1, slots)
            floor = max(self.share, 1.0 / slots)  # below one slot nothing would be learnt
            self.share = min(1.0, floor + 1.0 / (slots * max(1.0, slots * floor)))


class State(StrEnum):
    """Where a breaker stands."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"


class Breaker:
    """Stops calls to an upstream that only fails, and lets one through after a growing pause to see whether it is back.

    Whoever is let through while it is not closed is the probe; it must say how it ended (`succeeded`, `failed`, or
    `left` where it ended without telling anything).
    """

    def __init__(self) -> None:
        self.state = State.CLOSED
        self.failures = 0
        """Consecutive ones, until one succeeds."""
        self.pauses = 0
        """Pauses since it opened; above 1 each ended with a failed probe."""
        self._until = 0.0

    def admits(self, now: float) -> bool:
        """True where a call may leave now."""
        return self.state is State.CLOSED or (self.state is State.OPEN and now >= self._until)

    def begin(self) -> bool:
        """A call leaves that was admitted; True makes it the probe."""
        if self.state is State.CLOSED:
            return False
        self.state = State.HALF_OPEN
        return True

    def wait(self, now: float) -> float:
        """Seconds until somebody may try: 0 while closed, at least the first pause while a probe is out."""
        if self.state is State.CLOSED:
            return 0.0
        return FIRST_PAUSE_S if self.state is State.HALF_OPEN else max(0.0, self._until - now)

    def succeeded(self) -> None:
        """A call was answered."""
        self.state, self.failures, self.pauses = State.CLOSED, 0, 0

    def failed(self, now: float, *, is_probe: bool, jitter: float) -> bool:
        """A call failed for a fault that was not the client's; `jitter` is between 0 and 1. True where this began a
        pause."""
        self.failures += 1
        is_verdict = is_probe if self.state is not State.CLOSED else self.failures >= FAILURES
        if not is_verdict:
            return False
        pause_s = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** min(self.pauses, 16))
        self.pauses += 1
        self.state, self._until = State.OPEN, now + pause_s * (0.75 + 0.5 * jitter)
        return True

    def left(self) -> None:
        """The probe ended without telling anything: the next one may be it, at once."""
        if self.state is State.HALF_OPEN:
            self.state = State.OPEN
