"""How single values are written in `twolane.toml`, checked while it is read, and what every section shares."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict

from twolane.domain.money import Money, pico_per_token
from twolane.errors import ConfigError, TwolaneError
from twolane.rules.budgets import read_seconds
from twolane.rules.schedules import check_cron

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
POSTGRES = ("postgresql://", "postgres://")

_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_SIZE = re.compile(r"([0-9]{1,6}(?:\.[0-9]{1,3})?) ?(|[KMGT]B)")


class Section(BaseModel):
    """Base of every table: unknown keys are errors, values are frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True, str_strip_whitespace=True)


def _secret(value: object) -> object:
    if isinstance(value, str) and not value.startswith(("env:", "file:")):
        raise ValueError("a secret is written by reference only: 'env:NAME' or 'file:PATH'")
    return value


def _decimal(value: object) -> object:
    if isinstance(value, float):
        raise ValueError('write money in quotes, like "0.05": a float is not exact')
    text = str(value)
    try:
        pico_per_token(text)
    except TwolaneError as error:
        raise ValueError(str(error)) from None
    return text


def _amount(value: object) -> object:
    if isinstance(value, float):
        raise ValueError('write money in quotes, like "0.05": a float is not exact')
    try:
        Money.parse(str(value))
    except TwolaneError as error:
        raise ValueError(str(error)) from None
    return str(value)


def _joules(value: object) -> object:
    if not re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,6})?", str(value)) or isinstance(value, float):
        raise ValueError('write joules in quotes, like "0.35", with at most six places')
    return str(value)


def _cron(value: object) -> object:
    return check_cron(value) if isinstance(value, str) else value


def _seconds(value: object) -> object:
    if isinstance(value, bool | float):
        raise ValueError('write seconds as a whole number, or in quotes, like "1.5"')
    try:
        read_seconds(str(value))
    except TwolaneError as error:
        raise ValueError(str(error)) from None
    return str(value)


def _size(value: object) -> object:
    match = _SIZE.fullmatch(str(value).strip().upper())
    if match is None or float(match[1]) <= 0:
        raise ValueError('write a size like "2 GB" or "500 MB"')
    return str(value)


def size_bytes(size: str) -> int:
    """A size in bytes."""
    match = _SIZE.fullmatch(size.strip().upper())
    assert match is not None, "checked when it was read"
    return int(float(match[1]) * _UNITS[match[2]])


SecretRef = Annotated[str, BeforeValidator(_secret)]
PerMillion = Annotated[str, BeforeValidator(_decimal)]
Amount = Annotated[str, BeforeValidator(_amount)]
Joules = Annotated[str, BeforeValidator(_joules)]
Seconds = Annotated[str, BeforeValidator(_seconds)]
Size = Annotated[str, BeforeValidator(_size)]
Cron = Annotated[str, BeforeValidator(_cron)]


def has_password(address: str) -> bool:
    """Whether an address holds one in the clear."""
    user = address.partition("://")[2].partition("/")[0].rpartition("@")[0]
    return ":" in user or re.search(r"[?&](?:ssl)?password=", address) is not None


def near(name: str, known: Mapping[str, object] | list[str]) -> str:
    """ "; did you mean …?" with the nearest known name, or the names there are."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; there are: {', '.join(sorted(known))}" if known else ""


def resolve_secret(reference: str) -> str:
    """The secret behind `env:NAME` or `file:PATH`.

    Raises:
        ConfigError: the variable is not set, or the file cannot be read. The message never holds a secret.
    """
    kind, _, name = reference.partition(":")
    if kind == "env":
        value = os.environ.get(name, "").strip()
        if not value:
            raise ConfigError(f"the environment variable {name} is not set", hint=f"export {name}=… and start again")
        return value
    try:
        value = Path(name).expanduser().read_text(encoding="utf-8").strip()
    except OSError as error:
        raise ConfigError(f"the secret file {name} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"the secret file {name} is not text") from None
    if not value:
        raise ConfigError(f"the secret file {name} is empty")
    return value
