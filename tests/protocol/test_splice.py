"""Two legs joined: what leaves on each side, and how it ends.

`leaving` is a plain reading of RFC 6455 section 5.2 that shares no code with the splice; where a stream is a proper
conversation, the `websockets` library reads it as well.
"""

from __future__ import annotations

import dataclasses
import itertools
import random
from collections.abc import Sequence

import pytest
import websockets.frames
from hypothesis import example, given, settings
from hypothesis import strategies as st
from websockets.protocol import Protocol
from websockets.protocol import Side as WebSocketsSide
from websockets.speedups import apply_mask

from trunkline.protocol.causes import Cause
from trunkline.protocol.errors import (
    AuthorizationFailed,
    EndpointNotFound,
    InvalidFrame,
    MessageTooLarge,
    ProtocolViolation,
    RelayError,
)
from trunkline.protocol.frames import (
    CONTROL_PAYLOAD_LIMIT,
    LONGEST_HEADER,
    Opcode,
    close_payload,
    encode_frame,
    encode_head,
    encode_message,
    mask_bytes,
    parse_close,
)
from trunkline.protocol.limits import Limits, resolve
from trunkline.protocol.splice import NOTHING, Actions, End, Lane, Side, Splice, joined

SENDER, LISTENER = Side.SENDER, Side.LISTENER
KEY = b"\x11\x22\x33\x44"
TRACKING_ID = "9a8b2d6c-0c3f-4f6e-8a6f-5f1f0a0b0c0d"

Frame = tuple[int, bytes]
"""The first byte of a frame (FIN, RSV, opcode) and its payload."""


def c_masker(data: bytes | memoryview, mask: bytes | memoryview) -> bytes:
    return apply_mask(data, bytes(mask))


def incoming(first: int, payload: bytes, key: bytes = KEY) -> bytes:
    """A client's frame with any first byte."""
    return encode_head(first, len(payload), masked=True) + key + mask_bytes(payload, key)


def leaving(stream: bytes) -> tuple[list[Frame], bytes]:
    """The whole frames of `stream`, which must be unmasked, and the bytes of the one that is not whole yet."""
    frames: list[Frame] = []
    position = 0
    while len(stream) - position >= 2:
        first, length = stream[position : position + 2]
        assert length < 128, "a frame of the relay is masked"
        start = position + 2
        if length > 125:
            start += 2 if length == 126 else 8
            length = int.from_bytes(stream[position + 2 : start], "big")
        if len(stream) < start + length:
            break
        position = start + length
        frames.append((first, stream[start:position]))
    return frames, stream[position:]


def whole(stream: bytes) -> list[Frame]:
    """The frames of a stream that ends between two."""
    frames, rest = leaving(stream)
    assert rest == b""
    return frames


def cut_at(first: int, payload: bytes, limit: int) -> list[Frame]:
    """One frame as it must leave under `limit`."""
    if len(payload) <= limit or first & 0x08:
        return [(first, payload)]
    parts = [payload[start : start + limit] for start in range(0, len(payload), limit)]
    firsts = [first & 0x7F, *itertools.repeat(0, len(parts) - 2), first & 0x80]
    return list(zip(firsts, parts, strict=True))


def make_splice(*, now: float = 100.0, **changes: object) -> Splice:
    """A splice under the default limits with `changes`, which may be smaller than a user's."""
    limits: Limits = dataclasses.replace(resolve(), **changes)  # type: ignore[arg-type]
    return Splice(limits=limits, tracking_id=TRACKING_ID, now=now)


def toward(side: Side, actions: Actions) -> bytes:
    return joined(actions.to_sender if side is SENDER else actions.to_listener)


def fed(lane: Lane, data: bytes | memoryview) -> bytes:
    return joined(lane.feed(data))


def aborts(end: End | None) -> tuple[bool, bool]:
    """Which legs are cut: the sender's, the listener's."""
    assert end is not None
    return end.abort_sender, end.abort_listener


def close_frame(code: int | None, reason: str = "") -> bytes:
    return incoming(0x88, close_payload(code, reason))


def only_close(stream: bytes) -> tuple[int | None, str]:
    """The code and reason of `stream`, which must be one Close frame and no more."""
    [(first, payload)] = whole(stream)
    assert first == 0x88
    close = parse_close(payload)
    return close.code, close.reason


HALF_FRAME = incoming(0x82, b"0123456789")[:-4]
"""A frame of which the last four bytes have not come."""


# --- what passes ---

lengths = st.one_of(
    st.sampled_from((0, 1, 125, 126, 127, 65_535, 65_536, 65_537, 70_001)), st.integers(0, 300), st.integers(0, 200_000)
)
frame_limits = st.one_of(
    st.sampled_from((1, 125, 126, 127, 65_535, 65_536)), st.integers(1, 300), st.integers(1, 70_000)
)
streams = st.lists(
    st.tuples(
        # Data of any kind, RSV bits and reserved opcodes too, pings often, pongs, reserved control opcodes.
        st.one_of(
            st.sampled_from((0x81, 0x82, 0x02, 0x00, 0x80)),
            st.sampled_from((0x89, 0xC9)),  # the second with a reserved bit: it means nothing here
            st.integers(0, 255).filter(lambda first: not first & 0x08),
            st.sampled_from((0x8A, 0x8B, 0x8F, 0xFB)),
        ),
        lengths,
    ),
    max_size=7,
)
steps = st.lists(
    st.one_of(
        st.tuples(st.sampled_from((SENDER, LISTENER)), st.one_of(st.integers(0, 20), st.integers(0, 90_000))),
        st.tuples(st.sampled_from((SENDER, LISTENER)), st.sampled_from(("congested", "relieved"))),
    ),
    max_size=40,
)


@given(
    said=st.tuples(streams, streams),
    closes=st.tuples(st.booleans(), st.booleans()),
    limit=frame_limits,
    steps=steps,
    seed=st.integers(0, 2**32),
    view=st.booleans(),
)
@settings(max_examples=250)
@example(
    # A ping of the listener while the sender's frame passes, both cut in the middle.
    said=([(0x82, 1000)], [(0x89, 10), (0x89, 3), (0x82, 70)]),
    closes=(False, True),
    limit=400,
    steps=[(SENDER, 100), (LISTENER, 20), (LISTENER, 10), (SENDER, 350), (LISTENER, "congested"), (SENDER, 1)],
    seed=1,
    view=False,
)
def test_both_ends_see_what_the_other_said_however_it_is_chunked(
    said: tuple[list[tuple[int, int]], list[tuple[int, int]]],
    closes: tuple[bool, bool],
    limit: int,
    steps: Sequence[tuple[Side, int | str]],
    seed: int,
    view: bool,
) -> None:
    source = random.Random(seed)
    splice = Splice(limits=dataclasses.replace(resolve(), frame_limit=limit), tracking_id="t", now=0.0, masker=c_masker)
    arriving = [bytearray(), bytearray()]
    expected: list[list[Frame]] = [[], []]  # what leaves of each side's frames, pongs of the relay apart
    pings: list[list[tuple[int, bytes]]] = [[], []]  # of each side: where a Ping ends in its stream, its payload
    counts = [[0, 0], [0, 0]]
    for side in Side:
        for number, (first, length) in enumerate(said[side]):
            is_control = bool(first & 0x08)
            # At most about a hundred fragments: enough for every path, and quick.
            payload = source.randbytes(min(length, 125 - 4 if is_control else limit * 100))
            if first == 0x89:
                payload = b"%d-%d" % (side, number)
            arriving[side] += incoming(first, payload, source.randbytes(4))
            if first == 0x89:
                pings[side].append((len(arriving[side]), payload))
            elif first != 0x8A:
                expected[side] += cut_at(first, payload, limit)
            if not is_control:
                counts[side][0] += first >> 7
                counts[side][1] += len(payload)
        if closes[side]:
            arriving[side] += close_frame(4000 + side, "the end")
            expected[side].append((0x88, close_payload(4000 + side, "the end")))
            arriving[side] += source.randbytes(50)  # after a Close nothing is read

    read = [0, 0]
    left = [bytearray(), bytearray()]  # on each leg
    pongs: list[list[bytes]] = [[], []]
    frames: list[list[Frame]] = [[], []]
    is_congested = [False, False]

    def took(actions: Actions) -> None:
        for leg in Side:
            left[leg] += toward(leg, actions)
            new, rest = leaving(bytes(left[leg]))
            left[leg][:] = rest
            for first, payload in new:
                assert first & 0x08 or len(payload) <= limit
                if first == 0x8A:
                    newest = [payload for end, payload in pings[leg] if end <= read[leg]][-1]
                    assert payload == newest
                    assert not is_congested[leg]
                    assert not frames[leg] or frames[leg][-1][0] != 0x88
                    pongs[leg].append(payload)
                else:
                    frames[leg].append((first, payload))

    def receive(side: Side, size: int) -> None:
        piece = bytearray(arriving[side][read[side] : read[side] + size])
        read[side] += len(piece)
        actions = splice.receive(side, memoryview(piece) if view else bytes(piece), 0.0)
        piece[:] = bytes(len(piece))  # as the next read into the same buffer would: nothing may hang on it
        took(actions)

    for side, step in steps:
        if isinstance(step, int):
            receive(side, step)
        elif step == "congested":
            is_congested[side] = True
            splice.congested(side)
        else:
            is_congested[side] = False
            took(splice.relieved(side, 101.0))
    for side in Side:
        receive(side, len(arriving[side]))
    for side in Side:
        is_congested[side] = False
        took(splice.relieved(side, 101.0))

    for side in Side:
        assert frames[side.other] == expected[side]
        assert left[side] == b""
        lane = splice.lanes[side]
        assert [lane.messages, lane.bytes] == counts[side]
        assert len(lane._held) < LONGEST_HEADER + CONTROL_PAYLOAD_LIMIT
        assert len(set(pongs[side])) == len(pongs[side]), "a Ping was answered twice"
        if pings[side] and not closes[side.other]:
            assert pongs[side][-1:] == [pings[side][-1][1]]
    assert (splice.ended is not None) == all(closes)
    if splice.ended:
        assert aborts(splice.ended) == (False, False)


@given(
    messages=st.lists(
        st.tuples(
            st.sampled_from((Opcode.TEXT, Opcode.BINARY)),
            lengths,
            st.one_of(st.integers(1, 300), st.integers(1000, 200_000)),
            st.booleans(),
        ),
        min_size=1,
        max_size=4,
    ),
    limit=frame_limits,
    size=st.one_of(st.integers(1, 100), st.integers(1000, 300_000)),
)
@settings(max_examples=100)
def test_websockets_reads_the_same_messages_behind_the_splice(
    messages: list[tuple[Opcode, int, int, bool]], limit: int, size: int
) -> None:
    stream = bytearray()
    sent: list[tuple[int, bytes]] = []
    for number, (opcode, length, fragment, ping) in enumerate(messages):
        payload = bytes((97 + number,)) * min(length, limit * 100, fragment * 100, size * 200)
        stream += encode_message(opcode, payload, frame_limit=fragment, new_mask=lambda: KEY, masker=c_masker)
        sent.append((int(opcode), payload))
        if ping:
            stream += incoming(0x89, b"still there?")
    stream += close_frame(3001, "done")
    lane = Lane(frame_limit=limit, masker=c_masker)
    # Frames are unmasked: to websockets we are a server.
    reader = Protocol(WebSocketsSide.CLIENT, max_size=(None, max(limit, 125)))
    for start in range(0, len(stream), size):
        reader.receive_data(fed(lane, bytes(stream[start : start + size])))
    assert reader.parser_exc is None
    got: list[tuple[int, bytes]] = []
    for frame in reader.events_received():
        assert isinstance(frame, websockets.frames.Frame)
        if frame.opcode is websockets.frames.Opcode.CLOSE:
            break
        if frame.opcode is websockets.frames.Opcode.CONT:
            got[-1] = (got[-1][0], got[-1][1] + bytes(frame.data))
        else:
            got.append((int(frame.opcode), bytes(frame.data)))
    assert got == sent
    assert reader.close_rcvd == websockets.frames.Close(3001, "done")
    assert lane.messages == len(sent)
    assert lane.bytes == sum(len(payload) for _, payload in sent)


noise = st.one_of(
    st.binary(max_size=40),
    st.builds(
        lambda first, length, present: encode_head(first, length, masked=True) + KEY + bytes(min(length, present)),
        st.one_of(st.integers(0, 255), st.sampled_from((0x88, 0x89, 0x82))),
        st.one_of(st.integers(0, 130), st.integers(0, 2**64 - 1)),
        st.integers(0, 130),
    ),
    st.sampled_from((close_frame(1000), close_frame(1005), HALF_FRAME, incoming(0x82, b"good"))),
)


@given(
    noise=st.lists(noise, max_size=8).map(b"".join),
    places=st.lists(st.integers(0, 1000), max_size=10),
    limit=st.integers(1, 200),
    reject=st.booleans(),
)
@settings(max_examples=300)
def test_lane_does_the_same_for_any_chunking_of_any_bytes(
    noise: bytes, places: list[int], limit: int, reject: bool
) -> None:
    at_once = Lane(frame_limit=limit, reject_oversize=reject)
    expected = fed(at_once, noise)
    in_pieces = Lane(frame_limit=limit, reject_oversize=reject)
    left = b""
    edges = [0, *sorted(place % (len(noise) + 1) for place in places), len(noise)]
    for start, stop in itertools.pairwise(edges):
        left += fed(in_pieces, noise[start:stop])
        assert len(in_pieces._held) < LONGEST_HEADER + CONTROL_PAYLOAD_LIMIT
    assert left == expected
    assert repr(in_pieces) == repr(at_once)
    assert in_pieces.close == at_once.close
    assert in_pieces.ping == at_once.ping
    assert str(in_pieces.violation) == str(at_once.violation)
    assert type(in_pieces.violation) is type(at_once.violation)


@given(
    happens=st.lists(
        st.one_of(
            st.tuples(st.just("receive"), st.sampled_from((SENDER, LISTENER)), noise),
            st.tuples(
                st.sampled_from(("lost", "congested", "relieved", "tick", "close", "tear_down")),
                st.sampled_from((SENDER, LISTENER)),
                st.just(b""),
            ),
        ),
        max_size=15,
    ),
    reject=st.booleans(),
)
@settings(max_examples=300)
def test_splice_ends_at_most_once_whatever_happens_and_sends_whole_frames_to_a_leg_that_it_closes(
    happens: list[tuple[str, Side, bytes]], reject: bool
) -> None:
    splice = make_splice(oversize_frames="reject" if reject else "split", frame_limit=128, now=0.0)
    left = [b"", b""]
    is_lost = [False, False]
    end: End | None = None
    for count, (what, side, data) in enumerate(happens):
        match what:
            case "receive":
                actions = splice.receive(side, data, count * 10.0)
            case "lost":
                is_lost[side] = True
                actions = splice.lost(side)
            case "congested":
                splice.congested(side)
                actions = NOTHING
            case "relieved":
                actions = splice.relieved(side, 101.0)
            case "tick":
                actions = splice.tick(count * 10.0)
            case "close":
                actions = splice.close(EndpointNotFound())
            case _:
                actions = splice.tear_down("gone", Cause.CONTROL_CHANNEL_LOST)
        if end is not None:
            assert actions == NOTHING
        elif actions.end is not None:
            end = actions.end
        assert splice.ended is end
        for leg in Side:
            left[leg] += toward(leg, actions)
    for leg in Side:
        frames, rest = leaving(left[leg])
        assert all(first != 0x88 for first, _ in frames[:-1]), "something was sent after a Close"
        if frames and frames[-1][0] == 0x88:
            assert rest == b""
        if end is not None and not aborts(end)[leg] and not is_lost[leg]:
            assert rest == b"", "a leg is closed inside a frame"


@pytest.mark.parametrize("length", [0, 1, 125, 126, 127, 1024, 65_535, 65_536])
@pytest.mark.parametrize("limit", [65_536, 1024, 126, 125, 1])
def test_frame_within_the_limit_leaves_as_one_frame_and_a_longer_one_in_fragments(length: int, limit: int) -> None:
    length = min(length, limit * 1000)
    payload = random.Random(length).randbytes(length)
    for step in (2**20, 1000, 7):
        lane = Lane(frame_limit=limit, masker=c_masker)
        stream = incoming(0xC1, payload)
        left = b"".join(fed(lane, stream[start : start + step]) for start in range(0, len(stream), step))
        expected = bytearray()
        for first, part in cut_at(0xC1, payload, limit):
            expected += encode_head(first, len(part)) + part
        assert left == expected  # byte for byte: the length in its shortest form, too
        assert (lane.messages, lane.bytes) == (1, length)


@pytest.mark.parametrize("payload", [b"", b"hello"])
@pytest.mark.parametrize("form", [126, 127])
def test_length_in_a_longer_form_than_needed_leaves_in_the_shortest(form: int, payload: bytes) -> None:
    size = len(payload).to_bytes(2 if form == 126 else 8, "big")
    for first, messages in ((0x82, 1), (0x02, 0)):
        lane = Lane(frame_limit=65_536)
        stream = bytes((first, 0x80 | form)) + size + KEY + mask_bytes(payload, KEY)
        assert fed(lane, stream) == bytes((first, len(payload))) + payload
        assert (lane.messages, lane.bytes) == (messages, len(payload))


def test_frame_leaves_as_it_arrives() -> None:
    lane = Lane(frame_limit=65_536)
    stream = incoming(0x82, b"a" * 1000)
    assert fed(lane, stream[:8]) == b""  # all of the head and nothing else
    assert not lane.is_mid_frame
    assert fed(lane, stream[8:9]) == encode_head(0x82, 1000) + b"a"
    assert lane.is_mid_frame
    assert repr(lane) == "<Lane open messages=0 bytes=1 mid_frame=True>"
    assert fed(lane, b"") == b""
    assert fed(lane, stream[9:]) == b"a" * 999
    assert repr(lane) == "<Lane open messages=1 bytes=1000 mid_frame=False>"
    assert lane._held == b""


def test_endless_frame_passes_in_bounded_memory() -> None:
    lane = Lane(frame_limit=1000, masker=c_masker)
    left = fed(lane, encode_head(0x82, 2**63 - 1, masked=True) + KEY)
    for _ in range(40):
        left += fed(lane, c_masker(b"a" * 1000, KEY))
    frames, rest = leaving(left)
    assert frames == [(0x02, b"a" * 1000)] + [(0x00, b"a" * 1000)] * 39
    assert (rest, lane._held, lane.bytes, lane.messages) == (b"", b"", 40_000, 0)


def test_empty_fragments_pass_one_by_one() -> None:
    lane = Lane(frame_limit=65_536)
    assert fed(lane, incoming(0x01, b"") + incoming(0x00, b"") * 1000) == b"\x01\x00" + b"\x00\x00" * 1000
    assert fed(lane, incoming(0x80, b"")[:5]) == b""
    assert fed(lane, incoming(0x80, b"")[5:]) == b"\x80\x00"
    assert (lane.messages, lane.bytes) == (1, 0)


def test_lane_keeps_no_reference_to_a_buffer_that_is_used_again() -> None:
    for stream in (incoming(0x82, b"hello" * 40), incoming(0x81, b"hello"), incoming(0x8B, b"control")):
        for size in range(len(stream) + 1):
            buffer = bytearray(stream[:size])
            lane = Lane(frame_limit=100)
            left = fed(lane, memoryview(buffer))
            buffer[:] = bytes(size)
            whole_lane = Lane(frame_limit=100)
            assert left + fed(lane, stream[size:]) == fed(whole_lane, stream)


def test_memoryview_is_taken_as_bytes_are() -> None:
    stream = incoming(0x81, b"text") + incoming(0x82, b"b" * 3000) + incoming(0x82, b"c" * 70_000)
    assert fed(Lane(frame_limit=65_536), memoryview(stream)) == fed(Lane(frame_limit=65_536), stream)


# --- Ping and Pong ---


@pytest.mark.parametrize("side", Side)
def test_ping_is_answered_to_its_sender_and_goes_no_further(side: Side) -> None:
    splice = make_splice()
    actions = splice.receive(side, incoming(0x82, b"data") + incoming(0x89, b"hi"), 101.0)
    assert whole(toward(side, actions)) == [(0x8A, b"hi")]
    assert whole(toward(side.other, actions)) == [(0x82, b"data")]
    assert splice.receive(side, incoming(0x82, b"more"), 101.0).end is None
    assert splice.lanes[side].ping is None


@pytest.mark.parametrize("side", Side)
def test_pong_of_an_end_goes_no_further(side: Side) -> None:
    splice = make_splice()
    assert splice.receive(side, incoming(0x8A, b"unasked"), 101.0) == NOTHING


def test_ping_with_an_empty_payload_is_answered() -> None:
    assert make_splice().receive(SENDER, incoming(0x89, b""), 101.0) == Actions(b"\x8a\x00")


def test_flood_of_pings_is_answered_once_for_each_read_with_the_newest() -> None:
    splice = make_splice()
    flood = b"".join(incoming(0x89, b"%d" % number) for number in range(1000))
    assert whole(toward(SENDER, splice.receive(SENDER, flood, 101.0))) == [(0x8A, b"999")]
    splice.receive(LISTENER, HALF_FRAME, 101.0)
    for _ in range(10):
        assert splice.receive(SENDER, flood, 101.0) == NOTHING
    assert splice.lanes[LISTENER]._pending == encode_frame(Opcode.PONG, b"999")  # one, not ten


@pytest.mark.parametrize("size", [4_095, 4_096, 4_097, 10_000])
def test_flood_of_frames_off_the_fast_way_is_taken_a_part_at_a_time(size: int) -> None:
    chance = random.Random(size)
    kinds = [incoming(0x8B, b"x"), incoming(0x82, b""), incoming(0x89, b"?"), b"\x82\xff" + bytes(12)]
    stream = b"".join(chance.choices(kinds, [5, 1, 5, 5], k=size)) + incoming(0x81, b"end") + b"\x89"
    lane = Lane(frame_limit=65_536)
    # Without the limit: in pieces that are shorter than it.
    alone = Lane(frame_limit=65_536)
    wanted = b"".join(fed(alone, stream[start : start + 1_000]) for start in range(0, len(stream), 1_000))
    out, calls = fed(lane, stream), 1
    while lane.behind:
        out += fed(lane, b"")
        calls += 1
    assert out == wanted and (lane.messages, lane.bytes) == (alone.messages, alone.bytes)
    slow = stream.count(kinds[0]) + stream.count(kinds[2]) + stream.count(kinds[3])
    assert calls - 1 in (slow // 4_096, (slow - 1) // 4_096)
    # The beginning of a frame waits for the rest of it.
    assert fed(lane, incoming(0x89, b"last")[1:]) == b"" and lane.ping == b"last"


def test_pong_waits_for_the_end_of_a_frame_and_carries_the_newest_ping() -> None:
    splice = make_splice()
    frame = incoming(0x82, b"0123456789")
    begun = splice.receive(LISTENER, frame[:-4], 101.0)
    assert splice.receive(SENDER, incoming(0x89, b"old"), 101.0) == NOTHING
    assert splice.receive(SENDER, incoming(0x89, b"new"), 101.0) == NOTHING
    ended = splice.receive(LISTENER, frame[-4:], 101.0)
    assert whole(toward(SENDER, begun) + toward(SENDER, ended)) == [(0x82, b"0123456789"), (0x8A, b"new")]
    assert whole(toward(SENDER, splice.receive(LISTENER, frame, 101.0))) == [(0x82, b"0123456789")]  # none is owed


def test_pong_goes_between_the_fragments_of_a_long_frame() -> None:
    splice = make_splice(frame_limit=4)
    frame = incoming(0x82, b"0123456789")
    left = toward(SENDER, splice.receive(LISTENER, frame[:-9], 101.0))
    splice.receive(SENDER, incoming(0x89, b"?"), 101.0)
    left += toward(SENDER, splice.receive(LISTENER, frame[-9:], 101.0))
    assert whole(left) == [(0x02, b"0123"), (0x8A, b"?"), (0x00, b"4567"), (0x80, b"89")]


def test_pong_goes_at_once_where_a_fragment_has_just_ended() -> None:
    splice = make_splice(frame_limit=4)
    frame = incoming(0x82, b"0123456789")
    left = toward(SENDER, splice.receive(LISTENER, frame[:-6], 101.0))
    left += toward(SENDER, splice.receive(SENDER, incoming(0x89, b"?"), 101.0))
    left += toward(SENDER, splice.receive(LISTENER, frame[-6:], 101.0))
    assert whole(left) == [(0x02, b"0123"), (0x8A, b"?"), (0x00, b"4567"), (0x80, b"89")]


@pytest.mark.parametrize("side", Side)
def test_pong_waits_until_its_leg_is_relieved(side: Side) -> None:
    splice = make_splice()
    splice.congested(side)
    assert splice.receive(side, incoming(0x89, b"hi"), 101.0) == NOTHING
    passed = splice.receive(side.other, incoming(0x82, b"data"), 101.0)
    assert whole(toward(side, passed)) == [(0x82, b"data")]
    assert splice.relieved(side.other, 101.0) == NOTHING
    actions = splice.relieved(side, 101.0)
    assert whole(toward(side, actions)) == [(0x8A, b"hi")]
    assert toward(side.other, actions) == b""
    assert splice.relieved(side, 101.0) == NOTHING


def test_pong_of_a_congested_leg_waits_for_the_frame_after_the_relief() -> None:
    splice = make_splice()
    frame = incoming(0x82, b"0123456789")
    left = toward(SENDER, splice.receive(LISTENER, frame[:8], 101.0))
    splice.congested(SENDER)
    splice.receive(SENDER, incoming(0x89, b"hi"), 101.0)
    assert splice.relieved(SENDER, 101.0) == NOTHING  # inside the frame
    left += toward(SENDER, splice.receive(LISTENER, frame[8:], 101.0))
    assert whole(left) == [(0x82, b"0123456789"), (0x8A, b"hi")]


def test_pong_of_a_congested_leg_does_not_go_at_the_end_of_a_frame() -> None:
    splice = make_splice()
    frame = incoming(0x82, b"0123456789")
    left = toward(SENDER, splice.receive(LISTENER, frame[:8], 101.0))
    splice.congested(SENDER)
    splice.receive(SENDER, incoming(0x89, b"hi"), 101.0)
    left += toward(SENDER, splice.receive(LISTENER, frame[8:], 101.0))
    left += toward(SENDER, splice.relieved(SENDER, 101.0))
    assert whole(left) == [(0x82, b"0123456789"), (0x8A, b"hi")]


@pytest.mark.parametrize("relieved_first", [True, False])
def test_pong_is_dropped_when_a_close_has_gone_before_it(relieved_first: bool) -> None:
    splice = make_splice()
    splice.congested(SENDER)
    splice.receive(SENDER, incoming(0x89, b"hi"), 101.0)
    assert only_close(toward(SENDER, splice.receive(LISTENER, close_frame(1000), 101.0))) == (1000, "")
    if relieved_first:
        assert splice.relieved(SENDER, 101.0) == NOTHING
    assert splice.receive(SENDER, incoming(0x89, b"hi"), 101.0) == NOTHING
    assert splice.relieved(SENDER, 101.0) == NOTHING


# --- Close ---


@pytest.mark.parametrize("side", Side)
@pytest.mark.parametrize(("code", "reason"), [(None, ""), (1000, ""), (1001, "going"), (4999, "é" * 61), (1013, "x")])
def test_close_travels_with_code_and_reason_and_is_not_answered(side: Side, code: int | None, reason: str) -> None:
    splice = make_splice()
    actions = splice.receive(side, incoming(0x82, b"last") + close_frame(code, reason), 101.0)
    assert toward(side, actions) == b""
    assert actions.end is None
    data, close = whole(toward(side.other, actions))
    assert data == (0x82, b"last")
    assert close == (0x88, close_payload(code, reason))
    answer = splice.receive(side.other, close_frame(code, reason), 102.0)
    assert only_close(toward(side, answer)) == (code, reason)
    assert answer.end == End(f"closed ({code or 'no code'})", Cause.CLOSED) == splice.ended


@pytest.mark.parametrize("side", Side)
def test_close_of_one_side_keeps_the_other_direction_open(side: Side) -> None:
    splice = make_splice()
    splice.receive(side, close_frame(1000, "Shutdown"), 101.0)
    assert "half-closed" in repr(splice)
    for number in range(3):
        actions = splice.receive(side.other, incoming(0x82, b"%d" % number), 102.0)
        assert whole(toward(side, actions)) == [(0x82, b"%d" % number)]
        assert toward(side.other, actions) == b""
    assert splice.ended is None


@pytest.mark.parametrize("junk", [incoming(0x82, b"data"), incoming(0x89, b"ping"), close_frame(1001), b"\xff" * 300])
def test_sender_is_not_read_after_its_close(junk: bytes) -> None:
    splice = make_splice()
    actions = splice.receive(SENDER, close_frame(1000) + junk, 101.0)
    assert only_close(toward(LISTENER, actions)) == (1000, "")
    assert toward(SENDER, actions) == b""
    assert splice.receive(SENDER, junk, 102.0) == NOTHING
    assert splice.lanes[SENDER].bytes == 0
    assert repr(splice.lanes[SENDER]) == "<Lane closed messages=0 bytes=0 mid_frame=False>"


def test_listener_hears_no_pong_after_the_senders_close() -> None:
    splice = make_splice()
    splice.receive(SENDER, close_frame(1000), 101.0)
    assert splice.receive(LISTENER, incoming(0x89, b"hi"), 102.0) == NOTHING


def test_close_cut_anywhere_is_the_same_close() -> None:
    stream = close_frame(1000, "because")
    for place in range(len(stream)):
        lane = Lane(frame_limit=65_536)
        assert fed(lane, stream[:place]) == b""
        assert lane.close is None
        assert only_close(fed(lane, stream[place:])) == (1000, "because")
        assert lane.close == close_payload(1000, "because")


@pytest.mark.parametrize(
    "payload",
    [b"", b"a", close_payload(1005), close_payload(0), close_payload(2999), close_payload(65_535), b"\x03\xe8\xff"],
    ids=["none", "one byte", "1005", "0", "2999", "65535", "reason that is not UTF-8"],
)
@pytest.mark.parametrize("side", Side)
def test_close_goes_on_whatever_it_says_and_the_other_end_judges_it(side: Side, payload: bytes) -> None:
    splice = make_splice()
    actions = splice.receive(side, incoming(0x88, payload), 101.0)
    assert whole(toward(side.other, actions)) == [(0x88, payload)]
    assert toward(side, actions) == b""
    assert splice.ended is None and splice.is_half_closed
    actions = splice.receive(side.other, close_frame(1002, "no such code"), 102.0)
    assert only_close(toward(side, actions)) == (1002, "no such code")
    assert actions.end == End("closed (1002)", Cause.CLOSED)


@pytest.mark.parametrize("payload", [b"", b"a"])
def test_end_by_a_close_without_a_code_says_so(payload: bytes) -> None:
    splice = make_splice()
    splice.receive(SENDER, close_frame(1000), 101.0)
    assert splice.receive(LISTENER, incoming(0x88, payload), 102.0).end == End("closed (no code)", Cause.CLOSED)


@pytest.mark.parametrize("first", [0xC8, 0xC9, 0xCA, 0x9A, 0xA8, 0x8B])
def test_control_frame_with_a_reserved_bit_or_opcode_goes_on_and_means_nothing_here(first: int) -> None:
    splice = make_splice()
    actions = splice.receive(SENDER, incoming(first, b"\x03\xe8"), 101.0)
    assert (whole(toward(LISTENER, actions)), toward(SENDER, actions)) == ([(first, b"\x03\xe8")], b"")
    assert not splice.is_half_closed


# --- violations ---

WRONG = {
    "no mask": (b"\x82\x01a", 1002, "not masked"),
    "empty and no mask": (b"\x82\x00", 1002, "not masked"),
    "length of 2^63": (b"\x82\xff\x80" + bytes(7), 1002, "2^63"),
    "long ping": (b"\x89\xfe\x00\x7e" + KEY, 1002, "126 bytes"),
    "endless pong": (b"\x8a\xff" + b"\x7f" * 8 + KEY, 1002, "at most 125"),
    "ping without FIN": (incoming(0x09, b"a"), 1002, "fragmented"),
    "reserved control without FIN": (incoming(0x0B, b"a"), 1002, "fragmented"),
    "long close": (b"\x88\xfe\x00\x7e" + KEY, 1002, "126 bytes"),
    "close without FIN": (incoming(0x08, b"\x03\xe8"), 1002, "fragmented"),
    "frame over the limit": (encode_head(0x82, 129, masked=True) + KEY, 1009, "129 bytes; at most 128"),
}


@pytest.mark.parametrize(("wrong", "code", "words"), WRONG.values(), ids=WRONG.keys())
@pytest.mark.parametrize("one_read", [True, False])
@pytest.mark.parametrize("side", Side)
def test_side_that_breaks_the_protocol_is_told_and_what_was_good_before_goes_on(
    side: Side, wrong: bytes, code: int, words: str, one_read: bool
) -> None:
    splice = make_splice(frame_limit=128, oversize_frames="reject")
    good = incoming(0x82, b"good") + incoming(0x81, b"a" * 128) + incoming(0x89, b"ping")
    stream = good + wrong + incoming(0x82, b"never")
    across, back, ends = b"", b"", []
    for start in range(0, len(stream), len(stream) if one_read else 1):
        actions = splice.receive(side, stream[start:] if one_read else stream[start : start + 1], 101.0)
        across += toward(side.other, actions)
        back += toward(side, actions)
        ends += [actions.end] if actions.end else []
    pong, told = whole(back)
    assert pong == (0x8A, b"ping")
    close = parse_close(told[1])
    assert (told[0], close.code) == (0x88, code)
    assert words in close.reason
    assert TRACKING_ID in close.reason
    data, text, *rest = whole(across)
    assert (data, text) == ((0x82, b"good"), (0x81, b"a" * 128))
    assert len(ends) == 1
    assert splice.ended is ends[0]
    assert ends[0].reason.startswith(f"the {side.name.lower()} broke the protocol: ")
    assert ends[0].cause is Cause.PROTOCOL_ERROR
    assert words in ends[0].reason
    if side is SENDER:
        # The listener across hears of it; nobody is cut.
        [(first, payload)] = rest
        close = parse_close(payload)
        assert (first, close.code) == (0x88, 1001)
        assert TRACKING_ID in close.reason
        assert aborts(ends[0]) == (False, False)
    else:
        # The sender across must not take it for a clean end.
        assert rest == []
        assert aborts(ends[0]) == (True, False)
    assert "violated" in repr(splice.lanes[side])


@pytest.mark.parametrize("side", Side)
def test_side_that_breaks_the_protocol_while_a_frame_comes_to_it_is_cut(side: Side) -> None:
    splice = make_splice()
    splice.receive(side.other, HALF_FRAME, 101.0)
    actions = splice.receive(side, b"\x82\x00", 101.0)
    assert toward(side, actions) == b""
    assert aborts(actions.end) == ((True, False) if side is SENDER else (True, True))


@pytest.mark.parametrize("side", Side)
def test_side_that_breaks_the_protocol_after_the_others_close_gets_no_second_close(side: Side) -> None:
    splice = make_splice()
    splice.receive(side.other, close_frame(1000), 101.0)
    actions = splice.receive(side, b"\x82\x00", 102.0)
    assert toward(side, actions) == b""
    if side is SENDER:
        assert only_close(toward(LISTENER, actions))[0] == 1001
        assert aborts(actions.end) == (False, False)
    else:
        assert toward(SENDER, actions) == b""
        assert aborts(actions.end) == (True, False)


def test_lane_reads_nothing_after_a_violation_and_keeps_none_of_its_bytes() -> None:
    lane = Lane(frame_limit=128, reject_oversize=True)
    assert fed(lane, incoming(0x82, b"a" * 129)) == b""
    assert isinstance(lane.violation, MessageTooLarge)
    assert lane.violation.__traceback__ is None  # its frames would hold what was read
    assert fed(lane, incoming(0x82, b"a")) == b""
    assert lane.pong(b"hi") == b""
    assert (lane.messages, lane.bytes, lane._held) == (0, 0, b"")


def test_frame_of_just_the_limit_is_not_rejected() -> None:
    lane = Lane(frame_limit=128, reject_oversize=True)
    assert whole(fed(lane, incoming(0x82, b"a" * 128))) == [(0x82, b"a" * 128)]
    short = Lane(frame_limit=100, reject_oversize=True)
    assert whole(fed(short, incoming(0x82, b"a" * 100))) == [(0x82, b"a" * 100)]
    assert fed(short, incoming(0x82, b"a" * 101)) == b""
    assert isinstance(short.violation, MessageTooLarge)
    assert not isinstance(short.violation, InvalidFrame)
    assert isinstance(short.violation, ProtocolViolation)


# --- a leg is lost ---


def test_sender_that_is_lost_ends_the_listener_with_1001() -> None:
    splice = make_splice()
    actions = splice.lost(SENDER)
    code, reason = only_close(toward(LISTENER, actions))
    assert code == 1001
    assert TRACKING_ID in reason
    assert toward(SENDER, actions) == b""
    assert actions.end == End("the sender's connection was lost", Cause.SENDER_LOST, abort_sender=True)


def test_sender_that_is_lost_inside_a_frame_cuts_the_listener() -> None:
    splice = make_splice()
    splice.receive(SENDER, HALF_FRAME, 101.0)
    assert splice.lost(SENDER) == Actions(end=End("the sender's connection was lost", Cause.SENDER_LOST, True, True))


@pytest.mark.parametrize("held", [b"\x82", HALF_FRAME[:6], incoming(0x89, b"ping")[:-1]])
def test_sender_that_is_lost_before_a_frame_begins_to_leave_cuts_nobody(held: bytes) -> None:
    splice = make_splice()
    splice.receive(SENDER, held, 101.0)
    actions = splice.lost(SENDER)
    assert only_close(toward(LISTENER, actions))[0] == 1001
    assert aborts(actions.end) == (True, False)


def test_listener_that_is_lost_cuts_the_sender() -> None:
    assert make_splice().lost(LISTENER) == Actions(
        end=End("the listener's connection was lost", Cause.LISTENER_LOST, True, True)
    )


@pytest.mark.parametrize("side", Side)
def test_side_that_is_lost_after_its_close_cuts_nobody(side: Side) -> None:
    splice = make_splice()
    splice.receive(side, close_frame(1000), 101.0)
    splice.receive(side.other, HALF_FRAME, 101.0)
    end = End(f"closed by the {side.name.lower()}, which did not wait for the other side", Cause.CLOSED)
    assert splice.lost(side) == Actions(end=end)
    assert splice.ended == end


def test_sender_that_is_lost_after_the_listeners_close_still_counts_as_lost() -> None:
    splice = make_splice()
    splice.receive(LISTENER, close_frame(1000), 101.0)
    actions = splice.lost(SENDER)
    assert only_close(toward(LISTENER, actions))[0] == 1001
    assert toward(SENDER, actions) == b""
    assert aborts(actions.end) == (True, False)


def test_listener_that_is_lost_after_the_senders_close_still_cuts_the_sender() -> None:
    splice = make_splice()
    splice.receive(SENDER, close_frame(1000), 101.0)
    assert splice.lost(LISTENER) == Actions(
        end=End("the listener's connection was lost", Cause.LISTENER_LOST, True, True)
    )


# --- time ---


def test_silent_connection_is_closed_at_the_idle_timeout() -> None:
    splice = make_splice(now=100.0, idle_timeout=60.0)
    assert splice.tick(159.9) == NOTHING
    splice.receive(SENDER, incoming(0x89, b""), 110.0)
    assert splice.tick(169.9) == NOTHING
    splice.receive(LISTENER, incoming(0x8A, b""), 120.0)
    assert splice.tick(179.9) == NOTHING
    actions = splice.tick(180.0)
    for stream in (toward(SENDER, actions), toward(LISTENER, actions)):
        code, reason = only_close(stream)
        assert code == 1001
        assert reason == f"IdleTimeout: no frame came for 60 s. TrackingId:{TRACKING_ID}"
    assert actions.end == End("IdleTimeout: no frame came for 60 s", Cause.IDLE_TIMEOUT)


def test_silent_connection_whose_frame_is_under_way_is_cut_on_that_side() -> None:
    splice = make_splice(now=100.0, idle_timeout=60.0)
    splice.receive(SENDER, HALF_FRAME, 100.0)
    actions = splice.tick(160.0)
    assert only_close(toward(SENDER, actions))[0] == 1001
    assert toward(LISTENER, actions) == b""
    assert aborts(actions.end) == (False, True)


@pytest.mark.parametrize("side", Side)
def test_reader_that_takes_bytes_again_is_life(side: Side) -> None:
    splice = make_splice(now=0.0, idle_timeout=10.0)
    splice.receive(side.other, incoming(0x82, b"data"), 1.0)
    splice.congested(side)  # from here on the other side is not read
    splice.relieved(side, 9.0)
    assert splice.tick(18.9) == NOTHING
    assert splice.tick(19.0).end is not None


def test_idle_timeout_of_0_is_off() -> None:
    assert make_splice(now=0.0, idle_timeout=0.0).tick(1e9) == NOTHING


@pytest.mark.parametrize("side", Side)
def test_half_closed_connection_is_ended_when_the_open_direction_is_silent(side: Side) -> None:
    splice = make_splice(now=0.0, idle_timeout=10.0, half_close_timeout=120.0)
    splice.receive(side, close_frame(1000), 5.0)
    assert splice.tick(124.9) == NOTHING  # the idle timeout does not apply
    splice.receive(side.other, incoming(0x82, b"data"), 100.0)
    splice.receive(side, b"junk", 219.0)  # the closed direction is not life
    splice.receive(side.other, incoming(0x89, b"?"), 219.0)  # nor is a heartbeat
    assert splice.tick(219.9) == NOTHING
    actions = splice.tick(220.0)
    code, reason = only_close(toward(side, actions))
    assert code == 1001
    assert reason.startswith("HalfCloseTimeout: no data came for 120 s")
    assert TRACKING_ID in reason
    assert toward(side.other, actions) == b""  # it has had the peer's Close
    assert aborts(actions.end) == (False, False)
    assert actions.end is not None and actions.end.cause is Cause.HALF_CLOSE_TIMEOUT


def test_half_close_timeout_counts_from_the_close_not_from_the_last_data() -> None:
    splice = make_splice(now=0.0, half_close_timeout=120.0, idle_timeout=0.0)
    splice.receive(SENDER, close_frame(1000), 1000.0)
    assert splice.tick(1119.9) == NOTHING
    assert splice.tick(1120.0).end is not None


def test_half_close_timeout_of_0_is_off() -> None:
    splice = make_splice(now=0.0, half_close_timeout=0.0, idle_timeout=1.0)
    splice.receive(SENDER, close_frame(1000), 0.0)
    assert splice.tick(1e9) == NOTHING


# --- ended from outside ---


def test_close_for_an_error_tells_both_sides_its_code_and_words() -> None:
    splice = make_splice()
    actions = splice.close(EndpointNotFound("The endpoint was deleted"))
    for stream in (toward(SENDER, actions), toward(LISTENER, actions)):
        assert only_close(stream) == (1001, f"The endpoint was deleted. TrackingId:{TRACKING_ID}")
    assert actions.end == End("The endpoint was deleted", Cause.ENTITY_DELETED)
    assert only_close(toward(SENDER, make_splice().close(AuthorizationFailed("key removed"))))[0] == 1008


@pytest.mark.parametrize("side", Side)
def test_close_for_an_error_inside_a_frame_cuts_the_leg_that_gets_it(side: Side) -> None:
    splice = make_splice()
    splice.receive(side.other, HALF_FRAME, 101.0)
    actions = splice.close(RelayError("over"))
    assert toward(side, actions) == b""
    assert only_close(toward(side.other, actions))[0] == 1011
    assert aborts(actions.end) == (side is SENDER, side is LISTENER)


def test_close_for_an_error_goes_between_the_fragments_of_a_frame() -> None:
    splice = make_splice(frame_limit=4)
    left = toward(LISTENER, splice.receive(SENDER, incoming(0x82, b"0123456789")[:-6], 101.0))
    actions = splice.close(RelayError("over"))
    assert [first for first, _ in whole(left + toward(LISTENER, actions))] == [0x02, 0x88]
    assert aborts(actions.end) == (False, False)


@pytest.mark.parametrize("side", Side)
def test_close_for_an_error_is_not_sent_behind_the_close_of_a_peer(side: Side) -> None:
    splice = make_splice()
    splice.receive(side, close_frame(1000), 101.0)
    actions = splice.close(RelayError("over"))
    assert toward(side.other, actions) == b""
    assert only_close(toward(side, actions))[0] == 1011
    assert aborts(actions.end) == (False, False)


def test_tear_down_cuts_both_legs_and_sends_nothing() -> None:
    splice = make_splice()
    assert splice.tear_down("the control channel was lost", Cause.CONTROL_CHANNEL_LOST) == Actions(
        end=End("the control channel was lost", Cause.CONTROL_CHANNEL_LOST, abort_sender=True, abort_listener=True)
    )


@pytest.mark.parametrize("how", ["closes", "sender lost", "listener lost", "violation", "idle", "close", "tear_down"])
def test_splice_that_has_ended_does_nothing_more(how: str) -> None:
    splice = make_splice(idle_timeout=60.0)
    splice.congested(SENDER)
    splice.receive(SENDER, incoming(0x89, b"waiting"), 100.0)
    match how:
        case "closes":
            splice.receive(SENDER, close_frame(1000), 101.0)
            actions = splice.receive(LISTENER, close_frame(1000), 101.0)
        case "sender lost":
            actions = splice.lost(SENDER)
        case "listener lost":
            actions = splice.lost(LISTENER)
        case "violation":
            actions = splice.receive(SENDER, b"\x82\x00", 101.0)
        case "idle":
            actions = splice.tick(1000.0)
        case "close":
            actions = splice.close(RelayError("over"))
        case _:
            actions = splice.tear_down("over", Cause.NODE_STOPPING)
    assert actions.end is not None
    assert repr(splice).startswith(f"<Splice {TRACKING_ID} {actions.end.reason} ")
    for side in Side:
        assert splice.receive(side, incoming(0x82, b"late"), 2000.0) == NOTHING
        assert splice.lost(side) == NOTHING
        assert splice.relieved(side, 101.0) == NOTHING
    assert splice.tick(1e9) == NOTHING
    assert splice.close(RelayError("again")) == NOTHING
    assert splice.tear_down("again", Cause.NODE_STOPPING) == NOTHING
    assert splice.ended is actions.end


def test_splice_shows_its_state() -> None:
    splice = make_splice()
    lane = "<Lane open messages=0 bytes=0 mid_frame=False>"
    assert repr(splice) == f"<Splice {TRACKING_ID} open sender={lane} listener={lane}>"


def test_side_names_the_one_across() -> None:
    assert (SENDER.other, LISTENER.other) == (LISTENER, SENDER)


def test_splice_says_when_it_was_last_heard_and_whether_one_side_has_closed() -> None:
    splice = make_splice(now=100.0)
    assert (splice.received_at, splice.is_half_closed) == (100.0, False)
    splice.receive(SENDER, incoming(0x82, b"x"), 103.0)
    splice.receive(LISTENER, incoming(0x82, b"x"), 102.0)
    assert splice.received_at == 103.0
    splice.receive(SENDER, incoming(0x88, b""), 104.0)
    assert (splice.received_at, splice.is_half_closed) == (104.0, True)
    splice.receive(LISTENER, incoming(0x88, b""), 105.0)
    assert not splice.is_half_closed
