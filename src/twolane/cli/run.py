"""Batch runs."""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from contextlib import aclosing
from datetime import UTC, datetime
from typing import Annotated

import orjson
import typer

from twolane.batch import again
from twolane.batch import run as runs
from twolane.batch.diff import compare
from twolane.batch.run import RunSummary
from twolane.cli.lines import diff_lines, forecast_lines, plan_lines, progress_line, summary_lines
from twolane.cli.output import ConfigOption, JsonOption, emit, load_config, new_app, plain, run, run_worker, table
from twolane.domain.money import decimal_string
from twolane.errors import UsageError
from twolane.kernel.progress import status_of
from twolane.knowledge.ingest import Input
from twolane.knowledge.query import Query
from twolane.platform import Platform

app = new_app("Batch runs: forecast, plan, start, list, show, watch, pause, resume, fork, diff, kill.")

Inputs = Annotated[list[str] | None, typer.Argument(help="files and folders: .txt .md .pdf .jsonl[.gz] .csv")]
Sql = Annotated[str | None, typer.Option(help="rows of a database as inputs: a SELECT that gives an id for each")]
Database = Annotated[
    str | None, typer.Option(help="where --sql asks: sqlite:PATH, postgresql://HOST/NAME, or env:NAME that holds it")
]
Flow = Annotated[str, typer.Argument(help="a built-in flow (contract-audit) or module:function")]
With = Annotated[list[str] | None, typer.Option("--with", help="an option of the flow: key=value, or key=@FILE")]
INSTANTS = ["%Y-%m-%d", "%Y-%m-%dT%H:%M", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%dT%H:%M:%SZ"]
JsonLinesOption = Annotated[bool, typer.Option("--json", help="print JSON objects, one a line")]
LINE_S = 1.0
"""Least time between two lines of `run watch`."""
RunId = Annotated[str, typer.Argument(help="the run's id")]


@app.command()
def start(
    flow: Flow,
    inputs: Inputs = None,
    sql: Sql = None,
    database: Database = None,
    budget: Annotated[str | None, typer.Option(help="the most the run may spend, like '$5'")] = None,
    with_: With = None,
    wait: Annotated[bool, typer.Option("--wait", help="work on it here and now, until it ends")] = False,
    reports: Annotated[
        str | None, typer.Option(help="folder of the reports; else reports/RUN beside the store")
    ] = None,
    tenant: Annotated[str, typer.Option(help="whose run it is")] = "default",
    priority: Annotated[
        int, typer.Option(help="workers take runs of a higher one first", min=-1_000_000, max=1_000_000)
    ] = 0,
    at: Annotated[datetime | None, typer.Option(help="not before this instant, in UTC", formats=INSTANTS)] = None,
    config: ConfigOption = None,
    is_json: JsonOption = False,
) -> None:
    """Start a run. Its budget is hard; its forecast comes from its first items."""

    async def go() -> int:
        async with await Platform.open(load_config(config)) as platform:
            identity = await platform.start(
                flow,
                _inputs(inputs, sql, database),
                budget=budget,
                options=_options(with_),
                reports=reports,
                tenant=tenant,
                priority=priority,
                due=at.replace(tzinfo=UTC) if at else None,
            )
            if wait:
                return _show(await _work(platform, identity, is_json=is_json, may_join=True), is_json)
            return _show_queued(platform, identity, is_json)

    raise typer.Exit(run_worker(go()))


@app.command()
def forecast(
    flow: Flow,
    inputs: Inputs = None,
    sql: Sql = None,
    database: Database = None,
    budget: Annotated[str | None, typer.Option(help="the most the pilot may spend")] = None,
    with_: With = None,
    config: ConfigOption = None,
    is_json: JsonOption = False,
) -> None:
    """Run a pilot of a few items, and say what all of them will cost and take. The pilot is paid for, and reused."""

    async def go() -> int:
        async with await Platform.open(load_config(config)) as platform:
            identity = await platform.start(
                flow, _inputs(inputs, sql, database), budget=budget, options=_options(with_)
            )
            summary = await platform.work(identity, pilot_only=True)
            if summary.forecast is None:
                return _show(summary, is_json)
            emit(is_json, {"run": identity, **summary.forecast}, forecast_lines(summary.forecast))
            return 0

    raise typer.Exit(run_worker(go()))


@app.command()
def plan(
    what: Annotated[str, typer.Argument(metavar="FLOW|RUN", help="a flow with its inputs, or the id of a run")],
    inputs: Annotated[list[str] | None, typer.Argument(help="files and folders; none for a run")] = None,
    with_: With = None,
    from_agent: Annotated[
        str | None, typer.Option("--from", help="of a run: as if this agent were asked again")
    ] = None,
    quarantined: Annotated[bool, typer.Option("--quarantined", help="of a run: only its refused items")] = False,
    tenant: Annotated[str, typer.Option(help="whose run it would be")] = "default",
    config: ConfigOption = None,
    is_json: JsonOption = False,
) -> None:
    """What would be called, reused and paid, and why. Nothing is called. Of a run: all its items with today's code."""

    async def go() -> None:
        async with await Platform.open(load_config(config)) as platform:
            if inputs:
                if from_agent or quarantined:
                    raise UsageError("--from and --quarantined are for the plan of a run, which has no inputs")
                said = await platform.plan(what, inputs, options=_options(with_), tenant=tenant)
            elif with_:
                raise UsageError(
                    "a run's options are fixed", hint=f"Change them in a copy: twolane run fork {what} --with …"
                )
            elif ":" in what or what in runs.FLOWS:
                raise UsageError(f"a plan of a flow needs its inputs: twolane run plan {what} INPUT…")
            else:
                said = await platform.plan_run(what, quarantined=quarantined, from_agent=from_agent)
            emit(is_json, said.fields(), lambda: plan_lines(said))

    run(go())


@app.command()
def resume(
    identity: RunId,
    quarantined: Annotated[bool, typer.Option("--quarantined", help="try its refused items again too")] = False,
    from_agent: Annotated[
        str | None,
        typer.Option("--from", help="ask this agent again for every item (with --quarantined: the refused ones)"),
    ] = None,
    wait: Annotated[
        bool, typer.Option("--wait/--no-wait", help="work on it here and now, or leave it to a worker")
    ] = True,
    config: ConfigOption = None,
    is_json: JsonOption = False,
) -> None:
    """Go on with a run that was stopped, killed or cut off by a crash. What was paid for is reused."""

    async def go() -> int:
        async with await Platform.open(load_config(config)) as platform:
            await platform.prepare_resume(identity, quarantined=quarantined, from_agent=from_agent, is_queued=not wait)
            if not wait:
                return _show_queued(platform, identity, is_json)
            return _show(await _work(platform, identity, is_json=is_json), is_json)

    raise typer.Exit(run_worker(go()))


@app.command()
def fork(
    identity: RunId,
    from_agent: Annotated[str | None, typer.Option("--from", help="ask this agent anew, whether or not it was")] = None,
    with_: With = None,
    budget: Annotated[str | None, typer.Option(help="the most it may spend; else as much as the first run")] = None,
    wait: Annotated[bool, typer.Option("--wait", help="work on it here and now, until it ends")] = False,
    config: ConfigOption = None,
    is_json: JsonOption = False,
) -> None:
    """A new run over the same items, with options changed. What was answered before is reused."""

    async def go() -> int:
        async with await Platform.open(load_config(config)) as platform:
            fresh = await platform.fork(identity, from_agent=from_agent, options=_options(with_), budget=budget)
            if not wait:
                return _show_queued(platform, fresh, is_json)
            return _show(await _work(platform, fresh, is_json=is_json), is_json)

    raise typer.Exit(run(go()))


@app.command()
def diff(
    first: RunId,
    second: Annotated[str, typer.Argument(help="the run that is held against it")],
    config: ConfigOption = None,
    is_json: JsonOption = False,
) -> None:
    """Whose results and which agents' answers differ between two runs, and at what cost."""

    async def go() -> None:
        async with await Platform.open(load_config(config), can_call=False) as platform:
            told = compare(platform.kernel, first, second)
            emit(is_json, told.fields(), lambda: diff_lines(told))

    run(go())


@app.command(hidden=True)
def work(identity: RunId, config: ConfigOption = None, is_json: JsonOption = False) -> None:
    """Work on a run beside others: what `twolane work` starts for each. Unlike `resume` it resets no switch."""

    async def go() -> int:
        async with await Platform.open(load_config(config)) as platform:
            return _show(await platform.work(identity, may_join=True, leave=_told_to_leave()), is_json)

    raise typer.Exit(run_worker(go()))


@app.command(name="list")
def list_(
    count: Annotated[int, typer.Option(help="how many, newest first", min=1, max=10_000)] = 50,
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
                    "status": status_of(row, platform.kernel.presence.is_alive),
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
def watch(identity: RunId, config: ConfigOption = None, is_json: JsonLinesOption = False) -> None:
    """Follow a run until it ends: its agents, its pace, its money, and how long it still takes."""

    async def go() -> int:
        async with await Platform.open(load_config(config), can_call=False) as platform:
            runs.find(platform.kernel, identity)
            if is_json:
                await _tell(platform, identity)
                return platform.summary(identity).exit_code
            await _follow(platform, identity)
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


def _told_to_leave() -> asyncio.Event:
    """Set by SIGTERM: begin nothing new, and leave when what is under way has ended."""
    leave = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, leave.set)
    return leave


@app.command()
def pause(identity: RunId, config: ConfigOption = None, is_json: JsonOption = False) -> None:
    """Begin nothing new, and stop when what is under way has ended: nothing is cut off. `resume` goes on from there."""

    async def go() -> None:
        async with await Platform.open(load_config(config), can_call=False) as platform:
            answer = await platform.pause(identity)
            lines = [f"run {identity}: {answer['status']}", f"Go on with: twolane run resume {identity}"]
            emit(is_json, answer, lines)

    run(go())


async def _work(platform: Platform, identity: str, *, is_json: bool, may_join: bool = False) -> RunSummary:
    """Work on a run, drawing its progress where somebody watches."""
    leave = _told_to_leave()
    if is_json or not sys.stderr.isatty():
        return await platform.work(identity, may_join=may_join, leave=leave)
    from twolane.cli.progress import Screen

    with Screen() as screen:
        follower = asyncio.ensure_future(screen.follow(platform.kernel.watching, identity))
        try:
            return await platform.work(identity, may_join=may_join, on_forecast=screen.forecast, leave=leave)
        finally:
            follower.cancel()
            await asyncio.gather(follower, return_exceptions=True)
            screen.show(platform.kernel.watching.look(identity))


async def _follow(platform: Platform, identity: str) -> None:
    """Draw on a terminal; else a line whenever something has changed, and no more than one each second."""
    watching = platform.kernel.watching
    if sys.stdout.isatty():
        from twolane.cli.progress import Screen

        with Screen() as screen:
            await screen.follow(watching, identity)
        return
    told, last = "", float("-inf")
    async with aclosing(watching.follow(identity)) as states:
        async for progress in states:
            line = progress_line(progress)
            if not progress.is_over and line != told and time.monotonic() - last >= LINE_S:
                told, last = line, time.monotonic()
                print(plain(line), flush=True)


async def _tell(platform: Platform, identity: str) -> None:
    """One JSON object a line; the last one also has every field of the run's summary."""
    async with aclosing(platform.kernel.watching.follow(identity)) as states:
        async for progress in states:
            line = progress.line
            if progress.is_over:
                line = orjson.dumps({**platform.summary(identity).fields(), **progress.fields()})
            sys.stdout.write(line.decode() + "\n")
            sys.stdout.flush()


def _show(summary: RunSummary, is_json: bool) -> int:
    emit(is_json, summary.fields(), summary_lines(summary))
    return summary.exit_code


def _show_queued(platform: Platform, identity: str, is_json: bool) -> int:
    """A run that waits for a worker, and whether one is there."""
    summary, is_there = platform.summary(identity), again.has_worker(platform.kernel)
    who = "a worker takes it" if is_there else "no worker is there to take it: twolane work"
    line = f"run {identity} is queued: {summary.items['total']} items; {who}"
    emit(is_json, {**summary.fields(), "worker": is_there}, [line])
    return 0


def _inputs(paths: list[str] | None, sql: str | None, database: str | None) -> list[Input]:
    if (sql is None) != (database is None):
        raise UsageError("--sql and --database belong together: what to ask, and where")
    return [*(paths or ()), *([Query(sql, database)] if sql is not None and database is not None else ())]


def _options(pairs: list[str] | None) -> dict[str, str]:
    options = {}
    for pair in pairs or ():
        name, sign, value = pair.partition("=")
        if not sign or not name:
            raise UsageError(f"--with {plain(pair)}: write it as key=value")
        if name in options:
            raise UsageError(f"--with {plain(name)} is given twice")
        options[name] = value
    return options


def _instant(micros: int | None) -> str | None:
    return None if micros is None else datetime.fromtimestamp(micros / 1e6, UTC).isoformat(timespec="seconds")
