"""Brings senders and listeners together: the one place that knows admission, directory, channels and splicing.

    listen    admitted -> place in the directory -> 101 -> ControlChannel
    connect   admitted -> Rendezvous -> the directory tells a listener -> wait
    accept    the listener opens the address -> Rendezvous -> 101 to both -> Connection
    plain HTTP    admitted -> `HttpRelays`, which also takes the responses, and the listeners at a rendezvous for one

`trunkline.protocol.rendezvous` decides what follows from what; a `Meeting` runs its commands for one sender. The
broker also acts on changes of the catalog: what hung on a deleted entity or a removed key ends at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
from collections import Counter
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

from trunkline.protocol import control_channel as core
from trunkline.protocol import rendezvous
from trunkline.protocol.causes import Cause
from trunkline.protocol.errors import (
    AuthorizationFailed,
    EndpointDisabled,
    EndpointNotFound,
    InternalError,
    NoListener,
    RelayError,
    RendezvousNotFound,
    ServerBusy,
)
from trunkline.protocol.frames import Masker
from trunkline.protocol.messages import RemoteEndpoint
from trunkline.protocol.rendezvous import Rendezvous
from trunkline.protocol.sas import Right
from trunkline.protocol.splice import Side
from trunkline.protocol.urls import Action, base_url, split_authority
from trunkline.server.entities.authorization import Authorizer, Grant
from trunkline.server.entities.catalog import CatalogChange
from trunkline.server.entities.model import HybridConnection
from trunkline.server.relay import runtime_information
from trunkline.server.relay.admission import Admission, Admitted, Arrival, Inquiry, headers_for_listener
from trunkline.server.relay.control_channel import ControlChannel
from trunkline.server.relay.control_channel import Facts as ChannelFacts
from trunkline.server.relay.frontend import Exchange
from trunkline.server.relay.held_refusals import Fate, HeldRefusals
from trunkline.server.relay.http_relays import HttpRelays
from trunkline.server.relay.journal import Journal
from trunkline.server.relay.listeners import ListenerDirectory, Offer, Placement, guids
from trunkline.server.relay.splicing import Connection, Splicing
from trunkline.server.relay.splicing import Facts as ConnectionFacts

log = logging.getLogger("trunkline.relay")


# Seconds between two looks for a listener that is about to come back.
LOOK_AGAIN = 0.05


class Broker:
    """Serves the data plane.

    Args:
        admission: decides who may.
        authorizer: tells whether a grant still holds.
        directory: decides who listens and who is served.
        splicing: runs what is established.
        spawn: runs a coroutine to its end, in a task that somebody keeps.
        clock: seconds, monotonic.
        wall_clock: seconds since the epoch.
        journal: counts and tells what happens.
        new_secret: makes the secret of a rendezvous: url-safe, without "=", 128 random bits or more.
        new_id: makes the short name of a control channel or a connection, unique within the node; it is no secret.
        new_phase: 0 up to 1, at random; spreads pings.
        masker: the routine that unmasks frames.
        public_url: `scheme://host:port` by which listeners reach this node; None: the one that each of them used.
    """

    def __init__(
        self,
        *,
        admission: Admission,
        authorizer: Authorizer,
        directory: ListenerDirectory,
        splicing: Splicing,
        spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]],
        clock: Callable[[], float],
        wall_clock: Callable[[], float],
        journal: Journal,
        new_secret: Callable[[], str],
        new_id: Callable[[], str],
        new_phase: Callable[[], float],
        masker: Masker,
        public_url: str | None = None,
    ) -> None:
        self._admission = admission
        self._authorizer = authorizer
        self.directory = directory
        self._splicing = splicing
        self._spawn = spawn
        self._clock = clock
        self._wall_clock = wall_clock
        self.journal = journal
        self._new_secret = new_secret
        self._new_id = new_id
        self._new_phase = new_phase
        self._masker = masker
        # Plain HTTP requests in flight.
        self.http = HttpRelays(self, new_secret=new_secret, new_id=new_id, masker=masker)
        # Counts for the next sender, also on channels that are open.
        self.public_url = public_url
        # Senders that wait for a listener, by the secret of their rendezvous.
        self._meetings: dict[str, Meeting] = {}
        # Refusals that are answered later.
        self._held: HeldRefusals[_Refusal] = HeldRefusals()
        # Control channels whose transport is there, also while they close.
        self.channels: set[ControlChannel] = set()
        # Set when the last of them has gone.
        self._no_channels = asyncio.Event()
        # No new senders, and listeners wait for an answer that the next node gives.
        self.draining = False
        # Until then, on the clock, a sender waits for the first listener instead of hearing that there is none: after
        # a restart that refuses nobody, senders may be here before the listeners are back.
        self.patient_until = 0.0

    def __repr__(self) -> str:
        return f"<Broker channels={len(self.channels)} waiting={len(self._meetings)}>"

    @property
    def waiting_senders(self) -> int:
        """Senders whose handshake is not answered yet."""
        return len(self._meetings)

    def waiting_by_entity(self) -> Counter[str]:
        """How many of them there are for each entity."""
        return Counter(meeting.offer.entity for meeting in self._meetings.values())

    def serve(self, exchange: Exchange) -> None:
        """Take a request whose head is whole."""
        try:
            admitted = self._admission.admit(exchange)
            if isinstance(admitted, Arrival):
                self._accept(exchange, admitted)
            elif isinstance(admitted, Inquiry):
                self._inform(exchange, admitted)
            elif admitted.is_request:
                self.http.relay(exchange, admitted)
            elif admitted.action is Action.LISTEN:
                self._listen(exchange, admitted)
            else:
                self._connect(exchange, admitted)
        except RelayError as error:
            if self._admission.has_failed(exchange.head, error):
                self._refuse_failed(exchange, error)
            else:
                self.refuse(exchange, error)
        except Exception:
            log.exception("the relay failed on %r", exchange)
            self.refuse(exchange, InternalError())

    def _refuse_failed(self, exchange: Exchange, error: RelayError) -> None:
        """Answer whoever failed to authenticate: at once, or later when its address fails often."""
        refusal = _Refusal(exchange, error)
        match self._held.refused(exchange.remote[0], refusal, self._clock()):
            case Fate.ANSWER:
                self.refuse(exchange, error)
            case Fate.HOLD:
                self.journal.refused(exchange, error, " (answered later)")
                # Without the traceback, whose frames would keep the request head.
                error.with_traceback(None)
                refusal.phrase = self._admission.phrase(exchange, error)
                exchange.on_left = partial(self._held.left, refusal)
                exchange.hold()
            case Fate.DISMISS:
                self.journal.refused(exchange, error)
                self._admission.refuse(exchange, error, linger=False)

    def _answer_held(self, refusals: list[_Refusal]) -> None:
        for refusal in refusals:
            self._admission.refuse(refusal.exchange, refusal.error, refusal.phrase)

    @property
    def held_refusals(self) -> int:
        """Peers that failed to authenticate and are told so later."""
        return len(self._held)

    def refuse(self, exchange: Exchange, error: RelayError) -> None:
        """Answer with an error."""
        self.journal.refused(exchange, error)
        self._admission.refuse(exchange, error)

    def unread(self, error: RelayError, address: str) -> str:
        """The reason phrase for the peer at `address`, whose request could not be read; the refusal is counted."""
        phrase = self._admission.early_phrase(error)
        self.journal.unread(error, address)
        return phrase

    def _inform(self, exchange: Exchange, inquiry: Inquiry) -> None:
        count = self.directory.listener_count(inquiry.entity.key)
        body = runtime_information.entry(inquiry.entity, inquiry.limits, count)
        exchange.respond(200, body=body, content_type=runtime_information.ENTRY_TYPE)

    # -- listen

    def _listen(self, exchange: Exchange, admitted: Admitted) -> None:
        if self.draining:
            # Held, not refused: a refusal makes hyco-ws try twice, a handshake without an answer does not.
            return
        task = self._spawn(self._register(exchange, admitted))

        def stop_waiting() -> None:
            task.cancel()
            self.journal.listener_left(admitted)

        exchange.on_left = stop_waiting

    async def _register(self, exchange: Exchange, admitted: Admitted) -> None:
        assert admitted.grant is not None
        host, port = split_authority(exchange.head.get("Host") or "")
        facts = ChannelFacts(
            id=self._new_id(),
            entity=admitted.entity.key,
            path=admitted.path,
            host=host,
            tracking_id=admitted.tracking_id,
            grant=admitted.grant,
            guid=admitted.guid,
            remote=exchange.remote,
            base_url=base_url(host, port, secure=exchange.secure),
            user_agent=exchange.head.user_agent,
            opened_at=self._wall_clock(),
        )
        channel = ControlChannel(
            facts,
            clock=self._clock,
            on_token=self._renew,
            on_response=self.http.responded,
            on_ended=self._listener_ended,
            on_gone=self._channel_gone,
        )
        try:
            channel.registration = await self.directory.register(facts.entity, channel, admitted.limits)
        except RelayError as error:
            error.tracking_id = admitted.tracking_id
            self.refuse(exchange, error)
            return
        except Exception:
            log.exception("the relay failed on %r", exchange)
            self.refuse(exchange, InternalError(tracking_id=admitted.tracking_id))
            return
        try:
            # It may have waited long for its place: does all of it still hold?
            self._admission.admit(exchange)
        except RelayError as error:
            self.refuse(exchange, error)
        if self.draining or not exchange.is_open:
            # Refused, gone, or held like any other that comes now.
            await self.directory.unregister(channel.registration)
            return
        channel.open(
            core.RelayControlChannel(
                limits=self._admission.limits(facts.entity) or admitted.limits,
                expires_at=self._on_clock(admitted.grant.expires_at),
                now=self._clock(),
                tracking_id=admitted.tracking_id,
                ping_phase=self._new_phase(),
                masker=self._masker,
            )
        )
        self.channels.add(channel)
        exchange.upgrade(channel, subprotocol=_first(exchange.head.tokens("Sec-WebSocket-Protocol")))
        self.journal.listener_registered(channel)

    def _renew(self, channel: ControlChannel, token: str) -> None:
        try:
            grant = self._admission.renew(channel.facts.entity, channel.facts.host, token)
        except RelayError as error:
            self.journal.renewal_refused(channel, error)
            channel.refused(error)
        else:
            channel.renewed(grant, self._on_clock(grant.expires_at))

    def _listener_ended(self, channel: ControlChannel, ended: core.Ended) -> None:
        self.journal.listener_ended(channel, ended)
        if channel.registration is not None:
            self.spawn(self.directory.unregister(channel.registration))
        if ended.loss and channel.machine.limits.on_listener_loss == "teardown":
            self._splicing.listener_lost(channel.id, f"the listener's control channel was lost: {ended.reason}")
        for meeting in list(self._meetings.values()):
            meeting.listener_lost(channel.id)
        self.http.listener_lost(channel.id, in_order=ended.cause is Cause.CLOSED)

    def _channel_gone(self, channel: ControlChannel) -> None:
        self.channels.discard(channel)
        if not self.channels:
            self._no_channels.set()

    # -- connect

    def _connect(self, exchange: Exchange, admitted: Admitted) -> None:
        if self.draining:
            raise ServerBusy("ServerBusy: The relay is shutting down, try again", tracking_id=admitted.tracking_id)
        ticket, secret = self._new_secret(), self._new_secret()
        offer = Offer(
            ticket=ticket,
            entity=admitted.entity.key,
            limits=admitted.limits,
            path=admitted.entity.name,
            suffix=admitted.suffix,
            query=admitted.query,
            tracking_id=admitted.tracking_id,
            secret=secret,
            headers=headers_for_listener(exchange.head, admitted.token_header, own_host=admitted.own_host),
            remote=RemoteEndpoint(*exchange.remote),
            base_url=self.public_url,
            allowed=guids(exchange.head.get("Microsoft-Relay-AllowedListeners")),
            disallowed=guids(exchange.head.get("Microsoft-Relay-DisallowedListeners")) or frozenset(),
        )
        meeting = Meeting(self, exchange, admitted, offer)
        self._meetings[secret] = meeting
        meeting.start()

    def _accept(self, exchange: Exchange, arrival: Arrival) -> None:
        if arrival.target.action is Action.REQUEST:
            self.http.arrived(exchange, arrival)
            return
        meeting = self._meetings.get(arrival.target.secret or "")
        if meeting is None:
            raise RendezvousNotFound(tracking_id=arrival.tracking_id)
        meeting.listener_arrived(exchange, arrival)

    def join(self, meeting: Meeting, listener: str) -> Connection:
        """Make the connection of a sender and the listener that came for it."""
        offer, admitted = meeting.offer, meeting.admitted
        facts = ConnectionFacts(
            id=self._new_id(),
            tracking_id=offer.tracking_id,
            entity=offer.entity,
            path=admitted.path,
            listener=listener,
            grant=admitted.grant,
            remote=meeting.exchange.remote,
            user_agent=meeting.exchange.head.user_agent,
            began_at=self._wall_clock(),
        )
        # Not the offer: it holds the sender's headers, which nobody needs any more.
        return self._splicing.join(facts, offer.limits, partial(self._ended, ticket=offer.ticket))

    def _ended(self, connection: Connection, *, ticket: str) -> None:
        self.journal.ended(connection, self._clock() - connection.started_at)
        self.spawn(self.directory.release(ticket, connection.facts.entity))

    def change_secret(self, meeting: Meeting) -> str:
        """Give a waiting sender another address; the one before leads nowhere from now on."""
        del self._meetings[meeting.offer.secret]
        secret = self._new_secret()
        self._meetings[secret] = meeting
        return secret

    def over(self, meeting: Meeting, *, joined: bool) -> None:
        """A sender waits no longer."""
        if self._meetings.pop(meeting.offer.secret, None) is not None and not joined:
            self.spawn(self.directory.release(meeting.offer.ticket, meeting.offer.entity))

    # -- changes and the clock

    def changed(self, change: CatalogChange) -> None:
        """An entity came, went or changed: end what lost its ground."""
        before, after = change.before, change.after
        if before is not None and after is None:
            # First, so that what ends with the entity is counted where there is none.
            self.journal.entity_deleted(before.key)
        if isinstance(before, HybridConnection):
            gone = after is None or (isinstance(after, HybridConnection) and not after.enabled and before.enabled)
            if gone:
                self._end_entity(before.key, EndpointNotFound() if after is None else EndpointDisabled())
                return
        if before is not None:
            self._end_revoked(before.key)
            if after is not None and before.limits != after.limits:
                self.limits_changed(after.key)

    def limits_changed(self, scope: str = "") -> None:
        """Let control channels take over the limits of an entity, of all in a namespace, or ("") of everything.

        New connections find them anyway; those that are established keep what they began with.
        """
        told: set[str] = set()
        for channel in list(self.channels):
            entity = channel.facts.entity
            if scope and entity != scope and not entity.startswith(f"{scope}/"):
                continue
            limits = self._admission.limits(entity)
            if limits is None or limits == channel.machine.limits:
                continue
            channel.take_limits(limits)
            if entity not in told:
                told.add(entity)
                self.spawn(self.directory.take_limits(entity, limits))

    def _end_entity(self, entity: str, error: RelayError) -> None:
        # First: for a request, a listener that is gone is another reason.
        self.http.withdraw(lambda admitted: admitted.entity.key == entity, error)
        for channel in list(self.channels):
            if channel.facts.entity == entity:
                channel.close(error, loss=False)
        self._splicing.close(lambda facts: facts.entity == entity, error)
        for meeting in list(self._meetings.values()):
            if meeting.offer.entity == entity:
                meeting.refuse(error)

    def _end_revoked(self, scope: str) -> None:
        """End what a rule of this entity let in and would let in no more."""
        error = AuthorizationFailed("AuthorizationFailed: The key or rule of the token was removed")

        def is_revoked(grant: Grant | None, right: Right) -> bool:
            if grant is None or grant.scope.lower() != scope:
                return False
            return not self._authorizer.still_valid(grant, right)

        for channel in list(self.channels):
            if is_revoked(channel.facts.grant, Right.LISTEN):
                channel.close(error, loss=True)
        self._splicing.close(lambda facts: is_revoked(facts.grant, Right.SEND), error)
        for meeting in list(self._meetings.values()):
            if is_revoked(meeting.admitted.grant, Right.SEND):
                meeting.refuse(error)
        self.http.withdraw(lambda admitted: is_revoked(admitted.grant, Right.SEND), error)

    def tick(self, now: float) -> None:
        """Look at the clock of channels and waiting senders; to be called about once a second."""
        for channel in list(self.channels):
            channel.tick(now)
        for meeting in list(self._meetings.values()):
            meeting.tick(now)
        self.http.tick(now)
        self._answer_held(self._held.due(now))
        dismissed = self._held.take_dismissed()
        if dismissed:
            log.warning("%d more who failed to authenticate were refused at once: too many are held already", dismissed)
        self.journal.tick()

    async def close_channels(self, error: RelayError, *, timeout: float) -> None:
        """Close every control channel and wait for their listeners, at most `timeout` seconds; connections stay.

        Senders that still wait are refused: nobody is left to accept them.
        """
        self._refuse_waiting()
        self._no_channels.clear()
        for channel in list(self.channels):
            channel.close(error, loss=False)
        if self.channels:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._no_channels.wait(), timeout)

    def abort(self) -> None:
        """Cut every control channel and refuse every sender that waits."""
        self._refuse_waiting()
        self.http.abort()
        for channel in list(self.channels):
            channel.abort()

    def _refuse_waiting(self) -> None:
        self._answer_held(self._held.release())
        for meeting in list(self._meetings.values()):
            meeting.refuse(ServerBusy("ServerBusy: The relay is shutting down, try again"))
        self.http.withdraw(lambda admitted: True, ServerBusy("ServerBusy: The relay is shutting down, try again"))

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run a coroutine to its end, in a task that is kept."""
        _ = self._spawn(work)

    def now(self) -> float:
        """Seconds on the broker's clock."""
        return self._clock()

    def _on_clock(self, moment: float) -> float:
        """A moment of the wall clock on the monotonic one: from here on a jump of the wall clock changes nothing."""
        return self._clock() + moment - self._wall_clock()


@dataclasses.dataclass(slots=True, eq=False)
class _Refusal:
    """A refusal that is held."""

    exchange: Exchange
    error: RelayError
    # The reason phrase, made before the request head was let go.
    phrase: str = ""


class Meeting:
    """The shell around the `Rendezvous` of one sender."""

    def __init__(self, broker: Broker, exchange: Exchange, admitted: Admitted, offer: Offer) -> None:
        self._broker = broker
        # The sender, whose answer is owed.
        self.exchange = exchange
        self.admitted = admitted
        self.offer = offer
        self._machine = Rendezvous(
            tracking_id=offer.tracking_id,
            secret=offer.secret,
            subprotocols=exchange.head.tokens("Sec-WebSocket-Protocol"),
            timeout=offer.limits.rendezvous_timeout,
            now=broker.now(),
        )
        # The listener at the address, while its commands run.
        self._listener_exchange: Exchange | None = None
        # Who was told; None while nobody is.
        self._placement: Placement | None = None
        # The directory is being told that the listener did not come.
        self._expiring = False
        self._connection: Connection | None = None
        # On the journal's stopwatch: since when the sender waits, and since when the listener knows.
        self._began = self._told = broker.journal.stopwatch()

    def __repr__(self) -> str:
        return f"<Meeting {self._machine!r}>"

    # -- events

    def start(self) -> None:
        """Look for a listener."""
        self._broker.journal.sender_waits(self.admitted, self.exchange)
        self.exchange.on_left = self._sender_left
        self._run(self._machine.start())

    def listener_arrived(self, exchange: Exchange, arrival: Arrival) -> None:
        """Somebody opened the address."""
        self._listener_exchange = exchange
        placement = self._placement
        commands = self._machine.listener_arrived(
            secret=arrival.target.secret or "",
            status=arrival.target.status_code,
            description=arrival.target.status_description,
            subprotocols=exchange.head.tokens("Sec-WebSocket-Protocol"),
            now=self._broker.now(),
        )
        if self._machine.over and placement is not None:
            self._broker.journal.listener_came(self.admitted, self._since(self._told))
            self._broker.spawn(self._broker.directory.came(placement))
        self._run(commands)

    def listener_lost(self, listener: str) -> None:
        """A control channel ended."""
        self._run(self._machine.listener_lost(listener, self._broker.now()))

    def tick(self, now: float) -> None:
        """Look at the clock."""
        if now >= self._machine.deadline and not self._expiring and not self._machine.over:
            self._expiring = True
            self._broker.spawn(self._expire())

    def refuse(self, error: RelayError) -> None:
        """The entity or the sender's right is gone."""
        self._machine.sender_left(self._broker.now())
        self._broker.over(self, joined=False)
        self._refuse_sender(error)

    def _sender_left(self) -> None:
        self._run(self._machine.sender_left(self._broker.now()))
        self._broker.over(self, joined=False)
        self._broker.journal.sender_left(self.admitted, self._since(self._began))

    async def _expire(self) -> None:
        placement, self._placement = self._placement, None
        if placement is not None:
            waited = self._since(self._told)
            self._broker.journal.listener_did_not_come(self.admitted, self.exchange, placement.listener, waited)
        deposed = await self._broker.directory.did_not_come(placement) if placement is not None else False
        self._expiring = False
        self._run(self._machine.expired(self._broker.now(), deposed=deposed))

    async def _place(self, exclude: frozenset[str]) -> None:
        if self._machine.over:
            # The sender left before anybody was told of it.
            return
        try:
            placement = await self._placed(exclude)
        except RelayError as error:
            self._run(self._machine.not_placed(error))
        except Exception:
            log.exception("the relay failed on %r", self)
            self._run(self._machine.not_placed(InternalError()))
        else:
            if self._machine.over:
                # The sender left while its offer was on the way.
                await self._broker.directory.release(placement.ticket, placement.entity)
                return
            self._placement = placement
            self._told = self._broker.journal.stopwatch()
            self._broker.journal.listener_told(self.admitted, self.exchange, placement.listener)
            self._run(self._machine.placed(placement.listener, self._broker.now()))

    async def _placed(self, exclude: frozenset[str]) -> Placement:
        while True:
            try:
                return await self._broker.directory.place(self.offer, exclude)
            except NoListener:
                if self._machine.over or self._broker.now() >= self._broker.patient_until:
                    raise
            await asyncio.sleep(LOOK_AGAIN)

    # -- commands

    def _run(self, commands: list[rendezvous.Command]) -> None:
        for command in commands:
            match command:
                case rendezvous.PlaceOffer(exclude):
                    self._placement = None
                    if exclude:
                        self.offer = dataclasses.replace(self.offer, secret=self._broker.change_secret(self))
                        self._machine.change_secret(self.offer.secret)
                    self._broker.spawn(self._place(exclude))
                case rendezvous.AnswerListener(subprotocol):
                    self._answer(Side.LISTENER, self._listener_exchange, subprotocol)
                case rendezvous.AnswerSender(subprotocol):
                    self._answer(Side.SENDER, self.exchange, subprotocol)
                case rendezvous.Join():
                    assert self._connection is not None
                    self._broker.over(self, joined=True)
                    self._broker.journal.established(self.admitted, self._connection, self._since(self._began))
                    self._connection.start()
                case rendezvous.RefuseListener(status, phrase):
                    if self._listener_exchange is not None:
                        self._listener_exchange.respond(status, phrase)
                case rendezvous.RejectSender(status, description):
                    self._broker.over(self, joined=False)
                    waited = self._since(self._began)
                    self._broker.journal.rejected(self.admitted, self.exchange, status, description, waited)
                    self.exchange.respond(status, description)
                case rendezvous.RefuseSender(error):
                    self._broker.over(self, joined=False)
                    self._refuse_sender(error)

    def _answer(self, side: Side, exchange: Exchange | None, subprotocol: str | None) -> None:
        assert exchange is not None
        if self._connection is None:
            assert self._machine.listener_id is not None
            self._connection = self._broker.join(self, self._machine.listener_id)
        exchange.upgrade(self._connection.legs[side], subprotocol=subprotocol)

    def _refuse_sender(self, error: RelayError) -> None:
        error.tracking_id = self.offer.tracking_id
        self._broker.journal.sender_refused(self.admitted, error, self._since(self._began))
        self._broker.refuse(self.exchange, error)

    def _since(self, moment: float) -> float:
        return self._broker.journal.stopwatch() - moment


def _first(items: tuple[str, ...]) -> str | None:
    return items[0] if items else None
