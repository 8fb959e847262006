"""What somebody who watches is told: one record for each request, and what changes on the way to the target."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Protocol


class Kind(enum.StrEnum):
    """What a record is about."""

    #: A request and its whole answer.
    REQUEST = "request"
    #: A WebSocket that the target took.
    OPENED = "websocket-opened"
    #: Its end.
    CLOSED = "websocket-closed"


@dataclass(frozen=True)
class Record:
    """One line of the view."""

    kind: Kind
    method: str
    #: As the target got it, without the query, which may hold secrets.
    path: str
    #: Status of the answer; with `Kind.CLOSED` the close code. 0: the sender left before it had one.
    status: int
    #: Since the request came; with `Kind.CLOSED` since it was opened.
    seconds: float
    #: Bytes of the bodies, or of the messages: from the sender, and to it.
    received: int
    sent: int
    #: IP address of the sender.
    remote: str
    tracking_id: str
    #: Why it did not go as it should; empty otherwise.
    error: str = ""


class Watcher(Protocol):
    """Who is told. Nothing that it does may take long or fail."""

    def record(self, record: Record, /) -> None:
        """A request has been answered, or a WebSocket opened or closed."""

    def target_changed(self, up: bool, reason: str, /) -> None:
        """The target went down, and why; or it is back."""
