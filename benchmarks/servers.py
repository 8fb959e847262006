"""The processes that are measured: `python -m benchmarks.servers node`, or `forwarder PORT`.

Each prints its port as the first line of its output and runs until it is killed.
"""

from __future__ import annotations

import asyncio
import os
import sys

import aiofastnet

from trunkline.protocol.sas import Right
from trunkline.server.config.declarative import (
    Declaration,
    DeclaredHybridConnection,
    DeclaredNamespace,
    DeclaredRule,
)
from trunkline.server.config.settings import NodeSettings
from trunkline.server.entities.sqlite import SqliteStore
from trunkline.server.node import Node

KEY_NAME = "bench"
KEY = "a-key-for-measurements"
PATH = "bench"


async def run_node() -> None:
    """A node without TLS, with one hybrid connection and without a limit of senders."""
    rule = DeclaredRule(KEY_NAME, frozenset((Right.LISTEN, Right.SEND)), primary_key=KEY)
    entity = DeclaredHybridConnection(PATH, limits={"max_senders": 0})
    declaration = Declaration(
        "benchmark", (DeclaredNamespace("benchmark", rules=(rule,), hybrid_connections=(entity,)),)
    )
    settings = NodeSettings(port=0, admin_port=0, tls="off")
    async with Node(settings, declaration, store=SqliteStore(":memory:")) as node:
        print(node.port, flush=True)
        await asyncio.Event().wait()


class _Pipe(asyncio.Protocol):
    """One side of the bare forwarder: passes on what it reads, waits when the other side is full."""

    def __init__(self, target: int | None, other: _Pipe | None = None) -> None:
        self._target = target
        self._other = other
        self._transport: asyncio.Transport | None = None
        self._early: list[bytes] = []
        self._dialing: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]
        if self._target is not None:
            self._dialing = asyncio.get_running_loop().create_task(self._dial(self._target))

    async def _dial(self, port: int) -> None:
        loop = asyncio.get_running_loop()
        _, other = await aiofastnet.create_connection(loop, lambda: _Pipe(None, self), "127.0.0.1", port)
        self._other = other
        for data in self._early:
            other.write(data)

    def write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)

    def data_received(self, data: bytes) -> None:
        if self._other is None:
            self._early.append(data)
        else:
            self._other.write(data)

    def pause_writing(self) -> None:
        if self._other is not None and self._other._transport is not None:
            self._other._transport.pause_reading()

    def resume_writing(self) -> None:
        if self._other is not None and self._other._transport is not None:
            self._other._transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if self._other is not None and self._other._transport is not None:
            self._other._transport.close()


async def run_forwarder(target: int) -> None:
    """The least that a Python process can do between two sockets: the ceiling."""
    loop = asyncio.get_running_loop()
    server = await aiofastnet.create_server(loop, lambda: _Pipe(target), "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.Event().wait()


def main() -> None:
    """Run one of the two, on the first processor where the system lets us choose."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    import uvloop

    what, *rest = sys.argv[1:]
    uvloop.run(run_node() if what == "node" else run_forwarder(int(rest[0])))


if __name__ == "__main__":
    main()
