"""One plain HTTP request on its way: runs a `RelayedRequest`.

    Exchange (sender) -> HttpRelay -> RelayedRequest -> HttpRelay -> ListenerDirectory, HttpLeg (listener)

A small request costs no task, no timer and no closure: the directory is asked in the same turn of the loop in which the
head was read, and the response is written in the one in which it came.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from typing import TYPE_CHECKING

from trunkline.protocol import messages, relayed_http
from trunkline.protocol.errors import (
    HeadersTooLarge,
    InternalError,
    NoListener,
    RelayError,
    ResponseTimedOut,
    ServerBusy,
)
from trunkline.protocol.http_forwarding import ResponseHead, request_headers, request_target
from trunkline.protocol.limits import CONTROL_MESSAGE_LIMIT
from trunkline.protocol.messages import RemoteEndpoint, Request, Response
from trunkline.protocol.relayed_http import BODY_PATIENCE, RelayedRequest, State
from trunkline.protocol.urls import base_url, request_address, split_authority
from trunkline.server.relay.admission import Admitted
from trunkline.server.relay.exchange import Exchange
from trunkline.server.relay.http_rendezvous import HttpLeg
from trunkline.server.relay.listeners import Offer, Placement, PlainRequest, guids
from trunkline.server.relay.prompt import Suspended, begin

if TYPE_CHECKING:
    from trunkline.server.relay.http_relays import HttpRelays

log = logging.getLogger("trunkline.relay")

# Seconds between two tries to tell listeners that are busy reading what they were told before; for every `TOGETHER`
# requests of the node that wait so, as much longer: all of them together cost a tenth of a core at most.
TRY_AGAIN, TOGETHER = 0.01, 100

# Requests that wait for the listeners of one hybrid connection, where `max_requests` does not say.
MOST_WAITING = 1_000

# Bytes of bodies that the node holds for requests of which no listener has taken them yet, of all hybrid connections;
# and of each one whatever the others do, so that none of them is shut out.
HELD_AT_MOST, HELD_ANYWAY = 128 * 2**20, 2**20

_HOLDS_TOO_MUCH = "ServerBusy: The relay holds too many bodies that no listener has taken, try again"

# What .NET answers with when a listener gives none (`no_listener_status` of the preset `azure` is for WebSockets).
_NOT_FOUND, _BAD_GATEWAY = 404, 502


class HttpRelay:
    """The shell around one `RelayedRequest`."""

    __slots__ = (
        "_late",
        "_held",
        "_leg",
        "_machine",
        "_offer",
        "_placement",
        "_record",
        "_relays",
        "_secret",
        "_told",
        "admitted",
        "arriving",
        "exchange",
        "id",
    )

    def __init__(self, relays: HttpRelays, exchange: Exchange, admitted: Admitted, id: str) -> None:
        self._relays = relays
        # The sender, whose answer is owed.
        self.exchange = exchange
        self.admitted = admitted
        # Names it within the node, for people; also its ticket.
        self.id = id
        limits = admitted.limits
        self._machine = RelayedRequest(
            tracking_id=admitted.tracking_id,
            method=exchange.head.method,
            body_length=exchange.body_length,
            via=f"1.1 {_name(admitted.host)}",
            response_timeout=limits.response_timeout,
            body_idle_timeout=limits.body_idle_timeout,
            now=relays.broker.now(),
        )
        # What listeners are told; None before the first is, and when no other will be: it holds headers and body.
        self._offer: Offer | None = None
        # The secret of its address; None while there is no address.
        self._secret: str | None = None
        # Who was told last, as the directory knows it; and as `HttpRelays` does.
        self._placement: Placement | None = None
        self._told: str | None = None
        # The listener at the address, while its commands run; and its WebSocket.
        self.arriving: Exchange | None = None
        self._leg: HttpLeg | None = None
        # Waits for a body that may be small.
        self._late: asyncio.TimerHandle | None = None
        # What the journal knows of it.
        self._record = relays.broker.journal.request_began(admitted, exchange, id)
        # What it counts for in `HttpRelays.held`.
        self._held = 0

    def __repr__(self) -> str:
        return f"<HttpRelay {self.id} {self._machine!r}>"

    @property
    def listener(self) -> str | None:
        """Id of the control channel of the listener that was told; None while nobody is."""
        return self._machine.listener_id

    # -- the sender

    def start(self) -> None:
        """Take the request on."""
        exchange, machine = self.exchange, self._machine
        exchange.on_left = self._sender_left
        self._run(machine.start())
        if machine.state is State.GATHERING:
            self._late = asyncio.get_running_loop().call_later(BODY_PATIENCE, self._body_is_late)

    def body_received(self, data: bytes) -> None:
        self._run(self._machine.body(data, self._now()))

    def body_ended(self) -> None:
        self._run(self._machine.body_ended(self._now()))

    def body_failed(self, error: RelayError) -> None:
        self._run(self._machine.body_failed(error))

    def _body_is_late(self) -> None:
        self._late = None
        self._run(self._machine.body_is_late())

    def _sender_left(self) -> None:
        self._relays.broker.journal.request_left(self._record)
        self._run(self._machine.sender_left())
        self._finish()

    def _sender_is_congested(self) -> None:
        self._machine.sender_is_slow(True, self._now())
        if self._leg is not None:
            self._leg.pause()

    def _sender_is_relieved(self) -> None:
        self._machine.sender_is_slow(False, self._now())
        if self._leg is not None:
            self._leg.resume()

    # -- the listener

    def responded(self, response: Response, body: bytes) -> None:
        """Its response came on the control channel."""
        self._run(self._machine.responded(response, body, self._now()))

    def listener_arrived(self, exchange: Exchange) -> None:
        """Somebody opened the address."""
        self.arriving = exchange
        self._run(self._machine.fetched(self._now()))
        self.arriving = None
        self._hold(0 if self._machine.over else self._machine.held)
        if self._leg is not None:
            self._leg.start()

    def listener_lost(self, listener: str, *, in_order: bool) -> None:
        """A control channel ended. `in_order`: the listener has closed it itself."""
        self._run(self._machine.listener_lost(listener, self._now(), in_order=in_order))

    def rendezvous_response(self, response: Response) -> None:
        self._run(self._machine.response(response, self._now()))

    def rendezvous_body(self, data: bytes, end: bool) -> None:
        self._run(self._machine.response_body(data, self._now(), end=end))

    def rendezvous_is_slow(self, slow: bool) -> None:
        self._run(self._machine.listener_is_slow(slow, self._now()))

    def rendezvous_ended(self) -> None:
        self._leg = None
        self._run(self._machine.rendezvous_ended())

    # -- the clock, and the end of its ground

    def tick(self, now: float) -> None:
        """Look at the clock."""
        self._run(self._machine.tick(now))

    def withdraw(self, error: RelayError) -> None:
        """The entity, the sender's right or the node goes."""
        self._run(self._machine.withdraw(error))

    # -- commands

    def _run(self, commands: list[relayed_http.Command]) -> None:
        exchange = self.exchange
        try:
            for command in commands:
                match command:
                    case relayed_http.Place(exclude, body):
                        self._place(exclude, body)
                    case relayed_http.Answer(head, body):
                        self._answer(head, body)
                    case relayed_http.Write(data):
                        self._record.to_sender += len(data)
                        exchange.write(data)
                    case relayed_http.SendBody(data, end):
                        self._record.to_listener += len(data)
                        if self._leg is not None:
                            self._leg.send_body(data, end)
                    case relayed_http.ReadBody():
                        exchange.read_body(self)
                    case relayed_http.PauseBody():
                        exchange.pause_body()
                    case relayed_http.ResumeBody():
                        exchange.resume_body()
                    case relayed_http.AnswerListener():
                        self._answer_listener()
                    case relayed_http.SendRequest():
                        self._send_request()
                    case relayed_http.RefuseListener(error):
                        if self.arriving is not None:
                            self._relays.broker.refuse(self.arriving, error)
                    case relayed_http.Begin(head):
                        self._begin(head)
                    case relayed_http.End():
                        self._relays.broker.journal.request_ended(self._record)
                        exchange.end()
                    case relayed_http.Abort(reason):
                        self._relays.broker.journal.request_cut(self._record, reason)
                        exchange.abort()
                    case relayed_http.Refuse(error):
                        self._refuse(error)
                    case relayed_http.CloseRendezvous(code, reason):
                        if self._leg is not None:
                            self._leg.close(code, reason)
                    case relayed_http.AskDirectory():
                        self._relays.broker.spawn(self._not_fetched())
        except Exception:
            self.failed()
        if self._machine.over:
            self._finish()

    def failed(self) -> None:
        """End it after an exception, which is logged: it must not be the end of others, nor stay for ever."""
        log.exception("the relay failed on %r", self)
        broker = self._relays.broker
        if self.arriving is not None and self.arriving.is_open:
            broker.refuse(self.arriving, InternalError(tracking_id=self.admitted.tracking_id))
        if not self._machine.over:
            self._run(self._machine.withdraw(InternalError()))
        if self.exchange.is_open:
            # It was just being answered.
            if self._record in broker.journal.requests:
                broker.journal.request_cut(self._record, "the relay failed")
            self.exchange.abort()
        if self._leg is not None:
            self._leg.close(1011, "The relay failed")

    def _finish(self) -> None:
        """Nothing more can come of it."""
        if self._late is not None:
            self._late.cancel()
            self._late = None
        self._offer = None
        self._hold(0)
        self._relays.over(self)
        self._forget_listener()
        secret, self._secret = self._secret, None
        if secret is not None:
            self._relays.forget(secret)
        placement, self._placement = self._placement, None
        if placement is not None:
            if secret is not None and self._machine.listener_may_come_late:
                self._relays.remember(secret)
            self._release(placement)

    def _forget_listener(self) -> None:
        told, self._told = self._told, None
        if told is not None:
            self._relays.untold(self, told)

    def _answer(self, head: ResponseHead, body: bytes) -> None:
        """The whole answer of the listener."""
        exchange, journal = self.exchange, self._relays.broker.journal
        journal.request_answered(self._record, head.status)
        self._record.to_sender = len(body)
        journal.request_ended(self._record)
        self._end_connection_if_early()
        if head.is_bodyless:
            exchange.begin(head.status, head.phrase, head.headers, head.announced)
            exchange.end()
        else:
            exchange.respond(head.status, head.phrase, headers=head.headers, body=body, content_type=None)

    def _end_connection_if_early(self) -> None:
        """Let nothing follow an answer that comes before the request is whole: its rest may never be read."""
        if not self._machine.body_is_whole:
            self.exchange.end_connection()

    def _refuse(self, error: RelayError) -> None:
        """The relay's own answer."""
        journal = self._relays.broker.journal
        if isinstance(error, ResponseTimedOut):
            journal.request_timed_out(self._record)
        journal.request_refused(self._record, error)
        self._end_connection_if_early()
        self._relays.broker.refuse(self.exchange, error)

    def _begin(self, head: ResponseHead) -> None:
        exchange = self.exchange
        self._relays.broker.journal.request_answered(self._record, head.status)
        exchange.on_congested = self._sender_is_congested
        exchange.on_relieved = self._sender_is_relieved
        self._end_connection_if_early()
        exchange.begin(head.status, head.phrase, head.headers, None)

    def _answer_listener(self) -> None:
        assert self.arriving is not None
        if self._placement is not None:
            self._relays.broker.spawn(self._relays.broker.directory.came(self._placement))
        self._leg = self._relays.leg(self)
        self.arriving.upgrade(self._leg, subprotocol=first_protocol(self.arriving))

    def _send_request(self) -> None:
        assert self._leg is not None and self.arriving is not None and self._offer is not None
        host, port = split_authority(self.arriving.head.get("Host") or "")
        base = self._offer.base_url or base_url(host, port, secure=self.arriving.secure)
        address = request_address(base, self._offer.path, id=self._offer.tracking_id, secret=self._offer.secret)
        try:
            self._leg.send_request(self._request(address))
        except HeadersTooLarge as error:
            self._run(self._machine.withdraw(error))

    # -- placing

    def _place(self, exclude: frozenset[str], body: bytes | None) -> None:
        """Choose a listener and tell it."""
        self._forget_listener()
        if body:
            self._record.to_listener = len(body)
        elif body is None and not self._may_hold(self._machine.held):
            self._not_placed(ServerBusy(_HOLDS_TOO_MUCH))
            return
        try:
            self._offer = self._made(body)
            outcome = begin(self._relays.broker.directory.place(self._offer, exclude))
        except RelayError as error:
            if (
                self._is_worth_waiting(error)
                and self._may_wait()
                and self._may_hold(self._machine.held or len(body or b""))
            ):
                self._relays.placing(self)
                self._relays.broker.spawn(self._wait(exclude))
            else:
                self._not_placed(error)
        except Exception:
            log.exception("the relay failed on %r", self)
            self._not_placed(InternalError())
        else:
            if isinstance(outcome, Suspended):
                self._relays.placing(self)
                self._relays.broker.spawn(self._place_later(exclude, outcome))
            else:
                self._placed(outcome)

    def _may_wait(self) -> bool:
        """Whether it is not one too many that waits."""
        most = self.admitted.limits.max_requests or MOST_WAITING
        return self._relays.waiting[self.admitted.entity.key] < most

    def _may_hold(self, size: int) -> bool:
        """Whether so much of its body may be held until a listener takes it; counts it."""
        relays, more = self._relays, size - self._held
        if size and relays.held + more > HELD_AT_MOST:
            if relays.held_by_entity[self.admitted.entity.key] + more > HELD_ANYWAY:
                return False
        self._hold(size)
        return True

    def _hold(self, size: int) -> None:
        if size == self._held:
            return
        relays, entity = self._relays, self.admitted.entity.key
        relays.held += size - self._held
        relays.held_by_entity[entity] += size - self._held
        if not relays.held_by_entity[entity]:
            del relays.held_by_entity[entity]
        self._held = size

    async def _wait(self, exclude: frozenset[str]) -> None:
        """Place it when a listener takes it."""
        waiting, entity = self._relays.waiting, self.admitted.entity.key
        waiting[entity] += 1
        try:
            await self._place_later(exclude)
        finally:
            waiting[entity] -= 1
            if not waiting[entity]:
                del waiting[entity]

    async def _place_later(self, exclude: frozenset[str], outcome: Suspended[Placement] | None = None) -> None:
        """The same, in a task, as often as it is worth it."""
        while True:
            try:
                if outcome is None:
                    together = self._relays.waiting.total() // TOGETHER
                    await asyncio.sleep(TRY_AGAIN * (1 + together))
                    if self._machine.over or self._offer is None:
                        return
                    placement = await self._relays.broker.directory.place(self._offer, exclude)
                else:
                    placement = await outcome
                break
            except RelayError as error:
                outcome = None
                if not self._is_worth_waiting(error):
                    self._not_placed(error)
                    return
            except Exception:
                log.exception("the relay failed on %r", self)
                self._not_placed(InternalError())
                return
        if self._machine.over:
            # The sender left while a listener was told of it.
            self._release(placement)
        else:
            self._placed(placement)

    def _is_worth_waiting(self, error: RelayError) -> bool:
        """Whether a listener may take it in a moment: one that reads slowly, or comes back to a node that restarted."""
        broker = self._relays.broker
        if self._machine.over:
            return False
        return isinstance(error, ServerBusy) or (isinstance(error, NoListener) and broker.now() < broker.patient_until)

    def _placed(self, placement: Placement) -> None:
        self._placement = placement
        self._told = placement.listener
        self._relays.told(self, placement.listener)
        if self._offer is not None and self._offer.request is not None and self._offer.request.body is not None:
            self._offer = None
            self._hold(0)
        self._relays.broker.journal.request_told(self._record, placement.listener)
        self._run(self._machine.placed(placement.listener, self._now()))

    def _not_placed(self, error: RelayError) -> None:
        if isinstance(error, NoListener) and error.status == _NOT_FOUND and type(error) is NoListener:
            # 404 is for WebSockets: for HTTP the real service says 502.
            error.status = _BAD_GATEWAY
        self._run(self._machine.not_placed(error))

    async def _not_fetched(self) -> None:
        placement, deposed = self._placement, False
        if placement is not None:
            try:
                deposed = await self._relays.broker.directory.did_not_come(placement)
            except Exception:
                log.exception("the relay failed on %r", self)
        if deposed:
            # Otherwise that is told with the sender's refusal.
            self._relays.broker.journal.request_timed_out(self._record)
        self._run(self._machine.not_fetched(self._now(), deposed=deposed))

    def _release(self, placement: Placement) -> None:
        outcome = begin(self._relays.broker.directory.release(placement.ticket, placement.entity))
        if isinstance(outcome, Suspended):
            self._relays.broker.spawn(_finished(outcome))

    def _made(self, body: bytes | None) -> Offer:
        """What the next listener is told; each is told an address of its own.

        Raises:
            HeadersTooLarge: no client could read the whole request, whenever it is sent.
        """
        relays, offer = self._relays, self._offer
        if self._secret is not None:
            relays.forget(self._secret)
        secret = self._secret = relays.new_secret()
        relays.know(secret, self)
        if offer is not None:
            return dataclasses.replace(offer, secret=secret)
        exchange, admitted = self.exchange, self.admitted
        head = exchange.head
        entity = admitted.entity.name
        rest = (
            f"/{admitted.suffix}"
            if admitted.suffix
            else "/"
            if admitted.own_host or _ends_with_slash(head.target)
            else ""
        )
        offer = Offer(
            ticket=self.id,
            entity=admitted.entity.key,
            limits=admitted.limits,
            path=entity,
            suffix="",
            query="",
            tracking_id=admitted.tracking_id,
            secret=secret,
            headers=request_headers(
                head.headers,
                token_header=admitted.token_header,
                via=f"{head.version} {_name(admitted.host)}",
                own_host=admitted.own_host,
            ),
            remote=RemoteEndpoint(*exchange.remote),
            base_url=relays.broker.public_url,
            allowed=guids(head.get("Microsoft-Relay-AllowedListeners")),
            disallowed=guids(head.get("Microsoft-Relay-DisallowedListeners")) or frozenset(),
            request=PlainRequest(head.method, request_target(entity, rest, admitted.query), body),
        )
        if body is None:
            self._offer = offer
            if len(messages.encode(self._request())) > CONTROL_MESSAGE_LIMIT:
                raise HeadersTooLarge("The request with its address and headers is too long for a control message")
        return offer

    def _request(self, address: str = "") -> Request:
        """The whole request, as it is sent by the rendezvous."""
        offer = self._offer
        assert offer is not None and offer.request is not None
        plain = offer.request
        return Request(address, offer.tracking_id, plain.target, plain.method, offer.headers, offer.remote, True)

    def _now(self) -> float:
        return self._relays.broker.now()


def first_protocol(exchange: Exchange) -> str | None:
    """The subprotocol that a listener gets at a rendezvous: the first that it asks for."""
    protocols = exchange.head.tokens("Sec-WebSocket-Protocol")
    return protocols[0] if protocols else None


async def _finished(outcome: Suspended[None]) -> None:
    await outcome


def _name(host: str) -> str:
    """A host as `Via` has it (RFC 9110 section 7.6.3)."""
    return f"[{host}]" if ":" in host else host


def _ends_with_slash(target: str) -> bool:
    return target.partition("?")[0].endswith("/")
