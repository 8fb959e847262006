"""A frontend on a port of its own, for the tests of what comes in there."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from server.relay.peers import Clock, Peer, Serving, client_tls, server_tls, until
from trunkline.server.relay.exchange import Exchange
from trunkline.server.relay.front_connection import FrontendProtocol
from trunkline.server.relay.frontend import Frontend
from trunkline.server.relay.sockets import RECEIVE_BUFFER


class Echo(asyncio.BufferedProtocol):
    """Takes a transport over and sends back what comes, and first what came early."""

    def __init__(self) -> None:
        self.lost = asyncio.Event()
        self.early = b""

    def take_over(self, transport: asyncio.Transport, early: bytes) -> None:
        self.transport = transport
        self.early = early
        transport.write(early)

    def get_buffer(self, sizehint: int) -> memoryview:
        return RECEIVE_BUFFER

    def buffer_updated(self, nbytes: int) -> None:
        self.transport.write(bytes(RECEIVE_BUFFER[:nbytes]))

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set()


def say_target(exchange: Exchange) -> None:
    exchange.respond(200, body=exchange.head.target.encode())


def say_nothing(exchange: Exchange) -> None:
    """Somebody will answer later."""


class Port:
    """A frontend on a port, and the requests that it has handed on."""

    def __init__(self, serve: Callable[[Exchange], object] = say_target, *, tls: bool = False, **options: Any) -> None:
        self.clock = Clock()
        self._serve = serve
        self._exchanges: asyncio.Queue[Exchange] = asyncio.Queue()
        self.frontend = Frontend(self._take, self.clock, **{"keeps_alive": True, **options})
        self._tls = tls
        self._serving = Serving(self.frontend, server_tls() if tls else None)

    def _take(self, exchange: Exchange) -> None:
        self._exchanges.put_nowait(exchange)
        self._serve(exchange)

    async def __aenter__(self) -> Self:
        await self._serving.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._serving.__aexit__(kind, error, trace)

    async def dial(self) -> Peer:
        return await Peer.dial(self._serving.port, client_tls() if self._tls else None)

    async def exchange(self) -> Exchange:
        """The next request that was handed on."""
        async with asyncio.timeout(5):
            return await self._exchanges.get()

    @property
    def is_idle(self) -> bool:
        return self._exchanges.empty()

    @property
    def newest(self) -> FrontendProtocol:
        return self._serving.protocols[-1]

    async def holds(self, size: int) -> None:
        """Exactly so many bytes have come on the only connection."""
        await until(lambda: self.frontend.heads and self.held() == size)

    def held(self) -> int:
        """Bytes that are kept of the newest connection."""
        return len(self.newest._buffer)

    def pass_time(self, seconds: float) -> None:
        self.clock.now += seconds
        self.frontend.tick(self.clock.now)
