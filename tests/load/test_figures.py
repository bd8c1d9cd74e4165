"""A short slice of every figure, with the bars that must not be missed on any machine. The figures themselves, with
their conditions, are in docs/benchmarks.md."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from tests.load import costs, figures, guards, isolation, kill, long_run, money, online, plan, plots, steps, svg
from tests.stores import ADAPTERS, missing


def test_the_core_installs_lightly() -> None:
    weight = figures.install()
    assert weight["distributions"] <= 60
    assert weight["megabytes"] <= 200


def test_the_ledger_says_to_the_picounit_what_the_upstream_billed(tmp_path: Path) -> None:
    told = money.bill(tmp_path, f"sqlite:{tmp_path / 'bill.db'}", 300)
    assert told["ends"].keys() == {"ok", "BudgetExceeded", "UpstreamError"}
    assert told["ledger_pico"] == told["billed_pico"] == told["budget_pico"]
    assert (told["ledger_ok"], told["drift"]) == (True, [])


@pytest.mark.long
@pytest.mark.timeout(300)
def test_nothing_is_overspent_where_others_overspend() -> None:
    for row in money.money(10_000)["cases"]:
        assert (row["overspent_pico"], row["drift"]) == (0, []), row
        assert row["used"] >= 0.98, row


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


async def test_reports_hold_what_the_steps_cost_and_take_no_time(tmp_path: Path) -> None:
    told = await costs.measure(5_000, 100, f"sqlite:{tmp_path / 'costs.db'}")
    assert told["slowest"] <= 1_000


def test_a_durable_step_takes_less_processor_time_than_an_engines_that_records_less() -> None:
    ours, theirs = (steps.one_round(name, 30, 16, engines=None, before=None) for name in ("twolane", "dbos"))
    assert ours["cpu_s"] < theirs["cpu_s"], (ours, theirs)


def test_an_engine_that_is_not_there_says_so() -> None:
    told = steps.one_round("langgraph", 1, 1, engines="/nowhere", before=None)
    assert "/nowhere" in told["problem"]
    assert "not measured" in steps.table({"engines": [{"name": "langgraph", "concurrency": 1, **told}]})


def test_a_run_of_many_items_is_recorded_whole_and_holds_nothing_at_its_end() -> None:
    run = long_run.long_run(60, 16, 0.02)
    assert (run["status"], run["items"]["done"], run["calls"]) == ("done", 60, 240)
    assert run["ledger_ok"]
    assert run["held_at_the_end"] == 0
    assert run["peak_mb"] <= 300


def test_runaways_are_stopped_within_eight_steps_or_half_a_unit() -> None:
    names = (
        "price x 10, equal",
        "one sentence",
        "nearly the same",
        "ping-pong of two",
        "one tool",
        "quotes",
        "online: e",
    )
    told = guards.runaways([scene for scene in guards.SCENES if scene.name.startswith(names)])
    assert told["scenes"] == 8
    assert [each for each in told["each"] if not each["stopped"]] == []


@pytest.mark.long
def test_every_runaway_is_stopped_within_eight_steps_or_half_a_unit() -> None:
    told = guards.runaways()
    assert told["scenes"] >= 20
    assert [each for each in told["each"] if not each["stopped"]] == []


def test_fewer_than_one_in_ten_thousand_normal_steps_is_paused() -> None:
    told = guards.normal(3_000, 1)
    assert told["verdicts"] * 10_000 < told["steps"]


def test_prose_does_not_repeat_itself(shared: Path) -> None:
    assert guards.streams(20)["verdicts"] == 0


def test_a_guard_takes_little_of_a_step() -> None:
    figure = guards.cost(10_000)
    assert figure["online_us_a_step"] <= 30, "10 where nothing else runs"


@pytest.mark.parametrize("kind", ADAPTERS)
def test_a_switch_closes_what_four_processes_run_and_nothing_is_generated_a_second_later(
    shared: Path, kind: str
) -> None:
    if kind == "postgres" and missing():
        pytest.skip(missing())
    told = kill.kill(60, 1, kind=kind, processes=(4,))
    (four,) = told["each"]
    assert four["tokens_generated_from_1_s_after"] == 0
    assert four["steps_reported"] == [60]
    assert four["closed_ms"]["p99"] <= 1_000, "100 where nothing else runs"
    assert told["survives_kill_9"]


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


# ── the online lane: one slice of each experiment of online.py, beside the bench kit ──


@pytest.fixture(scope="session")
def slice_of(shared: Path) -> Callable[[str], dict[str, Any]]:
    """A short slice of an experiment, by name."""
    kit = shared / "bench"
    if not (kit / "mock_upstream.py").is_file():
        pytest.skip("needs the bench kit in ../shared/bench, which is not part of the repository")
    return lambda name: online.measure(name, plan.Plan(kit, "slice"))


Slice = Callable[[str], dict[str, Any]]  # Any: JSON


def test_the_gateway_adds_little_to_the_first_token(slice_of: Slice) -> None:
    run = slice_of("ttft")
    gateway = run["targets"]["twolane"]
    assert gateway["errors"] == 0
    assert gateway["requests"] >= 10
    assert gateway["added_ttft_ms"]["p50"] <= 100
    assert run["notes"] == [] or "nginx" in run["notes"][0]


def test_memory_hardly_moves_over_a_thousand_requests(slice_of: Slice) -> None:
    run = slice_of("memory")
    assert run["errors"] == 0
    assert run["max_mb"] <= 120
    assert run["notes"] == []
    assert not any(run["held_after"].values())


def test_what_a_client_leaves_is_cancelled_upstream_within_a_second(slice_of: Slice) -> None:
    run = slice_of("cancel")
    for moment, each in run["moments"].items():
        assert each["generations"] == each["cancelled_within_1_s"] == run["clients"], moment
        assert each["tokens_after_hangup"] == 0, moment
        assert each["nothing_held"], (moment, each["held_after"])
        assert each["notes"] == [], moment


def test_people_online_do_not_wait_for_a_batch_worker_of_another_process(slice_of: Slice) -> None:
    lanes = slice_of("isolation")["variants"]["lanes"]
    assert lanes["ttft_ms_beside_batch"]["errors"] == 0
    assert lanes["ratio"]["p50"] <= 1.5
    assert lanes["batch"]["most_in_flight"] <= isolation.LANE_SLOTS
    assert lanes["batch"]["slots_busy"] >= 0.5
    assert lanes["batch"]["failed"] == 0
    assert lanes["nothing_held"], lanes["held_after"]


def test_a_department_is_answered_or_refused_and_never_left_waiting(slice_of: Slice) -> None:
    run = slice_of("department")
    crowd = run["users"]["50"]
    assert crowd["errors"] == 0
    assert crowd["admitted_ttft_ms"]["n"] >= run["slots"]
    assert crowd["refused_after_ms"]["n"] == crowd["refusals_with_retry_after"]
    assert crowd["longest_without_a_word_ms"] <= run["deadline_ms"] + 2_000
    assert run["nothing_held"], run["held_after"]


@pytest.mark.long
def test_hundreds_of_streams_end_without_an_error(slice_of: Slice) -> None:
    run = slice_of("thousand")
    assert run["fast"]["errors"] == 0
    assert run["fast"]["most_at_once_upstream"] >= 100


@pytest.mark.long
def test_short_streams_pass_quickly(slice_of: Slice) -> None:
    run = slice_of("ceiling")
    assert run["targets"]["twolane"]["errors"] == 0
    assert run["targets"]["twolane"]["requests_per_second"] >= 100


@pytest.mark.long
def test_a_scarce_upstream_is_not_asked_for_more_than_it_gives(slice_of: Slice) -> None:
    run = slice_of("scarcity")
    assert run["errors"] == 0
    assert run["upstream_429"] == 0, "it takes sixty in a minute, and got fewer"
    assert run["ttft_ms_accepted"]["n"] >= 1
    assert run["nothing_held"], run["held_after"]


# ── what is drawn and written from the figures ──


@pytest.mark.parametrize("page", [plots.PAGE, plots.BUYERS], ids=lambda page: str(page.name))
def test_a_page_has_one_pair_of_marks_and_keeps_what_is_around_them(page: Path) -> None:
    text = page.read_text()
    assert (text.count(plots.BEGIN), text.count(plots.END)) == (1, 1)
    made = plots.between_marks(text, "new\n")
    assert made.partition(plots.BEGIN)[0] == text.partition(plots.BEGIN)[0]
    assert made.partition(plots.END)[2] == text.partition(plots.END)[2]
    assert plots.between_marks(made, "new\n") == made


def test_the_pages_show_the_figures_that_were_measured() -> None:
    figures = plots.load(plots.FIGURES)
    if not figures:
        pytest.skip("docs/figures holds no figures yet: python tests/load/online.py all")
    for page, text in plots.pages(figures).items():
        assert page.read_text() == text, "stale: python tests/load/plots.py"
    for name, draw in plots.PLOTS.items():
        picture = draw(figures)
        if picture is not None:
            assert (plots.FIGURES / f"{name}.svg").read_text() == picture.svg(), "stale: python tests/load/plots.py"


@pytest.mark.parametrize("low, high", [(0.0, 1.0), (-0.4, 0.31), (0.0, 250.0), (0.0, 100_000.0)])
def test_an_axis_has_a_few_round_ticks_inside_it(low: float, high: float) -> None:
    axis = svg.Axis(low, high, 0, 100)
    ticks = axis.ticks()
    assert 3 <= len(ticks) <= 9
    assert all(low - 1e-9 <= tick <= high + 1e-9 for tick in ticks)
    assert [axis.at(tick) for tick in ticks] == sorted(axis.at(tick) for tick in ticks)


def test_a_logarithmic_axis_gives_every_power_of_ten_the_same_room() -> None:
    axis = svg.Axis(1, 1000, 0, 300, is_log=True)
    assert [round(axis.at(value)) for value in (1, 10, 100, 1000, 9999)] == [0, 100, 200, 300, 300]


def test_a_picture_is_well_formed_and_escapes_what_it_writes() -> None:
    picture = svg.Picture(100, "a < b & c", "so")
    picture.dashed(0, 0, 1, 1)
    root = ElementTree.fromstring(picture.svg())
    assert root.findtext("{http://www.w3.org/2000/svg}title") == "a < b & c"
