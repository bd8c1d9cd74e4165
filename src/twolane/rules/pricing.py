"""Usage × price → charge, and the most a call can cost. Integers all the way."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields

from twolane.domain.canonical import canonical_json, digest
from twolane.domain.money import MAX_PICO, PICO, decimal_string
from twolane.domain.records import (
    INPUT_KINDS,
    OUTPUT_KINDS,
    WEB_SEARCH,
    Bound,
    Energy,
    Kind,
    ModelCall,
    Price,
    Usage,
)
from twolane.rules.reading import input_bound, measure, read_bound

MOST_CHARGE = 100_000 * PICO
"""What an upstream reports is no count where the call would cost more, and more than it can: sums of money stay in 64
bits after ninety such lies at any price, and after so many calls that have a price by the request or by time."""

# ── what was used ──


def charge(usage: Usage, price: Price, accelerator_us: int = 0) -> int:
    """What an attempt cost, in picounits: every token once, at the price of the narrowest kind it is known to be of,
    all of them at that of the tier which the input reaches. A missing count of a kind is none of it; counts that
    contradict each other are cut to what contains them. Time counts up to the longest a call may take. What would not
    fit into 64 bits is the most that does."""
    rates = rates_of(price, usage.input_tokens) if price.tiers else price
    all_read, said = usage.input_tokens, usage.output_tokens
    read_rate = rates.input if rates.cache_read is None else rates.cache_read
    write_rate = rates.input if rates.cache_write is None else rates.cache_write
    read = min(usage.cache_read_tokens or 0, all_read)
    written = min(usage.cache_write_tokens or 0, all_read - read)
    plain = all_read - read - written
    pico = plain * rates.input + read * read_rate + written * write_rate + said * rates.output
    if rates.cache_write_1h is not None:
        pico += min(usage.cache_write_1h_tokens or 0, written) * (rates.cache_write_1h - write_rate)
    if rates.reasoning is not None:
        thought = min(usage.reasoning_tokens or 0, said)
        pico += thought * (rates.reasoning - rates.output)
        said -= thought
    if usage.kinds and rates.kinds:
        pico += _apart(usage.kinds, rates, plain=plain, read=read, said=said)
    if price.request and (all_read or said):
        pico += price.request
    if accelerator_us:
        pico += _time_cost(min(accelerator_us, price.longest_accelerator_us or accelerator_us), price)
    return min(pico, MAX_PICO)


def rates_of(price: Price, input_tokens: int) -> Price:
    """The price that holds for all of a call of this size."""
    rates = price
    for above, tier in price.tiers:
        if input_tokens > above:
            rates = tier
    return rates


def _apart(counts: Mapping[str, int], rates: Price, *, plain: int, read: int, said: int) -> int:
    """What kinds with a price of their own cost more, or less, than what they are a part of."""
    costs, more = dict(rates.kinds), counts.get(WEB_SEARCH, 0) * dict(rates.kinds).get(WEB_SEARCH, 0)
    read_rate = rates.input if rates.cache_read is None else rates.cache_read
    for kind in INPUT_KINDS:
        count = counts.get(f"input_{kind}", 0)
        fresh_rate = costs.get(f"input_{kind}", rates.input)
        cached_rate = costs.get(f"cache_read_{kind}", costs.get(f"input_{kind}", read_rate))
        known = min(counts.get(f"cache_read_{kind}", 0), count)
        cached = min(max(known, count - plain), read)  # what is more than was read anew came from the cache
        fresh = min(count - cached, plain)
        more += fresh * (fresh_rate - rates.input) + cached * (cached_rate - read_rate)
        plain, read = plain - fresh, read - cached
    for kind in OUTPUT_KINDS:
        count = min(counts.get(kind, 0), said)
        more += count * (costs.get(kind, rates.output) - rates.output)
        said -= count
    return more


def accelerator_us(total_us: int, accelerators: int, slots: int) -> int:
    """Accelerator time of a call that took `total_us` on one of an upstream's slots, rounded up: all slots at work are
    all accelerators at work."""
    return -(-total_us * accelerators // slots)


def _time_cost(used_us: int, price: Price) -> int:
    return -(-used_us * price.accelerator_second // 1_000_000)


def energy_mj(usage: Usage, energy: Energy) -> int:
    """What an attempt drew, in millijoules, rounded up."""
    return -(-(usage.input_tokens * energy.input + usage.output_tokens * energy.output) // 1000)


# ── a price as others read it ──


def price_id(price: Price) -> str:
    """Twelve hexadecimal digits that name a price: equal for equal prices from the same source, and recorded with all
    that is charged by it."""
    return digest(canonical_json(_form(price)))[:12]


def _form(price: Price) -> dict[str, object]:
    form = {each.name: getattr(price, each.name) for each in fields(price) if each.init}
    return form | {"tiers": [[above, _form(tier)] for above, tier in price.tiers]}


def price_fields(price: Price) -> dict[str, object]:
    """A price as decimal strings per million tokens; a request, a web search and an accelerator's second by the one."""
    rates = {"input": price.input, "output": price.output}
    rates |= {name: rate for name in _APART if (rate := getattr(price, name)) is not None} | dict(price.kinds)
    once = {
        "request": price.request,
        "accelerator_second": price.accelerator_second,
        WEB_SEARCH: rates.pop(WEB_SEARCH, 0),
    }
    told: dict[str, object] = {name: decimal_string(rate * 1_000_000) for name, rate in rates.items()}
    told |= {name: decimal_string(rate) for name, rate in once.items() if rate}
    if price.tiers:
        told["tiers"] = [{"above": above, **price_fields(tier)} for above, tier in price.tiers]
    return told


_APART = ("cache_read", "cache_write", "cache_write_1h", "reasoning")


# ── the most it can use ──


def upper_bound(call: ModelCall, price: Price | None) -> Bound:
    """The most this call can use: all it can read, `max_tokens` out for each of `n` choices, all of it of the dearest
    kind and tier it can be of, no cache discount assumed, and the longest time. `pico` is None without a price, and the
    most that fits into 64 bits where it does not: no budget is larger, and no charge."""
    read = input_bound(call, price.overhead_tokens if price else 8)
    written = call.max_tokens * choices(call.extras)
    if price is None:
        return Bound(None, read + written)
    input_rate, output_rate = _dearest(call, price, read)
    pico = read * input_rate + written * output_rate + price.request
    if price.accelerator_second:
        pico += _time_cost(price.longest_accelerator_us, price)
    return Bound(min(pico, MAX_PICO), read + written)


def _dearest(call: ModelCall, price: Price, read: int) -> tuple[int, int]:
    """The dearest that a token in and one out can be. Plain text holds no sound, and asks for no hour-long cache."""
    is_text = _is_text(call)
    input_rate, output_rate = price.dearest_text if is_text else price.dearest_input, price.dearest_output
    for above, tier in price.tiers:
        if read > above:
            input_rate = max(input_rate, tier.dearest_text if is_text else tier.dearest_input)
            output_rate = max(output_rate, tier.dearest_output)
    return input_rate, output_rate


def _is_text(call: ModelCall) -> bool:
    return call.raw_messages is None and call.native is None and call.kind is Kind.CHAT


def affordable_tokens(call: ModelCall, price: Price | None, *, pico: int | None, tokens: int | None) -> int:
    """The largest `max_tokens` whose bound fits into what is left; 0 or less when not even the input does.

    `pico` and `tokens` are what remains, None for no limit.
    """
    empty = upper_bound(call.sized(call.model, 0), price)
    count, fits = choices(call.extras), []
    if pico is not None and price is not None:
        rate = _dearest(call, price, empty.tokens)[1]
        left = pico - (empty.pico or 0)
        if rate > 0:
            fits.append(left // (rate * count))
        elif left < 0:
            fits.append(0)
    if tokens is not None:
        fits.append((tokens - empty.tokens) // count)
    return min([call.max_tokens, *fits])


def choices(extras: Mapping[str, object]) -> int:
    """How many answers the call asks for (`n`), at least one."""
    count = extras.get("n")
    return math.ceil(count) if isinstance(count, int | float) and 1 < count < math.inf else 1


def is_beyond(usage: Usage, call: ModelCall) -> bool:
    """True where an upstream reports more than this call could use, or what plain text cannot: it is booked as told,
    and marked."""
    if _is_text(call) and (usage.cache_write_1h_tokens or any(not n.startswith("output_") for n in usage.kinds or ())):
        return True
    return usage.output_tokens > call.max_tokens * choices(call.extras) or usage.input_tokens > input_bound(call)


def is_absurd(pico: int, call: ModelCall, price: Price) -> bool:
    """True where no call costs what this one would by its reported usage: see `MOST_CHARGE`."""
    return pico > MOST_CHARGE and pico > (upper_bound(call, price).pico or 0)


def estimate(call: ModelCall, output_bytes: int) -> Usage:
    """Usage where the upstream did not say: four bytes a token, marked as estimated, and never more than the call may
    use. For settling only, never to bound."""
    written = min(-(-output_bytes // 4), call.max_tokens * choices(call.extras))
    return Usage(input_tokens=_expected_input(call), output_tokens=written, estimated=True)


def expected_tokens(call: ModelCall) -> int:
    """What a rate of tokens is asked for: what the model may read, as its tokenizer counts it or at four bytes a token,
    and all that it may write, as providers count it themselves."""
    return _expected_input(call) + call.max_tokens * choices(call.extras)


def _expected_input(call: ModelCall) -> int:
    size = call.measured or measure(call)
    return read_bound(size) if size.tokens is not None else -(-read_bound(size) // 4)
