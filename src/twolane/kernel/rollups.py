"""Roll-ups: what steps cost by day and by run, advanced in the step's own transaction; no report scans the ledger.

A group's steps are added up first and written once.
"""

from __future__ import annotations

from collections.abc import Mapping

from twolane.domain.records import Status
from twolane.rules import budgets
from twolane.store import Transaction

_FIGURES = ("calls", "reused", "refused", "failed", "input_tokens", "output_tokens", "cost_pico", "total_us")


def count(tx: Transaction, fields: Mapping[str, object], *, pico: int) -> None:
    """Advance the roll-ups by one step's entry."""
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


def write(tx: Transaction) -> None:
    """Write what the group has added up so far; whoever reads a roll-up inside a group calls it first."""
    sums = tx.cache.get("sums", {})
    for (query, *names), figures in sums.items():
        tx.run(query, **dict(names), **dict(zip(_FIGURES, figures, strict=True)))
    sums.clear()


def _add(tx: Transaction, key: tuple[object, ...], figures: tuple[int, ...]) -> None:
    sums: dict[tuple[object, ...], tuple[int, ...]] | None = tx.cache.get("sums")
    if sums is None:
        sums = tx.cache["sums"] = {}
        tx.before_commit(lambda: write(tx))
    before = sums.get(key)
    sums[key] = figures if before is None else tuple(a + b for a, b in zip(before, figures, strict=True))


def leaf_amount(pico: int) -> int | str:
    """Picounits as a leaf holds them: an integer below 2⁵³, else a decimal string of the same integer."""
    return pico if pico < 2**53 else str(pico)


def _whole(value: object) -> int:
    return int(value) if isinstance(value, int | str) else 0
