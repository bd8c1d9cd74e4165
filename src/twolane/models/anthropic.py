"""Anthropic's Messages API, and servers that speak it. What its words mean is in `domain/anthropic`; here are the
connection, its errors and its headers.

A call whose client spoke the same dialect is sent as the client wrote it, and each event comes back inside a chunk as
it came (see docs/decisions/0011-native-requests.md). Every call is streamed; redirects are off, so that the key never
leaves for another origin than the configured one.
"""

from __future__ import annotations

import math
import time
from collections.abc import AsyncIterator, Mapping

import orjson

from twolane.domain.anthropic.body import Body, Untellable, native_body, to_body
from twolane.domain.anthropic.chunker import Chunker, ReportedError
from twolane.domain.anthropic.words import DIALECT
from twolane.domain.completion import EventError, EventReader
from twolane.domain.records import Kind, ModelCall, ReplySchema
from twolane.errors import UpstreamError
from twolane.models import Model, no_embeddings
from twolane.models.http import BrokenOff, Client, Response, Unreachable

VERSION = "2023-06-01"
"""Of the protocol; there is no newer one."""

_RETRYABLE = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
_RETRYABLE_TYPES = frozenset({"overloaded_error", "api_error", "rate_limit_error", "timeout_error"})
_MAX_ERROR_BYTES = 65_536


class Anthropic(Model):
    """One server.

    `structured` says how a JSON Schema is asked for: as `json_schema` by the API's own means (by a tool that must be
    used where the schema does not fit these), as `json_object` always by such a tool, or in words (`none`). Where the
    API's own means are refused, and whoever asks judges the reply anyway, a tool takes their place.
    """

    def __init__(self, name: str, *, url: str, key: str, structured: str = "json_schema") -> None:
        self.name = name
        self._url = url.rstrip("/").removesuffix("/v1") + "/v1"
        self._key, self._structured = key, structured
        headers = {"x-api-key": key, "anthropic-version": VERSION}
        kinds = {"content-type": "application/json", "accept": "text/event-stream"}
        self._own = headers | kinds
        self._http = Client(self._url, self._own)
        self._by_tool: set[str] = set()
        """Names of schemas that were refused by the API's own means, and answered by a tool."""

    async def open(self, call: ModelCall) -> _Stream:
        """Send the call; see `models.Model.open`.

        Raises:
            UpstreamError: as there; also, with status 400 and before anything is sent, for what its protocol has no
                word for.
        """
        if call.kind is Kind.EMBEDDINGS:
            raise no_embeddings(self.name, "Anthropic has no API for them")
        is_native = call.native is not None and call.native.dialect == DIALECT
        told = call.native.headers if is_native and call.native is not None else {}
        asked = {name: value for name, value in told.items() if name not in self._own}  # never a client's key
        asked |= call.traced
        body = self._body(call, is_native=is_native)
        response = await self._post(body, asked)
        if response.status != 200:
            error = await self._refusal(response)
            if call.schema is None or not _is_of_schema(error, call.schema, body):
                raise error
            body = to_body(call, structured="json_object")
            response = await self._post(body, asked)
            if response.status != 200:
                raise await self._refusal(response)
            self._by_tool.add(call.schema.name)
        chunker = Chunker(created=int(time.time()), keeps_events=is_native, reply_tool=body.reply_tool)
        return _Stream(self, response, chunker)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def _post(self, body: Body, headers: Mapping[str, str]) -> Response:
        try:
            return await self._http.post("/messages", orjson.dumps(body.fields), headers)
        except Unreachable as error:
            problem = f"it cannot be reached at {self._url}: {error}"
            raise UpstreamError(self.name, problem, retryable=True, is_gone=True) from None
        except BrokenOff as error:
            raise UpstreamError(self.name, f"the request broke off: {error}", retryable=True) from None

    def _body(self, call: ModelCall, *, is_native: bool) -> Body:
        if is_native and call.native is not None:
            return native_body(call.native, call)
        try:
            is_by_tool = call.schema is not None and call.schema.is_judged and call.schema.name in self._by_tool
            return to_body(call, structured="json_object" if is_by_tool else self._structured)
        except Untellable as error:
            raise UpstreamError(self.name, "it cannot be asked for this", detail=str(error), http_status=400) from None

    async def _refusal(self, response: Response) -> UpstreamError:
        try:
            body = await response.read(_MAX_ERROR_BYTES)
        except BrokenOff:
            body = b""  # the status says enough
        finally:
            response.close()
        text = self.public(body[:_MAX_ERROR_BYTES].decode(errors="replace"))
        return UpstreamError(
            self.name,
            f"it answered {response.status}",
            detail=_message(text),
            http_status=response.status,
            retryable=_is_retryable(response),
            retry_after_s=_seconds(response.headers),
            headers=response.headers,
        )

    def public(self, text: str) -> str:
        """An upstream's words without our key: some servers echo it."""
        return text.replace(self._key, "…") if self._key else text


class _Stream:
    """An answer on its way; closing it closes the socket, which is how a server learns to stop generating."""

    def __init__(self, model: Anthropic, response: Response, chunker: Chunker) -> None:
        self._model, self._response, self._chunker = model, response, chunker
        self.headers: Mapping[str, str] = response.headers

    async def __aiter__(self) -> AsyncIterator[bytes]:
        reader, name = EventReader(), self._model.name
        try:
            async for block in self._response:
                for payload in reader.feed(block):
                    chunk = self._chunker.take(payload)
                    if chunk:
                        yield chunk
        except BrokenOff as error:
            raise UpstreamError(name, f"its answer broke off: {error}", retryable=True) from None
        except ReportedError as error:
            # No status: whatever was generated before is charged.
            problem = f"it answered with an error in its stream ({_word(error.kind)})"
            detail, is_retryable = self._model.public(str(error)), error.kind in _RETRYABLE_TYPES
            raise UpstreamError(name, problem, detail=detail[:300], retryable=is_retryable) from None
        except EventError as error:
            raise UpstreamError(name, "its stream does not hold a message", detail=str(error)) from None

    def close(self) -> None:
        """A response read to its end gives its connection back to the pool; any other is closed."""
        self._response.close()


def _is_of_schema(error: UpstreamError, schema: ReplySchema, body: Body) -> bool:
    """Whether a refusal is about the API's own means to ask for a schema, and a tool may take their place."""
    config = body.fields.get("output_config")
    if not schema.is_judged or not isinstance(config, dict) or "format" not in config:
        return False
    told, names = error.detail.lower(), ("output_config", "output_format", "schema")
    return error.http_status in (400, 422) and any(name in told for name in names)


def _word(kind: str) -> str:
    """A type of error as it may enter the ledger: the upstream's own words may echo what it was asked."""
    return kind if kind.isidentifier() and len(kind) <= 40 else "error"


def _is_retryable(response: Response) -> bool:
    """The server's own word, where it gives one."""
    told = response.headers.get("x-should-retry")
    return told == "true" if told in ("true", "false") else response.status in _RETRYABLE


def _seconds(headers: Mapping[str, str]) -> float | None:
    try:
        text = headers.get("retry-after-ms")
        seconds = float(text) / 1000 if text else float(headers.get("retry-after") or "nan")
    except ValueError:  # a date: our own backoff will do
        return None
    return seconds if 0 <= seconds < math.inf else None


def _message(text: str) -> str:
    """The upstream's own words, where it gave some."""
    try:
        found = orjson.loads(text)
    except orjson.JSONDecodeError:
        found = None
    error = found.get("error") if isinstance(found, dict) else None
    text = str(error.get("message") or text) if isinstance(error, dict) else text
    return text.strip()[:300] or "no reason given"
