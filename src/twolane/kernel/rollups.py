"""Roll-ups: what steps cost by day and by run, advanced in the step's own transaction; no report scans the ledger.

A group's steps are added up first and written once.
"""

from __future__ import annotations

from collections.abc import Mapping

from twolane.domain.records import Status
from twolane.rules import budgets
from twolane.store import Transaction

_PARTS = ("tenant", "api_key", "workflow", "agent", "lane", "upstream", "model")
_FIGURES = ("calls", "reused", "refused", "failed", "input_tokens", "output_tokens", "cost_pico", "total_us")

Sums = dict[tuple[str, ...], list[int]]


def count(tx: Transaction, fields: Mapping[str, object], *, pico: int) -> None:
    """Advance the roll-ups by one step's entry."""
    status = fields["status"]
    is_reused = status == Status.REUSED
    figures = (
        int(not is_reused and status != Status.UNREACHED),
        int(is_reused),
        int(status == Status.REFUSED),
        int(status in _FAILED),
        0 if is_reused else _whole(fields.get("input_tokens")),
        0 if is_reused else _whole(fields.get("output_tokens")),
        pico,
        _whole(fields.get("total_us")),
    )
    get = fields.get
    name = [str(get(part) or "") for part in _PARTS]
    _add(tx, "add_to_day", (budgets.window("day", _whole(fields["at_us"])), *name), figures)
    if get("run"):
        _add(tx, "add_to_run", (str(get("run")), name[3]), figures)


_FAILED = frozenset({Status.FAILED, Status.KILLED, Status.CANCELLED, Status.IN_DOUBT})
_NAMES = {"add_to_day": ("day", *_PARTS), "add_to_run": ("run", "agent")}


def write(tx: Transaction) -> None:
    """Write what the group has added up so far; whoever reads a roll-up inside a group calls it first."""
    for query, sums in tx.cache.get("sums", {}).items():
        names = (*_NAMES[query], *_FIGURES)
        if sums:
            tx.run_many(query, [dict(zip(names, (*name, *figures), strict=True)) for name, figures in sums.items()])
        sums.clear()


def _add(tx: Transaction, query: str, name: tuple[str, ...], figures: tuple[int, ...]) -> None:
    by_query: dict[str, Sums] | None = tx.cache.get("sums")
    if by_query is None:
        by_query = tx.cache["sums"] = {name: {} for name in _NAMES}
        tx.before_commit(lambda: write(tx))
    sums = by_query[query].get(name)
    if sums is None:
        by_query[query][name] = list(figures)
    else:
        for at, figure in enumerate(figures):
            sums[at] += figure


def leaf_amount(pico: int) -> int | str:
    """Picounits as a leaf holds them: an integer below 2⁵³, else a decimal string of the same integer."""
    return pico if pico < 2**53 else str(pico)


def _whole(value: object) -> int:
    return int(value) if isinstance(value, int | str) else 0
