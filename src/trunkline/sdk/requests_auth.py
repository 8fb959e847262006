"""Requests with the library requests through a hybrid connection: its authentication class.

    auth = RelayAuth(connection_string)
    answer = requests.get(f"{auth.base_url}/orders/17", auth=auth)

Needs requests, which ``pip install "trunkline[requests]"`` brings.
"""

from __future__ import annotations

from typing import Any, Literal
from urllib.parse import urljoin

import requests
from requests.auth import AuthBase

from trunkline.sdk.sender_token import OTHER_TOKEN_HEADER, TOKEN_HEADER, SenderToken


class RelayAuth(AuthBase):
    """Gives each request to the relay a token with the right Send, made anew before it expires.

    Requests to any other host get none, also where a redirect leads to one. The token goes into ``Authorization``, or,
    where the request has one of its own for the application, into ``ServiceBusAuthorization``.

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

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        """See `requests.auth.AuthBase`."""
        if self._token.is_for(request.url or ""):
            name = OTHER_TOKEN_HEADER if TOKEN_HEADER in request.headers else TOKEN_HEADER
            request.headers[name] = self._token.get_blocking()
            request.register_hook("response", self._redirected)  # type: ignore[no-untyped-call]
        return request

    def _redirected(self, response: requests.Response, **_: Any) -> None:
        """Take the token off before requests follows a redirect to somebody else: it only does so with one header."""
        url = urljoin(response.url, response.headers.get("Location", ""))
        if response.is_redirect and not self._token.is_for(url):
            response.request.headers.pop(OTHER_TOKEN_HEADER, None)
