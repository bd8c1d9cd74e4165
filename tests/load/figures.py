"""The figures of docs/benchmarks.md, each by one command: `python tests/load/figures.py NAME`, one JSON object each.

install            distributions and megabytes of the core requirements, as installed beside this interpreter
help               `twolane --help`: milliseconds, and whether it loads anything heavy
contracts PATH     the contract audit over PATH, offline: contracts a second, peak memory, and what the ledger says
steps              durable steps a second and processor time a step, through the whole door on SQLite with full sync
lanes              time to first token online, idle and while a batch backlog fills the same upstream's batch slots
serve              resident memory of the gateway, idle and after requests
money [CALLS] [ADDRESS]   what a budget of $1 lets through where others overspend; the ledger beside the upstream's bill
reserve            microseconds to hold a call on three budgets in memory, and what holding and settling cost a call
telemetry          microseconds that monitoring adds to an attempt, with and without tracing, and what a scrape takes
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
HEAVY = ("dbos", "numpy", "sqlalchemy", "psycopg", "aiohttp", "sqlite3", "pydantic", "rich")

Figures = dict[str, Any]  # Any: JSON


def install() -> Figures:
    """What the core requirements weigh in this environment, byte code not counted."""
    pinned = re.findall(r"^([A-Za-z0-9_.-]+)==", (ROOT / "requirements" / "core.txt").read_text(), re.MULTILINE)
    size, count = 0, 0
    for name in pinned:
        try:
            files = metadata.distribution(name).files or []
        except metadata.PackageNotFoundError:
            continue  # pinned for another platform
        count += 1
        size += sum(
            Path(str(f.locate())).stat().st_size for f in files if Path(str(f.locate())).exists() and f.suffix != ".pyc"
        )
    return {"distributions": count, "megabytes": round(size / 1e6, 1)}


def help_() -> Figures:
    """The median of nine runs, against a bare interpreter's."""
    bare = _median_ms([sys.executable, "-c", "pass"])
    shown = _median_ms([sys.executable, "-m", "twolane", "--help"])
    code = "import sys\ntry:\n    from twolane.cli import main; main(['--help'])\nexcept SystemExit:\n    pass\n"
    code += f"print([n for n in {HEAVY!r} if n in sys.modules], file=sys.stderr)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stderr.strip()
    return {"milliseconds": shown, "bare_interpreter_milliseconds": bare, "heavy_modules_loaded": loaded}


def contracts(path: str) -> Figures:
    """One run over `path` in a fresh store, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-m", "twolane", "run", "start", "contract-audit", path, "--wait", "--json"],
            cwd=folder, env=_environment(), stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        peak = 0.0
        while process.poll() is None:
            peak = max(peak, _peak(process.pid))
            time.sleep(0.02)
        output, _ = process.communicate()
        seconds = time.perf_counter() - began
        summary = json.loads(output)
        verdict = _json(folder, "audit", "verify")
        again = _json(folder, "run", "start", "contract-audit", path, "--wait")
    return {
        "contracts": summary["items"]["total"],
        "done": summary["items"]["done"],
        "quarantined": summary["items"]["quarantined"],
        "calls": summary["calls"],
        "seconds_at_work": summary["seconds"],
        "seconds_with_start": round(seconds, 2),
        "contracts_per_second": round(summary["items"]["total"] / summary["seconds"], 1),
        "peak_megabytes": round(peak),
        "ledger_ok": verdict["ok"],
        "entries": verdict["entries"],
        "calls_of_a_second_run": again["calls"],
    }


def steps(count: int | str = 20_000, concurrency: int | str = 64, store: str = "") -> Figures:
    """Agent steps of an instant scripted upstream: reserve with intent, slot, stream, judge, settle, record, memo.
    `store` is the address of another store than a new file, such as that of an empty PostgreSQL database."""
    from pydantic import BaseModel

    from twolane import config
    from twolane.batch.item import Item
    from twolane.batch.workflow import Prompt, agent
    from twolane.domain.document import Document
    from twolane.domain.records import Origin
    from twolane.kernel import Kernel, ledger
    from twolane.models.rehearsal import Rehearsal

    count, concurrency = int(count), int(concurrency)

    class Answer(BaseModel):
        value: str

    @agent(returns=Answer, route="instant")
    def asks(number: int) -> Prompt:
        return Prompt(system="Answer.", user=f"Question {number}", max_tokens=64)

    async def go(folder: Path) -> Figures:
        loaded = config.Config.model_validate(
            {
                "store": store or f"sqlite:{folder / 'steps.db'}",
                "keys": {"folder": str(folder / "keys")},
                "upstream": {
                    "instant": {
                        "kind": "rehearsal",
                        "model": "instant",
                        "price": {"input": "0.05", "output": "0.08"},
                        "slots": {"online": 1, "batch": concurrency},
                    }
                },
                "route": {},
                "budget": {"run": {"money": "1000"}},
            }
        )
        model = Rehearsal("instant", reply='{"value": "the answer to what was asked, in some two hundred bytes"}')
        kernel = await Kernel.open(loaded, models={"instant": model})
        subject = await kernel.store.write(lambda tx: kernel.subject(tx, "default", "one"))
        item = Item(kernel, Origin("default", "bench", "r1", "one"), subject, Document("one", "text"), options={})
        numbers = iter(range(count))

        async def work() -> None:
            for number in numbers:
                await item(asks, number)

        cpu, began = time.process_time(), time.perf_counter()
        await asyncio.gather(*(work() for _ in range(concurrency)))
        seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
        verdict = ledger.verify(kernel.store)
        await kernel.aclose()
        size = sum(path.stat().st_size for path in folder.glob("steps.db*") if path.is_file())
        return {
            "steps": count,
            "concurrency": concurrency,
            "steps_per_second": round(count / seconds),
            "cpu_ms_per_step": round(cpu / count * 1000, 3),
            "bytes_per_step": round(size / count),
            "ledger_ok": verdict.ok,
            "entries": verdict.entries,
        }

    with tempfile.TemporaryDirectory() as folder:
        return asyncio.run(go(Path(folder)))


def lanes(asks: int = 400, slots: int = 8) -> Figures:
    """A scripted upstream (50 ms to the first token, 8 slots a lane); 8 people online, first alone, then beside a batch
    backlog that never ends. Both lanes in one process: its processor time is shared, its slots are not."""
    from twolane import config
    from twolane.domain.records import Lane, Message, ModelCall, Origin
    from twolane.kernel import Kernel, Request
    from twolane.models.rehearsal import Rehearsal

    async def go(folder: Path) -> Figures:
        both = {"online": slots, "batch": slots}
        upstream = {"kind": "rehearsal", "model": "m", "price": {"input": "0.05", "output": "0.08"}, "slots": both}
        loaded = config.Config.model_validate(
            {"store": f"sqlite:{folder / 'lanes.db'}", "upstream": {"m": upstream}, "route": {}}
        )
        model = Rehearsal(
            "m", first_token_ms=50, token_ms=5, reply="twelve words and no more are in this short reply, or so"
        )
        kernel = await Kernel.open(loaded, models={"m": model})
        call = ModelCall((Message("user", "a question"),), "m", 64)

        async def one(lane: Lane) -> float:
            origin = Origin("default", run="r1" if lane is Lane.BATCH else "")
            request = Request(origin, lane, kernel.route("m", origin, lane=lane), call)
            began = time.perf_counter()
            async with kernel.door.step(request) as answer:
                first = time.perf_counter() - began
                await answer.whole()
            return first

        async def online() -> list[float]:
            counter, times = iter(range(asks)), []

            async def person() -> None:
                times.extend([await one(Lane.ONLINE) for _ in counter])

            await asyncio.gather(*(person() for _ in range(slots)))
            return times

        async def batch(done: asyncio.Event) -> None:
            while not done.is_set():
                await one(Lane.BATCH)

        idle = await online()
        done, busy = asyncio.Event(), kernel.lanes.slots("m", Lane.BATCH)
        backlog = [asyncio.create_task(batch(done)) for _ in range(slots * 8)]
        await asyncio.sleep(0.5)
        samples = []

        async def watch() -> None:
            while True:
                samples.append(busy.busy)
                await asyncio.sleep(0.005)

        watcher = asyncio.create_task(watch())
        loaded_times = await online()
        done.set()
        watcher.cancel()
        await asyncio.gather(*backlog, watcher, return_exceptions=True)
        await kernel.aclose()
        return {
            "slots": both,
            "asks": asks,
            "ttft_ms_idle": _quantiles_ms(idle),
            "ttft_ms_beside_batch": _quantiles_ms(loaded_times),
            "batch_slots_busy": round(statistics.mean(samples) / slots, 3),
        }

    with tempfile.TemporaryDirectory() as folder:
        return asyncio.run(go(Path(folder)))


def reserve(calls: int = 20_000, in_flight: int = 50) -> Figures:
    """Holds of online calls on a chain of three budgets (two of money, one of both), `in_flight` at a time, taken from
    leased blocks; a chat of four messages. The time until a call is held; and, with the writer's share, the processor
    time that holding and settling add to a call's record: the same records without any budget are taken off."""
    from twolane import config
    from twolane.domain.records import Message, ModelCall, Origin
    from twolane.kernel import Kernel, ledger
    from twolane.kernel.treasury import Durably, count, drift
    from twolane.rules.budgets import Amount
    from twolane.store import Transaction

    question = Message("user", "How long may a supplier take to answer a written notice of delay?")
    call = ModelCall((question,) * 4, "m", 256)
    scopes = Origin("default", key="k").scopes()

    async def go(folder: Path, budgets: tuple[str, ...]) -> Figures:
        upstream = {"kind": "rehearsal", "model": "m", "price": {"input": "0.05", "output": "0.08"}}
        loaded = config.Config.model_validate(
            {"store": f"sqlite:{folder / 'reserve.db'}", "upstream": {"m": upstream}, "route": {}}
        )
        kernel = await Kernel.open(loaded)
        treasury, price, times, waits = kernel.treasury, kernel.upstreams["m"].price, [], []
        for scope in budgets:
            tokens = 10**10 if scope.startswith("key") else None
            await treasury.set_budget(scope, period="month", pico=10**17, tokens=tokens, actor="figures")
        fields: dict[str, object] = {"v": 1, "kind": "step", "op": "chat", "tenant": "default", "api_key": "k"}
        fields |= {"lane": "online", "status": "ok", "upstream": "m", "model": "m", "cost_pico": 4_600_000}
        fields |= {"input_tokens": 60, "output_tokens": 20}

        async def one(number: int) -> None:
            step = f"{number:024x}"
            began = time.perf_counter()
            if isinstance(treasury.try_reserve(step, scopes, call, price), Durably):
                await treasury.reserve(step, scopes, call, price, may_shrink=False, entry=fields, intent=None)
                waits.append(time.perf_counter() - began)
            else:
                times.append(time.perf_counter() - began)
            await asyncio.sleep(0)
            end = treasury.ending(step, scopes, Amount(4_600_000, 80, 1))

            def work(tx: Transaction) -> None:
                leaf = {**fields, "step": step, "at_us": ledger.now_us()}
                end(tx)
                ledger.append(tx, leaf)
                count(tx, leaf, pico=4_600_000)

            await kernel.store.write(work)

        async def person(numbers: Iterator[int]) -> None:
            for number in numbers:
                await one(number)

        cpu, numbers = time.process_time(), iter(range(calls))
        await asyncio.gather(*(person(numbers) for _ in range(in_flight)))
        cpu = time.process_time() - cpu
        wrong = drift(kernel.store)
        await kernel.aclose()
        ordered = sorted(times)
        return {
            "in_memory_us": {
                "p50": round(ordered[len(ordered) // 2] * 1e6, 1),
                "p99": round(ordered[int(len(ordered) * 0.99)] * 1e6, 1),
            },
            "in_the_store": len(waits),
            "in_the_store_ms_p50": round(statistics.median(waits) * 1000, 1) if waits else None,
            "cpu_us_a_call": round(cpu / calls * 1e6, 1),
            "drift": wrong,
        }

    with tempfile.TemporaryDirectory() as held, tempfile.TemporaryDirectory() as free:
        with_budgets = asyncio.run(go(Path(held), ("all", "tenant:default", "key:default/k")))
        without = asyncio.run(go(Path(free), ()))
    added = with_budgets["cpu_us_a_call"] - without["cpu_us_a_call"]
    return {"calls": calls, "in_flight": in_flight, **with_budgets, "cpu_us_a_call_added": round(added, 1)}


def telemetry(tenants: int = 1_000, days: int = 60) -> Figures:
    """What counting and a span add to an attempt; and a scrape of a store with so many days of so many tenants, the
    first one after a start, which adds up all days, and the median of nine later ones."""
    from timeit import repeat

    from opentelemetry.metrics import NoOpMeterProvider
    from opentelemetry.sdk.trace import TracerProvider

    from twolane import config
    from twolane.domain.records import Lane, Status
    from twolane.kernel import Kernel, ledger
    from twolane.kernel.treasury import count
    from twolane.store import Transaction
    from twolane.telemetry import Telemetry, Tracing

    counted, tracing = Telemetry(), Tracing(TracerProvider(), NoOpMeterProvider())
    fields: dict[str, object] = {"op": "chat", "step": "0" * 24, "attempt": 1, "tenant": "t", "lane": "online"}
    fields |= {"upstream": "main", "model": "m", "status": "ok", "input_tokens": 60, "output_tokens": 20}
    fields |= {"cost_pico": 4_600_000, "currency": "USD", "ttft_us": 250_000, "total_us": 900_000}

    def attempt() -> None:
        counted.steps[Lane.ONLINE, "main"].add(Status.OK, 120, 250_000)
        counted.requests["/v1/chat/completions", "ok"] += 1

    def span() -> None:
        tracing.end(tracing.begin(fields, "openai")[0], fields, "openai")

    async def scrapes(folder: Path) -> list[float]:
        kernel = await Kernel.open(config.Config.model_validate({"store": f"sqlite:{folder / 's.db'}"}))
        today_us = ledger.now_us()

        def fill(tx: Transaction, day: int) -> None:
            at_us = today_us - day * 86_400_000_000
            for tenant in range(tenants):
                count(tx, fields | {"tenant": f"t{tenant}", "at_us": at_us}, pico=4_600_000)

        for day in range(days):
            await kernel.store.write(lambda tx, day=day: fill(tx, day))  # type: ignore[misc]
        times = []
        for _ in range(10):
            kernel.metrics._known.clear()
            began = time.perf_counter()
            await kernel.metrics.page(None, "")
            times.append((time.perf_counter() - began) * 1000)
        await kernel.aclose()
        return times

    with tempfile.TemporaryDirectory() as folder:
        first, *later = asyncio.run(scrapes(Path(folder)))
    return {
        "counted_us": round(min(repeat(attempt, number=100_000, repeat=5)) * 10, 2),
        "span_us": round(min(repeat(span, number=2_000, repeat=5)) * 500, 1),
        "tenants": tenants,
        "days": days,
        "first_scrape_ms": round(first, 1),
        "scrape_ms": round(statistics.median(later), 1),
    }


def _quantiles_ms(times: list[float]) -> Figures:
    ordered = sorted(times)
    return {
        "p50": round(ordered[len(ordered) // 2] * 1000, 1),
        "p99": round(ordered[int(len(ordered) * 0.99)] * 1000, 1),
    }


def serve(requests: int = 500) -> Figures:
    """The gateway on the built-in model, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen(
            [sys.executable, "-m", "twolane", "serve", "--port", "0"],
            cwd=folder, env=_environment(), stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:
            assert process.stdout is not None
            match = None
            while match is None:
                match = re.search(r"http://[\w.:]+", process.stdout.readline())
            url = match[0].rstrip("/")
            idle = _resident(process.pid)
            body = {
                "model": "auto",
                "stream": True,
                "messages": [{"role": "user", "content": "Rain falls. When does it?"}],
            }
            data = json.dumps(body).encode()
            for _ in range(requests):
                request = urllib.request.Request(
                    f"{url}/v1/chat/completions", data, {"content-type": "application/json"}
                )
                with urllib.request.urlopen(request, timeout=30) as response:
                    response.read()
            return {"idle_megabytes": idle, "requests": requests, "after_megabytes": _resident(process.pid)}
        finally:
            process.terminate()
            process.communicate(timeout=20)


def _peak(pid: int) -> float:
    """Megabytes at most so far. What `getrusage` says of a child begins with the size of the process that made it."""
    try:
        found = re.search(r"^VmHWM:\s+(\d+)", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    except OSError:
        found = None  # it has just ended
    return int(found[1]) / 1024 if found else 0.0


def _resident(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return round(pages * os.sysconf("SC_PAGE_SIZE") / 2**20, 1)


def _median_ms(command: list[str]) -> float:
    times = []
    for _ in range(9):
        began = time.perf_counter()
        subprocess.run(command, capture_output=True, check=True)
        times.append((time.perf_counter() - began) * 1000)
    return round(statistics.median(times), 1)


def _json(folder: str, *arguments: str) -> Figures:
    done = subprocess.run(
        [sys.executable, "-m", "twolane", *arguments, "--json"],
        cwd=folder, env=_environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    answer: Figures = json.loads(done.stdout)
    return answer


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("TWOLANE_")}


def money(*arguments: str) -> Figures:
    """See `tests/load/money.py`."""
    sys.path.insert(0, str(ROOT))  # run as a script, its own folder is there instead
    from tests.load.money import money as measured

    return measured(*arguments)


FIGURES: dict[str, Callable[..., Figures]] = {
    "install": install,
    "help": help_,
    "contracts": contracts,
    "steps": steps,
    "lanes": lanes,
    "serve": serve,
    "reserve": reserve,
    "money": money,
    "telemetry": telemetry,
}

if __name__ == "__main__":
    name, *arguments = sys.argv[1:] or ["nothing"]
    if name not in FIGURES:
        sys.exit(__doc__)
    print(json.dumps(FIGURES[name](*arguments), indent=2))
