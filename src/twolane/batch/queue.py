"""The durable queue of a run's chunks, and the only file that knows DBOS.

A chunk is a stretch of a run's items, and a DBOS workflow without steps: DBOS remembers *that* it waits, runs, is done,
failed or was cancelled; the memos remember what was paid for, so a chunk that runs twice pays once. One `Queue` serves
one run in one process (DBOS is one per process) and leaves other runs in the file alone. Before an update of dbos read
the comments here: they name traps of 3.4.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import json
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

import dbos._dbos as engine_module
import sqlalchemy as sa
from dbos import DBOS, DBOSClient, EnqueueOptions, Serializer, WorkflowStatus
from dbos._error import DBOSException, DBOSWorkflowIDInUseError
from dbos._serialization import DefaultSerializer
from dbos._utils import GlobalParams

from twolane.errors import StoreError

log = logging.getLogger("twolane.batch")
R = TypeVar("R")

APPLICATION, BODY = "twolane", "twolane.chunk"
VERSION = "chunks-2"  # Written into every row; a worker claims rows of its version only. Changes with `Chunk`'s shape.
SCHEMA = "twolane_queue"  # Of DBOS's tables on PostgreSQL; a file has none.
POLL_S = 0.1  # How often an idle queue looks for work.
STOP_S = 5.0  # How long a cancelled `work` may clean up before it is left behind.
UNFINISHED, FAILED = ["ENQUEUED", "PENDING", "DELAYED"], ["ERROR", "MAX_RECOVERY_ATTEMPTS_EXCEEDED"]


@dataclass(frozen=True, slots=True)
class Chunk:
    """Items `first` to `last`, both included, by position in the run's order of items. `attempt` counts up.

    `deaths` of its workers came in a row without a newer answer than the ledger's entry `seen`.
    """

    run: str
    attempt: int
    first: int
    last: int
    deaths: int = 0
    seen: int = -1

    @property
    def id(self) -> str:
        """The workflow id: to enqueue the same stretch of an attempt twice is to enqueue once."""
        id = f"{self.run}:{self.attempt}:{self.first}-{self.last}"
        return f"{id}:{self.deaths}.{self.seen}" if self.deaths else id


@dataclass(frozen=True, slots=True)
class FailedChunk:
    """A chunk whose `work` raised, or whose row could not be read (then `chunk` is None)."""

    id: str
    chunk: Chunk | None
    error: str


Work = Callable[[Chunk], Awaitable[str]]
"""Does one chunk, returns a short word on how it went. Must be safe to run again. An exception fails the chunk."""


class _ChunkError(Exception):
    """Why a chunk failed, as the text that is stored."""


class _Json(Serializer):
    """Rows hold JSON and nothing else; an exception is stored as its text."""

    def name(self) -> str:
        return "twolane_json"

    def serialize(self, data: object) -> str:
        if isinstance(data, BaseException):
            data = {"error": str(data) if isinstance(data, _ChunkError) else f"{type(data).__name__}: {data}"}
        return json.dumps(data, ensure_ascii=False, separators=(",", ":"))

    def deserialize(self, serialized_data: str) -> object:
        value = json.loads(serialized_data)
        return _ChunkError(value["error"]) if isinstance(value, dict) and value.keys() == {"error"} else value


class Queue:
    """The chunks of one run: put in, worked on here, taken over from the dead, cancelled. Made by `Queue.open`.

    `work` runs as a task of the event loop that called `open`, in the context `open` was called in. Every method raises
    `StoreError` when the file cannot be read or written.
    """

    def __init__(self, where: Path | str, run: str, executor_id: str, work: Work) -> None:
        if not run or ":" in run:
            raise ValueError(f"run {run!r}: a run's name is not empty and has no colon")
        self._run, self._executor_id, self._work = run, executor_id, work
        self._name = f"run.{run}"
        self._loop, self._context = asyncio.get_running_loop(), contextvars.copy_context()
        self._tasks: set[asyncio.Task[Any] | None] = set()  # Any, None: as asyncio.current_task() has it
        # Halted, or leaving: a claimed chunk leaves at once, its row stays as it is.
        self._is_halted = self._is_leaving = self._is_closed = False
        self._engine = _engine(where)
        # The client asks and writes, without the singleton; DBOS itself only executes.
        self._client = DBOSClient(
            system_database_engine=self._engine, serializer=_Json(), application_name=APPLICATION, lazy=True,
            dbos_system_schema=SCHEMA, retry_connection_errors=False,  # else a thread waits for ever
        )  # fmt: skip

    @classmethod
    async def open(cls, where: Path | str, run: str, *, executor_id: str, work: Work, concurrency: int = 4) -> Self:
        """A queue that works on the chunks of `run` from now on, `concurrency` of them at a time. It lies in a file of
        its own, or in a schema of its own in the database of a `postgresql://` address.

        `executor_id` names this start of this process and is never used again: `take_over` tells the dead by it.
        `StoreError` also if DBOS is in use in this process already, or `executor_id` was used before.
        """
        # Constructing DBOS again would quietly hand out the first one, with its database and its work.
        if engine_module._dbos_global_instance is not None:
            raise StoreError("this process has an open queue, or uses DBOS itself: close that one first")
        self = cls(where, run, executor_id, work)
        await self._ask(lambda: self._launch(concurrency))
        return self

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def enqueue(self, chunks: Sequence[Chunk], *, priority: int = 0) -> int:
        """Add chunks; how many were new. One whose id was ever enqueued is left as it is, however it ended.

        Priority 0 goes first, then 1 and so on. Up to 500 chunks are one transaction. Lifts an earlier `cancel`.
        """
        if strangers := [chunk.id for chunk in chunks if chunk.run != self._run]:
            raise ValueError(f"chunk {strangers[0]} does not belong to run {self._run}")
        self._is_halted = self._is_closed
        return await self._ask(lambda: self._insert(chunks, priority))

    async def drain(
        self, *, beside: Callable[[], Awaitable[bool]] | None = None, stall_s: float = 30.0
    ) -> list[FailedChunk]:
        """Wait until no chunk of this run waits or runs, here or elsewhere; the failed ones of the newest attempt.

        `beside` is awaited between two looks; it says whether to go on waiting. A chunk that belongs to a dead process
        is waited for until somebody calls `take_over`. `StoreError` also if chunks are there for this process, and for
        `stall_s` seconds it started none.
        """
        seen: list[WorkflowStatus] = []
        since = time.monotonic()
        while rows := await self._ask(lambda: self._rows(UNFINISHED, limit=100)):
            ours = [row.workflow_id for row in rows if row.status != "PENDING" or row.executor_id == self._executor_id]
            if self._tasks or not ours or [vars(row) for row in rows] != [vars(row) for row in seen]:
                seen, since = rows, time.monotonic()
            elif time.monotonic() - since > stall_s:
                raise StoreError(
                    f"run {self._run}: {len(ours)} chunks wait ({ours[0]} first) and none was started for "
                    f"{stall_s:.1f} s. What the engine says is in the log of {log.name}"
                )
            if beside is not None and not await beside():
                break
            await asyncio.sleep(POLL_S)
        return await self._ask(self._failed)

    async def take_over(
        self,
        is_alive: Callable[[str], bool],
        again: Callable[[Chunk], Awaitable[Sequence[Chunk]]],
        *,
        bury: Callable[[str], Awaitable[None]],
    ) -> int:
        """Replace the chunks whose executor is dead, and is buried first, by what `again` says of each; how many there
        were.

        Call it from one place at a time, and not beside `cancel`. A chunk that is cancelled when we die before its
        successors are queued is missing from the queue: whoever drains it finds items left, and queues them anew. A
        process wrongly taken for dead goes on with its chunk, but its outcome is refused.
        """
        pending = await self._ask(lambda: self._rows(["PENDING"]))
        executors = {row.executor_id or "" for row in pending} - {self._executor_id}
        dead = {name for name in executors if not is_alive(name)}
        lost = [row.workflow_id for row in pending if row.executor_id in dead]
        if lost:
            for name in dead:
                await bury(name)
            rows = await self._ask(lambda: self._client.list_workflows(workflow_ids=lost))
            successors = [await again(Chunk(**row.input["args"][0])) for row in rows if isinstance(row.input, dict)]
            await self._ask(lambda: self._client.cancel_workflows(lost))
            await self._ask(lambda: self._insert([chunk for each in successors for chunk in each], 0))
        return len(lost)

    async def clear(self) -> None:
        """Cancel the chunks that only wait. Those that are worked on, here or elsewhere, go on."""
        waiting = [row.workflow_id for row in await self._ask(lambda: self._rows(["ENQUEUED", "DELAYED"]))]
        if waiting:
            await self._ask(lambda: self._client.cancel_workflows(waiting))

    def leave(self) -> None:
        """Take no further chunk. Those in flight here come to their end, as `work` sees fit (see `left`); one that
        raises `CancelledError` is given back by `close`."""
        self._is_leaving = True

    async def left(self) -> None:
        """After `leave`: nothing is in flight here any more."""
        await asyncio.to_thread(_stop_claims)
        while tasks := [task for task in self._tasks if task is not None]:
            await asyncio.wait(tasks)

    async def cancel(self) -> None:
        """Cancel every chunk of this run, first its row and then its task; returns when the tasks here have ended.

        Chunks another process is at are marked too, but it is for the run's switch to stop them there.
        """
        self._is_halted = True
        try:
            ids = [row.workflow_id for row in await self._ask(lambda: self._rows(UNFINISHED))]
            await self._ask(lambda: self._client.cancel_workflows(ids))
        finally:
            await self._stop_tasks()

    async def close(self) -> None:
        """Stop working, give the chunks in flight back to the queue, end the engine. May be called twice."""
        if self._is_closed:
            return
        self._is_closed = self._is_halted = True
        try:
            await asyncio.to_thread(_stop_claims)
            await self._stop_tasks()
            await asyncio.to_thread(DBOS.destroy, destroy_registry=True)
            if not self._tasks:  # else somebody would begin beside us what we have not left yet
                await self._ask(lambda: self._requeue(lambda row: row.executor_id == self._executor_id))
        finally:
            self._client.destroy()
            self._engine.dispose()

    # On our loop.

    async def _ask(self, question: Callable[[], R]) -> R:
        try:
            return await asyncio.to_thread(question)
        except (sa.exc.SQLAlchemyError, DBOSException) as error:
            raise StoreError(f"run {self._run}: its queue in {self._engine.url.database}: {error}") from error

    async def _perform(self, chunk: Chunk) -> str:
        if self._is_ending():
            raise asyncio.CancelledError
        task = asyncio.current_task()
        self._tasks.add(task)
        try:
            return await self._work(chunk)
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt | SystemExit) or self._is_ending():
                raise
            # Killed and CancelledError too: a row that gets no outcome is one that `drain` waits for.
            raise _ChunkError(f"{type(error).__name__}: {error}") from error
        finally:
            self._tasks.discard(task)

    def _is_ending(self) -> bool:
        return self._is_halted or self._is_leaving

    async def _stop_tasks(self) -> None:
        tasks = [task for task in self._tasks if task is not None and task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        if tasks and (late := (await asyncio.wait(tasks, timeout=STOP_S))[1]):
            log.warning("run %s: %d chunks did not stop within %.0f s of their cancel", self._run, len(late), STOP_S)

    # In threads.

    def _launch(self, concurrency: int) -> None:
        _tame()
        try:
            self._engine.connect().close()  # before the migration, so that the file is WAL from its first page
            DBOS.migrate(self._engine.url.render_as_string(hide_password=False), schema=SCHEMA)
            if self._client.list_workflows(executor_id=self._executor_id, status="PENDING", limit=1):
                raise StoreError(f"executor id {self._executor_id} has unfinished chunks: every start needs a new one")
            # Before the launch: afterwards DBOS looks for new queues once a second only.
            self._client.register_queue(self._name, worker_concurrency=concurrency, polling_interval_sec=POLL_S)
            DBOS(config={
                "name": APPLICATION, "application_version": VERSION, "executor_id": self._executor_id,
                "system_database_engine": self._engine, "serializer": _Json(), "run_migrations": False,
                "dbos_system_schema": SCHEMA,
                "enable_otlp": False, "log_level": "WARNING",
                "notification_listener_polling_interval_sec": POLL_S,  # unused, but `destroy` waits for it
            })  # fmt: skip
            DBOS.workflow(name=BODY, max_recovery_attempts=None)(self._body())
            DBOS.listen_queues([self._name])
            DBOS.launch()  # From this thread: launched on our loop, DBOS would put its executor into it.
        except BaseException:
            DBOS.destroy(destroy_registry=True)
            self._engine.dispose()
            raise

    def _body(self) -> Callable[[dict[str, Any]], Awaitable[str]]:  # Any: JSON, checked by Chunk(**)
        """The one workflow: on the engine's loop, a bridge to ours. A cancel crosses it in both directions.

        Async on purpose: a plain function whose chunk was taken over would park a thread that keeps the process alive.
        """

        async def chunk_body(payload: dict[str, Any]) -> str:
            chunk = Chunk(**payload)
            if chunk.run != self._run:
                raise _ChunkError(f"chunk {chunk.id} does not belong to run {self._run}")
            doing = self._perform(chunk)
            try:  # In the caller's context: this one is inside a DBOS workflow.
                future = self._context.copy().run(asyncio.run_coroutine_threadsafe, doing, self._loop)
            except RuntimeError as error:  # Our loop is closed.
                doing.close()
                raise asyncio.CancelledError from error
            try:
                return await asyncio.wrap_future(future)
            except BaseException as error:
                if isinstance(error, _ChunkError):
                    raise
                raise asyncio.CancelledError from error  # No outcome is written, the row stays as it is.

        return chunk_body

    def _insert(self, chunks: Sequence[Chunk], priority: int) -> int:
        added = 0
        options = EnqueueOptions(
            workflow_name=BODY, queue_name=self._name, app_version=VERSION, workflow_id_reuse_policy="reject"
        )
        if priority:  # 0 is the default and may not be said
            options["priority"] = priority
        for at in range(0, len(chunks), 500):  # about 0.1 s of the file's write lock at a time
            with self._engine.begin() as connection:
                for chunk in chunks[at : at + 500]:
                    options["workflow_id"] = chunk.id
                    with contextlib.suppress(DBOSWorkflowIDInUseError):
                        self._client.enqueue_in_transaction(connection, options, asdict(chunk))
                        added += 1
        return added

    def _rows(self, status: list[str], *, limit: int | None = None) -> list[WorkflowStatus]:
        # By queue: a row that has not ended is always in one, a cancelled one never is.
        return self._client.list_workflows(
            queue_name=self._name, status=status, limit=limit, load_input=False, load_output=False
        )

    def _requeue(self, is_lost: Callable[[WorkflowStatus], bool]) -> int:
        ids = [row.workflow_id for row in self._rows(["PENDING"]) if is_lost(row)]
        self._client.resume_workflows(ids, queue_name=self._name)  # unnamed it is DBOS's own, without limit or run
        return len(ids)

    def _failed(self) -> list[FailedChunk]:
        newest = self._client.list_workflows(workflow_id_prefix=f"{self._run}:", sort_desc=True, limit=1)
        attempt = newest[0].workflow_id.split(":")[1] if newest else "none"
        rows = self._client.list_workflows(workflow_id_prefix=f"{self._run}:{attempt}:", status=FAILED)
        return [_failed_chunk(row) for row in rows]


def _failed_chunk(row: WorkflowStatus) -> FailedChunk:
    # What could not be read, as in a refused row, DBOS hands out as the stored text.
    chunk = Chunk(**row.input["args"][0]) if isinstance(row.input, dict) else None
    return FailedChunk(row.workflow_id, chunk, str(row.error))


def _tame() -> None:
    """Make DBOS quiet, deaf to the environment, and unable to unpickle; for good in this process."""
    engine_log = logging.getLogger("dbos")
    engine_log.handlers[:] = [logging.NullHandler()]  # with none, DBOS adds one that prints
    engine_log.parent, engine_log.propagate = log, True
    GlobalParams.dbos_cloud = False  # else DBOS__CLOUD in the environment brings Conductor and OTLP
    # A row says itself how it is to be read, whatever our serializer is: whoever writes the file could run code here.
    # Writing goes on, as JSON: a refused row must be able to get its ERROR, or it stays PENDING for ever.
    DefaultSerializer.deserialize = _refuse_pickle  # type: ignore[method-assign, assignment]  # the point of it
    DefaultSerializer.serialize = _Json.serialize  # type: ignore[method-assign, assignment]


def _refuse_pickle(_: object, serialized_data: str) -> object:
    raise _ChunkError("the row is marked as pickle, which is never read: twolane did not write it")


def _engine(where: Path | str) -> sa.Engine:
    if isinstance(where, str):  # an address may hold options of libpq's that SQLAlchemy passes on as they are
        engine = sa.create_engine(sa.make_url(where).set(drivername="postgresql+psycopg"), pool_pre_ping=True)
        sa.event.listen(engine, "connect", _let_go_when_frozen)
        return engine
    engine = sa.create_engine(sa.URL.create("sqlite", database=str(where)))
    sa.event.listen(engine, "connect", _set_pragmas)
    return engine


def _set_pragmas(connection: Any, _: object) -> None:  # Any: the driver's connection is not typed
    """What DBOS sets on an engine of its own and not on one handed in; and WAL, which makes it 5 to 8 times faster."""
    connection.isolation_level = "IMMEDIATE"
    for pragma in ("busy_timeout = 30000", "foreign_keys = ON", "journal_mode = WAL", "synchronous = NORMAL"):
        connection.execute(f"PRAGMA {pragma}")  # NORMAL: what was paid for is in the store, not in this file


def _let_go_when_frozen(connection: Any, _: object) -> None:  # Any: see above
    """A process that was frozen in mid-transaction does not lock its rows for whoever takes its chunks over."""
    from twolane.store.postgres import FROZEN_S

    connection.execute(f"SET idle_in_transaction_session_timeout = {FROZEN_S * 1000}")
    connection.commit()


def _stop_claims() -> None:
    """End the threads that claim chunks, before the engine's loop: a claim on a stopped loop hangs for ever."""
    instance = engine_module._dbos_global_instance
    for event in instance.background_thread_stop_events if instance is not None else ():
        event.set()
    for thread in threading.enumerate():
        if thread.name.startswith("queue-worker-") and thread.is_alive():  # one that only starts now ends by itself
            thread.join(STOP_S)
