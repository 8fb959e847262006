"""Both ends of an HTTP rendezvous: conversations, violations, and any bytes in any pieces."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from control_channel_ends import MASK, Sends, closes, decode, from_listener, from_relay
from playbook import Playbook, event
from trunkline.protocol import messages
from trunkline.protocol.control_channel import CLOSE_TIMEOUT, AbortTransport, CloseTransport, Send, State
from trunkline.protocol.errors import HeadersTooLarge
from trunkline.protocol.frames import Control, Data, FrameDecoder, Opcode, close_payload, encode_frame
from trunkline.protocol.http_rendezvous import BodyPart, Command, Ended, HttpRendezvous, Received
from trunkline.protocol.limits import CONTROL_TEXT_LIMIT
from trunkline.protocol.messages import Request, Response

ID = "11111111-2222-3333-4444-555555555555_G1"
REQUEST = Request("wss://relay/$hc/a?sb-hc-id=1", ID, "/a/b?c", "POST", {"A": "b"}, None, True)
RESPONSE = Response(ID, 200, "OK", (("A", "b"),), True)
EMPTY_RESPONSE = Response(ID, 204)
RESPONSE_FRAME = from_listener(Opcode.TEXT, messages.encode(RESPONSE).encode())
EMPTY_RESPONSE_FRAME = from_listener(Opcode.TEXT, messages.encode(EMPTY_RESPONSE).encode())


def relay_end(*, frame_limit: int = 65_536, heartbeat: float = 0) -> HttpRendezvous:
    return HttpRendezvous(masked=True, now=0.0, tracking_id=ID, frame_limit=frame_limit, heartbeat=heartbeat)


def listener_end(*, frame_limit: int = 65_536, heartbeat: float = 0) -> HttpRendezvous:
    return HttpRendezvous(
        masked=False, now=0.0, tracking_id=ID, frame_limit=frame_limit, heartbeat=heartbeat, new_mask=lambda: MASK
    )


def sent(commands: Sequence[Command]) -> bytes:
    return b"".join(command.data for command in commands if isinstance(command, Send))


def fragments(data: bytes, *, masked: bool) -> list[Data | Control]:
    return list(FrameDecoder(masked=masked).feed(data))


class Violation:
    """Equal to the Ended that follows a violation, with this code and these words."""

    def __init__(self, code: int, words: str) -> None:
        self.code, self.words = code, words

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Ended)
            and (other.code, other.clean) == (self.code, False)
            and self.words in other.reason
            and ID in other.reason
        )


# -- conversations


def test_it_knows_how_much_of_a_frame_is_still_to_come() -> None:
    machine = relay_end()
    machine.receive(RESPONSE_FRAME, 1.0)
    assert machine.remaining == 0
    machine.receive(from_listener(Opcode.BINARY, bytes(1_000))[:-600], 1.0)
    assert machine.remaining == 600


def test_two_ends_carry_a_request_and_its_answer() -> None:
    relay, listener = relay_end(), listener_end()
    request = sent(relay.command(REQUEST, 1.0) + relay.body(b"up", 1.0, end=False) + relay.body(b"", 1.0, end=True))
    assert listener.receive(request, 1.0) == [Received(REQUEST), BodyPart(b"up", False), BodyPart(b"", True)]
    answer = sent(listener.command(RESPONSE, 2.0) + listener.body(b"down", 2.0, end=True))
    assert relay.receive(answer, 2.0) == [Received(RESPONSE), BodyPart(b"down", True)]
    goodbye = listener.close(1000, "", 2.0)
    assert goodbye[1:] == [Ended(1000, "", True)]
    assert (
        Playbook(relay)
        >> event.receive(sent(goodbye), 2.0)
        << closes(1000)
        << CloseTransport()
        << Ended(1000, "", True)
        >> event.connection_lost(2.0)
    )
    assert listener.state is State.CLOSING
    assert Playbook(listener) >> event.receive(from_relay(Opcode.CLOSE, b""), 2.0) << CloseTransport()


def test_answer_without_a_body_is_whole_with_its_command() -> None:
    relay = relay_end()
    assert Playbook(relay) >> event.receive(EMPTY_RESPONSE_FRAME, 1.0) << Received(EMPTY_RESPONSE)
    assert relay.connection_lost(1.0) == [Ended(None, "The transport ended without a Close frame", False)]
    assert relay.connection_lost(1.0) == []


def test_fragment_leaves_before_its_frame_is_whole() -> None:
    frame = from_listener(Opcode.BINARY, b"abcdef")
    assert (
        Playbook(relay_end())
        >> event.receive(RESPONSE_FRAME + frame[:8], 1.0)
        << Received(RESPONSE)
        << BodyPart(b"ab", False)
        >> event.receive(frame[8:], 1.0)
        << BodyPart(b"cdef", True)
    )


def test_close_1000_in_the_middle_of_a_body_is_its_end_as_java_does() -> None:
    assert (
        Playbook(relay_end())
        >> event.receive(RESPONSE_FRAME + from_listener(Opcode.BINARY, b"abc", fin=False), 1.0)
        << Received(RESPONSE)
        << BodyPart(b"abc", False)
        >> event.receive(from_listener(Opcode.CLOSE, close_payload(1000, "bye")), 1.0)
        << BodyPart(b"", True)
        << closes(1000)
        << CloseTransport()
        << Ended(1000, "bye", True)
    )


def test_close_1000_in_the_middle_of_a_request_is_no_end_of_it() -> None:
    request = from_relay(Opcode.TEXT, messages.encode(REQUEST).encode())
    assert (
        Playbook(listener_end())
        >> event.receive(request + from_relay(Opcode.BINARY, b"abc", fin=False), 1.0)
        << Received(REQUEST)
        << BodyPart(b"abc", False)
        >> event.receive(from_relay(Opcode.CLOSE, close_payload(1000)), 1.0)
        << closes(1000)
        << CloseTransport()
        << Ended(1000, "", False)
    )


@pytest.mark.parametrize("payload", [b"", close_payload(1001), close_payload(1011, "broken")])
def test_any_other_close_in_the_middle_of_a_body_is_no_end(payload: bytes) -> None:
    relay = relay_end()
    relay.receive(RESPONSE_FRAME + from_listener(Opcode.BINARY, b"abc", fin=False), 1.0)
    [answer, let_go, ended] = relay.receive(from_listener(Opcode.CLOSE, payload), 1.0)
    assert answer == closes(1000 if not payload else int.from_bytes(payload[:2], "big"))
    assert let_go == CloseTransport()
    assert isinstance(ended, Ended) and not ended.clean


def test_close_in_the_middle_of_a_command_is_not_clean() -> None:
    [*_, ended] = relay_end().receive(
        from_listener(Opcode.TEXT, b"{", fin=False) + from_listener(Opcode.CLOSE, close_payload(1000)), 1.0
    )
    assert ended == Ended(1000, "", False)


def test_close_that_may_not_be_sent_is_a_violation() -> None:
    assert (
        Playbook(relay_end())
        >> event.receive(from_listener(Opcode.CLOSE, b"\x00"), 1.0)
        << closes(1002)
        << CloseTransport()
        << Violation(1002, "one byte")
    )


def test_empty_message_after_an_answer_without_a_body_is_nothing_as_hyco_https_sends_it() -> None:
    assert (
        Playbook(relay_end())
        >> event.receive(EMPTY_RESPONSE_FRAME + from_listener(Opcode.BINARY, b""), 1.0)
        << Received(EMPTY_RESPONSE)
    )


def test_empty_fragment_in_the_middle_is_nothing() -> None:
    assert (
        Playbook(relay_end())
        >> event.receive(RESPONSE_FRAME + from_listener(Opcode.BINARY, b"", fin=False), 1.0)
        << Received(RESPONSE)
        >> event.receive(from_listener(Opcode.CONTINUATION, b""), 1.0)
        << BodyPart(b"", True)
    )


def test_unknown_command_is_ignored() -> None:
    unknown = from_relay(Opcode.TEXT, b'{"somethingNew":{}}')
    request = from_relay(Opcode.TEXT, messages.encode(REQUEST).encode())
    assert Playbook(listener_end()) >> event.receive(unknown + request, 1.0) << Received(REQUEST)


def test_newest_ping_is_answered_between_the_fragments() -> None:
    frames = RESPONSE_FRAME + from_listener(Opcode.BINARY, b"a", fin=False)
    frames += from_listener(Opcode.PING, b"1") + from_listener(Opcode.PONG) + from_listener(Opcode.PING, b"2")
    assert (
        Playbook(relay_end())
        >> event.receive(frames, 1.0)
        << Received(RESPONSE)
        << BodyPart(b"a", False)
        << Sends(Opcode.PONG, b"2")
    )


def test_body_is_sent_as_fragments_within_the_frame_limit_at_once() -> None:
    listener = listener_end(frame_limit=4)
    # A command longer than a frame is one message all the same.
    assert [message.payload for message in decode(sent(listener.command(RESPONSE, 1.0)))] == [
        messages.encode(RESPONSE).encode()
    ]
    assert fragments(sent(listener.body(b"abc", 1.0, end=False)), masked=True) == [Data(Opcode.BINARY, b"abc", False)]
    assert listener.body(b"", 1.0, end=False) == []
    rest = sent(listener.body(b"0123456789", 1.0, end=True))
    assert decode_all(sent(listener_started(frame_limit=4).body(b"01234567", 1.0, end=True))) == [(b"0123", 4, 2)] + [
        (b"4567", 4, 0x80)
    ]
    assert decode_all(rest) == [(b"0123", 4, 0), (b"4567", 4, 0), (b"89", 2, 0x80)]


def listener_started(*, frame_limit: int) -> HttpRendezvous:
    listener = listener_end(frame_limit=frame_limit)
    listener.command(RESPONSE, 1.0)
    return listener


def decode_all(data: bytes) -> list[tuple[bytes, int, int]]:
    """Payload, length and first byte of each short masked frame."""
    found = []
    while data:
        length = data[1] & 0x7F
        payload = bytes(byte ^ MASK[place & 3] for place, byte in enumerate(data[6 : 6 + length]))
        found.append((payload, length, data[0]))
        data = data[6 + length :]
    return found


def test_empty_last_fragment_ends_a_body() -> None:
    relay = relay_end()
    relay.command(REQUEST, 1.0)
    assert sent(relay.body(b"", 1.0, end=True)) == bytes((0x82, 0))


def test_command_that_no_client_could_read_is_not_sent_and_another_one_may_be() -> None:
    relay = relay_end()
    with pytest.raises(HeadersTooLarge):
        relay.command(Request("wss://a?", ID, "/a", "GET", {"A": "b" * 65_536}, None, False), 1.0)
    assert relay.command(REQUEST, 1.0)


def test_nothing_is_sent_after_the_end() -> None:
    relay = relay_end()
    relay.receive(from_listener(Opcode.CLOSE, b""), 1.0)
    assert relay.command(REQUEST, 1.0) == []
    assert relay.body(b"abc", 1.0, end=True) == []
    assert relay.close(1001, "", 1.0) == []
    assert relay.receive(RESPONSE_FRAME, 1.0) == []
    assert relay.tick(1000.0) == []


def test_nothing_is_received_after_our_close() -> None:
    listener = listener_end()
    assert Playbook(listener) >> event.close(1001, "gone", 1.0) << closes(1001) << Ended(1001, "gone", True)
    assert listener.receive(from_relay(Opcode.TEXT, b"nonsense") + from_relay(Opcode.PING), 1.0) == []


def test_our_close_in_the_middle_of_the_peers_body_is_not_clean() -> None:
    relay = relay_end()
    relay.receive(RESPONSE_FRAME, 1.0)
    assert relay.close(1001, "The sender is gone", 1.0)[1] == Ended(1001, "The sender is gone", False)


def test_peer_that_does_not_answer_our_close_is_cut() -> None:
    relay = relay_end()
    relay.close(1000, "", 1.0)
    assert (
        Playbook(relay)
        >> event.tick(1.0 + CLOSE_TIMEOUT)
        >> event.tick(1.1 + CLOSE_TIMEOUT)
        << AbortTransport()
        >> event.tick(2.0 + CLOSE_TIMEOUT)
    )


def test_silent_end_pings_and_one_that_sends_does_not() -> None:
    relay = relay_end(heartbeat=10)
    assert Playbook(relay) >> event.tick(9.9) >> event.tick(10.0) << Sends(Opcode.PING, b"")
    relay.command(REQUEST, 15.0)
    assert Playbook(relay) >> event.tick(24.0) >> event.tick(25.0, unheard=1.0) << Sends(Opcode.PING, b"")
    assert relay_end().tick(1000.0, unheard=1000.0) == []


@pytest.mark.parametrize(("heartbeat", "unheard"), [(10, 20.0), (1, 5.0)])
def test_peer_whose_network_acknowledges_nothing_is_cut(heartbeat: float, unheard: float) -> None:
    relay = relay_end(heartbeat=heartbeat)
    assert relay.tick(0.5, unheard=unheard - 0.1) == []
    assert (
        Playbook(relay)
        >> event.tick(0.5, unheard=unheard)
        << AbortTransport()
        << Ended(None, f"Nothing was heard from the peer for {unheard:.0f} seconds", False)
    )


def test_repr_tells_the_end_its_state_and_no_data() -> None:
    relay = relay_end()
    relay.receive(RESPONSE_FRAME, 1.0)
    assert repr(relay) == f"<HttpRendezvous relay {ID!r} OPEN body_due=True>"
    assert repr(listener_end()) == f"<HttpRendezvous listener {ID!r} OPEN body_due=False>"
    assert repr(BodyPart(b"secret", True)) == "BodyPart(end=True)"


# -- violations


@pytest.mark.parametrize(
    ("frames", "code", "words"),
    [
        (from_listener(Opcode.BINARY, b"a"), 1002, "no body was due"),
        (from_listener(Opcode.BINARY, b""), 1002, "no body was due"),
        (EMPTY_RESPONSE_FRAME + from_listener(Opcode.BINARY, b"a"), 1002, "no body was due"),
        (RESPONSE_FRAME + from_listener(Opcode.BINARY, b"a") + from_listener(Opcode.BINARY, b"b"), 1002, "no body"),
        (RESPONSE_FRAME + RESPONSE_FRAME, 1002, "second command"),
        (EMPTY_RESPONSE_FRAME + EMPTY_RESPONSE_FRAME, 1002, "second command"),
        (from_listener(Opcode.TEXT, b'{"renewToken":{"token":"t"}}'), 1002, "no place on a rendezvous"),
        (from_listener(Opcode.TEXT, b"nonsense"), 1007, "not JSON"),
        (from_listener(Opcode.TEXT, b"\xff"), 1007, "not UTF-8"),
        (from_listener(Opcode.TEXT, b"x" * (CONTROL_TEXT_LIMIT + 1)), 1009, "longer than"),
        (encode_frame(Opcode.TEXT, b"x" * (CONTROL_TEXT_LIMIT + 1), mask=MASK)[:20], 1009, "longer than"),
        (from_relay(Opcode.TEXT, b"{}"), 1002, "not masked"),
        (encode_frame(0x43, mask=MASK), 1002, "reserved bit"),
        (encode_frame(0x22, mask=MASK), 1002, "reserved bit"),
        (encode_frame(3, mask=MASK), 1002, "reserved opcode"),
        (from_listener(Opcode.CONTINUATION, b""), 1002, "no message to continue"),
    ],
)
def test_listener_that_breaks_the_rules_is_closed(frames: bytes, code: int, words: str) -> None:
    relay = relay_end()
    commands = [each for each in relay.receive(frames, 1.0) if not isinstance(each, Received | BodyPart)]
    assert commands == [closes(code), Violation(code, words)]
    assert relay.state is State.CLOSING


@pytest.mark.parametrize(
    ("frames", "code", "words"),
    [
        (from_listener(Opcode.TEXT, b"{}"), 1002, "is masked"),
        (from_relay(Opcode.TEXT, b'{"accept":{"address":"a","id":"b","connectHeaders":{}}}'), 1002, "no place"),
        (from_relay(Opcode.TEXT, b'{"request":{}}'), 1007, "id must be"),
    ],
)
def test_relay_that_breaks_the_rules_is_left(frames: bytes, code: int, words: str) -> None:
    assert Playbook(listener_end()) >> event.receive(frames, 1.0) << closes(code) << Violation(code, words)


def test_ping_before_a_violation_is_answered() -> None:
    assert (
        Playbook(relay_end())
        >> event.receive(from_listener(Opcode.PING, b"p") + from_relay(Opcode.TEXT, b""), 1.0)
        << Sends(Opcode.PONG, b"p")
        << closes(1002)
        << Violation(1002, "not masked")
    )


def test_peer_is_cut_after_a_violation_when_it_does_not_close() -> None:
    relay = relay_end()
    relay.receive(from_relay(Opcode.TEXT, b""), 1.0)
    assert relay.receive(from_relay(Opcode.TEXT, b""), 1.0) == []
    assert relay.tick(2.0 + CLOSE_TIMEOUT) == [AbortTransport()]


# -- any bytes, in any pieces

frames = st.one_of(
    st.sampled_from(
        [
            (Opcode.TEXT, messages.encode(RESPONSE).encode()),
            (Opcode.TEXT, messages.encode(EMPTY_RESPONSE).encode()),
            (Opcode.TEXT, messages.encode(REQUEST).encode()),
            (Opcode.TEXT, json.dumps({"unknown": {}}).encode()),
            (Opcode.CLOSE, b""),
            (Opcode.CLOSE, close_payload(1000, "bye")),
            (Opcode.CLOSE, close_payload(1011)),
        ]
    ),
    st.tuples(
        st.sampled_from([Opcode.BINARY, Opcode.CONTINUATION, Opcode.CONTINUATION, Opcode.PING, Opcode.TEXT]),
        st.binary(max_size=20),
    ),
)


def streams(mask: bytes | None) -> st.SearchStrategy[bytes]:
    encoded = st.builds(
        lambda opcode_and_payload, fin: encode_frame(
            *opcode_and_payload, fin=fin or opcode_and_payload[0] >= Opcode.CLOSE, mask=mask
        ),
        frames,
        st.booleans(),
    )
    good_beginning = st.sampled_from([messages.encode(RESPONSE), messages.encode(REQUEST)]).map(
        lambda text: encode_frame(Opcode.TEXT, text.encode(), mask=mask)
    )
    rest = st.lists(st.one_of(encoded, encoded, encoded, st.binary(max_size=10)), max_size=10).map(b"".join)
    return st.tuples(st.one_of(good_beginning, st.just(b"")), rest).map(b"".join)


def joined(commands: Sequence[Command]) -> list[object]:
    """What is told, apart from how the body is cut, and from which of several pings is answered."""
    found: list[object] = []
    body: bytes | None = None
    for command in commands:
        if isinstance(command, Send) and command.data[0] & 0x0F == Opcode.PONG:
            continue
        if isinstance(command, BodyPart):
            body = (body or b"") + command.data
            if command.end:
                found += [body, "end"]
                body = None
        else:
            if body is not None:
                found.append(body)
                body = None
            found.append(command)
    return found if body is None else [*found, body]


@pytest.mark.parametrize("masked", [True, False], ids=["relay", "listener"])
@given(data=st.data())
def test_any_split_of_the_bytes_means_the_same(masked: bool, data: st.DataObject) -> None:
    stream = data.draw(streams(MASK if masked else None))
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=8).map(sorted))
    whole = (relay_end() if masked else listener_end()).receive(stream, 1.0)
    machine = relay_end() if masked else listener_end()
    split: list[Command] = []
    for start, stop in itertools.pairwise([0, *cuts, len(stream)]):
        split += machine.receive(stream[start:stop], 1.0)
    assert joined(split) == joined(whole)


@pytest.mark.parametrize("masked", [True, False], ids=["relay", "listener"])
@given(data=st.data())
def test_peer_cannot_break_an_end_whatever_it_sends(masked: bool, data: st.DataObject) -> None:
    machine = relay_end(heartbeat=10) if masked else listener_end(heartbeat=10)
    commands: list[Command] = []
    now = 0.0
    for _ in range(data.draw(st.integers(0, 10))):
        now += data.draw(st.sampled_from([0.0, 1.0, 6.0, 11.0]))
        match data.draw(st.sampled_from(["receive", "receive", "receive", "tick", "lost", "close"])):
            case "receive":
                commands += machine.receive(data.draw(streams(MASK if masked else None)), now)
            case "tick":
                commands += machine.tick(now, unheard=data.draw(st.sampled_from([None, 1.0, 30.0])))
            case "lost":
                commands += machine.connection_lost(now)
            case "close":
                commands += machine.close(1001, "", now)
    ended = [place for place, each in enumerate(commands) if isinstance(each, Ended)]
    assert len(ended) == (machine.state is not State.OPEN)
    after = commands[ended[0] + 1 :] if ended else []
    assert not any(isinstance(each, Received | BodyPart) for each in after)
    assert sum(isinstance(each, CloseTransport | AbortTransport) for each in commands) <= 1
    assert sum(isinstance(each, Send) and each.data[0] & 0x0F == Opcode.CLOSE for each in commands) <= 1
    assert sum(isinstance(each, BodyPart) and each.end for each in commands) <= 1
