"""The commands as a person or a script meets them: what they print, how they end, and what they say to nonsense."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from twolane.cli import budget
from twolane.errors import NotFound, UsageError

Answer = dict[str, Any]  # Any: JSON

SLOW = """
[upstream.slow]
kind = "extractive"
model = "extractive"
price = { input = "0.05", output = "0.08" }
slots = { online = 2, batch = 2 }
options = { first_token_s = 0.3 }
[route.auto]
light = "slow"
"""


class Shell:
    """Runs `twolane` in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith("TWOLANE_")}

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "twolane", *arguments],
            cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip

    def json(self, *arguments: str, code: int = 0) -> Answer:
        done = self.run(*arguments, "--json")
        assert done.returncode == code, done.stdout + done.stderr
        answer: Answer = json.loads(done.stdout)
        return answer

    def spawn(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "twolane", *arguments],
            cwd=self.folder, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def until(self, seen: str, *arguments: str) -> Answer:
        """Ask again until the answer holds `seen`."""
        told = ""
        for _ in range(200):
            told = self.run(*arguments, "--json").stdout
            if seen in told:
                answer: Answer = json.loads(told)
                return answer
            time.sleep(0.05)
        raise AssertionError(f"never saw {seen!r}: {told}")


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(tmp_path)


@pytest.fixture
def contracts(repository: Path) -> str:
    return str(repository / "examples" / "contracts")


@pytest.fixture
def children() -> Iterator[list[subprocess.Popen[str]]]:
    started: list[subprocess.Popen[str]] = []
    yield started
    for child in started:
        child.kill()
        child.communicate()


def test_the_outside_contract_of_a_run(shell: Shell, contracts: str) -> None:
    started = shell.json("run", "start", "contract-audit", contracts, "--budget", "$5", "--wait")
    assert started["status"] == "done"
    assert started["items"] == {"total": 24, "done": 22, "quarantined": 2}
    assert (started["currency"], started["cost"], started["budget"]) == ("USD", "0.00", "5.00")
    assert started["calls"] > 80
    assert started["tokens"].keys() == {"input", "output"}
    assert isinstance(started["seconds"], float)
    assert len(list(Path(started["reports"]).glob("*.json"))) == 22
    said = started["forecast"]
    assert said["cost"].keys() == said["seconds"].keys() == {"low", "mid", "high"}
    assert (said["interval"], said["pilot"]) == (0.9, 4)
    again = shell.json("run", "start", "contract-audit", contracts, "--wait")
    assert (again["calls"], again["status"], again["budget"]) == (0, "done", None)
    assert again["reused"] > 80
    verdict = shell.json("audit", "verify")
    assert verdict.keys() >= {"ok", "entries", "root", "first_bad", "seconds"}
    assert (verdict["ok"], verdict["first_bad"]) == (True, None)
    listed = shell.json("run", "list")["runs"]
    assert [row["run"] for row in listed] == [again["run"], started["run"]]
    assert listed[0].keys() >= {"run", "flow", "status", "started", "items", "cost"}
    waiting = shell.json("quarantine", "list")["items"]
    assert {row["item"] for row in waiting} == {"23-forklift-lease-scan.pdf", "24-page-two-of-three.txt"}
    assert waiting[0].keys() == {"run", "item", "agent", "pointer", "problem"}
    shown = shell.json("quarantine", "show", started["run"], "24-page-two-of-three.txt")
    assert shown["problems"][0]["pointer"] == "/parties"


def test_the_outside_contract_of_a_forecast(shell: Shell, contracts: str) -> None:
    (shell.folder / "twolane.toml").write_text(SLOW.replace("0.3", "0.01"))
    said = shell.json("run", "forecast", "contract-audit", contracts)
    assert 70 <= said["calls"] <= 100, (
        "a rough forecast: four calls an item, fewer where a memo or a quarantine spares one"
    )
    low, mid, high = (float(said["cost"][name]) for name in ("low", "mid", "high"))
    assert 0 < low <= mid <= high
    assert said["seconds"]["low"] <= said["seconds"]["mid"] <= said["seconds"]["high"]
    assert (said["interval"], said["pilot"]) == (0.9, 4)


def test_a_run_reads_its_items_from_a_database(shell: Shell, contracts: str) -> None:
    with closing(sqlite3.connect(shell.folder / "register.db")) as database, database:
        database.execute("CREATE TABLE contract (number INTEGER PRIMARY KEY, text TEXT)")
        for path in sorted(Path(contracts).glob("*.txt"))[:3]:
            database.execute("INSERT INTO contract (text) VALUES (?)", [path.read_text()])
    asked = ("--sql", "SELECT number AS id, text FROM contract", "--database", "sqlite:register.db")
    started = shell.json("run", "start", "contract-audit", *asked, "--wait")
    assert started["items"] == {"total": 3, "done": 3, "quarantined": 0}
    assert sorted(path.name for path in Path(started["reports"]).glob("*.json")) == ["1.json", "2.json", "3.json"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("run", "start", "contract-audit", "nothere.txt", "--wait"), "nothere.txt is not there"),
        (("run", "start", "contract-audti", ".", "--wait"), "did you mean 'contract-audit'?"),
        (("run", "start", "my_flows:audit", "one.txt"), "there is no module 'my_flows'"),
        (("run", "start", "contract-audit", "one.txt", "--budget", "five dollars"), "is not an amount of money"),
        (("run", "start", "contract-audit", "one.txt", "--budget", "0"), "can pay for nothing"),
        (("run", "start", "contract-audit", "one.txt", "--budget", "9999999999"), "9.2 million"),
        (("run", "start", "contract-audit", "one.txt", "--with", "polcy=x"), "no option 'polcy'"),
        (("run", "start", "contract-audit", "one.txt", "--with", "policy=@gone.toml"), "gone.toml cannot be read"),
        (("run", "start", "contract-audit", "one.txt", "--tenant", "a/b"), "no name of a tenant"),
        (("run", "start", "contract-audit", "empty"), "there is nothing to read"),
        (("run", "start", "contract-audit"), "there is nothing to read"),
        (("run", "start", "contract-audit", "--sql", "SELECT 1 AS id"), "--sql and --database belong together"),
        (
            ("run", "start", "contract-audit", "--sql", "DROP TABLE x", "--database", "sqlite:gone.db"),
            "no file gone.db",
        ),
        (("run", "list", "--config", "typo.toml"), "did you mean 'store'?"),
        (("run", "list", "--config", "gone.toml"), "there is no such file"),
        (("run", "list", "--count", "0"), "'--count'"),
        (("run", "plan", "contract-audit"), "a plan of a flow needs its inputs"),
        (("run", "show", "r0"), "there is no run 'r0'"),
        (("rnu", "list"), "did you mean 'run'?"),
        (("switch", "trip"), "name one scope"),
        (("budget", "set", "run:r1"), "name a limit"),
        (("audit", "verify"), "there is no store"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_a_wrong_argument_is_told_in_one_line_and_ends_with_2(
    shell: Shell, arguments: tuple[str, ...], words: str
) -> None:
    (shell.folder / "one.txt").write_text("A contract between A and B.")
    (shell.folder / "typo.toml").write_text('stor = "sqlite:x.db"')
    (shell.folder / "empty").mkdir()
    done = shell.run(*arguments)
    assert done.returncode == 2, done.stdout + done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert not (shell.folder / "reports").exists()


def test_documents_that_cannot_be_read_go_to_quarantine_and_the_others_go_on(shell: Shell, contracts: str) -> None:
    folder = shell.folder / "mixed"
    folder.mkdir()
    (folder / "empty.txt").touch()
    (folder / "latin.txt").write_bytes("Vertrag über Schrauben".encode("latin-1"))
    (folder / "big.txt").write_bytes(b"word " * 10_000_000)
    (folder / "broken.pdf").write_bytes(b"%PDF-1.7 nothing more")
    for name in ("23-forklift-lease-scan.pdf", "01-brass-fittings.txt"):
        (folder / name).write_bytes((Path(contracts) / name).read_bytes())
    started = shell.json("run", "start", "contract-audit", str(folder), "--wait")
    assert (started["status"], started["items"]) == ("done", {"total": 6, "done": 1, "quarantined": 5})
    told = {row["item"]: row["problem"] for row in shell.json("quarantine", "list")["items"]}
    assert "no text" in told["empty.txt"]
    assert "not UTF-8" in told["latin.txt"]
    assert "more than" in told["big.txt"]
    assert "not a readable PDF" in told["broken.pdf"]
    assert "scan" in told["23-forklift-lease-scan.pdf"]


def test_an_upstream_that_is_gone_stops_the_run_and_another_day_it_goes_on(shell: Shell, contracts: str) -> None:
    gone = '[upstream.slow]\nkind="openai"\nurl="http://127.0.0.1:9/v1"\nmodel="m"\nretries=0\nprice={input="1",output="1"}\n'
    (shell.folder / "twolane.toml").write_text(gone + '[route.auto]\nlight="slow"\n')
    stopped = shell.json("run", "start", "contract-audit", contracts, "--wait", code=1)
    assert (stopped["status"], stopped["calls"], stopped["cost"]) == ("stopped", 0, "0.00")
    assert stopped["reason"].startswith("upstream: upstream slow: it cannot be reached")
    assert stopped["items"]["quarantined"] == 1, "only the scan, which nobody could read"
    (shell.folder / "twolane.toml").unlink()
    resumed = shell.json("run", "resume", stopped["run"])
    assert (resumed["status"], resumed["items"]["done"]) == ("done", 22)
    assert shell.json("audit", "verify")["ok"]


def test_a_run_is_killed_from_another_process_and_goes_on_when_told(
    shell: Shell, contracts: str, children: list[subprocess.Popen[str]]
) -> None:
    (shell.folder / "twolane.toml").write_text(SLOW)
    children.append(shell.spawn("run", "start", "contract-audit", contracts, "--wait", "--json"))
    run = shell.until('"running"', "run", "list")["runs"][0]["run"]
    shell.until('"calls": 1', "run", "show", run)
    killed = shell.json("run", "kill", run, "--reason", "enough")
    assert killed.keys() == {"run", "status", "stopped_steps", "seconds"}
    assert killed["status"] == "stopped"
    output, _ = children[0].communicate(timeout=30)
    assert children[0].returncode == 3
    assert json.loads(output)["reason"].startswith("switch: run:")
    assert {row["scope"] for row in shell.json("switch", "list")["switches"]} == {f"run:{run}"}
    (shell.folder / "twolane.toml").write_text(SLOW.replace("0.3", "0.0"))
    assert shell.json("run", "resume", run)["status"] == "done"
    assert shell.json("switch", "list")["switches"] == []


def test_a_budget_stops_a_run_with_3_and_raising_it_lets_it_go_on(shell: Shell, contracts: str) -> None:
    (shell.folder / "twolane.toml").write_text(SLOW.replace("0.3", "0.0"))
    stopped = shell.json("run", "start", "contract-audit", contracts, "--budget", "$0.002", "--wait", code=3)
    assert stopped["status"] == "stopped"
    assert float(stopped["cost"]) <= 0.002
    assert "budget $0.002 reached" in stopped["reason"]
    shell.json("budget", "set", f"run:{stopped['run']}", "--money", "1")
    resumed = shell.json("run", "resume", stopped["run"])
    assert (resumed["status"], resumed["items"]["done"]) == ("done", 22)


@pytest.mark.parametrize("option", ["--money", "--tokens", "--calls", "--seconds", "--accelerator-seconds"])
@pytest.mark.parametrize(
    "value", ["-1", "nan", "inf", "1e9", "five", "", "0x10", "9" * 30], ids=lambda value: value[:6]
)
def test_a_budget_that_is_no_number_is_refused_before_anything_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: str, value: str
) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(budget.app, ["set", "tenant:t", option, value])
    assert isinstance(done.exception, UsageError), done.exception
    assert value[:6] in str(done.exception)
    assert list(tmp_path.iterdir()) == []


def test_a_budget_is_lifted_once_and_only_where_it_is_the_one_that_was_meant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "twolane.toml").write_text('[budget.run]\nmoney = "2"\n')

    def said(*arguments: str) -> Result:
        return CliRunner().invoke(budget.app, list(arguments))

    said("set", "run:r", "--calls", "3")
    assert "its budget is 3 calls in total" in str(said("lift", "run:r", "--if-limit", "4").exception)
    lifted = said("lift", "run:r", "--if-limit", "3", "--reason", "moved", "--json")
    none = {"money": None, "tokens": None, "calls": 3, "seconds": None, "accelerator_seconds": None}
    assert json.loads(lifted.stdout) == {"scope": "run:r", "previous": {"period": "total", **none}}
    again = said("lift", "run:r").exception
    assert isinstance(again, NotFound)
    assert "no budget is set for run:r. The configuration limits it to $2.00 in total" in str(again)


def test_the_outside_contract_of_budgets(shell: Shell) -> None:
    first = shell.json(
        "budget", "set", "tenant:legal", "--money", "$5", "--tokens", "50,000", "--calls", "0", "--seconds", "1.5",
        "--accelerator-seconds", "90", "--period", "day",
    )  # fmt: skip
    limit = {"money": "5.00", "tokens": 50_000, "calls": 0, "seconds": "1.5", "accelerator_seconds": "90"}
    assert first == {"scope": "tenant:legal", "period": "day", **limit, "previous": None}
    raised = shell.json("budget", "set", "tenant:legal", "--money", "7", "--if-limit", "5")
    assert raised["previous"] == {"period": "day", **limit}
    lost = shell.run("budget", "set", "tenant:legal", "--money", "9", "--if-limit", "5")
    assert (lost.returncode, "its budget is $7.00 in total, since somebody changed it" in lost.stderr) == (1, True)
    shell.json("budget", "set", "upstream:extractive", "--calls", "3")
    money, calls = shell.json("budget", "list")["budgets"]
    named = {"limit": "7.00", "spent": "0.00", "held": "0.00", "leased": "0.00", "remaining": "7.00"}
    assert money == {"scope": "tenant:legal", "period": "total", **named}
    assert calls["calls"] == {"limit": 3, "spent": 0, "held": 0, "leased": 0, "remaining": 3}
    assert (calls["limit"], calls["spent"], calls["remaining"]) == (None, "0.00", None)
    assert "no such run in this store" in shell.run("budget", "set", "run:nope", "--calls", "3").stdout
    assert shell.json("budget", "reconcile") == {"in_doubt": []}
    for scope, words in (
        ("tenant:", "is not a scope"),
        ("tenant:\udcdc", "is not a scope"),
        ("key:t", "is not a scope"),
        ("upstream:x", "no upstream 'x'"),
    ):
        wrong = shell.run("budget", "set", scope, "--calls", "1")
        assert (wrong.returncode, words in wrong.stderr) == (2, True), wrong.stderr
    assert "is not a scope" in shell.run("budget", "reconcile", "tenant").stderr


def test_a_slip_of_the_pen_on_a_switch_is_said_and_what_is_stopped_says_how_to_go_on(shell: Shell) -> None:
    for scope, words in (("upstream:extrative", "did you mean 'extractive'?"), ("run:r1", "twolane run list")):
        said = shell.run("switch", "trip", scope).stdout
        assert (f"{scope} is stopped" in said, words in said) == (True, True), said
    assert "But" not in shell.run("switch", "trip", "upstream:extractive").stdout
    assert "But" not in shell.run("switch", "trip", "--all", "--reason", " ").stdout
    causes = {row["cause"] for row in shell.json("switch", "list")["switches"]}
    assert causes == {"tripped by a person"}
    refused = shell.run("ask", "How many days?")
    assert (refused.returncode, "Reset it: twolane switch reset all" in refused.stderr) == (3, True), refused.stderr


def test_a_worker_takes_queued_runs_obeys_their_switches_and_gives_up_on_what_cannot_begin(
    shell: Shell, contracts: str
) -> None:
    one = str(Path(contracts) / "01-brass-fittings.txt")
    (shell.folder / "short_lived.py").write_text("from twolane.flows.contract_audit import audit\n")
    good = shell.json("run", "start", "contract-audit", one)
    stopped = shell.json("run", "start", "contract-audit", one)
    gone = shell.json("run", "start", "short_lived:audit", one)
    assert (good["status"], gone["status"]) == ("queued", "queued")
    (shell.folder / "short_lived.py").unlink()
    shell.json("switch", "trip", f"run:{stopped['run']}", "--reason", "not this one")
    worked = shell.run("work", "--once")
    assert worked.returncode == 0, worked.stderr
    states = {row["run"]: row["status"] for row in shell.json("run", "list")["runs"]}
    assert states == {good["run"]: "done", stopped["run"]: "stopped", gone["run"]: "failed"}
    assert len(shell.json("switch", "list")["switches"]) == 1, "a worker resets nobody's switch"


def test_a_ledger_that_was_changed_ends_with_4(shell: Shell, contracts: str) -> None:
    import sqlite3

    shell.json("run", "start", "contract-audit", str(Path(contracts) / "01-brass-fittings.txt"), "--wait")
    with sqlite3.connect(shell.folder / "twolane.db") as store:
        store.execute("UPDATE entry SET leaf = replace(leaf, '\"ok\"', '\"OK\"') WHERE position = 3")
    store.close()
    verdict = shell.json("audit", "verify", code=4)
    assert (verdict["ok"], verdict["first_bad"]) == (False, 3)


FLOW = """
from pydantic import BaseModel
from twolane import Document, Item, Prompt, agent, workflow

class Answer(BaseModel):
    word: str

@agent(returns=Answer)
def reader(contract: Document) -> Prompt:
    return Prompt(system="You read.", user="What is it?", context=(contract,), max_tokens=50)

@agent(returns=Answer)
def judge(answer: Answer, rules: str) -> Prompt:
    return Prompt(system="You judge.", user=f"By {rules}: {answer.word}", max_tokens=50)

@workflow(version="1")
async def review(contract: Document, do: Item) -> Answer:
    return await do(judge, await do(reader, contract), do.options.get("rules", "law"))
"""
REHEARSED = """
[upstream.model]
kind = "rehearsal"
model = "m"
price = { input = "0.05", output = "0.08" }
[upstream.bad]
kind = "rehearsal"
model = "bad"
price = { input = "0.05", output = "0.08" }
options = { reply = "no" }
[route.auto]
light = "model"
"""


def test_the_outside_contract_of_a_plan_a_fork_a_diff_and_a_resume(
    shell: Shell, children: list[subprocess.Popen[str]]
) -> None:
    (shell.folder / "twolane.toml").write_text(REHEARSED)
    (shell.folder / "mine.py").write_text(FLOW)
    (shell.folder / "in").mkdir()
    for number in range(3):
        (shell.folder / "in" / f"c{number}.txt").write_text(f"The price is {number} EUR.")
    fresh = shell.json("run", "plan", "mine:review", "in")
    assert (fresh["calls"], fresh["reused"], fresh["cost"], fresh["unshaped"]) == (3, 0, None, 3)
    first = shell.json("run", "start", "mine:review", "in", "--wait")
    assert (first["status"], first["calls"]) == ("done", 6)
    again = shell.json("run", "plan", first["run"])
    assert (again["calls"], again["reused"], again["cost"]) == (0, 6, "0.00")
    (shell.folder / "mine.py").write_text(FLOW.replace("You judge.", "You judge mildly."))
    told = shell.json("run", "plan", "mine:review", "in")
    assert told.keys() >= {"calls", "reused", "cost", "by_agent"}
    assert (told["calls"], told["reused"], told["by_agent"]["judge"]["why"]) == (3, 3, {"its prompt changed": 3})
    assert "3 × its prompt changed" in shell.run("run", "plan", "mine:review", "in").stdout
    fork = shell.json("run", "fork", first["run"], "--from", "judge", "--with", "rules=policy", "--wait")
    assert (fork["calls"], fork["reused"]) == (3, 3)
    diff = shell.json("run", "diff", first["run"], fork["run"])
    assert diff["by_agent"]["reader"] == {
        "same": 3, "changed": 0, "only_first": 0, "only_second": 0, "unknown": 0, "calls": 0, "reused": 3,
        "cost": "0.00",
    }  # fmt: skip
    assert diff["by_agent"]["judge"]["calls"] == 3
    assert "results" in shell.run("run", "diff", first["run"], fork["run"]).stdout
    resumed = shell.json("run", "resume", first["run"], "--from", "judge", "--wait")
    assert resumed.keys() == first.keys()
    assert resumed["calls"] == 9
    queued = shell.json("run", "resume", first["run"], "--no-wait")
    assert (queued["status"], queued["worker"]) == ("queued", False)
    worker = shell.spawn("work")
    children.append(worker)
    shell.until('"status": "done"', "run", "show", first["run"])
    assert shell.json("run", "resume", first["run"], "--no-wait")["worker"] is True
    assert shell.run("run", "plan", first["run"], "--with", "a=b").returncode == 2
    assert shell.run("run", "resume", first["run"], "--from", "jugde").returncode == 2
    assert shell.json("audit", "verify")["ok"]


def test_the_outside_contract_of_the_quarantine(shell: Shell) -> None:
    (shell.folder / "twolane.toml").write_text(REHEARSED.replace('light = "model"', 'light = "bad"'))
    (shell.folder / "mine.py").write_text(FLOW)
    (shell.folder / "c.txt").write_text("The price is 7 EUR.")
    (shell.folder / "scan.pdf").write_bytes(b"no PDF at all")
    run = shell.json("run", "start", "mine:review", "c.txt", "scan.pdf", "--wait")["run"]
    listed = shell.json("quarantine", "list", "--run", run, "--kind", "handoff")
    assert listed["kinds"] == {"handoff": 1}
    assert [row.keys() for row in listed["items"]] == [{"run", "item", "agent", "pointer", "problem"}]
    shown = shell.json("quarantine", "show", run, "c.txt")
    assert (shown["kind"], shown["agent"], shown["reply"], shown["pointer"]) == ("handoff", "reader", "no", "")
    assert (shown["step"]["attempt"], shown["step"]["upstream"], shown["step"]["agent"]) == (2, "bad", "reader")
    assert shell.run("quarantine", "release", "--run", run, "--kind", "handof").returncode == 2
    assert shell.run("quarantine", "release").returncode == 2
    released = shell.json("quarantine", "release", "--run", run, "--kind", "handoff", "--route", "model")
    assert released == {"run": run, "released": ["c.txt"]}
    assert "Nothing of it is in quarantine" in shell.run("quarantine", "release", run, "c.txt").stdout
    assert "Fix it" not in shell.run("quarantine", "show", run, "c.txt").stdout
    done = shell.json("run", "resume", run, "--wait")
    assert done["items"] == {"total": 2, "done": 0, "quarantined": 2}
    assert (done["by_agent"]["reader"]["calls"], done["by_agent"]["judge"]["calls"]) == (3, 2)
    assert shell.json("quarantine", "release", "--run", run, "c.txt", "--route", "model")["released"] == ["c.txt"]
    assert shell.json("run", "resume", run, "--wait")["items"] == {"total": 2, "done": 1, "quarantined": 1}
    assert "1 by document" in shell.run("quarantine", "list").stdout


def test_a_run_is_watched_in_lines_until_it_has_ended(shell: Shell, children: list[subprocess.Popen[str]]) -> None:
    slow = REHEARSED.replace("[upstream.bad]", "options = { token_ms = 60 }\n[upstream.bad]")
    (shell.folder / "twolane.toml").write_text(slow)
    (shell.folder / "mine.py").write_text(FLOW)
    (shell.folder / "in").mkdir()
    for number in range(8):
        (shell.folder / "in" / f"c{number}.txt").write_text(f"The price is {number} EUR.")
    run = shell.json("run", "start", "mine:review", "in")["run"]
    watchers = [shell.spawn("run", "watch", run, "--json"), shell.spawn("run", "watch", run)]
    worker = shell.spawn("work", "--once")
    children += [*watchers, worker]
    told, plain = (watcher.communicate(timeout=40)[0] for watcher in watchers)
    lines = [json.loads(line) for line in told.splitlines()]
    assert lines[0]["status"] == "queued"
    assert [line["status"] for line in lines].count("done") == 1
    shown = shell.json("run", "show", run)
    assert lines[-1] == lines[-1] | {**shown, "items": {**shown["items"], "left": 0}}
    assert [watcher.returncode for watcher in watchers] == [0, 0]
    assert "queued · 0 of 8 done" in plain
    assert plain.count(f"run {run} · mine:review · done") == 1
    (only,) = shell.run("run", "watch", run, "--json").stdout.splitlines()
    assert json.loads(only)["left_by"] == "it has ended"
    stopped = shell.json("run", "start", "mine:review", "in", "--budget", "$0.0000001", "--with", "rules=x", "--wait",
                         code=3)["run"]  # fmt: skip
    assert shell.run("run", "watch", stopped).returncode == 3
    assert shell.run("run", "watch", "nope").returncode == 2


def test_both_lanes_start_with_one_command_and_end_together(
    shell: Shell, children: list[subprocess.Popen[str]]
) -> None:
    (shell.folder / "twolane.toml").write_text(REHEARSED)
    (shell.folder / "mine.py").write_text(FLOW)
    (shell.folder / "c.txt").write_text("The price is 7 EUR.")
    both = shell.spawn("up", "--port", "0")
    children.append(both)
    assert both.stdout is not None
    said = {both.stdout.readline().split()[0] for _ in range(2)}
    assert said == {"twolane", "worker"}
    run = shell.json("run", "start", "mine:review", "c.txt")["run"]
    shell.until('"status": "done"', "run", "show", run)
    both.terminate()
    assert both.wait(30) == 0
