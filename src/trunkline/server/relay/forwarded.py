"""Whose connection it is that a proxy passes on, and whether that one was encrypted: what a proxy says is believed only
of one that the operator trusts.

    X-Forwarded-For      each proxy adds the address of its own client on the right, so the client is the rightmost one
                         that is no trusted proxy; what stands left of it, that client may have written itself
    X-Forwarded-Proto    how the client came: https or wss, http or ws

Headers of anybody else are not looked at. They go to the listener as they came, whoever sent them.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_ENCRYPTED = {"https": True, "wss": True, "http": False, "ws": False}


class TrustedProxies:
    """The proxies that are believed; false when there are none.

    Args:
        networks: their addresses.
    """

    def __init__(self, networks: Iterable[Network] = ()) -> None:
        self._networks = tuple(networks)

    def __repr__(self) -> str:
        return f"<TrustedProxies {', '.join(map(str, self._networks)) or 'none'}>"

    def __bool__(self) -> bool:
        return bool(self._networks)

    def __contains__(self, address: str) -> bool:
        """Whether the peer with that address is one."""
        if not self._networks:
            return False
        try:
            found = ipaddress.ip_address(address)
        except ValueError:
            return False
        return any(found in network for network in self._networks)

    def client(
        self, peer: tuple[str, int], secure: bool, forwarded_for: str | None, forwarded_proto: str | None
    ) -> tuple[tuple[str, int], bool]:
        """Address and port of whoever a request is from, and whether it came encrypted.

        Args:
            peer: whose connection it is that brought the request.
            secure: whether that is encrypted.
            forwarded_for, forwarded_proto: the headers, repeated ones joined with commas; None: there is none.
        """
        if peer[0] not in self:
            return peer, secure
        nearest = (forwarded_proto or "").rpartition(",")[2].strip().lower()
        secure = _ENCRYPTED.get(nearest, secure)
        client = peer
        for entry in reversed((forwarded_for or "").split(",")):
            found = parse_address(entry)
            if found is None:
                # Nobody can tell what a proxy meant by it: the one that sent it is the last that is known.
                break
            client = found
            if found[0] not in self:
                break
        return client, secure


def parse_address(text: str) -> tuple[str, int] | None:
    """An address of X-Forwarded-For, which some write with a port and in brackets; port 0 where there is none."""
    text = text.strip()
    host, port = text, ""
    if text.startswith("["):
        host, _, port = text[1:].partition("]")
        port = port.removeprefix(":")
    elif text.count(":") == 1:
        host, _, port = text.partition(":")
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return None
    if "%" in host:  # a zone means something on the machine of the proxy alone
        return None
    number = int(port) if port.isascii() and port.isdigit() and len(port) <= 5 else 0
    return plain_address(str(address)), number if number <= 65_535 else 0


def plain_address(address: str) -> str:
    """An IPv4 address that a socket for both families shows as one of IPv6 (::ffff:192.0.2.7), as what it is."""
    if not address.lower().startswith("::ffff:"):
        return address
    mapped = ipaddress.IPv6Address(address).ipv4_mapped
    return address if mapped is None else str(mapped)
