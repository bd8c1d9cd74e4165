"""The hundred thousand of the promise: replies that are wrong by construction, none of which is accepted."""

from __future__ import annotations

import pytest
from tests.unit.domain import corrupted

from twolane.domain.schema import judge


@pytest.mark.long
@pytest.mark.timeout(600)
def test_of_a_hundred_thousand_corrupted_replies_none_is_accepted() -> None:
    """Measured: 11 s on one of two shared cores."""
    corruption = corrupted.Corruption(seed=8, count=100_000)
    accepted = [text for text in corruption if judge(text, corrupted.Report, [corrupted.SOURCE]).value is not None]
    assert accepted == []
    assert sum(corruption.kinds.values()) == 100_000
    assert min(corruption.kinds.values()) >= 50, corruption.kinds
