"""What every protocol reads of a body."""

from __future__ import annotations

import gc

import orjson
import pytest

from twolane.errors import BadRequest
from twolane.online.wire import LARGE, read_object


def test_a_large_body_is_parsed_without_looking_for_garbage_and_only_then() -> None:
    looks: list[str] = []

    def note(phase: str, _: object) -> None:
        looks.append(phase)

    gc.callbacks.append(note)
    try:
        read_object(orjson.dumps({"input": [[1]] * LARGE}), counted=())
    finally:
        gc.callbacks.remove(note)
    assert looks.count("start") < 10, "of some thousand small lists each"
    assert gc.isenabled()
    with pytest.raises(BadRequest, match="not JSON"):
        read_object(b"[" * LARGE)
    assert gc.isenabled()
