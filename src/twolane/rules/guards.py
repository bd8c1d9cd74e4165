"""Guards: what must not go on, judged from what was seen."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field

WINDOW, TOO_MANY = 40, 20
"""Pause when so many of the newest items were refused. Where one item in ten is rightly refused, one window in 5·10⁹
looks like this; where one in five is, one in 46,000. A run whose agent is broken is stopped after twenty items."""


@dataclass
class Refusals:
    """The newest items of a run: by which agent's handoff each was refused, or that it was not."""

    _newest: deque[str | None] = field(default_factory=lambda: deque(maxlen=WINDOW))
    _where: dict[str, str] = field(default_factory=dict)

    def passed(self) -> None:
        """An item ended, and no handoff was to blame."""
        self._newest.append(None)

    def refused(self, agent: str, pointer: str) -> str | None:
        """An item went to quarantine for a refused handoff; `pointer` is where its reply did not fit. Why the run must
        pause; None where it need not."""
        self._newest.append(agent)
        self._where[agent] = pointer
        refused = [each for each in self._newest if each is not None]
        if len(refused) < TOO_MANY:
            return None
        ((worst, count),) = Counter(refused).most_common(1)
        return (
            f"{len(refused)} of the last {len(self._newest)} items were refused, {count} of them at agent {worst} "
            f"(the last time at {self._where[worst] or '/'})"
        )
