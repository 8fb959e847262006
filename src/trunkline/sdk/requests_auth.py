"""Requests with the library requests through a hybrid connection: its authentication class.

    auth = RelayAuth(connection_string)
    answer = requests.get(f"{auth.base_url}/orders/17", auth=auth)

Needs requests, which ``pip install "trunkline[requests]"`` brings.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import urljoin

import requests
from requests.auth import AuthBase

from trunkline.sdk.sender_token import OTHER_TOKEN_HEADER, TOKEN_HEADER, SenderToken


class RelayAuth(SenderToken, AuthBase):
    """Gives each request to the relay a token with the right Send, made anew before it expires.

    Requests to any other host get none, also where a redirect leads to one. The token goes into ``Authorization``, or,
    where the request has one of its own for the application, into ``ServiceBusAuthorization``.

    It is made of an address or a connection string, see `SenderToken`; its `base_url` is for the client.
    """

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        """See `requests.auth.AuthBase`."""
        if self.is_for(request.url or ""):
            name = OTHER_TOKEN_HEADER if TOKEN_HEADER in request.headers else TOKEN_HEADER
            request.headers[name] = self.token_blocking()
            request.register_hook("response", self._redirected)  # type: ignore[no-untyped-call]
        return request

    def _redirected(self, response: requests.Response, **_: Any) -> None:
        """Take the token off before requests follows a redirect to somebody else: it only does so with one header."""
        url = urljoin(response.url, response.headers.get("Location", ""))
        if response.is_redirect and not self.is_for(url):
            response.request.headers.pop(OTHER_TOKEN_HEADER, None)
