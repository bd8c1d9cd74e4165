"""`twolane serve`: the gateway."""

from __future__ import annotations

from typing import Annotated

import typer

from twolane.cli.output import ConfigOption, load_config, new_app

app = new_app("The gateway: an OpenAI-compatible address whose every call has a price, a limit, a record and a switch.")


@app.command()
def serve(
    config: ConfigOption = None,
    host: Annotated[str | None, typer.Option(help="address to listen on; else serve.host")] = None,
    port: Annotated[int | None, typer.Option(help="port, 0 for a free one; else serve.port", min=0, max=65535)] = None,
) -> None:
    """Serve until SIGTERM or Ctrl-C; running answers may then finish."""
    import uvloop

    from twolane.online.app import serve as serve_gateway

    loaded = load_config(config)
    changes = {name: value for name, value in (("host", host), ("port", port)) if value is not None}
    loaded = loaded.model_copy(update={"serve": loaded.serve.model_copy(update=changes)})
    uvloop.run(serve_gateway(loaded, announce=lambda address: print(f"twolane serves {address}/v1", flush=True)))
