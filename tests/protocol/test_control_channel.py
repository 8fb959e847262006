"""The relay's end."""

from __future__ import annotations

import json
from typing import Any

import pytest

from control_channel_ends import (
    MASK,
    PING,
    TRACKING_ID,
    TRAIL,
    Sends,
    accept,
    closes,
    decode,
    ends,
    from_listener,
    relay_end,
    response,
    text_from_listener,
)
from playbook import Playbook, event
from trunkline.protocol import messages
from trunkline.protocol.causes import Cause
from trunkline.protocol.control_channel import (
    AbortTransport,
    CheckToken,
    CloseTransport,
    Deliver,
    Ended,
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
    Message,
    Opcode,
    close_payload,
    encode_frame,
    encode_message,
    parse_close,
)
from trunkline.protocol.limits import CONTROL_BINARY_LIMIT, CONTROL_MESSAGE_LIMIT, CONTROL_TEXT_LIMIT, resolve
from trunkline.protocol.messages import Request

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


def request(body: bool, **headers: str) -> Request:
    return Request("wss://relay.local/?x", "id-1", "/orders", "POST", headers, None, body)


def test_relay_sends_a_request_and_its_body_in_one_piece() -> None:
    [command] = relay_end().request(request(True), b"body")
    assert isinstance(command, Send)
    assert [(each.opcode, each.payload) for each in decode(command.data)] == [
        (Opcode.TEXT, messages.encode(request(True)).encode()),
        (Opcode.BINARY, b"body"),
    ]


def test_relay_sends_nothing_behind_a_request_without_a_body() -> None:
    [command] = relay_end().request(request(False), b"")
    assert isinstance(command, Send)
    [message] = decode(command.data)
    assert json.loads(message.payload)["request"]["body"] is False


def test_relay_cuts_a_body_to_the_frame_limit() -> None:
    [command] = relay_end(frame_limit=128).request(request(True), bytes(200))
    assert isinstance(command, Send)
    assert [each.payload for each in decode(command.data)][1:] == [bytes(200)]
    assert command.data.endswith(b"\x80\x48" + bytes(0x48))  # CONTINUATION, the last, 72 bytes


def test_relay_refuses_a_request_that_no_client_could_read() -> None:
    with pytest.raises(HeadersTooLarge):
        relay_end().request(request(False, A="x" * CONTROL_MESSAGE_LIMIT), b"")


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
        << Ended(True, 1008, "InvalidSignature: The token has an invalid signature" + TRAIL, Cause.TOKEN_REFUSED)
    )


def test_relay_ignores_the_outcome_of_a_check_that_comes_after_the_end() -> None:
    channel = relay_end()
    channel.connection_lost(1.0)
    assert Playbook(channel) >> event.token_accepted(9999.0, 2.0) >> event.token_refused(InvalidSignature(), 2.0)
    assert channel.expires_at == 3600.0


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
    assert Playbook(channel) >> event.receive(data, 1.0) << Deliver << Sends(Opcode.PONG, b"?")


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


@pytest.mark.parametrize("data", [b"\xf1\x80" + MASK, from_listener(Opcode.CLOSE, b"\x03")], ids=["frame", "close"])
def test_violation_is_the_cause_of_the_end(data: bytes) -> None:
    (ended,) = [each for each in relay_end().receive(data, 1.0) if isinstance(each, Ended)]
    assert (ended.loss, ended.cause) == (True, Cause.PROTOCOL_ERROR)


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


def test_relay_answers_the_newest_of_several_pings() -> None:
    pings = b"".join(from_listener(Opcode.PING, b"%d" % n) for n in range(1_000))
    assert Playbook(relay_end()) >> event.receive(pings, 1.0) << Sends(Opcode.PONG, b"999")


def test_relay_answers_a_ping_before_the_close_that_came_with_it() -> None:
    data = from_listener(Opcode.PING, b"?") + from_listener(Opcode.CLOSE, b"")
    channel = relay_end()
    assert (
        Playbook(channel)
        >> event.receive(data, 1.0)
        << Sends(Opcode.PONG, b"?")
        << Sends(Opcode.CLOSE, code=1000)
        << CloseTransport
        << Ended
    )


@pytest.mark.parametrize("wrong", [b"\x82\x00", b"\x81\x81\0\0\0\0{"], ids=["not masked", "no command"])
def test_relay_sends_nothing_after_its_close_and_answers_a_ping_before_it_if_it_can(wrong: bytes) -> None:
    sent = relay_end().receive(from_listener(Opcode.PING, b"?") + wrong, 1.0)
    frames = [command for command in sent if isinstance(command, Send)]
    assert frames[-1].data[0] & 0x0F == Opcode.CLOSE
    assert [frame.data for frame in frames[:-1]] in ([], [b"\x8a\x01?"])


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
        << Ended(True, 1011, "Nothing was received for 60 seconds" + TRAIL, Cause.SILENT)
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
        << Ended(True, 1008, "ExpiredToken: The token is expired" + TRAIL, Cause.TOKEN_EXPIRED)
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
        << Ended(loss, close.code, close.reason, Cause.CLOSED_WITH_ERROR if loss else Cause.CLOSED)
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
        << Ended(True, None, "The transport ended without a Close frame", Cause.LOST)
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
        << Ended(False, 1001, "The node shuts down" + TRAIL, Cause.NODE_STOPPING)
        >> event.receive(from_listener(Opcode.PING) + from_listener(Opcode.TEXT, b"{"), 1.5)
        >> event.tick(2.0)
        >> event.receive(from_listener(Opcode.CLOSE, close_payload(1001)), 2.0)
        << CloseTransport()
        >> event.connection_lost(2.1)
    )
    assert channel.state is State.CLOSED


@pytest.mark.parametrize(
    ("why", "reason", "code", "told", "cause"),
    [
        (EndpointNotFound(), "", 1001, "Endpoint does not exist", Cause.ENTITY_DELETED),
        (EndpointNotFound(), "The endpoint was deleted", 1001, "The endpoint was deleted", Cause.ENTITY_DELETED),
        (1008, "The key was removed", 1008, "The key was removed", Cause.DISCONNECTED),
        (1000, "", 1000, "The relay closes the control channel", Cause.DISCONNECTED),
    ],
)
def test_relay_closes_with_an_error_or_a_code(why: Any, reason: str, code: int, told: str, cause: Cause) -> None:
    assert (
        Playbook(relay_end())
        >> event.close(why, reason, 1.0, loss=True)
        << closes(code)
        << Ended(True, code, told + TRAIL, cause)
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
    with pytest.raises(ConnectionLost):
        channel.request(request(False), b"")


def test_relay_end_shows_where_it_stands() -> None:
    channel = relay_end()
    assert repr(channel) == f"<RelayControlChannel '{TRACKING_ID}' OPEN expires_at=3600>"
    channel.receive(text_from_listener(response(body=True)), 1.0)
    assert repr(channel) == f"<RelayControlChannel '{TRACKING_ID}' OPEN expires_at=3600 body_due='r1'>"
    channel.connection_lost(2.0)
    assert "CLOSED" in repr(channel)


def test_relay_reassembles_a_command_in_many_fragments() -> None:
    payload = json.dumps({"renewToken": {"token": "x" * 500}}).encode()
    data = encode_message(Opcode.TEXT, payload, frame_limit=7, new_mask=lambda: MASK)
    assert Playbook(relay_end()) >> event.receive(data, 1.0) << CheckToken("x" * 500)


# ---------------------------------------------------------------- other limits


def test_relay_goes_on_under_the_limits_that_it_is_given() -> None:
    channel = relay_end(ping_interval=30, control_idle_timeout=60)
    after = resolve("default", {"ping_interval": 10, "control_idle_timeout": 25, "frame_limit": 128, "token_grace": 5})
    assert (
        Playbook(channel)
        >> event.take_limits(after, 7.0)
        >> event.tick(16.9)
        >> event.tick(17.0)
        << PING
        >> event.receive(from_listener(Opcode.PONG), 17.1)
        >> event.tick(27.0)
        << PING
        >> event.tick(42.0)
        << PING
        >> event.tick(42.1)
        << closes(1011)
        << AbortTransport()
        << ends(1011, "25 seconds")
    )
    assert channel.limits is after
    offering = relay_end()
    offering.take_limits(after, 0.0)
    [command] = offering.offer(accept(Host="relay.local"))
    assert isinstance(command, Send) and command.data[:4] == b"\x01\x7e\x00\x80"


@pytest.mark.parametrize(("phase", "first"), [(0.0, 110.0), (0.5, 105.0), (0.9, 101.0)])
def test_relay_keeps_the_pings_of_many_channels_spread_over_another_interval(phase: float, first: float) -> None:
    channel = relay_end(ping_phase=phase, ping_interval=0, control_idle_timeout=0)
    after = resolve("default", {"ping_interval": 10, "control_idle_timeout": 0})
    assert (
        Playbook(channel)
        >> event.take_limits(after, 100.0)
        >> event.tick(first - 0.01)
        >> event.tick(first + 0.01)
        << PING
    )


def test_listener_that_was_silent_for_longer_than_a_new_limit_is_given_its_time() -> None:
    channel = relay_end(ping_interval=0, control_idle_timeout=0)
    strict = resolve("default", {"ping_interval": 0, "control_idle_timeout": 60})
    assert (
        Playbook(channel)
        >> event.tick(1_000.0)
        >> event.take_limits(strict, 1_000.0)
        >> event.tick(1_059.9)
        >> event.take_limits(strict, 1_059.9)
        >> event.tick(1_060.0)
        << closes(1011)
        << AbortTransport()
        << ends(1011)
    )


def test_token_that_is_past_a_shorter_grace_ends_the_channel_at_once() -> None:
    channel = relay_end(expires_at=100, token_grace=120, control_idle_timeout=0, ping_interval=0)
    after = resolve("default", {"token_grace": 30, "control_idle_timeout": 0, "ping_interval": 0})
    assert Playbook(channel) >> event.tick(131.0) >> event.take_limits(after, 131.0) << closes(1008) << ends(1008)


def test_channel_that_has_ended_takes_no_notice_of_other_limits() -> None:
    channel = relay_end()
    channel.connection_lost(1.0)
    assert Playbook(channel) >> event.take_limits(resolve("azure"), 1_000.0)
