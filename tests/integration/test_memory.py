"""What the items of a run tell one another: typed, versioned, written exactly once, read again as it was read."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import pytest
from pydantic import BaseModel

from twolane import (
    Document,
    HandoffRefused,
    Item,
    Platform,
    Prompt,
    RunSummary,
    SwitchTripped,
    Workflow,
    agent,
    workflow,
)
from twolane.batch.item import Common
from twolane.batch.memory import MAX_BYTES
from twolane.batch.workflow import NeedsCall
from twolane.domain.records import Origin
from twolane.errors import ConfigError
from twolane.testing import Rehearsal


class Seen(BaseModel):
    names: list[str] = []


class Told(BaseModel):
    text: str


def add(seen: Seen | None, name: str) -> Seen:
    return Seen(names=[*(seen.names if seen else ()), name])


def count(total: int | None, amount: int) -> int:
    return (total or 0) + amount


def fail(total: int | None, why: str) -> int:
    raise ValueError(why)


def wrong(total: int | None) -> int:
    return "seven"  # type: ignore[return-value]  # the point of it


def grow(text: str | None, size: int) -> str:
    return "x" * size


@agent(returns=Told)
def teller(known: str) -> Prompt:
    return Prompt(system="Tell.", user=known)


def documents(number: int) -> list[Document]:
    return [Document(f"d{at:03}", f"Document {at}.") for at in range(number)]


def flow(story: Callable[[Document, Item], Awaitable[Told]]) -> Workflow:
    """A workflow of this story; its name is that of its function."""

    async def told(document: Document, do: Item) -> Told:
        return await story(document, do)

    return workflow(version="1", name="told")(told)


async def items(platform: Platform, number: int = 1, run: str = "") -> list[Item]:
    """Items of one run, to talk to without a worker."""
    story = flow(lambda document, do: asyncio.sleep(0, Told(text="")))
    run = run or await platform.start(story, documents(number))
    kernel, common = platform.kernel, Common(platform.kernel)
    made = []
    for at in range(number):
        subject = await kernel.store.write(lambda tx, name=f"d{at:03}": kernel.subject(tx, "default", name))  # type: ignore[misc]
        origin = Origin("default", "told", run, f"d{at:03}")
        made.append(Item(kernel, origin, subject, None, options={}, common=common))
    return made


def again(item: Item) -> Item:
    """The same item in a later attempt: nothing of it is remembered but what is in the store."""
    kernel = item._kernel
    return Item(kernel, item._origin, item._subject, None, options={}, common=Common(kernel))


def entries(platform: Platform, run: str) -> list[dict[str, Any]]:
    return [json.loads(row["leaf"]) for row in platform.kernel.store.all("entries_of_run", run=run, kind="memory")]


async def test_what_one_item_writes_the_others_read() -> None:
    async with Rehearsal() as platform:
        one, two = await items(platform, 2)
        assert await one.memory("seen", Seen).read() is None
        await one.memory("seen", Seen).update(add, "Acme")
        assert await one.memory("seen", Seen).read() == Seen(names=["Acme"])
        assert await two.memory("seen", Seen).read() == Seen(names=["Acme"])


async def test_the_memory_of_an_item_is_its_own() -> None:
    async with Rehearsal() as platform:
        one, two = await items(platform, 2)
        await one.memory("seen", Seen, scope="item").update(add, "Acme")
        assert await one.memory("seen", Seen, scope="item").read() == Seen(names=["Acme"])
        assert await two.memory("seen", Seen, scope="item").read() is None
        assert await one.memory("seen", Seen).read() is None


async def test_the_memory_of_a_run_is_not_that_of_another_run() -> None:
    async with Rehearsal() as platform:
        (one,), (other,) = await items(platform), await items(platform)
        await one.memory("seen", Seen).update(add, "Acme")
        assert await other.memory("seen", Seen).read() is None


async def test_a_thousand_updates_at_once_are_all_made_and_none_is_torn() -> None:
    async with Rehearsal() as platform:
        group = await items(platform, 10)
        seen = [item.memory("seen", Seen) for item in group]
        await asyncio.gather(*(seen[n % 10].update(add, f"name {n}") for n in range(1000)))
        value = await (await items(platform, 1, group[0]._origin.run))[0].memory("seen", Seen).read()
        assert value is not None
        assert sorted(value.names) == sorted(f"name {n}" for n in range(1000))
        told = entries(platform, group[0]._origin.run)
        assert [entry["version"] for entry in told] == list(range(1, 1001))
        assert platform.verify().ok


async def test_the_same_update_of_an_item_is_made_once_however_often_it_is_asked_for() -> None:
    async with Rehearsal() as platform:
        one, two = await items(platform, 2)
        total = one.memory("total", int)
        await asyncio.gather(total.update(count, 5), total.update(count, 5), total.update(count, 7))
        await total.update(count, amount=7)  # said in another way it is another update
        await again(one).memory("total", int).update(count, 5)
        await two.memory("total", int).update(count, 5)
        assert await two.memory("total", int).read() == 5 + 7 + 7 + 5


async def test_an_item_that_begins_again_reads_what_it_read() -> None:
    async with Rehearsal() as platform:
        one, two = await items(platform, 2)
        assert await one.memory("total", int).read() is None
        await two.memory("total", int).update(count, 1)
        assert await one.memory("total", int).read() is None, "an item sees one value until it writes itself"
        await one.memory("total", int).update(count, 10)
        assert await one.memory("total", int).read() == 11
        await two.memory("total", int).update(count, 100)

        retold = again(one)
        assert await retold.memory("total", int).read() is None
        await retold.memory("total", int).update(count, 10)
        assert await retold.memory("total", int).read() == 11
        assert await again(two).memory("total", int).read() == 111


async def test_a_resumed_run_pays_for_nothing_twice_whatever_the_others_have_written_since() -> None:
    async def story(document: Document, do: Item) -> Told:
        seen = do.memory("seen", Seen)
        known = await seen.read()
        told = await do(teller, f"{document.id} knows {known.names if known else 'nobody'}")
        await seen.update(add, document.id)
        if document.id == "d000":
            await do(teller, f"{document.id} fails")
        return told

    rehearsal = Rehearsal(teller=lambda call: "{}" if "fails" in call.messages[-1].content else '{"text": "ok"}')
    async with rehearsal as platform:
        first = await platform.run(flow(story), documents(8))
        assert first.items["quarantined"] == 1
        asked = rehearsal.requests("teller")
        rehearsal.reply("teller", '{"text": "ok"}')
        await platform.prepare_resume(first.run, quarantined=True)
        second = await platform.work(first.run, flow=flow(story))
        assert second.items == {"total": 8, "done": 8, "quarantined": 0}
        assert rehearsal.requests("teller") == asked + 1, "only what was refused is asked again"
        assert len(entries(platform, first.run)) == 8


async def test_what_was_read_is_part_of_what_a_step_asks() -> None:
    async def story(document: Document, do: Item) -> Told:
        seen = do.memory("seen", Seen)
        await seen.update(add, do.options["name"])
        known = await seen.read()
        assert known is not None
        return await do(teller, str(known.names))

    async with Rehearsal(teller='{"text": "ok"}') as platform:

        async def run(name: str) -> RunSummary:
            identity = await platform.start(flow(story), documents(1), options={"name": name})
            return await platform.work(identity, flow=flow(story))

        assert (await run("Acme")).calls == 1
        assert (await run("Acme")).calls == 0, "the same content, the same question"
        assert (await run("Bolt")).calls == 1


async def test_every_write_is_an_entry_that_says_no_word_of_the_value() -> None:
    async with Rehearsal() as platform:
        (one,) = await items(platform)
        await one.memory("seen", Seen).update(add, "Miss Marple")
        await one.memory("seen", Seen, scope="item").update(add, "Poirot")
        told = entries(platform, one._origin.run)
        assert [(each["name"], each["scope"], each["version"]) for each in told] == [
            ("seen", "run", 1),
            ("seen", "item", 1),
        ]
        assert len({each["digest"] for each in told}) == 2
        assert "Marple" not in json.dumps(told)
        row = platform.kernel.store.one("memory", tenant="default", run=one._origin.run, owner="", name="seen")
        assert row is not None
        assert b"Marple" not in row["sealed"]
        assert platform.verify().ok


async def test_values_that_nobody_has_read_are_not_kept() -> None:
    async with Rehearsal() as platform:
        one, two = await items(platform, 2)
        run, total = one._origin.run, one.memory("total", int)

        def bodies() -> int:
            with platform.kernel.store.snapshot():
                newest = platform.kernel.store.one("memory", tenant="default", run=run, owner="", name="total")
            assert newest is not None
            kept = [platform.kernel.store.one("body", id=at) for at in range(1, newest["body"] + 1)]
            return sum(row is not None for row in kept)

        await total.update(count, 1)
        before = bodies()
        for amount in range(2, 6):
            await total.update(count, amount)
        assert bodies() == before
        assert await two.memory("total", int).read() == 15
        await total.update(count, 6)
        assert bodies() == before + 1, "what somebody has read stays"


def count_one(total: int | None) -> int:
    return count(total, 1)


@pytest.mark.parametrize(
    "change", [lambda total: 1, partial(count, amount=1), count_one.__get__(1)], ids=["lambda", "partial", "method"]
)
async def test_an_update_without_a_name_of_its_own_is_refused(change: Any) -> None:
    async with Rehearsal() as platform:
        (one,) = await items(platform)
        with pytest.raises(ConfigError, match="an update is known by its function's name"):
            await one.memory("total", int).update(change)


async def test_a_closure_is_refused_because_its_name_does_not_say_what_it_does() -> None:
    async with Rehearsal() as platform:
        (one,) = await items(platform)
        amount = 7

        def closed(total: int | None) -> int:
            return amount

        with pytest.raises(ConfigError, match="Give it a function with a name, and what it needs as arguments"):
            await one.memory("total", int).update(closed)


async def test_what_does_not_fit_its_type_is_refused_and_nothing_is_written() -> None:
    async with Rehearsal() as platform:
        (one,) = await items(platform)
        total = one.memory("total", int)
        with pytest.raises(HandoffRefused, match="memory total"):
            await total.update(wrong)
        with pytest.raises(ValueError, match="by design"):
            await total.update(fail, "by design")
        with pytest.raises(HandoffRefused, match="cannot be written as JSON"):
            await total.update(count, object())  # type: ignore[arg-type]
        with pytest.raises(HandoffRefused, match="larger than the 1,048,576 of a memory"):
            await one.memory("text", str).update(grow, MAX_BYTES)
        assert await total.read() is None
        assert entries(platform, one._origin.run) == []
        await one.memory("text", str).update(grow, 5)
        with pytest.raises(HandoffRefused, match="valid integer"):
            await one.memory("text", int).read()


async def test_one_update_that_fails_does_not_take_the_others_with_it() -> None:
    async with Rehearsal() as platform:
        (one,) = await items(platform)
        total = one.memory("total", int)
        done = await asyncio.gather(
            total.update(count, 1), total.update(fail, "no"), total.update(count, 2), return_exceptions=True
        )
        assert [type(each) for each in done] == [type(None), ValueError, type(None)]
        assert await total.read() == 3


@pytest.mark.parametrize("name", ["", "Acme Ltd", "Ümlaut", "x" * 65, "1st"])
async def test_a_name_that_could_hold_words_of_a_document_is_refused(name: str) -> None:
    async with Rehearsal() as platform:
        (one,) = await items(platform)
        with pytest.raises(ConfigError, match="no name of a memory"):
            one.memory(name, int)


async def test_while_planning_nothing_is_written_and_what_was_not_read_yet_is_not_known() -> None:
    async with Rehearsal() as platform:
        (one,) = await items(platform)
        plan = Item(one._kernel, one._origin, one._subject, None, options={}, is_plan=True)
        await plan.memory("total", int).update(count, 1)
        assert entries(platform, one._origin.run) == []
        with pytest.raises(NeedsCall):
            await plan.memory("total", int).read()


async def test_a_killed_run_writes_nothing_more() -> None:
    async with Rehearsal() as platform:
        (one,) = await items(platform)
        await platform.kernel.switches.trip(f"run:{one._origin.run}", cause="test", actor="test")
        with pytest.raises(SwitchTripped):
            await one.memory("total", int).update(count, 1)
        with pytest.raises(SwitchTripped):
            await one.memory("total", int).read()


async def test_an_update_whose_caller_gives_up_is_made_at_most_once() -> None:
    async with Rehearsal() as platform:
        (one,) = await items(platform)
        total = one.memory("total", int)
        doing = asyncio.ensure_future(total.update(count, 1))
        await asyncio.sleep(0)
        doing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await doing
        await total.update(count, 1)
        assert await total.read() == 1
