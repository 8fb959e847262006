"""One plain HTTP request, from its head to the end of its answer, seen from the relay.

    sender                   RelayedRequest                        listener
      | head, body               |--- Place -------------------------> told: by the whole request, or by an address
      |                          |<-- fetched ------------------------ it opens the address, if it has to or wants to
      |                          |--- SendRequest, SendBody ---------> what was not told at once
      |                          |<-- answered ----------------------- the response, on the control channel
      |<-- Answer ---------------|<-- response, response_body -------- or by the rendezvous, as it comes
      |<-- Begin, Write, End ----|

A body of at most `SMALL_BODY` bytes that is there at once, or a moment later, goes with its request over the control
channel. For any other the listener is told the address of a rendezvous and fetches it there. It may answer either way.

Once a listener may have seen a request, no other is told of it: it may have acted on it. An address that nobody has
fetched may be told to another one.

No I/O: each method takes one event and returns the commands that follow, in the order to run them. Times are seconds
on any one clock, given as `now`.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from trunkline.protocol.errors import (
    BadGateway,
    ConnectionLost,
    ConnectionNotEstablished,
    NoListener,
    RelayError,
    RendezvousNotFound,
    RequestTimedOut,
    ResponseTimedOut,
)
from trunkline.protocol.http_forwarding import ResponseHead, response_head
from trunkline.protocol.messages import Response
from trunkline.protocol.records import record
from trunkline.protocol.transitions import final_states

#: Bytes of the longest body that travels on the control channel (asserted by Microsoft's own tests).
SMALL_BODY = 65_536

#: Seconds that a small body may take to come, before its listener is told to fetch it.
BODY_PATIENCE = 0.1

#: Seconds in which a listener that has closed its control channel in order may come to answer what it was told.
LEAVER_PATIENCE = 3.0


class State(enum.Enum):
    """Where a request stands."""

    GATHERING = "the body may be small, and is awaited"
    PLACING = "a listener is being chosen and told"
    TOLD = "a listener has the whole request"
    REDIRECTED = "a listener knows the address of the request and has not come for it"
    FETCHED = "the listener came for the request, and its body passes"
    ANSWERING = "the head of the response was passed on, and its body passes"
    ANSWERED = "the response is whole"
    REFUSED = "the relay gave the answer"
    CUT = "the response ended before it was whole"
    GONE = "the sender left"

    # That of an enumeration is written in Python; these are looked up several times for each request.
    __hash__ = object.__hash__


class Event(enum.Enum):
    """What can happen to a request."""

    WHOLE = "the body is whole, and small"
    LARGE = "the body is not small"
    LATE = "the body is not whole in time"
    TOLD = "a listener was told the whole request"
    REDIRECTED = "a listener was told the address"
    NOT_PLACED = "no listener could be told"
    FETCHED = "the listener opened the address"
    RESPONDED = "the listener gave its whole response"
    BEGUN = "the listener gave the head of its response"
    ENDED = "the body of the response ended"
    UNUSABLE = "the listener gave a response that is none"
    DEPOSED = "the listener did not fetch the request in time, once too often"
    LISTENER_LOST = "the control channel of the listener that was told ended"
    RENDEZVOUS_LOST = "the rendezvous ended too early"
    BODY_FAILED = "the body of the request was malformed"
    TIMED_OUT = "nothing came in time"
    SENDER_LEFT = "the sender left"
    WITHDRAWN = "the ground of the request is gone"

    __hash__ = object.__hash__


_OPEN = (State.GATHERING, State.PLACING, State.TOLD, State.REDIRECTED, State.FETCHED)

TRANSITIONS: dict[tuple[State, Event], State] = {
    (State.GATHERING, Event.WHOLE): State.PLACING,
    (State.GATHERING, Event.LARGE): State.PLACING,
    (State.GATHERING, Event.LATE): State.PLACING,
    (State.PLACING, Event.TOLD): State.TOLD,
    (State.PLACING, Event.REDIRECTED): State.REDIRECTED,
    (State.PLACING, Event.NOT_PLACED): State.REFUSED,
    (State.TOLD, Event.RESPONDED): State.ANSWERED,
    (State.TOLD, Event.BEGUN): State.ANSWERING,
    (State.TOLD, Event.UNUSABLE): State.REFUSED,
    (State.TOLD, Event.LISTENER_LOST): State.REFUSED,
    (State.TOLD, Event.RENDEZVOUS_LOST): State.REFUSED,
    (State.REDIRECTED, Event.FETCHED): State.FETCHED,
    (State.REDIRECTED, Event.DEPOSED): State.PLACING,
    (State.REDIRECTED, Event.LISTENER_LOST): State.PLACING,
    (State.FETCHED, Event.RESPONDED): State.ANSWERED,
    (State.FETCHED, Event.BEGUN): State.ANSWERING,
    (State.FETCHED, Event.UNUSABLE): State.REFUSED,
    (State.FETCHED, Event.RENDEZVOUS_LOST): State.REFUSED,
    (State.ANSWERING, Event.ENDED): State.ANSWERED,
    (State.ANSWERING, Event.RENDEZVOUS_LOST): State.CUT,
    **{(state, Event.BODY_FAILED): State.REFUSED for state in _OPEN if state is not State.TOLD},
    (State.ANSWERING, Event.BODY_FAILED): State.CUT,
    **{(state, Event.TIMED_OUT): State.REFUSED for state in _OPEN if state is not State.GATHERING},
    (State.ANSWERING, Event.TIMED_OUT): State.CUT,
    **{(state, Event.SENDER_LEFT): State.GONE for state in (*_OPEN, State.ANSWERING)},
    **{(state, Event.WITHDRAWN): State.REFUSED for state in _OPEN},
    (State.ANSWERING, Event.WITHDRAWN): State.CUT,
}
"""All that can happen; see `trunkline.protocol.transitions`."""

_FINAL = final_states(TRANSITIONS)


@dataclass(frozen=True, slots=True)
class ReadBody:
    """Read the sender's body, and tell of it: `body`, `body_ended`, `body_failed`."""


@dataclass(frozen=True, slots=True)
class PauseBody:
    """Read no more of the body for now."""


@dataclass(frozen=True, slots=True)
class ResumeBody:
    """Read on."""


@record
class Place:
    """Choose a listener, none of those in `exclude`, and tell it; then call `placed` or `not_placed`.

    `body`: the whole body, for the control channel; None: tell it the address alone.
    """

    exclude: frozenset[str]
    body: bytes | None = field(repr=False)


@dataclass(frozen=True, slots=True)
class AskDirectory:
    """The listener did not fetch the request in time: tell the directory, then call `not_fetched`."""


@dataclass(frozen=True, slots=True)
class AnswerListener:
    """Answer the listener's handshake with 101."""


@dataclass(frozen=True, slots=True)
class RefuseListener:
    """Answer the listener's handshake with an error."""

    error: RelayError


@dataclass(frozen=True, slots=True)
class SendRequest:
    """Send the whole request by the rendezvous; its body follows."""


@dataclass(frozen=True, slots=True)
class SendBody:
    """Send a piece of the request's body by the rendezvous."""

    data: bytes = field(repr=False)
    end: bool


@record
class CloseRendezvous:
    """Send Close by the rendezvous, if there is one."""

    code: int
    reason: str


@record
class Answer:
    """Answer the sender with a whole response."""

    head: ResponseHead
    body: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Begin:
    """Send the sender the head of a response whose body follows."""

    head: ResponseHead


@dataclass(frozen=True, slots=True)
class Write:
    """Send the sender a piece of the response's body."""

    data: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class End:
    """The response is whole."""


@dataclass(frozen=True, slots=True)
class Abort:
    """Cut the sender's connection: what it has is not all. `reason` is for the log."""

    reason: str


@dataclass(frozen=True, slots=True)
class Refuse:
    """Answer the sender with an error of the relay."""

    error: RelayError


Command = (
    ReadBody
    | PauseBody
    | ResumeBody
    | Place
    | AskDirectory
    | AnswerListener
    | RefuseListener
    | SendRequest
    | SendBody
    | CloseRendezvous
    | Answer
    | Begin
    | Write
    | End
    | Abort
    | Refuse
)

_ANSWERED = CloseRendezvous(1000, "The response is whole")
_SENDER_LEFT = CloseRendezvous(1001, "The sender left")


class RelayedRequest:
    """The state of one request.

    Args:
        tracking_id: names the request in errors.
        method: of the request.
        body_length: bytes of its body as announced; None: not known before its end.
        via: how the relay calls itself in `Via`.
        response_timeout: seconds without a sign of a response after which it is given up; 0 = never.
        body_idle_timeout: seconds without a piece of a body after which it is given up; 0 = never.
        now: seconds.
    """

    __slots__ = (
        "_asking",
        "_body_idle_timeout",
        "_body_length",
        "_body_whole",
        "_excluded",
        "_leaver",
        "_listener_is_slow",
        "_pieces",
        "_redirect",
        "_rendezvous",
        "_response_timeout",
        "_sender_is_slow",
        "_setback",
        "_since",
        "_size",
        "_via",
        "_was_fetched",
        "listener_id",
        "method",
        "state",
        "tracking_id",
    )

    def __init__(
        self,
        *,
        tracking_id: str,
        method: str,
        body_length: int | None,
        via: str,
        response_timeout: float,
        body_idle_timeout: float,
        now: float,
    ) -> None:
        self.tracking_id = tracking_id
        self.method = method
        self.state = State.GATHERING
        # The listener that was told. None while one is being chosen.
        self.listener_id: str | None = None
        self._body_length = body_length
        self._via = via
        self._response_timeout = response_timeout
        self._body_idle_timeout = body_idle_timeout
        # When something last went on.
        self._since = now
        # What came of the body and was not passed on, and how much that is.
        self._pieces: list[bytes] = []
        self._size = 0
        # The sender has sent all of it.
        self._body_whole = False
        # The listener is told an address alone.
        self._redirect = False
        # The directory is being told that the listener did not fetch the request.
        self._asking = False
        # The listener has opened the address, and that WebSocket is not known to have ended.
        self._rendezvous = False
        # It has, ever.
        self._was_fetched = False
        # The listener does not take what is sent by the rendezvous; the sender does not take the response.
        self._listener_is_slow = False
        self._sender_is_slow = False
        # Listeners that did not come for the request, or were lost: not to be asked again.
        self._excluded: frozenset[str] = frozenset()
        # The listener that has closed its control channel in order, and when.
        self._leaver: tuple[str, float] | None = None
        # What became of the one asked last: what the sender is told when nobody is left.
        self._setback: RelayError | None = None

    def __repr__(self) -> str:
        whom = f" listener={self.listener_id!r}" if self.listener_id is not None else ""
        return f"<RelayedRequest {self.tracking_id!r} {self.method} {self.state.name}{whom}>"

    @property
    def over(self) -> bool:
        """True when nothing more can come of it."""
        return self.state in _FINAL

    @property
    def held(self) -> int:
        """Bytes of the sender's body that have come and were not passed on."""
        return self._size if self._pieces else 0

    @property
    def body_is_whole(self) -> bool:
        """Whether all of the sender's body has come."""
        return self._body_whole or self._body_length == 0

    @property
    def fetchable(self) -> bool:
        """Whether the listener that was told may open the address: once, before it has answered."""
        return not self._was_fetched and self.state in (State.TOLD, State.REDIRECTED)

    @property
    def listener_may_come_late(self) -> bool:
        """Whether it ended, without the listener that was told having opened the address: it may do so yet."""
        return self.over and self.state is not State.ANSWERED and self.listener_id is not None and not self._was_fetched

    # -- the request and its body

    def start(self) -> list[Command]:
        """The sender is let in, and its head is whole."""
        if self._body_length == 0:
            return self._place(Event.WHOLE)
        if self._body_length is not None and self._body_length > SMALL_BODY:
            # Not read before a listener comes for it.
            return self._place(Event.LARGE)
        return [ReadBody()]

    def body(self, data: bytes, now: float) -> list[Command]:
        """A piece of the body came."""
        if self.state in (State.FETCHED, State.ANSWERING):
            self._since = now
            return [SendBody(data, False)] if self._rendezvous else []
        if self.over:
            return []
        self._pieces.append(data)
        self._size += len(data)
        if self.state is State.GATHERING and self._size > SMALL_BODY:
            return [PauseBody(), *self._place(Event.LARGE)]
        return []

    def body_ended(self, now: float) -> list[Command]:
        """The body is whole."""
        self._body_whole = True
        if self.state in (State.FETCHED, State.ANSWERING):
            self._since = now
            return [SendBody(b"", True)] if self._rendezvous else []
        if self.state is State.GATHERING:
            return self._place(Event.WHOLE)
        return []

    def body_failed(self, error: RelayError) -> list[Command]:
        """The body is malformed; `error` says how."""
        return self._fail(Event.BODY_FAILED, error, CloseRendezvous(1001, "The sender's request is malformed"))

    def body_is_late(self) -> list[Command]:
        """`BODY_PATIENCE` has passed since `ReadBody`."""
        return [PauseBody(), *self._place(Event.LATE)] if self.state is State.GATHERING else []

    # -- the search for a listener

    def placed(self, listener_id: str, now: float) -> list[Command]:
        """This listener was told."""
        self._since = now
        if listener_id in self._excluded and self.state is State.PLACING:
            # It was lost while it was being told.
            if self._redirect:
                self._setback = self._lost()
                return [Place(self._excluded, None)]
            if self._leaver is None or self._leaver[0] != listener_id:
                return self._fail(Event.NOT_PLACED, self._lost(), None)
        if self._happens(Event.REDIRECTED if self._redirect else Event.TOLD):
            self.listener_id = listener_id
        return []

    def not_placed(self, error: RelayError) -> list[Command]:
        """No listener could be told. `error` says why.

        When others had been asked before, what became of them says more than that nobody is left.
        """
        if self._setback is not None and isinstance(error, NoListener):
            error = self._setback
        return self._fail(Event.NOT_PLACED, error, None)

    def not_fetched(self, now: float, *, deposed: bool) -> list[Command]:
        """The directory knows that the listener did not come.

        Args:
            now: seconds.
            deposed: the listener is no longer the one to ask, so another one is. Otherwise the sender has waited long
                enough.
        """
        if not self._asking:
            return []
        self._asking = False
        if deposed and self._happens(Event.DEPOSED):
            return self._ask_another(ResponseTimedOut(tracking_id=self.tracking_id), now)
        return self._fail(Event.TIMED_OUT, ResponseTimedOut(), None)

    def listener_lost(self, listener_id: str, now: float, *, in_order: bool = False) -> list[Command]:
        """The control channel of this listener ended.

        One that has not fetched the request cannot have seen it, and another one is asked. Whoever has opened the
        address may still answer there, and one that has closed in order may yet come to open it: it may have had the
        request in hand when it closed (our SDK's listener finishes those).

        Args:
            listener_id: whose.
            now: seconds.
            in_order: the listener itself has closed it, with 1000, 1001 or without a code.
        """
        if in_order and (self.state is State.PLACING or listener_id == self.listener_id):
            self._leaver = (listener_id, now)
        if self.state is State.PLACING:
            # Perhaps the one that is being told right now: `placed` will say.
            self._excluded |= {listener_id}
        if listener_id != self.listener_id or self._rendezvous:
            return []
        if self.state is State.REDIRECTED:
            self._happens(Event.LISTENER_LOST)
            self._asking = False
            return self._ask_another(self._lost(), now)
        if in_order and self.state is State.TOLD:
            return []
        return self._fail(Event.LISTENER_LOST, self._lost(), None)

    # -- the rendezvous

    def fetched(self, now: float) -> list[Command]:
        """The listener that was told opened the address."""
        if not self.fetchable:
            return [RefuseListener(RendezvousNotFound(tracking_id=self.tracking_id))]
        self._rendezvous = self._was_fetched = True
        if not self._happens(Event.FETCHED):
            # It has the request, and comes to answer.
            return [AnswerListener()]
        self._since = now
        self._asking = False
        pieces, self._pieces = self._pieces, []
        body: list[Command] = [SendBody(piece, False) for piece in pieces]
        if self._body_whole:
            body.append(SendBody(b"", True))
        else:
            body.append(ResumeBody() if self._is_read else ReadBody())
        return [AnswerListener(), SendRequest(), *body]

    def rendezvous_ended(self) -> list[Command]:
        """The rendezvous ended: closed by the listener, or lost."""
        self._rendezvous = False
        text = "ConnectionLost: The listener closed the rendezvous before it had answered"
        return self._fail(Event.RENDEZVOUS_LOST, ConnectionLost(text), None)

    def listener_is_slow(self, slow: bool, now: float) -> list[Command]:
        """The listener takes no more of the body, or takes it again."""
        if self.over:
            return []
        self._listener_is_slow = slow
        self._since = now
        return [PauseBody() if slow else ResumeBody()]

    # -- the response

    def responded(self, response: Response, body: bytes, now: float) -> list[Command]:
        """The response came whole, on the control channel. Only the first counts."""
        if self.state not in (State.TOLD, State.FETCHED):
            return []
        head = self._head(response, bool(body))
        if isinstance(head, RelayError):
            return self._fail(Event.UNUSABLE, head, None)
        self._happens(Event.RESPONDED)
        answer = Answer(head, b"" if head.is_bodyless else body)
        return [answer, _ANSWERED] if self._rendezvous else [answer]

    def response(self, response: Response, now: float) -> list[Command]:
        """The response came by the rendezvous; its body, if it has one, follows."""
        if self.state not in (State.TOLD, State.FETCHED):
            return []
        head = self._head(response, response.body)
        if isinstance(head, RelayError):
            return self._fail(Event.UNUSABLE, head, CloseRendezvous(1011, head.message))
        if head.is_bodyless or not response.body:
            self._happens(Event.RESPONDED)
            return [Answer(head, b""), _ANSWERED]
        self._happens(Event.BEGUN)
        self._since = now
        return [Begin(head)]

    def response_body(self, data: bytes, now: float, *, end: bool) -> list[Command]:
        """A piece of the response's body came; `end`: the last one."""
        if self.state is not State.ANSWERING:
            return []
        self._since = now
        commands: list[Command] = [Write(data)] if data else []
        if end:
            self._happens(Event.ENDED)
            commands += [End(), _ANSWERED]
        return commands

    def sender_is_slow(self, slow: bool, now: float) -> None:
        """The sender takes no more of the response, or takes it again. Its frontend cuts one that reads no more."""
        self._sender_is_slow = slow
        self._since = now

    # -- the end

    def sender_left(self) -> list[Command]:
        """The sender's connection ended before its answer had.

        A listener at the rendezvous is told so (Azure Relay protocol page: 1001). On the control channel there is no
        message for it.
        """
        return [_SENDER_LEFT] if self._happens(Event.SENDER_LEFT) and self._rendezvous else []

    def withdraw(self, error: RelayError) -> list[Command]:
        """The entity, the sender's right or the node itself goes."""
        return self._fail(Event.WITHDRAWN, error, CloseRendezvous(error.close_code, error.message))

    def tick(self, now: float) -> list[Command]:
        """Time has passed."""
        if self._leaver is not None and self.state is State.TOLD and not self._rendezvous:
            who, since = self._leaver
            if who == self.listener_id and now - since >= LEAVER_PATIENCE:
                return self._fail(Event.LISTENER_LOST, self._lost(), None)
        waited = now - self._since
        uploading = not self._body_whole and self.state is State.FETCHED and not self._listener_is_slow
        limit = self._body_idle_timeout if uploading or self.state is State.ANSWERING else self._response_timeout
        if not limit or waited < limit or self._asking or self._sender_is_slow or self.state is State.GATHERING:
            return []
        if self.state is State.REDIRECTED:
            self._asking = True
            return [AskDirectory()]
        error: RelayError = ResponseTimedOut()
        if self.state is State.PLACING:
            error = self._setback or ConnectionNotEstablished()
        elif uploading:
            error = RequestTimedOut(f"Nothing of the request body arrived for {limit:g} s")
        return self._fail(Event.TIMED_OUT, error, CloseRendezvous(1001, "The relay has given the request up"))

    # -- inside

    def _happens(self, event: Event) -> bool:
        """Change the state by the table; False when the event came too late to matter."""
        after = TRANSITIONS.get((self.state, event))
        if after is None:
            return False
        self.state = after
        return True

    def _place(self, event: Event) -> list[Command]:
        self._happens(event)
        self._redirect = event is not Event.WHOLE
        if self._redirect:
            return [Place(self._excluded, None)]
        pieces, self._pieces = self._pieces, []
        return [Place(self._excluded, pieces[0] if len(pieces) == 1 else b"".join(pieces))]

    @property
    def _is_read(self) -> bool:
        """Whether the body is read from the start on."""
        return self._body_length is None or self._body_length <= SMALL_BODY

    def _ask_another(self, setback: RelayError, now: float) -> list[Command]:
        assert self.listener_id is not None
        self._excluded |= {self.listener_id}
        self._setback = setback
        self.listener_id = None
        self._since = now
        return [Place(self._excluded, None)]

    def _head(self, response: Response, has_body: bool) -> ResponseHead | RelayError:
        try:
            return response_head(response, method=self.method, via=self._via, has_body=has_body)
        except BadGateway as error:
            return error

    def _fail(self, event: Event, error: RelayError, farewell: CloseRendezvous | None) -> list[Command]:
        """It comes to nothing: the sender is told so, or cut where it has a part of the response already."""
        if not self._happens(event):
            return []
        error.tracking_id = self.tracking_id
        command = Abort(error.message) if self.state is State.CUT else Refuse(error)
        return [command, farewell] if farewell is not None and self._rendezvous else [command]

    def _lost(self) -> ConnectionLost:
        text = "ConnectionLost: The listener's control channel was lost before it answered the request"
        return ConnectionLost(text, tracking_id=self.tracking_id)
