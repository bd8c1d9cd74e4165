"""How long an upstream may say nothing: one timer for all calls of a process, since one armed and disarmed for each of
them, and again for each of its blocks, was a tenth of the door's time."""

from __future__ import annotations

import asyncio
import math
from types import TracebackType


class Watch:
    """The timer. It is armed for the earliest moment at which somebody's patience may end, and looks again then."""

    def __init__(self) -> None:
        self._patiences: set[Patience] = set()
        self._armed_for = math.inf
        self._handle: asyncio.TimerHandle | None = None

    def patience(self) -> Patience:
        """Patience of the task that enters it. Nothing is waited for yet."""
        return Patience(self, asyncio.get_running_loop())

    def enter(self, patience: Patience) -> None:
        """Look after it."""
        self._patiences.add(patience)

    def leave(self, patience: Patience) -> None:
        """No longer."""
        self._patiences.discard(patience)

    def until(self, due: float, loop: asyncio.AbstractEventLoop) -> None:
        """Somebody waits until then."""
        if due < self._armed_for:
            if self._handle is not None:
                self._handle.cancel()
            self._armed_for, self._handle = due, loop.call_at(due, self._look, loop)

    def close(self) -> None:
        """Look no more."""
        if self._handle is not None:
            self._handle.cancel()
        self._armed_for, self._handle = math.inf, None

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        self._armed_for, self._handle = math.inf, None
        now = loop.time()
        for patience in [each for each in self._patiences if each.due <= now]:
            patience.end()
        self.until(min((each.due for each in self._patiences), default=math.inf), loop)


class Patience:
    """While open, ends the task's waiting with TimeoutError when it takes too long, as `asyncio.timeout` does. What is
    not waited for between `begins` and `ends` (a slow reader) takes as long as it takes."""

    __slots__ = ("_before", "_is_struck", "_loop", "_task", "_watch", "due")

    def __init__(self, watch: Watch, loop: asyncio.AbstractEventLoop) -> None:
        self.due = math.inf
        self._watch, self._loop = watch, loop
        self._task: asyncio.Task[object] | None = None
        self._before, self._is_struck = 0, False

    def __enter__(self) -> Patience:
        self._task = asyncio.current_task()
        self._before = self._task.cancelling() if self._task is not None else 0
        self._watch.enter(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._watch.leave(self)
        if self._is_struck and self._task is not None:
            is_ours = self._task.uncancel() <= self._before
            if is_ours and kind is not None and issubclass(kind, asyncio.CancelledError):
                raise TimeoutError from error

    def begins(self, patience_s: float, cut_at: float = math.inf) -> float:
        """The upstream is waited for from now on, at most until `cut_at` on the loop's clock. That clock's now."""
        now = self._loop.time()
        due = now + patience_s
        self.due = due = min(cut_at, due)
        self._watch.until(due, self._loop)
        return now

    def ends(self) -> None:
        """It spoke."""
        self.due = math.inf

    @property
    def is_waiting(self) -> bool:
        """The upstream is waited for."""
        return self.due < math.inf

    def end(self) -> None:
        """It took too long."""
        self.due, self._is_struck = math.inf, True
        if self._task is not None:
            self._task.cancel()
