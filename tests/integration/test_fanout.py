"""Branches, loops, fan-out, workflows within workflows: a step is known by what it asks, not by where it stands."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from twolane import Document, HandoffRefused, Item, OutOfTime, Platform, Prompt, RunSummary, Workflow, agent, workflow
from twolane.config import BudgetSection
from twolane.domain.records import ModelCall
from twolane.testing import Rehearsal


class Told(BaseModel):
    text: str


class Clause(BaseModel):
    id: str
    number: int


@agent(returns=Told)
def reader(clause: str) -> Prompt:
    return Prompt(system="Read.", user=clause, max_tokens=1000)


@agent(returns=Told, name="judge")
def judge(clause: str) -> Prompt:
    return Prompt(system="Judge.", user=clause, max_tokens=1000)


def echo(call: ModelCall) -> str:
    return json.dumps({"text": call.messages[-1].content})


def flow(story: Callable[[Document, Item], Awaitable[Told]], name: str = "told") -> Workflow:
    async def told(document: Document, do: Item) -> Told:
        return await story(document, do)

    return workflow(version="1", name=name)(told)


def documents(count: int = 1) -> list[Document]:
    return [Document(f"d{at}", f"Document {at}.") for at in range(count)]


def text_of(summary: RunSummary, item: str = "d0") -> str:
    return str(json.loads((Path(summary.reports) / f"{item}.json").read_text())["result"]["text"])


def steps(platform: Platform, run: str) -> list[Any]:
    return list(platform.kernel.store.all("steps_of_run", run=run))


async def test_a_workflow_branches_and_loops_and_a_changed_branch_pays_for_itself_alone() -> None:
    def looping(rounds: int, *, is_strict: bool) -> Workflow:
        async def story(document: Document, do: Item) -> Told:
            text = document.text
            for number in range(rounds):
                text = (await do(reader, f"{number}: {text}")).text
            return await do(judge if is_strict else reader, f"verdict on {text}")

        return flow(story)

    rehearsal = Rehearsal(reader=echo, judge=echo)
    async with rehearsal as platform:
        assert (await platform.run(looping(3, is_strict=True), documents())).calls == 4
        longer = await platform.run(looping(5, is_strict=True), documents())
        assert (longer.calls, longer.reused) == (3, 3)
        other = await platform.run(looping(5, is_strict=False), documents())
        assert (other.calls, other.reused) == (1, 5)


async def test_the_order_in_which_branches_end_changes_nothing() -> None:
    async def story(document: Document, do: Item) -> Told:
        async with asyncio.TaskGroup() as group:
            parts = [group.create_task(do(reader, f"{document.id}, clause {number}")) for number in range(8)]
        return await do(judge, " ".join(part.result().text for part in parts))

    async with Rehearsal(reader=echo, judge=echo, token_ms=1, slots=3) as platform:
        first = await platform.run(flow(story), documents(3))
        assert first.calls == 3 * 9
        again = await platform.run(flow(story), documents(3))
        assert (again.calls, text_of(again)) == (0, text_of(first))


async def test_what_a_cancelled_branch_had_finished_is_kept_and_the_rest_is_closed() -> None:
    reached = asyncio.Event()

    def slow(call: ModelCall) -> str:
        if "slow" in call.messages[-1].content:
            reached.set()
            return '{"text": "' + "word " * 900 + '"}'
        return echo(call)

    async def story(document: Document, do: Item) -> Told:
        kept = await do(reader, "quick")
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(do(reader, "slow"))
                await reached.wait()
                group.create_task(do(judge, "refused"))
        except* HandoffRefused:
            pass
        return await do(reader, f"after {kept.text}")

    rehearsal = Rehearsal(reader=slow, judge="{}", token_ms=5)
    async with rehearsal as platform:
        summary = await platform.run(flow(story), documents())
        assert (summary.status, summary.items["done"], text_of(summary)) == ("done", 1, "after quick")
        told = Counter((row["agent"], row["status"]) for row in steps(platform, summary.run))
        assert told == {("reader", "ok"): 2, ("reader", "cancelled"): 1, ("judge", "refused"): 2}
        assert platform.kernel.store.all("reservations") == []
        assert platform.verify().ok


async def test_a_timeout_of_the_workflows_own_closes_the_call_and_the_item_goes_on() -> None:
    async def story(document: Document, do: Item) -> Told:
        try:
            async with asyncio.timeout(0.5):  # of an answer that takes 4.5: the call has left by then
                return await do(reader, "slow")
        except TimeoutError:
            return await do(judge, "instead")

    rehearsal = Rehearsal(reader='{"text": "' + "word " * 900 + '"}', judge=echo, token_ms=5)
    async with rehearsal as platform:
        summary = await platform.run(flow(story), documents())
        assert text_of(summary) == "instead"
        assert [row["status"] for row in steps(platform, summary.run)] == ["cancelled", "ok"]


# ── workflows within workflows ──


@workflow(version="1")
async def read_clause(clause: Clause, do: Item) -> Told:
    return await do(reader, f"clause {clause.number}")


@workflow(version="1")
async def read_twice(document: Document, do: Item) -> Told:
    first = await do(read_clause, Clause(id="a", number=1))
    second = await do(reader, "clause 2")
    return Told(text=f"{first.text}, {second.text}")


async def test_a_workflow_runs_within_another_and_its_steps_say_so() -> None:
    async def story(document: Document, do: Item) -> Told:
        async with asyncio.TaskGroup() as group:
            one = group.create_task(do(read_clause, Clause(id="x", number=1)))
            two = group.create_task(do(read_twice, document))
        return Told(text=f"{one.result().text}; {two.result().text}; {(await do(reader, 'clause 3')).text}")

    async with Rehearsal(reader=echo) as platform:
        summary = await platform.run(flow(story), documents(), budget="$1")
        assert text_of(summary) == "clause 1; clause 1, clause 2; clause 3"
        rows = steps(platform, summary.run)
        assert {row["workflow"] for row in rows} == {"told"}, "whose budgets and switches hold for all of it"
        assert {row["agent"] for row in rows} == {"read-clause/reader", "read-twice/reader", "reader"}
        assert len(rows) == 3, "the same question in flight is asked once, in whatever workflow"
        deeper = await platform.run(read_twice, documents())
        assert (deeper.calls, deeper.reused) == (0, 2), "memos know no paths"
        assert {row["agent"] for row in steps(platform, deeper.run)} == {"read-clause/reader", "reader"}


@pytest.mark.parametrize("is_caught", [True, False])
async def test_a_workflow_within_another_has_its_own_time(is_caught: bool) -> None:
    @workflow(version="1", timeout_s=0.5)
    async def hasty(clause: Clause, do: Item) -> Told:
        return await do(reader, "slow")

    async def story(document: Document, do: Item) -> Told:
        try:
            return await do(hasty, Clause(id="a", number=1))
        except OutOfTime:
            if is_caught:
                return await do(judge, "instead")
            raise

    async with Rehearsal(reader='{"text": "' + "word " * 900 + '"}', judge=echo, token_ms=5) as platform:
        summary = await platform.run(flow(story), documents())
        assert steps(platform, summary.run)[0]["status"] == "cancelled"
        assert platform.kernel.store.all("reservations") == []
        if is_caught:
            assert text_of(summary) == "instead"
        else:
            (row,) = platform.kernel.store.all("quarantined", run=summary.run)
            told = platform.kernel.read_body(row["problems"]).decode()
            assert "workflow hasty within it did not end within 0.5 s" in told


async def test_a_workflow_within_another_counts_against_the_items_budget() -> None:
    async def story(document: Document, do: Item) -> Told:
        return await do(read_clause, Clause(id="a", number=1))

    rehearsal = Rehearsal(reader=echo)
    limited = rehearsal._config
    rehearsal._config = lambda folder: limited(folder).model_copy(  # type: ignore[method-assign]  # as a file would say it
        update={"budget": {"item": BudgetSection(tokens=50)}}
    )
    async with rehearsal as platform:
        summary = await platform.run(flow(story), documents())
        (row,) = platform.kernel.store.all("quarantined", run=summary.run)
        assert "item:" in platform.kernel.read_body(row["problems"]).decode()
        assert summary.calls == 0


async def test_a_workflow_within_another_shares_its_memory() -> None:
    async def inner(clause: Clause, do: Item) -> Told:
        await do.memory("seen", list[str], scope="item").update(note, "inner")
        return Told(text="")

    inside = workflow(version="1")(inner)

    async def story(document: Document, do: Item) -> Told:
        await do(inside, Clause(id="a", number=1))
        return Told(text=str(await do.memory("seen", list[str], scope="item").read()))

    async with Rehearsal() as platform:
        assert text_of(await platform.run(flow(story), documents())) == "['inner']"


def note(seen: list[str] | None, word: str) -> list[str]:
    return [*(seen or ()), word]


async def test_a_refusal_within_a_workflow_is_the_items_and_names_its_agent() -> None:
    async def story(document: Document, do: Item) -> Told:
        return await do(read_clause, Clause(id="a", number=1))

    async with Rehearsal(reader="{}") as platform:
        summary = await platform.run(flow(story), documents())
        (row,) = platform.kernel.store.all("quarantined", run=summary.run)
        assert (row["agent"], platform.kernel.read_body(row["reply"])) == ("reader", b"{}")


async def test_a_workflow_is_given_what_it_takes_and_gives_what_it_says() -> None:
    async def lie(clause: Clause, do: Item) -> Told:
        return clause  # type: ignore[return-value]  # the point of it

    lying = workflow(version="1")(lie)

    async def wrong_input(document: Document, do: Item) -> Told:
        return await do(read_clause, document)  # type: ignore[arg-type]  # the point of it

    async def wrong_result(document: Document, do: Item) -> Told:
        return await do(lying, Clause(id="a", number=1))

    async with Rehearsal() as platform:
        for story, words in [
            (wrong_input, "workflow read-clause takes Clause, not Document"),
            (wrong_result, "workflow lie returned Clause, not Told"),
        ]:
            summary = await platform.run(flow(story), documents())
            (row,) = platform.kernel.store.all("quarantined", run=summary.run)
            assert words in platform.kernel.read_body(row["problems"]).decode()
