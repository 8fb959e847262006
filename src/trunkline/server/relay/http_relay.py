"""Plain HTTP requests on their way: runs a `RelayedRequest` for each, and knows which are in flight.

    Exchange (sender) -> HttpRelay -> RelayedRequest -> HttpRelay -> ListenerDirectory, HttpLeg (listener)

`HttpRelays` finds the request that a response or a rendezvous is for, those that must end when a listener is lost, an
entity is deleted or a key is removed, and looks at the clock of all of them.

A small request costs no task, no timer and no closure: the directory is asked in the same turn of the loop in which the
head was read, and the response is written in the one in which it came.
"""

from __future__ import annotations

import asyncio
import copy
import dataclasses
import logging
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING

from trunkline.protocol import messages, relayed_http
from trunkline.protocol.errors import (
    HeadersTooLarge,
    InternalError,
    InvalidRequest,
    NoListener,
    RelayError,
    ResponseTimedOut,
    ServerBusy,
)
from trunkline.protocol.frames import Masker
from trunkline.protocol.http_forwarding import ResponseHead, request_headers, request_target
from trunkline.protocol.http_rendezvous import HttpRendezvous
from trunkline.protocol.limits import CONTROL_MESSAGE_LIMIT, HEARTBEAT
from trunkline.protocol.messages import RemoteEndpoint, Request, Response
from trunkline.protocol.relayed_http import BODY_PATIENCE, RelayedRequest, State
from trunkline.protocol.urls import base_url, request_address, split_authority
from trunkline.server.relay.admission import Admitted, Arrival
from trunkline.server.relay.control_channel import ControlChannel
from trunkline.server.relay.exchange import Exchange
from trunkline.server.relay.http_rendezvous import HttpLeg, Owner
from trunkline.server.relay.listeners import Offer, Placement, PlainRequest
from trunkline.server.relay.prompt import Suspended, begin

if TYPE_CHECKING:
    from trunkline.server.relay.broker import Broker

log = logging.getLogger("trunkline.relay")

# Seconds between two tries to tell listeners that are busy reading what they were told before; for every `TOGETHER`
# requests that wait for the same ones, as much longer.
TRY_AGAIN, TOGETHER = 0.01, 100

# Requests that wait for the listeners of one hybrid connection, where `max_requests` does not say.
MOST_WAITING = 1_000

# Addresses that are remembered when their request ended without the answer of the listener that was told of it.
REMEMBERED = 4_096

# What .NET answers with when a listener gives none (`no_listener_status` of the preset `azure` is for WebSockets).
_NOT_FOUND, _BAD_GATEWAY = 404, 502


class HttpRelays:
    """All requests in flight.

    Args:
        broker: whose they are.
        new_secret: makes the secret of a rendezvous: url-safe, without "=", 128 random bits or more.
        new_id: makes the short name of a request, unique within the node; it is no secret.
        masker: the routine that unmasks frames.
    """

    def __init__(
        self, broker: Broker, *, new_secret: Callable[[], str], new_id: Callable[[], str], masker: Masker
    ) -> None:
        self.broker = broker
        self.new_secret = new_secret
        self._new_id = new_id
        self._masker = masker
        # By tracking id, which is what a response names; and by the secret of their rendezvous.
        self._in_flight: dict[str, HttpRelay] = {}
        self._by_secret: dict[str, HttpRelay] = {}
        # Secrets of requests that a listener may still come to answer, and in vain: the oldest first.
        self._too_late: dict[str, None] = {}
        # Every WebSocket that is there for one, also while it closes behind the end of its request.
        self._legs: set[HttpLeg] = set()
        # Requests that no listener was told of yet, by entity. Each may hold a body of 64 KiB.
        self.waiting: Counter[str] = Counter()

    def __repr__(self) -> str:
        return f"<HttpRelays in_flight={len(self._in_flight)} rendezvous={len(self._legs)}>"

    def __len__(self) -> int:
        return len(self._in_flight)

    @property
    def rendezvous(self) -> int:
        """WebSockets that are there for one, or were and are not closed yet."""
        return len(self._legs)

    def by_entity(self) -> Counter[str]:
        """How many there are for each entity."""
        return Counter(each.admitted.entity.key for each in self._in_flight.values())

    # -- what happens

    def relay(self, exchange: Exchange, admitted: Admitted) -> None:
        """Take a request that may go on.

        Raises:
            ServerBusy: the node takes nothing new.
        """
        if self.broker.draining:
            raise ServerBusy("ServerBusy: The relay is shutting down, try again", tracking_id=admitted.tracking_id)
        relay = HttpRelay(self, exchange, admitted, self._new_id())
        self._in_flight[admitted.tracking_id] = relay
        relay.start()

    def arrived(self, exchange: Exchange, arrival: Arrival) -> None:
        """A listener opened the address of a rendezvous.

        If its request is over, because the sender left or would wait no longer, it is let in and told so by a Close:
        a refused handshake would end the process of a hyco-https listener.

        Raises:
            InvalidRequest: there never was such an address, or its request was answered long ago.
        """
        secret = arrival.target.secret or ""
        relay = self._by_secret.get(secret)
        if relay is not None:
            relay.listener_arrived(exchange)
        elif secret in self._too_late:
            del self._too_late[secret]
            leg = self._leg(arrival.tracking_id, NOBODY, HEARTBEAT)
            exchange.upgrade(leg, subprotocol=first_protocol(exchange))
            leg.close(1001, "The request is over: the sender left, or was told that nobody answered")
        else:
            raise InvalidRequest("The rendezvous is not recognised", tracking_id=arrival.tracking_id)

    def responded(self, channel: ControlChannel, response: Response, body: bytes) -> None:
        """A response came on a control channel. It answers a request that this listener was told of, or nothing."""
        relay = self._in_flight.get(response.request_id)
        if relay is None or relay.listener != channel.id:
            log.debug("ignored the response of listener %s to %.60r, which is not waited for", channel.id, response)
            return
        relay.responded(response, body)

    def listener_lost(self, listener: str, *, in_order: bool) -> None:
        """A control channel ended. `in_order`: the listener has closed it itself."""
        for relay in list(self._in_flight.values()):
            relay.listener_lost(listener, in_order=in_order)

    def withdraw(self, which: Callable[[Admitted], bool], error: RelayError) -> None:
        """End what `which` picks: refused, or cut where a part of its response has gone out."""
        for relay in list(self._in_flight.values()):
            if which(relay.admitted):
                # One for each: the tracking id is in it.
                relay.withdraw(copy.copy(error))

    def tick(self, now: float) -> None:
        """Look at the clock of all; to be called about once a second."""
        for relay in list(self._in_flight.values()):
            relay.tick(now)
        for leg in list(self._legs):
            leg.tick(now)

    def abort(self) -> None:
        """Cut every rendezvous."""
        for leg in list(self._legs):
            leg.abort()

    # -- what one request needs

    def know(self, secret: str, relay: HttpRelay) -> None:
        """The address of a request has this secret."""
        self._by_secret[secret] = relay

    def forget(self, secret: str) -> None:
        """An address leads nowhere from now on."""
        self._by_secret.pop(secret, None)

    def over(self, relay: HttpRelay) -> None:
        """A request is over."""
        self._in_flight.pop(relay.admitted.tracking_id, None)

    def remember(self, secret: str) -> None:
        """The request of this address is over, and a listener may not know it."""
        self._too_late[secret] = None
        if len(self._too_late) > REMEMBERED:
            del self._too_late[next(iter(self._too_late))]

    def leg(self, relay: HttpRelay) -> HttpLeg:
        """The WebSocket of a request, whose listener has come."""
        return self._leg(relay.admitted.tracking_id, relay, relay.admitted.limits.ping_interval)

    def _leg(self, tracking_id: str, owner: Owner, heartbeat: float) -> HttpLeg:
        machine = HttpRendezvous(
            masked=True,
            now=self.broker.now(),
            tracking_id=tracking_id,
            frame_limit=CONTROL_MESSAGE_LIMIT,
            heartbeat=heartbeat,
            masker=self._masker,
        )
        leg = HttpLeg(machine, owner, clock=self.broker.now, on_gone=self._legs.discard)
        self._legs.add(leg)
        return leg


class _Nobody:
    """Owns a rendezvous whose request is over."""

    def rendezvous_response(self, response: Response) -> None:
        pass

    def rendezvous_body(self, data: bytes, end: bool) -> None:
        pass

    def rendezvous_is_slow(self, slow: bool) -> None:
        pass

    def rendezvous_ended(self) -> None:
        pass


NOBODY = _Nobody()


class HttpRelay:
    """The shell around one `RelayedRequest`."""

    __slots__ = (
        "_late",
        "_leg",
        "_machine",
        "_offer",
        "_placement",
        "_record",
        "_relays",
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
        # What listeners are told; None before the first is.
        self._offer: Offer | None = None
        # Who was told; None while nobody is.
        self._placement: Placement | None = None
        # The listener at the address, while its commands run; and its WebSocket.
        self.arriving: Exchange | None = None
        self._leg: HttpLeg | None = None
        # Waits for a body that may be small.
        self._late: asyncio.TimerHandle | None = None
        # What the journal knows of it.
        self._record = relays.broker.journal.request_began(admitted, exchange, id)

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
        if self._machine.over:
            self._finish()

    def _finish(self) -> None:
        """Nothing more can come of it."""
        if self._late is not None:
            self._late.cancel()
            self._late = None
        offer, self._offer = self._offer, None
        self._relays.over(self)
        placement, self._placement = self._placement, None
        if offer is not None:
            self._relays.forget(offer.secret)
        if placement is not None:
            if offer is not None and self._machine.listener_may_come_late:
                self._relays.remember(offer.secret)
            self._release(placement)

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
        if body:
            self._record.to_listener = len(body)
        try:
            self._offer = self._made(body)
            outcome = begin(self._relays.broker.directory.place(self._offer, exclude))
        except RelayError as error:
            if self._is_worth_waiting(error) and self._may_wait():
                self._relays.broker.spawn(self._wait(exclude))
            else:
                self._not_placed(error)
        except Exception:
            log.exception("the relay failed on %r", self)
            self._not_placed(InternalError())
        else:
            if isinstance(outcome, Suspended):
                self._relays.broker.spawn(self._place_later(exclude, outcome))
            else:
                self._placed(outcome)

    def _may_wait(self) -> bool:
        """Whether it is not one too many that waits."""
        most = self.admitted.limits.max_requests or MOST_WAITING
        return self._relays.waiting[self.admitted.entity.key] < most

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
                    together = self._relays.waiting[self.admitted.entity.key] // TOGETHER
                    await asyncio.sleep(TRY_AGAIN * (1 + together))
                    if self._offer is None:
                        # It is over.
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
        secret = relays.new_secret()
        if offer is not None:
            relays.forget(offer.secret)
            relays.know(secret, self)
            return dataclasses.replace(offer, secret=secret)
        relays.know(secret, self)
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


def guids(value: str | None) -> frozenset[str] | None:
    """A comma-separated list of GUIDs in lower case; None when the header is absent."""
    if value is None:
        return None
    return frozenset(part.strip().lower() for part in value.split(",") if part.strip())
