"""How a run is getting on: read from the roll-ups, once a tick for all who watch the same run."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import orjson

from twolane.domain.money import decimal_string
from twolane.errors import NotFound
from twolane.rules.forecast import Span
from twolane.rules.progress import WINDOW_S, Sighting, Speed, left, speed
from twolane.store import Row, Store

TICK_S = 0.25
"""How often a watched run is read, where its store has changed."""
REPEAT_S = 1.0
"""After so long it is told again all the same: time passes, and a process may have died."""
OVER = frozenset({"done", "stopped", "failed"})

_LOG = logging.getLogger("twolane.kernel")


@dataclass(frozen=True, slots=True)
class AgentProgress:
    """One agent's steps in a run. `done` were accepted, `reused` of these from a memo."""

    done: int
    running: int
    reused: int
    refused: int
    failed: int
    pico: int


@dataclass(frozen=True)
class Progress:
    """A run at a moment."""

    run: str
    flow: str
    status: str
    reason: str
    items: Mapping[str, int]
    """total, done, quarantined, left"""
    agents: Mapping[str, AgentProgress]
    pico: int
    currency: str
    budget_pico: int | None
    seconds: float
    """At work, over all attempts."""
    speed: Speed | None
    """None until it was seen for a second."""
    left: Span | None
    """Seconds it still takes, as a 90 % interval; None is unknown."""
    left_by: str
    """What `left` rests on, or why it is unknown."""

    @property
    def is_over(self) -> bool:
        """True once nothing more happens by itself."""
        return self.status in OVER

    def fields(self) -> dict[str, object]:
        """As one JSON object. Money as decimal strings; None is unknown."""
        span = self.left
        return {
            "run": self.run,
            "flow": self.flow,
            "status": self.status,
            "reason": self.reason,
            "items": dict(self.items),
            "agents": {
                name: {
                    "done": each.done,
                    "running": each.running,
                    "reused": each.reused,
                    "refused": each.refused,
                    "failed": each.failed,
                    "cost": decimal_string(each.pico),
                }
                for name, each in self.agents.items()
            },
            "items_per_s": None if self.speed is None else round(self.speed.items_per_s, 3),
            "steps_per_s": None if self.speed is None else round(self.speed.steps_per_s, 3),
            "cost": decimal_string(self.pico),
            "currency": self.currency,
            "budget": None if self.budget_pico is None else decimal_string(self.budget_pico),
            "seconds": round(self.seconds, 3),
            "left_s": None
            if span is None
            else {name: round(getattr(span, name), 1) for name in ("low", "mid", "high")},
            "left_by": self.left_by,
        }

    @cached_property
    def line(self) -> bytes:
        """`fields` as JSON on one line; made once for all who watch."""
        return orjson.dumps(self.fields())


@dataclass
class _Channel:
    """Those who watch one run, and what they were told last."""

    listeners: int = 0
    latest: Progress | None = None
    number: int = 0
    """Counts what was told."""
    told_s: float = float("-inf")
    seen: deque[Sighting] = field(default_factory=deque)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    """Set, and replaced by another, when there is something new."""

    def tell(self, progress: Progress) -> None:
        """Whoever is slow misses what came in between, and never the end."""
        self.latest, self.number, self.told_s = progress, self.number + 1, time.monotonic()
        changed, self.changed = self.changed, asyncio.Event()
        changed.set()


class Watching:
    """The runs that somebody watches in this process. While nobody does, it does nothing."""

    def __init__(self, store: Store, *, is_alive: Callable[[str], bool], currency: str, tick_s: float = TICK_S) -> None:
        self._store, self._is_alive, self._currency, self._tick_s = store, is_alive, currency, tick_s
        self._channels: dict[str, _Channel] = {}
        self._ticker: asyncio.Task[None] | None = None
        self.reads = 0
        """How often a run was read; only ever grows."""

    @property
    def watched(self) -> int:
        """How many runs are watched now."""
        return len(self._channels)

    async def follow(self, run: str) -> AsyncGenerator[Progress, None]:
        """The run as it is now, then whenever it has changed and at least every `REPEAT_S`, until it is over. Close it
        (`contextlib.aclosing`) to stop earlier.

        Raises:
            NotFound: there is no such run.
        """
        channel = self._join(run)
        try:
            told = 0
            while True:
                changed = channel.changed
                if channel.latest is not None and channel.number != told:
                    told, progress = channel.number, channel.latest
                    yield progress
                    if progress.is_over:
                        return
                else:
                    await changed.wait()
        finally:
            channel.listeners -= 1
            if not channel.listeners:
                self._channels.pop(run, None)

    def look(self, run: str) -> Progress:
        """The run as it is now.

        Raises:
            NotFound: there is no such run.
        """
        return self._read(run, deque())

    def close(self) -> None:
        """Stop ticking."""
        if self._ticker is not None:
            self._ticker.cancel()

    def _join(self, run: str) -> _Channel:
        channel = self._channels.get(run)
        if channel is None:
            channel = _Channel()
            channel.tell(self._read(run, channel.seen))
            self._channels[run] = channel
        channel.listeners += 1
        if self._ticker is None or self._ticker.done():
            self._ticker = asyncio.get_running_loop().create_task(self._tick())
        return channel

    async def _tick(self) -> None:
        version = -1
        while self._channels:
            await asyncio.sleep(self._tick_s)
            try:
                before, version = version, self._store.version()
                for run, channel in list(self._channels.items()):
                    if version != before or time.monotonic() - channel.told_s >= REPEAT_S:
                        channel.tell(self._read(run, channel.seen))
            except Exception:  # noqa: BLE001 - the outermost turn of the tick: those who watch are told at the next one
                _LOG.exception("a run could not be read; trying again")

    def _read(self, run: str, seen: deque[Sighting]) -> Progress:
        self.reads += 1
        with self._store.snapshot():
            row = self._store.one("run", id=run)
            if row is None:
                raise NotFound(f"there is no run {run!r}")
            counts = {each["status"]: each["items"] for each in self._store.all("count_items", run=run)}
            totals = self._store.all("totals_of_run", run=run)
            status = status_of(row, self._is_alive)
            reason = self._reason(row, status)
            if reason and status == "stopped" and self._has_worker():
                status = "queued"  # one of them takes it over
            running = self._running(run) if status == "running" else {}
            budget = self._store.one("budget", scope=f"run:{run}")
        agents = _agents(totals, running)
        total, ended = sum(counts.values()), counts.get("done", 0) + counts.get("quarantined", 0)
        steps = sum(each["calls"] + each["reused"] for each in totals)
        now = _sight(seen, Sighting(time.monotonic(), ended, steps), is_running=status == "running")
        seconds = row["seconds"] + (max(0.0, time.time() - row["began"] / 1e6) if status == "running" else 0.0)
        span, rests_on = left(
            status=status, items=total - ended, now=now, forecast_s=_forecast_s(row), elapsed_s=seconds
        )
        return Progress(
            run=run,
            flow=row["flow"],
            status=status,
            reason=reason or row["reason"],
            items={
                "total": total,
                "done": counts.get("done", 0),
                "quarantined": counts.get("quarantined", 0),
                "left": total - ended,
            },
            agents=agents,
            pico=sum(each["cost_pico"] for each in totals),
            currency=self._currency,
            budget_pico=budget["pico"] if budget else None,
            seconds=seconds,
            speed=now,
            left=span,
            left_by=rests_on,
        )

    def _reason(self, row: Row, status: str) -> str:
        """Why a run is not what its row says; empty where it is."""
        if status == row["status"]:
            return ""
        return "interrupted: its worker is gone" if row["owner"] else "its worker has left: it waits for another one"

    def _has_worker(self) -> bool:
        return any(self._is_alive(row["owner"]) for row in self._store.all("workers"))

    def _running(self, run: str) -> dict[str, int]:
        """By agent: calls of the run that have left, or are about to, in every living process."""
        running: dict[str, int] = {}
        for row in self._store.all("reservations"):
            entry = orjson.loads(row["entry"])
            if entry.get("run") == run and self._is_alive(row["owner"]):
                agent = entry.get("agent", "")
                running[agent] = running.get(agent, 0) + 1
        return running


def status_of(row: Row, is_alive: Callable[[str], bool]) -> str:
    """A run's status: one whose process died while it ran is stopped, and one that its worker left is queued, whatever
    the row still says."""
    if row["status"] == "running" and not is_alive(row["owner"]):
        return "stopped" if row["owner"] else "queued"
    return str(row["status"])


def _agents(totals: Sequence[Row], running: Mapping[str, int]) -> dict[str, AgentProgress]:
    rows = {row["agent"]: row for row in totals}
    return {
        name: AgentProgress(
            done=row["calls"] - row["refused"] - row["failed"] + row["reused"] if row else 0,
            running=running.get(name, 0),
            reused=row["reused"] if row else 0,
            refused=row["refused"] if row else 0,
            failed=row["failed"] if row else 0,
            pico=row["cost_pico"] if row else 0,
        )
        for name in sorted({*rows, *running})
        for row in (rows.get(name),)
    }


def _sight(seen: deque[Sighting], now: Sighting, *, is_running: bool) -> Speed | None:
    """What went by since the oldest sighting. A run that begins again, or does not run, has no speed."""
    if not is_running or (seen and now.items < seen[-1].items):
        seen.clear()
    if not is_running:
        return None
    seen.append(now)
    while now.at_s - seen[0].at_s > WINDOW_S:
        seen.popleft()
    return speed(seen)


def _forecast_s(row: Row) -> Span | None:
    if row["forecast"] is None:
        return None
    seconds = orjson.loads(row["forecast"])["seconds"]
    return Span(seconds["low"], seconds["mid"], seconds["high"])
