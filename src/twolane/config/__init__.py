"""`twolane.toml` → Config. One file; unknown keys are refused with the nearest match; secrets only by reference.

No file at all is the embedded default: SQLite in the working directory, built-in models at price 0, loopback only.
Order of precedence: command line, then environment (`TWOLANE_SECTION__KEY`), then the file.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import BaseModel, Field, ValidationError, model_validator

from twolane.config.sections import (
    BudgetSection,
    GuardSection,
    KeysSection,
    RouteSection,
    Rule,
    ScheduleSection,
    ServeSection,
    TelemetrySection,
    WorkSection,
)
from twolane.config.upstream import ANTHROPIC_URL, Limit, PriceTable, Rate, Slots, Timeout, UpstreamSection
from twolane.config.values import NAME, POSTGRES, Section, has_password, near, resolve_secret
from twolane.domain.money import Money
from twolane.errors import ConfigError, TwolaneError, validation_words
from twolane.rules import guards

__all__ = [
    "ANTHROPIC_URL", "BudgetSection", "Config", "GuardSection", "KeysSection", "Limit", "PriceTable", "Rate",
    "RouteSection", "Rule", "ScheduleSection", "ServeSection", "Slots", "TelemetrySection", "Timeout",
    "UpstreamSection", "WorkSection", "load", "near", "resolve_secret",
]  # fmt: skip

DEFAULT_FILE = "twolane.toml"
ENVIRONMENT = "TWOLANE_"
_SCOPE = re.compile(r"(?:tenant|workflow|upstream|run|item):.+|key:[^/]+/.+|run|item|default")
LATER = frozenset({"candidates", "heavy_share_max", "knowledge", "region", "target_quality"})
"""Keys of the design that this release does not keep yet."""


def _built_in() -> dict[str, UpstreamSection]:
    free = PriceTable(input="0", output="0")
    return {
        "extractive": UpstreamSection(kind="extractive", model="extractive", price=free, limit=Limit(context=2**20))
    }


def _built_in_routes() -> dict[str, RouteSection]:
    return {name: RouteSection(light="extractive") for name in ("light", "heavy", "auto")}


class Config(Section):
    """The whole configuration; `source` is the file it came from, None for the embedded default."""

    store: str = Field(
        default="sqlite:twolane.db",
        description="sqlite:PATH or postgresql://USER@HOST/DATABASE; an address with a password only by reference, as "
        "env:NAME or file:PATH",
    )
    keys: KeysSection = Field(default_factory=lambda: KeysSection())
    currency: str = Field(default="USD", pattern="^[A-Z]{3}$", description="ISO 4217; every price and budget is in it")
    serve: ServeSection = Field(default_factory=lambda: ServeSection())
    work: WorkSection = Field(default_factory=lambda: WorkSection())
    telemetry: TelemetrySection = Field(default_factory=lambda: TelemetrySection())
    upstream: dict[str, UpstreamSection] = Field(default_factory=_built_in)
    route: dict[str, RouteSection] = Field(default_factory=_built_in_routes)
    budget: dict[str, BudgetSection] = Field(default_factory=dict)
    schedule: dict[str, ScheduleSection] = Field(default_factory=dict)
    guard: dict[str, GuardSection] = Field(default_factory=dict)
    source: Path | None = Field(default=None, exclude=True)

    @model_validator(mode="after")
    def _names_agree(self) -> Config:
        for name, route in self.route.items():
            for upstream in (route.light, route.heavy, *route.fallback, *(rule.use for rule in route.rule)):
                if upstream is not None and upstream not in self.upstream:
                    raise ValueError(
                        f"route.{name} names upstream {upstream!r}, which is not there{near(upstream, self.upstream)}"
                    )
            if name in self.upstream:
                raise ValueError(f"{name!r} is both a route and an upstream")
        for name, section in self.upstream.items():
            if section.price_list is not None and self.currency != "USD":
                raise ValueError(
                    f"upstream.{name}: the public list is in USD, and this store keeps {self.currency}. "
                    "Write a price of its own"
                )
        for scope, budget in self.budget.items():
            try:
                Money.parse(budget.money or "0", self.currency)
            except TwolaneError as error:
                raise ValueError(f'budget."{scope}": {error}') from None
            if not _SCOPE.fullmatch(scope):
                raise ValueError(
                    f'budget."{scope}": a scope is tenant:NAME, key:TENANT/NAME, workflow:NAME, upstream:NAME, run, '
                    "item or default"
                )
        for name, schedule in self.schedule.items():
            _check_schedule(name, schedule.budget, self.currency)
        _check_store(self.store)
        self.guards()
        return self

    def default_budget(self) -> BudgetSection:
        """What a new key may spend until somebody sets its own budget: `[budget.default]`, where it is written (without
        a limit: nothing), else 20 a day if any upstream costs money."""
        written = self.budget.get("default")
        if written is not None:
            return written
        if any(section.costs() for section in self.upstream.values()):
            return BudgetSection(money="20", period="day")
        return BudgetSection()

    def guards(self) -> Mapping[str, guards.Limits]:
        """The thresholds of every guard.

        Raises:
            ValueError: one of them is wrong.
        """
        limits = dict(guards.DEFAULTS)
        for name, section in self.guard.items():
            if name not in limits:
                raise ValueError(f"guard.{name}: there is no such guard{near(name, limits)}")
            try:
                limits[name] = section.limits(name, self.currency)
            except (ValueError, TwolaneError) as error:
                raise ValueError(f"guard.{name}: {error}") from None
        return limits

    def store_path(self) -> Path:
        """Where the SQLite file lies; relative paths count from the configuration file's folder.

        Raises:
            ConfigError: the store is no file.
        """
        if not self.is_file():
            raise ConfigError("the store is on PostgreSQL: there is no file of it", where="store")
        return self.beside(self.store.removeprefix("sqlite:"))

    def is_file(self) -> bool:
        """True where the store is a file of this machine, and not on a server."""
        return self.store.startswith("sqlite:")

    def store_address(self) -> str:
        """`sqlite:` and an absolute path, or the address of a PostgreSQL database, which may hold a password: never
        shown.

        Raises:
            ConfigError: it is kept by a reference that leads nowhere, or not to such an address.
        """
        if self.is_file():
            return f"sqlite:{self.store_path().absolute()}"
        if self.store.startswith(POSTGRES):
            return self.store
        address = resolve_secret(self.store)
        if not address.startswith(POSTGRES):
            raise ConfigError(f"what {self.store} holds is no address: postgresql://USER@HOST/DATABASE", where="store")
        return address

    def store_name(self) -> str:
        """The store as it may be shown: a path, an address without a password, or a reference."""
        return str(self.store_path()) if self.is_file() else self.store

    def folder(self) -> Path:
        """Where that goes which belongs to the store and lies outside it, such as reports: beside a SQLite file, else
        beside the configuration."""
        return self.store_path().parent if self.is_file() else self.beside(".")

    def keys_folder(self) -> Path:
        """Where the keys to the store's bodies lie.

        Raises:
            ConfigError: the store is on PostgreSQL, and nothing says where.
        """
        if self.keys.folder is not None:
            return self.beside(self.keys.folder)
        if not self.is_file():
            raise ConfigError(
                "the store is on PostgreSQL, so its keys need a place of their own",
                where="keys.folder",
                hint='Write [keys] folder = "PATH": a folder that only this user can read, the same keys in it on '
                "every machine",
            )
        path = self.store_path()
        return path.with_name(path.name + ".keys")

    def beside(self, text: str) -> Path:
        """A path of the configuration: a relative one counts from its file's folder."""
        path = Path(text).expanduser()
        base = self.source.parent if self.source else Path.cwd()
        return path if path.is_absolute() else base / path


def _check_schedule(name: str, budget: str | None, currency: str) -> None:
    if not re.fullmatch(NAME, name):
        raise ValueError(f"schedule.{name}: a name has letters, digits, dots, dashes and underscores")
    try:
        pays = budget is None or Money.parse(budget, currency).pico > 0
    except TwolaneError as error:
        raise ValueError(f"schedule.{name}: {error}") from None
    if not pays:
        raise ValueError(f"schedule.{name}: a budget of {budget} can pay for nothing; leave it out for no limit")


def _check_store(store: str) -> None:
    """The message holds nothing of an address: a password may stand in it."""
    if store.startswith("sqlite:") and store != "sqlite:":
        return
    if store.startswith(("env:", "file:")):
        return
    if not store.startswith(POSTGRES):
        raise ValueError("store: write sqlite:PATH or postgresql://USER@HOST/DATABASE")
    if has_password(store):
        raise ValueError('store: a password is written by reference only: store = "env:NAME", with the whole address')


def load(path: Path | str | None = None) -> Config:
    """Read the configuration.

    `path` None means `TWOLANE_CONFIG`, else `twolane.toml` in the working directory, else the embedded default. A file
    that was named but is not there is an error. The built-in upstream `extractive` and the routes `light`, `heavy` and
    `auto` are there unless the file defines their names itself.

    Raises:
        ConfigError: unreadable, not TOML, an unknown key (the nearest match is named) or a wrong value.
    """
    named = path or os.environ.get("TWOLANE_CONFIG")
    file = Path(named) if named else Path(DEFAULT_FILE)
    table: dict[str, Any] = {}  # Any: TOML holds what it holds; pydantic judges it below
    if named or file.exists():
        try:
            table = tomllib.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ConfigError("there is no such file", where=str(file), hint="Make one with: twolane init") from None
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"it cannot be read: {error}", where=str(file)) from None
        except tomllib.TOMLDecodeError as error:
            raise ConfigError(f"it is not valid TOML: {error}", where=str(file)) from None
    _override(table, os.environ)
    if "source" in table:
        raise ConfigError("source: there is no such key", where=str(file))
    _add_built_in(table)
    try:
        config = Config.model_validate(table)
    except ValidationError as error:
        raise ConfigError(_explain(error, table), where=str(file) if table else "configuration") from None
    return config.model_copy(update={"source": file.resolve() if file.exists() else None})


def _add_built_in(table: dict[str, Any]) -> None:
    for key, built_in in (("upstream", _built_in()), ("route", _built_in_routes())):
        section = table.setdefault(key, {})
        upstreams = table["upstream"]
        if isinstance(section, dict) and isinstance(upstreams, dict):
            for name, value in built_in.items():
                taken = name in section or (key == "route" and name in upstreams)
                if not taken and not (key == "route" and "extractive" not in upstreams):
                    section[name] = value.model_dump(exclude_none=True)


def _override(table: dict[str, Any], environment: Mapping[str, str]) -> None:
    """`TWOLANE_SERVE__PORT=9000` sets serve.port; values are read as TOML, else as text."""
    for variable, text in environment.items():
        if not variable.startswith(ENVIRONMENT) or variable == "TWOLANE_CONFIG":
            continue
        path = variable.removeprefix(ENVIRONMENT).lower().split("__")
        if len(path) == 1 and path[0] not in Config.model_fields:
            continue  # a variable of somebody else's that happens to start alike
        section = table
        for name in path[:-1]:
            section = section.setdefault(name, {})
            if not isinstance(section, dict):
                raise ConfigError(f"{name} is not a table", where=variable)
        try:
            section[path[-1]] = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            section[path[-1]] = text


def _explain(error: ValidationError, table: Mapping[str, object]) -> str:
    """One problem in a sentence: key, what is wrong, nearest match. A misspelt key first: what is missing may be it."""
    problems = error.errors()
    first = next((problem for problem in problems if problem["type"] == "extra_forbidden"), problems[0])
    path = [str(part) for part in first["loc"]]
    key = ".".join(path)
    if first["type"] == "extra_forbidden":
        if path[-1] in LATER:
            return f"{key}: this is not built yet. Leave it out: accepted and not kept, it would be an empty promise"
        return f"{key}: there is no such key{near(path[-1], _siblings(path))}"
    message = validation_words(first)
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    return (f"{key}: {message}" if key else message) + more


def _siblings(path: list[str]) -> list[str]:
    """The keys known where an unknown one was found, by walking the annotations along `path`."""
    here: Any = Config  # Any: annotations have no common type
    for part in path[:-1]:
        if _model_in(here) is None or get_origin(here) in (dict, tuple):
            here = get_args(here)[-1] if get_origin(here) is dict else next(iter(get_args(here)), None)
            continue  # `part` was the name of a table, or a position in a list
        field = _model_in(here).model_fields.get(part)  # type: ignore[union-attr]  # None was handled above
        here = field.annotation if field else None
    model = _model_in(here)
    return [field.alias or name for name, field in model.model_fields.items() if name != "source"] if model else []


def _model_in(annotation: Any) -> type[BaseModel] | None:  # Any: see _siblings
    for candidate in (annotation, *get_args(annotation)):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None
