"""What a switch does to running steps: `python tests/load/kill.py [--steps 300] [--trials 5] [--store postgres]`

The steps stream from the bench kit's server, which counts what it generates; one process runs them all and trips the
switch itself, then four share them and another process trips it. Delays count from when whoever trips knows that the
row is on disk (and again from the instant of its entry, before the commit) to the end of each step, which is after its
socket is closed. Then a process that tripped is killed with -9 at once, and the switch must be there.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run as a script, its own folder is there instead

from tests.stores import fresh_database

from twolane.config import Config
from twolane.domain.records import Lane, Message, ModelCall, Origin, Route
from twolane.errors import Killed, SwitchTripped
from twolane.kernel import Kernel, Request

KIT = Path(__file__).parents[3] / "shared" / "bench" / "mock_upstream.py"
Figures = dict[str, Any]  # Any: JSON


def settings(store: str, folder: str, url: str) -> Config:
    """One upstream with room for every step."""
    section = {"kind": "openai", "url": f"{url}/v1", "model": "mock-t20-i20-n4000", "retries": 0}
    section |= {"price": {"input": "1", "output": "2"}, "slots": {"online": 1, "batch": 400}}
    return Config.model_validate(
        {"store": store, "keys": {"folder": f"{folder}/keys"}, "upstream": {"m": section}, "route": {}}
        | {"guard": {"repetition": {"mode": "off"}}}  # the kit's server says sixteen words again and again
    )


class Steps:
    """Steps of one run, and when each was closed."""

    def __init__(self, kernel: Kernel, run: str) -> None:
        call = ModelCall((Message("user", "Go on and on."),), "", 4_000)
        self._request = Request(Origin("t", run=run, agent="a"), Lane.BATCH, Route("m", ("m",), ""), call)
        self._kernel = kernel
        self.flowing = 0
        self.ended: list[float] = []

    async def one(self) -> None:
        """Read until a switch ends it."""
        try:
            async with self._kernel.door.step(self._request) as answer:
                self.flowing += 1
                async for _ in answer:
                    pass
        except Killed:
            self.ended.append(time.time())


async def trip_and_report(kernel: Kernel, run: str) -> Figures:
    """When the entry was made, when its row was known to be on disk, and the report."""
    switches, written = kernel.switches, list[float]()
    refresh = switches._refresh  # what a trip does first once its row is written

    def mark() -> None:
        written.append(time.time())
        refresh()

    async def write(work: Any) -> Any:  # Any: the port's own types
        result = await original(work)
        if not written:
            switches._refresh = mark  # type: ignore[method-assign]
        return result

    original, switches._store.write = switches._store.write, write  # type: ignore[method-assign]
    try:
        trip = await switches.trip(f"run:{run}", cause="figures", actor="figures")
    finally:
        switches._store.write = original  # type: ignore[method-assign]
        switches._refresh = refresh  # type: ignore[method-assign]
    report = await switches.report(trip)
    return {"at": trip.at_us / 1e6, "durable": written[0], "report": report.fields() if report else {}}


async def child(store: str, folder: str, url: str, count: str) -> None:
    """Runs steps of each run that is named on a line of stdin; `trip` before its name: and trips its switch."""
    kernel = await Kernel.open(settings(store, folder, url))
    loop = asyncio.get_running_loop()
    while line := (await loop.run_in_executor(None, sys.stdin.readline)).split():
        steps = Steps(kernel, line[-1])
        tasks = [asyncio.create_task(steps.one()) for _ in range(int(count))]
        while steps.flowing < len(tasks):
            await asyncio.sleep(0.01)
        print("ready", flush=True)
        await loop.run_in_executor(None, sys.stdin.readline)
        told: Figures = {}
        if line[0] == "trip":
            told = await trip_and_report(kernel, line[-1])
        await asyncio.gather(*tasks)
        print(json.dumps({**told, "ended": steps.ended}), flush=True)
    await kernel.aclose()


@contextlib.contextmanager
def upstream() -> Iterator[str]:
    """The bench kit's server."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with subprocess.Popen([sys.executable, str(KIT), "--port", str(port)], stderr=subprocess.DEVNULL) as server:
        url = f"http://127.0.0.1:{port}"
        for _ in range(200):
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"{url}/health", timeout=1).close()
                break
            time.sleep(0.05)
        try:
            yield url
        finally:
            server.terminate()


def stats(url: str) -> Figures:
    """What it has counted."""
    with urllib.request.urlopen(f"{url}/stats", timeout=5) as response:
        told: Figures = json.load(response)
        return told


async def trials(store: str, folder: str, url: str, *, steps: int, processes: int, count: int) -> Figures:
    """Some trips over steps that so many processes share."""
    arguments = [sys.executable, __file__, "--child", store, folder, url, str(steps // processes)]
    children = [
        subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(processes)
    ]
    kernel = await Kernel.open(settings(store, folder, url), can_call=False)
    delays, from_entry, aborted, reports, after = list[float](), list[float](), list[float](), list[Figures](), 0
    try:
        for number in range(count):
            run, is_own = f"r{processes}x{number}", processes == 1
            _say(children, f"{'trip ' * is_own}{run}")
            assert _hear(children) == ["ready"] * processes
            _say(children, "go")
            tripped = {} if is_own else await trip_and_report(kernel, run)
            told = [json.loads(line) for line in _hear(children)]
            tripped = tripped or told[0]
            at = tripped["at"]
            delays += [ended - tripped["durable"] for each in told for ended in each["ended"]]
            from_entry += [ended - at for each in told for ended in each["ended"]]
            reports.append(tripped["report"])
            aborted.append(stats(url)["last_abort_at"] - at)
            await asyncio.sleep(max(0.0, at + 1 - time.time()))
            before = stats(url)
            await asyncio.sleep(1)
            after += stats(url)["tokens_sent"] - before["tokens_sent"] + before["active"]
    finally:
        for each in children:
            each.kill()
            each.communicate()
        await kernel.aclose()
    return {
        "processes": processes,
        "steps": len(delays) // count,
        "trials": count,
        "closed_ms": _quantiles(delays),
        "closed_ms_from_before_the_commit": _quantiles(from_entry),
        "upstreams_last_abort_ms_worst": round(max(aborted) * 1e3, 1),
        "tokens_generated_from_1_s_after": after,
        "steps_reported": sorted({report["steps"] for report in reports}),
        "acknowledgements": sorted({len(report["acknowledgements"]) for report in reports}),
    }


def _quantiles(delays: list[float]) -> Figures:
    ordered = sorted(delays)
    places = {"p50": len(ordered) // 2, "p99": int(len(ordered) * 0.99), "worst": -1}
    return {name: round(ordered[at] * 1e3, 1) for name, at in places.items()}


def _say(children: list[subprocess.Popen[str]], line: str) -> None:
    for each in children:
        assert each.stdin is not None
        each.stdin.write(line + "\n")
        each.stdin.flush()


def _hear(children: list[subprocess.Popen[str]]) -> list[str]:
    return [each.stdout.readline().strip() for each in children if each.stdout is not None]


async def trip_and_die(store: str, folder: str, url: str) -> None:
    """A switch is tripped, and the process is gone the moment it is told so."""
    kernel = await Kernel.open(settings(store, folder, url), can_call=False)
    await kernel.switches.trip("run:gone", cause="figures", actor="figures")
    os.kill(os.getpid(), signal.SIGKILL)


async def survives(store: str, folder: str, url: str) -> bool:
    """Whether what was tripped by a process that was killed with -9 is still tripped."""
    with subprocess.Popen([sys.executable, __file__, "--die", store, folder, url]) as dying:
        assert dying.wait(30) == -signal.SIGKILL
    kernel = await Kernel.open(settings(store, folder, url), can_call=False)
    try:
        kernel.switches.check(["run:gone"])
    except SwitchTripped:
        return True
    finally:
        await kernel.aclose()
    return False


def kill(steps: int = 300, count: int = 5, *, kind: str = "sqlite", processes: tuple[int, ...] = (1, 4)) -> Figures:
    """The figures on one kind of store."""
    with tempfile.TemporaryDirectory() as folder, upstream() as url, contextlib.ExitStack() as stack:
        store = f"sqlite:{folder}/store.db" if kind == "sqlite" else stack.enter_context(fresh_database())
        each = [
            asyncio.run(trials(store, folder, url, steps=steps, processes=number, count=count)) for number in processes
        ]
        return {"store": kind, "each": each, "survives_kill_9": asyncio.run(survives(store, folder, url))}


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        import uvloop

        uvloop.run(child(*sys.argv[2:6]))
    elif sys.argv[1:2] == ["--die"]:
        asyncio.run(trip_and_die(*sys.argv[2:5]))
    else:
        parser = argparse.ArgumentParser()
        parser.add_argument("--steps", type=int, default=300)
        parser.add_argument("--trials", type=int, default=5)
        parser.add_argument("--store", choices=("sqlite", "postgres"), default="sqlite")
        asked = parser.parse_args()
        print(json.dumps(kill(asked.steps, asked.trials, kind=asked.store), indent=2))
