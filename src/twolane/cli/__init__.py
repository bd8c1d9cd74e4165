"""Verbs for people: noun, then verb. Each noun is a file of its own, imported only when it is used.

Every command takes `--json` (one object on standard output) and ends with 0 ok, 1 failed, 2 usage, 3 stopped by a
budget or a switch, 4 the ledger does not verify.
"""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Sequence
from importlib import metadata

_COMMANDS = {
    "demo": "watch the whole story: 24 contracts, a crash, a resume, a changed agent",
    "init": "write a commented twolane.toml",
    "ask": "one online request, streamed",
    "run": "batch: forecast, plan, start, list, show, watch, pause, resume, fork, diff, kill",
    "quarantine": "items that wait for a person: list, show, release",
    "work": "a worker for runs that were started without --wait",
    "schedule": "runs that start by themselves: list",
    "serve": "the gateway",
    "up": "the gateway and a worker, on one machine",
    "doctor": "check the installation, or probe an upstream",
    "key": "API keys: create, list, revoke",
    "budget": "hard limits: list, set, lift, reconcile",
    "cost": "what it all costs: report, export",
    "switch": "kill switches: list, trip, reset",
    "audit": "the ledger: verify",
    "config": "the configuration: check, show, schema",
}
"""Every command with its one line of help, so that `--help` imports none of them."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and exit with its code. Errors of the house become one line: what, why, what next."""
    name, *rest = (list(sys.argv[1:]) if arguments is None else list(arguments)) or ["--help"]
    if name in ("-h", "--help"):
        print(_help())
        sys.exit(0)
    if name == "--version":
        print(f"twolane {metadata.version('twolane')}")
        sys.exit(0)
    if name not in _COMMANDS:
        close = difflib.get_close_matches(name, _COMMANDS, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ". See: twolane --help"
        print(f"error: there is no command {name!r}{hint}", file=sys.stderr)
        sys.exit(2)
    sys.exit(_run(name, rest))


def _run(name: str, arguments: list[str]) -> int:
    import typer.main

    from twolane.errors import TwolaneError

    command = typer.main.get_command(importlib.import_module(f"twolane.cli.{name}").app)
    try:
        command.main(args=arguments, prog_name=f"twolane {name}")
    except TwolaneError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        sys.stdout = None  # the reader is gone: nothing is flushed to it at exit
        return 1
    return 0


def _help() -> str:
    width = max(map(len, _COMMANDS))
    lines = "\n".join(f"  {name:<{width}}  {line}" for name, line in _COMMANDS.items())
    return (
        "Twolane: two lanes, one door, one ledger under an organisation's AI.\n\n"
        "Usage: twolane COMMAND [OPTIONS]     twolane COMMAND --help     twolane --version\n\n"
        f"Commands:\n{lines}"
    )
