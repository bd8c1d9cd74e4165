"""The configuration."""

from __future__ import annotations

import orjson

from twolane.cli.output import ConfigOption, JsonOption, emit, load_config, new_app
from twolane.config import Config

app = new_app("The configuration: check, show, schema.")


@app.command()
def check(config: ConfigOption = None, is_json: JsonOption = False) -> None:
    """Read it and say whether it is sound. Nothing is opened."""
    loaded = load_config(config)
    where = str(loaded.source) if loaded.source else "the embedded default (there is no twolane.toml here)"
    answer = {"ok": True, "file": str(loaded.source) if loaded.source else None}
    names = f"{len(loaded.upstream)} upstreams, {len(loaded.route)} routes, {len(loaded.budget)} budgets"
    emit(is_json, answer, [f"ok: {where}: {names}; the store is {loaded.store_name()}"])


@app.command()
def show(config: ConfigOption = None, is_json: JsonOption = True) -> None:
    """Every value as it is in force, defaults included, and what each upstream costs now: prices, where they come from,
    and the id that entries have. Secrets are shown as their references."""
    from twolane.kernel.prices import quotes

    loaded = load_config(config)
    prices = {name: quote.shown() or {"none": quote.why or "there is none"} for name, quote in quotes(loaded).items()}
    emit(True, loaded.model_dump(mode="json", exclude_none=True, by_alias=True) | {"prices": prices})


@app.command()
def schema(is_json: JsonOption = True) -> None:
    """The JSON Schema of twolane.toml, for editors."""
    print(orjson.dumps(Config.model_json_schema(), option=orjson.OPT_INDENT_2).decode())
