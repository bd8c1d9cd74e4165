"""`twolane schedule`: runs that start by themselves."""

from __future__ import annotations

from typing import Annotated

import typer

from twolane.batch import schedules
from twolane.cli.output import ConfigOption, JsonOption, emit, load_config, new_app, run, run_worker, table
from twolane.errors import StoreError
from twolane.platform import Platform
from twolane.rules.schedules import Tick

app = new_app("Runs that start by themselves, as [schedule.NAME] says and while a worker lives: list.")


@app.callback()
def _noun() -> None:
    """Without this, a single verb that is shown would be taken for the whole command."""


@app.command("list")
def list_all(config: ConfigOption = None, is_json: JsonOption = False) -> None:
    """Every schedule: when it comes next, its last tick, and the run that started last."""

    async def go() -> None:
        async with await Platform.open(load_config(config), can_call=False) as platform:
            rows = schedules.listing(platform.kernel)
            head = ("name", "flow", "cron", "next", "last_tick", "last_status", "last_run", "reason")
            cells = [[str(row[name] or "") for name in head] for row in rows]
            emit(is_json, {"schedules": rows}, table(cells, head=head) if rows else ["No schedule is configured."])

    run(go())


@app.command(hidden=True)
def start(
    name: Annotated[str, typer.Argument(help="the schedule")],
    at_us: Annotated[int, typer.Argument(help="its tick, in microseconds")],
    config: ConfigOption = None,
) -> None:
    """Start the run of a tick that `twolane work` has taken: in a process of its own, so that no code is old."""

    async def go() -> int:
        tick = Tick(name, at_us)
        async with await Platform.open(load_config(config)) as platform:
            try:
                await platform.start_scheduled(tick)
            except StoreError:
                raise  # the tick stays as it is, and its worker tries again
            except Exception as error:  # noqa: BLE001 - the user's flow is loaded here: whatever it raises is theirs
                kind = type(error).__name__
                await schedules.fail(platform.kernel, tick, reason=str(error) or kind, error=kind)
                return 1
            return 0

    raise typer.Exit(run_worker(go()))
