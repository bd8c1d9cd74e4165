"""What is told to monitoring, and under which names: the only file that spells metrics and OpenTelemetry's attributes.

Prometheus reads `/metrics` (`kernel.metrics` gathers what stands there). OpenTelemetry gets one span for each row of
`trace_steps` that this process writes, inside spans of the agents and workflows that made the call, and never a word of
what was asked or answered. Neither library is loaded before somebody scrapes, or tracing is configured.

Source: the GenAI conventions of OpenTelemetry as of November 2026 (all in development, so they change: here alone), and
for cost their proposal of August 2026, https://github.com/open-telemetry/semantic-conventions-genai/pull/443.
"""

from __future__ import annotations

import asyncio
import logging
import os
import platform
import threading
import time
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from importlib import metadata
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from twolane.domain.money import PICO
from twolane.errors import ConfigError, TwolaneError

if TYPE_CHECKING:
    from opentelemetry.metrics import MeterProvider
    from opentelemetry.trace import Span, TracerProvider

LONGEST_STATE = 512
"""A client's `tracestate` of more bytes is not passed on: so many are what its standard asks for."""

T = TypeVar("T")
_LOG = logging.getLogger("twolane.telemetry")

# ── Prometheus: names ──


class Metric(NamedTuple):
    """One metric: its name without what the format adds (`_total`, `_bucket`), and what tells its samples apart."""

    kind: str
    name: str
    help: str
    labels: tuple[str, ...] = ()


_gauge, _counter, _histogram = (partial(Metric, kind) for kind in ("gauge", "counter", "histogram"))
_LANE, _BUDGET = ("lane", "upstream"), ("scope", "period", "dimension")

# Of the process that answers, since it began: add these up over processes.
BUILD = _gauge("twolane_build", "Always 1, with the release.", ("version",))
REQUESTS = _counter("twolane_requests", "Requests answered: ok, or the code of the error.", ("route", "outcome"))
STEPS = _counter("twolane_steps", "Attempts that ended, by status as in trace_steps.", (*_LANE, "status"))
TTFT = _histogram("twolane_time_to_first_token_seconds", "From leaving the house to the first event.", _LANE)
QUEUED = _histogram("twolane_queue_seconds", "Waiting for a slot, of attempts that ended.", _LANE)
COMMIT = _histogram("twolane_commit_seconds", "One group commit of the store's writer.")
SLOTS_HELD = _gauge("twolane_slots_held", "Slots that this process has leased.", _LANE)
SLOTS_BUSY = _gauge("twolane_slots_busy", "Calls in flight.", _LANE)
SLOTS_FREE = _gauge("twolane_slots_free", "Calls that could leave at once, as far as slots go.", _LANE)
SLOTS_LENT = _gauge("twolane_slots_lent", "Slots of this lane that the other one uses.", _LANE)
QUEUE = _gauge("twolane_queue_length", "Calls waiting for a slot.", _LANE)
BREAKER = _gauge("twolane_breaker", "1 for the state in which the upstream's breaker is.", ("upstream", "state"))

# Of the whole store, as every process of it tells them: take the largest, never the sum over processes.
STORE_SLOTS = _gauge("twolane_store_slots_configured", "Slots there are.", _LANE)
STORE_LEASED = _gauge("twolane_store_slots_leased", "Slots that processes hold, workers included.", _LANE)
STORE_STEPS = _counter("twolane_store_steps", "Steps on record: ok, refused, failed, reused.", (*_LANE, "outcome"))
STORE_TOKENS = _counter("twolane_store_tokens", "Tokens on record.", (*_LANE, "kind"))
COST = _counter("twolane_store_cost_approx", "Cost in units of the currency, rounded to a float.", (*_LANE, "currency"))
TENANT_COST = _counter("twolane_store_tenant_cost_approx", "The same of the dearest tenants.", ("tenant", "currency"))
BUDGET_LIMIT = _gauge("twolane_budget_limit_approx", "Limits of the fullest budgets; money in units, rounded.", _BUDGET)
BUDGET_SPENT = _gauge("twolane_budget_spent_approx", "What of them is spent in this period.", _BUDGET)
BUDGET_HELD = _gauge("twolane_budget_held_approx", "What of them is held now.", _BUDGET)
SWITCHES = _gauge("twolane_switches_tripped", "Tripped switches by the kind of their scope.", ("kind",))
SWITCH = _gauge("twolane_switch_tripped", "1 for each tripped switch; the newest, none of items.", ("scope",))
RUNS = _gauge("twolane_runs", "Runs by status.", ("status",))
ITEMS = _gauge("twolane_items", "Items of runs that are queued or at work, by status.", ("status",))
PROCESSES = _gauge("twolane_processes", "Processes that take part; workers take queued runs.", ("kind",))
LEDGER = _counter("twolane_ledger_entries", "Entries of the ledger.")
DRIFT = _gauge("twolane_books_drifted", "Budgets whose books were last found to disagree with the record.")

METRICS = tuple(each for each in list(vars().values()) if isinstance(each, Metric))
"""Every metric there is."""

# ── Prometheus: counting ──

BOUNDS_US = tuple(1_000 * 2**power for power in range(17))
"""Upper bounds of the histograms' buckets, in microseconds: 1 ms to 65.5 s."""


class Histogram:
    """Durations by bucket. One thread adds; whoever reads may be one behind."""

    __slots__ = ("counts", "sum_us")

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS_US) + 1)
        self.sum_us = 0

    def add(self, us: int) -> None:
        """One more, in microseconds."""
        self.counts[bisect_left(BOUNDS_US, us)] += 1
        self.sum_us += us


class Ended:
    """The attempts of one lane on one upstream that ended in this process."""

    __slots__ = ("by_status", "queued", "ttft")

    def __init__(self) -> None:
        self.by_status: dict[str, int] = {}
        self.queued, self.ttft = Histogram(), Histogram()

    def add(self, status: str, queued_us: int, ttft_us: int | None) -> None:
        """One more. Called for every attempt: about a microsecond."""
        self.by_status[status] = self.by_status.get(status, 0) + 1
        self.queued.add(queued_us)
        if ttft_us is not None:
            self.ttft.add(ttft_us)


class Telemetry:
    """What one process counts, and where its spans go."""

    def __init__(self, tracing: Tracing | None = None) -> None:
        self.tracing = tracing
        """None where nobody listens: that is the whole cost then."""
        self.steps: defaultdict[tuple[str, str], Ended] = defaultdict(Ended)
        """By lane and upstream."""
        self.requests: defaultdict[tuple[str, str], int] = defaultdict(int)
        """By route and outcome."""

    def follow(self, recorded: asyncio.Future[Mapping[str, object]]) -> None:
        """A step that a memo answered, on its way to the disk: its span comes when it is there."""
        if (tracing := self.tracing) is not None:
            recorded.add_done_callback(
                lambda done: None if done.cancelled() or done.exception() else tracing.end(None, done.result(), "")
            )


Samples = dict[Metric, dict[tuple[str, ...], "float | Histogram"]]
"""Values by metric, then by the values of its labels."""


def approx(pico: int) -> float:
    """Picounits as units of the currency. For monitoring alone: a float is not exact."""
    return pico / PICO


def render(samples: Samples, accept: str, *, has_process: bool) -> tuple[bytes, str]:
    """The page in the format that `accept` asks for, and its content type; `has_process` adds this process's memory."""
    from prometheus_client import ProcessCollector, core
    from prometheus_client.exposition import choose_encoder

    kinds = {"counter": core.CounterMetricFamily, "gauge": core.GaugeMetricFamily}
    families: list[Any] = []  # Any: they have no common type
    for metric, values in samples.items():
        family = kinds.get(metric.kind, core.HistogramMetricFamily)(metric.name, metric.help, labels=metric.labels)
        for labels, value in values.items():
            family.add_metric(labels, *(_buckets(value) if isinstance(value, Histogram) else (value,)))
        families.append(family)
    if has_process:
        families += ProcessCollector(registry=None).collect()
    encode, content_type = choose_encoder(accept)
    page: Any = SimpleNamespace(collect=lambda: families)  # Any: all that is asked of a registry
    return encode(page), content_type


def _buckets(histogram: Histogram) -> tuple[list[tuple[str, float]], float]:
    counts, so_far, buckets = list(histogram.counts), 0, []
    for bound, count in zip((*(f"{bound / 1e6:g}" for bound in BOUNDS_US), "+Inf"), counts, strict=True):
        so_far += count
        buckets.append((bound, float(so_far)))
    return buckets, histogram.sum_us / 1e6


# ── OpenTelemetry: names ──

_OPERATION, _PROVIDER, _MODEL = "gen_ai.operation.name", "gen_ai.provider.name", "gen_ai.request.model"
_ERROR = "error.type"

ATTRIBUTES: Mapping[str, str] = {
    "op": _OPERATION,
    "model": _MODEL,
    "workflow": "gen_ai.workflow.name",
    "agent": "gen_ai.agent.name",
    "input_tokens": "gen_ai.usage.input_tokens",
    "output_tokens": "gen_ai.usage.output_tokens",
    "cache_read_tokens": "gen_ai.usage.cache_read.input_tokens",
    "cache_write_tokens": "gen_ai.usage.cache_write.input_tokens",
    "reasoning_tokens": "gen_ai.usage.reasoning.output_tokens",
    **{
        name: f"twolane.{name}"
        for name in (
            "step", "attempt", "tenant", "api_key", "lane", "run", "item", "route", "upstream", "status", "estimated",
            "of",
        )
    },
}  # fmt: skip
"""Which attribute of a span holds which field of its step's leaf."""

_FIRST_CHUNK = "gen_ai.response.time_to_first_chunk"
_COST = "gen_ai.usage.cost.amount", "gen_ai.usage.cost.currency", "gen_ai.usage.cost.source"
_TOOL = "gen_ai.tool.name"
_OPERATIONS = {"tool": "execute_tool"}
"""Kinds of steps that the conventions call otherwise."""
AGENT, WORKFLOW = "invoke_agent", "invoke_workflow"
_NAMES = {AGENT: ATTRIBUTES["agent"], WORKFLOW: ATTRIBUTES["workflow"]}

_DURATIONS: Mapping[str, str] = {
    "chat": "gen_ai.client.inference.duration",
    "embeddings": "gen_ai.client.embeddings.duration",
    "execute_tool": "gen_ai.execute_tool.duration",
    AGENT: "gen_ai.invoke_agent.duration",
    WORKFLOW: "gen_ai.workflow.duration",
}
"""Histograms in seconds, by operation."""
_TTFC = "gen_ai.client.inference.time_to_first_chunk"
_USAGE = {
    field: name.replace("gen_ai.", "gen_ai.client.inference.")
    for field, name in ATTRIBUTES.items()
    if ".usage." in name
}
"""Counters of billed tokens, by field of the leaf."""
_BOUNDS_S = tuple(0.01 * 2**power for power in range(14))
"""Buckets that the conventions ask for."""
_SOUND = frozenset({"ok", "refused", "reused"})
"""Statuses in which the upstream, or the tool, did its part."""

# ── OpenTelemetry: spans ──


class Tracing:
    """Spans and metrics of one process, where somebody listens."""

    def __init__(
        self, tracers: TracerProvider, meters: MeterProvider, *, close: Callable[[], object] = lambda: None
    ) -> None:
        from opentelemetry import trace
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._api, self.close = trace, close
        self._propagator = TraceContextTextMapPropagator()
        self._tracer = tracers.get_tracer("twolane", _version())
        meter = meters.get_meter("twolane", _version())
        self._durations = {
            operation: meter.create_histogram(name, unit="s", explicit_bucket_boundaries_advisory=_BOUNDS_S)
            for operation, name in (*_DURATIONS.items(), (_TTFC, _TTFC))
        }
        self._usage = {field: meter.create_counter(name, unit="{token}") for field, name in _USAGE.items()}

    @contextmanager
    def request(self, headers: Sequence[tuple[bytes, bytes]], method: str, route: str) -> Iterator[Span]:
        """While a request is answered: a span inside the trace that its `traceparent` names, or a trace of its own."""
        carrier = {
            name.decode(): value.decode("latin-1")
            for name, value in headers
            if name in (b"traceparent", b"tracestate") and len(value) <= LONGEST_STATE
        }
        with self._tracer.start_as_current_span(
            f"{method} {route}", self._propagator.extract(carrier), self._api.SpanKind.SERVER,
            {"http.request.method": method, "http.route": route},
            record_exception=False, set_status_on_exception=False,
        ) as span:  # fmt: skip
            yield span

    async def around(self, operation: str, name: str, work: Awaitable[T], **more: str) -> T:
        """Await an agent's or a workflow's work: what it calls is inside its span. What it raises is told by its kind
        alone, since its words may be a document's."""
        attributes = {_OPERATION: operation, _NAMES[operation]: name}
        known = {ATTRIBUTES[field]: value for field, value in more.items() if value}
        began = time.monotonic()
        with self._tracer.start_as_current_span(
            f"{operation} {name}", attributes=attributes | known, record_exception=False, set_status_on_exception=False
        ) as span:
            try:
                return await work
            except BaseException as error:
                attributes[_ERROR] = error.code if isinstance(error, TwolaneError) else type(error).__name__
                self.fail(span, attributes[_ERROR])
                raise
            finally:
                self._durations[operation].record(time.monotonic() - began, attributes)

    def begin(self, fields: Mapping[str, object], provider: str) -> tuple[Span, Mapping[str, str]]:
        """The span of a call that leaves now, and the headers that tell the upstream of it. `end` it."""
        attributes = self._attributes(fields)
        operation = str(attributes[_OPERATION])
        name = attributes.get(_MODEL) or attributes.get(_TOOL)
        if provider:
            attributes[_PROVIDER] = provider
        kind = self._api.SpanKind.INTERNAL if operation == "execute_tool" else self._api.SpanKind.CLIENT
        span = self._tracer.start_span(f"{operation} {name}", kind=kind, attributes=attributes)
        headers: dict[str, str] = {}
        self._propagator.inject(headers, self._api.set_span_in_context(span))
        return span, headers

    def end(self, span: Span | None, fields: Mapping[str, object], provider: str) -> None:
        """A step is over, and `fields` are its leaf's. Without a span it never left, or was answered from a memo: it
        has one all the same, as it has its row."""
        has_left = span is not None
        span = span or self.begin(fields, provider)[0]
        attributes = self._attributes(fields)
        ttft_us, cost, status = fields.get("ttft_us"), fields.get("cost_pico"), str(fields["status"])
        if isinstance(ttft_us, int):
            attributes[_FIRST_CHUNK] = ttft_us / 1e6
        if isinstance(cost, int | str):
            attributes |= dict(zip(_COST, (approx(int(cost)), str(fields["currency"]), "local"), strict=True))
        span.set_attributes(attributes)
        common = {name: attributes[name] for name in (_OPERATION, _MODEL, _TOOL) if name in attributes}
        if provider:
            common[_PROVIDER] = provider
        if status not in _SOUND:
            common[_ERROR] = status
            self.fail(span, status)
        span.end()
        if has_left:
            self._measure(fields, common)

    def fail(self, span: Span, error: str) -> None:
        """It ended in an error of this kind."""
        span.set_attribute(_ERROR, error)
        span.set_status(self._api.StatusCode.ERROR)

    def _attributes(self, fields: Mapping[str, object]) -> dict[str, str | int | float]:
        found = {
            name: value if isinstance(value, int) else str(value)
            for field, name in ATTRIBUTES.items()
            if (value := fields.get(field)) is not None
        }
        operation = str(found[_OPERATION])
        found[_OPERATION] = _OPERATIONS.get(operation, operation)
        if operation == "tool":  # a tool's leaf names it where others name their agent
            found[_TOOL] = found.pop(ATTRIBUTES["agent"])
        return {**found}

    def _measure(self, fields: Mapping[str, object], common: Mapping[str, str | int | float]) -> None:
        operation, total_us, ttft_us = str(common[_OPERATION]), fields.get("total_us"), fields.get("ttft_us")
        if isinstance(total_us, int):
            self._durations[operation].record(total_us / 1e6, common)
        if operation != "chat":
            return
        if isinstance(ttft_us, int):
            self._durations[_TTFC].record(ttft_us / 1e6, common)
        for field, counter in self._usage.items():
            if isinstance(tokens := fields.get(field), int):
                counter.add(tokens, common)


def _version() -> str:
    return metadata.version("twolane")


# ── OpenTelemetry: where spans go ──

EXPORT_S, CLOSE_S = 5.0, 3.0
"""How long one export may take; and all that is left at the end, whether or not the collector is there."""


def open_tracing(otlp: str | None) -> Tracing | None:
    """Where spans go: to the collector at `otlp` (OTLP over HTTP), else to where OTEL_EXPORTER_OTLP_ENDPOINT points;
    None where neither is said. All else about exporting stands in the OTEL_* environment, secrets among it.

    Raises:
        ConfigError: `otlp` is given, and the extra `otel` is not installed.
    """
    get = os.environ.get
    is_off = get("OTEL_SDK_DISABLED", "").lower() == "true" or get("OTEL_TRACES_EXPORTER") == "none"
    if is_off or not (otlp or get("OTEL_EXPORTER_OTLP_ENDPOINT") or get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")):
        return None
    try:
        return _exporting(otlp)
    except ImportError:
        how = "pip install 'twolane[otel]'"
        if otlp:
            raise ConfigError("sending spans needs the extra otel", where="telemetry.otlp", hint=how) from None
        _LOG.warning("OTEL_EXPORTER_OTLP_ENDPOINT is set, but nothing is sent without the extra otel: %s", how)
        return None


def _exporting(otlp: str | None) -> Tracing:
    from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    name = {} if os.environ.get("OTEL_SERVICE_NAME") else {"service.name": "twolane"}
    instance = f"{platform.node()}-{os.getpid()}"
    resource = Resource.create({**name, "service.version": _version(), "service.instance.id": instance})
    base = otlp.rstrip("/") if otlp else None
    spans = OTLPSpanExporter(f"{base}/v1/traces" if base else None, timeout=EXPORT_S)
    figures = OTLPMetricExporter(f"{base}/v1/metrics" if base else None, timeout=EXPORT_S)
    tracers = TracerProvider(resource=resource, shutdown_on_exit=False)
    tracers.add_span_processor(BatchSpanProcessor(spans))
    are_told = os.environ.get("OTEL_METRICS_EXPORTER") != "none"
    readers = [PeriodicExportingMetricReader(figures)] if are_told else []
    meters = MeterProvider(readers, resource, shutdown_on_exit=False)

    def close() -> None:
        ends = [threading.Thread(target=each.shutdown, daemon=True) for each in (tracers, meters)]
        for end in ends:
            end.start()
        until = time.monotonic() + CLOSE_S
        for end in ends:
            end.join(max(0.0, until - time.monotonic()))

    return Tracing(tracers, meters, close=close)
