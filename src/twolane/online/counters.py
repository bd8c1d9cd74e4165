"""What servers tell about themselves: vLLM, llama.cpp and load kits, each by its own page. Their quirks stay here.

No model is called: these are the pages an operator's monitoring reads, on the upstream's own origin.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from dataclasses import dataclass
from http.client import HTTPException
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, ProxyHandler, Request, build_opener

import orjson

from twolane.rules.probing import Load

_MAX_BYTES = 4 * 1024 * 1024
_PATIENCE_S = 3.0
_RUNNING = re.compile(rb"^vllm:num_requests_running(?:\{[^}]*\})? +([0-9.eE+]+)", re.MULTILINE)


def read_vllm(page: bytes) -> Load | None:
    """`/metrics` of vLLM: the gauge of running requests, added up over models and engines."""
    values = [float(value) for value in _RUNNING.findall(page)]
    return Load(int(sum(values))) if values else None


def read_llama_cpp(page: bytes) -> Load | None:
    """`/slots` of llama.cpp: `is_processing`, in older releases `state` 1."""
    slots = _json(page)
    if not isinstance(slots, list) or not slots or not all(isinstance(slot, dict) for slot in slots):
        return None
    return Load(sum(bool(slot.get("is_processing", slot.get("state") == 1)) for slot in slots))


def read_stats(page: bytes) -> Load | None:
    """`/stats` of a load kit's mock: `active`, and where it counts them `tokens_after_hangup`."""
    stats = _json(page)
    if not isinstance(stats, dict) or type(stats.get("active")) is not int:
        return None
    wasted = stats.get("tokens_after_hangup")
    return Load(stats["active"], wasted if type(wasted) is int else None)


_PAGES: tuple[tuple[str, Callable[[bytes], Load | None]], ...] = (
    ("/metrics", read_vllm),
    ("/slots", read_llama_cpp),
    ("/stats", read_stats),
)


@dataclass(frozen=True, slots=True)
class Silent:
    """No counters, and why."""

    reason: str


class Counters:
    """One server's counters: `find` once, then `read` as often as wanted."""

    def __init__(self, url: str, key: str | None) -> None:
        parts = urlsplit(url)
        # The server's own pages lie at its root, beside /v1.
        self._base = f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/').removesuffix('/v1')}"
        self._headers = {"authorization": f"Bearer {key}"} if key else {}
        self._page: tuple[str, Callable[[bytes], Load | None]] | None = None

    async def find(self) -> Load | Silent:
        """The server's load, from the first page that tells it; or why none does."""
        for path, reader in _PAGES:
            page = await self._get(path)
            load = reader(page) if page is not None else None
            if load is not None:
                self._page = path, reader
                return load
        if await self._get("/api/ps") is not None:
            return Silent("Ollama tells which models are loaded (/api/ps), not what is running")
        return Silent("it shows no counters: no vllm:num_requests_running in /metrics, no /slots")

    async def read(self) -> Load | None:
        """The load now; None where the page cannot be read this time."""
        assert self._page is not None, "find comes first"
        path, reader = self._page
        page = await self._get(path)
        return reader(page) if page is not None else None

    async def _get(self, path: str) -> bytes | None:
        request = Request(self._base + path, headers=self._headers)  # noqa: S310 - the configuration allows http(s) alone
        return await asyncio.to_thread(_fetch, request)


class _NoRedirect(HTTPRedirectHandler):
    """A key never leaves for another origin."""

    def redirect_request(self, *_: object) -> None:
        """Follow nothing."""


_OPENER = build_opener(ProxyHandler({}), _NoRedirect)


def _fetch(request: Request) -> bytes | None:
    try:
        with _OPENER.open(request, timeout=_PATIENCE_S) as response:
            page: bytes = response.read(_MAX_BYTES + 1)
            return page if response.status == 200 and len(page) <= _MAX_BYTES else None
    except (OSError, ValueError, HTTPException):
        return None


def _json(page: bytes) -> object:
    try:
        return orjson.loads(page)
    except orjson.JSONDecodeError:
        return None
