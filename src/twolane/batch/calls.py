"""What becomes of a tool's call.

A plain function runs in a process of its own (`processes`), because only a process can be stopped at a timeout or by a
switch whatever it does; an async function runs on the event loop and is cancelled. Like a model call, a tool call is
announced by an intent, judged, and recorded with its time and its memo in one transaction; inside a run and an item a
call that was answered is replayed.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Generic, TypeVar

from pydantic import ValidationError
from pydantic_core import PydanticSerializationError, to_jsonable_python

from twolane.batch.processes import Broken, Processes
from twolane.batch.tools import Tool
from twolane.batch.workflow import NeedsCall
from twolane.domain.canonical import canonical_json, commitment
from twolane.domain.money import Money
from twolane.domain.records import Kind, Lane, ModelCall, Origin, Price, Status, Subject
from twolane.domain.schema import first_problem
from twolane.errors import BudgetExceeded, HandoffRefused, Killed, Problem
from twolane.kernel import Kernel, ledger, new_id
from twolane.kernel.answer import EXHAUSTED
from twolane.kernel.clock import Clock
from twolane.kernel.treasury import count, leaf_amount, used
from twolane.store import Row, Transaction, gather, unwaited
from twolane.store.vault import seal, unseal

if TYPE_CHECKING:
    from opentelemetry.trace import Span

T = TypeVar("T")

STOP_S = 5.0
"""How long an async tool may take to end when it is told to."""


class ToolCall(Generic[T]):
    """One call of a tool by one item, as far as it is known before it is made."""

    def __init__(
        self,
        kernel: Kernel,
        origin: Origin,
        subject: Subject,
        tool: Tool[..., T],
        arguments: inspect.BoundArguments,
        *,
        drawn: str,
        again: str = "",
    ) -> None:
        """`drawn` is where the answers of a tool that is not pure are replayed; `again` is there when a person had it
        asked again."""
        self._kernel, self._origin, self._subject, self._tool = kernel, origin, subject, tool
        arguments.apply_defaults()
        self._arguments = arguments.arguments
        try:
            told = {name: to_jsonable_python(value) for name, value in self._arguments.items()}
            self._asked = canonical_json(told)
            drawn = "" if tool.is_pure else drawn
            made_by = {"format": 1, "tenant": origin.tenant, "tool": tool.name, "code": tool.code}
            salt = {"again": again} if again else {}
            asked = canonical_json({**made_by, **salt, "arguments": told, "sample": drawn})
        except (ValueError, PydanticSerializationError) as error:
            raise HandoffRefused(
                tool.name, [Problem("", f"its arguments cannot be written as JSON: {error}")]
            ) from None
        self.fingerprint, self._is_again = kernel.vault.keyed(asked), bool(again)

    def why(self) -> str:
        """Why there is no memo, in words."""
        return "asked again on purpose" if self._is_again else "never used with these arguments by this code"

    @property
    def pico(self) -> int:
        """What a call costs, in picounits."""
        price = self._tool.price
        return 0 if price is None else Money.parse(price, self._kernel.config.currency).pico

    async def perform(self, processes: Processes, *, is_plan: bool) -> T:
        """The answer: from its memo, or from the tool.

        Raises:
            HandoffRefused: it raised, took too long, or gave something else than it says.
            BudgetExceeded, SwitchTripped, Killed: see `kernel.step`.
        """
        memo = await self._memo()
        if memo is not None:
            value, row, body = memo
            if not is_plan:
                self._kernel.switches.check(self._origin.scopes())
                self._note_reuse(row, body)
            return value
        if is_plan:
            raise NeedsCall(self._tool.name)
        return await self._call(processes)

    # ── memos ──

    async def _memo(self) -> tuple[T, Row, bytes] | None:
        row = await self._kernel.lookups.one("memos", self.fingerprint)
        if row is None:
            return None
        body = unseal(self._kernel.vault.subject(row, column="subject"), bytes(row["sealed"]))
        try:
            return self._tool.returns.validate_json(body), row, body
        except ValidationError:
            return None  # what it returns has another type by now

    def _note_reuse(self, memo: Row, body: bytes) -> None:
        fields = self._fields(new_id()) | {"status": Status.REUSED, "of": memo["step"], "cost_pico": 0, "total_us": 0}
        fields["saved_pico"] = None if memo["cost_pico"] is None else leaf_amount(memo["cost_pico"])
        fields |= {"output_digest": commitment(self._subject.salt, body), "at_us": ledger.now_us()}

        def work(tx: Transaction) -> Mapping[str, object]:
            ledger.append(tx, fields)
            count(tx, fields, pico=0)
            return fields

        recorded = self._kernel.store.submit(work)
        recorded.add_done_callback(unwaited)
        self._kernel.telemetry.follow(recorded)

    # ── the call ──

    async def _call(self, processes: Processes) -> T:
        kernel, scopes, step = self._kernel, self._origin.scopes(), new_id()
        kernel.guards.check(scopes)
        pico = self.pico
        running, clock, tracing = _Running(self, processes), None, kernel.telemetry.tracing
        if tracing is not None:
            running.span, _ = tracing.begin(self._fields(step), "")
        status, reason, body = Status.CANCELLED, "", b""
        is_intended = True
        try:
            kernel.switches.started(step, scopes, running.kill)
            fields = self._fields(step)
            intent = {**{k: fields[k] for k in _NAMED}, "kind": "intent", "at_us": ledger.now_us()}
            try:
                hold = await kernel.treasury.reserve(
                    step, scopes, _priced(pico), Price(0, pico, overhead_tokens=0),
                    may_shrink=False, entry=fields, intent=intent,
                )  # fmt: skip
            except Exception:
                is_intended = False  # refused: nothing is held, and nothing was announced
                raise
            kernel.switches.check(scopes)
            if hold.amount.us:
                clock = running.clock = Clock(kernel.treasury, hold, running.cut)
            body = await running.answer()
            value = self._tool.returns.validate_json(body)
            status = Status.OK
        except ValidationError as error:
            status, reason = Status.REFUSED, "handoff refused: not what it says it returns"
            raise HandoffRefused(
                self._tool.name,
                [Problem("", f"it gave something else than it says it returns: {first_problem(error)}")],
            ) from None
        except Broken as error:
            status, reason = (Status.REFUSED if error.is_reply else Status.FAILED), f"the tool {error.public}"
            raise HandoffRefused(self._tool.name, [Problem("", f"it {error}")]) from None
        except Killed as error:
            status, reason = Status.KILLED, str(error)
            raise
        except BudgetExceeded as error:
            status, reason = Status.KILLED, f"{EXHAUSTED}: {error}"
            raise
        except asyncio.CancelledError:
            if isinstance(running.stopped, Killed):  # its item was ended with it
                status, reason = Status.KILLED, str(running.stopped)
            raise
        finally:
            kernel.switches.ended(step)
            if clock is not None:
                clock.end()
            recorded = None
            if is_intended:
                recorded = self._record(step, running, status=status, reason=reason, pico=pico, body=body)
            else:
                kernel.treasury.release(step, scopes)
        if recorded is not None:
            await recorded
        return value

    def _record(
        self, step: str, running: _Running[T], *, status: Status, reason: str, pico: int, body: bytes
    ) -> asyncio.Future[None]:
        """Settle and append, in one message to the writer and without an await."""
        if not running.has_begun:
            status, pico = (status if status is Status.KILLED else Status.UNREACHED), 0
        fields = self._fields(step) | {
            "status": status,
            "reason": reason[:500] or None,
            "at_us": ledger.now_us(),
            "cost_pico": leaf_amount(pico),
            "queued_us": running.queued_us,
            "total_us": running.total_us,
            "output_digest": commitment(self._subject.salt, body) if body else None,
        }
        end_hold = self._kernel.treasury.ending(step, self._origin.scopes(), used(fields, pico=pico))
        sealed = seal(self._subject, body) if status is Status.OK else None

        def work(tx: Transaction) -> None:
            end_hold(tx)
            ledger.append(tx, fields)
            count(tx, fields, pico=pico)
            if sealed is not None:
                gather(
                    tx,
                    "add_memo",
                    fingerprint=self.fingerprint,
                    subject=self._subject.id,
                    body=tx.run("add_body", subject=self._subject.id, sealed=sealed),
                    step=step,
                    input_tokens=0,
                    output_tokens=0,
                    cost_pico=pico,
                    total_us=running.total_us,
                    agent="",  # found by its fingerprint alone
                    parts="{}",
                    loose="",
                    answer="",
                    made=ledger.now_us(),
                )

        recorded = self._kernel.store.submit(work)
        recorded.add_done_callback(unwaited)
        if self._kernel.telemetry.tracing is not None:
            self._kernel.telemetry.tracing.end(running.span, fields, "")
        return recorded

    def _fields(self, step: str) -> dict[str, object]:
        """The identity of a call, as its leaf holds it."""
        origin = self._origin
        return {
            "v": 1,
            "kind": "step",
            "op": Kind.TOOL,
            "step": step,
            "attempt": 1,
            "tenant": origin.tenant,
            "lane": Lane.BATCH,
            "run": origin.run,
            "item": self._subject.id,
            "workflow": origin.workflow,
            "agent": origin.agent,
            "input_tokens": 0,
            "output_tokens": 0,
            "currency": self._kernel.config.currency,
            "input_digest": commitment(self._subject.salt, self._asked),
        }

    async def run_here(self) -> bytes:
        """Call an async tool on this event loop; its answer as JSON."""
        try:
            value = await self._tool.function(**self._arguments)  # type: ignore[misc]  # an async one
        except Exception as error:
            raise Broken(f"raised {type(error).__name__}: {error}", f"raised {type(error).__name__}") from error
        try:
            return self._tool.returns.dump_json(value, warnings="error", by_alias=True)
        except PydanticSerializationError as error:
            raise Broken(f"gave something else than it says it returns: {error}", "gave a wrong type", True) from None

    async def run_apart(self, processes: Processes, begun: Callable[[], None]) -> bytes:
        """Call a plain function in a process of its own."""
        return await processes.call(self._tool.function, self._asked, timeout_s=self._tool.timeout_s, begun=begun)

    @property
    def tool(self) -> Tool[..., T]:
        """What is called."""
        return self._tool


_NAMED = ("v", "step", "attempt", "tenant", "run", "item", "agent")


class _Running(Generic[T]):
    """A tool at work: what a switch and the clock end."""

    def __init__(self, call: ToolCall[T], processes: Processes) -> None:
        self._call, self._processes = call, processes
        self._task: asyncio.Task[bytes] | None = None
        self.stopped: BaseException | None = None
        self.clock: Clock | None = None
        """Where its time is limited."""
        self.span: Span | None = None
        self._asked, self._began, self._ended = time.monotonic(), 0.0, 0.0

    @property
    def has_begun(self) -> bool:
        """Whether the function was called."""
        return self._began > 0

    @property
    def queued_us(self) -> int:
        """Microseconds until it was called."""
        return int(((self._began or self._ended) - self._asked) * 1e6) if self._ended else 0

    @property
    def total_us(self) -> int:
        """Microseconds it was at work."""
        return int((self._ended - self._began) * 1e6) if self.has_begun else 0

    def kill(self, scope: str, cause: str) -> None:
        """A switch tripped."""
        self._stop(Killed(scope, cause))

    def cut(self) -> None:
        """Its time is used up."""
        assert self.clock is not None
        self._stop(self.clock.refusal)

    def _stop(self, why: BaseException | None) -> None:
        self.stopped = why
        if self._task is not None:
            self._task.cancel()

    def _begin(self) -> None:
        self._began = time.monotonic()
        if self.clock is not None:
            self.clock.begin()

    async def answer(self) -> bytes:
        """Its answer as JSON.

        Raises:
            Broken: it raised, took too long, died, or gave something else than it says.
            Killed: a switch ended it.
            BudgetExceeded: its time was used up.
        """
        tool = self._call.tool
        if self.stopped is not None:
            raise self.stopped
        if tool.is_async:
            self._begin()
            self._task = asyncio.ensure_future(self._call.run_here())
            patience_s: float | None = tool.timeout_s
        else:
            self._task = asyncio.ensure_future(self._call.run_apart(self._processes, self._begin))
            patience_s = None  # counted from the moment the function is called
        try:
            await asyncio.wait([self._task], timeout=patience_s)
        finally:
            if not self._task.done():
                self._task.cancel()
                await asyncio.wait([self._task], timeout=STOP_S)
            self._ended = time.monotonic()
        if self.stopped is not None:
            raise self.stopped
        if not self._task.done() or self._task.cancelled():
            raise Broken(f"did not end within {tool.timeout_s:g} s", f"did not end within {tool.timeout_s:g} s")
        return self._task.result()


def _priced(pico: int) -> ModelCall:
    """A tool call as the treasury knows calls: nothing in, and its price as that of one token out."""
    return ModelCall((), "", 1 if pico else 0)
