"""The built-in audit: the examples on the built-in model, real contracts, and any other upstream by one line."""

from __future__ import annotations

import asyncio
import csv
import gzip
import json
import socket
import sys
from collections.abc import AsyncIterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from twolane import ConfigError, Document, Platform, RunSummary
from twolane import config as configuration
from twolane.batch import run as runs
from twolane.domain.records import Message, ModelCall, ReplySchema, Usage
from twolane.flows.contract_audit import Report, audit, load_policy
from twolane.flows.questions import QUESTIONS
from twolane.knowledge.ingest import read_documents, read_sources
from twolane.models.rehearsal import instance_for
from twolane.models.sse import DONE, Chunks
from twolane.store import Row

pytestmark = pytest.mark.timeout(120)

REFUSED = {"23-forklift-lease-scan.pdf", "24-page-two-of-three.txt"}


def reports_of(summary: RunSummary) -> dict[str, dict[str, Any]]:  # Any: JSON
    read = [json.loads(path.read_text()) for path in Path(summary.reports).glob("*.json")]
    return {each["item"]: each["result"] for each in read}


def check_quotes(reports: dict[str, dict[str, Any]], documents: dict[str, Document]) -> int:
    """Every quote stands in its document, at its offsets; how many there are."""
    quotes = 0
    for name, report in reports.items():
        Report.model_validate(report)
        assert [fact["question"] for fact in report["facts"]] == [question.id for question in QUESTIONS]
        for fact in report["facts"]:
            quote = fact["quote"]
            if quote is None:
                assert fact["is_supported"] is None
                continue
            quotes += 1
            assert quote["document"] == name
            assert documents[name].text[quote["start"] : quote["end"]] == quote["text"]
        for finding in report["findings"]:
            known = {fact["quote"]["text"] for fact in report["facts"] if fact["quote"]}
            assert finding["quote"] is None or finding["quote"] in known
    return quotes


@pytest.fixture(scope="module")
def examples(repository: Path) -> Path:
    return repository / "examples" / "contracts"


@pytest.fixture(scope="module")
def documents(examples: Path) -> dict[str, Document]:
    return {source.id: source.document for source in read_sources([str(examples)]) if source.document is not None}


async def open_in(folder: Path, text: str = "") -> Platform:
    path = folder / "twolane.toml"
    path.write_text(text)
    return await Platform.open(configuration.load(path))


class Audited:
    """The examples, audited once for all tests that only look."""

    def __init__(self, summary: RunSummary, quarantined: dict[str, list[str]]) -> None:
        self.summary, self.quarantined, self.reports = summary, quarantined, reports_of(summary)


def told(platform: Platform, row: Row) -> str:
    return json.dumps([[problem.pointer, problem.text] for problem in runs.problems_of(platform.kernel, row)])


@pytest.fixture(scope="module")
def audited(examples: Path, tmp_path_factory: pytest.TempPathFactory) -> Audited:
    async def run() -> Audited:
        async with await open_in(tmp_path_factory.mktemp("audit")) as platform:
            summary = await platform.run("contract-audit", [str(examples)], budget="$1")
            rows = platform.kernel.store.all("quarantined", run=summary.run)
            assert platform.verify().ok
            return Audited(summary, {row["name"]: [row["agent"], told(platform, row)] for row in rows})

    return asyncio.run(run())


def test_the_examples_are_audited_and_exactly_the_two_that_are_no_contracts_are_quarantined(audited: Audited) -> None:
    assert (audited.summary.status, audited.summary.exit_code) == ("done", 0)
    assert audited.summary.items == {"total": 24, "done": 22, "quarantined": 2}
    assert audited.quarantined.keys() == REFUSED
    agent, problems = audited.quarantined["23-forklift-lease-scan.pdf"]
    assert agent == ""
    assert "it is a scan. Run OCR on it" in problems
    agent, problems = audited.quarantined["24-page-two-of-three.txt"]
    assert agent in ("planner", "extractor")
    assert json.loads(problems)[0][0] == "/parties"


def test_every_quote_of_every_report_stands_in_its_contract(audited: Audited, documents: dict[str, Document]) -> None:
    assert audited.reports.keys() == documents.keys() - REFUSED
    assert check_quotes(audited.reports, documents) > 22 * 4


def test_every_contract_has_its_reports_and_its_rows_of_the_table(audited: Audited) -> None:
    folder = Path(audited.summary.reports)
    for name, report in audited.reports.items():
        text = (folder / f"{name}.md").read_text()
        assert text.startswith(f"# {report['title'] or name}\n")
        assert f"**{report['decision']}**" in text
        assert text.count("\n| ") == 1 + len(QUESTIONS)
    with (folder / "table.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["item"] for row in rows} == audited.reports.keys()
    for name, report in audited.reports.items():
        mine = [row for row in rows if row["item"] == name]
        assert len(mine) == max(1, len(report["findings"]))
        assert {row["decision"] for row in mine} == {report["decision"]}


def test_decisions_follow_from_the_findings(audited: Audited) -> None:
    decisions = {report["decision"] for report in audited.reports.values()}
    assert decisions <= {"accept", "negotiate", "reject"}
    assert len(decisions) > 1
    for report in audited.reports.values():
        severe = [f for f in report["findings"] if f["status"] == "breach" and f["severity"] == "critical"]
        assert not severe or report["decision"] == "reject"


async def test_a_policy_of_ones_own_costs_no_second_extraction(
    examples: Path, repository: Path, tmp_path: Path
) -> None:
    some = [str(path) for path in sorted(examples.glob("0*.txt"))[:4]]
    own = tmp_path / "policy.toml"
    text = (repository / "examples" / "policy.toml").read_text()
    own.write_text(text.replace('name = "Procurement policy"', 'name = "Our own"', 1))
    async with await open_in(tmp_path) as platform:
        packaged = await platform.run(audit, some)
        named = await platform.run(audit, some, options={"policy": f"@{own}"})
        assert named.status == packaged.status == "done"
        assert {report["policy"] for report in reports_of(packaged).values()} == {load_policy("").name}
        assert {report["policy"] for report in reports_of(named).values()} == {"Our own"}
        assert named.by_agent["extractor"]["calls"] == named.by_agent["planner"]["calls"] == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"policy": "rule = ["}, "policy: it is not valid TOML"),
        ({"policy": 'name = "x"\nversion = "1"\n[[rule]]\nid = "a"'}, "rule a: the rule lacks title"),
        ({"policy": "@/nowhere/policy.toml"}, "--with policy: /nowhere/policy.toml cannot be read"),
        ({"polcy": "x"}, "contract-audit has no option 'polcy'; it takes policy"),
    ],
)
async def test_a_wrong_option_is_refused_before_anything_is_written(
    examples: Path, tmp_path: Path, options: dict[str, str], words: str
) -> None:
    async with await open_in(tmp_path) as platform:
        with pytest.raises(ConfigError) as caught:
            await platform.start("contract-audit", [str(examples)], options=options)
        assert words in str(caught.value)
        assert platform.kernel.store.all("runs", count=1) == []


async def test_real_contracts_are_audited_to_the_end(shared: Path, tmp_path: Path) -> None:
    with gzip.open(shared / "data" / "contracts" / "contracts.jsonl.gz", "rt") as file:
        rows = [json.loads(line) for line, _ in zip(file, range(40), strict=False)]
    real = [Document(row["id"], row["text"]) for row in sorted(rows, key=lambda row: len(row["text"]))[8:14]]
    async with await open_in(tmp_path) as platform:
        summary = await platform.run("contract-audit", real)
        assert (summary.status, summary.items["total"]) == ("done", 6)
        assert summary.items["done"] >= 5
        assert check_quotes(reports_of(summary), {each.id: each for each in real}) > 20


@pytest.fixture
async def upstream(repository: Path) -> AsyncIterator[str]:
    """Another upstream: an OpenAI-compatible server that knows nothing of us and answers schemas with quoted words."""
    script = repository.parent / "shared" / "bench" / "mock_upstream.py"
    if not script.exists():
        pytest.skip("needs the scripted server ../shared/bench/mock_upstream.py, which is not part of the repository")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(script), "--port", str(port),
        stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    try:
        async with aiohttp.ClientSession() as session:
            for _ in range(500):
                try:
                    async with session.get(f"http://127.0.0.1:{port}/health") as answer:
                        assert answer.status == 200
                        break
                except aiohttp.ClientConnectionError:
                    await asyncio.sleep(0.02)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.kill()
        await process.wait()


@pytest.fixture
async def quoting_upstream() -> AsyncIterator[str]:
    """The same dialect from a server of our own, whose replies quote the document: they pass."""

    async def answer(request: web.Request) -> web.StreamResponse:
        body = await request.json()
        messages = tuple(Message(each["role"], each["content"]) for each in body["messages"])
        asked = body["response_format"]["json_schema"]
        call = ModelCall(
            messages, body["model"], body["max_tokens"], schema=ReplySchema(asked["name"], asked["schema"])
        )
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        chunks = Chunks(body["model"])
        for block in (
            chunks.chunk(instance_for(call), role="assistant"),
            chunks.chunk(finish_reason="stop"),
            chunks.usage(Usage(1_000, 100)),
            DONE,
        ):
            await response.write(block)
        return response

    application = web.Application(client_max_size=2**26)
    application.router.add_post("/v1/chat/completions", answer)
    async with TestServer(application, skip_url_asserts=True) as server:
        yield str(server.make_url("/v1"))


UPSTREAM = """
[route.auto]
light = "other"

[upstream.other]
kind = "openai"
url = "{url}"
model = "{model}"
price = {{ input = "0.05", output = "0.08" }}
"""


@pytest.mark.parametrize("model", ["mock-z", "mock-z-w3"], ids=["well behaved", "every third reply spoilt"])
async def test_any_other_upstream_is_one_line_of_configuration(
    examples: Path, documents: dict[str, Document], upstream: str, tmp_path: Path, model: str
) -> None:
    some = [str(path) for path in sorted(examples.glob("*.txt"))[:6]]
    async with await open_in(tmp_path, UPSTREAM.format(url=upstream, model=model)) as platform:
        summary = await platform.run("contract-audit", some, budget="$1")
        assert (summary.status, summary.exit_code) == ("done", 0), summary.reason
        assert summary.items["done"] + summary.items["quarantined"] == 6
        steps = platform.kernel.store.all("steps_of_run", run=summary.run)
        assert {row["upstream"] for row in steps} == {"other"}
        assert {row["status"] for row in steps} <= {"ok", "refused"}
        assert all(row["cost_pico"] > 0 for row in steps)
        check_quotes(reports_of(summary), documents)  # what was accepted had passed every check
        for row in platform.kernel.store.all("quarantined", run=summary.run):
            assert row["agent"] in ("planner", "extractor", "verifier", "synthesizer")
            assert json.loads(told(platform, row))
        assert platform.verify().ok


async def test_another_upstream_whose_replies_pass_finishes_the_audit(
    examples: Path, documents: dict[str, Document], quoting_upstream: str, tmp_path: Path
) -> None:
    some = [str(path) for path in sorted(examples.glob("*.txt"))[:4]]
    async with await open_in(tmp_path, UPSTREAM.format(url=quoting_upstream, model="any")) as platform:
        summary = await platform.run("contract-audit", some, budget="$1")
        assert summary.status == "done"
        assert summary.items["done"] >= 2  # the others name neither parties nor a date, by the draw of the replies
        assert {row["status"] for row in platform.kernel.store.all("steps_of_run", run=summary.run)} == {"ok"}
        assert Decimal(summary.cost) == summary.calls * (1_000 * Decimal("0.05") + 100 * Decimal("0.08")) / 10**6
        assert check_quotes(reports_of(summary), documents) > 4
        assert (await platform.run("contract-audit", some)).calls == 0


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TWOLANE_CONFIG", raising=False)


def test_the_examples_can_be_read_by_those_who_need_every_document(examples: Path) -> None:
    paths = [str(path) for path in examples.iterdir() if path.name not in REFUSED]
    assert len(read_documents(paths)) == 22
