"""What a durable step costs, beside other engines, in one run:

    python tests/load/steps.py [--engines VENV] [--before SRC] [--rounds 5] [--quick] [--out docs/figures/steps.json]

The same job everywhere: ten no-op steps an item with outputs of 200 bytes, 16 and 64 items at once. Rounds of all
engines alternate, each in a process of its own; medians are told. DBOS comes with this project; LangGraph and Prefect
are looked for in the virtual environment given by --engines (python -m venv VENV; VENV/bin/pip install langgraph
langgraph-checkpoint-sqlite prefect "fastapi<0.117": Prefect 3.8.8 does not run with newer ones). --before is the `src`
folder of an earlier commit, measured as one more engine. With --out, docs/benchmarks.md gets the table too.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
PAGE = HERE.parents[1] / "docs" / "benchmarks.md"
BEGIN, END = "<!-- steps figures: made by tests/load/steps.py -->", "<!-- steps figures: end -->"

ITEMS = {"twolane": 1_000, "before": 1_000, "dbos": 100, "dbos, FULL": 100, "langgraph": 100, "prefect": 5}
"""A second or some of work for each."""
FOREIGN = ("langgraph", "prefect")
PATIENCE_S = 300

Facts = dict[str, Any]  # Any: JSON


def one_round(name: str, items: int, concurrency: int, *, engines: str | None, before: str | None) -> Facts:
    """One engine, once. An engine that is not there, or fails, says why."""
    python = str(Path(engines) / "bin" / "python") if engines and name in FOREIGN else sys.executable
    environment = {**os.environ, **({"PYTHONPATH": before} if before and name == "before" else {})}
    command = [python, str(HERE / "engines.py"), name.replace("before", "twolane"), str(items), str(concurrency)]
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=PATIENCE_S, check=False, cwd="/"
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return {"problem": str(error)}
    if done.returncode:
        return {"problem": (done.stderr.strip().splitlines() or [f"exit {done.returncode}"])[-1]}
    told: Facts = json.loads(done.stdout.strip().splitlines()[-1])
    return told


def measure(arguments: argparse.Namespace) -> Facts:
    """All engines, in alternation."""
    names = [name for name in ITEMS if name != "before" or arguments.before]
    rounds: dict[tuple[str, int], list[Facts]] = {}
    for number in range(1 if arguments.quick else arguments.rounds):
        for concurrency in (16, 64):
            for name in names:
                known = rounds.setdefault((name, concurrency), [])
                if known and "problem" in known[-1]:
                    continue
                items = max(5, ITEMS[name] // 10) if arguments.quick else ITEMS[name]
                told = one_round(name, items, concurrency, engines=arguments.engines, before=arguments.before)
                known.append(told)
                rate = told.get("problem") or f"{told['steps'] / told['seconds']:,.0f} steps/s"
                print(f"  round {number + 1}, {concurrency} at once, {name}: {rate}", file=sys.stderr, flush=True)
    return {
        "processors": os.cpu_count(),
        "python": platform.python_version(),
        "rounds": 1 if arguments.quick else arguments.rounds,
        "load_average": [round(each, 2) for each in os.getloadavg()],
        "effort": "quick" if arguments.quick else "full",
        "engines": [_summed(name, at, each) for (name, at), each in sorted(rounds.items(), key=_order)],
    }


def _order(pair: tuple[tuple[str, int], list[Facts]]) -> tuple[int, int]:
    (name, concurrency), _ = pair
    return concurrency, list(ITEMS).index(name)


def _summed(name: str, concurrency: int, rounds: list[Facts]) -> Facts:
    problem = next((each["problem"] for each in rounds if "problem" in each), None)
    if problem is not None:
        return {"name": name, "concurrency": concurrency, "problem": problem}
    rates = [each["steps"] / each["seconds"] for each in rounds]
    return {
        "name": name,
        "concurrency": concurrency,
        "version": rounds[0]["version"],
        "sync": rounds[0]["sync"],
        "steps": rounds[0]["steps"],
        "steps_per_second": round(statistics.median(rates)),
        "slowest_and_fastest": [round(min(rates)), round(max(rates))],
        "cpu_ms_per_step": round(statistics.median(each["cpu_s"] / each["steps"] * 1000 for each in rounds), 3),
    }


def table(facts: Facts) -> str:
    """What docs/benchmarks.md shows."""
    lines = [
        "| engine | at once | steps a second (slowest to fastest round) | CPU ms a step | store |",
        "| --- | --- | --- | --- | --- |",
    ]
    for each in facts["engines"]:
        if "problem" in each:
            lines.append(f"| {each['name']} | {each['concurrency']} | not measured: {each['problem'][:80]} | | |")
            continue
        low, high = each["slowest_and_fastest"]
        name = {"dbos, FULL": "dbos", "before": "twolane, before"}.get(each["name"], each["name"])
        rate = f"{each['steps_per_second']:,} ({low:,} to {high:,})"
        cells = (f"{name} {each['version']}", each["concurrency"], rate, f"{each['cpu_ms_per_step']:.3g}", each["sync"])
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def main() -> None:
    """Measure, print, and keep it where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines")
    parser.add_argument("--before")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    facts = measure(arguments)
    if arguments.out:
        arguments.out.write_text(json.dumps(facts, indent=2) + "\n")
        show(facts)
    print(table(facts))


def show(facts: Facts) -> None:
    """Put the table between its marks."""
    text = PAGE.read_text()
    head, _, rest = text.partition(BEGIN)
    _, _, tail = rest.partition(END)
    PAGE.write_text(f"{head}{BEGIN}\n\n{table(facts)}\n\n{END}{tail}")


if __name__ == "__main__":
    main()
