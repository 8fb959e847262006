"""The head of a request: its line and headers, read whole, and the answer to a WebSocket's key.

A head is given whole, so nothing behind it is ever parsed: llhttp takes all pipelined requests of one feed without a
pause and has no limit of its own.
"""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass, field

import httptools

from trunkline.protocol.errors import HeadersTooLarge, InvalidRequest, clean_phrase

# RFC 6455 section 1.3.
_ACCEPT_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"

# Characters that are kept of what a client calls itself.
_USER_AGENT_SHOWN = 120

# Headers of a request.
MOST_HEADERS = 1_000


@dataclass(frozen=True, slots=True)
class RequestHead:
    """A request line and its headers. Names and values are as sent, decoded as Latin-1 (RFC 9110 section 5.5)."""

    method: str
    # Neither is shown: a token may be in both.
    target: str = field(repr=False)
    headers: tuple[tuple[str, str], ...] = field(repr=False)

    def get(self, name: str) -> str | None:
        """The values of a header joined by ", " as RFC 9110 section 5.2 allows; None when there is none."""
        name = name.lower()
        values = [value for key, value in self.headers if key.lower() == name]
        return ", ".join(values) if values else None

    def tokens(self, name: str) -> tuple[str, ...]:
        """The members of a comma-separated header, trimmed, without empty ones."""
        return tuple(part.strip() for part in (self.get(name) or "").split(",") if part.strip())

    @property
    def user_agent(self) -> str:
        """What the client calls itself, printable and short; "unknown" when it does not (hyco-ws).

        `Relay-User-Agent` comes first: .NET names its relay library there, and a browser cannot set the other.
        """
        text = self.get("Relay-User-Agent") or self.get("User-Agent") or ""
        return clean_phrase(text[:_USER_AGENT_SHOWN]) or "unknown"

    @property
    def is_websocket(self) -> bool:
        """True for the opening handshake of RFC 6455 section 4.1. `Upgrade: h2c` is none, and is ignored."""
        return "websocket" in (token.lower() for token in self.tokens("Upgrade")) and "upgrade" in (
            token.lower() for token in self.tokens("Connection")
        )


class UpgradeRequired(InvalidRequest):
    """A WebSocket version other than 13 (RFC 6455 section 4.4)."""

    code = "UpgradeRequired"
    status = 426
    default_message = "Only version 13 of the WebSocket protocol is spoken here"


class _HeadParser:
    """The callbacks of httptools for one head."""

    def __init__(self) -> None:
        self.url = b""
        self.headers: list[tuple[str, str]] = []

    def on_url(self, url: bytes) -> None:
        # Comes in pieces when the target is long.
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.decode("latin-1"), value.decode("latin-1")))


def parse_head(data: bytes) -> RequestHead:
    """Read a whole request head, up to and with its empty line.

    Raises:
        InvalidRequest: what is not HTTP/1.1, has no or two hosts, or announces a body with an upgrade.
    """
    if data.count(b"\n") > MOST_HEADERS:
        raise HeadersTooLarge(f"The request has more than {MOST_HEADERS} headers")
    collector = _HeadParser()
    parser = httptools.HttpRequestParser(collector)
    try:
        parser.feed_data(data)
    except httptools.HttpParserUpgrade:
        # How httptools says that the head asks for an upgrade; the head is whole.
        pass
    except httptools.HttpParserError as error:
        raise InvalidRequest(f"The request head is malformed ({error})") from None
    version = parser.get_http_version()
    method = parser.get_method().decode("latin-1")
    if version != "1.1":
        raise InvalidRequest(f"The request is HTTP/{version or '0.9'}; speak HTTP/1.1")
    head = RequestHead(method, collector.url.decode("latin-1"), tuple(collector.headers))
    if sum(name.lower() == "host" for name, _ in head.headers) != 1:
        raise InvalidRequest("The request needs exactly one Host header")
    if head.is_websocket:
        if method != "GET":
            raise InvalidRequest("A WebSocket handshake is a GET request")
        if (head.get("Content-Length") or "0").strip() != "0" or head.get("Transfer-Encoding"):
            raise InvalidRequest("A WebSocket handshake has no body")
        if sum(name.lower() == "sec-websocket-key" and value != "" for name, value in head.headers) != 1:
            raise InvalidRequest("The WebSocket handshake needs exactly one Sec-WebSocket-Key header")
        if head.get("Sec-WebSocket-Version") != "13":
            raise UpgradeRequired
    return head


def accept_key(key: str) -> str:
    """The `Sec-WebSocket-Accept` that answers a `Sec-WebSocket-Key` (RFC 6455 section 4.2.2)."""
    digest = hashlib.sha1(key.strip().encode("latin-1") + _ACCEPT_GUID, usedforsecurity=False).digest()
    return base64.b64encode(digest).decode()
