"""Agents with tools: the model asks, the calls are steps, the conversation is bounded, replayed and paid for once."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from twolane import Document, Item, Platform, Prompt, RunSummary, Workflow, agent, tool, workflow
from twolane.batch import run as runs
from twolane.batch.conversation import MAX_TURNS
from twolane.batch.diff import compare
from twolane.domain.records import ModelCall
from twolane.errors import ConfigError
from twolane.testing import Rehearsal

Said = str | Sequence[tuple[str, object]]
"""What the model says in one turn: a text, or calls as (name, arguments)."""


class Verdict(BaseModel):
    text: str


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


def results_in(call: ModelCall) -> list[str]:
    """What the model was told that its calls gave."""
    return [str(message["content"]) for message in call.raw_messages or () if message["role"] == "tool"]


def told(said: Said) -> str:
    if isinstance(said, str):
        return said
    return json.dumps({"tool_calls": [{"name": name, "arguments": arguments} for name, arguments in said]})


def by_turn(*said: Said) -> Callable[[ModelCall], str]:
    return lambda call: told(said[min(turns(call), len(said) - 1)])


@pytest.fixture(autouse=True)
def nothing_called() -> None:
    CALLED.clear()


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


async def test_a_model_calls_tools_and_replies_with_what_they_gave() -> None:
    rehearsal = Rehearsal(clerk=by_turn([("rate_of", {"country": "PL"}), ("shout", {"words": "vat"})], REPLY))
    async with rehearsal as platform:
        summary = await run(platform)
        assert (summary.status, text_of(summary)) == ("done", "23 %")
        made = steps(platform, summary)
        assert (made[0], made[-1]) == (("chat", "clerk", "ok"), ("chat", "clerk", "ok"))
        assert set(made[1:-1]) == {("tool", "rate_of", "ok"), ("tool", "shout", "ok")}
        first, second = rehearsal.calls("clerk")
        assert first.raw_messages is None
        names = [each["function"]["name"] for each in first.extras["tools"]]  # type: ignore[attr-defined]
        assert names == ["rate_of", "shout"]
        assert second.raw_messages is not None
        assert [message["role"] for message in second.raw_messages] == [
            "system", "user", "user", "assistant", "tool", "tool",
        ]  # fmt: skip
        assert [message["content"] for message in second.raw_messages[-2:]] == ["23", '"VAT"']
        assert [message["tool_call_id"] for message in second.raw_messages[-2:]] == ["call_0", "call_1"]
        assert platform.kernel.store.all("reservations") == []
        assert platform.verify().ok


async def test_the_next_run_walks_the_same_conversation_from_memos() -> None:
    rehearsal = Rehearsal(clerk=by_turn([("shout", {"words": "vat"})], REPLY))
    async with rehearsal as platform:
        await run(platform)
        second = await run(platform)
        assert (second.calls, second.reused, rehearsal.requests("clerk"), CALLED) == (0, 3, 2, ["vat"])


async def test_a_tool_that_is_not_pure_is_called_by_each_run_and_the_same_result_asks_nothing_new() -> None:
    rehearsal = Rehearsal(clerk=by_turn([("rate_of", {"country": "PL"})], REPLY))
    async with rehearsal as platform:
        await run(platform)
        await run(platform)
        assert (rehearsal.requests("clerk"), CALLED) == (2, ["PL 2026", "PL 2026"])


async def test_an_item_that_begins_again_pays_for_no_turn_twice() -> None:
    rehearsal = Rehearsal(clerk=by_turn([("rate_of", {"country": "PL"})], "{}"))
    async with rehearsal as platform:
        summary = await run(platform)
        assert (summary.items["quarantined"], rehearsal.requests("clerk")) == (1, 3)
        rehearsal.reply("clerk", by_turn([("rate_of", {"country": "PL"})], REPLY))
        await platform.prepare_resume(summary.run, quarantined=True)
        again = await platform.work(summary.run, flow=judge)
        assert (again.items["done"], rehearsal.requests("clerk"), CALLED) == (1, 4, ["PL 2026"])


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
async def test_a_call_it_may_not_make_is_told_once_and_then_the_handoff_is_refused(calls: Said, words: str) -> None:
    rehearsal = Rehearsal(clerk=by_turn(calls, REPLY))
    async with rehearsal as platform:
        summary = await run(platform)
        assert (text_of(summary), CALLED) == ("23 %", [])
        assert steps(platform, summary) == [("chat", "clerk", "refused"), ("chat", "clerk", "ok")]
        results = [
            str(message["content"])
            for message in rehearsal.calls("clerk")[-1].raw_messages or ()
            if message["role"] == "tool"
        ]
        assert words in results[-1]
        rehearsal.reply("clerk", by_turn(calls))
        other = workflow(version="1", name="judge")(again)
        refused = await run(platform, other)
        assert refused.items["quarantined"] == 1
        assert problem(platform, refused).startswith("clerk: /tool_calls/")
        assert CALLED == []


async def again(document: Document, do: Item) -> Verdict:
    return await do(clerk, Document(document.id, "Another contract."))


async def test_good_calls_of_a_turn_with_a_bad_one_are_not_made() -> None:
    rehearsal = Rehearsal(clerk=by_turn([("shout", {"words": "vat"}), ("remove", {})], REPLY))
    async with rehearsal as platform:
        await run(platform)
        assert CALLED == []
        results = [
            message["content"]
            for message in rehearsal.calls("clerk")[-1].raw_messages or ()
            if message["role"] == "tool"
        ]
        assert results[0] == "not called, because another call of this turn was refused"


async def test_a_model_that_never_replies_comes_to_an_end() -> None:
    rehearsal = Rehearsal(clerk=lambda call: told([("shout", {"words": f"turn {turns(call)}"})]))
    async with rehearsal as platform:
        summary = await run(platform)
        assert problem(platform, summary) == f"clerk: /: it came to no end within {MAX_TURNS} turns"
        assert rehearsal.requests("clerk") == MAX_TURNS


async def test_a_reply_that_does_not_fit_is_repaired_within_the_conversation() -> None:
    def once_wrong(call: ModelCall) -> str:
        if turns(call) == 0:
            return told([("shout", {"words": "vat"})])
        last = str((call.raw_messages or ())[-1]["content"])
        return REPLY if "An earlier reply was refused for these problems" in last else '{"text": 7}'

    rehearsal = Rehearsal(clerk=once_wrong)
    async with rehearsal as platform:
        summary = await run(platform)
        assert text_of(summary) == "23 %"
        assert [status for _, _, status in steps(platform, summary)] == ["ok", "ok", "refused", "ok"]
        assert '7 is not of type "string"' in str((rehearsal.calls("clerk")[-1].raw_messages or ())[-1]["content"])


async def test_a_tool_that_fails_refuses_the_handoff_in_its_own_name() -> None:
    rehearsal = Rehearsal(clerk=by_turn([("rate_of", {"country": "XX"})], REPLY))
    async with rehearsal as platform:
        assert problem(platform, await run(platform)).startswith("rate_of: /: it raised KeyError")


async def test_the_allowance_covers_the_whole_conversation() -> None:
    dear = agent(returns=Verdict, tools=[shout], allowance="$0.0002", name="clerk")(clerk.prompt)

    async def story(document: Document, do: Item) -> Verdict:
        return await do(dear, document)

    rehearsal = Rehearsal(clerk=lambda call: told([("shout", {"words": f"turn {turns(call)} " + "x" * 200})]))
    async with rehearsal as platform:
        summary = await run(platform, workflow(version="1", name="judge")(story))
        assert "allowance:clerk: budget" in problem(platform, summary)
        assert 0 < rehearsal.requests("clerk") < MAX_TURNS


async def test_an_agent_without_tools_cannot_be_talked_into_calling_one() -> None:
    plain: Any = agent(returns=Verdict, repairs=0, name="clerk")(clerk.prompt)

    async def story(document: Document, do: Item) -> Verdict:
        found: Verdict = await do(plain, document)
        return found

    rehearsal = Rehearsal(clerk=by_turn([("shout", {"words": "vat"})]))
    async with rehearsal as platform:
        summary = await run(platform, workflow(version="1", name="judge")(story))
        assert (summary.items["quarantined"], CALLED) == (1, [])
        assert rehearsal.calls("clerk")[0].extras == {}


def test_tools_of_an_agent_have_names_of_their_own_that_a_model_can_be_told() -> None:
    named = tool(name="rate of")(rate_of.function)
    for tools in ([rate_of, rate_of], [named]):
        with pytest.raises(ConfigError, match="stands twice, or is not made of"):
            agent(returns=Verdict, tools=tools)


# ── planned, forked, asked again ──


async def test_a_conversation_is_planned_forked_and_asked_again_like_any_step() -> None:
    rehearsal = Rehearsal(clerk=by_turn([("rate_of", {"country": "PL"})], REPLY))
    async with rehearsal as platform:
        first = (await run(platform)).run
        plan = await platform.plan_run(first, flow=judge)
        assert (plan.calls, {name: each.reused for name, each in plan.agents.items()}) == (
            0,
            {"clerk": 2, "rate_of": 1},
        )
        fork = await platform.work(await platform.fork(first, flow=judge), flow=judge)
        assert (fork.calls, CALLED) == (0, ["PL 2026"])
        told = compare(platform.kernel, first, fork.run)
        assert {name: (each.same, each.changed) for name, each in told.agents.items()} == {
            "clerk": (1, 0), "rate_of": (1, 0),
        }  # fmt: skip
        again = await platform.plan_run(first, from_agent="clerk", flow=judge)
        assert again.agents["clerk"].why == {
            "asked again on purpose": 1,
            "unknown until a step before it has answered": 1,
        }
        await platform.prepare_resume(first, from_agent="clerk")
        await platform.work(first, flow=judge)
        assert (rehearsal.requests("clerk"), CALLED) == (4, ["PL 2026"])

        @workflow(version="1", name="judge")
        async def with_one_tool(document: Document, do: Item) -> Verdict:
            return await do(replace(clerk, tools=(rate_of,)), document)

        plan = await platform.plan_run(fork.run, flow=with_one_tool)
        assert next(iter(plan.agents["clerk"].why)).startswith("its tools changed")
