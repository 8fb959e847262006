"""What an ASGI application is told of a request (ASGI 3, "HTTP & WebSocket ASGI Message Format").

    sender asks for       root_path   path           because
    /orders/items/7       /orders     /orders/items/7   the hybrid connection is `orders`; `path` includes `root_path`
    /orders               /orders     /orders/          the address itself is the application's "/", slash or not
    orders.relay/items/7  ""          /items/7          the host name is the hybrid connection's own

A framework makes links from `root_path`, and looks for its routes in what is behind it.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from trunkline.sdk.endpoint import Endpoint
from trunkline.sdk.incoming import IncomingConnection
from trunkline.sdk.relayed_http import HttpRequest

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

#: The header by which the relay says that the host name is the hybrid connection's own: "/" for no prefix.
PREFIX_HEADER = "X-Forwarded-Prefix"
#: Of the message formats: 2.3 for HTTP, as in uvicorn, so that frameworks watch for a sender that goes (from 2.4 on
#: they wait for `send` to fail); 2.4 for WebSockets, where `send` fails once the sender has gone.
HTTP_SPEC = "2.3"
WEBSOCKET_SPEC = "2.4"
#: What RFC 3986 lets stand in a path; `%` because escapes that the relay has left are escapes.
_SAFE_IN_PATH = "/%:@!$&'()*+,;=~"
#: Characters of a name, of a host or of a header, that is remembered: what nobody uses costs no memory.
_LONGEST_NAME = 255
#: A path that is the same decoded and encoded.
_PLAIN_PATH = re.compile(r"[-/.\w:@!$&'()*+,;=~]*", re.ASCII)


@dataclass(frozen=True)
class Mount:
    """Where an application is reached from outside."""

    #: The relay and the hybrid connection, as the listener reaches them.
    endpoint: Endpoint
    #: What stands in front of every path of the application; None: "/ENTITY", or "" on a host name of its own.
    root_path: str | None = None

    @property
    def url(self) -> str:
        """The address at the relay, with a slash at its end so that relative links work."""
        return f"http{self.endpoint.base.removeprefix('ws')}/{quote(self.endpoint.path)}/"

    def http_scope(self, request: HttpRequest, state: Mapping[str, Any], length: int | None = None) -> Scope:
        """The scope of one request. length: bytes of its body; None: as the request knows them itself."""
        scope = self._scope("http", HTTP_SPEC, request.headers, request.query, request.suffix, state)
        length = request.length if length is None else length
        if length and "Content-Length" not in request.headers:  # which the relay has taken away
            scope["headers"].append((b"content-length", str(length).encode()))
        return scope | {
            "method": request.method,
            "scheme": "https" if self.endpoint.secure else "http",
            "client": _client(request.remote_address),
        }

    def websocket_scope(self, incoming: IncomingConnection, state: Mapping[str, Any]) -> Scope:
        """The scope of one WebSocket."""
        scope = self._scope("websocket", WEBSOCKET_SPEC, incoming.headers, incoming.query, incoming.suffix, state)
        return scope | {
            "scheme": "wss" if self.endpoint.secure else "ws",
            "client": _client(incoming.remote_address),
            "subprotocols": list(incoming.subprotocols),
            "extensions": {"websocket.http.response": {}},
        }

    def _scope(
        self,
        kind: str,
        spec: str,
        headers: Mapping[str, str],
        query: str,
        suffix: str,
        state: Mapping[str, Any],
    ) -> dict[str, Any]:
        root_path = self._root_path(headers)
        default = 443 if self.endpoint.secure else 80
        path = raw_path = f"{root_path}/{suffix}"
        if not _PLAIN_PATH.fullmatch(path):
            path, raw_path = f"{root_path}/{unquote(suffix)}", quote(path, safe=_SAFE_IN_PATH, errors="replace")
        return {
            "type": kind,
            "asgi": {"version": "3.0", "spec_version": spec},
            "http_version": "1.1",
            "root_path": root_path,
            "path": path,
            "raw_path": raw_path.encode(),
            "query_string": query.encode(errors="replace"),
            "headers": header_bytes(headers.items()),
            "server": _host_and_port(headers.get("Host", "")[:_LONGEST_NAME], default)
            or (self.endpoint.host, self.endpoint.port or default),
            # A copy for each request, as the specification wants it.
            "state": dict(state),
        }

    def _root_path(self, headers: Mapping[str, str]) -> str:
        if self.root_path is not None:
            return self.root_path
        return "" if headers.get(PREFIX_HEADER) == "/" else f"/{self.endpoint.path}"


@lru_cache(maxsize=256)
def _host_and_port(host: str, default_port: int) -> tuple[str, int] | None:
    """A Host header; None where it cannot be read."""
    try:
        name = urlsplit(f"//{host}")
        return (name.hostname, name.port or default_port) if name.hostname else None
    except ValueError:
        return None


def header_bytes(headers: Iterable[tuple[str, str]]) -> list[tuple[bytes, bytes]]:
    """Headers as ASGI has them: names in lower case, values as the bytes that the sender wrote (mostly Latin-1)."""
    return [
        (_name(name) if len(name) <= _LONGEST_NAME else _latin_1(name.lower()), _latin_1(value))
        for name, value in headers
    ]


@lru_cache(maxsize=1024)
def _name(name: str) -> bytes:
    return _latin_1(name.lower())


def _latin_1(text: str) -> bytes:
    try:
        return text.encode("latin-1")
    except UnicodeEncodeError:
        return text.encode(errors="replace")


def _client(address: tuple[str, int]) -> tuple[str, int] | None:
    return address if address[0] else None
