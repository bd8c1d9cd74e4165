"""What is in doubt: what a dead process held, settled whole at the most it may have cost, and what a person says of it
afterwards."""

from __future__ import annotations

from collections.abc import Mapping

import orjson

from twolane.domain.records import Bound, Origin, Status
from twolane.errors import BadRequest, NotFound, Refused
from twolane.kernel import ledger
from twolane.kernel.accounts import add_doubt, amount_fields, run_of
from twolane.kernel.books import Books, Window, amount_of
from twolane.kernel.rollups import count, leaf_amount, used
from twolane.rules.budgets import NOTHING, Amount
from twolane.store import Transaction


def entry_of(fields: Mapping[str, object], bound: Bound, written: int) -> str:
    """What the ledger says of a call if its process dies before its end: all that it may have used."""
    told = {"input_tokens": bound.tokens - written, "output_tokens": written, "estimated": 1}
    known = {name: value for name, value in fields.items() if value is not None}
    return orjson.dumps({**known, **told, "is_priced": bound.pico is not None}).decode()


def settle_dead(tx: Transaction, *, dead: set[str]) -> int:
    """Settle the holds and blocks of dead processes whole; their number."""
    for owner in dead:
        tx.run("bury", name=owner)
    holds = [row for row in tx.all("reservations") if row["owner"] in dead]
    for row in holds:
        fields = orjson.loads(row["entry"])
        is_priced = fields.pop("is_priced", True)
        fields |= {"status": Status.IN_DOUBT, "at_us": ledger.now_us()}
        fields["cost_pico"] = leaf_amount(row["pico"]) if is_priced else None
        fields |= {"total_us": row["us"] or None, "accelerator_us": row["accelerator_us"] or None}
        scopes = orjson.loads(row["scopes"]) or _scopes_of(fields)
        Books.of(tx).settle(row["step"], scopes, used(fields, pico=row["pico"]))
        ledger.append(tx, fields)
        count(tx, fields, pico=row["pico"])
    blocks: dict[tuple[str, str], dict[str, Amount]] = {}
    Books.of(tx).write_leases()  # somebody of this very group may have settled them already
    for row in tx.all("leases"):
        if row["owner"] in dead:
            blocks.setdefault((row["owner"], row["scope"]), {})[row["window"]] = amount_of(row)
    for (owner, scope), windows in blocks.items():
        _settle_blocks(tx, owner, scope, windows)
        for window, amount in windows.items():
            leaf = {"v": 1, "kind": "lease", "status": Status.IN_DOUBT, "scope": scope, "window": window}
            leaf |= {"amount_pico": leaf_amount(amount.pico), "tokens": amount.tokens, "calls": amount.calls}
            ledger.append(tx, leaf | {"at_us": ledger.now_us()} | run_of(scope))
    return len(holds) + sum(map(len, blocks.values()))


def _settle_blocks(tx: Transaction, owner: str, scope: str, leases: Mapping[str, Amount]) -> None:
    """Settle a dead process's blocks of a scope whole, by window. What its calls may have cost counts in the scope's
    other current windows too, where it holds nothing: with the larger of its blocks."""
    books, largest = Books.of(tx), NOTHING
    for amount in leases.values():
        largest = largest.most(amount)
    lengths = {len(window) for window in leases}
    others = {window: largest for window in books.current((scope,))[scope] if len(window) not in lengths}
    for window, amount in {**others, **leases}.items():
        if window in leases:
            books.unlease(owner, scope, window, amount)
        books.spend(scope, window, amount)
        add_doubt(tx, scope, window, amount)


def reconcile(
    tx: Transaction, *, scope: str, window: str | None, pico: int | None, actor: str
) -> list[tuple[Window, Amount, Amount]] | Refused:
    """See `Treasury.reconcile`."""
    rows = [row for row in tx.all("doubts") if row["scope"] == scope and window in (None, row["window"])]
    if not rows:
        return NotFound(f"nothing is in doubt of {scope}{f' in {window}' if window else ''}")
    if pico is not None and len({row["day"] for row in rows}) > 1:
        days = ", ".join(sorted({row["window"] for row in rows}))
        return BadRequest(f"{scope}: what is in doubt is of several days; name one of its windows: {days}")
    found = []
    for row in rows:
        before = amount_of(row)
        after = NOTHING if pico is None else before._replace(pico=pico)
        place = {"scope": scope, "window": row["window"], "day": row["day"]}
        tx.run("end_doubt", **place)
        tx.run("add_reconciled", **place, **after._asdict())
        Books.of(tx).spend(scope, row["window"], after.minus(before))
        leaf = {"v": 1, "kind": "correction", "scope": scope, "window": row["window"], "actor": actor}
        leaf |= {"of": amount_fields(before), "amount": amount_fields(after), "at_us": ledger.now_us()}
        ledger.append(tx, leaf | run_of(scope))
        found.append(((scope, row["window"]), before, after))
    return found


def _scopes_of(fields: Mapping[str, object]) -> tuple[str, ...]:
    """The chain of an entry whose hold an older release took. Its item is known by a pseudonym only."""
    tenant, key, workflow, run = (str(fields.get(name) or "") for name in ("tenant", "api_key", "workflow", "run"))
    return Origin(tenant, workflow=workflow, run=run, key=key).scopes()
