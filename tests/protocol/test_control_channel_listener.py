"""The listener's end, and the two ends together."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from control_channel_ends import (
    MASK,
    PING,
    Sends,
    accept,
    closes,
    ends,
    from_listener,
    from_relay,
    listener_end,
    relay_end,
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
    ListenerControlChannel,
    NeedToken,
    Offered,
    Requested,
    Send,
    State,
)
from trunkline.protocol.errors import ConnectionLost, HeadersTooLarge
from trunkline.protocol.frames import Opcode, close_payload, mask_bytes, parse_close
from trunkline.protocol.messages import Accept, RemoteEndpoint, Request, Response


def test_listener_is_offered_what_the_relay_sends() -> None:
    [offer] = relay_end().offer(accept(Host="relay.local"))
    assert isinstance(offer, Send)
    assert Playbook(listener_end()) >> event.receive(offer.data, 1.0) << Offered(accept(Host="relay.local"))


def test_listener_ignores_commands_that_it_does_not_know_and_bodies_that_nothing_announced() -> None:
    channel = listener_end()
    assert (
        Playbook(channel)
        >> event.receive(from_relay(Opcode.TEXT, b'{"somethingNew":{}}'), 1.0)
        >> event.receive(from_relay(Opcode.BINARY, b"body"), 1.0)
    )
    assert channel.state is State.OPEN


REQUEST = Request("wss://a/$hc/b?sb-hc-id=c", "c", "/b/x?y", "POST", {"A": "b"}, RemoteEndpoint("192.0.2.7", 1), True)
EMPTY_REQUEST = replace(REQUEST, method="GET", body=False)
REDIRECTED = Request(REQUEST.address, REQUEST.id)


def text(command: Accept | Request) -> bytes:
    return from_relay(Opcode.TEXT, messages.encode(command).encode())


def test_request_and_its_body_are_delivered_together() -> None:
    assert (
        Playbook(listener_end())
        >> event.receive(text(REQUEST), 1.0)
        >> event.receive(from_relay(Opcode.BINARY, b"bo", fin=False), 1.0)
        >> event.receive(from_relay(Opcode.PING), 1.0)
        << Sends(Opcode.PONG, b"")
        >> event.receive(from_relay(Opcode.CONTINUATION, b"dy") + text(EMPTY_REQUEST), 1.0)
        << Requested(REQUEST, b"body")
        << Requested(EMPTY_REQUEST, None)
    )


def test_request_that_is_to_be_fetched_has_no_body_here() -> None:
    assert (
        Playbook(listener_end())
        >> event.receive(text(REDIRECTED) + text(EMPTY_REQUEST), 1.0)
        << Requested(REDIRECTED, None)
        << Requested(EMPTY_REQUEST, None)
    )


@pytest.mark.parametrize("data", [text(EMPTY_REQUEST), text(accept()), from_relay(Opcode.TEXT, b"nonsense")])
def test_text_where_a_body_was_due_is_a_violation(data: bytes) -> None:
    channel = listener_end()
    channel.receive(text(REQUEST), 1.0)
    assert repr(channel) == "<ListenerControlChannel OPEN body_due='c'>"
    assert (
        Playbook(channel)
        >> event.receive(data + from_relay(Opcode.BINARY, b"body"), 1.0)
        << closes(1002)
        << ends(1002, "body of the request")
    )


def test_requests_on_their_way_are_delivered_to_a_listener_that_has_left_in_order() -> None:
    channel = listener_end()
    channel.close(1.0)
    assert (
        Playbook(channel)
        >> event.receive(text(accept()) + text(REQUEST), 1.0)
        >> event.receive(from_relay(Opcode.BINARY, b"body") + text(EMPTY_REQUEST), 1.0)
        << Requested(REQUEST, b"body")
        << Requested(EMPTY_REQUEST, None)
        >> event.receive(from_relay(Opcode.TEXT, b"nonsense") + text(EMPTY_REQUEST), 1.0)
        >> event.receive(from_relay(Opcode.CLOSE, close_payload(1000)), 1.0)
        << CloseTransport()
    )


def test_nothing_is_delivered_to_a_listener_that_has_left_for_a_violation() -> None:
    channel = listener_end()
    channel.receive(from_relay(Opcode.TEXT, b"nonsense"), 1.0)
    assert Playbook(channel) >> event.receive(text(EMPTY_REQUEST), 1.0)


def test_answer_and_its_body_are_written_together() -> None:
    relay = relay_end()
    channel = listener_end()
    answers = [(Response("c", 200, "OK", (("A", "b"),), True), b"body"), (Response("d", 200, body=True), b"")]
    for response, body in answers:
        [send] = channel.respond(response, body)
        assert isinstance(send, Send)
        assert relay.receive(send.data, 1.0) == [Deliver(response, body)]
    [send] = channel.respond(Response("e", 204), b"")
    assert isinstance(send, Send)
    assert relay.receive(send.data, 1.0) == [Deliver(Response("e", 204), None)]


def test_answer_whose_headers_are_too_long_is_not_sent_and_another_one_may_be() -> None:
    channel = listener_end()
    with pytest.raises(HeadersTooLarge):
        channel.respond(Response("c", 200, headers=(("A", "b" * 65_536),)), b"")
    assert channel.respond(Response("c", 500), b"")


def test_nothing_is_answered_on_a_channel_that_has_ended() -> None:
    channel = listener_end()
    channel.close(1.0)
    with pytest.raises(ConnectionLost):
        channel.respond(Response("c", 200), b"")


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
        << Ended(True, None, "Nothing was received for 20 seconds", Cause.SILENT)
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
        << Ended(False, 1000, "The listener closes", Cause.CLOSED)
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
        << Ended(loss, close.code, close.reason, Cause.CLOSED_WITH_ERROR if loss else Cause.CLOSED)
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


def test_listener_does_not_show_the_token_that_it_sends() -> None:
    [command] = listener_end().renew("SharedAccessSignature sig=secret", 100.0, 1.0)
    assert repr(command) == "Send(TEXT, 65 bytes)"


def test_listener_end_shows_where_it_stands() -> None:
    channel = listener_end()
    assert repr(channel) == "<ListenerControlChannel OPEN>"
    channel.close(1.0)
    assert repr(channel) == "<ListenerControlChannel CLOSING>"
    assert repr(listener_end(expires_at=20.4)) == "<ListenerControlChannel OPEN expires_at=20>"
