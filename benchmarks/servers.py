"""The measured processes that are written in Python: `python -m benchmarks.servers KIND [options]`.

    node        what this is all about
    forwarder   bytes from one socket to another on the same transports, TLS on both sides like the node: the ceiling
    aiohttp     a relay of a few lines, message by message: what one would write first

Each prints its port as the first line of its output and runs until it is told to end (SIGTERM).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import cProfile
import os
import ssl
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import aiofastnet
import uvloop
from aiohttp import ClientConnectionResetError, WSMsgType, web

from trunkline.cli.event_loop import on_signal
from trunkline.protocol.sas import Right
from trunkline.server.config.declarative import (
    Declaration,
    DeclaredHybridConnection,
    DeclaredNamespace,
    DeclaredRule,
)
from trunkline.server.config.settings import NodeSettings, TlsFiles
from trunkline.server.entities.sqlite import SqliteStore
from trunkline.server.node import Node
from trunkline.server.relay.sockets import TLS_READ_SIZE
from trunkline.server.spare_memory import keep_large_blocks_apart

KEY_NAME = "bench"
KEY = "a-key-for-measurements"
PATH = "bench"

BACKLOG = 4_096


async def run_node(tls: TlsFiles | None, ping_interval: float) -> None:
    """A node with one hybrid connection, all limits at their defaults but those of numbers of connections."""
    rule = DeclaredRule(KEY_NAME, frozenset((Right.LISTEN, Right.SEND)), primary_key=KEY)
    limits: dict[str, Any] = {"max_senders": 0, "max_listeners": 0, "ping_interval": ping_interval}
    entity = DeclaredHybridConnection(PATH, limits=limits)
    declaration = Declaration(
        "benchmark", (DeclaredNamespace("benchmark", rules=(rule,), hybrid_connections=(entity,)),)
    )
    settings = NodeSettings(port=0, admin_port=0, tls=tls or "off")
    keep_large_blocks_apart()
    async with Node(settings, declaration, store=SqliteStore(":memory:")) as node:
        await _run(node.port)


class Pipe(asyncio.BufferedProtocol):
    """One side of the forwarder: passes on what it reads, waits when the other side is full.

    Two connections that come one after the other are joined, so that TLS has as many legs, and of the same kind, as
    on a node.
    """

    buffer = memoryview(bytearray(TLS_READ_SIZE))
    # The one that came and has no other side yet.
    alone: Pipe | None = None

    def __init__(self) -> None:
        self.other: Pipe | None = None
        self.transport: asyncio.Transport | None = None
        # What came before the other side did.
        self._early = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]
        self.other, Pipe.alone = Pipe.alone, self
        if self.other is not None:
            self.other.other, Pipe.alone = self, None
            transport.write(self.other._early)  # type: ignore[attr-defined]

    def get_buffer(self, sizehint: int) -> memoryview:
        return self.buffer

    def buffer_updated(self, nbytes: int) -> None:
        if self.other is None:
            self._early += self.buffer[:nbytes]
        elif self.other.transport is not None:
            self.other.transport.write(bytes(self.buffer[:nbytes]))

    def pause_writing(self) -> None:
        if self.other is not None and self.other.transport is not None:
            self.other.transport.pause_reading()

    def resume_writing(self) -> None:
        if self.other is not None and self.other.transport is not None:
            self.other.transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        if self.other is not None and self.other.transport is not None:
            self.other.transport.abort()


async def run_forwarder(context: ssl.SSLContext | None) -> None:
    """The least that a Python process can do between two sockets."""
    loop = asyncio.get_running_loop()
    options: dict[str, Any] = {"ssl_incoming_bio_size": TLS_READ_SIZE} if context else {}
    server = await aiofastnet.create_server(loop, Pipe, "127.0.0.1", 0, ssl=context, backlog=BACKLOG, **options)
    await _run(server.sockets[0].getsockname()[1])


async def run_aiohttp(context: ssl.SSLContext | None) -> None:
    """Joins two WebSockets that come one after the other, message by message."""
    alone: list[tuple[web.WebSocketResponse, asyncio.Future[web.WebSocketResponse]]] = []

    async def relay(request: web.Request) -> web.WebSocketResponse:
        here = web.WebSocketResponse(compress=False, max_msg_size=0, autoping=False)
        await here.prepare(request)
        if alone:
            there, found = alone.pop()
            found.set_result(here)
        else:
            alone.append((here, asyncio.get_running_loop().create_future()))
            there = await alone[0][1]
        with contextlib.suppress(ClientConnectionResetError):
            async for message in here:
                if message.type is WSMsgType.BINARY:
                    await there.send_bytes(message.data)
                elif message.type is WSMsgType.TEXT:
                    await there.send_str(message.data)
            await there.close()
        return here

    application = web.Application()
    application.router.add_get("/", relay)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context, backlog=BACKLOG)
    await site.start()
    await _run(runner.addresses[0][1])


async def _run(port: int) -> None:
    ended = asyncio.Event()
    on_signal(15, ended.set)
    print(port, flush=True)
    await ended.wait()


def main() -> None:
    """Run one of them, on the first processor where the system lets us choose."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.servers")
    parser.add_argument("kind", choices=("node", "forwarder", "aiohttp"))
    parser.add_argument("--certificate", type=Path, help="PEM; with --key: TLS")
    parser.add_argument("--key", type=Path)
    parser.add_argument("--ping-interval", type=float, default=30.0)
    parser.add_argument("--profile", type=Path, help="write a profile of the run to this file")
    options = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    files = context = None
    if options.certificate is not None:
        files = TlsFiles(certificate=options.certificate, key=options.key)
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(options.certificate, options.key)
    work: Coroutine[Any, Any, None]
    if options.kind == "node":
        work = run_node(files, options.ping_interval)
    elif options.kind == "forwarder":
        work = run_forwarder(context)
    else:
        work = run_aiohttp(context)
    if options.profile is None:
        uvloop.run(work)
        return
    profile = cProfile.Profile()
    try:
        profile.runcall(uvloop.run, work)
    finally:
        profile.dump_stats(options.profile)


if __name__ == "__main__":
    main()
