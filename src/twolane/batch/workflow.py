"""What a user writes: `@agent`, `@workflow` and prompts. What becomes of them is in `item`.

An agent is a pure function from typed inputs to a `Prompt`; the platform performs it. A workflow hands typed values
from agent to agent through `do`. Because a step is known by its fingerprint and not by its place, a workflow may
branch, loop and fan out as it likes.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Generic, ParamSpec, Protocol, TypeVar

from pydantic import BaseModel

from twolane.domain.document import Document, as_data
from twolane.domain.money import Money, named_currency
from twolane.domain.records import Message, ReplySchema
from twolane.domain.schema import reply_schema
from twolane.errors import ConfigError

P = ParamSpec("P")
R = TypeVar("R", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Prompt:
    """What an agent asks.

    `system` and `user` are the first and the last message the upstream sees; `context` travels between them as data,
    each document marked as one. Quotes in the reply are looked up in the item's own document. `max_tokens` None is the
    upstream's limit. `sample` tells apart prompts that are asked several times on purpose.
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


@dataclass(frozen=True)
class Agent(Generic[P, R]):
    """A named pure function from typed inputs to a prompt, with the schema of its reply."""

    name: str
    prompt: Callable[P, Prompt]
    returns: type[R]
    route: str
    allowance: str | None
    repairs: int

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Prompt:
        """Its prompt, for tests: agents need no model to be tested."""
        return self.prompt(*args, **kwargs)

    def schema(self) -> ReplySchema:
        """What its reply must fit."""
        return reply_schema(self.returns)

    def revised(self, prompt: Callable[P, Prompt]) -> Agent[P, R]:
        """The same agent with another prompt."""
        return replace(self, prompt=prompt)


def agent(
    *, returns: type[R], route: str = "auto", allowance: str | None = None, repairs: int = 1, name: str | None = None
) -> Callable[[Callable[P, Prompt]], Agent[P, R]]:
    """Make a function an agent.

    `allowance` ("$0.02") is the most money that one step, repairs included, may reserve; `repairs` is how often a
    refused reply is asked for again, with the problems named.

    Raises:
        UsageError: the allowance is not an amount of money.
    """

    if allowance is not None:
        Money.parse(allowance, named_currency(allowance) or "USD")

    def make(prompt: Callable[P, Prompt]) -> Agent[P, R]:
        return Agent(name or prompt.__name__, prompt, returns, route, allowance, repairs)

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
class Workflow:
    """A named, versioned async function that hands typed values from agent to agent."""

    name: str
    version: str
    function: Callable[..., Awaitable[BaseModel]]
    takes: type[Document] | type[BaseModel]
    """What its first parameter is made from: a document, or a JSON object that fits a pydantic model."""
    returns: type[BaseModel]


def workflow(*, version: str, name: str | None = None) -> Callable[[Callable[..., Awaitable[BaseModel]]], Workflow]:
    """Make an async function (`async def audit(contract: Document, do: Item) -> Report`) a workflow.

    Raises:
        ConfigError: it is not an async function of two arguments, or its annotations do not say what it takes and
            returns.
    """

    def make(function: Callable[..., Awaitable[BaseModel]]) -> Workflow:
        own_name = (name or function.__name__).replace("_", "-")
        if not inspect.iscoroutinefunction(function):
            raise ConfigError(f"workflow {own_name}: it must be an async function")
        signature = inspect.signature(function)
        try:
            signature.bind("its input", "do")
        except TypeError:
            raise ConfigError(f"workflow {own_name}: it must take two arguments, its input and `do: Item`") from None
        try:
            hints = typing.get_type_hints(function)
        except (NameError, TypeError) as error:
            raise ConfigError(
                f"workflow {own_name}: its annotations cannot be read: {error}",
                hint="Types that annotations name must stand at the top level of their module",
            ) from None
        takes, returns = hints.get(next(iter(signature.parameters))), hints.get("return")
        if not (isinstance(takes, type) and (takes is Document or issubclass(takes, BaseModel))):
            raise ConfigError(f"workflow {own_name}: its first parameter must be a Document or a pydantic model")
        if not (isinstance(returns, type) and issubclass(returns, BaseModel)):
            raise ConfigError(f"workflow {own_name}: it must say that it returns a pydantic model")
        return Workflow(own_name, version, function, takes, returns)

    return make
