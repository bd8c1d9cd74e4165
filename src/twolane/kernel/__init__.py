"""The kernel: the one door and what stands behind it, composed once in `Kernel.open`."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import orjson

from twolane.config import ANTHROPIC_URL, Config, UpstreamSection, near, resolve_secret
from twolane.domain.records import Lane, Origin, Route, Subject
from twolane.errors import ConfigError, NotFound, StoreError
from twolane.kernel import ledger
from twolane.kernel.auditor import Auditor
from twolane.kernel.document import Document
from twolane.kernel.guards import Guards
from twolane.kernel.lanes import Lanes, Limits
from twolane.kernel.leases import Leases
from twolane.kernel.metrics import Metrics
from twolane.kernel.prices import Prices
from twolane.kernel.progress import Watching
from twolane.kernel.schemas import Schemas
from twolane.kernel.step import Answer, Door, House, Request, Settled, Upstream, new_id
from twolane.kernel.switches import Switches
from twolane.kernel.tokens import counter
from twolane.kernel.treasury import Treasury
from twolane.models import Model
from twolane.rules import routing
from twolane.store import Store, Transaction
from twolane.store.lookups import Lookups
from twolane.store.opening import open_store
from twolane.store.presence import BEAT_S, Presence
from twolane.store.vault import Vault, unseal
from twolane.telemetry import Telemetry, open_tracing

_LOG = logging.getLogger("twolane.kernel")

__all__ = ["Answer", "Document", "Kernel", "Model", "Request", "Settled", "new_id"]


@dataclass(frozen=True)
class Kernel:
    """One process's view of a store, its upstreams and all between. Open with `Kernel.open`, end with `aclose`."""

    config: Config
    store: Store
    vault: Vault
    presence: Presence
    treasury: Treasury
    switches: Switches
    guards: Guards
    lanes: Lanes
    door: Door
    upstreams: dict[str, Upstream]
    lookups: Lookups
    prices: Prices
    telemetry: Telemetry
    _inheriting: set[asyncio.Future[None]] = field(default_factory=set)

    @classmethod
    async def open(
        cls,
        config: Config,
        *,
        models: dict[str, Model] | None = None,
        can_call: bool = True,
        takes_part: bool | None = None,
        beat_s: float = BEAT_S,
    ) -> Kernel:
        """Open the store (made on first use) and every upstream, and settle what dead processes left in doubt.

        `models` replaces the adapters of upstreams by name; for tests and rehearsals. Without `can_call` no upstream is
        opened and no secret is needed: for those who only look, or stop what others do. Whoever `takes_part` (without
        word: who can call) is known to others, and sees it when one of them dies. `beat_s` is how often this
        process says that it lives; the same in every process of a store.

        Raises:
            ConfigError: a secret is missing, a built-in model does not know an option, or spans cannot be sent.
            StoreError: see `store.sqlite` and `store.vault`.
        """
        sections = config.upstream if can_call else {}
        takes_part = can_call if takes_part is None else takes_part
        prices = Prices(sections, config.currency)
        upstreams = {
            name: _upstream(name, section, (models or {}).get(name), prices) for name, section in sections.items()
        }
        keys = config.keys_folder()
        telemetry = Telemetry(open_tracing(config.telemetry.otlp) if can_call else None)
        store = open_store(config.store_address())
        try:
            vault = Vault.open(keys, is_new=store.one("get_meta", name="currency") is None)
            presence = await Presence.open(store, locks=_locks(config), takes_part=takes_part, beat_s=beat_s)
        except BaseException:
            store.close()
            raise
        for name, section in sections.items():
            if name not in (models or {}) and _ignores_schemas(store, name, section):
                upstreams[name] = _upstream(
                    name, section.model_copy(update={"structured": "json_object"}), None, prices
                )
        switches = Switches(store, process=presence.name, check_presence=presence.check, is_alive=presence.is_alive)
        treasury = Treasury(
            store,
            currency=config.currency,
            owner=presence.name,
            defaults={scope: section for scope, section in config.budget.items() if _is_template(scope)},
            is_alive=presence.is_alive,
        )
        switches.on_change = treasury.follow
        leases = Leases(store, owner=presence.name, is_alive=presence.is_alive)
        lanes = Lanes({name: Limits.of(section) for name, section in config.upstream.items()}, leases=leases)
        guards = Guards(store, switches, config.guards())
        house = House(
            store, upstreams, treasury, lanes, switches, guards, config.currency, vault.step_salt, telemetry,
            {name: route.heavy for name, route in config.route.items() if route.heavy},
        )  # fmt: skip
        lookups, door = Lookups(store), Door(house)
        kernel = cls(
            config,
            store,
            vault,
            presence,
            treasury,
            switches,
            guards,
            lanes,
            door,
            upstreams,
            lookups,
            prices,
            telemetry,
        )
        presence.on_death = kernel._inherit
        prices.follow(upstreams)
        try:
            await kernel._agree_on_currency()
            await kernel._agree_on_keys()
            await kernel._take_budgets_from_file()
            await treasury.recover()
        except BaseException:
            await kernel.aclose()
            raise
        if takes_part:
            kernel.auditor.begin()
        return kernel

    @property
    def drifted(self) -> int | None:
        """How many budgets' books disagreed with the record when they were last compared; None before."""
        return self.auditor.drifted

    @cached_property
    def auditor(self) -> Auditor:
        """What compares the books with the record."""
        return Auditor(self.store)

    @property
    def store_path(self) -> Path:
        """Where the SQLite file lies. Raises ConfigError where the store is no file."""
        return self.config.store_path()

    async def aclose(self) -> None:
        """Write what was submitted, give back what is leased, close sockets and files. One that fails to close does not
        keep the others open; its error is raised when all are."""
        async with AsyncExitStack() as last_first:
            if self.telemetry.tracing is not None:
                last_first.push_async_callback(asyncio.to_thread, self.telemetry.tracing.close)
            last_first.callback(self.presence.close)
            last_first.callback(self.store.close)
            last_first.callback(self.presence.leave)
            last_first.push_async_callback(self.treasury.aclose)
            for upstream in self.upstreams.values():
                last_first.push_async_callback(upstream.model.aclose)
            last_first.callback(self.door.close)
            last_first.callback(self.lanes.close)
            last_first.callback(self.switches.close)
            last_first.callback(self.watching.close)
            last_first.push_async_callback(self.auditor.aclose)
            last_first.callback(self.prices.close)
            for task in self._inheriting:
                last_first.callback(task.cancel)

    def _inherit(self, dead: list[str]) -> None:
        """Processes were found dead: what they held comes back, and their slots with the next who lacks some."""
        task = asyncio.ensure_future(self._bury(dead))
        self._inheriting.add(task)
        task.add_done_callback(self._inheriting.discard)

    async def _bury(self, dead: list[str]) -> None:
        try:
            for name in dead:
                await self.presence.bury(name)
            await self.treasury.recover()
        except StoreError:
            _LOG.exception("what dead processes held could not be taken back; the next opening tries again")

    def route(self, name: str, origin: Origin, *, lane: Lane, agent: str = "") -> Route:
        """Decide for a name that a client or an agent gives: a route, else an upstream itself.

        Raises:
            NotFound: neither; the nearest name is named.
        """
        fixed = self._fixed_routes.get(name)
        if fixed is not None:
            return fixed
        section = self.config.route.get(name)
        if section is None:
            known = [*self.config.route, *self.upstreams]
            raise NotFound(f"there is no route or upstream {name!r}{near(name, known)}")
        facts = {"workflow": origin.workflow, "agent": agent, "tenant": origin.tenant, "lane": str(lane)}
        rules = [({str(k): v for k, v in rule.when.items()}, rule.use) for rule in section.rule]
        return routing.decide(name, light=section.light, rules=rules, fallback=section.fallback, facts=facts)

    @cached_property
    def _fixed_routes(self) -> dict[str, Route]:
        """The decisions that depend on nothing but the name: routes without rules, and upstreams themselves."""
        fixed = {name: Route(name, (name,), "named by the caller") for name in self.upstreams}
        for name, section in self.config.route.items():
            if section.rule:
                fixed.pop(name, None)
            else:
                fixed[name] = routing.decide(name, light=section.light, rules=(), fallback=section.fallback, facts={})
        return fixed

    @cached_property
    def watching(self) -> Watching:
        """The runs that are watched in this process."""
        return Watching(self.store, is_alive=self.presence.is_alive, currency=self.config.currency)

    @cached_property
    def metrics(self) -> Metrics:
        """What Prometheus is told."""
        return Metrics(self)

    def candidates(self, name: str) -> Sequence[Mapping[str, object]]:
        """The models a route may choose, by kind and name: what a fingerprint holds of it."""
        found = self._candidates.get(name)
        if found is None:
            found = self._candidates[name] = self._candidates_of(name)
        return found

    @cached_property
    def schemas(self) -> Schemas:
        """What accepted outputs were judged by."""
        return Schemas(self.store)

    @cached_property
    def _candidates(self) -> dict[str, Sequence[Mapping[str, object]]]:
        return {}

    def _candidates_of(self, name: str) -> Sequence[Mapping[str, object]]:
        section = self.config.route.get(name)
        names = (
            [name]
            if section is None
            else [
                upstream
                for upstream in (section.light, section.heavy, *section.fallback, *(rule.use for rule in section.rule))
                if upstream is not None
            ]
        )
        models = {(self.config.upstream[n].kind, self.config.upstream[n].model) for n in names if n in self.upstreams}
        return [{"kind": kind, "model": model} for kind, model in sorted(models)]

    def subject(self, tx: Transaction, tenant: str, name: str) -> Subject:
        """The subject of a tenant's item, made on first sight."""
        fresh, wrapped = self.vault.new_subject(tenant, name)
        tx.run("add_subject", id=fresh.id, tenant=tenant, name=name, wrapped=wrapped, created=ledger.now_us())
        row = tx.one("subject", id=fresh.id)
        assert row is not None
        return self.vault.subject(row)

    def read_body(self, body: int) -> bytes:
        """A stored body, opened.

        Raises:
            NotFound: it was erased.
        """
        row = self.store.one("body", id=body)
        if row is None:
            raise NotFound("this content was erased")
        return unseal(self.vault.subject(row, column="subject"), bytes(row["sealed"]))

    async def _agree_on_currency(self) -> None:
        kept = self.store.one("get_meta", name="currency")
        if kept is None:
            currency = self.config.currency
            await self.store.write(lambda tx: tx.run("set_meta", name="currency", value=currency))
        elif kept["value"] != self.config.currency:
            raise ConfigError(
                f"the store keeps {kept['value']}, the configuration says {self.config.currency}",
                where="currency",
                hint="A store keeps one currency: use another store for another one",
            )

    async def _agree_on_keys(self) -> None:
        """Keys of another store would open nothing, and give every person and item another name."""
        mine, kept = self.vault.keyed(b"the keys of this store")[:16], self.store.one("get_meta", name="keys")
        if kept is None:
            await self.store.write(lambda tx: tx.run("set_meta", name="keys", value=mine))
        elif kept["value"] != mine:
            raise StoreError(
                f"the keys in {self.config.keys_folder()} belong to another store. Bring this one's from its backup, "
                "or from another machine of it"
            )

    async def _take_budgets_from_file(self) -> None:
        """A budget of the file counts when it is new or was changed in the file since; a later command wins over it."""
        for scope, section in self.config.budget.items():
            if _is_template(scope):
                continue
            text = f"{section.money}/{section.tokens}/{section.period}"
            more = (section.calls, section.seconds, section.accelerator_seconds)
            text += f"/{more}" if more != (None, None, None) else ""  # the rest is as releases before kept it
            kept = self.store.one("get_meta", name=f"budget {scope}")
            if kept is not None and kept["value"] == text:
                continue
            most = section.ceiling(self.config.currency)._asdict()
            await self.treasury.set_budget(scope, period=section.period, actor="file", source="file", **most)
            await self.store.write(lambda tx, n=f"budget {scope}", v=text: tx.run("set_meta", name=n, value=v))  # type: ignore[misc]
        await self._lift_budgets_gone_from_file()

    async def _lift_budgets_gone_from_file(self) -> None:
        """A budget that this very file set, and holds no longer, is lifted. Another file that shares the store, or
        none, says nothing about it."""
        if self.config.source is None:
            return
        name, taken = f"file {self.config.source}", sorted(s for s in self.config.budget if not _is_template(s))
        kept = self.store.one("get_meta", name=name)
        before = kept["value"].split("\n") if kept is not None else []
        for scope in set(before) - {*taken, ""}:
            await self.treasury.lift_budget(scope, actor="file", source="file")
            await self.store.write(lambda tx, s=scope: tx.run("forget_meta", name=f"budget {s}"))  # type: ignore[misc]
        if before != (taken or [""]):
            await self.store.write(lambda tx: tx.run("set_meta", name=name, value="\n".join(taken)))


def _locks(config: Config) -> Path | None:
    """Where the processes of one host hold their locks; None where they may be on several."""
    if not config.is_file():
        return None
    path = config.store_path()
    return path.with_name(path.name + ".alive")


def _is_template(scope: str) -> bool:
    """A configured budget that covers many scopes: each run, each item, a workflow of every tenant."""
    return scope in ("run", "item", "default") or scope.startswith("workflow:")


def _ignores_schemas(store: Store, name: str, section: UpstreamSection) -> bool:
    """Whether the newest probe found that this server does not keep to a schema it is asked for, and the configuration
    leaves the way open. Some take the field and ignore it: then the schema has to be told in words."""
    row = store.one("last_probe", upstream=name)
    if row is None or "structured" in section.model_fields_set or row["model"] != (section.model or name):
        return False
    return any(what == "structured" and verdict == "no" for what, verdict, _ in orjson.loads(row["findings"]))


def _upstream(name: str, section: UpstreamSection, model: Model | None, prices: Prices) -> Upstream:
    return Upstream(
        name=name,
        model=model or _open_model(name, section),
        model_name=section.model or name,
        is_unpriced_allowed=section.unpriced == "allow",
        retries=section.retries,
        first_token_s=section.timeout.first_token_s,
        idle_s=section.timeout.idle_s,
        total_s=section.timeout.total_s,
        context_tokens=section.limit.context,
        output_tokens=section.limit.output,
        slots=section.slots.online + section.slots.batch,
        accelerators=section.accelerators,
        kind=section.kind,
        energy=section.energy.as_energy() if section.energy else None,
        count=counter(name, section),
        **prices.quotes[name].as_fields(),
    )


def _open_model(name: str, section: UpstreamSection) -> Model:
    """The adapter for a kind; imported here, so that a process loads only the dialects it speaks."""
    try:
        match section.kind:
            case "openai":
                from twolane.models.openai import OpenAI

                assert section.url is not None
                key = resolve_secret(section.key) if section.key else None
                return OpenAI(name, url=section.url, key=key, structured=section.structured)
            case "anthropic":
                from twolane.models.anthropic import Anthropic

                assert section.key is not None
                url = section.url or ANTHROPIC_URL
                return Anthropic(name, url=url, key=resolve_secret(section.key), structured=section.structured)
            case "extractive":
                from twolane.models.extractive import Extractive

                return Extractive(name, **section.options)  # type: ignore[arg-type]  # checked by the constructor
            case "rehearsal":
                from twolane.models.rehearsal import Rehearsal

                return Rehearsal(name, **section.options)  # type: ignore[arg-type]  # checked by the constructor
    except ValueError as error:  # a key with a line end in it
        raise ConfigError(f"its url or key cannot be sent: {error}", where=f"upstream.{name}") from None
    except TypeError as error:
        raise ConfigError(f"an option is not known or has the wrong type: {error}", where=f"upstream.{name}") from None
