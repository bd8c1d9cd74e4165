"""Kill switches: a durable row is the truth, and whatever runs under its scope is closed at once.

A trip is written to the store first, then closes what runs here; other processes see the row within `POLL_S`, because
each polls the store's version while it has running steps. Nothing restarts by itself: only a person resets a switch.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

from twolane.errors import SwitchTripped
from twolane.kernel import ledger
from twolane.store import Store, Transaction

POLL_S = 0.01
"""How often what other processes did is looked at while steps run here. Half of `store.FRESH_S`: while a gateway is at
work, no request has to look by itself."""

_LOG = logging.getLogger("twolane.kernel")


class Switches:
    """The switches of one store, as one process sees them."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._epoch = -1
        self._tripped: dict[str, str] = {}
        self._running: dict[str, tuple[Sequence[str], Callable[[str, str], None]]] = {}
        self._poller: asyncio.Task[None] | None = None

    def check(self, scopes: Sequence[str]) -> None:
        """Say no before anything is spent.

        Raises:
            SwitchTripped: one of the scopes is stopped.
        """
        self._refresh()
        for scope in scopes if self._tripped else ():
            if scope in self._tripped:
                raise SwitchTripped(scope, self._tripped[scope])

    def started(self, step: str, scopes: Sequence[str], close: Callable[[str, str], None]) -> None:
        """A step runs: `close(scope, cause)` is called, once and without an await, when a switch of its scopes
        trips."""
        self._running[step] = (scopes, close)
        if self._poller is None or self._poller.done():
            self._poller = asyncio.get_running_loop().create_task(self._poll())

    def ended(self, step: str) -> None:
        """The step is over."""
        self._running.pop(step, None)

    async def trip(self, scope: str, *, cause: str, actor: str) -> int:
        """Stop a scope: the row and its entry are on disk before this returns, and what runs here is closed.
        Tripping it again changes nothing. Gives the number of steps closed in this process."""

        def write(tx: Transaction) -> None:
            if tx.run("trip", scope=scope, cause=cause, actor=actor, tripped=ledger.now_us()):
                tx.cache.pop("tripped", None)
                ledger.append(tx, _entry("trip", scope, cause, actor))

        await self._store.write(write)
        self._refresh()
        return self._close_tripped()

    async def reset(self, scope: str, *, cause: str, actor: str) -> bool:
        """Let a scope work again; False where it was not stopped."""

        def write(tx: Transaction) -> bool:
            if not tx.run("reset", scope=scope):
                return False
            tx.cache.pop("tripped", None)
            ledger.append(tx, _entry("reset", scope, cause, actor))
            return True

        was_tripped = await self._store.write(write)
        self._refresh()
        return was_tripped

    def close(self) -> None:
        """Stop polling."""
        if self._poller is not None:
            self._poller.cancel()

    def _refresh(self) -> None:
        epoch = self._store.epoch()
        if epoch != self._epoch:
            self._tripped = {row["scope"]: row["cause"] for row in self._store.all("switches")}
            self._epoch = epoch

    def _close_tripped(self) -> int:
        closed = 0
        for step, (scopes, close) in list(self._running.items()) if self._tripped else ():
            scope = next((scope for scope in self._tripped if scope in scopes), None)
            if scope is not None:
                self._running.pop(step, None)
                close(scope, self._tripped[scope])
                closed += 1
        return closed

    async def _poll(self) -> None:
        while self._running:
            try:
                self._refresh()
                self._close_tripped()
            except Exception:  # noqa: BLE001 - what runs must stay within reach: look again at the next turn
                _LOG.exception("the switches could not be read; trying again")
            await asyncio.sleep(POLL_S)


def tripped_in(tx: Transaction, scopes: Sequence[str]) -> SwitchTripped | None:
    """The same check inside a reservation's transaction, where the row cannot be missed."""
    tripped: dict[str, str] | None = tx.cache.get("tripped")
    if tripped is None:
        tripped = tx.cache["tripped"] = {row["scope"]: row["cause"] for row in tx.all("switches")}
    if tripped:
        for scope, cause in tripped.items():
            if scope in scopes:
                return SwitchTripped(scope, cause)
    return None


def _entry(kind: str, scope: str, cause: str, actor: str) -> dict[str, object]:
    run = scope.removeprefix("run:") if scope.startswith("run:") else None
    return {
        "v": 1,
        "kind": kind,
        "scope": scope,
        "cause": cause[:500],
        "actor": actor,
        "run": run,
        "at_us": ledger.now_us(),
    }
