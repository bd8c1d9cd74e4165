"""Agents with tools: the model asks, the calls are steps, the conversation is bounded, replayed and paid for once."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from twolane import Document, Item, Platform, Prompt, RunSummary, Workflow, agent, tool, workflow
from twolane.batch import run as runs
from twolane.batch.conversation import MAX_TURNS
from twolane.config import Config, PriceTable, RouteSection, UpstreamSection
from twolane.domain.records import ModelCall, Usage
from twolane.errors import ConfigError
from twolane.models.sse import DONE, Chunks, MadeStream

Said = str | Sequence[tuple[str, object]]
"""What the model says in one turn: a text, or calls as (name, arguments)."""


class Verdict(BaseModel):
    text: str


class Scripted:
    """A model that says, at each turn of a conversation, what the script says for as many messages as there are."""

    name = "scripted"

    def __init__(self, script: Callable[[ModelCall], Said]) -> None:
        self.script = script
        self.calls: list[ModelCall] = []

    async def open(self, call: ModelCall) -> MadeStream:
        self.calls.append(call)
        return MadeStream(lambda stream: self._blocks(call))

    async def aclose(self) -> None:
        pass

    async def _blocks(self, call: ModelCall) -> AsyncIterator[bytes]:
        said, chunks = self.script(call), Chunks(call.model)
        if isinstance(said, str):
            yield chunks.chunk(said, role="assistant")
            yield chunks.chunk(finish_reason="stop")
        else:
            for at, (name, arguments) in enumerate(said):
                text = arguments if isinstance(arguments, str) else json.dumps(arguments)
                function = {"name": name, "arguments": text}
                delta = {"tool_calls": [{"index": at, "id": f"id{at}", "type": "function", "function": function}]}
                yield chunks._event([{"index": 0, "delta": delta}])
            yield chunks.chunk(finish_reason="tool_calls")
        yield chunks.usage(Usage(100, 10)) + DONE


CALLED: list[str] = []


@tool()
async def rate_of(country: str, year: int = 2026) -> int:
    """The rate of VAT of a country."""
    CALLED.append(f"{country} {year}")
    return {"PL": 23, "DE": 19}[country]


@tool(pure=True)
async def shout(words: str) -> str:
    CALLED.append(words)
    return words.upper()


@agent(returns=Verdict, tools=[rate_of, shout], allowance="$0.05")
def clerk(document: Document) -> Prompt:
    return Prompt(system="Judge.", user="What is the rate?", context=(document,), max_tokens=50)


@workflow(version="1")
async def judge(document: Document, do: Item) -> Verdict:
    return await do(clerk, document)


def turns(call: ModelCall) -> int:
    """How many turns the model had before this one."""
    return sum(message["role"] == "assistant" for message in call.raw_messages or ())


def by_turn(*said: Said) -> Callable[[ModelCall], Said]:
    return lambda call: said[min(turns(call), len(said) - 1)]


@pytest.fixture(autouse=True)
def nothing_called() -> None:
    CALLED.clear()


@asynccontextmanager
async def opened(folder: Path, model: Scripted) -> AsyncIterator[Platform]:
    section = UpstreamSection(kind="rehearsal", price=PriceTable(input="1", output="2"), retries=0)
    config = Config(
        store=f"sqlite:{folder / 'twolane.db'}",
        upstream={"scripted": section},
        route={"auto": RouteSection(light="scripted")},
    )
    async with await Platform.open(config, models={"scripted": model}) as platform:
        yield platform


async def run(platform: Platform, flow: Workflow = judge) -> RunSummary:
    return await platform.run(flow, [Document("d0", "A contract.")])


def steps(platform: Platform, summary: RunSummary) -> list[tuple[str, str, str]]:
    rows = platform.kernel.store.all("steps_of_run", run=summary.run)
    return [(row["kind"], row["agent"], row["status"]) for row in rows]


def text_of(summary: RunSummary) -> str:
    return str(json.loads((Path(summary.reports) / "d0.json").read_text())["result"]["text"])


def problem(platform: Platform, summary: RunSummary) -> str:
    (row,) = platform.kernel.store.all("quarantined", run=summary.run)
    (found,) = runs.problems_of(platform.kernel, row)
    return f"{row['agent']}: {found}"


REPLY = '{"text": "23 %"}'


async def test_a_model_calls_tools_and_replies_with_what_they_gave(tmp_path: Path) -> None:
    model = Scripted(by_turn([("rate_of", {"country": "PL"}), ("shout", {"words": "vat"})], REPLY))
    async with opened(tmp_path, model) as platform:
        summary = await run(platform)
        assert (summary.status, text_of(summary)) == ("done", "23 %")
        told = steps(platform, summary)
        assert (told[0], told[-1]) == (("chat", "clerk", "ok"), ("chat", "clerk", "ok"))
        assert set(told[1:-1]) == {("tool", "rate_of", "ok"), ("tool", "shout", "ok")}
        first, second = model.calls
        assert first.raw_messages is None
        names = [each["function"]["name"] for each in first.extras["tools"]]  # type: ignore[attr-defined]
        assert names == ["rate_of", "shout"]
        assert second.raw_messages is not None
        assert [message["role"] for message in second.raw_messages] == [
            "system", "user", "user", "assistant", "tool", "tool",
        ]  # fmt: skip
        assert [message["content"] for message in second.raw_messages[-2:]] == ["23", '"VAT"']
        assert [message["tool_call_id"] for message in second.raw_messages[-2:]] == ["id0", "id1"]
        assert summary.cost == "0.00024"
        assert platform.kernel.store.all("reservations") == []
        assert platform.verify().ok


async def test_the_next_run_walks_the_same_conversation_from_memos(tmp_path: Path) -> None:
    model = Scripted(by_turn([("shout", {"words": "vat"})], REPLY))
    async with opened(tmp_path, model) as platform:
        await run(platform)
        second = await run(platform)
        assert (second.calls, second.reused, len(model.calls), CALLED) == (0, 3, 2, ["vat"])


async def test_a_tool_that_is_not_pure_is_called_by_each_run_and_the_same_result_asks_nothing_new(
    tmp_path: Path,
) -> None:
    model = Scripted(by_turn([("rate_of", {"country": "PL"})], REPLY))
    async with opened(tmp_path, model) as platform:
        await run(platform)
        await run(platform)
        assert (len(model.calls), CALLED) == (2, ["PL 2026", "PL 2026"])


async def test_an_item_that_begins_again_pays_for_no_turn_twice(tmp_path: Path) -> None:
    model = Scripted(by_turn([("rate_of", {"country": "PL"})], "{}"))
    async with opened(tmp_path, model) as platform:
        summary = await run(platform)
        assert (summary.items["quarantined"], len(model.calls)) == (1, 3)
        model.script = by_turn([("rate_of", {"country": "PL"})], REPLY)
        await platform.prepare_resume(summary.run, quarantined=True)
        again = await platform.work(summary.run, flow=judge)
        assert (again.items["done"], len(model.calls), CALLED) == (1, 4, ["PL 2026"])


@pytest.mark.parametrize(
    ("calls", "words"),
    [
        ([("remove", {})], "there is no such tool; there are rate_of, shout"),
        ([("rate_of", {})], "its arguments do not fit: country: Field required"),
        ([("rate_of", {"country": "PL", "month": 1})], "its arguments do not fit: month: Extra inputs"),
        ([("rate_of", {"country": "PL", "year": "next"})], "its arguments do not fit: year: Input should be"),
        ([("rate_of", "{broken")], "its arguments do not fit: /: Invalid JSON"),
        ([("shout", {"words": str(at)}) for at in range(17)], "more than 16 calls in one turn"),
    ],
    ids=["unknown", "missing", "more", "type", "no json", "many"],
)
async def test_a_call_it_may_not_make_is_told_once_and_then_the_handoff_is_refused(
    tmp_path: Path, calls: Said, words: str
) -> None:
    model = Scripted(by_turn(calls, REPLY))
    async with opened(tmp_path, model) as platform:
        summary = await run(platform)
        assert (text_of(summary), CALLED) == ("23 %", [])
        assert steps(platform, summary) == [("chat", "clerk", "refused"), ("chat", "clerk", "ok")]
        told = [str(message["content"]) for message in model.calls[-1].raw_messages or () if message["role"] == "tool"]
        assert words in told[-1]
        model.script = by_turn(calls)
        other = workflow(version="1", name="judge")(again)
        refused = await run(platform, other)
        assert refused.items["quarantined"] == 1
        assert problem(platform, refused).startswith("clerk: /tool_calls/")
        assert CALLED == []


async def again(document: Document, do: Item) -> Verdict:
    return await do(clerk, Document(document.id, "Another contract."))


async def test_good_calls_of_a_turn_with_a_bad_one_are_not_made(tmp_path: Path) -> None:
    model = Scripted(by_turn([("shout", {"words": "vat"}), ("remove", {})], REPLY))
    async with opened(tmp_path, model) as platform:
        await run(platform)
        assert CALLED == []
        told = [message["content"] for message in model.calls[-1].raw_messages or () if message["role"] == "tool"]
        assert told[0] == "not called, because another call of this turn was refused"


async def test_a_model_that_never_replies_comes_to_an_end(tmp_path: Path) -> None:
    model = Scripted(lambda call: [("shout", {"words": f"turn {turns(call)}"})])
    async with opened(tmp_path, model) as platform:
        summary = await run(platform)
        assert problem(platform, summary) == f"clerk: /: it came to no end within {MAX_TURNS} turns"
        assert len(model.calls) == MAX_TURNS


async def test_a_reply_that_does_not_fit_is_repaired_within_the_conversation(tmp_path: Path) -> None:
    model = Scripted(by_turn([("shout", {"words": "vat"})], REPLY))

    def once_wrong(call: ModelCall) -> Said:
        told = [str(message["content"]) for message in call.raw_messages or ()]
        if turns(call) == 0:
            return [("shout", {"words": "vat"})]
        return REPLY if "Your reply was refused for these problems" in told[-1] else '{"text": 7}'

    model.script = once_wrong
    async with opened(tmp_path, model) as platform:
        summary = await run(platform)
        assert text_of(summary) == "23 %"
        assert [status for _, _, status in steps(platform, summary)] == ["ok", "ok", "refused", "ok"]
        assert '7 is not of type "string"' in str((model.calls[-1].raw_messages or ())[-1]["content"])


async def test_a_tool_that_fails_refuses_the_handoff_in_its_own_name(tmp_path: Path) -> None:
    model = Scripted(by_turn([("rate_of", {"country": "XX"})], REPLY))
    async with opened(tmp_path, model) as platform:
        assert problem(platform, await run(platform)).startswith("rate_of: /: it raised KeyError")


async def test_the_allowance_covers_the_whole_conversation(tmp_path: Path) -> None:
    dear = agent(returns=Verdict, tools=[shout], allowance="$0.005", name="clerk")(clerk.prompt)

    async def story(document: Document, do: Item) -> Verdict:
        return await do(dear, document)

    model = Scripted(lambda call: [("shout", {"words": f"turn {turns(call)} " + "x" * 200})])
    async with opened(tmp_path, model) as platform:
        summary = await run(platform, workflow(version="1", name="judge")(story))
        assert "allowance:clerk: budget" in problem(platform, summary)
        assert 0 < len(model.calls) < MAX_TURNS


async def test_an_agent_without_tools_cannot_be_talked_into_calling_one(tmp_path: Path) -> None:
    plain: Any = agent(returns=Verdict, repairs=0, name="clerk")(clerk.prompt)

    async def story(document: Document, do: Item) -> Verdict:
        found: Verdict = await do(plain, document)
        return found

    model = Scripted(by_turn([("shout", {"words": "vat"})]))
    async with opened(tmp_path, model) as platform:
        summary = await run(platform, workflow(version="1", name="judge")(story))
        assert (summary.items["quarantined"], CALLED) == (1, [])
        assert model.calls[0].extras == {}


def test_tools_of_an_agent_have_names_of_their_own_that_a_model_can_be_told() -> None:
    named = tool(name="rate of")(rate_of.function)
    for tools in ([rate_of, rate_of], [named]):
        with pytest.raises(ConfigError, match="stands twice, or is not made of"):
            agent(returns=Verdict, tools=tools)
