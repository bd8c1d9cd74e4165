"""Tools are steps: measured, recorded, replayed, stopped; their faults are their item's."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel
from tests.integration import toolbox

from twolane import Document, HandoffRefused, Item, Platform, RunSummary, Workflow, tool, workflow
from twolane.batch import run as runs
from twolane.batch.item import Common
from twolane.domain.records import Origin
from twolane.errors import ConfigError
from twolane.testing import Rehearsal


class Told(BaseModel):
    text: str


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "log"


def lines(log: Path) -> list[str]:
    return log.read_text().splitlines() if log.exists() else []


async def wait_for(log: Path, count: int) -> list[str]:
    deadline = time.monotonic() + 50
    while len(lines(log)) < count:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.005)
    return lines(log)


def flow(story: Callable[[Item], Awaitable[object]]) -> Workflow:
    @workflow(version="1")
    async def told(document: Document, do: Item) -> Told:
        return Told(text=str(await story(do)))

    return told


async def run(platform: Platform, story: Callable[[Item], Awaitable[object]], count: int = 1) -> RunSummary:
    return await platform.run(flow(story), [Document(f"d{n}", f"Document {n}.") for n in range(count)])


def text_of(summary: RunSummary, item: str = "d0") -> str:
    return str(json.loads((Path(summary.reports) / f"{item}.json").read_text())["result"]["text"])


def problem(platform: Platform, summary: RunSummary) -> str:
    (row,) = platform.kernel.store.all("quarantined", run=summary.run)
    (found,) = runs.problems_of(platform.kernel, row)
    return f"{row['agent']}: {found.text}"


def steps(platform: Platform, summary: RunSummary) -> list[Any]:
    return list(platform.kernel.store.all("steps_of_run", run=summary.run))


async def test_a_tool_call_is_a_step_with_its_time_and_without_a_price() -> None:
    async with Rehearsal() as platform:
        summary = await run(platform, lambda do: do(toolbox.vat_of, "PL"))
        assert (summary.status, summary.items["done"]) == ("done", 1)
        assert text_of(summary) == "country='PL' percent=23"
        (step,) = steps(platform, summary)
        named = ("kind", "agent", "status", "cost_pico", "item", "workflow", "lane", "attempt", "upstream")
        assert [step[name] for name in named] == ["tool", "vat_of", "ok", 0, "d0", "told", "batch", 1, None]
        assert step["total_us"] > 0
        assert step["input_digest"] != step["output_digest"]
        assert platform.kernel.store.all("reservations") == []
        assert platform.verify().ok


async def test_a_pure_tool_is_reused_by_other_items_and_later_runs_and_any_other_is_called_by_each(log: Path) -> None:
    async def story(do: Item) -> object:
        first = await do(toolbox.vat_of, "PL", log)
        assert first == await do(toolbox.vat_of, country="PL", log=log)
        return await do(toolbox.whisper, log, "psst")

    async with Rehearsal() as platform:
        first = await run(platform, story)
        assert lines(log) == ["PL", "psst"]
        second = await run(platform, story)
        assert lines(log) == ["PL", "psst", "psst"]
        assert [row["status"] for row in steps(platform, first)] == ["ok", "reused", "ok"]
        assert [row["status"] for row in steps(platform, second)] == ["reused", "reused", "ok"]


async def test_an_item_that_begins_again_does_not_call_its_tools_again(log: Path) -> None:
    async def story(do: Item) -> object:
        told = await do(toolbox.stamp, log, "one")
        if not (log.parent / "mended").exists():
            raise ValueError("not yet")
        return told

    async with Rehearsal() as platform:
        first = await run(platform, story)
        assert first.items["quarantined"] == 1
        (log.parent / "mended").touch()
        await platform.prepare_resume(first.run, quarantined=True)
        again = await platform.work(first.run, flow=flow(story))
        assert (again.items["done"], lines(log)) == (1, ["one"])


async def test_identical_calls_in_flight_are_made_once(log: Path) -> None:
    async def story(do: Item) -> object:
        async with asyncio.TaskGroup() as group:
            calls = [group.create_task(do(toolbox.whisper, log, word)) for word in "abab"]
        return [call.result() for call in calls]

    async with Rehearsal() as platform:
        assert text_of(await run(platform, story)) == "['a', 'b', 'a', 'b']"
        assert sorted(lines(log)) == ["a", "b"]


async def test_values_of_every_kind_reach_a_tool_as_what_they_were() -> None:
    async def story(do: Item) -> object:
        assert await do(toolbox.chatty) == "an answer"
        assert await do(toolbox.doubled, "ab") == "abababab", "with what its decorator adds"
        return await do(toolbox.count_words, toolbox.Parcel(words=["a", "b"]), least=1)

    async with Rehearsal() as platform:
        assert text_of(await run(platform, story)) == "2"


async def test_a_tool_process_stays_for_the_next_call(log: Path) -> None:
    async def story(do: Item) -> object:
        return [(await do(toolbox.stamp, log, word)).split()[-1] for word in "abc"]

    async with Rehearsal() as platform:
        assert len(set(json.loads(text_of(await run(platform, story)).replace("'", '"')))) == 1


@pytest.mark.parametrize(
    ("call", "words", "status", "reason"),
    [
        (lambda do, log: do(toolbox.failing, "Marple"), "failing: it raised ValueError: Marple", "failed",
         "the tool raised ValueError"),
        (lambda do, log: do(toolbox.failing_here, "Marple"), "failing_here: it raised ValueError: Marple", "failed",
         "the tool raised ValueError"),
        (lambda do, log: do(toolbox.wrong), "wrong: it gave something else than it says it returns", "refused",
         "the tool gave a wrong type"),
        (lambda do, log: do(toolbox.wrong_here), "wrong_here: it gave something else than it says", "refused",
         "the tool gave a wrong type"),
        (lambda do, log: do(toolbox.stuck, log), "stuck: it did not end within 0.5 s", "failed",
         "the tool did not end within 0.5 s"),
        (lambda do, log: do(toolbox.sleepy), "sleepy: it did not end within 0.1 s", "failed",
         "the tool did not end within 0.1 s"),
        (lambda do, log: do(toolbox.dying), "dying: it took its process with it", "failed",
         "the tool took its process with it"),
        (lambda do, log: do(toolbox.vat_of, 7), "vat_of: it was given a wrong argument", "unreached",
         "the tool was given a wrong argument"),
    ],
    ids=["raises", "raises here", "wrong type", "wrong type here", "too slow", "too slow here", "dies", "argument"],
)  # fmt: skip
async def test_a_tool_that_fails_sends_its_item_to_quarantine_and_says_why(
    log: Path, call: Callable[[Item, Path], Awaitable[object]], words: str, status: str, reason: str
) -> None:
    async with Rehearsal() as platform:
        summary = await run(platform, lambda do: call(do, log))
        assert (summary.status, summary.items["quarantined"]) == ("done", 1)
        assert problem(platform, summary).startswith(words)
        (step,) = steps(platform, summary)
        assert (step["status"], step["reason"]) == (status, reason)
        assert platform.kernel.store.all("reservations") == []
        # A failure is never kept: the next run calls again.
        assert (await run(platform, lambda do: call(do, log))).items["quarantined"] == 1


async def test_a_workflow_may_catch_a_tool_that_fails_and_the_next_call_has_a_process() -> None:
    async def story(do: Item) -> object:
        with pytest.raises(HandoffRefused):
            await do(toolbox.dying)
        return await do(toolbox.vat_of, "DE")

    async with Rehearsal() as platform:
        assert text_of(await run(platform, story)) == "country='DE' percent=19"


async def test_what_a_tool_started_ends_with_it(log: Path) -> None:
    async with Rehearsal() as platform:
        await run(platform, lambda do: do(toolbox.stuck, log))
    own, child = map(int, lines(log))
    deadline = time.monotonic() + 20
    while is_alive(own) or is_alive(child):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


def is_alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().split(")")[-1].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("which", [toolbox.endless, toolbox.waiting], ids=["plain", "async"])
async def test_the_runs_switch_ends_a_tool_at_once(log: Path, which: Any) -> None:
    async with Rehearsal() as platform:
        story = flow(lambda do: do(which, log))
        identity = await platform.start(story, [Document("d0", "Document.")])
        working = asyncio.create_task(platform.work(identity, flow=story))
        (word,) = await wait_for(log, 1)
        began = time.monotonic()
        await platform.kill(identity, cause="test")
        summary = await working
        assert time.monotonic() - began < 5
        assert (summary.status, summary.reason[:7], summary.items["quarantined"]) == ("stopped", "switch:", 0)
        assert [step["status"] for step in steps(platform, summary)] == ["killed"]
        assert not (word.isdigit() and is_alive(int(word)))
        assert platform.kernel.store.all("reservations") == []
        assert platform.verify().ok


async def test_a_cancelled_branch_ends_its_tool(log: Path) -> None:
    async def story(do: Item) -> object:
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(do(toolbox.endless, log))
                await wait_for(log, 1)
                group.create_task(do(toolbox.failing_here, "no"))
        except* HandoffRefused:
            pass
        return "went on"

    async with Rehearsal() as platform:
        summary = await run(platform, story)
        assert text_of(summary) == "went on"
        assert sorted(step["status"] for step in steps(platform, summary)) == ["cancelled", "failed"]
        assert not is_alive(int(lines(log)[0]))


async def test_a_price_is_held_against_the_budget_and_charged() -> None:
    async def story(do: Item) -> object:
        return [await do(toolbox.dear, word) for word in "abc"]

    async with Rehearsal() as platform:
        identity = await platform.start(flow(story), [Document("d0", "Document.")], budget="$0.02")
        summary = await platform.work(identity, flow=flow(story))
        assert (summary.status, summary.reason[:7], summary.cost) == ("stopped", "budget:", "0.02")
        assert [row["cost_pico"] for row in steps(platform, summary)] == [10**10, 10**10]
        assert platform.verify().ok


async def test_while_planning_no_tool_is_called(log: Path) -> None:
    from twolane.batch.workflow import NeedsCall

    async with Rehearsal() as platform:
        kernel = platform.kernel
        subject = await kernel.store.write(lambda tx: kernel.subject(tx, "default", "d0"))
        common = Common(kernel)
        plan = Item(kernel, Origin("default", "told", "r", "d0"), subject, None, options={}, is_plan=True,
                    common=common)  # fmt: skip
        with pytest.raises(NeedsCall):
            await plan(toolbox.whisper, log, "psst")
        assert lines(log) == []


async def test_a_changed_tool_is_called_again(log: Path) -> None:
    @tool(pure=True, name="same")
    async def first(word: str) -> str:
        return word

    @tool(pure=True, name="same")
    async def second(word: str) -> str:
        return word.upper()

    async with Rehearsal() as platform:
        assert text_of(await run(platform, lambda do: do(first, "a"))) == "a"
        assert text_of(await run(platform, lambda do: do(second, "a"))) == "A"
        assert [s["status"] for s in steps(platform, await run(platform, lambda do: do(first, "a")))] == ["reused"]


def untyped(word) -> str:  # type: ignore[no-untyped-def]
    return str(word)


def many(*words: str) -> str:
    return str(words)


def silent(word: str):  # type: ignore[no-untyped-def]
    return word


def refused() -> Iterator[tuple[Any, str]]:
    def inside(word: str) -> str:
        return word

    yield inside, "tool inside: a plain function runs in a process of its own, which must be able to import it"
    yield untyped, "tool untyped: its parameter word needs a name and a type of its own"
    yield many, "tool many: its parameter words needs a name and a type of its own"
    yield silent, "tool silent: it must say what it returns"
    yield len, "is no function, so it cannot be a tool"


@pytest.mark.parametrize(("function", "words"), list(refused()), ids=["inside", "untyped", "many", "silent", "len"])
def test_a_function_that_cannot_be_a_tool_is_refused_where_it_is_written(function: Any, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        tool()(function)
    assert words in str(caught.value)


async def test_what_is_no_agent_tool_or_workflow_is_refused() -> None:
    async with Rehearsal() as platform:
        summary = await run(platform, lambda do: do(len, "abc"))  # type: ignore[arg-type]
        assert "do() takes an agent, a tool or a workflow" in problem(platform, summary)


def test_a_tool_is_tested_as_the_function_it_is() -> None:
    assert toolbox.vat_of("PL") == toolbox.Vat(country="PL", percent=23)
