"""Pairs: a sender and a listener with something between them, made in the way of each thing that is measured."""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import ssl
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import cast
from urllib.parse import urlsplit

from websockets.speedups import apply_mask as _apply_mask

from benchmarks.servers import PATH
from benchmarks.streams import Stream, ask_upgrade, authorization, dial, expect_upgrade
from trunkline.protocol.frames import Masker, Opcode, encode_frame
from trunkline.protocol.limits import LIMITS

apply_mask = cast(Masker, _apply_mask)

FRAME_LIMIT = cast(int, LIMITS["frame_limit"].default)

Make = Callable[[], "Pair"]
"""Makes one pair more."""


@dataclass(frozen=True)
class Pair:
    """A sender and a listener."""

    sender: Stream
    listener: Stream
    # Whether frames come out masked, as they went in, and how long they may be; None: as long as they were.
    masked: bool = False
    frame_limit: int | None = None

    def arrives(self, size: int) -> int:
        """Bytes of a message of `size` bytes, when it comes out."""
        if self.frame_limit is None or size <= self.frame_limit:
            return size + _head(size) + 4 * self.masked
        full, rest = divmod(size, self.frame_limit)
        return size + full * _head(self.frame_limit) + (_head(rest) if rest else 0)

    def close(self) -> None:
        """Cut both."""
        self.sender.close()
        self.listener.close()


def _head(size: int) -> int:
    return 2 if size < 126 else 4 if size < 65_536 else 10


def encode(message: bytes) -> bytes:
    """A message as a client sends it, with a key of its own."""
    return encode_frame(Opcode.BINARY, message, mask=os.urandom(4), masker=apply_mask)


class RelayedPairs:
    """Pairs through a node, by one control channel, which answers no Ping: it lasts for one measurement."""

    def __init__(self, port: int, tls: ssl.SSLContext | None) -> None:
        self._port = port
        self._tls = tls
        self._header = authorization()
        self.control = self.listen()

    def __call__(self) -> Pair:
        sender = self.ask()
        listener = self.accept()
        expect_upgrade(listener)
        expect_upgrade(sender)
        return Pair(sender, listener, frame_limit=FRAME_LIMIT)

    def listen(self) -> Stream:
        """One control channel more."""
        control = dial(self._port, self._tls)
        ask_upgrade(control, f"/$hc/{PATH}?sb-hc-action=listen", self._header)
        expect_upgrade(control)
        return control

    def ask(self) -> Stream:
        """A sender that has asked and has no answer yet."""
        sender = dial(self._port, self._tls)
        ask_upgrade(sender, f"/$hc/{PATH}?sb-hc-action=connect", self._header)
        return sender

    def accept(self) -> Stream:
        """A listener that has dialed the next address which it was told, and has no answer yet."""
        address = urlsplit(json.loads(self._read_text())["accept"]["address"])
        listener = dial(self._port, self._tls)
        ask_upgrade(listener, f"{address.path}?{address.query}")
        return listener

    def __enter__(self) -> RelayedPairs:
        return self

    def __exit__(self, *_: object) -> None:
        self.control.close()

    def _read_text(self) -> bytes:
        while True:
            first, length = self.control.receive_exactly(2)
            if length == 126:
                length = int.from_bytes(self.control.receive_exactly(2), "big")
            payload = self.control.receive_exactly(length)
            if first & 0x0F == Opcode.TEXT:
                return payload


class JoinedPairs:
    """Pairs through a server that joins two connections which come one after the other.

    Args:
        port: of the server.
        tls: the context, None for none.
        websocket: whether the two are WebSockets, or what goes through is not looked at.
    """

    def __init__(self, port: int, tls: ssl.SSLContext | None, *, websocket: bool) -> None:
        self._port = port
        self._tls = tls
        self._websocket = websocket

    def __call__(self) -> Pair:
        return Pair(self._dial(), self._dial(), masked=not self._websocket)

    def _dial(self) -> Stream:
        stream = dial(self._port, self._tls)
        if self._websocket:
            ask_upgrade(stream, "/")
            expect_upgrade(stream)
        return stream


class DialedPairs:
    """Pairs through a program that dials a target for each connection; the target is here.

    Args:
        port: of the program; None: nothing is between the two.
        target: listens.
        client, server: TLS contexts, None for none.
    """

    def __init__(
        self,
        port: int | None,
        target: socket.socket,
        client: ssl.SSLContext | None,
        server: ssl.SSLContext | None,
    ) -> None:
        self._port = port
        self._target = target
        self._client = client
        self._server = server
        # What came of looking whether the port is open.
        while select.select([target], [], [], 0.2)[0]:
            target.accept()[0].close()

    def __call__(self) -> Pair:
        if self._port is None:
            sender = Stream(socket.create_connection(self._target.getsockname()), self._client)
            listener = Stream(self._target.accept()[0], self._server, server_side=True)
            done = sender.step()
            while not done:
                listener.step_from_socket()
                done = sender.step_from_socket()
            if self._server is not None:
                listener.step_from_socket()
        else:
            sender = dial(self._port, self._client)
            listener = Stream(self._target.accept()[0], self._server, server_side=True).handshake()
        return Pair(sender, listener, masked=True)


@contextlib.contextmanager
def several(make: Make, count: int) -> Iterator[list[Pair]]:
    """So many pairs, made one after the other."""
    with contextlib.ExitStack() as stack:
        pairs = []
        for _ in range(count):
            pairs.append(make())
            stack.callback(pairs[-1].close)
        yield pairs
