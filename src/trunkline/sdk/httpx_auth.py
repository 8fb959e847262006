"""Requests with httpx through a hybrid connection: its authentication class.

    auth = RelayAuth(connection_string)
    async with httpx.AsyncClient(base_url=auth.base_url, auth=auth) as client:
        answer = await client.get("orders/17")

Needs httpx, which ``pip install "trunkline[httpx]"`` brings.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator

import httpx

from trunkline.sdk.sender_token import OTHER_TOKEN_HEADER, TOKEN_HEADER, SenderToken


class RelayAuth(SenderToken, httpx.Auth):
    """Gives each request to the relay a token with the right Send, made anew before it expires.

    Requests to any other host get none. The token goes into ``Authorization``, which httpx does not send on when it
    follows a redirect to another host. A request that has an ``Authorization`` of its own, for the application, keeps
    it, and the token goes into ``ServiceBusAuthorization``; httpx would send that on, so such a client must not follow
    redirects of an application that is not trusted.

    It is made of an address or a connection string, see `SenderToken`; its `base_url` is for the client.
    """

    def sync_auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        """See `httpx.Auth`."""
        if self.is_for(str(request.url)):
            _authorize(request, self.token_blocking())
        yield request

    async def async_auth_flow(self, request: httpx.Request) -> AsyncGenerator[httpx.Request, httpx.Response]:
        """See `httpx.Auth`."""
        if self.is_for(str(request.url)):
            _authorize(request, await self.token())
        yield request


def _authorize(request: httpx.Request, token: str) -> None:
    request.headers[OTHER_TOKEN_HEADER if TOKEN_HEADER in request.headers else TOKEN_HEADER] = token
