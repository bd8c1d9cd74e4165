"""Many streams and nothing else: time added to the first token, ceiling, a thousand at once, memory."""

from __future__ import annotations

import asyncio
import json
import statistics
import subprocess
import sys
import time
from typing import Any

from tests.load import stage
from tests.load.client import Pool, Reply, Target, spread_ms
from tests.load.plan import PACED, Plan, run, say
from tests.load.stage import ROUTE, Facts, Stage


def side_by_side(
    plan: Plan, model: str, *, streams: int, tokens: int, seconds: float, rounds: int, stagger: float = 1.0
) -> Facts:
    """Medians by target, and what the gateway and nginx add to direct in the same round. One pair of rounds shares the
    machine's mood, so differences are taken within it, and then their median."""
    with Stage(plan.kit) as scene:
        upstream = scene.mock()
        gateway = scene.gateway(upstream, model, online=2 * streams)
        targets = [f"direct={upstream}"]
        nginx = scene.nginx(upstream, 2 * streams)
        if nginx is not None:
            targets.append(f"nginx={nginx[0]},pid={nginx[1]}")
        targets.append(f"twolane={gateway.url},pid={gateway.pid},key={gateway.key},model={ROUTE}")
        result = gateway.file.parent / "rounds.json"
        command = [sys.executable, str(plan.kit / "load_online.py"), "--model", model, "--stream", "-c", str(streams)]
        command += ["-d", str(seconds), "--rounds", str(rounds), "--stagger", str(stagger), "--json", str(result)]
        command += ["--expect-tokens", str(tokens), "--warmup", str(plan.pick(2, 2, 0))]
        for target in targets:
            command += ["--target", target]
        say(f"{streams} streams of {model}: {rounds} rounds of {seconds:g} s for each of {len(targets)} targets")
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=stage.environment())
        measured = json.loads(result.read_text())["rounds"]
    return {
        "streams": streams,
        "model": model,
        "rounds": rounds,
        "seconds": seconds,
        "targets": {name: _medians(each, measured["direct"], name) for name, each in measured.items()},
        "notes": scene.notes,
    }


def _medians(rounds: list[Facts], direct: list[Facts], name: str) -> Facts:
    def median(column: str) -> float:
        values: list[float] = [each[column] for each in rounds]
        return round(statistics.median(values), 3)

    facts: Facts = {
        "requests_per_second": median("rps"),
        "ttft_ms": {"p50": median("ttft50"), "p99": median("ttft99")},
        "requests": sum(each["n"] for each in rounds),
        "errors": sum(each["err"] for each in rounds),
    }
    kinds = {kind for each in rounds for kind in each["errors"]}
    if kinds:
        facts["kinds_of_errors"] = sorted(kinds)
    if name != "direct":
        pairs = list(zip(rounds, direct, strict=True))
        added = {p: [each[f"ttft{p[1:]}"] - base[f"ttft{p[1:]}"] for each, base in pairs] for p in ("p50", "p99")}
        facts |= {
            "added_ttft_ms": {p: round(statistics.median(values), 2) for p, values in added.items()},
            "added_ttft_ms_rounds": {p: [round(value, 2) for value in values] for p, values in added.items()},
            "load_sustained": round(statistics.median(each["rps"] / base["rps"] for each, base in pairs), 3),
            "cpu_s_per_1000": median("cpu1k"),
            "resident_mb": median("rss"),
        }
    return facts


def ttft(plan: Plan) -> Facts:
    """50 paced streams."""
    return side_by_side(
        plan, plan.pick(PACED, PACED, "mock-t50-i20-n16"), tokens=plan.pick(64, 64, 16),
        streams=plan.pick(50, 50, 20), stagger=plan.pick(1.3, 1.3, 0.3),
        seconds=plan.pick(8, 4, 0.6), rounds=plan.pick(5, 2, 1),
    )  # fmt: skip


def ttft200(plan: Plan) -> Facts:
    """200 paced streams."""
    return side_by_side(
        plan, PACED, streams=200, tokens=64, stagger=1.3,
        seconds=plan.pick(8, 4, 1.5), rounds=plan.pick(5, 2, 1),
    )  # fmt: skip


def ceiling(plan: Plan) -> Facts:
    """Nothing waits: 20 tokens at once, 50 connections."""
    facts = side_by_side(
        plan, "mock-z-n20", streams=50, tokens=20, seconds=plan.pick(5, 3, 1), rounds=plan.pick(5, 2, 1)
    )
    targets = facts["targets"]
    if "nginx" in targets:
        ratio = targets["twolane"]["requests_per_second"] / targets["nginx"]["requests_per_second"]
        facts["ratio_to_nginx"] = round(ratio, 3)
    return facts


def thousand(plan: Plan) -> Facts:
    """Every stream is open at once, twice over: paced as a slow model (5 tokens a second each), then as a fast one (50
    a second each, more than the machine can carry: late, but without an error)."""
    streams, facts = plan.pick(1000, 1000, 200), {}
    kinds = (("slow", "mock-t50-i200-n32", 32, 5.0), ("fast", PACED, 64, 1.0))
    for name, model, tokens, over_s in plan.pick(kinds, kinds, kinds[1:]):
        with Stage(plan.kit) as scene:
            upstream = scene.mock()
            gateway = scene.gateway(upstream, model, online=2 * streams)
            say(f"{streams} streams of {model}, {plan.pick(3, 2, 1)} times")
            replies = run(_all_at_once(Target(gateway.url, ROUTE, gateway.key), streams, plan.pick(3, 2, 1), over_s))
            good = [reply for reply in replies if not reply.problem and reply.events == tokens]
            facts[name] = {
                "model": model,
                "requests": len(replies),
                "errors": len(replies) - len(good),
                "kinds_of_errors": sorted({reply.problem or f"{reply.events} tokens" for reply in replies} - {""})
                if len(good) < len(replies)
                else [],
                "most_at_once_upstream": stage.stats(upstream)["peak_active"],
                "ttft_ms": spread_ms([reply.first_s for reply in good]),
                "resident_mb": stage.resident_mb(gateway.pid),
                "cpu_s_per_1000": round(stage.cpu_s(gateway.pid) / len(replies) * 1000, 2),
                "notes": scene.notes,
            }
    return {"streams": streams, "open_files_allowed": stage.raise_open_files(), **facts}


async def _all_at_once(target: Target, streams: int, times: int, over_s: float) -> list[Reply]:
    """Start this many streams over some seconds, and each again when it has ended."""
    pool, request = Pool(target), target.request()
    await pool.warm(streams)

    async def one(number: int) -> list[Reply]:
        await asyncio.sleep(over_s * number / streams)
        return [await pool.ask(request) for _ in range(times)]

    replies = await asyncio.gather(*(one(number) for number in range(streams)))
    pool.close()
    return [reply for each in replies for reply in each]


def memory(plan: Plan) -> Facts:
    """Resident memory while requests go by. Flat: the second half grows by less than 5 % of it in 100,000 requests.
    The first 25,000 fill the page caches of the store, so fewer than 50,000 tell nothing."""
    total, step = plan.pick(100_000, 20_000, 1_000), plan.pick(5_000, 1_000, 200)
    with Stage(plan.kit) as scene:
        gateway = scene.gateway(scene.mock(), "mock-z-n20", online=100)
        target, samples = Target(gateway.url, ROUTE, gateway.key), [(0, stage.resident_mb(gateway.pid))]
        errors, began = 0, time.perf_counter()
        say(f"{total:,} requests without delay on 50 connections")

        async def go() -> int:
            pool, request, bad = Pool(target), target.request(), 0
            await pool.warm(50)
            for done in range(step, total + 1, step):
                numbers = iter(range(step))

                async def work(numbers: Any = numbers) -> int:  # Any: one iterator shared by all
                    return sum([bool((await pool.ask(request)).problem) for _ in numbers])

                bad += sum(await asyncio.gather(*(work() for _ in range(50))))
                samples.append((done, stage.resident_mb(gateway.pid)))
            pool.close()
            return bad

        errors = run(go())
        seconds = time.perf_counter() - began
        wait = gateway.nothing_held_within(5)
    half = samples[len(samples) // 2 :]
    slope = statistics.linear_regression([n for n, _ in half], [mb for _, mb in half]).slope * 100_000
    return {
        "requests": total,
        "errors": errors,
        "requests_per_second": round(total / seconds),
        "samples": samples,
        "start_mb": samples[0][1],
        "max_mb": max(mb for _, mb in samples),
        "slope_second_half_mb_per_100000": round(slope, 2),
        "is_flat": abs(slope) <= 0.05 * half[-1][1] if total >= 50_000 else None,
        "held_after": wait[1],
        "notes": scene.notes,
    }
