"""The asyncio SDK: listener and sender for Trunkline and for Azure Relay.

    async with HybridConnectionListener(connection_string) as listener:
        async for connection in listener: ...

    client = HybridConnectionClient(connection_string)
    async with await client.create_connection() as connection: ...

In the order data meets them: `endpoint` reads addresses and `tokens` gives tokens; `sender` and `listener` dial with
them, through a `proxy` where there is one; `websocket` is the transport and handshake under every leg; `leg` holds
the rules of a data connection, and `connection` is what applications read and write. `control_channel` runs a
listener's registration, `incoming` is a sender as the accept handler sees it, `reconnect` decides when to try again.
HTTP: `http_service` gives requests to the handler, which sees them as in `relayed_http`; `http_rendezvous` carries
large ones; `asgi` hosts applications on it. For requests that others' libraries make, `sender_token` is behind
`httpx_auth` and `requests_auth`.
Errors: `trunkline.protocol.errors`.
"""

from trunkline.sdk.connection import Connection, ConnectionClosed
from trunkline.sdk.incoming import IncomingConnection
from trunkline.sdk.listener import HybridConnectionListener, ListenerState
from trunkline.sdk.proxy import (
    ProxyAuthenticationFailed,
    ProxyCannotConnect,
    ProxyError,
    ProxyRefused,
    ProxyUnreachable,
)
from trunkline.sdk.reconnect import Retry
from trunkline.sdk.relayed_http import HttpRequest, HttpResponse, ResponseWriter
from trunkline.sdk.sender import HybridConnectionClient
from trunkline.sdk.tokens import EntraTokenProvider, SasTokenProvider, StaticToken, Token, TokenProvider

__all__ = [
    "Connection",
    "ConnectionClosed",
    "EntraTokenProvider",
    "HttpRequest",
    "HttpResponse",
    "HybridConnectionClient",
    "HybridConnectionListener",
    "IncomingConnection",
    "ListenerState",
    "ProxyAuthenticationFailed",
    "ProxyCannotConnect",
    "ProxyError",
    "ProxyRefused",
    "ProxyUnreachable",
    "ResponseWriter",
    "Retry",
    "SasTokenProvider",
    "StaticToken",
    "Token",
    "TokenProvider",
]
