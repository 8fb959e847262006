"""WebSockets through a real node to a target that the test plays: the target decides, and both ends are its own."""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import aiohttp
import pytest
from aiohttp import WSMsgType, web

from expose.fake_request import Watching
from trunkline.expose import Exposure, HeaderRules, Kind, Record, upgrades
from trunkline.expose.target import Target
from trunkline.protocol.errors import ConnectionLost
from trunkline.protocol.messages import Accept, RemoteEndpoint
from trunkline.sdk import ConnectionClosed, HybridConnectionClient, IncomingConnection
from trunkline.testing import RelayNode, relay_node

Play = Callable[[web.WebSocketResponse], Awaitable[None]]


@dataclass
class Played:
    """A target of WebSockets, exposed through a node."""

    node: RelayNode
    port: int
    watching: Watching
    exposure: Exposure
    #: What it was asked.
    requests: list[web.Request]
    serving: asyncio.Task[None]

    @property
    def client(self) -> HybridConnectionClient:
        return self.node.client()

    async def closed_record(self) -> Record:
        """The record of the end of a WebSocket."""
        return await self.watching.wait_for(Kind.CLOSED)


@asynccontextmanager
async def exposed(
    play: Play, *, protocols: tuple[str, ...] = (), refuse: int = 0, **rules: Any
) -> AsyncIterator[Played]:
    requests: list[web.Request] = []

    async def handle(request: web.Request) -> web.StreamResponse:
        requests.append(request)
        if refuse:
            return web.Response(status=refuse)
        websocket = web.WebSocketResponse(protocols=protocols, max_msg_size=0, autoclose=False)
        await websocket.prepare(request)
        await play(websocket)
        return websocket

    application = web.Application()
    application.router.add_get("/{path:.*}", handle)
    runner = web.AppRunner(application, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        port = runner.addresses[0][1]
        watching = Watching()
        rules_of_headers = HeaderRules(Target("http", "127.0.0.1", port), pseudonym="us", scheme="http", **rules)
        async with (
            relay_node("myHC") as node,
            Exposure(rules_of_headers, watching, entity="myHC") as exposure,
            node.listener(**exposure.handlers) as listener,
            asyncio.TaskGroup() as group,
        ):
            serving = group.create_task(listener.serve(exposure.serve))
            try:
                yield Played(node, port, watching, exposure, requests, serving)
            finally:
                await listener.close()
    finally:
        await runner.cleanup()


async def echo(websocket: web.WebSocketResponse) -> None:
    async for message in websocket:
        if message.type is WSMsgType.TEXT:
            await websocket.send_str(message.data)
        else:
            await websocket.send_bytes(message.data)
    await websocket.close(code=websocket.close_code or 1000)


async def test_messages_pass_both_ways_by_content() -> None:
    messages: list[str | bytes] = ["", "text", "Köln €", b"", b"\x00\xff", os.urandom(70_000), "x" * 300_000]
    messages.append(os.urandom(3 << 20))
    async with exposed(echo) as it, await it.client.create_connection() as connection:
        for message in messages:
            await connection.send(message)
            assert await connection.recv() == message
        await connection.close()
        record = await it.closed_record()
    total = sum(len(each.encode() if isinstance(each, str) else each) for each in messages)
    assert (record.received, record.sent, record.status, record.error) == (total, total, 1000, "")
    assert it.watching.records[0].kind is Kind.OPENED and it.watching.records[0].status == 101


async def test_target_is_asked_with_path_query_and_the_headers_of_the_sender() -> None:
    async with exposed(echo) as it:
        headers = {"Origin": "https://app.example", "Cookie": "a=1", "X-Own": "o"}
        connection = await it.client.create_connection(
            path_suffix="chat%20room/a%2Fb", query="token=x&&", headers=headers
        )
        await connection.close()
    [request] = it.requests
    assert request.raw_path == "/chat%20room/a%2Fb?token=x&&"
    seen = request.headers
    assert seen["Host"] == f"127.0.0.1:{it.port}" and seen["X-Forwarded-Prefix"] == "/myHC"
    assert seen["X-Forwarded-Host"] == f"{it.node.host}:{it.node.port}" and seen["X-Forwarded-For"] == "127.0.0.1"
    assert (seen["Origin"], seen["Cookie"], seen["X-Own"]) == ("https://app.example", "a=1", "o")
    assert "ServiceBusAuthorization" not in seen
    assert it.watching.records[0].path == "/chat%20room/a%2Fb"


async def test_path_of_the_hybrid_connection_stays_on_demand() -> None:
    async with exposed(echo, keep_path=True) as it:
        await (await it.client.create_connection(path_suffix="chat")).close()
        await (await it.client.create_connection()).close()
    assert [request.raw_path for request in it.requests] == ["/myHC/chat", "/myHC/"]


async def test_subprotocol_is_the_choice_of_the_target() -> None:
    async with exposed(echo, protocols=("v2", "v1")) as it:
        connection = await it.client.create_connection(subprotocols=["v1", "v2", "v3"])
        assert connection.subprotocol == it.requests[0].headers["Sec-WebSocket-Protocol"].split(",")[0]
        await connection.close()
    async with exposed(echo, protocols=("v2",)) as it:
        connection = await it.client.create_connection(subprotocols=["v1", "v2"])
        assert connection.subprotocol == "v2"
        await connection.close()
    async with exposed(echo) as it:
        # The target chooses none, and so nobody does.
        connection = await it.client.create_connection(subprotocols=["v1"])
        assert connection.subprotocol is None
        await connection.close()


@pytest.mark.parametrize(
    ("refused", "status"), [(401, 401), (403, 403), (404, 404), (302, 302), (503, 503), (200, 502)]
)
async def test_refusal_of_the_target_is_the_senders(refused: int, status: int) -> None:
    async with exposed(echo, refuse=refused) as it:
        assert await status_of(it.node) == status
        record = it.watching.records[0]
    assert (record.kind, record.status) == (Kind.REQUEST, status)


async def test_target_that_is_down_is_502() -> None:
    watching = Watching()
    async with (
        relay_node("myHC") as node,
        Exposure(HeaderRules(Target("http", "127.0.0.1", 1)), watching, entity="myHC") as exposure,
        node.listener(**exposure.handlers),
    ):
        assert await status_of(node) == 502
    assert watching.changes == [(False, "connection refused")]


async def status_of(node: RelayNode) -> int:
    """What a sender that wants a WebSocket is told."""
    async with aiohttp.ClientSession() as session:
        with pytest.raises(aiohttp.WSServerHandshakeError) as failure:
            await session.ws_connect(plain_address(node), max_msg_size=0)
        return failure.value.status


def plain_address(node: RelayNode, suffix: str = "/?") -> str:
    """As a page writes it: without `$hc`, the token in the query."""
    return f"ws://{node.host}:{node.port}/myHC{suffix}&sb-hc-token={quote(node.token(), safe='')}"


@pytest.mark.parametrize(("code", "reason"), [(1000, ""), (1000, "done"), (3001, "mine"), (4999, "x" * 123)])
async def test_close_of_the_target_reaches_the_sender(code: int, reason: str) -> None:
    async def play(websocket: web.WebSocketResponse) -> None:
        await websocket.send_str("last words")
        await websocket.close(code=code, message=reason.encode())

    async with exposed(play) as it:
        connection = await it.client.create_connection()
        assert await connection.recv() == "last words"
        with pytest.raises(ConnectionClosed) as ended:
            await connection.recv()
        assert (ended.value.code, ended.value.reason) == (code, reason)
        await connection.close()
        assert (await it.closed_record()).status == code


@pytest.mark.parametrize(("code", "reason"), [(1000, ""), (1000, "done"), (3001, "mine"), (1001, "away"), (1011, "")])
async def test_close_of_the_sender_reaches_the_target(code: int, reason: str) -> None:
    seen: asyncio.Future[tuple[int, str]] = asyncio.get_running_loop().create_future()

    async def play(websocket: web.WebSocketResponse) -> None:
        message = await websocket.receive()
        seen.set_result((message.data, message.extra or ""))
        await websocket.send_str("one more")  # a target may still have something on its way
        await websocket.close(code=message.data)

    async with exposed(play) as it:
        connection = await it.client.create_connection()
        await connection.close(code, reason)
        assert await seen == (code, reason)
        assert (await it.closed_record()).status == code


async def test_what_the_target_says_after_the_senders_close_still_arrives() -> None:
    async def play(websocket: web.WebSocketResponse) -> None:
        assert (await websocket.receive()).type is WSMsgType.CLOSE
        await websocket.send_str("one more")
        await websocket.close(code=1000)

    async with exposed(play) as it:
        connection = await it.client.create_connection()
        connection.write_eof()
        assert await connection.recv() == "one more"
        await connection.close()


async def test_target_that_dies_is_no_clean_end_for_the_sender() -> None:
    async def play(websocket: web.WebSocketResponse) -> None:
        transport = it.requests[0].transport
        assert transport is not None
        transport.abort()
        await asyncio.sleep(0)

    async with exposed(play) as it:
        connection = await it.client.create_connection()
        with pytest.raises(ConnectionLost):
            await connection.recv()
        record = await it.closed_record()
    assert record.status == 1006 and record.error


async def test_sender_that_dies_is_told_to_the_target() -> None:
    seen: asyncio.Future[object] = asyncio.get_running_loop().create_future()

    async def play(websocket: web.WebSocketResponse) -> None:
        message = await websocket.receive()
        seen.set_result(message.data)
        await websocket.close(code=1000)

    async with exposed(play) as it:
        connection = await it.client.create_connection()
        connection.abort()
        assert await seen == 1001


async def test_slow_sender_slows_the_target_down() -> None:
    stopped = asyncio.Event()
    sent = 0

    async def play(websocket: web.WebSocketResponse) -> None:
        nonlocal sent
        while sent < 64 << 20:
            try:
                async with asyncio.timeout(0.5):
                    await websocket.send_bytes(bytes(1 << 16))
                sent += 1 << 16
            except TimeoutError:
                stopped.set()
                return

    async with exposed(play) as it:
        connection = await it.client.create_connection()
        await stopped.wait()
        assert sent < 48 << 20
        connection.abort()


async def test_target_is_let_go_when_its_sender_never_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upgrades, "UNTAKEN", 0.01)
    seen: asyncio.Future[object] = asyncio.get_running_loop().create_future()

    async def play(websocket: web.WebSocketResponse) -> None:
        message = await websocket.receive()
        seen.set_result(message.data)
        await websocket.close(code=1000)

    async with exposed(play) as it:
        accept = Accept("ws://relay/$hc/myHC?", f"{uuid.uuid4()}", {}, RemoteEndpoint("192.0.2.7", 1))
        await it.exposure.handlers["accept_handler"](IncomingConnection(accept, "myHC"))
        assert await seen == 1001


async def test_what_is_left_at_the_end_is_let_go() -> None:
    seen: asyncio.Future[object] = asyncio.get_running_loop().create_future()

    async def play(websocket: web.WebSocketResponse) -> None:
        message = await websocket.receive()
        seen.set_result(message.data)
        await websocket.close(code=1000)

    async with exposed(play) as it:
        accept = Accept("ws://relay/$hc/myHC?", f"{uuid.uuid4()}", {}, RemoteEndpoint("192.0.2.7", 1))
        await it.exposure.handlers["accept_handler"](IncomingConnection(accept, "myHC"))
    assert await seen == 1001


async def test_end_of_the_program_is_told_to_both_sides() -> None:
    seen: asyncio.Future[object] = asyncio.get_running_loop().create_future()

    async def play(websocket: web.WebSocketResponse) -> None:
        await websocket.send_str("hello")
        message = await websocket.receive()
        seen.set_result(message.data)
        await websocket.close(code=1000)

    async with exposed(play) as it:
        connection = await it.client.create_connection()
        assert await connection.recv() == "hello"
        it.serving.cancel()
        with pytest.raises(ConnectionLost, match="1001: trunkline expose ended"):
            await connection.recv()
        await connection.close()
        assert await seen == 1001
        assert (await it.closed_record()).status == 1001


async def test_page_on_the_plain_address_gets_its_websocket() -> None:
    async with exposed(echo) as it, aiohttp.ClientSession() as session:
        async with session.ws_connect(plain_address(it.node, "/live?x=1")) as websocket:
            await websocket.send_str("hello")
            assert (await websocket.receive()).data == "hello"
    assert it.requests[0].raw_path == "/live?x=1"
