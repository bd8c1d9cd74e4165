"""Processes that call plain functions of the user's, so that a call can be ended whatever it does.

A process imports the function's module, answers calls one after another, and stays for the next one; one whose call is
cancelled or takes too long is killed with all it started. It ends by itself when this process does, even by kill -9:
it reads its input in a thread, and the end of it is its own. Frames are JSON with a length before it, never pickles.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import importlib.util
import json
import os
import queue
import signal
import struct
import sys
import threading
import typing
from collections.abc import Callable
from typing import Any, BinaryIO

from pydantic import TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError

from twolane.errors import TwolaneError

MAX_FRAME = 16 * 1024 * 1024
START_S = 60.0
"""How long a process may take to import the function's module."""
_LENGTH = struct.Struct("!I")
_MAIN = "__twolane_main__"


class Broken(TwolaneError):
    """A tool's call brought no answer. `public` is what the ledger may say of it: no words of the tool's own.
    `is_reply`: it answered, with something else than it says."""

    def __init__(self, problem: str, public: str, is_reply: bool = False) -> None:
        self.public, self.is_reply = public, is_reply
        super().__init__(problem)


class Processes:
    """The processes of one worker, made when they are needed: at most as many as there are cores."""

    def __init__(self) -> None:
        self._idle: list[asyncio.subprocess.Process] = []
        self._places = asyncio.Semaphore(os.cpu_count() or 1)

    async def call(
        self, function: Callable[..., Any], arguments: bytes, *, timeout_s: float, begun: Callable[[], None]
    ) -> bytes:
        """Call `function` with a JSON object of its arguments; its answer as JSON. `begun` is told when it begins.

        Raises:
            Broken: it raised, did not end in time, took its process with it, or could not be imported.
        """
        async with self._places:
            process = self._idle.pop() if self._idle else await self._start()
            is_sound = False
            try:
                answer = await self._ask(process, function, arguments, timeout_s=timeout_s, begun=begun)
                is_sound = True
            except Broken as error:
                is_sound = process.returncode is None and not isinstance(error.__cause__, EOFError | TimeoutError)
                raise
            finally:
                if is_sound:
                    self._idle.append(process)
                else:
                    _kill(process)
                    await asyncio.shield(process.wait())
            return answer

    async def aclose(self) -> None:
        """End every process that waits for a call."""
        while self._idle:
            process = self._idle.pop()
            _kill(process)
            await process.wait()

    async def _start(self) -> asyncio.subprocess.Process:
        # A session of its own: what it starts is killed with it, and a Ctrl-C at the terminal is not its.
        return await asyncio.create_subprocess_exec(
            sys.executable, "-c", _CHILD, json.dumps(sys.path),
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, start_new_session=True,
        )  # fmt: skip

    async def _ask(
        self,
        process: asyncio.subprocess.Process,
        function: Callable[..., Any],
        arguments: bytes,
        *,
        timeout_s: float,
        begun: Callable[[], None],
    ) -> bytes:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(_frame(json.dumps(_name(function)).encode()) + _frame(arguments))
            await process.stdin.drain()
            async with asyncio.timeout(START_S):
                kind, told = await _read(process.stdout)
            if kind == b"B":
                begun()
                async with asyncio.timeout(timeout_s):
                    kind, told = await _read(process.stdout)
        except TimeoutError as error:
            late = f"did not end within {timeout_s:g} s"
            raise Broken(late, late) from error
        except (EOFError, ConnectionError) as error:
            raise Broken("took its process with it", "took its process with it") from EOFError(str(error))
        if kind == b"A":
            return told
        public, _, problem = told.decode(errors="replace").partition("\n")
        raise Broken(problem, public, kind == b"T")


def _name(function: Callable[..., Any]) -> list[str]:
    """Where a process finds the function: module, name in it, and the file where it is the main program's."""
    path = ""
    if function.__module__ == "__main__":
        path = str(getattr(sys.modules["__main__"], "__file__", "") or "")
        if not path:
            raise Broken("stands in a program that has no file: put it into a module", "cannot be imported")
    return [function.__module__, function.__qualname__, path]


async def _read(stream: asyncio.StreamReader) -> tuple[bytes, bytes]:
    (length,) = _LENGTH.unpack(await stream.readexactly(_LENGTH.size))
    body = await stream.readexactly(length)
    return body[:1], body[1:]


def _frame(body: bytes) -> bytes:
    if len(body) > MAX_FRAME:
        raise Broken(f"was given {len(body):,} bytes, of which {MAX_FRAME:,} are taken", "was given too much")
    return _LENGTH.pack(len(body)) + body


def _kill(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


# ── in the process ──

_CHILD = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from twolane.batch.processes import serve; serve()"


def serve() -> None:
    """Answer calls until the input ends. What a tool prints goes to standard error."""
    calls, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    frames: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(calls, frames), daemon=True).start()
    while True:
        name, arguments = json.loads(frames.get()), frames.get()
        _send(answers, *_answer(name, arguments, lambda: _send(answers, b"B", b"")))


def _receive(calls: BinaryIO, frames: queue.SimpleQueue[bytes]) -> None:
    while len(head := calls.read(_LENGTH.size)) == _LENGTH.size:
        frames.put(calls.read(_LENGTH.unpack(head)[0]))
    os.killpg(0, signal.SIGKILL)  # whoever asked is gone; what runs here, and what it started, ends with it


def _send(answers: BinaryIO, kind: bytes, body: bytes) -> None:
    answers.write(_LENGTH.pack(1 + len(body)) + kind + body)
    answers.flush()


def _answer(name: list[str], arguments: bytes, begun: Callable[[], None]) -> tuple[bytes, bytes]:
    """`A` with the answer; `T` where it is not what the function says, `F` where it failed: a public line, then all."""
    try:
        function = _import(*name)
        hints = typing.get_type_hints(function)
        returns = TypeAdapter(hints.pop("return"))
        given = {key: TypeAdapter(hints[key]).validate_python(value) for key, value in json.loads(arguments).items()}
    except ValidationError as error:
        return b"F", f"was given a wrong argument\nwas given a wrong argument: {error}".encode(errors="replace")
    except Exception as error:  # noqa: BLE001 - the user's module runs here: whatever it raises is told
        return b"F", f"cannot be imported\ncannot be imported: {error!r}".encode(errors="replace")
    begun()
    try:
        value = function(**given)
    except BaseException as error:  # noqa: BLE001 - also SystemExit: the process stays for the next call
        known = f"raised {type(error).__name__}"
        return b"F", f"{known}\n{known}: {error}".encode(errors="replace")
    try:
        body = returns.dump_json(value, warnings="error", by_alias=True)
    except PydanticSerializationError as error:
        problem = f"gave a wrong type\ngave something else than it says it returns: {error}"
        return b"T", problem.encode(errors="replace")
    if len(body) >= MAX_FRAME:
        return b"T", f"gave too much\ngave {len(body):,} bytes, of which {MAX_FRAME:,} are taken".encode()
    return b"A", body


def _import(module: str, qualname: str, path: str) -> Callable[..., Any]:
    if path and _MAIN not in sys.modules:
        spec = importlib.util.spec_from_file_location(_MAIN, path)
        assert spec is not None
        assert spec.loader is not None
        sys.modules[_MAIN] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[_MAIN])
    found: Any = sys.modules[_MAIN] if path else importlib.import_module(module)
    for part in qualname.split("."):
        found = getattr(found, part)
    return typing.cast(Callable[..., Any], getattr(found, "function", found))  # under its name stands the tool
