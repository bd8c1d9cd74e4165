"""Integers all the way: a charge never exceeds its bound, and what is affordable is the most that fits."""

from __future__ import annotations

import dataclasses
import timeit
from functools import partial

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from twolane.domain.records import Energy, Kind, Message, ModelCall, Native, Price, ReplySchema, Usage
from twolane.rules.pricing import (
    accelerator_us,
    affordable_tokens,
    charge,
    choices,
    energy_mj,
    estimate,
    expected_tokens,
    is_beyond,
    upper_bound,
)
from twolane.rules.reading import counted, input_bound, inputs, measure, unbounded_part

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=80)
rates = st.integers(0, 10**8)
apart = st.sampled_from(["input_audio", "cache_read_audio", "input_image", "output_audio", "output_citation"])
flat = {
    "input": rates,
    "output": rates,
    "cache_read": st.none() | rates,
    "cache_write": st.none() | rates,
    "cache_write_1h": st.none() | rates,
    "reasoning": st.none() | rates,
    "kinds": st.dictionaries(apart, rates).map(lambda kinds: tuple(kinds.items())),
}
tiers = st.dictionaries(st.integers(0, 300), st.builds(Price, **flat), max_size=3)  # some dearer, some cheaper
prices = st.builds(
    Price,
    **flat,
    request=st.just(0) | rates,
    tiers=tiers.map(lambda kept: tuple(sorted(kept.items(), key=lambda pair: pair[0]))),
    accelerator_second=st.just(0) | st.integers(1, 10**12),
    longest_accelerator_us=st.integers(1, 10**7),
)
calls = st.builds(
    ModelCall,
    messages=st.lists(st.builds(Message, role=st.just("user"), content=texts), min_size=1, max_size=4).map(tuple),
    model=st.just("m"),
    max_tokens=st.integers(1, 10_000),
    schema=st.none() | st.just(ReplySchema("s", {"type": "object"})),
    extras=st.fixed_dictionaries({}, optional={"n": st.integers(1, 5), "tools": st.just([{"type": "function"}])}),
)


@given(calls, prices, st.booleans(), st.data())
def test_a_charge_never_exceeds_its_bound_when_the_usage_keeps_to_it(
    call: ModelCall, price: Price, has_parts: bool, data: st.DataObject
) -> None:
    """Whatever is told of kinds, contradictions included; of plain text no sound is told, and no hour-long cache."""
    if has_parts:
        raw = tuple({"role": each.role, "content": each.content} for each in call.messages)
        call = dataclasses.replace(call, raw_messages=raw)
    read = data.draw(st.integers(0, input_bound(call, price.overhead_tokens)))
    written = data.draw(st.integers(0, call.max_tokens * choices(call.extras)))
    some = st.none() | st.integers(0, read) | st.integers(0, 2**31)
    told = apart if has_parts else apart.filter(lambda kind: kind.startswith("output"))
    usage = Usage(
        read,
        written,
        cache_read_tokens=data.draw(some),
        cache_write_tokens=data.draw(some),
        reasoning_tokens=data.draw(some),
        cache_write_1h_tokens=data.draw(some) if has_parts else None,
        kinds=data.draw(st.none() | st.dictionaries(told, st.integers(1, 2**31))),
    )
    bound = upper_bound(call, price)
    assert bound.pico is not None
    assert 0 <= charge(usage, price, data.draw(st.integers(0, 10**8))) <= bound.pico
    assert read + written <= bound.tokens
    assert not is_beyond(usage, call) or price.overhead_tokens > 8


@given(calls, prices, st.none() | st.integers(0, 10**13), st.none() | st.integers(0, 60_000))
def test_what_is_affordable_is_the_most_that_fits(
    call: ModelCall, price: Price, pico: int | None, tokens: int | None
) -> None:
    def fits(count: int) -> bool:
        bound = upper_bound(dataclasses.replace(call, max_tokens=count), price)
        assert bound.pico is not None
        return (pico is None or bound.pico <= pico) and (tokens is None or bound.tokens <= tokens)

    count = affordable_tokens(call, price, pico=pico, tokens=tokens)
    assert count <= call.max_tokens
    if count >= 1:
        assert fits(count)
        assert count == call.max_tokens or not fits(count + 1)
    else:
        assert not fits(1)


@given(calls, st.none() | st.integers(0, 60_000))
def test_without_a_price_only_tokens_bind(call: ModelCall, tokens: int | None) -> None:
    assert upper_bound(call, None).pico is None
    count = affordable_tokens(call, None, pico=0, tokens=tokens)
    assert count == call.max_tokens or (tokens is not None and count < call.max_tokens)


def test_a_charge_adds_up_plain_cached_and_written_tokens() -> None:
    price = Price(input=100, output=1000, cache_read=10, cache_write=125)
    usage = Usage(10, 3, cache_read_tokens=4, cache_write_tokens=2)
    assert charge(usage, price) == 4 * 100 + 4 * 10 + 2 * 125 + 3 * 1000
    assert charge(usage, Price(input=100, output=1000)) == 10 * 100 + 3 * 1000


def test_cached_tokens_beyond_the_input_are_not_charged_twice() -> None:
    price = Price(input=100, output=0, cache_read=10, cache_write=200)
    assert charge(Usage(5, 0, cache_read_tokens=50, cache_write_tokens=50), price) == 50
    assert charge(Usage(5, 0, cache_read_tokens=3, cache_write_tokens=50), price) == 30 + 400


def test_a_dearer_cache_write_is_in_the_bound() -> None:
    call = ModelCall((Message("user", "abc"),), "m", 1)
    assert upper_bound(call, Price(input=100, output=0, cache_write=125)).pico == 125 * input_bound(call)


@given(texts)
def test_input_is_bounded_by_the_bytes_of_everything_the_model_reads(text: str) -> None:
    plain = ModelCall((Message("user", text),), "m", 1)
    raw = dataclasses.replace(plain, raw_messages=({"role": "user", "content": text},))
    told = dataclasses.replace(plain, extras={"tools": [{"name": text}]}, schema=ReplySchema("s", {"const": text}))
    size = len(text.encode())
    assert input_bound(plain) >= size + 8
    assert input_bound(raw) >= size + 8
    assert input_bound(told) >= 3 * size + 8


def test_each_of_n_answers_may_be_as_long() -> None:
    call = ModelCall((Message("user", "abc"),), "m", 10, extras={"n": 3})
    one = dataclasses.replace(call, extras={})
    named = len(b'{"n":3}')  # fields of the request count as input, byte by byte
    assert upper_bound(call, None).tokens - upper_bound(one, None).tokens == 20 + named


def test_only_a_number_above_one_is_more_than_one_answer() -> None:
    told = [None, 0, 1, True, "3", -2, float("nan"), float("inf"), 2, 2.0, 2.5]
    assert [choices({"n": value}) for value in told] == [1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 3]


@given(calls, st.integers(0, 10**6), prices)
def test_an_estimate_says_so_and_stays_within_the_bound(call: ModelCall, output_bytes: int, price: Price) -> None:
    usage = estimate(call, output_bytes)
    bound = upper_bound(call, price)
    assert usage.estimated
    assert usage.input_tokens + usage.output_tokens <= bound.tokens
    assert bound.pico is not None
    assert charge(usage, price) <= bound.pico


@given(calls)
def test_usage_beyond_what_a_call_could_use_is_seen(call: ModelCall) -> None:
    read, written = input_bound(call), call.max_tokens * choices(call.extras)
    assert is_beyond(Usage(read, written, kinds={"input_audio": 1}), call)
    assert is_beyond(Usage(read, written, cache_write_1h_tokens=1), call)
    assert not is_beyond(Usage(read, written), call)
    assert is_beyond(Usage(read + 1, written), call)
    assert is_beyond(Usage(read, written + 1), call)


def test_settling_takes_microseconds() -> None:
    kinds = (("input_audio", 40), ("output_audio", 80))
    tier = Price(2, 3, 1, 3, cache_write_1h=4, reasoning=5, kinds=kinds)
    price = Price(1, 2, 1, 2, cache_write_1h=3, reasoning=4, kinds=kinds, tiers=((1000, tier), (9000, tier)), request=1)
    told = Usage(5000, 100, 10, 20, 30, cache_write_1h_tokens=5, kinds={"input_audio": 50, "output_audio": 3})
    plain, simple = Usage(5000, 100, 10), Price(1, 2, 1)
    for usage, cost, most_us in ((told, price, 30), (plain, simple, 5)):
        took_s = min(timeit.repeat(partial(charge, usage, cost), number=200, repeat=20)) / 200
        assert took_s < most_us / 10**6


def test_time_on_accelerators_is_shared_by_the_slots_and_rounded_up() -> None:
    assert accelerator_us(1_000_001, 4, 16) == 250_001
    assert accelerator_us(10, 8, 1) == 80
    assert energy_mj(Usage(3, 2), Energy(100, 350_000)) == 701


# ── tokens as a family counts them ──


@given(calls, st.integers(0, 60))
def test_counted_tokens_narrow_the_bound_and_never_widen_it(call: ModelCall, each: int) -> None:
    size = measure(call)
    found = counted(call, size, lambda text: min(each, len(text.encode())))
    narrowed = call.sized(call.model, call.max_tokens, found)
    assert input_bound(narrowed) <= input_bound(call)
    assert input_bound(narrowed) >= min(each, 1) * bool(call.messages[0].content)
    assert estimate(narrowed, 0).input_tokens <= input_bound(narrowed)
    assert expected_tokens(narrowed) <= upper_bound(narrowed, None).tokens
    assert narrowed.sized("m", 1).measured == found, "a copy of another length is not counted again"


def test_what_is_not_all_text_is_bounded_by_its_bytes() -> None:
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    seen = ModelCall((), "m", 1, raw_messages=({"role": "user", "content": [picture]},))
    large = ModelCall((Message("user", "x" * 200_000),), "m", 1)
    for call in (seen, large, native(messages=[])):
        assert counted(call, measure(call), lambda text: 1) == measure(call)


# ── requests in a dialect of their own ──


def native(**body: object) -> ModelCall:
    return ModelCall((Message("user", "abc"),), "m", 10, native=Native("anthropic", {"max_tokens": 10, **body}))


@given(texts, texts)
def test_the_larger_of_two_tellings_is_bounded(told: str, meant: str) -> None:
    call = native(messages=[{"role": "user", "content": told}], system=meant)
    call = dataclasses.replace(call, messages=(Message("user", meant * 2),))
    assert input_bound(call) >= max(len(told.encode()) + len(meant.encode()), 2 * len(meant.encode())) + 8


def test_every_turn_of_a_native_request_has_its_template() -> None:
    turns = [{"role": "user", "content": "a"}] * 50
    size = len(orjson.dumps({"max_tokens": 10, "messages": turns}))
    assert input_bound(native(messages=turns)) >= size + 50 * 8


def test_what_a_request_only_names_counts_by_itself() -> None:
    plain = input_bound(native(messages=[]))
    picture = {"type": "image", "source": {"type": "base64", "data": "QQ=="}}
    seen = native(messages=[{"role": "user", "content": [{"type": "tool_result", "content": [picture]}]}])
    assert input_bound(seen) > plain + 16_384
    assert input_bound(native(tools=[{"name": "f", "input_schema": {}}])) > plain + 530
    assert input_bound(native(tools=[{"type": "computer_20250124", "name": "computer"}])) > plain + 530 + 1_234


@pytest.mark.parametrize("size", [4, 4_000_000])
def test_a_picture_counts_as_a_picture_and_not_as_text(size: int) -> None:
    data = "A" * size
    url = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}
    raw = ModelCall((Message("user", ""),), "m", 10, raw_messages=({"role": "user", "content": [url]},))
    picture = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": data}}
    meant = native(messages=[{"role": "user", "content": [{"type": "tool_result", "content": [picture]}]}])
    both = dataclasses.replace(meant, raw_messages=raw.raw_messages)
    for call in (raw, meant, both):
        assert 16_384 < input_bound(call) < 17_000
    words = {"type": "image", "source": {"type": "base64", "media_type": "text/plain", "data": data}}
    assert input_bound(native(messages=[{"role": "user", "content": [words]}])) > size


BY_ADDRESS = {"type": "image", "source": {"type": "url", "url": "https://x/y"}}
PACKED = {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": "QQ=="}}


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({"messages": [{"role": "user", "content": [BY_ADDRESS]}]}, "image by address"),
        ({"messages": [{"content": [{"type": "tool_result", "content": [BY_ADDRESS]}]}]}, "image by address"),
        ({"messages": [{"content": [PACKED]}]}, "document in a packed form"),
        ({"messages": [{"content": [{"type": "document", "source": {"type": "file", "file_id": "f"}}]}]},
         "document by address"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tool web_search_20250305"),
        ({"mcp_servers": [{"url": "https://x"}]}, "mcp_servers"),
        ({"speed": "fast"}, "speed"),
        ({"service_tier": "priority"}, "service_tier"),
        ({"context_management": {"edits": [{"type": "compact_20260112"}]}}, "context_management"),
        ({"something_new": {"a": 1}}, "something_new"),
    ],
)  # fmt: skip
def test_what_has_no_bound_is_named(body: dict[str, object], named: str) -> None:
    assert unbounded_part(native(**body)) == named


def test_an_ordinary_native_request_is_bounded() -> None:
    picture = {"type": "image", "source": {"type": "base64", "data": "QQ=="}}
    document = {"type": "document", "source": {"type": "text", "data": "words"}}
    call = native(
        messages=[{"role": "user", "content": [picture, document]}],
        tools=[{"name": "f", "input_schema": {}}, {"type": "custom", "name": "g"}, {"type": "bash_20250124"}],
        thinking={"type": "adaptive"},
        context_management={"edits": [{"type": "clear_thinking_20251015"}]},
        service_tier="standard_only",
        container=None,
    )
    assert unbounded_part(call) is None


def test_blocks_of_another_dialect_are_seen_in_a_chat_completion_too() -> None:
    call = ModelCall((Message("user", ""),), "m", 10, raw_messages=({"role": "user", "content": [PACKED]},))
    assert unbounded_part(call) == "document in a packed form"
    search = dataclasses.replace(call, raw_messages=None, extras={"tools": [{"type": "web_search_20250305"}]})
    assert unbounded_part(search) == "tool web_search_20250305"


# ── embeddings ──

ids = st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=20)
some_text = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40)
asked: st.SearchStrategy[object] = st.one_of(
    some_text, ids, st.lists(some_text, min_size=1, max_size=9), st.lists(ids, min_size=1, max_size=9)
)


@given(asked, st.builds(Price, input=rates, output=rates, cache_read=st.none() | rates, cache_write=st.none() | rates))
def test_embeddings_are_bounded_by_all_that_is_read_and_nothing_is_written(given: object, price: Price) -> None:
    call = ModelCall((), "m", 0, extras={"input": given}, kind=Kind.EMBEDDINGS)
    parts = given if isinstance(given, list) and not isinstance(given[0], int) else [given]
    read = sum(len(part) if isinstance(part, list) else len(str(part).encode()) for part in parts)
    marks = 2 + price.overhead_tokens  # what a model puts around each
    bound = upper_bound(call, price)
    assert inputs(call) == len(parts)
    assert bound.tokens >= read + marks * len(parts)
    assert bound.pico == bound.tokens * max(price.input, price.cache_read or 0, price.cache_write or 0)
    assert estimate(call, 4096).output_tokens == 0
    assert estimate(call, 0).input_tokens <= bound.tokens
