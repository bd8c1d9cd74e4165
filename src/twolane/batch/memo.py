"""Accepted outputs, kept under what was asked: found again, judged again, and, where there is none, why not."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import orjson
import pydantic_core
from pydantic import BaseModel

from twolane.batch.workflow import Agent, Prompt
from twolane.domain.canonical import canonical_json, commitment
from twolane.domain.document import Document
from twolane.domain.records import Message, Subject
from twolane.domain.schema import judge, reply_schema, revive
from twolane.errors import HandoffRefused, Problem
from twolane.kernel import Kernel, Request, Settled, ledger
from twolane.rules.fingerprint import INPUT, Asked, explain, wording
from twolane.store import Row, Transaction, Value, gather, unwaited
from twolane.store.vault import seal, unseal

SHORT = 64
"""Bytes of a part up to which many steps are likely to share it: a route, a sampling, no passages."""
NEAREST = 64
"""The latest answers of an agent for an item that are looked through for one that still fits, or for what changed."""


@dataclass(frozen=True, slots=True)
class _Schema:
    """What is needed of a schema, worked out once for each model."""

    part: bytes
    wording: bytes
    text: str


@functools.cache
def _schema_of(model: type[BaseModel]) -> _Schema:
    asked = reply_schema(model)
    return _Schema(
        canonical_json([asked.name, asked.schema]),
        canonical_json([asked.name, wording(asked.schema)]),
        orjson.dumps(asked.schema).decode(),
    )


@dataclass(frozen=True)
class Memo:
    """A stored output, judged again and accepted."""

    value: BaseModel | None
    """None for a turn of a conversation."""
    body: bytes
    step: str
    """The step that paid for it."""
    pico: int | None
    """What that cost; None where nobody knows."""
    elsewhere: Row | None = None
    """Set where it was accepted by an earlier, wider schema: the row it was found in."""


@dataclass(frozen=True, slots=True)
class Given:
    """What an agent was called with."""

    args: tuple[object, ...]
    kwargs: Mapping[str, object]

    def by_name(self, agent: Agent[..., Any]) -> Mapping[str, object]:  # Any: whatever it returns
        """The agent's inputs by the names of its parameters. For arguments that it was called with, and took."""
        names = _plain_names(agent.prompt)
        if names is None:
            return _signature(agent.prompt).bind(*self.args, **self.kwargs).arguments
        return {**dict(zip(names, self.args, strict=False)), **self.kwargs}


@dataclass(frozen=True)
class Sought:
    """A step that looks for its memo."""

    agent: Agent[..., Any]  # Any: each agent's own schema
    asked: Asked
    key: str
    """Its fingerprint, keyed."""
    given: Callable[[], Mapping[str, object]]
    """The agent's inputs by name; worked out only where there is no memo."""
    sources: Sequence[Document] = ()
    """Where the quotes of its output must stand."""
    check: Callable[[Any], object] | None = None
    """What its output must pass beside its schema, over the agent's inputs."""

    def schema(self) -> _Schema:
        """What its reply must fit."""
        model: type[BaseModel] = self.agent.returns
        return _schema_of(model)

    def on(self, route: str, kernel: Kernel) -> Sought:
        """The same on another route, which answers in its own right."""
        asked = replace(self.asked, candidates=kernel.candidates(route))
        agent = replace(self.agent, route=route)
        return replace(self, agent=agent, asked=asked, key=kernel.vault.keyed(asked.canonical()))

    def after(self, turns: Sequence[Mapping[str, object]], kernel: Kernel) -> Sought:
        """The next turn of its conversation, which asks something of its own."""
        asked = replace(self.asked, turns=turns)
        return replace(self, asked=asked, key=kernel.vault.keyed(asked.canonical()))


@dataclass(frozen=True)
class Steer:
    """What people decided about the steps of one item."""

    again: Mapping[str, str] = field(default_factory=dict)
    """By agent: asked again, though there may be a memo without this word."""
    routes: Mapping[str, str] = field(default_factory=dict)
    """By agent ("" is every agent): where to ask what has no memo."""

    def route(self, agent: str) -> str | None:
        """Another route for this agent, where one was named."""
        return self.routes.get(agent) or self.routes.get("")


class Memos:
    """The memos that one item's steps may use."""

    def __init__(self, kernel: Kernel, subject: Subject, source: Document | None) -> None:
        self._kernel, self._subject, self._source = kernel, subject, source
        self._makers: dict[int, tuple[object, str]] = {}
        self._documents: dict[int, tuple[Document, str]] = {}
        """Marks of documents; each is kept, so that no other takes its place."""

    def seek(
        self,
        agent: Agent[..., Any],
        prompt: Prompt,
        messages: tuple[Message, ...],
        given: Given,
        *,
        tenant: str,
        drawn: str,
        again: str,
    ) -> Sought:
        """A step by what it asks. `drawn` is where answers drawn at random are replayed, `again` see `Steer`.

        Raises:
            HandoffRefused: its prompt has no canonical form.
        """
        asked = Asked(
            tenant=tenant,
            agent=agent.name,
            messages=messages,
            schema=agent.schema(),
            candidates=self._kernel.candidates(agent.route),
            max_tokens=prompt.max_tokens or 0,
            temperature=prompt.temperature,
            sample=f"{drawn if prompt.temperature > 0 else ''}{prompt.sample}",
            again=again,
            tools=[tool.definition() for tool in agent.tools],
        )
        try:
            key = self._kernel.vault.keyed(asked.canonical())
        except ValueError as error:
            raise HandoffRefused(agent.name, [Problem("", f"its prompt cannot be written as JSON: {error}")]) from None
        sources, check = prompt.sources(self._source), agent.check_with(*given.args, **given.kwargs)
        return Sought(agent, asked, key, functools.partial(given.by_name, agent), sources, check)

    def made(self, value: object, agent: str) -> None:
        """Remember whose output a value is; it may be another agent's input."""
        self._makers[id(value)] = (value, agent)

    async def find(self, sought: Sought) -> Memo | None:
        """The stored output, judged again: a validator may have been tightened since. Where only the schema became
        stricter, an output that still fits is as good."""
        row = await self._kernel.lookups.one("memos", sought.key)
        if row is None:
            return self._find_wider(sought, wider) if (wider := self._wider(sought)) else None
        body = unseal(self._kernel.vault.subject(row, column="subject"), bytes(row["sealed"]))
        judged = revive(orjson.loads(body), sought.agent.returns, sought.sources, sought.check)
        return None if judged.value is None else Memo(judged.value, body, row["step"], row["cost_pico"])

    def _wider(self, sought: Sought) -> frozenset[str]:
        """The schemas by which earlier outputs were accepted that this one only narrows: as a rule there is none."""
        digest = self._kernel.vault.mark_again(sought.schema().part)
        return self._kernel.schemas.wider_than(digest, sought.asked.schema.schema)

    def _find_wider(self, sought: Sought, wider: frozenset[str]) -> Memo | None:
        earlier = self._earlier(sought)
        loose = self._loose(sought, self._parts(sought)) if earlier else ""
        for row in earlier:
            if row["loose"] != loose or orjson.loads(row["parts"]).get("schema") not in wider:
                continue
            body = self._kernel.read_body(row["body"])
            judged = judge(body.decode(), sought.agent.returns, sought.sources, sought.check)
            if judged.value is not None:
                return Memo(judged.value, body, row["step"], row["cost_pico"], row)
        return None

    def _earlier(self, sought: Sought) -> Sequence[Row]:
        return self._kernel.store.all(
            "memos_of_agent", subject=self._subject.id, agent=sought.agent.name, count=NEAREST
        )

    async def find_turn(self, sought: Sought) -> Memo | None:
        """What a model said in a turn of a conversation, as it was kept; whoever asked judges it again."""
        row = await self._kernel.lookups.one("memos", sought.key)
        if row is None:
            return None
        body = unseal(self._kernel.vault.subject(row, column="subject"), bytes(row["sealed"]))
        return Memo(None, body, row["step"], row["cost_pico"])

    def keep_turn(self, sought: Sought, body: bytes) -> Callable[[Transaction, Settled], None]:
        """The same for a turn, which is found by its fingerprint alone: what came before it is part of that."""
        return self._keeping(sought, body, self._columns(sought, body) | {"loose": ""})

    def keep(self, sought: Sought, body: bytes) -> Callable[[Transaction, Settled], None]:
        """What a step commits beside its record: the accepted reply and the memo. The reply and not the value made
        from it, so that reading it again goes the same way: aliases, converters and all."""
        columns = self._columns(sought, body)
        add, digest = self._keeping(sought, body, columns), self._kernel.vault.mark_again(sought.schema().part)

        def also(tx: Transaction, settled: Settled) -> None:
            add(tx, settled)
            _keep_schema(tx, sought, digest)

        return also

    def _keeping(
        self, sought: Sought, body: bytes, columns: Mapping[str, str]
    ) -> Callable[[Transaction, Settled], None]:
        sealed = seal(self._subject, body)

        def also(tx: Transaction, settled: Settled) -> None:
            usage = settled.usage
            gather(
                tx,
                "add_memo",
                fingerprint=sought.key,
                subject=self._subject.id,
                body=tx.run("add_body", subject=self._subject.id, sealed=sealed),
                step=settled.step,
                input_tokens=usage.input_tokens if usage else 0,
                output_tokens=usage.output_tokens if usage else 0,
                cost_pico=settled.pico,
                total_us=settled.total_us,
                made=ledger.now_us(),
                **columns,
            )

        return also

    def reuse(self, memo: Memo, sought: Sought, request: Request) -> None:
        """An entry that points at the step that paid. Nobody waits for it: the item's own end is written after it."""
        digest = commitment(self._subject.salt, memo.body)
        adopt = None if memo.elsewhere is None else self._adopt(memo.elsewhere, sought, memo.body)

        def work(tx: Transaction) -> Mapping[str, object]:
            fields = self._kernel.door.reuse(tx, request, of_step=memo.step, output_digest=digest, saved_pico=memo.pico)
            if adopt is not None:
                adopt(tx)
            return fields

        recorded = self._kernel.store.submit(work)
        recorded.add_done_callback(unwaited)
        self._kernel.telemetry.follow(recorded)

    def _adopt(self, row: Row, sought: Sought, body: bytes) -> Callable[[Transaction], None]:
        """An earlier output answers this step too, from now on by its own fingerprint."""
        digest = self._kernel.vault.mark_again(sought.schema().part)
        columns, names = self._columns(sought, body), ("body", "step", "input_tokens", "output_tokens", "total_us")
        found: dict[str, Value] = {name: row[name] for name in (*names, "cost_pico")}
        own: dict[str, Value] = {"fingerprint": sought.key, "subject": self._subject.id, "made": ledger.now_us()}

        def adopt(tx: Transaction) -> None:
            tx.run("add_memo", **own, **found, **columns)
            _keep_schema(tx, sought, digest)

        return adopt

    def why(self, sought: Sought) -> str:
        """Why there is no memo, in words."""
        if self._kernel.store.all("memos", keys=orjson.dumps([sought.key]).decode()):
            return "its stored answer no longer passes its validators"
        earlier = self._earlier(sought)
        before = [parts for row in earlier if (parts := orjson.loads(row["parts"]))]
        if before and sought.asked.temperature > 0:
            return "its answers are drawn at random: each run draws its own"
        given = sought.given()
        makers = {name: self._makers[id(value)][1] for name, value in given.items() if id(value) in self._makers}
        return explain(self._parts(sought) | self._inputs(given), before, makers=makers) or "its earlier answer is gone"

    def _columns(self, sought: Sought, body: bytes) -> dict[str, str]:
        parts = self._parts(sought)
        return {
            "agent": sought.agent.name,
            "parts": orjson.dumps(parts | self._inputs(sought.given())).decode(),
            "loose": self._loose(sought, parts),
            "answer": self._kernel.vault.mark(body),
        }

    def _parts(self, sought: Sought) -> dict[str, str]:
        mark = self._kernel.vault.mark
        again = self._kernel.vault.mark_again
        parts = {name: (again if len(part) <= SHORT else mark)(part) for name, part in sought.asked.parts().items()}
        parts["schema"] = again(sought.schema().part)
        return parts

    def _inputs(self, given: Mapping[str, object]) -> dict[str, str]:
        return {f"{INPUT}{name}": self._mark(value) for name, value in given.items()}

    def _mark(self, value: object) -> str:
        """A document's is remembered, since every agent of an item may be given it."""
        if not isinstance(value, Document):
            return self._kernel.vault.mark(_plain(value))
        known = self._documents.get(id(value))
        if known is None:
            known = self._documents[id(value)] = (value, self._kernel.vault.mark(_plain(value)))
        return known[1]

    def _loose(self, sought: Sought, parts: Mapping[str, str]) -> str:
        """The fingerprint as it would be if the schema had no limits."""
        wide = {**parts, "schema": "", "tenant": sought.asked.tenant, "agent": sought.agent.name}
        return self._kernel.vault.mark(sought.schema().wording + orjson.dumps(wide, option=orjson.OPT_SORT_KEYS))


def _keep_schema(tx: Transaction, sought: Sought, digest: str) -> None:
    """Once in a group of works: most steps of a run share a few schemas."""
    kept: set[str] = tx.cache.setdefault("reply schemas", set())
    if digest not in kept:
        kept.add(digest)
        tx.run("add_reply_schema", digest=digest, schema=sought.schema().text)


@functools.lru_cache(maxsize=256)
def _signature(prompt: Callable[..., Prompt]) -> inspect.Signature:
    return inspect.signature(prompt)


@functools.lru_cache(maxsize=256)
def _plain_names(prompt: Callable[..., Prompt]) -> tuple[str, ...] | None:
    """The parameters of a function where each takes one argument, by its place or its name: then nothing has to be
    bound, which took longer than all marks of a step."""
    parameters = _signature(prompt).parameters
    is_plain = all(each.kind is each.POSITIONAL_OR_KEYWORD for each in parameters.values())
    return tuple(parameters) if is_plain else None


def _plain(value: object) -> bytes:
    """An input as bytes that are the same whenever it is; of what has no plain form only the name of its kind."""
    value = [value.id, value.text] if isinstance(value, Document) else value
    return pydantic_core.to_json(value, fallback=lambda other: type(other).__qualname__, inf_nan_mode="constants")
