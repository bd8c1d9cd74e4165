"""One value, one sequence of bytes: leaves of the ledger, fingerprints, digests and commitments.

Two encodings, both sorted JSON without spaces. `leaf_bytes` is the narrow one: what it accepts, every canonicalizer of
JSON writes to the same bytes (RFC 8785 included), so a stranger can rebuild a leaf from its parsed form.
`canonical_json` is the wide one, for digests that only this package compares.
"""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256
from math import isfinite

import orjson

from twolane.errors import InvalidEntry

LEAF_MAX_BYTES = 16 * 1024
"""The longest leaf. Entry bundles of a tiled log could carry 65,535 bytes; a leaf holds digests, never payloads."""

SALT_BYTES = 16
"""Length of a commitment's salt. One length only: with two, one commitment could be opened in two ways."""

_INTEGER_LIMIT = 2**53
_DEPTH_LIMIT = 16


def leaf_bytes(fields: Mapping[str, object]) -> bytes:
    """The bytes of one ledger leaf: UTF-8 JSON with sorted keys and no spaces, to be stored and hashed verbatim.

    Keys are ASCII snake_case. Values are strings, integers between -2**53 and 2**53 (both excluded: other readers hold
    numbers as doubles), and objects and lists of these. A larger amount is written as a decimal string, a truth value
    as a word or as 0 and 1, and an unknown is left out.

    Raises:
        InvalidEntry: a key or value outside these limits, named with its path; or more than 16 KB in all.
    """
    leaf = fields if type(fields) is dict else dict(fields)
    _check_object(leaf, "", 1)
    try:
        data = orjson.dumps(leaf, option=orjson.OPT_SORT_KEYS)
    except orjson.JSONEncodeError as error:  # a lone surrogate is the one thing left that has no UTF-8 form
        raise InvalidEntry(f"a ledger entry must be UTF-8 text: {error}") from error
    if len(data) > LEAF_MAX_BYTES:
        raise InvalidEntry(
            f"a ledger entry has at most {LEAF_MAX_BYTES} bytes, this one {len(data)}. "
            "Put the long part into a body and its commitment into the entry"
        )
    return data


def _check_object(fields: dict[str, object], path: str, depth: int) -> None:
    """Refuse what may not stand in a leaf. Exact types only: a subclass could be encoded as something else."""
    for key, value in fields.items():
        # Not annotations but data: a key of another type may arrive here all the same.
        if type(key) is not str or (key not in _seen_keys and not _is_key(key)):
            raise InvalidEntry(f"{path or '/'}: the key {key!r} of a ledger entry is not ASCII snake_case")
        kind = type(value)
        if kind is str or (kind is int and -_INTEGER_LIMIT < value < _INTEGER_LIMIT):  # type: ignore[operator]  # an int
            continue
        _check_value(value, f"{path}/{key}", depth)


_seen_keys: set[str] = set()
"""Keys that were found good: every entry has the same few, and looking at their letters was a third of its checking."""


def _is_key(key: str) -> bool:
    is_good = key.isascii() and key.isidentifier() and key.islower() and key[0] != "_"
    if is_good and len(_seen_keys) < 1_000:
        _seen_keys.add(key)
    return is_good


def _check_value(value: object, path: str, depth: int) -> None:
    kind = type(value)
    if kind is str:
        return
    if kind is int:
        if not -_INTEGER_LIMIT < value < _INTEGER_LIMIT:  # type: ignore[operator]  # exactly an int, one line above
            raise InvalidEntry(f"{path}: {value} is not below 2**53; write it as a decimal string")
        return
    if depth >= _DEPTH_LIMIT:
        raise InvalidEntry(f"{path}: nested deeper than {_DEPTH_LIMIT} levels")
    if isinstance(value, dict) and kind is dict:
        _check_object(value, path, depth + 1)
    elif isinstance(value, list) and kind is list:
        for at, element in enumerate(value):
            _check_value(element, f"{path}/{at}", depth + 1)
    else:
        raise InvalidEntry(f"{path}: {_WHY_NOT.get(kind, f'{kind.__name__} values')} cannot stand in a ledger entry")


_WHY_NOT = {
    bool: "truth values (write a word, or 0 and 1)",
    float: "floats (write an integer in a smaller unit)",
    type(None): "nulls (leave the key out)",
}


def canonical_json(value: object) -> bytes:
    """Sorted JSON of any plain value, for fingerprints and digests: equal values give equal bytes.

    Plain is what JSON knows: None, truth values, strings, integers of at most 64 bits, finite floats, lists or tuples,
    and mappings with string keys. Below 2**53, a float without a fraction is written as the integer it equals, so that
    0 and 0.0 are one value. Not quite RFC 8785: keys are sorted by code point, not by UTF-16 unit.

    Raises:
        ValueError: a NaN, an infinity, a value of another type, or text with a lone surrogate.
    """
    try:
        return orjson.dumps(_plain(value, 0), option=orjson.OPT_SORT_KEYS)
    except orjson.JSONEncodeError as error:
        raise ValueError(f"no canonical form: {error}") from error


def _plain(value: object, depth: int) -> object:
    """The same value in exact JSON types: left alone, orjson writes a NaN as null and takes dates and dataclasses."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        if not isfinite(value):
            raise ValueError(f"no canonical form: {value} is not a finite number")
        return int(value) if value.is_integer() and abs(value) < _INTEGER_LIMIT else float(value)
    if depth > 200:
        raise ValueError("no canonical form: nested deeper than 200 levels")
    if isinstance(value, Mapping):
        return {_plain_key(key): _plain(element, depth + 1) for key, element in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(element, depth + 1) for element in value]
    raise ValueError(f"no canonical form: {type(value).__name__} is not a JSON type")


def _plain_key(key: object) -> str:
    if not isinstance(key, str):
        raise ValueError(f"no canonical form: the key {key!r} is not a string")
    return str.__str__(key)


def digest(data: bytes) -> str:
    """SHA-256 as 64 lower-case hexadecimal digits."""
    return sha256(data).hexdigest()


def commitment(salt: bytes, body: bytes) -> str:
    """What a leaf says about a body it must not contain: SHA-256 of `commit/v1`, the salt and the body, in hex.

    Hiding as long as the salt is secret, binding always; once salt and body are erased, nothing about the body can be
    guessed from it. The salt is 16 random bytes: an item's own, or one derived for a step whose body is not kept.

    Raises:
        ValueError: the salt does not have `SALT_BYTES` bytes.
    """
    if len(salt) != SALT_BYTES:
        raise ValueError(f"a commitment's salt has {SALT_BYTES} bytes, this one {len(salt)}")
    return sha256(b"commit/v1" + salt + body).hexdigest()
