"""What a budget of $1 lets through in the cases where other gateways overspend, and whether the ledger says what the
upstream billed: `python tests/load/figures.py money [calls] [address of an empty PostgreSQL database]`.

The upstream is scripted: every call uses all that its bound allows, and the upstream keeps its own bill, in files, so
that it survives those who are killed. `used` is what was spent of the limit less the bound of one call.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from twolane.config import Config, PriceTable, Slots, UpstreamSection
from twolane.domain.money import PICO, decimal_string
from twolane.domain.records import Lane, Message, ModelCall, Origin, Route
from twolane.errors import BudgetExceeded, TwolaneError
from twolane.kernel import Kernel, Request, ledger
from twolane.kernel.treasury import drift
from twolane.models.rehearsal import Rehearsal
from twolane.rules.reading import input_bound, measure

ROOT = Path(__file__).parents[2]
Figures = dict[str, Any]  # Any: JSON
MICRO = PICO // 10**6
"""A token of input costs this, one of output twice as much."""


class Billing(Rehearsal):
    """A rehearsal that writes down what each call costs, the moment it leaves."""

    def __init__(self, bill: Path, cost: int, **options: Any) -> None:  # Any: each option has its own type
        super().__init__("up", **options)
        self._bill, self._cost = os.open(bill, os.O_WRONLY | os.O_APPEND | os.O_CREAT), cost

    async def open(self, call: ModelCall) -> Any:  # Any: as the rehearsal's
        """Bill the call, then answer it."""
        os.write(self._bill, b"%d\n" % self._cost)
        return await super().open(call)


def call_of(dollars: str, *, is_bounded: bool = True) -> ModelCall:
    """A call whose bound is exactly so much."""
    micro = int(float(dollars) * 10**6)
    output = micro // 2 - 1_000
    return ModelCall((Message("user", "x" * (micro - 2 * output - 16)),), "", output if is_bounded else 0)


def config(folder: Path, address: str) -> Config:
    """One upstream, as many slots as any case needs."""
    price, slots = PriceTable(input="1", output="2"), Slots(online=2_000, batch=100)
    limit: Any = {"context": 10**9, "output": 10**9}
    up = UpstreamSection(kind="rehearsal", price=price, slots=slots, limit=limit, retries=2)
    where: Any = {"store": address, "keys": {"folder": str(folder / "keys")}}
    return Config(**where, upstream={"up": up}, route={})


async def ask(kernel: Kernel, call: ModelCall, *, key: str = "k", is_bounded: bool = True) -> None:
    """One online call, read to its end."""
    asked = Request(
        Origin("t", key=key), Lane.ONLINE, Route("up", ("up",), "test"), call, is_bounded_by_caller=is_bounded
    )
    async with kernel.door.step(asked) as answer:
        await answer.whole()
    await answer.durable()


async def child(folder: Path, address: str, tag: str, dollars: str, calls: int, ms: float, is_bounded: bool) -> None:
    """One process: so many calls at once."""
    call = call_of(dollars, is_bounded=is_bounded)
    full = call_of(dollars)
    bound, output = int(float(dollars) * 10**6) * MICRO, full.max_tokens
    model = Billing(
        folder / f"bill-{tag}-{os.getpid()}", bound, input_tokens=input_bound(full), output_tokens=output,
        reply="some words that take their time", token_ms=ms,
    )  # fmt: skip
    kernel = await Kernel.open(config(folder, address), models={"up": model})
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    print("begun", flush=True)
    asks = (ask(kernel, call, is_bounded=is_bounded) for _ in range(calls))
    answers = await asyncio.gather(*asks, return_exceptions=True)
    await kernel.aclose()
    wrong = [repr(answer) for answer in answers if answer is not None and not isinstance(answer, BudgetExceeded)]
    print(wrong[:3] or "ended", flush=True)


def case(
    folder: Path, address: str, tag: str, *, scope: str, dollars: str, calls: int, processes: int = 1, kills: int = 0,
    is_bounded: bool = True,
) -> Figures:  # fmt: skip
    """Processes that all begin at once under one budget of a dollar; `kills` of them are killed in mid-call."""

    async def prepare() -> int:
        kernel = await Kernel.open(config(folder, address), can_call=False)
        await kernel.treasury.set_budget(scope, period="total", pico=PICO, actor="figures")
        before = (await kernel.treasury.all_accounts())[0].spent.pico
        await kernel.treasury.set_budget(scope, period="total", pico=before + PICO, actor="figures")
        await kernel.aclose()
        time.sleep(0.2)
        return before

    async def look() -> tuple[int, int, list[str]]:
        kernel = await Kernel.open(config(folder, address))
        async with asyncio.timeout(60):
            while {row["owner"] for row in kernel.store.all("owners")} - {kernel.presence.name}:
                await asyncio.sleep(0.1)
        (account,) = await kernel.treasury.all_accounts()
        wrong = drift(kernel.store)
        await kernel.store.write(lambda tx: tx.run("remove_budget", scope=scope))
        await kernel.aclose()
        return account.spent.pico, account.held.pico, wrong

    before = asyncio.run(prepare())
    ms = 50 if kills else 2
    code = f"import asyncio; from pathlib import Path; from tests.load.money import child; asyncio.run(child(Path({str(folder)!r}), {address!r}, {tag!r}, {dollars!r}, {calls}, {ms}, {is_bounded}))"  # noqa: E501
    with contextlib.ExitStack() as stack:
        running = [
            stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", code], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
                )
            )
            for _ in range(processes)
        ]
        _all_say(running, "ready")
        for process in running:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        _all_say(running, "begun")
        if kills:
            time.sleep(0.3)
        for process in running[:kills]:
            process.send_signal(signal.SIGKILL)
        _all_say(running[kills:], "ended")
    spent, held, wrong = asyncio.run(look())
    bound = int(float(dollars) * 10**6) * MICRO
    billed = sum(int(line) for bill in folder.glob(f"bill-{tag}-*") for line in bill.read_text().split())
    return {
        "case": tag, "calls": calls * processes, "billed": decimal_string(billed),
        "spent": decimal_string(spent - before), "overspent_pico": max(0, spent - before + held - PICO, billed - PICO),
        "used": round((spent - before) / (PICO - bound), 4) if bound < PICO else None, "drift": wrong,
    }  # fmt: skip


def _all_say(running: list[subprocess.Popen[str]], word: str) -> None:
    for process in running:
        assert process.stdout is not None
        said = process.stdout.readline().strip()
        assert said == word, f"{word} was expected, not {said!r}"


def bill(folder: Path, address: str, calls: int) -> Figures:
    """Calls with retries, cut streams and refusals: the ledger's total beside the upstream's own bill. A stream that is
    cut brings no usage; the upstream bills the words that it sent, which is what the estimate counts."""
    prompt = ModelCall((Message("user", "x" * 64),), "", 400)
    size = -(-(sum(measure(prompt)[:1]) + 16) // 4)
    faults = "every 9th: 503; every 13th: cut 3; every 17th: unreachable; every 101st: 400"
    model = _Counting("up", faults=faults, reply="one two three four five", input_tokens=size, seed=3)
    draw = random.Random(5)

    async def go() -> Figures:
        kernel = await Kernel.open(config(folder, address), models={"up": model})
        await kernel.treasury.set_budget("tenant:t", period="month", pico=10**6 * PICO, actor="figures")
        await kernel.treasury.set_budget("key:t/poor", period="total", calls=1, actor="figures")
        numbers, ends = iter(range(calls)), dict[str, int]()

        async def person() -> None:
            for _ in numbers:
                try:
                    await ask(kernel, prompt, key="poor" if draw.random() < 0.1 else "k")
                    end = "ok"
                except TwolaneError as error:
                    end = type(error).__name__
                ends[end] = ends.get(end, 0) + 1

        await asyncio.gather(*(person() for _ in range(64)))
        await kernel.treasury.give_back()
        await kernel.store.write(lambda tx: None)
        steps = kernel.store.all("steps_since", count=10 * calls)
        total = sum(row["cost_pico"] or 0 for row in steps)
        billed = model.accepted * size * MICRO + model.tokens * 2 * MICRO
        (account,) = [each for each in await kernel.treasury.all_accounts() if each.scope == "tenant:t"]
        result = {
            "calls": calls, "ends": ends, "steps": len(steps), "ledger_pico": total, "billed_pico": billed,
            "budget_pico": account.spent.pico, "difference_pico": total - billed,
            "ledger_ok": ledger.verify(kernel.store).ok, "drift": drift(kernel.store),
        }  # fmt: skip
        await kernel.aclose()
        return result

    return asyncio.run(go())


class _Counting(Rehearsal):
    accepted = 0

    async def open(self, call: ModelCall) -> Any:  # Any: as the rehearsal's
        stream = await super().open(call)
        self.accepted += 1
        return stream


CASES: dict[str, dict[str, Any]] = {  # Any: arguments of `case`
    "200 at once of $0.051": {"scope": "key:t/k", "dollars": "0.051", "calls": 200},
    "60 at once of $0.801": {"scope": "key:t/k", "dollars": "0.801", "calls": 60},
    "no max_tokens, really $0.801": {"scope": "key:t/k", "dollars": "0.801", "calls": 60, "is_bounded": False},
    "two processes, 200 each": {"scope": "key:t/k", "dollars": "0.051", "calls": 200, "processes": 2},
    "eight processes, 200 each": {"scope": "key:t/k", "dollars": "0.0051", "calls": 200, "processes": 8},
    "a provider's budget": {"scope": "upstream:up", "dollars": "0.0051", "calls": 200, "processes": 2},
    "kill -9 of two in mid-call": {"scope": "tenant:t", "dollars": "0.0051", "calls": 200, "processes": 4, "kills": 2},
}


def money(calls: int | str = 10_000, address: str = "") -> Figures:
    """All of it, in one store."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        where = address or f"sqlite:{folder / 'money.db'}"
        rows = [case(folder, where, tag, **arguments) for tag, arguments in CASES.items()]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        return {"cases": rows, "ledger": bill(folder, f"sqlite:{folder / 'bill.db'}", int(calls))}
