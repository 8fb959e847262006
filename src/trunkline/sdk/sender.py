"""The sender: makes connections to whoever listens on a hybrid connection, or on one of several."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import logging
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from trunkline.protocol import urls
from trunkline.protocol.errors import (
    BadGateway,
    ConnectionLost,
    ConnectionNotEstablished,
    InvalidSetting,
    NoListener,
    QuotaExceeded,
    RelayError,
    ServerBusy,
)
from trunkline.protocol.limits import HEARTBEAT
from trunkline.sdk.clock import SYSTEM_CLOCK, Clock
from trunkline.sdk.connection import MAX_MESSAGE_SIZE, Connection
from trunkline.sdk.endpoint import TLS, Endpoint, read_endpoint
from trunkline.sdk.proxy import ProxySetting
from trunkline.sdk.reconnect import Backoff, Retry, may_pass
from trunkline.sdk.websocket import USER_AGENT, Headers, dial

log = logging.getLogger("trunkline.sdk.sender")

#: Seconds for `HybridConnectionClient.create_connection` unless told otherwise: longer than the relay waits for a
#: listener, so that the relay's own answer is what one sees (.NET and Java wait as long).
CONNECT_TIMEOUT = 70.0

#: Refusals by one hybrid connection that say nothing about the next: nobody listens there, or nobody has room.
_TRY_NEXT = (NoListener, ConnectionNotEstablished, ConnectionLost, BadGateway, ServerBusy, QuotaExceeded)


class HybridConnectionClient:
    """Connects to listeners through the relay.

        client = HybridConnectionClient(connection_string)
        async with await client.create_connection() as connection:
            await connection.send("hello")

    Given several hybrid connections, it spreads its connections over them: in turn, or by a key, so that the same key
    comes to the same one as long as somebody listens there. One without a listener, or without room, is skipped. That
    is how a service grows beyond what one hybrid connection takes.

    A client holds no connection of its own; it needs no closing.

    Args:
        address: ``sb://host[:port]/path``, or with ``wss``, ``https``, ``ws``, ``http``; or a connection string; or
            several of them.
        entity_path: path of the hybrid connection, when `address` does not hold it.
        entities: paths of several hybrid connections of one namespace, instead of `entity_path`.
        token_provider: gives tokens with the right Send: a `TokenProvider` or a credential of azure-identity. None
            with an address without a rule, for hybrid connections that allow anonymous senders.
        key_name, key: an authorization rule, instead of `token_provider`.
        ssl: TLS settings; None for the platform's; False for none, with a connection string or ``sb://``.
        proxy: ``http://[user:password@]host:port`` or ``socks5://...``; None to look at ``HTTPS_PROXY``, ``ALL_PROXY``,
            ``NO_PROXY`` and so on (see `trunkline.sdk.proxy`); False for none.
        heartbeat: seconds between pings on a silent connection; 0 for none.
        max_message_size: bytes of the longest message that `Connection.recv` takes; None for no limit.

    Raises:
        InvalidConnectionString, InvalidUrl, InvalidSetting: the arguments cannot be used.
    """

    def __init__(
        self,
        address: str | Sequence[str],
        *,
        entity_path: str | None = None,
        entities: Sequence[str] | None = None,
        token_provider: Any = None,
        key_name: str | None = None,
        key: str | None = None,
        ssl: TLS = None,
        proxy: ProxySetting = None,
        heartbeat: float = HEARTBEAT,
        max_message_size: int | None = MAX_MESSAGE_SIZE,
        _clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        if entities is not None and entity_path is not None:
            raise InvalidSetting("Give either entity_path or entities")
        if isinstance(entities, str):
            raise InvalidSetting("entities is a list of paths; for a single one use entity_path")
        addresses = [address] if isinstance(address, str) else address
        self._endpoints = [
            read_endpoint(
                one,
                entity_path=path,
                token_provider=token_provider,
                key_name=key_name,
                key=key,
                ssl=ssl,
                proxy=proxy,
            )
            for one in addresses
            for path in (entities if entities is not None else [entity_path])
        ]
        if not self._endpoints or not all(endpoint.path for endpoint in self._endpoints):
            raise InvalidSetting(
                "No hybrid connection is named: give entity_path, entities, or EntityPath in the connection string"
            )
        if heartbeat < 0:
            raise InvalidSetting("heartbeat must not be negative")
        self._heartbeat = heartbeat
        self._max_message_size = max_message_size
        self._clock = _clock
        self._turn = itertools.count()

    def __repr__(self) -> str:
        return f"<HybridConnectionClient {', '.join(map(str, self._endpoints))}>"

    @property
    def entity_paths(self) -> tuple[str, ...]:
        """Paths of the hybrid connections, in the order given."""
        return tuple(endpoint.path for endpoint in self._endpoints)

    async def create_connection(
        self,
        *,
        headers: Mapping[str, str] | Headers | None = None,
        subprotocols: Sequence[str] = (),
        path_suffix: str = "",
        query: str = "",
        timeout: float | None = CONNECT_TIMEOUT,
        retry: Retry | None = None,
        key: str | None = None,
    ) -> Connection:
        """Connect to a listener.

        Args:
            headers: for the listener, a mapping or pairs; names keep their case.
            subprotocols: WebSocket subprotocols to offer, in order of preference; see `Connection.subprotocol`.
            path_suffix: further path for the listener, percent-encoded.
            query: query for the listener, without ``?``, percent-encoded.
            timeout: seconds for everything, all attempts included; None for no limit.
            retry: try again when the failure may pass; None for one attempt. With several hybrid connections, each
                attempt goes through all of them.
            key: with several hybrid connections, decides which comes first.

        Raises:
            AuthorizationFailed: the token is not accepted (401).
            AccessDenied: the token does not confer Send (403).
            EndpointNotFound: there is no such hybrid connection (404).
            NoListener: nobody listens on it.
            ConnectionNotEstablished: a listener is there and did not come (504).
            QuotaExceeded: it has as many senders as it may (429).
            ServerBusy: the relay or the listener is overloaded (503).
            ConnectionRejected: the listener refused, in its own words.
            RelayError: any other refusal; see `trunkline.protocol.errors`.
            InvalidSetting: an argument cannot be sent.
            OSError: the relay is not reachable; `ssl.SSLError` when TLS fails; `ProxyError` when a proxy is in the way.
            TimeoutError: not done within `timeout`; its ``__cause__`` is the last error.
        """
        pairs = list(headers.items() if isinstance(headers, Mapping) else headers or ())
        retry = retry or Retry(attempts=1)
        backoff = Backoff(self._clock.random, retry.delays)
        attempts = 0
        last_error: Exception | None = None
        deadline = asyncio.timeout(timeout)
        try:
            async with deadline:
                while True:
                    try:
                        return await self._try_each(self._order(key), pairs, subprotocols, path_suffix, query)
                    except (RelayError, OSError) as error:
                        attempts += 1
                        last_error = error
                        if attempts >= retry.attempts or not may_pass(error):
                            raise
                    await self._clock.sleep(backoff.next_delay())
        except TimeoutError:
            if not deadline.expired():
                raise
            if last_error is not None:
                raise TimeoutError(f"No connection within {timeout:g} s: {last_error}") from last_error
            routes = ", ".join(endpoint.route for endpoint in self._endpoints)
            raise TimeoutError(f"No connection to {routes} within {timeout:g} s") from None

    def _order(self, key: str | None) -> list[Endpoint]:
        """The hybrid connections in the order to try them."""
        if key is None:
            first = next(self._turn) % len(self._endpoints)
            return self._endpoints[first:] + self._endpoints[:first]
        # Rendezvous hashing: adding or removing one hybrid connection moves only the keys that belong to it, and
        # senders that know nothing of each other agree.
        return sorted(self._endpoints, key=lambda endpoint: _weight(key, endpoint.path), reverse=True)

    async def _try_each(
        self,
        endpoints: Sequence[Endpoint],
        headers: list[tuple[str, str]],
        subprotocols: Sequence[str],
        path_suffix: str,
        query: str,
    ) -> Connection:
        """Connect to the first of `endpoints` that takes us."""
        for endpoint in endpoints[:-1]:
            try:
                return await self._connect(endpoint, headers, subprotocols, path_suffix, query)
            except _TRY_NEXT as error:
                log.info("%s: %s; trying the next hybrid connection", endpoint, error)
        return await self._connect(endpoints[-1], headers, subprotocols, path_suffix, query)

    async def _connect(
        self,
        endpoint: Endpoint,
        headers: list[tuple[str, str]],
        subprotocols: Sequence[str],
        path_suffix: str,
        query: str,
    ) -> Connection:
        """Connect to one hybrid connection, once."""
        tracking_id = str(uuid.uuid4())
        token = await endpoint.token()
        try:
            link, subprotocol = await dial(
                urls.connect_url(
                    endpoint.base, endpoint.path, suffix=path_suffix, query=query.removeprefix("?"), id=tracking_id
                ),
                timeout=None,
                headers=[("Relay-User-Agent", USER_AGENT), *headers],
                token=token.text if token is not None else None,
                subprotocols=subprotocols,
                ssl=endpoint.ssl,
                proxy=endpoint.proxy,
                clock=self._clock,
            )
        except RelayError as error:
            error.entity = error.entity or endpoint.path
            error.tracking_id = error.tracking_id or tracking_id
            raise
        return Connection(
            link,
            clock=self._clock,
            heartbeat=self._heartbeat,
            max_message_size=self._max_message_size,
            subprotocol=subprotocol,
            tracking_id=tracking_id,
            entity=endpoint.path,
        )


def _weight(key: str, path: str) -> bytes:
    """The same on every computer and in every run."""
    return hashlib.blake2b(path.encode(), key=hashlib.blake2b(key.encode()).digest(), digest_size=8).digest()
