"""The PROXY protocol: one header ahead of everything else, in which a proxy says whose connection it passes on.

    PROXY TCP4 192.0.2.7 198.51.100.1 40000 443\\r\\n         version 1, text
    \\r\\n\\r\\n\\0\\r\\nQUIT\\n  command  family  length  ...    version 2, binary

Rules from "The PROXY protocol", versions 1 and 2 (haproxy, doc/proxy-protocol.txt), sections 2.1 and 2.2. What a
header of version 2 holds beyond the addresses (TLVs) is passed over.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from trunkline.protocol.errors import InvalidRequest

#: What a header of version 1 and of version 2 begins with.
SIGNATURE_1 = b"PROXY "
SIGNATURE_2 = b"\r\n\r\n\0\r\nQUIT\n"

#: Bytes of the longest header of version 1, its line end included (section 2.1).
LONGEST_1 = 107
#: Bytes behind the fixed part of a header of version 2 that are taken; few need more than 520 (section 2.2).
LONGEST_2 = 4_096

# "PROXY UNKNOWN" with its line end; no header of either version is shorter.
_SHORTEST = 15
_FIXED_2 = 16
_LOCAL, _PROXY = 0x20, 0x21
# Family and transport: its addresses with their ports take so many bytes, and one address this many.
_TCP = {0x11: (12, 4), 0x21: (36, 16)}
# No address, or one that is none of IP: unspecified, and Unix sockets.
_WITHOUT_ADDRESS = (0x00, 0x31)


@dataclass(frozen=True, slots=True)
class ProxyHeader:
    """A header that was read."""

    #: Bytes that it takes; what is behind them is the connection.
    size: int
    #: Address and port of whoever connected to the proxy. None: the proxy speaks for itself (a health check), or does
    #: not know.
    source: tuple[str, int] | None


def read(data: bytes | bytearray) -> ProxyHeader | None:
    """The header that `data`, the first bytes of a connection, begins with; None: more bytes are needed.

    Raises:
        InvalidRequest: it is none, or is malformed.
    """
    if data.startswith(SIGNATURE_2):
        return _read_2(data)
    if data.startswith(SIGNATURE_1):
        return _read_1(data)
    if any(signature.startswith(bytes(data[: len(signature)])) for signature in (SIGNATURE_1, SIGNATURE_2)):
        return None
    raise InvalidRequest("The proxy sent no PROXY header ahead of the request")


def wanted(data: bytes | bytearray) -> int:
    """How many bytes may be taken next, behind `data`, without taking anything that stands behind the header.

    For whoever has to leave the rest alone, as TLS that begins there. Ask again until `read` gives the header.
    """
    if data.startswith(SIGNATURE_2) and len(data) >= _FIXED_2:
        return max(1, _FIXED_2 + int.from_bytes(data[14:16], "big") - len(data))
    if data.startswith(SIGNATURE_1) and len(data) >= _SHORTEST:
        return 1 if data.endswith(b"\r") else 2
    return max(1, _SHORTEST - len(data))


def _read_1(data: bytes | bytearray) -> ProxyHeader | None:
    end = data.find(b"\r\n", 0, LONGEST_1)
    if end < 0:
        if len(data) >= LONGEST_1:
            raise InvalidRequest(f"The PROXY header is longer than {LONGEST_1} bytes")
        return None
    words = bytes(data[:end]).decode("latin-1").split(" ")[1:]
    # What follows UNKNOWN is to be ignored.
    source = None if words[0] == "UNKNOWN" else _source_1(words)
    return ProxyHeader(end + 2, source)


def _source_1(words: list[str]) -> tuple[str, int]:
    try:
        family, source, destination, source_port, destination_port = words
        address = {"TCP4": ipaddress.IPv4Address, "TCP6": ipaddress.IPv6Address}[family]
        found = address(source)
        # The destination is of no use here, and has to be right all the same.
        address(destination), _port(destination_port)
        if "%" in source:  # a zone means something on the machine of the proxy alone
            raise ValueError(source)
        return str(found), _port(source_port)
    except (KeyError, ValueError):
        raise InvalidRequest("The PROXY header does not name two addresses and two ports") from None


def _port(text: str) -> int:
    """Decimal, without signs and leading zeros."""
    port = int(text)
    if str(port) != text or not 0 <= port <= 65_535:
        raise ValueError(text)
    return port


def _read_2(data: bytes | bytearray) -> ProxyHeader | None:
    if len(data) < _FIXED_2:
        return None
    command, family = data[12], data[13]
    length = int.from_bytes(data[14:16], "big")
    if command not in (_LOCAL, _PROXY):
        raise InvalidRequest(f"The PROXY header is of an unknown version or command (0x{command:02x})")
    if length > LONGEST_2:
        raise InvalidRequest(f"The PROXY header is longer than {LONGEST_2} bytes")
    is_tcp = command == _PROXY and family in _TCP
    if command == _PROXY and not is_tcp and family not in _WITHOUT_ADDRESS:
        raise InvalidRequest(f"The PROXY header is of a connection that is not TCP (0x{family:02x})")
    taken, size = _TCP[family] if is_tcp else (0, 0)
    if length < taken:
        raise InvalidRequest("The PROXY header is shorter than its addresses")
    whole = _FIXED_2 + length
    if len(data) < whole:
        return None
    if not is_tcp:
        return ProxyHeader(whole, None)
    source = ipaddress.ip_address(bytes(data[_FIXED_2 : _FIXED_2 + size]))
    port = _FIXED_2 + 2 * size
    return ProxyHeader(whole, (str(source), int.from_bytes(data[port : port + 2], "big")))
