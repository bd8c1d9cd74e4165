"""`twolane up`: both lanes on one machine."""

from __future__ import annotations

import asyncio
import signal
import sys
from typing import Annotated, Any

import typer

from twolane.cli.output import ConfigOption, load_config, new_app, run

app = new_app("The gateway and a worker, as two processes: both lanes on one machine.")


@app.command()
def up(
    config: ConfigOption = None,
    host: Annotated[str | None, typer.Option(help="address to listen on; else serve.host")] = None,
    port: Annotated[int | None, typer.Option(help="port, 0 for a free one; else serve.port", min=0, max=65535)] = None,
) -> None:
    """Start `serve` and `work`, and end both in good order on SIGTERM or Ctrl-C; a second one ends them at once. When
    one of them ends by itself, so does the other, and the answer is its exit code."""
    load_config(config)  # what is wrong in it is said once, before anything starts
    named = ["--config", config] if config else []
    address = [*(["--host", host] if host else []), *(["--port", str(port)] if port is not None else [])]
    raise typer.Exit(run(_up([["serve", *named, *address], ["work", *named]])))


async def _up(commands: list[list[str]]) -> int:
    # In groups of their own: a Ctrl-C on the terminal is for us to pass on.
    children = [
        await asyncio.create_subprocess_exec(sys.executable, "-m", "twolane", *command, start_new_session=True)
        for command in commands
    ]
    told = 0

    def leave() -> None:
        nonlocal told
        told += 1
        for child in children:
            if child.returncode is None:
                child.send_signal(signal.SIGTERM)

    for name in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(name, leave)
    ended: list[asyncio.Future[Any]] = [asyncio.ensure_future(child.wait()) for child in children]  # Any: exit codes
    first, _ = await asyncio.wait(ended, return_when=asyncio.FIRST_COMPLETED)
    codes = [int(future.result()) for future in first]
    if not told:
        leave()
    await asyncio.gather(*ended)
    return max((abs(code) for code in codes), default=0)
