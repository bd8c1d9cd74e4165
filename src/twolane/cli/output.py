"""What commands share: the options every one takes, and how an answer is shown."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from twolane import config as configuration

if TYPE_CHECKING:
    from twolane.config import Config

T = TypeVar("T")

ConfigOption = Annotated[
    str | None, typer.Option("--config", help="the configuration file; else TWOLANE_CONFIG, else twolane.toml")
]
JsonOption = Annotated[bool, typer.Option("--json", help="print one JSON object")]


def new_app(help_text: str) -> typer.Typer:
    """A noun's own commands."""
    return typer.Typer(
        help=help_text,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        no_args_is_help=True,
        add_completion=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )


def load_config(path: str | None) -> Config:
    """The configuration a command works with."""
    return configuration.load(path)


def emit(is_json: bool, answer: Mapping[str, object], lines: Sequence[str] | Callable[[], Sequence[str]] = ()) -> None:
    """Show an answer: as one JSON object, or as lines of text. Control characters in text are shown, not obeyed."""
    if is_json:
        import orjson

        sys.stdout.write(orjson.dumps(answer, option=orjson.OPT_INDENT_2).decode() + "\n")
        return
    for line in lines() if callable(lines) else lines:
        print(plain(line))


def plain(text: str) -> str:
    """Text from outside as a terminal may show it: escape sequences and other control characters made visible."""
    return "".join(c if c.isprintable() or c in "\n\t" else f"\\x{ord(c):02x}" for c in text)


def table(rows: Sequence[Sequence[str]], *, head: Sequence[str]) -> list[str]:
    """Rows as aligned columns under a head."""
    columns = list(zip(*(head, *rows), strict=True))
    widths = [max(len(cell) for cell in column) for column in columns]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in (head, *rows)
    ]


def run(work: Coroutine[Any, Any, T] | Awaitable[T]) -> T:
    """Run a command's coroutine to its end."""

    async def go() -> T:
        return await work

    return asyncio.run(go())


def run_worker(work: Coroutine[Any, Any, T]) -> T:
    """The same for a command that works on a run: on the quicker loop, and looking for cycles at every 5,000 new
    objects instead of 700, which took a fifteenth of a step's time. What is loaded by now need not be looked at again.
    """
    import gc

    import uvloop

    gc.freeze()
    gc.set_threshold(5_000, 5, 5)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(work)
