"""Spans: one for each row of `trace_steps`, inside agents and workflows, and never a word of what was said."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from pydantic import BaseModel
from tests.integration import toolbox
from tests.integration.test_online import gateway
from tests.servers import served

from twolane import Document, HandoffRefused, Item, Prompt, agent, workflow
from twolane.config import Config
from twolane.domain.records import Kind, Lane, Message, ModelCall, Origin
from twolane.errors import ConfigError, Killed
from twolane.kernel import Kernel, Request
from twolane.telemetry import Tracing, open_tracing
from twolane.testing import Rehearsal

pytestmark = pytest.mark.timeout(40)

SECRET = "the-secret-of-the-contract"
PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
TRACE = 0x4BF92F3577B34DA6A3CE929D0E0E4736
ANY = {"model": "auto", "messages": [{"role": "user", "content": SECRET}]}


@dataclass
class Listener:
    """Who hears what a kernel traces."""

    exporter: InMemorySpanExporter = field(default_factory=InMemorySpanExporter)
    reader: InMemoryMetricReader = field(default_factory=InMemoryMetricReader)

    @contextmanager
    def to(self, kernel: Kernel) -> Iterator[None]:
        tracers = TracerProvider()
        tracers.add_span_processor(SimpleSpanProcessor(self.exporter))
        meters = MeterProvider([self.reader])
        kernel.telemetry.tracing = Tracing(tracers, meters)
        yield
        tracers.shutdown()

    def spans(self, operation: str = "") -> list[ReadableSpan]:
        return [span for span in self.exporter.get_finished_spans() if span.name.startswith(operation)]

    def steps(self) -> list[ReadableSpan]:
        return [span for span in self.spans() if "twolane.step" in (span.attributes or {})]

    def sums(self) -> dict[str, float]:
        data, found = self.reader.get_metrics_data(), dict[str, float]()
        for resource in data.resource_metrics if data else ():
            for scope in resource.scope_metrics:
                for metric in scope.metrics:
                    for point in metric.data.data_points:
                        value = point.value if hasattr(point, "value") else point.count
                        found[metric.name] = found.get(metric.name, 0) + value
        return found


def says(span: ReadableSpan) -> dict[str, Any]:  # Any: attributes
    return dict(span.attributes or {})


def agree(spans: Sequence[ReadableSpan], rows: Sequence[Any]) -> None:
    """Each row has its span, and each span of a step its row; they say the same."""
    by_step = {says(span)["twolane.step"]: says(span) for span in spans}
    assert len(by_step) == len(spans)
    assert by_step.keys() == {row["step"] for row in rows}
    for row in rows:
        told = by_step[row["step"]]
        for column, name in (
            ("status", "twolane.status"), ("attempt", "twolane.attempt"), ("lane", "twolane.lane"),
            ("tenant", "twolane.tenant"), ("run", "twolane.run"), ("model", "gen_ai.request.model"),
            ("input_tokens", "gen_ai.usage.input_tokens"), ("output_tokens", "gen_ai.usage.output_tokens"),
        ):  # fmt: skip
            if not (row["kind"] == "tool" and column == "model"):
                assert told.get(name) == row[column], (column, row["status"])
        cost = told.get("gen_ai.usage.cost.amount")
        assert (cost is None) == (row["cost_pico"] is None)
        assert cost is None or cost == row["cost_pico"] / 1e12


def keeps_quiet(spans: Sequence[ReadableSpan]) -> None:
    for span in spans:
        assert SECRET not in span.to_json(), span.name
        assert not span.events, span.name


@dataclass
class Upstream:
    """A model server that notes the headers it is sent."""

    url: str = ""
    headers: list[dict[str, str]] = field(default_factory=list)

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.headers.append({name.lower(): value for name, value in request.headers.items()})
        if len(self.headers) == 1:
            return web.Response(status=503, text=SECRET)
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        chunk = b'{"id":"c","choices":[{"index":0,"delta":{"content":"%b"}}]}' % SECRET.encode()
        usage = b'{"id":"c","choices":[],"usage":{"prompt_tokens":7,"completion_tokens":3}}'
        await response.write(b"data: %b\n\ndata: %b\n\ndata: [DONE]\n\n" % (chunk, usage))
        return response


@asynccontextmanager
async def upstream(
    path: str = "/v1/chat/completions", handler: Any = None
) -> AsyncIterator[Upstream]:  # Any: a handler
    server = Upstream()
    async with served(path, handler or server.answer) as url:
        server.url = url
        yield server


def config(folder: Path, **sections: object) -> Config:
    return Config.model_validate({"store": f"sqlite:{folder / 's.db'}", **sections})


def main(server: Upstream, **more: object) -> dict[str, object]:
    section = {"kind": "openai", "url": f"{server.url}/v1", "model": "m1", "price": {"input": "1", "output": "2"}}
    return {"main": {**section, **more}, "extractive": {"kind": "extractive"}}


def request(kernel: Kernel) -> Request:
    origin = Origin("legal", key="ci")
    call = ModelCall((Message("user", SECRET),), "", 50)
    return Request(origin, Lane.ONLINE, kernel.route("main", origin, lane=Lane.ONLINE), call)


async def test_each_attempt_is_a_span_and_the_upstream_is_told_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("twolane.kernel.attempt.FIRST_BACKOFF_S", 0.001)
    heard = Listener()
    async with upstream() as server:
        kernel = await Kernel.open(config(tmp_path, upstream=main(server)))
        with heard.to(kernel):
            async with kernel.door.step(request(kernel)) as answer:
                await answer.whole()
            await answer.durable()
            agree(heard.steps(), kernel.store.all("steps_since", count=10))
        await kernel.aclose()
    first, second = heard.spans("chat m1")
    assert (says(first)["twolane.status"], says(first)["error.type"]) == ("failed", "failed")
    assert (first.status.status_code, second.status.status_code) == (StatusCode.ERROR, StatusCode.UNSET)
    assert first.kind is SpanKind.CLIENT
    told = says(second)
    assert told["gen_ai.operation.name"] == "chat"
    assert told["gen_ai.provider.name"] == "openai"
    assert (told["gen_ai.usage.cost.currency"], told["gen_ai.usage.cost.source"]) == ("USD", "local")
    assert 0 < told["gen_ai.response.time_to_first_chunk"] < 5
    for span, headers in zip((first, second), server.headers, strict=True):
        assert headers["traceparent"].startswith(f"00-{span.context.trace_id:032x}-{span.context.span_id:016x}-")
    keeps_quiet(heard.spans())
    sums = heard.sums()
    assert sums["gen_ai.client.inference.duration"] == 2
    assert sums["gen_ai.client.inference.usage.output_tokens"] >= 3
    assert sums["gen_ai.client.inference.time_to_first_chunk"] == 1


async def test_embeddings_have_spans_and_a_switch_that_closes_a_stream_ends_its_span(tmp_path: Path) -> None:
    async def vectors(_: web.Request) -> web.Response:
        usage = {"prompt_tokens": 2, "total_tokens": 2}
        return web.json_response({"object": "list", "data": [{"index": 0, "embedding": [0.5]}], "usage": usage})

    async def endless(asked: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(asked)
        await response.write(b'data: {"id":"c","choices":[{"index":0,"delta":{"content":"x"}}]}\n\n')
        while asked.transport is not None:  # until whoever asked hangs up
            await asyncio.sleep(0.005)
        return response

    heard = Listener()
    async with upstream("/v1/embeddings", vectors) as embedder, upstream(handler=endless) as chatter:
        sections = main(chatter) | {"embed": {**main(embedder)["main"], "model": "e1"}}  # type: ignore[dict-item]
        kernel = await Kernel.open(config(tmp_path, upstream=sections))
        with heard.to(kernel):
            asked = request(kernel)
            embed = replace(
                asked,
                route=kernel.route("embed", asked.origin, lane=Lane.ONLINE),
                call=ModelCall((), "", 0, extras={"input": SECRET}, kind=Kind.EMBEDDINGS),
            )
            async with kernel.door.step(embed) as answer:
                await answer.document()
            try:
                async with kernel.door.step(asked) as answer:
                    await kernel.switches.trip("tenant:legal", cause="why", actor="t")
                    await answer.whole()
            except Killed:
                await answer.durable()
            agree(heard.steps(), kernel.store.all("steps_since", count=10))
        await kernel.aclose()
    (embedding,), (chat,) = heard.spans("embeddings e1"), heard.spans("chat m1")
    assert says(embedding)["twolane.status"] == "ok"
    assert says(chat)["error.type"] == "killed"
    assert heard.sums()["gen_ai.client.embeddings.duration"] == 1
    keeps_quiet(heard.spans())


async def test_a_clients_trace_goes_on_here(tmp_path: Path) -> None:
    heard = Listener()
    async with gateway(tmp_path) as gate:
        with heard.to(gate.kernel):
            for headers in ({"traceparent": PARENT}, {"traceparent": "00-nonsense"}, {}):
                async with gate.post({**ANY, "stream": True}, headers) as response:
                    await response.read()
            async with gate.post({**ANY, "model": "no-such"}) as response:
                assert response.status == 404
            async with gate.http.get(f"{gate.url.removesuffix('/v1')}/metrics") as response:
                assert response.status == 200
        agree(heard.steps(), gate.steps())
    served = heard.spans("POST /v1/chat/completions")
    assert [span.kind for span in served] == [SpanKind.SERVER] * 4
    assert [says(span).get("error.type") for span in served] == [None, None, None, "model_not_found"]
    assert not heard.spans("GET")
    traces = []
    for span, step in zip(served[:3], heard.steps(), strict=True):
        assert step.parent is not None
        assert step.parent.span_id == span.context.span_id
        traces.append(step.context.trace_id)
    assert traces[0] == TRACE
    assert served[0].parent is not None
    assert f"{served[0].parent.span_id:016x}" in PARENT
    assert len(set(traces)) == 3
    keeps_quiet(heard.spans())


class Told(BaseModel):
    text: str


@agent(returns=Told)
def reader(document: Document) -> Prompt:
    return Prompt(system="Read.", user=SECRET, context=(document,))


@agent(returns=Told, repairs=1)
def fussy(told: Told) -> Prompt:
    return Prompt(system="Judge.", user=told.text)


@workflow(version="1")
async def inner(document: Document, do: Item) -> Told:
    return await do(reader, document)


@workflow(version="1")
async def outer(document: Document, do: Item) -> Told:
    told = await do(inner, document)
    await do(toolbox.vat_of, "PL")
    try:
        await do(fussy, told)
    except HandoffRefused as error:
        raise ValueError(f"{SECRET}: {error}") from None
    return told


async def test_a_run_is_spans_of_its_workflows_agents_tools_steps_and_memos() -> None:
    heard = Listener()
    async with Rehearsal(reader=f'{{"text": "{SECRET}"}}', fussy='{"text": 5}') as platform:
        with heard.to(platform.kernel):
            documents = [Document("d0", f"{SECRET} one."), Document("d1", "Another.")]
            once = await platform.run(outer, documents)
            again = await platform.run(outer, documents)
        rows = platform.kernel.store.all("steps_since", count=100)
    assert once.items["quarantined"] == again.items["quarantined"] == 2
    assert {row["status"] for row in rows} == {"ok", "refused", "reused"}
    agree(heard.steps(), rows)
    keeps_quiet(heard.spans())

    by_id = {span.context.span_id: span for span in heard.spans()}

    def path(span: ReadableSpan) -> list[str]:
        return [*(path(by_id[span.parent.span_id]) if span.parent else []), span.name]

    item, model = "invoke_workflow outer", "chat rehearsal"
    paths = [path(span) for span in heard.steps() if says(span)["twolane.run"] == once.run]
    assert sorted(map(tuple, paths)) == sorted(
        2 * [
            (item, "invoke_workflow inner", "invoke_agent reader", model),
            (item, "execute_tool vat_of"),
            (item, "invoke_agent fussy", model),
            (item, "invoke_agent fussy", model),
        ]
    )  # fmt: skip
    assert {says(span)["error.type"] for span in heard.spans(item)} == {"ValueError"}
    assert {says(span)["error.type"] for span in heard.spans("invoke_agent fussy")} == {"handoff_refused"}
    reused = [span for span in heard.steps() if says(span)["twolane.status"] == "reused"]
    assert {path(span)[-2] for span in reused} == {"invoke_agent reader", item}
    assert says(reused[0])["twolane.of"] in {says(span)["twolane.step"] for span in heard.steps()}
    sums = heard.sums()
    assert (sums["gen_ai.workflow.duration"], sums["gen_ai.execute_tool.duration"]) == (8, 2)


# ── where spans go ──


async def test_a_collector_gets_them_and_one_that_is_gone_keeps_nobody(tmp_path: Path) -> None:
    got: list[ExportTraceServiceRequest] = []

    async def collect(asked: web.Request) -> web.Response:
        got.append(ExportTraceServiceRequest.FromString(await asked.read()))
        return web.Response(content_type="application/x-protobuf")

    async with upstream("/v1/traces", collect) as collector, upstream() as server:
        server.headers.append({})  # it answers at once
        sections = {"upstream": main(server), "telemetry": {"otlp": collector.url}}
        kernel = await Kernel.open(config(tmp_path, **sections))
        async with kernel.door.step(request(kernel)) as answer:
            await answer.whole()
        await kernel.aclose()
        resource = {each.key: each.value.string_value for each in got[0].resource_spans[0].resource.attributes}
        (span,) = got[0].resource_spans[0].scope_spans[0].spans
        assert (resource["service.name"], span.name) == ("twolane", "chat m1")

        gone = {"upstream": main(server), "telemetry": {"otlp": "http://127.0.0.1:9"}}
        kernel = await Kernel.open(config(tmp_path, **gone))
        async with kernel.door.step(request(kernel)) as answer:
            await answer.whole()
        began = time.monotonic()
        await kernel.aclose()
        assert time.monotonic() - began < 5


async def test_without_the_extra_the_configuration_is_refused_and_the_environment_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(ConfigError, match="extra otel"):
        await Kernel.open(config(tmp_path, telemetry={"otlp": "http://127.0.0.1:4318"}))
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318")
    kernel = await Kernel.open(config(tmp_path))
    assert kernel.telemetry.tracing is None
    assert "nothing is sent without the extra otel" in caplog.text
    await kernel.aclose()


@pytest.mark.parametrize(
    ("variables", "is_on"),
    [
        ({}, False),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:9/v1/traces"}, True),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", "OTEL_SDK_DISABLED": "true"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", "OTEL_TRACES_EXPORTER": "none"}, False),
    ],
)
def test_opentelemetrys_own_switches_count(
    variables: dict[str, str], is_on: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (variables | {"OTEL_METRICS_EXPORTER": "none"}).items():
        monkeypatch.setenv(name, value)
    tracing = open_tracing(None)
    assert (tracing is not None) is is_on
    if tracing is not None:
        tracing.close()


def test_nothing_of_it_is_loaded_where_nobody_asks(tmp_path: Path) -> None:
    code = """
import asyncio, sys
from twolane.config import Config
from twolane.kernel import Kernel
from twolane.online.app import create_app

async def go():
    kernel = await Kernel.open(Config(store="sqlite:s.db"))
    create_app(kernel)
    await kernel.aclose()

asyncio.run(go())
print(sorted(name for name in sys.modules if name.partition(".")[0] in ("opentelemetry", "prometheus_client")))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


async def test_off_the_upstream_is_told_of_no_trace(tmp_path: Path) -> None:
    async with upstream() as server:
        server.headers.append({})
        kernel = await Kernel.open(config(tmp_path, upstream=main(server)))
        assert kernel.telemetry.tracing is None
        async with kernel.door.step(request(kernel)) as answer:
            await answer.whole()
        await kernel.aclose()
        assert "traceparent" not in server.headers[-1]
