"""One sender, from the offer of its connection to a listener until the two are joined.

    sender                     Rendezvous                        listeners
      | waits for its 101          |--- PlaceOffer ---------------> one of them is told the address
      |                            |<-- listener_arrived ---------- it opens the address, or refuses there
      |<-- AnswerSender -----------|--- AnswerListener -----------> and Join

The sender's handshake is answered only when a listener has decided; a refusal by the listener becomes the HTTP
status of the sender's handshake. The address that the listener opens holds a secret, good for one attempt that
succeeds. When the listener that was asked goes away, the next one is asked.

No I/O: each method takes one event and returns the commands that follow from it, in the order to run them. Times
are seconds on any one clock, given as `now`.
"""

from __future__ import annotations

import enum
import hmac
from dataclasses import dataclass
from http import HTTPStatus

from trunkline.protocol.errors import (
    BadGateway,
    ConnectionLost,
    ConnectionNotEstablished,
    InvalidRequest,
    NoListener,
    RelayError,
    RendezvousNotFound,
    clean_phrase,
)
from trunkline.protocol.transitions import final_states


class State(enum.Enum):
    """Where a rendezvous stands."""

    PLACING = "a listener is being chosen and told"
    OFFERED = "a listener knows the address and has not come yet"
    JOINED = "sender and listener are connected"
    REJECTED = "the listener said no, in its own words"
    REFUSED = "the relay said no"
    GONE = "the sender left before anything was decided"


class Event(enum.Enum):
    """What can happen to a rendezvous."""

    PLACED = "a listener was told"
    NOT_PLACED = "no listener could be told"
    ACCEPTED = "the listener came"
    REJECTED = "the listener came to say no"
    MISMATCHED = "the listener came with a subprotocol that the sender did not offer"
    EXPIRED = "the listener did not come in time"
    DEPOSED = "the listener did not come in time, once too often"
    LISTENER_LOST = "the control channel of the listener that was told ended"
    SENDER_LEFT = "the sender left"


TRANSITIONS: dict[tuple[State, Event], State] = {
    (State.PLACING, Event.PLACED): State.OFFERED,
    (State.PLACING, Event.NOT_PLACED): State.REFUSED,
    (State.PLACING, Event.EXPIRED): State.REFUSED,
    (State.PLACING, Event.SENDER_LEFT): State.GONE,
    (State.OFFERED, Event.ACCEPTED): State.JOINED,
    (State.OFFERED, Event.REJECTED): State.REJECTED,
    (State.OFFERED, Event.MISMATCHED): State.REFUSED,
    (State.OFFERED, Event.EXPIRED): State.REFUSED,
    (State.OFFERED, Event.DEPOSED): State.PLACING,
    (State.OFFERED, Event.LISTENER_LOST): State.PLACING,
    (State.OFFERED, Event.SENDER_LEFT): State.GONE,
}
"""All that can happen; see `trunkline.protocol.transitions`."""

_FINAL = final_states(TRANSITIONS)


@dataclass(frozen=True, slots=True)
class PlaceOffer:
    """Choose a listener, none of those whose ids are in `exclude`, and tell it; then call `placed` or `not_placed`."""

    exclude: frozenset[str]


@dataclass(frozen=True, slots=True)
class AnswerListener:
    """Answer the listener's handshake with 101, and with this subprotocol unless it is None."""

    subprotocol: str | None


@dataclass(frozen=True, slots=True)
class RefuseListener:
    """Answer the listener's handshake with this HTTP status; 410 is how a listener learns that its refusal arrived."""

    status: int
    phrase: str


@dataclass(frozen=True, slots=True)
class AnswerSender:
    """Answer the sender's handshake with 101, and with this subprotocol unless it is None."""

    subprotocol: str | None


@dataclass(frozen=True, slots=True)
class RejectSender:
    """Answer the sender's handshake in the listener's own words: nothing is added to them.

    Microsoft's own tests compare the whole phrase.
    """

    status: int
    description: str


@dataclass(frozen=True, slots=True)
class RefuseSender:
    """Answer the sender's handshake with an error of the relay."""

    error: RelayError


@dataclass(frozen=True, slots=True)
class Join:
    """Both handshakes are answered: join the two legs."""


Command = PlaceOffer | AnswerListener | RefuseListener | AnswerSender | RejectSender | RefuseSender | Join


class Rendezvous:
    """The state of one sender's wait for a listener.

    Args:
        tracking_id: names the connection in errors.
        secret: what an address must hold to be let in; 128 random bits or more, made by the caller.
        subprotocols: what the sender offered in `Sec-WebSocket-Protocol`, in its order.
        timeout: seconds that each listener has to come; 0 = as long as the sender waits.
        now: seconds.
    """

    def __init__(
        self, *, tracking_id: str, secret: str, subprotocols: tuple[str, ...], timeout: float, now: float
    ) -> None:
        self.tracking_id = tracking_id
        self.subprotocols = subprotocols
        self.state = State.PLACING
        # When `expired` is to be called, unless the state is final by then. Infinite without a timeout.
        self.deadline = 0.0
        # The listener that was told; also the one that is joined. None while one is being chosen.
        self.listener_id: str | None = None
        self._secret = _bytes(secret)
        self._timeout = timeout
        # Listeners that were asked and went away or did not come: not to be asked again.
        self._excluded: frozenset[str] = frozenset()
        # What the sender is told when nobody is left to ask: what became of the listener asked last.
        self._setback: RelayError | None = None
        self._set_deadline(now)

    def __repr__(self) -> str:
        whom = f" listener={self.listener_id!r}" if self.listener_id is not None else ""
        excluded = f" excluded={len(self._excluded)}" if self._excluded else ""
        return f"<Rendezvous {self.tracking_id!r} {self.state.name}{whom}{excluded}>"

    @property
    def over(self) -> bool:
        """True when nothing more can come of it: joined, refused by either side, or left."""
        return self.state in _FINAL

    # -- the search for a listener

    def start(self) -> list[Command]:
        """The sender is let in and waits."""
        return [PlaceOffer(self._excluded)]

    def placed(self, listener_id: str, now: float) -> list[Command]:
        """This listener was told the address. Its time to come starts now."""
        if self.state is State.PLACING and listener_id in self._excluded:
            # It was lost while the offer was on its way to it.
            self._setback = self._lost()
            return [PlaceOffer(self._excluded)]
        if self._happens(Event.PLACED):
            self.listener_id = listener_id
            self._set_deadline(now)
        return []

    def not_placed(self, error: RelayError) -> list[Command]:
        """No listener could be told. `error` says why.

        When others had been asked before, that none is left says little; what became of them says more: the one that
        was lost is a 502, the one that did not come a 504 (reference of the real service: the statuses of a sender).
        """
        if not self._happens(Event.NOT_PLACED):
            return []
        if self._setback is not None and isinstance(error, NoListener):
            error = self._setback
        return [RefuseSender(error)]

    def expired(self, now: float, *, deposed: bool) -> list[Command]:
        """The deadline has passed. Before it has, nothing happens: the call was about a listener asked earlier.

        Args:
            now: seconds.
            deposed: the listener is no longer the one to ask (it let two in a row expire under `active-standby`), so
                the sender is offered to another one. Otherwise the sender is refused: it has waited long enough.
        """
        if now < self.deadline:
            return []
        error = ConnectionNotEstablished(tracking_id=self.tracking_id)
        if deposed and self._happens(Event.DEPOSED):
            return self._ask_another(error, now)
        if self._happens(Event.EXPIRED):
            self.listener_id = None
            return [RefuseSender(error)]
        return []

    def listener_lost(self, listener_id: str, now: float) -> list[Command]:
        """The control channel of this listener ended. Another one is asked if it was the one that had been told."""
        if listener_id == self.listener_id and self._happens(Event.LISTENER_LOST):
            return self._ask_another(self._lost(), now)
        if self.state is State.PLACING:
            # Perhaps the one that is being told right now: `placed` will say.
            self._excluded |= {listener_id}
        return []

    def sender_left(self, now: float) -> list[Command]:
        """The sender hung up before its handshake was answered. A listener that comes now finds nobody."""
        self._happens(Event.SENDER_LEFT)
        return []

    def change_secret(self, secret: str) -> None:
        """The next listener is told another address, so that one that was given up comes too late, and not instead."""
        self._secret = _bytes(secret)

    # -- the listener's answer

    def listener_arrived(
        self,
        *,
        secret: str,
        status: str | None,
        description: str | None,
        subprotocols: tuple[str, ...],
        now: float,
    ) -> list[Command]:
        """Somebody opened the address.

        Args:
            secret: what the address held.
            status, description: `sb-hc-statusCode` and `sb-hc-statusDescription`, decoded; a status means a refusal.
            subprotocols: what the listener requests in `Sec-WebSocket-Protocol`; the first that the sender offered is
                the one. None requested is an acceptance without one, whatever the sender offered (Java never does).
            now: seconds.
        """
        if self.state is not State.OFFERED or not hmac.compare_digest(self._secret, _bytes(secret)):
            refusal = RendezvousNotFound(tracking_id=self.tracking_id)
            return [RefuseListener(refusal.status, refusal.message)]
        if status is not None:
            self._happens(Event.REJECTED)
            return [_rejection(status, description), RefuseListener(HTTPStatus.GONE.value, HTTPStatus.GONE.phrase)]
        chosen = next((each for each in subprotocols if each in self.subprotocols), None)
        if subprotocols and chosen is None:
            self._happens(Event.MISMATCHED)
            text = "The listener chose a subprotocol that the sender did not offer"
            return [
                RefuseSender(BadGateway(text, tracking_id=self.tracking_id)),
                RefuseListener(InvalidRequest.status, text),
            ]
        self._happens(Event.ACCEPTED)
        return [AnswerListener(chosen), AnswerSender(chosen), Join()]

    # -- inside

    def _happens(self, event: Event) -> bool:
        """Change the state by the table; False when the event came too late to matter."""
        after = TRANSITIONS.get((self.state, event))
        if after is None:
            return False
        self.state = after
        return True

    def _ask_another(self, setback: RelayError, now: float) -> list[Command]:
        assert self.listener_id is not None
        self._excluded |= {self.listener_id}
        self._setback = setback
        self.listener_id = None
        self._set_deadline(now)
        return [PlaceOffer(self._excluded)]

    def _lost(self) -> ConnectionLost:
        text = "ConnectionLost: The listener's control channel was lost before it accepted the connection"
        return ConnectionLost(text, tracking_id=self.tracking_id)

    def _set_deadline(self, now: float) -> None:
        self.deadline = now + self._timeout if self._timeout else float("inf")


def _rejection(status: str, description: str | None) -> RejectSender:
    """The listener's refusal as an HTTP answer: 200 to 599 as it is, anything else a 400.

    Without words of its own it gets the standard ones of its status (.NET sends none for a bare status).
    """
    known = len(status) == 3 and status.isascii() and status.isdigit() and 200 <= int(status) <= 599
    code = int(status) if known else InvalidRequest.status
    return RejectSender(code, clean_phrase(description or "") or _standard_phrase(code))


def _standard_phrase(status: int) -> str:
    return next((each.phrase for each in HTTPStatus if each == status), "Unknown")


def _bytes(secret: str) -> bytes:
    # A percent-decoded query may hold anything, lone surrogates too.
    return secret.encode("utf-8", "surrogatepass")
