"""Write a commented configuration to begin with."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Annotated

import typer

from twolane.cli.output import new_app
from twolane.errors import UsageError

app = new_app("Write a commented twolane.toml.")


@app.command()
def init(path: Annotated[str, typer.Argument(help="where to")] = "twolane.toml") -> None:
    """Write a commented twolane.toml. An existing file is left alone."""
    text = resources.files("twolane.cli").joinpath("twolane.toml").read_text(encoding="utf-8")
    try:
        with Path(path).open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise UsageError(
            f"{path} is there already; it was left as it is", hint="Name another: twolane init PATH"
        ) from None
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}") from None
    print(f"{path} is written. Check it: twolane config check --config {path}")
