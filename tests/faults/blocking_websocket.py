"""A WebSocket client on a blocking socket, for loads that an event loop is too slow for, and for forked processes.

It shares no code with the product. It answers nothing by itself, and gives payloads into a buffer of the caller.
"""

from __future__ import annotations

import base64
import json
import os
import socket
import ssl as ssl_module
import struct
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

BINARY, CLOSE, PING, PONG = 2, 8, 9, 10


class Refused(Exception):
    """The answer was not 101."""


class BlockingWebSocket:
    """One connection, made and upgraded at once.

    Args:
        url: ``ws://`` or ``wss://``.
        token: goes into ``ServiceBusAuthorization``.
        ssl: for ``wss://``.
        timeout: seconds for each step.
        answer: False to send the request and leave its answer for `upgraded`.

    Raises:
        Refused: the answer was not 101.
        OSError: no connection, or none any more.
    """

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        ssl: ssl_module.SSLContext | None = None,
        timeout: float = 30,
        answer: bool = True,
    ) -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None and parts.port is not None
        sock = socket.create_connection((parts.hostname, parts.port), timeout)
        self.socket = sock if ssl is None else ssl.wrap_socket(sock, server_hostname=parts.hostname)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        lines = [
            f"GET {url.partition(parts.netloc)[2]} HTTP/1.1",
            f"Host: {parts.netloc}",
            "Upgrade: websocket",
            "Connection: Upgrade",
            "Sec-WebSocket-Version: 13",
            f"Sec-WebSocket-Key: {base64.b64encode(os.urandom(16)).decode()}",
        ]
        if token is not None:
            lines.append(f"ServiceBusAuthorization: {token}")
        self.socket.sendall("\r\n".join((*lines, "", "")).encode("latin-1"))
        if answer:
            self.upgraded()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.socket.close()

    def upgraded(self) -> None:
        """Read the answer to the upgrade, and nothing behind it."""
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            byte = self.socket.recv(1)
            if not byte:
                raise ConnectionError("the connection ended before the answer")
            head += byte
        if b" 101 " not in head.partition(b"\r\n")[0]:
            raise Refused(head.partition(b"\r\n")[0].decode("latin-1"))

    def send(self, opcode: int, payload: bytes = b"") -> None:
        """Send one frame."""
        self.socket.sendall(frame(opcode, payload))

    def read_head(self) -> tuple[int, bool, int]:
        """The next frame: its opcode, whether it ends its message, and its length; then comes its payload."""
        first, second = self.read(2)
        length = second & 0x7F
        if length == 126:
            [length] = struct.unpack("!H", self.read(2))
        elif length == 127:
            [length] = struct.unpack("!Q", self.read(8))
        return first & 0x0F, bool(first & 0x80), length

    def read_into(self, view: memoryview) -> None:
        """Fill `view`."""
        while view:
            size = self.socket.recv_into(view)
            if not size:
                raise ConnectionError("the connection ended")
            view = view[size:]

    def read(self, size: int) -> bytes:
        """So many bytes."""
        data = bytearray(size)
        self.read_into(memoryview(data))
        return bytes(data)

    def offer(self) -> dict[str, Any]:
        """On a control channel: the next `accept`, with pings on the way answered."""
        while True:
            opcode, _, length = self.read_head()
            payload = self.read(length)
            if opcode == PING:
                self.send(PONG, payload)
            elif opcode == CLOSE:
                raise ConnectionError(f"the control channel was closed: {payload[2:].decode()}")
            else:
                return dict(json.loads(payload)["accept"])


def frame(opcode: int, payload: bytes, *, mask: bytes = b"\0\0\0\0") -> bytes:
    """A whole frame of a client; `payload` is masked already."""
    return frame_head(opcode, len(payload), mask=mask) + payload


def frame_head(opcode: int, length: int, *, mask: bytes) -> bytes:
    """The head of a frame that ends its message."""
    if length < 126:
        size = struct.pack("!B", 0x80 | length)
    elif length < 65_536:
        size = struct.pack("!BH", 0x80 | 126, length)
    else:
        size = struct.pack("!BQ", 0x80 | 127, length)
    return bytes([0x80 | opcode]) + size + mask
