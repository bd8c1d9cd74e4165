"""Reports of costs over a store of a million steps: `python tests/load/costs.py [STEPS] [RUNS] [STORE]`, JSON.

The steps go through the roll-ups' own code, in groups as the writer makes them: 120 days, 8 tenants, 40 keys, 16
workflows of 4 agents, 6 upstreams, 5,000 runs. STORE is the address of another store than a new file, such as that of
an empty PostgreSQL database. Milliseconds of each report as JSON, the slowest of seven.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import orjson

from twolane.domain.records import Price, Usage
from twolane.kernel import economics, rollups
from twolane.rules import pricing
from twolane.rules.economics import parts
from twolane.store import Store, Transaction
from twolane.store.opening import open_store

Figures = dict[str, Any]  # Any: JSON

GROUP = 512
DAYS = 120
FIRST_US = 1_760_000_000_000_000
DAY_US = 86_400_000_000
UPSTREAMS = [(f"up{n}", f"model-{n}", Price(50_000 * (n + 1), 200_000 * (n + 1), 12_500 * (n + 1))) for n in range(6)]
STATUSES = ["ok"] * 90 + ["refused"] * 4 + ["failed"] * 2 + ["killed", "cancelled", "in_doubt", "unreached"]
REPORTS: Sequence[tuple[str, ...]] = (
    *((name,) for name in economics.DIMENSIONS),
    (), ("workflow", "agent"), ("tenant", "key", "day"), ("day", "upstream", "model"), ("run", "agent", "model"),
    tuple(name for name in economics.DIMENSIONS if name != "run"),
)  # fmt: skip


def steps(count: int, runs: int, seed: int = 1) -> Iterator[tuple[dict[str, object], int, tuple[Any, ...]]]:
    """The fields of a leaf, what it cost, and of what that is made: half of them online, half in runs, which take a day
    each."""
    chance = random.Random(seed)
    for number in range(count):
        upstream, model, price = UPSTREAMS[chance.randrange(3 if number % 2 else 6)]
        run = number * runs // count
        day = number * DAYS // count
        fields: dict[str, object] = {
            "status": "reused" if number % 10 == 7 else chance.choice(STATUSES),
            "attempt": 2 if number % 25 == 3 else 1, "tenant": f"tenant{run % 8}", "upstream": upstream, "model": model,
            "at_us": FIRST_US + day * DAY_US, "total_us": 900_000, "price": f"{model}-price",
        }  # fmt: skip
        if number % 2:
            fields |= {
                "lane": "batch",
                "run": f"r{run:06}",
                "workflow": f"flow{run % 16}",
                "agent": f"agent{number % 4}",
            }
        else:
            fields |= {
                "lane": "online",
                "api_key": f"key{chance.randrange(5)}",
                "tenant": f"tenant{chance.randrange(8)}",
            }
        usage = Usage(chance.randrange(200, 9000), chance.randrange(20, 900), chance.randrange(0, 200))
        pico = 0 if fields["status"] in ("reused", "unreached") else pricing.charge(usage, price)
        fields |= {"cost_pico": pico, "input_tokens": usage.input_tokens, "output_tokens": usage.output_tokens}
        if fields["status"] == "reused":
            fields["saved_pico"] = pricing.charge(usage, price)
        elif number % 2 and pico:
            fields["baseline_pico"] = pricing.charge(usage, UPSTREAMS[5][2])
        yield fields, pico, parts(usage, price, pico) if pico else ()


async def fill(store: Store, count: int, runs: int) -> int:
    """Write them; what all of them cost."""
    made, total = steps(count, runs), 0
    group: list[tuple[dict[str, object], int, tuple[Any, ...]]] = []

    def work(tx: Transaction) -> None:
        for fields, pico, of in group:
            rollups.count(tx, fields, pico=pico, parts=of)
            if fields.get("run"):
                rollups.count_item(
                    tx, str(fields["run"]), tenant=str(fields["tenant"]), workflow=str(fields["workflow"]),
                    at_us=int(str(fields["at_us"])), is_done=True,
                )  # fmt: skip

    for at in range(0, count, GROUP):
        group = [each for _, each in zip(range(min(GROUP, count - at)), made, strict=False)]
        total += sum(pico for _, pico, _ in group)
        await store.write(work)
    return total


def slowest_ms(store: Store, by: Sequence[str], since: str = "", times: int = 7) -> float:
    """A report, as it leaves the house."""
    taken = []
    for _ in range(times):
        began = time.perf_counter()
        orjson.dumps(economics.report(store, "USD", by, economics.Days(since)).fields())
        taken.append(time.perf_counter() - began)
    return round(max(taken) * 1000, 1)


async def measure(count: int, runs: int, address: str) -> Figures:
    """Fill a new store, and ask it everything."""
    store = open_store(address)
    try:
        began = time.perf_counter()
        total = await fill(store, count, runs)
        seconds = time.perf_counter() - began
        charged = economics.charges(store)
        assert sum(row["cost_pico"] for row in charged) == total, "the charges are not what the steps cost"
        told = economics.report(store, "USD", ()).total.row
        assert told["cost_pico"] == total, "the report is not what the steps cost"
        recent = economics.report(store, "USD", ("day",)).rows[0].row["day"]
        reports = {"/".join(by) or "total": slowest_ms(store, by) for by in REPORTS}
        reports |= {f"{by}, since {recent}": slowest_ms(store, (by,), recent) for by in ("workflow", "run")}
        return {
            "steps": count,
            "runs": runs,
            "microseconds_a_step_to_roll_up": round(seconds / count * 1e6, 1),
            "rows": {"day_total": told["rows"], "charge_total": len(charged)},
            "milliseconds": reports,
            "slowest": max(reports.values()),
        }
    finally:
        store.close()


def main(count: str = "1000000", runs: str = "5000", address: str = "") -> None:
    """One JSON object."""
    with tempfile.TemporaryDirectory() as folder:
        figures = asyncio.run(measure(int(count), int(runs), address or f"sqlite:{Path(folder) / 'costs.db'}"))
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main(*sys.argv[1:])
