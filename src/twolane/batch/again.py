"""What people decide about a run that was: go on with it, ask an agent again, make another one of it, let items out of
quarantine. Each decision is an entry of the ledger."""

from __future__ import annotations

import functools
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import orjson

from twolane.batch import run as runs
from twolane.batch.reports import report_files
from twolane.batch.workflow import Workflow
from twolane.config import near
from twolane.errors import ConfigError, NotFound
from twolane.kernel import Kernel, ledger
from twolane.store import Row, Transaction

SLICE = 1000
"""Items copied or released in one transaction: nobody else waits for a large run."""


@dataclass(frozen=True, slots=True)
class Resumption:
    """How a run goes on."""

    quarantined: bool = False
    """Try its refused items again too."""
    from_agent: str | None = None
    """Ask this agent again, for every item; with `quarantined` for the refused ones alone. What depends on its answers
    follows where they changed."""
    is_queued: bool = False
    """Leave it to a worker."""


async def resume(kernel: Kernel, run: str, how: Resumption) -> None:
    """Make a run ready to go on. Its own switch is reset, and no other.

    Raises:
        ConfigError: somebody works on it, or it was never written to its end. Nothing was changed.
        NotFound: the agent never answered in this run.
    """
    row = runs.find(kernel, run)
    if row["status"] == "running" and kernel.presence.is_alive(row["owner"]):
        raise ConfigError(f"run {run} is being worked on by another process", hint=f"Watch it: twolane run watch {run}")
    if row["status"] == "writing":
        raise ConfigError(f"run {run} was never written to its end", hint="Start it anew")
    if how.from_agent is not None:
        check_agent(kernel, run, how.from_agent)
    await kernel.switches.reset(f"run:{run}", cause="resumed", actor="run resume")
    salt = f"{run}/{secrets.token_hex(4)}"
    replaced = await kernel.store.write(functools.partial(_requeue, row, how, salt))
    folder = Path(runs.options_of(row)["reports"])
    for name in replaced:  # they show what is being made again
        for path in report_files(folder, name):
            path.unlink(missing_ok=True)


def _requeue(row: Row, how: Resumption, salt: str, tx: Transaction) -> list[str]:
    """Queue items, and the run if a worker is to take it; the items whose results are made again."""
    run, replaced, now = row["id"], [], tx.one("run", id=row["id"])
    if now is None or (now["status"], now["owner"]) != (row["status"], row["owner"]):
        raise ConfigError(f"run {run} was taken by another process at this moment")
    tx.run("forget_stop", id=run)
    if how.from_agent is not None:
        items = [""]
        if how.quarantined:
            items = [each["name"] for each in tx.all("quarantined", run=run) if each["source"] is not None]
        else:
            replaced = [each["name"] for each in tx.all("names_of_items", run=run, status="done")]
            tx.run("requeue_all_items", run=run)
            tx.run("forget_again", run=run, agent=how.from_agent)
        for item in items:
            tx.run("steer", run=run, item=item, agent=how.from_agent, again=salt, route="")
        told = {
            "event": "again",
            "agent": how.from_agent,
            "again": salt,
            "items": len(items) if items != [""] else None,
        }
        ledger.append(tx, {"v": 1, "kind": "run", "run": run, "at_us": ledger.now_us(), **told})
    if how.quarantined:
        tx.run("requeue_items", run=run)
    if how.is_queued:
        tx.run("requeue_run", id=run)
    return replaced


def check_agent(kernel: Kernel, run: str, agent: str) -> None:
    """Nothing, if the agent was asked in the run.

    Raises:
        NotFound: it was not; what is near is named.
    """
    known = [each["agent"] for each in kernel.store.all("totals_of_run", run=run)]
    if agent not in known:
        raise NotFound(f"no agent {agent!r} was asked in run {run}{near(agent, known) if known else '; none was'}")


async def fork(
    kernel: Kernel,
    run: str,
    flow: Workflow,
    *,
    from_agent: str | None,
    options: Mapping[str, str],
    budget_pico: int | None,
) -> str:
    """A new run over the same items with some options changed, queued; its id.

    What agents answered in the first one is reused where they are asked the same, answers drawn at random included;
    `from_agent` is asked anew whether or not. Without a budget of its own it has the first one's limit.

    Raises:
        NotFound: there is no such run, or the agent never answered in it.
    """
    of = runs.find(kernel, run)
    if from_agent is not None:
        check_agent(kernel, run, from_agent)
    fresh, now_us, before = f"r{secrets.token_hex(5)}", ledger.now_us(), runs.options_of(of)
    kept = {
        **before,
        "with": {**before["with"], **options},
        "reports": str((kernel.store_path.parent / "reports" / fresh).absolute()),
        "workflow_version": flow.version,
        "draws": before.get("draws") or run,
        "of": run,
    }
    named = {"id": fresh, "tenant": of["tenant"], "flow": of["flow"], "workflow": flow.name}
    await kernel.store.write(
        lambda tx: tx.run(
            "add_run", **named, options=orjson.dumps(kept).decode(), created=now_us, priority=of["priority"], due=0
        )
    )
    count = sum(row["items"] for row in kernel.store.all("count_items", run=run))
    for first in range(0, count, SLICE):
        await kernel.store.write(
            lambda tx, first=first: tx.run("copy_items", run=fresh, of=run, first=first, last=first + SLICE - 1)  # type: ignore[misc]
        )
    limit = kernel.store.one("budget", scope=f"run:{run}")
    if budget_pico is None and limit is not None:
        budget_pico = limit["pico"]
    if budget_pico is not None:
        await kernel.treasury.set_budget(
            f"run:{fresh}", period="total", pico=budget_pico, tokens=None, actor="run fork"
        )
    created = {
        "v": 1, "kind": "run", "run": fresh, "tenant": of["tenant"], "workflow": flow.name, "event": "created",
        "version": flow.version, "items": count, "of": run, "from": from_agent, "at_us": now_us,
    }  # fmt: skip

    def release(tx: Transaction) -> None:
        tx.run("copy_steers", run=fresh, of=run)
        if from_agent is not None:
            tx.run("forget_again", run=fresh, agent=from_agent)
            tx.run("steer", run=fresh, item="", agent=from_agent, again=fresh, route="")
        tx.run("queue_run", id=fresh)
        ledger.append(tx, created)

    await kernel.store.write(release)
    return fresh


@dataclass(frozen=True, slots=True)
class Release:
    """Which items may leave quarantine, and how they are tried again."""

    items: Sequence[str] = ()
    """By name; none are all that can be read."""
    kind: str | None = None
    """Only those that this sent there."""
    route: str | None = None
    """Ask on this route what has no memo yet: the agent whose reply was refused, else every agent of the item."""
    reason: str = ""
    actor: str = "quarantine release"


async def release(kernel: Kernel, run: str, how: Release) -> list[str]:
    """Queue items again, each with an entry that says who let it out and why; the next resume works on them.

    Raises:
        NotFound: no such item or route, or an item that could not be read. Nothing was released.
    """
    row, routes = runs.find(kernel, run), [*kernel.config.route, *kernel.config.upstream]
    if how.route is not None and how.route not in routes:
        raise NotFound(f"there is no route or upstream {how.route!r}{near(how.route, routes)}")
    for name in how.items:
        if runs.item(kernel, run, name)["source"] is None:
            raise NotFound(f"item {name!r} could not be read: mend the file and start a run over it")
    named = set(how.items)
    meant = [
        item
        for item in kernel.store.all("quarantined", run=run)
        if (not named or item["name"] in named) and how.kind in (None, item["kind"]) and item["source"] is not None
    ]
    released: list[str] = []
    for first in range(0, len(meant), SLICE):
        part = meant[first : first + SLICE]
        released += await kernel.store.write(functools.partial(_release, row, how, part))
    return released


def _release(run: Row, how: Release, items: Sequence[Row], tx: Transaction) -> list[str]:
    released = []
    for item in items:
        if not tx.run("release_item", run=run["id"], name=item["name"]):  # somebody else did so at this moment
            continue
        if how.route is not None:
            tx.run("steer", run=run["id"], item=item["name"], agent=item["agent"], again="", route=how.route)
        entry = {
            "v": 1, "kind": "release", "run": run["id"], "tenant": run["tenant"], "item": item["subject"],
            "agent": item["agent"] or None, "route": how.route, "actor": how.actor,
            "reason": how.reason[:500] or None, "at_us": ledger.now_us(),
        }  # fmt: skip
        ledger.append(tx, entry)
        released.append(item["name"])
    return released


# ── who would take a queued run ──


def has_worker(kernel: Kernel) -> bool:
    """True when a process is there that takes queued runs."""
    return any(kernel.presence.is_alive(row["owner"]) for row in kernel.store.all("workers"))


async def be_worker(kernel: Kernel) -> None:
    """Say that this process takes queued runs; the dead are swept. `leave_work` ends it."""
    dead = [row["owner"] for row in kernel.store.all("workers") if not kernel.presence.is_alive(row["owner"])]

    def work(tx: Transaction) -> None:
        for owner in dead:
            tx.run("drop_worker", owner=owner)
        tx.run("add_worker", owner=kernel.presence.name, began=ledger.now_us())

    await kernel.store.write(work)


async def leave_work(kernel: Kernel) -> None:
    """This process takes queued runs no longer."""
    await kernel.store.write(lambda tx: tx.run("drop_worker", owner=kernel.presence.name))
