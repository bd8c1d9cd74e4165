"""Who is alive? On one host a held file lock proves life: the kernel lets go of it the moment a process dies."""

from __future__ import annotations

import fcntl
import os
import secrets
from pathlib import Path


class Presence:
    """This process's own lock in `<store>.alive/`, and the question whether another's is still held."""

    def __init__(self, store: Path) -> None:
        self._folder = store.with_name(store.name + ".alive")
        self._folder.mkdir(mode=0o700, exist_ok=True)
        self.name = f"{os.getpid()}-{secrets.token_hex(4)}"
        self._file = open(self._folder / self.name, "w")  # noqa: SIM115 - held as long as the process lives
        fcntl.flock(self._file, fcntl.LOCK_EX)

    def is_alive(self, name: str) -> bool:
        """True while the process that took this name runs. The files of the dead are swept away."""
        if name == self.name:
            return True
        path = self._folder / name
        try:
            with open(path, "r+") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except BlockingIOError:
            return True
        path.unlink(missing_ok=True)
        return False

    def close(self) -> None:
        """Say goodbye."""
        Path(self._file.name).unlink(missing_ok=True)
        self._file.close()
