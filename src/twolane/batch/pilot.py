"""What a run will cost and take, from its first items."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Sequence

from twolane.batch.deadline import WALK_S, within
from twolane.batch.items import Items, is_ours
from twolane.domain.money import decimal_string
from twolane.errors import OutOfTime
from twolane.kernel import Kernel
from twolane.rules import forecast

WALKED = 2_000
"""Items that are walked to the end before the first are forecast from; of more, the share of these stands for the rest.
They are in random order, and slots would stand idle while ten thousand were walked."""


async def pilot(kernel: Kernel, items: Items, run_id: str, positions: Sequence[int]) -> dict[str, object] | None:
    """Run a pilot among the items that have no memos yet, and carry its mean and spread over to the rest; the forecast,
    None where the run stopped meanwhile.

    The pilot begins as soon as it is complete, while others are still being walked.
    """
    began = time.monotonic()
    size = forecast.pilot_size(len(positions))
    walk = _Walk(items, positions)
    await walk.until(fresh=size)
    first = walk.fresh[:size]
    await asyncio.gather(walk.until(walked=WALKED), items.work(first))
    if items.stop is not None or items.is_leaving:
        return None
    fresh = round(len(walk.fresh) * len(positions) / walk.walked) if walk.walked else 0
    return _said(kernel, run_id, first, fresh - len(first), time.monotonic() - began, items)


class _Walk:
    """Items whose memos do not answer everything, found by walking them without calling. One whose walk does not end in
    time would be met again in the run: there the walk stops, and the rest counts as fresh."""

    def __init__(self, items: Items, positions: Sequence[int]) -> None:
        self._items, self._ahead = items, iter(positions)
        self._is_tired = False
        self.fresh: list[int] = []
        self.walked = 0

    async def until(self, *, fresh: float = math.inf, walked: float = math.inf) -> None:
        """Go on until that many fresh ones are found, that many are walked in all, or there is none left."""
        while len(self.fresh) < fresh and self.walked < walked and not (self._items.stop or self._items.is_leaving):
            position = next(self._ahead, None)
            if position is None:
                break
            if self._is_tired or await self._is_fresh(position):
                self.fresh.append(position)
            self.walked += 1
            await asyncio.sleep(0)

    async def _is_fresh(self, position: int) -> bool:
        try:
            item, walk = self._items.flow_of(self._items.row(position), is_plan=True)
            await within(min(WALK_S, self._items.timeout_s), walk, item, closed=self._items.closed)
        except OutOfTime:
            self._is_tired = True
            return True
        except (asyncio.CancelledError, KeyboardInterrupt, SystemExit) as error:
            if is_ours(error):
                raise
            return True
        except BaseException:  # noqa: BLE001 - NeedsCall, alone or in a group; any other will be met again, and told, in the run
            return True
        return False


def _said(
    kernel: Kernel, run_id: str, pilot: Sequence[int], rest: int, elapsed_s: float, items: Items
) -> dict[str, object]:
    names = {items.row(position)["subject"]: position for position in pilot}
    paid = {names[row["item"]]: row for row in kernel.store.all("paid_by_item", run=run_id) if row["item"] in names}

    def measured(column: str) -> list[float]:
        return [float(paid[position][column]) if position in paid else 0.0 for position in pilot]

    cost = forecast.spread(measured("cost_pico"), rest)
    count = forecast.spread(measured("calls"), rest)
    busy = [value / 1e6 for value in measured("total_us")]
    work = forecast.spread(busy, rest)
    slots = min(_slots(kernel, run_id), max(1, rest + len(pilot)))
    span = forecast.makespan(work, slots=slots, longest=max(busy, default=0.0))
    return {
        "calls": round(count.mid),
        "cost": {name: decimal_string(round(getattr(cost, name))) for name in ("low", "mid", "high")},
        "currency": kernel.config.currency,
        "seconds": {name: round(max(getattr(span, name), elapsed_s), 3) for name in ("low", "mid", "high")},
        "interval": forecast.INTERVAL,
        "pilot": len(pilot),
        "items": rest + len(pilot),
        "rough": True,
    }


def _slots(kernel: Kernel, run_id: str) -> int:
    """The batch slots of the upstreams this run has used so far."""
    used = {row["upstream"] for row in kernel.store.all("upstreams_of_run", run=run_id)}
    sections = kernel.config.upstream.items()
    return max(1, sum(section.slots.batch for name, section in sections if name in used))
