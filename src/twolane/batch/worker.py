"""A worker: takes a run, works through its items, ends it. One run per process (the durable engine is one per process).

Order: plan (what has memos already) → pilot → forecast → the rest, as chunks of the durable queue. Whatever ends it, a
kill -9 included, the next worker goes on from the memos: a finished step is never paid twice.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from twolane.batch import reports
from twolane.batch import run as runs
from twolane.batch.deadline import within
from twolane.batch.item import Item
from twolane.batch.workflow import Workflow
from twolane.domain.document import Document
from twolane.domain.money import decimal_string
from twolane.domain.records import Origin
from twolane.errors import (
    BadRequest,
    BudgetExceeded,
    ConfigError,
    DocumentRefused,
    HandoffRefused,
    Killed,
    LedgerBroken,
    OutOfTime,
    Problem,
    Refused,
    StoreError,
    SwitchTripped,
    UpstreamError,
    UsageError,
)
from twolane.kernel import Kernel, ledger
from twolane.rules import forecast
from twolane.rules.guards import Refusals
from twolane.store import Row, Transaction
from twolane.store.vault import seal, unseal

log = logging.getLogger("twolane.batch")

PLAN_S = 30.0
"""How long an item may take to be walked without calling. One that takes longer would be met again in the run, so the
walk ends there and counts the rest as fresh."""
CHUNK = 25
"""Items of one chunk."""
IN_FLIGHT_PER_SLOT = 2
"""Items under way for each batch slot: enough to keep every slot busy while others wait for commits."""
MAX_IN_FLIGHT = 256
"""Bounds the memory of a run: each item under way holds its document."""
STOPPED, FAILED = "stopped", "failed"


@dataclass(frozen=True, slots=True)
class Stop:
    """Why a run ends before its items do. `reason` begins with what stopped it: budget, switch, upstream, store."""

    status: str
    reason: str


@dataclass
class Worker:
    """One run in this process. `run()` returns when the run has ended."""

    kernel: Kernel
    flow: Workflow
    run_id: str
    pilot_only: bool = False
    on_forecast: Callable[[dict[str, object]], None] | None = None
    _stop: Stop | None = None
    _refusals: Refusals = field(default_factory=Refusals)
    _gate: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(MAX_IN_FLIGHT))

    async def run(self) -> None:
        """Take the run, work, end it.

        Raises:
            ConfigError: another living process is at it.
        """
        from twolane.batch.queue import Queue  # the durable engine takes a second to import

        kernel, began = self.kernel, time.monotonic()
        self._gate = asyncio.Semaphore(self._width())
        attempt = await self._take()
        try:
            path = queue_path(kernel.store_path)
            os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))
            async with await Queue.open(path, self.run_id, executor_id=kernel.presence.name, work=self._work) as queue:
                await queue.take_over(self._alive())
                await self._drain(queue, attempt)
        except StoreError as error:
            self._halt(Stop(STOPPED, f"store: {error}"))
        except BaseException as error:
            self._halt(Stop(STOPPED, f"interrupted: {error or type(error).__name__}"))
            raise
        finally:
            await self._end(time.monotonic() - began)

    async def _take(self) -> int:
        row = runs.find(self.kernel, self.run_id)
        if row["status"] == "running" and self.kernel.presence.is_alive(row["owner"]):
            raise ConfigError(
                f"run {self.run_id} is being worked on by another process", hint="Watch it: twolane run watch"
            )
        known, owner = row["owner"], self.kernel.presence.name

        def work(tx: Transaction) -> int:
            now_us = ledger.now_us()
            if not tx.run("begin_run", id=self.run_id, owner=owner, known_owner=known, now=now_us):
                raise ConfigError(f"run {self.run_id} was taken by another process at this moment")
            fresh = tx.one("run", id=self.run_id)
            assert fresh is not None
            self._note(tx, "started" if fresh["attempt"] == 1 else "resumed", attempt=fresh["attempt"])
            return int(fresh["attempt"])

        return await self.kernel.store.write(work)

    async def _drain(self, queue: Any, attempt: int) -> None:  # Any: Queue, whose module is imported late
        """Pilot, forecast, then everything else."""
        from twolane.batch.queue import Chunk

        row = runs.find(self.kernel, self.run_id)
        if row["forecast"] is None:
            await self._forecast()
        if self.pilot_only or self._stop is not None:
            return
        while left := self._left():
            firsts = sorted({position - position % CHUNK for position in left})
            chunks = [Chunk(self.run_id, attempt, first, first + CHUNK - 1) for first in firsts]
            await queue.enqueue(chunks)
            for failed in await queue.drain():
                self._halt(Stop(FAILED, f"chunk {failed.id}: {failed.error}"))
            if self._is_stopped():
                return
            if self._left():
                attempt = await self.kernel.store.write(self._next_attempt)

    def _next_attempt(self, tx: Transaction) -> int:
        tx.run("next_attempt", id=self.run_id, owner=self.kernel.presence.name)
        row = tx.one("run", id=self.run_id)
        assert row is not None
        return int(row["attempt"])

    async def _end(self, seconds: float) -> None:
        """done, or what stopped it; reports first, so that a run that says done has them all."""
        try:
            reports.finish_reports(self.kernel, self.flow, self.run_id)
        except OSError as error:
            self._halt(Stop(STOPPED, f"store: the reports cannot be written: {error}. Free the disk and resume"))
        status, reason = ("done", "") if self._stop is None else (self._stop.status, self._stop.reason)
        if self.pilot_only and self._stop is None:
            status, reason = STOPPED, "forecast: only its pilot was run"

        def work(tx: Transaction) -> None:
            tx.run(
                "end_run",
                id=self.run_id,
                status=status,
                reason=reason[:2000],
                seconds=seconds,
                owner=self.kernel.presence.name,
                now=ledger.now_us(),
            )
            self._note(tx, status, reason=reason.partition(":")[0] or None)

        await self.kernel.store.write(work)

    def _note(self, tx: Transaction, event: str, **more: object) -> None:
        ledger.append(tx, {"v": 1, "kind": "run", "run": self.run_id, "event": event, "at_us": ledger.now_us(), **more})

    def _is_stopped(self) -> bool:
        return self._stop is not None

    def _left(self) -> list[int]:
        return [row["position"] for row in self.kernel.store.all("positions", run=self.run_id, status="queued")]

    def _alive(self) -> list[str]:
        owners = [row["owner"] for row in self.kernel.store.all("run_owners")]
        return [owner for owner in owners if self.kernel.presence.is_alive(owner)]

    def _width(self) -> int:
        """How many items are under way at once: enough for every batch slot there is."""
        slots = sum(section.slots.batch for section in self.kernel.config.upstream.values())
        return max(1, min(MAX_IN_FLIGHT, slots * IN_FLIGHT_PER_SLOT))

    def _slots(self) -> int:
        """The batch slots of the upstreams this run has used so far."""
        used = {row["upstream"] for row in self.kernel.store.all("upstreams_of_run", run=self.run_id)}
        sections = self.kernel.config.upstream.items()
        return max(1, sum(section.slots.batch for name, section in sections if name in used))

    # ── forecast ──

    async def _forecast(self) -> None:
        """Run a pilot among the items that have no memos yet, and carry its mean and spread over to the rest."""
        began = time.monotonic()
        fresh = await self._unplanned(self._left())
        size = forecast.pilot_size(len(fresh))
        pilot = fresh[:size]
        await self._all(pilot)
        if self._stop is not None:
            return
        said = self._said(pilot, len(fresh) - size, time.monotonic() - began)
        await self.kernel.store.write(
            lambda tx: tx.run("set_forecast", id=self.run_id, forecast=orjson.dumps(said).decode())
        )
        if self.on_forecast is not None:
            self.on_forecast(said)

    async def _unplanned(self, positions: Sequence[int]) -> list[int]:
        """Items whose memos do not answer everything, found by walking them without calling."""
        fresh: list[int] = []
        for number, position in enumerate(positions):
            row = self._row(position)
            try:
                item, walk = self._flow_of(row, is_plan=True)
                await within(min(PLAN_S, self.flow.timeout_s), walk, item)
            except OutOfTime:
                return [*fresh, *positions[number:]]
            except (asyncio.CancelledError, KeyboardInterrupt, SystemExit) as error:
                if _is_ours(error):
                    raise
                fresh.append(position)
            except BaseException:  # noqa: BLE001 - NeedsCall, alone or in a group; any other will be met again, and told, in the run
                fresh.append(position)
            await asyncio.sleep(0)
        return fresh

    def _said(self, pilot: Sequence[int], rest: int, elapsed_s: float) -> dict[str, object]:
        names = {self._row(position)["subject"]: position for position in pilot}
        paid = {names[row["item"]]: row for row in self.kernel.store.all("paid_by_item", run=self.run_id)
                if row["item"] in names}  # fmt: skip

        def measured(column: str) -> list[float]:
            return [float(paid[position][column]) if position in paid else 0.0 for position in pilot]

        cost = forecast.spread(measured("cost_pico"), rest)
        count = forecast.spread(measured("calls"), rest)
        busy = [value / 1e6 for value in measured("total_us")]
        work = forecast.spread(busy, rest)
        span = forecast.makespan(
            work, slots=min(self._slots(), max(1, rest + len(pilot))), longest=max(busy, default=0.0)
        )
        return {
            "calls": round(count.mid),
            "cost": {name: decimal_string(round(getattr(cost, name))) for name in ("low", "mid", "high")},
            "currency": self.kernel.config.currency,
            "seconds": {name: round(max(getattr(span, name), elapsed_s), 3) for name in ("low", "mid", "high")},
            "interval": forecast.INTERVAL,
            "pilot": len(pilot),
            "items": rest + len(pilot),
            "rough": True,
        }

    # ── items ──

    async def _work(self, chunk: Any) -> str:  # Any: Chunk, whose module is imported late
        """One chunk: its items that are still queued."""
        rows = self.kernel.store.all("items", run=self.run_id, first=chunk.first, last=chunk.last)
        await self._all([row["position"] for row in rows if row["status"] == "queued"])
        return "stopped" if self._stop else "done"

    async def _all(self, positions: Sequence[int]) -> None:
        """These items, as many at once as the slots can use. A stop lets what is under way come to its own end: it is
        paid for, or its switch closes it."""
        results = await asyncio.gather(*(self._one(position) for position in positions), return_exceptions=True)
        for error in results:
            if error is not None and not isinstance(error, asyncio.CancelledError):
                self._halt(Stop(FAILED, f"{type(error).__name__}: {error}"))

    async def _one(self, position: int) -> None:
        """One item to its end: done, quarantined, or left queued because the run stops."""
        async with self._gate:
            if self._stop is not None:
                return
            row, item = self._row(position), None
            try:
                item, result = self._flow_of(row)
                await self._finish(row, await within(self.flow.timeout_s, result, item))
            except (asyncio.CancelledError, KeyboardInterrupt, SystemExit) as error:
                if _is_ours(error):
                    raise
                await self._quarantine(row, item, RuntimeError("the workflow cancelled itself"))
            except BaseException as error:  # noqa: BLE001 - also Killed, and groups of these from a workflow's own tasks
                await self._conclude(row, item, _first(error))
            if item is not None:
                await item.come_to_rest()

    async def _conclude(self, row: Row, item: Item | None, error: BaseException) -> None:
        """What a failure means: this item's own fault goes to quarantine, anything else stops the run."""
        match error:
            case BudgetExceeded(scope=scope) if scope.startswith(("item:", "allowance:")):
                await self._quarantine(row, item, error)
            case BudgetExceeded():
                self._halt(Stop(STOPPED, f"budget: {error}"))
            case SwitchTripped() | Killed():
                self._halt(Stop(STOPPED, f"switch: {error}"))
            case UpstreamError(http_status=status) if status not in (400, 413, 422):
                self._halt(Stop(STOPPED, f"upstream: {error}"))
            case HandoffRefused() | DocumentRefused() | BadRequest() | UpstreamError():
                await self._quarantine(row, item, error)
            case LedgerBroken():
                self._halt(Stop(FAILED, f"ledger: {error}"))
            case Refused() | StoreError():
                self._halt(Stop(STOPPED, f"{error.code}: {error}"))
            case ConfigError() if not isinstance(error, UsageError):  # every item would meet it: no reply fits a schema
                self._halt(Stop(FAILED, f"workflow: {error}"))
            case Exception():  # the workflow's own code: its fault is this item's, the others go on
                log.warning("run %s: item %s: %s", self.run_id, row["name"], error, exc_info=error)
                await self._quarantine(row, item, error)
            case _:
                raise error

    def _row(self, position: int) -> Row:
        return self.kernel.store.all("items", run=self.run_id, first=position, last=position)[0]

    def _flow_of(self, row: Row, *, is_plan: bool = False) -> tuple[Item, Any]:  # Any: the flow's own awaitable
        kernel, run = self.kernel, runs.find(self.kernel, self.run_id)
        body = kernel.store.one("body", id=row["source"])
        assert body is not None, "a queued item has its source"
        subject = kernel.vault.subject(body, column="subject")
        value = runs.revive_input(self.flow, row["name"], unseal(subject, bytes(body["sealed"])))
        origin = Origin(run["tenant"], run["workflow"], self.run_id, row["name"])
        source = value if isinstance(value, Document) else None
        item = Item(kernel, origin, subject, source, options=runs.options_of(run)["with"], is_plan=is_plan)
        return item, self.flow.function(value, item)

    async def _finish(self, row: Row, value: Any) -> None:  # Any: the workflow's own model
        if not isinstance(value, self.flow.returns):
            raise TypeError(f"the workflow returned {type(value).__name__}, not {self.flow.returns.__name__}")
        subject = self._subject(row)
        # Before the item is done: a result that cannot be shown is this item's own fault.
        files = reports.render_report(runs.find(self.kernel, self.run_id), row, value)
        sealed = seal(subject, value.model_dump_json(by_alias=True, round_trip=True).encode())

        def work(tx: Transaction) -> None:
            body = tx.run("add_body", subject=subject.id, sealed=sealed)
            tx.run("finish_item", run=self.run_id, position=row["position"], output=body)

        await self.kernel.store.write(work)
        try:
            await asyncio.to_thread(reports.write_report, files)
        except OSError as error:  # the disk's fault and not the item's, which is done: its report is made up for later
            raise StoreError(
                f"the report of {row['name']} cannot be written: {error}. Free the disk and resume"
            ) from None
        self._refusals.passed()

    async def _quarantine(self, row: Row, item: Item | None, error: Exception) -> None:
        agent = error.agent if isinstance(error, HandoffRefused) else ""
        problems: Sequence[Problem] = (
            error.problems if isinstance(error, HandoffRefused) else [Problem("", _sentence(error))]
        )
        subject = self._subject(row)
        refused = item.refused_replies.get(agent) if item else None
        reply = None if refused is None else seal(subject, refused.encode())
        tenant = runs.find(self.kernel, self.run_id)["tenant"]

        def work(tx: Transaction) -> None:
            body = None if reply is None else tx.run("add_body", subject=subject.id, sealed=reply)
            kept = runs.keep_problems(tx, subject, problems)
            tx.run("quarantine_item", run=self.run_id, position=row["position"], agent=agent, problems=kept, reply=body)
            now_us = ledger.now_us()
            ledger.append(
                tx, runs.handoff_entry(self.run_id, tenant, subject.id, agent or "workflow", problems, now_us)
            )

        await self.kernel.store.write(work)
        if isinstance(error, HandoffRefused):
            self._count_refusal(error)

    def _count_refusal(self, error: HandoffRefused) -> None:
        """A few bad items are theirs alone; many are the agent's fault, and cost money until somebody looks."""
        pointer = error.problems[0].pointer if error.problems else ""
        if why := self._refusals.refused(error.agent, pointer):
            self._halt(
                Stop(
                    STOPPED,
                    f"handoffs: {why}. Look why: twolane quarantine list --run {self.run_id}; change the agent, then: "
                    f"twolane run resume {self.run_id} --quarantined",
                )
            )

    def _subject(self, row: Row) -> Any:  # Any: Subject; spelled out in the vault
        kept = self.kernel.store.one("subject", id=row["subject"])
        assert kept is not None
        return self.kernel.vault.subject(kept)

    def _halt(self, stop: Stop) -> None:
        """The first reason counts; nothing new begins."""
        if self._stop is None:
            self._stop = stop


def _first(error: BaseException) -> BaseException:
    """The first failure inside groups; a switch or a budget among them comes before the rest."""
    if not isinstance(error, BaseExceptionGroup):
        return error
    leaves = [_first(each) for each in error.exceptions]
    return next((leaf for leaf in leaves if isinstance(leaf, Killed | Refused)), leaves[0])


def _is_ours(error: BaseException) -> bool:
    """Whether this ends our own task; a workflow may also raise a CancelledError that nobody sent."""
    task = asyncio.current_task()
    return not isinstance(error, asyncio.CancelledError) or (task is not None and task.cancelling() > 0)


def _sentence(error: Exception) -> str:
    known = isinstance(error, Refused | DocumentRefused | OutOfTime | UpstreamError)
    text = str(error) if known else f"{type(error).__name__}: {error}"
    return text.encode("utf-8", "backslashreplace").decode()  # an exception's words may be anything


def queue_path(store: Path) -> Path:
    """Where the durable queue of a store lies."""
    return store.with_name(store.name + ".queue")
