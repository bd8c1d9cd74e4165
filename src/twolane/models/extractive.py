"""The built-in model that needs no network: it fills JSON schemas and answers questions by quoting the given text.

It is named for what it does and is not a language model (`twolane.rules.extraction` decides everything). How messages
are read:

- Wrapped documents, `<document id="…">` … `</document>`, are sources wherever they stand; the wrapper is not part of
  the text and offsets count from its first character.
- User messages before the last one are sources as a whole where they wrap no document.
- The last user message is the question. When it is the only one and wraps no document, then with a schema all of it is
  the source; without, everything but its question sentence or paragraph.
- System messages are instructions; the last one is the question when no user message holds one.

Tokens are counted by one rule: UTF-8 bytes / 4, rounded up, for the text of all messages and for the answer.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import orjson

from twolane.domain.records import Kind, Message, ModelCall, Usage
from twolane.models import Model, no_embeddings
from twolane.models.sse import DONE, Chunks, MadeStream
from twolane.rules import extraction

WORDS_A_CHUNK = 4
"""What a paced answer sends at a time, and the size of the first chunk of any."""
WORDS_A_BLOCK = 64
"""What an unpaced answer sends at a time after its first chunk."""
INLINE_CHARS = 4_000
"""Texts up to this size are read on the event loop (under 10 ms); a thread costs more than it saves."""
NO_SOURCE = (
    "There is no text to answer from. Send it before the question, as a message of its own or as "
    '<document id="…">…</document>.'
)
NO_ANSWER = "Nothing in the given text answers this."

_OPENING = re.compile(r"<document(?:\s{1,8}id=(?:\"([^\"]{0,400})\"|'([^']{0,400})'))?[^<>]{0,400}>\n?")
_CLOSING = "</document>"
_WORDS = re.compile(r"\s*\S+\s*|\s+")
_PARAGRAPH = re.compile(r"\n[ \t]*\n")
_BARE_QUESTION_CHARS = 300


@dataclass(frozen=True, slots=True)
class Source:
    """One text to quote from."""

    id: str
    text: str


@dataclass(frozen=True, slots=True)
class Brief:
    """What a conversation asks: the texts and the question or instruction."""

    sources: tuple[Source, ...]
    question: str


class Extractive(Model):
    """A `Model` that quotes. `first_token_s` and `token_s` pace it like a distant upstream, for demonstrations."""

    ends_when_closed = True

    def __init__(self, name: str, *, first_token_s: float = 0, token_s: float = 0) -> None:
        self.name = name
        self.first_token_s, self.token_s = first_token_s, token_s

    async def open(self, call: ModelCall) -> MadeStream:
        """Accept the call; the text is read when the stream is first asked for a block.

        Raises:
            UpstreamError: with status 400, for embeddings.
        """
        if call.kind is Kind.EMBEDDINGS:
            raise no_embeddings(self.name, "it quotes, and knows no vectors")
        return MadeStream(lambda stream: self._blocks(call, stream))

    async def aclose(self) -> None:
        """Nothing is held."""

    async def _blocks(self, call: ModelCall, stream: MadeStream) -> AsyncIterator[bytes]:
        await stream.pause(self.first_token_s)
        if sum(len(message.content) for message in call.messages) <= INLINE_CHARS:
            reply: str | None = reply_to(call)
        else:
            reply = await stream.result_of(asyncio.to_thread(reply_to, call))
        if reply is None:
            return
        text = clipped(reply, call.max_tokens)
        chunks = Chunks(call.model)
        role: str | None = "assistant"
        for part in self._parts(text):
            yield chunks.chunk(part, role=role)
            role = None
            await stream.pause(self.token_s * count_tokens(part))
        yield chunks.chunk(role=role, finish_reason="stop" if text == reply else "length")
        yield chunks.usage(Usage(input_tokens=tokens_of(call.messages), output_tokens=count_tokens(text))) + DONE

    def _parts(self, text: str) -> Iterator[str]:
        words = _WORDS.findall(text)
        size = WORDS_A_CHUNK if self.token_s > 0 else WORDS_A_BLOCK
        yield from ("".join(words[:WORDS_A_CHUNK]),) if words else ()
        for at in range(WORDS_A_CHUNK, len(words), size):
            yield "".join(words[at : at + size])


def count_tokens(text: str) -> int:
    """UTF-8 bytes / 4, rounded up."""
    return -(-len(text.encode("utf-8", "surrogatepass")) // 4)


def tokens_of(messages: tuple[Message, ...]) -> int:
    """The tokens of all messages by `count_tokens`."""
    return sum(count_tokens(message.content) for message in messages)


def clipped(text: str, max_tokens: int) -> str:
    """The beginning of a text that costs at most `max_tokens`, whole characters."""
    raw = text.encode("utf-8", "surrogatepass")
    if len(raw) <= 4 * max_tokens:
        return text
    return raw[: max(0, 4 * max_tokens)].decode("utf-8", "ignore")


def reply_to(call: ModelCall) -> str:
    """The whole reply: a JSON instance where the call has a schema, else an answer in quotations."""
    brief = read_brief(call)
    if call.schema is not None:
        texts = [source.text for source in brief.sources]
        instance = extraction.fill(call.schema.schema, texts, topic=brief.question)
        return orjson.dumps(instance, option=orjson.OPT_NON_STR_KEYS).decode()
    if not brief.sources:
        return NO_SOURCE
    passages = extraction.answer_from(brief.question, {source.id: source.text for source in brief.sources})
    if not passages:
        return NO_ANSWER
    return "\n\n".join(f"“{passage.text}” [{passage.source_id}:{passage.start}-{passage.end}]" for passage in passages)


def read_brief(call: ModelCall) -> Brief:
    """Sources and question of a conversation; see the head of this file."""
    told = [(message.role, _unwrapped(message.content)) for message in call.messages]
    users = [content for role, content in told if role == "user"]
    systems = [content for role, content in told if role in {"system", "developer"}]
    texts = [document for content in systems for document in content.documents]
    for content in users[:-1]:
        texts += content.documents
        is_question = call.schema is None and _is_bare_question(content.rest)
        if not content.documents and content.rest and not is_question:
            texts.append(Source("", content.whole))
    last = users[-1] if users else _Unwrapped("", [], "")
    texts += last.documents
    question = last.rest
    if len(users) == 1 and not texts:
        if call.schema is not None:
            texts, question = [Source("", last.whole)] if last.rest else [], ""
        else:
            parted = _parted(last.whole)
            question = parted.question
            texts = [Source("", parted.text)] if parted.text else []
    if not question and systems:
        question = systems[-1].rest
    return Brief(_named(texts), question)


class _Unwrapped(NamedTuple):
    whole: str
    documents: list[Source]
    rest: str
    """What stands outside of documents, without surrounding whitespace."""


class _Parted(NamedTuple):
    question: str
    text: str


def _unwrapped(content: str) -> _Unwrapped:
    """The documents of a message and the rest. One that is never closed is no document."""
    documents: list[Source] = []
    rest: list[str] = []
    at = 0
    while opening := _OPENING.search(content, at):
        closing = content.find(_CLOSING, opening.end())
        if closing < 0:
            break
        rest.append(content[at : opening.start()])
        text = content[opening.end() : closing].removesuffix("\n")
        if text.strip():
            documents.append(Source(opening[1] or opening[2] or "", text))
        at = closing + len(_CLOSING)
    rest.append(content[at:])
    return _Unwrapped(content, documents, "\n".join(rest).strip())


def _named(texts: list[Source]) -> tuple[Source, ...]:
    """Every source with an id of its own: the given one, else `text` and its number."""
    sources: dict[str, Source] = {}
    for number, source in enumerate(texts, start=1):
        name = source.id or f"text-{number}"
        if name in sources:
            name = f"{name}#{number}"
        sources[name] = Source(name, source.text)
    return tuple(sources.values())


def _is_bare_question(content: str) -> bool:
    return len(content) <= _BARE_QUESTION_CHARS and content.rstrip().endswith("?")


def _parted(content: str) -> _Parted:
    """Question and text of a lone message: a first or last paragraph that asks, else its last (or only) question."""
    paragraphs = [part.strip() for part in _PARAGRAPH.split(content) if part.strip()]
    if len(paragraphs) > 1:
        ends = (paragraphs[-1], paragraphs[0])
        asking = [part for part in ends if "?" in part and len(part) <= 2 * _BARE_QUESTION_CHARS]
        question = asking[0] if asking else min(ends, key=len)
        start = content.find(question) if question == paragraphs[0] else content.rfind(question)
        return _Parted(question, _without(content, start, start + len(question)))
    end = content.rfind("?") + 1
    if not end:
        return _Parted(content.strip(), "")
    start = 1 + max(content.rfind(stop, 0, end - 1) for stop in ".?!\n")
    return _Parted(content[start:end].strip(), _without(content, start, end))


def _without(content: str, start: int, end: int) -> str:
    """A text without what was cut out of it; blank lines keep its halves apart."""
    return "\n\n".join(part for part in (content[:start].strip(), content[end:].strip()) if part)
