from __future__ import annotations

import asyncio
import re

import orjson

from twolane.domain.completion import Completion
from twolane.domain.records import Message, ModelCall, ReplySchema
from twolane.models.extractive import NO_ANSWER, NO_SOURCE, Extractive, count_tokens, read_brief

LAW = "This Agreement is governed by the laws of Ireland."
CONTRACT = f"1. Term. This Agreement continues for three years.\n\n2. Law. {LAW}\n"
SCHEMA = ReplySchema(
    "facts",
    {
        "type": "object",
        "required": ["governing_law", "penguins"],
        "properties": {
            "governing_law": {"type": ["string", "null"], "description": "Which law governs? 'governed by', 'laws of'"},
            "penguins": {"type": ["string", "null"]},
        },
    },
)


def call(*messages: tuple[str, str], schema: ReplySchema | None = None, max_tokens: int = 1000) -> ModelCall:
    return ModelCall(tuple(Message(*message) for message in messages), "extractive", max_tokens, schema=schema)


async def complete(asked: ModelCall, model: Extractive | None = None) -> Completion:
    completion = Completion()
    async for block in await (model or Extractive("e")).open(asked):
        completion.feed(block)
    return completion


async def test_a_schema_is_filled_from_a_wrapped_document() -> None:
    told = await complete(call(("user", f'Extract.\n<document id="c1">\n{CONTRACT}\n</document>'), schema=SCHEMA))
    assert orjson.loads(told.text) == {"governing_law": LAW, "penguins": None}
    assert told.is_done
    assert told.finish_reason == "stop"
    assert told.usage is not None
    assert told.usage.output_tokens == count_tokens(told.text)


async def test_a_lone_plain_message_is_the_source_of_a_schema() -> None:
    assert orjson.loads((await complete(call(("user", CONTRACT), schema=SCHEMA))).text)["governing_law"] == LAW


async def test_every_user_message_but_the_last_is_a_source() -> None:
    brief = read_brief(call(("system", "Quote."), ("user", CONTRACT), ("user", "Which law governs it?")))
    assert [source.text for source in brief.sources] == [CONTRACT]
    assert brief.question == "Which law governs it?"


async def test_a_free_answer_cites_what_it_quotes() -> None:
    wrapped = f'<document id="c1">\n{CONTRACT}\n</document>\n<document id="c2">\nThe bees sleep.\n</document>'
    told = await complete(call(("user", wrapped), ("user", "Which laws govern the agreement?")))
    match = re.search(r"“([^”]*)” \[c1:(\d+)-(\d+)\]", told.text)
    assert match is not None
    assert CONTRACT[int(match[2]) : int(match[3])] == match[1]
    assert LAW in match[1]


async def test_question_and_text_may_share_a_message() -> None:
    told = await complete(call(("user", f"{CONTRACT}\n\nWhich laws govern the agreement?")))
    assert LAW in told.text
    document = f"<document>{CONTRACT}</document>"
    told = await complete(call(("system", "Which laws govern the agreement?"), ("user", document)))
    assert LAW in told.text


async def test_it_says_so_when_there_is_no_text_or_no_answer() -> None:
    assert (await complete(call(("user", "Which law governs?")))).text == NO_SOURCE
    assert (await complete(call(("user", CONTRACT), ("user", "How do penguins swim?")))).text == NO_ANSWER


async def test_the_answer_ends_at_max_tokens() -> None:
    told = await complete(call(("user", CONTRACT), ("user", "Which laws govern the agreement?"), max_tokens=5))
    assert told.finish_reason == "length"
    assert told.usage is not None
    assert told.usage.output_tokens == 5
    assert len(told.text.encode()) <= 20


async def test_a_first_chunk_comes_before_the_rest() -> None:
    stream = await Extractive("e").open(call(("user", CONTRACT), ("user", "Which laws govern the agreement?")))
    contents = []
    async for block in stream:
        one = Completion()
        one.feed(block)
        message = one.choices.get(0, {}).get("message")
        contents.append(message.get("content") if isinstance(message, dict) else None)
    assert len(str(contents[0]).split()) <= 4
    assert sum(content is not None for content in contents) > 1


async def test_closing_ends_a_paced_answer_at_once() -> None:
    stream = await Extractive("e", first_token_s=3600).open(call(("user", CONTRACT), ("user", "law?")))
    waiting = asyncio.ensure_future(anext(aiter(stream), None))
    await asyncio.sleep(0)
    stream.close()
    stream.close()
    assert await asyncio.wait_for(waiting, 1) is None


async def test_long_texts_are_read_off_the_event_loop() -> None:
    loop, beats = asyncio.get_running_loop(), 0

    def beat() -> None:
        nonlocal beats
        beats += 1
        handles.append(loop.call_later(0.001, beat))

    handles = [loop.call_soon(beat)]
    told = await complete(call(("user", CONTRACT * 2000), ("user", "Which laws govern the agreement?")))
    handles[-1].cancel()
    assert "[text-1:" in told.text
    assert beats > 3


async def test_wrappers_without_an_end_take_no_time() -> None:
    brief = read_brief(call(("user", "<document>" * 30_000 + "?" * 30_000 + "a b " * 30_000)))
    assert len(brief.sources) <= 1


async def test_documents_of_several_messages_keep_their_ids_apart() -> None:
    first = "<document id='a'>One.</document>"
    second = '<document id="a">\nTwo.\n</document> and <document>Three.</document>'
    brief = read_brief(call(("user", first), ("user", second), ("user", "What?")))
    named = [(source.id, source.text) for source in brief.sources]
    assert named == [("a", "One."), ("a#2", "Two."), ("text-3", "Three.")]
