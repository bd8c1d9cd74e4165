"""A batch worker that never runs out of work: it opens the kernel on a gateway's own configuration, in a process of
its own, and keeps thousands of batch calls waiting at the door. `python tests/load/backlog.py CONFIG ROUTE WAITING`

It says `ready` when its calls flow. A line on its input is answered by one JSON object: what happened since the last
line. It ends with its input, so it cannot outlive who started it.
"""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import json
import sys
import time
from collections.abc import AsyncIterator
from typing import Any

import uvloop

from twolane import config
from twolane.domain.records import Lane, Message, ModelCall, Origin
from twolane.errors import TwolaneError
from twolane.kernel import Kernel, Request


class Busy:
    """How many calls are with the upstream, over time: what its slots see of us."""

    def __init__(self) -> None:
        self.count, self.most = 0, 0
        self._area, self._since, self._began = 0.0, time.monotonic(), time.monotonic()

    def change(self, by: int) -> None:
        """One more, or one less."""
        now = time.monotonic()
        self._area += self.count * (now - self._since)
        self._since, self.count = now, self.count + by
        self.most = max(self.most, self.count)

    def mean(self) -> float:
        """The mean since the last time it was asked for, over time."""
        self.change(0)
        seconds = max(self._since - self._began, 1e-9)
        mean, self._area, self._began = self._area / seconds, 0.0, self._since
        return mean


class Watched:
    """An upstream adapter whose calls are counted from being sent to being closed."""

    def __init__(self, model: Any, busy: Busy) -> None:  # Any: whatever the port asks for is passed on
        self._model, self._busy = model, busy

    async def open(self, call: ModelCall) -> WatchedStream:
        self._busy.change(1)
        try:
            return WatchedStream(await self._model.open(call), self._busy)
        except BaseException:
            self._busy.change(-1)
            raise

    def __getattr__(self, name: str) -> Any:  # Any: see above
        return getattr(self._model, name)


class WatchedStream:
    """One counted call."""

    def __init__(self, stream: Any, busy: Busy) -> None:  # Any: see above
        self._stream, self._busy, self._is_closed = stream, busy, False

    def __aiter__(self) -> AsyncIterator[bytes]:
        blocks: AsyncIterator[bytes] = self._stream.__aiter__()
        return blocks

    def close(self) -> None:
        if not self._is_closed:
            self._is_closed = True
            self._busy.change(-1)
        self._stream.close()

    def __getattr__(self, name: str) -> Any:  # Any: see above
        return getattr(self._stream, name)


async def main(file: str, route: str, waiting: int) -> None:
    """Work until the input ends."""
    busy, counts, problems = Busy(), collections.Counter[str](), collections.Counter[str]()
    kernel = await Kernel.open(config.load(file))
    for name, upstream in kernel.upstreams.items():  # the door looks upstreams up in this very mapping
        watched: Any = Watched(upstream.model, busy)  # Any: it passes on what it does not count
        kernel.upstreams[name] = dataclasses.replace(upstream, model=watched)
    origin = Origin("bench", workflow="backlog", run="backlog")
    call = ModelCall((Message("user", "Summarise clause 7. " + "x" * 400),), route, 64)

    async def work() -> None:
        while True:
            request = Request(origin, Lane.BATCH, kernel.route(route, origin, lane=Lane.BATCH), call)
            try:
                async with kernel.door.step(request) as answer:
                    await answer.whole()
                counts["done"] += 1
            except TwolaneError as error:  # a worker would try again, too
                counts["failed"] += 1
                problems[f"{type(error).__name__}: {error}"[:160]] += 1
                await asyncio.sleep(0.05)

    tasks = [asyncio.create_task(work()) for _ in range(waiting)]
    lines = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    try:
        while not counts:
            await asyncio.sleep(0.05)
        print("ready", flush=True)
        while await lines.readline():
            facts = {"mean_in_flight": round(busy.mean(), 3), "most_in_flight": busy.most, **counts}
            print(json.dumps(facts | {"problems": dict(problems.most_common(3))}), flush=True)
            counts.clear()
            problems.clear()
            busy.most = busy.count
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await kernel.aclose()


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
