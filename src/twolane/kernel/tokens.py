"""Tokens as the families of models count them. The vocabularies lie in the wheel of the extra `tokens`: nothing is
fetched. Without it bytes bound what a call may read, as they always may."""

from __future__ import annotations

import re
from collections.abc import Callable

from twolane.config import UpstreamSection
from twolane.errors import ConfigError

_FAMILIES = (
    (re.compile(r"(gpt-4o|gpt-4\.|gpt-5|chatgpt-4o|o[134](-|$)|gpt-oss)"), "o200k"),
    (re.compile(r"(gpt-4(-|$)|gpt-3\.5-turbo|text-embedding-3|text-embedding-ada-002)"), "cl100k"),
)
"""Names that OpenAI gave its own models; other servers may call anything so."""


def counter(upstream: str, section: UpstreamSection) -> Callable[[str], int] | None:
    """What counts the tokens of a text for this upstream; None where only its bytes bound them.

    Raises:
        ConfigError: it names a tokenizer, and the extra is not installed.
    """
    family = section.tokenizer or _family(section)
    if family is None:
        return None
    try:
        from rs_bpe.bpe import openai
    except ImportError:
        if section.tokenizer is None:
            return None
        raise ConfigError(
            f"tokenizer = {family!r} needs the extra tokens",
            where=f"upstream.{upstream}",
            hint='Install it: pip install "twolane[tokens]", or leave the key out: bytes are the bound then',
        ) from None
    encoder = openai.o200k_base() if family == "o200k" else openai.cl100k_base()
    count: Callable[[str], int] = encoder.count
    return count


def _family(section: UpstreamSection) -> str | None:
    if section.kind != "openai" or "//api.openai.com/" not in (section.url or "") + "/":
        return None
    return next((family for names, family in _FAMILIES if names.match(section.model)), None)
