"""Runs, plans and differences as lines for people."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal

from twolane.batch.diff import Diff
from twolane.batch.plan import Plan
from twolane.batch.run import RunSummary
from twolane.cli.output import table
from twolane.domain.money import decimal_string
from twolane.kernel.progress import Progress

MAX_NAMED = 20
"""Most items that a listing names."""


def summary_lines(summary: RunSummary) -> list[str]:
    """A run's summary for people."""
    items, tokens = summary.items, summary.tokens
    lines = [
        f"run {summary.run} · {summary.flow} · {summary.status}" + (f" ({summary.reason})" if summary.reason else ""),
        f"  items    {items['done']} done, {items['quarantined']} in quarantine, of {items['total']}",
        f"  calls    {summary.calls} left the house, {summary.reused} answered from memos",
        f"  tokens   {tokens['input']:,} in, {tokens['output']:,} out",
        f"  cost     {summary.cost} {summary.currency} in {summary.seconds:.1f} s at work",
        *(
            [f"  in doubt {summary.in_doubt} of it: calls that a crash cut off, at the most they can have cost"]
            if Decimal(summary.in_doubt)
            else []
        ),
        f"  budget   {summary.budget} {summary.currency}" if summary.budget else "  budget   none of its own: no limit",
    ]
    agents = [
        [name or "?", str(each["calls"]), str(each["reused"]), str(each["refused"]), str(each["cost"])]
        for name, each in summary.by_agent.items()
    ]
    lines += _indented(agents, ("agent", "calls", "reused", "refused", "cost"))
    if items["done"]:
        lines.append(f"  reports  {summary.reports}")
    if items["quarantined"]:
        lines.append(f"  look at  twolane quarantine list --run {summary.run}")
    if summary.status in ("stopped", "failed"):
        lines.append(f"  go on    twolane run resume {summary.run}")
    return lines


def plan_lines(plan: Plan) -> list[str]:
    """A plan for people: each agent with what it would do, and why."""
    cost = (
        "unknown" if plan.cost is None else f"{short(plan.cost)} {plan.currency}{' (estimated)' if plan.calls else ''}"
    )
    lines = [
        f"plan · {plan.run or plan.flow} · {plan.items} items"
        + (f", {plan.unreadable} unreadable" if plan.unreadable else ""),
        f"  calls    {plan.calls} would leave the house, {plan.reused} would be answered from memos",
        f"  cost     {cost}",
    ]
    if plan.unshaped:
        lines.append(
            f"  unknown  what comes after the first call of {plan.unshaped} items: no run of this flow came so far"
        )
    if plan.quarantined:
        lines.append(f"  refused  {plan.quarantined} items would go to quarantine without a further call")
    rows = []
    for name, each in plan.agents.items():
        told = each.fields()
        maybe = f" ({told['unknown']} unknown)" if told["unknown"] else ""
        why = "; ".join(f"{count} × {text}" for text, count in _whys(told))
        rows.append([name, f"{told['calls']}{maybe}", str(told["reused"]), short(str(told["cost"] or "unknown")), why])
    return (
        lines + ["  " + line for line in table(rows, head=("agent", "calls", "reused", "cost", "why"))]
        if rows
        else lines
    )


def _whys(told: Mapping[str, object]) -> Iterable[tuple[str, object]]:
    why = told["why"]
    assert isinstance(why, dict)
    return why.items()


def diff_lines(told: Diff) -> list[str]:
    """What differs, for people."""
    costs = " → ".join(f"{short(told.cost[name])}" for name in (told.first, told.second))
    lines = [
        f"{told.first} → {told.second}",
        f"  results  {len(told.changed)} changed, {told.same} the same, "
        f"{len(told.only_first)} only in the first, {len(told.only_second)} only in the second",
        f"  cost     {costs} {told.currency}",
    ]
    rows = [
        [name or "?", *(str(figure) for figure in (each.changed, each.same, each.unknown, each.calls, each.reused)),
         short(decimal_string(each.pico))]
        for name, each in sorted(told.agents.items())
    ]  # fmt: skip
    lines += _indented(rows, ("agent", "changed", "same", "unknown", "calls", "reused", "cost"))
    lines += [f"  changed  {name}" for name in told.changed[:MAX_NAMED]]
    more = len(told.changed) - MAX_NAMED
    return [*lines, f"  … and {more} more: --json names them all"] if more > 0 else lines


def _indented(rows: Sequence[Sequence[str]], head: Sequence[str]) -> list[str]:
    return ["  " + line for line in table(rows, head=head)] if rows else []


def progress_line(progress: Progress) -> str:
    """A run at a moment, on one line."""
    agents = " ".join(
        f"{name or '?'} {each.done}" + (f"+{each.running}" if each.running else "")
        for name, each in progress.agents.items()
    )
    return " · ".join(part for part in (*progress_parts(progress), agents) if part)


def progress_parts(progress: Progress) -> list[str]:
    """Status, items, rate, money, and how long it takes still, each in words."""
    items = progress.items
    quarantined = f", {items['quarantined']} in quarantine" if items["quarantined"] else ""
    parts = [progress.status, f"{items['done']} of {items['total']} done{quarantined}"]
    if progress.speed is not None:
        parts.append(f"{progress.speed.items_per_s:.1f} items/s, {progress.speed.steps_per_s:.1f} steps/s")
    limit = "" if progress.budget_pico is None else f" of {short(decimal_string(progress.budget_pico))}"
    parts.append(f"{short(decimal_string(progress.pico))}{limit} {progress.currency}")
    if progress.left is not None:
        parts.append(f"{_duration(progress.left.low)} to {_duration(progress.left.high)} left by {progress.left_by}")
    elif not progress.is_over:
        parts.append(f"time left unknown: {progress.left_by}")
    return parts


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 6000:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def forecast_lines(said: Mapping[str, object]) -> list[str]:
    """A forecast for people, with what it rests on."""
    cost, seconds = said["cost"], said["seconds"]
    assert isinstance(cost, dict)
    assert isinstance(seconds, dict)
    share = round(float(str(said["interval"])) * 100)
    return [
        f"forecast from {said['pilot']} of {said['items']} items (rough: mean and spread of a pilot, {share} %)",
        f"  calls    {said['calls']}",
        f"  cost     {short(cost['mid'])} {said['currency']}  ({short(cost['low'])} to {short(cost['high'])})",
        f"  seconds  {seconds['mid']:.1f}  ({seconds['low']:.1f} to {seconds['high']:.1f})",
    ]


def short(amount: str) -> str:
    """An amount of money for people: to six places; a word as it is."""
    whole, dot, digits = amount.partition(".")
    return whole + dot + digits[:6]
