"""The nouns that travel: what is asked of an upstream, under which scopes, and what came of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from typing import NamedTuple

import orjson

from twolane.domain.canonical import canonical_json


class Lane(StrEnum):
    """A class of service. Lanes share steps, never resources."""

    ONLINE = "online"
    BATCH = "batch"


class Kind(StrEnum):
    """What a step does."""

    CHAT = "chat"
    EMBEDDINGS = "embeddings"
    RETRIEVAL = "retrieval"
    TOOL = "tool"
    HANDOFF = "handoff"


class Status(StrEnum):
    """How a step ended."""

    OK = "ok"
    """The upstream answered to the end; in batch its handoff was accepted."""
    REFUSED = "refused"
    """It answered, was charged, and the reply did not pass its handoff."""
    REUSED = "reused"
    """Answered from a memo: nothing left the house, cost 0."""
    FAILED = "failed"
    """The upstream failed or cut the answer."""
    CANCELLED = "cancelled"
    """The client went away."""
    KILLED = "killed"
    """A switch closed it, or the time that a budget had left for it was used up."""
    UNREACHED = "unreached"
    """It never left the house: no connection could be made, or it was given up before it was sent. Cost 0."""
    IN_DOUBT = "in_doubt"
    """A crash hid its end; charged at its bound."""


@dataclass(frozen=True, slots=True)
class Message:
    """One chat message, text only."""

    role: str
    content: str


@dataclass(frozen=True)
class ReplySchema:
    """The JSON Schema a reply must fit, and its name on the wire."""

    name: str
    schema: Mapping[str, object]
    is_strict: bool = True
    """Ask servers that can for replies that keep to it to the letter."""
    is_judged: bool = False
    """Whoever asks checks the reply itself: a server that does not take the schema may be asked in a weaker way."""

    @cached_property
    def text(self) -> bytes:
        """The schema as sorted JSON. Written once: an agent's schema is counted, hashed and compared at every step.

        Raises:
            orjson.JSONEncodeError: it holds something that JSON does not.
        """
        return orjson.dumps(dict(self.schema), default=dict, option=orjson.OPT_SORT_KEYS)

    @cached_property
    def canonical(self) -> bytes:
        """Name and schema in canonical form, for fingerprints.

        Raises:
            ValueError: see `canonical_json`.
        """
        return canonical_json([self.name, self.schema])


@dataclass(frozen=True, slots=True)
class Native:
    """A client's request in the words of its own protocol, for upstreams that speak the same one."""

    dialect: str
    """The kind of upstream that understands it as it is, such as `anthropic`."""
    body: Mapping[str, object]
    headers: Mapping[str, str] = field(default_factory=dict)
    """What it said beside the body, by lower-case name; never a key."""


class Size(NamedTuple):
    """What bounds the input of a call, before the tokens that an upstream's template adds to each message."""

    bytes: int
    messages: int
    tokens: int | None = None
    """At most so many by the tokenizer of the model's family; None where it was not asked."""


@dataclass(frozen=True, slots=True)
class ModelCall:
    """What an upstream is asked.

    `model` is the upstream's own model name. `max_tokens` is always set by the time a call leaves. `extras` are
    further fields of a client's request (tools, stop, logprobs …) that pass through as they came; `raw_messages`, when
    given, replace `messages` on the wire because they hold parts that are not plain text.
    """

    messages: tuple[Message, ...]
    model: str
    max_tokens: int
    temperature: float | None = None
    schema: ReplySchema | None = None
    extras: Mapping[str, object] = field(default_factory=dict)
    raw_messages: tuple[Mapping[str, object], ...] | None = None
    kind: Kind = Kind.CHAT
    native: Native | None = None
    """The same request as the client wrote it, where its protocol says more than OpenAI's can."""
    traced: Mapping[str, str] = field(default_factory=dict)
    """Headers that tell the upstream of the trace it is called in; empty where nobody traces."""
    measured: Size | None = field(default=None, init=False, compare=False, repr=False)
    """What `rules.reading.measure` found, kept by `sized`: it is asked for four times a step. A copy that
    `dataclasses.replace` makes has none, since its content may be another."""

    def sized(self, model: str, max_tokens: int, measured: Size | None = None) -> ModelCall:
        """The same call of this model and length. Written out: `dataclasses.replace` takes twice as long, and every
        call of either lane passes here."""
        call = ModelCall(
            self.messages,
            model,
            max_tokens,
            self.temperature,
            self.schema,
            self.extras,
            self.raw_messages,
            self.kind,
            self.native,
            self.traced,
        )
        object.__setattr__(call, "measured", measured or self.measured)
        return call


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts of one attempt. `input_tokens` contains the cached ones, `output_tokens` the reasoning ones
    (OpenTelemetry's convention). None is unknown, which is not zero."""

    input_tokens: int
    output_tokens: int
    cache_read_tokens: int | None = None
    cache_write_tokens: int | None = None
    """All of them, those kept for an hour too."""
    reasoning_tokens: int | None = None
    estimated: bool = False
    """True where the upstream did not say and we counted what passed."""
    cache_write_1h_tokens: int | None = None
    kinds: Mapping[str, int] | None = None
    """What else was told apart, by its name in `Price.kinds`: parts of the counts above, none of them zero."""


INPUT_KINDS = ("audio", "image", "video")
"""Input that may have a price of its own: `input_audio`, and `cache_read_audio` for what of it came from a cache."""
OUTPUT_KINDS = ("output_audio", "output_image", "output_video", "output_citation")
WEB_SEARCH = "web_search"
"""Searches that the upstream made itself; a count of calls, not of tokens."""


@dataclass(frozen=True, slots=True)
class Price:
    """Picounits per token, unless a field says otherwise. None, or a kind that is not there, has the price of what it
    is a part of: no discount is assumed."""

    input: int
    output: int
    cache_read: int | None = None
    cache_write: int | None = None
    overhead_tokens: int = 8
    """Bound of the template tokens an upstream adds around each message."""
    cache_write_1h: int | None = None
    reasoning: int | None = None
    kinds: tuple[tuple[str, int], ...] = ()
    """What is priced apart: of `INPUT_KINDS` as `input_…` and `cache_read_…`, of `OUTPUT_KINDS`, and `WEB_SEARCH`."""
    request: int = 0
    """Picounits of one call that was answered."""
    accelerator_second: int = 0
    """Picounits of one second of one accelerator."""
    longest_accelerator_us: int = 0
    """The most accelerator time that one call can take."""
    tiers: tuple[tuple[int, Price], ...] = ()
    """Rising: a call with more input tokens than the number costs the price beside it, all of it."""
    source: str = "own"
    """Where it comes from: the configuration itself, or a public list with its version."""
    dearest_text: int = field(init=False, repr=False, compare=False)
    """The dearest that a token of plain text can be, read, cached or written to a cache."""
    dearest_input: int = field(init=False, repr=False, compare=False)
    """The same for any input."""
    dearest_output: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        text = max(self.input, self.cache_read or 0, self.cache_write or 0)
        read = [rate for name, rate in self.kinds if name.startswith(("input_", "cache_read_"))]
        said = [rate for name, rate in self.kinds if name.startswith("output_")]
        object.__setattr__(self, "dearest_text", text)
        object.__setattr__(self, "dearest_input", max(text, self.cache_write_1h or 0, *read))
        object.__setattr__(self, "dearest_output", max(self.output, self.reasoning or 0, *said))


@dataclass(frozen=True, slots=True)
class Energy:
    """What an upstream draws, in microjoules per token."""

    input: int
    output: int


@dataclass(frozen=True, slots=True)
class Bound:
    """The most an attempt can use. `pico` is None where the upstream is unpriced and that is allowed."""

    pico: int | None
    tokens: int


@dataclass(frozen=True, slots=True)
class Route:
    """The recorded decision for one call: which upstreams in order of preference, and why."""

    name: str
    upstreams: tuple[str, ...]
    reason: str


@dataclass(frozen=True, slots=True)
class Subject:
    """The smallest thing that can be erased: one item of one tenant, with its own key and salt.

    `id` is a keyed pseudonym of tenant and source id, so a leaf that carries it tells a stranger nothing.
    """

    id: str
    key: bytes
    salt: bytes


@dataclass(frozen=True, slots=True)
class Origin:
    """On whose behalf a step is made: the identity columns of `trace_steps`."""

    tenant: str
    workflow: str = ""
    run: str = ""
    item: str = ""
    """The item's source id as people know it; in a leaf stands its pseudonym."""
    agent: str = ""
    key: str = ""

    def scopes(self) -> tuple[str, ...]:
        """The chain that budgets and switches hang on, widest first: tenant › key › workflow › run › item."""
        chain = ["all", f"tenant:{self.tenant}"]
        if self.key:
            chain.append(f"key:{self.tenant}/{self.key}")
        if self.workflow:
            chain.append(f"workflow:{self.tenant}/{self.workflow}")
        if self.run:
            chain.append(f"run:{self.run}")
        if self.item:
            chain.append(f"item:{self.run}/{self.item}")
        return tuple(chain)
