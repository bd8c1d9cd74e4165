"""`twolane doctor`: is this installation sound, and what can an upstream do?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from twolane.cli.output import ConfigOption, JsonOption, emit, load_config, new_app, run, table

if TYPE_CHECKING:
    from twolane.config import Config
    from twolane.online.probe import Probe

app = new_app("Is this installation sound? With `upstream NAME`: what can that server do?")


@app.callback(invoke_without_command=True, no_args_is_help=False)
def doctor(context: typer.Context, config: ConfigOption = None, json: JsonOption = False) -> None:
    """Check the installation: one line each, ok, warning or problem, with what to do. No model is called."""
    if context.invoked_subcommand is not None:
        return
    from twolane.cli.checkup import State, check_up

    lines = run(check_up(load_config(config)))
    is_sound = all(line.state is not State.PROBLEM for line in lines)
    objects = [{"state": line.state, "what": line.what, "text": line.text, "todo": line.todo} for line in lines]
    emit(json, {"ok": is_sound, "checks": objects}, [str(line) for line in lines])
    if not is_sound:
        raise typer.Exit(1)


@app.command()
def upstream(
    name: Annotated[str, typer.Argument(help="the upstream, as [upstream.NAME] names it")],
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Probe an upstream with three small calls: streaming, usage, structured output, rate headers, and whether it
    stops when a client leaves. The answer is kept. Ends with 1 if it cannot be reached."""
    from twolane.rules.probing import Verdict

    found = run(_probe(load_config(config), name))
    rows = [(finding.what, finding.verdict, finding.detail) for finding in found.findings]
    emit(json, found.as_fields(), lambda: [*table(rows, head=("probe", "answer", "because")), "", _bill(found)])
    if found.findings[0].verdict is not Verdict.YES:
        raise typer.Exit(1)


async def _probe(config: Config, name: str) -> Probe:
    from twolane.kernel import Kernel
    from twolane.online.probe import probe

    # The others' secrets may be missing: that is for `twolane doctor` to say.
    only = {each: section for each, section in config.upstream.items() if each == name or section.url is None}
    if name in only:  # said and not left to what was found before: what is configured is what is probed
        only[name] = only[name].model_copy(update={"structured": only[name].structured})
    kernel = await Kernel.open(config if name not in only else config.model_copy(update={"upstream": only}))
    try:
        return await probe(kernel, name)
    finally:
        await kernel.aclose()


def _bill(found: Probe) -> str:
    from twolane.domain.money import decimal_string

    if not found.calls:  # what failed was an attempt, and may have its price: the records know
        return (
            "No call was answered; what they cost all the same: twolane cost report --by upstream. Kept in the store."
        )
    cost = "unpriced" if found.pico is None else f"cost {decimal_string(found.pico)}"
    return f"{found.calls} calls, {found.tokens:,} tokens, {cost}. Kept in the store; `twolane doctor` shows it."
