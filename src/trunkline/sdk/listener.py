"""The listener: stays registered with the relay and turns its offers into connections.

open() -> register -> online -> (lost: wait, register again) ... -> close()
                        |
                        offer -> accept handler -> rendezvous -> accept() / async for
                        request -> HTTP handler -> answer        (`trunkline.sdk.http_service`)
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import inspect
import logging
import uuid
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, Self

from trunkline.protocol import urls
from trunkline.protocol.errors import ConnectionLost, EndpointNotFound, InvalidSetting, RelayError
from trunkline.protocol.limits import HEARTBEAT
from trunkline.protocol.messages import Accept
from trunkline.sdk.clock import SYSTEM_CLOCK, Clock
from trunkline.sdk.connection import MAX_MESSAGE_SIZE, Connection, ConnectionClosed
from trunkline.sdk.control_channel import ControlChannel
from trunkline.sdk.endpoint import TLS, read_endpoint
from trunkline.sdk.http_service import MAX_REQUESTS, HttpHandler, HttpService
from trunkline.sdk.incoming import IncomingConnection, Rejection
from trunkline.sdk.proxy import ProxySetting
from trunkline.sdk.reconnect import Backoff, may_pass
from trunkline.sdk.websocket import USER_AGENT, dial

log = logging.getLogger("trunkline.sdk.listener")

#: Seconds for answering one offer: accept handler and rendezvous. The relay gives up after 30 s; .NET takes 20 s.
ACCEPT_TIMEOUT = 30.0
#: Seconds that `HybridConnectionListener.open` tries unless told otherwise.
OPEN_TIMEOUT = 60.0
#: Seconds for one attempt to register.
CONNECT_TIMEOUT = 30.0
#: Connections that may wait for `accept` unless told otherwise.
BACKLOG = 1024

# The words of .NET, which Microsoft's own tests look for.
_HANDLER_FAILED = Rejection(
    502, "The Listener's custom AcceptHandler threw an exception. See Listener logs for details."
)
_HANDLER_REFUSED = Rejection(400, "Rejected by user code")
_OVERLOADED = Rejection(503, "The listener is overloaded: it has as many connections as it takes")

AcceptHandler = Callable[[IncomingConnection], object]
StateCallback = Callable[["HybridConnectionListener"], object]


class ListenerState(enum.StrEnum):
    """Where a listener stands with the relay."""

    #: Registering, for the first time or after a loss, or waiting to try again.
    CONNECTING = "connecting"
    #: Registered: senders reach it.
    ONLINE = "online"
    #: Not opened yet, closed, or given up for good.
    OFFLINE = "offline"


class HybridConnectionListener:
    """Accepts connections that senders make to a hybrid connection. No port is opened: it dials out to the relay.

        async with HybridConnectionListener(connection_string) as listener:
            async for connection in listener:
                ...

    It keeps itself registered. A lost control channel is found within two heartbeats and made again after 0, 1, 2,
    5, 10, 30, 30, ... seconds (each shortened by chance, never lengthened), beginning anew once it was online. A token
    is renewed before it expires, over the same channel. While running, only one answer is final: 404, the hybrid
    connection does not exist (as in the .NET client); then the listener goes offline and `accept` raises
    EndpointNotFound. Everything else, 401 included, may be put right by somebody, so it is tried again; `last_error`
    says what was wrong.

    Args:
        address: ``sb://host[:port]/path``, or with ``wss``, ``https``, ``ws``, ``http``; or a connection string.
        entity_path: path of the hybrid connection, when `address` does not hold it.
        token_provider: gives tokens with the right Listen: a `TokenProvider` or a credential of azure-identity.
        key_name, key: an authorization rule, instead of `token_provider`.
        ssl: TLS settings; None for the platform's; False for none, with a connection string or ``sb://``.
        proxy: ``http://[user:password@]host:port`` or ``socks5://...``; None to look at ``HTTPS_PROXY``, ``ALL_PROXY``,
            ``NO_PROXY`` and so on (see `trunkline.sdk.proxy`); False for none.
        accept_handler: called with each `IncomingConnection` before it is accepted, sync or async. It may call its
            ``reject``, or set its ``subprotocol``. Returning False rejects it with 400; an exception, with 502.
        http_handler: called with each `HttpRequest` of a sender, in a task of its own; returns an `HttpResponse`, or
            None after it has answered with ``respond``. Without one, requests are answered with 501.
        max_requests: HTTP requests in hand at a time; more are answered with 503. None for no limit.
        max_connections: accepted connections at a time; more are rejected with 503. None for no limit.
        backlog: accepted connections that may wait for `accept`; more are rejected with 503.
        heartbeat: seconds between pings on the control channel and on silent connections and answers; 0 for none.
        connect_timeout: seconds for one attempt to register.
        max_message_size: bytes of the longest message that `Connection.recv` takes; None for no limit.
        on_connecting, on_online, on_offline: called with the listener when its `state` becomes that, sync or async.

    Raises:
        InvalidConnectionString, InvalidUrl, InvalidSetting: the arguments cannot be used.
    """

    def __init__(
        self,
        address: str,
        *,
        entity_path: str | None = None,
        token_provider: Any = None,
        key_name: str | None = None,
        key: str | None = None,
        ssl: TLS = None,
        proxy: ProxySetting = None,
        accept_handler: AcceptHandler | None = None,
        http_handler: HttpHandler | None = None,
        max_requests: int | None = MAX_REQUESTS,
        max_connections: int | None = None,
        backlog: int = BACKLOG,
        heartbeat: float = HEARTBEAT,
        connect_timeout: float = CONNECT_TIMEOUT,
        max_message_size: int | None = MAX_MESSAGE_SIZE,
        on_connecting: StateCallback | None = None,
        on_online: StateCallback | None = None,
        on_offline: StateCallback | None = None,
        _clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._endpoint = read_endpoint(
            address,
            entity_path=entity_path,
            token_provider=token_provider,
            key_name=key_name,
            key=key,
            ssl=ssl,
            proxy=proxy,
        )
        if not self._endpoint.path:
            raise InvalidSetting(
                "No hybrid connection is named: give entity_path, or EntityPath in the connection string"
            )
        if self._endpoint.token_provider is None:
            raise InvalidSetting(
                "A listener needs a token: give key_name and key, a token_provider, or a connection string"
            )
        if max_connections is not None and max_connections < 1:
            raise InvalidSetting(f"max_connections is {max_connections}; it must be at least 1, or None")
        if max_requests is not None and max_requests < 1:
            raise InvalidSetting(f"max_requests is {max_requests}; it must be at least 1, or None")
        if backlog < 1 or heartbeat < 0:
            raise InvalidSetting("backlog must be at least 1, and heartbeat not negative")
        self._accept_handler = accept_handler
        self._max_connections = max_connections
        self._backlog = backlog
        self._heartbeat = heartbeat
        self._connect_timeout = connect_timeout
        self._max_message_size = max_message_size
        self._callbacks = {
            ListenerState.CONNECTING: on_connecting,
            ListenerState.ONLINE: on_online,
            ListenerState.OFFLINE: on_offline,
        }
        self._clock = _clock
        self._http = HttpService(
            http_handler, endpoint=self._endpoint, clock=_clock, heartbeat=heartbeat, max_requests=max_requests
        )
        # The same over all reconnects, as in .NET, so that the relay's log shows one listener.
        self._id = str(uuid.uuid4())
        self._state = ListenerState.OFFLINE
        self._last_error: Exception | None = None
        # Why `accept` raises after the end: None for `close`.
        self._final_error: Exception | None = None
        self._closing = False
        # Until when requests in hand may go on after the channel has ended, in seconds of the clock.
        self._finish_until = 0.0
        self._channel: ControlChannel | None = None
        # Runs from `open` to `close`; owns every other task of the listener.
        self._runner: asyncio.Task[None] | None = None
        self._tasks: asyncio.TaskGroup | None = None
        # Keeps the listener registered; cancelled to end that between two registrations.
        self._staying: asyncio.Task[None] | None = None
        # Answers to offers and renewals of the token: what ends with the registration.
        self._jobs: set[asyncio.Task[None]] = set()
        # State callbacks that run now.
        self._telling: set[asyncio.Task[None]] = set()
        # Offers on their way to becoming connections.
        self._accepting = 0
        self._connections: set[Connection] = set()
        # Accepted connections in order; None at its end.
        self._accepted: asyncio.Queue[Connection | None] = asyncio.Queue()

    def __repr__(self) -> str:
        return f"<HybridConnectionListener {self._endpoint} {self._state} connections={len(self._connections)}>"

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    # --- what it is -------------------------------------------------------------------------------------------

    @property
    def state(self) -> ListenerState:
        """``connecting``, ``online`` or ``offline``; compares equal to these words."""
        return self._state

    @property
    def last_error(self) -> Exception | None:
        """Why the listener was last not online; None while nothing has failed. Kept when it is online again."""
        return self._last_error

    @property
    def entity_path(self) -> str:
        """Path of the hybrid connection."""
        return self._endpoint.path

    @property
    def tracking_id(self) -> str:
        """Names this listener in the relay's log lines and errors."""
        return self._id

    @property
    def connections(self) -> frozenset[Connection]:
        """Accepted connections that have not ended."""
        return frozenset(self._connections)

    # --- begin and end ----------------------------------------------------------------------------------------

    async def open(self, timeout: float | None = OPEN_TIMEOUT) -> None:
        """Register with the relay.

        What may pass by itself (no network, a relay that starts, 429, 5xx) is tried again with the delays of a
        reconnect; what will not (401, 403, 404, an untrusted certificate) raises at once.

        Args:
            timeout: seconds to try; None for ever.

        Raises:
            AuthorizationFailed, AccessDenied, EndpointNotFound, ...: the relay refused.
            ssl.SSLError: the relay's certificate is not trusted, or it does not speak TLS.
            TimeoutError: not online within `timeout`; its ``__cause__`` is the last error.
            RuntimeError: the listener was opened before; make a new one.
        """
        if self._runner is not None:
            raise RuntimeError("A listener is opened once; make a new one")
        opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        # Kept in self._runner, and awaited by `close` whatever happens here.
        self._runner = asyncio.create_task(self._run(opened))  # noqa: TID251
        try:
            async with asyncio.timeout(timeout):
                await asyncio.shield(opened)
        except TimeoutError:
            await self.close()
            last = f": {self._last_error}" if self._last_error is not None else ""
            route = self._endpoint.route
            raise TimeoutError(f"{route} is not online within {timeout:g} s{last}") from self._last_error
        except BaseException:
            await self.close()
            raise
        if self._final_error is not None:
            await self.close()
            raise self._final_error
        if self._closing:
            raise ConnectionClosed("The listener was closed while it opened")

    async def close(self, *, wait: float = 0) -> None:
        """Leave the relay: take no more offers, close the control channel with 1000. Safe to call again.

        Accepted connections are the application's and stay open; those that nobody has taken with `accept` are
        closed with 1011. HTTP requests in hand, and those that the relay sends in this moment, are finished within
        `wait`; then their handlers are cancelled.

        Args:
            wait: seconds to wait for the requests in hand, and then the accepted connections, to end by themselves.
        """
        until = self._clock.monotonic() + wait
        self._closing = True
        self._http.spare()
        self._finish_until = max(self._finish_until, until)
        if not wait:
            self._http.give_up()
        elif self._channel is not None:
            await self._http.leave()
        if self._runner is not None:
            if self._channel is not None:
                self._channel.close()
            elif self._staying is not None:
                self._staying.cancel()
            else:
                self._runner.cancel()  # it has not begun
            if asyncio.current_task() in self._telling:
                return  # a state callback, which the runner waits for
            await asyncio.wait([self._runner])
        if wait and self._connections:
            rest = max(0.0, until - self._clock.monotonic())
            await asyncio.wait([connection._link.closed for connection in self._connections], timeout=rest)

    # --- connections ------------------------------------------------------------------------------------------

    async def accept(self) -> Connection:
        """The next connection. Several tasks may wait here.

        Raises:
            ConnectionClosed: the listener is closed.
            EndpointNotFound: the hybrid connection is gone; the listener went offline for good.
        """
        if self._runner is None:
            raise RuntimeError("The listener is not open")
        connection = await self._accepted.get()
        if connection is None:
            self._accepted.put_nowait(None)  # for the next one
            if self._final_error is not None:
                raise self._final_error.with_traceback(None)
            raise ConnectionClosed("The listener is closed")
        return connection

    def __aiter__(self) -> Self:
        """Accept until the listener is closed; raises as `accept` otherwise."""
        return self

    async def __anext__(self) -> Connection:
        try:
            return await self.accept()
        except ConnectionClosed:
            raise StopAsyncIteration from None

    async def serve(self, handler: Callable[[Connection], Awaitable[object]]) -> None:
        """Run `handler` for each connection, in a task of its own, until the listener is closed.

        A connection is closed when its handler returns. An exception in a handler is logged, aborts its connection
        and leaves the others alone.

        Raises:
            EndpointNotFound: as `accept`, once the handlers have ended.
        """
        async with asyncio.TaskGroup() as handlers:
            try:
                async for connection in self:
                    handlers.create_task(self._handle(handler, connection))
            except EndpointNotFound as error:
                final: EndpointNotFound | None = error
            else:
                final = None
        if final is not None:
            raise final

    async def _handle(self, handler: Callable[[Connection], Awaitable[object]], connection: Connection) -> None:
        try:
            async with connection:
                await handler(connection)
        except ConnectionClosed:
            pass  # the handler read past the end, which is how `recv` tells it
        except ConnectionLost as error:
            log.info("%r: %s", connection, error)
        except Exception:
            log.exception("The handler of %r failed", connection)

    # --- staying registered -----------------------------------------------------------------------------------

    async def _run(self, opened: asyncio.Future[None]) -> None:
        """The listener's life."""
        try:
            async with asyncio.TaskGroup() as self._tasks:
                self._staying = self._tasks.create_task(self._stay(opened))
                await asyncio.wait([self._staying])
                for job in self._jobs:
                    job.cancel()
                self._become(ListenerState.OFFLINE)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(max(0.0, self._finish_until - self._clock.monotonic())):
                        if self._channel is not None:
                            await asyncio.shield(self._channel.closed)  # until then, requests may be on their way
                        await self._http.drained()
                await self._http.stop()
            if self._channel is not None:
                await asyncio.shield(self._channel.closed)
        except BaseException:  # cancelled with the whole program
            self._http.abort()
            if self._channel is not None:
                self._channel.abort()
            raise
        finally:
            self._state = ListenerState.OFFLINE
            self._end_accepting()
            if not opened.done():
                opened.set_result(None)

    async def _stay(self, opened: asyncio.Future[None]) -> None:
        """Stay registered until that is over, and keep the reason."""
        try:
            await self._stay_registered(opened)
        except Exception as error:
            self._final_error = error
            log.error("%s: gone offline for good: %s", self._endpoint, error)

    async def _stay_registered(self, opened: asyncio.Future[None]) -> None:
        """Register again and again; return when the listener closes, raise what is final."""
        backoff = Backoff(self._clock.random)
        self._become(ListenerState.CONNECTING)
        while not self._closing:
            try:
                self._channel = await self._register()
            except Exception as error:
                self._last_error = error
                final = isinstance(error, EndpointNotFound) if opened.done() else not may_pass(error)
                if final:
                    raise
                log.warning("%s: cannot register: %s", self._endpoint, error)
            else:
                if not opened.done():
                    opened.set_result(None)
                since = self._clock.monotonic()
                self._become(ListenerState.ONLINE)
                ended = await asyncio.shield(self._channel.ended)
                self._http.channel_ended(self._channel)
                if self._closing:
                    return
                self._channel = None
                backoff.was_online(self._clock.monotonic() - since)
                code = f" with {ended.code}" if ended.code is not None else ""
                self._last_error = ConnectionLost(f"The control channel was closed{code}: {ended.reason}")
                log.warning("%s: %s", self._endpoint, self._last_error)
                self._become(ListenerState.CONNECTING)
            await self._clock.sleep(backoff.next_delay())

    async def _register(self) -> ControlChannel:
        """Make one control channel."""
        begun = asyncio.get_running_loop().time()
        async with asyncio.timeout(self._connect_timeout):
            token = await self._endpoint.token()
        assert token is not None
        link, _ = await dial(
            urls.listen_url(self._endpoint.base, self._endpoint.path, id=self._id),
            # Of its own, so that it can say what it waited for.
            timeout=begun + self._connect_timeout - asyncio.get_running_loop().time(),
            headers=[("Relay-User-Agent", USER_AGENT)],
            token=token.text,
            ssl=self._endpoint.ssl,
            proxy=self._endpoint.proxy,
            clock=self._clock,
        )
        return ControlChannel(
            link,
            clock=self._clock,
            token=token,
            heartbeat=self._heartbeat,
            offered=self._offered,
            requested=self._http.requested,
            need_token=self._need_token,
        )

    def _need_token(self) -> None:
        assert self._tasks is not None
        if self._channel is not None:
            task = self._tasks.create_task(self._renew(self._channel))
            self._jobs.add(task)
            task.add_done_callback(self._jobs.discard)

    async def _renew(self, channel: ControlChannel) -> None:
        """Present a new token; when none can be had, the channel asks again."""
        try:
            async with asyncio.timeout(self._connect_timeout):
                token = await self._endpoint.token()
            assert token is not None
            channel.renew(token)
        except Exception as error:
            self._last_error = error
            log.warning("%s: cannot renew the token: %r", self._endpoint, error)

    def _become(self, state: ListenerState) -> None:
        """Change the state and tell the application."""
        if state is self._state:
            return
        self._state = state
        log.info("%r", self)
        callback = self._callbacks[state]
        if callback is None:
            return
        try:
            result = callback(self)
        except Exception:
            log.exception("on_%s failed", state)
            return
        if inspect.isawaitable(result):
            assert self._tasks is not None
            task = self._tasks.create_task(self._await_callback(state, result))
            self._telling.add(task)
            task.add_done_callback(self._telling.discard)

    @staticmethod
    async def _await_callback(state: ListenerState, result: Awaitable[object]) -> None:
        try:
            await result
        except Exception:
            log.exception("on_%s failed", state)

    # --- offers -----------------------------------------------------------------------------------------------

    def _offered(self, accept: Accept) -> None:
        if self._closing or self._tasks is None:
            return  # the relay gives it to another listener once it sees ours leave
        task = self._tasks.create_task(self._answer(accept, overloaded=self._is_overloaded()))
        self._jobs.add(task)
        task.add_done_callback(self._jobs.discard)

    def _is_overloaded(self) -> bool:
        if self._max_connections is not None:
            if self._accepting + len(self._connections) >= self._max_connections:
                return True
        return self._accepting + self._accepted.qsize() >= self._backlog

    async def _answer(self, accept: Accept, *, overloaded: bool) -> None:
        """Accept or reject one sender. Nothing that happens here concerns the others."""
        request = IncomingConnection(accept, self._endpoint.path)
        if overloaded:
            await self._reject(accept, _OVERLOADED)
            return
        self._accepting += 1
        try:
            async with asyncio.timeout(ACCEPT_TIMEOUT):
                rejection = await self._judge(request)
                if rejection is None:
                    await self._accept(accept, request)
        except (RelayError, OSError) as error:  # the sender may have left meanwhile
            log.warning("%r: the rendezvous failed: %s", request, error)
            return
        finally:
            self._accepting -= 1
        if rejection is not None:
            await self._reject(accept, rejection)

    async def _judge(self, request: IncomingConnection) -> Rejection | None:
        """Ask the application."""
        if self._accept_handler is None:
            return None
        try:
            result = self._accept_handler(request)
            if inspect.isawaitable(result):
                result = await result
        except Exception:
            log.exception("The accept handler failed for %r", request)
            return _HANDLER_FAILED
        return request.rejection or (_HANDLER_REFUSED if result is False else None)

    async def _accept(self, accept: Accept, request: IncomingConnection) -> None:
        """Go to the rendezvous. No token goes along: the address itself is the permission."""
        wanted = [request.subprotocol] if request.subprotocol is not None else []
        link, subprotocol = await dial(
            accept.address,
            timeout=ACCEPT_TIMEOUT,
            subprotocols=wanted,
            ssl=self._endpoint.ssl,
            proxy=self._endpoint.proxy,
            clock=self._clock,
        )
        connection = Connection(
            link,
            clock=self._clock,
            heartbeat=self._heartbeat,
            max_message_size=self._max_message_size,
            subprotocol=subprotocol,
            tracking_id=accept.id,
            entity=self._endpoint.path,
            request=request,
        )
        self._connections.add(connection)
        link.closed.add_done_callback(lambda _: self._connections.discard(connection))
        self._accepted.put_nowait(connection)

    async def _reject(self, accept: Accept, rejection: Rejection) -> None:
        """Tell the relay, and so the sender. The relay answers with 410, which is the success of a rejection."""
        log.info("%s: rejecting %s with %d %s", self._endpoint, accept.id, *rejection)
        try:
            link, _ = await dial(
                urls.rejection_address(accept.address, rejection.status, rejection.reason),
                timeout=ACCEPT_TIMEOUT,
                ssl=self._endpoint.ssl,
                proxy=self._endpoint.proxy,
                clock=self._clock,
            )
        except RelayError as error:
            if error.status != 410:
                log.warning("%s: the rejection of %s failed: %s", self._endpoint, accept.id, error)
        except OSError as error:
            log.warning("%s: the rejection of %s failed: %s", self._endpoint, accept.id, error)
        else:
            link.abort()

    def _end_accepting(self) -> None:
        """Nobody will be accepted any more: after `close` drop what nobody took, and end every `accept`."""
        while self._closing and not self._accepted.empty():
            connection = self._accepted.get_nowait()
            if connection is not None:
                connection._drop(1011, "The listener closed before it took the connection")
        self._accepted.put_nowait(None)
