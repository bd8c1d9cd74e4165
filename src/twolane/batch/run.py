"""A run: made from a flow and its sources, asked about, resumed, killed. The work itself is in `worker`.

Gateway and console never import this module: they write intents into the store. A run that was started without a
waiting worker lies there as `queued` until one picks it up.
"""

from __future__ import annotations

import asyncio
import functools
import importlib
import logging
import random
import secrets
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
from pydantic import ValidationError

from twolane.batch.item import Common, Item
from twolane.batch.memo import Steer
from twolane.batch.workflow import Workflow
from twolane.config import near
from twolane.domain.document import Document
from twolane.domain.money import decimal_string
from twolane.domain.records import Origin, Subject
from twolane.domain.schema import problem_at
from twolane.errors import ConfigError, NotFound, Problem, UsageError, validation_words
from twolane.kernel import Kernel, ledger
from twolane.kernel.progress import status_of
from twolane.knowledge.ingest import Source
from twolane.rules.schedules import Tick
from twolane.store import Row, Transaction
from twolane.store.vault import seal, unseal
from twolane.telemetry import WORKFLOW

log = logging.getLogger("twolane.batch")

FLOWS = {"contract-audit": "twolane.flows.contract_audit:audit"}
"""Built-in flows by name. Others are named module:function."""

KINDS = ("handoff", "document", "request", "upstream", "budget", "time", "guard", "workflow")
"""What sends an item to quarantine."""

SLICE = 100
"""Items written in one transaction."""


@dataclass(frozen=True, slots=True)
class RunSummary:
    """What is known of a run; the fields of `run show --json`. Money as decimal strings."""

    run: str
    flow: str
    status: str
    reason: str
    items: Mapping[str, int]
    calls: int
    reused: int
    tokens: Mapping[str, int]
    cost: str
    in_doubt: str
    """What of the cost is booked at its bound, since a crash hid how calls ended."""
    currency: str
    seconds: float
    """At work; a worker that died is not counted."""
    budget: str | None
    """The run's own limit of money; None where it has none."""
    reports: str
    forecast: Mapping[str, object] | None
    by_agent: Mapping[str, Mapping[str, object]]

    def fields(self) -> dict[str, object]:
        """As one JSON object."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    @property
    def exit_code(self) -> int:
        """What a waiting command ends with: 0 done, 3 stopped by a budget, a guard or a switch, 1 otherwise."""
        if self.status == "done":
            return 0
        return 3 if self.status == "stopped" and self.reason.startswith(("budget:", "guard:", "switch:")) else 1


def load_flow(name: str, folder: Path) -> Workflow:
    """The workflow behind a name: built in, or `module:function` with `folder` first on the module path.

    Raises:
        UsageError: there is none; what is near or wrong is said.
    """
    target = FLOWS.get(name, name)
    module_name, colon, attribute = target.partition(":")
    if not (colon and all(module_name.split("."))):
        raise UsageError(f"there is no flow {name!r}{near(name, FLOWS)}", hint="Name your own as module:function")
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        hint = "Name the module, without .py" if module_name.endswith(".py") else ""
        raise UsageError(f"flow {name!r}: there is no module {error.name!r} in {folder}", hint=hint) from None
    except (Exception, SystemExit) as error:  # noqa: BLE001 - the user's module: whatever it raises is theirs to read
        raise UsageError(f"flow {name!r}: its module raised {type(error).__name__}: {error}") from None
    flow = getattr(module, attribute, None)
    if not isinstance(flow, Workflow):
        flows = [key for key, value in vars(module).items() if isinstance(value, Workflow)]
        raise UsageError(f"flow {name!r}: {module_name} has no workflow {attribute!r}{near(attribute, flows)}")
    return flow


def input_of(flow: Workflow, source: Source) -> tuple[bytes | None, Problem | None]:
    """What an item of this flow keeps of its source, as JSON; or the problem that sends it to quarantine."""
    if source.problem and (flow.takes is Document or source.row is None):
        return None, Problem("", source.problem)
    if flow.takes is Document:
        document = source.document
        if document is None:
            return None, Problem("", "this flow takes documents: a row needs a text")
        return orjson.dumps([document.text, document.source, list(document.pages)]), None
    row = dict(source.row or {})
    if not row and source.document is not None:
        row = {"id": source.id, "text": source.document.text}
    try:
        revive_input(flow, source.id, orjson.dumps(row))
    except ValidationError as error:
        first = error.errors()[0]
        return None, problem_at(flow.takes, first["loc"], validation_words(first))  # type: ignore[arg-type]  # a pydantic model here
    return orjson.dumps(row), None


def revive_input(flow: Workflow, name: str, body: bytes) -> Any:  # Any: what the flow's first parameter takes
    """The flow's first argument, from what its item keeps."""
    value = orjson.loads(body)
    if flow.takes is Document:
        text, source, pages = value
        return Document(name, text, source, tuple(pages))
    return flow.takes.model_validate(value)  # type: ignore[union-attr]  # the other kind is a pydantic model


def open_item(
    kernel: Kernel,
    flow: Workflow,
    run: Row,
    row: Row,
    *,
    is_plan: bool = False,
    steer: Steer | None = None,
    common: Common | None = None,
) -> tuple[Item, Any]:  # Any: the flow's own awaitable
    """An item of a run about to be worked on, or only walked: its `do`, and what to await. `steer` None is what people
    decided about it."""
    body = kernel.store.one("body", id=row["source"])
    assert body is not None, "a queued item has its source"
    subject = kernel.vault.subject(body, column="subject")
    value = revive_input(flow, row["name"], unseal(subject, bytes(body["sealed"])))
    options = options_of(run)
    item = Item(
        kernel,
        Origin(run["tenant"], run["workflow"], run["id"], row["name"]),
        subject,
        value if isinstance(value, Document) else None,
        options=options["with"],
        steer=steer or steer_of(kernel, run["id"], row["name"]),
        draws=options.get("draws", ""),
        is_plan=is_plan,
        common=common,
    )
    return item, item.traced(WORKFLOW, flow.name, flow.function(value, item))


def steer_of(kernel: Kernel, run: str, item: str) -> Steer:
    """What people decided about an item's steps; what is said of the item itself wins over what is said of all."""
    rows = kernel.store.all("steered", run=run, item=item)
    again = {row["agent"]: row["again"] for row in rows if row["again"]}
    return Steer(again, {row["agent"]: row["route"] for row in rows if row["route"]})


async def create(
    kernel: Kernel,
    *,
    flow_name: str,
    flow: Workflow,
    sources: Sequence[Source],
    options: Mapping[str, str],
    budget_pico: int | None,
    tenant: str,
    reports: Path | None = None,
    priority: int = 0,
    due_us: int = 0,
    tick: Tick | None = None,
) -> str:
    """Write a new run with all its items, in a seeded random order. Its id.

    Length order would make every live forecast wrong, so the order is a seeded permutation. Items are written a slice
    at a time, so that nobody online waits for a large run; until the last one and the budget are there, the run is
    `writing` and no worker takes it. That of a `tick` is released only if no other one was.

    Raises:
        ConfigError: another run was started for this tick, or its schedule gave it up; this one stays `writing`.
    """
    run, seed = f"r{secrets.token_hex(5)}", secrets.randbits(32)
    order = list(sources)
    random.Random(seed).shuffle(order)
    prepared = [(source, *input_of(flow, source)) for source in order]
    folder = reports or kernel.config.folder() / "reports" / run
    why = {"schedule": tick.schedule, "tick": tick.instant} if tick else {}
    kept = orjson.dumps(
        {
            "with": dict(options),
            "reports": str(folder.absolute()),
            "seed": seed,
            "workflow_version": flow.version,
            **why,
        }
    ).decode()

    now_us = ledger.now_us()
    await kernel.store.write(
        lambda tx: tx.run(
            "add_run",
            id=run,
            tenant=tenant,
            flow=flow_name,
            workflow=flow.name,
            options=kept,
            created=now_us,
            priority=priority,
            due=due_us,
        )
    )
    for first in range(0, len(prepared), SLICE):
        part = prepared[first : first + SLICE]
        await kernel.store.write(functools.partial(_add_items, kernel, run, tenant, part, first))
    if budget_pico is not None:
        await kernel.treasury.set_budget(f"run:{run}", period="total", pico=budget_pico, tokens=None, actor="run start")
    created = {
        "v": 1, "kind": "run", "run": run, "tenant": tenant, "workflow": flow.name, "event": "created",
        "version": flow.version, "items": len(prepared), "at_us": now_us, **why,
    }  # fmt: skip

    def release(tx: Transaction) -> None:
        if tick and not tx.run("start_tick", schedule=tick.schedule, at=tick.at_us, run=run):
            raise ConfigError(f"schedule {tick.schedule}: the tick of {tick.instant} was settled by another process")
        tx.run("queue_run", id=run)
        ledger.append(tx, created)

    await kernel.store.write(release)
    return run


def _add_items(
    kernel: Kernel,
    run: str,
    tenant: str,
    prepared: Sequence[tuple[Source, bytes | None, Problem | None]],
    first: int,
    tx: Transaction,
) -> None:
    for position, (source, body, problem) in enumerate(prepared, first):
        subject = kernel.subject(tx, tenant, source.id)
        tx.run(
            "add_item",
            run=run,
            position=position,
            name=source.id,
            subject=subject.id,
            source=None if body is None else tx.run("add_body", subject=subject.id, sealed=seal(subject, body)),
            status="quarantined" if problem else "queued",
            problems=keep_problems(tx, subject, [problem]) if problem else None,
            kind="document" if problem else "",
        )
        if problem:
            now_us = ledger.now_us()
            ledger.append(tx, handoff_entry(run, tenant, subject.id, "ingest", [problem], now_us))


def keep_problems(tx: Transaction, subject: Subject, problems: Sequence[Problem]) -> int:
    """Keep why an item is in quarantine, sealed: the words may quote the document. The body's id."""
    words = orjson.dumps([[problem.pointer, problem.text] for problem in problems])
    return tx.run("add_body", subject=subject.id, sealed=seal(subject, words))


def problems_of(kernel: Kernel, item: Row) -> list[Problem]:
    """Why an item is, or was last, in quarantine."""
    if item["problems"] is None:
        return []
    return [Problem(*each) for each in orjson.loads(kernel.read_body(item["problems"]))]


def handoff_entry(
    run: str, tenant: str, subject: str, agent: str, problems: Sequence[Problem], now_us: int
) -> dict[str, object]:
    """The entry of a refused handoff. Problems may quote the document, so only their pointers enter the leaf."""
    return {
        "v": 1,
        "kind": "handoff",
        "run": run,
        "tenant": tenant,
        "item": subject,
        "agent": agent,
        "status": "refused",
        "pointers": [problem.pointer[:200] for problem in problems[:20]],
        "at_us": now_us,
    }


def find(kernel: Kernel, run: str) -> Row:
    """The run's row.

    Raises:
        NotFound: there is none of this id.
    """
    row = kernel.store.one("run", id=run)
    if row is None:
        known = [other["id"] for other in kernel.store.all("runs", count=20)]
        raise NotFound(f"there is no run {run!r}{near(run, known) if known else '; none was started yet'}")
    return row


def item(kernel: Kernel, run: str, name: str) -> Row:
    """An item's row.

    Raises:
        NotFound: no such run, or no such item in it.
    """
    find(kernel, run)
    row = kernel.store.one("item", run=run, name=name)
    if row is None:
        raise NotFound(f"run {run} has no item {name!r}")
    return row


def summary(kernel: Kernel, run: str) -> RunSummary:
    """What is known of a run now, read from its roll-ups."""
    row = find(kernel, run)
    counts = {each["status"]: each["items"] for each in kernel.store.all("count_items", run=run)}
    totals = [dict(each) for each in kernel.store.all("totals_of_run", run=run)]
    status, reason, seconds = status_of(row, kernel.presence.is_alive), row["reason"], row["seconds"]
    if status == "running":
        seconds += max(0.0, time.time() - row["began"] / 1e6)
    elif row["status"] == "running" and not row["owner"]:
        reason = "its worker has left: it waits for another one"
    elif row["status"] == "running":
        reason = "interrupted: its worker is gone"
    return RunSummary(
        run=run,
        flow=row["flow"],
        status=status,
        reason=reason,
        items={
            "total": sum(counts.values()),
            "done": counts.get("done", 0),
            "quarantined": counts.get("quarantined", 0),
        },
        calls=sum(each["calls"] for each in totals),
        reused=sum(each["reused"] for each in totals),
        tokens={
            "input": sum(each["input_tokens"] for each in totals),
            "output": sum(each["output_tokens"] for each in totals),
        },
        cost=decimal_string(sum(each["cost_pico"] for each in totals)),
        in_doubt=decimal_string(sum(each["doubt_pico"] for each in totals)),
        currency=kernel.config.currency,
        seconds=round(seconds, 3),
        budget=_budget(kernel, run),
        reports=options_of(row)["reports"],
        forecast=orjson.loads(row["forecast"]) if row["forecast"] else None,
        by_agent={
            each["agent"]: {
                "calls": each["calls"],
                "reused": each["reused"],
                "refused": each["refused"],
                "failed": each["failed"],
                "cost": decimal_string(each["cost_pico"]),
            }
            for each in totals
        },
    )


def _budget(kernel: Kernel, run: str) -> str | None:
    row = kernel.store.one("budget", scope=f"run:{run}")
    return None if row is None or row["pico"] is None else decimal_string(row["pico"])


def options_of(row: Row) -> dict[str, Any]:  # Any: JSON of our own making, see `create`
    """What the run was started with."""
    options: dict[str, Any] = orjson.loads(row["options"])
    return options


async def kill(kernel: Kernel, run: str, *, cause: str, actor: str, patience_s: float = 30.0) -> dict[str, object]:
    """Trip the run's switch, and answer when its last step is closed."""
    began, row = time.monotonic(), find(kernel, run)
    if row["status"] == "done":
        raise ConfigError(f"run {run} is done: there is nothing to stop")
    since = kernel.store.one("count_entries")
    trip = await kernel.switches.trip(f"run:{run}", cause=cause, actor=actor)
    await _come_to_rest(kernel, run, patience_s)
    now = find(kernel, run)
    if now["status"] in ("queued", "running") and not (now["owner"] and kernel.presence.is_alive(now["owner"])):
        await kernel.store.write(lambda tx: tx.run("stop_run", id=run, reason=f"switch: {cause}", now=ledger.now_us()))
    await kernel.switches.report(trip)
    first = since["entries"] if since else 0
    killed = kernel.store.one("killed_since", run=run, first=first)
    return {
        "run": run,
        "status": find(kernel, run)["status"],
        "stopped_steps": killed["steps"] if killed else 0,
        "seconds": round(time.monotonic() - began, 3),
    }


async def pause(kernel: Kernel, run: str, *, actor: str, patience_s: float = 600.0) -> dict[str, object]:
    """Let what is under way come to its end and begin nothing new; the answer comes when the run has stopped.

    Raises:
        ConfigError: the run is not at work.
    """
    began, row = time.monotonic(), find(kernel, run)
    if row["status"] not in ("queued", "running"):
        raise ConfigError(f"run {run} is {row['status']}: there is nothing to pause")
    reason = f"paused: by {actor}"

    def work(tx: Transaction) -> None:
        now_us = ledger.now_us()
        ledger.append(
            tx, {"v": 1, "kind": "run", "run": run, "event": "pause asked", "actor": actor[:200], "at_us": now_us}
        )
        if not tx.run("ask_stop", id=run, stop=orjson.dumps(["stopped", reason]).decode()):
            tx.run("stop_queued_run", id=run, reason=reason, now=now_us)

    await kernel.store.write(work)
    await _come_to_rest(kernel, run, patience_s)
    return {"run": run, "status": summary(kernel, run).status, "seconds": round(time.monotonic() - began, 3)}


async def _come_to_rest(kernel: Kernel, run: str, patience_s: float) -> None:
    """Wait until nobody works on a run any more."""
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline:
        row = find(kernel, run)
        if row["status"] != "running" or not kernel.presence.is_alive(row["owner"]):
            return
        await asyncio.sleep(0.01)
