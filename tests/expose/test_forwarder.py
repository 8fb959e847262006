"""Requests that are forwarded to a target that the test plays."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import json
import os
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest

from expose.fake_request import FakeRequest, Watching
from expose.raw_target import RawTarget, raw_target, read_head
from trunkline.expose import forwarder
from trunkline.expose.forwarder import Forwarder
from trunkline.expose.headers import HeaderRules
from trunkline.expose.health import Health
from trunkline.expose.pool import Pool
from trunkline.expose.target import Target
from trunkline.protocol.errors import ConnectionLost


class Forwarding:
    """A forwarder and what it tells."""

    def __init__(self, target: Target, **rules: Any) -> None:
        self.watching = Watching()
        self.rules = HeaderRules(target, pseudonym="us", **rules)

        async def never() -> None:
            raise AssertionError

        self.health = Health(never, self.watching.target_changed)
        self.pool = Pool(target, self.health, connect_timeout=5)
        self.forwarder = Forwarder(self.pool, self.rules, self.watching)

    async def handle(self, request: FakeRequest) -> FakeRequest:
        with suppress(ConnectionLost):  # the SDK gives it up then
            await self.forwarder.handle(request.seen)
        return request


@asynccontextmanager
async def forwarding(target: Target, **rules: Any) -> AsyncIterator[Forwarding]:
    it = Forwarding(target, **rules)
    async with it.pool:
        yield it


def answering(answer: bytes, heads: list[str] | None = None) -> Any:
    """A play: every request, which has no body, gets this answer."""

    async def play(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head = await read_head(reader)
            if heads is not None:
                heads.append(head)
            writer.write(answer)
            await writer.drain()

    return play


def message_of(request: FakeRequest) -> str:
    error = json.loads(request.body)["error"]
    assert request.tracking_id in error["message"]
    return str(error["message"])


OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


# --- what reaches the target ---


async def test_target_gets_the_path_the_headers_and_nothing_that_was_not_asked_for() -> None:
    heads: list[str] = []
    async with raw_target(answering(OK, heads)) as server, forwarding(server.target) as it:
        request = await it.handle(FakeRequest(target="/myHC/a%2Fb c?x=%20&&", headers={"X-Case": "v", "x-empty": ""}))
        assert (request.status, request.body, request.ended) == (200, b"ok", True)
    assert heads[0].split("\r\n") == [
        "GET /a%2Fb%20c?x=%20&& HTTP/1.1",
        f"Host: 127.0.0.1:{server.port}",
        "X-Case: v",
        "x-empty: ",
        "X-Forwarded-For: 192.0.2.7",
        "X-Forwarded-Proto: https",
        "X-Forwarded-Host: relay.example:8443",
        "X-Forwarded-Prefix: /myHC",
        "Via: 1.1 us",
        "",
        "",
    ]


async def test_connection_to_the_target_is_used_again() -> None:
    async with raw_target(answering(OK)) as server, forwarding(server.target) as it:
        for _ in range(10):
            assert (await it.handle(FakeRequest())).body == b"ok"
        assert server.connections == 1


async def test_small_body_has_a_length_and_a_streamed_one_goes_in_chunks() -> None:
    seen: list[tuple[str, bytes]] = []

    async def play(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await read_head(reader)).lower()
        body = await (reader.readexactly(5) if "content-length: 5" in head else reader.readuntil(b"0\r\n\r\n"))
        seen.append((head, body))
        writer.write(OK)

    async with raw_target(play) as server, forwarding(server.target) as it:
        request = FakeRequest("POST", body=b"small", headers={"Content-Type": "text/x", "Content-Encoding": "gzip"})
        assert (await it.handle(request)).status == 200
        request = FakeRequest("POST", body=None)
        request.feed(b"streamed")
        request.feed_end()
        assert (await it.handle(request)).status == 200
    (by_length, body), (in_chunks, chunks) = seen
    assert body == b"small" and "transfer-encoding" not in by_length
    assert "content-type: text/x" in by_length and "content-encoding: gzip" in by_length
    assert "transfer-encoding: chunked" in in_chunks and "content-length" not in in_chunks
    assert "content-type" not in in_chunks
    assert chunks == b"8\r\nstreamed\r\n0\r\n\r\n"


async def test_long_form_is_collected_so_that_it_has_a_length() -> None:
    """Django, and whatever else is WSGI, takes a form without one for an empty one."""
    content = os.urandom(3 << 20)
    seen: asyncio.Future[tuple[str, bytes]] = asyncio.get_running_loop().create_future()

    async def play(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.set_result((await read_head(reader), await reader.readexactly(len(content))))
        writer.write(OK)

    async with raw_target(play) as server, forwarding(server.target) as it:
        request = FakeRequest("POST", body=None, headers={"Content-Type": "multipart/form-data; boundary=x"})
        for start in range(0, len(content), 100_000):
            request.feed(content[start : start + 100_000])
        request.feed_end()
        assert (await it.handle(request)).status == 200
        assert it.watching.records[0].received == len(content)
    head, body = await seen
    assert f"Content-Length: {len(content)}\r\n" in head and "Transfer-Encoding" not in head
    assert body == content


async def test_form_that_is_too_long_to_collect_goes_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forwarder, "LONGEST_FORM", 250)
    seen: asyncio.Future[tuple[str, bytes]] = asyncio.get_running_loop().create_future()

    async def play(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head, body = await read_head(reader), b""
        while (size := int(await reader.readline(), 16)) > 0:
            body += (await reader.readexactly(size + 2))[:-2]
        seen.set_result((head, body))
        writer.write(OK)

    async with raw_target(play) as server, forwarding(server.target) as it, asyncio.TaskGroup() as group:
        request = FakeRequest("POST", body=None, headers={"Content-Type": "multipart/form-data; boundary=x"})
        group.create_task(it.handle(request))
        for number in range(5):
            request.feed(bytes([number]) * 100)
        request.feed_end()
    head, body = await seen
    assert "Transfer-Encoding: chunked" in head and "Content-Length" not in head
    assert body == b"".join(bytes([number]) * 100 for number in range(5))


async def test_form_that_the_disk_has_no_room_for_is_507(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_room(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tempfile, "SpooledTemporaryFile", no_room)
    async with raw_target(answering(OK)) as server, forwarding(server.target) as it:
        request = FakeRequest("POST", body=None, headers={"Content-Type": "multipart/form-data; boundary=x"})
        assert (await it.handle(request)).status == 507
        assert server.connections == 0


async def test_method_that_may_have_a_body_says_that_it_has_none() -> None:
    heads: list[str] = []
    async with raw_target(answering(OK, heads)) as server, forwarding(server.target) as it:
        for method in ("POST", "GET"):
            await it.handle(FakeRequest(method))
    assert "Content-Length: 0" in heads[0] and "Content-Length" not in heads[1]


# --- what comes back ---


async def test_answer_is_passed_on_as_it_is() -> None:
    packed = gzip.compress(b"content")
    answer = (
        b"HTTP/1.1 418 I'm a teapot, really\r\nX-One: 1\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\n"
        b"Content-Encoding: gzip\r\nConnection: keep-alive, X-Gone\r\nX-Gone: x\r\n"
        b"Content-Length: %d\r\n\r\n%s" % (len(packed), packed)
    )
    async with raw_target(answering(answer)) as server, forwarding(server.target) as it:
        request = await it.handle(FakeRequest())
        record = it.watching.records[0]
    assert (request.status, request.reason, request.body) == (418, "I'm a teapot, really", packed)
    assert request.header("set-cookie") == ["a=1", "b=2"] and request.header("x-one") == ["1"]
    assert request.header("x-gone") == [] and request.header("connection") == []
    assert request.answer_length == len(packed)
    assert (record.status, record.sent, record.error) == (418, len(packed), "")


async def test_redirect_is_the_senders_to_follow() -> None:
    answer = b"HTTP/1.1 301 Moved\r\nLocation: /docs/\r\nContent-Length: 0\r\n\r\n"
    async with raw_target(answering(answer)) as server, forwarding(server.target) as it:
        request = await it.handle(FakeRequest(target="/myHC/docs"))
    assert request.status == 301 and request.header("location") == ["/myHC/docs/"]


async def test_cookie_of_one_sender_is_not_sent_for_another() -> None:
    heads: list[str] = []
    answer = b"HTTP/1.1 200 OK\r\nSet-Cookie: session=ada\r\nContent-Length: 0\r\n\r\n"
    async with raw_target(answering(answer, heads)) as server, forwarding(server.target) as it:
        await it.handle(FakeRequest())
        await it.handle(FakeRequest())
    assert "cookie" not in heads[1].lower()


async def test_head_204_and_304_have_no_body() -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"
    async with raw_target(answering(head)) as server, forwarding(server.target) as it:
        request = await it.handle(FakeRequest("HEAD"))
        assert (request.answer_length, request.body, request.ended) == (1000, b"", True)
        assert (await it.handle(FakeRequest("HEAD"))).ended and server.connections == 1
    for status in (204, 304):
        async with raw_target(answering(b"HTTP/1.1 %d X\r\n\r\n" % status)) as server, forwarding(server.target) as it:
            request = await it.handle(FakeRequest())
            assert (request.status, request.body, request.ended) == (status, b"", True)


async def test_target_of_http_1_0_ends_its_answer_by_closing() -> None:
    async def play(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_head(reader)
        writer.write(b"HTTP/1.0 200 OK\r\n\r\nuntil the end")

    async with raw_target(play) as server, forwarding(server.target) as it:
        request = await it.handle(FakeRequest())
    assert (request.body, request.answer_length, request.ended) == (b"until the end", None, True)


async def test_pieces_of_an_answer_pass_as_they_come() -> None:
    goes_on = asyncio.Event()

    async def play(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_head(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        writer.write(b"7\r\nfirst\n\n\r\n")
        await goes_on.wait()
        writer.write(b"8\r\nsecond\n\n\r\n0\r\n\r\n")

    async with raw_target(play) as server, forwarding(server.target) as it, asyncio.TaskGroup() as group:
        request = FakeRequest()
        group.create_task(it.handle(request))
        await request.arrived.wait()
        assert request.body == b"first\n\n" and not request.ended
        goes_on.set()
    assert request.body == b"first\n\nsecond\n\n" and request.ended


async def test_answer_that_begins_before_the_request_is_whole_passes_at_once() -> None:
    async def play(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_head(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while (size := int(await reader.readline(), 16)) > 0:
            piece = await reader.readexactly(size + 2)
            writer.write(b"%x\r\n" % size + piece)
        writer.write(b"0\r\n\r\n")

    async with raw_target(play) as server, forwarding(server.target) as it, asyncio.TaskGroup() as group:
        request = FakeRequest("POST", body=None)
        group.create_task(it.handle(request))
        await request.begun.wait()
        for number in range(5):
            request.arrived.clear()
            request.feed(b"piece %d" % number)
            await request.arrived.wait()
            assert request.pieces[-1] == b"piece %d" % number
        request.feed_end()
    assert request.ended


async def test_target_that_answers_early_is_not_sent_the_rest() -> None:
    async def play(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_head(reader)
        writer.write(b"HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\n\r\nno!")
        await reader.read()  # until the connection ends

    async with raw_target(play) as server, forwarding(server.target) as it:
        request = FakeRequest("POST", body=None)
        request.feed(b"x" * 100)  # and never its end
        await it.handle(request)
    assert (request.status, request.body, request.ended) == (413, b"no!", True)


async def test_16_mib_pass_both_ways_by_content() -> None:
    content = os.urandom(1 << 20)

    async def play(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_head(reader)
        digest = hashlib.sha256()
        while (size := int(await reader.readline(), 16)) > 0:
            digest.update(await reader.readexactly(size))
            await reader.readexactly(2)
        writer.write(b"HTTP/1.1 200 OK\r\nX-Digest: %s\r\n" % digest.hexdigest().encode())
        writer.write(b"Content-Length: %d\r\n\r\n" % (16 * len(content)))
        for _ in range(16):
            writer.write(content)
            await writer.drain()

    async with raw_target(play) as server, forwarding(server.target) as it:
        request = FakeRequest("PUT", body=None)
        for _ in range(16):
            request.feed(content)
        request.feed_end()
        await it.handle(request)
        record = it.watching.records[0]
    assert request.header("x-digest") == [hashlib.sha256(content * 16).hexdigest()]
    assert request.body == content * 16
    assert (record.received, record.sent) == (16 << 20, 16 << 20)


async def test_target_is_slowed_down_by_a_slow_sender() -> None:
    stopped = asyncio.Event()
    written = 0

    async def play(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal written
        await read_head(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (64 << 20))
        writer.transport.set_write_buffer_limits(high=65_536)
        while written < 64 << 20:
            writer.write(bytes(1 << 16))
            written += 1 << 16
            try:
                async with asyncio.timeout(0.5):
                    await writer.drain()
            except TimeoutError:
                stopped.set()
                await writer.drain()

    async with raw_target(play) as server, forwarding(server.target) as it, asyncio.TaskGroup() as group:
        request = FakeRequest()
        request.takes.clear()
        group.create_task(it.handle(request))
        await stopped.wait()
        assert written < 32 << 20  # what the kernel holds, and one piece
        request.takes.set()
    assert len(request.body) == 64 << 20 and request.ended


# --- broken ends ---


async def test_sender_gets_no_clean_end_when_the_target_dies_in_the_middle() -> None:
    by_length = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf"
    in_chunks = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n"
    plays: dict[str, tuple[bytes, bytes | None]] = {
        "closed": (by_length, b""),
        "chunked and closed": (in_chunks, b""),
        "reset": (by_length, None),
        "malformed": (in_chunks, b"no chunk\r\n"),
    }
    for name, (answer, then) in plays.items():
        request = FakeRequest()
        async with raw_target(breaking_off(answer, request.arrived, then)) as server:
            async with forwarding(server.target) as it:
                await it.handle(request)
        assert request.aborted and not request.ended, name
        assert request.body == b"half", name
        assert it.watching.records[0].error == "the target broke off in the middle of its answer"


def breaking_off(answer: bytes, arrived: asyncio.Event, then: bytes | None) -> Any:
    """A play: this answer, and when it has arrived, these bytes and the end; None: a reset."""

    async def play(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_head(reader)
        writer.write(answer)
        await arrived.wait()
        if then is None:
            writer.transport.abort()
        else:
            writer.write(then)

    return play


async def test_target_hears_of_a_sender_that_left_before_its_answer() -> None:
    arrived, left = asyncio.Event(), asyncio.Event()

    async def play(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_head(reader)
        arrived.set()
        assert await reader.read() == b""
        left.set()

    async with raw_target(play) as server, forwarding(server.target) as it, asyncio.TaskGroup() as group:
        request = FakeRequest()
        group.create_task(it.handle(request))
        await arrived.wait()
        assert it.forwarder.in_flight == 1
        request.leave()
        await left.wait()
    record = it.watching.records[0]
    assert (record.status, record.error) == (0, "the sender left")
    assert request.status == 0


async def test_target_hears_of_a_sender_that_left_during_the_answer() -> None:
    left = asyncio.Event()

    async def play(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_head(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
        assert await reader.read() == b""
        left.set()

    async with raw_target(play) as server, forwarding(server.target) as it, asyncio.TaskGroup() as group:
        request = FakeRequest()
        group.create_task(it.handle(request))
        await request.arrived.wait()
        request.leave()
        await left.wait()
    assert request.aborted and it.watching.records[0].error == "the sender left"


async def test_target_gets_no_whole_body_of_a_sender_that_left_in_the_middle_of_it() -> None:
    got = asyncio.get_running_loop().create_future()

    async def play(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_head(reader)
        got.set_result(await reader.read())

    async with raw_target(play) as server, forwarding(server.target) as it:
        request = FakeRequest("POST", body=None)
        request.feed(b"half")
        request.feed(b"broken off")
        await it.handle(request)
        assert (await got) in (b"", b"4\r\nhalf\r\n")
    assert request.status == 0 and it.watching.records[0].error == "the sender left"


# --- when there is no answer of the target ---


async def test_sender_is_told_when_the_target_is_down_and_not_where_it_is() -> None:
    async with raw_target(answering(OK)) as server:
        pass
    async with forwarding(server.target) as it:
        request = await it.handle(FakeRequest())
        assert request.status == 502 and request.ended
        message = message_of(request)
        assert "myHC" in message and "start it" in message
        assert str(server.port) not in message and "127.0.0.1" not in message
        assert it.watching.changes == [(False, "connection refused")]
        assert it.watching.records[0].error == "target down: connection refused"
        request = await it.handle(FakeRequest("HEAD"))
        assert (request.status, request.body, request.ended) == (502, b"", True)
        assert len(it.watching.changes) == 1
        await server.start()
        assert (await it.handle(FakeRequest())).body == b"ok"
        assert it.watching.changes[1:] == [(True, "")]
        await server.stop()


async def test_request_that_the_target_may_have_seen_is_not_sent_again() -> None:
    seen = 0

    async def play(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal seen
        await read_head(reader)
        writer.write(OK)
        await read_head(reader)
        seen += 1  # and ends

    async with raw_target(play) as server, forwarding(server.target) as it:
        for method in ("GET", "POST", "PUT"):
            assert (await it.handle(FakeRequest(method))).status == 200
            request = await it.handle(FakeRequest(method))
            assert request.status == 502
            assert "before you send the request again" in message_of(request)
        assert seen == 3
        assert it.watching.changes == []


async def test_target_that_speaks_no_http_is_told_so() -> None:
    for answer in (b"SSH-2.0-OpenSSH\r\n", b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n"):
        async with raw_target(answering(answer)) as server, forwarding(server.target) as it:
            request = await it.handle(FakeRequest())
            assert request.status == 502
            assert "http or https" in message_of(request)


async def test_path_may_not_leave_the_base_path() -> None:
    heads: list[str] = []
    async with raw_target(answering(OK, heads)) as server:
        below = Target("http", "127.0.0.1", server.port, "/app")
        async with forwarding(below) as it:
            assert (await it.handle(FakeRequest(target="/myHC/a/../b"))).status == 200
            assert (await it.handle(FakeRequest(target="/myHC/../secret"))).status == 400
            assert (await it.handle(FakeRequest(target="/myHC/..%2Fsecret"))).status == 400
    assert [head.split()[1] for head in heads] == ["/app/a/../b"]


async def test_relay_as_its_own_target_is_a_loop() -> None:
    async with raw_target(answering(OK)) as server, forwarding(server.target) as it:
        request = await it.handle(FakeRequest(headers={"Via": "1.1 relay, 1.1 us, 1.1 relay"}))
        assert request.status == 508 and server.connections == 0


async def test_requests_that_come_together_are_served_together() -> None:
    waiting: list[asyncio.StreamWriter] = []
    all_there = asyncio.Event()

    async def play(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_head(reader)
        waiting.append(writer)
        if len(waiting) == 100:
            all_there.set()
        await all_there.wait()
        writer.write(OK)

    server: RawTarget
    async with raw_target(play) as server, forwarding(server.target) as it, asyncio.TaskGroup() as group:
        tasks = [group.create_task(it.handle(FakeRequest())) for _ in range(100)]
    assert all(task.result().body == b"ok" for task in tasks)
    assert it.forwarder.in_flight == 0
