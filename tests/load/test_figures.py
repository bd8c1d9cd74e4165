"""A short slice of every figure, with the bars that must not be missed on any machine. The figures themselves, with
their conditions, are in docs/benchmarks.md."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.load import figures


def test_the_core_installs_lightly() -> None:
    weight = figures.install()
    assert weight["distributions"] <= 60
    assert weight["megabytes"] <= 200


def test_help_is_quick_and_loads_nothing_heavy() -> None:
    shown = figures.help_()
    assert shown["heavy_modules_loaded"] == "[]"
    assert shown["milliseconds"] <= 200


def test_real_contracts_are_audited_in_little_memory_and_for_nothing_the_second_time(
    shared: Path, tmp_path: Path
) -> None:
    import gzip

    with gzip.open(shared / "data" / "contracts" / "contracts.jsonl.gz", "rb") as file:
        (tmp_path / "ten.jsonl").write_bytes(b"".join(file.readline() for _ in range(10)))
    audit = figures.contracts(str(tmp_path / "ten.jsonl"))
    assert audit["done"] + audit["quarantined"] == audit["contracts"] == 10
    assert audit["peak_megabytes"] <= 300
    assert audit["ledger_ok"]
    assert audit["calls_of_a_second_run"] == 0


@pytest.mark.long
def test_all_the_real_contracts_are_audited(shared: Path) -> None:
    audit = figures.contracts(str(shared / "data" / "contracts" / "contracts.jsonl.gz"))
    assert audit["done"] + audit["quarantined"] == audit["contracts"] == 120
    assert audit["peak_megabytes"] <= 300
    assert audit["ledger_ok"]


def test_durable_steps_are_all_recorded() -> None:
    run = figures.steps(1_000)
    assert run["ledger_ok"]
    assert run["entries"] == 2_000, "an intent and an end for each step"
    assert run["steps_per_second"] >= 100


def test_online_keeps_its_first_token_time_while_batch_fills_its_own_slots() -> None:
    lanes = figures.lanes(160)
    assert lanes["batch_slots_busy"] >= 0.8
    idle, beside = lanes["ttft_ms_idle"], lanes["ttft_ms_beside_batch"]
    assert beside["p50"] <= idle["p50"] * 1.5, "online waited for batch"


def test_the_gateway_stays_small() -> None:
    gateway = figures.serve(50)
    assert gateway["after_megabytes"] <= 120


def test_a_hold_is_taken_in_microseconds_and_the_books_agree() -> None:
    held = figures.reserve(3_000)
    assert held["drift"] == []
    assert held["in_the_store"] <= 300, "the rest was held in memory"
    assert held["in_memory_us"]["p50"] <= 200
