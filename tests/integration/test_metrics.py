"""What Prometheus reads at /metrics, and what dashboard and alert rules make of it."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import orjson
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families
from tests.integration.test_api import Gateway, gateway

from twolane import telemetry
from twolane.config import Config
from twolane.domain.money import PICO
from twolane.errors import ConfigError
from twolane.kernel import Kernel, ledger
from twolane.kernel.rollups import count
from twolane.online.auth import MONITOR, Gate, create_key
from twolane.telemetry import BOUNDS_US, Histogram

pytestmark = pytest.mark.timeout(40)

CHAT = {"model": "auto", "messages": [{"role": "user", "content": "count"}]}
Page = dict[str, dict[tuple[str, ...], float]]
"""Samples by name, then by the values of their labels in the order of their names."""


def read(text: str) -> Page:
    found: Page = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = tuple(value for _, value in sorted(sample.labels.items()))
            found.setdefault(sample.name, {})[labels] = sample.value
    return found


async def page(gate: Gateway, key: str = "") -> Page:
    gate.kernel.metrics._known.clear()  # asked within a second, the store is not looked at again
    headers = {"authorization": f"Bearer {key}"} if key else {}
    async with gate.http.get(f"{gate.url}/metrics", headers=headers) as response:
        assert response.status == 200, await response.text()
        assert response.content_type == "text/plain"
        return read(await response.text())


async def chat(gate: Gateway, key: str = "") -> int:
    headers = {"authorization": f"Bearer {key}"} if key else {}
    async with gate.http.post(f"{gate.url}/v1/chat/completions", json=CHAT, headers=headers) as response:
        await response.read()
        return response.status


async def test_the_page_says_what_happened_and_what_the_ledger_says(tmp_path: Path) -> None:
    async with gateway(tmp_path) as gate:
        kernel = gate.kernel
        assert await chat(gate) == 200
        await kernel.treasury.set_budget("tenant:default", period="day", pico=16_000_000, tokens=None, actor="t")
        assert await chat(gate) == 429
        await kernel.switches.trip("tenant:default", cause="fire", actor="t")
        assert await chat(gate) == 503
        told = await page(gate)
    here = ("online", "main")
    assert told["twolane_steps_total"] == {("online", "ok", "main"): 1}
    assert told["twolane_requests_total"] == {
        (outcome, "/v1/chat/completions"): 1 for outcome in ("ok", "insufficient_quota", "switch_tripped")
    }
    for name in ("twolane_time_to_first_token_seconds", "twolane_queue_seconds"):
        assert told[f"{name}_count"] == {here: 1}
        assert told[f"{name}_bucket"]["online", "+Inf", "main"] == 1
    steps = {("online", outcome, "main"): float(outcome == "ok") for outcome in ("ok", "refused", "failed", "reused")}
    assert told["twolane_store_steps_total"] == steps
    assert told["twolane_store_tokens_total"] == {("input", *here): 10, ("output", *here): 2}
    assert told["twolane_store_cost_approx_total"] == {("USD", *here): 0.000014}
    assert told["twolane_store_tenant_cost_approx_total"] == {("USD", "default"): 0.000014}
    budget = ("money", "day", "tenant:default")
    assert told["twolane_budget_limit_approx"] == {budget: 0.000016}
    assert told["twolane_budget_spent_approx"] == {budget: 0.000014}
    assert told["twolane_budget_held_approx"] == {budget: 0}
    assert told["twolane_switch_tripped"] == {("tenant:default",): 1}
    assert told["twolane_runs"][("failed",)] == 0, "the first one that fails is an increase"
    kinds = dict.fromkeys(("all", "tenant", "key", "workflow", "run", "item", "upstream"), 0)
    assert told["twolane_switches_tripped"] == {(kind,): count for kind, count in (kinds | {"tenant": 1}).items()}
    assert told["twolane_store_slots_configured"] == {
        ("online", "main"): 3, ("batch", "main"): 2, ("online", "other"): 8, ("batch", "other"): 4,
    }  # fmt: skip
    assert told["twolane_slots_free"][here] == told["twolane_slots_held"][here] == 3
    assert told["twolane_breaker"][("closed", "main")] == 1
    assert told["twolane_ledger_entries_total"] == {(): 3}  # the step, the budget, the switch
    assert told["twolane_commit_seconds_count"][()] > 0
    assert told["twolane_processes"] == {("any",): 1, ("worker",): 0}
    assert told["process_resident_memory_bytes"][()] > 1e6


async def test_a_key_reads_of_its_tenant_and_the_scrape_key_of_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with gateway(tmp_path) as gate:
        await page(gate)  # before the first key: whoever sits at this machine
        mine, theirs = await create_key(gate.kernel, "legal", "ci"), await create_key(gate.kernel, "sales", "ci")
        for scope in ("tenant:legal", "key:sales/ci", "workflow:sales/audit", "all"):
            await gate.kernel.treasury.set_budget(scope, period="total", pico=PICO, tokens=10**6, actor="t")
        await gate.kernel.switches.trip("tenant:sales", cause="why", actor="t")
        assert (await chat(gate, mine), await chat(gate, mine)) == (200, 200)
        for key in ("", "tl-wrong", "scrape"):
            await gate.get("/metrics", key, status=401)
        told = await page(gate, mine)
        assert "sales" not in str(told)
        assert set(told["twolane_budget_limit_approx"]) == {
            *((dimension, "total", "tenant:legal") for dimension in ("money", "tokens")),
            ("money", "day", "key:legal/ci"),  # a new key's own
        }
        assert told["twolane_store_steps_total"][("online", "ok", "main")] == 2
        assert not {"twolane_requests_total", "twolane_steps_total", "process_resident_memory_bytes"} & told.keys()
        assert "legal" not in str(await page(gate, theirs))

        monkeypatch.setenv("SCRAPE", "scrape")
        section = gate.kernel.config.telemetry.model_copy(update={"scrape_key": "env:SCRAPE"})
        config = gate.kernel.config.model_copy(update={"telemetry": section})
        door = Gate(_StandIn(gate.kernel, config))  # type: ignore[arg-type]  # what a gate looks at of a kernel
        shown = {"headers": [(b"authorization", b"Bearer scrape")], "client": ("10.0.0.9", 1), "scheme": "http"}
        grant = door.admit_monitor(shown)
        assert grant is MONITOR
        everything, _ = await gate.kernel.metrics.page(None, "")
        assert {scope for *_, scope in read(everything.decode())["twolane_budget_limit_approx"]} == {
            "tenant:legal", "key:sales/ci", "key:legal/ci", "workflow:sales/audit", "all",
        }  # fmt: skip
        with pytest.raises(Exception, match="key"):
            door.admit(shown)  # it opens nothing else
        monkeypatch.delenv("SCRAPE")
        with pytest.raises(ConfigError, match="SCRAPE is not set"):
            Gate(_StandIn(gate.kernel, config))  # type: ignore[arg-type]  # see above


class _StandIn:
    """A kernel with another configuration."""

    def __init__(self, kernel: Kernel, config: Config) -> None:
        self.config, self.store, self.vault = config, kernel.store, kernel.vault


async def test_no_more_budgets_and_switches_are_named_than_a_hundred_and_the_fullest_come_first(tmp_path: Path) -> None:
    async with gateway(tmp_path) as gate:
        kernel = gate.kernel
        for number in range(130):
            await kernel.treasury.set_budget(f"tenant:t{number}", period="total", pico=PICO, tokens=None, actor="t")
            await kernel.switches.trip(f"run:r{number}", cause="why", actor="t")
        await kernel.treasury.set_budget("run:r1", period="total", pico=1, tokens=None, actor="t")
        await kernel.switches.trip("item:r1/name", cause="why", actor="t")
        await kernel.treasury.set_budget("tenant:default", period="total", pico=100_000_000, tokens=None, actor="t")
        assert await chat(gate) == 200
        told = await page(gate)
    assert len(told["twolane_budget_limit_approx"]) == len(told["twolane_switch_tripped"]) == 100
    assert ("money", "total", "tenant:default") in told["twolane_budget_limit_approx"]
    assert told["twolane_switches_tripped"][("run",)] == 130
    assert "item:" not in str(told["twolane_switch_tripped"])


async def test_sums_over_days_are_those_of_the_roll_ups_wherever_the_clock_goes(
    each_store: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.stores import kept_in

    kernel = await Kernel.open(Config.model_validate(kept_in(tmp_path)))
    try:
        written = 0
        day_us, start_us = 86_400_000_000, 1_800_000_000_000_000
        for day in (0, 0, 1, 2, 5, 4, 1, 6, 6, 30):  # set back twice
            monkeypatch.setattr(ledger, "now_us", lambda day=day: start_us + day * day_us)
            for late in (0, 1):  # a step that began yesterday is written today
                fields = {"status": "ok", "at_us": ledger.now_us() - late * day_us, "tenant": "a", "lane": "online"}
                fields |= {"upstream": "main", "input_tokens": 3, "output_tokens": 2}
                await kernel.store.write(lambda tx, f=fields: count(tx, f, pico=7))  # type: ignore[misc]
                written += 1
            told = kernel.metrics._kept(None)
            assert told[telemetry.STORE_STEPS]["online", "main", "ok"] == written
            assert told[telemetry.STORE_TOKENS]["online", "main", "input"] == 3 * written
            assert told[telemetry.TENANT_COST]["a", "USD"] == pytest.approx(7 * written / PICO)
    finally:
        monkeypatch.undo()
        await kernel.aclose()


async def test_a_scraper_gets_the_format_it_asks_for(tmp_path: Path) -> None:
    async with gateway(tmp_path) as gate:
        await chat(gate)
        plain = await page(gate)
        headers = {"accept": "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.3"}
        async with gate.http.get(f"{gate.url}/metrics", headers=headers) as response:
            assert response.content_type == "application/openmetrics-text"
            text = await response.text()
    names = {sample.name for family in openmetrics(text) for sample in family.samples}  # type: ignore[no-untyped-call]
    assert names == plain.keys()


def test_a_duration_is_counted_in_the_first_bucket_that_holds_it() -> None:
    histogram = Histogram()
    for us in (0, 1_000, 1_001, BOUNDS_US[-1], BOUNDS_US[-1] + 1):
        histogram.add(us)
    assert [histogram.counts[at] for at in (0, 1, -2, -1)] == [2, 1, 1, 1]
    text = telemetry.render({telemetry.COMMIT: {(): histogram}}, "", has_process=False)[0].decode()
    buckets = read(text)["twolane_commit_seconds_bucket"]
    assert [buckets[(bound,)] for bound in ("0.001", "0.002", "65.536", "+Inf")] == [2, 3, 4, 5]
    assert read(text)["twolane_commit_seconds_sum"][()] == pytest.approx(histogram.sum_us / 1e6)


# ── deploy/ ──


@pytest.fixture
async def full_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A page with every metric."""
    monkeypatch.setattr(Kernel, "drifted", 0, raising=False)
    async with gateway(tmp_path) as gate:
        await chat(gate)
        await gate.kernel.treasury.set_budget("all", period="day", pico=PICO, tokens=None, actor="t")
        await chat(gate)
        await gate.kernel.switches.trip("all", cause="fire", actor="t")
        gate.kernel.metrics._known.clear()
        body, _ = await gate.kernel.metrics.page(None, "")
        return body.decode()


def test_dashboard_and_rules_name_what_is_there(full_page: str, repository: Path) -> None:
    families = list(text_string_to_metric_families(full_page))
    there = {sample.name for family in families for sample in family.samples}
    labels = {each.name: set(each.labels) for each in telemetry.METRICS}
    told = {family.name for family in families}
    for file in ("grafana.json", "rules.yml"):
        text = (repository / "deploy" / file).read_text()
        named = set(re.findall(r"\b(?:twolane|process)_\w+", text)) - {"twolane_store_"}
        assert len(named) > 10
        assert named <= there | told, file
        for name, told_apart in re.findall(r"\b(twolane_\w+)\{([^{}]*)\}", text):
            assert set(re.findall(r"(\w+)[=!]", told_apart)) <= labels[re.sub("_total$|_bucket$", "", name)], name
    assert {each.name for each in telemetry.METRICS} <= told


def test_prometheus_takes_the_page_and_every_expression_and_alerts_as_told(
    full_page: str, repository: Path, tmp_path: Path
) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("needs promtool (Debian: apt install prometheus)")
    deploy = tmp_path / "deploy"
    shutil.copytree(repository / "deploy", deploy)
    shutil.copy(repository / "tests" / "integration" / "alerts.yml", deploy)
    config = (deploy / "prometheus.yml").read_text()
    (deploy / "prometheus.yml").write_text(config.replace("/etc/prometheus/twolane.key", str(tmp_path / "key")))
    (tmp_path / "key").write_text("secret")
    asked = [target["expr"] for panel in panels(repository) for target in panel.get("targets", ())]
    rules = [{"record": f"panel:{at}", "expr": e.replace("$__rate_interval", "1m")} for at, e in enumerate(asked)]
    (deploy / "panels.json").write_bytes(orjson.dumps({"groups": [{"name": "panels", "rules": rules}]}))
    for command, given in (
        ("check config prometheus.yml", ""),
        ("check rules rules.yml panels.json", ""),
        ("check metrics", full_page),
        ("test rules alerts.yml", ""),
    ):
        done = subprocess.run(
            [promtool, *command.split()], cwd=deploy, input=given, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr


def panels(repository: Path) -> list[dict[str, Any]]:  # Any: JSON
    found: list[dict[str, Any]] = orjson.loads((repository / "deploy" / "grafana.json").read_bytes())["panels"]
    assert len({panel["id"] for panel in found}) == len(found) > 20
    return found
