"""A WebSocket client that does nothing by itself, for tests that look at single frames.

    async with RawWebSocket(node.listen_url(token=...)) as listener:
        offer = await listener.offer()

It shares no code with the product, so it needs no trust in it: the frames of RFC 6455 section 5.2 are read and written
here once more. It answers neither Ping nor Close, reads only when asked to, and shows every frame as it came.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import socket
import ssl as ssl_module
import struct
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol, Self
from urllib.parse import urlsplit

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10

#: Seconds for anything that a test waits for.
PATIENCE = 10


@dataclass(frozen=True)
class Frame:
    opcode: int
    payload: bytes
    end: bool = True

    @property
    def close_code(self) -> int | None:
        """Of a Close frame that has one."""
        assert self.opcode == CLOSE, self
        return int.from_bytes(self.payload[:2], "big") if self.payload else None

    @property
    def close_reason(self) -> str:
        assert self.opcode == CLOSE, self
        return self.payload[2:].decode()

    def __repr__(self) -> str:
        return f"<Frame {self.opcode} {self.payload[:60]!r} length={len(self.payload)} end={self.end}>"


class Refused(Exception):
    """The answer was not 101."""

    def __init__(self, status: int, phrase: str) -> None:
        super().__init__(f"{status} {phrase}")
        self.status = status
        self.phrase = phrase


class RawWebSocket:
    """One connection.

    Args:
        url: ``ws://`` or ``wss://``, sent as it is.
        token: goes into ``ServiceBusAuthorization``.
        headers: further ones; names keep their case.
        ssl: for ``wss://``.
        receive_buffer: bytes that the system may hold for this socket; None for its own choice.
        local_address: that it dials from; None for the system's choice.
    """

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        headers: Iterable[tuple[str, str]] = (),
        ssl: ssl_module.SSLContext | None = None,
        receive_buffer: int | None = None,
        local_address: str | None = None,
    ) -> None:
        self._url = url
        self._request_headers = [*headers, *([("ServiceBusAuthorization", token)] if token is not None else [])]
        self._ssl = ssl
        self._receive_buffer = receive_buffer
        self._local_address = local_address
        self._reader = asyncio.StreamReader()
        self._writer: asyncio.StreamWriter | None = None
        #: Headers of the 101, by name in lower case.
        self.headers: dict[str, str] = {}

    async def __aenter__(self) -> Self:
        """Raises Refused."""
        try:
            async with asyncio.timeout(PATIENCE):
                await self.connect()
                await self.upgraded()
        except BaseException:
            self.abort()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abort()

    async def connect(self) -> None:
        """Open TCP and send the request, without waiting for the answer."""
        parts = urlsplit(self._url)
        assert parts.hostname is not None and parts.port is not None
        sock = socket.socket()
        sock.setblocking(False)
        if self._receive_buffer is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self._receive_buffer)
        if self._local_address is not None:
            sock.bind((self._local_address, 0))
        await asyncio.get_running_loop().sock_connect(sock, (parts.hostname, parts.port))
        self._reader, self._writer = await asyncio.open_connection(
            sock=sock, ssl=self._ssl, server_hostname=parts.hostname if self._ssl else None, limit=2**16
        )
        target = self._url.partition(parts.netloc)[2]
        lines = [
            f"GET {target} HTTP/1.1",
            f"Host: {parts.netloc}",
            "Upgrade: websocket",
            "Connection: Upgrade",
            "Sec-WebSocket-Version: 13",
            f"Sec-WebSocket-Key: {base64.b64encode(os.urandom(16)).decode()}",
            *(f"{name}: {value}" for name, value in self._request_headers),
        ]
        self._writer.write("\r\n".join((*lines, "", "")).encode("latin-1"))

    async def upgraded(self) -> None:
        """Wait for the answer. Raises Refused."""
        head = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        status_line, *lines = head.rstrip("\r\n").split("\r\n")
        _, status, phrase = (*status_line.split(" ", 2), "")[:3]
        if status != "101":
            raise Refused(int(status), phrase)
        for line in lines:
            name, _, value = line.partition(":")
            self.headers[name.lower()] = value.strip()

    @property
    def streams(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """What is under it, behind the 101, for tests that read and write for themselves."""
        assert self._writer is not None
        return self._reader, self._writer

    # --- frames ---

    async def send(self, opcode: int, payload: bytes = b"", *, end: bool = True) -> None:
        """Send one frame and wait until the system has most of it."""
        await self.send_bytes(encode(opcode, payload, end=end))

    async def send_bytes(self, data: bytes) -> None:
        """Send frames that are encoded already, or a piece of one."""
        assert self._writer is not None
        self._writer.write(data)
        await self._writer.drain()

    async def send_json(self, command: object) -> None:
        """Send a command on a control channel."""
        await self.send(TEXT, json.dumps(command).encode())

    async def send_close(self, code: int, reason: str = "") -> None:
        await self.send(CLOSE, code.to_bytes(2, "big") + reason.encode())

    async def receive(self) -> Frame:
        """The next frame.

        Raises:
            asyncio.IncompleteReadError, ConnectionError: the connection ended, in order as TCP sees it or not.
        """
        async with asyncio.timeout(PATIENCE):
            first, second = await self._reader.readexactly(2)
            length = second & 0x7F
            if length == 126:
                [length] = struct.unpack("!H", await self._reader.readexactly(2))
            elif length == 127:
                [length] = struct.unpack("!Q", await self._reader.readexactly(8))
            assert not second & 0x80, "a server masks nothing"
            assert not first & 0x70, "no extension was negotiated"
            return Frame(first & 0x0F, await self._reader.readexactly(length), bool(first & 0x80))

    async def receive_message(self) -> list[Frame]:
        """The frames of the next message."""
        frames = [await self.receive()]
        while not frames[-1].end:
            frames.append(await self.receive())
        return frames

    async def offer(self) -> dict[str, Any]:
        """On a control channel: the next `accept`, with pings on the way answered."""
        frame = await self.receive_answering_pings()
        assert frame.opcode == TEXT and frame.end, frame
        command = json.loads(frame.payload)
        assert list(command) == ["accept"]
        return dict(command["accept"])

    async def receive_answering_pings(self) -> Frame:
        """The next frame that is no Ping."""
        while (frame := await self.receive()).opcode == PING:
            await self.send(PONG, frame.payload)
        return frame

    async def receive_bytes(self, size: int) -> bytes:
        """The next bytes, whatever frames they are."""
        async with asyncio.timeout(PATIENCE):
            return await self._reader.readexactly(size)

    async def discard(self) -> None:
        """Read without looking, until the end."""
        try:
            while await self._reader.read(2**20):
                pass
        except ConnectionError:
            pass  # a reset

    async def ended(self) -> None:
        """Wait for the end of TCP; fails if anything comes before it."""
        try:
            frame = await self.receive()
        except asyncio.IncompleteReadError as end:
            assert end.partial == b"", end.partial
        except ConnectionError:
            pass  # a reset
        else:
            raise AssertionError(f"not the end, but {frame}")

    def abort(self) -> None:
        """Cut TCP, with a reset."""
        if self._writer is not None and not self._writer.is_closing():
            sock = self._writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self._writer.transport.abort()


def encode(opcode: int, payload: bytes, *, end: bool = True) -> bytes:
    """One frame of a client, masked (with zeros, which leave the payload as it is: RFC 6455 section 5.3)."""
    length = len(payload)
    if length < 126:
        size = struct.pack("!B", 0x80 | length)
    elif length < 65_536:
        size = struct.pack("!BH", 0x80 | 126, length)
    else:
        size = struct.pack("!BQ", 0x80 | 127, length)
    return bytes([0x80 * end | opcode]) + size + b"\0\0\0\0" + payload


async def refusal(
    url: str,
    *,
    token: str | None = None,
    headers: Iterable[tuple[str, str]] = (),
    ssl: ssl_module.SSLContext | None = None,
) -> Refused:
    """What a handshake that must be refused is told."""
    try:
        async with RawWebSocket(url, token=token, headers=headers, ssl=ssl):
            raise AssertionError("it was answered with 101")
    except Refused as refused:
        return refused


@dataclass(frozen=True)
class RawPair:
    """A connection whose ends are both raw."""

    #: The listener's control channel, and the address that it was offered.
    control: RawWebSocket
    address: str
    sender: RawWebSocket
    listener: RawWebSocket


class Reachable(Protocol):
    """A node, wherever it runs."""

    def connect_url(self) -> str: ...

    def listen_url(self) -> str: ...

    def token(self) -> str: ...


@asynccontextmanager
async def raw_pair(
    node: Reachable,
    *,
    sender: RawWebSocket | None = None,
    control: RawWebSocket | None = None,
    ssl: ssl_module.SSLContext | None = None,
) -> AsyncIterator[RawPair]:
    """One listener, one sender, joined; what is not given is made with a token of the node."""
    sender = sender or RawWebSocket(node.connect_url(), token=node.token(), ssl=ssl)
    async with control or RawWebSocket(node.listen_url(), token=node.token(), ssl=ssl) as control:
        await sender.connect()
        try:
            address = (await control.offer())["address"]
            async with RawWebSocket(address, ssl=ssl) as listener:
                await sender.upgraded()
                yield RawPair(control, address, sender, listener)
        finally:
            sender.abort()
