"""A target that a test plays byte by byte."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from trunkline.expose.target import Target

Play = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class RawTarget:
    """A server that runs `play` for each connection, and cuts the connection when that returns.

    connections: how many were made.
    """

    def __init__(self, play: Play) -> None:
        self._play = play
        self._writers: list[asyncio.StreamWriter] = []
        self._server: asyncio.Server | None = None
        self.connections = 0
        self.port = 0

    @property
    def target(self) -> Target:
        return Target("http", "127.0.0.1", self.port)

    async def start(self) -> None:
        """On a free port, or the same as before."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        for writer in self._writers:
            writer.transport.abort()
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._writers.append(writer)
        try:
            await self._play(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()
            self._writers.remove(writer)


@asynccontextmanager
async def raw_target(play: Play) -> AsyncIterator[RawTarget]:
    server = RawTarget(play)
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


async def read_head(reader: asyncio.StreamReader) -> str:
    """One request head, as it was written."""
    return (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
