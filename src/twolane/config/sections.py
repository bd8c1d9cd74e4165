"""Every other section of `twolane.toml`."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Literal

from pydantic import Field, model_validator

from twolane.config.values import NAME, POSTGRES, Cron, Seconds, SecretRef, Section, Size, has_password, size_bytes
from twolane.domain.money import Money
from twolane.rules import guards
from twolane.rules.budgets import Ceiling, read_seconds


class Rule(Section):
    """`[[route.NAME.rule]]`: the first whose every condition holds decides."""

    when: dict[Literal["workflow", "agent", "tenant", "lane"], str] = Field(description="conditions")
    use: str = Field(description="the upstream")


class RouteSection(Section):
    """`[route.NAME]`: what a client sends as "model", and what an agent names as its route."""

    light: str = Field(description="the upstream for simple requests, and the default")
    heavy: str | None = Field(default=None, description="the upstream for complex requests; used by rules for now")
    rule: tuple[Rule, ...] = Field(default=(), description="first match wins")
    fallback: tuple[str, ...] = Field(
        default=(), description="upstreams tried when the chosen one fails before its first byte"
    )
    deadline_ms: int = Field(
        default=30_000, ge=1, description="longest wait for an online slot; then shed with retry-after-ms"
    )
    durable_ack: bool = Field(default=True, description="false: an online answer may end before its record is on disk")


class BudgetSection(Section):
    """`[budget."SCOPE"]`: a hard limit over a period. 0 admits nothing; what is left out is not limited."""

    money: str | None = Field(default=None, description="decimal string in the store's currency")
    tokens: int | None = Field(default=None, ge=0, lt=2**53, description="input and output tokens together")
    calls: int | None = Field(default=None, ge=0, lt=2**53, description="attempts that leave the house")
    seconds: Seconds | None = Field(default=None, description="time of calls in flight, added up")
    accelerator_seconds: Seconds | None = Field(
        default=None, description="the same, times the upstream's accelerators and divided by its slots"
    )
    period: Literal["day", "month", "total"] = Field(default="total", description="in UTC")

    def ceiling(self, currency: str) -> Ceiling:
        """Its limits.

        Raises:
            UsageError: the money is none, or of another currency.
        """
        pico = None if self.money is None else Money.parse(self.money, currency).pico
        times = [None if text is None else read_seconds(text) for text in (self.seconds, self.accelerator_seconds)]
        return Ceiling(pico, self.tokens, self.calls, *times)


_TIMES = re.compile(r"([0-9]+(?:\.[0-9]+)?)x(?: (?:forecast|history))?")
_GUARD_KEYS = {
    "cost-velocity": {"scope", "pause", "kill", "warm_up", "ceiling", "floor"},
    "token-burn": {"scope", "pause", "warm_up"},
    "repetition": {"scope"},
    "agent-loop": {"scope", "repeats"},
    "no-progress": {"scope", "pause", "warm_up"},
    "wall-clock": {"pause"},
    "runway": {"warm_up"},
}
"""What each guard takes beside its mode."""


class GuardSection(Section):
    """`[guard.NAME]`: a guard over running steps. All are on unless they say otherwise."""

    mode: Literal["on", "shadow", "off"] = Field(
        default="on", description="shadow: its verdicts enter the ledger, and nothing is stopped"
    )
    scope: Literal["item", "run", "key"] | None = Field(
        default=None,
        description="run or key: it watches these alone and stops them whole; left out: the smallest fitting",
    )
    pause: str | None = Field(default=None, description='how far beyond what is expected it pauses, like "3x forecast"')
    kill: str | None = Field(default=None, description="from where on it kills, if another guard agrees")
    warm_up: int | None = Field(default=None, ge=10, le=100_000, description="normal samples it sees before it judges")
    repeats: int | None = Field(default=None, ge=2, le=1_000, description="equal outputs in a row that are a loop")
    ceiling: str | None = Field(default=None, description="money per minute that kills by itself; left out: none")
    floor: str | None = Field(default=None, description="money beyond what is expected that it leaves alone")

    def limits(self, name: str, currency: str) -> guards.Limits:
        """The thresholds of the guard of this name.

        Raises:
            ValueError: a value cannot be read, or is none of this guard's.
            TwolaneError: an amount cannot be read.
        """
        told = self.model_dump(exclude_none=True)
        if foreign := told.keys() - {"mode"} - _GUARD_KEYS.get(name, set()):
            raise ValueError(f"it takes no {min(foreign)}")
        for factor in ("pause", "kill"):
            if factor in told:
                read = _TIMES.fullmatch(told[factor])
                if read is None or float(read[1]) <= 1:
                    raise ValueError(f'{factor} is written like "3x forecast", and more than 1x')
                told[factor] = float(read[1])
        for amount in {"ceiling", "floor"} & told.keys():
            told[f"{amount}_pico"] = Money.parse(told.pop(amount), currency).pico
        limits = replace(guards.DEFAULTS[name], **told)
        if limits.kill < limits.pause or limits.ceiling_pico == 0:
            raise ValueError("kill is not below pause, and a ceiling is more than 0")
        return limits


class ServeSection(Section):
    """`[serve]`: where the gateway listens, and how it leaves."""

    host: str = Field(default="127.0.0.1", description="a public address without a key is refused")
    port: int = Field(default=8080, ge=0, le=65_535, description="0 takes a free one")
    drain_s: float = Field(default=30, ge=0, le=3600, description="how long answers may finish once it is told to stop")


class WorkSection(Section):
    """`[work]`: what a worker may take of its machine."""

    memory: Size = Field(
        default="2 GB",
        description="for the items under way, by estimate: eight times what is stored of them. What would not fit "
        "alone goes to quarantine before it is loaded",
    )

    def memory_bytes(self) -> int:
        """The same in bytes."""
        return size_bytes(self.memory)


class TelemetrySection(Section):
    """`[telemetry]`: what monitoring is told, and who may ask."""

    otlp: str | None = Field(
        default=None,
        pattern=r"^https?://[^@\s]+$",
        description="collector that gets spans and metrics by OTLP over HTTP, such as http://127.0.0.1:4318; needs the "
        "extra otel. Left out: OTEL_EXPORTER_OTLP_ENDPOINT; headers and all else only by OTEL_* variables",
    )
    scrape_key: SecretRef | None = Field(
        default=None,
        description="what Prometheus shows as its bearer token to read every tenant's figures at /metrics, as env:NAME "
        "or file:PATH; an API key reads those of its tenant",
    )


class KeysSection(Section):
    """`[keys]`: what opens the store's bodies, and never lies in the store."""

    folder: str | None = Field(
        default=None,
        description="folder with the files master and pepper, the same on every machine of a store; "
        "left out: <store>.keys beside a SQLite file. PostgreSQL needs it",
    )


class ScheduleSection(Section):
    """`[schedule.NAME]`: a run that `twolane work` starts by itself at each tick."""

    flow: str = Field(min_length=1, description="a built-in flow or module:function")
    cron: Cron = Field(description="when, in UTC: minute hour day-of-month month day-of-week")
    inputs: tuple[str, ...] = Field(default=(), description="files and folders, relative to this file's folder")
    sql: str | None = Field(
        default=None, description="rows of a database as inputs: a SELECT that gives an id for each"
    )
    database: str | None = Field(
        default=None, description="where sql asks: sqlite:PATH, postgresql://HOST/NAME, or env:NAME that holds it"
    )
    with_: dict[str, str] = Field(
        default_factory=dict, alias="with", description='options of the flow; "@FILE" is the content of that file'
    )
    budget: str | None = Field(default=None, description="the most each run may spend; decimal string")
    tenant: str = Field(default="default", pattern=NAME, description="whose runs they are")
    priority: int = Field(default=0, description="workers take runs of a higher one first")
    overlap: bool = Field(
        default=False, description="false: a tick is skipped while the run of an earlier one is not at its end"
    )

    @model_validator(mode="after")
    def _has_inputs(self) -> ScheduleSection:
        if (self.sql is None) != (self.database is None):
            raise ValueError("sql and database belong together: what to ask, and where")
        if not self.inputs and self.sql is None:
            raise ValueError("a schedule needs inputs = [PATH, …], or sql and database")
        if self.database is not None and self.database.startswith(POSTGRES) and has_password(self.database):
            raise ValueError('a password is written by reference only: database = "env:NAME", with the whole address')
        return self
