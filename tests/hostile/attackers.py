"""Peers that send exactly what an attack needs, many at a time."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from types import TracebackType
from typing import Self, TypeVar

from e2e.raw_websocket import RawPair
from hostile.besieged import ATTACKED, BesiegedNode

T = TypeVar("T")

#: Seconds that an attacker waits for anything.
PATIENCE = 25.0


class Stranger:
    """A TCP or TLS connection to a node."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def dial(cls, node: BesiegedNode, data: bytes = b"", *, tls: bool = False) -> Self:
        """Connect and send `data`. With `tls`, after a TLS handshake."""
        context = node.tls if tls else None
        peer = cls(*await asyncio.open_connection(node.host, node.port, ssl=context))
        peer.send(data)
        return peer

    def send(self, data: bytes) -> None:
        """Send, without waiting."""
        self._writer.write(data)

    async def sent(self) -> None:
        """Wait until the system has most of what was sent."""
        await self._writer.drain()

    async def told(self) -> bytes:
        """All that comes until the node ends the connection, in order or not."""
        told = b""
        try:
            async with asyncio.timeout(PATIENCE):
                while data := await self._reader.read(65_536):
                    told += data
        except (ConnectionError, ssl.SSLError):
            pass
        return told

    async def status(self) -> int:
        """Of the answer to its request; 0 when it was cut without one."""
        told = await self.told()
        return int(told.split(b" ", 2)[1]) if told else 0

    async def first_status(self) -> int:
        """Of the answer that comes next, whose head alone is read; 0 when it was cut without one."""
        try:
            async with asyncio.timeout(PATIENCE):
                line = await self._reader.readline()
                while await self._reader.readline() not in (b"\r\n", b""):
                    pass
        except (ConnectionError, ssl.SSLError):
            return 0
        return int(line.split(b" ", 2)[1]) if line else 0

    def leave(self) -> None:
        """Cut the connection."""
        self._writer.transport.abort()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.leave()


@asynccontextmanager
async def crowd(
    node: BesiegedNode, size: int, data: bytes = b"", *, tls: bool = False
) -> AsyncIterator[list[Stranger]]:
    """So many at a time, each of which has sent `data`."""
    strangers: list[Stranger] = []
    try:
        for _ in range(size):
            strangers.append(await Stranger.dial(node, data, tls=tls))
        yield strangers
    finally:
        for stranger in strangers:
            stranger.leave()


@asynccontextmanager
async def pairs(node: BesiegedNode, count: int, *, entity: str = ATTACKED) -> AsyncIterator[list[RawPair]]:
    """So many connections to one listener; each end is raw."""
    token = node.token(entity)
    async with AsyncExitStack() as stack:
        control = await stack.enter_async_context(node.websocket(node.listen_url(entity), token=token))
        made = []
        for _ in range(count):
            sender = node.websocket(node.connect_url(entity), token=token)
            stack.callback(sender.abort)
            await sender.connect()
            address = (await control.offer())["address"]
            listener = await stack.enter_async_context(node.websocket(address, token=None))
            await sender.upgraded()
            made.append(RawPair(control, address, sender, listener))
        yield made


async def each(of: Iterable[T], work: Callable[[T], Awaitable[object]], *, at_once: int) -> None:
    """Do the work for each, so many at a time."""
    waiting = iter(of)

    async def worker() -> None:
        for item in waiting:
            await work(item)

    async with asyncio.TaskGroup() as tasks:
        for _ in range(at_once):
            tasks.create_task(worker())


def handshake(url: str, *headers: tuple[str, str], token: str | None = None) -> bytes:
    """The request head of a WebSocket handshake."""
    _, _, rest = url.partition("://")
    authority, _, target = rest.partition("/")
    lines = [
        f"GET /{target} HTTP/1.1",
        f"Host: {authority}",
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        *([f"ServiceBusAuthorization: {token}"] if token is not None else []),
        *(f"{name}: {value}" for name, value in headers),
    ]
    return "\r\n".join((*lines, "", "")).encode("latin-1")


def client_hello() -> bytes:
    """The first flight of a TLS client."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = ssl.create_default_context().wrap_bio(incoming, outgoing, server_hostname="localhost")
    try:
        tls.do_handshake()
    except ssl.SSLWantReadError:
        pass
    return outgoing.read()
