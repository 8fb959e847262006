"""What is known of a plain HTTP request that is in flight: kept by the journal, filled in by whoever relays it."""

from __future__ import annotations

from typing import Literal

from trunkline.server.relay.admission import Admitted
from trunkline.server.relay.frontend import Exchange

State = Literal["seeking", "asked", "answering"]


class RequestRecord:
    """A plain HTTP request, from its head to the end of its answer.

    Args:
        admitted: what it asks for, and by what right.
        exchange: the sender, whose answer is owed.
        id: its short name within the node; it is no secret.
        began: on the journal's stopwatch.
    """

    __slots__ = ("admitted", "answered", "began", "exchange", "id", "listener", "status", "to_listener", "to_sender")

    def __init__(self, admitted: Admitted, exchange: Exchange, id: str, began: float) -> None:
        self.admitted = admitted
        self.exchange = exchange
        self.id = id
        self.began = began
        # Id of the control channel of the listener that was told of it; None while nobody was.
        self.listener: str | None = None
        # HTTP status of the listener's answer, and when its head went to the sender; None before that.
        self.status: int | None = None
        self.answered: float | None = None
        # Bytes of the bodies that were passed on so far.
        self.to_listener = 0
        self.to_sender = 0

    def __repr__(self) -> str:
        return f"<RequestRecord {self.admitted.tracking_id} {self.state} {self.to_listener}/{self.to_sender}>"

    @property
    def state(self) -> State:
        """How far it is: a listener is sought, it was told, its answer has begun."""
        if self.answered is not None:
            return "answering"
        return "asked" if self.listener is not None else "seeking"
