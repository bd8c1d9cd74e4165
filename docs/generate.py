"""Make the generated pages of `docs/reference/`, or with `--check` name those that are stale and exit 1.

Everything is read from the code itself; widths are fixed, so that the same code gives the same bytes everywhere.
"""

from __future__ import annotations

import importlib
import json
import sqlite3
import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import typer.main
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from twolane import cli, config
from twolane.config import values

ROOT = Path(__file__).resolve().parents[1]
REFERENCE = ROOT / "docs" / "reference"
WIDTH = 96
MADE = "<!-- Made by docs/generate.py (make docs); changes here are lost. -->\n"


def cli_page() -> str:
    """The help of every command."""
    parts = [MADE, "# Command line\n", fenced("text", cli._help())]
    for noun in cli._COMMANDS:
        command = typer.main.get_command(importlib.import_module(f"twolane.cli.{noun}").app)
        parts += [f"## twolane {noun}\n", fenced("text", _help_of(command, f"twolane {noun}"))]
        for verb, each in getattr(command, "commands", {}).items():
            parts += [f"### twolane {noun} {verb}\n", fenced("text", _help_of(each, f"twolane {noun} {verb}"))]
    return "\n".join(parts)


def _help_of(command: Any, name: str) -> str:  # Any: typer keeps the class of a command to itself
    settings = {**command.context_settings, "terminal_width": WIDTH, "max_content_width": WIDTH}
    text: str = command.get_help(command.context_class(command, info_name=name, **settings))
    return text


def config_page() -> str:
    """Every key of twolane.toml, and what is in force without a file."""
    parts = [
        MADE,
        "# twolane.toml\n\nUnknown keys are refused. `TWOLANE_SECTION__KEY` in the environment overrides the file; "
        "[config.schema.json](config.schema.json) is the same for editors.\n",
    ]
    for title, model in _sections("the top level", config.Config):
        rows = [_row(name, model, field) for name, field in model.model_fields.items() if not field.exclude]
        doc = " ".join((model.__doc__ or "").split("\n\n")[0].split())
        parts += [f"## {title}\n", doc + "\n", table(("key", "type", "default", "what it is"), rows)]
    default = json.dumps(config.Config().model_dump(mode="json", exclude_none=True), indent=2, ensure_ascii=False)
    parts += ["## What is in force without a file\n", fenced("json", default)]
    return "\n".join(parts)


def _sections(title: str, model: type[BaseModel]) -> Iterator[tuple[str, type[BaseModel]]]:
    yield title, model
    path = "" if model is config.Config else title.strip("[]")
    for name, field in model.model_fields.items():
        inner = config._model_in(field.annotation) or next(
            (found for each in get_args(field.annotation) if (found := config._model_in(each))), None
        )
        if inner is None:
            continue
        inside = f"{path}.{name}" if path else name
        if get_origin(field.annotation) is dict:
            inside += '."SCOPE"' if name == "budget" else ".NAME"
        yield from _sections(f"[[{inside}]]" if get_origin(field.annotation) is tuple else f"[{inside}]", inner)


def _row(name: str, model: type[BaseModel], field: FieldInfo) -> tuple[str, ...]:
    if field.is_required():
        default = "required"
    else:
        value = field.get_default(call_default_factory=True)
        is_long = isinstance(value, BaseModel) or (isinstance(value, dict) and value)
        default = "see below" if is_long else "none" if value is None else code(json.dumps(value, ensure_ascii=False))
    limits = [f"{word} {bound:,}" for word, bound in _limits(field)]
    kind = ", ".join([_kind(get_type_hints(model, include_extras=True)[name]), *limits])
    return code(field.alias or name), kind, default, field.description or "a section of its own, see below"


def _limits(field: FieldInfo) -> Iterator[tuple[str, float]]:
    for rule in field.metadata:
        for attribute, word in (("ge", "at least"), ("gt", "more than"), ("le", "at most")):
            if hasattr(rule, attribute):
                yield word, getattr(rule, attribute)


def _kind(hint: Any) -> str:  # Any: annotations have no common type
    simple: dict[Any, str] = {
        values.SecretRef: "secret by reference",
        values.PerMillion: "decimal string", values.Amount: "decimal string", values.Joules: "decimal string",
        values.Seconds: "decimal string", values.Size: "size", values.Cron: "five fields of cron",
        str: "text", int: "whole number", float: "number", bool: "true or false",
    }  # fmt: skip
    origin, inner = get_origin(hint), [each for each in get_args(hint) if each not in (type(None), Ellipsis)]
    if hint in simple:
        return simple[hint]
    if origin is Literal:
        return ", ".join(code(json.dumps(value)) for value in inner)
    if origin in (Union, UnionType):
        return " or ".join(map(_kind, inner))
    if origin is tuple:
        return f"list of {_kind(inner[0])}"
    if origin is dict:
        return "table of " + (_kind(inner[1]) if config._model_in(inner[1]) is None else "tables")
    return "table"


def schema_page() -> str:
    """The store as SQL, and its one public view with every column."""
    folder = resources.files("twolane.store")
    later = sorted(path.name for path in folder.iterdir() if path.name.startswith("migration_"))
    sql = "\n".join(folder.joinpath(name).read_text(encoding="utf-8") for name in ("schema.sql", *later))
    with sqlite3.connect(":memory:") as database:
        database.executescript(sql)
        names = [row[1] for row in database.execute("PRAGMA table_info(trace_steps)")]
    database.close()
    rows = [(code(name), COLUMNS[name]) for name in names]
    return "\n".join([
        MADE,
        "# The store\n",
        "Tables may change between releases; the view `trace_steps` is a public contract.\n",
        "## trace_steps\n",
        "One row for each attempt that left the house or was answered from a memo, read from the ledger itself. NULL "
        "is unknown, which is not zero.\n",
        table(("column", "what it is"), rows),
        "## The schema\n",
        fenced("sql", sql),
    ])  # fmt: skip


COLUMNS: Mapping[str, str] = {
    "step": "the attempt's own id, 96 random bits in hex",
    "run": "its run; NULL online",
    "item": "its item by the source id; by its pseudonym once the item is erased; NULL online",
    "agent": "the agent's or the tool's name, behind those of the workflows it was called within; NULL online",
    "workflow": "the workflow's name; NULL online",
    "tenant": "who pays",
    "lane": "online or batch",
    "attempt": "counts from 1 within one step of a lane: retries, fallbacks and repairs",
    "kind": "chat, embeddings or tool",
    "upstream": "where it went; for a memo, where it would have gone; NULL for a tool",
    "model": "the upstream's own name of its model; NULL for a tool",
    "input_tokens": "all of them, cached ones included",
    "output_tokens": "all of them, reasoning included",
    "cache_read_tokens": "input tokens read from a cache, as the upstream reported",
    "cache_write_tokens": "input tokens written to a cache, as the upstream reported",
    "reasoning_tokens": "output tokens spent on reasoning, as the upstream reported",
    "cost_pico": "what was charged, in picounits (10⁻¹²) of the currency; NULL where the upstream is unpriced",
    "currency": "ISO 4217",
    "queued_us": "microseconds of waiting for a slot",
    "ttft_us": "microseconds from leaving the house to the first event",
    "total_us": "microseconds from leaving the house to the end",
    "status": "ok, refused, reused, failed, cancelled, killed or in_doubt",
    "reason": "why, where it is not ok",
    "input_digest": "salted commitment to what was asked",
    "output_digest": "salted commitment to what came back",
    "leaf": "its position in the ledger, from 0",
}


def layers_page() -> str:
    """The layers as the import check knows them, with the first line of each module."""
    rules = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]["contracts"]
    layers = next(rule["layers"] for rule in rules if rule["id"] == "layers")
    rows = []
    for layer in layers:
        names = [name.strip() for name in layer.split("|") if not name.strip().startswith("(")]
        rows.append((" \\| ".join(map(code, names)), "<br>".join(map(_first_line, names))))
    drawing = "\n   │\n".join(f"{layer}" for layer in layers)
    return "\n".join([
        MADE,
        "# Layers\n",
        "Imports point downwards only; `lint-imports` checks it. What stands beside a bar never imports its neighbour; "
        "what stands in brackets is planned.\n",
        fenced("text", drawing),
        table(("layer", "what it is"), rows),
    ])  # fmt: skip


def _first_line(name: str) -> str:
    package = ROOT / "src" / "twolane" / name
    path = package / "__init__.py" if package.is_dir() else package.with_suffix(".py")
    return path.read_text(encoding="utf-8").split('"""')[1].split("\n")[0] if path.exists() else ""


def code(text: str) -> str:
    """Text as code in a table's cell."""
    return f"`{text}`"


def table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """A Markdown table."""
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ("---",) * len(head), *rows)) + "\n"


def fenced(language: str, text: str) -> str:
    """A block of code."""
    lines = "\n".join(line.rstrip() for line in text.strip("\n").split("\n"))
    return f"```{language}\n{lines}\n```\n"


def pages() -> dict[str, str]:
    """Every generated page by its name."""
    schema = json.dumps(config.Config.model_json_schema(), indent=2, ensure_ascii=False) + "\n"
    return {
        "cli.md": cli_page(),
        "config.md": config_page(),
        "config.schema.json": schema,
        "layers.md": layers_page(),
        "schema.md": schema_page(),
    }


def main() -> None:
    """Write them, or check them."""
    wanted = pages()
    kept = {name: path.read_text("utf-8") for name in wanted if (path := REFERENCE / name).exists()}
    stale = [name for name, text in wanted.items() if kept.get(name) != text]
    if "--check" in sys.argv[1:]:
        sys.exit(f"stale: {', '.join(f'docs/reference/{name}' for name in stale)}. Run: make docs" if stale else 0)
    REFERENCE.mkdir(exist_ok=True)
    for name in stale:
        (REFERENCE / name).write_text(wanted[name], encoding="utf-8")
        sys.stdout.write(f"docs/reference/{name}\n")


if __name__ == "__main__":
    main()
