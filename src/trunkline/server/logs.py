"""What a node tells: one line for each thing that happened, for people to read or as JSON for machines.

    OPERATIONS   what can happen, by the names of the real service's diagnostic log
    FIELDS       what a line of JSON may hold
    write        tells one of them, through Python's `logging`
    Throttle     keeps a flood of the same line out

A peer's words end in no other line: whatever stands in a message is printed on one line, without escape sequences.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import IO

from trunkline.protocol.errors import InvalidSetting, one_line

#: What stands before the name of an operation in the real service's log.
PREFIX = "Microsoft.Relay/HybridConnections/"

#: The logger above all others of a node.
ALL = "trunkline"

#: How grave an event is; a level lets through what is as grave, and graver.
LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")

FORMATS = ("auto", "text", "json")

# A signature, also percent-encoded, a token or a JWT, wherever a peer has put it: a client that encodes the "?" of its
# URL has its token in the path, which is named in errors.
_SECRET = re.compile(
    r"((?<![a-z])sig(?:=|%(?:25)*3D)|sb-hc-token(?:=|%(?:25)*3D))[^&\s\"'\\]+|\beyJ[\w-]+\.[\w-]+\.[\w-]*",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Operation:
    """One row of the table."""

    #: Without `PREFIX`.
    name: str
    level: int
    #: When it is logged.
    when: str

    @property
    def full_name(self) -> str:
        """As the field `operation` has it."""
        return PREFIX + self.name


NEW_LISTENER_REGISTERED = Operation("NewListenerRegistered", logging.INFO, "a control channel is open")
LISTENER_UNREGISTERED = Operation(
    "ListenerUnregistered", logging.INFO, "a control channel has ended, for any reason but the next two"
)
LISTENER_UNRESPONSIVE = Operation(
    "ListenerUnresponsive", logging.WARNING, "a control channel was ended because the listener answered no ping"
)
LISTENER_CLOSING_FROM_EXPIRED_TOKEN = Operation(
    "ListenerClosingFromExpiredToken", logging.WARNING, "a control channel was ended because its token ran out"
)
NEW_SENDER_REGISTERING = Operation(
    "NewSenderRegistering", logging.DEBUG, "a sender was let in, and a listener is being looked for"
)
LISTENER_ACCEPTING_CONNECTION = Operation(
    "ListenerAcceptingConnection", logging.DEBUG, "a listener was told of a sender"
)
LISTENER_ACCEPTING_CONNECTION_TIMEOUT = Operation(
    "ListenerAcceptingConnectionTimeout", logging.WARNING, "a listener that was told of a sender did not come in time"
)
LISTENER_REJECTED_CONNECTION = Operation(
    "ListenerRejectedConnection", logging.INFO, "a listener rejected a sender, in its own words"
)
SENDER_LISTENER_CONNECTION_ESTABLISHED = Operation(
    "SenderListenerConnectionEstablished", logging.INFO, "a sender and a listener were joined"
)
SENDER_CONNECTION_CLOSED = Operation("SenderConnectionClosed", logging.INFO, "an established connection has ended")
SENDER_SENT_HTTP_REQUEST = Operation(
    "SenderSentHttpRequest", logging.DEBUG, "a plain HTTP request was let in, and a listener is being looked for"
)
MESSAGE_SENT_TO_LISTENER = Operation(
    "MessageSentToListener", logging.DEBUG, "a listener was told of a plain HTTP request"
)
LISTENER_SENT_HTTP_RESPONSE = Operation(
    "ListenerSentHttpResponse", logging.DEBUG, "the answer of a listener to a plain HTTP request is whole"
)
LISTENER_RETURNING_HTTP_RESPONSE_FAILED = Operation(
    "ListenerReturningHttpResponseFailed",
    logging.INFO,
    "an answer that had begun was not finished, or its sender left",
)
LISTENER_ACCEPTING_REQUEST_TIMEOUT = Operation(
    "ListenerAcceptingRequestTimeout",
    logging.WARNING,
    "a listener that was told of a plain HTTP request did not answer in time",
)
INVALID_SAS_TOKEN = Operation(
    "InvalidSasToken", logging.INFO, "a token was refused: unreadable, wrongly signed, expired, or for another endpoint"
)
AUTHORIZATION_FAILED = Operation(
    "AuthorizationFailed", logging.INFO, "a request without a token, or with one that has not the right"
)
PROCESSING_REQUEST_FAILED = Operation(
    "ProcessingRequestFailed", logging.INFO, "a request was refused for any other reason"
)

#: The table.
OPERATIONS = (
    NEW_LISTENER_REGISTERED, LISTENER_UNREGISTERED, LISTENER_UNRESPONSIVE, LISTENER_CLOSING_FROM_EXPIRED_TOKEN,
    NEW_SENDER_REGISTERING, LISTENER_ACCEPTING_CONNECTION, LISTENER_ACCEPTING_CONNECTION_TIMEOUT,
    LISTENER_REJECTED_CONNECTION, SENDER_LISTENER_CONNECTION_ESTABLISHED, SENDER_CONNECTION_CLOSED,
    SENDER_SENT_HTTP_REQUEST, MESSAGE_SENT_TO_LISTENER, LISTENER_SENT_HTTP_RESPONSE,
    LISTENER_RETURNING_HTTP_RESPONSE_FAILED, LISTENER_ACCEPTING_REQUEST_TIMEOUT,
    INVALID_SAS_TOKEN, AUTHORIZATION_FAILED, PROCESSING_REQUEST_FAILED,
)  # fmt: skip

#: The fields of a line of JSON, in their order; those that say nothing about an event are left out.
FIELDS: Mapping[str, str] = {
    "time": "when, in UTC, ISO 8601 with milliseconds",
    "level": "debug, info, warning or error",
    "logger": "the part of the node",
    "operation": f"what happened: `{PREFIX}` and a name of the table above; not there for what has none",
    "message": "the same for people",
    "activityId": "the tracking id",
    "endpoint": "`sb://NAMESPACE/ENTITY`; where there is no such entity, what was asked for",
    "id": "of the control channel, connection or HTTP request, for `trunkline disconnect`",
    "listener": "id of the control channel of the listener",
    "remote": "address of the peer",
    "rule": "authorization rule that let it in; not there for an anonymous sender",
    "client": "what the client calls itself",
    "method": "of a plain HTTP request",
    "parked": "true for a control channel without a place",
    "duration": "seconds that it lasted, or that were waited",
    "messagesToListener": "messages passed on to the listener; of a control channel: senders that it was told of",
    "bytesToListener": "bytes of payload passed on to the listener; of a control channel: bytes sent to it",
    "messagesToSender": "messages passed on to the sender",
    "bytesToSender": "bytes of payload passed on to the sender",
    "messagesFromListener": "of a control channel: tokens that the listener sent to go on with",
    "bytesFromListener": "of a control channel: bytes received",
    "cause": "why it ended, a name of the metrics' `reason`",
    "reason": "why it ended, or why it was refused, in words",
    "status": "HTTP status of the answer",
    "error": "name of the error",
    "leftOut": "how many lines of the same kind were left out",
    "exception": "traceback of a fault of the node",
}


def write(log: logging.Logger, operation: Operation, message: str, **fields: object) -> None:
    """Tell that something happened.

    Args:
        log: of the part that it happened in.
        operation: what happened; also says the level.
        message: for people, in one line.
        fields: of `FIELDS`; None is left out.
    """
    log.log(operation.level, "%s", message, extra={"operation": operation, "fields": fields})


class TextFormatter(logging.Formatter):
    """For people: time, level, message. Lines of a traceback stand behind a bar, so that none looks like an event."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        """The record in one line; a fault of the node has its traceback below."""
        time = self.formatTime(record)
        line = f"{time} {record.levelname:<7} {one_line(record.getMessage())}"
        return _without_secrets("\n    | ".join((line, *map(one_line, _traceback(self, record).splitlines()))))


class JsonFormatter(logging.Formatter):
    """For machines: one object in one line, in ASCII."""

    def format(self, record: logging.LogRecord) -> str:
        """The record with its fields, see `FIELDS`."""
        operation: Operation | None = getattr(record, "operation", None)
        fields: Mapping[str, object] = getattr(record, "fields", {})
        moment = datetime.fromtimestamp(record.created, UTC)
        line: dict[str, object] = {
            "time": moment.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "operation": operation and operation.full_name,
            "message": record.getMessage(),
            **fields,
            "exception": _traceback(self, record) or None,
        }
        said = {name: value for name, value in line.items() if value is not None}
        return _without_secrets(json.dumps(said, default=str))


def _without_secrets(line: str) -> str:
    # To search for the pattern in every line would cost more than all the rest.
    lower = line.lower()
    if not any(sign in lower for sign in ("sig=", "sig%", "sb-hc-token", "eyj")):
        return line
    return _SECRET.sub(lambda found: f"{found[1] or ''}...", line)


def _traceback(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    return formatter.formatException(record.exc_info) if record.exc_info else ""


def formatter(chosen: str, stream: IO[str]) -> logging.Formatter:
    """The formatter that the setting `log_format` means.

    Args:
        chosen: one of `FORMATS`; auto is text on a terminal, and JSON where no person looks.
        stream: where the lines go.
    """
    is_text = chosen == "text" or (chosen == "auto" and stream.isatty())
    return TextFormatter() if is_text else JsonFormatter()


def set_level(level: str, logger: str = ALL) -> None:
    """Change how much is logged, at once.

    Args:
        level: one of `LEVELS`, in any case.
        logger: `ALL`, or one below it, which then has a level of its own.

    Raises:
        InvalidSetting: there is no such level, or the logger is not the node's.
    """
    if level.upper() not in LEVELS:
        raise InvalidSetting(f"level {_shown(level)} is none: use one of {', '.join(LEVELS)}")
    if logger != ALL and not logger.startswith(f"{ALL}."):
        raise InvalidSetting(f"the logger {_shown(logger)} is not the node's: use {ALL} or one below it")
    logging.getLogger(logger).setLevel(level.upper())


def levels() -> dict[str, str]:
    """The level of `ALL`, and of the loggers below that have one of their own."""
    found = {ALL: logging.getLevelName(logging.getLogger(ALL).getEffectiveLevel())}
    for name, logger in sorted(logging.Logger.manager.loggerDict.items()):
        if name.startswith(f"{ALL}.") and isinstance(logger, logging.Logger) and logger.level:
            found[name] = logging.getLevelName(logger.level)
    return found


def _shown(text: str) -> str:
    text = one_line(text)
    return repr(text if len(text) <= 40 else text[:37] + "...")


class Throttle:
    """Lets so many events of a kind through in each second, and counts those that it does not.

    Args:
        most: of a kind, in a second.
        clock: seconds, monotonic.
    """

    def __init__(self, most: int, clock: Callable[[], float]) -> None:
        self._most = most
        self._clock = clock
        self._since = clock()
        # By kind: how many came since then.
        self._came: dict[str, int] = {}

    def __repr__(self) -> str:
        return f"<Throttle {self._came}>"

    def lets(self, kind: str) -> bool:
        """Whether one more may be told; `kind` is a name from a table, not from a peer."""
        self._came[kind] = came = self._came.get(kind, 0) + 1
        return came <= self._most

    def left_out(self) -> tuple[float, dict[str, int]]:
        """How many of each kind were left out in how many seconds, once a second; else nothing."""
        now = self._clock()
        passed = now - self._since
        if passed < 1.0:
            return passed, {}
        came, self._came, self._since = self._came, {}, now
        return passed, {kind: count - self._most for kind, count in came.items() if count > self._most}
