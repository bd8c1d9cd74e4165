"""What a charge is made of, and the days a report covers. Pure arithmetic."""

from __future__ import annotations

import re
from datetime import date, timedelta
from typing import NamedTuple

from twolane.domain.records import Price, Usage
from twolane.errors import UsageError
from twolane.rules import pricing

LAST_DAY = "9999-12-31"
_DAYS = re.compile(r"([1-9][0-9]{0,4})d")
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")


class Part(NamedTuple):
    """A part of a charge: so many of a kind. `unit_pico` is what one of them cost, 0 where that is not known; else it
    times `quantity` is `pico`."""

    kind: str
    quantity: int
    unit_pico: int
    pico: int


def parts(usage: Usage, price: Price, pico: int, accelerator_us: int = 0) -> tuple[Part, ...]:
    """What a charge of `pico` is made of, each kind with its price. Together they are `pico` to the picounit: where the
    prices do not make it up, as with sound and pictures, there is one part, `tokens`, without a unit price."""
    rates = pricing.rates_of(price, usage.input_tokens)
    if not (usage.cache_read_tokens or usage.cache_write_tokens or usage.reasoning_tokens):  # as of most calls
        asked = Part("input", usage.input_tokens, rates.input, usage.input_tokens * rates.input)
        said = Part("output", usage.output_tokens, rates.output, usage.output_tokens * rates.output)
        if asked.pico + said.pico == pico:
            return (asked, said) if asked.quantity and said.quantity else tuple(p for p in (asked, said) if p.quantity)
    read = min(usage.cache_read_tokens or 0, usage.input_tokens)
    written = min(usage.cache_write_tokens or 0, usage.input_tokens - read)
    longer = 0 if rates.cache_write_1h is None else min(usage.cache_write_1h_tokens or 0, written)
    thought = min(usage.reasoning_tokens or 0, usage.output_tokens)
    write_rate = rates.input if rates.cache_write is None else rates.cache_write
    counts = [
        ("input", usage.input_tokens - read - written, rates.input),
        ("output", usage.output_tokens - thought, rates.output),
        ("cache_read", read, rates.input if rates.cache_read is None else rates.cache_read),
        ("cache_write", written - longer, write_rate),
        ("cache_write_1h", longer, rates.cache_write_1h or 0),
        ("reasoning", thought, rates.output if rates.reasoning is None else rates.reasoning),
        ("request", int(bool(price.request and (usage.input_tokens or usage.output_tokens))), price.request),
    ]
    found = [Part(kind, count, unit, count * unit) for kind, count, unit in counts if count]
    if accelerator_us and price.accelerator_second:
        found.append(Part("accelerator_us", accelerator_us, 0, pricing.charge(Usage(0, 0), price, accelerator_us)))
    if sum([part.pico for part in found]) != pico:
        return (Part("tokens", usage.input_tokens + usage.output_tokens, 0, pico),)
    return tuple(found)


def first_day(since: str | None, today: date) -> str:
    """The first day of a report: a date, or `7d` for the last seven days, today among them. Without word the earliest:
    the empty string, which sorts before every day.

    Raises:
        UsageError: it is neither.
    """
    if since is None:
        return ""
    days = _DAYS.fullmatch(since)
    if days is None:
        return _day(since, "since")
    return str(today - timedelta(days=min(int(days[1]) - 1, today.toordinal() - 1)))


def last_day(until: str | None) -> str:
    """The last day of a report, itself included; without word there is none.

    Raises:
        UsageError: it is no date.
    """
    return LAST_DAY if until is None else _day(until, "until")


def _day(text: str, option: str) -> str:
    try:
        if _DATE.fullmatch(text):  # 20261121 and 2026-W47-6 are dates too, and would be sorted elsewhere
            return str(date.fromisoformat(text))
    except ValueError:
        pass
    hint = "Write a date like 2026-11-21" + (", or 7d for the last seven days" if option == "since" else "")
    raise UsageError(f"{option} {text[:40]!r} is no day", hint=hint)
