"""Documents are data: whatever a document says, the run is the one that its harmless twin would have."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from pydantic import BaseModel
from tests.integration.injections import pairs

from twolane import Document, Item, Platform, Prompt, Quote, agent, tool, workflow
from twolane.config import Config
from twolane.domain.document import as_data
from twolane.domain.records import ModelCall
from twolane.testing import Rehearsal, Reply

PAIRS = pairs()
BYSTANDERS = [Document(f"bystander {number}", f"The price is {number} EUR.\nSigned.") for number in range(5)]
SYSTEMS = {
    "planner": "You plan.",
    "extractor": "You quote.",
    "verifier": "You verify.",
}


class Plan(BaseModel):
    topics: list[str]


class Facts(BaseModel):
    price: Quote


class Findings(BaseModel):
    breaches: str


class Report(BaseModel):
    plan: Plan
    price: str
    weight: int
    breaches: str


@agent(returns=Plan, route="light")
def planner(contract: Document) -> Prompt:
    return Prompt(system=SYSTEMS["planner"], user="What is in it?", context=(contract,))


@agent(returns=Facts, route="heavy", allowance="$0.01")
def extractor(contract: Document, plan: Plan) -> Prompt:
    return Prompt(system=SYSTEMS["extractor"], user=", ".join(plan.topics), context=(contract,))


@agent(returns=Findings, route="heavy")
def verifier(price: str, contract: Document) -> Prompt:
    return Prompt(system=SYSTEMS["verifier"], user="Is it a breach?", context=(contract, Document("price", price)))


@tool(pure=True)
async def weigh(text: str) -> int:
    return len(text.encode())


def add(total: int | None, weight: int) -> int:
    return (total or 0) + weight


@workflow(version="1")
async def audit(contract: Document, do: Item) -> Report:
    plan = await do(planner, contract)
    facts = await do(extractor, contract, plan)
    weight = await do(weigh, contract.text)
    await do.memory("weight", int).update(add, weight)
    findings = await do(verifier, facts.price.text, contract)
    return Report(plan=plan, price=facts.price.text, weight=weight, breaches=findings.breaches)


def price_of(call: ModelCall) -> str:
    (found,) = re.findall(r"The price is \d+ EUR", call.messages[1].content)
    return json.dumps({"price": found})


SCRIPT: dict[str, Reply] = {"planner": '{"topics": ["price"]}', "extractor": price_of, "verifier": '{"breaches": "-"}'}


class Seen(NamedTuple):
    """What a run did, without what is drawn at random, measured, or a digest of the text itself."""

    steps: list[dict[str, Any]]
    items: dict[str, str]
    budgets: list[dict[str, Any]]
    switches: int
    reports: dict[str, Any]
    calls: list[ModelCall]
    entries: list[str]


UNLIKE = ("step", "run", "ttft_us", "total_us", "queued_us", "input_digest", "output_digest", "leaf")


async def watch(documents: Sequence[Document]) -> Seen:
    rehearsal = Rehearsal(SCRIPT)
    async with rehearsal as platform:
        summary = await platform.run(audit, [*documents, *BYSTANDERS], budget="$5")
        assert summary.status == "done"
        assert platform.verify().ok
        return Seen(
            steps=in_order(platform, summary.run),
            items={each["name"]: each["status"] for each in rows_of(platform, summary.run)},
            budgets=[dict(row) | {"scope": "-"} for row in platform.kernel.store.all("all_spending")],
            switches=len(platform.kernel.store.all("switches")),
            reports=reports_of(Path(summary.reports)),
            calls=[call for name in SYSTEMS for call in rehearsal.calls(name)],
            entries=kinds_of(platform),
        )


def rows_of(platform: Platform, run: str) -> list[Mapping[str, Any]]:
    return list(platform.kernel.store.all("items", run=run, first=0, last=10_000))


def in_order(platform: Platform, run: str) -> list[dict[str, Any]]:
    steps = [
        {name: value for name, value in dict(row).items() if name not in UNLIKE}
        for row in platform.kernel.store.all("steps_of_run", run=run)
    ]
    return sorted(steps, key=lambda step: (step["item"], step["agent"]))


def reports_of(folder: Path) -> dict[str, Any]:
    read = [json.loads(path.read_text()) for path in folder.glob("*.json")]
    return {each["item"]: each["result"] for each in read}


def kinds_of(platform: Platform) -> list[str]:
    entries = [json.loads(row["leaf"]) for row in platform.kernel.store.all("entries", first=0, count=100_000)]
    return sorted(each["kind"] for each in entries)


def test_the_corpus_is_large_and_varied_and_its_twins_are_of_equal_size() -> None:
    assert len(PAIRS) >= 50
    assert len({pair.name.partition("-")[2] for pair in PAIRS}) == len(PAIRS)
    for pair in PAIRS:
        assert pair.attack != pair.twin
        assert len(pair.attack.encode()) == len(pair.twin.encode())


@pytest.mark.timeout(180)
async def test_no_document_changes_a_plan_a_model_a_route_a_budget_a_switch_or_another_items_record() -> None:
    attacked = await watch([Document(pair.name, pair.attack) for pair in PAIRS])
    harmless = await watch([Document(pair.name, pair.twin) for pair in PAIRS])
    assert len(attacked.steps) == 4 * (len(PAIRS) + len(BYSTANDERS))
    assert without_tokens(attacked.steps) == without_tokens(harmless.steps)
    assert set(attacked.items.values()) == {"done"}
    assert (attacked.items, attacked.switches, attacked.entries) == (harmless.items, 0, harmless.entries)
    assert attacked.reports == harmless.reports
    assert [each["held_pico"] for each in attacked.budgets] == [0]
    by_name = {step["item"]: step for step in attacked.steps if step["agent"] == "planner"}
    for step in harmless.steps:
        if str(step["item"]).startswith("bystander"):
            assert step in attacked.steps, "not even its cost"
    assert len(by_name) == len(PAIRS) + len(BYSTANDERS)


def without_tokens(steps: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A mark in a text gets a character more, so that it is none: the text's own tokens may differ by that."""
    return [
        {name: value for name, value in step.items() if name not in ("input_tokens", "cost_pico")} for step in steps
    ]


async def test_documents_stand_in_the_middle_message_alone_each_in_one_mark_that_it_cannot_end() -> None:
    seen = await watch([Document(pair.name, pair.attack) for pair in PAIRS])
    texts = {pair.attack for pair in PAIRS} | {document.text for document in BYSTANDERS}
    users = {"What is in it?", "price", "Is it a breach?"}
    assert len(seen.calls) == 3 * len(texts)
    found = set()
    for call in seen.calls:
        system, context, user = call.messages
        assert (system.role, context.role, user.role) == ("system", "user", "user")
        assert system.content in SYSTEMS.values()
        assert user.content in users
        documents = 2 if system.content == SYSTEMS["verifier"] else 1
        assert len(re.findall(r"<\s*document", context.content, re.IGNORECASE)) == documents
        assert len(re.findall(r"<\s*/\s*document", context.content, re.IGNORECASE)) == documents
        first, _, rest = context.content.partition("\n")
        assert re.fullmatch(r'<document id="[^"<>\n]*">', first)
        body = rest.partition("\n</document>")[0]
        found |= {text for text in texts if text.replace("\u200b", "") == body.replace("\u200b", "")}
        assert (call.temperature, call.extras, call.raw_messages) == (0.0, {}, None)
    assert found == texts, "each as it was, but for marks that were made harmless"


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair.name)
def test_a_name_that_gives_orders_stays_a_name(pair: Any) -> None:
    wrapped = as_data(Document(pair.attack, "text"))
    assert re.fullmatch(r'<document id="[^"<>\n]*">\ntext\n</document>', wrapped)


@pytest.mark.timeout(180)
async def test_the_built_in_model_and_the_built_in_flow_take_no_orders_either(tmp_path: Path) -> None:
    told, named = [], ("item", "agent", "upstream", "model", "attempt", "cost_pico", "lane")
    for side in ("attack", "twin"):
        (tmp_path / side).mkdir()
        async with await Platform.open(Config(store=f"sqlite:{tmp_path / side / 'twolane.db'}")) as platform:
            given = [Document(pair.name, getattr(pair, side)) for pair in PAIRS]
            summary = await platform.run("contract-audit", given, budget="$1")
            steps = [
                # Which of two items asks first what both ask, and so which one reuses the other's answer, is chance.
                [row["status"] in ("ok", "reused"), *(row[name] for name in named)]
                for row in platform.kernel.store.all("steps_of_run", run=summary.run)
            ]
            kept = {each["name"]: each["status"] for each in rows_of(platform, summary.run)}
            told.append((sorted(steps), kept, len(platform.kernel.store.all("switches"))))
    assert told[0] == told[1]


def test_a_mark_of_a_million_spaces_is_searched_in_no_time() -> None:
    """Anything but one pass would take hours here; the suite's own timeout is the limit."""
    for text in ("<" + " " * 1_000_000, "< " * 500_000, "</" * 500_000, "<\n" * 500_000 + "document"):
        as_data(Document("a", text))
