"""Nodes, listeners and senders that are there to be killed, each a process of its own.

This program imports everything once and then forks: a party starts in milliseconds, so a thousand of them can be killed
in a minute. Commands come as lines of JSON on standard input, one answer each; what the parties have to tell comes in
between, on the same standard output. Only this process ends parties, so a process id is never anybody else's.

    {"run": "sender", "with": {...}}  ->  {"started": PID}
    {"kill": PID}                     ->  {"killed": PID}
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import random
import signal
import ssl
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import uvloop

from trunkline.protocol.errors import RelayError
from trunkline.sdk import Connection, ConnectionClosed, HybridConnectionClient, HybridConnectionListener
from trunkline.sdk.clock import SystemClock
from trunkline.sdk.endpoint import TLS
from trunkline.server.config import declarative
from trunkline.server.config.settings import load
from trunkline.server.entities.administration import Administration
from trunkline.server.entities.model import HybridConnection, Namespace, hybrid_connection_id, namespace_id
from trunkline.server.entities.sqlite import SqliteStore
from trunkline.server.node import Node

#: What an end is told of a connection that broke, or was never made.
BROKEN = (RelayError, OSError, ConnectionClosed)
#: Streams that a sender has at a time, and their longest in bytes.
STREAMS, LONGEST = 3, 300_000
#: Entities that a node makes before it removes the oldest of them.
KEPT = 20


def tell(**what: object) -> None:
    """One line, whole: a pipe takes up to 4 KiB at once, whoever is killed meanwhile."""
    os.write(1, json.dumps({"pid": os.getpid(), **what}).encode() + b"\n")


# --- a stream: both ends know what the other has to send


def stream(name: str) -> bytes:
    """The bytes of a stream."""
    chance = random.Random(name)
    return chance.randbytes(chance.randrange(LONGEST))


async def exchange(connection: Connection, own: str, peers: str) -> None:
    """Send one stream and receive the other, and tell how it ended. A stream that ended in order must be whole."""
    expected = stream(peers)

    async def write() -> None:
        data = stream(own)
        for start in range(0, len(data), 50_000):
            connection.write(data[start : start + 50_000])
            await connection.drain()
        connection.write_eof()

    try:
        async with connection, asyncio.TaskGroup() as tasks:
            tasks.create_task(write())
            received = await connection.read()
            if received != expected:
                tell(fault=f"{peers} ended in order with {len(received)} of {len(expected)} bytes")
    except* BROKEN:
        tell(stream=own, end="broken")
    else:
        tell(stream=own, end="whole")


class HurriedClock(SystemClock):
    """Waits a twentieth of the time before it tries again."""

    async def sleep(self, delay: float) -> None:
        await asyncio.sleep(delay / 20)


# --- the parties


async def listener(text: str, ca_file: str | None) -> None:
    async def answer(connection: Connection) -> None:
        assert connection.request is not None
        name = connection.request.query
        await exchange(connection, f"{name}-answer", name)

    tls: TLS = ssl.create_default_context(cafile=ca_file) if ca_file else False
    async with HybridConnectionListener(text, ssl=tls, _clock=HurriedClock()) as listening:
        tell(online=True)
        await listening.serve(answer)


async def sender(text: str, ca_file: str | None) -> None:
    tls: TLS = ssl.create_default_context(cafile=ca_file) if ca_file else False
    client = HybridConnectionClient(text, ssl=tls)

    async def send(lane: int) -> None:
        for number in range(1_000_000):
            name = f"{os.getpid()}-{lane}-{number}-{random.random()}"
            try:
                connection = await client.create_connection(query=name, timeout=10)
            except BROKEN:
                await asyncio.sleep(0.02)
            else:
                await exchange(connection, name, f"{name}-answer")

    async with asyncio.TaskGroup() as tasks:
        for lane in range(STREAMS):
            tasks.create_task(send(lane))


async def node(file: str) -> None:
    """A node on its file, which makes and removes entities and tells of each once it is acknowledged."""
    declaration = declarative.read(Path(file))
    settings = load(declaration, {})
    store = SqliteStore(settings.data / "entities.db")
    async with Node(settings, declaration, store=store, tick=0.25) as running:
        administration = Administration(store)
        [namespace] = await administration.namespaces()
        entities = await administration.hybrid_connections(namespace.id)
        held = [each.name for each in entities if each.name.startswith("made-")]
        tell(holds=held, counted=namespace.hybrid_connections == len(entities), ready=running.port)
        number = max((int(each.removeprefix("made-")) for each in held), default=0)
        while True:
            number += 1
            await administration.create_hybrid_connection(HybridConnection(_id(namespace, f"made-{number}")))
            tell(made=f"made-{number}")
            if number > KEPT:
                tell(removing=f"made-{number - KEPT}")
                await administration.delete(_id(namespace, f"made-{number - KEPT}"))
                tell(removed=f"made-{number - KEPT}")
            await asyncio.sleep(0.01)


async def party(name: str, options: dict[str, Any]) -> None:
    """One of them, for ever."""
    # aiofastnet tells the loop of a TLS handshake whose peer was killed, in a form that the loop cannot log.
    asyncio.get_running_loop().set_exception_handler(_unless_handshake_failed)
    await PARTIES[name](**options)


def _unless_handshake_failed(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    if context["message"] != "SSL handshake failed":
        tell(fault=f"not handled in the loop: {context}")


def _id(namespace: Namespace, name: str) -> str:
    return hybrid_connection_id(namespace_id(namespace.name), name)


PARTIES: dict[str, Callable[..., Coroutine[Any, Any, None]]] = {"node": node, "listener": listener, "sender": sender}


def main() -> None:
    # Broken connections are what this is about; errors are not.
    logging.disable(logging.WARNING)
    running: set[int] = set()
    for line in sys.stdin:
        command: dict[str, Any] = json.loads(line)
        if "run" in command:
            pid = os.fork()
            if not pid:
                random.seed()
                try:
                    uvloop.run(party(command["run"], command["with"]))
                except BaseException as error:
                    tell(fault=f"{command['run']}: {error!r}")
                os._exit(1)
            running.add(pid)
            answer = {"started": pid}
        else:
            _end(command["kill"])
            running.discard(command["kill"])
            answer = {"killed": command["kill"]}
        os.write(1, json.dumps(answer).encode() + b"\n")
    for pid in running:
        _end(pid)


def _end(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


if __name__ == "__main__":
    main()
