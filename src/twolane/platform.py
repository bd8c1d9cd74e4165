"""What a Python user opens; the command line stands on it.

```python
async with await Platform.open("twolane.toml") as platform:
    summary = await platform.run("contract-audit", ["contracts/"], budget="$5")
```
"""

from __future__ import annotations

import asyncio
import importlib
import re
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Self

from twolane import config as configuration
from twolane.batch import again
from twolane.batch import plan as plans
from twolane.batch import run as runs
from twolane.batch.plan import Plan
from twolane.batch.run import RunSummary
from twolane.batch.worker import Worker
from twolane.batch.workflow import Workflow
from twolane.config import Config
from twolane.domain.money import Money
from twolane.errors import ConfigError, UsageError
from twolane.kernel import Kernel, Model, ledger
from twolane.kernel.ledger import Verdict
from twolane.knowledge.ingest import Input, read_sources
from twolane.knowledge.query import Query
from twolane.rules.schedules import Tick
from twolane.store.opening import open_store

__all__ = ["Platform", "RunSummary", "verify_store", "with_store"]

TENANT = "default"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class Platform:
    """An open store with its upstreams. One per process is enough; close it when done."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel

    @classmethod
    async def open(
        cls,
        config: Config | Path | str | None = None,
        *,
        models: dict[str, Model] | None = None,
        can_call: bool = True,
        takes_part: bool | None = None,
    ) -> Platform:
        """Open by a configuration or the path of one; None finds it as the command line does. `can_call` and
        `takes_part` are the kernel's.

        Raises:
            ConfigError, StoreError: see `config.load` and `kernel.Kernel.open`.
        """
        config = config if isinstance(config, Config) else configuration.load(config)
        return cls(await Kernel.open(config, models=models, can_call=can_call, takes_part=takes_part))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.kernel.aclose()

    # ── runs ──

    async def start(
        self,
        flow: str | Workflow,
        inputs: Sequence[Input],
        *,
        budget: str | None = None,
        options: Mapping[str, str] | None = None,
        reports: str | None = None,
        tenant: str = TENANT,
        priority: int = 0,
        due: datetime | None = None,
        tick: Tick | None = None,
    ) -> str:
        """Write a new run over files, folders, documents, rows and queries; its id. Nothing is called before somebody
        works on it: a worker takes runs of a higher `priority` first, and none before it is `due`. Of a
        `tick` it is the only run.

        Raises:
            UsageError: the flow, an input, an option or the budget is wrong; nothing was written.
            ConfigError: another run was started for this tick.
        """
        name, workflow = self._flow(flow)
        options = _read_options(workflow, options or {})
        _check_options(workflow, options)
        if not _NAME.fullmatch(tenant):
            raise UsageError(f"{tenant!r} is no name of a tenant", hint="Letters, digits, dots, dashes, underscores")
        pico = None if budget is None else _budget(budget, self.kernel.config.currency)
        folder = _reports(reports)
        sources = read_sources(inputs)
        return await runs.create(
            self.kernel,
            flow_name=name,
            flow=workflow,
            sources=sources,
            options=options,
            budget_pico=pico,
            tenant=tenant,
            reports=folder,
            priority=priority,
            due_us=0 if due is None else int(due.timestamp() * 1_000_000),
            tick=tick,
        )

    async def start_scheduled(self, tick: Tick) -> str:
        """Start the run of a tick that a worker has taken, as its schedule says today; its id.

        Raises:
            ConfigError: there is no such schedule any more, or another run was started for this tick.
            UsageError: its flow, an input, an option or its budget is wrong; nothing was written.
        """
        config = self.kernel.config
        section = config.schedule.get(tick.schedule)
        if section is None:
            raise ConfigError(
                f"there is no schedule {tick.schedule!r}{configuration.near(tick.schedule, config.schedule)}"
            )
        inputs: list[Input] = [config.beside(path) for path in section.inputs]
        if section.sql is not None and section.database is not None:
            kind, _, path = section.database.partition(":")
            inputs.append(Query(section.sql, f"sqlite:{config.beside(path)}" if kind == "sqlite" else section.database))
        return await self.start(
            section.flow,
            inputs,
            budget=section.budget,
            options={
                name: f"@{config.beside(value[1:])}" if value.startswith("@") else value
                for name, value in section.with_.items()
            },
            tenant=section.tenant,
            priority=section.priority,
            tick=tick,
        )

    async def work(
        self,
        run: str,
        *,
        pilot_only: bool = False,
        may_join: bool = False,
        on_forecast: Callable[[dict[str, object]], None] | None = None,
        flow: Workflow | None = None,
        leave: asyncio.Event | None = None,
    ) -> RunSummary:
        """Work on a run in this process until it has ended, with `may_join` beside those who are at it already. `flow`
        is needed where it cannot be found by its name. Once `leave` is set nothing new begins here, and the answer
        comes when what was under way has ended; the run then waits for another worker."""
        row = runs.find(self.kernel, run)
        workflow = flow or runs.load_flow(row["flow"], self._folder())
        worker = Worker(self.kernel, workflow, run, pilot_only=pilot_only, may_join=may_join, on_forecast=on_forecast)
        async with _calling(leave, worker.leave):
            await worker.run()
        return runs.summary(self.kernel, run)

    async def run(
        self,
        flow: str | Workflow,
        inputs: Sequence[Input],
        *,
        budget: str | None = None,
        options: Mapping[str, str] | None = None,
    ) -> RunSummary:
        """`start`, then `work`."""
        run = await self.start(flow, inputs, budget=budget, options=options)
        return await self.work(run, flow=flow if isinstance(flow, Workflow) else None)

    async def prepare_resume(
        self, run: str, *, quarantined: bool = False, from_agent: str | None = None, is_queued: bool = False
    ) -> None:
        """Make a run ready to go on: its own switch is reset; with `quarantined` its refused items are queued again;
        `from_agent` and what depends on it are asked again; `is_queued` leaves it to a worker.

        Raises:
            ConfigError: somebody works on it.
            NotFound: the agent never answered in this run.
        """
        await again.resume(self.kernel, run, again.Resumption(quarantined, from_agent, is_queued))

    async def fork(
        self,
        run: str,
        *,
        from_agent: str | None = None,
        options: Mapping[str, str] | None = None,
        budget: str | None = None,
        flow: Workflow | None = None,
    ) -> str:
        """A new run over the same items, with options changed and what was answered before reused; its id. Without a
        budget it has the first run's limit, for itself.

        Raises:
            NotFound: there is no such run, or `from_agent` never answered in it.
            UsageError: an option or the budget is wrong; nothing was written.
        """
        row = runs.find(self.kernel, run)
        workflow = flow or runs.load_flow(row["flow"], self._folder())
        changed = _read_options(workflow, options or {})
        _check_options(workflow, {**runs.options_of(row)["with"], **changed})
        pico = None if budget is None else _budget(budget, self.kernel.config.currency)
        return await again.fork(self.kernel, run, workflow, from_agent=from_agent, options=changed, budget_pico=pico)

    async def plan(
        self,
        flow: str | Workflow,
        inputs: Sequence[Input],
        *,
        options: Mapping[str, str] | None = None,
        tenant: str = TENANT,
    ) -> Plan:
        """What a run over these would call, reuse and pay. Nothing is written, and nothing called.

        Raises:
            UsageError: the flow, an input or an option is wrong.
        """
        name, workflow = self._flow(flow)
        options = _read_options(workflow, options or {})
        _check_options(workflow, options)
        return await plans.plan_sources(
            self.kernel, name, workflow, read_sources(inputs), options=options, tenant=tenant
        )

    async def plan_run(
        self, run: str, *, quarantined: bool = False, from_agent: str | None = None, flow: Workflow | None = None
    ) -> Plan:
        """What today's code would call for the items of a run; only those in quarantine, or as if `from_agent` were
        asked again.

        Raises:
            NotFound: there is no such run.
        """
        workflow = flow or runs.load_flow(runs.find(self.kernel, run)["flow"], self._folder())
        return await plans.plan_run(self.kernel, workflow, run, plans.Over(quarantined, from_agent))

    async def give_up(self, run: str, reason: str) -> None:
        """A run that no worker of ours can begin, or that kills each of them, would be taken again for ever: it has
        failed."""
        owner = runs.find(self.kernel, run)["owner"]
        if not self.kernel.presence.is_alive(owner):
            now_us = ledger.now_us()
            await self.kernel.store.write(lambda tx: tx.run("fail_run", id=run, reason=reason, owner=owner, now=now_us))

    def summary(self, run: str) -> RunSummary:
        """What is known of a run now."""
        return runs.summary(self.kernel, run)

    async def kill(self, run: str, *, cause: str = "killed by its operator") -> dict[str, object]:
        """Stop a run; the answer comes when its last step is closed."""
        return await runs.kill(self.kernel, run, cause=cause, actor="run kill")

    async def pause(self, run: str, *, actor: str = "run pause") -> dict[str, object]:
        """Let what is under way come to its end; the answer comes when the run has stopped."""
        return await runs.pause(self.kernel, run, actor=actor)

    def _flow(self, flow: str | Workflow) -> tuple[str, Workflow]:
        if isinstance(flow, Workflow):
            return f"{flow.function.__module__}:{flow.function.__name__}", flow
        return flow, runs.load_flow(flow, self._folder())

    def _folder(self) -> Path:
        """Where a user's flows are looked for: beside the configuration, else the working directory."""
        source = self.kernel.config.source
        return source.parent if source else Path.cwd()

    # ── ledger ──

    def verify(self) -> Verdict:
        """Recompute the whole ledger from its leaves."""
        return ledger.verify(self.kernel.store)


@asynccontextmanager
async def _calling(event: asyncio.Event | None, action: Callable[[], None]) -> AsyncIterator[None]:
    """Inside, `action` is called once the event is set."""
    if event is None:
        yield
        return
    waiting = asyncio.ensure_future(event.wait())
    waiting.add_done_callback(lambda future: None if future.cancelled() else action())
    try:
        yield
    finally:
        waiting.cancel()


def verify_store(config: Config) -> Verdict:
    """The same without opening upstreams or needing keys: what an auditor runs.

    Raises:
        UsageError: there is no store yet.
    """
    if config.is_file() and not config.store_path().exists():
        raise UsageError(
            f"there is no store at {config.store_path()}", hint='Name it with --config or store = "sqlite:PATH"'
        )
    store = open_store(config.store_address())
    try:
        return ledger.verify(store)
    finally:
        store.close()


def with_store(config: Config, store: str) -> Config:
    """The same configuration over another store, such as "sqlite:/tmp/try.db"."""
    return config.model_copy(update={"store": store})


def _read_options(workflow: Workflow, options: Mapping[str, str]) -> dict[str, str]:
    """A value that begins with @ is the content of that file, read now, so that a run carries all it needs."""
    read = {}
    for name, value in options.items():
        if workflow.options is not None and name not in workflow.options:
            there_are = ", ".join(workflow.options) or "none"
            raise UsageError(f"--with {name}: {workflow.name} has no option {name!r}; it takes {there_are}")
        if value.startswith("@"):
            try:
                value = Path(value[1:]).read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise UsageError(f"--with {name}: {value[1:]} cannot be read: {error}") from None
        read[name] = value
    return read


def _check_options(workflow: Workflow, options: Mapping[str, str]) -> None:
    check = getattr(importlib.import_module(workflow.function.__module__), "check_options", None)
    if check is not None:
        check(options)


def _reports(path: str | None) -> Path | None:
    folder = Path(path) if path else None
    if folder is not None and folder.exists() and not folder.is_dir():
        raise UsageError(f"reports cannot be written to {path}: it is no folder")
    return folder


def _budget(text: str, currency: str) -> int:
    pico = Money.parse(text, currency).pico
    if pico <= 0:
        raise UsageError(f"a budget of {text} can pay for nothing", hint="Leave it out for no limit")
    return pico
