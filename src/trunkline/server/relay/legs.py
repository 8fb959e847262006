"""One WebSocket of a pair, seen from the relay: moves bytes between its transport and the splice.

It decides nothing. What came is given to the `Connection` that owns it, what the splice says is written, and when
this leg's transport takes no more, the other leg is not read until it does (back-pressure).
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from trunkline.protocol.splice import Outgoing, Side
from trunkline.server.relay.sockets import RECEIVE_BUFFER, enable_keepalive, end_writing, is_lost, unheard

if TYPE_CHECKING:
    from trunkline.server.relay.splicing import Connection

# A leg whose peer does not read holds this much, and one read of the other leg on top, then the other leg waits.
HIGH_WATER = 262_144
LOW_WATER = 65_536

# What a leg without TLS reads at once: what becomes of it fits into the blocks that the C library keeps for the next
# time (`trunkline.server.spare_memory`).
PLAIN_READ = RECEIVE_BUFFER[:262_144]

# A read of fewer bytes is copied out of the shared buffer before it is looked at.
COPY_BELOW = 32_768

# Seconds that a peer has to take something of what is left for it, or to close; then it is cut.
CLOSE_TIMEOUT = 5.0

# Seconds that all of this may take, for a peer that reads a little now and then.
CLOSE_LIMIT = 120.0


class Leg(asyncio.BufferedProtocol):
    """The sender's or the listener's end of a connection."""

    __slots__ = ("_buffer", "_early", "_farewell", "_paused_reading", "_was_read", "connection", "side", "transport")

    def __init__(self, connection: Connection, side: Side) -> None:
        self.connection = connection
        self.side = side
        # None before the 101 was written and after the transport is gone.
        self.transport: asyncio.Transport | None = None
        # What it reads into.
        self._buffer = RECEIVE_BUFFER
        self._paused_reading = False
        # Since the last look; see `is_lost`. The request head was read too.
        self._was_read = True
        # What came behind the request head, until the other leg can take it.
        self._early = b""
        # Set once the connection has ended and this leg is closing in order.
        self._farewell: Farewell | None = None

    def __repr__(self) -> str:
        state = "waiting" if self.transport is None else "paused" if self._paused_reading else "open"
        if self._farewell is not None:
            state = "closing" if self.transport is not None else "closed"
        return f"<Leg {self.side.name} {state}>"

    @property
    def unsent(self) -> int:
        """Bytes that it holds for its peer."""
        return 0 if self.transport is None else self.transport.get_write_buffer_size()

    def take_over(self, transport: asyncio.Transport, early: bytes) -> None:
        if self.connection.splice.ended is not None:
            # The other leg was lost before this one was there: nobody would ever end it.
            transport.abort()
            return
        self.transport = transport
        transport.set_write_buffer_limits(HIGH_WATER, LOW_WATER)
        enable_keepalive(transport, self.connection.silence_limit)
        if transport.get_extra_info("sslcontext") is None:
            self._buffer = PLAIN_READ
        self._early = early

    def start(self) -> None:
        """The other leg is there too."""
        early, self._early = self._early, b""
        if early:
            self.connection.receive(self.side, early)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        # The splice is faster on bytes where frames are small, and much is better not copied. It keeps no view.
        self._was_read = True
        data = RECEIVE_BUFFER[:nbytes]
        self.connection.receive(self.side, bytes(data) if nbytes < COPY_BELOW else data)

    def eof_received(self) -> bool:
        self.connection.lost(self.side)
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        if self._farewell is not None:
            self._farewell.over()
        self.connection.lost(self.side)

    def look(self) -> None:
        """Cut it when its peer has reset it unseen; to be called about once a second."""
        if self._was_read and self.transport is not None:
            self._was_read = False
            if is_lost(self.transport):
                self.transport.abort()

    def listen_for_life(self, limit: float) -> None:
        """Cut it when its peer's TCP has owed an acknowledgement for so many seconds: it, or its network, is gone.

        The idle timeout does not find that: the other end's pings keep the connection.
        """
        if self.transport is not None and unheard(self.transport) >= limit:
            self.transport.abort()

    def pause_writing(self) -> None:
        self.connection.congested(self.side)

    def resume_writing(self) -> None:
        if self._farewell is None:
            self.connection.relieved(self.side)
        else:
            self._farewell.written()

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

    def write(self, data: Outgoing) -> None:
        """Send to the peer; nothing happens when it is gone."""
        if self.transport is None:
            return
        if isinstance(data, bytes):
            self.transport.write(data)
        else:
            self.transport.writelines(data)

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
        self._farewell = Farewell(transport)
        self._farewell.begin()


class Farewell:
    """Closes a transport in order: what it holds is sent, and what still comes is read and dropped.

    Dropped, and not left unread: a socket that is closed with unread bytes resets the connection, and the peer would
    lose what was sent to it last, the Close with its reason. A peer that takes nothing for `CLOSE_TIMEOUT` is cut.
    The protocol of the transport passes on `resume_writing` and `connection_lost` from now on.
    """

    __slots__ = ("_held", "_limit", "_loop", "_timer", "_transport")

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._loop = asyncio.get_running_loop()
        self._limit = self._loop.time() + CLOSE_LIMIT
        # Bytes that were left to send when the timer was set.
        self._held = transport.get_write_buffer_size()
        self._timer = self._loop.call_later(CLOSE_TIMEOUT, self._look)

    def begin(self) -> None:
        """Say goodbye behind what is held. The protocol already knows this farewell."""
        if self._transport.can_write_eof():
            # The peer answers with its own end.
            end_writing(self._transport)
        elif self._held:
            # TLS cannot end one direction, and closing it leaves a few seconds for what is held: wait for `written`.
            self._transport.set_write_buffer_limits(0)
        else:
            self._transport.close()

    def written(self) -> None:
        """The transport holds less than its limit; under TLS nothing."""
        if not self._transport.can_write_eof():
            self._transport.close()

    def over(self) -> None:
        """The transport is gone."""
        self._timer.cancel()

    def _look(self) -> None:
        held = self._transport.get_write_buffer_size()
        if 0 < held < self._held and self._loop.time() < self._limit:
            self._held = held
            self._timer = self._loop.call_later(CLOSE_TIMEOUT, self._look)
        else:
            self._transport.abort()
