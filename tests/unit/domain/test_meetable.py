"""A schema that nothing fits is found before anybody pays for the attempt; one that something fits is not accused."""

from __future__ import annotations

import random
from typing import Annotated, Any, Literal, Optional, Union

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field, create_model
from tests.unit.domain import corrupted

from twolane.domain.meetable import unmeetable
from twolane.domain.schema import judge, reply_schema
from twolane.errors import ConfigError


class Endless(BaseModel):
    next: Endless


class Ping(BaseModel):
    pong: list[Pong]


class Pong(BaseModel):
    ping: Annotated[list[Ping], Field(min_length=1)]


class Left(BaseModel):
    right: Right


class Right(BaseModel):
    left: Annotated[list[Left], Field(min_length=1)]


class Tree(BaseModel):
    children: list[Tree]
    parent: Optional[Tree]  # noqa: UP045 - as users write it
    other: Union[Tree, int]  # noqa: UP007 - the same


CONTRADICTIONS: dict[str, Any] = {  # Any: what an annotation may hold
    "a minimum above its maximum": Annotated[int, Field(ge=10, le=5)],
    "no whole number between": Annotated[int, Field(gt=1, lt=2)],
    "no number between": Annotated[float, Field(gt=1, lt=1)],
    "one bound excluded": Annotated[float, Field(ge=1, lt=1)],
    "longer than it may be": Annotated[str, Field(min_length=5, max_length=4)],
    "more than it may hold": Annotated[list[int], Field(min_length=2, max_length=1)],
    "more different values than there are": Annotated[set[Literal["a", "b"]], Field(min_length=3)],
    "members that cannot be": Annotated[list[Annotated[int, Field(ge=1, le=0)]], Field(min_length=1)],
    "a pair that cannot be": tuple[int, Annotated[int, Field(ge=1, le=0)]],
    "a choice of what cannot be": Annotated[int, Field(ge=1, le=0)] | Annotated[str, Field(min_length=1, max_length=0)],
    "itself": Endless,
    "itself by way of another": Left,
}

FINE: dict[str, Any] = {
    "one number": Annotated[int, Field(ge=5, le=5)],
    "one whole number between": Annotated[int, Field(gt=1, lt=3)],
    "numbers between": Annotated[float, Field(gt=1, lt=1.1)],
    "no member at all": list[Annotated[int, Field(ge=1, le=0)]],
    "something else": Annotated[int, Field(ge=1, le=0)] | None,
    "itself where it likes": Tree,
    "others that end": Ping,
    "all there are": Annotated[set[Literal["a", "b"]], Field(min_length=2)],
    "a constant": Literal[3],
}


@pytest.mark.parametrize("what", CONTRADICTIONS)
def test_what_contradicts_itself_is_refused_with_its_place(what: str) -> None:
    model = create_model("Model", v=(CONTRADICTIONS[what], ...))
    with pytest.raises(ConfigError, match=r"Model: no reply can fit it: /v"):
        reply_schema(model)


@pytest.mark.parametrize("what", FINE)
def test_what_can_be_met_is_not_accused(what: str) -> None:
    assert reply_schema(create_model("Model", v=(FINE[what], ...))).name == "Model"


@pytest.mark.parametrize(
    ("schema", "why"),
    [
        ({"type": "object", "required": ["a"], "properties": {}, "additionalProperties": False}, "/a: it is required"),
        ({"type": "string", "enum": [1, None]}, "none of its values"),
        ({"enum": []}, "none of its values"),
        ({"anyOf": []}, "a choice of nothing"),
        ({"$ref": "#/$defs/None"}, "leads nowhere"),
        ({"allOf": [{"type": "integer", "minimum": 2, "maximum": 1}]}, "no number"),
        ({"type": "object", "required": ["x"], "properties": {"x": False}}, "/x: nothing is allowed"),
        ({"type": ["integer", "null"], "minimum": 2, "maximum": 1}, None),
        ({"minimum": 2, "maximum": 1}, None),
        ({"type": "object", "required": ["a"]}, None),
        ({"type": "number", "enum": [1]}, None),
        ({}, None),
    ],
)
def test_words_of_schemas_mean_what_they_say(schema: dict[str, object], why: str | None) -> None:
    found = unmeetable(schema)
    assert (found is None) if why is None else (found is not None and why in found)


def test_a_model_that_no_schema_can_be_made_of_is_refused_with_the_reason() -> None:
    class Odd(BaseModel, arbitrary_types_allowed=True):
        thing: random.Random

    with pytest.raises(ConfigError, match="Odd: no JSON Schema can be made of it"):
        reply_schema(Odd)

    class Wrong(BaseModel):
        v: Annotated[str, Field(json_schema_extra={"pattern": "("})]

    with pytest.raises(ConfigError, match="Wrong: its JSON Schema is not valid"):
        reply_schema(Wrong)


def test_models_with_replies_that_fit_are_not_accused() -> None:
    assert unmeetable(reply_schema(corrupted.Report).schema) is None


@given(st.integers(-3, 3), st.integers(-3, 3), st.booleans(), st.booleans())
def test_bounds_are_refused_exactly_when_no_number_lies_between(
    low: int, high: int, is_low_open: bool, is_high_open: bool
) -> None:
    bounds = {"gt" if is_low_open else "ge": low, "lt" if is_high_open else "le": high}
    model = create_model("Model", v=(Annotated[int, Field(**bounds)], ...))  # type: ignore[call-overload]  # as keywords
    some = [number for number in range(-4, 5) if (number > low or (number == low and not is_low_open))
            and (number < high or (number == high and not is_high_open))]  # fmt: skip
    if not some:
        with pytest.raises(ConfigError):
            reply_schema(model)
    else:
        assert judge(f'{{"v": {some[0]}}}', model, []).problems == ()
