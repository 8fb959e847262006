"""All plain HTTP requests in flight: finds the one that a response or a rendezvous is for.

    broker -> HttpRelays -> HttpRelay, one for each request

It also finds those that must end when a listener is lost, an entity is deleted or a key is removed, looks at the clock
of all of them, and knows which addresses a listener may still open in vain.
"""

from __future__ import annotations

import copy
import logging
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING

from trunkline.protocol.errors import InvalidRequest, RelayError, ServerBusy
from trunkline.protocol.frames import Masker
from trunkline.protocol.http_rendezvous import HttpRendezvous
from trunkline.protocol.limits import CONTROL_MESSAGE_LIMIT, HEARTBEAT
from trunkline.protocol.messages import Response
from trunkline.server.relay.admission import Admitted, Arrival
from trunkline.server.relay.control_channel import ControlChannel
from trunkline.server.relay.exchange import Exchange
from trunkline.server.relay.http_relay import HttpRelay, first_protocol
from trunkline.server.relay.http_rendezvous import HttpLeg, Owner

if TYPE_CHECKING:
    from trunkline.server.relay.broker import Broker

log = logging.getLogger("trunkline.relay")

# Addresses that are remembered when their request ended without the answer of the listener that was told of it.
REMEMBERED = 4_096


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
        # By the listener that was told last; and those of which one is just being told, which takes a while.
        self._told: dict[str, set[HttpRelay]] = {}
        self._placing: set[HttpRelay] = set()
        # Secrets of requests that a listener may still come to answer, and in vain: the oldest first.
        self._too_late: dict[str, None] = {}
        # Every WebSocket that is there for one, also while it closes behind the end of its request.
        self._legs: set[HttpLeg] = set()
        # Requests that no listener was told of yet, by entity. Each may hold a body of 64 KiB.
        self.waiting: Counter[str] = Counter()
        # Bytes of bodies that no listener has taken yet, and by entity.
        self.held = 0
        self.held_by_entity: Counter[str] = Counter()

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
        try:
            relay.responded(response, body)
        except Exception:
            # Not the end of the channel, on which others are answered.
            relay.failed()

    def listener_lost(self, listener: str, *, in_order: bool) -> None:
        """A control channel ended. `in_order`: the listener has closed it itself."""
        for relay in [*self._told.get(listener, ()), *self._placing]:
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
            try:
                relay.tick(now)
            except Exception:
                relay.failed()
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

    def told(self, relay: HttpRelay, listener: str) -> None:
        """A listener was told of a request."""
        self._placing.discard(relay)
        of_listener = self._told.get(listener)
        if of_listener is None:
            of_listener = self._told[listener] = set()
        of_listener.add(relay)

    def untold(self, relay: HttpRelay, listener: str) -> None:
        """It has nothing to do with that listener any more."""
        of_listener = self._told.get(listener, set())
        of_listener.discard(relay)
        if not of_listener:
            self._told.pop(listener, None)

    def placing(self, relay: HttpRelay) -> None:
        """A listener is being told of it, and that takes a while."""
        self._placing.add(relay)

    def over(self, relay: HttpRelay) -> None:
        """A request is over."""
        self._in_flight.pop(relay.admitted.tracking_id, None)
        self._placing.discard(relay)

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
