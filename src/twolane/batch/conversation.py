"""An agent with tools: the model asks for calls, they are made as steps of their own, and it goes on with the results.

Each turn of the model is a step at the door with its fingerprint (of all that was said before it) and its memo, so that
an item that begins again walks through the same conversation and pays for nothing twice. What a model asks for is
judged like a reply: a tool it was not given, or arguments that do not fit, are told to it once; then the handoff is
refused. A conversation has a bound of turns.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import orjson
from pydantic import BaseModel, ValidationError

from twolane.batch.handoff import answered, refusal, where
from twolane.batch.memo import Sought
from twolane.batch.workflow import Agent, Prompt
from twolane.domain.completion import Completion
from twolane.domain.records import Status
from twolane.domain.schema import Judged, first_problem, judge
from twolane.errors import HandoffRefused, Problem
from twolane.kernel import Answer, Request

if TYPE_CHECKING:
    from twolane.batch.item import Item
    from twolane.batch.tools import Tool

R = TypeVar("R", bound=BaseModel)

MAX_TURNS = 12
"""Most turns of the model in one conversation, its reply and repairs among them."""
MAX_CALLS = 16
"""Most calls in one turn."""
REFUSALS = 1
"""How often it is told that it may not make a call."""


@dataclass(frozen=True, slots=True)
class _Call:
    """A call that the model asks for; or why it is not made."""

    id: str
    tool: Tool[..., Any] | None
    arguments: BaseModel | None
    problem: str = ""


@dataclass(frozen=True, slots=True)
class _Turn:
    """What the model said in one turn."""

    message: Mapping[str, object]
    """As it is sent back to it: text, and calls."""
    calls: tuple[_Call, ...]

    @property
    def problems(self) -> list[Problem]:
        return [
            Problem(f"/tool_calls/{number}", call.problem) for number, call in enumerate(self.calls) if call.problem
        ]


class Conversation(Generic[R]):
    """One agent's conversation within one item: a part of `Item` with a file of its own, so it uses what is private
    there."""

    def __init__(self, item: Item, agent: Agent[..., R], prompt: Prompt, sought: Sought) -> None:
        self._item, self._agent, self._prompt, self._sought = item, agent, prompt, sought
        self._tools = {tool.name: tool for tool in agent.tools}
        self._said: list[Mapping[str, object]] = []
        """What followed the prompt."""
        self._spent_pico = 0

    async def value(self) -> R:
        """The accepted reply.

        Raises:
            HandoffRefused: the reply and its repairs did not fit, it asked twice for what it may not call, it came
                to no end, or a tool failed.
        """
        refusals, repairs = 0, self._agent.repairs
        for _ in range(MAX_TURNS):
            turn = await self._next()
            if turn.calls:
                refusals += bool(turn.problems)
                if refusals > REFUSALS:
                    raise HandoffRefused(self._agent.name, turn.problems)
                self._said += [turn.message, *await self._results(turn)]
                continue
            judged = self._judged(turn)
            if judged.value is not None:
                return judged.value
            if repairs == 0:
                raise HandoffRefused(self._agent.name, judged.problems)
            repairs -= 1
            self._said.append({"role": "user", "content": refusal(judged.problems)})
        raise HandoffRefused(self._agent.name, [Problem("", f"it came to no end within {MAX_TURNS} turns")])

    async def _next(self) -> _Turn:
        """The model's next turn: from its memo, or from the model; on another route where a person named one."""
        item, agent, sought = self._item, self._agent, self._sought.after(self._said, self._item._kernel)
        kept, other = await self._kept(sought, agent), item._steer.route(agent.name)
        if kept is None and other is not None:
            sought = sought.on(other, item._kernel)
            agent = replace(agent, route=other)
            kept = await self._kept(sought, agent)
        if kept is not None:
            return kept
        request = self._request(agent)
        if item._is_plan:
            raise item._missed(sought, request)
        take = partial(self._take, sought=sought)
        turn, _, pico = await answered(item._kernel, agent, request, self._spent_pico, take)
        self._spent_pico += pico
        return turn

    async def _kept(self, sought: Sought, agent: Agent[..., R]) -> _Turn | None:
        """The turn as it was kept, if what may be called and what fits is still the same."""
        item = self._item
        memo = await item._memos.find_turn(sought)
        if memo is None:
            return None
        turn = self._read(orjson.loads(memo.body))
        if turn.problems or not (turn.calls or self._judged(turn).value is not None):
            return None
        item.hits.append(item._as(agent.name).agent)
        if not item._is_plan:
            item._kernel.switches.check(item._origin.scopes())
            item._memos.reuse(memo, sought, self._request(agent))
        return turn

    def _take(self, answer: Answer, completion: Completion, *, sought: Sought) -> _Turn:
        """Judge a turn before it is settled; what is accepted is kept with it."""
        message = completion.choices.get(0, {}).get("message")
        asked = message.get("tool_calls") if isinstance(message, dict) else None
        turn = self._read({"content": completion.text, "tool_calls": asked or []})
        problems = turn.problems if turn.calls else self._judged(turn).problems
        if problems:
            answer.status, answer.reason = Status.REFUSED, where(problems)
            self._item.refused_replies[self._agent.name] = completion.text
        else:
            body = orjson.dumps({"content": turn.message["content"], "tool_calls": turn.message.get("tool_calls", [])})
            answer.also = self._item._memos.keep_turn(sought, body)
        return turn

    def _judged(self, turn: _Turn) -> Judged[R]:
        return judge(str(turn.message["content"]), self._agent.returns, self._sought.sources, self._sought.check)

    def _request(self, agent: Agent[..., R]) -> Request:
        request = self._item._request(agent, self._prompt, self._prompt.messages())
        told: list[Mapping[str, object]] = [{"role": m.role, "content": m.content} for m in request.call.messages]
        raw = (*told, *self._said) if self._said else None
        extras = {"tools": [tool.definition() for tool in agent.tools]}
        return replace(request, call=replace(request.call, raw_messages=raw, extras=extras))

    # ── calls ──

    def _read(self, said: Mapping[str, Any]) -> _Turn:  # Any: JSON of the upstream's making
        asked: list[dict[str, Any]] = [each for each in said["tool_calls"] if isinstance(each, dict)]
        calls, wire = [], []
        for number, each in enumerate(asked):
            function = each.get("function") or {}
            name, arguments = str(function.get("name", "")), str(function.get("arguments") or "{}")
            identity = str(each.get("id") or f"call_{len(self._said)}_{number}")
            wire.append({"id": identity, "type": "function", "function": {"name": name, "arguments": arguments}})
            calls.append(self._call(identity, name, arguments, number))
        message: dict[str, object] = {"role": "assistant", "content": said["content"]}
        return _Turn({**message, "tool_calls": wire} if wire else message, tuple(calls))

    def _call(self, identity: str, name: str, arguments: str, number: int) -> _Call:
        tool = self._tools.get(name)
        if number >= MAX_CALLS:
            return _Call(identity, tool, None, f"more than {MAX_CALLS} calls in one turn")
        if tool is None:
            return _Call(identity, None, None, f"there is no such tool; there are {', '.join(self._tools)}")
        try:
            return _Call(identity, tool, tool.arguments.model_validate_json(arguments))
        except ValidationError as error:
            return _Call(identity, tool, None, f"its arguments do not fit: {first_problem(error)}")

    async def _results(self, turn: _Turn) -> Sequence[Mapping[str, object]]:
        """What every call gave; where one may not be made, none is, and each is told why."""
        if turn.problems:
            told = [call.problem or "not called, because another call of this turn was refused" for call in turn.calls]
        else:
            told = await asyncio.gather(*(self._result(call) for call in turn.calls))
        return [
            {"role": "tool", "tool_call_id": call.id, "content": text}
            for call, text in zip(turn.calls, told, strict=True)
        ]

    async def _result(self, call: _Call) -> str:
        assert call.tool is not None
        assert call.arguments is not None
        given = {name: getattr(call.arguments, name) for name in type(call.arguments).model_fields}
        value = await self._item(call.tool, **given)
        return call.tool.returns.dump_json(value).decode()
