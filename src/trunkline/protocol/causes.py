"""Why a control channel or a connection ended: a short list, for counters and logs.

The words of an end come from a peer, or name one; a counter needs a few names that never grow. The state machines of
`control_channel` and `splice` say which of these it was, together with the words.
"""

from __future__ import annotations

import enum

from trunkline.protocol.errors import (
    AuthorizationFailed,
    EndpointDisabled,
    EndpointNotFound,
    ExpiredToken,
    ProtocolViolation,
    RelayError,
    ServerBusy,
)


class Cause(enum.Enum):
    """What ended it; the value says what that means."""

    CLOSED = "closed in order, by a Close frame of an end"
    CLOSED_WITH_ERROR = "closed by the listener with a close code that tells of a fault"
    LOST = "the listener's control channel ended without a Close frame"
    SILENT = "the listener gave no sign of life, and answered no ping"
    TOKEN_EXPIRED = "the listener's token ran out and was not renewed"
    TOKEN_REFUSED = "the token that the listener sent to go on with was not good"
    SENDER_LOST = "the sender's connection ended without a Close frame"
    LISTENER_LOST = "the listener's end of the connection ended without a Close frame"
    CONTROL_CHANNEL_LOST = "the control channel of the listener was lost, and its connections with it"
    IDLE_TIMEOUT = "no frame came for as long as `idle_timeout` says"
    HALF_CLOSE_TIMEOUT = "one side had closed, and no data came from the other for as long as `half_close_timeout` says"
    PROTOCOL_ERROR = "an end broke the rules of the wire"
    KEY_REMOVED = "the key or the rule that let it in was removed"
    ENTITY_DELETED = "the hybrid connection was deleted"
    ENTITY_DISABLED = "the hybrid connection was disabled"
    NODE_STOPPING = "the node stopped"
    DISCONNECTED = "the relay ended it on demand"

    @property
    def label(self) -> str:
        """Its name in a counter and in a log: `token_expired`."""
        return self.name.lower()


#: The first that fits counts.
_OF_ERRORS: tuple[tuple[type[RelayError], Cause], ...] = (
    (ExpiredToken, Cause.TOKEN_EXPIRED),
    (AuthorizationFailed, Cause.KEY_REMOVED),
    (EndpointNotFound, Cause.ENTITY_DELETED),
    (EndpointDisabled, Cause.ENTITY_DISABLED),
    (ServerBusy, Cause.NODE_STOPPING),
    (ProtocolViolation, Cause.PROTOCOL_ERROR),
)


def cause_of(error: RelayError) -> Cause:
    """What it means that the relay ends something with this error."""
    return next((cause for kind, cause in _OF_ERRORS if isinstance(error, kind)), Cause.DISCONNECTED)
