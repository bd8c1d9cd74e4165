"""An upstream that several processes share in one respect: a file, under a lock, counts what all of them have in
flight. And a process that calls it without end."""

from __future__ import annotations

import asyncio
import fcntl
import struct
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.stores import kept_in

from twolane.config import Config, PriceTable, Rate, Slots, UpstreamSection
from twolane.domain.records import Lane, Message, ModelCall, Origin, Route
from twolane.kernel import Kernel, Request
from twolane.models.rehearsal import Rehearsal

PLACES = 16
_FORMAT = f"{1 + PLACES}i"


class Tally:
    """Calls in flight by process, their peak, and when each began."""

    def __init__(self, path: Path) -> None:
        self._path, self._times = path, path.with_suffix(".times")
        path.touch()
        self._times.touch()

    def _change(self, change: Callable[[list[int]], None], line: str = "") -> list[int]:
        with open(self._path, "r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            kept = file.read()
            counts = list(struct.unpack(_FORMAT, kept)) if kept else [0] * (1 + PLACES)
            change(counts)
            counts[0] = max(counts[0], sum(counts[1:]))
            file.seek(0)
            file.write(struct.pack(_FORMAT, *counts))
            file.flush()
            if line:
                with open(self._times, "a") as times:
                    times.write(line)
            return counts

    def began(self, number: int) -> None:
        """A call left process `number`."""

        def change(counts: list[int]) -> None:
            counts[1 + number] += 1

        self._change(change, f"began {number} {time.monotonic()}\n")

    def ended(self, number: int) -> None:
        """It is over."""

        def change(counts: list[int]) -> None:
            counts[1 + number] -= 1

        self._change(change, f"ended {number} {time.monotonic()}\n")

    def forget(self, number: int) -> None:
        """A process was killed: nothing of its is in flight."""

        def change(counts: list[int]) -> None:
            counts[1 + number] = 0

        self._change(change)

    def peak(self) -> int:
        return self._change(lambda counts: None)[0]

    def active(self, number: int) -> int:
        return self._change(lambda counts: None)[1 + number]

    def _lines(self, kind: str) -> list[tuple[int, float]]:
        lines = (line.split() for line in self._times.read_text().splitlines() if line.startswith(kind))
        return [(int(number), float(at)) for _, number, at in lines]

    def answered(self) -> Counter[int]:
        """Calls that ended, by process."""
        return Counter(number for number, _ in self._lines("ended"))

    def times(self) -> list[float]:
        """When calls began, on the machine's monotonic clock."""
        return sorted(at for _, at in self._lines("began"))


class Counted(Rehearsal):
    """A rehearsal whose calls stand in a tally from before they are opened until they are closed."""

    def __init__(self, tally: Tally, number: int) -> None:
        super().__init__("up", reply="one two", first_token_ms=20, token_ms=5)
        self._tally, self._number = tally, number

    async def open(self, call: ModelCall) -> Any:  # Any: the rehearsal's own stream
        self._tally.began(self._number)
        return await super().open(call)

    def _ended(self, has_ended: bool) -> None:
        self._tally.ended(self._number)
        super()._ended(has_ended)


async def worker(folder: Path, number: int, lane: str, tasks: int, option: str) -> None:
    """Call without end, `tasks` at once. `option` is "rate N", "slots N" or nothing."""
    word, _, value = option.partition(" ")
    slots = Slots(online=5, batch=5) if word != "slots" else Slots(online=int(value), batch=int(value))
    rate = Rate(requests_per_minute=int(value)) if word == "rate" else Rate()
    section = UpstreamSection(
        kind="rehearsal", price=PriceTable(input="1", output="2"), slots=slots, rate=rate, retries=0
    )
    settings = Config(**kept_in(folder), upstream={"up": section}, route={})
    kernel = await Kernel.open(settings, models={"up": Counted(Tally(folder / "tally"), number)})
    which = Lane(lane)
    call = ModelCall((Message("user", "hello"),), "", 20)
    asked = Request(Origin("t", run=f"r{number}"), which, Route("r", ("up",), "test"), call)

    async def go_on() -> None:
        while True:
            async with kernel.door.step(asked) as answer:
                await answer.whole()

    print("ready", flush=True)
    await asyncio.gather(*(go_on() for _ in range(tasks)))
