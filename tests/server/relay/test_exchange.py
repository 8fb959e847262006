"""One request and its answer: bodies by length and in chunks, answers whole and in pieces, early and cut."""

from __future__ import annotations

import asyncio
import json

import pytest

from server.relay.front_port import Port, say_nothing
from server.relay.peers import Answer, Peer, until
from trunkline.protocol.errors import QuotaExceeded, RelayError
from trunkline.protocol.http_body import CHUNKS_AT_ONCE
from trunkline.protocol.limits import ANSWER_STALLED
from trunkline.server.relay import frontend
from trunkline.server.relay.exchange import DROPPED_AT_MOST, Exchange
from trunkline.server.relay.sockets import outstanding


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


async def test_client_whose_body_is_here_already_gets_no_100() -> None:
    async with Port(Echo) as port, await port.dial() as peer:
        peer.send(request("POST", "/", "Content-Length: 5", "Expect: 100-continue", body=b"hello"))
        answer, body = await whole(peer)
        assert (answer.status, body) == (200, b"hello")


async def test_client_that_expects_100_and_is_refused_may_not_send_its_body() -> None:
    """Nobody could tell whether what comes next is the body or another request."""
    async with Port(lambda exchange: exchange.respond(403)) as port, await port.dial() as peer:
        peer.send(request("POST", "/", "Content-Length: 5", "Expect: 100-continue"))
        answer = await peer.answer()
        assert (answer.status, answer.all("Connection")) == (403, ["close"])
        assert await peer.to_end() == b""


@pytest.mark.parametrize("expectation", ["100-Continue", "a, 100-continue"])
async def test_http_1_0_is_never_told_to_continue(expectation: str) -> None:
    async with Port(Echo) as port, await port.dial() as peer:
        peer.send(request("POST", "/", "Content-Length: 5", f"Expect: {expectation}", version="1.0"))
        await port.exchange()
        peer.send(b"hello")
        assert (await whole(peer))[1] == b"hello"


async def test_body_may_be_paused_and_answered_from_inside_of_what_gives_it() -> None:
    class Nervous(Sink):
        def __init__(self, exchange: Exchange) -> None:
            super().__init__()
            self.exchange = exchange
            exchange.read_body(self)

        def body_received(self, data: bytes) -> None:
            super().body_received(data)
            self.exchange.pause_body()
            self.exchange.resume_body()
            if len(self.got) >= 3:
                self.exchange.respond(413)

    async with Port(Nervous) as port, await port.dial() as peer:
        for _ in range(2):
            peer.send(request("POST", "/", "Content-Length: 5"))
            for byte in b"hello":
                peer.send(bytes((byte,)))
            answer, _ = await whole(peer)
            assert (answer.status, answer.all("Connection")) == (413, [])


async def test_whole_answer_in_the_middle_of_chunks_ends_the_connection() -> None:
    """Nobody knows how many follow."""
    async with Port(say_nothing) as port, await port.dial() as peer:
        peer.send(request("POST", "/", "Transfer-Encoding: chunked") + b"5\r\nhello\r\n")
        exchange = await port.exchange()
        exchange.read_body(Sink())
        exchange.respond(413)
        answer, _ = await whole(peer)
        assert (answer.status, answer.all("Connection")) == (413, ["close"])
        assert await peer.to_end() == b""


async def test_many_tiny_chunks_are_decoded_a_part_in_each_turn_and_others_are_served() -> None:
    count = 3 * CHUNKS_AT_ONCE
    async with Port(Echo) as port, await port.dial() as peer, await port.dial() as other:
        peer.send(in_chunks(*[b"x"] * count) + request())
        other.send(request())
        assert (await whole(other))[0].status == 200
        assert (await whole(peer))[1] == b"x" * count
        assert (await whole(peer))[0].status == 200


async def test_long_body_of_tiny_chunks_holds_nothing_when_it_was_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frontend, "HANDSHAKES_LIMIT", 100_000)
    async with Port(Echo) as port, await port.dial() as peer:
        sent = in_chunks(*[b"x"] * 20 * CHUNKS_AT_ONCE)
        for at in range(0, len(sent), 30_000):
            peer.send(sent[at : at + 30_000])
            await peer.writer.drain()
        answer, body = await whole(peer)
        assert (answer.status, len(body)) == (200, 20 * CHUNKS_AT_ONCE)
        assert port.frontend.held == 0


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


async def test_answer_without_a_length_ends_with_the_connection_for_http_1_0() -> None:
    async with Port(say_nothing) as port, await port.dial() as peer:
        peer.send(request("GET", "/", "Connection: keep-alive", version="1.0"))
        exchange = await port.exchange()
        exchange.begin(200, None, [], None)
        exchange.write(b"hello ")
        exchange.write(b"world")
        exchange.end()
        answer = await peer.answer()
        assert (answer.all("Transfer-Encoding"), answer.all("Content-Length")) == ([], [])
        assert answer.all("Connection") == ["close"]
        assert await peer.to_end() == b"hello world"


@pytest.mark.parametrize(
    ("method", "status", "length", "said"),
    [
        ("HEAD", 200, 12_345, ["12345"]),
        ("HEAD", 200, 0, ["0"]),
        ("HEAD", 200, None, []),
        ("GET", 204, None, []),
        ("GET", 204, 5, []),
        ("GET", 304, None, []),
        ("GET", 304, 0, []),
        ("GET", 304, 5, ["5"]),
        ("HEAD", 404, 5, ["5"]),
    ],
)
async def test_answer_that_has_no_body_has_none_whatever_is_written(
    method: str, status: int, length: int | None, said: list[str]
) -> None:
    async with Port(say_nothing) as port, await port.dial() as peer:
        for _ in range(2):
            peer.send(request(method))
            exchange = await port.exchange()
            exchange.begin(status, None, [], length)
            exchange.write(b"hello")
            exchange.end()
            answer = await peer.answer()
            assert (answer.status, answer.all("Content-Length"), answer.all("Transfer-Encoding")) == (status, said, [])


async def test_head_and_no_content_get_no_body_of_a_whole_answer_either() -> None:
    def serve(exchange: Exchange) -> None:
        exchange.respond(200 if exchange.head.method == "HEAD" else 204, body=b"hello")

    async with Port(serve) as port, await port.dial() as peer:
        peer.send(request("HEAD") + request() + request("HEAD"))
        assert [(await peer.answer()).all("Content-Length") for _ in range(3)] == [["5"], [], ["5"]]


@pytest.mark.parametrize("part", ["name", "value", "phrase"])
@pytest.mark.parametrize("evil", ["a\r\nX: y", "a\nX: y", "a\rX: y", "a\0b", "a\r\n\r\n<html>"])
async def test_headers_of_an_answer_cannot_end_their_line(part: str, evil: str) -> None:
    async with Port(say_nothing) as port, await port.dial() as peer:
        peer.send(request())
        exchange = await port.exchange()
        header = (evil, "b") if part == "name" else ("A", evil)
        exchange.begin(200, evil if part == "phrase" else None, [header] if part != "phrase" else [], 5)
        exchange.write(b"hello")
        exchange.end()
        answer, body = await whole(peer)
        assert body == b"hello" and answer.all("X") == []
        assert b"\0" not in answer.raw and answer.raw.count(b"\n") == answer.raw.count(b"\r\n")


@pytest.mark.parametrize(
    "name",
    ["", " ", "Content-Length ", " Content-Length", "Transfer-Encoding: chunked, x", "a b", "Größe", "a\tb", "(x)"],
)
async def test_header_of_an_answer_whose_name_is_none_is_left_out(name: str) -> None:
    """Not all recipients would refuse it, and some would take it for one that frames the answer."""
    async with Port(say_nothing) as port, await port.dial() as peer:
        peer.send(request())
        (await port.exchange()).respond(200, headers=[(name, "7"), ("!#$%&'*+-.^_`|~09azAZ", "kept")], body=b"hello")
        answer, body = await whole(peer)
        names = {"Content-Type", "!#$%&'*+-.^_`|~09azAZ", "Date", "Content-Length"}
        assert {each for each, _ in answer.headers} == names and body == b"hello"


async def test_date_is_said_once_also_when_the_listener_says_it() -> None:
    async with Port(say_nothing) as port, await port.dial() as peer:
        for headers, dates in (([], 1), ([("DATE", "yesterday")], 1)):
            peer.send(request())
            (await port.exchange()).respond(200, headers=headers)
            answer, _ = await whole(peer)
            assert len(answer.all("Date")) == dates
        assert answer.all("Date") == ["yesterday"]


async def test_large_pieces_pass_whole_in_chunks_and_by_length() -> None:
    pieces = [bytes(range(256)) * 400, b"x", bytes(1_000_000)]
    for length in (None, sum(map(len, pieces))):
        async with Port(say_nothing) as port, await port.dial() as peer:
            peer.send(request())
            exchange = await port.exchange()
            exchange.begin(200, None, [], length)
            for piece in pieces:
                exchange.write(piece)
                exchange.write(b"")
            exchange.end()
            assert (await whole(peer))[1] == b"".join(pieces)


@pytest.mark.parametrize("tls", [False, True])
async def test_whoever_answers_is_told_that_the_peer_takes_no_more_and_when_it_does_again(tls: bool) -> None:
    heard: list[str] = []
    async with Port(say_nothing, tls=tls) as port, await port.dial() as peer:
        peer.send(request())
        exchange = await port.exchange()
        exchange.on_congested = lambda: heard.append("congested")
        exchange.on_relieved = lambda: heard.append("relieved")
        exchange.begin(200, None, [], None)
        sent = 0
        while not exchange.congested:
            exchange.write(b"x" * 100_000)
            sent += 100_000
            await asyncio.sleep(0)
            assert sent < 50_000_000
        assert heard == ["congested"]
        await peer.answer()
        for _ in range(sent // 100_000):
            assert await peer.reader.readuntil(b"\r\n") == b"186a0\r\n"
            assert await peer.read(100_002) == b"x" * 100_000 + b"\r\n"
        await until(lambda: heard == ["congested", "relieved"])
        assert not exchange.congested
        exchange.end()
        assert await peer.read(5) == b"0\r\n\r\n"


async def test_peer_that_takes_nothing_of_its_answer_is_cut() -> None:
    left: list[bool] = []
    async with Port(say_nothing) as port, await port.dial() as peer:
        peer.send(request())
        exchange = await port.exchange()
        exchange.on_left = lambda: left.append(True)
        exchange.begin(200, None, [], None)
        while not exchange.congested:
            exchange.write(b"x" * 1_000_000)
            await asyncio.sleep(0)
        # So that the system takes no more either.
        for _ in range(20):
            await asyncio.sleep(0)
        port.pass_time(1)
        port.pass_time(ANSWER_STALLED - 1)
        assert not left
        port.pass_time(1)
        await until(lambda: left)
        assert not exchange.is_open and not port.frontend.in_flight


@pytest.mark.parametrize("tls", [False, True])
async def test_slow_peer_gets_all_of_an_answer_behind_which_its_connection_ends(tls: bool) -> None:
    """It takes a little now and then: so little that the transport, behind the buffers of the system, sees nothing."""
    body = bytes(range(256)) * 80_000
    async with Port(lambda exchange: exchange.respond(200, body=body), tls=tls) as port, await port.dial() as peer:
        peer.send(request("GET", "/", "Connection: close"))
        await peer.answer()
        transport = port.newest._transport
        assert transport is not None
        got, seen = b"", set()
        for _ in range(10):
            before = outstanding(transport)
            while outstanding(transport) >= before:
                got += await peer.read(4_000)
            seen.add(port.newest.unsent)
            port.pass_time(ANSWER_STALLED - 1)
            assert port.frontend.connections
        assert len(seen) < 10, "the transport alone would have told"
        assert got + await peer.to_end() == body


@pytest.mark.parametrize("tls", [False, True])
async def test_answer_that_is_cut_has_no_clean_end(tls: bool) -> None:
    async with Port(say_nothing, tls=tls) as port:
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


@pytest.mark.parametrize("moment", ["body", "waiting", "answer"])
@pytest.mark.parametrize("how", ["leave", "reset"])
async def test_whoever_serves_hears_that_the_sender_has_left_in_the_middle(moment: str, how: str) -> None:
    left: list[bool] = []
    async with Port(say_nothing) as port:
        peer = await port.dial()
        peer.send(post(b"x" * 1_000)[: -100 if moment == "body" else None])
        exchange = await port.exchange()
        exchange.on_left = lambda: left.append(True)
        sink = Sink()
        exchange.read_body(sink)
        if moment == "answer":
            exchange.begin(200, None, [], None)
            exchange.write(b"hello")
            await peer.answer()
        if how == "leave":
            await peer.leave()
        else:
            peer.reset()
        await until(lambda: left)
        assert sink.is_whole == (moment != "body") and sink.error is None
        # Nothing of this does anything.
        exchange.write(b"x")
        exchange.end()
        exchange.abort()
        exchange.pause_body()
        exchange.resume_body()
        exchange.read_body(sink)
        exchange.respond(200)
        exchange.begin(200, None, [], None)
        assert not exchange.is_open and not exchange.congested and left == [True]
        assert not port.frontend.in_flight


async def test_nothing_is_answered_twice() -> None:
    async with Port(say_nothing) as port, await port.dial() as peer:
        peer.send(request())
        exchange = await port.exchange()
        exchange.end()
        assert exchange.is_open
        exchange.begin(200, None, [], None)
        exchange.begin(500, None, [], None)
        exchange.respond(500)
        exchange.refuse(QuotaExceeded(), "No.")
        exchange.write(b"once")
        assert repr(exchange) == "<Exchange GET '/a' answering>"
        exchange.end()
        exchange.end()
        answer, body = await whole(peer)
        assert (answer.status, body) == (200, b"once")
        peer.send(request())
        (await port.exchange()).respond(204)
        assert (await peer.answer()).status == 204


async def test_held_refusal_is_answered_later_and_ends_the_connection() -> None:
    async with Port(say_nothing) as port, await port.dial() as peer:
        peer.send(request("GET", "/a?secret", "X: secret") + request())
        exchange = await port.exchange()
        exchange.hold()
        assert exchange.head.target == "/a" and exchange.head.headers == ()
        exchange.refuse(QuotaExceeded(), "No.")
        answer = await peer.answer()
        assert (answer.status, answer.all("Connection")) == (429, ["close"])
        assert json.loads(await peer.to_end())["error"]["message"] == "No."
        assert port.is_idle


async def test_answer_ahead_of_a_long_body_ends_the_connection_when_too_much_is_left() -> None:
    """It could not be known when the answer began: whoever reads the body had not said no yet."""
    async with Port(say_nothing) as port, await port.dial() as peer:
        peer.send(request("POST", "/", "Transfer-Encoding: chunked") + b"5\r\nhello\r\n")
        exchange = await port.exchange()
        exchange.read_body(Sink())
        exchange.begin(200, None, [], 2)
        exchange.write(b"no")
        exchange.end()
        answer, _ = await whole(peer)
        assert answer.all("Connection") == []
        piece = b"x" * 10_000
        for _ in range(DROPPED_AT_MOST // len(piece) + 1):
            peer.send(b"%x\r\n%b\r\n" % (len(piece), piece))
        assert await peer.to_end() == b""


async def test_malformed_rest_of_a_body_behind_its_answer_ends_the_connection() -> None:
    async with Port(say_nothing) as port, await port.dial() as peer:
        peer.send(request("POST", "/", "Transfer-Encoding: chunked"))
        exchange = await port.exchange()
        exchange.read_body(Sink())
        exchange.begin(200, None, [], 0)
        exchange.end()
        assert (await whole(peer))[0].status == 200
        peer.send(b"nonsense")
        assert await peer.to_end() == b""


async def test_rest_of_many_tiny_chunks_behind_an_answer_is_dropped_in_parts() -> None:
    async with Port(say_nothing) as port, await port.dial() as peer:
        peer.send(request("POST", "/", "Transfer-Encoding: chunked"))
        exchange = await port.exchange()
        exchange.read_body(Sink())
        exchange.begin(200, None, [], 0)
        exchange.end()
        await whole(peer)
        peer.send(b"1\r\nx\r\n" * 2 * CHUNKS_AT_ONCE + b"0\r\n\r\n" + request())
        (await port.exchange()).respond(204)
        assert (await peer.answer()).status == 204
