"""What it all costs, read from the roll-ups alone: by whatever is asked, and as the charges behind it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import NamedTuple

from twolane.domain.money import decimal_string
from twolane.domain.records import Lane
from twolane.errors import UsageError
from twolane.kernel import ledger
from twolane.kernel.rollups import FIGURES
from twolane.rules.economics import LAST_DAY, first_day, last_day
from twolane.store import Row, Store

DIMENSIONS = ("day", "tenant", "key", "workflow", "run", "agent", "lane", "upstream", "model")
"""What costs can be told by."""
MOST_ROWS = 1_000
"""Rows of a report unless more are asked for."""
_OF_NO_ITEM = frozenset({"agent", "upstream", "model"})
"""An item is its workflow's: by these it cannot be told."""


class Days(NamedTuple):
    """From a day to a day, both included; as they are they hold every day there is."""

    since: str = ""
    until: str = LAST_DAY

    def fields(self) -> dict[str, str | None]:
        """The same as JSON; None is no end."""
        return {"since": self.since or None, "until": None if self.until == LAST_DAY else self.until}


def period(since: str | None, until: str | None) -> Days:
    """The days that a person names: dates, or `7d` for the last seven; in UTC.

    Raises:
        UsageError: it names none.
    """
    today = datetime.fromtimestamp(ledger.now_us() / 1_000_000, UTC).date()
    days = Days(first_day(since, today), last_day(until))
    if days.since > days.until:
        raise UsageError(f"since {days.since} is after until {days.until}", hint="Name the earlier day first")
    return days


@dataclass(frozen=True, slots=True)
class Figures:
    """What calls came to. None is unknown: an older release did not keep it, or nobody can know."""

    by: tuple[str, ...]
    row: Row

    def name(self) -> str:
        """Its values of what was asked by, as one word."""
        return "/".join(self.row[part] for part in self.by)

    @property
    def cost(self) -> str | None:
        """None where no call had a price. An `unpriced` call among others adds nothing."""
        calls = self.row["calls"]
        return None if calls and self._new("unpriced") == calls else decimal_string(self.row["cost_pico"])

    @property
    def items(self) -> int | None:
        """Items that were done."""
        return None if _OF_NO_ITEM & set(self.by) else self._new("items")

    def _new(self, figure: str) -> int | None:
        """A figure that older releases did not keep: where one of their rows is among these, it is not known."""
        return self.row[figure] or 0 if self.row["known"] == self.row["rows"] else None

    def _money(self, figure: str) -> str | None:
        pico = self._new(figure)
        return None if pico is None else decimal_string(pico)

    def each(self, count: int | None) -> str | None:
        """The cost for one of these, down to the picounit."""
        return decimal_string(self.row["cost_pico"] // count) if count and self.cost is not None else None

    def waste(self) -> str | None:
        """What calls cost that brought nothing, those in doubt with their bound."""
        failed, doubt = self._new("failed_pico"), self._new("doubt_pico")
        return None if failed is None or doubt is None else decimal_string(failed + doubt)

    def saved_by_router(self) -> str | None:
        """None where no route had a heavy upstream to compare with; negative where what answered was dearer."""
        return self._money("routed_pico") if self._new("routed") else None

    def fields(self) -> dict[str, object]:
        """The same as JSON: counts are integers, money is decimal strings."""
        row, accepted, items = self.row, self._new("accepted"), self.items
        return {
            "key": self.name(),
            **{"api_key" if part == "key" else part: row[part] for part in self.by},
            "cost": self.cost,
            "calls": row["calls"],
            "tokens": row["input_tokens"] + row["output_tokens"],
            "input_tokens": row["input_tokens"],
            "output_tokens": row["output_tokens"],
            "unpriced": self._new("unpriced"),
            "reused": row["reused"],
            "items": items,
            "quarantined": None if items is None else self._new("quarantined"),
            "cost_per_item": self.each(items),
            "accepted": accepted,
            "cost_per_accepted": self.each(accepted),
            "retries": {"calls": self._new("retries"), "cost": self._money("retries_pico")},
            "refusals": {"calls": row["refused"], "cost": self._money("refused_pico")},
            "waste": {"calls": row["failed"], "cost": self.waste(), "in_doubt": self._money("doubt_pico")},
            "saved": {"memo": self._money("reused_pico"), "router": self.saved_by_router(), "packing": None},
        }


@dataclass(frozen=True, slots=True)
class Report:
    """Costs by something, the dearest first."""

    currency: str
    by: tuple[str, ...]
    days: Days
    total: Figures
    rows: Sequence[Figures]
    has_more: bool
    """There are further rows, which only the total holds."""

    def fields(self) -> dict[str, object]:
        """The same as JSON."""
        overall = self.total.fields()
        del overall["key"]
        return {
            "currency": self.currency,
            **self.days.fields(),
            "by": list(self.by),
            "total": self.total.cost,
            "overall": overall,
            "rows": [row.fields() for row in self.rows],
            "has_more": self.has_more,
            "estimated": ["saved.router"],
        }


def report(
    store: Store,
    currency: str,
    by: Sequence[str],
    days: Days = Days(),
    *,
    tenant: str | None = None,
    most: int = MOST_ROWS,
) -> Report:
    """Costs by these `DIMENSIONS`, the `most` dearest rows, of one tenant or of all. By run only what runs cost is
    told, which is the batch lane, and among all only the `most` dearest runs.

    Raises:
        UsageError: nothing is told by one of these.
    """
    by = tuple(dict.fromkeys(by))
    for name in by:
        if name not in DIMENSIONS:
            raise UsageError(f"costs are not told by {name[:40]!r}", hint=f"Choose among: {', '.join(DIMENSIONS)}")
    query = "costs_of_runs" if "run" in by else "costs"
    asked = {**days._asdict(), "tenant": tenant}
    with store.snapshot():
        found = store.all(query, **asked, **_flags(by), count=most + 1)
        has_more = len(found) > most
        lane = str(Lane.BATCH) if "run" in by else None
        overall = store.one("costs_total", **asked, lane=lane) if has_more else None
    total = overall or {name: sum(row[name] or 0 for row in found) for name in _SUMMED}
    # By agent, upstream or model the items of a workflow are a row without any.
    rows = [Figures(by, row) for row in found[:most] if row["calls"] or row["reused"] or not _OF_NO_ITEM & set(by)]
    return Report(currency, by, days, Figures((), total), rows, has_more)


_SUMMED = (*(name for name in FIGURES if not name.endswith("_us")), "rows", "known")


def _flags(by: Sequence[str]) -> dict[str, int]:
    return {f"by_{name}": int(name in by) for name in DIMENSIONS}


def charges(store: Store, days: Days = Days()) -> Sequence[Row]:
    """What was paid for, a row for each day, name, price, kind and unit price. Together they are the ledger's total."""
    return store.all("charges", **days._asdict())
