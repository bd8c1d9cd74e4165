"""What Prometheus is told: gathered when it asks, from the lanes, from counters of this process, and from the store.

What lies in the store is told by whichever process is asked, so a worker needs no address of its own.
"""

from __future__ import annotations

import asyncio
import heapq
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib import metadata
from operator import itemgetter
from typing import TYPE_CHECKING

from twolane import telemetry as names
from twolane.domain.money import PICO
from twolane.kernel import ledger
from twolane.kernel.switches import KINDS
from twolane.rules import budgets
from twolane.rules.feedback import State
from twolane.telemetry import Samples

if TYPE_CHECKING:
    from twolane.kernel import Kernel

MOST = 100
"""Scopes of a kind that are told apart."""
FRESH_S = 1.0
"""Who asks more often is told the same of the store again."""
RUN_STATUSES = ("queued", "running", "done", "stopped", "failed")
"""Told from the start: a rule that compares with ten minutes ago would not see the first run that fails."""
_SUMMED = ("calls", "reused", "refused", "failed", "input_tokens", "output_tokens", "cost_pico")


class Metrics:
    """The pages of one process."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._past, self._past_until = _Sums(), ""
        """The days before this one, which change no more."""
        self._known: dict[str | None, tuple[float, Samples]] = {}
        """What the store held by tenant, and when that was."""
        self._lock, self._thread = asyncio.Lock(), ThreadPoolExecutor(1)  # one: each thread has a connection of its own

    async def page(self, tenant: str | None, accept: str) -> tuple[bytes, str]:
        """A page and its content type. A tenant is told of itself and of the lanes; None is told everything."""
        async with self._lock:
            live = self._lanes() | ({} if tenant else self._process())
            return await asyncio.get_running_loop().run_in_executor(self._thread, self._write, live, tenant, accept)

    def _write(self, live: Samples, tenant: str | None, accept: str) -> tuple[bytes, str]:
        now = time.monotonic()
        self._known = {name: each for name, each in self._known.items() if now - each[0] < FRESH_S}
        if tenant not in self._known:
            self._known[tenant] = now, self._kept(tenant)
        return names.render(live | self._known[tenant][1], accept, has_process=tenant is None)

    # ── of this process ──

    def _lanes(self) -> Samples:
        states = self._kernel.lanes.state()
        gauges = {
            names.STORE_SLOTS: "slots", names.SLOTS_HELD: "held", names.SLOTS_BUSY: "busy", names.SLOTS_LENT: "lent",
            names.QUEUE: "waiting",
        }  # fmt: skip
        samples: Samples = {
            metric: {(state.lane, state.upstream): getattr(state, field) for state in states}
            for metric, field in gauges.items()
        }
        samples[names.SLOTS_FREE] = {
            (state.lane, state.upstream): max(0, state.limit - state.busy + state.borrowed - state.lent)
            for state in states
        }
        samples[names.BREAKER] = {(each.upstream, s): float(each.breaker is s) for each in states for s in State}
        return samples

    def _process(self) -> Samples:
        counted, steps = self._kernel.telemetry, dict(self._kernel.telemetry.steps)
        drifted = self._kernel.drifted
        return {
            names.BUILD: {(metadata.version("twolane"),): 1},
            names.REQUESTS: dict(counted.requests.items()),
            names.STEPS: {(*lane, s): n for lane, ended in steps.items() for s, n in list(ended.by_status.items())},
            names.TTFT: {lane: ended.ttft for lane, ended in steps.items()},
            names.QUEUED: {lane: ended.queued for lane, ended in steps.items()},
            names.COMMIT: {(): self._kernel.store.commits},
            **({} if drifted is None else {names.DRIFT: {(): drifted}}),
        }

    # ── of the store ──

    def _kept(self, tenant: str | None) -> Samples:
        store = self._kernel.store
        with store.snapshot():
            tree, leased = store.one("tree"), Counter[tuple[str, ...]]()
            for row in store.all("lane_members"):
                leased[row["lane"], row["upstream"]] += row["holds"]
            samples = self._totals(tenant) | self._budgets(tenant) | self._switches(tenant)
            samples |= {
                names.STORE_LEASED: dict(leased),
                names.RUNS: {(status,): 0 for status in RUN_STATUSES}
                | {(row["status"],): row["runs"] for row in store.all("count_runs", tenant=tenant)},
                names.ITEMS: {(row["status"],): row["items"] for row in store.all("count_live_items", tenant=tenant)},
                names.LEDGER: {(): tree["size"] if tree else 0},
                names.PROCESSES: {
                    ("any",): len(store.all("processes")),
                    ("worker",): sum(self._kernel.presence.is_alive(row["owner"]) for row in store.all("workers")),
                },
            }
        return samples

    def _totals(self, tenant: str | None) -> Samples:
        """What the roll-ups have; for all tenants, the days that are over are added up once."""
        # A step that ended before midnight may be written after it, so yesterday is not over yet.
        over = budgets.window("day", ledger.now_us() - budgets.DAY_US)
        if over < self._past_until:  # the clock was set back
            self._past, self._past_until = _Sums(), ""
        if over != self._past_until:
            self._add(self._past, None, self._past_until, over)
            self._past_until = over
        sums = self._past.copy() if tenant is None else _Sums()
        self._add(sums, tenant, over if tenant is None else "", "9999")
        lanes, spent = sums.lanes, sums.spent
        currency, upstreams = self._kernel.config.currency, self._kernel.upstreams
        is_free = {name for name, each in upstreams.items() if each.price is None}  # unknown is not zero
        return {
            names.STORE_STEPS: {(*lane, each): n for lane, sums in lanes.items() for each, n in _outcomes(sums)},
            names.STORE_TOKENS: {
                (*lane, kind): sums[f"{kind}_tokens"] for lane, sums in lanes.items() for kind in ("input", "output")
            },
            names.COST: {
                (*lane, currency): names.approx(sums["cost_pico"])
                for lane, sums in lanes.items()
                if lane[1] not in is_free
            },
            names.TENANT_COST: {
                (payer, currency): names.approx(pico) for payer, pico in spent.most_common(MOST) if payer and pico
            },
        }

    def _add(self, sums: _Sums, tenant: str | None, since: str, until: str) -> None:
        days = {"tenant": tenant, "since": since, "until": until}
        for row in self._kernel.store.all("totals", **days):
            sums.lanes.setdefault((row["lane"], row["upstream"]), Counter()).update({key: row[key] for key in _SUMMED})
        sums.spent.update(
            {row["tenant"]: row["cost_pico"] for row in self._kernel.store.all("spent_by_tenant", **days)}
        )

    def _budgets(self, tenant: str | None) -> Samples:
        """The fullest ones. Those of runs and items are left out: there is no end of them. Of one that nobody has held
        anything of yet, in this window, only the limit is known."""
        now_us, store = ledger.now_us(), self._kernel.store
        day, month = budgets.window("day", now_us), budgets.window("month", now_us)
        used = {row["scope"]: row for row in store.all("spending_of_budgets", day=day, month=month)}
        found: list[tuple[float, tuple[str, ...], list[float | None]]] = []
        for row in map(dict, store.all("wide_budgets")):
            gone = used.get(row["scope"])
            for column, dimension, unit in _LIMITABLE if tenant in (None, _tenant_of(row["scope"])) else ():
                if (limit := row.get(column)) is not None:
                    spent, held = (None if gone is None else gone[f"{part}_{column}"] for part in ("spent", "held"))
                    fullness = ((spent or 0) + (held or 0)) / max(limit, 1e-9)
                    amounts = [each if each is None else each / unit for each in (limit, spent, held)]
                    found.append((fullness, (row["scope"], row["period"], dimension), amounts))
        fullest = heapq.nlargest(MOST, found, key=itemgetter(0))
        metrics = (names.BUDGET_LIMIT, names.BUDGET_SPENT, names.BUDGET_HELD)
        return {
            metric: {labels: amount for _, labels, amounts in fullest if (amount := amounts[at]) is not None}
            for at, metric in enumerate(metrics)
        }

    def _switches(self, tenant: str | None) -> Samples:
        scopes = [row["scope"] for row in self._kernel.store.all("switches")]
        mine = [scope for scope in scopes if tenant is None or scope == "all" or _tenant_of(scope) == tenant]
        named = [scope for scope in mine if not scope.startswith("item:")][-MOST:]
        kinds = Counter(dict.fromkeys(("all", *KINDS), 0))
        kinds.update(scope.partition(":")[0] for scope in mine)
        return {
            names.SWITCHES: {(kind,): count for kind, count in kinds.items()},
            names.SWITCH: {(scope,): 1 for scope in named},
        }


_LIMITABLE = (
    ("pico", "money", PICO), ("tokens", "tokens", 1), ("calls", "calls", 1),
    ("us", "seconds", 1_000_000), ("accelerator_us", "accelerator_seconds", 1_000_000),
)  # fmt: skip
"""What a budget may limit: its column, its name, and how many make one unit."""


@dataclass
class _Sums:
    """Of some days."""

    lanes: dict[tuple[str, str], Counter[str]] = field(default_factory=dict)
    """By lane and upstream."""
    spent: Counter[str] = field(default_factory=Counter)
    """By tenant."""

    def copy(self) -> _Sums:
        """The same, to be added to."""
        return _Sums({name: Counter(sums) for name, sums in self.lanes.items()}, Counter(self.spent))


def _outcomes(sums: Counter[str]) -> Iterator[tuple[str, int]]:
    yield "ok", sums["calls"] - sums["refused"] - sums["failed"]
    for outcome in ("refused", "failed", "reused"):
        yield outcome, sums[outcome]


def _tenant_of(scope: str) -> str:
    """Whose scope it is; of runs and items nothing here says it."""
    kind, _, rest = scope.partition(":")
    return rest.partition("/")[0] if kind in ("tenant", "key", "workflow") else ""
