"""Under which address senders find the hybrid connection, and whether they need a token: the relay is asked."""

from __future__ import annotations

import asyncio
import re
from urllib.parse import quote

import aiohttp

from trunkline.protocol.errors import RelayError
from trunkline.sdk.endpoint import Endpoint
from trunkline.sdk.proxy import proxy_for

#: Seconds for the answer; without one nothing is lost but a more exact word to the user.
PATIENCE = 5.0
#: Bytes of the answer that are read.
_MOST = 65_536
_REQUIRES = re.compile(rb"<RequiresClientAuthorization>\s*(true|false)\s*<", re.IGNORECASE)


def public_url(endpoint: Endpoint) -> str:
    """The address for browsers, with a slash at its end: relative links of a page lead below it."""
    return f"{_address(endpoint)}/"


async def requires_token(endpoint: Endpoint) -> bool | None:
    """Whether senders need a token; None when the relay does not say.

    The question is the one of the .NET client's ``GetRuntimeInformationAsync``, asked with a listener's token.
    """
    try:
        port = endpoint.port or (443 if endpoint.secure else 80)
        if proxy_for(endpoint.host, port, secure=endpoint.secure, setting=endpoint.proxy) is not None:
            return None  # the question is not worth another way through a proxy
        token = await endpoint.token()
        headers = {"X-PROCESS-AT": "ServiceBus", "Authorization": token.text if token is not None else ""}
        async with (
            asyncio.timeout(PATIENCE),
            aiohttp.ClientSession() as session,
            session.get(
                f"{_address(endpoint)}?api-version=2016-07",
                headers=headers,
                ssl=endpoint.ssl or True,
                allow_redirects=False,
            ) as response,
        ):
            found = _REQUIRES.search(await response.content.read(_MOST)) if response.status == 200 else None
    except (aiohttp.ClientError, OSError, RelayError):
        return None
    return None if found is None else found[1].lower() == b"true"


def _address(endpoint: Endpoint) -> str:
    return f"{endpoint.base.replace('ws', 'http', 1)}/{quote(endpoint.path)}"
