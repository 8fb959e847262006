"""What is counted and told of what happens to listeners and senders, over real sockets."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest

from server.relay.peers import GUID, Peer, Relay, hybrid_connection, namespace, token, until
from server.relay.requests_made import LEFT_OUT, begun
from trunkline.protocol.errors import NoListener, QuotaExceeded
from trunkline.protocol.frames import Opcode
from trunkline.server import logs, metrics
from trunkline.server.logs import JsonFormatter
from trunkline.server.metrics import Metric
from trunkline.server.relay.journal import REFUSALS_TOLD, SPAN_ATTRIBUTES, Sought

ORDERS = ("myRelayNS", "orders", "hybrid_connection")
NOBODY = ("myRelayNS", "", "")


class Lines(logging.Handler):
    """What was told, as machines read it."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[dict[str, Any]] = []
        self.setFormatter(JsonFormatter())

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(json.loads(self.format(record)))

    def of(self, operation: logs.Operation) -> list[dict[str, Any]]:
        return [line for line in self.lines if line.get("operation") == operation.full_name]

    def one(self, operation: logs.Operation) -> dict[str, Any]:
        (line,) = self.of(operation)
        assert set(line) <= set(logs.FIELDS)
        return line


@pytest.fixture
def told() -> Iterator[Lines]:
    log, lines = logging.getLogger("trunkline.relay"), Lines()
    before = log.level
    log.addHandler(lines)
    log.setLevel(logging.DEBUG)
    yield lines
    log.removeHandler(lines)
    log.setLevel(before)


def counted(relay: Relay, metric: Metric, labels: tuple[str, ...] = ORDERS) -> dict[str, int]:
    """The counters of a metric that are not 0, by the values of its own labels."""
    (tally,) = [tally for tally in relay.tallies if tally.labels == labels] or [relay.tallies.of("", "", "")]
    return {",".join(values): count for (each, values), count in tally.counts.items() if each is metric and count}


async def leaves(peer: Peer, status: int) -> None:
    assert (await peer.answer()).status == status
    await peer.leave()


async def test_connection_is_counted_and_told_from_its_beginning_to_its_end(told: Lines) -> None:
    async with Relay() as relay:
        listener = await relay.listener(id=GUID, headers=[("Relay-User-Agent", ".NET 3.0.1")])
        sender, leg = await relay.pair(listener, headers=[("User-Agent", "curl/8")])
        sender.send_frame(Opcode.TEXT, b"question")
        sender.send_frame(Opcode.BINARY, b"more", fin=False)
        sender.send_frame(Opcode.CONTINUATION, b"!")
        assert [await leg.message(), await leg.message()] == [b"question", b"more!"]
        leg.send_frame(Opcode.BINARY, b"answer")
        assert await sender.message() == b"answer"
        (channel,) = relay.broker.channels
        (connection,) = relay.splicing
        relay.clock.now += 2.5
        sender.send_close(1000)
        leg.send_close(1000)
        await until(lambda: not len(relay.splicing))

        assert counted(relay, metrics.SENDER_CONNECTIONS) == {"success,websocket": 1}
        assert counted(relay, metrics.SENDER_DISCONNECTS) == {"closed": 1}
        assert counted(relay, metrics.MESSAGES) == {"to_listener": 2, "to_sender": 1}
        assert counted(relay, metrics.BYTES) == {"to_listener": 13, "to_sender": 6}
        known = {
            "activityId": connection.facts.tracking_id,
            "endpoint": "sb://myRelayNS/orders",
            "id": connection.facts.id,
            "listener": channel.id,
            "remote": "127.0.0.1",
            "rule": "Root",
            "client": "curl/8",
        }
        began = told.one(logs.SENDER_LISTENER_CONNECTION_ESTABLISHED)
        assert known.items() <= began.items()
        ended = told.one(logs.SENDER_CONNECTION_CLOSED)
        assert known.items() <= ended.items()
        assert {
            "duration": 2.5,
            "messagesToListener": 2,
            "bytesToListener": 13,
            "messagesToSender": 1,
            "bytesToSender": 6,
            "cause": "closed",
            "reason": "closed (1000)",
        }.items() <= ended.items()
        assert ended["message"].endswith(
            "from 127.0.0.1 by rule Root ended after 2.5 s, 2 messages (13 bytes) to the listener,"
            " 1 (6) to the sender: closed (1000)"
        )
        assert told.one(logs.NEW_SENDER_REGISTERING)["activityId"] == connection.facts.tracking_id
        assert told.one(logs.LISTENER_ACCEPTING_CONNECTION)["listener"] == channel.id


async def test_control_channel_is_counted_and_told_from_its_beginning_to_its_end(told: Lines) -> None:
    async with Relay() as relay:
        listener = await relay.listener(id=GUID, headers=[("Relay-User-Agent", ".NET 3.0.1")])
        (channel,) = relay.broker.channels
        known = {
            "activityId": GUID,
            "endpoint": "sb://myRelayNS/orders",
            "id": channel.id,
            "remote": "127.0.0.1",
            "rule": "Root",
            "client": ".NET 3.0.1",
        }
        began = told.one(logs.NEW_LISTENER_REGISTERED)
        assert known.items() <= began.items()
        assert "parked" not in began
        await relay.pair(listener)
        relay.clock.now += 3
        listener.send_close(1000, "done")
        await until(lambda: told.of(logs.LISTENER_UNREGISTERED))
        ended = told.one(logs.LISTENER_UNREGISTERED)
        assert {
            **known,
            "duration": 3.0,
            "messagesToListener": 1,
            "messagesFromListener": 0,
            # Close: a head of 6 bytes, a code and 4 bytes.
            "bytesFromListener": 12,
            "cause": "closed",
            "reason": "done",
        }.items() <= ended.items()
        assert ended["bytesToListener"] > 200
        assert counted(relay, metrics.LISTENER_CONNECTIONS) == {"success": 1}
        assert counted(relay, metrics.LISTENER_DISCONNECTS) == {"closed": 1}


async def test_parked_listener_is_told_as_such(told: Lines) -> None:
    async with Relay(max_listeners=1) as relay:
        await relay.listener()
        await relay.listener()
        assert [line.get("parked") for line in told.of(logs.NEW_LISTENER_REGISTERED)] == [None, True]


async def test_listener_that_is_silent_or_whose_token_ran_out_has_an_operation_of_its_own(told: Lines) -> None:
    async with Relay(ping_interval=30, control_idle_timeout=60, token_grace=30) as relay:
        await relay.listener()
        for _ in range(4):
            relay.pass_time(30)
        await until(lambda: not relay.broker.channels)
        assert told.one(logs.LISTENER_UNRESPONSIVE)["level"] == "warning"
    async with Relay(ping_interval=0, control_idle_timeout=0, token_grace=30) as other:
        await other.listener(signature=token(lifetime=100))
        other.pass_time(131)
        assert told.one(logs.LISTENER_CLOSING_FROM_EXPIRED_TOKEN)["cause"] == "token_expired"
        assert counted(other, metrics.TOKEN_EXPIRATIONS) == {"": 1}
        assert counted(other, metrics.LISTENER_DISCONNECTS) == {"token_expired": 1}
    assert counted(relay, metrics.LISTENER_DISCONNECTS) == {"silent": 1}
    assert counted(relay, metrics.TOKEN_EXPIRATIONS) == {}


async def test_renewal_that_is_refused_is_a_failure_of_authorization(told: Lines) -> None:
    async with Relay() as relay:
        listener = await relay.listener()
        listener.send_frame(Opcode.TEXT, json.dumps({"renewToken": {"token": token(key="wrong")}}).encode())
        await until(lambda: told.of(logs.LISTENER_UNREGISTERED))
        assert counted(relay, metrics.AUTH_FAILURES_TOTAL) == {"invalid_signature": 1}
        ended = told.one(logs.LISTENER_UNREGISTERED)
        assert (ended["cause"], ended["messagesFromListener"]) == ("token_refused", 1)


async def test_times_are_those_from_the_offer_and_from_the_request_head() -> None:
    async with Relay() as relay:
        listener = await relay.listener()
        sender = await relay.dial_sender()
        offer = await listener.offer()
        relay.clock.now += 0.3
        await relay.accept(offer)
        assert (await sender.answer()).status == 101
        tally = relay.tallies.find(hybrid_connection().key)
        assert tally is not None
        times = [tally.histograms[each] for each in (metrics.RENDEZVOUS_SECONDS, metrics.CONNECT_SECONDS)]
        assert [sum(histogram.counts) for histogram in times] == [1, 1]
        assert [histogram.total for histogram in times] == pytest.approx([0.3, 0.3])


async def test_sender_that_gets_no_connection_is_counted_by_its_status(told: Lines) -> None:
    async with Relay(rendezvous_timeout=10) as relay:
        await leaves(await relay.dial_sender(), 504)
        listener = await relay.listener()
        rejected = await relay.dial_sender()
        more = "&sb-hc-statusCode=429&sb-hc-statusDescription=too%20many"
        await leaves(await relay.dial_accept(await listener.offer(), more=more), 410)
        await leaves(rejected, 429)
        left = await relay.dial_sender()
        await listener.offer()
        await left.leave()
        await until(lambda: not relay.broker.waiting_senders)
        late = await relay.dial_sender()
        await listener.offer()
        relay.pass_time(11)
        await leaves(late, 504)
        assert counted(relay, metrics.SENDER_CONNECTIONS) == {"client_error,websocket": 2, "server_error,websocket": 2}
        assert counted(relay, metrics.REFUSALS, ()) == {"no_listener": 1, "connection_not_established": 1}
        assert counted(relay, metrics.SENDER_DISCONNECTS) == {}
        tally = relay.tallies.find(hybrid_connection().key)
        assert tally is not None
        assert sum(tally.histograms[metrics.RENDEZVOUS_SECONDS].counts) == 1
        assert sum(tally.histograms[metrics.CONNECT_SECONDS].counts) == 0
    rejection = told.one(logs.LISTENER_REJECTED_CONNECTION)
    assert (rejection["status"], rejection["reason"]) == (429, "too many")
    waited = told.one(logs.LISTENER_ACCEPTING_CONNECTION_TIMEOUT)
    assert (waited["duration"], waited["level"]) == (11.0, "warning")
    failed = told.of(logs.PROCESSING_REQUEST_FAILED)
    assert [line["error"] for line in failed] == ["no_listener", "connection_not_established"]
    assert all(line["endpoint"] == "sb://myRelayNS/orders" for line in failed)


async def test_refusals_are_told_with_their_operation_and_counted_by_their_error(told: Lines) -> None:
    async with Relay() as relay:
        await leaves(await relay.dial_sender(signature=token(key="wrong")), 401)
        await leaves(await relay.dial_sender(signature=token(lifetime=-100)), 401)
        await leaves(await relay.dial_sender(signature=None), 401)
        await leaves(await relay.dial_listener("elsewhere", signature=token("")), 404)
        await leaves(await relay.dial("/$hc/orders?sb-hc-action=accept&sb-hc-rendezvous=guess"), 403)
        await leaves(await relay.dial("/$hc/no/relay?sb-hc-action=steal"), 400)
        assert counted(relay, metrics.AUTH_FAILURES_TOTAL) == {
            "invalid_signature": 1,
            "expired_token": 1,
            "missing_token": 1,
        }
        assert counted(relay, metrics.SENDER_CONNECTIONS) == {"client_error,websocket": 3}
        assert counted(relay, metrics.LISTENER_CONNECTIONS) == {}
        assert counted(relay, metrics.LISTENER_CONNECTIONS, NOBODY) == {"client_error": 1}
        assert counted(relay, metrics.REFUSALS, ()) == {
            "invalid_signature": 1,
            "expired_token": 1,
            "missing_token": 1,
            "endpoint_not_found": 1,
            "rendezvous_not_found": 1,
            "invalid_request": 1,
        }
    assert [line["error"] for line in told.of(logs.INVALID_SAS_TOKEN)] == ["invalid_signature", "expired_token"]
    assert told.one(logs.AUTHORIZATION_FAILED)["error"] == "missing_token"
    failed = told.of(logs.PROCESSING_REQUEST_FAILED)
    assert [(line["status"], line["endpoint"]) for line in failed] == [
        (404, "sb://relay.local/elsewhere"),
        (403, "sb://relay.local/orders"),
        (400, "sb://relay.local/no/relay"),
    ]
    assert [line["message"].split(" ")[1] for line in failed] == ["listener", "accept", "request"]
    assert all(line["activityId"] for line in failed)


async def test_request_that_could_not_be_read_is_counted_and_told(told: Lines) -> None:
    async with Relay() as relay:
        peer = await Peer.dial(relay.port)
        async with peer:
            peer.send(b"GET / HTTP/1.1\r\n\r\n")
            await leaves(peer, 400)
        assert counted(relay, metrics.REFUSALS, ()) == {"invalid_request": 1}
    line = told.one(logs.PROCESSING_REQUEST_FAILED)
    assert (line["remote"], line["status"], line["error"]) == ("127.0.0.1", 400, "invalid_request")
    assert line["activityId"] in line["message"]


async def test_flood_of_refusals_is_told_in_part_and_counted_in_whole(told: Lines) -> None:
    async with Relay() as relay:
        for _ in range(REFUSALS_TOLD + 5):
            await leaves(await relay.dial_sender(), 504)
        await leaves(await relay.dial_sender(signature=None), 401)
        assert len(told.of(logs.PROCESSING_REQUEST_FAILED)) == REFUSALS_TOLD
        assert len(told.of(logs.AUTHORIZATION_FAILED)) == 1
        relay.pass_time(1)
        *_, last = told.of(logs.PROCESSING_REQUEST_FAILED)
        assert (last["leftOut"], last["error"], last["duration"]) == (5, "no_listener", 1.0)
        assert last["message"] == "and 5 more were refused with no_listener in 1.0 s"
        assert counted(relay, metrics.REFUSALS, ())["no_listener"] == REFUSALS_TOLD + 5
        relay.pass_time(1)
        assert last is told.of(logs.PROCESSING_REQUEST_FAILED)[-1]


async def test_refusals_that_are_held_are_counted_when_they_are_decided(told: Lines) -> None:
    async with Relay() as relay:
        for _ in range(10):
            await leaves(await relay.dial_sender(signature=token(key="wrong")), 401)
        relay.pass_time(1)
        held = await relay.dial_sender(signature=token(key="wrong"))
        await until(lambda: relay.broker.held_refusals)
        assert counted(relay, metrics.AUTH_FAILURES_TOTAL) == {"invalid_signature": 11}
        assert "127.0.0.1 (answered later): 401 " in told.of(logs.INVALID_SAS_TOKEN)[-1]["message"]
        relay.pass_time(2)
        await leaves(held, 401)
        assert counted(relay, metrics.AUTH_FAILURES_TOTAL) == {"invalid_signature": 11}


async def test_counters_of_a_deleted_entity_go_and_what_ends_with_it_is_counted_where_there_is_none() -> None:
    async with Relay() as relay:
        listener = await relay.listener()
        sender, leg = await relay.pair(listener)
        sender.send_frame(Opcode.TEXT, b"question")
        assert await leg.message() == b"question"
        relay.remove(hybrid_connection().id)
        assert [tally.labels for tally in relay.tallies] == [(), NOBODY]
        assert counted(relay, metrics.LISTENER_DISCONNECTS, NOBODY) == {"entity_deleted": 1}
        assert counted(relay, metrics.SENDER_DISCONNECTS, NOBODY) == {"entity_deleted": 1}
        assert counted(relay, metrics.BYTES, NOBODY) == {"to_listener": 8}
        relay.put(hybrid_connection())
        await relay.listener()
        assert counted(relay, metrics.LISTENER_CONNECTIONS) == {"success": 1}
        assert counted(relay, metrics.LISTENER_DISCONNECTS) == {}
        relay.remove(namespace().id)
        assert [tally.labels for tally in relay.tallies] == [(), ("", "", "")]


async def test_names_that_peers_make_up_are_no_labels() -> None:
    async with Relay() as relay:
        for number in range(5):
            await leaves(await relay.dial_sender(f"made-up-{number}", signature=token("")), 404)
            await leaves(await relay.dial_sender(f"made-up-{number}", signature=None), 401)
        assert {tally.labels for tally in relay.tallies} == {(), NOBODY}


async def test_listener_that_leaves_while_it_waits_for_a_place_is_counted() -> None:
    async with Relay(max_listeners=1) as relay:
        for _ in range(65):
            await relay.listener()
        waiting = await relay.dial_listener()
        await until(lambda: relay.counts().get("waiting_listeners"))
        await waiting.leave()
        await until(lambda: not relay.counts().get("waiting_listeners"))
        assert counted(relay, metrics.LISTENER_CONNECTIONS) == {"success": 65, "client_error": 1}


async def test_each_search_for_a_listener_is_told_when_it_is_over() -> None:
    async with Relay() as relay:
        sought: list[Sought] = []
        relay.journal.on_sought = sought.append
        await leaves(await relay.dial_sender(), 504)
        listener = await relay.listener()
        sender = await relay.dial_sender()
        offer = await listener.offer()
        relay.clock.now += 0.5
        await relay.accept(offer)
        assert (await sender.answer()).status == 101
        rejected = await relay.dial_sender()
        await leaves(await relay.dial_accept(await listener.offer(), more="&sb-hc-statusCode=403"), 410)
        await leaves(rejected, 403)
        left = await relay.dial_sender()
        await listener.offer()
        await left.leave()
        await until(lambda: len(sought) == 4)
        assert [(each.outcome, each.status, each.error) for each in sought] == [
            ("refused", 504, "no_listener"),
            ("joined", 101, None),
            ("rejected", 403, None),
            ("left", None, None),
        ]
        assert sought[1].lasted == pytest.approx(0.5)
        assert sought[1].began_at == pytest.approx(relay.wall_clock() - 0.5)
        assert sought[1].admitted.tracking_id in repr(offer)
        assert repr(relay.journal) == "<Journal <Tallies entities=1>>"


# -- plain HTTP requests


def test_answered_request_is_counted_by_its_status_with_its_bytes_and_told(told: Lines) -> None:
    relay = Relay()
    relay.journal.on_sought = (spans := list[Sought]()).append
    record = begun(relay, method="POST")
    relay.clock.now += 0.2
    relay.journal.request_told(record, "id-7")
    record.to_listener += 1_000
    relay.clock.now += 0.8
    relay.journal.request_answered(record, 201)
    record.to_sender += 30
    relay.clock.now += 1
    assert relay.journal.requests == {record}
    relay.journal.request_ended(record)
    assert not relay.journal.requests
    assert counted(relay, metrics.HTTP_REQUESTS) == {"2xx": 1}
    assert counted(relay, metrics.SENDER_CONNECTIONS) == {"success,http": 1}
    assert counted(relay, metrics.HTTP_BODY_BYTES) == {"to_listener": 1_000, "to_sender": 30}
    assert counted(relay, metrics.BYTES) == {"to_listener": 1_000, "to_sender": 30}
    [tally] = [tally for tally in relay.tallies if tally.labels == ORDERS]
    assert tally.histograms[metrics.HTTP_REQUEST_SECONDS].total == pytest.approx(1.0)
    assert told.one(logs.SENDER_SENT_HTTP_REQUEST)["rule"] == "Root"
    assert told.one(logs.MESSAGE_SENT_TO_LISTENER)["listener"] == "id-7"
    line = told.one(logs.LISTENER_SENT_HTTP_RESPONSE)
    assert (line["method"], line["status"], line["duration"], line["level"]) == ("POST", 201, 2.0, "debug")
    assert (line["bytesToListener"], line["bytesToSender"], line["listener"]) == (1_000, 30, "id-7")
    assert "secret" not in json.dumps(told.lines)
    [span] = spans
    assert span.attributes == {
        "relay.tracking_id": record.admitted.tracking_id,
        "relay.namespace": "myRelayNS",
        "relay.entity": "orders",
        "relay.rule": "Root",
        "relay.outcome": "answered",
        "http.request.method": "POST",
        "http.response.status_code": 201,
    }
    assert set(span.attributes) <= set(SPAN_ATTRIBUTES) and span.lasted == pytest.approx(2.0)


@pytest.mark.parametrize(("answered", "result"), [(False, "client_error,http"), (True, "success,http")])
def test_request_whose_sender_left_is_counted_as_that(told: Lines, answered: bool, result: str) -> None:
    relay = Relay()
    record = begun(relay)
    if answered:
        relay.journal.request_answered(record, 200)
    relay.journal.request_left(record)
    assert counted(relay, metrics.HTTP_REQUESTS) == {"left": 1}
    assert counted(relay, metrics.SENDER_CONNECTIONS) == {result: 1}
    assert told.one(logs.LISTENER_RETURNING_HTTP_RESPONSE_FAILED)["cause"] == "left"
    assert not relay.journal.requests


def test_answer_that_broke_off_is_counted_and_told_with_its_reason(told: Lines) -> None:
    relay = Relay()
    for _ in range(REFUSALS_TOLD + 2):
        record = begun(relay)
        relay.journal.request_answered(record, 200)
        relay.journal.request_cut(record, "the listener\r\nis lost")
    assert counted(relay, metrics.HTTP_REQUESTS) == {"cut": REFUSALS_TOLD + 2}
    lines = told.of(logs.LISTENER_RETURNING_HTTP_RESPONSE_FAILED)
    assert len(lines) == REFUSALS_TOLD
    assert "\n" not in lines[0]["reason"] and lines[0]["status"] == 200
    relay.pass_time(1)
    assert told.of(logs.LISTENER_RETURNING_HTTP_RESPONSE_FAILED)[-1]["leftOut"] == 2


@pytest.mark.parametrize(("error", "outcome"), [(NoListener(), "server_error"), (QuotaExceeded(), "client_error")])
def test_refused_request_is_counted_by_the_status_of_the_relay(told: Lines, error: Any, outcome: str) -> None:
    relay = Relay()
    relay.journal.on_sought = (spans := list[Sought]()).append
    record = begun(relay)
    relay.journal.request_timed_out(record)
    relay.journal.request_refused(record, error)
    relay.journal.refused(record.exchange, error)
    assert counted(relay, metrics.HTTP_REQUESTS) == {outcome: 1}
    assert counted(relay, metrics.SENDER_CONNECTIONS) == {f"{outcome},http": 1}
    assert told.one(logs.LISTENER_ACCEPTING_REQUEST_TIMEOUT)["level"] == "warning"
    assert told.one(logs.PROCESSING_REQUEST_FAILED)["message"].startswith("refused request at sb://myRelayNS/orders")
    assert [(span.outcome, span.status, span.error) for span in spans] == [
        ("refused", error.status, metrics.reason_of(error))
    ]


async def test_request_that_is_not_let_in_is_counted_as_one(told: Lines) -> None:
    async with Relay() as relay:
        await leaves(await relay.dial("/orders", without=LEFT_OUT), 401)
        await leaves(await relay.dial("/none", without=LEFT_OUT, signature=token("none")), 404)
        assert counted(relay, metrics.HTTP_REQUESTS) == {"client_error": 1}
        assert counted(relay, metrics.SENDER_CONNECTIONS, NOBODY) == {"client_error,http": 1}
        assert counted(relay, metrics.AUTH_FAILURES_TOTAL) == {"missing_token": 1}
