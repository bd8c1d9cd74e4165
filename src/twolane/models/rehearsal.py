"""A scripted upstream for tests and load: it streams, stalls, fails and lies as it is told, and counts what happened.

Options (of `[upstream.NAME]` with `kind = "rehearsal"`, or keyword arguments):

    first_token_ms, token_ms    latency before the first token, and between tokens
    reply                       the text, or a list of texts taken in turn; none: an instance of the call's schema
    input_tokens, output_tokens what the usage says instead of the counts
    seed                        another seed makes other instances
    faults                      rules "WHEN: WHAT", a list or one string parted by ";"; the first that applies counts

WHEN is `always`, `every 3rd`, `2nd`, `2-4`, `first 5`, `after 5` (requests count from 1) or `10%` (by a seeded draw).
WHAT is one of

    503 [retry-after 2]   refused with that status before the stream begins
    unreachable           refused without an answer (`is_gone`)
    cut N                 broken off after N tokens
    error N               an error event after N tokens
    hang N                silent after N tokens, until closed
    malformed             half of the reply, as if it were whole: JSON does not parse
    garbled               an event that is not JSON
    no-done               the stream ends without [DONE]
    no-usage              no usage is reported
    wrong-usage           a tenth of the tokens is reported

Where a call has tools, a reply that is a JSON object of `tool_calls` alone asks for them:
`{"tool_calls": [{"name": "rate_of", "arguments": {"country": "PL"}}]}`; arguments that are a text are sent as they are.

A call of kind `embeddings` gets the vectors of `models.vectors`, and of the faults what can befall one document.
"""

from __future__ import annotations

import hashlib
import math
import random
import re
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import orjson

from twolane.domain.records import Kind, ModelCall, Usage
from twolane.errors import ConfigError, UpstreamError
from twolane.models import Model, vectors
from twolane.models.extractive import read_brief, tokens_of
from twolane.models.sse import DONE, Chunks, MadeStream, error_event

Reply = str | Sequence[str] | Callable[[ModelCall], str]

_WORDS = re.compile(r"\s*\S+\s*|\s+")
_WHEN = re.compile(
    r"(?P<always>always)|every\s+(?P<every>\d+)(?:st|nd|rd|th)?|first\s+(?P<first>\d+)|after\s+(?P<after>\d+)"
    r"|(?P<share>\d+(?:\.\d+)?)\s*%|(?P<low>\d+)(?:st|nd|rd|th)?(?:\s*-\s*(?P<high>\d+)(?:st|nd|rd|th)?)?"
)
_WHAT = re.compile(
    r"(?P<status>[45]\d\d)(?:\s+retry-after\s+(?P<after>\d+(?:\.\d+)?))?"
    r"|(?P<kind>[a-z-]+)(?:\s+(?:after\s+)?(?P<tokens>\d+))?"
)
_MAX_DEPTH = 8
_FORMATS = {
    "date": "2024-05-17",
    "date-time": "2024-05-17T09:30:00Z",
    "time": "09:30:00Z",
    "email": "a@example.org",
    "uri": "https://example.org/",
    "uuid": "1b4e28ba-2fa1-41d2-883f-0016d3cca427",
}


class Trouble(StrEnum):
    """What can go wrong."""

    STATUS = "status"
    UNREACHABLE = "unreachable"
    CUT = "cut"
    ERROR = "error"
    HANG = "hang"
    MALFORMED = "malformed"
    GARBLED = "garbled"
    NO_DONE = "no-done"
    NO_USAGE = "no-usage"
    WRONG_USAGE = "wrong-usage"


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that goes wrong with one request."""

    trouble: Trouble
    after_tokens: int = 0
    """For cut, error and hang: how many tokens come first."""
    http_status: int | None = None
    retry_after_s: float | None = None


Faults = Callable[[int, ModelCall], Fault | None]
"""The fault of a request by its number (from 1), None for a good one."""


@dataclass(frozen=True, slots=True)
class Script:
    """What a rehearsal plays."""

    first_token_s: float = 0
    token_s: float = 0
    reply: Reply | None = None
    """None: an instance of the schema, or a fixed sentence where there is none."""
    input_tokens: int | None = None
    output_tokens: int | None = None
    seed: int = 0
    faults: Faults | None = None


DEFAULT_REPLY = "This is a rehearsal: the upstream answers what its script says, word by word."


def read_faults(rules: str | Sequence[str], *, seed: int = 0) -> Faults:
    """Fault rules from their small language; see the head of this file.

    Raises:
        ConfigError: a rule that cannot be read.
    """
    lines = rules.split(";") if isinstance(rules, str) else list(rules)
    read = [_read_rule(line, seed) for line in lines if line.strip()]

    def fault_of(number: int, call: ModelCall) -> Fault | None:
        return next((fault for applies, fault in read if applies(number)), None)

    return fault_of


class Rehearsal(Model):
    """A `Model` that plays a script: one given as such, or made from the options at the head of this file.

    Counters are public and only ever grow, `active` aside.

    Raises:
        ConfigError: a fault rule that cannot be read.
    """

    ends_when_closed = True

    def __init__(
        self,
        name: str,
        script: Script | None = None,
        *,
        first_token_ms: float = 0,
        token_ms: float = 0,
        reply: Reply | None = None,
        input_tokens: int | None = None,
        output_tokens: int | None = None,
        seed: int = 0,
        faults: str | Sequence[str] = (),
    ) -> None:
        self.name = name
        self.script = script or Script(
            first_token_s=first_token_ms / 1000,
            token_s=token_ms / 1000,
            reply=reply,
            input_tokens=input_tokens,
            output_tokens=output_tokens,
            seed=seed,
            faults=read_faults(faults, seed=seed) if faults else None,
        )
        self.requests = 0
        """Calls opened, refused ones included."""
        self.active = 0
        """Streams opened and neither ended nor closed."""
        self.aborted = 0
        """Streams closed by the caller before their end."""
        self.tokens = 0
        """Tokens generated."""
        self.tokens_after_close = 0
        """Tokens generated for nobody: it stays 0 where closing ends the generation."""
        self.calls: list[ModelCall] = []
        """The last thousand calls, in order."""

    async def open(self, call: ModelCall) -> MadeStream:
        """Accept the call, or refuse it as the script says.

        Raises:
            UpstreamError: a scripted status or an unreachable upstream.
        """
        self.requests += 1
        number = self.requests
        self.calls.append(call)
        del self.calls[:-1000]
        fault = self.script.faults(number, call) if self.script.faults else None
        if fault is not None and fault.trouble is Trouble.UNREACHABLE:
            raise UpstreamError(self.name, "cannot be reached (rehearsed)", retryable=True, is_gone=True)
        if fault is not None and fault.trouble is Trouble.STATUS:
            status = fault.http_status or 500
            raise UpstreamError(
                self.name,
                f"answered {status} (rehearsed)",
                http_status=status,
                retryable=status in {408, 409, 429} or status >= 500,
                retry_after_s=fault.retry_after_s,
            )
        self.active += 1
        if call.kind is Kind.EMBEDDINGS:
            return MadeStream(lambda stream: self._document(call, fault, stream), self._ended)
        return MadeStream(lambda stream: self._blocks(call, number, fault, stream), self._ended)

    async def aclose(self) -> None:
        """Nothing is held."""

    def _ended(self, has_ended: bool) -> None:
        self.active -= 1
        self.aborted += not has_ended

    async def _blocks(
        self, call: ModelCall, number: int, fault: Fault | None, stream: MadeStream
    ) -> AsyncIterator[bytes]:
        trouble = fault.trouble if fault is not None else None
        reply = self._reply(call, number)
        if trouble is None and (asked := _tool_calls(call, reply)):
            await stream.pause(self.script.first_token_s)
            if not _is_over(stream):
                chunks = Chunks(call.model)
                yield chunks.tool_calls(asked) + chunks.chunk(finish_reason="tool_calls")
                yield chunks.usage(self._usage(call, len(_WORDS.findall(reply)), is_wrong=False)) + DONE
            return
        words = _WORDS.findall(reply)
        if trouble is Trouble.MALFORMED:
            words = _WORDS.findall(_half("".join(words)))
        wanted = words[: call.max_tokens]
        chunks = Chunks(call.model)
        stops_at = fault.after_tokens if fault is not None else 0
        await stream.pause(self.script.first_token_s)
        if _is_over(stream):
            return
        for at, word in enumerate(wanted):
            if trouble in {Trouble.CUT, Trouble.ERROR, Trouble.HANG} and at >= stops_at:
                break
            self._count(stream)
            yield chunks.chunk(word, role="assistant" if at == 0 else None)
            if at + 1 < len(wanted):
                await stream.pause(self.script.token_s)
                if _is_over(stream):
                    return
        match trouble:
            case Trouble.CUT:
                raise UpstreamError(self.name, f"broke off after {stops_at} tokens (rehearsed)", retryable=True)
            case Trouble.ERROR:
                yield error_event("the upstream failed (rehearsed)")
                return
            case Trouble.HANG:
                await stream.pause(None)
                return
            case Trouble.GARBLED:
                yield b'data: {"choices": [\n\n'
        yield chunks.chunk(finish_reason="stop" if len(wanted) == len(words) else "length")
        if trouble is not Trouble.NO_USAGE:
            yield chunks.usage(self._usage(call, len(wanted), is_wrong=trouble is Trouble.WRONG_USAGE))
        if trouble is not Trouble.NO_DONE:
            yield DONE

    async def _document(self, call: ModelCall, fault: Fault | None, stream: MadeStream) -> AsyncIterator[bytes]:
        """Embeddings, in two blocks; what befalls a stream after some tokens befalls them between these."""
        trouble = fault.trouble if fault is not None else None
        told = self.script.input_tokens
        read = told if told is not None else vectors.tokens_of(call)
        read = read // 10 if trouble is Trouble.WRONG_USAGE else read
        tokens = None if trouble is Trouble.NO_USAGE else read
        await stream.pause(self.script.first_token_s)
        if _is_over(stream):
            return
        body = vectors.document(call, prompt_tokens=tokens, seed=self.script.seed)
        half = len(body) // 2
        if trouble is Trouble.ERROR:
            yield orjson.dumps({"error": {"message": "the upstream failed (rehearsed)"}})
            return
        yield body[:half]
        match trouble:
            case Trouble.CUT:
                raise UpstreamError(self.name, "broke off in the middle (rehearsed)", retryable=True)
            case Trouble.HANG:
                await stream.pause(None)
                return
            case Trouble.MALFORMED | Trouble.GARBLED | Trouble.NO_DONE:
                return
        yield body[half:]

    def _count(self, stream: MadeStream) -> None:
        self.tokens += 1
        self.tokens_after_close += stream.is_closed

    def _usage(self, call: ModelCall, written: int, *, is_wrong: bool) -> Usage:
        told, counted = self.script.input_tokens, self.script.output_tokens
        read = told if told is not None else tokens_of(call.messages)
        out = counted if counted is not None else written
        return Usage(read // 10, out // 10) if is_wrong else Usage(read, out)

    def _reply(self, call: ModelCall, number: int) -> str:
        reply = self.script.reply
        if isinstance(reply, str):
            return reply
        if callable(reply):
            return reply(call)
        if reply:
            return reply[(number - 1) % len(reply)]
        return instance_for(call, self.script.seed) if call.schema is not None else DEFAULT_REPLY


def _tool_calls(call: ModelCall, reply: str) -> list[tuple[str, str]]:
    """The calls a reply stands for, by name and arguments; none where it is a text, or the call has no tools."""
    if "tools" not in call.extras or not reply.startswith('{"tool_calls"'):
        return []
    asked = orjson.loads(reply)["tool_calls"]
    return [
        (each["name"], told if isinstance(told := each["arguments"], str) else orjson.dumps(told).decode())
        for each in asked
    ]


def instance_for(call: ModelCall, seed: int = 0) -> str:
    """JSON that fits the call's schema; strings quote words of the last source. The same call gives the same text."""
    assert call.schema is not None
    sources = read_brief(call).sources
    text = sources[-1].text if sources else ""
    digest = hashlib.sha256(orjson.dumps([seed, call.schema.name, text], default=str)).digest()
    maker = _Maker(call.schema.schema, re.findall(r"\S+", text) or ["rehearsal"], random.Random(digest))
    return orjson.dumps(maker.make(call.schema.schema, 0)).decode()


class _Maker:
    """Makes values for schemas: the usual keywords, not all of JSON Schema."""

    def __init__(self, root: Mapping[str, object], words: list[str], draw: random.Random) -> None:
        self.root, self.words, self.draw = root, words, draw

    def make(self, schema: object, depth: int) -> object:
        if not isinstance(schema, Mapping):
            return None
        if isinstance(target := schema.get("$ref"), str):
            return self.make({**self._at(target), **{k: v for k, v in schema.items() if k != "$ref"}}, depth)
        if isinstance(parts := schema.get("allOf"), list):
            merged: dict[str, object] = {}
            for part in parts:
                resolved = self._at(part["$ref"]) if isinstance(part, dict) and "$ref" in part else part
                merged |= resolved if isinstance(resolved, Mapping) else {}
            return self.make({**merged, **{k: v for k, v in schema.items() if k != "allOf"}}, depth)
        if "const" in schema:
            return schema["const"]
        if isinstance(values := schema.get("enum"), list) and values:
            return self.draw.choice(values)
        for word in ("anyOf", "oneOf"):
            if isinstance(options := schema.get(word), list) and options:
                return self.make(self._option(options, depth), depth + 1)
        return self._typed(schema, depth)

    def _option(self, options: list[object], depth: int) -> object:
        simple = [option for option in options if isinstance(option, Mapping) and option.get("type") == "null"]
        return simple[0] if simple and depth >= _MAX_DEPTH else self.draw.choice(options)

    def _typed(self, schema: Mapping[str, object], depth: int) -> object:
        kind = schema.get("type")
        if isinstance(kind, list):
            kind = "null" if "null" in kind and depth >= _MAX_DEPTH else self.draw.choice(kind)
        match kind or ("object" if "properties" in schema else "array" if "items" in schema else "string"):
            case "object":
                return self._object(schema, depth)
            case "array":
                least = _whole(schema.get("minItems"), 0)
                most = min(_whole(schema.get("maxItems"), least + 2), least + 2) if depth < _MAX_DEPTH else least
                count = self.draw.randint(least, max(least, most))
                return [self.make(schema.get("items", {"type": "string"}), depth + 1) for _ in range(count)]
            case "integer" | "number":
                return self._number(schema, is_whole=kind == "integer")
            case "boolean":
                return self.draw.random() < 0.5
            case "null":
                return None
        return self._string(schema)

    def _object(self, schema: Mapping[str, object], depth: int) -> dict[str, object]:
        members, required = schema.get("properties"), schema.get("required")
        needed = set(required) if isinstance(required, list) else set()
        return {
            str(name): self.make(member, depth + 1)
            for name, member in (members.items() if isinstance(members, Mapping) else ())
            if name in needed or (depth < _MAX_DEPTH and self.draw.random() < 0.7)
        }

    def _number(self, schema: Mapping[str, object], *, is_whole: bool) -> int | float:
        low = _real(schema.get("minimum"), _real(schema.get("exclusiveMinimum"), -math.inf))
        high = _real(schema.get("maximum"), _real(schema.get("exclusiveMaximum"), math.inf))
        low = low if low > -math.inf else (high - 100 if high < math.inf else 0)
        high = high if high < math.inf else low + 100
        step = _real(schema.get("multipleOf"), 1 if is_whole else 0)
        if step:
            first = math.ceil(low / step) + ("exclusiveMinimum" in schema and math.ceil(low / step) * step == low)
            last = math.floor(high / step) - ("exclusiveMaximum" in schema and math.floor(high / step) * step == high)
            value = self.draw.randint(first, max(first, last)) * step
            return int(value) if is_whole else value
        return low + (high - low) * (0.25 + self.draw.random() / 2)

    def _string(self, schema: Mapping[str, object]) -> str:
        if (known := _FORMATS.get(str(schema.get("format")))) is not None:
            return known
        least = _whole(schema.get("minLength"), 1)
        most = _whole(schema.get("maxLength"), max(least, 120))
        count = self.draw.randint(min(3, len(self.words)), min(12, len(self.words)))
        at = self.draw.randint(0, len(self.words) - count)
        text = " ".join(self.words[at : at + count])
        while len(text) < least:
            text += " " + " ".join(self.words)
        return text[:most]

    def _at(self, reference: str) -> Mapping[str, object]:
        node: object = self.root
        for part in reference.split("/")[1:]:
            node = node.get(part.replace("~1", "/").replace("~0", "~")) if isinstance(node, Mapping) else None
        return node if isinstance(node, Mapping) else {}


def _is_over(stream: MadeStream) -> bool:
    return stream.is_closed


def _read_rule(line: str, seed: int) -> tuple[Callable[[int], bool], Fault]:
    when, _, what = line.partition(":")
    matched, told = _WHEN.fullmatch(when.strip().lower()), _WHAT.fullmatch(what.strip().lower())
    hint = 'Write for instance "every 3rd: 503" or "2-4: cut 5"'
    if matched is None or told is None:
        raise ConfigError(f"cannot read the fault {line.strip()!r}", where="faults", hint=hint)
    if told["status"]:
        after = float(told["after"]) if told["after"] else None
        return _applies(matched, seed), Fault(Trouble.STATUS, http_status=int(told["status"]), retry_after_s=after)
    if told["kind"] == Trouble.STATUS or told["kind"] not in set(Trouble):
        kinds = ", ".join(kind for kind in Trouble if kind is not Trouble.STATUS)
        raise ConfigError(f"{told['kind']} is not a fault", where="faults", hint=f"There are: a status, {kinds}")
    return _applies(matched, seed), Fault(Trouble(told["kind"]), after_tokens=int(told["tokens"] or 0))


def _applies(when: re.Match[str], seed: int) -> Callable[[int], bool]:
    if when["always"]:
        return lambda number: True
    if when["every"]:
        every = max(1, int(when["every"]))
        return lambda number: number % every == 0
    if when["first"]:
        first = int(when["first"])
        return lambda number: number <= first
    if when["after"]:
        after = int(when["after"])
        return lambda number: number > after
    if when["share"]:
        share = float(when["share"]) / 100
        return lambda number: random.Random(f"{seed}:{number}").random() < share
    low, high = int(when["low"]), int(when["high"] or when["low"])
    return lambda number: low <= number <= high


def _half(text: str) -> str:
    return text[: len(text) // 2]


def _whole(value: object, otherwise: int) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) else otherwise


def _real(value: object, otherwise: float) -> float:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else otherwise
