"""What is asked again and what is not: counted at the upstream."""

from __future__ import annotations

import asyncio
import json
import shutil
import sqlite3
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

import pytest
from pydantic import BaseModel, Field

from twolane import Agent, Document, Item, Platform, Prompt, RunSummary, Workflow, agent, tool, workflow
from twolane.batch import again, diff
from twolane.batch import run as runs
from twolane.domain.records import ModelCall
from twolane.errors import ConfigError, NotFound, UsageError
from twolane.testing import Rehearsal, Reply

# ── a small workflow: planner → extractor → verifier → synthesizer ──


class Plan(BaseModel):
    topics: list[str]


class Facts(BaseModel):
    price: str


class Findings(BaseModel):
    breaches: str


class Report(BaseModel):
    text: str


@agent(returns=Plan)
def planner(contract: Document) -> Prompt:
    return Prompt(system="You plan.", user="What is in it?", context=(contract,), max_tokens=50)


@agent(returns=Facts)
def extractor(contract: Document, plan: Plan) -> Prompt:
    return Prompt(system="You extract.", user=", ".join(plan.topics), context=(contract,), max_tokens=50)


@agent(returns=Findings)
def verifier(facts: Facts, rules: str) -> Prompt:
    return Prompt(system="You verify.", user=f"By {rules}: is this a breach? {facts.price}", max_tokens=50)


@agent(returns=Report)
def synthesizer(facts: Facts, findings: Findings) -> Prompt:
    return Prompt(system="You sum up.", user=f"{facts.price}: {findings.breaches}", max_tokens=50)


def build(
    *,
    planner: Agent[[Document], Plan] = planner,
    verifier: Agent[[Facts, str], Any] = verifier,  # Any: each its own schema
) -> Workflow:
    @workflow(version="1", options=["rules"])
    async def audit(contract: Document, do: Item) -> Report:
        plan = await do(planner, contract)
        facts = await do(extractor, contract, plan)
        findings = await do(verifier, facts, do.options.get("rules", "the law"))
        return await do(synthesizer, facts, findings)

    return audit


AUDIT = build()
AGENTS = ("planner", "extractor", "verifier", "synthesizer")


def price(call: ModelCall) -> str:
    return json.dumps({"price": call.messages[1].content.split("\n")[1]})


SCRIPT: dict[str, Reply] = {
    "planner": '{"topics": ["price"]}',
    "extractor": price,
    "verifier": '{"breaches": "none"}',
    "synthesizer": lambda call: json.dumps({"text": call.messages[-1].content}),
}
LOUDER = planner.revised(lambda contract: replace(planner(contract), system="You plan well."))
STRICTER = verifier.revised(lambda facts, rules: replace(verifier(facts, rules), system="You verify strictly."))


def documents(count: int) -> list[Document]:
    return [Document(f"c{number:02}", f"The price is {number} EUR.\nSigned.") for number in range(count)]


def breach_in(*names: str) -> Callable[[ModelCall], str]:
    prices = {f"price is {int(name[1:])} EUR" for name in names}
    return lambda call: json.dumps(
        {"breaches": "price" if any(each in call.messages[-1].content for each in prices) else "none"}
    )


def refused_for(*names: str) -> Callable[[ModelCall], str]:
    prices = {f"price is {int(name[1:])} EUR" for name in names}
    return lambda call: (
        '{"breaches": 7}' if any(each in call.messages[-1].content for each in prices) else '{"breaches": "none"}'
    )


class Counted:
    """A platform and what reached its upstreams since the last look."""

    def __init__(self, script: Mapping[str, Reply] = SCRIPT, *, routes: Sequence[str] = ()) -> None:
        self.rehearsal = Rehearsal(script, routes=routes)
        self._seen: Counter[str] = Counter()

    def calls(self) -> dict[str, int]:
        """By agent, without those that were not asked."""
        now = Counter({name: self.rehearsal.requests(name) for name in AGENTS})
        fresh, self._seen = now - self._seen, now
        return dict(fresh)


def steps(platform: Platform, run: str, kind: str = "step") -> list[dict[str, Any]]:
    return [json.loads(row["leaf"]) for row in platform.kernel.store.all("entries_of_run", run=run, kind=kind)]


async def go_on(platform: Platform, run: str, flow: Workflow = AUDIT, **how: Any) -> RunSummary:
    await platform.prepare_resume(run, **how)
    return await platform.work(run, flow=flow)


# ── a plan says what will happen, and why ──


async def test_a_plan_of_what_never_ran_says_what_it_knows_and_no_more() -> None:
    counted = Counted()
    async with counted.rehearsal as platform:
        plan = (await platform.plan(AUDIT, documents(3))).fields()
        assert (plan["items"], plan["calls"], plan["reused"], plan["cost"], plan["unshaped"]) == (3, 3, 0, None, 3)
        (told,) = plan["by_agent"].values()  # type: ignore[attr-defined]
        assert told["why"] == {"never asked": 3}
        assert float(told["cost"]) > 0
        assert told["estimated"]
        assert counted.calls() == {}
        assert platform.kernel.store.all("runs", count=9) == []


async def test_a_plan_of_nothing_new_is_nothing() -> None:
    counted = Counted()
    async with counted.rehearsal as platform:
        run = (await platform.run(AUDIT, documents(3))).run
        for plan in (await platform.plan(AUDIT, documents(3)), await platform.plan_run(run, flow=AUDIT)):
            assert (plan.calls, plan.reused, plan.cost) == (0, 12, "0.00")
            assert plan.fields()["estimated"] is False


async def test_a_plan_names_what_changed_and_counts_what_may_follow() -> None:
    counted = Counted()
    async with counted.rehearsal as platform:
        first = await platform.run(AUDIT, documents(4))
        counted.calls()
        plan = await platform.plan(build(verifier=STRICTER), documents(4))
        told = {name: each.fields() for name, each in plan.agents.items()}
        assert told["planner"]["reused"] == told["extractor"]["reused"] == 4
        assert (told["verifier"]["calls"], told["verifier"]["unknown"]) == (4, 0)
        assert told["verifier"]["why"] == {"its prompt changed": 4}
        assert (told["synthesizer"]["calls"], told["synthesizer"]["unknown"]) == (4, 4)
        assert told["synthesizer"]["why"] == {"unknown until a step before it has answered": 4}
        paid = {name: float(str(each["cost"])) for name, each in first.by_agent.items()}
        assert float(plan.cost or 0) == pytest.approx(paid["verifier"] + paid["synthesizer"])
        second = await platform.run(build(verifier=STRICTER), documents(4))
        assert counted.calls() == {"verifier": 4}
        assert second.by_agent["synthesizer"]["reused"] == 4


async def test_a_plan_of_new_items_takes_the_shape_of_those_before() -> None:
    async with Counted().rehearsal as platform:
        await platform.run(AUDIT, documents(2))
        plan = await platform.plan(AUDIT, documents(5))
        assert (plan.calls, plan.reused, plan.unshaped) == (12, 8, 0)
        assert plan.cost is not None
        assert {name: each.calls for name, each in plan.agents.items()} == dict.fromkeys(AGENTS, 3)


class Worded(BaseModel):
    breaches: Annotated[str, Field(description="Every breach, in a sentence.")]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"returns": Worded}, "its schema changed"),
        ({"route": "elsewhere"}, ""),
        ({"prompt": lambda facts, rules: replace(verifier(facts, rules), max_tokens=60)}, "its sampling changed"),
        ({"prompt": lambda facts, rules: replace(verifier(facts, rules), sample=1)}, "never asked for this sample"),
        (
            {"prompt": lambda facts, rules: replace(verifier(facts, rules), context=(Document("r", "No."),))},
            "its passages changed",
        ),
        ({"name": "judge"}, "never asked"),
    ],
)
async def test_every_miss_is_explained(change: dict[str, Any], words: str) -> None:
    async with Counted(routes=["elsewhere"]).rehearsal as platform:
        await platform.run(AUDIT, documents(1))
        plan = await platform.plan(build(verifier=replace(verifier, **change)), documents(1))
        told = next((each for name, each in plan.agents.items() if name in ("verifier", "judge") and each.calls), None)
        assert (list(told.why)[:1] if told else []) == ([words] if words else [])


async def test_a_changed_input_is_named_with_who_made_it() -> None:
    counted = Counted()
    async with counted.rehearsal as platform:
        await platform.run(AUDIT, documents(1))
        plan = await platform.plan(AUDIT, [Document("c00", "The price is 8 EUR.\nSigned.")])
        assert list(plan.agents["planner"].why) == ["its input changed (contract)"]
        counted.rehearsal.reply("extractor", '{"price": "seven"}')
        counted.rehearsal.reply("planner", '{"topics": ["price", "term"]}')
        counted.rehearsal.reply("verifier", '{"breaches": 7}')
        run = (await platform.run(build(planner=LOUDER), documents(1))).run
        plan = await platform.plan_run(run, flow=build(planner=LOUDER))
        assert plan.agents["verifier"].why == {"its input changed (facts of extractor)": 1}


async def test_a_workflow_that_fans_out_is_planned_with_all_it_asks_at_once() -> None:
    @workflow(version="1", name="fan")
    async def fan(contract: Document, do: Item) -> Report:
        async with asyncio.TaskGroup() as group:
            rules = [
                group.create_task(do(verifier, Facts(price=contract.text), f"rule {number}")) for number in range(3)
            ]
        found = await asyncio.gather(
            *(do(synthesizer, Facts(price=str(n)), rule.result()) for n, rule in enumerate(rules))
        )
        return Report(text=" ".join(each.text for each in found))

    async with Counted().rehearsal as platform:
        first = await platform.plan(fan, documents(2))
        assert (first.agents["verifier"].calls, first.unshaped) == (6, 2)
        await platform.run(fan, documents(2))
        assert (await platform.plan(fan, documents(2))).reused == 12
        plan = await platform.plan(fan, documents(3))
        assert {name: (each.calls, each.unknown) for name, each in plan.agents.items()} == {
            "verifier": (3, 0), "synthesizer": (3, 3),
        }  # fmt: skip


async def test_items_that_never_ask_are_planned_as_what_they_are() -> None:
    class Moved(BaseModel):
        id: str
        page: int

    @workflow(version="1", name="audit")
    async def broken(contract: Document, do: Item) -> Report:
        if contract.id == "c01":
            raise ValueError("not this one")
        return await AUDIT.function(contract, do)  # type: ignore[return-value]  # as it says

    async with Counted().rehearsal as platform:
        run = (await platform.run(AUDIT, documents(2))).run
        plan = await platform.plan_run(run, flow=broken)
        assert (plan.calls, plan.reused, plan.quarantined) == (0, 4, 1)
        rows = replace(AUDIT, takes=Moved)
        stale = await platform.plan_run(run, flow=rows)
        assert (stale.calls, stale.quarantined) == (0, 2)


# ── a schema that only became stricter ──


async def test_an_output_that_still_fits_a_stricter_schema_is_reused_and_cites_who_paid() -> None:
    counted = Counted()
    async with counted.rehearsal as platform:
        first = await platform.run(AUDIT, documents(3))
        counted.calls()
        flow = build(verifier=replace(verifier, returns=_narrowed("Findings", max_length=300)))
        assert (await platform.plan(flow, documents(3))).calls == 0
        second = await platform.run(flow, documents(3))
        assert counted.calls() == {}
        assert (second.calls, second.reused) == (0, 12)
        paid = {(leaf["item"], leaf["agent"]): leaf["step"] for leaf in steps(platform, first.run)}
        for leaf in steps(platform, second.run):
            assert (leaf["status"], leaf["of"]) == ("reused", paid[leaf["item"], leaf["agent"]])
        third = await platform.run(build(verifier=replace(verifier, returns=_narrowed("Findings", max_length=200))),
                                   documents(3))  # fmt: skip
        assert (third.calls, third.reused) == (0, 12)
        assert platform.verify().ok


async def test_an_output_that_no_longer_fits_is_asked_for_again_alone() -> None:
    counted = Counted({**SCRIPT, "verifier": breach_in("c01")})
    async with counted.rehearsal as platform:
        await platform.run(AUDIT, documents(3))
        counted.calls()
        flow = build(verifier=replace(verifier, returns=_narrowed("Findings", max_length=4)))
        counted.rehearsal.reply("verifier", '{"breaches": "some"}')
        plan = await platform.plan(flow, documents(3))
        assert plan.agents["verifier"].why == {"its schema changed": 1}
        await platform.run(flow, documents(3))
        assert counted.calls() == {"verifier": 1, "synthesizer": 1}


async def test_a_schema_that_accepts_more_is_asked_again() -> None:
    counted = Counted()
    async with counted.rehearsal as platform:
        await platform.run(build(verifier=replace(verifier, returns=_narrowed("Findings", max_length=9))), documents(2))
        counted.calls()
        await platform.run(
            build(verifier=replace(verifier, returns=_narrowed("Findings", max_length=99))), documents(2)
        )
        assert counted.calls() == {"verifier": 2}


def _narrowed(name: str, *, max_length: int) -> Any:  # Any: made of a number
    from pydantic import create_model

    return create_model(name, breaches=(Annotated[str, Field(max_length=max_length)], ...))


# ── what reuse may not do ──


async def test_a_refused_reply_is_never_reused() -> None:
    counted = Counted({**SCRIPT, "verifier": refused_for("c00")})
    async with counted.rehearsal as platform:
        run = (await platform.run(AUDIT, documents(2))).run
        assert counted.calls()["verifier"] == 3
        plan = await platform.plan_run(run, quarantined=True, flow=AUDIT)
        assert plan.agents["verifier"].why == {"its last reply was refused": 1}
        await platform.run(AUDIT, documents(2))
        assert counted.calls() == {"verifier": 2}


async def test_no_answer_crosses_from_one_tenant_to_another() -> None:
    counted = Counted()
    async with counted.rehearsal as platform:
        await platform.run(AUDIT, documents(2))
        counted.calls()
        assert (await platform.plan(AUDIT, documents(2), tenant="legal")).reused == 0
        run = await platform.start(AUDIT, documents(2), tenant="legal")
        assert (await platform.work(run, flow=AUDIT)).reused == 0
        assert counted.calls() == dict.fromkeys(AGENTS, 2)


async def test_samples_are_told_apart_and_each_is_kept() -> None:
    @agent(returns=Report)
    def poet(contract: Document, sample: int) -> Prompt:
        return Prompt(system="You rhyme.", user=contract.text, sample=sample)

    @workflow(version="1")
    async def rhyme(contract: Document, do: Item) -> Report:
        lines = [await do(poet, contract, sample) for sample in range(3)]
        return Report(text=" ".join(each.text for each in lines))

    rehearsal = Rehearsal(poet=[f'{{"text": "{number}"}}' for number in range(9)])
    async with rehearsal as platform:
        first = await platform.run(rhyme, documents(1))
        second = await platform.run(rhyme, documents(1))
        assert rehearsal.requests("poet") == 3
        assert second.reused == 3
        results = [
            platform.kernel.read_body(platform.kernel.store.all("outputs_of_run", run=run.run)[0]["output"])
            for run in (first, second)
        ]
        assert results == [b'{"text":"0 1 2"}'] * 2


async def test_what_an_older_release_kept_is_still_found(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    new.mkdir()
    old.mkdir()
    async with Rehearsal(SCRIPT, folder=new) as platform:
        await platform.run(AUDIT, documents(2))
    with closing(sqlite3.connect(old / "twolane.db")) as connection:
        for name in ("schema.sql", "migration_2.sql"):
            connection.executescript(resources.files("twolane.store").joinpath(name).read_text("utf-8"))
        connection.execute("PRAGMA user_version = 2")
        connection.execute("ATTACH ? AS new", [str(new / "twolane.db")])
        for table in ("subject", "body", "memo"):
            columns = ", ".join(row[1] for row in connection.execute(f"PRAGMA main.table_info({table})"))
            connection.execute(f"INSERT INTO main.{table} ({columns}) SELECT {columns} FROM new.{table}")
        connection.commit()
    shutil.copytree(new / "twolane.db.keys", old / "twolane.db.keys")
    rehearsal = Rehearsal(SCRIPT, folder=old)
    async with rehearsal as platform:
        await platform.kernel.store.write(lambda tx: tx.run("set_meta", name="currency", value="USD"))
        summary = await platform.run(AUDIT, documents(2))
        assert (summary.calls, summary.reused, rehearsal.requests()) == (0, 8, 0)
        plan = await platform.plan(build(verifier=STRICTER), documents(2))
        assert plan.agents["verifier"].why == {"never asked": 2}  # of what it was made of, nothing was kept then


# ── resume --from ──


async def test_an_agent_asked_again_is_asked_for_every_item_and_what_follows_only_where_it_changed() -> None:
    counted = Counted()
    async with counted.rehearsal as platform:
        run = (await platform.run(AUDIT, documents(5))).run
        counted.calls()
        counted.rehearsal.reply("verifier", breach_in("c02", "c03"))
        assert (await platform.plan_run(run, from_agent="verifier", flow=AUDIT)).agents["verifier"].why == {
            "asked again on purpose": 5
        }
        summary = await go_on(platform, run, from_agent="verifier")
        assert counted.calls() == {"verifier": 5, "synthesizer": 2}
        assert (summary.status, summary.items["done"]) == ("done", 5)
        assert steps(platform, run, "run")[-3]["event"] == "again"
        await go_on(platform, run)
        assert counted.calls() == {}
        assert platform.verify().ok


async def test_asking_again_for_the_quarantined_leaves_the_others_alone() -> None:
    counted = Counted({**SCRIPT, "verifier": refused_for("c01")})
    async with counted.rehearsal as platform:
        run = (await platform.run(AUDIT, documents(4))).run
        counted.calls()
        counted.rehearsal.reply("verifier", '{"breaches": "none"}')
        summary = await go_on(platform, run, from_agent="extractor", quarantined=True)
        assert counted.calls() == {"extractor": 1, "verifier": 1, "synthesizer": 1}
        assert summary.items == {"total": 4, "done": 4, "quarantined": 0}
        await go_on(platform, run, from_agent="extractor")
        assert counted.calls() == {"extractor": 4}
        await platform.work(await platform.fork(run, from_agent="extractor", flow=AUDIT), flow=AUDIT)
        assert counted.calls() == {"extractor": 4}


async def test_an_agent_that_never_answered_cannot_be_asked_again() -> None:
    async with Counted().rehearsal as platform:
        run = (await platform.run(AUDIT, documents(1))).run
        with pytest.raises(NotFound, match="did you mean 'verifier'"):
            await platform.prepare_resume(run, from_agent="verifer")
        with pytest.raises(NotFound, match="did you mean 'verifier'"):
            await platform.plan_run(run, from_agent="verifer", flow=AUDIT)
        assert platform.summary(run).items["done"] == 1


async def test_resuming_resets_the_runs_own_switch_and_no_other() -> None:
    async with Counted().rehearsal as platform:
        run = (await platform.run(AUDIT, documents(1))).run
        for scope in (f"run:{run}", "tenant:default"):
            await platform.kernel.switches.trip(scope, cause="test", actor="test")
        await platform.prepare_resume(run)
        assert [row["scope"] for row in platform.kernel.store.all("switches")] == ["tenant:default"]


async def test_a_run_that_is_resumed_for_a_worker_is_queued() -> None:
    async with Counted().rehearsal as platform:
        run = (await platform.run(AUDIT, documents(1))).run
        await platform.prepare_resume(run, is_queued=True)
        assert platform.summary(run).status == "queued"
        assert not again.has_worker(platform.kernel)
        await again.be_worker(platform.kernel)
        assert again.has_worker(platform.kernel)
        await again.leave_work(platform.kernel)
        assert not again.has_worker(platform.kernel)


async def test_a_run_that_somebody_works_on_is_left_as_it_is() -> None:
    async with Counted().rehearsal as platform:
        run = await platform.start(AUDIT, documents(1))
        owner = platform.kernel.presence.name
        await platform.kernel.store.write(
            lambda tx: tx.run("begin_run", id=run, owner=owner, known_owner="", code="", now=1)
        )  # fmt: skip
        await platform.kernel.switches.trip(f"run:{run}", cause="test", actor="test")
        with pytest.raises(ConfigError, match="being worked on"):
            await platform.prepare_resume(run, is_queued=True)
        assert platform.kernel.store.all("switches")


async def test_items_that_only_wait_for_their_turn_do_not_begin_after_a_pause() -> None:
    @workflow(version="1")
    async def plans(contract: Document, do: Item) -> Plan:
        try:
            return await do(planner, contract)
        except BaseException:  # noqa: BLE001 - even where a workflow swallows it
            return Plan(topics=["made up"])

    slots, rehearsal = 8, Rehearsal({"": '{"topics": ["a b c"]}'}, token_ms=50, slots=8)
    async with rehearsal as platform:
        run = await platform.start(plans, documents(20))
        working = asyncio.create_task(platform.work(run, flow=plans))
        while rehearsal.requests() < slots:
            await asyncio.sleep(0.005)
        await platform.pause(run)
        stopped = await working
        assert (stopped.status, stopped.items["done"]) == ("stopped", rehearsal.requests())
        assert slots <= stopped.items["done"] <= slots + 1, "one may be ahead of its slot"
        assert steps(platform, run)[-1]["status"] == "ok"
        rehearsal.reply("", '{"topics": []}')
        assert (await go_on(platform, run, plans)).calls == 20


async def test_a_run_that_is_taken_while_it_is_resumed_is_left_as_it_is() -> None:
    async with Counted().rehearsal as platform:
        run = (await platform.run(AUDIT, documents(1))).run
        seen, how = runs.find(platform.kernel, run), again.Resumption(from_agent="verifier", is_queued=True)
        owner = platform.kernel.presence.name
        await platform.kernel.store.write(
            lambda tx: tx.run("begin_run", id=run, owner=owner, known_owner="", now=1, code="")
        )
        with pytest.raises(ConfigError, match="at this moment"):
            await platform.kernel.store.write(lambda tx: again._requeue(seen, how, "salt", tx))
        assert platform.kernel.store.all("steered", run=run, item="c00") == []
        assert platform.summary(run).items["done"] == 1


# ── tools, nested workflows and memory ──

USED: Counter[str] = Counter()


@tool(pure=False, price="$0.001")
async def register(price: str) -> str:
    """Looks into the register."""
    USED[price] += 1
    return f"entry {USED[price]} for {price}"


@workflow(version="1", name="inner")
async def inner(contract: Document, do: Item) -> Findings:
    return await do(verifier, Facts(price=contract.text), "the law")


@workflow(version="1", name="outer")
async def outer(contract: Document, do: Item) -> Report:
    USED["walks"] += 1
    entry = await do(register, contract.id)
    findings = await do(inner, contract)
    return await do(synthesizer, Facts(price=entry), findings)


async def test_tools_and_nested_workflows_are_planned_forked_and_asked_again_by_their_names() -> None:
    USED.clear()
    counted = Counted()
    async with counted.rehearsal as platform:
        fresh = await platform.plan(outer, documents(2))
        assert {name: (each.calls, each.why) for name, each in fresh.agents.items()} == {
            "register": (2, {"never used with these arguments by this code": 2})
        }
        assert fresh.agents["register"].fields()["cost"] == "0.002"
        run = (await platform.run(outer, documents(2))).run
        assert (USED["c00"], USED["c01"]) == (1, 1)
        counted.calls()
        plan = await platform.plan_run(run, flow=outer)
        assert (plan.calls, plan.reused, plan.quarantined) == (0, 6, 0)
        assert set(plan.agents) == {"register", "inner/verifier", "synthesizer"}
        fork = await platform.work(await platform.fork(run, flow=outer), flow=outer)
        assert (fork.calls, counted.calls(), USED["c00"]) == (0, {}, 1)
        await go_on(platform, run, outer, from_agent="inner/verifier")
        assert counted.calls() == {"verifier": 2}
        await go_on(platform, run, outer, from_agent="register")
        assert (counted.calls(), USED["c00"]) == ({"synthesizer": 2}, 2)


async def test_what_depends_on_the_memory_of_a_run_is_unknown_and_not_refused() -> None:
    @workflow(version="1", name="remembering")
    async def remembering(contract: Document, do: Item) -> Report:
        findings = await do(verifier, Facts(price=contract.text), "the law")
        known = await do.memory("seen", list[str]).read()
        return await do(synthesizer, Facts(price=str(len(known or []) >= 0)), findings)

    async with Counted().rehearsal as platform:
        run = (await platform.run(remembering, documents(2))).run
        assert (await platform.plan_run(run, flow=remembering)).reused == 4
        plan = await platform.plan(remembering, documents(2))
        assert (plan.quarantined, plan.agents["verifier"].reused, plan.agents["synthesizer"].unknown) == (0, 2, 2)


# ── fork and diff ──


async def test_a_fork_reuses_what_came_before_and_asks_the_agent_anew() -> None:
    counted = Counted()
    async with counted.rehearsal as platform:
        first = await platform.run(AUDIT, documents(4), budget="$1")
        counted.calls()
        counted.rehearsal.reply("verifier", breach_in("c01"))
        fork = await platform.fork(first.run, from_agent="verifier", options={"rules": "our policy"}, flow=AUDIT)
        second = await platform.work(fork, flow=AUDIT)
        assert counted.calls() == {"verifier": 4, "synthesizer": 1}
        assert (second.items["done"], second.budget) == (4, "1.00")
        told = diff.compare(platform.kernel, first.run, fork)
        assert (told.changed, told.same, told.only_first, told.only_second) == (["c01"], 3, [], [])
        agents = {name: (each.same, each.changed, each.calls) for name, each in told.agents.items()}
        assert agents == {
            "planner": (4, 0, 0), "extractor": (4, 0, 0), "verifier": (3, 1, 4), "synthesizer": (3, 1, 1),
        }  # fmt: skip
        assert told.fields()["cost"] == {first.run: first.cost, fork: second.cost}
        assert platform.verify().ok


async def test_what_a_workflow_does_not_take_is_refused_before_anything_is_written() -> None:
    counted, wrong = Counted(), {"rule": "our policy"}
    async with counted.rehearsal as platform:
        first = await platform.work(await platform.start(AUDIT, documents(1), options={"rules": "x"}), flow=AUDIT)
        for asked in (
            platform.start(AUDIT, documents(1), options=wrong),
            platform.plan(AUDIT, documents(1), options=wrong),
            platform.fork(first.run, options=wrong, flow=AUDIT),
        ):
            with pytest.raises(UsageError, match=r"--with rule: audit has no option 'rule'; it takes rules$"):
                await asked
        bare = replace(AUDIT, options=())
        with pytest.raises(UsageError, match="it takes none"):
            await platform.start(bare, documents(1), options=wrong)
        with pytest.raises(UsageError, match="it is no folder"):
            await platform.start(AUDIT, documents(1), reports=__file__)
        assert len(platform.kernel.store.all("runs", count=9)) == 1
        await platform.fork(first.run, flow=bare)  # what it was started with stays as it was


async def test_a_fork_that_changes_nothing_costs_nothing_and_differs_in_nothing() -> None:
    counted = Counted()
    async with counted.rehearsal as platform:
        first = await platform.run(AUDIT, documents(2))
        counted.calls()
        second = await platform.work(await platform.fork(first.run, flow=AUDIT), flow=AUDIT)
        assert counted.calls() == {}
        told = diff.compare(platform.kernel, first.run, second.run)
        assert (told.changed, told.same) == ([], 2)
        assert all(each.changed == 0 and each.same == 2 for each in told.agents.values())


async def test_an_answer_that_another_item_paid_for_is_no_difference() -> None:
    @agent(returns=Report)
    def clerk(contract: Document) -> Prompt:
        return Prompt(system="You file.", user="the same for everybody")

    @workflow(version="1")
    async def filing(contract: Document, do: Item) -> Report:
        return await do(clerk, contract)

    async with Rehearsal(clerk='{"text": "filed"}', slots=1) as platform:
        first = await platform.run(filing, documents(3))
        second = await platform.work(await platform.fork(first.run, from_agent="clerk", flow=filing), flow=filing)
        told = diff.compare(platform.kernel, first.run, second.run).agents["clerk"]
        assert (told.changed, told.only_first, told.only_second) == (0, 0, 0)
        assert told.same + told.unknown == told.calls + told.reused == 3
        assert told.same >= 1


async def test_a_fork_replays_what_was_drawn_at_random() -> None:
    @agent(returns=Report)
    def poet(contract: Document) -> Prompt:
        return Prompt(system="You rhyme.", user=contract.text, temperature=0.9)

    @agent(returns=Report)
    def critic(poem: Report) -> Prompt:
        return Prompt(system="You judge.", user=poem.text)

    @workflow(version="1")
    async def read(contract: Document, do: Item) -> Report:
        return await do(critic, await do(poet, contract))

    rehearsal = Rehearsal(poet=[f'{{"text": "{number}"}}' for number in range(9)], critic='{"text": "good"}')
    async with rehearsal as platform:
        first = await platform.run(read, documents(2))
        fork = await platform.fork(first.run, from_agent="critic", flow=read)
        grandchild = await platform.fork(fork, flow=read)
        for run in (fork, grandchild):
            await platform.work(run, flow=read)
        assert (rehearsal.requests("poet"), rehearsal.requests("critic")) == (2, 4)
        plan = await platform.plan(read, documents(2))
        assert list(plan.agents["poet"].why) == ["its answers are drawn at random: each run draws its own"]


async def test_an_unreadable_item_stays_in_quarantine_in_a_fork(tmp_path: Path) -> None:
    (tmp_path / "scan.pdf").write_bytes(b"no PDF at all")
    async with Counted().rehearsal as platform:
        first = await platform.run(AUDIT, [*documents(1), tmp_path / "scan.pdf"])
        second = await platform.work(await platform.fork(first.run, flow=AUDIT), flow=AUDIT)
        assert second.items == first.items == {"total": 2, "done": 1, "quarantined": 1}
        assert (await platform.plan_run(second.run, flow=AUDIT)).unreadable == 1


# ── quarantine ──


async def test_items_are_released_by_what_sent_them_there_and_the_ledger_says_who_and_why() -> None:
    counted = Counted({**SCRIPT, "verifier": refused_for("c01", "c02")})
    async with counted.rehearsal as platform:
        run = (await platform.run(AUDIT, documents(4))).run
        kinds = {row["name"]: row["kind"] for row in platform.kernel.store.all("quarantined", run=run)}
        assert kinds == {"c01": "handoff", "c02": "handoff"}
        assert await again.release(platform.kernel, run, again.Release(kind="budget")) == []
        released = await again.release(platform.kernel, run, again.Release(kind="handoff", reason="prompt fixed"))
        assert sorted(released) == ["c01", "c02"]
        entries = steps(platform, run, "release")
        assert [(leaf["actor"], leaf["reason"], leaf["agent"]) for leaf in entries] == [
            ("quarantine release", "prompt fixed", "verifier")
        ] * 2
        counted.calls()
        counted.rehearsal.reply("verifier", '{"breaches": "none"}')
        assert (await go_on(platform, run)).items["done"] == 4
        assert counted.calls() == {"verifier": 2, "synthesizer": 2}
        assert platform.verify().ok


async def test_an_item_released_to_another_route_asks_there_what_it_lacks_and_keeps_it() -> None:
    counted = Counted({**SCRIPT, "verifier": refused_for("c01"), "other": '{"breaches": "elsewhere"}'})
    async with counted.rehearsal as platform:
        run = (await platform.run(AUDIT, documents(3))).run
        counted.calls()
        with pytest.raises(NotFound, match="no route or upstream"):
            await again.release(platform.kernel, run, again.Release(items=("c01",), route="nowhere"))
        await again.release(platform.kernel, run, again.Release(items=("c01",), route="rehearsal-other"))
        assert (await go_on(platform, run)).items["done"] == 3
        assert counted.calls() == {"synthesizer": 1}
        assert counted.rehearsal.requests("other") == 1
        (leaf,) = [leaf for leaf in steps(platform, run) if leaf["upstream"] == "rehearsal-other"]
        assert (leaf["agent"], leaf["route"], leaf["status"]) == ("verifier", "rehearsal-other", "ok")
        assert steps(platform, run, "release")[0]["route"] == "rehearsal-other"
        fork = await platform.fork(run, flow=AUDIT)
        assert (await platform.work(fork, flow=AUDIT)).calls == 0
        assert counted.rehearsal.requests("other") == 1


async def test_of_an_unreadable_item_the_release_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "scan.pdf").write_bytes(b"no PDF at all")
    async with Counted().rehearsal as platform:
        run = await platform.start(AUDIT, [*documents(1), tmp_path / "scan.pdf"])
        (row,) = platform.kernel.store.all("quarantined", run=run)
        assert row["kind"] == "document"
        with pytest.raises(NotFound, match="mend the file"):
            await again.release(platform.kernel, run, again.Release(items=("scan.pdf",)))
        assert runs.item(platform.kernel, run, "scan.pdf")["status"] == "quarantined"
