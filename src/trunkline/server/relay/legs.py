"""One WebSocket of a pair, seen from the relay: moves bytes between its transport and the splice.

It decides nothing. What came is given to the `Connection` that owns it, what the splice says is written, and when
this leg's transport takes no more, the other leg is not read until it does (back-pressure).
"""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING

from trunkline.protocol.splice import Side
from trunkline.server.relay.frontend import RECEIVE_BUFFER

if TYPE_CHECKING:
    from trunkline.server.relay.splicing import Connection

# A leg whose peer does not read holds this much, and one read of the other leg on top, then the other leg waits.
HIGH_WATER = 262_144
LOW_WATER = 65_536

# Seconds that a leg has to send what it holds and to close; then it is cut.
CLOSE_TIMEOUT = 5.0


class Leg(asyncio.BufferedProtocol):
    """The sender's or the listener's end of a connection."""

    __slots__ = ("_early", "_paused_reading", "connection", "side", "transport")

    def __init__(self, connection: Connection, side: Side) -> None:
        self.connection = connection
        self.side = side
        # None before the 101 was written and after the transport is gone.
        self.transport: asyncio.Transport | None = None
        self._paused_reading = False
        # What came behind the request head, until the other leg can take it.
        self._early = b""

    def __repr__(self) -> str:
        state = "waiting" if self.transport is None else "paused" if self._paused_reading else "open"
        return f"<Leg {self.side.name} {state}>"

    def take_over(self, transport: asyncio.Transport, early: bytes) -> None:
        self.transport = transport
        transport.set_write_buffer_limits(HIGH_WATER, LOW_WATER)
        enable_keepalive(transport)
        self._early = early

    def start(self) -> None:
        """The other leg is there too."""
        early, self._early = self._early, b""
        if early:
            self.connection.receive(self.side, early)

    def get_buffer(self, sizehint: int) -> memoryview:
        return RECEIVE_BUFFER

    def buffer_updated(self, nbytes: int) -> None:
        # A copy: the buffer is shared, and the splice is faster on bytes.
        self.connection.receive(self.side, bytes(RECEIVE_BUFFER[:nbytes]))

    def eof_received(self) -> bool:
        self.connection.lost(self.side)
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        self.connection.lost(self.side)

    def pause_writing(self) -> None:
        self.connection.congested(self.side)

    def resume_writing(self) -> None:
        self.connection.relieved(self.side)

    def pause_reading(self) -> None:
        """Take no more from the peer for now."""
        if self.transport is not None and not self._paused_reading and not self.transport.is_closing():
            self._paused_reading = True
            self.transport.pause_reading()

    def resume_reading(self) -> None:
        """Read again."""
        if self.transport is not None and self._paused_reading and not self.transport.is_closing():
            self._paused_reading = False
            self.transport.resume_reading()

    def write(self, data: bytes) -> None:
        """Send to the peer; nothing happens when it is gone."""
        if self.transport is not None:
            self.transport.write(data)

    def end(self, *, abort: bool) -> None:
        """Close in order, with a limit to how long that may take, or cut."""
        transport = self.transport
        if transport is None:
            return
        if abort:
            transport.abort()
            return
        # A transport that is not read does not see the peer's close.
        self.resume_reading()
        transport.close()
        asyncio.get_running_loop().call_later(CLOSE_TIMEOUT, transport.abort)


def enable_keepalive(transport: asyncio.Transport) -> None:
    """Let TCP find a peer that is gone without a word, where no idle timeout does."""
    sock = transport.get_extra_info("socket")
    if sock is None:
        return
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 15), ("TCP_KEEPCNT", 4)):
        option = getattr(socket, name, None)
        if option is not None:
            sock.setsockopt(socket.IPPROTO_TCP, option, value)
