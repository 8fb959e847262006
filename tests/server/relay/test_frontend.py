"""What comes in on the port, down to single bytes, and what is answered."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from functools import partial
from ipaddress import ip_network
from types import TracebackType
from typing import Any, Self

import aiofastnet
import pytest
from aiofastnet.constants import SSL_BIO_SIZE_DEFAULTS

from server.relay.front_port import Echo, Port, say_nothing, say_target
from server.relay.peers import (
    ACCEPT,
    HOST,
    KEY,
    Answer,
    Clock,
    Peer,
    Serving,
    client_tls,
    handshake,
    server_tls,
    until,
)
from trunkline.protocol.errors import QuotaExceeded
from trunkline.protocol.limits import HEAD_TIMEOUT, REQUEST_HEAD_LIMIT
from trunkline.server.relay import frontend as module
from trunkline.server.relay.forwarded import TrustedProxies
from trunkline.server.relay.front_connection import EARLY_LIMIT, LINGER
from trunkline.server.relay.frontend import Exchange, Frontend, FrontendProtocol
from trunkline.server.relay.request_head import parse_head
from trunkline.server.relay.sockets import RECEIVE_BUFFER


async def asked(data: bytes, *, tls: bool = False, **options: Any) -> tuple[Answer, bytes]:
    """What is answered to these bytes, to the end of the stream."""
    async with Port(tls=tls, **options) as port:
        peer = await port.dial()
        peer.send(data)
        answer = await peer.answer()
        body = await peer.to_end()
        await peer.leave()
        return answer, body


# -- heads


async def test_a_head_split_at_every_byte_is_read_as_one() -> None:
    head = handshake("/$hc/orders?a=b", [("X-Custom", "é ü")])
    async with Port(say_nothing) as port:
        for cut in range(1, len(head)):
            async with await port.dial() as peer:
                peer.send(head[:cut])
                await port.holds(cut)
                assert port.is_idle
                peer.send(head[cut:])
                exchange = await port.exchange()
                assert exchange.head.target == "/$hc/orders?a=b"
                assert exchange.head.get("x-custom") == "é ü"
                assert exchange.head.is_websocket
            await until(lambda: not port.frontend.connections)


async def test_a_head_byte_by_byte_and_empty_lines_ahead_of_it_are_read() -> None:
    async with Port() as port, await port.dial() as peer:
        for byte in b"\r\n\r\n" + handshake("/slow"):
            peer.send(bytes((byte,)))
            await asyncio.sleep(0)
        assert (await peer.answer()).status == 200
        assert await peer.to_end() == b"/slow"


def filled(size: int, *, extra: bytes = b"") -> bytes:
    """A head of exactly `size` bytes."""
    empty = handshake("/large", [("X-Fill", "")])
    return handshake("/large", [("X-Fill", "x" * (size - len(empty)))]) + extra


async def test_a_head_of_32_kib_is_read_and_one_byte_more_is_431() -> None:
    assert len(filled(REQUEST_HEAD_LIMIT)) == REQUEST_HEAD_LIMIT
    answer, body = await asked(filled(REQUEST_HEAD_LIMIT))
    assert (answer.status, body) == (200, b"/large")
    answer, body = await asked(filled(REQUEST_HEAD_LIMIT + 1))
    assert answer.status == 431
    assert b"32 KiB" in body


async def test_a_head_that_never_ends_is_refused_at_the_limit_and_not_later() -> None:
    async with Port() as port, await port.dial() as peer:
        peer.send(b"GET / HTTP/1.1\r\nX-Fill: " + b"x" * REQUEST_HEAD_LIMIT)
        assert (await peer.answer()).status == 431


async def test_a_request_line_longer_than_a_head_is_414() -> None:
    answer, _ = await asked(handshake("/" + "a" * REQUEST_HEAD_LIMIT))
    assert answer.status == 414


@pytest.mark.parametrize("trickle", [0, 1])
async def test_a_head_that_does_not_arrive_within_10_s_is_408(trickle: int) -> None:
    async with Port() as port, await port.dial() as peer:
        await until(lambda: port.frontend.heads)
        for byte in handshake("/")[:9]:
            port.pass_time(HEAD_TIMEOUT / 10)
            if trickle:
                peer.send(bytes((byte,)))
                await asyncio.sleep(0)
        assert len(port.frontend.heads) == 1
        port.pass_time(HEAD_TIMEOUT / 10)
        answer = await peer.answer()
        assert (answer.status, answer.phrase) == (408, "The request head did not arrive within 10 s")
        assert not port.frontend.heads


async def test_deadlines_are_those_of_each_connection() -> None:
    async with Port() as port, await port.dial() as first:
        await until(lambda: len(port.frontend.heads) == 1)
        port.clock.now += 5
        async with await port.dial() as second:
            await until(lambda: len(port.frontend.heads) == 2)
            port.pass_time(6)
            assert (await first.answer()).status == 408
            second.send(handshake("/second"))
            assert (await second.answer()).status == 200


REFUSED = {
    "no HTTP": (b"\x00\x01\x02garbage", 400, "no method begins it"),
    "lower case": (b"get / http/1.1\r\n\r\n", 400, "This is not HTTP"),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400, "it looks like TLS, and this port is without"),
    "words": (b"HELLO THERE\r\n\r\n", 400, "malformed"),
    "HTTP/0.9": (b"GET /\r\n\r\n", 400, "HTTP/0.9; speak HTTP/1.1"),
    "HTTP/1.0": (handshake("/", version="HTTP/1.0"), 400, "HTTP/1.0; speak HTTP/1.1"),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505, "HTTP/2.0; speak HTTP/1.1"),
    "no host": (handshake("/", without=["Host"]), 400, "exactly one Host header"),
    "two hosts": (handshake("/", [("Host", "other")]), 400, "exactly one Host header"),
    "CONNECT": (b"CONNECT x:1 HTTP/1.1\r\nHost: x\r\n\r\n", 501, "CONNECT is not served here"),
    "a method that nobody knows": (b"BREW / HTTP/1.1\r\nHost: x\r\n\r\n", 501, "The method BREW is not served here"),
    "folded header": (b"GET / HTTP/1.1\r\nHost: x\r\n folded\r\n\r\n", 400, "malformed"),
    "bare LF": (b"GET / HTTP/1.1\nHost: x\n\nGET / HTTP/1.1\r\nHost: y\r\n\r\n", 400, "malformed"),
    "bare CR in a value": (b"GET / HTTP/1.1\r\nHost: x\r\nA: b\rc\r\n\r\n", 400, "malformed"),
    "space before colon": (b"GET / HTTP/1.1\r\nHost : x\r\n\r\n", 400, "malformed"),
    "NUL in a value": (b"GET / HTTP/1.1\r\nHost: x\r\nA: \x00\r\n\r\n", 400, "malformed"),
    "body with an upgrade": (handshake("/", [("Content-Length", "5")]) + b"12345", 400, "has no body"),
    "chunks with an upgrade": (handshake("/", [("Transfer-Encoding", "chunked")]) + b"0\r\n\r\n", 400, "has no body"),
    "POST upgrade": (handshake("/", method="POST"), 400, "is a GET request"),
    "no key": (handshake("/", without=["Sec-WebSocket-Key"]), 400, "exactly one Sec-WebSocket-Key"),
    "two keys": (handshake("/", [("Sec-WebSocket-Key", KEY)]), 400, "exactly one Sec-WebSocket-Key"),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.loop("uvloop")
async def test_what_is_no_good_request_is_refused_with_a_reason(name: str) -> None:
    data, status, words = REFUSED[name]
    answer, body = await asked(data)
    assert answer.status == status
    assert words in answer.phrase
    assert json.loads(body)["error"]["message"] == answer.phrase
    assert answer.all("Content-Type") == ["application/json"]
    assert answer.all("Connection") == ["close"]


@pytest.mark.parametrize("version", ["8", "0", "", "13, 8"])
@pytest.mark.loop("uvloop")
async def test_another_websocket_version_is_426_and_told_which_one_is_spoken(version: str) -> None:
    head = handshake("/").replace(b"Version: 13", b"Version: " + version.encode())
    answer, _ = await asked(head)
    assert answer.status == 426
    assert answer.all("Sec-WebSocket-Version") == ["13"]


async def test_an_upgrade_to_h2c_is_ignored() -> None:
    head = handshake("/plain").replace(b"Upgrade: websocket", b"Upgrade: h2c")
    head = head.replace(b"Connection: Upgrade", b"Connection: Upgrade, HTTP2-Settings, close")
    answer, body = await asked(head)
    assert (answer.status, body) == (200, b"/plain")
    assert not parse_head(head).is_websocket


# -- the 101


async def test_a_101_has_one_of_each_header_and_nothing_that_was_not_asked() -> None:
    async with Port(say_nothing) as port, await port.dial() as peer:
        peer.send(handshake("/", [("Sec-WebSocket-Extensions", "permessage-deflate"), ("Sec-WebSocket-Protocol", "a")]))
        exchange = await port.exchange()
        assert exchange.upgrade(Echo())
        answer = await peer.answer()
        assert answer.raw.split(b"\r\n")[0] == b"HTTP/1.1 101 Switching Protocols"
        assert sorted(answer.headers) == [
            ("Connection", "Upgrade"),
            ("Sec-WebSocket-Accept", ACCEPT),
            ("Upgrade", "websocket"),
        ]


async def test_a_101_names_the_subprotocol_that_was_chosen() -> None:
    async with Port(say_nothing) as port, await port.dial() as peer:
        peer.send(handshake("/"))
        (await port.exchange()).upgrade(Echo(), subprotocol="wamp")
        assert (await peer.answer()).all("Sec-WebSocket-Protocol") == ["wamp"]


@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize("size", [1, 100_000])
async def test_bytes_behind_the_head_reach_the_next_protocol(tls: bool, size: int) -> None:
    early = bytes(range(256)) * (size // 256 + 1)
    async with Port(lambda exchange: exchange.upgrade(Echo()) and None, tls=tls) as port:
        async with await port.dial() as peer:
            peer.send(handshake("/") + early[:size])
            assert (await peer.answer()).status == 101
            assert await peer.read(size) == early[:size]
            peer.send(b"and more")
            assert await peer.read(8) == b"and more"


@pytest.mark.parametrize("tls", [False, True])
async def test_bytes_ahead_of_a_late_101_are_bounded_and_none_is_lost(tls: bool) -> None:
    sent = bytes(range(256)) * 16_384
    async with Port(say_nothing, tls=tls) as port, await port.dial() as peer:
        peer.send(handshake("/") + sent)
        exchange = await port.exchange()
        held = port.newest
        await until(lambda: held._paused)
        for _ in range(50):
            await asyncio.sleep(0)
        # One read on top of the limit, and under TLS what was decrypted with it.
        assert len(held._buffer) <= EARLY_LIMIT + len(RECEIVE_BUFFER)
        echo = Echo()
        assert exchange.upgrade(echo)
        assert (await peer.answer()).status == 101
        assert await peer.read(len(sent)) == sent


async def test_many_heads_at_once_are_served_a_few_in_each_turn_of_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    head = handshake("/", [("x", "y" * 1_000)])
    monkeypatch.setattr(module, "HEADS_AT_ONCE", 2 * len(head))
    # What was served, and None for somebody else's turn.
    served: list[Exchange | None] = []

    def serve(exchange: Exchange) -> None:
        served.append(exchange)
        asyncio.get_running_loop().call_soon(lambda: served.append(None))

    async with Port(serve) as port:
        peers = [await port.dial() for _ in range(20)]
        await until(lambda: len(port.frontend.heads) == 20)
        # Without a turn of the loop in between, so that all are read in the same one.
        asyncio.get_running_loop().call_soon(lambda: served.append(None))
        for protocol in port.frontend.heads.copy():
            RECEIVE_BUFFER[: len(head)] = head
            protocol.buffer_updated(len(head))
        assert len(served) == 2
        # More of one that waits is no other head, and one that leaves is served no more.
        waiting = list(port.frontend.heads)
        RECEIVE_BUFFER[:4] = b"more"
        waiting[0].buffer_updated(4)
        waiting[1].abort()
        await until(lambda: sum(each is not None for each in served) == 19)
        runs = "".join("x" if each else " " for each in served).split()
        assert max(map(len, runs)) <= 2
        await until(lambda: port.frontend._may_serve == 2 * len(head))
        for peer in peers:
            await peer.leave()


@pytest.fixture
def little_may_be_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HANDSHAKES_LIMIT", 100_000)


@pytest.mark.parametrize("whole", [True, False])
async def test_large_heads_are_refused_when_all_hold_too_much_and_usual_ones_are_not(
    whole: bool, little_may_be_held: None, caplog: pytest.LogCaptureFixture
) -> None:
    large = handshake("/", [("x", "y" * 30_000)])
    async with Port(say_nothing) as port:
        peers = [await port.dial() for _ in range(4)]
        for n, peer in enumerate(peers[:3]):
            peer.send(large if whole else large[:-2])
            wanted = (n + 1) * 30_000
            await until(partial(lambda wanted: port.frontend.held > wanted, wanted))
        peers[3].send(large)
        assert (await peers[3].answer()).status == 503
        usual = await port.dial()
        usual.send(handshake("/usual"))
        while (await port.exchange()).head.target != "/usual":
            pass
        for peer in (*peers, usual):
            await peer.leave()
        await until(lambda: not port.frontend.held)
        port.pass_time(1)
        assert "1 handshakes were refused or cut" in caplog.text


async def test_many_headers_weigh_more_than_their_bytes(little_may_be_held: None) -> None:
    answer, _ = await asked(handshake("/", [("x", "")] * 500))
    assert answer.status == 503


async def test_peer_that_sends_ahead_of_its_answer_is_cut_when_all_hold_too_much(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "HANDSHAKES_LIMIT", 30_000)
    async with Port(say_nothing) as port, await port.dial() as peer, await port.dial() as other:
        for each in (peer, other):
            each.send(handshake("/"))
            exchange = await port.exchange()
            each.send(b"x" * 20_000)
            if each is peer:
                await until(lambda: port.frontend.held > 20_000)
                first = exchange
        assert await other.is_cut()
        await until(lambda: not exchange.is_open)
        assert first.is_open


class Hesitant(asyncio.BufferedProtocol):
    """Reads once in a turn of the loop, and pauses inside that."""

    def __init__(self) -> None:
        self.got = bytearray()

    async def has(self, size: int) -> None:
        await until(lambda: len(self.got) >= size)

    def take_over(self, transport: asyncio.Transport, early: bytes) -> None:
        self.transport = transport
        self.got += early

    def get_buffer(self, sizehint: int) -> memoryview:
        return RECEIVE_BUFFER

    def buffer_updated(self, nbytes: int) -> None:
        self.got += RECEIVE_BUFFER[:nbytes]
        self.transport.pause_reading()
        asyncio.get_running_loop().call_soon(self.transport.resume_reading)


@pytest.mark.parametrize("tls", [False, True])
async def test_nothing_is_left_behind_in_a_transport_that_was_paused(tls: bool) -> None:
    assert len(RECEIVE_BUFFER) >= SSL_BIO_SIZE_DEFAULTS["ssl_incoming_bio_size"]
    hesitant = Hesitant()
    async with Port(lambda exchange: exchange.upgrade(hesitant), tls=tls) as port, await port.dial() as peer:
        peer.send(handshake("/"))
        await peer.answer()
        # Whole TLS records and a short one behind them, as the last message of a long one is.
        for size in (262_144, 262_144 + 100, 16_384, 5 * 262_144 + 1):
            hesitant.got.clear()
            peer.send(b"x" * (size - 100))
            peer.send(b"y" * 100)
            await hesitant.has(size)


# -- other answers


@pytest.mark.parametrize("tls", [False, True])
async def test_an_answer_ends_the_connection_without_waiting_for_the_clock(tls: bool) -> None:
    # The peer reads to the end of the stream and never closes first.
    async with Port(tls=tls) as port:
        peer = await port.dial()
        peer.send(handshake("/a?b=c"))
        answer = await peer.answer()
        assert (answer.status, answer.phrase) == (200, "OK")
        assert await peer.to_end() == b"/a?b=c"
        await peer.leave()
        await until(lambda: not port.frontend.connections)
        assert not port.frontend.lingering


async def test_a_head_request_gets_no_body() -> None:
    answer, body = await asked(handshake("/x", method="HEAD", without=["Upgrade", "Connection"]), keeps_alive=False)
    assert (answer.status, answer.all("Content-Length"), body) == (200, ["2"], b"")


@pytest.mark.parametrize("tls", [False, True])
async def test_a_refused_peer_that_is_still_sending_gets_its_answer(tls: bool) -> None:
    # Far more than the buffers of the sockets hold: without somebody who reads it, the answer is lost in a reset.
    more = b"x" * 20_000_000
    async with Port(lambda exchange: exchange.refuse(QuotaExceeded(), "No."), tls=tls) as port:
        peer = await port.dial()
        peer.send(handshake("/") + more)
        answer = await peer.answer()
        assert (answer.status, answer.phrase) == (429, "No.")
        async with asyncio.timeout(5):
            await peer.writer.drain()
        assert await peer.to_end() == b"No.\n"
        await peer.leave()


async def test_a_peer_that_was_not_read_any_more_is_read_again_when_it_is_refused() -> None:
    async with Port(say_nothing) as port, await port.dial() as peer:
        peer.send(handshake("/") + b"x" * 20_000_000)
        exchange = await port.exchange()
        await until(lambda: port.newest._paused)
        exchange.refuse(QuotaExceeded(), "No.")
        assert (await peer.answer()).status == 429
        async with asyncio.timeout(5):
            await peer.writer.drain()
        assert await peer.to_end() == b"No.\n"


async def test_a_peer_that_lingers_after_its_answer_is_cut() -> None:
    async with Port() as port, await port.dial() as peer:
        peer.send(handshake("/"))
        await peer.answer()
        await until(lambda: port.frontend.lingering)
        port.pass_time(LINGER / 2)
        assert port.frontend.connections
        port.pass_time(LINGER / 2)
        await until(lambda: not port.frontend.connections)


@pytest.mark.parametrize("stops", [False, True])
async def test_a_peer_has_time_for_a_long_answer_as_long_as_it_reads(stops: bool) -> None:
    body = bytes(range(250)) * 80_000
    async with Port(lambda exchange: None) as port, await port.dial() as peer:
        peer.send(handshake("/"))
        (await port.exchange()).respond(200, body=body)
        await peer.answer()
        transport = port.newest._transport
        assert transport is not None
        got = b""
        while len(got) < 12_000_000:
            goal = transport.get_write_buffer_size() - 1_000_000
            got += await peer.read(4_000_000)
            await until(lambda goal=goal: transport.get_write_buffer_size() < goal)  # type: ignore[misc]
            port.pass_time(LINGER)
            assert port.frontend.connections
        if stops:
            # What is on the way still fills the reader of the test.
            while port.frontend.connections:
                port.pass_time(LINGER)
                await asyncio.sleep(0)
        else:
            assert got + await peer.to_end() == body


@pytest.mark.parametrize(
    ("phrase", "sent"),
    [
        ("x" * 2_000, "x" * 2_000),
        ('No: "so" (it\'s said), 100% [sic] {ok}; a/b\\c?', 'No: "so" (it\'s said), 100% [sic] {ok}; a/b\\c?'),
        ("über", "über"),
        ("a\r\nSet-Cookie: b", "a  Set-Cookie: b"),
        ("a\nb\x85c\x0bd", "a b c d"),
        ("日本", "??"),
        (None, "Gone"),
    ],
)
@pytest.mark.loop("uvloop")
async def test_a_reason_phrase_passes_whole_and_cannot_end_its_line(phrase: str | None, sent: str) -> None:
    async with Port(lambda exchange: exchange.respond(410, phrase)) as port, await port.dial() as peer:
        peer.send(handshake("/"))
        answer = await peer.answer()
        assert (answer.status, answer.phrase) == (410, sent)
        assert {name for name, _ in answer.headers} == {"Date", "Content-Length", "Content-Type", "Connection"}


async def test_a_status_that_nobody_knows_has_an_empty_phrase() -> None:
    async with Port(lambda exchange: exchange.respond(299)) as port, await port.dial() as peer:
        peer.send(handshake("/"))
        answer = await peer.answer()
        assert (answer.status, answer.phrase) == (299, "")


async def test_pipelined_requests_get_one_answer_where_no_connection_is_kept_alive() -> None:
    two = handshake("/1", without=["Upgrade"]) + handshake("/2", without=["Upgrade"])
    answer, body = await asked(two, keeps_alive=False)
    assert (answer.status, body) == (200, b"/1")


# -- peers that leave


# TLS has no half-close, so no "end" of its own.
@pytest.mark.parametrize(
    ("how", "tls"), [("close", False), ("end", False), ("reset", False), ("close", True), ("reset", True)]
)
async def test_whoever_owes_an_answer_hears_that_the_peer_has_left(how: str, tls: bool) -> None:
    async with Port(say_nothing, tls=tls) as port:
        peer = await port.dial()
        peer.send(handshake("/?secret"))
        exchange = await port.exchange()
        left: list[str] = []
        exchange.on_left = lambda: left.append("left")
        assert exchange.is_open
        if how == "close":
            await peer.leave()
        elif how == "end":
            peer.end()
        else:
            peer.reset()
        await until(lambda: left)
        assert not exchange.is_open
        assert not exchange.upgrade(Echo())
        exchange.respond(200)
        assert left == ["left"]
        assert not port.frontend.connections
        assert repr(exchange) == "<Exchange GET '/' answered>"
        peer.writer.transport.abort()


async def test_an_answered_exchange_is_not_told_that_its_peer_has_left() -> None:
    async with Port(say_nothing) as port:
        peer = await port.dial()
        peer.send(handshake("/"))
        exchange = await port.exchange()
        left: list[str] = []
        exchange.on_left = lambda: left.append("left")
        exchange.respond(200)
        exchange.respond(500)
        assert (await peer.answer()).status == 200
        await peer.leave()
        await until(lambda: not port.frontend.connections)
        assert left == []


async def test_peers_that_leave_in_any_state_are_forgotten() -> None:
    async with Port(say_nothing) as port:
        silent, partial, whole = [await port.dial() for _ in range(3)]
        partial.send(b"GET / HT")
        whole.send(handshake("/"))
        await port.exchange()
        assert len(port.frontend.connections) == 3
        for peer in (silent, partial, whole):
            await peer.leave()
        await until(lambda: not port.frontend.connections)
        assert not port.frontend.heads and not port.frontend.lingering


async def test_a_transport_that_was_handed_on_belongs_to_the_frontend_no_more() -> None:
    async with Port(say_nothing) as port:
        peer = await port.dial()
        peer.send(handshake("/"))
        echo = Echo()
        (await port.exchange()).upgrade(echo)
        assert not port.frontend.connections and not port.frontend.heads
        port.pass_time(1_000)
        peer.send(b"hello")
        await peer.answer()
        assert await peer.read(5) == b"hello"
        await peer.leave()
        async with asyncio.timeout(5):
            await echo.lost.wait()


# -- a flood


async def test_empty_lines_without_end_are_not_collected() -> None:
    async with Port() as port, await port.dial() as peer:
        started = time.monotonic()
        peer.send(b"\r\n" * 1_000_000)
        async with asyncio.timeout(5):
            await peer.writer.drain()
        peer.send(handshake("/still-here"))
        assert (await peer.answer()).status == 200
        assert time.monotonic() - started < 5
        assert port.held() == 0


async def test_connections_for_which_there_is_no_room_are_closed_and_counted_in_one_line(
    caplog: pytest.LogCaptureFixture,
) -> None:
    room = True
    frontend = Frontend(say_target, Clock(), has_room=lambda: room)
    async with Serving(frontend) as serving, await Peer.dial(serving.port) as early:
        await until(lambda: frontend.connections)
        room = False
        for _ in range(3):
            async with await Peer.dial(serving.port) as late:
                assert await late.is_cut()
        with caplog.at_level(logging.WARNING):
            frontend.tick(1)
            frontend.tick(2)
        assert [record.getMessage().partition(":")[0] for record in caplog.records] == [
            "3 connections were turned away"
        ]
        # Whoever was there before is served, and as soon as there is room everybody is again.
        early.send(handshake("/early"))
        assert (await early.answer()).status == 200
        room = True
        async with await Peer.dial(serving.port) as late:
            late.send(handshake("/late"))
            assert (await late.answer()).status == 200


# -- what is shown


def test_a_long_path_is_cut_where_an_exchange_is_shown() -> None:
    exchange = Exchange(None, parse_head(handshake("/$hc/" + "a" * 30_000)), ("192.0.2.1", 1), False)  # type: ignore[arg-type]
    assert repr(exchange).startswith("<Exchange GET '/$hc/aaaa")
    assert len(repr(exchange)) < 600


# -- behind a proxy

LOOPBACK = TrustedProxies([ip_network("127.0.0.0/8")])
OTHERS = TrustedProxies([ip_network("192.0.2.0/24")])
VERSION_1 = b"PROXY TCP4 192.0.2.7 198.51.100.1 4711 443\r\n"
VERSION_2 = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xc0\0\x02\x07\xc6\x33\x64\x01\x12\x67\x01\xbb"
LOCAL = b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0"
HEAD = b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n"


def forwarded(**headers: str) -> bytes:
    lines = "".join(f"X-Forwarded-{name.capitalize()}: {value}\r\n" for name, value in headers.items())
    return HEAD[:-2] + lines.encode() + b"\r\n"


async def seen(data: bytes, *, tls: bool = False, **options: Any) -> tuple[str, int, bool]:
    """Address, port and encryption of the client as whoever serves the request sees them; port 0 is the peer's own."""
    async with Port(tls=tls, **options) as port, await port.dial() as peer:
        peer.send(data)
        exchange = await port.exchange()
        assert (await peer.answer()).status == 200
        address, number = exchange.remote
        own = peer.writer.get_extra_info("sockname")[1]
        return address, 0 if number == own else number, exchange.secure


@pytest.mark.parametrize("tls", [False, True])
async def test_client_is_the_peer_when_no_proxy_is_trusted(tls: bool) -> None:
    assert await seen(HEAD, tls=tls) == ("127.0.0.1", 0, tls)
    assert await seen(forwarded(For="192.0.2.7", proto="https"), tls=tls) == ("127.0.0.1", 0, tls)
    assert await seen(forwarded(For="192.0.2.7", proto="https"), tls=tls, proxies=OTHERS) == ("127.0.0.1", 0, tls)


@pytest.mark.parametrize("tls", [False, True])
async def test_client_is_whom_a_trusted_proxy_names(tls: bool) -> None:
    assert await seen(HEAD, tls=tls, proxies=LOOPBACK) == ("127.0.0.1", 0, tls)
    request = forwarded(For="198.51.100.9, 192.0.2.7", proto="http" if tls else "https")
    assert await seen(request, tls=tls, proxies=LOOPBACK) == ("192.0.2.7", 0, not tls)
    # In two headers, as in one (RFC 9110 section 5.2).
    request = forwarded(For="192.0.2.7").replace(b"X-Forwarded", b"X-Forwarded-For: 198.51.100.9\r\nX-Forwarded")
    assert (await seen(request, tls=tls, proxies=LOOPBACK))[0] == "192.0.2.7"


async def test_ipv4_client_of_a_socket_for_both_is_one_of_ipv4() -> None:
    frontend = Frontend(say_target, Clock(), proxies=LOOPBACK, proxy_protocol=True)
    protocol = frontend.protocol()

    class Transport(asyncio.Transport):
        def get_extra_info(self, name: str, default: Any = None) -> Any:
            return ("::ffff:127.0.0.1", 7, 0, 0) if name == "peername" else default

        def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
            """It writes nothing."""

    protocol.connection_made(Transport())
    assert protocol._peer == ("127.0.0.1", 7) and protocol._proxy_header_is_due


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (VERSION_1, ("192.0.2.7", 4711, False)),
        (VERSION_2, ("192.0.2.7", 4711, False)),
        (LOCAL, ("127.0.0.1", 0, False)),
        (b"PROXY UNKNOWN\r\n", ("127.0.0.1", 0, False)),
    ],
    ids=["version 1", "version 2", "local", "unknown"],
)
async def test_client_is_whom_the_header_of_the_proxy_protocol_names(
    header: bytes, expected: tuple[str, int, bool]
) -> None:
    options: dict[str, Any] = {"proxies": LOOPBACK, "proxy_protocol": True}
    assert await seen(header + HEAD, **options) == expected
    # Whom that one names in turn is believed when it is trusted itself.
    trusted = expected[0] == "127.0.0.1"
    request = header + forwarded(For="203.0.113.9", proto="https")
    assert await seen(request, **options) == (("203.0.113.9", 0, True) if trusted else expected)


@pytest.mark.parametrize("header", [VERSION_1, VERSION_2], ids=["version 1", "version 2"])
async def test_header_of_the_proxy_protocol_comes_in_pieces(header: bytes) -> None:
    async with Port(proxies=LOOPBACK, proxy_protocol=True) as port, await port.dial() as peer:
        for size, byte in enumerate(header, 1):
            peer.send(bytes((byte,)))
            if size < len(header):
                await port.holds(size)
        await port.holds(0)
        peer.send(HEAD)
        assert (await port.exchange()).remote == ("192.0.2.7", 4711)


@pytest.mark.parametrize("data", [HEAD, b"PROXY TCP4 nobody\r\n" + HEAD, b"PROXY UNKNOWN " + b"x" * 200], ids=str)
async def test_trusted_proxy_without_a_good_header_is_refused(data: bytes) -> None:
    async with Port(proxies=LOOPBACK, proxy_protocol=True) as port, await port.dial() as peer:
        peer.send(data)
        answer = await peer.answer()
        assert answer.status == 400 and "PROXY header" in answer.phrase
        assert port.is_idle


async def test_header_of_the_proxy_protocol_has_to_come_in_time() -> None:
    async with Port(proxies=LOOPBACK, proxy_protocol=True) as port, await port.dial() as peer:
        peer.send(VERSION_2[:20])
        await port.holds(20)
        port.pass_time(HEAD_TIMEOUT + 1)
        assert (await peer.answer()).status == 408


@pytest.mark.parametrize("header", [VERSION_1, VERSION_2], ids=["version 1", "version 2"])
@pytest.mark.parametrize(
    "options",
    [{}, {"proxies": LOOPBACK}, {"proxies": OTHERS, "proxy_protocol": True}],
    ids=["off", "no", "stranger"],
)
async def test_header_of_the_proxy_protocol_is_refused_where_nobody_expects_it(
    header: bytes, options: dict[str, Any]
) -> None:
    async with Port(**options) as port, await port.dial() as peer:
        peer.send(header + HEAD)
        answer = await peer.answer()
        assert answer.status == 400 and "PROXY protocol is not expected here" in answer.phrase
        assert port.is_idle


# -- TLS behind the header


class TlsBehindTheHeader:
    """A port whose connections come in plain, and begin TLS behind the header of the PROXY protocol."""

    def __init__(self, proxies: TrustedProxies = LOOPBACK) -> None:
        self.port = Port(proxies=proxies, proxy_protocol=True, begin_tls=self._begin_tls)
        self._context = server_tls()
        self._tasks: set[asyncio.Task[None]] = set()
        self.failures: list[BaseException] = []

    def _begin_tls(self, transport: asyncio.Transport, protocol: FrontendProtocol) -> None:
        task = asyncio.get_running_loop().create_task(self._secure(transport, protocol))
        self._tasks.add(task)

    async def _secure(self, transport: asyncio.Transport, protocol: FrontendProtocol) -> None:
        loop = asyncio.get_running_loop()
        try:
            protocol.secured(await aiofastnet.start_tls(loop, transport, protocol, self._context, server_side=True))
        except OSError as error:
            self.failures.append(error)

    async def __aenter__(self) -> Self:
        await self.port.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.port.__aexit__(kind, error, trace)
        if self._tasks:
            await asyncio.wait(self._tasks)
        assert not self.port.frontend.arriving

    async def dial(self, header: bytes) -> Peer:
        """Send a header, begin TLS and send a request, as a proxy that passes TLS through."""
        peer = await self.port.dial()
        peer.send(header)
        writer: Any = peer.writer
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(5):
            await writer.drain()
            writer._transport = await aiofastnet.start_tls(
                loop, writer.transport, writer._protocol, client_tls(), server_hostname=HOST
            )
        return peer


@pytest.mark.parametrize(
    ("header", "expected"),
    [(VERSION_1, ("192.0.2.7", 4711)), (VERSION_2, ("192.0.2.7", 4711)), (LOCAL, None)],
    ids=["version 1", "version 2", "local"],
)
async def test_tls_begins_behind_the_header_of_the_proxy_protocol(
    header: bytes, expected: tuple[str, int] | None
) -> None:
    async with TlsBehindTheHeader() as tls:
        peer = await tls.dial(header)
        peer.send(HEAD)
        exchange = await tls.port.exchange()
        assert exchange.secure
        assert exchange.remote == (expected or peer.writer.get_extra_info("sockname"))
        assert (await peer.answer()).status == 200
        await peer.leave()


async def test_tls_of_a_peer_that_is_not_trusted_begins_at_once() -> None:
    async with TlsBehindTheHeader(OTHERS) as tls:
        peer = await tls.dial(b"")
        peer.send(HEAD)
        assert (await tls.port.exchange()).secure
        assert (await peer.answer()).status == 200
        await peer.leave()


async def test_handshake_that_fails_behind_the_header_leaves_nothing() -> None:
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda *_: None)
    async with TlsBehindTheHeader() as tls, await tls.port.dial() as peer:
        peer.send(VERSION_2 + b"GET / HTTP/1.1\r\n\r\n")
        await until(lambda: tls.failures)
        await until(lambda: not tls.port.frontend.handshakes)
        assert await peer.is_cut()


async def test_peer_without_the_header_is_refused_before_tls_begins() -> None:
    async with TlsBehindTheHeader() as tls, await tls.port.dial() as peer:
        peer.send(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100))
        assert (await peer.answer()).status == 400
        assert tls.port.frontend.heads == {}


async def test_header_that_tls_waits_for_has_to_come_in_time() -> None:
    async with TlsBehindTheHeader() as tls, await tls.port.dial() as peer:
        peer.send(VERSION_1[:20])
        await tls.port.holds(20)
        tls.port.pass_time(HEAD_TIMEOUT + 1)
        assert (await peer.answer()).status == 408


async def test_request_that_is_there_before_its_transport_is_read() -> None:
    """It may come with the last of the handshake."""
    handed: list[Exchange] = []
    frontend = Frontend(handed.append, Clock(), proxies=OTHERS, proxy_protocol=True, begin_tls=lambda *_: None)
    protocol = frontend.protocol()
    async with Port() as port, await port.dial() as peer:
        transport: Any = peer.writer.transport
        protocol.connection_made(transport)
        assert frontend.handshakes == 1 and not frontend.heads
        RECEIVE_BUFFER[: len(HEAD)] = HEAD
        protocol.buffer_updated(len(HEAD))
        assert not handed
        protocol.secured(transport)
        assert handed and protocol in frontend.connections and not frontend.arriving


async def test_peer_that_is_not_trusted_needs_no_header_of_the_proxy_protocol() -> None:
    assert await seen(HEAD, proxies=OTHERS, proxy_protocol=True) == ("127.0.0.1", 0, False)
