"""kill -9 in a run whose items fan out, call tools, tell one another things, and end in one report."""

from __future__ import annotations

import json
import os
import random
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from tests.crash.test_run_kill import PATIENCE_S, Lab

from twolane.testing import Rehearsal

ITEMS, PARTS = 12, 4

CHILD = """
import asyncio, json, os, sys
from collections.abc import Sequence
from pathlib import Path
from pydantic import BaseModel
from twolane import Document, Item, Prompt, agent, tool, workflow
from twolane.testing import Rehearsal

folder, run = Path(sys.argv[1]), sys.argv[2]
log = os.open(folder / "requests.log", os.O_CREAT | os.O_WRONLY | os.O_APPEND)


class Told(BaseModel):
    text: str

@agent(returns=Told)
def reader(contract: Document, part: int) -> Prompt:
    return Prompt(system="Read.", user=f"{contract.id} {part}", context=(contract,), max_tokens=50)

@agent(returns=Told)
def editor(texts: Sequence[str]) -> Prompt:
    return Prompt(system="Edit.", user=" ".join(texts), max_tokens=50)

@tool()
async def measure(name: str, text: str) -> int:
    return len(text)

def add(seen: list[str] | None, name: str) -> list[str]:
    return [*(seen or ()), name]

async def sum_up(results: Sequence[Told], do: Item) -> Told:
    seen = await do.memory("seen", list[str]).read()
    return await do(editor, [result.text for result in results] + sorted(seen or ()))

async def story(contract: Document, do: Item) -> Told:
    seen = do.memory("seen", list[str])
    known = await seen.read()
    async with asyncio.TaskGroup() as group:
        parts = [group.create_task(do(reader, contract, part)) for part in range(PARTS)]
        group.create_task(seen.update(add, contract.id))
    size = await do(measure, contract.id, " ".join(part.result().text for part in parts))
    await do(reader, contract, 100 + len(known or ()))
    return Told(text=f"{contract.id}: {size}")

audit = workflow(version="1", name="audit", reduce=sum_up)(story)


def reply(call):
    if call.messages[0].content == "Read.":
        os.write(log, (call.messages[-1].content + "\\n").encode())
        return json.dumps({"text": "about " + call.messages[-1].content})
    return '{"text": "edited"}'

async def main():
    async with Rehearsal({"": reply}, token_ms=2, slots=4, folder=folder) as platform:
        name = run
        if run == "new":
            name = await platform.start(audit, [Document(f"c{n:02}", f"Contract {n}.") for n in range(ITEMS)])
        print(name, flush=True)
        summary = await platform.work(name, flow=audit)
        print(json.dumps([summary.status, summary.reason]), flush=True)

asyncio.run(main())
""".replace("PARTS", str(PARTS)).replace("ITEMS", str(ITEMS))

ENDLESS = """
import asyncio, sys
from pathlib import Path
from twolane import Document, Item, workflow
from twolane.testing import Rehearsal
from tests.integration import toolbox

async def story(document: Document, do: Item) -> toolbox.Vat:
    await do(toolbox.endless, Path(sys.argv[1]) / "pids")
    return toolbox.Vat(country="", percent=0)

async def main():
    async with Rehearsal(folder=Path(sys.argv[1])) as platform:
        flow = workflow(version="1")(story)
        run = await platform.start(flow, [Document("d", "Document.")])
        print(run, flush=True)
        await platform.work(run, flow=flow)

asyncio.run(main())
"""


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    with ExitStack() as stack:
        yield Lab(tmp_path, stack)


async def survive(lab: Lab, seed: int, kills: int) -> None:
    lab.child = CHILD
    draw, killed = random.Random(seed), 0
    for _ in range(kills):
        left = max(1, ITEMS * (PARTS + 1) - len(set(lab.requests())))
        killed += lab.kill_after(draw.randint(0, left - 1), draw)
    assert killed
    lab.finish()

    names = [f"c{number:02}" for number in range(ITEMS)]
    asked = Counter(lab.requests())
    async with Rehearsal(folder=lab.folder) as platform:
        kernel = platform.kernel
        summary = platform.summary(lab.run)
        assert (summary.status, summary.items["done"]) == ("done", ITEMS)
        steps = kernel.store.all("steps_of_run", run=lab.run)
        paid = Counter((row["item"], row["agent"]) for row in steps if row["status"] == "ok")
        assert {paid[name, "reader"] for name in names} == {PARTS + 1}, "each part once, and what it knew stays"
        assert {paid[name, "measure"] for name in names} == {1}
        assert len(asked) == ITEMS * (PARTS + 1), "no item has read another memory than it read first"
        updates = [json.loads(row["leaf"]) for row in kernel.store.all("entries_of_run", run=lab.run, kind="memory")]
        assert [each["version"] for each in updates] == list(range(1, ITEMS + 1))
        report = json.loads((Path(summary.reports) / "report.json").read_text())
        assert (report["items"], report["result"]) == (ITEMS, {"text": "edited"})
        assert kernel.store.all("reservations") == []
        verdict = platform.verify()
        assert verdict.ok, verdict.problem


async def test_a_run_that_fans_out_and_remembers_survives_three_kills(lab: Lab) -> None:
    await survive(lab, seed=1, kills=3)


@pytest.mark.long
@pytest.mark.timeout(300)
@pytest.mark.parametrize("seed", range(2, 8))
async def test_wherever_the_kills_strike_a_fan_out_nothing_is_lost_or_made_twice(lab: Lab, seed: int) -> None:
    await survive(lab, seed, kills=5)


async def test_a_tool_ends_with_its_worker_even_in_the_middle_of_a_calculation(lab: Lab) -> None:
    lab.child = ENDLESS
    process, pids = lab.begin(), lab.folder / "pids"
    deadline = time.monotonic() + PATIENCE_S
    while not (pids.exists() and pids.read_text().endswith("\n")):
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.01)
    process.kill()
    process.wait()
    pid = int(pids.read_text())
    while is_alive(pid):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    async with Rehearsal(folder=lab.folder) as platform:
        (step,) = platform.kernel.store.all("steps_of_run", run=lab.run)
        assert (step["kind"], step["status"], step["cost_pico"]) == ("tool", "in_doubt", 0), "nobody knows what it did"
        assert platform.kernel.store.all("reservations") == []
        assert platform.verify().ok


def is_alive(pid: int) -> bool:
    with suppress(OSError):
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False
