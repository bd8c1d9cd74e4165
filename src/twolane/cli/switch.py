"""Kill switches."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from typing import Annotated

import typer

from twolane.cli.output import ConfigOption, JsonOption, emit, load_config, new_app, run, table
from twolane.config import near
from twolane.domain.money import decimal_string
from twolane.errors import NotFound, UsageError
from twolane.kernel.switches import KillReport, check_scope
from twolane.platform import Platform

app = new_app("Kill switches: list, trip, reset.")

Scope = Annotated[str | None, typer.Argument(help="tenant:T, key:T/N, workflow:T/W, run:R, item:R/ID, upstream:U")]
All = Annotated[bool, typer.Option("--all", help="everything")]
BY_HAND = "tripped by a person"


@app.command(name="list")
def list_(config: ConfigOption = None, is_json: JsonOption = False) -> None:
    """What is stopped."""

    async def go() -> None:
        async with await Platform.open(load_config(config), can_call=False) as platform:
            rows = [
                {
                    "scope": row["scope"],
                    "cause": row["cause"],
                    "actor": row["actor"],
                    "tripped": datetime.fromtimestamp(row["tripped"] / 1e6, UTC).isoformat(timespec="milliseconds"),
                }
                for row in platform.kernel.store.all("switches")
            ]
            head = ("scope", "tripped", "actor", "cause")
            cells = [[row[name] for name in head] for row in rows]
            emit(is_json, {"switches": rows}, table(cells, head=head) if rows else ["No switch is tripped."])

    run(go())


@app.command()
def trip(
    scope: Scope = None,
    everything: All = False,
    reason: Annotated[str, typer.Option(help="why; it enters the ledger")] = BY_HAND,
    config: ConfigOption = None,
    is_json: JsonOption = False,
) -> None:
    """Stop a scope: nothing of it leaves any more, and what is in flight is closed. Only `reset` lets it work again.

    It is stopped once this answers; the report of what was closed follows within a second."""
    name = _scope(scope, everything)

    async def go() -> None:
        async with await Platform.open(load_config(config), can_call=False) as platform:
            switches = platform.kernel.switches
            done = await switches.trip(name, cause=reason.strip() or BY_HAND, actor="switch trip")
            if not is_json:
                stopped = f"{name} is stopped. Reset it: twolane switch reset {name}"
                emit(False, {}, [stopped, *not_known(platform, name)])
                sys.stdout.flush()
            report = await switches.report(done)
            fields = None if report is None else report.fields() | {"currency": platform.kernel.config.currency}
            emit(
                is_json,
                {"scope": name, "tripped": True, "report": fields},
                lambda: _told(report, platform.kernel.config.currency),
            )

    run(go())


def not_known(platform: Platform, scope: str) -> list[str]:
    """A slip of the pen is said, and no more: what was named may be known elsewhere."""
    kind, _, name = scope.partition(":")
    kernel = platform.kernel
    if kind == "upstream" and name not in kernel.config.upstream:
        return [f"But there is no such upstream in this configuration{near(name, kernel.config.upstream)}"]
    if kind in ("run", "item") and not kernel.store.one("run", id=name.partition("/")[0]):
        return ["But there is no such run in this store. Look: twolane run list"]
    return []


def _told(report: KillReport | None, currency: str) -> list[str]:
    if report is None:
        return ["It was stopped before; nothing changed."]
    if not report.steps:
        return ["Nothing was under way."]
    slowest = max((delay for _, _, delay in report.acknowledgements), default=0) / 1000
    processes = len({process for process, _, _ in report.acknowledgements})
    saved = "unknown" if report.saved_pico is None else f"{decimal_string(report.saved_pico)} {currency}"
    after = "unknown" if report.tokens_after is None else str(report.tokens_after)
    return [
        f"{report.steps} steps closed in {processes} processes, the last after {slowest:.0f} ms.",
        f"Tokens generated after that: {after}. Money saved: {saved}.",
    ]


@app.command()
def reset(
    scope: Scope = None, everything: All = False, config: ConfigOption = None, is_json: JsonOption = False
) -> None:
    """Let a scope work again."""
    name = _scope(scope, everything)

    async def go() -> None:
        async with await Platform.open(load_config(config), can_call=False) as platform:
            if not await platform.kernel.switches.reset(name, cause="reset by a person", actor="switch reset"):
                raise NotFound(f"{name} is not stopped")
            emit(is_json, {"scope": name, "tripped": False}, [f"{name} may work again."])

    run(go())


def _scope(scope: str | None, everything: bool) -> str:
    if everything == (scope is not None):
        raise UsageError("name one scope, or --all", hint="For example: twolane switch trip run:R")
    return check_scope(scope or "all")
