"""What can an upstream do? Three small calls through the door, and a look at the server's own counters.

    1. a counting exercise, read to its end      → reachable, streams, usage, counts, max_tokens, rate_headers
    2. a tiny JSON Schema                        → structured
    3. the counting again, left after a moment   → stops

Each call is a step of workflow `doctor`: priced, budgeted and recorded like any other.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Literal

import orjson
from pydantic import BaseModel, ConfigDict

from twolane.config import UpstreamSection, near, resolve_secret
from twolane.domain.completion import Completion, EventError
from twolane.domain.money import decimal_string
from twolane.domain.records import Lane, Message, ModelCall, Origin, Route
from twolane.domain.schema import judge, reply_schema
from twolane.errors import NotFound, UpstreamError
from twolane.kernel import Answer, Kernel, Request, ledger
from twolane.online.counters import Counters, Silent
from twolane.rules import probing, reading
from twolane.rules.probing import Departure, Finding, Heard, Load, Verdict
from twolane.store import Store, Transaction

WORKFLOW = "doctor"
QUESTIONS = ("reachable", "streams", "usage", "counts", "max_tokens", "rate_headers", "structured", "stops")

COUNTED_TOKENS = 48
"""Of the first call."""
SCHEMA_TOKENS = 96
LONG_TOKENS = 256
"""Allowed to the third call, so that a server that goes on after a hang-up has something to go on with."""
LEAVE_AFTER = 3
"""Blocks of the third call that are read."""
WATCH_S = 15.0
"""The longest that counters are watched after the hang-up."""
LOOK_S = 0.05

_COUNT = (
    Message("system", "You do exactly what is asked, with no word before or after it."),
    Message("user", "Count from one to two hundred in English words, separated by commas. Do not stop before the end."),
)


class Ball(BaseModel):
    """What the second call asks for."""

    model_config = ConfigDict(extra="forbid")

    colour: Literal["red", "green", "blue"]
    bounces: int


@dataclass(frozen=True, slots=True)
class Probe:
    """What a probe found, and what its answered calls took. `pico` is None where the upstream is unpriced, or none was
    answered."""

    upstream: str
    model: str
    probed_us: int
    findings: tuple[Finding, ...]
    calls: int
    tokens: int
    pico: int | None

    def as_fields(self) -> dict[str, object]:
        """The same as a JSON object."""
        return {
            "upstream": self.upstream,
            "model": self.model,
            "probed": datetime.fromtimestamp(self.probed_us / 1e6, UTC).isoformat(timespec="seconds"),
            "findings": [{"what": each.what, "verdict": each.verdict, "detail": each.detail} for each in self.findings],
            "calls": self.calls,
            "tokens": self.tokens,
            "cost": None if self.pico is None else decimal_string(self.pico),
        }


@dataclass(frozen=True, slots=True)
class _Bill:
    """What the calls came to."""

    calls: int
    tokens: int
    pico: int | None

    @classmethod
    async def over(cls, answers: Sequence[Answer]) -> _Bill:
        """What the records say, once they are on disk."""
        settled = [await answer.durable() for answer in answers]
        tokens = sum(each.usage.input_tokens + each.usage.output_tokens for each in settled if each.usage)
        picos = [each.pico for each in settled if each.pico is not None]
        return cls(len(settled), tokens, sum(picos) if picos else None)


@dataclass(slots=True)
class _Listener:
    """Hears an answer block by block."""

    began: float = field(default_factory=time.monotonic)
    arrivals: list[float] = field(default_factory=list)
    events: int = 0
    completion: Completion = field(default_factory=Completion)

    def hear(self, block: bytes) -> None:
        self.arrivals.append(time.monotonic() - self.began)
        self.events += block.count(b'"delta"')
        self.completion.feed(block)

    def heard(self) -> Heard:
        whole = self.completion
        return Heard(
            arrivals_s=tuple(self.arrivals),
            events=self.events,
            text=whole.text,
            finish_reason=whole.finish_reason,
            usage=whole.usage,
            total_s=time.monotonic() - self.began,
        )


async def probe(kernel: Kernel, name: str, *, watch_s: float = WATCH_S) -> Probe:
    """Probe one upstream, and keep the answer in the store and its ledger.

    Raises:
        NotFound: there is no such upstream.
        Refused: a budget or a switch said no; nothing is kept.
    """
    section = kernel.config.upstream.get(name)
    if section is None:
        raise NotFound(f"there is no upstream {name!r}{near(name, kernel.config.upstream)}")
    answers: list[Answer] = []
    findings: list[Finding] = []
    try:
        first = await _count(kernel, name, answers, findings)
    except UpstreamError as error:
        # Clients may read this: where an upstream lives is not for them.
        why = "no connection to its url could be made" if error.is_gone else error.problem
        findings.append(Finding("reachable", Verdict.NO, why))
    else:
        findings.append(await _structured(kernel, name, answers))
        findings.append(await _stops(kernel, name, section, answers, first, watch_s))
    asked = {finding.what for finding in findings}
    findings += probing.unknown([each for each in QUESTIONS if each not in asked], "it gave no answer to judge")
    return await _keep(kernel, name, section, findings, await _Bill.over(answers))


async def _count(kernel: Kernel, name: str, answers: list[Answer], findings: list[Finding]) -> Heard:
    """The first call: most of what there is to know shows in one good answer."""
    call = ModelCall(_COUNT, model="", max_tokens=COUNTED_TOKENS, temperature=0)
    listener = _Listener()
    async with kernel.door.step(_request(name, "count", call)) as answer:
        answers.append(answer)
        headers = answer.upstream_headers
        try:
            async for block in answer:
                listener.hear(block)
        except EventError:
            raise UpstreamError(name, "its stream does not hold a completion") from None
    heard = listener.heard()
    findings += [
        Finding("reachable", Verdict.YES, f"first token after {1000 * heard.arrivals_s[0]:.0f} ms"),
        probing.judge_streaming(heard),
        probing.judge_usage(heard),
        probing.judge_counts(
            heard,
            prompt_bytes=sum(len(message.content.encode()) for message in _COUNT),
            bound_tokens=reading.input_bound(call),
        ),
        probing.judge_limit(heard, asked=COUNTED_TOKENS),
        probing.judge_rates(headers),
    ]
    return heard


async def _structured(kernel: Kernel, name: str, answers: list[Answer]) -> Finding:
    """The second call: does a reply keep to a schema?"""
    call = ModelCall(
        (Message("user", "Describe a red ball that bounces twice."),),
        model="",
        max_tokens=SCHEMA_TOKENS,
        temperature=0,
        schema=replace(reply_schema(Ball), is_judged=False),  # asked for as configured, and in no weaker way
    )
    try:
        async with kernel.door.step(_request(name, "structured", call)) as answer:
            answers.append(answer)
            completion = await answer.whole()
    except UpstreamError as error:
        return Finding("structured", Verdict.NO, error.problem)
    if completion.finish_reason == "length":
        return Finding("structured", Verdict.UNKNOWN, f"its reply was not whole after {SCHEMA_TOKENS} tokens")
    judged = judge(completion.text, Ball, ())
    if judged.value is None:
        # Only where and in what kind: the reply's own words do not belong into a record.
        where = ", ".join(sorted({problem.pointer or "/" for problem in judged.problems}))
        return Finding("structured", Verdict.NO, f"its reply does not fit the schema (at {where})")
    return Finding("structured", Verdict.YES, "its reply fits the schema")


async def _stops(
    kernel: Kernel, name: str, section: UpstreamSection, answers: list[Answer], first: Heard, watch_s: float
) -> Finding:
    """The third call: does the server stop when we leave? Only the server itself can tell."""
    if section.url is None:
        return Finding("stops", Verdict.UNKNOWN, "it is built in and has no counters to look at")
    key = resolve_secret(section.key) if section.key else None
    counters = Counters(section.url, key)
    before = await counters.find()
    if isinstance(before, Silent):
        return Finding("stops", Verdict.UNKNOWN, before.reason)
    try:
        return await _leave(kernel, name, answers, first, counters, before, watch_s)
    except UpstreamError as error:
        return Finding("stops", Verdict.UNKNOWN, f"the call that was to be left failed: {error.problem}")


async def _leave(
    kernel: Kernel,
    name: str,
    answers: list[Answer],
    first: Heard,
    counters: Counters,
    before: Load,
    watch_s: float,
) -> Finding:
    """Ask for a long answer, hang up after a moment, and watch the server until it is idle."""
    call = ModelCall(_COUNT, model="", max_tokens=LONG_TOKENS, temperature=0)
    began, blocks, during, has_left = time.monotonic(), 0, None, False
    async with kernel.door.step(_request(name, "leave", call)) as answer:
        answers.append(answer)
        async for _ in answer:
            blocks += 1
            during = during or await counters.read()
            if blocks >= LEAVE_AFTER:
                has_left = True
                break
    left = time.monotonic()
    if not has_left:
        return Finding("stops", Verdict.UNKNOWN, "its answer was whole before we could leave")
    if during is None:
        return Finding("stops", Verdict.UNKNOWN, "its counters could not be read while the call ran")
    after = await _watch(counters, before, left, watch_s)
    return probing.judge_stopping(Departure(before, during, after, rest_s=first.total_s - (left - began)))


async def _watch(counters: Counters, before: Load, left: float, watch_s: float) -> tuple[tuple[float, Load], ...]:
    """The server's load until it is as idle as before."""
    seen: list[tuple[float, Load]] = []
    while (at := time.monotonic() - left) < watch_s:
        load = await counters.read()
        if load is not None:
            seen.append((at, load))
            if load.running <= before.running:
                break
        await asyncio.sleep(LOOK_S)
    return tuple(seen)


def _request(name: str, agent: str, call: ModelCall) -> Request:
    """A step of the doctor's own workflow. It waits for a slot like any online call."""
    origin = Origin("default", workflow=WORKFLOW, agent=agent)
    return Request(origin, Lane.ONLINE, Route(name, (name,), "probed by the doctor"), call, deadline_s=30.0)


async def _keep(kernel: Kernel, name: str, section: UpstreamSection, findings: list[Finding], bill: _Bill) -> Probe:
    found = {finding.what: finding for finding in findings}
    ordered = tuple(found[what] for what in QUESTIONS)
    done = Probe(name, section.model or name, ledger.now_us(), ordered, bill.calls, bill.tokens, bill.pico)

    def work(tx: Transaction) -> None:
        tx.run(
            "add_probe",
            upstream=name,
            probed=done.probed_us,
            model=done.model,
            findings=orjson.dumps([[each.what, each.verdict, each.detail] for each in ordered]).decode(),
            calls=done.calls,
            tokens=done.tokens,
            pico=done.pico,
        )
        ledger.append(
            tx,
            {
                "v": 1,
                "kind": "probe",
                "upstream": name,
                "model": done.model,
                "findings": {each.what: str(each.verdict) for each in ordered},
                "calls": done.calls,
                "tokens": done.tokens,
                "at_us": done.probed_us,
            },
        )

    await kernel.store.write(work)
    return done


def last_probe(store: Store, name: str) -> Probe | None:
    """What the newest probe of an upstream found; None if it was never probed."""
    row = store.one("last_probe", upstream=name)
    if row is None:
        return None
    findings = tuple(Finding(what, Verdict(verdict), detail) for what, verdict, detail in orjson.loads(row["findings"]))
    return Probe(row["upstream"], row["model"], row["probed"], findings, row["calls"], row["tokens"], row["pico"])
