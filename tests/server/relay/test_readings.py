"""What the data plane holds, as metrics."""

from __future__ import annotations

from server.relay.peers import Relay, hybrid_connection, until
from server.relay.requests_made import begun
from trunkline.protocol.frames import Opcode
from trunkline.server import metrics
from trunkline.server.exposition import Snapshot, snapshot
from trunkline.server.metrics import Metric
from trunkline.server.relay import readings

ORDERS = ("myRelayNS", "orders", "hybrid_connection")


def taken(relay: Relay) -> Snapshot:
    held = readings.held(relay.catalog, relay.broker, relay.directory, relay.splicing, relay.wall_clock())
    return snapshot(relay.tallies, held)


def values(relay: Relay, metric: Metric) -> dict[str, object]:
    """Those of the hybrid connection `orders`."""
    return {",".join(labels[3:]): value for labels, value in taken(relay)[metric].items() if labels[:3] == ORDERS}


async def test_entity_that_nobody_uses_has_no_listeners_and_little_else() -> None:
    async with Relay() as relay:
        told = {metric for metric, samples in taken(relay).items() if samples and metric.per_entity}
        assert told == {
            metrics.ACTIVE_LISTENERS,
            metrics.ACTIVE_CONNECTIONS,
            metrics.ACTIVE_HTTP_REQUESTS,
            metrics.WAITING_SENDERS,
        }
        assert values(relay, metrics.ACTIVE_LISTENERS) == {"": 0}


async def test_listeners_are_told_apart() -> None:
    async with Relay(max_listeners=1) as relay:
        for seconds in range(65):
            relay.clock.now += bool(seconds)
            await relay.listener()
        await relay.dial_listener()
        await until(lambda: relay.counts().get("waiting_listeners"))
        assert values(relay, metrics.ACTIVE_LISTENERS) == {"": 1}
        assert values(relay, metrics.PARKED_LISTENERS) == {"": 64}
        assert values(relay, metrics.WAITING_LISTENERS) == {"": 1}
        assert values(relay, metrics.CONTROL_CHANNEL_AGE) == {"oldest": 64, "youngest": 0}


async def test_what_waits_and_what_runs_is_told_by_entity() -> None:
    async with Relay() as relay:
        relay.put(hybrid_connection("bills"))
        listener = await relay.listener()
        await relay.pair(listener)
        await relay.pair(listener)
        await relay.dial_sender()
        await listener.offer()
        assert values(relay, metrics.ACTIVE_CONNECTIONS) == {"": 2}
        assert values(relay, metrics.WAITING_SENDERS) == {"": 1}
        bills = ("myRelayNS", "bills", "hybrid_connection")
        assert taken(relay)[metrics.ACTIVE_CONNECTIONS][bills] == 0


async def test_counters_never_go_back_while_connections_end() -> None:
    async with Relay() as relay:
        listener = await relay.listener()
        pairs = [await relay.pair(listener) for _ in range(3)]
        seen = [values(relay, metrics.BYTES)]
        for number, (sender, leg) in enumerate(pairs):
            for _ in range(number + 1):
                sender.send_frame(Opcode.BINARY, b"0123456789")
                assert await leg.message() == b"0123456789"
            leg.send_frame(Opcode.TEXT, b"ok")
            assert await sender.message() == b"ok"
            seen.append(values(relay, metrics.BYTES))
            sender.reset()
            await until(lambda left=2 - number: len(relay.splicing) == left)  # type: ignore[misc]
            seen.append(values(relay, metrics.BYTES))
        assert seen == [
            {"to_listener": to_listener, "to_sender": to_sender}
            for to_listener, to_sender in [(0, 0), (10, 2), (10, 2), (30, 4), (30, 4), (60, 6), (60, 6)]
        ]
        assert values(relay, metrics.MESSAGES) == {"to_listener": 6, "to_sender": 3}
        assert values(relay, metrics.ACTIVE_CONNECTIONS) == {"": 0}


def test_bytes_of_a_request_count_while_it_is_in_flight_and_once() -> None:
    relay = Relay()
    first, second = begun(relay), begun(relay)
    first.to_listener, first.to_sender, second.to_listener = 10, 7, 5
    expected = {"to_listener": 15, "to_sender": 7}
    assert values(relay, metrics.ACTIVE_HTTP_REQUESTS) == {"": 2}
    assert values(relay, metrics.HTTP_BODY_BYTES) == values(relay, metrics.BYTES) == expected
    relay.journal.request_left(first)
    assert values(relay, metrics.ACTIVE_HTTP_REQUESTS) == {"": 1}
    assert values(relay, metrics.HTTP_BODY_BYTES) == values(relay, metrics.BYTES) == expected
    relay.journal.request_left(second)
    assert values(relay, metrics.HTTP_BODY_BYTES) == values(relay, metrics.BYTES) == expected
