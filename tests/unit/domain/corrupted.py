"""Replies that are wrong by construction: a good reply of a known shape, and one thing done to it that no reader may
forgive. What judges the judge is how the reply was made; no second validator is needed to know that it is bad.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import date, datetime, time, timedelta
from enum import StrEnum
from typing import Annotated, Literal
from uuid import UUID

from pydantic import BaseModel, Field

from twolane.domain.document import Document, Quote

SOURCE = Document(
    "d1", "The price is five euros.\nDelivery to the cafe\u0301 is free of charge. Nothing else costs 10² euros."
)
PASSAGES = ("price is five", "five euros. Delivery", "caf\u00e9 is free", "Nothing else costs 10² euros.")


class Grade(StrEnum):
    LOW = "low"
    HIGH = "high"


class Finding(BaseModel):
    quote: Quote
    grade: Grade
    weight: Annotated[int, Field(ge=0, le=10)]


class Dated(BaseModel):
    kind: Literal["dated"]
    at: datetime
    day: date
    hour: time | None
    length: timedelta
    id: UUID


class Named(BaseModel):
    kind: Literal["named"]
    code: Annotated[str, Field(pattern="^[A-Z]{3}$")]
    name: Annotated[str, Field(min_length=1, max_length=8)]


class Report(BaseModel):
    """A field of every kind."""

    title: str
    share: float | None
    findings: Annotated[list[Finding], Field(min_length=1, max_length=4)]
    notes: dict[str, int]
    tags: set[str]
    is_final: bool
    detail: Annotated[Dated | Named, Field(discriminator="kind")]
    parts: list[Report]


@dataclass
class Node:
    """A JSON value: an object (`pairs`), an array (`items`) or a scalar (`text`), with what may not stand in its
    place (`wrong`, as JSON)."""

    text: str = ""
    pairs: list[tuple[str, Node]] | None = None
    items: list[Node] | None = None
    wrong: tuple[str, ...] = ()
    is_model: bool = False
    """An object whose names are those of a schema: none may be missing, none may be added."""

    def walk(self) -> Iterator[Node]:
        yield self
        for _, child in self.pairs or ():
            yield from child.walk()
        for child in self.items or ():
            yield from child.walk()

    def json(self) -> str:
        if self.pairs is not None:
            return "{" + ", ".join(f"{_key(name)}: {child.json()}" for name, child in self.pairs) + "}"
        if self.items is not None:
            return "[" + ", ".join(child.json() for child in self.items) + "]"
        return self.text


def _key(name: str) -> str:
    return name if name.startswith('"') else json.dumps(name)


# ── good replies ──

_NO_TEXT = ("null", "0", "true", "[]", "{}", '["a"]', '{"text": "price"}')
_NO_NUMBER = ('"0.5"', "true", "[]", "{}", '""', "[0.5]", '"NaN"')


def _text(draw: random.Random) -> Node:
    return Node(json.dumps(draw.choice(("T", "", "zażółć", 'a "b"', "x" * 40))), wrong=_NO_TEXT)


def _quote(draw: random.Random) -> Node:
    wrong = (
        *_NO_TEXT, '""', '" "', '"\\u200b"', '"The price is six euros."', '"the PRICE is five"', '"price five"',
        '"Delivery to the cafe is free"', '"costs 102 euros"', '"euros. The price"',
        '{"text": "price is five", "document": "d1", "start": 4, "end": 17}',
    )  # fmt: skip
    return Node(json.dumps(draw.choice(PASSAGES), ensure_ascii=draw.random() < 0.5), wrong=wrong)


def _chosen(draw: random.Random, *values: str) -> Node:
    near = (f'"{values[0].upper()}"', f'" {values[0]}"', f'"{values[0]}{values[0]}"', f'["{values[0]}"]')
    return Node(f'"{draw.choice(values)}"', wrong=(*_NO_TEXT, *near, '""', '"medium"'))


def _finding(draw: random.Random) -> Node:
    no_weight = (*_NO_NUMBER, "null", "-1", "11", "2.5", "1e2", "0.1e1e1", "1e-1")
    return _model(
        quote=_quote(draw),
        grade=_chosen(draw, "low", "high"),
        weight=Node(str(draw.randint(0, 10)), wrong=no_weight),
    )


def _dated(draw: random.Random) -> Node:
    at = f"20{draw.randint(10, 40)}-05-17T09:30:00"
    no_date = (*_NO_TEXT, '"1704067200"', '"2024-02-30"', '"17.5.2024"', '"2024-5-17"', '"tomorrow"', '""')
    no_at = (*no_date, '"2024-05-17"', '"2024-05-17T25:00:00Z"', '"2024-05-17T09:30:00Z[UTC]"', '"2024-05-17T09:30"')
    no_hour = (*_NO_TEXT[1:], '"09:30"', '"3600"', '"25:00:00"', '"half past nine"')
    no_length = (*_NO_TEXT, '"3600"', '"1 day, 00:00:00"', '"00:01:00"', '"P"', '"a day"')
    no_id = (*_NO_TEXT, '"1b4e28ba2fa141d2883f0016d3cca427"', '"1b4e28ba-2fa1-41d2-883f-0016d3cca42"', '"id"')
    return _model(
        kind=_chosen(draw, "dated"),
        at=Node(f'"{at}{draw.choice(("", "Z", "+02:00", ".5Z"))}"', wrong=no_at),
        day=Node(f'"{at[:10]}"', wrong=no_date),
        hour=Node(draw.choice(('"09:30:00Z"', '"09:30:00"', "null")), wrong=no_hour),
        length=Node(draw.choice(('"P1D"', '"PT5M"')), wrong=no_length),
        id=Node('"1b4e28ba-2fa1-41d2-883f-0016d3cca427"', wrong=no_id),
    )


def _named(draw: random.Random) -> Node:
    return _model(
        kind=_chosen(draw, "named"),
        code=Node('"ABC"', wrong=(*_NO_TEXT, '"abc"', '"ABCD"', '"AB"', '"ABC\\n"', '""')),
        name=Node('"Anna"', wrong=(*_NO_TEXT, '""', '"123456789"')),
    )


def good(draw: random.Random, depth: int = 0) -> Node:
    """A reply that fits `Report` and quotes `SOURCE`."""
    tags = draw.sample(("a", "b", "c", ""), draw.randint(0, 3))
    no_list = ("null", "{}", '""', "0", "[null]", "[[]]", '[""]')
    findings = [_finding(draw) for _ in range(draw.randint(1, 4))]
    five = "[" + ", ".join([findings[0].json()] * 5) + "]"
    return _model(
        title=_text(draw),
        share=Node(draw.choice(("0.5", "null", "-1e-3", "7", "1E5")), wrong=_NO_NUMBER),
        findings=Node(items=findings, wrong=(*no_list, "[]", five)),
        notes=Node(
            pairs=[(name, Node(str(draw.randint(-9, 9)), wrong=(*_NO_NUMBER, "null", "1.5"))) for name in tags],
            wrong=("null", "[]", '""', "0", '{"x": "1"}', '{"x": null}'),
        ),
        tags=Node(items=[Node(json.dumps(tag), wrong=_NO_TEXT) for tag in tags], wrong=("null", '""', '["a", "a"]')),
        is_final=Node(draw.choice(("true", "false")), wrong=("null", "0", "1", '"true"', "[]", "True")),
        detail=draw.choice((_dated, _named))(draw),
        parts=Node(items=[good(draw, depth + 1)] if depth < 2 and draw.random() < 0.3 else [], wrong=no_list),
    )


def _model(**members: Node) -> Node:
    return Node(pairs=list(members.items()), is_model=True, wrong=("null", "[]", '""', "0", "{}"))


# ── and what is done to them ──


def _missing(reply: Node, draw: random.Random) -> str:
    node = _some(reply, draw, lambda node: node.is_model)
    assert node.pairs is not None
    del node.pairs[draw.randrange(len(node.pairs))]
    return reply.json()


def _extra(reply: Node, draw: random.Random) -> str:
    node = _some(reply, draw, lambda node: node.is_model)
    assert node.pairs is not None
    name = draw.choice(("extra", "Title", "title ", "", "weights", "__class__", "$ref", "document"))
    node.pairs.insert(draw.randint(0, len(node.pairs)), (name, Node(draw.choice(("1", "null", '"x"', "{}")))))
    return reply.json()


def _wrong(reply: Node, draw: random.Random) -> str:
    node = _some(reply, draw, lambda node: bool(node.wrong))
    node.text, node.pairs, node.items = draw.choice(node.wrong), None, None
    return reply.json()


def _duplicated(reply: Node, draw: random.Random) -> str:
    node = _some(reply, draw, lambda node: bool(node.pairs))
    assert node.pairs is not None
    name, value = draw.choice(node.pairs)
    spelled = "".join(f"\\u{ord(letter):04x}" for letter in name) if draw.random() < 0.3 else json.dumps(name)[1:-1]
    node.pairs.insert(draw.randint(0, len(node.pairs)), (f'"{spelled}"', value))
    return reply.json()


_NO_NUMBERS = (
    "NaN", "Infinity", "-Infinity", "1e999", "-1e999", "+1", "01", ".5", "5.", "0x10", "1_000",
    "9" * 30, "9" * 5000, "-" + "9" * 20, "18446744073709551616",
)  # fmt: skip


def _no_number(reply: Node, draw: random.Random) -> str:
    node = _some(reply, draw, lambda node: node.text.lstrip("-")[:1].isdigit())
    node.text = draw.choice(_NO_NUMBERS)
    return reply.json()


def _no_string(reply: Node, draw: random.Random) -> str:
    node = _some(reply, draw, lambda node: node.text.startswith('"'))
    node.text = draw.choice(('"a\nb"', '"\x00"', '"\t"', '"\\ud800"', '"\\x41"', '"\\u12"', '"a', "'a'", '"a"b"', "a"))
    return reply.json()


def _nested(reply: Node, draw: random.Random) -> str:
    node = _some(reply, draw, lambda _: True)
    depth = draw.choice((2, 10, 100, 300, 900, 1100, 20_000))
    opening, closing = draw.choice((("[", "]"), ('{"parts":', "}")))
    node.text, node.pairs, node.items = opening * depth + "0" + closing * depth, None, None
    return reply.json()


def _truncated(reply: Node, draw: random.Random) -> str:
    text = reply.json()
    return text[: draw.randrange(len(text))]


def _fenced(reply: Node, draw: random.Random) -> str:
    text = reply.json()
    return draw.choice(
        (f"```json\n{text}\n```", f"```\n{text}\n```", f"\n ```JSON {text} ```", f"`{text}`", f"```{text}")
    )


def _surrounded(reply: Node, draw: random.Random) -> str:
    text = reply.json()
    before, after = draw.choice((
        ("Here it is: ", ""), ("", "\nI hope this helps."), ("\ufeff", ""), ("", "\x00"), ("", ","), ("", "}"),
        ("[", "]"), ("", text), ("// JSON\n", ""), ("", " // done"), ("\u00a0", ""), ("<json>", "</json>"),
        ('"', '"'), ('{"reply": ', "}"), ("<think>so</think>", ""), ("\x1b[0m", ""), ("", ";"),
    ))  # fmt: skip
    return before + text + after


def _cut_inside(reply: Node, draw: random.Random) -> str:
    """A character of the grammar is gone: a brace, a bracket, a colon or a quotation mark that ends a name."""
    text = reply.json()
    places = [at for at in range(len(text)) if text[at] == ":" and text[at - 1] == '"' and text[at + 1] == " "]
    at = draw.choice(places) - draw.randint(0, 1)
    return text[:at] + text[at + 1 :]


def _huge(reply: Node, draw: random.Random) -> str:
    """Ten megabytes, whatever is in them."""
    assert reply.pairs is not None
    match draw.randrange(3):
        case 0:
            reply.pairs[0] = ("title", Node('"' + "x" * 10_000_000 + '"'))
        case 1:
            reply.pairs[4] = ("tags", Node("[" + '"a", ' * 2_000_000 + '"b"]'))
        case _:
            return reply.json() + " " * 10_000_000
    return reply.json()


KINDS: dict[str, Callable[[Node, random.Random], str]] = {
    "missing": _missing,
    "extra": _extra,
    "wrong type, enum, format, range or quote": _wrong,
    "duplicated key": _duplicated,
    "not a number": _no_number,
    "not a string": _no_string,
    "nested": _nested,
    "truncated": _truncated,
    "fenced": _fenced,
    "surrounded": _surrounded,
    "cut inside": _cut_inside,
}
HUGE_EVERY = 2_000
"""One of so many is of ten megabytes."""


def _some(reply: Node, draw: random.Random, fits: Callable[[Node], bool]) -> Node:
    nodes = [node for node in reply.walk() if fits(node)]
    return draw.choice(nodes) if nodes else reply


@dataclass
class Corruption:
    """A stream of corrupted replies, the same for the same seed."""

    seed: int
    count: int
    kinds: dict[str, int] = field(default_factory=dict)
    """How many of each kind were made."""

    def __iter__(self) -> Iterator[str]:
        draw, names = random.Random(self.seed), list(KINDS)
        for number in range(self.count):
            is_huge = number % HUGE_EVERY == HUGE_EVERY - 1
            name = "huge" if is_huge else draw.choice(names)
            self.kinds[name] = self.kinds.get(name, 0) + 1
            yield (_huge if is_huge else KINDS[name])(good(draw), draw)
