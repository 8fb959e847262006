"""Joins two WebSocket legs into one connection, frame by frame, without being an end of it.

    bytes from the sender   -> Lane -> bytes to the listener
    bytes from the listener -> Lane -> bytes to the sender

Both legs are clients of the relay, so every frame comes in masked and goes out unmasked. Beyond that a frame keeps
its opcode, FIN, reserved bits and place: reserved opcodes and bits, broken fragments, text that is not UTF-8 and
whatever a Close says are for the ends to judge, as they would without a relay between them. The relay itself refuses
only what it cannot pass on: a frame without mask, of 2^63 bytes, or a control frame that is long or fragmented. What
else it does:

- *Cut-through.* Bytes leave as they arrive; a lane holds at most one frame head or control frame.
- *The frame limit.* A longer frame leaves as fragments (the Java client refuses a frame over 64 KiB), or ends the
  connection with 1009 where `oversize_frames` says `reject`.
- *Ping is answered here*, on the lane that runs the other way, never inside a frame that is passing there. A Pong
  goes no further.
- *Close is never answered here.* It travels on, and its lane is shut; the other lane stays open until its own Close
  comes, as the half-close of the .NET client and of azbridge needs.
- *A leg lost without Close* ends abnormally on the other side: 1001 for a listener, a cut for a sender, which must
  not take it for a clean end.

`Splice` holds the rules, `Lane` the bytes. Sources: RFC 6455 sections 5 and 7; the protocol guide of Azure Relay
hybrid connections; for half-close and aborts, the tests of Microsoft's own clients.
"""

from __future__ import annotations

import enum
from typing import NamedTuple

from trunkline.protocol.causes import Cause, cause_of
from trunkline.protocol.errors import InvalidFrame, MessageTooLarge, ProtocolViolation, RelayError
from trunkline.protocol.frames import (
    CONTROL_BIT,
    FIN,
    MASKED,
    Header,
    Masker,
    Opcode,
    check_control,
    close_payload,
    encode_frame,
    encode_head,
    mask_bytes,
    read_header,
    rotate,
)
from trunkline.protocol.limits import Limits

# The two bytes that begin an unmasked frame, by first byte and length: cheaper than making them. 126 says that the
# length follows in two bytes (RFC 6455 section 5.2).
_HEADS = tuple(tuple(bytes((first, length)) for length in range(127)) for first in range(256))

# The first bytes of the control frames that mean something here.
_CLOSE, _PING, _PONG = FIN | Opcode.CLOSE, FIN | Opcode.PING, FIN | Opcode.PONG

# Frames off the fast way that one call of `feed` takes. One read may hold 43,000 of them, which takes 70 ms, and
# everybody else waits for that long.
_SLOW_AT_ONCE = 4_096

# Whether a frame is a control frame, by its first byte.
_IS_CONTROL = tuple(bool(first & CONTROL_BIT) for first in range(256))


class Side(enum.IntEnum):
    """The two ends of a connection."""

    SENDER = 0
    LISTENER = 1

    @property
    def other(self) -> Side:
        """The end across."""
        return Side.LISTENER if self is Side.SENDER else Side.SENDER


class End(NamedTuple):
    """How a splice ended: what to log, what to count, and which legs are to be cut by TCP abort instead of closed."""

    reason: str
    cause: Cause
    abort_sender: bool = False
    abort_listener: bool = False


Outgoing = bytes | list[bytes | memoryview]
"""What leaves at once: bytes, or a few large pieces in order, to be written together without joining them."""

# From so many bytes on, in so few pieces, joining costs more than it saves; measured with 64 KiB frames.
_BULK = 32_768
_FEW = 32


def joined(outgoing: Outgoing) -> bytes:
    """What leaves, as one piece."""
    return outgoing if isinstance(outgoing, bytes) else b"".join(outgoing)


class Actions(NamedTuple):
    """What the shell does now: write to each leg, then, if `end` is there, close or abort both."""

    to_sender: Outgoing = b""
    to_listener: Outgoing = b""
    end: End | None = None


NOTHING = Actions()


class Lane:
    """One direction: masked frames of one leg in, unmasked frames for the other leg out.

    Args:
        frame_limit: the longest frame that may leave, in bytes of payload.
        reject_oversize: True to treat a longer frame as a violation (1009) instead of cutting it.
        masker: the routine that unmasks.
    """

    __slots__ = (
        "_first",
        "_fragment_left",
        "_held",
        "_mask",
        "_masker",
        "_pending",
        "_remaining",
        "behind",
        "bytes",
        "close",
        "congested",
        "frame_limit",
        "messages",
        "ping",
        "reject_oversize",
        "violation",
    )

    def __init__(self, *, frame_limit: int, reject_oversize: bool = False, masker: Masker = mask_bytes) -> None:
        self.frame_limit = frame_limit
        self.reject_oversize = reject_oversize
        self._masker = masker
        # The beginning of a frame head or control frame that is not whole yet.
        self._held = b""
        # The frame passing through: its first byte as the next fragment bears it, the payload still to come in,
        # the mask key for its next byte, and how much of the fragment going out is still owed.
        self._first = 0
        self._remaining = 0
        self._mask = b""
        self._fragment_left = 0
        # A Pong for the leg that this lane feeds; it waits while a frame is passing or the leg takes no more.
        self._pending = b""
        # The leg that this lane feeds takes no more bytes for now.
        self.congested = False
        # Bytes of the last read are still to be taken: `feed` wants to be called again, with none, and others served
        # before that.
        self.behind = False
        # Payload of the last Ping read and not yet answered; None when there is none.
        self.ping: bytes | None = None
        # Payload of the Close read: nothing after it is read, nothing after it is sent here. None while open.
        self.close: bytes | None = None
        # What the peer did wrong; nothing after it is read.
        self.violation: ProtocolViolation | None = None
        # Counted on the way: payload bytes and ended messages.
        self.bytes = 0
        self.messages = 0

    def __repr__(self) -> str:
        state = "violated" if self.violation else "closed" if self.close is not None else "open"
        return f"<Lane {state} messages={self.messages} bytes={self.bytes} mid_frame={self.is_mid_frame}>"

    @property
    def is_mid_frame(self) -> bool:
        """True while a frame has begun to leave and has not ended: nothing can be put between."""
        return self._fragment_left > 0

    def feed(self, data: bytes | memoryview) -> Outgoing:
        """Take bytes of one leg, return what leaves for the other; no part of it is a view of `data`.

        `ping`, `close` and `violation` say what else was read, `behind` that not all of it was taken. Never raises for
        what a peer sent.
        """
        self.behind = False
        if self.close is not None or self.violation is not None:
            return b""
        if self._held:
            data = self._held + bytes(data)
            self._held = b""
        out: list[bytes | memoryview] = []
        position, end = 0, len(data)
        if self._remaining:
            position = self._pass(data, 0, end, out)
        # The way of a whole data frame within the limit, which decides how many messages a second pass: table look-ups,
        # and for short ones no call but the masker's. Everything else is for `_slow`.
        masker, append, frame_limit = self._masker, out.append, self.frame_limit
        short_limit = min(frame_limit, 125)
        messages = payload = 0
        patience = _SLOW_AT_ONCE
        while end - position >= 2:
            first = data[position]
            length = data[position + 1] - MASKED
            if 0 <= length <= short_limit and not _IS_CONTROL[first]:
                start = position + 6
                stop = start + length
                if stop <= end:
                    append(_HEADS[first][length])
                    append(masker(data[start:stop], data[position + 2 : start]))
                    messages += first >> 7
                    payload += length
                    position = stop
                    continue
            elif length == 126 and end - position >= 8 and not _IS_CONTROL[first]:
                length = data[position + 2] << 8 | data[position + 3]
                start = position + 8
                stop = start + length
                if 126 <= length <= frame_limit and stop <= end:
                    append(_HEADS[first][126])
                    append(bytes(data[position + 2 : position + 4]))
                    append(masker(data[start:stop], data[position + 4 : start]))
                    messages += first >> 7
                    payload += length
                    position = stop
                    continue
            elif length == 127 and end - position >= 14 and not _IS_CONTROL[first]:
                length = int.from_bytes(data[position + 2 : position + 10], "big")
                start = position + 14
                stop = start + length
                if 65_536 <= length <= frame_limit and stop <= end:
                    append(encode_head(first, length))
                    append(masker(data[start:stop], data[position + 10 : start]))
                    messages += first >> 7
                    payload += length
                    position = stop
                    continue
            after = self._slow(data, position, end, out)
            if after < 0:
                break
            position = after
            patience -= 1
            if not patience:
                self.behind = True
                self._held = bytes(data[position:end])
                break
        else:
            self._held = bytes(data[position:end])
        self.messages += messages
        self.bytes += payload
        return out if end >= _BULK and 1 < len(out) <= _FEW else b"".join(out)

    @property
    def _ended(self) -> bool:
        return self.close is not None or self.violation is not None

    def _slow(self, data: bytes | memoryview, position: int, end: int, out: list[bytes | memoryview]) -> int:
        """Take one frame that is not short, not data or not whole; return where it ends, -1 to read no further."""
        try:
            header = read_header(data, position, end)
            if header is None:
                self._held = bytes(data[position:end])
                return -1
            if header.mask is None:
                raise InvalidFrame("A client's frame is not masked")
            if header.first & CONTROL_BIT:
                return self._control(header, data, position, end, out)
            if self.reject_oversize and header.length > self.frame_limit:
                raise MessageTooLarge(f"A frame has {header.length} bytes; at most {self.frame_limit} are allowed here")
        except ProtocolViolation as violation:
            # Without the traceback, whose frames would keep the bytes of this read alive.
            self.violation = violation.with_traceback(None)
            return -1
        self._first = header.first
        self._remaining = header.length
        self._mask = header.mask
        position += header.size
        if header.length == 0:
            out.append(_HEADS[header.first][0])
            self.messages += header.first >> 7
            return position
        return self._pass(data, position, end, out)

    def _pass(self, data: bytes | memoryview, position: int, end: int, out: list[bytes | memoryview]) -> int:
        """Send on what has come of the payload of the frame passing through; return the position behind it."""
        size = min(self._remaining, end - position)
        self.bytes += size
        stop = position + size
        while position < stop:
            if self._fragment_left == 0:
                length = min(self._remaining, self.frame_limit)
                last = length == self._remaining
                out.append(encode_head(self._first if last else self._first & ~FIN, length))
                if not last:
                    # The rest of the frame goes out as continuation: opcode 0, reserved bits 0, its FIN kept.
                    self._first &= FIN
                self._fragment_left = length
            step = min(self._fragment_left, stop - position)
            out.append(self._masker(data[position : position + step], self._mask))
            self._mask = rotate(self._mask, step)
            position += step
            self._remaining -= step
            self._fragment_left -= step
            if self._fragment_left == 0 and self._pending and not self.congested:
                out.append(self._pending)
                self._pending = b""
        if size and not self._remaining:
            self.messages += self._first >> 7
        return position

    def _control(
        self, header: Header, data: bytes | memoryview, position: int, end: int, out: list[bytes | memoryview]
    ) -> int:
        check_control(header)
        start = position + header.size
        stop = start + header.length
        if stop > end:
            self._held = bytes(data[position:end])
            return -1
        assert header.mask is not None
        payload = self._masker(data[start:stop], header.mask)
        if header.first == _PING:
            # Only the newest of several is answered (RFC 6455 section 5.5.3): a flood of them costs nothing.
            self.ping = payload
            return stop
        if header.first == _PONG:
            return stop
        # A Close goes on whatever it says, and so does what only an end may judge: a reserved opcode or bit.
        out.append(_HEADS[header.first][header.length])
        out.append(payload)
        if header.first == _CLOSE:
            self.close = payload
            return -1
        return stop

    def pong(self, payload: bytes) -> bytes:
        """Return a Pong to send to the leg that this lane feeds; b"" when it has to wait, or can go no more."""
        if self._ended:
            return b""
        frame = encode_frame(Opcode.PONG, payload)
        if self.is_mid_frame or self.congested:
            self._pending = frame
            return b""
        return frame

    def relieve(self) -> bytes:
        """The leg that this lane feeds takes bytes again; return what waited for it."""
        self.congested = False
        if self.is_mid_frame or self._ended:
            return b""
        frame, self._pending = self._pending, b""
        return frame

    def finish(self, code: int, reason: str) -> bytes | None:
        """Shut the lane with a Close of the relay's own.

        Returns:
            The Close frame; b"" when a Close has gone already; None when a frame is under way, so that the leg can
            only be cut.
        """
        if self.close is not None:
            return b""
        if self.is_mid_frame:
            return None
        self.close = close_payload(code, reason)
        return encode_frame(Opcode.CLOSE, self.close)


class Splice:
    """Two legs joined.

    Args:
        limits: `frame_limit`, `oversize_frames`, `idle_timeout` and `half_close_timeout` are read.
        tracking_id: goes into the reason of a Close that the relay sends.
        now: seconds on the shell's clock.
        masker: the routine that unmasks.
    """

    def __init__(self, *, limits: Limits, tracking_id: str, now: float, masker: Masker = mask_bytes) -> None:
        self._limits = limits
        self._tracking_id = tracking_id
        reject = limits.oversize_frames == "reject"
        # lanes[side] carries what that side sends.
        self.lanes = (
            Lane(frame_limit=limits.frame_limit, reject_oversize=reject, masker=masker),
            Lane(frame_limit=limits.frame_limit, reject_oversize=reject, masker=masker),
        )
        # When bytes last came from each side.
        self._received_at = [now, now]
        # When the first of the two lanes was shut; None while both are open.
        self._half_closed_at: float | None = None
        # When something last passed from one side to the other since then.
        self._passed_at = now
        # How it ended; None while it runs.
        self.ended: End | None = None

    def __repr__(self) -> str:
        state = self.ended.reason if self.ended else "open" if self._half_closed_at is None else "half-closed"
        return f"<Splice {self._tracking_id} {state} sender={self.lanes[0]!r} listener={self.lanes[1]!r}>"

    @property
    def is_half_closed(self) -> bool:
        """Whether one side has sent its Close and the other has not."""
        return self._half_closed_at is not None and self.ended is None

    @property
    def received_at(self) -> float:
        """When bytes last came from either side."""
        return max(self._received_at)

    def receive(self, side: Side, data: bytes | memoryview, now: float) -> Actions:
        """Bytes came from `side`."""
        if self.ended is not None:
            return NOTHING
        lane = self.lanes[side]
        self._received_at[side] = now
        out = lane.feed(data)
        if out and self._half_closed_at is not None:
            # Data counts, a Ping does not: a heartbeat would keep half a connection for ever.
            self._passed_at = now
        if lane.ping is None and lane.close is None and lane.violation is None:
            return Actions(b"", out) if side == Side.SENDER else Actions(out)
        back = b""
        if lane.ping is not None:
            back = self.lanes[side.other].pong(lane.ping)
            lane.ping = None
        if lane.violation is not None:
            return self._violated(side, lane.violation, out, back)
        end = None
        if lane.close is not None and self._half_closed_at is None:
            self._half_closed_at = now
        elif lane.close is not None and self.lanes[side.other].close is not None:
            code = int.from_bytes(lane.close[:2], "big") if len(lane.close) > 1 else "no code"
            end = self._end(End(f"closed ({code})", Cause.CLOSED))
        return self._toward(side, back, out, end)

    def lost(self, side: Side) -> Actions:
        """The leg of `side` is gone: EOF or an error, with or without a Close before it."""
        if self.ended is not None:
            return NOTHING
        name = side.name.lower()
        if self.lanes[side].close is not None:
            # It said Close and did not wait for the other's: the other leg has all that was sent.
            reason = f"closed by the {name}, which did not wait for the other side"
            return Actions(end=self._end(End(reason, Cause.CLOSED)))
        cause = Cause.SENDER_LOST if side == Side.SENDER else Cause.LISTENER_LOST
        return self._abnormal(side, f"the {name}'s connection was lost", cause, b"", b"", cut=True)

    def congested(self, side: Side) -> None:
        """The leg of `side` takes no more bytes for now: pongs for it wait."""
        self.lanes[side.other].congested = True

    def relieved(self, side: Side, now: float) -> Actions:
        """The leg of `side` takes bytes again: what the other side sent while it was not read is passing."""
        self._received_at[side.other] = now
        frame = self.lanes[side.other].relieve() if self.ended is None else b""
        return Actions(frame) if side == Side.SENDER else Actions(b"", frame)

    def tick(self, now: float) -> Actions:
        """Look at the clock; to be called about once a second."""
        if self.ended is not None:
            return NOTHING
        if self._half_closed_at is None:
            silent = now - max(self._received_at)
            if self._limits.idle_timeout and silent >= self._limits.idle_timeout:
                message = f"IdleTimeout: no frame came for {self._limits.idle_timeout:g} s"
                return self._close(1001, message, Cause.IDLE_TIMEOUT)
            return NOTHING
        silent = now - max(self._half_closed_at, self._passed_at)
        if self._limits.half_close_timeout and silent >= self._limits.half_close_timeout:
            limit = self._limits.half_close_timeout
            message = f"HalfCloseTimeout: no data came for {limit:g} s after one side's Close"
            return self._close(1001, message, Cause.HALF_CLOSE_TIMEOUT)
        return NOTHING

    def close(self, error: RelayError) -> Actions:
        """End it with a Close to both legs: a key was removed (1008), the entity was deleted (1001)."""
        if self.ended is not None:
            return NOTHING
        return self._close(error.close_code, error.message, cause_of(error))

    def tear_down(self, reason: str, cause: Cause) -> Actions:
        """Cut both legs by TCP abort: the listener's control channel was lost (`on_listener_loss`)."""
        if self.ended is not None:
            return NOTHING
        return Actions(end=self._end(End(reason, cause, abort_sender=True, abort_listener=True)))

    def _close(self, code: int, message: str, cause: Cause) -> Actions:
        reason = RelayError(message).close_reason(self._tracking_id)
        to_listener = self.lanes[Side.SENDER].finish(code, reason)
        to_sender = self.lanes[Side.LISTENER].finish(code, reason)
        end = self._end(End(message, cause, to_sender is None, to_listener is None))
        return Actions(to_sender or b"", to_listener or b"", end)

    def _violated(self, side: Side, violation: ProtocolViolation, out: Outgoing, back: bytes) -> Actions:
        close = self.lanes[side.other].finish(violation.close_code, violation.close_reason(self._tracking_id))
        message = f"the {side.name.lower()} broke the protocol: {violation.message}"
        return self._abnormal(side, message, Cause.PROTOCOL_ERROR, out, back + (close or b""), cut=close is None)

    def _abnormal(self, side: Side, message: str, cause: Cause, out: Outgoing, back: bytes, *, cut: bool) -> Actions:
        """`side` ended without a Close of its own: a listener across hears 1001, a sender across is cut.

        `out` still goes to the other side and `back` to `side`, whose leg is then cut or closed.
        """
        cut_other = side == Side.LISTENER
        if side == Side.SENDER:
            close = self.lanes[side].finish(1001, RelayError(message).close_reason(self._tracking_id))
            cut_other = close is None
            out = joined(out) + (close or b"")
        sender, listener = (cut, cut_other) if side == Side.SENDER else (cut_other, cut)
        return self._toward(side, back, out, self._end(End(message, cause, sender, listener)))

    @staticmethod
    def _toward(side: Side, back: bytes, out: Outgoing, end: End | None) -> Actions:
        return Actions(back, out, end) if side == Side.SENDER else Actions(out, back, end)

    def _end(self, end: End) -> End:
        self.ended = end
        return end
