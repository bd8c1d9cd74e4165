"""What leaves on a client's connection, and in how many pieces."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from twolane.online.connection import _HeadAndBody

HEAD = b"HTTP/1.1 200 OK\r\n\r\n"


class Wire:
    """A transport that keeps what was written, piece by piece."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []

    def write(self, data: bytes) -> None:
        self.pieces.append(data)

    def close(self) -> None:
        self.pieces.append(b"closed")


@pytest.fixture
async def wire() -> Wire:
    return Wire()


@pytest.fixture
async def transport(wire: Wire) -> _HeadAndBody:
    return _HeadAndBody(cast(Any, wire), asyncio.get_running_loop())


async def test_a_head_leaves_with_the_first_words_and_each_later_block_at_once(
    wire: Wire, transport: _HeadAndBody
) -> None:
    for piece in (HEAD, b"one", b"two"):
        transport.write(piece)
    assert wire.pieces == [HEAD + b"one", b"two"]
    await asyncio.sleep(0)
    assert wire.pieces == [HEAD + b"one", b"two"]


async def test_a_head_that_nothing_follows_leaves_at_the_end_of_the_turn(wire: Wire, transport: _HeadAndBody) -> None:
    transport.write(HEAD)
    assert wire.pieces == []
    await asyncio.sleep(0)
    assert wire.pieces == [HEAD]


async def test_a_head_is_sent_before_its_connection_closes(wire: Wire, transport: _HeadAndBody) -> None:
    transport.write(HEAD)
    transport.close()
    assert wire.pieces == [HEAD, b"closed"]
