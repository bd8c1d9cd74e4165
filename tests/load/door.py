"""What the door itself takes of an online request, without HTTP on either side:

    python tests/load/door.py [--before SRC] [--rounds 5]

50 requests at a time, 21 chunks each, budgets on tenant and key, the record awaited. --before is the `src` folder of an
earlier commit; rounds alternate, each in a process of its own, and medians are told.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run as a script, its own folder is there instead

from tests.load.engines import Stream

IN_FLIGHT, REQUESTS, CHUNKS = 50, 8_000, 20

Facts = dict[str, Any]  # Any: JSON


class Words:
    """An upstream whose answers are there at once, in chunks."""

    ends_when_closed = True

    def __init__(self) -> None:
        from twolane.domain.records import Usage
        from twolane.models import sse

        chunks = sse.Chunks("m")
        self._blocks = [chunks.chunk(f"word{at} ", role=None if at else "assistant") for at in range(CHUNKS)]
        self._blocks.append(chunks.chunk(finish_reason="stop") + chunks.usage(Usage(40, CHUNKS)) + sse.DONE)

    async def open(self, call: object) -> Stream:
        return Stream(*self._blocks)

    async def aclose(self) -> None:
        """Nothing is held."""


async def child(folder: Path) -> Facts:
    """One round: some to warm up, then those that are measured."""
    import asyncio

    from twolane import config
    from twolane.domain.records import Lane, Message, ModelCall, Origin, Route
    from twolane.kernel import Kernel, Request

    upstream = {"kind": "rehearsal", "model": "m", "price": {"input": "0.05", "output": "0.08"}}
    upstream |= {"slots": {"online": IN_FLIGHT, "batch": 1}}
    settings = {"store": f"sqlite:{folder / 'door.db'}", "upstream": {"m": upstream}, "route": {}}
    kernel = await Kernel.open(config.Config.model_validate(settings), models={"m": Words()})
    for scope in ("tenant:t", "key:t/k"):
        await kernel.treasury.set_budget(scope, period="month", pico=10**17, tokens=10**12, actor="door")
    await kernel.lanes.hold(Lane.ONLINE)
    messages = (Message("system", "You help."), Message("user", "hello there " * 40))
    request = Request(
        Origin("t", key="k"), Lane.ONLINE, Route("m", ("m",), "named"), ModelCall(messages, "", 100), 30.0
    )

    async def person(numbers: Iterator[int]) -> None:
        for _ in numbers:
            async with kernel.door.step(request) as answer:
                async for _ in answer:
                    pass
            await answer.durable()

    async def crowd(count: int) -> None:
        numbers = iter(range(count))
        await asyncio.gather(*(person(numbers) for _ in range(IN_FLIGHT)))

    await crowd(REQUESTS // 4)
    cpu, began = time.process_time(), time.perf_counter()
    await crowd(REQUESTS)
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    await kernel.aclose()
    return {"requests_per_second": round(REQUESTS / seconds), "cpu_ms_per_request": cpu / REQUESTS * 1000}


def measure(rounds: int, before: str | None) -> Facts:
    """Now, and before where it is asked for, in alternation."""
    told: dict[str, list[Facts]] = {}
    for _ in range(rounds):
        for name, path in (("before", before), ("now", "")):
            if path is None:
                continue
            environment = {**os.environ, **({"PYTHONPATH": path} if path else {})}
            command = [sys.executable, str(Path(__file__).resolve()), "--child"]
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, cwd="/")
            told.setdefault(name, []).append(json.loads(done.stdout))
    return {
        name: {key: round(statistics.median(each[key] for each in rounds_of), 3) for key in rounds_of[0]}
        for name, rounds_of in told.items()
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if not arguments.child:
        print(json.dumps(measure(arguments.rounds, arguments.before), indent=2))
        return
    import uvloop

    with tempfile.TemporaryDirectory(prefix="door-") as folder:
        print(json.dumps(uvloop.run(child(Path(folder)))))


if __name__ == "__main__":
    main()
