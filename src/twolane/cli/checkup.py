"""The checks of `twolane doctor`: each gives lines that say ok, warning or problem, and what to do."""

from __future__ import annotations

import errno
import platform
import resource
import shutil
import socket
import sqlite3
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from importlib import metadata
from pathlib import Path

from twolane.config import Config, resolve_secret
from twolane.errors import TwolaneError
from twolane.kernel import Kernel
from twolane.kernel.prices import quotes
from twolane.kernel.tokens import counter
from twolane.online.auth import is_loopback, list_keys
from twolane.online.probe import last_probe
from twolane.rules.pricing import price_id
from twolane.rules.probing import Verdict
from twolane.store.examine import examine
from twolane.store.opening import open_store
from twolane.store.sql import SCHEMA_VERSION

LITTLE_BYTES, TOO_LITTLE_BYTES = 2**30, 100 * 2**20
"""Free disk space below which there is a warning, and a problem."""
FILES = 4096
"""Open files below which a thousand streams do not fit: each takes two sockets."""
NEARLY_SPENT = 0.9


class State(StrEnum):
    """How a thing is."""

    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"


@dataclass(frozen=True, slots=True)
class Line:
    """One thing that was checked."""

    state: State
    what: str
    text: str
    todo: str = ""
    """The next move, where one is needed."""

    def __str__(self) -> str:
        return f"{self.state:<8} {self.what:<9} {self.text}" + (f". {self.todo}" if self.todo else "")


async def check_up(config: Config) -> list[Line]:
    """Every check, in the order in which one would repair. No model is called."""
    lines = [_config(config), *_versions(), *_disk(config), *_upstreams(config)]
    store = _store(config.store_path()) if config.is_file() else _server(config)
    lines.append(store)
    lines.append(_address(config))
    if store.state is not State.OK or (config.is_file() and not config.store_path().exists()):
        return lines
    try:
        kernel = await Kernel.open(config, can_call=False)
    except TwolaneError as error:
        return [*lines, Line(State.PROBLEM, "store", str(error))]
    try:
        lines += [*_door(kernel), *await _budgets(kernel), *_switches(kernel), *_probes(kernel)]
    finally:
        await kernel.aclose()
    return lines


def _config(config: Config) -> Line:
    where = str(config.source) if config.source else "the embedded default (there is no twolane.toml here)"
    return Line(State.OK, "config", f"{where}: {len(config.upstream)} upstreams, {len(config.route)} routes")


def _versions() -> Iterator[Line]:
    parts = (
        f"twolane {metadata.version('twolane')}",
        f"Python {platform.python_version()}",
        f"SQLite {sqlite3.sqlite_version}",
    )
    yield Line(State.OK, "versions", ", ".join(parts))
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= soft < FILES:
        yield Line(State.WARNING, "files", f"{soft} may be open at once", f"For a thousand streams: ulimit -n {FILES}")
    else:
        yield Line(State.OK, "files", f"{soft if soft >= 0 else 'any number'} may be open at once")


def _disk(config: Config) -> Iterator[Line]:
    folder = config.folder()
    try:
        free = shutil.disk_usage(folder).free
    except OSError as error:
        yield Line(
            State.PROBLEM, "disk", f"{folder}: {error.strerror}", "Make the folder, or change store = … in the config"
        )
        return
    text = f"{free / 2**30:.1f} GB free in {folder}"
    if free < TOO_LITTLE_BYTES:
        yield Line(State.PROBLEM, "disk", text, "Free some: what cannot be recorded is not done")
    elif free < LITTLE_BYTES:
        yield Line(State.WARNING, "disk", text, "Free some before long")
    else:
        yield Line(State.OK, "disk", text)


def _upstreams(config: Config) -> Iterator[Line]:
    prices = quotes(config)
    for name, section in config.upstream.items():
        try:
            if section.key is not None:
                resolve_secret(section.key)
            counter(name, section)
        except TwolaneError as error:
            yield Line(State.PROBLEM, "upstream", f"{name}: {error}")
            continue
        price, why = prices[name].price, prices[name].why
        if price is None and section.unpriced == "refuse":
            todo = 'Give it price = { input = "…", output = "…" }, price_list = "PROVIDER/MODEL" or unpriced = "allow"'
            because = f" ({why})" if why else ""
            yield Line(State.PROBLEM, "upstream", f"{name}: it has no price{because}, so every call is refused", todo)
            continue
        key = (f"key {section.key}" if section.key else "no key") if section.url else "built in"
        paid = "unpriced" if price is None else f"price {price_id(price)} ({price.source})"
        yield Line(State.OK, "upstream", f"{name}: {section.kind}, {key}, {paid}")


def _store(path: Path) -> Line:
    if not path.exists():
        return Line(State.OK, "store", f"{path} is not there yet: the first command makes it")
    seen = examine(path)
    if seen.problem:
        todo = "Bring it back from a backup, or look: twolane audit verify"
        return Line(State.PROBLEM, "store", f"{path}: {seen.problem}", todo)
    if seen.is_older:
        todo = "The next command that opens it brings it up to date; stop processes of the older release first"
        return Line(State.WARNING, "store", f"{path}: schema {seen.version} is of an older release", todo)
    return Line(State.OK, "store", f"{path}: schema {seen.version}, {path.stat().st_size / 2**20:.1f} MB")


def _server(config: Config) -> Line:
    try:
        open_store(config.store_address()).close()
        config.keys_folder()
    except TwolaneError as error:
        return Line(State.PROBLEM, "store", str(error))
    return Line(State.OK, "store", f"{config.store_name()}: schema {SCHEMA_VERSION}")


def _address(config: Config) -> Line:
    host, port = config.serve.host, config.serve.port
    shown = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        socket.create_server((host, port), family=family).close()
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            todo = "Change serve.host or serve.port"
            return Line(State.PROBLEM, "address", f"{shown} cannot be taken: {error.strerror or error}", todo)
        if _is_gateway(shown):
            return Line(State.OK, "address", f"{shown}: a gateway answers there")
        todo = "Change serve.port, or start with: twolane serve --port 0"
        return Line(State.WARNING, "address", f"{shown} is in use by another program", todo)
    return Line(State.OK, "address", f"{shown} is free")


def _is_gateway(address: str) -> bool:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"http://{address}/healthz", timeout=2) as response:
            return b'"status"' in response.read(1000) and response.headers.get("x-request-id") is not None
    except (OSError, urllib.error.URLError, ValueError):
        return False


def _door(kernel: Kernel) -> Iterator[Line]:
    live = [key for key in list_keys(kernel) if key.revoked_us is None]
    host = kernel.config.serve.host
    if not live and not is_loopback(host):
        todo = "Make one: twolane key create --tenant T --name N"
        yield Line(State.PROBLEM, "keys", f"{host} can be reached from other machines, and there is no key", todo)
    else:
        yield Line(State.OK, "keys", f"{len(live)} in use" if live else "none: this machine alone may ask")


async def _budgets(kernel: Kernel) -> list[Line]:
    accounts = await kernel.treasury.all_accounts()
    lines = []
    for account in accounts:
        used = zip(account.limit, account.spent.plus(account.held), strict=True)
        spent = [part / limit if limit else 1.0 for limit, part in used if limit is not None]
        share = max(spent, default=0.0)
        if share >= NEARLY_SPENT:
            todo = f"Raise it: twolane budget set {account.scope} --money AMOUNT"
            text = f"{account.scope}: {share:.0%} of its limit is used ({account.window})"
            lines.append(Line(State.WARNING, "budget", text, todo))
    if not accounts and not kernel.config.budget:
        todo = "Set one: twolane budget set tenant:default --money '$5' --period month"
        return [Line(State.WARNING, "budget", "none is set: nothing limits what is spent", todo)]
    return lines or [Line(State.OK, "budget", f"{len(accounts)} set, none nearly spent")]


def _switches(kernel: Kernel) -> Iterator[Line]:
    rows = kernel.store.all("switches")
    for row in rows:
        todo = f"Reset it: twolane switch reset {'--all' if row['scope'] == 'all' else row['scope']}"
        yield Line(State.WARNING, "switch", f"{row['scope']} is stopped ({row['cause']})", todo)
    if not rows:
        yield Line(State.OK, "switch", "none is tripped")


def _probes(kernel: Kernel) -> Iterator[Line]:
    for name, section in kernel.config.upstream.items():
        found = last_probe(kernel.store, name)
        if found is None:
            if section.url:
                yield Line(State.OK, "probe", f"{name}: never probed", f"Probe it: twolane doctor upstream {name}")
            continue
        verdicts = {finding.what: finding.verdict for finding in found.findings}
        bad = [what for what in ("reachable", "counts", "max_tokens", "stops") if verdicts.get(what) is Verdict.NO]
        text = f"{name}: " + ", ".join(f"{what} {verdict}" for what, verdict in verdicts.items())
        yield Line(State.WARNING if bad else State.OK, "probe", text)
