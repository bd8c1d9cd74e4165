"""A run's progress on a terminal: done, rate, time left, money. Rich is imported here and nowhere else."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as Bar

from twolane.batch.run import RunSummary
from twolane.platform import Platform

TICK_S = 0.1


class Progress:
    """One bar for one run; used as a context manager, fed by `follow` or `show`."""

    def __init__(self, console: Console | None = None) -> None:
        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TextColumn("{task.fields[left]}"),
            TextColumn("{task.fields[money]}"),
            console=console or Console(stderr=True),
            refresh_per_second=10,
        )
        self._task = self._bar.add_task("waiting", total=None, rate="", left="", money="")
        self._began = time.monotonic()
        self._first: int | None = None
        self._forecast = ""

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def forecast(self, said: Mapping[str, object]) -> None:
        """Show what the pilot said, above the bar."""
        from twolane.cli.lines import forecast_lines

        for line in forecast_lines(said):
            self._bar.console.print(line, highlight=False, markup=False)

    def show(self, summary: RunSummary) -> None:
        """Draw the run as it is now."""
        ended = summary.items["done"] + summary.items["quarantined"]
        self._first = ended if self._first is None else self._first
        rate = (ended - self._first) / max(1e-9, time.monotonic() - self._began)
        left = (summary.items["total"] - ended) / rate if rate > 0 else None
        quarantined = f", {summary.items['quarantined']} in quarantine" if summary.items["quarantined"] else ""
        self._bar.update(
            self._task,
            description=summary.status,
            total=summary.items["total"],
            completed=ended,
            rate=f"{rate:.1f}/s" if rate else "",
            left="" if left is None or summary.status != "running" else f"{left:.0f} s left",
            money=f"{_money(summary)}{quarantined}",
        )

    async def follow(self, platform: Platform, run: str) -> None:
        """Draw until the run has ended."""
        while True:
            summary = platform.summary(run)
            self.show(summary)
            if summary.status not in ("queued", "running"):
                return
            await asyncio.sleep(TICK_S)


def _money(summary: RunSummary) -> str:
    whole, _, digits = summary.cost.partition(".")
    return f"{whole}.{digits[:6]} {summary.currency}"
