"""What the door watches while an answer passes: first token, bytes, end, usage."""

from __future__ import annotations

import hashlib
import math
import re
import time
from collections import deque
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from twolane.domain.canonical import commitment
from twolane.domain.completion import EventError, EventReader, end_of, parse_event, usage_of
from twolane.domain.records import ModelCall, Usage
from twolane.errors import UpstreamError
from twolane.kernel.guards import StreamWatch
from twolane.models import ModelStream

if TYPE_CHECKING:
    from opentelemetry.trace import Span

TAIL_BYTES = 32_768
"""How much of a stream's end is kept to find its usage in: some servers put pages of sources into the same event."""


_WORDS = re.compile(rb'"(?:content|text|reasoning|reasoning_content|arguments)"\s*:\s*"[^"]')
_SLICE = 2_047
"""Longer pieces are hashed with the interpreter's lock let go, and getting it back from the writer takes longer than
the hashing."""


@dataclass
class Meter:
    """Counts a copy of what passes: first token, bytes, the end of the stream with its usage."""

    fields: dict[str, object]
    call: ModelCall
    peeked: list[bytes] = field(default_factory=list)
    queued_us: int = 0
    ttft_us: int | None = None
    is_intended: bool = False
    has_left: bool = False
    text_bytes: int | None = None
    span: Span | None = None
    """Of a call that left, where somebody traces."""
    told: Usage | None = None
    """The usage, where the stream was read by somebody who has found it already."""
    _began: float = field(default_factory=time.monotonic)
    _stopped: float | None = None
    _last: deque[bytes] = field(default_factory=deque)
    """The newest blocks, `TAIL_BYTES` or a little more, joined when asked for: copying at every block was slow."""
    _last_bytes: int = 0
    _edge: bytes = b""
    _is_done: bool = False
    _watch: StreamWatch | None = None
    _look_at: float = math.inf
    _events: int = 0
    _digest: hashlib._Hash = field(default_factory=hashlib.sha256)

    def begin(self) -> None:
        """The call leaves the house now."""
        self._began = time.monotonic()

    def attempt(self) -> int:
        """Which attempt of its step this is."""
        attempt = self.fields["attempt"]
        assert isinstance(attempt, int)
        return attempt

    def blocks(self, stream: ModelStream) -> AsyncIterator[bytes]:
        """An answer as it is watched, block by block: one iterator, since a stream need not be able to begin again."""
        return aiter(stream)

    def saw(self, block: bytes) -> None:
        """A block passed."""
        if len(block) <= _SLICE:
            self._digest.update(block)
        else:
            for at in range(0, len(block), _SLICE):
                self._digest.update(block[at : at + _SLICE])
        self._events += block.count(b"data:")
        self._last.append(block)
        self._last_bytes += len(block)
        while self._last_bytes - len(self._last[0]) >= TAIL_BYTES:
            self._last_bytes -= len(self._last.popleft())
        if (b"[DONE]" in block or (self._edge and b"[DONE]" in self._edge + block[:5])) and not self._is_done:
            self._is_done = end_of(self._tail()) >= 0
        self._edge = b"" if block.endswith(b"\n") else (self._edge + block[-5:])[-5:]
        if self.ttft_us is None and _has_answered(self.peeked):
            self.ttft_us = int((time.monotonic() - self._began) * 1_000_000)

        if self._events >= self._look_at:
            self._look()

    def watched_by(self, watch: StreamWatch) -> None:
        """Let a guard look into it now and then."""
        self._watch, self._look_at = watch, watch.look_at

    def _look(self) -> None:
        """Raises Runaway where it leads nowhere."""
        assert self._watch is not None
        self._watch.look(self._events, self._tail())
        self._look_at = self._watch.look_at

    def settled(self, pico: int | None, *, is_whole: bool) -> None:
        """What it came to, for the guard: an event is about a token."""
        if self._watch is not None:
            self._watch.settled(pico, self._events, is_whole=is_whole)

    def has_first_token(self) -> bool:
        """True once the first event is whole."""
        return self.ttft_us is not None

    def is_complete(self) -> bool:
        """True once `[DONE]` passed."""
        return self._is_done

    def _tail(self) -> bytes:
        return b"".join(self._last)

    def stop(self) -> None:
        """The call was cut off now, however long its reader takes to hear of it."""
        self._stopped = time.monotonic()

    def total_us(self) -> int:
        """Microseconds since the call left; 0 where it never did."""
        if not self.has_left:
            return 0
        return int(((self._stopped or time.monotonic()) - self._began) * 1_000_000)

    def usage(self) -> Usage | None:
        """What the upstream reported at the end; None where it did not. Only events that may report it are read: most
        of a tail is words."""
        if self.told is not None:
            return self.told
        tail = self._tail()
        at = tail.rfind(b'"usage"')
        while at >= 0:
            start = tail.rfind(b"data:", 0, at)
            if start < 0:
                return None  # the tail begins in the middle of this event
            for payload in EventReader().feed(_first_event(tail[start:])):
                try:
                    chunk = parse_event(payload)
                except EventError:
                    continue
                found = usage_of(chunk) if chunk else None
                if found is not None:
                    return found
            at = tail.rfind(b'"usage"', 0, start)
        return None

    def is_unbilled(self, error: BaseException) -> bool:
        """An upstream that was never reached, or that refused with a status, has generated nothing."""
        return isinstance(error, UpstreamError) and (error.is_gone or error.http_status is not None)

    def output_bytes(self) -> int:
        """A measure of what was generated where no usage came: the text's bytes, else four a chunk. A first chunk that
        says no more than whose turn it is counts for nothing."""
        if self.text_bytes is not None:
            return self.text_bytes
        begun = b"".join(self.peeked)
        is_silent = b'"role"' in begun and _WORDS.search(begun) is None
        return 4 * max(0, self._events - is_silent)

    def output_digest(self, salt: bytes) -> str | None:
        """A commitment to the bytes that passed; None where none did."""
        return commitment(salt, self._digest.digest()) if self._events else None


def _has_answered(peeked: Sequence[bytes]) -> bool:
    """True once the first event is whole. Some servers answer 200 and then an error event: seen here, it is a failure
    and not an answer."""
    begun = peeked[0] if len(peeked) == 1 else b"".join(peeked)
    if begun.startswith(b'data: {"id"') and b"\n\n" in begun and b'"error"' not in begun:
        return True  # a chunk as nearly every server writes it: no need to read it
    for payload in EventReader().feed(_first_event(begun) if begun.startswith(b"data:") else begun):
        parse_event(payload)
        return True
    return False


def _first_event(begun: bytes) -> bytes:
    """A block up to the end of its first event; all of it where that is not clear."""
    at = begun.find(b"\n\n")
    return begun[: at + 2] if at >= 0 and b"\r" not in begun[:at] else begun
