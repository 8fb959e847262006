"""Fuzz targets for what comes over an open WebSocket: frames, messages, an HTTP exchange, two joined legs.

The first bytes of an input choose options and where the rest is cut in pieces; the rest is what peers send. Whatever
the cuts, the outcome must be the same. `read_plainly` reads RFC 6455 section 5.2 once more and shares no code with
the product; the websockets library is a second opinion.
"""

from __future__ import annotations

import itertools
import random
import struct
from collections.abc import Iterator
from typing import NamedTuple

import websockets.exceptions
import websockets.frames
from websockets.protocol import Protocol
from websockets.protocol import Side as WebSocketsSide

from trunkline.protocol.causes import Cause
from trunkline.protocol.control_channel import Send
from trunkline.protocol.errors import EndpointNotFound, InvalidFrame, InvalidMessage, MessageTooLarge
from trunkline.protocol.frames import Control, Data, FrameDecoder, Message, MessageDecoder, Opcode, parse_close
from trunkline.protocol.http_rendezvous import BodyPart, Ended, HttpRendezvous, Received
from trunkline.protocol.limits import CONTROL_TEXT_LIMIT, resolve
from trunkline.protocol.splice import NOTHING, Lane, Side, Splice, joined

#: Frame limits that a lane is tried with. The smaller ones are less than a user may set, so that short inputs reach
#: what happens at the border.
FRAME_LIMITS = (65_536, 1, 2, 125, 126, 1000)

_LIMITS = resolve()


class Options(NamedTuple):
    """The first byte of an input, bit by bit."""

    flag: bool
    limit: int
    cuts: int


def options_and_rest(data: bytes) -> tuple[Options, bytes]:
    """Two bytes of options, then what a peer sends."""
    first, cuts = (*data[:2], 0, 0)[:2]
    return Options(bool(first & 1), FRAME_LIMITS[(first >> 1) % len(FRAME_LIMITS)], cuts), data[2:]


def pieces(stream: bytes, cuts: int) -> Iterator[bytes]:
    """`stream` in pieces: every byte alone, or cut in a few places."""
    chance = random.Random(cuts)
    if cuts % 4 == 0 and len(stream) <= 4096:
        places = list(range(len(stream)))
    else:
        places = sorted(chance.randrange(len(stream) + 1) for _ in range(cuts % 8))
    for start, stop in itertools.pairwise((0, *places, len(stream))):
        yield stream[start:stop]


def read_plainly(stream: bytes) -> tuple[list[tuple[int, bool, bytes]], bytes]:
    """The whole frames of `stream` (first byte, whether masked, payload) and the bytes behind the last of them."""
    found = []
    position = 0
    while len(stream) - position >= 2:
        first, second = stream[position : position + 2]
        start = position + 2
        length = second & 127
        if length == 126 and len(stream) >= start + 2:
            [length] = struct.unpack_from("!H", stream, start)
            start += 2
        elif length == 127 and len(stream) >= start + 8:
            [length] = struct.unpack_from("!Q", stream, start)
            start += 8
        elif length > 125:
            break
        key = stream[start : start + 4] if second & 128 else b""
        start += len(key)
        if (second & 128 and len(key) < 4) or len(stream) < start + length:
            break
        payload = stream[start : start + length]
        if key:
            payload = bytes(byte ^ key[place & 3] for place, byte in enumerate(payload))
        found.append((first, bool(key), payload))
        position = start + length
    return found, stream[position:]


# --- an end of a connection ---


def frames(data: bytes) -> None:
    """Frames and messages, read by an end: the same however they are cut, and as the websockets library reads them."""
    options, stream = options_and_rest(data)
    masked = options.flag
    whole, violation = _frames(FrameDecoder(masked=masked), [stream])
    cut, cut_violation = _frames(FrameDecoder(masked=masked), pieces(stream, options.cuts))
    assert (_merged(whole), violation) == (_merged(cut), cut_violation)
    at_once = _messages(MessageDecoder(masked=masked, text_limit=200, binary_limit=300), [stream])
    in_pieces = _messages(MessageDecoder(masked=masked, text_limit=200, binary_limit=300), pieces(stream, options.cuts))
    assert at_once == in_pieces
    _agrees_with_websockets(whole, violation, stream, masked)


def _frames(decoder: FrameDecoder, chunks: Iterator[bytes] | list[bytes]) -> tuple[list[Data | Control], str]:
    found: list[Data | Control] = []
    for chunk in chunks:
        try:
            found.extend(decoder.feed(chunk))
        except InvalidFrame as error:
            return found, str(error)
        assert len(decoder._held) < 14 + 125, "more is held than a head and a control frame"
    return found, ""


def _merged(items: list[Data | Control]) -> list[Data | Control]:
    """Pieces of one message joined as far as no control frame stands between them."""
    merged: list[Data | Control] = []
    for item in items:
        last = merged[-1] if merged else None
        if isinstance(item, Data) and isinstance(last, Data) and not last.end:
            merged[-1] = Data(item.opcode, last.payload + item.payload, item.end)
        else:
            merged.append(item)
    return merged


def _messages(decoder: MessageDecoder, chunks: Iterator[bytes] | list[bytes]) -> tuple[list[Message | Control], str]:
    found: list[Message | Control] = []
    for chunk in chunks:
        try:
            for item in decoder.feed(chunk):
                found.append(item)
        except (InvalidFrame, InvalidMessage, MessageTooLarge) as error:
            return found, f"{type(error).__name__} {error}"
    return found, ""


def _agrees_with_websockets(ours: list[Data | Control], violation: str, stream: bytes, masked: bool) -> None:
    theirs = Protocol(WebSocketsSide.SERVER if masked else WebSocketsSide.CLIENT, max_size=None)
    theirs.receive_data(stream)
    seen = [event for event in theirs.events_received() if isinstance(event, websockets.frames.Frame)]
    is_error = isinstance(theirs.parser_exc, websockets.exceptions.ProtocolError)
    if ours and isinstance(ours[-1], Control) and ours[-1].opcode is Opcode.CLOSE and is_error:
        # websockets looks into a Close while it reads it, and wants none between two fragments, where RFC 6455 section
        # 5.4 allows any control frame; with us the caller looks into it.
        if str(theirs.parser_exc) != "incomplete fragmented message":
            try:
                parse_close(ours[-1].payload)
            except InvalidFrame:
                pass
            else:
                raise AssertionError(f"only websockets refuses a Close: {theirs.parser_exc}")
        ours, is_error = ours[:-1], False
    whole = [(event.opcode, bytes(event.data), event.fin) for event in seen]
    mine = _whole(ours)
    assert mine[: len(whole)] == whole[: len(mine)]
    assert len(mine) >= len(whole)
    # Some rules are looked at by one of the two when the head is there, by the other when the frame is.
    if violation:
        assert is_error or read_plainly(stream)[1]
    elif is_error:
        assert _frames(FrameDecoder(masked=masked), [stream + bytes(14)])[1]


def _whole(items: list[Data | Control]) -> list[tuple[int, bytes, bool]]:
    """Frames of a stream that was decoded in one piece: each Data is then one frame, but for the last, unfinished."""
    found = []
    continued = False
    for item in items:
        if isinstance(item, Control):
            found.append((int(item.opcode), item.payload, True))
        else:
            found.append((0 if continued else int(item.opcode), item.payload, item.end))
            continued = not item.end
    return found


# --- the WebSocket of one HTTP request ---


def http_rendezvous(data: bytes) -> None:
    """A command and its body, read by an end: the same however they are cut; nothing is told after the end."""
    options, stream = options_and_rest(data)
    whole = _told(options.flag, [stream])
    assert _told(options.flag, pieces(stream, options.cuts)) == whole
    ended = [place for place, each in enumerate(whole) if isinstance(each, Ended)]
    assert len(ended) <= 1
    if ended:
        assert not any(isinstance(each, Received | bytes) for each in whole[ended[0] :])


def _told(masked: bool, chunks: Iterator[bytes] | list[bytes]) -> list[object]:
    """What an end tells, the body joined; without pongs: of the pings that come at once one is answered."""
    end = HttpRendezvous(
        masked=masked,
        now=0.0,
        tracking_id="an-id",
        frame_limit=65_536,
        new_mask=None if masked else lambda: b"\x01\x02\x03\x04",
    )
    found: list[object] = []
    for chunk in chunks:
        for command in end.receive(chunk, 0.0):
            if isinstance(command, Send) and command.data[0] & 15 == Opcode.PONG:
                continue
            if not isinstance(command, BodyPart):
                found.append(command)
                continue
            if found and isinstance(found[-1], bytes):
                found[-1] += command.data
            else:
                found.append(command.data)
            if command.end:
                found.append("end")
        assert len(end._text) <= CONTROL_TEXT_LIMIT
    return found


# --- between two ends ---


def lane(data: bytes) -> None:
    """One direction through the relay: what leaves is what came, unmasked and cut at the limit, whatever the cuts."""
    options, stream = options_and_rest(data)
    at_once = Lane(frame_limit=options.limit, reject_oversize=options.flag)
    left = _left(at_once, stream)
    in_pieces = Lane(frame_limit=options.limit, reject_oversize=options.flag)
    assert b"".join(_left(in_pieces, piece) for piece in pieces(stream, options.cuts)) == left
    for name in ("close", "ping", "messages", "bytes", "is_mid_frame"):
        assert getattr(at_once, name) == getattr(in_pieces, name), name
    assert repr(at_once.violation) == repr(in_pieces.violation)
    expected, last = _expected(stream, options.limit, options.flag)
    assert left.startswith(expected)
    assert last or left == expected
    assert not any(masked for _, masked, _ in read_plainly(left)[0])


def _left(lane: Lane, data: bytes) -> bytes:
    """What leaves for `data`, read into a buffer that is used again before anything is written."""
    buffer = bytearray(data)
    out = lane.feed(memoryview(buffer))
    buffer[:] = bytes(len(buffer))
    left = joined(out)
    assert len(lane._held) < 14 + 125, "more is held than a head and a control frame"
    return left


def _expected(stream: bytes, limit: int, reject: bool) -> tuple[bytes, bool]:
    """The bytes that must leave for the whole frames of `stream`, and whether a frame may be passing after them."""
    out = b""
    found, rest = read_plainly(stream)
    for first, masked, payload in found:
        opcode = first & 15
        if not masked:
            return out, False
        if opcode >= 8:
            if len(payload) > 125 or not first & 128:
                return out, False
            if first not in (0x89, 0x8A):
                out += bytes((first, len(payload))) + payload
            if first == 0x88:
                return out, False
        elif len(payload) > limit and reject:
            return out, False
        else:
            out += _cut(first, payload, limit)
    return out, bool(rest)


def _cut(first: int, payload: bytes, limit: int) -> bytes:
    parts = [payload[start : start + limit] for start in range(0, len(payload), limit)] or [b""]
    out = []
    for number, part in enumerate(parts):
        fin = first & 128 if number == len(parts) - 1 else 0
        size = len(part)
        length = bytes((size,)) if size < 126 else struct.pack("!BH" if size < 65_536 else "!BQ", 126, size)
        if size >= 65_536:
            length = struct.pack("!BQ", 127, size)
        out.append(bytes(((first & 127 if number == 0 else 0) | fin,)) + length + part)
    return b"".join(out)


def splice(data: bytes) -> None:
    """Two legs, with anything happening in any order: it ends once, and a leg that is closed has whole frames."""
    options, script = options_and_rest(data)
    both = Splice(limits=_LIMITS, tracking_id="an-id", now=0.0)
    for one in both.lanes:
        one.frame_limit, one.reject_oversize = options.limit, options.flag
    left = [b"", b""]
    lost = [False, False]
    ended = None
    now = 0.0
    place = 0
    while place < len(script):
        what = script[place]
        place += 1
        side = Side(what & 1)
        actions = NOTHING
        match what >> 1 & 7:
            case 0:
                lost[side] = True
                actions = both.lost(side)
            case 1:
                both.congested(side)
            case 2:
                actions = both.relieved(side, now)
            case 3:
                now += what >> 4
                actions = both.tick(now)
            case 4 if what >> 4 == 15:
                actions = both.close(EndpointNotFound())
            case 5 if what >> 4 == 15:
                actions = both.tear_down("gone", Cause.CONTROL_CHANNEL_LOST)
            case _:
                size = script[place] if place < len(script) else 0
                actions = both.receive(side, script[place + 1 : place + 1 + size], now)
                place += 1 + size
        assert ended is None or actions == NOTHING, "something happens after the end"
        ended = ended or actions.end
        left[Side.SENDER] += joined(actions.to_sender)
        left[Side.LISTENER] += joined(actions.to_listener)
    for side in Side:
        found, rest = read_plainly(left[side])
        closes = [number for number, (first, _, _) in enumerate(found) if first == 0x88]
        assert closes in ([], [len(found) - 1]), "something follows a Close"
        assert not (closes and rest), "something follows a Close"
        cut = ended is not None and (ended.abort_sender if side is Side.SENDER else ended.abort_listener)
        if ended is not None and not cut and not lost[side]:
            assert not rest, "a leg is closed inside a frame"
