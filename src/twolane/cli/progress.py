"""A run's progress on a terminal: items, agents, rate, money, time left. Rich is imported here and nowhere else."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import aclosing
from types import TracebackType
from typing import Self

from rich.console import Console, Group, NewLine, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from twolane.cli.lines import forecast_lines, progress_parts, short
from twolane.cli.output import plain
from twolane.domain.money import decimal_string
from twolane.kernel.progress import Progress, Watching

BAR = 40
"""Characters of the bar."""


class Screen:
    """One run, drawn in place; used as a context manager, fed by `follow` or `show`."""

    def __init__(self, console: Console | None = None) -> None:
        self._live = Live(console=console or Console(stderr=True), auto_refresh=False)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def forecast(self, said: Mapping[str, object]) -> None:
        """Show what the pilot said, above the run."""
        for line in forecast_lines(said):
            self._live.console.print(line, highlight=False, markup=False)

    def show(self, progress: Progress) -> None:
        """Draw the run as it is now."""
        self._live.update(drawing(progress), refresh=True)

    async def follow(self, watching: Watching, run: str) -> None:
        """Draw until the run is over."""
        async with aclosing(watching.follow(run)) as states:
            async for progress in states:
                self.show(progress)


def drawing(progress: Progress) -> RenderableType:
    """A bar, what is said of the run, and a line for each agent."""
    items = progress.items
    ended = items["done"] + items["quarantined"]
    bar = ProgressBar(total=max(1, items["total"]), completed=ended, width=BAR)
    agents = Table(box=None, pad_edge=False)
    for name in ("agent", "done", "running", "reused", "refused", "failed", "cost"):
        agents.add_column(name, justify="left" if name == "agent" else "right")
    for name, each in progress.agents.items():
        figures = (each.done, each.running, each.reused, each.refused, each.failed)
        agents.add_row(Text(plain(name or "?")), *(str(figure) for figure in figures), short(decimal_string(each.pico)))
    # A bar does not end its line by itself: what follows it would be drawn behind it, and cut off at the edge.
    return Group(bar, NewLine(), Text(" · ".join(progress_parts(progress))), agents)
