"""What a user writes: `@agent`, `@workflow` and prompts. What becomes of them is in `item`; `@tool` is in `tools`.

An agent is a pure function from typed inputs to a `Prompt`; the platform performs it. A workflow hands typed values
from agent to agent through `do`; it may call tools and other workflows in the same way. Because a step is known by its
fingerprint and not by its place, a workflow may branch, loop and fan out as it likes.
"""

from __future__ import annotations

import hashlib
import inspect
import re
import typing
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, Protocol, TypeVar, overload

from pydantic import BaseModel

from twolane.domain.document import Document, as_data
from twolane.domain.money import Money, named_currency
from twolane.domain.records import Message, ReplySchema
from twolane.domain.schema import reply_schema
from twolane.errors import ConfigError

P = ParamSpec("P")
T = TypeVar("T")
R = TypeVar("R", bound=BaseModel)

ITEM_S = 3600.0
"""How long an item may take where its workflow does not say: long for any document, short for one that never ends."""

if TYPE_CHECKING:
    from typing_extensions import ParamSpec as ParamSpecWithDefault
    from typing_extensions import TypeVar as TypeVarWithDefault

    from twolane.batch.item import Item
    from twolane.batch.tools import Tool

    # `Workflow` alone, as most annotations say it, is one of any input and result.
    V = ParamSpecWithDefault("V", default=...)
    W = TypeVarWithDefault("W", bound=BaseModel, default=Any)
else:
    V, W = ParamSpec("V"), TypeVar("W", bound=BaseModel)

_TOOL_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
Given = TypeVar("Given")
Told = TypeVar("Told", bound=BaseModel)


class NeedsCall(BaseException):  # noqa: N818 - an event of planning, not an error; user code must not catch it
    """While planning: this step has no memo, so a run would have to call."""

    def __init__(self, agent_name: str) -> None:
        self.agent = agent_name
        super().__init__(agent_name)


class NotBegun(BaseException):  # noqa: N818 - an event of a stop, not an error; user code must not catch it
    """The run stops, or this worker leaves, before anything of this item has begun: it stays queued."""


class Doable(Generic[P, T]):
    """What `do` can do: an agent, a tool, another workflow; with what it takes and gives."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """What an agent asks.

    `system` and `user` are the first and the last message the upstream sees; `context` travels between them as data,
    each document marked as one. Quotes in the reply are looked up in the item's own document; where an item has none,
    in the `context`. `max_tokens` None is the upstream's limit. `sample` tells apart prompts that are asked several
    times on purpose.
    """

    system: str
    user: str
    context: tuple[Document, ...] = ()
    max_tokens: int | None = None
    temperature: float = 0.0
    sample: int = 0

    def messages(self) -> tuple[Message, ...]:
        """The messages in order."""
        first, last = Message("system", self.system), Message("user", self.user)
        if not self.context:
            return (first, last)
        return (first, Message("user", "\n\n".join(as_data(document) for document in self.context)), last)

    def sources(self, own: Document | None) -> tuple[Document, ...]:
        """Where the quotes of its reply must stand. Beside the item's own document its context counts for nothing: what
        other agents made of the document may be in there, and is no evidence."""
        return (own,) if own is not None else self.context


@dataclass(frozen=True)
class Agent(Doable[P, R]):
    """A named pure function from typed inputs to a prompt, with the schema of its reply."""

    name: str
    prompt: Callable[P, Prompt]
    returns: type[R]
    route: str
    allowance: str | None
    repairs: int
    check: Callable[..., object] | None = None
    """What a reply must pass beside its schema; see `checked`."""
    tools: tuple[Tool[..., Any], ...] = ()
    """What the model may call before it replies; nothing by default."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Prompt:
        """Its prompt: agents need no model to be tested.

        Raises:
            TypeError: its function gave something else.
        """
        prompt: object = self.prompt(*args, **kwargs)
        if not isinstance(prompt, Prompt):
            if inspect.iscoroutine(prompt):
                prompt.close()
            raise TypeError(f"agent {self.name} returned {type(prompt).__name__}, not a Prompt")
        return prompt

    def schema(self) -> ReplySchema:
        """What its reply must fit."""
        return reply_schema(self.returns)

    def revised(self, prompt: Callable[P, Prompt]) -> Agent[P, R]:
        """The same agent with another prompt."""
        return replace(self, prompt=prompt)

    def checked(self, check: Callable[Concatenate[R, P], object]) -> Agent[P, R]:
        """The same agent, whose replies must also pass `check(reply, *its inputs)`: what that raises refuses a reply,
        with its words, and so does False. For rules that a model's own validators cannot know, such as that a supplier
        is one of those it was asked about. Stored outputs are checked again.

        Raises:
            ConfigError: the check is an async function, which would be asked and never answer.
        """
        if inspect.iscoroutinefunction(check):
            raise ConfigError(f"agent {self.name}: its check must be an ordinary function")
        return replace(self, check=check)

    def check_with(self, *args: P.args, **kwargs: P.kwargs) -> Callable[[R], object] | None:
        """The check over these inputs."""
        check = self.check
        return None if check is None else lambda reply: check(reply, *args, **kwargs)


def agent(
    *,
    returns: type[R],
    route: str = "auto",
    allowance: str | None = None,
    repairs: int = 1,
    name: str | None = None,
    tools: Sequence[Tool[..., Any]] = (),
) -> Callable[[Callable[P, Prompt]], Agent[P, R]]:
    """Make a function an agent.

    `allowance` ("$0.02") is the most money that one step, repairs included, may reserve; `repairs` is how often a
    refused reply is asked for again, with the problems named. `tools` are what the model may call before it replies,
    each call a step of its own; see `conversation`.

    Raises:
        UsageError: the allowance is not an amount of money.
        ConfigError: no reply could ever fit `returns`, `repairs` is below 0, the function is async, two tools have the
            same name, or one has a name that models cannot be told.
    """

    names = [tool.name for tool in tools]
    if wrong := [each for each in names if names.count(each) > 1 or not _TOOL_NAME.fullmatch(each)]:
        raise ConfigError(
            f"the tool name {wrong[0]!r} stands twice, or is not made of up to 64 letters, digits, dashes, underscores"
        )
    if allowance is not None:
        Money.parse(allowance, named_currency(allowance) or "USD")
    if repairs < 0:
        raise ConfigError(f"an agent's repairs must be at least 0, not {repairs}")

    def make(prompt: Callable[P, Prompt]) -> Agent[P, R]:
        if inspect.iscoroutinefunction(prompt) or inspect.isgeneratorfunction(prompt):
            raise ConfigError(
                f"agent {name or prompt.__name__}: it must be an ordinary function that returns a Prompt",
                hint="The platform does the asking; what waits or calls belongs into the workflow",
            )
        if returns.__pydantic_complete__:  # else a type it names is defined further down: it is read at its first use
            reply_schema(returns)
        return Agent(name or prompt.__name__, prompt, returns, route, allowance, repairs, tools=tuple(tools))

    return make


class Reported(Protocol):
    """What a workflow's result may offer beside its JSON: a report in Markdown, and rows of the run's table."""

    def markdown(self) -> str:
        """The report for people."""
        ...

    def rows(self) -> Sequence[Mapping[str, object]]:
        """Rows of the run's CSV table; every row has the same keys."""
        ...


@dataclass(frozen=True)
class Reduction:
    """What makes one report of all of a run's results."""

    function: Callable[..., Awaitable[BaseModel]]
    returns: type[BaseModel]


@dataclass(frozen=True)
class Workflow(Doable[V, W]):
    """A named, versioned async function that hands typed values from agent to agent."""

    name: str
    version: str
    function: Callable[..., Awaitable[BaseModel]]
    takes: type[Document] | type[BaseModel]
    """What its first parameter is made from: a document, or a JSON object that fits a pydantic model."""
    returns: type[BaseModel]
    reduction: Reduction | None = None
    digest: str = ""
    """Of the file that defines it, as it was when it was loaded: all workers of a run have the same."""
    timeout_s: float = ITEM_S
    """Longest time one item may take, waits for slots and rates included; then it is quarantined."""
    options: tuple[str, ...] | None = None
    """What a run of it may be started with (`--with key=value`), None for anything; it is found in `do.options`."""


@overload
def workflow(
    *, version: str, name: str | None = None, timeout_s: float = ITEM_S, options: Sequence[str] | None = None
) -> Callable[[Callable[[Given, Item], Awaitable[Told]]], Workflow[[Given], Told]]: ...
@overload
def workflow(
    *,
    version: str,
    name: str | None = None,
    timeout_s: float = ITEM_S,
    options: Sequence[str] | None = None,
    reduce: Callable[[Sequence[Told], Item], Awaitable[BaseModel]],
) -> Callable[[Callable[[Given, Item], Awaitable[Told]]], Workflow[[Given], Told]]: ...
def workflow(
    *,
    version: str,
    name: str | None = None,
    timeout_s: float = ITEM_S,
    options: Sequence[str] | None = None,
    reduce: Callable[..., Awaitable[BaseModel]] | None = None,
) -> Callable[[Callable[[Given, Item], Awaitable[Told]]], Workflow[[Given], Told]]:
    """Make an async function (`async def audit(contract: Document, do: Item) -> Report`) a workflow.

    `reduce` (`async def sum_up(results: Sequence[Report], do: Item) -> Digest`) is called after the last item with all
    results, in the order of their items' ids; what it returns is the run's `report.json`.

    An item that takes longer than `timeout_s` seconds is given up and quarantined; what it has paid for is kept.

    `options` are the names that `--with` may give, to it and to the workflows within it; without them it takes any.
    `do.options` has those given.

    Raises:
        ConfigError: it is not an async function of two arguments, or its annotations do not say what it takes and
            returns, or its time is not above 0, or its options are no list.
    """
    if not timeout_s > 0:
        raise ConfigError(f"a workflow's timeout_s must be above 0, not {timeout_s}")
    if isinstance(options, str):
        raise ConfigError(f"a workflow's options are a list of names: [{options!r}], not {options!r}")

    def make(function: Callable[[Given, Item], Awaitable[Told]]) -> Workflow[[Given], Told]:
        own_name = (name or function.__name__).replace("_", "-")
        takes, returns = _hints(own_name, function, "its input")
        if not (isinstance(takes, type) and (takes is Document or issubclass(takes, BaseModel))):
            raise ConfigError(f"workflow {own_name}: its first parameter must be a Document or a pydantic model")
        reduction = None
        if reduce is not None:
            its_name = f"{own_name}: reduce"
            reduction = Reduction(reduce, _result(its_name, _hints(its_name, reduce, "results")[1]))
        digest = _digest_of_module(function)
        names = None if options is None else tuple(options)
        result = _result(own_name, returns)
        return Workflow(own_name, version, function, takes, result, reduction, digest, timeout_s, names)

    return make


def _digest_of_module(function: Callable[..., object]) -> str:
    """SHA-256 of the source file, in hex; empty where there is none, as in an interactive session."""
    try:
        return hashlib.sha256(Path(inspect.getsourcefile(function) or "").read_bytes()).hexdigest()
    except (OSError, TypeError):
        return ""


def _hints(name: str, function: Callable[..., object], given: str) -> tuple[Any, Any]:  # Any: annotations
    """What an async function of two arguments says that it takes first, and returns."""
    if not inspect.iscoroutinefunction(function):
        raise ConfigError(f"workflow {name}: it must be an async function")
    signature = inspect.signature(function)
    try:
        signature.bind(given, "do")
    except TypeError:
        raise ConfigError(f"workflow {name}: it must take two arguments, {given} and `do: Item`") from None
    try:
        hints = typing.get_type_hints(function)
    except (NameError, TypeError) as error:
        raise ConfigError(
            f"workflow {name}: its annotations cannot be read: {error}",
            hint="Types that annotations name must stand at the top level of their module",
        ) from None
    return hints.get(next(iter(signature.parameters))), hints.get("return")


def _result(name: str, returns: Any) -> type[BaseModel]:  # Any: an annotation
    if not (isinstance(returns, type) and issubclass(returns, BaseModel)):
        raise ConfigError(f"workflow {name}: it must say that it returns a pydantic model")
    return returns
