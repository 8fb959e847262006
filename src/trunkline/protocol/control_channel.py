"""The control channel: the WebSocket on which a listener is told of senders, seen from either end.

    relay                                          listener
      | offer(accept) ---------- {"accept": ...} ----->| Offered
      | request(request, body) - {"request": ...} ---->|
      | CheckToken <------------ {"renewToken": ...} --| renew(token), after NeedToken
      | ------------------------ {"request": ...} ---->| Requested
      | Deliver <--------------- {"response": ...} ----| respond(response, body)
      | <---------------- Ping, Pong, Close ---------->|

`RelayControlChannel` and `ListenerControlChannel` are the two ends. No I/O: bytes and the passing of time go in
through `receive` and `tick`, commands come out, in the order to run them. All times, the expiry of tokens among them,
are seconds on one clock of the caller's choice; call `tick` about once a second (more often where a limit is
shorter).

How a channel ends. `Ended` comes exactly once, with the first sign of the end: the peer's Close, our own Close, a
violation, silence, or the loss of the transport. From then on the channel offers and delivers nothing; only requests
that were on their way when a listener left in order are delivered until the relay has read that.
`CloseTransport` or `AbortTransport` comes when the socket is to be let go, which after our own Close is when the peer
has answered it or five seconds have passed. A violation by the peer raises nothing: it is one of the ends.
`Ended.loss` says whether the listener was lost or left in order: in order is a Close with 1000, with 1001 or without
a code (hyco-ws sends none), and whatever the relay itself declares to be in order, like its own shutdown.
"""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from collections.abc import Callable

from trunkline.protocol import messages
from trunkline.protocol.causes import Cause, cause_of
from trunkline.protocol.channel_commands import AbortTransport as AbortTransport
from trunkline.protocol.channel_commands import CheckToken as CheckToken
from trunkline.protocol.channel_commands import CloseTransport as CloseTransport
from trunkline.protocol.channel_commands import Command as Command
from trunkline.protocol.channel_commands import Deliver as Deliver
from trunkline.protocol.channel_commands import Ended as Ended
from trunkline.protocol.channel_commands import NeedToken as NeedToken
from trunkline.protocol.channel_commands import Offered as Offered
from trunkline.protocol.channel_commands import Requested as Requested
from trunkline.protocol.channel_commands import Send as Send
from trunkline.protocol.errors import (
    ConnectionLost,
    ExpiredToken,
    HeadersTooLarge,
    InternalError,
    InvalidFrame,
    ProtocolViolation,
    RelayError,
)
from trunkline.protocol.frames import (
    Close,
    Control,
    Masker,
    Message,
    MessageDecoder,
    Opcode,
    close_payload,
    encode_frame,
    encode_message,
    mask_bytes,
    parse_close,
)
from trunkline.protocol.limits import (
    CONTROL_BINARY_LIMIT,
    CONTROL_BODY_LIMIT,
    CONTROL_MESSAGE_LIMIT,
    CONTROL_TEXT_LIMIT,
    HEARTBEAT,
    Limits,
)
from trunkline.protocol.messages import Accept, RenewToken, Request, Response

#: Seconds that the peer has to answer our Close (RFC 6455 section 7.1.1 leaves it to the implementation).
CLOSE_TIMEOUT = 5.0

#: Close codes after which nothing is lost: the listener left in order. None is a Close without a code.
ORDERLY = frozenset((None, 1000, 1001))

#: Seconds, at most and at least, before a token that was asked for and did not come is asked for again.
_ASK_AGAIN = (1.0, 10.0)


class State(enum.Enum):
    """Where one end of a control channel stands."""

    OPEN = "commands travel"
    CLOSING = "this end has sent Close and waits for the peer's"
    CLOSED = "nothing travels any more; the socket is let go"


class Event(enum.Enum):
    """What moves it."""

    CLOSE_SENT = "this end sends Close"
    CLOSE_RECEIVED = "the peer's Close arrives"
    SILENT = "the peer gives no sign of life for too long"
    UNANSWERED = "the peer does not answer our Close in time"
    LOST = "the transport ends"


TRANSITIONS: dict[tuple[State, Event], State] = {
    (State.OPEN, Event.CLOSE_SENT): State.CLOSING,
    (State.OPEN, Event.CLOSE_RECEIVED): State.CLOSED,
    (State.OPEN, Event.SILENT): State.CLOSED,
    (State.OPEN, Event.LOST): State.CLOSED,
    (State.CLOSING, Event.CLOSE_RECEIVED): State.CLOSED,
    (State.CLOSING, Event.UNANSWERED): State.CLOSED,
    (State.CLOSING, Event.LOST): State.CLOSED,
}
"""All that can happen, at either end; see `trunkline.protocol.transitions`. Whatever leaves OPEN gives `Ended`."""


class _End(ABC):
    """What the two ends have in common: frames, the closing handshake, and signs of life.

    Args:
        masked: True when the peer is the WebSocket client, whose frames are masked.
        new_mask: makes the key of each frame sent; None when this end is the WebSocket server.
        frame_limit: bytes of payload of the longest frame sent.
        ping_interval: seconds between pings; 0 = none.
        idle_timeout: seconds of silence after which the peer is lost; 0 = never.
        next_ping_at: when the first ping is due.
        now: seconds.
        masker: the routine that masks and unmasks.
    """

    def __init__(
        self,
        *,
        masked: bool,
        new_mask: Callable[[], bytes] | None,
        frame_limit: int,
        ping_interval: float,
        idle_timeout: float,
        next_ping_at: float,
        now: float,
        masker: Masker,
    ) -> None:
        self.state = State.OPEN
        # When the peer last sent anything at all.
        self.last_received_at = now
        self._decoder = MessageDecoder(
            masked=masked, text_limit=CONTROL_TEXT_LIMIT, binary_limit=CONTROL_BINARY_LIMIT, masker=masker
        )
        self._new_mask = new_mask
        self._masker = masker
        self._frame_limit = frame_limit
        self._ping_interval = ping_interval
        self._idle_timeout = idle_timeout
        # Silence counts from here at the earliest: from the beginning, or from when `idle_timeout` changed.
        self._idle_since = now
        self._next_ping_at = next_ping_at
        # When the first ping was sent after which nothing at all has been received; None: there is none.
        self._unanswered_since: float | None = None
        # When our Close was sent; of no meaning while OPEN.
        self._closing_since = now

    # -- events

    def receive(self, data: bytes | memoryview, now: float) -> list[Command]:
        """Bytes arrived. Anything at all is a sign of life, a lone Pong too.

        Of several pings, the newest is answered (RFC 6455 section 5.5.3).
        """
        if self.state is State.CLOSED:
            return []
        if data:
            self.last_received_at = now
            self._unanswered_since = None
        commands: list[Command] = []
        ping: Control | None = None
        try:
            for item in self._decoder.feed(data):
                if isinstance(item, Message):
                    commands += self._data(item, now)
                elif item.opcode is Opcode.PING:
                    ping = item
                elif item.opcode is Opcode.CLOSE:
                    commands += self._pong(ping)
                    commands += self._peer_closed(item.payload)
        except ProtocolViolation as violation:
            commands += self._pong(ping)
            commands += self._violated(violation, now)
        else:
            commands += self._pong(ping)
        return commands

    def tick(self, now: float) -> list[Command]:
        """Time has passed."""
        if self.state is State.CLOSING and now - self._closing_since > CLOSE_TIMEOUT:
            self._happens(Event.UNANSWERED)
            return [AbortTransport()]
        if self.state is not State.OPEN:
            return []
        if self._is_silent(now):
            return self._give_up(now)
        return self._due(now) + self._ping(now)

    def connection_lost(self, now: float) -> list[Command]:
        """The transport ended, by the peer, by the network, or because a command asked for it."""
        was = self.state
        self._happens(Event.LOST)
        lost = Ended(True, None, "The transport ended without a Close frame", Cause.LOST)
        return [lost] if was is State.OPEN else []

    # -- what each end decides for itself

    @abstractmethod
    def _message(self, message: Message, now: float) -> list[Command]:
        """A whole message, while OPEN. May raise ProtocolViolation."""

    @abstractmethod
    def _due(self, now: float) -> list[Command]:
        """What the time makes necessary while OPEN."""

    @abstractmethod
    def _give_up(self, now: float) -> list[Command]:
        """The peer is silent: leave OPEN for CLOSED."""

    @abstractmethod
    def _answer_to(self, close: Close) -> bytes:
        """The payload of the Close frame that answers the peer's."""

    @abstractmethod
    def _reason(self, error: RelayError) -> str:
        """What the peer is told about `error` in a Close frame."""

    # -- inside

    def _happens(self, event: Event) -> bool:
        """Change the state by the table; False when the event came too late to matter."""
        after = TRANSITIONS.get((self.state, event))
        if after is None:
            return False
        self.state = after
        return True

    def _data(self, message: Message, now: float) -> list[Command]:
        if self.state is not State.OPEN:
            return []
        try:
            return self._message(message, now)
        except ProtocolViolation as violation:
            # The frames are in order and are read on, so that the peer's Close is seen.
            return self._violated(violation, now)

    def _violated(self, violation: ProtocolViolation, now: float) -> list[Command]:
        # While CLOSING it changes nothing: all that is awaited is the end of the transport.
        return self._close(violation.close_code, self._reason(violation), now, Cause.PROTOCOL_ERROR, loss=True)

    def _pong(self, ping: Control | None) -> list[Command]:
        if ping is None or self.state is not State.OPEN:
            return []
        return [self._frame(Opcode.PONG, ping.payload)]

    def _peer_closed(self, payload: bytes) -> list[Command]:
        was = self.state
        self._happens(Event.CLOSE_RECEIVED)
        if was is State.CLOSING:
            return [CloseTransport()]
        try:
            close = parse_close(payload)
        except InvalidFrame as violation:
            reason = self._reason(violation)
            answer = close_payload(violation.close_code, reason)
            ended = Ended(True, violation.close_code, reason, Cause.PROTOCOL_ERROR)
        else:
            answer = self._answer_to(close)
            loss = close.code not in ORDERLY
            ended = Ended(loss, close.code, close.reason, Cause.CLOSED_WITH_ERROR if loss else Cause.CLOSED)
        return [self._frame(Opcode.CLOSE, answer), CloseTransport(), ended]

    def _close(self, code: int, reason: str, now: float, cause: Cause, *, loss: bool) -> list[Command]:
        if not self._happens(Event.CLOSE_SENT):
            return []
        self._closing_since = now
        return [self._frame(Opcode.CLOSE, close_payload(code, reason)), Ended(loss, code, reason, cause)]

    def _is_silent(self, now: float) -> bool:
        if not self._idle_timeout or now - max(self.last_received_at, self._idle_since) < self._idle_timeout:
            return False
        if not 0 < self._ping_interval < self._idle_timeout:
            return True
        # Where pings keep a healthy peer alive, one must have gone unanswered, and for as long as it usually has.
        # After this process itself stood still (a suspended machine), the silence is not the peer's.
        fair = self._idle_timeout - self._ping_interval
        return self._unanswered_since is not None and now - self._unanswered_since >= fair

    def _ping(self, now: float) -> list[Command]:
        if self.state is not State.OPEN or not self._ping_interval or now < self._next_ping_at:
            return []
        if self._unanswered_since is None:
            self._unanswered_since = now
        # Kept in step, so that channels spread over the interval stay spread; after a pause, one ping is enough.
        self._next_ping_at += self._ping_interval
        if self._next_ping_at <= now:
            self._next_ping_at = now + self._ping_interval
        return [self._frame(Opcode.PING)]

    def _frame(self, opcode: Opcode, payload: bytes = b"") -> Send:
        mask = self._new_mask() if self._new_mask else None
        return Send(encode_frame(opcode, payload, mask=mask, masker=self._masker))

    def _command(self, command: Accept | Request | RenewToken | Response, *, made_of: str) -> Send:
        """One control command as a TEXT message. `made_of` says what makes it long, if it is too long.

        Raises:
            HeadersTooLarge: it is longer than the clients can read; nothing was sent.
        """
        payload = messages.encode(command).encode()
        if len(payload) > CONTROL_MESSAGE_LIMIT:
            size = f"{len(payload)} bytes, and {CONTROL_MESSAGE_LIMIT} is the limit"
            raise HeadersTooLarge(f"{made_of} is too long for a control message: {size}")
        limit, new_mask = self._frame_limit, self._new_mask
        return Send(encode_message(Opcode.TEXT, payload, frame_limit=limit, new_mask=new_mask, masker=self._masker))


class RelayControlChannel(_End):
    """The relay's end. The listener is the WebSocket client.

    Args:
        limits: of the hybrid connection.
        expires_at: when the listener's token expires.
        now: seconds.
        tracking_id: of the channel; stands in the reason of every Close frame.
        ping_phase: 0 up to 1, which part of the interval the first ping comes early; spreads the pings of many
            channels that opened at once.
        masker: the routine that unmasks.
    """

    def __init__(
        self,
        *,
        limits: Limits,
        expires_at: float,
        now: float,
        tracking_id: str,
        ping_phase: float = 0.0,
        masker: Masker = mask_bytes,
    ) -> None:
        super().__init__(
            masked=True,
            new_mask=None,
            frame_limit=min(limits.frame_limit, CONTROL_MESSAGE_LIMIT),
            ping_interval=limits.ping_interval,
            idle_timeout=limits.control_idle_timeout,
            next_ping_at=now + limits.ping_interval * (1.0 - ping_phase),
            now=now,
            masker=masker,
        )
        self.tracking_id = tracking_id
        self._ping_phase = ping_phase
        # When the token in force expires; the channel outlives it by the grace, for a renewal on its way.
        self.expires_at = expires_at
        # Those of the hybrid connection as they count now.
        self.limits = limits
        # A response whose body has not come yet: the next binary message is it.
        self._body_due: Response | None = None

    def __repr__(self) -> str:
        waiting = f" body_due={self._body_due.request_id!r}" if self._body_due is not None else ""
        return f"<RelayControlChannel {self.tracking_id!r} {self.state.name} expires_at={self.expires_at:.0f}{waiting}>"

    def offer(self, accept: Accept) -> list[Command]:
        """Tell the listener of a sender.

        Raises:
            HeadersTooLarge: the sender's headers make a command that no client could read. Nothing is sent.
            ConnectionLost: the channel has ended; choose another listener.
        """
        if self.state is not State.OPEN:
            raise ConnectionLost("ConnectionLost: The listener's control channel has ended")
        return [self._command(accept, made_of="The request with its address and headers")]

    def request(self, request: Request, body: bytes) -> list[Command]:
        """Tell the listener of a plain HTTP request, and send its body behind it.

        Both in one piece, because clients take the message behind a request for its body whatever it is (hyco-https).

        Args:
            request: whole, with `body` true if there is one; or its address and id alone.
            body: the whole body.

        Raises:
            HeadersTooLarge, ConnectionLost: as `offer`.
        """
        if self.state is not State.OPEN:
            raise ConnectionLost("ConnectionLost: The listener's control channel has ended")
        command = self._command(request, made_of="The request with its address and headers").data
        behind = encode_message(Opcode.BINARY, body, frame_limit=self._frame_limit) if request.body else b""
        return [Send(command + behind)]

    def take_limits(self, limits: Limits, now: float) -> list[Command]:
        """Other limits count from now on.

        Silence counts anew where `control_idle_timeout` is another, and pings stay as spread as they were where
        `ping_interval` is: a change alone ends no channel, except one whose token is past the new `token_grace`.
        """
        self._frame_limit = min(limits.frame_limit, CONTROL_MESSAGE_LIMIT)
        self.limits = limits
        if limits.control_idle_timeout != self._idle_timeout:
            self._idle_timeout = limits.control_idle_timeout
            self._idle_since = now
        if limits.ping_interval != self._ping_interval:
            self._ping_interval = limits.ping_interval
            self._next_ping_at = now + limits.ping_interval * (1.0 - self._ping_phase)
            self._unanswered_since = None
        return self.tick(now)

    def token_accepted(self, expires_at: float, now: float) -> list[Command]:
        """The new token is good, until `expires_at`. The newest one counts, also when it expires sooner."""
        if self.state is not State.OPEN:
            return []
        self.expires_at = expires_at
        return self._due(now)

    def token_refused(self, error: RelayError, now: float) -> list[Command]:
        """The new token is not good.

        The channel is closed with 1008 at once (Azure Relay protocol page). The Java client always gets there: what it
        sends as a renewal is the name of an object, and it reconnects with a good token.
        """
        return self._close(1008, self._reason(error), now, Cause.TOKEN_REFUSED, loss=True)

    def close(self, why: RelayError | int, reason: str, now: float, *, loss: bool) -> list[Command]:
        """Close the channel from this side.

        Args:
            why: the error, or a close code.
            reason: words to use instead of the error's own; "" for those. The tracking id is added.
            now: seconds.
            loss: whether the data connections of the listener go with it, where the entity says `teardown`.

        Raises:
            ValueError: a code that hyco-ws (ws 1.x) takes for a protocol error: it knows 1000-1003, 1007-1011 and
                3000-4999.
        """
        code = why if isinstance(why, int) else why.close_code
        if not _is_known_everywhere(code):
            raise ValueError(f"{code} is not a close code that every client knows")
        cause = Cause.DISCONNECTED if isinstance(why, int) else cause_of(why)
        if reason or isinstance(why, int):
            why = RelayError(reason or "The relay closes the control channel")
        return self._close(code, self._reason(why), now, cause, loss=loss)

    def _message(self, message: Message, now: float) -> list[Command]:
        if message.opcode is Opcode.BINARY:
            if self._body_due is None:
                # hyco-https sends an empty one after a response without a body.
                return []
            response, self._body_due = self._body_due, None
            return [Deliver(response, message.payload)]
        command = messages.parse_from_listener(message.payload.decode())
        if isinstance(command, RenewToken):
            return [CheckToken(command.token)]
        if isinstance(command, Response):
            if self._body_due is not None:
                # To go on would be to deliver one request's body as another's.
                raise ProtocolViolation("A response came where the body of the one before it was due")
            if not command.body:
                return [Deliver(command, None)]
            self._body_due = command
        return []

    def _due(self, now: float) -> list[Command]:
        if now <= self.expires_at + self.limits.token_grace:
            return []
        return self._close(1008, self._reason(ExpiredToken()), now, Cause.TOKEN_EXPIRED, loss=True)

    def _give_up(self, now: float) -> list[Command]:
        error = InternalError(f"Nothing was received for {now - self.last_received_at:.0f} seconds")
        reason = self._reason(error)
        self._happens(Event.SILENT)
        farewell = self._frame(Opcode.CLOSE, close_payload(error.close_code, reason))
        return [farewell, AbortTransport(), Ended(True, error.close_code, reason, Cause.SILENT)]

    def _answer_to(self, close: Close) -> bytes:
        # Always a code: .NET reads CloseStatus without looking whether there is one.
        code = close.code if close.code is not None and _is_known_everywhere(close.code) else 1000
        return close_payload(code, self._reason(RelayError("The listener closed the control channel")))

    def _reason(self, error: RelayError) -> str:
        return error.close_reason(self.tracking_id)


class ListenerControlChannel(_End):
    """The listener's end. The relay is the WebSocket server.

    Args:
        now: seconds.
        expires_at: when the token that opened the channel expires; None if it is not known, and then no new one is
            ever asked for.
        new_mask: makes 4 random bytes, the mask key of one frame.
        heartbeat: seconds between pings. A relay that sends nothing for two of them is lost; 0 = neither.
        renew_margin: seconds before the expiry at which a new token is asked for, but not in the first half of the
            token's life.
        masker: the routine that masks.
    """

    def __init__(
        self,
        *,
        now: float,
        expires_at: float | None,
        new_mask: Callable[[], bytes],
        heartbeat: float = HEARTBEAT,
        renew_margin: float,
        masker: Masker = mask_bytes,
    ) -> None:
        super().__init__(
            masked=False,
            new_mask=new_mask,
            frame_limit=CONTROL_MESSAGE_LIMIT,
            ping_interval=heartbeat,
            idle_timeout=2 * heartbeat,
            next_ping_at=now + heartbeat,
            now=now,
            masker=masker,
        )
        self._renew_margin = renew_margin
        # When the token in force expires; None: not known.
        self.expires_at = expires_at
        # When a new token is to be asked for; infinite when never.
        self._renew_at = self._time_to_renew(now)
        # A request whose body has not come yet: the next message is it.
        self._body_due: Request | None = None
        # This end has closed in order.
        self._leaving = False

    def __repr__(self) -> str:
        expiry = "" if self.expires_at is None else f" expires_at={self.expires_at:.0f}"
        waiting = f" body_due={self._body_due.id!r}" if self._body_due is not None else ""
        return f"<ListenerControlChannel {self.state.name}{expiry}{waiting}>"

    def renew(self, token: str, expires_at: float | None, now: float) -> list[Command]:
        """Present a new token to the relay. It answers only if it refuses: by closing with 1008.

        Raises:
            HeadersTooLarge: the token is longer than a control command may be. Nothing is sent.
        """
        if self.state is not State.OPEN:
            return []
        send = self._command(RenewToken(token), made_of="The token")
        self.expires_at = expires_at
        self._renew_at = self._time_to_renew(now)
        return [send]

    def respond(self, response: Response, body: bytes) -> list[Command]:
        """Answer a request. What the relay does not know any more, it ignores.

        Args:
            response: its `body` says whether `body` is sent; an empty one may be.
            body: at most CONTROL_BODY_LIMIT bytes; a longer one takes the rendezvous.

        Raises:
            HeadersTooLarge: the headers are longer than a control command may be. Nothing is sent.
            ConnectionLost: the channel has ended, and the relay has given the request up with it.
        """
        if self.state is not State.OPEN:
            raise ConnectionLost("ConnectionLost: The control channel has ended")
        assert len(body) <= CONTROL_BODY_LIMIT and (response.body or not body)
        head = self._command(response, made_of="The answer with its headers")
        # In one piece: nothing but control frames may come between the two.
        return [Send(head.data + self._frame(Opcode.BINARY, body).data)] if response.body else [head]

    def close(self, now: float) -> list[Command]:
        """Leave in order. Offers that are still on their way here go to another listener.

        A request is told to no other listener, because this one may have acted on it. Those on their way are delivered,
        and can be answered by their rendezvous.
        """
        self._leaving = True
        return self._close(1000, "The listener closes", now, Cause.CLOSED, loss=False)

    def _data(self, message: Message, now: float) -> list[Command]:
        if self.state is State.CLOSING and self._leaving:
            try:
                return [each for each in self._message(message, now) if isinstance(each, Requested)]
            except ProtocolViolation:
                self._leaving = False
        return super()._data(message, now)

    def _message(self, message: Message, now: float) -> list[Command]:
        due, self._body_due = self._body_due, None
        if message.opcode is Opcode.BINARY:
            # One that nothing announced is ignored, as the relay ignores it.
            return [] if due is None else [Requested(due, message.payload)]
        if due is not None:
            # To go on would be to take one request's body for another's.
            raise ProtocolViolation("A command came where the body of the request before it was due")
        command = messages.parse_from_relay(message.payload.decode())
        if isinstance(command, Accept):
            return [Offered(command)]
        if isinstance(command, Request):
            if not command.body:
                return [Requested(command, None)]
            self._body_due = command
        return []

    def _due(self, now: float) -> list[Command]:
        if self.expires_at is None or now < self._renew_at:
            return []
        shortest, longest = _ASK_AGAIN
        remaining = self.expires_at - now
        self._renew_at = now + (min(longest, max(shortest, remaining / 2)) if remaining > 0 else longest)
        return [NeedToken()]

    def _give_up(self, now: float) -> list[Command]:
        self._happens(Event.SILENT)
        reason = f"Nothing was received for {now - self.last_received_at:.0f} seconds"
        return [AbortTransport(), Ended(True, None, reason, Cause.SILENT)]

    def _answer_to(self, close: Close) -> bytes:
        return close_payload(close.code)

    def _reason(self, error: RelayError) -> str:
        return error.message

    def _time_to_renew(self, now: float) -> float:
        if self.expires_at is None:
            return float("inf")
        # A token that hardly outlives the margin, or does not, is renewed at half of what remains of it; or else each
        # new one would be due at once.
        return max(self.expires_at - self._renew_margin, (now + self.expires_at) / 2)


def _is_known_everywhere(code: int) -> bool:
    """True for the close codes that every client takes: .NET and hyco-ws fail on 1012 to 1015."""
    return 1000 <= code <= 1003 or 1007 <= code <= 1011 or 3000 <= code <= 4999
