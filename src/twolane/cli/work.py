"""A worker for runs that were started without --wait."""

from __future__ import annotations

import asyncio
import signal
import sys
from typing import Annotated

import typer

from twolane.batch import again
from twolane.cli.output import ConfigOption, load_config, new_app, run
from twolane.platform import Platform

app = new_app("A worker for queued runs.")

POLL_S = 0.5


@app.command()
def work(
    once: Annotated[bool, typer.Option("--once", help="end when no run is queued")] = False, config: ConfigOption = None
) -> None:
    """Take queued runs, one after another, until told to stop. Each runs in a process of its own, so that a worker that
    has lived for weeks never runs yesterday's version of a flow."""

    async def go() -> None:
        stop = asyncio.Event()
        for name in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(name, stop.set)
        async with await Platform.open(load_config(config)) as platform:
            await again.be_worker(platform.kernel)
            print("worker ready", flush=True)
            try:
                await _take(platform, stop, once=once, config=config)
            finally:
                await again.leave_work(platform.kernel)

    run(go())


async def _take(platform: Platform, stop: asyncio.Event, *, once: bool, config: str | None) -> None:
    while not stop.is_set():
        row = platform.kernel.store.one("queued_runs")
        if row is not None:
            code = await _run(row["id"], config, stop)
            await platform.give_up(row["id"], f"its worker ended with {code} before it began")
        elif once:
            return
        else:
            await _pause(stop)


async def _run(identity: str, config: str | None, stop: asyncio.Event) -> int:
    arguments = ["-m", "twolane", "run", "work", identity, *(["--config", config] if config else [])]
    child = await asyncio.create_subprocess_exec(sys.executable, *arguments)
    stopping = asyncio.ensure_future(stop.wait())
    ended = asyncio.ensure_future(child.wait())
    await asyncio.wait({stopping, ended}, return_when=asyncio.FIRST_COMPLETED)
    if not ended.done():
        child.send_signal(signal.SIGINT)
        await ended
    stopping.cancel()
    return child.returncode or 0


async def _pause(stop: asyncio.Event) -> None:
    try:
        async with asyncio.timeout(POLL_S):
            await stop.wait()
    except TimeoutError:
        pass
