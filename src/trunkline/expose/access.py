"""Under which address senders find the hybrid connection, and whether they need a token: the relay is asked."""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass
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

_LISTENERS = re.compile(rb"<ListenerCount>\s*([0-9]{1,9})\s*<")


def public_url(endpoint: Endpoint) -> str:
    """The address for browsers, with a slash at its end: relative links of a page lead below it."""
    return f"{_address(endpoint)}/"


@dataclass(frozen=True)
class Information:
    """What the relay says of a hybrid connection; None where it does not say."""

    #: Whether senders need a token.
    requires_token: bool | None = None
    #: Registered listeners.
    listeners: int | None = None


async def requires_token(endpoint: Endpoint) -> bool | None:
    """Whether senders need a token; None when the relay does not say."""
    return (await ask(endpoint)).requires_token


async def ask(endpoint: Endpoint) -> Information:
    """Ask the relay about a hybrid connection.

    The question is the one of the .NET client's ``GetRuntimeInformationAsync``, asked with a listener's token.
    """
    try:
        port = endpoint.port or (443 if endpoint.secure else 80)
        if proxy_for(endpoint.host, port, secure=endpoint.secure, setting=endpoint.proxy) is not None:
            return Information()  # the question is not worth another way through a proxy
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
            text = b""
            async for piece in response.content.iter_any():
                text += piece
                if len(text) > _MOST:
                    break
    except (aiohttp.ClientError, OSError, RelayError):
        return Information()
    requires, listeners = _REQUIRES.search(text), _LISTENERS.search(text)
    if response.status != 200 or requires is None:
        return Information()
    return Information(requires[1].lower() == b"true", int(listeners[1]) if listeners is not None else None)


def _address(endpoint: Endpoint) -> str:
    return f"{endpoint.base.replace('ws', 'http', 1)}/{quote(endpoint.path)}"
