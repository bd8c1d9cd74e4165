"""The guards' figures: `python tests/load/guards.py [runaways|normal|streams|cost]`, all without a word.

runaways    scripted runaways through the whole house: what stopped each, after how many steps and how much money
normal      verdicts over normal steps: seeded histories of costs, lengths, outputs and refusals, and real runs
streams     verdicts over streams of real prose
cost        microseconds that the guards take of a step, and of a long stream
"""

from __future__ import annotations

import asyncio
import gzip
import json
import logging
import math
import random
import re
import sqlite3
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run as a script, its own folder is there instead

from twolane import Document, Item, Platform, Prompt, agent, tool, workflow
from twolane.config import Config
from twolane.domain.document import Quote
from twolane.domain.money import PICO, decimal_string
from twolane.domain.records import Lane, Message, ModelCall, Origin, Price, Route
from twolane.errors import TwolaneError
from twolane.kernel import Kernel, Request
from twolane.kernel.guards import EVERY, Guards
from twolane.kernel.meter import Meter
from twolane.models.rehearsal import Rehearsal
from twolane.rules.guards import DEFAULTS, Repetition

Figures = dict[str, Any]  # Any: JSON

NORMAL = 60
"""Items, or requests, before a runaway begins."""
WORDS = re.findall(r"[a-z]{3,}", Path(__file__).read_text())


@dataclass
class Script:
    """What the upstream says, and when it began to run away."""

    kernel: Kernel | None = None
    calls: int = 0
    onset: int | None = None
    """Entries in the ledger at that moment."""
    item: str = ""
    """The one item that runs away, where it is one."""
    draw: random.Random = field(default_factory=lambda: random.Random(4))

    def begins(self, after: int = NORMAL) -> bool:
        """Whether it runs away by now."""
        if self.onset is None and self.calls > after:
            assert self.kernel is not None
            row = self.kernel.store.one("count_entries")
            self.onset = row["entries"] if row else 0
        return self.onset is not None

    def words(self, count: int) -> str:
        """That many, drawn anew."""
        return " ".join(self.draw.choice(WORDS) for _ in range(count))

    def reply(self, words: int) -> str:
        """A reply of that many words."""
        return json.dumps({"text": self.words(words)})


class Note(BaseModel):
    text: str


class Found(BaseModel):
    quote: Quote


SCRIPT = Script()
"""Of the scene that is played; agents and workflows are found by name, so they cannot hold it."""


@agent(returns=Note, route="m", repairs=1)
def reader(contract: Document, attempt: int = 0, said: str = "") -> Prompt:
    return Prompt(system="Read.", user=f"Attempt {attempt}. {said}", context=(contract,), max_tokens=60_000)


@agent(returns=Note, route="m", repairs=0)
def critic(contract: Document, said: str, attempt: int) -> Prompt:
    return Prompt(system="Judge.", user=f"Attempt {attempt}. {said}", context=(contract,), max_tokens=60_000)


@agent(returns=Found, route="m", repairs=1)
def quoter(contract: Document) -> Prompt:
    return Prompt(system="Quote.", user="What is agreed?", context=(contract,), max_tokens=60_000)


@tool(pure=True)
async def rate_of(country: str) -> int:
    return len(country)


@agent(returns=Note, route="m", tools=(rate_of,))
def caller(contract: Document) -> Prompt:
    return Prompt(system="Call.", user="Which rate?", context=(contract,), max_tokens=60_000)


@workflow(version="1")
async def once(contract: Document, do: Item) -> Note:
    return await do(reader, contract)


@workflow(version="1")
async def quotes(contract: Document, do: Item) -> Found:
    return await do(quoter, contract)


@workflow(version="1")
async def calls(contract: Document, do: Item) -> Note:
    return await do(caller, contract)


@workflow(version="1")
async def loops(contract: Document, do: Item) -> Note:
    note = await do(reader, contract)
    for attempt in range(1, 10_000 if contract.id == SCRIPT.item else 2):
        note = await do(reader, contract, attempt, note.text)
    return note


@workflow(version="1")
async def talks(contract: Document, do: Item) -> Note:
    note = await do(reader, contract)
    for attempt in range(1, 10_000 if contract.id == SCRIPT.item else 2):
        note = await do(critic, contract, note.text, attempt)
        note = await do(reader, contract, attempt, note.text)
    return note


# ── the scenes ──

Reply = Callable[[Script, ModelCall], str]


@dataclass(frozen=True)
class Scene:
    """One runaway. `reply` plays the upstream; `flow` None is the online lane."""

    name: str
    reply: Reply
    flow: Any = once  # Any: each workflow has its own types
    is_item: bool = False
    guard: str = ""
    """What is expected to speak."""


def usual(script: Script, call: ModelCall) -> str:
    """A reply of usual length."""
    return script.reply(script.draw.randint(30, 60))


def dearer(script: Script, call: ModelCall) -> str:
    assert script.kernel is not None
    if script.onset is None and script.begins():
        upstream = script.kernel.upstreams["m"]
        assert upstream.price is not None
        dear = Price(upstream.price.input * 10, upstream.price.output * 10)
        script.kernel.upstreams["m"] = replace(upstream, price=dear)
    return usual(script, call)


def dearer_mixed(script: Script, call: ModelCall) -> str:
    dearer(script, call)
    return script.reply(max(1, int(60 * math.exp(script.draw.gauss(0, 1)))))


def longer(factor: float, words: int = 45) -> Reply:
    def reply(script: Script, call: ModelCall) -> str:
        grown = factor if script.begins() else 1.0
        return script.reply(int(words * grown * script.draw.uniform(0.7, 1.4)))

    return reply


def creeping(script: Script, call: ModelCall) -> str:
    """Begins where a step costs three times as much as the first."""
    words = int(200 * 1.03 ** max(0, script.calls - NORMAL))
    if words > 1_080:
        script.begins()
    return script.reply(words)


def says(make: Callable[[Script], str]) -> Reply:
    """One endless answer after the usual ones."""

    def reply(script: Script, call: ModelCall) -> str:
        return make(script) if script.begins() else usual(script, call)

    return reply


def of_item(make: Callable[[Script, int], str]) -> Reply:
    """What the item that runs away hears, by the number of its step."""
    steps = Counter[int]()

    def reply(script: Script, call: ModelCall) -> str:
        if not any(f"<{script.item}>" in message.content for message in call.messages):
            return usual(script, call)
        script.begins(after=-1)
        steps[id(script)] += 1
        return make(script, steps[id(script)])

    return reply


SAME = json.dumps({"text": " ".join(WORDS[100:150])})


def same(script: Script, step: int) -> str:
    return SAME


def nearly(script: Script, step: int) -> str:
    return SAME.replace(" import ", f" import{step} ", 1)


def alternating(script: Script, step: int) -> str:
    return json.dumps({"text": " ".join(WORDS[100 + 50 * (step % 2) : 150 + 50 * (step % 2)])})


def third(script: Script, step: int) -> str:
    return json.dumps({"text": " ".join(WORDS[50 * (step % 3) : 50 * (step % 3) + 50])})


def asking(script: Script, step: int) -> str:
    return json.dumps({"tool_calls": [{"name": "rate_of", "arguments": {"country": "PL"}}]})


def broken(script: Script, call: ModelCall) -> str:
    return '{"text": 1}' if script.begins() else usual(script, call)


def broken_at_once(script: Script, call: ModelCall) -> str:
    script.begins(after=-1)
    return '{"text": 1}'


def invented(script: Script, call: ModelCall) -> str:
    return json.dumps({"quote": "what nobody ever wrote or said" if script.begins() else "it is agreed that"})


def half_invented(script: Script, call: ModelCall) -> str:
    """Each first reply is wrong, each repair as well but for the shape of it."""
    return invented(script, call) if script.calls % 2 or script.onset is None else '{"quote": 1}'


PARAGRAPH = " ".join(WORDS[200:290]) + " "
SCENES = (
    Scene("price x 10, equal items", dearer, guard="cost-velocity"),
    Scene("price x 10, items of very different length", dearer_mixed, guard="cost-velocity"),
    Scene("answers 12 times as long", longer(12, 400), guard="cost-velocity token-burn"),
    Scene("answers 40 times as long", longer(40, 100), guard="cost-velocity token-burn"),
    Scene("each answer 3 % longer than the last", creeping, guard="cost-velocity"),
    Scene("endless new words", says(lambda s: '{"text": "' + s.words(50_000)), guard="token-burn"),
    Scene("one sentence again and again", says(lambda s: '{"text": "' + "the same again. " * 16_000),
          guard="repetition token-burn"),
    Scene("one paragraph again and again", says(lambda s: '{"text": "' + PARAGRAPH * 500),
          guard="repetition token-burn"),
    Scene("a counted sentence", says(lambda s: "".join(f"{n}. go on, please, and on. " for n in range(9_000))),
          guard="repetition token-burn"),
    Scene("noughts without end", says(lambda s: "[" + "0, " * 50_000), guard="repetition token-burn"),
    Scene("the same output", of_item(same), loops, True, "agent-loop"),
    Scene("nearly the same output", of_item(nearly), loops, True, "agent-loop"),
    Scene("two outputs in turn", of_item(alternating), loops, True, "agent-loop"),
    Scene("ping-pong of two agents", of_item(alternating), talks, True, "agent-loop"),
    Scene("ping-pong, three outputs", of_item(third), talks, True, "agent-loop no-progress"),
    Scene("one tool, the same arguments", of_item(asking), calls, True, "agent-loop"),
    Scene("an item that never ends", of_item(lambda s, n: s.reply(40)), loops, True, "no-progress"),
    Scene("replies that no longer fit", broken, guard="schema-failures"),
    Scene("replies that never fitted", broken_at_once, guard="schema-failures"),
    Scene("quotes that are nowhere", invented, quotes, guard="schema-failures broken-path"),
    Scene("quotes that are nowhere, badly repaired", half_invented, quotes, guard="schema-failures broken-path"),
    Scene("online: price x 10", dearer, None, guard="cost-velocity"),
    Scene("online: one sentence again and again", says(lambda s: "the same again. " * 16_000), None,
          guard="repetition token-burn"),
    Scene("online: endless new words", says(lambda s: s.words(50_000)), None, guard="token-burn"),
)  # fmt: skip


@asynccontextmanager
async def stage(scene: Scene, script: Script, folder: Path) -> AsyncIterator[Platform]:
    def reply(call: ModelCall) -> str:
        script.calls += 1
        return scene.reply(script, call)

    section = {"kind": "rehearsal", "model": "m", "price": {"input": "3", "output": "15"}, "retries": 0}
    section |= {"slots": {"online": 2, "batch": 2}, "limit": {"context": 2**20, "output": 60_000}}
    config = Config.model_validate({"store": f"sqlite:{folder / 'store.db'}", "upstream": {"m": section}, "route": {}})
    async with await Platform.open(config, models={"m": Rehearsal("m", reply=reply)}) as platform:
        script.kernel = platform.kernel
        yield platform


def documents(script: Script, count: int) -> list[Document]:
    """Contracts of 1,200 words: with the replies, a step costs about half a cent."""
    return [Document(f"c{n}", f"<c{n}> it is agreed that {script.words(1_200)}") for n in range(count)]


async def _online(kernel: Kernel, script: Script) -> None:
    message = Message("user", script.words(1_200))
    request = Request(
        Origin("default", key="k"), Lane.ONLINE, Route("m", ("m",), ""), ModelCall((message,), "", 60_000)
    )
    for _ in range(NORMAL + 200):
        async with kernel.door.step(request) as answer:
            async for _ in answer:
                pass
        await answer.durable()


async def play(scene: Scene, folder: Path) -> Figures:
    """One scene: what stopped it, and what it took and cost after its onset."""
    global SCRIPT  # noqa: PLW0603 - see there
    script = SCRIPT = Script()
    async with stage(scene, script, folder) as platform:
        kernel, reason = platform.kernel, ""
        if scene.flow is None:
            try:
                await _online(kernel, script)
            except TwolaneError as error:
                reason = str(error)
        else:
            if scene.is_item:
                script.item = "x"
                run = await platform.start(scene.flow, [*documents(script, 40), Document("x", "<x> it is agreed that")])
                _put_last(kernel, run, "x")
            else:
                run = await platform.start(scene.flow, documents(script, NORMAL + 200))
            summary = await platform.work(run, flow=scene.flow)
            reason = summary.reason
        await kernel.store.write(lambda tx: None)
        rows = [row for row in kernel.store.all("steps_since", count=10**6) if row["leaf"] >= (script.onset or 0)]
        if scene.is_item:
            rows = [row for row in rows if row["item"] == "x"]
        spoke = [
            leaf["guard"]
            for row in kernel.store.all("entries", first=0, count=10**6)
            if (leaf := json.loads(row["leaf"]))["kind"] == "guard"
        ]
        paid = [row for row in rows if row["status"] not in ("reused", "unreached")]
        pico = sum(row["cost_pico"] or 0 for row in paid)
        return {
            "scene": scene.name,
            "guard": spoke[0] if spoke else None,
            "steps": len(paid) if spoke else None,
            "cost": decimal_string(pico),
            "stopped": bool(spoke) and spoke[0] in scene.guard and (len(paid) <= 8 or pico <= PICO // 2),
            "reason": reason[:100],
        }


def _put_last(kernel: Kernel, run: str, name: str) -> None:
    """Let an item be the last of its run, in the place of another: the others are normal and come first."""
    with sqlite3.connect(kernel.store_path) as store:
        ((last,),) = store.execute("SELECT max(position) FROM item WHERE run = ?", (run,))
        ((place,),) = store.execute("SELECT position FROM item WHERE run = ? AND name = ?", (run, name))
        for new, old in ((-1, last), (last, place), (place, -1)):
            store.execute("UPDATE item SET position = ? WHERE run = ? AND position = ?", (new, run, old))


def runaways(scenes: Sequence[Scene] = SCENES) -> Figures:
    """Every scene, each in a store of its own."""
    told = []
    for scene in scenes:
        with tempfile.TemporaryDirectory() as folder:
            told.append(asyncio.run(play(scene, Path(folder))))
    return {"scenes": len(told), "stopped": sum(each["stopped"] for each in told), "each": told}


# ── normal steps ──


def _lognormal(spread: float) -> Callable[[random.Random, int], float]:
    return lambda draw, at: math.exp(draw.gauss(0, spread))


def _routed(share: float) -> Callable[[random.Random, int], float]:
    """Light steps, and heavy ones at twenty times the price."""
    return lambda draw, at: math.exp(draw.gauss(0, 0.5)) * (20 if draw.random() < share else 1)


def _three_kinds(draw: random.Random, at: int) -> float:
    return math.exp(draw.gauss(0, 0.4)) * draw.choice((1, 1, 1, 4, 4, 12))


def _trend(draw: random.Random, at: int) -> float:
    """Five times as dear at the end of ten thousand steps."""
    return math.exp(draw.gauss(0, 0.5) + at / 10_000 * math.log(5))


def _day(draw: random.Random, at: int) -> float:
    """Up and down by a factor of four, every two thousand steps."""
    return math.exp(draw.gauss(0, 0.5) + math.log(2) * math.sin(at * math.tau / 2_000))


def _runs_of_alike() -> Callable[[random.Random, int], float]:
    """Neighbours are alike: a slow wave of chance beneath each step's own."""
    level = [0.0]

    def cost(draw: random.Random, at: int) -> float:
        level[0] = 0.8 * level[0] + draw.gauss(0, 0.3)
        return math.exp(level[0] + draw.gauss(0, 0.4))

    return cost


BURN = DEFAULTS["token-burn"]
HISTORIES: dict[str, Callable[[], Callable[[random.Random, int], float]]] = {
    "equal": lambda: lambda draw, at: 1.0,
    **{f"lognormal {spread}": lambda spread=spread: _lognormal(spread) for spread in (0.2, 0.6, 1.1)},  # type: ignore[misc]
    **{f"{share:.0%} heavy": lambda share=share: _routed(share) for share in (0.02, 0.08, 0.2, 0.33)},  # type: ignore[misc]
    "three kinds": lambda: _three_kinds,
    "a trend": lambda: _trend,
    "days": lambda: _day,
    "neighbours alike": _runs_of_alike,
}


class _Deaf:
    """A store that keeps what the guards say."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def submit(self, work: Any) -> Any:  # Any: the port's own types
        self.told.append("verdict")
        return asyncio.get_running_loop().create_future()


def normal(steps: int = 10_000, seeds: int = 4) -> Figures:
    """Seeded histories through the guards of a kernel, online and in batch: `steps` of each, `seeds` times, at five
    cents a step, so that no floor of money hides a verdict."""

    async def go() -> Figures:
        told: dict[str, int] = {}
        for name, make in HISTORIES.items():
            told[name] = 0
            for seed in range(seeds):
                cost, draw, deaf = make(), random.Random(f"{name} {seed}"), _Deaf()
                guards = Guards(deaf, _Quiet())  # type: ignore[arg-type]  # all that they use of them
                run = guards.run("r", "t", lambda verdict: None)
                run.on_pause = lambda verdict, run=run: setattr(run, "is_paused", False)  # type: ignore[misc]
                key = _request(Origin("t", key="k"))
                for at in range(steps):
                    amount = cost(draw, at)
                    pico, tokens = int(amount * PICO / 20), int(40 * cost(draw, at)) + 1
                    step = _request(Origin("t", run="r", item=f"i{at // 3}", agent=f"a{at % 3}"))
                    for each in (key, step):
                        watch = guards.stream(each)
                        told[name] += tokens > watch._history.burn_at(BURN)
                        watch.settled(pico, tokens, is_whole=True)
                    if at % 3 == 2:
                        is_bad = draw.random() < 0.08
                        run.began(f"i{at // 3}")
                        run.ended(f"i{at // 3}", refused=("a1", "/x") if is_bad else None, is_done=not is_bad)
                        run.replied(f"i{at // 3}", "a1", is_unfounded=is_bad)
                told[name] += len(deaf.told)
        return {"steps": steps * seeds * len(HISTORIES) * 2, "verdicts": sum(told.values()), "by_history": told}

    return asyncio.run(go())


class _Quiet:
    def close_running(self, scope: str, cause: str) -> None:
        """Nothing runs."""


def _request(origin: Origin) -> Request:
    return Request(origin, Lane.BATCH if origin.run else Lane.ONLINE, Route("m", ("m",), ""), ModelCall((), "", 10))


CONTRACTS = Path(__file__).parents[3] / "shared" / "data" / "contracts" / "contracts.jsonl.gz"


def _events(text: str) -> Iterator[bytes]:
    """A text as a stream of chunks, a word each."""
    for word in re.findall(r"\s*\S+", text):
        yield b'data: {"id":"1","choices":[{"index":0,"delta":{"content":' + json.dumps(word).encode() + b"}}]}\n\n"


def streams(most: int = 1_000) -> Figures:
    """Verdicts over streams of real prose: contracts of the samples, as they are and as JSON."""
    with gzip.open(CONTRACTS, "rb") as file:
        texts = [text for line in file if isinstance(text := json.loads(line).get("text"), str)][:most]
    texts += [json.dumps([{"clause": n, "quote": None, "text": part} for n, part in enumerate(t.split("\n"))], indent=1)
              for t in texts]  # fmt: skip
    said, looks = 0, 0
    for text in texts:
        repetition, events = Repetition(), list(_events(text))
        for at in range(0, len(events), EVERY):
            looks += 1
            said += repetition.look(b"".join(events[at : at + EVERY]), EVERY) is not None
    return {"streams": len(texts), "looks": looks, "verdicts": said}


def cost(steps: int = 50_000) -> Figures:
    """Microseconds: what a step of a key with a history pays, of which one in three is in a run; and a stream of a
    thousand chunks for being looked into."""

    async def go() -> Figures:
        guards, draw = Guards(_Deaf(), _Quiet()), random.Random(1)  # type: ignore[arg-type]  # see `normal`
        guards.run("r", "t", lambda verdict: None)
        asked = {
            "online": _request(Origin("t", key="k")), "batch": _request(Origin("t", run="r", item="i", agent="a")),
        }  # fmt: skip
        figures: Figures = {}
        for lane, each in asked.items():
            scopes, amounts = each.origin.scopes(), [int(draw.uniform(1, 2) * 10**9) for _ in range(steps)]
            times = []
            for at in range(0, steps, 1_000):
                began = time.process_time()
                for pico in amounts[at : at + 1_000]:
                    guards.check(scopes)
                    guards.stream(each).settled(pico, 200, is_whole=True)
                times.append(time.process_time() - began)
            figures[f"{lane}_us_a_step"] = round(sorted(times)[len(times) // 2] * 1e3, 2)
        blocks = list(_events(" ".join(draw.choice(WORDS) for _ in range(1_000))))
        for name, is_watched in (("alone", False), ("watched", True)):
            times = []
            for _ in range(40):
                meter = Meter({}, ModelCall((), "", 10))
                if is_watched:
                    meter.watched_by(guards.stream(asked["online"]))
                meter.ttft_us = 0
                began = time.process_time()
                for block in blocks:
                    meter.saw(block)
                times.append(time.process_time() - began)
            figures[f"stream_of_1000_{name}_us"] = round(sorted(times)[20] * 1e6)
        return figures

    return asyncio.run(go())


def main(names: Sequence[str]) -> None:
    """Print what was asked for."""
    figures: dict[str, Callable[[], Figures]] = {
        "runaways": runaways, "normal": normal, "streams": streams, "cost": cost,
    }  # fmt: skip
    for name in names or figures:
        told = figures[name]()
        for each in told.pop("each", ()):
            print(f"{each['scene']:<45} {each['guard'] or '-':<16} {each['steps']!s:>5} steps {each['cost']:>10}"
                  f"  {'stopped' if each['stopped'] else 'NOT STOPPED IN TIME'}")  # fmt: skip
        print(json.dumps({name: told}), flush=True)


if __name__ == "__main__":
    logging.disable()
    main(sys.argv[1:])
