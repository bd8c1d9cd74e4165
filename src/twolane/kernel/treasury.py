"""Money: hold an upper bound on every budget of the chain before a call leaves, end the hold exactly once after it.

Reservations lie in the store. A hold's row is deleted by the transaction that appends its step's entry; a hold whose
process died is settled at its bound, as in doubt, by whoever opens the store next.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import orjson

from twolane.config import BudgetSection
from twolane.domain.money import Money, decimal_string
from twolane.domain.records import Bound, ModelCall, Origin, Price, Status
from twolane.errors import BadRequest, BudgetExceeded, Refused
from twolane.kernel import ledger
from twolane.kernel.switches import tripped_in
from twolane.rules import budgets, pricing
from twolane.rules.budgets import Account
from twolane.store import Row, Store, Transaction


@dataclass(frozen=True, slots=True)
class Limit:
    """A budget as it is set."""

    period: str
    pico: int | None
    tokens: int | None


@dataclass(frozen=True, slots=True)
class Hold:
    """A reservation that lies in the store under its step's id."""

    step: str
    bound: Bound
    max_tokens: int


class Treasury:
    """Budgets of one store."""

    def __init__(self, store: Store, *, currency: str, owner: str, defaults: Mapping[str, BudgetSection]) -> None:
        self._store, self._currency, self._owner = store, currency, owner
        self._templates = {scope: self._limit(section) for scope, section in defaults.items()}
        self._epoch = -1
        self._scopes: frozenset[str] = frozenset()

    def _limit(self, section: BudgetSection) -> Limit:
        pico = None if section.money is None else Money.parse(section.money, self._currency).pico
        return Limit(section.period, pico, section.tokens)

    def is_limited(self, scopes: Sequence[str]) -> bool:
        """True when any scope of the chain has a budget: only then is a hold needed."""
        epoch = self._store.epoch()
        if epoch != self._epoch:
            self._scopes = frozenset(row["scope"] for row in self._store.all("budgets"))
            self._epoch = epoch
        return any(scope in self._scopes or _template_of(scope, self._templates) for scope in scopes)

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
        transaction.

        Raises:
            BudgetExceeded: a budget cannot hold it; nothing is held.
            SwitchTripped: a switch of the chain is tripped; nothing is held.
        """

        def work(tx: Transaction) -> Hold | Refused:
            tripped = tripped_in(tx, scopes)
            if tripped is not None:
                return tripped
            accounts = self.accounts(tx, scopes)
            unbounded = pricing.unbounded_part(call) if accounts else None
            if unbounded is not None:
                return BadRequest(
                    f"the cost of {unbounded} cannot be bounded, and a budget is set: send it in the request itself"
                )
            tokens = call.max_tokens
            if may_shrink and accounts:
                pico_left, tokens_left = budgets.left(accounts)
                tokens = max(1, pricing.affordable_tokens(call, price, pico=pico_left, tokens=tokens_left))
            bound = pricing.upper_bound(dataclasses.replace(call, max_tokens=tokens), price)
            short = budgets.first_short(accounts, pico=bound.pico or 0, tokens=bound.tokens)
            if short is not None:
                return self._exceeded(*short, bound)
            for account in accounts:
                tx.run("hold", scope=account.scope, window=account.window, pico=bound.pico or 0, tokens=bound.tokens)
            windows = orjson.dumps([[account.scope, account.window] for account in accounts]).decode()
            written = tokens * pricing.choices(call.extras)
            in_doubt = {"input_tokens": bound.tokens - written, "output_tokens": written, "estimated": 1}
            tx.run(
                "add_reservation",
                step=step,
                owner=self._owner,
                pico=bound.pico or 0,
                tokens=bound.tokens,
                windows=windows,
                entry=orjson.dumps({**entry, **in_doubt}).decode(),
            )
            if intent is not None:
                ledger.append(tx, intent)
            return Hold(step, bound, tokens)

        answer = await self._store.write(work)
        if isinstance(answer, Refused):
            raise answer
        return answer

    def accounts(self, tx: Transaction, scopes: Sequence[str]) -> list[Account]:
        """The chain's budgets in their current windows, widest first; windows are opened as needed."""
        now_us = ledger.now_us()
        found = []
        for scope in scopes:
            for window, limit in self._limits(tx, scope, now_us).items():
                spent = tx.one("spending", scope=scope, window=window)
                if spent is None:
                    self._open_window(tx, scope, limit.period, now_us)
                    spent = tx.one("spending", scope=scope, window=window)
                    assert spent is not None
                found.append(Account(scope, window, limit.pico, limit.tokens, **spent))
        return found

    def _limits(self, tx: Transaction, scope: str, now_us: int) -> dict[str, Limit]:
        """What was set for this scope and what the configuration sets for each of its kind, by window. Where both limit
        the same window the tighter one holds: a run's own budget never lifts the operator's."""
        row = tx.one("budget", scope=scope)
        own = Limit(row["period"], row["pico"], row["tokens"]) if row else None
        found: dict[str, Limit] = {}
        for limit in (own, self._template(scope)):
            if limit is not None:
                window = budgets.window(limit.period, now_us)
                found[window] = _tighter(found.get(window, limit), limit)
        return found

    def _template(self, scope: str) -> Limit | None:
        name = _template_of(scope, self._templates)
        return self._templates[name] if name else None

    def _open_window(self, tx: Transaction, scope: str, period: str, now_us: int) -> None:
        """A window starts with what the ledger says was spent in it before the budget was set."""
        _write_sums(tx)  # what steps of this very group have spent is among it
        spent = _spent(tx, scope, budgets.first_day(period, now_us))
        assert spent is not None
        tx.cache.pop("windows", None)
        tx.run(
            "begin_spending",
            scope=scope,
            window=budgets.window(period, now_us),
            pico=spent["pico"],
            tokens=spent["tokens"],
        )

    def _exceeded(self, account: Account, dimension: str, bound: Bound) -> BudgetExceeded:
        if dimension == "tokens":
            limit, spent, held, asked = account.limit_tokens, account.spent_tokens, account.held_tokens, bound.tokens
            texts = [f"{value:,} tokens" for value in (limit, spent, held, asked)]
        else:
            amounts = (account.limit_pico or 0, account.spent_pico, account.held_pico, bound.pico or 0)
            texts = [str(Money(value, self._currency)) for value in amounts]
        return BudgetExceeded(account.scope, limit=texts[0], spent=texts[1], held=texts[2], asked=texts[3])

    async def all_accounts(self) -> list[Account]:
        """Every budget that was set, in its current window."""
        scopes = [row["scope"] for row in self._store.all("budgets")]
        return await self._store.write(lambda tx: self.accounts(tx, scopes))

    async def set_budget(
        self, scope: str, *, period: str, pico: int | None, tokens: int | None, actor: str, source: str = "command"
    ) -> None:
        """Set a scope's limit from now on; the later change wins. What the period already spent counts."""

        def work(tx: Transaction) -> None:
            now_us = ledger.now_us()
            tx.run("set_budget", scope=scope, period=period, pico=pico, tokens=tokens, source=source, since=now_us)
            amount = None if pico is None else decimal_string(pico)
            ledger.append(
                tx,
                {
                    "v": 1,
                    "kind": "budget",
                    "scope": scope,
                    "period": period,
                    "money": amount,
                    "tokens": tokens,
                    "actor": actor,
                    "at_us": now_us,
                    "run": scope.removeprefix("run:") if scope.startswith("run:") else None,
                },
            )

        await self._store.write(work)

    async def recover(self, is_alive: Callable[[str], bool]) -> int:
        """Settle the holds of dead processes at their bound, as in doubt; their number."""
        dead = [row["owner"] for row in self._store.all("owners") if not is_alive(row["owner"])]
        if not dead:
            return 0

        def work(tx: Transaction) -> int:
            rows = [row for row in tx.all("reservations") if row["owner"] in dead]
            for row in rows:
                fields = orjson.loads(row["entry"])
                fields |= {
                    "status": Status.IN_DOUBT,
                    "cost_pico": leaf_amount(row["pico"]),
                    "at_us": ledger.now_us(),
                }
                settle(tx, row["step"], _scopes_of(fields), pico=row["pico"], tokens=row["tokens"])
                ledger.append(tx, fields)
                count(tx, fields, pico=row["pico"])
            return len(rows)

        return await self._store.write(work)


def _tighter(one: Limit, other: Limit) -> Limit:
    picos = [limit.pico for limit in (one, other) if limit.pico is not None]
    tokens = [limit.tokens for limit in (one, other) if limit.tokens is not None]
    return Limit(one.period, min(picos, default=None), min(tokens, default=None))


def settle(tx: Transaction, step: str, scopes: Sequence[str], *, pico: int, tokens: int) -> None:
    """End the hold of `step`, where one was taken, with what was spent.

    A budget that was set, or got another period, while the step ran holds nothing for it; what the step spent counts
    there all the same.
    """
    row = tx.one("end_reservation", step=step)
    held = orjson.loads(row["windows"]) if row else []
    if pico or tokens:
        _spend_late(tx, scopes, {(scope, len(window)) for scope, window in held}, pico=pico, tokens=tokens)
    for scope, window in held:
        assert row is not None
        tx.run(
            "settle",
            scope=scope,
            window=window,
            held_pico=row["pico"],
            held_tokens=row["tokens"],
            pico=pico,
            tokens=tokens,
        )


def _spend_late(tx: Transaction, scopes: Sequence[str], held: set[tuple[str, int]], *, pico: int, tokens: int) -> None:
    """Charge the current windows of the chain in which the step holds nothing. A window's length tells its period."""
    windows = tx.cache.get("windows")
    if windows is None:
        now_us = ledger.now_us()
        windows = {budgets.window(period, now_us) for period in ("day", "month", "total")}
        tx.cache["windows"] = windows = windows if tx.one("any_spending") else set()
    for row in tx.all("windows", scopes=orjson.dumps(list(scopes)).decode()) if windows else ():
        scope, window = row["scope"], row["window"]
        if window in windows and (scope, len(window)) not in held:
            tx.run("settle", scope=scope, window=window, held_pico=0, held_tokens=0, pico=pico, tokens=tokens)


def _scopes_of(fields: Mapping[str, object]) -> tuple[str, ...]:
    """The chain of an entry. Its item is known by a pseudonym only, so it is not among them."""
    tenant, key, workflow, run = (str(fields.get(name) or "") for name in ("tenant", "api_key", "workflow", "run"))
    return Origin(tenant, workflow=workflow, run=run, key=key).scopes()


def count(tx: Transaction, fields: Mapping[str, object], *, pico: int) -> None:
    """Advance the roll-ups by one step's entry; a group's steps are added up first and written once."""
    day = budgets.window("day", _whole(fields["at_us"]))
    status = fields["status"]
    figures = (
        int(status not in (Status.REUSED, Status.UNREACHED)),
        int(status == Status.REUSED),
        int(status == Status.REFUSED),
        int(status in (Status.FAILED, Status.KILLED, Status.CANCELLED, Status.IN_DOUBT)),
        _whole(fields.get("input_tokens")) if status != Status.REUSED else 0,
        _whole(fields.get("output_tokens")) if status != Status.REUSED else 0,
        pico,
        _whole(fields.get("total_us")),
    )
    name = {
        part: str(fields.get(part) or "")
        for part in ("tenant", "api_key", "workflow", "agent", "lane", "upstream", "model")
    }
    _add(tx, ("add_to_day", ("day", day), *name.items()), figures)
    if fields.get("run"):
        _add(tx, ("add_to_run", ("run", str(fields["run"])), ("agent", name["agent"])), figures)


_FIGURES = ("calls", "reused", "refused", "failed", "input_tokens", "output_tokens", "cost_pico", "total_us")


def _add(tx: Transaction, key: tuple[object, ...], figures: tuple[int, ...]) -> None:
    sums: dict[tuple[object, ...], tuple[int, ...]] | None = tx.cache.get("sums")
    if sums is None:
        sums = tx.cache["sums"] = {}
        tx.before_commit(lambda: _write_sums(tx))
    before = sums.get(key)
    sums[key] = figures if before is None else tuple(a + b for a, b in zip(before, figures, strict=True))


def _write_sums(tx: Transaction) -> None:
    sums = tx.cache.get("sums", {})
    for (query, *names), figures in sums.items():
        tx.run(query, **dict(names), **dict(zip(_FIGURES, figures, strict=True)))
    sums.clear()


def leaf_amount(pico: int) -> int | str:
    """Picounits as a leaf holds them: an integer below 2⁵³, else a decimal string of the same integer."""
    return pico if pico < 2**53 else str(pico)


def _whole(value: object) -> int:
    return int(value) if isinstance(value, int | str) else 0


def _template_of(scope: str, templates: Mapping[str, Limit]) -> str | None:
    """Which configured budget covers this scope: its own name, `run` and `item` for each of them, `workflow:NAME` for
    every tenant's."""
    kind, _, rest = scope.partition(":")
    wide = {"run": "run", "item": "item", "workflow": f"workflow:{rest.partition('/')[2]}"}.get(kind, scope)
    return next((name for name in (scope, wide) if name in templates), None)


def _spent(tx: Transaction, scope: str, since_day: str) -> Row | None:
    """What the roll-ups and the ledger say a scope spent since a day (all of it for runs and items)."""
    kind, _, rest = scope.partition(":")
    tenant, _, name = rest.partition("/")
    match kind:
        case "run":
            return tx.one("spent_by_run", run=rest)
        case "item":
            ledger.flush(tx)
            return tx.one("spent_by_item", run=tenant, item=name)
        case "tenant":
            return tx.one("spent_since", since=since_day, tenant=rest, api_key=None, workflow=None)
        case "key":
            return tx.one("spent_since", since=since_day, tenant=tenant, api_key=name, workflow=None)
        case "workflow":
            return tx.one("spent_since", since=since_day, tenant=tenant, api_key=None, workflow=name)
    return tx.one("spent_since", since=since_day, tenant=None, api_key=None, workflow=None)
