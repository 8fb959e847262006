"""The exchange that ``trunkline emulator --demo`` relays: a listener and a sender of the SDK, through the node."""

from __future__ import annotations

import asyncio
import hashlib
import os
import ssl
import time
from typing import Literal

from trunkline.cli.emulator import LISTEN_RULE, SEND_RULE, well_known_key
from trunkline.cli.failure import Failure
from trunkline.cli.guide import Facts
from trunkline.protocol import connection_string
from trunkline.sdk import Connection, ConnectionClosed, HybridConnectionClient, HybridConnectionListener
from trunkline.server.node import Node

#: Bytes that travel there and back.
SIZE = 1_048_576


async def exchange(node: Node, facts: Facts, path: str) -> None:
    """Relay a greeting and a megabyte both ways, and print what happened.

    Raises:
        Failure: what came back was not what was sent.
    """
    context: ssl.SSLContext | Literal[False] = False
    if facts.ca_file is not None:
        context = ssl.create_default_context(cafile=facts.ca_file)

    def text(rule: str) -> str:
        return connection_string.build(
            "localhost", port=node.port, key_name=rule, key=well_known_key(rule), entity_path=path
        )

    async with asyncio.timeout(30):
        async with HybridConnectionListener(text(LISTEN_RULE), ssl=context) as listener:
            print(f"listener  registered on {facts.url}/{path}, by a connection that it opened itself")
            async with asyncio.TaskGroup() as group:
                answering = group.create_task(_answer(listener))
                client = HybridConnectionClient(text(SEND_RULE), ssl=context)
                async with await client.create_connection() as connection:
                    await _talk(connection)
                await answering


async def _answer(listener: HybridConnectionListener) -> None:
    async with await listener.accept() as connection:
        sender = connection.request.remote_address if connection.request else ("?", 0)
        print(f"listener  accepted a sender at {sender[0]}:{sender[1]}, TrackingId:{connection.tracking_id}")
        try:
            while True:
                message = await connection.recv()
                await connection.send(f"You said: {message}" if isinstance(message, str) else message)
        except ConnectionClosed:
            print("listener  the sender has closed")


async def _talk(connection: Connection) -> None:
    started = time.perf_counter()
    await connection.send("Hello through the relay")
    print(f"sender    sent a text and got back: {await connection.recv()!r}")
    payload = os.urandom(SIZE)
    await connection.send(payload)
    back = await connection.recv()
    if back != payload:
        raise Failure("What came back is not what was sent", "please report it")
    took = (time.perf_counter() - started) * 1000
    digest = hashlib.sha256(payload).hexdigest()[:16]
    print(f"sender    sent {SIZE:,} random bytes and got the same back (sha256 {digest}...), {took:.0f} ms in all")
