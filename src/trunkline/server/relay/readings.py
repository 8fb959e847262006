"""What the data plane holds at this moment, as samples of metrics: read when somebody asks, and never kept up to date.

A connection that runs has its counters in its lanes. They are added up here, by entity; when it has ended they are in
the tally of its entity (`relay.journal`), so that the sum of both never goes back.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from trunkline.protocol.splice import Side
from trunkline.server import metrics
from trunkline.server.entities.catalog import Catalog
from trunkline.server.exposition import Sample
from trunkline.server.relay.broker import Broker
from trunkline.server.relay.listeners import LocalDirectory
from trunkline.server.relay.splicing import Splicing

_NOTHING = [0, 0, 0]


def held(
    catalog: Catalog, broker: Broker, directory: LocalDirectory, splicing: Splicing, wall_clock: float
) -> Iterator[Sample]:
    """Samples of every entity that there is, and of what it has.

    Args:
        catalog, broker, directory, splicing: of one node.
        wall_clock: seconds since the epoch.
    """
    connections: Counter[str] = Counter()
    # By entity: messages and bytes to the listener, messages and bytes to the sender.
    passed: dict[str, list[int]] = {}
    for connection in splicing:
        entity = connection.facts.entity
        connections[entity] += 1
        to_listener, to_sender = connection.splice.lanes[Side.SENDER], connection.splice.lanes[Side.LISTENER]
        sums = passed.setdefault(entity, [0, 0, 0, 0])
        sums[0] += to_listener.messages
        sums[1] += to_listener.bytes
        sums[2] += to_sender.messages
        sums[3] += to_sender.bytes
    # By entity: requests in flight, and bytes of their bodies to the listener and to the sender.
    requests: dict[str, list[int]] = {}
    for request in broker.journal.requests:
        of_entity = requests.setdefault(request.admitted.entity.key, [0, 0, 0])
        of_entity[0] += 1
        of_entity[1] += request.to_listener
        of_entity[2] += request.to_sender
    opened: dict[str, tuple[float, float]] = {}
    for channel in broker.channels:
        at = channel.facts.opened_at
        first, last = opened.get(channel.facts.entity, (at, at))
        opened[channel.facts.entity] = min(first, at), max(last, at)
    waiting = broker.waiting_by_entity()
    listeners = directory.counts_by_entity()
    for namespace in catalog.namespaces:
        for hybrid_connection in catalog.hybrid_connections(namespace):
            key = hybrid_connection.key
            labels = (namespace.name, hybrid_connection.name, metrics.HYBRID_CONNECTION)
            there = listeners.get(key)
            yield metrics.ACTIVE_LISTENERS, labels, there.registered if there else 0
            if there is not None:
                yield metrics.PARKED_LISTENERS, labels, there.parked
                yield metrics.WAITING_LISTENERS, labels, there.waiting
            yield metrics.ACTIVE_CONNECTIONS, labels, connections[key]
            yield metrics.WAITING_SENDERS, labels, waiting[key]
            if key in opened:
                first, last = opened[key]
                yield metrics.CONTROL_CHANNEL_AGE, (*labels, "oldest"), max(0.0, wall_clock - first)
                yield metrics.CONTROL_CHANNEL_AGE, (*labels, "youngest"), max(0.0, wall_clock - last)
            in_flight, body_to_listener, body_to_sender = requests.get(key, _NOTHING)
            yield metrics.ACTIVE_HTTP_REQUESTS, labels, in_flight
            if in_flight:
                yield metrics.HTTP_BODY_BYTES, (*labels, "to_listener"), body_to_listener
                yield metrics.HTTP_BODY_BYTES, (*labels, "to_sender"), body_to_sender
            if key in passed or in_flight:
                sums = passed.get(key, [0, 0, 0, 0])
                yield metrics.MESSAGES, (*labels, "to_listener"), sums[0]
                yield metrics.BYTES, (*labels, "to_listener"), sums[1] + body_to_listener
                yield metrics.MESSAGES, (*labels, "to_sender"), sums[2]
                yield metrics.BYTES, (*labels, "to_sender"), sums[3] + body_to_sender
