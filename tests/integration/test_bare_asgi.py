"""The gateway's parts below HTTP: the route table, what leaves of a stream, and what an unforeseen error tells."""

from __future__ import annotations

import logging
from collections import Counter
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import jsonschema_rs
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from twolane.online.app import ROUTES, Endpoint, Permission, Route, create_app
from twolane.online.completions import Outflow
from twolane.online.openapi import describe


class Anything:
    """Stands for a kernel where nothing of it is used, and nobody listens."""

    telemetry = SimpleNamespace(tracing=None, requests=Counter[tuple[str, str]](), scrape_key=None)

    def __getattr__(self, name: str) -> Any:  # Any: whatever is asked for
        return Anything()


def test_every_route_has_a_permission() -> None:
    app = create_app(Anything())  # type: ignore[arg-type]  # only the table is looked at
    assert len(app.routes) == len(ROUTES)
    for mounted in app.routes:
        endpoint = getattr(mounted, "endpoint", None)
        assert isinstance(endpoint, Endpoint), f"{mounted} stands outside of the table"
        assert isinstance(endpoint.route.permission, Permission)
    assert {route.path for route in ROUTES if route.permission is Permission.OPEN} == {
        "/healthz",
        "/api/v1/openapi.json",
    }


async def test_an_unforeseen_error_tells_the_client_nothing(caplog: pytest.LogCaptureFixture) -> None:
    async def broken(*_: object) -> None:
        raise RuntimeError("/etc/keys")

    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        raise AssertionError

    endpoint = Endpoint(Anything(), Anything(), Route("GET", "/", Permission.OPEN, broken))  # type: ignore[arg-type]
    with caplog.at_level(logging.ERROR):
        await endpoint({"type": "http", "headers": [(b"x-request-id", b"r1")]}, receive, send)
    assert sent[0]["status"] == 500
    assert (b"x-should-retry", b"false") in sent[0]["headers"]
    assert b"/etc" not in sent[1]["body"]
    assert b"r1" in sent[1]["body"]
    assert "r1" in caplog.text


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/healthz"), ("POST", "/v1/messages"), ("GET", "/v1/models/x"), ("GET", "/api/v1/budgets"), ("GET", "/x")],
)
async def test_a_server_about_to_stop_answers_as_described(method: str, path: str) -> None:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        raise AssertionError

    app = create_app(Anything())  # type: ignore[arg-type]  # nothing of it is asked
    app.patience.is_draining = True
    await app({"type": "http", "method": method, "path": path, "headers": []}, receive, send)
    start, body = sent
    assert start["status"] == 503
    assert {(b"x-should-retry", b"true"), (b"retry-after-ms", b"1000"), (b"connection", b"close")} <= {
        *start["headers"]
    }
    described = describe(ROUTES)
    operation = described["paths"].get(path.replace("/x", "/{id}"), {}).get(method.lower())
    shape = operation["responses"]["503"]["content"]["application/json"]["schema"] if operation else ERROR
    jsonschema_rs.validate({**shape, "components": described["components"]}, orjson.loads(body["body"]))


ERROR = {"$ref": "#/components/schemas/Error"}


def event(**fields: object) -> bytes:
    return b"data: " + orjson.dumps(fields) + b"\n\n"


WORD = event(choices=[{"index": 0, "delta": {"content": 'the "usage": {} of [DONE]'}}])
NULL = b'data: {"choices": [{"delta": {"content": "x"}}], "usage": null}\n\n'
COMMENT = b": keep-alive\n\n"
USAGE = event(choices=[], usage={"prompt_tokens": 1, "completion_tokens": 2})
LAST = event(choices=[{"index": 0, "delta": {}, "finish_reason": "stop"}], usage={"prompt_tokens": 1})
DONE = b"data: [DONE]\n\n"


def passed(stream: bytes, cuts: list[int], *, keeps_usage: bool) -> tuple[bytes, bytes]:
    outflow = Outflow(keeps_usage=keeps_usage)
    places = sorted({min(cut, len(stream)) for cut in cuts} | {0, len(stream)})
    sent = b"".join(outflow.take(stream[a:b]) for a, b in pairwise(places))
    return sent, outflow.end()


CUTS = st.lists(st.integers(0, 600), max_size=8)


@given(CUTS)
def test_a_stream_passes_untouched_wherever_it_is_cut(cuts: list[int]) -> None:
    stream = COMMENT + WORD + NULL + WORD + USAGE
    assert passed(stream + DONE, cuts, keeps_usage=True) == (stream, DONE)


@given(CUTS)
def test_unasked_usage_goes_and_nothing_else(cuts: list[int]) -> None:
    stripped = event(choices=[{"index": 0, "delta": {}, "finish_reason": "stop"}])
    stream = COMMENT + WORD + NULL + LAST + USAGE + DONE
    assert passed(stream, cuts, keeps_usage=False) == (COMMENT + WORD + NULL + stripped, DONE)


@given(CUTS)
def test_servers_that_end_lines_with_crlf_are_understood(cuts: list[int]) -> None:
    parts = [part.replace(b"\n", b"\r\n") for part in (COMMENT, WORD, USAGE, DONE)]
    assert passed(b"".join(parts), cuts, keeps_usage=False) == (parts[0] + parts[1], parts[3])


def test_an_end_without_its_blank_line_is_still_an_end() -> None:
    assert passed(WORD + b"data: [DONE]\n", [], keeps_usage=False) == (WORD, DONE)
    assert passed(WORD + b"data: [DONE]", [200], keeps_usage=False) == (WORD, DONE)


def test_an_endless_event_is_not_kept() -> None:
    outflow = Outflow(keeps_usage=False)
    block = b"data: " + b"x" * (5 * 2**20)
    assert outflow.take(block) == block
