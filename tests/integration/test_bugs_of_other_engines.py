"""Bugs that other engines had, as tests. Each names the report in one line, and what it would look like here."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest
from pydantic import BaseModel
from tests.integration.processes import ended, until
from tests.integration.test_batch import (
    AUDIT,
    BAD,
    SCRIPT,
    by_agent,
    documents,
    is_bad,
    leaves,
    quarantine,
    resume,
    steps,
)
from tests.integration.test_workers import Place, is_whole, place

from twolane import Document, Item, Prompt, RunSummary, agent, workflow
from twolane.batch import run as runs
from twolane.domain.records import ModelCall
from twolane.platform import Platform
from twolane.testing import Rehearsal

__all__ = ["place"]  # the fixture

pytestmark = pytest.mark.timeout(120)

ITEMS = 12


class Note(BaseModel):
    text: str


@agent(returns=Note)
def asker(text: str) -> Prompt:
    return Prompt(system="You answer.", user=text, max_tokens=50)


@agent(returns=Note)
def sink(text: str) -> Prompt:
    return Prompt(system="You end it.", user=text, max_tokens=50)


async def released(platform: Platform, run: str) -> RunSummary:
    await platform.prepare_resume(run, quarantined=True)
    return await platform.work(run, flow=AUDIT)


async def test_a_failed_step_is_run_again_by_a_resume_and_so_is_all_that_follows_it() -> None:
    """lionagi PR 3235: a checkpoint that held a failed step replayed the failure, so a resume ran neither that step nor
    anything after it, in 0.0 s, and said it was finished. Here: refused or failed steps were found as memos, and a
    resumed run would be done without a verifier's or synthesizer's call."""
    rehearsal = Rehearsal({**SCRIPT, "verifier": BAD}, faults={"synthesizer": "2nd: 500"})
    async with rehearsal as platform:
        first = await platform.run(AUDIT, documents(ITEMS))
        assert (first.status, first.items["done"], first.items["quarantined"]) == ("done", 0, ITEMS)
        rehearsal.reply("verifier", SCRIPT["verifier"])
        second = await released(platform, first.run)
        assert (second.status, second.exit_code) == ("stopped", 1), "a step of the resumed run failed at its upstream"
        assert second.reason.startswith("upstream: ")
        third = await resume(platform, first.run)
        assert (third.status, third.items["done"]) == ("done", ITEMS)
        answered = Counter((row["item"], row["agent"]) for row in steps(platform, first.run) if row["status"] == "ok")
        assert set(answered.values()) == {1}
        assert len(answered) == 4 * ITEMS, "none was skipped, and none answered twice"
        assert rehearsal.requests("synthesizer") == ITEMS + 1


async def test_of_a_killed_run_exactly_the_refused_items_are_paid_for_again() -> None:
    """accrue 129: kill a run mid-flight, retry N failed rows, pay for exactly N. Here: a release would ask for whole
    items again, or for items that were done."""
    reached = asyncio.Event()
    count, bad = 24, {f"c{number:02}" for number in (2, 7, 11, 13, 23)}

    def verdict(call: ModelCall) -> str:
        if rehearsal.requests("verifier") > 4:
            reached.set()
        number = call.messages[-1].content.split(" is ")[-1].split()[0]
        return BAD if f"c{int(number):02}" in bad else '{"breaches": "none"}'

    rehearsal = Rehearsal({**SCRIPT, "verifier": verdict}, token_ms=3)
    async with rehearsal as platform:
        run = await platform.start(AUDIT, documents(count))
        working = asyncio.create_task(platform.work(run, flow=AUDIT))
        await reached.wait()
        await platform.kill(run, cause="mid-flight")
        assert (await working).status == "stopped"
        whole = await resume(platform, run)
        assert (whole.items["done"], set(quarantine(platform, run))) == (count - len(bad), bad)

        before = {name: rehearsal.requests(name) for name in SCRIPT}
        rehearsal.reply("verifier", SCRIPT["verifier"])
        again = await released(platform, run)
        paid = {name: rehearsal.requests(name) - before[name] for name in SCRIPT}
        assert paid == {"planner": 0, "extractor": 0, "verifier": len(bad), "synthesizer": len(bad)}
        assert again.calls - whole.calls == 2 * len(bad)
        assert (again.status, again.items["done"]) == ("done", count)


async def test_a_run_goes_on_at_the_step_that_failed_and_says_where_that_was(tmp_path: Path) -> None:
    """tinyflows PR 66: a run whose node errored was over; the only move was to run it again from the trigger. Here: a
    resume would ask the planner again, or nobody could tell where it stopped."""
    async with Rehearsal(SCRIPT, faults={"verifier": "always: 503"}, folder=tmp_path) as platform:
        first = await platform.run(AUDIT, documents(1))
        assert (first.status, first.exit_code) == ("stopped", 1)
        assert first.reason == "upstream: upstream rehearsal-verifier: answered 503 (rehearsed)"
        assert by_agent(first, "failed") == {"planner": 0, "extractor": 0, "verifier": 1}
    rehearsal = Rehearsal(SCRIPT, folder=tmp_path)
    async with rehearsal as platform:  # another process, as after a crash of the machine
        again = await resume(platform, first.run)
        assert (again.status, again.items["done"]) == ("done", 1)
        assert {name: rehearsal.requests(name) for name in SCRIPT} == {
            "planner": 0, "extractor": 0, "verifier": 1, "synthesizer": 1,
        }  # fmt: skip


LONG = """
import asyncio, os, signal, sys
from pathlib import Path
from tests.integration.test_bugs_of_other_engines import long_one
from twolane import Document
from twolane.testing import Rehearsal

async def main():
    folder, run, die_at = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    log = os.open(folder / "asked.log", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    asked = 0

    def reply(call):
        nonlocal asked
        asked += 1
        os.write(log, (call.messages[-1].content + "\\n").encode())
        if asked == die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return '{"text": "summary"}'

    async with Rehearsal({"": reply}, folder=folder) as platform:
        if run == "new":
            run = await platform.start(long_one, [Document("long", "word " * 1000)])
        print(run, flush=True)
        print((await platform.work(run, flow=long_one)).status, flush=True)

asyncio.run(main())
"""


@workflow(version="1")
async def long_one(contract: Document, do: Item) -> Note:
    """One document, thirty calls: in parts, and then over the parts."""
    async with asyncio.TaskGroup() as group:
        parts = [group.create_task(do(asker, f"part {number}")) for number in range(20)]
    text = ""
    for number in range(10):
        text = (await do(asker, f"summary {number} of {len(parts)}")).text
    return Note(text=text)


def test_a_crash_inside_one_long_document_loses_none_of_its_paid_calls(tmp_path: Path, repository: Path) -> None:
    """PageIndex PR 227 (issue 170): processing one large document takes 10 to 30 minutes of paid calls, and a crash at
    any point lost them all. Here: an item that was cut off would begin at its first step."""

    def work(run: str, die_at: int) -> list[str]:
        child = subprocess.run(
            [sys.executable, "-c", LONG, str(tmp_path), run, str(die_at)],
            cwd=repository, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert child.returncode == (-9 if die_at else 0), child.stderr
        return child.stdout.split()

    (run,) = work("new", 26)
    assert work(run, 0) == [run, "done"]
    asked = Counter((tmp_path / "asked.log").read_text().splitlines())
    assert len(asked) == 30
    assert sum(asked.values()) == 31, "only the call in flight when it died was made again"


async def test_a_router_that_failed_routes_when_the_run_goes_on() -> None:
    """langgraph 8834: a node's update was kept and its conditional router raised; a resume skipped the router and
    returned the intermediate state as if all were well, with nothing pending. Here: an item whose workflow failed
    between two agents would be done with the first one's output."""
    routed: list[str] = []

    def route(note: Note) -> str:
        routed.append(note.text)
        if len(routed) == 1:
            raise ConnectionError("the router's own failure")
        return f"to the sink: {note.text}"

    @workflow(version="1")
    async def routing(contract: Document, do: Item) -> Note:
        return await do(sink, route(await do(asker, contract.text)))

    rehearsal = Rehearsal(asker='{"text": "intermediate"}', sink='{"text": "the end"}')
    async with rehearsal as platform:
        first = await platform.run(routing, documents(1))
        assert (first.items["done"], first.items["quarantined"]) == (0, 1), "it is not done, and says why"
        assert "ConnectionError: the router's own failure" in quarantine(platform, first.run)["c00"]["problems"]
        await platform.prepare_resume(first.run, quarantined=True)
        again = await platform.work(first.run, flow=routing)
        assert (again.status, again.items["done"]) == ("done", 1)
        assert routed == ["intermediate", "intermediate"]
        assert (rehearsal.requests("asker"), rehearsal.requests("sink")) == (1, 1)
        result = json.loads((Path(again.reports) / "c00.json").read_text())["result"]
        assert result == {"text": "the end"}


async def test_a_resume_from_a_chosen_agent_begins_there_and_replays_only_what_came_before() -> None:
    """langgraph 7361: a resume from a chosen checkpoint became a replay from the beginning of the graph. Here: `resume
    --from verifier` would ask the planner again, or answer the verifier from what it said the last time."""
    rehearsal = Rehearsal(SCRIPT)
    async with rehearsal as platform:
        first = await platform.run(AUDIT, documents(4))
        before = {name: rehearsal.requests(name) for name in SCRIPT}
        rehearsal.reply("verifier", '{"breaches": "one"}')
        await platform.prepare_resume(first.run, from_agent="verifier")
        again = await platform.work(first.run, flow=AUDIT)
        assert (again.status, again.items["done"]) == ("done", 4)
        asked = {name: rehearsal.requests(name) - before[name] for name in SCRIPT}
        assert asked == {"planner": 0, "extractor": 0, "verifier": 4, "synthesizer": 4}
        assert "one" in rehearsal.calls("synthesizer")[-1].messages[-1].content


async def test_a_reply_without_a_required_field_is_kept_told_and_counted() -> None:
    """crewAI 3915: a reply that lacked the field `quality` failed its schema, which was only logged; the agent went on
    and the data was dropped. Here: an item would be done without the agent's output, or gone from every count."""
    whole, lacking = '{"breaches": "none"}', '{"suggestions": ["be kind"]}'
    rehearsal = Rehearsal({**SCRIPT, "verifier": is_bad("c03", lacking)})
    async with rehearsal as platform:
        summary = await platform.run(AUDIT, documents(6))
        assert summary.items == {"total": 6, "done": 5, "quarantined": 1}
        row = quarantine(platform, summary.run)["c03"]
        assert "'breaches' is a required property" in row["problems"].replace('\\"', "'")
        assert platform.kernel.read_body(row["reply"]) == lacking.encode(), "nothing is dropped"
        assert summary.by_agent["verifier"]["refused"] == 2
        assert rehearsal.requests("synthesizer") == 5, "the next agent never heard of it"
        (entry,) = leaves(platform, summary.run, "handoff")
        assert (entry["agent"], entry["status"]) == ("verifier", "refused")
        rehearsal.reply("verifier", whole)
        assert (await released(platform, summary.run)).items["done"] == 6


# ── the durable engine's own ──


def at_rest(place: Place) -> bool:
    """Whether no chunk waits or runs, for anybody."""
    with closing(sqlite3.connect(place.folder / "work.db.queue", timeout=10)) as queue:
        states = {state for (state,) in queue.execute("SELECT DISTINCT status FROM workflow_status")}
    return bool(states) and not states & {"ENQUEUED", "PENDING", "DELAYED"}


async def test_what_a_crashed_worker_was_at_is_done_by_the_other_without_anybodys_help(place: Place) -> None:
    """dbos-transact-py 453: two nodes on one database, one crashed, and its workflows stayed PENDING for ever on the
    other; only a call by hand recovered them. Here: the items of a killed worker's chunks would stay queued."""
    platform = await place.open()
    run = await place.start(platform, 80)
    place.write(token_ms=30)
    workers = [await place.begin("run", "work", run) for _ in range(2)]
    await until(lambda: len(place.at_work()) == 2)
    workers[0].kill()
    await workers[0].wait()
    out = await ended(workers[1])
    assert workers[1].returncode == 0, out
    is_whole(platform, run, 80)
    assert at_rest(place), "no chunk is left behind in the queue"


@pytest.mark.parametrize("how", ["locked", "lost"])
async def test_a_database_that_is_away_during_a_recovery_strands_nothing(place: Place, how: str) -> None:
    """dbos-transact-py 716: the database restarted while a crashed worker's workflows were being recovered; those that
    met the gap were logged, dropped, and PENDING for ever. Here: chunks of the dead would stay with the dead."""
    platform = await place.open()
    run = await place.start(platform, 60)
    place.write(token_ms=20)
    victim = await place.begin("run", "work", run)
    await until(lambda: len(place.worked()) > 70)  # walked, and a good part begun
    victim.kill()
    await victim.wait()
    if how == "lost":  # the queue itself, and what waited in it: what was paid for is not in there
        for path in place.folder.glob("work.db.queue*"):
            path.unlink()
        out = await ended(await place.begin("run", "work", run))
        is_whole(platform, run, 60)
        assert at_rest(place)
        return
    survivor = await place.begin("run", "work", run)
    with closing(sqlite3.connect(place.folder / "work.db.queue", timeout=10, isolation_level=None)) as queue:
        queue.execute("BEGIN EXCLUSIVE")
        began = time.monotonic()
        while time.monotonic() - began < 4 and survivor.returncode is None:  # away while it starts and takes over
            await asyncio.sleep(0.1)
        queue.execute("ROLLBACK")
    out = await ended(survivor)
    assert survivor.returncode == 0, out
    is_whole(platform, run, 60)
    assert at_rest(place)


async def test_a_worker_that_drains_takes_back_nothing_from_the_one_that_replaces_it(place: Place) -> None:
    """dbos-transact-py 804: in a rolling restart the draining executor, which had the same id as the new one, claimed a
    workflow again that the new one's recovery had just queued, and took it to its grave. Here: ids are new with every
    start, a worker that leaves claims nothing more, and what it held is queued again."""
    platform = await place.open()
    run = await place.start(platform, 80)
    place.write(token_ms=20)
    names = set()
    leaver = await place.begin("run", "work", run)
    for _ in range(2):  # twice in a row: the new one is the next to leave
        await until(lambda: runs.find(platform.kernel, run)["owner"].startswith(f"{leaver.pid}-"))  # noqa: B023 - of this round
        names.add(runs.find(platform.kernel, run)["owner"])
        await until(lambda: leaver.pid in place.at_work())  # noqa: B023 - the same
        stayer = await place.begin("run", "work", run)
        leaver.terminate()
        out = await ended(leaver)
        assert leaver.returncode is not None, out
        assert leaver.returncode >= 0, out
        leaver = stayer
    out = await ended(leaver)
    assert leaver.returncode == 0, out
    is_whole(platform, run, 80)
    assert len(names) == 2
    assert at_rest(place)
