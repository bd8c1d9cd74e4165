"""Money: hold an upper bound on every budget of the chain before a call leaves, end the hold exactly once after it.

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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import orjson

from twolane.config import BudgetSection
from twolane.domain.money import Money, decimal_string
from twolane.domain.records import Bound, ModelCall, Origin, Price, Status
from twolane.errors import BadRequest, BudgetExceeded, Refused
from twolane.kernel import accounts, ledger
from twolane.kernel.accounts import Limit, Limits, drift
from twolane.kernel.blocks import POLL_S, Blocks, Share
from twolane.kernel.books import Books, Window
from twolane.kernel.rollups import count, leaf_amount
from twolane.kernel.switches import tripped_in
from twolane.rules import budgets, pricing
from twolane.rules.budgets import Account
from twolane.store import Store, Transaction

__all__ = ["Hold", "Treasury", "count", "drift", "leaf_amount", "settle"]

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
    shares: tuple[Share, ...] = ()
    windows: tuple[Window, ...] = ()

    def money(self) -> tuple[int, int]:
        """Picounits and tokens, in each of the windows."""
        return self.bound.pico or 0, self.bound.tokens


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


@dataclass(frozen=True, slots=True)
class _Parked:
    """It would be refused, or shortened, while some of the money lies in blocks of these windows."""

    windows: list[tuple[str, str]]
    is_asked: bool
    """Another process has still to answer whether any of it is free."""


class _Held:
    """It does not fit beside what is held now, but it may beside what of that will be spent: who waits as long as it
    takes asks again."""


HELD = _Held()
HELD_S = 0.05
"""How long until then."""


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
        self._in_memory: dict[str, Hold] = {}
        self._in_store: dict[str, Hold | None] = {}
        """Holds that have a row of their own. None where they may still get one, though their caller has gone: a write
        that nobody waits for any more is done too."""

    def _limit(self, section: BudgetSection) -> Limit:
        pico = None if section.money is None else Money.parse(section.money, self._currency).pico
        return Limit(section.period, pico, section.tokens)

    def is_limited(self, scopes: Sequence[str]) -> bool:
        """True when any scope of the chain has a budget: only then is a hold needed."""
        return bool(self._blocks.chain(tuple(scopes), ledger.now_us()).blocks)

    # ── holding ──

    def try_reserve(self, step: str, scopes: Sequence[str], call: ModelCall, price: Price | None) -> Hold | None:
        """Hold the upper bound of `call` on the whole chain in memory, at once; None where a block does not carry it,
        and nothing is held then: `reserve` it. Not for calls that need an intent.

        It reads no switch. The caller has looked at the store's own rows (`Switches.check`) and looks again right
        before the call leaves, with no await between: so what is held in memory never outlives a switch.
        """
        chain = self._blocks.chain(scopes := tuple(scopes), ledger.now_us())
        if not chain.blocks or pricing.unbounded_part(call) is not None:
            return None
        bound = pricing.upper_bound(call, price)
        shares = self._blocks.take(scopes, chain, bound)
        if shares is None:
            return None
        hold = self._in_memory[step] = Hold(step, bound, call.max_tokens, shares)
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
    ) -> Hold:
        """Hold the upper bound of `call` on the whole chain, durably.

        `may_shrink`: the caller named no `max_tokens`, so it is lowered to what the budgets can pay. `entry` is what
        the ledger says if this process dies before settling; `intent`, where given, is appended in the same
        transaction. Before it is refused or shortened, money that lies unused in blocks comes back: this process's own
        at once, that of others as soon as they have answered. A call with an intent waits for the calls in flight whose
        holds stand in its way, as long as what they may give back could carry it: so a run is not stopped by bounds
        that nobody will spend.

        Raises:
            BudgetExceeded: a budget cannot hold it; nothing is held.
            SwitchTripped: a switch of the chain is tripped; nothing is held.
        """
        ask = _Ask(step, tuple(scopes), call, price, may_shrink, entry, intent)
        self._in_store[step] = None
        while isinstance(answer := await self._ask_for(ask), _Held):  # noqa: ASYNC110 - it may end in another process
            await asyncio.sleep(HELD_S)
        if isinstance(answer, Refused):
            raise answer
        self._in_store[step] = answer
        if intent is None:
            self._blocks.ask_ahead(ask.scopes, self._blocks.chain(ask.scopes, ledger.now_us()), answer.bound)
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
        chain = self._limits.accounts(tx, ask.scopes)
        unbounded = pricing.unbounded_part(ask.call) if chain else None
        if unbounded is not None:
            return BadRequest(
                f"the cost of {unbounded} cannot be bounded, and a budget is set: send it in the request itself"
            )
        full = pricing.upper_bound(ask.call, ask.price)
        short = [account for account in chain if not account.carries(full.pico or 0, full.tokens)]
        parked = self._parked(tx, short, is_first=is_first) if short and not is_last else None
        if parked is not None:
            return parked
        if short and ask.intent is not None and all(each.may_carry(full.pico or 0, full.tokens) for each in short):
            return HELD
        tokens, bound = ask.call.max_tokens, full
        if ask.may_shrink and short and ask.call.max_tokens:  # embeddings write nothing: there is nothing to lower
            pico_left, tokens_left = budgets.left(chain)
            tokens = max(1, pricing.affordable_tokens(ask.call, ask.price, pico=pico_left, tokens=tokens_left))
            bound = pricing.upper_bound(dataclasses.replace(ask.call, max_tokens=tokens), ask.price)
        refused = budgets.first_short(short, pico=bound.pico or 0, tokens=bound.tokens)
        if refused is not None:
            return self._exceeded(*refused, bound)
        written = tokens * pricing.choices(ask.call.extras)
        in_doubt = {"input_tokens": bound.tokens - written, "output_tokens": written, "estimated": 1}
        entry = orjson.dumps({**ask.entry, **in_doubt, "is_priced": bound.pico is not None}).decode()
        windows = tuple((account.scope, account.window) for account in chain)
        hold = Hold(ask.step, bound, tokens, windows=windows)
        Books.of(tx).begin_hold(ask.step, windows, hold.money(), owner=self._owner, entry=entry)
        if ask.intent is not None:
            ledger.append(tx, ask.intent)
        return hold

    def _parked(self, tx: Transaction, short: Sequence[Account], *, is_first: bool) -> _Parked | None:
        """Is some of what is missing in blocks? The first time, the processes that have them are asked."""
        windows, is_asked = [], False
        for account in short:
            name = {"scope": account.scope, "window": account.window}
            leased = tx.one("leased", **name)
            assert leased is not None
            if not (leased["pico"] or leased["tokens"]):
                continue
            windows.append((account.scope, account.window))
            if is_first:
                tx.run("want_leases", owner=self._owner, **name)
            is_asked = is_asked or tx.one("unanswered", owner=self._owner, **name) is not None
        return _Parked(windows, is_asked) if windows else None

    def _exceeded(self, account: Account, dimension: str, bound: Bound) -> BudgetExceeded:
        if dimension == "tokens":
            limit, spent, held, asked = account.limit_tokens, account.spent_tokens, account.held_tokens, bound.tokens
            texts = [f"{value:,} tokens" for value in (limit, spent, held, asked)]
        else:
            amounts = (account.limit_pico or 0, account.spent_pico, account.held_pico, bound.pico or 0)
            texts = [str(Money(value, self._currency)) for value in amounts]
        return BudgetExceeded(account.scope, limit=texts[0], spent=texts[1], held=texts[2], asked=texts[3])

    # ── ending a hold ──

    def ending(self, step: str, scopes: Sequence[str], *, pico: int, tokens: int) -> Callable[[Transaction], None]:
        """End the hold of `step`, wherever it lies, with what was spent. What the answer does must be committed with
        the step's record. What an in-memory hold did not use is free again already now: call this once for a step."""
        if step in self._in_store:
            known = self._in_store.pop(step)
            return partial(settle, step=step, scopes=scopes, pico=pico, tokens=tokens, hold=known)
        hold = self._in_memory.pop(step, None)
        ended = [] if hold is None else self._blocks.end(hold.shares, pico=pico, tokens=tokens)
        return partial(self._blocks.settle_in, ended=ended, scopes=scopes, pico=pico, tokens=tokens)

    def release(self, step: str, scopes: Sequence[str]) -> None:
        """End the hold of a step that never left the house. One that lay in memory needs no write, as a rule."""
        if step in self._in_store:
            self._store.submit(self.ending(step, scopes, pico=0, tokens=0)).add_done_callback(_notice)
        elif step in self._in_memory:
            self._blocks.put_back(self._in_memory.pop(step).shares)

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
            found = []
            for account in self.accounts(tx, [row["scope"] for row in tx.all("budgets")]):
                leased = tx.one("leased", scope=account.scope, window=account.window)
                assert leased is not None
                found.append(dataclasses.replace(account, leased_pico=leased["pico"], leased_tokens=leased["tokens"]))
            return found

        return await self._store.write(work)

    async def set_budget(
        self, scope: str, *, period: str, pico: int | None, tokens: int | None, actor: str, source: str = "command"
    ) -> None:
        """Set a scope's limit from now on; the later change wins. What the period already spent counts."""

        def work(tx: Transaction) -> None:
            now_us = ledger.now_us()
            tx.run("set_budget", scope=scope, period=period, pico=pico, tokens=tokens, source=source, since=now_us)
            accounts.forget_limits(tx)
            amount = None if pico is None else decimal_string(pico)
            _changed(tx, scope, now_us, {"period": period, "money": amount, "tokens": tokens, "actor": actor})

        await self._store.write(work)

    async def lift_budget_of_file(self, scope: str) -> None:
        """A budget is no longer in the configuration file: lift it, unless a command has set another since."""

        def work(tx: Transaction) -> None:
            row = tx.one("budget", scope=scope)
            if row is not None and row["source"] == "file":
                tx.run("remove_budget", scope=scope)
                accounts.forget_limits(tx)
                _changed(tx, scope, ledger.now_us(), {"period": row["period"], "actor": "file"})

        await self._store.write(work)

    async def recover(self) -> int:
        """Settle the holds and blocks of dead processes whole, as in doubt; their number."""
        dead = {row["owner"] for row in self._store.all("owners") if not self._is_alive(row["owner"])}
        return await self._store.write(partial(_settle_dead, dead=dead)) if dead else 0


def settle(
    tx: Transaction, step: str, scopes: Sequence[str], *, pico: int, tokens: int, hold: Hold | None = None
) -> None:
    """End the hold of `step` in the store, where one was taken, with what was spent. Whoever took it says what it is.

    A budget that was set, or got another period, while the step ran holds nothing for it; what the step spent counts
    there all the same.
    """
    books = Books.of(tx)
    if hold is None:
        windows: Sequence[Window] = books.end_unknown_hold(step)
    else:
        windows = hold.windows
        books.end_hold(step, windows, hold.money())
    for scope, window in windows:
        books.spend(scope, window, pico=pico, tokens=tokens)
    books.spend_late(scopes, windows, pico=pico, tokens=tokens)


def _settle_dead(tx: Transaction, *, dead: set[str]) -> int:
    for owner in dead:
        tx.run("bury", name=owner)
    holds = [row for row in tx.all("reservations") if row["owner"] in dead]
    for row in holds:
        fields = orjson.loads(row["entry"])
        is_priced = fields.pop("is_priced", True)
        fields |= {"status": Status.IN_DOUBT, "at_us": ledger.now_us()}
        fields["cost_pico"] = leaf_amount(row["pico"]) if is_priced else None
        settle(tx, row["step"], _scopes_of(fields), pico=row["pico"], tokens=row["tokens"])
        ledger.append(tx, fields)
        count(tx, fields, pico=row["pico"])
    blocks: dict[tuple[str, str], dict[str, tuple[int, int]]] = {}
    for row in tx.all("leases"):
        if row["owner"] in dead:
            blocks.setdefault((row["owner"], row["scope"]), {})[row["window"]] = (row["pico"], row["tokens"])
    for (owner, scope), windows in blocks.items():
        accounts.doubt(tx, owner, scope, windows)
        for window, (pico, tokens) in windows.items():
            entry = {"v": 1, "kind": "lease", "status": Status.IN_DOUBT, "scope": scope, "window": window}
            entry |= {"amount_pico": leaf_amount(pico), "tokens": tokens, "at_us": ledger.now_us()}
            ledger.append(tx, entry | _run_of(scope))
    return len(holds) + sum(map(len, blocks.values()))


def _changed(tx: Transaction, scope: str, now_us: int, fields: Mapping[str, object]) -> None:
    """A limit is another one from this commit on."""
    ledger.append(tx, {"v": 1, "kind": "budget", "scope": scope, **fields, "at_us": now_us, **_run_of(scope)})


def _run_of(scope: str) -> dict[str, str]:
    return {"run": scope.removeprefix("run:")} if scope.startswith("run:") else {}


def _scopes_of(fields: Mapping[str, object]) -> tuple[str, ...]:
    """The chain of an entry. Its item is known by a pseudonym only, so it is not among them."""
    tenant, key, workflow, run = (str(fields.get(name) or "") for name in ("tenant", "api_key", "workflow", "run"))
    return Origin(tenant, workflow=workflow, run=run, key=key).scopes()


def _notice(ended: asyncio.Future[None]) -> None:
    """Nobody waits for it: mark its error as seen. The hold then stays until the next opening, in doubt."""
    if not ended.cancelled():
        ended.exception()
