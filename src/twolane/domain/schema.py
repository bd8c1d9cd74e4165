"""A pydantic model as the schema of a handoff: what the upstream is asked for, and the judgement of what it replied.

Every reply is judged the same way, whether or not the upstream promised to keep to the schema: strict JSON (duplicate
keys, NaN, a Markdown fence and anything else around it are refused), then the JSON Schema with its formats, then the
model with its validators, then its quotes. Whatever a reply holds, this takes bounded time and memory and never raises.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import math
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Never, TypeVar

import jsonschema_rs
import orjson
from pydantic import BaseModel, PydanticUserError, ValidationError
from pydantic.errors import PydanticInvalidForJsonSchema

from twolane.domain.document import Document, Quote, locate
from twolane.domain.meetable import unmeetable
from twolane.domain.records import ReplySchema
from twolane.errors import ConfigError, Problem, validation_words

R = TypeVar("R", bound=BaseModel)
Path = tuple[object, ...]
"""Where in a reply something stands: names and positions, outermost first."""

MAX_REPLY_CHARS = 1024 * 1024
"""Twice what the longest answers of today's models are (131,072 tokens of 4 characters). No handoff is longer."""
MANY_PROBLEMS_CHARS = 64 * 1024
"""Of a longer reply only the first thing that does not fit its schema is named: the library makes all problems before
it gives the first one away, 12 µs and 1 kB each."""
MAX_QUOTES = 1000
"""Quotes of one reply. Each is looked up in the whole document, at 0.3 ms a million characters."""
MAX_PROBLEMS = 20
MAX_PROBLEM_CHARS = 400
"""A problem quotes what is wrong; a whole reply in its place would be sent back with the repair."""

_ZONE = r"(Z|[+-]\d\d:\d\d)?"
_SHAPES = {
    "date-time": re.compile(rf"\d{{4}}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?{_ZONE}", re.IGNORECASE | re.ASCII),
    "time": re.compile(rf"\d\d:\d\d:\d\d(\.\d+)?{_ZONE}", re.IGNORECASE | re.ASCII),
}
"""RFC 3339, whose zone may be absent: pydantic gives one format to `AwareDatetime`, `NaiveDatetime` and `datetime`, and
says itself which of them needs a zone."""


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
    additional, so that servers with strict structured output take it as it is.

    Raises:
        ConfigError: no reply could fit it, as far as its own words tell; or no JSON Schema can be made of the model.
    """
    try:
        schema = _strict(model.model_json_schema())
    except (PydanticUserError, PydanticInvalidForJsonSchema) as error:
        raise ConfigError(f"{model.__name__}: no JSON Schema can be made of it: {error.message}") from None
    try:
        jsonschema_rs.validator_for(schema)
    except ValueError as error:
        reason = str(error).partition("\n")[0]
        raise ConfigError(f"{model.__name__}: its JSON Schema is not valid: {reason}") from None
    if why := unmeetable(schema):
        raise ConfigError(f"{model.__name__}: no reply can fit it: {why}", hint="Change the model before anybody pays")
    return ReplySchema(model.__name__, schema, is_judged=True)


def judge(
    text: str, model: type[R], sources: Sequence[Document], check: Callable[[R], object] | None = None
) -> Judged[R]:
    """Judge a reply. Its quotes must stand in one of `sources`; where there are none, there is nothing to quote.

    `check` is asked last: what it raises refuses the reply, with its words.
    """
    if len(text) > MAX_REPLY_CHARS:
        return _refused(f"a reply of {len(text):,} characters is longer than the {MAX_REPLY_CHARS:,} read")
    try:
        instance = _strict_json(text)
    except ValueError as error:
        return _refused(_why_not_json(text, error))
    try:
        problems = _misfits(instance, model, first_only=len(text) > MANY_PROBLEMS_CHARS)
    except ValueError:  # the library follows a few hundred levels
        return _refused("it is not JSON that can be checked: it is nested too deeply")
    if problems:
        return Judged(None, problems)
    judged = revive(instance, model, sources, check)
    return judged if judged.value is None else Judged(judged.value, body=orjson.dumps(instance))


def revive(
    instance: object, model: type[R], sources: Sequence[Document], check: Callable[[R], object] | None = None
) -> Judged[R]:
    """The model's own validators, the look-up of quotes and the check; also for outputs that were stored earlier."""
    try:
        value = model.model_validate(instance)
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=False, include_input=False)
        return Judged(
            None, tuple(problem_at(model, item["loc"], validation_words(item)) for item in found[:MAX_PROBLEMS])
        )
    except (Exception, SystemExit) as error:  # noqa: BLE001 - a validator is the user's code: whatever it raises, it said no
        return _refused(f"its validators raised {_words_of(error)}")
    unplaced = _unplaced(value, model, sources)
    if unplaced:
        return Judged(None, unplaced)
    problem = objection(value, check)
    return Judged(None, (problem,)) if problem else Judged(value)


def objection(value: R, check: Callable[[R], object] | None) -> Problem | None:
    """What a check has against a reply that is good in itself."""
    try:
        if check is None or check(value) is not False:
            return None
        said = ""
    except (Exception, SystemExit) as error:  # noqa: BLE001 - the user's code: whatever it raises, it said no
        said = str(error) if isinstance(error, ValueError | AssertionError) else _words_of(error)
    return Problem("", _short(said or "its check refused it without a word"))


def quotes_in(value: object, path: Path = ()) -> Iterator[tuple[Path, Quote]]:
    """Every quote of a reply, with where it stands."""
    match value:
        case str() | bytes() | int() | float() | None:
            return
        case Quote():
            yield path, value
        case BaseModel():
            for name in type(value).model_fields:
                yield from quotes_in(getattr(value, name), (*path, name))
        case Mapping():
            for name, part in value.items():
                yield from quotes_in(part, (*path, name))
        case Collection():  # and no iterator, which would be empty afterwards
            for number, part in enumerate(value):
                yield from quotes_in(part, (*path, number))
        case _ if dataclasses.is_dataclass(value):
            for each in dataclasses.fields(value):
                yield from quotes_in(getattr(value, each.name), (*path, each.name))


# ── the schema ──


@functools.cache
def _validator(model: type[BaseModel]) -> Any:  # Any: the library's validator classes differ by draft
    shapes = {name: _shaped(shape) for name, shape in _SHAPES.items()}
    return jsonschema_rs.validator_for(dict(reply_schema(model).schema), validate_formats=True, formats=shapes)


def _shaped(shape: re.Pattern[str]) -> Callable[[str], bool]:
    return lambda text: shape.fullmatch(text) is not None


def _misfits(instance: object, model: type[BaseModel], *, first_only: bool) -> tuple[Problem, ...]:
    """What does not fit the schema; nothing where all of it fits.

    Raises:
        ValueError: it is nested more deeply than the library follows.
    """
    validator = _validator(model)
    if validator.is_valid(instance):
        return ()
    if first_only:
        try:
            validator.validate(instance)
        except jsonschema_rs.ValidationError as error:
            return (problem_at(model, error.instance_path, error.message),)
    found = itertools.islice(validator.iter_errors(instance), MAX_PROBLEMS)
    return tuple(problem_at(model, error.instance_path, error.message) for error in found)


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


# ── quotes ──

NOT_QUOTED = "the quoted passage is not in the document"
"""What a problem says of a quote that stands nowhere."""


def _unplaced(value: BaseModel, model: type[BaseModel], sources: Sequence[Document]) -> tuple[Problem, ...]:
    """Quotes that stand nowhere; the others are told where they stand."""
    quotes = list(itertools.islice(quotes_in(value), MAX_QUOTES + 1))
    if len(quotes) > MAX_QUOTES:
        return (Problem("", f"it holds more than {MAX_QUOTES:,} quotes: reply with the ones that matter"),)
    words = f"{NOT_QUOTED}: quote it word for word"
    if not sources:
        words = "there is no document to quote from: the agent was given none"
    missing = (problem_at(model, path, words) for path, quote in quotes if not _place(quote, sources))
    return tuple(itertools.islice(missing, MAX_PROBLEMS))


def _place(quote: Quote, sources: Sequence[Document]) -> bool:
    for source in sources:
        place = locate(quote.text, source.text)
        if place is not None:
            quote.document, quote.start, quote.end = source.id, *place
            quote.text = source.text[quote.start : quote.end]
            return True
    return False


# ── strict JSON ──


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
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]  # None on purpose
        raise ValueError(f"the key {twice[:MAX_PROBLEM_CHARS]!r} stands twice")
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


def _why_not_json(text: str, error: ValueError) -> str:
    """In words that a repair can follow."""
    if not text.strip():
        return "it is not JSON: it is empty"
    if text.lstrip().startswith("```"):
        return "it is not JSON but stands in a Markdown fence: reply with the bare JSON"
    return f"it is not JSON: {error}"


# ── problems ──


def _refused(words: str) -> Judged[Any]:  # Any: there is no value
    return Judged(None, (Problem("", _short(words)),))


def first_problem(error: ValidationError) -> str:
    """The first thing that pydantic found, after its place."""
    first = error.errors()[0]
    return f"{'/'.join(map(str, first['loc'])) or '/'}: {validation_words(first)}"


def problem_at(model: type[BaseModel], path: Iterable[object], words: str) -> Problem:
    """A problem whose pointer holds names of the schema only: pointers enter the ledger, and a key that the reply made
    up may say anything. Such a key is `*`, and stands among the words."""
    own, pointer, keys = _names(model), "", list[str]()
    for part in path:
        is_known = isinstance(part, int) or part in own
        if not is_known:
            keys.append(f"{str(part)[:80]!r}")
        pointer += "/" + (str(part).replace("~", "~0").replace("/", "~1") if is_known else "*")
    return Problem(pointer, _short(f"under {' and '.join(keys)}: {words}" if keys else words))


@functools.cache
def _names(model: type[BaseModel]) -> frozenset[str]:
    """The property names of a model's schema, and the names behind its aliases."""

    def named(schema: object) -> Iterator[str]:
        match schema:
            case dict():
                properties = schema.get("properties")
                yield from properties if isinstance(properties, dict) else ()
                for part in schema.values():
                    yield from named(part)
            case list():
                for part in schema:
                    yield from named(part)

    try:
        schemas = [model.model_json_schema(by_alias=is_alias) for is_alias in (True, False)]
    except (PydanticUserError, PydanticInvalidForJsonSchema):  # a model of inputs may hold what JSON has no word for
        return frozenset(model.model_fields)
    return frozenset(name for schema in schemas for name in named(schema))


def _short(text: str) -> str:
    """One line of bounded length, in characters that can be sent."""
    half = MAX_PROBLEM_CHARS // 2
    text = text if len(text) <= MAX_PROBLEM_CHARS else f"{text[:half]} … {text[-half:]}"
    return " ".join(text.encode("utf-8", "backslashreplace").decode().split())


def _words_of(error: BaseException) -> str:
    try:
        said = str(error)
    except Exception:  # noqa: BLE001 - an exception of the user's, whose own words fail
        said = ""
    return f"{type(error).__name__}: {said}" if said else type(error).__name__
