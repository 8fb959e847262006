"""Plain HTTP through a node that runs as a process of its own: long streams, and many requests for a long time."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import quote

import pytest

from faults.served_node import ServedNode, served_node
from trunkline.protocol import sas
from trunkline.sdk import HttpRequest, HttpResponse

pytestmark = [pytest.mark.slow, pytest.mark.loop("uvloop")]

GIB = 2**30
PIECE = bytes(range(256)) * 1_024


def resident(node: ServedNode) -> int:
    """Bytes of memory that the process of the node has."""
    return int(Path(f"/proc/{node.process.pid}/statm").read_text().split()[1]) * 4_096


class Sender:
    """A keep-alive connection to `/orders` of a node."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, port: int) -> None:
        self.reader = reader
        self.writer = writer
        expires_at = int(time.time()) + 3_600
        token = quote(sas.sign(sas.audience("127.0.0.1", "orders"), "all", "secretkey", expires_at=expires_at))
        self._head = f"/orders?sb-hc-token={token} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n"

    @classmethod
    async def connect(cls, node: ServedNode) -> Sender:
        port = node._ports[0]
        return cls(*await asyncio.open_connection("127.0.0.1", port, limit=2**20), port)

    def begin(self, method: str, length: int) -> None:
        self.writer.write(f"{method} {self._head}Content-Length: {length}\r\n\r\n".encode())

    async def __aenter__(self) -> Sender:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.writer.transport.abort()
        await asyncio.sleep(0)

    async def response(self) -> tuple[int, bytes]:
        """Status and body of the next response."""
        status, length = await self.head()
        if length is not None:
            return status, await self.reader.readexactly(length)
        return status, b"".join([chunk async for chunk in self.chunks()])

    async def head(self) -> tuple[int, int | None]:
        """Status and length of the next response; None: it comes in chunks."""
        lines = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        length = next((int(line[15:]) for line in lines if line.lower().startswith("content-length:")), None)
        return int(lines[0].split(" ")[1]), length

    async def chunks(self) -> AsyncIterator[bytes]:
        while size := int(await self.reader.readuntil(b"\r\n"), 16):
            yield await self.reader.readexactly(size)
            await self.reader.readexactly(2)
        await self.reader.readexactly(2)


@pytest.mark.timeout(300)
async def test_a_gib_streams_either_way_and_the_node_grows_by_less_than_16_mib(tmp_path: Path) -> None:
    async def pieces(sent: hashlib._Hash) -> AsyncIterator[bytes]:
        for _ in range(GIB // len(PIECE)):
            sent.update(PIECE)
            yield PIECE

    down = hashlib.sha256()

    async def handler(request: HttpRequest) -> HttpResponse:
        if request.method == "GET":
            return HttpResponse(200, pieces(down))
        up = hashlib.sha256()
        async for piece in request:
            up.update(piece)
        return HttpResponse(200, up.hexdigest())

    async with (
        served_node(tmp_path, "orders") as node,
        node.listener("orders", http_handler=handler),
        await Sender.connect(node) as sender,
    ):
        before = most = resident(node)
        sender.begin("GET", 0)
        assert await sender.head() == (200, None)
        got = hashlib.sha256()
        size = 0
        async for chunk in sender.chunks():
            got.update(chunk)
            size += len(chunk)
            if size % (16 * 2**20) < len(chunk):
                most = max(most, resident(node))
        assert (size, got.hexdigest()) == (GIB, down.hexdigest())
        sender.begin("PUT", GIB)
        for at in range(GIB // len(PIECE)):
            sender.writer.write(PIECE)
            await sender.writer.drain()
            if at % 64 == 0:
                most = max(most, resident(node))
        assert await sender.response() == (200, down.hexdigest().encode())
        assert most - before < 16 * 2**20, f"it grew by {(most - before) / 2**20:.1f} MiB"


@pytest.mark.timeout(180)
async def test_200_requests_at_a_time_for_a_minute_are_all_answered(tmp_path: Path) -> None:
    """The real service's best-known failure: 502 and 504 under load."""
    until = time.monotonic() + 60
    sizes = (0, 100, 10_000, 65_536, 65_537, 200_000)
    statuses: Counter[int] = Counter()

    async def handler(request: HttpRequest) -> HttpResponse:
        body = await request.read()
        await asyncio.sleep(len(body) % 3 * 0.01)
        return HttpResponse(200, body[::-1])

    async def ask(number: int) -> None:
        async with await Sender.connect(node) as sender:
            while time.monotonic() < until:
                number += 1
                body = PIECE[: sizes[number % len(sizes)]]
                sender.begin("POST", len(body))
                sender.writer.write(body)
                status, got = await sender.response()
                statuses[status] += 1
                assert (status, got) == (200, body[::-1])

    async with served_node(tmp_path, "orders") as node, node.listener("orders", http_handler=handler):
        async with asyncio.TaskGroup() as tasks:
            for number in range(200):
                tasks.create_task(ask(number))
        assert list(statuses) == [200] and statuses[200] > 10_000
        assert (await node.readiness())["http_requests"] == 0
