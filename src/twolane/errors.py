"""Every refusal and failure of the house, as one tree.

TwolaneError
├── Refused                 said no before spending; a client must not retry by itself
│   ├── BudgetExceeded      scope, limit, spent, held, asked
│   ├── SwitchTripped       scope, cause
│   ├── Unpriced            upstream
│   ├── NotAllowed          the key may not do this
│   ├── Unauthenticated     no key, or not one of ours
│   ├── BadRequest          the request itself is wrong
│   ├── NotFound            no such route, upstream, run, item …
│   ├── Conflict            somebody else changed it meanwhile
│   ├── Unavailable         retry_after_s: this server takes no request now; another may, or this one later
│   └── LaneFull            lane, upstream, waited_s, retry_after_s: worth retrying as well
│       └── UpstreamDown    the same, because the upstream is left alone after its failures
├── HandoffRefused          agent, problems: the item goes to quarantine
├── DocumentRefused         the document cannot be read: the item goes to quarantine
├── OutOfTime               timeout_s: the item's workflow did not end, and goes to quarantine
├── Runaway                 guard, why: a guard ended this step
├── UpstreamError           upstream, status, retryable
├── LedgerBroken            first_bad: fatal, nothing more is written
├── InvalidEntry            these fields cannot become a leaf
├── StoreError              the store cannot be opened, read or written
│   └── Fenced              this process was taken for dead: it writes nothing any more
└── ConfigError             where, problem, hint
    └── UsageError          the same, for arguments of a command

Killed(BaseException)       raised inside a running step; `except Exception` cannot swallow it

Each class knows its OpenAI-style `code`, its HTTP `status`, whether a client may retry (`should_retry`, sent as
`x-should-retry`) and the `exit_code` a command ends with. A message says what happened, the numbers, and the next move.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


class TwolaneError(Exception):
    """Root of everything the platform raises on purpose."""

    code = "internal_error"
    status = 500
    should_retry = False
    exit_code = 1


class Refused(TwolaneError):
    """Said no before anything was spent."""

    code = "refused"
    status = 403


class BudgetExceeded(Refused):
    """A budget on the chain cannot pay the upper bound of this call. Amounts are decimal strings with their unit."""

    code = "insufficient_quota"
    status = 429
    exit_code = 3

    def __init__(self, scope: str, *, limit: str, spent: str, held: str, asked: str) -> None:
        self.scope, self.limit, self.spent, self.held, self.asked = scope, limit, spent, held, asked
        named = limit.rpartition(" ")[2]  # "5 calls", "1.5 accelerator-seconds"
        unit = f"--{named} N" if named in ("tokens", "calls", "seconds", "accelerator-seconds") else "--money AMOUNT"
        move = (
            "Raise the agent's allowance, or shorten its prompt or max_tokens"
            if scope.startswith("allowance:")
            else f"Raise it with: twolane budget set {scope} {unit}"
        )
        super().__init__(f"{scope}: budget {limit} reached (spent {spent}, held {held}, asked {asked}). {move}")


class SwitchTripped(Refused):
    """A kill switch on one of the call's scopes is tripped; only a person resets it."""

    code = "switch_tripped"
    status = 503
    exit_code = 3

    def __init__(self, scope: str, cause: str) -> None:
        self.scope, self.cause = scope, cause
        super().__init__(
            f"{scope}: stopped by its switch ({cause}). Nothing was called. Reset it: twolane switch reset {scope}"
        )


class Unpriced(Refused):
    """The upstream has no price, so no budget could be held against it."""

    code = "unpriced"
    status = 503

    def __init__(self, upstream: str, why: str = "") -> None:
        self.upstream = upstream
        super().__init__(
            f"upstream {upstream}: it has no price{f' ({why})' if why else ''}, so its cost cannot be bounded. Give it "
            'price = { input = "…", output = "…" } per million tokens, or unpriced = "allow"'
        )


class NotAllowed(Refused):
    """The key is good, but this is not among the things it may do."""

    code = "not_allowed"
    status = 403


class Unauthenticated(Refused):
    """No key, or not one of ours. The message is the same in every case, so that it tells a guesser nothing."""

    code = "invalid_api_key"
    status = 401

    def __init__(self) -> None:
        super().__init__("A valid API key is needed. Make one with: twolane key create --tenant T --name N")


class BadRequest(Refused):
    """The request itself is wrong; `param` names the field."""

    code = "invalid_request"
    status = 400
    exit_code = 2

    def __init__(self, problem: str, *, param: str | None = None) -> None:
        self.param = param
        super().__init__(problem)


class NotFound(Refused):
    """There is no such thing; the message lists what there is. `param` names the field that asked for it."""

    code = "not_found"
    status = 404
    exit_code = 2

    def __init__(self, problem: str, *, param: str | None = None) -> None:
        self.param = param
        super().__init__(problem)


class Conflict(Refused):
    """It is not as whoever asks thought: somebody else changed it meanwhile. Nothing was done."""

    code = "conflict"
    status = 409


class Unavailable(Refused):
    """This server takes no request now, because it is about to end or reads too much already. Nothing was done."""

    code = "unavailable"
    status = 503
    should_retry = True

    def __init__(self, problem: str, *, code: str, retry_after_s: float) -> None:
        self.code, self.retry_after_s = code, retry_after_s
        super().__init__(f"{problem}. Try again in {retry_after_s:g} s")


class LaneFull(Refused):
    """No slot, or no room in the rate, could come within the deadline. `retry_after_s` says when a place will probably
    be free; trying again then is sensible. `waited_s` is 0 where that was clear from the start."""

    code = "lane_full"
    status = 429
    should_retry = True

    def __init__(self, lane: str, upstream: str, *, waited_s: float, retry_after_s: float) -> None:
        self.lane, self.upstream, self.waited_s, self.retry_after_s = lane, upstream, waited_s, retry_after_s
        super().__init__(self._sentence())

    def _sentence(self) -> str:
        waited = f"none came free in {self.waited_s:.2f} s" if self.waited_s else "none will be free in time"
        return (
            f"upstream {self.upstream}: its {self.lane} lane has no free place, and {waited}. "
            f"Try again in {self.retry_after_s:.2f} s"
        )


class UpstreamDown(LaneFull):
    """The upstream failed so often in a row that it is left alone for a while, and nothing else may answer."""

    code = "upstream_down"
    status = 503

    def _sentence(self) -> str:
        return (
            f"upstream {self.upstream}: it keeps failing and is left alone for a while. "
            f"Try again in {self.retry_after_s:.2f} s"
        )


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with a reply: a JSON pointer into it and one sentence."""

    pointer: str
    text: str

    def __str__(self) -> str:
        return f"{self.pointer or '/'}: {self.text}"


def validation_words(found: Mapping[str, object]) -> str:
    """What one of pydantic's `errors()` says: a validator's own words stand alone, without the kind of error before
    them."""
    words = str(found["msg"])
    return words.removeprefix("Value error, ") or words


class HandoffRefused(TwolaneError):
    """An agent's reply did not fit its schema, nor did its repairs."""

    code = "handoff_refused"
    status = 422

    def __init__(self, agent: str, problems: Sequence[Problem]) -> None:
        self.agent, self.problems = agent, tuple(problems)
        super().__init__(f"{agent}: " + "; ".join(str(problem) for problem in problems[:5]))


class DocumentRefused(TwolaneError):
    """A document that cannot be read; the rest of the run goes on."""

    code = "document_refused"
    status = 422


class OutOfTime(TwolaneError):
    """An item took longer than its workflow, or one within it (`workflow`), may; what it paid for is kept."""

    code = "out_of_time"
    status = 504

    def __init__(self, timeout_s: float, workflow: str = "") -> None:
        self.timeout_s = timeout_s
        told = f"workflow {workflow} within it" if workflow else "its workflow"
        super().__init__(
            f"{told} did not end within {timeout_s:g} s. What it paid for is kept. If it only needs longer, say so "
            "with @workflow(timeout_s=…), and release the item"
        )


class Runaway(TwolaneError):
    """A guard ended this step, or lets its item begin no further one: it costs, and leads nowhere. What was paid for is
    kept. `why` holds figures and agents' names, and no content."""

    code = "guard_tripped"
    status = 502
    exit_code = 3

    def __init__(self, guard: str, why: str, *, agent: str = "") -> None:
        self.guard, self.why, self.agent = guard, why, agent
        super().__init__(f'guard {guard}: {why}. Watch only: [guard.{guard}] mode = "shadow"')


class UpstreamError(TwolaneError):
    """The upstream failed before or during its answer. `http_status` is its status, None when no answer came.

    `problem` is our own wording and may enter the ledger; `detail` is the upstream's, which may echo what it was asked,
    and is for the caller alone. `headers` are those of its answer, by lower-case name.

    `is_gone` says that it could not be reached at all: a run pauses, since its items are not at fault.
    """

    code = "upstream_error"

    def __init__(
        self,
        upstream: str,
        problem: str,
        *,
        http_status: int | None = None,
        retryable: bool = False,
        is_gone: bool = False,
        retry_after_s: float | None = None,
        detail: str = "",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.problem, self.detail, self.headers = problem, detail, headers or {}
        self.upstream, self.http_status, self.retryable = upstream, http_status, retryable
        self.is_gone, self.retry_after_s = is_gone, retry_after_s
        self.status = http_status if http_status is not None and 400 <= http_status < 500 else 502
        self.should_retry = retryable
        super().__init__(f"upstream {upstream}: {problem}" + (f": {detail}" if detail else ""))


class LedgerBroken(TwolaneError):
    """The record does not verify. Nothing more is written until a person has looked."""

    code = "ledger_broken"
    exit_code = 4

    def __init__(self, problem: str, *, first_bad: int | None = None) -> None:
        self.first_bad = first_bad
        super().__init__(problem)


class InvalidEntry(TwolaneError):
    """These fields cannot become a leaf of the ledger."""

    code = "invalid_entry"


class StoreError(TwolaneError):
    """The store cannot be opened, read or written."""

    code = "store_error"
    status = 503


class Fenced(StoreError):
    """This process stood still for so long that another took over what it had under way. Nothing of it is kept."""

    code = "fenced"

    def __init__(self, problem: str = "") -> None:
        super().__init__(
            problem
            or "this process was taken for dead; what it had under way belongs to another, and nothing of it was kept. "
            "Start again"
        )


class ConfigError(TwolaneError):
    """Something in the configuration is wrong: where, what, and what to do next."""

    code = "config_error"
    exit_code = 2

    def __init__(self, problem: str, *, where: str = "", hint: str = "") -> None:
        self.problem, self.where, self.hint = problem, where, hint
        super().__init__(f"{where}: {problem}" * bool(where) or problem)
        if hint:
            self.args = (f"{self.args[0]}. {hint}",)


class UsageError(ConfigError):
    """An argument of a command is wrong."""

    code = "usage_error"
    status = 400


class Killed(BaseException):  # noqa: N818 - it is an event, not an error
    """A switch closed this step while it ran. Not an Exception, so that agents' code cannot swallow it."""

    def __init__(self, scope: str, cause: str) -> None:
        self.scope, self.cause = scope, cause
        super().__init__(f"{scope}: {cause}")
