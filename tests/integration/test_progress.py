"""Watching a run: in this process, over HTTP, and from the command line."""

from __future__ import annotations

import asyncio
import io
import json
from contextlib import aclosing
from typing import Any

import pytest
from pydantic import BaseModel
from rich.console import Console

from twolane import Document, Item, Platform, Prompt, agent, workflow
from twolane.batch import again
from twolane.cli.lines import progress_line
from twolane.cli.progress import BAR, drawing
from twolane.errors import NotFound
from twolane.kernel.progress import REPEAT_S, Progress, Watching
from twolane.testing import Rehearsal

pytestmark = pytest.mark.timeout(40)


class Note(BaseModel):
    text: str


@agent(returns=Note)
def reader(contract: Document) -> Prompt:
    return Prompt(system="You read.", user="What is it?", context=(contract,), max_tokens=50)


@agent(returns=Note)
def judge(note: Note) -> Prompt:
    return Prompt(system="You judge.", user=note.text, max_tokens=50)


@workflow(version="1")
async def review(contract: Document, do: Item) -> Note:
    return await do(judge, await do(reader, contract))


def documents(count: int) -> list[Document]:
    return [Document(f"c{number}", f"The price is {number} EUR.") for number in range(count)]


async def states_of(platform: Platform, run: str) -> list[Progress]:
    async with aclosing(platform.kernel.watching.follow(run)) as states:
        return [progress async for progress in states]


async def test_a_run_is_watched_from_the_queue_to_its_end() -> None:
    async with Rehearsal(judge='{"text": "fine"}', reader='{"text": "read"}') as platform:
        run = await platform.start(review, documents(6), budget="$1")
        queued = platform.kernel.watching.look(run)
        assert (queued.status, queued.items["left"], queued.left, queued.speed) == ("queued", 6, None, None)
        assert queued.left_by == "it waits for a worker"
        watcher = asyncio.create_task(states_of(platform, run))
        await platform.work(run, flow=review)
        last = (await watcher)[-1]
        assert (last.status, last.is_over, last.left, last.left_by) == ("done", True, None, "it has ended")
        assert last.items == {"total": 6, "done": 6, "quarantined": 0, "left": 0}
        assert {name: each.done for name, each in last.agents.items()} == {"reader": 6, "judge": 6}
        summary = platform.summary(run)
        assert last.fields()["cost"] == summary.cost
        assert last.fields()["budget"] == "1.00"
        assert platform.kernel.watching.watched == 0
        assert await states_of(platform, run) == [platform.kernel.watching.look(run)]


async def test_what_is_in_flight_is_shown_and_gone_when_it_is_killed() -> None:
    async with Rehearsal(faults={"": "always: hang 1"}, slots=3) as platform:
        run = await platform.start(review, documents(5))
        working = asyncio.create_task(platform.work(run, flow=review))
        async with aclosing(platform.kernel.watching.follow(run)) as states:
            async for progress in states:
                if progress.agents and progress.agents["reader"].running == 4:  # three, and one ahead
                    assert progress.left is None
                    assert progress.left_by == "too few of its items have ended"
                    await platform.kill(run)
                if progress.is_over:
                    break
        await working
        assert (progress.status, progress.agents["reader"].running) == ("stopped", 0)
        assert progress.reason.startswith("switch:")
        assert progress.items["left"] == 5


async def test_refused_failed_and_reused_steps_are_told_apart() -> None:
    script: dict[str, Any] = {"reader": '{"text": "read"}', "judge": ['{"text": 7}', '{"text": "fine"}']}
    async with Rehearsal(script) as platform:
        await platform.run(review, documents(1))
        run = (await platform.run(review, documents(1))).run
        agents = platform.kernel.watching.look(run).agents
        assert {name: (each.done, each.reused, each.pico) for name, each in agents.items()} == {
            "judge": (1, 1, 0), "reader": (1, 1, 0),
        }  # fmt: skip
        first = [row["id"] for row in platform.kernel.store.all("runs", count=9)][-1]
        judged = platform.kernel.watching.look(first).agents["judge"]
        assert (judged.done, judged.refused, judged.reused) == (1, 1, 0)


async def test_a_run_whose_process_died_is_over() -> None:
    async with Rehearsal() as platform:
        run = await platform.start(review, documents(1))
        await platform.kernel.store.write(
            lambda tx: tx.run("begin_run", id=run, owner="1-dead", known_owner="", now=1, code="")
        )  # fmt: skip
        (only,) = await states_of(platform, run)
        assert (only.status, only.reason) == ("stopped", "interrupted: its worker is gone")
        await again.be_worker(platform.kernel)
        waiting = platform.kernel.watching.look(run)
        assert (waiting.status, waiting.is_over, waiting.reason) == ("queued", False, "interrupted: its worker is gone")


async def test_one_tick_serves_all_who_watch_and_who_leaves_frees_it() -> None:
    async with Rehearsal() as platform:
        run = await platform.start(review, documents(1))
        kernel = platform.kernel
        watching = Watching(kernel.store, is_alive=kernel.presence.is_alive, currency="USD", tick_s=0.01)
        told: list[list[Progress]] = [[] for _ in range(20)]

        async def watch(into: list[Progress]) -> None:
            async with aclosing(watching.follow(run)) as states:
                async for progress in states:
                    into.append(progress)
                    if len(into) == 3:
                        return

        async with asyncio.timeout(10 * REPEAT_S):
            await asyncio.gather(*(watch(into) for into in told))
        assert watching.reads == 3
        assert all(states[at] is told[0][at] for states in told for at in range(3))
        assert all(states[0].line is told[0][0].line for states in told)
        assert watching.watched == 0
        with pytest.raises(NotFound):
            await anext(watching.follow("nope"))
        watching.close()


async def test_a_line_and_a_drawing_say_what_is_known_and_obey_nothing() -> None:
    async with Rehearsal(judge='{"text": "fine"}', reader='{"text": "read"}') as platform:
        run = (await platform.run(review, documents(3), budget="$2")).run
        progress = platform.kernel.watching.look(run)
        assert progress_line(progress).startswith("done · 3 of 3 done · 0.00")
        assert "of 2.00 USD" in progress_line(progress)
        console = Console(width=120, record=True, file=io.StringIO())
        console.print(drawing(progress))
        bar, said, head, first, _ = console.export_text().splitlines()
        assert (len(bar), said) == (BAR, progress_line(progress).rpartition(" · ")[0])
        assert (head.split()[-1], first.split()[0]) == ("cost", "judge")
        fields = json.loads(progress.line)
        assert fields["left_s"] is None
        assert fields["agents"]["judge"] == {
            "done": 3, "running": 0, "reused": 0, "refused": 0, "failed": 0,
            "cost": fields["agents"]["judge"]["cost"],
        }  # fmt: skip
