"""What is shown of a listener, a connection and a plain HTTP request in flight: one JSON object each.

It is made of what the relay keeps anyway.

Moments are in UTC (ISO 8601), durations in seconds; durations are measured here, so a reader's clock does not matter.
`null` is what is not known. No key, token or secret of a rendezvous is in a row.
"""

from __future__ import annotations

from datetime import UTC, datetime

from trunkline.protocol.splice import Side
from trunkline.server.relay.control_channel import ControlChannel
from trunkline.server.relay.listeners import Standing
from trunkline.server.relay.request_record import RequestRecord
from trunkline.server.relay.splicing import Connection

Row = dict[str, object]


def listener_row(standing: Standing, *, now: float, wall_now: float) -> Row:
    """A listener.

    Args:
        standing: what the directory says of it.
        now: seconds, monotonic.
        wall_now: the same moment, in seconds since the epoch.
    """
    listener = standing.listener
    address, rule, guid = listener.client
    row: Row = {
        "id": listener.id,
        "namespace": None,
        "entity": None,
        "state": standing.state,
        "since": None,
        "seconds": None,
        "remote": address,
        "client": None,
        "rule": rule,
        "token_expires": None,
        "token_seconds": None,
        "last_heard_seconds": None,
        "connections": standing.connections,
        "offers": standing.offers,
        "guid": guid,
        "tracking_id": None,
    }
    # What another node holds tells less.
    if isinstance(listener, ControlChannel):
        facts = listener.facts
        row["namespace"], row["entity"] = _names(facts.path)
        row |= {
            "since": _moment(facts.opened_at),
            "seconds": _seconds(wall_now - facts.opened_at),
            "remote": _address(facts.remote),
            "client": facts.user_agent,
            "rule": facts.grant.rule,
            "token_expires": _moment(facts.grant.expires_at),
            "token_seconds": round(facts.grant.expires_at - wall_now, 3),
            "tracking_id": facts.tracking_id,
        }
        if listener.is_open:
            # On the clock that closes it, which a jump of the wall clock does not move.
            row["token_seconds"] = round(listener.machine.expires_at - now, 3)
            row["last_heard_seconds"] = _seconds(now - listener.machine.last_received_at)
    return row


def connection_row(connection: Connection, listener: ControlChannel | None, *, now: float) -> Row:
    """A connection.

    Args:
        connection: which is established.
        listener: the control channel of its listener, while there is one.
        now: seconds, monotonic.
    """
    facts, splice = connection.facts, connection.splice
    namespace, entity = _names(facts.path)
    rates = connection.rates
    to_listener, to_sender = (
        {"messages": lane.messages, "bytes": lane.bytes, "bytes_per_second": round(rates[side])}
        for side, lane in ((side, splice.lanes[side]) for side in (Side.SENDER, Side.LISTENER))
    )
    return {
        "id": facts.id,
        "namespace": namespace,
        "entity": entity,
        "state": "half-closed" if splice.is_half_closed else "open",
        "method": None,
        "since": _moment(facts.began_at),
        "seconds": _seconds(now - connection.started_at),
        "idle_seconds": _seconds(now - splice.received_at),
        "sender": {
            "remote": _address(facts.remote),
            "client": facts.user_agent,
            "rule": None if facts.grant is None else facts.grant.rule,
        },
        "listener": {
            "id": facts.listener,
            "remote": None if listener is None else _address(listener.facts.remote),
            "client": None if listener is None else listener.facts.user_agent,
        },
        "to_listener": to_listener,
        "to_sender": to_sender,
        "tracking_id": facts.tracking_id,
    }


def request_row(record: RequestRecord, listener: ControlChannel | None, *, seconds: float, wall_now: float) -> Row:
    """A plain HTTP request in flight, in the form of a connection. Its path and query are the sender's alone.

    Args:
        record: what the journal knows of it.
        listener: the control channel of its listener, while there is one.
        seconds: for how long it has been in flight.
        wall_now: this moment, in seconds since the epoch.
    """
    admitted, exchange = record.admitted, record.exchange
    return {
        "id": record.id,
        "namespace": admitted.namespace.name,
        "entity": admitted.entity.name,
        "state": record.state,
        "method": exchange.head.method,
        "since": _moment(wall_now - seconds),
        "seconds": _seconds(seconds),
        "idle_seconds": None,
        "sender": {
            "remote": _address(exchange.remote),
            "client": exchange.head.user_agent,
            "rule": None if admitted.grant is None else admitted.grant.rule,
        },
        "listener": {
            "id": record.listener,
            "remote": None if listener is None else _address(listener.facts.remote),
            "client": None if listener is None else listener.facts.user_agent,
        },
        "to_listener": {"messages": None, "bytes": record.to_listener, "bytes_per_second": None},
        "to_sender": {"messages": None, "bytes": record.to_sender, "bytes_per_second": None},
        "tracking_id": admitted.tracking_id,
    }


def _names(path: str) -> tuple[str, str]:
    """Namespace and hybrid connection; no namespace has a slash in its name."""
    namespace, _, entity = path.partition("/")
    return namespace, entity


def _moment(seconds: float) -> str:
    # A token may say that it lasts for ever: the calendar ends before.
    seconds = min(seconds, _END_OF_TIME)
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


_END_OF_TIME = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC).timestamp()


def _seconds(duration: float) -> float:
    """Of the wall clock it may be below nothing, when that was set back."""
    return round(max(duration, 0.0), 3)


def _address(remote: tuple[str, int]) -> str:
    host, port = remote
    if not port:
        # A proxy passed it on, and did not say the port.
        return host
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
