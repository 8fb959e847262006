"""The peers of a measurement: blocking sockets, frames made beforehand with random keys and payloads."""

from __future__ import annotations

import base64
import json
import os
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast
from urllib.parse import urlsplit

from websockets.speedups import apply_mask as _apply_mask

from benchmarks.servers import KEY, KEY_NAME, PATH
from trunkline.protocol.frames import Masker, Opcode, encode_frame
from trunkline.protocol.sas import audience, sign

apply_mask = cast(Masker, _apply_mask)

# About this much is made beforehand and sent again and again.
BATCH = 1_048_576


@dataclass(frozen=True)
class Pair:
    """A sender and a listener with whatever is measured between them."""

    sender: socket.socket
    listener: socket.socket
    # Turns a message into what the sender writes, and tells how long it is when it comes out.
    encode: Callable[[bytes], bytes]
    arrives: Callable[[int], int]

    def close(self) -> None:
        """Cut both."""
        self.sender.close()
        self.listener.close()


def upgrade(port: int, target: str, *headers: str) -> socket.socket:
    """A WebSocket handshake by hand; gives the socket behind its 101."""
    sock = socket.create_connection(("127.0.0.1", port))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    send_upgrade(sock, port, target, *headers)
    read_upgrade(sock)
    return sock


def send_upgrade(sock: socket.socket, port: int, target: str, *headers: str) -> None:
    """Ask for a WebSocket."""
    key = base64.b64encode(os.urandom(16)).decode()
    lines = (
        f"GET {target} HTTP/1.1",
        f"Host: localhost:{port}",
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        f"Sec-WebSocket-Key: {key}",
        *headers,
    )
    sock.sendall("\r\n".join((*lines, "", "")).encode())


def read_upgrade(sock: socket.socket) -> None:
    """Read the 101 and nothing behind it."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        piece = sock.recv(1)
        if not piece:
            raise ConnectionError("the node closed during a handshake")
        head += piece
    if not head.startswith(b"HTTP/1.1 101 "):
        raise ConnectionError(head.split(b"\r\n")[0].decode())


class RelayedPairs:
    """Makes pairs through a node, by one control channel."""

    def __init__(self, port: int) -> None:
        self._port = port
        token = sign(audience("localhost", PATH), KEY_NAME, KEY, expires_at=int(time.time()) + 3600)
        self._header = f"ServiceBusAuthorization: {token}"
        self._control = upgrade(port, f"/$hc/{PATH}?sb-hc-action=listen", self._header)

    def make(self) -> Pair:
        """One relayed connection."""
        sender = socket.create_connection(("127.0.0.1", self._port))
        sender.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        send_upgrade(sender, self._port, f"/$hc/{PATH}?sb-hc-action=connect", self._header)
        address = urlsplit(json.loads(self._read_text())["accept"]["address"])
        listener = upgrade(self._port, f"{address.path}?{address.query}")
        read_upgrade(sender)

        def encode(message: bytes) -> bytes:
            return encode_frame(Opcode.BINARY, message, mask=os.urandom(4), masker=apply_mask)

        def arrives(size: int) -> int:
            return size + (2 if size < 126 else 4 if size < 65_536 else 10)

        return Pair(sender, listener, encode, arrives)

    def _read_text(self) -> bytes:
        while True:
            first, length = read_exactly(self._control, 2)
            if length == 126:
                length = int.from_bytes(read_exactly(self._control, 2), "big")
            elif length == 127:
                length = int.from_bytes(read_exactly(self._control, 8), "big")
            payload = read_exactly(self._control, length)
            if first & 0x0F == Opcode.TEXT:
                return payload


class ForwardedPairs:
    """Makes pairs through the bare forwarder, whose target is `target`."""

    def __init__(self, port: int, target: socket.socket) -> None:
        self._port = port
        self._target = target

    def make(self) -> Pair:
        """One forwarded connection; it carries the same bytes as a relayed one, frames and all."""
        sender = socket.create_connection(("127.0.0.1", self._port))
        sender.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        listener, _ = self._target.accept()
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

        def encode(message: bytes) -> bytes:
            return encode_frame(Opcode.BINARY, message, mask=os.urandom(4), masker=apply_mask)

        return Pair(sender, listener, encode, lambda size: len(encode(b"\0" * size)))


def read_exactly(sock: socket.socket, size: int) -> bytes:
    """As many bytes as asked for."""
    data = b""
    while len(data) < size:
        piece = sock.recv(size - len(data))
        if not piece:
            raise ConnectionError("the other side closed")
        data += piece
    return data


def throughput(pair: Pair, size: int, seconds: float) -> float:
    """Messages per second from the sender to the listener, as they arrive."""
    count = max(1, BATCH // size)
    batch = b"".join(pair.encode(os.urandom(size)) for _ in range(count))
    stop = threading.Event()
    sent = 0

    def send() -> None:
        nonlocal sent
        while not stop.is_set():
            pair.sender.sendall(batch)
            sent += count

    def drain(until: Callable[[], bool]) -> int:
        total = 0
        while not until():
            total += pair.listener.recv_into(buffer)
        return total

    buffer = bytearray(1_048_576)
    thread = threading.Thread(target=send)
    thread.start()
    warm = time.perf_counter() + seconds / 4
    skipped = drain(lambda: time.perf_counter() > warm)
    started = time.perf_counter()
    received = drain(lambda: time.perf_counter() > started + seconds)
    took = time.perf_counter() - started
    stop.set()
    # What is still under way must come out as well: nothing may be lost on the way.
    rest = 0
    while thread.is_alive() or skipped + received + rest < sent * pair.arrives(size):
        rest += pair.listener.recv_into(buffer)
    thread.join()
    return received / pair.arrives(size) / took


def round_trip(pair: Pair, size: int, count: int) -> float:
    """Median seconds of a message that goes from the sender to the listener and back."""
    message = pair.encode(os.urandom(size))
    arrives = pair.arrives(size)
    times = []
    for _ in range(count):
        started = time.perf_counter()
        pair.sender.sendall(message)
        read_exactly(pair.listener, arrives)
        pair.listener.sendall(message)
        read_exactly(pair.sender, arrives)
        times.append(time.perf_counter() - started)
    return sorted(times)[count // 2]


def check_content(pair: Pair) -> float:
    """What comes out is what went in: sizes around every border, compared byte by byte. Gives how many were tried."""
    sizes = (0, 1, 125, 126, 65_535, 65_536)
    for size in sizes:
        payload = os.urandom(size)
        message = pair.encode(payload)
        pair.sender.sendall(message)
        if not read_exactly(pair.listener, pair.arrives(size)).endswith(payload):
            raise AssertionError(f"a message of {size} bytes came out changed")
    return len(sizes)
