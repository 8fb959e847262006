"""Serves an ASGI application through a hybrid connection."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from trunkline.protocol.errors import ConnectionLost, InvalidSetting
from trunkline.sdk.asgi.form_body import CollectedForm, must_be_collected
from trunkline.sdk.asgi.http_exchange import HttpExchange
from trunkline.sdk.asgi.lifespan import Lifespan
from trunkline.sdk.asgi.scopes import Application, Mount, Scope
from trunkline.sdk.asgi.websocket_session import WebSocketSession
from trunkline.sdk.connection import Connection
from trunkline.sdk.incoming import IncomingConnection
from trunkline.sdk.listener import OPEN_TIMEOUT, HybridConnectionListener
from trunkline.sdk.relayed_http import HttpRequest

log = logging.getLogger("trunkline.sdk.asgi")

#: Seconds that requests and WebSockets get to end by themselves when the host closes, unless told otherwise.
SHUTDOWN_TIMEOUT = 10.0


@dataclass(frozen=True)
class Served:
    """One request that was answered, or one WebSocket that was accepted or denied; for a line in a log."""

    #: "GET", "POST", ...; "WEBSOCKET" for a WebSocket.
    method: str
    #: As the application's users know it, without the query, which may hold secrets.
    path: str
    #: What the sender got; 101 for a WebSocket that was accepted, 0 for a sender that went before its answer.
    status: int
    #: From the sender's request to the end of its answer; of a WebSocket, to the decision.
    seconds: float
    #: Bytes of the body that was sent.
    sent: int
    #: IP address of the sender; empty when the relay does not say.
    remote: str
    #: Names it in the relay's log lines and errors.
    tracking_id: str


class AsgiHost:
    """An ASGI 3 application (FastAPI, Starlette, Django, Quart, ...) that senders reach through the relay.

        async with AsgiHost(app, connection_string) as host:
            await host.wait_closed()

    The application is started (lifespan) before the first request, and stopped after the last. HTTP requests and
    WebSockets that senders open on the plain address both reach it. No port is opened.

    Args:
        app: the application.
        address: connection string or address of the hybrid connection, as of `HybridConnectionListener`.
        entity_path: path of the hybrid connection, when `address` does not hold it.
        root_path: what the application's links begin with. None: "/ENTITY", or "" where the sender came by a host name
            of the hybrid connection's own.
        shutdown_timeout: seconds that requests and WebSockets get to end when the host closes; then they are cut.
        on_served: called with each `Served`.
        options: every other argument of `HybridConnectionListener` but its handlers.

    Raises:
        InvalidConnectionString, InvalidUrl, InvalidSetting: the arguments cannot be used.
    """

    def __init__(
        self,
        app: Application,
        address: str,
        *,
        entity_path: str | None = None,
        root_path: str | None = None,
        shutdown_timeout: float = SHUTDOWN_TIMEOUT,
        on_served: Callable[[Served], object] | None = None,
        **options: Any,
    ) -> None:
        if root_path is not None and root_path != "" and (not root_path.startswith("/") or root_path.endswith("/")):
            raise InvalidSetting(f'root_path is {root_path!r}; it must be "", or begin with a slash and end with none')
        self._app = app
        self._lifespan = Lifespan(app)
        self._listener = HybridConnectionListener(
            address, entity_path=entity_path, http_handler=self._request, accept_handler=self._offer, **options
        )
        self._mount = Mount(self._listener._endpoint, root_path)
        self._shutdown_timeout = shutdown_timeout
        self._on_served = on_served
        # How many requests run; the listener owns their tasks.
        self._requests = 0
        # WebSockets from their offer to the end of the application's work on them, and the tasks of that.
        self._sessions: dict[IncomingConnection, WebSocketSession] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        # Hands connections to their sessions, from `open` to `close`; its end is that of the listener.
        self._serving: asyncio.Task[None] | None = None
        self._closing = False

    def __repr__(self) -> str:
        return (
            f"<AsgiHost {self.url} {self._listener.state} requests={self._requests} websockets={len(self._sessions)}>"
        )

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def url(self) -> str:
        """The address at the relay, ``https://relay/ENTITY/``. There may be host names of its own besides."""
        return self._mount.url

    @property
    def listener(self) -> HybridConnectionListener:
        """The listener, for its state and its errors."""
        return self._listener

    async def open(self, timeout: float | None = OPEN_TIMEOUT) -> None:
        """Start the application, then register with the relay.

        Args:
            timeout: seconds to try to register; None for ever.

        Raises:
            LifespanFailed: the application says that it cannot start.
            AuthorizationFailed, EndpointNotFound, TimeoutError, ...: as `HybridConnectionListener.open`; the
                application has been stopped again.
        """
        await self._lifespan.start()
        try:
            await self._listener.open(timeout)
        except BaseException:
            await self._lifespan.stop()
            raise
        # Awaited in `close`.
        self._serving = asyncio.get_running_loop().create_task(self._listener.serve(self._attend))

    async def wait_closed(self) -> None:
        """Wait until the host is closed, or its listener has gone offline for good.

        Raises:
            EndpointNotFound: the hybrid connection is gone.
        """
        if self._serving is not None:
            await asyncio.shield(self._serving)

    async def close(self) -> None:
        """Take nothing more, let what runs end, then stop the application. Safe to call again.

        Raises:
            LifespanFailed: the application says that its shutdown failed.
        """
        if self._closing or self._serving is None:
            return
        self._closing = True
        loop = asyncio.get_running_loop()
        until = loop.time() + self._shutdown_timeout
        running = {self._serving, *self._tasks}
        try:
            for session in self._sessions.values():
                session.go_away()
            await self._listener.close(wait=self._shutdown_timeout)
            await asyncio.wait(running, timeout=max(0, until - loop.time()))
        finally:
            running |= self._tasks
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)
            await self._lifespan.stop()

    # --- requests ---------------------------------------------------------------------------------------------

    async def _request(self, request: HttpRequest) -> None:
        """The listener's HTTP handler."""
        begun = time.monotonic()
        self._requests += 1
        form = None
        try:
            if must_be_collected(request):
                form = await CollectedForm.of(request)
            scope = self._mount.http_scope(request, self._lifespan.state, None if form is None else form.length)
            exchange = HttpExchange(request, self._answered(request, scope, begun), form)
            await exchange.run(self._app, scope)
            if exchange.is_unanswered:
                raise ConnectionLost("The sender has left before its answer", tracking_id=request.tracking_id)
        finally:
            self._requests -= 1
            if form is not None:
                form.close()

    def _answered(self, request: HttpRequest, scope: Scope, begun: float) -> Callable[[int, int], None]:
        return lambda status, sent: self._served(request.method, request, scope, begun, status, sent)

    # --- WebSockets -------------------------------------------------------------------------------------------

    async def _offer(self, incoming: IncomingConnection) -> None:
        """The listener's accept handler: runs the application until it has accepted or denied the sender."""
        begun = time.monotonic()
        scope = self._mount.websocket_scope(incoming, self._lifespan.state)

        def decided(status: int) -> None:
            self._served("WEBSOCKET", incoming, scope, begun, status, 0)

        session = self._sessions[incoming] = WebSocketSession(incoming, decided)
        self._start(self._run_session(session, incoming, scope))
        await session.decide()

    async def _run_session(self, session: WebSocketSession, incoming: IncomingConnection, scope: Scope) -> None:
        try:
            await session.run(self._app, scope)
        finally:
            del self._sessions[incoming]

    async def _attend(self, connection: Connection) -> None:
        """What `serve` runs for each connection that was accepted."""
        assert connection.request is not None
        session = self._sessions.get(connection.request)
        if session is None:  # the application has ended between its accept and the rendezvous
            await connection.close()
        else:
            await session.attend(connection)

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)  # awaited in `close`
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _served(
        self, method: str, of: HttpRequest | IncomingConnection, scope: Scope, begun: float, status: int, sent: int
    ) -> None:
        if self._on_served is None:
            return
        seconds = time.monotonic() - begun
        served = Served(method, scope["path"], status, seconds, sent, of.remote_address[0], of.tracking_id)
        try:
            self._on_served(served)
        except Exception:
            log.exception("on_served failed")


async def serve(app: Application, address: str, **options: Any) -> None:
    """Serve `app` until this is cancelled, or the hybrid connection is gone.

    Args:
        app, address, options: as of `AsgiHost`.

    Raises:
        LifespanFailed, EndpointNotFound, ...: as `AsgiHost.open` and `AsgiHost.wait_closed`.
    """
    async with AsgiHost(app, address, **options) as host:
        await host.wait_closed()
