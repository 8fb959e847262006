"""Any bytes, in any pieces, with anything else between them: what holds for both ends."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from control_channel_ends import MASK, accept, decode, listener_end, relay_end, response
from trunkline.protocol import messages
from trunkline.protocol.control_channel import (
    AbortTransport,
    CloseTransport,
    Command,
    Ended,
    ListenerControlChannel,
    NeedToken,
    RelayControlChannel,
    Requested,
    Send,
    State,
)
from trunkline.protocol.errors import InvalidSignature
from trunkline.protocol.frames import Opcode, close_payload, encode_frame, parse_close

frames = st.one_of(
    st.sampled_from(
        [
            (Opcode.TEXT, json.dumps(response(body=True)).encode()),
            (Opcode.TEXT, json.dumps(response()).encode()),
            (Opcode.TEXT, b'{"renewToken":{"token":"t"}}'),
            (Opcode.TEXT, messages.encode(accept()).encode()),
            (Opcode.TEXT, b'{"request":{"address":"wss://a?","id":"c","method":"PUT","body":true}}'),
            (Opcode.TEXT, b'{"request":{"address":"wss://a?","id":"c","method":"GET","body":false}}'),
            (Opcode.TEXT, b'{"unknown":{}}'),
            (Opcode.TEXT, b"nonsense"),
            (Opcode.CLOSE, b""),
            (Opcode.CLOSE, close_payload(1000, "bye")),
            (Opcode.CLOSE, b"\x00"),
            (Opcode.PONG, b""),
        ]
    ),
    st.tuples(st.sampled_from([Opcode.BINARY, Opcode.PING, Opcode.TEXT]), st.binary(max_size=20)),
)


def streams(mask: bytes | None) -> st.SearchStrategy[bytes]:
    """What a peer may send: frames, mostly good ones, and rubbish."""
    encoded = st.builds(
        lambda opcode_and_payload, fin: encode_frame(
            opcode_and_payload[0],
            opcode_and_payload[1],
            fin=fin or opcode_and_payload[0] >= Opcode.CLOSE,
            mask=mask,
        ),
        frames,
        st.sampled_from([True, True, True, False]),
    )
    continued = st.builds(lambda data: encode_frame(Opcode.CONTINUATION, data, mask=mask), st.binary(max_size=4))
    pieces = st.one_of(encoded, encoded, encoded, continued, st.binary(max_size=10))
    return st.lists(pieces, max_size=12).map(b"".join)


def make_relay_end() -> RelayControlChannel:
    return relay_end(expires_at=50, token_grace=10)


def make_listener_end() -> ListenerControlChannel:
    return listener_end(expires_at=50)


ENDS = pytest.mark.parametrize(
    ("make", "peer_mask"), [(make_relay_end, MASK), (make_listener_end, None)], ids=["relay", "listener"]
)


def check_conversation(commands: list[Command]) -> None:
    """What holds for every channel, whatever happened to it."""
    ended = said_goodbye = let_go = False
    for command in commands:
        if isinstance(command, Ended):
            assert not ended, "Ended comes once"
            ended = True
        elif isinstance(command, CloseTransport | AbortTransport):
            assert not let_go, "the socket is let go once"
            let_go = True
        elif isinstance(command, Send):
            assert not let_go and not said_goodbye, "nothing is sent after the Close or to a socket let go"
            [item] = decode(command.data)
            if item.opcode is Opcode.CLOSE:
                said_goodbye = True
                close = parse_close(item.payload)
                assert close.code is None or close.code in (1000, 1001, 1002, 1007, 1008, 1009, 1011)
        else:
            assert not ended or isinstance(command, Requested), "nothing is offered or asked for after the end"


@ENDS
@given(data=st.data())
def test_peer_cannot_break_a_channel_whatever_it_sends_and_whatever_else_happens(
    make: Callable[[], Any], peer_mask: bytes | None, data: st.DataObject
) -> None:
    channel = make()
    commands: list[Command] = []
    now = 0.0
    for _ in range(data.draw(st.integers(0, 12), label="events")):
        now += data.draw(st.sampled_from([0.0, 0.5, 5.5, 20.0, 31.0]), label="seconds")
        choices = ["receive"] * 4 + ["tick", "tick", "connection_lost", "close"]
        if isinstance(channel, RelayControlChannel):
            choices += ["accepted", "refused", "offer"]
        else:
            choices += ["renew"]
        match data.draw(st.sampled_from(choices), label="event"):
            case "receive":
                commands += channel.receive(data.draw(streams(peer_mask)), now)
            case "tick":
                commands += channel.tick(now)
            case "connection_lost":
                commands += channel.connection_lost(now)
            case "close" if isinstance(channel, RelayControlChannel):
                commands += channel.close(1001, "drain", now, loss=False)
            case "close":
                commands += channel.close(now)
            case "accepted":
                commands += channel.token_accepted(now + 10, now)
            case "refused":
                commands += channel.token_refused(InvalidSignature(), now)
            case "renew":
                commands += channel.renew("t", now + 10, now)
            case "offer" if channel.state is State.OPEN:
                commands += channel.offer(accept())
    check_conversation(commands)
    assert any(isinstance(command, Ended) for command in commands) == (channel.state is not State.OPEN)


@ENDS
@given(data=st.data())
def test_any_chunking_of_what_a_peer_sends_means_the_same(
    make: Callable[[], Any], peer_mask: bytes | None, data: st.DataObject
) -> None:
    stream = data.draw(streams(peer_mask), label="stream")
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=8).map(sorted), label="cuts")
    whole = make().receive(stream, 1.0)
    channel = make()
    in_pieces: list[Command] = []
    for start, end in itertools.pairwise([0, *cuts, len(stream)]):
        in_pieces += channel.receive(stream[start:end], 1.0)
    pongs, others = apart(whole)
    all_pongs, all_others = apart(in_pieces)
    assert others == all_others
    # Of the pings that are read at once, the newest is answered, if nothing has closed the channel by then.
    assert pongs in ([], all_pongs[-1:])
    check_conversation(whole)
    check_conversation(in_pieces)


def apart(commands: list[Command]) -> tuple[list[Command], list[Command]]:
    """The pongs, and everything else, in order."""
    are_pongs = [isinstance(each, Send) and each.data[0] & 0x0F == Opcode.PONG for each in commands]
    return (
        [each for each, is_pong in zip(commands, are_pongs, strict=True) if is_pong],
        [each for each, is_pong in zip(commands, are_pongs, strict=True) if not is_pong],
    )


@given(st.lists(st.integers(1, 400), min_size=2, max_size=5), st.integers(1, 900))
def test_listener_that_gets_its_tokens_never_lets_one_expire(lifetimes: list[int], margin: int) -> None:
    channel = listener_end(expires_at=float(lifetimes[0]), renew_margin=margin, heartbeat=0)
    now, expires_at = 0.0, float(lifetimes[0])
    for lifetime in lifetimes[1:]:
        while channel.tick(now) != [NeedToken()]:
            now += 0.25
        assert now < expires_at
        expires_at = now + lifetime
        channel.renew("t", expires_at, now)
