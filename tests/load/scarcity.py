"""More is asked than there is: of a provider's requests a minute, and of slots."""

from __future__ import annotations

import asyncio
import random
import time

from tests.load import stage
from tests.load.client import Pool, Reply, Target, milliseconds, spread_ms
from tests.load.plan import PACED, Plan, ask_all, firsts, run, say
from tests.load.stage import ROUTE, Facts, Stage


def scarcity(plan: Plan) -> Facts:
    """An upstream that refuses past 60 requests in any minute. Poisson arrivals at three times that, on a route where
    waiting is worse than a quick no (`deadline_ms = 25`)."""
    per_minute, seconds, deadline_ms = 60, plan.pick(180.0, 60.0, 4.0), 25
    rate = (f"rate = {{ requests_per_minute = {per_minute} }}",)
    with Stage(plan.kit) as scene:
        upstream = scene.mock("--rpm", str(per_minute))
        # Lanes share a rate by their slots, and nothing but the online lane is measured here.
        gateway = scene.gateway(upstream, PACED, online=59, batch=1, deadline_ms=deadline_ms, optional=rate)
        target = Target(gateway.url, ROUTE, gateway.key)
        say(f"unloaded, then {seconds:g} s of {3 * per_minute} requests a minute")
        calm = run(_one_by_one(target, plan.pick(10, 5, 2), pause_s=60 / per_minute * 1.5))
        stage.reset(upstream)
        replies, refused_upstream = run(_poisson(target, upstream, 3 * per_minute / 60, seconds))
        told = stage.stats(upstream)
        is_free, held = gateway.nothing_held_within(5)
    accepted = [(at, reply) for at, reply in replies if not reply.problem]
    refused = [(at, reply) for at, reply in replies if reply.is_refused]
    others = [reply.problem for _, reply in replies if reply.problem and not reply.is_refused]
    width = plan.pick(5.0, 5.0, 1.0)
    return {
        "requests_per_minute": per_minute,
        "offered": len(replies),
        "seconds": seconds,
        "deadline_ms": deadline_ms,
        "refused_keys": gateway.refused_keys,
        "ttft_ms_unloaded": spread_ms(firsts(calm)),
        "ttft_ms_accepted": spread_ms([reply.first_s for _, reply in accepted]),
        "refused_after_ms": spread_ms([reply.total_s for _, reply in refused]),
        "refusals_with_retry_after": sum("retry-after-ms" in reply.headers for _, reply in refused),
        "share_accepted": round(len(accepted) / max(1, len(replies)), 4),
        "accepted_of_what_the_upstream_takes": round(len(accepted) / (per_minute * seconds / 60), 4),
        "errors": len(others),
        "kinds_of_errors": sorted(set(others)),
        "upstream_requests": told["requests"],
        "upstream_429": told["errors"],
        "share_429": round(told["errors"] / max(1, told["requests"]), 4),
        "timeline": {
            "bucket_s": width,
            "accepted": _buckets([at for at, _ in accepted], width, seconds),
            "refused": _buckets([at for at, _ in refused], width, seconds),
            "upstream_429": _buckets(refused_upstream, width, seconds),
        },
        "nothing_held": is_free,
        "held_after": held,
        "notes": scene.notes,
    }


async def _one_by_one(target: Target, count: int, pause_s: float) -> list[Reply]:
    pool, request, replies = Pool(target), target.request(), []
    for _ in range(count):
        await asyncio.sleep(pause_s)
        replies.append(await pool.ask(request))
    pool.close()
    return replies


async def _poisson(
    target: Target, upstream: str, per_second: float, seconds: float
) -> tuple[list[tuple[float, Reply]], list[float]]:
    """Every request with the second it was made in, and the seconds in which the upstream said 429."""
    pool, request, chance = Pool(target), target.request(), random.Random(7)
    await pool.warm(10)
    began, replies, refused = time.perf_counter(), list[tuple[float, Reply]](), list[float]()

    async def one(at: float) -> None:
        replies.append((at, await pool.ask(request)))

    async def watch() -> None:
        seen = 0
        while True:
            await asyncio.sleep(0.5)
            errors = (await asyncio.to_thread(stage.stats, upstream))["errors"]
            refused.extend([time.perf_counter() - began] * (errors - seen))
            seen = errors

    watcher, at, tasks = asyncio.create_task(watch()), 0.0, []
    while (at := at + chance.expovariate(per_second)) < seconds:
        await asyncio.sleep(max(0.0, began + at - time.perf_counter()))
        tasks.append(asyncio.create_task(one(at)))
    await asyncio.gather(*tasks)
    watcher.cancel()
    await asyncio.gather(watcher, return_exceptions=True)
    pool.close()
    return replies, refused


def _buckets(times: list[float], width: float, seconds: float) -> list[int]:
    counts = [0] * max(1, round(seconds / width))
    for at in times:
        if at < len(counts) * width:
            counts[int(at / width)] += 1
    return counts


def department(plan: Plan) -> Facts:
    """Everybody presses Enter at the same instant, once. 24 slots, and nobody is left waiting past the deadline."""
    slots, deadline_ms = 24, 2_000
    crowds: Facts = {}
    with Stage(plan.kit) as scene:
        upstream = scene.mock("--slots", str(slots))
        gateway = scene.gateway(upstream, PACED, online=slots, deadline_ms=deadline_ms)
        target = Target(gateway.url, ROUTE, gateway.key)
        run(ask_all(target, 2))
        for users in plan.pick((50, 200, 500), (50, 200, 500), (50,)):
            replies: list[Reply] = []
            rounds = plan.pick(5, 2, 1)
            say(f"{users} users at once, {rounds} times")
            for _ in range(rounds):
                replies += run(ask_all(target, users))
                stage.wait_for(lambda: not stage.stats(upstream)["active"], "the upstream to be idle", 20)
            crowds[str(users)] = _crowd(replies, rounds)
        queued = gateway.query("SELECT max(queued_us) FROM trace_steps")[0][0] or 0
        is_free, held = gateway.nothing_held_within(5)
    return {
        "model": PACED,
        "slots": slots,
        "deadline_ms": deadline_ms,
        "users": crowds,
        "longest_wait_recorded_ms": round(queued / 1000, 1),
        "nothing_held": is_free,
        "held_after": held,
        "notes": scene.notes,
    }


def _crowd(replies: list[Reply], rounds: int) -> Facts:
    admitted = [reply for reply in replies if not reply.problem]
    refused = [reply for reply in replies if reply.is_refused]
    others = [reply.problem for reply in replies if reply.problem and not reply.is_refused]
    waits = [reply.total_s for reply in refused] + [reply.first_s for reply in admitted]
    return {
        "rounds": rounds,
        "admitted_ttft_ms": spread_ms([reply.first_s for reply in admitted]),
        "refused_after_ms": spread_ms([reply.total_s for reply in refused]),
        "share_refused": round(len(refused) / len(replies), 4),
        "longest_without_a_word_ms": milliseconds(max(waits, default=None)),
        "refusals_with_retry_after": sum("retry-after-ms" in reply.headers for reply in refused),
        "errors": len(others),
        "kinds_of_errors": sorted(set(others)),
    }
