"""What a node counts: one table of metrics, and the plain integers behind it.

    METRICS   every metric, declared once; docs/metrics.md, `/metrics` and OpenTelemetry are made from it
    Tallies   what has happened, by entity: raised when something ends or fails, never for a frame

A frame is counted by the lane that it passes, and a lane that runs is added when somebody reads (`relay.readings`);
when it has ended, what it counted is put into the tally of its entity. So a counter never goes back. Labels have few
values: an entity that does not exist is the empty one, and reasons are names from this table, never words of a peer.
"""

from __future__ import annotations

import itertools
from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from trunkline.protocol.causes import Cause
from trunkline.protocol.errors import ERRORS, AccessDenied, AuthorizationFailed, RelayError

#: What the metrics of an entity are told apart by, ahead of their own labels.
ENTITY_LABELS = ("namespace", "entity", "kind")

#: The value of `kind`: the entity type.
HYBRID_CONNECTION = "hybrid_connection"

#: What became of somebody who asked to listen or to connect.
RESULTS = ("success", "client_error", "server_error")

#: How a sender comes.
MODES = ("websocket", "http")

#: What became of a plain HTTP request: the status of the listener's answer, which is whole; the status of an error of
#: the relay; the sender left before its answer was whole; an answer that had begun could not be finished.
OUTCOMES = ("2xx", "3xx", "4xx", "5xx", "client_error", "server_error", "left", "cut")

DIRECTIONS = ("to_listener", "to_sender")

#: Upper bounds, in seconds.
_LATENCIES = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_LAGS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)

# Why each kind of thing can end; what `ENTITY_DELETED` ended is counted where there is no entity any more.
_OF_BOTH = (
    Cause.CLOSED, Cause.PROTOCOL_ERROR, Cause.KEY_REMOVED, Cause.ENTITY_DELETED, Cause.ENTITY_DISABLED,
    Cause.NODE_STOPPING, Cause.DISCONNECTED,
)  # fmt: skip
LISTENER_CAUSES = (
    *_OF_BOTH, Cause.CLOSED_WITH_ERROR, Cause.LOST, Cause.SILENT, Cause.TOKEN_EXPIRED, Cause.TOKEN_REFUSED,
)  # fmt: skip
SENDER_CAUSES = (
    *_OF_BOTH, Cause.SENDER_LOST, Cause.LISTENER_LOST, Cause.CONTROL_CHANNEL_LOST, Cause.IDLE_TIMEOUT,
    Cause.HALF_CLOSE_TIMEOUT,
)  # fmt: skip


def reason_of(error: RelayError) -> str:
    """An error as the value of a label: the name of its class in the tree, `invalid_signature`."""
    kind = next(each for each in type(error).__mro__ if each in _REASONS)
    return _REASONS[kind]


def _snake(name: str) -> str:
    return "".join(f"_{char.lower()}" if char.isupper() else char for char in name).removeprefix("_")


_REASONS: dict[type, str] = {kind: _snake(kind.__name__) for kind in ERRORS}

#: Why somebody was taken for nobody, or had not the right.
AUTH_FAILURES = tuple(
    reason for kind, reason in _REASONS.items() if issubclass(kind, AuthorizationFailed | AccessDenied)
)


@dataclass(frozen=True, slots=True, eq=False)
class Metric:
    """One row of the table."""

    #: In Prometheus; counters end in `_total`.
    name: str
    #: In OpenTelemetry.
    dotted: str
    kind: Literal["counter", "gauge", "histogram"]
    #: As OpenTelemetry writes it (UCUM).
    unit: str
    help: str
    #: Its own labels, each with all of its values; () for values that nobody can list.
    labels: tuple[tuple[str, tuple[str, ...]], ...] = ()
    #: Whether there is one for each entity.
    per_entity: bool = True
    #: The metrics of Azure Monitor that say the same.
    azure: tuple[str, ...] = ()
    #: Upper bounds of a histogram.
    buckets: tuple[float, ...] = ()

    @property
    def label_names(self) -> tuple[str, ...]:
        """All of its labels, in the order of their values in a sample."""
        return (*(ENTITY_LABELS if self.per_entity else ()), *(name for name, _ in self.labels))


def _azure(name: str) -> tuple[str, ...]:
    return tuple(f"{name}-{result}" for result in ("Success", "ClientError", "ServerError", "TotalRequests"))


LISTENER_CONNECTIONS = Metric(
    "relay_listener_connections_total", "relay.listener.connections", "counter", "{connection}",
    "listeners that asked for a control channel, by what became of it: 101, a 4xx, a 5xx",
    (("result", RESULTS),), azure=_azure("ListenerConnections"),
)  # fmt: skip
SENDER_CONNECTIONS = Metric(
    "relay_sender_connections_total", "relay.sender.connections", "counter", "{connection}",
    "senders that asked for a connection, and plain HTTP requests (mode http), by what became of it: success when a"
    " listener took it or answered; one that left before that is a client_error",
    (("result", RESULTS), ("mode", MODES)), azure=_azure("SenderConnections"),
)  # fmt: skip
ACTIVE_CONNECTIONS = Metric(
    "relay_active_connections", "relay.connections.active", "gauge", "{connection}",
    "established connections", azure=("ActiveConnections",),
)  # fmt: skip
ACTIVE_LISTENERS = Metric(
    "relay_active_listeners", "relay.listeners.active", "gauge", "{listener}",
    "registered listeners, active and standing by; there for every entity, also one that nobody has used",
    azure=("ActiveListeners",),
)  # fmt: skip
PARKED_LISTENERS = Metric(
    "relay_parked_listeners", "relay.listeners.parked", "gauge", "{listener}",
    "listeners over `max_listeners` that have a control channel and no place",
)  # fmt: skip
WAITING_LISTENERS = Metric(
    "relay_waiting_listeners", "relay.listeners.waiting", "gauge", "{listener}",
    "listeners whose handshake waits for a place",
)  # fmt: skip
WAITING_SENDERS = Metric(
    "relay_waiting_senders", "relay.senders.waiting", "gauge", "{sender}",
    "senders whose handshake waits for a listener",
)  # fmt: skip
BYTES = Metric(
    "relay_bytes_total", "relay.bytes", "counter", "By",
    "bytes of payload that were passed on, bodies of HTTP requests and answers among them",
    (("direction", DIRECTIONS),), azure=("BytesTransferred",),
)  # fmt: skip
MESSAGES = Metric(
    "relay_messages_total", "relay.messages", "counter", "{message}",
    "WebSocket messages that were passed on to their end", (("direction", DIRECTIONS),),
)  # fmt: skip
LISTENER_DISCONNECTS = Metric(
    "relay_listener_disconnects_total", "relay.listener.disconnects", "counter", "{connection}",
    "control channels that ended", (("reason", tuple(cause.label for cause in LISTENER_CAUSES)),),
    azure=("ListenerDisconnects",),
)  # fmt: skip
SENDER_DISCONNECTS = Metric(
    "relay_sender_disconnects_total", "relay.sender.disconnects", "counter", "{connection}",
    "established connections that ended", (("reason", tuple(cause.label for cause in SENDER_CAUSES)),),
    azure=("SenderDisconnects",),
)  # fmt: skip
RENDEZVOUS_SECONDS = Metric(
    "relay_rendezvous_seconds", "relay.rendezvous.duration", "histogram", "s",
    "time from telling a listener of a sender until it came, to accept or to reject", buckets=_LATENCIES,
)  # fmt: skip
CONNECT_SECONDS = Metric(
    "relay_connect_seconds", "relay.connect.duration", "histogram", "s",
    "time from a sender's whole request head to its 101", buckets=_LATENCIES,
)  # fmt: skip
ACTIVE_HTTP_REQUESTS = Metric(
    "relay_active_http_requests", "relay.http.requests.active", "gauge", "{request}",
    "plain HTTP requests in flight: from their head to the end of their answer",
)  # fmt: skip
HTTP_REQUESTS = Metric(
    "relay_http_requests_total", "relay.http.requests", "counter", "{request}",
    "plain HTTP requests, by the status of the listener's answer (2xx to 5xx) or of the relay's (client_error,"
    " server_error); left: the sender did not wait for all of it; cut: an answer that had begun was not finished",
    (("outcome", OUTCOMES),),
)  # fmt: skip
HTTP_REQUEST_SECONDS = Metric(
    "relay_http_request_seconds", "relay.http.request.duration", "histogram", "s",
    "time from the whole head of a plain HTTP request until the listener's answer began", buckets=_LATENCIES,
)  # fmt: skip
HTTP_BODY_BYTES = Metric(
    "relay_http_body_bytes_total", "relay.http.body.bytes", "counter", "By",
    "bytes of the bodies of requests (to_listener) and answers (to_sender) that were passed on",
    (("direction", DIRECTIONS),),
)  # fmt: skip
AUTH_FAILURES_TOTAL = Metric(
    "relay_auth_failures_total", "relay.auth.failures", "counter", "{failure}",
    "tokens that were refused, and handshakes without one", (("reason", AUTH_FAILURES),),
)  # fmt: skip
TOKEN_EXPIRATIONS = Metric(
    "relay_token_expirations_total", "relay.token.expirations", "counter", "{channel}",
    "control channels that were closed because the token ran out and was not renewed",
)  # fmt: skip
CONTROL_CHANNEL_AGE = Metric(
    "relay_control_channel_age_seconds", "relay.control_channel.age", "gauge", "s",
    "age of the oldest and of the youngest open control channel; not there without one",
    (("which", ("oldest", "youngest")),),
)  # fmt: skip
REFUSALS = Metric(
    "relay_refusals_total", "relay.refusals", "counter", "{request}",
    "requests that were answered with an error of the relay, of any kind and by anybody; see errors.md",
    (("reason", tuple(_REASONS.values())),), per_entity=False,
)  # fmt: skip
HANDSHAKES = Metric(
    "relay_handshakes", "relay.handshakes", "gauge", "{connection}",
    "connections of the data port whose request is being read, or whose handshake waits for its answer",
    per_entity=False,
)  # fmt: skip
HELD_REFUSALS = Metric(
    "relay_held_refusals", "relay.refusals.held", "gauge", "{request}",
    "refusals of addresses that fail again and again, which are told two seconds later", per_entity=False,
)  # fmt: skip
OPEN_FILES_LIMIT = Metric(
    "relay_open_files_limit", "relay.files.limit", "gauge", "{file}",
    "files and sockets that the process may have open: two for a connection, one for a listener; not there without a"
    " limit", per_entity=False,
)  # fmt: skip
LOOP_LAG = Metric(
    "relay_loop_lag_seconds", "relay.loop.lag", "histogram", "s",
    "how late the node's look at the clock came, once a second: what any connection may have waited",
    per_entity=False, buckets=_LAGS,
)  # fmt: skip
CERTIFICATE_EXPIRY = Metric(
    "relay_tls_certificate_expiry_seconds", "relay.tls.certificate.expiry", "gauge", "s",
    "when the certificate of the data port ends, in seconds since the epoch; not there without TLS",
    per_entity=False,
)  # fmt: skip
BUILD_INFO = Metric(
    "relay_build_info", "relay.build.info", "gauge", "1",
    "always 1; the labels say what runs", (("version", ()), ("python", ()), ("loop", ())), per_entity=False,
)  # fmt: skip

#: The table.
METRICS: tuple[Metric, ...] = (
    LISTENER_CONNECTIONS, SENDER_CONNECTIONS, ACTIVE_CONNECTIONS, ACTIVE_LISTENERS, PARKED_LISTENERS,
    WAITING_LISTENERS, WAITING_SENDERS, BYTES, MESSAGES, LISTENER_DISCONNECTS, SENDER_DISCONNECTS, RENDEZVOUS_SECONDS,
    CONNECT_SECONDS, ACTIVE_HTTP_REQUESTS, HTTP_REQUESTS, HTTP_REQUEST_SECONDS, HTTP_BODY_BYTES,
    AUTH_FAILURES_TOTAL, TOKEN_EXPIRATIONS, CONTROL_CHANNEL_AGE, REFUSALS, HANDSHAKES, HELD_REFUSALS,
    OPEN_FILES_LIMIT,
    LOOP_LAG, CERTIFICATE_EXPIRY, BUILD_INFO,
)  # fmt: skip


class Histogram:
    """How often a value fell under each bound."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        # One for each bound, and one for what is above the last.
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def __repr__(self) -> str:
        return f"<Histogram count={sum(self.counts)} total={self.total:g}>"

    def observe(self, value: float) -> None:
        """Count a value; one that is equal to a bound falls under it."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def copy(self) -> Histogram:
        """As it is now."""
        copy = Histogram(self.bounds)
        copy.counts, copy.total = list(self.counts), self.total
        return copy


class Tally:
    """What was counted for one entity, or for the node; begins with a zero for everything that can be counted."""

    __slots__ = ("_on_observed", "counts", "histograms", "labels")

    def __init__(self, labels: tuple[str, ...], on_observed: Callable[[Metric, Tally, float], None]) -> None:
        # Values of `ENTITY_LABELS`; () for the node.
        self.labels = labels
        self._on_observed = on_observed
        # By metric and the values of its own labels.
        self.counts: dict[tuple[Metric, tuple[str, ...]], int] = {
            (metric, values): 0 for metric in _own(bool(labels), "counter") for values in _combinations(metric)
        }
        self.histograms = {metric: Histogram(metric.buckets) for metric in _own(bool(labels), "histogram")}

    def __repr__(self) -> str:
        return f"<Tally {self.labels} {sum(self.counts.values())}>"

    def add(self, metric: Metric, *values: str, by: int = 1) -> None:
        """Raise a counter; `values` are those of its own labels, and stand in the table."""
        self.counts[metric, values] = self.counts.get((metric, values), 0) + by

    def observe(self, metric: Metric, seconds: float) -> None:
        """Put a duration into a histogram."""
        self.histograms[metric].observe(seconds)
        self._on_observed(metric, self, seconds)


class Tallies:
    """What a node has counted since it started."""

    def __init__(self) -> None:
        #: Called with each value that a histogram takes: OpenTelemetry has none that is read. None: nobody wants it.
        self.on_observed: Callable[[Metric, Tally, float], None] | None = None
        self.node = Tally((), self._observed)
        self._by_key: dict[str, Tally] = {}

    def __repr__(self) -> str:
        return f"<Tallies entities={len(self._by_key)}>"

    def __iter__(self) -> Iterator[Tally]:
        return iter((self.node, *self._by_key.values()))

    def of(self, key: str, namespace: str, entity: str) -> Tally:
        """The tally of an entity; made when it is missing.

        Args:
            key: of the entity, or of the namespace (or "") for what concerns no entity that exists.
            namespace, entity: names; "" where there is none.
        """
        tally = self._by_key.get(key)
        if tally is None:
            labels = (namespace, entity, HYBRID_CONNECTION if entity else "")
            tally = self._by_key[key] = Tally(labels, self._observed)
        return tally

    def find(self, key: str) -> Tally | None:
        """The tally of an entity that has one."""
        return self._by_key.get(key)

    def forget(self, key: str) -> None:
        """The entity is gone, and its counters with it."""
        self._by_key.pop(key, None)

    def _observed(self, metric: Metric, tally: Tally, value: float) -> None:
        if self.on_observed is not None:
            self.on_observed(metric, tally, value)


def _own(per_entity: bool, kind: str) -> list[Metric]:
    return [metric for metric in METRICS if metric.per_entity is per_entity and metric.kind == kind]


def _combinations(metric: Metric) -> Iterator[tuple[str, ...]]:
    return itertools.product(*(values for _, values in metric.labels))
