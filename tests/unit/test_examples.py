"""The example contracts: made again byte for byte, and what the gold file says is in them."""

import json
import re
import runpy
from pathlib import Path
from typing import Any

import pytest

from twolane.rules.policy import KINDS, QUESTIONS


@pytest.fixture(scope="module")
def examples(repository: Path) -> Path:
    return repository / "examples"


@pytest.fixture(scope="module")
def gold(examples: Path) -> dict[str, dict[str, Any]]:  # Any: what JSON holds
    content: dict[str, dict[str, Any]] = json.loads((examples / "gold.json").read_text("utf-8"))
    return content


def letters(text: str) -> str:
    """The letters and digits of a text, which is what scoring compares."""
    return re.sub(r"[\W_]+", "", text).lower()


def test_making_the_examples_again_gives_the_same_bytes(examples: Path, tmp_path: Path) -> None:
    runpy.run_path(str(examples / "make_contracts.py"))["make"](tmp_path)
    made = {path.name: path.read_bytes() for path in (tmp_path / "contracts").iterdir()}
    kept = {path.name: path.read_bytes() for path in (examples / "contracts").iterdir()}
    assert made.keys() == kept.keys()
    assert [name for name in made if made[name] != kept[name]] == []
    assert (tmp_path / "gold.json").read_bytes() == (examples / "gold.json").read_bytes()


def test_there_are_24_contracts_of_every_kind_and_two_belong_into_quarantine(
    examples: Path, gold: dict[str, dict[str, Any]]
) -> None:
    files = sorted(path.name for path in (examples / "contracts").iterdir())
    assert files == sorted(gold)
    assert len(files) == 24
    assert sum(name.endswith(".pdf") for name in files) == 6
    assert [name for name in files if gold[name]["quarantine"]] == [
        "23-forklift-lease-scan.pdf",
        "24-page-two-of-three.txt",
    ]
    assert {entry["kind"] for entry in gold.values()} == {*KINDS, None}


def test_the_gold_answers_every_question_of_every_contract(gold: dict[str, dict[str, Any]]) -> None:
    for name, entry in gold.items():
        assert tuple(entry["facts"]) == QUESTIONS, name
        is_empty = not any(entry["facts"].values())
        assert is_empty == entry["quarantine"], name
    answered = {question for entry in gold.values() for question, passage in entry["facts"].items() if passage}
    assert answered == set(QUESTIONS)


def test_about_sixty_percent_of_the_contracts_break_the_policy_in_one_to_four_ways(
    gold: dict[str, dict[str, Any]],
) -> None:
    counts = [len(entry["breaches"]) for entry in gold.values() if not entry["quarantine"]]
    assert 0.5 <= sum(count > 0 for count in counts) / len(counts) <= 0.7
    assert max(counts) <= 4


def test_the_gold_passages_stand_in_the_text_contracts_exactly_once(
    examples: Path, gold: dict[str, dict[str, Any]]
) -> None:
    for path in (examples / "contracts").glob("*.txt"):
        text = path.read_text("utf-8")
        for question, passage in gold[path.name]["facts"].items():
            assert passage is None or text.count(passage) == 1, (path.name, question)


def test_the_pdf_contracts_have_a_text_layer_with_the_gold_passages_and_the_scan_has_none(
    examples: Path, gold: dict[str, dict[str, Any]]
) -> None:
    pdfium = pytest.importorskip("pypdfium2")
    for path in sorted((examples / "contracts").glob("*.pdf")):
        with pdfium.PdfDocument(path) as document:
            pages = [page.get_textpage().get_text_bounded() for page in document]
        assert bool("".join(pages).strip()) != gold[path.name]["quarantine"], path.name
        text = letters("".join(pages))
        for question, passage in gold[path.name]["facts"].items():
            assert passage is None or letters(passage) in text, (path.name, question)


def test_contracts_are_one_to_three_pages_long(examples: Path, gold: dict[str, dict[str, Any]]) -> None:
    for path in (examples / "contracts").glob("*.txt"):
        count = len(path.read_text("utf-8").split())
        assert gold[path.name]["quarantine"] or 500 <= count <= 1500, (path.name, count)
