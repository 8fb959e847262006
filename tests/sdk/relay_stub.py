"""A relay that does what a test tells it, over real sockets: the other end of the SDK's connections.

async with RelayStub() as relay:
    listening = tasks.create_task(listener.open())
    peer = await relay.next()          # the upgrade request of the listener
    await peer.upgrade()               # or peer.refuse(404, "Endpoint does not exist"), peer.abort(), ...
    peer.send(Opcode.TEXT, b"...")
    frame = await peer.receive()       # the next frame of the listener, whole
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from types import MappingProxyType, TracebackType
from typing import Any, Self, cast

from trunkline.protocol.frames import (
    Close,
    Control,
    Data,
    FrameDecoder,
    Opcode,
    close_payload,
    encode_frame,
    parse_close,
)
from trunkline.protocol.urls import RelayTarget, parse_target
from trunkline.sdk import Connection, HybridConnectionClient

REQUEST_ID = "5d1a4a7c-9fd0-4a9c-a2f4-5e8b8b1f4c11_G1_G7"
WITHIN = 5.0  # seconds for anything that must happen


async def until(condition: Callable[[], bool]) -> None:
    """Let the loop run until something inside the SDK is so, that no event tells."""
    async with asyncio.timeout(WITHIN):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0)


class Peer:
    """One TCP connection to the stub, with the request head that came on it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, head: bytes) -> None:
        self.reader = reader
        self.writer = writer
        lines = head.decode("latin-1").split("\r\n")
        self.request_line = lines[0]
        #: Headers as they were spelled.
        self.raw_headers = [tuple(line.split(": ", 1)) for line in lines[1:] if line]
        self.headers = {name.lower(): value for name, value in self.raw_headers}
        target = parse_target(lines[0].split(" ")[1])
        assert isinstance(target, RelayTarget)
        self.target = target
        self._decoder = FrameDecoder(masked=True)
        self._arrived: list[Data | Control] = []

    async def upgrade(self, *, subprotocol: str | None = None, behind: bytes = b"") -> None:
        """Answer 101, with `behind` in the same segment."""
        key = self.headers["sec-websocket-key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
        accept = base64.b64encode(hashlib.sha1(key.encode()).digest()).decode()
        extra = f"Sec-WebSocket-Protocol: {subprotocol}\r\n" if subprotocol is not None else ""
        head = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        await self.write(f"{head}Sec-WebSocket-Accept: {accept}\r\n{extra}\r\n".encode() + behind)

    async def refuse(self, status: int, phrase: str) -> None:
        """Answer with an error and close."""
        await self.write(f"HTTP/1.1 {status} {phrase}\r\nContent-Length: 0\r\n\r\n".encode("latin-1"))
        self.writer.close()

    async def write(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    def send(self, opcode: Opcode, payload: bytes = b"", *, fin: bool = True) -> None:
        self.writer.write(encode_frame(opcode, payload, fin=fin))

    def send_close(self, code: int | None = 1000, reason: str = "") -> None:
        self.send(Opcode.CLOSE, close_payload(code, reason))

    def offer(self, address: str, *, id: str = "5d1a4a7c-9fd0-4a9c-a2f4-5e8b8b1f4c11_G1", **headers: str) -> None:
        """Send an ``accept`` command."""
        accept: dict[str, Any] = {
            "address": address,
            "id": id,
            "connectHeaders": {name.replace("_", "-"): value for name, value in headers.items()},
            "remoteEndpoint": {"address": "192.0.2.7", "port": 4711},
        }
        self.send(Opcode.TEXT, json.dumps({"accept": accept}).encode())

    def request(
        self,
        address: str,
        *,
        id: str = REQUEST_ID,
        method: str = "GET",
        target: str = "/orders",
        headers: Mapping[str, str] = MappingProxyType({}),
        body: bytes | None = None,
    ) -> None:
        """Send a ``request`` command, with its body behind it if there is one."""
        self.send_command(
            "request",
            address=address,
            id=id,
            method=method,
            requestTarget=target,
            requestHeaders=dict(headers),
            remoteEndpoint={"address": "192.0.2.7", "port": 4711},
            body=body is not None,
        )
        if body is not None:
            self.send(Opcode.BINARY, body)

    def send_command(self, name: str, **fields: Any) -> None:
        """Send any command."""
        self.send(Opcode.TEXT, json.dumps({name: fields}).encode())

    async def response(self) -> tuple[dict[str, Any], bytes | None]:
        """The next answer to a request, with its body if it has one."""
        command = await self.command()
        assert list(command) == ["response"], command
        response = command["response"]
        if not response["body"]:
            return response, None
        opcode, body = await self.message()
        assert opcode is Opcode.BINARY
        return response, body

    async def piece(self) -> Data | Control:
        """The next piece of a message, or control frame."""
        async with asyncio.timeout(WITHIN):
            while not self._arrived:
                data = await self.reader.read(65_536)
                assert data, "the connection ended instead of sending a frame"
                self._arrived += self._decoder.feed(data)
        return self._arrived.pop(0)

    async def message(self) -> tuple[Opcode, bytes]:
        """The next message, whole; control frames before it are an error."""
        payload = bytearray()
        while True:
            piece = await self.piece()
            assert isinstance(piece, Data), piece
            payload += piece.payload
            if piece.end:
                return piece.opcode, bytes(payload)

    async def command(self) -> dict[str, Any]:
        """The next command on a control channel."""
        opcode, payload = await self.message()
        assert opcode is Opcode.TEXT
        command = json.loads(payload)
        assert isinstance(command, dict)
        return command

    async def control(self, opcode: Opcode) -> bytes:
        """The payload of the next frame, which is of this kind."""
        frame = await self.piece()
        assert isinstance(frame, Control) and frame.opcode is opcode, frame
        return frame.payload

    async def close_frame(self) -> Close:
        return parse_close(await self.control(Opcode.CLOSE))

    async def eof(self) -> None:
        """Wait until the SDK ends TCP; frames that come before it are an error."""
        async with asyncio.timeout(WITHIN):
            assert await self.reader.read() == b""

    def pause(self) -> None:
        """Take nothing more from the network."""
        self._transport.pause_reading()

    def resume(self) -> None:
        self._transport.resume_reading()

    @property
    def _transport(self) -> asyncio.ReadTransport:
        return cast(asyncio.ReadTransport, self.writer.transport)

    def abort(self) -> None:
        """Cut TCP with a reset."""
        self.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    def close(self) -> None:
        self.writer.close()


class RelayStub:
    """Listens on a free port; hands each request to the test."""

    def __init__(self, *, ssl: ssl.SSLContext | None = None) -> None:
        self._ssl = ssl
        self._requests: asyncio.Queue[Peer] = asyncio.Queue()
        self._writers: list[asyncio.StreamWriter] = []
        self._server: asyncio.Server | None = None
        self.port = 0

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, ssl=self._ssl)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        self.abort_all()
        await asyncio.sleep(0)

    def abort_all(self) -> None:
        """Cut every connection."""
        for writer in self._writers:
            writer.transport.abort()

    @property
    def base(self) -> str:
        return f"{'wss' if self._ssl else 'ws'}://localhost:{self.port}"

    @property
    def address(self) -> str:
        """Address of a hybrid connection on it."""
        return f"{self.base}/orders"

    def rendezvous(self, suffix: str = "", query: str = "") -> str:
        """An address for `Peer.offer`."""
        own = "sb-hc-action=accept&sb-hc-id=1&sb-hc-rendezvous=secret"
        return f"{self.base}/$hc/orders{suffix}?{query + '&' if query else ''}{own}"

    async def next(self) -> Peer:
        """The next request."""
        async with asyncio.timeout(WITHIN):
            return await self._requests.get()

    def idle(self) -> bool:
        """Whether no request waits."""
        return self._requests.empty()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        self._requests.put_nowait(Peer(reader, writer, head[:-2]))


@asynccontextmanager
async def connected(relay: RelayStub, **settings: Any) -> AsyncIterator[tuple[Connection, Peer]]:
    """A sender's connection and the relay's end of it; cut when the test is done with it."""
    client = HybridConnectionClient(relay.address, **settings)
    async with asyncio.TaskGroup() as tasks:
        connecting = tasks.create_task(client.create_connection())
        peer = await relay.next()
        await peer.upgrade()
        connection = await connecting
    try:
        yield connection, peer
    finally:
        peer.writer.transport.abort()
        connection.abort()
        await connection.wait_closed()
