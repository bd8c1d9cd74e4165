"""One round of ten no-op steps an item on one durable engine, in a process of its own: `python engines.py NAME ITEMS
CONCURRENCY`, one JSON object. `steps.py` starts it, with the interpreter that has the engine; nothing here is imported
by anything else, and only `twolane` needs this project."""

from __future__ import annotations

import asyncio
import importlib
import itertools
import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Any

STEPS = 10
OUTPUT = "x" * 185
"""With the JSON around it 200 bytes."""

Round = dict[str, Any]  # Any: JSON
Work = Callable[[int], Awaitable[None]]


class Clock:
    """Wall clock and processor time of this process and the children that have ended."""

    def __init__(self) -> None:
        self._began, self._cpu = time.perf_counter(), self._used()

    @staticmethod
    def _used() -> float:
        each = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return sum(usage.ru_utime + usage.ru_stime for usage in each)

    def read(self) -> Round:
        return {"seconds": time.perf_counter() - self._began, "cpu_s": self._used() - self._cpu}


async def _many(items: int, concurrency: int, work: Work) -> None:
    numbers = iter(range(items))

    async def one() -> None:
        for number in numbers:
            await work(number)

    await asyncio.gather(*(one() for _ in range(concurrency)))


# ── this project ──


class Stream:
    """An answer that is there at once, in these blocks."""

    headers: dict[str, str] = {}  # noqa: RUF012 - the port reads it only

    def __init__(self, *blocks: bytes) -> None:
        self._blocks = iter(blocks)

    def __aiter__(self) -> Stream:
        return self

    async def __anext__(self) -> bytes:
        for block in self._blocks:
            return block
        raise StopAsyncIteration

    def close(self) -> None:
        """Nothing is held."""


class Instant:
    """An upstream that answers at once, always the same: one block of three events, as a quick server sends a short
    answer."""

    ends_when_closed = True

    def __init__(self) -> None:
        from twolane.domain.records import Usage
        from twolane.models.sse import DONE, Chunks

        chunks, text = Chunks("instant"), json.dumps({"value": OUTPUT})
        words, end = chunks.chunk(text, role="assistant"), chunks.chunk(finish_reason="stop")
        self._block = words + end + chunks.usage(Usage(40, 60)) + DONE

    async def open(self, call: object) -> Stream:
        return Stream(self._block)

    async def aclose(self) -> None:
        """Nothing is held."""


def twolane(folder: Path, items: int, concurrency: int) -> Round:
    """Agents through the whole door: memo look-up, intent, hold on a budget, slot, stream, schema, sealing, record."""
    from pydantic import BaseModel

    from twolane import config
    from twolane.batch.item import Item
    from twolane.batch.workflow import Prompt, agent
    from twolane.cli import output
    from twolane.domain.document import Document
    from twolane.domain.records import Origin
    from twolane.kernel import Kernel, ledger

    class Reply(BaseModel):
        value: str

    @agent(returns=Reply, route="instant")
    def asks(number: int, step: int) -> Prompt:
        return Prompt(system="Answer.", user=f"Question {number}, part {step}", max_tokens=64)

    async def go() -> Round:
        section = {
            "kind": "rehearsal", "model": "instant", "price": {"input": "0.05", "output": "0.08"},
            "slots": {"online": 1, "batch": concurrency},
        }  # fmt: skip
        settings: Round = {"store": f"sqlite:{folder / 'steps.db'}", "upstream": {"instant": section}, "route": {}}
        settings["budget"] = {"run": {"money": "1000"}}
        kernel = await Kernel.open(config.Config.model_validate(settings), models={"instant": Instant()})
        origin = ("default", "bench", "r1")

        async def work(number: int) -> None:
            name = f"item {number}"
            subject = await kernel.store.write(lambda tx: kernel.subject(tx, "default", name))
            item = Item(kernel, Origin(*origin, name), subject, Document(name, "text"), options={})
            for step in range(STEPS):
                await item(asks, number, step)

        clock = Clock()
        await _many(items, concurrency, work)
        told = clock.read()
        verdict = ledger.verify(kernel.store)
        assert verdict.ok, verdict.problem
        assert verdict.entries == 2 * items * STEPS
        await kernel.aclose()
        return told | {"sync": "WAL, FULL", "version": metadata.version("twolane")}

    told: Round = getattr(output, "run_worker", asyncio.run)(go())  # an earlier commit may lack it
    return told


# ── others ──


def _dbos(folder: Path, *, is_full: bool) -> Any:  # Any: the engine's module
    import sqlalchemy as sa

    module: Any = importlib.import_module("dbos")
    engine = sa.create_engine(f"sqlite:///{folder / 'dbos.db'}", connect_args={"check_same_thread": False})

    @sa.event.listens_for(engine, "connect")
    def _connected(connection: Any, record: object) -> None:  # Any: the driver's own
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute(f"PRAGMA synchronous = {'FULL' if is_full else 'NORMAL'}")
        connection.execute("PRAGMA busy_timeout = 30000")

    module.DBOS(
        config={
            "name": "steps", "system_database_url": f"sqlite:///{folder / 'dbos.db'}", "system_database_engine": engine,
            "log_level": "ERROR",
        }
    )  # fmt: skip
    return module


def dbos(folder: Path, items: int, concurrency: int, *, is_full: bool = False) -> Round:
    """A workflow an item, a step of the engine each; plain functions in as many threads."""
    module = _dbos(folder, is_full=is_full)

    def output(number: int) -> str:
        return OUTPUT

    step = module.DBOS.step()(output)

    def steps(number: int) -> int:
        return sum(len(step(at)) for at in range(STEPS))

    job = module.DBOS.workflow()(steps)
    module.DBOS.launch()
    job(-1)  # what is made at the first call
    clock = Clock()
    with ThreadPoolExecutor(concurrency) as threads:
        list(threads.map(job, range(items)))
    told = clock.read()
    module.DBOS.destroy()
    return told | {"sync": f"WAL, {'FULL' if is_full else 'NORMAL'}", "version": metadata.version("dbos")}


def dbos_full(folder: Path, items: int, concurrency: int) -> Round:
    """The same with a sync at every commit, as this project's store has it."""
    return dbos(folder, items, concurrency, is_full=True)


def langgraph(folder: Path, items: int, concurrency: int) -> Round:
    """A graph of ten nodes, a thread of it an item, every super-step kept before the next begins."""
    from typing import TypedDict

    graph: Any = importlib.import_module("langgraph.graph")
    saver: Any = importlib.import_module("langgraph.checkpoint.sqlite.aio")

    class State(TypedDict):
        value: str

    async def node(state: State) -> State:
        return {"value": OUTPUT}

    async def go() -> Round:
        async with saver.AsyncSqliteSaver.from_conn_string(str(folder / "graph.db")) as kept:
            built = graph.StateGraph(State)
            names = [graph.START, *(f"s{at}" for at in range(STEPS))]
            for before, name in itertools.pairwise(names):
                built.add_node(name, node)
                built.add_edge(before, name)
            app = built.compile(checkpointer=kept)

            async def work(number: int) -> None:
                thread = {"configurable": {"thread_id": str(number)}}
                await app.ainvoke({"value": ""}, thread, durability="sync")

            await work(-1)
            clock = Clock()
            await _many(items, concurrency, work)
            told = clock.read()
            async with kept.conn.execute("PRAGMA synchronous") as cursor:
                mode = {1: "NORMAL", 2: "FULL"}[(await cursor.fetchone())[0]]
            async with kept.conn.execute("PRAGMA journal_mode") as cursor:
                journal = str((await cursor.fetchone())[0]).upper()
        version = f"{metadata.version('langgraph')}, saver {metadata.version('langgraph-checkpoint-sqlite')}"
        return told | {"sync": f"{journal}, {mode}", "version": version}

    return asyncio.run(go())


def prefect(folder: Path, items: int, concurrency: int) -> Round:
    """A flow an item, ten tasks with kept results, on the server that it starts by itself."""
    os.environ |= {
        "PREFECT_HOME": str(folder), "PREFECT_LOGGING_LEVEL": "ERROR", "PREFECT_RESULTS_PERSIST_BY_DEFAULT": "true",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false", "PREFECT_SERVER_LOGGING_LEVEL": "ERROR",
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "90",
    }  # fmt: skip
    module: Any = importlib.import_module("prefect")

    async def step(number: int) -> str:
        return OUTPUT

    async def job(number: int) -> int:
        return sum([len(await task(at)) for at in range(STEPS)])

    task, flow = module.task(step), module.flow(job)

    async def go() -> Round:
        await flow(-1)

        async def work(number: int) -> None:
            await flow(number)

        clock = Clock()
        await _many(items, concurrency, work)
        told = clock.read()
        return told | {"sync": "its own server on SQLite", "version": metadata.version("prefect")}

    return asyncio.run(go())


ENGINES: dict[str, Callable[[Path, int, int], Round]] = {
    "twolane": twolane,
    "dbos": dbos,
    "dbos, FULL": dbos_full,
    "langgraph": langgraph,
    "prefect": prefect,
}


def main(name: str, items: int, concurrency: int) -> None:
    """Run one round and print it."""
    with tempfile.TemporaryDirectory(prefix="steps-") as folder:
        told = ENGINES[name](Path(folder), items, concurrency)
        told |= {"steps": items * STEPS}
    print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
