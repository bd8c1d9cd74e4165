"""A step while it runs, as its lane sees it: blocks, the whole of it, or one document."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from twolane.domain.completion import Completion, EventError, cut_end
from twolane.domain.records import Status, Usage
from twolane.errors import UpstreamError
from twolane.kernel.clock import Clock
from twolane.kernel.document import Document, DocumentMeter
from twolane.kernel.meter import Meter
from twolane.kernel.request import Upstream
from twolane.kernel.treasury import Hold
from twolane.kernel.watch import Patience, Watch
from twolane.models import ModelStream
from twolane.rules import pricing
from twolane.store import Transaction

EXHAUSTED = "budget_exhausted"
"""How the reason of a step begins that was cut off when the time it held was used up."""
DONE_S = 0.25
"""How long a connection may stay open after `[DONE]` before it is closed instead of reused."""


@dataclass(frozen=True, slots=True)
class Settled:
    """What a step came to. `pico` is None where the upstream is unpriced."""

    step: str
    usage: Usage | None
    pico: int | None
    total_us: int


class Owner(Protocol):
    """What makes the attempts of a step."""

    can_restart: bool

    async def renew(self, answer: Answer) -> bool:
        """Begin again where a cancellation was a preemption; `answer` then goes on as the new attempt's."""
        ...


class Restartable:
    """While open, the step can begin again by itself: nobody has seen anything of it."""

    def __init__(self, owner: Owner | None) -> None:
        self._owner = owner

    def __enter__(self) -> None:
        if self._owner is not None:
            self._owner.can_restart = True

    def __exit__(self, *_: object) -> None:
        if self._owner is not None:
            self._owner.can_restart = False


class Answer:
    """A step while it runs: iterate over its blocks, or take the `whole` of it.

    The caller may say how it ended (`status`, `reason`) and what must be committed together with it (`also`).
    """

    def __init__(
        self,
        step: str,
        upstream: Upstream,
        stream: ModelStream,
        meter: Meter,
        hold: Hold | None,
        watch: Watch,
        cut_at: float,
    ) -> None:
        self.step, self.upstream, self.hold, self._watch = step, upstream, hold, watch
        self.cut_at = cut_at
        """When it is cut off, on the loop's clock."""
        self.status, self.reason = Status.OK, ""
        self.also: Callable[[Transaction, Settled], None] | None = None
        self.recorded: asyncio.Future[Settled] | None = None
        """Ends when the step's record is on disk; set when the step is over."""
        self.stream, self.meter = stream, meter
        self.blocks = meter.blocks(stream)
        """One iterator from the first peek to the last block."""
        self.owner: Owner | None = None
        self.clock: Clock | None = None
        """Where its time is limited: the answer may be cut off, and then has what came until then and an end."""
        self.keeps_part = True
        """False: who asks can do nothing with a part, and is refused instead."""
        self._rest = b""

    @property
    def ttft_us(self) -> int | None:
        """From leaving the house to the first token."""
        return self.meter.ttft_us

    @property
    def attempt(self) -> int:
        """The number of the attempt that answers."""
        return self.meter.attempt()

    @property
    def upstream_headers(self) -> Mapping[str, str]:
        """What the upstream said beside its answer: response headers by lower-case name."""
        return self.stream.headers

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for peeked in self.meter.peeked:
            yield self._passing(peeked)
        try:
            with self._watch.patience() as patience:
                while (block := await self._next(patience)) is not None:
                    yield block
        except TimeoutError:
            self._fell_silent()
        if end := self._end():
            yield end

    async def _next(self, patience: Patience) -> bytes | None:
        """The next block, None at the end."""
        if self.clock is not None:
            if self.clock.refusal is not None:
                return None
            self.clock.patience = patience
        patience_s = self.upstream.idle_s
        if self.meter.is_complete():  # only the end of the connection can come: worth a moment, for reuse
            patience_s = min(DONE_S, patience_s)
        patience.begins(patience_s, self.cut_at)
        try:
            block = await anext(self.blocks)
        except StopAsyncIteration:
            rest, self._rest = self._rest, b""
            return rest or None
        patience.ends()
        self.meter.saw(block)
        return block if self.clock is None else self._passing(block)

    def _passing(self, block: bytes) -> bytes:
        """What may pass now: of an answer that may be cut off whole events, so that an end can be put after them."""
        if self.clock is None or isinstance(self.meter, DocumentMeter):
            return block
        block = self._rest + block
        ends = [at + len(mark) for mark in (b"\n\n", b"\n\r\n") if (at := block.rfind(mark)) >= 0]
        at = max(ends, default=0)
        self._rest = block[at:]
        return block[:at]

    def _end(self) -> bytes:
        """What is put after the upstream's last block: nothing, unless it was cut off.

        Raises:
            BudgetExceeded: it was cut off, and whoever asks cannot use a part.
            UpstreamError: it has no end.
        """
        if self.clock is None or self.clock.refusal is None or self.meter.is_complete():
            self._check_end()
            return b""
        if not self.keeps_part or isinstance(self.meter, DocumentMeter):
            raise self.clock.refusal
        self.status, self.reason = Status.KILLED, f"{EXHAUSTED}: {self.clock.refusal}"
        return cut_end(b"".join(self.meter.peeked), pricing.choices(self.meter.call.extras))

    def _fell_silent(self) -> None:
        if not self.meter.is_complete() and (self.clock is None or self.clock.refusal is None):
            name = self.upstream.name
            if asyncio.get_running_loop().time() >= self.cut_at:
                problem = f"cut off: its answer took longer than timeout.total_s = {self.upstream.total_s:g}"
                raise UpstreamError(name, problem) from None
            raise UpstreamError(name, f"silent for {self.upstream.idle_s:g} s", retryable=True) from None

    def _check_end(self) -> None:
        if not self.meter.is_complete():
            problem = "it ended its answer without [DONE]: the answer was cut off"
            raise UpstreamError(self.upstream.name, problem, retryable=True)

    async def whole(self) -> Completion:
        """Read to the end. A batch call whose borrowed slot is taken back begins again by itself, with another `step`.

        Raises:
            UpstreamError: it broke off, or sent something that is not a completion.
        """
        while True:
            try:
                with Restartable(self.owner):
                    return await self._read_whole()
            except asyncio.CancelledError:
                if self.owner is None or not await self.owner.renew(self):
                    raise

    def become(self, other: Answer) -> None:
        """Go on as another attempt's answer."""
        self.step, self.upstream, self.hold = other.step, other.upstream, other.hold
        self.status, self.reason, self.recorded = Status.OK, "", None
        self.stream, self.meter, self.blocks = other.stream, other.meter, other.blocks
        self.clock, self._rest = other.clock, b""
        self.cut_at = other.cut_at

    async def _read_whole(self) -> Completion:
        completion = Completion()
        try:
            for block in self.meter.peeked:
                completion.feed(self._passing(block))
            await self._read_rest(completion)
            if not completion.is_done:
                completion.feed(b"\n\n")  # some servers leave out the last empty line
        except EventError as error:
            problem = "its stream does not hold a completion"
            raise UpstreamError(self.upstream.name, problem, detail=str(error), retryable=True) from None
        self.meter.text_bytes, self.meter.told = len(completion.text.encode()), completion.usage
        return completion

    async def _read_rest(self, completion: Completion) -> None:
        """As `__aiter__` does, but without a generator between: this is where a batch step spends its time."""
        try:
            with self._watch.patience() as patience:
                while (block := await self._next(patience)) is not None:
                    completion.feed(block)
        except TimeoutError:
            self._fell_silent()
        if end := self._end():
            completion.feed(end)

    async def document(self) -> Document:
        """Read to the end what is one JSON document, such as embeddings."""
        async for _ in self:
            pass
        meter = self.meter
        assert isinstance(meter, DocumentMeter), "a call of another kind"
        assert meter.document is not None
        return meter.document

    async def durable(self) -> Settled:
        """Wait until the step's record is on disk; call it after the step is over."""
        assert self.recorded is not None, "the step still runs"
        return await self.recorded
