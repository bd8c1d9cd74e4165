"""The port every upstream adapter implements. Quirks of a dialect stay in its own file.

One wire for all: whatever an upstream speaks, its stream is yielded as server-sent events in the shape of OpenAI chat
completion chunks, as bytes, so that the online lane can pass them through untouched and the batch lane can read them
with `domain.completion`. The last event before `data: [DONE]` carries `usage` where the upstream reports it. A call of
kind `embeddings` is the exception: its stream is one JSON document, in the shape of OpenAI's answer.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Protocol

from twolane.domain.records import ModelCall
from twolane.errors import UpstreamError


class ModelStream(Protocol):
    """One answer as it is generated: an async iterator of blocks of whole or partial server-sent events.

    Iterating raises `UpstreamError` when the upstream breaks off. `close` ends the generation upstream (the socket is
    closed) at once, without an await, since clean-up may itself be cancelled; it may be called at any time and more
    than once, and never raises.
    """

    @property
    def headers(self) -> Mapping[str, str]:
        """What the upstream said beside its answer: response headers by lower-case name. Empty for built-in models."""
        ...

    def __aiter__(self) -> AsyncIterator[bytes]: ...

    def close(self) -> None: ...


class Model(Protocol):
    """One upstream. Adapters are opened once by the kernel and shared by all calls."""

    ends_when_closed: bool = False
    """Nothing is generated once a stream is closed: certain only of what runs in this process."""

    async def open(self, call: ModelCall) -> ModelStream:
        """Send the call and return when the upstream has accepted it (before the first token).

        Raises:
            UpstreamError: it cannot be reached (`is_gone`), or answered with an error status.
        """
        ...

    async def aclose(self) -> None:
        """Close pooled connections."""
        ...


def no_embeddings(upstream: str, why: str) -> UpstreamError:
    """The refusal of an upstream that makes none; nothing was sent."""
    move = "Name a route or an upstream whose server has /embeddings (kind openai)"
    return UpstreamError(upstream, f"it makes no embeddings: {why}", detail=move, http_status=400)
