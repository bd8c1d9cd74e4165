"""Money: hold an upper bound on every budget of the chain before a call leaves, end the hold exactly once after it.

A hold is an amount in every dimension that budgets can limit (`rules.budgets.Amount`). Time cannot be bounded before a
call: it is held in slices, and more of it while the call runs (`kernel.clock`).

There are two kinds of hold. One lies in the store, with a row of its own that the transaction deletes that appends its
step's entry: every batch call has one, and so has what must be exact near a limit. The other is taken in memory from
blocks of the budgets that this process has leased (`kernel.blocks`), so that an online call's first token waits for no
disk. Either is in `held` before it is given. What a dead process held is settled whole, as in doubt, by whoever opens
the store next.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType

from twolane.config import BudgetSection
from twolane.domain.money import Money
from twolane.domain.records import Bound, ModelCall, Price
from twolane.errors import BadRequest, BudgetExceeded, Conflict, Refused
from twolane.kernel import doubts, ledger
from twolane.kernel.accounts import Limit, Limits, drift, run_of
from twolane.kernel.blocks import POLL_S, Blocks, Share
from twolane.kernel.books import Books, Window
from twolane.kernel.rollups import count, leaf_amount, used
from twolane.kernel.switches import tripped_in
from twolane.rules import budgets, pricing, reading
from twolane.rules.budgets import NOTHING, Account, Amount, Ceiling
from twolane.store import Store, Transaction, unwaited

__all__ = ["DURABLY", "Durably", "Hold", "Treasury", "count", "drift", "leaf_amount", "used"]

PATIENCE_S = 0.5
"""How long a call that would be refused waits for other processes to give back what is free of their blocks. They do
within `POLL_S` and a commit; this is for those that hang."""


@dataclass(frozen=True, slots=True)
class Hold:
    """A reservation under its step's id: `shares` of this process's blocks, or where it lies in the store, `windows` of
    budgets."""

    step: str
    bound: Bound
    max_tokens: int
    amount: Amount
    """What it holds of each budget; of its time `us` the first slice, 0 where no budget limits any."""
    shares: tuple[Share, ...] = ()
    windows: tuple[Window, ...] = ()


@dataclass(frozen=True, slots=True)
class _Ask:
    """A hold as it is asked for; see `Treasury.reserve`."""

    step: str
    scopes: tuple[str, ...]
    call: ModelCall
    price: Price | None
    may_shrink: bool
    entry: Mapping[str, object]
    intent: Mapping[str, object] | None
    accelerators: int = 0
    slots: int = 1

    def amount(self, bound: Bound, us: int) -> Amount:
        """What is held of each budget for this bound and so much time."""
        return Amount(bound.pico or 0, bound.tokens, 1, us, pricing.accelerator_us(us, self.accelerators, self.slots))


@dataclass(frozen=True, slots=True)
class _Parked:
    """It would be refused, or shortened, while some of the money lies in blocks of these windows."""

    windows: list[tuple[str, str]]
    is_asked: bool
    """Another process has still to answer whether any of it is free."""


@dataclass(frozen=True, slots=True)
class _Running:
    """An online call in flight. What it holds, if anything, lies in memory."""

    scopes: tuple[str, ...]
    call: ModelCall
    price: Price | None
    fields: Mapping[str, object]


class Durably:
    """No block of this process carries it: it is for `Treasury.reserve`."""


DURABLY = Durably()


class _Held:
    """It does not fit beside what is held now, but it may beside what of that will be spent: who waits as long as it
    takes asks again."""


HELD = _Held()
HELD_S = 0.05
"""How long until then, or until a limit that was set just now is known to all."""


class Treasury:
    """Budgets of one store."""

    def __init__(
        self,
        store: Store,
        *,
        currency: str,
        owner: str,
        defaults: Mapping[str, BudgetSection],
        is_alive: Callable[[str], bool],
    ) -> None:
        self._store, self._currency, self._owner, self._is_alive = store, currency, owner, is_alive
        self._limits = Limits({scope: self._limit(section) for scope, section in defaults.items()})
        self._blocks = Blocks(store, owner=owner, limits=self._limits)
        self._blocks.on_change = self.take_up
        self._running: dict[str, _Running] = {}
        self._taken_up: set[str] = set()
        """Those of them that hold in the store too, since a budget was set while they ran."""
        self._in_memory: dict[str, Hold] = {}
        self._in_store: dict[str, Hold | None] = {}
        """Holds that have a row of their own. None where they may still get one, though their caller has gone: a write
        that nobody waits for any more is done too."""

    def _limit(self, section: BudgetSection) -> Limit:
        return Limit(section.period, section.ceiling(self._currency))

    # ── holding ──

    def try_reserve(
        self,
        step: str,
        scopes: Sequence[str],
        call: ModelCall,
        price: Price | None,
        fields: Mapping[str, object] = MappingProxyType({}),
    ) -> Hold | Durably | None:
        """Hold the upper bound of `call` on the whole chain in memory, at once; None where nothing limits the chain.
        `DURABLY` where a block does not carry it, and nothing is held then: `reserve` it. Not for calls that need an
        intent. Unless `DURABLY` the step must be ended; `fields` is its entry as far as it is known.

        It reads no switch. The caller has looked at the store's own rows (`Switches.check`) and looks again right
        before the call leaves, with no await between: so what is held in memory never outlives a switch.
        """
        chain, hold = self._blocks.chain(scopes := tuple(scopes), ledger.now_us()), None
        if chain.blocks:
            if reading.unbounded_part(call, price) is not None:
                return DURABLY
            bound = pricing.upper_bound(call, price)
            amount = Amount(bound.pico or 0, bound.tokens, 1)
            shares = self._blocks.take(scopes, chain, amount)
            if shares is None:
                return DURABLY
            hold = self._in_memory[step] = Hold(step, bound, call.max_tokens, amount, shares)
        # Only now: what is reserved in the store is not for `take_up`, which would hold it twice.
        self._running[step] = _Running(scopes, call, price, fields)
        return hold

    async def reserve(
        self,
        step: str,
        scopes: Sequence[str],
        call: ModelCall,
        price: Price | None,
        *,
        may_shrink: bool,
        entry: Mapping[str, object],
        intent: Mapping[str, object] | None,
        accelerators: int = 0,
        slots: int = 1,
        give_way: Callable[[], Awaitable[None]] | None = None,
    ) -> Hold:
        """Hold the upper bound of `call` on the whole chain, durably.

        `may_shrink`: the caller named no `max_tokens`, so it is lowered to what the budgets can pay. `entry` is what
        the ledger says if this process dies before settling; `intent`, where given, is appended in the same
        transaction. Before it is refused or shortened, money that lies unused in blocks comes back: this process's own
        at once, that of others as soon as they have answered. A call with an intent waits for the calls in flight whose
        holds stand in its way, as long as what they may give back could carry it: so a run is not stopped by bounds
        that nobody will spend. Meanwhile it may `give_way`, which is awaited each time before it asks again: whoever
        holds money may be waiting for its slot. `accelerators` over `slots` is what a call takes of its upstream's
        accelerators.

        Raises:
            BudgetExceeded: a budget cannot hold it; nothing is held.
            SwitchTripped: a switch of the chain is tripped; nothing is held.
        """
        ask = _Ask(step, tuple(scopes), call, price, may_shrink, entry, intent, accelerators, slots)
        self._in_store[step] = None
        while isinstance(answer := await self._ask_for(ask), _Held):
            await asyncio.sleep(HELD_S)
            if give_way is not None:
                await give_way()
        if isinstance(answer, Refused):
            raise answer
        self._in_store[step] = answer
        if intent is None:
            self._blocks.ask_ahead(ask.scopes, self._blocks.chain(ask.scopes, ledger.now_us()), answer.amount)
        return answer

    async def _ask_for(self, ask: _Ask) -> Hold | Refused | _Held:
        answer = await self._store.write(partial(self._hold, ask=ask, is_first=True, is_last=False))
        deadline = time.monotonic() + PATIENCE_S
        while isinstance(answer, _Parked):
            is_ours = self._blocks.pause(answer.windows)
            if answer.is_asked or is_ours:
                await asyncio.sleep(POLL_S / 4)
            if answer.is_asked:
                await self.recover()  # the dead answer nobody
            is_last = not (answer.is_asked or is_ours) or time.monotonic() > deadline
            answer = await self._store.write(partial(self._hold, ask=ask, is_first=False, is_last=is_last))
        return answer

    def _hold(self, tx: Transaction, *, ask: _Ask, is_first: bool, is_last: bool) -> Hold | Refused | _Parked | _Held:
        tripped = tripped_in(tx, ask.scopes)
        if tripped is not None:
            return tripped
        if not self._limits.is_known(tx, ask.scopes):
            return HELD
        chain = self._limits.accounts(tx, ask.scopes)
        unbounded = reading.unbounded_part(ask.call, ask.price) if chain else None
        if unbounded is not None:
            return BadRequest(
                f"the cost of {unbounded} cannot be bounded, and a budget is set: send text or pictures in the request "
                "itself, or give the upstream a price for it"
            )
        us = budgets.slice_us(chain, accelerators=ask.accelerators, slots=ask.slots)
        bound, tokens = pricing.upper_bound(ask.call, ask.price), ask.call.max_tokens
        full = ask.amount(bound, us)
        short = [account for account in chain if account.short_of(full)]
        parked = self._parked(tx, short, is_first=is_first) if short and not is_last else None
        if parked is not None:
            return parked
        if short and ask.intent is not None and all(each.may_carry(full) for each in short):
            return HELD
        if ask.may_shrink and short and tokens:  # embeddings write nothing: there is nothing to lower
            left = budgets.left(chain)
            tokens = max(1, pricing.affordable_tokens(ask.call, ask.price, pico=left.pico, tokens=left.tokens))
            bound = pricing.upper_bound(ask.call.sized(ask.call.model, tokens), ask.price)
        amount = ask.amount(bound, us)
        for account in short:
            if (dimension := account.short_of(amount)) is not None:
                return self.exceeded(account, dimension, amount)
        entry = doubts.entry_of(ask.entry, bound, tokens * pricing.choices(ask.call.extras))
        windows = tuple((account.scope, account.window) for account in chain)
        hold = Hold(ask.step, bound, tokens, amount, windows=windows)
        Books.of(tx).begin_hold(ask.step, windows, amount, owner=self._owner, scopes=ask.scopes, entry=entry)
        if ask.intent is not None:
            ledger.append(tx, ask.intent)
        return hold

    async def hold_time(self, step: str, *, accelerators: int, slots: int) -> int | BudgetExceeded | None:
        """Hold a further slice of time for a call that runs, in the windows where it holds some: microseconds, or why
        there are none; None where nothing limits time any more."""

        def work(tx: Transaction) -> int | BudgetExceeded | None:
            chain = self._limits.accounts_of(tx, Books.of(tx).windows_of(step))
            us = budgets.slice_us(chain, accelerators=accelerators, slots=slots)
            if not us:
                return None
            more = Amount(us=us, accelerator_us=pricing.accelerator_us(us, accelerators, slots))
            for account in chain:
                if (dimension := account.short_of(more)) is not None:
                    return self.exceeded(account, dimension, more)
            Books.of(tx).hold_more(step, more)
            return us

        return await self._store.write(work)

    def _parked(self, tx: Transaction, short: Sequence[Account], *, is_first: bool) -> _Parked | None:
        """Is some of what is missing in blocks? The first time, the processes that have them are asked."""
        windows, is_asked = [], False
        for account in short:
            name = {"scope": account.scope, "window": account.window}
            if not any(Books.of(tx).leased(**name)):
                continue
            windows.append((account.scope, account.window))
            if is_first:
                tx.run("want_leases", owner=self._owner, **name)
            is_asked = is_asked or tx.one("unanswered", owner=self._owner, **name) is not None
        return _Parked(windows, is_asked) if windows else None

    def exceeded(self, account: Account, dimension: str, asked: Amount) -> BudgetExceeded:
        """The refusal, with the figures of that dimension."""
        at = Amount._fields.index(dimension)
        figures = (account.limit[at] or 0, account.spent[at], account.held[at], asked[at])
        texts = [self._told(dimension, figure) for figure in figures]
        return BudgetExceeded(account.scope, limit=texts[0], spent=texts[1], held=texts[2], asked=texts[3])

    def _told(self, dimension: str, figure: int) -> str:
        match dimension:
            case "pico":
                return str(Money(figure, self._currency))
            case "us":
                return f"{budgets.seconds_string(figure)} seconds"
            case "accelerator_us":
                return f"{budgets.seconds_string(figure)} accelerator-seconds"
        return f"{figure:,} {dimension}"

    # ── ending a hold ──

    def ending(self, step: str, scopes: Sequence[str], spent: Amount) -> Callable[[Transaction], None]:
        """End the hold of `step`, wherever it lies, with what was spent. What the answer does must be committed with
        the step's record. What an in-memory hold did not use is free again already now: call this once for a step."""
        if step in self._in_store:
            known = self._in_store.pop(step)
            held = None if known is None else (known.windows, known.amount)
            return lambda tx: Books.of(tx).settle(step, scopes, spent, held=held)
        self._running.pop(step, None)
        hold = self._in_memory.pop(step, None)
        ended = [] if hold is None else self._blocks.end(hold.shares, spent)
        end = partial(self._blocks.settle_in, ended=ended, scopes=scopes, used=spent)
        if step not in self._taken_up:
            return end
        self._taken_up.discard(step)

        def end_both(tx: Transaction) -> None:
            Books.of(tx).end_unknown_hold(step)
            end(tx)

        return end_both

    def release(self, step: str, scopes: Sequence[str]) -> None:
        """End the hold of a step that never left the house. One that lay in memory needs no write, as a rule."""
        if step in self._in_store or step in self._taken_up:
            self._store.submit(self.ending(step, scopes, NOTHING)).add_done_callback(unwaited)
            return
        self._running.pop(step, None)
        if step in self._in_memory:
            self._blocks.put_back(self._in_memory.pop(step).shares)

    def follow(self) -> None:
        """Take up calls in flight if a budget may have been set since the last look."""
        self._blocks.follow()

    def take_up(self) -> None:
        """A budget may have been set: calls in flight that lie in memory hold in the store what they do not hold of it,
        before any later call is asked about. Those in the store were taken up by whoever set it."""
        now_us = ledger.now_us()
        for step, running in list(self._running.items()):
            blocks = self._blocks.chain(running.scopes, now_us).blocks
            if not blocks:
                continue
            hold = self._in_memory.get(step)
            bound = hold.bound if hold else pricing.upper_bound(running.call, running.price)
            amount = Amount(bound.pico or 0, bound.tokens, 1)
            # By a window's length: one of yesterday is as good as one of today, if it was held in then.
            held = {(share.block.scope, len(share.block.window)): share.amount for share in hold.shares} if hold else {}
            missing = [
                (block.scope, block.window)
                for block in blocks
                if not block.limit.most.cut(amount).fits(held.get((block.scope, len(block.window)), NOTHING))
            ]
            if missing:
                entry = doubts.entry_of(
                    running.fields, bound, running.call.max_tokens * pricing.choices(running.call.extras)
                )
                hold_now = partial(
                    self._hold_now, step=step, windows=missing, amount=amount, running=running, entry=entry
                )
                self._taken_up.add(step)
                self._store.submit(hold_now).add_done_callback(unwaited)

    def _hold_now(
        self, tx: Transaction, *, step: str, windows: list[Window], amount: Amount, running: _Running, entry: str
    ) -> None:
        books = Books.of(tx)
        self._limits.accounts(tx, [scope for scope, _ in windows])  # so that they are open
        known = books.windows_of(step)
        if known:
            books.hold_more(step, NOTHING, [window for window in windows if window not in known])
        else:
            books.begin_hold(step, windows, amount, owner=self._owner, scopes=running.scopes, entry=entry)

    async def give_back(self) -> None:
        """Give back what is free of this process's blocks, and wait until the store has it."""
        await self._blocks.give_all_back()

    async def aclose(self) -> None:
        """Take no more blocks, and give back what is free of those there are."""
        await self._blocks.aclose()

    # ── budgets ──

    def accounts(self, tx: Transaction, scopes: Sequence[str]) -> list[Account]:
        """The chain's budgets in their current windows, widest first; windows are opened as needed."""
        return self._limits.accounts(tx, scopes)

    async def all_accounts(self) -> list[Account]:
        """Every budget that was set, in its current window, with what of its held part lies in blocks."""

        def work(tx: Transaction) -> list[Account]:
            found, books = self.accounts(tx, [row["scope"] for row in tx.all("budgets")]), Books.of(tx)
            return [dataclasses.replace(each, leased=books.leased(each.scope, each.window)) for each in found]

        return await self._store.write(work)

    async def set_budget(
        self,
        scope: str,
        *,
        period: str,
        actor: str,
        source: str = "command",
        only_if: Callable[[Limit | None], bool] = lambda _: True,
        **most: int | None,
    ) -> Limit | None:
        """Set a scope's limits from now on (`most`: see `Ceiling`), and give those that stood before. Of two changes at
        once the later wins, unless it says under which limit it holds (`only_if`). What the period already spent
        counts, and what is in flight is held.

        Raises:
            Conflict: another limit is set than `only_if` takes.
        """
        limit = Limit(period, Ceiling(**most))

        def work(tx: Transaction) -> Limit | Conflict | None:
            row, now_us = tx.one("budget", scope=scope), ledger.now_us()
            before = Limit.of(row) if row is not None else None
            if not only_if(before):
                return self._conflict(scope, before)
            tx.run("set_budget", scope=scope, period=limit.period, source=source, since=now_us, **limit.most._asdict())
            _changed(tx, scope, now_us, limit.fields() | {"actor": actor})
            for account in self.accounts(tx, [scope]):
                Books.of(tx).take_up(scope, account.window)
            return before

        answer = await self._store.write(work)
        if isinstance(answer, Conflict):
            raise answer
        return answer

    def told_limit(self, limit: Limit) -> str:
        """A limit in words."""
        texts = [self._told(name, most) for name, most in limit.most._asdict().items() if most is not None]
        return f"{' and '.join(texts) or 'no limit'} {'in total' if limit.period == 'total' else f'per {limit.period}'}"

    def _conflict(self, scope: str, before: Limit | None) -> Conflict:
        there = "no budget is set" if before is None else f"its budget is {self.told_limit(before)}"
        return Conflict(f"{scope}: {there}, since somebody changed it. Look at it, and decide again")

    async def lift_budget(
        self,
        scope: str,
        *,
        actor: str,
        reason: str | None = None,
        source: str | None = None,
        only_if: Callable[[Limit | None], bool] = lambda _: True,
    ) -> Limit | None:
        """Limit a scope no longer, and give the limits that stood; None where there were none, or from another `source`
        than the one named. Its windows stay, so that holds of calls in flight end in them, blocks of it come back, and
        what is spent from now on counts where a budget is set again.

        Raises:
            Conflict: another limit is set than `only_if` takes.
        """

        def work(tx: Transaction) -> Limit | Conflict | None:
            row = tx.one("budget", scope=scope)
            before = Limit.of(row) if row is not None and source in (None, row["source"]) else None
            if not only_if(before):
                return self._conflict(scope, before)
            if before is not None:
                tx.run("remove_budget", scope=scope)
                fields = {"period": before.period, "lifted": 1, "actor": actor, "reason": reason}
                _changed(tx, scope, ledger.now_us(), fields)
            return before

        answer = await self._store.write(work)
        if isinstance(answer, Conflict):
            raise answer
        return answer

    def limit_of_kind(self, scope: str) -> Limit | None:
        """What the configuration sets for each scope of this kind: no command changes that."""
        return self._limits.of_template(scope)

    async def reconcile(
        self, scope: str, window: str | None, *, pico: int | None, actor: str
    ) -> list[tuple[Window, Amount, Amount]]:
        """Say what the provider charged for what is in doubt of a scope (in that window, or in all it has): `pico`, or
        None for nothing at all, neither calls nor tokens. What was booked too much is free again; what happened is
        appended, and nothing is rewritten. Gives each window, with what was in doubt and what it came to.

        Raises:
            NotFound: nothing of that scope is in doubt.
            BadRequest: money cannot be said for several days at once.
        """
        work = partial(doubts.reconcile, scope=scope, window=window, pico=pico, actor=actor)
        answer = await self._store.write(work)
        if isinstance(answer, Refused):
            raise answer
        return answer

    async def recover(self) -> int:
        """Settle the holds and blocks of dead processes whole, as in doubt; their number."""
        dead = {row["owner"] for row in self._store.all("owners") if not self._is_alive(row["owner"])}
        return await self._store.write(partial(doubts.settle_dead, dead=dead)) if dead else 0


def _changed(tx: Transaction, scope: str, now_us: int, fields: Mapping[str, object]) -> None:
    """A limit is another one from this commit on."""
    ledger.append(tx, {"v": 1, "kind": "budget", "scope": scope, **fields, "at_us": now_us, **run_of(scope)})
