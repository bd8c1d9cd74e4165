"""kill −9 while a process appends: what it said was written is there, gapless and verified; the next start goes on."""

from __future__ import annotations

import random
import subprocess
import sys

import orjson
import pytest

from twolane.kernel import ledger
from twolane.store.opening import open_store

WRITER = """
import asyncio, sys
from twolane.kernel import ledger, treasury
from twolane.store.opening import open_store

async def main(address, life):
    store = open_store(address)
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


def live(address: str, life: int, acknowledgements: int) -> dict[int, str]:
    """One life of a writer, ended by kill −9 after so many acknowledgements; everything it acknowledged."""
    command = [sys.executable, "-c", WRITER, address, str(life)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(acknowledgements)]
        process.kill()
        lines += process.stdout.readlines()
    assert process.returncode == -9
    whole = [line.split() for line in lines if line.endswith(b"\n")]
    return {int(position): name.decode() for position, name in whole}


def survive(address: str, kills: int, seed: int) -> None:
    draw, acknowledged = random.Random(seed), dict[int, str]()
    for life in range(kills):
        told = live(address, life, draw.randint(1, 60))
        assert not told.keys() & acknowledged.keys()
        acknowledged |= told
        store = open_store(address)
        verdict = ledger.verify(store)
        leaves = store.all("entries", first=0, count=10**6)
        store.close()
        assert verdict.problem == ""  # gapless, chained, and the roll-ups agree
        kept = {row["position"]: orjson.loads(row["leaf"])["name"] for row in leaves}
        assert {position: kept.get(position) for position in acknowledged} == acknowledged
        assert len(set(kept.values())) == len(kept)


def test_what_was_acknowledged_survives_a_few_kills(address: str) -> None:
    survive(address, kills=5, seed=1)


@pytest.mark.long
@pytest.mark.timeout(600)
def test_what_was_acknowledged_survives_many_kills(address: str) -> None:
    survive(address, kills=80, seed=2)
