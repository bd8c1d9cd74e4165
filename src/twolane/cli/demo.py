"""The whole story on one screen: a forecast, a run that is killed half-way and resumed, the same run for nothing, one
agent changed, a question online, and the ledger checked. No key, no service, no network."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping, Set
from contextlib import ExitStack
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any

import typer

from twolane import config as configuration
from twolane.cli.lines import forecast_lines
from twolane.cli.output import new_app, run
from twolane.cli.progress import Screen
from twolane.domain.money import decimal_string
from twolane.errors import TwolaneError, UsageError
from twolane.flows.scoring import score
from twolane.platform import Platform

app = new_app("The whole story on one screen.")

CONFIG = """\
# The demonstration's own configuration: the built-in extractive model, slowed down to the pace of a real one so that
# there is something to watch, and given a price so that there is money to count.
store = "sqlite:demo.db"

[upstream.local]
kind    = "extractive"
model   = "extractive"
price   = { input = "0.05", output = "0.08" }
slots   = { online = 4, batch = 4 }
options = { first_token_s = 0.25, token_s = 0.0005 }

[route.auto]
light = "local"
"""

CHANGED = '''\
"""The built-in audit with one agent changed: a stricter verifier. This is all a team has to write."""

from twolane import Document, Prompt
from twolane.flows import contract_audit


def strict(quotes: dict[str, str]) -> Prompt:
    usual = contract_audit.verifier(quotes)
    lines = [line for line in usual.context[0].text.split("\\n\\n") if len(line.split()) >= 12]
    return Prompt(
        system="You are a strict checker: a quote of a few words supports nothing.",
        user=usual.user,
        context=(Document("quotes", "\\n\\n".join(lines) or "No quote was found."),),
    )


audit = contract_audit.build(verifier=contract_audit.verifier.revised(strict))
'''

QUESTION = "How many days do we have to pay an invoice?"


@app.command()
def demo(
    folder: Annotated[str, typer.Option(help="where it works; emptied first")] = ".demo",
    examples: Annotated[str, typer.Option(help="the folder of the example contracts")] = "",
) -> None:
    """Watch the whole story: about a minute, no key, no service, no network."""
    contracts = _examples(examples)
    home = Path(folder).absolute()
    if home.exists() and not (home / "twolane.toml").exists() and any(home.iterdir()):
        raise UsageError(f"{home} is not empty and no demonstration's: name another with --folder")
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True)
    (home / "twolane.toml").write_text(CONFIG)
    (home / "my_audit.py").write_text(CHANGED)
    _tell(contracts, home)


def _tell(contracts: Path, home: Path) -> None:
    began = time.monotonic()
    print(f"Twolane works in {home} on the contracts in {contracts}.")
    print(
        "The built-in extractive model answers, slowed to a real model's pace and priced at 0.05/0.08 USD per million"
    )
    print("tokens for this demonstration only.")

    _title(1, "What will it cost, and how long will it take?")
    said = _ask(home, "run", "forecast", "contract-audit", str(contracts))
    print("\n".join(forecast_lines(said)))

    _title(2, "Twenty-four contracts; half-way the worker is killed with SIGKILL")
    first = _start_and_kill(home, contracts, until=12)

    _title(3, "Resume: what is finished is not run again")
    summary = _resume(home, first)

    _title(4, "The same run again: everything is in the memos")
    again = _ask(home, "run", "start", "contract-audit", str(contracts), "--budget", "$1", "--wait")
    print(f"{again['calls']} calls, {again['reused']} steps reused, cost {again['cost']} {again['currency']}, "
          f"{again['seconds']:.1f} s")  # fmt: skip

    _title(5, "One agent is changed (a stricter verifier): only it, and what truly changed after it, runs")
    changed = _ask(home, "run", "start", "my_audit:audit", str(contracts), "--budget", "$1", "--wait")
    for agent in ("planner", "extractor", "verifier", "synthesizer"):
        figures = changed["by_agent"].get(agent, {"calls": 0, "reused": 0})
        print(f"  {agent:<12} {figures['calls']:>3} calls  {figures['reused']:>3} reused")

    _title(6, "One question online, streamed through the same door")
    sys.stdout.flush()
    document = next(iter(sorted(contracts.glob("*.txt"))))
    _call(home, "ask", QUESTION, "--file", str(document))

    _title(7, "The ledger: every call, cost and decision, checked from its leaves")
    sys.stdout.flush()
    _call(home, "audit", "verify")

    _title(8, "What came of it")
    _conclude(home, contracts, summary)
    print(f"\nThe whole story took {time.monotonic() - began:.0f} s.")


def _start_and_kill(home: Path, contracts: Path, *, until: int) -> str:
    """Start the run in a worker of its own and kill it when `until` items have ended; the run's id."""

    async def go() -> str:
        async with await Platform.open(configuration.load(home / "twolane.toml")) as platform:
            known = {row["id"] for row in platform.kernel.store.all("runs", count=100)}
            worker = _spawn(
                home, "run", "start", "contract-audit", str(contracts), "--budget", "$1", "--wait", "--json"
            )
            identity = await _watch(platform, worker, known, until=until)
            if worker.poll() is None:
                os.kill(worker.pid, signal.SIGKILL)
                print("SIGKILL: the worker is gone in the middle of its work.")
            worker.communicate()
            return identity

    return run(go())


async def _watch(platform: Platform, worker: subprocess.Popen[str], known: Set[str], *, until: int) -> str:
    """Draw the run that is not among `known` until `until` of its items have ended, or its worker has; its id."""
    with ExitStack() as stack:
        screen = stack.enter_context(Screen()) if sys.stderr.isatty() else None
        shown = -1
        while True:
            rows = [row for row in platform.kernel.store.all("runs", count=10) if row["id"] not in known]
            summary = platform.summary(rows[0]["id"]) if rows else None
            if summary is not None:
                ended = summary.items["done"] + summary.items["quarantined"]
                if screen is not None:
                    screen.show(platform.kernel.watching.look(summary.run))
                elif ended // 6 > shown // 6:
                    shown = ended
                    print(f"  {ended} of {summary.items['total']} contracts, {summary.calls} calls, "
                          f"{summary.cost} {summary.currency}", flush=True)  # fmt: skip
                if ended >= until or worker.poll() is not None:
                    return summary.run
            elif worker.poll() is not None:
                raise TwolaneError(f"the worker ended early: {worker.stderr.read() if worker.stderr else ''}")
            await asyncio.sleep(0.05)


def _resume(home: Path, identity: str) -> Mapping[str, Any]:  # Any: JSON
    async def steps() -> list[dict[str, Any]]:
        async with await Platform.open(configuration.load(home / "twolane.toml")) as platform:
            return [dict(row) for row in platform.kernel.store.all("steps_of_run", run=identity)]

    before = Counter((step["item"], step["agent"]) for step in run(steps()) if step["status"] == "ok")
    summary = _ask(home, "run", "resume", identity)
    all_steps = run(steps())
    after = Counter((step["item"], step["agent"]) for step in all_steps if step["status"] == "ok")
    again = sum(after[step] - count for step, count in before.items())
    doubtful = [step["cost_pico"] for step in all_steps if step["status"] == "in_doubt"]
    print(f"{len(before)} steps were finished before the kill; {again} of them were run again.")
    print(f"run {identity}: {summary['status']}, {summary['items']['done']} done, "
          f"{summary['items']['quarantined']} in quarantine, {summary['calls']} calls, "
          f"cost {summary['cost']} {summary['currency']}")  # fmt: skip
    if doubtful:
        print(f"  of this {decimal_string(sum(doubtful))} in doubt: {len(doubtful)} calls were in flight at the kill; "
              "what they cost nobody knows, so they are booked at their upper bound")  # fmt: skip
    for each in _ask(home, "quarantine", "list", "--run", identity)["items"]:
        print(f"  quarantined: {each['item']}: {each['problem']}")
    return summary


def _conclude(home: Path, contracts: Path, summary: Mapping[str, Any]) -> None:  # Any: JSON
    reports = Path(summary["reports"])
    gold = json.loads((contracts.parent / "gold.json").read_text())
    results = {}
    for path in sorted(reports.glob("*.json")):
        report = json.loads(path.read_text())
        results[report["item"]] = report["result"]
    breaches, facts = score(results, gold)
    per_contract = Decimal(summary["cost"]) / max(1, summary["items"]["done"])
    print(f"cost per contract  {per_contract:.6f} {summary['currency']}")
    print(f"planted breaches   {breaches}")
    print(f"facts              {facts}")
    print(f"reports            {reports}")
    print("\nNext:")
    print(f"  cd {home}")
    for line in (
        "twolane run list",
        f"twolane run show {summary['run']}",
        f"twolane quarantine list --run {summary['run']}",
        "twolane serve          # then point any OpenAI client at http://127.0.0.1:8080/v1",
        "twolane init ../twolane.toml   # a configuration of your own, with a real model",
    ):
        print(f"  {line}")


def _title(number: int, text: str) -> None:
    print(f"\n── {number}. {text}", flush=True)


def _spawn(home: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "twolane", *arguments],
        cwd=home, env=_environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def _ask(home: Path, *arguments: str) -> dict[str, Any]:  # Any: JSON
    """Run a command with --json, and give what it printed."""
    done = subprocess.run(
        [sys.executable, "-m", "twolane", *arguments, "--json"],
        cwd=home, env=_environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise TwolaneError(
            f"`twolane {' '.join(arguments)}` ended with {done.returncode}: {done.stderr or done.stdout}"
        )
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def _call(home: Path, *arguments: str) -> None:
    code = subprocess.run([sys.executable, "-m", "twolane", *arguments], cwd=home, env=_environment(), check=False)
    if code.returncode:
        raise TwolaneError(f"`twolane {' '.join(arguments)}` ended with {code.returncode}")


def _environment() -> dict[str, str]:
    """The environment without settings of the user's own, which are not the demonstration's."""
    return {name: value for name, value in os.environ.items() if not name.startswith("TWOLANE_")}


def _examples(named: str) -> Path:
    candidates = [Path(named)] if named else [Path("examples"), Path(__file__).parents[3] / "examples"]
    for candidate in candidates:
        if (candidate / "contracts").is_dir() and (candidate / "gold.json").is_file():
            return (candidate / "contracts").absolute()
    raise UsageError("the example contracts are not here", hint="Run it in a clone, or name them: --examples FOLDER")
