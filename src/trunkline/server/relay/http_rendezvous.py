"""The WebSocket by which a listener fetches a plain HTTP request or answers it: moves bytes, decides nothing.

transport -> HttpLeg -> HttpRendezvous -> the owner (`HttpRelay`), which is told what came
transport <- HttpLeg <- HttpRendezvous <- the owner
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Protocol

from trunkline.protocol import http_rendezvous as core
from trunkline.protocol.control_channel import AbortTransport, CloseTransport, Send
from trunkline.protocol.messages import Request, Response
from trunkline.server.relay.legs import HIGH_WATER, LOW_WATER, PLAIN_READ, Farewell
from trunkline.server.relay.sockets import RECEIVE_BUFFER, enable_keepalive, is_lost, unheard

# Bytes that are taken in at a time where it is not known how many frames they hold, and how often in one turn of the
# loop: the worst of 8 KiB (empty frames) take some 5 ms. What is the rest of one frame is taken in whole.
SLICE = 8_192
SLICES = 2

# Seconds between two looks at the peer's TCP.
LISTEN_EVERY = 5.0


class Owner(Protocol):
    """Whose rendezvous it is. `rendezvous_ended` comes once, and nothing after it."""

    def rendezvous_response(self, response: Response) -> None:
        """The response came."""

    def rendezvous_body(self, data: bytes, end: bool) -> None:
        """A piece of its body came."""

    def rendezvous_is_slow(self, slow: bool) -> None:
        """The listener takes no more, or takes it again."""

    def rendezvous_ended(self) -> None:
        """It is over."""


class HttpLeg(asyncio.BufferedProtocol):
    """The shell around one `HttpRendezvous`.

    Args:
        machine: its state machine, the relay's end.
        owner: is told what comes.
        clock: seconds, monotonic.
        on_gone: called once when the transport is gone.
    """

    __slots__ = (
        "_buffer",
        "_clock",
        "_early",
        "_farewell",
        "_is_paused",
        "_is_wanted",
        "_listen_at",
        "_machine",
        "_on_gone",
        "_owner",
        "_rest",
        "_transport",
        "_was_read",
    )

    def __init__(
        self,
        machine: core.HttpRendezvous,
        owner: Owner,
        *,
        clock: Callable[[], float],
        on_gone: Callable[[HttpLeg], None],
    ) -> None:
        self._machine = machine
        # None when it has been told the end.
        self._owner: Owner | None = owner
        self._clock = clock
        self._on_gone = on_gone
        self._transport: asyncio.Transport | None = None
        # What it reads into.
        self._buffer = RECEIVE_BUFFER
        # What came behind the request head.
        self._early = b""
        # What was read and is not taken in yet; the next turn of the loop goes on with it.
        self._rest = b""
        # Whether the owner wants more, and whether the transport is paused.
        self._is_wanted = True
        self._is_paused = False
        # Since the last look; see `is_lost`.
        self._was_read = True
        self._listen_at = clock()
        # Set once the transport is being closed in order.
        self._farewell: Farewell | None = None

    def __repr__(self) -> str:
        return f"<HttpLeg {self._machine!r}{' paused' if self._is_paused else ''}>"

    # -- what the owner asks of it

    def send_request(self, request: Request) -> None:
        """Send the request. Raises HeadersTooLarge."""
        self._run(self._machine.command(request, self._clock()))

    def send_body(self, data: bytes, end: bool) -> None:
        """Send a piece of its body."""
        self._run(self._machine.body(data, self._clock(), end=end))

    def start(self) -> None:
        """All is sent that comes before anything is read."""
        early, self._early = self._early, b""
        if early:
            self._take(early)

    def pause(self) -> None:
        """Tell of no more for now."""
        self._is_wanted = False
        self._read_or_not()

    def resume(self) -> None:
        """Tell again."""
        if not self._is_wanted:
            self._is_wanted = True
            if self._rest:
                asyncio.get_running_loop().call_soon(self._go_on)
            self._read_or_not()

    def close(self, code: int, reason: str) -> None:
        """Send Close."""
        self._run(self._machine.close(code, reason, self._clock()))

    def abort(self) -> None:
        """Cut it."""
        if self._transport is not None:
            self._transport.abort()

    def tick(self, now: float) -> None:
        """Look at the clock, and whether the listener is still there; to be called about once a second."""
        transport = self._transport
        if transport is None:
            return
        if self._was_read and not self._rest:
            self._was_read = False
            if is_lost(transport):
                transport.abort()
        silence = None
        if now >= self._listen_at:
            # Seldom, as it costs a system call.
            self._listen_at = now + LISTEN_EVERY
            silence = unheard(transport)
        self._run(self._machine.tick(now, unheard=silence))

    # -- the transport

    def take_over(self, transport: asyncio.Transport, early: bytes) -> None:
        self._transport = transport
        transport.set_write_buffer_limits(HIGH_WATER, LOW_WATER)
        enable_keepalive(transport)
        if transport.get_extra_info("sslcontext") is None:
            self._buffer = PLAIN_READ
        self._early = early

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        self._was_read = True
        self._take(bytes(RECEIVE_BUFFER[:nbytes]))

    def eof_received(self) -> bool:
        return False

    def pause_writing(self) -> None:
        if self._owner is not None:
            self._owner.rendezvous_is_slow(True)

    def resume_writing(self) -> None:
        if self._farewell is not None:
            self._farewell.written()
        elif self._owner is not None:
            self._owner.rendezvous_is_slow(False)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._farewell is not None:
            self._farewell.over()
        self._transport = None
        self._rest = b""
        self._run(self._machine.connection_lost(self._clock()))
        self._on_gone(self)

    # -- inside

    def _take(self, data: bytes) -> None:
        if self._farewell is not None:
            # It is read and dropped.
            return
        if self._rest:
            self._rest += data
            return
        self._rest = data
        self._go_on()

    def _go_on(self) -> None:
        """Take in what was read, not too many frames in one turn of the loop."""
        slices = 0
        while self._rest and (self._is_wanted or self._owner is None):
            size = self._machine.remaining
            if size < SLICE:
                if slices == SLICES:
                    asyncio.get_running_loop().call_soon(self._go_on)
                    break
                slices += 1
                size = SLICE
            data, self._rest = self._rest[:size], self._rest[size:]
            self._run(self._machine.receive(data, self._clock()))
        self._read_or_not()

    def _read_or_not(self) -> None:
        """Read only while nothing waits, and the owner wants more."""
        wanted = self._farewell is not None or (not self._rest and (self._is_wanted or self._owner is None))
        transport = self._transport
        if transport is not None and wanted == self._is_paused and not transport.is_closing():
            self._is_paused = not wanted
            if wanted:
                transport.resume_reading()
            else:
                transport.pause_reading()

    def _run(self, commands: Sequence[core.Command]) -> None:
        for command in commands:
            owner = self._owner
            match command:
                case core.BodyPart(data, end):
                    if owner is not None:
                        owner.rendezvous_body(bytes(data), end)
                case Send(data):
                    if self._transport is not None and not self._transport.is_closing():
                        self._transport.write(data)
                case core.Received(Response() as response):
                    if owner is not None:
                        owner.rendezvous_response(response)
                case CloseTransport():
                    self._close_transport()
                case AbortTransport():
                    self.abort()
                case core.Ended():
                    self._owner = None
                    if owner is not None:
                        owner.rendezvous_ended()
                    if self._rest:
                        # The owner did not want it; the peer's Close may be behind it.
                        asyncio.get_running_loop().call_soon(self._go_on)
                    self._read_or_not()

    def _close_transport(self) -> None:
        if self._transport is not None and self._farewell is None:
            self._farewell = Farewell(self._transport)
            self._rest = b""
            self._read_or_not()
            self._farewell.begin()
