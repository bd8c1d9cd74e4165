"""Processes that a test begins on the command line, waits for, and leaves none of behind."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path


async def begin(stack: AsyncExitStack, folder: Path, *arguments: str) -> asyncio.subprocess.Process:
    """`twolane …` in a folder, in a group of its own, gone when the stack closes."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "twolane", *arguments, cwd=folder, stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip

    async def end() -> None:
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL)
        await process.communicate()

    stack.push_async_callback(end)
    return process


async def ended(process: asyncio.subprocess.Process) -> str:
    """What a process said, once it has ended."""
    out, _ = await asyncio.wait_for(process.communicate(), 90)
    return out.decode()


async def until(holds: Callable[[], object], *, within_s: float = 60.0) -> None:
    """Wait until something holds that other processes bring about."""
    deadline = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < deadline, "it did not come to that in time"
        await asyncio.sleep(0.005)
