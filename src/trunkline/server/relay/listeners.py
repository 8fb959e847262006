"""Who listens on each entity, who gets the next sender, and whether there is room.

Every decision about an entity is taken behind `ListenerDirectory`; the broker knows nothing else. One node fills it
with a dictionary (`LocalDirectory`). Its calls are awaited because elsewhere they may take a while, and fail.

    register -> Registration        active, standby or parked; waits while its client has too many parked
    place    -> Placement           the listener that was told of a sender, and the sender's ticket
    came, did_not_come              what became of it: two that did not come in a row depose a listener
    release                         the sender's connection has ended, or its request is answered
    unregister                      the listener's control channel has ended

Surplus listeners of one client are parked, not refused: hyco-ws answers every refusal with two new attempts, and
comes back with a thousand control channels after an outage of a second. A parked listener is counted as nobody and
takes the next free place. What a client opens beyond `PARKED_PER_CLIENT` waits unanswered. A client is told by its
address, its rule and the GUID that it gives itself; as that may be a new one each time, one address and rule may have
`SURPLUS` parked and waiting ones, on all entities together, and more are refused.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol

from trunkline.protocol.errors import ListenerQuotaExceeded, ListenersExcluded, NoListener, QuotaExceeded, ServerBusy
from trunkline.protocol.limits import Limits
from trunkline.protocol.messages import RemoteEndpoint
from trunkline.protocol.records import record

# Listeners of one client over `max_listeners` that get a control channel all the same.
PARKED_PER_CLIENT = 64

# Parked and waiting listeners of one address and rule, on all entities; an open socket each.
SURPLUS = 4_096

# A listener that lets so many senders in a row wait in vain is passed over, for so many seconds.
STRIKES = 2
PASSED_OVER_FOR = 60.0


@record
class PlainRequest:
    """What a listener is told of a plain HTTP request; see `trunkline.protocol.messages.Request`."""

    method: str
    target: str = field(repr=False)
    # The whole body, empty for none; None: the listener is told the address alone, and fetches the rest there.
    body: bytes | None = field(repr=False)


@record
class Offer:
    """A sender that wants a listener."""

    # Names the sender's connection within the node; also its ticket. Not shown: it may be the secret.
    ticket: str = field(repr=False)
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
    # None: it wants a connection.
    request: PlainRequest | None = None


@record
class Placement:
    """A listener was told of a sender."""

    entity: str
    listener: str
    ticket: str = field(repr=False)


# Address, rule and GUID: who is taken for the same client.
Client = tuple[str, str, str | None]


class Listener(Protocol):
    """A control channel, as far as the directory needs to know it."""

    @property
    def id(self) -> str:
        """Names the registration within the node."""

    @property
    def guid(self) -> str | None:
        """The GUID that the listener gave itself (`sb-hc-id`), in lower case."""

    @property
    def client(self) -> Client:
        """Who is taken for the same client."""

    def deliver(self, offer: Offer) -> bool:
        """Tell it of a sender; False when it cannot be told. Raises HeadersTooLarge."""


@dataclass(slots=True, eq=False)
class Registration:
    """A listener in the directory."""

    entity: str
    listener: Listener
    # As it was when it came: a renewed token may be of another rule.
    client: Client
    # Has a control channel and no place: is never chosen.
    parked: bool = False
    # Counted as parked or waiting.
    is_surplus: bool = False
    # Senders that waited for it in vain since it last came.
    strikes: int = 0
    # Until when it is passed over while there are others; seconds on the directory's clock.
    passed_over_until: float = 0.0
    # Senders whose connections it has.
    tickets: set[str] = field(default_factory=set)
    # Plain HTTP requests that it was told of and that are not over.
    requests: set[str] = field(default_factory=set)
    # Senders that it was told of since it came.
    offers: int = 0

    def __repr__(self) -> str:
        state = "parked" if self.parked else "registered"
        return f"<Registration {self.listener.id} {state} tickets={len(self.tickets)} requests={len(self.requests)}>"

    @property
    def load(self) -> int:
        """How much it has to do, for `balanced`."""
        return len(self.tickets) + len(self.requests)


@dataclass(frozen=True, slots=True)
class Standing:
    """How a listener stands, for people."""

    entity: str
    listener: Listener
    # active: the next sender is offered to it, or to one like it; standby: only when no active one is there;
    # parked: it has a control channel and no place; waiting: its handshake is not answered.
    state: Literal["active", "standby", "parked", "waiting"]
    # Senders that were offered to it and wait, or whose connections it has.
    connections: int
    # Senders that it was told of since it came.
    offers: int
    # Plain HTTP requests that it was told of and that are not over.
    requests: int = 0


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
            QuotaExceeded: the entity has `max_senders`, or `max_requests`.
            NoListener: nobody is there; ListenersExcluded: somebody is, and the sender does not want it.
            HeadersTooLarge: the offer cannot be told to any client.
            ServerBusy: the directory cannot decide now, or the listeners take no more requests for the moment.
        """

    async def came(self, placement: Placement) -> None:
        """The listener opened the address, to accept or to reject."""

    async def did_not_come(self, placement: Placement) -> bool:
        """The listener let it expire. True when somebody else is to be asked from now on."""

    async def release(self, ticket: str, entity: str) -> None:
        """The sender's connection has ended, or never came to be."""

    async def take_limits(self, entity: str, limits: Limits) -> None:
        """The limits of an entity are others: parked listeners may have room now. Nobody loses a place."""

    def listener_count(self, entity: str) -> int:
        """Registered listeners, without parked ones."""

    async def standings(self) -> list[Standing]:
        """Every listener, with parked and waiting ones: by entity, each in the order in which senders are offered.

        Raises:
            ServerBusy: the directory cannot tell now.
        """


class ListenerCounts(NamedTuple):
    """How many listeners one entity has, of each kind."""

    registered: int
    parked: int
    waiting: int


class _Roster:
    """Who is there for one entity."""

    __slots__ = ("most_listeners", "parked", "policy", "registered", "requests", "tickets", "turn", "waiting")

    def __init__(self) -> None:
        # `listener_policy` as whoever asked last had it.
        self.policy = ""
        # `max_listeners` as whoever asked last had it; 0 is no limit.
        self.most_listeners = 0
        # In the order in which they come into their turn; under `active-standby` the first is active.
        self.registered: list[Registration] = []
        self.parked: list[Registration] = []
        # Handshakes that wait to be parked or registered: by client, in order. No client without one.
        self.waiting: dict[Client, dict[Registration, asyncio.Future[None]]] = {}
        # Senders: the listener that has each, None while there is none.
        self.tickets: dict[str, Registration | None] = {}
        # Plain HTTP requests that are not over: the listener that was told.
        self.requests: dict[str, Registration | None] = {}
        # Counts placements, for `round-robin`.
        self.turn = 0

    @property
    def is_empty(self) -> bool:
        return not (self.registered or self.parked or self.waiting or self.tickets or self.requests)


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
        # How many are parked or wait, by address and rule; none with 0.
        self._surplus: Counter[tuple[str, str]] = Counter()

    def __repr__(self) -> str:
        listeners = sum(len(roster.registered) for roster in self._rosters.values())
        return f"<LocalDirectory entities={len(self._rosters)} listeners={listeners}>"

    async def register(self, entity: str, listener: Listener, limits: Limits) -> Registration:
        roster = self._rosters.setdefault(entity, _Roster())
        registration = Registration(entity, listener, listener.client)
        self._note_limits(roster, limits)
        if _has_room(roster):
            roster.registered.append(registration)
        elif not any(each.client == registration.client for each in (*roster.registered, *roster.parked)):
            raise ListenerQuotaExceeded(
                f"QuotaExceeded: The endpoint has {limits.max_listeners} listeners, which is its maximum "
                "(max_listeners); close one, or raise it"
            )
        else:
            self._count_surplus(registration)
            if _may_park(roster, registration.client):
                _park(roster, registration)
            else:
                await self._wait(roster, registration)
        return registration

    def _count_surplus(self, registration: Registration) -> None:
        origin = registration.client[:2]
        if self._surplus[origin] >= SURPLUS:
            raise ListenerQuotaExceeded(
                f"QuotaExceeded: Your address and rule have {SURPLUS} listeners parked or waiting for a place already"
            )
        self._surplus[origin] += 1
        registration.is_surplus = True

    def _is_no_surplus(self, registration: Registration) -> None:
        """It has its place, or is gone; a second time does nothing."""
        if registration.is_surplus:
            registration.is_surplus = False
            origin = registration.client[:2]
            self._surplus[origin] -= 1
            if not self._surplus[origin]:
                del self._surplus[origin]

    async def _wait(self, roster: _Roster, registration: Registration) -> None:
        """Wait for a place or a parking place, which `_settle` gives."""
        queue = roster.waiting.setdefault(registration.client, {})
        queue[registration] = asyncio.get_running_loop().create_future()
        try:
            await queue[registration]
        except asyncio.CancelledError:
            # It may have been given a place in the moment in which it left.
            self._remove(roster, registration)
            raise

    async def unregister(self, registration: Registration) -> None:
        roster = self._rosters.get(registration.entity)
        if roster is not None:
            self._remove(roster, registration)

    def _remove(self, roster: _Roster, registration: Registration) -> None:
        """Take it off, wherever it stands, and give what is free to those who wait; a second time does nothing."""
        queue = roster.waiting.get(registration.client, {})
        if registration in queue:
            del queue[registration]
            if not queue:
                del roster.waiting[registration.client]
        elif registration in roster.parked:
            roster.parked.remove(registration)
        elif registration in roster.registered:
            roster.registered.remove(registration)
        self._is_no_surplus(registration)
        self._settle(roster)
        self._forget_if_empty(registration.entity, roster)

    def _note_limits(self, roster: _Roster, limits: Limits) -> None:
        roster.policy = limits.listener_policy
        if roster.most_listeners != limits.max_listeners:
            roster.most_listeners = limits.max_listeners
            self._settle(roster)

    def _settle(self, roster: _Roster) -> None:
        """Fill free places with parked listeners in their order, and theirs with those of the same client that wait."""
        while roster.parked and _has_room(roster):
            successor = roster.parked.pop(0)
            successor.parked = False
            self._is_no_surplus(successor)
            roster.registered.append(successor)
        for client in list(roster.waiting):
            while client in roster.waiting and (_has_room(roster) or _may_park(roster, client)):
                queue = roster.waiting[client]
                registration = next(iter(queue))
                waiter = queue.pop(registration)
                if not queue:
                    del roster.waiting[client]
                if waiter.done():
                    # Cancelled; its task is about to find that it stands nowhere.
                    continue
                if _has_room(roster):
                    roster.registered.append(registration)
                    self._is_no_surplus(registration)
                else:
                    _park(roster, registration)
                waiter.set_result(None)

    async def place(self, offer: Offer, exclude: frozenset[str]) -> Placement:
        roster = self._rosters.get(offer.entity)
        if roster is None:
            roster = self._rosters[offer.entity] = _Roster()
        try:
            self._note_limits(roster, offer.limits)
            wants_connection = offer.request is None
            ledger = roster.tickets if wants_connection else roster.requests
            if offer.ticket not in ledger:
                _check_room(offer, len(ledger))
            wanted = self._in_order(roster, offer, exclude)
            for registration in wanted:
                if registration.listener.deliver(offer):
                    roster.turn += 1
                    before = ledger.get(offer.ticket)
                    if before is not None:
                        # It was offered to that one, which did not come or was lost.
                        before.tickets.discard(offer.ticket)
                        before.requests.discard(offer.ticket)
                    ledger[offer.ticket] = registration
                    (registration.tickets if wants_connection else registration.requests).add(offer.ticket)
                    registration.offers += 1
                    return Placement(offer.entity, registration.listener.id, offer.ticket)
            if wanted and not wants_connection:
                # They are there, and have not read what they were told. A request can wait for that.
                raise ServerBusy("ServerBusy: The listeners do not read the requests that they are sent")
            raise NoListener(status=offer.limits.no_listener_status)
        finally:
            self._forget_if_empty(offer.entity, roster)

    def _in_order(self, roster: _Roster, offer: Offer, exclude: frozenset[str]) -> list[Registration]:
        """Who may be told of this sender, the one to be told first in front."""
        if len(roster.registered) == 1 and not exclude and offer.allowed is None and not offer.disallowed:
            return roster.registered.copy()
        present = [each for each in roster.registered if each.listener.id not in exclude]
        wanted = [each for each in present if _is_wanted(each.listener.guid, offer)]
        if present and not wanted:
            raise ListenersExcluded()
        if offer.limits.listener_policy == "round-robin" and wanted:
            first = roster.turn % len(wanted)
            wanted = wanted[first:] + wanted[:first]
        elif offer.limits.listener_policy == "balanced":
            wanted.sort(key=lambda each: (each.load, self._chance.random()))
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
        registered = self._rosters[placement.entity].registered
        if registration.passed_over_until <= self._clock():
            registration.strikes += 1
            if registration.strikes < STRIKES:
                return False
            registration.strikes = 0
            registration.passed_over_until = self._clock() + PASSED_OVER_FOR
            registered.remove(registration)
            registered.append(registration)
        # Else it has been passed over already, and this sender was told to wait for it before.
        return len(registered) > 1

    def _find(self, placement: Placement) -> Registration | None:
        roster = self._rosters.get(placement.entity)
        registered = roster.registered if roster is not None else []
        return next((each for each in registered if each.listener.id == placement.listener), None)

    async def release(self, ticket: str, entity: str) -> None:
        roster = self._rosters.get(entity)
        if roster is None:
            return
        registration = roster.tickets.pop(ticket, None) or roster.requests.pop(ticket, None)
        if registration is not None:
            registration.tickets.discard(ticket)
            registration.requests.discard(ticket)
        self._forget_if_empty(entity, roster)

    async def take_limits(self, entity: str, limits: Limits) -> None:
        roster = self._rosters.get(entity)
        if roster is not None:
            self._note_limits(roster, limits)

    def listener_count(self, entity: str) -> int:
        roster = self._rosters.get(entity)
        return len(roster.registered) if roster is not None else 0

    async def standings(self) -> list[Standing]:
        now = self._clock()
        found: list[Standing] = []

        def add(registration: Registration, state: Literal["active", "standby", "parked", "waiting"]) -> None:
            tickets, offers = len(registration.tickets), registration.offers
            requests = len(registration.requests)
            found.append(Standing(registration.entity, registration.listener, state, tickets, offers, requests))

        for entity in sorted(self._rosters):
            roster = self._rosters[entity]
            in_order = sorted(roster.registered, key=lambda each: each.passed_over_until > now)
            all_passed_over = bool(in_order) and in_order[0].passed_over_until > now
            for place, registration in enumerate(in_order):
                is_passed_over = registration.passed_over_until > now and not all_passed_over
                is_behind = roster.policy == "active-standby" and place > 0
                add(registration, "standby" if is_passed_over or is_behind else "active")
            for registration in roster.parked:
                add(registration, "parked")
            for queue in roster.waiting.values():
                for registration in queue:
                    add(registration, "waiting")
        return found

    def counts(self) -> dict[str, int]:
        """Listeners registered, parked and waiting, and senders with a ticket, for `/readyz`."""
        rosters = self._rosters.values()
        return {
            "listeners": sum(len(each.registered) for each in rosters),
            "parked_listeners": sum(len(each.parked) for each in rosters),
            "waiting_listeners": sum(len(queue) for each in rosters for queue in each.waiting.values()),
            "senders": sum(len(each.tickets) for each in rosters),
        }

    def counts_by_entity(self) -> dict[str, ListenerCounts]:
        """Those of each entity that has any, or a sender."""
        return {
            entity: ListenerCounts(
                len(roster.registered), len(roster.parked), sum(len(queue) for queue in roster.waiting.values())
            )
            for entity, roster in self._rosters.items()
        }

    def _forget_if_empty(self, entity: str, roster: _Roster) -> None:
        if roster.is_empty and self._rosters.get(entity) is roster:
            del self._rosters[entity]


def _check_room(offer: Offer, there: int) -> None:
    """Raise QuotaExceeded when the entity has as many senders, or requests, as it may."""
    limits = offer.limits
    most, name, what = (
        (limits.max_senders, "max_senders", "sender connections")
        if offer.request is None
        else (limits.max_requests, "max_requests", "requests in flight")
    )
    if most and there >= most:
        raise QuotaExceeded(
            f"QuotaExceeded: The endpoint has {most} {what}, which is its maximum ({name}); "
            "try again when one has ended"
        )


def _has_room(roster: _Roster) -> bool:
    return not roster.most_listeners or len(roster.registered) < roster.most_listeners


def _may_park(roster: _Roster, client: Client) -> bool:
    return sum(each.client == client for each in roster.parked) < PARKED_PER_CLIENT


def _park(roster: _Roster, registration: Registration) -> None:
    registration.parked = True
    roster.parked.append(registration)


def _is_wanted(guid: str | None, offer: Offer) -> bool:
    if offer.allowed is not None and guid not in offer.allowed:
        return False
    return guid is None or guid not in offer.disallowed


def guids(value: str | None) -> frozenset[str] | None:
    """A comma-separated list of GUIDs in lower case; None when the header is absent."""
    if value is None:
        return None
    return frozenset(part.strip().lower() for part in value.split(",") if part.strip())
