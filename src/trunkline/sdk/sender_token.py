"""The token of a sender that makes plain HTTP requests with somebody else's library: kept, renewed, given to the relay.

    request for URL -> is it for the relay? -> header with a token that is good for a while

`trunkline.sdk.httpx_auth` and `trunkline.sdk.requests_auth` are the two libraries' sides of it.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any, Literal
from urllib.parse import quote, urlsplit

from trunkline.protocol.errors import InvalidSetting
from trunkline.sdk.endpoint import Endpoint, read_endpoint
from trunkline.sdk.tokens import Token

#: Seconds of its life that a token must have left; one that lasts less than twice as long is renewed at half.
RENEW_MARGIN = 300.0

#: Where the token goes. Both libraries drop the first when a redirect leads to another host, and the relay takes it off
#: (Azure Relay protocol page, "HTTP requests"). The second is for requests that have the first for the application.
TOKEN_HEADER = "Authorization"
OTHER_TOKEN_HEADER = "ServiceBusAuthorization"


class SenderToken:
    """Tokens for the requests of one sender.

    Args:
        address: ``sb://host[:port]/path``, or with ``https``, ``http`` and so on; or a connection string.
        entity_path: path of the hybrid connection, when `address` does not hold it; without any the tokens are for the
            whole namespace.
        token_provider: gives tokens with the right Send: a `TokenProvider` or a credential of azure-identity.
        key_name, key: an authorization rule, instead of `token_provider`.
        ssl: False for a relay without TLS, with a connection string or ``sb://``. Certificates are for the HTTP client
            to check.

    Raises:
        InvalidConnectionString, InvalidUrl, InvalidSetting: the arguments cannot be used.
    """

    def __init__(
        self,
        address: str,
        *,
        entity_path: str | None = None,
        token_provider: Any = None,
        key_name: str | None = None,
        key: str | None = None,
        ssl: Literal[False] | None = None,
        _time: Callable[[], float] = time.time,
    ) -> None:
        # TLS is the business of whoever makes the request: only whether there is any is read here.
        self._endpoint = _endpoint(address, entity_path, token_provider, key_name, key, ssl)
        if self._endpoint.token_provider is None:
            raise InvalidSetting(
                "A token needs a key: give key_name and key, a token_provider, or a connection string that has one"
            )
        self._time = _time
        self._current: Token | None = None
        self._renew_at = 0.0

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.base_url}>"

    @property
    def base_url(self) -> str:
        """Where the hybrid connection takes plain requests: ``https://host[:port]/path``."""
        return _http_url(self._endpoint)

    def is_for(self, url: str) -> bool:
        """Whether a request to `url` may have the token: it goes to the relay's host, or an entity's own below it."""
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            return False
        if parts.hostname is None or (parts.scheme == "https") is not self._endpoint.secure:
            return False
        default = 443 if self._endpoint.secure else 80
        if (port or default) != (self._endpoint.port or default):
            return False
        return parts.hostname == self._endpoint.host or parts.hostname.endswith(f".{self._endpoint.host}")

    async def token(self) -> str:
        """A token that is good for a while."""
        return self._kept() or self._keep(await self._endpoint.token())

    def token_blocking(self) -> str:
        """The same, from a thread that may wait, also one in which an event loop runs."""
        kept = self._kept()
        if kept is not None:
            return kept
        found: list[Token | BaseException | None] = []

        def make() -> None:
            try:
                found.append(asyncio.run(self._endpoint.token()))
            except BaseException as error:
                found.append(error)

        thread = threading.Thread(target=make, name="trunkline-token")
        thread.start()
        thread.join()
        token = found[0]
        if isinstance(token, BaseException):
            raise token
        return self._keep(token)

    def _kept(self) -> str | None:
        return self._current.text if self._current is not None and self._time() < self._renew_at else None

    def _keep(self, token: Token | None) -> str:
        assert token is not None
        now = self._time()
        self._current = token
        # One without a known end is asked for each time: its maker knows it.
        ends = now if token.expires_at is None else token.expires_at
        self._renew_at = max(ends - RENEW_MARGIN, (now + ends) / 2)
        return token.text


def http_url(address: str, *, entity_path: str | None = None, ssl: Literal[False] | None = None) -> str:
    """Where a hybrid connection takes plain HTTP requests, for the ``base_url`` of an HTTP client.

    Args:
        address: ``sb://host[:port]/path``, or with ``https``, ``http`` and so on; or a connection string.
        entity_path: path of the hybrid connection, when `address` does not hold it.
        ssl: False for no TLS, with a connection string or ``sb://``.

    Raises:
        InvalidConnectionString, InvalidUrl, InvalidSetting: the arguments cannot be used.
    """
    return _http_url(_endpoint(address, entity_path, None, None, None, ssl))


def _endpoint(
    address: str,
    entity_path: str | None,
    token_provider: Any,
    key_name: str | None,
    key: str | None,
    ssl: Literal[False] | None,
) -> Endpoint:
    return read_endpoint(
        address, entity_path=entity_path, token_provider=token_provider, key_name=key_name, key=key, ssl=ssl
    )


def _http_url(endpoint: Endpoint) -> str:
    return f"http{endpoint.base.removeprefix('ws')}/{quote(endpoint.path)}"
