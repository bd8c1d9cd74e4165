"""The own API under /api/v1: what a key's tenant may know of its steps, budgets and switches, and of the upstreams.

Read-only but for the switches, which take an operator's key. Whoever holds a tenant's key is that tenant and sees that
tenant alone; what belongs to others is not there.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable, Sequence
from contextlib import aclosing
from dataclasses import asdict
from datetime import UTC, datetime
from urllib.parse import parse_qsl

from twolane.config import RouteSection, UpstreamSection
from twolane.domain.money import decimal_string
from twolane.errors import BadRequest, NotFound, UsageError
from twolane.kernel import Kernel, economics
from twolane.kernel.accounts import account_fields
from twolane.kernel.lanes import LaneState
from twolane.kernel.switches import check_scope
from twolane.online.auth import MONITOR, Grant
from twolane.online.probe import last_probe
from twolane.online.stream import Exchange, Hangup
from twolane.online.wire import read_object

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
    """GET /api/v1/budgets: every limit of this key's tenant, with what is spent, held and left in its period, as
    `twolane budget list --json` tells them."""
    accounts = await kernel.treasury.all_accounts()
    mine = [account_fields(account) for account in accounts if _is_of(kernel, grant.tenant, account.scope)]
    await exchange.answer(200, {"currency": kernel.config.currency, "budgets": mine})


async def list_switches(kernel: Kernel, grant: Grant, exchange: Exchange) -> None:
    """GET /api/v1/switches: what is stopped of this key's tenant; the switch over everything stops it too."""
    mine = [
        {"scope": row["scope"], "cause": row["cause"], "actor": row["actor"], "tripped": _instant(row["tripped"])}
        for row in kernel.store.all("switches")
        if row["scope"] == "all" or _is_of(kernel, grant.tenant, row["scope"])
    ]
    await exchange.answer(200, {"switches": mine})


async def trip_switch(kernel: Kernel, grant: Grant, exchange: Exchange) -> None:
    """POST /api/v1/switches: stop a scope of this key's tenant. Stopped once this answers, with the report of what was
    closed."""
    fields = read_object(await exchange.body())
    scope, reason = fields.get("scope"), fields.get("reason", "tripped by a person")
    for name, value in (("scope", scope), ("reason", reason)):
        if not isinstance(value, str) or not value or len(value) > MOST_TEXT or not value.isprintable():
            raise BadRequest(f"{name!r} must be a text of at most {MOST_TEXT:,} characters", param=name)
    done = await kernel.switches.trip(_own_scope(kernel, grant, str(scope)), cause=str(reason), actor=_actor(grant))
    report = await kernel.switches.report(done)
    told = None if report is None else report.fields() | {"currency": kernel.config.currency}
    await exchange.answer(200, {"scope": done.scope, "tripped": True, "report": told})


async def reset_switch(kernel: Kernel, grant: Grant, exchange: Exchange) -> None:
    """DELETE /api/v1/switches/{scope}: let a scope of this key's tenant work again."""
    scope = _own_scope(kernel, grant, exchange.scope["path_params"]["scope"])
    if not await kernel.switches.reset(scope, cause="reset by a person", actor=_actor(grant)):
        raise NotFound(f"{scope} is not stopped")
    await exchange.answer(200, {"scope": scope, "tripped": False})


MOST_TEXT = 500


def _own_scope(kernel: Kernel, grant: Grant, scope: str) -> str:
    """A scope inside the tenant's own. The switch over everything is this machine's, before the first key."""
    try:
        check_scope(scope)
    except UsageError as error:
        raise BadRequest(str(error), param="scope") from None
    if not (_is_of(kernel, grant.tenant, scope) or (scope == "all" and not grant.key)):
        raise NotFound("there is no such scope of yours", param="scope")
    return scope


def _actor(grant: Grant) -> str:
    return f"key {grant.tenant}/{grant.key}" if grant.key else "this machine"


async def show_metrics(kernel: Kernel, grant: Grant, exchange: Exchange) -> None:
    """GET /metrics: what Prometheus is told; a tenant's key reads of that tenant and of the lanes alone."""
    body, kind = await kernel.metrics.page(None if grant is MONITOR else grant.tenant, exchange.header(b"accept"))
    await exchange.answer_bytes(200, body, kind=kind.encode())


async def show_costs(kernel: Kernel, grant: Grant, exchange: Exchange) -> None:
    """GET /api/v1/costs?by=&since=&until=: what this key's tenant has paid, and for what. Read beside the event loop:
    it may take a moment, and nobody's tokens wait for it."""
    asked = _asked(exchange, ("by", "since", "until"))
    days, by = economics.period(asked.get("since"), asked.get("until")), asked.get("by", "workflow").split(",")
    store, currency = kernel.store, kernel.config.currency
    said = await asyncio.to_thread(economics.report, store, currency, by, days, tenant=grant.tenant)
    await exchange.answer(200, said.fields())


def _asked(exchange: Exchange, names: Sequence[str]) -> dict[str, str]:
    """The fields of a query, each at most once."""
    try:
        pairs = parse_qsl(
            exchange.scope["query_string"].decode("ascii"), strict_parsing=True, max_num_fields=len(names)
        )
    except ValueError as error:
        raise BadRequest(f"the query cannot be read: {error}") from None
    for name, _ in pairs:
        if name not in names or len(dict(pairs)) < len(pairs):
            raise BadRequest(
                f"{name[:40]!r} is not asked here, or twice; there are {', '.join(names)}", param=name[:40]
            )
    return dict(pairs)


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
        "price": kernel.prices.quotes[name].shown(),
        "lanes": lanes_fields(states),
        "probe": None if probe is None else probe.as_fields(),
    }


def lanes_fields(states: Iterable[LaneState]) -> dict[str, object]:
    """Each lane of one upstream as this process sees it at this moment."""
    return {"source": "live"} | {str(state.lane): _lane_fields(state) for state in states}


def _lane_fields(state: LaneState) -> dict[str, object]:
    left = {"calls_left": _rounded(state.calls_left), "tokens_left": _rounded(state.tokens_left)}
    told = asdict(state) | left | {"breaker": str(state.breaker)}
    return {name: told[name] for name in told if name not in ("upstream", "lane")}


def _rounded(level: float | None) -> float | None:
    return None if level is None else round(level, 3)


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
