"""`twolane.toml` → Config. One file; unknown keys are refused with the nearest match; secrets only by reference.

No file at all is the embedded default: SQLite in the working directory, built-in models at price 0, loopback only.
Order of precedence: command line, then environment (`TWOLANE_SECTION__KEY`), then the file.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from twolane.domain.money import Money, pico_per_token
from twolane.domain.records import Price
from twolane.errors import ConfigError, TwolaneError
from twolane.rules.schedules import check_cron

DEFAULT_FILE = "twolane.toml"
ENVIRONMENT = "TWOLANE_"
ANTHROPIC_URL = "https://api.anthropic.com"
"""Where an upstream of kind anthropic is, unless it says otherwise."""
LATER = frozenset({"candidates", "guard", "heavy_share_max", "knowledge", "region", "target_quality"})
"""Keys of the design that this release does not keep yet."""


class Section(BaseModel):
    """Base of every table: unknown keys are errors, values are frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True, str_strip_whitespace=True)


def _secret(value: object) -> object:
    if isinstance(value, str) and not value.startswith(("env:", "file:")):
        raise ValueError("a secret is written by reference only: 'env:NAME' or 'file:PATH'")
    return value


def _decimal(value: object) -> object:
    if isinstance(value, float):
        raise ValueError('write money in quotes, like "0.05": a float is not exact')
    text = str(value)
    try:
        pico_per_token(text)
    except TwolaneError as error:
        raise ValueError(str(error)) from None
    return text


def _cron(value: object) -> object:
    return check_cron(value) if isinstance(value, str) else value


SecretRef = Annotated[str, BeforeValidator(_secret)]
PerMillion = Annotated[str, BeforeValidator(_decimal)]


class PriceTable(Section):
    """Currency per million tokens, as decimal strings."""

    input: PerMillion = Field(description="price of a million input tokens")
    output: PerMillion = Field(description="price of a million output tokens")
    cache_read: PerMillion | None = Field(default=None, description="price of a million input tokens read from a cache")
    cache_write: PerMillion | None = Field(
        default=None, description="price of a million input tokens written to a cache"
    )

    def as_price(self) -> Price:
        """The same in picounits per token."""
        cached = {
            name: pico_per_token(value)
            for name in ("cache_read", "cache_write")
            if (value := getattr(self, name)) is not None
        }
        return Price(input=pico_per_token(self.input), output=pico_per_token(self.output), **cached)


class Slots(Section):
    """Calls that may be in flight at once, guaranteed to each lane."""

    online: int = Field(default=8, ge=1, le=10_000, description="slots of the online lane")
    batch: int = Field(default=4, ge=1, le=10_000, description="slots of the batch lane")


class Rate(Section):
    """What the provider allows in a minute, over all processes and both lanes, which share it by their slots."""

    requests_per_minute: int | None = Field(default=None, ge=2, description="calls; none: not limited")
    tokens_per_minute: int | None = Field(
        default=None, ge=1_000, description="input and output tokens; none: not limited"
    )


class Timeout(Section):
    """Seconds of silence after which an upstream is given up."""

    first_token_s: float = Field(default=60, gt=0, le=3600, description="until the first token")
    idle_s: float = Field(default=60, gt=0, le=3600, description="between two tokens")


class Limit(Section):
    """What the model can take and give, in tokens."""

    context: int = Field(default=131_072, ge=256, description="input and output together")
    output: int = Field(default=4_096, ge=1, description="most output tokens of one call")


class UpstreamSection(Section):
    """`[upstream.NAME]`: a priced place where a model answers."""

    kind: Literal["openai", "anthropic", "extractive", "rehearsal"] = Field(
        description="the dialect, or a built-in model"
    )
    url: str | None = Field(default=None, description="base address, up to and with /v1; kinds openai and anthropic")
    model: str = Field(default="", description="the upstream's own name of the model")
    key: SecretRef | None = Field(default=None, description="API key, as env:NAME or file:PATH")
    price: PriceTable | None = Field(default=None, description='left out: calls are refused, unless unpriced = "allow"')
    unpriced: Literal["refuse", "allow"] = Field(default="refuse", description="allow: no money is counted, tokens are")
    slots: Slots = Field(default_factory=lambda: Slots(), description="calls in flight per lane")
    rate: Rate = Field(default_factory=lambda: Rate(), description="what the provider allows in a minute")
    lend: int = Field(default=0, ge=0, description="idle online slots that batch may borrow")
    preempt: bool = Field(
        default=False, description="true: a borrowed slot is taken back at once, and its batch step begins again"
    )
    retries: int = Field(default=2, ge=0, le=10, description="further attempts before the first byte")
    timeout: Timeout = Field(default_factory=lambda: Timeout(), description="patience with silence")
    limit: Limit = Field(default_factory=lambda: Limit(), description="size of the model")
    structured: Literal["json_schema", "json_object", "none"] = Field(
        default="json_schema",
        description="how the server is asked for JSON that fits a schema; every reply to an agent is checked again. "
        "Left out, what `doctor upstream` found out counts",
    )
    options: dict[str, str | int | float | bool] = Field(
        default_factory=dict, description="options of a built-in model, such as pace"
    )

    @model_validator(mode="after")
    def _fits_its_kind(self) -> UpstreamSection:
        if self.kind == "openai":
            if not self.url or not self.url.startswith(("http://", "https://")):
                raise ValueError('kind = "openai" needs url = "http(s)://…/v1"')
            if "@" in self.url.split("/", 3)[2]:
                raise ValueError('a url holds no user and no password: write key = "env:NAME" or "file:PATH"')
            if not self.model:
                raise ValueError('kind = "openai" needs model = "…", the server\'s own name of it')
        elif self.kind == "anthropic":
            self._fits_anthropic()
        elif self.url or self.key:
            raise ValueError(f'kind = "{self.kind}" is built in: it has no url and no key')
        if self.lend > self.slots.online:
            raise ValueError(f"lend = {self.lend}: there are only {self.slots.online} online slots to lend")
        return self

    def _fits_anthropic(self) -> None:
        url = self.url or ANTHROPIC_URL
        if not url.startswith(("http://", "https://")) or "@" in url.partition("://")[2].partition("/")[0]:
            raise ValueError('kind = "anthropic" takes url = "http(s)://…", without user and password')
        if self.key is None or not self.model:
            raise ValueError('kind = "anthropic" needs key = "env:NAME" or "file:PATH", and model = "…"')

    def price_of(self) -> Price | None:
        """Its price in picounits per token; None where it has none."""
        return self.price.as_price() if self.price else None


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
    """`[budget."SCOPE"]`: a hard limit over a period."""

    money: str | None = Field(default=None, description="decimal string in the store's currency")
    tokens: int | None = Field(default=None, ge=0, description="input and output tokens together")
    period: Literal["day", "month", "total"] = Field(default="total", description="in UTC")


class ServeSection(Section):
    """`[serve]`: where the gateway listens, and how it leaves."""

    host: str = Field(default="127.0.0.1", description="a public address without a key is refused")
    port: int = Field(default=8080, ge=0, le=65_535, description="0 takes a free one")
    drain_s: float = Field(default=30, ge=0, le=3600, description="how long answers may finish once it is told to stop")


class KeysSection(Section):
    """`[keys]`: what opens the store's bodies, and never lies in the store."""

    folder: str | None = Field(
        default=None,
        description="folder with the files master and pepper, the same on every machine of a store; "
        "left out: <store>.keys beside a SQLite file. PostgreSQL needs it",
    )


_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
_POSTGRES = ("postgresql://", "postgres://")


class ScheduleSection(Section):
    """`[schedule.NAME]`: a run that `twolane work` starts by itself at each tick."""

    flow: str = Field(min_length=1, description="a built-in flow or module:function")
    cron: Annotated[str, BeforeValidator(_cron)] = Field(
        description="when, in UTC: minute hour day-of-month month day-of-week"
    )
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
    tenant: str = Field(default="default", pattern=_NAME, description="whose runs they are")
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
        if self.database is not None and self.database.startswith(_POSTGRES) and _has_password(self.database):
            raise ValueError('a password is written by reference only: database = "env:NAME", with the whole address')
        return self


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
    upstream: dict[str, UpstreamSection] = Field(default_factory=_built_in)
    route: dict[str, RouteSection] = Field(default_factory=_built_in_routes)
    budget: dict[str, BudgetSection] = Field(default_factory=dict)
    schedule: dict[str, ScheduleSection] = Field(default_factory=dict)
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
        for scope, budget in self.budget.items():
            try:
                Money.parse(budget.money or "0", self.currency)
            except TwolaneError as error:
                raise ValueError(f'budget."{scope}": {error}') from None
            if not _SCOPE.fullmatch(scope):
                raise ValueError(
                    f'budget."{scope}": a scope is tenant:NAME, key:TENANT/NAME, workflow:NAME, run or item'
                )
        for name, schedule in self.schedule.items():
            _check_schedule(name, schedule.budget, self.currency)
        _check_store(self.store)
        return self

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
        if self.store.startswith(_POSTGRES):
            return self.store
        address = resolve_secret(self.store)
        if not address.startswith(_POSTGRES):
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
    if not re.fullmatch(_NAME, name):
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
    if not store.startswith(_POSTGRES):
        raise ValueError("store: write sqlite:PATH or postgresql://USER@HOST/DATABASE")
    if _has_password(store):
        raise ValueError('store: a password is written by reference only: store = "env:NAME", with the whole address')


def _has_password(address: str) -> bool:
    user = address.partition("://")[2].partition("/")[0].rpartition("@")[0]
    return ":" in user or re.search(r"[?&](?:ssl)?password=", address) is not None


_SCOPE = re.compile(r"(?:tenant|workflow|run|item):.+|key:[^/]+/.+|run|item|default")


def near(name: str, known: Mapping[str, object] | list[str]) -> str:
    """ "; did you mean …?" with the nearest known name, or the names there are."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; there are: {', '.join(sorted(known))}" if known else ""


def resolve_secret(reference: str) -> str:
    """The secret behind `env:NAME` or `file:PATH`.

    Raises:
        ConfigError: the variable is not set, or the file cannot be read. The message never holds a secret.
    """
    kind, _, name = reference.partition(":")
    if kind == "env":
        value = os.environ.get(name, "").strip()
        if not value:
            raise ConfigError(f"the environment variable {name} is not set", hint=f"export {name}=… and start again")
        return value
    try:
        value = Path(name).expanduser().read_text(encoding="utf-8").strip()
    except OSError as error:
        raise ConfigError(f"the secret file {name} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"the secret file {name} is not text") from None
    if not value:
        raise ConfigError(f"the secret file {name} is empty")
    return value


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
    message = first["msg"].removeprefix("Value error, ")
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
    return [field.alias or name for name, field in model.model_fields.items()] if model else []


def _model_in(annotation: Any) -> type[BaseModel] | None:  # Any: see _siblings
    for candidate in (annotation, *get_args(annotation)):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None
