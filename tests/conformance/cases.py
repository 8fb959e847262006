"""The cases: what one end sends, group by group, and where the relay may make a difference, with the reason.

Each case is what one end writes in so many pieces, as frames with any first byte, length form and mask. The other end
is strict (`conformance.ends.StrictEnd`). What both then hear must be the same with and without a relay between them,
unless the case has a `Difference`, which says exactly what becomes of it.

Rules of WebSocket: RFC 6455 sections 5 (frames), 7.4 (close codes) and 8.1 (UTF-8).
"""

from __future__ import annotations

import dataclasses
import enum
import random
import struct
from collections.abc import Iterator
from dataclasses import dataclass

FIN, RSV1, RSV2, RSV3 = 0x80, 0x40, 0x20, 0x10
CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10

#: Bytes of the longest frame that leaves the relay.
FRAME_LIMIT = 65_536


@dataclass(frozen=True)
class Frame:
    """A frame as one end writes it."""

    first: int
    payload: bytes = b""
    #: Bytes that hold the length: 0, 2 or 8; None for the fewest.
    length_bytes: int | None = None
    #: Masked although a server sends it, or not masked although a client does.
    wrong_mask: bool = False
    mask: bytes = b"\x9a\x1b\x7c\x3d"

    def encode(self, *, is_client: bool) -> bytes:
        """As bytes of the wire. Clients mask (RFC 6455 section 5.3)."""
        length = len(self.payload)
        size = self.length_bytes
        if size is None:
            size = 0 if length < 126 else 2 if length < 65_536 else 8
        is_masked = is_client != self.wrong_mask
        second = (0x80 if is_masked else 0) | (length if size == 0 else 126 if size == 2 else 127)
        head = struct.pack({0: "!BB", 2: "!BBH", 8: "!BBQ"}[size], self.first, second, *([length] if size else []))
        if not is_masked:
            return head + self.payload
        mask = self.mask * (len(self.payload) // 4 + 1)
        return head + self.mask + bytes(a ^ b for a, b in zip(self.payload, mask, strict=False))


class Difference(enum.Enum):
    """What the relay may change, and why."""

    NONE = "the same"
    PING = (
        "The relay answers a Ping itself, and passes on neither Ping nor Pong: they ask for the life of a leg, and each"
        " leg has the relay at its other end. Whoever pings hears the Pong that it would have heard."
    )
    PINGS = (
        "Of several Pings that come together only the newest is answered (RFC 6455 section 5.5.3 allows it), so that a"
        " flood of them costs nothing; and no Ping is passed on."
    )
    CUT = (
        "A frame longer than `frame_limit`, 64 KiB, leaves in fragments of that size, because the Java client of Azure"
        " Relay refuses longer ones. The message is the same."
    )
    REFUSED = (
        "The relay cannot pass it on, because it must read it: where a frame begins and ends, and what a control frame"
        " says. It answers with 1002 as the other end would, in its own words. The other end hears 1001 when it is the"
        " listener; the sender is cut without a Close, which it cannot take for an orderly end."
    )


@dataclass(frozen=True)
class Case:
    """What one end sends."""

    name: str
    frames: tuple[Frame, ...]
    difference: Difference = Difference.NONE
    #: How it is written: "together" in one piece, "apart" one frame at a time, "bytes" one byte at a time.
    pieces: str = "together"
    #: Whether it ends the connection: with a Close of its own, or because somebody must refuse it.
    ends: bool = False

    def written(self, *, is_client: bool) -> Iterator[bytes]:
        """The pieces; a case that does not end the connection closes it in order behind them."""
        last = () if self.ends else (Frame(FIN | CLOSE, b"\x03\xe8done"),)
        encoded = [frame.encode(is_client=is_client) for frame in (*self.frames, *last)]
        if self.pieces == "apart":
            yield from encoded
        elif self.pieces == "bytes":
            for byte in b"".join(encoded):
                yield bytes((byte,))
        else:
            yield b"".join(encoded)

    @property
    def has_closed(self) -> bool:
        """Whether the sending end has sent its Close when it has sent all."""
        return not self.ends or any(frame.first == FIN | CLOSE for frame in self.frames)


def close_payload(code: int, reason: bytes = b"") -> bytes:
    """Of a Close frame."""
    return code.to_bytes(2, "big") + reason


def content(size: int) -> bytes:
    """As many bytes of ASCII, the same every time."""
    return bytes(random.Random(size).choices(range(32, 127), k=size)) if size < 4096 else (b"0123456789" * size)[:size]


def ended(name: str, *frames: Frame, difference: Difference = Difference.NONE) -> Case:
    """A case that ends the connection."""
    return Case(name, frames, difference, ends=True)


def _opcodes() -> Iterator[Case]:
    for opcode in range(16):
        if opcode == CLOSE:
            yield ended("opcode 8, a Close", Frame(FIN | CLOSE, close_payload(1000)))
        elif opcode in (PING, PONG):
            yield Case(
                f"opcode {opcode}, a {'Ping' if opcode == PING else 'Pong'}",
                (Frame(FIN | opcode, b"x"),),
                Difference.PING,
            )
        elif opcode in (TEXT, BINARY):
            yield Case(f"opcode {opcode}, {'text' if opcode == TEXT else 'binary'}", (Frame(FIN | opcode, b"x"),))
        elif opcode == CONTINUATION:
            yield ended("opcode 0, with nothing to continue", Frame(FIN, b"x"))
        else:
            yield ended(f"opcode {opcode}, reserved", Frame(FIN | opcode, b"x"))


def _reserved_bits() -> Iterator[Case]:
    for bit, name in ((RSV1, "RSV1"), (RSV2, "RSV2"), (RSV3, "RSV3"), (RSV1 | RSV2 | RSV3, "all three")):
        yield ended(f"{name} on a text", Frame(FIN | bit | TEXT, b"x"))
    yield ended("RSV1 on a continuation", Frame(TEXT, b"a"), Frame(FIN | RSV1, b"b"))
    yield ended("RSV1 on a Ping", Frame(FIN | RSV1 | PING, b"x"))
    yield ended("RSV2 on a Pong", Frame(FIN | RSV2 | PONG, b"x"))
    yield ended("RSV1 on a Close", Frame(FIN | RSV1 | CLOSE, close_payload(1000)))
    yield ended("RSV1 after a good message", Frame(FIN | TEXT, b"good"), Frame(FIN | RSV1 | TEXT, b"x"))


def _fragments() -> Iterator[Case]:
    two = (Frame(TEXT, b"first "), Frame(FIN, b"second"))
    yield Case("text in two fragments", two)
    yield Case(
        "binary in ten fragments", (Frame(BINARY, b"0"), *(Frame(0, b"%d" % n) for n in range(1, 9)), Frame(FIN, b"9"))
    )
    yield Case("an empty first fragment", (Frame(TEXT), Frame(FIN, b"x")))
    yield Case("an empty fragment in the middle", (Frame(TEXT, b"a"), Frame(0), Frame(FIN, b"b")))
    yield Case("an empty last fragment", (Frame(BINARY, b"x"), Frame(FIN)))
    yield Case("nothing but empty fragments", (Frame(TEXT), Frame(0), Frame(0), Frame(FIN)))
    yield Case("a character cut by two fragments", (Frame(TEXT, b"z\xc3"), Frame(FIN, b"\xbc")))
    yield Case("fragments of 65,536 bytes", (Frame(BINARY, content(65_536)), Frame(FIN, content(65_536))))
    yield Case("two messages of two fragments", (*two, *two), pieces="apart")
    yield Case("a Ping between two fragments", (two[0], Frame(FIN | PING, b"p"), two[1]), Difference.PING)
    yield Case("a Pong between two fragments", (two[0], Frame(FIN | PONG, b"p"), two[1]), Difference.PING)
    # The websockets library wants none there; RFC 6455 section 5.4 allows it.
    yield ended("a Close between two fragments", two[0], Frame(FIN | CLOSE, close_payload(1000, b"bye")))
    yield ended("a continuation with nothing to continue", Frame(FIN | TEXT, b"whole"), Frame(FIN, b"x"))
    yield ended("a continuation without an end and with nothing to continue", Frame(0, b"x"))
    yield ended("a text inside of a text", Frame(TEXT, b"a"), Frame(FIN | TEXT, b"b"))
    yield ended("a binary inside of a text", Frame(TEXT, b"a"), Frame(BINARY, b"b"), Frame(FIN, b"c"))
    yield ended("a continuation after the end", *two, Frame(FIN, b"x"))
    yield ended("a Close that leaves a message unfinished", Frame(BINARY, b"a"), Frame(FIN | CLOSE))


def _control_frames() -> Iterator[Case]:
    for size in (0, 1, 125):
        yield Case(f"a Ping of {size} bytes", (Frame(FIN | PING, content(size)),), Difference.PING)
        yield Case(f"a Pong of {size} bytes", (Frame(FIN | PONG, content(size)),), Difference.PING)
    yield Case("a Ping of bytes that are no text", (Frame(FIN | PING, bytes(range(125, 250))),), Difference.PING)
    yield Case("a Ping after a message", (Frame(FIN | TEXT, b"x"), Frame(FIN | PING, b"p")), Difference.PING)
    pings = tuple(Frame(FIN | PING, b"%d" % number) for number in range(3))
    yield Case("three Pings together", pings, Difference.PINGS)
    for name, opcode in (("Ping", PING), ("Pong", PONG), ("Close", CLOSE), ("frame of opcode 11", 11)):
        start = close_payload(1000) if opcode == CLOSE else b""
        refused = Difference.REFUSED
        yield ended(
            f"a {name} of 126 bytes", Frame(FIN | opcode, start + content(126 - len(start))), difference=refused
        )
        yield ended(f"a {name} without FIN", Frame(opcode, start), difference=refused)
    yield ended("a Ping of 65,536 bytes", Frame(FIN | PING, content(65_536)), difference=Difference.REFUSED)


def _closes() -> Iterator[Case]:
    codes = (0, 1, 999, *range(1000, 1017), 1100, 1999, 2000, 2999, 3000, 3999, 4000, 4999, 5000, 65_535)
    for code in codes:
        yield ended(f"code {code}", Frame(FIN | CLOSE, close_payload(code)))
    yield ended("no code", Frame(FIN | CLOSE))
    yield ended("one byte", Frame(FIN | CLOSE, b"\x03"))
    yield ended("a reason", Frame(FIN | CLOSE, close_payload(1000, b"good bye")))
    yield ended("a reason in other letters", Frame(FIN | CLOSE, close_payload(1001, "bis später 🥊".encode())))
    yield ended("a reason of 123 bytes", Frame(FIN | CLOSE, close_payload(4000, content(123))))
    yield ended("a reason that is not UTF-8", Frame(FIN | CLOSE, close_payload(1000, b"\xff\xfe")))
    yield ended("a reason that ends inside of a character", Frame(FIN | CLOSE, close_payload(1000, b"sp\xc3")))
    yield ended("a reason with a code that may not be sent", Frame(FIN | CLOSE, close_payload(1005, b"why")))
    close = Frame(FIN | CLOSE, close_payload(1000, b"first"))
    yield ended("a text after the Close", close, Frame(FIN | TEXT, b"late"))
    yield ended("a Ping after the Close", close, Frame(FIN | PING, b"late"))
    yield ended("a second Close", close, Frame(FIN | CLOSE, close_payload(1001, b"second")))
    yield ended("nonsense after the Close", close, Frame(0x73, b"\xff" * 10))
    yield ended("a message and then the Close, together", Frame(FIN | TEXT, b"last words"), close)


def _utf8() -> Iterator[Case]:
    for name, data in {
        "two, three and four bytes": "ü€🥊".encode(),
        "the last character there is": "\U0010ffff".encode(),
        "NUL": b"\0",
    }.items():
        yield Case(f"good: {name}", (Frame(FIN | TEXT, data),))
    bad = {
        "a byte that begins nothing": b"\xff",
        "a continuation alone": b"a\x80",
        "an overlong slash": b"\xc0\xaf",
        "half of a surrogate pair": b"\xed\xa0\x80",
        "beyond the last character": b"\xf4\x90\x80\x80",
        "cut at the end": "ü€".encode()[:-1],
    }
    for name, data in bad.items():
        yield ended(f"bad: {name}", Frame(FIN | TEXT, data))
    yield ended("bad: in the second fragment", Frame(TEXT, b"good "), Frame(FIN, b"\xff"))
    yield ended("bad: cut at the end of the last fragment", Frame(TEXT, b"z"), Frame(FIN, b"\xc3"))
    yield Case("the same bytes as binary", (Frame(FIN | BINARY, b"".join(bad.values())),))


def _lengths() -> Iterator[Case]:
    for size in (0, 1, 124, 125, 126, 127, 128, 65_535, 65_536, 65_537, 131_072, 131_073, 1_048_576):
        for name, opcode in (("text", TEXT), ("binary", BINARY)):
            cut = Difference.CUT if size > FRAME_LIMIT else Difference.NONE
            yield Case(f"{name} of {size:,} bytes", (Frame(FIN | opcode, content(size)),), cut)
    fragments = (Frame(BINARY, content(70_000)), Frame(0, content(10)), Frame(FIN, content(200_000)))
    yield Case("fragments longer than 65,536 bytes", fragments, Difference.CUT)
    yield Case("5 bytes, their length in two", (Frame(FIN | TEXT, b"hello", length_bytes=2),))
    yield Case("5 bytes, their length in eight", (Frame(FIN | TEXT, b"hello", length_bytes=8),))
    yield Case("126 bytes, their length in eight", (Frame(FIN | BINARY, content(126), length_bytes=8),))
    yield Case("no bytes, their length in eight", (Frame(FIN | BINARY, length_bytes=8),))
    yield Case("a Ping, its length in two", (Frame(FIN | PING, b"p", length_bytes=2),), Difference.PING)


def _masks() -> Iterator[Case]:
    for name, mask in (("of zeros", bytes(4)), ("of ones", b"\xff" * 4), ("of four values", b"\x01\x20\x80\xfe")):
        yield Case(
            f"a mask {name}", (Frame(FIN | BINARY, content(1000), mask=mask), Frame(FIN | TEXT, b"x", mask=mask))
        )


def _masks_missing() -> Iterator[Case]:
    for name, frame in {
        "a text without a mask": Frame(FIN | TEXT, b"x", wrong_mask=True),
        "nothing without a mask": Frame(FIN | BINARY, wrong_mask=True),
        "a Ping without a mask": Frame(FIN | PING, b"x", wrong_mask=True),
        "a Close without a mask": Frame(FIN | CLOSE, close_payload(1000), wrong_mask=True),
    }.items():
        yield ended(name, Frame(FIN | TEXT, b"good"), frame, difference=Difference.REFUSED)


def _segments() -> Iterator[Case]:
    talk = (
        Frame(FIN | TEXT, b"one"),
        Frame(BINARY, content(126)),
        Frame(FIN | PING, b"between"),
        Frame(0),
        Frame(FIN, content(125)),
        Frame(FIN | TEXT, "ü".encode()),
    )
    for pieces, words in (("together", "in one piece"), ("apart", "a frame at a time"), ("bytes", "a byte at a time")):
        yield Case(f"a conversation, {words}", talk, Difference.PING, pieces)
    yield Case("a hundred messages in one piece", tuple(Frame(FIN | TEXT, b"%d" % number) for number in range(100)))
    bad = (Frame(FIN | TEXT, b"good"), Frame(FIN | 3, b"x"))
    for pieces, words in (("together", "in one piece"), ("bytes", "a byte at a time")):
        yield dataclasses.replace(ended(f"a good and a bad frame, {words}", *bad), pieces=pieces)
        late = (Frame(FIN | CLOSE, close_payload(1000, b"bye")), Frame(FIN | TEXT, b"late"))
        yield dataclasses.replace(ended(f"a Close and more, {words}", *late), pieces=pieces)


#: The table.
GROUPS: dict[str, tuple[Case, ...]] = {
    "Opcodes": tuple(_opcodes()),
    "Reserved bits": tuple(_reserved_bits()),
    "Fragments": tuple(_fragments()),
    "Control frames": tuple(_control_frames()),
    "Close": tuple(_closes()),
    "UTF-8": tuple(_utf8()),
    "Lengths": tuple(_lengths()),
    "Masks": (*_masks(), *_masks_missing()),
    "Pieces": tuple(_segments()),
}
