"""The watchers of one process: what guards have seen, where they look, and what becomes of a verdict.

A verdict is written to the ledger with its figures, then acts on the smallest scope that fits. A *pause* ends one
stream online, sends an item to quarantine, stops a run until it is resumed, or refuses a key for `COOL_S`; it also
closes what runs there. A *kill* trips the switch of the run or key, and only a person resets it: that takes a verdict
far beyond its threshold and the word of a second guard within `AGREE_S`, or a ceiling that somebody set.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from twolane.domain.completion import Completion
from twolane.domain.records import Origin
from twolane.errors import Killed, Runaway, TwolaneError, Unavailable
from twolane.kernel import ledger
from twolane.kernel.request import Request
from twolane.kernel.switches import Switches
from twolane.rules import guards as rules
from twolane.rules.guards import DEFAULTS, Limits, Verdict
from twolane.store import Store, unwaited

K = TypeVar("K")
V = TypeVar("V")

COOL_S = 60.0
AGREE_S = 600.0
FIRST_LOOK, EVERY = 192, 32
"""Events of a stream before it is looked into at all, and between two looks."""
MOST = 10_000
"""Sources whose history is kept; the oldest are forgotten."""

_LOG = logging.getLogger("twolane.kernel")


class Guards:
    """The guards of one kernel."""

    def __init__(
        self,
        store: Store,
        switches: Switches,
        limits: Mapping[str, Limits] = DEFAULTS,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store, self._switches, self._clock = store, switches, clock
        self.limits = limits
        self._velocity = limits["cost-velocity"]
        self._histories: dict[tuple[str, str, str], rules.History] = {}
        self._ceilings: dict[str, rules.Ceiling] = {}
        self._runs: dict[str, RunWatch] = {}
        self._paused: dict[str, tuple[float, str]] = {}
        """Scopes where nothing begins, until when and why."""
        self._signals: dict[str, dict[str, float]] = {}
        """When each guard last acted on a run or key."""
        self._told: dict[tuple[str, str], None] = {}
        self._kills: set[asyncio.Task[None]] = set()

    def is_on(self, guard: str) -> bool:
        """Whether it looks at all."""
        return self.limits[guard].mode != "off"

    def run(self, run: str, tenant: str, on_pause: Callable[[Verdict], None]) -> RunWatch:
        """Watch a run that is worked on here; `on_pause` stops it."""
        watch = self._runs[run] = RunWatch(self, Origin(tenant, run=run), on_pause)
        return watch

    def forget(self, run: str) -> None:
        """It is over here."""
        self._runs.pop(run, None)
        self._ceilings.pop(f"run:{run}", None)
        for key in [key for key in self._histories if key[0] == run]:
            del self._histories[key]
        for scope in [scope for scope in self._paused if scope == f"run:{run}" or scope.startswith(f"item:{run}/")]:
            del self._paused[scope]

    # ── where they look ──

    def check(self, scopes: Sequence[str]) -> None:
        """Say no where a guard has paused one of these scopes, before anything is spent.

        Raises:
            Runaway: it was an item, which goes no further.
            Killed: it was a run, which ends here.
            Unavailable: it was a key, which may come back.
        """
        for scope in scopes if self._paused else ():
            until, why = self._paused.get(scope, (0.0, ""))
            if left_s := max(0.0, until - self._clock()):
                if scope.startswith("item:"):
                    raise Runaway("no-progress", why)
                if scope.startswith("run:"):
                    raise Killed(scope, why)
                raise Unavailable(f"{scope}: paused by a guard ({why})", code="guard_paused", retry_after_s=left_s)

    def stream(self, request: Request) -> StreamWatch:
        """What looks into the stream that answers a request."""
        return StreamWatch(self, request, self._history(request.origin))

    def spent(self, request: Request, pico: int, history: rules.History) -> None:
        """A step has ended and cost so much."""
        origin = request.origin
        if pico and self._velocity.mode != "off":
            verdict = history.cost(pico, self._velocity)
            if self._velocity.ceiling_pico is not None:
                ceiling = self._ceilings.setdefault(_scope(origin), rules.Ceiling())
                verdict = ceiling.cost(pico, self._clock(), self._velocity.ceiling_pico) or verdict
            if verdict is not None:
                self.stop_whole(verdict, origin)
        if origin.item and (run := self._runs.get(origin.run)) is not None:
            run.step(request, pico)

    def heard(self, request: Request, completion: Completion) -> None:
        """An agent's whole answer, paid for and recorded.

        Raises:
            Runaway: its item goes in circles.
        """
        run, limits = self._runs.get(request.origin.run), self.limits["agent-loop"]
        if run is None or limits.mode == "off":
            return
        loop = run.loop(request.origin.item)
        turns = len(request.call.raw_messages or ())  # of a conversation, which grows by turns
        if loop.is_sample(request.origin.agent, hash((request.call.messages, turns))):
            return
        message = completion.choices.get(0, {}).get("message")
        calls = message.get("tool_calls") if isinstance(message, dict) else None
        agent = request.origin.agent
        if calls:
            asked = [each.get("function") or {} for each in calls if isinstance(each, dict)]
            told = [(str(each.get("name")), str(each.get("arguments"))) for each in asked]
            verdict = loop.called(agent, told)
        else:
            verdict = loop.said(agent, completion.text, limits)
        if verdict is not None and (error := self.stop(verdict, request)) is not None:
            raise error

    def replied(self, origin: Origin, *, is_unfounded: bool) -> None:
        """An agent's reply was judged; `is_unfounded`: it quotes what does not stand in its document."""
        if (run := self._runs.get(origin.run)) is not None:
            run.replied(origin.item, origin.agent, is_unfounded=is_unfounded)

    def _history(self, origin: Origin) -> rules.History:
        key = (origin.run, origin.agent, "") if origin.run else ("", origin.tenant, origin.key)
        found = self._histories.get(key)
        if found is None:
            _bound(self._histories)
            found = self._histories[key] = rules.History()
        return found

    # ── what becomes of a verdict ──

    def stop(self, verdict: Verdict, request: Request) -> Runaway | None:
        """A verdict over one stream or item: what to raise there; None where the guard only watches. With scope "run"
        or "key" the whole of that is stopped besides."""
        origin, scope = request.origin, self.limits[verdict.guard].scope
        if scope in ("run", "key"):
            if scope != ("run" if origin.run else "key"):
                return None
            acts = self.stop_whole(verdict, origin)
        else:
            item = request.subject.id if request.subject else ""
            acts = self._tell(verdict, origin, _scope(origin), item=item)
        return Runaway(verdict.guard, verdict.why, agent=origin.agent) if acts else None

    def pause_item(self, verdict: Verdict, request: Request) -> None:
        """A verdict over an item whose step has just ended: its next one is refused."""
        if self.stop(verdict, request) is not None:
            self._paused[f"item:{request.origin.run}/{request.origin.item}"] = (math.inf, verdict.why)

    def stop_whole(self, verdict: Verdict, origin: Origin) -> bool:
        """A verdict over a run or key, which is paused or killed; False where the guard only watches."""
        wanted, kind = self.limits[verdict.guard].scope, "run" if origin.run else "key"
        if wanted and wanted != kind:
            return False
        scope, run = _scope(origin), self._runs.get(origin.run)
        if run is not None and run.is_paused:
            return True
        is_kill = verdict.is_hard or (verdict.is_far and self._agree(verdict.guard, scope))
        if not self._tell(verdict, origin, scope, is_kill=is_kill):
            return False
        cause = f"guard {verdict.guard}: {verdict.why}"
        if is_kill:
            task = asyncio.ensure_future(self._kill(scope, cause, verdict.guard))
            self._kills.add(task)
            task.add_done_callback(self._kills.discard)
        elif run is not None:
            run.is_paused = True
            run.on_pause(verdict)
        elif kind == "key":
            self.pause(scope, cause, for_s=COOL_S)
        return True

    def pause(self, scope: str, cause: str, *, for_s: float = math.inf) -> None:
        """Close what runs under a run or key in this process; for so long, or until the run is forgotten, no further
        step of it begins here."""
        self._paused[scope] = (self._clock() + for_s, cause)
        self._switches.close_running(scope, f"paused: {cause}")

    def _agree(self, guard: str, scope: str) -> bool:
        """Whether another guard spoke of the same scope lately."""
        since = self._clock() - AGREE_S
        return any(at >= since and other != guard for other, at in self._signals.get(scope, {}).items())

    def _tell(self, verdict: Verdict, origin: Origin, scope: str, *, item: str = "", is_kill: bool = False) -> bool:
        """Write a verdict to the ledger; whether it acts. What does not act is told once."""
        mode = self.limits[verdict.guard].mode
        acts = mode == "on" and not verdict.is_note
        if acts:
            self._signals.setdefault(scope, {})[verdict.guard] = self._clock()
        elif (verdict.guard, scope) in self._told:
            return False
        self._told[verdict.guard, scope] = None
        _bound(self._told)
        _bound(self._signals)
        _bound(self._ceilings)
        fields = {
            "v": 1,
            "kind": "guard",
            "guard": verdict.guard,
            "stage": "note" if verdict.is_note else "kill" if is_kill else "pause",
            "mode": mode,
            "cause": verdict.why[:500],
            "evidence": dict(verdict.evidence),
            "tenant": origin.tenant,
            "run": origin.run or None,
            "api_key": origin.key or None,
            "item": item or None,
            "agent": origin.agent or None,
            "at_us": ledger.now_us(),
        }
        self._store.submit(lambda tx: ledger.append(tx, fields)).add_done_callback(unwaited)
        _LOG.warning("guard %s: %s: %s%s", verdict.guard, scope, verdict.why, "" if acts else " (nothing is stopped)")
        return acts

    async def _kill(self, scope: str, cause: str, guard: str) -> None:
        try:
            trip = await self._switches.trip(scope, cause=cause[:500], actor=f"guard {guard}")
            await self._switches.report(trip)
        except TwolaneError:
            _LOG.exception("%s could not be stopped", scope)


def _bound(kept: dict[K, V]) -> None:
    while len(kept) > MOST:
        del kept[next(iter(kept))]


def _scope(origin: Origin) -> str:
    if origin.run:
        return f"run:{origin.run}"
    return f"key:{origin.tenant}/{origin.key}" if origin.key else f"tenant:{origin.tenant}"


class StreamWatch:
    """Looks into one stream now and then: `look_at` events at the next time."""

    __slots__ = ("_guards", "_history", "_repetition", "_request", "_seen", "look_at")

    def __init__(self, guards: Guards, request: Request, history: rules.History) -> None:
        self._guards, self._request, self._history = guards, request, history
        self.look_at, self._seen = FIRST_LOOK, 0
        self._repetition: rules.Repetition | None = None

    def settled(self, pico: int | None, events: int, *, is_whole: bool) -> None:
        """The step has ended, cost so much (None: unpriced), and its stream had so many events."""
        if is_whole:
            self._history.length(events)
        self._guards.spent(self._request, pico or 0, self._history)

    def look(self, events: int, tail: bytes) -> None:
        """So many events came, the newest of them in `tail`.

        Raises:
            Runaway: they lead nowhere.
        """
        guards, newest = self._guards, events - self._seen
        self._seen, self.look_at = events, events + EVERY
        burn = guards.limits["token-burn"]
        verdict = rules.burnt(events, self._history, burn) if burn.mode != "off" else None
        if verdict is None and guards.is_on("repetition"):
            self._repetition = self._repetition or rules.Repetition()
            verdict = self._repetition.look(tail, newest)
        if verdict is not None:
            error = guards.stop(verdict, self._request)
            if error is not None:
                raise error
            self.look_at = 2**62  # it only watches, and has told


@dataclass
class RunWatch:
    """What the guards know of one run in this process."""

    _guards: Guards
    _origin: Origin
    on_pause: Callable[[Verdict], None]
    is_paused: bool = False
    """True once a verdict stopped it: no further one is told."""
    _spent_pico: int = 0
    _high_pico: int = 0
    _high_s: float = 0.0
    _refusals: rules.Refusals = field(default_factory=rules.Refusals)
    _streak: rules.Streak = field(default_factory=rules.Streak)
    _begun: deque[str] = field(default_factory=deque)
    """Items in the order in which they began; the first of them is still under way."""
    _ended: dict[str, tuple[str, ...] | None] = field(default_factory=dict)
    """How those ended that began later: well (None), refused at an agent, or for what was nobody's fault (empty)."""
    _unfounded: dict[str, rules.Streak] = field(default_factory=dict)
    """By agent."""
    _quoted: dict[str, set[str]] = field(default_factory=dict)
    """By item: whose replies were looked at."""
    _progress: rules.Progress = field(default_factory=rules.Progress)
    _loops: dict[str, rules.Loop] = field(default_factory=dict)

    def expect(self, high_pico: int, high_s: float, spent_pico: int) -> None:
        """What the run's forecast says at most, and what all its workers have spent since this one is at it."""
        self._high_pico, self._high_s = high_pico, high_s
        self._spent_pico = max(self._spent_pico, spent_pico)

    def loop(self, item: str) -> rules.Loop:
        """What the agents of an item said."""
        return self._loops.setdefault(item, rules.Loop())

    def step(self, request: Request, pico: int) -> None:
        """One of its items took a step that was paid for."""
        guards, self._spent_pico = self._guards, self._spent_pico + pico
        if guards.is_on("no-progress"):
            verdict = self._progress.step(request.origin.item, guards.limits["no-progress"])
            if verdict is not None:
                guards.pause_item(verdict, request)
        if self._high_pico and guards.is_on("cost-velocity"):
            limits = guards.limits["cost-velocity"]
            verdict = rules.beyond_forecast(self._spent_pico, self._high_pico, limits)
            if verdict is not None:
                guards.stop_whole(verdict, self._origin)

    def began(self, item: str) -> None:
        """An item is under way."""
        if self._guards.is_on("schema-failures"):
            self._begun.append(item)

    def replied(self, item: str, agent: str, *, is_unfounded: bool) -> None:
        """An agent replied; `is_unfounded`: with a quote that does not stand in its document. The first reply to each
        item counts: whatever makes it wrong makes the next ones wrong as well."""
        seen = self._quoted.setdefault(item, set())
        if agent in seen or not self._guards.is_on("broken-path"):
            return
        seen.add(agent)
        streak = self._unfounded.setdefault(agent, rules.Streak("broken-path", "replies"))
        if not is_unfounded:
            streak.passed()
        elif verdict := streak.refused(agent, ""):
            self._guards.stop_whole(verdict, self._origin)

    def ended(self, item: str, *, refused: tuple[str, str] | None = None, is_done: bool = False) -> None:
        """An item came to its end: done, or in quarantine; where a handoff was to blame, with the agent and where its
        reply did not fit."""
        self._loops.pop(item, None)
        self._quoted.pop(item, None)
        self._progress.ended(item, is_done=is_done)
        if not self._guards.is_on("schema-failures"):
            return
        self._ended[item] = None if is_done else refused or ()
        verdict = _counted(self._refusals, self._ended[item])
        while self._begun and self._begun[0] in self._ended:
            streak = _counted(self._streak, self._ended.pop(self._begun.popleft()))
            verdict = verdict or streak
        if verdict is not None:
            self._guards.stop_whole(verdict, self._origin)

    def look(self, elapsed_s: float) -> None:
        """The run is at work here for so long."""
        limits = self._guards.limits["wall-clock"]
        if self._high_s and limits.mode != "off" and (verdict := rules.overdue(elapsed_s, self._high_s, limits)):
            self._guards.stop_whole(verdict, self._origin)

    def foresee(self, spent_pico: int, limit_pico: int, *, ended: int, items: int) -> None:
        """What the whole run has spent of its budget, over how many of its items."""
        limits = self._guards.limits["runway"]
        if limits.mode != "off":
            verdict = rules.short_of(spent_pico, limit_pico, ended=ended, items=items, limits=limits)
            if verdict is not None:
                self._guards.stop_whole(verdict, self._origin)


def _counted(kept: rules.Refusals | rules.Streak, end: tuple[str, ...] | None) -> Verdict | None:
    """What an item's end says."""
    if end:
        return kept.refused(end[0], end[1])
    if end is None:
        kept.passed()
    return None
