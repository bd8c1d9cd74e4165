from __future__ import annotations

import asyncio

import jsonschema_rs
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from twolane.domain.completion import Completion, EventError
from twolane.domain.records import Message, ModelCall, ReplySchema
from twolane.errors import ConfigError, UpstreamError
from twolane.models.rehearsal import Fault, Rehearsal, Script, Trouble, instance_for, read_faults

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 30, "minLength": 3},
        "size": {"type": "integer", "minimum": 3, "exclusiveMaximum": 9},
        "share": {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
        "kind": {"enum": ["a", "b"]},
        "day": {"type": "string", "format": "date"},
        "parts": {"type": "array", "minItems": 1, "maxItems": 3, "items": {"$ref": "#/$defs/Part"}},
        "note": {"anyOf": [{"type": "string"}, {"type": "null"}]},
    },
    "required": ["name", "size", "share", "kind", "day", "parts", "note"],
    "additionalProperties": False,
    "$defs": {
        "Part": {
            "type": "object",
            "properties": {
                "is_new": {"type": "boolean"},
                "parts": {"type": "array", "items": {"$ref": "#/$defs/Part"}},
            },
            "required": ["is_new"],
        }
    },
}


def call(text: str = "the source text of this call", *, schema: object = None, max_tokens: int = 100) -> ModelCall:
    reply = ReplySchema("it", schema) if isinstance(schema, dict) else None
    return ModelCall((Message("user", text),), "m", max_tokens, schema=reply)


async def complete(model: Rehearsal, asked: ModelCall | None = None) -> Completion:
    completion = Completion()
    async for block in await model.open(asked or call()):
        completion.feed(block)
    return completion


async def test_it_streams_its_reply_a_word_at_a_time_and_reports_usage() -> None:
    model = Rehearsal("r", reply="one two three")
    told = await complete(model)
    assert (told.text, told.finish_reason, told.is_done) == ("one two three", "stop", True)
    assert told.usage is not None
    assert told.usage.output_tokens == model.tokens == 3
    assert (model.requests, model.aborted, model.active) == (1, 0, 0)


async def test_replies_take_turns_or_come_from_a_function() -> None:
    model = Rehearsal("r", reply=["one", "two"])
    assert [(await complete(model)).text for _ in range(3)] == ["one", "two", "one"]
    echo = Rehearsal("r", Script(reply=lambda asked: asked.messages[-1].content.upper()))
    assert (await complete(echo, call("hear"))).text == "HEAR"


async def test_max_tokens_end_a_reply() -> None:
    told = await complete(Rehearsal("r", reply="one two three"), call(max_tokens=2))
    assert (told.text.strip(), told.finish_reason) == ("one two", "length")


async def test_a_schema_gets_the_same_fitting_instance_every_time() -> None:
    first, second = [(await complete(Rehearsal("r"), call(schema=SCHEMA, max_tokens=9999))).text for _ in range(2)]
    assert first == second
    jsonschema_rs.validate(SCHEMA, orjson.loads(first))


@given(st.integers(0, 10_000))
def test_instances_fit_for_every_seed_and_quote_the_source(seed: int) -> None:
    made = orjson.loads(instance_for(call(schema=SCHEMA), seed))
    jsonschema_rs.validate(SCHEMA, made)
    assert made["name"] in "the source text of this call " * 3


@pytest.mark.parametrize("rule, number", [("429 retry-after 2", 429), ("503", 503), ("400", 400)])
async def test_a_status_is_raised_before_the_stream(rule: str, number: int) -> None:
    with pytest.raises(UpstreamError) as refused:
        await Rehearsal("r", faults=f"always: {rule}").open(call())
    assert refused.value.http_status == number
    assert refused.value.retryable is (number != 400)
    assert refused.value.retry_after_s == (2.0 if number == 429 else None)


async def test_an_unreachable_upstream_is_gone() -> None:
    with pytest.raises(UpstreamError) as refused:
        await Rehearsal("r", faults="always: unreachable").open(call())
    assert refused.value.is_gone


async def test_an_answer_is_cut_after_so_many_tokens() -> None:
    model = Rehearsal("r", reply="one two three", faults="always: cut 2")
    with pytest.raises(UpstreamError):
        await complete(model)
    assert (model.tokens, model.active, model.aborted) == (2, 0, 0)


async def test_an_error_event_comes_inside_the_stream() -> None:
    with pytest.raises(EventError, match="rehearsed"):
        await complete(Rehearsal("r", faults="always: error 1"))


async def test_the_end_can_be_missing_or_wrong() -> None:
    assert not (await complete(Rehearsal("r", faults="always: no-done"))).is_done
    assert (await complete(Rehearsal("r", faults="always: no-usage"))).usage is None
    wrong = await complete(Rehearsal("r", reply="a b c", output_tokens=50, faults="always: wrong-usage"))
    assert wrong.usage is not None
    assert wrong.usage.output_tokens == 5
    with pytest.raises(EventError):
        await complete(Rehearsal("r", faults="always: garbled"))


async def test_a_malformed_reply_does_not_parse() -> None:
    told = await complete(Rehearsal("r", faults="always: malformed"), call(schema=SCHEMA, max_tokens=9999))
    assert told.finish_reason == "stop"
    with pytest.raises(orjson.JSONDecodeError):
        orjson.loads(told.text)


async def test_a_hanging_stream_ends_when_closed_and_counts_as_aborted() -> None:
    model = Rehearsal("r", reply="one two", faults="always: hang 1")
    stream = await model.open(call())
    blocks = aiter(stream)
    assert b"one" in await anext(blocks)
    waiting = asyncio.ensure_future(anext(blocks, None))
    await asyncio.sleep(0)
    assert not waiting.done()
    stream.close()
    stream.close()
    assert await asyncio.wait_for(waiting, 1) is None
    assert (model.aborted, model.active, model.tokens_after_close) == (1, 0, 0)


async def test_a_closed_stream_generates_nothing_more() -> None:
    model = Rehearsal("r", reply="one two three")
    stream = await model.open(call())
    blocks = aiter(stream)
    await anext(blocks)
    stream.close()
    assert [block async for block in blocks] == []
    assert (model.tokens, model.aborted, model.tokens_after_close) == (1, 1, 0)


async def test_a_cancelled_reader_aborts_the_answer() -> None:
    model = Rehearsal("r", first_token_ms=3_600_000)
    reading = asyncio.ensure_future(complete(model))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert (model.aborted, model.active) == (1, 0)


@pytest.mark.parametrize(
    "when, hit",
    [
        ("every 3rd", {3, 6}),
        ("2nd", {2}),
        ("2-4", {2, 3, 4}),
        ("first 2", {1, 2}),
        ("after 5", {6}),
        ("always", set(range(1, 7))),
        ("0%", set()),
        ("100%", set(range(1, 7))),
    ],
)
def test_rules_say_which_requests_fail(when: str, hit: set[int]) -> None:
    faults = read_faults(f"{when}: cut 5")
    assert {number for number in range(1, 7) if faults(number, call())} == hit


def test_the_first_rule_that_applies_counts() -> None:
    faults = read_faults("2nd: 503 retry-after 1.5; always: hang")
    assert faults(1, call()) == Fault(Trouble.HANG)
    assert faults(2, call()) == Fault(Trouble.STATUS, http_status=503, retry_after_s=1.5)


@pytest.mark.parametrize("rule", ["sometimes: 503", "always: explode", "always", "always: 200", "always: status"])
def test_a_rule_that_cannot_be_read_is_refused(rule: str) -> None:
    with pytest.raises(ConfigError):
        Rehearsal("r", faults=rule)
