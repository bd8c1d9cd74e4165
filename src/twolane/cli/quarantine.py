"""Items that wait for a person."""

from __future__ import annotations

from typing import Annotated

import typer

from twolane.batch import run as runs
from twolane.cli.output import ConfigOption, JsonOption, emit, load_config, new_app, run, table
from twolane.errors import NotFound, Problem
from twolane.platform import Platform

app = new_app("Items whose handoff was refused: list, show, release.")

RunOption = Annotated[str | None, typer.Option("--run", help="of this run only")]
RunId = Annotated[str, typer.Argument(help="the run's id")]
ItemId = Annotated[str, typer.Argument(help="the item's id")]


@app.command(name="list")
def list_(of_run: RunOption = None, config: ConfigOption = None, is_json: JsonOption = False) -> None:
    """What is in quarantine, and why."""

    async def go() -> None:
        async with await Platform.open(load_config(config), can_call=False) as platform:
            if of_run is not None:
                runs.find(platform.kernel, of_run)
            rows = []
            for row in platform.kernel.store.all("quarantined", run=of_run):
                first = next(iter(runs.problems_of(platform.kernel, row)), Problem("", "no reason was kept"))
                rows.append(
                    {
                        "run": row["run"],
                        "item": row["name"],
                        "agent": row["agent"],
                        "pointer": first.pointer,
                        "problem": first.text,
                    }
                )
            head = ("run", "item", "agent", "pointer", "problem")
            cells = [[str(row[name]) for name in head] for row in rows]
            emit(is_json, {"items": rows}, table(cells, head=head) if rows else ["Nothing is in quarantine."])

    run(go())


@app.command()
def show(of_run: RunId, item: ItemId, config: ConfigOption = None, is_json: JsonOption = False) -> None:
    """One item: every problem, the reply that was refused, and the start of its document."""

    async def go() -> None:
        async with await Platform.open(load_config(config), can_call=False) as platform:
            row = runs.item(platform.kernel, of_run, item)
            problems = runs.problems_of(platform.kernel, row)
            reply = platform.kernel.read_body(row["reply"]).decode() if row["reply"] else None
            answer = {
                "run": of_run,
                "item": item,
                "status": row["status"],
                "agent": row["agent"],
                "problems": [{"pointer": each.pointer, "problem": each.text} for each in problems],
                "reply": reply,
                "is_readable": row["source"] is not None,
            }
            lines = [f"run {of_run}, item {item}: {row['status']}"]
            lines += [f"  {each}" for each in problems]
            lines += ["", f"reply of {row['agent']}:", reply] if reply else []
            lines += ["", f"Fix it, then: twolane quarantine release {of_run} {item}"] if row["source"] else []
            emit(is_json, answer, lines)

    run(go())


@app.command()
def release(
    of_run: RunId,
    items: Annotated[list[str] | None, typer.Argument(help="items; left out: all of the run that can be read")] = None,
    config: ConfigOption = None,
    is_json: JsonOption = False,
) -> None:
    """Queue items again; the next `run resume` works on them."""

    async def go() -> None:
        async with await Platform.open(load_config(config), can_call=False) as platform:
            runs.find(platform.kernel, of_run)
            names = items or [row["name"] for row in platform.kernel.store.all("quarantined", run=of_run)]
            released = []
            for name in names:
                row = runs.item(platform.kernel, of_run, name)
                if items and row["source"] is None:
                    raise NotFound(f"item {name!r} could not be read: mend the file and start a run over it")
                count = await platform.kernel.store.write(lambda tx, n=name: tx.run("release_item", run=of_run, name=n))  # type: ignore[misc]
                released += [name] * count
            lines = [f"{len(released)} released. Go on with: twolane run resume {of_run}"]
            emit(is_json, {"run": of_run, "released": released}, lines)

    run(go())
