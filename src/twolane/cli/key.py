"""`twolane key`: who may use the gateway."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from twolane.cli.output import ConfigOption, JsonOption, emit, load_config, new_app, run, table

if TYPE_CHECKING:
    from twolane.kernel import Kernel

T = TypeVar("T")

app = new_app("API keys of the gateway. After the first one is made, nobody comes in without one.")

Tenant = Annotated[str, typer.Option(help="who pays")]
Name = Annotated[str, typer.Option(help="the key's name, never used twice by a tenant")]


@app.command()
def create(
    tenant: Tenant,
    name: Name,
    models: Annotated[str, typer.Option(help="routes and upstreams it may use, like light,heavy; none: all")] = "",
    workflow: Annotated[
        str, typer.Option(help="the business process of its calls, unless their x-twolane-workflow names another")
    ] = "",
    operator: Annotated[
        bool, typer.Option(help="it may trip and reset the switches of its tenant: a person's")
    ] = False,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Make a key. It is shown once and kept nowhere."""
    from twolane.kernel.accounts import Limit, amount_fields
    from twolane.online.auth import create_key

    named = [model.strip() for model in models.split(",") if model.strip()]
    key = _with_kernel(config, lambda kernel: create_key(kernel, tenant, name, named, workflow, is_operator=operator))
    loaded, scope = load_config(config), f"key:{tenant}/{name}"
    budget = loaded.default_budget()
    limit = Limit(budget.period, budget.ceiling(loaded.currency))
    answer: dict[str, object] = {
        "key": key,
        "tenant": tenant,
        "name": name,
        "budget": limit.fields() if limit.most.is_limit else None,
    }
    answer |= {"operator": True} if operator else {}
    emit(json, answer, [key])
    if limit.most.is_limit and not json:
        units = {"money": loaded.currency}
        most = amount_fields(limit.most).items()
        each = [f"{text} {units.get(what, what)}" for what, text in most if text is not None]
        told = f"{' and '.join(each)} per {limit.period}, until another is set: twolane budget set {scope}"
        typer.echo(f"Its budget is {told}", err=True)


@app.command("list")
def list_all(config: ConfigOption = None, json: JsonOption = False) -> None:
    """Show every key ever made, without its secret."""
    from twolane.online.auth import Key, list_keys

    async def read(kernel: Kernel) -> list[Key]:
        return list_keys(kernel)

    keys = _with_kernel(config, read)
    rows = [
        (key.tenant, key.name, ",".join(key.models) or "all", key.workflow, _day(key.created_us), _day(key.revoked_us))
        for key in keys
    ]
    head = ("tenant", "name", "models", "workflow", "created", "revoked")
    objects = [
        {"tenant": key.tenant, "name": key.name, "models": list(key.models), "workflow": key.workflow,
         "operator": key.is_operator, "created": _instant(key.created_us), "revoked": _instant(key.revoked_us)}
        for key in keys
    ]  # fmt: skip
    emit(json, {"keys": objects}, lambda: table(rows, head=head) if rows else ["no key was made yet"])


@app.command()
def revoke(tenant: Tenant, name: Name, config: ConfigOption = None, json: JsonOption = False) -> None:
    """Take a key back: it opens nothing from the next request on."""
    from twolane.online.auth import revoke_key

    _with_kernel(config, lambda kernel: revoke_key(kernel, tenant, name))
    emit(json, {"tenant": tenant, "name": name, "revoked": True}, [f"key {tenant}/{name} is revoked"])


def _with_kernel(config: str | None, work: Callable[[Kernel], Awaitable[T]]) -> T:
    from twolane.kernel import Kernel

    async def go() -> T:
        kernel = await Kernel.open(load_config(config), can_call=False)
        try:
            return await work(kernel)
        finally:
            await kernel.aclose()

    return run(go())


def _instant(us: int | None) -> str | None:
    return None if us is None else datetime.fromtimestamp(us / 1e6, UTC).isoformat(timespec="seconds")


def _day(us: int | None) -> str:
    return (_instant(us) or "")[:10]
