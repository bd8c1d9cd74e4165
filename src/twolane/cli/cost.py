"""What it all costs."""

from __future__ import annotations

import csv
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import typer

from twolane.batch.reports import whole_file
from twolane.cli.lines import short
from twolane.cli.output import ConfigOption, JsonOption, emit, load_config, new_app, run, table
from twolane.config import ANTHROPIC_URL, Config
from twolane.domain.money import decimal_string
from twolane.errors import ConfigError, UsageError
from twolane.kernel import economics
from twolane.kernel.economics import DIMENSIONS, MOST_ROWS, Figures, Report
from twolane.platform import Platform
from twolane.rules import focus

app = new_app("What it all costs: report, export.")

Since = Annotated[str | None, typer.Option(help="from this day on: a date (UTC), or 7d for the last seven days")]
Until = Annotated[str | None, typer.Option(help="to this day, itself included")]


@app.command()
def report(
    by: Annotated[
        list[str] | None, typer.Option("--by", help=f"{', '.join(DIMENSIONS)}; several, or joined by commas")
    ] = None,
    since: Since = None,
    until: Until = None,
    most: Annotated[int, typer.Option(min=1, max=1_000_000, help="rows to show, the dearest first")] = MOST_ROWS,
    config: ConfigOption = None,
    is_json: JsonOption = False,
) -> None:
    """What calls, retries, refusals and waste cost, by item and by accepted output; and what was saved."""
    names = [name.strip() for each in by or ["workflow"] for name in each.split(",")]
    days = economics.period(since, until)

    async def go() -> None:
        async with await Platform.open(load_config(config), can_call=False) as platform:
            kernel = platform.kernel
            said = economics.report(kernel.store, kernel.config.currency, names, days, most=most)
            emit(is_json, said.fields(), lambda: _lines(said))

    run(go())


@app.command()
def export(
    format_: Annotated[Literal["focus"], typer.Option("--format", help="FOCUS 1.4, one row a kind of token")] = "focus",
    since: Since = None,
    until: Until = None,
    out: Annotated[Path | None, typer.Option(help="a file: .csv, or .parquet with the extra [parquet]")] = None,
    config: ConfigOption = None,
    is_json: JsonOption = False,
) -> None:
    """Every charge for the tools of finance. Its billed cost adds up to what the ledger says, to the picounit."""
    if is_json and out is None:
        raise UsageError("--json tells what was written: name the file with --out")
    days = economics.period(since, until)

    async def go() -> None:
        async with await Platform.open(load_config(config), can_call=False) as platform:
            kernel = platform.kernel
            sums = [0, 0]

            def rows() -> Iterable[Mapping[str, str | None]]:
                for each in economics.charges(kernel.store, days):
                    charge = focus.Charge(**each)
                    sums[0], sums[1] = sums[0] + 1, sums[1] + charge.cost_pico
                    yield focus.row_of(
                        charge, currency=kernel.config.currency, provider=_provider(kernel.config, charge.upstream)
                    )

            _write(out, rows())
            total = economics.report(kernel.store, kernel.config.currency, (), days).total
            unpriced = total.fields()["unpriced"]
            answer = {
                "file": str(out) if out else None,
                "rows": sums[0],
                "total": decimal_string(sums[1]),
                "currency": kernel.config.currency,
                "unpriced": unpriced,
            }
            lines = [f"{sums[0]} rows, {decimal_string(sums[1])} {kernel.config.currency}"]
            lines += [f"{unpriced} calls are not among them: nobody knows what they cost"] if unpriced else []
            if out is not None:
                emit(is_json, answer, lines)
            else:
                print(*lines, sep="\n", file=sys.stderr)

    run(go())


# ── the report for people ──


def _lines(said: Report) -> list[str]:
    first, last = said.days.fields().values()
    period = f"from {first or 'the beginning'}" + (f" to {last}" if last else "")
    saved = said.total.fields()["saved"]
    assert isinstance(saved, dict)
    kept = [f"{_money(saved[name])} by {name}" for name in ("memo", "router") if saved[name] is not None]
    lines = [
        f"costs {'of runs ' if 'run' in said.by else ''}{period}: {_money(said.total.cost)} {said.currency}",
        f"  saved    {', '.join(kept) or 'unknown'}" + (" (estimated)" if saved["router"] is not None else ""),
    ]
    cells = [_cells(each) for each in (*said.rows, said.total)]
    cells[-1][0] = "all"
    lines += ["  " + line for line in table(cells, head=(" / ".join(said.by), *_HEAD))]
    return [*lines, f"  these are the {len(said.rows)} dearest: --most shows more"] if said.has_more else lines


_HEAD = ("cost", "calls", "tokens", "items", "per item", "per accepted", "refused", "waste", "reused")


def _cells(figures: Figures) -> list[str]:
    told: Any = figures.fields()  # Any: JSON
    return [
        "/".join(figures.row[part] or "–" for part in figures.by),
        _money(told["cost"]),
        f"{told['calls']:,}",
        f"{told['tokens']:,}",
        "?" if told["items"] is None else f"{told['items']:,}",
        _money(told["cost_per_item"]),
        _money(told["cost_per_accepted"]),
        _money(told["refusals"]["cost"]),
        _money(told["waste"]["cost"]),
        f"{told['reused']:,}",
    ]


def _money(amount: str | None) -> str:
    """To six places, for people; `?` is not known."""
    return "?" if amount is None else short(amount)


# ── the export ──


def _provider(config: Config, upstream: str) -> str:
    """Who makes an upstream available: the host that answers, or this house itself. Its own name once it is gone."""
    section = config.upstream.get(upstream)
    if section is None:
        return upstream
    address = section.url or (ANTHROPIC_URL if section.kind == "anthropic" else "")
    return urlsplit(address).hostname or "twolane"


def _write(out: Path | None, rows: Iterable[Mapping[str, str | None]]) -> None:
    if out is None:
        _write_csv(sys.stdout, rows)
        return
    write = _write_parquet if out.suffix == ".parquet" else _write_csv_file
    try:
        if out.exists() and not out.is_file():  # a pipe or a device: nothing can take its place
            write(out, rows)
        else:
            with whole_file(out.resolve()) as draft:
                write(draft, rows)
    except OSError as error:
        raise UsageError(f"{out} cannot be written: {error.strerror}", hint="Name another file") from None


def _write_csv_file(out: Path, rows: Iterable[Mapping[str, str | None]]) -> None:
    with out.open("w", newline="", encoding="utf-8") as file:
        _write_csv(file, rows)


def _write_csv(file: Any, rows: Iterable[Mapping[str, str | None]]) -> None:  # Any: whatever takes text
    writer = csv.DictWriter(file, focus.COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)


def _write_parquet(out: Path, rows: Iterable[Mapping[str, str | None]]) -> None:
    """The same as CSV, read by whoever knows the format: decimals of 38 digits, 12 of them after the point.

    Raises:
        ConfigError: the extra is not installed.
    """
    try:
        from pyarrow import csv as reader
        from pyarrow import decimal128, parquet, string, timestamp
    except ImportError:
        raise ConfigError(
            "a .parquet file needs pyarrow, which is not installed", hint="Install twolane[parquet], or write a .csv"
        ) from None
    types = {focus.DECIMAL: decimal128(38, 12), focus.INSTANT: timestamp("ms", tz="UTC"), focus.TEXT: string()}
    columns = {name: types[kind] for name, kind in focus.COLUMNS.items()}
    with tempfile.NamedTemporaryFile("w", newline="", encoding="utf-8", suffix=".csv") as file:
        _write_csv(file, rows)
        file.flush()
        options = reader.ConvertOptions(column_types=columns, null_values=[""], strings_can_be_null=True)
        parse = reader.ParseOptions(newlines_in_values=True)
        parquet.write_table(reader.read_csv(file.name, parse_options=parse, convert_options=options), out)
