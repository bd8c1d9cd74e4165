"""Hard limits."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from twolane.cli.output import ConfigOption, JsonOption, emit, load_config, new_app, run, table
from twolane.domain.money import Money, decimal_string
from twolane.errors import UsageError
from twolane.platform import Platform

app = new_app("Hard limits: list, set.")


@app.command(name="set")
def set_(
    scope: Annotated[str, typer.Argument(help="tenant:T, key:T/N, workflow:T/W, run:R or item:R/ID")],
    money: Annotated[str | None, typer.Option(help="like '$5'")] = None,
    tokens: Annotated[int | None, typer.Option(help="input and output together")] = None,
    period: Annotated[Literal["day", "month", "total"], typer.Option(help="in UTC")] = "total",
    config: ConfigOption = None,
    is_json: JsonOption = False,
) -> None:
    """Set a scope's limit from now on; what its period has already spent counts."""
    if scope.partition(":")[0] not in ("tenant", "key", "workflow", "run", "item") or not scope.partition(":")[2]:
        raise UsageError(f"{scope!r} is not a scope", hint="Write tenant:T, key:T/N, workflow:T/W, run:R or item:R/ID")
    if money is None and tokens is None:
        raise UsageError("name a limit: --money or --tokens")
    if tokens is not None and tokens < 0:
        raise UsageError(f"--tokens {tokens}: a limit is not negative")

    async def go() -> None:
        async with await Platform.open(load_config(config), can_call=False) as platform:
            pico = None if money is None else Money.parse(money, platform.kernel.config.currency).pico
            await platform.kernel.treasury.set_budget(
                scope, period=period, pico=pico, tokens=tokens, actor="budget set"
            )
            limit = [str(Money(pico, platform.kernel.config.currency))] if pico is not None else []
            limit += [f"{tokens:,} tokens"] if tokens is not None else []
            answer = {
                "scope": scope,
                "period": period,
                "money": None if pico is None else decimal_string(pico),
                "tokens": tokens,
            }
            emit(is_json, answer, [f"{scope}: {' and '.join(limit)} per {period}"])

    run(go())


@app.command(name="list")
def list_(config: ConfigOption = None, is_json: JsonOption = False) -> None:
    """Every limit, with what is spent, held and left in its period."""

    async def go() -> None:
        async with await Platform.open(load_config(config), can_call=False) as platform:
            rows = []
            for account in await platform.kernel.treasury.all_accounts():
                row: dict[str, object] = {"scope": account.scope, "period": account.window}
                if account.limit_pico is not None:
                    amounts = (account.limit_pico, account.spent_pico, account.held_pico, account.left_pico() or 0)
                    row |= dict(zip(("limit", "spent", "held", "remaining"), map(decimal_string, amounts), strict=True))
                    row["leased"] = decimal_string(account.leased_pico)
                if account.limit_tokens is not None:
                    row["tokens"] = {
                        "limit": account.limit_tokens,
                        "spent": account.spent_tokens,
                        "held": account.held_tokens,
                        "leased": account.leased_tokens,
                        "remaining": account.left_tokens(),
                    }
                rows.append(row)
            head = ("scope", "period", "limit", "spent", "held", "remaining")
            cells = [[str(row.get(name, "")) for name in head] for row in rows]
            emit(
                is_json,
                {"budgets": rows},
                table(cells, head=head) if rows else ["No budget is set: there is no limit."],
            )

    run(go())
