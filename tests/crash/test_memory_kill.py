"""kill −9 while processes write the memory of one run: no update is lost, none is made twice, no value is torn."""

from __future__ import annotations

import json
import random
import sqlite3
import subprocess
import sys
import time
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from twolane import Document, Item
from twolane.batch.item import Common
from twolane.domain.canonical import commitment
from twolane.domain.records import Origin
from twolane.store.vault import unseal
from twolane.testing import Rehearsal

CHILD = """
import asyncio, sys
from pathlib import Path
from twolane.batch import memory
from twolane.batch.item import Common, Item
from twolane.domain.records import Origin
from twolane.testing import Rehearsal

folder, run, name, updates = Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])

memory.GROUP = 8  # many transactions to be killed in

def add(seen: list[str] | None, name: str) -> list[str]:
    return [*(seen or ()), name]

async def main():
    async with Rehearsal(folder=folder) as platform:
        kernel = platform.kernel
        subject = await kernel.store.write(lambda tx: kernel.subject(tx, "default", name))
        item = Item(kernel, Origin("default", "told", run, name), subject, None, options={}, common=Common(kernel))
        seen = item.memory("seen", list[str])
        await asyncio.gather(*(seen.update(add, f"{name}/{number}") for number in range(updates)))
        print("done", flush=True)

asyncio.run(main())
"""


class Lab:
    """A run, and processes that write its memory, each as one item, until they are killed."""

    def __init__(self, folder: Path, run: str, updates: int, stack: ExitStack) -> None:
        self.folder, self.run, self.updates, self._stack = folder, run, updates, stack

    def begin(self, name: str) -> subprocess.Popen[str]:
        process = self._stack.enter_context(
            subprocess.Popen(
                [sys.executable, "-c", CHILD, str(self.folder), self.run, name, str(self.updates)],
                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            )
        )  # fmt: skip
        self._stack.callback(process.kill)
        return process

    def finish(self, process: subprocess.Popen[str]) -> None:
        out, err = process.communicate(timeout=250)
        assert process.returncode == 0, err
        assert out.endswith("done\n")


def version(folder: Path) -> int:
    """How many updates are on disk."""
    with closing(sqlite3.connect(f"file:{folder / 'twolane.db'}?mode=ro", uri=True, timeout=60)) as database:
        return int(database.execute("SELECT coalesce(max(version), 0) FROM memory").fetchone()[0])


def kill_while_writing(lab: Lab, living: dict[str, subprocess.Popen[str]], kills: int, draw: random.Random) -> int:
    """Kill one process after the other, each when some more updates are on disk; how many of them were at work."""
    killed, whole = 0, len(living) * lab.updates
    for at in range(1, kills + 1):
        mark, deadline = whole * at // (kills + 2), time.monotonic() + 250
        while version(lab.folder) < mark:
            assert time.monotonic() < deadline, "nobody writes"
            time.sleep(0.002)
        time.sleep(draw.uniform(0, 0.01))  # anywhere between two writes
        name = draw.choice([name for name, process in living.items() if process.poll() is None])
        killed += living[name].poll() is None
        living[name].kill()
        living[name].wait()
        living[name] = lab.begin(name)
    return killed


async def survive(folder: Path, *, seed: int, processes: int, updates: int, kills: int) -> None:
    draw = random.Random(seed)
    names = [f"d{number}" for number in range(processes)]
    async with Rehearsal(folder=folder) as platform:
        run = await platform.start("contract-audit", [Document(name, "A contract.") for name in names])
    with ExitStack() as stack:
        lab = Lab(folder, run, updates, stack)
        living = {name: lab.begin(name) for name in names}
        killed = kill_while_writing(lab, living, kills, draw)
        for process in living.values():
            lab.finish(process)
    assert killed == kills

    async with Rehearsal(folder=folder) as platform:
        kernel = platform.kernel
        origin = Origin("default", "told", run, "reader")
        subject = await kernel.store.write(lambda tx: kernel.subject(tx, "default", "reader"))
        reader = Item(kernel, origin, subject, None, options={}, common=Common(kernel))
        seen = await reader.memory("seen", list[str]).read()
        assert seen is not None
        assert len(seen) == len(set(seen)), "none twice"
        assert set(seen) == {f"{name}/{number}" for name in names for number in range(updates)}, "none lost"
        entries = kernel.store.all("entries_of_run", run=run, kind="memory")
        assert len(entries) == processes * updates
        row = kernel.store.one("memory", tenant="default", run=run, owner="", name="seen")
        assert row is not None
        sealed_by = kernel.vault.subject(row, column="subject")
        body, last = unseal(sealed_by, bytes(row["sealed"])), json.loads(entries[-1]["leaf"])
        assert (last["version"], last["digest"]) == (row["version"], commitment(sealed_by.salt, body)), "none torn"
        verdict = platform.verify()
        assert verdict.ok, verdict.problem
    print(f"\n{processes} processes x {updates} updates, {killed} kills -9 while writing: 0 lost, 0 twice")


@pytest.mark.timeout(120)
async def test_updates_of_processes_that_are_killed_are_neither_lost_nor_made_twice(tmp_path: Path) -> None:
    await survive(tmp_path, seed=1, processes=3, updates=200, kills=3)


@pytest.mark.long
@pytest.mark.timeout(900)
async def test_eight_processes_with_a_thousand_updates_each_survive_fifty_kills(tmp_path: Path) -> None:
    await survive(tmp_path, seed=2, processes=8, updates=1000, kills=50)
