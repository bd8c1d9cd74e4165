"""What a call gives its model to read: how many tokens that can be at most, and which parts nobody can bound."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import orjson

from twolane.domain.records import Kind, ModelCall, Price, Size

_SCHEMA_WORDS = 128
"""Bytes of the words that ask for a schema where a server does not take it as such."""
_TOOL_WORDS = 1_024
"""Tokens of the words around tools that an upstream adds itself (Anthropic names 264 to 530, by model and choice)."""
_OWN_TOOL_WORDS = 2_048
"""Tokens of the description of one of Anthropic's own tools, which a request only names (it says 245 to 1,234)."""
_PICTURE_TOKENS = 16_384
"""What a picture counts, however few or many bytes it is packed into: Qwen2-VL scales to at most that many, Anthropic
to less; a photograph of 12 megapixels is about 14,400 on the dearest model measured in public."""

_OWN_TOOLS = ("bash_", "text_editor_", "computer_2", "memory_")
"""Anthropic's tools that the client runs; the others run there, and read what nobody here can bound."""
_BOUNDED = frozenset(
    "cache_control context_management diagnostics max_tokens messages metadata model output_config output_format "
    "service_tier stop_sequences stream system temperature thinking tool_choice tools top_k top_p".split()
)
"""Fields of a native request that cost no more than the bytes and tokens in it."""

MOST_COUNTED = 128 * 1024
"""Bytes beyond which tokens are not counted: it would keep everybody else on the event loop waiting for 3 ms."""


# ── how much it is ──


def input_bound(call: ModelCall, overhead_tokens: int = 8) -> int:
    """The most input tokens this call can have: the UTF-8 bytes of everything the model may read (a byte-level token
    covers at least one byte), or what its family's tokenizer makes of it where that was counted and is less, plus
    `overhead_tokens` per message for the upstream's template.

    Source: notes on token counting; characters ÷ 4 under-counts up to three times.
    """
    return read_bound(call.measured or measure(call), overhead_tokens)


def read_bound(size: Size, overhead_tokens: int = 8) -> int:
    """The same from what `measure` found."""
    read = size.bytes if size.tokens is None else min(size.bytes, size.tokens)
    return read + overhead_tokens * (size.messages + 1)


def counted(call: ModelCall, size: Size, count: Callable[[str], int]) -> Size:
    """`size` with the tokens that `count`, the tokenizer of the model's family, finds, and 5 % for what a provider may
    count otherwise. Unchanged where something else than text is read, or so much that counting would take long."""
    texts = _texts(call) if size.bytes <= MOST_COUNTED else None
    if texts is None:
        return size
    tokens = -(-sum([count(text) for text in texts]) * 21 // 20)
    return size._replace(tokens=tokens + _SCHEMA_WORDS * (call.schema is not None) + _added_tokens(call))


def _texts(call: ModelCall) -> list[str] | None:
    """All that a model may read; None where it is not all text."""
    if call.native is not None or call.kind is not Kind.CHAT:
        return None
    texts = [message.content for message in call.messages]
    if call.raw_messages is not None:
        if any(part.get("type") not in (None, "text") for part in _parts(call.raw_messages)):
            return None
        texts = [orjson.dumps(call.raw_messages).decode()]
    if call.schema is not None:
        texts.append(call.schema.text.decode())
    if call.extras:
        texts.append(orjson.dumps(dict(call.extras)).decode())
    return texts


def measure(call: ModelCall) -> Size:
    """What the bound on a call's input is made of: bytes, with what stands for more than its bytes, and messages."""
    if call.raw_messages is not None:
        size, messages = len(orjson.dumps(call.raw_messages)) - _packed(call.raw_messages), len(call.raw_messages)
    else:
        size, messages = sum([_bytes(message.content) for message in call.messages]), len(call.messages)
    if call.kind is Kind.EMBEDDINGS:
        messages = inputs(call)  # each stands alone, with the marks and words that the model puts around it
    if call.schema is not None:
        size += len(call.schema.text) + _SCHEMA_WORDS
    if call.extras:
        size += len(orjson.dumps(dict(call.extras)))  # any of them may reach the prompt: tools, documents, templates
    if call.native is not None:
        # One or the other is sent, as the upstream speaks that dialect or not; the client's own may hold more.
        told = _list(call.native.body.get("messages"))
        size = max(size, len(orjson.dumps(dict(call.native.body))) - _packed(told))
        messages = max(messages, len(told))
    return Size(size + _added_tokens(call), messages)


def _bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode())


def inputs(call: ModelCall) -> int:
    """How many embeddings a call asks for: one for a text or a list of tokens, else one for each member of `input`."""
    asked = call.extras.get("input")
    return len(asked) if isinstance(asked, list) and asked and not isinstance(asked[0], int) else 1


def _added_tokens(call: ModelCall) -> int:
    """Tokens that stand for something of which the request holds only a name or a packed form."""
    if call.raw_messages is None and call.native is None and "tools" not in call.extras:
        return 0  # text alone, as most calls are
    kinds = [str(tool.get("type")) for tool in _tools(call) if isinstance(tool, dict)]
    tools = _TOOL_WORDS * bool(kinds) + _OWN_TOOL_WORDS * sum(kind.startswith(_OWN_TOOLS) for kind in kinds)
    return tools + _PICTURE_TOKENS * sum(part.get("type") in ("image", "image_url") for part in _parts(_told(call)))


def _packed(messages: object) -> int:
    """Bytes of the pictures in messages: nobody reads them as text."""
    return sum(len(_picture(part)) for part in _parts(messages))


def _picture(part: Mapping[str, object]) -> str:
    """The packed form of a picture, empty where this is none, or one by address."""
    source, held = part.get("source"), part.get("image_url")
    if part.get("type") == "image" and isinstance(source, dict) and str(source.get("media_type")).startswith("image/"):
        return data if isinstance(data := source.get("data"), str) else ""
    address = held.get("url") if isinstance(held, dict) else held
    is_packed = part.get("type") == "image_url" and isinstance(address, str) and address.startswith("data:image/")
    return str(address) if is_packed else ""


def _told(call: ModelCall) -> object:
    """The messages with all their parts, as the client wrote them."""
    if call.native is None:
        return call.raw_messages
    body = call.native.body
    return [*_list(body.get("messages")), {"content": body.get("system")}]


def _tools(call: ModelCall) -> list[object]:
    tools = _list(call.extras.get("tools"))
    return _list(call.native.body.get("tools")) or tools if call.native is not None else tools


def _parts(messages: object) -> Iterator[Mapping[str, object]]:
    """Every part of every message, those in the results of tools and in documents too."""
    todo = _list(messages)
    while todo:
        part = todo.pop()
        if isinstance(part, dict):
            source = part.get("source")
            todo += [*_list(part.get("content")), *_list(source.get("content") if isinstance(source, dict) else None)]
            yield part


def _list(value: object) -> list[object]:
    return list(value) if isinstance(value, list | tuple) else []


# ── what has no bound ──


def unbounded_part(call: ModelCall, price: Price | None = None) -> str | None:
    """What in this call has no bound in tokens or no price: something the upstream would fetch from an address of its
    own, or unpack; sound, unless `price` has one for it; a service of the upstream's own that it would use. None where
    everything is in the request itself, and priced."""
    if call.raw_messages is None and call.native is None and not call.extras:
        return None  # text alone, as most calls are
    priced = frozenset(dict(price.kinds)) if price is not None and price.kinds else frozenset()
    for message in call.raw_messages or ():
        parts = message.get("content")
        for part in parts if isinstance(parts, list) else ():
            found = _unbounded_chat_part(part, priced) if isinstance(part, dict) else None
            if found is not None:
                return found
    for said in _list(call.extras.get("modalities")):
        if said != "text" and f"output_{said}" not in priced:
            return f"{said} as output without a price of its own"
    for part in _parts(_told(call)):
        source = part.get("source")
        if part.get("type") in ("image", "document") and isinstance(source, dict):
            if source.get("type") in ("url", "file"):
                return f"{part['type']} by address"
            if part["type"] == "document" and source.get("type") == "base64":
                return "document in a packed form"
    for tool in _tools(call):
        kind = str(tool.get("type")) if isinstance(tool, dict) else ""
        if kind not in ("", "None", "function", "custom") and not kind.startswith(_OWN_TOOLS):
            return f"tool {kind}"
    if call.native is not None:
        return _unbounded_field(call.native.body)
    return next((name for name in ("web_search_options", "service_tier") if call.extras.get(name)), None)


def _unbounded_chat_part(part: Mapping[str, object], priced: frozenset[str]) -> str | None:
    kind = str(part.get("type"))
    if kind == "input_audio":
        return None if kind in priced else "sound without a price of its own"
    if kind not in ("image_url", "file", "video_url", "audio_url"):
        return None
    held = part.get(kind)
    address = held.get("url") or held.get("file_id") if isinstance(held, dict) else held
    if isinstance(held, dict) and held.get("file_data"):
        return f"{kind} in a packed form"
    if not str(address).startswith("data:"):
        return f"{kind} by address"
    return None if kind == "image_url" else f"{kind} in a packed form"


def _unbounded_field(body: Mapping[str, object]) -> str | None:
    """The field of a native request that may make it dearer than its tokens: another model, a faster or a nearer one,
    servers it would use, a longer conversation kept elsewhere."""
    if body.get("service_tier") not in (None, "auto", "standard_only"):
        return "service_tier"
    edits = body.get("context_management")
    kept = _list(edits.get("edits")) if isinstance(edits, dict) else []
    if not all(isinstance(edit, dict) and str(edit.get("type")).startswith("clear_") for edit in kept):
        return "context_management"
    return next((name for name, value in body.items() if value and name not in _BOUNDED), None)
