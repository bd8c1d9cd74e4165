"""Limits as clients read them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from twolane.online.wire import rate_headers
from twolane.rules.rates import Told, read_limits

NUMBERS = st.none() | st.integers(0, 10**9)
SECONDS = st.none() | st.floats(0, 10**5)


@given(NUMBERS, NUMBERS, SECONDS)
def test_what_is_told_is_read_as_it_was_meant(limit: int | None, remaining: int | None, reset_s: float | None) -> None:
    for what in ("requests", "tokens"):
        headers = {
            name.decode(): value.decode() for name, value in rate_headers([Told(what, limit, remaining, reset_s)])
        }
        assert len(headers) == sum(value is not None for value in (limit, remaining, reset_s))
        if limit is None and remaining is None:
            continue
        (read,) = read_limits(headers, 0.0)
        assert (read.what, read.limit, read.remaining) == (what, limit, remaining)
        if reset_s is None:
            assert read.reset_s is None
        else:
            assert read.reset_s is not None
            assert -1e-6 <= read.reset_s - reset_s <= (0.001 if reset_s < 0.999 else 1.0) + 1e-6


def test_times_are_told_as_openai_tells_them() -> None:
    told = {
        seconds: dict(rate_headers([Told("requests", None, 1, seconds)])) for seconds in (0.0, 0.02, 1.0, 59.2, 360.0)
    }
    resets = [each[b"x-ratelimit-reset-requests"] for each in told.values()]
    assert resets == [b"0ms", b"20ms", b"1s", b"1m0s", b"6m0s"]


def test_of_nothing_nothing_is_told() -> None:
    assert rate_headers([]) == []
