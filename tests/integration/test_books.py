"""What a commit group changes in the money: written once, whatever order its works come in and whoever else acts."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from twolane.domain.money import PICO
from twolane.domain.records import Message, ModelCall, Price
from twolane.errors import BudgetExceeded, SwitchTripped
from twolane.kernel import accounts, doubts, treasury
from twolane.kernel.books import Books, State, state_of
from twolane.kernel.treasury import Hold, Treasury
from twolane.rules.budgets import NOTHING, Amount
from twolane.store import Transaction
from twolane.store.sqlite import SQLiteStore

PRICE = Price(input=10**6, output=2 * 10**6)
CALL = ModelCall((Message("user", "hello there"),), "m", 100)


class Bank:
    """A treasury, its store, and one budget."""

    def __init__(self, path: Path) -> None:
        self.store = SQLiteStore(path)
        self.treasury = Treasury(self.store, currency="USD", owner="a0", defaults={}, is_alive=lambda owner: True)

    async def set_budget(self, scope: str, pico: int) -> None:
        await self.treasury.set_budget(scope, period="total", pico=pico, tokens=None, actor="test")

    def hold(self, step: str, *, is_last: bool = True) -> Callable[[Transaction], object]:
        """A work that asks for a hold."""
        entry = {"kind": "step", "step": step, "tenant": "t"}
        ask = treasury._Ask(step, ("tenant:t",), CALL, PRICE, may_shrink=False, entry=entry, intent=None)
        return lambda tx: self.treasury._hold(tx, ask=ask, is_first=True, is_last=is_last)

    def account(self) -> State:
        row = self.store.one("spending", scope="tenant:t", window="total")
        return state_of(row) if row else State(NOTHING, NOTHING)


@pytest.fixture
async def bank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bank]:
    monkeypatch.setattr(accounts, "NEWS_US", 0)  # no calls are in flight that a new limit would have to wait for
    bank = Bank(tmp_path / "store.db")
    await bank.set_budget("tenant:t", PICO)
    yield bank
    bank.store.close()


async def in_one_group(bank: Bank, *works: Callable[[Transaction], object]) -> list[Any]:  # Any: each its own
    """These works, in this order, in one commit."""
    return await bank.store.write(lambda tx: [work(tx) for work in works])


async def test_a_hold_that_begins_and_ends_in_one_group_leaves_its_cost_and_no_row(bank: Bank) -> None:
    held: list[Any] = []
    await in_one_group(
        bank,
        lambda tx: held.append(bank.hold("s")(tx)),
        lambda tx: Books.of(tx).settle("s", ("tenant:t",), Amount(7, 3), held=(held[0].windows, held[0].amount)),
    )
    assert bank.store.all("reservations") == []
    assert bank.account() == State(Amount(7, 3), NOTHING)


@pytest.mark.parametrize("is_known", [True, False], ids=["known to its holder", "known to the store alone"])
async def test_a_hold_ends_once_though_another_process_took_its_holder_for_dead(bank: Bank, is_known: bool) -> None:
    first, _ = await in_one_group(bank, bank.hold("a"), bank.hold("b"))
    assert isinstance(first, Hold)
    bound, tokens = first.amount[:2]
    assert bank.account().held.pico == 2 * bound
    await bank.store.write(lambda tx: Books.of(tx).settle("a", ("tenant:t",), Amount(bound, tokens)))
    hold = (first.windows, first.amount) if is_known else None
    await bank.store.write(lambda tx: Books.of(tx).settle("a", ("tenant:t",), Amount(5, 1), held=hold))
    assert bank.account() == State(Amount(bound + 5, tokens + 1), Amount(bound, tokens, 1))
    assert [row["step"] for row in bank.store.all("reservations")] == ["b"]


async def test_a_hold_whose_caller_left_before_it_heard_of_it_is_ended_in_the_same_group(bank: Bank) -> None:
    await in_one_group(bank, bank.hold("s"), lambda tx: Books.of(tx).settle("s", ("tenant:t",), Amount(0, 0)))
    assert bank.store.all("reservations") == []
    assert bank.account() == State(NOTHING, NOTHING)


NO_MORE = dict.fromkeys(("tokens", "calls", "us", "accelerator_us"))


def lower(tx: Transaction) -> None:
    tx.run("set_budget", scope="tenant:t", period="total", pico=1, source="command", since=0, **NO_MORE)


def trip(tx: Transaction) -> None:
    tx.run("trip", scope="tenant:t", cause="test", actor="test", tripped=1)


async def test_what_changes_inside_a_group_holds_for_the_works_after_it(bank: Bank) -> None:
    before, _, lowered, _, tripped = await in_one_group(
        bank, bank.hold("a"), lower, bank.hold("b"), trip, bank.hold("c")
    )
    assert isinstance(before, Hold)
    assert isinstance(lowered, BudgetExceeded)
    assert isinstance(tripped, SwitchTripped)


async def test_a_limit_that_was_set_and_rolled_back_is_not_remembered(bank: Bank) -> None:
    await bank.store.write(bank.hold("a"))

    def fails(tx: Transaction) -> None:
        lower(tx)
        assert bank.treasury.accounts(tx, ["tenant:t"])[0].limit.pico == 1
        raise LookupError("rehearsed")

    with pytest.raises(LookupError):
        await bank.store.write(fails)
    await bank.set_budget("tenant:other", 1)  # the epoch is now the number that was rolled back
    (account,) = await bank.store.write(lambda tx: bank.treasury.accounts(tx, ["tenant:t"]))
    assert account.limit.pico == PICO


async def test_a_limit_that_was_read_beside_a_trip_that_was_rolled_back_is_not_remembered(bank: Bank) -> None:
    def fails(tx: Transaction) -> None:
        trip(tx)
        bank.treasury.accounts(tx, ["tenant:t"])
        raise LookupError("rehearsed")

    with pytest.raises(LookupError):
        await bank.store.write(fails)
    other = SQLiteStore(bank.store.path)
    await other.write(lower)  # the epoch is now the number that was rolled back
    other.close()
    assert isinstance(await bank.store.write(bank.hold("b")), BudgetExceeded)


async def test_a_limit_that_another_process_changed_holds_for_the_next_group(bank: Bank) -> None:
    await bank.store.write(bank.hold("a"))
    other = SQLiteStore(bank.store.path)
    await other.write(lower)
    other.close()
    assert isinstance(await bank.store.write(bank.hold("b")), BudgetExceeded)


async def test_what_is_spent_without_a_hold_counts_before_the_next_hold_of_its_group(bank: Bank) -> None:
    await bank.store.write(lambda tx: bank.treasury.accounts(tx, ["tenant:t"]))  # its window is open
    _, refused = await in_one_group(
        bank, lambda tx: Books.of(tx).settle("s", ("all", "tenant:t"), Amount(PICO, 1)), bank.hold("b")
    )
    assert isinstance(refused, BudgetExceeded)
    assert bank.account().spent.pico == PICO


async def test_a_dead_processs_block_is_booked_once_though_two_find_it_dead_at_the_same_time(bank: Bank) -> None:
    block = Amount(pico=7, tokens=5, calls=3)
    await bank.store.write(lambda tx: Books.of(tx).lease("dead", "tenant:t", "total", block))
    settle = [lambda tx: doubts.settle_dead(tx, dead={"dead"})] * 2
    assert await in_one_group(bank, *settle) == [1, 0]
    assert bank.account() == State(block, NOTHING)


async def test_what_was_leased_in_the_same_group_is_asked_for_before_a_hold_is_refused(bank: Bank) -> None:
    _, answer = await in_one_group(
        bank,
        lambda tx: Books.of(tx).lease("a0", "tenant:t", "total", Amount(pico=PICO)),
        bank.hold("s", is_last=False),
    )
    assert answer == treasury._Parked([("tenant:t", "total")], is_asked=False)
