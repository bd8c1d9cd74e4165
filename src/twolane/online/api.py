"""The own API under /api/v1: what a key's tenant may know of its steps, budgets and switches, and of the upstreams.

Read-only. Whoever holds a tenant's key is that tenant and sees that tenant alone; what belongs to others is not there.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from contextlib import aclosing
from datetime import UTC, datetime

from twolane.config import RouteSection, UpstreamSection
from twolane.domain.money import decimal_string
from twolane.errors import NotFound
from twolane.kernel import Kernel
from twolane.kernel.lanes import LaneState
from twolane.online.auth import Grant
from twolane.online.probe import last_probe
from twolane.online.stream import Exchange, Hangup
from twolane.rules.budgets import Account

STEP_ID = re.compile(r"[0-9a-f]{24}")


async def list_upstreams(kernel: Kernel, grant: Grant, exchange: Exchange) -> None:
    """GET /api/v1/upstreams: those that this key may reach, with price, lanes and what the last probe found."""
    sections = {name: kernel.config.upstream[name] for name in sorted(_within_reach(kernel, grant))}
    lanes: dict[str, list[LaneState]] = {}
    for state in kernel.lanes.state():
        lanes.setdefault(state.upstream, []).append(state)
    fields = [_upstream_fields(kernel, name, section, lanes[name]) for name, section in sections.items()]
    await exchange.answer(200, {"currency": kernel.config.currency, "upstreams": fields})


async def show_step(kernel: Kernel, grant: Grant, exchange: Exchange) -> None:
    """GET /api/v1/steps/{id}: the row of `trace_steps`; the id is what `x-twolane-step` said."""
    step = exchange.scope["path_params"]["id"]
    row = kernel.store.one("step", step=step, tenant=grant.tenant) if STEP_ID.fullmatch(step) else None
    if row is None:
        raise NotFound(
            "there is no such step of yours. Its id is what x-twolane-step said; it is there once its record is on disk"
        )
    fields = dict(row)
    pico = fields.pop("cost_pico")
    await exchange.answer(200, fields | {"cost": None if pico is None else decimal_string(pico)})


async def list_budgets(kernel: Kernel, grant: Grant, exchange: Exchange) -> None:
    """GET /api/v1/budgets: every limit of this key's tenant, with what is spent, held and left in its period."""
    accounts = await kernel.treasury.all_accounts()
    mine = [_budget_fields(account) for account in accounts if _is_of(kernel, grant.tenant, account.scope)]
    await exchange.answer(200, {"currency": kernel.config.currency, "budgets": mine})


async def list_switches(kernel: Kernel, grant: Grant, exchange: Exchange) -> None:
    """GET /api/v1/switches: what is stopped of this key's tenant; the switch over everything stops it too."""
    mine = [
        {"scope": row["scope"], "cause": row["cause"], "actor": row["actor"], "tripped": _instant(row["tripped"])}
        for row in kernel.store.all("switches")
        if row["scope"] == "all" or _is_of(kernel, grant.tenant, row["scope"])
    ]
    await exchange.answer(200, {"switches": mine})


async def watch_run(kernel: Kernel, grant: Grant, exchange: Exchange) -> None:
    """GET /api/v1/runs/{run}/events: a run of this key's tenant as server-sent events, until it is over. The state at
    once, then whenever it changes; whoever connects again begins with the state."""
    run = exchange.scope["path_params"]["run"]
    row = kernel.store.one("run", id=run)
    if row is None or row["tenant"] != grant.tenant:
        raise NotFound("there is no such run of yours")
    if exchange.scope["method"] == "HEAD":
        await exchange.begin_stream()
        await exchange.end_stream(b"")
        return
    await exchange.body()
    with Hangup(exchange):
        exchange.is_kept_alive = True
        async with aclosing(kernel.watching.follow(run)) as states:
            await exchange.begin_stream()
            async for progress in states:
                event = b"end" if progress.is_over else b"progress"
                await exchange.write(b"event: %b\ndata: %b\n\n" % (event, progress.line))
                if exchange.is_draining:  # a run may take days: its watchers come back to another server
                    break
        await exchange.end_stream(b"")


def _within_reach(kernel: Kernel, grant: Grant) -> set[str]:
    """The upstreams that a grant may name, or that a route may choose which it may name."""
    config = kernel.config
    reached = {name for name in config.upstream if grant.allows(name)}
    for name, route in config.route.items():
        if grant.allows(name):
            reached |= _choices(route)
    return reached


def _choices(route: RouteSection) -> set[str]:
    named = (route.light, route.heavy, *route.fallback, *(rule.use for rule in route.rule))
    return {name for name in named if name is not None}


def _upstream_fields(
    kernel: Kernel, name: str, section: UpstreamSection, states: Iterable[LaneState]
) -> dict[str, object]:
    probe = last_probe(kernel.store, name)
    return {
        "name": name,
        "kind": section.kind,
        "model": section.model or name,
        "price": None if section.price is None else section.price.model_dump(),
        "lanes": lanes_fields(states),
        "probe": None if probe is None else probe.as_fields(),
    }


def lanes_fields(states: Iterable[LaneState]) -> dict[str, object]:
    """Each lane of one upstream as this process sees it at this moment."""
    return {"source": "live"} | {str(state.lane): _lane_fields(state) for state in states}


def _lane_fields(state: LaneState) -> dict[str, object]:
    return {
        "slots": state.slots,
        "held": state.held,
        "busy": state.busy,
        "borrowed": state.borrowed,
        "lent": state.lent,
        "waiting": state.waiting,
        "limit": state.limit,
        "calls_left": _rounded(state.calls_left),
        "tokens_left": _rounded(state.tokens_left),
        "breaker": str(state.breaker),
    }


def _rounded(level: float | None) -> float | None:
    return None if level is None else round(level, 3)


def _budget_fields(account: Account) -> dict[str, object]:
    money = None
    if account.limit_pico is not None:
        amounts = (account.limit_pico, account.spent_pico, account.held_pico, account.left_pico() or 0)
        money = dict(zip(_PARTS, map(decimal_string, amounts), strict=True))
    tokens = None
    if account.limit_tokens is not None:
        counts = (account.limit_tokens, account.spent_tokens, account.held_tokens, account.left_tokens() or 0)
        tokens = dict(zip(_PARTS, counts, strict=True))
    return {"scope": account.scope, "window": account.window, "money": money, "tokens": tokens}


_PARTS = ("limit", "spent", "held", "remaining")


def _is_of(kernel: Kernel, tenant: str, scope: str) -> bool:
    """True for a scope that lies inside a tenant's: itself, its keys, workflows, runs, and their items."""
    kind, _, rest = scope.partition(":")
    match kind:
        case "tenant":
            return rest == tenant
        case "key" | "workflow":
            return rest.partition("/")[0] == tenant
        case "run" | "item":
            run = kernel.store.one("run", id=rest.partition("/")[0])
            return run is not None and run["tenant"] == tenant
    return False


def _instant(us: int) -> str:
    return datetime.fromtimestamp(us / 1e6, UTC).isoformat(timespec="seconds")
