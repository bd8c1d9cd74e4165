"""What a Python user opens; the command line stands on it.

```python
async with await Platform.open("twolane.toml") as platform:
    summary = await platform.run("contract-audit", ["contracts/"], budget="$5")
```
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from twolane import config as configuration
from twolane.batch import run as runs
from twolane.batch.run import RunSummary
from twolane.batch.worker import Worker
from twolane.batch.workflow import Workflow
from twolane.config import Config
from twolane.domain.money import Money
from twolane.errors import UsageError
from twolane.kernel import Kernel, Model, ledger
from twolane.kernel.ledger import Verdict
from twolane.knowledge.ingest import Input, read_sources
from twolane.store.sqlite import SQLiteStore

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
    ) -> Platform:
        """Open by a configuration or the path of one; None finds it as the command line does.

        Raises:
            ConfigError, StoreError: see `config.load` and `kernel.Kernel.open`.
        """
        config = config if isinstance(config, Config) else configuration.load(config)
        return cls(await Kernel.open(config, models=models, can_call=can_call))

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
    ) -> str:
        """Write a new run over files, folders, documents, rows and queries; its id. Nothing is called before somebody
        works on it.

        Raises:
            UsageError: the flow, an input, an option or the budget is wrong; nothing was written.
        """
        name, workflow = self._flow(flow)
        options = _read_options(options or {})
        _check_options(workflow, options)
        if not _NAME.fullmatch(tenant):
            raise UsageError(f"{tenant!r} is no name of a tenant", hint="Letters, digits, dots, dashes, underscores")
        pico = None if budget is None else _budget(budget, self.kernel.config.currency)
        sources = read_sources(inputs)
        return await runs.create(
            self.kernel,
            flow_name=name,
            flow=workflow,
            sources=sources,
            options=options,
            budget_pico=pico,
            tenant=tenant,
            reports=Path(reports) if reports else None,
        )

    async def work(
        self,
        run: str,
        *,
        pilot_only: bool = False,
        on_forecast: Callable[[dict[str, object]], None] | None = None,
        flow: Workflow | None = None,
    ) -> RunSummary:
        """Work on a run in this process until it has ended. `flow` is needed where it cannot be found by its name."""
        row = runs.find(self.kernel, run)
        workflow = flow or runs.load_flow(row["flow"], self._folder())
        await Worker(self.kernel, workflow, run, pilot_only=pilot_only, on_forecast=on_forecast).run()
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

    async def prepare_resume(self, run: str, *, quarantined: bool = False) -> None:
        """Make a run ready to go on: its own switch is reset, and with `quarantined` its refused items are queued
        again."""
        runs.find(self.kernel, run)
        await self.kernel.switches.reset(f"run:{run}", cause="resumed", actor="run resume")
        if quarantined:
            await self.kernel.store.write(lambda tx: tx.run("requeue_items", run=run))

    async def give_up(self, run: str, reason: str) -> None:
        """A run that is still queued after its worker ended would be taken again for ever: it has failed."""
        await self.kernel.store.write(lambda tx: tx.run("fail_queued_run", id=run, reason=reason, now=ledger.now_us()))

    def summary(self, run: str) -> RunSummary:
        """What is known of a run now."""
        return runs.summary(self.kernel, run)

    async def kill(self, run: str, *, cause: str = "killed by its operator") -> dict[str, object]:
        """Stop a run; the answer comes when its last step is closed."""
        return await runs.kill(self.kernel, run, cause=cause, actor="run kill")

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


def verify_store(config: Config) -> Verdict:
    """The same without opening upstreams or needing keys: what an auditor runs.

    Raises:
        UsageError: there is no store yet.
    """
    path = config.store_path()
    if not path.exists():
        raise UsageError(f"there is no store at {path}", hint='Name it with --config or store = "sqlite:PATH"')
    store = SQLiteStore(path)
    try:
        return ledger.verify(store)
    finally:
        store.close()


def with_store(config: Config, store: str) -> Config:
    """The same configuration over another store, such as "sqlite:/tmp/try.db"."""
    return config.model_copy(update={"store": store})


def _read_options(options: Mapping[str, str]) -> dict[str, str]:
    """A value that begins with @ is the content of that file, read now, so that a run carries all it needs."""
    read = {}
    for name, value in options.items():
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


def _budget(text: str, currency: str) -> int:
    pico = Money.parse(text, currency).pico
    if pico <= 0:
        raise UsageError(f"a budget of {text} can pay for nothing", hint="Leave it out for no limit")
    return pico
