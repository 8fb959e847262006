"""What happens to headers on their way to the target and back.

Hop-by-hop headers (RFC 9110 section 7.6.1) end here, both ways, with those that ``Connection`` names. The target hears
in ``X-Forwarded-*`` what the sender saw; what a sender says about that itself counts only when it is to be trusted,
because anybody can write such headers. ``Via`` grows by one name (section 7.6.3).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from trunkline.expose.paths import PublicPath
from trunkline.expose.target import Target

Headers = list[tuple[str, str]]

_HOP_BY_HOP = frozenset(
    [
        "connection",
        "close",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    ]
)
#: Ours to say to the target. Expect was answered by the relay already (section 10.1.1).
_REPLACED = frozenset(["host", "content-length", "expect", "via"])
#: What a proxy says of the sender; taken from a sender only when it is trusted.
_FORWARDED = frozenset(
    ["forwarded", "x-forwarded-for", "x-forwarded-proto", "x-forwarded-host", "x-forwarded-prefix", "x-real-ip"]
)
#: The handshake with the target is another one.
_HANDSHAKE = frozenset(
    [
        "sec-websocket-accept",
        "sec-websocket-extensions",
        "sec-websocket-key",
        "sec-websocket-protocol",
        "sec-websocket-version",
    ]
)


@dataclass(frozen=True)
class HeaderRules:
    """What the target is told.

    Attributes:
        target: whose ``Host`` is sent unless the next two say otherwise.
        preserve_host: send the ``Host`` that the sender used.
        host: send this ``Host``.
        trust_forwarded: keep what the sender says in ``X-Forwarded-*``: a gateway in front of the relay writes them.
        keep_path: the path goes to the target as the relay hands it over, below that of the hybrid connection whatever
            host was asked, so that there is no prefix to tell and nothing beside it can be reached.
        scheme: of the public address, ``https`` or ``http``.
        pseudonym: our name in ``Via``.
    """

    target: Target
    preserve_host: bool = False
    host: str | None = None
    trust_forwarded: bool = False
    keep_path: bool = False
    scheme: str = "https"
    pseudonym: str = "trunkline"

    def public_path(self, headers: Mapping[str, str], entity: str) -> PublicPath:
        """Under which path the sender of these headers sees the target.

        ``X-Forwarded-Prefix: /`` is set by the relay when the hybrid connection was reached by a host of its own.
        """
        hosts = frozenset(host.lower() for host in (headers.get("Host", ""), self.host or "") if host)
        if self.keep_path or _is_own_host(headers):
            return PublicPath("", hosts)
        said = headers.get("X-Forwarded-Prefix", "").strip()
        if self.trust_forwarded and said.startswith("/"):
            return PublicPath(said.rstrip("/"), hosts)
        return PublicPath(f"/{entity}", hosts)

    def keeps_entity(self, headers: Mapping[str, str]) -> bool:
        """Whether the path for the target begins with the entity: it is to stay, and the sender wrote it."""
        return self.keep_path and not _is_own_host(headers)

    def is_loop(self, headers: Mapping[str, str]) -> bool:
        """Whether we have forwarded this request before: the target leads back to the relay."""
        return any(self.pseudonym in each.split() for each in headers.get("Via", "").split(","))

    def request(self, headers: Mapping[str, str], *, remote: str, public_path: PublicPath) -> Headers:
        """The headers for the target.

        Args:
            headers: the sender's, as the relay passes them on.
            remote: IP address of the sender; empty where the relay did not say.
            public_path: see above.
        """
        named = _named_in_connection(headers.items())
        sender_host = headers.get("Host", "")
        dropped = _HOP_BY_HOP | _REPLACED | _FORWARDED | _HANDSHAKE | named
        host = self.host or (sender_host if self.preserve_host else "") or self.target.authority
        result = [("Host", host)]
        # WSGI and CGI servers take X_Forwarded_For for X-Forwarded-For: what is ours to say, nobody says with a "_".
        result += [
            (name, _as_utf8(value))
            for name, value in headers.items()
            if (lower := name.lower()) not in dropped and ("_" not in lower or lower.replace("_", "-") not in dropped)
        ]
        said = {name: headers.get(name, "") for name in _FORWARDED} if self.trust_forwarded else {}
        chain = ", ".join(filter(None, (said.get("x-forwarded-for"), remote)))
        for name, value in (
            ("X-Forwarded-For", chain),
            ("X-Forwarded-Proto", said.get("x-forwarded-proto") or self.scheme),
            ("X-Forwarded-Host", said.get("x-forwarded-host") or sender_host),
            ("X-Forwarded-Prefix", public_path.prefix),
            ("Forwarded", said.get("forwarded", "")),
            ("X-Real-IP", said.get("x-real-ip", "")),
            ("Via", ", ".join(filter(None, (headers.get("Via", ""), f"1.1 {self.pseudonym}")))),
        ):
            if value:
                result.append((name, value))
        return result

    def response(self, raw: Iterable[tuple[bytes, bytes]], public_path: PublicPath) -> Headers:
        """The headers for the sender; ``Content-Length`` among them, where the target said it."""
        headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in raw]
        dropped = _HOP_BY_HOP | _named_in_connection(headers)
        result = []
        for name, value in headers:
            lower = name.lower()
            if lower in dropped:
                continue
            if lower in ("location", "content-location"):
                value = public_path.location(value, self.target)
            elif lower == "set-cookie":
                value = public_path.cookie(value, self.target)
            result.append((name, value))
        return result


def content_length(headers: Iterable[tuple[str, str]]) -> int | None:
    """What the target said of the length of its answer; None for nothing."""
    for name, value in headers:
        if name.lower() == "content-length" and value.isascii() and value.isdigit():
            return int(value)
    return None


def _is_own_host(headers: Mapping[str, str]) -> bool:
    return headers.get("X-Forwarded-Prefix", "").strip() == "/"


def _named_in_connection(headers: Iterable[tuple[str, str]]) -> frozenset[str]:
    values = (value for name, value in headers if name.lower() == "connection")
    return frozenset(each.strip().lower() for value in values for each in value.split(","))


def _as_utf8(value: str) -> str:
    """A value that aiohttp, which writes UTF-8, puts on the wire with the bytes that the sender sent.

    The relay gives each byte as one character (Latin-1). A value that is not UTF-8 cannot be written so, and is
    written as UTF-8 instead.
    """
    if value.isascii():
        return value
    try:
        return value.encode("latin-1").decode("utf-8")
    except UnicodeError:
        return value
