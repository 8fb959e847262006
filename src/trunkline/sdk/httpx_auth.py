"""Requests with httpx through a hybrid connection: its authentication class.

    auth = RelayAuth(connection_string)
    async with httpx.AsyncClient(base_url=auth.base_url, auth=auth) as client:
        answer = await client.get("orders/17")

Needs httpx, which ``pip install "trunkline[httpx]"`` brings.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator
from typing import Any, Literal

import httpx

from trunkline.sdk.sender_token import OTHER_TOKEN_HEADER, TOKEN_HEADER, SenderToken


class RelayAuth(httpx.Auth):
    """Gives each request to the relay a token with the right Send, made anew before it expires.

    Requests to any other host get none. The token goes into ``Authorization``, which httpx does not send on when it
    follows a redirect to another host. A request that has an ``Authorization`` of its own, for the application, keeps
    it, and the token goes into ``ServiceBusAuthorization``; httpx would send that on, so such a client must not follow
    redirects of an application that is not trusted.

    Args:
        address: ``sb://host[:port]/path``, or with ``https``, ``http`` and so on; or a connection string.
        entity_path: path of the hybrid connection, when `address` does not hold it; without any the token is for the
            whole namespace.
        token_provider: gives tokens with the right Send: a `TokenProvider` or a credential of azure-identity.
        key_name, key: an authorization rule, instead of `token_provider`.
        ssl: False for a relay without TLS, with a connection string or ``sb://``. The client checks certificates.

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
    ) -> None:
        self._token = SenderToken(
            address, entity_path=entity_path, token_provider=token_provider, key_name=key_name, key=key, ssl=ssl
        )

    def __repr__(self) -> str:
        return f"<RelayAuth {self.base_url}>"

    @property
    def base_url(self) -> str:
        """Where the hybrid connection takes plain requests: ``https://host[:port]/path``."""
        return self._token.base_url

    def sync_auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        """See `httpx.Auth`."""
        if self._token.is_for(str(request.url)):
            _authorize(request, self._token.get_blocking())
        yield request

    async def async_auth_flow(self, request: httpx.Request) -> AsyncGenerator[httpx.Request, httpx.Response]:
        """See `httpx.Auth`."""
        if self._token.is_for(str(request.url)):
            _authorize(request, await self._token.get())
        yield request


def _authorize(request: httpx.Request, token: str) -> None:
    request.headers[OTHER_TOKEN_HEADER if TOKEN_HEADER in request.headers else TOKEN_HEADER] = token
