"""Batch runs."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated

import typer

from twolane.batch.run import RunSummary
from twolane.cli.output import ConfigOption, JsonOption, emit, load_config, new_app, plain, run, run_worker, table
from twolane.domain.money import decimal_string
from twolane.errors import UsageError
from twolane.platform import Platform

app = new_app("Batch runs: forecast, start, list, show, watch, resume, kill.")

Inputs = Annotated[list[str], typer.Argument(help="files and folders: .txt .md .pdf .jsonl[.gz] .csv")]
Flow = Annotated[str, typer.Argument(help="a built-in flow (contract-audit) or module:function")]
With = Annotated[list[str] | None, typer.Option("--with", help="an option of the flow: key=value, or key=@FILE")]
RunId = Annotated[str, typer.Argument(help="the run's id")]


@app.command()
def start(
    flow: Flow,
    inputs: Inputs,
    budget: Annotated[str | None, typer.Option(help="the most the run may spend, like '$5'")] = None,
    with_: With = None,
    wait: Annotated[bool, typer.Option("--wait", help="work on it here and now, until it ends")] = False,
    reports: Annotated[
        str | None, typer.Option(help="folder of the reports; else reports/RUN beside the store")
    ] = None,
    tenant: Annotated[str, typer.Option(help="whose run it is")] = "default",
    config: ConfigOption = None,
    is_json: JsonOption = False,
) -> None:
    """Start a run. Its budget is hard; its forecast comes from its first items."""

    async def go() -> int:
        async with await Platform.open(load_config(config)) as platform:
            identity = await platform.start(
                flow, inputs, budget=budget, options=_options(with_), reports=reports, tenant=tenant
            )
            if wait:
                return _show(await _work(platform, identity, is_json=is_json), is_json)
            summary = platform.summary(identity)
            workers = "a worker must run: twolane work"
            emit(is_json, summary.fields(), [f"run {identity} is queued: {summary.items['total']} items; {workers}"])
            return 0

    raise typer.Exit(run_worker(go()))


@app.command()
def forecast(
    flow: Flow,
    inputs: Inputs,
    budget: Annotated[str | None, typer.Option(help="the most the pilot may spend")] = None,
    with_: With = None,
    config: ConfigOption = None,
    is_json: JsonOption = False,
) -> None:
    """Run a pilot of a few items, and say what all of them will cost and take. The pilot is paid for, and reused."""

    async def go() -> int:
        async with await Platform.open(load_config(config)) as platform:
            identity = await platform.start(flow, inputs, budget=budget, options=_options(with_))
            summary = await platform.work(identity, pilot_only=True)
            if summary.forecast is None:
                return _show(summary, is_json)
            emit(is_json, {"run": identity, **summary.forecast}, forecast_lines(summary.forecast))
            return 0

    raise typer.Exit(run_worker(go()))


@app.command()
def resume(
    identity: RunId,
    quarantined: Annotated[bool, typer.Option("--quarantined", help="try its refused items again too")] = False,
    wait: Annotated[bool, typer.Option("--wait", help="work on it here and now (the default)")] = True,
    config: ConfigOption = None,
    is_json: JsonOption = False,
) -> None:
    """Go on with a run that was stopped, killed or cut off by a crash. What was paid for is reused."""

    async def go() -> int:
        async with await Platform.open(load_config(config)) as platform:
            await platform.prepare_resume(identity, quarantined=quarantined)
            return _show(await _work(platform, identity, is_json=is_json), is_json)

    raise typer.Exit(run_worker(go()))


@app.command(hidden=True)
def work(identity: RunId, config: ConfigOption = None, is_json: JsonOption = False) -> None:
    """Work on a queued run as it is: what `twolane work` starts for each. Unlike `resume` it resets no switch."""

    async def go() -> int:
        async with await Platform.open(load_config(config)) as platform:
            return _show(await platform.work(identity), is_json)

    raise typer.Exit(run_worker(go()))


@app.command(name="list")
def list_(
    count: Annotated[int, typer.Option(help="how many, newest first")] = 50,
    config: ConfigOption = None,
    is_json: JsonOption = False,
) -> None:
    """Runs, newest first."""

    async def go() -> None:
        async with await Platform.open(load_config(config), can_call=False) as platform:
            rows = [
                {
                    "run": row["id"],
                    "flow": row["flow"],
                    "status": row["status"],
                    "started": _instant(row["started"]),
                    "items": row["items"],
                    "cost": decimal_string(row["cost_pico"]),
                }
                for row in platform.kernel.store.all("runs", count=count)
            ]
            head = ("run", "flow", "status", "started", "items", "cost")
            cells = [[str(row[name] or "") for name in head] for row in rows]
            emit(is_json, {"runs": rows}, table(cells, head=head) if rows else ["No run was started yet."])

    run(go())


@app.command()
def show(identity: RunId, config: ConfigOption = None, is_json: JsonOption = False) -> None:
    """What is known of a run: items, calls, tokens, cost by agent, forecast, reports."""

    async def go() -> None:
        async with await Platform.open(load_config(config), can_call=False) as platform:
            summary = platform.summary(identity)
            emit(is_json, summary.fields(), summary_lines(summary))

    run(go())


@app.command()
def watch(identity: RunId, config: ConfigOption = None, is_json: JsonOption = False) -> None:
    """Follow a run until it ends."""

    async def go() -> int:
        async with await Platform.open(load_config(config), can_call=False) as platform:
            summary = platform.summary(identity)
            if summary.status in ("queued", "running"):
                await _follow(platform, identity, is_json=is_json)
            return _show(platform.summary(identity), is_json)

    raise typer.Exit(run(go()))


@app.command()
def kill(
    identity: RunId,
    reason: Annotated[str, typer.Option(help="why; it enters the ledger")] = "killed by its operator",
    config: ConfigOption = None,
    is_json: JsonOption = False,
) -> None:
    """Stop a run now: nothing new leaves, and what is in flight is closed. `resume` goes on from there."""

    async def go() -> None:
        async with await Platform.open(load_config(config), can_call=False) as platform:
            answer = await platform.kill(identity, cause=reason)
            line = (
                f"run {identity}: {answer['status']}, {answer['stopped_steps']} steps closed in {answer['seconds']} s"
            )
            emit(is_json, answer, [line, f"Go on with: twolane run resume {identity}"])

    run(go())


async def _work(platform: Platform, identity: str, *, is_json: bool) -> RunSummary:
    """Work on a run, drawing its progress where somebody watches."""
    if is_json or not sys.stderr.isatty():
        return await platform.work(identity)
    from twolane.cli.progress import Progress

    with Progress() as progress:
        follower = asyncio.ensure_future(progress.follow(platform, identity))
        try:
            return await platform.work(identity, on_forecast=progress.forecast)
        finally:
            follower.cancel()
            await asyncio.gather(follower, return_exceptions=True)
            progress.show(platform.summary(identity))


async def _follow(platform: Platform, identity: str, *, is_json: bool) -> None:
    if is_json or not sys.stderr.isatty():
        # The run may be another process's: only the store tells.
        while platform.summary(identity).status in ("queued", "running"):  # noqa: ASYNC110
            await asyncio.sleep(0.2)
        return
    from twolane.cli.progress import Progress

    with Progress() as progress:
        await progress.follow(platform, identity)


def _show(summary: RunSummary, is_json: bool) -> int:
    emit(is_json, summary.fields(), summary_lines(summary))
    return summary.exit_code


def summary_lines(summary: RunSummary) -> list[str]:
    """A run's summary for people."""
    items, tokens = summary.items, summary.tokens
    lines = [
        f"run {summary.run} · {summary.flow} · {summary.status}" + (f" ({summary.reason})" if summary.reason else ""),
        f"  items    {items['done']} done, {items['quarantined']} in quarantine, of {items['total']}",
        f"  calls    {summary.calls} left the house, {summary.reused} answered from memos",
        f"  tokens   {tokens['input']:,} in, {tokens['output']:,} out",
        f"  cost     {summary.cost} {summary.currency} in {summary.seconds:.1f} s at work",
        f"  budget   {summary.budget} {summary.currency}" if summary.budget else "  budget   none of its own: no limit",
    ]
    agents = [
        [name or "?", str(each["calls"]), str(each["reused"]), str(each["refused"]), str(each["cost"])]
        for name, each in summary.by_agent.items()
    ]
    if agents:
        lines += ["  " + line for line in table(agents, head=("agent", "calls", "reused", "refused", "cost"))]
    if items["done"]:
        lines.append(f"  reports  {summary.reports}")
    if items["quarantined"]:
        lines.append(f"  look at  twolane quarantine list --run {summary.run}")
    if summary.status in ("stopped", "failed"):
        lines.append(f"  go on    twolane run resume {summary.run}")
    return lines


def forecast_lines(said: Mapping[str, object]) -> list[str]:
    """A forecast for people, with what it rests on."""
    cost, seconds = said["cost"], said["seconds"]
    assert isinstance(cost, dict)
    assert isinstance(seconds, dict)
    share = round(float(str(said["interval"])) * 100)
    return [
        f"forecast from {said['pilot']} of {said['items']} items (rough: mean and spread of a pilot, {share} %)",
        f"  calls    {said['calls']}",
        f"  cost     {_short(cost['mid'])} {said['currency']}  ({_short(cost['low'])} to {_short(cost['high'])})",
        f"  seconds  {seconds['mid']:.1f}  ({seconds['low']:.1f} to {seconds['high']:.1f})",
    ]


def _short(amount: str) -> str:
    whole, _, digits = amount.partition(".")
    return f"{whole}.{digits[:6]}"


def _options(pairs: list[str] | None) -> dict[str, str]:
    options = {}
    for pair in pairs or ():
        name, sign, value = pair.partition("=")
        if not sign or not name:
            raise UsageError(f"--with {plain(pair)}: write it as key=value")
        options[name] = value
    return options


def _instant(micros: int | None) -> str | None:
    return None if micros is None else datetime.fromtimestamp(micros / 1e6, UTC).isoformat(timespec="seconds")
