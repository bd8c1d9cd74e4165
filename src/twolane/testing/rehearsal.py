"""A platform whose upstreams play a script: one for each agent that is named, one for all the others."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType

from twolane.config import Config, Limit, PriceTable, RouteSection, Rule, Slots, Timeout, UpstreamSection
from twolane.domain.records import ModelCall
from twolane.errors import NotFound
from twolane.models.rehearsal import Rehearsal as Model
from twolane.models.rehearsal import Reply, Script, read_faults
from twolane.platform import Platform

__all__ = ["Rehearsal", "Reply"]

MODEL = "rehearsal"
PRICE = PriceTable(input="0.05", output="0.08")
"""Per million tokens: little, but not nothing, so that money is seen."""


class Rehearsal:
    """`async with Rehearsal(planner=…) as platform`: a `Platform` over a store of its own, and nothing real behind it.

    An agent answers as its name is scripted: with one text, with the texts of a list in turn, or with what a function
    of the `ModelCall` returns. An agent without a script answers with an instance that fits its schema, whose strings
    quote the text it was given.

    Args:
        replies: The same by name, for names that are no keywords or are taken below.
        faults: What goes wrong with an agent's calls, by its name, as `twolane.models.rehearsal` spells it:
            `{"verifier": "2nd: 503"}`; under "" the faults of every agent that has no others.
        token_ms: Latency before the first token and between tokens.
        slots: Calls in flight at once, for each agent.
        retries: Further attempts after a failure that may pass.
        routes: The names of routes that agents use, beside auto, light and heavy.
        folder: Where the store lies, for tests that open it again; else a temporary folder that is removed.
        by_agent: Replies by agent.
    """

    def __init__(
        self,
        replies: Mapping[str, Reply] | None = None,
        /,
        *,
        faults: Mapping[str, str] | None = None,
        token_ms: float = 0,
        slots: int = 4,
        retries: int = 0,
        routes: Sequence[str] = (),
        folder: Path | None = None,
        **by_agent: Reply,
    ) -> None:
        self._replies: dict[str, Reply | None] = {"": None, **dict.fromkeys(faults or ())}
        self._replies |= {**(replies or {}), **by_agent}
        self._models = {name: self._model(name, faults or {}, token_ms / 1000) for name in self._replies}
        self._slots, self._retries = slots, retries
        self._routes = ("auto", "light", "heavy", *routes)
        self._kept = folder
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        self._platform: Platform | None = None

    async def __aenter__(self) -> Platform:
        if self._kept is None:
            self._temporary = tempfile.TemporaryDirectory(prefix="twolane-rehearsal-")
        folder = self._kept or Path(self._temporary.name if self._temporary else "")
        models = {_upstream(name): model for name, model in self._models.items()}
        self._platform = await Platform.open(self._config(folder), models=dict(models))
        return self._platform

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._platform is not None:
            await self._platform.__aexit__(kind, error, trace)
        if self._temporary is not None:
            self._temporary.cleanup()

    def reply(self, agent: str, reply: Reply | None) -> None:
        """From now on `agent` answers with this; None is an instance that fits its schema.

        Raises:
            NotFound: the agent had no script to begin with, so it answers together with all others; script those
                under "".
        """
        if agent not in self._replies:
            raise NotFound(f"agent {agent!r} was not scripted when this rehearsal began")
        self._replies[agent] = reply
        model = self._models[agent]
        model.script = replace(model.script, reply=reply)

    def requests(self, agent: str | None = None) -> int:
        """How many requests reached the upstream of an agent that is named in the script ("": the one of all others),
        or all upstreams. Requests that were refused by a fault count."""
        names = self._models if agent is None else (agent,)
        return sum(self._models[name].requests for name in names)

    def calls(self, agent: str = "") -> list[ModelCall]:
        """The last thousand calls of an agent that is named in the script, in order; "" is all others together."""
        return list(self._models[agent].calls)

    def _model(self, name: str, faults: Mapping[str, str], token_s: float) -> Model:
        rules = faults.get(name, faults.get("", ""))
        script = Script(token_s, token_s, self._replies[name], faults=read_faults(rules) if rules else None)
        return Model(_upstream(name), script)

    def _config(self, folder: Path) -> Config:
        section = UpstreamSection(
            kind="rehearsal",
            model=MODEL,  # the same for all: who is scripted is not part of a step's fingerprint
            price=PRICE,
            slots=Slots(batch=self._slots),
            retries=self._retries,
            timeout=Timeout(first_token_s=30, idle_s=30),
            limit=Limit(context=2**20),
        )
        rules = tuple(Rule(when={"agent": name}, use=_upstream(name)) for name in self._replies if name)
        return Config(
            store=f"sqlite:{folder / 'twolane.db'}",
            upstream={_upstream(name): section for name in self._replies},
            route=dict.fromkeys(self._routes, RouteSection(light=_upstream(""), rule=rules)),
        )


def _upstream(agent: str) -> str:
    return f"rehearsal-{agent}" if agent else "rehearsal"
