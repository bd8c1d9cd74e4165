"""kill -9 in the middle of a run, again and again: nothing is lost, and nothing that was finished is paid twice."""

from __future__ import annotations

import json
import random
import select
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from twolane.batch import run as runs
from twolane.batch.items import IN_FLIGHT_PER_SLOT
from twolane.domain.money import decimal_string
from twolane.testing import Rehearsal

ITEMS, SLOTS = 40, 4
IN_FLIGHT = SLOTS * IN_FLIGHT_PER_SLOT
"""Calls between their intent and their record: those with a slot, and those that wait for one or for their commit."""
AGENTS = ("planner", "extractor", "synthesizer")
PATIENCE_S = 60.0

CHILD = """
import asyncio, json, os, sys
from pathlib import Path
from pydantic import BaseModel
from twolane import Document, Item, Prompt, agent, workflow
from twolane.testing import Rehearsal

folder, run = Path(sys.argv[1]), sys.argv[2]
log = os.open(folder / "requests.log", os.O_CREAT | os.O_WRONLY | os.O_APPEND)


class Plan(BaseModel):
    topic: str

class Report(BaseModel):
    text: str

@agent(returns=Plan)
def planner(contract: Document) -> Prompt:
    return Prompt(system="You plan.", user=contract.id, context=(contract,), max_tokens=50)

@agent(returns=Plan)
def extractor(contract: Document, plan: Plan) -> Prompt:
    return Prompt(system="You quote.", user=contract.id + " " + plan.topic, context=(contract,), max_tokens=50)

@agent(returns=Report)
def synthesizer(contract: Document, facts: Plan) -> Prompt:
    return Prompt(system="You sum up.", user=contract.id + " " + facts.topic, max_tokens=50)

@workflow(version="1")
async def audit(contract: Document, do: Item) -> Report:
    plan = await do(planner, contract)
    facts = await do(extractor, contract, plan)
    return await do(synthesizer, contract, facts)


def reply(call):
    agent = {"You plan.": "planner", "You quote.": "extractor", "You sum up.": "synthesizer"}[call.messages[0].content]
    item = call.messages[-1].content.split()[0]
    os.write(log, f"{agent} {item}\\n".encode())
    return json.dumps({"text" if agent == "synthesizer" else "topic": f"{agent} of {item} in a few words"})

async def main():
    async with Rehearsal({"": reply}, token_ms=3, slots=SLOTS, folder=folder) as platform:
        name = run
        if run == "new":
            name = await platform.start(audit, [Document(f"c{n:02}", f"Contract {n}.") for n in range(ITEMS)])
        print(name, flush=True)
        summary = await platform.work(name, flow=audit)
        print(json.dumps([summary.status, summary.reason]), flush=True)

asyncio.run(main())
"""


class Lab:
    """A folder with a store, and processes that work on its run until they are killed."""

    child = CHILD

    def __init__(self, folder: Path, stack: ExitStack, *, items: int = ITEMS) -> None:
        self.folder, self._stack, self.items = folder, stack, items
        self.run = "new"
        self.restarts_s: list[float] = []
        """From the start of a process to its first call, where it made one."""

    def code(self) -> str:
        """What a process runs."""
        return self.child.replace("SLOTS", str(SLOTS)).replace("ITEMS", str(self.items))

    def requests(self) -> list[str]:
        """What the upstream was asked so far, by all processes."""
        path = self.folder / "requests.log"
        return path.read_text().splitlines() if path.exists() else []

    def begin(self) -> subprocess.Popen[str]:
        """A process that goes on with the run; returns when it says that it does."""
        process = self._stack.enter_context(
            subprocess.Popen(
                [sys.executable, "-c", self.code(), str(self.folder), self.run],
                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            )
        )  # fmt: skip
        self._stack.callback(process.kill)
        assert process.stdout is not None
        assert select.select([process.stdout], [], [], PATIENCE_S)[0], "the child does not begin"
        self.run = process.stdout.readline().strip()
        assert self.run, process.communicate()[1]
        return process

    def kill_after(self, requests: int, draw: random.Random) -> bool:
        """Begin, and kill when that many more requests were made; False where the run ended before."""
        before, began = len(self.requests()), time.monotonic()
        process, is_first = self.begin(), True
        deadline = time.monotonic() + PATIENCE_S
        while (new := len(self.requests()) - before) < requests and process.poll() is None:
            if new and is_first:
                self.restarts_s.append(time.monotonic() - began)
                is_first = False
            assert time.monotonic() < deadline
            time.sleep(0.001)
        time.sleep(draw.uniform(0, 0.01))  # anywhere between two writes
        was_running = process.poll() is None
        process.kill()
        process.wait()
        return was_running

    def finish(self) -> None:
        """Go on to the end."""
        process = self.begin()
        out, err = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 0, err
        assert json.loads(out) == ["done", ""]


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    with ExitStack() as stack:
        yield Lab(tmp_path, stack)


async def survive(lab: Lab, seed: int, kills: int, *, spread: int = 10**6) -> None:
    """`spread` times the even share of what is left is the most that a process may do before it is killed."""
    draw = random.Random(seed)
    whole = lab.items * len(AGENTS)
    killed = 0
    for number in range(kills):
        left = max(1, whole - len(set(lab.requests())))
        killed += lab.kill_after(draw.randint(0, max(0, min(left - 1, spread * left // (kills - number)))), draw)
    assert killed
    lab.finish()

    asked = Counter(lab.requests())
    assert len(asked) == whole
    asked_again = sum(asked.values()) - whole

    async with Rehearsal(folder=lab.folder) as platform:
        summary = platform.summary(lab.run)
        assert summary.items == {"total": lab.items, "done": lab.items, "quarantined": 0}
        steps = platform.kernel.store.all("steps_of_run", run=lab.run)
        paid = Counter((row["item"], row["agent"]) for row in steps if row["status"] == "ok")
        assert len(paid) == whole
        assert set(paid.values()) == {1}
        doubtful = [row for row in steps if row["status"] == "in_doubt"]
        assert {row["status"] for row in steps} <= {"ok", "reused", "in_doubt"}
        assert asked_again <= len(doubtful) <= killed * IN_FLIGHT, "what was in flight is booked, and nothing else"
        assert all(row["cost_pico"] > 0 for row in doubtful)
        assert summary.in_doubt == decimal_string(sum(row["cost_pico"] for row in doubtful))
        assert platform.kernel.store.all("reservations") == []
        folder = Path(summary.reports)
        reports = [json.loads(path.read_text()) for path in folder.glob("*.json")]
        names = sorted(f"c{number:02}" for number in range(lab.items))
        assert sorted(report["item"] for report in reports) == names
        assert {report["result"]["text"] for report in reports} == {
            f"synthesizer of c{number:02} in a few words" for number in range(lab.items)
        }
        rows = platform.kernel.store.all("items", run=lab.run, first=0, last=lab.items)
        assert len({row["output"] for row in rows}) == lab.items
        assert runs.find(platform.kernel, lab.run)["owner"] == ""
        verdict = platform.verify()
        assert verdict.ok, verdict.problem
    middle, worst = statistics.median(lab.restarts_s), max(lab.restarts_s)
    print(
        f"{killed} kills, {lab.items} items: {asked_again} calls asked again, {len(doubtful)} booked in doubt; "
        f"from a start to its first call {middle:.2f} s (median), {worst:.2f} s (longest)"
    )


async def test_a_run_that_is_killed_three_times_loses_nothing_and_pays_nothing_twice(lab: Lab) -> None:
    await survive(lab, seed=1, kills=3)


@pytest.mark.long
@pytest.mark.timeout(300)
@pytest.mark.parametrize("seed", range(2, 9))
async def test_wherever_the_kills_strike_nothing_is_lost(lab: Lab, seed: int) -> None:
    await survive(lab, seed, kills=4)


@pytest.mark.long
@pytest.mark.timeout(1800)
async def test_two_hundred_kills_over_a_thousand_items_lose_nothing(tmp_path: Path) -> None:
    with ExitStack() as stack:
        await survive(Lab(tmp_path, stack, items=1000), seed=200, kills=200, spread=2)


async def test_an_agent_that_is_asked_again_is_asked_once_for_each_item_whatever_is_killed(lab: Lab) -> None:
    lab.begin().wait(PATIENCE_S)
    assert Counter(line.split()[0] for line in lab.requests()) == dict.fromkeys(AGENTS, ITEMS)
    async with Rehearsal(folder=lab.folder) as platform:
        await platform.prepare_resume(lab.run, from_agent="extractor")
    draw, before = random.Random(5), len(lab.requests())
    killed = lab.kill_after(ITEMS // 3, draw) + lab.kill_after(ITEMS // 4, draw)
    assert killed
    lab.finish()
    asked = Counter(line.split()[0] for line in lab.requests()[before:])
    assert set(asked) == {"extractor"}, "the same answers again: what follows keeps its memos"
    async with Rehearsal(folder=lab.folder) as platform:
        assert platform.summary(lab.run).items == {"total": ITEMS, "done": ITEMS, "quarantined": 0}
        steps = platform.kernel.store.all("steps_of_run", run=lab.run)
        paid = Counter((row["item"], row["agent"]) for row in steps if row["status"] == "ok")
        assert {agent: {count for (_, of), count in paid.items() if of == agent} for agent in AGENTS} == {
            "planner": {1}, "extractor": {2}, "synthesizer": {1},
        }  # fmt: skip
        doubtful = [row for row in steps if row["status"] == "in_doubt"]
        assert asked["extractor"] - ITEMS <= len(doubtful) <= killed * IN_FLIGHT
        assert platform.verify().ok
