"""Who asks? An API key, or, before the first key was ever made, whoever sits at this machine.

A key is `tl-` and 256 random bits. The store keeps its HMAC under the pepper, which lies beside the store: a copy of
the database opens nothing.
"""

from __future__ import annotations

import hmac
import ipaddress
import re
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import orjson
from starlette.types import Scope

from twolane.config import near, resolve_secret
from twolane.errors import BadRequest, NotAllowed, NotFound, TwolaneError, Unauthenticated, UsageError
from twolane.kernel import Kernel, ledger
from twolane.store import Row, Transaction

PREFIX = "tl-"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")


@dataclass(frozen=True, slots=True)
class Grant:
    """What a request may do: on whose behalf it is made, which models it may name (empty: all), and under which
    business process it is counted."""

    tenant: str
    key: str = ""
    models: frozenset[str] = frozenset()
    workflow: str = ""
    is_operator: bool = False
    """True where its holder acts for a person, who may trip and reset the switches of this tenant."""

    def under(self, workflow: str) -> Grant:
        """The same under the business process that the request itself names, where it names one: any of its tenant's.

        Raises:
            BadRequest: that cannot be a name.
        """
        if not workflow:
            return self
        if not _NAME.fullmatch(workflow):
            raise BadRequest("the header 'x-twolane-workflow' must be a name: letters, digits and . _ @ -, up to 64")
        return replace(self, workflow=workflow)

    def allows(self, model: str) -> bool:
        """True when this route or upstream may be used."""
        return not self.models or model in self.models

    def require(self, model: str) -> None:
        """Nothing, if this route or upstream may be used.

        Raises:
            NotAllowed: it may not; what may be used is named.
        """
        if not self.allows(model):
            raise NotAllowed(f"key {self.key} may not use {model!r}; it may use: {', '.join(sorted(self.models))}")


THIS_MACHINE = Grant("default", is_operator=True)
"""Before the first key was ever made, a request from this machine acts as tenant `default`."""


MONITOR = Grant("")
"""Whoever may read the figures of every tenant, and do nothing else."""


class Gate:
    """Who may come in. One per process; a key made or revoked anywhere counts with the next request."""

    def __init__(self, kernel: Kernel) -> None:
        """Raises ConfigError where the scrape key is a reference that leads nowhere."""
        reference = kernel.config.telemetry.scrape_key
        self._scrape_key = resolve_secret(reference).encode() if reference else b""
        self._store, self._vault = kernel.store, kernel.vault
        self._epoch = -1
        self._has_keys = False
        self._grants: dict[bytes, Grant] = {}

    def admit(self, scope: Scope) -> Grant:
        """The grant of a request.

        Raises:
            Unauthenticated: it shows no key, or not one of ours. The same for every cause.
        """
        self._refresh()
        if not self._has_keys:
            if is_from_this_machine(scope):
                return THIS_MACHINE
            raise Unauthenticated
        secret = _shown(scope["headers"])
        if not secret.startswith(PREFIX.encode()):
            raise Unauthenticated
        # Python's hash of bytes is keyed anew in every process, and the store is asked for a digest keyed by the
        # pepper. A guesser can steer neither, so the time a look-up takes tells nothing: as good as constant time.
        grant = self._grants.get(secret)
        if grant is None:
            row = self._store.one("key_by_digest", digest=self._vault.keyed(secret))
            if row is None:
                raise Unauthenticated
            grant = self._grants[secret] = Grant(
                row["tenant"],
                row["name"],
                frozenset(orjson.loads(row["models"])),
                row["workflow"],
                is_operator=bool(row["operator"]),
            )
        return grant

    def admit_monitor(self, scope: Scope) -> Grant:
        """The same for a reader of figures: `MONITOR` for whoever shows the scrape key, and for this machine before the
        first API key; a tenant's key opens that tenant's.

        Raises:
            Unauthenticated: see `admit`.
        """
        if self._scrape_key and hmac.compare_digest(_shown(scope["headers"]), self._scrape_key):
            return MONITOR
        grant = self.admit(scope)
        return MONITOR if grant is THIS_MACHINE else grant

    def admit_operator(self, scope: Scope) -> Grant:
        """The grant of a request that takes an operator's key.

        Raises:
            Unauthenticated: see `admit`.
            NotAllowed: the key is another one.
        """
        grant = self.admit(scope)
        if not grant.is_operator:
            raise NotAllowed("this takes an operator's key. Make one with: twolane key create --operator")
        return grant

    def _refresh(self) -> None:
        epoch = self._store.epoch()
        if epoch != self._epoch:
            self._grants.clear()
            self._has_keys = self._has_keys or _were_keys_made(self._store.one("count_keys"))
            self._epoch = epoch


def _were_keys_made(row: Row | None) -> bool:
    return row is not None and row["keys"] > 0


def _shown(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """The key a request shows, empty if none."""
    for name, value in headers:
        if name == b"authorization" and value[:7].lower() == b"bearer ":
            return value[7:].strip()
        if name == b"x-api-key":
            return value.strip()
    return b""


def is_from_this_machine(scope: Scope) -> bool:
    """True for a request that a program on this machine sent to us by name, through no proxy and from no foreign page.

    A web page elsewhere can make a browser on this machine send requests here, under a name that resolves to loopback:
    so the Host must be loopback too, and an Origin must be our own.
    """
    client = scope.get("client")
    if not client or not is_loopback(client[0]):
        return False
    host, origin = None, None
    for name, value in scope["headers"]:
        if name == b"host":
            if host is not None:
                return False
            host = value.decode("latin-1")
        elif name == b"origin":
            origin = value.decode("latin-1")
        elif name == b"forwarded" or name.startswith(b"x-forwarded-") or name in (b"x-real-ip", b"via"):
            return False
    return host is not None and is_loopback(_without_port(host)) and origin in (None, f"{scope['scheme']}://{host}")


def _without_port(host: str) -> str:
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]


@lru_cache(maxsize=1024)
def is_loopback(host: str) -> bool:
    """True for an address or name of this machine that no other one can reach."""
    if host.lower() == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


# ── making and taking back ──


@dataclass(frozen=True, slots=True)
class Key:
    """An API key as it may be shown: everything but the secret. Instants are microseconds of Unix time."""

    tenant: str
    name: str
    models: tuple[str, ...]
    is_operator: bool
    created_us: int
    revoked_us: int | None
    workflow: str = ""


async def create_key(
    kernel: Kernel,
    tenant: str,
    name: str,
    models: Sequence[str] = (),
    workflow: str = "",
    *,
    is_operator: bool = False,
) -> str:
    """Make a key and give its secret, which is kept nowhere. `models` limits it to these routes and upstreams; calls
    that name no business process of their own are counted under `workflow`; an operator's may trip and reset the
    switches of its tenant.

    Key and ledger entry are one transaction. `Config.default_budget` becomes the key's budget, until somebody sets
    another, before the secret is given out.

    Raises:
        UsageError: a name that cannot be one, or that was used before (revoked ones too: the ledger speaks of them).
        NotFound: a model that is neither a route nor an upstream.
    """
    for what, value in (("tenant", tenant), ("name", name), *([("workflow", workflow)] if workflow else [])):
        if not _NAME.fullmatch(value):
            raise UsageError(f"{value!r} cannot be a {what}", hint="Letters, digits and . _ @ - are, up to 64 of them")
    known = [*kernel.config.route, *kernel.config.upstream]
    for model in models:
        if model not in known:
            raise NotFound(f"there is no route or upstream {model!r}{near(model, known)}")
    secret = PREFIX + secrets.token_urlsafe(32)
    digest = kernel.vault.keyed(secret.encode())

    def work(tx: Transaction) -> TwolaneError | None:
        if any((row["tenant"], row["name"]) == (tenant, name) for row in tx.all("keys")):
            return UsageError(f"key {tenant}/{name} was made before", hint="Choose another name: none is used twice")
        tx.run(
            "add_key",
            id=secrets.token_hex(8),
            tenant=tenant,
            name=name,
            digest=digest,
            models=orjson.dumps(list(models)).decode(),
            workflow=workflow,
            operator=int(is_operator),
            created=ledger.now_us(),
        )
        more = {"workflow": workflow or None, "role": "operator" if is_operator else None}
        ledger.append(tx, _entry("create", tenant, name) | {"models": list(models), **more})
        return None

    refusal = await kernel.store.write(work)
    if refusal is not None:
        raise refusal
    budget = kernel.config.default_budget()
    most = budget.ceiling(kernel.config.currency)
    if most.is_limit:
        scope, actor = f"key:{tenant}/{name}", "key create"
        await kernel.treasury.set_budget(scope, period=budget.period, actor=actor, source="default", **most._asdict())
    return secret


async def revoke_key(kernel: Kernel, tenant: str, name: str) -> None:
    """Take a key back: it opens nothing from the next request on, in every process. What it began runs to its end; trip
    the switch `key:TENANT/NAME` to stop that too.

    Raises:
        NotFound: there is no such key, or it was revoked before.
    """

    def work(tx: Transaction) -> bool:
        if not tx.run("revoke_key", tenant=tenant, name=name, now=ledger.now_us()):
            return False
        ledger.append(tx, _entry("revoke", tenant, name))
        return True

    if not await kernel.store.write(work):
        live = [f"{key.tenant}/{key.name}" for key in list_keys(kernel) if key.revoked_us is None]
        raise NotFound(f"there is no live key {tenant}/{name}{near(f'{tenant}/{name}', live)}")


def list_keys(kernel: Kernel) -> list[Key]:
    """Every key ever made, oldest first."""
    return [
        Key(
            row["tenant"],
            row["name"],
            tuple(orjson.loads(row["models"])),
            bool(row["operator"]),
            row["created"],
            row["revoked"],
            row["workflow"],
        )
        for row in kernel.store.all("keys")
    ]


def _entry(action: str, tenant: str, name: str) -> dict[str, object]:
    return {"v": 1, "kind": "key", "action": action, "tenant": tenant, "api_key": name, "at_us": ledger.now_us()}
