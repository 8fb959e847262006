"""Who listens on each entity, who gets the next sender, and whether there is room.

Every decision about an entity is taken behind `ListenerDirectory`; the broker knows nothing else. One node fills it
with a dictionary (`LocalDirectory`). Its calls are awaited because elsewhere they may take a while, and fail.

    register -> Registration        active, standby or parked; waits while its client has too many parked
    place    -> Placement           the listener that was told of a sender, and the sender's ticket
    came, did_not_come              what became of it: two that did not come in a row depose a listener
    release                         the sender's connection has ended
    unregister                      the listener's control channel has ended

Surplus listeners of one client are parked, not refused: hyco-ws answers every refusal with two new attempts, and
comes back with a thousand control channels after an outage of a second. A parked listener is counted as nobody and
takes the next free place. What a client opens beyond `PARKED_PER_CLIENT` waits unanswered, and beyond
`WAITING_PER_CLIENT` is refused.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from trunkline.protocol.errors import ListenerQuotaExceeded, ListenersExcluded, NoListener, QuotaExceeded
from trunkline.protocol.limits import Limits
from trunkline.protocol.messages import RemoteEndpoint

# Listeners of one client over `max_listeners` that get a control channel all the same.
PARKED_PER_CLIENT = 64

# Handshakes of one client beyond those that wait for an answer; an open socket each.
WAITING_PER_CLIENT = 4_096

# A listener that lets so many senders in a row wait in vain is passed over, for so many seconds.
STRIKES = 2
PASSED_OVER_FOR = 60.0


@dataclass(frozen=True, slots=True)
class Offer:
    """A sender that wants a listener."""

    # Names the sender's connection within the node; also its ticket.
    ticket: str
    # Id of the hybrid connection.
    entity: str
    limits: Limits
    # What the listener is told; see `trunkline.protocol.messages.Accept`.
    path: str
    suffix: str
    query: str
    tracking_id: str
    secret: str = field(repr=False)
    headers: dict[str, str] = field(repr=False)
    remote: RemoteEndpoint
    # `scheme://host:port` that the listener has to dial; None: the one that it used for its control channel.
    base_url: str | None
    # GUIDs of the listeners that the sender allows and disallows; None: all, none.
    allowed: frozenset[str] | None = None
    disallowed: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Placement:
    """A listener was told of a sender."""

    entity: str
    listener: str
    ticket: str


class Listener(Protocol):
    """A control channel, as far as the directory needs to know it."""

    @property
    def id(self) -> str:
        """Names the registration within the node."""

    @property
    def guid(self) -> str | None:
        """The GUID that the listener gave itself (`sb-hc-id`), in lower case."""

    @property
    def client(self) -> tuple[str, str, str | None]:
        """Address, rule and GUID: who is taken for the same client."""

    def deliver(self, offer: Offer) -> bool:
        """Tell it of a sender; False when it cannot be told. Raises HeadersTooLarge."""


@dataclass(slots=True, eq=False)
class Registration:
    """A listener in the directory."""

    entity: str
    listener: Listener
    limits: Limits
    # Has a control channel and no place: is never chosen.
    parked: bool = False
    # Senders that waited for it in vain since it last came.
    strikes: int = 0
    # Until when it is passed over while there are others; seconds on the directory's clock.
    passed_over_until: float = 0.0
    # Senders whose connections it has.
    tickets: set[str] = field(default_factory=set)

    def __repr__(self) -> str:
        state = "parked" if self.parked else "registered"
        return f"<Registration {self.listener.id} {state} tickets={len(self.tickets)}>"


class ListenerDirectory(Protocol):
    """Every decision about who listens and who is served."""

    async def register(self, entity: str, listener: Listener, limits: Limits) -> Registration:
        """Give a listener a place, or park it; waits while its client has too many parked ones.

        Raises:
            ListenerQuotaExceeded: the entity is full, and not by this client.
        """

    async def unregister(self, registration: Registration) -> None:
        """Its control channel has ended. May be called twice."""

    async def place(self, offer: Offer, exclude: frozenset[str]) -> Placement:
        """Choose a listener, none of `exclude`, and tell it.

        Raises:
            QuotaExceeded: the entity has `max_senders`.
            NoListener: nobody is there; ListenersExcluded: somebody is, and the sender does not want it.
            HeadersTooLarge: the offer cannot be told to any client.
            ServerBusy: the directory cannot decide now.
        """

    async def came(self, placement: Placement) -> None:
        """The listener opened the address, to accept or to reject."""

    async def did_not_come(self, placement: Placement) -> bool:
        """The listener let it expire. True when somebody else is to be asked from now on."""

    async def release(self, ticket: str, entity: str) -> None:
        """The sender's connection has ended, or never came to be."""

    def listener_count(self, entity: str) -> int:
        """Registered listeners, without parked ones."""


class _Roster:
    """Who is there for one entity."""

    __slots__ = ("parked", "registered", "tickets", "turn", "waiting")

    def __init__(self) -> None:
        # In the order in which they come into their turn; under `active-standby` the first is active.
        self.registered: list[Registration] = []
        self.parked: list[Registration] = []
        # Handshakes that wait to be parked or registered: by client, in order.
        self.waiting: list[tuple[tuple[str, str, str | None], asyncio.Future[None]]] = []
        # Senders: the listener that has each, None while there is none.
        self.tickets: dict[str, Registration | None] = {}
        # Counts placements, for `round-robin`.
        self.turn = 0

    @property
    def is_empty(self) -> bool:
        return not (self.registered or self.parked or self.waiting or self.tickets)


class LocalDirectory:
    """The directory of one node.

    Args:
        clock: seconds, monotonic.
        chance: breaks ties under `balanced`.
    """

    def __init__(self, *, clock: Callable[[], float], chance: random.Random) -> None:
        self._clock = clock
        self._chance = chance
        self._rosters: dict[str, _Roster] = {}

    def __repr__(self) -> str:
        listeners = sum(len(roster.registered) for roster in self._rosters.values())
        return f"<LocalDirectory entities={len(self._rosters)} listeners={listeners}>"

    async def register(self, entity: str, listener: Listener, limits: Limits) -> Registration:
        roster = self._rosters.setdefault(entity, _Roster())
        registration = Registration(entity, listener, limits)
        try:
            while limits.max_listeners and len(roster.registered) >= limits.max_listeners:
                if not any(each.listener.client == listener.client for each in roster.registered):
                    raise ListenerQuotaExceeded(
                        f"QuotaExceeded: The endpoint has {limits.max_listeners} listeners, which is its maximum "
                        "(max_listeners); close one, or raise it"
                    )
                if sum(each.listener.client == listener.client for each in roster.parked) < PARKED_PER_CLIENT:
                    registration.parked = True
                    roster.parked.append(registration)
                    return registration
                await self._wait(roster, listener.client)
        finally:
            self._forget_if_empty(entity, roster)
        roster.registered.append(registration)
        self._rosters[entity] = roster
        return registration

    async def _wait(self, roster: _Roster, client: tuple[str, str, str | None]) -> None:
        """Wait until a place or a parking place may be free."""
        if sum(each == client for each, _ in roster.waiting) >= WAITING_PER_CLIENT:
            raise ListenerQuotaExceeded(
                f"QuotaExceeded: Your client has {WAITING_PER_CLIENT} listeners waiting for a place already"
            )
        entry = (client, asyncio.get_running_loop().create_future())
        roster.waiting.append(entry)
        try:
            await entry[1]
        finally:
            if entry in roster.waiting:
                roster.waiting.remove(entry)

    async def unregister(self, registration: Registration) -> None:
        roster = self._rosters.get(registration.entity)
        if roster is None:
            return
        if registration in roster.parked:
            roster.parked.remove(registration)
        elif registration in roster.registered:
            roster.registered.remove(registration)
            limit = registration.limits.max_listeners
            if roster.parked and (not limit or len(roster.registered) < limit):
                successor = roster.parked.pop(0)
                successor.parked = False
                roster.registered.append(successor)
        else:
            return
        if roster.waiting:
            _, waiter = roster.waiting.pop(0)
            if not waiter.done():
                waiter.set_result(None)
        self._forget_if_empty(registration.entity, roster)

    async def place(self, offer: Offer, exclude: frozenset[str]) -> Placement:
        roster = self._rosters.setdefault(offer.entity, _Roster())
        try:
            most = offer.limits.max_senders
            if offer.ticket not in roster.tickets and most and len(roster.tickets) >= most:
                raise QuotaExceeded(
                    f"QuotaExceeded: The endpoint has {most} sender connections, which is its maximum (max_senders); "
                    "try again when one has ended"
                )
            for registration in self._in_order(roster, offer, exclude):
                if registration.listener.deliver(offer):
                    roster.turn += 1
                    roster.tickets[offer.ticket] = registration
                    registration.tickets.add(offer.ticket)
                    return Placement(offer.entity, registration.listener.id, offer.ticket)
            raise NoListener(status=offer.limits.no_listener_status)
        finally:
            self._forget_if_empty(offer.entity, roster)

    def _in_order(self, roster: _Roster, offer: Offer, exclude: frozenset[str]) -> list[Registration]:
        """Who may be told of this sender, the one to be told first in front."""
        present = [each for each in roster.registered if each.listener.id not in exclude]
        wanted = [each for each in present if _is_wanted(each.listener.guid, offer)]
        if present and not wanted:
            raise ListenersExcluded()
        if offer.limits.listener_policy == "round-robin" and wanted:
            first = roster.turn % len(wanted)
            wanted = wanted[first:] + wanted[:first]
        elif offer.limits.listener_policy == "balanced":
            wanted.sort(key=lambda each: (len(each.tickets), self._chance.random()))
        now = self._clock()
        return sorted(wanted, key=lambda each: each.passed_over_until > now)

    async def came(self, placement: Placement) -> None:
        registration = self._find(placement)
        if registration is not None:
            registration.strikes = 0
            registration.passed_over_until = 0.0

    async def did_not_come(self, placement: Placement) -> bool:
        registration = self._find(placement)
        if registration is None:
            return True
        registration.strikes += 1
        if registration.strikes < STRIKES:
            return False
        registration.strikes = 0
        registration.passed_over_until = self._clock() + PASSED_OVER_FOR
        registered = self._rosters[placement.entity].registered
        registered.remove(registration)
        registered.append(registration)
        return len(registered) > 1

    def _find(self, placement: Placement) -> Registration | None:
        roster = self._rosters.get(placement.entity)
        registered = roster.registered if roster is not None else []
        return next((each for each in registered if each.listener.id == placement.listener), None)

    async def release(self, ticket: str, entity: str) -> None:
        roster = self._rosters.get(entity)
        if roster is None:
            return
        registration = roster.tickets.pop(ticket, None)
        if registration is not None:
            registration.tickets.discard(ticket)
        self._forget_if_empty(entity, roster)

    def listener_count(self, entity: str) -> int:
        roster = self._rosters.get(entity)
        return len(roster.registered) if roster is not None else 0

    def counts(self) -> dict[str, int]:
        """Listeners registered, parked and waiting, and senders with a ticket, for `/readyz`."""
        rosters = self._rosters.values()
        return {
            "listeners": sum(len(each.registered) for each in rosters),
            "parked_listeners": sum(len(each.parked) for each in rosters),
            "waiting_listeners": sum(len(each.waiting) for each in rosters),
            "senders": sum(len(each.tickets) for each in rosters),
        }

    def _forget_if_empty(self, entity: str, roster: _Roster) -> None:
        if roster.is_empty and self._rosters.get(entity) is roster:
            del self._rosters[entity]


def _is_wanted(guid: str | None, offer: Offer) -> bool:
    if offer.allowed is not None and guid not in offer.allowed:
        return False
    return guid is None or guid not in offer.disallowed
