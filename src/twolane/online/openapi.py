"""What the gateway serves, described as OpenAPI 3.1: every address of the route table, and no other.

Schemas are written by hand, beside the readers they describe: what a client may send is checked by code that says more
than a schema could, and fields that pass through are nobody's to list. Tests send requests made from this description
and hold every answer against it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from importlib import metadata
from typing import Any, Protocol

from twolane.kernel.economics import DIMENSIONS
from twolane.online.completions import MAX_CHOICES
from twolane.online.embeddings import MAX_DIMENSIONS, MAX_INPUTS, MAX_TOKEN, MAX_TOKENS
from twolane.online.wire import REFUSED
from twolane.rules.feedback import State

Schema = dict[str, Any]
"""JSON. Any: a JSON Schema holds what it holds."""

TEXT: Schema = {"type": "string"}
WHOLE: Schema = {"type": "integer", "minimum": 0}
MAYBE_WHOLE: Schema = {"type": ["integer", "null"], "minimum": 0}
MAYBE_TEXT: Schema = {"type": ["string", "null"]}
DECIMAL: Schema = {"type": "string", "pattern": r"^-?[0-9]+(\.[0-9]+)?$", "description": "an exact decimal"}
INSTANT: Schema = {"type": "string", "format": "date-time"}


class Described(Protocol):
    """What is known of a route here."""

    @property
    def method(self) -> str:
        """Such as GET."""
        ...

    @property
    def path(self) -> str:
        """As the route table writes it."""
        ...

    @property
    def is_open(self) -> bool:
        """True where nobody needs a key."""
        ...


def describe(routes: Iterable[Described]) -> Schema:
    """The description of these routes.

    Raises:
        KeyError: a route that `OPERATIONS` says nothing about.
    """
    paths: dict[str, Schema] = {}
    for route in routes:
        operation = dict(OPERATIONS[route.method, route.path])
        names = re.findall(r"\{(\w+)", route.path)
        known, shape = operation.pop("x-parameters", {}), operation.pop("x-error", "Error")
        queries = operation.pop("x-queries", {})
        if names or queries:
            operation["parameters"] = [
                {"name": name, "in": "path", "required": True, "schema": known.get(name, {"type": "string"})}
                for name in names
            ] + [{"name": name, "in": "query", "schema": TEXT, "description": text} for name, text in queries.items()]
        if route.is_open:
            operation["security"] = []
        else:
            operation["responses"] = {"401": _error("No key, or not one of ours.", shape), **operation["responses"]}
        operation["responses"] = {
            "503": _error("The server stops, or is overcharged.", shape),
            **operation["responses"],
        }
        paths.setdefault(_template(route.path), {})[route.method.lower()] = operation
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Twolane",
            "version": metadata.version("twolane"),
            "summary": "One door for model calls: each has a price, a limit, a record and a switch.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "security": [{"bearer": []}, {"key": []}],
        "paths": paths,
        "components": {
            "schemas": SCHEMAS,
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            },
        },
    }


def _template(path: str) -> str:
    return re.sub(r"\{(\w+):\w+\}", r"{\1}", path)


# ── building blocks ──


def _object(properties: Mapping[str, Schema], *, optional: Iterable[str] = (), more: bool = False) -> Schema:
    left_out = set(optional)
    required = [name for name in properties if name not in left_out]
    return {"type": "object", "properties": dict(properties), "required": required, "additionalProperties": more}


def _list(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _maybe(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


def _json(description: str, schema: Schema) -> Schema:
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def _error(description: str, shape: str = "Error") -> Schema:
    return _json(description, _ref(shape))


def _call(summary: str, body: str, answer: str, description: str, error: str = "Error") -> Schema:
    """A call of a model: a JSON body, an answer in one piece or as events. An upstream's own refusals of a request
    (4xx) pass through, so statuses are described by their ranges."""
    whole = _json(description, _ref(answer))
    whole["content"]["text/event-stream"] = {"schema": {"description": "server-sent events, each with a JSON object"}}
    whole["headers"] = {
        name: {"schema": {"type": "string"}, "description": text}
        for name, text in (
            ("x-request-id", "the client's own if it is sane"),
            ("x-twolane-step", "the step's id, for /api/v1/steps/{id}; absent where a stream began with a keep-alive"),
            ("x-twolane-route", "the route or upstream that was named"),
            ("x-twolane-reason", "why this upstream"),
            ("x-twolane-cost", "of an answer in one piece, once it is recorded"),
            *(
                (f"x-ratelimit-{part}-{what}", f"{text}; where a rate is configured for the upstream or told by it")
                for what in ("requests", "tokens")
                for part, text in (
                    ("limit", f"{what} a minute"),
                    ("remaining", "what may be sent at once"),
                    ("reset", "until all of that is there again, as 20ms or 6m0s"),
                )
            ),
        )
    }
    return {
        "x-error": error,
        "summary": summary,
        "requestBody": {"required": True, "content": {"application/json": {"schema": _ref(body)}}},
        "responses": {
            "200": whole,
            "4XX": _error("Refused, by us or by the upstream; x-should-retry says whether to try again.", error),
            "5XX": _error("The upstream failed, a switch is tripped, or the server stops.", error),
        },
    }


def _whole(call: Schema) -> Schema:
    """A call whose answer never comes as events."""
    answer = call["responses"]["200"]
    content = {kind: schema for kind, schema in answer["content"].items() if kind != "text/event-stream"}
    return {**call, "responses": {**call["responses"], "200": {**answer, "content": content}}}


def _read(summary: str, answer: str, *, can_miss: bool = False, parameters: Schema | None = None) -> Schema:
    responses = {"200": _json("What was asked for.", _ref(answer))}
    if can_miss:
        responses["404"] = _error("There is no such thing, or it is not yours.")
    return {"summary": summary, "responses": responses, "x-parameters": parameters or {}}


def _operate(summary: str, answer: str, *, body: str = "", parameters: Schema | None = None) -> Schema:
    """What takes an operator's key."""
    operation = _read(summary, answer, can_miss=True, parameters=parameters)
    operation["responses"] |= {
        "400": _error("This is not a scope, or no such request."), "403": _error("The key is not an operator's."),
    }  # fmt: skip
    if body:
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": _ref(body)}}}
    return operation


def _asked(read: Schema, **queries: str) -> Schema:
    """The same with fields in its query, none of which has to be there."""
    wrong = _error("A field of the query is not known, or cannot be read.")
    return {**read, "responses": {**read["responses"], "400": wrong}, "x-queries": queries}


def _events(summary: str, *, parameters: Schema) -> Schema:
    """Server-sent events: `progress` as often as something changes, `end` once."""
    stream = {"description": "Events.", "content": {"text/event-stream": {"schema": TEXT}}}
    missing = _error("There is no such thing, or it is not yours.")
    return {"summary": summary, "responses": {"200": stream, "404": missing}, "x-parameters": parameters}


def _health() -> Schema:
    read = _read("The process answers and its store can be read.", "Health")
    draining = _json("It is about to stop: send nothing more here.", _ref("Draining"))
    return {**read, "responses": {**read["responses"], "503": draining}}


def _metrics() -> Schema:
    kinds = ("text/plain", "application/openmetrics-text")
    page = {"description": "Figures.", "content": {kind: {"schema": TEXT} for kind in kinds}}
    return {"summary": "Figures as Prometheus reads them.", "responses": {"200": page}}


# ── operations ──

OPERATIONS: Mapping[tuple[str, str], Schema] = {
    ("POST", "/v1/chat/completions"): _call(
        "One chat completion, as OpenAI's clients ask for it.", "ChatRequest", "ChatCompletion", "The answer."
    ),
    ("POST", "/v1/messages"): _call(
        "One message, as Anthropic's clients ask for it.", "MessagesRequest", "Message", "The answer.", "AnthropicError"
    ),
    ("POST", "/v1/responses"): _call(
        "One response, as OpenAI's newer clients ask for it; nothing is kept.", "ResponseRequest", "Response",
        "The answer.",
    ),
    ("POST", "/v1/embeddings"): _whole(
        _call("Embeddings, as OpenAI's clients ask for them.", "EmbeddingsRequest", "Embeddings", "The vectors.")
    ),
    **{
        (method, "/v1/responses/{id:path}"): _read("Responses are not kept: always 404.", "Error", can_miss=True)
        for method in ("GET", "POST", "DELETE")
    },
    ("GET", "/v1/models"): _read("The routes and upstreams this key may name.", "Models"),
    ("GET", "/v1/models/{id:path}"): _read("One of them.", "Model", can_miss=True),
    ("GET", "/healthz"): _health(),
    ("GET", "/metrics"): _metrics(),
    ("GET", "/api/v1/openapi.json"): _read("This description.", "Description"),
    ("GET", "/api/v1/upstreams"): _read("Upstreams within this key's reach.", "Upstreams"),
    ("GET", "/api/v1/steps/{id}"): _read(
        "What the ledger says of one step of this key's tenant.", "Step", can_miss=True,
        parameters={"id": {"type": "string", "description": "what x-twolane-step said: 24 hexadecimal digits"}},
    ),
    ("GET", "/api/v1/budgets"): _read("The limits of this key's tenant.", "Budgets"),
    ("GET", "/api/v1/costs"): _asked(
        _read("What this key's tenant has paid, and for what.", "Costs"),
        by=f"{', '.join(DIMENSIONS)}; several joined by commas; left out: workflow",
        since="a date (UTC), or 7d for the last seven days", until="a date, itself included",
    ),
    ("GET", "/api/v1/switches"): _read("What is stopped of this key's tenant.", "Switches"),
    ("POST", "/api/v1/switches"): _operate("Stop a scope of this key's tenant.", "Tripped", body="Trip"),
    ("DELETE", "/api/v1/switches/{scope:path}"): _operate(
        "Let a scope of this key's tenant work again.", "Reset",
        parameters={"scope": {"type": "string", "description": "as it was tripped: run:R, key:T/N …"}},
    ),
    ("GET", "/api/v1/runs/{run}/events"): _events(
        "A run of this key's tenant while it goes on, until it is over. Each event's data is a RunProgress.",
        parameters={"run": {"type": "string", "description": "the run's id"}},
    ),
}  # fmt: skip
"""Every address the house knows how to describe, by method and path as the route table writes them."""

# ── schemas ──

_PART = {"type": "object", "required": ["type"], "properties": {"type": TEXT, "text": TEXT}}
_ROLE: Schema = {"type": "string", "minLength": 1}
_MESSAGE: Schema = {
    "anyOf": [
        {
            "type": "object",
            "required": ["role", "content"],
            "properties": {"role": _ROLE, "content": {"anyOf": [TEXT, {**_list(_PART), "minItems": 1}]}},
        },
        {
            "type": "object",
            "required": ["role", "tool_calls"],
            "properties": {
                "role": _ROLE,
                "content": {"type": "null"},
                "tool_calls": {"type": "array", "items": {"type": "object"}, "minItems": 1},
            },
        },
    ]
}
_FORMAT: Schema = {
    "type": ["object", "null"],
    "properties": {
        "type": TEXT,
        "json_schema": {"type": "object", "required": ["schema"], "properties": {"schema": {"type": "object"}}},
    },
    "if": {"properties": {"type": {"const": "json_schema"}}, "required": ["type"]},
    "then": {"required": ["json_schema"]},
}
_USAGE = _object({"prompt_tokens": WHOLE, "completion_tokens": WHOLE, "total_tokens": WHOLE}, more=True)
_CHOICE = _object(
    {"index": WHOLE, "message": {"type": "object"}, "finish_reason": MAYBE_TEXT, "logprobs": {}}, more=True
)
_TOKENS: Schema = {"type": ["integer", "null"], "minimum": 1, "maximum": 2**53}
_SOME_TEXT: Schema = {"type": "string", "minLength": 1}
_IDS: Schema = {
    "type": "array", "minItems": 1, "maxItems": MAX_TOKENS,
    "items": {"type": "integer", "minimum": 0, "maximum": MAX_TOKEN},
}  # fmt: skip
_LIMITS = dict.fromkeys(("limit", "spent", "held", "leased", "remaining"), WHOLE)
_FINDING = _object({"what": TEXT, "verdict": {"enum": ["yes", "no", "unknown"]}, "detail": TEXT})
_LANE: Schema = _object(
    {
        "slots": WHOLE,
        "held": WHOLE,
        "busy": WHOLE,
        "borrowed": WHOLE,
        "lent": WHOLE,
        "waiting": WHOLE,
        "limit": WHOLE,
        "calls_left": {"type": ["number", "null"]},
        "tokens_left": {"type": ["number", "null"]},
        "breaker": {"enum": [str(state) for state in State]},
    }
) | {
    "description": "slots: configured over all processes; held: of them by this process; busy: calls in flight here, "
    "borrowed of them in the other lane's slots; lent: slots of this lane that the other one uses; waiting: calls in "
    "line; limit: how many may be busy here now; calls_left, tokens_left: what may leave at once, null without a rate, "
    "below 0 after more was used than expected"
}

_WITH_COST = _object(
    {"calls": MAYBE_WHOLE, "cost": _maybe(DECIMAL), "in_doubt": _maybe(DECIMAL)}, optional=["in_doubt"]
)
_COST: Schema = {
    **dict.fromkeys((*DIMENSIONS, "api_key"), TEXT),
    **dict.fromkeys(("calls", "tokens", "input_tokens", "output_tokens", "reused"), WHOLE),
    **dict.fromkeys(("unpriced", "items", "quarantined", "accepted"), MAYBE_WHOLE),
    **dict.fromkeys(("cost", "cost_per_item", "cost_per_accepted"), _maybe(DECIMAL)),
    **dict.fromkeys(("retries", "refusals", "waste"), _WITH_COST),
    "saved": _object(dict.fromkeys(("memo", "router", "packing"), _maybe(DECIMAL))),
}

SCHEMAS: Mapping[str, Schema] = {
    "Error": _object(
        {"error": _object({"message": TEXT, "type": TEXT, "param": MAYBE_TEXT, "code": MAYBE_TEXT})}
    ),
    "ChatRequest": {
        "type": "object",
        "required": ["model", "messages"],
        "properties": {
            "model": {"type": "string", "minLength": 1, "description": "a route or an upstream"},
            "messages": {"type": "array", "items": _MESSAGE, "minItems": 1},
            "stream": {"type": ["boolean", "null"]},
            "stream_options": {"type": ["object", "null"]},
            "n": {"type": ["integer", "null"], "minimum": 1, "maximum": MAX_CHOICES},
            "max_tokens": _TOKENS,
            "max_completion_tokens": _TOKENS,
            "temperature": {"type": ["number", "null"], "minimum": 0},
            "response_format": _FORMAT,
        },
        "propertyNames": {"not": {"enum": sorted(REFUSED)}},
        "description": "Further fields (tools, stop, seed …) pass through to the upstream.",
    },
    "ChatCompletion": _object(
        {
            "id": TEXT, "object": {"const": "chat.completion"}, "created": WHOLE, "model": TEXT,
            "choices": _list(_CHOICE), "usage": _USAGE,
        },
        optional=["usage"], more=True,
    ),
    "EmbeddingsRequest": {
        "type": "object",
        "required": ["model", "input"],
        "properties": {
            "model": {"type": "string", "minLength": 1, "description": "a route or an upstream"},
            "input": {
                "anyOf": [
                    _SOME_TEXT,
                    {"type": "array", "items": _SOME_TEXT, "minItems": 1, "maxItems": MAX_INPUTS},
                    _IDS,
                    {"type": "array", "items": _IDS, "minItems": 1, "maxItems": MAX_INPUTS},
                ],
                "description": "a text, several, a list of tokens, or several; tokens at most as many as one may hold",
            },
            "dimensions": {"type": ["integer", "null"], "minimum": 1, "maximum": MAX_DIMENSIONS},
            "encoding_format": {"enum": ["float", "base64", None]},
            "stream": {"enum": [False, None]},
        },
        "propertyNames": {"not": {"enum": sorted({*REFUSED, "messages"})}},
        "description": "Further fields (user …) pass through to the upstream.",
    },
    "Embeddings": _object(
        {
            "object": {"const": "list"}, "model": TEXT,
            "data": _list(
                _object(
                    {
                        "object": TEXT, "index": WHOLE,
                        "embedding": {"anyOf": [_list({}), {"type": "string", "contentEncoding": "base64"}]},
                    },
                    more=True,
                )
            ),
            "usage": _object({"prompt_tokens": WHOLE, "total_tokens": WHOLE}, more=True),
        },
        optional=["usage"], more=True,
    ),
    "ResponseRequest": {
        "type": "object",
        "required": ["model", "input"],
        "properties": {
            "model": {"type": "string", "minLength": 1, "description": "a route or an upstream"},
            "input": {"type": "string", "minLength": 1, "description": "or a list of items, as in OpenAI's API"},
            "instructions": MAYBE_TEXT,
            "stream": {"type": ["boolean", "null"]},
        },
        "propertyNames": {"not": {"enum": sorted(REFUSED)}},
        "description": "Further fields as in OpenAI's Responses API; what needs a memory here is refused.",
    },
    "Response": _object(
        {"id": TEXT, "object": {"const": "response"}, "status": TEXT, "output": _list({"type": "object"})}, more=True
    ),
    "MessagesRequest": {
        "type": "object",
        "required": ["model", "messages", "max_tokens"],
        "properties": {
            "model": {"type": "string", "minLength": 1, "description": "a route or an upstream"},
            "messages": {
                "type": "array", "minItems": 1,
                "items": {
                    "type": "object", "required": ["role", "content"],
                    "properties": {"role": {"enum": ["user", "assistant"]}, "content": TEXT},
                },
            },
            "max_tokens": {"type": "integer", "minimum": 1, "maximum": 2**53},
            "stream": {"type": ["boolean", "null"]},
        },
        "propertyNames": {"not": {"enum": sorted(REFUSED)}},
        "description": "Further fields as in Anthropic's Messages API.",
    },
    "Message": _object(
        {
            "id": TEXT, "type": {"const": "message"}, "role": {"const": "assistant"}, "model": TEXT,
            "content": _list({"type": "object"}), "stop_reason": MAYBE_TEXT, "usage": {"type": "object"},
        },
        more=True,
    ),
    "AnthropicError": _object(
        {"type": {"const": "error"}, "error": _object({"type": TEXT, "message": TEXT}), "request_id": TEXT},
        optional=["request_id"],
    ),
    "Model": _object(
        {
            "id": TEXT, "object": {"const": "model"}, "created": WHOLE, "owned_by": TEXT, "type": {"const": "model"},
            "display_name": TEXT, "created_at": INSTANT, "lifecycle": TEXT,
        }
    ) | {"description": "OpenAI's clients read some of it, Anthropic's the others"},
    "Models": _object({"object": {"const": "list"}, "data": _list(_ref("Model"))}, more=True),
    "Health": _object({"status": {"enum": ["ok", "degraded"]}}),
    "Draining": _object({"status": {"const": "draining"}}),
    "Description": _object({"openapi": TEXT, "info": {"type": "object"}, "paths": {"type": "object"}}, more=True),
    "Probe": _object(
        {
            "upstream": TEXT, "model": TEXT, "probed": INSTANT, "findings": _list(_FINDING), "calls": WHOLE,
            "tokens": WHOLE, "cost": _maybe(DECIMAL),
        }
    ),
    "Price": _object({"id": TEXT, "from": TEXT, "input": DECIMAL, "output": DECIMAL}, more=True) | {
        "description": "currency per million tokens of each kind that is priced apart; per one request, web search or "
        "accelerator-second; the id stands in every entry that was charged by it"
    },
    "Lanes": _object({"source": {"const": "live"}, "online": _LANE, "batch": _LANE}) | {
        "description": "as the process that answers sees them at this moment"
    },
    "Upstream": _object(
        {
            "name": TEXT, "kind": TEXT, "model": TEXT, "price": _maybe(_ref("Price")), "lanes": _ref("Lanes"),
            "probe": _maybe(_ref("Probe")),
        }
    ),
    "Upstreams": _object({"currency": TEXT, "upstreams": _list(_ref("Upstream"))}),
    "Step": _object(
        {
            "step": TEXT, "run": MAYBE_TEXT, "item": MAYBE_TEXT, "agent": MAYBE_TEXT, "workflow": MAYBE_TEXT,
            "tenant": TEXT, "lane": {"enum": ["online", "batch"]}, "attempt": WHOLE, "kind": TEXT, "upstream": TEXT,
            "model": TEXT, "input_tokens": MAYBE_WHOLE, "output_tokens": MAYBE_WHOLE,
            "cache_read_tokens": MAYBE_WHOLE, "cache_write_tokens": MAYBE_WHOLE, "reasoning_tokens": MAYBE_WHOLE,
            "cost": _maybe(DECIMAL), "currency": MAYBE_TEXT, "queued_us": MAYBE_WHOLE, "ttft_us": MAYBE_WHOLE,
            "total_us": MAYBE_WHOLE, "status": TEXT, "reason": MAYBE_TEXT, "input_digest": MAYBE_TEXT,
            "output_digest": MAYBE_TEXT, "leaf": WHOLE,
        },
        more=True,
    ),
    "Budget": _object(
        {
            "scope": TEXT, "period": TEXT, **dict.fromkeys(_LIMITS, DECIMAL),
            **dict.fromkeys(("limit", "remaining"), _maybe(DECIMAL)),
            **dict.fromkeys(("seconds", "accelerator_seconds"), _object(dict.fromkeys(_LIMITS, DECIMAL))),
            **dict.fromkeys(("tokens", "calls"), _object(_LIMITS)),
        },
        optional=("seconds", "accelerator_seconds", "tokens", "calls"),
    ) | {"description": "limit and remaining are null where money is not limited; the rest is there where it is"},
    "Budgets": _object({"currency": TEXT, "budgets": _list(_ref("Budget"))}),
    "Cost": _object(_COST, optional=(*DIMENSIONS, "api_key")),
    "Costs": _object(
        {
            "currency": TEXT, "since": MAYBE_TEXT, "until": MAYBE_TEXT, "by": _list({"enum": list(DIMENSIONS)}),
            "total": _maybe(DECIMAL), "overall": _ref("Cost"), "rows": _list(_ref("Cost")),
            "has_more": {"type": "boolean"}, "estimated": _list(TEXT),
        }
    ) | {
        "description": "null is unknown; rows are the dearest, and has_more says that there are others; estimated "
        "names what rests on other prices for the same tokens"
    },
    "Switch": _object({"scope": TEXT, "cause": TEXT, "actor": TEXT, "tripped": INSTANT}),
    "Switches": _object({"switches": _list(_ref("Switch"))}),
    "Trip": _object(
        {
            "scope": TEXT | {"description": "tenant:T, key:T/N, workflow:T/W, run:R or item:R/ID"},
            "reason": TEXT | {"description": "it enters the ledger", "minLength": 1, "maxLength": 500},
        },
        optional=("reason",),
        more=True,
    ),
    "Tripped": _object({"scope": TEXT, "tripped": {"const": True}, "report": _maybe(_ref("KillReport"))}),
    "Reset": _object({"scope": TEXT, "tripped": {"const": False}}),
    "KillReport": _object(
        {
            "steps": WHOLE, "records": WHOLE,
            "acknowledgements": _list(_object({"process": TEXT, "steps": WHOLE, "delay_ms": {"type": "number"}})),
            "tokens_after": MAYBE_WHOLE, "saved": _maybe(DECIMAL), "booked": _maybe(DECIMAL), "currency": TEXT,
        }
    ),
    "RunProgress": _object(
        {
            "run": TEXT, "flow": TEXT, "status": TEXT, "reason": TEXT,
            "items": _object(dict.fromkeys(("total", "done", "quarantined", "left"), WHOLE)),
            "agents": {
                "type": "object",
                "additionalProperties": _object(
                    {**dict.fromkeys(("done", "running", "reused", "refused", "failed"), WHOLE), "cost": DECIMAL}
                ),
            },
            "items_per_s": {"type": ["number", "null"]}, "steps_per_s": {"type": ["number", "null"]},
            "cost": DECIMAL, "currency": TEXT, "budget": _maybe(DECIMAL), "seconds": {"type": "number"},
            "left_s": _maybe(_object({name: {"type": "number"} for name in ("low", "mid", "high")})),
            "left_by": TEXT | {"description": "what left_s rests on, or why it is unknown"},
        }
    ),
}  # fmt: skip
