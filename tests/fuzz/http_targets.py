"""Fuzz targets for plain HTTP: bodies in chunks, and whole connections, compared with what h11 reads of the same bytes.

Whatever h11 reads as a request the front reads alike, or one of the two refuses: nobody takes for a request what is the
body of one to the other. And it is the same however the bytes are cut.
"""

from __future__ import annotations

import asyncio
from typing import Any
from urllib.parse import unquote_to_bytes

from conformance.http_cases import Read
from conformance.http_ends import read_by_h11
from trunkline.protocol.errors import RelayError
from trunkline.protocol.http_body import ChunkedDecoder
from trunkline.protocol.http_forwarding import request_headers, request_target, response_head
from trunkline.protocol.messages import Response
from trunkline.protocol.urls import HttpTarget, parse_target
from trunkline.server.relay.exchange import Exchange
from trunkline.server.relay.front_connection import FrontendProtocol
from trunkline.server.relay.frontend import Frontend
from trunkline.server.relay.sockets import RECEIVE_BUFFER


def http_body(data: bytes) -> None:
    """A body in chunks: cut anywhere it is the same body, with the same bytes behind it, or refused."""
    whole = _decoded(data, len(data))
    for size in (1, 2, 7):
        assert _decoded(data, size) == whole


def _decoded(data: bytes, size: int) -> tuple[bytes, bytes] | None:
    body, got, rest = ChunkedDecoder(), b"", b""
    try:
        for at in range(0, len(data), max(size, 1)):
            rest += data[at : at + size]
            while rest and not body.is_whole:
                piece, rest = body.decode(rest)
                got += piece
    except RelayError:
        return None
    return got, rest if body.is_whole else b"?"


class _Wire(asyncio.Transport):
    """Takes what is written, and can be ended."""

    def __init__(self) -> None:
        super().__init__()
        self.written = bytearray()
        self.is_ended = False

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return ("192.0.2.7", 40_000) if name == "peername" else default

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def get_write_buffer_size(self) -> int:
        return 0

    def write(self, data: bytes | bytearray | memoryview) -> None:
        assert not self.is_ended
        self.written += data

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.is_ended = True

    def abort(self) -> None:
        self.is_ended = True

    def is_closing(self) -> bool:
        return self.is_ended

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass


class _WithoutTurns(Frontend):
    """Serves without a loop: it is always everybody's turn, or when `catch_up` says so."""

    def is_its_turn(self, protocol: FrontendProtocol, size: int) -> bool:
        return True

    def wait(self, protocol: FrontendProtocol) -> None:
        self._ready.append(protocol)

    def catch_up(self) -> None:
        """Let all that wait go on."""
        while self._ready:
            self._ready.popleft().go_on()


class _Collector:
    """Takes the body of a request, and answers when it is whole."""

    def __init__(self, exchange: Exchange, requests: list[Read]) -> None:
        self._exchange = exchange
        self._requests = requests
        self._body = b""
        exchange.read_body(self)

    def body_received(self, data: bytes) -> None:
        self._body += data

    def body_ended(self) -> None:
        self._requests.append(Read(self._exchange.head.method, self._exchange.head.target, self._body))
        self._exchange.respond(204)

    def body_failed(self, error: RelayError) -> None:
        self._exchange.refuse(error, error.message)


def _served(data: bytes, size: int) -> tuple[list[Read], bool, bytes]:
    """The requests that the front reads, whether the connection was ended by it, and all that it wrote."""
    requests: list[Read] = []

    def serve(exchange: Exchange) -> None:
        _Collector(exchange, requests)

    frontend = _WithoutTurns(serve, lambda: 0.0, keeps_alive=True)
    frontend.date_line = lambda: "Date: today"  # type: ignore[method-assign]
    protocol, wire = frontend.protocol(), _Wire()
    protocol.connection_made(wire)
    for at in range(0, len(data), max(size, 1)):
        piece = data[at : at + size]
        room = len(protocol.get_buffer(-1))
        for start in range(0, len(piece), room):
            part = piece[start : start + room]
            RECEIVE_BUFFER[: len(part)] = part
            protocol.buffer_updated(len(part))
            frontend.catch_up()
    ended = wire.is_ended
    wire.is_ended = True
    protocol.connection_lost(None)
    assert not frontend.connections and not frontend.in_flight and not frontend.held
    assert not frontend.heads and not frontend.idle and not frontend.lingering
    return requests, ended, bytes(wire.written)


def http_connection(data: bytes) -> None:
    """A whole connection: the front and h11 read the same requests, or one of them refuses."""
    requests, ended, written = _served(data, len(data))
    for size in (1, 3):
        if len(data) < 2_000:
            assert _served(data, size)[:2] == (requests, ended)
    # Every answer is one: nothing of a peer begins a line of it.
    assert written.count(b"HTTP/1.1 ") >= len(requests)
    theirs = read_by_h11(data)
    both = min(len(requests), len(theirs.requests))
    assert list(theirs.requests[:both]) == requests[:both]
    if len(theirs.requests) > both:
        assert ended, "h11 reads more"
    if len(requests) > both:
        assert theirs.refused is not None or theirs.has_ended, "h11 reads less"


def http_forwarding(data: bytes) -> None:
    """What of a request and of a response is passed on: a target that still means the same, headers of one line each.

    The first line is a request target, every other one a header of both.
    """
    target, *lines = data.decode("latin-1").split("\n")
    headers = [(name, value) for name, colon, value in (line.partition(":") for line in lines) if colon and name]
    _target_means_the_same(target)
    given = request_headers(headers, token_header="Authorization", via="1.1 h")
    names = [name.lower() for name in given]
    assert len(set(names)) == len(names)
    assert not {"authorization", "servicebusauthorization", "connection", "transfer-encoding"} & set(names)
    head = response_head(Response("id", 200, headers=tuple(headers)), method="GET", via="1.1 h", has_body=True)
    for name, value in head.headers:
        assert name.lower() not in ("connection", "content-length", "transfer-encoding")
        assert value.encode("latin-1").decode("latin-1").replace("\t", " ").isprintable()
    assert [value for name, value in head.headers if name == "Via"][-1].endswith("1.1 h")


def _target_means_the_same(target: str) -> None:
    try:
        parsed = parse_target(target)
    except RelayError:
        return
    if not isinstance(parsed, HttpTarget):
        return
    given = request_target("a/b", f"/{parsed.raw_path}", parsed.query)
    path, mark, query = given.partition("?")
    assert path.startswith("/a/b/") and "#" not in path and path.isprintable()
    assert (query if mark else "") == parsed.query
    # As a listener reads it, escapes and all: no segment more or less, none that climbs.
    decoded = unquote_to_bytes(path.removeprefix("/a/b/").encode())
    assert decoded == unquote_to_bytes(parsed.raw_path)
    assert path.count("/") == parsed.raw_path.count("/") + 3
