"""One connection and its requests: kept alive, pipelined, idle, drained."""

from __future__ import annotations

import asyncio

import pytest

from server.relay.front_port import Echo, Port, say_nothing, say_target
from server.relay.peers import handshake, until
from server.relay.test_exchange import request, whole
from trunkline.protocol.errors import MissingToken
from trunkline.protocol.limits import ANSWER_STALLED, HEAD_TIMEOUT, KEEP_ALIVE_TIMEOUT
from trunkline.server.relay.exchange import Exchange
from trunkline.server.relay.front_connection import EARLY_LIMIT, HIGH_WATER
from trunkline.server.relay.sockets import RECEIVE_BUFFER


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


@pytest.mark.parametrize("tls", [False, True])
async def test_what_is_read_ahead_of_an_answer_is_bounded_and_none_is_lost(tls: bool) -> None:
    count = 20_000
    async with Port(say_nothing, tls=tls) as port, await port.dial() as peer:
        peer.send(b"".join(request("GET", f"/{n}") for n in range(count)))
        first = await port.exchange()
        await until(lambda: port.newest._paused)
        for _ in range(20):
            await asyncio.sleep(0)
        # One read on top of the limit, and under TLS what was decrypted with it.
        assert port.held() <= EARLY_LIMIT + len(RECEIVE_BUFFER)
        first.respond(200, body=b"/0")
        for n in range(1, 200):
            exchange = await port.exchange()
            assert exchange.head.target == f"/{n}"
            exchange.respond(200, body=exchange.head.target.encode())
        for n in range(200):
            assert (await whole(peer))[1] == b"/%d" % n


async def test_requests_of_a_peer_that_reads_no_answers_are_not_served_any_more() -> None:
    served: list[str] = []

    def serve(exchange: Exchange) -> None:
        served.append(exchange.head.target)
        exchange.respond(200, body=bytes(100_000))

    async with Port(serve) as port, await port.dial() as peer:
        peer.reader._transport.pause_reading()  # type: ignore[attr-defined]
        peer.send(b"".join(request("GET", f"/{n}") for n in range(1_000)))
        await until(lambda: port.newest.congested)
        before = len(served)
        for _ in range(50):
            await asyncio.sleep(0)
        assert len(served) - before < 100 and port.newest.unsent < HIGH_WATER + 200_000
        peer.reader._transport.resume_reading()  # type: ignore[attr-defined]
        for _ in range(300):
            assert (await whole(peer))[1] == bytes(100_000)
        assert len(served) >= 300


async def test_websocket_may_follow_plain_requests_on_a_connection() -> None:
    async with Port(say_nothing) as port, await port.dial() as peer:
        peer.send(request() + handshake("/$hc/a") + b"early")
        (await port.exchange()).respond(204)
        assert (await peer.answer()).status == 204
        exchange = await port.exchange()
        assert exchange.head.is_websocket and not port.frontend.in_flight
        exchange.upgrade(Echo())
        assert (await peer.answer()).status == 101
        assert await peer.read(5) == b"early"
        assert not port.frontend.connections and not port.frontend.idle


@pytest.mark.parametrize("head", [request(), handshake("/$hc/a")], ids=["plain", "websocket"])
async def test_request_that_is_held_is_still_what_it_was(head: bytes) -> None:
    """Of one that is refused later only the beginning of its head is kept."""
    async with Port(say_nothing) as port, await port.dial() as peer:
        peer.send(head)
        exchange = await port.exchange()
        exchange.hold()
        assert port.frontend.in_flight == (0 if exchange.is_websocket else 1)
        exchange.refuse(MissingToken(), "MissingToken: held")
        _, body = await whole(peer)
        # A handshake is refused in text, whose clients read that; a request in JSON.
        assert (body == b"MissingToken: held\n") is exchange.is_websocket
        assert await peer.to_end() == b""
        assert port.frontend.in_flight == 0


async def test_refused_websocket_ends_a_connection_that_was_kept_alive() -> None:
    async with Port(lambda exchange: exchange.respond(404)) as port, await port.dial() as peer:
        peer.send(request() + handshake("/$hc/a") + request())
        assert (await whole(peer))[0].all("Connection") == []
        assert (await whole(peer))[0].all("Connection") == ["close"]
        assert await peer.to_end() == b""


async def test_idle_connections_are_no_handshakes() -> None:
    async with Port(say_nothing) as port, await port.dial() as peer:
        await until(lambda: port.frontend.handshakes == 1)
        peer.send(request())
        exchange = await port.exchange()
        assert port.frontend.handshakes == 0 and port.frontend.is_answering
        exchange.respond(204)
        await peer.answer()
        assert port.frontend.handshakes == 0 and not port.frontend.is_answering and len(port.frontend.idle) == 1


async def test_empty_lines_do_not_keep_an_idle_connection() -> None:
    async with Port(say_target) as port, await port.dial() as peer:
        peer.send(request())
        await whole(peer)
        port.pass_time(KEEP_ALIVE_TIMEOUT - 1)
        peer.send(b"\r\n" * 10)
        for _ in range(20):
            await asyncio.sleep(0)
        port.pass_time(1)
        assert await peer.to_end() == b""


async def test_long_answer_that_is_still_read_keeps_an_idle_connection() -> None:
    body = bytes(10_000_000)
    async with Port(lambda exchange: exchange.respond(200, body=body)) as port, await port.dial() as peer:
        peer.send(request())
        await peer.answer()
        await until(lambda: port.frontend.idle and port.newest.congested)
        left = len(body)
        for _ in range(3):
            port.pass_time(ANSWER_STALLED - 1)
            before = port.newest.unsent
            left -= len(await peer.read(1_500_000))
            await until(lambda before=before: port.newest.unsent < before)  # type: ignore[misc]
        assert await peer.read(left) == bytes(left)
        peer.send(request())
        assert (await peer.answer()).status == 200


async def test_head_with_bare_line_feeds_is_refused_without_waiting_for_its_end() -> None:
    async with Port(say_target) as port, await port.dial() as peer:
        for byte in b"GET / HTTP/1.1\r\nHost: x\n":
            peer.send(bytes((byte,)))
            await asyncio.sleep(0)
        assert (await peer.answer()).status == 400
        assert port.is_idle


async def test_fault_on_one_connection_costs_no_other_its_turn(caplog: pytest.LogCaptureFixture) -> None:
    def serve(exchange: Exchange) -> None:
        if exchange.head.target == "/fault":
            raise ValueError("a fault of whoever serves")
        exchange.respond(200)

    async with Port(serve) as port, await port.dial() as faulty, await port.dial() as other:
        for peer in (faulty, other):
            peer.send(request())
            await whole(peer)
        # Both wait for the next turn of the loop, the faulty one first.
        first, second = port.frontend.idle
        for protocol, target in ((first, "/fault"), (second, "/good")):
            protocol._buffer += request("GET", target)
            port.frontend.wait(protocol)
        assert (await whole(other))[0].status == 200
        assert await faulty.is_cut()
        assert "the relay failed on" in caplog.text and not port.frontend.in_flight
