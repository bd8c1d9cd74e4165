"""Budgets in every dimension, against the whole door: nothing is ever overspent, and nearly all of a budget can be."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import orjson
import pytest
from tests.integration.test_treasury import (
    BOUND,
    CALL,
    ask,
    assert_at_rest,
    block,
    config,
    limit,
    opened,
    rehearsal,
    request,
    until,
    warmed,
)

from twolane.config import BudgetSection, PriceTable, RouteSection, UpstreamSection
from twolane.domain.completion import Completion, EventReader, parse_event
from twolane.domain.money import PICO
from twolane.domain.records import Lane, Message, ModelCall, Route
from twolane.errors import BadRequest, BudgetExceeded, Conflict, NotFound, Refused
from twolane.kernel import Kernel, Request, auditor, ledger
from twolane.kernel.accounts import Limit
from twolane.kernel.books import Books, amount_of, state_of
from twolane.kernel.treasury import HELD_S, drift
from twolane.models.rehearsal import Rehearsal
from twolane.online.auth import Gate, create_key
from twolane.online.chat import request_of
from twolane.online.completions import ChatRequest
from twolane.rules.budgets import NOTHING, Account, Amount, Ceiling
from twolane.rules.reading import input_bound

pytestmark = pytest.mark.usefixtures("each_store")

SECOND = 1_000_000


async def account_of(kernel: Kernel, scope: str) -> Account:
    (found,) = [each for each in await kernel.treasury.all_accounts() if each.scope == scope]
    return found


def costing(dollars: str, *, bounded: bool = True) -> tuple[ModelCall, Rehearsal]:
    """A call whose bound is exactly so much, and an upstream that uses all of it."""
    output = int(float(dollars) * 10**6) // 2 - 1_000
    words = "x" * (int(float(dollars) * 10**6) - 2 * output - 16)
    call = ModelCall((Message("user", words),), "", output if bounded else 0)
    return call, rehearsal(input_tokens=input_bound(call), output_tokens=output)


# ── what other gateways overspend ──


@pytest.mark.parametrize("calls, dollars, admitted", [(200, "0.051", 19), (60, "0.801", 1)], ids=["small", "large"])
async def test_of_many_calls_at_once_as_many_are_admitted_as_a_dollar_pays(
    tmp_path: Path, calls: int, dollars: str, admitted: int
) -> None:
    call, model = costing(dollars)
    async with opened(tmp_path, model) as kernel:
        await limit(kernel, "key:t/k", pico=PICO)
        answers = await asyncio.gather(*(ask(kernel, request(call=call)) for _ in range(calls)), return_exceptions=True)
        assert sum(answer is None for answer in answers) == admitted == model.requests
        assert all(answer is None or isinstance(answer, BudgetExceeded) for answer in answers)
        spent = (await account_of(kernel, "key:t/k")).spent.pico
        assert spent == admitted * int(float(dollars) * 1000) * PICO // 1000 <= PICO


async def test_a_call_without_max_tokens_is_admitted_when_affordable_and_no_second_one(tmp_path: Path) -> None:
    call, model = costing("0.801", bounded=False)
    async with opened(tmp_path, model) as kernel:
        await limit(kernel, "key:t/k", pico=PICO)
        asked = request(call=call, is_bounded=False)
        answers = await asyncio.gather(*(ask(kernel, asked) for _ in range(60)), return_exceptions=True)
        assert sum(answer is None for answer in answers) >= 1
        assert (await account_of(kernel, "key:t/k")).spent.pico <= PICO


async def test_a_providers_budget_holds_over_all_tenants_and_its_calls_go_to_the_next_upstream(tmp_path: Path) -> None:
    call, model = costing("0.051")
    spare = rehearsal()
    settings = config(tmp_path)
    free = UpstreamSection(kind="rehearsal", price=PriceTable(input="0", output="0"))
    settings = settings.model_copy(update={"upstream": {**settings.upstream, "spare": free}})
    kernel = await Kernel.open(settings, models={"up": model, "spare": spare})
    try:
        await limit(kernel, "upstream:up", pico=PICO)
        asked = [
            Request(request(key=key).origin, Lane.ONLINE, Route("r", ("up", "spare"), "test"), call, deadline_s=20)
            for key in "abcd"
        ]
        await asyncio.gather(*(ask(kernel, asked[at % 4]) for at in range(60)))
        assert (model.requests, spare.requests) == (19, 41)
        assert (await account_of(kernel, "upstream:up")).spent.pico == 19 * 51 * PICO // 1000
        with pytest.raises(BudgetExceeded, match="upstream:up"):
            await ask(kernel, request(call=call))
        assert drift(kernel.store) == []
    finally:
        await kernel.aclose()


async def test_calls_are_counted_like_money(tmp_path: Path) -> None:
    model = rehearsal("2nd: 500; 4th: unreachable")
    async with opened(tmp_path, model) as kernel:
        await limit(kernel, calls=1000)
        answers = await asyncio.gather(*(ask(kernel) for _ in range(1100)), return_exceptions=True)
        last = await asyncio.gather(ask(kernel), ask(kernel), ask(kernel), return_exceptions=True)
        assert "1,000 calls reached" in str(last[-1])
        assert sum(isinstance(answer, Refused) for answer in answers) in (99, 100)
        assert model.requests == 1001, "one of them reached nobody, so it counts for nothing"
        told = await account_of(kernel, "tenant:t")
        assert (told.spent.calls, told.held.calls) == (1000, 0)
        await assert_at_rest(kernel)


async def test_a_budget_of_nothing_admits_nothing_not_even_what_is_free(tmp_path: Path) -> None:
    settings = config(tmp_path, price=PriceTable(input="0", output="0"))
    async with opened(tmp_path, settings=settings) as kernel:
        await limit(kernel, pico=0)
        with pytest.raises(BudgetExceeded, match=r"\$0\.00"):
            await ask(kernel)
        await limit(kernel, calls=0)
        with pytest.raises(BudgetExceeded, match="--calls N"):
            await ask(kernel)


# ── time ──


def slow(tokens: int, **options: Any) -> Rehearsal:  # Any: each option has its own type
    return rehearsal(reply="word " * tokens, output_tokens=None, token_ms=20, **options)


async def test_a_stream_is_cut_off_before_its_seconds_are_used_up_and_ends_as_if_by_a_limit(tmp_path: Path) -> None:
    model = slow(1000)
    async with opened(tmp_path, model) as kernel:
        await limit(kernel, us=int(0.9 * SECOND))
        seen = Completion()
        async with kernel.door.step(request()) as answer:
            async for block in answer:
                assert all(parse_event(payload) is not None or True for payload in EventReader().feed(block))
                seen.feed(block)
        await answer.durable()
        assert seen.finish_reason == "length"
        assert seen.is_done
        assert 5 < seen.text.count("word") < 45
        assert (model.active, model.tokens_after_close) == (0, 0)
        (row,) = kernel.store.all("steps_since", count=9)
        assert (row["status"], row["reason"].partition(":")[0]) == ("killed", "budget_exhausted")
        told = await account_of(kernel, "tenant:t")
        assert 0.6 * SECOND < told.spent.us == row["total_us"] <= 0.9 * SECOND
        with pytest.raises(BudgetExceeded, match=r"0\.9 seconds reached.*--seconds N"):
            await ask(kernel)
        await assert_at_rest(kernel)


async def test_a_whole_answer_keeps_what_came_and_a_step_of_a_run_is_refused(tmp_path: Path) -> None:
    async with opened(tmp_path, slow(1000)) as kernel:
        await limit(kernel, us=int(0.9 * SECOND))
        async with kernel.door.step(request()) as answer:
            completion = await answer.whole()
        assert completion.finish_reason == "length"
        assert "word" in completion.text
        await answer.durable()
        await limit(kernel, us=(await account_of(kernel, "tenant:t")).spent.us + int(0.9 * SECOND))
        with pytest.raises(BudgetExceeded):
            await ask(kernel, request(lane=Lane.BATCH))
        assert {row["status"] for row in kernel.store.all("steps_since", count=9)} == {"killed"}
        await assert_at_rest(kernel)


async def test_who_hears_nothing_until_its_time_is_used_up_is_refused(tmp_path: Path) -> None:
    model = rehearsal(first_token_ms=60_000)
    async with opened(tmp_path, model) as kernel:
        await limit(kernel, us=int(0.7 * SECOND))
        with pytest.raises(BudgetExceeded):
            await ask(kernel)
        await kernel.store.write(lambda tx: None)
        (row,) = kernel.store.all("steps_since", count=9)
        assert (row["status"], model.active) == ("killed", 0)
        assert (await account_of(kernel, "tenant:t")).spent.us <= 0.7 * SECOND
        await assert_at_rest(kernel)


async def test_a_call_that_runs_gets_more_time_as_long_as_there_is_some(tmp_path: Path) -> None:
    async with opened(tmp_path, slow(100)) as kernel:
        await limit(kernel, us=6 * SECOND)  # the first slice is a second, the answer takes more than two
        async with kernel.door.step(request()) as answer:
            assert answer.hold is not None
            assert answer.hold.amount.us == SECOND
            completion = await answer.whole()
        await answer.durable()
        assert (completion.finish_reason, completion.text.count("word")) == ("stop", 100)
        told = await account_of(kernel, "tenant:t")
        assert 2 * SECOND < told.spent.us < 6 * SECOND
        await assert_at_rest(kernel)


async def test_accelerator_seconds_are_the_time_of_a_slots_share_of_the_accelerators(tmp_path: Path) -> None:
    settings = config(tmp_path, accelerators=99)  # two lanes of 99 slots: half an accelerator a call
    async with opened(tmp_path, slow(1000), settings) as kernel:
        await limit(kernel, accelerator_us=SECOND // 2)
        cut = await asyncio.gather(*(ask(kernel) for _ in range(3)), return_exceptions=True)
        assert sum(isinstance(each, BudgetExceeded) for each in cut) == 2
        (row,) = kernel.store.all("steps_since", count=9)
        told = await account_of(kernel, "tenant:t")
        assert told.spent.accelerator_us == -(-row["total_us"] // 2) <= SECOND // 2
        assert orjson.loads(kernel.store.all("entries", first=row["leaf"], count=1)[0]["leaf"])["accelerator_us"] > 0
        await assert_at_rest(kernel)


async def test_of_many_calls_beside_each_other_none_takes_more_time_than_there_is(tmp_path: Path) -> None:
    async with opened(tmp_path, slow(60)) as kernel:
        await limit(kernel, us=12 * SECOND)
        answers = await asyncio.gather(*(ask(kernel) for _ in range(30)), return_exceptions=True)
        assert all(answer is None or isinstance(answer, BudgetExceeded) for answer in answers)
        told = await account_of(kernel, "tenant:t")
        assert told.spent.us <= 12 * SECOND
        await assert_at_rest(kernel)


# ── setting ──


async def test_of_two_changes_the_later_wins_unless_it_says_what_it_changes(tmp_path: Path) -> None:
    async with opened(tmp_path) as kernel:
        set_budget = kernel.treasury.set_budget
        assert await set_budget("tenant:t", period="total", pico=5, actor="a") is None
        before = await asyncio.gather(
            set_budget("tenant:t", period="total", pico=7, actor="b"),
            set_budget("tenant:t", period="day", pico=9, calls=3, actor="c"),
        )
        assert list(before) == [Limit("total", Ceiling(5)), Limit("total", Ceiling(7))]
        with pytest.raises(Conflict, match=r"its budget is \$0\.000000000009 and 3 calls per day"):
            await set_budget("tenant:t", period="day", pico=8, actor="d", only_if=lambda there: there is None)
        (row,) = kernel.store.all("budgets")
        assert (row["period"], row["pico"], row["calls"]) == ("day", 9, 3)
        leaves = [orjson.loads(entry["leaf"]) for entry in kernel.store.all("entries", first=0, count=99)]
        assert [leaf["actor"] for leaf in leaves if leaf["kind"] == "budget"] == ["a", "b", "c"]


async def test_a_budget_that_is_set_while_calls_run_holds_what_they_may_still_cost(tmp_path: Path) -> None:
    model = rehearsal("always: hang 1", output_tokens=None)
    async with opened(tmp_path, model) as kernel:
        await limit(kernel, "key:t/k", pico=10**6 * PICO)
        async with kernel.door.step(request(lane=Lane.BATCH)) as answer:
            await limit(kernel, pico=BOUND + BOUND // 2)
            assert (await account_of(kernel, "tenant:t")).held.pico == BOUND
            with pytest.raises(BudgetExceeded):
                await ask(kernel)
            assert drift(kernel.store) == []
        await answer.durable()
        told = await account_of(kernel, "tenant:t")
        assert (told.held.pico, told.spent.calls) == (0, 1)
        await assert_at_rest(kernel)


@pytest.mark.parametrize("is_limited", [False, True], ids=["without a budget", "in memory under another budget"])
@pytest.mark.parametrize("who", ["its own process", "another process"])
async def test_a_later_call_is_refused_for_what_those_in_memory_may_still_cost(
    tmp_path: Path, is_limited: bool, who: str
) -> None:
    model = rehearsal(output_tokens=None)
    async with opened(tmp_path, model) as kernel, opened(tmp_path, rehearsal()) as other:
        if is_limited:
            await limit(kernel, "key:t/k", pico=10**6 * PICO)
            await warmed(kernel, "key:t/k")
        model.script = rehearsal("always: hang 1").script
        async with kernel.door.step(request()) as answer:
            assert (answer.hold is not None and bool(answer.hold.shares)) is is_limited
            setter = kernel if who == "its own process" else other
            spent = (await setter.treasury.set_budget("tenant:t", period="total", actor="t", pico=1)) is None
            assert spent
            before = (await account_of(setter, "tenant:t")).spent.pico
            await limit(setter, pico=before + BOUND + BOUND // 2)
            with pytest.raises(BudgetExceeded, match="tenant:t"):
                await ask(setter)
            assert (await account_of(setter, "tenant:t")).held.pico == BOUND
            assert drift(kernel.store) == []
        await answer.durable()
        model.script = rehearsal().script
        await ask(setter)
        await other.treasury.give_back()
        await assert_at_rest(kernel)


async def test_a_call_on_its_way_to_the_store_behind_a_budget_waits_for_those_in_memory(tmp_path: Path) -> None:
    model = rehearsal("always: hang 1", output_tokens=None)
    async with opened(tmp_path, model) as kernel:
        asked = ("s", ("tenant:t",), CALL, kernel.upstreams["up"].price)
        async with kernel.door.step(request()) as answer:
            _, refused = await asyncio.gather(
                limit(kernel, pico=BOUND + BOUND // 2),
                kernel.treasury.reserve(*asked, may_shrink=False, entry={}, intent=None),
                return_exceptions=True,
            )
            assert isinstance(refused, BudgetExceeded)
            kernel.treasury.release("s", ("tenant:t",))
            assert (await account_of(kernel, "tenant:t")).held.pico == BOUND
        await answer.durable()
        await assert_at_rest(kernel)


# ── lifting ──


async def test_when_budgets_are_lifted_calls_in_flight_end_as_ever_and_who_waits_goes_on(tmp_path: Path) -> None:
    money = {"pico": 10**6 * PICO}
    lifted: dict[str, Any] = {
        "tenant:t": money,
        "key:t/a": money,
        "key:t/b": {"us": 60 * SECOND},
        "key:t/c": {"pico": BOUND},
    }
    async with opened(tmp_path, rehearsal(token_ms=1)) as kernel:
        for scope, most in lifted.items():
            await limit(kernel, scope, **most)
        await ask(kernel, request(key="a"))
        await until(lambda: not block(kernel, "key:t/a").is_empty() and not block(kernel).is_empty())
        asked = [request(key=key, lane=Lane.BATCH if key == "c" else Lane.ONLINE) for key in "aabbc"]
        async with AsyncExitStack() as stack:
            answers = [await stack.enter_async_context(kernel.door.step(each)) for each in asked]
            holds = [answer.hold for answer in answers if answer.hold is not None]
            assert [(bool(hold.shares), bool(hold.amount.us)) for hold in holds] == [
                (True, False), (True, False), (False, True), (False, True), (False, False)
            ]  # fmt: skip
            waiting = asyncio.create_task(ask(kernel, asked[-1]))
            await asyncio.sleep(HELD_S)
            with pytest.raises(Conflict, match="since somebody changed it"):
                await kernel.treasury.lift_budget("key:t/c", actor="t", only_if=lambda there: there is None)
            assert not waiting.done()
            for scope, most in lifted.items():
                before = await kernel.treasury.lift_budget(scope, actor="t", reason="r")
                assert before == Limit("total", Ceiling(**most))
            assert await kernel.treasury.lift_budget("tenant:t", actor="t") is None
            assert await kernel.treasury.all_accounts() == []
            await waiting
            assert drift(kernel.store) == []
            for answer in answers[1:4]:  # the others leave in the middle
                await answer.whole()
        for answer in answers:
            await answer.durable()
        await assert_at_rest(kernel)
        told = [orjson.loads(entry["leaf"]) for entry in kernel.store.all("entries", first=0, count=99)]
        assert [(leaf["scope"], leaf["reason"]) for leaf in told if leaf.get("lifted")] == [
            (each, "r") for each in lifted
        ]
        await limit(kernel, "key:t/c", pico=BOUND)
        with pytest.raises(BudgetExceeded):  # what was spent without a limit counts under the next one
            await ask(kernel, asked[-1])


# ── keys and business processes ──


async def test_a_new_key_of_a_store_that_costs_money_has_twenty_a_day_until_another_is_set(tmp_path: Path) -> None:
    async with opened(tmp_path) as kernel:
        await create_key(kernel, "t", "k")
        (row,) = kernel.store.all("budgets")
        assert (row["scope"], row["period"], row["pico"], row["source"]) == ("key:t/k", "day", 20 * PICO, "default")
        await limit(kernel, "key:t/k", pico=1)
        (row,) = kernel.store.all("budgets")
        assert (row["pico"], row["source"]) == (1, "command")


@pytest.mark.parametrize(
    "free, written, calls",
    [(True, None, None), (False, BudgetSection(), None), (False, BudgetSection(calls=5, period="month"), 5)],
    ids=["where nothing costs", "where it is lifted", "where another is written"],
)
async def test_the_default_budget_can_be_lifted_and_changed(
    tmp_path: Path, free: bool, written: BudgetSection | None, calls: int | None
) -> None:
    settings = config(tmp_path, price=PriceTable(input="0", output="0")) if free else config(tmp_path)
    settings = settings.model_copy(update={"budget": {} if written is None else {"default": written}})
    async with opened(tmp_path, settings=settings) as kernel:
        await create_key(kernel, "t", "k")
        assert [row["calls"] for row in kernel.store.all("budgets")] == ([] if calls is None else [calls])


async def test_a_call_is_counted_under_the_process_its_header_or_its_key_names(tmp_path: Path) -> None:
    async with opened(tmp_path) as kernel:
        secret = await create_key(kernel, "t", "k", workflow="claims")
        headers = [(b"authorization", f"Bearer {secret}".encode())]
        grant = Gate(kernel).admit({"type": "http", "headers": headers})
        asked = ChatRequest("up", CALL, is_streamed=False, wants_usage=False)
        scopes = [
            request_of(kernel, each, asked, RouteSection(light="up")).origin.scopes()[3]
            for each in (grant, grant.under(""), grant.under("invoices"))
        ]
        assert scopes == ["workflow:t/claims", "workflow:t/claims", "workflow:t/invoices"]
        for wrong in ("a/b", "x" * 65, "tenant:other", "ö"):
            with pytest.raises(BadRequest, match="x-twolane-workflow"):
                grant.under(wrong)
        await limit(kernel, "workflow:t/claims", calls=1)
        await ask(kernel, request_of(kernel, grant, asked, RouteSection(light="up")))
        with pytest.raises(BudgetExceeded, match="workflow:t/claims"):
            await ask(kernel, request_of(kernel, grant, asked, RouteSection(light="up")))


# ── what is in doubt, and whether the books agree ──


async def test_what_was_in_doubt_is_what_a_person_says_and_nothing_is_rewritten(tmp_path: Path) -> None:
    async with opened(tmp_path) as kernel:
        await limit(kernel, pico=1000 * PICO, tokens=10**9)
        await ask(kernel)
        await kernel.treasury.give_back()
        spent = (await account_of(kernel, "tenant:t")).spent
        block = Amount(pico=7 * BOUND, tokens=900, calls=7)
        await kernel.store.write(lambda tx: Books.of(tx).lease("of one that died", "tenant:t", "total", block))
        assert await kernel.treasury.recover() == 1
        (row,) = kernel.store.all("doubts")
        doubt = amount_of(row)
        assert (await account_of(kernel, "tenant:t")).spent == spent.plus(doubt)
        with pytest.raises(NotFound, match="nothing is in doubt of tenant:other"):
            await kernel.treasury.reconcile("tenant:other", None, pico=0, actor="test")
        ((_, before, after),) = await kernel.treasury.reconcile("tenant:t", None, pico=5, actor="test")
        assert (before, after) == (doubt, doubt._replace(pico=5))
        assert (await account_of(kernel, "tenant:t")).spent == spent.plus(after)
        assert drift(kernel.store) == []
        assert kernel.store.all("doubts") == []
        leaves = [orjson.loads(entry["leaf"]) for entry in kernel.store.all("entries", first=0, count=99)]
        assert [leaf["kind"] for leaf in leaves if leaf["kind"] in ("lease", "correction")] == ["lease", "correction"]
        assert ledger.verify(kernel.store).ok
        await kernel.treasury.set_budget("tenant:t", period="day", actor="test", pico=PICO)
        assert (await account_of(kernel, "tenant:t")).spent == spent.plus(after), (
            "a later window counts what it came to"
        )


async def test_books_that_disagree_with_the_record_raise_an_alarm_once(tmp_path: Path) -> None:
    async with opened(tmp_path) as kernel:
        await limit(kernel, pico=PICO)
        await ask(kernel)
        await kernel.treasury.give_back()
        assert (await kernel.auditor.look(), kernel.drifted) == ([], 0)
        await kernel.store.write(
            lambda tx: Books.of(tx).spend("tenant:t", "total", Amount(pico=1))  # a fault of ours
        )
        for _ in range(2):
            (problem,) = await kernel.auditor.look()
            assert problem.startswith("tenant:t total: spent")
        await kernel.store.write(lambda tx: None)
        leaves = [orjson.loads(entry["leaf"]) for entry in kernel.store.all("entries", first=0, count=99)]
        assert [leaf["what"] for leaf in leaves if leaf["kind"] == "alarm"] == ["drift"]
        assert kernel.drifted == 1


async def test_a_problem_stands_until_its_own_budget_is_compared_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auditor, "MOST", 1)
    async with opened(tmp_path) as kernel:
        await limit(kernel, pico=PICO)
        await limit(kernel, "key:t/k", pico=PICO)
        await kernel.store.write(lambda tx: Books.of(tx).spend("key:t/k", "total", Amount(pico=1)))  # a fault of ours
        found = []
        for _ in range(4):
            await kernel.auditor.look()
            found.append(kernel.drifted)
        await kernel.store.write(lambda tx: Books.of(tx).spend("key:t/k", "total", Amount(pico=-1)))
        await kernel.auditor.look()
        assert (found, kernel.drifted) == ([1, 1, 1, 1], 0)
        leaves = [orjson.loads(entry["leaf"]) for entry in kernel.store.all("entries", first=0, count=99)]
        assert [leaf["what"] for leaf in leaves if leaf["kind"] == "alarm"] == ["drift"]


# ── clocks ──


@pytest.mark.parametrize("days", [3, -3])
async def test_a_clock_that_jumps_over_a_periods_end_opens_the_window_of_its_day_and_forgets_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, days: int
) -> None:
    noon = 1_795_262_400_000_000
    clock = [noon - SECOND]
    monkeypatch.setattr(ledger, "now_us", lambda: clock[0])
    async with opened(tmp_path, rehearsal(input_tokens=input_bound(CALL), output_tokens=100)) as kernel:
        await kernel.treasury.set_budget("tenant:t", period="day", actor="test", pico=2 * BOUND)
        clock[0] = noon
        await ask(kernel)
        async with kernel.door.step(request()) as answer:  # held on one day, ended on another
            clock[0] = noon + days * 86_400_000_000
            await ask(kernel)
            await answer.whole()
        await answer.durable()
        await ask(kernel)
        with pytest.raises(BudgetExceeded):
            await ask(kernel)
        clock[0] = noon
        with pytest.raises(BudgetExceeded):
            await ask(kernel)
        states = {row["window"]: state_of(row) for row in kernel.store.all("all_spending")}
        assert {(state.spent.pico, state.held) for state in states.values()} == {(2 * BOUND, NOTHING)}
        assert len(states) == 2
        assert drift(kernel.store) == []
