"""The ledger."""

from __future__ import annotations

import typer

from twolane.cli.output import ConfigOption, JsonOption, emit, load_config, new_app
from twolane.platform import verify_store

app = new_app("The ledger: verify it.")


@app.callback()
def _noun() -> None:
    """Keep `verify` a verb of its own."""


@app.command()
def verify(config: ConfigOption = None, is_json: JsonOption = False) -> None:
    """Recompute every hash, chain, total and the root from the entries alone. Exit code 4 if anything differs."""
    verdict = verify_store(load_config(config))
    answer = {
        "ok": verdict.ok,
        "entries": verdict.entries,
        "root": verdict.root,
        "first_bad": verdict.first_bad,
        "problem": verdict.problem or None,
        "seconds": round(verdict.seconds, 6),
    }
    line = f"{verdict.entries:,} entries, root {verdict.root[:16]}…, {verdict.seconds:.3f} s"
    emit(is_json, answer, [f"ok: {line}" if verdict.ok else f"NOT OK: {verdict.problem} ({line})"])
    raise typer.Exit(0 if verdict.ok else 4)
