"""The exchange that ``trunkline emulator --demo`` relays: a listener and a sender of the SDK, through the node."""

from __future__ import annotations

import asyncio
import hashlib
import os
import ssl
import time
from typing import Literal

import aiohttp

from trunkline.cli.failure import Failure
from trunkline.sdk import (
    Connection,
    ConnectionClosed,
    HttpRequest,
    HttpResponse,
    HybridConnectionClient,
    HybridConnectionListener,
)
from trunkline.sdk.sender_token import OTHER_TOKEN_HEADER, SenderToken

#: Bytes that travel there and back.
SIZE = 1_048_576


async def exchange(to_listen: str, to_send: str, ca_file: str | None) -> None:
    """Relay a greeting and a megabyte both ways, and an HTTP request, and print what happened.

    Args:
        to_listen, to_send: connection strings of one hybrid connection.
        ca_file: authority to trust; None for a relay without TLS.

    Raises:
        Failure: what came back was not what was sent.
    """
    context: ssl.SSLContext | Literal[False] = False
    if ca_file is not None:
        context = ssl.create_default_context(cafile=ca_file)
    async with asyncio.timeout(30):
        async with HybridConnectionListener(
            to_listen, ssl=context, proxy=False, http_handler=_answer_request
        ) as listener:
            print(f"listener  registered on {listener.entity_path}, by a connection that it opened itself")
            async with asyncio.TaskGroup() as group:
                answering = group.create_task(_answer(listener))
                client = HybridConnectionClient(to_send, ssl=context, proxy=False)
                async with await client.create_connection() as connection:
                    await _talk(connection)
                await answering
            await _ask(to_send, context)


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


async def _answer_request(request: HttpRequest) -> HttpResponse:
    return HttpResponse(200, b"You said: " + await request.read())


async def _ask(to_send: str, context: ssl.SSLContext | Literal[False]) -> None:
    started = time.perf_counter()
    token = SenderToken(to_send, ssl=None if context else False)
    headers = {OTHER_TOKEN_HEADER: await token.token()}
    async with (
        aiohttp.ClientSession(trust_env=False) as client,
        client.post(token.base_url, data=b"Hello over HTTP", headers=headers, ssl=context or True) as answer,
    ):
        text = await answer.text("utf-8")
    if answer.status != 200 or text != "You said: Hello over HTTP":
        raise Failure(f"The answer to an HTTP request is {answer.status} {text[:200]!r}", "please report it")
    took = (time.perf_counter() - started) * 1000
    print(f"sender    posted a text to {token.base_url} and got back: {text!r}, {took:.0f} ms with the connection")
