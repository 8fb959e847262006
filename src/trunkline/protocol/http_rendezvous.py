"""The HTTP rendezvous: the WebSocket on which a listener fetches a large request, or gives a large answer.

    relay                                          listener
      |<------------------------------ upgrade --------| to the address of a `request` command
      | command(request), body(...) ------------------>| Received, BodyPart, BodyPart ... (after the short form)
      | Received, BodyPart ... <----------- response --| command(response), body(...)
      | <---------------- Ping, Pong, Close ---------->|

Each direction carries at most one command, a TEXT message, and behind it, if the command says so, one BINARY message
with the body, in any number of fragments. `HttpRendezvous` is either end. It is cut-through: a fragment leaves as it
arrives, whatever follows, so that server-sent events are not held back and no body is ever held.

How clients end a body (seen in all three): .NET with an empty last fragment, hyco-https with a last fragment that may
be empty, Java with no last fragment at all but a Close with 1000 in the middle of the message. So that is an end too,
of an answer; a relay ends the body of a request with its last fragment, and a part of an upload is not the whole.

The closing handshake is that of `trunkline.protocol.control_channel`, with its states. A Close ends both directions:
nobody half-closes here. No I/O: bytes and times go in, commands come out, in the order to run them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from trunkline.protocol import messages
from trunkline.protocol.control_channel import (
    CLOSE_TIMEOUT,
    TRANSITIONS,
    AbortTransport,
    CloseTransport,
    Event,
    Send,
    State,
)
from trunkline.protocol.errors import (
    HeadersTooLarge,
    InvalidFrame,
    InvalidMessage,
    MessageTooLarge,
    ProtocolViolation,
)
from trunkline.protocol.frames import (
    Control,
    Data,
    FrameDecoder,
    Masker,
    Opcode,
    close_payload,
    encode_frame,
    encode_message,
    is_utf8,
    mask_bytes,
    parse_close,
)
from trunkline.protocol.limits import CONTROL_MESSAGE_LIMIT, CONTROL_TEXT_LIMIT
from trunkline.protocol.messages import Request, Response

#: Seconds of silence that TCP is allowed however short the heartbeat: acknowledgements are delayed, lost and repeated.
_SILENCE_AT_LEAST = 5.0


@dataclass(frozen=True, slots=True)
class Received:
    """The peer's command. If its `body` is true, `BodyPart`s follow."""

    command: Request | Response


@dataclass(frozen=True, slots=True)
class BodyPart:
    """A piece of the peer's body, as it came; empty only where `end` is true. `end`: the body is whole."""

    data: bytes = field(repr=False)
    end: bool


@dataclass(frozen=True, slots=True)
class Ended:
    """The rendezvous is over. Exactly one, ever, with the first sign of the end: either end's Close, or a loss.

    `code` and `reason`: of the Close frame that ended it, the peer's or ours; `code` is None when there was none or it
    held none. `clean`: all that the peer had begun to send was whole. Nothing is received after it.
    """

    code: int | None
    reason: str
    clean: bool


Command = Send | Received | BodyPart | CloseTransport | AbortTransport | Ended


class HttpRendezvous:
    """One end of the WebSocket of one request.

    Args:
        masked: True at the relay's end, whose peer is the WebSocket client; False at the listener's.
        now: seconds, of the clock that all later times are of.
        tracking_id: of the request; stands in the reason of a Close frame after a violation.
        frame_limit: bytes of payload of the longest frame sent.
        new_mask: makes the key of each frame sent, at the listener's end; None at the relay's.
        heartbeat: seconds in which nothing was sent after which a ping is due; 0 for none.
        masker: the routine that masks and unmasks.
    """

    def __init__(
        self,
        *,
        masked: bool,
        now: float,
        tracking_id: str,
        frame_limit: int,
        new_mask: Callable[[], bytes] | None = None,
        heartbeat: float = 0,
        masker: Masker = mask_bytes,
    ) -> None:
        assert masked == (new_mask is None), "the frames of the WebSocket client are masked, and no others"
        self.state = State.OPEN
        self.tracking_id = tracking_id
        self._masked = masked
        self._decoder = FrameDecoder(masked=masked, masker=masker)
        self._frame_limit = frame_limit
        self._new_mask = new_mask
        self._masker = masker
        self._heartbeat = heartbeat
        self._last_sent = now
        # When our Close was sent; of no meaning while OPEN.
        self._closing_since = now
        # The peer's command so far, until it is whole.
        self._text = bytearray()
        # The peer's command has come, and its body is due.
        self._commanded = False
        self._body_due = False
        # What was sent of our own: the command, and whether its body is awaited, begun, over.
        self._sent_command = False
        self._body_open = False
        self._body_begun = False

    def __repr__(self) -> str:
        end = "relay" if self._masked else "listener"
        return f"<HttpRendezvous {end} {self.tracking_id!r} {self.state.name} body_due={self._body_due}>"

    @property
    def remaining(self) -> int:
        """Bytes that the frame which is being received still has: these are taken in at once, however many they are."""
        return self._decoder.remaining

    # -- events

    def receive(self, data: bytes | memoryview, now: float) -> list[Command]:
        """Bytes arrived. Of several pings, the newest is answered (RFC 6455 section 5.5.3)."""
        if self.state is State.CLOSED:
            return []
        commands: list[Command] = []
        ping: bytes | None = None
        try:
            for item in self._decoder.feed(data):
                if isinstance(item, Data):
                    commands += self._data(item, now)
                elif item.opcode is Opcode.PING:
                    ping = item.payload
                elif item.opcode is Opcode.CLOSE:
                    commands += self._pong(ping, now)
                    commands += self._peer_closed(item, now)
        except ProtocolViolation as violation:
            commands += self._pong(ping, now)
            commands += self._violated(violation, now)
        else:
            commands += self._pong(ping, now)
        return commands

    def tick(self, now: float, *, unheard: float | None = None) -> list[Command]:
        """Time has passed: a ping if one is due, which keeps NATs and load balancers from ending a silent answer.

        A pong is not waited for: a .NET peer answers only while its application reads, and a peer that holds back the
        body does not read our ping either. What must come is TCP's own acknowledgement of it.

        Args:
            now: seconds.
            unheard: seconds for which the peer's TCP has owed an acknowledgement; None where that is not known.
        """
        if self.state is State.CLOSING and now - self._closing_since > CLOSE_TIMEOUT:
            self._happens(Event.UNANSWERED)
            return [AbortTransport()]
        if self.state is not State.OPEN or not self._heartbeat:
            return []
        if unheard is not None and unheard >= max(2 * self._heartbeat, _SILENCE_AT_LEAST):
            self._happens(Event.SILENT)
            return [AbortTransport(), Ended(None, f"Nothing was heard from the peer for {unheard:.0f} seconds", False)]
        return [self._frame(Opcode.PING, b"", now)] if now - self._last_sent >= self._heartbeat else []

    def connection_lost(self, now: float) -> list[Command]:
        """The transport ended, by the peer, by the network, or because a command asked for it."""
        was = self.state
        self._happens(Event.LOST)
        return [Ended(None, "The transport ended without a Close frame", False)] if was is State.OPEN else []

    # -- what this end says

    def command(self, command: Request | Response, now: float) -> list[Command]:
        """Send our command; if its `body` is true, call `body` until that has ended. Nothing after the end.

        Raises:
            HeadersTooLarge: it is longer than the clients can read. Nothing was sent.
        """
        assert not self._sent_command, "one command goes each way"
        payload = messages.encode(command).encode()
        if len(payload) > CONTROL_MESSAGE_LIMIT:
            size = f"{len(payload)} bytes, and {CONTROL_MESSAGE_LIMIT} is the limit"
            raise HeadersTooLarge(f"The command with its headers is too long for a rendezvous: {size}")
        self._sent_command = True
        self._body_open = bool(command.body)
        if self.state is not State.OPEN:
            return []
        self._last_sent = now
        limit = self._frame_limit
        return [
            Send(encode_message(Opcode.TEXT, payload, frame_limit=limit, new_mask=self._new_mask, masker=self._masker))
        ]

    def body(self, data: bytes | memoryview, now: float, *, end: bool) -> list[Command]:
        """Send a piece of our body, at once, as fragments of at most the frame limit. Nothing after the end."""
        assert self._body_open, "a body follows a command that announces it, and ends once"
        self._body_open = not end
        if self.state is not State.OPEN or not (data or end):
            return []
        size = len(data)
        if size <= self._frame_limit:
            return [self._fragment(data, now, end)]
        view = memoryview(data)
        return [
            self._fragment(view[start : start + self._frame_limit], now, end and start + self._frame_limit >= size)
            for start in range(0, size, self._frame_limit)
        ]

    def close(self, code: int, reason: str, now: float) -> list[Command]:
        """Close from this side: 1000 after all was said, 1001 when the sender is gone, 1011 when something failed."""
        return self._close(code, reason, now, clean=True)

    # -- inside

    def _data(self, item: Data, now: float) -> list[Command]:
        if self.state is not State.OPEN:
            return []
        try:
            return self._command_text(item) if item.opcode is Opcode.TEXT else self._body_part(item)
        except ProtocolViolation as violation:
            # The frames are in order and are read on, so that the peer's Close is seen.
            return self._violated(violation, now)

    def _command_text(self, item: Data) -> list[Command]:
        if self._commanded:
            raise ProtocolViolation("A second command came on one rendezvous")
        if len(self._text) + len(item.payload) + self._decoder.remaining > CONTROL_TEXT_LIMIT:
            raise MessageTooLarge(f"A TEXT message is longer than {CONTROL_TEXT_LIMIT} bytes")
        self._text += item.payload
        if not item.end:
            return []
        payload = bytes(self._text)
        self._text.clear()
        if not is_utf8(payload):
            raise InvalidMessage("A TEXT message is not UTF-8")
        text = payload.decode()
        command = messages.parse_from_listener(text) if self._masked else messages.parse_from_relay(text)
        if command is None:
            return []
        if not isinstance(command, Request | Response):
            raise ProtocolViolation("A command came that has no place on a rendezvous")
        self._commanded = True
        self._body_due = bool(command.body)
        return [Received(command)]

    def _body_part(self, item: Data) -> list[Command]:
        if self._body_due:
            self._body_due = not item.end
            return [BodyPart(item.payload, item.end)] if item.payload or item.end else []
        if self._commanded and not item.payload:
            # hyco-https sends an empty message after a response without a body.
            return []
        raise ProtocolViolation("Binary data came where no body was due")

    def _peer_closed(self, item: Control, now: float) -> list[Command]:
        was = self.state
        self._happens(Event.CLOSE_RECEIVED)
        if was is State.CLOSING:
            return [CloseTransport()]
        commands: list[Command] = []
        try:
            close = parse_close(item.payload)
        except InvalidFrame as violation:
            reason = violation.close_reason(self.tracking_id)
            answer = close_payload(violation.close_code, reason)
            ended = Ended(violation.close_code, reason, False)
        else:
            # Always a code: .NET reads CloseStatus without looking whether there is one.
            answer = close_payload(1000 if close.code is None else close.code)
            if self._body_due and close.code == 1000 and self._masked:
                self._body_due = False
                commands.append(BodyPart(b"", True))
            ended = Ended(close.code, close.reason, not (self._body_due or self._text))
        return [*commands, self._frame(Opcode.CLOSE, answer, now), CloseTransport(), ended]

    def _violated(self, violation: ProtocolViolation, now: float) -> list[Command]:
        return self._close(violation.close_code, violation.close_reason(self.tracking_id), now, clean=False)

    def _close(self, code: int, reason: str, now: float, *, clean: bool) -> list[Command]:
        if not self._happens(Event.CLOSE_SENT):
            return []
        self._closing_since = now
        clean = clean and not (self._body_due or self._text)
        return [self._frame(Opcode.CLOSE, close_payload(code, reason), now), Ended(code, reason, clean)]

    def _happens(self, event: Event) -> bool:
        """Change the state by the table; False when the event came too late to matter."""
        after = TRANSITIONS.get((self.state, event))
        if after is None:
            return False
        self.state = after
        return True

    def _pong(self, ping: bytes | None, now: float) -> list[Command]:
        return [] if ping is None or self.state is not State.OPEN else [self._frame(Opcode.PONG, ping, now)]

    def _fragment(self, data: bytes | memoryview, now: float, end: bool) -> Send:
        opcode = Opcode.CONTINUATION if self._body_begun else Opcode.BINARY
        self._body_begun = True
        return self._frame(opcode, data, now, fin=end)

    def _frame(self, opcode: Opcode, payload: bytes | memoryview, now: float, *, fin: bool = True) -> Send:
        self._last_sent = now
        mask = self._new_mask() if self._new_mask else None
        return Send(encode_frame(opcode, payload, fin=fin, mask=mask, masker=self._masker))
