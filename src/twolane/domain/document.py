"""What people bring: documents, and passages quoted from them."""

from __future__ import annotations

import functools
import re
import unicodedata
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, GetJsonSchemaHandler, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema


@dataclass(frozen=True, slots=True)
class Document:
    """A text with its name. `id` is unique within a run; `source` is where it came from (a path); `pages` are the
    character offsets at which each page begins, empty where the format has none."""

    id: str
    text: str
    source: str = ""
    pages: tuple[int, ...] = ()


_MARK = re.compile(r"<(?=\s*+(?:/\s*+)?(?:document|problems))", re.IGNORECASE)  # possessive: nothing is read twice
_IN_NAME = str.maketrans('"<>', "'‹›")


def as_data(document: Document) -> str:
    """A document as a message holds it: marked as data, and unable to end its own mark or to open another.

    A mark inside the text gets a zero-width space after its `<`, which the look-up of quotes ignores.
    """
    name = "".join(mark if mark.isprintable() else " " for mark in document.id).translate(_IN_NAME)
    return f'<document id="{name}">\n{unmarked(document.text)}\n</document>'


def unmarked(text: str) -> str:
    """A text that can neither open nor end a mark of ours."""
    return _MARK.sub("<\u200b", text)


class Quote(BaseModel):
    """A passage of a document, word for word.

    A model replies with the passage alone; the platform finds it in the document and fills in where it stands. A
    passage that is not in the document is refused, whatever the model. `start` and `end` are character offsets into
    the document's text; the text between them is `text`, line breaks and all.
    """

    model_config = ConfigDict(extra="forbid")

    text: str
    document: str = ""
    start: int = -1
    end: int = -1

    @model_validator(mode="before")
    @classmethod
    def _from_reply(cls, value: Any) -> Any:  # Any: whatever a reply or a memo holds
        return {"text": value} if isinstance(value, str) else value

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {"type": "string", "minLength": 1}


def locate(passage: str, text: str) -> tuple[int, int] | None:
    """Where `passage` stands in `text`, as (start, end); None where it does not.

    Word for word, but white space may differ (models rejoin broken lines), as may the kind of quotation mark or dash,
    the way an accent is written (é as one character or two) and ligatures of print (ﬁ); characters of no width count
    for nothing (models leave them out). An accent itself is never left out. The first occurrence counts.
    """
    wanted = "".join(map(_plain, passage))
    if not wanted:
        return None
    start = text.find(passage)
    if start >= 0 and not _is_accented(text, start + len(passage)):
        return start, start + len(passage)
    plain, positions = _squeezed(text)
    start = plain.find(wanted)
    while start >= 0:
        end = start + len(wanted)
        begins = start == 0 or positions[start - 1] < positions[start]
        ends = end == len(plain) or positions[end - 1] < positions[end]
        if begins and ends and not _is_accented(plain, end):
            return positions[start], positions[end - 1] + 1
        start = plain.find(wanted, start + 1)
    return None


_ALIKE = {mark: plain for marks, plain in (("“”„‟", '"'), ("‘’‚‛", "'"), ("–—−‐‑", "-")) for mark in marks}
_ALIKE |= {"ﬀ": "ff", "ﬁ": "fi", "ﬂ": "fl", "ﬃ": "ffi", "ﬄ": "ffl", "ﬅ": "st", "ﬆ": "st"}
"""Not by Unicode's compatibility, in which 10² is 102."""

_NO_WIDTH = "\u200b\u200c\u200d\u2060\ufeff\u00ad"
"""Zero-width spaces and joiners, the byte order mark, the soft hyphen."""


@functools.cache
def _plain(character: str) -> str:
    """What counts of a character: nothing of white space, an accent beside its letter."""
    if character.isspace() or character in _NO_WIDTH:
        return ""
    return unicodedata.normalize("NFD", _ALIKE.get(character, character))


def _is_accented(text: str, end: int) -> bool:
    """Whether an accent follows, which belongs to the letter before."""
    return end < len(text) and unicodedata.combining(text[end]) > 0


@functools.lru_cache(maxsize=1)
def _squeezed(text: str) -> tuple[str, Sequence[int]]:
    """The text as far as it counts, and where each character stood.

    The last text is kept: the twenty quotes of one reply are looked up in the same one, at 0.2 s a million characters.
    """
    pieces = [_plain(character) for character in text]
    return "".join(pieces), array("L", (at for at, piece in enumerate(pieces) for _ in piece))
