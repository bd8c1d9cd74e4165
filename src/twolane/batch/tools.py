"""What a user writes: `@tool`, a function that a workflow calls as a step, `await do(tool, …)`; or a model, where its
agent was given it. What becomes of a call is in `calls`.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from functools import cached_property
from types import CodeType
from typing import Any, ParamSpec, Protocol, TypeVar, overload

from pydantic import BaseModel, ConfigDict, TypeAdapter, create_model

from twolane.batch.workflow import Doable
from twolane.domain.canonical import canonical_json, digest
from twolane.domain.money import Money, named_currency
from twolane.errors import ConfigError

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class Tool(Doable[P, T]):
    """A named function from JSON values to a JSON value, which a workflow may call as a step."""

    name: str
    function: Callable[P, T | Coroutine[Any, Any, T]]  # Any: what the coroutine is sent does not matter
    returns: TypeAdapter[T]
    takes: Mapping[str, Any]  # Any: annotations
    timeout_s: float
    is_pure: bool
    price: str | None

    @property
    def is_async(self) -> bool:
        """Whether it runs on the event loop."""
        return inspect.iscoroutinefunction(self.function)

    @cached_property
    def code(self) -> str:
        """A digest of what the function does, so that a changed tool is asked anew. Comments, and where it stands, do
        not count; nor does what it calls or closes over."""

        def told(code: CodeType) -> list[object]:
            constants = [told(each) if isinstance(each, CodeType) else _constant(each) for each in code.co_consts]
            return [code.co_code.hex(), list(code.co_names), list(code.co_varnames), constants]

        functions = (self.function, inspect.unwrap(self.function))  # a decorator's wrapper, and what it wraps
        return digest(canonical_json([told(each.__code__) for each in functions if inspect.isfunction(each)]))

    @cached_property
    def arguments(self) -> type[BaseModel]:
        """Its arguments as a model, for whoever has them as JSON."""
        parameters = inspect.signature(self.function).parameters
        fields: dict[str, Any] = {
            name: (self.takes[name], ... if each.default is inspect.Parameter.empty else each.default)
            for name, each in parameters.items()
        }
        return create_model(self.name, __config__=ConfigDict(extra="forbid"), **fields)

    def definition(self) -> dict[str, object]:
        """What a model is told of it."""
        told = {"name": self.name, "parameters": self.arguments.model_json_schema()}
        words = inspect.getdoc(self.function)
        return {"type": "function", "function": {**told, "description": words} if words else told}

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> T | Coroutine[Any, Any, T]:
        """The function itself, for tests."""
        return self.function(*args, **kwargs)


class _Make(Protocol):
    """What `tool(…)` gives: a decorator for plain and for async functions."""

    @overload
    def __call__(self, function: Callable[P, Coroutine[Any, Any, T]], /) -> Tool[P, T]: ...
    @overload
    def __call__(self, function: Callable[P, T], /) -> Tool[P, T]: ...


def tool(*, pure: bool = False, timeout_s: float = 60.0, price: str | None = None, name: str | None = None) -> _Make:
    """Make a function a tool.

    `pure`: its answer depends on its arguments alone, so that other items and later runs may reuse it; otherwise it is
    replayed within its item and run only. `timeout_s` is its longest run in seconds. `price` ("$0.01") is what a call
    costs, held against every budget of the chain; nothing where it is left out.

    Raises:
        ConfigError: an annotation is missing or cannot be read, or it is a plain function that no other process could
            import: not at the top level of its module.
        UsageError: the price is not an amount of money.
    """
    if price is not None:
        Money.parse(price, named_currency(price) or "USD")

    def make(function: Callable[..., Any]) -> Tool[..., Any]:  # Any: `_Make` says it precisely
        if not inspect.isfunction(function):
            raise ConfigError(f"{function!r} is no function, so it cannot be a tool", hint="Write one that calls it")
        own_name = name or function.__name__
        hints = _annotations(own_name, function)
        returns = TypeAdapter(hints.pop("return"))
        if not inspect.iscoroutinefunction(function) and "<" in function.__qualname__:
            raise ConfigError(
                f"tool {own_name}: a plain function runs in a process of its own, which must be able to import it",
                hint="Put it at the top level of a module, or make it async",
            )
        return Tool(own_name, function, returns, hints, timeout_s, pure, price)

    return typing.cast(_Make, make)  # two overloads in one body


def _annotations(name: str, function: Callable[..., Any]) -> dict[str, Any]:
    try:
        hints = typing.get_type_hints(function)
    except (NameError, TypeError) as error:
        raise ConfigError(f"tool {name}: its annotations cannot be read: {error}") from None
    parameters = inspect.signature(function).parameters.values()
    plain = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    if wrong := [each.name for each in parameters if each.kind not in plain or each.name not in hints]:
        raise ConfigError(f"tool {name}: its parameter {wrong[0]} needs a name and a type of its own")
    if "return" not in hints:
        raise ConfigError(f"tool {name}: it must say what it returns")
    return hints


def _constant(value: object) -> str:
    return repr(sorted(map(repr, value))) if isinstance(value, frozenset) else repr(value)
