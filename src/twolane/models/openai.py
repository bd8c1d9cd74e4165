"""Any OpenAI-compatible server: OpenAI, vLLM, Ollama, llama.cpp, Mistral … Their quirks stay in this file.

Every completion is streamed, also for callers who want it whole: only a stream can be metered, cut and killed midway.
Redirects are off, so that a key never leaves for another origin than the configured one.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from urllib.parse import urlsplit

import orjson

from twolane.domain.records import Kind, ModelCall, ReplySchema
from twolane.errors import UpstreamError
from twolane.models import Model
from twolane.models.http import BrokenOff, Client, Response, Unreachable

_RETRYABLE = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
_MAX_ERROR_BYTES = 65_536
_WAYS = ("json_schema", "any json_schema", "json_object", "none")
"""How a schema may be asked for, the strongest first. `any json_schema` is not held to the letter: OpenAI takes more
schemas so."""
_OF_SCHEMA = ("response_format", "json_schema", "json schema", "invalid schema", "structured", "guided", "grammar")
"""What a refusal speaks of, in small letters, when it is about the schema or the way it was asked for."""
_WAYS_KEPT = 1000
_WHOLE = {"accept": "application/json"}
"""For an answer in one piece; it stands beside what is accepted of every call."""


class OpenAI(Model):
    """One server.

    `structured` says how the server takes a JSON Schema: as `json_schema` (OpenAI, vLLM), as `json_object` (servers
    that only know JSON as such), or not at all; where it is not taken as such, the schema is told to the model in
    words. A schema whose replies are judged anyway is asked for in a weaker way where the server refuses the first.
    """

    def __init__(self, name: str, *, url: str, key: str | None, structured: str = "json_schema") -> None:
        self.name = name
        self._url, self._structured = url.rstrip("/"), structured
        self._secret = key
        headers = {"content-type": "application/json", "accept": "text/event-stream"}
        self._http = Client(self._url, headers | (_key_header(self._url, key) if key else {}))
        self._quirks: frozenset[str] = frozenset()
        self._ways: dict[str, str] = {}
        """By a schema's name: the way this server takes it, where it is not the first."""

    async def open(self, call: ModelCall) -> _Stream:
        """Send the call; see `models.Model.open`.

        A server that refuses a field which only we chose (`max_tokens` instead of its newer name, `stream_options`) is
        asked again without it. If it then answers, that is remembered: nothing was generated for the first request.
        So is one that does not take a schema, or the way it was asked for, where whoever asks judges the reply anyway.
        """
        quirks, way = self._quirks, self._way(call.schema)
        try:
            while True:
                if call.kind is Kind.EMBEDDINGS:
                    response = await self._http.post(
                        "/embeddings", _embeddings_body(call, quirks), {**_WHOLE, **call.traced}
                    )
                else:
                    response = await self._http.post("/chat/completions", self._body(call, quirks, way), call.traced)
                if response.status == 200:
                    break
                error = await self._refusal(response)
                weaker = _weaker(error, call.schema, way)
                more = quirks | _quirk_in(error, call)
                if more == quirks and weaker is None:
                    raise error
                quirks, way = (quirks, weaker) if weaker is not None else (more, way)
        except Unreachable as error:
            problem = f"it cannot be reached at {self._url}: {error}"
            raise UpstreamError(self.name, problem, retryable=True, is_gone=True) from None
        except BrokenOff as error:
            raise UpstreamError(self.name, f"the request broke off: {error}", retryable=True) from None
        self._quirks = quirks
        if call.schema is not None and way != self._way(call.schema):
            if len(self._ways) >= _WAYS_KEPT:
                self._ways.clear()
            self._ways[call.schema.name] = way
        return _Stream(self.name, response)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    def _way(self, schema: ReplySchema | None) -> str:
        known = self._ways.get(schema.name) if schema is not None and schema.is_judged else None
        return known or self._structured

    def _body(self, call: ModelCall, quirks: frozenset[str], way: str) -> bytes:
        messages: list[object] = list(call.raw_messages or ())
        messages = messages or [{"role": message.role, "content": message.content} for message in call.messages]
        body: dict[str, object] = {**call.extras, "model": call.model, "messages": messages}
        if "max_completion_tokens" in call.extras or "max_completion_tokens" in quirks:
            body["max_completion_tokens"] = call.max_tokens
        else:
            body["max_tokens"] = call.max_tokens
        if call.temperature is not None:
            body["temperature"] = call.temperature
        if call.schema is not None:
            _ask_for_schema(call.schema, way, body, messages)
        body["stream"] = True
        if "stream_options" in quirks:
            body.pop("stream_options", None)
        else:
            options = call.extras.get("stream_options")
            body["stream_options"] = (options if isinstance(options, dict) else {}) | {"include_usage": True}
        return orjson.dumps(body)

    async def _refusal(self, response: Response) -> UpstreamError:
        try:
            body = await response.read(_MAX_ERROR_BYTES)
        except BrokenOff:
            body = b""  # the status says enough
        finally:
            response.close()
        text = body[:_MAX_ERROR_BYTES].decode(errors="replace")
        return UpstreamError(
            self.name,
            f"it answered {response.status}",
            detail=_message(_without(self._secret, text)),
            http_status=response.status,
            retryable=response.status in _RETRYABLE,
            retry_after_s=_seconds(response.headers),
            headers=response.headers,
        )


class _Stream:
    """An answer on its way; closing it closes the connection, which is how a server learns to stop generating."""

    __slots__ = ("_name", "_response", "headers")

    def __init__(self, name: str, response: Response) -> None:
        self._name, self._response, self.headers = name, response, response.headers

    def __aiter__(self) -> _Stream:
        return self

    async def __anext__(self) -> bytes:
        try:
            return await anext(self._response)
        except BrokenOff as error:
            raise UpstreamError(self._name, f"its answer broke off: {error}", retryable=True) from None

    def close(self) -> None:
        """An answer read to its end has given its connection back; any other is closed with it."""
        self._response.close()


def _embeddings_body(call: ModelCall, quirks: frozenset[str]) -> bytes:
    """The fields as the client wrote them. The form of the vectors is its library's choice more often than its own, and
    whoever reads the answer can change it: a server that does not know the field is asked without."""
    fields = {name: value for name, value in call.extras.items() if not (name == "encoding_format" and name in quirks)}
    return orjson.dumps({**fields, "model": call.model})


def _key_header(url: str, key: str) -> dict[str, str]:
    """Azure takes a key under a name of its own."""
    host = urlsplit(url).hostname or ""
    return {"api-key": key} if host.endswith(".azure.com") else {"authorization": f"Bearer {key}"}


def _ask_for_schema(schema: ReplySchema, way: str, body: dict[str, object], messages: list[object]) -> None:
    if way in ("json_schema", "any json_schema"):
        is_strict = schema.is_strict and way == "json_schema"
        told = {"name": _wire_name(schema.name), "schema": schema.schema, "strict": is_strict}
        body["response_format"] = {"type": "json_schema", "json_schema": told}
        return
    if way == "json_object":
        body["response_format"] = {"type": "json_object"}
    words = "Reply with one JSON object that fits this JSON Schema, and nothing else:\n"
    messages.insert(min(1, len(messages)), {"role": "user", "content": words + orjson.dumps(schema.schema).decode()})


def _weaker(error: UpstreamError, schema: ReplySchema | None, way: str) -> str | None:
    """The next way to ask for a schema that the server refused in this one; None where it refused something else, or
    the caller counts on the server to keep to it. 500 is what llama-cpp-python says to a kind it does not know."""
    if schema is None or not schema.is_judged or error.http_status not in (400, 422, 500, 501):
        return None
    told, left = error.detail.lower(), _WAYS[_WAYS.index(way) + 1 :]
    return left[0] if left and any(word in told for word in _OF_SCHEMA) else None


def _quirk_in(error: UpstreamError, call: ModelCall) -> frozenset[str]:
    """The field of ours that a refusal speaks of. Learned from the refusal itself: a table of servers would be old
    tomorrow. Some name both old and new field, some only the one they do not know."""
    if error.http_status not in (400, 422):
        return frozenset()
    is_chat = call.kind is not Kind.EMBEDDINGS
    names = ("max_completion_tokens", "stream_options") if is_chat else ("encoding_format",)
    return frozenset(name for name in names if name in error.detail)


def _wire_name(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_-]", "_", name)[:64] or "reply"


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
    if isinstance(found, dict):
        error = found.get("error") or found.get("message") or found.get("detail") or text
        text = str(error.get("message", error) if isinstance(error, dict) else error)
    return text.strip()[:300] or "no reason given"


def _without(secret: str | None, text: str) -> str:
    """Some servers echo the key they were sent; ours never travels further."""
    return text.replace(secret, "…") if secret else text
