"""The one door: every model call of either lane passes through `Door.step`.

    switch check → upper bound → reserve on the whole chain → lane slot → the upstream's stream, chunk by chunk
    … and at the end, whatever the end was: settle + append, one message to the writer and no await.

An attempt that left the house is one row of `trace_steps`, with its tokens, time and cost, even when it failed. Further
attempts (retries, then fallbacks) are made only before the first byte has reached the caller: `kernel.attempt`. What
the caller holds while a step runs is an `Answer`: `kernel.answer`.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager

from twolane.domain.records import Status
from twolane.kernel import ledger, treasury
from twolane.kernel.answer import Answer, Settled
from twolane.kernel.attempt import Attempt, House
from twolane.kernel.request import Request, Upstream, identity, new_id
from twolane.store import Transaction

__all__ = ["Answer", "Door", "House", "Request", "Settled", "Upstream", "new_id"]


class Door:
    """The door of one kernel."""

    def __init__(self, house: House) -> None:
        self._house = house

    def step(self, request: Request) -> AbstractAsyncContextManager[Answer]:
        """Make one call; the body reads the answer. When the body ends, so does the step.

        Raises:
            Refused: a switch, a budget or a full lane said no; nothing was called.
            UpstreamError: every attempt failed before its first byte, or the last one broke off.
            Killed: a switch closed it while it ran.
        """
        return Attempt(self._house, request)

    def close(self) -> None:
        """Nobody waits any more."""
        self._house.watch.close()

    def reuse(
        self, tx: Transaction, request: Request, *, of_step: str, output_digest: str, saved_pico: int | None = None
    ) -> Mapping[str, object]:
        """Record that a memo answered: an entry that points at the step that paid, at cost 0, and says what that one
        cost, where it is known. Gives its fields."""
        step = new_id()
        upstream = self._house.upstreams[request.route.upstreams[0]]
        fields = identity(request, upstream, step, salt=self._house.salt(request, step))
        fields |= {
            "status": Status.REUSED,
            "of": of_step,
            "cost_pico": 0,
            "saved_pico": None if saved_pico is None else treasury.leaf_amount(saved_pico),
            "currency": self._house.currency,
            "output_digest": output_digest,
            "total_us": 0,
            "at_us": ledger.now_us(),
        }
        ledger.append(tx, fields)
        treasury.count(tx, fields, pico=0)
        return fields
