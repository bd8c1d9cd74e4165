"""What a probe of an upstream shows, judged from what was measured. Unknown is an answer; a guess is not.

Seconds are counted from the moment a call left.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from twolane.domain.records import Usage

TOO_FAST_S = 0.05
"""An answer that is whole by then may have been streamed or not: nobody could tell."""
TELLING_REST_S = 0.4
"""An answer that would have ended by itself sooner than this tells nothing about a hang-up."""

_RATES = ("x-ratelimit-", "anthropic-ratelimit-", "ratelimit")


class Verdict(StrEnum):
    """What a probe says."""

    YES = "yes"
    NO = "no"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Finding:
    """One question put to an upstream, its verdict, and what it rests on, in our own words."""

    what: str
    verdict: Verdict
    detail: str


@dataclass(frozen=True, slots=True)
class Heard:
    """One answer as it arrived."""

    arrivals_s: tuple[float, ...]
    """When each block came."""
    events: int
    """How many events the blocks held; one block may hold many."""
    text: str
    finish_reason: str | None
    usage: Usage | None
    """What the upstream reported; None where it reported nothing."""
    total_s: float


@dataclass(frozen=True, slots=True)
class Load:
    """What a server says about itself at one moment; None is not told."""

    running: int
    """Generations that run."""
    tokens_for_nobody: int | None = None
    """Tokens generated after their client had left, ever since the server began."""


@dataclass(frozen=True, slots=True)
class Departure:
    """What was seen of a server around a hang-up."""

    before: Load
    """Before the call was made."""
    during: Load
    """While its answer came."""
    after: tuple[tuple[float, Load], ...]
    """From the hang-up on, in seconds since then."""
    rest_s: float
    """How long the same answer is known to go on from where it was left."""


def judge_streaming(heard: Heard) -> Finding:
    """Do events arrive as they are made, or in one lump?"""
    first, last = heard.arrivals_s[0], heard.arrivals_s[-1]
    if heard.events < 3:
        return Finding("streams", Verdict.UNKNOWN, f"its answer had {_count(heard.events, 'event')} only")
    if last - first >= max(0.1 * heard.total_s, 0.01) and len(heard.arrivals_s) >= 3:
        return Finding("streams", Verdict.YES, f"first event after {first:.2f} s, the last {last - first:.2f} s later")
    if heard.total_s < TOO_FAST_S:
        return Finding("streams", Verdict.UNKNOWN, f"all came within {1000 * heard.total_s:.0f} ms: too fast to tell")
    return Finding("streams", Verdict.NO, f"{_count(heard.events, 'event')} came in one lump after {first:.2f} s")


def judge_usage(heard: Heard) -> Finding:
    """Is usage reported in the stream?"""
    if heard.usage is None:
        return Finding("usage", Verdict.NO, "no usage in its stream: tokens are estimated from bytes, and marked so")
    return Finding("usage", Verdict.YES, f"{heard.usage.input_tokens} + {heard.usage.output_tokens} tokens")


def judge_counts(heard: Heard, *, prompt_bytes: int, bound_tokens: int) -> Finding:
    """Are the reported counts possible? `bound_tokens` is the bound that budgets held for the input: a server that
    reports more breaks what a hard budget rests on."""
    if heard.usage is None:
        return Finding("counts", Verdict.UNKNOWN, "it reports no usage")
    read, written = heard.usage.input_tokens, heard.usage.output_tokens
    said = written - (heard.usage.reasoning_tokens or 0)
    text = len(heard.text.encode())
    if read > bound_tokens:
        return Finding("counts", Verdict.NO, f"{read} input tokens, but no more than {bound_tokens} are possible")
    if read * 16 < prompt_bytes:
        return Finding("counts", Verdict.NO, f"{read} input tokens for {prompt_bytes} bytes")
    if said * 16 < text or said > text + 16:
        return Finding("counts", Verdict.NO, f"{said} output tokens for {text} bytes of text")
    return Finding("counts", Verdict.YES, f"{read} for {prompt_bytes} bytes read, {said} for {text} bytes written")


def judge_limit(heard: Heard, *, asked: int) -> Finding:
    """Is `max_tokens` honoured?"""
    written = heard.usage.output_tokens if heard.usage is not None else None
    if written is not None and written > asked:
        return Finding("max_tokens", Verdict.NO, f"{asked} were allowed, {written} came")
    if heard.finish_reason == "length" and written is not None:
        return Finding("max_tokens", Verdict.YES, f"cut after {written} of {asked}")
    if written is None and len(heard.text.encode()) > 32 * asked:
        return Finding("max_tokens", Verdict.NO, f"{asked} were allowed, {len(heard.text.encode())} bytes came")
    ended = f"its answer ended by itself ({heard.finish_reason or 'no reason given'})"
    return Finding("max_tokens", Verdict.UNKNOWN, ended if written is not None else "it reports no usage")


def judge_rates(headers: Mapping[str, str]) -> Finding:
    """Does it say how much of its rate is left, and in which headers?"""
    sent = sorted(name for name in headers if name.startswith(_RATES))
    if sent:
        return Finding("rate_headers", Verdict.YES, ", ".join(sent)[:500])
    return Finding("rate_headers", Verdict.NO, "none: its limits show only when it refuses")


def judge_stopping(seen: Departure) -> Finding:
    """Does the generation end when its client hangs up?

    A server that goes on is found out by the tokens it counts for nobody, or by being busy at least as long as the
    answer would have gone on. One that stops is idle long before.
    """
    nobody = [load.tokens_for_nobody for _, load in seen.after if load.tokens_for_nobody is not None]
    wasted = nobody[-1] - (seen.during.tokens_for_nobody or 0) if nobody else 0
    idle_s = next((at for at, load in seen.after if load.running <= seen.before.running), None)
    watched_s = seen.after[-1][0] if seen.after else 0.0
    if wasted > 2:
        went_on = f"it generated {_count(wasted, 'token')} for nobody after the hang-up"
        is_late_only = idle_s is not None and idle_s <= seen.rest_s / 2
        return Finding("stops", Verdict.YES if is_late_only else Verdict.NO, went_on)
    if seen.before.running or seen.during.running > 1:
        return Finding("stops", Verdict.UNKNOWN, "it worked for others at the same time: ask again when it is idle")
    if seen.during.running <= seen.before.running:
        return Finding("stops", Verdict.UNKNOWN, "its counters did not show the call while it ran")
    if idle_s is not None and nobody:
        return Finding("stops", Verdict.YES, f"idle {idle_s:.2f} s after the hang-up, no tokens for nobody")
    if seen.rest_s < TELLING_REST_S:
        return Finding("stops", Verdict.UNKNOWN, f"its answers are too short to tell: {seen.rest_s:.2f} s were left")
    if idle_s is None:
        if watched_s >= seen.rest_s:
            return Finding("stops", Verdict.NO, f"still busy {watched_s:.1f} s after the hang-up")
        return Finding("stops", Verdict.UNKNOWN, f"still busy when we stopped looking after {watched_s:.1f} s")
    if idle_s <= seen.rest_s / 2:
        return Finding("stops", Verdict.YES, f"idle {idle_s:.2f} s after the hang-up; {seen.rest_s:.1f} s were left")
    if idle_s >= 0.9 * seen.rest_s:
        return Finding("stops", Verdict.NO, f"busy for {idle_s:.1f} s more, as long as its answer would have taken")
    return Finding(
        "stops", Verdict.UNKNOWN, f"idle {idle_s:.2f} s after the hang-up, of {seen.rest_s:.2f} s that were left"
    )


def unknown(names: Sequence[str], reason: str) -> list[Finding]:
    """Questions that could not be put."""
    return [Finding(name, Verdict.UNKNOWN, reason) for name in names]


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'s' * (number != 1)}"
