"""What it all costs: whatever happened to a call stands in the report, and all of it adds up to the ledger's total."""

from __future__ import annotations

import asyncio
import csv
import errno
import io
import json
import os
import sqlite3
import sys
from collections.abc import Iterable
from contextlib import closing, redirect_stdout
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel
from tests.stores import kept_in

from twolane import Document, Item, Prompt, agent, workflow
from twolane.cli import main
from twolane.config import Config, PriceTable, RouteSection, Slots, UpstreamSection
from twolane.domain.money import PICO, decimal_string
from twolane.domain.records import Lane, Message, ModelCall, Origin, Route, Status
from twolane.errors import UpstreamError, UsageError
from twolane.kernel import Kernel, Request, economics, ledger
from twolane.kernel.economics import DIMENSIONS, Days
from twolane.models.rehearsal import Rehearsal, Script, read_faults
from twolane.rules import focus
from twolane.store.opening import open_store
from twolane.store.sql import script
from twolane.testing import Rehearsal as Kit

Json = dict[str, Any]  # Any: JSON

MILLIONTH = PICO // 10**6
LIGHT, HEAVY = 20 + 2 * 10, 10 * (20 + 2 * 10)
"""What a call of 20 and 10 tokens costs there, in millionths."""
DEAR, CHEAP = PriceTable(input="10", output="20"), PriceTable(input="1", output="2")


def config(folder: Path) -> Config:
    def section(price: PriceTable | None) -> UpstreamSection:
        return UpstreamSection(
            kind="rehearsal", model="m", price=price, retries=1, unpriced="allow", slots=Slots(online=4, batch=4)
        )

    return Config(
        **kept_in(folder),
        upstream={"light": section(CHEAP), "heavy": section(DEAR), "free": section(None)},
        route={"auto": RouteSection(light="light", heavy="heavy")},
    )


def rehearsal(name: str, faults: str = "") -> Rehearsal:
    return Rehearsal(name, Script(0, 0, "one two", 20, 10, faults=read_faults(faults) if faults else None))


async def opened(folder: Path, faults: str = "") -> Kernel:
    return await opened_as(config(folder), faults)


async def opened_as(loaded: Config, faults: str = "") -> Kernel:
    models = {"light": rehearsal("light", faults), "heavy": rehearsal("heavy"), "free": rehearsal("free")}
    return await Kernel.open(loaded, models=dict(models))


def request(
    upstream: str = "light", route: str = "auto", *, key: str = "", tenant: str = "t", run: str = ""
) -> Request:
    origin = Origin(tenant, workflow="w", agent="a", key=key, run=run)
    lane = Lane.BATCH if run else Lane.ONLINE
    return Request(origin, lane, Route(route, (upstream,), "test"), ModelCall((Message("user", "hello"),), "", 100))


async def call(kernel: Kernel, asked: Request, status: Status = Status.OK) -> str:
    async with kernel.door.step(asked) as answer:
        await answer.whole()
        answer.status = status
    await answer.durable()
    return answer.step


def told(kernel: Kernel, *by: str, **options: Any) -> list[Json]:
    return [row.fields() for row in economics.report(kernel.store, "USD", by, **options).rows]


def overall(kernel: Kernel) -> Json:
    (row,) = told(kernel)
    return row


def money(millionths: int) -> str:
    return decimal_string(millionths * MILLIONTH)


# ── what a report tells ──


async def test_what_a_heavy_upstream_paid_by_time_would_have_cost_is_unknown(tmp_path: Path) -> None:
    loaded = config(tmp_path)
    by_time = {"price": PriceTable(accelerator_second="1"), "accelerators": 1}
    heavy = UpstreamSection.model_validate(loaded.upstream["heavy"].model_dump(exclude_unset=True) | by_time)
    kernel = await opened_as(loaded.model_copy(update={"upstream": {**loaded.upstream, "heavy": heavy}}))
    try:
        await call(kernel, request())
        await call(kernel, request("heavy"))
        assert overall(kernel)["saved"]["router"] is None
    finally:
        await kernel.aclose()


@pytest.mark.usefixtures("each_store")
async def test_whatever_becomes_of_a_call_is_told_with_what_it_cost(tmp_path: Path) -> None:
    kernel = await opened(tmp_path, faults="3rd: 503; 5th: cut after 3")
    try:
        paid = await call(kernel, request())
        await call(kernel, request(), Status.REFUSED)
        await call(kernel, request())  # its first attempt fails and costs nothing, its second is the fourth request
        with pytest.raises(UpstreamError):
            await call(kernel, request())  # cut off in the middle
        await call(kernel, request("heavy"))
        saved = LIGHT * MILLIONTH
        await kernel.store.write(
            lambda tx: kernel.door.reuse(tx, request(), of_step=paid, output_digest="0", saved_pico=saved)
        )
        row, steps = overall(kernel), kernel.store.all("steps_since", count=100)
        cut = next(step["cost_pico"] for step in steps if step["status"] == "failed" and step["cost_pico"])
        assert 0 < cut < LIGHT * MILLIONTH
        total = (3 * LIGHT + HEAVY) * MILLIONTH + cut
        assert (row["cost"], row["calls"], row["reused"]) == (decimal_string(total), 6, 1)
        assert (row["accepted"], row["cost_per_accepted"]) == (3, decimal_string(total // 3))
        assert row["retries"] == {"calls": 1, "cost": money(LIGHT)}
        assert row["refusals"] == {"calls": 1, "cost": money(LIGHT)}
        assert row["waste"] == {"calls": 2, "cost": decimal_string(cut), "in_doubt": "0.00"}
        assert row["saved"]["memo"] == money(LIGHT)
        assert row["saved"]["router"] == decimal_string(3 * (HEAVY - LIGHT) * MILLIONTH + 9 * cut)
        assert (row["saved"]["packing"], row["unpriced"], row["items"]) == (None, 0, 0)
        assert ledger.verify(kernel.store).ok
    finally:
        await kernel.aclose()


@pytest.mark.usefixtures("each_store")
async def test_what_nobody_knows_is_null_and_not_nothing(tmp_path: Path) -> None:
    kernel = await opened(tmp_path)
    try:
        await call(kernel, request("free", "free"))
        assert [(row["cost"], row["unpriced"], row["cost_per_accepted"]) for row in told(kernel, "upstream")] == [
            (None, 1, None)
        ]
        await call(kernel, request("light", "light"))
        rows = {row["key"]: row for row in told(kernel, "upstream")}
        assert (rows["free"]["cost"], rows["light"]["cost"]) == (None, money(LIGHT))
        assert rows["light"]["saved"]["router"] is None  # that route has no heavy upstream to compare with
        assert (overall(kernel)["cost"], overall(kernel)["unpriced"]) == (money(LIGHT), 1)
        assert rows["light"]["items"] is None  # an item is no upstream's
        await kernel.store.write(lambda tx: kernel.door.reuse(tx, request(), of_step="0", output_digest="0"))
        assert overall(kernel)["cost"] == money(
            LIGHT
        )  # what a memo without a price saved is unknown, not what was paid
    finally:
        await kernel.aclose()


@pytest.mark.usefixtures("each_store")
async def test_by_whatever_is_asked_the_rows_come_to_the_ledgers_total(tmp_path: Path) -> None:
    kernel = await opened(tmp_path)
    try:
        for number in range(12):
            run = f"r{number % 3}" if number % 2 else ""
            asked = request(("light", "heavy")[number % 2], key=f"k{number % 2}", tenant=f"t{number % 4}", run=run)
            await call(kernel, asked)
        await call(kernel, request(run="r9"))
        entries = sum(step["cost_pico"] for step in kernel.store.all("steps_since", count=100))
        in_runs = sum(step["cost_pico"] for step in kernel.store.all("steps_since", count=100) if step["run"])
        for by in [
            (),
            *((name,) for name in DIMENSIONS),
            ("workflow", "agent", "day"),
            ("run", "upstream"),
            DIMENSIONS,
        ]:
            fields = economics.report(kernel.store, "USD", by).fields()
            amounts = [Decimal(row["cost"]) for row in fields["rows"]]  # type: ignore[attr-defined]
            expected = in_runs if "run" in by else entries
            assert sum(amounts) == Decimal(str(fields["total"])) == Decimal(expected) / PICO, by
            assert amounts == sorted(amounts, reverse=True)
        assert sum(row["cost_pico"] for row in economics.charges(kernel.store)) == entries
        assert [row["key"] for row in told(kernel, "run", "upstream")][-1] == "r9/light"
        (first, second) = told(kernel, "key")[:2]
        assert {first["api_key"], second["api_key"]} <= {"k0", "k1", ""}
        said, cut = (economics.report(kernel.store, "USD", ("tenant",), most=most) for most in (5, 2))
        assert (len(cut.rows), cut.has_more, cut.total.cost) == (2, True, said.total.cost)
        assert economics.report(kernel.store, "USD", ("tenant",), tenant="t1").fields()["total"] == money(3 * HEAVY)
        with pytest.raises(UsageError, match="costs are not told by 'colour'"):
            told(kernel, "colour")
    finally:
        await kernel.aclose()


async def test_a_report_is_of_the_days_that_are_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel, now, day_us = await opened(tmp_path), ledger.now_us(), 86_400_000_000
    try:
        for ago in (8, 7, 1, 0):
            monkeypatch.setattr(ledger, "now_us", lambda ago=ago: now - ago * day_us)
            await call(kernel, request(run=f"r{ago}"))
        today = str(economics.period("1d", None).since)
        assert len(told(kernel, "day", days=economics.period("2d", None))) == 2
        assert len(told(kernel, "run", days=economics.period("8d", None))) == 3
        assert len(told(kernel, "day", days=economics.period("8d", today))) == 3
        assert [row["key"] for row in told(kernel, "day", days=Days(today, today))] == [today]
        assert told(kernel, "day", days=economics.period(None, "2020-01-01")) == []
        with pytest.raises(UsageError, match="since 2020-01-02 is after until 2020-01-01"):
            economics.period("2020-01-02", "2020-01-01")
        assert economics.report(kernel.store, "USD", (), Days("", "2020-01-01")).fields()["total"] == "0.00"
    finally:
        await kernel.aclose()


# ── items ──


class Answer(BaseModel):
    text: str


@agent(returns=Answer, repairs=0)
def reader(document: Document) -> Prompt:
    return Prompt(system="Read.", user=document.text, max_tokens=50)


@workflow(version="1")
async def reading(document: Document, do: Item) -> Answer:
    return await do(reader, document)


async def test_an_item_costs_what_its_run_cost_for_each_that_is_done() -> None:
    def reply(asked: ModelCall) -> str:
        return "nothing" if "bad" in asked.messages[-1].content else '{"text": "read"}'

    async with Kit({"reader": reply}) as platform:
        documents = [Document(f"d{n}", "bad" if n == 3 else f"good {n}") for n in range(4)]
        summary = await platform.run(reading, documents)
        (row,) = told(platform.kernel, "run")
        assert (row["key"], row["items"], row["quarantined"], row["accepted"]) == (summary.run, 3, 1, 3)
        assert Decimal(row["cost_per_item"]) * PICO == Decimal(row["cost"]) * PICO // 3  # the refused one's cost, too
        assert row["cost"] == summary.cost
        assert row["refusals"]["calls"] == 1
        (by_flow,) = told(platform.kernel, "workflow")
        assert (by_flow["key"], by_flow["items"], by_flow["cost"]) == ("reading", 3, row["cost"])
        assert [row["items"] for row in told(platform.kernel, "agent")] == [None]
        again = await platform.run(reading, documents[:3])
        rows = {row["key"]: row for row in told(platform.kernel, "run")}
        assert (rows[again.run]["cost"], rows[again.run]["items"], rows[again.run]["reused"]) == ("0.00", 3, 3)
        assert Decimal(rows[again.run]["saved"]["memo"]) == Decimal(row["cost"]) - Decimal(row["refusals"]["cost"])
        assert platform.verify().ok


# ── what older releases left ──


def test_what_an_older_release_did_not_keep_is_unknown_and_its_money_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "old.db"
    with closing(sqlite3.connect(path)) as database:
        for version in (1, 2, 3):
            database.executescript(script(version))
        database.executescript("""
            PRAGMA user_version = 3;
            INSERT INTO day_total
            VALUES ('2026-01-01', 't', '', 'w', 'a', 'batch', 'u', 'm', 3, 1, 1, 1, 50, 5, 700, 9);
            INSERT INTO run_total VALUES ('r', 'a', 3, 1, 1, 1, 50, 5, 700, 9);
        """)
    store = open_store(f"sqlite:{path}")
    try:
        for by in ("workflow", "run"):
            (figures,) = economics.report(store, "USD", (by,)).rows
            row: Json = figures.fields()
            assert (row["cost"], row["calls"], row["tokens"]) == ("0.0000000007", 3, 55)
            assert row["refusals"] == {"calls": 1, "cost": None}
            assert {row["waste"]["cost"], row["saved"]["memo"], row["accepted"], row["items"]} == {None}
        (charge,) = economics.charges(store)
        assert (charge["kind"], charge["quantity"], charge["unit_pico"], charge["cost_pico"]) == ("tokens", 55, 0, 700)
    finally:
        store.close()


# ── the commands ──


def command(folder: Path, monkeypatch: pytest.MonkeyPatch, *arguments: str, code: int = 0) -> str:
    monkeypatch.chdir(folder)
    with redirect_stdout(io.StringIO()) as printed, pytest.raises(SystemExit) as ended:
        main(list(arguments))
    assert ended.value.code == code, printed.getvalue()
    return printed.getvalue()


async def fill(folder: Path) -> int:
    settings = config(folder)
    (folder / "twolane.toml").write_text(f'store = "{settings.store}"\n')
    kernel = await opened(folder)
    try:
        for number in range(5):
            await call(kernel, request(("light", "heavy")[number % 2], key="ci", tenant=f"t{number % 2}"))
        return sum(row["cost_pico"] for row in kernel.store.all("steps_since", count=100))
    finally:
        await kernel.aclose()


def test_the_commands_tell_the_same_as_the_ledger(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    total = asyncio.run(fill(tmp_path))
    said = json.loads(command(tmp_path, monkeypatch, "cost", "report", "--by", "model,tenant", "--by", "key", "--json"))
    assert (said["currency"], said["total"], said["by"]) == ("USD", decimal_string(total), ["model", "tenant", "key"])
    assert [(row["key"], row["calls"], row["tokens"]) for row in said["rows"]] == [
        ("m/t1/ci", 2, 60),
        ("m/t0/ci", 3, 90),
    ]
    assert not [value for value in _values(said) if isinstance(value, float)]
    shown = command(tmp_path, monkeypatch, "cost", "report", "--since", "7d")
    assert decimal_string(total) in shown
    assert "(estimated)" in shown
    out = tmp_path / "costs.csv"
    written = json.loads(
        command(tmp_path, monkeypatch, "cost", "export", "--format", "focus", "--out", str(out), "--json")
    )
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert sum(Decimal(row["BilledCost"]) for row in rows) == Decimal(total) / PICO == Decimal(written["total"])
    assert {(row["SkuMeter"], row["ConsumedQuantity"], row["SubAccountId"]) for row in rows} == {
        ("input", "60", "t0"), ("output", "30", "t0"), ("input", "40", "t1"), ("output", "20", "t1")
    }  # fmt: skip
    assert len(rows) == written["rows"]
    assert command(tmp_path, monkeypatch, "cost", "export") == out.read_text()
    assert "4 rows" in capsys.readouterr().err
    command(tmp_path, monkeypatch, "cost", "export", "--json", code=2)
    command(tmp_path, monkeypatch, "cost", "export", "--out", "nowhere/costs.csv", code=2)
    assert "cannot be written: No such file" in capsys.readouterr().err
    by_agent = command(tmp_path, monkeypatch, "cost", "report", "--by", "tenant,run,agent")
    assert by_agent.startswith("costs of runs from the beginning")
    command(tmp_path, monkeypatch, "cost", "report", "--since", "yesterday", code=2)
    command(tmp_path, monkeypatch, "cost", "report", "--by", "colour", code=2)
    assert "costs are not told by 'colour'" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["costs.csv", "costs.parquet"])
def test_an_export_that_fails_midway_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    asyncio.run(fill(tmp_path))
    out, elsewhere = tmp_path / name, tmp_path / "folder"
    elsewhere.mkdir()
    out.symlink_to(elsewhere / name)
    out.write_text("of last month")
    out.chmod(0o600)

    def write_some(path: Path, rows: Iterable[Json]) -> None:  # as pyarrow does, which need not be there
        with path.open("w") as file:
            file.writelines(row["BilledCost"] for row in rows)

    row_of, rows_left = focus.row_of, [2]

    def full(*charge: Any, **more: Any) -> Json:  # Any: handed on as they come
        rows_left[0] -= 1
        if rows_left[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return row_of(*charge, **more)

    monkeypatch.setattr(focus, "row_of", full)
    monkeypatch.setattr("twolane.cli.cost._write_parquet", write_some)
    command(tmp_path, monkeypatch, "cost", "export", "--out", name, code=2)
    assert "No space left on device" in capsys.readouterr().err
    assert out.read_text() == "of last month"
    assert os.listdir(elsewhere) == [name]
    rows_left[0] = 100
    command(tmp_path, monkeypatch, "cost", "export", "--out", name)
    assert out.read_text() != "of last month"
    assert (out.is_symlink(), out.stat().st_mode & 0o777) == (True, 0o600)


def _values(told: object) -> list[object]:
    match told:
        case dict():
            return [value for each in told.values() for value in _values(each)]
        case list():
            return [value for each in told for value in _values(each)]
    return [told]


def test_a_parquet_file_holds_the_same_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="the extra [parquet] is not installed")
    total = asyncio.run(fill(tmp_path))
    command(tmp_path, monkeypatch, "cost", "export", "--out", str(tmp_path / "costs.parquet"))
    command(tmp_path, monkeypatch, "cost", "export", "--out", str(tmp_path / "costs.csv"))
    table = parquet.read_table(tmp_path / "costs.parquet")
    assert sum(table.column("BilledCost").to_pylist()) == Decimal(total) / PICO
    assert str(table.schema.field("ChargePeriodStart").type) == "timestamp[ms, tz=UTC]"
    assert table.column("ChargeClass").null_count == table.num_rows
    with (tmp_path / "costs.csv").open(newline="") as file:
        assert [row["SkuPriceId"] for row in csv.DictReader(file)] == table.column("SkuPriceId").to_pylist()


def test_without_the_extra_a_parquet_file_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asyncio.run(fill(tmp_path))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    command(tmp_path, monkeypatch, "cost", "export", "--out", "costs.parquet", code=2)
    assert "twolane[parquet]" in capsys.readouterr().err
    assert not (tmp_path / "costs.parquet").exists()
