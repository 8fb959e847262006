"""Frames, read and written; the `websockets` library is the second opinion on what the bytes mean."""

from __future__ import annotations

import itertools
import random
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import pytest
import websockets.frames
from hypothesis import example, given, settings
from hypothesis import strategies as st
from websockets.protocol import Protocol
from websockets.protocol import Side as WebSocketsSide
from websockets.speedups import apply_mask

from trunkline.protocol.errors import InvalidFrame, InvalidMessage, MessageTooLarge, ProtocolViolation
from trunkline.protocol.frames import (
    CONTROL_PAYLOAD_LIMIT,
    LONGEST_HEADER,
    Close,
    Control,
    Data,
    FrameDecoder,
    Message,
    MessageDecoder,
    Opcode,
    close_payload,
    encode_frame,
    encode_head,
    encode_message,
    is_valid_close_code,
    mask_bytes,
    parse_close,
    read_header,
    rotate,
)

Item = TypeVar("Item")

KEY = b"\x11\x22\x33\x44"

# Around each place where the form of the length changes, and the frame limit of the relay.
sizes = st.one_of(
    st.sampled_from((0, 1, 124, 125, 126, 127, 65_535, 65_536, 65_537, 200 * 1024)),
    st.integers(0, 300),
    st.integers(0, 200 * 1024),
)
masks = st.binary(min_size=4, max_size=4)
seeds = st.integers(0, 2**32)
cuts = st.lists(st.integers(0, 2**20), max_size=12)

# Frames that are often right and often wrong: (first byte, masked, payload size).
odd_frames = st.lists(
    st.tuples(
        st.one_of(
            st.sampled_from((0x01, 0x02, 0x00, 0x80, 0x81, 0x82, 0x88, 0x89, 0x8A, 0x89, 0x8A, 0x80, 0x00)),
            st.integers(0, 255),
        ),
        st.sampled_from((True,) * 20 + (False,)),
        st.sampled_from((0, 0, 1, 2, 5, 5, 125, 126, 300, 70_000)),
    ),
    max_size=12,
)


def joined(frames: Sequence[tuple[int, bool, int]], seed: int = 0) -> bytes:
    """The bytes of `frames`; the payload of a Close is a good one, every other is random."""
    source = random.Random(seed)
    stream = bytearray()
    for first, masked, size in frames:
        payload = close_payload(1000, "x" * (size - 2)) if first == 0x88 and size >= 2 else source.randbytes(size)
        key = source.randbytes(4)
        stream += encode_head(first, len(payload), masked=masked)
        stream += key + mask_bytes(payload, key) if masked else payload
    return bytes(stream)


def cut(stream: bytes, places: Sequence[int]) -> Iterator[bytes]:
    """`stream` in pieces, some of them empty."""
    edges = [0, *sorted(place % (len(stream) + 1) for place in places), len(stream)]
    for start, stop in itertools.pairwise(edges):
        yield stream[start:stop]


def merged(items: Sequence[Data | Control]) -> list[Data | Control]:
    """`items` with pieces of one message that follow each other put together: what no chunking may change."""
    result: list[Data | Control] = []
    for item in items:
        last = result[-1] if result else None
        if isinstance(item, Data) and isinstance(last, Data) and not last.end:
            result[-1] = Data(last.opcode, last.payload + item.payload, item.end)
        else:
            result.append(item)
    return result


def decoded(
    feed: Callable[[bytes], Iterator[Item]], pieces: Iterator[bytes]
) -> tuple[list[Item], tuple[type, str] | None]:
    """All items that `pieces` gave, and the violation that ended them."""
    items: list[Item] = []
    try:
        for piece in pieces:
            items.extend(feed(piece))
    except ProtocolViolation as violation:
        return items, (type(violation), violation.message)
    return items, None


def items_of(stream: bytes, *, masked: bool = True) -> list[Data | Control]:
    return list(FrameDecoder(masked=masked).feed(stream))


def messages_of(stream: bytes, *, masked: bool = True) -> list[Message | Control]:
    return list(MessageDecoder(masked=masked, text_limit=100, binary_limit=1000).feed(stream))


# --- masking ---


@given(size=st.one_of(st.integers(0, 40), sizes), seed=seeds, mask=masks, view=st.booleans())
@settings(max_examples=60)
def test_mask_bytes_agrees_with_websockets_and_undoes_itself(size: int, seed: int, mask: bytes, view: bool) -> None:
    data = random.Random(seed).randbytes(size)
    given_data, given_mask = (memoryview(data), memoryview(mask)) if view else (data, mask)
    masked = mask_bytes(given_data, given_mask)
    assert type(masked) is bytes
    assert masked == apply_mask(data, mask)
    assert mask_bytes(masked, mask) == data


@given(data=st.binary(max_size=40), mask=masks, consumed=st.integers(0, 40))
def test_rotated_mask_continues_where_the_first_piece_ended(data: bytes, mask: bytes, consumed: int) -> None:
    pieces = mask_bytes(data[:consumed], mask) + mask_bytes(data[consumed:], rotate(mask, len(data[:consumed])))
    assert pieces == mask_bytes(data, mask)


# --- writing ---


@given(
    opcode=st.sampled_from((Opcode.CONTINUATION, Opcode.TEXT, Opcode.BINARY)),
    size=sizes,
    seed=seeds,
    fin=st.booleans(),
    mask=st.none() | masks,
)
@settings(max_examples=60)
def test_websockets_reads_what_encode_frame_writes(
    opcode: Opcode, size: int, seed: int, fin: bool, mask: bytes | None
) -> None:
    payload = random.Random(seed).randbytes(size)
    stream = encode_frame(opcode, payload, fin=fin, mask=mask)
    reader = websockets.streams.StreamReader()
    reader.feed_data(stream)
    parse = websockets.frames.Frame.parse(reader.read_exact, mask=mask is not None)
    with pytest.raises(StopIteration) as stopped:
        next(parse)
    frame = stopped.value.value
    assert (int(frame.opcode), bytes(frame.data), frame.fin) == (opcode, payload, fin)
    assert not reader.buffer
    view = memoryview(payload)
    assert encode_frame(opcode, view, fin=fin, mask=mask, masker=apply_mask_of_views) == stream


def apply_mask_of_views(data: bytes | memoryview, mask: bytes | memoryview) -> bytes:
    return apply_mask(data, bytes(mask))


@given(size=sizes, seed=seeds, mask=st.booleans(), fin=st.booleans(), places=cuts)
@settings(max_examples=60)
def test_decoder_reads_what_websockets_writes(size: int, seed: int, mask: bool, fin: bool, places: list[int]) -> None:
    payload = random.Random(seed).randbytes(size)
    frame = websockets.frames.Frame(websockets.frames.Opcode.BINARY, payload, fin=fin)
    decoder = FrameDecoder(masked=mask, masker=apply_mask_of_views)
    items, violation = decoded(decoder.feed, cut(frame.serialize(mask=mask), places))
    assert violation is None
    assert merged(items) == [Data(Opcode.BINARY, payload, fin)]


@given(
    opcode=st.sampled_from((Opcode.TEXT, Opcode.BINARY)),
    size=sizes,
    limit=st.one_of(st.sampled_from((125, 126, 65_535, 65_536)), st.integers(100, 250_000)),
    masked=st.booleans(),
)
@settings(max_examples=60)
def test_encode_message_keeps_every_frame_within_the_limit(opcode: Opcode, size: int, limit: int, masked: bool) -> None:
    payload = b"a" * size
    keys = (bytes((n % 256, 1, 2, n % 255)) for n in itertools.count())
    stream = encode_message(opcode, payload, frame_limit=limit, new_mask=(lambda: next(keys)) if masked else None)
    decoder = MessageDecoder(masked=masked, text_limit=size, binary_limit=size)
    assert list(decoder.feed(stream)) == [Message(opcode, payload)]
    lengths, position, used = [], 0, set()
    while position < len(stream):
        header = read_header(stream, position, len(stream))
        assert header is not None
        lengths.append(header.length)
        used.add(header.mask)
        position += header.size + header.length
    assert max(lengths) <= limit
    assert len(lengths) == max(1, -(-size // limit))
    assert len(used) == (min(len(lengths), 65_280) if masked else 1)  # a fresh key for each fragment


@pytest.mark.parametrize(
    ("length", "head"),
    [
        (125, "82 7d"),
        (126, "82 7e 00 7e"),
        (65_535, "82 7e ff ff"),
        (65_536, "82 7f 00 00 00 00 00 01 00 00"),
    ],
)
def test_head_has_the_shortest_form_of_its_length(length: int, head: str) -> None:
    assert encode_head(0x82, length) == bytes.fromhex(head)
    with_mask = bytearray.fromhex(head)
    with_mask[1] |= 0x80
    assert encode_head(0x82, length, masked=True) == with_mask


# --- Close ---


@given(code=st.none() | st.integers(0, 65_535).filter(is_valid_close_code), reason=st.text(max_size=200))
@example(1000, "é" * 62)  # 124 bytes: the last character does not fit
@example(1000, "\ud800")  # no UTF-8 for it
def test_close_payload_fits_a_control_frame_and_parses_back(code: int | None, reason: str) -> None:
    payload = close_payload(code, reason)
    assert len(payload) <= CONTROL_PAYLOAD_LIMIT
    close = parse_close(payload)
    assert close.code == code
    if code is None:
        assert close.reason == ""
        return
    assert reason.encode("utf-8", "replace").decode().startswith(close.reason)
    assert len(close.reason.encode()) > 119 or close.reason == reason.encode("utf-8", "replace").decode()


def test_close_payload_cuts_a_reason_between_characters() -> None:
    assert close_payload(1000, "é" * 62) == b"\x03\xe8" + "é".encode() * 61


@given(payload=st.one_of(st.binary(max_size=6), st.integers(0, 65_535).map(lambda code: code.to_bytes(2, "big"))))
@settings(max_examples=300)
def test_parse_close_agrees_with_websockets(payload: bytes) -> None:
    try:
        theirs = websockets.frames.Close.parse(payload)
    except (websockets.exceptions.ProtocolError, UnicodeDecodeError):
        with pytest.raises(InvalidFrame):
            parse_close(payload)
    else:
        assert parse_close(payload) == Close(int(theirs.code) if payload else None, theirs.reason)


@pytest.mark.parametrize("code", [0, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, 65_535])
def test_parse_close_refuses_a_code_that_may_not_be_sent(code: int) -> None:
    with pytest.raises(InvalidFrame, match=f"the code {code}"):
        parse_close(code.to_bytes(2, "big"))


@pytest.mark.parametrize("code", [1000, 1003, 1007, 1014, 3000, 4999])
def test_parse_close_takes_a_code_at_the_edge_of_its_range(code: int) -> None:
    assert parse_close(code.to_bytes(2, "big") + b"why") == Close(code, "why")


def test_parse_close_says_what_is_wrong() -> None:
    with pytest.raises(InvalidFrame, match="one byte"):
        parse_close(b"\x03")
    with pytest.raises(InvalidFrame, match="not UTF-8"):
        parse_close(b"\x03\xe8\xff")


# --- frames in ---


@given(frames=odd_frames, seed=seeds, places=cuts, every_byte=st.booleans())
@settings(max_examples=200)
def test_decoder_gives_the_same_for_any_chunking(
    frames: list[tuple[int, bool, int]], seed: int, places: list[int], every_byte: bool
) -> None:
    stream = joined(frames, seed)
    if every_byte and len(stream) < 1000:
        places = list(range(len(stream)))
    at_once = decoded(FrameDecoder(masked=True).feed, iter((stream,)))
    in_pieces = decoded(FrameDecoder(masked=True).feed, cut(stream, places))
    assert merged(in_pieces[0]) == merged(at_once[0])
    assert in_pieces[1] == at_once[1]


@given(frames=odd_frames, seed=seeds, masked=st.booleans())
@settings(max_examples=200)
def test_decoder_agrees_with_websockets_on_any_frames(
    frames: list[tuple[int, bool, int]], seed: int, masked: bool
) -> None:
    frames = [(first, masked == as_asked, size) for first, as_asked, size in frames]
    stream = joined(frames, seed)
    ours, violation = decoded(FrameDecoder(masked=masked).feed, iter((stream,)))
    theirs = Protocol(WebSocketsSide.SERVER if masked else WebSocketsSide.CLIENT, max_size=None)
    theirs.receive_data(stream)
    seen: list[tuple[int, bytes, bool]] = []
    for frame in theirs.events_received():
        assert isinstance(frame, websockets.frames.Frame)
        seen.append((int(frame.opcode), bytes(frame.data), frame.fin))
    close_is_refused = False
    if ours and ours[-1].opcode is Opcode.CLOSE:
        # websockets looks into a Close while it reads; here that is the caller's. It also wants no Close between two
        # fragments, where RFC 6455 section 5.4 allows any control frame.
        try:
            parse_close(ours[-1].payload)
        except InvalidFrame:
            close_is_refused = True
        else:
            close_is_refused = str(theirs.parser_exc) == "incomplete fragmented message"
        if close_is_refused:
            ours.pop()
    assert [item.payload for item in ours] == [payload for _, payload, _ in seen]
    message = 0
    for item, (opcode, _, fin) in zip(ours, seen, strict=True):
        if opcode in (Opcode.TEXT, Opcode.BINARY):
            message = opcode
        assert item.opcode == (opcode or message)
        if isinstance(item, Data):
            assert item.end == fin
    assert (violation is not None or close_is_refused) == isinstance(
        theirs.parser_exc, websockets.exceptions.ProtocolError
    )


@given(pieces=st.lists(st.binary(max_size=200), max_size=8), masked=st.booleans())
@settings(max_examples=200)
def test_decoders_raise_nothing_but_the_declared_errors_and_hold_little(pieces: list[bytes], masked: bool) -> None:
    frames = FrameDecoder(masked=masked)
    messages = MessageDecoder(masked=masked, text_limit=50, binary_limit=60)
    frames_failed = messages_failed = False
    for piece in pieces:
        try:
            for item in frames.feed(piece):
                assert len(item.payload) <= max(len(piece), CONTROL_PAYLOAD_LIMIT)
            assert not frames_failed
        except InvalidFrame:
            frames_failed = True
        assert len(frames._held) < LONGEST_HEADER + CONTROL_PAYLOAD_LIMIT
        try:
            list(messages.feed(piece))
            assert not messages_failed
        except (InvalidFrame, InvalidMessage, MessageTooLarge):
            messages_failed = True
        assert len(messages._buffer) <= 60
        assert len(messages._frames._held) < LONGEST_HEADER + CONTROL_PAYLOAD_LIMIT


@given(
    fragments=st.lists(st.tuples(sizes, st.booleans()), min_size=1, max_size=4),
    opcode=st.sampled_from((Opcode.TEXT, Opcode.BINARY)),
    mask=st.none() | masks,
    places=cuts,
    view=st.booleans(),
)
@settings(max_examples=60)
def test_message_decoder_puts_fragments_together_around_control_frames(
    fragments: list[tuple[int, bool]], opcode: Opcode, mask: bytes | None, places: list[int], view: bool
) -> None:
    stream, payload, expected = b"", b"", list[Message | Control]()
    for number, (size, ping) in enumerate(fragments):
        part = bytes((97 + number,)) * size
        fin = number == len(fragments) - 1
        stream += encode_frame(opcode if number == 0 else Opcode.CONTINUATION, part, fin=fin, mask=mask)
        payload += part
        if ping and not fin:
            stream += encode_frame(Opcode.PING, b"%d" % number, mask=mask)
            expected.append(Control(Opcode.PING, b"%d" % number))
    expected.append(Message(opcode, payload))
    stream += encode_frame(Opcode.PONG, b"end", mask=mask)
    expected.append(Control(Opcode.PONG, b"end"))
    decoder = MessageDecoder(masked=mask is not None, text_limit=2**20, binary_limit=2**20, masker=apply_mask_of_views)
    items: list[Message | Control] = []
    for piece in cut(stream, places):
        items.extend(decoder.feed(memoryview(piece) if view else piece))
    assert items == expected
    assert all(type(item.payload) is bytes for item in items)


@given(frames=odd_frames, seed=seeds, places=cuts)
@settings(max_examples=150)
def test_message_decoder_gives_the_same_for_any_chunking(
    frames: list[tuple[int, bool, int]], seed: int, places: list[int]
) -> None:
    stream = joined(frames, seed)

    def messages(pieces: Iterator[bytes]) -> object:
        return decoded(MessageDecoder(masked=True, text_limit=300, binary_limit=70_001).feed, pieces)

    assert messages(cut(stream, places)) == messages(iter((stream,)))


def test_decoder_gives_the_payload_of_a_long_frame_as_it_comes() -> None:
    decoder = FrameDecoder(masked=False)
    announced = encode_head(0x82, 2**63 - 1)
    assert list(decoder.feed(announced)) == []
    assert list(decoder.feed(b"some")) == [Data(Opcode.BINARY, b"some", False)]
    assert list(decoder.feed(b"")) == []
    assert list(decoder.feed(b"more")) == [Data(Opcode.BINARY, b"more", False)]
    assert repr(decoder) == f"<FrameDecoder open remaining={2**63 - 9}>"
    assert decoder._held == b""


def test_decoder_keeps_no_reference_to_a_buffer_that_is_used_again() -> None:
    buffer = bytearray(encode_frame(Opcode.BINARY, b"hello", fin=False) + encode_frame(Opcode.PING, b"ping")[:3])
    decoder = FrameDecoder(masked=False)
    items = list(decoder.feed(memoryview(buffer)))
    buffer[:] = bytes(len(buffer))
    items += decoder.feed(b"ing")
    assert items == [Data(Opcode.BINARY, b"hello", False), Control(Opcode.PING, b"ping")]


def test_decoder_passes_empty_fragments_on_one_by_one_without_keeping_them() -> None:
    decoder = MessageDecoder(masked=True, text_limit=10, binary_limit=10)
    assert list(decoder.feed(encode_frame(Opcode.BINARY, fin=False, mask=KEY))) == []
    empty = encode_frame(Opcode.CONTINUATION, fin=False, mask=KEY)
    for _ in range(50):
        assert list(decoder.feed(empty * 40)) == []
    assert len(decoder._buffer) == 0
    last = encode_frame(Opcode.CONTINUATION, b"end", mask=KEY)
    assert list(decoder.feed(empty + last)) == [Message(Opcode.BINARY, b"end")]


def test_decoder_reads_nothing_after_a_close() -> None:
    close = encode_frame(Opcode.CLOSE, close_payload(1000, "bye"), mask=KEY)
    decoder = FrameDecoder(masked=True)
    assert list(decoder.feed(close[:7])) == []
    assert not decoder.closed
    assert list(decoder.feed(close[7:] + b"\xff\xff\xff\xff")) == [Control(Opcode.CLOSE, close_payload(1000, "bye"))]
    assert decoder.closed
    assert list(decoder.feed(b"\xff" * 1000)) == []
    assert decoder._held == b""
    assert repr(decoder) == "<FrameDecoder closed remaining=0>"


def test_message_decoder_tells_that_it_is_closed() -> None:
    decoder = MessageDecoder(masked=False, text_limit=1, binary_limit=1)
    assert not decoder.closed
    assert list(decoder.feed(encode_frame(Opcode.CLOSE))) == [Control(Opcode.CLOSE, b"")]
    assert decoder.closed
    assert repr(decoder) == "<MessageDecoder held=0 <FrameDecoder closed remaining=0>>"


VIOLATIONS = {
    "reserved bit": (b"\xc2\x80" + KEY, "reserved bit"),
    "client without mask": (b"\x82\x01a", "client's frame is not masked"),
    "reserved data opcode": (b"\x83\x80" + KEY, "reserved opcode 3"),
    "reserved control opcode": (b"\x8b\x80" + KEY, "reserved opcode 11"),
    "long control frame": (b"\x89\xfe\x00\x7e" + KEY, "126 bytes; at most 125"),
    "endless control frame": (b"\x8a\xff" + b"\x7f" * 8 + KEY, "at most 125"),
    "control frame without FIN": (b"\x09\x80" + KEY, "control frame is fragmented"),
    "continuation of nothing": (b"\x80\x80" + KEY, "no message to continue"),
    "length of 2^63": (b"\x82\xff\x80" + bytes(7), "2\\^63"),
    "length of 2^64 - 1": (b"\x82\x7f" + b"\xff" * 8, "2\\^63"),
}


@pytest.mark.parametrize(("wrong", "message"), VIOLATIONS.values(), ids=VIOLATIONS.keys())
@pytest.mark.parametrize("step", [1, 3, 1000])
def test_decoder_gives_what_came_before_a_violation_then_raises_for_good(wrong: bytes, message: str, step: int) -> None:
    good = encode_frame(Opcode.TEXT, b"good", mask=KEY) + encode_frame(Opcode.PING, b"p", mask=KEY)
    stream = good + wrong
    decoder = FrameDecoder(masked=True)
    items: list[Data | Control] = []
    with pytest.raises(InvalidFrame, match=message):
        for start in range(0, len(stream), step):
            items.extend(decoder.feed(stream[start : start + step]))
    assert merged(items) == [Data(Opcode.TEXT, b"good", True), Control(Opcode.PING, b"p")]
    assert repr(decoder) == "<FrameDecoder violated remaining=0>"
    for _ in range(3):
        with pytest.raises(InvalidFrame, match=message):
            list(decoder.feed(good))


def test_decoder_of_a_servers_frames_refuses_a_mask() -> None:
    with pytest.raises(InvalidFrame, match="server's frame is masked"):
        items_of(encode_frame(Opcode.TEXT, b"a", mask=KEY), masked=False)


def test_decoder_refuses_a_message_inside_a_message() -> None:
    begun = encode_frame(Opcode.TEXT, b"a", fin=False, mask=KEY)
    with pytest.raises(InvalidFrame, match="before the one before it has ended"):
        items_of(begun + begun)


def test_decoder_takes_a_message_after_a_fragmented_one() -> None:
    stream = (
        encode_frame(Opcode.TEXT, b"a", fin=False, mask=KEY)
        + encode_frame(Opcode.CONTINUATION, b"b", mask=KEY)
        + encode_frame(Opcode.BINARY, b"c", mask=KEY)
    )
    assert messages_of(stream) == [Message(Opcode.TEXT, b"ab"), Message(Opcode.BINARY, b"c")]


# --- messages in ---


@pytest.mark.parametrize(("opcode", "limit"), [(Opcode.TEXT, 100), (Opcode.BINARY, 1000)])
def test_message_decoder_takes_a_message_of_just_its_limit(opcode: Opcode, limit: int) -> None:
    stream = encode_frame(opcode, b"a" * limit, mask=KEY)
    assert messages_of(stream) == [Message(opcode, b"a" * limit)]
    with pytest.raises(MessageTooLarge, match=f"{opcode.name} message is longer than {limit} bytes") as raised:
        messages_of(encode_frame(opcode, b"a" * (limit + 1), mask=KEY))
    assert raised.value.close_code == 1009


def test_message_decoder_counts_a_message_not_its_fragments_and_starts_again_for_the_next() -> None:
    part = encode_frame(Opcode.TEXT, b"a" * 60, fin=False, mask=KEY)
    rest = encode_frame(Opcode.CONTINUATION, b"a" * 40, mask=KEY)
    over = encode_frame(Opcode.CONTINUATION, b"a" * 41, mask=KEY)
    decoder = MessageDecoder(masked=True, text_limit=100, binary_limit=1000)
    assert list(decoder.feed((part + rest) * 2)) == [Message(Opcode.TEXT, b"a" * 100)] * 2
    assert list(decoder.feed(part)) == []
    with pytest.raises(MessageTooLarge):
        list(decoder.feed(over))
    assert len(decoder._buffer) == 0


def test_message_decoder_refuses_a_long_message_before_it_has_come() -> None:
    for announced in (2**40, 101):
        decoder = MessageDecoder(masked=False, text_limit=100, binary_limit=1000)
        assert list(decoder.feed(encode_head(0x81, announced))) == []
        with pytest.raises(MessageTooLarge):
            list(decoder.feed(b"a"))
    # Also in parts.
    decoder = MessageDecoder(masked=False, text_limit=100, binary_limit=1000)
    assert list(decoder.feed(encode_frame(Opcode.TEXT, b"a" * 60, fin=False) + encode_head(0x80, 41))) == []
    with pytest.raises(MessageTooLarge):
        list(decoder.feed(b"a"))


def test_message_decoder_refuses_text_that_is_not_utf8() -> None:
    decoder = MessageDecoder(masked=False, text_limit=100, binary_limit=1000)
    stream = encode_frame(Opcode.BINARY, b"\xff") + encode_frame(Opcode.TEXT, b"\xff")
    items: list[Message | Control] = []
    with pytest.raises(InvalidMessage) as raised:
        items.extend(decoder.feed(stream))
    assert items == [Message(Opcode.BINARY, b"\xff")]
    assert raised.value.close_code == 1007
    with pytest.raises(InvalidMessage):
        list(decoder.feed(encode_frame(Opcode.TEXT, b"good")))


def test_message_decoder_takes_text_whose_characters_are_cut_by_fragments() -> None:
    euro = "€".encode()
    stream = encode_frame(Opcode.TEXT, euro[:1], fin=False) + encode_frame(Opcode.CONTINUATION, euro[1:])
    assert messages_of(stream, masked=False) == [Message(Opcode.TEXT, euro)]


@pytest.mark.parametrize(
    "stream",
    [b"\x82\x01a", encode_frame(Opcode.TEXT, b"\xff", mask=KEY), encode_frame(Opcode.TEXT, b"a" * 101, mask=KEY)],
    ids=["framing", "UTF-8", "size"],
)
def test_decoder_holds_no_more_however_often_it_is_fed_after_a_violation(stream: bytes) -> None:
    decoder = MessageDecoder(masked=True, text_limit=100, binary_limit=1000)
    depths = []
    for _ in range(5):
        with pytest.raises(ProtocolViolation) as raised:
            list(decoder.feed(stream))
        depths.append(len(list(traceback.walk_tb(raised.value.__traceback__))))
        assert raised.value.__context__ is None  # an UnicodeDecodeError would hold the whole message
    assert len(set(depths[1:])) == 1
