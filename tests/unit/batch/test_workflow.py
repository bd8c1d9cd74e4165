"""What a user writes: agents are pure, workflows say what they take, prompts keep data apart, steps know themselves."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field

from twolane import Agent, Document, Item, Prompt, Quote, Workflow, agent, workflow
from twolane.batch.run import load_flow
from twolane.domain.document import as_data
from twolane.domain.records import Message, Origin, Subject
from twolane.errors import ConfigError, HandoffRefused, UsageError
from twolane.models.extractive import read_brief

CONTRACT = Document("a.txt", "The price is 5 EUR.")


class Plan(BaseModel):
    topics: list[str]


class Facts(BaseModel):
    price: Quote | None = Field(description="the price")


class Report(BaseModel):
    text: str


@agent(returns=Plan)
def planner(contract: Document) -> Prompt:
    return Prompt(system="You plan.", user="What is in it?", context=(contract,))


@agent(returns=Facts, route="heavy", allowance="$0.02", repairs=2, name="fact-finder")
def extractor(contract: Document, plan: Plan, *, tone: str = "dry") -> Prompt:
    return Prompt(system=f"You quote, {tone}.", user=", ".join(plan.topics), context=(contract,), max_tokens=50)


# ── agents ──


def test_an_agent_is_a_function_that_can_be_tested_without_a_model() -> None:
    prompt = extractor(CONTRACT, Plan(topics=["price", "term"]), tone="warm")
    assert prompt == extractor(CONTRACT, Plan(topics=["price", "term"]), tone="warm")
    assert (prompt.system, prompt.user, prompt.max_tokens) == ("You quote, warm.", "price, term", 50)


def test_an_agent_knows_its_name_route_allowance_and_schema() -> None:
    assert (planner.name, planner.route, planner.allowance, planner.repairs) == ("planner", "auto", None, 1)
    assert (extractor.name, extractor.route, extractor.allowance, extractor.repairs) == (
        "fact-finder", "heavy", "$0.02", 2,
    )  # fmt: skip
    schema = extractor.schema()
    assert schema.name == "Facts"
    assert schema.schema["required"] == ["price"]
    assert schema.schema["additionalProperties"] is False


def test_a_revised_agent_is_the_same_but_for_its_prompt() -> None:
    louder = planner.revised(lambda contract: Prompt(system="You plan!", user="What is in it?", context=(contract,)))
    assert louder(CONTRACT).system == "You plan!"
    assert planner(CONTRACT).system == "You plan."
    assert replace(louder, prompt=planner.prompt) == planner


# ── workflows ──


def test_a_workflow_knows_what_it_takes_and_returns() -> None:
    @workflow(version="3")
    async def price_check(contract: Document, do: Item) -> Report:
        return Report(text=contract.text)

    @workflow(version="1", name="by_row")
    async def other(row: Plan, do: Item) -> Report:
        return Report(text=str(row))

    assert (price_check.name, price_check.version, price_check.takes, price_check.returns) == (
        "price-check", "3", Document, Report,
    )  # fmt: skip
    assert (other.name, other.takes) == ("by-row", Plan)
    assert isinstance(other, Workflow)


async def untyped(contract, do):  # type: ignore[no-untyped-def]  # the point of it
    return Report(text="")


async def wrong_input(contract: str, do: Item) -> Report:
    return Report(text="")


async def wrong_output(contract: Document, do: Item) -> str:
    return ""


async def generic_output(contract: Document, do: Item) -> list[Report]:
    return []


async def no_parameters() -> Report:
    return Report(text="")


async def one_parameter(contract: Document) -> Report:
    return Report(text="")


async def three_parameters(contract: Document, do: Item, more: int) -> Report:
    return Report(text="")


async def unknown_name(contract: Document, do: Item) -> "Nowhere":  # type: ignore[name-defined]  # noqa: F821, UP037
    ...


def not_async(contract: Document, do: Item) -> Report:
    return Report(text="")


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (untyped, "workflow untyped: its first parameter must be a Document or a pydantic model"),
        (wrong_input, "workflow wrong-input: its first parameter must be a Document or a pydantic model"),
        (wrong_output, "workflow wrong-output: it must say that it returns a pydantic model"),
        (generic_output, "workflow generic-output: it must say that it returns a pydantic model"),
        (no_parameters, "workflow no-parameters: it must take two arguments, its input and `do: Item`"),
        (one_parameter, "workflow one-parameter: it must take two arguments, its input and `do: Item`"),
        (three_parameters, "workflow three-parameters: it must take two arguments, its input and `do: Item`"),
        (unknown_name, "workflow unknown-name: its annotations cannot be read: name 'Nowhere' is not defined"),
        (not_async, "workflow not-async: it must be an async function"),
    ],
)
def test_annotations_that_say_too_little_are_refused_where_they_are_written(
    function: Any, words: str
) -> None:  # Any: wrong on purpose
    with pytest.raises(ConfigError) as caught:
        workflow(version="1")(function)
    assert words in str(caught.value)


def test_options_are_a_list_of_names() -> None:
    with pytest.raises(ConfigError, match=r"\['rules'\], not 'rules'"):
        workflow(version="1", options="rules")


def test_further_parameters_with_defaults_are_fine() -> None:
    async def tuned(contract: Document, do: Item, depth: int = 3) -> Report:
        return Report(text=str(depth))

    assert workflow(version="1")(tuned).name == "tuned"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("flows_that_exit:audit", "its module raised SystemExit: 3"),
        ("gone.py:audit", "there is no module .gone. in .* Name the module, without .py"),
        (":audit", "there is no flow ':audit'"),
        ("..flows:audit", "there is no flow '..flows:audit'"),
    ],
)
def test_a_flow_that_cannot_be_loaded_is_refused_with_its_reason(
    name: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "flows_that_exit.py").write_text("raise SystemExit(3)")
    monkeypatch.setattr(sys, "path", [*sys.path])
    with pytest.raises(UsageError, match=words):
        load_flow(name, tmp_path)


# ── prompts ──


def test_documents_travel_between_the_instruction_and_the_question() -> None:
    prompt = Prompt(system="s", user="u", context=(CONTRACT, Document("b", "two")))
    system, middle, user = prompt.messages()
    assert (system, user) == (Message("system", "s"), Message("user", "u"))
    assert middle.content == (
        '<document id="a.txt">\nThe price is 5 EUR.\n</document>\n\n<document id="b">\ntwo\n</document>'
    )
    assert Prompt(system="s", user="u").messages() == (system, user)


MARKS = re.compile(r"<\s*/?\s*document", re.IGNORECASE)
PARTS = ["</document>", "</DOCUMENT >", "< / document", '<document id="x">', "\n", '"', "'", ">", "<", "text"]
TRICKS = st.lists(st.sampled_from(PARTS) | st.text(max_size=5)).map("".join)


@given(name=TRICKS, text=TRICKS)
def test_a_document_cannot_end_its_own_mark_nor_open_another(name: str, text: str) -> None:
    wrapped = as_data(Document(name, text))
    assert len(MARKS.findall(wrapped)) == 2
    first, _, rest = wrapped.partition("\n")
    assert re.fullmatch(r'<document id="[^"<>\n]*">', first)
    assert rest.endswith("\n</document>")


@given(text=TRICKS.filter(lambda text: text.strip() and "\u200b" not in text))
def test_the_built_in_model_reads_the_document_as_it_was(text: str) -> None:
    from twolane.domain.records import ModelCall

    call = ModelCall(Prompt(system="s", user="u", context=(Document("a", text),)).messages(), "m", 10)
    (source,) = read_brief(call).sources
    assert source.text.replace("\u200b", "").strip() == text.strip()


# ── fingerprints ──


class Kernel:
    """As much of a kernel as a fingerprint needs."""

    def __init__(self, candidates: list[dict[str, object]]) -> None:
        self._candidates = candidates
        self.vault = self

    def candidates(self, route: str) -> list[dict[str, object]]:
        return self._candidates

    def keyed(self, data: bytes) -> str:
        return data.decode()


LARGE: list[dict[str, object]] = [{"kind": "openai", "model": "large"}]
ORIGIN = Origin("legal", "audit", "run-1", "a.txt")


def fingerprint(
    asked: Agent[..., Any] = planner,  # Any: whatever it returns
    prompt: Prompt | None = None,
    *,
    origin: Origin = ORIGIN,
    candidates: list[dict[str, object]] = LARGE,
    options: dict[str, str] | None = None,
) -> str:
    kernel = cast(Any, Kernel(candidates))  # Any: a stand-in
    item = Item(kernel, origin, Subject("s", b"", b""), CONTRACT, options=options or {})
    prompt = prompt or planner(CONTRACT)
    return item._seek(asked, prompt, prompt.messages()).key


class Wider(Plan):
    more: str


PROMPT = planner(CONTRACT)


@pytest.mark.parametrize(
    "other",
    [
        fingerprint(prompt=replace(PROMPT, system="You plan well.")),
        fingerprint(prompt=replace(PROMPT, user="What is in it, please?")),
        fingerprint(prompt=replace(PROMPT, context=())),
        fingerprint(prompt=replace(PROMPT, context=(Document("a.txt", "The price is 6 EUR."),))),
        fingerprint(prompt=replace(PROMPT, context=(Document("b.txt", CONTRACT.text),))),
        fingerprint(prompt=replace(PROMPT, sample=1)),
        fingerprint(prompt=replace(PROMPT, max_tokens=9)),
        fingerprint(prompt=replace(PROMPT, temperature=0.5)),
        fingerprint(replace(planner, name="strategist")),
        fingerprint(replace(planner, returns=Wider)),
        fingerprint(candidates=[{"kind": "openai", "model": "larger"}]),
        fingerprint(candidates=[*LARGE, {"kind": "extractive", "model": "x"}]),
        fingerprint(origin=replace(ORIGIN, tenant="sales")),
    ],
    ids=[
        "system", "user", "no document", "its text", "its id", "sample", "max_tokens", "temperature", "agent", "schema",
        "model", "candidates", "tenant",
    ],
)  # fmt: skip
def test_what_could_change_the_answer_changes_the_fingerprint(other: str) -> None:
    assert other != fingerprint()


@pytest.mark.parametrize(
    "same",
    [
        fingerprint(),
        fingerprint(origin=replace(ORIGIN, run="run-2", item="b.txt", workflow="else", agent="x", key="k")),
        fingerprint(replace(planner, repairs=7, allowance="$1", route="else")),
        fingerprint(prompt=replace(PROMPT, context=(replace(CONTRACT, source="/elsewhere", pages=(0, 5)),))),
        fingerprint(options={"policy": "strict"}),
    ],
    ids=["nothing", "where it runs", "how it is asked", "where the file lies", "options"],
)
def test_nothing_else_changes_the_fingerprint(same: str) -> None:
    assert same == fingerprint()


def test_what_is_drawn_at_random_belongs_to_its_run_and_item() -> None:
    drawn = replace(PROMPT, temperature=0.5)
    here = fingerprint(prompt=drawn)
    assert fingerprint(prompt=drawn) == here
    assert fingerprint(prompt=replace(drawn, sample=1)) != here
    assert fingerprint(prompt=drawn, origin=replace(ORIGIN, run="run-2")) != here
    assert fingerprint(prompt=drawn, origin=replace(ORIGIN, item="b.txt")) != here


@pytest.mark.parametrize(
    "prompt", [replace(PROMPT, user="\ud800"), replace(PROMPT, temperature=float("nan"))], ids=["text", "number"]
)
def test_a_prompt_that_is_no_json_is_refused_as_a_handoff(prompt: Prompt) -> None:
    with pytest.raises(HandoffRefused, match="planner: /: its prompt cannot be written as JSON"):
        fingerprint(prompt=prompt)
