"""One report over all items, after the last one: checked, memoised, made again when a run ends again."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from twolane import Document, Item, Platform, Prompt, RunSummary, Workflow, agent, workflow
from twolane.domain.records import ModelCall
from twolane.errors import ConfigError
from twolane.testing import Rehearsal, Reply


class Told(BaseModel):
    text: str


class Digest(BaseModel):
    count: int
    words: str

    def markdown(self) -> str:
        return f"# {self.words}\n"


@agent(returns=Told)
def reader(document: Document) -> Prompt:
    return Prompt(system="Read.", user="What is it?", context=(document,))


@agent(returns=Told)
def editor(texts: Sequence[str]) -> Prompt:
    return Prompt(system="Edit.", user="\n".join(texts))


async def sum_up(results: Sequence[Told], do: Item) -> Digest:
    edited = await do(editor, [result.text for result in results])
    return Digest(count=len(results), words=edited.text)


async def story(document: Document, do: Item) -> Told:
    return await do(reader, document)


press = workflow(version="1", name="press", reduce=sum_up)(story)


def read(call: ModelCall) -> str:
    return json.dumps({"text": call.messages[1].content.split("\n")[1]})


SCRIPT: dict[str, Reply] = {"reader": read, "editor": '{"text": "All in one."}'}


def documents(count: int) -> list[Document]:
    return [Document(f"d{at:02}", f"Document {at}.") for at in range(count)]


def report(summary: RunSummary) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((Path(summary.reports) / "report.json").read_text())
    return found


async def resume(platform: Platform, run: str, flow: Workflow = press, *, quarantined: bool = False) -> RunSummary:
    await platform.prepare_resume(run, quarantined=quarantined)
    return await platform.work(run, flow=flow)


async def test_after_the_last_item_one_report_covers_them_all_in_the_order_of_their_ids() -> None:
    rehearsal = Rehearsal(SCRIPT)
    async with rehearsal as platform:
        summary = await platform.run(press, documents(30))
        assert (summary.status, summary.reason, summary.items["done"]) == ("done", "", 30)
        (asked,) = rehearsal.calls("editor")
        assert asked.messages[-1].content == "\n".join(f"Document {at}." for at in range(30))
        assert report(summary) == {
            "run": summary.run,
            "flow": summary.flow,
            "items": 30,
            "quarantined": [],
            "result": {"count": 30, "words": "All in one."},
        }
        assert (Path(summary.reports) / "report.md").read_text() == "# All in one.\n"
        assert summary.by_agent["editor"]["calls"] == 1
        assert platform.verify().ok


async def test_the_next_run_over_the_same_items_pays_for_no_report() -> None:
    async with Rehearsal(SCRIPT) as platform:
        first = await platform.run(press, documents(4))
        second = await platform.run(press, documents(4))
        assert (second.calls, second.reused) == (0, 5)
        assert report(second)["result"] == report(first)["result"]


async def test_an_item_called_report_keeps_a_file_of_its_own() -> None:
    async with Rehearsal(SCRIPT) as platform:
        summary = await platform.run(press, [Document("report", "A report."), *documents(1)])
        assert report(summary)["items"] == 2
        own = json.loads((Path(summary.reports) / "%72eport.json").read_text())
        assert (own["item"], own["result"]) == ("report", {"text": "A report."})


async def test_a_refused_report_stops_the_run_with_its_reason_and_is_tried_again_by_a_resume() -> None:
    rehearsal = Rehearsal({**SCRIPT, "editor": '{"text": 7}'})
    async with rehearsal as platform:
        summary = await platform.run(press, documents(3))
        assert (summary.status, summary.exit_code, summary.items["done"]) == ("stopped", 1, 3)
        assert summary.reason.startswith("reduce: editor was refused at /text: 7 is not of type")
        assert not (Path(summary.reports) / "report.json").exists()
        rehearsal.reply("editor", '{"text": "Better."}')
        again = await resume(platform, summary.run)
        assert (again.status, again.reason) == ("done", "")
        assert again.by_agent["reader"]["calls"] == 3
        assert report(again)["result"]["words"] == "Better."


async def test_what_is_in_quarantine_is_named_and_joins_the_report_when_it_is_released() -> None:
    def bad(call: ModelCall) -> str:
        return "{}" if "Document 1." in call.messages[1].content else read(call)

    rehearsal = Rehearsal({**SCRIPT, "reader": bad})
    async with rehearsal as platform:
        summary = await platform.run(press, documents(3))
        assert (report(summary)["items"], report(summary)["quarantined"]) == (2, ["d01"])
        rehearsal.reply("reader", read)
        again = await resume(platform, summary.run, quarantined=True)
        assert (report(again)["items"], report(again)["quarantined"]) == (3, [])


async def test_a_run_without_a_result_has_no_report_and_is_done() -> None:
    async with Rehearsal({**SCRIPT, "reader": "{}"}) as platform:
        summary = await platform.run(press, documents(2))
        assert (summary.status, summary.items["quarantined"]) == ("done", 2)
        assert not (Path(summary.reports) / "report.json").exists()


async def test_a_forecast_makes_no_report() -> None:
    async with Rehearsal(SCRIPT) as platform:
        run = await platform.start(press, documents(3))
        await platform.work(run, flow=press, pilot_only=True)
        assert "editor" not in platform.summary(run).by_agent


async def test_the_runs_budget_holds_for_the_report_too() -> None:
    async with Rehearsal(SCRIPT) as platform:
        summary = await platform.run(press, documents(3))
        spent = summary.cost
        await platform.kernel.treasury.set_budget(
            f"run:{summary.run}", period="total", pico=1, tokens=None, actor="test"
        )
        changed = workflow(version="1", name="press", reduce=dearer)(story)
        again = await resume(platform, summary.run, changed)
        assert (again.status, again.exit_code, again.cost) == ("stopped", 3, spent)
        assert again.reason.startswith(f"budget: run:{summary.run}: budget")


async def dearer(results: Sequence[Told], do: Item) -> Digest:
    return Digest(count=0, words=(await do(editor, ["another question"])).text)


async def test_the_runs_switch_stops_the_report() -> None:
    reached = asyncio.Event()

    def slowly(call: ModelCall) -> str:
        reached.set()
        return '{"text": "' + "word " * 400 + '"}'

    rehearsal = Rehearsal({**SCRIPT, "editor": slowly}, token_ms=5)
    async with rehearsal as platform:
        run = await platform.start(press, documents(2))
        working = asyncio.create_task(platform.work(run, flow=press))
        await reached.wait()
        await platform.kill(run, cause="test")
        summary = await working
        assert (summary.status, summary.exit_code) == ("stopped", 3)
        rehearsal.reply("editor", '{"text": "ok"}')
        assert (await resume(platform, run)).status == "done"


async def failing(results: Sequence[Told], do: Item) -> Digest:
    raise ValueError("no idea")


async def lying(results: Sequence[Told], do: Item) -> Digest:
    return Told(text="")  # type: ignore[return-value]  # the point of it


@pytest.mark.parametrize(
    ("reducer", "reason"),
    [(failing, "reduce: ValueError: no idea"), (lying, "reduce: TypeError: it returned Told, not Digest")],
)
async def test_a_reduce_that_fails_stops_the_run_and_says_why(reducer: Any, reason: str) -> None:
    flow = workflow(version="1", name="press", reduce=reducer)(story)
    async with Rehearsal(SCRIPT) as platform:
        summary = await platform.run(flow, documents(2))
        assert (summary.status, summary.items["done"]) == ("stopped", 2)
        assert summary.reason.startswith(reason)
        again = await resume(platform, summary.run, press)
        assert (again.status, report(again)["items"]) == ("done", 2)


def test_a_reduce_that_says_too_little_is_refused_where_it_is_written() -> None:
    async def untold(results: Sequence[Told], do: Item) -> Mapping[str, str]:
        return {}

    with pytest.raises(ConfigError, match="workflow press: reduce: it must say that it returns a pydantic model"):
        workflow(version="1", name="press", reduce=untold)(story)  # type: ignore[arg-type]
