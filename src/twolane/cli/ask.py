"""`twolane ask`: one online request, streamed to the terminal. No server is needed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from twolane.cli.output import ConfigOption, JsonOption, emit, load_config, new_app, plain, run

if TYPE_CHECKING:
    from twolane.config import Config
    from twolane.domain.document import Document
    from twolane.online.ask import Asked

app = new_app("One online request: the answer as it comes, then what it took.")


@app.command()
def ask(
    question: Annotated[str, typer.Argument(help="what to ask")],
    file: Annotated[list[Path] | None, typer.Option("--file", "-f", help="a document, or a folder of them")] = None,
    model: Annotated[str, typer.Option(help="a route or an upstream")] = "auto",
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Ask a question, about documents where some are given; then show time, tokens and cost."""
    loaded = load_config(config)
    documents: list[Document] = []
    if file:
        from twolane.knowledge.ingest import read_documents

        documents = read_documents([str(path) for path in file])
    asked = run(_ask(loaded, question, documents, model, is_silent=json))
    if json:
        emit(True, _fields(asked, loaded))
        return
    print()
    print(_summary(asked), file=sys.stderr)


async def _ask(config: Config, question: str, documents: list[Document], model: str, *, is_silent: bool) -> Asked:
    from twolane.kernel import Kernel
    from twolane.online.ask import ask as ask_kernel

    kernel = await Kernel.open(config)
    try:
        return await ask_kernel(
            kernel, question, documents=documents, model=model, on_text=None if is_silent else _show
        )
    finally:
        await kernel.aclose()


def _show(text: str) -> None:
    sys.stdout.write(plain(text))
    sys.stdout.flush()


def _fields(asked: Asked, config: Config) -> dict[str, object]:
    from twolane.domain.money import decimal_string

    usage = asked.usage
    return {
        "answer": asked.answer,
        "model": asked.model,
        "upstream": asked.upstream,
        "reason": asked.reason,
        "step": asked.step,
        "ttft_ms": None if asked.ttft_ms is None else round(asked.ttft_ms, 3),
        "tokens": {"input": usage.input_tokens if usage else None, "output": usage.output_tokens if usage else None},
        "estimated": usage.estimated if usage else None,
        "cost": None if asked.cost is None else decimal_string(asked.cost.pico),
        "currency": config.currency,
        "seconds": round(asked.seconds, 6),
    }


def _summary(asked: Asked) -> str:
    usage, about = asked.usage, "≈" if asked.usage and asked.usage.estimated else ""
    parts = [
        f"{asked.model} → {asked.upstream}",
        f"first token {asked.ttft_ms:.0f} ms" if asked.ttft_ms is not None else "first token unknown",
        f"{about}{usage.input_tokens:,} + {about}{usage.output_tokens:,} tokens" if usage else "tokens unknown",
        str(asked.cost) if asked.cost is not None else "cost unknown",
        f"{asked.seconds:.2f} s",
        f"step {asked.step}",
    ]
    return " · ".join(parts)
