"""Fix one agent, pay for one agent: a run made again after each kind of change, counted at the upstream."""

from __future__ import annotations

import json
import time
from collections import Counter
from dataclasses import replace

import pytest
from pydantic import BaseModel

from twolane import Agent, Document, Item, Platform, Prompt, RunSummary, Workflow, agent, workflow
from twolane.domain.records import ModelCall
from twolane.testing import Rehearsal, Reply

AGENTS = ("planner", "extractor", "verifier", "synthesizer")
EVERY = 20
"""The changed verifier says something new about every 20th item."""


class Note(BaseModel):
    text: str


@agent(returns=Note)
def planner(contract: Document) -> Prompt:
    return Prompt(system="You plan.", user="What is in it?", context=(contract,), max_tokens=50)


@agent(returns=Note)
def extractor(contract: Document, plan: Note) -> Prompt:
    return Prompt(system="You extract.", user=plan.text, context=(contract,), max_tokens=50)


@agent(returns=Note)
def verifier(facts: Note) -> Prompt:
    return Prompt(system="You verify.", user=facts.text, max_tokens=50)


@agent(returns=Note)
def synthesizer(facts: Note, findings: Note) -> Prompt:
    return Prompt(system="You sum up.", user=f"{facts.text}: {findings.text}", max_tokens=50)


STRICTER = verifier.revised(lambda facts: replace(verifier(facts), system="You verify strictly."))


def build(verifier: Agent[[Note], Note] = verifier) -> Workflow:
    @workflow(version="1", name="audit")
    async def audit(contract: Document, do: Item) -> Note:
        plan = await do(planner, contract)
        facts = await do(extractor, contract, plan)
        return await do(synthesizer, facts, await do(verifier, facts))

    return audit


def documents(count: int, *, changed: int | None = None) -> list[Document]:
    return [
        Document(f"c{number}", f"Price {number}{' and more' if number == changed else ''}") for number in range(count)
    ]


def quoted(call: ModelCall) -> str:
    return json.dumps({"text": call.messages[1].content.split("\n")[1]})


def judged(call: ModelCall) -> str:
    number = int(call.messages[-1].content.split()[1])
    is_new = "strictly" in call.messages[0].content and number % EVERY == 0
    return json.dumps({"text": "a breach" if is_new else "none"})


SCRIPT: dict[str, Reply] = {
    "planner": '{"text": "price"}',
    "extractor": quoted,
    "verifier": judged,
    "synthesizer": '{"text": "summed up"}',
}


class Counted:
    """What reached each agent's upstream since the last look, and how long it took."""

    def __init__(self, rehearsal: Rehearsal) -> None:
        self._rehearsal, self._seen = rehearsal, Counter[str]()

    async def run(self, platform: Platform, what: str, flow: Workflow, items: list[Document]) -> dict[str, int]:
        began = time.monotonic()
        planned = (await platform.plan(flow, items)).calls
        walked = time.monotonic()
        summary: RunSummary = await platform.run(flow, items)
        ended = time.monotonic()
        now = Counter({name: self._rehearsal.requests(name) for name in AGENTS})
        fresh, self._seen = dict(now - self._seen), now
        assert (summary.status, summary.items["done"]) == ("done", len(items))
        assert summary.calls == sum(fresh.values())
        print(
            f"{what}: calls {fresh or 0}, reused {summary.reused}, planned {planned}; "
            f"plan {walked - began:.1f} s, run {ended - walked:.1f} s"
        )
        return fresh


@pytest.mark.parametrize(
    "count", [200, pytest.param(10_000, marks=[pytest.mark.long, pytest.mark.timeout(1800)], id="10000")]
)
async def test_what_did_not_change_is_not_called(count: int) -> None:
    rehearsal = Rehearsal(SCRIPT, slots=32)
    async with rehearsal as platform:
        counted = Counted(rehearsal)
        assert await counted.run(platform, "first run", build(), documents(count)) == dict.fromkeys(AGENTS, count)
        assert await counted.run(platform, "nothing changed", build(), documents(count)) == {}
        fixed = await counted.run(platform, "one agent changed", build(STRICTER), documents(count))
        assert fixed == {"verifier": count, "synthesizer": count // EVERY}
        one = await counted.run(platform, "one item changed", build(STRICTER), documents(count, changed=7))
        assert one == dict.fromkeys(AGENTS, 1)
        assert await counted.run(platform, "nothing changed", build(STRICTER), documents(count, changed=7)) == {}
        assert platform.verify().ok
