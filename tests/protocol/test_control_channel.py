from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from playbook import Playbook, event
from trunkline.protocol import messages
from trunkline.protocol.control_channel import (
    AbortTransport,
    CheckToken,
    CloseTransport,
    Command,
    Deliver,
    Ended,
    ListenerControlChannel,
    NeedToken,
    Offered,
    RelayControlChannel,
    Send,
    State,
)
from trunkline.protocol.errors import (
    ConnectionLost,
    EndpointNotFound,
    HeadersTooLarge,
    InvalidSignature,
    ServerBusy,
)
from trunkline.protocol.frames import (
    Control,
    Message,
    MessageDecoder,
    Opcode,
    close_payload,
    encode_frame,
    encode_message,
    mask_bytes,
    parse_close,
)
from trunkline.protocol.limits import CONTROL_BINARY_LIMIT, CONTROL_MESSAGE_LIMIT, CONTROL_TEXT_LIMIT, resolve
from trunkline.protocol.messages import Accept, RemoteEndpoint

MASK = b"\x01\x02\x03\x04"
TRACKING_ID = "11111111-2222-3333-4444-555555555555_G1"
TRAIL = f". TrackingId:{TRACKING_ID}"


# -- the peer's frames


def from_listener(opcode: Opcode, payload: bytes = b"", *, fin: bool = True) -> bytes:
    return encode_frame(opcode, payload, fin=fin, mask=MASK)


def from_relay(opcode: Opcode, payload: bytes = b"", *, fin: bool = True) -> bytes:
    return encode_frame(opcode, payload, fin=fin)


def text_from_listener(command: object) -> bytes:
    return from_listener(Opcode.TEXT, json.dumps(command).encode())


def response(request_id: str = "r1", *, body: bool = False) -> dict[str, object]:
    return {"response": {"requestId": request_id, "statusCode": 200, "responseHeaders": {"A": "b"}, "body": body}}


def accept(**headers: str) -> Accept:
    return Accept(
        address="wss://relay.local/$hc/orders?sb-hc-action=accept&sb-hc-id=id-1",
        id="id-1",
        connect_headers=headers,
        remote_endpoint=RemoteEndpoint("192.0.2.7", 40000),
    )


# -- the two ends


def relay_end(*, ping_phase: float = 0.0, expires_at: float = 3600.0, **limits: object) -> RelayControlChannel:
    return RelayControlChannel(
        limits=resolve("default", limits),
        expires_at=expires_at,
        now=0.0,
        tracking_id=TRACKING_ID,
        ping_phase=ping_phase,
    )


def listener_end(
    *, expires_at: float | None = None, heartbeat: float = 30.0, renew_margin: float = 300.0
) -> ListenerControlChannel:
    return ListenerControlChannel(
        now=0.0, expires_at=expires_at, new_mask=lambda: MASK, heartbeat=heartbeat, renew_margin=renew_margin
    )


class Sends:
    """Equal to a Send of one message or control frame, whatever its framing; a Close is told by its code."""

    def __init__(self, opcode: Opcode, payload: bytes | None = None, *, code: int | None = None) -> None:
        self.opcode = opcode
        self.payload = payload
        self.code = code

    def __repr__(self) -> str:
        return f"Sends({self.opcode.name}, {self.payload!r}, code={self.code})"

    def __eq__(self, command: object) -> bool:
        if not isinstance(command, Send):
            return False
        [item] = decode(command.data)
        if item.opcode is not self.opcode:
            return False
        if self.opcode is Opcode.CLOSE and self.payload is None:
            return parse_close(item.payload).code == self.code
        return item.payload == self.payload


def decode(data: bytes) -> list[Message | Control]:
    masked = bool(data[1] & 0x80)
    decoder = MessageDecoder(masked=masked, text_limit=1 << 20, binary_limit=1 << 20)
    return list(decoder.feed(data))


PING = Sends(Opcode.PING, b"")


def closes(code: int) -> Sends:
    return Sends(Opcode.CLOSE, code=code)


def ends(code: int | None, text: str = "", *, loss: bool = True) -> Any:
    """Equal to an Ended whose reason holds `text`."""

    class Matcher:
        def __eq__(self, command: object) -> bool:
            return (
                isinstance(command, Ended) and (command.loss, command.code) == (loss, code) and text in command.reason
            )

        def __repr__(self) -> str:
            return f"Ended(loss={loss}, code={code}, reason=...{text}...)"

    return Matcher()


# ---------------------------------------------------------------- the relay's end: commands


def test_relay_offers_a_sender_in_one_text_frame() -> None:
    channel = relay_end()
    [command] = channel.offer(accept(Host="relay.local"))
    assert isinstance(command, Send)
    assert command.data[0] == 0x81
    [message] = decode(command.data)
    assert message == Message(Opcode.TEXT, messages.encode(accept(Host="relay.local")).encode())


def test_relay_cuts_an_offer_to_the_frame_limit() -> None:
    [command] = relay_end(frame_limit=128).offer(accept(Host="relay.local"))
    assert isinstance(command, Send)
    assert command.data[:4] == b"\x01\x7e\x00\x80"  # TEXT, not the last, 128 bytes
    [message] = decode(command.data)
    assert json.loads(message.payload)["accept"]["id"] == "id-1"


def test_relay_refuses_an_offer_that_no_client_could_read_and_sends_nothing() -> None:
    channel = relay_end()
    size = len(messages.encode(accept(A="")))
    whole = accept(A="x" * (CONTROL_MESSAGE_LIMIT - size))
    [command] = channel.offer(whole)
    assert isinstance(command, Send)
    assert len(decode(command.data)[0].payload) == CONTROL_MESSAGE_LIMIT
    with pytest.raises(HeadersTooLarge, match="65537 bytes, and 65536 is the limit"):
        channel.offer(accept(A="x" * (CONTROL_MESSAGE_LIMIT - size + 1)))
    assert channel.state is State.OPEN


def test_relay_counts_bytes_not_characters() -> None:
    with pytest.raises(HeadersTooLarge):
        relay_end().offer(accept(A="ü" * 40_000))


def test_relay_has_a_new_token_checked() -> None:
    renewal = text_from_listener({"renewToken": {"token": "SharedAccessSignature sr=a"}})
    assert (
        Playbook(relay_end(expires_at=100))
        >> event.receive(renewal, 90.0)
        << CheckToken("SharedAccessSignature sr=a")
        >> event.token_accepted(4000.0, 90.0)
        >> event.tick(91.0)
        << PING
        >> event.receive(from_listener(Opcode.PONG), 131.0)
        >> event.tick(131.0)
        << PING
    )


def test_relay_does_not_show_the_token_of_a_renewal() -> None:
    assert "secret" not in repr(CheckToken("SharedAccessSignature sig=secret"))


def test_java_listener_sends_garbage_as_a_renewal_and_is_closed_with_1008() -> None:
    garbage = "com.microsoft.azure.relay.SharedAccessSignatureToken@1f2e3d"
    assert (
        Playbook(relay_end())
        >> event.receive(text_from_listener({"renewToken": {"token": garbage}}), 1.0)
        << CheckToken(garbage)
        >> event.token_refused(InvalidSignature(), 1.0)
        << closes(1008)
        << Ended(True, 1008, "InvalidSignature: The token has an invalid signature" + TRAIL)
    )


def test_relay_ignores_the_outcome_of_a_check_that_comes_after_the_end() -> None:
    channel = relay_end()
    channel.connection_lost(1.0)
    assert Playbook(channel) >> event.token_accepted(9999.0, 2.0) >> event.token_refused(InvalidSignature(), 2.0)
    assert channel.expires_at == 3600.0


def test_listener_does_not_show_the_token_that_it_sends() -> None:
    [command] = listener_end().renew("SharedAccessSignature sig=secret", 100.0, 1.0)
    assert repr(command) == "Send(TEXT, 65 bytes)"


def test_relay_delivers_a_response_without_a_body() -> None:
    [command] = relay_end().receive(text_from_listener(response()), 1.0)
    assert isinstance(command, Deliver)
    assert command.response.request_id == "r1"
    assert command.response.status_code == 200
    assert command.body is None


def test_relay_delivers_a_response_with_the_body_that_follows() -> None:
    channel = relay_end()
    assert channel.receive(text_from_listener(response(body=True)), 1.0) == []
    [command] = channel.receive(from_listener(Opcode.BINARY, b"hello"), 2.0)
    assert isinstance(command, Deliver)
    assert (command.response.request_id, command.body) == ("r1", b"hello")


def test_hyco_listener_sends_the_body_in_fragments_with_pings_between_and_an_empty_last_one() -> None:
    channel = relay_end()
    data = b"".join(
        (
            text_from_listener(response(body=True)),
            from_listener(Opcode.BINARY, b"he", fin=False),
            from_listener(Opcode.PING, b"?"),
            from_listener(Opcode.CONTINUATION, b"llo", fin=False),
            from_listener(Opcode.CONTINUATION, b""),
        )
    )
    assert Playbook(channel) >> event.receive(data, 1.0) << Sends(Opcode.PONG, b"?") << Deliver


def test_listener_may_renew_its_token_between_a_response_and_its_body() -> None:
    data = b"".join(
        (
            text_from_listener(response(body=True)),
            text_from_listener({"renewToken": {"token": "t"}}),
            from_listener(Opcode.BINARY, b"x"),
        )
    )
    assert Playbook(relay_end()) >> event.receive(data, 1.0) << CheckToken("t") << Deliver


def test_listener_that_leaves_out_a_body_is_closed_so_that_no_request_gets_the_body_of_another() -> None:
    data = b"".join(
        (
            text_from_listener(response("r1", body=True)),
            text_from_listener(response("r2", body=True)),
            from_listener(Opcode.BINARY, b"whose?"),
        )
    )
    assert (
        Playbook(relay_end())
        >> event.receive(data, 1.0)
        << closes(1002)
        << ends(1002, "where the body of the one before it was due. TrackingId:")
    )


@pytest.mark.parametrize("body", [b"", b"stray"])
def test_relay_ignores_a_binary_message_that_no_response_announced(body: bytes) -> None:
    data = text_from_listener(response()) + from_listener(Opcode.BINARY, body)
    assert Playbook(relay_end()) >> event.receive(data, 1.0) << Deliver >> event.tick(30.0) << PING


@pytest.mark.parametrize("command", [{"injectFault": {}}, {"somethingNew": {"a": 1}}])
def test_relay_ignores_a_command_that_it_does_not_know(command: object) -> None:
    channel = relay_end()
    assert Playbook(channel) >> event.receive(text_from_listener(command), 1.0)
    assert channel.state is State.OPEN


# ---------------------------------------------------------------- violations (both ends read frames alike)

VIOLATIONS = [
    pytest.param(b"\xf1\x80" + MASK, 1002, id="reserved bits"),
    pytest.param(encode_frame(Opcode.TEXT, b"{}"), 1002, id="not masked"),
    pytest.param(from_listener(Opcode.CONTINUATION, b"x"), 1002, id="continuation of nothing"),
    pytest.param(from_listener(Opcode.PING, b"x", fin=False), 1002, id="fragmented ping"),
    pytest.param(from_listener(Opcode.TEXT, b"\xff"), 1007, id="not UTF-8"),
    pytest.param(from_listener(Opcode.TEXT, b"{"), 1007, id="not JSON"),
    pytest.param(from_listener(Opcode.TEXT, b""), 1007, id="empty text"),
    pytest.param(from_listener(Opcode.TEXT, b'{"renewToken":{"token":7}}'), 1007, id="wrong type"),
    pytest.param(from_listener(Opcode.TEXT, b" " * (CONTROL_TEXT_LIMIT + 1)), 1009, id="long text"),
    pytest.param(from_listener(Opcode.BINARY, bytes(CONTROL_BINARY_LIMIT + 1)), 1009, id="long binary"),
]


@pytest.mark.parametrize(("data", "code"), VIOLATIONS)
def test_listener_that_breaks_the_rules_is_closed_and_counts_as_lost(data: bytes, code: int) -> None:
    channel = relay_end()
    assert Playbook(channel) >> event.receive(data, 1.0) << closes(code) << ends(code, f"TrackingId:{TRACKING_ID}")
    assert channel.state is State.CLOSING
    assert Playbook(channel) >> event.receive(data, 2.0) >> event.tick(6.0) >> event.tick(6.1) << AbortTransport()


def test_relay_takes_messages_up_to_its_limits() -> None:
    text = json.dumps({"unknown": ""}).encode()
    text = text[:-2] + b"x" * (CONTROL_TEXT_LIMIT - len(text)) + text[-2:]
    channel = relay_end()
    assert (
        Playbook(channel)
        >> event.receive(from_listener(Opcode.TEXT, text), 1.0)
        >> event.receive(from_listener(Opcode.BINARY, bytes(CONTROL_BINARY_LIMIT)), 1.0)
    )
    assert channel.state is State.OPEN


def test_relay_acts_on_what_came_before_a_violation_in_the_same_read() -> None:
    data = text_from_listener({"renewToken": {"token": "t"}}) + b"\xf1\x80" + MASK
    assert (
        Playbook(relay_end()) >> event.receive(data, 1.0) << CheckToken("t") << closes(1002) << ends(1002, "reserved")
    )


def test_listener_that_answers_the_close_after_a_bad_command_is_let_go() -> None:
    data = from_listener(Opcode.TEXT, b"{") + text_from_listener(response()) + from_listener(Opcode.CLOSE)
    assert Playbook(relay_end()) >> event.receive(data, 1.0) << closes(1007) << ends(1007) << CloseTransport()


# ---------------------------------------------------------------- pings and silence


def test_relay_answers_a_ping_with_the_same_payload() -> None:
    ping = from_listener(Opcode.PING, b"hello")
    assert Playbook(relay_end()) >> event.receive(ping, 1.0) << Sends(Opcode.PONG, b"hello")


def test_relay_pings_at_each_interval() -> None:
    pong = from_listener(Opcode.PONG)
    assert (
        Playbook(relay_end())
        >> event.tick(29.9)
        >> event.tick(30.0)
        << PING
        >> event.receive(pong, 30.1)
        >> event.tick(31.0)
        >> event.tick(59.9)
        >> event.tick(60.5)
        << PING
        >> event.receive(pong, 60.6)
        >> event.tick(89.0)
        >> event.tick(90.0)
        << PING
    )


@pytest.mark.parametrize(("phase", "first"), [(0.0, 30.0), (0.5, 15.0), (0.9, 3.0)])
def test_relay_spreads_the_first_pings_of_many_channels_and_keeps_them_spread(phase: float, first: float) -> None:
    channel = relay_end(ping_phase=phase)
    assert Playbook(channel) >> event.tick(first - 0.01) >> event.tick(first + 0.5) << PING
    channel.receive(from_listener(Opcode.PONG), first + 1)
    assert Playbook(channel) >> event.tick(first + 29.99) >> event.tick(first + 30.01) << PING


def test_relay_that_stood_still_sends_one_ping_for_all_that_were_due() -> None:
    channel = relay_end(control_idle_timeout=0)
    assert Playbook(channel) >> event.tick(95.0) << PING >> event.tick(96.0) >> event.tick(125.0) << PING


def test_listener_that_answers_two_pings_in_a_row_with_nothing_is_lost() -> None:
    channel = relay_end()
    assert (
        Playbook(channel)
        >> event.tick(30.0)
        << PING
        >> event.tick(59.9)
        >> event.tick(60.0)
        << closes(1011)
        << AbortTransport()
        << Ended(True, 1011, "Nothing was received for 60 seconds" + TRAIL)
        >> event.tick(61.0)
        >> event.connection_lost(61.0)
    )
    assert channel.state is State.CLOSED


@pytest.mark.parametrize("sign", [Opcode.PONG, Opcode.PING, Opcode.BINARY])
def test_wedged_listener_that_only_moves_its_frames_is_alive(sign: Opcode) -> None:
    channel = relay_end()
    for now in range(0, 3600, 50):
        channel.receive(from_listener(sign), float(now))
        channel.tick(float(now))
    assert channel.state is State.OPEN
    assert channel.last_received_at == 3550.0


def test_listener_is_not_lost_because_the_relay_itself_stood_still() -> None:
    pong = from_listener(Opcode.PONG)
    assert (
        Playbook(relay_end())
        >> event.tick(30.0)
        << PING
        >> event.receive(pong, 30.1)
        >> event.tick(500.0)
        << PING
        >> event.receive(pong, 500.1)
        >> event.tick(501.0)
    )


def test_dead_listener_is_found_an_interval_after_the_relay_stood_still() -> None:
    assert (
        Playbook(relay_end())
        >> event.tick(500.0)
        << PING
        >> event.tick(529.9)
        >> event.tick(530.0)
        << closes(1011)
        << AbortTransport()
        << ends(1011, "530 seconds")
    )


def test_listener_must_speak_of_its_own_accord_when_the_relay_does_not_ping() -> None:
    strict = relay_end(ping_interval=0)
    assert (
        Playbook(strict)
        >> event.tick(59.9)
        >> event.receive(from_listener(Opcode.PING, b""), 59.9)
        << Sends(Opcode.PONG, b"")
        >> event.tick(119.8)
        >> event.tick(119.95)
        << closes(1011)
        << AbortTransport()
        << ends(1011)
    )


def test_listener_must_speak_of_its_own_accord_when_pings_come_too_seldom_to_help() -> None:
    assert (
        Playbook(relay_end(ping_interval=60, control_idle_timeout=60))
        >> event.tick(59.9)
        >> event.tick(60.0)
        << closes(1011)
        << AbortTransport()
        << ends(1011)
    )


def test_silent_listener_stays_when_there_is_no_idle_timeout() -> None:
    channel = relay_end(control_idle_timeout=0, ping_interval=0)
    assert Playbook(channel) >> event.tick(3600.0)
    assert channel.state is State.OPEN


def test_short_settings_keep_a_listener_that_answers() -> None:
    channel = relay_end(ping_interval=0.5, control_idle_timeout=1)
    pongs = 0
    for step in range(1, 100):
        for command in channel.tick(step / 5):
            assert command == PING
            assert channel.receive(from_listener(Opcode.PONG), step / 5 + 0.01) == []
            pongs += 1
    assert channel.state is State.OPEN
    assert pongs > 30


# ---------------------------------------------------------------- the token expires


def test_relay_closes_with_1008_when_the_token_expired_and_its_grace_is_over() -> None:
    channel = relay_end(expires_at=20, token_grace=8, ping_interval=0)
    assert (
        Playbook(channel)
        >> event.tick(28.0)
        >> event.tick(28.1)
        << closes(1008)
        << Ended(True, 1008, "ExpiredToken: The token is expired" + TRAIL)
        >> event.tick(29.0)
    )
    assert channel.state is State.CLOSING


def test_relay_sends_no_ping_after_the_close_that_fell_due_at_the_same_time() -> None:
    channel = relay_end(expires_at=20, token_grace=8)
    assert Playbook(channel) >> event.tick(30.0) << closes(1008) << ends(1008) >> event.tick(31.0)


def test_relay_closes_at_the_expiry_without_a_grace() -> None:
    channel = relay_end(expires_at=20, token_grace=0)
    assert Playbook(channel) >> event.tick(20.0) >> event.tick(20.1) << closes(1008) << ends(1008)


def test_listener_renews_within_the_grace() -> None:
    channel = relay_end(expires_at=20, token_grace=8)
    assert (
        Playbook(channel)
        >> event.receive(text_from_listener({"renewToken": {"token": "t"}}), 27.0)
        << CheckToken("t")
        >> event.token_accepted(50.0, 27.0)
        >> event.tick(29.0)
    )
    assert channel.expires_at == 50.0
    assert channel.state is State.OPEN


def test_newest_token_counts_also_when_it_expires_sooner() -> None:
    channel = relay_end(expires_at=3600, token_grace=8, ping_interval=0)
    assert Playbook(channel) >> event.token_accepted(20.0, 5.0) >> event.tick(28.1) << closes(1008) << ends(1008)


def test_token_that_is_over_by_the_time_it_was_checked_closes_the_channel() -> None:
    channel = relay_end(token_grace=8)
    assert Playbook(channel) >> event.token_accepted(20.0, 40.0) << closes(1008) << ends(1008, "ExpiredToken")


# ---------------------------------------------------------------- the end


@pytest.mark.parametrize(
    ("payload", "answer", "loss"),
    [
        (b"", 1000, False),
        (close_payload(1000, "Normal Closure"), 1000, False),
        (close_payload(1001, "Idle timeout expired"), 1001, False),
        (close_payload(1002), 1002, True),
        (close_payload(1011, "oops"), 1011, True),
        (close_payload(1012), 1000, True),
        (close_payload(1014), 1000, True),
        (close_payload(3000), 3000, True),
        (close_payload(4999, "mine"), 4999, True),
    ],
)
def test_listener_that_closes_is_answered_and_let_go(payload: bytes, answer: int, loss: bool) -> None:
    channel = relay_end()
    close = parse_close(payload)
    assert (
        Playbook(channel)
        >> event.receive(from_listener(Opcode.CLOSE, payload) + b"whatever follows", 1.0)
        << Sends(Opcode.CLOSE, close_payload(answer, f"The listener closed the control channel{TRAIL}"))
        << CloseTransport()
        << Ended(loss, close.code, close.reason)
        >> event.receive(b"still more", 1.1)
        >> event.tick(100.0)
        >> event.close(ServerBusy(), "", 100.0, loss=False)
        >> event.connection_lost(100.0)
    )
    assert channel.state is State.CLOSED


@pytest.mark.parametrize("payload", [b"\x03", b"\x03\xed", b"\x03\xe8\xff", b"\x00\x00"])
def test_listener_whose_close_is_malformed_is_told_and_let_go(payload: bytes) -> None:
    channel = relay_end()
    assert (
        Playbook(channel)
        >> event.receive(from_listener(Opcode.CLOSE, payload), 1.0)
        << closes(1002)
        << CloseTransport()
        << ends(1002, "Close frame")
    )
    assert channel.state is State.CLOSED


def test_listener_that_vanishes_is_lost() -> None:
    channel = relay_end()
    assert (
        Playbook(channel)
        >> event.connection_lost(1.0)
        << Ended(True, None, "The transport ended without a Close frame")
        >> event.connection_lost(2.0)
        >> event.receive(from_listener(Opcode.PING), 2.0)
    )
    assert channel.state is State.CLOSED


def test_relay_drains_without_counting_the_listener_as_lost() -> None:
    channel = relay_end()
    assert (
        Playbook(channel)
        >> event.close(ServerBusy("The node shuts down"), "", 1.0, loss=False)
        << closes(1001)
        << Ended(False, 1001, "The node shuts down" + TRAIL)
        >> event.receive(from_listener(Opcode.PING) + from_listener(Opcode.TEXT, b"{"), 1.5)
        >> event.tick(2.0)
        >> event.receive(from_listener(Opcode.CLOSE, close_payload(1001)), 2.0)
        << CloseTransport()
        >> event.connection_lost(2.1)
    )
    assert channel.state is State.CLOSED


@pytest.mark.parametrize(
    ("why", "reason", "code", "told"),
    [
        (EndpointNotFound(), "", 1001, "Endpoint does not exist"),
        (EndpointNotFound(), "The endpoint was deleted", 1001, "The endpoint was deleted"),
        (1008, "The key was removed", 1008, "The key was removed"),
        (1000, "", 1000, "The relay closes the control channel"),
    ],
)
def test_relay_closes_with_an_error_or_a_code(why: Any, reason: str, code: int, told: str) -> None:
    assert (
        Playbook(relay_end())
        >> event.close(why, reason, 1.0, loss=True)
        << closes(code)
        << Ended(True, code, told + TRAIL)
    )


def test_relay_keeps_the_tracking_id_in_a_long_reason() -> None:
    [send, ended] = relay_end().close(1011, "ü" * 200, 1.0, loss=True)
    assert isinstance(send, Send) and isinstance(ended, Ended)
    close = parse_close(decode(send.data)[0].payload)
    assert close.reason == ended.reason
    assert close.reason.endswith(TRAIL)
    assert len(close.reason.encode()) <= 123


@pytest.mark.parametrize("code", [999, 1004, 1005, 1006, 1012, 1013, 1014, 1015, 2999, 5000])
def test_relay_never_closes_with_a_code_that_hyco_takes_for_an_error(code: int) -> None:
    channel = relay_end()
    with pytest.raises(ValueError, match=str(code)):
        channel.close(code, "", 1.0, loss=True)
    assert channel.state is State.OPEN


def test_relay_aborts_when_its_close_is_not_answered() -> None:
    channel = relay_end()
    channel.close(1001, "drain", 10.0, loss=False)
    assert (
        Playbook(channel)
        >> event.receive(from_listener(Opcode.PONG), 14.0)
        >> event.tick(15.0)
        >> event.tick(15.1)
        << AbortTransport()
        >> event.tick(16.0)
        >> event.connection_lost(16.0)
    )


def test_relay_says_goodbye_once() -> None:
    channel = relay_end()
    channel.close(1001, "drain", 10.0, loss=False)
    assert Playbook(channel) >> event.close(1011, "again", 11.0, loss=True) >> event.connection_lost(12.0)


def test_relay_cannot_offer_on_a_channel_that_has_ended() -> None:
    channel = relay_end()
    channel.close(1001, "drain", 10.0, loss=False)
    with pytest.raises(ConnectionLost):
        channel.offer(accept())
    channel.connection_lost(11.0)
    with pytest.raises(ConnectionLost):
        channel.offer(accept())


def test_relay_end_shows_where_it_stands() -> None:
    channel = relay_end()
    assert repr(channel) == f"<RelayControlChannel '{TRACKING_ID}' OPEN expires_at=3600>"
    channel.receive(text_from_listener(response(body=True)), 1.0)
    assert repr(channel) == f"<RelayControlChannel '{TRACKING_ID}' OPEN expires_at=3600 body_due='r1'>"
    channel.connection_lost(2.0)
    assert "CLOSED" in repr(channel)


def test_listener_end_shows_where_it_stands() -> None:
    channel = listener_end()
    assert repr(channel) == "<ListenerControlChannel OPEN>"
    channel.close(1.0)
    assert repr(channel) == "<ListenerControlChannel CLOSING>"
    assert repr(listener_end(expires_at=20.4)) == "<ListenerControlChannel OPEN expires_at=20>"


# ---------------------------------------------------------------- the listener's end


def test_listener_is_offered_what_the_relay_sends() -> None:
    [offer] = relay_end().offer(accept(Host="relay.local"))
    assert isinstance(offer, Send)
    assert Playbook(listener_end()) >> event.receive(offer.data, 1.0) << Offered(accept(Host="relay.local"))


def test_listener_ignores_commands_that_it_does_not_know_and_bodies() -> None:
    channel = listener_end()
    request = {"request": {"address": "wss://a/$hc/b?sb-hc-id=c", "id": "c"}}
    assert (
        Playbook(channel)
        >> event.receive(from_relay(Opcode.TEXT, b'{"somethingNew":{}}'), 1.0)
        >> event.receive(from_relay(Opcode.TEXT, json.dumps(request).encode()), 1.0)
        >> event.receive(from_relay(Opcode.BINARY, b"body"), 1.0)
    )
    assert channel.state is State.OPEN


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (from_relay(Opcode.TEXT, b"{"), 1007),
        (from_listener(Opcode.TEXT, b"{}"), 1002),
        (from_relay(Opcode.TEXT, b'{"accept":{}}'), 1007),
    ],
)
def test_relay_that_breaks_the_rules_is_left(data: bytes, code: int) -> None:
    assert Playbook(listener_end()) >> event.receive(data, 1.0) << closes(code) << ends(code)


def test_listener_masks_every_frame_with_a_key_of_its_own() -> None:
    keys = (bytes([n] * 4) for n in itertools.count(1))
    channel = ListenerControlChannel(
        now=0.0, expires_at=None, new_mask=lambda: next(keys), heartbeat=30, renew_margin=300
    )
    commands = (
        channel.receive(from_relay(Opcode.PING, b"?"), 1.0)
        + channel.tick(30.0)
        + channel.renew("t", None, 31.0)
        + channel.close(32.0)
    )
    sent = [command.data for command in commands if isinstance(command, Send)]
    assert [data[2:6] for data in sent] == [bytes([n] * 4) for n in (1, 2, 3, 4)]
    assert all(data[1] & 0x80 for data in sent)


def test_listener_uses_the_masker_that_it_is_given() -> None:
    calls: list[bytes] = []

    def masker(data: bytes | memoryview, mask: bytes | memoryview) -> bytes:
        calls.append(bytes(data))
        return mask_bytes(data, mask)

    channel = ListenerControlChannel(now=0.0, expires_at=None, new_mask=lambda: MASK, renew_margin=300, masker=masker)
    channel.receive(from_relay(Opcode.PING, b"abc"), 1.0)
    assert calls == [b"abc"]


def test_listener_pings_at_each_heartbeat_and_finds_a_dead_link_within_two() -> None:
    channel = listener_end(heartbeat=10)
    assert (
        Playbook(channel)
        >> event.tick(10.0)
        << PING
        >> event.receive(from_relay(Opcode.PONG), 10.1)
        >> event.tick(20.0)
        << PING
        >> event.tick(30.0)
        << PING
        >> event.tick(30.1)
        << AbortTransport()
        << Ended(True, None, "Nothing was received for 20 seconds")
        >> event.tick(40.0)
        >> event.connection_lost(40.0)
    )


def test_listener_answers_the_pings_of_the_relay() -> None:
    assert Playbook(listener_end()) >> event.receive(from_relay(Opcode.PING, b"x"), 1.0) << Sends(Opcode.PONG, b"x")


def test_listener_without_a_heartbeat_neither_pings_nor_gives_up() -> None:
    channel = listener_end(heartbeat=0)
    assert Playbook(channel) >> event.tick(10_000.0)
    assert channel.state is State.OPEN


def test_listener_leaves_in_order() -> None:
    channel = listener_end()
    assert (
        Playbook(channel)
        >> event.close(1.0)
        << Sends(Opcode.CLOSE, close_payload(1000, "The listener closes"))
        << Ended(False, 1000, "The listener closes")
        >> event.close(1.1)
        >> event.receive(from_relay(Opcode.TEXT, messages.encode(accept()).encode()), 1.2)
        >> event.receive(from_relay(Opcode.CLOSE, close_payload(1000)), 1.3)
        << CloseTransport()
        >> event.connection_lost(1.4)
    )


def test_listener_does_not_wait_for_ever_for_the_relay_to_answer_its_close() -> None:
    assert (
        Playbook(listener_end())
        >> event.close(1.0)
        << closes(1000)
        << Ended
        >> event.tick(6.0)
        >> event.tick(6.5)
        << AbortTransport()
    )


@pytest.mark.parametrize(
    ("payload", "loss"),
    [
        (b"", False),
        (close_payload(1001, "The node shuts down"), False),
        (close_payload(1008, "ExpiredToken"), True),
        (close_payload(1012, "restart"), True),
    ],
)
def test_listener_answers_the_close_of_the_relay_with_the_same_code(payload: bytes, loss: bool) -> None:
    close = parse_close(payload)
    assert (
        Playbook(listener_end())
        >> event.receive(from_relay(Opcode.CLOSE, payload), 1.0)
        << Sends(Opcode.CLOSE, close_payload(close.code))
        << CloseTransport()
        << Ended(loss, close.code, close.reason)
        >> event.renew("t", 100.0, 2.0)
    )


def test_listener_loses_its_relay() -> None:
    assert Playbook(listener_end()) >> event.connection_lost(1.0) << ends(None)


# ---------------------------------------------------------------- renewal


def test_listener_asks_for_a_token_once_its_margin_is_reached_and_renews() -> None:
    channel = listener_end(expires_at=3600, renew_margin=300, heartbeat=0)
    renewal = Sends(Opcode.TEXT, messages.encode(messages.RenewToken("fresh")).encode())
    assert (
        Playbook(channel)
        >> event.tick(3299.9)
        >> event.tick(3300.0)
        << NeedToken()
        >> event.tick(3301.0)
        >> event.renew("fresh", 6900.0, 3301.5)
        << renewal
        >> event.tick(6599.9)
        >> event.tick(6600.0)
        << NeedToken()
    )


def test_listener_with_a_short_token_renews_at_half_of_what_remains() -> None:
    channel = listener_end(expires_at=4, renew_margin=300, heartbeat=0)
    assert (
        Playbook(channel)
        >> event.tick(1.9)
        >> event.tick(2.0)
        << NeedToken()
        >> event.renew("t", 6.0, 2.0)
        << Send
        >> event.tick(3.9)
        >> event.tick(4.0)
        << NeedToken()
    )


def test_listener_whose_tokens_hardly_outlive_the_margin_does_not_renew_without_end() -> None:
    channel = listener_end(expires_at=301, renew_margin=300, heartbeat=0)
    assert Playbook(channel) >> event.tick(150.0) >> event.tick(150.5) << NeedToken()


def test_listener_asks_again_after_a_pause_when_no_token_came() -> None:
    channel = listener_end(expires_at=100, renew_margin=30, heartbeat=0)
    asked = [now for now in range(0, 131) if channel.tick(float(now)) == [NeedToken()]]
    assert asked == [70, 80, 90, 95, 98, 99, 100, 110, 120, 130]


def test_listener_asks_for_no_token_when_it_does_not_know_the_expiry() -> None:
    assert Playbook(listener_end(expires_at=None, heartbeat=0)) >> event.tick(1e9)
    renewed = listener_end(expires_at=10, heartbeat=0)
    assert Playbook(renewed) >> event.renew("t", None, 1.0) << Send >> event.tick(1e9)
    assert renewed.expires_at is None


def test_listener_that_has_left_asks_for_no_token() -> None:
    channel = listener_end(expires_at=10)
    channel.close(1.0)
    assert Playbook(channel) >> event.tick(5.5) >> event.renew("t", 100.0, 5.6)


def test_listener_refuses_a_token_that_no_relay_could_read_and_still_has_to_renew() -> None:
    channel = listener_end(expires_at=10, heartbeat=0)
    with pytest.raises(HeadersTooLarge, match="The token is too long"):
        channel.renew("x" * 70_000, 100.0, 1.0)
    assert channel.expires_at == 10
    assert Playbook(channel) >> event.tick(5.0) << NeedToken()


def test_both_ends_agree_on_renewals_and_silence_for_an_hour() -> None:
    relay = relay_end(expires_at=4, token_grace=1)
    listener = listener_end(expires_at=4)
    renewed = 0
    for second in range(1, 3600):
        now = float(second)
        to_relay, to_listener = listener.tick(now), relay.tick(now)
        while to_relay or to_listener:
            for command in to_relay[:]:
                to_relay.remove(command)
                if isinstance(command, NeedToken):
                    to_relay += listener.renew(f"token {second}", now + 4, now)
                else:
                    assert isinstance(command, Send)
                    to_listener += relay.receive(command.data, now)
            for command in to_listener[:]:
                to_listener.remove(command)
                if isinstance(command, CheckToken):
                    renewed += 1
                    assert relay.token_accepted(now + 4, now) == []
                else:
                    assert isinstance(command, Send)
                    to_relay += listener.receive(command.data, now)
    assert relay.state is State.OPEN
    assert listener.state is State.OPEN
    assert renewed > 1000


# ---------------------------------------------------------------- any bytes, any order

frames = st.one_of(
    st.sampled_from(
        [
            (Opcode.TEXT, json.dumps(response(body=True)).encode()),
            (Opcode.TEXT, json.dumps(response()).encode()),
            (Opcode.TEXT, b'{"renewToken":{"token":"t"}}'),
            (Opcode.TEXT, messages.encode(accept()).encode()),
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
            assert not ended, "nothing is offered, delivered or asked for after the end"


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
    assert in_pieces == whole
    check_conversation(whole)


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


def test_relay_reassembles_a_command_in_many_fragments() -> None:
    payload = json.dumps({"renewToken": {"token": "x" * 500}}).encode()
    data = encode_message(Opcode.TEXT, payload, frame_limit=7, new_mask=lambda: MASK)
    assert Playbook(relay_end()) >> event.receive(data, 1.0) << CheckToken("x" * 500)
