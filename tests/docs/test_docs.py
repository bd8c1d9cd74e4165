"""The documentation can't lie: generated pages are fresh, examples run, and what is named is there.

An example that cannot run here is a block ```python no-run, and one of TOML that is no twolane.toml is ```toml other;
the HTML comment right above each says why.
"""

from __future__ import annotations

import importlib
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import typer.main

from twolane import cli, config

REPOSITORY = Path(__file__).parents[2]
PAGES = sorted([REPOSITORY / "README.md", *(REPOSITORY / "docs").rglob("*.md")])

_BLOCK = re.compile(r"^```(?P<info>[^\n`]*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"`([^`\n]+)`")
_LINK = re.compile(r"\]\((?!https?:|mailto:|#)([^)\s#]+)(?:#[^)\s]*)?\)")
_COMMAND = re.compile(r"(?<![\w/.-])twolane +([a-z]+)(?: +([a-z]+)\b(?![:./=]))?")
_TEST_NAME = re.compile(r"\btest_[a-z0-9_]+\b(?!\.py)")
_TEST_FILE = re.compile(r"\btests/[\w/]+\.py\b")


@dataclass(frozen=True)
class Block:
    """A fenced block with the line above it and where it stands."""

    page: Path
    line: int
    info: str
    text: str
    above: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(REPOSITORY)}:{self.line}"


def _read(page: Path) -> str:
    return page.read_text(encoding="utf-8") if page.exists() else ""


def _blocks(*infos: str) -> list[Block]:
    found = []
    for page in PAGES:
        text = _read(page)
        for match in _BLOCK.finditer(text):
            line = text.count("\n", 0, match.start("info")) + 1
            above = text[: match.start()].rstrip().rpartition("\n")[2]
            found.append(Block(page, line, match["info"].strip(), match["text"], above))
    return [block for block in found if not infos or block.info in infos]


def _code(page: Path) -> list[str]:
    """Everything on a page that is code but neither Python nor SQL: what a reader may type."""
    text = _read(page)
    blocks = [
        match["text"] for match in _BLOCK.finditer(text) if match["info"].split()[:1] not in (["python"], ["sql"])
    ]
    return [*blocks, *_INLINE.findall(_BLOCK.sub("", text))]


def _verbs(noun: str) -> set[str]:
    command = typer.main.get_command(importlib.import_module(f"twolane.cli.{noun}").app)
    return set(getattr(command, "commands", {}))


def _id(value: object) -> str:
    return str(value.relative_to(REPOSITORY)) if isinstance(value, Path) else str(value)


def test_generated_pages_are_fresh() -> None:
    done = subprocess.run(
        [sys.executable, REPOSITORY / "docs" / "generate.py", "--check"], capture_output=True, text=True, check=False,
        env={**_environment(), "COLUMNS": "50"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("block", _blocks("python"), ids=_id)
def test_an_example_in_python_runs(block: Block, tmp_path: Path) -> None:
    contracts = tmp_path / "contracts"
    contracts.mkdir()
    for path in sorted((REPOSITORY / "examples" / "contracts").glob("*.txt"))[:2]:
        shutil.copy(path, contracts)
    (tmp_path / "my_module.py").write_text(block.text, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-W", "error", "my_module.py"], cwd=tmp_path, env=_environment(), capture_output=True,
        text=True, timeout=50, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("block", _blocks("toml"), ids=_id)
def test_an_example_of_the_configuration_loads(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(config.ENVIRONMENT)]:
        monkeypatch.delenv(name)
    path = tmp_path / "twolane.toml"
    path.write_text(block.text, encoding="utf-8")
    config.load(path)


def test_every_block_is_of_a_known_kind_and_an_exception_says_why() -> None:
    exceptions = {"python no-run", "toml other"}
    kinds = exceptions | set("python toml text bash console json sql http ini yaml make mermaid".split())
    for block in _blocks():
        assert block.info in kinds, f"{block}: {block.info!r}"
        if block.info in exceptions:
            assert re.fullmatch(r"<!-- .{10,} -->", block.above), f"{block}: no comment above says why"


@pytest.mark.parametrize("page", PAGES, ids=_id)
def test_every_command_that_is_named_exists(page: Path) -> None:
    for text in _code(page):
        for noun, verb in _COMMAND.findall(text):
            assert noun in cli._COMMANDS, f"twolane {noun}"
            verbs = _verbs(noun)
            assert not verb or not verbs or verb in verbs, f"twolane {noun} {verb}; there are: {sorted(verbs)}"


@pytest.mark.parametrize("page", PAGES, ids=_id)
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    text = _BLOCK.sub("", _read(page))
    dead = [target for target in _LINK.findall(text) if not (page.parent / target).exists()]
    assert not dead


@pytest.mark.parametrize("page", PAGES, ids=_id)
def test_every_test_that_is_named_exists(page: Path) -> None:
    files = list((REPOSITORY / "tests").rglob("*.py"))
    names = {name for file in files for name in re.findall(r"^(?:async )?def (test_\w+)", _read(file), re.MULTILINE)}
    text = _read(page)
    missing = [name for name in _TEST_FILE.findall(text) if not (REPOSITORY / name).exists()]
    missing += [name for name in _TEST_NAME.findall(text) if name not in names]
    assert not missing


def test_the_readme_begins_with_the_two_commands() -> None:
    first = next(block for block in _blocks() if block.page == REPOSITORY / "README.md")
    assert "make demo" in first.text
    assert "make test" in first.text


def test_decisions_are_numbered_without_gaps_and_say_what_a_decision_says() -> None:
    pages = sorted((REPOSITORY / "docs" / "decisions").glob("[0-9]*.md"))
    assert [page.name[:4] for page in pages] == [f"{number:04}" for number in range(1, len(pages) + 1)]
    for page in pages:
        text = _read(page)
        assert text.startswith(f"# {page.name[:4]}: "), page.name
        assert re.search(r"^\*\*Status\*\*: (?:proposed|accepted|superseded by )", text, re.MULTILINE), page.name
        for part in ("Context", "Options", "Decision", "What we give up", "How we would notice it was wrong"):
            assert f"\n## {part}\n" in text, f"{page.name}: {part}"


def _environment() -> dict[str, str]:
    """The environment without settings of Twolane, and with the sources on the module path."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(config.ENVIRONMENT)}
    return {**kept, "PYTHONPATH": str(REPOSITORY / "src")}
