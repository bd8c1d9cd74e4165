"""Two treasuries on one store, in every order of reserving, settling, giving back, crashing and changing limits: the
books agree at every commit, and nothing is overspent that the upstream did not overstate."""

from __future__ import annotations

import asyncio
import tempfile
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from twolane.domain.records import Message, ModelCall, Price, Status
from twolane.errors import BudgetExceeded
from twolane.kernel import leases, ledger
from twolane.kernel.treasury import DURABLY, Durably, Hold, Treasury, count, drift, used
from twolane.rules import pricing
from twolane.store import Transaction
from twolane.store.sqlite import SQLiteStore

PRICE = Price(input=1, output=1)
LIMIT = 1_000_000
SCOPES = ("all", "tenant:t", "key:t/k")
SIZES = st.sampled_from([10, 100, 100, 500, 500, 2_000, 60_000])


class Process:
    """A treasury with the calls that it holds money for."""

    def __init__(self, path: Path, name: str, alive: set[str]) -> None:
        self.store, self.name, self.holds = SQLiteStore(path), name, dict[str, Hold]()
        self.treasury = Treasury(
            self.store, currency="USD", owner=name, defaults={}, is_alive=lambda owner: owner in alive
        )
        alive.add(name)


class Machine(RuleBasedStateMachine):
    """Rules are what a process may do; `loop` runs each to its end, and what it left in the background as far as it
    comes."""

    @initialize()
    def open(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "store.db"
        self.loop = asyncio.new_event_loop()
        self.now = 1000.0
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(leases, "time", SimpleNamespace(monotonic=lambda: self.now))
        self.alive: set[str] = set()
        self.steps, self.overstated = 0, 0
        self.limits = dict.fromkeys(SCOPES, LIMIT)
        self.processes = [Process(self.path, name, self.alive) for name in ("a0", "b0")]
        for scope in SCOPES:
            self.run(self.processes[0].treasury.set_budget(scope, period="total", pico=LIMIT, tokens=None, actor="t"))
        self.most = dict.fromkeys(SCOPES, LIMIT)

    def run(self, work: Any) -> Any:  # Any: each work has its own answer
        return self.loop.run_until_complete(work)

    @rule(which=st.integers(0, 1), size=SIZES, is_batch=st.booleans(), may_shrink=st.booleans())
    def reserve(self, which: int, size: int, is_batch: bool, may_shrink: bool) -> None:
        self.run(self._reserve(self.processes[which], size, is_batch, may_shrink))

    async def _reserve(self, process: Process, size: int, is_batch: bool, may_shrink: bool) -> None:
        self.steps += 1
        step, call = f"s{self.steps}", ModelCall((Message("user", "q"),), "m", size)
        hold = DURABLY if is_batch else process.treasury.try_reserve(step, SCOPES, call, PRICE)
        if isinstance(hold, Durably):
            entry = {"v": 1, "kind": "step", "step": step, "tenant": "t", "api_key": "k"}
            intent = {"v": 1, "kind": "intent", "step": step} if is_batch else None
            with suppress(BudgetExceeded):
                hold = await process.treasury.reserve(
                    step, SCOPES, call, PRICE, may_shrink=may_shrink, entry=entry, intent=intent
                )
        assert hold is not None, "a budget is always set"
        if not isinstance(hold, Durably):
            assert hold.max_tokens == size or may_shrink
            assert hold.bound == pricing.upper_bound(ModelCall(call.messages, "m", hold.max_tokens), PRICE)
            process.holds[step] = hold

    @rule(which=st.integers(0, 1), share=st.sampled_from([0.0, 0.1, 1.0, 3.0]))
    def settle(self, which: int, share: float) -> None:
        process = self.processes[which]
        if process.holds:
            step, hold = process.holds.popitem()
            bound = hold.bound.pico or 0
            pico = int(bound * share)
            self.overstated += max(0, pico - bound)
            self.run(self._settle(process, step, pico))

    async def _settle(self, process: Process, step: str, pico: int) -> None:
        fields = {"v": 1, "kind": "step", "op": "chat", "step": step, "tenant": "t", "api_key": "k", "cost_pico": pico}
        fields |= {"status": Status.OK, "at_us": ledger.now_us(), "input_tokens": pico, "output_tokens": 0}
        fields |= {"total_us": 7}
        end = process.treasury.ending(step, SCOPES, used(fields, pico=pico))

        def work(tx: Transaction) -> None:
            end(tx)
            ledger.append(tx, fields)
            count(tx, fields, pico=pico)

        await process.store.write(work)

    @rule(which=st.integers(0, 1))
    def release(self, which: int) -> None:
        process = self.processes[which]
        if process.holds:
            step, _ = process.holds.popitem()

            async def released() -> None:
                process.treasury.release(step, SCOPES)
                await process.store.write(lambda tx: None)

            self.run(released())

    @rule(which=st.integers(0, 1))
    def give_back(self, which: int) -> None:
        self.run(self.processes[which].treasury.give_back())

    @rule(seconds=st.sampled_from([0.1, 0.3, 2.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(which=st.integers(0, 1), scope=st.sampled_from(SCOPES), size=st.sampled_from([LIMIT // 2, LIMIT, 2 * LIMIT]))
    def set_budget(self, which: int, scope: str, size: int) -> None:
        self.run(self.processes[which].treasury.set_budget(scope, period="total", pico=size, tokens=None, actor="t"))
        self.most[scope] = max(self.most[scope], size)

    @rule(which=st.integers(0, 1), scope=st.sampled_from(SCOPES[1:]))
    def lift_budget(self, which: int, scope: str) -> None:
        if self.run(self.processes[which].treasury.lift_budget(scope, actor="t")) is not None:
            self.most[scope] = 2**62

    @rule(which=st.integers(0, 1))
    def crash(self, which: int) -> None:
        """It is gone with all that it had in memory; the other one finds out."""
        dead = self.processes[which]
        self.alive.discard(dead.name)
        keeper = dead.treasury._blocks._keeper
        if keeper is not None:
            keeper.cancel()
        self.run(dead.store.write(lambda tx: None))
        dead.store.close()
        self.run(self.processes[1 - which].treasury.recover())
        self.processes[which] = Process(self.path, f"{dead.name[0]}{self.steps + 1}", self.alive)

    @invariant()
    def the_books_agree(self) -> None:
        if hasattr(self, "processes"):
            assert drift(self.processes[0].store) == []

    @invariant()
    def nothing_is_overspent(self) -> None:
        if hasattr(self, "processes"):
            for row in self.processes[0].store.all("all_spending"):
                assert row["spent_pico"] + row["held_pico"] <= self.most[row["scope"]] + self.overstated

    @invariant()
    def a_block_is_what_its_process_has(self) -> None:
        if not hasattr(self, "processes"):
            return
        for process in self.processes:
            self.run(self._compare(process))

    async def _compare(self, process: Process) -> None:
        await process.treasury._blocks._arrivals()
        kept = {row["scope"]: row["pico"] for row in process.store.all("leases") if row["owner"] == process.name}
        for scope in SCOPES:  # and no await in here: what looks after the blocks stands still meanwhile
            block = process.treasury._blocks._blocks.get((scope, "total"))
            shares = [share for hold in process.holds.values() for share in hold.shares]
            held = sum(share.amount.pico for share in shares if share.block.scope == scope)
            free = block.free.pico if block is not None else 0
            assert kept.get(scope, 0) == held + free
            assert block is None or free <= max(block.size.pico, 0)

    def teardown(self) -> None:
        if hasattr(self, "processes"):
            for process in self.processes:
                self.run(process.treasury.aclose())
                process.store.close()
            self.loop.run_until_complete(asyncio.sleep(0))
            self.loop.close()
            self.patch.undo()
            self.folder.cleanup()


Machine.TestCase.settings = settings(
    max_examples=15, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
)
TestTreasuries = Machine.TestCase
