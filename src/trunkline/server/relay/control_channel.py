"""A listener's control channel, seen from the relay: moves bytes and runs the commands of its state machine.

    offer -> ControlChannel.deliver -> RelayControlChannel -> `accept` or `request` on the wire
                                       RelayControlChannel <- `response` -> on_response

It decides nothing: `trunkline.protocol.control_channel` does. Its machine counts in seconds of the loop's clock, also
the expiry of tokens, so that a jump of the wall clock closes no channel.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from trunkline.protocol import control_channel as core
from trunkline.protocol.errors import ConnectionLost, RelayError
from trunkline.protocol.limits import Limits
from trunkline.protocol.messages import Accept, Request, Response
from trunkline.protocol.urls import Action, accept_address, request_address
from trunkline.server.entities.authorization import Grant
from trunkline.server.relay.legs import Farewell
from trunkline.server.relay.listeners import Offer, PlainRequest, Registration
from trunkline.server.relay.sockets import RECEIVE_BUFFER, is_lost

# A listener that has not read this much of its offers is told of no more.
BACKLOG = 1_048_576

# Bytes that are taken in at a time; the rest of a read waits for the next turn of the loop. One read may hold 43,000
# frames, and 8 KiB of the worst take some 10 ms.
SLICE = 8_192


@dataclass(slots=True)
class Facts:
    """What a control channel hangs on."""

    # Names it within the node, for people: short, and no secret.
    id: str
    # Id of the hybrid connection, its name for people, and the host that the listener asked for.
    entity: str
    path: str
    host: str
    tracking_id: str
    # What let it in; replaced when it renews its token.
    grant: Grant
    guid: str | None
    remote: tuple[str, int]
    # `scheme://host:port` that it dialed; its rendezvous go there unless the node has a public URL.
    base_url: str
    # What the client calls itself.
    user_agent: str
    opened_at: float


class ControlChannel(asyncio.BufferedProtocol):
    """The shell around one `RelayControlChannel`.

    Args:
        facts: what it hangs on.
        clock: seconds, monotonic.
        on_token: called with the text of a renewed token; answers by `renewed` or `refused`.
        on_response: called with each response to a plain HTTP request and its body, whether or not one is waited for.
        on_ended: called once when the channel has ended; bytes may still leave.
        on_gone: called once when the transport is gone.
    """

    def __init__(
        self,
        facts: Facts,
        *,
        clock: Callable[[], float],
        on_token: Callable[[ControlChannel, str], None],
        on_response: Callable[[ControlChannel, Response, bytes], None],
        on_ended: Callable[[ControlChannel, core.Ended], None],
        on_gone: Callable[[ControlChannel], None],
    ) -> None:
        self.facts = facts
        # Its state machine. Made when it has its place: no time counts while it waits for one.
        self._machine: core.RelayControlChannel | None = None
        self._clock = clock
        self._on_token = on_token
        self._on_response = on_response
        self._on_ended = on_ended
        self._on_gone = on_gone
        # None before the 101 was written and after the transport is gone.
        self._transport: asyncio.Transport | None = None
        # Since the last look; see `is_lost`. The request head was read too.
        self._was_read = True
        # What was read and is not taken in yet, from `_taken` on; the next turn of the loop goes on with it.
        self._read = b""
        self._taken = 0
        # What was sent in this turn of the loop, and its bytes.
        self._unwritten: list[bytes] = []
        self._unwritten_size = 0
        # The listener does not read what is written.
        self._congested = False
        self._reading = True
        # Set once the transport is being closed in order.
        self._farewell: Farewell | None = None
        # Counted on the way: senders that it was told of, tokens that it sent, bytes of frames with their heads.
        self.offers = 0
        self.renewals = 0
        self.bytes_sent = 0
        self.bytes_received = 0
        # Its place in the directory; set before the 101 is written.
        self.registration: Registration | None = None
        # Commands that are not run yet. Running one may bring more (a token is checked while a batch is run): they go
        # behind those that are there, so that nothing overtakes what was decided before it.
        self._commands: deque[core.Command] = deque()
        self._running = False

    def __repr__(self) -> str:
        return f"<ControlChannel {self.facts.id} {self.facts.path} {self._machine or 'waiting'!r}>"

    # -- what the directory needs

    @property
    def id(self) -> str:
        return self.facts.id

    @property
    def guid(self) -> str | None:
        return self.facts.guid

    @property
    def client(self) -> tuple[str, str, str | None]:
        return (self.facts.remote[0], self.facts.grant.rule, self.facts.guid)

    def deliver(self, offer: Offer) -> bool:
        if self._transport is None or self._transport.get_write_buffer_size() + self._unwritten_size > BACKLOG:
            return False
        try:
            self._run(self._told(offer) if offer.request is None else self._asked(offer, offer.request))
        except ConnectionLost:
            return False
        self.offers += 1
        return True

    def _told(self, offer: Offer) -> list[core.Command]:
        """Of a sender that wants a connection."""
        address = accept_address(
            offer.base_url or self.facts.base_url,
            offer.path,
            offer.suffix,
            offer.query,
            action=Action.ACCEPT,
            id=offer.tracking_id,
            secret=offer.secret,
        )
        return self.machine.offer(Accept(address, offer.tracking_id, offer.headers, offer.remote))

    def _asked(self, offer: Offer, plain: PlainRequest) -> list[core.Command]:
        """Of a plain HTTP request."""
        base = offer.base_url or self.facts.base_url
        address = request_address(base, offer.path, id=offer.tracking_id, secret=offer.secret)
        if plain.body is None:
            return self.machine.request(Request(address, offer.tracking_id), b"")
        request = Request(
            address, offer.tracking_id, plain.target, plain.method, offer.headers, offer.remote, bool(plain.body)
        )
        return self.machine.request(request, plain.body)

    # -- the transport

    def open(self, machine: core.RelayControlChannel) -> None:
        """It has its place, and its handshake is about to be answered."""
        self._machine = machine

    @property
    def is_open(self) -> bool:
        """Whether it has its place; False while it waits for one."""
        return self._machine is not None

    @property
    def machine(self) -> core.RelayControlChannel:
        """Its state machine; there is none before `open`."""
        assert self._machine is not None
        return self._machine

    def take_over(self, transport: asyncio.Transport, early: bytes) -> None:
        self._transport = transport
        transport.set_write_buffer_limits(BACKLOG)
        if early:
            self._take(early)

    def get_buffer(self, sizehint: int) -> memoryview:
        return RECEIVE_BUFFER

    def buffer_updated(self, nbytes: int) -> None:
        self._was_read = True
        self._take(bytes(RECEIVE_BUFFER[:nbytes]))

    def _take(self, data: bytes) -> None:
        """Take in what was read, a slice in each turn of the loop."""
        self.bytes_received += len(data)
        if self._farewell is not None:
            # It is read and dropped.
            return
        if self._read:
            self._read += data
            return
        if len(data) <= SLICE:
            self._run(self.machine.receive(data, self._clock()))
            return
        self._read, self._taken = data, 0
        self._read_on()
        self._take_slice()

    def _take_slice(self) -> None:
        data = self._read[self._taken : self._taken + SLICE]
        self._taken += SLICE
        if self._taken >= len(self._read):
            self._read = b""
        self._run(self.machine.receive(data, self._clock()))
        if self._read:
            asyncio.get_running_loop().call_soon(self._take_slice)
        else:
            self._read_on()

    def _read_on(self) -> None:
        """Read only while nothing waits to be taken in, and the listener takes what is written.

        One that sends pings and reads no pongs would fill the memory. If it never reads, it is silent for the machine,
        and lost.
        """
        wanted = self._farewell is not None or not (self._read or self._congested)
        if self._transport is not None and wanted != self._reading:
            self._reading = wanted
            if wanted:
                self._transport.resume_reading()
            else:
                self._transport.pause_reading()

    def eof_received(self) -> bool:
        return False

    def pause_writing(self) -> None:
        self._congested = True
        self._read_on()

    def resume_writing(self) -> None:
        self._congested = False
        if self._farewell is not None:
            self._farewell.written()
        else:
            self._read_on()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._farewell is not None:
            self._farewell.over()
        self._transport = None
        self._read = b""
        self._run(self.machine.connection_lost(self._clock()))
        self._on_gone(self)

    # -- what the broker asks of it

    def tick(self, now: float) -> None:
        """Look at the clock, and whether the listener is still there; to be called about once a second."""
        if self._was_read and self._transport is not None and not self._read:
            self._was_read = False
            if is_lost(self._transport):
                self.abort()
        self._run(self.machine.tick(now))

    def take_limits(self, limits: Limits) -> None:
        """Other limits of its entity count from now on."""
        self._run(self.machine.take_limits(limits, self._clock()))

    def renewed(self, grant: Grant, expires_at: float) -> None:
        """The renewed token is good until `expires_at`, in seconds of the clock."""
        self.facts.grant = grant
        self._run(self.machine.token_accepted(expires_at, self._clock()))

    def refused(self, error: RelayError) -> None:
        """The renewed token is not good."""
        self._run(self.machine.token_refused(error, self._clock()))

    def close(self, error: RelayError, *, loss: bool) -> None:
        """Close it from this side; `loss` says whether its data connections go with it."""
        self._run(self.machine.close(error, "", self._clock(), loss=loss))

    def abort(self) -> None:
        """Cut it, behind what it was told: a Close may be the last of that."""
        self._write()
        if self._transport is not None:
            self._transport.abort()

    def _run(self, commands: Iterable[core.Command]) -> None:
        self._commands.extend(commands)
        if self._running:
            return
        self._running = True
        try:
            while self._commands:
                self._run_one(self._commands.popleft())
        finally:
            self._running = False

    def _run_one(self, command: core.Command) -> None:
        match command:
            case core.Send(data):
                self._send(data)
            case core.Deliver(response, body):
                self._on_response(self, response, body or b"")
            case core.CheckToken(token):
                self.renewals += 1
                self._on_token(self, token)
            case core.CloseTransport():
                self._close_transport()
            case core.AbortTransport():
                self.abort()
            case core.Ended():
                self._on_ended(self, command)
            case _:
                # What only the listener's end is told.
                pass

    def _send(self, data: bytes) -> None:
        """Write `data` with what else comes in this turn of the loop.

        To write is a call of the system and wakes the listener: with many requests at once, most of what they cost.
        """
        if self._transport is None or self._transport.is_closing():
            return
        self.bytes_sent += len(data)
        if not self._unwritten:
            asyncio.get_running_loop().call_soon(self._write)
        self._unwritten.append(data)
        self._unwritten_size += len(data)

    def _write(self) -> None:
        unwritten, self._unwritten, self._unwritten_size = self._unwritten, [], 0
        if unwritten and self._transport is not None and not self._transport.is_closing():
            self._transport.write(unwritten[0] if len(unwritten) == 1 else b"".join(unwritten))

    def _close_transport(self) -> None:
        self._write()
        if self._transport is not None and self._farewell is None:
            self._farewell = Farewell(self._transport)
            # What still comes is read and dropped.
            self._read = b""
            self._read_on()
            self._farewell.begin()
