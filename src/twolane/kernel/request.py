"""What a lane asks of the door, how it is fitted to an upstream, and the ids of what comes of it."""

from __future__ import annotations

import dataclasses
import os
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import orjson

from twolane.domain.canonical import commitment
from twolane.domain.money import Money
from twolane.domain.records import Energy, Kind, Lane, ModelCall, Origin, Price, Route, Subject
from twolane.errors import BadRequest, BudgetExceeded
from twolane.kernel import ledger
from twolane.models import Model
from twolane.rules import pricing, reading


@dataclass(frozen=True, slots=True)
class Upstream:
    """An opened upstream as the door needs it."""

    name: str
    model: Model
    model_name: str
    price: Price | None
    is_unpriced_allowed: bool
    retries: int
    first_token_s: float
    idle_s: float
    total_s: float
    context_tokens: int
    output_tokens: int
    slots: int
    """Of both lanes."""
    accelerators: int = 0
    """What they share."""
    energy: Energy | None = None
    count: Callable[[str], int] | None = None
    """Tokens of a text by the tokenizer of the model's family; None where only bytes bound them."""
    price_id: str | None = None
    unpriced_because: str = ""
    kind: str = ""
    """The dialect, or which built-in model."""

    @property
    def scope(self) -> str:
        """What a budget of all calls that it answers hangs on."""
        return f"upstream:{self.name}"


@dataclass(frozen=True, slots=True)
class Request:
    """One step as its lane asks for it. The call's `model` and `max_tokens` are filled in per upstream."""

    origin: Origin
    lane: Lane
    route: Route
    call: ModelCall
    deadline_s: float | None = None
    """Longest wait for a slot, over all attempts of the step: online sheds, batch (None) waits."""
    is_bounded_by_caller: bool = True
    """False: the caller named no `max_tokens`, so it may be lowered to what the budgets can pay."""
    subject: Subject | None = None
    """Whose salt the digests take; None for online calls, whose bodies are not kept."""
    attempt: int = 1
    allowance_pico: int | None = None
    """The most this step may reserve, whatever the budgets hold."""
    may_begin: Callable[[], None] | None = None
    """Of a batch step: called when its turn has come and before it holds anything; what it raises ends the step."""


class _Ids:
    """Ids that begin with the time (44 bits, milliseconds), so that an index takes them at its end, and end with 52
    random bits from a pool: the system is asked for 4,096 bytes at a time, since asking is what takes long."""

    def __init__(self) -> None:
        self._pool: Iterator[str] = iter(())
        os.register_at_fork(after_in_child=self._forget)

    def __call__(self) -> str:
        """24 hexadecimal digits."""
        for random_part in self._pool:
            return f"{ledger.now_us() // 1000:011x}{random_part}"
        text = secrets.token_hex(4096)
        self._pool = iter([text[at : at + 13] for at in range(0, 8190, 13)])
        return self()

    def _forget(self) -> None:
        self._pool = iter(())


new_id = _Ids()
"""A fresh id for a step or a request: unguessable, and different in every process."""


def sized(call: ModelCall, upstream: Upstream) -> ModelCall:
    """The call as this upstream gets it: its model name, and the smallest of the output limits that apply.

    Raises:
        BadRequest: even at six bytes a token the input alone is larger than the model's context.
    """
    if call.kind is Kind.EMBEDDINGS:  # nothing is written, and the context holds for each input, not for all of them
        return dataclasses.replace(call, model=upstream.model_name, max_tokens=0)
    measured = reading.measure(call)
    size = reading.read_bound(measured)
    if size // 6 > upstream.context_tokens:
        raise BadRequest(
            f"the input of {size:,} bytes does not fit into the {upstream.context_tokens:,} tokens of upstream "
            f"{upstream.name}. Shorten it, or name an upstream with a larger limit.context"
        )
    room = upstream.context_tokens - size // 4
    tokens = max(1, min(call.max_tokens or upstream.output_tokens, upstream.output_tokens, max(room, 1)))
    if upstream.count is not None:
        measured = reading.counted(call, measured, upstream.count)
    return call.sized(upstream.model_name, tokens, measured)


def check_allowance(request: Request, call: ModelCall, upstream: Upstream, currency: str) -> None:
    """An allowance is the agent author's own limit: what would break it is refused before any budget is asked."""
    allowed = request.allowance_pico
    bound = None if allowed is None else pricing.upper_bound(call, upstream.price).pico
    if allowed is not None and bound is not None and bound > allowed:
        raise BudgetExceeded(
            f"allowance:{request.origin.agent}",
            limit=str(Money(allowed, currency)),
            spent=str(Money(0, currency)),
            held=str(Money(0, currency)),
            asked=str(Money(bound, currency)),
        )


def identity(request: Request, upstream: Upstream, step: str, *, salt: bytes) -> dict[str, object]:
    """The identity of an attempt, as its leaf holds it.

    Raises:
        BadRequest: what is asked has no canonical form.
    """
    origin = request.origin
    return {
        "v": 1,
        "kind": "step",
        "op": request.call.kind,
        "step": step,
        "attempt": request.attempt,
        "tenant": origin.tenant,
        "lane": request.lane,
        "api_key": origin.key or None,
        "run": origin.run or None,
        "item": request.subject.id if request.subject else None,
        "workflow": origin.workflow or None,
        "agent": origin.agent or None,
        "route": request.route.name,
        "route_reason": request.route.reason,
        "upstream": upstream.name,
        "model": upstream.model_name,
        "price": upstream.price_id,
        "input_digest": _input_digest(request.call, salt),
    }


def _input_digest(call: ModelCall, salt: bytes) -> str:
    """A commitment to what is asked. All of it came out of a JSON reader or is text: no walk makes it plain."""
    messages = call.raw_messages or [[message.role, message.content] for message in call.messages]
    asked: list[object] = [list(messages), None, call.extras]
    if call.native is not None:
        asked.append(call.native.body)
    try:
        asked[1] = orjson.Fragment(call.schema.text) if call.schema else None
        body = orjson.dumps(asked, default=dict, option=orjson.OPT_SORT_KEYS)
    except orjson.JSONEncodeError as error:
        raise BadRequest(f"no canonical form: {error}") from None
    return commitment(salt, body)
