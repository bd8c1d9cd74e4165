"""One client's connection, as far as it differs from uvicorn's."""

from __future__ import annotations

from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from twolane.online.patience import Patience


class Connection(HttpToolsProtocol):
    """uvicorn's connection, which tells when its client stops taking what is sent, and can be left at once."""

    def __init__(self, patience: Patience, **options: Any) -> None:  # Any: uvicorn's, passed through
        super().__init__(**options)
        self._patience = patience

    def pause_writing(self) -> None:
        """Too much waits to be taken."""
        super().pause_writing()
        self._patience.stalled(self)

    def resume_writing(self) -> None:
        """It was taken."""
        super().resume_writing()
        self._patience.moved(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """It is gone, whoever ended it."""
        self._patience.moved(self)
        super().connection_lost(exc)

    def give_up(self) -> None:
        """Leave the client: to close would wait until it has taken everything. Who answers it hears of a hang-up."""
        self._patience.moved(self)
        self.transport.abort()

    def end_after_answer(self) -> None:
        """Take no further request after the one that is being answered. Where none is, the next one is turned away."""
        cycle: RequestResponseCycle | None = self.cycle  # None before the first request, whatever its type says
        if cycle is not None and not cycle.response_complete:
            cycle.keep_alive = False
