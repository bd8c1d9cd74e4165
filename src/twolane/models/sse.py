"""Server-sent events in the shape of OpenAI chat completion chunks, and a stream that stops at once when closed.

For adapters that make their own stream instead of passing one through.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import TypeVar

import orjson

from twolane.domain.completion import usage_fields
from twolane.domain.records import Usage

DONE = b"data: [DONE]\n\n"
"""The end of every stream."""

T = TypeVar("T")


def event(payload: object) -> bytes:
    """One event with a JSON payload."""
    return b"data: " + orjson.dumps(payload) + b"\n\n"


def error_event(message: str, code: str = "server_error") -> bytes:
    """An error inside a stream that already began."""
    return event({"error": {"message": message, "type": code, "code": code}})


class Chunks:
    """Makes the chunks of one answer: same id, time and model in all of them."""

    def __init__(self, model: str) -> None:
        self.id = f"chatcmpl-{secrets.token_hex(12)}"
        self.created = int(time.time())
        self.model = model

    def chunk(self, content: str | None = None, *, role: str | None = None, finish_reason: str | None = None) -> bytes:
        """A piece of text, or with `finish_reason` the end of it."""
        delta: dict[str, object] = {}
        if role is not None:
            delta["role"] = role
        if content is not None:
            delta["content"] = content
        return self._event([{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}])

    def tool_calls(self, calls: Sequence[tuple[str, str]]) -> bytes:
        """Calls of tools, each with its name and its arguments as JSON, whole."""
        told = [
            {"index": at, "id": f"call_{at}", "type": "function", "function": {"name": name, "arguments": arguments}}
            for at, (name, arguments) in enumerate(calls)
        ]
        delta = {"role": "assistant", "content": None, "tool_calls": told}
        return self._event([{"index": 0, "delta": delta, "logprobs": None, "finish_reason": None}])

    def usage(self, usage: Usage) -> bytes:
        """The last chunk before `DONE`: no choices, only counts."""
        return self._event([], usage_fields(usage))

    def _event(self, choices: list[object], usage: dict[str, object] | None = None) -> bytes:
        payload: dict[str, object] = {
            "id": self.id,
            "object": "chat.completion.chunk",
            "created": self.created,
            "model": self.model,
            "choices": choices,
        }
        if usage is not None:
            payload["usage"] = usage
        return event(payload)


class MadeStream:
    """A `ModelStream` over a generator that gets this stream, to pause on it and to see that it was closed.

    `close` wakes a pause, so a generator that only waits through `pause` and `result_of` ends without delay. `on_end`
    is called once: with True when the generator came to its end, with False when the stream was closed before.
    """

    def __init__(
        self,
        make: Callable[[MadeStream], AsyncIterator[bytes]],
        on_end: Callable[[bool], None] | None = None,
    ) -> None:
        self.is_closed = False
        self.headers: dict[str, str] = {}
        self._waker: asyncio.Future[None] | None = None
        self._on_end = on_end
        self._blocks = make(self)

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        if self.is_closed:
            raise StopAsyncIteration
        try:
            block = await anext(self._blocks)
        except asyncio.CancelledError:
            self.close()
            raise
        except BaseException:
            self._end(not self.is_closed)
            raise
        if self.is_closed:
            raise StopAsyncIteration
        return block

    async def pause(self, seconds: float | None) -> None:
        """Wait that long (None: for ever), or until closed."""
        if self.is_closed or (seconds is not None and seconds <= 0):
            return
        loop = asyncio.get_running_loop()
        waker = self._waker = loop.create_future()
        timer = loop.call_later(seconds, _wake, waker) if seconds is not None else None
        try:
            await waker
        finally:
            self._waker = None
            if timer is not None:
                timer.cancel()

    async def result_of(self, work: Awaitable[T]) -> T | None:
        """The work's result, or None as soon as the stream is closed; a thread then finishes for nobody."""
        task = asyncio.ensure_future(work)
        waker = self._waker = asyncio.get_running_loop().create_future()
        try:
            await asyncio.wait({task, waker}, return_when=asyncio.FIRST_COMPLETED)
            return task.result() if task.done() and not self.is_closed else None
        finally:
            self._waker = None
            if not task.done():
                task.cancel()

    def close(self) -> None:
        """End the answer. May be called at any time and more than once."""
        self.is_closed = True
        if self._waker is not None:
            _wake(self._waker)
        self._end(False)

    def _end(self, has_ended: bool) -> None:
        if self._on_end is not None:
            on_end, self._on_end = self._on_end, None
            on_end(has_ended)


def _wake(waker: asyncio.Future[None]) -> None:
    if not waker.done():
        waker.set_result(None)
