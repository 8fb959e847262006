"""Every error of Trunkline: one tree for the node, the SDK, the CLI and the wire.

    RelayError                        500 1011
    ├── InvalidRequest                400 1008   the peer asked for something that makes no sense
    │   └── NotAWebSocket             400 1008     plain HTTP on a /$hc/ address
    ├── InvalidUrl                    404 1008   a request target that cannot be read
    ├── AuthorizationFailed           401 1008   who are you?
    │   ├── MissingToken              401 1008
    │   ├── InvalidSignature          401 1008     unknown rule, wrong key, altered token
    │   ├── InvalidToken              401 1008     the text is no token at all
    │   ├── ExpiredToken              401 1008
    │   ├── InvalidAudience           401 1008     the token is for another endpoint
    │   └── TokenLifetimeExceeded     401 1008     the token lasts longer than is allowed here
    ├── AccessDenied                  403 1008   known, but without the right
    ├── ClosedByOperator              403 1008   an operator ended the connection
    ├── RendezvousNotFound            403 1008   a used, expired or invented accept address
    ├── EndpointDisabled              403 1001
    ├── EndpointNotFound              404 1001
    ├── EndpointAlreadyExists         409 1008
    ├── RequestTimedOut               408 1008   the request head did not arrive in time
    ├── UriTooLong                    414 1008
    ├── HeadersTooLarge               431 1009
    ├── QuotaExceeded                 429 1008   senders, requests
    │   ├── ListenerQuotaExceeded     403 1008
    │   └── EntityQuotaExceeded       403 1008     hybrid connections of a namespace
    ├── NoListener                    504 1011   nobody is there to take the connection
    │   └── ListenersExcluded         404 1011     there is, but the sender excluded them
    ├── ConnectionNotEstablished      504 1011   a listener was asked and did not come in time
    ├── ResponseTimedOut              504 1011   a listener had a plain HTTP request and did not answer in time
    ├── ConnectionLost                502 1011   the other side went away
    ├── BadGateway                    502 1011   the other side answered nonsense
    ├── ServerBusy                    503 1001   the node starts, drains or is overloaded
    ├── InternalError                 500 1011   a fault of the relay
    ├── UnsupportedRequest            501 1008   a method or a transfer coding that is not served
    ├── VersionNotSupported           505 1008   a version of HTTP other than 1.1 and 1.0
    ├── ConnectionRejected            as sent    the listener said no, in its own words
    ├── ProtocolViolation             400 1002   a peer broke the rules of the wire
    │   ├── InvalidFrame              400 1002
    │   ├── InvalidMessage            400 1007     text that is not UTF-8, JSON that is no command
    │   └── MessageTooLarge           413 1009
    ├── InvalidConnectionString       400 1008   the caller's own input (also a ValueError)
    └── InvalidSetting                400 1008   the caller's own input (also a ValueError)

Each class carries the HTTP status of a refused handshake, the WebSocket close code of an open channel,
Azure's name, and whether the same call may succeed later. Codes outside 1000-1003, 1007-1011 and 3000-4999
are never used: hyco-ws (ws 1.x) takes them for a protocol error. Names are Azure's where Azure has one. No
message ever holds a key, a token or a signature.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

# RFC 6455 section 5.5: a control frame carries at most 125 bytes, two of which are the close code.
CLOSE_REASON_LIMIT = 123

# A name longer than any entity has; only a hostile URL is cut, so that a refusal stays a readable line.
_ADDRESS_LIMIT = 1024

_TRACKING_ID = re.compile(r"TrackingId:\s*([^\s,;]+)", re.ASCII)


def one_line(text: str) -> str:
    """``text`` without anything that could end a line, move a cursor or fail to encode."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else " " if char.isspace() else "?" for char in text)


def clean_phrase(text: str) -> str:
    """``text`` made safe as an HTTP reason phrase (RFC 9112 section 4): one line, encodable as Latin-1.

    Line ends and other white space become a space, what cannot be shown or is not Latin-1 becomes ``?``.
    The text is not shortened: clients of Azure Relay read it whole.
    """
    if text.isascii() and text.isprintable():
        return text.strip()
    return one_line(text).encode("latin-1", "replace").decode("latin-1").strip()


class RelayError(Exception):
    """Base of every error. Carries what the peer and the operator are told.

    Parameters
    ----------
    message: what happened and what to do, one sentence without a full stop; empty for the class's own words.
    entity: path of the hybrid connection concerned, if one is.
    tracking_id: names the connection or request in every log line, if one is known.
    """

    #: Azure's name of the error.
    code: str = "InternalServerError"
    #: HTTP status of a refused handshake or request. An instance may differ from its class (`NoListener`).
    status: int = 500
    #: WebSocket close code (RFC 6455 section 7.4) when the channel is already open.
    close_code: int = 1011
    #: Whether the same call may succeed later without anybody changing anything.
    transient: bool = False
    #: The words used when no message is given.
    default_message: str = "The relay met an unexpected condition"

    def __init__(self, message: str = "", *, entity: str | None = None, tracking_id: str | None = None) -> None:
        self.message = message or self.default_message
        self.entity = entity
        self.tracking_id = tracking_id
        super().__init__(self.message)

    def reason_phrase(self, *, tracking_id: str, address: str, now: float) -> str:
        """The reason phrase of the HTTP answer; real clients show it to their users and ignore the body.

        Parameters
        ----------
        tracking_id: id of this connection or request.
        address: ``sb://host/path``; the path must be in the phrase (asserted by Microsoft's own tests).
        now: seconds since the epoch; written in UTC as ``M/d/yyyy h:mm:ss AM/PM``, as Azure Relay does.
        """
        moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=now)
        hour, half = moment.hour % 12 or 12, "PM" if moment.hour >= 12 else "AM"
        stamp = f"{moment.month}/{moment.day}/{moment.year} {hour}:{moment:%M:%S} {half}"
        if len(address) > _ADDRESS_LIMIT:
            address = address[:_ADDRESS_LIMIT] + "..."
        trail = f"TrackingId:{tracking_id}, SystemTracker:{address}, Timestamp:{stamp}"
        return clean_phrase(f"{self.message.rstrip('. ')}. {trail}")

    def close_reason(self, tracking_id: str) -> str:
        """The reason of a Close frame: at most `CLOSE_REASON_LIMIT` bytes of UTF-8, with the tracking id.

        When both do not fit, the message is cut, not the id (an id too long by itself is cut too).
        """
        tail = f"TrackingId:{one_line(tracking_id)}".encode()[:CLOSE_REASON_LIMIT]
        head = one_line(self.message).rstrip(". ").encode()
        room = max(CLOSE_REASON_LIMIT - len(tail) - len(b". "), 0)
        whole = head[:room] + b". " + tail if room else tail
        return whole.decode(errors="ignore")  # "ignore" drops a character that was cut in half

    def __str__(self) -> str:
        parts = [self.message]
        if self.entity is not None and self.entity not in self.message:
            parts.append(f" (entity {self.entity!r})")
        if self.tracking_id is not None and self.tracking_id not in self.message:
            parts.append(f". TrackingId:{self.tracking_id}")
        return "".join(parts)

    def __repr__(self) -> str:
        known = "".join(
            f" {name}={value!r}"
            for name, value in (("entity", self.entity), ("tracking_id", self.tracking_id))
            if value is not None
        )
        return f"<{type(self).__name__} {self.status} {self.message!r}{known}>"


class InvalidRequest(RelayError):
    """The request makes no sense to the relay, for example an unknown ``sb-hc-action``."""

    code = "BadRequest"
    status = 400
    close_code = 1008
    default_message = "The request is invalid"


class NotAWebSocket(InvalidRequest):
    """An ordinary HTTP request to a ``/$hc/`` address (wording seen in azure-relay-dotnet issue 135)."""

    default_message = "This endpoint is only for web-socket requests"


class InvalidUrl(RelayError):
    """The request target cannot be read. 404 by the protocol page: "base URL malformed"."""

    code = "InvalidUrl"
    status = 404
    close_code = 1008
    default_message = "The address is malformed"


class AuthorizationFailed(RelayError):
    """The caller did not prove who it is."""

    code = "AuthorizationFailed"
    status = 401
    close_code = 1008
    default_message = "AuthorizationFailed: The token is not accepted"


class MissingToken(AuthorizationFailed):
    """No token in the query, nor in ``ServiceBusAuthorization``, nor in ``Authorization``."""

    code = "MissingToken"
    default_message = "MissingToken: The authorization header is missing, or holds no token"


class InvalidSignature(AuthorizationFailed):
    """The rule is unknown, the key is another one, or the token was altered; which of them is not told."""

    code = "InvalidSignature"
    default_message = "InvalidSignature: The token has an invalid signature"


class InvalidToken(AuthorizationFailed):
    """The text cannot be read as a token. To a peer it looks like `InvalidSignature`."""

    code = "InvalidSignature"
    default_message = "InvalidSignature: The token has an invalid signature"


class ExpiredToken(AuthorizationFailed):
    """The token was good and its time is over."""

    code = "ExpiredToken"
    default_message = "ExpiredToken: The token is expired"


class InvalidAudience(AuthorizationFailed):
    """The token is for another endpoint (401 in the real service, azure-relay issue 100)."""

    code = "InvalidAudience"
    default_message = "InvalidAudience: The authorization header contains a token with a wrong audience"


class TokenLifetimeExceeded(AuthorizationFailed):
    """The token lasts longer than ``max_token_lifetime`` allows; sign one that expires sooner."""

    code = "TokenLifetimeExceeded"
    default_message = "TokenLifetimeExceeded: The token lasts longer than this endpoint allows"


class AccessDenied(RelayError):
    """The token is good and does not confer the right. Say which: ``'Listen' claim(s) are required ...``."""

    code = "AccessDenied"
    status = 403
    close_code = 1008
    default_message = "Unauthorized access. The token does not hold the claim(s) required to perform this operation"


class ClosedByOperator(RelayError):
    """An operator ended the connection or the control channel. Nothing keeps the peer from coming back."""

    code = "ClosedByOperator"
    status = 403
    close_code = 1008
    default_message = "ClosedByOperator: An operator of the relay closed this"


class RendezvousNotFound(RelayError):
    """The accept address was used, has expired, was never made, or its sender has left."""

    code = "RendezvousNotFound"
    status = 403
    close_code = 1008
    default_message = "The rendezvous does not exist or has expired"


class EndpointDisabled(RelayError):
    """The entity is switched off. 403, because a 404 would make .NET listeners give up for good."""

    code = "EndpointDisabled"
    status = 403
    close_code = 1001
    transient = True
    default_message = "Endpoint is disabled"


class EndpointNotFound(RelayError):
    """No such entity. Never for a passing state: a .NET listener that gets 404 does not come back."""

    code = "EndpointNotFound"
    status = 404
    close_code = 1001
    default_message = "Endpoint does not exist"


class EndpointAlreadyExists(RelayError):
    """An entity of that name is there already."""

    code = "EndpointAlreadyExists"
    status = 409
    close_code = 1008
    default_message = "Endpoint already exists"


class RequestTimedOut(RelayError):
    """The peer took too long, for example to send the head of its request."""

    code = "RequestTimeout"
    status = 408
    close_code = 1008
    transient = True
    default_message = "The request did not arrive in the required time"


class UriTooLong(RelayError):
    """The request line is longer than the relay reads."""

    code = "UriTooLong"
    status = 414
    close_code = 1008
    default_message = "The address is too long"


class HeadersTooLarge(RelayError):
    """The headers, or the control message made of them, are too large (.NET hangs above 64 KiB)."""

    code = "RequestHeaderFieldsTooLarge"
    status = 431
    close_code = 1009
    default_message = "The request headers are too large"


class QuotaExceeded(RelayError):
    """The entity has as many senders or requests as it may."""

    code = "QuotaExceeded"
    status = 429
    close_code = 1008
    transient = True
    default_message = "QuotaExceeded: The endpoint has reached its maximum number of connections"


class ListenerQuotaExceeded(QuotaExceeded):
    """The entity has as many listeners as it may."""

    status = 403
    default_message = "QuotaExceeded: The endpoint has reached its maximum number of listeners"


class EntityQuotaExceeded(QuotaExceeded):
    """The namespace has as many hybrid connections as it may."""

    status = 403
    transient = False
    default_message = "QuotaExceeded: The namespace has reached its maximum number of hybrid connections"


class NoListener(RelayError):
    """Nobody listens on the entity just now.

    ``status`` of an instance follows the entity's ``no_listener_status`` (504; Azure: 404 for a WebSocket,
    502 for HTTP); the words are those of the real service.
    """

    code = "NoListener"
    status = 504
    close_code = 1011
    transient = True
    default_message = "There are no listeners connected for the endpoint"

    def __init__(
        self,
        message: str = "",
        *,
        status: int | None = None,
        entity: str | None = None,
        tracking_id: str | None = None,
    ) -> None:
        super().__init__(message, entity=entity, tracking_id=tracking_id)
        if status is not None:
            self.status = status


class ListenersExcluded(NoListener):
    """Listeners are there, and the sender's own headers exclude all of them."""

    code = "ListenersExcluded"
    status = 404
    default_message = "None of the connected listeners meet the AllowedListeners/DisallowedListeners criteria"


class ConnectionNotEstablished(RelayError):
    """A listener was asked and did not come to the rendezvous within ``rendezvous_timeout``."""

    code = "ConnectionNotEstablished"
    status = 504
    transient = True
    default_message = (
        "ConnectionNotEstablished: None of the connected listeners accepted the connections within the allowed timeout"
    )


class ResponseTimedOut(RelayError):
    """A listener was told of a plain HTTP request and did not answer within ``response_timeout``.

    The words are those of the real service. A reverse proxy in front of the listener may answer 504 too: without a
    ``Via`` header with the name of the namespace it was the relay.
    """

    code = "GatewayTimeout"
    status = 504
    transient = True
    default_message = (
        "The request was routed to the listener but the listener did not respond in the required time"
        " (response_timeout)"
    )


class ConnectionLost(RelayError):
    """The other side, or its control channel, went away in the middle."""

    code = "ConnectionLost"
    status = 502
    transient = True
    default_message = "ConnectionLost: The connection to the listener was lost"


class BadGateway(RelayError):
    """The other side answered something that the relay cannot pass on."""

    code = "BadGateway"
    status = 502
    transient = True
    default_message = "The listener gave an invalid answer"


class ServerBusy(RelayError):
    """The node starts, drains or has no room; come back. Every client retries a 503."""

    code = "ServerBusy"
    status = 503
    close_code = 1001
    transient = True
    default_message = "ServerBusy: The relay cannot take the request now, try again"


class InternalError(RelayError):
    """A fault of the relay itself."""

    code = "InternalServerError"
    status = 500
    close_code = 1011
    transient = True
    default_message = "The relay met an unexpected condition"


class UnsupportedRequest(RelayError):
    """A method that no relayed request may have, or a transfer coding that nobody decodes (RFC 9110 section 15.6.2)."""

    code = "NotImplemented"
    status = 501
    close_code = 1008
    default_message = "The relay does not serve requests of this kind"


class VersionNotSupported(RelayError):
    """Another major version of HTTP than 1 (RFC 9110 section 15.6.6)."""

    code = "HttpVersionNotSupported"
    status = 505
    close_code = 1008
    default_message = "HTTP/1.1 is spoken here"


class ConnectionRejected(RelayError):
    """The listener refused this sender.

    Parameters
    ----------
    status: HTTP status that the listener chose.
    description: the listener's own words; nothing is added to them (asserted by Microsoft's own tests).
    """

    code = "ConnectionRejected"
    status = 400
    close_code = 1008
    default_message = "The listener rejected the connection"

    def __init__(
        self, status: int, description: str = "", *, entity: str | None = None, tracking_id: str | None = None
    ) -> None:
        super().__init__(description, entity=entity, tracking_id=tracking_id)
        self.status = status
        self.description = description
        self.args = (status, description)  # what copy and pickle call the class with


class ProtocolViolation(RelayError):
    """A peer broke the rules of the wire; the channel is closed."""

    code = "ProtocolError"
    status = 400
    close_code = 1002
    default_message = "The peer broke the WebSocket protocol"


class InvalidFrame(ProtocolViolation):
    """Bytes that are no WebSocket frame, or a frame in the wrong place (RFC 6455 section 5)."""

    default_message = "The WebSocket frame is invalid"


class InvalidMessage(ProtocolViolation):
    """Text that is not UTF-8, or no command of the control channel."""

    code = "InvalidMessage"
    close_code = 1007
    default_message = "The control message is invalid"


class MessageTooLarge(ProtocolViolation):
    """A message or frame above its limit."""

    code = "MessageTooLarge"
    status = 413
    close_code = 1009
    default_message = "The message is too large"


class InvalidConnectionString(RelayError, ValueError):
    """The connection string cannot be used; the message names the part and never shows a secret."""

    code = "InvalidConnectionString"
    status = 400
    close_code = 1008
    default_message = "The connection string is invalid"


class InvalidSetting(RelayError, ValueError):
    """A setting is unknown or has a wrong value; the message names it and what is allowed."""

    code = "InvalidSetting"
    status = 400
    close_code = 1008
    default_message = "The setting is invalid"


_AUTHORIZATION: tuple[type[AuthorizationFailed], ...] = (
    MissingToken,
    InvalidSignature,
    ExpiredToken,
    InvalidAudience,
    TokenLifetimeExceeded,
)

_BY_STATUS: dict[int, type[RelayError]] = {
    401: AuthorizationFailed,
    403: AccessDenied,
    404: EndpointNotFound,
    408: RequestTimedOut,
    409: EndpointAlreadyExists,
    414: UriTooLong,
    429: QuotaExceeded,
    431: HeadersTooLarge,
    500: InternalError,
    502: ConnectionLost,
    503: ServerBusy,
    504: ConnectionNotEstablished,
}


_RESPONSE_TIMED_OUT = ResponseTimedOut.default_message.partition(" (")[0]


def error_for_status(status: int, phrase: str) -> RelayError:
    """The error that a failed handshake means to the client that made it.

    The class follows the status and, where a status has several meanings, the words of the phrase (Azure's
    and ours are the same). A 400 without a TrackingId, and any status that the relay never uses, come from
    the listener: `ConnectionRejected`. The phrase is kept whole as the message, its TrackingId becomes
    ``tracking_id``, and ``status`` is always the one received.

    Parameters
    ----------
    status: HTTP status of the answer.
    phrase: its reason phrase; may be empty.
    """
    phrase = clean_phrase(phrase)
    found = _TRACKING_ID.search(phrase)
    tracking_id = found.group(1) if found else None
    kind = _kind_of(status, phrase)
    if kind is None and status == 400 and tracking_id is not None:
        kind = NotAWebSocket if phrase.startswith(NotAWebSocket.default_message) else InvalidRequest
    if kind is None:
        return ConnectionRejected(status, phrase, tracking_id=tracking_id)
    error = kind(phrase, tracking_id=tracking_id)
    error.status = status
    return error


def _kind_of(status: int, phrase: str) -> type[RelayError] | None:
    """The class for a status, refined by the phrase; None when the relay itself never answers that status."""
    if status == 401:
        return next((kind for kind in _AUTHORIZATION if phrase.startswith(kind.code)), AuthorizationFailed)
    if status == 403 and phrase.startswith(QuotaExceeded.code):
        return ListenerQuotaExceeded
    if status in (404, 502, 504):
        if phrase.startswith(ListenersExcluded.default_message):
            return ListenersExcluded
        if phrase.startswith(NoListener.default_message):
            return NoListener
        if phrase.startswith(_RESPONSE_TIMED_OUT):
            return ResponseTimedOut
    return _BY_STATUS.get(status, InternalError if 500 <= status < 600 else None)


#: Every class of the tree, in the order of the drawing above, for the documentation and for tests.
ERRORS: tuple[type[RelayError], ...] = (
    RelayError,
    InvalidRequest,
    NotAWebSocket,
    InvalidUrl,
    AuthorizationFailed,
    MissingToken,
    InvalidSignature,
    InvalidToken,
    ExpiredToken,
    InvalidAudience,
    TokenLifetimeExceeded,
    AccessDenied,
    ClosedByOperator,
    RendezvousNotFound,
    EndpointDisabled,
    EndpointNotFound,
    EndpointAlreadyExists,
    RequestTimedOut,
    UriTooLong,
    HeadersTooLarge,
    QuotaExceeded,
    ListenerQuotaExceeded,
    EntityQuotaExceeded,
    NoListener,
    ListenersExcluded,
    ConnectionNotEstablished,
    ResponseTimedOut,
    ConnectionLost,
    BadGateway,
    ServerBusy,
    InternalError,
    UnsupportedRequest,
    VersionNotSupported,
    ConnectionRejected,
    ProtocolViolation,
    InvalidFrame,
    InvalidMessage,
    MessageTooLarge,
    InvalidConnectionString,
    InvalidSetting,
)
