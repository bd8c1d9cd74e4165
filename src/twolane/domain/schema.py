"""A pydantic model as the schema of a handoff: what the upstream is asked for, and the judgement of what it replied.

Every reply is judged the same way, whether or not the upstream promised to keep to the schema: strict JSON (duplicate
keys, NaN and anything around the object are refused), then the JSON Schema, then the model, then its quotes.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Never, TypeVar

import jsonschema_rs
import orjson
from pydantic import BaseModel, ValidationError

from twolane.domain.document import Document, Quote, locate
from twolane.domain.records import ReplySchema
from twolane.errors import Problem

R = TypeVar("R", bound=BaseModel)

MAX_REPLY_BYTES = 4 * 1024 * 1024
MAX_PROBLEMS = 20
MAX_PROBLEM_CHARS = 400
"""A problem quotes what is wrong; a whole reply in its place would be sent back with the repair."""


@dataclass(frozen=True, slots=True)
class Judged(Generic[R]):
    """A reply that was accepted (`value`, and in `body` the reply itself as compact JSON), or why it was not
    (`problems`)."""

    value: R | None
    problems: tuple[Problem, ...] = ()
    body: bytes = b""


@functools.cache
def reply_schema(model: type[BaseModel]) -> ReplySchema:
    """The JSON Schema a reply of this model must fit: every property required (null where it may be absent), none
    additional, so that servers with strict structured output take it as it is."""
    return ReplySchema(model.__name__, _strict(model.model_json_schema()))


def judge(text: str, model: type[R], sources: Sequence[Document]) -> Judged[R]:
    """Judge a reply. Its quotes must stand in one of `sources`; where there are none, quotes are not looked up."""
    if len(text) > MAX_REPLY_BYTES:
        return Judged(
            None, (Problem("", f"a reply of {len(text):,} characters is longer than the {MAX_REPLY_BYTES:,} read"),)
        )
    try:
        instance = _strict_json(text)
    except ValueError as error:
        return Judged(None, (Problem("", _short(f"it is not JSON: {error}")),))
    try:
        validator = _validator(model)
        is_valid = validator.is_valid(instance)  # first: looking for errors where there are none takes twice as long
        problems = (
            []
            if is_valid
            else [
                Problem(_pointer(error.instance_path), _short(error.message))
                for error, _ in zip(validator.iter_errors(instance), range(MAX_PROBLEMS), strict=False)
            ]
        )
    except ValueError:  # the library follows a few hundred levels
        problems = [Problem("", "it is not JSON that can be checked: it is nested too deeply")]
    if problems:
        return Judged(None, tuple(problems))
    judged = revive(instance, model, sources)
    return judged if judged.value is None else Judged(judged.value, body=orjson.dumps(instance))


def revive(instance: object, model: type[R], sources: Sequence[Document]) -> Judged[R]:
    """The model's own validators and the look-up of quotes; also for outputs that were stored earlier."""
    try:
        value = model.model_validate(instance)
    except ValidationError as error:
        found = [Problem(_pointer(item["loc"]), _short(item["msg"])) for item in error.errors()[:MAX_PROBLEMS]]
        return Judged(None, tuple(found))
    problems = [
        Problem(pointer, "the quoted passage is not in the document: quote it word for word")
        for pointer, quote in quotes_in(value)
        if sources and not _place(quote, sources)
    ]
    return Judged(None, tuple(problems[:MAX_PROBLEMS])) if problems else Judged(value)


def quotes_in(value: object, pointer: str = "") -> Iterator[tuple[str, Quote]]:
    """Every quote of a reply, with its JSON pointer."""
    match value:
        case Quote():
            yield pointer, value
        case BaseModel():
            for name in type(value).model_fields:
                yield from quotes_in(getattr(value, name), f"{pointer}/{name}")
        case dict():
            for name, part in value.items():
                yield from quotes_in(part, f"{pointer}/{name}")
        case list() | tuple():
            for number, part in enumerate(value):
                yield from quotes_in(part, f"{pointer}/{number}")


def _place(quote: Quote, sources: Sequence[Document]) -> bool:
    for source in sources:
        place = locate(quote.text, source.text)
        if place is not None:
            quote.document, quote.start, quote.end = source.id, *place
            quote.text = source.text[quote.start : quote.end]
            return True
    return False


@functools.cache
def _validator(model: type[BaseModel]) -> Any:  # Any: the library's validator classes differ by draft
    return jsonschema_rs.validator_for(dict(reply_schema(model).schema))


def _strict_json(text: str) -> object:
    try:
        found: object = _READER.decode(text)
        orjson.loads(text)  # what could not be stored as UTF-8 (half of a surrogate pair) is refused here
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    return found


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(name for name in names if names.count(name) > 1)!r} stands twice")
    return found


def _refuse(constant: str) -> Never:
    raise ValueError(f"{constant} is not a JSON number")


def _real(digits: str) -> float:
    number = float(digits)
    return number if math.isfinite(number) else _too_large(digits)


def _whole(digits: str) -> int:
    number = int(digits) if len(digits) <= 20 else 2**64
    return number if -(2**63) <= number < 2**63 else _too_large(digits)


def _too_large(digits: str) -> Never:
    raise ValueError(f"the number {digits[:24]}… is larger than 64 bits hold")


_READER = json.JSONDecoder(object_pairs_hook=_once, parse_constant=_refuse, parse_float=_real, parse_int=_whole)
"""Made once: making it took longer than reading a reply with it."""


def _short(text: str) -> str:
    half = MAX_PROBLEM_CHARS // 2
    return text if len(text) <= MAX_PROBLEM_CHARS else f"{text[:half]} … {text[-half:]}"


def _strict(schema: Any) -> Any:  # Any: JSON
    match schema:
        case dict():
            strict = {key: _strict(value) for key, value in schema.items() if key not in ("title", "default")}
            if schema.get("type") == "object" and "properties" in schema:
                strict["properties"] = {name: _strict(value) for name, value in schema["properties"].items()}
                strict["required"] = list(schema["properties"])
                strict["additionalProperties"] = False
            return strict
        case list():
            return [_strict(value) for value in schema]
    return schema


def _pointer(path: Sequence[object]) -> str:
    return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in path)
