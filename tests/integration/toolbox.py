"""Tools as users write them, in a module of their own: plain functions run in processes that import it."""

from __future__ import annotations

import asyncio
import functools
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from pydantic import BaseModel

from twolane import tool


class Vat(BaseModel):
    country: str
    percent: int


class Parcel(BaseModel):
    words: list[str]


RATES = {"PL": 23, "DE": 19}


@tool(pure=True)
def vat_of(country: str, log: Path | None = None) -> Vat:
    if log is not None:
        note(log, country)
    return Vat(country=country, percent=RATES[country])


@tool()
def stamp(log: Path, word: str) -> str:
    note(log, word)
    return f"{word} by {os.getpid()}"


@tool()
async def whisper(log: Path, word: str) -> str:
    note(log, word)
    await asyncio.sleep(0)
    return word


@tool()
def count_words(parcel: Parcel, *, least: int = 0) -> int:
    return max(least, len(parcel.words))


@tool(price="$0.01")
def dear(word: str) -> str:
    return word


@tool(timeout_s=0.5)
def stuck(log: Path) -> str:
    note(log, str(os.getpid()))
    child = subprocess.Popen(["sleep", "600"])
    note(log, str(child.pid))
    while True:
        time.sleep(0.01)


@tool(timeout_s=600)
def endless(log: Path) -> str:
    note(log, str(os.getpid()))
    while True:
        pass


@tool(timeout_s=0.1)
async def sleepy() -> str:
    await asyncio.sleep(600)
    return "never"


@tool(timeout_s=600)
async def waiting(log: Path) -> str:
    note(log, "waits")
    await asyncio.sleep(600)
    return "never"


@tool()
def wrong() -> int:
    return "seven"  # type: ignore[return-value]  # the point of it


@tool()
async def wrong_here() -> int:
    return "seven"  # type: ignore[return-value]  # the point of it


@tool()
def failing(secret: str) -> int:
    raise ValueError(secret)


@tool()
async def failing_here(secret: str) -> int:
    raise ValueError(secret)


@tool()
def dying() -> int:
    os._exit(3)


@tool()
def chatty() -> str:
    print("this is no answer")
    return "an answer"


def twice(function: Callable[[str], str]) -> Callable[[str], str]:
    @functools.wraps(function)
    def wrapper(word: str) -> str:
        return function(function(word))

    return wrapper


@tool()
@twice
def doubled(word: str) -> str:
    return f"{word}{word}"


def note(log: Path, word: str) -> None:
    with log.open("a") as file:
        file.write(word + "\n")
