"""Routes → handlers, each behind its permission; and the server around them."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import socket
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from types import FrameType
from typing import cast

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match
from starlette.routing import Route as StarletteRoute
from starlette.types import Receive, Scope, Send

from twolane.config import Config, near, resolve_secret
from twolane.domain.records import Lane
from twolane.errors import BadRequest, ConfigError, Fenced, Killed, NotFound, TwolaneError, Unavailable
from twolane.kernel import Kernel
from twolane.online import api, wire
from twolane.online.auth import Gate, Grant, is_loopback, list_keys
from twolane.online.chat import chat, messages
from twolane.online.completions import ChatCompletions
from twolane.online.connection import Connection
from twolane.online.embeddings import embeddings
from twolane.online.messages import MESSAGES
from twolane.online.openapi import describe
from twolane.online.patience import Patience
from twolane.online.responses import Responses
from twolane.online.stream import ClientGone, Exchange, Header
from twolane.online.wire import Wire

END_S = 5
"""How long an answer that was cancelled at the end of the drain may take to end, and its client to take it."""
AWAY_RETRY_S = 1.0
"""When to come back to a server that is about to end: at once to another one, or to this one's successor."""
_LOG = logging.getLogger("twolane.online")

Handler = Callable[[Kernel, Grant, Exchange], Awaitable[None]]

OPENAI = ChatCompletions()
RESPONSES = Responses()


class Permission(StrEnum):
    """What a request must be allowed to do."""

    OPEN = "open"
    """Anybody."""
    USE = "use"
    """Whoever may call models: a key, or this machine before the first key."""
    VIEW = "view"
    """Whoever may look at what a tenant's runs do. Until keys have roles, the same as `USE`."""
    OPERATE = "operate"
    """Whoever acts for a person: an operator's key, or this machine before the first key. No program that is stopped
    by a switch may reset it."""
    MONITOR = "monitor"
    """Whoever may read figures: all of them with the scrape key, those of its tenant with a key."""


@dataclass(frozen=True, slots=True)
class Route:
    """One address of the gateway. There is no default permission: a route that forgets it does not type-check."""

    method: str
    path: str
    permission: Permission
    handler: Handler
    wire: Wire = OPENAI
    """The protocol its clients speak."""

    @property
    def is_open(self) -> bool:
        """True where nobody needs a key."""
        return self.permission is Permission.OPEN


async def health(kernel: Kernel, grant: Grant, exchange: Exchange) -> None:
    """GET /healthz: the process answers, its store can be read, and it was not taken for dead. It is `degraded`
    while the books of budgets disagree with the record: see the entries of kind `alarm`."""
    kernel.store.version()
    if kernel.presence.is_buried:
        raise Fenced
    await exchange.answer(200, {"status": "degraded" if kernel.drifted else "ok"})


async def list_models(kernel: Kernel, grant: Grant, exchange: Exchange) -> None:
    """GET /v1/models: the routes and upstreams this key may name."""
    await exchange.answer(200, wire.models_fields(_names(kernel, grant)))


async def show_model(kernel: Kernel, grant: Grant, exchange: Exchange) -> None:
    """GET /v1/models/{id}."""
    name, names = exchange.scope["path_params"]["id"], _names(kernel, grant)
    if name not in names:
        raise wire.no_such_model(NotFound(f"there is no route or upstream {name!r}{near(name, names)}"))
    await exchange.answer(200, wire.model_fields(name))


async def show_description(kernel: Kernel, grant: Grant, exchange: Exchange) -> None:
    """GET /api/v1/openapi.json."""
    await exchange.answer(200, describe(ROUTES))


async def no_response_kept(kernel: Kernel, grant: Grant, exchange: Exchange) -> None:
    """Whatever is asked about a response that was given before."""
    raise NotFound("Responses are not kept here, so none can be read or deleted: send the whole conversation each time")


def _names(kernel: Kernel, grant: Grant) -> list[str]:
    return [name for name in (*kernel.config.route, *kernel.upstreams) if grant.allows(name)]


ROUTES = (
    Route("POST", "/v1/chat/completions", Permission.USE, chat, OPENAI),
    Route("POST", "/v1/messages", Permission.USE, messages, MESSAGES),
    Route("POST", "/v1/responses", Permission.USE, chat, RESPONSES),
    Route("GET", "/v1/responses/{id:path}", Permission.USE, no_response_kept, RESPONSES),
    Route("POST", "/v1/responses/{id:path}", Permission.USE, no_response_kept, RESPONSES),
    Route("DELETE", "/v1/responses/{id:path}", Permission.USE, no_response_kept, RESPONSES),
    Route("POST", "/v1/embeddings", Permission.USE, embeddings),
    Route("GET", "/v1/models", Permission.USE, list_models),
    Route("GET", "/v1/models/{id:path}", Permission.USE, show_model),
    Route("GET", "/healthz", Permission.OPEN, health),
    Route("GET", "/metrics", Permission.MONITOR, api.show_metrics),
    Route("GET", "/api/v1/openapi.json", Permission.OPEN, show_description),
    Route("GET", "/api/v1/upstreams", Permission.USE, api.list_upstreams),
    Route("GET", "/api/v1/steps/{id}", Permission.USE, api.show_step),
    Route("GET", "/api/v1/budgets", Permission.USE, api.list_budgets),
    Route("GET", "/api/v1/costs", Permission.VIEW, api.show_costs),
    Route("GET", "/api/v1/switches", Permission.USE, api.list_switches),
    Route("POST", "/api/v1/switches", Permission.OPERATE, api.trip_switch),
    Route("DELETE", "/api/v1/switches/{scope:path}", Permission.OPERATE, api.reset_switch),
    Route("GET", "/api/v1/runs/{run}/events", Permission.VIEW, api.watch_run),
)
"""Every address there is."""


class Endpoint:
    """A route as a bare ASGI application: it admits, calls the handler, and tells the client what went wrong."""

    def __init__(self, kernel: Kernel, gate: Gate, route: Route, patience: Patience | None = None) -> None:
        self.route = route
        self._kernel, self._patience, self._telemetry = kernel, patience or Patience(), kernel.telemetry
        self._admit: Callable[[Scope], Grant] = {
            Permission.OPEN: lambda scope: Grant(""), Permission.MONITOR: gate.admit_monitor,
            Permission.OPERATE: gate.admit_operator,
        }.get(route.permission, gate.admit)  # fmt: skip

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        tracing, route = self._telemetry.tracing, self.route
        if tracing is None or route.permission is not Permission.USE:  # who scrapes and probes tells nothing new
            await self._answer(scope, receive, send)
            return
        with tracing.request(scope["headers"], route.method, route.path) as span:
            outcome = await self._answer(scope, receive, send)
            if outcome != "ok":
                tracing.fail(span, outcome)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> str:
        """Answer it; "ok", or the code of the error that the client was told."""
        exchange = Exchange(scope, receive, send, self.route.wire, self._patience)
        self._patience.watch(exchange)
        outcome = "ok"
        try:
            await self.route.handler(self._kernel, self._admit(scope), exchange)
        except ClientGone:
            outcome = "client_gone"
        except (TwolaneError, Killed) as error:
            outcome = getattr(error, "code", "killed")
            await exchange.fail(error)
        except asyncio.CancelledError:
            outcome = "cancelled"
            if not self._patience.is_draining:
                raise
            exchange.tell("connection", "close")
            await exchange.fail(_going("the server stops, and this took longer than it can wait"))
        except Exception:  # noqa: BLE001 - the outermost turn of a request: the others go on
            outcome = "internal_error"
            _LOG.exception("request %s", exchange.request_id)
            await exchange.fail(wire.unforeseen(exchange.request_id))
        finally:
            self._patience.leave(exchange)
            self._telemetry.requests[self.route.path, outcome] += 1
        return outcome


class Gateway(Starlette):
    """The routes as one ASGI application. A request whose address is one of ours to the letter goes straight to its
    endpoint: Starlette's middleware and matching cost every event of a stream."""

    def __init__(self, kernel: Kernel, patience: Patience | None = None) -> None:
        gate, self.patience = Gate(kernel), patience or Patience()
        endpoints = [Endpoint(kernel, gate, route, self.patience) for route in ROUTES]
        self._exact = {(e.route.method, e.route.path): e for e in endpoints if "{" not in e.route.path}
        super().__init__(
            routes=[StarletteRoute(e.route.path, e, methods=[e.route.method]) for e in endpoints],
            exception_handlers={404: _no_such_path, 405: _wrong_method},
        )
        self.router.redirect_slashes = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        endpoint = self._exact.get((scope["method"], scope["path"])) if scope["type"] == "http" else None
        if self.patience.is_draining:
            await _turn_away(Exchange(scope, receive, send, endpoint.route.wire if endpoint else OPENAI))
            return
        await (super().__call__ if endpoint is None else endpoint)(scope, receive, send)


def create_app(kernel: Kernel, patience: Patience | None = None) -> Gateway:
    """The gateway over an open kernel. It opens nothing and closes nothing: the kernel is its owner's."""
    return Gateway(kernel, patience)


async def _turn_away(exchange: Exchange) -> None:
    """What a request is told that comes after the server was told to stop: another server may take it."""
    exchange.tell("connection", "close")
    refusal = _going("the server is about to stop and takes no new request")
    if exchange.scope["path"] == "/healthz":
        await exchange.answer(503, {"status": "draining"}, wire.error_headers(refusal))
    else:
        await exchange.fail(refusal)


def _going(problem: str) -> Unavailable:
    return Unavailable(problem, code="draining", retry_after_s=AWAY_RETRY_S)


async def _no_such_path(request: Request, error: Exception) -> Response:
    path, paths = request.url.path, list(dict.fromkeys(route.path for route in ROUTES))
    return _Refusal(NotFound(f"there is no {path!r} here{near(path, paths)}"))


async def _wrong_method(request: Request, error: Exception) -> Response:
    refusal = BadRequest(f"{request.url.path} does not take {request.method}")
    refusal.status, refusal.code = 405, "method_not_allowed"
    taken = {
        method
        for route in request.app.routes
        if isinstance(route, StarletteRoute) and route.matches(request.scope)[0] is not Match.NONE
        for method in route.methods or ()
    }
    return _Refusal(refusal, [(b"allow", ", ".join(sorted(taken)).encode())])


class _Refusal(Response):
    """An error outside of every route, told like any other."""

    def __init__(self, error: TwolaneError, headers: Sequence[Header] = ()) -> None:
        self._error, self._more = error, headers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = Exchange(scope, receive, send, OPENAI)
        for name, value in self._more:
            exchange.tell(name.decode(), value.decode())
        await exchange.fail(self._error)


# ── the server ──


async def serve(config: Config, *, announce: Callable[[str], None]) -> None:
    """Open a kernel and serve it until SIGTERM or SIGINT; running answers may then finish within `serve.drain_s`. A
    second signal cancels them at once. Each is recorded, whichever way it ends.

    `announce` is called once, with the address, when connections are accepted.

    Raises:
        ConfigError: a secret is missing, the address cannot be taken, or is public while there is no API key.
    """
    if config.telemetry.scrape_key is not None:
        resolve_secret(config.telemetry.scrape_key)  # what is wrong with it is said before anything is opened
    kernel = await Kernel.open(config)
    # What is loaded by now stays, so the collector need not look at it again; and to look for cycles at every 700 new
    # objects cost a twentieth of the processor time. The older generations are small then, and looked through often:
    # what was in flight at one look must not wait for ever for the next, with all the bytes it holds.
    gc.freeze()
    gc.set_threshold(5_000, 5, 5)
    address = ""
    server = Server(create_app(kernel), drain_s=config.serve.drain_s, on_ready=lambda: announce(address))
    with _heard(server.handle_exit):  # until all is closed: a signal must not end the process before its last records
        try:
            _refuse_open_door(kernel)
            await kernel.lanes.hold(Lane.ONLINE)  # no first token waits for the store
            with _listen(config.serve.host, config.serve.port) as listener:
                host = f"[{config.serve.host}]" if ":" in config.serve.host else config.serve.host
                address = f"http://{host}:{listener.getsockname()[1]}"
                await server.serve(sockets=[listener])
        finally:
            await kernel.aclose()


def _refuse_open_door(kernel: Kernel) -> None:
    host = kernel.config.serve.host
    if is_loopback(host) or any(key.revoked_us is None for key in list_keys(kernel)):
        return
    raise ConfigError(
        f"{host} can be reached from other machines, and there is no API key yet",
        where="serve.host",
        hint="Make one first: twolane key create --tenant T --name N",
    )


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise ConfigError(
            f"{host}:{port} cannot be taken: {error.strerror or error}",
            where="serve",
            hint="Choose another one with --port, or --port 0 for a free one",
        ) from None


@contextmanager
def _heard(on_signal: Callable[[int, None], None]) -> Iterator[None]:
    """While open, SIGTERM and SIGINT call this instead of ending the process."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, on_signal, number, None)
    try:
        yield
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)


class Server(uvicorn.Server):
    """The HTTP server. Stopping it ends this object and not the process, so that the kernel can still be closed."""

    def __init__(self, app: Gateway, *, drain_s: float = 30, on_ready: Callable[[], None] = lambda: None) -> None:
        # uvicorn calls it with its own options, so whatever makes a connection of them will do.
        connect = cast(type[asyncio.Protocol], partial(Connection, app.patience))
        super().__init__(
            uvicorn.Config(
                app,
                http=connect,
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_keep_alive=75,
            )
        )
        self._patience, self._drain_s, self._on_ready = app.patience, drain_s, on_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept connections, then say so."""
        await super().startup(sockets)
        self._on_ready()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Turn requests away from this moment on, though the main loop looks at `should_exit` only ten times a second.
        The second time nothing is waited for: what runs is cancelled, and recorded as that."""
        self.force_exit = self.should_exit
        self.should_exit = self._patience.is_draining = True
        if self.force_exit:
            self._cancel_answers()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Let running answers finish within the drain, cancel the others, and wait until each has ended: the original
        does not wait for these, and what they came to would not be recorded. It also closes idle connections at once,
        in the face of requests that are on their way; here these are answered as long as the drain lasts."""
        drained = self._now() + self._drain_s
        self._patience.is_draining = True
        for server in self.servers:
            server.close()
        for listener in sockets or ():
            listener.close()
        for connection in self._connections():
            connection.end_after_answer()
        await self._answered(drained)
        self._cancel_answers()
        await self._answered(self._now() + END_S)
        await self._close_connections(max(drained, self._now() + END_S))

    def _cancel_answers(self) -> None:
        for task in list(self.server_state.tasks):
            task.cancel("the server stops")
        if self.force_exit:
            for connection in self._connections():
                if connection.flow.write_paused:  # nobody waits for a client now
                    connection.give_up()

    async def _answered(self, until: float) -> None:
        """Wait until nothing is being answered, but no longer than this."""
        while self.server_state.tasks and (left_s := until - self._now()) > 0:
            await asyncio.wait(set(self.server_state.tasks), timeout=left_s)

    async def _close_connections(self, until: float) -> None:
        """Close all; until then their clients may take what was sent to them."""
        for connection in self._connections():
            connection.shutdown()
        # Each ends by itself, and nobody else asks for the last one.
        while self.server_state.connections and self._now() < until and not self.force_exit:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        for connection in self._connections():
            connection.give_up()

    def _connections(self) -> list[Connection]:
        return [each for each in self.server_state.connections if isinstance(each, Connection)]

    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are its owner's: they are to be heard for longer than it serves."""
        yield
