"""Roll-ups: what steps cost by day, by run and by unit price, advanced in the step's own transaction; no report scans
the ledger.

A group's steps are added up first and written once. All is made of the leaf's own fields, but for the charge's parts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from operator import add, attrgetter

from twolane.domain.records import Kind, Lane, Status
from twolane.rules import budgets
from twolane.rules.budgets import Amount
from twolane.rules.economics import Part
from twolane.store import Transaction, Value

NAMED_BY = ("tenant", "api_key", "workflow", "agent", "lane", "upstream", "model")
"""What a step is named by, beside its day."""


@dataclass(slots=True)
class _Sums:
    """What a group has added up under one name and not written yet. Money in picounits."""

    calls: int = 0
    """Attempts that left the house."""
    reused: int = 0
    """Answers of memos."""
    refused: int = 0
    failed: int = 0
    """Calls that failed, were killed or cancelled, or are in doubt."""
    input_tokens: int = 0
    output_tokens: int = 0
    cost_pico: int = 0
    total_us: int = 0
    accepted: int = 0
    """Calls that ended well: a handoff passed, an answer was whole."""
    unpriced: int = 0
    """Calls whose cost nobody knows."""
    retries: int = 0
    """Calls that were not their step's first."""
    retries_pico: int = 0
    refused_pico: int = 0
    failed_pico: int = 0
    doubt_pico: int = 0
    reused_pico: int = 0
    """What the answers of memos once cost, where that is known."""
    routed: int = 0
    """Calls whose route has a heavy upstream with a price."""
    routed_pico: int = 0
    """That price for the same tokens, less what they cost."""
    items: int = 0
    """Items that were done. These two are counted under a name without agent and upstream."""
    quarantined: int = 0
    accelerator_us: int = 0
    charges: dict[tuple[str, str, int], tuple[int, int]] = field(default_factory=dict)
    """By price, kind and unit price: quantity and cost."""


FIGURES = tuple(each.name for each in dataclasses.fields(_Sums) if each.name != "charges")
"""What is added up."""
_figures = attrgetter(*FIGURES)
_DAY, _RUN = ("day", *NAMED_BY, *FIGURES), ("day", "run", "agent", "upstream", "model", *FIGURES)
_CHARGE = ("day", *NAMED_BY, "price", "kind", "unit_pico", "quantity", "cost_pico")

_Key = tuple[Value, ...]


def used(fields: Mapping[str, object], *, pico: int) -> Amount:
    """What a step's entry counts for in budgets; the roll-ups add up the same."""
    get = fields.get
    return Amount(
        pico,
        _whole(get("input_tokens")) + _whole(get("output_tokens")),
        int(fields["status"] != Status.UNREACHED),
        _whole(get("total_us")),
        _whole(get("accelerator_us")),
    )


def count(tx: Transaction, fields: Mapping[str, object], *, pico: int, parts: Sequence[Part] = ()) -> None:
    """Advance the roll-ups by one step's entry. `parts` is what its charge is made of, where that is known; together
    they are `pico`."""
    get = fields.get
    sums = _sums(tx, get("run"), get("at_us"), [get(part) for part in NAMED_BY])
    status = get("status")
    if status == Status.REUSED:
        saved = get("saved_pico")
        sums.reused += 1
        sums.reused_pico += _whole(saved)
        return
    sums.input_tokens += _whole(get("input_tokens"))
    sums.output_tokens += _whole(get("output_tokens"))
    sums.cost_pico += pico
    sums.total_us += _whole(get("total_us"))
    sums.accelerator_us += _whole(get("accelerator_us"))
    baseline = get("baseline_pico")
    if baseline is not None:
        sums.routed += 1
        sums.routed_pico += _whole(baseline) - pico
    if status != Status.UNREACHED:
        sums.calls += 1
        sums.unpriced += get("cost_pico") is None
        if _whole(get("attempt")) > 1:
            sums.retries += 1
            sums.retries_pico += pico
    match status:
        case Status.OK:
            sums.accepted += 1
        case Status.REFUSED:
            sums.refused += 1
            sums.refused_pico += pico
        case Status.FAILED | Status.KILLED | Status.CANCELLED:
            sums.failed += 1
            sums.failed_pico += pico
        case Status.IN_DOUBT:
            sums.failed += 1
            sums.doubt_pico += pico
    price = str(get("price") or "")
    for kind, quantity, unit, cost in parts or (_one_part(fields, pico) if pico else ()):
        before, paid = sums.charges.get((price, kind, unit), (0, 0))
        sums.charges[price, kind, unit] = (before + quantity, paid + cost)


def count_item(tx: Transaction, run: str, *, tenant: str, workflow: str, at_us: int, is_done: bool) -> None:
    """Count an item of a run that came to its end: done, or in quarantine. Tried again, it is counted again."""
    sums = _sums(tx, run, at_us, (tenant, "", workflow, "", Lane.BATCH, "", ""))
    sums.items += is_done
    sums.quarantined += not is_done


def write(tx: Transaction) -> None:
    """Write what the group has added up so far; whoever reads a roll-up inside a group calls it first."""
    days: dict[_Key, Sequence[int]] = {}
    runs: dict[_Key, Sequence[int]] = {}
    charges: dict[_Key, Sequence[int]] = {}
    added: dict[_Key, _Sums] = tx.cache.get("sums", {})
    for (run, *name), sums in added.items():
        day, figures = tuple([str(part or "") for part in name]), _figures(sums)
        _fold(days, day, figures)
        if run:
            _fold(runs, (day[0], str(run), day[4], day[6], day[7]), figures)
        for charge, paid in sums.charges.items():
            _fold(charges, (*day, *charge), paid)
    added.clear()
    for query, names, rows in (
        ("add_to_day", _DAY, days),
        ("add_to_run", _RUN, runs),
        ("add_charge", _CHARGE, charges),
    ):
        if rows:
            values = [dict(zip(names, (*key, *row), strict=True)) for key, row in rows.items()]
            tx.run_many(query, values)


def _fold(sums: dict[_Key, Sequence[int]], name: _Key, figures: Sequence[int]) -> None:
    before = sums.get(name)
    sums[name] = figures if before is None else list(map(add, before, figures))


def _sums(tx: Transaction, run: object, at_us: object, name: Sequence[object]) -> _Sums:
    added: dict[tuple[object, ...], _Sums] | None = tx.cache.get("sums")
    if added is None:
        added = tx.cache["sums"] = {}
        tx.before_commit(lambda: write(tx))
    key = (run, budgets.window("day", _whole(at_us)), *name)
    sums = added.get(key)
    if sums is None:
        sums = added[key] = _Sums()
    return sums


def _one_part(fields: Mapping[str, object], pico: int) -> Sequence[Part]:
    """A charge whose parts are not known: of a tool it is that of one call."""
    if fields.get("op") == Kind.TOOL:
        return (Part("calls", 1, pico, pico),)
    return (Part("tokens", _whole(fields.get("input_tokens")) + _whole(fields.get("output_tokens")), 0, pico),)


def leaf_amount(pico: int) -> int | str:
    """Picounits as a leaf holds them: an integer below 2⁵³, else a decimal string of the same integer."""
    return pico if pico < 2**53 else str(pico)


def _whole(value: object) -> int:
    return int(value) if isinstance(value, int | str) else 0
