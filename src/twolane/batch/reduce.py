"""The end of a run whose workflow reduces: one report over all results, after the last item.

It is made like an item: its agents have their memos, are checked, and count against the run's budget. It is made again
whenever the run ends again, from the memos where nothing changed.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import orjson
from pydantic import BaseModel

from twolane.batch import reports
from twolane.batch import run as runs
from twolane.batch.item import Common, Item
from twolane.batch.memory import run_subject
from twolane.batch.workflow import Workflow
from twolane.domain.records import Origin
from twolane.errors import (
    BudgetExceeded,
    HandoffRefused,
    Killed,
    LedgerBroken,
    Refused,
    Runaway,
    StoreError,
    SwitchTripped,
    UpstreamError,
)
from twolane.kernel import Kernel
from twolane.store import Row

log = logging.getLogger("twolane.batch")


async def reduce(kernel: Kernel, flow: Workflow, run: str) -> str:
    """Make the report of a run whose items are all done or in quarantine; why the run stops here, or nothing.

    The results are those of the items that are done, in the order of their ids. `report.json` (and `.md`) is written
    whole; one that stood there of an earlier end of this run is taken away first. A workflow that does not reduce, and
    a run without a result, have no report.

    Raises:
        LedgerBroken: fatal; nothing more is written.
    """
    row = runs.find(kernel, run)
    folder = Path(runs.options_of(row)["reports"])
    if flow.reduction is None:
        return ""
    common = Common(kernel)
    try:
        for old in reports.run_report_paths(folder):
            old.unlink(missing_ok=True)
        done = _done(kernel, run)
        if not done:
            return ""
        results = [
            flow.returns.model_validate_json(kernel.read_body(each["output"]), by_alias=True, by_name=True)
            for each in done
        ]
        subject = await kernel.store.write(lambda tx: kernel.subject(tx, row["tenant"], run_subject(run)))
        origin = Origin(row["tenant"], row["workflow"], run)
        item = Item(kernel, origin, subject, None, options=runs.options_of(row)["with"], common=common)
        try:
            report = await flow.reduction.function(results, item)
        finally:
            await item.come_to_rest()
        if not isinstance(report, flow.reduction.returns):
            raise TypeError(f"it returned {type(report).__name__}, not {flow.reduction.returns.__name__}")
        files = _render(kernel, row, done, report)
        await asyncio.to_thread(reports.write_report, files)
    except (LedgerBroken, asyncio.CancelledError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # noqa: BLE001 - the workflow's own code runs here; also Killed, and groups of these
        return _why(run, error)
    finally:
        await common.aclose()
    return ""


def _done(kernel: Kernel, run: str) -> list[Row]:
    rows = kernel.store.all("positions", run=run, status="done")
    found = [kernel.store.all("items", run=run, first=row["position"], last=row["position"])[0] for row in rows]
    return sorted(found, key=lambda each: str(each["name"]))


def _render(kernel: Kernel, row: Row, done: list[Row], report: BaseModel) -> dict[Path, bytes]:
    """The report's files. What it does not cover, it names."""
    folder = Path(runs.options_of(row)["reports"])
    left_out = sorted(str(each["name"]) for each in kernel.store.all("quarantined", run=row["id"]))
    fields = {
        "run": row["id"],
        "flow": row["flow"],
        "items": len(done),
        "quarantined": left_out,
        "result": report.model_dump(mode="json"),
    }
    as_json, as_markdown = reports.run_report_paths(folder)
    files = {as_markdown: report.markdown().encode()} if hasattr(report, "markdown") else {}
    return files | {as_json: orjson.dumps(fields, option=orjson.OPT_INDENT_2) + b"\n"}


def _why(run: str, error: BaseException) -> str:
    """Why the run stops; it begins with what stopped it."""
    error = first_of(error)
    match error:
        case BudgetExceeded():
            return f"budget: {error}"
        case SwitchTripped() | Killed():
            return f"switch: {error}"
        case UpstreamError():
            return f"upstream: {error}"
        case Runaway():
            return f"guard: {error}"
        case OSError():
            return f"store: the run's report cannot be written: {error}. Free the disk and resume"
        case HandoffRefused(agent=agent, problems=problems):
            first = problems[0] if problems else "no reason was given"
            return f"reduce: {agent} was refused at {first}. Its items are done; mend it and resume"
        case LedgerBroken():
            raise error
        case Refused() | StoreError():
            return f"{error.code}: {error}"
        case Exception():
            log.warning("run %s: its reduce: %s", run, error, exc_info=error)
            return f"reduce: {type(error).__name__}: {error}. Its items are done; mend it and resume"
        case _:
            raise error


def first_of(error: BaseException) -> BaseException:
    """The first failure inside groups; a switch or a budget among them comes before the rest."""
    if not isinstance(error, BaseExceptionGroup):
        return error
    leaves = [first_of(each) for each in error.exceptions]
    return next((leaf for leaf in leaves if isinstance(leaf, Killed | Refused)), leaves[0])
