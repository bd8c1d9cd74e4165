"""The story of one request for words, top to bottom, whatever protocol its client speaks.

    read → may this key use this model? → route → the door → the answer passes through → wait until it is recorded → end

Whoever raises here has told the client: `app` turns an error into an HTTP status before the first byte of an answer,
and into the stream's last event after it.
"""

from __future__ import annotations

from twolane.config import RouteSection
from twolane.domain.completion import EventError
from twolane.domain.money import decimal_string
from twolane.domain.records import Lane, Origin, Status, Usage
from twolane.errors import LaneFull, NotFound, UpstreamError
from twolane.kernel import Answer, Kernel, Request
from twolane.online import wire
from twolane.online.auth import Grant
from twolane.online.messages import MESSAGES
from twolane.online.stream import Exchange, Hangup
from twolane.online.wire import Asked, Flow, Named

_DIRECT = RouteSection(light="")
"""How a call is served that names an upstream itself: by the defaults of a route."""


async def chat(kernel: Kernel, grant: Grant, exchange: Exchange) -> None:
    """POST /v1/chat/completions, /v1/responses."""
    await _answer(kernel, grant, exchange, exchange.wire.read(await exchange.body()))


async def messages(kernel: Kernel, grant: Grant, exchange: Exchange) -> None:
    """POST /v1/messages: as `chat`; its clients look for the request's id under another name, and say in a header
    which betas they mean."""
    exchange.tell("request-id", exchange.request_id)
    asked = MESSAGES.read(await exchange.body()).with_betas(exchange.header(b"anthropic-beta"))
    await _answer(kernel, grant, exchange, asked)


async def _answer(kernel: Kernel, grant: Grant, exchange: Exchange, asked: Asked) -> None:
    grant.require(asked.model)
    grant = grant.under(exchange.header(b"x-twolane-workflow"))
    served = kernel.config.route.get(asked.model, _DIRECT)
    request = request_of(kernel, grant, asked, served)
    exchange.tell("x-twolane-route", request.route.name)
    exchange.tell("x-twolane-reason", request.route.reason)
    with Hangup(exchange):
        try:
            if asked.is_streamed:
                await _stream(kernel, exchange, asked, request, is_durable=served.durable_ack)
            else:
                await _whole(kernel, exchange, asked, request, is_durable=served.durable_ack)
        except LaneFull as full:
            _tell_rates(kernel, exchange, full.upstream)
            raise


def _tell_rates(kernel: Kernel, exchange: Exchange, upstream: str) -> None:
    """What the client may still send where it was sent, if that is known."""
    known = kernel.lanes.allowances(upstream, Lane.ONLINE)
    if known:
        exchange.tell_all(wire.rate_headers(known))


def request_of(kernel: Kernel, grant: Grant, asked: Named, served: RouteSection) -> Request:
    """The step that answers a client's request.

    Raises:
        NotFound: it names neither a route nor an upstream.
    """
    origin = Origin(grant.tenant, key=grant.key, workflow=grant.workflow)
    try:
        route = kernel.route(asked.model, origin, lane=Lane.ONLINE)
    except NotFound as error:
        raise wire.no_such_model(error) from None
    return Request(
        origin,
        Lane.ONLINE,
        route,
        asked.call,
        deadline_s=served.deadline_ms / 1000,
        is_bounded_by_caller=asked.call.max_tokens > 0,
    )


async def _stream(kernel: Kernel, exchange: Exchange, asked: Asked, request: Request, *, is_durable: bool) -> None:
    """The door has peeked at the first event before it gives an answer: only then is status 200 said, unless that took
    so long that a keep-alive had to say it."""
    flow: Flow | None = None
    exchange.is_kept_alive = True
    try:
        async with kernel.door.step(request) as answer:
            exchange.tell("x-twolane-step", answer.step)
            flow = asked.flow(answer.step)
            exchange.error_event = getattr(flow, "error_event", exchange.error_event)
            if not exchange.is_streaming:
                _tell_rates(kernel, exchange, answer.upstream.name)
                await exchange.begin_stream()
            async for block in answer:
                try:
                    ready = flow.take(block)
                except EventError as error:
                    problem = "its stream does not hold a completion"
                    raise UpstreamError(answer.upstream.name, problem, detail=str(error)) from None
                if ready:
                    await exchange.write(ready)
                if flow.has_failed:
                    answer.status, answer.reason = Status.FAILED, "an error event inside its answer"
    except UpstreamError:
        if flow is None or not flow.has_failed:
            raise
        await exchange.end_stream(b"")  # the client has read the upstream's own error: one is enough
        return
    if is_durable:
        await answer.durable()
    await exchange.end_stream(flow.end())


async def _whole(kernel: Kernel, exchange: Exchange, asked: Asked, request: Request, *, is_durable: bool) -> None:
    """The upstream streams all the same: only a stream can be metered, cut and killed midway."""
    async with kernel.door.step(request) as answer:
        exchange.tell("x-twolane-step", answer.step)
        completion = await answer.whole()
    completion.model = completion.model or answer.upstream.model_name
    usage = await settled(exchange, answer) if is_durable else None
    _tell_rates(kernel, exchange, answer.upstream.name)
    await exchange.answer(200, asked.whole(completion, answer.step, usage))


async def settled(exchange: Exchange, answer: Answer) -> Usage | None:
    """Wait for the record; tell what it says about the cost, and give what it says about usage."""
    recorded = await answer.durable()
    if recorded.pico is not None:
        exchange.tell("x-twolane-cost", decimal_string(recorded.pico))
    return recorded.usage
