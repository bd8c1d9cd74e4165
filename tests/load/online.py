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
import random
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # run as a script, its own folder is there instead

import uvloop  # noqa: E402
from tests.load import stage  # noqa: E402
from tests.load.client import (  # noqa: E402
    Connection,
    Pool,
    Reply,
    Target,
    milliseconds,
    quantile,
    spread_ms,
)
from tests.load.stage import ROUTE, Facts, Stage  # noqa: E402

T = TypeVar("T")

PACED = "mock-t50-i20-n64"
"""50 ms to the first token, 20 ms between tokens, 64 tokens: 1.3 s a generation."""


@dataclass(frozen=True)
class Plan:
    """How much is measured: everything for the record, `quick` to look, `slice` for a test."""

    kit: Path
    effort: Literal["full", "quick", "slice"] = "full"
    lends: bool = False
    """Isolation also with `lend` and `preempt`."""

    def pick(self, full: T, quick: T, slice_: T) -> T:
        """The one for this effort."""
        return {"full": full, "quick": quick, "slice": slice_}[self.effort]


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run a client's work on the fast loop. SIGTERM cancels it: an exception raised in a callback may be swallowed."""

    async def go() -> T:
        task = asyncio.current_task()
        assert task is not None
        loop, before = asyncio.get_running_loop(), signal.getsignal(signal.SIGTERM)
        loop.add_signal_handler(signal.SIGTERM, task.cancel, "SIGTERM")
        try:
            return await work
        finally:
            loop.remove_signal_handler(signal.SIGTERM)
            signal.signal(signal.SIGTERM, before)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(go())


def say(text: str) -> None:
    """Progress, beside the result."""
    print(f"  {text}", file=sys.stderr, flush=True)


# ── the kit's client: direct, nginx and the gateway in alternation ──


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
        seconds=plan.pick(8, 4, 0.3), rounds=plan.pick(5, 2, 1),
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


# ── a thousand streams ──


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


# ── memory ──


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


# ── hang-ups ──


def cancel(plan: Plan) -> Facts:
    """Clients hang up at every moment there is; upstream, the generation must stop within a second, and nothing may
    stay held: neither money, nor a reservation, nor a slot."""
    clients = plan.pick(100, 50, 20)
    moments: dict[str, tuple[str, bool, int]] = {
        "before the first token": ("mock-t5000-i20-n64", True, 0),
        "after three tokens": ("mock-t100-i100-n200", True, 3),
        "not streamed": ("mock-t1000-i100-n200", False, 0),
    }
    facts: Facts = {}
    for moment, (model, is_streamed, after) in moments.items():
        if plan.effort == "slice" and moment == "after three tokens":
            continue
        say(f"{clients} clients hang up {moment}")
        facts[moment] = _hang_up(plan, model, clients, is_streamed=is_streamed, after=after)
    if plan.effort == "slice":
        return {"clients": clients, "moments": facts}
    say(f"{clients} clients hang up while they wait for one of {clients // 5} slots")
    facts["in line"] = _hang_up(plan, "mock-t5000-i20-n64", clients, slots=clients // 5)
    return {"clients": clients, "moments": facts}


def _hang_up(
    plan: Plan, model: str, clients: int, *, is_streamed: bool = True, after: int = 0, slots: int | None = None
) -> Facts:
    with Stage(plan.kit) as scene:
        upstream, reach = scene.mock(), slots or clients
        gateway = scene.gateway(upstream, model, online=reach)
        target = Target(gateway.url, ROUTE, gateway.key)
        left_at = run(_leave(target, upstream, clients, reach, is_streamed=is_streamed, after=after))
        time.sleep(max(0.0, left_at + 1 - time.time()))
        within = stage.stats(upstream)
        stage.wait_for(lambda: not stage.stats(upstream)["active"], "the upstream to be idle", 20)
        told = stage.stats(upstream)
        is_free, held = gateway.nothing_held_within(5)
        # Every slot is asked for once more: one that leaked would be missed here.
        again = run(_ask_all(target, reach)) if after == 0 and is_streamed and plan.effort != "slice" else None
        late = (told["last_abort_at"] or 0) - left_at
    facts: Facts = {
        "generations": told["requests"],
        "cancelled_within_1_s": within["aborted"],
        "share": round(within["aborted"] / max(1, told["requests"]), 4),
        "last_cancelled_after_ms": round(late * 1000, 1),
        "tokens_after_hangup": told["tokens_after_hangup"],
        "completed": told["completed"],
        "held_after": held,
        "nothing_held": is_free,
        "notes": scene.notes,
    }
    if again is not None:
        facts["slots_still_usable"] = sum(not reply.problem for reply in again)
        facts["slots"] = reach
    return facts


async def _leave(target: Target, upstream: str, clients: int, reach: int, *, is_streamed: bool, after: int) -> float:
    """Ask with every client, and hang up: each after its own `after` tokens, or all at once when the upstream works on
    `reach` of them. Gives the Unix time of the last hang-up."""
    left: list[float] = []
    request = target.request(is_streamed=is_streamed)

    async def one(number: int) -> None:
        connection = await Connection.to(target)
        await asyncio.sleep(number / clients if after else 0)

        def count(events: int) -> None:
            if events >= after:
                left.append(time.time())
                connection.hang_up()

        reply = connection.ask(request, is_streamed=is_streamed, on_events=count if after else None)
        if not after:
            await everybody
            left.append(time.time())
            connection.hang_up()
        await reply

    async def all_in() -> None:
        end = time.monotonic() + 4
        while (await asyncio.to_thread(stage.stats, upstream))["active"] < reach and time.monotonic() < end:
            await asyncio.sleep(0.02)
        await asyncio.sleep(0.1)

    everybody = asyncio.ensure_future(all_in())
    await asyncio.gather(*(one(number) for number in range(clients)))
    await everybody
    return max(left)


async def _ask_all(target: Target, count: int) -> list[Reply]:
    pool, request = Pool(target), target.request()
    replies = await asyncio.gather(*(pool.ask(request, timeout_s=30) for _ in range(count)))
    pool.close()
    return list(replies)


# ── isolation ──

SHORT = "mock-t50-i10-n10"
"""140 ms a generation: many of them fit into a measurement."""
LANE_SLOTS = 8


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
        facts["variants"]["lend"] = _lanes(plan, (f"lend = {LANE_SLOTS}", "preempt = true"))
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
            command = [sys.executable, str(ROOT / "tests/load/backlog.py"), str(gateway.file), ROUTE, str(waiting)]
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
                str(Path(__file__).resolve()),
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
        pairs = [(quantile(_firsts(a), part), quantile(_firsts(b), part)) for a, b in zip(idle, loaded, strict=True)]
        return [round((b or 0.0) / (a or 1.0), 3) for a, b in pairs]

    return {
        "rounds": len(idle),
        "seconds": seconds,
        "ttft_ms_idle": _told([reply for each in idle for reply in each]),
        "ttft_ms_beside_batch": _told([reply for each in loaded for reply in each]),
        "ratio": {"p50": statistics.median(ratios(0.5)), "p99": statistics.median(ratios(0.99))},
        "ratio_rounds": {"p50": ratios(0.5), "p99": ratios(0.99)},
    }


def _firsts(replies: list[Reply]) -> list[float]:
    return [reply.first_s for reply in replies if not reply.problem]


def _told(replies: list[Reply]) -> Facts:
    """The spread of first-token times, with every percent of it for a plot, and what went wrong."""
    firsts = _firsts(replies)
    bad = [reply.problem for reply in replies if reply.problem]
    percents = [milliseconds(quantile(firsts, percent / 100)) for percent in range(100)]
    return spread_ms(firsts) | {"errors": len(bad), "kinds_of_errors": sorted(set(bad)), "percents": percents}


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


# ── scarcity ──


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
        "ttft_ms_unloaded": spread_ms(_firsts(calm)),
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


# ── department ──


def department(plan: Plan) -> Facts:
    """Everybody presses Enter at the same instant, once. 24 slots, and nobody is left waiting past the deadline."""
    slots, deadline_ms = 24, 2_000
    crowds: Facts = {}
    with Stage(plan.kit) as scene:
        upstream = scene.mock("--slots", str(slots))
        gateway = scene.gateway(upstream, PACED, online=slots, deadline_ms=deadline_ms)
        target = Target(gateway.url, ROUTE, gateway.key)
        run(_ask_all(target, 2))
        for users in plan.pick((50, 200, 500), (50, 200, 500), (50,)):
            replies: list[Reply] = []
            rounds = plan.pick(5, 2, 1)
            say(f"{users} users at once, {rounds} times")
            for _ in range(rounds):
                replies += run(_burst(target, users))
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


async def _burst(target: Target, users: int) -> list[Reply]:
    pool, request = Pool(target), target.request()
    await pool.warm(users)
    replies = await asyncio.gather(*(pool.ask(request) for _ in range(users)))
    pool.close()
    return list(replies)


# ── the command ──

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
