"""What a call costs, from the upstream's own words to its entry: kinds, tiers, time, energy, and by which price."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import orjson
import pytest
from tests.stores import kept_in

from twolane.config import Config, UpstreamSection
from twolane.domain.completion import MOST_COUNT, usage_of
from twolane.domain.records import Lane, Message, ModelCall, Origin, Price, Route, Usage
from twolane.errors import BadRequest, UpstreamError
from twolane.kernel import Kernel, Request, prices
from twolane.kernel.prices import Prices, Quote
from twolane.models.rehearsal import Rehearsal
from twolane.rules.pricing import accelerator_us, charge, price_id, upper_bound
from twolane.rules.reading import input_bound

pytestmark = pytest.mark.usefixtures("each_store")

OWN = {
    "input": "1", "output": "2", "cache_read": "0.1", "cache_write": "1.25", "cache_write_1h": "2", "reasoning": "3",
    "input_audio": "40", "output_audio": "80", "request": "0.000001",
    "tiers": [{"above": 5_000, "input": "2", "output": "3"}],
}  # fmt: skip
CALL = ModelCall((Message("user", "hello there" * 1000),), "", 5_000)


class Raw(Rehearsal):
    """Sends these blocks and ends."""

    def __init__(self, *blocks: bytes) -> None:
        super().__init__("up")
        self.raw = list(blocks)

    async def _blocks(self, *_: object) -> AsyncIterator[bytes]:
        for block in self.raw:
            yield block


def config(folder: Path, **fields: Any) -> Config:  # Any: fields of a section
    section = {"kind": "rehearsal", "price": OWN, "retries": 0, "limit": {"context": 10**6, "output": 10**6}, **fields}
    return Config(**kept_in(folder), upstream={"up": UpstreamSection.model_validate(section)}, route={})


@asynccontextmanager
async def opened(folder: Path, model: Rehearsal, **fields: Any) -> AsyncIterator[Kernel]:  # Any: as above
    kernel = await Kernel.open(config(folder, **fields), models={"up": model})
    try:
        yield kernel
    finally:
        await kernel.aclose()


def request(call: ModelCall = CALL, lane: Lane = Lane.ONLINE) -> Request:
    return Request(Origin("t", run="r"), lane, Route("up", ("up",), "test"), call)


async def ask(kernel: Kernel, call: ModelCall = CALL, *, streamed: bool = False) -> dict[str, Any]:
    """Make a call, read it whole or block by block, and give its entry."""
    async with kernel.door.step(request(call)) as answer:
        if streamed:
            async for _ in answer:
                pass
        else:
            await answer.whole()
    await answer.durable()
    return entries(kernel)[-1]


def entries(kernel: Kernel) -> list[dict[str, Any]]:
    leaves = [orjson.loads(row["leaf"]) for row in kernel.store.all("entries", first=0, count=1000)]
    return [leaf for leaf in leaves if leaf["kind"] == "step"]


def event(**fields: object) -> bytes:
    told = {"id": "x", "choices": [], **fields}
    return f"data: {json.dumps(told)}\n\n".encode()  # orjson writes no 2**70


WORDS = event(choices=[{"index": 0, "delta": {"content": "word"}, "finish_reason": "stop"}])
DONE = b"data: [DONE]\n\n"


# ── what upstreams say of a call ──

TOLD: dict[str, tuple[dict[str, object], Usage]] = {
    "OpenAI, cached and reasoning": (
        {"prompt_tokens": 900, "completion_tokens": 100, "total_tokens": 1000,
         "prompt_tokens_details": {"cached_tokens": 512, "audio_tokens": 0},
         "completion_tokens_details": {"reasoning_tokens": 64, "audio_tokens": 0}},
        Usage(900, 100, cache_read_tokens=512, reasoning_tokens=64),
    ),
    "OpenAI, sound in and out, some of it cached": (
        {"prompt_tokens": 100, "completion_tokens": 50, "total_tokens": 150,
         "prompt_tokens_details":
             {"cached_tokens": 40, "audio_tokens": 60, "cached_tokens_details": {"audio_tokens": 30}},
         "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 20}},
        Usage(100, 50, cache_read_tokens=40, reasoning_tokens=0,
              kinds={"input_audio": 60, "cache_read_audio": 30, "output_audio": 20}),
    ),
    "DeepSeek": (
        {"prompt_tokens": 100, "completion_tokens": 5, "total_tokens": 105, "prompt_cache_hit_tokens": 64,
         "prompt_cache_miss_tokens": 36},
        Usage(100, 5, cache_read_tokens=64),
    ),
    "xAI: reasoning beside the completion": (
        {"prompt_tokens": 30, "completion_tokens": 10, "total_tokens": 340,
         "completion_tokens_details": {"reasoning_tokens": 300}},
        Usage(30, 310, reasoning_tokens=300),
    ),
    "Gemini: thoughts in the total alone": (
        {"prompt_tokens": 30, "completion_tokens": 10, "total_tokens": 140}, Usage(30, 110),
    ),
    "Perplexity": (
        {"prompt_tokens": 30, "completion_tokens": 10, "total_tokens": 40, "citation_tokens": 4,
         "num_search_queries": 2},
        Usage(30, 10, kinds={"output_citation": 4, "web_search": 2}),
    ),
    "into the next tier": ({"prompt_tokens": 6_000, "completion_tokens": 7}, Usage(6_000, 7)),
    "null details": (
        {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4, "prompt_tokens_details": None}, Usage(3, 1),
    ),
    "details that make no sense": (
        {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 2**70,
         "prompt_tokens_details": {"cached_tokens": -1, "audio_tokens": "7"},
         "completion_tokens_details": {"reasoning_tokens": 1.5, "audio_tokens": True}},
        Usage(3, 1),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TOLD)
async def test_a_stream_costs_what_the_whole_answer_costs_to_the_token(tmp_path: Path, name: str) -> None:
    """However the report comes: alone, beside the last words, again and again, before pages of sources, in pieces."""
    told, meant = TOLD[name]
    assert usage_of({"usage": told}) == meant
    half = {**told, "completion_tokens": 0}
    last = event(usage=told)
    shapes = [
        [WORDS, last, DONE],
        [event(choices=[{"index": 0, "delta": {"content": "word"}}], usage=told), DONE],
        [event(choices=[{"index": 0, "delta": {"content": "word"}}], usage=half), last, event(usage=None), DONE],
        [WORDS, event(usage=told, search_results=[{"url": "https://example.org/" + "x" * 80}] * 200), DONE],
        [WORDS, last[:20], last[20:-1], last[-1:], DONE.replace(b"\n", b"\r\n")],
        [(WORDS + last + DONE).replace(b"\n", b"\r\n")],
    ]
    price = config(tmp_path).upstream["up"].price_of()
    assert price is not None
    cost = charge(meant, price)
    model = Raw()
    async with opened(tmp_path, model) as kernel:
        for shape in shapes:
            model.raw = shape
            for streamed in (True, False):
                entry = await ask(kernel, streamed=streamed)
                assert int(entry["cost_pico"]) == cost, (shape, streamed)
                assert entry.get("token_kinds") == meant.kinds
                assert "estimated" not in entry


@pytest.mark.parametrize(
    "told",
    [None, {}, {"prompt_tokens": -1, "completion_tokens": 4}, {"prompt_tokens": 2**70, "completion_tokens": 4},
     {"prompt_tokens": 10.0, "completion_tokens": 4}, {"prompt_tokens": "10", "completion_tokens": 4},
     {"prompt_tokens": 10, "completion_tokens": None}, [10, 4]],
)  # fmt: skip
async def test_usage_that_makes_no_sense_is_estimated_and_never_nothing(tmp_path: Path, told: object) -> None:
    async with opened(tmp_path, Raw(WORDS, event(usage=told), DONE)) as kernel:
        for streamed in (True, False):
            entry = await ask(kernel, streamed=streamed)
            assert entry["estimated"] == 1
            bound = upper_bound(CALL, kernel.upstreams["up"].price).pico
            assert bound is not None
            assert 0 < int(entry["cost_pico"]) <= bound


async def test_usage_beyond_the_bound_is_booked_as_told_and_marked(tmp_path: Path) -> None:
    told = {"prompt_tokens": input_bound(CALL) + 1, "completion_tokens": MOST_COUNT}
    async with opened(tmp_path, Raw(WORDS, event(usage=told), DONE), price={"input": "1", "output": "500"}) as kernel:
        entry = await ask(kernel)
        assert (entry["output_tokens"], entry["beyond_bound"]) == (MOST_COUNT, 1)
        assert int(entry["cost_pico"]) > MOST_COUNT * 500 * 10**6


async def test_usage_that_no_call_can_cost_is_estimated_and_sums_stay_in_64_bits(tmp_path: Path) -> None:
    told = {"prompt_tokens": 100, "completion_tokens": MOST_COUNT}
    async with opened(
        tmp_path, Raw(WORDS, event(usage=told), DONE), price={"input": "1", "output": "1000000"}
    ) as kernel:
        price = kernel.upstreams["up"].price
        assert price is not None
        assert charge(Usage(100, MOST_COUNT), price) == 2**63 - 1, "two of these would be more than a column holds"
        await kernel.treasury.set_budget("tenant:t", period="total", actor="a test", pico=2**62)
        told_at_once = [await ask(kernel) for _ in range(3)]
        bound = upper_bound(CALL, price).pico
        assert bound is not None
        assert all((entry["estimated"], entry["beyond_bound"]) == (1, 1) for entry in told_at_once)
        costs = [int(entry["cost_pico"]) for entry in told_at_once]
        assert all(0 < cost <= bound for cost in costs)
        (account,) = await kernel.treasury.all_accounts()
        assert account.spent.pico == sum(costs)


# ── by which price ──


async def test_each_entry_has_the_id_of_the_price_it_was_charged_by(tmp_path: Path) -> None:
    """A process with another price joins in mid-run, while the first one still works."""
    told, now = {"prompt_tokens": 10, "completion_tokens": 10}, {"input": "3", "output": "6"}
    model = Raw(WORDS, event(usage=told), DONE)
    async with opened(tmp_path, model) as kernel, opened(tmp_path, model, price=now) as other:
        charged = [await ask(each) for each in (kernel, other, kernel)]
        known = [kernel.upstreams["up"], other.upstreams["up"], kernel.upstreams["up"]]
        assert [entry["price"] for entry in charged] == [each.price_id for each in known]
        for entry, upstream in zip(charged, known, strict=True):
            assert upstream.price is not None
            assert upstream.price_id == price_id(upstream.price)
            assert int(entry["cost_pico"]) == charge(Usage(10, 10), upstream.price)
        assert charged[0]["price"] != charged[1]["price"]


async def test_a_price_that_changes_while_a_process_runs_holds_for_calls_that_begin_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, after = Price(1, 1, source="list, night"), Price(5, 5, source="list, day")
    quoted = [before]

    def quote(*_: object) -> Quote:
        return Quote(quoted[0], until=datetime.now(UTC) + timedelta(seconds=0.01) if quoted[0] is before else None)

    monkeypatch.setattr(prices, "quote", quote)
    told = {"prompt_tokens": 10, "completion_tokens": 10}
    async with opened(tmp_path, Raw(WORDS, event(usage=told), DONE)) as kernel:
        async with kernel.door.step(request()) as answer:
            quoted[0] = after
            while kernel.upstreams["up"].price is before:
                await asyncio.sleep(0.01)
            await answer.whole()
        await answer.durable()
        assert int(entries(kernel)[-1]["cost_pico"]) == 20, "it began before"
        entry = await ask(kernel)
        assert (int(entry["cost_pico"]), entry["price"]) == (100, price_id(after))


def test_where_no_price_can_change_there_is_no_timer(tmp_path: Path) -> None:
    kept = Prices(config(tmp_path).upstream, "USD")
    kept.follow({})
    assert kept._timer is None


# ── time and energy ──


async def test_time_on_accelerators_is_charged_and_told_and_energy_is_told(tmp_path: Path) -> None:
    fields = {
        "price": {"accelerator_second": "0.0011"}, "accelerators": 4, "slots": {"online": 12, "batch": 4},
        "energy": {"input": "0.35", "output": "2.1"},
    }  # fmt: skip
    model = Rehearsal("up", reply="one two", input_tokens=101, output_tokens=10, token_ms=20)
    async with opened(tmp_path, model, **fields) as kernel:
        entry = await ask(kernel)
        assert entry["accelerator_us"] == accelerator_us(entry["total_us"], 4, 16) >= 5_000
        assert int(entry["cost_pico"]) == entry["accelerator_us"] * 1_100
        assert entry["energy_mj"] == 350 * 101 + 2100 * 10


async def test_what_never_left_costs_neither_time_nor_a_request(tmp_path: Path) -> None:
    priced = {"accelerator_second": "1", "request": "1"}
    model = Rehearsal("up", faults="1st: unreachable")
    async with opened(tmp_path, model, price=priced, accelerators=1) as kernel:
        with pytest.raises(UpstreamError):
            await ask(kernel)
        await kernel.store.write(lambda tx: None)
        (entry,) = entries(kernel)
        assert (entry["status"], int(entry["cost_pico"])) == ("unreached", 0)
        assert "accelerator_us" not in entry


# ── the longest a call may take ──


@pytest.mark.parametrize("lane", Lane)
async def test_a_call_that_takes_too_long_is_cut_off_and_what_came_is_kept_and_charged(
    tmp_path: Path, lane: Lane
) -> None:
    model = Rehearsal("up", reply="word " * 1000, token_ms=10)
    async with opened(tmp_path, model, timeout={"total_s": 0.3}) as kernel:
        came = []
        with pytest.raises(UpstreamError, match=r"cut off.*total_s = 0.3") as caught:  # noqa: PT012
            async with kernel.door.step(request(lane=lane)) as answer:
                async for block in answer:
                    came.append(block)  # noqa: PERF401 - what came before the cut is kept
        assert not caught.value.retryable
        assert b"word" in came[0]
        await answer.durable()
        entry = entries(kernel)[-1]
        assert (entry["status"], entry["estimated"]) == ("failed", 1)
        assert 300_000 <= entry["total_us"] < 2_000_000
        assert int(entry["cost_pico"]) > 0
        assert model.aborted == 1, "the upstream was told to stop"


async def test_who_reads_slowly_does_not_lengthen_a_call(tmp_path: Path) -> None:
    model = Rehearsal("up", reply="word " * 1000, token_ms=1)
    async with opened(tmp_path, model, timeout={"total_s": 0.2}) as kernel:
        with pytest.raises(UpstreamError, match="cut off"):  # noqa: PT012
            async with kernel.door.step(request()) as answer:
                async for _ in answer:
                    await asyncio.sleep(0.05)
        await answer.durable()
        assert entries(kernel)[-1]["total_us"] < 2_000_000


async def test_no_first_token_within_the_longest_time_is_a_failure(tmp_path: Path) -> None:
    model = Rehearsal("up", faults="1st: hang 0")
    async with opened(tmp_path, model, timeout={"total_s": 0.05}) as kernel:
        with pytest.raises(UpstreamError, match=r"no first token within 0.05 s"):
            await ask(kernel)


# ── what cannot be bounded ──

SOUND = {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}
PDF = {"type": "file", "file": {"file_data": "data:application/pdf;base64,AAAA"}}


async def test_sound_is_bounded_where_it_is_priced_and_else_refused_where_a_budget_binds(
    tmp_path: Path,
) -> None:
    model = Raw(WORDS, event(usage={"prompt_tokens": 10, "completion_tokens": 1}), DONE)
    cheap = {"input": "1", "output": "2"}

    def said(*parts: object, **extras: object) -> ModelCall:
        return ModelCall((), "", 5, raw_messages=({"role": "user", "content": list(parts)},), extras=extras)

    async with opened(tmp_path, model) as priced, opened(tmp_path, model, price=cheap) as unpriced:
        await ask(unpriced, said(SOUND))
        await priced.treasury.set_budget("tenant:t", period="total", pico=10**15, tokens=None, actor="test")
        entry = await ask(priced, said(SOUND, modalities=["text", "audio"]))
        assert entry["status"] == "ok"
        for call, named in [
            (said(SOUND), "sound without a price"),
            (said("hi", modalities=["audio"]), "audio as output"),
            (said(PDF), "file in a packed form"),
        ]:
            with pytest.raises(BadRequest, match=named):
                await ask(unpriced, call)
