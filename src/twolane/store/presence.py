"""Who is alive? On one host a held file lock proves life: the kernel lets go of it the moment a process dies."""

from __future__ import annotations

import fcntl
import os
import secrets
from pathlib import Path
from typing import IO


class Presence:
    """This process's own lock in `<store>.alive/`, and the question whether another's is still held."""

    def __init__(self, store: Path) -> None:
        self._folder = store.with_name(store.name + ".alive")
        self._folder.mkdir(mode=0o700, exist_ok=True)
        self.name = f"{os.getpid()}-{secrets.token_hex(4)}"
        self._file = self._take()
        for path in self._folder.iterdir():
            self.is_alive(path.name)

    def _take(self) -> IO[str]:
        """Our own file, locked. Somebody sweeping may take it away between its making and its locking: then again."""
        while True:
            file = open(self._folder / self.name, "w")  # noqa: SIM115 - held as long as the process lives
            fcntl.flock(file, fcntl.LOCK_EX)
            try:
                if os.path.samestat(os.fstat(file.fileno()), os.stat(self._folder / self.name)):
                    return file
            except FileNotFoundError:
                pass
            file.close()

    def is_alive(self, name: str) -> bool:
        """True while the process that took this name runs; nobody is no name. The files of the dead are swept away."""
        if name == self.name or not name:
            return bool(name)
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
        """Say goodbye."""
        Path(self._file.name).unlink(missing_ok=True)
        self._file.close()
