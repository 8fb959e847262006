"""The head of a request: its line and headers, read whole, and the answer to a WebSocket's key.

A head is given whole, so nothing behind it is ever parsed: llhttp takes all pipelined requests of one feed without a
pause and has no limit of its own.
"""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import dataclass, field

import httptools

from trunkline.protocol.errors import (
    HeadersTooLarge,
    InvalidRequest,
    UnsupportedRequest,
    VersionNotSupported,
    clean_phrase,
)
from trunkline.protocol.http_body import announced_length

# RFC 6455 section 1.3.
_ACCEPT_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"

# Characters that are kept of what a client calls itself.
_USER_AGENT_SHOWN = 120

# Headers of a request.
MOST_HEADERS = 1_000

# A request line (RFC 9112 section 3) with a method of any name. llhttp is less strict: it takes two spaces, and RTSP.
_REQUEST_LINE = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+) [!-~]+ HTTP/([0-9]\.[0-9])\r\n")
_WITHOUT_VERSION = re.compile(rb"[A-Z]+ /[!-~]*\r\n")

_ABSOLUTE = re.compile(r"https?://([^/?#]*)", re.IGNORECASE)

# Methods that llhttp knows and that are not served: a tunnel, and what HTTP/2 begins with.
_NOT_SERVED = {"CONNECT", "PRI"}


@dataclass(slots=True, eq=False)
class RequestHead:
    """A request line and its headers. Names and values are as sent, decoded as Latin-1 (RFC 9110 section 5.5)."""

    method: str
    # Neither is shown: a token may be in both.
    target: str = field(repr=False)
    headers: tuple[tuple[str, str], ...] = field(repr=False)
    # Of HTTP: "1.1" or "1.0".
    version: str = field(default="1.1", repr=False)
    # Bytes of the body that the headers announce; None: it is chunked.
    body_length: int | None = field(default=0, repr=False)
    # The same headers by their names in lower case, repeated ones joined.
    _by_name: dict[str, str] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        by_name = self._by_name = {}
        for name, value in self.headers:
            name = name.lower()
            by_name[name] = f"{by_name[name]}, {value}" if name in by_name else value

    def get(self, name: str) -> str | None:
        """The values of a header joined by ", " as RFC 9110 section 5.2 allows; None when there is none."""
        return self._by_name.get(name.lower())

    def has(self, *names: str) -> bool:
        """Whether there is a header of one of these names, which are in lower case."""
        return any(name in self._by_name for name in names)

    def tokens(self, name: str) -> tuple[str, ...]:
        """The members of a comma-separated header, trimmed, without empty ones."""
        value = self.get(name)
        return tuple(part.strip() for part in value.split(",") if part.strip()) if value else ()

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
        return (
            "upgrade" in self._by_name
            and "websocket" in (token.lower() for token in self.tokens("Upgrade"))
            and "upgrade" in (token.lower() for token in self.tokens("Connection"))
        )

    @property
    def wants_to_stay(self) -> bool:
        """Whether the client means to send another request on the connection (RFC 9112 section 9.3)."""
        if "connection" not in self._by_name:
            return self.version != "1.0"
        options = [option.lower() for option in self.tokens("Connection")]
        return "close" not in options and (self.version != "1.0" or "keep-alive" in options)

    @property
    def expects_continue(self) -> bool:
        """Whether the client waits for a 100 before it sends its body (RFC 9110 section 10.1.1)."""
        return (
            "expect" in self._by_name
            and self.version != "1.0"
            and "100-continue" in (token.lower() for token in self.tokens("Expect"))
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
        # llhttp leaves the spaces behind a value (RFC 9112 section 5.1).
        self.headers.append((name.decode("latin-1"), value.rstrip(b" \t").decode("latin-1")))


def parse_head(data: bytes) -> RequestHead:
    """Read a whole request head, up to and with its empty line.

    Raises:
        InvalidRequest: it is malformed, has no or two hosts, leaves open where the request ends, or announces a body
            with an upgrade.
        UnsupportedRequest: a method or a transfer coding that is not served.
        VersionNotSupported: another major version than 1.
        HeadersTooLarge: more than `MOST_HEADERS` headers.
    """
    line = _REQUEST_LINE.match(data)
    if line is None:
        if _WITHOUT_VERSION.match(data):
            raise InvalidRequest("The request is HTTP/0.9; speak HTTP/1.1")
        raise InvalidRequest("The request line is malformed")
    method, version = line[1].decode(), line[2].decode()
    if version not in ("1.1", "1.0"):
        raise VersionNotSupported(f"The request is HTTP/{version}; speak HTTP/1.1")
    if method in _NOT_SERVED:
        raise UnsupportedRequest(f"{method} is not served here")
    if data.count(b"\n") > MOST_HEADERS:
        raise HeadersTooLarge(f"The request has more than {MOST_HEADERS} headers")
    collector = _HeadParser()
    try:
        httptools.HttpRequestParser(collector).feed_data(data)
    except httptools.HttpParserUpgrade:
        # How httptools says that the head asks for an upgrade; the head is whole.
        pass
    except httptools.HttpParserError as error:
        # The class for a method that it does not know, the words for one of RTSP.
        if isinstance(error, httptools.HttpParserInvalidMethodError) or str(error).startswith("Invalid method"):
            raise UnsupportedRequest(f"The method {method[:30]} is not served here") from None
        # For its own status where the framing is what llhttp did not like.
        _ = announced_length(collector.headers, version)
        raise InvalidRequest(f"The request head is malformed ({error})") from None
    headers = tuple(collector.headers)
    head = RequestHead(method, collector.url.decode("latin-1"), headers, version)
    if head.has("content-length", "transfer-encoding"):
        head.body_length = announced_length(headers, version)
    host = head.get("host")
    if (version == "1.1") if host is None else ("," in host and sum(name.lower() == "host" for name, _ in headers) > 1):
        raise InvalidRequest("The request needs exactly one Host header")
    if not head.target.startswith("/"):
        _check_authority(head)
    if head.is_websocket:
        _check_handshake(head)
    return head


def _check_authority(head: RequestHead) -> None:
    """Raise an error when an address in absolute form names another host than the header, which is what is read.

    RFC 9112 section 3.2.2 wants the header ignored. Two that differ are somebody's trick, or a client's mistake.
    """
    absolute = _ABSOLUTE.match(head.target)
    host = head.get("Host")
    if absolute is not None and host is not None and absolute[1].lower() != host.lower():
        raise InvalidRequest("The Host header names another host than the address")


def _check_handshake(head: RequestHead) -> None:
    """Raise an error when a WebSocket handshake is none that can be answered (RFC 6455 section 4.2.1)."""
    if head.version != "1.1":
        raise InvalidRequest(f"The request is HTTP/{head.version}; speak HTTP/1.1")
    if head.method != "GET":
        raise InvalidRequest("A WebSocket handshake is a GET request")
    if head.body_length != 0:
        raise InvalidRequest("A WebSocket handshake has no body")
    if sum(name.lower() == "sec-websocket-key" and value != "" for name, value in head.headers) != 1:
        raise InvalidRequest("The WebSocket handshake needs exactly one Sec-WebSocket-Key header")
    if head.get("Sec-WebSocket-Version") != "13":
        raise UpgradeRequired


def accept_key(key: str) -> str:
    """The `Sec-WebSocket-Accept` that answers a `Sec-WebSocket-Key` (RFC 6455 section 4.2.2)."""
    digest = hashlib.sha1(key.strip().encode("latin-1") + _ACCEPT_GUID, usedforsecurity=False).digest()
    return base64.b64encode(digest).decode()
