"""Where to connect and as whom: one address or connection string, read once."""

from __future__ import annotations

import ssl as ssl_module
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from trunkline.protocol import connection_string, sas, urls
from trunkline.protocol.errors import InvalidConnectionString, InvalidSetting
from trunkline.sdk.proxy import Proxy, ProxySetting, proxy_for, read_setting
from trunkline.sdk.tokens import SasTokenProvider, StaticToken, Token, TokenProvider, token_provider_of

#: What the argument ``ssl`` may be: None for TLS with the platform's trust store, a context of one's own, False for
#: no TLS where the address does not say so itself.
TLS = ssl_module.SSLContext | Literal[False] | None


@dataclass(frozen=True)
class Endpoint:
    """A hybrid connection as a listener or sender reaches it."""

    #: Host name or IP address, without brackets.
    host: str
    #: None for the scheme's own port, 443 or 80.
    port: int | None
    #: Path of the hybrid connection; empty while only the namespace is known.
    path: str
    #: Whether TLS is used.
    secure: bool
    #: The TLS settings; None without TLS.
    ssl: ssl_module.SSLContext | None = field(repr=False)
    #: None for an anonymous sender.
    token_provider: TokenProvider | None
    #: None to look at the environment for each connection, False for none.
    proxy: Proxy | Literal[False] | None = None

    def __str__(self) -> str:
        """The address in messages and reprs: ``wss://host[:port]/path``."""
        return f"{self.base}/{self.path}"

    @property
    def base(self) -> str:
        """The beginning of the WebSocket URL, without a path."""
        return urls.base_url(self.host, self.port, secure=self.secure)

    @property
    def route(self) -> str:
        """The address, and the proxy on the way there, for messages."""
        try:
            port = self.port or (443 if self.secure else 80)
            proxy = proxy_for(self.host, port, secure=self.secure, setting=self.proxy)
        except InvalidSetting:  # said where it is used
            proxy = None
        return f"{self} through the proxy {proxy}" if proxy is not None else str(self)

    def of(self, path: str) -> Endpoint:
        """The same namespace, another hybrid connection."""
        return replace(self, path=path)

    async def token(self) -> Token | None:
        """A fresh token for this hybrid connection; None for an anonymous sender.

        The audience is written as hyco-ws does, but without the port, as .NET does: then one token fits both a relay
        that knows its port and one behind a load balancer that does not.
        """
        if self.token_provider is None:
            return None
        host = f"[{self.host}]" if ":" in self.host else self.host
        return await self.token_provider.get_token(sas.audience(host, self.path))


def is_connection_string(text: str) -> bool:
    """Whether `text` is a connection string and not an address: it names its parts before any URL begins."""
    return "=" in text.partition("://")[0]


def read_endpoint(
    address: str,
    *,
    entity_path: str | None,
    token_provider: Any,
    key_name: str | None,
    key: str | None,
    ssl: TLS,
    proxy: ProxySetting = None,
) -> Endpoint:
    """Put together what the arguments of a listener or client say.

    Args:
        address: ``sb://host[:port]/path``, or the same with ``wss``, ``https`` (TLS), ``ws`` or ``http`` (none); or a
            connection string.
        entity_path: path of the hybrid connection when `address` does not hold it.
        token_provider: a `TokenProvider` or a credential of azure-identity; wins over what a connection string holds.
        key_name, key: a rule, instead of `token_provider`.
        ssl: see `TLS`.
        proxy: URL of a proxy; None to look at the environment, False or "" for none.

    Raises:
        InvalidConnectionString, InvalidUrl: `address` cannot be read.
        InvalidSetting: arguments contradict each other.
    """
    if token_provider is not None and (key_name is not None or key is not None):
        raise InvalidSetting("Give either token_provider, or key_name and key")
    if (key_name is None) != (key is None):
        raise InvalidSetting("key_name and key belong together: give both")
    provider = token_provider_of(token_provider) if token_provider is not None else None
    if key_name is not None and key is not None:
        provider = SasTokenProvider(key_name, key)

    if is_connection_string(address):
        parts = connection_string.parse(address)
        host, port, path, secure = parts.host, parts.port, parts.entity_path or "", ssl is not False
        provider = provider or _provider_in(parts)
    else:
        host, port, path, secure = urls.parse_address(address)
        scheme = address.partition("://")[0].lower()
        if ssl is False and scheme == "sb":
            secure = False
        elif ssl is False and secure:
            raise InvalidSetting(f"ssl=False contradicts the address, which begins with {scheme}://")
    if isinstance(ssl, ssl_module.SSLContext) and not secure:
        raise InvalidSetting("An SSLContext is given for an address without TLS; begin it with sb:// or wss://")

    path = path.strip("/")
    if entity_path is not None:
        entity_path = entity_path.strip("/")
        if path and path.lower() != entity_path.lower():
            raise InvalidSetting(f"entity_path is {entity_path!r} and the address says {path!r}: give one of them")
        path = entity_path
    if secure and ssl is None:
        ssl = ssl_module.create_default_context()  # once: it reads the whole trust store
    return Endpoint(host, port, path, secure, ssl or None, provider, read_setting(proxy))


def _provider_in(parts: connection_string.ConnectionString) -> TokenProvider | None:
    """The token provider that a connection string describes."""
    if parts.shared_access_signature is not None:
        return StaticToken(parts.shared_access_signature)
    if parts.key_name is not None and parts.key is not None:
        return SasTokenProvider(parts.key_name, parts.key)
    if parts.authentication is not None:
        raise InvalidConnectionString(
            f"The connection string says Authentication={parts.authentication}: give the credential as "
            "token_provider, for example azure.identity.aio.DefaultAzureCredential()"
        )
    return None
