"""A worker's own share of a run: items, each brought to its end here."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

from twolane.batch import reports
from twolane.batch import run as runs
from twolane.batch.deadline import within
from twolane.batch.item import Common, Item
from twolane.batch.reduce import first_of
from twolane.batch.room import Room
from twolane.batch.workflow import Workflow
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
    Runaway,
    StoreError,
    SwitchTripped,
    UpstreamError,
    UsageError,
)
from twolane.kernel import Kernel, ledger, rollups
from twolane.rules.guards import Verdict
from twolane.store import Row, Transaction
from twolane.store.vault import seal

log = logging.getLogger("twolane.batch")

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
    is_at_once: bool = False
    """What is under way is closed; else it comes to its own end: it is paid for."""


class Items:
    """The items of one run that are worked on in this process. `stop` is why nothing new begins; `on_stop` hears of it
    once."""

    def __init__(self, kernel: Kernel, flow: Workflow, run_id: str, on_stop: Callable[[Stop], None]) -> None:
        self._kernel, self._flow, self._run_id, self._on_stop = kernel, flow, run_id, on_stop
        self._common = Common(kernel, lambda: self.stop is not None or self.is_leaving)
        self.stop: Stop | None = None
        self.is_leaving = False
        """Nothing new begins here, but others may go on."""
        self.closed: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()
        """Once a stop wants all to end at once, what to raise in every workflow."""
        self.width = self._many()
        """Most items under way at once."""
        self.timeout_s = flow.timeout_s
        """Longest time of one item."""
        self._gate = asyncio.Semaphore(self.width)
        self._faults: set[object] = set()
        """Places in workflows' own code whose traceback was shown."""
        self._solo = asyncio.Lock()
        self._room = Room(kernel.config.work.memory_bytes())
        self.watch = kernel.guards.run(run_id, runs.find(kernel, run_id)["tenant"], self._paused)

    def halt(self, stop: Stop) -> None:
        """The first reason counts; nothing new begins."""
        if self.stop is None:
            self.stop = stop
            self._on_stop(stop)
            if stop.is_at_once:
                scope = f"run:{self._run_id}"
                self._kernel.guards.pause(scope, stop.reason)
                self.closed.set_result(Killed(scope, stop.reason))  # who waits outside a step as well

    async def aclose(self) -> None:
        """End what the items shared."""
        self._kernel.guards.forget(self._run_id)
        await self._common.aclose()

    async def work(self, positions: Sequence[int]) -> None:
        """Bring these items to their end, as many at once as the slots can use."""
        results = await asyncio.gather(*(self._one(position) for position in positions), return_exceptions=True)
        for error in results:
            if isinstance(error, StoreError):
                self.halt(Stop(STOPPED, f"store: {error}"))
            elif error is not None and not isinstance(error, asyncio.CancelledError):
                self.halt(Stop(FAILED, f"{type(error).__name__}: {error}"))

    async def work_alone(self, position: int) -> None:
        """One item with nothing beside it, which is noted before it begins: if this process dies now, it is known of
        what."""
        async with AsyncExitStack() as held:
            await held.enter_async_context(self._solo)
            for _ in range(self.width):
                await held.enter_async_context(self._gate)
            if not (self.stop or self.is_leaving):
                await self.set_trials(position, self.row(position)["trials"] + 1)
                await self._to_its_end(position)

    async def set_trials(self, position: int, trials: int) -> None:
        """How often an item was begun with nothing beside it, and no answer came."""
        run = self._run_id
        await self._kernel.store.write(lambda tx: tx.run("set_trials", run=run, position=position, trials=trials))

    def _many(self) -> int:
        """How many items are under way at once: enough for every batch slot there is."""
        slots = sum(section.slots.batch for section in self._kernel.config.upstream.values())
        return max(1, min(MAX_IN_FLIGHT, slots * IN_FLIGHT_PER_SLOT))

    async def _one(self, position: int) -> None:
        """One item to its end: done, quarantined, or left queued because the run stops."""
        async with self._gate:
            if not (self.stop or self.is_leaving):
                await self._to_its_end(position)

    async def _to_its_end(self, position: int) -> None:
        row, item = self.row(position), None
        self.watch.began(row["name"])
        try:
            async with self._room.held(self._stored(row)):
                if self.stop or self.is_leaving:  # while it waited
                    return
                item, result = self.flow_of(row)
                value = await within(self._flow.timeout_s, result, item, closed=self.closed)
                if not item.is_left:
                    await self._finish(row, value)
        except (asyncio.CancelledError, KeyboardInterrupt, SystemExit) as error:
            if is_ours(error):
                raise
            await self._quarantine(row, item, RuntimeError("the workflow cancelled itself"))
        except BaseException as error:  # noqa: BLE001 - also Killed, and groups of these from a workflow's own tasks
            if item is None or not item.is_left:
                await self._conclude(row, item, first_of(error))
        if item is not None:
            await item.come_to_rest()

    async def _conclude(self, row: Row, item: Item | None, error: BaseException) -> None:
        """What a failure means: this item's own fault goes to quarantine, anything else stops the run."""
        match error:
            case BudgetExceeded(scope=scope) if scope.startswith(("item:", "allowance:")):
                await self._quarantine(row, item, error)
            case BudgetExceeded():
                self.halt(Stop(STOPPED, f"budget: {error}"))
            case SwitchTripped() | Killed():
                self.halt(Stop(STOPPED, f"switch: {error}"))
            case UpstreamError(http_status=status) if status not in (400, 413, 422):
                self.halt(Stop(STOPPED, f"upstream: {error}"))
            case HandoffRefused() | DocumentRefused() | BadRequest() | UpstreamError() | Runaway():
                await self._quarantine(row, item, error)
            case LedgerBroken():
                self.halt(Stop(FAILED, f"ledger: {error}"))
            case StoreError():
                self.halt(Stop(STOPPED, f"store: {error}"))
            case Refused():
                self.halt(Stop(STOPPED, f"{error.code}: {error}"))
            case ConfigError() if not isinstance(error, UsageError):  # every item would meet it: no reply fits a schema
                self.halt(Stop(FAILED, f"workflow: {error}"))
            case Exception():  # the workflow's own code: its fault is this item's, the others go on
                log.warning("run %s: item %s: %s", self._run_id, row["name"], error, exc_info=self._fault(error))
                await self._quarantine(row, item, error)
            case _:
                raise error

    def _fault(self, error: Exception) -> Exception | None:
        """What is shown with its traceback: code's own fault, once for each place that it comes from."""
        trace = error.__traceback__
        while trace is not None and trace.tb_next is not None:
            trace = trace.tb_next
        place = None if trace is None else (trace.tb_frame.f_code, trace.tb_lineno)
        if isinstance(error, OutOfTime) or place in self._faults:
            return None
        self._faults.add(place)
        return error

    def row(self, position: int) -> Row:
        """An item as it is now."""
        return self._kernel.store.all("items", run=self._run_id, first=position, last=position)[0]

    def flow_of(self, row: Row, *, is_plan: bool = False) -> tuple[Item, Any]:  # Any: the flow's own awaitable
        """An item's `do`, and its workflow ready to be awaited. With `is_plan` nothing is called: see `NeedsCall`."""
        run = runs.find(self._kernel, self._run_id)
        return runs.open_item(self._kernel, self._flow, run, row, is_plan=is_plan, common=self._common)

    async def _finish(self, row: Row, value: Any) -> None:  # Any: the workflow's own model
        if not isinstance(value, self._flow.returns):
            raise TypeError(f"the workflow returned {type(value).__name__}, not {self._flow.returns.__name__}")
        subject = self._subject(row)
        # Before the item is done: a result that cannot be shown is this item's own fault.
        run = runs.find(self._kernel, self._run_id)
        files = reports.render_report(run, row, value)
        sealed = seal(subject, value.model_dump_json(by_alias=True, round_trip=True).encode())

        def work(tx: Transaction) -> bool:
            if not tx.one("is_queued", run=self._run_id, position=row["position"]):
                return False  # another process was as fast: its result stands
            body = tx.run("add_body", subject=subject.id, sealed=sealed)
            tx.run("finish_item", run=self._run_id, position=row["position"], output=body)
            _count(tx, run, ledger.now_us(), is_done=True)
            return True

        if not await self._kernel.store.write(work):
            self.watch.ended(row["name"])
            return
        try:
            await asyncio.to_thread(reports.write_report, files)
        except OSError as error:  # the disk's fault and not the item's, which is done: its report is made up for later
            raise StoreError(
                f"the report of {row['name']} cannot be written: {error}. Free the disk and resume"
            ) from None
        self.watch.ended(row["name"], is_done=True)

    async def _quarantine(self, row: Row, item: Item | None, error: Exception) -> None:
        agent = _agent_of(error)
        problems: Sequence[Problem] = (
            error.problems if isinstance(error, HandoffRefused) else [Problem("", _sentence(error))]
        )
        subject = self._subject(row)
        refused = item.refused_replies.get(agent) if item else None
        reply = None if refused is None else seal(subject, refused.encode())
        run = runs.find(self._kernel, self._run_id)

        def work(tx: Transaction) -> None:
            body = None if reply is None else tx.run("add_body", subject=subject.id, sealed=reply)
            kept = runs.keep_problems(tx, subject, problems)
            place = {"run": self._run_id, "position": row["position"]}
            if tx.run("quarantine_item", **place, agent=agent, problems=kept, reply=body, kind=_kind(error)):
                _count(tx, run, ledger.now_us(), is_done=False)
            now_us = ledger.now_us()
            entry = runs.handoff_entry(run["id"], run["tenant"], subject.id, agent or "workflow", problems, now_us)
            ledger.append(tx, entry)

        await self._kernel.store.write(work)
        first = problems[0].pointer if problems else ""
        self.watch.ended(row["name"], refused=(agent, first) if isinstance(error, HandoffRefused | Runaway) else None)

    def _paused(self, verdict: Verdict) -> None:
        """A guard found that the run leads nowhere: it costs money until somebody looks. A few bad items are theirs
        alone; many refused handoffs are the agent's fault, and what is under way may still come to its end."""
        run = self._run_id
        if verdict.guard == "schema-failures":
            todo = f"Look why: twolane quarantine list --run {run}; change the agent, then: twolane run resume {run}"
            self.halt(Stop(STOPPED, f"handoffs: {verdict.why}. {todo} --quarantined"))
        else:
            reason = f"guard: {verdict.guard}: {verdict.why}. Look why, then: twolane run resume {run}"
            self.halt(Stop(STOPPED, reason, is_at_once=True))

    def _stored(self, row: Row) -> int:
        """Bytes of an item's input."""
        size = self._kernel.store.one("size_of_body", id=row["source"])
        return 0 if size is None else int(size["bytes"])

    def _subject(self, row: Row) -> Any:  # Any: Subject; spelled out in the vault
        kept = self._kernel.store.one("subject", id=row["subject"])
        assert kept is not None
        return self._kernel.vault.subject(kept)

    async def blame(self, position: int, problem: str) -> None:
        """Quarantine an item for what no exception could say."""
        await self._quarantine(self.row(position), None, RuntimeError(problem))


def _count(tx: Transaction, run: Row, now_us: int, *, is_done: bool) -> None:
    rollups.count_item(tx, run["id"], tenant=run["tenant"], workflow=run["workflow"], at_us=now_us, is_done=is_done)


def is_ours(error: BaseException) -> bool:
    """Whether this ends our own task; a workflow may also raise a CancelledError that nobody sent."""
    task = asyncio.current_task()
    return not isinstance(error, asyncio.CancelledError) or (task is not None and task.cancelling() > 0)


def _agent_of(error: Exception) -> str:
    """Whose answer or allowance it was; "" where it was no agent's alone."""
    match error:
        case HandoffRefused() | Runaway():
            return error.agent
        case BudgetExceeded(scope=scope) if scope.startswith("allowance:"):
            return scope.removeprefix("allowance:").rpartition("/")[2]
    return ""


def _kind(error: Exception) -> str:
    """What sends an item to quarantine, for whoever releases all of one kind."""
    match error:
        case HandoffRefused():
            return "handoff"
        case DocumentRefused():
            return "document"
        case BudgetExceeded():
            return "budget"
        case UpstreamError():
            return "upstream"
        case OutOfTime():
            return "time"
        case Runaway():
            return "guard"
        case Refused():
            return "request"
    return "workflow"


def _sentence(error: Exception) -> str:
    known = isinstance(error, Refused | DocumentRefused | OutOfTime | Runaway | UpstreamError)
    text = str(error) if known else f"{type(error).__name__}: {error}"
    return text.encode("utf-8", "backslashreplace").decode()  # an exception's words may be anything
