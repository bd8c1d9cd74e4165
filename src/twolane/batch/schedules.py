"""Runs that start by themselves: what a worker does about the ticks of `[schedule.NAME]`.

A tick is one row, made in the transaction that takes it; its run is released in the transaction that turns the row to
`started`. So however many workers look, and whoever is killed, a tick has one run that is ever worked on. What a
starter that died left `writing` stays so: no worker takes it, and `run resume` refuses it.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

from twolane.config import ScheduleSection
from twolane.kernel import Kernel, ledger
from twolane.rules import budgets
from twolane.rules.schedules import COUNTED, Tick, due_tick, instant, next_tick
from twolane.store import Row, Transaction

TRIALS = 3
"""Starters of one tick that may die before it has failed."""

KEPT_US = 30 * budgets.DAY_US
"""How long a tick's row is kept in any case, counted back from the newest one."""

log = logging.getLogger("twolane.batch")


class _Decided(NamedTuple):
    tick: Tick | None
    """Its run is to be started."""
    words: Sequence[str]
    """What a person should know."""


class Schedules:
    """One worker's view of the schedules in its configuration."""

    def __init__(self, kernel: Kernel, *, clock: Callable[[], int] = ledger.now_us) -> None:
        """`clock` gives microseconds of Unix time."""
        self._kernel, self._clock = kernel, clock
        self._sections = kernel.config.schedule
        self._stood_back: set[str] = set()

    async def see(self) -> None:
        """Once, when a worker begins: schedules it does not find, or finds with another cron, count from now on."""
        if self._sections:
            await self._kernel.store.write(self._see)

    def _see(self, tx: Transaction) -> None:
        now_us = self._clock()
        known = {row["name"]: row["cron"] for row in tx.all("schedules", now=now_us)}
        for name, section in self._sections.items():
            if known.get(name) != section.cron:
                tx.run("see_schedule", name=name, cron=section.cron, since=now_us)
                ledger.append(tx, _entry(name, "seen", now_us, cron=section.cron))

    async def look(self, *, busy: Collection[Tick]) -> list[Tick]:
        """Ticks whose runs this worker is to start now, at most one newly due for each schedule. `busy` are those it is
        at already. Nothing is written where nothing is due."""
        if not self._sections:
            return []
        taken = [tick for tick in await self._left_behind(busy) if tick is not None]
        now_us = self._clock()
        for row in self._kernel.store.all("schedules", now=now_us):
            section = self._section(row)
            if section is not None and _due_from(row, section) <= now_us:
                decided = await self._kernel.store.write(functools.partial(self._take, row["name"], section))
                for words in decided.words:
                    log.warning("schedule %s: %s", row["name"], words)
                if decided.tick is not None:
                    taken.append(decided.tick)
        return taken

    def _section(self, row: Row) -> ScheduleSection | None:
        """What the configuration says of a schedule, unless a worker that began later knows better."""
        name, section = row["name"], self._sections.get(row["name"])
        if section is None or section.cron == row["cron"]:
            self._stood_back.discard(name)
            return section
        if name not in self._stood_back:
            self._stood_back.add(name)
            log.warning("schedule %s: a worker that began later has cron %r; start this one again", name, row["cron"])
        return None

    def _take(self, name: str, section: ScheduleSection, tx: Transaction) -> _Decided:
        """Decide on what is due at this moment."""
        now_us, words = self._clock(), []
        row = next(row for row in tx.all("schedules", now=now_us) if row["name"] == name)
        since_us = _counted_from(row)
        due = due_tick(section.cron, since_us=since_us, now_us=now_us) if row["cron"] == section.cron else None
        if due is None:  # another worker was faster
            return _Decided(None, ())
        tick = Tick(name, due.at_us)
        if due.missed:
            missed = {"count": due.missed, "after": instant(since_us), "before": tick.instant}
            ledger.append(tx, _entry(name, "missed", now_us, **missed))
            count = f"{COUNTED} or more ticks" if due.missed == COUNTED else f"{due.missed} ticks"
            words.append(f"{count} before {tick.instant} were missed and are skipped")
        before, reason = None if section.overlap else tx.one("busy_tick", schedule=name), ""
        if before is not None:
            of = f"run {before['run']}" if before["run"] else "the start"
            reason = f"{of} of the tick of {instant(before['at'])} is not at its end"
            ledger.append(tx, _entry(name, "skipped", now_us, tick=tick.instant, previous=before["run"]))
            words.append(f"the tick of {tick.instant} is skipped: {reason}. overlap = true would start it")
        status, owner = "skipped" if reason else "starting", self._kernel.presence.name
        tx.run("add_tick", schedule=name, at=due.at_us, status=status, owner=owner, reason=reason)
        tx.run("forget_ticks", schedule=name, before=due.at_us - KEPT_US)
        return _Decided(None if reason else tick, words)

    async def _left_behind(self, busy: Collection[Tick]) -> list[Tick | None]:
        """Ticks whose starters died, ours or with their worker."""
        presence = self._kernel.presence
        rows = [
            row
            for row in self._kernel.store.all("starting_ticks")
            if row["schedule"] in self._sections
            and Tick(row["schedule"], row["at"]) not in busy
            and (row["owner"] == presence.name or not presence.is_alive(row["owner"]))
        ]
        return [await self._retake(row) for row in rows]

    async def _retake(self, row: Row) -> Tick | None:
        tick, owner = Tick(row["schedule"], row["at"]), self._kernel.presence.name
        if row["trials"] >= TRIALS:
            await fail(self._kernel, tick, reason=f"{TRIALS} processes that were to start its run died", error="died")
            return None

        def work(tx: Transaction) -> int:
            if row["owner"] != owner:
                tx.run("bury", name=row["owner"])
            known = {"known_owner": row["owner"], "known_trials": row["trials"]}
            return tx.run("retake_tick", schedule=tick.schedule, at=tick.at_us, owner=owner, **known)

        return tick if await self._kernel.store.write(work) else None


async def fail(kernel: Kernel, tick: Tick, *, reason: str, error: str) -> None:
    """No run is started for this tick: recorded and logged once. The ledger gets the kind of `error` and not the
    reason, which may quote what was read."""
    now_us = ledger.now_us()

    def work(tx: Transaction) -> bool:
        if not tx.run("fail_tick", schedule=tick.schedule, at=tick.at_us, reason=reason[:500]):
            return False
        ledger.append(tx, _entry(tick.schedule, "failed", now_us, tick=tick.instant, error=error))
        return True

    if await kernel.store.write(work):
        log.error("schedule %s: no run was started at the tick of %s: %s", tick.schedule, tick.instant, reason)


def listing(kernel: Kernel) -> list[dict[str, object]]:
    """Every schedule of the configuration: when it comes next, and what became of its last tick."""
    now_us = ledger.now_us()
    last = {row["schedule"]: row for row in kernel.store.all("last_ticks")}
    return [_listed(name, section, last.get(name), now_us) for name, section in sorted(kernel.config.schedule.items())]


def _listed(name: str, section: ScheduleSection, last: Row | None, now_us: int) -> dict[str, object]:
    coming = next_tick(section.cron, now_us)
    return {
        "name": name,
        "flow": section.flow,
        "cron": section.cron,
        "next": None if coming is None else instant(coming),
        "last_tick": instant(last["at"]) if last else None,
        "last_run": last["run"] if last else None,
        "last_status": last["status"] if last else None,
        "reason": last["reason"] if last else "",
    }


def _counted_from(row: Row) -> int:
    """The instant after which ticks of a schedule count: its newest one that was handled, or when it was first seen."""
    return max(int(row["since"]), int(row["handled"] or 0))


def _due_from(row: Row, section: ScheduleSection) -> float:
    """When the next tick of a schedule is due."""
    coming = next_tick(section.cron, _counted_from(row))
    return float("inf") if coming is None else coming


def _entry(schedule: str, event: str, at_us: int, **more: object) -> dict[str, object]:
    return {"v": 1, "kind": "schedule", "schedule": schedule, "event": event, "at_us": at_us, **more}
