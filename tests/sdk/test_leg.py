"""The rules of a data connection, without a socket."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from playbook import Playbook, event
from trunkline.protocol.errors import InvalidFrame
from trunkline.protocol.frames import (
    Close,
    Control,
    Data,
    FrameDecoder,
    Opcode,
    close_payload,
    encode_frame,
    mask_bytes,
)
from trunkline.sdk.leg import FRAME_LIMIT, Broken, Leg, PeerClosed, Send, Silent

KEY = b"mask"


def new_leg(heartbeat: float = 30.0) -> Leg:
    return Leg(now=0.0, new_mask=lambda: KEY, heartbeat=heartbeat, masker=mask_bytes)


class Machine:
    """A leg whose events give lists, for the playbook."""

    def __init__(self, leg: Leg) -> None:
        self.leg = leg

    def __repr__(self) -> str:
        return repr(self.leg)

    def receive(self, data: bytes, now: float) -> Sequence[object]:
        return list(self.leg.receive(data, now))

    def close(self, code: int | None, now: float) -> Sequence[object]:
        return [Send(self.leg.close(code, "", now))]


def ours(opcode: Opcode, payload: bytes = b"") -> Send:
    return Send(encode_frame(opcode, payload, mask=KEY))


def conversation() -> Playbook:
    return Playbook(Machine(new_leg()))


def test_ping_is_answered_until_we_close() -> None:
    ping = encode_frame(Opcode.PING, b"x")
    assert (
        conversation()
        >> event.receive(ping, now=1.0)
        << ours(Opcode.PONG, b"x")
        >> event.close(1000, now=2.0)
        << ours(Opcode.CLOSE, close_payload(1000))
        >> event.receive(ping, now=3.0)
    )


def test_close_of_the_peer_is_not_answered_and_ends_only_its_direction() -> None:
    leg = new_leg()
    assert (
        Playbook(Machine(leg))
        >> event.receive(
            encode_frame(Opcode.BINARY, b"last") + encode_frame(Opcode.CLOSE, close_payload(1000, "bye")), now=1.0
        )
        << Data(Opcode.BINARY, b"last", True)
        << PeerClosed(Close(1000, "bye"))
        >> event.receive(encode_frame(Opcode.BINARY, b"nobody reads this"), now=2.0)
    )
    assert leg.state == "half-closed (writing)" and not leg.done
    assert list(leg.message(Opcode.TEXT, b"more", 3.0)) == [ours(Opcode.TEXT, b"more").data]
    leg.close(1000, "", 4.0)
    assert leg.state == "done" and leg.done


def test_data_still_arrives_after_our_close() -> None:
    leg = new_leg()
    leg.close(None, "", 0.0)
    assert leg.state == "half-closed (reading)" and leg.sent_close == Close(None, "")
    assert list(leg.receive(encode_frame(Opcode.TEXT, b"x"), 1.0)) == [Data(Opcode.TEXT, b"x", True)]
    assert list(leg.receive(encode_frame(Opcode.CLOSE), 1.0)) == [PeerClosed(Close(None, ""))]


@pytest.mark.parametrize("garbage", [b"\x83\x00", encode_frame(Opcode.CLOSE, b"\x03\xed"), b"\x82\x80abcd"])
def test_violation_says_good_bye_once(garbage: bytes) -> None:
    leg = new_leg()
    (broken,) = leg.receive(garbage, 1.0)
    assert isinstance(broken, Broken) and isinstance(broken.error, InvalidFrame)
    (farewell,) = FrameDecoder(masked=True).feed(broken.farewell)
    assert isinstance(farewell, Control)
    assert farewell.payload[:2] == (1002).to_bytes(2, "big")
    leg = new_leg()
    leg.close(1000, "", 0.0)
    (broken,) = leg.receive(garbage, 1.0)
    assert isinstance(broken, Broken) and broken.farewell == b""


def test_ping_is_due_only_after_silence_of_ours() -> None:
    leg = new_leg(heartbeat=30)
    assert leg.next_tick == 30 and leg.tick(29.9, unheard=None) is None
    list(leg.receive(encode_frame(Opcode.BINARY, b"theirs does not count"), 20.0))
    assert leg.tick(30, unheard=0.0) == ours(Opcode.PING)
    list(leg.message(Opcode.BINARY, b"ours does", 50.0))
    assert leg.next_tick == 80
    leg.close(1000, "", 60.0)
    assert leg.next_tick is None and leg.tick(1000.0, unheard=None) is None
    assert new_leg(heartbeat=0).next_tick is None


def test_peer_whose_tcp_is_silent_for_two_heartbeats_is_gone() -> None:
    leg = new_leg(heartbeat=30)
    assert leg.tick(30.0, unheard=59.9) == ours(Opcode.PING)
    silent = leg.tick(60.0, unheard=60.0)
    assert isinstance(silent, Silent) and "60 seconds" in silent.reason
    assert new_leg(heartbeat=0.1).tick(0.1, unheard=4.9) == ours(Opcode.PING)  # TCP itself takes its time
    leg.close(1000, "", 60.0)  # nothing of ours is under way any more, so nothing must come
    assert leg.tick(1000.0, unheard=1000.0) is None
    assert new_leg(heartbeat=0).tick(1000.0, unheard=1000.0) is None


@given(st.binary(max_size=10), st.integers(0, 3), st.sampled_from([Opcode.TEXT, Opcode.BINARY]))
def test_message_is_sent_in_frames_of_64_kib_at_most(tail: bytes, whole: int, opcode: Opcode) -> None:
    payload = bytes(FRAME_LIMIT) * whole + tail
    frames = list(new_leg().message(opcode, memoryview(payload), 0.0))
    assert len(frames) == max(1, -(-len(payload) // FRAME_LIMIT))
    assert all(len(frame) <= FRAME_LIMIT + 14 for frame in frames)
    pieces: list[Any] = list(FrameDecoder(masked=True).feed(b"".join(frames)))
    assert b"".join(piece.payload for piece in pieces) == payload
    assert [piece.end for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    assert {piece.opcode for piece in pieces} == {opcode}


@given(st.binary(max_size=200), st.lists(st.integers(1, 20)))
def test_any_bytes_in_any_chunks_give_commands_and_raise_nothing(data: bytes, cuts: list[int]) -> None:
    leg = new_leg()
    seen: list[object] = []
    position = 0
    for cut in [*cuts, len(data)]:
        seen += leg.receive(data[position : position + cut], 0.0)
        position += cut
        if seen and isinstance(seen[-1], Broken):
            break
    assert all(isinstance(item, Data | Send | PeerClosed | Broken) for item in seen)
