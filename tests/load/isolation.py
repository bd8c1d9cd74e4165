"""People online beside a batch backlog on the same upstream: in lanes, in lanes that lend, and in one line."""

from __future__ import annotations

import asyncio
import json
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.load import stage
from tests.load.client import Pool, Reply, Target, milliseconds, quantile, spread_ms
from tests.load.plan import Plan, firsts, run, say
from tests.load.stage import ROUTE, Facts, Stage

FOLDER = Path(__file__).parent

SHORT = "mock-t50-i10-n10"
"""140 ms a generation: many of them fit into a measurement."""
LANE_SLOTS = 8
LENT_SLOTS = LANE_SLOTS // 2
"""Half: what comes back from another process takes a look (20 ms) and a commit, so online keeps what it often needs."""


def isolation(plan: Plan) -> Facts:
    """An upstream of 16 places, 8 for each lane; 50 people online who think between questions, first alone, then
    beside a batch worker with thousands of calls waiting. Beside it the same people where both share one line."""
    facts: Facts = {
        "model": SHORT,
        "upstream_slots": 2 * LANE_SLOTS,
        "slots": {"online": LANE_SLOTS, "batch": LANE_SLOTS},
        "users": plan.pick(50, 50, 20),
        "think_s": 2.5,
        "variants": {"lanes": _lanes(plan, ())},
    }
    if plan.lends:
        facts["variants"]["lend"] = _lanes(plan, (f"lend = {LENT_SLOTS}", "preempt = true"))
    if plan.effort != "slice":
        facts["variants"]["one line"] = _one_line(plan)
    return facts


def _lanes(plan: Plan, optional: tuple[str, ...]) -> Facts:
    waiting = plan.pick(2_000, 2_000, 200)
    with Stage(plan.kit) as scene:
        upstream = scene.mock("--slots", str(2 * LANE_SLOTS))
        gateway = scene.gateway(upstream, SHORT, online=LANE_SLOTS, batch=LANE_SLOTS, optional=optional)
        if gateway.refused_keys and len(gateway.refused_keys) == len(optional):
            return {"refused_keys": gateway.refused_keys, "notes": ["this version's configuration has no such keys"]}
        batch: list[Facts] = []

        def beside(measure: Callable[[], list[Reply]]) -> list[Reply]:
            command = [sys.executable, str(FOLDER / "backlog.py"), str(gateway.file), ROUTE, str(waiting)]
            worker = scene.child("backlog", command)
            assert worker.stdin is not None
            assert worker.stdout is not None
            if worker.stdout.readline() != "ready\n":
                raise RuntimeError(f"the batch worker did not start: {scene.log_of(worker)}")
            time.sleep(plan.pick(2, 1, 0.5))  # thousands begin at once: let them get in line
            _ask(worker)
            replies = measure()
            batch.append(_ask(worker))
            worker.stdin.close()
            worker.wait(20)
            scene.stop(worker)
            return replies

        before = stage.stats(upstream)
        facts = _people(plan, Target(gateway.url, ROUTE, gateway.key), beside)
        aborted = stage.stats(upstream)["aborted"] - before["aborted"]
        is_free, held = gateway.nothing_held_within(5)
    in_flight = statistics.mean(each["mean_in_flight"] for each in batch)
    return facts | {
        "batch": {
            "calls_waiting": waiting,
            "mean_in_flight": round(in_flight, 2),
            "slots_busy": round(min(in_flight, LANE_SLOTS) / LANE_SLOTS, 4),
            "most_in_flight": max(each["most_in_flight"] for each in batch),
            "done": sum(each.get("done", 0) for each in batch),
            "failed": sum(each.get("failed", 0) for each in batch),
            "problems": [each["problems"] for each in batch if each["problems"]],
            "generations_cut_upstream": aborted,
        },
        "refused_keys": gateway.refused_keys,
        "nothing_held": is_free,
        "held_after": held,
        "notes": scene.notes,
    }


def _ask(worker: subprocess.Popen[str]) -> Facts:
    assert worker.stdin is not None
    assert worker.stdout is not None
    worker.stdin.write("\n")
    worker.stdin.flush()
    told: Facts = json.loads(worker.stdout.readline())
    return told


def _one_line(plan: Plan) -> Facts:
    """No lanes: batch clients call as anybody does, the gateway's slots bind nobody, and the upstream's 16 places are
    given in the order of arrival."""
    clients = plan.pick(1_000, 300, 100)
    with Stage(plan.kit) as scene:
        upstream = scene.mock("--slots", str(2 * LANE_SLOTS))
        gateway = scene.gateway(upstream, SHORT, online=4_000, deadline_ms=600_000)
        target = Target(gateway.url, ROUTE, gateway.key)

        def beside(measure: Callable[[], list[Reply]]) -> list[Reply]:
            command = [
                sys.executable,
                str(FOLDER / "online.py"),
                "crowd",
                "--kit",
                str(plan.kit),
                "--target",
                target.url,
                "--key",
            ]
            crowd = scene.child("crowd", [*command, target.key, "--clients", str(clients)])
            assert crowd.stdin is not None
            stage.wait_for(
                lambda: stage.stats(upstream)["waiting"] >= 0.9 * clients - 2 * LANE_SLOTS, "the crowd to be in line"
            )
            replies = measure()
            crowd.stdin.close()
            crowd.wait(20)
            scene.stop(crowd)
            stage.wait_for(lambda: not stage.stats(upstream)["active"], "the line to empty", 30)
            return replies

        facts = _people(plan, target, beside)
    return facts | {"batch": {"calls_waiting": clients}, "notes": scene.notes}


async def crowd(target: Target, clients: int) -> None:
    """Batch clients who ask again as soon as they are answered, until our input ends."""
    pool, request = Pool(target), target.request()
    await pool.warm(clients)
    is_over = asyncio.Event()

    async def one() -> None:
        while not is_over.is_set():
            await pool.ask(request)

    tasks = [asyncio.create_task(one()) for _ in range(clients)]
    await asyncio.to_thread(sys.stdin.read)
    is_over.set()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _people(plan: Plan, target: Target, beside: Callable[[Callable[[], list[Reply]]], list[Reply]]) -> Facts:
    """Rounds of idle and beside batch; ratios are taken within a round."""
    users, seconds = plan.pick(50, 50, 20), plan.pick(30.0, 8.0, 2.0)
    think_s = plan.pick(2.5, 2.5, 0.5)
    idle: list[list[Reply]] = []
    loaded: list[list[Reply]] = []
    for number in range(plan.pick(3, 1, 1)):
        say(f"round {number + 1}: {users} people, alone and beside batch, {seconds:g} s each")

        def measure(seed: int = number) -> list[Reply]:
            return run(_think_and_ask(target, users, think_s=think_s, seconds=seconds, seed=seed))

        idle.append(measure())
        loaded.append(beside(measure))

    def ratios(part: float) -> list[float]:
        pairs = [(quantile(firsts(a), part), quantile(firsts(b), part)) for a, b in zip(idle, loaded, strict=True)]
        return [round((b or 0.0) / (a or 1.0), 3) for a, b in pairs]

    return {
        "rounds": len(idle),
        "seconds": seconds,
        "ttft_ms_idle": _told([reply for each in idle for reply in each]),
        "ttft_ms_beside_batch": _told([reply for each in loaded for reply in each]),
        "ratio": {"p50": statistics.median(ratios(0.5)), "p99": statistics.median(ratios(0.99))},
        "ratio_rounds": {"p50": ratios(0.5), "p99": ratios(0.99)},
    }


def _told(replies: list[Reply]) -> Facts:
    """The spread of first-token times, with every percent of it for a plot, and what went wrong."""
    times = firsts(replies)
    bad = [reply.problem for reply in replies if reply.problem]
    percents = [milliseconds(quantile(times, percent / 100)) for percent in range(100)]
    return spread_ms(times) | {"errors": len(bad), "kinds_of_errors": sorted(set(bad)), "percents": percents}


async def _think_and_ask(target: Target, users: int, *, think_s: float, seconds: float, seed: int) -> list[Reply]:
    """People who think (exponential, mean `think_s`), ask, read the answer, and think again."""
    pool, request, replies = Pool(target), target.request(), []
    await pool.warm(users)
    end = time.perf_counter() + seconds

    async def one(number: int) -> None:
        chance = random.Random(f"{seed} {number}")
        while True:
            pause = chance.expovariate(1 / think_s)
            if time.perf_counter() + pause > end:
                return
            await asyncio.sleep(pause)
            replies.append(await pool.ask(request))

    await asyncio.gather(*(one(number) for number in range(users)))
    pool.close()
    return replies
