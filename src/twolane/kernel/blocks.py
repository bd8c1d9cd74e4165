"""Blocks: money of a budget that lies in this process's hands, so that a call is held without waiting for the disk.

A block was taken from its budget in the store (`held` and a row of `lease`, in one transaction), so whatever is
reserved from it in memory is within the limit. What is true at every commit, by dimension:

    the row of `lease`  =  free  +  held by calls that run here  +  spent by calls whose record is on its way
                           (+ what was just granted and has not arrived, + what is on its way back)

Everything here belongs to the event loop's thread and changes without an await; the store is reached by works alone.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, TypeVar

from twolane.errors import StoreError
from twolane.kernel.accounts import Limit, Limits
from twolane.kernel.books import Books
from twolane.kernel.switches import tripped_in
from twolane.rules import budgets
from twolane.rules.budgets import NOTHING, Amount
from twolane.store import AWAY_S, Store, Transaction

IDLE_S = 0.4
"""An unused block goes back after this; with the poll and a commit it is in the store again within 0.5 s."""
POLL_S = 0.02
"""How often a process that holds blocks looks whether somebody else was refused."""
SPAN_S = 0.25
"""A block is sized by what this time used of its budget."""
CALLS = 8
"""… and carries at least this many of its largest calls, where 1 % of the budget does."""
PAUSE_S = 1.0
"""How long a budget on which somebody was refused, or of which 1 % carries no call, is asked for no block: holds are
then taken one by one in the store."""

_LOG = logging.getLogger("twolane.kernel")

T = TypeVar("T")


@dataclass(slots=True, eq=False)
class Block:
    """This process's part of one budget window."""

    scope: str
    window: str
    limit: Limit
    free: Amount = NOTHING
    """In the dimensions that are limited."""
    size: Amount = NOTHING
    """The most that may be free: what does not fit goes back with the record that frees it."""
    holds: int = 0
    """Calls that hold of it now."""
    is_filling: bool = False
    asked_with: Amount = NOTHING
    """What was free when it was asked to be filled: no more may be until the answer is there, which counts on it."""
    paused_until: float = 0.0
    used_at: float = 0.0
    _span: float = 0.0
    _used: Amount = NOTHING
    _used_before: Amount = NOTHING
    _largest: Amount = NOTHING
    _smallest: Amount = NOTHING

    def note(self, need: Amount, now: float) -> None:
        """A call used the budget: this is what the next block is sized by."""
        if now - self._span > SPAN_S:
            is_next = now - self._span <= 2 * SPAN_S
            self._used_before = self._used if is_next else NOTHING
            self._smallest = self._smallest if is_next else need
            self._used, self._largest, self._span = NOTHING, need, now
        self._used = self._used.plus(need)
        if not need.fits(self._largest):
            self._largest = self._largest.most(need)
        if not self._smallest.fits(need):
            self._smallest = self._smallest.least(need)
        self.used_at = now

    def wish(self) -> Wish:
        """What is asked for: what the last span used, and at least a few of the largest calls."""
        few = Amount(*[CALLS * figure for figure in self._largest])
        return Wish(self, self._used.most(self._used_before).most(few), self._smallest, self.free)

    def is_low(self) -> bool:
        """Less than half of it is left."""
        a, b, c, d, e = self.free
        size = self.size
        return a * 2 < size[0] or b * 2 < size[1] or c * 2 < size[2] or d * 2 < size[3] or e * 2 < size[4]

    def freed(self, held: Amount, used: Amount) -> Amount:
        """What of a hold that was not used may be free again."""
        size = self.size.least(self.asked_with) if self.is_filling else self.size
        room = size.minus(self.free)
        a, b, c, d, e = held.minus(used)
        return Amount(
            min(a, room[0]) if a > 0 < room[0] else 0,
            min(b, room[1]) if b > 0 < room[1] else 0,
            min(c, room[2]) if c > 0 < room[2] else 0,
            min(d, room[3]) if d > 0 < room[3] else 0,
            min(e, room[4]) if e > 0 < room[4] else 0,
        )

    def is_empty(self) -> bool:
        """Nothing is free."""
        return not any(self.free)


class Wish(NamedTuple):
    """A block to be filled: how far, what its smallest call needs, and what was free when it was asked for."""

    block: Block
    wanted: Amount
    smallest: Amount
    free: Amount


class Grant(NamedTuple):
    """What a block was given, and how much of it may be free."""

    amount: Amount
    size: Amount


NO_GRANT = Grant(NOTHING, NOTHING)


class Share(NamedTuple):
    """What a hold took of a block; or, at its end, what no longer lies in the block's row."""

    block: Block
    amount: Amount


@dataclass(frozen=True, slots=True)
class Chain:
    """The budgets of a chain of scopes, widest first."""

    blocks: tuple[Block, ...]
    is_for_blocks: bool
    """False where calls are held in the store one by one: time is limited, which is held as it passes, or nothing is
    admitted at all."""


@dataclass(slots=True)
class _Known:
    """What was read of the store, in which of its epochs and on which day."""

    epoch: int = -1
    day: int = -1
    chains: dict[tuple[str, ...], Chain] = field(default_factory=dict)


MOST_CHAINS = 4096
"""Chains remembered at a time."""


class Blocks:
    """The blocks of one process."""

    def __init__(self, store: Store, *, owner: str, limits: Limits) -> None:
        self._store, self._owner, self._limits = store, owner, limits
        self._known = _Known()
        self._blocks: dict[tuple[str, str], Block] = {}
        self._on_the_way: set[asyncio.Future[Any]] = set()  # Any: each work has its own answer
        self._keeper: asyncio.Task[None] | None = None
        self._seen = -1
        self._is_closing = False
        self.on_change: Callable[[], None] = lambda: None
        """Called when limits may be others than they were."""

    # ── what limits a chain ──

    def chain(self, scopes: tuple[str, ...], now_us: int) -> Chain:
        """The budgets of a chain; a limit that another process changed holds within `store.FRESH_S` of its commit."""
        known, day = self._known, now_us // budgets.DAY_US
        if self._store.epoch() != known.epoch:
            self.follow()
        if day != known.day:  # also where a clock was set back: no window of another day is used
            known.chains.clear()
            known.day = day
        chain = known.chains.get(scopes)
        if chain is None:
            chain = known.chains[scopes] = self._look_up(scopes, now_us)
        return chain

    def follow(self) -> None:
        """Call `on_change` if limits may be others than at the last look; again at the next look where it fails."""
        known, epoch = self._known, self._store.epoch()
        if epoch == known.epoch:
            return
        known.chains.clear()
        known.epoch = epoch  # before it: it looks chains up
        try:
            self.on_change()
        except BaseException:
            known.epoch = -1
            raise

    def _look_up(self, scopes: tuple[str, ...], now_us: int) -> Chain:
        if len(self._known.chains) >= MOST_CHAINS:
            self._known.chains.clear()
        if not self._known.chains:  # no chain knows a block any more: those that are empty and unused can go
            self._blocks = {
                key: block
                for key, block in self._blocks.items()
                if block.holds or block.is_filling or not block.is_empty()
            }
        found = []
        for scope in scopes:
            for window, limit in self._limits.of(self._store, scope, now_us).items():
                block = self._blocks.setdefault((scope, window), Block(scope, window, limit))
                if block.limit != limit:  # what was taken under the old limit is not for use under the new one
                    self.give_back([block])
                    block.limit, block.size = limit, NOTHING
                found.append(block)
        is_for_blocks = not any(block.limit.most.is_timed or block.limit.most.is_closed for block in found)
        return Chain(tuple(found), is_for_blocks)

    # ── holding ──

    def take(self, scopes: tuple[str, ...], chain: Chain, amount: Amount) -> tuple[Share, ...] | None:
        """Take an amount from every block of a chain, or from none where one cannot carry it (None). Blocks that run
        low are filled in the background."""
        if not chain.is_for_blocks:
            return None
        now = time.monotonic()
        shares = tuple([Share(block, block.limit.most.cut(amount)) for block in chain.blocks])
        for block, need in shares:
            if not need.fits(block.free):
                return None
        low = []
        for block, need in shares:
            block.free, block.holds = block.free.minus(need), block.holds + 1
            block.note(need, now)
            if block.is_low():
                low.append(block)
        if low:
            self._fill(scopes, low, now)
        return shares

    def ask_ahead(self, scopes: tuple[str, ...], chain: Chain, amount: Amount) -> None:
        """A hold had to be taken in the store: the next ones should not."""
        if not chain.is_for_blocks:
            return
        now = time.monotonic()
        short = []
        for block in chain.blocks:
            need = block.limit.most.cut(amount)
            block.note(need, now)
            if block.is_low() or not need.fits(block.free):
                short.append(block)
        if not any(block.paused_until > now for block in chain.blocks):
            self._fill(scopes, short, now)

    def end(self, shares: Sequence[Share], used: Amount) -> list[Share]:
        """A call that held these shares came to its end and used this much. What it did not use is free again at once,
        as far as its block is still in use; the rest of each share leaves the block, for `settle_in`."""
        now, ended = time.monotonic(), []
        for block, held in shares:
            block.holds -= 1
            if not self._is_closing and now < block.used_at + IDLE_S and now > block.paused_until:
                freed = block.freed(held, used)
                block.free, held = block.free.plus(freed), held.minus(freed)
            ended.append(Share(block, held))
        return ended

    def put_back(self, shares: Sequence[Share]) -> None:
        """A call that held these shares was never made."""
        ended = [share for share in self.end(shares, NOTHING) if any(share.amount)]
        if ended:
            self._send(partial(self._take_back, freed=ended), partial(self._given_back, ended))

    def settle_in(self, tx: Transaction, ended: Sequence[Share], scopes: Sequence[str], used: Amount) -> None:
        """Book in the store what `end` said."""
        books = Books.of(tx)
        for block, held in ended:
            books.unlease(self._owner, block.scope, block.window, held)
            books.spend(block.scope, block.window, used)
        books.spend_late(scopes, [(block.scope, block.window) for block, _ in ended], used)

    # ── filling and giving back ──

    def _fill(self, scopes: tuple[str, ...], blocks: Sequence[Block], now: float) -> None:
        wishes = [block.wish() for block in blocks if not block.is_filling and block.paused_until <= now]
        if not wishes or self._is_closing:
            return
        for wish in wishes:
            wish.block.is_filling, wish.block.asked_with = True, wish.free
        limits = [wish.block.limit for wish in wishes]
        self._send(partial(self._grant, scopes=scopes, wishes=wishes), partial(self._filled, wishes, limits))

    def _grant(self, tx: Transaction, *, scopes: Sequence[str], wishes: Sequence[Wish]) -> list[Grant]:
        """Take what is wished from the budgets, as far as their limits and a switch of the chain allow."""
        if tripped_in(tx, scopes) is not None:
            return [NO_GRANT] * len(wishes)
        asked = list(dict.fromkeys(wish.block.scope for wish in wishes))
        accounts = {(account.scope, account.window): account for account in self._limits.accounts(tx, asked)}
        grants, books = [], Books.of(tx)
        is_known = self._limits.is_known(tx, asked)
        for block, wanted, smallest, free in wishes:
            account = accounts.get((block.scope, block.window)) if is_known else None
            grant = NO_GRANT if account is None else _granted(account, wanted, smallest, free)
            if any(grant.amount):
                books.lease(self._owner, block.scope, block.window, grant.amount)
            grants.append(grant)
        return grants

    def _filled(self, wishes: Sequence[Wish], limits: Sequence[Limit], grants: Sequence[Grant] | None) -> None:
        now = time.monotonic()
        for wish, limit, grant in zip(wishes, limits, grants or [NO_GRANT] * len(wishes), strict=True):
            block = wish.block
            block.is_filling = False
            block.free = block.free.plus(grant.amount)
            if self._is_closing or block.limit != limit or block.paused_until > now:
                self.give_back([block])
                continue
            block.size = grant.size
            if not any(grant.size) and any(wish.smallest):
                block.paused_until = now + PAUSE_S
            self._return([Share(block, block.free.above(grant.size))])

    def give_back(self, blocks: Sequence[Block]) -> bool:
        """Give back all that is free; it is the store's when this work and what was submitted before it are done.
        True where there was something, or something is still on its way to us (it goes back when it arrives)."""
        is_some = self._return([Share(block, block.free) for block in blocks])
        return is_some or any(block.is_filling for block in blocks)

    def _return(self, shares: Sequence[Share]) -> bool:
        freed = [share for share in shares if any(share.amount)]
        for block, amount in freed:
            block.free = block.free.minus(amount)
        if freed:
            self._send(partial(self._take_back, freed=freed), partial(self._given_back, freed))
        return bool(freed)

    def _take_back(self, tx: Transaction, *, freed: Sequence[Share]) -> bool:
        for block, amount in freed:
            Books.of(tx).unlease(self._owner, block.scope, block.window, amount)
        return True

    def _given_back(self, freed: Sequence[Share], is_done: bool | None) -> None:
        for block, amount in freed if not is_done else ():  # the store still says that it is ours: try again later
            block = self._blocks.setdefault((block.scope, block.window), block)
            block.free = block.free.plus(amount)

    def pause(self, accounts: Sequence[tuple[str, str]]) -> bool:
        """Somebody was refused on these windows: give back, and hold one by one for a while. As `give_back`."""
        until = time.monotonic() + PAUSE_S
        blocks = [block for key in accounts if (block := self._blocks.get(key)) is not None]
        for block in blocks:
            block.paused_until = until
        return self.give_back(blocks)

    def _send(self, work: Callable[[Transaction], T], arrived: Callable[[T | None], None]) -> None:
        """Hand a work to the writer and hear of its answer; None where it failed and nothing of it was kept."""

        def done(future: asyncio.Future[T]) -> None:
            self._on_the_way.discard(future)
            error = future.exception()
            if error is not None:
                _LOG.warning("a block of a budget could not be moved: %s", error)
            arrived(None if error is not None else future.result())

        future = self._store.submit(work)
        self._on_the_way.add(future)
        future.add_done_callback(done)
        if not self._is_closing and (self._keeper is None or self._keeper.done()):
            self._keeper = asyncio.get_running_loop().create_task(self._keep())

    # ── keeping ──

    async def _keep(self) -> None:
        """Look after the blocks while there are any."""
        while any(block.holds or block.is_filling or not block.is_empty() for block in self._blocks.values()):
            try:
                self._answer_others()
                self._return_idle()
            except StoreError as error:
                _LOG.warning("blocks of budgets could not be looked after, trying again: %s", error)
                await asyncio.sleep(AWAY_S)
            except Exception:  # noqa: BLE001 - money must not stay here for a failed look: look again
                _LOG.exception("blocks of budgets could not be looked after; trying again")
            await asyncio.sleep(POLL_S)

    def _answer_others(self) -> None:
        version = self._store.version()
        if version == self._seen:
            return
        asked = [(row["scope"], row["window"]) for row in self._store.all("wanted_leases", owner=self._owner)]
        self.pause(asked)
        # What is on its way to a block goes back when it arrives: only then is the answer that nothing is free.
        still = {key for key in asked if (block := self._blocks.get(key)) is not None and block.is_filling}
        self._seen = -1 if still else version
        if answered := [key for key in asked if key not in still]:
            self._send(partial(self._answer, asked=answered), lambda _: None)

    def _answer(self, tx: Transaction, *, asked: Sequence[tuple[str, str]]) -> None:
        for scope, window in asked:
            tx.run("answer_wanted", scope=scope, window=window, owner=self._owner)

    def _return_idle(self) -> None:
        now = time.monotonic()
        idle = [b for b in self._blocks.values() if not b.is_empty() and now >= b.used_at + IDLE_S]
        if idle:
            self.give_back(idle)

    async def give_all_back(self) -> None:
        """Give back everything that is free and wait until the store has it."""
        await self._arrivals()
        self.give_back(list(self._blocks.values()))
        await self._arrivals()

    async def _arrivals(self) -> None:
        while self._on_the_way:
            await asyncio.wait(self._on_the_way)

    async def aclose(self) -> None:
        """Take no more blocks, and give back what is free."""
        self._is_closing = True
        if self._keeper is not None:
            self._keeper.cancel()
        await self.give_all_back()


def _granted(account: budgets.Account, wanted: Amount, smallest: Amount, free: Amount) -> Grant:
    """What of a wish 1 % of the budget carries; nothing where any dimension carries no call."""
    size = []
    for left, most, least, at_hand in zip(account.left(), wanted, smallest, free, strict=True):
        part = budgets.block_size(None if left is None else left + at_hand, wanted=most, smallest=least)
        if part == 0 and least:
            return NO_GRANT
        size.append(part or 0)
    return Grant(Amount(*size).above(free), Amount(*size))
