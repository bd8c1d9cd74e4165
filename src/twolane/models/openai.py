"""Any OpenAI-compatible server: OpenAI, vLLM, Ollama, llama.cpp, Mistral … Their quirks stay in this file.

Every call is streamed, also for callers who want the whole answer: only a stream can be metered, cut and killed midway.
Redirects are off, so that a key never leaves for another origin than the configured one.
"""

from __future__ import annotations

import math
import re
from collections.abc import AsyncIterator

import aiohttp
import orjson

from twolane.domain.records import ModelCall
from twolane.errors import UpstreamError

_RETRYABLE = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
_MAX_ERROR_BYTES = 65_536


class OpenAI:
    """One server. The client session is opened on first use, in the event loop that uses it.

    `structured` says how the server takes a JSON Schema: as `json_schema` (OpenAI, vLLM), as `json_object` (servers
    that only know JSON as such), or not at all; where it is not taken as such, the schema is told to the model in
    words.
    """

    def __init__(self, name: str, *, url: str, key: str | None, structured: str = "json_schema") -> None:
        self.name = name
        self._url = url.rstrip("/") + "/chat/completions"
        self._key, self._structured = key, structured
        self._session: aiohttp.ClientSession | None = None

    async def open(self, call: ModelCall) -> _Stream:
        """Send the call; see `models.Model.open`."""
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=60),
                timeout=aiohttp.ClientTimeout(total=None, connect=10),
                headers={"user-agent": "twolane", "content-type": "application/json", "accept": "text/event-stream"}
                | ({"authorization": f"Bearer {self._key}"} if self._key else {}),
                auto_decompress=True,
            )
        try:
            response = await self._session.post(self._url, data=self._body(call), allow_redirects=False)
        except (aiohttp.ClientConnectorError, aiohttp.ServerTimeoutError, TimeoutError) as error:
            raise UpstreamError(
                self.name, f"it cannot be reached at {self._url}: {_reason(error)}", retryable=True, is_gone=True
            ) from None
        except aiohttp.ClientError as error:
            raise UpstreamError(self.name, f"the request broke off: {_reason(error)}", retryable=True) from None
        if response.status != 200:
            raise await self._refusal(response)
        return _Stream(self.name, response)

    async def aclose(self) -> None:
        """Close the connection pool."""
        if self._session is not None:
            await self._session.close()

    def _body(self, call: ModelCall) -> bytes:
        messages: list[object] = list(call.raw_messages or ())
        messages = messages or [{"role": message.role, "content": message.content} for message in call.messages]
        body: dict[str, object] = {**call.extras, "model": call.model, "messages": messages}
        if "max_completion_tokens" in call.extras:
            body["max_completion_tokens"] = call.max_tokens
        else:
            body["max_tokens"] = call.max_tokens
        if call.temperature is not None:
            body["temperature"] = call.temperature
        if call.schema is not None:
            self._ask_for_schema(call, body, messages)
        body["stream"] = True
        options = call.extras.get("stream_options")
        body["stream_options"] = (options if isinstance(options, dict) else {}) | {"include_usage": True}
        return orjson.dumps(body)

    def _ask_for_schema(self, call: ModelCall, body: dict[str, object], messages: list[object]) -> None:
        assert call.schema is not None
        if self._structured == "json_schema":
            schema = {
                "name": _wire_name(call.schema.name),
                "schema": call.schema.schema,
                "strict": call.schema.is_strict,
            }
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
            return
        if self._structured == "json_object":
            body["response_format"] = {"type": "json_object"}
        words = "Reply with one JSON object that fits this JSON Schema, and nothing else:\n"
        messages.insert(
            min(1, len(messages)), {"role": "user", "content": words + orjson.dumps(call.schema.schema).decode()}
        )

    async def _refusal(self, response: aiohttp.ClientResponse) -> UpstreamError:
        body = b""
        try:
            async for block in response.content.iter_any():
                body += block
                if len(body) > _MAX_ERROR_BYTES:
                    break
        except (aiohttp.ClientError, TimeoutError):
            pass  # the status says enough
        finally:
            response.close()
        text = body[:_MAX_ERROR_BYTES].decode(errors="replace")
        status = response.status
        delay = _seconds(response.headers)
        return UpstreamError(
            self.name,
            f"it answered {status}",
            detail=_message(_without(self._key, text)),
            http_status=status,
            retryable=status in _RETRYABLE,
            retry_after_s=delay,
            headers={name.lower(): value for name, value in response.headers.items()},
        )


class _Stream:
    """An answer on its way; closing it closes the socket, which is how a server learns to stop generating."""

    def __init__(self, name: str, response: aiohttp.ClientResponse) -> None:
        self._name, self._response = name, response
        self.headers = {name.lower(): value for name, value in response.headers.items()}

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            async for block in self._response.content.iter_any():
                yield block
        except (aiohttp.ClientError, TimeoutError, ConnectionError) as error:
            raise UpstreamError(self._name, f"its answer broke off: {_reason(error)}", retryable=True) from None

    def close(self) -> None:
        """A response read to its end gives its connection back to the pool; any other is closed."""
        self._response.close()


def _wire_name(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_-]", "_", name)[:64] or "reply"


def _seconds(headers: object) -> float | None:
    get = getattr(headers, "get")  # noqa: B009 - a multidict, whose type is the client library's
    try:
        text = get("retry-after-ms")
        seconds = float(text) / 1000 if text else float(get("retry-after") or "nan")
    except ValueError:  # a date: our own backoff will do
        return None
    return seconds if 0 <= seconds < math.inf else None


def _message(text: str) -> str:
    """The upstream's own words, where it gave some."""
    try:
        found = orjson.loads(text)
    except orjson.JSONDecodeError:
        found = None
    if isinstance(found, dict):
        error = found.get("error") or found.get("message") or found.get("detail") or text
        text = str(error.get("message", error) if isinstance(error, dict) else error)
    return text.strip()[:300] or "no reason given"


def _without(secret: str | None, text: str) -> str:
    """Some servers echo the key they were sent; ours never travels further."""
    return text.replace(secret, "…") if secret else text


def _reason(error: BaseException) -> str:
    return str(error) or type(error).__name__
