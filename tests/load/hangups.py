"""Clients hang up: what becomes of the generations they asked for, and of what was held for them."""

from __future__ import annotations

import asyncio
import time

from tests.load import stage
from tests.load.client import Connection, Target
from tests.load.plan import Plan, ask_all, run, say
from tests.load.stage import ROUTE, Facts, Stage


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
        again = run(ask_all(target, reach)) if after == 0 and is_streamed and plan.effort != "slice" else None
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
