"""The figures of the online lane, each by one command that starts, measures and stops everything itself:

    python tests/load/online.py NAME [--kit ../shared/bench] [--quick] [--lend] [--out docs/figures/NAME.json]

ttft         first-token time added at 50 paced streams: direct, nginx, the gateway, in alternation
ttft200      the same at 200 streams
thousand     1,000 concurrent streams without an error
ceiling      streamed requests a second without any upstream delay, beside nginx
memory       resident memory over 100,000 requests
cancel       clients hang up: is the upstream's generation cancelled, and is everything given back?
isolation    first-token time online, idle and beside a batch backlog on the same upstream; and without lanes
scarcity     an upstream that takes 60 requests a minute, offered three times that
department   50, 200 and 500 users at the same instant on 24 slots
all          each of these in turn into --out (a folder; docs/figures), then the plots and tables (plots.py)

Keys, routing, budgets, record, switches and durable acknowledgement are on in every one. Linux; nginx where it is
installed. Configuration keys that the version at hand refuses are left out and named in the result.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # run as a script, its own folder is there instead

from tests.load.client import Target  # noqa: E402
from tests.load.hangups import cancel  # noqa: E402
from tests.load.isolation import crowd, isolation  # noqa: E402
from tests.load.plan import Plan, run, say  # noqa: E402
from tests.load.scarcity import department, scarcity  # noqa: E402
from tests.load.stage import ROUTE, Facts  # noqa: E402
from tests.load.streams import ceiling, memory, thousand, ttft, ttft200  # noqa: E402

EXPERIMENTS: dict[str, Callable[[Plan], Facts]] = {
    "ttft": ttft,
    "ttft200": ttft200,
    "thousand": thousand,
    "ceiling": ceiling,
    "memory": memory,
    "cancel": cancel,
    "isolation": isolation,
    "scarcity": scarcity,
    "department": department,
}


def measure(name: str, plan: Plan) -> Facts:
    """One experiment, with the conditions it was made under."""
    began = time.monotonic()
    facts = EXPERIMENTS[name](plan)
    return {
        "experiment": name,
        "effort": plan.effort,
        "conditions": _conditions() | {"seconds": round(time.monotonic() - began, 1)},
        **facts,
    }


def _conditions() -> Facts:
    nginx = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
    told = subprocess.run([nginx, "-v"], capture_output=True, text=True, check=False).stderr if nginx else ""
    found = re.search(r"nginx/([\d.]+)", told)
    return {
        "processors": os.cpu_count(),
        "python": platform.python_version(),
        "nginx": found[1] if found else None,
        "load_before": round(os.getloadavg()[0], 2),
    }


def main() -> None:
    """See the top of this file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=[*EXPERIMENTS, "all", "crowd"])
    parser.add_argument("--kit", type=Path, default=ROOT.parent / "shared" / "bench", help="the bench kit's folder")
    parser.add_argument("--quick", action="store_true", help="less of everything, to look")
    parser.add_argument("--lend", action="store_true", help="isolation: also with lend and preempt")
    parser.add_argument("--out", type=Path, help="write the result there as well; with all: the folder")
    hidden = parser.add_argument_group("one experiment's own helper process")
    for option in ("--target", "--key"):
        hidden.add_argument(option, help=argparse.SUPPRESS)
    hidden.add_argument("--clients", type=int, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # everything is stopped then, too
    if asked.name == "crowd":
        return run(crowd(Target(asked.target, ROUTE, asked.key), asked.clients))
    kit = asked.kit.resolve()
    if not (kit / "mock_upstream.py").is_file():
        sys.exit(f"the bench kit is not in {kit}: name its folder with --kit")
    plan = Plan(kit, "quick" if asked.quick else "full", asked.lend)
    if asked.name != "all":
        return _write(measure(asked.name, plan), asked.out)
    from tests.load import plots

    folder, failed = asked.out or plots.FIGURES, []
    for name in EXPERIMENTS:
        say(name)
        try:
            _write(measure(name, plan), folder / f"{name}.json")
        except Exception as error:  # noqa: BLE001 - the others take half an hour: they are not lost for one
            say(f"{name} failed: {error!r}")
            failed.append(name)
    plots.main(folder)
    return sys.exit(f"to be done again: {', '.join(failed)}") if failed else None


def _write(facts: Facts, out: Path | None) -> None:
    text = json.dumps(facts, indent=1)
    text = re.sub(r"\[[^][{}]*\]", lambda found: " ".join(found[0].split()), text)  # a list of numbers is one line
    print(text)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text + "\n")


if __name__ == "__main__":
    try:
        main()
    except asyncio.CancelledError:
        sys.exit(143)
