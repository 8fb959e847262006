"""One end of a measured connection: a blocking socket, with TLS or without, and the handshakes that make it.

TLS runs over memory BIOs: so bytes can be encrypted beforehand in one piece, and read without being decrypted where
only their number counts. Both keep the load cheaper than what it measures.
"""

from __future__ import annotations

import base64
import os
import socket
import ssl
import time

from benchmarks.servers import KEY, KEY_NAME, PATH
from trunkline.protocol.sas import audience, sign

# Seconds that a peer of the load waits for anything.
TIMEOUT = 30.0

READ_SIZE = 262_144


class Stream:
    """A connected socket; with `tls`, encrypted.

    Args:
        sock: connected.
        tls: the context, None for none.
        server_side: which end of the TLS handshake it is.
        name: the host name that a TLS client expects.
    """

    def __init__(
        self, sock: socket.socket, tls: ssl.SSLContext | None, *, server_side: bool = False, name: str = "localhost"
    ) -> None:
        sock.settimeout(TIMEOUT)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock = sock
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._held = b""
        self._tls = None
        if tls is not None:
            self._tls = tls.wrap_bio(
                self._incoming, self._outgoing, server_side=server_side, server_hostname=None if server_side else name
            )

    @property
    def is_encrypted(self) -> bool:
        """Whether TLS is spoken."""
        return self._tls is not None

    def handshake(self) -> Stream:
        """Do the TLS handshake, where there is one; both ends of one process take turns by `step`."""
        while not self.step():
            self._incoming.write(self._some())
        return self

    def step(self) -> bool:
        """Go as far in the handshake as what has come allows; True when it is done."""
        if self._tls is None:
            return True
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            return False
        finally:
            self._flush()
        return True

    def step_from_socket(self) -> bool:
        """Like `step`, after some more bytes of the peer."""
        self._incoming.write(self._some())
        return self.step()

    def encode(self, data: bytes) -> bytes:
        """What goes on the wire for `data`; it has to go there next."""
        if self._tls is None:
            return data
        self._tls.write(data)
        return self._outgoing.read()

    def send(self, data: bytes) -> None:
        """Send all of it."""
        self.sock.sendall(self.encode(data))

    def receive(self) -> bytes:
        """Whatever comes next, or was left over."""
        if self._held:
            data, self._held = self._held, b""
            return data
        while True:
            if self._tls is None:
                return self._some()
            try:
                data = self._tls.read(READ_SIZE)
            except ssl.SSLWantReadError:
                self._incoming.write(self._some())
            else:
                if not data:
                    raise ConnectionError("the other side ended the TLS connection")
                return data

    def receive_exactly(self, size: int) -> bytes:
        """As many bytes as asked for; what came beyond them is left for the next call."""
        pieces, missing = [], size
        while missing > 0:
            piece = self.receive()
            pieces.append(piece)
            missing -= len(piece)
        data = b"".join(pieces)
        self._held = data[size:] + self._held
        return data[:size]

    def receive_until(self, end: bytes) -> bytes:
        """Everything up to and with `end`."""
        data = b""
        while end not in data:
            data += self.receive()
        head, _, rest = data.partition(end)
        self._held = rest
        return head + end

    def close(self) -> None:
        """Reset the connection: no port waits for its end, so that thousands can follow each other."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.sock.close()

    def _some(self) -> bytes:
        data = self.sock.recv(READ_SIZE)
        if not data:
            raise ConnectionError("the other side closed")
        return data

    def _flush(self) -> None:
        if data := self._outgoing.read():
            self.sock.sendall(data)


class Records:
    """Counts the payload of TLS 1.3 records by their heads, which are not encrypted (RFC 8446 section 5.2)."""

    HEAD = 5
    # What a record adds to its payload: the head, the type byte and the authentication tag.
    EXTRA = HEAD + 1 + 16

    def __init__(self) -> None:
        # Bytes still to come of a record whose head was seen; the part of a head that has come.
        self._left = 0
        self._head = b""

    def payload(self, data: bytes | bytearray, size: int) -> int:
        """Bytes of payload in the first `size` bytes of `data`; what a record adds is taken off where it begins."""
        begun, position = 0, self._left
        if self._head:
            missing = self.HEAD - len(self._head)
            self._head += data[: min(missing, size)]
            if len(self._head) < self.HEAD:
                return size
            begun, position = 1, missing + int.from_bytes(self._head[3:], "big")
            self._head = b""
        while position + self.HEAD <= size:
            position += self.HEAD + (data[position + 3] << 8 | data[position + 4])
            begun += 1
        self._head = bytes(data[position:size])
        self._left = max(0, position - size)
        return size - begun * self.EXTRA


def dial(port: int, tls: ssl.SSLContext | None) -> Stream:
    """Connect to a port of this machine, with the TLS handshake done."""
    return Stream(socket.create_connection(("127.0.0.1", port)), tls).handshake()


def authorization() -> str:
    """The header that lets a listener or a sender into the node that is measured."""
    expires_at = int(time.time()) + 3600
    return f"ServiceBusAuthorization: {sign(audience('localhost', PATH), KEY_NAME, KEY, expires_at=expires_at)}"


def ask_upgrade(stream: Stream, target: str, *headers: str) -> None:
    """Ask for a WebSocket."""
    lines = (
        f"GET {target} HTTP/1.1",
        "Host: localhost",
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        f"Sec-WebSocket-Key: {base64.b64encode(os.urandom(16)).decode()}",
        *headers,
    )
    stream.send("\r\n".join((*lines, "", "")).encode())


def expect_upgrade(stream: Stream) -> None:
    """Read the 101 and nothing behind it."""
    head = stream.receive_until(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 101 "):
        raise ConnectionError(head.split(b"\r\n")[0].decode())
