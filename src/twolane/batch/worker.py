"""A worker: one process that works on one run, alone or beside others (the durable engine is one per process).

One of them owns the run: it plans (what has memos already), runs the pilot, forecasts, queues the rest as chunks, takes
over what the dead left, and ends the run. The others join: they work on chunks, and the first to see that the owner is
gone takes its place. Whatever ends a worker, a kill -9 included, the others or the next one go on from the memos: a
finished step is never paid twice.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import orjson

from twolane.batch import reports
from twolane.batch import run as runs
from twolane.batch.items import FAILED, STOPPED, Items, Stop
from twolane.batch.pilot import pilot
from twolane.batch.reduce import reduce
from twolane.batch.workflow import Workflow
from twolane.config import Config
from twolane.domain.money import Money
from twolane.domain.records import Origin
from twolane.errors import ConfigError, StoreError, SwitchTripped
from twolane.kernel import Kernel, ledger
from twolane.store import Row, Transaction, unwaited
from twolane.store.presence import Presence

if TYPE_CHECKING:  # the durable engine takes a second to import
    from twolane.batch.queue import Chunk, Queue

log = logging.getLogger("twolane.batch")

CHUNK = 25
"""Most items of one chunk."""
SHARES = 16
"""Chunks that a run has at least, where it has that many items: so that several workers find something to do."""
LOOK_S = 0.1
"""How often a worker looks who is alive and whether it shall stop."""
FORESEE_S = 2.0
"""How often the owner asks whether the run's budget will do."""
SUSPECT = 2
"""Deaths in a row without a new answer after which a chunk is split, to find the item that kills its workers."""
TRIALS = 3
"""Deaths over one item with nothing beside it after which it is quarantined."""


@dataclass
class Worker:
    """One run in this process. `run()` returns when the run has ended, or this process's part in it."""

    kernel: Kernel
    flow: Workflow
    run_id: str
    pilot_only: bool = False
    may_join: bool = False
    """Where another living process owns the run: work beside it, instead of refusing."""
    on_forecast: Callable[[dict[str, object]], None] | None = None
    _items: Items = field(init=False)
    _queue: Queue | None = None
    _began: float = 0.0
    _foresees_at: float = 0.0
    _spent_before: int | None = None
    """What the run had cost when this process first looked; in picounits."""
    _attempt: int = 0
    """The run's attempt while this process owns it, else 0."""

    def __post_init__(self) -> None:
        self._items = Items(self.kernel, self.flow, self.run_id, self._tell)

    async def run(self) -> None:
        """Take or join the run, work, and end it where it is ours.

        Raises:
            ConfigError: another living process is at it, and this one may not join; or that one works with another
                version of the flow.
        """
        from twolane.batch.queue import Queue

        kernel, began = self.kernel, time.monotonic()
        self._began = began
        await self._take()
        lost, listening = _Lost(kernel.presence), asyncio.create_task(self._listen())
        try:
            opened = await Queue.open(
                queue_address(kernel.config),
                self.run_id,
                executor_id=kernel.presence.name,
                work=self._work,
                concurrency=math.ceil(self._items.width / self._chunk_size()) + 1,
            )
            async with opened as queue:
                self._queue = queue
                if not self._attempt:
                    await self._help(queue)
                if self._attempt:
                    await self._own(queue)
        except StoreError as error:
            self._items.halt(Stop(STOPPED, f"store: {error}"))
        except BaseException as error:
            self._items.halt(Stop(STOPPED, f"interrupted: {error or type(error).__name__}"))
            lost.explain(self.run_id, error)
            raise
        finally:
            lost.forget()
            listening.cancel()
            await self._items.aclose()
            if self._attempt:
                await self._end(time.monotonic() - began)

    def leave(self) -> None:
        """Begin nothing new here. What is under way comes to its end; the run waits for another worker."""
        self._items.is_leaving = True
        if self._queue is not None:
            self._queue.leave()

    # ── who owns the run ──

    async def _take(self) -> None:
        row = runs.find(self.kernel, self.run_id)
        if row["status"] == "running" and self.kernel.presence.is_alive(row["owner"]):
            if not self.may_join:
                raise ConfigError(
                    f"run {self.run_id} is being worked on by another process", hint="Watch it: twolane run watch"
                )
            if row["code"] != self.flow.digest:
                raise ConfigError(
                    f"run {self.run_id} is worked on with another version of its flow's module than this one",
                    hint="Stop and resume it, so that all of its workers have the same",
                )
            return
        if not await self._try_to_own(row["owner"]) and not self.may_join:
            raise ConfigError(f"run {self.run_id} was taken by another process at this moment")

    async def _try_to_own(self, known_owner: str) -> bool:
        """Become the run's owner, unless somebody else was faster."""
        owner, code = self.kernel.presence.name, self.flow.digest

        def work(tx: Transaction) -> int:
            taken = tx.run(
                "begin_run", id=self.run_id, owner=owner, known_owner=known_owner, code=code, now=ledger.now_us()
            )
            if not taken:
                return 0
            if known_owner:  # it is dead, or only asleep: from here on it ends nothing of this run
                tx.run("bury", name=known_owner)
            fresh = tx.one("run", id=self.run_id)
            assert fresh is not None
            event = "taken over" if fresh["deaths"] else "started" if fresh["attempt"] == 1 else "resumed"
            self._note(tx, event, attempt=fresh["attempt"], code=code or None)
            return int(fresh["attempt"])

        self._attempt = await self.kernel.store.write(work)
        return bool(self._attempt)

    async def _help(self, queue: Queue) -> None:
        """Work on what the owner queues, until the run has ended, or is ours because its owner is gone."""
        while not self._items.is_leaving:
            row = runs.find(self.kernel, self.run_id)
            if row["status"] != "running":
                return
            if not self.kernel.presence.is_alive(row["owner"]) and await self._try_to_own(row["owner"]):
                return
            await asyncio.sleep(LOOK_S)
        await queue.left()

    async def _own(self, queue: Queue) -> None:
        """Pilot, forecast, then everything else."""
        from twolane.batch.queue import Chunk

        await self._take_over(queue)
        row = runs.find(self.kernel, self.run_id)
        if row["forecast"] is None and row["deaths"] < SUSPECT:  # whatever kills its workers may lie in the pilot
            await self._forecast()
        if self.pilot_only:
            return
        size = self._chunk_size()
        while not self._is_over() and (left := self._left()):
            firsts = sorted({position - position % size for position in left})
            await queue.enqueue([Chunk(self.run_id, self._attempt, first, first + size - 1) for first in firsts])
            for failed in await queue.drain(beside=lambda: self._look_around(queue)):
                self._items.halt(Stop(FAILED, f"chunk {failed.id}: {failed.error}"))
            if self._left() and not self._is_over():
                self._attempt = await self.kernel.store.write(self._next_attempt)
        if not self._is_over() and (reason := await reduce(self.kernel, self.flow, self.run_id)):
            self._items.halt(Stop(STOPPED, reason))

    async def _look_around(self, queue: Queue) -> bool:
        """Take over what the dead left; no more waiting where this process leaves."""
        if self._items.is_leaving:
            await queue.left()
            return False
        if self._items.stop is not None:
            await queue.clear()
        await self._take_over(queue)
        return True

    async def _take_over(self, queue: Queue) -> None:
        """What the dead were at is done by the living, and what they held is settled."""
        presence = self.kernel.presence
        if await queue.take_over(presence.is_alive, self._again, bury=presence.bury):
            await self.kernel.treasury.recover()

    async def _listen(self) -> None:
        """Hear all the time what others say of the run, also while its pilot is at work."""
        while True:
            await asyncio.sleep(LOOK_S)
            try:
                self._hear(runs.find(self.kernel, self.run_id))
            except StoreError:
                pass  # nothing begins anyway until the store can be reached
            except Exception:
                log.exception("run %s could not be looked after; trying again", self.run_id)

    def _hear(self, row: Row) -> None:
        if row["stop"] is not None and self._items.stop is None:
            self._items.halt(Stop(*orjson.loads(row["stop"])))
        try:
            self.kernel.switches.check(Origin(row["tenant"], workflow=row["workflow"], run=self.run_id).scopes())
        except SwitchTripped as error:
            self.kernel.switches.close_tripped()  # first the steps, then items that are at none just now
            self._items.halt(Stop(STOPPED, f"switch: {error}", is_at_once=True))
        self._guard(row)

    def _guard(self, row: Row) -> None:
        """Let the guards look at the whole run: its time at every turn, its money every `FORESEE_S`."""
        now = time.monotonic()
        self._items.watch.look(now - self._began)
        if now < self._foresees_at:
            return
        self._foresees_at = now + FORESEE_S
        spent = sum(each["cost_pico"] for each in self.kernel.store.all("totals_of_run", run=self.run_id))
        if self._spent_before is None:
            self._spent_before = spent
        if row["forecast"]:
            said = orjson.loads(row["forecast"])
            high = Money.parse(said["cost"]["high"], self.kernel.config.currency)
            self._items.watch.expect(high.pico, said["seconds"]["high"], spent - self._spent_before)
        budget = self.kernel.store.one("budget", scope=f"run:{self.run_id}")
        if budget is not None and budget["pico"]:
            counts = {each["status"]: each["items"] for each in self.kernel.store.all("count_items", run=self.run_id)}
            ended = counts.get("done", 0) + counts.get("quarantined", 0)
            self._items.watch.foresee(spent, budget["pico"], ended=ended, items=sum(counts.values()))

    def _tell(self, stop: Stop) -> None:
        """Whoever else works on this run shall stop too."""
        said = orjson.dumps([stop.status, stop.reason[:2000], stop.is_at_once]).decode()
        told = self.kernel.store.submit(lambda tx: tx.run("ask_stop", id=self.run_id, stop=said))
        told.add_done_callback(unwaited)

    def _next_attempt(self, tx: Transaction) -> int:
        tx.run("next_attempt", id=self.run_id, owner=self.kernel.presence.name)
        row = tx.one("run", id=self.run_id)
        assert row is not None
        return int(row["attempt"])

    async def _end(self, seconds: float) -> None:
        """done, or what stopped it; reports first, so that a run that says done has them all. Where this process only
        leaves, the run stays as it is for the next one."""
        stop = self._items.stop
        if stop is None and self._items.is_leaving and self._left():
            await self.kernel.store.write(self._leave(seconds))
            return
        try:
            if stop is None or not stop.reason.startswith("switch:"):  # who kills a run wants it stopped now
                await asyncio.to_thread(reports.finish_reports, self.kernel, self.flow, self.run_id)
        except OSError as error:
            stop = stop or Stop(STOPPED, f"store: the reports cannot be written: {error}. Free the disk and resume")
        if self.pilot_only and stop is None:
            stop = Stop(STOPPED, "forecast: only its pilot was run")
        status, reason = ("done", "") if stop is None else (stop.status, stop.reason)

        def work(tx: Transaction) -> None:
            ended = tx.run(
                "end_run",
                id=self.run_id,
                status=status,
                reason=reason[:2000],
                seconds=seconds,
                owner=self.kernel.presence.name,
                now=ledger.now_us(),
            )
            if ended:
                self._note(tx, status, reason=reason.partition(":")[0] or None)

        await self.kernel.store.write(work)

    def _leave(self, seconds: float) -> Callable[[Transaction], None]:
        def work(tx: Transaction) -> None:
            tx.run("leave_run", id=self.run_id, seconds=seconds, owner=self.kernel.presence.name)
            self._note(tx, "left")

        return work

    def _note(self, tx: Transaction, event: str, **more: object) -> None:
        ledger.append(tx, {"v": 1, "kind": "run", "run": self.run_id, "event": event, "at_us": ledger.now_us(), **more})

    def _is_over(self) -> bool:
        return self._items.stop is not None or self._items.is_leaving

    def _left(self) -> list[int]:
        return [row["position"] for row in self.kernel.store.all("positions", run=self.run_id, status="queued")]

    async def _forecast(self) -> None:
        said = await pilot(self.kernel, self._items, self.run_id, self._left())
        if said is None:
            return
        kept = orjson.dumps(said).decode()
        await self.kernel.store.write(lambda tx: tx.run("set_forecast", id=self.run_id, forecast=kept))
        if self.on_forecast is not None:
            self.on_forecast(said)

    # ── chunks ──

    async def _work(self, chunk: Chunk) -> str:
        """One chunk: its items that are still queued."""
        if chunk.attempt != runs.find(self.kernel, self.run_id)["attempt"]:
            return "left over"  # its items are in the chunks of a newer attempt
        queued = self._queued_of(chunk)
        if len(queued) == 1 and chunk.deaths >= SUSPECT:
            await self._items.work_alone(queued[0])
        else:
            await self._items.work(queued)
        if self._items.is_leaving and self._items.stop is None:
            raise asyncio.CancelledError  # the chunk goes back to the queue
        return "stopped" if self._items.stop else "done"

    async def _again(self, chunk: Chunk) -> Sequence[Chunk]:
        """What is queued in the place of a chunk whose worker died at it. One that kills its workers again and again,
        without an answer more each time, is split until the item is found that does it; that one is quarantined."""
        queued = self._queued_of(chunk)
        if not queued:
            return []
        newest = self.kernel.store.one("newest_step_of", run=self.run_id, first=chunk.first, last=chunk.last)
        assert newest is not None
        is_further = newest["position"] > chunk.seen
        deaths = 1 if is_further else chunk.deaths + 1
        chunk = replace(chunk, first=queued[0], last=queued[-1], deaths=deaths, seen=newest["position"])
        if len(queued) > 1 and deaths >= SUSPECT:
            middle = queued[len(queued) // 2]
            halves = replace(chunk, last=middle - 1), replace(chunk, first=middle)
            return [replace(half, deaths=SUSPECT - 1) for half in halves]
        trials = self._items.row(queued[0])["trials"]
        if len(queued) == 1 and trials and is_further:
            await self._items.set_trials(queued[0], 0)
        elif len(queued) == 1 and trials >= TRIALS:
            await self._items.blame(queued[0], f"its worker died {trials} times at it, with nothing else under way")
            return []
        return [chunk]

    def _chunk_size(self) -> int:
        """The same in every process and at any time: what is queued twice under one id is queued once."""
        items = sum(int(row["items"]) for row in self.kernel.store.all("count_items", run=self.run_id))
        return max(1, min(CHUNK, items // SHARES))

    def _queued_of(self, chunk: Chunk) -> list[int]:
        rows = self.kernel.store.all("items", run=self.run_id, first=chunk.first, last=chunk.last)
        return [row["position"] for row in rows if row["status"] == "queued"]


class _Lost:
    """Cancels the task that made it once this process may count as dead: its calls may be another's by then."""

    def __init__(self, presence: Presence) -> None:
        self._presence, self._task, self._is_lost = presence, asyncio.current_task(), False
        presence.on_lost = self._lose

    def _lose(self) -> None:
        self._is_lost = self._task is not None and self._task.cancel()

    def explain(self, run: str, error: BaseException) -> None:
        """Raise what a cancellation of ours means.

        Raises:
            StoreError: this process could not say that it lives.
        """
        if self._is_lost and isinstance(error, asyncio.CancelledError):
            raise StoreError(
                f"run {run}: this process could not write to its store for so long that others may have taken its part "
                "over: all that it had under way was closed. See that the store can be written, and go on with: "
                f"twolane run resume {run}"
            ) from None

    def forget(self) -> None:
        """From now on nothing is cancelled."""
        self._presence.on_lost = lambda: None


def queue_address(config: Config) -> Path | str:
    """Where the durable queue of a store lies: in a file beside it, which only this user can read, or in its
    database."""
    if not config.is_file():
        return config.store_address()
    store = config.store_path()
    path = store.with_name(store.name + ".queue")
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))
    return path
