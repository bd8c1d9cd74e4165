"""What the door watches where the answer is one JSON document and no stream of events: embeddings.

Nobody can use a part of it. So it is read to its end before anybody is told that the attempt succeeded: a body that is
cut, too large, an error in disguise or not what was asked for is a failed attempt like any other, and the next one may
be made.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass

import orjson

from twolane.domain.completion import usage_of
from twolane.domain.records import Kind, ModelCall, Usage
from twolane.errors import UpstreamError
from twolane.kernel.meter import Meter
from twolane.models import ModelStream
from twolane.rules import reading

MAX_DOCUMENT_BYTES = 64 * 1024 * 1024
"""The largest answer that is kept. 2,048 vectors of 1,536 numbers are 40 to 65 MB in digits and 17 MB in base64."""


@dataclass(frozen=True, slots=True)
class Document:
    """An answer that is an object with `data`, a list of as many objects with an `embedding` as there were inputs."""

    body: bytes
    """As it came."""
    fields: dict[str, object]
    """The same, read."""
    data: list[dict[str, object]]
    """The vectors in the order of the inputs: each a list of numbers, or text in base64."""


@dataclass
class DocumentMeter(Meter):
    """First byte, bytes, usage and the document itself; see `Meter`."""

    document: Document | None = None

    async def blocks(self, stream: ModelStream) -> AsyncIterator[bytes]:
        """The whole body as one block.

        Raises:
            UpstreamError: it is larger than `MAX_DOCUMENT_BYTES`.
        """
        parts, size = [], 0
        async for block in stream:
            if self.ttft_us is None:
                self.ttft_us = self.total_us()
            self._digest.update(block)
            size += len(block)
            if size > MAX_DOCUMENT_BYTES:
                limit = f"{MAX_DOCUMENT_BYTES // 2**20} MB"
                move = "Send fewer inputs at a time, ask for base64, or for fewer dimensions"
                raise self._error(f"its answer is larger than {limit}", move)
            parts.append(block)
        yield b"".join(parts)

    def saw(self, block: bytes) -> None:
        """The whole body passed.

        Raises:
            UpstreamError: it is not what was asked for.
        """
        self._events = 1  # something came: there is something to commit to
        try:
            fields = orjson.loads(block)
        except orjson.JSONDecodeError as error:
            raise self._error("its answer is not JSON", str(error), retryable=True) from None
        if not isinstance(fields, dict):
            raise self._error("its answer is not a JSON object")
        if fields.get("error") and not fields.get("data"):
            fault = fields["error"]
            told = str(fault.get("message", fault) if isinstance(fault, dict) else fault)
            raise self._error("it answered 200 with an error", told[:300])
        self.document = Document(block, fields, self._data(fields))

    def is_complete(self) -> bool:
        """True once the document is here."""
        return self.document is not None

    def has_first_token(self) -> bool:
        """The same: no part of it is of use to anybody."""
        return self.document is not None

    def usage(self) -> Usage | None:
        """What the document reports; nothing is ever written. None where it does not say."""
        told = self.document.fields.get("usage") if self.document is not None else None
        if not isinstance(told, dict):
            return None
        read = told.get("prompt_tokens", told.get("total_tokens"))
        return usage_of({"usage": {**told, "prompt_tokens": read, "completion_tokens": 0, "total_tokens": 0}})

    def output_bytes(self) -> int:
        """Vectors are no tokens."""
        return 0

    def _data(self, fields: dict[str, object]) -> list[dict[str, object]]:
        data, wanted = fields.get("data"), reading.inputs(self.call)
        if not isinstance(data, list):
            raise self._error("its answer holds no embeddings: there is no list 'data'")
        if len(data) != wanted:
            raise self._error(f"it gave {len(data)} embeddings for {wanted} inputs")
        if not all(isinstance(each, dict) and isinstance(each.get("embedding"), list | str) for each in data):
            raise self._error("its answer holds something that is no embedding")
        places = [each.get("index", at) for at, each in enumerate(data)]
        if places == list(range(wanted)):
            return data
        if not all(type(place) is int for place in places) or sorted(places) != list(range(wanted)):
            raise self._error("its embeddings are not numbered as the inputs are")
        return [each for _, each in sorted(zip(places, data, strict=True), key=lambda pair: pair[0])]

    def _error(self, problem: str, detail: str = "", *, retryable: bool = False) -> UpstreamError:
        return UpstreamError(str(self.fields["upstream"]), problem, detail=detail, retryable=retryable)


def meter_for(fields: dict[str, object], call: ModelCall) -> Meter:
    """What watches the answer to a call of this kind."""
    return (DocumentMeter if call.kind is Kind.EMBEDDINGS else Meter)(fields, call)
