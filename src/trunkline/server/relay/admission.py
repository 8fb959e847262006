"""Whether somebody may listen, connect or send a plain HTTP request, decided from memory, in this order:

    can its target be read, is it a WebSocket where one must be     400, 404
    who asks: the token, also when the entity does not exist        401
    is there such an entity                                         404
    is it enabled, has the token the right                          403

Room for one more (429, 403, parking) and a listener to take the sender (504) are for the directory. So nobody without
a good token learns which entities exist. A listener always needs a token; a sender needs none where the entity has
`requires_client_authorization = false`, and then its token is dropped unread.

What is below `/$hc/` is a WebSocket. Any other path is a sender's: a plain HTTP request, or a WebSocket as browsers
and web frameworks open one. The entity is the one whose own host was asked, and then the whole path is the sender's;
else it is the longest leading part of the path.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from trunkline.protocol.errors import (
    AuthorizationFailed,
    EndpointDisabled,
    EndpointNotFound,
    ExpiredToken,
    InvalidRequest,
    NotAWebSocket,
    RelayError,
    clean_phrase,
)
from trunkline.protocol.limits import ENTITY_PATH_LIMIT, Limits
from trunkline.protocol.records import record
from trunkline.protocol.sas import Right
from trunkline.protocol.urls import (
    Action,
    HttpTarget,
    RelayTarget,
    match_entity,
    parse_target,
    split_authority,
    tracking_guid,
)
from trunkline.protocol.urls import tracking_id as tracking_id_of
from trunkline.server.entities.authorization import Authorizer, Grant
from trunkline.server.entities.catalog import Catalog
from trunkline.server.entities.model import HybridConnection, Namespace
from trunkline.server.relay import runtime_information
from trunkline.server.relay.frontend import Exchange
from trunkline.server.relay.request_head import RequestHead

_TOKEN_HEADER = "ServiceBusAuthorization"
_STANDARD_TOKEN_HEADER = "Authorization"

# Says what stands in front of the path that a listener sees; proxies such as Traefik use it.
PREFIX_HEADER = "X-Forwarded-Prefix"

# Proxies speak HTTP/1.0 unless they are told otherwise, and drop the upgrade with it; `trunkline doctor` reads it.
_NOT_A_WEBSOCKET_10 = f"{NotAWebSocket.default_message}, and this one is HTTP/1.0: let the proxy speak HTTP/1.1"

# What stands in front of the path of an entity in a request target.
_FRONT = re.compile(r"(?:[a-z][a-z0-9+.-]*://[^/?]*)?/*(?:(?:\$|%24)hc/+)?", re.IGNORECASE)


@record
class Admitted:
    """A listener or sender that may go on."""

    # None: a sender's plain HTTP request.
    action: Action | None
    namespace: Namespace
    entity: HybridConnection
    limits: Limits
    tracking_id: str
    # What let it in; None for an anonymous sender.
    grant: Grant | None
    # What the sender's URL said beyond the entity, as sent; empty for a listener.
    suffix: str
    query: str
    # The GUID that the peer gave itself, in lower case; None without one.
    guid: str | None
    # The header that held the token that was taken; None when the query did, or nothing.
    token_header: str | None
    # The host that was asked, in lower case without port: how the relay calls itself in `Via`.
    host: str
    # Whether that is a host of the entity itself, so that the path does not name the entity.
    own_host: bool

    @property
    def is_request(self) -> bool:
        """Whether it is a plain HTTP request."""
        return self.action is None

    @property
    def path(self) -> str:
        """Namespace and entity, for people."""
        return f"{self.namespace.name}/{self.entity.name}"


@dataclass(slots=True)
class Subject:
    """What a request is about, as far as it was understood: for whoever counts and tells its refusal."""

    tracking_id: str
    # None until the target was read, and for a plain HTTP request.
    action: Action | None = None
    # Whether it is a plain HTTP request for a hybrid connection.
    is_request: bool = False
    # Whether it asks the relay itself; see `runtime_information`.
    is_inquiry: bool = False
    # None where there is none.
    namespace: Namespace | None = None
    entity: HybridConnection | None = None


class _Place(NamedTuple):
    """What a request asks for."""

    namespace: Namespace
    # None: there is no such.
    entity: HybridConnection | None
    # In force on the entity, or the namespace.
    limits: Limits
    suffix: str
    # As in `Admitted`.
    host: str
    own_host: bool


@dataclass(frozen=True, slots=True)
class Inquiry:
    """Somebody with a right who asks the relay what it knows of a hybrid connection."""

    entity: HybridConnection
    limits: Limits
    tracking_id: str


@dataclass(frozen=True, slots=True)
class Arrival:
    """A listener at a rendezvous address: the URL is its right."""

    target: RelayTarget = field(repr=False)
    tracking_id: str


class Admission:
    """Reads what a peer wants and checks that it may.

    Args:
        catalog: the entities.
        authorizer: checks tokens.
        wall_clock: seconds since the epoch; tokens and timestamps are made of them.
        new_guid: makes a tracking id for a peer that brought none.
    """

    def __init__(
        self,
        catalog: Catalog,
        authorizer: Authorizer,
        *,
        wall_clock: Callable[[], float],
        new_guid: Callable[[], str],
    ) -> None:
        self._catalog = catalog
        self._authorizer = authorizer
        self._wall_clock = wall_clock
        self._new_guid = new_guid

    def admit(self, exchange: Exchange) -> Admitted | Arrival | Inquiry:
        """Decide about one request; `exchange.subject` says afterwards what it is about.

        Raises:
            RelayError: it is refused; `tracking_id` is set, for the answer and the log.
        """
        # The same one when it is asked again.
        tracking_id = exchange.subject.tracking_id if exchange.subject is not None else self._new_guid()
        exchange.subject = subject = Subject(tracking_id)
        try:
            target = parse_target(exchange.head.target)
            if isinstance(target, HttpTarget):
                if exchange.is_websocket:
                    subject.action = Action.CONNECT
                elif runtime_information.is_inquiry(exchange.head):
                    subject.is_inquiry = True
                    return self._inquire(exchange.head, target, subject)
                else:
                    subject.is_request = True
                return self._admit(exchange.head, target, subject)
            if not exchange.is_websocket:
                raise NotAWebSocket(_NOT_A_WEBSOCKET_10 if exchange.head.version == "1.0" else "")
            subject.action = target.action
            subject.tracking_id = tracking_id = tracking_id_of(target.id) or tracking_id
            if target.action in (Action.ACCEPT, Action.REQUEST):
                return Arrival(target, tracking_id)
            return self._admit(exchange.head, target, subject)
        except RelayError as error:
            error.tracking_id = tracking_id
            raise

    def _admit(self, head: RequestHead, target: RelayTarget | HttpTarget, subject: Subject) -> Admitted:
        place = self._locate(head, target, subject)
        entity, action = place.entity, subject.action
        right = Right.LISTEN if action is Action.LISTEN else Right.SEND
        anonymous = right is Right.SEND and entity is not None and not place.limits.requires_client_authorization
        grant: Grant | None = None
        token_header: str | None = None
        if not anonymous:
            grant, token_header = self._authenticate(head, target, place)
        if entity is None:
            raise _does_not_exist(target)
        if grant is not None:
            if right is Right.LISTEN and self._wall_clock() > grant.expires_at + place.limits.token_grace:
                # Good enough for clocks that differ, and a channel with it would be closed at once, again and again.
                raise ExpiredToken()
            grant.require(right)
        if not entity.enabled:
            raise EndpointDisabled()
        if action is not Action.LISTEN:
            _check_kind(entity, is_request=subject.is_request)
        if action is Action.CONNECT and isinstance(target, HttpTarget) and not place.limits.plain_path_websockets:
            raise InvalidRequest("A WebSocket goes to /$hc/ and the path of a hybrid connection")
        listens = right is Right.LISTEN
        id = target.id if isinstance(target, RelayTarget) else None
        return Admitted(
            action,
            place.namespace,
            entity,
            place.limits,
            subject.tracking_id,
            grant,
            suffix="" if listens else place.suffix,
            query="" if listens else target.query,
            guid=(tracking_guid(id) or "").lower() or None,
            token_header=token_header,
            host=place.host,
            own_host=place.own_host,
        )

    def _inquire(self, head: RequestHead, target: HttpTarget, subject: Subject) -> Inquiry:
        place = self._locate(head, target, subject)
        grant, _ = self._authenticate(head, target, place)
        if place.entity is None or place.suffix:
            raise _does_not_exist(target)
        # Whoever may listen; a sender's key is given to others, and what is told is not for them.
        grant.require(Right.LISTEN)
        if head.method not in ("GET", "HEAD"):
            raise InvalidRequest(f"The relay is asked with GET, not with {head.method}")
        return Inquiry(place.entity, place.limits, subject.tracking_id)

    def _locate(self, head: RequestHead, target: RelayTarget | HttpTarget, subject: Subject) -> _Place:
        """What was asked for, with the subject told of it."""
        authority = head.get("Host") or ""
        host = split_authority(authority)[0].removesuffix(".")
        # Given whole: an IPv6 address without its brackets could not be told from a host with a port.
        namespace, own = self._catalog.place(authority)
        if namespace is None:
            raise EndpointNotFound(f"Endpoint does not exist: no namespace of this relay is called {host}")
        own_host = own is not None and isinstance(target, HttpTarget)
        entity, suffix = (own, target.raw_path) if own_host else self._entity(namespace, target)
        if subject.action is Action.LISTEN and suffix:
            # The path of a listener has no rest.
            entity = None
        subject.namespace, subject.entity = namespace, entity
        return _Place(namespace, entity, self._catalog.limits(namespace, entity), suffix, host, own_host)

    def _authenticate(
        self, head: RequestHead, target: RelayTarget | HttpTarget, place: _Place
    ) -> tuple[Grant, str | None]:
        """What the token allows, and the header that held it. Raises AuthorizationFailed."""
        token, token_header = find_token(head, target)
        grant = self._authorizer.authenticate(
            place.namespace,
            "/".join(target.segments),
            place.entity,
            token,
            host=place.host,
            limits=place.limits,
            now=self._wall_clock(),
        )
        return grant, token_header

    def _entity(self, namespace: Namespace, target: RelayTarget | HttpTarget) -> tuple[HybridConnection | None, str]:
        """The entity of the longest leading part of the path, and the rest."""

        entity: HybridConnection | None = None

        def exists(path: str) -> bool:
            nonlocal entity
            entity = self._catalog.find(namespace, path)
            return entity is not None

        # It ends with the first that exists.
        found = match_entity(target.segments, target.raw_segments, exists)
        return (None, "") if found is None else (entity, found[1])

    def limits(self, entity_id: str) -> Limits | None:
        """The limits of a hybrid connection as they are now; None when it is gone."""
        entity = self._catalog.get(entity_id)
        namespace = self._catalog.get(entity.namespace_id) if isinstance(entity, HybridConnection) else None
        if not isinstance(entity, HybridConnection) or not isinstance(namespace, Namespace):
            return None
        return self._catalog.limits(namespace, entity)

    def renew(self, entity_id: str, host: str, token: str) -> Grant:
        """Check the token that a listener sent to go on with.

        Raises:
            RelayError: it does not confer Listen on the entity.
        """
        entity = self._catalog.get(entity_id)
        if not isinstance(entity, HybridConnection):
            raise EndpointNotFound
        namespace = self._catalog.get(entity.namespace_id)
        if not isinstance(namespace, Namespace):
            raise EndpointNotFound
        grant = self._authorizer.authenticate(
            namespace,
            entity.name,
            entity,
            token,
            host=host,
            limits=self._catalog.limits(namespace, entity),
            now=self._wall_clock(),
        )
        grant.require(Right.LISTEN)
        return grant

    def early_phrase(self, error: RelayError) -> str:
        """The reason phrase for a peer whose request could not be read: a tracking id, and no address."""
        error.tracking_id = self._new_guid()
        return error.reason_phrase(tracking_id=error.tracking_id, address="sb://", now=self._wall_clock())

    @staticmethod
    def has_failed(head: RequestHead, error: RelayError) -> bool:
        """Whether a refusal says that the peer does not know who it is, or listens where nothing is.

        Both come of wrong settings, and are asked for again and again. A sender may well be early.
        """
        if isinstance(error, AuthorizationFailed):
            return True
        if not isinstance(error, EndpointNotFound):
            return False
        target = parse_target(head.target)
        return isinstance(target, RelayTarget) and target.action is Action.LISTEN

    def refuse(self, exchange: Exchange, error: RelayError, phrase: str = "", *, linger: bool = True) -> None:
        """Answer with an error, in the form that its kind of client reads.

        Args:
            phrase: the reason phrase, where it was made before.
            linger: as in `Exchange.refuse`.
        """
        phrase = phrase or self.phrase(exchange, error)
        if exchange.subject is not None and exchange.subject.is_inquiry:
            runtime_information.refuse(exchange, error, phrase)
        else:
            exchange.refuse(error, phrase, linger=linger)

    def phrase(self, exchange: Exchange, error: RelayError) -> str:
        """The reason phrase of an error: one line that says what, which endpoint, when, and the tracking id."""
        return error.reason_phrase(
            tracking_id=error.tracking_id or self._new_guid(),
            address=address_of(exchange),
            now=self._wall_clock(),
        )


def address_of(exchange: Exchange) -> str:
    """What was asked for, as errors name it: `sb://host/path`, printable, without a query."""
    host = exchange.head.get("Host") or "unknown"
    path = "/" + _FRONT.sub("", exchange.head.target.partition("?")[0], count=1)
    return clean_phrase(f"sb://{host}{path}")


def _does_not_exist(target: RelayTarget | HttpTarget) -> EndpointNotFound:
    # No entity has a longer path, and a client may not read a reason phrase of 30 KiB.
    return EndpointNotFound(f"Endpoint does not exist: {'/'.join(target.segments)[:ENTITY_PATH_LIMIT]}")


def _check_kind(entity: HybridConnection, *, is_request: bool) -> None:
    """Raises InvalidRequest for a kind of sender that the listeners of the entity do not serve.

    It is the sender who has to do otherwise: a 4xx, which no gateway tries again and no monitor takes for a fault.
    """
    if is_request and "http" not in entity.accepts:
        raise InvalidRequest(f"{entity.name} takes WebSockets only (accepts), and this is a plain HTTP request")
    if not is_request and "websocket" not in entity.accepts:
        raise InvalidRequest(f"{entity.name} takes plain HTTP requests only (accepts), and this is a WebSocket")


def find_token(head: RequestHead, target: RelayTarget | HttpTarget) -> tuple[str | None, str | None]:
    """The token of a request and the header that held it.

    The query comes before `ServiceBusAuthorization`, and that before `Authorization`. The first that is there decides:
    a bad one is not made good by the next.
    """
    if target.token is not None:
        return target.token, None
    for name in (_TOKEN_HEADER, _STANDARD_TOKEN_HEADER):
        token = head.get(name)
        if token is not None:
            return token, name
    return None, None


def headers_for_listener(head: RequestHead, token_header: str | None, *, own_host: bool = False) -> dict[str, str]:
    """The sender's headers as `connectHeaders`: all of them, in their spelling, repeated ones joined.

    Left out: the relay's own token, and `Authorization` only where it was the relay's token. With `own_host` the
    listener is told that the public path has no prefix, whatever the sender said of that: web applications make their
    links of it. Otherwise a sender cannot say so: listeners believe it.
    """
    hidden = {_TOKEN_HEADER.lower()} | ({token_header.lower()} if token_header else set())
    if own_host:
        hidden.add(PREFIX_HEADER.lower())
    spelling: dict[str, str] = {}
    joined: dict[str, str] = {}
    for name, value in head.headers:
        lower = name.lower()
        if lower in hidden:
            continue
        if lower not in spelling:
            spelling[lower] = name
            joined[name] = value
        else:
            # RFC 6265 section 5.4 for cookies, RFC 9110 section 5.3 for the rest.
            joined[spelling[lower]] += ("; " if lower == "cookie" else ", ") + value
    prefix = spelling.get(PREFIX_HEADER.lower())
    if own_host:
        joined[PREFIX_HEADER] = "/"
    elif prefix is not None and joined[prefix] == "/":
        del joined[prefix]
    return joined
