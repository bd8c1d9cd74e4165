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

from twolane.domain.records import Bound
from twolane.kernel.accounts import Limit, Limits
from twolane.kernel.books import Books
from twolane.kernel.switches import tripped_in
from twolane.rules import budgets
from twolane.store import Store, Transaction

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
    """This process's part of one budget window. Money in picounits."""

    scope: str
    window: str
    limit: Limit
    pico: int = 0
    """Free, where the limit is of money."""
    tokens: int = 0
    """Free, where the limit is of tokens."""
    size: tuple[int, int] = (0, 0)
    """The most that may be free: what does not fit goes back with the record that frees it."""
    holds: int = 0
    """Calls that hold of it now."""
    is_filling: bool = False
    asked_with: tuple[int, int] = (0, 0)
    """What was free when it was asked to be filled: no more may be until the answer is there, which counts on it."""
    paused_until: float = 0.0
    used_at: float = 0.0
    _span: float = 0.0
    _used: tuple[int, int] = (0, 0)
    _used_before: tuple[int, int] = (0, 0)
    _largest: tuple[int, int] = (0, 0)
    _smallest: tuple[int, int] = (0, 0)

    def need(self, bound: Bound) -> tuple[int, int]:
        """What a call takes of this block: nothing in a dimension that has no limit."""
        pico = 0 if self.limit.pico is None else bound.pico or 0
        return pico, 0 if self.limit.tokens is None else bound.tokens

    def note(self, need: tuple[int, int], now: float) -> None:
        """A call used the budget: this is what the next block is sized by."""
        if now - self._span > SPAN_S:
            is_next = now - self._span <= 2 * SPAN_S
            self._used_before = self._used if is_next else (0, 0)
            self._smallest = self._smallest if is_next else need
            self._used, self._largest, self._span = (0, 0), need, now
        self._used = (self._used[0] + need[0], self._used[1] + need[1])
        self._largest = (max(self._largest[0], need[0]), max(self._largest[1], need[1]))
        self._smallest = (min(self._smallest[0], need[0]), min(self._smallest[1], need[1]))
        self.used_at = now

    def wish(self) -> Wish:
        """What is asked for: what the last span used, and at least a few of the largest calls."""
        wanted = [max(a, b, CALLS * c) for a, b, c in zip(self._used, self._used_before, self._largest, strict=True)]
        return Wish(self, (wanted[0], wanted[1]), self._smallest, (self.pico, self.tokens))

    def is_low(self) -> bool:
        """Less than half of it is left."""
        return self.pico * 2 < self.size[0] or self.tokens * 2 < self.size[1]

    def room(self) -> tuple[int, int]:
        """How much more may be free."""
        pico, tokens = map(min, self.size, self.asked_with) if self.is_filling else self.size
        return max(0, pico - self.pico), max(0, tokens - self.tokens)

    def is_empty(self) -> bool:
        """Nothing is free."""
        return not (self.pico or self.tokens)


class Wish(NamedTuple):
    """A block to be filled: how far, what its smallest call needs, and what was free when it was asked for."""

    block: Block
    wanted: tuple[int, int]
    smallest: tuple[int, int]
    free: tuple[int, int]


class Grant(NamedTuple):
    """What a block was given, and how much of it may be free."""

    pico: int
    tokens: int
    size: tuple[int, int]


NOTHING = Grant(0, 0, (0, 0))


class Share(NamedTuple):
    """What a hold took of a block; or, at its end, what no longer lies in the block's row."""

    block: Block
    pico: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Chain:
    """The budgets of a chain of scopes, widest first."""

    blocks: tuple[Block, ...]
    until_us: int
    """Its windows hold until then."""


@dataclass(slots=True)
class _Known:
    """What was read of the store, and in which of its epochs."""

    epoch: int = -1
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

    # ── what limits a chain ──

    def chain(self, scopes: tuple[str, ...], now_us: int) -> Chain:
        """The budgets of a chain; a limit that another process changed holds within `store.FRESH_S` of its commit."""
        known, epoch = self._known, self._store.epoch()
        if epoch != known.epoch:
            known.chains.clear()
            known.epoch = epoch
        chain = known.chains.get(scopes)
        if chain is None or now_us >= chain.until_us:
            chain = known.chains[scopes] = self._look_up(scopes, now_us)
        return chain

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
                    block.limit, block.size = limit, (0, 0)
                found.append(block)
        return Chain(tuple(found), budgets.next_day_us(now_us))

    # ── holding ──

    def take(self, scopes: tuple[str, ...], chain: Chain, bound: Bound) -> tuple[Share, ...] | None:
        """Take a bound from every block of a chain, or from none where one cannot carry it (None). Blocks that run low
        are filled in the background."""
        now = time.monotonic()
        shares = tuple(Share(block, *block.need(bound)) for block in chain.blocks)
        for block, pico, tokens in shares:
            if block.pico < pico or block.tokens < tokens:
                return None
        for block, pico, tokens in shares:
            block.pico, block.tokens, block.holds = block.pico - pico, block.tokens - tokens, block.holds + 1
            block.note((pico, tokens), now)
        low = [block for block in chain.blocks if block.is_low()]
        if low:
            self._fill(scopes, low, now)
        return shares

    def ask_ahead(self, scopes: tuple[str, ...], chain: Chain, bound: Bound) -> None:
        """A hold had to be taken in the store: the next ones should not."""
        now = time.monotonic()
        short = []
        for block in chain.blocks:
            need = block.need(bound)
            block.note(need, now)
            if block.is_low() or block.pico < need[0] or block.tokens < need[1]:
                short.append(block)
        if not any(block.paused_until > now for block in chain.blocks):
            self._fill(scopes, short, now)

    def end(self, shares: Sequence[Share], *, pico: int, tokens: int) -> list[Share]:
        """A call that held these shares came to its end and used this much. What it did not use is free again at once,
        as far as its block is still in use; the rest of each share leaves the block, for `settle_in`."""
        now, ended = time.monotonic(), []
        for block, held_pico, held_tokens in shares:
            block.holds -= 1
            room = (0, 0)
            if not self._is_closing and now < block.used_at + IDLE_S and now > block.paused_until:
                room = block.room()
            freed = (min(room[0], max(0, held_pico - pico)), min(room[1], max(0, held_tokens - tokens)))
            block.pico, block.tokens = block.pico + freed[0], block.tokens + freed[1]
            ended.append(Share(block, held_pico - freed[0], held_tokens - freed[1]))
        return ended

    def put_back(self, shares: Sequence[Share]) -> None:
        """A call that held these shares was never made."""
        ended = [share for share in self.end(shares, pico=0, tokens=0) if share.pico or share.tokens]
        if ended:
            self._send(partial(self._take_back, freed=ended), partial(self._given_back, ended))

    def settle_in(
        self, tx: Transaction, ended: Sequence[Share], scopes: Sequence[str], *, pico: int, tokens: int
    ) -> None:
        """Book in the store what `end` said."""
        books = Books.of(tx)
        for block, held_pico, held_tokens in ended:
            books.unlease(self._owner, block.scope, block.window, pico=held_pico, tokens=held_tokens)
            books.spend(block.scope, block.window, pico=pico, tokens=tokens)
        books.spend_late(scopes, [(block.scope, block.window) for block, _, _ in ended], pico=pico, tokens=tokens)

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
            return [NOTHING] * len(wishes)
        asked = list(dict.fromkeys(wish.block.scope for wish in wishes))
        accounts = {(account.scope, account.window): account for account in self._limits.accounts(tx, asked)}
        grants, books = [], Books.of(tx)
        for block, wanted, smallest, free in wishes:
            account = accounts.get((block.scope, block.window))
            grant = NOTHING if account is None else _granted(account, wanted, smallest, free)
            if grant.pico or grant.tokens:
                books.lease(self._owner, block.scope, block.window, pico=grant.pico, tokens=grant.tokens)
            grants.append(grant)
        return grants

    def _filled(self, wishes: Sequence[Wish], limits: Sequence[Limit], grants: Sequence[Grant] | None) -> None:
        now = time.monotonic()
        for wish, limit, grant in zip(wishes, limits, grants or [NOTHING] * len(wishes), strict=True):
            block = wish.block
            block.is_filling = False
            block.pico, block.tokens = block.pico + grant.pico, block.tokens + grant.tokens
            if self._is_closing or block.limit != limit or block.paused_until > now:
                self.give_back([block])
                continue
            block.size = grant.size
            if grant.size == (0, 0) and wish.smallest != (0, 0):
                block.paused_until = now + PAUSE_S
            over = Share(block, max(0, block.pico - grant.size[0]), max(0, block.tokens - grant.size[1]))
            self._return([over])

    def give_back(self, blocks: Sequence[Block]) -> bool:
        """Give back all that is free; it is the store's when this work and what was submitted before it are done.
        True where there was something, or something is still on its way to us (it goes back when it arrives)."""
        is_some = self._return([Share(block, block.pico, block.tokens) for block in blocks])
        return is_some or any(block.is_filling for block in blocks)

    def _return(self, shares: Sequence[Share]) -> bool:
        freed = [share for share in shares if share.pico or share.tokens]
        for block, pico, tokens in freed:
            block.pico, block.tokens = block.pico - pico, block.tokens - tokens
        if freed:
            self._send(partial(self._take_back, freed=freed), partial(self._given_back, freed))
        return bool(freed)

    def _take_back(self, tx: Transaction, *, freed: Sequence[Share]) -> bool:
        for block, pico, tokens in freed:
            Books.of(tx).unlease(self._owner, block.scope, block.window, pico=pico, tokens=tokens)
        return True

    def _given_back(self, freed: Sequence[Share], is_done: bool | None) -> None:
        for block, pico, tokens in (
            freed if not is_done else ()
        ):  # the store still says that it is ours: try again later
            block = self._blocks.setdefault((block.scope, block.window), block)
            block.pico, block.tokens = block.pico + pico, block.tokens + tokens

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
            except Exception:  # noqa: BLE001 - money must not stay here for a failed look: look again
                _LOG.exception("blocks of budgets could not be looked after; trying again")
            await asyncio.sleep(POLL_S)

    def _answer_others(self) -> None:
        version = self._store.version()
        if version == self._seen:
            return
        asked = [(row["scope"], row["window"]) for row in self._store.all("wanted_leases", owner=self._owner)]
        self._seen = version
        if asked:
            self.pause(asked)
            self._send(partial(self._answer, asked=asked), lambda _: None)

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


def _granted(
    account: budgets.Account, wanted: tuple[int, int], smallest: tuple[int, int], free: tuple[int, int]
) -> Grant:
    """What of a wish 1 % of the budget carries; nothing where either dimension carries no call."""
    pico_left, tokens_left = account.left_pico(), account.left_tokens()
    pico = budgets.block_size(
        None if pico_left is None else pico_left + free[0], wanted=wanted[0], smallest=smallest[0]
    )
    tokens = budgets.block_size(
        None if tokens_left is None else tokens_left + free[1], wanted=wanted[1], smallest=smallest[1]
    )
    if (pico == 0 and smallest[0]) or (tokens == 0 and smallest[1]):
        return NOTHING
    size = (pico or 0, tokens or 0)
    return Grant(max(0, size[0] - free[0]), max(0, size[1] - free[1]), size)
