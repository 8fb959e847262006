"""What happens to listeners and senders, counted and told: the one place that feeds metrics, log and spans.

The broker says what happened. Here is what that means to each reader:

    tallies   counters and histograms by entity                `trunkline.server.metrics`
    log       one line, with fields                            `trunkline.server.logs`
    spans     one for each sender that a listener was sought for, when that is over

What is counted for an entity that does not exist (any more) goes to the tally of its namespace.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from trunkline.protocol.causes import Cause
from trunkline.protocol.control_channel import Ended
from trunkline.protocol.errors import AccessDenied, AuthorizationFailed, MissingToken, RelayError, clean_phrase
from trunkline.protocol.splice import Side
from trunkline.protocol.urls import Action
from trunkline.server import logs, metrics
from trunkline.server.entities.catalog import Catalog
from trunkline.server.entities.model import HybridConnection, Namespace
from trunkline.server.metrics import Tallies, Tally
from trunkline.server.relay.admission import Admitted, Subject, address_of
from trunkline.server.relay.control_channel import ControlChannel
from trunkline.server.relay.frontend import Exchange
from trunkline.server.relay.request_record import RequestRecord
from trunkline.server.relay.splicing import Connection

log = logging.getLogger("trunkline.relay")

# Lines about refusals of one kind in a second; what comes beyond is counted, and told as a number.
REFUSALS_TOLD = 10

_WEBSOCKET = "websocket"
_HTTP = "http"

_WHO = {Action.LISTEN: "listener", Action.CONNECT: "sender"}


#: Attributes of the span of a sender that a listener was sought for.
SPAN_ATTRIBUTES: Mapping[str, str] = {
    "relay.tracking_id": "the tracking id",
    "relay.namespace": "name of the namespace",
    "relay.entity": "name of the hybrid connection",
    "relay.rule": "authorization rule that let the sender in; not there for an anonymous one",
    "relay.outcome": "joined, or of a plain HTTP request answered; rejected (by the listener), refused (by the relay),"
    " left (the sender did) or cut (an answer that had begun was not finished)",
    "http.request.method": "of a plain HTTP request; not there for a WebSocket",
    "http.response.status_code": "what the sender was answered; not there when it left",
    "error.type": "name of the error that it was refused with",
}


@dataclass(frozen=True, slots=True)
class Sought:
    """One sender for whom a listener was sought, when that is over; a plain HTTP request when its answer is."""

    admitted: Admitted
    # Seconds since the epoch, and seconds.
    began_at: float
    lasted: float
    # joined, answered, rejected, refused, left or cut.
    outcome: str
    # HTTP status that the sender got; None when it left.
    status: int | None
    # Name of the error that it was refused with, as the metrics have it.
    error: str | None = None
    # Of a plain HTTP request.
    method: str | None = None

    @property
    def attributes(self) -> dict[str, str | int]:
        """Those of its span, see `SPAN_ATTRIBUTES`."""
        admitted = self.admitted
        known: dict[str, str | int | None] = {
            "relay.tracking_id": admitted.tracking_id,
            "relay.namespace": admitted.namespace.name,
            "relay.entity": admitted.entity.name,
            "relay.rule": None if admitted.grant is None else admitted.grant.rule,
            "relay.outcome": self.outcome,
            "http.request.method": self.method,
            "http.response.status_code": self.status,
            "error.type": self.error,
        }
        return {name: value for name, value in known.items() if value is not None}


class Journal:
    """Counts and tells.

    Args:
        tallies: what is counted.
        catalog: knows which entities exist.
        stopwatch: seconds, as exact as the system has them; durations are measured with it.
        wall_clock: seconds since the epoch.
    """

    def __init__(
        self,
        tallies: Tallies,
        catalog: Catalog,
        *,
        stopwatch: Callable[[], float],
        wall_clock: Callable[[], float],
    ) -> None:
        self._tallies = tallies
        self._catalog = catalog
        self.stopwatch = stopwatch
        self._wall_clock = wall_clock
        self._throttle = logs.Throttle(REFUSALS_TOLD, stopwatch)
        #: Called with each sender whose search is over; None: nobody wants it.
        self.on_sought: Callable[[Sought], None] | None = None
        #: Plain HTTP requests in flight.
        self.requests: set[RequestRecord] = set()

    def __repr__(self) -> str:
        return f"<Journal {self._tallies!r}>"

    # -- listeners

    def listener_registered(self, channel: ControlChannel) -> None:
        """Its control channel is open."""
        facts = channel.facts
        self._tally_of(facts.entity).add(metrics.LISTENER_CONNECTIONS, "success")
        parked = channel.registration is not None and channel.registration.parked
        logs.write(
            log,
            logs.NEW_LISTENER_REGISTERED,
            f"listener {facts.id} ({facts.tracking_id}) on {facts.path} from {facts.remote[0]} by rule"
            f" {facts.grant.rule}, {facts.user_agent}{', parked' if parked else ''}",
            **_of_channel(channel),
            parked=parked or None,
        )

    def listener_left(self, admitted: Admitted) -> None:
        """It left before it had its place."""
        self._tally_of(admitted.entity.key).add(metrics.LISTENER_CONNECTIONS, "client_error")

    def listener_ended(self, channel: ControlChannel, ended: Ended) -> None:
        """Its control channel has ended."""
        facts, tally = channel.facts, self._tally_of(channel.facts.entity)
        tally.add(metrics.LISTENER_DISCONNECTS, ended.cause.label)
        operation = logs.LISTENER_UNREGISTERED
        if ended.cause is Cause.TOKEN_EXPIRED:
            tally.add(metrics.TOKEN_EXPIRATIONS)
            operation = logs.LISTENER_CLOSING_FROM_EXPIRED_TOKEN
        elif ended.cause is Cause.SILENT:
            operation = logs.LISTENER_UNRESPONSIVE
        duration = max(0.0, self._wall_clock() - facts.opened_at)
        reason = clean_phrase(ended.reason) or f"closed ({ended.code or 'no code'})"
        logs.write(
            log,
            operation,
            f"listener {facts.id} ({facts.tracking_id}) on {facts.path} from {facts.remote[0]} by rule"
            f" {facts.grant.rule} ended after {duration:.1f} s and {channel.offers} offers: {reason}",
            **_of_channel(channel),
            duration=round(duration, 3),
            messagesToListener=channel.offers,
            bytesToListener=channel.bytes_sent,
            messagesFromListener=channel.renewals,
            bytesFromListener=channel.bytes_received,
            cause=ended.cause.label,
            reason=reason,
        )

    def renewal_refused(self, channel: ControlChannel, error: RelayError) -> None:
        """The token that it sent to go on with is not good; the end of its channel follows."""
        if isinstance(error, AuthorizationFailed | AccessDenied):
            self._tally_of(channel.facts.entity).add(metrics.AUTH_FAILURES_TOTAL, metrics.reason_of(error))

    # -- senders

    def sender_waits(self, admitted: Admitted, exchange: Exchange) -> None:
        """It was let in, and a listener is sought."""
        if not log.isEnabledFor(logs.NEW_SENDER_REGISTERING.level):
            return
        logs.write(
            log,
            logs.NEW_SENDER_REGISTERING,
            f"sender {admitted.tracking_id} on {admitted.path} from {exchange.remote[0]} waits for a listener",
            **_of_sender(admitted, exchange),
        )

    def listener_told(self, admitted: Admitted, exchange: Exchange, listener: str) -> None:
        """A listener was told of it."""
        if not log.isEnabledFor(logs.LISTENER_ACCEPTING_CONNECTION.level):
            return
        logs.write(
            log,
            logs.LISTENER_ACCEPTING_CONNECTION,
            f"sender {admitted.tracking_id} on {admitted.path} was offered to listener {listener}",
            **_of_sender(admitted, exchange),
            listener=listener,
        )

    def listener_came(self, admitted: Admitted, waited: float) -> None:
        """The listener that was told came, to accept or to reject, after so many seconds."""
        self._tally_of(admitted.entity.key).observe(metrics.RENDEZVOUS_SECONDS, waited)

    def listener_did_not_come(self, admitted: Admitted, exchange: Exchange, listener: str, waited: float) -> None:
        """The listener that was told did not come in time."""
        logs.write(
            log,
            logs.LISTENER_ACCEPTING_CONNECTION_TIMEOUT,
            f"listener {listener} on {admitted.path} did not come for sender {admitted.tracking_id} in {waited:.1f} s",
            **_of_sender(admitted, exchange),
            listener=listener,
            duration=round(waited, 3),
        )

    def established(self, admitted: Admitted, connection: Connection, waited: float) -> None:
        """It and a listener are joined, so many seconds after its request."""
        facts, tally = connection.facts, self._tally_of(connection.facts.entity)
        tally.add(metrics.SENDER_CONNECTIONS, "success", _WEBSOCKET)
        tally.observe(metrics.CONNECT_SECONDS, waited)
        self._sought(admitted, waited, "joined", 101)
        logs.write(
            log,
            logs.SENDER_LISTENER_CONNECTION_ESTABLISHED,
            f"connection {facts.id} ({facts.tracking_id}) on {facts.path} from {facts.remote[0]}"
            f"{_by_rule(connection)} to listener {facts.listener} after {waited * 1000:.0f} ms",
            **_of_connection(connection),
            duration=round(waited, 6),
        )

    def rejected(self, admitted: Admitted, exchange: Exchange, status: int, description: str, waited: float) -> None:
        """A listener rejected it."""
        self._tally_of(admitted.entity.key).add(metrics.SENDER_CONNECTIONS, _result(status), _WEBSOCKET)
        self._sought(admitted, waited, "rejected", status)
        reason = clean_phrase(description)
        logs.write(
            log,
            logs.LISTENER_REJECTED_CONNECTION,
            f"sender {admitted.tracking_id} on {admitted.path} from {exchange.remote[0]} was rejected by its listener:"
            f" {status} {reason}",
            **_of_sender(admitted, exchange),
            status=status,
            reason=reason,
        )

    def sender_left(self, admitted: Admitted, waited: float) -> None:
        """It left before it had its answer."""
        self._tally_of(admitted.entity.key).add(metrics.SENDER_CONNECTIONS, "client_error", _WEBSOCKET)
        self._sought(admitted, waited, "left", None)

    def sender_refused(self, admitted: Admitted, error: RelayError, waited: float) -> None:
        """The search for its listener failed; `refused` follows."""
        self._sought(admitted, waited, "refused", error.status, metrics.reason_of(error))

    def ended(self, connection: Connection, lasted: float) -> None:
        """An established connection has ended."""
        facts, end, tally = connection.facts, connection.splice.ended, self._tally_of(connection.facts.entity)
        assert end is not None
        to_listener, to_sender = (connection.splice.lanes[side] for side in (Side.SENDER, Side.LISTENER))
        tally.add(metrics.SENDER_DISCONNECTS, end.cause.label)
        for direction, lane in (("to_listener", to_listener), ("to_sender", to_sender)):
            tally.add(metrics.MESSAGES, direction, by=lane.messages)
            tally.add(metrics.BYTES, direction, by=lane.bytes)
        reason = clean_phrase(end.reason)
        logs.write(
            log,
            logs.SENDER_CONNECTION_CLOSED,
            f"connection {facts.id} ({facts.tracking_id}) on {facts.path} from {facts.remote[0]}"
            f"{_by_rule(connection)} ended after {lasted:.1f} s, {to_listener.messages} messages"
            f" ({to_listener.bytes} bytes) to the listener, {to_sender.messages} ({to_sender.bytes}) to the sender:"
            f" {reason}",
            **_of_connection(connection),
            duration=round(lasted, 3),
            messagesToListener=to_listener.messages,
            bytesToListener=to_listener.bytes,
            messagesToSender=to_sender.messages,
            bytesToSender=to_sender.bytes,
            cause=end.cause.label,
            reason=reason,
        )

    # -- plain HTTP requests

    def request_began(self, admitted: Admitted, exchange: Exchange, id: str) -> RequestRecord:
        """It was let in, and a listener is sought. One of the last four below ends what this begins."""
        record = RequestRecord(admitted, exchange, id, self.stopwatch())
        self.requests.add(record)
        if log.isEnabledFor(logs.SENDER_SENT_HTTP_REQUEST.level):
            logs.write(
                log,
                logs.SENDER_SENT_HTTP_REQUEST,
                f"request {_named(record)} seeks a listener",
                **_of_request(record),
            )
        return record

    def request_told(self, record: RequestRecord, listener: str) -> None:
        """A listener was told of it."""
        record.listener = listener
        if log.isEnabledFor(logs.MESSAGE_SENT_TO_LISTENER.level):
            logs.write(
                log,
                logs.MESSAGE_SENT_TO_LISTENER,
                f"request {_named(record)} went to listener {listener}",
                **_of_request(record),
            )

    def request_timed_out(self, record: RequestRecord) -> None:
        """The listener that was told of it did not answer in time; another is sought, or `request_refused` follows."""
        if not self._throttle.lets(f"{logs.LISTENER_ACCEPTING_REQUEST_TIMEOUT.name} no_response"):
            return
        waited = self.stopwatch() - record.began
        logs.write(
            log,
            logs.LISTENER_ACCEPTING_REQUEST_TIMEOUT,
            f"listener {record.listener} did not answer request {_named(record)} in {waited:.1f} s",
            **_of_request(record),
            duration=round(waited, 3),
        )

    def request_answered(self, record: RequestRecord, status: int) -> None:
        """The head of the listener's answer goes to the sender."""
        record.status = status
        record.answered = self.stopwatch()
        tally = self._tally_of(record.admitted.entity.key)
        tally.add(metrics.SENDER_CONNECTIONS, "success", _HTTP)
        tally.observe(metrics.HTTP_REQUEST_SECONDS, record.answered - record.began)

    def request_ended(self, record: RequestRecord) -> None:
        """The answer is whole."""
        status = record.status or 0
        lasted = self._request_over(record, f"{min(max(status // 100, 2), 5)}xx")
        self._sought(record.admitted, lasted, "answered", status, method=record.exchange.head.method)
        if log.isEnabledFor(logs.LISTENER_SENT_HTTP_RESPONSE.level):
            logs.write(
                log,
                logs.LISTENER_SENT_HTTP_RESPONSE,
                f"request {_named(record)} was answered {status} by listener {record.listener} in"
                f" {lasted * 1000:.1f} ms, {record.to_listener} bytes to it and {record.to_sender} back",
                **_of_request(record),
                duration=round(lasted, 6),
                bytesToListener=record.to_listener,
                bytesToSender=record.to_sender,
                status=status,
            )

    def request_refused(self, record: RequestRecord, error: RelayError) -> None:
        """The relay answers it with an error; `refused` follows, and counts what became of it."""
        lasted = self._request_over(record, None)
        method = record.exchange.head.method
        self._sought(record.admitted, lasted, "refused", error.status, metrics.reason_of(error), method)

    def request_left(self, record: RequestRecord) -> None:
        """The sender went before its answer was whole."""
        self._request_failed(record, "left", "the sender left")

    def request_cut(self, record: RequestRecord, reason: str) -> None:
        """The answer has begun and cannot be finished."""
        self._request_failed(record, "cut", reason)

    def _request_failed(self, record: RequestRecord, outcome: str, reason: str) -> None:
        lasted = self._request_over(record, outcome)
        if record.answered is None:
            self._tally_of(record.admitted.entity.key).add(metrics.SENDER_CONNECTIONS, "client_error", _HTTP)
        self._sought(record.admitted, lasted, outcome, record.status, method=record.exchange.head.method)
        operation = logs.LISTENER_RETURNING_HTTP_RESPONSE_FAILED
        if not self._throttle.lets(f"{operation.name} {outcome}"):
            return
        logs.write(
            log,
            operation,
            f"request {_named(record)} ended after {lasted:.1f} s without all of its answer, {record.to_listener} bytes"
            f" to the listener and {record.to_sender} back: {clean_phrase(reason)}",
            **_of_request(record),
            duration=round(lasted, 3),
            bytesToListener=record.to_listener,
            bytesToSender=record.to_sender,
            cause=outcome,
            reason=clean_phrase(reason),
            status=record.status,
        )

    def _request_over(self, record: RequestRecord, outcome: str | None) -> float:
        """Count what it was; how many seconds it lasted."""
        self.requests.discard(record)
        tally = self._tally_of(record.admitted.entity.key)
        if outcome is not None:
            tally.add(metrics.HTTP_REQUESTS, outcome)
        for direction, count in (("to_listener", record.to_listener), ("to_sender", record.to_sender)):
            if count:
                tally.add(metrics.BYTES, direction, by=count)
                tally.add(metrics.HTTP_BODY_BYTES, direction, by=count)
        return self.stopwatch() - record.began

    # -- refusals

    def refused(self, exchange: Exchange, error: RelayError, note: str = "") -> None:
        """A request is answered with an error of the relay; `note` stands behind the address."""
        subject, reason = exchange.subject or Subject(""), metrics.reason_of(error)
        tally = self._tally(subject.namespace, subject.entity)
        self._tallies.node.add(metrics.REFUSALS, reason)
        if subject.action is Action.LISTEN:
            tally.add(metrics.LISTENER_CONNECTIONS, _result(error.status))
        elif subject.action is Action.CONNECT:
            tally.add(metrics.SENDER_CONNECTIONS, _result(error.status), _WEBSOCKET)
        elif subject.is_request:
            tally.add(metrics.SENDER_CONNECTIONS, _result(error.status), _HTTP)
            tally.add(metrics.HTTP_REQUESTS, _result(error.status))
        operation = logs.PROCESSING_REQUEST_FAILED
        if isinstance(error, AuthorizationFailed | AccessDenied):
            tally.add(metrics.AUTH_FAILURES_TOTAL, reason)
            is_invalid = isinstance(error, AuthorizationFailed) and not isinstance(error, MissingToken)
            operation = logs.INVALID_SAS_TOKEN if is_invalid else logs.AUTHORIZATION_FAILED
        if not self._throttle.lets(f"{operation.name} {reason}"):
            return
        who = "request" if subject.action is None else _WHO.get(subject.action, "accept")
        endpoint = _endpoint(subject, exchange)
        logs.write(
            log,
            operation,
            f"refused {who} at {endpoint} from {exchange.remote[0]}{note}: {error.status} {clean_phrase(str(error))}",
            activityId=error.tracking_id or subject.tracking_id or None,
            endpoint=endpoint,
            remote=exchange.remote[0],
            client=exchange.head.user_agent,
            status=error.status,
            error=reason,
            reason=clean_phrase(error.message),
        )

    def unread(self, error: RelayError, address: str) -> None:
        """A request that could not be read is refused."""
        reason = metrics.reason_of(error)
        self._tallies.node.add(metrics.REFUSALS, reason)
        if not self._throttle.lets(f"{logs.PROCESSING_REQUEST_FAILED.name} {reason}"):
            return
        logs.write(
            log,
            logs.PROCESSING_REQUEST_FAILED,
            f"refused what came from {address}: {error.status} {clean_phrase(str(error))}",
            activityId=error.tracking_id,
            remote=address,
            status=error.status,
            error=reason,
            reason=clean_phrase(error.message),
        )

    def tick(self) -> None:
        """Tell what was left out; to be called about once a second."""
        seconds, left_out = self._throttle.left_out()
        for kind, count in left_out.items():
            name, _, reason = kind.partition(" ")
            operation = next(each for each in logs.OPERATIONS if each.name == name)
            logs.write(
                log,
                operation,
                f"and {count:,} more were refused with {reason} in {seconds:.1f} s",
                error=reason,
                leftOut=count,
                duration=round(seconds, 3),
            )

    def entity_deleted(self, key: str) -> None:
        """A namespace or a hybrid connection is gone; its counters go with it."""
        self._tallies.forget(key)

    # -- inside

    def _sought(
        self,
        admitted: Admitted,
        lasted: float,
        outcome: str,
        status: int | None,
        error: str | None = None,
        method: str | None = None,
    ) -> None:
        if self.on_sought is not None:
            self.on_sought(Sought(admitted, self._wall_clock() - lasted, lasted, outcome, status, error, method))

    def _tally_of(self, key: str) -> Tally:
        """Of an entity that existed when its listener or sender came."""
        tally = self._tallies.find(key)
        if tally is not None:
            return tally
        entity, namespace = self._catalog.get(key), self._catalog.get(key.partition("/hybridconnections/")[0])
        return self._tally(
            namespace if isinstance(namespace, Namespace) else None,
            entity if isinstance(entity, HybridConnection) else None,
        )

    def _tally(self, namespace: Namespace | None, entity: HybridConnection | None) -> Tally:
        if namespace is None or self._catalog.get(namespace.id) is None:
            return self._tallies.of("", "", "")
        if entity is None or self._catalog.get(entity.id) is None:
            return self._tallies.of(namespace.key, namespace.name, "")
        return self._tallies.of(entity.key, namespace.name, entity.name)


def _result(status: int) -> str:
    return "server_error" if status >= 500 else "client_error"


def _endpoint(subject: Subject, exchange: Exchange) -> str:
    if subject.namespace is not None and subject.entity is not None:
        return f"sb://{subject.namespace.name}/{subject.entity.name}"
    return address_of(exchange)


def _by_rule(connection: Connection) -> str:
    grant = connection.facts.grant
    return " without a token" if grant is None else f" by rule {grant.rule}"


def _of_channel(channel: ControlChannel) -> dict[str, object]:
    facts = channel.facts
    return {
        "activityId": facts.tracking_id,
        "endpoint": f"sb://{facts.path}",
        "id": facts.id,
        "remote": facts.remote[0],
        "rule": facts.grant.rule,
        "client": facts.user_agent,
    }


def _of_connection(connection: Connection) -> dict[str, object]:
    facts = connection.facts
    return {
        "activityId": facts.tracking_id,
        "endpoint": f"sb://{facts.path}",
        "id": facts.id,
        "listener": facts.listener,
        "remote": facts.remote[0],
        "rule": facts.grant and facts.grant.rule,
        "client": facts.user_agent,
    }


def _of_sender(admitted: Admitted, exchange: Exchange) -> dict[str, object]:
    return {
        "activityId": admitted.tracking_id,
        "endpoint": f"sb://{admitted.path}",
        "remote": exchange.remote[0],
        "rule": admitted.grant and admitted.grant.rule,
        "client": exchange.head.user_agent,
    }


def _named(record: RequestRecord) -> str:
    """Without its path: that may hold whatever a client mistook for one."""
    admitted, exchange = record.admitted, record.exchange
    return f"{admitted.tracking_id} ({exchange.head.method}) on {admitted.path} from {exchange.remote[0]}"


def _of_request(record: RequestRecord) -> dict[str, object]:
    return {
        **_of_sender(record.admitted, record.exchange),
        "id": record.id,
        "method": record.exchange.head.method,
        "listener": record.listener,
    }
