"""Items that wait for a person."""

from __future__ import annotations

from collections import Counter
from typing import Annotated

import typer

from twolane.batch import again
from twolane.batch import run as runs
from twolane.cli.output import ConfigOption, JsonOption, emit, load_config, new_app, run, table
from twolane.config import near
from twolane.domain.money import decimal_string
from twolane.errors import Problem, UsageError
from twolane.platform import Platform

app = new_app("Items whose handoff was refused: list, show, release.")

RunOption = Annotated[str | None, typer.Option("--run", help="of this run only")]
KindOption = Annotated[str | None, typer.Option("--kind", help="only what this sent there: " + ", ".join(runs.KINDS))]
RunId = Annotated[str, typer.Argument(help="the run's id")]
ItemId = Annotated[str, typer.Argument(help="the item's id")]


@app.command(name="list")
def list_(
    of_run: RunOption = None, kind: KindOption = None, config: ConfigOption = None, is_json: JsonOption = False
) -> None:
    """What is in quarantine, and why."""
    _check_kind(kind)

    async def go() -> None:
        async with await Platform.open(load_config(config), can_call=False) as platform:
            if of_run is not None:
                runs.find(platform.kernel, of_run)
            rows = []
            waiting = platform.kernel.store.all("quarantined", run=of_run)
            kinds = Counter(row["kind"] for row in waiting if kind in (None, row["kind"]))
            for row in waiting:
                if kind not in (None, row["kind"]):
                    continue
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
            lines = [", ".join(f"{count} by {name or '?'}" for name, count in kinds.items()), ""]
            lines += table(cells, head=head)
            emit(is_json, {"items": rows, "kinds": kinds}, lines if rows else ["Nothing is in quarantine."])

    run(go())


@app.command()
def show(of_run: RunId, item: ItemId, config: ConfigOption = None, is_json: JsonOption = False) -> None:
    """One item: every problem, the reply that was refused, and the step that asked for it."""

    async def go() -> None:
        async with await Platform.open(load_config(config), can_call=False) as platform:
            row = runs.item(platform.kernel, of_run, item)
            problems = runs.problems_of(platform.kernel, row)
            reply = platform.kernel.read_body(row["reply"]).decode() if row["reply"] else None
            refused = platform.kernel.store.all("refused_steps", run=of_run, item=item)
            step = next((dict(each) for each in refused if each["agent"].rpartition("/")[2] == row["agent"]), None)
            if step is not None:
                pico = step.pop("cost_pico")
                step["cost"] = None if pico is None else decimal_string(pico)
            answer = {
                "run": of_run,
                "item": item,
                "status": row["status"],
                "kind": row["kind"],
                "agent": row["agent"],
                "pointer": problems[0].pointer if problems else None,
                "problems": [{"pointer": each.pointer, "problem": each.text} for each in problems],
                "reply": reply,
                "step": step,
                "is_readable": row["source"] is not None,
            }
            lines = [f"run {of_run}, item {item}: {row['status']}"]
            lines += [f"  {each}" for each in problems]
            lines += ["", f"reply of {row['agent']}:", reply] if reply else []
            lines += ["", f"step {step['step']}: attempt {step['attempt']} at {step['upstream']}"] if step else []
            lines += (
                ["", f"Fix it, then: twolane quarantine release {of_run} {item}"]
                if row["source"] and row["status"] == "quarantined"
                else []
            )
            emit(is_json, answer, lines)

    run(go())


@app.command()
def release(
    of_run: Annotated[str | None, typer.Argument(metavar="[RUN]", help="the run's id")] = None,
    items: Annotated[list[str] | None, typer.Argument(help="items; left out: all of the run that can be read")] = None,
    run_option: Annotated[str | None, typer.Option("--run", help="the run's id; then all arguments are items")] = None,
    kind: KindOption = None,
    route: Annotated[str | None, typer.Option(help="ask what these items still lack on this route or upstream")] = None,
    reason: Annotated[str, typer.Option(help="why; it enters the ledger")] = "",
    config: ConfigOption = None,
    is_json: JsonOption = False,
) -> None:
    """Queue items again; the next `run resume` works on them."""
    _check_kind(kind)
    names = [each for each in (of_run, *(items or ())) if each is not None]
    name = run_option or (names.pop(0) if names else None)
    if name is None:
        raise UsageError(
            "name one run", hint="For example: twolane quarantine release RUN ITEM, or --run RUN --kind KIND"
        )

    async def go() -> None:
        async with await Platform.open(load_config(config), can_call=False) as platform:
            how = again.Release(tuple(names), kind, route, reason)
            released = await again.release(platform.kernel, name, how)
            lines = [f"{len(released)} released. Go on with: twolane run resume {name}"]
            if not released:
                lines = [f"Nothing of it is in quarantine. Look: twolane quarantine list --run {name}"]
            emit(is_json, {"run": name, "released": released}, lines)

    run(go())


def _check_kind(kind: str | None) -> None:
    if kind is not None and kind not in runs.KINDS:
        raise UsageError(f"nothing is sent to quarantine by {kind!r}{near(kind, list(runs.KINDS))}")
