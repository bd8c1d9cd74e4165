"""What each upstream's calls cost: its own price, else that of the public list which comes with genai-prices.

The list lies in the package's wheel: nothing is fetched. Reading it takes half a second and 70 MB, so it is read only
where an upstream needs it, and resolved into integers once; what charges a call never asks it. A price of the list that
changes with the date or the hour is resolved again at that instant: a call pays the price that was in force when it
began, which is the one it was bounded by.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta
from decimal import ROUND_CEILING, Decimal
from importlib import metadata
from typing import TYPE_CHECKING, TypedDict
from urllib.parse import urlsplit

from twolane.config import ANTHROPIC_URL, Config, UpstreamSection, near
from twolane.domain.records import Price
from twolane.kernel.request import Upstream
from twolane.rules.pricing import price_fields, price_id

if TYPE_CHECKING:
    from genai_prices.types import ModelInfo, Provider, TieredPrices

LOOK_S = 3600.0
"""How often, at least, it is looked whether a price has changed: the machine's clock may be set."""

_RATES = {
    "input_mtok": "input",
    "output_mtok": "output",
    "cache_read_mtok": "cache_read",
    "cache_write_mtok": "cache_write",
    "cache_write_1h_mtok": "cache_write_1h",
    "output_reasoning_mtok": "reasoning",
    "requests_kcount": "request",
}
_KINDS = {
    "input_audio_mtok": "input_audio",
    "input_image_mtok": "input_image",
    "input_video_mtok": "input_video",
    "cache_audio_read_mtok": "cache_read_audio",
    "cache_image_read_mtok": "cache_read_image",
    "output_audio_mtok": "output_audio",
    "output_image_mtok": "output_image",
    "output_video_mtok": "output_video",
    "output_citation_mtok": "output_citation",
    "web_searches_kcount": "web_search",
}
_ELSEWHERE = frozenset({"storage_searches_kcount", "social_searches_kcount", "code_executions_kcount"})
"""Services that a request names, and that are refused where a budget binds; nobody tells how often they were used."""


class _Priced(TypedDict):
    price: Price | None
    price_id: str | None
    unpriced_because: str


@dataclass(frozen=True, slots=True)
class Quote:
    """An upstream's price at an instant, or why it has none."""

    price: Price | None
    why: str = ""
    until: datetime | None = None
    """When the list may say something else."""

    def as_fields(self) -> _Priced:
        """Those of an upstream."""
        return _Priced(
            price=self.price,
            price_id=None if self.price is None else price_id(self.price),
            unpriced_because=self.why,
        )

    def shown(self) -> dict[str, object] | None:
        """The same for people and programs: rates as decimal strings, where they come from, and their id."""
        if self.price is None:
            return None
        return {"id": price_id(self.price), "from": self.price.source, **price_fields(self.price)}


class Prices:
    """The prices of a process's upstreams, as they are in force."""

    def __init__(self, sections: Mapping[str, UpstreamSection], currency: str) -> None:
        self._sections, self._currency = sections, currency
        now = datetime.now(UTC)
        self.quotes = {name: quote(section, currency, now) for name, section in sections.items()}
        self._timer: asyncio.TimerHandle | None = None

    def follow(self, upstreams: dict[str, Upstream]) -> None:
        """Put changed prices into `upstreams` from now on. Where none can change there is no timer."""
        changes = [each.until for each in self.quotes.values() if each.until is not None]
        if changes:
            wait_s = (min(changes) - datetime.now(UTC)).total_seconds()
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(min(max(wait_s, 0), LOOK_S), self._look, upstreams)

    def _look(self, upstreams: dict[str, Upstream]) -> None:
        now = datetime.now(UTC)
        for name, known in self.quotes.items():
            if known.until is not None:
                new = self.quotes[name] = quote(self._sections[name], self._currency, now)
                if new.price != known.price:
                    upstreams[name] = dataclasses.replace(upstreams[name], **new.as_fields())
        self.follow(upstreams)

    def close(self) -> None:
        """Look no more."""
        if self._timer is not None:
            self._timer.cancel()


def quotes(config: Config) -> dict[str, Quote]:
    """What each upstream of a configuration costs now."""
    return Prices(config.upstream, config.currency).quotes


def quote(section: UpstreamSection, currency: str, at: datetime) -> Quote:
    """What calls of an upstream cost at an instant. With `unpriced = "allow"` the list is asked only where the
    configuration names it; it is never asked for a server that has no public name."""
    own = section.price_of()
    if own is not None:
        return Quote(own)
    if section.kind not in ("openai", "anthropic") and section.price_list in (None, "auto"):
        return Quote(None)
    if section.price_list is None and (section.unpriced == "allow" or not _is_public(_url(section))):
        return Quote(None)
    if currency != "USD":
        return Quote(None, f"the public list is in USD, and this store keeps {currency}")
    return _listed(section, at)


def _url(section: UpstreamSection) -> str:
    return section.url or ANTHROPIC_URL


def _is_public(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    return "." in host and not host.rpartition(".")[2].isdigit() and not host.endswith((".local", ".internal"))


def _listed(section: UpstreamSection, at: datetime) -> Quote:
    from genai_prices.data_snapshot import get_snapshot

    snapshot, version = get_snapshot(), metadata.version("genai-prices")
    named = section.price_list if section.price_list not in (None, "auto") else None
    provider_id, _, model_name = named.partition("/") if named else (None, "", section.model)
    try:
        provider = snapshot.find_provider(None, provider_id, None if provider_id else _url(section))
    except LookupError:
        where = provider_id or urlsplit(_url(section)).hostname
        known = [each.id for each in snapshot.providers] if provider_id else []
        return Quote(
            None, f"genai-prices {version} knows no provider {where}{near(where or '', known) if known else ''}"
        )
    model = provider.find_model(model_name, all_providers=snapshot.providers)
    if model is None:
        guess = near(model_name, [each.id for each in provider.models])
        return Quote(None, f"genai-prices {version} knows no model {model_name!r} of {provider.id}{guess}")
    variant = section.price_variant
    told = [each.when for each in (model.price_variants or ()) if model in provider.models]
    if variant and not all(any(item in when.items() for when in told) for item in variant.items()):
        return Quote(None, f"genai-prices {version} has no variant {variant} of {provider.id}/{model.id}")
    return resolve(provider, model, variant, at)


def resolve(provider: Provider, model: ModelInfo, variant: Mapping[str, str], at: datetime) -> Quote:
    """A model's price at an instant, in integers: rates finer than a picounit a token are rounded up to one."""
    source = f"genai-prices {metadata.version('genai-prices')}: {provider.id}/{model.id}"
    source += "".join(f", {name} = {value}" for name, value in sorted(variant.items()))
    listed = {name: rate for name, rate in vars(model.get_prices(at, variant or None)).items() if rate is not None}
    unknown = sorted(listed.keys() - _RATES.keys() - _KINDS.keys() - _ELSEWHERE)
    if unknown or "input_mtok" not in listed:
        why = (
            f"it is priced by {', '.join(unknown)}, which is not counted here" if unknown else "it names no input price"
        )
        return Quote(None, f"{source}: {why}", _next_change(model, at))
    starts = sorted({tier.start for rate in listed.values() for tier in getattr(rate, "tiers", ())})
    tiers = tuple((start, _price(listed, start)) for start in starts)
    return Quote(_price(listed, None, tiers=tiers, source=source), until=_next_change(model, at))


def _price(
    listed: Mapping[str, Decimal | TieredPrices],
    above: int | None,
    *,
    tiers: tuple[tuple[int, Price], ...] = (),
    source: str = "own",
) -> Price:
    rates = {name: _picounits(name, _rate(value, above)) for name, value in listed.items() if name not in _ELSEWHERE}
    kinds = tuple(sorted((_KINDS[name], rate) for name, rate in rates.items() if name in _KINDS))
    flat = {"input": 0, "output": 0} | {_RATES[name]: rate for name, rate in rates.items() if name in _RATES}
    return Price(**flat, kinds=kinds, tiers=tiers, source=source)


def _rate(value: Decimal | TieredPrices, above: int | None) -> Decimal:
    if isinstance(value, Decimal):
        return value
    reached = [tier.price for tier in value.tiers if above is not None and tier.start <= above]
    return reached[-1] if reached else value.base


def _picounits(name: str, rate: Decimal) -> int:
    return int((rate * (10**6 if name.endswith("_mtok") else 10**9)).to_integral_value(ROUND_CEILING))


def _next_change(model: ModelInfo, at: datetime) -> datetime | None:
    """The first instant after `at` at which one of the model's conditions begins or ends to hold."""
    conditional = [*(model.prices if isinstance(model.prices, list) else ()), *(model.price_variants or ())]
    instants = []
    for constraint in (each.constraint for each in conditional):
        begin = getattr(constraint, "start_date", None)
        if begin is not None:
            instants.append(datetime.combine(begin, time(), UTC))
        for hour in (getattr(constraint, "start_time", None), getattr(constraint, "end_time", None)):
            if hour is not None:
                moment = datetime.combine(at.date(), hour.replace(tzinfo=hour.tzinfo or UTC)).astimezone(UTC)
                instants += [moment + timedelta(days=days) for days in (-1, 0, 1, 2)]
    return min((instant for instant in instants if instant > at), default=None)
