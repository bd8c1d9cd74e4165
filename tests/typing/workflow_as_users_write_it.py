"""The public API as users write it. Nothing here runs: it is type-checked, and every `type: ignore` must be needed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import assert_type

from pydantic import BaseModel

from twolane import Agent, Document, Item, Platform, Prompt, Quote, RunSummary, Tool, Workflow, agent, tool, workflow
from twolane.testing import Rehearsal


class Plan(BaseModel):
    topics: list[str]


class Facts(BaseModel):
    price: Quote


class Findings(BaseModel):
    breaches: str


@agent(returns=Plan, route="light", allowance="$0.002")
def planner(contract: Document) -> Prompt:
    return Prompt(system="s", user="u", context=(contract,))


@agent(returns=Facts)
def extractor(contract: Document, plan: Plan, *, tone: str = "dry") -> Prompt:
    return Prompt(system=tone, user=", ".join(plan.topics), context=(contract,))


@agent(returns=Findings, repairs=2)
def verifier(facts: Facts) -> Prompt:
    return Prompt(system="s", user=facts.price.text)


def is_priced(facts: Facts, contract: Document, plan: Plan, *, tone: str = "dry") -> None:
    if "EUR" not in facts.price.text:
        raise ValueError("this is no price in euros")


@workflow(version="1")
async def audit(contract: Document, do: Item) -> Findings:
    plan = await do(planner, contract)
    facts = await do(extractor, contract, plan, tone="warm")
    findings = await do(verifier, facts)
    assert_type(plan, Plan)
    assert_type(facts, Facts)
    assert_type(findings, Findings)

    bad: Findings = await do(planner, contract)  # type: ignore[arg-type]  # another agent's output
    await do(verifier, plan)  # type: ignore[arg-type]  # a handoff that cannot fit
    await do(extractor, contract)  # type: ignore[call-arg]  # an input is missing
    await do(extractor, contract, plan, tune="warm")  # type: ignore[call-arg]  # there is no such input
    await do(planner, contract, plan)  # type: ignore[call-arg]  # one too many
    plan.breaches  # type: ignore[attr-defined]  # noqa: B018 - not a field of it
    return bad


@tool(pure=True)
def vat_of(country: str, *, year: int = 2026) -> int:
    return 23


@tool(timeout_s=5, price="$0.01")
async def look_up(name: str) -> Plan:
    return Plan(topics=[name])


def add(total: int | None, amount: int) -> int:
    return (total or 0) + amount


async def sum_up(results: Sequence[Plan], do: Item) -> Findings:
    return Findings(breaches=str(len(results)))


@workflow(version="1", reduce=sum_up)
async def outer(contract: Document, do: Item) -> Plan:
    assert_type(await do(vat_of, "PL", year=2025), int)
    assert_type(await do(look_up, "Acme"), Plan)
    assert_type(await do(audit, contract), Findings)
    named: Tool[..., int] = vat_of
    assert named is vat_of
    total = do.memory("total", int, scope="item")
    assert_type(await total.read(), int | None)
    assert_type(await do.memory("seen", list[str]).read(), list[str] | None)
    await total.update(add, 5)

    await do(vat_of, 7)  # type: ignore[arg-type]  # not a country
    await do(audit, Plan(topics=[]))  # type: ignore[arg-type]  # not what it takes
    await total.update(add, "5")  # type: ignore[arg-type]  # not an amount
    await total.update(add)  # type: ignore[call-arg]  # an argument is missing
    await do.memory("seen", list[str]).update(add, 5)  # type: ignore[arg-type]  # an update of another type
    do.memory("total", int, scope="tenant")  # type: ignore[arg-type]  # there is no such scope
    await do(len, "abc")  # type: ignore[arg-type]  # not a tool
    return await do(look_up, "Acme")


@workflow(version="1", reduce=sum_up)  # type: ignore[arg-type]  # it reduces other results
async def other(contract: Document, do: Item) -> Findings:
    return Findings(breaches="")


@tool()
def untyped(word) -> str:  # type: ignore[no-untyped-def]  # a parameter has a type
    return str(word)


async def use() -> None:
    assert_type(audit, Workflow[[Document], Findings])
    flow: Workflow = audit
    assert flow is audit
    plans: Agent[[Document], Plan] = planner
    assert_type(plans(Document("a", "text")), Prompt)
    assert_type(planner(Document("a", "text")), Prompt)
    planner.revised(extractor.prompt)  # type: ignore[arg-type]  # it takes other inputs
    assert_type(extractor.checked(is_priced)(Document("a", "text"), Plan(topics=[])), Prompt)
    verifier.checked(is_priced)  # type: ignore[arg-type]  # it checks another agent's reply
    async with Rehearsal(
        {"planner": "{}"}, verifier=['{"breaches": "none"}', "{}"], extractor=lambda call: ""
    ) as platform:
        assert_type(platform, Platform)
        summary = await platform.run(audit, [Document("a", "text"), "folder/", Plan(topics=[])], budget="$1")
        assert_type(summary, RunSummary)
        await platform.run(audit, [7])  # type: ignore[list-item]  # neither a path nor a document nor a row
    Rehearsal(planner=7)  # type: ignore[arg-type]  # not a reply


@agent(returns=str)  # type: ignore[type-var]  # a reply is a pydantic model
def wrong_reply(contract: Document) -> Prompt:
    return Prompt(system="s", user="u")


@agent(returns=Plan)  # type: ignore[arg-type]  # an agent makes a Prompt
def wrong_prompt(contract: Document) -> str:
    return "s"


@workflow(version="1")  # type: ignore[arg-type]  # a workflow is async
def wrong_workflow(contract: Document, do: Item) -> Findings:
    return Findings(breaches="")
