"""Dialling: what can go wrong before a WebSocket is there, each failure under its own name."""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trustme

from sdk.fake_clock import FakeClock
from sdk.relay_stub import Peer, RelayStub, until
from trunkline.protocol.errors import (
    ConnectionLost,
    ConnectionNotEstablished,
    ConnectionRejected,
    EndpointNotFound,
    HeadersTooLarge,
    InvalidSetting,
    NoListener,
    ProtocolViolation,
    RelayError,
)
from trunkline.protocol.frames import Opcode, encode_frame
from trunkline.sdk.websocket import TRANSPORT_CLOSE_TIMEOUT, Link, dial, masks


class Received:
    """A receiver that remembers."""

    def __init__(self) -> None:
        self.data = b""
        self.lost: list[Exception | None] = []

    def data_received(self, data: bytes) -> None:
        self.data += data

    def connection_lost(self, error: Exception | None) -> None:
        self.lost.append(error)


async def failed(relay: RelayStub, serve: Callable[[Peer], Awaitable[None]], **arguments: Any) -> Exception:
    """What dialling raises when the relay does this."""

    async def serve_next() -> None:
        await serve(await relay.next())

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(serve_next())
        with pytest.raises((RelayError, OSError)) as raised:
            await dial(f"{relay.base}/$hc/orders", timeout=5, **arguments)
    return raised.value


async def refused(relay: RelayStub, answer: bytes, *, close: bool = True) -> Exception:
    """What dialling raises when the relay answers this."""

    async def serve(peer: Peer) -> None:
        await peer.write(answer)
        if close:
            peer.close()

    return await failed(relay, serve)


async def upgraded(relay: RelayStub, behind: bytes = b"", **arguments: Any) -> tuple[Link, str | None, Peer]:
    async with asyncio.TaskGroup() as tasks:
        dialling = tasks.create_task(dial(f"{relay.base}/$hc/orders", timeout=5, **arguments))
        peer = await relay.next()
        await peer.upgrade(behind=behind)
    link, subprotocol = dialling.result()
    return link, subprotocol, peer


async def test_refusal_keeps_status_and_phrase() -> None:
    async with RelayStub() as relay:
        error = await refused(relay, b"HTTP/1.1 404 Endpoint does not exist. TrackingId:abc, x\r\n\r\n")
        assert isinstance(error, EndpointNotFound)
        assert error.message == "Endpoint does not exist. TrackingId:abc, x"
        assert error.tracking_id == "abc"


async def test_reason_phrase_of_the_listener_comes_whole_however_long() -> None:
    async with RelayStub() as relay:
        words = "".join(chr(code) for code in range(0x21, 0x7F)) * 300 + " caf\xe9"
        error = await refused(relay, f"HTTP/1.1 418 {words}\r\n\r\n".encode("latin-1"))
        assert isinstance(error, ConnectionRejected)
        assert (error.status, error.description) == (418, words)


async def test_refusal_without_reason_phrase_and_with_a_body_that_never_ends() -> None:
    async with RelayStub() as relay:
        error = await refused(relay, b"HTTP/1.1 503\r\nContent-Length: 100\r\n\r\nonly this", close=False)
        assert isinstance(error, RelayError) and error.status == 503


WORDS = b"There are no listeners connected for the endpoint. TrackingId:abc, x\n"


@pytest.mark.parametrize("phrase", [b" Gateway Timeout", b" gateway timeout", b"", b" "])
@pytest.mark.parametrize("pieces", [1, 3])
async def test_words_of_the_relay_are_in_the_body_where_a_proxy_took_the_phrase(phrase: bytes, pieces: int) -> None:
    head = b"HTTP/1.1 504" + phrase + b"\r\nContent-Length: %d\r\n\r\n" % len(WORDS)

    async def serve(peer: Peer) -> None:
        await peer.write(head + (WORDS if pieces == 1 else b""))
        for start in range(0, len(WORDS) if pieces > 1 else 0, 30):
            await asyncio.sleep(0.01)
            await peer.write(WORDS[start : start + 30])

    async with RelayStub() as relay:
        error = await failed(relay, serve)
        assert isinstance(error, NoListener)
        assert error.message == WORDS.decode().strip() and error.tracking_id == "abc"


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 504 Gateway Timeout\r\nContent-Length: 6\r\n\r\n<html>",
        b"HTTP/1.1 504 Gateway Timeout\r\nContent-Length: 9000\r\n\r\n" + WORDS,
        b"HTTP/1.1 504 Gateway Timeout\r\n\r\n" + WORDS,
        b"HTTP/1.1 504 Gateway Timeout\r\nContent-Length: 100\r\n\r\nonly this",
    ],
)
async def test_other_bodies_are_nobodys_words(answer: bytes) -> None:
    async with RelayStub() as relay:
        error = await refused(relay, answer)
        assert isinstance(error, ConnectionNotEstablished) and error.message == "Gateway Timeout"


async def test_reason_phrase_of_the_relay_goes_before_the_body() -> None:
    async with RelayStub() as relay:
        answer = b"HTTP/1.1 404 Endpoint does not exist. TrackingId:def, x\r\nContent-Length: %d\r\n\r\n" % len(WORDS)
        error = await refused(relay, answer + WORDS)
        assert isinstance(error, EndpointNotFound) and error.tracking_id == "def"


async def test_answer_below_400_is_a_rejection_too() -> None:
    async with RelayStub() as relay:  # Microsoft's own test rejects with 202
        error = await refused(relay, b"HTTP/1.1 202 OK\r\n\r\n")
        assert isinstance(error, ConnectionRejected)
        assert (error.status, error.description) == (202, "OK")


@pytest.mark.parametrize(
    "answer",
    [
        b"SSH-2.0-OpenSSH_9.6\r\n\r\n",
        b"\x16\x03\x01\x02\x00\r\n\r\n",
        b"HTTP/2 101 x\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
        b"HTTP/1.1 101 x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n",
        b"HTTP/1.1 101 x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: wrong\r\n\r\n",
        b"HTTP/1.1 101 x\r\nno colon here\r\n\r\n",
    ],
    ids=["ssh", "binary", "version", "no headers", "other protocol", "wrong accept", "no header"],
)
async def test_answer_that_is_no_upgrade_is_a_violation(answer: bytes) -> None:
    async with RelayStub() as relay:
        assert isinstance(await refused(relay, answer), ProtocolViolation)


@pytest.mark.parametrize("chosen", ["mqtt", "a, b", "a\r\nSec-WebSocket-Extensions: permessage-deflate"])
async def test_subprotocol_or_extension_that_was_not_offered_is_a_violation(chosen: str) -> None:
    async with RelayStub() as relay:
        error = await failed(relay, lambda peer: peer.upgrade(subprotocol=chosen), subprotocols=["a", "b"])
        assert isinstance(error, ProtocolViolation)


async def test_endless_head_is_refused() -> None:
    async with RelayStub() as relay:
        error = await refused(relay, b"HTTP/1.1 101 x\r\n" + b"X-Filler: y\r\n" * 8000, close=False)
        assert isinstance(error, HeadersTooLarge)


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 101 Switch"])
async def test_connection_that_ends_before_the_answer_is_lost(answer: bytes) -> None:
    async with RelayStub() as relay:
        assert isinstance(await refused(relay, answer), ConnectionLost)


async def test_reset_before_the_answer_is_lost() -> None:
    async def reset(peer: Peer) -> None:
        peer.abort()

    async with RelayStub() as relay:
        assert isinstance(await failed(relay, reset), ConnectionLost)


async def test_end_in_the_tls_handshake_is_lost_and_says_so() -> None:
    loop = asyncio.get_running_loop()
    told: list[str] = []
    loop.set_exception_handler(lambda _, context: told.append(context["message"]))  # aiofastnet tells the loop as well
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.setblocking(False)

        async def accept_and_end() -> None:
            peer, _ = await loop.sock_accept(listening)
            await loop.sock_recv(peer, 65_536)
            peer.close()

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(accept_and_end())
            with pytest.raises(ConnectionLost, match="closed in the TLS handshake"):
                await dial(f"wss://127.0.0.1:{listening.getsockname()[1]}/$hc/orders", timeout=5)
    assert set(told) <= {"SSL handshake failed"}


@pytest.mark.parametrize("answer", [b"HTTP/1.1 1", b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: "])
async def test_reset_in_the_moment_of_the_answer_is_lost(answer: bytes) -> None:
    """uvloop finds both at once, and tells of the bytes alone."""
    loop = asyncio.get_running_loop()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.setblocking(False)

        async def answer_and_reset() -> None:
            peer, _ = await loop.sock_accept(listening)
            await loop.sock_recv(peer, 65_536)
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            peer.send(answer)
            peer.close()

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(answer_and_reset())
            with pytest.raises((ConnectionLost, ConnectionResetError)):
                await dial(f"ws://127.0.0.1:{listening.getsockname()[1]}/$hc/orders", timeout=5)


async def test_slow_answer_times_out_and_ends_tcp() -> None:
    async with RelayStub() as relay:
        with pytest.raises(TimeoutError, match=f"localhost:{relay.port} within 0.05 s"):
            await dial(f"{relay.base}/$hc/orders", timeout=0.05)
        peer = await relay.next()
        with pytest.raises((ConnectionResetError, AssertionError)):
            await peer.piece()


async def test_nobody_there_is_the_operating_systems_own_error() -> None:
    async with RelayStub() as relay:
        base = relay.base
    with pytest.raises(ConnectionRefusedError):
        await dial(f"{base}/$hc/orders", timeout=5)
    with pytest.raises(OSError):
        await dial("ws://no-such-host.invalid/$hc/orders", timeout=5)


@pytest.mark.parametrize(
    "url",
    [
        "http://localhost/",
        "ws:///x",
        "wss://h:99999/",
        "ws://h/\xe9",
        "nothing",
        "ws://[::1/",
        "ws://a..b/",
        f"ws://{'a' * 64}/",
    ],
)
async def test_address_that_is_no_websocket_url_is_refused(url: str) -> None:
    with pytest.raises(InvalidSetting):
        await dial(url, timeout=5)


@pytest.mark.parametrize(
    "arguments",
    [
        {"headers": [("X-Evil", "a\r\nInjected: b")]},
        {"headers": [("X Evil", "a")]},
        {"headers": [("", "a")]},
        {"headers": [("X-Wide", "\u20ac")]},
        {"headers": [("host", "elsewhere")]},
        {"headers": [("Sec-WebSocket-Key", "x")]},
        {"headers": [("ServiceBusAuthorization", "x")]},
        {"token": "a\nb"},
        {"subprotocols": ["a b"]},
        {"subprotocols": ["a,b"]},
    ],
)
async def test_what_no_request_can_carry_is_refused_before_connecting(arguments: dict[str, Any]) -> None:
    async with RelayStub() as relay:
        with pytest.raises(InvalidSetting):
            await dial(f"{relay.base}/$hc/orders", timeout=5, **arguments)
        assert relay.idle()


async def test_request_says_what_it_was_told_in_the_spelling_it_was_told() -> None:
    async with RelayStub() as relay:
        async with asyncio.TaskGroup() as tasks:
            dialling = tasks.create_task(
                dial(
                    f"{relay.base}/$hc/a%2Fb;v=1/X?q=%41&&r",
                    timeout=5,
                    headers=[("x-lOWER", "1"), ("x-lower", "2"), ("Authorization", "caf\xe9")],
                    token="SharedAccessSignature sr=x",
                    subprotocols=["chat", "mqtt"],
                )
            )
            peer = await relay.next()
            await peer.upgrade(subprotocol="mqtt")
        link, subprotocol = dialling.result()
        assert subprotocol == "mqtt"
        assert peer.request_line == "GET /$hc/a%2Fb;v=1/X?q=%41&&r HTTP/1.1"
        assert [pair for pair in peer.raw_headers if pair[0].lower() == "x-lower"] == [
            ("x-lOWER", "1"),
            ("x-lower", "2"),
        ]
        assert peer.headers["authorization"] == "caf\xe9"
        assert ("ServiceBusAuthorization", "SharedAccessSignature sr=x") in peer.raw_headers
        assert ("Host", f"localhost:{relay.port}") in peer.raw_headers
        assert ("Sec-WebSocket-Protocol", "chat, mqtt") in peer.raw_headers
        assert "sec-websocket-extensions" not in peer.headers
        link.abort()


async def test_bytes_behind_the_head_are_kept_for_the_receiver() -> None:
    async with RelayStub() as relay:
        early = encode_frame(Opcode.BINARY, bytes(range(256)) * 4096)
        link, _, peer = await upgraded(relay, early)
        received = Received()
        link.start(received)
        await until(lambda: len(received.data) == len(early))
        assert received.data == early
        peer.close()
        await link.closed
        assert received.lost == [None]


async def test_receiver_that_comes_late_learns_of_the_loss() -> None:
    async with RelayStub() as relay:
        link, _, _ = await upgraded(relay)
        link.abort()
        await link.closed
        received = Received()
        link.start(received)
        assert len(received.lost) == 1
        link.write(b"into the void")
        link.close()
        link.abort()
        assert link.unsent == 0


async def test_close_is_cut_when_the_peer_does_not_follow() -> None:
    clock = FakeClock()
    async with RelayStub() as relay:
        link, _, peer = await upgraded(relay, clock=clock)
        received = Received()
        link.start(received)
        peer.pause()
        link.write(bytes(32 << 20))
        link.close()
        await asyncio.sleep(0.05)
        assert not link.closed.done()
        assert "closing" in repr(link)
        clock.advance(TRANSPORT_CLOSE_TIMEOUT)
        await link.closed
        assert len(received.lost) == 1
        assert repr(link) == "<Link closed unsent=0>"


# --- TLS ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def server_context(authority: trustme.CA, *names: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*names).configure_cert(context)
    return context


async def test_tls_with_an_authority_of_ones_own(authority: trustme.CA) -> None:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    async with RelayStub(ssl=server_context(authority, "localhost")) as relay:
        early = encode_frame(Opcode.TEXT, b"right behind")
        link, _, peer = await upgraded(relay, early, ssl=context)
        received = Received()
        link.start(received)
        await until(lambda: bool(received.data))
        assert received.data == early
        link.write(encode_frame(Opcode.BINARY, b"back", mask=b"abcd"))
        assert await peer.message() == (Opcode.BINARY, b"back")
        link.close()
        await link.closed


async def test_certificate_that_is_not_trusted_or_for_another_host_is_refused(authority: trustme.CA) -> None:
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    async with RelayStub(ssl=server_context(authority, "localhost")) as relay:
        with pytest.raises(ssl.SSLCertVerificationError):
            await dial(f"{relay.base}/$hc/orders", timeout=5)
    async with RelayStub(ssl=server_context(authority, "elsewhere.example")) as relay:
        with pytest.raises(ssl.SSLCertVerificationError):
            await dial(f"{relay.base}/$hc/orders", timeout=5, ssl=trusting)


async def test_tls_to_a_port_without_it_fails_as_tls() -> None:
    server = await asyncio.start_server(_speak_http, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    with pytest.raises(ssl.SSLError):
        await dial(f"wss://localhost:{port}/$hc/orders", timeout=5)
    server.close()


async def _speak_http(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read(1)
    writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    writer.close()


def test_mask_keys_are_four_bytes_and_differ() -> None:
    new_mask = masks()
    keys = [new_mask() for _ in range(3000)]
    assert {len(key) for key in keys} == {4}
    assert len(set(keys)) > 2990
