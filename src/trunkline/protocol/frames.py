"""WebSocket frames (RFC 6455 section 5), read and written a piece at a time.

    bytes -> FrameDecoder -> Data | Control -> MessageDecoder -> Message | Control
    encode_frame(opcode, payload) -> bytes

`FrameDecoder` is cut-through: the payload of a data frame leaves as it arrives, whatever length the frame
announced, so memory is bounded by the size of one read. `MessageDecoder` puts whole messages together under a
limit; control channels use it, data connections do not. Both are ends of a connection: they insist on the rules
that an end must insist on. Joining two connections without being an end of either is `trunkline.protocol.splice`.

Frames are masked by WebSocket clients and not by servers (RFC 6455 section 5.3). The routine that masks is handed
in: `mask_bytes` is plain Python, applications hand in one written in C.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from trunkline.protocol.errors import InvalidFrame, InvalidMessage, MessageTooLarge
from trunkline.protocol.limits import CLOSE_REASON_LIMIT
from trunkline.protocol.records import record

Masker = Callable[[bytes | memoryview, bytes | memoryview], bytes]
"""Takes data and a 4-byte key, returns the data XOR the repeated key. Masking twice gives the data back."""

FIN = 0x80
RSV = 0x70
MASKED = 0x80
CONTROL_BIT = 0x08
CONTROL_PAYLOAD_LIMIT = 125
LONGEST_HEADER = 14


class Opcode(enum.IntEnum):
    """The opcodes of RFC 6455 section 5.2; the others are reserved."""

    CONTINUATION = 0
    TEXT = 1
    BINARY = 2
    CLOSE = 8
    PING = 9
    PONG = 10


# The first bytes of frames that are a message each.
_WHOLE = {FIN | opcode: opcode for opcode in (Opcode.TEXT, Opcode.BINARY)}


@record
class Data:
    """A piece of a message: `opcode` is the message's (TEXT or BINARY); `end` says that the message ends with it."""

    opcode: Opcode
    payload: bytes
    end: bool


@record
class Control:
    """A whole Close, Ping or Pong frame; its payload is at most 125 bytes."""

    opcode: Opcode
    payload: bytes


@record
class Message:
    """A whole message, TEXT or BINARY. The payload of a TEXT message is valid UTF-8."""

    opcode: Opcode
    payload: bytes


@dataclass(frozen=True, slots=True)
class Close:
    """What a Close frame said. `code` is None when it held none (1005 in the words of RFC 6455 section 7.1.5)."""

    code: int | None
    reason: str


class Header(NamedTuple):
    """The head of one frame: its first byte, payload length, mask key (None when unmasked) and its own size."""

    first: int
    length: int
    mask: bytes | None
    size: int


def mask_bytes(data: bytes | memoryview, mask: bytes | memoryview) -> bytes:
    """XOR `data` with the 4-byte `mask`, repeated (RFC 6455 section 5.3)."""
    size = len(data)
    key = int.from_bytes((bytes(mask) * (size // 4 + 1))[:size], "little")
    return (int.from_bytes(data, "little") ^ key).to_bytes(size, "little")


def rotate(mask: bytes, consumed: int) -> bytes:
    """The mask key for the payload that follows after `consumed` bytes of it."""
    shift = consumed & 3
    return mask[shift:] + mask[:shift] if shift else mask


def read_header(data: bytes | memoryview, position: int, end: int) -> Header | None:
    """Read the frame head that begins at `position`; None when it does not end before `end`.

    Raises:
        InvalidFrame: the length has its highest bit set (RFC 6455 section 5.2).
    """
    if end - position < 2:
        return None
    second = data[position + 1]
    length = second & 0x7F
    cursor = position + 2
    if length == 126:
        if end - cursor < 2:
            return None
        length = data[cursor] << 8 | data[cursor + 1]
        cursor += 2
    elif length == 127:
        if end - cursor < 8:
            return None
        length = int.from_bytes(data[cursor : cursor + 8], "big")
        cursor += 8
        if length >> 63:
            raise InvalidFrame("The frame announces a length of 2^63 bytes or more")
    if not second & MASKED:
        return Header(data[position], length, None, cursor - position)
    if end - cursor < 4:
        return None
    return Header(data[position], length, bytes(data[cursor : cursor + 4]), cursor + 4 - position)


def check_control(header: Header) -> None:
    """Refuse a control frame that is long or fragmented (RFC 6455 section 5.5).

    Raises:
        InvalidFrame: it has over 125 bytes or no FIN.
    """
    if header.length > CONTROL_PAYLOAD_LIMIT:
        raise InvalidFrame(f"A control frame has {header.length} bytes; at most 125 are allowed")
    if not header.first & FIN:
        raise InvalidFrame("A control frame is fragmented")


def encode_head(first: int, length: int, *, masked: bool = False) -> bytes:
    """The head of a frame without its mask key; `first` holds FIN, RSV and opcode."""
    bit = MASKED if masked else 0
    if length < 126:
        return bytes((first, bit | length))
    if length < 65_536:
        return struct.pack(">BBH", first, bit | 126, length)
    return struct.pack(">BBQ", first, bit | 127, length)


def encode_frame(
    opcode: int,
    payload: bytes | memoryview = b"",
    *,
    fin: bool = True,
    mask: bytes | None = None,
    masker: Masker = mask_bytes,
) -> bytes:
    """One frame as it goes on the wire.

    Args:
        opcode: the opcode, see `Opcode`.
        payload: its bytes; a control frame takes at most 125.
        fin: False for a fragment that is not the last of its message.
        mask: a fresh random 4-byte key when a client sends (RFC 6455 section 5.3), else None.
        masker: the routine that masks.
    """
    head = encode_head((FIN if fin else 0) | opcode, len(payload), masked=mask is not None)
    if mask is None:
        return head + payload
    return b"".join((head, mask, masker(payload, mask)))


def encode_message(
    opcode: int,
    payload: bytes,
    *,
    frame_limit: int,
    new_mask: Callable[[], bytes] | None = None,
    masker: Masker = mask_bytes,
) -> bytes:
    """One message as one frame or, above `frame_limit` bytes, as fragments of at most that (RFC 6455 section 5.4)."""
    size = len(payload)
    if size <= frame_limit:
        return encode_frame(opcode, payload, mask=new_mask() if new_mask else None, masker=masker)
    view = memoryview(payload)
    pieces = []
    for start in range(0, size, frame_limit):
        stop = min(start + frame_limit, size)
        pieces.append(
            encode_frame(
                Opcode.CONTINUATION if start else opcode,
                view[start:stop],
                fin=stop == size,
                mask=new_mask() if new_mask else None,
                masker=masker,
            )
        )
    return b"".join(pieces)


def close_payload(code: int | None, reason: str = "") -> bytes:
    """The payload of a Close frame; the reason is cut to 123 bytes of UTF-8 (RFC 6455 section 5.5)."""
    if code is None:
        return b""
    text = reason.encode("utf-8", "replace")[:CLOSE_REASON_LIMIT].decode("utf-8", "ignore").encode()
    return struct.pack(">H", code) + text


def is_valid_close_code(code: int) -> bool:
    """True for a code that may stand in a Close frame (RFC 6455 section 7.4 and the registry it opens)."""
    return 1000 <= code <= 1003 or 1007 <= code <= 1014 or 3000 <= code <= 4999


def is_utf8(data: bytes) -> bool:
    """True when `data` is whole, valid UTF-8 (RFC 3629)."""
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def parse_close(payload: bytes) -> Close:
    """Read the payload of a Close frame.

    Raises:
        InvalidFrame: one byte only, a code that may not be sent, or a reason that is not UTF-8.
    """
    if not payload:
        return Close(None, "")
    if len(payload) == 1:
        raise InvalidFrame("A Close frame has a payload of one byte")
    code = payload[0] << 8 | payload[1]
    if not is_valid_close_code(code):
        raise InvalidFrame(f"A Close frame has the code {code}, which may not be sent")
    if not is_utf8(payload[2:]):
        raise InvalidFrame("The reason of a Close frame is not UTF-8")
    return Close(code, payload[2:].decode())


class FrameDecoder:
    """One direction of a WebSocket connection, read by an end of it.

    Args:
        masked: True when the peer is a client, whose frames must be masked; a server's must not be.
        masker: the routine that unmasks.
    """

    def __init__(self, *, masked: bool, masker: Masker = mask_bytes) -> None:
        self._masked = masked
        self._masker = masker
        # The beginning of a frame head or of a control frame that is not whole yet; at most 138 bytes.
        self._held = b""
        # What is still to come of the data frame being read, its mask key for the next byte, its FIN.
        self._remaining = 0
        self._mask = b""
        self._final = False
        # The opcode of the message being read; None between messages.
        self._message: Opcode | None = None
        # A Close frame has been read: what follows it is not read (RFC 6455 section 5.5.1).
        self.closed = False
        self._violation: InvalidFrame | None = None

    def __repr__(self) -> str:
        state = "violated" if self._violation else "closed" if self.closed else "open"
        return f"<FrameDecoder {state} remaining={self._remaining}>"

    @property
    def remaining(self) -> int:
        """Bytes of payload that the data frame being read has announced and that have not come."""
        return self._remaining

    def feed(self, data: bytes | memoryview) -> Iterator[Data | Control]:
        """Yield what `data` completes, in order; run it to its end before the next call.

        Raises:
            InvalidFrame: at the place of the violation, after what came before it; again at each later call.
        """
        if self._violation is not None:
            # Without the traceback of the last time: it would grow with each call, and keep that read's bytes alive.
            raise self._violation.with_traceback(None)
        if self._held:
            data = self._held + bytes(data)
            self._held = b""
        position, end = 0, len(data)
        try:
            while not self.closed:
                if self._remaining:
                    stop = min(end, position + self._remaining)
                    if stop == position:
                        return
                    yield self._piece(data[position:stop])
                    position = stop
                    continue
                header = read_header(data, position, end)
                if header is None:
                    self._held = bytes(data[position:end])
                    return
                first, length, mask, size = header
                if self._message is None and (mask is not None) is self._masked and first in _WHOLE:
                    # A message of one frame: mostly all of it is here.
                    start = position + size
                    stop = start + length
                    if stop <= end:
                        payload = data[start:stop]
                        plain = bytes(payload) if mask is None else self._masker(payload, mask)
                        yield Data(_WHOLE[first], plain, True)
                        position = stop
                        continue
                self._check(header)
                if header.first & CONTROL_BIT:
                    stop = position + header.size + header.length
                    if stop > end:
                        self._held = bytes(data[position:end])
                        return
                    yield self._whole_control(header, data[position + header.size : stop])
                    position = stop
                    continue
                position += header.size
                self._begin(header)
                if header.length == 0:
                    yield self._piece(b"")
        except InvalidFrame as violation:
            self._violation = violation
            raise

    def _check(self, header: Header) -> None:
        opcode = header.first & 0x0F
        if header.first & RSV:
            raise InvalidFrame("A frame has a reserved bit set, and no extension was agreed")
        if (header.mask is not None) != self._masked:
            raise InvalidFrame("A client's frame is not masked" if self._masked else "A server's frame is masked")
        if opcode & CONTROL_BIT:
            if opcode > Opcode.PONG:
                raise InvalidFrame(f"A frame has the reserved opcode {opcode}")
            check_control(header)
        elif opcode > Opcode.BINARY:
            raise InvalidFrame(f"A frame has the reserved opcode {opcode}")
        elif opcode == Opcode.CONTINUATION and self._message is None:
            raise InvalidFrame("A continuation frame has no message to continue")
        elif opcode != Opcode.CONTINUATION and self._message is not None:
            raise InvalidFrame("A message begins before the one before it has ended")

    def _begin(self, header: Header) -> None:
        opcode = header.first & 0x0F
        if opcode:
            self._message = Opcode(opcode)
        self._remaining = header.length
        self._mask = header.mask or b""
        self._final = bool(header.first & FIN)

    def _piece(self, payload: bytes | memoryview) -> Data:
        assert self._message is not None
        size = len(payload)
        opcode = self._message
        plain = self._masker(payload, self._mask) if self._masked else bytes(payload)
        self._remaining -= size
        if self._remaining:
            self._mask = rotate(self._mask, size)
            return Data(opcode, plain, False)
        if self._final:
            self._message = None
        return Data(opcode, plain, self._final)

    def _whole_control(self, header: Header, payload: bytes | memoryview) -> Control:
        plain = bytes(payload) if header.mask is None else self._masker(payload, header.mask)
        opcode = Opcode(header.first & 0x0F)
        self.closed = opcode == Opcode.CLOSE
        return Control(opcode, plain)


class MessageDecoder:
    """One direction of a WebSocket connection, read as whole messages under a limit.

    Args:
        masked: True when the peer is a client.
        text_limit: the longest TEXT message, in bytes.
        binary_limit: the longest BINARY message, in bytes.
        masker: the routine that unmasks.
    """

    def __init__(self, *, masked: bool, text_limit: int, binary_limit: int, masker: Masker = mask_bytes) -> None:
        self._frames = FrameDecoder(masked=masked, masker=masker)
        self._limits = {Opcode.TEXT: text_limit, Opcode.BINARY: binary_limit}
        # The message so far. One buffer, not a list of pieces: a peer may send any number of tiny fragments.
        self._buffer = bytearray()
        self._violation: InvalidMessage | MessageTooLarge | None = None

    def __repr__(self) -> str:
        return f"<MessageDecoder held={len(self._buffer)} {self._frames!r}>"

    @property
    def closed(self) -> bool:
        """True once a Close frame has been read."""
        return self._frames.closed

    def feed(self, data: bytes | memoryview) -> Iterator[Message | Control]:
        """Yield the messages and control frames that `data` completes; run it to its end before the next call.

        Raises:
            InvalidFrame: a framing violation.
            MessageTooLarge: a message grew over its limit; it is refused as soon as it does.
            InvalidMessage: a TEXT message is not UTF-8 (RFC 6455 section 8.1).
        """
        if self._violation is not None:
            raise self._violation.with_traceback(None)
        for item in self._frames.feed(data):
            if isinstance(item, Control):
                yield item
                continue
            limit = self._limits[item.opcode]
            # With what its frame still announces.
            if len(self._buffer) + len(item.payload) + self._frames.remaining > limit:
                self._buffer.clear()
                self._violation = MessageTooLarge(f"A {item.opcode.name} message is longer than {limit} bytes")
                raise self._violation
            payload = item.payload
            if self._buffer or not item.end:
                self._buffer += payload
            if item.end:
                if self._buffer:
                    payload = bytes(self._buffer)
                    self._buffer.clear()
                if item.opcode is Opcode.TEXT and not is_utf8(payload):
                    self._violation = InvalidMessage("A TEXT message is not UTF-8")
                    raise self._violation
                yield Message(item.opcode, payload)
