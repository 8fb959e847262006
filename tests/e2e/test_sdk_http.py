"""HTTP through a real node to a listener of our SDK: the cases of `http_cases`, and what only the SDK has."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest

import http_cases
from e2e.quiet_node import quiet_node
from http_echo import content
from http_sdk_echo import SdkEcho
from http_sender import Cut
from trunkline.sdk import Connection, HttpRequest, HttpResponse
from trunkline.sdk.http_service import HttpHandler
from trunkline.testing import RelayNode, relay_node

GROUPS = [
    pytest.param(group, marks=pytest.mark.slow) if group in http_cases.SLOW_GROUPS else group
    for group in http_cases.GROUPS
]


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("group", GROUPS)
async def test_listener_of_the_sdk_serves_the_cases(group: str, tls: bool) -> None:
    async with relay_node(tls=tls, max_requests=200) as node, node.listener(http_handler=SdkEcho()):
        await http_cases.run(group, http_cases.Relay.of(node))


# --- what only the SDK has ------------------------------------------------------------------------------------


@asynccontextmanager
async def served(handler: HttpHandler | None, **options: Any) -> AsyncIterator[tuple[RelayNode, http_cases.Relay]]:
    """A node, and a listener with this handler on it. Both must hold nothing afterwards."""
    async with quiet_node() as node, node.listener(http_handler=handler, **options):
        yield node, http_cases.Relay.of(node)


async def test_handler_answers_with_bytes_text_or_pieces() -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield b"p" * 40_000
        yield b"q" * 40_000

    async def handler(request: HttpRequest) -> HttpResponse:
        bodies: dict[str, Any] = {"bytes": b"\xff\x00", "text": "Köln", "pieces": pieces()}
        return HttpResponse(200, bodies[request.query])

    async with served(handler) as (_, relay):
        answers = {}
        for query in ("bytes", "text", "pieces"):
            async with relay.connect() as sender:
                sender.write_request("GET", f"/{relay.entity}?{query}", relay.request_headers())
                answers[query] = await sender.answer()
        assert answers["bytes"].body == b"\xff\x00"
        assert answers["bytes"].get("content-type") == "application/octet-stream"
        assert answers["text"].body == "Köln".encode()
        assert answers["text"].get("content-type") == "text/plain; charset=utf-8"
        assert answers["pieces"].body == b"p" * 40_000 + b"q" * 40_000


async def fails(request: HttpRequest) -> HttpResponse:
    raise ValueError("a fault of the application")


@pytest.mark.parametrize(("handler", "status"), [(None, 501), (fails, 500)])
@pytest.mark.parametrize("size", [0, 100_000])
async def test_listener_that_cannot_answer_says_so_itself(handler: HttpHandler | None, status: int, size: int) -> None:
    async with served(handler) as (_, relay), relay.connect() as sender:
        for _ in range(2):
            sender.write_request("POST", f"/{relay.entity}", relay.request_headers(), bytes(size))
            answer = await sender.answer()
            assert answer.status == status
            assert answer.get("via"), "it came from the listener"
            assert b"TrackingId:" in answer.body
            if status == 501:
                assert answer.reason == "RequestHandler has not been configured"
            if size:
                break  # the rest of such a body is not read, so the connection may end with the answer


async def test_busy_listener_answers_503_on_either_way() -> None:
    go, begun = asyncio.Event(), asyncio.Event()

    async def handler(request: HttpRequest) -> HttpResponse:
        begun.set()
        await go.wait()
        return HttpResponse(200)

    async with served(handler, max_requests=1) as (_, relay), relay.connect() as first:
        relay.ask(first)
        await begun.wait()
        for size in (0, 100_000):
            async with relay.connect() as second:
                relay.ask(second, None, "POST", body=bytes(size))
                assert (await second.answer()).status == 503
        go.set()
        assert (await first.answer()).status == 200
        relay.ask(first)
        assert (await first.answer()).status == 200


async def test_stream_is_closed_when_its_sender_leaves() -> None:
    closed = asyncio.Event()

    async def events() -> AsyncIterator[bytes]:
        try:
            yield b"data: first\n\n"
            await asyncio.Event().wait()
        finally:
            closed.set()

    async def handler(request: HttpRequest) -> HttpResponse:
        return HttpResponse(200, events())

    async with served(handler) as (_, relay):
        async with relay.connect() as sender:
            relay.ask(sender)
            assert (await sender.head()).status == 200
            assert await sender.piece() == b"data: first\n\n"
        async with asyncio.timeout(5):
            await closed.wait()


@pytest.mark.parametrize("stage", ["begun", "opening"])
async def test_answer_whose_end_is_cancelled_is_cut_and_not_left_open(stage: str) -> None:
    cancel = asyncio.Event()

    async def handler(request: HttpRequest) -> HttpResponse | None:
        answer = await request.respond(200)
        if stage == "begun":
            await answer.write(b"begun" * 20_000)
        async with asyncio.TaskGroup() as tasks:
            ending = tasks.create_task(answer.end(b"x" * 40_000_000))  # more than fits in all buffers on the way
            await cancel.wait()
            ending.cancel()
        return None

    async with served(handler) as (_, relay), relay.connect() as sender:
        relay.ask(sender)
        assert (await sender.head()).status == 200
        cancel.set()
        with pytest.raises(Cut):
            async with asyncio.timeout(10):
                while await sender.piece():
                    pass


@pytest.mark.parametrize("streams", [False, True])
async def test_listener_that_closes_finishes_what_it_has_begun(streams: bool) -> None:
    go = asyncio.Event()
    begun: asyncio.Queue[None] = asyncio.Queue()

    async def handler(request: HttpRequest) -> HttpResponse | None:
        if not streams:
            begun.put_nowait(None)
            await go.wait()
            return HttpResponse(200, await request.read())
        answer = await request.respond(200)
        begun.put_nowait(None)
        await go.wait()
        await answer.end(await request.read())
        return None

    async with quiet_node() as node, asyncio.TaskGroup() as tasks, AsyncExitStack() as stack:
        listener = node.listener(http_handler=handler)
        await listener.open()
        relay = http_cases.Relay.of(node)
        bodies = [content(size, "body") for size in (0, 10, 65_537, 500_000)]
        senders = [await stack.enter_async_context(relay.connect()) for _ in bodies]
        for sender, body in zip(senders, bodies, strict=True):
            relay.ask(sender, None, "POST", body=body)
        for _ in senders:
            await begun.get()
        closing = tasks.create_task(listener.close(wait=10))
        await node.until(lambda counts: counts["listeners"] == 0)
        assert not closing.done()
        go.set()
        for sender, body in zip(senders, bodies, strict=True):
            answer = await sender.answer()
            assert (answer.status, answer.body) == (200, body)
        await closing


async def test_listeners_that_replace_each_other_under_load_lose_no_request() -> None:
    async def handler(request: HttpRequest) -> HttpResponse:
        await asyncio.sleep(0.001)
        return HttpResponse(200, await request.read())

    async with quiet_node(listener_policy="balanced") as node, asyncio.TaskGroup() as tasks:
        relay = http_cases.Relay.of(node)
        done, served = asyncio.Event(), 0

        async def send(number: int) -> None:
            nonlocal served
            body = content(number * 1000, "load")
            async with relay.connect() as sender:
                while not done.is_set():
                    relay.ask(sender, None, "POST", body=body)
                    answer = await sender.answer()
                    assert (answer.status, answer.body) == (200, body), answer
                    served += 1

        listeners = [node.listener(http_handler=handler) for _ in range(6)]
        await listeners[0].open()
        for number in range(10):
            tasks.create_task(send(number))
        for old, new in itertools.pairwise(listeners):
            before = served
            while served < before + 20:  # noqa: ASYNC110 - whatever the speed of the machine
                await asyncio.sleep(0.001)
            await new.open()
            await old.close(wait=10)
        done.set()
        await asyncio.sleep(0)
        await node.until(lambda counts: counts["http_requests"] == 0)
        await listeners[-1].close(wait=10)


async def test_loss_of_the_control_channel_ends_small_requests_and_no_streams_and_the_listener_comes_back() -> None:
    go = asyncio.Event()
    begun: asyncio.Queue[HttpRequest] = asyncio.Queue()

    async def handler(request: HttpRequest) -> HttpResponse | None:
        if request.suffix == "again":
            return HttpResponse(200, b"again")
        if request.suffix == "small":
            begun.put_nowait(request)
            await request.disconnected
            return HttpResponse(200, b"nobody hears this")
        answer = await request.respond(200)
        await answer.write(content(100_000, "first"))
        begun.put_nowait(request)
        await go.wait()
        await answer.end(b"last")
        return None

    async with served(handler) as (node, relay), relay.connect() as small, relay.connect() as large:
        small.write_request("GET", f"/{relay.entity}/small", relay.request_headers())
        large.write_request("GET", f"/{relay.entity}/large", relay.request_headers())
        assert (await large.head()).status == 200
        for _ in range(2):
            await begun.get()
        [channel] = node.node.broker.channels
        assert channel._transport is not None
        channel._transport.abort()
        answer = await small.answer()
        assert (answer.status, answer.all("via")) == (502, [])
        go.set()
        body = b""
        while piece := await large.piece():
            body += piece
        assert body == content(100_000, "first") + b"last"
        await node.until(lambda counts: counts["listeners"] == 1)
        small.write_request("GET", f"/{relay.entity}/again", relay.request_headers())
        assert (await small.answer()).body == b"again"


async def test_senders_of_a_listener_that_closes_at_once_get_503() -> None:
    begun = asyncio.Event()

    async def handler(request: HttpRequest) -> HttpResponse:
        begun.set()
        await asyncio.Event().wait()
        return HttpResponse()

    async with quiet_node() as node, node.listener(http_handler=handler) as listener:
        relay = http_cases.Relay.of(node)
        async with relay.connect() as sender:
            relay.ask(sender)
            await begun.wait()
            await listener.close()
            assert (await sender.answer()).status == 503


async def test_requests_and_connections_share_a_listener() -> None:
    async def handler(request: HttpRequest) -> HttpResponse:
        return HttpResponse(200, b"http")

    async with quiet_node() as node, asyncio.TaskGroup() as tasks, node.listener(http_handler=handler) as listener:

        async def echo(connection: Connection) -> None:
            async for message in connection:
                await connection.send(message)

        serving = tasks.create_task(listener.serve(echo))
        relay = http_cases.Relay.of(node)
        async with await node.client().create_connection() as connection:
            assert (await relay.once()).body == b"http"
            await connection.send("websocket")
            assert await connection.recv() == "websocket"
        await listener.close()
        await serving
