"""One connection and its requests: kept alive, pipelined, idle, drained."""

from __future__ import annotations

import asyncio

import pytest

from server.relay.front_port import Port, say_nothing, say_target
from server.relay.peers import until
from server.relay.test_exchange import request, whole
from trunkline.protocol.limits import HEAD_TIMEOUT, KEEP_ALIVE_TIMEOUT


@pytest.mark.parametrize(
    ("version", "headers", "stays"),
    [
        ("1.1", [], True),
        ("1.1", ["Connection: close"], False),
        ("1.1", ["Connection: Keep-Alive, Close"], False),
        ("1.0", [], False),
        ("1.0", ["Connection: Keep-Alive"], True),
    ],
)
async def test_connection_is_kept_alive_where_the_client_means_it(
    version: str, headers: list[str], stays: bool
) -> None:
    async with Port(say_target) as port, await port.dial() as peer:
        peer.send(request("GET", "/1", *headers, version=version))
        answer, body = await whole(peer)
        assert body == b"/1"
        said = {True: ["keep-alive"] if version == "1.0" else [], False: ["close"]}[stays]
        assert answer.all("Connection") == said
        if stays:
            peer.send(request("GET", "/2", *headers, version=version))
            assert (await whole(peer))[1] == b"/2"
        else:
            assert await peer.to_end() == b""


async def test_pipelined_requests_are_answered_in_their_order_one_at_a_time() -> None:
    async with Port(say_nothing) as port, await port.dial() as peer:
        peer.send(b"".join(request("GET", f"/{n}") for n in range(5)))
        for n in range(5):
            exchange = await port.exchange()
            assert exchange.head.target == f"/{n}"
            await asyncio.sleep(0)
            assert port.is_idle
            exchange.respond(200, body=b"%d" % n)
        assert [(await whole(peer))[1] for _ in range(5)] == [b"%d" % n for n in range(5)]


async def test_thousands_of_pipelined_requests_that_are_answered_at_once_are_all_answered() -> None:
    async with Port(say_target) as port, await port.dial() as peer:
        peer.send(b"".join(request("GET", f"/{n}") for n in range(5_000)))
        for n in range(5_000):
            assert (await whole(peer))[1] == b"/%d" % n
        assert not port.frontend.in_flight


async def test_idle_connection_is_ended_after_its_time_and_half_a_head_is_refused() -> None:
    async with Port(say_target) as port, await port.dial() as idle, await port.dial() as slow:
        for peer in (idle, slow):
            peer.send(request())
            await whole(peer)
        port.pass_time(KEEP_ALIVE_TIMEOUT - 1)
        slow.send(b"GET / HT")
        await until(lambda: port.frontend.heads)
        port.pass_time(1)
        assert await idle.to_end() == b""
        port.pass_time(HEAD_TIMEOUT)
        assert (await slow.answer()).status == 408


async def test_draining_ends_idle_connections_and_others_behind_their_answer() -> None:
    async with Port(say_nothing) as port, await port.dial() as idle, await port.dial() as busy:
        idle.send(request())
        (await port.exchange()).respond(200)
        await whole(idle)
        busy.send(request())
        exchange = await port.exchange()
        assert port.frontend.in_flight == 1
        port.frontend.drain()
        assert await idle.to_end() == b""
        exchange.respond(200, body=b"done")
        answer, body = await whole(busy)
        assert (answer.all("Connection"), body) == (["close"], b"done")
        assert await busy.to_end() == b""
