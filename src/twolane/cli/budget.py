"""Hard limits."""

from __future__ import annotations

import re
from typing import Annotated, Literal

import typer

from twolane.cli.output import ConfigOption, JsonOption, emit, load_config, new_app, run, table
from twolane.cli.switch import not_known
from twolane.config import near
from twolane.domain.money import Money
from twolane.errors import NotFound, UsageError
from twolane.kernel.accounts import Limit, account_fields, amount_fields
from twolane.kernel.books import amount_of
from twolane.kernel.switches import is_text
from twolane.platform import Platform
from twolane.rules.budgets import Ceiling, read_count, read_seconds

app = new_app("Hard limits: list, set, lift, reconcile.")

_SCOPES = "all, tenant:T, key:T/N, workflow:T/W, upstream:U, run:R or item:R/ID"
_SCOPE = re.compile(r"all|(?:tenant|upstream|run):[^/]+|(?:key|workflow|item):[^/]+/.+")


@app.command(name="set")
def set_(
    scope: Annotated[str, typer.Argument(help=_SCOPES)],
    money: Annotated[str | None, typer.Option(help="like '$5'")] = None,
    tokens: Annotated[str | None, typer.Option(help="input and output together")] = None,
    calls: Annotated[str | None, typer.Option(help="attempts that leave the house")] = None,
    seconds: Annotated[str | None, typer.Option(help="time of calls in flight, added up")] = None,
    accelerator_seconds: Annotated[
        str | None, typer.Option(help="the same, times the upstream's accelerators, divided by its slots")
    ] = None,
    period: Annotated[Literal["day", "month", "total"], typer.Option(help="in UTC")] = "total",
    if_limit: Annotated[
        str | None, typer.Option(help="only if this is the limit now (of the first one named here); none: no limit")
    ] = None,
    config: ConfigOption = None,
    is_json: JsonOption = False,
) -> None:
    """Set a scope's limits from now on, in place of those it had; 0 admits nothing. What its period has already spent
    counts. Of two changes at once the later one wins, unless it says --if-limit."""
    _check_scope(scope)
    loaded = load_config(config)
    named = {"pico": money, "tokens": tokens, "calls": calls, "us": seconds, "accelerator_us": accelerator_seconds}
    read = {name: _read(name, text, loaded.currency) for name, text in named.items() if text is not None}
    if not read:
        raise UsageError("name a limit: --money, --tokens, --calls, --seconds or --accelerator-seconds")
    if scope.startswith("upstream:") and (name := scope.removeprefix("upstream:")) not in loaded.upstream:
        raise UsageError(f"there is no upstream {name!r}{near(name, loaded.upstream)}")
    most, first = Ceiling(**read), next(iter(read))
    limit = Limit(period, most)
    expected = None if if_limit in (None, "none") else _read(first, str(if_limit), loaded.currency)

    def is_as_expected(before: Limit | None) -> bool:
        there: int | None = None if before is None else getattr(before.most, first)
        return if_limit is None or there == expected

    async def go() -> None:
        async with await Platform.open(loaded, can_call=False) as platform:
            treasury = platform.kernel.treasury
            before = await treasury.set_budget(
                scope, period=period, actor="budget set", only_if=is_as_expected, **most._asdict()
            )
            answer = {"scope": scope, **limit.fields(), "previous": None if before is None else before.fields()}
            stood = "there was none" if before is None else f"it was {treasury.told_limit(before)}"
            emit(is_json, answer, [f"{scope}: {treasury.told_limit(limit)} ({stood})", *not_known(platform, scope)])

    run(go())


@app.command()
def lift(
    scope: Annotated[str, typer.Argument(help=_SCOPES)],
    reason: Annotated[str | None, typer.Option(help="why; it enters the ledger")] = None,
    if_limit: Annotated[
        str | None, typer.Option(help="only if this is the limit now (of the first one that `budget list` shows)")
    ] = None,
    config: ConfigOption = None,
    is_json: JsonOption = False,
) -> None:
    """Limit a scope no longer. What was spent goes on being counted, and counts if a budget is set again."""
    _check_scope(scope)
    loaded = load_config(config)
    why = (reason or "").strip().encode(errors="replace").decode()[:500]

    def is_as_expected(before: Limit | None) -> bool:
        if if_limit is None or before is None:
            return True
        first = next(((name, most) for name, most in before.most._asdict().items() if most is not None), None)
        return first is None or _read(first[0], if_limit, loaded.currency) == first[1]

    async def go() -> None:
        async with await Platform.open(loaded, can_call=False) as platform:
            treasury = platform.kernel.treasury
            before = await treasury.lift_budget(scope, actor="budget lift", reason=why or None, only_if=is_as_expected)
            by_file, still = treasury.limit_of_kind(scope), list[str]()
            if by_file is not None:
                still.append(f"The configuration limits it to {treasury.told_limit(by_file)}, as all like it")
            if before is None:
                raise NotFound(". ".join([f"no budget is set for {scope}", *still, "Look: twolane budget list"]))
            answer = {"scope": scope, "previous": before.fields()}
            told = f"{scope}: no limit of its own any more (it was {treasury.told_limit(before)})"
            emit(is_json, answer, [told, *still])

    run(go())


def _check_scope(scope: str) -> None:
    if not (_SCOPE.fullmatch(scope) and is_text(scope)):
        raise UsageError(f"{scope!r} is not a scope", hint=f"Write {_SCOPES}")


def _read(name: str, text: str, currency: str) -> int:
    if name == "pico":
        return Money.parse(text, currency).pico
    return read_seconds(text) if name.endswith("us") else read_count(text, name)


@app.command(name="list")
def list_(config: ConfigOption = None, is_json: JsonOption = False) -> None:
    """Every limit, with what is spent, held and left in its period."""

    async def go() -> None:
        async with await Platform.open(load_config(config), can_call=False) as platform:
            rows = [account_fields(account) for account in await platform.kernel.treasury.all_accounts()]
            cells = [
                [row["scope"], row["period"], name, *[str(figures[part]) for part in _PARTS]]
                for row in rows
                for name, figures in {"money": row, **row}.items()
                if isinstance(figures, dict) and figures["limit"] is not None
            ]
            head = ("scope", "period", "of", *_PARTS)
            emit(
                is_json,
                {"currency": platform.kernel.config.currency, "budgets": rows},
                table(cells, head=head) if rows else ["No budget is set: there is no limit."],
            )

    run(go())


@app.command()
def reconcile(
    scope: Annotated[str | None, typer.Argument(help="whose doubt; none: show all there is")] = None,
    amount: Annotated[str | None, typer.Option(help="what the provider charged for it, like '$0.02'")] = None,
    release: Annotated[bool, typer.Option("--release", help="the provider charged nothing for it")] = False,
    window: Annotated[str | None, typer.Option(help="of these days alone, like 2026-11-21 or total")] = None,
    config: ConfigOption = None,
    is_json: JsonOption = False,
) -> None:
    """Show what dead processes left in doubt and no step knows of, or book what the provider says it was."""
    if scope is not None:
        _check_scope(scope)
    if (amount is not None or release) and scope is None:
        raise UsageError("name the scope that is reconciled")
    if amount is not None and release:
        raise UsageError("--amount and --release contradict each other")
    loaded = load_config(config)
    pico = None if amount is None else Money.parse(amount, loaded.currency).pico

    async def go() -> None:
        async with await Platform.open(loaded, can_call=False) as platform:
            if scope is None or not (release or amount):
                rows = [
                    {"scope": row["scope"], "window": row["window"], "day": row["day"], **amount_fields(amount_of(row))}
                    for row in platform.kernel.store.all("doubts")
                    if scope in (None, row["scope"])
                ]
                cells = [[str(each) for each in row.values()] for row in rows]
                lines = table(cells, head=tuple(rows[0])) if rows else ["Nothing is in doubt."]
                emit(is_json, {"in_doubt": rows}, lines)
                return
            done = await platform.kernel.treasury.reconcile(scope, window, pico=pico, actor="budget reconcile")
            rows = [
                {"scope": scope, "window": at, "of": amount_fields(a), "amount": amount_fields(b)}
                for (_, at), a, b in done
            ]
            emit(is_json, {"reconciled": rows}, [f"{scope} {row['window']}: reconciled" for row in rows])

    run(go())


_PARTS = ("limit", "spent", "held", "remaining")
