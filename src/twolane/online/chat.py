"""The story of one chat request, top to bottom.

    read → may this key use this model? → route → the door → bytes pass through → wait until it is recorded → [DONE]

Whoever raises here has told the client: `app` turns an error into an HTTP status before the first byte of an answer,
and into the stream's last event after it.
"""

from __future__ import annotations

from twolane.config import RouteSection
from twolane.domain.completion import usage_fields
from twolane.domain.money import decimal_string
from twolane.domain.records import Lane, Origin, Status
from twolane.errors import NotFound
from twolane.kernel import Answer, Kernel, Request
from twolane.online import wire
from twolane.online.auth import Grant
from twolane.online.stream import Exchange, Hangup, Outflow
from twolane.online.wire import ChatRequest

_DIRECT = RouteSection(light="")
"""How a call is served that names an upstream itself: by the defaults of a route."""


async def chat(kernel: Kernel, grant: Grant, exchange: Exchange) -> None:
    """POST /v1/chat/completions."""
    asked = wire.read_chat(await exchange.body())
    grant.require(asked.model)
    served = kernel.config.route.get(asked.model, _DIRECT)
    request = _request(kernel, grant, asked, served)
    exchange.tell("x-twolane-route", request.route.name)
    exchange.tell("x-twolane-reason", request.route.reason)
    with Hangup(exchange):
        if asked.is_streamed:
            await _stream(kernel, exchange, request, keeps_usage=asked.wants_usage, is_durable=served.durable_ack)
        else:
            await _whole(kernel, exchange, request, is_durable=served.durable_ack)


def _request(kernel: Kernel, grant: Grant, asked: ChatRequest, served: RouteSection) -> Request:
    origin = Origin(grant.tenant, key=grant.key)
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


async def _stream(kernel: Kernel, exchange: Exchange, request: Request, *, keeps_usage: bool, is_durable: bool) -> None:
    """The door has peeked at the first event before it gives an answer: only then is status 200 said."""
    outflow = Outflow(keeps_usage=keeps_usage)
    async with kernel.door.step(request) as answer:
        exchange.tell("x-twolane-step", answer.step)
        await exchange.begin_stream()
        async for block in answer:
            ready = outflow.take(block)
            if ready:
                await exchange.write(ready)
            if b'data: {"error"' in ready:
                answer.status, answer.reason = Status.FAILED, "an error event inside its answer"
    if is_durable:
        await answer.durable()
    await exchange.end_stream(outflow.end())


async def _whole(kernel: Kernel, exchange: Exchange, request: Request, *, is_durable: bool) -> None:
    """The upstream streams all the same: only a stream can be metered, cut and killed midway."""
    async with kernel.door.step(request) as answer:
        exchange.tell("x-twolane-step", answer.step)
        completion = await answer.whole()
    fields = completion.as_response(completion.model or answer.upstream.model_name)
    if is_durable:
        fields |= await _settled(exchange, answer)
    await exchange.answer(200, fields)


async def _settled(exchange: Exchange, answer: Answer) -> dict[str, object]:
    """Wait for the record; what it says about usage and cost."""
    settled = await answer.durable()
    if settled.pico is not None:
        exchange.tell("x-twolane-cost", decimal_string(settled.pico))
    return {"usage": usage_fields(settled.usage)} if settled.usage else {}
