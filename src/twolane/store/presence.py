"""Who is alive? Every process that takes part has a row whose beat it advances; a beat that stands still is a death.

No wall clocks are compared. A process counts its *own* beats: another whose beat was the same through `DEAD_BEATS` of
them is dead or frozen. One that is frozen itself counts nothing, nor does one whose beats do not get through. On one
host a held file lock proves life besides: the kernel lets go of it the moment a process dies.

A process that is taken for dead may only be asleep. So whoever acts on a death deletes its row in the transaction that
acts (`bury`), and a process without its row commits nothing any more (`Store.fence`). It knows early: when its own beat
was not written for `LOST_BEATS`, sooner than anybody can bury it, it `is_lost`.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import secrets
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import IO, NamedTuple

from twolane.errors import Fenced, StoreError
from twolane.store import Store, unwaited

BEAT_S = 1.0
DEAD_BEATS = 5
LOST_BEATS = 3
STILL_BEATS = 15
"""So long may the event loop stand still before the log says where."""

_LOG = logging.getLogger("twolane.store")


class _Seen(NamedTuple):
    beat: int
    looks: int
    """Own beats in a row that found it at that beat."""


class Presence:
    """This process among those of a store. Made by `Presence.open`, ended by `leave`, then `close`."""

    def __init__(self, store: Store, name: str, locks: Locks | None, beat_s: float) -> None:
        self.name = name
        """Unique to this start of this process."""
        self._store, self._locks, self._beat_s = store, locks, beat_s
        self._seen: dict[str, _Seen] = {}
        self._told: set[str] = set()
        self._written = time.monotonic()
        self._is_buried = self._was_lost = False
        self._turns = 0
        """Of the event loop, as it ticks."""
        self._loop_thread = threading.get_ident()
        self._leaving = threading.Event()
        self._thread: threading.Thread | None = None
        self._ticker: asyncio.Task[None] | None = None
        self.on_lost: Callable[[], None] = lambda: None
        """Called on the event loop each time this process becomes lost: whatever it has under way should stop."""
        self.on_death: Callable[[list[str]], None] = lambda names: None
        """Called on the event loop with the processes that are found dead, once for each."""

    @classmethod
    async def open(
        cls, store: Store, *, locks: Path | None, takes_part: bool = True, beat_s: float = BEAT_S
    ) -> Presence:
        """Be there from now on. `locks` is the folder of the file locks, where all processes are on one host. Who only
        looks does not take part: it owns nothing, so nobody needs to know of it.

        Raises:
            StoreError: the row cannot be written.
        """
        name = f"{os.getpid()}-{secrets.token_hex(6)}"
        self = cls(store, name, Locks(locks, name) if locks is not None else None, beat_s)
        if takes_part:
            host = socket.gethostname()
            try:
                await store.write(lambda tx: tx.run("add_process", name=name, host=host))
            except BaseException:
                self.close()
                raise
            store.fence(name)
            self._written = time.monotonic()
            self._thread = threading.Thread(target=self._beat_on, name="twolane-beat", daemon=True)
            self._thread.start()
            self._ticker = asyncio.get_running_loop().create_task(self._tick())
        return self

    @property
    def is_lost(self) -> bool:
        """True while this process cannot be sure that it still counts as alive: its beat was not written for
        `LOST_BEATS`, or its row is gone, which is for ever."""
        is_silent = self._thread is not None and time.monotonic() - self._written > LOST_BEATS * self._beat_s
        return self._is_buried or is_silent

    @property
    def is_buried(self) -> bool:
        """True once this process knows that it was taken for dead: it can only start again."""
        return self._is_buried

    def check(self) -> None:
        """Say no while this process `is_lost`: whatever it begins now may be another's. Costs a look at a clock.

        Raises:
            Fenced: it was buried.
            StoreError: its beat could not be written; it may go on once one is.
        """
        if self._is_buried:
            raise Fenced
        if self.is_lost:
            raise StoreError(
                "this process could not write to its store for so long that others may take it for dead: nothing new "
                "begins until it can. See that the store can be written"
            )

    def is_alive(self, name: str) -> bool:
        """False where the process that took this name is dead, frozen or buried; nobody is no name. Whoever acts on
        that buries it first.

        Raises:
            StoreError: its row cannot be read.
        """
        if name == self.name or not name:
            return bool(name)
        if self._locks is not None and not self._locks.is_held(name):
            return False
        if self._store.one("process", name=name) is None:
            return False
        seen = self._seen.get(name)
        return seen is None or seen.looks < DEAD_BEATS

    async def bury(self, name: str) -> None:
        """Nothing that this process does is committed from now on, should it still live. For what one transaction does
        about a death, the query `bury` in that transaction is the same."""
        await self._store.write(lambda tx: tx.run("bury", name=name))

    def leave(self) -> None:
        """Say goodbye: the last message to the writer. Before the store is closed."""
        if self._thread is None or self._ticker is None:
            return
        self._ticker.cancel()
        self._leaving.set()
        self._thread.join(LOST_BEATS * self._beat_s)
        self._store.submit(lambda tx: tx.run("bury", name=self.name)).add_done_callback(unwaited)

    def close(self) -> None:
        """Let go of the lock. After the store was closed: what is on its way to the disk is still a living one's."""
        if self._locks is not None:
            self._locks.close()

    # ── in the beat's own thread ──

    def _beat_on(self) -> None:
        turns, still = 0, 0
        while not self._leaving.wait(self._beat_s):
            turns, still = self._turns, still + 1 if turns == self._turns else 0
            if still == STILL_BEATS:
                self._tell_still()
            began = time.monotonic()
            try:
                beats = self._store.beat(self.name, patience_s=LOST_BEATS * self._beat_s)
            except StoreError as error:
                if not self.is_lost:
                    _LOG.warning("the beat of this process could not be written: %s", error)
                continue
            if self.name not in beats:
                self._is_buried = True
                return
            self._seen = {name: self._look(name, beat) for name, beat in beats.items() if name != self.name}
            self._written = began

    def _tell_still(self) -> None:
        frame = sys._current_frames().get(self._loop_thread)
        where = " < ".join(
            f"{each.name} ({each.filename}:{each.lineno})" for each in reversed(traceback.extract_stack(frame, limit=4))
        )
        _LOG.error(
            "this process has stood still for %g s in %s: it answers nobody and begins nothing until that returns. "
            "What computes for long belongs into a tool, which runs in a process of its own",
            STILL_BEATS * self._beat_s,
            where,
        )

    def _look(self, name: str, beat: int) -> _Seen:
        before = self._seen.get(name)
        return _Seen(beat, before.looks + 1 if before is not None and before.beat == beat else 0)

    # ── on the event loop ──

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(self._beat_s / 2)
            self._turns += 1
            is_lost = self.is_lost
            if is_lost and not self._was_lost:
                _LOG.error("this process can no longer tell others that it lives: what it has under way is stopped")
                self.on_lost()
            self._was_lost = is_lost
            seen = self._seen
            self._told &= seen.keys()
            dead = [name for name, each in seen.items() if each.looks >= DEAD_BEATS and name not in self._told]
            if dead:
                self._told.update(dead)
                self.on_death(dead)


class Locks:
    """A lock of this process in a folder, and the question whether another's is still held."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder, self._name = folder, name
        self._folder.mkdir(mode=0o700, exist_ok=True)
        self._file = self._take()
        for path in self._folder.iterdir():
            if path.name != name:
                self.is_held(path.name)

    def _take(self) -> IO[str]:
        """Our own file, locked. Somebody sweeping may take it away between its making and its locking: then again."""
        while True:
            file = open(self._folder / self._name, "w")  # noqa: SIM115 - held as long as the process lives
            fcntl.flock(file, fcntl.LOCK_EX)
            try:
                if os.path.samestat(os.fstat(file.fileno()), os.stat(self._folder / self._name)):
                    return file
            except FileNotFoundError:
                pass
            file.close()

    def is_held(self, name: str) -> bool:
        """True while the process that took this name runs, or is frozen. The files of the dead are swept away."""
        path = self._folder / name
        try:
            with open(path, "r+") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink(missing_ok=True)  # while we hold it: see `_take`
        except FileNotFoundError:
            return False
        except BlockingIOError:
            return True
        return False

    def close(self) -> None:
        """Let go."""
        Path(self._file.name).unlink(missing_ok=True)
        self._file.close()
