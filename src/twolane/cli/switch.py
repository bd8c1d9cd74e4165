"""Kill switches."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

import typer

from twolane.cli.output import ConfigOption, JsonOption, emit, load_config, new_app, run, table
from twolane.errors import NotFound, UsageError
from twolane.platform import Platform

app = new_app("Kill switches: list, trip, reset.")

KINDS = ("tenant", "key", "workflow", "run", "item")
Scope = Annotated[str | None, typer.Argument(help="tenant:T, key:T/N, workflow:T/W, run:R, item:R/ID")]
All = Annotated[bool, typer.Option("--all", help="everything")]


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
    reason: Annotated[str, typer.Option(help="why; it enters the ledger")] = "tripped by a person",
    config: ConfigOption = None,
    is_json: JsonOption = False,
) -> None:
    """Stop a scope: nothing of it leaves any more, and what is in flight is closed. Only `reset` lets it work again."""
    name = _scope(scope, everything)

    async def go() -> None:
        async with await Platform.open(load_config(config), can_call=False) as platform:
            await platform.kernel.switches.trip(name, cause=reason, actor="switch trip")
            emit(
                is_json, {"scope": name, "tripped": True}, [f"{name} is stopped. Reset it: twolane switch reset {name}"]
            )

    run(go())


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
    if scope is None or scope == "all":
        return "all"
    kind, _, rest = scope.partition(":")
    if kind not in KINDS or not rest:
        raise UsageError(f"{scope!r} is not a scope", hint="Write tenant:T, key:T/N, workflow:T/W, run:R or item:R/ID")
    return scope
