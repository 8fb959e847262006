"""A node that is being replaced: nobody new, nobody cut before the time, and listeners that wait for the next one."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest

import http_cases
from e2e.echo_listener import echo_listener, who_answers
from e2e.quiet_node import quiet_node
from e2e.raw_websocket import BINARY, RawWebSocket, raw_pair, refusal
from e2e.sdk_pair import sdk_pair
from trunkline.protocol.errors import ConnectionLost
from trunkline.sdk import HttpRequest, HttpResponse
from trunkline.testing import RelayNode


async def ready(node: RelayNode) -> tuple[int, dict[str, object]]:
    """What a load balancer reads on the admin port."""
    reader, writer = await asyncio.open_connection("127.0.0.1", int(node.admin_url.rpartition(":")[2]))
    writer.write(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\n\r\n")
    head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    return int(head.split()[1]), json.loads(body)


@pytest.mark.loop("uvloop")
async def test_draining_node_refuses_senders_holds_listeners_and_lets_connections_end() -> None:
    async with quiet_node() as node, raw_pair(node) as pair, asyncio.TaskGroup() as tasks:
        assert (await ready(node))[0] == 200
        draining = tasks.create_task(node.drain())
        await asyncio.sleep(0)
        assert (await ready(node)) == (503, {**node.counts(), "status": "draining", "handshakes": 0})
        # A sender hears why, and may try the next node.
        refused = await refusal(node.connect_url(), token=node.token())
        assert refused.status == 503 and refused.phrase.startswith("ServerBusy: ")
        # A listener hears nothing: refused, hyco-ws would come back twice.
        waiting = RawWebSocket(node.listen_url(), token=node.token())
        await waiting.connect()
        await node.until(lambda counts: counts["handshakes"] == 1)
        # What runs goes on, as long as it takes.
        for _ in range(10):
            await pair.sender.send(BINARY, bytes(100_000))
            assert sum(len(frame.payload) for frame in await pair.listener.receive_message()) == 100_000
        assert not draining.done()
        await pair.sender.send_close(1000, "done")
        assert (await pair.listener.receive()).close_code == 1000
        await pair.listener.send_close(1000)
        assert (await pair.sender.receive()).close_code == 1000
        async with asyncio.timeout(2):
            await draining
        assert node.counts()["handshakes"] == 1  # still held
        # Only the very end says goodbye to the listeners.
        stopping = tasks.create_task(node.stop())
        frame = await pair.control.receive()
        assert frame.close_code == 1001 and "TrackingId:" in frame.close_reason
        await pair.control.send_close(1001)
        await pair.control.ended()
        pair.control.abort()
        await stopping
        await waiting.ended()
        waiting.abort()


async def test_second_signal_ends_a_drain_at_once() -> None:
    async with quiet_node() as node, sdk_pair(node) as pair:
        async with asyncio.TaskGroup() as tasks:
            draining = tasks.create_task(node.drain())
            await pair.sender.send("it goes on")
            assert await pair.listener.recv() == "it goes on"
            assert not draining.done()
            node.node.hurry()
        await node.stop()
        with pytest.raises(ConnectionLost):
            await pair.sender.recv()


async def test_drain_takes_no_longer_than_it_may() -> None:
    async with quiet_node(drain_timeout=0.3) as node, sdk_pair(node) as pair:
        async with asyncio.timeout(3):
            await node.drain()
        await node.stop()
        with pytest.raises(ConnectionLost):
            await pair.listener.recv()


async def test_drain_of_an_idle_node_does_not_wait() -> None:
    async with quiet_node() as node, echo_listener(node):
        async with asyncio.timeout(1):
            await node.drain()


@pytest.mark.parametrize("in_order", [True, False], ids=["drained", "stopped"])
async def test_listener_of_the_sdk_is_served_by_the_node_that_comes_next(in_order: bool) -> None:
    async with quiet_node() as node, echo_listener(node) as listener:
        if in_order:
            await node.drain()
        await node.stop()
        await node.start()
        await node.until(lambda counts: counts["listeners"] == 1)
        assert await who_answers(node.client()) == "listener"
        assert listener.state == "online"


@pytest.mark.loop("uvloop")
async def test_draining_node_lets_requests_finish_whatever_they_are_at() -> None:
    gate = asyncio.Event()

    async def handler(request: HttpRequest) -> HttpResponse:
        async def pieces() -> AsyncIterator[bytes]:
            yield b"begun "
            await gate.wait()
            yield b"x" * 300_000

        if request.query == "stream":
            return HttpResponse(200, pieces())
        await gate.wait()
        return HttpResponse(200, "small" if request.query == "small" else b"x" * 300_000)

    async with quiet_node() as node, node.listener(http_handler=handler), asyncio.TaskGroup() as tasks:
        relay = http_cases.Relay.of(node)
        async with AsyncExitStack() as stack:
            senders = {}
            for query in ("small", "large", "stream"):
                senders[query] = await stack.enter_async_context(relay.connect())
                senders[query].write_request("GET", f"/{relay.entity}?{query}", relay.request_headers())
            await node.until(lambda counts: counts["http_requests"] == 3)
            draining = tasks.create_task(node.drain())
            await asyncio.sleep(0)
            late = await stack.enter_async_context(relay.connect())
            relay.ask(late)
            assert (await late.answer()).status == 503
            assert not draining.done()
            gate.set()
            answers = {query: await sender.answer() for query, sender in senders.items()}
            assert {query: len(answer.body) for query, answer in answers.items()} == {
                "small": 5,
                "large": 300_000,
                "stream": 300_006,
            }
            assert answers["small"].get("connection") == answers["large"].get("connection") == "close"
            async with asyncio.timeout(3):
                await draining
