"""kill −9 while a process appends: what it said was written is there, gapless and verified; the next start goes on."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import orjson
import pytest

from twolane.kernel import ledger
from twolane.store.sqlite import SQLiteStore

WRITER = """
import asyncio, sys
from pathlib import Path
from twolane.kernel import ledger, treasury
from twolane.store.sqlite import SQLiteStore

async def main(path, life):
    store = SQLiteStore(Path(path))
    async def append(name):
        run = f"r{len(name) % 2}"
        fields = {"kind": "step", "run": run, "tenant": "t", "name": name, "status": "ok", "cost_pico": 3}
        fields["at_us"] = 0
        def work(tx):
            treasury.count(tx, fields, pico=3)
            return ledger.append(tx, fields)
        print(await store.write(work), name, flush=True)
    async def writer(lane):
        for number in range(10**6):
            await append(f"{life}-{lane}-{number}")
    await asyncio.gather(*(writer(lane) for lane in range(8)))

asyncio.run(main(*sys.argv[1:]))
"""


def live(path: Path, life: int, acknowledgements: int) -> dict[int, str]:
    """One life of a writer, ended by kill −9 after so many acknowledgements; everything it acknowledged."""
    command = [sys.executable, "-c", WRITER, str(path), str(life)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(acknowledgements)]
        process.kill()
        lines += process.stdout.readlines()
    assert process.returncode == -9
    whole = [line.split() for line in lines if line.endswith(b"\n")]
    return {int(position): name.decode() for position, name in whole}


def survive(path: Path, kills: int, seed: int) -> None:
    draw, acknowledged = random.Random(seed), dict[int, str]()
    for life in range(kills):
        told = live(path, life, draw.randint(1, 60))
        assert not told.keys() & acknowledged.keys()
        acknowledged |= told
        store = SQLiteStore(path)
        verdict = ledger.verify(store)
        leaves = store.all("entries", first=0, count=10**6)
        store.close()
        assert verdict.problem == ""  # gapless, chained, and the roll-ups agree
        kept = {row["position"]: orjson.loads(row["leaf"])["name"] for row in leaves}
        assert {position: kept.get(position) for position in acknowledged} == acknowledged
        assert len(set(kept.values())) == len(kept)


def test_what_was_acknowledged_survives_a_few_kills(tmp_path: Path) -> None:
    survive(tmp_path / "store.db", kills=5, seed=1)


@pytest.mark.long
@pytest.mark.timeout(600)
def test_what_was_acknowledged_survives_many_kills(tmp_path: Path) -> None:
    survive(tmp_path / "store.db", kills=80, seed=2)
