"""`[upstream.NAME]`: where a model answers, what it costs, and how much of it there is."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Literal

from pydantic import Field, model_validator

from twolane.config.values import Amount, Joules, PerMillion, SecretRef, Section
from twolane.domain.money import PICO, Money, pico_per_token
from twolane.domain.records import Energy, Price, Usage
from twolane.rules.pricing import MOST_CHARGE, accelerator_us, charge

ANTHROPIC_URL = "https://api.anthropic.com"
"""Where an upstream of kind anthropic is, unless it says otherwise."""


class Rates(Section):
    """Currency per million tokens, as decimal strings."""

    input: PerMillion | None = Field(default=None, description="price of a million input tokens")
    output: PerMillion | None = Field(default=None, description="price of a million output tokens")
    cache_read: PerMillion | None = Field(default=None, description="the same of those read from a cache")
    cache_write: PerMillion | None = Field(default=None, description="the same of those written to a cache")
    cache_write_1h: PerMillion | None = Field(default=None, description="the same of those kept there for an hour")
    reasoning: PerMillion | None = Field(default=None, description="output tokens that the model thinks with")
    input_audio: PerMillion | None = Field(default=None, description="input tokens of sound")
    cache_read_audio: PerMillion | None = Field(default=None, description="the same, read from a cache")
    output_audio: PerMillion | None = Field(default=None, description="output tokens of sound")
    input_image: PerMillion | None = Field(default=None, description="input tokens of pictures")
    cache_read_image: PerMillion | None = Field(default=None, description="the same, read from a cache")
    output_image: PerMillion | None = Field(default=None, description="output tokens of pictures")

    def rates(self) -> dict[str, int]:
        """Those that are given, in picounits per token."""
        return {name: pico_per_token(rate) for name in Rates.model_fields if (rate := getattr(self, name)) is not None}


class Tier(Rates):
    """What calls cost, all of each, with more input tokens than `above`. What is left out is as without the tier."""

    above: int = Field(ge=0, description="input tokens beyond which the tier holds")


class PriceTable(Rates):
    """What calls cost. What has no price of its own costs what it is a part of: cached tokens and sound are input."""

    request: Amount | None = Field(default=None, description="price of each call that is answered")
    accelerator_second: Amount | None = Field(
        default=None, description="price of a second of one accelerator; the upstream says how many there are"
    )
    tiers: tuple[Tier, ...] = Field(default=(), description="other prices for calls with a large input")

    @model_validator(mode="after")
    def _prices_something(self) -> PriceTable:
        is_by_time_or_call = self.accelerator_second is not None or self.request is not None
        for name in ("input", "output"):
            if getattr(self, name) is None and not is_by_time_or_call:
                raise ValueError(f"a price needs {name}; only beside accelerator_second or request it may be left out")
        if len({tier.above for tier in self.tiers}) < len(self.tiers):
            raise ValueError("two tiers begin at the same number of tokens")
        return self

    def as_price(self, longest_accelerator_us: int = 0) -> Price:
        """The same in picounits; `longest_accelerator_us` is the most accelerator time a call can take."""
        base = {"input": 0, "output": 0} | self.rates()
        tiers = sorted(self.tiers, key=lambda tier: tier.above)
        return _price(
            base,
            request=Money.parse(self.request or "0").pico,
            accelerator_second=Money.parse(self.accelerator_second or "0").pico,
            longest_accelerator_us=longest_accelerator_us if self.accelerator_second else 0,
            tiers=tuple((tier.above, _price(base | tier.rates())) for tier in tiers),
        )


def _price(rates: Mapping[str, Any], **more: Any) -> Price:  # Any: fields of a price that are no rates
    kinds = tuple((name, rate) for name, rate in sorted(rates.items()) if name.endswith(("_audio", "_image")))
    return Price(
        **{name: rate for name, rate in rates.items() if (name, rate) not in kinds}, **{"kinds": kinds, **more}
    )


class EnergyTable(Section):
    """Joules per token, as decimal strings."""

    input: Joules = Field(default="0", description="joules of an input token")
    output: Joules = Field(default="0", description="joules of an output token")

    def as_energy(self) -> Energy:
        """The same in microjoules."""
        return Energy(*(int(Decimal(joules) * 1_000_000) for joules in (self.input, self.output)))


class Slots(Section):
    """Calls that may be in flight at once, guaranteed to each lane."""

    online: int = Field(default=8, ge=1, le=10_000, description="slots of the online lane")
    batch: int = Field(default=4, ge=1, le=10_000, description="slots of the batch lane")


class Rate(Section):
    """What the provider allows in a minute, over all processes and both lanes, which share it by their slots."""

    requests_per_minute: int | None = Field(default=None, ge=2, description="calls; none: not limited")
    tokens_per_minute: int | None = Field(
        default=None, ge=1_000, description="input and output tokens; none: not limited"
    )


class Timeout(Section):
    """Seconds after which an upstream is given up: of silence, and of a whole call."""

    first_token_s: float = Field(default=60, gt=0, le=3600, description="until the first token")
    idle_s: float = Field(default=60, gt=0, le=3600, description="between two tokens")
    total_s: float = Field(
        default=600, gt=0, le=86_400, description="for all of an answer; then it is cut off, and what came is kept"
    )


class Limit(Section):
    """What the model can take and give, in tokens."""

    context: int = Field(default=131_072, ge=256, description="input and output together")
    output: int = Field(default=4_096, ge=1, description="most output tokens of one call")


class UpstreamSection(Section):
    """`[upstream.NAME]`: a priced place where a model answers."""

    kind: Literal["openai", "anthropic", "extractive", "rehearsal"] = Field(
        description="the dialect, or a built-in model"
    )
    url: str | None = Field(default=None, description="base address, up to and with /v1; kinds openai and anthropic")
    model: str = Field(default="", description="the upstream's own name of the model")
    key: SecretRef | None = Field(default=None, description="API key, as env:NAME or file:PATH")
    price: PriceTable | None = Field(
        default=None, description='a table, or "list": by the public list, which counts too where it is left out'
    )
    price_list: str | None = Field(
        default=None,
        pattern=r"^(auto|[^/\s]+/\S+)$",
        description='PROVIDER/MODEL in the public list; auto (as price = "list"): what url and model say',
    )
    price_variant: dict[str, str] = Field(
        default_factory=dict, description='a variant in the public list, such as { service_tier = "flex" }'
    )
    unpriced: Literal["refuse", "allow"] = Field(
        default="refuse", description="without a price calls are refused; allow: no money is counted, tokens are"
    )
    accelerators: int = Field(default=0, ge=0, le=100_000, description="accelerators that all its slots share")
    energy: EnergyTable | None = Field(default=None, description="what a token draws; recorded, not charged")
    tokenizer: Literal["o200k", "cl100k"] | None = Field(
        default=None,
        description="family of the model's tokenizer: narrows the bound on the input; needs the extra tokens. Left "
        "out: known models of OpenAI have theirs where the extra is installed",
    )
    slots: Slots = Field(default_factory=lambda: Slots(), description="calls in flight per lane")
    rate: Rate = Field(default_factory=lambda: Rate(), description="what the provider allows in a minute")
    lend: int = Field(default=0, ge=0, description="idle online slots that batch may borrow")
    preempt: bool = Field(
        default=False, description="true: a borrowed slot is taken back at once, and its batch step begins again"
    )
    retries: int = Field(default=2, ge=0, le=10, description="further attempts before the first byte")
    timeout: Timeout = Field(default_factory=lambda: Timeout(), description="patience with silence")
    limit: Limit = Field(default_factory=lambda: Limit(), description="size of the model")
    structured: Literal["json_schema", "json_object", "none"] = Field(
        default="json_schema",
        description="how the server is asked for JSON that fits a schema; every reply to an agent is checked again. "
        "Left out, what `doctor upstream` found out counts",
    )
    options: dict[str, str | int | float | bool] = Field(
        default_factory=dict, description="options of a built-in model, such as pace"
    )

    @model_validator(mode="before")
    @classmethod
    def _by_the_list(cls, values: Any) -> Any:  # Any: what stands in a file; it is judged after this
        if isinstance(values, dict) and values.get("price") == "list":
            return {**values, "price": None, "price_list": values.get("price_list", "auto")}
        return values

    @model_validator(mode="after")
    def _fits_its_price(self) -> UpstreamSection:
        if self.price is not None and (self.price_list is not None or self.price_variant):
            raise ValueError("price_list and price_variant choose from the public list: leave out the price of its own")
        if self.price is not None and self.price.accelerator_second is not None and not self.accelerators:
            raise ValueError("price.accelerator_second needs accelerators = N, how many all slots share")
        price = self.price_of()
        if price is not None and charge(Usage(1, 0), price, price.longest_accelerator_us) > MOST_CHARGE:
            raise ValueError(
                f"by its price for a request and for timeout.total_s alone a call may cost more than "
                f"{MOST_CHARGE // PICO:,}: lower price.request, price.accelerator_second or timeout.total_s"
            )
        return self

    @model_validator(mode="after")
    def _fits_its_kind(self) -> UpstreamSection:
        if self.kind == "openai":
            if not self.url or not self.url.startswith(("http://", "https://")):
                raise ValueError('kind = "openai" needs url = "http(s)://…/v1"')
            if "@" in self.url.split("/", 3)[2]:
                raise ValueError('a url holds no user and no password: write key = "env:NAME" or "file:PATH"')
            if not self.model:
                raise ValueError('kind = "openai" needs model = "…", the server\'s own name of it')
        elif self.kind == "anthropic":
            self._fits_anthropic()
        elif self.url or self.key:
            raise ValueError(f'kind = "{self.kind}" is built in: it has no url and no key')
        if self.lend > self.slots.online:
            raise ValueError(f"lend = {self.lend}: there are only {self.slots.online} online slots to lend")
        return self

    def _fits_anthropic(self) -> None:
        url = self.url or ANTHROPIC_URL
        if not url.startswith(("http://", "https://")) or "@" in url.partition("://")[2].partition("/")[0]:
            raise ValueError('kind = "anthropic" takes url = "http(s)://…", without user and password')
        if self.key is None or not self.model:
            raise ValueError('kind = "anthropic" needs key = "env:NAME" or "file:PATH", and model = "…"')

    def costs(self) -> bool:
        """Whether its calls cost money, as far as this file says: a service whose price is not written has one."""
        if self.price is None:
            return self.kind in ("openai", "anthropic") and self.unpriced == "refuse"
        rates = [rate for rate in self.price.model_dump().values() if isinstance(rate, str)]
        return bool(self.price.tiers) or any(rate.strip("0.") for rate in rates)

    def price_of(self) -> Price | None:
        """Its own price; None where it has none, or the public list's."""
        if self.price is None:
            return None
        slots = self.slots.online + self.slots.batch
        return self.price.as_price(accelerator_us(int(self.timeout.total_s * 1_000_000), self.accelerators, slots))
