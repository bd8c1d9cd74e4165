"""A long run: what the engine adds to the models' own time, and whether its memory stays flat.

    python tests/load/long_run.py [--items 10000] [--slots 64] [--seconds 0.4] [--out docs/figures/long-run.json]

Items of 4 KB go through four agents, one after another, on a scripted upstream that takes `--seconds` a call, in a
process of its own, through everything: forecast, durable queue, chunks, memos, budget, record, reports.

    overhead = makespan ÷ (calls × seconds a call ÷ slots) − 1

The makespan is the run's time at work, from its first look at the store to its end: pilot, forecast, the idle slots at
the ends of chunks and of the run, and what the machine does beside are all in it. The shorter the call, the larger the
part: language models take one to ten seconds where this takes 0.4.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from twolane import Document, Item, Platform, Prompt, agent, workflow

AGENTS = 4
TEXT = "The supplier shall deliver the goods within thirty days of each order. " * 57

Facts = dict[str, Any]  # Any: JSON


class Words(BaseModel):
    """What every agent here says."""

    words: str


REPLY = json.dumps({"words": "some two hundred bytes of what a model would say " * 3})


@agent(returns=Words, route="model")
def planner(contract: Document) -> Prompt:
    """Reads the document."""
    return Prompt(system="You plan.", user=contract.id, context=(contract,), max_tokens=100)


@agent(returns=Words, route="model")
def extractor(contract: Document, before: Words) -> Prompt:
    """Reads it again."""
    return Prompt(system="You quote.", user=f"{contract.id}: {before.words}", context=(contract,), max_tokens=100)


@agent(returns=Words, route="model")
def verifier(name: str, before: Words) -> Prompt:
    """Reads what was said."""
    return Prompt(system="You verify.", user=f"{name}: {before.words}", max_tokens=100)


@agent(returns=Words, route="model")
def synthesizer(name: str, before: Words) -> Prompt:
    """Sums up."""
    return Prompt(system="You sum up.", user=f"{name}: {before.words}", max_tokens=100)


@workflow(version="1")
async def audit(contract: Document, do: Item) -> Words:
    """Four agents, one after another."""
    plan = await do(planner, contract)
    facts = await do(extractor, contract, plan)
    checked = await do(verifier, contract.id, facts)
    return await do(synthesizer, contract.id, checked)


def child(folder: Path, items: int, slots: int, seconds: float) -> None:
    """Make the run and work on it; prints one line when the work begins, and the result at the end."""
    from twolane.cli.output import run_worker
    from twolane.config import Config

    upstream = {
        "kind": "rehearsal", "model": "m", "price": {"input": "0.05", "output": "0.08"},
        "slots": {"online": 1, "batch": slots}, "options": {"first_token_ms": seconds * 1000, "reply": REPLY},
    }  # fmt: skip
    settings: Facts = {"store": f"sqlite:{folder / 'run.db'}", "upstream": {"model": upstream}, "route": {}}
    settings["budget"] = {"run": {"money": "1000"}}

    async def go() -> Facts:
        async with await Platform.open(Config.model_validate(settings)) as platform:
            documents = [Document(f"c{number:05}", f"{number}. {TEXT}") for number in range(items)]
            run = await platform.start(audit, documents)
            documents.clear()
            print("at work", flush=True)
            cpu = time.process_time()
            summary = await platform.work(run, flow=audit)
            cpu = time.process_time() - cpu
            verdict = platform.verify()
            held = platform.kernel.store.all("reservations")
            return {
                "status": summary.status, "reason": summary.reason, "items": summary.items, "calls": summary.calls,
                "makespan_s": summary.seconds, "cpu_s": cpu, "ledger_ok": verdict.ok, "entries": verdict.entries,
                "held_at_the_end": len(held),
            }  # fmt: skip

    print(json.dumps(run_worker(go())), flush=True)


def long_run(items: int = 10_000, slots: int = 64, seconds: float = 0.4) -> Facts:
    """Run it, watching the memory of its process."""
    with tempfile.TemporaryDirectory(prefix="long-run-") as folder:
        command = [sys.executable, str(Path(__file__).resolve()), "--child", folder]
        command += [f"--items={items}", f"--slots={slots}", f"--seconds={seconds}"]
        memory: list[float] = []
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=folder) as process:
            assert process.stdout is not None
            process.stdout.readline()
            while process.poll() is None:
                memory.append(_resident(process.pid))
                time.sleep(0.25)
            told: Facts = json.loads(process.stdout.read().strip().splitlines()[-1])
        size = sum(path.stat().st_size for path in Path(folder).glob("run.db*") if path.is_file())
    memory = [each for each in memory if each]
    ideal = told["calls"] * seconds / slots
    quarter = max(1, len(memory) // 4)
    return {
        **told,
        "slots": slots,
        "seconds_a_call": seconds,
        "ideal_makespan_s": round(ideal, 2),
        "overhead": round(told["makespan_s"] / ideal - 1, 4),
        "slots_busy": round(ideal / told["makespan_s"], 4),
        "cpu_ms_per_step": round(told["cpu_s"] / told["calls"] * 1000, 3),
        "peak_mb": round(max(memory)),
        "mb_by_quarter": [round(statistics.median(memory[at * quarter : (at + 1) * quarter])) for at in range(4)],
        "store_mb": round(size / 1e6, 1),
        "processors": os.cpu_count(),
        "load_average_before_and_after": [],
    }


def _resident(pid: int) -> float:
    """Megabytes in memory now; 0 where it has ended."""
    try:
        text = Path(f"/proc/{pid}/statm").read_text()
    except OSError:
        return 0.0
    return int(text.split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def main() -> None:
    """Measure, print, and keep it where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=10_000)
    parser.add_argument("--slots", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=0.4)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments.child, arguments.items, arguments.slots, arguments.seconds)
        return
    before = os.getloadavg()[0]
    facts = long_run(arguments.items, arguments.slots, arguments.seconds)
    facts["load_average_before_and_after"] = [round(before, 2), round(os.getloadavg()[0], 2)]
    if arguments.out:
        arguments.out.write_text(json.dumps(facts, indent=2) + "\n")
    print(json.dumps(facts, indent=2))


if __name__ == "__main__":
    main()
