"""Prices of the public list: our integers are its decimals, for every model that can be expressed."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path

import genai_prices
import orjson
import pytest
from genai_prices.data_snapshot import get_snapshot
from genai_prices.types import ModelInfo, ModelPrice, Provider, TieredPrices, TimeOfDateConstraint

from twolane.cli.checkup import _upstreams
from twolane.cli.config import show
from twolane.config import Config, PriceTable, UpstreamSection, load
from twolane.domain.records import INPUT_KINDS, Message, ModelCall, Price, Usage
from twolane.errors import ConfigError
from twolane.kernel.prices import Quote, quote, quotes, resolve
from twolane.kernel.tokens import counter
from twolane.rules.pricing import charge, choices, price_fields, price_id, upper_bound
from twolane.rules.reading import counted, input_bound, measure

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
UNCOUNTED = {
    "audio_hours", "input_audio_hours", "output_audio_hours", "input_mchars", "input_gpixels",
    "input_document_kpages", "input_annotated_document_kpages", "input_text_messages_kcount", "rerank_searches_kcount",
}  # fmt: skip
"""What a model may be priced by that no answer of ours reports: these models are refused."""


def variants() -> Iterator[tuple[Provider, ModelInfo, dict[str, str]]]:
    for provider in get_snapshot().providers:
        for model in provider.models:
            yield provider, model, {}
            for when in {tuple(sorted(each.when.items())) for each in model.price_variants or ()}:
                yield provider, model, dict(when)


def near(rng: random.Random, price: Price) -> int:
    """A number of input tokens, often one at which a tier begins."""
    edges = [above + step for above, _ in price.tiers for step in (-1, 0, 1, 2)]
    return rng.choice([1, 999, 10**5, rng.randrange(1, 10**6), *edges * 2])


def any_usage(rng: random.Random, price: Price) -> tuple[Usage, genai_prices.Usage]:
    """A usage whose counts agree, in our words and in theirs."""
    total, said = near(rng, price), rng.randrange(10**5)
    left, counts = total, {"input_tokens": total, "output_tokens": said, "web_searches": rng.randrange(3)}

    def some() -> int:
        nonlocal left
        count = rng.choice([0, rng.randint(0, left)])
        left -= count
        return count

    kinds: dict[str, int] = {"web_search": counts["web_searches"]}
    read, written, hour = some(), some(), some()
    for kind in INPUT_KINDS:
        cached, fresh = some(), some()
        read += cached
        counts |= {f"input_{kind}_tokens": fresh + cached, f"cache_{kind}_read_tokens": cached}
        kinds |= {f"input_{kind}": fresh + cached, f"cache_read_{kind}": cached}
    left = said
    thought = some()
    for kind in ("audio", "image", "video", "citation"):
        counts[f"output_{kind}_tokens"] = kinds[f"output_{kind}"] = some()
    counts |= {"cache_read_tokens": read, "cache_write_tokens": written + hour, "cache_write_1h_tokens": hour}
    counts["output_reasoning_tokens"] = thought
    ours = Usage(total, said, read, written + hour, thought, cache_write_1h_tokens=hour, kinds=kinds)
    return ours, genai_prices.Usage(**counts)


def is_exact(listed: ModelPrice) -> bool:
    rates = [value for value in vars(listed).values() if value is not None]
    flat = [each for rate in rates for each in ([rate.base, *(tier.price for tier in rate.tiers)]
            if isinstance(rate, TieredPrices) else [rate])]  # fmt: skip
    return all(rate * 10**6 % 1 == 0 for rate in flat)


def test_every_model_of_the_list_costs_what_the_list_says_to_the_picounit() -> None:
    rng, refused, expressed, rounded = random.Random(4), [], 0, 0
    for provider, model, variant in variants():
        for at in (NOW, NOW.replace(hour=3)) if isinstance(model.prices, list) else (NOW,):
            found = resolve(provider, model, variant, at)
            listed = model.get_prices(at, variant or None)
            if found.price is None:
                refused.append((provider.id, model.id))
                assert UNCOUNTED & {key for key, rate in vars(listed).items() if rate is not None} or not vars(listed)
                continue
            expressed += 1
            for _ in range(3):
                ours, theirs = any_usage(rng, found.price)
                cost = model.calc_price(theirs, provider, genai_request_timestamp=at, price_context=variant or None)
                excess = charge(ours, found.price) - cost.total_price * 10**12
                if is_exact(listed):
                    assert excess == 0, (provider.id, model.id, variant, ours)
                else:  # a rate with more digits than a picounit has: each token's is rounded up
                    rounded += 1
                    assert 0 <= excess <= ours.input_tokens + ours.output_tokens
    assert expressed > 2200
    assert rounded < 100
    assert len(refused) < 230, refused


def test_no_charge_by_the_list_is_above_its_bound() -> None:
    rng = random.Random(5)
    for provider, model, variant in variants():
        price = resolve(provider, model, variant, NOW).price
        if price is None:
            continue
        usage, _ = any_usage(rng, price)
        fits = "x" * max(0, usage.input_tokens - 8 * 2)
        parts = ({"role": "user", "content": [{"type": "text", "text": fits}]},)
        call = ModelCall((Message("user", fits),), "m", usage.output_tokens, raw_messages=parts)
        bound = upper_bound(call, price)
        assert usage.input_tokens <= input_bound(call)
        assert bound.pico is not None
        searches = dict(price.kinds).get("web_search", 0) * (usage.kinds or {})["web_search"]  # refused under a budget
        assert charge(usage, price) - searches <= bound.pico, (provider.id, model.id)
        assert choices(call.extras) == 1


def section(**fields: object) -> UpstreamSection:
    default = {"kind": "openai", "url": "https://api.openai.com/v1", "model": "gpt-5.1"}
    return UpstreamSection.model_validate({**default, **fields})


def quoted(currency: str = "USD", **fields: object) -> Quote:
    return quote(section(**fields), currency, NOW)


def test_an_upstream_without_a_price_is_looked_up_by_its_url_and_model() -> None:
    found = quoted()
    assert found.price is not None
    assert found.price.source.endswith(": openai/gpt-5.1")
    assert genai_prices.__version__ in found.price.source
    assert quoted(price="list") == quoted(url="https://x.openai.azure.com/v1", price_list="openai/gpt-5.1") == found
    claude = UpstreamSection.model_validate({"kind": "anthropic", "key": "env:K", "model": "claude-3-5-haiku-latest"})
    other = quote(claude, "USD", NOW).price
    assert other is not None
    assert other.cache_write_1h == 2 * other.input


def test_a_variant_is_chosen_by_name() -> None:
    standard, batch = quoted().price, quoted(price_variant={"processing": "batch"}).price
    assert standard is not None
    assert batch is not None
    assert batch.input < standard.input
    assert price_id(batch) != price_id(standard)
    assert "has no variant" in quoted(price_variant={"processing": "batsh"}).why


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"model": "gpt-5.l"}, "no model 'gpt-5.l' of openai; did you mean"),
        ({"url": "https://api.example.com/v1"}, "no provider api.example.com"),
        ({"price_list": "opnai/gpt-5.1"}, "no provider opnai; did you mean 'openai'"),
        ({"currency": "EUR"}, "in USD, and this store keeps EUR"),
        ({"url": "http://127.0.0.1:9/v1"}, ""),
        ({"url": "http://llm.internal/v1"}, ""),
        ({"unpriced": "allow"}, ""),
    ],
)  # fmt: skip
def test_what_the_list_does_not_know_has_no_price_and_says_why(fields: dict[str, str], why: str) -> None:
    found = quoted(**fields)
    assert found.price is None
    assert why in found.why
    assert bool(why) == bool(found.why)


def test_whoever_looks_is_told_the_price_in_force_its_source_and_its_id(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "twolane.toml"
    file.write_text(
        '[upstream.big]\nkind = "openai"\nurl = "https://api.openai.com/v1"\nmodel = "gpt-5.1"\nprice = "list"\n'
        '[upstream.own]\nkind = "rehearsal"\nprice = { input = "1", output = "2" }\n'
        '[upstream.far]\nkind = "openai"\nurl = "https://api.openai.com/v1"\nmodel = "gpt-5.l"\n'
    )
    show(config=str(file))
    shown = orjson.loads(capsys.readouterr().out)["prices"]
    price = quoted().price
    assert price is not None
    assert shown["big"] == {"id": price_id(price), "from": price.source, **price_fields(price)}
    assert (shown["own"]["from"], shown["own"]["input"]) == ("own", "1.00")
    assert "no model 'gpt-5.l'" in shown["far"]["none"]
    lines = {line.text.partition(":")[0]: line for line in _upstreams(load(file))}
    assert f"price {price_id(price)} (genai-prices" in str(lines["big"])
    assert "no model 'gpt-5.l'" in str(lines["far"])


def test_unpriced_calls_are_looked_up_all_the_same_where_the_list_is_named() -> None:
    assert quoted(unpriced="allow", price="list").price is not None


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"price": "list", "currency": "EUR"}, "in USD, and this store keeps EUR"),
        ({"price": {"input": "1", "output": "2"}, "price_list": "a/b"}, "leave out"),
        ({"price_list": "gpt-5.1"}, "pattern"),
        ({"price": {"accelerator_second": "1"}}, "needs accelerators"),
        ({"price": {"input": "1"}}, "needs output"),
        ({"price": "lst"}, "price"),
        ({"energy": {"input": 0.3}}, "joules in quotes"),
    ],
)  # fmt: skip
def test_prices_that_contradict_are_refused(fields: dict[str, object], problem: str) -> None:
    currency = fields.pop("currency", "USD")
    with pytest.raises(ValueError, match=problem):
        Config.model_validate({"currency": currency, "upstream": {"a": {"kind": "rehearsal", **fields}}, "route": {}})


def test_a_price_by_the_hour_is_the_one_in_force_and_says_until_when() -> None:
    """Checked minute by minute through two days of every such model."""
    hourly = [
        (provider, model) for provider, model, variant in variants()
        if not variant and isinstance(model.prices, list)
        and any(isinstance(each.constraint, TimeOfDateConstraint) for each in model.prices)
    ]  # fmt: skip
    assert hourly
    for provider, model in hourly:
        at = datetime.combine(date(2026, 11, 20), time(), UTC)
        found = resolve(provider, model, {}, at)
        for _ in range(2 * 24 * 4):
            at += timedelta(minutes=15)
            now = resolve(provider, model, {}, at)
            assert found.until is not None
            assert now.price == found.price or at >= found.until
            found = now


def test_a_price_that_starts_on_a_day_changes_on_that_day() -> None:
    changes = []
    for provider, model, variant in variants():
        found = resolve(provider, model, variant, NOW)
        if found.until is not None and found.until.hour == found.until.minute == 0 and found.until.year == 2027:
            before = resolve(provider, model, variant, found.until - timedelta(seconds=1))
            changes.append(resolve(provider, model, variant, found.until).price != before.price)
    assert any(changes)


def test_the_list_is_read_only_where_an_upstream_needs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("genai_prices.data_snapshot.get_snapshot", lambda: pytest.fail("it was read"))
    own = {"kind": "openai", "url": "https://api.openai.com/v1", "model": "m", "price": {"input": "1", "output": "2"}}
    local = {"kind": "openai", "url": "http://127.0.0.1:1/v1", "model": "m"}
    upstreams = {"own": own, "local": local, "x": {"kind": "rehearsal"}}
    found = quotes(Config.model_validate({"upstream": upstreams, "route": {}}))
    assert [name for name, each in found.items() if each.price is not None] == ["own"]


# ── prices of one's own ──


def test_own_prices_have_the_same_kinds_and_tiers() -> None:
    table = PriceTable.model_validate({
        "input": "1", "output": "2", "cache_read": "0.1", "reasoning": "3", "input_audio": "30", "request": "0.01",
        "tiers": [{"above": 900, "input": "4"}, {"above": 100, "input": "2", "output": "5"}],
    })  # fmt: skip
    price, m = table.as_price(), 1_000_000
    assert [above for above, _ in price.tiers] == [100, 900]
    assert price.kinds == (("input_audio", 30 * m),)
    assert charge(Usage(100, 10), price) == 100 * m + 10 * 2 * m + 10**10
    assert charge(Usage(101, 10, cache_read_tokens=1), price) == 100 * 2 * m + m // 10 + 10 * 5 * m + 10**10
    assert charge(Usage(1000, 10, reasoning_tokens=4), price) == 1000 * 4 * m + 6 * 2 * m + 4 * 3 * m + 10**10
    assert charge(Usage(50, 0, kinds={"input_audio": 20}), price) == 30 * m + 20 * 30 * m + 10**10
    assert charge(Usage(0, 0), price) == 0, "a request that was not answered"


def test_the_id_is_that_of_the_price_and_of_its_source() -> None:
    one = PriceTable(input="1", output="2").as_price()
    same = PriceTable(input="1.00", output="2.0").as_price()
    assert price_id(one) == price_id(same)
    assert len(price_id(one)) == 12
    others = [
        PriceTable(input="1", output="2.000001").as_price(),
        PriceTable.model_validate({"input": "1", "output": "2", "tiers": [{"above": 9, "input": "1"}]}).as_price(),
        Price(one.input, one.output, source="genai-prices 9: a/b"),
    ]
    assert len({price_id(price) for price in [one, *others]}) == 4
    shown = price_fields(others[1])
    assert shown == {"input": "1.00", "output": "2.00", "tiers": [{"above": 9, "input": "1.00", "output": "2.00"}]}


def test_time_of_accelerators_is_bounded_by_the_longest_call() -> None:
    kept = {"kind": "rehearsal", "accelerators": 4, "slots": {"online": 12, "batch": 4}, "timeout": {"total_s": 60},
            "price": {"accelerator_second": "0.0011"}}  # fmt: skip
    price = UpstreamSection.model_validate(kept).price_of()
    assert price is not None
    bound = upper_bound(ModelCall((Message("user", "a"),), "m", 5), price).pico
    assert bound == 60 * 4 // 16 * 1_100_000_000  # a quarter of an accelerator for a minute
    assert charge(Usage(1, 1), price, 15_000_000) == bound
    assert charge(Usage(1, 1), price, 15_000_001) == bound, "what the timer was late is nobody's cost"
    assert charge(Usage(1, 1), price, 1) == 1100


@pytest.mark.parametrize("family", ["o200k", "cl100k"])
def test_a_familys_tokenizer_bounds_what_it_makes_of_any_text(family: str) -> None:
    bpe = pytest.importorskip("rs_bpe.bpe", reason="needs the extra tokens: requirements/tokens.txt")
    encode = getattr(bpe.openai, f"{family}_base")().encode
    count = counter("up", section(tokenizer=family))
    assert count is not None
    for text in (
        "hello there " * 50,
        "1,2,3;4.5\n" * 50,
        "Zażółć gęślą jaźń " * 20,
        "合同的条款" * 50,
        "<|endoftext|>",
        "",
    ):
        call = ModelCall((Message("user", text),), "m", 1)
        bound = input_bound(call.sized("m", 1, counted(call, measure(call), count)))
        assert len(encode(text)) <= bound <= input_bound(call)
        if text.startswith("hello"):
            assert bound < 1.06 * len(encode(text)) + 17 < input_bound(call) / 4


def test_known_models_have_their_tokenizer_where_the_extra_is_installed() -> None:
    pytest.importorskip("rs_bpe.bpe", reason="needs the extra tokens: requirements/tokens.txt")
    named = ["gpt-5.1", "gpt-4o-mini", "gpt-4.1", "gpt-4-turbo", "o3", "gpt-3.5-turbo", "somebodys-model"]
    assert [bool(counter("up", section(model=name))) for name in named] == [True] * 6 + [False]
    assert counter("up", section(url="http://127.0.0.1:1/v1")) is None, "that server may call anything so"


def test_a_tokenizer_without_its_extra_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rs_bpe.bpe", None)
    with pytest.raises(ConfigError, match="twolane\\[tokens\\]"):
        counter("up", section(tokenizer="o200k"))
    assert counter("up", section()) is None
    asked = {"upstream": {"up": section(tokenizer="o200k").model_dump()}, "route": {}}
    assert any("twolane[tokens]" in str(line) for line in _upstreams(Config.model_validate(asked)))
