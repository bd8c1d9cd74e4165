"""A worker for runs that were started without --wait."""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from dataclasses import dataclass, field
from typing import Annotated, Any

import typer

from twolane.batch import again
from twolane.batch.schedules import Schedules
from twolane.batch.worker import CHUNK
from twolane.cli.output import ConfigOption, load_config, new_app, run
from twolane.kernel import ledger
from twolane.platform import Platform
from twolane.rules.schedules import Tick
from twolane.store import Row

app = new_app("A worker for queued runs.")

POLL_S = 0.5
SCHEDULES_S = 1.0
"""Least time between two looks at the schedules."""
PATIENCE = 50
"""Workers of a run that may die, each within `POLL_S` of the one before it counted anew, before it has failed."""
CALM_S = 60.0
"""A worker that lived longer was none of those."""


@app.command()
def work(
    once: Annotated[bool, typer.Option("--once", help="end when no run is left to work on")] = False,
    runs: Annotated[int, typer.Option(help="how many runs at once, each in a process of its own", min=1)] = 2,
    config: ConfigOption = None,
) -> None:
    """Take queued runs, go on with those whose workers died, join long ones that others are at, and start those of
    [schedule.NAME], until told to stop.
    Each runs in a process of its own, so that a worker that has lived for weeks never runs yesterday's version of a
    flow. SIGTERM or Ctrl-C: what is under way comes to its end, and the rest is left to other workers; a second one
    ends it at once."""

    async def go() -> None:
        async with await Platform.open(load_config(config), can_call=False, takes_part=True) as platform:
            crew = _Crew(platform, config, runs)
            for name in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                asyncio.get_running_loop().add_signal_handler(name, crew.leave)
            await again.be_worker(platform.kernel)
            print("worker ready", flush=True)
            try:
                await crew.work(once=once)
            finally:
                await again.leave_work(platform.kernel)

    run(go())


@dataclass
class _Child:
    """A process that works on one run."""

    process: asyncio.subprocess.Process
    ended: asyncio.Future[Any]  # Any: its exit code, an int; `wait` wants one type with the others
    began: float = field(default_factory=time.monotonic)


class _Crew:
    """The processes of this worker, one for each run it is at."""

    def __init__(self, platform: Platform, config: str | None, most: int) -> None:
        self._platform, self._config, self._most = platform, config, most
        self._children: dict[str, _Child] = {}
        self._deaths: dict[str, int] = {}
        self._schedules, self._looked = Schedules(platform.kernel), float("-inf")
        self._starters: dict[Tick, _Child] = {}
        self._leaving = asyncio.Event()
        self._signals = 0

    def leave(self) -> None:
        """Told to stop: once, the children leave in good order; twice, they end now."""
        self._signals += 1
        self._leaving.set()
        for child in self._children.values():
            if child.process.returncode is None:
                child.process.send_signal(signal.SIGTERM if self._signals == 1 else signal.SIGINT)
        for starter in self._starters.values():  # a moment's work, and begun anew by others where it is cut off
            if self._signals > 1 and starter.process.returncode is None:
                starter.process.send_signal(signal.SIGINT)

    async def work(self, *, once: bool) -> None:
        """Until told to leave, or with `once` until nothing is left."""
        await self._schedules.see()
        while not self._leaving.is_set():
            await self._start_due()
            waiting = self._waiting()
            for row in waiting[: self._most - len(self._children)]:
                await self._begin(row["id"])
            if once and not (self._children or self._starters or waiting):
                return
            await self._pause()
            await self._look_after()
        await asyncio.gather(*(child.ended for child in (*self._children.values(), *self._starters.values())))

    async def _start_due(self) -> None:
        """Have the runs of due ticks started, each by a process of its own."""
        for tick in [tick for tick, starter in self._starters.items() if starter.ended.done()]:
            if self._starters.pop(tick).ended.result():
                self._looked = float("-inf")
        if time.monotonic() - self._looked >= SCHEDULES_S:
            self._looked = time.monotonic()
            for tick in await self._schedules.look(busy=self._starters):
                self._starters[tick] = await self._spawn("schedule", "start", tick.schedule, str(tick.at_us))

    def _waiting(self) -> list[Row]:
        """Runs that want a process of ours, most urgent first."""
        rows = self._platform.kernel.store.all("runs_to_work_on", now=ledger.now_us())
        return [row for row in rows if row["id"] not in self._children and self._is_for_us(row)]

    def _is_for_us(self, row: Row) -> bool:
        """Queued ones, those whose owner is gone, and those that have work for one more process than are at it."""
        return (
            row["status"] == "queued"
            or not self._platform.kernel.presence.is_alive(row["owner"])
            or row["left"] > 2 * CHUNK
        )

    async def _begin(self, identity: str) -> None:
        self._children[identity] = await self._spawn("run", "work", identity)

    async def _spawn(self, *command: str) -> _Child:
        arguments = ["-m", "twolane", *command, *(["--config", self._config] if self._config else [])]
        # In a group of its own: a Ctrl-C on the terminal is for us to pass on.
        process = await asyncio.create_subprocess_exec(sys.executable, *arguments, start_new_session=True)
        return _Child(process, asyncio.ensure_future(process.wait()))

    async def _look_after(self) -> None:
        for identity, child in list(self._children.items()):
            if not child.ended.done():
                continue
            del self._children[identity]
            status = self._platform.summary(identity).status
            code = child.ended.result()
            is_dead = code < 0 and status != "queued"
            if time.monotonic() - child.began > CALM_S or code == 0:
                self._deaths.pop(identity, None)
            elif is_dead:
                self._deaths[identity] = self._deaths.get(identity, 0) + 1
            if status == "queued" and not self._leaving.is_set():
                await self._platform.give_up(identity, f"its worker ended with {code} before it began")
            elif self._deaths.get(identity, 0) > PATIENCE:
                await self._platform.give_up(identity, f"{PATIENCE} workers in a row died at it, the last with {code}")

    async def _pause(self) -> None:
        """Until a child has ended, somebody tells us to leave, or it is time to look again."""
        told: asyncio.Future[bool] = asyncio.ensure_future(self._leaving.wait())
        ended = [child.ended for child in (*self._children.values(), *self._starters.values())]
        await asyncio.wait([told, *ended], timeout=POLL_S, return_when=asyncio.FIRST_COMPLETED)
        told.cancel()
