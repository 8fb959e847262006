"""One request and its answer: bodies by length and in chunks, answers whole and in pieces, early and cut."""

from __future__ import annotations

import json

import pytest

from server.relay.front_port import Port, say_nothing
from server.relay.peers import Answer, Peer, until
from trunkline.protocol.errors import QuotaExceeded, RelayError
from trunkline.server.relay.exchange import DROPPED_AT_MOST, Exchange


class Sink:
    """Collects a body."""

    def __init__(self) -> None:
        self.got = b""
        self.is_whole = False
        self.error: RelayError | None = None

    def body_received(self, data: bytes) -> None:
        assert data and not self.is_whole and self.error is None
        self.got += data

    def body_ended(self) -> None:
        assert not self.is_whole and self.error is None
        self.is_whole = True

    def body_failed(self, error: RelayError) -> None:
        assert not self.is_whole and self.error is None
        self.error = error


class Echo(Sink):
    """Answers with the body, when it is whole."""

    def __init__(self, exchange: Exchange) -> None:
        super().__init__()
        self.exchange = exchange
        exchange.read_body(self)

    def body_ended(self) -> None:
        super().body_ended()
        self.exchange.respond(200, body=self.got, content_type="application/octet-stream")

    def body_failed(self, error: RelayError) -> None:
        super().body_failed(error)
        self.exchange.refuse(error, error.message)


def request(method: str = "GET", target: str = "/a", *headers: str, body: bytes = b"", version: str = "1.1") -> bytes:
    lines = [f"{method} {target} HTTP/{version}", "Host: x", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


def post(body: bytes, *headers: str) -> bytes:
    return request("POST", "/a", f"Content-Length: {len(body)}", *headers, body=body)


def in_chunks(*pieces: bytes) -> bytes:
    body = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"
    return request("POST", "/", "Transfer-Encoding: chunked", body=body)


async def whole(peer: Peer) -> tuple[Answer, bytes]:
    """The next response, its body by its length or its chunks."""
    answer = await peer.answer()
    if answer.all("Transfer-Encoding") == ["chunked"]:
        body = b""
        while True:
            size = int(await peer.reader.readuntil(b"\r\n"), 16)
            body += await peer.read(size)
            assert await peer.read(2) == b"\r\n"
            if not size:
                return answer, body
    return answer, await peer.read(int(answer.all("Content-Length")[0]))


# -- bodies of requests


@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize("size", [1, 1_000, 100_000, 3_000_000])
async def test_body_comes_whole_by_length_and_in_chunks_on_one_connection(size: int, tls: bool) -> None:
    body = (bytes(range(256)) * (size // 256 + 1))[:size]
    pieces = [body[at : at + 70_001] for at in range(0, size, 70_001)]
    async with Port(Echo, tls=tls) as port, await port.dial() as peer:
        peer.send(post(body))
        answer, got = await whole(peer)
        assert (answer.status, answer.all("Connection")) == (200, [])
        assert got == body
        peer.send(in_chunks(*pieces))
        _, got = await whole(peer)
        assert got == body
        assert [(await port.exchange()).body_length for _ in range(2)] == [size, None]


async def test_request_without_a_body_has_one_that_ended_at_once() -> None:
    async with Port(Echo) as port, await port.dial() as peer:
        for sent in (request(), request("POST"), post(b""), in_chunks()):
            peer.send(sent)
            assert (await whole(peer))[1] == b""


@pytest.mark.parametrize("by", ["length", "chunks"])
async def test_body_that_comes_byte_by_byte_is_the_same(by: str) -> None:
    sent = post(b"hello") if by == "length" else in_chunks(b"hel", b"lo")
    async with Port(Echo) as port, await port.dial() as peer:
        for _ in range(2):
            for byte in sent:
                peer.send(bytes((byte,)))
            assert (await whole(peer))[1] == b"hello"


async def test_body_that_is_malformed_is_400_and_ends_the_connection() -> None:
    async with Port(Echo) as port, await port.dial() as peer:
        peer.send(request("POST", "/", "Transfer-Encoding: chunked") + b"5\r\nhello\r\nnonsense\r\n\r\n" + request())
        answer = await peer.answer()
        assert (answer.status, answer.all("Connection")) == (400, ["close"])
        error = json.loads(await peer.to_end())["error"]
        assert error["code"] == "BadRequest" and "a chunk has no size" in error["message"]
        await port.exchange()
        assert port.is_idle


async def test_client_that_expects_100_gets_it_when_its_body_is_read_and_not_before() -> None:
    async with Port(say_nothing) as port, await port.dial() as peer:
        peer.send(request("POST", "/", "Content-Length: 5", "Expect: 100-continue"))
        exchange = await port.exchange()
        sink = Echo(exchange)
        assert (await peer.answer()).raw == b"HTTP/1.1 100 Continue\r\n\r\n"
        peer.send(b"hello")
        assert (await whole(peer))[1] == b"hello"
        assert sink.is_whole


async def test_reading_stops_while_the_body_is_paused_and_nothing_is_lost() -> None:
    body = bytes(range(256)) * 40_000
    async with Port(say_nothing) as port, await port.dial() as peer:
        peer.send(post(body))
        exchange = await port.exchange()
        sink = Sink()
        exchange.read_body(sink)
        exchange.pause_body()
        await until(lambda: port.newest._paused)
        assert len(sink.got) < len(body) / 2
        exchange.resume_body()
        await until(lambda: sink.is_whole)
        assert sink.got == body
        exchange.respond(200)
        await peer.answer()


# -- answers


async def test_answer_in_pieces_goes_out_as_it_is_written() -> None:
    async with Port(say_nothing) as port, await port.dial() as peer:
        for length in (None, 10):
            peer.send(request())
            exchange = await port.exchange()
            exchange.begin(201, "Made", [("X-Own", "a"), ("X-Own", "b")], length)
            answer = await peer.answer()
            assert (answer.status, answer.phrase, answer.all("X-Own")) == (201, "Made", ["a", "b"])
            exchange.write(b"hello")
            expected = b"5\r\nhello\r\n" if length is None else b"hello"
            assert await peer.read(len(expected)) == expected
            assert exchange.is_open
            exchange.write(b"world")
            exchange.end()
            expected = b"5\r\nworld\r\n0\r\n\r\n" if length is None else b"world"
            assert await peer.read(len(expected)) == expected
            assert not exchange.is_open


async def test_answer_that_is_cut_has_no_clean_end() -> None:
    async with Port(say_nothing) as port:
        for length, version in ((None, "1.1"), (10, "1.1"), (None, "1.0")):
            async with await port.dial() as peer:
                peer.send(request(version=version))
                exchange = await port.exchange()
                exchange.begin(200, None, [], length)
                exchange.write(b"hello")
                await peer.answer()
                exchange.abort()
                with pytest.raises(ConnectionResetError):
                    await peer.to_end()


async def test_answer_that_is_shorter_than_its_length_is_cut_and_a_longer_one_is_not_sent() -> None:
    async with Port(say_nothing) as port, await port.dial() as peer:
        peer.send(request())
        exchange = await port.exchange()
        exchange.begin(200, None, [], 5)
        exchange.write(b"hello world")
        exchange.end()
        assert (await whole(peer))[1] == b"hello"
        peer.send(request())
        exchange = await port.exchange()
        exchange.begin(200, None, [], 5)
        exchange.write(b"hell")
        exchange.end()
        with pytest.raises(ConnectionResetError):
            await peer.to_end()


async def test_refusal_of_plain_http_is_json_and_keeps_the_connection() -> None:
    error = QuotaExceeded("No. TrackingId:1")
    async with Port(lambda exchange: exchange.refuse(error, error.message)) as port, await port.dial() as peer:
        for _ in range(2):
            peer.send(request())
            answer, body = await whole(peer)
            assert (answer.status, answer.phrase) == (429, "No. TrackingId:1")
            assert answer.all("Content-Type") == ["application/json"] and answer.all("Via") == []
            assert json.loads(body) == {"error": {"code": "QuotaExceeded", "message": "No. TrackingId:1"}}


@pytest.mark.parametrize(("size", "stays"), [(1_000, True), (DROPPED_AT_MOST + 1, False)])
async def test_body_that_nobody_read_is_dropped_or_ends_the_connection(size: int, stays: bool) -> None:
    async with Port(lambda exchange: exchange.respond(403)) as port, await port.dial() as peer:
        peer.send(post(b"x" * size))
        answer, _ = await whole(peer)
        assert answer.all("Connection") == ([] if stays else ["close"])
        if stays:
            peer.send(request())
            assert (await whole(peer))[0].status == 403
        else:
            assert await peer.to_end() == b""
