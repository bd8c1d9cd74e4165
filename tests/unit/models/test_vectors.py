"""Made-up embeddings: of length 1, the same for the same text."""

from __future__ import annotations

import math
import struct

from hypothesis import given
from hypothesis import strategies as st

from twolane.models.vectors import vector_of

texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)


@given(texts | st.lists(st.integers(0, 2**31 - 1), min_size=1), st.integers(1, 200), st.integers(0, 9))
def test_a_vector_has_length_one_and_as_many_numbers_as_asked(text: object, size: int, seed: int) -> None:
    vector = vector_of(text, size, seed)
    assert len(vector) == size
    assert abs(math.hypot(*vector) - 1) < 1e-5
    assert list(struct.unpack(f"<{size}f", struct.pack(f"<{size}f", *vector))) == vector
    assert vector_of(text, size, seed) == vector


@given(texts, texts)
def test_another_text_has_another_vector(one: str, other: str) -> None:
    assert (vector_of(one, 8) == vector_of(other, 8)) == (one == other)
